//! A walk over the idle slots: how those that are to be ended, checked or looked at are found.
//!
//! A queue gives its slots only in turn. So the walk takes one slot at a time off its shelf and puts
//! it back, unless it is wanted; a caller that finds nothing meanwhile waits in line, and is served
//! when the slot comes back. Only the stack gives a slot out of its middle.
//!
//! Not here: what is done with the slots that are found.

use super::Keeper;
use super::idle::Walk;
use super::slot::{Flags, Slot, State};
use super::tokens::Lease;
use super::waiters::serve_in_search;
use std::mem;
use std::ops::Deref;

/// A walk over the idle slots, each of which it meets once, unless others move it meanwhile.
pub struct Search<R: Deref<Target: Keeper>> {
    keeper: R,
    shard: usize,
    walk: Walk,
    /// A flagged slot was put back, which the one who flagged it may have missed: walk once more.
    again: bool,
    /// This is that second walk, for flagged slots only.
    met: bool,
}

impl<R: Deref<Target: Keeper> + Clone> Search<R> {
    /// A walk that has still to begin.
    pub fn new(keeper: R) -> Self {
        Self { keeper, shard: 0, walk: Walk::default(), again: false, met: false }
    }

    /// Takes the next idle slot that is `wanted` (by its number), or that is flagged for the keeper.
    ///
    /// Whoever keeps it for long, to check it say, looks at its flags before it [restores](Self::restore) it: the
    /// second walk begins when the first is over.
    pub fn next(&mut self, wanted: impl Fn(usize) -> bool) -> Option<Lease<R>> {
        let keeper = self.keeper.clone();
        let core = keeper.core();
        let flagged = |slot: u32| core.cells[slot as usize].flags().has(Flags::LOOK);
        loop {
            let met = self.met;
            let found = self.walk_on(|slot| flagged(slot) || !met && wanted(slot as usize));
            let found = found.map(|slot| {
                slot.enter_unheld(core.cell(&slot));
                Lease::new(keeper.clone(), slot)
            });
            // Once for all that were put back: each time moves others, which the walk would miss.
            self.serve_waiters();
            if found.is_some() || !mem::take(&mut self.again) {
                return found;
            }
            self.shard = 0;
            self.met = true;
        }
    }

    /// Puts the slot back that [`next`](Self::next) gave last, where it was: not as one that has
    /// just been used.
    pub fn restore<S: Deref<Target = R::Target>>(&mut self, mut lease: Lease<S>) {
        let slot = lease.take_slot();
        slot.enter(self.keeper.core().cell(&slot), State::Idle);
        self.put_back(slot);
        self.serve_waiters();
    }
}

impl<R: Deref<Target: Keeper>> Search<R> {
    /// Goes on to the next slot that is `wanted`, and puts the others back.
    fn walk_on(&mut self, wanted: impl Fn(u32) -> bool) -> Option<Box<Slot<R::Target>>> {
        while self.shard < self.keeper.core().shards.len() {
            loop {
                let shelf = &self.keeper.core().shards[self.shard].shelf;
                let Some(slot) = shelf.browse(&mut self.walk, &wanted) else { break };
                if wanted(slot.id) {
                    return Some(slot);
                }
                self.put_back(slot);
            }
            self.shard += 1;
            self.walk = Walk::default();
        }
        None
    }

    fn put_back(&mut self, slot: Box<Slot<R::Target>>) {
        let core = self.keeper.core();
        let moved = if self.walk.seen_hot {
            core.put(self.shard, slot)
        } else {
            core.put_behind(self.shard, slot)
        };
        // Relaxed, and no control word is compared: `publish_fence` after the push stands between, and in
        // the hot cell the swaps, as in `Shelf::put`.
        self.again |= core.has_flagged(moved);
    }

    /// As a release looks after it has put its slot back (I4).
    fn serve_waiters(&mut self) {
        let core = self.keeper.core();
        if !core.control.look().is_quiet() {
            self.again |= serve_in_search(&*self.keeper, core.home());
        }
    }
}

impl<R: Deref<Target: Keeper>> Drop for Search<R> {
    fn drop(&mut self) {
        if self.again {
            // Nobody has gone on with this walk.
            self.keeper.flagged();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::core::{Core, Found, Glimpse, IdleOrder, Size, reserve, try_acquire};
    use std::cell::Cell;
    use std::panic::Location;
    use std::sync::Arc;

    /// Looks for flagged slots whenever it is told to.
    struct Looker {
        core: Core<Self>,
        searches: Cell<usize>,
    }

    impl Keeper for Looker {
        type Resource = ();

        fn core(&self) -> &Core<Self> {
            &self.core
        }

        fn vacancy(&self) {}

        fn flagged(&self) {
            assert_eq!(self.searches.get(), 0, "a search inside a search");
            self.searches.set(1);
            let mut search = Search::new(self);
            while let Some(lease) = search.next(|_| false) {
                lease.lower(Flags::LOOK);
                search.restore(lease);
            }
            self.searches.set(0);
        }
    }

    #[test]
    fn nobody_holds_what_a_search_has_found() {
        let looker = Arc::new_cyclic(|me| Looker {
            core: Core::new(me, Size::new(1, 1), IdleOrder::Recent),
            searches: Cell::new(0),
        });
        drop(reserve(&*looker).expect("a slot is vacant").fill(()));
        let Found::Ready(loan) = try_acquire(&&*looker, Location::caller()) else {
            panic!("it is idle");
        };
        assert!(looker.core.glimpse(0).holder.is_some());
        drop(loan);
        let lease = Search::new(&*looker).next(|_| true).expect("it is idle");
        let Glimpse { state, holder, .. } = looker.core.glimpse(0);
        assert_eq!((state, holder), (State::InUse, None));
        drop(lease);
        looker.core.raise(0, Flags::LOOK);
        let Found::Flagged(lease) = try_acquire(&&*looker, Location::caller()) else {
            panic!("it is flagged");
        };
        assert_eq!(looker.core.glimpse(0).holder, None);
        lease.lower(Flags::LOOK);
    }

    #[test]
    fn nobody_holds_what_is_new_or_fit_again() {
        let looker = Arc::new_cyclic(|me| Looker {
            core: Core::new(me, Size::new(1, 1), IdleOrder::Recent),
            searches: Cell::new(0),
        });
        let holder = || {
            let Glimpse { state, holder, .. } = looker.core.glimpse(0);
            assert_eq!(state, State::InUse);
            holder
        };
        let lease = reserve(&*looker).expect("a slot is vacant").fill(());
        let mut loan = lease.lend(Location::caller());
        assert!(holder().is_some());
        let lease = loan.recall().begin(State::Resetting).pass();
        assert_eq!(holder(), None, "it has been reset");
        let mut loan = lease.lend(Location::caller());
        loan.recall().detach();
        let lease = reserve(&*looker).expect("a slot is vacant").fill(());
        assert_eq!(holder(), None, "it is the next one");
        drop(lease);
    }

    /// Until that waiter listens, a search that starts another one would go on for good.
    #[test]
    fn a_search_beside_a_waiter_that_does_not_listen_yet_starts_no_other() {
        for order in [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo] {
            for flagged in [0..1, 1..2, 2..3, 3..4, 0..4] {
                let looker = Arc::new_cyclic(|me| Looker {
                    core: Core::new(me, Size::new(4, 1), order),
                    searches: Cell::new(0),
                });
                let filled: Vec<_> = std::iter::from_fn(|| reserve(&*looker))
                    .map(|reservation| reservation.fill(()))
                    .collect();
                drop(filled);
                flagged.clone().for_each(|slot| looker.core.raise(slot, Flags::LOOK));
                looker.core.control.count();
                looker.flagged();
                assert_eq!(looker.core.counts().idle, 4, "{order:?}, {flagged:?}");
                let left = (0..4).any(|slot| looker.core.glimpse(slot).flags.has(Flags::LOOK));
                assert!(!left, "{order:?}, {flagged:?}");
            }
        }
    }
}
