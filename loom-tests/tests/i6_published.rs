//! I6, published: what one holder wrote happens before what the next holder reads.
//!
//! A token's count of uses is a cell that loom watches: an access that does not happen after the one
//! before it fails the model.

#![cfg(loom)]

use millpond::IdleOrder;
use millpond_loom::{
    Census, ORDERS, acquire, assert_conserved, check, poll_once, pool_of, set_home, thread, waiter,
};
use std::pin::pin;

/// Through a shelf: the other thread takes what it finds, and does not wait.
///
/// Mutants seen to be caught: "the hot swap is relaxed" (`Recent`, `Lifo`), "the ring's push is
/// relaxed" (`Fifo`).
#[test]
fn the_next_taker_sees_the_last_use() {
    for order in ORDERS {
        for shards in [1, 2] {
            check(move || {
                let pool = pool_of(1, 1, shards, order, &Census::default());
                let held = acquire(&pool);
                let other = thread::spawn({
                    let pool = pool.clone();
                    move || {
                        set_home(1);
                        pool.try_acquire().map(|object| object.use_it()).ok()
                    }
                });
                held.use_it();
                drop(held);
                let seen = other.join().unwrap();
                assert!(seen.is_none_or(|uses| uses == 2));
                assert_conserved(&pool, 1);
            });
        }
    }
}

/// Through a hand-off.
///
/// Mutant seen to be caught: "the hot swap is relaxed".
#[test]
fn a_waiter_sees_the_last_use() {
    for order in ORDERS {
        for shards in [1, 2] {
            check(move || {
                let pool = pool_of(1, 1, shards, order, &Census::default());
                let held = acquire(&pool);
                let other = waiter(&pool, 1);
                held.use_it();
                drop(held);
                let theirs = other.join().unwrap();
                assert_eq!(theirs.use_it(), 3);
                drop(theirs);
                assert_conserved(&pool, 1);
            });
        }
    }
}

/// Through the place behind the hot one: two objects, of which the second displaces the first.
///
/// Mutant seen to be caught: "the hot swap is relaxed".
#[test]
fn the_taker_of_a_displaced_object_sees_its_last_use() {
    for order in ORDERS {
        check(move || {
            let pool = pool_of(2, 2, 1, order, &Census::default());
            let held = [acquire(&pool), acquire(&pool)];
            let other = thread::spawn({
                let pool = pool.clone();
                move || {
                    let first = pool.try_acquire();
                    let second = pool.try_acquire();
                    for object in [first, second].into_iter().flatten() {
                        assert_eq!(object.use_it(), 2);
                    }
                }
            });
            for object in held {
                object.use_it();
                drop(object);
            }
            other.join().unwrap();
            assert_conserved(&pool, 2);
        });
    }
}

/// Through a hand-off that was cancelled and went back to a shelf: the thread of whoever left lies between
/// the holder's and the taker's.
///
/// Mutant seen to be caught: "the hot swap is relaxed".
#[test]
fn whoever_finds_a_cancelled_hand_off_sees_the_last_use() {
    check(|| {
        let pool = pool_of(1, 1, 1, IdleOrder::Recent, &Census::default());
        let held = acquire(&pool);
        let (holder, taker);
        {
            let mut quitter = pin!(pool.acquire());
            assert!(poll_once(quitter.as_mut()).is_pending());
            holder = thread::spawn(move || {
                held.use_it();
                drop(held);
            });
            taker = thread::spawn({
                let pool = pool.clone();
                move || {
                    if let Ok(object) = pool.try_acquire() {
                        assert_eq!(object.use_it(), 2);
                    }
                }
            });
        }
        holder.join().unwrap();
        taker.join().unwrap();
        assert_conserved(&pool, 1);
    });
}
