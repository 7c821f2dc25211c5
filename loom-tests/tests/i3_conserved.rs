//! I3, conserved: errors, panics and dropped futures lose no slot.

#![cfg(loom)]

use millpond::ObjectPool;
use millpond_loom::{
    Census, ORDERS, Station, acquire, assert_conserved, block_on, check, poll_once, pool_of,
    set_home, thread, waiter,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Two threads release two objects at once, on the same shelf and on two.
///
/// Mutant seen to be caught: "what the hot slot displaces is dropped".
#[test]
fn two_releases_at_once_both_arrive() {
    for order in ORDERS {
        for shards in [1, 2] {
            check(move || {
                let pool = pool_of(2, 2, shards, order, &Census::default());
                let mine = acquire(&pool);
                let theirs = acquire(&pool);
                let other = thread::spawn(move || {
                    set_home(1);
                    drop(theirs);
                });
                drop(mine);
                other.join().unwrap();
                assert_conserved(&pool, 2);
            });
        }
    }
}

/// One thread releases while another takes from the same shelf.
#[test]
fn a_release_beside_a_take_loses_nothing() {
    for order in ORDERS {
        check(move || {
            let pool = pool_of(2, 2, 1, order, &Census::default());
            let held = acquire(&pool);
            let other = waiter(&pool, 0);
            drop(held);
            drop(other.join().unwrap());
            assert_conserved(&pool, 2);
        });
    }
}

/// A hand-off is on its way to a caller that gives up.
///
/// Mutant seen to be caught: "`Handoff::drop` is empty".
#[test]
fn a_hand_off_that_nobody_receives_goes_back() {
    for shards in [1, 2] {
        check(move || {
            let pool = pool_of(1, 1, shards, ORDERS[0], &Census::default());
            let held = acquire(&pool);
            let quitter = thread::spawn({
                let pool = pool.clone();
                move || {
                    set_home(1);
                    drop(poll_once(pin!(pool.acquire())));
                }
            });
            drop(held);
            quitter.join().unwrap();
            assert_conserved(&pool, 1);
        });
    }
}

/// Two reservations end in errors, one beside the other.
#[test]
fn failed_connects_give_their_slots_back() {
    check(|| {
        let station = Station::new(2, 1, 0, &Census::default());
        let mine = station.reserve().expect("a slot is vacant");
        let theirs = station.reserve().expect("a slot is vacant");
        let other = thread::spawn(move || drop(theirs));
        drop(mine);
        other.join().unwrap();
        station.assert_conserved();
    });
}

/// `make` panics in one of two waiters; the other must get an object all the same.
///
/// Mutant seen to be caught: "a dropped reservation keeps its slot".
#[test]
fn a_panic_while_an_object_is_made_loses_no_slot() {
    check(|| {
        let census = Census::default();
        let made = AtomicUsize::new(0);
        let pool = ObjectPool::builder(1)
            .shards(1)
            .build({
                let census = census.clone();
                move || {
                    // The first object is the one that the pool begins with; detached, it may live
                    // a little longer than its place.
                    if made.fetch_add(1, Relaxed) == 1 {
                        std::panic::resume_unwind(Box::new("make"));
                    }
                    census.born(2)
                }
            })
            .unwrap();
        let held = acquire(&pool);
        let other = thread::spawn({
            let pool = pool.clone();
            move || catch_unwind(AssertUnwindSafe(|| acquire(&pool))).ok()
        });
        drop(held.detach());
        let mine = catch_unwind(AssertUnwindSafe(|| block_on(pool.acquire_owned()))).ok();
        // Whoever got it keeps it until here, unless the other still waits for it.
        let lucky = mine.is_some();
        drop(mine);
        let theirs = other.join().unwrap();
        assert!(lucky || theirs.is_some(), "`make` panics once");
        drop(theirs);
        assert_eq!(pool.counts().waiters, 0);
        drop(acquire(&pool));
        assert_conserved(&pool, 1);
    });
}
