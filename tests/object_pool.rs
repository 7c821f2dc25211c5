//! `ObjectPool`: without any runtime, on any executor, on plain threads.

mod support;

use millpond::{
    AcquireObjectError, AddError, ConfigError, IdleOrder, Object, ObjectPool, OwnedObject,
    TryAcquireError, WeakObjectPool,
};
use std::future::{Future, pending, ready};
use std::ops::DerefMut;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};
use support::{
    PATIENCE, Random, SLACK, Sampler, Wakes, eventually_blocking, join, poll_once, poll_with,
};

const ORDERS: [IdleOrder; 3] = [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo];

/// Counts the objects that are alive.
#[derive(Clone, Debug, Default)]
struct Tally(Arc<Numbers>);

#[derive(Debug, Default)]
struct Numbers {
    made: AtomicUsize,
    live: AtomicUsize,
    most: AtomicUsize,
    /// The next `make` panics.
    fails: AtomicBool,
}

impl Tally {
    fn make(&self) -> Thing {
        assert!(!self.0.fails.swap(false, Ordering::SeqCst), "scripted panic in make");
        let live = self.0.live.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(live, Ordering::SeqCst);
        Thing { id: self.0.made.fetch_add(1, Ordering::SeqCst), note: 0, tally: self.clone() }
    }

    /// `make`, as a function that a pool can keep.
    fn maker(&self) -> impl Fn() -> Thing + Send + Sync + 'static {
        let tally = self.clone();
        move || tally.make()
    }

    fn made(&self) -> usize {
        self.0.made.load(Ordering::SeqCst)
    }

    fn live(&self) -> usize {
        self.0.live.load(Ordering::SeqCst)
    }

    fn fail_once(&self) {
        self.0.fails.store(true, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct Thing {
    /// 0 for the first one.
    id: usize,
    note: usize,
    tally: Tally,
}

impl Drop for Thing {
    fn drop(&mut self) {
        self.tally.0.live.fetch_sub(1, Ordering::SeqCst);
    }
}

fn pool_of(capacity: usize) -> (ObjectPool<Thing>, Tally) {
    let tally = Tally::default();
    (ObjectPool::new(capacity, tally.maker()), tally)
}

/// Vacant, idle, in use, waiters.
#[track_caller]
fn assert_counts<T>(pool: &ObjectPool<T>, expected: (usize, usize, usize, usize)) {
    let counts = pool.counts();
    assert_eq!((counts.vacant, counts.idle, counts.in_use, counts.waiters), expected, "{counts:?}");
    assert_eq!(counts.in_service(), pool.capacity(), "{counts:?}");
}

fn panics<T>(what: impl FnOnce() -> T) -> String {
    let Err(panic) = catch_unwind(AssertUnwindSafe(what)) else { panic!("it did not panic") };
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).expect("a message")
}

#[track_caller]
fn now<F: Future + ?Sized>(future: Pin<&mut F>) -> F::Output {
    match poll_once(future) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("not ready"),
    }
}

// ---- construction ----

#[test]
fn a_capacity_or_shards_out_of_range_are_errors_with_field_value_and_rule() {
    type Refused = Result<ObjectPool<u8>, ConfigError>;
    let cases: [(Refused, &str, &str, &str); 6] = [
        (ObjectPool::builder(0).build(|| 0), "capacity", "0", "must be from 1 to 1048576"),
        (
            ObjectPool::builder(1_048_577).build(|| 0),
            "capacity",
            "1048577",
            "must be from 1 to 1048576",
        ),
        (
            ObjectPool::builder(4).shards(0).build(|| 0),
            "shards",
            "0",
            "must be a power of two from 1 to 256",
        ),
        (
            ObjectPool::builder(4).shards(3).build(|| 0),
            "shards",
            "3",
            "must be a power of two from 1 to 256",
        ),
        (
            ObjectPool::builder(4).shards(512).build_from([]),
            "shards",
            "512",
            "must be a power of two from 1 to 256",
        ),
        (
            ObjectPool::builder(2).build_from([1, 2, 3]),
            "capacity",
            "2",
            "must be at least the number of objects",
        ),
    ];
    for (refused, field, value, rule) in cases {
        let error = refused.expect_err(field);
        assert_eq!((error.field(), error.value(), error.rule()), (field, value, rule));
        assert_eq!(error.to_string(), format!("{field} is {value}, but it {rule}"));
    }
}

#[test]
fn what_the_builder_refuses_makes_new_and_from_iter_panic() {
    let message = panics(|| ObjectPool::new(0, || 0));
    assert_eq!(message, "capacity is 0, but it must be from 1 to 1048576");
    let message = panics(|| std::iter::empty::<u8>().collect::<ObjectPool<u8>>());
    assert_eq!(message, "capacity is 0, but it must be from 1 to 1048576");
}

#[test]
fn a_refused_build_calls_make_never_and_drops_the_objects() {
    let tally = Tally::default();
    assert!(ObjectPool::builder(0).build(tally.maker()).is_err());
    assert_eq!(tally.made(), 0);
    assert!(ObjectPool::builder(2).build_from((0..3).map(|_| tally.make())).is_err());
    assert_eq!((tally.made(), tally.live()), (3, 0));
}

#[test]
fn a_make_that_panics_while_building_leaves_nothing_behind() {
    let tally = Tally::default();
    let make = {
        let tally = tally.clone();
        move || {
            assert!(tally.made() < 3, "no fourth");
            tally.make()
        }
    };
    assert_eq!(panics(|| ObjectPool::new(5, make)), "no fourth");
    assert_eq!((tally.made(), tally.live()), (3, 0));
}

#[test]
fn a_new_pool_is_full_of_made_objects() {
    let (pool, tally) = pool_of(7);
    assert_counts(&pool, (0, 7, 0, 0));
    assert_eq!(tally.made(), 7);
    let clone = pool.clone();
    drop(pool);
    assert_counts(&clone, (0, 7, 0, 0));
    drop(clone);
    assert_eq!(tally.live(), 0);
}

#[test]
fn from_iter_has_exactly_these_objects() {
    let pool: ObjectPool<u32> = (10..13).collect();
    assert_eq!(pool.capacity(), 3);
    let all: Vec<_> = (0..3).map(|_| pool.try_acquire().unwrap()).collect();
    let mut numbers: Vec<_> = all.iter().map(|number| **number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [10, 11, 12]);
    drop(all);
    assert_counts(&pool, (0, 3, 0, 0));
}

#[test]
fn build_from_leaves_the_other_places_vacant() {
    let pool = ObjectPool::builder(5).build_from(["a", "b"]).unwrap();
    assert_counts(&pool, (3, 2, 0, 0));
}

#[test]
fn pools_and_guards_may_go_to_other_threads_and_are_small() {
    fn everywhere<T: Send + Sync + 'static>() {}
    fn of_future<F: Future + Send>(_: &F) {}
    everywhere::<ObjectPool<Vec<u8>>>();
    everywhere::<Object<'static, Vec<u8>>>();
    everywhere::<OwnedObject<Vec<u8>>>();
    everywhere::<WeakObjectPool<Vec<u8>>>();
    // An object that is only `Send` makes the pool `Sync` all the same: one thread has it at a time.
    everywhere::<ObjectPool<std::cell::Cell<u8>>>();
    let pool = ObjectPool::new(1, || 0);
    of_future(&pool.acquire());
    of_future(&pool.acquire_owned());
    of_future(&pool.acquire_until(pending::<()>()));
    assert_eq!((size_of::<Object<'_, u8>>(), size_of::<OwnedObject<u8>>()), (16, 16));
    assert_eq!(size_of::<ObjectPool<u8>>(), 16);
    let sizes = [
        size_of_val(&pool.acquire()),
        size_of_val(&pool.acquire_owned()),
        size_of_val(&pool.acquire_until(pending::<()>())),
    ];
    eprintln!("{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= LARGEST_FUTURE), "{sizes:?}");
}

/// The largest acquire future when this was written.
const LARGEST_FUTURE: usize = 248;

// ---- acquire and release ----

/// What holds for borrowed and owned guards alike.
macro_rules! guard_tests {
    ($module:ident, $acquire:ident, $name:literal) => {
        mod $module {
            use super::*;

            #[test]
            fn as_many_as_there_are_succeed_and_the_next_one_waits() {
                for order in ORDERS {
                    let tally = Tally::default();
                    let pool = ObjectPool::builder(5).order(order).build(tally.maker()).unwrap();
                    let mut held: Vec<_> =
                        (0..5).map(|_| now(pin!(pool.$acquire())).unwrap()).collect();
                    assert_counts(&pool, (0, 0, 5, 0));
                    let mut next = pin!(pool.$acquire());
                    assert!(poll_once(next.as_mut()).is_pending());
                    assert_counts(&pool, (0, 0, 5, 1));
                    let id = held[2].id;
                    drop(held.remove(2));
                    assert_counts(&pool, (0, 0, 5, 0));
                    assert_eq!(now(next.as_mut()).unwrap().id, id);
                    drop(held);
                    assert_counts(&pool, (0, 5, 0, 0));
                    assert_eq!(tally.made(), 5);
                }
            }

            #[test]
            fn a_guard_stands_for_its_object() {
                let (pool, _) = pool_of(1);
                let mut thing = pollster::block_on(pool.$acquire()).unwrap();
                thing.note = 7;
                let as_ref: &Thing = thing.as_ref();
                assert_eq!(as_ref.note, 7);
                let as_mut: &mut Thing = thing.as_mut();
                as_mut.note = 8;
                let debug = format!("{thing:?}");
                assert!(debug.starts_with(concat!($name, "(Thing")), "{debug}");
                drop(thing);
                assert_eq!(pool.try_acquire().unwrap().note, 8);
            }

            #[test]
            fn after_a_detach_the_waiter_gets_a_newly_made_object() {
                let (pool, tally) = pool_of(1);
                let held = pollster::block_on(pool.$acquire()).unwrap();
                let (wakes, waker) = Wakes::new();
                let mut waiter = pin!(pool.$acquire());
                assert!(poll_with(waiter.as_mut(), &waker).is_pending());
                let thing = held.detach();
                assert_eq!(wakes.count(), 1);
                let other = now(waiter.as_mut()).unwrap();
                assert_eq!((thing.id, other.id, tally.made(), tally.live()), (0, 1, 2, 2));
                drop(other);
                assert_counts(&pool, (0, 1, 0, 0));
            }

            #[test]
            fn after_a_detach_the_next_one_gets_a_newly_made_object() {
                let (pool, tally) = pool_of(1);
                drop(pollster::block_on(pool.$acquire()).unwrap().detach());
                assert_counts(&pool, (1, 0, 0, 0));
                assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
                assert_eq!(now(pin!(pool.$acquire())).unwrap().id, 1);
                assert_counts(&pool, (0, 1, 0, 0));
                assert_eq!((tally.made(), tally.live()), (2, 1));
            }

            #[test]
            fn an_object_whose_holder_panics_is_replaced() {
                let (pool, tally) = pool_of(1);
                panics(|| {
                    let _thing = pollster::block_on(pool.$acquire()).unwrap();
                    panic!("the holder panics");
                });
                assert_counts(&pool, (1, 0, 0, 0));
                assert_eq!((tally.made(), tally.live()), (1, 0));
                assert_eq!(pollster::block_on(pool.$acquire()).unwrap().id, 1);
                assert_counts(&pool, (0, 1, 0, 0));
            }

            #[test]
            fn a_holder_that_panics_wakes_the_waiter() {
                let (pool, _) = pool_of(1);
                let held = pollster::block_on(pool.$acquire()).unwrap();
                let (wakes, waker) = Wakes::new();
                let mut waiter = pin!(pool.$acquire());
                assert!(poll_with(waiter.as_mut(), &waker).is_pending());
                panics(move || {
                    let _held = held;
                    panic!("the holder panics");
                });
                assert_eq!(wakes.count(), 1);
                assert_eq!(now(waiter.as_mut()).unwrap().id, 1);
            }

            #[test]
            #[allow(clippy::mem_forget)]
            fn a_forgotten_guard_costs_one_place() {
                let (pool, tally) = pool_of(2);
                std::mem::forget(pollster::block_on(pool.$acquire()).unwrap());
                assert_counts(&pool, (0, 1, 1, 0));
                drop(pollster::block_on(pool.$acquire()).unwrap());
                pool.close();
                assert_counts(&pool, (1, 0, 1, 0));
                assert_eq!(tally.live(), 1);
            }
        }
    };
}

guard_tests!(borrowed, acquire, "Object");
guard_tests!(owned, acquire_owned, "OwnedObject");

#[test]
fn an_owned_object_outlives_every_handle() {
    type Acquire = fn(&ObjectPool<Thing>) -> OwnedObject<Thing>;
    let ways: [Acquire; 4] = [
        |pool| pollster::block_on(pool.acquire_owned()).unwrap(),
        |pool| pool.try_acquire_owned().unwrap(),
        |pool| pool.acquire_blocking_owned().unwrap(),
        |pool| pool.acquire_blocking_owned_timeout(Duration::ZERO).unwrap(),
    ];
    for acquire in ways {
        let (pool, tally) = pool_of(2);
        let mut thing = acquire(&pool);
        drop(pool);
        thing.note = 4;
        assert_eq!(tally.live(), 1, "the idle one is gone with the last handle");
        assert_eq!(thing.note, 4);
        drop(join(thread::spawn(move || thing)));
        assert_eq!(tally.live(), 0);
    }
}

#[test]
fn a_weak_handle_keeps_neither_the_pool_open_nor_its_objects() {
    let (pool, tally) = pool_of(1);
    let weak = pool.downgrade();
    assert_eq!(format!("{weak:?}"), "WeakObjectPool");
    let again = weak.clone().upgrade().expect("there is a handle");
    drop(pool);
    assert!(!again.is_closed(), "what was upgraded is a handle like any other");
    assert!(again.try_acquire().is_ok());
    let held = again.try_acquire_owned().unwrap();
    drop(again);
    assert!(weak.upgrade().is_none(), "a guard is no handle");
    drop(held);
    assert_eq!(tally.live(), 0);
}

/// Panics when it is dropped.
struct Bomb(Arc<AtomicUsize>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("scripted panic in drop");
    }
}

#[test]
fn a_reset_whose_panic_leaves_another_one_behind_keeps_no_place() {
    let (dropped, fails) = (Arc::<AtomicUsize>::default(), AtomicBool::new(true));
    let pool = ObjectPool::builder(1).reset({
        let dropped = dropped.clone();
        move |_: &mut u8| {
            if fails.swap(false, Ordering::SeqCst) {
                panic_any(Bomb(dropped.clone()));
            }
            true
        }
    });
    let pool = pool.build(|| 0).unwrap();
    drop(pool.try_acquire().unwrap());
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert!(pool.acquire_blocking_timeout(PATIENCE).is_ok());
}

#[test]
fn objects_that_panic_when_they_are_dropped_harm_nobody_when_the_last_handle_goes() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let pool_of = |capacity| {
        let dropped = dropped.clone();
        ObjectPool::new(capacity, move || Bomb(dropped.clone()))
    };
    let quietly = |what: &mut dyn FnMut()| {
        catch_unwind(AssertUnwindSafe(what)).expect("it panics");
        dropped.swap(0, Ordering::SeqCst)
    };
    for order in ORDERS {
        let build = |capacity| {
            let dropped = dropped.clone();
            ObjectPool::builder(capacity).order(order).build(move || Bomb(dropped.clone())).unwrap()
        };
        // One alone comes first: of several, the second panic of a drop aborts the process.
        for capacity in [1, 3] {
            let mut pool = Some(build(capacity));
            assert_eq!(quietly(&mut || drop(pool.take())), capacity);
        }
    }
    // The guard is the last to go.
    let pool = pool_of(2);
    let mut guard = Some(pollster::block_on(pool.acquire_owned()).unwrap());
    let mut pool = Some(pool);
    assert_eq!(quietly(&mut || drop(pool.take())), 1);
    assert_eq!(quietly(&mut || drop(guard.take())), 1);
}

#[test]
fn the_last_handle_closes_the_pool_for_whoever_waits_without_one() {
    let (pool, tally) = pool_of(1);
    let held = pollster::block_on(pool.acquire_owned()).unwrap();
    let clone = pool.clone();
    let mut waiter = pin!(pool.acquire_owned());
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(pool);
    assert!(poll_once(waiter.as_mut()).is_pending(), "there is another handle");
    drop(clone);
    assert!(matches!(now(waiter.as_mut()), Err(AcquireObjectError::Closed)));
    drop(held);
    assert_eq!(tally.live(), 0);
}

#[test]
fn try_acquire_says_empty_and_closed_and_never_makes_one() {
    let (pool, tally) = pool_of(1);
    let held = pool.try_acquire().unwrap();
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
    assert_eq!(pool.try_acquire_owned().unwrap_err(), TryAcquireError::Empty);
    drop(held.detach());
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
    assert_eq!(pool.try_acquire_owned().unwrap_err(), TryAcquireError::Empty);
    assert_eq!(tally.made(), 1);
    pool.close();
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Closed);
    assert_eq!(pool.try_acquire_owned().unwrap_err(), TryAcquireError::Closed);
}

#[test]
fn try_acquire_never_overtakes_a_parked_waiter() {
    for order in ORDERS {
        let pool = ObjectPool::builder(1).order(order).build(|| 0).unwrap();
        let held = pool.try_acquire().unwrap();
        let mut waiter = pin!(pool.acquire());
        assert!(poll_once(waiter.as_mut()).is_pending());
        drop(held);
        assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
        drop(now(waiter.as_mut()).unwrap());
        assert!(pool.try_acquire().is_ok());
    }
}

#[test]
fn the_orders_are_what_they_say() {
    for shards in [1, 4] {
        for (order, expected) in [
            (IdleOrder::Recent, [4, 0, 1, 2, 3]),
            (IdleOrder::Fifo, [0, 1, 2, 3, 4]),
            (IdleOrder::Lifo, [4, 3, 2, 1, 0]),
        ] {
            let pool = ObjectPool::builder(5).order(order).shards(shards).build_from(0..5).unwrap();
            let mut held: Vec<_> = (0..5).map(|_| pool.try_acquire().unwrap()).collect();
            held.sort_by_key(|number| **number);
            held.into_iter().for_each(drop);
            let again: Vec<_> = (0..5).map(|_| pool.try_acquire().unwrap()).collect();
            let numbers: Vec<_> = again.iter().map(|number| **number).collect();
            assert_eq!(numbers, expected, "{order:?}");
        }
    }
}

#[test]
fn with_one_shard_an_order_is_the_same_whichever_threads_release() {
    for (order, expected) in [
        (IdleOrder::Recent, [3, 3, 3, 3]),
        (IdleOrder::Fifo, [0, 1, 2, 3]),
        (IdleOrder::Lifo, [3, 3, 3, 3]),
    ] {
        let pool = ObjectPool::builder(4).order(order).shards(1).build_from(0..4).unwrap();
        let mut held: Vec<_> = (0..4).map(|_| pool.try_acquire().unwrap()).collect();
        held.sort_by_key(|number| **number);
        for object in held {
            thread::scope(|scope| scope.spawn(|| drop(object)).join().unwrap());
        }
        assert_eq!([(); 4].map(|()| *pool.try_acquire().unwrap()), expected, "{order:?}");
    }
}

#[test]
fn a_pool_of_one_object_serves_all_who_come() {
    for order in ORDERS {
        let pool = ObjectPool::builder(1).order(order).build(|| 0_u64).unwrap();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let pool = pool.clone();
                thread::spawn(move || {
                    for _ in 0..2000 {
                        // Two steps, between which nobody else may come.
                        let mut number = pool.acquire_blocking_timeout(PATIENCE).unwrap();
                        let before = *number;
                        *number = before + 1;
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(join);
        assert_eq!(*pool.try_acquire().unwrap(), 8000);
    }
}

// ---- add and reset ----

#[test]
fn add_to_a_full_pool_gives_the_object_back() {
    let pool = ObjectPool::builder(2).build_from([String::from("a")]).unwrap();
    pool.add("b".into()).unwrap();
    let error = pool.add("c".into()).unwrap_err();
    assert!(matches!(&error, AddError::Full(text) if text == "c"));
    assert_eq!(
        (error.to_string(), format!("{error:?}")),
        ("the pool is full".into(), "Full(..)".into())
    );
    assert_eq!(error.into_inner(), "c");
    // What is in use has its place.
    let held = pool.try_acquire().unwrap();
    assert!(matches!(pool.add("d".into()), Err(AddError::Full(text)) if text == "d"));
    drop(held.detach());
    pool.add("d".into()).unwrap();
    assert_counts(&pool, (0, 2, 0, 0));
}

#[test]
fn add_to_a_closed_pool_gives_the_object_back() {
    let pool = ObjectPool::builder(2).build_from([String::from("a")]).unwrap();
    pool.close();
    let error = pool.add("b".into()).unwrap_err();
    assert!(matches!(&error, AddError::Closed(text) if text == "b"));
    assert_eq!(error.to_string(), "the pool is closed");
    assert_eq!(error.into_inner(), "b");
    assert_counts(&pool, (2, 0, 0, 0));
}

#[test]
fn an_added_object_goes_to_the_first_waiter() {
    let pool = ObjectPool::builder(2).shards(1).build_from([]).unwrap();
    let (mut first, mut second) = (pin!(pool.acquire()), pin!(pool.acquire()));
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    pool.add(1).unwrap();
    assert!(poll_once(second.as_mut()).is_pending());
    let one = now(first.as_mut()).unwrap();
    pool.add(2).unwrap();
    assert_eq!((*one, *now(second.as_mut()).unwrap()), (1, 2));
}

#[test]
fn reset_prepares_an_object_for_its_next_user() {
    let pool = ObjectPool::builder(1)
        .reset(|text: &mut String| {
            text.clear();
            true
        })
        .build(String::new)
        .unwrap();
    let mut held = pool.try_acquire().unwrap();
    held.push_str("left over");
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(held);
    let mut text = now(waiter.as_mut()).unwrap();
    assert_eq!(*text, "");
    text.push_str("again");
    drop(text);
    assert_eq!(*pool.try_acquire().unwrap(), "");
}

#[test]
fn an_object_whose_reset_says_no_or_panics_is_dropped_and_a_new_one_is_made() {
    let tally = Tally::default();
    let pool = ObjectPool::builder(1)
        .reset(|thing: &mut Thing| {
            assert_ne!(thing.note, 13, "scripted panic in reset");
            thing.note != 1
        })
        .build(tally.maker())
        .unwrap();
    for (made, note) in [(1, 1), (2, 13), (3, 1)] {
        let mut held = pollster::block_on(pool.acquire()).unwrap();
        assert_eq!(held.id, made - 1);
        held.note = note;
        drop(held);
        assert_counts(&pool, (1, 0, 0, 0));
        assert_eq!((tally.made(), tally.live()), (made, 0));
    }
    let mut held = pollster::block_on(pool.acquire()).unwrap();
    held.note = 13;
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(held);
    assert_eq!(now(waiter.as_mut()).unwrap().id, 4);
    assert_counts(&pool, (0, 1, 0, 0));
}

#[test]
fn without_a_make_a_lost_object_is_not_replaced_until_one_is_added() {
    let pool: ObjectPool<u8> = ObjectPool::builder(1).reset(|_| false).build_from([1]).unwrap();
    drop(pool.try_acquire().unwrap());
    assert_counts(&pool, (1, 0, 0, 0));
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    pool.add(2).unwrap();
    assert_eq!(*now(waiter.as_mut()).unwrap(), 2);
}

// ---- a make that panics ----

#[test]
fn a_make_that_panics_reaches_the_acquirer_and_the_place_is_free_for_the_next() {
    let (pool, tally) = pool_of(1);
    drop(pool.try_acquire().unwrap().detach());
    for blocking in [false, true] {
        tally.fail_once();
        let message = panics(|| {
            if blocking {
                drop(pool.acquire_blocking());
            } else {
                drop(pollster::block_on(pool.acquire()));
            }
        });
        assert_eq!(message, "scripted panic in make");
        assert_counts(&pool, (1, 0, 0, 0));
    }
    assert_eq!(pollster::block_on(pool.acquire()).unwrap().id, 1);
    assert_counts(&pool, (0, 1, 0, 0));
}

#[test]
fn a_make_that_panics_in_one_waiter_leaves_the_place_to_the_next() {
    let (pool, tally) = pool_of(1);
    let held = pool.try_acquire().unwrap();
    let ((first_wakes, first_waker), (second_wakes, second_waker)) = (Wakes::new(), Wakes::new());
    let mut first = Box::pin(pool.acquire());
    let mut second = Box::pin(pool.acquire());
    assert!(poll_with(first.as_mut(), &first_waker).is_pending());
    assert!(poll_with(second.as_mut(), &second_waker).is_pending());
    tally.fail_once();
    drop(held.detach());
    // The detach told one of them to look again; the panic, or its future's end, the other one.
    assert_eq!(first_wakes.count(), 1);
    assert_eq!(panics(|| drop(poll_once(first.as_mut()))), "scripted panic in make");
    drop(first);
    assert_eq!(second_wakes.count(), 1);
    assert_eq!(now(second.as_mut()).unwrap().id, 1);
    assert_counts(&pool, (0, 1, 0, 0));
}

// ---- deadlines and blocking ----

#[test]
fn acquire_until_prefers_what_is_idle_and_gives_up_at_its_deadline() {
    let pool = ObjectPool::new(1, || 0);
    let mut polled = false;
    let deadline = std::future::poll_fn(|_| {
        polled = true;
        Poll::Ready(())
    });
    let held = pollster::block_on(pool.acquire_until(deadline)).unwrap();
    assert!(!polled, "the deadline is not polled if an object is idle");
    let late = pollster::block_on(pool.acquire_until(ready(())));
    assert!(matches!(late, Err(AcquireObjectError::Timeout)));
    assert_counts(&pool, (0, 0, 1, 0));
    let mut waiter = pin!(pool.acquire_until(pending::<()>()));
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(held);
    assert!(now(waiter.as_mut()).is_ok());
    pool.close();
    let closed = pollster::block_on(pool.acquire_until(pending::<()>()));
    assert!(matches!(closed, Err(AcquireObjectError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn acquire_until_takes_the_timer_of_any_runtime() {
    let pool = ObjectPool::new(1, || 0);
    let held = pool.try_acquire().unwrap();
    let began = tokio::time::Instant::now();
    let late = pool.acquire_until(tokio::time::sleep(Duration::from_secs(3))).await;
    assert!(matches!(late, Err(AcquireObjectError::Timeout)));
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    drop(held);
    assert!(pool.acquire_until(tokio::time::sleep(Duration::ZERO)).await.is_ok());
}

#[test]
fn a_blocking_acquire_with_no_time_looks_once() {
    let (pool, tally) = pool_of(1);
    let held = pool.acquire_blocking_timeout(Duration::ZERO).unwrap();
    let late = pool.acquire_blocking_timeout(Duration::ZERO);
    assert!(matches!(late, Err(AcquireObjectError::Timeout)));
    let late = pool.acquire_blocking_owned_timeout(Duration::ZERO);
    assert!(matches!(late, Err(AcquireObjectError::Timeout)));
    assert_counts(&pool, (0, 0, 1, 0));
    drop(held.detach());
    // Looking includes making one for a vacant place.
    assert_eq!(pool.acquire_blocking_timeout(Duration::ZERO).unwrap().id, 1);
    assert_eq!(tally.made(), 2);
    pool.close();
    let closed = pool.acquire_blocking_timeout(Duration::ZERO);
    assert!(matches!(closed, Err(AcquireObjectError::Closed)));
    let closed = pool.acquire_blocking_owned();
    assert!(matches!(closed, Err(AcquireObjectError::Closed)));
}

#[test]
fn a_plain_thread_waits_for_an_object_that_it_may_move_anywhere() {
    let (pool, _) = pool_of(1);
    let held = pool.try_acquire_owned().unwrap();
    let waiter = thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_blocking_owned().unwrap()
    });
    eventually_blocking("the thread waits", || pool.counts().waiters == 1);
    drop(held);
    let thing = join(waiter);
    assert_counts(&pool, (0, 0, 1, 0));
    drop(thing);
    assert_counts(&pool, (0, 1, 0, 0));
}

#[test]
fn a_blocking_acquire_gives_up_at_its_deadline_and_not_before() {
    let pool = ObjectPool::new(1, || 0);
    let _held = pool.try_acquire().unwrap();
    let (began, limit) = (Instant::now(), Duration::from_secs(1));
    let late = pool.acquire_blocking_timeout(limit);
    assert!(matches!(late, Err(AcquireObjectError::Timeout)));
    let took = began.elapsed();
    assert!(took >= limit && took < limit + SLACK, "{took:?}");
    assert_counts(&pool, (0, 0, 1, 0));
}

#[test]
fn the_longest_blocking_wait_does_not_overflow_and_ends_with_a_release() {
    let pool = ObjectPool::new(1, || 5);
    for limit in [None, Some(Duration::MAX)] {
        let held = pool.try_acquire().unwrap();
        let waiter = thread::spawn({
            let pool = pool.clone();
            move || match limit {
                None => *pool.acquire_blocking().unwrap(),
                Some(limit) => *pool.acquire_blocking_timeout(limit).unwrap(),
            }
        });
        eventually_blocking("the thread waits", || pool.counts().waiters == 1);
        drop(held);
        assert_eq!(join(waiter), 5);
        assert_counts(&pool, (0, 1, 0, 0));
    }
}

// ---- close ----

#[test]
fn close_drops_idle_objects_now_once_and_those_in_use_when_they_are_released() {
    for order in ORDERS {
        let tally = Tally::default();
        let pool = ObjectPool::builder(4).order(order).shards(2).build(tally.maker()).unwrap();
        let held = pool.try_acquire().unwrap();
        pool.close();
        pool.close();
        assert!(pool.is_closed());
        assert_eq!(tally.live(), 1);
        assert_counts(&pool, (3, 0, 1, 0));
        drop(held);
        assert_eq!((tally.made(), tally.live()), (4, 0));
        assert_counts(&pool, (4, 0, 0, 0));
        let refused = pollster::block_on(pool.acquire());
        assert!(matches!(refused, Err(AcquireObjectError::Closed)));
    }
}

#[test]
fn close_ends_every_waiter_async_and_blocking() {
    for shards in [1, 4] {
        let pool = ObjectPool::builder(1).shards(shards).build(Tally::default().maker()).unwrap();
        let held = pool.try_acquire().unwrap();
        let (wakes, waker) = Wakes::new();
        let mut waiters: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire())).collect();
        for waiter in &mut waiters {
            assert!(poll_with(waiter.as_mut(), &waker).is_pending());
        }
        let threads: Vec<_> = (0..3)
            .map(|thread| {
                let pool = pool.clone();
                thread::spawn(move || match thread {
                    0 => pollster::block_on(pool.acquire()).map(drop),
                    1 => pool.acquire_blocking().map(drop),
                    _ => pool.acquire_blocking_timeout(PATIENCE).map(drop),
                })
            })
            .collect();
        eventually_blocking("six wait", || pool.counts().waiters == 6);
        pool.close();
        assert_eq!(wakes.count(), 3);
        for waiter in &mut waiters {
            assert!(matches!(now(waiter.as_mut()), Err(AcquireObjectError::Closed)));
        }
        for thread in threads {
            assert_eq!(join(thread), Err(AcquireObjectError::Closed));
        }
        assert_counts(&pool, (0, 0, 1, 0));
        drop(held);
        assert_counts(&pool, (1, 0, 0, 0));
    }
}

#[test]
fn whoever_makes_an_object_while_the_pool_is_closed_is_refused() {
    for blocks in [false, true] {
        let (begin, begun) = mpsc::channel();
        let (go_on, gone_on) = mpsc::channel();
        let (gone_on, tally) = (Mutex::new(gone_on), Tally::default());
        let pool = ObjectPool::new(1, {
            let tally = tally.clone();
            move || {
                // The first is made with the pool.
                if tally.made() > 0 {
                    begin.send(()).unwrap();
                    gone_on.lock().unwrap().recv().unwrap();
                }
                tally.make()
            }
        });
        drop(pool.try_acquire().unwrap().detach());
        let acquirer = thread::spawn({
            let pool = pool.clone();
            move || {
                let acquired =
                    if blocks { pool.acquire_blocking() } else { now(pin!(pool.acquire())) };
                acquired.map(drop)
            }
        });
        begun.recv().unwrap();
        pool.close();
        go_on.send(()).unwrap();
        assert_eq!(join(acquirer), Err(AcquireObjectError::Closed));
        assert_eq!((tally.made(), tally.live()), (2, 0));
        assert_counts(&pool, (1, 0, 0, 0));
    }
}

#[test]
fn whoever_was_served_before_a_close_and_comes_for_it_after_that_is_refused() {
    for detaches in [false, true] {
        let (pool, tally) = pool_of(1);
        let held = pool.try_acquire().unwrap();
        let mut waiter = pin!(pool.acquire());
        assert!(poll_once(waiter.as_mut()).is_pending());
        if detaches {
            // It is to make one for the place.
            drop(held.detach());
        } else {
            drop(held);
        }
        assert_eq!(pool.counts().waiters, 0, "it is served");
        pool.close();
        assert!(matches!(now(waiter), Err(AcquireObjectError::Closed)));
        assert_eq!((tally.made(), tally.live()), (1, 0));
        assert_counts(&pool, (1, 0, 0, 0));
    }
}

#[test]
fn closing_beside_acquires_releases_and_adds_drops_every_object_once() {
    for round in 0..60 {
        let tally = Tally::default();
        let pool =
            ObjectPool::builder(4).order(ORDERS[round % 3]).shards(2).build(tally.maker()).unwrap();
        let start = Arc::new(Barrier::new(3));
        let threads: Vec<_> = (0..3)
            .map(|thread| {
                let (pool, tally, start) = (pool.clone(), tally.clone(), start.clone());
                thread::spawn(move || {
                    start.wait();
                    for turn in 0.. {
                        if thread == 0 && turn == round * 10 {
                            pool.close();
                        }
                        match pool.acquire_blocking_timeout(PATIENCE) {
                            Ok(thing) if turn % 2 == 0 => drop(thing.detach()),
                            Ok(thing) => drop(thing),
                            Err(error) => return assert_eq!(error, AcquireObjectError::Closed),
                        }
                        drop(pool.add(tally.make()));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(join);
        assert_eq!(tally.live(), 0);
        assert_counts(&pool, (4, 0, 0, 0));
    }
}

// ---- waiting ----

#[test]
fn two_releases_one_after_the_other_wake_two_waiters() {
    for order in ORDERS {
        let pool = ObjectPool::builder(2).order(order).shards(2).build(|| 0).unwrap();
        let held = (pool.try_acquire().unwrap(), pool.try_acquire().unwrap());
        let (wakes, waker) = Wakes::new();
        let (mut one, mut two) = (pin!(pool.acquire()), pin!(pool.acquire()));
        assert!(poll_with(one.as_mut(), &waker).is_pending());
        assert!(poll_with(two.as_mut(), &waker).is_pending());
        drop(held);
        assert_eq!((wakes.count(), pool.counts().waiters), (2, 0));
        assert!(now(one.as_mut()).is_ok() && now(two.as_mut()).is_ok());
    }
}

#[test]
fn waiters_are_served_in_the_order_of_their_arrival() {
    for order in ORDERS {
        let pool = ObjectPool::builder(1).order(order).shards(1).build(|| 0).unwrap();
        let mut held = Some(pool.try_acquire().unwrap());
        let mut waiters: Vec<_> = (0..10).map(|_| Box::pin(pool.acquire())).collect();
        for waiter in &mut waiters {
            assert!(poll_once(waiter.as_mut()).is_pending());
        }
        for turn in 0..10 {
            drop(held.take());
            for later in &mut waiters[turn + 1..] {
                assert!(poll_once(later.as_mut()).is_pending());
            }
            held = Some(now(waiters[turn].as_mut()).unwrap());
        }
    }
}

#[test]
fn async_and_blocking_waiters_are_served_in_one_order_without_a_runtime() {
    let pool = ObjectPool::builder(1).shards(1).build(|| 0).unwrap();
    let held = pool.try_acquire().unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut threads = Vec::new();
    for number in 0..8 {
        let (pool_2, served) = (pool.clone(), served.clone());
        threads.push(thread::spawn(move || {
            let guard = match number % 2 {
                0 => pollster::block_on(pool_2.acquire()).unwrap(),
                _ => pool_2.acquire_blocking_timeout(PATIENCE).unwrap(),
            };
            served.lock().unwrap().push(number);
            drop(guard);
        }));
        eventually_blocking("it waits", || pool.counts().waiters == number + 1);
    }
    drop(held);
    threads.into_iter().for_each(join);
    assert_eq!(*served.lock().unwrap(), (0..8).collect::<Vec<_>>());
    assert_counts(&pool, (0, 1, 0, 0));
}

#[test]
fn polling_again_with_another_waker_keeps_the_place_and_wakes_the_newest() {
    let pool = ObjectPool::builder(1).shards(1).build(|| 0).unwrap();
    let held = pool.try_acquire().unwrap();
    let ((old_wakes, old), (new_wakes, new)) = (Wakes::new(), Wakes::new());
    let (mut first, mut second) = (pin!(pool.acquire()), pin!(pool.acquire()));
    assert!(poll_with(first.as_mut(), &old).is_pending());
    assert!(poll_with(second.as_mut(), &old).is_pending());
    assert!(poll_with(first.as_mut(), &new).is_pending());
    drop(held);
    assert_eq!((old_wakes.count(), new_wakes.count()), (0, 1));
    assert!(poll_once(second.as_mut()).is_pending());
    drop(now(first.as_mut()).unwrap());
    assert!(now(second.as_mut()).is_ok());
}

#[test]
fn ten_thousand_waiters_of_whom_a_third_leaves_are_served_in_order() {
    for order in ORDERS {
        let pool = ObjectPool::builder(1).order(order).shards(1).build(|| 0).unwrap();
        let held = pool.try_acquire().unwrap();
        let mut waiters: Vec<_> = (0..10_000).map(|_| Some(Box::pin(pool.acquire()))).collect();
        for waiter in waiters.iter_mut().flatten() {
            assert!(poll_once(waiter.as_mut()).is_pending());
        }
        waiters[..5_000].iter_mut().step_by(3).for_each(|waiter| *waiter = None);
        drop(held);
        for (number, waiter) in waiters.iter_mut().enumerate() {
            match waiter {
                // Some leave just when the object is on its way to them.
                Some(_) if number % 3 == 1 => *waiter = None,
                Some(waiter) => drop(now(waiter.as_mut()).unwrap()),
                None => {}
            }
        }
        assert_counts(&pool, (0, 1, 0, 0));
    }
}

// ---- shards ----

#[test]
fn a_shard_whose_ring_is_full_hands_its_objects_to_the_others() {
    for order in [IdleOrder::Recent, IdleOrder::Fifo] {
        // 200 places in 64 shards: a ring has room for 128.
        let pool = ObjectPool::builder(200).shards(64).order(order).build_from(0..200).unwrap();
        for _ in 0..5 {
            // All released by this thread, so all to one home shard first.
            let held: Vec<_> = (0..200).map(|_| pool.try_acquire().unwrap()).collect();
            assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
            drop(held);
            assert_counts(&pool, (0, 200, 0, 0));
            // Another thread, with another home, finds them all.
            let mut found = join(thread::spawn({
                let pool = pool.clone();
                move || {
                    let all: Vec<_> = (0..200).map(|_| pool.try_acquire().unwrap()).collect();
                    all.iter().map(|number| **number).collect::<Vec<_>>()
                }
            }));
            found.sort_unstable();
            assert_eq!(found, (0..200).collect::<Vec<_>>());
        }
    }
}

#[test]
fn random_things_on_many_threads_lose_no_object_and_share_none() {
    const THREADS: usize = 8;
    for (round, (capacity, shards)) in
        [(200, 64), (8, 1), (8, 8), (3, 2), (1, 4), (130, 256)].into_iter().enumerate()
    {
        let tally = Tally::default();
        let pool = ObjectPool::builder(capacity)
            .shards(shards)
            .order(ORDERS[round % 3])
            .reset(|thing: &mut Thing| thing.note != 2)
            .build(tally.maker())
            .unwrap();
        let sampler = Sampler::start({
            let (pool, tally) = (pool.clone(), tally.clone());
            move || {
                let waiters = pool.counts().waiters;
                assert!(waiters <= THREADS, "{waiters} wait");
                assert!(tally.live() <= capacity, "{} live", tally.live());
            }
        });
        let threads: Vec<_> = (0..THREADS)
            .map(|seed| {
                let pool = pool.clone();
                let random = Random::new((round * THREADS + seed) as u64);
                thread::spawn(move || do_random_things(&pool, random))
            })
            .collect();
        threads.into_iter().for_each(join);
        assert!(sampler.stop() > 0);
        assert!(tally.0.most.load(Ordering::SeqCst) <= capacity);
        let counts = pool.counts();
        assert_eq!((counts.vacant + counts.idle, counts.waiters), (capacity, 0), "{counts:?}");
        assert_eq!(tally.live(), counts.idle);
        let held: Vec<_> = (0..capacity).map(|_| now(pin!(pool.acquire())).unwrap()).collect();
        let mut ids: Vec<_> = held.iter().map(|thing| thing.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), capacity);
        assert!(poll_once(pin!(pool.acquire())).is_pending());
        drop(held);
        assert_counts(&pool, (0, capacity, 0, 0));
    }
}

/// A guard of either kind.
fn boxed<'p>(guard: impl DerefMut<Target = Thing> + 'p) -> Box<dyn DerefMut<Target = Thing> + 'p> {
    Box::new(guard)
}

fn do_random_things(pool: &ObjectPool<Thing>, mut random: Random) {
    let briefly = Duration::from_micros(50);
    for _ in 0..1500 {
        let mut held = Vec::new();
        for _ in 0..=random.below(3) {
            let acquired = match random.below(8) {
                0 => pool.try_acquire().ok().map(boxed),
                1 => pool.try_acquire_owned().ok().map(boxed),
                2 => pool.acquire_blocking_timeout(briefly).ok().map(boxed),
                3 => pool.acquire_blocking_owned_timeout(briefly).ok().map(boxed),
                4 => pollster::block_on(pool.acquire_until(ready(()))).ok().map(boxed),
                // Only whoever holds nothing may wait for good.
                5 if held.is_empty() => pollster::block_on(pool.acquire()).ok().map(boxed),
                6 if held.is_empty() => {
                    pool.acquire_blocking_owned_timeout(PATIENCE).ok().map(boxed)
                }
                _ if held.is_empty() => pool.acquire_blocking_timeout(PATIENCE).ok().map(boxed),
                _ => None,
            };
            if let Some(mut thing) = acquired {
                assert_eq!(std::mem::replace(&mut thing.note, 1), 0, "somebody else has it too");
                held.push(thing);
            }
        }
        for mut thing in held {
            thing.note = 0;
            match random.below(12) {
                // `tally.live` counts what is detached too, so it goes before the place is free.
                0 => thing.note = 2, // reset refuses it
                1 => thread::yield_now(),
                _ => {}
            }
        }
    }
}

#[test]
fn objects_with_detach_and_add_on_many_threads_are_neither_lost_nor_doubled() {
    for order in ORDERS {
        let pool = ObjectPool::builder(6).shards(4).order(order).build_from(0..6).unwrap();
        let threads: Vec<_> = (0..6)
            .map(|seed| {
                let pool = pool.clone();
                thread::spawn(move || {
                    let mut random = Random::new(seed);
                    for _ in 0..1000 {
                        let thing = pool.acquire_blocking_timeout(PATIENCE).unwrap();
                        if random.below(3) == 0 {
                            // The place that it leaves is for nobody else: six objects, six places.
                            pool.add(thing.detach()).unwrap();
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(join);
        assert_counts(&pool, (0, 6, 0, 0));
        let all: Vec<_> = (0..6).map(|_| pool.try_acquire().unwrap()).collect();
        let mut numbers: Vec<_> = all.iter().map(|number| **number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
    }
}
