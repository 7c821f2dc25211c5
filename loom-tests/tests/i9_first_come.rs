//! I9, first come: no acquire is served before one of its own shard that was parked when it began.
//!
//! The first one parks by being polled by hand, so that "was parked" is certain before the others begin.

#![cfg(loom)]

use millpond_loom::{
    Census, ORDERS, acquire, assert_conserved, block_on, check, making_pool, poll_once, pool_of,
    thread, waiter,
};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A newcomer that does not wait, beside a release that began before the waiter parked.
///
/// The waiter keeps what it gets, so that nothing is left for a newcomer that has seen it wait.
///
/// Mutant seen to be caught: "a newcomer looks at no control word".
#[test]
fn a_newcomer_takes_nothing_while_somebody_is_parked() {
    for order in ORDERS {
        check(move || {
            let pool = pool_of(1, 1, 1, order, &Census::default());
            let held = acquire(&pool);
            let parked = waiter(&pool, 0);
            let newcomer = thread::spawn({
                let pool = pool.clone();
                move || {
                    let overtakes = pool.counts().waiters > 0;
                    let taken = pool.try_acquire();
                    assert!(!(overtakes && taken.is_ok()), "I9: overtaken");
                }
            });
            drop(held);
            newcomer.join().unwrap();
            drop(parked.join().unwrap());
            assert_conserved(&pool, 1);
        });
    }
}

/// A newcomer that waits, beside a release.
///
/// Mutant seen to be caught: "a newcomer looks at no control word".
#[test]
fn the_first_to_park_is_the_first_to_be_served() {
    for order in ORDERS {
        check(move || {
            let pool = pool_of(1, 1, 1, order, &Census::default());
            let held = acquire(&pool);
            let releaser = thread::spawn(move || drop(held));
            let served = Arc::new(AtomicBool::new(false));
            let mut first = pin!(pool.acquire());
            if poll_once(first.as_mut()).is_ready() {
                releaser.join().unwrap();
                return;
            }
            let second = thread::spawn({
                let (pool, served) = (pool.clone(), served.clone());
                move || {
                    let object = acquire(&pool);
                    assert!(served.load(Relaxed), "I9: overtaken");
                    object
                }
            });
            let object = block_on(first).expect("the pool is open");
            served.store(true, Relaxed);
            drop(object);
            releaser.join().unwrap();
            drop(second.join().unwrap());
            assert_conserved(&pool, 1);
        });
    }
}

/// Two parked in turn, then two releases: the second release serves nobody before the first.
///
/// Mutant seen to be caught: "whoever was served stands aside".
#[test]
fn two_that_are_parked_are_served_in_turn() {
    for order in ORDERS {
        check(move || {
            let pool = pool_of(1, 1, 1, order, &Census::default());
            let held = acquire(&pool);
            let mut first = pin!(pool.acquire());
            let mut second = pin!(pool.acquire());
            assert!(poll_once(first.as_mut()).is_pending());
            assert!(poll_once(second.as_mut()).is_pending());
            let other = thread::spawn(move || drop(held));
            assert!(poll_once(second.as_mut()).is_pending(), "I9: overtaken");
            drop(block_on(first).expect("the pool is open"));
            drop(block_on(second).expect("the pool is open"));
            other.join().unwrap();
            assert_conserved(&pool, 1);
        });
    }
}

/// The same when an object is newly made for a place that has become vacant.
///
/// Mutant seen to be caught: "a newcomer fills a vacant place out of turn".
#[test]
fn a_new_object_goes_to_the_first_to_park() {
    check(|| {
        let pool = making_pool(1, 1, &Census::default());
        let held = acquire(&pool);
        let served = Arc::new(AtomicBool::new(false));
        let mut first = pin!(pool.acquire());
        assert!(poll_once(first.as_mut()).is_pending());
        let second = thread::spawn({
            let (pool, served) = (pool.clone(), served.clone());
            move || {
                let object = acquire(&pool);
                assert!(served.load(Relaxed), "I9: overtaken");
                object
            }
        });
        drop(held.detach());
        let object = block_on(first).expect("the pool is open");
        served.store(true, Relaxed);
        drop(object);
        drop(second.join().unwrap());
        assert_conserved(&pool, 1);
    });
}
