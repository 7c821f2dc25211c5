//! The lock-free core: which slot belongs to whom, and who is woken.
//!
//! Read `slot.rs` (what a slot is), `idle.rs` (where idle ones wait), `waiters.rs` (how a slot
//! reaches a waiter), `turns.rs` (whom a hand-off asks first), `tokens.rs` (the rights to a slot),
//! `limit.rs` (how many slots are in service), `search.rs` (a walk over the idle ones), in this order.
//!
//! # Invariants
//!
//! | id | name | statement |
//! |---|---|---|
//! | I1 | exclusive | a slot has one owner: a queue, a token, or a hand-off on its way |
//! | I2 | bounded | resources alive or being opened never exceed the limit, at any instant; after a shrink, never more than were out |
//! | I3 | conserved | at rest, vacant + spare + idle + in use = capacity; errors, panics and dropped futures lose no slot |
//! | I4 | no lost wake | if a waiter is parked and the pool could serve it, a wake is on its way |
//! | I5 | legal transitions | only those of the table in `slot.rs` happen |
//! | I6 | published | what one holder wrote happens before what the next holder reads |
//! | I7 | wake handed on | a woken waiter that leaves without its slot passes it on |
//! | I8 | close is final | after close no acquire succeeds, every waiter ends, every resource is dropped once |
//! | I9 | first come | no acquire is served before one of its own shard that was parked when it began; of N > 1 shards, one with waiters of whom none is served is the first to be asked within 32 (N - 1) hand-offs of any one shard, since each looks at one of the others after every 16 (`turns.rs`) |
//!
//! Not here: clocks, runtimes, I/O, logging, user code, and, after construction, allocation.

mod idle;
mod limit;
mod search;
mod slot;
mod tokens;
mod turns;
mod waiters;

pub use self::idle::IdleOrder;
pub use self::search::Search;
pub use self::slot::{Flags, State};
pub use self::tokens::{
    BareLoan, Found, Lease, Loan, Reservation, Trial, Woken, reserve, sweep, try_acquire,
    try_acquire_bare, try_acquire_owned, wait, wait_blocking,
};

use self::idle::Shelf;
use self::limit::Limit;
use self::slot::{Cell, Slot};
use self::turns::{Looks, Turns};
pub(crate) use self::waiters::offer_vacant;
use self::waiters::{Control, Handoff};
use crate::sync::{AtomicU32, BoxQueue, Ordering, publish_fence, thread_number};
use crossbeam_utils::CachePadded;
use event_listener::{Event, IntoNotification};
use std::fmt;
use std::mem;
use std::ops::Deref;
use std::panic::Location;
use std::sync::Weak;

/// The largest capacity of a pool: 2^20 = 1,048,576 slots.
pub const MAX_CAPACITY: usize = 1 << 20;

/// The largest number of shards of a pool.
pub const MAX_SHARDS: usize = 256;

/// Where a caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// Behind everybody of the own shard who came before.
    General,
    /// Before all those, behind whoever waits here.
    High,
}

/// What stands behind a core: the pool that owns it.
///
/// The core calls these at the moments at which something beyond slots and waiters has to happen.
pub trait Keeper: Sized {
    /// What lives in the slots.
    type Resource;

    fn core(&self) -> &Core<Self>;

    /// A slot may be vacant, and somebody may be waiting. Called from anywhere, also while a guard
    /// is dropped: it must neither block nor panic.
    fn vacancy(&self);

    /// The caller has just parked in this line, and a slot may be vacant.
    fn parked(&self, line: Line) {
        let _ = line;
        self.vacancy();
    }

    /// The caller has just taken a slot, and fewer than the floor may be idle.
    fn dipped(&self) {
        self.vacancy();
    }

    /// An idle slot is flagged for the keeper, and whoever raised the flag may have missed it: the
    /// keeper is to [search](Search) for flagged slots. Called as `vacancy` is.
    fn flagged(&self) {}

    /// Whether a resource that comes back from a caller is fit for the next one: `None` if it is.
    /// Called while a guard is dropped: it must neither block nor panic.
    #[inline]
    fn inspect(&self, resource: &mut Self::Resource) -> Option<Doubt> {
        let _ = resource;
        None
    }

    /// What to do with a resource that is not.
    fn doubt<R: Deref<Target = Self> + Clone>(lease: Lease<R>, doubt: Doubt) {
        let _ = doubt;
        drop(lease);
    }

    /// The core is closed, and this resource was idle.
    fn retire(&self, trial: Trial<&Self>) {
        drop(trial);
    }

    /// A resource in doubt is about to be dropped together with its token.
    fn abandoned(&self, resource: &Self::Resource) {
        let _ = resource;
    }
}

/// Why a resource that comes back is not simply put on a shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It has to be checked before anybody uses it.
    Unchecked,
    /// It has to be made clean first.
    Dirty,
    /// It is of no use any more.
    Broken,
    /// Nor is anything that is as old.
    Outdated,
    /// Its holder panicked, and nobody knows what state it is in.
    Interrupted,
    /// The slot is flagged: the keeper wants a look at it.
    Flagged,
    /// The keeper has something to do when it comes back.
    Greeted,
}

/// Slots, shelves and waiters of one pool.
pub struct Core<K: Keeper> {
    control: CachePadded<Control>,
    /// Those of the general line, and then one for the high line and the reserved slots.
    shards: Box<[CachePadded<Shard<K>>]>,
    cells: Box<[Cell]>,
    vacant: BoxQueue<Slot<K>>,
    /// Vacant slots with the numbers below `reserved`.
    vacant_reserved: BoxQueue<Slot<K>>,
    /// Slots that were on their way to a waiter who left; whoever leaves next mends them, that one at the
    /// latest.
    strays: BoxQueue<Slot<K>>,
    limit: Limit<K>,
    /// How often a shard has looked whether the waiters of another one are behind.
    looks: CachePadded<Looks>,
    reserved: usize,
    /// How many are to be idle, if there are vacant slots.
    floor: usize,
    keeper: Weak<K>,
}

/// How large a core is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// All slots.
    pub capacity: usize,
    /// Those in service at first; the others are spare.
    pub limit: usize,
    /// Those that only the high line gets; fewer than `limit`.
    pub reserved: usize,
    /// A power of two.
    pub shards: usize,
    /// How many are to be idle, if there are vacant slots.
    pub floor: usize,
}

impl Size {
    /// All of `capacity` slots in service, in `shards` shards.
    pub fn new(capacity: usize, shards: usize) -> Self {
        Self { capacity, limit: capacity, reserved: 0, shards, floor: 0 }
    }
}

/// What threads of one home share.
struct Shard<K: Keeper> {
    shelf: Shelf<K>,
    /// Waiters wait here for a hand-off.
    event: Event<Handoff<K>>,
    /// How many of them nobody has woken yet; zero spares a look behind the event's mutex.
    listening: AtomicU32,
    /// Whom its hand-offs ask first.
    turns: Turns,
}

/// How many slots are in which state, counted in one pass: they always add up to the capacity.
///
/// Each slot is counted in a state that it really had during the pass. A slot that moves meanwhile
/// is counted once, where it was or where it is; so two figures may come from different moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Counts {
    /// Slots without a resource, which may be filled; after a shrink, once what has to go has been closed.
    pub vacant: usize,
    /// Slots for which a resource is being opened.
    pub connecting: usize,
    /// Resources waiting for the next caller.
    pub idle: usize,
    /// Resources in the hands of callers.
    pub in_use: usize,
    /// Resources whose liveness is being checked.
    pub checking: usize,
    /// Resources that are being made clean.
    pub resetting: usize,
    /// Resources that are being closed.
    pub closing: usize,
    /// Slots that are out of service, because the pool is smaller than its capacity.
    pub spare: usize,
    /// Callers that wait and have not been served.
    pub waiters: usize,
}

impl Counts {
    /// Adds the slots and the waiters of another core.
    pub(crate) fn merge(&mut self, other: &Self) {
        let Self { vacant, connecting, idle, in_use, checking, resetting, closing, spare, waiters } =
            self;
        *vacant += other.vacant;
        *connecting += other.connecting;
        *idle += other.idle;
        *in_use += other.in_use;
        *checking += other.checking;
        *resetting += other.resetting;
        *closing += other.closing;
        *spare += other.spare;
        *waiters += other.waiters;
    }

    /// Resources that are alive: all slots but the vacant, the spare and the connecting ones.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.idle + self.in_use + self.checking + self.resetting + self.closing
    }

    /// All slots: the capacity.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.spare + self.in_service()
    }

    /// The slots that are not spare: the pool's size, and, while it shrinks, what has still to go.
    #[must_use]
    pub fn in_service(&self) -> usize {
        self.vacant + self.connecting + self.alive()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} in use, {} idle", self.in_use, self.in_service(), self.idle)?;
        for (count, what) in [
            (self.connecting, "connecting"),
            (self.checking, "checking"),
            (self.resetting, "resetting"),
            (self.closing, "closing"),
            (self.waiters, "waiting"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

impl<K: Keeper> Core<K> {
    /// A core with vacant slots and, above its limit, spare ones.
    pub fn new(keeper: &Weak<K>, size: Size, order: IdleOrder) -> Self {
        let Size { capacity, limit, reserved, shards, floor } = size;
        assert!((1..=MAX_CAPACITY).contains(&capacity), "BUG: capacity {capacity}");
        assert!((1..=capacity).contains(&limit), "BUG: {limit} of {capacity} slots");
        assert!(reserved < limit, "BUG: {reserved} of {limit} slots reserved");
        assert!(shards.is_power_of_two(), "BUG: {shards} shards");
        let general = (0..shards).map(|home| Shard::new(home, order, capacity, shards));
        let high = Shard::new(shards, IdleOrder::Fifo, reserved.max(1), 1);
        let core = Self {
            control: CachePadded::new(Control::new()),
            shards: general.chain([high]).map(CachePadded::new).collect(),
            cells: (0..capacity).map(|_| Cell::new()).collect(),
            vacant: BoxQueue::new(capacity),
            vacant_reserved: BoxQueue::new(reserved.max(1)),
            strays: BoxQueue::new(capacity),
            limit: Limit::new(capacity, limit),
            looks: CachePadded::default(),
            reserved,
            floor,
            keeper: keeper.clone(),
        };
        for id in 0..capacity {
            let keeper = keeper.clone();
            let slot = Slot {
                id: id as u32,
                uses: 0,
                resource: None,
                leaving: false,
                keeper,
                ticket: None,
            };
            let slot = Box::new(slot);
            if id < reserved {
                core.cell(&slot).raise(Flags::RESERVED);
            }
            core.place_new(slot);
        }
        core
    }

    /// The shard that the calling thread tries first.
    #[inline]
    fn home(&self) -> usize {
        thread_number() & (self.general() - 1)
    }

    /// How many shards the general line has.
    #[inline]
    pub(crate) fn general(&self) -> usize {
        self.shards.len() - 1
    }

    /// The shard of the high line.
    fn high(&self) -> usize {
        self.shards.len() - 1
    }

    fn is_reserved(&self, slot: &Slot<K>) -> bool {
        (slot.id as usize) < self.reserved
    }

    #[inline]
    fn cell(&self, slot: &Slot<K>) -> &Cell {
        &self.cells[slot.id as usize]
    }

    pub fn capacity(&self) -> usize {
        self.cells.len()
    }

    pub fn is_closed(&self) -> bool {
        self.control.look().is_closed()
    }

    /// How many wait and have not been served.
    ///
    /// Zero: whoever begins to wait from now on sees what the caller published before. More: they
    /// may have been served or have left since.
    pub fn waiters(&self) -> usize {
        self.control.look().waiters()
    }

    /// Whether a slot is vacant and may be filled.
    ///
    /// None is while a slot has to go, claimed or not: what is in it is alive until it is gone, so one more would be
    /// more than the limit, and than were out when that was lowered (I2). (A shrink that begins after this look
    /// counts what is filled because of it with those that were out before.) Whoever takes the last such slot out of
    /// service tells the keeper.
    ///
    /// False: whoever makes one vacant from now on, or takes that last one out of service, sees the waiters that
    /// were counted before. True: somebody may have taken it since.
    pub fn has_vacant(&self) -> bool {
        self.may_be_filled(&self.vacant) || self.is_reserved_wanted()
    }

    /// The same of a slot that somebody in this line may have, who need not be in line yet.
    pub fn has_vacant_for(&self, line: Line) -> bool {
        self.may_be_filled(&self.vacant)
            || line == Line::High && self.may_be_filled(&self.vacant_reserved)
    }

    fn may_be_filled(&self, vacant: &BoxQueue<Slot<K>>) -> bool {
        !vacant.is_empty() && !self.limit.is_above()
    }

    /// How many wait in the high line, and nobody has woken yet.
    pub fn waiters_of_the_high_line(&self) -> usize {
        self.shards[self.high()].listening.load(Ordering::Relaxed) as usize
    }

    /// Whether a reserved slot is vacant, and somebody waits who may have it.
    fn is_reserved_wanted(&self) -> bool {
        self.reserved > 0
            && self.waiters_of_the_high_line() > 0
            && self.may_be_filled(&self.vacant_reserved)
    }

    /// Takes a vacant slot, a reserved one only if somebody waits who may have it.
    fn take_vacant(&self) -> Option<Box<Slot<K>>> {
        self.vacant
            .pop()
            .or_else(|| self.is_reserved_wanted().then(|| self.vacant_reserved.pop()).flatten())
    }

    /// Puts a slot among the vacant ones, or, if it is one too many, among the spare ones.
    ///
    /// Whoever calls this owes a look at the control word afterwards.
    fn put_vacant(&self, mut slot: Box<Slot<K>>) {
        // Whoever calls this has another pointer to the keeper.
        slot.ticket = None;
        if mem::take(&mut slot.leaving) && self.limit.lets_go() {
            self.put_spare(slot);
        } else {
            slot.enter(self.cell(&slot), State::Vacant);
            self.push_vacant(slot);
        }
        self.rebalance();
    }

    /// Puts a slot that is vacant where the next reservation finds it.
    fn push_vacant(&self, slot: Box<Slot<K>>) {
        let queue = if self.is_reserved(&slot) { &self.vacant_reserved } else { &self.vacant };
        let pushed = queue.push(slot);
        debug_assert!(pushed.is_ok(), "BUG: more vacant slots than there are slots");
        publish_fence();
    }

    /// Whether, after a thread of this home has taken a slot, fewer than the floor may be idle, and
    /// something could be done about it.
    #[inline]
    fn may_have_dipped(&self, home: usize) -> bool {
        // If too few are idle in all, too few are behind the hot slot of each shard.
        !self.vacant.is_empty()
            && self.shards[home].shelf.behind() < self.floor
            && self.are_few_idle()
    }

    /// Whether fewer than the floor are idle for everybody. Two that take a slot at the same moment may
    /// each count the other's: the keeper looks by the clock as well.
    #[inline(never)]
    fn are_few_idle(&self) -> bool {
        let general = &self.shards[..self.general()];
        if general.iter().map(|shard| shard.shelf.behind()).sum::<usize>() >= self.floor {
            return false;
        }
        // Hot slots are idle as well, and nobody can look at them where they are.
        let idle = self.cells[self.reserved..].iter().filter(|cell| cell.life().0 == State::Idle);
        idle.take(self.floor).count() < self.floor
    }

    /// Raises flags of a slot.
    ///
    /// One that is in use shows them to its owner when it comes back. For one that may be idle, or on
    /// its way there, call [`alert`](Self::alert) and then [search](Search).
    pub fn raise(&self, slot: usize, flags: Flags) {
        self.cells[slot].raise(flags);
    }

    /// The same for all slots.
    pub fn raise_all(&self, flags: Flags) {
        for cell in &self.cells {
            cell.raise(flags);
        }
    }

    /// The state of a slot at this moment.
    #[inline]
    pub fn state(&self, slot: usize) -> State {
        self.cells[slot].life().0
    }

    /// What a slot's cell says at this moment.
    pub fn glimpse(&self, slot: usize) -> Glimpse {
        self.cells[slot].glimpse()
    }

    /// The slots by state, and the waiters.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { waiters: self.waiters(), ..Counts::default() };
        for cell in &self.cells {
            match cell.life().0 {
                State::Vacant => counts.vacant += 1,
                State::Connecting => counts.connecting += 1,
                State::InUse => counts.in_use += 1,
                State::Idle => counts.idle += 1,
                State::Checking => counts.checking += 1,
                State::Resetting => counts.resetting += 1,
                State::Closing => counts.closing += 1,
                State::Spare => counts.spare += 1,
            }
        }
        counts
    }

    /// How many acquires there have been.
    pub fn uses(&self) -> u64 {
        self.cells.iter().map(|cell| cell.life().1).sum()
    }
}

impl<K: Keeper> Shard<K> {
    fn new(home: usize, order: IdleOrder, capacity: usize, shards: usize) -> Self {
        let event = Event::with_tag();
        // The first notification allocates the event's list; let that be now.
        event.notify(0.tag_with(Handoff::to_nobody));
        Self {
            shelf: Shelf::new(order, capacity, shards),
            event,
            listening: AtomicU32::new(0),
            turns: Turns::new(home),
        }
    }
}

/// What can be seen of a slot from outside.
#[derive(Clone, Copy, Debug)]
pub struct Glimpse {
    pub state: State,
    /// How often it has been acquired.
    pub uses: u64,
    /// Where it was acquired last.
    pub holder: Option<&'static Location<'static>>,
    pub flags: Flags,
}

/// The number of shards for a pool that does not say: a power of two, no more than the machine's
/// parallelism and no more than half the capacity, at least 1.
pub(crate) fn default_shards(capacity: usize) -> usize {
    shards_for(capacity, std::thread::available_parallelism().map_or(1, usize::from))
}

fn shards_for(capacity: usize, parallelism: usize) -> usize {
    let most = parallelism.min(capacity / 2).clamp(1, MAX_SHARDS);
    1 << most.ilog2()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::shards_for;

    #[test]
    fn a_pool_that_does_not_say_has_as_many_shards_as_the_machine_has_use_for() {
        // Capacity, parallelism, shards.
        let expected = [
            (1, 8, 1),
            (3, 8, 1),
            (4, 8, 2),
            (10, 1, 1),
            (10, 2, 2),
            (10, 3, 2),
            (10, 8, 4),
            (64, 8, 8),
            (64, 12, 8),
            (1 << 20, 256, super::MAX_SHARDS),
        ];
        for (capacity, parallelism, shards) in expected {
            assert_eq!(shards_for(capacity, parallelism), shards, "{capacity} on {parallelism}");
        }
    }
}
