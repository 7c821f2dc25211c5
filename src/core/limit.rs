//! How many slots are in service: a pool may be smaller than its capacity, and change its size.
//!
//! The slots out of service wait among the *spare* ones. While more are in service than the limit says,
//! the *surplus* has to go: what is vacant becomes spare at once, what is idle is ended by whoever
//! shrinks, what is in use when it comes back. Who ends a resource for that reason
//! [claims](Core::claim_surplus) one of the surplus first, so nothing is ended in vain. When the resource
//! is gone, the claimed slot becomes spare, or, if the pool has grown meanwhile, vacant. Only while
//! fewer are in service than the limit says do spare slots come back.
//!
//! So a resize changes the limit and nothing else, and at any instant it is compared with all slots in
//! service, those included that are still being ended. Hence I2: never more than the limit, or than
//! there were before it was lowered.
//!
//! Not here: which resource goes.

use super::slot::{Slot, State};
use super::{Core, Keeper, MAX_CAPACITY};
use crate::sync::{AtomicU64, BoxQueue, Ordering, publish_fence};

pub(super) struct Limit<K: Keeper> {
    balance: AtomicU64,
    spare: BoxQueue<Slot<K>>,
}

/// What `Limit::balance` says: all in one word, so that what one resize takes and another gives is
/// never in service together (I2).
#[derive(Clone, Copy)]
struct Balance {
    /// How many slots are to be in service.
    limit: u32,
    /// How many are.
    in_service: u32,
    /// Those of them whose resource is being ended because they have to go.
    claimed: u32,
}

/// The bits of each number in the word.
const BITS: u32 = 21;
const _: () = assert!(MAX_CAPACITY < 1 << BITS && 3 * BITS <= u64::BITS);

impl Balance {
    fn from_word(word: u64) -> Self {
        let part = |nth: u32| (word >> (nth * BITS)) as u32 & ((1 << BITS) - 1);
        Self { limit: part(2), in_service: part(1), claimed: part(0) }
    }

    fn word(self) -> u64 {
        let Self { limit, in_service, claimed } = self;
        (u64::from(limit) << BITS | u64::from(in_service)) << BITS | u64::from(claimed)
    }

    /// Whether slots have to go that nobody has claimed.
    fn has_unclaimed(self) -> bool {
        self.in_service - self.claimed > self.limit
    }

    /// Whether slots have to go, claimed or not.
    fn is_above(self) -> bool {
        self.in_service > self.limit
    }

    /// Whether spare slots have to come.
    fn is_short(self) -> bool {
        self.in_service < self.limit
    }
}

impl<K: Keeper> Limit<K> {
    /// The balance counts the slots that [`Core::place_new`] puts into service afterwards.
    pub(super) fn new(capacity: usize, limit: usize) -> Self {
        let balance = Balance { limit: limit as u32, in_service: limit as u32, claimed: 0 };
        Self { balance: AtomicU64::new(balance.word()), spare: BoxQueue::new(capacity) }
    }

    /// Whether slots have to go, claimed or not.
    pub(super) fn is_above(&self) -> bool {
        self.balance().is_above()
    }

    /// Whether slots have to go that nobody has claimed.
    pub(super) fn has_unclaimed(&self) -> bool {
        self.balance().has_unclaimed()
    }

    fn balance(&self) -> Balance {
        // Ordering: SeqCst, partner: `update`. Without it whoever changes the balance and whoever has just put a
        // slot into a queue may miss each other (I2, I4).
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
        let before = self.update(|balance| {
            let in_service = balance.in_service - u32::from(balance.is_above());
            Some(Balance { in_service, claimed: balance.claimed - 1, ..balance })
        });
        before.is_some_and(Balance::is_above)
    }
}

impl<K: Keeper> Core<K> {
    /// Puts a new slot where it belongs: with the numbers below the limit, in service.
    pub(super) fn place_new(&self, slot: Box<Slot<K>>) {
        if slot.id < self.limit.balance().limit {
            self.push_vacant(slot);
        } else {
            self.put_spare(slot);
        }
    }

    /// How many slots are to be in service.
    pub fn limit(&self) -> usize {
        self.limit.balance().limit as usize
    }

    /// Changes how many slots are to be in service, up to the capacity, and more than are reserved or,
    /// where none is, down to none at all; answers how many there were to be before.
    ///
    /// Waiters are to be told of vacant slots afterwards: after a shrink too, since one that is made
    /// up for meanwhile gives back slots that a waiter may have looked for. After a shrink, whoever
    /// calls this first flags all slots, [alerts](Core::alert) and searches the idle ones, for each of
    /// which it tries to [claim](super::Lease::begin_leaving).
    pub fn resize(&self, size: usize) -> usize {
        // Either whoever pushes a slot sees this change after the push, or our pop finds the slot (I2, I4).
        let before = self.limit.update(|balance| Some(Balance { limit: size as u32, ..balance }));
        let before = before.expect("BUG: a change that cannot be refused was");
        self.rebalance();
        before.limit as usize
    }

    /// The right to end one resource because the pool is to shrink; whoever has it must do so.
    pub(super) fn claim_surplus(&self) -> bool {
        let claim = |balance: Balance| {
            let claimed = balance.claimed + 1;
            balance.has_unclaimed().then_some(Balance { claimed, ..balance })
        };
        self.limit.update(claim).is_some()
    }

    /// Moves slots between the vacant and the spare ones, as far as there are any to move.
    ///
    /// Called by whoever changes the balance, and by whoever puts a slot into one of the two queues,
    /// after that: so nobody has to wait for the other.
    pub(super) fn rebalance(&self) {
        let goes = |balance: Balance| {
            balance
                .has_unclaimed()
                .then(|| Balance { in_service: balance.in_service - 1, ..balance })
        };
        let comes = |balance: Balance| {
            balance.is_short().then(|| Balance { in_service: balance.in_service + 1, ..balance })
        };
        loop {
            let balance = self.limit.balance();
            if balance.has_unclaimed() {
                let Some(slot) = self.vacant.pop() else { return };
                if self.limit.update(goes).is_some() {
                    self.put_spare(slot);
                } else {
                    self.push_vacant(slot);
                }
            } else if balance.is_short() {
                let Some(slot) = self.limit.spare.pop() else { return };
                // Before the balance says so: while nobody changes the limit, whoever adds up the cells never finds
                // fewer in service than there are (a cap over several pools relies on that).
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
