//! How many slots are in service: a pool may be smaller than its capacity, and change its size.
//!
//! The slots out of service wait among the *spare* ones. A shrink is a debt: what is vacant becomes
//! spare at once, what is idle is ended by whoever shrinks, what is in use when it comes back. Who
//! ends a resource to pay the debt [claims](Core::claim_surplus) one of it first, so nothing is ended
//! in vain, and the claimed slot goes to the spare ones when its resource is gone. A grown pool
//! cancels debt first, and takes spare slots back into service then.
//!
//! So at any instant: slots in service = limit + debt + claimed ones that are still being ended. The
//! first number never grows by a shrink; hence I2: never more than the limit, plus what was out.
//!
//! Not here: which resource goes.

use super::slot::{Slot, State};
use super::{Core, Keeper};
use crate::sync::{AtomicI32, AtomicU32, BoxQueue, Ordering, publish_fence};

pub(super) struct Limit<K: Keeper> {
    /// How many slots are to be in service.
    size: AtomicU32,
    /// Slots in service that nobody has claimed, less the limit: what has still to go, or, below
    /// zero, to come.
    surplus: AtomicI32,
    spare: BoxQueue<Slot<K>>,
}

impl<K: Keeper> Limit<K> {
    /// Everything is spare; see [`Core::place_new`].
    pub(super) fn new(capacity: usize, size: usize) -> Self {
        Self {
            size: AtomicU32::new(size as u32),
            surplus: AtomicI32::new(0),
            spare: BoxQueue::new(capacity),
        }
    }
}

impl<K: Keeper> Core<K> {
    /// Puts a new slot where it belongs: with the numbers below the limit, in service.
    pub(super) fn place_new(&self, slot: Box<Slot<K>>) {
        if slot.id < self.limit.size.load(Ordering::Relaxed) {
            self.push_vacant(slot);
        } else {
            self.put_spare(slot);
        }
    }

    /// How many slots are to be in service.
    pub fn limit(&self) -> usize {
        self.limit.size.load(Ordering::Relaxed) as usize
    }

    /// Changes how many slots are to be in service, from 1 to the capacity, and more than are
    /// reserved; answers how many there were to be before.
    ///
    /// Waiters are to be told of vacant slots afterwards: after a shrink too, since one that is made
    /// up for meanwhile gives back slots that a waiter may have looked for. After a shrink, whoever
    /// calls this first flags all slots, [alerts](Core::alert) and searches the idle ones, for each of
    /// which it tries to [claim](super::Lease::begin_leaving).
    pub fn resize(&self, size: usize) -> usize {
        // Each of two resizes at once pays for its own step.
        let before = self.limit.size.swap(size as u32, Ordering::SeqCst);
        let step = before as i32 - size as i32;
        // Ordering: SeqCst, partner: the load in `balance` after a push. Either that load sees the
        // debt, or our pop finds the slot (I2, I4).
        self.limit.surplus.fetch_add(step, Ordering::SeqCst);
        self.balance();
        before as usize
    }

    /// The right to end one resource because the pool is to shrink; whoever has it must do so.
    pub(super) fn claim_surplus(&self) -> bool {
        self.pay(|surplus| surplus > 0, -1)
    }

    /// Whether there are more slots in service than there are to be.
    pub(super) fn has_surplus(&self) -> bool {
        // Ordering: SeqCst, partner: `resize` (I2).
        self.limit.surplus.load(Ordering::SeqCst) > 0
    }

    fn pay(&self, owed: impl Fn(i32) -> bool, step: i32) -> bool {
        self.limit
            .surplus
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |surplus| {
                owed(surplus).then_some(surplus + step)
            })
            .is_ok()
    }

    /// Moves slots between the vacant and the spare ones, as far as there are any to move.
    ///
    /// Called by whoever changes the debt, and by whoever puts a slot into one of the two queues,
    /// after that: so nobody has to wait for the other.
    pub(super) fn balance(&self) {
        loop {
            // Ordering: SeqCst, partner: `resize`, as there.
            let surplus = self.limit.surplus.load(Ordering::SeqCst);
            if surplus > 0 {
                let Some(slot) = self.vacant.pop() else { return };
                if self.pay(|surplus| surplus > 0, -1) {
                    self.put_spare(slot);
                } else {
                    self.push_vacant(slot);
                }
            } else if surplus < 0 {
                let Some(slot) = self.limit.spare.pop() else { return };
                if self.pay(|surplus| surplus < 0, 1) {
                    slot.enter(self.cell(&slot), State::Vacant);
                    self.push_vacant(slot);
                } else {
                    self.push_spare(slot);
                }
            } else {
                return;
            }
        }
    }

    /// Takes a slot out of service.
    pub(super) fn put_spare(&self, slot: Box<Slot<K>>) {
        slot.enter(self.cell(&slot), State::Spare);
        self.push_spare(slot);
    }

    fn push_spare(&self, slot: Box<Slot<K>>) {
        let pushed = self.limit.spare.push(slot);
        debug_assert!(pushed.is_ok(), "BUG: more spare slots than there are slots");
        publish_fence();
    }
}
