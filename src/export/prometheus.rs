//! Figures for Prometheus: a collector for a registry of [`prometheus_client`], and their text for those
//! who have none.
//!
//! | | format |
//! |---|---|
//! | [`Collector`], in a registry | what the registry is encoded as: OpenMetrics, Prometheus' text, protobuf |
//! | [`text`] | Prometheus' text, version 0.0.4, which all of its versions read |
//!
//! [Names and labels](super#names) are the same. A pool that is gone is not told of any more.
//!
//! Times are counted in buckets of the usual bounds, from 0.1 ms to 10 s for waits. Those within 6.3 %
//! below a bound may count as above it: see [`Histogram::count_within`](crate::Histogram::count_within).
//!
//! Not here: a server that answers scrapes, and what the figures are (`figures.rs`).

use super::figures::{FAMILIES, Family, Kind, whose};
use crate::metrics::{Histogram, Monitor, PoolStatus};
use prometheus_client::collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::time::Duration;

/// What [`text`] is, for the header `Content-Type`.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Tells a registry of the pools of a monitor, each time it is scraped.
///
/// The registry's prefix and labels apply as to any collector. They stand beside those of the figures, and
/// Prometheus refuses a scrape in which a series has a label twice: so no label of it may be called `pool`,
/// `state`, `outcome`, `reason` or `le`, nor `cluster`, `node` or `role` if the monitor looks at a cluster.
///
/// A scrape looks at each pool once; a pool under its name in two monitors of one registry would be told of
/// twice, which Prometheus refuses as well.
///
/// # Examples
///
/// ```
/// # use millpond::{Pool, from_fn};
/// # use std::convert::Infallible;
/// use millpond::{Monitor, export::prometheus::Collector};
/// use prometheus_client::{encoding::text::encode, registry::Registry};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
/// let pool = Pool::builder(manager).name("orders").min_idle(1).build().await?;
/// let monitor = Monitor::new();
/// monitor.add(&pool)?;
///
/// let mut registry = Registry::with_prefix("shop");
/// registry.register_collector(Box::new(Collector::new(monitor)));
/// let mut scrape = String::new();
/// encode(&mut scrape, &registry)?;
/// assert!(scrape.contains(r#"shop_millpond_connections{pool="orders",state="idle"} 1"#));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Collector {
    monitor: Monitor,
}

impl Collector {
    /// Tells of the pools that this monitor has at each scrape, also those that are added later.
    #[must_use]
    pub fn new(monitor: Monitor) -> Self {
        Self { monitor }
    }
}

impl collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Once, so that all families tell of the same moment.
        let statuses = self.monitor.statuses();
        FAMILIES.iter().try_for_each(|family| encode(family, &statuses, &mut encoder))
    }
}

/// The figures of all pools as Prometheus reads them: the answer to a scrape, with [`CONTENT_TYPE`].
///
/// # Cost
///
/// One look at each pool, and about 10 kB of text for it.
///
/// # Examples
///
/// ```
/// # use millpond::{Monitor, Pool, export, from_fn};
/// # use std::convert::Infallible;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
/// let pool = Pool::builder(manager).name("orders").build().await?;
/// let monitor = Monitor::new();
/// monitor.add(&pool)?;
/// pool.acquire().await?;
/// let text = export::prometheus::text(&monitor);
/// assert!(text.contains("\nmillpond_acquires_total{pool=\"orders\"} 1\n"));
/// # Ok(()) }
/// ```
#[must_use]
pub fn text(monitor: &Monitor) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collector::new(monitor.clone())));
    let mut text = String::new();
    let encoded = prometheus_text::encode(&mut text, &registry);
    debug_assert!(encoded.is_ok(), "BUG: a string takes all text");
    text
}

/// Tells of all pools under one name, unless there is nothing to tell.
fn encode(
    family: &Family,
    statuses: &[PoolStatus],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let there_is = |status: &PoolStatus| match family.kind {
        Kind::Times { of, .. } => of(status).is_some(),
        Kind::Gauge(figures) | Kind::Counter(figures) => !figures(status).is_empty(),
        Kind::Time(_) => true,
    };
    if !statuses.iter().any(there_is) {
        return Ok(());
    }
    // The encoder puts unit and suffix behind the name, where the format has them.
    let (name, unit) = match family.name.strip_suffix("_seconds") {
        Some(name) => (name, Some(&Unit::Seconds)),
        None => (family.name.strip_suffix("_total").unwrap_or(family.name), None),
    };
    let kind = match family.kind {
        Kind::Gauge(_) | Kind::Time(_) => MetricType::Gauge,
        Kind::Counter(_) => MetricType::Counter,
        Kind::Times { .. } => MetricType::Histogram,
    };
    let mut metric = encoder.encode_descriptor(name, family.help, unit, kind)?;
    statuses.iter().try_for_each(|status| encode_pool(family, status, &mut metric))
}

fn encode_pool(
    family: &Family,
    status: &PoolStatus,
    metric: &mut MetricEncoder<'_>,
) -> fmt::Result {
    let labels = |value: &'static str| {
        let mut labels: Vec<_> = whose(status).map(|(label, whose)| (label, &**whose)).collect();
        labels.extend(family.label.map(|label| (label, value)));
        labels
    };
    match family.kind {
        Kind::Gauge(figures) => figures(status).into_iter().try_for_each(|(value, count)| {
            metric.encode_family(&labels(value))?.encode_gauge(&count)
        }),
        Kind::Time(time) => {
            metric.encode_family(&labels(""))?.encode_gauge(&time(status).as_secs_f64())
        }
        Kind::Counter(figures) => figures(status).into_iter().try_for_each(|(value, count)| {
            let labels = labels(value);
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&count, None)
        }),
        Kind::Times { of, bounds, .. } => {
            let Some(times) = of(status) else { return Ok(()) };
            metric.encode_family(&labels(""))?.encode_histogram::<NoLabelSet>(
                times.sum().as_secs_f64(),
                times.count(),
                &buckets(times, bounds),
                None,
            )
        }
    }
}

/// How many times are between each bound and the one before it, the last being infinite.
fn buckets(times: &Histogram, bounds: &[f64]) -> Vec<(f64, u64)> {
    let within = |bound: &f64| (*bound, times.count_within(Duration::from_secs_f64(*bound)));
    let cumulative = bounds.iter().map(within).chain([(f64::INFINITY, times.count())]);
    let mut before = 0;
    cumulative
        .map(|(bound, count)| (bound, count - std::mem::replace(&mut before, count)))
        .collect()
}
