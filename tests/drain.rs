//! The end of a pool that waits for what is in use: `drain`; and the end of its last handle.

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::{AcquireError, CheckPolicy, Pool, PoolBuilder, TryAcquireError, WarmUpError};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::Instant;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DIRTY: Act = Act::Slow(Duration::ZERO);

fn pool_of(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone()).max_size(max_size).acquire_timeout(PATIENCE)
}

#[tokio::test(start_paused = true)]
async fn drain_refuses_newcomers_of_every_kind_first_with_draining_and_then_with_closed() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut drain = pin!(pool.drain(SECOND));
    assert!(!pool.is_closed(), "not before the first poll");
    assert!(poll_once(drain.as_mut()).is_pending());
    assert!(pool.is_closed());
    assert!(matches!(pool.acquire().await, Err(AcquireError::Draining)));
    assert!(matches!(pool.acquire_owned().await, Err(AcquireError::Draining)));
    assert!(matches!(pool.acquire_timeout(Duration::ZERO).await, Err(AcquireError::Draining)));
    assert!(matches!(pool.acquire_blocking(), Err(AcquireError::Draining)));
    assert!(matches!(pool.try_acquire(), Err(TryAcquireError::Draining)));
    assert!(matches!(pool.warm_up(1).await, Err(WarmUpError::Closed)));
    drop(held);
    let report = drain.await;
    assert_eq!((report.closed, report.still_out.len()), (1, 0));
    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    assert!(matches!(pool.acquire_blocking(), Err(AcquireError::Closed)));
    assert!(matches!(pool.try_acquire(), Err(TryAcquireError::Closed)));
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test]
async fn drain_ends_every_waiter_asynchronous_or_blocking() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.acquire().await.map(drop) })
        })
        .collect();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            thread::spawn(move || pool.acquire_blocking().map(drop))
        })
        .collect();
    eventually("all wait", || pool.metrics().counts.waiters == 8).await;
    let mut drain = pin!(pool.drain(PATIENCE));
    assert!(poll_once(drain.as_mut()).is_pending());
    for task in tasks {
        assert!(matches!(joined(task).await, Err(AcquireError::Draining)));
    }
    eventually("the threads end", || threads.iter().all(thread::JoinHandle::is_finished)).await;
    for thread in threads {
        assert!(matches!(join(thread), Err(AcquireError::Draining)));
    }
    drop(held);
    drop(drain.await);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.waits.timed_out, metrics.acquires), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_what_is_out_and_for_its_closing() {
    let manager = TestManager::new();
    manager.close.always(Act::Slow(500 * MILLISECOND));
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    pool.warm_up(3).await.unwrap();
    let users: Vec<_> = (1..3)
        .map(|seconds| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let held = pool.acquire().await.unwrap();
                tokio::time::sleep(seconds * SECOND).await;
                drop(held);
            })
        })
        .collect();
    turns().await;
    let began = Instant::now();
    let report = pool.drain(60 * SECOND).await;
    let took = began.elapsed();
    assert!(took >= 2500 * MILLISECOND && took < 2600 * MILLISECOND, "{took:?}");
    assert_eq!((report.closed, report.still_out.len()), (3, 0));
    assert_eq!((manager.ledger.live(), manager.ledger.closed()), (0, 3));
    for user in users {
        user.await.unwrap();
    }
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.drained, metrics.closed.total()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn drain_of_a_pool_at_rest_ends_at_once() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).min_idle(4).build().await.unwrap();
    let began = Instant::now();
    let report = pool.drain(60 * SECOND).await;
    assert_eq!((report.closed, report.still_out.len()), (4, 0));
    assert!(began.elapsed() < 10 * MILLISECOND);
    assert_eq!(manager.ledger.live(), 0);
    assert_eq!(report.to_string(), "4 closed, 0 still out");

    let empty = pool_of(&manager, 4).build_lazy().unwrap();
    assert_eq!(empty.drain(Duration::ZERO).await.closed, 0);
}

#[tokio::test(start_paused = true)]
async fn drain_reports_who_is_still_out_at_its_deadline_and_where_it_was_acquired() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    pool.warm_up(3).await.unwrap();
    let first = pool.acquire().await.unwrap();
    let line = line!() - 1;
    let second = pool.acquire_owned().await.unwrap();
    tokio::time::sleep(10 * SECOND).await;
    let began = Instant::now();
    let report = pool.drain(3 * SECOND).await;
    assert_eq!(began.elapsed(), 3 * SECOND);
    assert_eq!((report.closed, report.still_out.len()), (1, 2));
    let holder = report.still_out.iter().find(|holder| holder.connection == first.info().id);
    let holder = holder.expect("the first is out");
    let site = holder.site.expect("a call site");
    assert!(site.file().ends_with("drain.rs"), "{site}");
    assert_eq!(site.line(), line);
    assert!(holder.held >= 9 * SECOND, "{holder:?}");
    let text = report.to_string();
    assert!(text.starts_with("1 closed, 2 still out; connection "), "{text}");
    assert!(text.contains(&format!("drain.rs:{line}:")), "{text}");
    // They go on, and close when they are dropped.
    assert_eq!(manager.ledger.live(), 2);
    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    drop((first, second));
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.vacant, manager.ledger.closed()), (4, 3));
}

/// Nobody has it yet: the waiter has not been polled.
#[tokio::test(start_paused = true)]
async fn whoever_gave_a_connection_back_does_not_hold_it_while_it_is_on_its_way_to_a_waiter() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).leak_after(SECOND).build_lazy().unwrap();
    for looked_at_before in [false, true] {
        let held = pool.acquire().await.unwrap();
        if looked_at_before {
            pool.maintenance().run_once().await;
        }
        let mut waiter = pin!(pool.acquire());
        assert!(poll_once(waiter.as_mut()).is_pending());
        drop(held);
        assert_eq!(pool.holders(), []);
        tokio::time::sleep(10 * SECOND).await;
        pool.maintenance().run_once().await;
        assert_eq!((pool.holders(), pool.metrics().leaks), (Vec::new(), 0));
        let theirs = waiter.await.unwrap();
        assert_eq!(pool.holders().len(), 1);
        drop(theirs);
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_given_back_is_no_holder() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    // No look of the reaper has seen this one come and go.
    drop(pool.acquire().await.unwrap());
    let holders = pool.holders();
    assert_eq!((holders.len(), holders[0].connection), (1, held.info().id));
    tokio::time::sleep(2 * SECOND).await;
    drop(held);
    assert_eq!(pool.holders(), [], "no look has seen that it has come back");
}

#[tokio::test(start_paused = true)]
async fn drain_is_right_after_detach_and_after_a_forgotten_guard() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).build_lazy().unwrap();
    let detached = pool.acquire().await.unwrap().detach();
    #[expect(clippy::mem_forget, reason = "that is what is tested")]
    std::mem::forget(pool.acquire().await.unwrap());
    let held = pool.acquire().await.unwrap();
    let mut drain = pin!(pool.drain(SECOND));
    assert!(poll_once(drain.as_mut()).is_pending());
    let mut later = held.detach();
    later.uncount();
    let report = drain.await;
    assert_eq!(report.still_out.len(), 1, "only the forgotten one: {report}");
    assert_eq!(report.closed, 0, "what is detached lives on");
    assert_eq!((pool.metrics().counts.in_use, pool.metrics().closed.detached), (1, 2));
    drop((detached, later));
}

#[tokio::test(start_paused = true)]
async fn drain_is_over_when_the_last_one_is_detached() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let mut held = pool.acquire().await.unwrap();
    held.uncount();
    let began = Instant::now();
    let mut drain = pin!(pool.drain(60 * SECOND));
    assert!(poll_once(drain.as_mut()).is_pending());
    drop(held.detach());
    assert_eq!(drain.await.closed, 0);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn many_callers_drain_at_once_and_all_come_to_an_end() {
    let manager = TestManager::new();
    manager.close.always(Act::Slow(2 * MILLISECOND));
    let pool = pool_of(&manager, 8).min_idle(8).build().await.unwrap();
    let held = [pool.acquire_owned().await.unwrap(), pool.acquire_owned().await.unwrap()];
    let drains: Vec<_> = (0..16)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let report = pool.drain(PATIENCE).await;
                assert_eq!(pool.metrics().counts.alive(), 0);
                report
            })
        })
        .collect();
    eventually("it is being drained", || pool.is_closed()).await;
    thread::spawn(move || drop(held));
    for drain in drains {
        assert_eq!(joined(drain).await.still_out.len(), 0);
    }
    let again = pool.drain(SECOND).await;
    assert_eq!((again.closed, again.still_out.len()), (0, 0), "and once more");
    balanced(&pool, &manager.ledger).await;
    assert_eq!(manager.ledger.closed(), 8, "once per connection");
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_being_drained_until_the_last_of_several_drains_is_over() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut longer = pin!(pool.drain(10 * SECOND));
    assert!(poll_once(longer.as_mut()).is_pending());
    assert_eq!(pool.drain(SECOND).await.still_out.len(), 1, "the shorter one is over");
    assert!(matches!(pool.acquire().await, Err(AcquireError::Draining)), "the longer one is not");
    pool.close().await;
    assert!(matches!(pool.acquire().await, Err(AcquireError::Draining)));
    drop(held);
    assert_eq!(longer.await.closed, 1);
    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    assert_eq!(pool.metrics().closed.drained, 1);
    drop(pool.drain(SECOND).await);
    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)), "closed stays closed");
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_is_cancelled_leaves_the_pool_closed() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    drop(pool.drain(SECOND));
    assert!(!pool.is_closed(), "one that was never polled has not begun");
    let held = pool.acquire().await.unwrap();
    {
        let mut drain = pin!(pool.drain(SECOND));
        assert!(poll_once(drain.as_mut()).is_pending());
        assert!(matches!(pool.acquire().await, Err(AcquireError::Draining)));
    }
    assert!(pool.is_closed());
    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    drop(held);
    balanced(&pool, &manager.ledger).await;
    assert_eq!(pool.drain(SECOND).await.still_out, []);
}

#[tokio::test(start_paused = true)]
async fn drain_after_close_still_waits_but_says_closed() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    pool.close().await;
    let mut drain = pin!(pool.drain(SECOND));
    assert!(poll_once(drain.as_mut()).is_pending());
    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    drop(held);
    let report = drain.await;
    assert_eq!((report.closed, report.still_out.len()), (1, 0));
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn close_during_a_drain_does_not_end_it() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut drain = pin!(pool.drain(60 * SECOND));
    assert!(poll_once(drain.as_mut()).is_pending());
    pool.close().await;
    assert!(poll_once(drain.as_mut()).is_pending());
    drop(held);
    assert_eq!(drain.await.closed, 1);
}

#[tokio::test(start_paused = true)]
async fn drain_ends_the_dials_and_closes_what_they_bring() {
    let manager = TestManager::new();
    manager.connect.always(Act::Never);
    let pool = pool_of(&manager, 2).connect_timeout(600 * SECOND).build_lazy().unwrap();
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    eventually("a dial is under way", || manager.connect.running() == 1).await;
    let began = Instant::now();
    let report = pool.drain(60 * SECOND).await;
    assert!(began.elapsed() < SECOND);
    assert_eq!((report.closed, report.still_out.len()), (0, 0));
    assert_eq!(manager.connect.running(), 0);
    assert!(waiter.await.is_err());
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn drain_waits_for_resets_and_checks_too() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).reset_timeout(60 * SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Gated);
    drop(held);
    turns().await;
    let mut drain = pin!(pool.drain(60 * SECOND));
    assert!(poll_once(drain.as_mut()).is_pending());
    turns().await;
    assert!(poll_once(drain.as_mut()).is_pending());
    manager.reset.open(1);
    assert_eq!(drain.await.closed, 1);
    assert_eq!(manager.ledger.live(), 0);

    let pool = pool_of(&manager, 1).check(CheckPolicy::Always).check_timeout(60 * SECOND);
    let pool = pool.build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Gated);
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    assert_eq!((pool.counts().checking, manager.check.running()), (1, 1));
    let mut drain = pin!(pool.drain(60 * SECOND));
    turns().await;
    assert!(poll_once(drain.as_mut()).is_pending());
    turns().await;
    assert!(poll_once(drain.as_mut()).is_pending());
    manager.check.open(1);
    // As soon as the drain is over.
    let drained = async { (drain.await, manager.ledger.live()) };
    let ((report, live), checked) = tokio::join!(drained, acquire);
    assert_eq!((report.closed, live), (1, 0));
    assert!(checked.is_err(), "{checked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_end_does_not_overflow() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut drain = pin!(pool.drain(Duration::MAX));
    assert!(poll_once(drain.as_mut()).is_pending());
    drop(held);
    assert_eq!(drain.await.closed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_with_no_time_reports_what_is_out_now() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let report = pool.drain(Duration::ZERO).await;
    assert_eq!(report.still_out.len(), 1);
    drop(held);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test]
async fn drain_outside_a_runtime_closes_and_does_not_wait() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let thread = thread::spawn({
        let pool = pool.clone();
        move || pollster::block_on(pool.drain(PATIENCE))
    });
    eventually("the thread ends", || thread.is_finished()).await;
    assert_eq!(join(thread).still_out.len(), 1);
    assert!(pool.is_closed());
    drop(held);
    balanced(&pool, &manager.ledger).await;
}

#[test]
fn a_blocking_pool_is_drained_in_the_same_way() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).min_idle(2).build_blocking().unwrap();
    let held = pool.acquire_owned().unwrap();
    let last = pool.acquire_owned().unwrap();
    let waiter = thread::spawn({
        let pool = pool.clone();
        move || pool.acquire().map(drop)
    });
    eventually_blocking("it waits", || pool.metrics().counts.waiters == 1);
    let drain = thread::spawn({
        let pool = pool.clone();
        move || pool.drain(PATIENCE)
    });
    assert!(matches!(join(waiter), Err(AcquireError::Draining)));
    assert!(matches!(pool.acquire(), Err(AcquireError::Draining)));
    assert!(matches!(pool.try_acquire(), Err(TryAcquireError::Draining)));
    drop(held);
    eventually_blocking("one is closed", || manager.ledger.closed() == 1);
    assert!(!drain.is_finished());
    drop(last);
    let report = join(drain);
    assert_eq!((report.closed, report.still_out.len()), (2, 0));
    assert!(matches!(pool.acquire(), Err(AcquireError::Closed)));
    assert_eq!(pool.drain(Duration::MAX).closed, 0);
    assert_eq!((manager.ledger.live(), manager.ledger.closed()), (0, 2));
}

#[test]
fn a_blocking_drain_reports_who_is_still_out_at_its_deadline() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).min_idle(2).build_blocking().unwrap();
    let held = pool.acquire().unwrap();
    let line = line!() - 1;
    let began = std::time::Instant::now();
    let report = pool.drain(20 * MILLISECOND);
    assert!(began.elapsed() >= 20 * MILLISECOND);
    assert_eq!((report.closed, report.still_out.len()), (1, 1));
    assert_eq!(report.still_out[0].site.map(|site| site.line()), Some(line));
    drop(held);
    eventually_blocking("it is closed", || manager.ledger.live() == 0);
}

#[tokio::test]
async fn drains_beside_acquires_and_releases_leave_nothing_open() {
    for round in 0..150 {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 4).build_lazy().unwrap();
        let refused = Arc::new(AtomicUsize::new(0));
        let users: Vec<_> = (0..4)
            .map(|_| {
                let (pool, refused) = (pool.clone(), refused.clone());
                tokio::spawn(async move {
                    loop {
                        match pool.acquire().await {
                            Ok(held) => {
                                yield_now().await;
                                drop(held);
                            }
                            Err(AcquireError::Draining | AcquireError::Closed) => break,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    refused.fetch_add(1, Ordering::SeqCst);
                })
            })
            .collect();
        let blocking = thread::spawn({
            let pool = pool.clone();
            move || {
                while let Ok(held) = pool.acquire_blocking() {
                    thread::yield_now();
                    drop(held);
                }
            }
        });
        for _ in 0..round % 30 {
            yield_now().await;
        }
        let report = pool.drain(PATIENCE).await;
        assert_eq!(report.still_out, []);
        assert_eq!(manager.ledger.live(), 0, "drain came to its end before its deadline");
        for user in users {
            joined(user).await;
        }
        assert_eq!(refused.load(Ordering::SeqCst), 4);
        join(blocking);
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!(metrics.counts.vacant, 4);
        assert_eq!(manager.ledger.closed() as u64, metrics.created);
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_closes_what_is_idle_and_ends_the_reaper_and_guards_go_on() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    pool.warm_up(4).await.unwrap();
    turns().await;
    assert_eq!(tasks(), before + 1, "the reaper");
    let mut held = pool.acquire_owned().await.unwrap();
    let dirty = pool.acquire_owned().await.unwrap();
    drop(pool);
    eventually("two are closed", || manager.ledger.live() == 2).await;
    turns().await;
    assert_eq!(tasks(), before, "no task of the pool is left");
    held.note = 3;
    assert_eq!((held.note, held.info().uses), (3, 1));
    drop(held);
    manager.condition.once(DIRTY);
    drop(dirty);
    eventually("all are closed", || manager.ledger.live() == 0).await;
    turns().await;
    assert_eq!((manager.ledger.closed(), tasks()), (4, before));
}

#[tokio::test(start_paused = true)]
async fn a_drained_pool_has_no_task_left() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).min_idle(2).build().await.unwrap();
    drop(pool.drain(SECOND).await);
    turns().await;
    assert_eq!(tasks(), before);
    assert!(pool.is_closed());
}

/// The reaper is paused when the last handle goes: it ends all the same.
#[tokio::test(start_paused = true)]
async fn a_reaper_that_is_paused_ends_with_the_last_handle_too() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let pool = pool_of(&TestManager::new(), 4).min_idle(2).build().await.unwrap();
    pool.maintenance().pause();
    turns().await;
    drop(pool);
    turns().await;
    assert_eq!(tasks(), before);
}
