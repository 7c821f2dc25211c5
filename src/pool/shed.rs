//! Turns callers away who have waited too long, once the line does not empty any more.
//!
//! Not here: the rule, which is told at [`Shed`](crate::Shed).

use super::life::nanos;
use crate::config::Shed;
use crate::core::Line;
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

    /// Takes note of a wait in this line that is over at `now`, and whether nobody waits any more.
    /// Answers whether the caller is to be turned away.
    pub(super) fn is_too_late(
        &self,
        now: u64,
        waited: Duration,
        line: Line,
        nobody_waits: bool,
    ) -> bool {
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
        let overtook = line == Line::High && waited <= self.target;
        // A short wait with priority says nothing of those who were overtaken; a long one does.
        if nobody_waits || !overtook {
            let smallest = if nobody_waits { 0 } else { waited };
            self.smallest.fetch_min(smallest, Ordering::Relaxed);
        }
        let late = waited > self.target.saturating_mul(2);
        line == Line::General && late && self.shedding.load(Ordering::Relaxed)
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
        shedder.is_too_late(at_ms * MS, Duration::from_millis(waited_ms), Line::General, false)
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
    fn a_wait_with_priority_counts_if_it_is_long_and_is_never_too_long() {
        let shedder = shedder();
        let high = |at_ms: u64, waited_ms: u64| {
            let waited = Duration::from_millis(waited_ms);
            shedder.is_too_late(at_ms * MS, waited, Line::High, false)
        };
        assert!(!high(0, 6));
        assert!(!high(100, 50), "those with priority are served");
        assert!(late(&shedder, 101, 50), "the others are not");
        assert!(!high(150, 1));
        assert!(late(&shedder, 200, 50), "a short one changes nothing");
    }

    #[test]
    fn an_empty_line_ends_it() {
        let shedder = shedder();
        late(&shedder, 0, 6);
        assert!(late(&shedder, 100, 50));
        shedder.is_too_late(150 * MS, Duration::from_millis(50), Line::General, true);
        assert!(!late(&shedder, 200, 50));
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let shedder = shedder();
        late(&shedder, 0, 50);
        assert!(!late(&shedder, 10_000, 50));
    }
}
