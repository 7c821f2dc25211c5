//! How many slots are in service: a pool may be smaller than its capacity, and change its size.
//!
//! The slots out of service wait among the *spare* ones. The difference between the slots in service
//! and the limit is the *surplus*. While it is above zero, slots have to go: what is vacant becomes
//! spare at once, what is idle is ended by whoever shrinks, what is in use when it comes back. Who
//! ends a resource for that reason [claims](Core::claim_surplus) one of the surplus first, so nothing
//! is ended in vain. When the resource is gone, the claimed slot becomes spare, or, if the pool has
//! grown meanwhile, vacant. Only while the surplus is below zero do spare slots come back.
//!
//! So at any instant: slots in service = limit + surplus, where a resize changes only how the sum is
//! divided, and a slot that is still being ended counts. Hence I2: never more than the limit, or than
//! there were before it was lowered.
//!
//! Not here: which resource goes.

use super::slot::{Slot, State};
use super::{Core, Keeper};
use crate::sync::{AtomicU32, AtomicU64, BoxQueue, Ordering, publish_fence};

pub(super) struct Limit<K: Keeper> {
    /// How many slots are to be in service.
    size: AtomicU32,
    balance: AtomicU64,
    spare: BoxQueue<Slot<K>>,
}

/// What `Limit::balance` says: both in one word, so that they change together.
#[derive(Clone, Copy)]
struct Balance {
    /// Slots in service less the limit: how many have to go, or, below zero, to come.
    surplus: i32,
    /// Slots whose resource is being ended because they have to go.
    claimed: u32,
}

impl Balance {
    fn from_word(word: u64) -> Self {
        Self { surplus: (word >> 32) as i32, claimed: word as u32 }
    }

    fn word(self) -> u64 {
        u64::from(self.surplus as u32) << 32 | u64::from(self.claimed)
    }

    /// How many have to go that nobody has claimed.
    fn unclaimed(self) -> i32 {
        (self.surplus - self.claimed as i32).max(0)
    }

    /// Whether spare slots have to come.
    fn is_short(self) -> bool {
        self.surplus < 0
    }

    fn add(mut self, step: i32) -> Self {
        self.surplus += step;
        self
    }
}

impl<K: Keeper> Limit<K> {
    /// Everything is spare; see [`Core::place_new`].
    pub(super) fn new(capacity: usize, size: usize) -> Self {
        Self {
            size: AtomicU32::new(size as u32),
            balance: AtomicU64::new(0),
            spare: BoxQueue::new(capacity),
        }
    }

    fn balance(&self) -> Balance {
        // Ordering: SeqCst, partner: `resize` (I2).
        Balance::from_word(self.balance.load(Ordering::SeqCst))
    }

    /// Changes the balance, unless there is no `next`; answers what it was.
    fn update(&self, next: impl Fn(Balance) -> Option<Balance>) -> Option<Balance> {
        let next = |word| next(Balance::from_word(word)).map(Balance::word);
        // Ordering: SeqCst, partner: `balance`.
        let before = self.balance.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        before.ok().map(Balance::from_word)
    }

    /// The resource of a claimed slot is gone. False: the slot is wanted again.
    pub(super) fn lets_go(&self) -> bool {
        let before = self.update(|Balance { surplus, claimed }| {
            Some(Balance { surplus: surplus - i32::from(surplus > 0), claimed: claimed - 1 })
        });
        before.is_some_and(|before| before.surplus > 0)
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
        // change, or our pop finds the slot (I2, I4).
        let changed = self.limit.update(|balance| Some(balance.add(step)));
        debug_assert!(changed.is_some(), "BUG: a change that cannot be refused was");
        self.balance();
        before as usize
    }

    /// The right to end one resource because the pool is to shrink; whoever has it must do so.
    pub(super) fn claim_surplus(&self) -> bool {
        let claim = |balance: Balance| {
            let Balance { surplus, claimed } = balance;
            (balance.unclaimed() > 0).then_some(Balance { surplus, claimed: claimed + 1 })
        };
        self.limit.update(claim).is_some()
    }

    /// Whether there are slots that have to go and that nobody has claimed.
    pub(super) fn has_surplus(&self) -> bool {
        self.limit.balance().unclaimed() > 0
    }

    /// Moves slots between the vacant and the spare ones, as far as there are any to move.
    ///
    /// Called by whoever changes the balance, and by whoever puts a slot into one of the two queues,
    /// after that: so nobody has to wait for the other.
    pub(super) fn balance(&self) {
        let goes = |balance: Balance| (balance.unclaimed() > 0).then(|| balance.add(-1));
        let comes = |balance: Balance| balance.is_short().then(|| balance.add(1));
        loop {
            let balance = self.limit.balance();
            if balance.unclaimed() > 0 {
                let Some(slot) = self.vacant.pop() else { return };
                if self.limit.update(goes).is_some() {
                    self.put_spare(slot);
                } else {
                    self.push_vacant(slot);
                }
            } else if balance.is_short() {
                let Some(slot) = self.limit.spare.pop() else { return };
                // Before the balance says so: whoever adds up the cells never finds fewer in service
                // than there are (a cap over several pools relies on that).
                slot.enter(self.cell(&slot), State::Vacant);
                if self.limit.update(comes).is_some() {
                    self.push_vacant(slot);
                } else {
                    self.put_spare(slot);
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
