//! Panics in user code: in each of the manager's methods, in what an operator or the reaper calls, in
//! the connection's own drop, and in whoever holds a connection. Those of the other hooks are in
//! `hooks.rs`.

#![cfg(feature = "tokio")]

mod support;
use support::*;

use millpond::{
    AcquireError, CheckPolicy, Condition, HookFuture, Hooks, Manager, Object, ObjectPool,
    OperationError, OwnedObject, Pool, PoolBuilder, PoolMetrics, Pooled, PooledOwned, ReleaseError,
    WeakObjectPool, WeakPool, blocking,
};
use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, pending};
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind, panic_any};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const DIRTY: Act = Act::Slow(Duration::ZERO);

fn pool_of(manager: &TestManager) -> PoolBuilder<TestManager> {
    hush_scripted_panics();
    Pool::builder(manager.clone()).max_size(1)
}

/// The connection in use is let go of by `let_go` while somebody waits, who must be served with a
/// new one; answers with the figures after that.
async fn waiter_is_served_after<F: Future<Output = ()>>(
    pool: &Pool<TestManager>,
    manager: &TestManager,
    let_go: impl FnOnce(millpond::PooledOwned<TestManager>) -> F,
) -> PoolMetrics {
    let held = pool.acquire_owned().await.expect("the server is well");
    let before = held.id;
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    let_go(held).await;
    let served = waiter.await.expect("the server is well");
    assert_eq!(served.id, before + 1, "a new connection");
    drop(served);
    // The pool goes on.
    drop(pool.acquire().await.expect("the server is well"));
    balanced(pool, &manager.ledger).await
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_connect_costs_one_attempt() {
    let manager = TestManager::new();
    manager.connect.once(Act::Panic);
    let pool = pool_of(&manager).build_lazy().unwrap();
    let mut waiters: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    for waiter in waiters {
        drop(waiter.await.unwrap());
    }
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.connect_failures, metrics.created, metrics.acquires), (1, 1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_tells_that_connect_panics_and_with_what_words() {
    let manager = TestManager::new();
    manager.connect.always(Act::Panic);
    let pool = pool_of(&manager).build_lazy().unwrap();
    let error = pool.acquire_timeout(SECOND).await.unwrap_err();
    let source = error.source().expect("the cause");
    assert_eq!(source.to_string(), "panicked: scripted panic in connect");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.created, metrics.counts.vacant, metrics.waits.timed_out), (0, 1, 1));
    assert_eq!(metrics.connect_failures, manager.connect.calls() as u64);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_connect_surfaces_in_build() {
    let manager = TestManager::new();
    manager.connect.once(Act::Panic);
    let error = pool_of(&manager).min_idle(1).build().await.unwrap_err();
    let source = error.source().expect("the cause");
    assert_eq!(source.to_string(), "panicked: scripted panic in connect");
    assert_eq!(manager.ledger.live(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_check_retires_the_connection_and_the_acquire_goes_on() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).check(CheckPolicy::Always).build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Panic);
    assert_eq!(pool.acquire().await.unwrap().id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_check, metrics.closed.total()), (1, 1));
    assert_eq!(manager.ledger.closed(), 1);
}

/// Its checks never end, and panic when they are dropped.
struct Clingy;

struct Clings;

impl Drop for Clings {
    fn drop(&mut self) {
        panic!("scripted panic in the drop of a check");
    }
}

impl Manager for Clingy {
    type Connection = ();
    type Error = Infallible;

    async fn connect(&self) -> Result<(), Infallible> {
        Ok(())
    }

    async fn check(&self, (): &mut ()) -> Result<(), Infallible> {
        let _clings = Clings;
        pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_a_check_is_given_up_goes_no_further() {
    hush_scripted_panics();
    let pool = Pool::builder(Clingy).max_size(1).check(CheckPolicy::Always);
    let pool = pool.build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    {
        let mut cancelled = pin!(pool.acquire());
        assert!(poll_once(cancelled.as_mut()).is_pending());
        assert_eq!(pool.counts().checking, 1);
    }
    assert_eq!(pool.metrics().closed.abandoned, 1);
    // And where it is the check that takes too long.
    drop(pool.acquire().await.unwrap());
    drop(pool.acquire().await.unwrap());
    assert_eq!(pool.metrics().closed.failed_check, 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_background_check_retires_the_connection_and_wakes_a_waiter() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).check(CheckPolicy::Always).build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Panic);
    assert!(pool.try_acquire().is_err());
    assert_eq!(pool.acquire().await.unwrap().id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_check, metrics.closed.total()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_reset_retires_the_connection_and_wakes_a_waiter() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).build_lazy().unwrap();
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Panic);
    let metrics = waiter_is_served_after(&pool, &manager, async |held| drop(held)).await;
    assert_eq!((metrics.closed.failed_reset, metrics.closed.total()), (1, 1));
    assert_eq!((metrics.resets, manager.ledger.closed()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn release_reports_a_panic_in_reset_and_a_waiter_is_served() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).build_lazy().unwrap();
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Panic);
    let metrics =
        waiter_is_served_after(&pool, &manager, async |held| match held.release().await {
            Err(ReleaseError::Reset(OperationError::Panicked { message })) => {
                assert_eq!(message, "scripted panic in reset");
            }
            other => panic!("{other:?}"),
        })
        .await;
    assert_eq!((metrics.closed.failed_reset, metrics.closed.total()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_condition_counts_as_broken_and_does_not_reach_the_holder() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).build_lazy().unwrap();
    manager.condition.once(Act::Panic);
    let metrics = waiter_is_served_after(&pool, &manager, async |held| drop(held)).await;
    assert_eq!((metrics.closed.broken, metrics.closed.total()), (1, 1));

    manager.condition.once(Act::Panic);
    let released = pool.acquire().await.unwrap().release().await;
    assert!(matches!(released, Err(ReleaseError::Broken)), "{released:?}");
    assert_eq!(balanced(&pool, &manager.ledger).await.closed.broken, 2);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_close_frees_the_slot_and_wakes_a_waiter() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).build_lazy().unwrap();
    manager.close.once(Act::Panic);
    let metrics = waiter_is_served_after(&pool, &manager, async |held| held.discard()).await;
    assert_eq!((metrics.closed.discarded, metrics.closed.total()), (1, 1));

    manager.close.once(Act::Panic);
    pool.close().await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.pool_closed, metrics.counts.vacant), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_panics_has_his_connection_closed_and_a_waiter_gets_a_new_one() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).build_lazy().unwrap();
    let metrics = waiter_is_served_after(&pool, &manager, async |held| {
        let task = tokio::spawn(async move {
            let _held = held;
            panic!("scripted panic of a holder");
        });
        assert!(task.await.unwrap_err().is_panic());
    })
    .await;
    assert_eq!((metrics.closed.holder_panicked, metrics.closed.total()), (1, 1));
    assert_eq!(manager.ledger.closed(), 1);
    assert_eq!(manager.condition.calls(), 2, "the manager is not asked while a thread unwinds");
}

#[tokio::test(start_paused = true)]
async fn a_borrowed_guard_dropped_while_unwinding_is_never_handed_on() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).check(CheckPolicy::Always).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _held = held;
        panic!("scripted panic of a holder");
    }));
    assert!(unwound.is_err());
    assert!(pool.try_acquire().is_err());
    assert_eq!(pool.metrics().counts.idle, 0);
    assert_eq!(pool.acquire().await.unwrap().id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.holder_panicked, metrics.closed.total()), (1, 1));
}

#[tokio::test]
async fn a_holder_that_panics_on_a_plain_thread_has_his_connection_closed() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).build_lazy().unwrap();
    let metrics = waiter_is_served_after(&pool, &manager, async |held| {
        let thread = std::thread::spawn(move || {
            let _held = held;
            panic!("scripted panic of a holder");
        });
        eventually("the thread has ended", || thread.is_finished()).await;
        assert!(thread.join().is_err());
    })
    .await;
    assert_eq!((metrics.closed.holder_panicked, metrics.closed.total()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_outlives_a_caught_panic_is_returned_as_usual() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    assert!(catch_unwind(|| panic!("scripted panic of somebody else")).is_err());
    drop(held);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.total(), metrics.counts.idle), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_panics_passes_on_the_slot_that_was_handed_to_it() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut first = Box::pin(pool.acquire());
    let mut second = Box::pin(pool.acquire());
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    drop(held);
    let unwound = catch_unwind(AssertUnwindSafe(move || {
        let _first = first;
        panic!("scripted panic of a waiter");
    }));
    assert!(unwound.is_err());
    let Poll::Ready(served) = poll_once(second.as_mut()) else {
        panic!("the slot was lost");
    };
    assert_eq!(served.unwrap().id, 1, "nobody had touched it");
    drop(second);
    assert_eq!(balanced(&pool, &manager.ledger).await.closed.total(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_guard_dropped_while_unwinding_is_closed_for_that_reason_even_if_it_is_out_of_date() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).build_lazy().unwrap();
    let metrics = waiter_is_served_after(&pool, &manager, async |held| {
        pool.invalidate();
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let _held = held;
            panic!("scripted panic of a holder");
        }));
        assert!(unwound.is_err());
    })
    .await;
    assert_eq!((metrics.closed.holder_panicked, metrics.closed.total()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_retains_closure_frees_the_slot_and_wakes_a_waiter() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    let mut waiter = pin!(pool.acquire());
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        pool.retain(|_, _| {
            assert!(poll_once(waiter.as_mut()).is_pending(), "the only one is being looked at");
            panic!("scripted panic in retain");
        })
    }));
    assert!(unwound.is_err(), "it is the caller's own");
    assert_eq!(waiter.await.unwrap().id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.abandoned, metrics.closed.total()), (1, 1));
    assert_eq!(pool.retain(|_, _| true), 0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_on_leak_keeps_neither_other_leaks_nor_the_next_look_back() {
    let manager = TestManager::new();
    let told = Arc::new(AtomicUsize::new(0));
    let hooks = Hooks::new().on_leak({
        let told = told.clone();
        move |_| {
            told.fetch_add(1, Ordering::SeqCst);
            panic!("scripted panic in on_leak");
        }
    });
    let pool = pool_of(&manager).max_size(3).leak_after(SECOND).hooks(hooks);
    let pool = pool.min_idle(1).build().await.unwrap();
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    eventually("both are reported", || told.load(Ordering::SeqCst) == 2).await;
    drop(held);
    eventually("both have come back late", || told.load(Ordering::SeqCst) == 4).await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.leaks, metrics.late_returns, metrics.closed.total()), (2, 2, 0));
}

/// A connection that can panic when it is dropped.
#[derive(Debug)]
struct Bomb {
    conn: Conn,
    armed: bool,
}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.armed, "scripted panic in drop");
    }
}

/// A [`TestManager`] whose connections are bombs, and that panics where that one cannot.
struct Explosive {
    calm: TestManager,
    /// Panic in `is_permanent`.
    judge: AtomicBool,
    /// How often that was asked.
    judged: AtomicUsize,
    /// Panic in `connect` before there is a future.
    eager: AtomicBool,
    /// Panic in `condition` once, and again where what that has left is dropped.
    bitter: AtomicBool,
    /// Never finish closing.
    hang: AtomicBool,
}

fn explosive(manager: &TestManager) -> PoolBuilder<Explosive> {
    hush_scripted_panics();
    Pool::builder(Explosive {
        calm: manager.clone(),
        judge: AtomicBool::new(false),
        judged: AtomicUsize::new(0),
        eager: AtomicBool::new(false),
        bitter: AtomicBool::new(false),
        hang: AtomicBool::new(false),
    })
    .max_size(1)
}

impl Manager for Explosive {
    type Connection = Bomb;
    type Error = TestError;

    fn connect(&self) -> impl Future<Output = Result<Bomb, TestError>> + Send {
        assert!(!self.eager.swap(false, Ordering::SeqCst), "scripted panic before connect");
        async { self.calm.connect().await.map(|conn| Bomb { conn, armed: false }) }
    }

    fn condition(&self, bomb: &mut Bomb) -> Condition {
        if self.bitter.swap(false, Ordering::SeqCst) {
            panic_any(Fuse);
        }
        self.calm.condition(&mut bomb.conn)
    }

    async fn check(&self, bomb: &mut Bomb) -> Result<(), TestError> {
        self.calm.check(&mut bomb.conn).await
    }

    async fn reset(&self, bomb: &mut Bomb) -> Result<(), TestError> {
        self.calm.reset(&mut bomb.conn).await
    }

    async fn close(&self, bomb: Bomb) {
        if self.hang.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
        drop(bomb);
    }

    fn is_permanent(&self, error: &TestError) -> bool {
        self.judged.fetch_add(1, Ordering::SeqCst);
        assert!(!self.judge.load(Ordering::SeqCst), "scripted panic in is_permanent");
        error.permanent
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_is_permanent_counts_as_not_permanent() {
    let manager = TestManager::new();
    let pool = explosive(&manager).build_lazy().unwrap();
    pool.manager().judge.store(true, Ordering::SeqCst);
    manager.connect.once(Act::Permanent);
    drop(pool.acquire().await.unwrap());
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.connect_failures, metrics.created), (1, 1));
    assert_eq!(pool.manager().judged.load(Ordering::SeqCst), 1);

    pool.manager().judge.store(false, Ordering::SeqCst);
    manager.connect.once(Act::Permanent);
    pool.acquire().await.unwrap().discard();
    assert!(matches!(pool.acquire().await, Err(AcquireError::Connect(_))));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_condition_that_leaves_another_one_behind_keeps_no_slot() {
    let manager = TestManager::new();
    let pool = explosive(&manager).build_lazy().unwrap();
    pool.manager().bitter.store(true, Ordering::SeqCst);
    drop(pool.acquire().await.unwrap());
    assert_eq!(pool.acquire().await.unwrap().conn.id, 2);
    assert_eq!(balanced(&pool, &manager.ledger).await.closed.broken, 1);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_connect_before_there_is_a_future_costs_one_attempt() {
    let manager = TestManager::new();
    let pool = explosive(&manager).build_lazy().unwrap();
    pool.manager().eager.store(true, Ordering::SeqCst);
    drop(pool.acquire().await.unwrap());
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.connect_failures, metrics.created), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_discarded_connections_drop_frees_the_slot_and_wakes_a_waiter() {
    let manager = TestManager::new();
    let pool = explosive(&manager).build_lazy().unwrap();
    let mut held = pool.acquire().await.unwrap();
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    held.armed = true;
    held.discard();
    assert_eq!(waiter.await.unwrap().conn.id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.discarded, metrics.closed.total()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_drop_of_a_connection_whose_close_hangs_frees_the_slot() {
    let manager = TestManager::new();
    let pool = explosive(&manager).build_lazy().unwrap();
    let mut held = pool.acquire().await.unwrap();
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    held.armed = true;
    pool.manager().hang.store(true, Ordering::SeqCst);
    held.discard();
    assert_eq!(waiter.await.unwrap().conn.id, 2);
    pool.manager().hang.store(false, Ordering::SeqCst);
    pool.close().await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.discarded, metrics.closed.pool_closed), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_drop_of_a_connection_whose_check_was_cancelled_frees_the_slot() {
    let manager = TestManager::new();
    let pool = explosive(&manager).check(CheckPolicy::Always).build_lazy().unwrap();
    let mut held = pool.acquire().await.unwrap();
    held.armed = true;
    drop(held);
    manager.check.once(Act::Never);
    let mut checking = Box::pin(pool.acquire());
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(checking.as_mut()).is_pending());
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(checking);
    assert_eq!(waiter.await.unwrap().conn.id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.abandoned, metrics.closed.total()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_an_idle_connections_drop_does_not_keep_the_pool_from_closing() {
    let manager = TestManager::new();
    let pool = explosive(&manager).max_size(4).min_idle(4).build().await.unwrap();
    for _ in 0..4 {
        let mut guards = Vec::new();
        for _ in 0..4 {
            let mut guard = pool.acquire().await.unwrap();
            guard.armed = guard.conn.id % 2 == 0;
            guards.push(guard);
        }
    }
    pool.close().await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.pool_closed, metrics.counts.vacant), (4, 4));
}

/// A pool with one connection in use, whose runtime has ended while a dial was under way.
fn without_a_runtime(
    manager: &TestManager,
) -> (Arc<Pool<Explosive>>, millpond::PooledOwned<Explosive>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let pool = runtime.block_on(async { explosive(manager).max_size(2).build_lazy() });
    let pool = pool.expect("the settings are in range");
    let held = runtime.block_on(pool.acquire_owned()).expect("the server is well");
    manager.connect.once(Act::Never);
    runtime.block_on(async {
        let mut waiter = pin!(pool.acquire());
        assert!(poll_once(waiter.as_mut()).is_pending());
        eventually("a dial is under way", || manager.connect.running() == 1).await;
    });
    drop(runtime);
    assert_eq!(manager.connect.running(), 0);
    (Arc::new(pool), held)
}

#[test]
fn a_panic_in_a_connections_drop_does_not_reach_its_holder_where_no_runtime_is_left() {
    let manager = TestManager::new();
    let (pool, mut held) = without_a_runtime(&manager);
    held.armed = true;
    manager.condition.once(Act::Error);
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(held)));
    assert!(dropped.is_ok(), "dropping a guard never panics");
    let metrics = balanced_blocking(&pool, &manager.ledger);
    assert_eq!((metrics.closed.broken, metrics.counts.vacant), (1, 2));
}

/// Panics when it is dropped.
struct Fuse;

impl Drop for Fuse {
    fn drop(&mut self) {
        panic!("scripted: a connect that panics while it is dropped");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_panics_while_it_is_dropped_fails_the_build() {
    hush_scripted_panics();
    let manager = millpond::from_fn(|| async {
        let _fuse = Fuse;
        std::future::pending::<Result<(), std::convert::Infallible>>().await
    });
    let built = Pool::builder(manager).min_idle(1).build().await;
    assert!(matches!(built, Err(millpond::BuildError::Connect(_))), "{built:?}");
}

/// Each way in which the pool itself ends an idle connection.
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_drop_of_a_connection_that_the_pool_ends_by_itself_frees_the_slot() {
    type End = fn(&Pool<Explosive>);
    let ends: [(&str, End); 5] = [
        ("lifetime", |_| ()),
        ("invalidated", |pool| pool.invalidate()),
        ("removed", |pool| assert_eq!(pool.retain(|_, _| false), 1)),
        ("surplus", |pool| {
            pool.resize(1).unwrap();
            pool.resize(2).unwrap();
        }),
        ("failed check", |pool| {
            pool.manager().calm.check.once(Act::Error);
            assert!(pool.try_acquire().is_err());
        }),
    ];
    for (what, end) in ends {
        let manager = TestManager::new();
        let checks = if what == "failed check" { CheckPolicy::Always } else { CheckPolicy::Never };
        let lifetime = (what == "lifetime").then_some(SECOND);
        let builder = explosive(&manager).max_size(2).max_lifetime(lifetime).check(checks);
        let pool = builder.keepalive_interval(None).build_lazy().unwrap();
        let _other = pool.acquire().await.unwrap();
        let mut held = pool.acquire().await.unwrap();
        held.armed = true;
        drop(held);
        end(&pool);
        eventually(what, || manager.ledger.dropped() == 1).await;
        let fresh = pool.acquire().await.unwrap();
        assert_eq!(fresh.conn.id, 3, "{what}");
        assert_eq!(balanced(&pool, &manager.ledger).await.closed.total(), 1, "{what}");
        drop(fresh);
    }
}

/// How many tasks there are at the moment.
fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Every connection is opened in vain: its connect hangs, or it cannot be set up, and then it panics
/// when it is dropped.
async fn costs_attempts_and_no_more(pool: Pool<impl Manager>) {
    hush_scripted_panics();
    assert!(pool.acquire_timeout(SECOND).await.is_err());
    let before = (tasks(), pool.metrics().connect_failures);
    assert!(pool.acquire_timeout(10 * SECOND).await.is_err());
    let metrics = pool.metrics();
    assert!(metrics.connect_failures > before.1 + 5, "{metrics:?}");
    assert_eq!((metrics.created, metrics.counts.waiters), (0, 0));
    // Neither has the pool taken its runtime for ended.
    assert!(tasks() <= before.0, "{} tasks, and {} before", tasks(), before.0);
    pool.close().await;
    // It does not wait for a dial that it has ended.
    eventually("none is under way", || pool.metrics().counts.vacant == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_panics_while_it_is_dropped_costs_one_attempt() {
    let manager = millpond::from_fn(|| async {
        let _fuse = Fuse;
        pending::<Result<(), std::convert::Infallible>>().await
    });
    let pool = Pool::builder(manager).max_size(2).connect_timeout(SECOND / 10);
    costs_attempts_and_no_more(pool.build_lazy().unwrap()).await;
}

/// Panics when it is told.
#[derive(Debug)]
struct Untold;

impl std::fmt::Display for Untold {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("scripted");
    }
}

impl std::error::Error for Untold {}

#[tokio::test(start_paused = true)]
async fn an_error_that_panics_when_it_is_told_costs_one_attempt() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let manager = millpond::from_fn({
        let attempts = attempts.clone();
        move || {
            let attempts = attempts.fetch_add(1, Ordering::SeqCst);
            async move {
                // Without pauses between them there is no end to them.
                if attempts > 1000 {
                    pending::<()>().await;
                }
                Err::<(), _>(Untold)
            }
        }
    });
    let pool = Pool::builder(manager).max_size(2).build_lazy().unwrap();
    costs_attempts_and_no_more(pool.clone()).await;
    assert!(attempts.load(Ordering::SeqCst) < 1000);
    let said = pool.metrics().last_connect_error.unwrap().message;
    assert!(said.ends_with("panicked while it was told: scripted"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_cannot_be_set_up_and_panics_while_it_is_dropped_costs_one_attempt() {
    let manager = TestManager::new();
    let hooks = Hooks::new().after_connect(|bomb: &mut Bomb| -> HookFuture<'_, TestError> {
        bomb.armed = true;
        Box::pin(async { Err(TestError { what: "set-up", permanent: false }) })
    });
    let pool = explosive(&manager).max_size(2).close_timeout(SECOND / 10).hooks(hooks);
    let pool = pool.build_lazy().unwrap();
    pool.manager().hang.store(true, Ordering::SeqCst);
    costs_attempts_and_no_more(pool).await;
    assert_eq!(manager.ledger.live(), 0);
}

/// It has whatever a manager may have, and is not unwind-safe itself.
struct Closures {
    _any: TestConnection,
}

impl Manager for Closures {
    type Connection = TestConnection;
    type Error = Infallible;

    async fn connect(&self) -> Result<TestConnection, Infallible> {
        Ok(Box::new(|| {}))
    }

    async fn check(&self, _: &mut TestConnection) -> Result<(), Infallible> {
        Ok(())
    }
}

type TestConnection = Box<dyn Fn() + Send + Sync>;

fn may_be_used_across_a_panic<T: UnwindSafe + RefUnwindSafe>() {}

fn may_be_dropped_by_a_panic<T: UnwindSafe>() {}

#[test]
fn handles_may_be_used_across_a_panic_and_guards_be_dropped_by_one() {
    may_be_used_across_a_panic::<Pool<Closures>>();
    may_be_used_across_a_panic::<WeakPool<Closures>>();
    may_be_used_across_a_panic::<blocking::Pool<Closures>>();
    may_be_used_across_a_panic::<blocking::WeakPool<Closures>>();
    may_be_used_across_a_panic::<ObjectPool<TestConnection>>();
    may_be_used_across_a_panic::<WeakObjectPool<TestConnection>>();
    may_be_dropped_by_a_panic::<Pooled<'_, Closures>>();
    may_be_dropped_by_a_panic::<PooledOwned<Closures>>();
    may_be_dropped_by_a_panic::<Object<'_, TestConnection>>();
    may_be_dropped_by_a_panic::<OwnedObject<TestConnection>>();
    // A guard that outlives the panic is as good as its connection.
    may_be_used_across_a_panic::<Pooled<'_, TestManager>>();
    may_be_used_across_a_panic::<PooledOwned<TestManager>>();
    may_be_used_across_a_panic::<Object<'_, String>>();
    may_be_used_across_a_panic::<OwnedObject<String>>();
}

#[cfg(feature = "cluster")]
#[test]
fn a_clusters_handles_may_be_used_across_a_panic_and_its_guards_be_dropped_by_one() {
    use millpond::cluster::{Cluster, ClusterGuard, NodeHandle, WeakCluster};
    may_be_used_across_a_panic::<Cluster<String, Closures>>();
    may_be_used_across_a_panic::<WeakCluster<String, Closures>>();
    may_be_used_across_a_panic::<NodeHandle<String, Closures>>();
    may_be_dropped_by_a_panic::<ClusterGuard<'_, String, Closures>>();
    may_be_used_across_a_panic::<ClusterGuard<'_, String, TestManager>>();
}

#[test]
fn a_thread_that_panics_beside_a_pool_is_caught_without_more_ado() {
    let manager = TestManager::new();
    let pool = pool_of(&manager).build_blocking().unwrap();
    let caught = catch_unwind(|| {
        let _held = pool.acquire().unwrap();
        panic!("scripted in a holder");
    });
    assert!(caught.is_err());
    assert_eq!(pool.acquire().unwrap().id, 2, "nobody knows how the first was left");
}
