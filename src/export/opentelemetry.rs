//! Figures for OpenTelemetry, under the names of its
//! [semantic conventions](https://opentelemetry.io/docs/specs/semconv/database/database-metrics/#connection-pools).
//!
//! # Names
//!
//! Each has these attributes, besides those of the second table:
//!
//! | attribute | what |
//! |---|---|
//! | `db.client.connection.pool.name` | the pool's [name](crate::Config::name); that of a cluster's node is `cluster/node` |
//! | `millpond.cluster` | the [cluster's name](crate::ClusterNode::name); only of pools of a cluster's nodes |
//! | `millpond.node` | the [node's key](crate::ClusterNode::node); only of those, too |
//!
//! | name | instrument | unit | what |
//! |---|---|---|---|
//! | `db.client.connection.count` | up-down counter | `{connection}` | connections that are alive, by `db.client.connection.state`: the conventions' `idle` and `used`, and besides them `checking`, `resetting` and `closing` |
//! | `db.client.connection.max` | up-down counter | `{connection}` | [the most](crate::PoolStatus::max_size) at the moment |
//! | `db.client.connection.idle.max` | up-down counter | `{connection}` | the same: all of them may be idle |
//! | `db.client.connection.idle.min` | up-down counter | `{connection}` | [`min_idle`](crate::Config::min_idle) |
//! | `db.client.connection.pending_requests` | up-down counter | `{request}` | callers that wait |
//! | `db.client.connection.timeouts` | counter | `{timeout}` | acquires that ran into their deadline |
//! | `db.client.connection.create_time` | histogram | `s` | how long connects took that succeeded |
//! | `db.client.connection.wait_time` | histogram | `s` | how long those acquires waited that had to, and got a connection |
//! | `db.client.connection.use_time` | histogram | `s` | how long connections were in use each time, if the pool [measures](crate::Config::time_use) it |
//! | `millpond.node_role` | gauge | `{node}` | 1 for one of the values of `millpond.role`, which are `primary`, `replica` and `unknown`, and 0 for the others; only of pools of a cluster's nodes |
//! | `millpond.connection_lifetime` | histogram | `s` | how old connections became |
//!
//! What the conventions have no name for follows [the other exporters'](super#names):
//! `millpond_acquires_total` is `millpond.acquires`, `millpond_oldest_holder_seconds` is
//! `millpond.oldest_holder` in `s`, and the label `reason` is the attribute `millpond.reason`.
//!
//! # Histograms
//!
//! Counters and gauges are read by the SDK whenever it collects; nothing else has to be done for them.
//! The API has no histogram that is read, nor one that takes a value many times. Recording each
//! acquire as it happens would cost a hit more than the hit itself. So the pool counts times as ever,
//! and a *flush* records what has come since the last one, each time at the middle of its bucket (3.2 %
//! off at most; longer ones than 2 h count as that):
//!
//! - An acquire that did not wait is not recorded: `wait_time` tells of those that waited, and
//!   `millpond.acquires` counts all of them.
//! - Of more than 10,000 times of one pool, distribution and flush, 10,000 are recorded, distributed
//!   like all of them. Then the histogram's count is too low, not its shape.
//! - The first flush tells all that a pool has done since it was built; what it does between the last
//!   flush and its end is not told.
//!
//! Not here: an SDK, and what the figures are (`figures.rs`).

use super::figures::{FAMILIES, Family, Kind, Labelled};
use super::news::{Ledger, MOST, Repeat, Schedule, StartError, thinned};
use crate::metrics::{Histogram, Monitor, PoolStatus, SourceId};
use crate::panics::caught;
use opentelemetry::metrics::{self, AsyncInstrument, Meter};
use opentelemetry::{Key, KeyValue};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::iter;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tells OpenTelemetry of the pools of a monitor.
///
/// Pools may be added to the monitor at any time, and are not kept open. A pool that is gone is not
/// told of any more, nor is any once the exporter has been dropped; histograms stay as they were, if the
/// SDK adds them up over all time. The counters of a pool that follows another of its name before the
/// next collection go on from that one's; after a collection without a pool of the name they begin anew,
/// as the SDK has it. (A provider with several readers of delta temporality collects once for each, and
/// they may disagree on that: give a pool that is followed by another a name of its own there.) A
/// [`Source`](crate::Source) that panics when it is looked at is left out of that collection, as if it
/// were gone. One monitor needs one exporter: two on one meter provider would record all times twice.
///
/// # Many pools
///
/// The SDK keeps 2,000 series of an instrument. What comes beyond that goes into one with the attribute
/// `otel.metric.overflow`, in which a counter has the value of whichever pool came last: nothing to go by,
/// and with delta temporality it may even fall below zero. `millpond.connections_closed` has 15 series of
/// each pool, so that begins with the 134th. A view raises the limit, here for 1,000 pools:
///
/// ```
/// use opentelemetry_sdk::metrics::{Instrument, SdkMeterProvider, Stream};
///
/// let many_pools = |instrument: &Instrument| {
///     let is_ours = instrument.name() == "millpond.connections_closed";
///     is_ours.then(|| Stream::builder().with_cardinality_limit(15_000).build().ok()).flatten()
/// };
/// let provider = SdkMeterProvider::builder().with_view(many_pools).build();
/// # drop(provider);
/// ```
///
/// # Cost
///
/// Each collection looks at each pool once, whatever the number of instruments, and so does each flush,
/// which records at most 40,000 times of it, some 70 ns each. Some 40 kB of each pool are kept for next
/// time.
///
/// # Examples
///
/// ```
/// # use millpond::{Pool, from_fn};
/// # use std::convert::Infallible;
/// use millpond::{Monitor, export::opentelemetry::Exporter};
/// use opentelemetry::metrics::MeterProvider;
/// use opentelemetry_sdk::metrics::{InMemoryMetricExporter, SdkMeterProvider};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
/// let told = InMemoryMetricExporter::default(); // or OTLP
/// let provider = SdkMeterProvider::builder().with_periodic_exporter(told.clone()).build();
///
/// let pool = Pool::builder(manager).name("orders").build().await?;
/// let monitor = Monitor::new();
/// monitor.add(&pool)?;
/// let exporter = Exporter::start(monitor, &provider.meter("orders"), Duration::from_secs(10))?;
/// // Every ten seconds from here on, until `exporter` is dropped; and whenever you like:
/// exporter.flush();
/// provider.force_flush()?;
/// assert_eq!(told.get_finished_metrics()?.len(), 1);
/// # Ok(()) }
/// ```
#[must_use = "it stops when it is dropped"]
pub struct Exporter {
    flusher: Arc<Flusher>,
    /// The instruments' callbacks, which the SDK keeps for good, have weak handles to it.
    _observed: Arc<Observed>,
    /// Ends when it is dropped.
    _task: Option<Repeat>,
}

impl Exporter {
    /// Makes the instruments with this meter. The SDK reads counters and gauges on its own; histograms
    /// get their times at each [`flush`](Self::flush).
    pub fn new(monitor: Monitor, meter: &Meter) -> Self {
        let observed = Arc::new(Observed::new(monitor.clone()));
        instruments().zip(0..).for_each(|(instrument, number)| {
            observed.register(meter, instrument, number);
        });
        let histograms = FAMILIES.iter().filter_map(|family| Times::new(meter, family)).collect();
        let flusher = Arc::new(Flusher { ledger: Ledger::new(monitor), histograms });
        Self { flusher, _observed: observed, _task: None }
    }

    /// The same, and flushes at each interval, for the first time after one, as a task of this runtime,
    /// until it is dropped. A flush that is under way then is finished; one that panics is followed by
    /// others.
    ///
    /// # Errors
    ///
    /// - [`StartError::Config`] if the interval is zero.
    /// - [`StartError::NoRuntime`] outside a tokio runtime with a timer.
    ///
    /// No instrument has been made then.
    pub fn start(monitor: Monitor, meter: &Meter, interval: Duration) -> Result<Self, StartError> {
        let schedule = Schedule::new(interval)?;
        let exporter = Self::new(monitor, meter);
        let flusher = exporter.flusher.clone();
        Ok(Self { _task: Some(schedule.repeat(move || flusher.flush())), ..exporter })
    }

    /// Records the times that have come since the last flush; waits for one that is under way.
    ///
    /// # Panics
    ///
    /// If the SDK does: what it has not been told then, it is not told later. If a
    /// [`Source`](crate::Source) does: then nothing is recorded, and the next flush tells of it.
    pub fn flush(&self) {
        self.flusher.flush();
    }
}

// ---- what the SDK reads ----

/// How an instrument behaves, and its figures with the values of its attribute.
#[derive(Clone, Copy)]
enum Figures {
    UpDown(fn(&PoolStatus) -> Vec<Labelled>),
    Counter(fn(&PoolStatus) -> Vec<Labelled>),
    Gauge(fn(&PoolStatus) -> Vec<Labelled>),
    Time(fn(&PoolStatus) -> Duration),
}

struct Instrument {
    name: Cow<'static, str>,
    unit: &'static str,
    help: &'static str,
    attribute: Option<Key>,
    figures: Figures,
}

/// Those of the conventions, which stand for some of the families.
fn conventional() -> [Instrument; 6] {
    let connections = |name: &'static str, help, figures| Instrument {
        name: name.into(),
        unit: "{connection}",
        help,
        attribute: None,
        figures: Figures::UpDown(figures),
    };
    [
        Instrument {
            attribute: Some(Key::from_static_str("db.client.connection.state")),
            ..connections("db.client.connection.count", "Connections by state", |status| {
                let counts = &status.metrics.counts;
                let states = [
                    ("idle", counts.idle),
                    ("used", counts.in_use),
                    ("checking", counts.checking),
                    ("resetting", counts.resetting),
                    ("closing", counts.closing),
                ];
                states.map(|(state, count)| (state, count as u64)).into()
            })
        },
        connections("db.client.connection.max", "The most connections", |status| {
            vec![("", status.max_size as u64)]
        }),
        connections("db.client.connection.idle.max", "The most idle connections", |status| {
            vec![("", status.max_size as u64)]
        }),
        connections("db.client.connection.idle.min", "Idle connections to keep ready", |status| {
            vec![("", status.config.min_idle as u64)]
        }),
        Instrument {
            unit: "{request}",
            ..connections("db.client.connection.pending_requests", "Callers that wait", |status| {
                vec![("", status.metrics.counts.waiters as u64)]
            })
        },
        Instrument {
            name: "db.client.connection.timeouts".into(),
            unit: "{timeout}",
            help: "Acquires that ran into their deadline",
            attribute: None,
            figures: Figures::Counter(|status| vec![("", status.metrics.waits.timed_out)]),
        },
    ]
}

/// The families that the conventions have names for.
const NAMED_BY_CONVENTION: [(&str, &str); 7] = [
    ("millpond_connections", "db.client.connection.count"),
    ("millpond_connections_max", "db.client.connection.max"),
    ("millpond_connections_min_idle", "db.client.connection.idle.min"),
    ("millpond_waiters", "db.client.connection.pending_requests"),
    ("millpond_connect_seconds", "db.client.connection.create_time"),
    ("millpond_acquire_wait_seconds", "db.client.connection.wait_time"),
    ("millpond_use_seconds", "db.client.connection.use_time"),
];

fn name_by_convention(family: &Family) -> Option<&'static str> {
    let mut named = NAMED_BY_CONVENTION.into_iter();
    named.find_map(|(name, conventional)| (name == family.name).then_some(conventional))
}

/// Kind and unit are not in the name here: they stand beside it.
fn own_name(family: &Family) -> String {
    let name = family.name.trim_end_matches("_total").trim_end_matches("_seconds");
    name.replacen('_', ".", 1)
}

/// All that the SDK reads.
fn instruments() -> impl Iterator<Item = Instrument> {
    let others = FAMILIES.iter().filter(|family| name_by_convention(family).is_none());
    let others = others.filter_map(|family| {
        let figures = match family.kind {
            Kind::Gauge(figures) => Figures::Gauge(figures),
            Kind::Time(time) => Figures::Time(time),
            Kind::Counter(figures) => Figures::Counter(figures),
            Kind::Times { .. } => return None,
        };
        Some(Instrument {
            name: own_name(family).into(),
            unit: family.unit,
            help: family.help,
            attribute: family.label.map(|label| format!("millpond.{label}").into()),
            figures,
        })
    });
    conventional().into_iter().chain(others)
}

/// Attributes that say whose a figure is: the labels of `figures.rs` under the names that they have here.
fn whose(status: &PoolStatus) -> Vec<KeyValue> {
    let pool = KeyValue::new("db.client.connection.pool.name", status.config.name.clone());
    let cluster = status.cluster.iter().flat_map(|cluster| {
        let node = KeyValue::new("millpond.node", cluster.node.clone());
        [KeyValue::new("millpond.cluster", cluster.name.clone()), node]
    });
    iter::once(pool).chain(cluster).collect()
}

/// The pools as the SDK sees them.
struct Observed {
    monitor: Monitor,
    look: Mutex<Look>,
}

/// How each pool is, and which it is.
type Statuses = Arc<[(SourceId, PoolStatus)]>;

/// How all pools were at one moment.
struct Look {
    statuses: Statuses,
    taken: Instant,
    /// Who has had it: one bit for each instrument.
    asked: u32,
}

/// Longer than a collection takes on a busy machine, and shorter than the usual time between two.
const FRESH: Duration = Duration::from_secs(5);

impl Observed {
    fn new(monitor: Monitor) -> Self {
        let look = Look { statuses: Arc::default(), taken: Instant::now(), asked: u32::MAX };
        Self { monitor, look: Mutex::new(look) }
    }

    /// How the pools are, for the instrument of this number. The SDK asks one instrument after the
    /// other, and nobody says when it begins anew. So a look at the pools serves each instrument once:
    /// who asks again is of the next collection. Its age matters only if the SDK leaves some out.
    fn statuses(&self, number: u32) -> Statuses {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let bit = 1 << number;
        if look.asked & bit != 0 || look.taken.elapsed() > FRESH {
            let statuses = self.monitor.looks().into();
            *look = Look { statuses, taken: Instant::now(), asked: 0 };
        }
        look.asked |= bit;
        look.statuses.clone()
    }

    fn register(self: &Arc<Self>, meter: &Meter, instrument: Instrument, number: u32) {
        let Instrument { name, unit, help, attribute, figures } = instrument;
        let observed = Arc::downgrade(self);
        let look = move || observed.upgrade().map(|observed| observed.statuses(number));
        // The SDK holds a lock meanwhile, and a panic would be the end of all metrics of the process: not
        // even the last handle to a pool, which this may have, may bring one.
        let statuses = move || caught(&look).ok().flatten();
        macro_rules! build {
            ($kind:ident, $observe:expr) => {{
                let callback = move |instrument: &dyn AsyncInstrument<_>| {
                    if let Some(statuses) = statuses() {
                        $observe(instrument, &*statuses);
                    }
                };
                let builder = meter.$kind(name).with_unit(unit).with_description(help);
                builder.with_callback(callback).build();
            }};
        }
        match figures {
            Figures::UpDown(figures) => build!(i64_observable_up_down_counter, |told, statuses| {
                let signed = |count| i64::try_from(count).unwrap_or(i64::MAX);
                observe(told, statuses, attribute.as_ref(), figures, signed);
            }),
            Figures::Counter(figures) => {
                let series = Series::default();
                build!(u64_observable_counter, |told, statuses| {
                    series.observe(told, statuses, attribute.as_ref(), figures);
                });
            }
            Figures::Gauge(figures) => build!(u64_observable_gauge, |told, statuses| {
                observe(told, statuses, attribute.as_ref(), figures, |count| count);
            }),
            Figures::Time(time) => {
                build!(f64_observable_gauge, |told: &dyn AsyncInstrument<f64>, statuses: &[_]| {
                    for (_, status) in statuses {
                        told.observe(time(status).as_secs_f64(), &whose(status));
                    }
                });
            }
        }
    }
}

/// A pool's figures, each with its attributes.
fn figures_of(
    status: &PoolStatus,
    attribute: Option<&Key>,
    figures: fn(&PoolStatus) -> Vec<Labelled>,
) -> impl Iterator<Item = (u64, Vec<KeyValue>)> {
    figures(status).into_iter().map(move |(value, count)| {
        let attribute = attribute.map(|attribute| KeyValue::new(attribute.clone(), value));
        let mut attributes = whose(status);
        attributes.extend(attribute);
        (count, attributes)
    })
}

/// Tells an instrument of all pools.
fn observe<T>(
    told: &dyn AsyncInstrument<T>,
    statuses: &[(SourceId, PoolStatus)],
    attribute: Option<&Key>,
    figures: fn(&PoolStatus) -> Vec<Labelled>,
    number: impl Fn(u64) -> T,
) {
    for (_, status) in statuses {
        for (count, attributes) in figures_of(status, attribute, figures) {
            told.observe(number(count), &attributes);
        }
    }
}

/// The series of a counter, as of the last collection.
///
/// With delta temporality the SDK takes what it was told at the last collection from what it is told at
/// this one, unsigned, and forgets what a collection does not tell of. So where a pool is followed by
/// another of its name, the series goes on from what the first has told; and it begins anew where the SDK
/// begins it anew.
#[derive(Default)]
struct Series(Mutex<HashMap<Vec<KeyValue>, Told>>);

/// What a pool has told of, and what those before it have.
struct Told {
    by: SourceId,
    count: u64,
    before: u64,
}

impl Series {
    fn observe(
        &self,
        counter: &dyn AsyncInstrument<u64>,
        statuses: &[(SourceId, PoolStatus)],
        attribute: Option<&Key>,
        figures: fn(&PoolStatus) -> Vec<Labelled>,
    ) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = std::mem::take(&mut *told);
        for (id, status) in statuses {
            for (count, attributes) in figures_of(status, attribute, figures) {
                let (count, before) = match earlier.get(&attributes) {
                    None => (count, 0),
                    Some(told) if told.by == *id => (count.max(told.count), told.before),
                    Some(told) => (count, told.before + told.count),
                };
                counter.observe(before + count, &attributes);
                told.insert(attributes, Told { by: id.clone(), count, before });
            }
        }
    }
}

// ---- what is flushed ----

/// Records times that have come.
struct Flusher {
    ledger: Ledger,
    histograms: Vec<Times>,
}

/// A distribution, and the histogram that is told of it.
struct Times {
    of: fn(&PoolStatus) -> Option<&Histogram>,
    hits: bool,
    histogram: metrics::Histogram<f64>,
}

impl Times {
    fn new(meter: &Meter, family: &Family) -> Option<Self> {
        let Kind::Times { of, bounds, hits } = family.kind else { return None };
        let name = name_by_convention(family).map_or_else(|| own_name(family).into(), Cow::from);
        let builder = meter.f64_histogram(name).with_unit(family.unit);
        let builder = builder.with_description(family.help).with_boundaries(bounds.into());
        Some(Self { of, hits, histogram: builder.build() })
    }
}

impl Flusher {
    fn flush(&self) {
        self.ledger.settle(|news| {
            for pool in &news.pools {
                let attributes = whose(&pool.now);
                for Times { of, hits, histogram } in &self.histograms {
                    let times = pool.times(*of).unwrap_or_default();
                    for (time, count) in thinned(&times, !hits, MOST) {
                        (0..count).for_each(|_| histogram.record(time.as_secs_f64(), &attributes));
                    }
                }
            }
        });
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let monitor = self.flusher.ledger.monitor();
        f.debug_struct("Exporter").field("monitor", monitor).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_serves_each_instrument_once_and_only_while_it_is_fresh() {
        let observed = Observed::new(Monitor::new());
        let same = |first: &Statuses, number| {
            let other = observed.statuses(number);
            let same = Arc::ptr_eq(first, &other);
            (other, same)
        };
        let first = observed.statuses(3);
        assert!(same(&first, 0).1 && same(&first, 31).1);
        let (second, is_first) = same(&first, 31);
        assert!(!is_first);
        assert!(same(&second, 3).1);
        observed.look.lock().expect("nobody has panicked").taken -= FRESH + Duration::from_secs(1);
        assert!(!same(&second, 0).1);
    }

    #[test]
    fn each_instrument_has_a_bit_and_each_name_of_the_conventions_a_family() {
        assert!(instruments().count() <= 32);
        for (name, _) in NAMED_BY_CONVENTION {
            assert!(FAMILIES.iter().any(|family| family.name == name), "{name}");
        }
    }
}
