//! The end of a pool, of its handles, of the runtimes that it ran on; and threads of all kinds.

#![cfg(feature = "tokio")]

mod support;
use support::*;

use millpond::{
    AcquireError, CheckPolicy, Hooks, OperationError, Pool, PoolBuilder, Priority, ReleaseError,
    TryAcquireError, WarmUpError, from_fn,
};
use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Once, mpsc};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
const DIRTY: Act = Act::Slow(Duration::ZERO);
const BROKEN: Act = Act::Error;

fn pool_of(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone()).max_size(max_size)
}

fn single() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime")
}

fn multi() -> Runtime {
    let here = REPORTED.with_borrow(Arc::clone);
    Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(move || REPORTED.set(here.clone()))
        .enable_time()
        .build()
        .expect("a runtime")
}

/// Runs `work` on a thread of its own, and panics if it takes longer than [`PATIENCE`].
#[track_caller]
fn must_end<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    join(std::thread::spawn(work))
}

/// The same, while this runtime goes on.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(work);
    eventually("the thread has ended", || thread.is_finished()).await;
    join(thread)
}

#[tokio::test]
async fn close_ends_every_waiter() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).acquire_timeout(PATIENCE).build_lazy().unwrap();
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
            std::thread::spawn(move || pool.acquire_blocking().map(drop))
        })
        .collect();
    eventually("all wait", || pool.metrics().counts.waiters == 8).await;
    pool.close().await;
    for task in tasks {
        assert!(matches!(joined(task).await, Err(AcquireError::Closed)));
    }
    for thread in threads {
        assert!(matches!(join(thread), Err(AcquireError::Closed)));
    }
    drop(held);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.waits.timed_out, metrics.acquires), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_guard_of_his_own_does_not_keep_the_pool_open() {
    let manager = TestManager::new();
    manager.connect.always(Act::Never);
    let pool = pool_of(&manager, 1).build().await.unwrap();
    let mut waiter = pin!(pool.acquire_owned());
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(pool);
    assert!(matches!(waiter.await, Err(AcquireError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_closed_pool_refuses_newcomers_of_every_kind() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).min_idle(2).build().await.unwrap();
    assert!(!pool.is_closed());
    pool.close().await;
    assert!(pool.is_closed());
    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    assert!(matches!(pool.acquire_owned().await, Err(AcquireError::Closed)));
    assert!(matches!(pool.acquire_timeout(SECOND).await, Err(AcquireError::Closed)));
    assert!(matches!(pool.acquire_timeout(Duration::ZERO).await, Err(AcquireError::Closed)));
    assert!(matches!(pool.acquire_blocking(), Err(AcquireError::Closed)));
    assert!(matches!(pool.try_acquire(), Err(TryAcquireError::Closed)));
    assert!(matches!(pollster::block_on(pool.acquire()), Err(AcquireError::Closed)));
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((manager.connect.calls(), metrics.acquires, metrics.waits.timed_out), (2, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn close_closes_idle_connections_before_it_returns() {
    let manager = TestManager::new();
    // No multiple of the time after which it looks again by itself.
    let time = Duration::from_millis(501);
    manager.close.always(Act::Slow(time));
    let pool = pool_of(&manager, 4).min_idle(4).build().await.unwrap();
    let began = Instant::now();
    pool.close().await;
    assert_eq!(manager.ledger.live(), 0);
    assert_eq!(began.elapsed(), time, "all at the same time");
    let metrics = pool.metrics();
    assert_eq!((metrics.closed.pool_closed, metrics.counts.vacant), (4, 4));
    assert_eq!(manager.ledger.closed(), 4);
}

#[test]
fn close_returns_as_soon_as_the_last_connection_is_closed() {
    let manager = TestManager::new();
    // The slot is vacant by then, of which close has heard. Some time for it to look too soon.
    let hooks = Hooks::new().on_destroy(|| std::thread::sleep(Duration::from_millis(50)));
    let pool = pool_of(&manager, 1).min_idle(1).close_timeout(60 * SECOND).hooks(hooks);
    let pool = pool.build_blocking().unwrap();
    must_end(move || pool.close());
    assert_eq!(manager.ledger.closed(), 1);
}

#[test]
fn close_does_not_rely_on_a_runtime_that_nobody_drives() {
    let manager = TestManager::new();
    let idle = single();
    let pool = pool_of(&manager, 2).min_idle(2).close_timeout(3 * SECOND);
    let pool = idle.block_on(pool.build()).unwrap();
    let paused = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    paused.block_on(async {
        let began = Instant::now();
        pool.close().await;
        assert_eq!(began.elapsed().as_secs(), 3);
    });
    assert_eq!(manager.ledger.closed(), 0, "that is for the pool's own runtime");
    drop(idle);
    assert_eq!(manager.ledger.live(), 0);
}

#[tokio::test]
async fn close_may_be_called_again_and_by_many_tasks_at_once() {
    let manager = TestManager::new();
    manager.close.always(Act::Slow(Duration::from_millis(5)));
    let pool = pool_of(&manager, 8).min_idle(8).build().await.unwrap();
    let held = pool.acquire().await.unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                pool.close().await;
                assert_eq!(pool.metrics().counts.idle, 0);
                assert_eq!(pool.metrics().counts.closing, 0);
            })
        })
        .collect();
    for task in tasks {
        joined(task).await;
    }
    drop(held);
    pool.close().await;
    pool.close().await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.pool_closed, metrics.closed.total()), (8, 8));
    assert_eq!(manager.ledger.closed(), 8, "once per connection");
}

#[tokio::test]
async fn close_outside_a_runtime_does_not_panic() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).min_idle(2).build().await.unwrap();
    on_a_thread({
        let pool = pool.clone();
        move || pollster::block_on(pool.close())
    })
    .await;
    assert!(pool.is_closed());
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test]
async fn release_of_a_dirty_connection_outside_a_runtime_does_not_panic() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire_owned().await.unwrap();
    manager.condition.once(DIRTY);
    let released = on_a_thread(move || pollster::block_on(held.release())).await;
    assert!(matches!(released, Err(ReleaseError::NoRuntime)), "{released:?}");
    assert_eq!(balanced(&pool, &manager.ledger).await.resets, 1, "in the background");
}

#[tokio::test]
async fn a_blocking_release_on_a_plain_thread_has_the_reset_done_on_the_pools_runtime() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).reset_timeout(PATIENCE).build_lazy().unwrap();
    let held = pool.acquire_owned().await.unwrap();
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Slow(Duration::from_millis(1)));
    let released = on_a_thread(move || held.release_blocking()).await;
    assert!(matches!(released, Ok(())), "{released:?}");
    assert_eq!((pool.metrics().resets, pool.metrics().counts.idle), (1, 1));
    balanced(&pool, &manager.ledger).await;
}

#[test]
fn a_blocking_release_whose_runtime_has_ended_or_ends_says_so() {
    for ends_meanwhile in [false, true] {
        let manager = TestManager::new();
        let (pool, released) = must_end({
            let manager = manager.clone();
            move || {
                let runtime = multi();
                let pool = pool_of(&manager, 1).min_idle(1).reset_timeout(Duration::MAX);
                let pool = runtime.block_on(pool.build()).unwrap();
                let held = pool.try_acquire_owned().unwrap();
                manager.condition.once(DIRTY);
                manager.reset.once(Act::Never);
                let release = move || held.release_blocking();
                if ends_meanwhile {
                    let waiter = std::thread::spawn(release);
                    eventually_blocking("it is being reset", || manager.reset.running() == 1);
                    drop(runtime);
                    (pool, join(waiter))
                } else {
                    drop(runtime);
                    (pool, release())
                }
            }
        });
        assert!(matches!(released, Err(ReleaseError::NoRuntime)), "{released:?}");
        assert_eq!(balanced_blocking(&pool, &manager.ledger).closed.abandoned, 1);
    }
}

#[test]
fn a_blocking_release_does_not_wait_for_good_for_a_runtime_that_nobody_drives() {
    let manager = TestManager::new();
    let (runtime, limit) = (single(), SECOND / 50);
    let pool = pool_of(&manager, 1).min_idle(1).reset_timeout(limit);
    let pool = runtime.block_on(pool.build()).unwrap();
    let held = pool.try_acquire_owned().unwrap();
    manager.condition.once(DIRTY);
    let error = must_end(move || held.release_blocking()).unwrap_err();
    assert!(matches!(error, ReleaseError::Reset(OperationError::TimedOut { .. })), "{error:?}");
    assert_eq!(manager.reset.calls(), 0);
    // Whoever drives it has it reset.
    let metrics = runtime.block_on(balanced(&pool, &manager.ledger));
    assert_eq!((metrics.resets, metrics.counts.idle), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_guard_released_after_close_closes_its_connection() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    let clean = pool.acquire().await.unwrap();
    let owned = pool.acquire_owned().await.unwrap();
    let released = pool.acquire().await.unwrap();
    let dirty = pool.acquire().await.unwrap();
    pool.close().await;
    assert_eq!((manager.ledger.live(), pool.metrics().counts.in_use), (4, 4));
    drop(clean);
    drop(owned);
    drop(released.release().await);
    manager.condition.once(DIRTY);
    drop(dirty);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.total(), metrics.counts.vacant), (4, 4));
    assert_eq!((metrics.closed.pool_closed, manager.ledger.closed()), (4, 4));
}

/// Those of the reaper are in `upkeep.rs`.
#[tokio::test(start_paused = true)]
async fn close_is_called_once_per_connection_in_every_way_out() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).check(millpond::CheckPolicy::Always).build_lazy().unwrap();
    pool.acquire().await.unwrap().discard();

    let held = pool.acquire().await.unwrap();
    manager.condition.once(BROKEN);
    drop(held);

    let held = pool.acquire().await.unwrap();
    manager.condition.once(BROKEN);
    assert!(held.release().await.is_err());

    let held = pool.acquire().await.unwrap();
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Error);
    drop(held);

    let held = pool.acquire().await.unwrap();
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Error);
    assert!(held.release().await.is_err());

    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Error);
    drop(pool.acquire().await.unwrap());
    pool.close().await;

    let metrics = balanced(&pool, &manager.ledger).await;
    let closed = metrics.closed;
    assert_eq!((closed.discarded, closed.broken, closed.failed_reset), (1, 2, 2));
    assert_eq!((closed.failed_check, closed.pool_closed, closed.total()), (1, 1, 7));
    assert_eq!(manager.ledger.closed(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_connect_under_way_is_ended_by_close() {
    let manager = TestManager::new();
    manager.connect.always(Act::Never);
    let pool = pool_of(&manager, 2).connect_timeout(600 * SECOND).build_lazy().unwrap();
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    eventually("a dial is under way", || manager.connect.running() == 1).await;
    let began = Instant::now();
    pool.close().await;
    assert!(matches!(waiter.await, Err(AcquireError::Closed)));
    eventually("the dial is gone", || manager.connect.running() == 0).await;
    assert!(began.elapsed() < SECOND);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.created, metrics.counts.vacant, metrics.connect_failures), (0, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pause_between_attempts_is_ended_by_close() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = pool_of(&manager, 1).backoff(600 * SECOND, 600 * SECOND).build_lazy().unwrap();
    assert!(pool.acquire_timeout(Duration::from_millis(1)).await.is_err());
    let attempts = manager.connect.calls();
    let weak = pool.downgrade();
    drop(pool);
    assert!(weak.upgrade().is_none());
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks, 0, "no task of the pool is left");
    tokio::time::sleep(2000 * SECOND).await;
    assert_eq!(manager.connect.calls(), attempts);
}

/// Every second connect is under way until it is let through: before close has begun, after that in the
/// same moment, or never.
#[tokio::test]
async fn close_and_connect_in_any_order_leave_nothing_open() {
    let (mut met, mut late) = (0, 0);
    for round in 0..180 {
        let manager = TestManager::new();
        for _ in 0..100 {
            manager.connect.once(Act::Ok);
            manager.connect.once(Act::Gated);
        }
        let pool = pool_of(&manager, 4).connect_timeout(Duration::MAX).acquire_timeout(PATIENCE);
        let pool = pool.build_lazy().unwrap();
        let users: Vec<_> = (0..4)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    while let Ok(held) = pool.acquire().await {
                        tokio::task::yield_now().await;
                        held.discard();
                    }
                })
            })
            .collect();
        for turn in 0..round / 3 {
            manager.connect.open(turn % 2);
            tokio::task::yield_now().await;
        }
        let (running, opened) = (manager.connect.running(), manager.ledger.opened());
        let mut close = pin!(pool.close());
        if round % 3 == 0 {
            manager.connect.open(4);
        }
        if poll_once(close.as_mut()).is_pending() {
            if round % 3 == 1 {
                manager.connect.open(4);
            }
            close.await;
        }
        for user in users {
            joined(user).await;
        }
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!(metrics.counts.vacant, 4);
        assert_eq!(manager.ledger.closed() as u64, metrics.created);
        met += usize::from(running > 0);
        late += manager.ledger.opened() - opened;
    }
    assert!(met > 0 && late > 0, "{met} times one was under way, {late} arrived after that");
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_closes_the_idle_connections() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).min_idle(4).build().await.unwrap();
    let other = pool.clone();
    drop(pool);
    tokio::task::yield_now().await;
    assert_eq!((other.is_closed(), manager.ledger.live()), (false, 4));
    drop(other);
    eventually("all are closed", || manager.ledger.live() == 0).await;
    assert_eq!(manager.ledger.closed(), 4);
}

#[tokio::test(start_paused = true)]
async fn an_owned_guard_outlives_the_last_handle_and_closes_its_connection() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).min_idle(2).build().await.unwrap();
    let mut held = pool.acquire_owned().await.unwrap();
    let other = pool.acquire_owned().await.unwrap();
    let weak = pool.downgrade();
    drop(pool);
    assert!(weak.upgrade().is_none(), "a guard does not keep the pool open");
    held.note = 7;
    assert_eq!((held.note, manager.ledger.live()), (7, 2));
    drop(held);
    eventually("one is closed", || manager.ledger.live() == 1).await;
    manager.condition.once(DIRTY);
    drop(other);
    eventually("both are closed", || manager.ledger.live() == 0).await;
    assert_eq!(manager.ledger.closed(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_weak_handle_upgrades_as_long_as_there_is_a_strong_one() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let weak = pool.downgrade();
    let again = weak.upgrade().expect("there is a handle");
    drop(pool);
    drop(again.acquire().await.unwrap());
    assert!(!again.is_closed());
    let weaker = weak.clone();
    drop(again);
    assert!(weak.upgrade().is_none());
    assert!(weaker.upgrade().is_none());
    eventually("it is closed", || manager.ledger.live() == 0).await;
}

#[tokio::test]
async fn a_guard_dropped_on_a_plain_thread_goes_back_or_is_reset_or_closed() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).build_lazy().unwrap();
    let guards = [
        pool.acquire_owned().await.unwrap(),
        pool.acquire_owned().await.unwrap(),
        pool.acquire_owned().await.unwrap(),
    ];
    manager.condition.once(Act::Ok);
    manager.condition.once(DIRTY);
    manager.condition.once(BROKEN);
    on_a_thread(move || guards.map(drop)).await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.resets, metrics.closed.broken), (2, 1, 1));
    assert_eq!(manager.ledger.closed(), 1);
}

#[test]
fn guards_dropped_while_the_runtime_shuts_down_neither_panic_nor_hang() {
    for runtime in [single as fn() -> Runtime, multi] {
        let manager = TestManager::new();
        let (pool, reported) = must_end({
            let manager = manager.clone();
            move || {
                let runtime = runtime();
                let pool = runtime.block_on(pool_of(&manager, 6).min_idle(6).build()).unwrap();
                for act in [Act::Ok, DIRTY, BROKEN] {
                    manager.condition.once(act);
                }
                for _ in 0..5 {
                    let pool = pool.clone();
                    drop(runtime.spawn(async move {
                        let _held = pool.acquire_owned().await.unwrap();
                        std::future::pending::<()>().await;
                    }));
                }
                runtime.block_on(eventually("five hold one", || pool.metrics().counts.in_use == 5));
                // And a dial that hangs is under way for somebody who waits.
                manager.connect.always(Act::Never);
                let last = runtime.block_on(pool.acquire_owned()).unwrap();
                last.discard();
                drop(runtime.spawn({
                    let pool = pool.clone();
                    async move { pool.acquire().await.map(drop) }
                }));
                runtime.block_on(eventually("a dial hangs", || manager.connect.running() == 1));
                // tokio catches what a task panics with while it is dropped.
                let reported = panics_here(|| drop(runtime));
                (pool, reported)
            }
        });
        assert_eq!(reported, 0);
        let metrics = balanced_blocking(&pool, &manager.ledger);
        assert_eq!(metrics.counts.in_use, 0, "{metrics:?}");
        assert_eq!(metrics.closed.broken, 1, "{metrics:?}");
    }
}

/// A runtime that ends waits for the threads that block on it, and they are in it until then.
#[test]
fn a_blocking_acquire_while_its_runtime_ends_is_told_that_there_is_none() {
    for min_idle in [0, 2] {
        let manager = TestManager::new();
        let said = must_end(move || {
            let runtime = multi();
            // What is idle is not to be checked when the runtime has ended, which nobody could do then.
            let pool = pool_of(&manager, 4).min_idle(min_idle).check(CheckPolicy::Never);
            let pool = runtime.block_on(pool.build()).expect("nothing fails");
            runtime.block_on(pool.warm_up(2)).expect("nothing fails");
            let (held, gone) = std::sync::mpsc::channel::<()>();
            drop(runtime.spawn(async move {
                let _held = held;
                std::future::pending::<()>().await;
            }));
            let (begin, begun) = std::sync::mpsc::channel();
            let (say, said) = std::sync::mpsc::channel();
            drop(runtime.spawn_blocking(move || {
                begin.send(()).expect("somebody waits for it");
                gone.recv().expect_err("the tasks have been dropped");
                let _idle = [pool.acquire_blocking(), pool.acquire_blocking()]
                    .map(|idle| idle.expect("it is there"));
                let another = pool.acquire_blocking();
                say.send(another.map(drop)).expect("somebody waits for it");
            }));
            begun.recv().expect("it begins");
            drop(runtime);
            said.recv().expect("it has been said")
        });
        assert!(matches!(said, Err(AcquireError::NoRuntime)), "{said:?}");
    }
}

/// Acquires when it is dropped, and says how that went.
struct LastWish(Pool<TestManager>, mpsc::Sender<Result<(), AcquireError<TestError>>>);

impl Drop for LastWish {
    fn drop(&mut self) {
        drop(self.1.send(self.0.acquire_blocking().map(drop)));
    }
}

/// The tasks of a runtime go before its timer does; one that begins by then is dropped at once.
#[test]
fn a_blocking_acquire_by_a_task_that_goes_with_its_runtime_is_told_that_there_is_none() {
    let said = must_end(|| {
        let pool = pool_of(&TestManager::new(), 1).build_lazy().expect("in range");
        let (say, said) = mpsc::channel();
        let wish = LastWish(pool, say);
        let runtime = single();
        drop(runtime.spawn(async move { drop(wish) }));
        drop(runtime);
        said.recv().expect("it has been said")
    });
    assert!(matches!(said, Err(AcquireError::NoRuntime)), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_passes_its_check_after_the_end_is_nobodys() {
    for drains in [false, true] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 2).check(CheckPolicy::Always).build_lazy().expect("in range");
        drop(pool.acquire().await.expect("nothing fails"));
        manager.check.once(Act::Slow(SECOND));
        let mut acquire = pin!(pool.acquire());
        assert!(poll_once(acquire.as_mut()).is_pending());
        assert_eq!(manager.check.running(), 1);
        if drains {
            let drained = async { drop(pool.drain(10 * SECOND).await) };
            let (acquired, ()) = tokio::join!(acquire, drained);
            assert!(matches!(acquired, Err(AcquireError::Draining)), "{acquired:?}");
        } else {
            pool.close().await;
            let acquired = acquire.await;
            assert!(matches!(acquired, Err(AcquireError::Closed)), "{acquired:?}");
        }
        eventually("it is closed", || manager.ledger.live() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_was_served_before_the_end_and_comes_for_it_after_that_is_refused() {
    for drains in [false, true] {
        let manager = TestManager::new();
        let pool = pool_of(&manager, 1).build_lazy().expect("in range");
        let held = pool.acquire().await.expect("nothing fails");
        let mut acquire = pin!(pool.acquire());
        assert!(poll_once(acquire.as_mut()).is_pending());
        drop(held);
        assert_eq!(pool.counts().waiters, 0, "it is served");
        if drains {
            let drained = async { drop(pool.drain(10 * SECOND).await) };
            let ((), acquired) = tokio::join!(drained, acquire);
            assert!(matches!(acquired, Err(AcquireError::Draining)), "{acquired:?}");
        } else {
            pool.close().await;
            let acquired = acquire.await;
            assert!(matches!(acquired, Err(AcquireError::Closed)), "{acquired:?}");
        }
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!((metrics.acquires, metrics.waits.closed, manager.ledger.live()), (1, 1, 0));
    }
}

/// Closes a pool while whatever is said goes on, and answers with how many connections there are then.
async fn left_after_close<T>(
    pool: &Pool<TestManager>,
    manager: &TestManager,
    beside: impl Future<Output = T>,
) -> (usize, T) {
    let left = async {
        pool.close().await;
        manager.ledger.live()
    };
    tokio::join!(left, beside)
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_a_connection_on_its_way_to_a_caller_who_does_not_get_it() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().expect("in range");
    let held = pool.acquire().await.expect("nothing fails");
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    drop(held);
    let (left, acquired) = left_after_close(&pool, &manager, acquire).await;
    assert!(matches!(acquired, Err(AcquireError::Closed)), "{acquired:?}");
    assert_eq!(left, 0);
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_what_the_pool_itself_is_at_work_on() {
    const HALF: Duration = Duration::from_millis(500);
    let manager = TestManager::new();
    let build = || pool_of(&manager, 2).check(CheckPolicy::Always).close_timeout(2 * SECOND);
    // What is being reset.
    let pool = build().build_lazy().expect("in range");
    manager.reset.once(Act::Slow(HALF));
    let held = pool.acquire().await.expect("nothing fails");
    manager.condition.once(DIRTY);
    drop(held);
    let began = Instant::now();
    let (left, ()) = left_after_close(&pool, &manager, async {}).await;
    assert_eq!(left, 0);
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    // What is being checked, by a caller or without one.
    for owns in [true, false] {
        let pool = build().build_lazy().expect("in range");
        drop(pool.acquire().await.expect("nothing fails"));
        manager.check.once(Act::Slow(HALF));
        let mut acquire = pin!(pool.acquire());
        if owns {
            assert!(poll_once(acquire.as_mut()).is_pending());
        } else {
            let none = pool.try_acquire();
            assert!(matches!(none, Err(TryAcquireError::Empty)), "{none:?}");
        }
        let (left, acquired) = left_after_close(&pool, &manager, acquire).await;
        assert!(matches!(acquired, Err(AcquireError::Closed)), "{acquired:?}");
        assert_eq!(left, 0, "checked by a caller: {owns}");
    }
    // What is being opened, which is given up.
    manager.connect.once(Act::Never);
    let pool = build().build_lazy().expect("in range");
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    eventually("it connects", || manager.connect.running() == 1).await;
    let began = Instant::now();
    let (left, _) = left_after_close(&pool, &manager, acquire).await;
    assert_eq!((left, began.elapsed()), (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn close_waits_neither_for_what_is_held_nor_for_ever() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).reset_timeout(60 * SECOND).build_lazy().expect("in range");
    let held = pool.acquire().await.expect("nothing fails");
    let mut close = pin!(pool.close());
    assert!(poll_once(close.as_mut()).is_ready(), "one is held");
    drop(held);
    eventually("it is closed", || manager.ledger.live() == 0).await;

    let pool = pool_of(&manager, 2).reset_timeout(60 * SECOND).close_timeout(3 * SECOND);
    let pool = pool.build_lazy().expect("in range");
    let held = pool.acquire().await.expect("nothing fails");
    manager.reset.once(Act::Never);
    manager.condition.once(DIRTY);
    drop(held);
    let began = Instant::now();
    pool.close().await;
    assert_eq!((manager.ledger.live(), began.elapsed()), (1, 3 * SECOND));
}

/// Nobody says when a caller takes what was idle just before the close: that would cost every acquire.
#[test]
fn close_does_not_wait_for_what_a_caller_takes_at_the_last_moment() {
    let manager = TestManager::new();
    let (arrive, arrived) = mpsc::channel();
    let (go_on, gone_on) = mpsc::channel::<()>();
    let gone_on = Mutex::new(gone_on);
    let hooks = Hooks::new().on_checkout(move |_: &Conn| {
        arrive.send(()).expect("somebody waits for it");
        gone_on.lock().expect("nobody panics").recv().expect("it goes on");
    });
    let runtime = multi();
    let pool = pool_of(&manager, 1).min_idle(1).close_timeout(60 * SECOND).hooks(hooks);
    let pool = runtime.block_on(pool.build()).expect("nothing fails");
    let taker = std::thread::spawn({
        let pool = pool.clone();
        move || pool.try_acquire_owned().expect("it is idle")
    });
    arrived.recv().expect("it is being taken");
    let mut close = Box::pin(pool.close());
    let began = std::time::Instant::now();
    runtime.block_on(async { assert!(poll_once(close.as_mut()).is_pending()) });
    go_on.send(()).expect("somebody waits for it");
    let held = join(taker);
    runtime.block_on(close);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert_eq!(held.info().id, 1);
}

#[test]
fn guards_dropped_after_the_runtime_is_gone_neither_panic_nor_hang() {
    let manager = TestManager::new();
    must_end({
        let manager = manager.clone();
        move || {
            let runtime = multi();
            let pool = runtime.block_on(pool_of(&manager, 4).min_idle(4).build()).unwrap();
            let mut guards = Vec::new();
            for _ in 0..4 {
                guards.push(runtime.block_on(pool.acquire_owned()).unwrap());
            }
            drop(runtime);
            for act in [Act::Ok, DIRTY, BROKEN] {
                manager.condition.once(act);
                drop(guards.pop());
            }
            guards.pop().expect("the fourth").discard();
            let metrics = balanced_blocking(&pool, &manager.ledger);
            assert_eq!((metrics.counts.idle, metrics.counts.vacant), (1, 3));
            assert_eq!((metrics.closed.broken, metrics.closed.discarded), (1, 1));
            assert_eq!(metrics.closed.abandoned, 1, "nobody was left to reset it");
            drop(pool);
        }
    });
    assert_eq!(manager.ledger.live(), 0);
}

thread_local! {
    /// The panics of this thread, and of those of the runtimes that it has [built](multi).
    static REPORTED: RefCell<Arc<AtomicUsize>> = RefCell::default();
}

/// Runs `work`, and counts the panics that are reported of this thread meanwhile, or of those of a runtime that
/// it has built, caught or not: with `panic = "abort"` the first is the end of the program.
fn panics_here(work: impl FnOnce()) -> usize {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // A thread that ends may have none any more.
            let _ = REPORTED.try_with(|here| here.borrow().fetch_add(1, Ordering::SeqCst));
            before(info);
        }));
    });
    let reported = REPORTED.with_borrow(Arc::clone);
    let before = reported.load(Ordering::SeqCst);
    work();
    reported.load(Ordering::SeqCst) - before
}

#[test]
fn a_thread_in_a_runtime_that_has_ended_finds_that_out_without_a_panic() {
    for runtime in [single, multi] {
        let reported = must_end(move || {
            panics_here(|| {
                let manager = TestManager::new();
                let runtime = runtime();
                // What comes back is not to be checked, which nobody could do then.
                let pool = pool_of(&manager, 6).min_idle(6).check(CheckPolicy::Never);
                let pool = runtime.block_on(pool.build()).expect("nothing fails");
                let guard = || pool.try_acquire_owned().expect("it is idle");
                let mut guards: Vec<_> = (0..6).map(|_| guard()).collect();
                let handle = runtime.handle().clone();
                drop(runtime);
                // As is a thread of `spawn_blocking`.
                let _here = handle.enter();
                for act in [Act::Ok, DIRTY, BROKEN] {
                    manager.condition.once(act);
                    drop(guards.pop());
                }
                guards.pop().expect("the third").discard();
                manager.condition.once(DIRTY);
                let released = pollster::block_on(guards.pop().expect("the second").release());
                assert!(matches!(released, Err(ReleaseError::NoRuntime)), "{released:?}");
                let _idle = guard();
                let refused = pool.acquire_blocking();
                assert!(matches!(refused, Err(AcquireError::NoRuntime)), "{refused:?}");
                let warm = pollster::block_on(pool.warm_up(2));
                assert!(matches!(warm, Err(WarmUpError::NoRuntime)), "{warm:?}");
                drop(pollster::block_on(pool.drain(SECOND)));
                pollster::block_on(pool.close());
                drop(guards);
            })
        });
        assert_eq!(reported, 0);
    }
}

#[test]
fn what_breaks_where_no_runtime_is_left_does_not_spare_what_is_idle_on_the_next_one_its_check() {
    let (manager, first) = (TestManager::new(), single());
    // Once in an interval what is idle is doubted, and this one has no end.
    let pool = pool_of(&manager, 2).maintenance_interval(Duration::MAX).build_lazy().unwrap();
    let held = first.block_on(pool.acquire_owned()).unwrap();
    drop(first);
    let broken = |held| {
        manager.condition.once(BROKEN);
        drop(held);
    };
    broken(held);
    single().block_on(async {
        let held = pool.acquire_owned().await.unwrap();
        drop(pool.acquire_owned().await.unwrap());
        assert_eq!((pool.counts().idle, manager.check.calls()), (1, 0));
        broken(held);
        drop(pool.acquire_owned().await.unwrap());
        assert_eq!(manager.check.calls(), 1);
    });
}

#[test]
fn the_last_handle_dropped_after_the_runtime_is_gone_drops_the_connections() {
    let manager = TestManager::new();
    must_end({
        let manager = manager.clone();
        move || {
            let runtime = single();
            let pool = runtime.block_on(pool_of(&manager, 4).min_idle(4).build()).unwrap();
            drop(runtime);
            drop(pool);
        }
    });
    assert_eq!((manager.ledger.live(), manager.ledger.dropped()), (0, 4));
}

#[test]
fn one_static_pool_serves_a_hundred_runtimes_one_after_the_other() {
    static MANAGER: LazyLock<TestManager> = LazyLock::new(TestManager::new);
    static POOL: LazyLock<Pool<TestManager>> =
        LazyLock::new(|| pool_of(&MANAGER, 2).build_lazy().expect("the settings are in range"));
    must_end(|| {
        for round in 0..100 {
            let runtime = if round % 2 == 0 { single() } else { multi() };
            runtime.block_on(async {
                let (one, two) = (POOL.acquire().await.unwrap(), POOL.acquire().await.unwrap());
                match round % 4 {
                    0 => drop((one, two)),
                    1 => one.discard(),
                    2 => two.release().await.unwrap(),
                    _ => {
                        one.discard();
                        two.discard();
                    }
                }
            });
        }
    });
    let metrics = balanced_blocking(&POOL, &MANAGER.ledger);
    assert_eq!((metrics.acquires, metrics.waits.timed_out), (200, 0));
    assert_eq!(metrics.closed.discarded, metrics.closed.total());
}

/// Whoever holds a connection may be dropped before the reaper is, and `min_idle` is not kept any more.
#[test]
fn a_runtime_that_ends_with_a_panic_is_forgotten_by_the_first_dial_that_it_does_not_run() {
    hush_scripted_panics();
    let manager = TestManager::new();
    must_end({
        let manager = manager.clone();
        move || {
            let runtime = single();
            let (give, given) = tokio::sync::oneshot::channel::<Pool<TestManager>>();
            drop(runtime.spawn(async move {
                let pool = given.await.unwrap();
                let _held = pool.acquire().await.unwrap();
                std::future::pending::<()>().await;
            }));
            let pool = runtime.block_on(pool_of(&manager, 2).min_idle(2).build()).unwrap();
            give.send(pool.clone()).unwrap();
            runtime.block_on(eventually("one is held", || pool.counts().in_use == 1));
            let ended = catch_unwind(AssertUnwindSafe(move || {
                let _runtime = runtime;
                panic!("scripted end of a runtime");
            }));
            ended.unwrap_err();
            single().block_on(async {
                let _both = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
            });
            let metrics = balanced_blocking(&pool, &manager.ledger);
            assert_eq!((metrics.created, metrics.closed.holder_panicked), (3, 1));
        }
    });
}

#[test]
fn a_pool_whose_runtime_has_ended_dials_on_the_callers() {
    let manager = TestManager::new();
    must_end({
        let manager = manager.clone();
        move || {
            let first = single();
            let pool = first.block_on(async { pool_of(&manager, 1).build_lazy() }).unwrap();
            first.block_on(pool.acquire()).unwrap().discard();
            drop(first);
            balanced_blocking(&pool, &manager.ledger);
            drop(single().block_on(pool.acquire()).unwrap());
            assert_eq!(balanced_blocking(&pool, &manager.ledger).created, 2);
        }
    });
}

#[test]
fn waiters_on_another_runtime_are_served_when_the_pools_own_ends_under_the_dial() {
    let manager = TestManager::new();
    must_end({
        let manager = manager.clone();
        move || {
            let first = multi();
            let pool = pool_of(&manager, 2).acquire_timeout(PATIENCE);
            let pool = first.block_on(async { pool.build_lazy() }).unwrap();
            manager.connect.once(Act::Never);
            let second = multi();
            let waiters: Vec<_> = (0..3)
                .map(|_| {
                    let pool = pool.clone();
                    second.spawn(async move { pool.acquire().await.map(|guard| guard.id) })
                })
                .collect();
            eventually_blocking("all wait for one dial", || {
                manager.connect.running() == 1 && pool.metrics().counts.waiters == 3
            });
            drop(first);
            for waiter in waiters {
                second.block_on(joined(waiter)).unwrap();
            }
            let metrics = balanced_blocking(&pool, &manager.ledger);
            assert_eq!((metrics.acquires, metrics.waits.timed_out), (3, 0));
        }
    });
}

#[test]
fn waiters_without_a_timer_pass_on_the_word_that_the_pools_own_runtime_has_ended() {
    let manager = TestManager::new();
    must_end({
        let manager = manager.clone();
        move || {
            let first = multi();
            let pool = pool_of(&manager, 2).shards(1).acquire_timeout(PATIENCE);
            let pool = first.block_on(async { pool.build_lazy() }).unwrap();
            manager.connect.once(Act::Never);
            let in_front = [(); 4].map(|()| {
                let pool = pool.clone();
                std::thread::spawn(move || {
                    let timerless = Builder::new_current_thread().build().unwrap();
                    timerless
                        .block_on(async { pool.acquire_timeout(Duration::MAX).await.map(drop) })
                })
            });
            eventually_blocking("they wait", || pool.counts().waiters == 4);
            let second = multi();
            let behind = second.spawn({
                let pool = pool.clone();
                async move { pool.acquire().await.map(drop) }
            });
            eventually_blocking("all wait for one dial", || {
                manager.connect.running() == 1 && pool.counts().waiters == 5
            });
            drop(first);
            second.block_on(joined(behind)).unwrap();
            for waiter in in_front {
                let answer = join(waiter);
                assert!(matches!(answer, Ok(()) | Err(AcquireError::NoRuntime)), "{answer:?}");
            }
            assert_eq!(balanced_blocking(&pool, &manager.ledger).waits.timed_out, 0);
        }
    });
}

#[test]
fn a_waiter_hears_of_a_dial_that_succeeds_while_its_runtime_ends() {
    must_end(|| {
        let (began, has_begun) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel::<()>();
        let first_time = Mutex::new(Some((began, goes_on)));
        let manager = from_fn(move || {
            let held_up = first_time.lock().unwrap().take();
            async move {
                if let Some((began, goes_on)) = held_up {
                    began.send(()).unwrap();
                    // Its thread is held up in the middle of a poll.
                    goes_on.recv().unwrap_err();
                }
                Ok::<_, Infallible>(())
            }
        });
        let first = multi();
        let pool = Pool::builder(manager).max_size(2).acquire_timeout(PATIENCE);
        let pool = first.block_on(async { pool.build_lazy() }).unwrap();
        let second = multi();
        let waiters = [(); 2].map(|()| {
            let pool = pool.clone();
            second.spawn(async move { pool.acquire_owned().await })
        });
        has_begun.recv().unwrap();
        eventually_blocking("both wait", || pool.counts().waiters == 2);
        let probe = Arc::new(());
        for _ in 0..64 {
            let probe = probe.clone();
            first.spawn(async move {
                std::future::pending::<()>().await;
                drop(probe);
            });
        }
        first.shutdown_background();
        eventually_blocking("its tasks are gone", || Arc::strong_count(&probe) == 1);
        drop(go_on);
        let served = waiters.map(|waiter| second.block_on(joined(waiter)).unwrap());
        assert_eq!(pool.counts().in_use, 2);
        drop(served);
    });
}

#[test]
fn threads_that_have_no_runtime_left_pass_on_the_word_that_the_pools_own_has_ended() {
    let manager = TestManager::new();
    must_end({
        let manager = manager.clone();
        move || {
            let first = multi();
            let pool = pool_of(&manager, 1).shards(1).acquire_timeout(PATIENCE);
            let pool = first.block_on(async { pool.build_lazy() }).unwrap();
            manager.connect.once(Act::Never);
            // Each word reaches one waiter, and these are first in line but cannot connect.
            let threads: Vec<_> = (1..=4)
                .map(|waiters| {
                    let thread = std::thread::spawn({
                        let pool = pool.clone();
                        move || pool.acquire_blocking().map(drop)
                    });
                    eventually_blocking("it waits", || pool.metrics().counts.waiters == waiters);
                    thread
                })
                .collect();
            eventually_blocking("the pool dials", || manager.connect.running() == 1);
            let second = multi();
            let last = second.spawn({
                let pool = pool.clone();
                async move { pool.acquire().await.map(|guard| guard.id) }
            });
            eventually_blocking("the last waits", || pool.metrics().counts.waiters == 5);
            drop(first);
            second.block_on(joined(last)).unwrap();
            for thread in threads {
                // Whoever looks after the last has connected is served.
                let outcome = join(thread);
                assert!(matches!(outcome, Ok(()) | Err(AcquireError::NoRuntime)), "{outcome:?}");
            }
            let metrics = balanced_blocking(&pool, &manager.ledger);
            assert_eq!(metrics.waits.timed_out, 0);
        }
    });
}

#[test]
fn a_connection_is_closed_by_the_manager_on_the_current_runtime_if_the_pools_own_has_ended() {
    let manager = TestManager::new();
    must_end({
        let manager = manager.clone();
        move || {
            let first = single();
            let pool = first.block_on(pool_of(&manager, 1).min_idle(1).build()).unwrap();
            drop(first);
            single().block_on(async {
                pool.acquire().await.unwrap().discard();
                balanced(&pool, &manager.ledger).await;
            });
        }
    });
    assert_eq!(manager.ledger.closed(), 1, "there was a runtime that could have run it");
}

#[test]
fn what_comes_back_to_a_closed_pool_whose_runtime_has_ended_is_closed_on_the_current_one() {
    let manager = TestManager::new();
    must_end({
        let manager = manager.clone();
        move || {
            let first = single();
            let pool = first.block_on(pool_of(&manager, 2).min_idle(2).build()).unwrap();
            let held = [(); 2].map(|()| pool.try_acquire().unwrap());
            first.block_on(pool.close());
            drop(first);
            for connection in held {
                // The first of these has ended as well when the second connection comes back.
                single().block_on(async {
                    drop(connection);
                    balanced(&pool, &manager.ledger).await;
                });
            }
        }
    });
    assert_eq!(manager.ledger.closed(), 2, "there was a runtime that could have run it");
}

#[test]
fn a_dirty_connection_is_reset_on_the_current_runtime_if_the_pools_own_has_ended() {
    let manager = TestManager::new();
    must_end({
        let manager = manager.clone();
        move || {
            let first = single();
            let pool = first.block_on(pool_of(&manager, 1).min_idle(1).build()).unwrap();
            drop(first);
            single().block_on(async {
                manager.condition.once(DIRTY);
                drop(pool.acquire().await.unwrap());
                balanced(&pool, &manager.ledger).await;
            });
        }
    });
    assert_eq!(manager.reset.calls(), 1, "there was a runtime that could have run it");
}

#[test]
fn an_acquire_with_nothing_idle_outside_any_runtime_says_so() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let refused = pollster::block_on(pool.acquire());
    assert!(matches!(refused, Err(AcquireError::NoRuntime)), "{refused:?}");
    let refused = must_end({
        let pool = pool.clone();
        move || pool.acquire_blocking().map(drop)
    });
    assert!(matches!(refused, Err(AcquireError::NoRuntime)), "{refused:?}");
    assert!(matches!(pool.try_acquire(), Err(TryAcquireError::Empty)));
    let metrics = balanced_blocking(&pool, &manager.ledger);
    assert_eq!((metrics.acquires, metrics.waits.timed_out, metrics.counts.vacant), (0, 0, 2));

    // It is none the worse for it.
    drop(single().block_on(pool.acquire()).unwrap());
}

#[test]
fn whoever_may_have_a_reserved_connection_and_nobody_to_open_it_is_told_so() {
    let manager = TestManager::new();
    let runtime = single();
    let pool = pool_of(&manager, 2).reserved(Priority::High, 1).min_idle(1);
    let pool = runtime.block_on(pool.acquire_timeout(SECOND).build()).unwrap();
    let _held = pool.try_acquire().unwrap();
    drop(runtime);
    let refused = pool.acquire_blocking_with(Priority::High);
    assert!(matches!(refused, Err(AcquireError::NoRuntime)), "{refused:?}");
    // For everybody else there is no room.
    let refused = pool.acquire_blocking_timeout(SECOND / 20);
    assert!(matches!(refused, Err(AcquireError::Timeout(_))), "{refused:?}");
}

#[test]
fn whoever_waits_for_a_reserved_connection_when_the_pools_runtime_ends_is_told_so() {
    let manager = TestManager::new();
    let refused = must_end(move || {
        let runtime = multi();
        let pool = pool_of(&manager, 2).reserved(Priority::High, 1).min_idle(1);
        let pool = runtime.block_on(pool.acquire_timeout(Duration::MAX).build()).unwrap();
        let _held = pool.try_acquire().unwrap();
        manager.connect.always(Act::Never);
        let waiter = std::thread::spawn({
            let pool = pool.clone();
            move || {
                let timerless = Builder::new_current_thread().build().unwrap();
                timerless.block_on(async { pool.acquire_with(Priority::High).await.map(drop) })
            }
        });
        eventually_blocking("the pool dials", || manager.connect.running() == 1);
        drop(runtime);
        join(waiter)
    });
    assert!(matches!(refused, Err(AcquireError::NoRuntime)), "{refused:?}");
}

/// Has a thread do `work` while `end` is done, some time after it has begun.
fn meanwhile<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    after: usize,
    end: impl FnOnce(),
) -> T {
    let begun = Arc::new(AtomicBool::new(false));
    let thread = std::thread::spawn({
        let begun = begun.clone();
        move || {
            begun.store(true, Ordering::SeqCst);
            work()
        }
    });
    while !begun.load(Ordering::SeqCst) {
        std::hint::spin_loop();
    }
    (0..after).for_each(|_| std::hint::spin_loop());
    end();
    join(thread)
}

/// Has a thread acquire meanwhile.
fn refused_while(pool: &Pool<TestManager>, after: usize, end: impl FnOnce()) {
    let acquire = {
        let pool = pool.clone();
        move || pool.acquire_blocking().map(drop)
    };
    let refused = meanwhile(acquire, after, end);
    assert!(matches!(refused, Err(AcquireError::NoRuntime)), "{after}: {refused:?}");
}

#[test]
fn a_thread_that_parks_while_the_pools_runtime_ends_is_told_so() {
    for round in 0..1000 {
        let (manager, runtime) = (TestManager::new(), single());
        let pool = pool_of(&manager, 1).acquire_timeout(Duration::MAX);
        let pool = runtime.block_on(pool.build()).unwrap();
        refused_while(&pool, round, || drop(runtime));
    }
}

#[test]
fn a_thread_that_parks_while_the_only_connection_goes_is_told_that_nobody_opens_another() {
    for round in 0..1000 {
        let (manager, runtime) = (TestManager::new(), single());
        let pool = pool_of(&manager, 1).acquire_timeout(Duration::MAX);
        let pool = runtime.block_on(pool.build()).unwrap();
        let held = runtime.block_on(pool.acquire_owned()).unwrap();
        drop(runtime);
        refused_while(&pool, round, || drop(held.detach()));
    }
}

#[test]
fn a_thread_that_waits_while_the_only_connection_and_the_pools_runtime_go_is_told_so() {
    for round in 0..1000 {
        let (manager, runtime) = (TestManager::new(), single());
        let pool = pool_of(&manager, 1).acquire_timeout(Duration::MAX);
        let pool = runtime.block_on(pool.build()).unwrap();
        let held = runtime.block_on(pool.acquire_owned()).unwrap();
        refused_while(&pool, 0, || {
            eventually_blocking("it waits", || pool.counts().waiters == 1);
            meanwhile(move || drop(runtime), round, || drop(held.detach()));
        });
    }
}

#[test]
fn a_blocking_acquire_waits_inside_spawn_blocking() {
    for runtime in [single, multi] {
        must_end(move || {
            let manager = TestManager::new();
            runtime().block_on(async {
                let pool = pool_of(&manager, 1).acquire_timeout(PATIENCE).build_lazy().unwrap();
                // Nothing idle: it has one opened.
                let blocking = tokio::task::spawn_blocking({
                    let pool = pool.clone();
                    move || pool.acquire_blocking().map(|guard| guard.id)
                });
                assert_eq!(joined(blocking).await.unwrap(), 1);
                // All in use: it waits.
                let held = pool.acquire().await.unwrap();
                let blocking = tokio::task::spawn_blocking({
                    let pool = pool.clone();
                    move || pool.acquire_blocking().map(|guard| guard.id)
                });
                eventually("it waits", || pool.metrics().counts.waiters == 1).await;
                drop(held);
                assert_eq!(joined(blocking).await.unwrap(), 1);
                balanced(&pool, &manager.ledger).await;
            });
        });
    }
}

/// A blocking acquire that would have to wait is refused; one that need not is not.
async fn blocking_is_refused_here(pool: &Pool<TestManager>) {
    drop(pool.acquire_blocking().expect("one is idle"));
    let held = pool.acquire_blocking().expect("one is idle");
    for _ in 0..3 {
        let refused = pool.acquire_blocking();
        assert!(matches!(refused, Err(AcquireError::WouldBlock)), "{refused:?}");
    }
    assert_eq!(pool.metrics().counts.waiters, 0);
    // Its question has not used up the budget of this task.
    for _ in 0..100 {
        tokio::task::coop::consume_budget().await;
    }
    drop(held);
    drop(pool.acquire_blocking().expect("one is idle"));
}

#[test]
fn a_blocking_acquire_in_an_async_task_is_refused_only_if_it_would_wait() {
    for runtime in [single, multi] {
        must_end(move || {
            let manager = TestManager::new();
            let runtime = runtime();
            let pool = runtime.block_on(pool_of(&manager, 1).min_idle(1).build()).unwrap();
            // In block_on itself.
            runtime.block_on(blocking_is_refused_here(&pool));
            // In a task of a worker, or of block_on's own thread.
            let task = runtime.spawn({
                let pool = pool.clone();
                async move { blocking_is_refused_here(&pool).await }
            });
            runtime.block_on(joined(task));
            // In a task of a LocalSet.
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, blocking_is_refused_here(&pool));
            let metrics = balanced_blocking(&pool, &manager.ledger);
            assert_eq!((metrics.acquires, metrics.created), (9, 1));
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_acquire_waits_inside_block_in_place() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).acquire_timeout(PATIENCE).build_lazy().unwrap();
    let task = tokio::spawn({
        let pool = pool.clone();
        async move { tokio::task::block_in_place(|| pool.acquire_blocking().map(|guard| guard.id)) }
    });
    assert_eq!(joined(task).await.unwrap(), 1);
    balanced(&pool, &manager.ledger).await;
}
