//! Which shard's waiters a hand-off asks first.
//!
//! At home, which is cheapest: slot and waiter stay on one core. But a shard whose threads stand still, or
//! which has more waiters than its threads give back slots for, must not be left behind, so each shard looks
//! at the others in turn and helps out where that is so.
//!
//! Not here: the hand-off itself (`waiters.rs`).

use super::{Core, Keeper};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// After so many hand-offs of a shard to the general line it looks at another shard, at each of them in
/// turn. If the waiters there are behind, the next [`LEAN`] hand-offs start with them.
///
/// So no shard starves (I9): of N shards, one with waiters of whom none has been served since somebody
/// looked is the first to be asked [`LEAN`] times in 16 (N - 1) of these hand-offs of any one shard.
///
/// On two noisy cores, 8, 16 and 64 do 1.4 to 1.6 times the throughput of the best fair peer (1,000 tasks on 50
/// connections, nobody with a deadline) with 0.9 to 1.0 times its p99.9 of the wait; a hand-off in eight that goes
/// away whether anybody is behind or not does 1.4 times, with 1.4 times its p99.9. `cargo run --release -p
/// millpond-tools --bin figures -- waiting` measures it.
pub(super) const PERIOD: u64 = 16;

/// Half of the hand-offs, at the most, start with those who are behind.
pub(super) const LEAN: u64 = PERIOD / 2;

/// A shard's account of hand-offs. It decides who is asked first, never who is asked: all of it is Relaxed,
/// and what is missed or counted twice is made up for at the next look. So these are the real atomics under
/// loom as well.
pub(super) struct Turns {
    /// Hand-offs from here to the general line so far.
    handed: AtomicU64,
    /// The shard that hand-offs from here start with while they lean: this one, if none was behind.
    first: AtomicUsize,
    /// Hand-offs to the waiters here since somebody looked.
    served: AtomicU64,
}

impl Turns {
    pub(super) fn new(home: usize) -> Self {
        let zero = || AtomicU64::new(0);
        Self { handed: zero(), first: AtomicUsize::new(home), served: zero() }
    }

    /// A waiter here is being served. Called inside the event's mutex, where nobody else counts.
    pub(super) fn serve(&self) {
        self.served.store(self.served.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn handed(&self) -> u64 {
        self.handed.load(Ordering::Relaxed)
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl<K: Keeper> Core<K> {
    /// The shards of the general line in the order in which a hand-off from `home` tries them; counts it.
    pub(super) fn rotation(&self, home: usize) -> impl Iterator<Item = usize> + use<K> {
        let others = self.general() as u64 - 1;
        if others == 0 {
            return self.general_from(home);
        }
        let own = &self.shards[home].turns;
        let turn = own.handed.fetch_add(1, Ordering::Relaxed) + 1;
        if turn % PERIOD == 0 {
            let other = home + 1 + (turn / PERIOD % others) as usize;
            let other = other & (self.general() - 1);
            let first = if self.is_behind(other, home) { other } else { home };
            own.first.store(first, Ordering::Relaxed);
        }
        let leans = turn % PERIOD < LEAN;
        self.general_from(if leans { own.first.load(Ordering::Relaxed) } else { home })
    }

    /// Whether the waiters of `other` have had less than half of their part since somebody looked, which is
    /// as many hand-offs as those of `home` have had for each of theirs.
    fn is_behind(&self, other: usize, home: usize) -> bool {
        let listening =
            |shard: usize| u64::from(self.shards[shard].listening.load(Ordering::Relaxed));
        let served = self.shards[other].turns.served.swap(0, Ordering::Relaxed);
        served.saturating_mul(2 * listening(home)) < PERIOD * listening(other)
    }

    /// The shards of the general line, one after the other.
    pub(super) fn general_from(&self, first: usize) -> impl Iterator<Item = usize> + use<K> {
        let shards = self.general();
        (0..shards).map(move |step| (first + step) & (shards - 1))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::core::waiters::wait;
    use crate::core::{IdleOrder, Line, Size};
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    struct Nobody(Core<Self>);

    impl Keeper for Nobody {
        type Resource = ();

        fn core(&self) -> &Core<Self> {
            &self.0
        }

        fn vacancy(&self) {}
    }

    fn nobody(size: Size) -> Arc<Nobody> {
        Arc::new_cyclic(|me| Nobody(Core::new(me, size, IdleOrder::Recent)))
    }

    /// As if so many waited at a shard.
    fn listen(core: &Core<Nobody>, shard: usize, waiters: u32) {
        core.shards[shard].listening.store(waiters, Ordering::Relaxed);
    }

    /// How often each shard is the first to be asked in so many hand-offs from `home`, of which `served` go
    /// to each of the others meanwhile, by others.
    fn first(core: &Core<Nobody>, home: usize, periods: u64, served: u64) -> Vec<u64> {
        let shards = core.general();
        let mut first = vec![0; shards];
        for _ in 0..periods {
            for shard in (0..shards).filter(|shard| *shard != home) {
                (0..served).for_each(|_| core.shards[shard].turns.serve());
            }
            for _ in 0..PERIOD {
                let mut asked: Vec<_> = core.rotation(home).collect();
                first[asked[0]] += 1;
                asked.sort_unstable();
                assert!(asked.into_iter().eq(0..shards), "all of them are asked");
            }
        }
        first
    }

    #[test]
    fn a_shard_whose_waiters_nobody_serves_is_the_first_to_be_asked_at_each_look() {
        for shards in [1, 2, 4, 16] {
            for home in 0..shards {
                let nobody = nobody(Size::new(32, shards));
                let core = &nobody.0;
                (0..shards).for_each(|shard| listen(core, shard, 10));
                // The first look comes at the end of the first period.
                let mut asked = first(core, home, 1, 0);
                let others = shards as u64 - 1;
                for round in 0..3 {
                    first(core, home, others, 0)
                        .iter()
                        .zip(&mut asked)
                        .for_each(|(n, all)| *all += n);
                    let elsewhere = (0..shards).filter(|shard| *shard != home);
                    for shard in elsewhere {
                        let (least, most) = (LEAN * round + 1, LEAN * (round + 2));
                        assert!((least..=most).contains(&asked[shard]), "{shards}: {asked:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn hand_offs_stay_at_home_where_all_get_along() {
        for shards in [2, 4] {
            let nobody = nobody(Size::new(32, shards));
            let core = &nobody.0;
            (0..shards).for_each(|shard| listen(core, shard, 10));
            let asked = first(core, 0, 12, PERIOD);
            assert_eq!(asked[0], 12 * PERIOD, "{asked:?}");
        }
    }

    #[test]
    fn the_part_of_a_shard_goes_by_how_many_wait_there() {
        let nobody = nobody(Size::new(32, 2));
        let core = &nobody.0;
        let elsewhere = |waiters: [u32; 2], served| {
            (0..2).for_each(|shard| listen(core, shard, waiters[shard]));
            first(core, 0, 10, served)[1]
        };
        assert!(elsewhere([10, 0], 0) <= LEAN, "nobody is there to be served");
        assert!(elsewhere([0, 1], 0) >= 9 * LEAN, "nobody is here");
        assert!(elsewhere([10, 10], PERIOD / 4) >= 9 * LEAN, "a quarter of their part");
        assert!(elsewhere([10, 100], PERIOD) >= 9 * LEAN, "a tenth of it");
        assert!(elsewhere([100, 10], 1) <= LEAN, "all that they are to have");
    }

    #[test]
    fn what_the_high_line_takes_or_is_refused_uses_up_no_turn() {
        let size = Size { reserved: 1, ..Size::new(3, 2) };
        let nobody = nobody(size);
        let core = &nobody.0;
        let turns = || core.shards[0].turns.handed();
        let general = core.vacant.pop().expect("two are vacant");
        let reserved = core.vacant_reserved.pop().expect("it is vacant");

        let reserved = core.hand_off(0, reserved).expect_err("nobody waits");
        let mut high = pin!(wait(&*nobody, Line::High, usize::MAX));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(high.as_mut().poll(&mut cx).is_pending());
        assert!(core.hand_off(0, general).is_ok());
        assert_eq!(turns(), 0);
        let Poll::Ready(Ok(Some(general))) = high.poll(&mut cx) else { panic!("it is not served") };
        core.nudge();
        assert_eq!(turns(), 0, "a word to look again is no hand-off");

        let mut waiter = pin!(wait(&*nobody, Line::General, usize::MAX));
        assert!(waiter.as_mut().poll(&mut cx).is_pending());
        let reserved = core.hand_off(0, reserved).expect_err("it is for others");
        assert_eq!(turns(), 0);
        assert!(core.hand_off(0, general).is_ok());
        assert_eq!(turns(), 1);
        let served = core.shards[..2].iter().map(|shard| shard.turns.served());
        assert_eq!(served.sum::<u64>(), 1, "whoever waits at either");
        assert!(waiter.poll(&mut cx).is_ready());
        drop(reserved);
    }
}
