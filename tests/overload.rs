//! More callers than connections: limits of the line, shedding, priorities, a server that is down,
//! and callers who wait for each other.

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::{
    AcquireError, AcquireOptions, CheckPolicy, Deadlock, Hooks, Pool, PoolBuilder, Pooled,
    Priority, RotateError, Shed, Stage, TryAcquireError, blocking,
};
use std::collections::VecDeque;
use std::error::Error;
use std::future::ready;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::task::Poll;
use std::thread;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep, timeout};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const TARGET: Duration = Duration::from_millis(20);
const INTERVAL: Duration = Duration::from_millis(100);

fn pool_of(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    hush_scripted_panics();
    Pool::builder(manager.clone()).max_size(max_size).acquire_timeout(60 * SECOND)
}

/// Awaits a condition without the clock, which stands still while `spawn_blocking` is at work.
async fn soon(what: &str, mut condition: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "still not: {what}");
        yield_now().await;
        thread::yield_now();
    }
}

// The line's length.

#[tokio::test(start_paused = true)]
async fn the_line_is_full_when_max_waiters_wait_and_has_room_when_one_leaves() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).max_waiters(3).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut waiters: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    for refused in 1..4 {
        let error = pool.acquire().await.unwrap_err();
        assert!(matches!(error, AcquireError::QueueFull), "{error:?}");
        assert!(error.to_string().contains("max_waiters"), "{error}");
        assert_eq!(pool.metrics().waits.queue_full, refused);
        assert_eq!(pool.metrics().counts.waiters, 3);
    }
    assert!(matches!(pool.try_acquire(), Err(TryAcquireError::Empty)));
    let mut high = pin!(pool.acquire_with(Priority::High));
    assert!(poll_once(high.as_mut()).is_pending(), "high ones are not refused");
    drop(waiters.pop());
    assert!(matches!(pool.acquire().await, Err(AcquireError::QueueFull)), "two and the high one");
    drop(waiters.pop());
    let mut late = pin!(pool.acquire());
    assert!(poll_once(late.as_mut()).is_pending());
    drop(held);
    drop(high.await.unwrap());
    drop(waiters.pop().unwrap().await.unwrap());
    drop(late.await.unwrap());
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.waits.queue_full, metrics.acquires, metrics.waits.timed_out), (4, 4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_rotation_in_line_is_one_of_those_who_wait_and_is_not_refused() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).max_waiters(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut waiter = Box::pin(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    let mut rotation = pin!(pool.rotate(|_| Box::pin(async { Ok(()) })));
    assert!(poll_once(rotation.as_mut()).is_pending(), "it is not refused");
    drop(waiter);
    assert!(matches!(pool.acquire().await, Err(AcquireError::QueueFull)), "it is in line");
    drop(held);
    rotation.await.unwrap();
    assert_eq!(balanced(&pool, &manager.ledger).await.acquires, 1);
}

#[test]
fn max_waiters_is_exact_when_many_come_at_once() {
    const COMERS: usize = 10;
    const MOST: usize = 4;
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).max_waiters(MOST).build_blocking().unwrap();
    for round in 1..=40 {
        let held = pool.acquire().unwrap();
        let barrier = Arc::new(Barrier::new(COMERS));
        let comers: Vec<_> = (0..COMERS)
            .map(|_| {
                let (pool, barrier) = (pool.clone(), barrier.clone());
                thread::spawn(move || {
                    barrier.wait();
                    pool.acquire().map(drop)
                })
            })
            .collect();
        let refused = (round * (COMERS - MOST)) as u64;
        eventually_blocking("all have come", || {
            let metrics = pool.metrics();
            metrics.waits.queue_full == refused && metrics.counts.waiters == MOST
        });
        drop(held);
        let answers: Vec<_> = comers.into_iter().map(join).collect();
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), MOST);
        let full = |answer: &&_| matches!(answer, Err(AcquireError::QueueFull));
        assert_eq!(answers.iter().filter(full).count(), COMERS - MOST);
    }
    assert_eq!(pool.metrics().counts.waiters, 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_finds_something_idle_does_not_care_about_max_waiters() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).max_waiters(1).build_lazy().unwrap();
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    assert!(matches!(pool.acquire().await, Err(AcquireError::QueueFull)), "the line is full");
    drop(held);
    // One is on its way to the waiter, which does not know yet; the other one is idle.
    drop(pool.acquire().await.expect("it does not wait"));
    drop(waiter.await.unwrap());
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.waits.queue_full, metrics.acquires), (1, 4));
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_connection_fails_its_check_is_not_refused_though_the_line_is_full_by_now() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).max_waiters(1).check(CheckPolicy::Always).build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Never);
    let checking = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await.map(drop) }
    });
    eventually("it is being checked", || manager.check.running() == 1).await;
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    assert!(matches!(pool.acquire().await, Err(AcquireError::QueueFull)));
    // The check takes too long, and by then somebody fills the line.
    drop(waiter.await.unwrap());
    checking.await.unwrap().expect("it has been let in before");
    balanced(&pool, &manager.ledger).await;
}

#[test]
fn a_thread_whose_connection_fails_its_check_is_not_refused_though_the_line_is_full_by_now() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).max_waiters(1).check(CheckPolicy::Always);
    let pool = pool.check_timeout(PATIENCE).build_blocking().unwrap();
    drop(pool.acquire().unwrap());
    manager.check.once(Act::Gated);
    let comer = || {
        let pool = pool.clone();
        thread::spawn(move || pool.acquire().map(drop))
    };
    let checking = comer();
    eventually_blocking("it is being checked", || manager.check.running() == 1);
    manager.connect.once(Act::Gated);
    let waiter = comer();
    eventually_blocking("the line is full", || pool.metrics().counts.waiters == 1);
    manager.check.refuse();
    eventually_blocking("both wait", || pool.metrics().counts.waiters == 2);
    manager.connect.open(1);
    join(checking).expect("it has been let in before");
    join(waiter).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_has_to_begin_again_is_not_refused_though_the_line_is_full_by_now() {
    let manager = TestManager::new();
    let first = AtomicBool::new(true);
    let hooks = Hooks::new().on_checkout(move |conn: &Conn| {
        let rejects = conn.id == 1 && !first.swap(false, Ordering::SeqCst);
        assert!(!rejects, "scripted panic in on_checkout");
    });
    let pool = pool_of(&manager, 1).shards(1).max_waiters(2).hooks(hooks).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut again = pin!(pool.acquire());
    let mut second = pin!(pool.acquire());
    let mut third = pin!(pool.acquire());
    assert!(poll_once(again.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    drop(held);
    assert!(poll_once(third.as_mut()).is_pending(), "one has been called up");
    assert!(poll_once(again.as_mut()).is_pending(), "and is back in line, as the third");
    assert_eq!(pool.metrics().counts.waiters, 3);
    drop(second.await.unwrap());
    drop(third.await.unwrap());
    drop(again.await.unwrap());
    assert_eq!(balanced(&pool, &manager.ledger).await.waits.queue_full, 0);
}

#[test]
fn a_thread_that_has_to_begin_again_is_not_refused_though_the_line_is_full_by_now() {
    let manager = TestManager::new();
    let watched: Arc<OnceLock<millpond::blocking::Pool<TestManager>>> = Arc::default();
    let first = AtomicBool::new(true);
    let hooks = Hooks::new().on_checkout({
        let watched = watched.clone();
        move |conn: &Conn| {
            if conn.id == 1 && !first.swap(false, Ordering::SeqCst) {
                let pool = watched.get().expect("it is built");
                eventually_blocking("the line is full", || pool.metrics().counts.waiters == 2);
                panic!("scripted panic in on_checkout");
            }
        }
    });
    let pool = pool_of(&manager, 1).max_waiters(2).hooks(hooks).build_blocking().unwrap();
    assert!(watched.set(pool.clone()).is_ok());
    let held = pool.acquire().unwrap();
    manager.connect.once(Act::Gated);
    let comer = || {
        let pool = pool.clone();
        thread::spawn(move || pool.acquire().map(drop))
    };
    let mut comers = Vec::new();
    for waiters in 1..=2 {
        comers.push(comer());
        eventually_blocking("it waits", || pool.metrics().counts.waiters == waiters);
    }
    drop(held);
    eventually_blocking("one has been called up", || pool.metrics().counts.waiters == 1);
    comers.push(comer());
    eventually_blocking("it is back in line", || pool.metrics().counts.waiters == 3);
    manager.connect.open(1);
    for comer in comers {
        join(comer).unwrap();
    }
    let metrics = pool.metrics();
    assert_eq!((metrics.waits.queue_full, metrics.closed.rejected, metrics.acquires), (0, 1, 4));
}

// Waiters who leave.

#[tokio::test(start_paused = true)]
async fn an_expired_or_cancelled_waiter_is_not_handed_a_connection() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).shards(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut cancelled = Box::pin(pool.acquire());
    assert!(poll_once(cancelled.as_mut()).is_pending());
    assert!(pool.acquire_timeout(SECOND).await.is_err(), "expired");
    let mut stays = pin!(pool.acquire());
    assert!(poll_once(stays.as_mut()).is_pending());
    drop(cancelled);
    assert_eq!(pool.metrics().counts.waiters, 1);
    drop(held);
    let Poll::Ready(served) = poll_once(stays.as_mut()) else { panic!("it went to somebody else") };
    assert_eq!(served.unwrap().info().uses, 2, "and to nobody between");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.acquires, metrics.waits.timed_out, metrics.created), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn waiters_who_have_left_cost_no_dial() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    let mut waiters: Vec<_> = (0..20).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    sleep(SECOND).await;
    drop(waiters);
    sleep(5 * SECOND).await;
    let calls = manager.connect.calls();
    sleep(60 * SECOND).await;
    assert_eq!(manager.connect.calls(), calls, "nobody wants one");
    manager.clear();
    drop(pool.acquire().await.unwrap());
    drop(held);
    assert_eq!(balanced(&pool, &manager.ledger).await.created, 2, "one for the only caller");
}

/// Its `on_checkout` turns every connection away, so that each acquire begins again.
fn rejecting(manager: &TestManager) -> PoolBuilder<TestManager> {
    let hooks = Hooks::new().on_checkout(|_| panic!("scripted panic in on_checkout"));
    pool_of(manager, 1).hooks(hooks)
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_has_to_begin_again_keeps_its_deadline() {
    let manager = TestManager::new();
    manager.connect.always(Act::Slow(300 * MILLISECOND));
    // A pause that is next to nothing between two that are rejected.
    let pool = rejecting(&manager).backoff(MILLISECOND, MILLISECOND);
    let pool = pool.acquire_timeout(SECOND).build_lazy().unwrap();
    let began = Instant::now();
    let error = pool.acquire().await.unwrap_err();
    assert!(matches!(error, AcquireError::Timeout(_)), "{error:?}");
    assert_eq!(began.elapsed(), SECOND);
    assert_eq!(manager.connect.calls(), 4, "it did begin again");
    let began = Instant::now();
    assert!(pool.acquire_timeout(700 * MILLISECOND).await.is_err());
    assert_eq!(began.elapsed(), 700 * MILLISECOND);
    assert_eq!(balanced(&pool, &manager.ledger).await.acquires, 0);
}

#[test]
fn a_blocking_acquire_that_has_to_begin_again_keeps_its_deadline() {
    let manager = TestManager::new();
    let pool = rejecting(&manager).backoff(MILLISECOND, MILLISECOND).build_blocking().unwrap();
    let thread = thread::spawn(move || {
        let began = std::time::Instant::now();
        let error = pool.acquire_timeout(SECOND).unwrap_err();
        assert!(began.elapsed() >= SECOND, "{:?}", began.elapsed());
        error
    });
    // With a deadline of its own for each time it would go on without end.
    let error = join(thread);
    assert!(matches!(error, AcquireError::Timeout(_)), "{error:?}");
    assert!(manager.connect.calls() > 1, "it did begin again");
}

// Shedding.

#[tokio::test(start_paused = true)]
async fn a_line_that_never_empties_sheds_the_oldest_in_the_next_interval() {
    let manager = TestManager::new();
    let shed = Shed::new(TARGET, INTERVAL);
    let pool = pool_of(&manager, 1).shards(1).shed(shed).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut old: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut old {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    sleep(100 * MILLISECOND).await;
    drop(held);
    let first = old.remove(0).await.expect("nobody is turned away in the first interval");
    sleep(100 * MILLISECOND).await;
    let mut young = pin!(pool.acquire());
    assert!(poll_once(young.as_mut()).is_pending());
    sleep(2 * TARGET).await;
    drop(first);
    for waiter in old {
        match waiter.await {
            Err(AcquireError::Shed { waited }) => assert_eq!(waited, 240 * MILLISECOND),
            answer => panic!("{answer:?}"),
        }
    }
    let served = young.await.expect("it has waited for twice the target and no more");
    assert_eq!(pool.metrics().shed, 2);
    drop(served);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.acquires, metrics.waits.timed_out, metrics.shed), (3, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn shedding_that_only_reports_counts_and_serves() {
    let manager = TestManager::new();
    let shed = Shed::new(TARGET, INTERVAL).report_only();
    let pool = pool_of(&manager, 1).shards(1).shed(shed).build_lazy().unwrap();
    let mut held = pool.acquire().await.unwrap();
    let mut waiters: Vec<_> = (0..4).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    for (served, waiter) in waiters.into_iter().enumerate() {
        sleep(110 * MILLISECOND).await;
        drop(held);
        held = waiter.await.unwrap();
        assert_eq!(pool.metrics().shed, served as u64, "all but the first");
    }
    drop(held);
    assert_eq!(balanced(&pool, &manager.ledger).await.acquires, 5);
}

#[tokio::test(start_paused = true)]
async fn callers_with_high_priority_are_not_shed() {
    let manager = TestManager::new();
    let shed = Shed::new(TARGET, INTERVAL);
    let pool = pool_of(&manager, 1).shards(1).shed(shed).build_lazy().unwrap();
    let mut held = pool.acquire().await.unwrap();
    let mut high: Vec<_> = (0..4).map(|_| Box::pin(pool.acquire_with(Priority::High))).collect();
    let mut normal = pin!(pool.acquire());
    for waiter in &mut high {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    assert!(poll_once(normal.as_mut()).is_pending());
    for waiter in high {
        sleep(110 * MILLISECOND).await;
        drop(held);
        held = waiter.await.unwrap();
    }
    assert_eq!(pool.metrics().shed, 0);
    drop(held);
    assert!(matches!(normal.await, Err(AcquireError::Shed { .. })), "it is not");
}

#[tokio::test(start_paused = true)]
async fn those_with_priority_who_are_served_at_once_do_not_keep_the_others_from_being_shed() {
    let manager = TestManager::new();
    let shed = Shed::new(TARGET, INTERVAL);
    let pool = pool_of(&manager, 2).shards(1).shed(shed).reserved(Priority::High, 1);
    let pool = pool.build_lazy().unwrap();
    let mut held = pool.acquire().await.unwrap();
    let mut waiters: VecDeque<_> = (0..8).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    while let Some(waiter) = waiters.pop_front() {
        // A health probe, which finds a reserved connection, and the line full of others.
        drop(pool.acquire_with(Priority::High).await.unwrap());
        sleep(INTERVAL / 2).await;
        drop(held);
        match waiter.await {
            Ok(served) => held = served,
            Err(AcquireError::Shed { .. }) => break,
            Err(error) => panic!("{error}"),
        }
        let mut newcomer = Box::pin(pool.acquire());
        assert!(poll_once(newcomer.as_mut()).is_pending());
        waiters.push_back(newcomer);
        assert!(pool.metrics().acquires < 100, "nobody is shed");
    }
    assert_eq!(pool.metrics().shed, 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_shed_as_long_as_the_line_empties_now_and_then() {
    let manager = TestManager::new();
    let shed = Shed::new(TARGET, INTERVAL);
    let pool = pool_of(&manager, 1).shards(1).shed(shed).build_lazy().unwrap();
    for _ in 0..10 {
        let held = pool.acquire().await.unwrap();
        let mut first = pin!(pool.acquire());
        let mut last = pin!(pool.acquire());
        assert!(poll_once(first.as_mut()).is_pending());
        assert!(poll_once(last.as_mut()).is_pending());
        sleep(45 * MILLISECOND).await;
        drop(held);
        let held = first.await.unwrap();
        sleep(45 * MILLISECOND).await;
        drop(held);
        drop(last.await.unwrap());
    }
    assert_eq!(pool.metrics().shed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_burst_after_a_quiet_time_is_served_whole() {
    let manager = TestManager::new();
    let shed = Shed::new(TARGET, INTERVAL);
    let pool = pool_of(&manager, 1).shards(1).shed(shed).build_lazy().unwrap();
    for _ in 0..3 {
        let held = pool.acquire().await.unwrap();
        let mut waiters: Vec<_> = (0..4).map(|_| Box::pin(pool.acquire())).collect();
        for waiter in &mut waiters {
            assert!(poll_once(waiter.as_mut()).is_pending());
        }
        sleep(90 * MILLISECOND).await;
        drop(held);
        for waiter in waiters {
            drop(waiter.await.unwrap());
        }
        sleep(10 * SECOND).await;
    }
    assert_eq!(pool.metrics().shed, 0);
}

#[tokio::test(start_paused = true)]
async fn long_waits_of_long_ago_shed_nobody() {
    let manager = TestManager::new();
    let shed = Shed::new(TARGET, INTERVAL);
    let pool = pool_of(&manager, 1).shards(1).shed(shed).build_lazy().unwrap();
    for _ in 0..3 {
        let held = pool.acquire().await.unwrap();
        let mut served = Box::pin(pool.acquire());
        let mut leaves = Box::pin(pool.acquire());
        assert!(poll_once(served.as_mut()).is_pending());
        assert!(poll_once(leaves.as_mut()).is_pending());
        sleep(90 * MILLISECOND).await;
        drop(held);
        // The line was not empty then, and nobody sees it empty afterwards.
        let served = served.await.unwrap();
        drop(leaves);
        drop(served);
        sleep(10 * SECOND).await;
    }
    assert_eq!(pool.metrics().shed, 0);
}

#[tokio::test(start_paused = true)]
async fn blocking_callers_are_shed_too() {
    let manager = TestManager::new();
    let shed = Shed::new(TARGET, INTERVAL);
    let pool = pool_of(&manager, 1).shards(1).shed(shed).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut first = Box::pin(pool.acquire());
    assert!(poll_once(first.as_mut()).is_pending());
    let blocking = tokio::task::spawn_blocking({
        let pool = pool.clone();
        move || pool.acquire_blocking().map(drop)
    });
    soon("both wait", || pool.metrics().counts.waiters == 2).await;
    advance(100 * MILLISECOND).await;
    drop(held);
    let held = first.await.unwrap();
    advance(110 * MILLISECOND).await;
    drop(held);
    let answer = blocking.await.unwrap();
    assert!(matches!(answer, Err(AcquireError::Shed { .. })), "{answer:?}");
    assert_eq!(balanced(&pool, &manager.ledger).await.shed, 1);
}

// Priorities.

#[tokio::test(start_paused = true)]
async fn high_priority_is_served_before_normal_callers_who_came_first() {
    for shards in [1, 4] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 1).shards(shards).build_lazy().unwrap();
        let held = pool.acquire().await.unwrap();
        let mut normal: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire())).collect();
        for waiter in &mut normal {
            assert!(poll_once(waiter.as_mut()).is_pending());
        }
        let mut first = pin!(pool.acquire_with(Priority::High));
        let mut second = pin!(pool.acquire_with(Priority::High));
        assert!(poll_once(first.as_mut()).is_pending());
        assert!(poll_once(second.as_mut()).is_pending());
        drop(held);
        let held = first.await.unwrap();
        turns().await;
        assert!(normal.iter_mut().all(|waiter| poll_once(waiter.as_mut()).is_pending()));
        drop(held);
        drop(second.await.unwrap());
        for waiter in normal {
            drop(waiter.await.unwrap());
        }
        balanced(&pool, &manager.ledger).await;
    }
}

/// As somebody asks who goes first, and waits no longer than this.
fn first_within(limit: Duration) -> AcquireOptions {
    AcquireOptions::new().priority(Priority::High).timeout(limit)
}

#[tokio::test(start_paused = true)]
async fn priority_and_a_deadline_of_ones_own_go_together() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).acquire_timeout(4 * SECOND);
    let pool = pool.maintenance_interval(100 * MILLISECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut normal = pin!(pool.acquire_timeout(Duration::MAX));
    assert!(poll_once(normal.as_mut()).is_pending());
    for (limit, error) in [
        (SECOND, pool.acquire_with(first_within(SECOND)).await.unwrap_err()),
        (SECOND, pool.acquire_owned_with(first_within(SECOND)).await.unwrap_err()),
        (4 * SECOND, pool.acquire_with(AcquireOptions::new()).await.unwrap_err()),
        (4 * SECOND, pool.acquire_owned_with(Priority::High).await.unwrap_err()),
    ] {
        let AcquireError::Timeout(timeout) = error else { panic!("{error:?}") };
        assert_eq!((timeout.waited(), timeout.stage()), (limit, Stage::Queued));
        assert_eq!((timeout.counts().in_use, timeout.counts().waiters), (1, 1));
        let holder = timeout.longest_held().expect("somebody holds it");
        assert!(holder.site.is_some_and(|site| site.file() == file!()), "{holder}");
    }
    assert_eq!(pool.metrics().waits.timed_out, 4);
    let mut first = pin!(pool.acquire_with(first_within(SECOND)));
    assert!(poll_once(first.as_mut()).is_pending());
    drop(held);
    let held = first.await.expect("before the one who came before");
    let mut second = pin!(pool.acquire_owned_with(first_within(SECOND)));
    assert!(poll_once(second.as_mut()).is_pending());
    drop(held);
    let held = second.await.expect("so is this one");
    turns().await;
    assert!(poll_once(normal.as_mut()).is_pending());
    drop(held);
    drop(normal.await.unwrap());
    balanced(&pool, &manager.ledger).await;
}

#[test]
fn a_thread_with_priority_may_have_a_deadline_of_its_own() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_blocking().unwrap();
    let held = pool.acquire().unwrap();
    let normal = thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_timeout(PATIENCE).map(drop).unwrap()
    });
    eventually_blocking("it waits", || pool.counts().waiters == 1);
    for refused in [
        pool.acquire_with(first_within(Duration::ZERO)).map(drop),
        pool.acquire_owned_with(first_within(20 * MILLISECOND)).map(drop),
    ] {
        assert!(matches!(refused, Err(AcquireError::Timeout(_))), "{refused:?}");
    }
    let first = thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_owned_with(first_within(PATIENCE)).unwrap()
    });
    eventually_blocking("both wait", || pool.counts().waiters == 2);
    drop(held);
    let held = join(first);
    assert_eq!(pool.counts().waiters, 1, "the other one still does");
    drop(held);
    join(normal);
}

#[tokio::test(start_paused = true)]
async fn reserved_connections_never_go_to_normal_callers() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).reserved(Priority::High, 2).build_lazy().unwrap();
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(pool.acquire_with(Priority::High).await.unwrap());
    }
    drop(all);
    let bulk = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    assert_eq!(pool.metrics().counts.idle, 2);
    assert!(matches!(pool.try_acquire(), Err(TryAcquireError::Empty)));
    let mut normal = Box::pin(pool.acquire());
    assert!(poll_once(normal.as_mut()).is_pending());
    for _ in 0..5 {
        let high = [
            pool.acquire_with(Priority::High).await.unwrap(),
            pool.acquire_with(Priority::High).await.unwrap(),
        ];
        let [first, second] = high;
        drop(first);
        second.discard();
        turns().await;
        assert!(poll_once(normal.as_mut()).is_pending(), "not even with nobody else in line");
    }
    drop(bulk);
    drop(normal.await.unwrap());
    let error = {
        let _bulk = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
        pool.acquire_timeout(SECOND).await.unwrap_err()
    };
    assert!(matches!(error, AcquireError::Timeout(_)));
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn vacant_reserved_slots_are_not_dialled_for_normal_callers() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).reserved(Priority::High, 1).build_lazy().unwrap();
    let bulk = pool.acquire().await.unwrap();
    assert!(pool.acquire_timeout(SECOND).await.is_err());
    assert_eq!(manager.connect.calls(), 1);
    drop(pool.acquire_with(Priority::High).await.unwrap());
    assert_eq!(manager.connect.calls(), 2);
    drop(bulk);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn no_more_reserved_connections_are_opened_than_callers_wait_who_may_have_them() {
    for (min_idle, normal) in [(0, 2), (2, 0)] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 5).reserved(Priority::High, 3).min_idle(min_idle);
        let pool = pool.build_lazy().unwrap();
        let _held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
        let mut waiters: Vec<_> = (0..normal).map(|_| Box::pin(pool.acquire())).collect();
        for waiter in &mut waiters {
            assert!(poll_once(waiter.as_mut()).is_pending());
        }
        turns().await;
        assert_eq!(manager.connect.calls(), 2);
        let high = pool.acquire_with(Priority::High).await.unwrap();
        turns().await;
        assert_eq!((manager.connect.calls(), pool.counts().idle), (3, 0), "min_idle {min_idle}");
        let both = [pool.acquire_with(Priority::High), pool.acquire_with(Priority::High)];
        let mut both = both.map(Box::pin);
        for waiter in &mut both {
            assert!(poll_once(waiter.as_mut()).is_pending());
        }
        for served in both {
            drop(served.await.unwrap());
        }
        assert_eq!(manager.connect.calls(), 5, "and one for each of those");
        drop(high);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reserved_connection_is_opened_beside_connects_for_others_that_hang() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 5).reserved(Priority::High, 3).build_lazy().unwrap();
    let [first, second] = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    first.discard();
    second.discard();
    eventually("both have gone", || pool.counts().alive() == 0).await;
    manager.connect.once(Act::Never);
    manager.connect.once(Act::Never);
    let mut normal = [pool.acquire(), pool.acquire()].map(Box::pin);
    for waiter in &mut normal {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    turns().await;
    assert_eq!(manager.connect.running(), 2);
    let began = Instant::now();
    drop(pool.acquire_with(Priority::High).await.unwrap());
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn no_more_reserved_connections_are_opened_beside_late_ones_elsewhere_than_callers_wait() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 5).reserved(Priority::High, 3).max_connecting(8);
    let pool = pool.connect_timeout(600 * SECOND).build_lazy().unwrap();
    let warm = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    warm.into_iter().for_each(Pooled::discard);
    eventually("both have gone", || pool.counts().alive() == 0).await;
    manager.connect.once(Act::Never);
    manager.connect.once(Act::Never);
    let mut normal = [pool.acquire(), pool.acquire()].map(Box::pin);
    for waiter in &mut normal {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    sleep(2 * SECOND).await;
    assert_eq!((manager.connect.calls(), manager.connect.running()), (4, 2));
    let _high = pool.acquire_with(Priority::High).await.unwrap();
    turns().await;
    assert_eq!(manager.connect.calls(), 5, "one for the one who may have it");
}

#[tokio::test(start_paused = true)]
async fn a_reserved_connection_is_opened_beside_another_one_that_hangs() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).reserved(Priority::High, 2).connect_timeout(600 * SECOND);
    let pool = pool.build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Never);
    let began = Instant::now();
    let _high = pool.acquire_with(Priority::High).await.unwrap();
    assert!(began.elapsed() <= 1_001 * MILLISECOND, "{:?}", began.elapsed());
    assert_eq!((manager.connect.calls(), manager.connect.running()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn build_and_warm_up_come_to_an_end_without_the_reserved_connections() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).reserved(Priority::High, 2).min_idle(4);
    let pool = timeout(60 * SECOND, pool.build()).await.expect("it does not hang").unwrap();
    assert_eq!(pool.metrics().counts.idle, 2);
    let warm_up = timeout(60 * SECOND, pool.warm_up(4)).await;
    warm_up.expect("it does not hang").unwrap();
    drop(pool.acquire_with(Priority::High).await.unwrap());
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn reserved_connections_are_none_of_those_that_are_kept_idle_for_everybody() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 6).reserved(Priority::High, 2).min_idle(2).build().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(pool.acquire_with(Priority::High).await.unwrap());
    }
    drop(held);
    assert_eq!(pool.counts().idle, 6);
    // All that others may have.
    while let Ok(connection) = pool.try_acquire() {
        connection.discard();
    }
    turns().await;
    assert_eq!(pool.counts().idle, 2 + 2);
    sleep(3600 * SECOND).await;
    assert_eq!(pool.counts().idle, 2, "the reserved ones have been idle for too long");
    let opened = manager.connect.calls();
    let kept = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    assert_eq!(manager.connect.calls(), opened, "they were there");
    drop(kept);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn high_priority_gets_general_connections_as_well() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).reserved(Priority::High, 1).build_lazy().unwrap();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.acquire_with(Priority::High).await.unwrap());
    }
    let normal = pool.acquire_with(Priority::Normal);
    assert!(timeout(SECOND, normal).await.is_err());
    drop(held);
    assert_eq!(balanced(&pool, &manager.ledger).await.counts.idle, 3);
}

#[tokio::test(start_paused = true)]
async fn a_health_probe_works_at_once_while_bulk_traffic_queues() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).reserved(Priority::High, 1).max_waiters(100).build_lazy();
    let pool = pool.unwrap();
    pool.warm_up(2).await.unwrap();
    let bulk: Vec<_> = (0..40)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for _ in 0..10 {
                    let held = pool.acquire().await.unwrap();
                    sleep(7 * MILLISECOND).await;
                    drop(held);
                }
            })
        })
        .collect();
    turns().await;
    let mut probes = 0;
    while !bulk.iter().all(tokio::task::JoinHandle::is_finished) {
        let began = Instant::now();
        let probe = pool.acquire_with(Priority::High).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        probes += 1;
        drop(probe);
        sleep(3 * MILLISECOND).await;
    }
    assert!(probes > 100, "{probes}");
    for task in bulk {
        task.await.unwrap();
    }
    balanced(&pool, &manager.ledger).await;
}

#[test]
fn a_blocking_health_probe_works_while_bulk_traffic_queues() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).reserved(Priority::High, 1).build_blocking().unwrap();
    let held = pool.acquire().unwrap();
    let bulk: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            thread::spawn(move || pool.acquire().map(drop))
        })
        .collect();
    eventually_blocking("all wait", || pool.metrics().counts.waiters == 4);
    for _ in 0..10 {
        let probe = pool.acquire_with(Priority::High).unwrap();
        assert_ne!(probe.id, held.id);
        drop(probe);
        assert_eq!(pool.metrics().counts.waiters, 4);
    }
    drop(held);
    for thread in bulk {
        join(thread).unwrap();
    }
}

// A server that is down.

fn failing_fast(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    pool_of(manager, max_size).fail_fast(true).backoff(100 * MILLISECOND, SECOND)
}

#[tokio::test(start_paused = true)]
async fn fail_fast_tells_the_cause_at_once_when_no_connection_is_left() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = failing_fast(&manager, 2).build_lazy().unwrap();
    let began = Instant::now();
    let error = pool.acquire().await.unwrap_err();
    assert!(matches!(error, AcquireError::Unavailable(_)), "{error:?}");
    assert_eq!(error.source().expect("a cause").to_string(), "scripted connect error");
    assert!(began.elapsed() < MILLISECOND);
    // From now on without an attempt of its own.
    let calls = manager.connect.calls();
    for _ in 0..10 {
        let Poll::Ready(answer) = poll_once(pin!(pool.acquire())) else { panic!("it waits") };
        assert!(matches!(answer, Err(AcquireError::Unavailable(_))), "{answer:?}");
        let blocking = thread::spawn({
            let pool = pool.clone();
            move || pool.acquire_blocking().map(drop)
        });
        assert!(matches!(join(blocking), Err(AcquireError::Unavailable(_))));
        assert_eq!(pool.metrics().counts.connecting, 0);
    }
    turns().await;
    assert_eq!(manager.connect.calls(), calls);
    assert_eq!(balanced_down(&pool, &manager), 0);
}

/// How many callers wait; nothing is alive.
fn balanced_down(pool: &Pool<TestManager>, manager: &TestManager) -> usize {
    let counts = pool.metrics().counts;
    assert_eq!((counts.alive(), counts.in_service()), (0, pool.max_size()));
    assert!(manager.ledger.live() <= 1, "the prober's at the most");
    counts.waiters
}

#[tokio::test(start_paused = true)]
async fn fail_fast_tells_everybody_who_waits_for_the_first_attempt() {
    let manager = TestManager::new();
    manager.connect.once(Act::Slow(SECOND));
    let pool = failing_fast(&manager, 2).connect_timeout(500 * MILLISECOND).build_lazy().unwrap();
    let mut waiters: Vec<_> = (0..8).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    manager.connect.always(Act::Error);
    let began = Instant::now();
    for waiter in waiters {
        let error = waiter.await.unwrap_err();
        assert!(matches!(error, AcquireError::Unavailable(_)), "{error:?}");
    }
    assert!(began.elapsed() <= 501 * MILLISECOND);
}

#[tokio::test(start_paused = true)]
async fn the_prober_goes_on_though_nobody_waits_and_notices_that_the_server_is_back() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = failing_fast(&manager, 2).build_lazy().unwrap();
    assert!(pool.acquire().await.is_err());
    let calls = manager.connect.calls();
    sleep(30 * SECOND).await;
    assert!(manager.connect.calls() > calls + 10, "it probes");
    assert_eq!(manager.connect.most_running(), 1, "alone");
    assert!(matches!(pool.acquire().await, Err(AcquireError::Unavailable(_))));
    manager.clear();
    eventually("it is back", || pool.metrics().counts.idle == 1).await;
    drop(pool.acquire().await.unwrap());
    let calls = manager.connect.calls();
    sleep(30 * SECOND).await;
    assert_eq!(manager.connect.calls(), calls, "and the prober has gone");
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn fail_fast_waits_for_connections_that_are_in_use() {
    let manager = TestManager::new();
    let pool = failing_fast(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    let mut waiter = pin!(pool.acquire());
    let (wakes, waker) = Wakes::new();
    assert!(poll_with(waiter.as_mut(), &waker).is_pending());
    sleep(10 * SECOND).await;
    assert_eq!(wakes.count(), 0, "it keeps its place in line");
    assert!(poll_once(waiter.as_mut()).is_pending(), "one may come back");
    drop(held);
    let held = waiter.await.unwrap();
    // And once that one is gone, the next failure is everybody's answer.
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    held.discard();
    let began = Instant::now();
    assert!(matches!(waiter.await, Err(AcquireError::Unavailable(_))));
    assert!(began.elapsed() <= SECOND, "a pause of the prober's");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_connection_that_is_being_closed() {
    // How soon: after a pause of the prober's, or at once.
    let cases =
        [("down", Act::Error, true, SECOND), ("for good", Act::Permanent, false, 10 * MILLISECOND)];
    for (what, failure, fail_fast, soon) in cases {
        let manager = TestManager::new();
        let pool = failing_fast(&manager, 2).fail_fast(fail_fast).build_lazy().unwrap();
        let held = pool.acquire().await.unwrap();
        manager.connect.always(failure);
        manager.close.always(Act::Gated);
        let mut waiter = pin!(pool.acquire());
        assert!(poll_once(waiter.as_mut()).is_pending());
        sleep(10 * MILLISECOND).await;
        assert!(poll_once(waiter.as_mut()).is_pending(), "{what}: one may come back");
        held.discard();
        let refused = timeout(soon, waiter).await.expect(what).unwrap_err();
        assert_eq!(pool.metrics().counts.closing, 1, "{what}: it is still being closed");
        let is_told = matches!(refused, AcquireError::Unavailable(_) | AcquireError::Connect(_));
        assert!(is_told, "{what}: {refused:?}");
        let Poll::Ready(next) = poll_once(pin!(pool.acquire())) else { panic!("{what}: it waits") };
        assert!(next.is_err(), "{what}");
        manager.close.open(1);
        eventually("it has been closed", || pool.metrics().counts.closing == 0).await;
        assert_eq!(balanced_down(&pool, &manager), 0);
    }
}

#[test]
fn fail_fast_refuses_a_thread_that_begins_to_wait_just_when_an_attempt_fails() {
    for round in 0..1500 {
        let manager = TestManager::new();
        manager.connect.always(Act::Error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        // The second attempt does not come.
        let pool = failing_fast(&manager, 1).backoff(Duration::MAX, Duration::MAX);
        let pool = pool.acquire_timeout(Duration::MAX);
        let pool = runtime.block_on(async { pool.build_lazy() }).unwrap();
        let begun = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (pool, begun) = (pool.clone(), begun.clone());
            move || {
                begun.store(true, Ordering::SeqCst);
                (0..round % 300 * 10).for_each(|_| std::hint::spin_loop());
                pool.acquire_blocking().map(drop)
            }
        });
        while !begun.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
        let refused = [runtime.block_on(pool.acquire()).map(drop), join(thread)];
        for refused in refused {
            let is_refused = matches!(refused, Err(AcquireError::Unavailable(_)));
            assert!(is_refused, "{round}: {refused:?}");
        }
    }
}

#[test]
fn with_fail_fast_a_rotation_waits_for_the_room_of_an_attempt_while_others_are_refused() {
    let rotation = thread::spawn(|| {
        let manager = TestManager::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let pool = failing_fast(&manager, 1).build_lazy().unwrap();
            manager.connect.once(Act::Error);
            manager.connect.once(Act::Gated);
            assert!(matches!(pool.acquire().await, Err(AcquireError::Unavailable(_))));
            eventually("it tries again", || manager.connect.running() == 1).await;
            let mut rotation = pin!(pool.rotate(|_| Box::pin(ready(Ok(())))));
            assert!(poll_once(rotation.as_mut()).is_pending());
            let Poll::Ready(answer) = poll_once(pin!(pool.acquire())) else { panic!("it waits") };
            assert!(matches!(answer, Err(AcquireError::Unavailable(_))), "{answer:?}");
            manager.connect.refuse();
            rotation.await.unwrap();
        });
    });
    join(rotation);
}

#[tokio::test(start_paused = true)]
async fn fail_fast_refuses_whoever_may_have_none_of_the_connections_that_are_left() {
    let manager = TestManager::new();
    let pool = failing_fast(&manager, 2).reserved(Priority::High, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let reserved = pool.acquire_with(Priority::High).await.unwrap();
    manager.connect.always(Act::Error);
    let mut high = pin!(pool.acquire_with(Priority::High));
    assert!(poll_once(high.as_mut()).is_pending());
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    held.discard();
    let error = waiter.await.map(drop).unwrap_err();
    assert!(matches!(error, AcquireError::Unavailable(_)), "{error:?}");
    let Poll::Ready(answer) = poll_once(pin!(pool.acquire())) else { panic!("it waits") };
    assert!(matches!(answer, Err(AcquireError::Unavailable(_))), "{answer:?}");
    // The one that is left may come back to others.
    for _ in 0..10 {
        sleep(SECOND / 10).await;
        assert!(poll_once(high.as_mut()).is_pending());
    }
    drop(reserved);
    let reserved = high.await.expect("it has come back");
    // And once that one is gone, they are told as well.
    let mut high = pin!(pool.acquire_with(Priority::High));
    assert!(poll_once(high.as_mut()).is_pending());
    reserved.discard();
    let error = high.await.map(drop).unwrap_err();
    assert!(matches!(error, AcquireError::Unavailable(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_is_told_as_such_with_fail_fast_too() {
    let manager = TestManager::new();
    manager.connect.always(Act::Permanent);
    let pool = failing_fast(&manager, 1).build_lazy().unwrap();
    assert!(matches!(pool.acquire().await, Err(AcquireError::Connect(_))));
    sleep(30 * SECOND).await;
    assert_eq!(manager.connect.calls(), 1, "there is nothing to probe for");
    assert!(matches!(pool.acquire().await, Err(AcquireError::Connect(_))), "nobody probes");
    assert_eq!(manager.connect.calls(), 2, "so the next one asks again");
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_past_refuses_nobody_while_a_connect_that_may_go_well_is_under_way() {
    for act in [Act::Permanent, Act::Error] {
        let manager = TestManager::new();
        manager.connect.once(act);
        manager.connect.always(Act::Gated);
        let pool = failing_fast(&manager, 4).build_lazy().unwrap();
        pool.warm_up(1).await.unwrap_err();
        sleep(SECOND).await; // until a failure for good may be tried again
        let mut waiters: Vec<_> = (0..4).map(|_| Box::pin(pool.acquire())).collect();
        for waiter in &mut waiters {
            assert!(poll_once(waiter.as_mut()).is_pending());
        }
        eventually("one tries again", || manager.connect.running() == 1).await;
        let mut waiter = pin!(pool.acquire());
        assert!(poll_once(waiter.as_mut()).is_pending(), "{act:?}");
        drop(waiters.pop());
        manager.connect.open(4);
        drop(waiter.await.unwrap());
        for waiter in waiters {
            drop(waiter.await.unwrap());
        }
        balanced(&pool, &manager.ledger).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_prober_of_fail_fast_goes_by_what_others_find_out_during_its_pause() {
    for (act, created) in [(Act::Permanent, 0), (Act::Ok, 1)] {
        let manager = TestManager::new();
        manager.connect.once(Act::Error);
        let pool = failing_fast(&manager, 2).backoff(60 * SECOND, 60 * SECOND).build_lazy();
        let pool = pool.unwrap();
        assert!(matches!(pool.acquire().await, Err(AcquireError::Unavailable(_))));
        manager.connect.always(act);
        assert_eq!(pool.warm_up(1).await.is_ok(), act == Act::Ok);
        sleep(3_600 * SECOND).await;
        assert_eq!((manager.connect.calls(), pool.metrics().created), (2, created), "{act:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_fail_fast_callers_wait_until_their_deadlines() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let began = Instant::now();
    let error = pool.acquire_timeout(3 * SECOND).await.unwrap_err();
    assert_eq!(began.elapsed(), 3 * SECOND);
    assert!(matches!(error, AcquireError::Timeout(_)));
    assert_eq!(error.source().expect("a cause").to_string(), "scripted connect error");
}

#[tokio::test(start_paused = true)]
async fn the_prober_ends_with_the_pool() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = failing_fast(&manager, 2).backoff(60 * SECOND, 60 * SECOND).build_lazy().unwrap();
    assert!(pool.acquire().await.is_err());
    drop(pool);
    turns().await;
    assert_eq!(tasks(), before);
}

// Callers who wait for each other.

fn detecting(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    pool_of(manager, max_size).detect_deadlock(true)
}

/// A task that waits already, and has not been told of the shrink, waits a second time: without a deadline that is
/// left, or holding nothing any more.
#[test]
fn a_shrink_is_told_once_to_those_who_do_not_ask_whether_they_are_stuck() {
    for holds in [true, false] {
        let waits = thread::spawn(move || {
            let manager = TestManager::new();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let pool = detecting(&manager, 2).build_lazy().unwrap();
                let _other = pool.acquire_owned().await.unwrap();
                let held = pool.acquire().await.unwrap();
                let mut waiting = pin!(pool.acquire());
                assert!(poll_once(waiting.as_mut()).is_pending());
                pool.resize(1).unwrap();
                let limit = if holds { Duration::ZERO } else { 50 * MILLISECOND };
                let _held = holds.then_some(held);
                let refused = pool.acquire_timeout(limit).await;
                assert!(matches!(refused, Err(AcquireError::Timeout(_))), "{holds}: {refused:?}");
            });
        });
        join(waits);
    }
}

fn lines(deadlock: &Deadlock) -> Vec<u32> {
    let mut lines: Vec<_> = deadlock.held_at().iter().map(|site| site.line()).collect();
    lines.sort_unstable();
    lines
}

#[tokio::test(start_paused = true)]
async fn a_task_that_holds_all_and_wants_one_more_is_told_where() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 2).build_lazy().unwrap();
    let task = tokio::spawn({
        let pool = pool.clone();
        async move {
            let _first = pool.acquire().await.unwrap();
            let _second = pool.acquire().await.unwrap();
            let third = pool.acquire().await;
            let line = line!() - 1;
            let Err(AcquireError::WouldDeadlock(deadlock)) = third else { panic!("{third:?}") };
            assert_eq!(deadlock.wanted_at().line(), line);
            assert!(deadlock.wanted_at().file().ends_with("overload.rs"));
            assert_eq!(lines(&deadlock), [line - 2, line - 1]);
            let text = deadlock.to_string();
            assert!(text.contains(&format!("overload.rs:{line}:")), "{text}");
            assert!(text.contains(&format!("overload.rs:{}:", line - 1)), "{text}");
        }
    });
    task.await.unwrap();
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.acquires, metrics.waits.timed_out), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_priority_who_holds_all_is_told_as_well() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let more = pool.acquire_with(Priority::High).await;
    assert!(matches!(more, Err(AcquireError::WouldDeadlock(_))), "{more:?}");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn who_holds_all_and_does_not_wait_for_one_more_is_not_stuck() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 1).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    let more = pool.acquire_timeout(Duration::ZERO).await;
    assert!(matches!(more, Err(AcquireError::Timeout(_))), "{more:?}");
    let pool = detecting(&manager, 1).min_idle(1).build().await.unwrap();
    join(thread::spawn(move || {
        let _held = pool.acquire_blocking().unwrap();
        let more = pool.acquire_blocking_timeout(Duration::ZERO);
        assert!(matches!(more, Err(AcquireError::Timeout(_))), "{more:?}");
        let more = pool.acquire_blocking();
        assert!(matches!(more, Err(AcquireError::WouldDeadlock(_))), "{more:?}");
    }));
}

/// Two who hold all that they may have, and each wait for one more: the second one is told.
async fn the_second_of_two_is_told(pool: Pool<TestManager>, manager: &TestManager) {
    let task = |first_to_wait: bool| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let held = pool.acquire().await.unwrap();
            sleep(if first_to_wait { SECOND } else { 2 * SECOND }).await;
            let answer = pool.acquire().await.map(drop);
            drop(held);
            answer
        })
    };
    let (first, second) = (task(true), task(false));
    let answer = second.await.unwrap();
    let Err(AcquireError::WouldDeadlock(deadlock)) = answer else { panic!("{answer:?}") };
    assert_eq!(deadlock.held_at().len(), 2);
    first.await.unwrap().expect("the other one has come back");
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn of_two_tasks_that_wait_for_each_other_the_second_is_told_and_the_first_is_served() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 2).build_lazy().unwrap();
    the_second_of_two_is_told(pool, &manager).await;
}

#[tokio::test(start_paused = true)]
async fn reserved_connections_do_not_hide_that_all_others_are_held_by_those_who_wait() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 3).reserved(Priority::High, 1).build_lazy().unwrap();
    the_second_of_two_is_told(pool, &manager).await;
}

#[tokio::test(start_paused = true)]
async fn there_is_no_alarm_while_a_holder_who_waits_may_get_what_is_reserved() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 3).reserved(Priority::High, 1).build_lazy().unwrap();
    let go = Arc::new(Notify::new());
    let holder = |priority: Priority, pause: Duration| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let held = pool.acquire().await.unwrap();
            sleep(pause).await;
            let answer = pool.acquire_with(priority).await.map(drop);
            drop(held);
            answer
        })
    };
    let high = holder(Priority::High, 2 * SECOND);
    let normal = holder(Priority::Normal, 3 * SECOND);
    let busy = tokio::spawn({
        let (pool, go) = (pool.clone(), go.clone());
        async move {
            sleep(SECOND).await;
            // The reserved one, since the others are taken.
            let _held = pool.acquire_with(Priority::High).await.unwrap();
            go.notified().await;
        }
    });
    sleep(4 * SECOND).await;
    assert_eq!((pool.counts().in_use, pool.counts().waiters), (3, 2), "no alarm");
    go.notify_one();
    high.await.unwrap().expect("what is reserved has come back");
    normal.await.unwrap().expect("what the other one held has come back");
    busy.await.unwrap();
    // Once nobody is left who could give anything back, those with priority are told as well.
    let all = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut held = Vec::new();
            for _ in 0..3 {
                held.push(pool.acquire_with(Priority::High).await.unwrap());
            }
            pool.acquire_with(Priority::High).await.map(drop)
        }
    });
    assert!(matches!(all.await.unwrap(), Err(AcquireError::WouldDeadlock(_))));
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn there_is_no_alarm_as_long_as_one_holder_does_not_wait() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 3).build_lazy().unwrap();
    let busy = tokio::spawn({
        let pool = pool.clone();
        async move {
            let _held = pool.acquire().await.unwrap();
            sleep(5 * SECOND).await;
        }
    });
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let _held = pool.acquire().await.unwrap();
                sleep(SECOND).await;
                drop(pool.acquire().await.unwrap());
            })
        })
        .collect();
    for task in waiting {
        task.await.unwrap();
    }
    busy.await.unwrap();
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn there_is_no_alarm_for_who_holds_nothing_or_while_there_is_room() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 2).build_lazy().unwrap();
    let holder = tokio::spawn({
        let pool = pool.clone();
        async move {
            // The second one is still to be opened.
            let _held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
            sleep(SECOND).await;
        }
    });
    turns().await;
    drop(pool.acquire().await.unwrap());
    holder.await.unwrap();
    balanced(&pool, &manager.ledger).await;
}

#[test]
fn an_owned_guard_that_was_moved_to_a_thread_is_held_by_nobody_who_waits() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 1).build_blocking().unwrap();
    let by_try = |pool: &blocking::Pool<TestManager>| {
        eventually_blocking("it is idle", || pool.counts().idle == 1);
        pool.try_acquire_owned().unwrap()
    };
    for acquire in [|pool: &blocking::Pool<_>| pool.acquire_owned().unwrap(), by_try] {
        let held = acquire(&pool);
        let elsewhere = thread::spawn({
            let pool = pool.clone();
            move || {
                eventually_blocking("somebody waits", || pool.counts().waiters == 1);
                drop(held);
            }
        });
        drop(pool.acquire().unwrap());
        join(elsewhere);
    }
    assert_eq!(manager.ledger.opened(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_owned_guard_that_was_moved_to_a_task_is_held_by_nobody_who_waits() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 1).build_lazy().unwrap();
    let for_a_second = |held| {
        tokio::spawn(async move {
            sleep(SECOND).await;
            drop(held);
        })
    };
    let other = for_a_second(pool.acquire_owned().await.unwrap());
    // Served in line, and served at once.
    for idle in [0, 1] {
        assert_eq!(pool.counts().idle, idle);
        let elsewhere = for_a_second(pool.acquire_owned().await.unwrap());
        drop(pool.acquire().await.unwrap());
        elsewhere.await.unwrap();
    }
    let elsewhere = for_a_second(pool.acquire().await.unwrap().into_owned());
    drop(pool.acquire().await.unwrap());
    elsewhere.await.unwrap();
    other.await.unwrap();
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_given_back_in_any_way_is_not_held_any_more() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 1).build_lazy().unwrap();
    let task = tokio::spawn({
        let (pool, manager) = (pool.clone(), manager.clone());
        async move {
            drop(pool.acquire().await.unwrap());
            // Whoever acquired that one again would be who holds it.
            assert_eq!(pool.retain(|_, _| false), 1);
            pool.acquire().await.unwrap().discard();
            pool.acquire().await.unwrap().release().await.unwrap();
            let mut connection = pool.acquire().await.unwrap().detach();
            connection.uncount();
            drop(connection);
            manager.condition.once(Act::Error);
            drop(pool.acquire().await.unwrap());
            manager.condition.once(Act::Slow(Duration::ZERO));
            manager.reset.once(Act::Slow(SECOND / 2));
            drop(pool.acquire().await.unwrap());
            drop(pool.acquire_owned().await.unwrap());
            pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap();
            drop(pool.acquire().await.unwrap());
            let held = pool.acquire().await.unwrap();
            assert!(matches!(pool.acquire().await, Err(AcquireError::WouldDeadlock(_))));
            drop(held);
        }
    });
    task.await.unwrap();
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_rotation_took_to_make_room_is_not_held() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 1).build_lazy().unwrap();
    pool.warm_up(1).await.unwrap();
    manager.connect.once(Act::Error);
    assert!(pool.rotate(|_| Box::pin(async { Ok(()) })).await.is_err());
    drop(pool.acquire().await.expect("nobody holds anything"));
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn who_holds_what_the_rotation_waits_for_whose_turn_it_is_is_told_so() {
    // The rotation whose turn it is holds one as well, or nothing.
    for max_size in [2, 1] {
        let manager = TestManager::new();
        let pool = detecting(&manager, max_size).build_lazy().unwrap();
        let rotation = |holds: bool, pause: Duration| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let _held = if holds { Some(pool.acquire().await.unwrap()) } else { None };
                sleep(pause).await;
                pool.rotate(|_| Box::pin(async { Ok(()) })).await
            })
        };
        let began = Instant::now();
        let (first, second) = (rotation(max_size == 2, SECOND), rotation(true, 2 * SECOND));
        let answer = second.await.unwrap();
        let Err(RotateError::NoRoom(AcquireError::WouldDeadlock(deadlock))) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(deadlock.held_at().len(), max_size);
        first.await.unwrap().expect("the other one has come back");
        assert_eq!(began.elapsed(), 2 * SECOND, "both at once");
        balanced(&pool, &manager.ledger).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_waits_for_one_that_has_room_raises_no_alarm() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 2).build_lazy().unwrap();
    pool.warm_up(2).await.unwrap();
    let first = pool.rotate(|_| {
        Box::pin(async {
            sleep(SECOND).await;
            Ok(())
        })
    });
    let second = async {
        let held = pool.acquire().await.unwrap();
        pool.rotate(|_| Box::pin(async { Ok(()) })).await.map(|()| drop(held))
    };
    let (first, second) = tokio::join!(first, second);
    first.unwrap();
    second.expect("the other one is over in time");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_has_given_up_waiting_does_not_count_as_waiting() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 2).build_lazy().unwrap();
    let gave_up = tokio::spawn({
        let pool = pool.clone();
        async move {
            let _held = pool.acquire().await.unwrap();
            assert!(pool.acquire_timeout(SECOND).await.is_err());
            assert!(timeout(SECOND, pool.acquire()).await.is_err());
            sleep(3 * SECOND).await;
        }
    });
    let waits = tokio::spawn({
        let pool = pool.clone();
        async move {
            let _held = pool.acquire().await.unwrap();
            sleep(3 * SECOND).await;
            drop(pool.acquire().await.unwrap());
        }
    });
    gave_up.await.unwrap();
    waits.await.unwrap();
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_waits_twice_and_gives_up_once_still_waits() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 2).build_lazy().unwrap();
    let twice = tokio::spawn({
        let pool = pool.clone();
        async move {
            let _held = pool.acquire().await.unwrap();
            yield_now().await;
            let (short, long) = tokio::join!(timeout(SECOND, pool.acquire()), pool.acquire());
            assert!(short.is_err());
            drop(long.unwrap());
        }
    });
    let last = tokio::spawn({
        let pool = pool.clone();
        async move {
            let _held = pool.acquire().await.unwrap();
            sleep(2 * SECOND).await;
            pool.acquire().await.map(drop)
        }
    });
    let answer = last.await.unwrap();
    assert!(matches!(answer, Err(AcquireError::WouldDeadlock(_))), "{answer:?}");
    twice.await.unwrap();
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_deadlock_is_found_by_the_size_of_the_moment() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 2).capacity(4).build_lazy().unwrap();
    let task = tokio::spawn({
        let pool = pool.clone();
        async move {
            for size in [2, 3, 1] {
                pool.resize(size).unwrap();
                let mut held = Vec::new();
                for _ in 0..size {
                    held.push(pool.acquire().await.unwrap());
                }
                let answer = pool.acquire().await;
                assert!(matches!(answer, Err(AcquireError::WouldDeadlock(_))), "{answer:?}");
            }
        }
    });
    task.await.unwrap();
}

/// Of three, two wait for one more; the third is one too many now.
#[tokio::test(start_paused = true)]
async fn a_deadlock_that_a_smaller_size_makes_is_found_among_those_who_wait_already() {
    for by_rotation in [false, true] {
        let manager = TestManager::new();
        let pool = detecting(&manager, 3).acquire_timeout(600 * SECOND).build_lazy().unwrap();
        let waits = || {
            let pool = pool.clone();
            tokio::spawn(async move {
                let held = pool.acquire().await.unwrap();
                let answer = match by_rotation {
                    false => pool.acquire().await.map(drop),
                    true => match pool.rotate(|_| Box::pin(ready(Ok(())))).await {
                        Ok(()) => Ok(()),
                        Err(RotateError::NoRoom(error)) => Err(error),
                        Err(error) => panic!("{error:?}"),
                    },
                };
                drop(held);
                answer
            })
        };
        let third = pool.acquire_owned().await.unwrap();
        let waiting = [waits(), waits()];
        let all_wait = || pool.counts().in_use == 3 && pool.counts().waiters > 0;
        eventually("both wait", all_wait).await;
        turns().await;
        let began = Instant::now();
        pool.resize(2).unwrap();
        turns().await;
        assert_eq!(waiting.iter().filter(|task| task.is_finished()).count(), 1, "{by_rotation}");
        drop(third);
        let [first, second] = waiting;
        let answers = [first.await.unwrap(), second.await.unwrap()];
        assert!(began.elapsed() < SECOND);
        let told = answers.iter().filter_map(|answer| answer.as_ref().err());
        let told: Vec<_> = told.collect();
        let [AcquireError::WouldDeadlock(deadlock)] = &told[..] else { panic!("{answers:?}") };
        assert_eq!(deadlock.held_at().len(), 2, "by those who wait");
        balanced(&pool, &manager.ledger).await;
    }
}

/// A shrink takes none of those that are reserved.
#[tokio::test(start_paused = true)]
async fn a_smaller_size_does_not_hide_that_what_is_reserved_may_come_back() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 3).reserved(Priority::High, 1).build_lazy().unwrap();
    let waits = || {
        let pool = pool.clone();
        tokio::spawn(async move {
            let held = pool.acquire().await.unwrap();
            sleep(SECOND).await;
            let answer = pool.acquire_with(Priority::High).await.map(drop);
            drop(held);
            answer
        })
    };
    let waiting = [waits(), waits()];
    eventually("both hold one", || pool.counts().in_use == 2).await;
    let reserved = pool.acquire_with(Priority::High).await.unwrap();
    sleep(2 * SECOND).await;
    pool.resize(2).unwrap();
    turns().await;
    assert_eq!((pool.counts().in_use, pool.counts().waiters), (3, 2), "no alarm");
    drop(reserved);
    for task in waiting {
        task.await.unwrap().expect("what is reserved has come back");
    }
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_smaller_size_that_leaves_enough_alarms_nobody_and_keeps_the_order_of_those_who_wait() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 4).build_lazy().unwrap();
    let mut held: Vec<_> = Vec::new();
    for _ in 0..4 {
        held.push(pool.acquire_owned().await.unwrap());
    }
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..3 {
        let (waits, served) = (pool.clone(), served.clone());
        tokio::spawn(async move {
            let _held = waits.acquire().await.unwrap();
            served.send(number).unwrap();
        });
        soon("it waits", || pool.counts().waiters == number + 1).await;
    }
    pool.resize(3).unwrap();
    turns().await;
    assert_eq!(pool.counts().waiters, 3);
    held.clear();
    for number in 0..3 {
        assert_eq!(order.recv().await, Some(number));
    }
    balanced(&pool, &manager.ledger).await;
}

#[test]
fn threads_that_wait_for_each_other_are_found_too() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 2).build_blocking().unwrap();
    let barrier = Arc::new(Barrier::new(2));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (pool, barrier) = (pool.clone(), barrier.clone());
            thread::spawn(move || {
                let held = pool.acquire().unwrap();
                barrier.wait();
                let answer = pool.acquire().map(drop);
                drop(held);
                answer
            })
        })
        .collect();
    let answers: Vec<_> = threads.into_iter().map(join).collect();
    let told = |answer: &&_| matches!(answer, Err(AcquireError::WouldDeadlock(_)));
    assert_eq!(answers.iter().filter(told).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
}

#[test]
fn threads_that_give_back_in_time_raise_no_alarm() {
    let manager = TestManager::new();
    let pool = detecting(&manager, 3).build_blocking().unwrap();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let pool = pool.clone();
            thread::spawn(move || {
                for _ in 0..300 {
                    drop(pool.acquire().unwrap());
                }
            })
        })
        .collect();
    // This one holds two at a time; there is one left for the others.
    for _ in 0..100 {
        let first = pool.acquire().unwrap();
        drop(pool.acquire().unwrap());
        drop(first);
    }
    threads.into_iter().for_each(join);
}

#[tokio::test(start_paused = true)]
async fn without_the_option_such_a_wait_ends_at_its_deadline() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    let error = pool.acquire_timeout(SECOND).await.unwrap_err();
    assert!(matches!(error, AcquireError::Timeout(_)));
}
