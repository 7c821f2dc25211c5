//! I2, bounded, while the bound changes: at rest as many slots are in service as there are to be, the
//! others are spare, and nobody who waits has missed one.
//!
//! The station's law at the end compares the slots in service with the limit.

#![cfg(loom)]

use millpond::IdleOrder;
use millpond::model::{Keeper, Size, State, Trial};
use millpond_loom::{Census, ORDERS, Station, check, thread};
use std::sync::Arc;

/// A station with room for two, and so many of them in service.
fn sized(limit: usize, order: IdleOrder) -> Arc<Station> {
    Station::sized(Size { limit, ..Size::new(2, 1) }, order, &Census::default())
}

/// A thread that changes the size.
fn resizer(station: &Arc<Station>, size: usize) -> thread::JoinHandle<()> {
    let station = station.clone();
    thread::spawn(move || station.resize(size))
}

/// As many in service as there are to be, the rest spare.
fn assert_size(station: &Arc<Station>, size: usize) {
    station.assert_conserved();
    let counts = station.core().counts();
    assert_eq!((counts.in_service(), counts.spare), (size, 2 - size));
}

/// Mutant seen to be caught: "a claimed slot stays in service".
#[test]
fn a_shrink_beside_a_release_ends_one_connection() {
    for order in ORDERS {
        check(move || {
            let (station, lent) = Station::lent::<2>(1, order, &Census::default());
            let [resting, returning] = lent;
            drop(resting);
            let other = resizer(&station, 1);
            drop(returning);
            other.join().unwrap();
            assert_size(&station, 1);
        });
    }
}

/// Mutant seen to be caught: "a claimed slot stays in service".
#[test]
fn a_shrink_beside_a_hand_off_serves_the_waiter() {
    check(|| {
        let (station, [held, returning]) =
            Station::lent::<2>(1, IdleOrder::Recent, &Census::default());
        let waiter = thread::spawn({
            let station = station.clone();
            move || station.acquire()
        });
        let other = resizer(&station, 1);
        drop(returning);
        other.join().unwrap();
        drop(held);
        drop(waiter.join().unwrap());
        assert_size(&station, 1);
    });
}

/// Mutant seen to be caught: "a dropped reservation keeps its slot".
#[test]
fn a_shrink_beside_a_failed_connect_takes_its_slot() {
    check(|| {
        let station = sized(2, IdleOrder::Recent);
        let kept = station.open();
        let failing = station.reserve().expect("a slot is vacant");
        let other = resizer(&station, 1);
        drop(failing);
        other.join().unwrap();
        drop(kept);
        assert_size(&station, 1);
    });
}

/// Mutant seen to be caught: "the alert changes nothing".
#[test]
fn a_shrink_beside_a_connect_ends_one_connection() {
    check(|| {
        let station = sized(2, IdleOrder::Recent);
        let kept = station.open();
        let connecting = station.reserve().expect("a slot is vacant");
        let other = resizer(&station, 1);
        drop(connecting.fill(station.connect()));
        other.join().unwrap();
        drop(kept);
        assert_size(&station, 1);
    });
}

/// Mutant seen to be caught: "a release looks at no flags".
#[test]
fn a_shrink_beside_a_detach_takes_its_slot() {
    check(|| {
        let (station, [mut leaving, kept]) =
            Station::lent::<2>(1, IdleOrder::Recent, &Census::default());
        let other = resizer(&station, 1);
        drop(leaving.recall().detach());
        other.join().unwrap();
        drop(kept);
        assert_size(&station, 1);
    });
}

/// A slot whose flag went with its resource is up for grabs while the surplus is still there.
///
/// Mutant seen to be caught: "what becomes vacant is not weighed against the limit".
#[test]
fn a_reservation_takes_nothing_that_a_shrink_is_owed() {
    check(|| {
        let (station, [mut leaving, kept]) =
            Station::lent::<2>(1, IdleOrder::Recent, &Census::default());
        station.resize(1);
        let other = thread::spawn({
            let station = station.clone();
            move || {
                if let Some(reservation) = station.reserve() {
                    drop(reservation.fill(station.connect()));
                }
            }
        });
        drop(leaving.recall().detach());
        other.join().unwrap();
        let counts = station.core().counts();
        assert_eq!((counts.in_use, counts.spare), (1, 1), "a connection too many");
        drop(kept);
        assert_size(&station, 1);
    });
}

/// A shrink has claimed a connection that is still being closed when the pool grows again.
///
/// Mutant seen to be caught: "no fence behind a spare slot".
#[test]
fn a_growth_beside_a_closing_slot_takes_it_back() {
    check(|| {
        let (station, [mut closing, kept]) =
            Station::lent::<2>(1, IdleOrder::Recent, &Census::default());
        station.resize(1);
        let trial = closing.recall().begin_leaving().expect("there is one too many");
        let other = resizer(&station, 2);
        drop(trial);
        other.join().unwrap();
        drop(kept);
        assert_size(&station, 2);
    });
}

/// The same with a spare slot at hand: as long as the claimed one is not gone, there is no room.
///
/// Mutants seen to be caught: "a claimed slot counts as gone", "a slot that is wanted again goes".
#[test]
fn a_growth_opens_nothing_for_a_slot_that_is_still_closing() {
    check(|| {
        let size = Size { limit: 2, ..Size::new(3, 1) };
        let station = Station::sized(size, IdleOrder::Recent, &Census::default());
        let [mut closing, kept] = [(); 2].map(|()| station.open());
        station.resize(1);
        let trial = closing.recall().begin_leaving().expect("there is one too many");
        let other = thread::spawn({
            let station = station.clone();
            move || {
                assert!(
                    station.reserve().is_none(),
                    "three would be alive where there were never more than two"
                );
                let in_service = station.core().counts().in_service();
                assert_eq!(in_service, 2, "a cap over several pools goes by that");
                drop(trial);
            }
        });
        station.resize(2);
        other.join().unwrap();
        drop(kept);
        station.assert_conserved();
        assert_eq!(station.core().counts().in_service(), 2);
    });
}

/// Mutant seen to be caught: "a surplus is claimed twice".
#[test]
fn a_surplus_that_is_claimed_ends_nothing_else() {
    check(|| {
        let (station, lent) = Station::lent::<2>(1, IdleOrder::Recent, &Census::default());
        station.resize(1);
        let [mut here, there] = lent.map(|mut loan| {
            move || {
                let mut lease = loan.recall();
                let trial = lease.begin_leaving();
                (trial, lease)
            }
        });
        let there = thread::spawn(there);
        let (ours, theirs) = (here(), there.join().unwrap());
        assert!(ours.0.is_some() != theirs.0.is_some(), "one is too many, and one is claimed");
        drop((ours, theirs));
        assert_size(&station, 1);
    });
}

/// Mutant seen to be caught: "a resize moves no slots".
#[test]
fn a_growth_serves_whoever_parks_meanwhile() {
    check(|| {
        let station = sized(1, IdleOrder::Recent);
        let held = station.open();
        let waiter = thread::spawn({
            let station = station.clone();
            move || station.acquire()
        });
        station.resize(2);
        let theirs = waiter.join().unwrap();
        drop((held, theirs));
        assert_size(&station, 2);
    });
}

/// A shrink is made up for by a growth, beside somebody who parks and wants the vacant slot.
///
/// Mutant seen to be caught: "no fence behind a spare slot".
#[test]
fn a_shrink_and_a_growth_at_once_lose_nothing() {
    check(|| {
        let station = sized(2, IdleOrder::Recent);
        let held = station.open();
        let grower = thread::spawn({
            let station = station.clone();
            move || {
                station.resize(2);
                station.acquire()
            }
        });
        station.resize(1);
        // Whoever came last has the say; a waiter behind a shrink gets what is given up here.
        drop(held);
        drop(grower.join().unwrap());
        assert_size(&station, station.core().limit());
    });
}

/// A slot is vacant and a connection comes back, which is the one that goes: while it is closed, nobody opens
/// another one in the vacant slot.
///
/// Mutant seen to be caught: "what is claimed counts as gone to whoever opens another one".
#[test]
fn a_shrink_beside_a_claim_opens_nothing_before_that_is_gone() {
    check(|| {
        let station = sized(2, IdleOrder::Recent);
        let mut leaving = station.open();
        let other = thread::spawn(move || {
            let mut lease = leaving.recall();
            (lease.begin_leaving(), lease)
        });
        station.resize(1);
        let ending = other.join().unwrap();
        assert!(station.reserve().is_none(), "I2: two would be alive where one was out");
        drop(ending);
        assert_size(&station, 1);
    });
}

/// One connection that has to go is being closed, and one that was being opened has failed meanwhile.
fn closing_beside_a_vacant_slot(census: &Census) -> (Arc<Station>, Trial<Arc<Station>>) {
    let size = Size { limit: 2, ..Size::new(2, 1) };
    let station = Station::sized(size, IdleOrder::Recent, census);
    let mut leaving = station.open();
    let failing = station.reserve().expect("a slot is vacant");
    station.resize(1);
    let trial = leaving.recall().begin_leaving().expect("there is one too many");
    drop(failing);
    assert_eq!(station.core().counts().vacant, 1);
    (station, trial)
}

/// Mutant seen to be caught: "what is claimed counts as gone to whoever opens another one".
#[test]
fn nothing_is_opened_before_what_is_claimed_is_gone() {
    check(|| {
        let census = Census::default();
        let (station, trial) = closing_beside_a_vacant_slot(&census);
        let other = thread::spawn({
            let station = station.clone();
            move || {
                if let Some(reservation) = station.reserve() {
                    assert_eq!(census.alive(), 0, "I2: two would be alive");
                    drop(reservation);
                }
            }
        });
        drop(trial);
        other.join().unwrap();
        assert_size(&station, 1);
    });
}

/// It is gone just when somebody finds that the vacant slot may not be filled yet, and puts it back.
///
/// Mutant seen to be caught: "a slot that may not be filled yet is put back without another look".
#[test]
fn whoever_parks_gets_the_slot_that_was_not_to_be_filled_before() {
    check(|| {
        let (station, trial) = closing_beside_a_vacant_slot(&Census::default());
        let waiter = thread::spawn({
            let station = station.clone();
            move || drop(station.acquire())
        });
        let other = thread::spawn(move || drop(trial));
        drop(station.reserve());
        other.join().unwrap();
        waiter.join().unwrap();
        assert_size(&station, 1);
    });
}

/// One shrinks and one grows, and there are spare slots to grow into: whoever has the last word, there
/// were never to be more than two.
///
/// Mutant seen to be caught: "a resize moves no slots".
#[test]
fn two_resizes_at_once_let_no_more_live_than_the_larger_one() {
    check(|| {
        let size = Size { limit: 2, ..Size::new(3, 1) };
        let station = Station::sized(size, IdleOrder::Recent, &Census::default());
        let other = resizer(&station, 1);
        station.resize(2);
        let opened = [(); 3].map(|()| station.reserve());
        assert!(opened.iter().flatten().count() <= 2, "I2: three may be alive");
        drop(opened);
        other.join().unwrap();
        station.assert_conserved();
    });
}

/// The shrinker holds the only vacant slot while somebody else ends a connection and a waiter parks.
///
/// Mutant seen to be caught: "a slot that need not go any more is lost".
#[test]
fn a_shrink_that_others_pay_gives_back_what_it_took() {
    check(|| {
        let station = sized(2, IdleOrder::Recent);
        let mut paying = station.open();
        let payer = thread::spawn({
            let station = station.clone();
            move || {
                if let Some(trial) = paying.recall().begin_leaving() {
                    drop(trial);
                }
                // One slot is left in either case.
                station.acquire()
            }
        });
        station.resize(1);
        drop(payer.join().unwrap());
        assert_size(&station, 1);
    });
}

/// A connection is closed and another brought in its slot, beside a shrink: the slot keeps its flag.
///
/// Mutant seen to be caught: "a release does not compare the control word".
#[test]
fn a_renewed_slot_beside_a_shrink_is_one_of_them() {
    check(|| {
        let (station, [mut ending, kept]) =
            Station::lent::<2>(1, IdleOrder::Recent, &Census::default());
        let other = resizer(&station, 1);
        let mut trial = ending.recall().begin(State::Closing);
        drop(trial.take());
        drop(trial.renew().fill(station.connect()));
        other.join().unwrap();
        drop(kept);
        assert_size(&station, 1);
    });
}
