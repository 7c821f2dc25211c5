//! A walk over the idle slots: how those that are to be ended, checked or looked at are found.
//!
//! A queue gives its slots only in turn. So the walk takes one slot at a time off its shelf and puts
//! it back, unless it is wanted; a caller that finds nothing meanwhile waits in line, and is served
//! when the slot comes back. Only the stack gives a slot out of its middle.
//!
//! Not here: what is done with the slots that are found.

use super::Keeper;
use super::idle::Walk;
use super::slot::{Flags, State};
use super::tokens::Lease;
use super::waiters::serve;
use std::mem;
use std::ops::Deref;

/// A walk over the idle slots, each of which it meets once, unless others move it meanwhile.
pub struct Search<R: Deref<Target: Keeper>> {
    keeper: R,
    shard: usize,
    walk: Walk,
    /// A slot was flagged while it was being put back; the one who flagged it may have missed it.
    again: bool,
}

impl<R: Deref<Target: Keeper> + Clone> Search<R> {
    /// A walk that has still to begin.
    pub fn new(keeper: R) -> Self {
        Self { keeper, shard: 0, walk: Walk::default(), again: false }
    }

    /// Takes the next idle slot that is `wanted` (by its number), or that is flagged for the keeper.
    pub fn next(&mut self, wanted: impl Fn(usize) -> bool) -> Option<Lease<R>> {
        let keeper = self.keeper.clone();
        let core = keeper.core();
        let flagged = |slot: u32| core.cells[slot as usize].flags().has(Flags::LOOK);
        let wanted = |slot: u32| flagged(slot) || wanted(slot as usize);
        loop {
            while self.shard < core.shards.len() {
                let shelf = &core.shards[self.shard].shelf;
                while let Some(slot) = shelf.browse(&mut self.walk, &wanted) {
                    if wanted(slot.id) {
                        slot.enter(core.cell(&slot), State::InUse);
                        return Some(Lease::new(keeper, slot));
                    }
                    let moved = if self.walk.seen_hot {
                        core.put(self.shard, slot)
                    } else {
                        core.put_behind(self.shard, slot)
                    };
                    // As a release looks after it has put its slot back (I4).
                    if !core.control.look().is_quiet() {
                        serve(&*keeper, core.home());
                    }
                    self.again |= core.has_flagged(moved);
                }
                self.shard += 1;
                self.walk = Walk::default();
            }
            if !mem::take(&mut self.again) {
                return None;
            }
            self.shard = 0;
        }
    }

    /// Puts the slot back that [`next`](Self::next) gave last, where it was: not as one that has
    /// just been used.
    pub fn restore<S: Deref<Target = R::Target>>(&mut self, mut lease: Lease<S>) {
        let core = self.keeper.core();
        let slot = lease.take_slot();
        slot.enter(core.cell(&slot), State::Idle);
        let moved = if self.walk.seen_hot {
            core.put(self.shard, slot)
        } else {
            core.put_behind(self.shard, slot)
        };
        if !core.control.look().is_quiet() {
            serve(&*self.keeper, core.home());
        }
        self.again |= core.has_flagged(moved);
    }
}
