//! The synchronisation primitives that the core is built from: the real ones, or loom's.
//!
//! This is the only file that takes anything from loom; others name it only to leave something to its
//! models, or out of them. Under `--cfg loom` the atomics are the model checker's,
//! and the two containers that hold boxed slots are stand-ins with the orderings of the originals.
//!
//! Not here: any algorithm of the pool.

/// A queue of boxed slots.
#[cfg(not(loom))]
pub(crate) type BoxQueue<T> = crossbeam_queue::ArrayQueue<Box<T>>;
/// A place for one boxed slot.
#[cfg(not(loom))]
pub(crate) type BoxCell<T> = crossbeam_utils::atomic::AtomicCell<Option<Box<T>>>;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64};
#[cfg(all(feature = "postgres", not(loom)))]
pub(crate) use std::sync::{
    Mutex, MutexGuard, OnceLock,
    atomic::{AtomicBool, AtomicU8, fence},
};

#[cfg(loom)]
pub(crate) use self::model::{BoxCell, BoxQueue};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64};

#[cfg(loom)]
pub use self::model::set_home;

pub(crate) use std::sync::atomic::Ordering;

/// What the model's containers need to know of a slot: a small number that is its own.
pub(crate) trait Keyed {
    /// The number; below 64 in a model.
    #[cfg_attr(not(loom), expect(dead_code, reason = "only the model's containers ask"))]
    fn key(&self) -> usize;
}

/// Orders a push to a queue or a stack before the loads that follow it.
///
/// A load of the control word, or of the balance, is SeqCst, and so are the push's claim of its place and
/// what whoever waits or resizes does: these need no fence. (In the models they do, which know SeqCst only
/// of fences.) One load that follows is not, nor does it compare the control word: a search that has put
/// a slot back looks whether it is flagged. On x86-64 the push's locked instruction is a full fence
/// already, so nothing is left to do there; a real fence would cost 5 ns on each release.
#[inline]
pub(crate) fn publish_fence() {
    // Ordering: SeqCst, partner: the fence in `Core::alert`. Without it a flag is missed: the search that
    // puts a slot back reads flags from before they were raised, and whoever raised them looks at a
    // shelf from before the push. In the models, I4 and I8 fall in the same way.
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
    #[cfg(all(not(loom), not(target_arch = "x86_64")))]
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// Orders what the caller has done, such as to count itself, before its next look at a shelf, after
/// which it may say that the shelf is empty.
#[inline]
pub(crate) fn empty_fence() {
    // Ordering: SeqCst, partner: for the pop of a stack the compare-exchange in its `push` and the look at
    // the control word after it (I4); for an alert `publish_fence`.
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
    #[cfg(not(loom))]
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// The number of this thread, from which its home shard follows: 0 for the first thread that ever
/// asks, 1 for the second, and so on.
#[cfg(not(loom))]
#[inline]
pub(crate) fn thread_number() -> usize {
    use std::cell::Cell;
    use std::sync::atomic::AtomicUsize;

    const UNKNOWN: usize = usize::MAX;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(UNKNOWN) };
    }

    #[cold]
    fn number_slow(number: &Cell<usize>) -> usize {
        number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        number.get()
    }

    NUMBER.with(|number| match number.get() {
        UNKNOWN => number_slow(number),
        known => known,
    })
}

#[cfg(loom)]
pub(crate) use self::model::thread_number;

/// Stand-ins for the containers, small enough for the model checker.
#[cfg(loom)]
mod model {
    use super::Keyed;
    use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
    use loom::sync::atomic::{AtomicU64, AtomicUsize, fence};
    use std::sync::{Mutex, PoisonError};

    loom::thread_local! {
        static HOME: std::cell::Cell<usize> = std::cell::Cell::new(0);
    }

    /// Chooses the home shard of the model thread that calls.
    pub fn set_home(number: usize) {
        HOME.with(|home| home.set(number));
    }

    pub(crate) fn thread_number() -> usize {
        HOME.with(std::cell::Cell::get)
    }

    /// The boxes themselves, where the model checker does not see them: who may touch which entry
    /// is decided by the atomics alone.
    struct Table<T>(Mutex<Vec<Option<Box<T>>>>);

    impl<T: Keyed> Table<T> {
        fn new() -> Self {
            Self(Mutex::new((0..64).map(|_| None).collect()))
        }

        fn put(&self, item: Box<T>) -> usize {
            let key = item.key();
            let before = self.lock()[key].replace(item);
            assert!(before.is_none(), "BUG: two slots with one number");
            key
        }

        fn take(&self, key: usize) -> Box<T> {
            self.lock()[key].take().expect("BUG: the slot was taken twice")
        }

        fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<Box<T>>>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// crossbeam's `ArrayQueue` as one word: four bits for each slot in it, the oldest lowest, which
    /// hold the slot's number plus one.
    ///
    /// Loom: nothing is ever half done. It keeps the original's order and its orderings: the claim is
    /// a SeqCst compare-exchange, and `pop` runs a SeqCst fence before it says "empty".
    pub(crate) struct BoxQueue<T> {
        line: AtomicU64,
        table: Table<T>,
    }

    impl<T: Keyed> BoxQueue<T> {
        pub(crate) fn new(capacity: usize) -> Self {
            assert!(capacity > 0, "BUG: a queue without room");
            Self { line: AtomicU64::new(0), table: Table::new() }
        }

        pub(crate) fn push(&self, item: Box<T>) -> Result<(), Box<T>> {
            let entry = self.table.put(item) as u64 + 1;
            assert!(entry < 16, "BUG: too many slots for a model");
            let mut seen = self.line.load(Relaxed);
            loop {
                let new = seen | entry << (4 * length(seen));
                match self.line.compare_exchange(seen, new, SeqCst, Relaxed) {
                    Ok(_) => return Ok(()),
                    Err(now) => seen = now,
                }
            }
        }

        pub(crate) fn pop(&self) -> Option<Box<T>> {
            let mut seen = self.line.load(Acquire);
            loop {
                if seen == 0 {
                    fence(SeqCst);
                    seen = self.line.load(Relaxed);
                }
                if seen == 0 {
                    return None;
                }
                match self.line.compare_exchange(seen, seen >> 4, SeqCst, Relaxed) {
                    Ok(_) => return Some(self.table.take((seen & 15) as usize - 1)),
                    Err(now) => seen = now,
                }
            }
        }

        pub(crate) fn len(&self) -> usize {
            // Loom: as in `is_empty`.
            fence(SeqCst);
            length(self.line.load(Acquire)) as usize
        }

        pub(crate) fn is_empty(&self) -> bool {
            // Loom: the original loads with SeqCst; the model, which knows SeqCst only of fences,
            // needs one to put this load behind what the caller did before.
            fence(SeqCst);
            self.line.load(Acquire) == 0
        }
    }

    fn length(line: u64) -> u32 {
        (u64::BITS - line.leading_zeros()).div_ceil(4)
    }

    /// crossbeam's `AtomicCell<Option<Box<T>>>` as a word that holds a slot's number plus one.
    pub(crate) struct BoxCell<T> {
        occupant: AtomicUsize,
        table: Table<T>,
    }

    impl<T: Keyed> BoxCell<T> {
        pub(crate) fn new(item: Option<Box<T>>) -> Self {
            assert!(item.is_none(), "BUG: cells start empty");
            Self { occupant: AtomicUsize::new(0), table: Table::new() }
        }

        pub(crate) fn swap(&self, item: Option<Box<T>>) -> Option<Box<T>> {
            let new = item.map_or(0, |item| self.table.put(item) + 1);
            // The original swaps with AcqRel.
            match self.occupant.swap(new, AcqRel) {
                0 => None,
                number => Some(self.table.take(number - 1)),
            }
        }

        pub(crate) fn take(&self) -> Option<Box<T>> {
            self.swap(None)
        }
    }
}
