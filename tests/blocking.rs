//! `blocking::Pool`: the same pool in a program that has no runtime.
//!
//! Not here: what the pool does, which the other tests show on `Pool`.

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;

use millpond::blocking::WeakPool;
use millpond::{
    AcquireError, BuildError, CheckPolicy, Hooks, IdleOrder, Monitor, OperationError, Pool,
    PoolBuilder, PooledOwned, ReleaseError, RotateError, Stage, TryAcquireError, WarmUpError,
    from_fn,
};
use std::convert::Infallible;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use support::{
    Act, Conn, PATIENCE, SLACK, TestError, TestManager, eventually, eventually_blocking,
    hush_scripted_panics, join,
};

const DIRTY: Act = Act::Slow(Duration::ZERO);
const BROKEN: Act = Act::Error;

fn builder(manager: &TestManager) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone()).name("blocking")
}

#[test]
fn a_connection_is_opened_reused_and_closed_with_the_pool() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(2).build_blocking().unwrap();
    assert_eq!(manager.connect.calls(), 0, "nothing is opened before it is needed");
    let id = pool.acquire().unwrap().info().id;
    assert_eq!(pool.acquire().unwrap().info().id, id);
    assert_eq!((manager.ledger.live(), pool.metrics().acquires), (1, 2));
    drop(pool);
    // The last handle waits for its thread, and the thread for the connections.
    assert_eq!((manager.ledger.live(), manager.close.calls()), (0, 1));
}

#[test]
fn a_waiter_is_served_by_a_release_on_another_thread() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(1).build_blocking().unwrap();
    let held = pool.acquire_owned().unwrap();
    let (served, is_served) = mpsc::channel();
    let waiter = thread::spawn({
        let pool = pool.clone();
        move || {
            let connection = pool.acquire().unwrap();
            served.send(connection.info().uses).unwrap();
        }
    });
    eventually_blocking("it waits", || pool.metrics().counts.waiters == 1);
    assert!(is_served.try_recv().is_err());
    assert!(matches!(pool.try_acquire(), Err(TryAcquireError::Empty)));
    drop(held);
    join(waiter);
    assert_eq!(is_served.recv().unwrap(), 2);
    assert_eq!(manager.connect.calls(), 1);
}

#[test]
fn threads_never_open_more_than_the_limit_and_none_is_forgotten() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(3).check(CheckPolicy::Always).build_blocking().unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    drop(pool.acquire().unwrap());
                }
            });
        }
    });
    assert!(manager.ledger.most_live() <= 3);
    let metrics = pool.metrics();
    assert_eq!((metrics.acquires, metrics.waits.timed_out, metrics.counts.waiters), (400, 0, 0));
    assert!(manager.check.calls() > 0, "the pool's own runtime checks");
    let all: Vec<_> = (0..3).map(|_| pool.acquire().unwrap()).collect();
    assert!(pool.try_acquire().is_err());
    drop(all);
}

#[test]
fn a_timeout_says_why() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = builder(&manager).build_blocking().unwrap();
    pool.warm_up(1).unwrap_err();
    let error = pool.acquire_timeout(Duration::from_millis(30)).unwrap_err();
    let AcquireError::Timeout(timeout) = &error else { panic!("{error:?}") };
    assert!(timeout.waited() < pool.config().acquire_timeout, "the limit was ignored");
    assert!(error.to_string().starts_with("pool blocking: no connection within"), "{error}");
    assert!(error.source().is_some(), "the cause is lost");
    manager.connect.always(Act::Ok);
    // The server is back: the next acquire gets a connection.
    assert!(pool.acquire().is_ok());
}

#[test]
fn a_zero_limit_has_a_connection_opened_for_the_next_caller() {
    let manager = TestManager::new();
    manager.connect.always(Act::Gated);
    let pool = builder(&manager).max_size(1).build_blocking().unwrap();
    let error = pool.acquire_timeout(Duration::ZERO).unwrap_err();
    let AcquireError::Timeout(timeout) = &error else { panic!("{error:?}") };
    assert_eq!(timeout.stage(), Stage::Connecting);
    manager.connect.open(1);
    eventually_blocking("it is open", || pool.counts().idle == 1);
    assert_eq!(pool.acquire_timeout(Duration::ZERO).unwrap().info().id, 1);
    assert_eq!(pool.metrics().waits.timed_out, 1);
}

#[test]
fn with_a_zero_limit_fail_fast_tells_the_cause() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = builder(&manager).fail_fast(true).backoff(PATIENCE, PATIENCE);
    let pool = pool.build_blocking().unwrap();
    assert!(matches!(pool.acquire(), Err(AcquireError::Unavailable(_))));
    let refused = pool.acquire_timeout(Duration::ZERO);
    assert!(matches!(refused, Err(AcquireError::Unavailable(_))), "{refused:?}");
}

#[test]
fn with_a_zero_limit_one_that_has_to_go_is_no_reason_to_leave_the_others() {
    hush_scripted_panics();
    let manager = TestManager::new();
    let hooks = Hooks::new()
        .on_checkout(|conn: &Conn| assert!(conn.id == 3, "scripted panic in on_checkout"));
    let pool = builder(&manager).hooks(hooks).order(IdleOrder::Fifo).max_size(3);
    let pool = pool.build_blocking().unwrap();
    pool.warm_up(3).unwrap();
    assert_eq!(pool.acquire_timeout(Duration::ZERO).unwrap().id, 3);
    assert_eq!(pool.metrics().closed.rejected, 2);
}

#[test]
fn a_bad_setting_and_a_failing_first_connect_surface_in_build() {
    let manager = TestManager::new();
    let refused = builder(&manager).max_size(0).build_blocking().unwrap_err();
    assert!(matches!(&refused, BuildError::Config(error) if error.field() == "max_size"));
    manager.connect.always(Act::Error);
    let refused = builder(&manager).min_idle(2).build_blocking().unwrap_err();
    assert!(matches!(refused, BuildError::Connect(_)), "{refused:?}");
    assert_eq!((manager.connect.calls(), manager.ledger.live()), (1, 0));
}

#[test]
fn what_a_failed_build_has_opened_is_closed_when_it_returns() {
    let manager = TestManager::new();
    manager.connect.once(Act::Ok);
    manager.connect.always(Act::Error);
    let refused = builder(&manager).min_idle(2).build_blocking().unwrap_err();
    assert!(matches!(refused, BuildError::Connect(_)), "{refused:?}");
    assert_eq!((manager.ledger.opened(), manager.ledger.closed()), (1, 1));
    assert_eq!(manager.ledger.live(), 0);
}

#[test]
fn close_ends_waiters_and_is_final() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(1).min_idle(1).build_blocking().unwrap();
    let held = pool.acquire().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.acquire().map(drop));
        eventually_blocking("it waits", || pool.metrics().counts.waiters == 1);
        pool.close();
        assert!(matches!(waiter.join().unwrap(), Err(AcquireError::Closed)));
    });
    pool.close();
    assert!(pool.is_closed());
    assert!(matches!(pool.acquire(), Err(AcquireError::Closed)));
    drop(held);
    eventually_blocking("what was out is closed too", || manager.ledger.live() == 0);
}

#[test]
fn a_hook_on_the_pools_own_thread_may_close_or_drain_the_pool_and_holds_up_nobody() {
    type Handle = millpond::blocking::Pool<TestManager>;
    let ends: [fn(&Handle); 2] = [Handle::close, |pool| drop(pool.drain(PATIENCE * 3))];
    for end in ends {
        let manager = TestManager::new();
        let handle: Arc<Mutex<Option<Handle>>> = Arc::default();
        let ended = Arc::new(AtomicBool::new(false));
        let hooks = Hooks::new().on_destroy({
            let (handle, ended) = (handle.clone(), ended.clone());
            move || {
                let handle = handle.lock().unwrap().take();
                handle.iter().for_each(end);
                ended.store(true, Ordering::SeqCst);
            }
        });
        let pool =
            builder(&manager).hooks(hooks).close_timeout(PATIENCE * 3).build_blocking().unwrap();
        *handle.lock().unwrap() = Some(pool.clone());
        let (held, other) = (pool.acquire_owned().unwrap(), pool.acquire().unwrap());
        other.discard();
        eventually_blocking("the hook returns", || ended.load(Ordering::SeqCst));
        assert!(pool.is_closed());
        assert!(matches!(pool.acquire(), Err(AcquireError::Closed)));
        drop(held);
        eventually_blocking("what was out is closed too", || manager.close.calls() == 2);
    }
}

#[test]
fn what_would_wait_on_the_pools_own_thread_or_in_a_task_is_refused() {
    let manager = TestManager::new();
    let handle: Arc<OnceLock<WeakPool<TestManager>>> = Arc::default();
    let (said, told) = mpsc::channel();
    let hooks = Hooks::new().on_create({
        let handle = handle.clone();
        move |_| {
            let Some(pool) = handle.get().and_then(WeakPool::upgrade) else { return };
            said.send(refusals(&pool)).unwrap();
        }
    });
    let pool = builder(&manager).hooks(hooks).build_blocking().unwrap();
    handle.set(pool.downgrade()).expect("once");
    drop(pool.acquire().unwrap());
    assert_eq!(told.recv().unwrap(), [true; 3], "on its own thread");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(async { refusals(&pool) }), [true; 3], "in a task");
    assert_eq!(manager.connect.calls(), 1);
}

/// What it would wait for is held by a task of the same thread.
#[test]
fn a_drain_inside_a_task_does_not_wait_for_what_others_hold() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(1).min_idle(1).build_blocking().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let held = tokio::spawn({
            let pool = pool.clone();
            async move {
                let held = pool.try_acquire().unwrap();
                tokio::task::yield_now().await;
                drop(held);
            }
        });
        tokio::task::yield_now().await;
        let began = Instant::now();
        let report = pool.drain(PATIENCE * 3);
        assert!(began.elapsed() < PATIENCE * 2, "it would have waited");
        assert_eq!(report.still_out.len(), 1);
        held.await.unwrap();
    });
    assert!(pool.is_closed());
    eventually_blocking("it is closed all the same", || manager.ledger.closed() == 1);
}

/// What it would wait for is a reset by a task of the same thread.
#[test]
fn a_close_inside_a_task_does_not_wait_for_what_others_are_at_work_on() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(1).min_idle(1).close_timeout(PATIENCE * 3);
    let pool = pool.build_blocking().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        manager.condition.once(DIRTY);
        manager.reset.once(Act::Gated);
        let released = tokio::spawn({
            let pool = pool.clone();
            async move { pool.try_acquire().unwrap().release().await }
        });
        eventually("it is being reset", || manager.reset.running() == 1).await;
        let began = Instant::now();
        pool.close();
        assert!(began.elapsed() < PATIENCE * 2, "it would have waited");
        manager.reset.open(1);
        released.await.unwrap().unwrap();
    });
    eventually_blocking("it is closed all the same", || manager.ledger.closed() == 1);
}

#[test]
fn a_last_handle_that_is_dropped_inside_a_task_does_not_wait_for_what_others_are_at_work_on() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(1).min_idle(1).close_timeout(PATIENCE * 3);
    let pool = pool.build_blocking().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        manager.condition.once(DIRTY);
        manager.reset.once(Act::Gated);
        let held = pool.try_acquire_owned().unwrap();
        let released = tokio::spawn(held.release());
        eventually("it is being reset", || manager.reset.running() == 1).await;
        let began = Instant::now();
        drop(pool);
        assert!(began.elapsed() < PATIENCE * 2, "it would have waited");
        manager.reset.open(1);
        released.await.unwrap().unwrap();
    });
    eventually_blocking("it is closed all the same", || manager.ledger.closed() == 1);
}

/// Whether acquire, warm-up and rotation are refused because they would block; a look at the clock
/// never is.
fn refusals(pool: &millpond::blocking::Pool<TestManager>) -> [bool; 3] {
    pool.maintenance().run_once();
    let held: Vec<_> = std::iter::from_fn(|| pool.try_acquire().ok()).collect();
    let refused = [
        matches!(pool.acquire_owned_timeout(PATIENCE), Err(AcquireError::WouldBlock)),
        matches!(pool.warm_up(10), Err(WarmUpError::WouldBlock)),
        matches!(pool.rotate(|_| Box::pin(std::future::pending())), Err(RotateError::WouldBlock)),
    ];
    drop(held);
    refused
}

#[test]
fn a_blocking_release_says_what_came_of_it() {
    hush_scripted_panics();
    let manager = TestManager::new();
    let builder = |limit| builder(&manager).max_size(1).reset_timeout(limit);
    let pool = builder(PATIENCE).build_blocking().unwrap();
    pool.acquire().unwrap().release_blocking().unwrap();
    assert_eq!((manager.condition.calls(), manager.reset.calls()), (1, 0), "it was clean");
    let reset = |act| {
        let held = pool.acquire_owned().unwrap();
        manager.condition.once(DIRTY);
        manager.reset.once(act);
        held.release_blocking()
    };
    reset(Act::Ok).unwrap();
    assert_eq!(pool.try_acquire().unwrap().info().uses, 3, "it is back, reset");
    assert_eq!(pool.metrics().resets, 1);
    let error = reset(Act::Error).unwrap_err();
    assert_eq!(error.source().expect("the cause").to_string(), "scripted reset error");
    let error = reset(Act::Panic).unwrap_err();
    assert!(matches!(error, ReleaseError::Reset(OperationError::Panicked { .. })), "{error:?}");
    let held = pool.acquire().unwrap();
    manager.condition.once(BROKEN);
    let error = held.release_blocking().unwrap_err();
    assert!(matches!(error, ReleaseError::Broken), "{error:?}");
    let closed = pool.metrics().closed;
    assert_eq!((closed.failed_reset, closed.broken, closed.total()), (2, 1, 3));

    let limit = Duration::from_millis(20);
    let pool = builder(limit).build_blocking().unwrap();
    let held = pool.acquire().unwrap();
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Never);
    let error = held.release_blocking().unwrap_err();
    let expected = format!("no answer within {limit:?} (reset_timeout)");
    assert_eq!(error.source().expect("the cause").to_string(), expected);
    eventually_blocking("it is closed", || pool.metrics().closed.failed_reset == 1);
}

#[test]
fn a_blocking_release_does_not_wait_for_a_reset_in_a_task_or_on_the_pools_own_thread() {
    let manager = TestManager::new();
    let handed: Arc<Mutex<Option<PooledOwned<TestManager>>>> = Arc::default();
    let (said, told) = mpsc::channel();
    let hooks = Hooks::new().on_create({
        let handed = handed.clone();
        move |_| {
            if let Some(held) = handed.lock().unwrap().take() {
                said.send(held.release_blocking()).unwrap();
            }
        }
    });
    let pool = builder(&manager).max_size(2).hooks(hooks).build_blocking().unwrap();
    let first = pool.acquire_owned().unwrap();
    manager.condition.once(DIRTY);
    *handed.lock().unwrap() = Some(first);
    let second = pool.acquire().unwrap();
    let released = told.recv().unwrap();
    assert!(matches!(released, Err(ReleaseError::WouldBlock)), "{released:?}");
    eventually_blocking("it is reset all the same", || pool.metrics().resets == 1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        manager.condition.once(DIRTY);
        let released = second.release_blocking();
        assert!(matches!(released, Err(ReleaseError::WouldBlock)), "{released:?}");
    });
    eventually_blocking("it is reset all the same", || pool.metrics().resets == 2);
    let held = pool.acquire().unwrap();
    // One that is clean blocks nobody.
    runtime.block_on(async { held.release_blocking().unwrap() });
}

#[test]
fn a_connection_that_comes_back_by_a_blocking_release_after_the_end_is_closed() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(2).build_blocking().unwrap();
    let (one, other) = (pool.acquire().unwrap(), pool.acquire_owned().unwrap());
    manager.condition.always(DIRTY);
    manager.reset.once(Act::Error);
    pool.close();
    let error = one.release_blocking().unwrap_err();
    assert!(matches!(error, ReleaseError::Reset(OperationError::Failed(_))), "{error:?}");
    drop(pool);
    other.release_blocking().unwrap();
    eventually_blocking("both are closed", || manager.close.calls() == 2);
    assert_eq!((manager.ledger.live(), manager.reset.calls()), (0, 2));
}

#[test]
fn close_returns_when_what_was_being_reset_is_closed() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(2).reset_timeout(PATIENCE).close_timeout(PATIENCE);
    let pool = pool.build_blocking().unwrap();
    let (held, dirty) = (pool.acquire().unwrap(), pool.acquire().unwrap());
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Gated);
    drop(dirty);
    eventually_blocking("it is being reset", || manager.reset.running() == 1);
    thread::scope(|scope| {
        let closed = scope.spawn(|| {
            pool.close();
            manager.ledger.live()
        });
        eventually_blocking("it is being closed", || pool.is_closed());
        manager.reset.open(1);
        assert_eq!(closed.join().unwrap(), 1, "the one that is held");
    });
    drop(held);
}

#[test]
fn a_drain_gives_up_at_its_limit_and_not_before() {
    let pool = builder(&TestManager::new()).max_size(1).build_blocking().unwrap();
    let _held = pool.acquire().unwrap();
    let (began, limit) = (Instant::now(), Duration::from_secs(1));
    let report = pool.drain(limit);
    let took = began.elapsed();
    assert_eq!(report.still_out.len(), 1);
    assert!(took >= limit && took < limit + SLACK, "{took:?}");
}

#[test]
fn a_warm_up_returns_when_all_are_open_and_says_what_went_wrong() {
    let manager = TestManager::new();
    manager.connect.always(Act::Slow(Duration::from_millis(1)));
    let pool = builder(&manager).max_size(4).capacity(8).build_blocking().unwrap();
    pool.warm_up(4).unwrap();
    assert_eq!((pool.counts().idle, pool.max_size()), (4, 4));
    assert!(matches!(pool.warm_up(5), Err(WarmUpError::TooMany(_))));
    pool.resize(8).unwrap();
    assert_eq!(pool.max_size(), 8);
    manager.connect.always(Act::Error);
    assert!(matches!(pool.warm_up(5), Err(WarmUpError::Connect(_))));
    manager.connect.always(Act::Ok);
    pool.warm_up(8).unwrap();
    assert_eq!(manager.ledger.live(), 8);
    pool.close();
    assert!(matches!(pool.warm_up(1), Err(WarmUpError::Closed)));
}

#[test]
fn a_rotation_takes_the_place_of_all_connections_if_the_new_one_passes() {
    let manager = TestManager::new();
    let limit = Duration::from_millis(20);
    let pool = builder(&manager).max_size(2).min_idle(2).check_timeout(limit);
    let pool = pool.build_blocking().unwrap();
    let refused =
        pool.rotate(|_| Box::pin(async { Err(TestError { what: "verify", permanent: false }) }));
    assert!(matches!(refused, Err(RotateError::Verify(OperationError::Failed(_)))), "{refused:?}");
    // The pool's runtime has the timer that ends this.
    let refused = pool.rotate(|_| Box::pin(std::future::pending()));
    assert!(
        matches!(refused, Err(RotateError::Verify(OperationError::TimedOut { .. }))),
        "{refused:?}"
    );
    let refilled = || (manager.ledger.live(), pool.counts().idle) == (2, 2);
    eventually_blocking("what was tried in vain is made up for", refilled);
    let before = manager.ledger.opened();
    pool.rotate(|conn| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            conn.note = 7;
            Ok(())
        })
    })
    .unwrap();
    eventually_blocking("it and one for min_idle are left", refilled);
    let held = [pool.acquire().unwrap(), pool.acquire().unwrap()];
    assert!(held.iter().all(|conn| conn.id > before), "none is of the old ones");
    assert_eq!(held.iter().filter(|conn| conn.note == 7).count(), 1);
    drop(held);
    pool.close();
    let refused = pool.rotate(|_| Box::pin(async { Ok(()) }));
    assert!(matches!(refused, Err(RotateError::Closed)), "{refused:?}");
}

#[test]
fn maintenance_is_paused_resumed_and_run_by_hand() {
    let manager = TestManager::new();
    manager.check.always(Act::Slow(Duration::from_millis(1)));
    let pool = builder(&manager).min_idle(2).keepalive_interval(Duration::from_nanos(1));
    let pool = pool.maintenance_interval(PATIENCE * 9).build_blocking().unwrap();
    let maintenance = pool.maintenance();
    maintenance.pause();
    assert!(maintenance.is_paused() && pool.maintenance().is_paused());
    assert_eq!((maintenance.interval(), manager.check.calls()), (PATIENCE * 9, 0));
    // The first look finds out what there is, the second how old it is.
    maintenance.run_once();
    maintenance.run_once();
    assert_eq!((manager.check.calls(), manager.check.running()), (2, 0), "it waits for the checks");
    maintenance.set_interval(Duration::ZERO).unwrap_err();
    maintenance.set_interval(Duration::from_millis(1)).unwrap();
    maintenance.resume();
    eventually_blocking("it looks by itself", || manager.check.calls() > 2);
}

#[test]
fn an_owned_guard_is_acquired_within_a_limit_or_at_once() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(1).build_blocking().unwrap();
    let held = pool.acquire_owned_timeout(PATIENCE).unwrap();
    assert!(pool.holders()[0].site.unwrap().file().ends_with("blocking.rs"));
    assert_eq!(pool.try_acquire_owned().unwrap_err(), TryAcquireError::Empty);
    let late = pool.acquire_owned_timeout(Duration::from_millis(1));
    assert!(matches!(late, Err(AcquireError::Timeout(_))), "{late:?}");
    drop(held);
    let held = pool.try_acquire_owned().unwrap();
    drop(pool);
    assert_eq!(held.info().uses, 2);
}

#[test]
fn a_weak_handle_keeps_nothing_open() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(1).min_idle(1).build_blocking().unwrap();
    let weak = pool.downgrade();
    assert_eq!(weak.upgrade().unwrap().acquire().unwrap().id, 1);
    drop(pool);
    assert_eq!((manager.ledger.live(), manager.close.calls()), (0, 1));
    assert!(weak.clone().upgrade().is_none());
}

#[test]
fn an_owned_guard_outlives_the_pool_and_is_closed_as_ever() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(2).min_idle(2).build_blocking().unwrap();
    let guard = pool.acquire_owned().unwrap();
    drop(pool);
    // The last handle waits for what was idle alone.
    assert_eq!((guard.info().uses, manager.ledger.live(), manager.close.calls()), (1, 1, 1));
    drop(guard);
    eventually_blocking("it is closed", || manager.ledger.live() == 0);
    assert_eq!(manager.close.calls(), 2);
}

#[test]
fn what_an_owned_guard_needs_of_the_runtime_goes_on_until_it_is_given_back() {
    /// Drivers do their work in tasks of the runtime that they were connected on.
    type Asks = tokio::sync::mpsc::Sender<mpsc::Sender<u32>>;
    let (runs, has_ended) = mpsc::channel::<()>();
    let runs = Mutex::new(runs);
    let manager = from_fn(move || {
        let runs = runs.lock().unwrap().clone();
        let (asks, mut asked) = tokio::sync::mpsc::channel::<mpsc::Sender<u32>>(1);
        tokio::spawn(async move {
            while let Some(answer) = asked.recv().await {
                answer.send(7).unwrap();
            }
        });
        // Nothing but the end of the runtime ends this one.
        tokio::spawn(async move {
            std::future::pending::<()>().await;
            drop(runs);
        });
        async { Ok::<Asks, Infallible>(asks) }
    });
    let pool = Pool::builder(manager).max_size(1).build_blocking().unwrap();
    let guard = pool.acquire_owned().unwrap();
    drop(pool);
    let (answer, answered) = mpsc::channel();
    guard.blocking_send(answer).unwrap();
    assert_eq!(answered.recv(), Ok(7));
    assert_eq!(has_ended.try_recv(), Err(mpsc::TryRecvError::Empty));
    drop(guard);
    // The manager has another sender of this, and goes with the pool.
    assert_eq!(has_ended.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn a_monitor_keeps_neither_the_pool_nor_its_thread() {
    let manager = TestManager::new();
    let monitor = Monitor::new();
    let pool = builder(&manager).max_size(1).min_idle(1).build_blocking().unwrap();
    monitor.add_blocking(&pool).unwrap();
    assert_eq!(monitor.add_blocking(&pool).unwrap_err().name, "blocking");
    let held = pool.acquire().unwrap();
    let status = monitor.statuses().remove(0);
    assert_eq!((&*status.config.name, status.metrics.counts.in_use), ("blocking", 1));
    assert_eq!(monitor.sources()[0].holders()[0].connection, held.info().id);
    drop(held);
    drop(pool);
    assert_eq!((manager.ledger.live(), manager.close.calls()), (0, 1));
    assert!(monitor.statuses().is_empty());
}

#[test]
fn a_pool_that_ends_while_a_monitor_looks_closes_its_connections_as_ever() {
    let monitor = Monitor::new();
    let (over, is_over) = mpsc::channel::<()>();
    let looking = thread::spawn({
        let monitor = monitor.clone();
        move || {
            while is_over.try_recv() == Err(mpsc::TryRecvError::Empty) {
                drop(monitor.statuses());
            }
        }
    });
    for _ in 0..200 {
        let manager = TestManager::new();
        let pool = builder(&manager).min_idle(1).build_blocking().unwrap();
        monitor.add_blocking(&pool).unwrap();
        drop(pool);
        // The look may have been the last to let go of it.
        eventually_blocking("it is closed", || manager.ledger.live() == 0);
        assert_eq!(manager.close.calls(), 1);
    }
    drop(over);
    join(looking);
}

#[test]
fn the_last_handle_may_go_while_a_close_hangs() {
    let manager = TestManager::new();
    manager.close.always(Act::Never);
    let limit = Duration::from_millis(20);
    let pool = builder(&manager).close_timeout(limit).min_idle(1).build_blocking().unwrap();
    drop(pool);
    assert_eq!(manager.ledger.live(), 0);
}

#[test]
fn a_wait_inside_an_asynchronous_task_is_refused() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(1).build_blocking().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        assert!(matches!(pool.acquire(), Err(AcquireError::WouldBlock)));
    });
    let held = pool.acquire().unwrap();
    drop(held);
    // A hit blocks nobody.
    runtime.block_on(async { assert!(pool.acquire().is_ok()) });
}

#[test]
fn what_would_block_a_task_says_where_it_may_be_called_instead() {
    let said = [
        AcquireError::<TestError>::WouldBlock.to_string(),
        WarmUpError::<TestError>::WouldBlock.to_string(),
        RotateError::<TestError>::WouldBlock.to_string(),
    ];
    let advice =
        "call it on a thread of its own or inside spawn_blocking, and not in a hook of the pool";
    assert!(said.iter().all(|said| said.ends_with(advice)), "{said:?}");
}
