//! I7, wake handed on: a woken waiter that leaves without its slot passes it on.
//!
//! The quitter polls once and goes away: before the hand-off, while it is on its way, or with the
//! object at once if it came early enough; then it gives the object back. The other waiter keeps
//! what it gets.

#![cfg(loom)]

use millpond::IdleOrder;
use millpond::model::Line;
use millpond_loom::{
    Census, Station, acquire, assert_conserved, check, making_pool, poll_once, pool_of, set_home,
    thread, waiter,
};
use std::pin::pin;

/// A release beside a quitter and a waiter, in one shard and in two.
///
/// Mutants seen to be caught: "`Handoff::drop` is empty beside a waiter", "a slot dropped on the way is lost".
#[test]
fn a_cancelled_waiter_passes_its_slot_on() {
    for (shards, quits, waits) in [(1, 0, 0), (2, 0, 1), (2, 1, 0)] {
        check(move || {
            let pool = pool_of(1, 1, shards, IdleOrder::Recent, &Census::default());
            let held = acquire(&pool);
            let quitter = thread::spawn({
                let pool = pool.clone();
                move || {
                    set_home(quits);
                    drop(poll_once(pin!(pool.acquire())));
                }
            });
            let other = waiter(&pool, waits);
            drop(held);
            quitter.join().unwrap();
            drop(other.join().unwrap());
            assert_conserved(&pool, 1);
        });
    }
}

/// The quitter has parked before the release begins, so that its hand-off is certain, and leaves
/// beside a waiter that is just parking.
#[test]
fn a_hand_off_dropped_on_the_way_reaches_whoever_parks_meanwhile() {
    for (shards, waits) in [(1, 0), (2, 1)] {
        check(move || {
            let pool = pool_of(1, 1, shards, IdleOrder::Fifo, &Census::default());
            let held = acquire(&pool);
            let other;
            {
                let mut quitter = pin!(pool.acquire());
                assert!(poll_once(quitter.as_mut()).is_pending());
                other = waiter(&pool, waits);
                drop(held);
            }
            drop(other.join().unwrap());
            assert_conserved(&pool, 1);
        });
    }
}

/// The word to look again reaches a waiter that leaves; the vacant slot is the other one's then.
///
/// Mutant seen to be caught: "a vacant slot dropped on the way is lost".
#[test]
fn a_cancelled_waiter_passes_a_vacant_slot_on() {
    for (shards, waits) in [(1, 0), (2, 1)] {
        check(move || {
            let pool = making_pool(1, shards, &Census::default());
            let held = acquire(&pool);
            let other;
            {
                let mut quitter = pin!(pool.acquire());
                assert!(poll_once(quitter.as_mut()).is_pending());
                other = waiter(&pool, waits);
                drop(held.detach());
            }
            drop(other.join().unwrap());
            assert_conserved(&pool, 1);
        });
    }
}

/// The same when a connect fails.
#[test]
fn a_failed_connect_beside_a_cancelled_waiter_is_tried_again() {
    check(|| {
        let station = Station::new(1, 1, 1, &Census::default());
        let reservation = station.reserve().expect("a slot is vacant");
        let other = thread::spawn({
            let station = station.clone();
            move || station.acquire()
        });
        let quitter = thread::spawn({
            let station = station.clone();
            move || {
                drop(poll_once(pin!(millpond::model::wait(&station, Line::General, usize::MAX))))
            }
        });
        drop(reservation);
        quitter.join().unwrap();
        drop(other.join().unwrap());
        station.assert_conserved();
    });
}
