//! What the model remembers: the slots, in which order idle ones are taken, and the totals.
//!
//! Slots matter because of [`IdleOrder::Lifo`](millpond::IdleOrder::Lifo): a slot that was taken out
//! of the middle of the stack keeps its place there.
//!
//! Not here: what happens when.

use super::Order;
use std::collections::{BTreeSet, VecDeque};

/// A slot's number.
pub(super) type Slot = usize;

/// What a slot holds.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    /// The number of the resource, if there is one.
    pub(super) number: Option<u64>,
    /// That of the last one that there was.
    pub(super) last: u64,
    /// How often the slot has been acquired.
    pub(super) uses: u64,
    /// How many invalidations there had been when the resource was made.
    pub(super) generation: u64,
    /// It is to be checked before it is used.
    pub(super) unchecked: bool,
    /// The resource that has passed a check in the background, and after how many uses.
    pub(super) passed: (u64, u64),
    /// Somebody has it, to whom it is not still on its way.
    pub(super) lent: bool,
    pub(super) track: Track,
}

/// What the reaper remembers of a slot.
#[derive(Clone, Copy, Default)]
pub(super) struct Track {
    uses: u64,
    number: u64,
    held: bool,
    reported: bool,
}

/// What the reaper finds.
pub(super) enum Sighting {
    Nothing,
    Leak,
    LateReturn,
}

impl Place {
    /// The reaper looks at the slot; whatever it saw in use before, and sees again, is a leak.
    pub(super) fn observe(&mut self, in_use: bool) -> Sighting {
        let Self { last: number, uses, track, .. } = self;
        let still = track.held && track.number == *number;
        let held = in_use && (still || track.uses != *uses);
        let before = *track;
        if (track.uses, track.number, track.held) != (*uses, *number, held) {
            *track = Track { uses: *uses, number: *number, held, reported: false };
            return if before.held && before.reported {
                Sighting::LateReturn
            } else {
                Sighting::Nothing
            };
        }
        if held && !track.reported {
            track.reported = true;
            return Sighting::Leak;
        }
        Sighting::Nothing
    }
}

/// Idle slots, in the order in which they are to be taken.
pub(super) enum Shelf {
    /// The last one, and the others, longest idle first.
    Recent(Option<Slot>, VecDeque<Slot>),
    Fifo(VecDeque<Slot>),
    Lifo(Stack),
}

impl Shelf {
    pub(super) fn new(order: Order) -> Self {
        match order {
            Order::Recent => Self::Recent(None, VecDeque::new()),
            Order::Fifo => Self::Fifo(VecDeque::new()),
            Order::Lifo => Self::Lifo(Stack::default()),
        }
    }

    pub(super) fn put(&mut self, slot: Slot) {
        match self {
            Self::Recent(last, others) => others.extend(last.replace(slot)),
            Self::Fifo(queue) => queue.push_back(slot),
            Self::Lifo(stack) => stack.put(slot),
        }
    }

    pub(super) fn take(&mut self) -> Option<Slot> {
        match self {
            Self::Recent(last, others) => last.take().or_else(|| others.pop_front()),
            Self::Fifo(queue) => queue.pop_front(),
            Self::Lifo(stack) => stack.take(),
        }
    }

    /// The slots in the order in which a walk meets them.
    pub(super) fn walk(&self) -> Vec<Slot> {
        match self {
            Self::Recent(last, others) => others.iter().chain(last).copied().collect(),
            Self::Fifo(queue) => queue.iter().copied().collect(),
            Self::Lifo(stack) => stack.walk(),
        }
    }

    /// Takes this one, wherever it is.
    pub(super) fn pick(&mut self, slot: Slot) {
        match self {
            Self::Recent(last, others) => {
                last.take_if(|last| *last == slot);
                others.retain(|other| *other != slot);
            }
            Self::Fifo(queue) => queue.retain(|other| *other != slot),
            Self::Lifo(stack) => stack.pick(slot),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.walk().len()
    }
}

/// A stack of which slots are taken out of the middle, and come back to where they were.
#[derive(Default)]
pub(super) struct Stack {
    last: Option<Slot>,
    /// From the bottom to the top.
    others: Vec<Slot>,
    /// Those of the others that are not there.
    gone: BTreeSet<Slot>,
}

impl Stack {
    fn put(&mut self, slot: Slot) {
        let Some(displaced) = self.last.replace(slot) else { return };
        if !self.gone.remove(&displaced) {
            self.others.push(displaced);
        }
    }

    fn take(&mut self) -> Option<Slot> {
        if let Some(slot) = self.last.take() {
            return Some(slot);
        }
        while let Some(slot) = self.others.pop() {
            if !self.gone.remove(&slot) {
                return Some(slot);
            }
        }
        None
    }

    fn walk(&self) -> Vec<Slot> {
        let there = self.others.iter().filter(|slot| !self.gone.contains(slot));
        let there: BTreeSet<Slot> = there.copied().collect();
        there.into_iter().chain(self.last).collect()
    }

    fn pick(&mut self, slot: Slot) {
        if self.last.take_if(|last| *last == slot).is_none() {
            self.gone.insert(slot);
        }
    }
}

/// Why a resource ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum End {
    Broken,
    FailedCheck,
    Discarded,
    Detached,
    PoolClosed,
    Drained,
    Invalidated,
    Surplus,
    Removed,
}

/// What only `Pool` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Totals {
    pub(super) created: u64,
    pub(super) acquires: u64,
    pub(super) resets: u64,
    pub(super) checks: u64,
    pub(super) queue_full: u64,
    pub(super) leaks: u64,
    pub(super) late_returns: u64,
    /// By [`End`].
    pub(super) ends: [u64; 9],
    pub(super) calls: Calls,
}

impl Totals {
    pub(super) fn end(&mut self, why: End) {
        self.ends[why as usize] += 1;
        if why != End::Detached {
            self.calls.on_destroy += 1;
        }
    }
}

/// How often the hooks were called.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Calls {
    pub(super) on_create: u64,
    pub(super) on_checkout: u64,
    pub(super) on_checkin: u64,
    pub(super) after_release: u64,
    pub(super) on_destroy: u64,
}
