//! I4 and I7 for the lines: the high one, the reserved slots, the line that is full.

#![cfg(loom)]

use millpond::IdleOrder;
use millpond::model::{Keeper, Line, Size, State};
use millpond_loom::{Census, Connection, Station, block_on, check, poll_once, thread};
use std::pin::pin;
use std::sync::Arc;

/// Two slots, of which the first is reserved; both are lent: the reserved one, and the general one.
fn reserving(census: &Census) -> (Arc<Station>, Connection, Connection) {
    let size = Size { reserved: 1, ..Size::new(2, 1) };
    let station = Station::sized(size, IdleOrder::Recent, census);
    let general = station.open();
    assert!(station.reserve().is_none(), "a reserved slot was given away");
    let reserved = block_on(station.acquire_in(Line::High, usize::MAX)).expect("it is open");
    (station, reserved, general)
}

fn waiter(station: &Arc<Station>, line: Line) -> thread::JoinHandle<Connection> {
    let station = station.clone();
    thread::spawn(move || block_on(station.acquire_in(line, usize::MAX)).expect("the core is open"))
}

/// Nobody waits, and both lie idle: one for everybody, one for the high line.
fn assert_both_idle(station: &Arc<Station>) {
    let counts = station.core().counts();
    assert_eq!((counts.idle, counts.waiters), (2, 0), "I3: a slot is lost");
    let general = station.try_acquire().expect("I3: the general slot is lost");
    assert!(station.try_acquire().is_none(), "a reserved slot was given to anybody");
    let reserved = block_on(station.acquire_in(Line::High, usize::MAX));
    drop((general, reserved.expect("it is open")));
}

/// Mutant seen to be caught: "no fence".
#[test]
fn a_reserved_slot_finds_whoever_parks_in_the_high_line_meanwhile() {
    check(|| {
        let (station, reserved, general) = reserving(&Census::default());
        let other = waiter(&station, Line::High);
        drop(reserved);
        drop((other.join().unwrap(), general));
        assert_both_idle(&station);
    });
}

/// The same with the parts exchanged.
///
/// Mutant seen to be caught: "the arrivals are not compared".
#[test]
fn whoever_parks_in_the_high_line_finds_a_reserved_slot_that_comes_back_meanwhile() {
    check(|| {
        let (station, reserved, general) = reserving(&Census::default());
        let other = thread::spawn(move || drop(reserved));
        let kept = block_on(station.acquire_in(Line::High, usize::MAX));
        other.join().unwrap();
        drop((kept.expect("the core is open"), general));
        assert_both_idle(&station);
    });
}

/// The reserved connection ends just when somebody parks who may have its slot.
///
/// Mutant seen to be caught: "nobody hears of a vacant slot".
#[test]
fn a_reserved_slot_that_becomes_vacant_is_filled_for_whoever_parks_meanwhile() {
    check(|| {
        let (station, mut reserved, general) = reserving(&Census::default());
        let other = waiter(&station, Line::High);
        drop(reserved.recall().begin(State::Closing));
        drop((other.join().unwrap(), general));
        assert_both_idle(&station);
    });
}

/// The reserved slot comes back just when the core is closed, beside a high waiter or not.
///
/// Mutant seen to be caught: "what comes back after close stays".
#[test]
fn a_close_ends_a_reserved_slot_and_the_high_line() {
    for is_awaited in [false, true] {
        check(move || {
            let census = Census::default();
            let (station, reserved, general) = reserving(&census);
            let waiter = is_awaited.then(|| {
                let station = station.clone();
                thread::spawn(move || drop(block_on(station.acquire_in(Line::High, usize::MAX))))
            });
            let other = thread::spawn(move || drop(reserved));
            station.close();
            other.join().unwrap();
            waiter.map(|waiter| waiter.join().unwrap());
            drop(general);
            let counts = station.core().counts();
            assert_eq!((counts.vacant, counts.waiters), (2, 0), "I8: not all is vacant");
            assert_eq!(census.alive(), 0, "I8: a resource has outlived its pool");
        });
    }
}

/// Mutant seen to be caught: "a reserved slot goes to anybody".
#[test]
fn a_general_waiter_never_gets_a_reserved_slot() {
    check(|| {
        let (station, reserved, general) = reserving(&Census::default());
        // One use more than the reserved one, which tells them apart.
        drop(general);
        let general = station.try_acquire().expect("it is idle");
        let number = general.uses();
        let mut waiter = pin!(station.acquire_in(Line::General, usize::MAX));
        assert!(poll_once(waiter.as_mut()).is_pending());
        let other = thread::spawn(move || drop(reserved));
        // Nothing but this one serves it.
        drop(general);
        let loan = block_on(waiter).expect("the core is open");
        other.join().unwrap();
        assert_eq!(loan.uses(), number + 1, "it has got the reserved one");
        drop(loan);
        assert_both_idle(&station);
    });
}

/// A reserved slot is vacant, and a shrink is owed a general one: until that is gone there is no room.
///
/// Mutant seen to be caught: "a reserved slot is filled although a shrink is owed one".
#[test]
fn a_reserved_slot_is_filled_once_a_shrink_has_been_paid() {
    check(|| {
        let size = Size { reserved: 1, ..Size::new(3, 1) };
        let station = Station::sized(size, IdleOrder::Recent, &Census::default());
        let [kept, leaving] = [(); 2].map(|()| station.open());
        station.resize(2);
        let other = waiter(&station, Line::High);
        assert!(station.reserve().is_none(), "I2: three would be alive");
        drop(leaving);
        let reserved = other.join().unwrap();
        assert!(station.reserve().is_none());
        drop((reserved, kept));
        let counts = station.core().counts();
        assert_eq!((counts.idle, counts.spare, counts.waiters), (2, 1, 0));
    });
}

/// Two reserved slots are vacant, and a shrink is owed a general one. Somebody pays it who wanted to fill that one,
/// and gets one of the reserved ones; the other is for whoever parks meanwhile.
///
/// Mutant seen to be caught: "a reservation that pays what a shrink is owed tells nobody".
#[test]
fn a_reservation_that_pays_what_a_shrink_is_owed_has_the_reserved_slots_filled() {
    check(|| {
        let size = Size { reserved: 2, ..Size::new(4, 1) };
        let station = Station::sized(size, IdleOrder::Recent, &Census::default());
        let kept = station.open();
        let waiter = waiter(&station, Line::High);
        let other = thread::spawn({
            let station = station.clone();
            move || {
                // After the shrink it gets no general one, for which the waiter would have to wait.
                let has_shrunk = station.core().limit() == 3;
                station.reserve().filter(|_| has_shrunk)
            }
        });
        station.resize(3);
        let held = other.join().unwrap();
        drop((waiter.join().unwrap(), held, kept));
        let counts = station.core().counts();
        assert_eq!((counts.spare, counts.waiters), (1, 0));
    });
}

/// A slot is on its way to a high waiter that leaves, and goes on to a high one or to a general one.
///
/// Mutant seen to be caught: "a slot dropped on the way is lost".
#[test]
fn a_cancelled_high_waiters_slot_goes_on() {
    for (line, of_reserved) in [(Line::High, true), (Line::High, false), (Line::General, false)] {
        check(move || {
            let (station, reserved, general) = reserving(&Census::default());
            let other;
            let kept;
            {
                let mut quitter = pin!(station.acquire_in(Line::High, usize::MAX));
                assert!(poll_once(quitter.as_mut()).is_pending());
                other = waiter(&station, line);
                kept = if of_reserved {
                    drop(reserved);
                    general
                } else {
                    drop(general);
                    reserved
                };
            }
            drop((other.join().unwrap(), kept));
            assert_both_idle(&station);
        });
    }
}

/// A high waiter and a general one, and one general slot that comes back: the high one was first.
///
/// Mutant seen to be caught: "a general slot passes the high line by".
#[test]
fn the_high_line_comes_first() {
    check(|| {
        let (station, reserved, general) = reserving(&Census::default());
        let mut first = pin!(station.acquire_in(Line::General, usize::MAX));
        assert!(poll_once(first.as_mut()).is_pending());
        let mut high = pin!(station.acquire_in(Line::High, usize::MAX));
        assert!(poll_once(high.as_mut()).is_pending());
        let other = thread::spawn(move || drop(general));
        let served = block_on(high).expect("the core is open");
        other.join().unwrap();
        assert!(poll_once(first.as_mut()).is_pending(), "I9: overtaken");
        drop(served);
        drop((block_on(first), reserved));
        assert_both_idle(&station);
    });
}

/// Two newcomers and one place in line, and nothing comes back meanwhile: one waits, and is served in
/// the end.
///
/// Mutant seen to be caught: "two newcomers find the same room in line".
#[test]
fn of_two_newcomers_one_is_turned_away_from_a_line_of_one() {
    check(|| {
        let (station, [held]) = Station::lent::<1>(1, IdleOrder::Recent, &Census::default());
        let others = [(); 2].map(|()| {
            let station = station.clone();
            thread::spawn(move || {
                let mut newcomer =
                    Box::pin(async move { station.acquire_in(Line::General, 1).await });
                let waits = poll_once(newcomer.as_mut()).is_pending();
                // It keeps its place until both have come.
                waits.then_some(newcomer)
            })
        });
        let [first, second] = others.map(|other| other.join().unwrap());
        assert!(first.is_some() != second.is_some(), "not just one has found room in line");
        drop(held);
        drop(first.or(second).map(block_on));
        station.assert_conserved();
    });
}

/// One waits for certain; a newcomer is turned away just when the slot comes back, and the waiter
/// keeps what it gets.
///
/// Mutant seen to be caught: "a line is one longer".
#[test]
fn whoever_is_turned_away_takes_no_wake_along() {
    check(|| {
        let (station, [held]) = Station::lent::<1>(1, IdleOrder::Recent, &Census::default());
        let mut parked = pin!(station.acquire_in(Line::General, 1));
        assert!(poll_once(parked.as_mut()).is_pending());
        let newcomer = thread::spawn({
            let station = station.clone();
            move || poll_once(pin!(station.acquire_in(Line::General, 1))).is_pending()
        });
        assert!(poll_once(pin!(station.acquire_in(Line::General, 1))).is_ready(), "a longer line");
        drop(held);
        let kept = block_on(parked).expect("the core is open");
        newcomer.join().unwrap();
        drop(kept);
        station.assert_conserved();
    });
}

/// The only waiter leaves, one newcomer is turned away on its account, and another one comes.
///
/// Mutant seen to be caught: "whoever is turned away is counted for a moment".
#[test]
fn whoever_is_turned_away_takes_up_no_room_in_line() {
    check(|| {
        let (station, [held]) = Station::lent::<1>(1, IdleOrder::Recent, &Census::default());
        let mut parked = Box::pin(station.acquire_in(Line::General, 1));
        assert!(poll_once(parked.as_mut()).is_pending());
        let newcomer = thread::spawn({
            let station = station.clone();
            move || poll_once(pin!(station.acquire_in(Line::General, 1))).is_pending()
        });
        drop(parked);
        let waits = poll_once(pin!(station.acquire_in(Line::General, 1))).is_pending();
        assert!(newcomer.join().unwrap() || waits, "both are turned away from an empty line");
        drop(held);
        station.assert_conserved();
    });
}
