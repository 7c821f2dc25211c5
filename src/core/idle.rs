//! Where idle slots wait: one shelf per shard, in one of three orders.
//!
//! Not here: who may take a slot while others wait (`waiters.rs`).

use super::Keeper;
use super::slot::Slot;
use crate::sync::{AtomicU32, AtomicU64, BoxCell, BoxQueue, Ordering, empty_fence, publish_fence};
use crossbeam_utils::CachePadded;

/// In which order idle connections are handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IdleOrder {
    /// The connection released last first, then the one that has been idle longest. The fastest:
    /// what a thread has just used is still in its cache.
    #[default]
    Recent,
    /// The connection that has been idle longest first: the load spreads over all of them.
    Fifo,
    /// The connection released last first, for good: under falling load the rest stays untouched.
    Lifo,
}

/// The idle slots of one shard.
///
/// `hot` holds the slot that was released last; the slot that it displaces goes to `rest`. Two
/// locked instructions make an acquire and a release.
pub(super) struct Shelf<K: Keeper> {
    order: IdleOrder,
    rest: Rest<K>,
    hot: CachePadded<BoxCell<Slot<K>>>,
}

#[expect(clippy::large_enum_variant, reason = "there is one for each shard, and most are rings")]
enum Rest<K: Keeper> {
    Ring(BoxQueue<Slot<K>>),
    Stack(Stack<K>),
}

impl<K: Keeper> Shelf<K> {
    /// A shelf of a pool with `capacity` slots in `shards` shards.
    pub(super) fn new(order: IdleOrder, capacity: usize, shards: usize) -> Self {
        let rest = match order {
            IdleOrder::Recent | IdleOrder::Fifo => {
                Rest::Ring(BoxQueue::new(room(capacity, shards)))
            }
            IdleOrder::Lifo => Rest::Stack(Stack::new(capacity)),
        };
        Self { order, rest, hot: CachePadded::new(BoxCell::new(None)) }
    }

    /// Puts a slot here, and gives back the one that has to make room for it: with
    /// [`IdleOrder::Fifo`] the slot itself. The caller owes that one a [`stow`](Self::stow).
    ///
    /// Before this, nobody finds the slot; after it, any [`take`](Self::take) does.
    #[inline(always)]
    pub(super) fn put(&self, slot: Box<Slot<K>>) -> Option<Box<Slot<K>>> {
        if self.order == IdleOrder::Fifo {
            return Some(slot);
        }
        // Ordering: AcqRel on both sides. If a waiter's swap of this cell came first, ours acquires
        // from it, and the control word that we load next counts that waiter; if it comes second,
        // it finds the slot (I4). The same pairing publishes what the last holder wrote (I6).
        self.hot.swap(Some(slot))
    }

    /// Puts a slot behind the hot one; gives it back if there is no room.
    pub(super) fn stow(&self, slot: Box<Slot<K>>) -> Result<(), Box<Slot<K>>> {
        match &self.rest {
            Rest::Ring(ring) => ring.push(slot)?,
            Rest::Stack(stack) => stack.push(slot),
        }
        // A waiter need not touch any location that this slot went through, so it needs the fence.
        publish_fence();
        Ok(())
    }

    /// Takes a slot.
    #[inline(always)]
    pub(super) fn take(&self) -> Option<Box<Slot<K>>> {
        if self.order != IdleOrder::Fifo {
            // Ordering: AcqRel, partner: the swap in `put`; I4 and I6, as there.
            if let Some(slot) = self.hot.take() {
                return Some(slot);
            }
        }
        self.fetch()
    }

    /// Takes a slot from behind the hot one.
    #[inline(never)]
    fn fetch(&self) -> Option<Box<Slot<K>>> {
        match &self.rest {
            Rest::Ring(ring) => ring.pop(),
            Rest::Stack(stack) => stack.pop(),
        }
    }
}

/// How many slots a ring has room for.
///
/// A push to a ring waits for the pop of the same place one lap earlier. With room to spare that
/// pop is long over. A small pool gives each ring twice what the whole pool has; in a large one the
/// rings have that together, and a slot whose home ring is full goes to the next.
fn room(capacity: usize, shards: usize) -> usize {
    const SMALL: usize = 128;
    (2 * capacity).min(SMALL).max((2 * capacity).div_ceil(shards))
}

/// A stack of slots: newest first.
///
/// `head` holds the topmost slot's number plus one, 0 when the stack is empty, and above it a tag
/// that counts the changes, so that a pop that slept through some of them fails. `below[id]` is the
/// entry under slot `id`, and `boxes[id]` the slot itself.
struct Stack<K: Keeper> {
    head: AtomicU64,
    below: Box<[AtomicU32]>,
    boxes: Box<[BoxCell<Slot<K>>]>,
}

/// Bits of `Stack::head` that hold the entry; the 40 above are the tag. A pop is fooled only if it
/// sleeps through an exact multiple of 2^40 changes.
const ENTRY_BITS: u32 = 24;
const ENTRY_MASK: u64 = (1 << ENTRY_BITS) - 1;

impl<K: Keeper> Stack<K> {
    fn new(capacity: usize) -> Self {
        Self {
            head: AtomicU64::new(0),
            below: (0..capacity).map(|_| AtomicU32::new(0)).collect(),
            boxes: (0..capacity).map(|_| BoxCell::new(None)).collect(),
        }
    }

    fn push(&self, slot: Box<Slot<K>>) {
        let id = slot.id as usize;
        // The pusher owns the slot, so nobody else touches its two entries.
        let before = self.boxes[id].swap(Some(slot));
        debug_assert!(before.is_none(), "BUG: the slot was in the stack already");
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            self.below[id].store((head & ENTRY_MASK) as u32, Ordering::Relaxed);
            let new = next_head(head, id as u64 + 1);
            // Ordering: SeqCst. It releases `below` and `boxes` to the pop that acquires from it
            // (I6), and stands before the load of the control word in the order of all SeqCst
            // operations; partner: the fence in `pop` (I4).
            match self.head.compare_exchange_weak(head, new, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    fn pop(&self) -> Option<Box<Slot<K>>> {
        // Ordering: Acquire, partner: the compare-exchange in `push`; without it `below` may be an
        // older link and a slot is lost (I3).
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            if head & ENTRY_MASK == 0 {
                empty_fence();
                // Ordering: Acquire, as above.
                head = self.head.load(Ordering::Acquire);
            }
            let top = (head & ENTRY_MASK).checked_sub(1)?;
            let below = self.below[top as usize].load(Ordering::Relaxed);
            let new = next_head(head, u64::from(below));
            // Ordering: SeqCst on success, which continues the release sequence of the pushes below
            // it; Acquire on failure, as for the first load.
            match self.head.compare_exchange_weak(head, new, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => {
                    let slot = self.boxes[top as usize].take();
                    return Some(slot.expect("BUG: a slot's number was in the stack without it"));
                }
                Err(now) => head = now,
            }
        }
    }
}

fn next_head(head: u64, entry: u64) -> u64 {
    (head & !ENTRY_MASK).wrapping_add(1 << ENTRY_BITS) | entry
}
