//! Getting rid of connections: all of them (`invalidate`), some of them (`retain`), or all of them
//! once a new one has proved itself (`rotate`).

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::{
    AcquireError, CheckPolicy, ConnectionInfo, ConnectionState, HookFuture, Hooks, IdleOrder,
    OperationError, Pool, PoolBuilder, Priority, ReleaseError, RotateError, Stage, from_fn,
};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::thread;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Runtime};
use tokio::task::yield_now;
use tokio::time::sleep;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const ORDERS: [IdleOrder; 3] = [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo];
const DIRTY: Act = Act::Slow(Duration::ZERO);
const OUTDATED: Act = Act::Permanent;

fn pool_of(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    hush_scripted_panics();
    Pool::builder(manager.clone()).max_size(max_size)
}

/// Passes at once.
fn passes(_: &mut Conn) -> HookFuture<'_, TestError> {
    Box::pin(async { Ok(()) })
}

/// Says what kind of closure this is; `rotate` would, but for the `let` before it.
fn verifier<F>(verify: F) -> F
where
    F: for<'c> FnOnce(&'c mut Conn) -> HookFuture<'c, TestError> + Send,
{
    verify
}

/// As many acquires succeed at the same time as the pool is large.
async fn has_all_its_slots(pool: &Pool<TestManager>) {
    let mut held = Vec::new();
    for _ in 0..pool.max_size() {
        held.push(pool.acquire().await.unwrap());
    }
    assert!(pool.acquire_timeout(MILLISECOND).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn invalidate_closes_idle_connections_now() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 6).order(order).reserved(Priority::High, 1).build_lazy();
        let pool = pool.unwrap();
        pool.warm_up(5).await.unwrap();
        pool.invalidate();
        assert_eq!(pool.metrics().counts.idle, 0, "none is left to be handed out");
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!((metrics.closed.invalidated, metrics.closed.total()), (5, 5));
        assert_eq!((manager.ledger.live(), manager.ledger.closed()), (0, 5));
        assert_eq!(pool.acquire().await.unwrap().id, 6);
        balanced(&pool, &manager.ledger).await;
    }
}

#[tokio::test(start_paused = true)]
async fn invalidate_closes_used_connections_when_they_come_back() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    let dropped = pool.acquire().await.unwrap();
    let owned = pool.acquire_owned().await.unwrap();
    let released = pool.acquire().await.unwrap();
    let dirty = pool.acquire().await.unwrap();
    pool.invalidate();
    turns().await;
    assert_eq!((manager.ledger.closed(), dropped.note, owned.note), (0, 0, 0), "they go on");
    drop(dropped);
    drop(owned);
    released.release().await.unwrap();
    manager.condition.once(DIRTY);
    drop(dirty);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.invalidated, metrics.closed.total()), (4, 4));
    assert_eq!(manager.ledger.closed(), 4);
    assert_eq!(pool.acquire().await.unwrap().id, 5);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_gets_a_new_connection_for_the_old_one_that_comes_back() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut before = pin!(pool.acquire());
    assert!(poll_once(before.as_mut()).is_pending());
    pool.invalidate();
    let mut after = pin!(pool.acquire());
    assert!(poll_once(after.as_mut()).is_pending());
    drop(held);
    let served = before.await.unwrap();
    assert_eq!(served.id, 2);
    drop(served);
    assert_eq!(after.await.unwrap().id, 2, "that one is new, and stays");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.invalidated, metrics.created), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_connect_under_way_is_closed_on_arrival_and_the_waiter_is_served_all_the_same() {
    let manager = TestManager::new();
    manager.connect.once(Act::Gated);
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    eventually("a dial is under way", || manager.connect.running() == 1).await;
    pool.invalidate();
    assert_eq!(manager.connect.running(), 1, "it is not cut short");
    manager.connect.open(1);
    assert_eq!(waiter.await.unwrap().id, 2, "the first one is of the old generation");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.invalidated, metrics.closed.total(), metrics.created), (1, 1, 2));
    assert_eq!(manager.ledger.closed(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_being_reset_or_checked_is_not_handed_out_after_invalidate() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).check(CheckPolicy::Always).build_lazy().unwrap();
    let first = pool.acquire().await.unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Gated);
    assert!(pool.try_acquire().is_err(), "the second is being checked");
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Gated);
    drop(first);
    turns().await;
    assert_eq!((manager.reset.running(), manager.check.running()), (1, 1));
    pool.invalidate();
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    manager.check.open(1);
    manager.reset.open(1);
    assert!(waiter.await.unwrap().id > 2);
    assert_eq!(balanced(&pool, &manager.ledger).await.closed.invalidated, 2);
}

#[tokio::test(start_paused = true)]
async fn min_idle_is_refilled_with_new_ones() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).min_idle(3).build().await.unwrap();
    pool.invalidate();
    eventually("three are idle again", || pool.metrics().counts.idle == 3).await;
    pool.invalidate();
    pool.invalidate();
    eventually("three are idle again", || pool.metrics().counts.idle == 3).await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.created, metrics.closed.invalidated), (9, 6));
}

#[tokio::test(start_paused = true)]
async fn invalidate_changes_nothing_about_a_closed_pool_or_an_empty_one() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    pool.invalidate();
    let held = pool.acquire().await.unwrap();
    drop(pool.acquire().await.unwrap());
    pool.close().await;
    pool.invalidate();
    drop(held);
    eventually("both are closed", || manager.ledger.live() == 0).await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.total(), manager.ledger.closed()), (2, 2), "once each");
}

/// Connections know the epoch in which their connect began; an invalidation is the end of one.
fn epochs(order: IdleOrder, shards: usize) {
    const THREADS: usize = 3;
    let epoch = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicU64::new(0));
    let opened = Arc::new(AtomicU64::new(0));
    let manager = from_fn({
        let (epoch, opened) = (epoch.clone(), opened.clone());
        move || {
            let began_in = epoch.load(Ordering::SeqCst);
            let opened = opened.clone();
            async move {
                if opened.fetch_add(1, Ordering::SeqCst) % 3 == 0 {
                    yield_now().await;
                }
                Ok::<_, Infallible>(began_in)
            }
        }
    });
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    let runtime = runtime.expect("a runtime");
    let pool = runtime.block_on(async {
        let pool = Pool::builder(manager).max_size(4).order(order).shards(shards);
        pool.acquire_timeout(PATIENCE).build_lazy().unwrap()
    });
    let done = Arc::new(AtomicBool::new(false));
    let users: Vec<_> = (0..THREADS)
        .map(|user| {
            let (pool, over, done) = (pool.clone(), over.clone(), done.clone());
            let mut random = Random::new(user as u64 + 77);
            thread::spawn(move || {
                let mut acquires = 0;
                while acquires == 0 || !done.load(Ordering::SeqCst) {
                    let oldest = over.load(Ordering::SeqCst);
                    let held = match random.below(3) {
                        0 => match pool.try_acquire() {
                            Ok(held) => held,
                            Err(_) => continue,
                        },
                        _ => pool.acquire_blocking().unwrap(),
                    };
                    assert!(*held >= oldest, "one of {} in {oldest}", *held);
                    acquires += 1;
                    if random.below(3) == 0 {
                        thread::yield_now();
                    }
                }
                acquires
            })
        })
        .collect();
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let (pool, over, done) = (pool.clone(), over.clone(), done.clone());
            runtime.spawn(async move {
                while !done.load(Ordering::SeqCst) {
                    let oldest = over.load(Ordering::SeqCst);
                    let held = pool.acquire().await.unwrap();
                    assert!(*held >= oldest, "one of {} in {oldest}", *held);
                    yield_now().await;
                }
            })
        })
        .collect();
    let invalidators: Vec<_> = (0..2)
        .map(|_| {
            let (pool, epoch, over) = (pool.clone(), epoch.clone(), over.clone());
            thread::spawn(move || {
                let began = std::time::Instant::now();
                // Until there was something to invalidate: the users may be late.
                let enough = || pool.metrics().closed.invalidated > 100;
                for round in 0.. {
                    if round >= 600 && enough() {
                        break;
                    }
                    assert!(began.elapsed() < PATIENCE, "{:?}", pool.metrics());
                    let next = epoch.fetch_add(1, Ordering::SeqCst) + 1;
                    pool.invalidate();
                    over.fetch_max(next, Ordering::SeqCst);
                    if round % 4 == 0 {
                        thread::sleep(Duration::from_micros(50));
                    }
                }
            })
        })
        .collect();
    invalidators.into_iter().for_each(join);
    done.store(true, Ordering::SeqCst);
    let acquires: u64 = users.into_iter().map(join).sum();
    for task in tasks {
        runtime.block_on(joined(task));
    }
    assert!(acquires > 0);
    runtime.block_on(async {
        at_rest(&pool).await;
        is_whole(&pool).await;
    });
}

#[test]
fn no_acquire_that_begins_after_invalidate_gets_an_old_connection() {
    for order in ORDERS {
        for shards in [1, 2] {
            epochs(order, shards);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn retain_sees_each_idle_connection_once_and_none_in_use() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 9).shards(2).order(order).reserved(Priority::High, 2);
        let pool = pool.build_lazy().unwrap();
        pool.warm_up(7).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(pool.acquire().await.unwrap());
        }
        let mut seen = Vec::new();
        let removed = pool.retain(|connection, info| {
            assert_eq!(connection.id as u64, info.id);
            connection.note = 9;
            seen.push(connection.id);
            true
        });
        let in_use: BTreeSet<_> = held.iter().map(|guard| guard.id).collect();
        let once: BTreeSet<_> = seen.iter().copied().collect();
        assert_eq!((removed, seen.len(), once.len()), (0, 4, 4), "{order:?} {seen:?}");
        assert!(once.is_disjoint(&in_use), "{once:?} {in_use:?}");
        assert!(held.iter().all(|guard| guard.note == 0));
        drop(held);
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!((metrics.counts.idle, metrics.closed.total(), metrics.acquires), (7, 0, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn retain_closes_what_is_not_wanted_and_counts_it() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 6).order(order).build_lazy().unwrap();
        pool.warm_up(6).await.unwrap();
        let removed = pool.retain(|_, info| info.id % 3 == 0);
        assert_eq!((removed, pool.metrics().counts.idle), (4, 2));
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!((metrics.closed.removed, metrics.closed.total()), (4, 4));
        assert_eq!(manager.ledger.closed(), 4);
        let left = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
        assert_eq!(left.iter().map(|guard| guard.id).collect::<BTreeSet<_>>(), [3, 6].into());
        drop(left);
        assert_eq!(pool.retain(|_, _| false), 2);
        assert_eq!(pool.retain(|_, _| false), 0);
        has_all_its_slots(&pool).await;
    }
}

#[tokio::test(start_paused = true)]
async fn retain_leaves_no_mark_on_what_stays() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).check(CheckPolicy::Always).build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(pool.retain(|_, info| info.uses == 1 && info.idle >= 8 * SECOND), 0);
    assert_eq!(pool.retain(|_, info| info.uses == 1 && info.idle >= 8 * SECOND), 0);
    assert_eq!(manager.check.calls(), 0);
    assert_eq!(pool.acquire().await.unwrap().info().uses, 2);
    assert_eq!(manager.check.calls(), 1, "the check that it owed");
}

#[tokio::test(start_paused = true)]
async fn retain_leaves_the_order_of_idle_connections_alone() {
    for order in ORDERS {
        let mut orders = Vec::new();
        for retains in [false, true] {
            let manager = TestManager::new();
            let pool = pool_of(&manager, 4).order(order).shards(1).build_lazy().unwrap();
            has_all_its_slots(&pool).await;
            if retains {
                assert_eq!(pool.retain(|_, _| true), 0);
            }
            let idle: Vec<_> = std::iter::from_fn(|| pool.try_acquire().ok()).collect();
            orders.push(idle.iter().map(|guard| guard.id).collect::<Vec<_>>());
        }
        assert_eq!(orders[0].len(), 4);
        assert_eq!(orders[1], orders[0], "{order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_has_not_been_idle_for_longer_than_it_is_there() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).idle_timeout(None).build_lazy().unwrap();
    for _ in 0..2 {
        // Nobody has ever been in those places, and then for an hour.
        tokio::time::sleep(3600 * SECOND).await;
        pool.warm_up(2).await.unwrap();
        let idle = |_: &mut Conn, info: &ConnectionInfo| {
            assert_eq!(info.idle, Duration::ZERO);
            false
        };
        assert_eq!(pool.retain(idle), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_is_told_when_a_connection_was_used_last_and_whether_it_is_in_use() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    pool.warm_up(1).await.unwrap();
    let idle = || {
        let mut told = None;
        pool.retain(|_, info| {
            told = Some(*info);
            true
        });
        told.expect("it is there")
    };
    let unused = idle();
    assert_eq!((unused.state, unused.last_used), (ConnectionState::Idle, None));
    tokio::time::sleep(5 * SECOND).await;
    let held = pool.acquire().await.unwrap().info();
    assert_eq!(held.state, ConnectionState::InUse);
    assert_eq!(held.last_used, Some(held.created + 5 * SECOND));
    tokio::time::sleep(10 * SECOND).await;
    let rested = idle();
    assert_eq!((rested.state, rested.uses), (ConnectionState::Idle, 1));
    let last_used = rested.last_used.expect("it has been used");
    assert!(last_used >= held.last_used.unwrap(), "{rested:?}");
    assert_eq!(last_used + rested.idle, rested.created + rested.age);
    assert!(rested.idle >= 8 * SECOND, "{rested:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_in_use_since_the_last_look_has_not_been_idle() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let idle = || {
        let mut idle = None;
        pool.retain(|_, info| {
            idle = Some(info.idle);
            true
        });
        idle.expect("it is there")
    };
    let held = pool.acquire().await.unwrap();
    tokio::time::sleep(10 * SECOND + SECOND / 2).await;
    drop(held);
    assert_eq!(idle(), Duration::ZERO, "the last look saw it in use");
    tokio::time::sleep(10 * SECOND).await;
    assert!(idle() >= 8 * SECOND);
    drop(pool.acquire().await.unwrap());
    assert_eq!(idle(), Duration::ZERO, "the last look saw it idle");
}

#[tokio::test(start_paused = true)]
async fn retain_holds_up_nobody_but_the_connection_that_it_shows() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 3).order(order).build_lazy().unwrap();
        pool.warm_up(3).await.unwrap();
        let mut shown = 0;
        pool.retain(|connection, _| {
            shown += 1;
            let others = [pool.try_acquire().unwrap(), pool.try_acquire().unwrap()];
            assert!(others.iter().all(|other| other.id != connection.id));
            assert!(pool.try_acquire().is_err());
            assert_eq!(pool.metrics().counts.checking, 1);
            true
        });
        assert!(shown >= 1);
        assert_eq!(balanced(&pool, &manager.ledger).await.counts.idle, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_gets_what_retain_keeps_and_a_new_one_for_what_it_removes() {
    for (keep, id) in [(true, 1), (false, 2)] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 1).build_lazy().unwrap();
        pool.warm_up(1).await.unwrap();
        let mut waiter = pin!(pool.acquire());
        pool.retain(|_, _| {
            assert!(poll_once(waiter.as_mut()).is_pending());
            keep
        });
        assert_eq!(waiter.await.unwrap().id, id);
        balanced(&pool, &manager.ledger).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_retains_closure_costs_the_connection_that_it_saw() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 4).order(order).build_lazy().unwrap();
        pool.warm_up(4).await.unwrap();
        let mut shown = 0;
        let panic = catch_unwind(AssertUnwindSafe(|| {
            pool.retain(|_, _| {
                shown += 1;
                assert!(shown < 3, "scripted panic in retain");
                true
            })
        }));
        assert!(panic.is_err());
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!((metrics.counts.idle, metrics.closed.total()), (3, 1));
        assert_eq!(pool.retain(|_, _| true), 0);
        has_all_its_slots(&pool).await;
    }
}

#[tokio::test(start_paused = true)]
async fn retains_closure_may_close_resize_and_invalidate_the_pool() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    pool.warm_up(4).await.unwrap();
    pool.retain(|_, _| {
        pool.resize(3).unwrap();
        true
    });
    assert_eq!(balanced_at(&pool, &manager, 3).await, 3);
    pool.retain(|_, _| {
        pool.invalidate();
        true
    });
    assert_eq!(balanced_at(&pool, &manager, 3).await, 0);
    pool.warm_up(3).await.unwrap();
    pool.retain(|_, _| {
        let _ = poll_once(pin!(pool.close()));
        true
    });
    assert_eq!(balanced_at(&pool, &manager, 3).await, 0);
    assert!(pool.is_closed());
}

/// How many are idle once nothing is under way; with `size` slots in service.
async fn balanced_at(pool: &Pool<TestManager>, manager: &TestManager, size: usize) -> usize {
    let metrics = balanced(pool, &manager.ledger).await;
    assert_eq!(metrics.counts.in_service(), size);
    metrics.counts.idle
}

#[tokio::test(start_paused = true)]
async fn rotate_opens_a_connection_of_the_new_generation_before_the_old_ones_go() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    pool.warm_up(2).await.unwrap();
    let held = pool.acquire().await.unwrap();
    let verify = verifier(|connection| {
        assert_eq!((connection.id, manager.ledger.live(), manager.ledger.closed()), (3, 3, 0));
        connection.note = 5;
        let pool = pool.clone();
        Box::pin(async move {
            let old = pool.acquire().await.expect("the old ones are still in service");
            assert!(old.id < 3);
            Ok(())
        })
    });
    pool.rotate(verify).await.unwrap();
    let new = pool.acquire().await.unwrap();
    assert_eq!((new.id, new.note, manager.connect.calls()), (3, 5, 3), "it is used");
    assert_eq!((new.info().uses, held.note), (1, 0));
    drop((new, held));
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.invalidated, metrics.closed.total()), (2, 2));
    assert_eq!(metrics.counts.idle, 1);
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_cannot_connect_keeps_the_old_connections() {
    for act in [Act::Error, Act::Permanent, Act::Panic, Act::Never] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 4).build_lazy().unwrap();
        pool.warm_up(3).await.unwrap();
        manager.connect.once(act);
        let error = pool.rotate(passes).await.unwrap_err();
        let RotateError::Connect(cause) = error else { panic!("{error:?}") };
        match act {
            Act::Panic => assert!(matches!(cause.error, OperationError::Panicked { .. })),
            Act::Never => assert!(matches!(cause.error, OperationError::TimedOut { .. })),
            _ => assert!(matches!(cause.error, OperationError::Failed(_))),
        }
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!((metrics.counts.idle, metrics.closed.total()), (3, 0));
        assert_eq!((metrics.connect_failures, metrics.created), (1, 3));
        assert!(pool.acquire().await.unwrap().id <= 3);
        has_all_its_slots(&pool).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_rotation_is_refused_for_good_is_not_tried_again_for_the_pools_own_sake() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).min_idle(2).build().await.unwrap();
    manager.connect.always(Act::Permanent);
    let error = pool.rotate(passes).await.unwrap_err();
    assert!(matches!(error, RotateError::Connect(_)), "{error:?}");
    turns().await;
    assert_eq!(manager.connect.calls(), 3, "two at first, and one attempt of the rotation's");
    assert!(pool.status().to_string().contains("for good"), "{}", pool.status());
    manager.connect.calm();
    pool.rotate(passes).await.unwrap();
    eventually("as many are idle as are to be", || pool.counts().idle == 2).await;
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_rotation_of_a_full_pool_that_is_refused_for_good_leaves_those_who_wait_to_the_others() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).build_lazy().unwrap();
    pool.warm_up(3).await.unwrap();
    manager.connect.always(Act::Permanent);
    assert!(matches!(pool.rotate(passes).await, Err(RotateError::Connect(_))));
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let mut waiters: Vec<_> = (0..4).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    turns().await;
    assert_eq!(manager.connect.calls(), 4, "three at first, and one attempt of the rotation's");
    drop(held);
    for waiter in waiters {
        drop(waiter.await.unwrap());
    }
    assert_eq!(manager.connect.calls(), 4);
    balanced(&pool, &manager.ledger).await;
    // What the rotation took away is opened once that works again.
    manager.connect.calm();
    pool.warm_up(3).await.unwrap();
    has_all_its_slots(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn a_success_ends_the_pause_after_a_rotation_that_was_refused_for_good() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).backoff(SECOND, 3_600 * SECOND).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Permanent);
    assert!(matches!(pool.rotate(passes).await, Err(RotateError::Connect(_))));
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    turns().await;
    assert_eq!((manager.connect.calls(), pool.counts().waiters), (2, 1));
    let mut other = pin!(pool.acquire());
    assert!(poll_once(other.as_mut()).is_pending());
    pool.warm_up(2).await.unwrap();
    drop((waiter.await.unwrap(), other.await.unwrap()));
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_after_a_rotation_that_was_refused_hears_why() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    pool.warm_up(2).await.unwrap();
    manager.connect.always(Act::Permanent);
    let refused = pool.rotate(passes).await.unwrap_err();
    let cause = |error: &dyn Error| {
        error
            .source()
            .and_then(|cause| cause.downcast_ref())
            .map(OperationError::<TestError>::to_string)
    };
    assert_eq!(cause(&refused).as_deref(), Some("scripted connect error"));
    let held = pool.acquire().await.unwrap();
    let error = pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    let AcquireError::Timeout(timeout) = &error else { panic!("{error:?}") };
    assert_eq!(timeout.stage(), Stage::ConnectFailing);
    assert_eq!(cause(&error).as_deref(), Some("scripted connect error"));
    drop(held);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn the_pause_after_a_rotation_that_was_refused_ends_when_it_is_over_or_the_last_one_has_gone()
{
    for has_gone in [false, true] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 2).backoff(SECOND, 10 * SECOND);
        let pool = pool.acquire_timeout(60 * SECOND).build_lazy().unwrap();
        let mut held = Some(pool.acquire().await.unwrap());
        manager.connect.always(Act::Permanent);
        pool.rotate(passes).await.unwrap_err();
        sleep(2 * SECOND).await;
        let mut waiter = pin!(pool.acquire());
        assert!(poll_once(waiter.as_mut()).is_pending());
        sleep(7 * SECOND).await;
        assert_eq!(manager.connect.calls(), 2);
        if has_gone {
            held.take().unwrap().discard();
            let refused = waiter.await.map(drop);
            assert!(matches!(refused, Err(AcquireError::Connect(_))), "{refused:?}");
            assert_eq!(manager.connect.calls(), 3);
        } else {
            manager.connect.calm();
            sleep(2 * SECOND).await;
            assert_eq!((manager.connect.calls(), waiter.await.unwrap().id), (3, 2));
        }
        drop(held);
        balanced(&pool, &manager.ledger).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_after_another_failure_is_no_shorter_for_a_rotation_that_is_refused_meanwhile() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).backoff(SECOND, 10 * SECOND);
    let pool = pool.acquire_timeout(60 * SECOND).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Error);
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    eventually("connecting has failed", || pool.metrics().connect_failures == 1).await;
    manager.connect.once(Act::Permanent);
    pool.rotate(passes).await.unwrap_err();
    assert_eq!(manager.connect.calls(), 3);
    sleep(9 * SECOND).await;
    assert_eq!(manager.connect.calls(), 3, "an account would have been locked");
    sleep(2 * SECOND).await;
    assert_eq!((manager.connect.calls(), waiter.await.unwrap().id), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn a_rotation_whose_connection_does_not_pass_keeps_the_old_ones() {
    for act in [Act::Error, Act::Panic, Act::Never] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 4).build_lazy().unwrap();
        pool.warm_up(3).await.unwrap();
        let verify = verifier(|_| {
            Box::pin(async move {
                match act {
                    Act::Error => Err(TestError { what: "verify", permanent: false }),
                    Act::Panic => panic!("scripted panic in verify"),
                    _ => std::future::pending().await,
                }
            })
        });
        let error = pool.rotate(verify).await.unwrap_err();
        let RotateError::Verify(cause) = error else { panic!("{error:?}") };
        match act {
            Act::Panic => assert!(matches!(cause, OperationError::Panicked { .. })),
            Act::Error => assert!(matches!(cause, OperationError::Failed(_))),
            _ => assert_eq!(cause.to_string(), "no answer within 1s (check_timeout)"),
        }
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!((metrics.counts.idle, metrics.created), (3, 4));
        assert_eq!((metrics.closed.failed_check, metrics.closed.total()), (1, 1));
        assert_eq!(metrics.checks, 0, "a verification is none");
        assert_eq!(manager.ledger.closed(), 1);
        assert!(pool.acquire().await.unwrap().id <= 3);
        has_all_its_slots(&pool).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_for_which_there_is_no_room_keeps_the_old_connections() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).acquire_timeout(SECOND).build_lazy().unwrap();
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let began = tokio::time::Instant::now();
    let error = pool.rotate(passes).await.unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 1);
    assert!(matches!(error, RotateError::NoRoom(AcquireError::Timeout(_))), "{error:?}");
    drop(held);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.created, metrics.closed.total()), (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_pool_makes_room_and_never_has_more_than_its_size() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).build_lazy().unwrap();
    pool.warm_up(3).await.unwrap();
    pool.rotate(passes).await.unwrap();
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.invalidated, metrics.created, metrics.counts.idle), (3, 4, 1));
    assert_eq!((manager.ledger.most_live(), manager.ledger.closed()), (3, 3));
}

/// The next one is refused. What has passed the first is all that is left, while the others are closing.
#[tokio::test(start_paused = true)]
async fn a_rotation_right_after_another_one_waits_for_what_is_closing_and_takes_nothing_else() {
    for act in [Act::Error, Act::Permanent] {
        for min_idle in 0..=3 {
            let manager = TestManager::new();
            let pool = pool_of(&manager, 3).min_idle(min_idle).build_lazy().unwrap();
            pool.warm_up(3).await.unwrap();
            manager.close.once(Act::Ok);
            manager.close.always(Act::Gated);
            pool.rotate(passes).await.unwrap();
            manager.connect.always(act);
            let mut rotation = pin!(pool.rotate(passes));
            assert!(poll_once(rotation.as_mut()).is_pending());
            assert_eq!(pool.metrics().counts.idle, 1, "{act:?}, {min_idle}");
            manager.close.open(2);
            let error = rotation.await.unwrap_err();
            assert!(matches!(error, RotateError::Connect(_)), "{error:?}");
            let metrics = pool.metrics();
            let closed = (metrics.closed.invalidated, metrics.closed.total());
            assert_eq!(closed, (3, 3), "{act:?}, {min_idle}");
            assert_eq!(pool.acquire().await.unwrap().id, 4, "the one that has passed");
            manager.clear();
            has_all_its_slots(&pool).await;
            balanced(&pool, &manager.ledger).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_waits_for_what_is_closing_hears_of_a_close_and_may_be_cancelled() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).close_timeout(10 * SECOND).build_lazy().unwrap();
    pool.warm_up(2).await.unwrap();
    let held = pool.acquire().await.unwrap();
    manager.close.once(Act::Gated);
    held.discard();
    {
        let mut rotation = pin!(pool.rotate(passes));
        assert!(poll_once(rotation.as_mut()).is_pending());
    }
    assert_eq!((pool.counts().idle, pool.counts().closing), (1, 1));
    let mut rotation = pin!(pool.rotate(passes));
    assert!(poll_once(rotation.as_mut()).is_pending());
    let mut close = pin!(pool.close());
    assert!(poll_once(close.as_mut()).is_pending());
    let Poll::Ready(rotated) = poll_once(rotation.as_mut()) else { panic!("it waits on") };
    assert!(matches!(rotated, Err(RotateError::Closed)), "{rotated:?}");
    manager.close.open(1);
    close.await;
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_hangs_keeps_a_rotation_from_the_last_connection_for_close_timeout_only() {
    for refused in [true, false] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 2).close_timeout(2 * SECOND).build_lazy().unwrap();
        pool.warm_up(1).await.unwrap();
        manager.connect.once(Act::Gated);
        let held = pool.acquire().await.unwrap();
        {
            let mut waiter = pin!(pool.acquire());
            assert!(poll_once(waiter.as_mut()).is_pending());
            eventually("another one is being opened", || manager.connect.running() == 1).await;
        }
        drop(held);
        let began = tokio::time::Instant::now();
        let mut rotation = pin!(pool.rotate(passes));
        assert!(poll_once(rotation.as_mut()).is_pending());
        assert_eq!((pool.counts().idle, pool.counts().connecting), (1, 1));
        if refused {
            manager.connect.refuse();
        }
        rotation.await.unwrap();
        let metrics = pool.metrics();
        assert_eq!((began.elapsed().as_secs(), metrics.created), (if refused { 0 } else { 2 }, 2));
        manager.connect.refuse();
        assert_eq!(balanced(&pool, &manager.ledger).await.closed.invalidated, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_that_hangs_holds_a_rotation_up_for_its_timeout_only() {
    let manager = TestManager::new();
    manager.close.once(Act::Never);
    let pool = pool_of(&manager, 1).close_timeout(2 * SECOND).build_lazy().unwrap();
    pool.warm_up(1).await.unwrap();
    let began = tokio::time::Instant::now();
    pool.rotate(passes).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.created, manager.ledger.most_live()), (2, 1));

    // And no longer than it may wait at all.
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).close_timeout(5 * SECOND).acquire_timeout(SECOND);
    let pool = pool.build_lazy().unwrap();
    pool.warm_up(2).await.unwrap();
    manager.close.once(Act::Never);
    pool.acquire().await.unwrap().discard();
    let began = tokio::time::Instant::now();
    pool.rotate(passes).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 1);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_close_waits_for_what_a_rotation_is_closing_to_make_room() {
    for is_cancelled in [false, true] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 1).build_lazy().unwrap();
        pool.warm_up(1).await.unwrap();
        manager.close.once(Act::Gated);
        let mut rotation = Box::pin(pool.rotate(passes));
        assert!(poll_once(rotation.as_mut()).is_pending());
        let mut close = pin!(pool.close());
        assert!(poll_once(close.as_mut()).is_pending(), "it is being closed");
        if is_cancelled {
            drop(rotation);
        } else {
            manager.close.open(1);
            let rotated = rotation.await;
            assert!(matches!(rotated, Err(RotateError::Closed)), "{rotated:?}");
        }
        assert!(poll_once(close.as_mut()).is_ready(), "it is closed");
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!((metrics.closed.invalidated, metrics.closed.total()), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_of_a_pool_in_use_takes_the_first_connection_that_comes_back() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    let mut rotation = pin!(pool.rotate(passes));
    assert!(poll_once(rotation.as_mut()).is_pending());
    let [first, second] = held;
    drop(first);
    rotation.await.unwrap();
    assert_eq!(manager.ledger.most_live(), 2);
    assert_eq!(waiter.await.unwrap().id, 3);
    drop(second);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.invalidated, metrics.closed.total()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_waits_for_room_opens_one_connection_and_has_nobody_else_open_any() {
    // The only connection ends.
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut rotation = pin!(pool.rotate(passes));
    assert!(poll_once(rotation.as_mut()).is_pending());
    held.discard();
    rotation.await.unwrap();
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.created, metrics.closed.invalidated), (2, 0));

    // And the new way fails.
    let held = pool.acquire().await.unwrap();
    let mut rotation = pin!(pool.rotate(passes));
    assert!(poll_once(rotation.as_mut()).is_pending());
    manager.connect.once(Act::Error);
    held.discard();
    let error = rotation.await.unwrap_err();
    assert!(matches!(error, RotateError::Connect(_)), "{error:?}");
    assert_eq!(manager.connect.calls(), 3);

    // A reserved slot is vacant, and the new way fails for good.
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).reserved(Priority::High, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Permanent);
    let error = pool.rotate(passes).await.unwrap_err();
    assert!(matches!(error, RotateError::Connect(_)), "{error:?}");
    drop(held);
    assert_eq!((pool.acquire().await.unwrap().id, manager.connect.calls()), (1, 2));
    balanced(&pool, &manager.ledger).await;
}

/// Such as one with credentials that are good no more.
#[tokio::test(start_paused = true)]
async fn a_rotation_that_waits_for_room_takes_that_of_a_connect_that_is_refused() {
    for (fail_fast, by_warm_up) in [(false, false), (false, true), (true, false), (true, true)] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 1).fail_fast(fail_fast).build_lazy().unwrap();
        manager.connect.once(Act::Gated);
        let old = tokio::spawn({
            let pool = pool.clone();
            async move {
                match by_warm_up {
                    true => pool.warm_up(1).await.is_ok(),
                    false => pool.acquire().await.is_ok(),
                }
            }
        });
        eventually("it is being opened", || manager.connect.running() == 1).await;
        let mut rotation = pin!(pool.rotate(passes));
        assert!(poll_once(rotation.as_mut()).is_pending());
        if fail_fast {
            manager.connect.refuse();
        } else {
            manager.connect.refuse_for_good();
        }
        let rotated = rotation.await;
        assert!(rotated.is_ok(), "{fail_fast}, {by_warm_up}: {rotated:?}");
        assert!(!old.await.unwrap(), "whoever waits for it hears of it");
        assert_eq!(balanced(&pool, &manager.ledger).await.counts.idle, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_opened_for_min_idle_in_the_room_that_a_rotation_waits_for() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).min_idle(1).build().await.unwrap();
    let held = pool.acquire().await.unwrap();
    let mut rotation = pin!(pool.rotate(passes));
    assert!(poll_once(rotation.as_mut()).is_pending());
    held.discard();
    turns().await;
    rotation.await.unwrap();
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.created, metrics.closed.invalidated), (2, 0));
    assert_eq!(metrics.counts.idle, 1);

    // One that is cancelled leaves that room to it.
    let held = pool.acquire().await.unwrap();
    {
        let mut rotation = pin!(pool.rotate(passes));
        assert!(poll_once(rotation.as_mut()).is_pending());
        held.discard();
        turns().await;
    }
    eventually("one is idle", || pool.counts().idle == 1).await;
    balanced(&pool, &manager.ledger).await;
}

/// Two slots, neither of which is vacant, and a rotation that has been served and is not polled.
#[tokio::test(start_paused = true)]
async fn a_rotation_that_is_not_polled_hides_nobody_who_waits() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).acquire_timeout(SECOND).build_lazy().unwrap();
    let [first, second] = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let mut rotation = pin!(pool.rotate(passes));
    assert!(poll_once(rotation.as_mut()).is_pending());
    drop(first);
    second.discard();
    assert_eq!(pool.acquire().await.unwrap().id, 3, "there is a slot for it");
    rotation.await.unwrap();
    balanced(&pool, &manager.ledger).await;
    has_all_its_slots(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_rotation_closes_the_new_connection_and_keeps_the_old_ones() {
    // Waiting for room.
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    {
        let mut rotation = pin!(pool.rotate(passes));
        assert!(poll_once(rotation.as_mut()).is_pending());
    }
    drop(held);
    assert_eq!(balanced(&pool, &manager.ledger).await.counts.idle, 2);

    // Closing the one that makes room.
    manager.close.once(Act::Never);
    {
        let mut rotation = pin!(pool.rotate(passes));
        assert!(poll_once(rotation.as_mut()).is_pending());
        assert_eq!(manager.close.running(), 1);
    }
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.counts.vacant, metrics.closed.total()), (1, 1, 1));

    // Connecting.
    manager.connect.once(Act::Never);
    {
        let mut rotation = pin!(pool.rotate(passes));
        assert!(poll_once(rotation.as_mut()).is_pending());
        eventually("it connects", || manager.connect.running() == 1).await;
    }
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.counts.vacant, metrics.closed.total()), (1, 1, 1));

    // Not polled since it has connected.
    {
        let mut rotation = pin!(pool.rotate(passes));
        assert!(poll_once(rotation.as_mut()).is_pending());
        eventually("it has connected", || pool.counts().checking == 1).await;
    }
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.counts.vacant, metrics.closed.total()), (1, 1, 2));

    // Verifying.
    {
        let (begun, mut begins) = tokio::sync::oneshot::channel();
        let verify = verifier(|_| {
            begun.send(()).unwrap();
            Box::pin(std::future::pending())
        });
        let mut rotation = pin!(pool.rotate(verify));
        let begins = poll_fn(|cx| {
            assert!(rotation.as_mut().poll(cx).is_pending());
            pin!(&mut begins).poll(cx)
        });
        begins.await.unwrap();
        assert_eq!(pool.metrics().counts.checking, 1);
    }
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.counts.vacant, metrics.closed.total()), (1, 1, 3));
    assert!(pool.acquire().await.unwrap().id <= 2);
    has_all_its_slots(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn a_connect_of_the_old_generation_that_is_under_way_is_closed_after_a_rotation() {
    let manager = TestManager::new();
    manager.connect.once(Act::Gated);
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    eventually("a dial is under way", || manager.connect.running() == 1).await;
    pool.rotate(passes).await.unwrap();
    assert_eq!(waiter.await.unwrap().id, 1, "the new one");
    manager.connect.open(1);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.invalidated, metrics.created, metrics.counts.idle), (1, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_a_rotation_opened_before_invalidate_goes_too() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let verify = verifier(|_| {
        pool.invalidate();
        Box::pin(async { Ok(()) })
    });
    pool.rotate(verify).await.unwrap();
    assert_eq!(pool.acquire().await.unwrap().id, 2, "the first began before the invalidation");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.invalidated, metrics.created), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn the_last_of_two_rotations_at_once_leaves_nothing_older_than_itself() {
    for open in 0..=1 {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 4).build_lazy().unwrap();
        pool.warm_up(open).await.unwrap();
        let verify = verifier(|_| {
            Box::pin(async {
                sleep(100 * MILLISECOND).await;
                Ok(())
            })
        });
        let (first, second) = tokio::join!(pool.rotate(verify), pool.rotate(passes));
        first.unwrap();
        second.unwrap();
        let all = open as u64 + 2;
        assert_eq!(pool.acquire().await.unwrap().id, all as usize, "what the last has opened");
        assert_eq!(balanced(&pool, &manager.ledger).await.closed.invalidated, all - 1);
        has_all_its_slots(&pool).await;
    }
}

/// The new way is wrong. Whatever the first has got to when the second comes, what is left is for those who acquire.
#[tokio::test(start_paused = true)]
async fn two_rotations_at_once_that_fail_leave_the_last_connection_to_those_who_acquire() {
    let mut left = Vec::new();
    for stage in ["in line", "closing", "connecting", "verifying"] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 2).build_lazy().unwrap();
        let mut held = vec![pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
        match stage {
            "in line" => {}
            "closing" => manager.close.once(Act::Gated),
            "connecting" => manager.connect.once(Act::Gated),
            _ => manager.connect.once(Act::Ok),
        }
        manager.connect.always(Act::Error);
        let verify = verifier(|_| {
            Box::pin(async {
                sleep(100 * MILLISECOND).await;
                Err(TestError { what: "verify", permanent: false })
            })
        });
        if stage != "in line" {
            held.clear();
        }
        let mut first = pin!(pool.rotate(verify));
        assert!(poll_once(first.as_mut()).is_pending(), "{stage}");
        let goes_on = async {
            turns().await;
            held.clear();
            manager.close.open(1);
            manager.connect.open(1);
        };
        let (first, second, ()) = tokio::join!(first, pool.rotate(passes), goes_on);
        assert!(first.is_err() && second.is_err(), "{stage}: {first:?}, {second:?}");
        let metrics = balanced(&pool, &manager.ledger).await;
        left.push((stage, metrics.counts.idle));
    }
    assert!(left.iter().all(|(_, idle)| *idle == 1), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_waits_for_its_turn_and_for_room_within_acquire_timeout_in_all() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).acquire_timeout(2 * SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let rotate = || async {
        let began = tokio::time::Instant::now();
        let error = pool.rotate(passes).await.unwrap_err();
        assert!(matches!(error, RotateError::NoRoom(AcquireError::Timeout(_))), "{error:?}");
        began.elapsed().as_secs()
    };
    let second = async {
        sleep(SECOND).await;
        rotate().await
    };
    assert_eq!(tokio::join!(rotate(), second), (2, 2));
    drop(held);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_rotation_gets_in_line_however_long_it_has_waited_for_what_is_being_opened() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).acquire_timeout(SECOND).close_timeout(SECOND);
    let pool = pool.connect_timeout(600 * SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Never);
    let given_up = pool.acquire_timeout(Duration::ZERO).await;
    assert!(given_up.is_err());
    eventually("one is being opened", || pool.counts().connecting == 1).await;
    let give_back = async {
        sleep(SECOND + SECOND / 2).await;
        drop(held);
    };
    tokio::join!(pool.rotate(passes), give_back).0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rotation_whose_new_connection_says_that_it_is_lost_leaves_the_others() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    pool.warm_up(3).await.unwrap();
    manager.watch.once(Act::Error);
    let error = pool.rotate(passes).await.unwrap_err();
    let RotateError::Connect(lost) = &error else { panic!("{error:?}") };
    assert!(matches!(lost.error, OperationError::Lost { .. }), "{lost}");
    assert_eq!((pool.counts().idle, pool.metrics().closed.broken), (3, 1));
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_waits_for_another_one_hears_of_its_end_of_a_close_and_of_the_time() {
    let never = || verifier(|_| Box::pin(std::future::pending()));
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).acquire_timeout(2 * SECOND).check_timeout(600 * SECOND);
    let pool = pool.build_lazy().unwrap();
    pool.warm_up(2).await.unwrap();
    let mut first = Box::pin(pool.rotate(never()));
    assert!(poll_once(first.as_mut()).is_pending());

    // The first takes too long.
    let began = tokio::time::Instant::now();
    let error = pool.rotate(passes).await.unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 2);
    assert!(matches!(error, RotateError::NoRoom(AcquireError::Timeout(_))), "{error:?}");
    assert_eq!(pool.counts().idle, 1, "it has taken nothing");

    // It is given up; one that waited and is given up as well holds nobody up.
    let mut given_up = Box::pin(pool.rotate(passes));
    assert!(poll_once(given_up.as_mut()).is_pending());
    let second = pool.rotate(passes);
    let second = async {
        let mut second = pin!(second);
        assert!(poll_once(second.as_mut()).is_pending());
        drop((given_up, first));
        second.await
    };
    second.await.unwrap();
    assert_eq!(balanced(&pool, &manager.ledger).await.counts.idle, 1);

    // The pool is closed.
    let mut first = pin!(pool.rotate(never()));
    assert!(poll_once(first.as_mut()).is_pending());
    let mut second = pin!(pool.rotate(passes));
    assert!(poll_once(second.as_mut()).is_pending());
    pool.close().await;
    let Poll::Ready(rotated) = poll_once(second.as_mut()) else { panic!("it waits on") };
    assert!(matches!(rotated, Err(RotateError::Closed)), "{rotated:?}");
    assert!(matches!(first.await, Err(RotateError::Closed)));
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn rotations_beside_acquires_lose_no_slot() {
    let manager = TestManager::new();
    manager.connect.always(Act::Slow(MILLISECOND));
    let pool = pool_of(&manager, 3).acquire_timeout(60 * SECOND).build_lazy().unwrap();
    let users: Vec<_> = (0..5)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    let held = pool.acquire().await.unwrap();
                    tokio::time::sleep(MILLISECOND).await;
                    drop(held);
                }
            })
        })
        .collect();
    let mut rotated = 0;
    while !users.iter().all(tokio::task::JoinHandle::is_finished) {
        pool.rotate(passes).await.unwrap();
        rotated += 1;
    }
    for user in users {
        user.await.unwrap();
    }
    assert!(rotated > 5);
    balanced(&pool, &manager.ledger).await;
    has_all_its_slots(&pool).await;
}

#[tokio::test(start_paused = true)]
async fn rotation_of_a_pool_that_is_closed_or_gets_closed_says_so() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut no_room = pin!(pool.rotate(passes));
    assert!(poll_once(no_room.as_mut()).is_pending());
    pool.close().await;
    let error = no_room.await.unwrap_err();
    assert!(matches!(error, RotateError::Closed), "{error:?}");
    assert!(matches!(pool.rotate(passes).await, Err(RotateError::Closed)));
    drop(held);
    balanced(&pool, &manager.ledger).await;

    let drained = TestManager::new();
    let pool = pool_of(&drained, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut no_room = pin!(pool.rotate(passes));
    assert!(poll_once(no_room.as_mut()).is_pending());
    let mut drain = pin!(pool.drain(SECOND));
    assert!(poll_once(drain.as_mut()).is_pending());
    let error = no_room.await.unwrap_err();
    assert!(matches!(error, RotateError::Closed), "{error:?}");
    drop(held);
    drop(drain.await);

    manager.connect.always(Act::Never);
    let pool = pool_of(&manager, 1).connect_timeout(600 * SECOND).build_lazy().unwrap();
    let mut connecting = pin!(pool.rotate(passes));
    assert!(poll_once(connecting.as_mut()).is_pending());
    eventually("it connects", || manager.connect.running() == 1).await;
    pool.close().await;
    let began = tokio::time::Instant::now();
    let error = connecting.await.unwrap_err();
    assert!(matches!(error, RotateError::Closed), "{error:?}");
    assert!(began.elapsed() < SECOND, "a connect under way is ended by close");
    eventually("it is given up", || manager.connect.running() == 0).await;
    assert_eq!(pool.counts().connecting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_is_being_verified_is_ended_by_close_and_holds_up_no_drain() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).check_timeout(600 * SECOND).build_lazy().unwrap();
    let mut verifying = pin!(pool.rotate(verifier(|_| Box::pin(std::future::pending()))));
    assert!(poll_once(verifying.as_mut()).is_pending());
    let began = tokio::time::Instant::now();
    let (rotated, report) = tokio::join!(verifying, pool.drain(60 * SECOND));
    assert!(matches!(rotated, Err(RotateError::Closed)), "{rotated:?}");
    assert_eq!((report.closed, began.elapsed()), (1, Duration::ZERO));
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.drained, metrics.closed.total()), (1, 1));
    assert_eq!(manager.ledger.closed(), 1, "by the manager");

    // Verified and closed at the same time.
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let (gate, gated) = tokio::sync::oneshot::channel::<()>();
    let verify = verifier(|_| {
        Box::pin(async move {
            gated.await.unwrap();
            Ok(())
        })
    });
    let mut verifying = pin!(pool.rotate(verify));
    assert!(poll_once(verifying.as_mut()).is_pending());
    pool.close().await;
    gate.send(()).unwrap();
    let rotated = verifying.await;
    assert!(matches!(rotated, Err(RotateError::Closed)), "{rotated:?}");
    balanced(&pool, &manager.ledger).await;
}

fn on_one_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Such as a thread that goes over to new credentials, and blocks or ends then.
#[test]
fn a_rotation_opens_its_connection_on_the_pools_runtime_wherever_it_is_awaited() {
    for ends in [false, true] {
        let mut own = tokio::runtime::Builder::new_multi_thread();
        let own = own.worker_threads(1).enable_all().build().unwrap();
        let echo = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = echo.local_addr().unwrap();
        let manager = from_fn(move || async move {
            Ok::<_, std::io::Error>((Handle::current().id(), TcpStream::connect(address).await?))
        });
        let pool = own.block_on(Pool::builder(manager).max_size(1).build()).unwrap();
        let other = on_one_thread();
        other.block_on(pool.rotate(|_| Box::pin(async { Ok(()) }))).unwrap();
        let other = (!ends).then_some(other);
        let (mut peer, _) = echo.accept().unwrap();
        let answers = thread::spawn(move || {
            let mut said = [0; 4];
            peer.read_exact(&mut said).unwrap();
            peer.write_all(&said).unwrap();
        });
        let use_it = async {
            let mut guard = pool.acquire().await.unwrap();
            let (runtime, stream) = &mut *guard;
            assert_eq!(*runtime, Handle::current().id(), "ends: {ends}");
            let mut heard = [0; 4];
            stream.write_all(b"ping").await.unwrap();
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"ping");
        };
        own.block_on(async { tokio::time::timeout(PATIENCE, use_it).await }).expect("an answer");
        join(answers);
        drop(other);
    }
}

#[test]
fn a_rotation_hears_of_a_close_and_of_its_pools_end_though_nobody_drives_its_connect() {
    for is_closed in [false, true] {
        let (manager, own, other) = (TestManager::new(), on_one_thread(), on_one_thread());
        let pool = own.block_on(pool_of(&manager, 1).build()).unwrap();
        let mut rotation = pin!(pool.rotate(passes));
        {
            let _entered = other.enter();
            assert!(poll_once(rotation.as_mut()).is_pending());
        }
        assert_eq!(pool.counts().connecting, 1);
        if is_closed {
            other.block_on(pool.close());
            let rotated = other.block_on(rotation);
            assert!(matches!(rotated, Err(RotateError::Closed)), "{rotated:?}");
            drop(own);
            assert_eq!(pool.counts().connecting, 0);
        } else {
            drop(own);
            let rotated = other.block_on(rotation);
            assert!(matches!(rotated, Err(RotateError::NoRuntime)), "{rotated:?}");
            other.block_on(has_all_its_slots(&pool));
            other.block_on(pool.rotate(passes)).expect("where those who come are");
        }
        other.block_on(balanced(&pool, &manager.ledger));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_is_given_up_makes_its_room_the_next_ones() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).build_lazy().unwrap();
    pool.warm_up(2).await.unwrap();
    manager.connect.once(Act::Never);
    let mut first = Box::pin(pool.rotate(passes));
    assert!(poll_once(first.as_mut()).is_pending());
    eventually("it connects", || manager.connect.running() == 1).await;
    manager.connect.once(Act::Error);
    let mut second = pin!(pool.rotate(passes));
    assert!(poll_once(second.as_mut()).is_pending());
    drop(first);
    let error = second.await.unwrap_err();
    assert!(matches!(error, RotateError::Connect(_)), "{error:?}");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.closed.total()), (2, 0));
}

#[test]
fn rotation_outside_a_runtime_is_an_error() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let error = pollster::block_on(pool.rotate(passes)).unwrap_err();
    assert!(matches!(error, RotateError::NoRuntime));
}

#[test]
fn a_blocking_pool_invalidates_and_retains_in_the_same_way() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).build_blocking().unwrap();
    drop([pool.acquire().unwrap(), pool.acquire().unwrap(), pool.acquire().unwrap()]);
    assert_eq!(pool.retain(|_, info| info.id != 2), 1);
    let held = pool.acquire().unwrap();
    pool.invalidate();
    let new = pool.acquire().unwrap();
    assert!(new.id > 3);
    drop((held, new));
    eventually_blocking("the old ones are closed", || manager.ledger.closed() == 3);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_outdated_takes_all_that_are_as_old_along() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    pool.warm_up(4).await.unwrap();
    let found_out = pool.acquire().await.unwrap();
    let also_found_out = pool.acquire().await.unwrap();
    let unaware = pool.acquire().await.unwrap();
    manager.condition.once(OUTDATED);
    drop(found_out);
    let metrics = pool.metrics();
    assert_eq!((metrics.closed.invalidated, metrics.counts.idle), (2, 0), "the idle one too");
    drop(unaware);
    let mut fresh = pool.acquire().await.unwrap();
    assert_eq!(fresh.id, 5);
    fresh.note = 1;
    drop(fresh);
    // Somebody else finds out the same, later.
    manager.condition.once(OUTDATED);
    assert!(matches!(also_found_out.release().await, Err(ReleaseError::Broken)));
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.invalidated, metrics.closed.total()), (4, 4));
    assert_eq!((metrics.counts.idle, metrics.created), (1, 5), "the new one stays");
}

#[tokio::test(start_paused = true)]
async fn where_each_connection_is_found_outdated_the_others_go_along_once_a_second() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).build_lazy().unwrap();
    let closed_by_another_one = async || {
        pool.warm_up(3).await.unwrap();
        let before = pool.metrics().closed.invalidated;
        manager.condition.once(OUTDATED);
        drop(pool.acquire().await.unwrap());
        pool.metrics().closed.invalidated - before
    };
    assert_eq!(closed_by_another_one().await, 3, "also in the pool's first second");
    for _ in 0..9 {
        sleep(100 * MILLISECOND).await;
        assert_eq!(closed_by_another_one().await, 1, "the server is as it was");
    }
    sleep(100 * MILLISECOND).await;
    assert_eq!(closed_by_another_one().await, 3, "it may be another one by now");
    assert_eq!(closed_by_another_one().await, 1);
    pool.warm_up(3).await.unwrap();
    pool.invalidate();
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!(
        (metrics.counts.idle, metrics.closed.invalidated),
        (0, 3 + 9 + 3 + 1 + 3),
        "by hand"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_found_outdated_late_keeps_nobody_from_finding_out_what_is_new() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    pool.warm_up(3).await.unwrap();
    let [first, late] = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    manager.condition.always(OUTDATED);
    drop(first);
    pool.warm_up(4).await.unwrap();
    sleep(SECOND).await;
    drop(late);
    pool.warm_up(4).await.unwrap();
    let before = pool.metrics().closed.invalidated;
    drop(pool.acquire().await.unwrap());
    assert_eq!(pool.metrics().closed.invalidated - before, 4);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_outdated_takes_the_others_along_though_on_checkin_panics() {
    for released in [false, true] {
        let manager = TestManager::new();
        let hooks = Hooks::new().on_checkin(|_| panic!("scripted panic in on_checkin"));
        let pool = pool_of(&manager, 3).hooks(hooks).build_lazy().unwrap();
        pool.warm_up(3).await.unwrap();
        let found_out = pool.acquire().await.unwrap();
        manager.condition.once(OUTDATED);
        if released {
            assert!(matches!(found_out.release().await, Err(ReleaseError::Rejected)));
        } else {
            drop(found_out);
        }
        assert_eq!(pool.counts().idle, 0, "the others are as old (released: {released})");
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!((metrics.closed.rejected, metrics.closed.invalidated), (1, 2));
        assert_eq!(pool.acquire().await.unwrap().id, 4);
    }
}

#[cfg(feature = "cluster")]
mod in_a_cluster {
    use super::*;
    use millpond::{TryAcquireError, cluster::Cluster};

    async fn two_nodes() -> (Cluster<String, TestManager>, [TestManager; 2]) {
        let managers = [TestManager::new(), TestManager::new()];
        let cluster = Cluster::builder().build().unwrap();
        for (key, manager) in ["a", "b"].into_iter().zip(&managers) {
            cluster.add_node(key.to_owned(), manager.clone()).unwrap();
            cluster.node(key).unwrap().warm_up(2).await.unwrap();
        }
        (cluster, managers)
    }

    #[tokio::test(start_paused = true)]
    async fn the_connections_of_one_node_or_of_all_are_declared_out_of_date() {
        let (cluster, managers) = two_nodes().await;
        let held = cluster.acquire("b").await.unwrap();
        cluster.node("a").unwrap().invalidate();
        turns().await;
        assert_eq!(managers.each_ref().map(|manager| manager.ledger.live()), [0, 2]);
        cluster.invalidate();
        turns().await;
        assert_eq!(managers[1].ledger.live(), 1, "the one that is held");
        drop(held);
        turns().await;
        assert_eq!(managers[1].ledger.live(), 0);
        assert_eq!(cluster.node("b").unwrap().metrics().closed.invalidated, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_operated_through_its_handle() {
        let (cluster, managers) = two_nodes().await;
        let node = cluster.node("a").unwrap();
        let held = node.try_acquire().unwrap();
        let holders = cluster.holders();
        assert_eq!(holders.len(), 1);
        assert_eq!((holders[0].0.as_str(), holders[0].1.connection), ("a", held.info().id));
        assert_eq!(node.holders().len(), 1);
        drop(held);
        assert_eq!(node.retain(|_, _| false), 2);
        assert!(matches!(node.try_acquire(), Err(TryAcquireError::Empty)));
        node.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap();
        turns().await;
        assert_eq!((managers[0].ledger.live(), node.metrics().closed.removed), (1, 2));
        drop(cluster.remove_node("a", Duration::ZERO).await.unwrap());
        assert!(matches!(node.try_acquire(), Err(TryAcquireError::Closed)));
        assert_eq!(node.metrics().counts.idle, 0);
    }
}
