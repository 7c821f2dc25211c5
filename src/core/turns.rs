//! Which shard's waiters a hand-off asks first.
//!
//! At home, which is cheapest: slot and waiter stay on one core. But a shard whose threads stand still, or
//! which has more waiters than its threads give back slots for, must not be left behind, so each shard looks
//! at the others in turn and helps out where that is so.
//!
//! Not here: the hand-off itself (`waiters.rs`).

use super::{Core, Keeper};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// After so many hand-offs of a shard to the general line it looks at another shard with waiters, at each of
/// them in turn. If they have had less than half of their part since somebody looked there, as many of the next
/// ones start with them as they have missed, all of them at the most. But one is left for those at home, if
/// anybody waits there: no look from here goes to them, so nothing else would limit for how long they are passed
/// over where nobody gives back elsewhere.
///
/// So no shard starves (I9): of N shards, one with waiters of whom none is served any more is the first to be
/// asked within 32 (N - 1) of these hand-offs of any one shard. A first look, after half of that, may find what
/// they had before. Those at home are asked first within 32.
///
/// To help out shards that have had less than two thirds of their part, instead of half, costs 7 to 18 % of the
/// throughput on two noisy cores, and lowers nobody's p99.9. `cargo run --release -p millpond-tools --bin
/// figures -- waiting` measures it beside the peers.
pub(super) const PERIOD: u64 = 16;

/// A shard's account of hand-offs. It decides who is asked first, never who is asked: all of it is Relaxed,
/// and what is missed or counted twice is made up for at the next look. So these are the real atomics under
/// loom as well.
pub(super) struct Turns {
    /// Hand-offs from here to the general line so far.
    handed: AtomicU64,
    /// The shard that was looked at from here last.
    looked_at: AtomicUsize,
    /// With how many of the hand-offs since then it comes first.
    owed: AtomicU64,
    /// Hand-offs to the waiters here since somebody looked, but for those that came because of a look.
    served: AtomicU64,
    /// How many looks there had been by then, at whatever shard.
    seen: AtomicU64,
}

/// Whom a hand-off tries.
pub(super) struct Rotation {
    /// The shard that it begins with, and goes on from to the others.
    pub(super) first: usize,
    /// It begins there because the waiters there are behind.
    is_owed: bool,
}

impl Rotation {
    /// Whether it counts if it serves somebody of that shard.
    pub(super) fn counts(&self, shard: usize) -> bool {
        !(self.is_owed && shard == self.first)
    }
}

/// How often a shard of a core has looked at another one.
#[derive(Default)]
pub(super) struct Looks(AtomicU64);

impl Turns {
    pub(super) fn new(home: usize) -> Self {
        let zero = || AtomicU64::new(0);
        let looked_at = AtomicUsize::new(home);
        Self { handed: zero(), looked_at, owed: zero(), served: zero(), seen: zero() }
    }

    /// A waiter here is being served, and not because of a look. Called inside the event's mutex, where nobody
    /// else counts.
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
    /// Whom a hand-off from `home` to the general line tries; counts it.
    pub(super) fn rotation(&self, home: usize) -> Rotation {
        if self.general() == 1 {
            return Rotation { first: home, is_owed: false };
        }
        let own = &self.shards[home].turns;
        let turn = own.handed.fetch_add(1, Ordering::Relaxed) + 1;
        if turn % PERIOD == 0 {
            let owed = self.next_to_look_at(home).map_or(0, |other| {
                own.looked_at.store(other, Ordering::Relaxed);
                self.look_at(other)
            });
            // Those at home are found by no look from here: see `PERIOD`.
            let most = if self.listening(home) > 0 { PERIOD - 1 } else { PERIOD };
            own.owed.store(owed.min(most), Ordering::Relaxed);
        }
        let is_owed = turn % PERIOD < own.owed.load(Ordering::Relaxed);
        let first = if is_owed { own.looked_at.load(Ordering::Relaxed) } else { home };
        Rotation { first, is_owed }
    }

    /// The next shard with waiters after the one that was looked at last from here, but for this one.
    fn next_to_look_at(&self, home: usize) -> Option<usize> {
        let last = self.shards[home].turns.looked_at.load(Ordering::Relaxed);
        let mut shards = self.general_from(last + 1);
        shards.find(|shard| *shard != home && self.listening(*shard) > 0)
    }

    /// How many hand-offs the waiters of a shard lacked of their part since somebody looked, without help; none if
    /// they had half of it. Their part of the hand-offs, which are [`PERIOD`] for each look at whatever shard, is
    /// what they are of the waiters.
    fn look_at(&self, shard: usize) -> u64 {
        let turns = &self.shards[shard].turns;
        let looks = self.looks.0.fetch_add(1, Ordering::Relaxed) + 1;
        let since = looks.saturating_sub(turns.seen.swap(looks, Ordering::Relaxed));
        let served = turns.served.swap(0, Ordering::Relaxed);
        let all: u64 = self.general_from(0).map(|shard| self.listening(shard)).sum();
        let all_handed = PERIOD.saturating_mul(since);
        let part = all_handed.saturating_mul(self.listening(shard)).div_ceil(all.max(1));
        if 2 * served < part { part - served } else { 0 }
    }

    fn listening(&self, shard: usize) -> u64 {
        u64::from(self.shards[shard].listening.load(Ordering::Relaxed))
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

    /// As if so many waited at each shard, whoever is served.
    fn crowd(waiters: &[u32]) -> Arc<Nobody> {
        let nobody = nobody(Size::new(32, waiters.len()));
        for (shard, waiters) in nobody.0.shards.iter().zip(waiters) {
            shard.listening.store(*waiters, Ordering::Relaxed);
        }
        nobody
    }

    /// Hands over from `home`, and answers with whose waiter is served.
    fn hand_over(core: &Core<Nobody>, home: usize) -> usize {
        let rotation = core.rotation(home);
        let served = core.general_from(rotation.first).find(|shard| core.listening(*shard) > 0);
        let served = served.expect("somebody waits");
        if rotation.counts(served) {
            core.shards[served].turns.serve();
        }
        served
    }

    /// How often each shard is served in so many hand-offs from `home`, and how many of them in a row passed over
    /// its waiters at the most, whether any was served after that or not.
    fn served(core: &Core<Nobody>, home: usize, hand_overs: usize) -> (Vec<usize>, Vec<usize>) {
        let zero = vec![0; core.general()];
        let (mut served, mut passed, mut longest) = (zero.clone(), zero.clone(), zero);
        for _ in 0..hand_overs {
            let now = hand_over(core, home);
            served[now] += 1;
            for shard in (0..core.general()).filter(|shard| core.listening(*shard) > 0) {
                passed[shard] = if shard == now { 0 } else { passed[shard] + 1 };
                longest[shard] = longest[shard].max(passed[shard]);
            }
        }
        (served, longest)
    }

    /// Whether each has had at least half of its part, and at most twice that.
    fn assert_fair(served: &[usize], waiters: &[u32]) {
        let (all, waiting) = (served.iter().sum::<usize>(), waiters.iter().sum::<u32>() as usize);
        for (shard, (served, waiters)) in served.iter().zip(waiters).enumerate() {
            let part = all * *waiters as usize / waiting;
            assert!((part / 2..=2 * part).contains(served), "{shard}: {served}, not some {part}");
        }
    }

    #[test]
    fn each_shard_has_its_part_where_one_alone_gives_back() {
        for shards in [1, 2, 4, 16] {
            for home in [0, shards / 2, shards - 1] {
                let alike = vec![10; shards];
                let mut one_more_at_home = vec![1; shards];
                one_more_at_home[home] = 2;
                let mut one_less_at_home = alike.clone();
                one_less_at_home[home] -= 1;
                let mut nobody_at_home = alike.clone();
                if shards > 1 {
                    nobody_at_home[home] = 0;
                }
                for waiters in [alike, one_more_at_home, one_less_at_home, nobody_at_home] {
                    let (served, longest) = served(&crowd(&waiters).0, home, 4_000);
                    assert_fair(&served, &waiters);
                    let longest = longest.into_iter().max();
                    assert!(longest < Some(32 * shards), "{waiters:?}: {longest:?}");
                }
            }
        }
    }

    #[test]
    fn whoever_waits_at_home_is_asked_in_every_period_however_far_behind_others_are() {
        let of = |home, others, shards| {
            let mut waiters = vec![others; shards];
            waiters[0] = home;
            waiters
        };
        let few_at_home = [of(1, 16, 2), of(1, 10, 4), of(4, 10, 8), of(9, 10, 16), of(20, 10, 32)];
        for waiters in few_at_home.into_iter().chain([of(10, 10, 32), of(10, 10, 256)]) {
            let (_, longest) = served(&crowd(&waiters).0, 0, 20_000);
            assert!(longest[0] < 16, "{waiters:?}: {}", longest[0]);
            let others = longest[1..].iter().max();
            assert!(others < Some(&(32 * (waiters.len() - 1))), "{waiters:?}: {others:?}");
        }
    }

    #[test]
    fn whoever_waits_alone_at_a_quiet_shard_is_found_at_every_look() {
        for (shards, place) in [(2, 1), (4, 3), (16, 1), (16, 15)] {
            let mut waiters = vec![0; shards];
            (waiters[0], waiters[place]) = (16, 1);
            let (served, longest) = served(&crowd(&waiters).0, 0, 16 * 100);
            // One in 17 would be its part.
            assert!((90..=110).contains(&served[place]), "{served:?}");
            assert!(longest[place] < 17, "{longest:?}");
        }
    }

    #[test]
    fn shards_with_as_many_waiters_have_as_much_wherever_they_are() {
        for far in [2, 3, 8, 15] {
            let mut waiters = vec![0; 16];
            (waiters[1], waiters[far]) = (20, 20);
            assert_fair(&served(&crowd(&waiters).0, 0, 1_000).0, &waiters);
        }
    }

    #[test]
    fn hand_offs_stay_at_home_where_all_get_along() {
        for shards in [2, 4, 16] {
            let nobody = crowd(&vec![10; shards]);
            let homes: Vec<_> = (0..shards).collect();
            for turn in 0..1_000 {
                for home in &homes {
                    let shard = hand_over(&nobody.0, *home);
                    // Until each has looked at each there is little to go by.
                    assert!(turn < 16 * shards || shard == *home, "{turn}: from {home} to {shard}");
                }
            }
        }
    }

    #[test]
    fn the_part_of_a_shard_goes_by_how_many_wait_there() {
        for waiters in [[10, 100], [100, 10], [30, 10], [1, 2], [1, 16]] {
            assert_fair(&served(&crowd(&waiters).0, 0, 4_000).0, &waiters);
        }
    }

    #[test]
    fn whoever_is_served_no_more_is_found_at_the_second_look_at_the_latest() {
        for shards in [2, 4, 16] {
            let nobody = crowd(&vec![10; shards]);
            let core = &nobody.0;
            // Others have served them well until now.
            for shard in 1..shards {
                (0..100).for_each(|_| core.shards[shard].turns.serve());
            }
            let mut found = vec![false; shards];
            (0..32 * (shards - 1)).for_each(|_| found[hand_over(core, 0)] = true);
            assert!(found.iter().all(|found| *found), "{found:?}");
        }
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
