//! Getting a connection and giving it back: who gets which, and what is counted.

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;

use millpond::{
    AcquireError, CheckPolicy, IdleOrder, OperationError, Pool, PoolBuilder, ReleaseError,
    TryAcquireError,
};
use std::pin::pin;
use std::time::Duration;
use support::{Act, Conn, TestManager, Wakes, eventually, join, joined, poll_once, poll_with};

const SECOND: Duration = Duration::from_secs(1);
/// What `condition` answers for "dirty".
const DIRTY: Act = Act::Slow(Duration::ZERO);
/// What `condition` answers for "broken".
const BROKEN: Act = Act::Error;

fn builder(manager: &TestManager) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone())
}

/// A pool of `size` connections, all open and idle.
async fn warm(manager: &TestManager, size: usize) -> Pool<TestManager> {
    builder(manager).max_size(size).min_idle(size).build().await.unwrap()
}

/// A pool of `size` vacant slots.
fn cold(manager: &TestManager, size: usize) -> Pool<TestManager> {
    builder(manager).max_size(size).build_lazy().unwrap()
}

/// Vacant, connecting, idle, in use, waiters; nothing may be checking, resetting or closing.
#[track_caller]
fn assert_counts(pool: &Pool<TestManager>, expected: (usize, usize, usize, usize, usize)) {
    let counts = pool.metrics().counts;
    let found = (counts.vacant, counts.connecting, counts.idle, counts.in_use, counts.waiters);
    assert_eq!(found, expected, "{counts:?}");
    assert_eq!((counts.checking, counts.resetting, counts.closing), (0, 0, 0), "{counts:?}");
    assert_eq!(counts.spare, 0, "{counts:?}");
}

/// What holds for borrowed and owned guards alike.
macro_rules! guard_tests {
    ($module:ident, $acquire:ident, $name:literal) => {
        mod $module {
            use super::*;

            #[tokio::test]
            async fn acquire_connects_when_nothing_is_idle_and_the_second_one_reuses() {
                let manager = TestManager::new();
                let pool = cold(&manager, 4);
                for uses in 1..=10 {
                    let conn = pool.$acquire().await.unwrap();
                    assert_eq!((conn.id, conn.info().uses), (1, uses));
                }
                assert_eq!(manager.connect.calls(), 1);
                assert_eq!((pool.metrics().created, pool.metrics().acquires), (1, 10));
                assert_counts(&pool, (3, 0, 1, 0, 0));
            }

            #[tokio::test]
            async fn as_many_as_there_is_room_for_succeed_and_the_next_one_waits() {
                let manager = TestManager::new();
                let pool = cold(&manager, 5);
                let mut held = Vec::new();
                for _ in 0..5 {
                    held.push(pool.$acquire().await.unwrap());
                }
                let mut ids: Vec<_> = held.iter().map(|conn| conn.id).collect();
                ids.sort_unstable();
                assert_eq!(ids, [1, 2, 3, 4, 5]);
                let mut next = pin!(pool.$acquire());
                assert!(poll_once(next.as_mut()).is_pending());
                assert_counts(&pool, (0, 0, 0, 5, 1));
                let id = held[3].id;
                drop(held.remove(3));
                assert_eq!(next.await.unwrap().id, id);
                assert_eq!(manager.connect.calls(), 5);
            }

            #[tokio::test]
            async fn the_counts_are_exact_after_each_step() {
                let manager = TestManager::new();
                manager.connect.always(Act::Gated);
                let pool = cold(&manager, 2);
                assert_counts(&pool, (2, 0, 0, 0, 0));
                let mut acquire = Box::pin(pool.$acquire());
                assert!(poll_once(acquire.as_mut()).is_pending());
                assert_counts(&pool, (1, 1, 0, 0, 1));
                manager.connect.open(1);
                let first = acquire.await.unwrap();
                assert_counts(&pool, (1, 0, 0, 1, 0));
                manager.connect.open(1);
                let second = pool.$acquire().await.unwrap();
                assert_counts(&pool, (0, 0, 0, 2, 0));
                let mut third = Box::pin(pool.$acquire());
                assert!(poll_once(third.as_mut()).is_pending());
                assert_counts(&pool, (0, 0, 0, 2, 1));
                drop(third);
                assert_counts(&pool, (0, 0, 0, 2, 0));
                drop(first);
                assert_counts(&pool, (0, 0, 1, 1, 0));
                drop(second);
                assert_counts(&pool, (0, 0, 2, 0, 0));
                let conn = pool.$acquire().await.unwrap().detach();
                assert_counts(&pool, (1, 0, 1, 0, 0));
                drop(conn);
                pool.$acquire().await.unwrap().discard();
                eventually("it is closed", || pool.metrics().counts.vacant == 2).await;
                assert_counts(&pool, (2, 0, 0, 0, 0));
                let metrics = pool.metrics();
                assert_eq!((metrics.created, metrics.acquires, metrics.waits.timed_out), (2, 4, 0));
                assert_eq!((metrics.closed.detached, metrics.closed.discarded), (1, 1));
                assert_eq!(metrics.closed.total(), 2);
            }

            #[tokio::test]
            async fn a_guard_stands_for_its_connection() {
                let manager = TestManager::new();
                let pool = warm(&manager, 1).await;
                let mut conn = pool.$acquire().await.unwrap();
                conn.note = 7; // DerefMut
                assert_eq!(conn.note, 7); // Deref
                let as_ref: &Conn = conn.as_ref();
                assert_eq!(as_ref.note, 7);
                let as_mut: &mut Conn = conn.as_mut();
                as_mut.note = 8;
                let debug = format!("{conn:?}");
                assert!(debug.starts_with(concat!($name, "(Conn")), "{debug}");
                assert!(debug.contains("note: 8"), "{debug}");
                drop(conn);
                assert_eq!(pool.$acquire().await.unwrap().note, 8);
            }

            #[tokio::test]
            async fn what_a_connection_looks_like_from_its_guard() {
                tokio::time::pause();
                let manager = TestManager::new();
                let pool = cold(&manager, 1);
                let before = tokio::time::Instant::now().into_std();
                let first = pool.$acquire().await.unwrap();
                let info = first.info();
                assert_eq!((info.id, info.uses, info.age), (1, 1, Duration::ZERO));
                assert_eq!(info.created, before);
                tokio::time::advance(5 * SECOND).await;
                assert_eq!(first.info().age, 5 * SECOND);
                assert_eq!((first.info().created, first.info().uses), (before, 1));
                drop(first);
                tokio::time::advance(SECOND).await;
                let again = pool.$acquire().await.unwrap();
                assert_eq!((again.info().id, again.info().uses), (1, 2));
                assert_eq!((again.info().age, again.info().created), (6 * SECOND, before));
                again.discard();
                // The same slot, but another connection: nothing of the first one is left.
                let other = pool.$acquire().await.unwrap();
                assert_eq!((other.info().id, other.info().uses), (2, 1));
                assert_eq!((other.info().age, other.id), (Duration::ZERO, 2));
                drop(other);
                assert_eq!(pool.$acquire().await.unwrap().info().uses, 2);
            }

            #[tokio::test]
            async fn a_detached_connection_lives_on_and_its_capacity_is_free() {
                let manager = TestManager::new();
                let pool = warm(&manager, 1).await;
                let held = pool.$acquire().await.unwrap();
                let mut waiter = pin!(pool.$acquire());
                assert!(poll_once(waiter.as_mut()).is_pending());
                let mut conn: Conn = held.detach();
                conn.note = 9;
                let other = waiter.await.unwrap();
                assert_eq!((conn.id, other.id), (1, 2));
                assert_eq!((manager.ledger.live(), manager.ledger.dropped()), (2, 0));
                drop(other);
                pool.close().await;
                assert_eq!((manager.ledger.live(), conn.note), (1, 9));
                drop(conn);
                assert_eq!((manager.ledger.live(), manager.ledger.closed()), (0, 1));
                assert_eq!(pool.metrics().closed.detached, 1);
            }

            #[tokio::test]
            async fn a_discarded_connection_is_closed_once_and_the_waiter_gets_a_new_one() {
                let manager = TestManager::new();
                let pool = warm(&manager, 1).await;
                let held = pool.$acquire().await.unwrap();
                let mut waiter = pin!(pool.$acquire());
                assert!(poll_once(waiter.as_mut()).is_pending());
                held.discard();
                assert_eq!(waiter.await.unwrap().id, 2);
                assert_eq!((manager.close.calls(), manager.ledger.dropped()), (1, 1));
                assert_eq!(pool.metrics().closed.discarded, 1);
                assert_eq!(manager.condition.calls(), 1, "asked only for the one given back");
            }

            #[tokio::test]
            async fn releasing_a_clean_connection_makes_it_idle() {
                let manager = TestManager::new();
                let pool = warm(&manager, 1).await;
                pool.$acquire().await.unwrap().release().await.unwrap();
                assert_counts(&pool, (0, 0, 1, 0, 0));
                assert_eq!(manager.reset.calls(), 0);
            }

            #[tokio::test(start_paused = true)]
            async fn releasing_a_dirty_connection_resets_it_before_it_returns() {
                let manager = TestManager::new();
                manager.reset.always(Act::Slow(Duration::from_millis(300)));
                let pool = warm(&manager, 1).await;
                let conn = pool.$acquire().await.unwrap();
                manager.condition.once(DIRTY);
                let began = tokio::time::Instant::now();
                let mut release = pin!(conn.release());
                assert!(poll_once(release.as_mut()).is_pending());
                assert_eq!(pool.metrics().counts.resetting, 1);
                release.await.unwrap();
                assert_eq!(began.elapsed(), Duration::from_millis(300));
                assert_counts(&pool, (0, 0, 1, 0, 0));
                assert_eq!((manager.reset.calls(), pool.metrics().resets), (1, 1));
                assert_eq!(pool.$acquire().await.unwrap().id, 1);
            }

            #[tokio::test]
            async fn releasing_a_connection_whose_reset_fails_says_so_and_closes_it() {
                let manager = TestManager::new();
                manager.reset.always(Act::Error);
                let pool = warm(&manager, 1).await;
                let conn = pool.$acquire().await.unwrap();
                manager.condition.once(DIRTY);
                match conn.release().await {
                    Err(ReleaseError::Reset(OperationError::Failed(error))) => {
                        assert_eq!(error.what, "reset");
                    }
                    other => panic!("{other:?}"),
                }
                assert_eq!(pool.metrics().closed.failed_reset, 1);
                assert_eq!(pool.$acquire().await.unwrap().id, 2);
                assert_eq!(manager.ledger.dropped(), 1);
            }

            #[tokio::test]
            async fn releasing_a_broken_connection_says_so_and_closes_it() {
                let manager = TestManager::new();
                let pool = warm(&manager, 1).await;
                let conn = pool.$acquire().await.unwrap();
                manager.condition.once(BROKEN);
                let error = conn.release().await.unwrap_err();
                assert!(matches!(error, ReleaseError::Broken), "{error:?}");
                assert_eq!(pool.metrics().closed.broken, 1);
                assert_eq!(pool.$acquire().await.unwrap().id, 2);
                assert_eq!((manager.close.calls(), manager.ledger.dropped()), (1, 1));
            }

            #[tokio::test]
            async fn a_release_that_is_never_polled_is_a_drop() {
                let manager = TestManager::new();
                let pool = warm(&manager, 1).await;
                drop(pool.$acquire().await.unwrap().release());
                assert_counts(&pool, (0, 0, 1, 0, 0));
            }

            #[tokio::test]
            async fn a_dirty_connection_is_reset_before_the_waiter_gets_it() {
                let manager = TestManager::new();
                manager.reset.always(Act::Gated);
                let pool = warm(&manager, 1).await;
                let conn = pool.$acquire().await.unwrap();
                let mut waiter = pin!(pool.$acquire());
                assert!(poll_once(waiter.as_mut()).is_pending());
                manager.condition.once(DIRTY);
                drop(conn);
                eventually("the reset runs", || manager.reset.running() == 1).await;
                assert!(poll_once(waiter.as_mut()).is_pending());
                assert_eq!(pool.metrics().counts.resetting, 1);
                manager.reset.open(1);
                assert_eq!(waiter.await.unwrap().id, 1);
                assert_eq!(pool.metrics().resets, 1);
            }

            #[tokio::test]
            async fn a_broken_connection_makes_room_for_the_waiter() {
                let manager = TestManager::new();
                let pool = warm(&manager, 1).await;
                let conn = pool.$acquire().await.unwrap();
                let mut waiter = pin!(pool.$acquire());
                assert!(poll_once(waiter.as_mut()).is_pending());
                manager.condition.once(BROKEN);
                drop(conn);
                assert_eq!(waiter.await.unwrap().id, 2);
                assert_eq!((pool.metrics().closed.broken, manager.close.calls()), (1, 1));
            }

            #[tokio::test]
            #[allow(clippy::mem_forget)]
            async fn a_forgotten_guard_costs_one_slot_and_close_still_ends() {
                let manager = TestManager::new();
                let pool = warm(&manager, 3).await;
                std::mem::forget(pool.$acquire().await.unwrap());
                assert_counts(&pool, (0, 0, 2, 1, 0));
                let two = (pool.$acquire().await.unwrap(), pool.$acquire().await.unwrap());
                let mut third = Box::pin(pool.$acquire());
                assert!(poll_once(third.as_mut()).is_pending());
                drop(two);
                assert!(third.await.is_ok());
                pool.close().await;
                assert_counts(&pool, (2, 0, 0, 1, 0));
                assert_eq!((manager.ledger.closed(), manager.ledger.live()), (2, 1));
            }
        }
    };
}

guard_tests!(borrowed, acquire, "Pooled");
guard_tests!(owned, acquire_owned, "PooledOwned");

#[tokio::test]
async fn an_owned_guard_outlives_every_handle() {
    let manager = TestManager::new();
    let pool = warm(&manager, 2).await;
    let mut conn = pool.acquire_owned().await.unwrap();
    drop(pool);
    eventually("the idle one is closed", || manager.ledger.closed() == 1).await;
    conn.note = 3;
    assert_eq!((conn.note, manager.ledger.live()), (3, 1));
    drop(conn);
    eventually("this one is closed too", || manager.ledger.closed() == 2).await;
    assert_eq!(manager.ledger.live(), 0);
}

#[tokio::test]
async fn a_guard_that_is_made_owned_is_the_same_loan() {
    let manager = TestManager::new();
    let pool = warm(&manager, 1).await;
    drop(pool.acquire().await.unwrap());
    let (borrowed, line) = (pool.acquire().await.unwrap(), line!());
    let (info, before) = (borrowed.info(), pool.metrics());
    let mut owned = borrowed.into_owned();
    assert_counts(&pool, (0, 0, 0, 1, 0));
    let (after, since) = (pool.metrics(), owned.info());
    assert_eq!((after.acquires, after.created), (before.acquires, before.created));
    assert_eq!((since.id, since.uses, since.created), (info.id, 2, info.created));
    let site = pool.holders()[0].site.unwrap();
    assert_eq!((site.line(), site.file().ends_with("acquire.rs")), (line, true), "{site}");
    owned.note = 7;
    drop(tokio::spawn(async move { owned }).await.unwrap());
    assert_counts(&pool, (0, 0, 1, 0, 0));
    assert_eq!(pool.acquire().await.unwrap().note, 7);
    // It outlives every handle.
    let owned = pool.acquire().await.unwrap().into_owned();
    drop(pool);
    assert_eq!((owned.note, manager.ledger.live()), (7, 1));
    drop(owned);
    eventually("it is closed", || manager.ledger.closed() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn an_owned_guard_is_acquired_within_a_limit_or_at_once_or_not_at_all() {
    let manager = TestManager::new();
    let pool = warm(&manager, 1).await;
    let held = pool.acquire_owned_timeout(SECOND).await.unwrap();
    assert!(pool.holders()[0].site.unwrap().file().ends_with("acquire.rs"));
    assert_eq!(pool.try_acquire_owned().unwrap_err(), TryAcquireError::Empty);
    let began = tokio::time::Instant::now();
    let late = pool.acquire_owned_timeout(3 * SECOND).await.unwrap_err();
    assert!(matches!(late, AcquireError::Timeout(_)), "{late:?}");
    assert_eq!(began.elapsed(), 3 * SECOND);
    drop(held);
    let held = pool.try_acquire_owned().unwrap();
    assert!(pool.holders()[0].site.unwrap().file().ends_with("acquire.rs"));
    assert_eq!((held.info().uses, manager.connect.calls()), (2, 1));
    pool.close().await;
    assert_eq!(pool.try_acquire_owned().unwrap_err(), TryAcquireError::Closed);
    drop(pool);
    assert_eq!(held.id, 1);
}

#[tokio::test]
async fn a_connection_checked_at_every_acquire_is_the_same_connection() {
    let manager = TestManager::new();
    let pool =
        builder(&manager).max_size(1).min_idle(1).check(CheckPolicy::Always).build().await.unwrap();
    for uses in 1..=5 {
        let conn = pool.acquire().await.unwrap();
        assert_eq!((conn.id, conn.info().uses), (1, uses));
    }
    // A connection that has just been opened needs no check.
    assert_eq!(manager.check.calls(), 4);
}

// ---- try_acquire ----

#[tokio::test]
async fn try_acquire_takes_what_is_idle() {
    let manager = TestManager::new();
    let pool = warm(&manager, 2).await;
    let first = pool.try_acquire().unwrap();
    let second = pool.try_acquire().unwrap();
    assert_eq!(first.id + second.id, 3);
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
    assert_eq!(pool.metrics().acquires, 2);
    drop(first);
    assert!(pool.try_acquire().is_ok());
}

#[tokio::test]
async fn try_acquire_never_connects_and_never_waits() {
    let manager = TestManager::new();
    let pool = cold(&manager, 2);
    for _ in 0..100 {
        assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
    }
    assert_eq!(manager.connect.calls(), 0);
    assert_counts(&pool, (2, 0, 0, 0, 0));
    // Nor does it need a runtime.
    assert_eq!(
        join(std::thread::spawn(move || pool.try_acquire().map(drop))),
        Err(TryAcquireError::Empty)
    );
}

#[tokio::test]
async fn try_acquire_says_that_the_pool_is_closed() {
    let manager = TestManager::new();
    let pool = warm(&manager, 2).await;
    let held = pool.try_acquire().unwrap();
    pool.close().await;
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Closed);
    drop(held);
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Closed);
}

#[tokio::test]
async fn try_acquire_never_overtakes_a_parked_waiter() {
    for order in [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo] {
        let manager = TestManager::new();
        let pool = builder(&manager).max_size(2).min_idle(2).order(order).build().await.unwrap();
        let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
        let (wakes, waker) = Wakes::new();
        let mut first = pin!(pool.acquire());
        let mut second = pin!(pool.acquire());
        assert!(poll_with(first.as_mut(), &waker).is_pending());
        assert!(poll_with(second.as_mut(), &waker).is_pending());
        assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
        let [one, two] = held;
        drop(one);
        assert_eq!(wakes.count(), 1);
        assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
        drop(two);
        assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
        let served = (first.await.unwrap(), second.await.unwrap());
        assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
        drop(served);
        assert!(pool.try_acquire().is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_that_tries_all_the_time_does_not_starve_a_waiter() {
    let manager = TestManager::new();
    let pool = warm(&manager, 1).await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let thief = std::thread::spawn({
        let (pool, stop) = (pool.clone(), stop.clone());
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                drop(pool.try_acquire());
            }
        }
    });
    for _ in 0..2000 {
        let conn = pool.acquire().await.unwrap();
        tokio::task::yield_now().await;
        drop(conn);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    join(thief);
    assert_counts(&pool, (0, 0, 1, 0, 0));
}

// ---- where the holder and the waiter live ----

#[tokio::test]
async fn a_waiter_is_served_by_a_release_on_a_plain_thread() {
    let manager = TestManager::new();
    let pool = warm(&manager, 1).await;
    let held = pool.acquire_owned().await.unwrap();
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    join(std::thread::spawn(move || drop(held)));
    assert_eq!(waiter.await.unwrap().id, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_is_served_by_a_release_in_another_task() {
    let manager = TestManager::new();
    let pool = warm(&manager, 1).await;
    for _ in 0..500 {
        let held = pool.acquire_owned().await.unwrap();
        let waiter = tokio::spawn({
            let pool = pool.clone();
            async move { pool.acquire().await.unwrap().id }
        });
        let holder = tokio::spawn(async move {
            tokio::task::yield_now().await;
            drop(held);
        });
        assert_eq!(joined(waiter).await, 1);
        joined(holder).await;
    }
    assert_counts(&pool, (0, 0, 1, 0, 0));
}

#[tokio::test]
async fn a_waiter_is_served_by_a_release_on_another_runtime() {
    let manager = TestManager::new();
    let pool = warm(&manager, 1).await;
    let held = pool.acquire_owned().await.unwrap();
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    join(std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move { drop(held) });
    }));
    assert_eq!(waiter.await.unwrap().id, 1);
}

#[tokio::test]
async fn a_waiter_on_another_runtime_is_served_by_a_release_here() {
    let manager = TestManager::new();
    let pool = warm(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let waiter = std::thread::spawn({
        let pool = pool.clone();
        move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async { pool.acquire_timeout(support::PATIENCE).await.unwrap().id })
        }
    });
    eventually("the other runtime waits", || pool.metrics().counts.waiters == 1).await;
    drop(held);
    assert_eq!(join(waiter), 1);
}

#[tokio::test]
async fn a_blocked_thread_is_served_by_a_release_here() {
    let manager = TestManager::new();
    let pool = warm(&manager, 1).await;
    let held = pool.acquire().await.unwrap();
    let waiter = std::thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_blocking_timeout(support::PATIENCE).unwrap().id
    });
    eventually("the thread waits", || pool.metrics().counts.waiters == 1).await;
    drop(held);
    assert_eq!(join(waiter), 1);
    assert_counts(&pool, (0, 0, 1, 0, 0));
}

#[tokio::test]
async fn a_blocking_acquire_gives_up_at_its_deadline_and_not_before() {
    let manager = TestManager::new();
    let pool = warm(&manager, 1).await;
    let _held = pool.acquire().await.unwrap();
    let blocked = std::thread::spawn({
        let pool = pool.clone();
        move || {
            let began = std::time::Instant::now();
            let late = pool.acquire_blocking_timeout(SECOND);
            (late.map(drop), began.elapsed())
        }
    });
    eventually("the thread has ended", || blocked.is_finished()).await;
    let (late, took) = join(blocked);
    assert!(matches!(late, Err(AcquireError::Timeout(_))), "{late:?}");
    assert!(took >= SECOND && took < SECOND + support::SLACK, "{took:?}");
}

#[tokio::test]
async fn a_blocked_thread_gets_a_connection_that_the_pools_runtime_opens() {
    let manager = TestManager::new();
    manager.connect.always(Act::Gated);
    let pool = cold(&manager, 2);
    let waiter = std::thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_blocking_timeout(support::PATIENCE).unwrap().id
    });
    eventually("the pool dials", || manager.connect.running() == 1).await;
    assert_counts(&pool, (1, 1, 0, 0, 1));
    manager.connect.open(1);
    eventually("the thread has ended", || waiter.is_finished()).await;
    assert_eq!(join(waiter), 1);
    assert_counts(&pool, (1, 0, 1, 0, 0));
}

#[tokio::test]
async fn acquire_blocking_refuses_to_block_a_task_but_takes_what_is_idle() {
    let manager = TestManager::new();
    let pool = warm(&manager, 1).await;
    let held = pool.acquire_blocking().unwrap();
    let error = pool.acquire_blocking().unwrap_err();
    assert!(matches!(error, AcquireError::WouldBlock), "{error:?}");
    assert_counts(&pool, (0, 0, 0, 1, 0));
    let blocking = tokio::task::spawn_blocking({
        let pool = pool.clone();
        move || pool.acquire_blocking().unwrap().id
    });
    eventually("the thread waits", || pool.metrics().counts.waiters == 1).await;
    drop(held);
    assert_eq!(joined(blocking).await, 1);
}

// ---- which connection ----

/// Acquires `count` connections one after the other while holding them, releases them in the same
/// order, and tells in which order they are handed out next.
async fn order_after_release(pool: &Pool<TestManager>, count: usize) -> (Vec<usize>, Vec<usize>) {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(pool.acquire().await.unwrap());
    }
    let released: Vec<_> = held.iter().map(|conn| conn.id).collect();
    held.into_iter().for_each(drop);
    let again: Vec<_> = (0..count).map(|_| pool.try_acquire().unwrap()).collect();
    (released, again.iter().map(|conn| conn.id).collect())
}

async fn ordered(manager: &TestManager, order: IdleOrder, shards: usize) -> Pool<TestManager> {
    builder(manager).max_size(5).min_idle(5).order(order).shards(shards).build().await.unwrap()
}

#[tokio::test]
async fn lifo_hands_out_the_most_recent_first() {
    for shards in [1, 4] {
        let pool = ordered(&TestManager::new(), IdleOrder::Lifo, shards).await;
        for _ in 0..3 {
            let (mut released, again) = order_after_release(&pool, 5).await;
            released.reverse();
            assert_eq!(again, released);
        }
    }
}

#[tokio::test]
async fn lifo_leaves_the_rest_untouched() {
    let pool = ordered(&TestManager::new(), IdleOrder::Lifo, 1).await;
    let id = pool.acquire().await.unwrap().id;
    for _ in 0..100 {
        let conn = pool.acquire().await.unwrap();
        assert_eq!(conn.id, id);
    }
}

#[tokio::test]
async fn fifo_rotates() {
    for shards in [1, 4] {
        let pool = ordered(&TestManager::new(), IdleOrder::Fifo, shards).await;
        let (released, again) = order_after_release(&pool, 5).await;
        assert_eq!(again, released);
        let mut used = [0; 5];
        for _ in 0..50 {
            used[pool.acquire().await.unwrap().id - 1] += 1;
        }
        assert_eq!(used, [10; 5]);
    }
}

#[tokio::test]
async fn recent_hands_out_the_last_one_and_then_the_ones_that_were_idle_longest() {
    for shards in [1, 4] {
        let pool = ordered(&TestManager::new(), IdleOrder::Recent, shards).await;
        for _ in 0..3 {
            let (mut released, again) = order_after_release(&pool, 5).await;
            released.rotate_right(1);
            assert_eq!(again, released);
        }
        let id = pool.acquire().await.unwrap().id;
        for _ in 0..20 {
            assert_eq!(pool.acquire().await.unwrap().id, id);
        }
    }
}
