//! What users have called at the turns of a connection's life; all but `on_leak`, which is the
//! reaper's.

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::{
    AcquireError, CheckPolicy, Health, HookFuture, Hooks, OperationError, Pool, PoolBuilder,
    PooledOwned, ReleaseError, Stage, TryAcquireError, WeakPool,
};
use std::error::Error;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DIRTY: Act = Act::Slow(Duration::ZERO);
const BROKEN: Act = Act::Error;

type Calls = Arc<Mutex<Vec<String>>>;

fn pool_of(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    hush_scripted_panics();
    Pool::builder(manager.clone()).max_size(max_size).acquire_timeout(10 * SECOND)
}

/// Says what kind of function this is.
fn asynchronous<F>(hook: F) -> F
where
    F: for<'c> Fn(&'c mut Conn) -> HookFuture<'c, TestError> + Send + Sync + 'static,
{
    hook
}

/// What an asynchronous hook does.
fn acting(act: Act) -> HookFuture<'static, TestError> {
    Box::pin(async move {
        match act {
            Act::Error => Err(TestError { what: "hook", permanent: false }),
            Act::Permanent => Err(TestError { what: "hook", permanent: true }),
            Act::Panic => panic!("scripted panic in a hook"),
            Act::Never => pending().await,
            Act::Slow(time) => {
                sleep(time).await;
                Ok(())
            }
            Act::Ok | Act::Gated => Ok(()),
        }
    })
}

/// Does this at its first call, and nothing later.
fn once(act: Act) -> impl Fn() -> Act + Send + Sync + 'static {
    let first = AtomicBool::new(true);
    move || if first.swap(false, Ordering::SeqCst) { act } else { Act::Ok }
}

/// Hooks that write down their calls.
fn noting(calls: &Calls) -> Hooks<TestManager> {
    let note = |what: &'static str| {
        let calls = calls.clone();
        move |id: usize| calls.lock().unwrap().push(format!("{what} {id}"))
    };
    let (after_connect, before_acquire) = (note("after_connect"), note("before_acquire"));
    let (on_create, on_checkout) = (note("on_create"), note("on_checkout"));
    let (on_checkin, after_release) = (note("on_checkin"), note("after_release"));
    let on_destroy = note("on_destroy");
    Hooks::new()
        .after_connect(move |conn: &mut Conn| {
            after_connect(conn.id);
            acting(Act::Ok)
        })
        .before_acquire(move |conn: &mut Conn| {
            before_acquire(conn.id);
            acting(Act::Ok)
        })
        .on_create(move |conn: &Conn| on_create(conn.id))
        .on_checkout(move |conn: &Conn| on_checkout(conn.id))
        .on_checkin(move |conn: &Conn| on_checkin(conn.id))
        .after_release(move || after_release(0))
        .on_destroy(move || on_destroy(0))
}

fn take(calls: &Calls) -> Vec<String> {
    std::mem::take(&mut *calls.lock().unwrap())
}

const GET_NEW: [&str; 4] = ["after_connect 1", "on_create 1", "before_acquire 1", "on_checkout 1"];

#[tokio::test(start_paused = true)]
async fn hooks_are_called_in_the_order_of_a_connections_life() {
    let manager = TestManager::new();
    let calls = Calls::default();
    let pool = pool_of(&manager, 1).hooks(noting(&calls)).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    assert_eq!(take(&calls), GET_NEW);
    drop(held);
    assert_eq!(take(&calls), ["on_checkin 1", "after_release 0"]);
    let held = pool.acquire().await.unwrap();
    assert_eq!(take(&calls), ["before_acquire 1", "on_checkout 1"]);
    held.release().await.unwrap();
    assert_eq!(take(&calls), ["on_checkin 1", "after_release 0"]);
    let held = pool.acquire_owned().await.unwrap();
    take(&calls);
    manager.condition.once(DIRTY);
    drop(held);
    assert_eq!(take(&calls), ["on_checkin 1", "after_release 0"]);
    pool.acquire().await.unwrap().discard();
    let told = take(&calls);
    assert_eq!(told, ["before_acquire 1", "on_checkout 1", "on_checkin 1", "after_release 0"]);
    balanced(&pool, &manager.ledger).await;
    assert_eq!(take(&calls), ["on_destroy 0"]);
    let mut detached = pool.acquire().await.unwrap();
    detached.uncount();
    take(&calls);
    drop(detached.detach());
    pool.close().await;
    assert_eq!(take(&calls), [""; 0], "what is detached neither comes back nor ends");
}

#[test]
fn blocking_callers_meet_the_same_hooks() {
    let manager = TestManager::new();
    let calls = Calls::default();
    let pool = pool_of(&manager, 1).hooks(noting(&calls)).build_blocking().unwrap();
    let held = pool.acquire().unwrap();
    assert_eq!(take(&calls), GET_NEW);
    drop(held);
    assert_eq!(take(&calls), ["on_checkin 1", "after_release 0"]);
    drop(pool.acquire_owned().unwrap());
    let again = ["before_acquire 1", "on_checkout 1", "on_checkin 1", "after_release 0"];
    assert_eq!(take(&calls), again);
    pool.acquire().unwrap().release_blocking().unwrap();
    assert_eq!(take(&calls), again);
    let held = pool.acquire().unwrap();
    let waiter = thread::spawn({
        let pool = pool.clone();
        move || pool.acquire().map(drop)
    });
    eventually_blocking("it waits", || pool.metrics().counts.waiters == 1);
    drop(held);
    join(waiter).unwrap();
    assert_eq!(take(&calls).len(), 8, "twice all four");
}

#[tokio::test(start_paused = true)]
async fn try_acquire_meets_on_checkout_but_finds_nothing_beside_before_acquire() {
    let manager = TestManager::new();
    let checkouts = Arc::new(AtomicUsize::new(0));
    let hooks = Hooks::new().on_checkout({
        let checkouts = checkouts.clone();
        move |_| {
            checkouts.fetch_add(1, Ordering::SeqCst);
        }
    });
    let pool = pool_of(&manager, 2).hooks(hooks).build_lazy().unwrap();
    pool.warm_up(1).await.unwrap();
    drop(pool.try_acquire().unwrap());
    drop(pool.try_acquire().unwrap());
    assert_eq!(checkouts.load(Ordering::SeqCst), 2);
    balanced(&pool, &manager.ledger).await;

    let calls = Calls::default();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).hooks(noting(&calls)).build_lazy().unwrap();
    pool.warm_up(2).await.unwrap();
    take(&calls);
    for _ in 0..5 {
        let error = pool.try_acquire().expect_err("it cannot wait for the hook");
        assert_eq!(error, TryAcquireError::Empty);
        assert_eq!(error.to_string(), "nothing idle can be handed out at once", "two are idle");
    }
    assert_eq!(take(&calls), [""; 0]);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.closed.total()), (2, 0), "and harms nothing");
}

#[tokio::test(start_paused = true)]
async fn try_acquire_goes_on_to_the_next_after_one_that_is_rejected() {
    let manager = TestManager::new();
    let act = once(Act::Panic);
    let hooks = Hooks::new().on_checkout(move |_| panic_if(act()));
    let pool = pool_of(&manager, 2).hooks(hooks).build_lazy().unwrap();
    pool.warm_up(2).await.unwrap();
    drop(pool.try_acquire().expect("the other one is fit"));
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.rejected, metrics.acquires, metrics.counts.idle), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn on_create_runs_once_per_connection_and_before_its_first_use() {
    let manager = TestManager::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hooks = Hooks::new()
        .after_connect(|conn: &mut Conn| {
            conn.note = 7;
            acting(Act::Ok)
        })
        .on_create({
            let seen = seen.clone();
            move |conn: &Conn| {
                assert_eq!(conn.note, 7, "it has been set up");
                seen.lock().unwrap().push(conn.id);
            }
        });
    let pool = pool_of(&manager, 3).min_idle(2).hooks(hooks).build().await.unwrap();
    let users: Vec<_> = (0..6)
        .map(|_| {
            let (pool, seen) = (pool.clone(), seen.clone());
            tokio::spawn(async move {
                for round in 0..20 {
                    let held = pool.acquire().await.unwrap();
                    assert!(seen.lock().unwrap().contains(&held.id));
                    yield_now().await;
                    if round % 5 == 0 {
                        held.discard();
                    }
                }
            })
        })
        .collect();
    for user in users {
        user.await.unwrap();
    }
    pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap();
    let metrics = balanced(&pool, &manager.ledger).await;
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    let all: Vec<_> = (1..=manager.ledger.opened()).collect();
    assert_eq!(seen, all, "each once");
    assert_eq!(metrics.created, all.len() as u64);
}

// A hook that fails.

#[tokio::test(start_paused = true)]
async fn a_failed_set_up_is_a_failed_connect_with_its_error_and_the_connection_is_closed() {
    for act in [Act::Error, Act::Panic, Act::Never] {
        let manager = TestManager::new();
        let destroyed = Arc::new(AtomicUsize::new(0));
        let hooks = Hooks::new()
            .after_connect(asynchronous(move |_| acting(act)))
            .on_destroy(count(&destroyed));
        let pool = pool_of(&manager, 1).acquire_timeout(8 * SECOND).hooks(hooks).build_lazy();
        let pool = pool.unwrap();
        let error = pool.acquire().await.unwrap_err();
        let AcquireError::Timeout(timeout) = &error else { panic!("{error:?}") };
        let cause = &timeout.last_connect_error().expect("the cause").error;
        match act {
            Act::Error => {
                assert_eq!(error.source().unwrap().to_string(), "scripted hook error");
                assert!(matches!(cause, OperationError::Failed(_)));
            }
            Act::Panic => assert!(matches!(cause, OperationError::Panicked { .. })),
            _ => assert!(matches!(cause, OperationError::TimedOut { .. })),
        }
        eventually("no dial is under way", || pool.metrics().counts.connecting == 0).await;
        let metrics = pool.metrics();
        assert_eq!((metrics.created, metrics.counts.vacant), (0, 1));
        assert_eq!(metrics.connect_failures, manager.connect.calls() as u64);
        let ledger = &manager.ledger;
        assert_eq!((ledger.live(), ledger.closed()), (0, ledger.opened()), "each was closed");
        assert_eq!(destroyed.load(Ordering::SeqCst), ledger.opened());
    }
}

fn count(counter: &Arc<AtomicUsize>) -> impl Fn() + Send + Sync + 'static {
    let counter = counter.clone();
    move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_up_that_fails_for_good_is_a_permanent_error() {
    let manager = TestManager::new();
    let hooks = Hooks::new().after_connect(asynchronous(|_| acting(Act::Permanent)));
    let pool = pool_of(&manager, 1).hooks(hooks).build_lazy().unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert!(matches!(error, AcquireError::Connect(_)), "{error:?}");
    assert_eq!((manager.connect.calls(), manager.ledger.closed()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn set_up_shares_the_limit_of_the_connect() {
    let manager = TestManager::new();
    manager.connect.always(Act::Slow(3 * SECOND));
    let hooks = Hooks::new().after_connect(asynchronous(|_| acting(Act::Slow(3 * SECOND))));
    let pool = pool_of(&manager, 1).connect_timeout(5 * SECOND).min_idle(1).hooks(hooks);
    let began = Instant::now();
    let error = pool.build().await.unwrap_err();
    assert_eq!(began.elapsed(), 5 * SECOND);
    let said = error.source().unwrap().to_string();
    assert!(said.starts_with("no answer within") && said.ends_with(" (connect_timeout)"), "{said}");
}

/// With these hooks, an acquire is served all the same, and so is the one after it; answers with
/// the figures, of one connection that was lost on the way and one that is there.
async fn costs_one_connection(hooks: Hooks<TestManager>) -> (millpond::PoolMetrics, TestManager) {
    let manager = TestManager::new();
    let destroyed = Arc::new(AtomicUsize::new(0));
    let hooks = hooks.on_destroy(count(&destroyed));
    let pool = pool_of(&manager, 1).hooks(hooks).build_lazy().unwrap();
    let mut first = Box::pin(pool.acquire());
    let mut second = Box::pin(pool.acquire());
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    let first = async { first.await.map(drop) };
    let second = async { second.await.map(drop) };
    let (first, second) = tokio::join!(first, second);
    first.expect("it goes on with another");
    second.expect("the next waiter is served");
    drop(pool.acquire().await.expect("the pool goes on"));
    eventually("nothing is under way", || {
        let counts = pool.metrics().counts;
        counts.idle == 1 && counts.closing == 0
    })
    .await;
    let (metrics, ledger) = (pool.metrics(), &manager.ledger);
    assert_eq!((metrics.counts.in_service(), ledger.live(), ledger.opened()), (1, 1, 2));
    assert_eq!((ledger.closed(), destroyed.load(Ordering::SeqCst)), (1, 1), "closed, and once");
    assert_eq!(metrics.acquires, 3);
    (metrics, manager)
}

#[tokio::test(start_paused = true)]
async fn a_set_up_that_fails_once_costs_one_connection() {
    for act in [Act::Error, Act::Panic, Act::Never] {
        let act = once(act);
        let hooks = Hooks::new().after_connect(asynchronous(move |_| acting(act())));
        let (metrics, _) = costs_one_connection(hooks).await;
        assert_eq!((metrics.connect_failures, metrics.created), (1, 1));
    }
    // Outside the future that it returns.
    let act = once(Act::Panic);
    let hooks = Hooks::new().after_connect(asynchronous(move |_| {
        assert_ne!(act(), Act::Panic, "scripted panic");
        acting(Act::Ok)
    }));
    costs_one_connection_of(hooks).await;
}

/// The same where the panic's text is not hushed by its first word.
async fn costs_one_connection_of(hooks: Hooks<TestManager>) {
    let (metrics, _) = costs_one_connection(hooks).await;
    assert_eq!(metrics.closed.total() + metrics.connect_failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_on_create_costs_one_connection() {
    let act = once(Act::Panic);
    let hooks = Hooks::new().on_create(move |_| panic_if(act()));
    let (metrics, _) = costs_one_connection(hooks).await;
    assert_eq!((metrics.connect_failures, metrics.created), (1, 1));
}

fn panic_if(act: Act) {
    if act == Act::Panic {
        panic!("scripted panic in a hook");
    }
}

#[tokio::test(start_paused = true)]
async fn a_before_acquire_that_fails_costs_one_connection_and_the_acquire_goes_on() {
    for act in [Act::Error, Act::Permanent, Act::Panic, Act::Never] {
        let act = once(act);
        let hooks = Hooks::new().before_acquire(asynchronous(move |_| acting(act())));
        let (metrics, _) = costs_one_connection(hooks).await;
        assert_eq!((metrics.closed.rejected, metrics.closed.total()), (1, 1));
        assert_eq!((metrics.connect_failures, metrics.waits.timed_out), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_before_acquire_that_hangs_takes_as_long_as_a_check_may() {
    let manager = TestManager::new();
    let act = once(Act::Never);
    let hooks = Hooks::new().before_acquire(asynchronous(move |_| acting(act())));
    let pool = pool_of(&manager, 1).check_timeout(2 * SECOND).hooks(hooks).build_lazy().unwrap();
    let began = Instant::now();
    assert_eq!(pool.acquire().await.unwrap().id, 2);
    assert_eq!(began.elapsed(), 2 * SECOND);
}

/// A pool of eight that are idle, and whose hook gets no answer from those that are said to be dead.
async fn dying(manager: &TestManager, dead: &Arc<AtomicUsize>) -> Pool<TestManager> {
    let dead = dead.clone();
    let hooks = Hooks::new().before_acquire(asynchronous(move |conn| {
        acting(if conn.id <= dead.load(Ordering::SeqCst) { Act::Never } else { Act::Ok })
    }));
    let pool = pool_of(manager, 8).check_timeout(SECOND / 4);
    let pool = pool.hooks(hooks).build_lazy().unwrap();
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(pool.acquire().await.unwrap());
    }
    // So the first is the one that is used last, and next.
    held.into_iter().rev().for_each(drop);
    pool
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_does_not_answer_before_acquire_costs_an_acquire_one_check_timeout() {
    let (manager, dead) = (TestManager::new(), Arc::default());
    let pool = dying(&manager, &dead).await;
    sleep(SECOND).await;
    dead.store(8, Ordering::SeqCst);
    manager.check.always(Act::Never);
    manager.connect.always(Act::Slow(SECOND / 4));
    let began = Instant::now();
    let conn = pool.acquire_timeout(SECOND).await.unwrap();
    assert_eq!((conn.id, began.elapsed()), (9, SECOND / 2), "a hook, and a connect");
    drop(conn);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.rejected, metrics.closed.failed_check), (1, 7));
    assert_eq!(metrics.checks, 7, "what is new is not checked");
}

#[tokio::test]
async fn a_crowd_that_does_not_answer_before_acquire_costs_a_thread_one_check_timeout() {
    let (manager, dead) = (TestManager::new(), Arc::default());
    let pool = dying(&manager, &dead).await;
    dead.store(8, Ordering::SeqCst);
    manager.check.always(Act::Never);
    manager.connect.always(Act::Gated);
    let blocked = thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_blocking().unwrap().id
    });
    eventually("the others are checked", || manager.check.calls() == 7).await;
    manager.connect.open(1);
    eventually("the thread has ended", || blocked.is_finished()).await;
    assert_eq!(join(blocked), 9);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.rejected, metrics.closed.failed_check), (1, 7));
}

/// Others are served in between, so that it has been used by the time that it comes back.
#[tokio::test(start_paused = true)]
async fn what_has_passed_its_check_is_not_checked_again_for_the_same_acquire() {
    let (manager, dead) = (TestManager::new(), Arc::default());
    let pool = dying(&manager, &dead).await;
    let first = pool.acquire().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..7 {
        held.push(pool.acquire().await.unwrap());
    }
    drop(first);
    sleep(SECOND).await;
    dead.store(1, Ordering::SeqCst);
    manager.connect.always(Act::Gated);
    let mut acquire = pin!(pool.acquire_timeout(20 * SECOND));
    assert!(poll_once(acquire.as_mut()).is_pending(), "the hook has no answer");
    // The hook's time is up, and it waits; the other one does so behind it.
    assert!(tokio::time::timeout(SECOND, acquire.as_mut()).await.is_err());
    let mut other = Box::pin({
        let pool = pool.clone();
        async move { pool.acquire_owned_timeout(20 * SECOND).await.map(drop) }
    });
    assert!(poll_once(other.as_mut()).is_pending());
    let other = tokio::spawn(other);
    held.pop();
    let served = acquire.await.unwrap();
    other.await.unwrap().unwrap();
    assert_eq!(manager.check.calls(), 1);
    manager.connect.open(1);
    drop((served, held));
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn what_passes_its_check_after_a_hook_had_no_answer_goes_to_the_same_acquire() {
    let (manager, dead) = (TestManager::new(), Arc::default());
    let pool = dying(&manager, &dead).await;
    sleep(SECOND).await;
    dead.store(7, Ordering::SeqCst);
    manager.connect.always(Act::Never);
    let conn = pool.acquire_timeout(10 * SECOND).await.unwrap();
    assert_eq!(conn.id, 8);
    assert!((1..=7).contains(&manager.check.calls()), "each is checked once at the most");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_on_checkout_costs_one_connection_and_the_acquire_goes_on() {
    let act = once(Act::Panic);
    let hooks = Hooks::new().on_checkout(move |_| panic_if(act()));
    let (metrics, _) = costs_one_connection(hooks).await;
    assert_eq!((metrics.closed.rejected, metrics.closed.total()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_succeeds_after_a_rejection_ends_a_failure_for_good() {
    let manager = TestManager::new();
    let act = once(Act::Panic);
    let hooks = Hooks::new().on_checkout(move |_| panic_if(act()));
    let pool = pool_of(&manager, 4).min_idle(2).hooks(hooks).build_lazy().unwrap();
    manager.connect.once(Act::Ok);
    manager.connect.always(Act::Permanent);
    let refused = pool.acquire().await;
    assert!(matches!(refused, Err(AcquireError::Connect(_))), "{refused:?}");
    assert_eq!(pool.metrics().closed.rejected, 1);
    manager.connect.calm();
    pool.warm_up(1).await.unwrap();
    eventually("two are idle", || pool.counts().idle == 2).await;
    assert!(!pool.status().to_string().contains("for good"), "{}", pool.status());
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_accepts_a_new_connection_does_not_hide_that_a_rotation_could_not_connect() {
    for act in [Act::Error, Act::Permanent] {
        let manager = TestManager::new();
        let hook = once(Act::Panic);
        let hooks = Hooks::new().on_checkout(move |_| panic_if(hook()));
        let pool = pool_of(&manager, 3).min_idle(1).hooks(hooks).build().await.unwrap();
        assert_eq!(pool.try_acquire().map(drop).unwrap_err(), TryAcquireError::Empty);
        eventually("another one is there", || pool.counts().idle == 1).await;
        manager.connect.always(act);
        pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err();
        let _accepted = pool.try_acquire().unwrap();
        let Health::Degraded(reasons) = pool.status().health else { panic!("{}", pool.status()) };
        assert!(reasons[0].contains("scripted connect error"), "{reasons:?}");
        let error = pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
        let AcquireError::Timeout(late) = error else { panic!("{error}") };
        let cause = late.last_connect_error().expect("what the rotation met");
        assert_eq!(cause.to_string(), "scripted connect error");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_rotation_is_refused_for_good_is_not_tried_again_because_a_hook_rejects_another() {
    let manager = TestManager::new();
    let hook = once(Act::Panic);
    let hooks = Hooks::new().on_checkout(move |_| panic_if(hook()));
    let pool = pool_of(&manager, 4).min_idle(2).hooks(hooks).build().await.unwrap();
    manager.connect.always(Act::Permanent);
    pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err();
    drop(pool.try_acquire().unwrap());
    assert_eq!(pool.metrics().closed.rejected, 1);
    sleep(3_600 * SECOND).await;
    assert_eq!(manager.connect.calls(), 3, "an account would have been locked");
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_fails_with_what_is_new_is_named_wherever_that_is_told() {
    type Failing = fn(Hooks<TestManager>) -> Hooks<TestManager>;
    let rejects = "hooks reject what is opened";
    let hooks: [(&str, &str, &str, Failing); 4] = [
        ("before_acquire", rejects, "scripted hook error", |hooks| {
            hooks.before_acquire(asynchronous(|_| acting(Act::Error)))
        }),
        ("before_acquire", rejects, "no answer within 1ms (check_timeout)", |hooks| {
            hooks.before_acquire(asynchronous(|_| acting(Act::Never)))
        }),
        ("on_checkout", rejects, "panicked: scripted panic", |hooks| {
            hooks.on_checkout(|_| panic!("scripted panic"))
        }),
        ("after_connect", "connecting fails", "scripted hook error", |hooks| {
            hooks.after_connect(asynchronous(|_| acting(Act::Error)))
        }),
    ];
    hush_scripted_panics();
    for (name, what, said, failing) in hooks {
        let manager = TestManager::new();
        // So short that the deadline does not come while a hook is asked: the pauses are random.
        let pool = pool_of(&manager, 1).hooks(failing(Hooks::new())).check_timeout(SECOND / 1000);
        let pool = pool.backoff(60 * SECOND, 60 * SECOND).build_lazy().unwrap();
        let error = pool.acquire_timeout(600 * SECOND).await.map(drop).unwrap_err();
        let AcquireError::Timeout(late) = error else { panic!("{error}") };
        assert_eq!(late.failed_hook(), Some(name));
        let named = format!(": opening one keeps failing in the hook {name} (");
        assert!(late.to_string().contains(&named), "{late}");
        let status = pool.status();
        let [reason] = status.health.reasons() else { panic!("{status}") };
        assert!(reason.starts_with(&format!("{what}: {name}: {said}")), "{reason}");
        let last = status.metrics.last_connect_error.expect("a failure");
        assert!(last.message.starts_with(&format!("{name}: {said}")), "{last:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_succeeds_after_a_rejection_leaves_no_more_to_be_told_than_the_rejection() {
    let manager = TestManager::new();
    let act = once(Act::Error);
    let hooks = Hooks::new().before_acquire(asynchronous(move |_| match act() {
        Act::Ok => acting(Act::Slow(5 * SECOND)),
        act => acting(act),
    }));
    let pool = pool_of(&manager, 1).hooks(hooks).backoff(6_000 * SECOND, 6_000 * SECOND);
    let pool = pool.check_timeout(10 * SECOND).build_lazy().unwrap();
    manager.connect.once(Act::Ok);
    manager.connect.once(Act::Error);
    let error = pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    assert_eq!(error.source().expect("the last failure").to_string(), "scripted connect error");
    pool.warm_up(1).await.unwrap();
    let health = pool.status().health.to_string();
    assert_eq!(
        health,
        "degraded: hooks reject what is opened: before_acquire: scripted hook error"
    );
    // While the new one is examined.
    let mut first = pin!(pool.acquire());
    assert!(poll_once(first.as_mut()).is_pending());
    let error = pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    assert_eq!(error.source().expect("the last failure").to_string(), "scripted hook error");
    drop(first.await.unwrap());
    assert_eq!(pool.status().health, Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_pause_after_a_failure_is_over_when_a_hook_accepts_what_was_opened_since() {
    let manager = TestManager::new();
    let act = once(Act::Panic);
    let hooks = Hooks::new().on_checkout(move |_| panic_if(act()));
    let pool = pool_of(&manager, 3).hooks(hooks).backoff(6_000 * SECOND, 6_000 * SECOND);
    let pool = pool.build_lazy().unwrap();
    manager.connect.once(Act::Ok);
    manager.connect.once(Act::Error);
    assert!(pool.acquire().await.is_err(), "one was rejected, and then connecting failed");
    pool.warm_up(1).await.unwrap();
    let began = Instant::now();
    let _accepted = pool.acquire().await.unwrap();
    let _next = pool.acquire().await.unwrap();
    assert_eq!((began.elapsed(), manager.connect.calls()), (Duration::ZERO, 4));
}

/// Rejects each connection, and hangs from the 1,000th on, so that a clock that stands still while
/// anybody has something to do goes on after all.
fn rejecting(rejected: &Arc<AtomicUsize>) -> impl Fn() -> Act + Send + Sync + 'static {
    let rejected = rejected.clone();
    move || if rejected.fetch_add(1, Ordering::SeqCst) < 1_000 { Act::Error } else { Act::Never }
}

type Acquired = Result<PooledOwned<TestManager>, AcquireError<TestError>>;

/// What so many tasks get that acquire at the same time, once all have it.
async fn all_at_once(pool: &Pool<TestManager>, count: usize) -> Vec<Acquired> {
    let tasks: Vec<_> = (0..count)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.acquire_owned().await })
        })
        .collect();
    let mut acquired = Vec::new();
    for task in tasks {
        acquired.push(task.await.unwrap());
    }
    acquired
}

#[tokio::test(start_paused = true)]
async fn new_connections_that_are_all_rejected_are_opened_with_growing_pauses() {
    let rejected = Arc::new(AtomicUsize::new(0));
    let act = rejecting(&rejected);
    let hooks = Hooks::new().before_acquire(asynchronous(move |_| acting(act())));
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).hooks(hooks).build_lazy().unwrap();
    let began = Instant::now();
    for acquired in all_at_once(&pool, 8).await {
        let error = acquired.map(|held| held.id).unwrap_err();
        let AcquireError::Timeout(late) = error else { panic!("{error}") };
        assert_eq!(late.stage(), Stage::ConnectFailing);
        let cause = late.last_connect_error().expect("what the hook said");
        assert_eq!(cause.to_string(), "scripted hook error");
    }
    assert_eq!(began.elapsed(), 10 * SECOND);
    let opened = manager.connect.calls();
    assert!((5..=100).contains(&opened), "{opened} connections in 10 s");
    // The last one may have been opened just when nobody waited any more.
    let rejected = rejected.load(Ordering::SeqCst);
    assert!((rejected..=rejected + 1).contains(&opened), "{rejected} of {opened}");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.rejected, metrics.connect_failures), (rejected as u64, 0));
    assert!(metrics.last_connect_error.is_some_and(|it| it.message.contains("hook")));
}

#[tokio::test(start_paused = true)]
async fn who_waits_while_the_next_new_connection_is_examined_is_told_why_the_last_was_rejected() {
    let hooks = Hooks::new().before_acquire(asynchronous(|_| {
        Box::pin(async {
            sleep(3 * SECOND).await;
            acting(Act::Error).await
        })
    }));
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).backoff(MILLISECOND, MILLISECOND).check_timeout(5 * SECOND);
    let pool = pool.hooks(hooks).build_lazy().unwrap();
    let mut stages = Vec::new();
    for acquired in all_at_once(&pool, 4).await {
        let error = acquired.map(|held| held.id).unwrap_err();
        let AcquireError::Timeout(late) = error else { panic!("{error}") };
        assert!(late.last_connect_error().is_some(), "{late}");
        stages.push(late.stage());
    }
    assert_eq!(manager.connect.calls(), 4, "the fourth was being examined");
    let examining = stages.iter().filter(|stage| **stage == Stage::Checking).count();
    let waiting = stages.iter().filter(|stage| **stage == Stage::ConnectFailing).count();
    assert_eq!((examining, waiting), (1, 3), "{stages:?}");
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_each_time_has_them_opened_with_pauses_too() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let hooks = Hooks::new().on_checkout(move |_| {
        // One that is rejected no more ends the test.
        let many = counted.fetch_add(1, Ordering::SeqCst) >= 1_000;
        assert!(many, "scripted panic in on_checkout");
    });
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).hooks(hooks).build_lazy().unwrap();
    assert!(matches!(pool.acquire().await, Err(AcquireError::Timeout(_))));
    let opened = manager.connect.calls();
    assert!((5..=100).contains(&opened), "{opened} connections in 10 s");
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_each_time_is_what_those_who_wait_and_the_status_are_told_of() {
    let manager = TestManager::new();
    let hooks = Hooks::new().on_checkout(|_| panic!("scripted panic in on_checkout"));
    let pool = pool_of(&manager, 2).hooks(hooks).acquire_timeout(SECOND).build_lazy().unwrap();
    let Err(AcquireError::Timeout(late)) = pool.acquire().await else { panic!("it is rejected") };
    let cause = late.last_connect_error().expect("what the hook said");
    assert_eq!(cause.to_string(), "panicked: scripted panic in on_checkout");
    assert_eq!(late.stage(), Stage::ConnectFailing);
    assert!(!matches!(pool.status().health, Health::Healthy), "{}", pool.status());
    let failure = pool.metrics().last_connect_error.expect("the same");
    assert!(failure.message.contains("on_checkout"), "{failure:?}");
}

#[tokio::test(start_paused = true)]
async fn the_first_connection_that_a_hook_accepts_ends_the_pauses() {
    let acts = Arc::new(Mutex::new(vec![Act::Ok, Act::Error, Act::Error, Act::Error]));
    let next = acts.clone();
    let act = move || next.lock().unwrap().pop().unwrap_or(Act::Ok);
    let hooks = Hooks::new().before_acquire(asynchronous(move |_| acting(act())));
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).backoff(SECOND, SECOND).hooks(hooks).build_lazy().unwrap();
    let began = Instant::now();
    let held = pool.acquire().await.unwrap();
    assert_eq!((held.id, manager.connect.calls()), (4, 4));
    assert!(began.elapsed() > Duration::ZERO, "the second and the third are followed by pauses");
    let began = Instant::now();
    acts.lock().unwrap().extend([Act::Ok, Act::Error]);
    assert_eq!(pool.acquire().await.unwrap().id, 6);
    assert_eq!(began.elapsed(), Duration::ZERO, "one by itself is not");
}

#[tokio::test(start_paused = true)]
async fn the_first_connection_that_a_hook_accepts_ends_the_pauses_of_all() {
    let rejects = Arc::new(AtomicBool::new(false));
    let rejected = rejects.clone();
    let act = move || if rejected.load(Ordering::SeqCst) { Act::Error } else { Act::Ok };
    let hooks = Hooks::new().before_acquire(asynchronous(move |_| acting(act())));
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).backoff(8 * SECOND, 8 * SECOND).hooks(hooks);
    let pool = pool.build_lazy().unwrap();
    // After these, several may be opened at once.
    for held in all_at_once(&pool, 4).await {
        held.unwrap().discard();
    }
    balanced(&pool, &manager.ledger).await;
    rejects.store(true, Ordering::SeqCst);
    let waiters = [(); 4].map(|()| {
        let pool = pool.clone();
        tokio::spawn(async move { (pool.acquire_owned().await.unwrap(), Instant::now()) })
    });
    turns().await;
    assert_eq!((manager.connect.running(), pool.counts().waiters), (0, 4), "all pause");
    rejects.store(false, Ordering::SeqCst);
    let (mut held, mut served) = (Vec::new(), Vec::new());
    for waiter in waiters {
        let (connection, when) = waiter.await.unwrap();
        held.push(connection);
        served.push(when);
    }
    served.sort_unstable();
    assert_eq!(served[0], served[3], "nobody waits on beside a hook that accepts");
}

#[tokio::test(start_paused = true)]
async fn new_connections_that_were_opened_at_once_and_are_rejected_are_one_in_a_row() {
    let left = Arc::new(AtomicUsize::new(0));
    let rejects = left.clone();
    let act = move || {
        let one_less =
            rejects.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if one_less.is_ok() { Act::Error } else { Act::Ok }
    };
    let hooks = Hooks::new().before_acquire(asynchronous(move |_| acting(act())));
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).backoff(8 * SECOND, 8 * SECOND).hooks(hooks);
    let pool = pool.build_lazy().unwrap();
    // After these, several may be opened at once.
    for held in all_at_once(&pool, 4).await {
        held.unwrap().discard();
    }
    balanced(&pool, &manager.ledger).await;
    left.store(4, Ordering::SeqCst);
    let began = Instant::now();
    for held in all_at_once(&pool, 4).await {
        assert!(held.unwrap().id > 8);
    }
    assert_eq!((began.elapsed(), manager.connect.calls()), (Duration::ZERO, 12));
}

#[tokio::test(start_paused = true)]
async fn rejections_of_long_ago_hold_nobody_up() {
    let rejects = Arc::new(AtomicBool::new(true));
    let rejected = rejects.clone();
    let act = move || if rejected.load(Ordering::SeqCst) { Act::Error } else { Act::Ok };
    let hooks = Hooks::new().before_acquire(asynchronous(move |_| acting(act())));
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).backoff(SECOND, 30 * SECOND).hooks(hooks).build_lazy().unwrap();
    pool.acquire_timeout(600 * SECOND).await.unwrap_err();
    assert!(manager.connect.calls() > 10);
    rejects.store(false, Ordering::SeqCst);
    // The pool does not look by itself, and the next one has to be opened.
    pool.maintenance().pause();
    sleep(30 * SECOND).await;
    pool.retain(|_, _| false);
    eventually("nothing is left", || pool.counts().alive() == 0).await;
    let began = Instant::now();
    drop(pool.acquire().await.unwrap());
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn hooks_hear_of_an_end_that_nobody_waits_for() {
    let (released, destroyed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let hooks = Hooks::new().after_release(count(&released)).on_destroy(count(&destroyed));
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).hooks(hooks).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Never);
    {
        let mut release = pin!(held.release());
        assert!(poll_once(release.as_mut()).is_pending());
        assert_eq!(manager.reset.running(), 1);
    }
    assert_eq!(released.load(Ordering::SeqCst), 1);
    balanced(&pool, &manager.ledger).await;
    let before = destroyed.load(Ordering::SeqCst);
    drop(pool.acquire().await.unwrap());
    manager.close.once(Act::Never);
    {
        let mut rotation = pin!(pool.rotate(|_| Box::pin(async { Ok(()) })));
        assert!(poll_once(rotation.as_mut()).is_pending());
        assert_eq!(manager.close.running(), 1);
    }
    assert_eq!(destroyed.load(Ordering::SeqCst), before + 1);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_been_used_and_is_rejected_is_replaced_without_a_pause() {
    let acts = Arc::new(Mutex::new(Vec::new()));
    let next = acts.clone();
    let act = move || next.lock().unwrap().pop().unwrap_or(Act::Ok);
    let hooks = Hooks::new().before_acquire(asynchronous(move |_| acting(act())));
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).backoff(SECOND, SECOND).hooks(hooks).build_lazy().unwrap();
    all_at_once(&pool, 4).await.into_iter().for_each(|held| drop(held.unwrap()));
    let began = Instant::now();
    acts.lock().unwrap().extend([Act::Error; 4]);
    assert_eq!(pool.acquire().await.unwrap().id, 5);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_on_checkin_costs_one_connection_and_the_waiter_gets_a_new_one() {
    let act = once(Act::Panic);
    let hooks = Hooks::new().on_checkin(move |_| panic_if(act()));
    let (metrics, _) = costs_one_connection(hooks).await;
    assert_eq!((metrics.closed.rejected, metrics.closed.total()), (1, 1));

    let hooks = Hooks::new().on_checkin(|_| panic!("scripted panic in on_checkin"));
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).hooks(hooks).build_lazy().unwrap();
    let error = pool.acquire().await.unwrap().release().await.unwrap_err();
    assert!(matches!(error, ReleaseError::Rejected), "{error:?}");
    pool.acquire().await.unwrap().discard();
    manager.condition.once(DIRTY);
    drop(pool.acquire().await.unwrap());
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.rejected, metrics.closed.total()), (3, 3));
    assert_eq!(manager.reset.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_after_release_or_on_destroy_costs_nothing() {
    let manager = TestManager::new();
    let hooks = Hooks::new()
        .after_release(|| panic!("scripted panic in after_release"))
        .on_destroy(|| panic!("scripted panic in on_destroy"));
    let pool = pool_of(&manager, 1).hooks(hooks).build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    pool.acquire().await.unwrap().release().await.unwrap();
    let held = pool.acquire().await.unwrap();
    assert_eq!((held.id, held.info().uses), (1, 3));
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    held.discard();
    assert_eq!(waiter.await.unwrap().id, 2);
    drop(pool.drain(SECOND).await);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.discarded, metrics.closed.drained), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn hooks_are_called_for_a_guard_that_is_dropped_by_a_panic_and_may_panic_then() {
    let manager = TestManager::new();
    let (checkins, destroyed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = count(&checkins);
    let hooks = Hooks::new()
        .on_checkin(move |_| {
            counted();
            panic!("scripted panic in on_checkin");
        })
        .after_release(|| panic!("scripted panic in after_release"))
        .on_destroy(count(&destroyed));
    let pool = pool_of(&manager, 1).hooks(hooks).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let panic = catch_unwind(AssertUnwindSafe(move || {
        let _held = held;
        panic!("scripted panic of the holder");
    }));
    assert!(panic.is_err());
    balanced(&pool, &manager.ledger).await;
    assert_eq!((checkins.load(Ordering::SeqCst), destroyed.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(pool.acquire().await.unwrap().id, 2);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_is_cancelled_in_before_acquire_costs_that_connection_only() {
    let manager = TestManager::new();
    let destroyed = Arc::new(AtomicUsize::new(0));
    let act = once(Act::Never);
    let hooks = Hooks::new()
        .before_acquire(asynchronous(move |_| acting(act())))
        .on_destroy(count(&destroyed));
    let pool = pool_of(&manager, 1).hooks(hooks).build_lazy().unwrap();
    pool.warm_up(1).await.unwrap();
    {
        let mut cancelled = pin!(pool.acquire());
        assert!(poll_once(cancelled.as_mut()).is_pending());
        assert_eq!(pool.metrics().counts.checking, 1);
    }
    assert_eq!(pool.acquire().await.unwrap().id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.abandoned, metrics.closed.total()), (1, 1));
    assert_eq!(destroyed.load(Ordering::SeqCst), 1);
}

#[test]
fn blocking_callers_go_on_after_hooks_that_fail() {
    for which in 0..4 {
        let manager = TestManager::new();
        let act = once(if which == 0 { Act::Error } else { Act::Panic });
        let hooks = match which {
            0 | 1 => Hooks::new().before_acquire(asynchronous(move |_| acting(act()))),
            2 => Hooks::new().on_checkout(move |_| panic_if(act())),
            _ => Hooks::new().on_checkin(move |_| panic_if(act())),
        };
        let pool = pool_of(&manager, 1).hooks(hooks).build_blocking().unwrap();
        drop(pool.acquire().unwrap());
        assert_eq!(pool.acquire().unwrap().id, 2);
        eventually_blocking("it is closed", || manager.ledger.closed() == 1);
        assert_eq!(pool.metrics().closed.rejected, 1);
    }
}

// Every way out.

#[tokio::test(start_paused = true)]
async fn on_destroy_is_called_once_for_each_connection_that_the_pool_ends_and_for_no_other() {
    let manager = TestManager::new();
    let destroyed = Arc::new(AtomicUsize::new(0));
    let reject = Arc::new(AtomicBool::new(false));
    let hooks = Hooks::new().on_destroy(count(&destroyed)).on_checkout({
        let reject = reject.clone();
        move |_| {
            if reject.swap(false, Ordering::SeqCst) {
                panic!("scripted panic in on_checkout");
            }
        }
    });
    let pool = pool_of(&manager, 3)
        .check(CheckPolicy::Always)
        .max_lifetime(100 * SECOND)
        .lifetime_jitter(0.0)
        .hooks(hooks)
        .build_lazy()
        .unwrap();
    let mut detached = 0;
    for way in 0..16 {
        let held = pool.acquire().await.unwrap();
        match way {
            0 => held.discard(),
            1 => {
                manager.condition.once(BROKEN);
                drop(held);
            }
            2 => {
                manager.condition.once(DIRTY);
                manager.reset.once(Act::Error);
                drop(held);
            }
            3 => {
                drop(held);
                manager.check.once(Act::Error);
                drop(pool.acquire().await.unwrap());
            }
            4 => {
                drop(held);
                manager.check.once(Act::Never);
                drop(timeout(MILLISECOND, pool.acquire()).await);
            }
            5 => {
                let _ = catch_unwind(AssertUnwindSafe(move || {
                    let _held = held;
                    panic!("scripted panic of the holder");
                }));
            }
            6 => {
                pool.invalidate();
                drop(held);
            }
            7 => {
                drop(held);
                assert_eq!(pool.retain(|_, _| false), 1);
            }
            8 => {
                drop(held);
                let panics = || pool.retain(|_, _| panic!("scripted panic in retain"));
                assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
            }
            9 => {
                drop(held);
                reject.store(true, Ordering::SeqCst);
                drop(pool.acquire().await.unwrap());
            }
            10 => {
                drop(held);
                pool.warm_up(3).await.unwrap();
                pool.resize(1).unwrap();
                turns().await;
                pool.resize(3).unwrap();
            }
            11 => {
                drop(held);
                pool.warm_up(3).await.unwrap();
                pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap();
            }
            12 => {
                drop(held);
                let failed = pool.rotate(|_| acting(Act::Error)).await;
                assert!(failed.is_err());
            }
            13 => {
                drop(held);
                sleep(150 * SECOND).await;
            }
            14 => {
                manager.close.once(Act::Panic);
                held.discard();
            }
            _ => {
                let mut held = held;
                held.uncount();
                drop(held.detach());
                detached += 1;
            }
        }
        let metrics = balanced(&pool, &manager.ledger).await;
        let ended = destroyed.load(Ordering::SeqCst);
        assert_eq!(ended, manager.ledger.dropped() - detached, "way {way}");
        assert_eq!(ended as u64, metrics.closed.total() - metrics.closed.detached, "way {way}");
        assert!(ended > way.min(14), "way {way} ends one");
    }
    let held = pool.acquire().await.unwrap();
    pool.warm_up(2).await.unwrap();
    drop(pool.drain(Duration::ZERO).await);
    drop(held);
    balanced(&pool, &manager.ledger).await;
    assert_eq!(destroyed.load(Ordering::SeqCst), manager.ledger.opened() - detached);
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_set_up_is_cut_short_by_close_is_accounted_for() {
    let manager = TestManager::new();
    let destroyed = Arc::new(AtomicUsize::new(0));
    let hooks = Hooks::new()
        .after_connect(asynchronous(|_| acting(Act::Never)))
        .on_destroy(count(&destroyed));
    let pool = pool_of(&manager, 1).connect_timeout(600 * SECOND).hooks(hooks).build_lazy();
    let pool = pool.unwrap();
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    eventually("one is being set up", || manager.ledger.opened() == 1).await;
    pool.close().await;
    assert!(waiter.await.is_err());
    eventually("it is gone", || manager.ledger.live() == 0).await;
    assert_eq!(destroyed.load(Ordering::SeqCst), 1);
}

// Calls back into the pool.

#[derive(Clone, Copy, Debug, PartialEq)]
enum Turn {
    AfterConnect,
    OnCreate,
    BeforeAcquire,
    OnCheckout,
    OnCheckin,
    AfterRelease,
    OnDestroy,
}

const TURNS: [Turn; 7] = [
    Turn::AfterConnect,
    Turn::OnCreate,
    Turn::BeforeAcquire,
    Turn::OnCheckout,
    Turn::OnCheckin,
    Turn::AfterRelease,
    Turn::OnDestroy,
];

/// Hooks that do something at this turn; the asynchronous ones begin with it.
fn at(turn: Turn, act: impl Fn() + Send + Sync + 'static) -> Hooks<TestManager> {
    let hooks = Hooks::new();
    match turn {
        Turn::AfterConnect => hooks.after_connect(asynchronous(move |_| {
            act();
            acting(Act::Ok)
        })),
        Turn::BeforeAcquire => hooks.before_acquire(asynchronous(move |_| {
            act();
            acting(Act::Ok)
        })),
        Turn::OnCreate => hooks.on_create(move |_| act()),
        Turn::OnCheckout => hooks.on_checkout(move |_| act()),
        Turn::OnCheckin => hooks.on_checkin(move |_| act()),
        Turn::AfterRelease => hooks.after_release(act),
        Turn::OnDestroy => hooks.on_destroy(act),
    }
}

#[tokio::test(start_paused = true)]
async fn each_hook_is_called_without_the_others() {
    for turn in TURNS {
        let manager = TestManager::new();
        let calls = Arc::new(AtomicUsize::new(0));
        let pool = pool_of(&manager, 1).hooks(at(turn, count(&calls))).build_lazy().unwrap();
        drop(pool.acquire().await.unwrap());
        pool.acquire().await.unwrap().discard();
        balanced(&pool, &manager.ledger).await;
        let expected = match turn {
            Turn::AfterConnect | Turn::OnCreate | Turn::OnDestroy => 1,
            Turn::BeforeAcquire | Turn::OnCheckout | Turn::OnCheckin | Turn::AfterRelease => 2,
        };
        assert_eq!(calls.load(Ordering::SeqCst), expected, "{turn:?}");
    }
}

type Back = fn(&Pool<TestManager>);

const BACK: [(&str, Back); 9] = [
    ("metrics", |pool| drop((pool.metrics(), pool.holders(), format!("{pool:?}")))),
    ("try_acquire", |pool| drop(pool.try_acquire())),
    ("acquire", |pool| drop(poll_once(pin!(pool.acquire())))),
    ("resize down", |pool| pool.resize(1).unwrap()),
    ("resize up", |pool| pool.resize(4).unwrap()),
    ("invalidate", Pool::invalidate),
    ("retain", |pool| assert!(pool.retain(|_, _| false) <= 4)),
    ("maintenance", |pool| {
        pool.maintenance().pause();
        pool.maintenance().resume();
        let _ = poll_once(pin!(pool.maintenance().run_once()));
    }),
    ("drain", |pool| drop(poll_once(pin!(pool.drain(SECOND))))),
];

async fn calls_back(turn: Turn, what: &str, back: Back) {
    let manager = TestManager::new();
    let weak: Arc<OnceLock<WeakPool<TestManager>>> = Arc::default();
    let called = Arc::new(AtomicUsize::new(0));
    let hooks = at(turn, {
        let (weak, called) = (weak.clone(), called.clone());
        move || {
            let calls = called.fetch_add(1, Ordering::SeqCst);
            let Some(pool) = weak.get().and_then(WeakPool::upgrade) else { return };
            // What it does there may well come back here; and who invalidates each
            // connection as it comes never gets one.
            if calls < 6 {
                back(&pool);
            }
        }
    });
    let pool = pool_of(&manager, 2).capacity(4).hooks(hooks).build_lazy().unwrap();
    weak.set(pool.downgrade()).expect("once");
    let work = async {
        for round in 0..4 {
            let Ok(held) = pool.acquire_timeout(SECOND).await else { continue };
            let mut waiter = pin!(pool.acquire_timeout(SECOND));
            let early = poll_once(waiter.as_mut());
            match round {
                0 | 1 => drop(held),
                2 => held.discard(),
                _ => drop(held.release().await),
            }
            if early.is_pending() {
                drop(waiter.await);
            }
        }
    };
    let ended = timeout(60 * SECOND, work).await;
    assert!(ended.is_ok(), "{what} in {turn:?} hangs");
    assert!(called.load(Ordering::SeqCst) > 0, "{what} in {turn:?}");
    assert_eq!(pool.is_closed(), what == "drain", "{what} in {turn:?}");
    let at_rest = eventually("nothing is under way", || {
        let counts = pool.metrics().counts;
        counts.waiters + counts.connecting + counts.checking + counts.closing == 0
    });
    at_rest.await;
    let metrics = pool.metrics();
    assert_eq!(metrics.counts.in_service(), pool.max_size(), "{what} in {turn:?}");
    assert_eq!(metrics.counts.in_use, 0, "{what} in {turn:?}");
    assert_eq!(manager.ledger.live(), metrics.counts.alive(), "{what} in {turn:?}");
    if what != "drain" {
        let mut held = Vec::new();
        for _ in 0..pool.max_size() {
            let acquired = pool.acquire().await;
            held.push(acquired.unwrap_or_else(|error| panic!("{what} {turn:?}: {error}")));
        }
    }
}

#[test]
fn every_hook_may_call_back_into_the_pool() {
    for turn in TURNS {
        for (what, back) in BACK {
            // A thread of its own, which is all that stands still if a lock is held meanwhile.
            let case = thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_time().start_paused(true).build().unwrap();
                runtime.block_on(calls_back(turn, what, back));
            });
            eventually_blocking(&format!("{what} in {turn:?} ends"), || case.is_finished());
            join(case);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_asynchronous_hook_may_wait_for_another_connection() {
    for turn in [Turn::AfterConnect, Turn::BeforeAcquire] {
        let manager = TestManager::new();
        let weak: Arc<OnceLock<WeakPool<TestManager>>> = Arc::default();
        let inside = Arc::new(AtomicBool::new(false));
        let hook = {
            let (weak, inside) = (weak.clone(), inside.clone());
            asynchronous(move |_| {
                let pool = weak.get().and_then(WeakPool::upgrade).expect("it is there");
                let first = !inside.swap(true, Ordering::SeqCst);
                Box::pin(async move {
                    if first {
                        drop(pool.acquire().await.expect("there is room for another"));
                    }
                    Ok(())
                })
            })
        };
        let hooks = match turn {
            Turn::AfterConnect => Hooks::new().after_connect(hook),
            _ => Hooks::new().before_acquire(hook),
        };
        let pool = pool_of(&manager, 2).hooks(hooks).build_lazy().unwrap();
        weak.set(pool.downgrade()).expect("once");
        if turn == Turn::AfterConnect {
            // The first dial goes alone; its set-up needs one that is there.
            inside.store(true, Ordering::SeqCst);
            pool.warm_up(1).await.unwrap();
            inside.store(false, Ordering::SeqCst);
            let held = pool.acquire().await.unwrap();
            let mut second = pin!(pool.acquire());
            assert!(poll_once(second.as_mut()).is_pending());
            turns().await;
            drop(held);
            drop(timeout(5 * SECOND, second).await.expect("no deadlock").unwrap());
        } else {
            drop(timeout(5 * SECOND, pool.acquire()).await.expect("no deadlock").unwrap());
        }
        assert!(inside.load(Ordering::SeqCst));
        balanced(&pool, &manager.ledger).await;
    }
}

#[test]
fn hooks_of_a_blocking_pool_may_call_back_into_it() {
    for turn in [Turn::OnCheckout, Turn::OnCheckin, Turn::AfterRelease] {
        let manager = TestManager::new();
        let slot: Arc<OnceLock<millpond::blocking::Pool<TestManager>>> = Arc::default();
        let depth = AtomicUsize::new(0);
        let hooks = at(turn, {
            let slot = slot.clone();
            move || {
                if depth.fetch_add(1, Ordering::SeqCst) == 0 {
                    let pool = slot.get().expect("it is built");
                    drop(pool.acquire().expect("there is room for another"));
                    pool.resize(3).unwrap();
                    drop(pool.metrics());
                }
                depth.fetch_sub(1, Ordering::SeqCst);
            }
        });
        let pool = pool_of(&manager, 2).capacity(3).hooks(hooks).build_blocking().unwrap();
        assert!(slot.set(pool.clone()).is_ok());
        let worker = thread::spawn(move || {
            for _ in 0..5 {
                drop(pool.acquire().unwrap());
            }
        });
        join(worker);
    }
}

// None set.

#[tokio::test(start_paused = true)]
async fn hooks_that_do_nothing_change_nothing() {
    let mut figures = Vec::new();
    for hooks in [None, Some(Hooks::new()), Some(noting(&Calls::default()))] {
        let manager = TestManager::new();
        let mut builder = pool_of(&manager, 2);
        if let Some(hooks) = hooks {
            builder = builder.hooks(hooks);
        }
        let pool = builder.build_lazy().unwrap();
        for round in 0..6 {
            let first = pool.acquire().await.unwrap();
            let second = pool.acquire_owned().await.unwrap();
            let mut waiter = pin!(pool.acquire());
            assert!(poll_once(waiter.as_mut()).is_pending());
            match round % 3 {
                0 => drop(first),
                1 => first.discard(),
                _ => {
                    manager.condition.once(DIRTY);
                    drop(first);
                }
            }
            drop(waiter.await.unwrap());
            manager.condition.once(if round % 2 == 0 { Act::Ok } else { BROKEN });
            drop(second.release().await);
        }
        let mut metrics = balanced(&pool, &manager.ledger).await;
        // With a hook that may have to be awaited, each acquire is one that may have to wait.
        metrics.waits = Default::default();
        figures.push(metrics);
    }
    assert_eq!(figures[0], figures[1]);
    assert_eq!(figures[0], figures[2]);
}

#[test]
fn debug_says_which_hooks_are_set() {
    let hooks = Hooks::<TestManager>::new().on_create(|_| {}).after_release(|| {});
    let text = format!("{hooks:?}");
    assert!(text.contains("on_create: true") && text.contains("after_release: true"), "{text}");
    assert!(text.contains("on_destroy: false") && text.contains("on_leak: false"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn what_a_rotation_takes_to_make_room_is_acquired_by_nobody() {
    let calls: [Arc<AtomicUsize>; 4] = Default::default();
    let count = |call: usize| {
        let calls = calls[call].clone();
        move || {
            calls.fetch_add(1, Ordering::SeqCst);
        }
    };
    let (before_acquire, checkout, checkin, released) = (count(0), count(1), count(2), count(3));
    let hooks = Hooks::new()
        .before_acquire(move |_| {
            before_acquire();
            Box::pin(async { Ok(()) })
        })
        .on_checkout(move |_| checkout())
        .on_checkin(move |_| checkin())
        .after_release(released);
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).hooks(hooks).time_use(true).build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap();
    let counted = calls.each_ref().map(|calls| calls.load(Ordering::SeqCst));
    assert_eq!(counted, [1, 1, 1, 1], "for the only caller");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.acquires, metrics.use_time.unwrap().count()), (1, 1));
    assert_eq!((metrics.closed.invalidated, metrics.created), (1, 2));
    let waits = metrics.waits.total();
    pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap();
    assert_eq!(pool.metrics().waits.total(), waits, "nor does it count as a wait");
}
