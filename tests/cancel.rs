//! Futures that are dropped at every await point, and managers that misbehave at every call.

#![cfg(feature = "tokio")]

mod support;
use support::*;

use millpond::{CheckPolicy, HookFuture, Hooks, Pool, PoolBuilder, PoolMetrics, Priority};
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const DIRTY: Act = Act::Slow(Duration::ZERO);
const BROKEN: Act = Act::Error;

#[tokio::test(start_paused = true)]
async fn an_acquire_dropped_before_its_first_poll_does_nothing() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    drop(pool.acquire());
    drop(pool.acquire_timeout(SECOND));
    drop(pool.acquire_owned());
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((manager.connect.calls(), metrics.acquires, metrics.waits.timed_out), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_the_queue_is_not_served_and_the_next_one_is() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut waiters: Vec<_> = (0..3).map(|_| Box::pin(pool.acquire())).collect();
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    drop(waiters.remove(0));
    assert_eq!(pool.metrics().counts.waiters, 2);
    drop(held);
    let mut second = waiters.remove(0);
    assert!(poll_once(second.as_mut()).is_ready());
    drop(second);
    drop(waiters);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.created, metrics.waits.timed_out), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_slot_handed_to_a_waiter_that_leaves_goes_to_the_next_one() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut first = Box::pin(pool.acquire());
    let mut second = Box::pin(pool.acquire_owned());
    let (wakes, waker) = Wakes::new();
    assert!(poll_with(first.as_mut(), &waker).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    drop(held);
    assert_eq!((wakes.count(), pool.metrics().counts.waiters), (1, 1), "it is on its way");
    drop(first);
    let served = match poll_once(second.as_mut()) {
        std::task::Poll::Ready(served) => served.unwrap(),
        std::task::Poll::Pending => panic!("the wake was swallowed"),
    };
    assert_eq!(served.id, 1);
    drop(served);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.created, metrics.acquires), (1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_reserved_slot_handed_to_a_waiter_that_leaves_goes_to_the_next_of_its_priority() {
    let manager = TestManager::new();
    let builder = Pool::builder(manager.clone()).max_size(2).shards(1);
    let pool = builder.reserved(Priority::High, 1).build_lazy().unwrap();
    let general = pool.acquire().await.unwrap();
    let reserved = pool.acquire_with(Priority::High).await.unwrap();
    let mut normal = Box::pin(pool.acquire());
    let mut first = Box::pin(pool.acquire_with(Priority::High));
    let mut second = Box::pin(pool.acquire_with(Priority::High));
    for waiter in [normal.as_mut() as std::pin::Pin<&mut dyn Future<Output = _>>, first.as_mut()] {
        assert!(poll_once(waiter).is_pending());
    }
    assert!(poll_once(second.as_mut()).is_pending());
    drop(reserved);
    assert_eq!(pool.metrics().counts.waiters, 2, "it is on its way");
    drop(first);
    assert!(poll_once(normal.as_mut()).is_pending(), "it is not for everybody");
    let std::task::Poll::Ready(served) = poll_once(second.as_mut()) else {
        panic!("the wake was swallowed");
    };
    assert_eq!(served.unwrap().id, 2);
    drop(second);
    drop(general);
    assert!(poll_once(normal.as_mut()).is_ready());
    drop(normal);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.created), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn an_out_of_date_connection_on_its_way_to_a_waiter_that_leaves_is_not_handed_on() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut first = Box::pin(pool.acquire());
    let mut second = Box::pin(pool.acquire());
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    drop(held);
    pool.invalidate();
    drop(first);
    assert_eq!(second.await.unwrap().id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.invalidated, metrics.closed.total()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_being_set_up_outlives_the_caller_and_stays_in_the_pool() {
    let manager = TestManager::new();
    let misbehaving = Misbehaving::new(SLOW);
    let hooks = misbehaving.after_connect();
    let pool = Pool::builder(manager.clone()).max_size(1).hooks(hooks).build_lazy().unwrap();
    let mut acquire = Box::pin(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    eventually("it is being set up", || misbehaving.calls() == 1).await;
    drop(acquire);
    let counts = pool.metrics().counts;
    assert_eq!((counts.connecting, counts.waiters), (1, 0));
    assert_eq!(balanced(&pool, &manager.ledger).await.counts.idle, 1);
    assert_eq!(pool.try_acquire().unwrap().id, 1);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_before_acquire_retires_the_connection_and_the_next_waiter_proceeds() {
    let manager = TestManager::new();
    let misbehaving = Misbehaving::new(Act::Never);
    let hooks = misbehaving.before_acquire();
    let pool = Pool::builder(manager.clone()).max_size(1).hooks(hooks).build_lazy().unwrap();
    let mut preparing = Box::pin(pool.acquire());
    assert!(poll_once(preparing.as_mut()).is_pending());
    eventually("the connection is there", || pool.metrics().created == 1).await;
    assert!(poll_once(preparing.as_mut()).is_pending());
    assert_eq!(misbehaving.calls(), 1);
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(preparing);
    assert_eq!(manager.ledger.live(), 0, "nobody knows where the hook has left it");
    assert_eq!(waiter.await.unwrap().id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.abandoned, metrics.closed.total()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_slot_handed_to_the_only_waiter_becomes_idle_when_he_leaves() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut waiter = Box::pin(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(held);
    drop(waiter);
    let counts = pool.metrics().counts;
    assert_eq!((counts.idle, counts.waiters), (1, 0));
    drop(pool.try_acquire().unwrap());
    assert_eq!(balanced(&pool, &manager.ledger).await.acquires, 2);
}

#[tokio::test(start_paused = true)]
async fn an_unchecked_slot_handed_to_a_waiter_that_leaves_is_still_checked() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).check(CheckPolicy::Always);
    let pool = pool.build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut waiter = Box::pin(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(held);
    drop(waiter);
    assert_eq!(manager.check.calls(), 0);
    drop(pool.acquire().await.unwrap());
    assert_eq!(manager.check.calls(), 1);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_dial_outlives_the_caller_and_its_connection_stays_in_the_pool() {
    let manager = TestManager::new();
    manager.connect.once(Act::Gated);
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    let mut acquire = Box::pin(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    eventually("the dial is under way", || manager.connect.running() == 1).await;
    drop(acquire);
    assert_eq!(pool.metrics().counts.waiters, 0);
    assert_eq!(pool.metrics().counts.connecting, 1);
    manager.connect.open(1);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.created, metrics.counts.idle, metrics.acquires), (1, 1, 0));
    assert_eq!(pool.try_acquire().unwrap().id, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dial_for_a_caller_that_left_serves_the_next_one() {
    let manager = TestManager::new();
    manager.connect.once(Act::Gated);
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let mut first = Box::pin(pool.acquire());
    let mut second = Box::pin(pool.acquire());
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    drop(first);
    manager.connect.open(1);
    drop(second.await.unwrap());
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.created, manager.connect.calls()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_check_retires_the_connection_and_the_next_waiter_proceeds() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).check(CheckPolicy::Always);
    let pool = pool.build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Never);
    let mut checking = Box::pin(pool.acquire());
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(checking.as_mut()).is_pending());
    assert_eq!(pool.metrics().counts.checking, 1);
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(checking);
    assert_eq!(manager.ledger.live(), 0, "it is gone at once");
    let fresh = waiter.await.unwrap();
    assert_eq!(fresh.id, 2, "nobody knows where the check has left the first one");
    drop(fresh);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.abandoned, metrics.closed.total()), (1, 1));
    assert_eq!(metrics.acquires, 2);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_reset_retires_the_connection_and_the_next_waiter_proceeds() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Never);
    let mut release = Box::pin(held.release());
    assert!(poll_once(release.as_mut()).is_pending());
    assert_eq!(pool.metrics().counts.resetting, 1);
    drop(release);
    assert_eq!(manager.ledger.live(), 0, "it is gone at once");
    assert_eq!(waiter.await.unwrap().id, 2);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.abandoned, metrics.closed.total()), (1, 1));
    assert_eq!((metrics.resets, manager.condition.calls()), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_release_dropped_before_its_first_poll_is_a_drop() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    drop(pool.acquire().await.unwrap().release());
    assert_eq!(pool.metrics().counts.idle, 1);

    let held = pool.acquire_owned().await.unwrap();
    manager.condition.once(DIRTY);
    drop(held.release());
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.resets, metrics.counts.idle, metrics.created), (1, 1, 1));
    assert_eq!(manager.condition.calls(), 3, "once for each drop, and after the reset");
}

#[tokio::test(start_paused = true)]
async fn a_losing_select_branch_loses_its_place_and_nothing_else() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut before = pin!(pool.acquire());
    assert!(poll_once(before.as_mut()).is_pending());
    for _ in 0..10 {
        tokio::select! {
            biased;
            _ = pool.acquire() => panic!("nothing is idle"),
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(pool.metrics().counts.waiters, 1);
    drop(held);
    drop(before.await.unwrap());

    // Both branches are ready: the one that is not taken gives its connection back.
    let held = pool.acquire().await.unwrap();
    let mut waiter = Box::pin(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(held);
    tokio::select! {
        biased;
        () = std::future::ready(()) => {}
        _ = waiter.as_mut() => panic!("the other branch was first"),
    }
    drop(waiter);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.created, metrics.waits.timed_out), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_build_closes_what_it_has_opened() {
    let manager = TestManager::new();
    manager.connect.once(Act::Ok);
    manager.connect.always(Act::Never);
    let mut build = Box::pin(Pool::builder(manager.clone()).max_size(4).min_idle(4).build());
    for _ in 0..20 {
        assert!(poll_once(build.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(manager.ledger.live(), 4);
    drop(build);
    eventually("all are gone", || manager.ledger.live() == 0).await;
    assert_eq!((manager.ledger.opened(), manager.ledger.dropped()), (1, 1));
}

/// A task that acquires and lets go in every way there is, until it is aborted.
async fn user(pool: Pool<TestManager>, seed: u64) {
    let mut random = Random::new(seed);
    loop {
        let limit = Duration::from_millis(1 + random.below(200) as u64);
        let guard = match random.below(3) {
            0 => pool.acquire_timeout(limit).await.map(Held::Borrowed),
            1 => pool.acquire_owned().await.map(Held::Owned),
            _ => match tokio::time::timeout(limit, pool.acquire()).await {
                Ok(result) => result.map(Held::Borrowed),
                Err(_) => continue,
            },
        };
        let Ok(guard) = guard else { continue };
        tokio::time::sleep(Duration::from_micros(100 * random.below(40) as u64)).await;
        match (guard, random.below(4)) {
            (Held::Borrowed(guard), 0) => drop(guard.release().await),
            (Held::Owned(guard), 0) => drop(guard.release().await),
            (Held::Borrowed(guard), 1) => guard.discard(),
            (guard, _) => drop(guard),
        }
        tokio::task::yield_now().await;
    }
}

enum Held<'p> {
    Borrowed(millpond::Pooled<'p, TestManager>),
    Owned(millpond::PooledOwned<TestManager>),
}

/// Waits until nothing is under way, then asserts that the books balance. A connection that could
/// not be set up was opened, but is none of the pool's.
async fn settled(pool: &Pool<TestManager>, ledger: &Ledger) -> PoolMetrics {
    eventually("nothing is under way", || {
        let counts = pool.counts();
        let busy = counts.connecting + counts.checking + counts.resetting + counts.closing;
        busy + counts.waiters == 0
    })
    .await;
    let metrics = pool.metrics();
    let alive = metrics.counts.alive();
    assert_eq!(metrics.created, metrics.closed.total() + alive as u64, "{metrics:?}");
    assert_eq!(metrics.counts.in_service(), pool.max_size(), "{metrics:?}");
    assert_eq!((ledger.live(), ledger.opened() - ledger.dropped()), (alive, alive), "{ledger:?}");
    metrics
}

/// Eight users, of whom one at random is aborted and replaced again and again; afterwards the
/// server is well again, and exactly `max_size` acquires must succeed.
async fn storm(
    pool: Pool<TestManager>,
    manager: &TestManager,
    calm: impl FnOnce(),
    aborts: usize,
    seed: u64,
) {
    const USERS: usize = 8;
    let max_size = pool.config().max_size;
    let mut random = Random::new(seed);
    let mut start = |index: usize| tokio::spawn(user(pool.clone(), seed * 1000 + index as u64));
    let mut users: Vec<_> = (0..USERS).map(&mut start).collect();
    for abort in 0..aborts {
        tokio::time::sleep(Duration::from_micros(100 * random.below(100) as u64)).await;
        let metrics = pool.metrics();
        assert!(metrics.counts.waiters <= USERS, "{metrics:?}");
        assert!(manager.ledger.most_live() <= max_size, "{:?}", manager.ledger);
        let fresh = start(USERS + abort);
        let old = std::mem::replace(&mut users[random.below(USERS)], fresh);
        old.abort();
        // A panic of a user must not go unseen.
        assert!(old.await.expect_err("it never returns").is_cancelled());
    }
    for user in users {
        user.abort();
        assert!(user.await.expect_err("it never returns").is_cancelled());
    }
    manager.clear();
    calm();
    // Whoever has met trouble and pauses before he tries again is busy with nothing.
    drop(pool.acquire_timeout(60 * SECOND).await.expect("all is well again"));
    settled(&pool, &manager.ledger).await;

    let mut guards = Vec::new();
    for _ in 0..max_size {
        guards.push(pool.acquire_timeout(60 * SECOND).await.expect("all is well again"));
    }
    assert!(pool.try_acquire().is_err());
    assert_eq!(settled(&pool, &manager.ledger).await.counts.in_use, max_size);
    drop(guards);
    let metrics = settled(&pool, &manager.ledger).await;
    assert_eq!(metrics.counts.idle, max_size);
    pool.close().await;
    assert_eq!(settled(&pool, &manager.ledger).await.counts.vacant, max_size);
    assert_eq!(manager.ledger.live(), 0);
}

fn stormy(manager: &TestManager) -> PoolBuilder<TestManager> {
    hush_scripted_panics();
    Pool::builder(manager.clone())
        .max_size(3)
        .check(CheckPolicy::Always)
        .acquire_timeout(Duration::from_millis(300))
        .connect_timeout(Duration::from_millis(20))
        .check_timeout(Duration::from_millis(20))
        .reset_timeout(Duration::from_millis(20))
        .close_timeout(Duration::from_millis(20))
        .backoff(Duration::from_millis(2), Duration::from_millis(10))
}

fn stormy_pool(manager: &TestManager) -> Pool<TestManager> {
    stormy(manager).build_lazy().expect("the settings are in range")
}

/// What each of the methods may do.
const SLOW: Act = Act::Slow(Duration::from_millis(3));
const ACTS: [Act; 5] = [Act::Ok, Act::Error, SLOW, Act::Never, Act::Panic];

/// What becomes of connections in use: every other one is dirty or broken when it comes back.
fn use_up(manager: &TestManager, random: &mut Random) {
    for _ in 0..2000 {
        manager.condition.once([Act::Ok, DIRTY, Act::Ok, BROKEN][random.below(4)]);
    }
}

/// One method does `act` every other time; the rest is well, but each connection is checked, and
/// every other one is dirty or broken, so that each method is called.
async fn storm_with(method: fn(&TestManager) -> &Script, seed: u64) {
    for (index, act) in ACTS.into_iter().enumerate() {
        let manager = TestManager::new();
        let seed = seed + index as u64;
        let mut random = Random::new(seed);
        use_up(&manager, &mut random);
        let script = method(&manager);
        if std::ptr::eq(script, &raw const manager.condition) {
            script.calm();
        }
        for _ in 0..2000 {
            script.once(if random.below(2) == 0 { Act::Ok } else { act });
        }
        storm(stormy_pool(&manager), &manager, || (), 100, seed).await;
        assert!(script.calls() > 10, "{act:?}: {} calls", script.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_leaks_whatever_connect_does_while_callers_are_aborted() {
    storm_with(|manager| &manager.connect, 100).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_leaks_whatever_check_does_while_callers_are_aborted() {
    storm_with(|manager| &manager.check, 200).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_leaks_whatever_reset_does_while_callers_are_aborted() {
    storm_with(|manager| &manager.reset, 300).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_leaks_whatever_condition_answers_while_callers_are_aborted() {
    storm_with(|manager| &manager.condition, 400).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_leaks_whatever_close_does_while_callers_are_aborted() {
    storm_with(|manager| &manager.close, 500).await;
}

/// Hooks that misbehave at every other call, the first included, until they are told not to.
#[derive(Clone)]
struct Misbehaving {
    act: Act,
    calls: Arc<AtomicUsize>,
    calm: Arc<AtomicBool>,
}

impl Misbehaving {
    fn new(act: Act) -> Self {
        Self { act, calls: Arc::default(), calm: Arc::default() }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn calm(&self) {
        self.calm.store(true, Ordering::SeqCst);
    }

    /// A call that misbehaves at once, if it does that at all.
    fn call(&self) -> Act {
        let even = self.calls.fetch_add(1, Ordering::SeqCst) % 2 == 0;
        let act = if even && !self.calm.load(Ordering::SeqCst) { self.act } else { Act::Ok };
        assert!(act != Act::Panic, "scripted panic in a hook");
        act
    }

    /// A call that takes its time.
    async fn run(self) -> Result<(), TestError> {
        match self.call() {
            Act::Slow(time) => tokio::time::sleep(time).await,
            Act::Never => pending().await,
            Act::Ok => {}
            _ => return Err(TestError { what: "hook", permanent: false }),
        }
        Ok(())
    }

    fn after_connect(&self) -> Hooks<TestManager> {
        let hook = self.clone();
        Hooks::new().after_connect(move |_| -> HookFuture<'_, _> { Box::pin(hook.clone().run()) })
    }

    fn before_acquire(&self) -> Hooks<TestManager> {
        let hook = self.clone();
        Hooks::new().before_acquire(move |_| -> HookFuture<'_, _> { Box::pin(hook.clone().run()) })
    }
}

/// One of the hooks misbehaves; otherwise as [`storm_with`].
async fn storm_with_hooks(acts: &[Act], set: fn(Misbehaving) -> Hooks<TestManager>, seed: u64) {
    for (index, act) in acts.iter().enumerate() {
        let manager = TestManager::new();
        let seed = seed + index as u64;
        use_up(&manager, &mut Random::new(seed));
        let misbehaving = Misbehaving::new(*act);
        let builder = stormy(&manager).hooks(set(misbehaving.clone()));
        let pool = builder.build_lazy().expect("the settings are in range");
        storm(pool, &manager, || misbehaving.calm(), 100, seed).await;
        assert!(misbehaving.calls() > 10, "{act:?}: {} calls", misbehaving.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_leaks_whatever_after_connect_does_while_callers_are_aborted() {
    storm_with_hooks(&ACTS, |hook| hook.after_connect(), 600).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_leaks_whatever_before_acquire_does_while_callers_are_aborted() {
    storm_with_hooks(&ACTS, |hook| hook.before_acquire(), 700).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_leaks_when_hooks_panic_while_callers_are_aborted() {
    /// Calls the hook, whose answer, other than a panic, means nothing here.
    fn call(hook: &Misbehaving) {
        hook.call();
    }
    let panic = [Act::Panic];
    let set = |hook: Misbehaving| Hooks::new().on_create(move |_| call(&hook));
    storm_with_hooks(&panic, set, 800).await;
    let set = |hook: Misbehaving| Hooks::new().on_checkout(move |_| call(&hook));
    storm_with_hooks(&panic, set, 810).await;
    let set = |hook: Misbehaving| Hooks::new().on_checkin(move |_| call(&hook));
    storm_with_hooks(&panic, set, 820).await;
    let set = |hook: Misbehaving| Hooks::new().after_release(move || call(&hook));
    storm_with_hooks(&panic, set, 830).await;
    let set = |hook: Misbehaving| Hooks::new().on_destroy(move || call(&hook));
    storm_with_hooks(&panic, set, 840).await;
}

/// Everything at once, each call with a random outcome.
fn wild(manager: &TestManager, seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..4000 {
        let mut act = || ACTS[random.below(ACTS.len())];
        manager.connect.once(act());
        manager.check.once(act());
        manager.reset.once(act());
        manager.close.once(act());
        manager.condition.once(act());
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_leaks_when_everything_misbehaves_at_once() {
    for seed in 0..20 {
        let manager = TestManager::new();
        wild(&manager, seed);
        storm(stormy_pool(&manager), &manager, || (), 100, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_leaks_when_everything_misbehaves_on_several_threads() {
    for seed in 0..3 {
        let manager = TestManager::new();
        wild(&manager, seed);
        let most = Arc::clone(&manager.ledger);
        let sampler = Sampler::start(move || assert!(most.live() <= 3, "{most:?}"));
        storm(stormy_pool(&manager), &manager, || (), 100, seed).await;
        assert!(sampler.stop() > 0);
    }
}
