//! I4, no lost wake: if a waiter is parked and the pool could serve it, a wake is on its way.
//!
//! A lost wake shows as a deadlock, which loom reports. Every waiter keeps what it gets: one that
//! released soon would hand its own slot on and hide the wake that was lost.

#![cfg(loom)]

use millpond::IdleOrder;
use millpond::model::State;
use millpond_loom::{
    Census, ORDERS, Station, acquire, assert_conserved, block_on, check, making_pool, poll_once,
    pool_of, set_home, thread, waiter,
};
use std::pin::pin;

/// The only object comes back just when somebody parks.
///
/// Mutants seen to be caught: "nobody looks after a release", "the newcomer does not search",
/// "a waiter does not count", "no shelf but the own one", "no waiters but the own shard's".
#[test]
fn a_release_finds_whoever_parks_meanwhile() {
    for order in ORDERS {
        for (shards, home) in [(1, 0), (2, 0), (2, 1)] {
            check(move || {
                let pool = pool_of(1, 1, shards, order, &Census::default());
                let held = acquire(&pool);
                let other = waiter(&pool, home);
                drop(held);
                drop(other.join().unwrap());
                assert_conserved(&pool, 1);
            });
        }
    }
}

/// The same with the parts exchanged: here the bound lets the waiter be interrupted when it counts
/// but does not listen yet, and the releaser when it holds the slot and has found nobody.
///
/// Mutant seen to be caught: "the arrivals are not compared".
#[test]
fn a_hand_off_that_came_too_early_is_tried_again() {
    for order in ORDERS {
        for (shards, home) in [(1, 0), (2, 0), (2, 1)] {
            check(move || {
                let pool = pool_of(1, 1, shards, order, &Census::default());
                let held = acquire(&pool);
                let other = thread::spawn(move || {
                    set_home(home);
                    drop(held);
                });
                let mine = acquire(&pool);
                other.join().unwrap();
                drop(mine);
                assert_conserved(&pool, 1);
            });
        }
    }
}

/// The same with a thread that blocks.
///
/// Mutant seen to be caught: "nobody looks after a release".
#[test]
fn a_release_finds_whoever_blocks_meanwhile() {
    check(|| {
        let pool = pool_of(1, 1, 1, IdleOrder::Recent, &Census::default());
        let held = acquire(&pool);
        let other = thread::spawn({
            let pool = pool.clone();
            move || {
                pool.acquire_blocking().expect("the pool is open").use_it();
            }
        });
        drop(held);
        other.join().unwrap();
        assert_conserved(&pool, 1);
    });
}

/// One thread releases two connections, of which the second displaces the first from `hot`, beside
/// a caller that may take the hot one and a waiter that must then find the displaced one. Both keep
/// what they get.
fn two_releases_beside_a_taker_and_a_waiter(order: IdleOrder, shards: usize) {
    check(move || {
        let (station, lent) = Station::lent::<2>(shards, order, &Census::default());
        let taker = thread::spawn({
            let station = station.clone();
            move || station.try_acquire()
        });
        let other = thread::spawn({
            let station = station.clone();
            move || {
                set_home(1);
                station.acquire()
            }
        });
        drop(lent);
        let taken = taker.join().unwrap();
        drop((other.join().unwrap(), taken));
        station.assert_conserved();
    });
}

/// Mutants seen to be caught: "no fence", "nobody looks after a displacing release".
#[test]
fn a_displaced_slot_finds_whoever_parks_meanwhile() {
    two_releases_beside_a_taker_and_a_waiter(IdleOrder::Recent, 1);
    two_releases_beside_a_taker_and_a_waiter(IdleOrder::Recent, 2);
}

/// The same behind the hot slot with a stack.
///
/// Mutants seen to be caught: "no fence", "no fence before a stack is empty".
#[test]
fn a_slot_displaced_to_the_stack_finds_whoever_parks_meanwhile() {
    two_releases_beside_a_taker_and_a_waiter(IdleOrder::Lifo, 1);
}

/// Two releases at once serve one waiter that is parked and has no time to run, and another that is
/// just parking. Both keep what they get.
///
/// Mutant seen to be caught: "a second wake is swallowed".
#[test]
fn two_releases_serve_a_parked_waiter_and_another() {
    for order in ORDERS {
        for (shards, home) in [(1, 0), (2, 1)] {
            check(move || {
                let pool = pool_of(2, 2, shards, order, &Census::default());
                let held = [acquire(&pool), acquire(&pool)];
                {
                    let mut parked = pin!(pool.acquire());
                    assert!(poll_once(parked.as_mut()).is_pending());
                    let other = waiter(&pool, home);
                    drop(held);
                    let theirs = other.join().unwrap();
                    let mine = block_on(parked).expect("the pool is open");
                    drop((mine, theirs));
                }
                assert_conserved(&pool, 2);
            });
        }
    }
}

/// Two releases beside two waiters that are both just parking, and keep what they get.
///
/// Mutant seen to be caught: "a second wake is swallowed".
#[test]
fn two_releases_serve_two_waiters() {
    for (order, shards) in
        [(IdleOrder::Recent, 1), (IdleOrder::Recent, 2), (IdleOrder::Fifo, 1), (IdleOrder::Lifo, 1)]
    {
        check(move || {
            let pool = pool_of(2, 2, shards, order, &Census::default());
            let held = [acquire(&pool), acquire(&pool)];
            let others = [0, 1].map(|home| waiter(&pool, home));
            drop(held);
            let kept = others.map(|other| other.join().unwrap());
            drop(kept);
            assert_conserved(&pool, 2);
        });
    }
}

/// An object leaves for good just when somebody parks, who must get one that is newly made.
///
/// Mutants seen to be caught: "nobody hears of a vacant slot", "a newcomer does not ask for one".
#[test]
fn a_detach_makes_room_for_whoever_parks_meanwhile() {
    for (shards, home) in [(1, 0), (2, 1)] {
        check(move || {
            let census = Census::default();
            let pool = making_pool(1, shards, &census);
            let held = acquire(&pool);
            let other = waiter(&pool, home);
            drop(held.detach());
            let theirs = other.join().unwrap();
            assert_eq!(census.ever(), 2, "a new one was made");
            drop(theirs);
            assert_conserved(&pool, 1);
        });
    }
}

/// The same with the parts exchanged, as with a release.
///
/// Mutant seen to be caught: "the arrivals are not compared (vacant)".
#[test]
fn an_offer_that_came_too_early_is_made_again() {
    for (shards, home) in [(1, 0), (2, 1)] {
        check(move || {
            let census = Census::default();
            let pool = making_pool(1, shards, &census);
            let held = acquire(&pool);
            let other = thread::spawn(move || {
                set_home(home);
                drop(held.detach());
            });
            let mine = acquire(&pool);
            other.join().unwrap();
            assert_eq!(census.ever(), 2, "a new one was made");
            drop(mine);
            assert_conserved(&pool, 1);
        });
    }
}

/// An object is added just when somebody parks.
///
/// Mutant seen to be caught: "the newcomer does not search".
#[test]
fn an_added_object_finds_whoever_parks_meanwhile() {
    for (shards, home) in [(1, 0), (2, 1)] {
        check(move || {
            let census = Census::default();
            let pool = pool_of(0, 1, shards, IdleOrder::Recent, &census);
            let other = waiter(&pool, home);
            assert!(pool.add(census.born(1)).is_ok(), "a place is vacant");
            drop(other.join().unwrap());
            assert_conserved(&pool, 1);
        });
    }
}

/// A connect fails while somebody parks, who must see to another attempt.
///
/// Mutants seen to be caught: "nobody hears of a vacant slot", "no fence".
#[test]
fn a_failed_connect_leaves_its_right_to_whoever_parks_meanwhile() {
    for failures in [0, 1] {
        check(move || {
            let census = Census::default();
            let station = Station::new(1, 1, failures, &census);
            let reservation = station.reserve().expect("a slot is vacant");
            let other = thread::spawn({
                let station = station.clone();
                move || station.acquire()
            });
            drop(reservation);
            let loan = other.join().unwrap();
            loan.resource().use_it();
            drop(loan);
            station.assert_conserved();
        });
    }
}

/// A connect succeeds while somebody parks.
///
/// Mutant seen to be caught: "nobody looks after a release".
#[test]
fn a_new_connection_finds_whoever_parks_meanwhile() {
    check(|| {
        let station = Station::new(1, 2, 0, &Census::default());
        let reservation = station.reserve().expect("a slot is vacant");
        let other = thread::spawn({
            let station = station.clone();
            move || {
                set_home(1);
                station.acquire()
            }
        });
        drop(reservation.fill(station.connect()));
        drop(other.join().unwrap());
        station.assert_conserved();
    });
}

/// Of two connections one comes back and one ends, beside two waiters that keep what they get.
///
/// Mutant seen to be caught: "nobody hears of a vacant slot".
#[test]
fn a_release_and_a_retirement_serve_two_waiters() {
    check(|| {
        let (station, [mut ending, returning]) =
            Station::lent(1, IdleOrder::Recent, &Census::default());
        let others = [(); 2].map(|()| {
            let station = station.clone();
            thread::spawn(move || station.acquire())
        });
        drop(ending.recall().begin(State::Closing));
        drop(returning);
        let kept = others.map(|other| other.join().unwrap());
        drop(kept);
        station.assert_conserved();
    });
}
