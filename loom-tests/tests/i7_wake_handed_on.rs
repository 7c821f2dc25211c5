//! I7, wake handed on: a woken waiter that leaves without its slot passes it on.
//!
//! The quitter polls once and goes away: before the hand-off, while it is on its way, or with the
//! object at once if it came early enough; then it gives the object back. The other waiter keeps
//! what it gets.

#![cfg(loom)]

use millpond::IdleOrder;
use millpond::model::{Line, State, Woken, wait};
use millpond_loom::{
    Census, Station, acquire, assert_conserved, check, making_pool, poll_once, pool_of, set_home,
    thread, waiter,
};
use std::pin::pin;
use std::task::Poll;

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
///
/// Mutant seen to be caught: "`Handoff::drop` is empty".
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

/// The hand-off is passed on to a waiter that leaves as well, before it is polled.
///
/// Mutant seen to be caught: "a slot dropped on the way is lost".
#[test]
fn a_hand_off_that_two_leave_behind_reaches_whoever_parks_meanwhile() {
    for (shards, waits) in [(1, 0), (2, 1)] {
        check(move || {
            let pool = pool_of(1, 1, shards, IdleOrder::Recent, &Census::default());
            let held = acquire(&pool);
            let other;
            {
                let mut second = pin!(pool.acquire());
                {
                    let mut first = pin!(pool.acquire());
                    assert!(poll_once(first.as_mut()).is_pending());
                    assert!(poll_once(second.as_mut()).is_pending());
                    other = waiter(&pool, waits);
                    drop(held);
                }
            }
            drop(other.join().unwrap());
            assert_conserved(&pool, 1);
        });
    }
}

/// A vacant slot reaches a waiter that leaves; it is the other one's then.
///
/// Mutant seen to be caught: "a slot dropped on the way is lost".
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
///
/// Mutant seen to be caught: "nobody hears of a vacant slot".
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
            move || drop(poll_once(pin!(wait(&station, Line::General, usize::MAX))))
        });
        drop(reservation);
        quitter.join().unwrap();
        drop(other.join().unwrap());
        station.assert_conserved();
    });
}

/// The word to look again is sent just when its waiter leaves, and somebody has parked behind that one,
/// who hears it, or nobody has.
///
/// Mutants seen to be caught: "the word to look again is lost on the way", "nobody is told to look
/// again".
#[test]
fn a_cancelled_waiter_takes_no_word_to_look_again_along() {
    for is_followed in [false, true] {
        check(move || {
            let (station, [held]) = Station::lent::<1>(1, IdleOrder::Recent, &Census::default());
            let mut next = pin!(wait(&station, Line::General, usize::MAX));
            let sender;
            {
                let mut quitter = pin!(station.acquire_in(Line::General, usize::MAX));
                assert!(poll_once(quitter.as_mut()).is_pending());
                if is_followed {
                    assert!(poll_once(next.as_mut()).is_pending());
                }
                sender = thread::spawn({
                    let station = station.clone();
                    move || station.nudge()
                });
            }
            sender.join().unwrap();
            if is_followed {
                let heard = matches!(poll_once(next), Poll::Ready(Woken::LookAgain));
                assert!(heard, "I7: the word is lost");
            }
            drop(held);
            station.assert_conserved();
        });
    }
}

/// The same beside somebody in another shard, to whom the event does not pass it on. The word is all that
/// there is: nobody fills the vacant slot for those who wait.
///
/// Mutant seen to be caught: "whoever leaves tells nobody of a vacant slot".
#[test]
fn a_word_to_look_again_goes_on_to_another_shard() {
    check(|| {
        let (station, mut ending) = Station::lone(2, &Census::default());
        let other;
        {
            let mut quitter = pin!(station.acquire_in(Line::General, usize::MAX));
            assert!(poll_once(quitter.as_mut()).is_pending());
            other = thread::spawn({
                let station = station.clone();
                move || {
                    set_home(1);
                    station.acquire()
                }
            });
            drop(ending.recall().begin(State::Closing));
        }
        drop(other.join().unwrap());
        station.assert_conserved();
    });
}
