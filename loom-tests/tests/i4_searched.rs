//! I1, I3 and I4 beside a search: a slot that a walk takes off its shelf is nobody's while it is
//! away, and comes back to whoever waits.

#![cfg(loom)]

use millpond::IdleOrder;
use millpond::model::Search;
use millpond_loom::{Census, Connection, ORDERS, Station, check, poll_once, set_home, thread};
use std::pin::pin;
use std::sync::Arc;

fn waiter(station: &Arc<Station>, home: usize) -> thread::JoinHandle<Connection> {
    let station = station.clone();
    thread::spawn(move || {
        set_home(home);
        station.acquire()
    })
}

/// Looks at all idle slots and wants none, or wants all and lets them go.
fn walk(station: &Station, all: bool) {
    let mut search = Search::new(station);
    // As many as there are: what is let go comes back.
    for _ in 0..2 {
        match search.next(|_| all) {
            Some(lease) => drop(lease),
            None => return,
        }
    }
}

/// The walk holds the only connection just when somebody parks.
///
/// Mutant seen to be caught: "nobody looks after a search has put a slot back".
#[test]
fn what_a_search_puts_back_finds_whoever_parks_meanwhile() {
    for order in ORDERS {
        for (all, home) in [(false, 0), (false, 1), (true, 0)] {
            check(move || {
                let (station, lent) = Station::lent::<1>(2, order, &Census::default());
                drop(lent);
                let other = waiter(&station, home);
                walk(&station, all);
                drop(other.join().unwrap());
                station.assert_conserved();
            });
        }
    }
}

/// The same with the parts exchanged.
///
/// Mutant seen to be caught: "nobody looks after a search has put a slot back".
#[test]
fn whoever_parks_finds_what_a_search_puts_back_meanwhile() {
    for order in ORDERS {
        for all in [false, true] {
            check(move || {
                let (station, lent) = Station::lent::<1>(1, order, &Census::default());
                drop(lent);
                let other = thread::spawn({
                    let station = station.clone();
                    move || walk(&station, all)
                });
                let kept = station.acquire();
                other.join().unwrap();
                drop(kept);
                station.assert_conserved();
            });
        }
    }
}

/// A walk that restores what it has looked at, beside somebody who parks.
///
/// Mutant seen to be caught: "nobody looks after a search has put a slot back".
#[test]
fn what_a_search_restores_finds_whoever_parks_meanwhile() {
    for order in ORDERS {
        check(move || {
            let (station, lent) = Station::lent::<1>(1, order, &Census::default());
            drop(lent);
            let other = waiter(&station, 0);
            let mut search = Search::new(&*station);
            if let Some(lease) = search.next(|_| true) {
                search.restore(lease);
            }
            drop(other.join().unwrap());
            station.assert_conserved();
        });
    }
}

/// I9: a newcomer that does not wait, beside a walk and somebody who is parked.
///
/// Mutant seen to be caught: "a newcomer looks at no control word".
#[test]
fn a_search_lets_nobody_overtake() {
    for order in ORDERS {
        check(move || {
            let (station, [held]) = Station::lent::<1>(1, order, &Census::default());
            drop(held);
            let parked = waiter(&station, 0);
            let newcomer = thread::spawn({
                let station = station.clone();
                move || {
                    let overtakes = station.waiters() > 0;
                    let taken = station.try_acquire();
                    assert!(!(overtakes && taken.is_some()), "I9: overtaken");
                }
            });
            walk(&station, false);
            newcomer.join().unwrap();
            drop(parked.join().unwrap());
            station.assert_conserved();
        });
    }
}

/// Of three slots in a stack two lie behind the hot one. A thief takes one from the middle, beside a
/// taker of all that it finds; each of the tokens notices a second holder.
///
/// Mutants seen to be caught: "a thief leaves no trace", "a pop that has met a stolen slot does not
/// see what lies below the next".
#[test]
fn a_stolen_slot_has_one_holder() {
    for wanted in [0, 1] {
        check(move || {
            let (station, lent) = Station::lent::<3>(1, IdleOrder::Lifo, &Census::default());
            drop(lent);
            let taker = thread::spawn({
                let station = station.clone();
                move || {
                    let taken = [(); 3].map(|()| station.try_acquire());
                    taken.iter().flatten().for_each(|loan| {
                        loan.resource().use_it();
                    });
                }
            });
            let mut search = Search::new(&*station);
            if let Some(lease) = search.next(|slot| slot == wanted) {
                lease.resource().use_it();
            }
            taker.join().unwrap();
            station.assert_conserved();
        });
    }
}

/// The thief brings its slot back, which goes to its old place, beside a push and a pop.
///
/// Mutant seen to be caught: "a stolen slot that comes back is linked again".
#[test]
fn a_stolen_slot_that_comes_back_is_not_lost() {
    check(|| {
        let (station, lent) = Station::lent::<3>(1, IdleOrder::Lifo, &Census::default());
        drop(lent);
        let mut search = Search::new(&*station);
        let stolen = search.next(|slot| slot == 0).expect("it is in the stack");
        let taker = thread::spawn({
            let station = station.clone();
            move || [(); 3].map(|()| station.try_acquire()).map(drop)
        });
        search.restore(stolen);
        taker.join().unwrap();
        station.assert_conserved();
    });
}

/// Of two slots one was hot and is taken, and the other is stolen from the stack just when somebody parks,
/// who can only get that one.
///
/// Mutant seen to be caught: "nobody looks after a search has put a slot back".
#[test]
fn a_stolen_slot_that_comes_back_finds_whoever_parks_meanwhile() {
    check(|| {
        let (station, lent) = Station::lent::<2>(1, IdleOrder::Lifo, &Census::default());
        drop(lent);
        let mut search = Search::new(&*station);
        let stolen = search.next(|slot| slot == 0).expect("it is in the stack");
        let hot = station.try_acquire().expect("it is hot");
        let other = waiter(&station, 0);
        search.restore(stolen);
        let kept = other.join().unwrap();
        drop((kept, hot));
        station.assert_conserved();
    });
}

/// A push is interrupted before it has linked its slot, and a thief takes it from there.
///
/// Mutant seen to be caught: "what the hot slot displaces is dropped".
#[test]
fn a_slot_is_stolen_before_it_is_linked() {
    check(|| {
        let (station, lent) = Station::lent::<2>(1, IdleOrder::Lifo, &Census::default());
        let other = thread::spawn(move || drop(lent));
        let mut search = Search::new(&*station);
        let stolen = search.next(|slot| slot == 0);
        let mut again = Search::new(&*station);
        if let Some(lease) = stolen {
            again.restore(lease);
        }
        other.join().unwrap();
        station.assert_conserved();
    });
}

/// A walk that wants nothing beside a waiter that leaves.
///
/// Mutant seen to be caught: "a slot dropped on the way is lost".
#[test]
fn a_search_beside_a_cancelled_waiter_loses_nothing() {
    check(|| {
        let (station, lent) = Station::lent::<1>(1, IdleOrder::Recent, &Census::default());
        drop(lent);
        let quitter = thread::spawn({
            let station = station.clone();
            move || {
                drop(poll_once(pin!(
                    station.acquire_in(millpond::model::Line::General, usize::MAX)
                )))
            }
        });
        walk(&station, false);
        quitter.join().unwrap();
        station.assert_conserved();
    });
}
