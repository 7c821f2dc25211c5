//! Figures for the [`metrics`] facade: whichever recorder a program has installed.
//!
//! [Names and labels](super#names) are those of the Prometheus exporter, so that a recorder for
//! Prometheus tells the same; each is described with its unit.
//!
//! | kind | what a flush does |
//! |---|---|
//! | gauge | sets it; to 0 at the first flush after its pool is gone, since a recorder cannot be told to forget one |
//! | counter | increases it by what has come since the last flush |
//! | histogram | records the times that have come since the last flush, each at the middle of its bucket (3.2 % off at most; longer ones than 2 h count as that) |
//!
//! Counters are increased and not set, since a pool may be followed by another one of its name: a
//! counter that is set would stand still until the new pool has caught up with the old one. The first
//! flush after a pool was added tells all that it has done since it was built. So one monitor needs one
//! exporter; with two of them everything would count twice. What a pool does between the last flush and
//! its end is not told. Once the exporter is dropped, nobody sets a gauge any more: they stay as they were
//! at the last flush. Who goes on without it drops the pools first, and flushes once more.
//!
//! A recorder takes times one by one, also those of `record_many`, and may keep them until it is read.
//! So an acquire that did not wait is not recorded among the waits, only counted, in
//! `millpond_acquires_total`; and of more than 10,000 times of one pool, distribution and flush, 10,000
//! are recorded, distributed like all of them.
//!
//! Not here: a recorder, and what the figures are (`figures.rs`).

use super::figures::{FAMILIES, Family, Kind, whose};
use super::news::{Ledger, MOST, PoolNews, Repeat, Schedule, StartError, thinned};
use crate::metrics::{Monitor, PoolStatus};
use metrics::{Key, Label, Level, Metadata, Recorder, Unit, with_recorder};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Tells a recorder of the pools of a monitor, at each flush.
///
/// The recorder is that of the thread that flushes ([`metrics::with_local_recorder`]), or else the
/// global one. Pools may be added to the monitor at any time, and are not kept open.
///
/// # Cost
///
/// A flush looks at each pool once, and has the recorder look up some 50 series of each and record at
/// most 40,000 times of it. Some 20 kB of each pool are kept for the next flush.
///
/// # Examples
///
/// ```
/// # use millpond::{Pool, from_fn};
/// # use std::convert::Infallible;
/// use metrics_util::debugging::DebuggingRecorder; // or the recorder of your choice
/// use millpond::{Monitor, export::metrics::Exporter};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
/// let recorder = DebuggingRecorder::new();
/// let told = recorder.snapshotter();
/// recorder.install()?;
///
/// let pool = Pool::builder(manager).name("orders").build().await?;
/// let monitor = Monitor::new();
/// monitor.add(&pool)?;
/// let exporter = Exporter::start(monitor, Duration::from_secs(10))?;
/// // Every ten seconds from here on, until `exporter` is dropped; and whenever you like:
/// exporter.flush();
/// assert!(!told.snapshot().into_vec().is_empty());
/// # Ok(()) }
/// ```
#[must_use = "it stops when it is dropped"]
pub struct Exporter {
    ledger: Arc<Ledger>,
    /// Ends when it is dropped.
    _task: Option<Repeat>,
}

impl Exporter {
    /// Flushes when it is told to.
    pub fn new(monitor: Monitor) -> Self {
        Self { ledger: Arc::new(Ledger::new(monitor)), _task: None }
    }

    /// Flushes at each interval, for the first time after one, as a task of this runtime, until it is
    /// dropped; and when it is told to. A flush that is under way then is finished; one that panics is
    /// followed by others.
    ///
    /// # Errors
    ///
    /// - [`StartError::Config`] if the interval is zero.
    /// - [`StartError::NoRuntime`] outside a tokio runtime with a timer.
    pub fn start(monitor: Monitor, interval: Duration) -> Result<Self, StartError> {
        let schedule = Schedule::new(interval)?;
        let exporter = Self::new(monitor);
        let ledger = exporter.ledger.clone();
        Ok(Self { _task: Some(schedule.repeat(move || flush(&ledger))), ..exporter })
    }

    /// Tells of everything that has come since the last flush; waits for one that is under way.
    ///
    /// # Panics
    ///
    /// If the recorder does: what it has not been told then, it is not told later. If a
    /// [`Source`](crate::Source) does: then nothing is told, and the next flush tells of it.
    pub fn flush(&self) {
        flush(&self.ledger);
    }
}

fn flush(ledger: &Ledger) {
    ledger.settle(|news| {
        with_recorder(|recorder| {
            for family in &FAMILIES {
                describe(family, recorder);
                for status in &news.gone {
                    forget(family, status, recorder);
                }
                for pool in &news.pools {
                    tell(family, pool, recorder);
                }
            }
        });
    });
}

/// Done at each flush, since recorders come and go.
fn describe(family: &Family, recorder: &dyn Recorder) {
    let (name, help) = (family.name.into(), family.help.into());
    match family.kind {
        Kind::Gauge(_) => recorder.describe_gauge(name, Some(Unit::Count), help),
        Kind::Time(_) => recorder.describe_gauge(name, Some(Unit::Seconds), help),
        Kind::Counter(_) => recorder.describe_counter(name, Some(Unit::Count), help),
        Kind::Times { .. } => recorder.describe_histogram(name, Some(Unit::Seconds), help),
    }
}

const METADATA: Metadata<'static> = Metadata::new("millpond", Level::INFO, Some(module_path!()));

fn key(family: &Family, status: &PoolStatus, value: &'static str) -> Key {
    let whose = whose(status);
    let mut labels: Vec<_> = whose.map(|(label, whose)| Label::new(label, whose.clone())).collect();
    labels.extend(family.label.map(|label| Label::new(label, value)));
    Key::from_parts(family.name, labels)
}

fn tell(family: &Family, pool: &PoolNews, recorder: &dyn Recorder) {
    let PoolNews { now, before } = pool;
    match family.kind {
        Kind::Gauge(figures) => {
            for (value, count) in figures(now) {
                recorder.register_gauge(&key(family, now, value), &METADATA).set(count as f64);
            }
        }
        Kind::Time(time) => {
            recorder.register_gauge(&key(family, now, ""), &METADATA).set(time(now));
        }
        Kind::Counter(figures) => {
            let mut earlier = before.as_ref().map(|before| figures(before)).into_iter().flatten();
            for (value, count) in figures(now) {
                let more = count.saturating_sub(earlier.next().map_or(0, |(_, count)| count));
                recorder.register_counter(&key(family, now, value), &METADATA).increment(more);
            }
        }
        Kind::Times { of, hits, .. } => {
            let Some(times) = pool.times(of) else { return };
            let histogram = recorder.register_histogram(&key(family, now, ""), &METADATA);
            for (time, count) in thinned(&times, !hits, MOST) {
                histogram.record_many(time, count as usize);
            }
        }
    }
}

/// Leaves nothing behind that looks as if the pool were still there.
fn forget(family: &Family, status: &PoolStatus, recorder: &dyn Recorder) {
    let values = match family.kind {
        Kind::Gauge(figures) => figures(status),
        Kind::Time(_) => vec![("", 0)],
        Kind::Counter(_) | Kind::Times { .. } => return,
    };
    for (value, _) in values {
        recorder.register_gauge(&key(family, status, value), &METADATA).set(0.0);
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let monitor = self.ledger.monitor();
        f.debug_struct("Exporter").field("monitor", monitor).finish_non_exhaustive()
    }
}
