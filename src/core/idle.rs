//! Where idle slots wait: one shelf per shard, in one of three orders.
//!
//! Not here: who may take a slot while others wait (`waiters.rs`).

use super::Keeper;
use super::slot::Slot;
use crate::sync::{AtomicU32, AtomicU64, BoxCell, BoxQueue, Ordering, empty_fence, publish_fence};
use crossbeam_utils::CachePadded;

/// In which order idle connections are handed out.
///
/// It is that of one shard: a thread takes from among those that were released on its own shard, and looks at
/// others' only where none of those is idle. It is that of the whole pool with
/// [`shards(1)`](crate::PoolBuilder::shards), such as where [`Fifo`](Self::Fifo) is to take all
/// servers behind one address in turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IdleOrder {
    /// The connection released last first, then the one that has been idle longest. The fastest:
    /// what a thread has just used is still in its cache.
    #[default]
    Recent,
    /// The connection that has been idle longest first: the load spreads over all of them.
    Fifo,
    /// The connection released last first, for good: under falling load the rest stays untouched. If one
    /// was ended while it lay idle, the connection that takes its place in the pool may once lie where that
    /// one lay, whenever it was released.
    /// Each shard then takes 16 bytes for every slot of the pool (the other orders take 32, all shards
    /// together), which many slots in [many shards](crate::ObjectPoolBuilder::shards) will feel.
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
        // Whoever looks for it need not touch any location that this slot went through.
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
            // A waiter looks at every shelf, and finds most of them empty: a pop would run a fence
            // before it says so.
            // Ordering: SeqCst on both of its loads, partner: the push's claim of a place, and the
            // look at the control word after it (I4).
            Rest::Ring(ring) => {
                if ring.is_empty() {
                    None
                } else {
                    ring.pop()
                }
            }
            Rest::Stack(stack) => stack.pop(),
        }
    }

    /// About how many slots there are behind the hot one.
    pub(super) fn behind(&self) -> usize {
        match &self.rest {
            Rest::Ring(ring) => ring.len(),
            Rest::Stack(stack) => stack.len.load(Ordering::Relaxed) as usize,
        }
    }

    /// Takes the next slot of a walk over this shelf. A ring gives its slots in turn, whatever
    /// they are, so that one that is put back behind the others keeps its place among them; a
    /// stack gives only those that are `wanted`, out of its middle.
    pub(super) fn browse(
        &self,
        walk: &mut Walk,
        mut wanted: impl FnMut(u32) -> bool,
    ) -> Option<Box<Slot<K>>> {
        match &self.rest {
            Rest::Ring(ring) => {
                let left = walk.left.get_or_insert_with(|| ring.len());
                while *left > 0 {
                    *left -= 1;
                    if let Some(slot) = ring.pop() {
                        return Some(slot);
                    }
                }
            }
            Rest::Stack(stack) => {
                let capacity = stack.boxes.len();
                let left = walk.left.get_or_insert(capacity);
                while *left > 0 {
                    let id = capacity - *left;
                    *left -= 1;
                    if wanted(id as u32) {
                        if let Some(slot) = stack.steal(id) {
                            return Some(slot);
                        }
                    }
                }
            }
        }
        if self.order == IdleOrder::Fifo || std::mem::replace(&mut walk.seen_hot, true) {
            return None;
        }
        // Ordering: AcqRel, partner: the swap in `put`; I4 and I6, as there.
        self.hot.take()
    }
}

/// How far a walk over a shelf has come.
#[derive(Default)]
pub(super) struct Walk {
    /// Slots behind the hot one that are still to be seen; `None` before the first.
    left: Option<usize>,
    /// The slot that was taken last was the hot one.
    pub(super) seen_hot: bool,
}

/// How many slots a ring has room for.
///
/// A push to a ring waits for the pop of the same place one lap earlier. With room to spare that
/// pop is long over. (Nothing like it helps a pop, which waits for a push of its place that is half
/// done.) A small pool gives each ring twice what the whole pool has; in a large one the rings have
/// that together, and a slot whose home ring is full goes to the next.
fn room(capacity: usize, shards: usize) -> usize {
    const SMALL: usize = 128;
    (2 * capacity).min(SMALL).max((2 * capacity).div_ceil(shards))
}

/// A stack of slots: newest first.
///
/// `head` holds the topmost slot's number plus one, 0 when the stack is empty, and above it a tag
/// that counts the changes, so that a pop that slept through some of them fails. `below[id]` is the
/// entry under slot `id`, and `boxes[id]` the slot itself.
///
/// A slot may be stolen out of the middle: its entry stays where it is, empty, until it comes to the
/// top or the slot comes back to it. `links[id]` says which:
///
/// | from | to | by |
/// |---|---|---|
/// | `UNLINKED` | `FULL` | a push, before it links the entry |
/// | `FULL` | `STOLEN` | a thief, who has the slot from then on |
/// | `STOLEN` | `FULL` | a push of the same slot, which goes back to its old place |
/// | `FULL`, `STOLEN` | `UNLINKED` | the pop that has taken the entry off the top |
struct Stack<K: Keeper> {
    head: AtomicU64,
    below: Box<[AtomicU32]>,
    links: Box<[AtomicU32]>,
    boxes: Box<[BoxCell<Slot<K>>]>,
    /// Slots in it; a hint.
    len: AtomicU32,
}

const UNLINKED: u32 = 0;
const FULL: u32 = 1;
const STOLEN: u32 = 2;

/// Bits of `Stack::head` that hold the entry; the 40 above are the tag. A pop is fooled only if it
/// sleeps through an exact multiple of 2^40 changes.
const ENTRY_BITS: u32 = 24;
const ENTRY_MASK: u64 = (1 << ENTRY_BITS) - 1;

impl<K: Keeper> Stack<K> {
    fn new(capacity: usize) -> Self {
        Self {
            head: AtomicU64::new(0),
            below: (0..capacity).map(|_| AtomicU32::new(0)).collect(),
            links: (0..capacity).map(|_| AtomicU32::new(UNLINKED)).collect(),
            boxes: (0..capacity).map(|_| BoxCell::new(None)).collect(),
            len: AtomicU32::new(0),
        }
    }

    fn push(&self, slot: Box<Slot<K>>) {
        let id = slot.id as usize;
        // The pusher owns the slot. What others may still do to its entries: a pop that comes too late reads
        // `below`, and fails; and one that finds the entry of a slot that was stolen unlinks it.
        let before = self.boxes[id].swap(Some(slot));
        debug_assert!(before.is_none(), "BUG: the slot was in the stack already");
        self.len.fetch_add(1, Ordering::Relaxed);
        let link = &self.links[id];
        // Ordering: SeqCst. It releases `boxes` to whoever takes the slot next (I6), and stands
        // before the load of the control word that follows; partner: the swap in `pop`, which finds
        // either the slot or nothing, and then the entry is ours to link again (I3, I4). Acquire on failure:
        // that pop has read `below` before we write it.
        if link.compare_exchange(STOLEN, FULL, Ordering::SeqCst, Ordering::Acquire).is_ok() {
            return;
        }
        // Nobody else may link this slot. Ordering: Release, partner: `steal`, which may come before
        // the entry is linked, and must find the slot then.
        link.store(FULL, Ordering::Release);
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
            // Ordering: it continues the release sequence of the pushes below it, as any
            // read-modify-write does, and would do so as AcqRel as well (see `loom-tests/mutants`); Acquire on
            // failure, as for the first load.
            match self.head.compare_exchange_weak(head, new, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) => {
                    // Ordering: SeqCst, partners: the compare-exchanges in `push` and `steal`. A
                    // slot that was stolen meanwhile leaves its entry to us; whoever brings it back
                    // finds it unlinked (I1, I3).
                    if self.links[top as usize].swap(UNLINKED, Ordering::SeqCst) == FULL {
                        return Some(self.unbox(top as usize));
                    }
                    head = self.head.load(Ordering::Acquire);
                }
                Err(now) => head = now,
            }
        }
    }

    /// Takes a slot out of the middle, if it is there.
    fn steal(&self, id: usize) -> Option<Box<Slot<K>>> {
        // Ordering: SeqCst, partners: `push`, whose slot this acquires (I6), and the swap in `pop`,
        // of which one comes first (I1).
        self.links[id]
            .compare_exchange(FULL, STOLEN, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
            .then(|| self.unbox(id))
    }

    /// The slot, for the one who has won the right to it.
    fn unbox(&self, id: usize) -> Box<Slot<K>> {
        self.len.fetch_sub(1, Ordering::Relaxed);
        self.boxes[id].take().expect("BUG: a slot's number was in the stack without it")
    }
}

fn next_head(head: u64, entry: u64) -> u64 {
    (head & !ENTRY_MASK).wrapping_add(1 << ENTRY_BITS) | entry
}
