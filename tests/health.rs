//! Connections that are broken, dirty or dead: what becomes of them, and of whoever waits.

#![cfg(feature = "tokio")]

mod support;
use support::*;

use millpond::{
    AcquireError, BuildError, CheckPolicy, Health, LossSignal, Manager, OperationError, Pool,
    PoolBuilder, ReleaseError, Stage, TryAcquireError, WarmUpError,
};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const DIRTY: Act = Act::Slow(Duration::ZERO);
const BROKEN: Act = Act::Error;
const OUTDATED: Act = Act::Permanent;
const UNCHECKED: Act = Act::Gated;

fn always_checked(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone()).max_size(max_size).check(CheckPolicy::Always)
}

/// So many idle connections that must be checked before their next use.
async fn used(pool: &Pool<TestManager>, count: usize) {
    let mut guards = Vec::new();
    for _ in 0..count {
        guards.push(pool.acquire().await.unwrap_or_else(|error| panic!("{error}")));
    }
}

/// tokio drops the tasks of such a runtime in so many rows, one after the other. The pool's reaper is in one of
/// them, so at least one of as many that begin after it, and one after the other, is dropped after it.
const ROWS: usize = 4;

/// A runtime that ends when it is dropped.
fn single() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// Runs a blocking call on a thread of its own, while this runtime goes on.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(work);
    eventually("the thread has ended", || thread.is_finished()).await;
    join(thread)
}

#[tokio::test(start_paused = true)]
async fn a_broken_connection_is_closed_and_a_waiter_gets_a_new_one() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    manager.condition.once(BROKEN);
    let began = Instant::now();
    drop(held);
    let fresh = acquire.await.unwrap();
    assert_eq!((fresh.id, began.elapsed()), (2, Duration::ZERO));
    drop(fresh);

    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.broken, metrics.closed.total()), (1, 1));
    assert_eq!((manager.ledger.closed(), manager.reset.calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_says_that_it_is_lost_is_closed_before_anybody_gets_it() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    used(&pool, 2).await;
    manager.lose(1);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((pool.counts().idle, pool.counts().vacant), (1, 1));
    assert_eq!((metrics.closed.broken, metrics.closed.total(), manager.ledger.closed()), (1, 1, 1));

    // What is idle then is checked before its next use.
    let guards = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    assert_eq!((guards.0.id, guards.1.id, manager.check.calls()), (2, 3, 1));
    manager.lose(1);
    assert_eq!(pool.counts().in_use, 2, "it is gone already");
}

#[tokio::test(start_paused = true)]
async fn one_in_use_that_says_that_it_is_lost_ends_when_it_comes_back() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    manager.lose(1);
    assert_eq!(pool.counts().in_use, 1);
    // Its condition is clean.
    drop(held);
    assert_eq!(acquire.await.unwrap().id, 2);
    assert_eq!(balanced(&pool, &manager.ledger).await.closed.broken, 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_lost_in_use_is_not_reset_though_it_comes_back_dirty() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.lose(1);
    manager.condition.once(DIRTY);
    drop(held);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.broken, metrics.closed.total(), manager.reset.calls()), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_releases_a_connection_that_is_lost_hears_of_it() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    for condition in [Act::Ok, UNCHECKED, DIRTY, OUTDATED] {
        for blocking in [false, true] {
            let held = pool.acquire().await.unwrap();
            manager.lose(held.id);
            manager.condition.once(condition);
            let released = if blocking { held.release_blocking() } else { held.release().await };
            assert!(matches!(released, Err(ReleaseError::Broken)), "{condition:?}: {released:?}");
        }
    }
    let closed = balanced(&pool, &manager.ledger).await.closed;
    // What the manager says of all of them holds for this one too.
    assert_eq!((closed.broken, closed.invalidated, closed.total()), (6, 2, 8));

    for condition in [Act::Ok, OUTDATED] {
        let held = pool.acquire().await.unwrap();
        let id = held.id;
        manager.condition.once(DIRTY);
        manager.reset.once(Act::Gated);
        let mut release = pin!(held.release());
        assert!(poll_once(release.as_mut()).is_pending());
        manager.lose(id);
        manager.condition.once(condition);
        manager.reset.open(1);
        assert!(matches!(release.await, Err(ReleaseError::Broken)), "it was lost during the reset");
    }
    let closed = balanced(&pool, &manager.ledger).await.closed;
    assert_eq!((closed.broken, closed.invalidated, closed.total()), (7, 3, 10));
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_replaced_for_min_idle() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(3).min_idle(2).build().await.unwrap();
    manager.lose(1);
    manager.lose(2);
    eventually("both are replaced", || pool.counts().idle == 2).await;
    assert_eq!(pool.metrics().closed.broken, 2);
    let (one, other) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    assert_eq!(one.id + other.id, 3 + 4);
}

#[tokio::test]
async fn a_connection_may_be_lost_before_it_is_in_its_slot_or_with_a_panic() {
    /// Opens connections of which the first is lost at once.
    struct Fleeting(AtomicUsize);

    impl Manager for Fleeting {
        type Connection = usize;
        type Error = std::io::Error;

        async fn connect(&self) -> std::io::Result<usize> {
            Ok(self.0.fetch_add(1, Ordering::SeqCst))
        }

        fn watch(&self, connection: &mut usize, signal: LossSignal) {
            match *connection {
                0 => signal.send(),
                1 => panic!("scripted panic in watch"),
                _ => {}
            }
        }
    }

    hush_scripted_panics();
    let pool = Pool::builder(Fleeting(AtomicUsize::new(0))).max_size(2).build_lazy().unwrap();
    let guards = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    assert_eq!((*guards.0, *guards.1), (1, 2), "a panic there says nothing of a connection");
    assert_eq!(pool.metrics().closed.broken, 1);
}

/// The next so many connections are lost as soon as they are opened, as where a server hangs up on whoever comes.
fn hangs_up(manager: &TestManager, count: usize) {
    for _ in 0..count {
        manager.watch.once(Act::Error);
    }
}

#[tokio::test(start_paused = true)]
async fn new_connections_that_are_all_lost_are_opened_with_growing_pauses_and_whoever_asks_is_told()
{
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(4).min_idle(2).build_lazy().unwrap();
    hangs_up(&manager, 1_000);
    let error = pool.acquire_timeout(10 * SECOND).await.map(drop).unwrap_err();
    let AcquireError::Timeout(late) = error else { panic!("{error}") };
    assert_eq!((late.stage(), late.failed_hook()), (Stage::ConnectFailing, None));
    let cause = late.last_connect_error().expect("that it was lost").to_string();
    assert_eq!(cause, "the new connection was lost after 0ns, before anybody used it");
    let opened = manager.connect.calls();
    assert!((5..=100).contains(&opened), "{opened} connections in 10 s");

    // Now nobody asks for one, but some are to be kept idle.
    sleep(10 * SECOND).await;
    let opened = manager.connect.calls() - opened;
    assert!((5..=100).contains(&opened), "{opened} connections in 10 s");
    let status = pool.status();
    let [reason] = status.health.reasons() else { panic!("{status}") };
    assert_eq!(*reason, format!("connecting fails: {cause}"));
    let metrics = status.metrics;
    assert_eq!(metrics.last_connect_error.map(|last| last.message), Some(cause));
    assert_eq!((metrics.connect_failures, metrics.closed.broken), (0, metrics.closed.total()));
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_and_a_build_fail_where_what_they_open_is_lost_at_once() {
    let manager = TestManager::new();
    hangs_up(&manager, 1_000);
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    let error = pool.warm_up(2).await.unwrap_err();
    let WarmUpError::Connect(cause) = &error else { panic!("{error}") };
    assert!(matches!(&cause.error, OperationError::Lost { .. }), "{cause}");
    let built = Pool::builder(manager.clone()).max_size(2).min_idle(2).build().await;
    let error = built.map(drop).unwrap_err();
    let BuildError::Connect(cause) = &error else { panic!("{error}") };
    assert!(matches!(&cause.error, OperationError::Lost { .. }), "{cause}");
    assert_eq!(manager.connect.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn that_new_connections_are_lost_is_over_when_one_has_been_there_for_a_second() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(3).build_lazy().unwrap();
    hangs_up(&manager, 3);
    let first = pool.acquire().await.unwrap();
    assert_eq!(first.id, 4);
    sleep(SECOND / 2).await;
    assert!(!matches!(pool.status().health, Health::Healthy), "{}", pool.status());
    sleep(SECOND / 2).await;
    assert_eq!(pool.status().health, Health::Healthy);
    // The next one that is lost is the first of a row, and one may be an accident.
    hangs_up(&manager, 1);
    let began = Instant::now();
    let _second = pool.acquire().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(!matches!(pool.status().health, Health::Healthy), "{}", pool.status());
    sleep(SECOND).await;
    assert_eq!(pool.status().health, Health::Healthy);
    manager.connect.always(Act::Never);
    let error = pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    assert!(matches!(&error, AcquireError::Timeout(late) if late.stage() == Stage::Connecting));
}

#[tokio::test(start_paused = true)]
async fn that_new_connections_are_lost_no_more_ends_the_pauses_of_all_within_a_second() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(4).backoff(8 * SECOND, 8 * SECOND);
    let pool = pool.acquire_timeout(60 * SECOND).build_lazy().unwrap();
    // After these, several may be opened at once.
    used(&pool, 4).await;
    manager.lose_all();
    eventually("all are gone", || pool.counts().alive() == 0).await;
    hangs_up(&manager, 8);
    let waiters = [(); 4].map(|()| {
        let pool = pool.clone();
        tokio::spawn(async move { (pool.acquire_owned().await.unwrap(), Instant::now()) })
    });
    let (mut held, mut served) = (Vec::new(), Vec::new());
    for waiter in waiters {
        let (connection, when) = waiter.await.unwrap();
        held.push(connection);
        served.push(when);
    }
    served.sort_unstable();
    assert!(served[3] - served[0] <= SECOND + Duration::from_millis(1), "{served:?}");
}

#[tokio::test(start_paused = true)]
async fn new_connections_that_are_lost_at_once_are_one_in_a_row_however_many() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(10).min_idle(10);
    let pool = pool.backoff(SECOND / 20, 30 * SECOND).build().await.unwrap();
    let began = Instant::now();
    manager.lose_all();
    eventually("all are replaced", || pool.counts().idle == 10).await;
    assert_eq!(began.elapsed(), Duration::ZERO, "one may be an accident");
    manager.lose_all();
    eventually("all are replaced", || pool.counts().idle == 10).await;
    let took = began.elapsed();
    assert!(took > Duration::ZERO && took < SECOND / 10, "the second in a row: {took:?}");
    assert_eq!(pool.metrics().closed.broken, 20);
}

#[tokio::test(start_paused = true)]
async fn new_connections_that_are_lost_by_turns_are_opened_with_growing_pauses_too() {
    let manager = TestManager::new();
    manager.connect.always(Act::Slow(SECOND / 10));
    hangs_up(&manager, 1_000);
    let pool = Pool::builder(manager.clone()).max_size(2).acquire_timeout(10 * SECOND);
    // Each is lost while the next one for the other caller is half-way, until the pauses have grown.
    let pool = pool.backoff(SECOND / 1_000, 30 * SECOND).build_lazy().unwrap();
    let second = async {
        sleep(SECOND / 20 * 3).await;
        pool.acquire().await.map(drop)
    };
    let (first, second) = tokio::join!(pool.acquire(), second);
    assert!(first.is_err() && second.is_err());
    let opened = manager.connect.calls();
    assert!((5..=80).contains(&opened), "{opened} connections in 10 s");
}

#[tokio::test(start_paused = true)]
async fn one_that_stays_for_a_second_ends_the_trouble_unless_a_newer_one_is_lost_meanwhile() {
    for is_newer in [false, true] {
        let manager = TestManager::new();
        let pool = Pool::builder(manager.clone()).max_size(3).min_idle(2).build().await.unwrap();
        // It begins to connect before the loss.
        manager.connect.once(Act::Gated);
        let mut rotation = pin!(pool.rotate(|_| Box::pin(async { Ok(()) })));
        assert!(poll_once(rotation.as_mut()).is_pending());
        manager.lose(1);
        eventually("it is replaced", || pool.counts().idle == 2).await;
        sleep(SECOND / 2).await;
        if is_newer {
            manager.watch.once(Act::Error);
            manager.connect.open(1);
            assert!(rotation.await.is_err());
        } else {
            manager.lose(2);
            eventually("it is replaced", || pool.counts().idle == 2).await;
        }
        assert!(!matches!(pool.status().health, Health::Healthy), "{}", pool.status());
        sleep(SECOND / 2).await;
        let is_over = matches!(pool.status().health, Health::Healthy);
        assert_eq!(is_over, !is_newer, "{}", pool.status());
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_lost_after_a_while_or_a_use_says_nothing_of_new_ones() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(2).min_idle(2).build().await.unwrap();
    sleep(SECOND).await;
    for round in 0..5 {
        let began = Instant::now();
        manager.lose_all();
        eventually("both are replaced", || pool.counts().idle == 2).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "round {round}");
        used(&pool, 2).await;
    }
    assert_eq!(pool.metrics().closed.broken, 10);
    assert_eq!(pool.status().health, Health::Healthy);
    assert!(pool.metrics().last_connect_error.is_none());
}

/// Conservation: whoever is told of losses beside acquires and releases neither loses nor doubles a slot, and
/// nobody gets a connection that was lost before he asked.
#[test]
fn losses_beside_acquires_and_releases_cost_nothing_but_themselves() {
    const ROUNDS: usize = 20_000;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(4).check(CheckPolicy::Never);
    // Many are lost as soon as they are opened.
    let pool = pool.backoff(Duration::from_nanos(1), Duration::from_nanos(1));
    let pool = runtime.block_on(pool.build()).unwrap();
    // For each connection the moment by which it had said so, and 0 before.
    let lost: Arc<Vec<AtomicUsize>> = Arc::new((0..=ROUNDS).map(|_| AtomicUsize::new(0)).collect());
    let moment = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let (pool, manager) = (pool.clone(), manager.clone());
            let (lost, moment) = (lost.clone(), moment.clone());
            runtime.spawn(async move {
                for round in 0..ROUNDS / 4 {
                    let began = moment.load(Ordering::SeqCst);
                    let guard = pool.acquire().await.unwrap();
                    let lost_at = lost[guard.id].load(Ordering::SeqCst);
                    assert!(lost_at == 0 || lost_at > began, "{}: {lost_at} {began}", guard.id);
                    drop(guard);
                    if round % 10 == 0 {
                        let ids = manager.lose_all();
                        let now = moment.fetch_add(1, Ordering::SeqCst) + 1;
                        ids.iter().for_each(|id| lost[*id].store(now, Ordering::SeqCst));
                    }
                }
            })
        })
        .collect();
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
    let metrics = balanced_blocking(&pool, &manager.ledger);
    assert_eq!(metrics.closed.broken, metrics.closed.total());
    assert!(metrics.closed.broken > 0);
    let counts = pool.counts();
    assert_eq!(counts.vacant + counts.idle, 4, "{counts:?}");
}

#[test]
fn what_is_idle_when_its_runtime_ends_is_checked_before_its_next_use() {
    for (policy, checks) in
        [(CheckPolicy::IfIdleFor(SECOND), 1), (CheckPolicy::Always, 1), (CheckPolicy::Never, 0)]
    {
        let manager = TestManager::new();
        let pool = Pool::builder(manager.clone()).max_size(1).check(policy).build_lazy().unwrap();
        single().block_on(used(&pool, 1));
        manager.check.once(Act::Error);
        let id = single().block_on(async { pool.acquire().await.unwrap().id });
        assert_eq!((manager.check.calls(), id), (checks, 1 + checks), "{policy:?}");
        balanced_blocking(&pool, &manager.ledger);
    }
}

#[test]
fn what_is_in_use_when_its_runtime_ends_is_checked_before_its_next_use() {
    for held_by_tasks in [true, false] {
        let manager = TestManager::new();
        let pool = Pool::builder(manager.clone()).max_size(ROWS).build_lazy().unwrap();
        let first = single();
        let mut held: Vec<_> =
            (0..ROWS).map(|_| first.block_on(pool.acquire_owned()).unwrap()).collect();
        if held_by_tasks {
            for guard in held.drain(..) {
                first.spawn(async move {
                    let _guard = guard;
                    std::future::pending::<()>().await;
                });
            }
        }
        drop(first);
        drop(held);
        assert_eq!(pool.counts().idle, ROWS);
        single().block_on(used(&pool, ROWS));
        let calls = (manager.check.calls(), manager.connect.calls());
        assert_eq!(calls, (ROWS, ROWS), "by tasks: {held_by_tasks}");
        balanced_blocking(&pool, &manager.ledger);
    }
}

#[test]
fn what_is_lost_with_its_runtime_says_nothing_of_the_server() {
    /// What reads from a connection, and ends with the runtime.
    struct Reader(TestManager, usize);

    impl Drop for Reader {
        fn drop(&mut self) {
            self.0.lose(self.1);
        }
    }

    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(ROWS).min_idle(ROWS);
    let runtime = single();
    let pool = runtime.block_on(pool.build()).unwrap();
    for id in 1..=ROWS {
        let reader = Reader(manager.clone(), id);
        runtime.spawn(async move {
            let _reader = reader;
            std::future::pending::<()>().await;
        });
    }
    drop(runtime);
    assert_eq!(pool.counts().vacant, ROWS);
    assert_eq!(pool.status().health, Health::Healthy);
}

#[test]
fn a_check_that_was_under_way_when_the_runtime_ended_says_nothing_of_the_time_after() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let (first, second) = (single(), single());
    manager.condition.once(UNCHECKED);
    first.block_on(used(&pool, 1));
    manager.check.once(Act::Gated);
    let acquire = second.spawn(pool.acquire_owned());
    second.block_on(eventually("it is being checked", || manager.check.running() == 1));
    drop(first);
    manager.check.open(1);
    drop(second.block_on(acquire).unwrap().unwrap());
    second.block_on(used(&pool, 1));
    assert_eq!((manager.check.calls(), manager.connect.calls()), (2, 1));
    balanced_blocking(&pool, &manager.ledger);
}

#[tokio::test(start_paused = true)]
async fn a_discarded_connection_is_closed_and_a_waiter_gets_a_new_one() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire_owned().await.unwrap();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    held.discard();
    let fresh = acquire.await.unwrap();
    assert_eq!((fresh.id, fresh.info().uses), (2, 1), "its uses, not those of the one before");
    drop(fresh);

    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.discarded, metrics.closed.total()), (1, 1));
    assert_eq!(manager.ledger.closed(), 1);
    assert_eq!(manager.condition.calls(), 1, "the discarded one is not asked about");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_been_idle_since_it_was_opened_is_checked_as_well() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 1).min_idle(1).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    assert_eq!(manager.check.calls(), 0, "it has just been opened");
    pool.invalidate();
    eventually("there is another one", || pool.metrics().counts.idle == 1).await;
    pool.maintenance().run_once().await;
    drop(pool.acquire().await.unwrap());
    assert_eq!(manager.check.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_been_reset_is_checked_as_well() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 1).build_lazy().unwrap();
    let conn = pool.acquire().await.unwrap();
    manager.condition.once(DIRTY);
    drop(conn);
    let conn = pool.acquire().await.unwrap();
    assert_eq!((manager.reset.calls(), manager.check.calls()), (1, 1));
    manager.condition.once(DIRTY);
    conn.release().await.unwrap();
    drop(pool.acquire().await.unwrap());
    assert_eq!((manager.reset.calls(), manager.check.calls()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_turns_out_to_be_of_no_use_while_it_is_reset_is_closed() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    pool.warm_up(2).await.unwrap();
    let conn = pool.acquire().await.unwrap();
    manager.condition.once(DIRTY);
    manager.condition.once(BROKEN);
    drop(conn);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.broken, metrics.closed.total(), metrics.resets), (1, 1, 1));

    let conn = pool.acquire().await.unwrap();
    manager.condition.once(DIRTY);
    manager.condition.once(OUTDATED);
    assert!(matches!(conn.release().await, Err(ReleaseError::Broken)));
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.invalidated, metrics.closed.total()), (1, 2));

    let (conn, checks) = (pool.acquire().await.unwrap(), manager.check.calls());
    manager.condition.once(DIRTY);
    manager.condition.once(UNCHECKED);
    conn.release().await.unwrap();
    let (conn, checks) = (pool.acquire().await.unwrap(), manager.check.calls() - checks);
    assert_eq!(checks, 1, "the manager does not know whether the reset was enough");
    manager.condition.always(DIRTY);
    drop(conn);
    assert_eq!(balanced(&pool, &manager.ledger).await.counts.idle, 1, "all are dirty to some");
}

#[tokio::test(start_paused = true)]
async fn min_idle_is_kept_although_the_server_is_down_for_a_while() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(4).min_idle(2).build().await.unwrap();
    manager.connect.always(Act::Error);
    pool.acquire().await.unwrap().discard();
    sleep(30 * SECOND).await;
    assert_eq!(manager.connect.most_running(), 1);
    manager.connect.calm();
    eventually("two are idle again", || pool.metrics().counts.idle == 2).await;
    assert_eq!(balanced(&pool, &manager.ledger).await.created, 3);
}

#[tokio::test(start_paused = true)]
async fn a_dirty_connection_is_reset_before_anybody_else_sees_it() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Gated);
    drop(held);
    for _ in 0..10 {
        tokio::task::yield_now().await;
        assert!(poll_once(acquire.as_mut()).is_pending());
        assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
    }
    assert_eq!((manager.reset.running(), pool.metrics().counts.resetting), (1, 1));
    manager.reset.open(1);
    let clean = acquire.await.unwrap();
    assert_eq!((clean.id, manager.reset.calls()), (1, 1));
    drop(clean);

    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.resets, metrics.closed.total(), metrics.created), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn release_resets_a_dirty_connection_before_it_returns() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Slow(SECOND));
    held.release().await.unwrap();
    let metrics = pool.metrics();
    assert_eq!((metrics.resets, metrics.counts.idle), (1, 1));
    assert_eq!(pool.try_acquire().unwrap().id, 1);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn release_asks_for_the_condition_once() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    pool.acquire().await.unwrap().release().await.unwrap();
    assert_eq!(manager.condition.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn release_says_that_the_connection_is_broken() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.condition.once(BROKEN);
    assert!(matches!(held.release().await, Err(ReleaseError::Broken)));
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.broken, metrics.counts.vacant), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_failing_reset_retires_the_connection_and_the_waiter_gets_another() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Error);
    drop(held);
    assert_eq!(acquire.await.unwrap().id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_reset, metrics.closed.total()), (1, 1));
    assert_eq!((metrics.resets, manager.ledger.closed()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn release_reports_a_failing_reset_and_the_waiter_gets_another() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Error);
    let error = held.release().await.unwrap_err();
    let source = std::error::Error::source(&error).expect("the cause");
    assert_eq!(source.to_string(), "scripted reset error");
    assert_eq!(acquire.await.unwrap().id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_reset, metrics.closed.total()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn always_checks_each_connection_before_each_use() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 1).build_lazy().unwrap();
    for acquires in 0..10 {
        drop(pool.acquire().await.unwrap());
        assert_eq!(manager.check.calls(), acquires, "a new connection needs no check");
    }
    let held = pool.acquire().await.unwrap();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    drop(held);
    assert_eq!(manager.check.calls(), 10);
    drop(acquire.await.unwrap());
    assert_eq!(manager.check.calls(), 11, "a connection that is handed over is checked too");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.acquires, metrics.created), (12, 1));
}

/// A manager whose `condition` says so has each connection checked before each use.
#[tokio::test(start_paused = true)]
async fn an_unchecked_connection_is_checked_before_its_next_use_whatever_the_policy() {
    for policy in [CheckPolicy::Never, CheckPolicy::IfIdleFor(SECOND), CheckPolicy::Always] {
        let manager = TestManager::new();
        let builder = Pool::builder(manager.clone()).max_size(1).check(policy);
        let pool = builder.build_lazy().unwrap();
        manager.condition.always(UNCHECKED);
        for acquires in 0..10 {
            drop(pool.acquire().await.unwrap());
            assert_eq!(manager.check.calls(), acquires, "a new connection needs no check");
        }
        let held = pool.acquire().await.unwrap();
        let mut acquire = pin!(pool.acquire());
        assert!(poll_once(acquire.as_mut()).is_pending());
        held.release().await.unwrap();
        assert_eq!(manager.check.calls(), 10);
        drop(acquire.await.unwrap());
        assert_eq!(manager.check.calls(), 11, "a connection that is handed over is checked too");

        assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty, "it is being checked");
        eventually("it is idle again", || pool.metrics().counts.idle == 1).await;
        assert_eq!(pool.try_acquire().unwrap().id, 1);
        assert_eq!(manager.check.calls(), 12);

        manager.check.once(Act::Error);
        assert_eq!(pool.acquire().await.unwrap().id, 2, "the check has failed");
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!((metrics.closed.failed_check, metrics.closed.total()), (1, 1));
        assert_eq!((metrics.checks, metrics.resets), (13, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquire_whose_check_fails_goes_on_to_the_next_connection() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 2).build_lazy().unwrap();
    used(&pool, 2).await;
    manager.check.once(Act::Error);
    let began = Instant::now();
    let held = pool.acquire().await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!((manager.check.calls(), manager.connect.calls()), (2, 2));
    drop(held);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_check, metrics.closed.total()), (1, 1));
    assert_eq!((metrics.counts.idle, manager.ledger.closed()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_finds_all_idle_ones_dead_ends_with_a_new_one_and_exact_counts() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 8).build_lazy().unwrap();
    used(&pool, 8).await;
    manager.check.always(Act::Error);
    let fresh = pool.acquire().await.unwrap();
    assert_eq!(fresh.id, 9);
    drop(fresh);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_check, metrics.closed.total()), (8, 8));
    assert_eq!((metrics.created, metrics.counts.idle, metrics.acquires), (9, 1, 9));
    assert_eq!((manager.check.calls(), manager.ledger.closed()), (8, 8));
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_finds_all_idle_ones_dead_and_no_server_ends_at_its_deadline() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 4).build_lazy().unwrap();
    used(&pool, 4).await;
    manager.check.always(Act::Error);
    manager.connect.always(Act::Error);
    let began = Instant::now();
    let error = pool.acquire_timeout(3 * SECOND).await.unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 3);
    let source = std::error::Error::source(&error).expect("the cause");
    assert_eq!(source.to_string(), "scripted connect error");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_check, metrics.counts.vacant), (4, 4));

    manager.connect.calm();
    drop(pool.acquire().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_slow_check_in_one_acquire_does_not_hold_up_another() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 2).build_lazy().unwrap();
    used(&pool, 2).await;
    manager.check.once(Act::Gated);
    let mut slow = Box::pin(pool.acquire());
    assert!(poll_once(slow.as_mut()).is_pending());
    assert_eq!(pool.metrics().counts.checking, 1);

    let began = Instant::now();
    for _ in 0..3 {
        drop(pool.acquire().await.unwrap());
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(manager.connect.calls(), 2);
    assert!(poll_once(slow.as_mut()).is_pending());
    manager.check.open(1);
    drop(slow.await.unwrap());
    assert_eq!(balanced(&pool, &manager.ledger).await.closed.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_being_checked_is_replaced_for_a_waiter_if_there_is_room() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 2).build_lazy().unwrap();
    used(&pool, 1).await;
    manager.check.once(Act::Gated);
    let mut slow = Box::pin(pool.acquire());
    assert!(poll_once(slow.as_mut()).is_pending());
    assert_eq!(pool.acquire().await.unwrap().id, 2);
    manager.check.open(1);
    assert_eq!(slow.await.unwrap().id, 1);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn try_acquire_sends_an_unchecked_connection_to_its_check_and_answers_empty() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 1).build_lazy().unwrap();
    used(&pool, 1).await;
    manager.check.once(Act::Gated);
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
    eventually("it is being checked", || manager.check.running() == 1).await;
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
    assert_eq!(pool.metrics().counts.checking, 1);
    manager.check.open(1);
    eventually("it is idle again", || pool.metrics().counts.idle == 1).await;
    assert_eq!(pool.try_acquire().unwrap().id, 1);
    assert_eq!(manager.check.calls(), 1);

    // It has been used, so it needs another check; this one fails.
    manager.check.once(Act::Error);
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_check, metrics.counts.vacant), (1, 1));
    assert_eq!(metrics.acquires, 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_background_check_passes_goes_to_a_waiter_without_another() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 1).build_lazy().unwrap();
    used(&pool, 1).await;
    manager.check.once(Act::Gated);
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
    let mut acquire = Box::pin(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    manager.check.open(1);
    assert_eq!(acquire.await.unwrap().id, 1);
    assert_eq!(manager.check.calls(), 1);
    balanced(&pool, &manager.ledger).await;
}

#[test]
fn try_acquire_outside_a_runtime_has_the_check_done_on_the_pools() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .unwrap();
    let manager = TestManager::new();
    let pool = runtime.block_on(always_checked(&manager, 1).build()).unwrap();
    runtime.block_on(used(&pool, 1));
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
    eventually_blocking("it has been checked", || pool.metrics().counts.idle == 1);
    drop(pool.try_acquire().unwrap());
    assert_eq!(balanced_blocking(&pool, &manager.ledger).created, 1);
    assert_eq!(manager.check.calls(), 1);
}

#[test]
fn where_no_runtime_is_left_to_check_a_connection_it_stays() {
    let runtime = || {
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        builder.enable_time().build().unwrap()
    };
    let manager = TestManager::new();
    let pool = runtime().block_on(async {
        let pool = always_checked(&manager, 2).build().await.unwrap();
        used(&pool, 2).await;
        pool
    });
    assert_eq!(pool.try_acquire().unwrap_err(), TryAcquireError::Empty);
    let refused = join(std::thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_blocking().map(drop)
    }));
    assert!(matches!(refused, Err(AcquireError::NoRuntime)), "{refused:?}");
    assert_eq!((pool.counts().idle, manager.ledger.live()), (2, 2));
    runtime().block_on(used(&pool, 2));
    assert_eq!((manager.check.calls(), manager.connect.calls()), (2, 2));
    balanced_blocking(&pool, &manager.ledger);
}

#[tokio::test]
async fn a_blocking_acquire_has_its_connection_checked_on_the_pools_runtime() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 1).build_lazy().unwrap();
    used(&pool, 1).await;
    on_a_thread({
        let pool = pool.clone();
        move || {
            for _ in 0..10 {
                drop(pool.acquire_blocking().unwrap());
            }
        }
    })
    .await;
    assert_eq!(manager.check.calls(), 10);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.created, metrics.acquires), (1, 11));
}

#[tokio::test]
async fn a_blocking_acquire_whose_check_fails_goes_on_to_a_new_connection() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 2).build_lazy().unwrap();
    used(&pool, 2).await;
    manager.check.once(Act::Error);
    manager.check.once(Act::Panic);
    hush_scripted_panics();
    on_a_thread({
        let pool = pool.clone();
        move || drop(pool.acquire_blocking().unwrap())
    })
    .await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!(metrics.acquires, 3);
    assert_eq!(metrics.closed.failed_check, metrics.closed.total());
}

#[tokio::test(start_paused = true)]
async fn the_policy_never_checks_nothing_however_often_the_reaper_looks() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(4).check(CheckPolicy::Never);
    let pool = pool.leak_after(5 * SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    for seconds in 0..60 {
        for _ in 0..1_000 {
            drop(pool.acquire().await.unwrap());
        }
        // Hits never yield, so only now can the reaper look. At last it finds an idle connection.
        sleep(if seconds < 50 { SECOND } else { 10 * SECOND }).await;
    }
    assert_eq!(pool.metrics().leaks, 1, "it has looked");
    drop(held);
    assert_eq!((manager.check.calls(), manager.connect.calls()), (0, 2));
    assert_eq!((manager.reset.calls(), manager.close.calls()), (0, 0));
    assert_eq!(balanced(&pool, &manager.ledger).await.acquires, 60_001);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_is_served_although_the_connection_before_it_failed_its_check() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.check.once(Act::Error);
    let tasks: Vec<_> = (0..3)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.acquire().await.map(|guard| guard.id) })
        })
        .collect();
    eventually("all wait", || pool.metrics().counts.waiters == 3).await;
    drop(held);
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), 2);
    }
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_check, metrics.created), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_crowd_of_dead_connections_costs_an_acquire_one_check_timeout() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 8).check_timeout(SECOND / 4).build_lazy().unwrap();
    used(&pool, 8).await;
    manager.check.always(Act::Never);
    manager.connect.always(Act::Slow(SECOND / 4));
    let began = Instant::now();
    let conn = pool.acquire_timeout(SECOND).await.unwrap();
    assert_eq!((conn.id, began.elapsed()), (9, SECOND / 2), "a check, and a connect");
    drop(conn);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_check, metrics.checks), (8, 8));
}

#[tokio::test]
async fn a_crowd_of_dead_connections_costs_a_blocking_acquire_one_check_timeout() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 8).check_timeout(SECOND / 2).build_lazy().unwrap();
    used(&pool, 8).await;
    manager.check.always(Act::Never);
    manager.connect.always(Act::Gated);
    let blocked = std::thread::spawn({
        let pool = pool.clone();
        move || pool.acquire_blocking_timeout(20 * SECOND).unwrap().id
    });
    eventually("all are checked", || manager.check.calls() == 8).await;
    manager.connect.open(1);
    eventually("the thread has ended", || blocked.is_finished()).await;
    assert_eq!(join(blocked), 9);
    assert!(manager.check.most_running() >= 7, "one after the other: {:?}", pool.metrics());
    assert_eq!(balanced(&pool, &manager.ledger).await.closed.failed_check, 8);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_passes_after_another_has_been_silent_goes_to_the_same_acquire() {
    let manager = TestManager::new();
    let pool = always_checked(&manager, 3).build_lazy().unwrap();
    used(&pool, 3).await;
    manager.check.once(Act::Never);
    manager.connect.always(Act::Never);
    let conn = pool.acquire_timeout(2 * SECOND).await.unwrap();
    assert!(conn.id <= 3, "one of those that are well");
    assert_eq!(pool.metrics().closed.failed_check, 1);
}
