//! Flags are seen: once somebody has flagged slots, alerted and searched, and whoever was told to search
//! has done that too, no slot lies idle with its flag up.
//!
//! The flagged connections are too old, or one too many. The station's law at the end looks at each
//! idle slot. Like the pool, it searches as soon as it is told to, inside the release that tells it.

#![cfg(loom)]

use millpond::IdleOrder;
use millpond::model::{Doubt, Flags, Found, Keeper, Line, Search};
use millpond_loom::{
    Census, Connection, ORDERS, Station, block_on, check, poll_once, set_home, thread,
};
use std::pin::pin;
use std::sync::Arc;

/// A thread that calls every connection too old.
fn invalidator(station: &Arc<Station>) -> thread::JoinHandle<()> {
    let station = station.clone();
    thread::spawn(move || station.invalidate())
}

/// The only connection comes back just when it is called too old.
///
/// Mutants seen to be caught: "a release does not compare the control word", "the alert
/// changes nothing", "an alert publishes no flags", "a release that sees an alert does not see the
/// flags".
#[test]
fn a_release_beside_an_invalidation_leaves_nothing_old() {
    for order in ORDERS {
        for home in [0, 1] {
            check(move || {
                let (station, lent) = Station::lent::<1>(2, order, &Census::default());
                let other = thread::spawn(move || {
                    set_home(home);
                    drop(lent);
                });
                station.invalidate();
                other.join().unwrap();
                station.assert_conserved();
                assert_eq!(station.core().counts().vacant, 1, "an old connection has stayed");
            });
        }
    }
}

/// The same, with the invalidation on the thread that is interrupted.
///
/// Mutants seen to be caught: "a flag does not publish what it is for", "whoever lowers a flag does
/// not see what it is for".
#[test]
fn an_invalidation_beside_a_release_leaves_nothing_old() {
    for order in ORDERS {
        check(move || {
            let (station, lent) = Station::lent::<1>(1, order, &Census::default());
            let other = invalidator(&station);
            drop(lent);
            other.join().unwrap();
            station.assert_conserved();
            assert_eq!(station.core().counts().vacant, 1, "an old connection has stayed");
        });
    }
}

/// Two come back, of which the second displaces the first from the hot place.
///
/// Mutant seen to be caught: "the alert changes nothing".
#[test]
fn a_slot_displaced_beside_an_invalidation_is_seen() {
    for order in ORDERS {
        check(move || {
            let (station, lent) = Station::lent::<2>(1, order, &Census::default());
            let other = invalidator(&station);
            drop(lent);
            other.join().unwrap();
            station.assert_conserved();
            assert_eq!(station.core().counts().vacant, 2, "an old connection has stayed");
        });
    }
}

/// A new connection comes to the shelf and moves the flagged one from the hot place, while the
/// search is on its way to it.
///
/// Mutants seen to be caught: "a release does not look at what it displaces", "no fence
/// after the alert", "a search begins before what was displaced is on its shelf".
#[test]
fn a_slot_displaced_before_a_search_comes_to_it_is_seen() {
    for order in ORDERS {
        check(move || {
            let (station, lent) = Station::lent::<2>(1, order, &Census::default());
            let [mut ending, resting] = lent;
            drop(resting);
            // A slot for the new one.
            drop(ending.recall().detach());
            let other = thread::spawn({
                let station = station.clone();
                move || {
                    if let Some(reservation) = station.reserve() {
                        drop(reservation.fill(station.connect()));
                    }
                }
            });
            station.invalidate();
            other.join().unwrap();
            station.assert_conserved();
        });
    }
}

/// An acquire that begins after the flags are raised gets nothing old, while the search is under way.
///
/// Mutant seen to be caught: "an acquire looks at no flags".
#[test]
fn an_acquire_beside_the_search_gets_nothing_old() {
    for order in ORDERS {
        check(move || {
            let (station, lent) = Station::lent::<2>(1, order, &Census::default());
            drop(lent);
            station.mark_old();
            let other = thread::spawn({
                let station = station.clone();
                move || match station.find() {
                    Found::Ready(loan) => {
                        assert!(station.is_new(loan.resource()), "it did not see the flag");
                    }
                    Found::Flagged(lease) => Station::doubt(lease, Doubt::Flagged),
                    Found::Nothing => {}
                }
            });
            station.alert_and_search();
            other.join().unwrap();
            station.assert_conserved();
            assert_eq!(station.core().counts().vacant, 2, "an old connection has stayed");
        });
    }
}

/// A caller that waits, and must be served with a new connection in the end.
///
/// Mutant seen to be caught: "a flag does not publish what it is for".
#[test]
fn whoever_parks_beside_an_invalidation_gets_something_new() {
    for order in [IdleOrder::Recent, IdleOrder::Lifo] {
        check(move || {
            let (station, lent) = Station::lent::<1>(1, order, &Census::default());
            let other = thread::spawn({
                let station = station.clone();
                move || station.acquire()
            });
            let invalidator = invalidator(&station);
            drop(lent);
            invalidator.join().unwrap();
            let kept = other.join().unwrap();
            drop(kept);
            station.assert_conserved();
        });
    }
}

/// A hand-off comes back from a waiter that leaves, beside the invalidation.
///
/// Mutant seen to be caught: "the alert changes nothing".
#[test]
fn a_cancelled_hand_off_beside_an_invalidation_is_seen() {
    check(|| {
        let (station, lent) = Station::lent::<1>(1, IdleOrder::Recent, &Census::default());
        let other;
        {
            let mut quitter = pin!(station.acquire_in(Line::General, usize::MAX));
            assert!(poll_once(quitter.as_mut()).is_pending());
            drop(lent);
            other = invalidator(&station);
        }
        other.join().unwrap();
        station.assert_conserved();
        assert_eq!(station.core().counts().vacant, 1, "an old connection has stayed");
    });
}

/// A walk that wants nothing holds a slot, unflagged, while the other search passes by.
///
/// Mutant seen to be caught: "no fence".
#[test]
fn a_slot_that_a_search_held_meanwhile_is_seen() {
    for order in ORDERS {
        check(move || {
            let (station, lent) = Station::lent::<2>(1, order, &Census::default());
            drop(lent);
            let other = invalidator(&station);
            let mut search = Search::new(&*station);
            while let Some(lease) = search.next(|_| false) {
                Station::doubt(lease, Doubt::Flagged);
            }
            other.join().unwrap();
            station.assert_conserved();
            assert_eq!(station.core().counts().vacant, 2, "an old connection has stayed");
        });
    }
}

/// A walk that takes a slot and restores it, as the pool's does with one that may stay.
///
/// Mutant seen to be caught: "no fence".
#[test]
fn a_slot_that_is_restored_meanwhile_is_seen() {
    for order in ORDERS {
        check(move || {
            let (station, lent) = Station::lent::<1>(1, order, &Census::default());
            drop(lent);
            let other = invalidator(&station);
            let mut search = Search::new(&*station);
            let mut first = true;
            while let Some(lease) = search.next(|_| first) {
                if lease.flags().has(Flags::LOOK) {
                    Station::doubt(lease, Doubt::Flagged);
                } else {
                    first = false;
                    search.restore(lease);
                }
            }
            other.join().unwrap();
            station.assert_conserved();
            assert_eq!(station.core().counts().vacant, 1, "an old connection has stayed");
        });
    }
}

/// A slot is flagged while a newcomer counts as a waiter but does not listen yet: whoever holds the
/// slot puts it down, and does not turn round until the flag is seen.
///
/// Mutant seen to be caught: "whoever puts down a flagged slot turns round for it".
#[test]
fn nobody_turns_round_for_a_flag_that_is_seen_later() {
    check(|| {
        let (station, lent) = Station::lent::<1>(1, IdleOrder::Recent, &Census::default());
        let other = thread::spawn({
            let station = station.clone();
            move || block_on(station.acquire_in(Line::General, usize::MAX)).map(drop)
        });
        let [loan]: [Connection; 1] = lent;
        let flagger = thread::spawn({
            let station = station.clone();
            move || station.mark_old()
        });
        drop(loan);
        flagger.join().unwrap();
        other.join().unwrap();
        station.alert_and_search();
        station.assert_conserved();
    });
}
