//! Turns callers away who have waited too long, once the line does not empty any more.
//!
//! Not here: the rule, which is told at [`Shed`](crate::Shed).

use super::life::nanos;
use crate::config::Shed;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What is known of the waits. A race between two intervals may count a wait in the wrong one of
/// them, which is as good.
pub(super) struct Shedder {
    target: u64,
    interval: u64,
    report_only: bool,
    /// When the interval ends, by the pool's clock.
    ends: AtomicU64,
    /// The smallest wait in it.
    smallest: AtomicU64,
    /// That of the interval before was too long.
    shedding: AtomicBool,
}

impl Shedder {
    pub(super) fn new(shed: Shed) -> Self {
        Self {
            target: nanos(shed.target),
            interval: nanos(shed.interval),
            report_only: shed.report_only,
            ends: AtomicU64::new(0),
            smallest: AtomicU64::new(u64::MAX),
            shedding: AtomicBool::new(false),
        }
    }

    /// Takes note of a wait that is over at `now`, and whether it was the last one in line. Answers
    /// whether the caller is to be turned away.
    pub(super) fn is_too_late(&self, now: u64, waited: Duration, line_is_empty: bool) -> bool {
        let waited = nanos(waited);
        let ends = self.ends.load(Ordering::Relaxed);
        if now >= ends {
            let next = now.saturating_add(self.interval);
            let turned =
                self.ends.compare_exchange(ends, next, Ordering::Relaxed, Ordering::Relaxed);
            if turned.is_ok() {
                let smallest = self.smallest.swap(u64::MAX, Ordering::Relaxed);
                // After an interval without a wait, or long ago, nothing is known.
                let fresh = now < ends.saturating_add(self.interval);
                let shedding = fresh && smallest > self.target && smallest < u64::MAX;
                self.shedding.store(shedding, Ordering::Relaxed);
            }
        }
        let smallest = if line_is_empty { 0 } else { waited };
        self.smallest.fetch_min(smallest, Ordering::Relaxed);
        self.shedding.load(Ordering::Relaxed) && waited > self.target.saturating_mul(2)
    }

    pub(super) fn reports_only(&self) -> bool {
        self.report_only
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Target 5 ms, interval 100 ms.
    fn shedder() -> Shedder {
        Shedder::new(Shed::new(Duration::from_millis(5), Duration::from_millis(100)))
    }

    fn late(shedder: &Shedder, at_ms: u64, waited_ms: u64) -> bool {
        shedder.is_too_late(at_ms * MS, Duration::from_millis(waited_ms), false)
    }

    #[test]
    fn nobody_is_turned_away_in_the_first_interval() {
        let shedder = shedder();
        assert!((0..100).all(|at| !late(&shedder, at, 1_000)));
    }

    #[test]
    fn after_an_interval_of_long_waits_the_oldest_are_turned_away() {
        let shedder = shedder();
        assert!(!late(&shedder, 0, 6));
        assert!(!late(&shedder, 50, 7));
        assert!(late(&shedder, 100, 11), "more than twice the target");
        assert!(!late(&shedder, 101, 10), "twice the target, and no more");
    }

    #[test]
    fn one_short_wait_ends_it() {
        let shedder = shedder();
        late(&shedder, 0, 6);
        assert!(late(&shedder, 100, 50));
        late(&shedder, 150, 5);
        assert!(!late(&shedder, 200, 50), "the smallest wait was the target and no more");
    }

    #[test]
    fn an_empty_line_ends_it() {
        let shedder = shedder();
        late(&shedder, 0, 6);
        assert!(late(&shedder, 100, 50));
        shedder.is_too_late(150 * MS, Duration::from_millis(50), true);
        assert!(!late(&shedder, 200, 50));
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let shedder = shedder();
        late(&shedder, 0, 50);
        assert!(!late(&shedder, 10_000, 50));
    }
}
