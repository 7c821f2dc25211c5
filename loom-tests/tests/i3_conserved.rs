//! I3, conserved: errors, panics and dropped futures lose no slot.
//!
//! Loom: its mutex does not survive a panic that it was locked under, so panics are left to
//! `tests/panics.rs`.

#![cfg(loom)]

use millpond::IdleOrder;
use millpond_loom::{
    Census, ORDERS, Station, acquire, assert_conserved, check, poll_once, pool_of, set_home,
    thread, waiter,
};
use std::pin::pin;

/// Two threads release two objects at once, onto one shelf. (Of two shards each would have its own,
/// and they would not meet.)
///
/// Mutant seen to be caught: "what the hot slot displaces is dropped".
#[test]
fn two_releases_at_once_both_arrive() {
    for order in ORDERS {
        check(move || {
            let pool = pool_of(2, 2, 1, order, &Census::default());
            let mine = acquire(&pool);
            let theirs = acquire(&pool);
            let other = thread::spawn(move || drop(theirs));
            drop(mine);
            other.join().unwrap();
            assert_conserved(&pool, 2);
        });
    }
}

/// One thread releases while another takes from the same shelf.
///
/// Mutant seen to be caught: "what the hot slot displaces is dropped".
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

/// Three come back one after the other, so that two lie in the stack, one upon the other. Meanwhile
/// somebody takes what it finds.
///
/// Mutants seen to be caught: "a push does not publish what lies below it", "a pop does not see what
/// lies below the top", "a pop that is tried again does not see what lies below the top".
#[test]
fn a_take_beside_a_push_onto_another_entry_loses_nothing() {
    check(|| {
        let (station, lent) = Station::lent::<3>(1, IdleOrder::Lifo, &Census::default());
        let other = thread::spawn(move || drop(lent));
        let taken = [(); 3].map(|()| station.try_acquire());
        for loan in taken.iter().flatten() {
            loan.resource().use_it();
        }
        other.join().unwrap();
        drop(taken);
        station.assert_conserved();
    });
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
///
/// Mutant seen to be caught: "a dropped reservation keeps its slot".
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
