//! I8, close is final: after close no acquire succeeds, every waiter ends, every resource is dropped
//! once.

#![cfg(loom)]

use millpond::model::{Keeper, Line, Search};
use millpond::{AcquireObjectError, AddError, IdleOrder, ObjectPool, TryAcquireError};
use millpond_loom::{
    Census, ORDERS, Station, Token, acquire, block_on, check, making_pool, poll_once, pool_of,
    set_home, thread,
};
use std::pin::pin;

/// After close and after the last release nothing is left and nothing succeeds.
fn assert_final(pool: &ObjectPool<Token>, census: &Census) {
    assert_eq!(census.alive(), 0, "I8: a resource has outlived its pool");
    assert_eq!(pool.counts().vacant, pool.capacity(), "I3: a slot is lost");
    assert_eq!(pool.counts().waiters, 0, "somebody still counts as a waiter");
    assert_eq!(pool.try_acquire().err(), Some(TryAcquireError::Closed));
    assert!(matches!(block_on(pool.acquire()), Err(AcquireObjectError::Closed)));
    assert!(matches!(pool.acquire_blocking(), Err(AcquireObjectError::Closed)));
    assert!(matches!(pool.add(census.born(1)), Err(AddError::Closed(_))));
}

/// Somebody parks just when the pool is closed.
///
/// Mutants seen to be caught: "close wakes nobody", "who parks does not see that the core is
/// closed".
#[test]
fn a_close_ends_whoever_parks_meanwhile() {
    for (shards, home) in [(1, 0), (2, 1)] {
        check(move || {
            let census = Census::default();
            let pool = pool_of(1, 1, shards, IdleOrder::Recent, &census);
            let held = acquire(&pool);
            let other = thread::spawn({
                let pool = pool.clone();
                move || {
                    set_home(home);
                    let ended = block_on(pool.acquire());
                    assert!(matches!(ended, Err(AcquireObjectError::Closed)));
                }
            });
            pool.close();
            other.join().unwrap();
            drop(held);
            assert_final(&pool, &census);
        });
    }
}

/// An object is released just when the pool is closed: one of the two drops it.
///
/// Mutant seen to be caught: "what comes back after close stays".
#[test]
fn a_release_beside_close_drops_the_object_once() {
    for order in ORDERS {
        for shards in [1, 2] {
            check(move || {
                let census = Census::default();
                let pool = pool_of(1, 1, shards, order, &census);
                let held = acquire(&pool);
                let other = thread::spawn(move || {
                    set_home(1);
                    drop(held);
                });
                pool.close();
                other.join().unwrap();
                assert_final(&pool, &census);
            });
        }
    }
}

/// Two releases, the second of which displaces the first.
///
/// Mutant seen to be caught: "no fence".
#[test]
fn two_releases_beside_close_drop_both_objects() {
    for order in ORDERS {
        check(move || {
            let census = Census::default();
            let pool = pool_of(2, 2, 1, order, &census);
            let held = [acquire(&pool), acquire(&pool)];
            let other = thread::spawn(move || drop(held));
            pool.close();
            other.join().unwrap();
            assert_final(&pool, &census);
        });
    }
}

/// Somebody has parked, and leaves just when the pool is closed.
///
/// Mutant seen to be caught: "the word to look again is lost on the way".
#[test]
fn a_waiter_that_leaves_beside_close_is_counted_no_more() {
    check(|| {
        let census = Census::default();
        let pool = pool_of(1, 1, 1, IdleOrder::Recent, &census);
        let held = acquire(&pool);
        let other;
        {
            let mut quitter = pin!(pool.acquire());
            assert!(poll_once(quitter.as_mut()).is_pending());
            other = thread::spawn({
                let pool = pool.clone();
                move || pool.close()
            });
        }
        other.join().unwrap();
        drop(held);
        assert_final(&pool, &census);
    });
}

/// The same while an object or a vacant place is on its way to it, which nobody receives then.
///
/// Mutant seen to be caught: "a slot dropped on the way is lost".
#[test]
fn a_hand_off_that_is_left_behind_beside_close_leaves_nothing() {
    for detaches in [false, true] {
        check(move || {
            let census = Census::default();
            let pool = making_pool(1, 1, &census);
            let held = acquire(&pool);
            let other;
            {
                let mut quitter = pin!(pool.acquire());
                assert!(poll_once(quitter.as_mut()).is_pending());
                other = thread::spawn({
                    let pool = pool.clone();
                    move || pool.close()
                });
                match detaches {
                    true => drop(held.detach()),
                    false => drop(held),
                }
            }
            other.join().unwrap();
            assert_final(&pool, &census);
        });
    }
}

/// Somebody acquires just when the pool is closed: it gets the object or the error.
///
/// Mutant seen to be caught: "no fence".
#[test]
fn an_acquire_beside_close_gets_the_object_or_the_error() {
    for order in ORDERS {
        check(move || {
            let census = Census::default();
            let pool = pool_of(1, 1, 1, order, &census);
            let other = thread::spawn({
                let pool = pool.clone();
                move || match block_on(pool.acquire()) {
                    Ok(object) => assert_eq!(object.use_it(), 0),
                    Err(error) => assert_eq!(error, AcquireObjectError::Closed),
                }
            });
            pool.close();
            other.join().unwrap();
            assert_final(&pool, &census);
        });
    }
}

/// A waiter, a release and a close all at once.
///
/// Mutant seen to be caught: "close wakes nobody".
#[test]
fn a_waiter_beside_a_release_and_a_close_ends_either_way() {
    for (shards, home) in [(1, 0), (2, 1)] {
        check(move || {
            let census = Census::default();
            let pool = pool_of(1, 1, shards, IdleOrder::Recent, &census);
            let held = acquire(&pool);
            let other = thread::spawn({
                let pool = pool.clone();
                move || {
                    set_home(home);
                    block_on(pool.acquire_owned()).ok()
                }
            });
            let closer = thread::spawn({
                let pool = pool.clone();
                move || pool.close()
            });
            drop(held);
            closer.join().unwrap();
            drop(other.join().unwrap());
            assert_final(&pool, &census);
        });
    }
}

/// An object or a vacant place comes to somebody who has parked, who looks only after the close.
///
/// Mutant seen to be caught: "who comes after the close is served what came before it".
#[test]
fn whoever_looks_after_a_close_is_refused_what_came_before_it() {
    for detaches in [false, true] {
        check(move || {
            let census = Census::default();
            let pool = making_pool(1, 1, &census);
            let held = acquire(&pool);
            let parked_pool = pool.clone();
            let mut parked = pin!(parked_pool.acquire());
            assert!(poll_once(parked.as_mut()).is_pending());
            let other = thread::spawn(move || match detaches {
                true => drop(held.detach()),
                false => drop(held),
            });
            pool.close();
            let ended = block_on(parked);
            assert!(matches!(ended, Err(AcquireObjectError::Closed)), "I8: served after the close");
            other.join().unwrap();
            assert_final(&pool, &census);
        });
    }
}

/// An object is added just when the pool is closed.
///
/// Mutant seen to be caught: "a closed core still gives rights to fill".
#[test]
fn an_add_beside_close_drops_the_object_once_or_gives_it_back() {
    check(|| {
        let census = Census::default();
        let pool = pool_of(0, 1, 1, IdleOrder::Recent, &census);
        let other = thread::spawn({
            let (pool, census) = (pool.clone(), census.clone());
            move || {
                let refused = pool.add(census.born(1));
                assert!(matches!(refused, Ok(()) | Err(AddError::Closed(_))));
            }
        });
        pool.close();
        other.join().unwrap();
        assert_final(&pool, &census);
    });
}

/// A place becomes vacant beside a waiter that would fill it, just when the pool is closed.
///
/// Mutant seen to be caught: "close wakes nobody".
#[test]
fn a_detach_beside_close_ends_the_waiter() {
    check(|| {
        let census = Census::default();
        let pool = making_pool(1, 1, &census);
        let held = acquire(&pool);
        let other = thread::spawn({
            let pool = pool.clone();
            move || block_on(pool.acquire_owned()).ok()
        });
        let closer = thread::spawn({
            let pool = pool.clone();
            move || pool.close()
        });
        drop(held.detach());
        closer.join().unwrap();
        drop(other.join().unwrap());
        assert_final(&pool, &census);
    });
}

/// A drain: somebody parks while the core is closed, and what is in use comes back after that.
///
/// Mutant seen to be caught: "what comes back after close stays".
#[test]
fn a_drain_ends_whoever_parks_and_empties_what_comes_back() {
    for order in ORDERS {
        check(move || {
            let census = Census::default();
            let (station, lent) = Station::lent::<2>(1, order, &census);
            let [returning, resting] = lent;
            drop(resting);
            let other = thread::spawn({
                let station = station.clone();
                move || drop(block_on(station.acquire_in(Line::General, usize::MAX)))
            });
            station.close();
            drop(returning);
            other.join().unwrap();
            let counts = station.core().counts();
            assert_eq!((counts.vacant, counts.waiters), (2, 0), "I8: not all is vacant");
            assert_eq!(census.alive(), 0, "I8: a resource has outlived its pool");
        });
    }
}

/// A walk holds a slot just when the core is closed: it goes the way of the others.
///
/// Mutant seen to be caught: "nobody looks after a search has put a slot back".
#[test]
fn a_search_beside_close_leaves_nothing() {
    for order in ORDERS {
        check(move || {
            let census = Census::default();
            let (station, lent) = Station::lent::<1>(1, order, &census);
            drop(lent);
            let other = thread::spawn({
                let station = station.clone();
                move || {
                    let mut search = Search::new(&*station);
                    if let Some(lease) = search.next(|slot| order == IdleOrder::Lifo && slot == 0) {
                        search.restore(lease);
                    }
                }
            });
            station.close();
            other.join().unwrap();
            assert_eq!(station.core().counts().vacant, 1, "I8: not all is vacant");
            assert_eq!(census.alive(), 0, "I8: a resource has outlived its pool");
        });
    }
}
