//! What has come since last time: for exporters that tell of changes, again and again.
//!
//! Not here: whom they tell, and how.

use crate::config::above_zero;
use crate::error::ConfigError;
use crate::metrics::{Histogram, Monitor, PoolStatus, SourceId, look_at};
use crate::panics::caught;
use crate::pool::operation::has_timer;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, spawn_blocking};

/// An exporter's task cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The interval is zero.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no tokio runtime with a timer here.
    #[error(
        "no tokio runtime with a timer here: start the exporter inside one, or flush it by hand"
    )]
    NoRuntime,
}

/// What has been told of each pool so far.
pub(super) struct Ledger {
    monitor: Monitor,
    told: Mutex<Vec<Told>>,
}

/// A pool that has been told of.
struct Told {
    id: SourceId,
    status: Arc<PoolStatus>,
    is_gone: bool,
}

/// What a look at all pools has found.
#[derive(Default)]
pub(super) struct News {
    pub(super) pools: Vec<PoolNews>,
    /// How those were that have gone since the last look.
    pub(super) gone: Vec<Arc<PoolStatus>>,
}

/// How a pool is, and how it was at the last look, if there was one.
pub(super) struct PoolNews {
    pub(super) now: Arc<PoolStatus>,
    pub(super) before: Option<Arc<PoolStatus>>,
}

impl Ledger {
    pub(super) fn new(monitor: Monitor) -> Self {
        Self { monitor, told: Mutex::default() }
    }

    pub(super) fn monitor(&self) -> &Monitor {
        &self.monitor
    }

    /// Looks at each pool once, and has the news told. They count as told, so that nothing is told
    /// twice, whatever becomes of it. Whoever comes meanwhile waits: else it could tell of a pool's end
    /// before all has been told of its life.
    pub(super) fn settle(&self, tell: impl FnOnce(&News)) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let news = news(&self.monitor, &mut told);
        tell(&news);
    }
}

/// What has come since, which counts as told from then on; not if a source panics.
fn news(monitor: &Monitor, told: &mut Vec<Told>) -> News {
    let look = |source| (SourceId::of(&source), look_at(&*source).map(Arc::new));
    let looks: Vec<_> = monitor.listed().into_iter().map(look).collect();
    let mut news = News::default();
    told.retain(|told| {
        let is_listed = looks.iter().any(|(id, _)| *id == told.id);
        if !is_listed && !told.is_gone {
            news.gone.push(told.status.clone());
        }
        is_listed
    });
    for (id, status) in looks {
        let known = told.iter_mut().find(|told| told.id == id);
        match (known, status) {
            (None, None) => {}
            (None, Some(now)) => {
                told.push(Told { id, status: now.clone(), is_gone: false });
                news.pools.push(PoolNews { now, before: None });
            }
            (Some(known), Some(now)) => {
                let before = Some(std::mem::replace(&mut known.status, now.clone()));
                known.is_gone = false;
                news.pools.push(PoolNews { now, before });
            }
            (Some(known), None) => {
                if !std::mem::replace(&mut known.is_gone, true) {
                    news.gone.push(known.status.clone());
                }
            }
        }
    }
    news
}

impl PoolNews {
    /// The times of a distribution that have come since the last look; `None` if it is not measured.
    pub(super) fn times(&self, of: fn(&PoolStatus) -> Option<&Histogram>) -> Option<Histogram> {
        let now = of(&self.now)?;
        let before = self.before.as_ref().and_then(|before| of(before));
        Some(before.map_or_else(|| now.clone(), |before| now.since(before)))
    }
}

/// The most times of a distribution that are told of one pool at one flush.
pub(super) const MOST: u64 = 10_000;

/// The times of a distribution and how often each is told, at most `most` in all: more than that are
/// thinned evenly, so that they are distributed as before. Without those of zero, unless `zeros`.
pub(super) fn thinned(times: &Histogram, zeros: bool, most: u64) -> Vec<(Duration, u64)> {
    let mut told: Vec<_> = times.iter().filter(|(time, _)| zeros || !time.is_zero()).collect();
    let all: u64 = told.iter().map(|(_, count)| count).sum();
    if all > most {
        let (mut passed, mut before) = (0, 0);
        for (_, count) in &mut told {
            passed += u128::from(*count);
            let due = (passed * u128::from(most) / u128::from(all)) as u64;
            *count = due - std::mem::replace(&mut before, due);
        }
    }
    told
}

/// A task that does something again and again; it ends when this is dropped.
pub(super) struct Repeat(JoinHandle<()>);

impl Drop for Repeat {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// When something is to be done again and again, and where.
pub(super) struct Schedule {
    interval: Duration,
    runtime: Handle,
}

impl Schedule {
    /// At each interval, on this runtime.
    pub(super) fn new(interval: Duration) -> Result<Self, StartError> {
        above_zero("interval", interval)?;
        if !has_timer() {
            return Err(StartError::NoRuntime);
        }
        Ok(Self { interval, runtime: Handle::current() })
    }

    /// Does this.
    pub(super) fn repeat(self, flush: impl Fn() + Send + Sync + 'static) -> Repeat {
        let flush = Arc::new(flush);
        Repeat(self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(self.interval).await;
                let flush = flush.clone();
                // Elsewhere, since whoever is told may block; a panic stays there with what it
                // leaves, has been reported by the panic hook, and there is another time.
                drop(spawn_blocking(move || drop(caught(|| flush()))).await);
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::histogram_of;

    const MICROSECOND: u64 = 1_000;

    #[test]
    fn few_times_are_told_as_they_are_and_zeros_if_they_count() {
        let times = histogram_of(&[0, 0, 5 * MICROSECOND, 9 * MICROSECOND, 9 * MICROSECOND]);
        let counts = |zeros, most| -> Vec<u64> {
            thinned(&times, zeros, most).iter().map(|(_, count)| *count).collect()
        };
        assert_eq!(counts(true, 5), [2, 1, 2]);
        assert_eq!(counts(false, 3), [1, 2]);
        assert_eq!(counts(false, 0), [0, 0]);
        assert!(thinned(&Histogram::default(), true, 0).is_empty());
    }

    #[test]
    fn many_times_are_thinned_to_the_most_that_there_may_be_and_keep_their_quantiles() {
        let times: Vec<u64> = (1..=100_000).map(|number| number * MICROSECOND).collect();
        let all = histogram_of(&times);
        let told = thinned(&all, true, 1_000);
        assert_eq!(told.iter().map(|(_, count)| count).sum::<u64>(), 1_000);
        for part in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let rank = (1_000.0 * part) as u64;
            let mut seen = 0;
            let at = told.iter().find(|(_, count)| {
                seen += count;
                seen >= rank
            });
            let exact = all.quantile(part).unwrap().as_secs_f64();
            let off = at.unwrap().0.as_secs_f64() / exact - 1.0;
            assert!(off.abs() < 0.07, "{part}: {off}");
        }
    }
}
