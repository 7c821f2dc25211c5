//! I2, bounded: resources alive or being opened never exceed the limit, at any instant.
//!
//! Every birth of a token checks the number of those alive.

#![cfg(loom)]

use millpond::model::State;
use millpond::{IdleOrder, ObjectPool};
use millpond_loom::{Census, Station, acquire, assert_conserved, check, set_home, thread, waiter};

/// The holder's object fails its reset, while another waits to make a new one in its place.
///
/// Mutant seen to be caught: "the slot is vacant before its resource is gone".
#[test]
fn a_new_object_is_made_only_when_the_old_one_is_gone() {
    check(|| {
        let census = Census::default();
        let pool = ObjectPool::builder(1)
            .shards(1)
            .order(IdleOrder::Recent)
            .reset(|_| false)
            .build({
                let census = census.clone();
                move || census.born(1)
            })
            .unwrap();
        let held = acquire(&pool);
        let other = waiter(&pool, 0);
        drop(held);
        drop(other.join().unwrap());
        assert_eq!((census.ever(), census.alive()), (2, 0));
        // Every release empties a slot here, so the law is in the counts.
        assert_eq!((pool.counts().vacant, pool.counts().waiters), (1, 0));
    });
}

/// Two callers and one who gives up its connection all want to connect, with one slot.
///
/// Mutant seen to be caught: "nobody hears of a vacant slot".
#[test]
fn connectors_that_race_share_one_right() {
    check(|| {
        let census = Census::default();
        let station = Station::new(1, 1, 0, &census);
        let callers = [0, 0].map(|home| {
            let station = station.clone();
            thread::spawn(move || {
                set_home(home);
                let mut loan = station.acquire();
                loan.resource().use_it();
                // The connection ends; the next caller opens one of its own.
                drop(loan.recall().begin(State::Closing));
            })
        });
        for caller in callers {
            caller.join().unwrap();
        }
        // One more may lie idle: opened for a caller that was served meanwhile.
        assert!((2..=3).contains(&census.ever()));
        station.assert_conserved();
    });
}

/// An object is detached and another one added just when somebody parks, who gets that one or makes a
/// third.
///
/// Mutant seen to be caught: "nobody hears of a vacant slot".
#[test]
fn a_detached_place_is_filled_once() {
    check(|| {
        let census = Census::default();
        // The one that is detached, the one to be added and the one that is made may all be alive.
        let born = {
            let census = census.clone();
            move || census.born(3)
        };
        let pool = ObjectPool::builder(1).shards(1).build(born.clone()).unwrap();
        let held = acquire(&pool);
        let other = waiter(&pool, 0);
        let adder = thread::spawn({
            let pool = pool.clone();
            move || pool.add(born()).is_ok()
        });
        // It leaves the pool, and ends at once.
        drop(held.detach());
        let added = adder.join().unwrap();
        let kept = other.join().unwrap();
        assert_eq!(census.ever(), if added { 2 } else { 3 });
        assert_eq!(census.alive(), 1, "I2: the place is filled twice");
        drop(kept);
        assert_conserved(&pool, 1);
    });
}
