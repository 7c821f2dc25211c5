//! I1, exclusive: a slot has one owner.
//!
//! Each token notices a second holder. That a box has one owner the compiler proves; what remains
//! is that a queue gives each box out once.

#![cfg(loom)]

use millpond::IdleOrder;
use millpond_loom::{
    Census, ORDERS, acquire, assert_conserved, check, pool_of, set_home, thread, waiter,
};

/// Two threads acquire, use and release the only object; one of them may have to wait.
///
/// Mutant seen to be caught: "two pops take the same entry".
#[test]
fn one_object_never_has_two_holders() {
    for order in ORDERS {
        for shards in [1, 2] {
            check(move || {
                let pool = pool_of(1, 1, shards, order, &Census::default());
                let other = thread::spawn({
                    let pool = pool.clone();
                    move || {
                        set_home(1);
                        drop(acquire(&pool));
                    }
                });
                drop(acquire(&pool));
                other.join().unwrap();
                assert_conserved(&pool, 1);
            });
        }
    }
}

/// Two threads take from two idle objects at once, and keep what they get.
///
/// Mutant seen to be caught: "two pops take the same entry".
#[test]
fn two_takers_get_two_objects() {
    for order in ORDERS {
        check(move || {
            let pool = pool_of(2, 2, 1, order, &Census::default());
            let other = waiter(&pool, 1);
            let mine = acquire(&pool);
            let theirs = other.join().unwrap();
            mine.use_it();
            theirs.use_it();
            drop((mine, theirs));
            assert_conserved(&pool, 2);
        });
    }
}

/// A pop from the stack sleeps while another thread takes both entries and puts the upper one back:
/// the head looks as before, but the link that the pop has read is out of date.
///
/// Three slots, one more than other models have: the last one released lies in `hot`, and the stack
/// must hold two. Mutant seen to be caught: "the stack's head has no tag".
#[test]
fn a_stack_that_looks_as_before_is_not_taken_for_it() {
    check(|| {
        let pool = pool_of(3, 3, 1, IdleOrder::Lifo, &Census::default());
        let hot = acquire(&pool);
        let other = waiter(&pool, 0);
        let upper = acquire(&pool);
        let lower = pool.try_acquire();
        // The upper one goes to `hot`, from where the lower one displaces it.
        drop(upper);
        drop(lower);
        let theirs = other.join().unwrap();
        drop((hot, theirs));
        assert_conserved(&pool, 3);
    });
}
