//! An allocator that counts, for the programs that name it as theirs.
//!
//! Until [`start_counting`] it only asks whether it is to count: a program that also takes times
//! does that first, so that a pool whose acquire allocates does not pay for the counter too. Not
//! here: who allocated. All threads count together, so whoever counts lets nobody else run.

// A global allocator is an unsafe trait. Nothing else in the workspace is.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The system's allocator, counting once it was told to.
#[derive(Debug)]
pub struct CountingAllocator;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// Counts from here on, to the end of the program.
pub fn start_counting() {
    COUNTING.store(true, Ordering::Relaxed);
}

/// Allocations counted so far.
#[must_use]
pub fn allocations() -> usize {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Bytes that the counted allocations asked for; what was given back is not taken off.
#[must_use]
pub fn allocated_bytes() -> usize {
    BYTES.load(Ordering::Relaxed)
}

#[inline]
fn count(bytes: usize) {
    if COUNTING.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every method passes its arguments on to `System`, which keeps the contract, and returns
// its answer; counting touches nothing but three static atomics.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Growing may move, so it counts as an allocation of what is added.
        count(size.saturating_sub(layout.size()));
        // SAFETY: `pointer` came from `System`, as all of ours do; the rest as in `alloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}
