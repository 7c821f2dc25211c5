//! A pool that changes its size while it is used.

#![cfg(feature = "tokio")]
#![allow(clippy::mem_forget, reason = "a forgotten guard is one of the cases")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::{
    AcquireError, IdleOrder, Pool, PoolBuilder, PoolMetrics, Priority, TryAcquireError, WarmUpError,
};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tokio::task::yield_now;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const CAPACITY: usize = 8;
const BROKEN: Act = Act::Error;

fn pool_of(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone()).max_size(max_size).capacity(CAPACITY).acquire_timeout(PATIENCE)
}

/// Waits until nothing is under way, then asserts the conservation law; answers with the figures.
async fn settled(pool: &Pool<TestManager>, manager: &TestManager) -> PoolMetrics {
    eventually("nothing is under way", || {
        let counts = pool.metrics().counts;
        counts.waiters + counts.connecting + counts.checking + counts.resetting + counts.closing
            == 0
    })
    .await;
    let metrics = pool.metrics();
    let (counts, ledger) = (metrics.counts, &manager.ledger);
    assert_eq!(counts.in_service(), pool.max_size().max(counts.in_use), "{metrics:?}");
    assert_eq!(metrics.created, metrics.closed.total() + counts.alive() as u64, "{metrics:?}");
    assert_eq!(ledger.opened() as u64, metrics.created, "{metrics:?} {ledger:?}");
    assert_eq!(ledger.live(), counts.alive(), "{metrics:?} {ledger:?}");
    assert_eq!(ledger.closed() as u64, metrics.closed.total(), "{metrics:?} {ledger:?}");
    metrics
}

/// As many acquires succeed at the same time as the pool is large, and no more.
async fn has_exactly_its_size(pool: &Pool<TestManager>) {
    let mut held = Vec::new();
    for _ in 0..pool.max_size() {
        held.push(pool.acquire().await.unwrap());
    }
    assert_eq!(pool.metrics().counts.in_use, pool.max_size());
    assert!(matches!(pool.try_acquire(), Err(TryAcquireError::Empty)));
    let one_more = pool.acquire_timeout(5 * MILLISECOND).await;
    assert!(matches!(one_more, Err(AcquireError::Timeout(_))), "{one_more:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pool_has_exactly_the_size_it_was_resized_to_up_and_down() {
    for order in [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 4).order(order).build_lazy().unwrap();
        assert_eq!((pool.max_size(), pool.metrics().counts.spare), (4, 4));
        has_exactly_its_size(&pool).await;
        for size in [8, 1, 8, 7, 2, 3, 3, 6, 1, 1, 5, 4] {
            pool.resize(size).unwrap();
            assert_eq!(pool.max_size(), size);
            let metrics = settled(&pool, &manager).await;
            assert_eq!(metrics.counts.spare, CAPACITY - size);
            assert!(manager.ledger.live() <= size, "idle ones close now");
            has_exactly_its_size(&pool).await;
            let metrics = settled(&pool, &manager).await;
            assert_eq!(metrics.counts.idle, size);
        }
        assert_eq!(pool.config().max_size, 4, "the settings stay what they were");
    }
}

#[tokio::test(start_paused = true)]
async fn a_smaller_pool_closes_idle_connections_now_and_says_why() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 8).min_idle(8).build().await.unwrap();
    pool.resize(3).unwrap();
    let metrics = settled(&pool, &manager).await;
    assert_eq!((metrics.closed.surplus, metrics.closed.total()), (5, 5));
    assert_eq!((metrics.counts.idle, metrics.counts.vacant, metrics.counts.spare), (3, 0, 5));
    assert_eq!(manager.connect.calls(), 8, "min_idle asks for nothing that has no room");
}

#[tokio::test(start_paused = true)]
async fn a_shrink_leaves_the_order_of_what_stays_alone() {
    for order in [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo] {
        let mut orders = Vec::new();
        for size in [6, 4] {
            let manager = TestManager::new();
            let pool = pool_of(&manager, 6).order(order).shards(1).build_lazy().unwrap();
            has_exactly_its_size(&pool).await;
            pool.resize(size).unwrap();
            let idle: Vec<_> = std::iter::from_fn(|| pool.try_acquire().ok()).collect();
            orders.push(idle.iter().map(|guard| guard.id).collect::<Vec<_>>());
        }
        let [all, stay] = &orders[..] else { unreachable!() };
        assert_eq!((all.len(), stay.len()), (6, 4));
        let expected: Vec<_> = all.iter().copied().filter(|id| stay.contains(id)).collect();
        assert_eq!(*stay, expected, "{order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn shrinking_takes_what_is_vacant_before_it_closes_anything() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 8).build_lazy().unwrap();
    pool.warm_up(3).await.unwrap();
    let held = pool.acquire().await.unwrap();
    pool.resize(3).unwrap();
    let metrics = settled(&pool, &manager).await;
    assert_eq!((metrics.closed.total(), metrics.counts.idle, metrics.counts.in_use), (0, 2, 1));
    drop(held);
    assert_eq!(settled(&pool, &manager).await.closed.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_many_in_use_closes_when_it_comes_back_and_no_more_than_that() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 6).build_lazy().unwrap();
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(pool.acquire().await.unwrap());
    }
    pool.resize(2).unwrap();
    for out in (0..6).rev() {
        assert_eq!(pool.metrics().counts.in_service(), (out + 1).max(2));
        assert_eq!(matches!(pool.try_acquire(), Err(TryAcquireError::Empty)), out > 0);
        drop(held.pop());
        let metrics = settled(&pool, &manager).await;
        let closed = (6 - out).min(4) as u64;
        assert_eq!((metrics.closed.surplus, metrics.closed.total()), (closed, closed), "{out}");
    }
    assert_eq!(pool.metrics().counts.idle, 2);
    has_exactly_its_size(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn no_slot_too_many_and_none_too_few_is_in_service_while_the_surplus_comes_back() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 8).build_lazy().unwrap();
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(pool.acquire().await.unwrap());
    }
    pool.resize(1).unwrap();
    pool.resize(3).unwrap();
    pool.resize(1).unwrap();
    while let Some(guard) = held.pop() {
        match held.len() % 4 {
            0 => guard.discard(),
            1 => {
                let mut connection = guard.detach();
                connection.uncount();
                drop(connection);
            }
            2 => {
                manager.condition.once(BROKEN);
                drop(guard);
            }
            _ => drop(guard),
        }
        let counts = pool.metrics().counts;
        // One is to stay, and what is still held or being closed.
        let least = held.len().max(1);
        assert!((least..=least + counts.closing).contains(&counts.in_service()), "{counts:?}");
        yield_now().await;
    }
    eventually("all are gone", || pool.metrics().counts.closing == 0).await;
    let metrics = pool.metrics();
    assert_eq!((metrics.counts.in_service(), metrics.counts.spare), (1, 7), "{metrics:?}");
    assert_eq!((manager.ledger.opened() as u64, manager.ledger.live()), (metrics.created, 0));
    assert_eq!((metrics.closed.total(), metrics.counts.alive()), (metrics.created, 0));
    has_exactly_its_size(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn a_shrink_with_waiters_serves_them_with_what_is_left() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).build_lazy().unwrap();
    let held = [
        pool.acquire().await.unwrap(),
        pool.acquire().await.unwrap(),
        pool.acquire().await.unwrap(),
    ];
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    pool.resize(1).unwrap();
    let [first, second, third] = held;
    drop(first);
    drop(second);
    turns().await;
    assert!(poll_once(waiter.as_mut()).is_pending(), "both were too many");
    let id = third.id;
    drop(third);
    let served = waiter.await.unwrap();
    assert_eq!(served.id, id, "that one stays");
    assert_eq!(settled(&pool, &manager).await.closed.surplus, 2);
}

#[tokio::test(start_paused = true)]
async fn growing_serves_as_many_waiters_as_there_is_new_room_and_in_their_order() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).shards(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut waiters: Vec<_> = (0..4).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    pool.resize(4).unwrap();
    let last = waiters.pop().unwrap();
    let mut served = Vec::new();
    for waiter in waiters {
        served.push(tokio::time::timeout(SECOND, waiter).await.expect("woken").unwrap());
    }
    let mut last = last;
    assert!(poll_once(last.as_mut()).is_pending());
    assert_eq!(pool.metrics().counts.in_use, 4);
    drop(held);
    drop(last.await.unwrap());
    drop(served);
    settled(&pool, &manager).await;
}

#[tokio::test]
async fn growing_wakes_waiters_on_plain_threads() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let pool = pool.clone();
            thread::spawn(move || std::mem::forget(pool.acquire_blocking_owned().unwrap()))
        })
        .collect();
    eventually("all wait", || pool.metrics().counts.waiters == 3).await;
    pool.resize(4).unwrap();
    eventually("all are served", || threads.iter().all(thread::JoinHandle::is_finished)).await;
    threads.into_iter().for_each(join);
    assert_eq!(pool.metrics().counts.in_use, 4);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn growing_while_the_surplus_is_still_out_keeps_it() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(pool.acquire().await.unwrap());
    }
    pool.resize(1).unwrap();
    pool.resize(4).unwrap();
    drop(held);
    let metrics = settled(&pool, &manager).await;
    assert_eq!((metrics.closed.total(), metrics.counts.idle), (0, 4), "nothing ended in vain");
}

#[tokio::test(start_paused = true)]
async fn growing_while_the_surplus_is_being_closed_never_opens_too_many() {
    let manager = TestManager::new();
    manager.close.always(Act::Gated);
    let pool = pool_of(&manager, 8).close_timeout(600 * SECOND).min_idle(8).build().await.unwrap();
    pool.resize(1).unwrap();
    assert_eq!(pool.metrics().counts.closing, 7);
    pool.resize(8).unwrap();
    let mut waiters: Vec<_> = (0..8).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut waiters {
        let _ = poll_once(waiter.as_mut());
    }
    turns().await;
    assert_eq!(manager.ledger.live(), 8, "those that are being closed still count");
    manager.close.open(100);
    drop(waiters);
    settled(&pool, &manager).await;
    assert!(manager.ledger.most_live() <= 8);
    has_exactly_its_size(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn growing_while_the_surplus_is_being_closed_leaves_spare_slots_alone() {
    let manager = TestManager::new();
    manager.close.always(Act::Gated);
    let pool = pool_of(&manager, 4).close_timeout(600 * SECOND).min_idle(4).build().await.unwrap();
    pool.resize(1).unwrap();
    assert_eq!(pool.metrics().counts.closing, 3);
    pool.resize(3).unwrap();
    let left = pool.try_acquire().unwrap();
    let mut waiters = [Box::pin(pool.acquire()), Box::pin(pool.acquire())];
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    turns().await;
    assert_eq!(manager.ledger.live(), 4, "there is no room before something is closed");
    manager.close.open(1);
    turns().await;
    assert_eq!(manager.ledger.live(), 3, "the first to be closed makes room for nobody");
    manager.close.open(1);
    turns().await;
    assert_eq!(manager.ledger.live(), 3, "the second does");
    manager.close.open(100);
    drop((waiters, left));
    settled(&pool, &manager).await;
    assert_eq!(manager.ledger.most_live(), 4, "never more than were out");
    has_exactly_its_size(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn to_one_and_back_over_and_over_leaves_no_trace() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 8).build_lazy().unwrap();
    for _ in 0..100 {
        pool.resize(1).unwrap();
        drop(pool.acquire().await.unwrap());
        pool.resize(8).unwrap();
        let first = pool.acquire().await.unwrap();
        drop(pool.acquire().await.unwrap());
        drop(first);
    }
    settled(&pool, &manager).await;
    assert!(manager.ledger.most_live() <= 8);
    has_exactly_its_size(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn a_size_out_of_range_is_an_error_that_says_so_and_changes_nothing() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    let error = pool.resize(9).unwrap_err();
    assert_eq!((error.field(), error.value()), ("max_size", "9"));
    assert_eq!(error.to_string(), "max_size is 9, but it must be at most capacity, which is 8");
    let error = pool.resize(0).unwrap_err();
    assert_eq!(error.to_string(), "max_size is 0, but it must be from 1 to 1048576");
    assert!(pool.resize(usize::MAX).is_err());
    assert_eq!(pool.max_size(), 4);
    settled(&pool, &manager).await;

    let fixed = Pool::builder(manager.clone()).max_size(4).build_lazy().unwrap();
    let error = fixed.resize(5).unwrap_err();
    assert_eq!(error.to_string(), "max_size is 5, but it must be at most capacity, which is 4");
    fixed.resize(4).unwrap();
}

#[tokio::test(start_paused = true)]
async fn reserved_connections_stay_and_the_pool_never_gets_as_small_as_they_are_many() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 6).reserved(Priority::High, 2).build_lazy().unwrap();
    let error = pool.resize(2).unwrap_err();
    assert_eq!(error.to_string(), "reserved is 2, but it must be below max_size, which is 2");
    assert_eq!(pool.max_size(), 6);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(pool.acquire().await.unwrap());
    }
    for _ in 0..2 {
        held.push(pool.acquire_with(Priority::High).await.unwrap());
    }
    held.truncate(4);
    pool.resize(3).unwrap();
    turns().await;
    assert_eq!(pool.metrics().counts.idle, 2, "reserved ones stay, though they are idle");
    drop(held);
    let metrics = settled(&pool, &manager).await;
    assert_eq!((metrics.closed.surplus, metrics.counts.idle), (3, 3));
    let general = pool.acquire().await.unwrap();
    assert!(pool.acquire_timeout(MILLISECOND).await.is_err(), "the other two are reserved");
    let high = [
        pool.acquire_with(Priority::High).await.unwrap(),
        pool.acquire_with(Priority::High).await.unwrap(),
    ];
    pool.resize(8).unwrap();
    let more = pool.acquire().await.unwrap();
    drop((general, high, more));
    settled(&pool, &manager).await;
}

#[tokio::test(start_paused = true)]
async fn a_reserved_connection_is_not_opened_while_a_shrink_is_owed_one() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).reserved(Priority::High, 1).build_lazy().unwrap();
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    pool.resize(2).unwrap();
    let mut high = Box::pin(pool.acquire_with(Priority::High));
    assert!(poll_once(high.as_mut()).is_pending());
    turns().await;
    assert_eq!((manager.ledger.live(), pool.max_size()), (2, 2));
    drop(held);
    let reserved = high.await.unwrap();
    assert!(manager.ledger.most_live() <= 2, "{} were alive", manager.ledger.most_live());
    drop(reserved);
    settled(&pool, &manager).await;
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_completes_after_a_shrink_is_closed_not_pooled() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).max_connecting(4).build_lazy().unwrap();
    pool.warm_up(3).await.unwrap();
    let held = [
        pool.acquire().await.unwrap(),
        pool.acquire().await.unwrap(),
        pool.acquire().await.unwrap(),
    ];
    manager.connect.once(Act::Gated);
    let mut waiter = Box::pin(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    eventually("a dial is under way", || manager.connect.running() == 1).await;
    pool.resize(3).unwrap();
    manager.connect.open(1);
    eventually("it is closed on arrival", || manager.ledger.closed() == 1).await;
    assert!(poll_once(waiter.as_mut()).is_pending(), "there are three already");
    let metrics = pool.metrics();
    assert_eq!((metrics.closed.surplus, metrics.created, metrics.counts.in_use), (1, 4, 3));
    drop(held);
    drop(waiter.await.unwrap());
    assert_eq!(settled(&pool, &manager).await.created, 4);
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_fails_after_a_shrink_leaves_nothing() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Slow(SECOND));
    manager.connect.always(Act::Error);
    let mut waiter = Box::pin(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    eventually("a dial is under way", || manager.connect.running() == 1).await;
    drop(waiter);
    pool.resize(1).unwrap();
    eventually("it is over", || manager.connect.running() == 0).await;
    assert_eq!(settled(&pool, &manager).await.counts.spare, 7);
    drop(held);
    settled(&pool, &manager).await;
}

#[tokio::test(start_paused = true)]
async fn warm_up_goes_by_the_size_of_the_moment() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    assert!(matches!(pool.warm_up(3).await, Err(WarmUpError::TooMany(_))));
    pool.resize(5).unwrap();
    pool.warm_up(5).await.unwrap();
    assert_eq!(settled(&pool, &manager).await.counts.idle, 5);
    pool.resize(2).unwrap();
    let error = pool.warm_up(3).await.unwrap_err();
    assert_eq!(error.to_string(), "warm_up is 3, but it must be at most max_size, which is 2");
}

#[tokio::test(start_paused = true)]
async fn warm_up_comes_to_an_end_when_the_pool_is_made_smaller_meanwhile() {
    let manager = TestManager::new();
    manager.connect.always(Act::Slow(SECOND));
    let pool = pool_of(&manager, 6).build_lazy().unwrap();
    let mut warm_up = pin!(tokio::time::timeout(60 * SECOND, pool.warm_up(6)));
    assert!(poll_once(warm_up.as_mut()).is_pending());
    pool.resize(2).unwrap();
    warm_up.await.expect("it does not hang").unwrap();
    assert_eq!(settled(&pool, &manager).await.counts.idle, 2);
}

#[tokio::test(start_paused = true)]
async fn min_idle_is_kept_again_once_a_pool_has_grown_back() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).min_idle(4).build().await.unwrap();
    pool.resize(1).unwrap();
    assert_eq!(settled(&pool, &manager).await.counts.idle, 1);
    pool.resize(6).unwrap();
    eventually("four are idle", || pool.metrics().counts.idle == 4).await;
    assert_eq!(settled(&pool, &manager).await.counts.idle, 4);
}

#[tokio::test(start_paused = true)]
async fn a_closed_pool_stays_closed_when_it_is_resized() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).min_idle(4).build().await.unwrap();
    let held = pool.acquire().await.unwrap();
    pool.close().await;
    for size in [8, 1, 8] {
        pool.resize(size).unwrap();
        assert!(pool.is_closed());
        assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    }
    drop(held);
    eventually("all are closed", || manager.ledger.live() == 0).await;
    assert_eq!((manager.connect.calls(), manager.ledger.closed()), (4, 4), "once each");
    assert!(pool.resize(9).is_err());
}

#[tokio::test]
async fn close_and_resize_in_any_order_leave_nothing_open() {
    for round in 0..150 {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 4).build_lazy().unwrap();
        let users: Vec<_> = (0..4)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    while let Ok(held) = pool.acquire().await {
                        yield_now().await;
                        drop(held);
                    }
                })
            })
            .collect();
        let resizer = thread::spawn({
            let pool = pool.clone();
            move || {
                for size in [1, 8, 2, 6, 1, 4, 8, 1] {
                    pool.resize(size).unwrap();
                    thread::yield_now();
                }
            }
        });
        for _ in 0..round % 30 {
            yield_now().await;
        }
        pool.close().await;
        for user in users {
            joined(user).await;
        }
        join(resizer);
        eventually("nothing is alive", || {
            let counts = pool.metrics().counts;
            counts.alive() + counts.connecting == 0
        })
        .await;
        let metrics = pool.metrics();
        assert_eq!(metrics.counts.in_service(), pool.max_size(), "{metrics:?}");
        assert_eq!((manager.ledger.live(), metrics.closed.total()), (0, metrics.created));
        assert_eq!(manager.ledger.closed() as u64, metrics.created, "once each");
    }
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_guard_counts_until_the_end_whatever_the_size() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    std::mem::forget(pool.acquire().await.unwrap());
    pool.resize(1).unwrap();
    let metrics = settled(&pool, &manager).await;
    assert_eq!((metrics.counts.in_service(), metrics.counts.in_use), (1, 1));
    assert!(pool.acquire_timeout(MILLISECOND).await.is_err());
    pool.resize(2).unwrap();
    drop(pool.acquire().await.unwrap());
}

/// Resizes from two threads, acquires from tasks and plain threads, cancels, failures, detaches.
fn storm(seed: u64, order: IdleOrder, reserved: usize) {
    const LARGEST: usize = 4;
    const USERS: usize = 6;
    const CAPACITY: usize = 2 * (LARGEST + USERS);
    let manager = TestManager::new();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    let runtime = runtime.expect("a runtime");
    let pool = Pool::builder(manager.clone())
        .max_size(LARGEST)
        .capacity(CAPACITY)
        .reserved(Priority::High, reserved)
        .order(order)
        .shards(2)
        .acquire_timeout(PATIENCE)
        .backoff(MILLISECOND, MILLISECOND);
    let pool = runtime.block_on(async { pool.build_lazy() }).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let sampler = Sampler::start({
        let (pool, manager) = (pool.clone(), manager.clone());
        move || {
            let live = manager.ledger.live();
            assert!(live <= LARGEST, "{live} are alive");
            let metrics = pool.metrics();
            assert!(metrics.counts.waiters <= USERS, "{metrics:?}");
            assert!(metrics.created as usize <= manager.connect.calls(), "{metrics:?}");
        }
    });
    let resizers: Vec<_> = (0..2)
        .map(|thread| {
            let (pool, done) = (pool.clone(), done.clone());
            let mut random = Random::new(seed * 100 + thread);
            thread::spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    pool.resize(reserved + 1 + random.below(LARGEST - reserved)).unwrap();
                    if random.below(4) == 0 {
                        thread::sleep(Duration::from_micros(100));
                    }
                    thread::yield_now();
                }
            })
        })
        .collect();
    let tasks: Vec<_> = (0..USERS as u64 - 2)
        .map(|task| {
            let (pool, manager) = (pool.clone(), manager.clone());
            let mut random = Random::new(seed * 100 + 10 + task);
            runtime.spawn(async move {
                for _ in 0..400 {
                    match random.below(12) {
                        0 => {
                            let hurry = Duration::from_micros(random.below(200) as u64);
                            drop(pool.acquire_timeout(hurry).await);
                        }
                        1 => pool.acquire().await.unwrap().discard(),
                        2 => {
                            // No longer the pool's from here on; its slot is.
                            let mut connection = pool.acquire().await.unwrap();
                            connection.uncount();
                            drop(connection.detach());
                        }
                        3 => {
                            manager.condition.once(BROKEN);
                            drop(pool.acquire().await.unwrap());
                        }
                        4 => {
                            manager.connect.once(Act::Error);
                            drop(pool.acquire().await.unwrap());
                        }
                        5 => drop(pool.try_acquire()),
                        6 => drop(pool.acquire_with(Priority::High).await.unwrap()),
                        _ => {
                            let held = pool.acquire().await.unwrap();
                            yield_now().await;
                            drop(held);
                        }
                    }
                }
            })
        })
        .collect();
    let threads: Vec<_> = (0..2)
        .map(|thread| {
            let pool = pool.clone();
            let mut random = Random::new(seed * 100 + 20 + thread);
            thread::spawn(move || {
                for _ in 0..400 {
                    let held = pool.acquire_blocking().unwrap();
                    if random.below(2) == 0 {
                        thread::yield_now();
                    }
                    drop(held);
                }
            })
        })
        .collect();
    for task in tasks {
        runtime.block_on(joined(task));
    }
    threads.into_iter().for_each(join);
    done.store(true, Ordering::SeqCst);
    resizers.into_iter().for_each(join);
    assert!(sampler.stop() > 0);
    runtime.block_on(async {
        manager.clear();
        eventually("nothing is under way", || {
            let counts = pool.metrics().counts;
            counts.waiters + counts.connecting + counts.closing + counts.in_use == 0
        })
        .await;
        let metrics = pool.metrics();
        assert_eq!(metrics.counts.in_service(), pool.max_size(), "{metrics:?}");
        assert_eq!(metrics.counts.spare, CAPACITY - pool.max_size(), "{metrics:?}");
        let alive = metrics.counts.alive();
        assert_eq!(metrics.created, metrics.closed.total() + alive as u64, "{metrics:?}");
        assert_eq!(manager.ledger.live(), alive, "{metrics:?}");
        assert!(manager.ledger.most_live() <= LARGEST, "{:?}", manager.ledger);
        let mut held = Vec::new();
        for _ in 0..pool.max_size() {
            held.push(pool.acquire_with(Priority::High).await.unwrap());
        }
        let one_more = pool.acquire_timeout(5 * MILLISECOND).await;
        assert!(matches!(one_more, Err(AcquireError::Timeout(_))), "{one_more:?}");
        drop(held);
        pool.resize(CAPACITY).unwrap();
        for _ in 0..CAPACITY {
            std::mem::forget(pool.acquire_with(Priority::High).await.unwrap());
        }
        assert!(pool.acquire_timeout(5 * MILLISECOND).await.is_err(), "and not one slot is lost");
    });
}

#[test]
fn a_storm_of_resizes_beside_acquires_loses_no_slot_and_makes_none() {
    for seed in 0..8 {
        storm(seed, IdleOrder::Recent, 0);
    }
}

#[test]
fn a_storm_of_resizes_does_the_same_in_the_other_orders_and_with_reserved_connections() {
    for seed in 8..12 {
        storm(seed, IdleOrder::Fifo, 0);
        storm(seed, IdleOrder::Lifo, 0);
        storm(seed, IdleOrder::Recent, 2);
    }
}

#[test]
fn a_blocking_pool_is_resized_in_the_same_way() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_blocking().unwrap();
    let held = [pool.acquire().unwrap(), pool.acquire().unwrap()];
    pool.resize(3).unwrap();
    let third = pool.acquire().unwrap();
    assert!(pool.acquire_timeout(MILLISECOND).is_err());
    pool.resize(1).unwrap();
    drop((held, third));
    eventually_blocking("two are closed", || manager.ledger.live() == 1);
    assert!(pool.resize(9).is_err());
}
