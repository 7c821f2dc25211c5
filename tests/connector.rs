//! The connector: who connects, how many at once, and what becomes of failures.

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::{
    AcquireError, ConnectError, Health, OperationError, Pool, Pooled, Priority, Stage, WarmUpError,
};
use std::error::Error;
use std::future::{Future, ready};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::Wake;
use std::thread;
use std::time::Duration;
use tokio::time::{Instant, timeout};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

type Acquired<'p> = Result<Pooled<'p, TestManager>, AcquireError<TestError>>;
type Acquire<'p> = Pin<Box<dyn Future<Output = Acquired<'p>> + Send + 'p>>;

/// So many acquires that wait in line, without a deadline to speak of.
fn waiting(pool: &Pool<TestManager>, count: usize) -> Vec<Acquire<'_>> {
    let before = pool.metrics().counts.waiters;
    let mut acquires: Vec<Acquire<'_>> = Vec::new();
    for _ in 0..count {
        let mut acquire: Acquire<'_> = Box::pin(pool.acquire_timeout(Duration::MAX));
        assert!(poll_once(acquire.as_mut()).is_pending());
        acquires.push(acquire);
    }
    assert_eq!(pool.metrics().counts.waiters, before + count);
    acquires
}

/// Lets all other tasks run until they have nothing to do; the clock stands still.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[track_caller]
fn assert_refused(result: Acquired<'_>) -> Arc<ConnectError<TestError>> {
    match result {
        Err(AcquireError::Connect(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_ends_every_waiter_after_one_attempt() {
    let manager = TestManager::new();
    manager.connect.always(Act::Permanent);
    let pool = Pool::builder(manager.clone()).max_size(8).build_lazy().unwrap();
    let began = Instant::now();
    let acquires = waiting(&pool, 8);
    for acquire in acquires {
        let error = assert_refused(acquire.await);
        assert!(matches!(&error.error, OperationError::Failed(error) if error.permanent));
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "told at once");
    settle().await;
    assert_eq!(manager.connect.calls(), 1, "one attempt for all of them");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.connect_failures, metrics.waits.timed_out, metrics.created), (1, 0, 0));
}

/// Acquires that wait, two by each of some threads, and the order in which they are woken.
#[derive(Default)]
struct Crowd {
    waiters: Mutex<Vec<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    woken: Mutex<Vec<usize>>,
}

const THREADS: usize = 16;

/// The waker of one of them. The last but one that is woken has the first one go on before the last
/// one hears anything.
struct Member(usize, Arc<Crowd>);

impl Wake for Member {
    fn wake(self: Arc<Self>) {
        let woken = {
            let mut woken = self.1.woken.lock().unwrap();
            woken.push(self.0);
            woken.clone()
        };
        if woken.len() == 2 * THREADS - 1 {
            let crowd = self.1.clone();
            // On a thread of its own, as this one is in the middle of telling them.
            join(thread::spawn(move || {
                let mut waiters = crowd.waiters.lock().unwrap();
                assert!(poll_once(waiters[woken[0]].as_mut()).is_ready());
            }));
        }
    }
}

#[tokio::test]
async fn whoever_hears_first_of_a_permanent_error_tries_nothing_for_those_who_have_still_to_hear() {
    let manager = TestManager::new();
    manager.connect.always(Act::Permanent);
    // Those of a thread wait in the line of that thread.
    let pool = Pool::builder(manager.clone()).max_size(8).shards(2).build_lazy().unwrap();
    let crowd = Arc::<Crowd>::default();
    for _ in 0..THREADS {
        let (pool, crowd) = (pool.clone(), crowd.clone());
        let runtime = tokio::runtime::Handle::current();
        join(thread::spawn(move || {
            let _runtime = runtime.enter();
            for _ in 0..2 {
                let pool = pool.clone();
                let mut waiter = Box::pin(async move {
                    drop(assert_refused(pool.acquire_timeout(Duration::MAX).await));
                });
                let mut waiters = crowd.waiters.lock().unwrap();
                let waker = Arc::new(Member(waiters.len(), crowd.clone())).into();
                assert!(poll_with(waiter.as_mut(), &waker).is_pending());
                waiters.push(waiter);
            }
        }));
    }
    eventually("all have heard of it", || crowd.woken.lock().unwrap().len() == 2 * THREADS).await;
    settle().await;
    assert_eq!(manager.connect.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_ends_the_retries_for_every_waiter() {
    let manager = TestManager::new();
    manager.connect.once(Act::Gated);
    manager.connect.always(Act::Permanent);
    let pool = Pool::builder(manager.clone()).max_size(4).connect_timeout(SECOND).build_lazy();
    let pool = pool.unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { assert_refused(pool.acquire().await) })
        })
        .collect();
    // The first attempt times out, which is not permanent; the second is refused.
    for task in tasks {
        task.await.unwrap();
    }
    settle().await;
    assert_eq!(manager.connect.calls(), 2);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_refused_acquire_leads_to_the_cause() {
    let manager = TestManager::new();
    manager.connect.always(Act::Permanent);
    let pool = Pool::builder(manager).max_size(1).build_lazy().unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert_eq!(error.to_string(), "cannot connect until the server or the settings are changed");
    let source = error.source().expect("the cause");
    assert_eq!(source.to_string(), "scripted connect error");
    // The same type as in the source of a timeout.
    let cause = source.downcast_ref::<OperationError<TestError>>();
    assert!(matches!(cause, Some(OperationError::Failed(_))), "source is not an OperationError");
}

#[tokio::test(start_paused = true)]
async fn an_acquire_after_a_permanent_error_tries_again_once_and_only_after_a_pause_that_grows() {
    for fail_fast in [false, true] {
        let manager = TestManager::new();
        manager.connect.always(Act::Permanent);
        let pool = Pool::builder(manager.clone()).max_size(2).fail_fast(fail_fast);
        let pool = pool.backoff(SECOND, 3 * SECOND).build_lazy().unwrap();
        for (attempt, pause) in [(1, 1), (2, 2), (3, 3), (4, 3)] {
            assert_refused(pool.acquire().await);
            settle().await;
            assert_eq!(manager.connect.calls(), attempt);
            let began = Instant::now();
            tokio::time::sleep(pause * SECOND - MILLISECOND).await;
            for _ in 0..10 {
                assert_refused(pool.acquire().await);
                let owned = pool.acquire_owned_timeout(Duration::MAX).await;
                assert!(matches!(owned, Err(AcquireError::Connect(_))), "{owned:?}");
                settle().await;
            }
            assert_eq!(manager.connect.calls(), attempt, "whoever comes too soon tries nothing");
            tokio::time::sleep(MILLISECOND).await;
            assert_eq!(began.elapsed(), pause * SECOND, "nor does he wait");
        }
        assert_eq!(manager.connect.calls(), 4, "nor does anybody unasked");
        manager.connect.calm();
        drop(pool.acquire().await.unwrap());
        assert_eq!(balanced(&pool, &manager.ledger).await.connect_failures, 4);
        // A success ends the pauses, and those that follow are short again.
        pool.invalidate();
        manager.connect.once(Act::Permanent);
        eventually("it has gone", || pool.counts().alive() == 0).await;
        assert_refused(pool.acquire().await);
        tokio::time::sleep(SECOND).await;
        drop(pool.acquire().await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_done_by_hand_ends_the_pause_after_a_permanent_error() {
    let verified = || Box::pin(ready(Ok(())));
    for by_hand in ["warm_up", "rotate", "invalidate", "resize"] {
        let manager = TestManager::new();
        manager.connect.once(Act::Permanent);
        let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
        assert_refused(pool.acquire().await);
        assert_refused(pool.acquire().await);
        settle().await;
        let began = Instant::now();
        match by_hand {
            "warm_up" => pool.warm_up(1).await.unwrap(),
            "rotate" => pool.rotate(|_| verified()).await.unwrap(),
            "invalidate" => pool.invalidate(),
            _ => pool.resize(1).unwrap(),
        }
        drop(pool.acquire().await.unwrap());
        assert_eq!((began.elapsed(), manager.connect.calls()), (Duration::ZERO, 2), "{by_hand}");
        balanced(&pool, &manager.ledger).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_what_a_warm_up_tries_again_by_hand_is_refused_by_no_error_of_the_past() {
    let manager = TestManager::new();
    manager.connect.once(Act::Permanent);
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    assert_refused(pool.acquire().await);
    manager.connect.always(Act::Gated);
    let mut warm_up = pin!(pool.warm_up(1));
    assert!(poll_once(warm_up.as_mut()).is_pending());
    eventually("it is tried again", || manager.connect.running() == 1).await;
    let acquires = waiting(&pool, 1);
    settle().await;
    manager.connect.open(2);
    for acquire in acquires {
        drop(acquire.await.unwrap());
    }
    warm_up.await.unwrap();
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_has_not_begun_by_a_permanent_error_is_not_begun_after_it() {
    let manager = TestManager::new();
    manager.connect.always(Act::Gated);
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    let mut warm_up = pin!(pool.warm_up(1));
    assert!(poll_once(warm_up.as_mut()).is_pending());
    eventually("it is tried", || manager.connect.running() == 1).await;
    // The warm-up's task goes on before that of the dial, which is only made now.
    manager.connect.refuse_for_good();
    for acquire in waiting(&pool, 2) {
        assert_refused(acquire.await);
    }
    assert!(warm_up.await.is_err());
    settle().await;
    assert_eq!(manager.connect.calls(), 1);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_come_as_fast_as_they_can_have_a_permanent_error_tried_once() {
    let manager = TestManager::new();
    manager.connect.always(Act::Permanent);
    let hour = 3_600 * SECOND;
    let pool = Pool::builder(manager.clone()).max_size(8).backoff(hour, hour).build_lazy();
    let pool = pool.unwrap();
    let threads = (0..4).map(|number| {
        let (pool, runtime) = (pool.clone(), tokio::runtime::Handle::current());
        thread::spawn(move || {
            for _ in 0..1_000 {
                drop(assert_refused(match number % 2 {
                    0 => runtime.block_on(pool.acquire_timeout(Duration::MAX)),
                    _ => pool.acquire_blocking_timeout(Duration::MAX),
                }));
            }
        })
    });
    let threads: Vec<_> = threads.collect();
    eventually("all have come", || threads.iter().all(thread::JoinHandle::is_finished)).await;
    threads.into_iter().for_each(join);
    assert_eq!(manager.connect.calls(), 1);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_that_a_warm_up_meets_is_told_to_everybody_and_tried_once() {
    let manager = TestManager::new();
    manager.connect.once(Act::Error);
    manager.connect.always(Act::Permanent);
    let pool = Pool::builder(manager.clone()).max_size(4).backoff(60 * SECOND, 60 * SECOND);
    let pool = pool.build_lazy().unwrap();
    let acquires = waiting(&pool, 2);
    settle().await;
    assert_eq!(manager.connect.calls(), 1, "the prober pauses");
    let began = Instant::now();
    assert!(matches!(pool.warm_up(1).await, Err(WarmUpError::Connect(_))));
    for acquire in acquires {
        assert_refused(acquire.await);
    }
    assert_eq!((began.elapsed(), manager.connect.calls()), (Duration::ZERO, 2));
    tokio::time::sleep(3_600 * SECOND).await;
    assert_eq!(manager.connect.calls(), 2, "nobody has asked since");
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn beside_a_connection_that_may_come_back_a_permanent_error_ends_no_wait() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Permanent);
    let acquires = waiting(&pool, 2);
    settle().await;
    assert_eq!((manager.connect.calls(), pool.counts().waiters), (2, 2));
    // Who waits in vain hears the cause.
    let error = pool.acquire_timeout(SECOND).await.unwrap_err();
    assert!(matches!(&error, AcquireError::Timeout(t) if t.stage() == Stage::ConnectFailing));
    assert_eq!(error.source().expect("the cause").to_string(), "scripted connect error");
    drop(held);
    for acquire in acquires {
        assert_eq!(acquire.await.unwrap().id, 1);
    }
    assert_eq!(manager.connect.calls(), 2);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn the_managers_own_error_is_found_in_whatever_a_pool_fails_with() {
    let manager = TestManager::new();
    manager.reset.always(Act::Error);
    let builder = || Pool::builder(manager.clone()).max_size(2);
    let pool = builder().build_lazy().unwrap();
    let dirty = pool.acquire().await.unwrap();
    manager.condition.once(Act::Slow(SECOND));
    manager.connect.always(Act::Error);
    let fails_fast = builder().fail_fast(true).build_lazy().unwrap();
    let errors: [(&str, Box<dyn Error>); 7] = [
        ("build", builder().min_idle(1).build().await.unwrap_err().into()),
        ("timeout", pool.acquire().await.unwrap_err().into()),
        ("unavailable", fails_fast.acquire().await.unwrap_err().into()),
        ("warm_up", pool.warm_up(2).await.unwrap_err().into()),
        ("rotate", pool.rotate(|_| Box::pin(ready(Ok(())))).await.unwrap_err().into()),
        ("verify", {
            manager.connect.once(Act::Ok);
            let error = TestError { what: "connect", permanent: false };
            pool.rotate(|_| Box::pin(ready(Err(error.clone())))).await.unwrap_err().into()
        }),
        ("release", dirty.release().await.unwrap_err().into()),
    ];
    for (what, error) in &errors {
        let method = if *what == "release" { "reset" } else { "connect" };
        let expected = TestError { what: method, permanent: false };
        assert_eq!(TestError::within(&**error), Some(&expected), "{what}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn beside_a_live_connection_a_permanent_error_is_tried_again_after_the_longest_pause_only() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(4).backoff(MILLISECOND, 2 * SECOND);
    let pool = pool.build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Permanent);
    // Whoever comes meanwhile is no reason either.
    let mut acquires = Vec::new();
    for second in 0..60 {
        acquires.extend(waiting(&pool, 1));
        settle().await;
        assert_eq!(manager.connect.calls(), 2 + second / 2);
        tokio::time::sleep(SECOND + MILLISECOND).await;
    }
    // Nor is anything tried when nobody waits.
    drop(acquires);
    tokio::time::sleep(3_600 * SECOND).await;
    assert!((31..=32).contains(&manager.connect.calls()), "{}", manager.connect.calls());
    // And once it goes well, all who wait have theirs.
    manager.connect.calm();
    for acquire in waiting(&pool, 3) {
        drop(acquire.await.unwrap());
    }
    drop(held);
    balanced(&pool, &manager.ledger).await;
}

/// A waker that panics.
struct Explosive;

impl Wake for Explosive {
    fn wake(self: Arc<Self>) {
        panic!("scripted panic in a waker");
    }
}

#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_when_a_dial_tells_of_a_refusal_keeps_no_dial_from_being_begun() {
    hush_scripted_panics();
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(3).reserved(Priority::High, 1).shards(1);
    let pool = pool.build_lazy().unwrap();
    let [first, second] = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let reserved = pool.acquire_with(Priority::High).await.unwrap();
    first.discard();
    second.discard();
    eventually("all others have gone", || pool.counts().alive() == 1).await;
    // One dial stays as the prober. The other one is refused beside it, and leaves.
    manager.connect.once(Act::Error);
    manager.connect.once(Act::Permanent);
    // The event counts one waiter too few after such a panic, so this one never leaves it.
    let mut told =
        Box::leak(Box::new(Box::pin(pool.acquire_owned_timeout(Duration::MAX)))).as_mut();
    assert!(poll_with(told.as_mut(), &Arc::new(Explosive).into()).is_pending());
    let other = waiting(&pool, 1);
    settle().await;
    assert_eq!(manager.connect.calls(), 5);
    drop(other);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(manager.connect.calls(), 5, "nobody waits, and both have ended");
    drop(pool.acquire().await.expect("a dial is begun"));
    drop(reserved);
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_ends_every_wait_once_the_last_connection_has_gone() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Permanent);
    let acquires = waiting(&pool, 3);
    settle().await;
    assert_eq!((manager.connect.calls(), pool.counts().waiters), (2, 3));
    let began = Instant::now();
    held.discard();
    for acquire in acquires {
        assert_refused(acquire.await);
    }
    assert_eq!((began.elapsed(), manager.connect.calls()), (Duration::ZERO, 3));
    tokio::time::sleep(3_600 * SECOND).await;
    assert_eq!(manager.connect.calls(), 3);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_is_told_to_whoever_may_have_none_of_the_connections_that_are_left() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(2).reserved(Priority::High, 1);
    let pool = pool.build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let reserved = pool.acquire_with(Priority::High).await.unwrap();
    manager.connect.always(Act::Permanent);
    let mut high = pin!(pool.acquire_with(Priority::High));
    assert!(poll_once(high.as_mut()).is_pending());
    let acquires = waiting(&pool, 1);
    held.discard();
    for acquire in acquires {
        assert_refused(acquire.await);
    }
    // The one that is left may come back to others, and what they want is not tried again and again.
    let calls = manager.connect.calls();
    for _ in 0..10 {
        settle().await;
        assert!(poll_once(high.as_mut()).is_pending());
    }
    assert_eq!(manager.connect.calls(), calls);
    drop(reserved);
    assert_eq!(high.await.unwrap().id, 2);
    balanced(&pool, &manager.ledger).await;
}

/// A pool with room for two connections for all callers, and for one for those with priority.
fn with_a_reserved_one(manager: &TestManager, fail_fast: bool) -> Pool<TestManager> {
    let pool = Pool::builder(manager.clone()).max_size(3).reserved(Priority::High, 1);
    pool.backoff(SECOND, 3_600 * SECOND).fail_fast(fail_fast).build_lazy().unwrap()
}

/// The reserved one of such a pool, after connecting has failed for good and all others have gone. The prober
/// pauses, and for long.
async fn beside_nothing_else<'p>(
    pool: &'p Pool<TestManager>,
    manager: &TestManager,
) -> Pooled<'p, TestManager> {
    let [first, second] = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let reserved = pool.acquire_with(Priority::High).await.unwrap();
    manager.connect.always(Act::Permanent);
    let acquires = waiting(pool, 1);
    first.discard();
    settle().await;
    assert_eq!((manager.connect.calls(), pool.counts().waiters), (4, 1));
    let began = Instant::now();
    second.discard();
    for acquire in acquires {
        assert_refused(acquire.await);
    }
    assert_eq!((manager.connect.calls(), pool.counts().alive()), (5, 1));
    assert_eq!(began.elapsed(), Duration::ZERO);
    reserved
}

#[tokio::test(start_paused = true)]
async fn who_may_have_none_of_those_that_are_left_hears_of_a_permanent_error_before_he_waits() {
    for fail_fast in [false, true] {
        let manager = TestManager::new();
        let pool = with_a_reserved_one(&manager, fail_fast);
        let reserved = beside_nothing_else(&pool, &manager).await;
        tokio::time::sleep(60 * SECOND).await; // the prober's pause is longer
        let began = Instant::now();
        for _ in 0..3 {
            assert_refused(pool.acquire().await);
        }
        assert_eq!((began.elapsed(), manager.connect.calls()), (Duration::ZERO, 5));
        // The one that is left comes back to those who may have it.
        let mut high = pin!(pool.acquire_with(Priority::High));
        assert!(poll_once(high.as_mut()).is_pending());
        drop(reserved);
        assert_eq!(high.await.unwrap().id, 3);
        // And when nobody pauses any more, whoever comes has it tried again.
        tokio::time::sleep(3_601 * SECOND).await;
        assert_refused(pool.acquire().await);
        assert_eq!(manager.connect.calls(), 6);
        balanced(&pool, &manager.ledger).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_ends_the_wait_of_those_with_priority_once_the_last_connection_has_gone()
{
    for fail_fast in [false, true] {
        let manager = TestManager::new();
        let pool = with_a_reserved_one(&manager, fail_fast);
        let reserved = beside_nothing_else(&pool, &manager).await;
        let mut high = pin!(pool.acquire_with(Priority::High));
        for _ in 0..10 {
            assert!(poll_once(high.as_mut()).is_pending());
            settle().await;
        }
        assert_eq!(manager.connect.calls(), 5);
        let began = Instant::now();
        reserved.discard();
        assert_refused(high.await);
        assert_eq!((began.elapsed(), manager.connect.calls()), (Duration::ZERO, 6));
        tokio::time::sleep(3_600 * SECOND).await;
        assert_eq!(manager.connect.calls(), 6, "nobody has asked since");
        balanced(&pool, &manager.ledger).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_while_it_is_tried_again_after_a_permanent_error_waits_for_the_outcome() {
    let manager = TestManager::new();
    let pool = with_a_reserved_one(&manager, false);
    let reserved = beside_nothing_else(&pool, &manager).await;
    let mut high = pin!(pool.acquire_with(Priority::High));
    assert!(poll_once(high.as_mut()).is_pending());
    manager.connect.always(Act::Gated);
    reserved.discard();
    eventually("it is tried again", || manager.connect.running() == 1).await;
    let acquires = waiting(&pool, 1);
    manager.connect.open(2);
    drop(high.await.unwrap());
    for acquire in acquires {
        drop(acquire.await.unwrap());
    }
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn while_the_prober_pauses_whoever_comes_after_a_permanent_error_hears_of_it_at_once() {
    let manager = TestManager::new();
    let pool = pausing(&manager).await;
    manager.connect.always(Act::Permanent);
    assert!(pool.warm_up(1).await.is_err());
    let began = Instant::now();
    assert_refused(pool.acquire().await);
    assert_eq!((began.elapsed(), manager.connect.calls()), (Duration::ZERO, 2));
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_that_goes_well_ends_the_pause_after_a_permanent_error() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(3).backoff(SECOND, 3_600 * SECOND);
    let pool = pool.build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Permanent);
    let acquires = waiting(&pool, 2);
    settle().await;
    assert_eq!((manager.connect.calls(), pool.counts().waiters), (2, 2));
    let began = Instant::now();
    pool.warm_up(2).await.unwrap();
    let mut guards = Vec::new();
    for acquire in acquires {
        guards.push(acquire.await.unwrap());
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn pauses_between_connects_are_random() {
    let mut pauses = Vec::new();
    for _ in 0..200 {
        let manager = TestManager::new();
        manager.connect.once(Act::Error);
        let pool =
            Pool::builder(manager).max_size(1).backoff(SECOND, 2 * SECOND).build_lazy().unwrap();
        let began = Instant::now();
        drop(pool.acquire().await.unwrap());
        pauses.push(began.elapsed());
    }
    // By chance alone, one time in 10^24.
    let (shortest, longest) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
    assert!(*shortest < SECOND / 4, "{shortest:?}");
    assert!(*longest > 3 * SECOND / 4 && *longest <= SECOND + MILLISECOND, "{longest:?}");
}

#[tokio::test]
async fn a_permanent_error_of_the_past_does_not_end_a_new_wait() {
    let manager = TestManager::new();
    manager.connect.once(Act::Permanent);
    let pool = Pool::builder(manager).max_size(1).build_lazy().unwrap();
    assert_refused(pool.acquire().await);
    pool.invalidate(); // so that it is tried again at once
    let _held = pool.acquire().await.unwrap();
    // At its deadline a thread looks again, as if it had been told to.
    let blocked = std::thread::spawn({
        let pool = pool.clone();
        move || {
            let result = pool.acquire_blocking_timeout(20 * MILLISECOND);
            assert!(matches!(result, Err(AcquireError::Timeout(_))), "{result:?}");
        }
    });
    eventually("the thread has ended", || blocked.is_finished()).await;
    join(blocked);
}

#[tokio::test]
async fn a_permanent_error_ends_a_blocking_waiter_too() {
    let manager = TestManager::new();
    manager.connect.always(Act::Permanent);
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    let blocked = std::thread::spawn({
        let pool = pool.clone();
        move || drop(assert_refused(pool.acquire_blocking()))
    });
    eventually("the thread has ended", || blocked.is_finished()).await;
    join(blocked);
    assert_eq!(manager.connect.calls(), 1);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn the_pool_recovers_by_itself_when_the_server_comes_back() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = Pool::builder(manager.clone()).max_size(4).build_lazy().unwrap();
    let acquires = waiting(&pool, 4);
    tokio::time::sleep(60 * SECOND).await;
    // No pause is longer than two seconds, and the pauses before the longest are shorter. On
    // average a pause is half that, so twice the expected number of attempts is 20 sigma away.
    let attempts = manager.connect.calls();
    assert!((30..=150).contains(&attempts), "{attempts} attempts in a minute");
    assert_eq!(manager.connect.most_running(), 1, "one prober");
    assert_eq!(pool.metrics().counts.waiters, 4);

    manager.connect.calm();
    let back = Instant::now();
    let mut guards = Vec::new();
    for acquire in acquires {
        guards.push(acquire.await.unwrap());
    }
    assert!(back.elapsed() <= pool.config().backoff_max + MILLISECOND, "{:?}", back.elapsed());
    drop(guards);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.connect_failures, metrics.waits.timed_out), (attempts as u64, 0));
    assert_eq!(metrics.counts.idle, 4);
}

#[tokio::test(start_paused = true)]
async fn pauses_between_attempts_grow_from_backoff_to_its_limit() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = Pool::builder(manager.clone())
        .max_size(1)
        .backoff(100 * MILLISECOND, 800 * MILLISECOND)
        .build_lazy()
        .unwrap();
    let _acquires = waiting(&pool, 1);
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    for attempt in 1..40 {
        eventually("one more attempt", || manager.connect.calls() == attempt).await;
        let pause = last.elapsed();
        last = Instant::now();
        let doublings = u32::try_from(attempt).unwrap().saturating_sub(2).min(3);
        let most = 100 * MILLISECOND * (1 << doublings);
        // `eventually` and the timer look once a millisecond each.
        assert!(pause <= most + 2 * MILLISECOND, "{pause:?} before attempt {attempt}");
        longest = longest.max(pause);
    }
    // Half of those at the limit are as long; that none of 35 is has a chance of 2^-35.
    assert!(longest > 400 * MILLISECOND, "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_success_makes_the_next_pause_a_short_one_again() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone())
        .max_size(1)
        .backoff(100 * MILLISECOND, 1_000 * SECOND)
        .acquire_timeout(10_000 * SECOND)
        .build_lazy()
        .unwrap();
    // The pause after so many failures is below a fifth of a second once in 8,000 times.
    for _ in 0..14 {
        manager.connect.once(Act::Error);
    }
    pool.acquire().await.unwrap().discard();
    manager.connect.once(Act::Error);
    let began = Instant::now();
    drop(pool.acquire().await.unwrap());
    assert!(began.elapsed() <= 102 * MILLISECOND, "{:?}", began.elapsed());
    assert_eq!(manager.connect.calls(), 17);
}

#[tokio::test(start_paused = true)]
async fn concurrent_dials_that_all_fail_leave_one_prober() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(8).max_connecting(4).build_lazy().unwrap();
    // Three good connects, so that four dials are admitted at once.
    let warm = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    manager.connect.always(Act::Slow(SECOND));
    let acquires = waiting(&pool, 6);
    settle().await;
    assert_eq!(manager.connect.running(), 4);
    assert_eq!(pool.metrics().counts.connecting, 4);

    // These four succeed, and the two that follow them meet a dead server, with two more waiters.
    manager.connect.always(Act::Error);
    tokio::time::sleep(SECOND).await;
    settle().await;
    assert_eq!(pool.metrics().counts.waiters, 2);
    let calls = manager.connect.calls();
    manager.connect.always(Act::Slow(10 * SECOND));
    eventually("the prober tries again", || manager.connect.calls() > calls).await;
    // The pauses of others would be over by now.
    tokio::time::sleep(SECOND).await;
    assert_eq!(manager.connect.running(), 1, "one prober");
    assert_eq!(pool.metrics().counts.connecting, 1);
    drop((warm, acquires));
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_fails_tries_again_though_another_one_hangs() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(4).connect_timeout(3_600 * SECOND);
    let pool = pool.build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Never);
    manager.connect.once(Act::Error);
    manager.connect.once(Act::Error);
    let (began, mut acquires) = (Instant::now(), waiting(&pool, 2));
    eventually("it has tried twice again", || manager.connect.calls() == 5).await;
    assert!(began.elapsed() < SECOND / 2, "the other one is not late yet");
    let served = acquires.remove(0).await.unwrap();
    assert_eq!((served.id, manager.connect.most_running()), (2, 2));
    drop((held, served, acquires));
    pool.close().await;
}

/// Of four, and one connect has succeeded: two are admitted at once. A caller has less time than a connect.
async fn with_less_patience_than_a_connect_takes(manager: &TestManager) -> Pool<TestManager> {
    let pool = Pool::builder(manager.clone()).max_size(4).connect_timeout(20 * SECOND);
    let pool = pool.acquire_timeout(10 * SECOND).build_lazy().unwrap();
    pool.acquire().await.unwrap().discard();
    eventually("it has gone", || pool.counts().alive() == 0).await;
    pool
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_beside_a_connect_that_hangs_has_one_of_his_own() {
    let manager = TestManager::new();
    let pool = with_less_patience_than_a_connect_takes(&manager).await;
    manager.connect.once(Act::Never);
    let refused = pool.acquire_timeout(500 * MILLISECOND).await;
    assert!(matches!(refused, Err(AcquireError::Timeout(_))), "{refused:?}");
    // He comes early, and waits until it is late.
    let mut early = pin!(pool.acquire());
    assert!(timeout(499 * MILLISECOND, early.as_mut()).await.is_err(), "it may answer yet");
    let early = timeout(2 * MILLISECOND, early).await.expect("it is late").unwrap();
    // And this one when it is.
    let late = timeout(MILLISECOND, pool.acquire()).await.expect("at once").unwrap();
    assert_eq!((manager.connect.calls(), manager.connect.running()), (4, 1));
    drop((early, late));
    pool.close().await;
    assert_eq!(balanced(&pool, &manager.ledger).await.created, 3);
}

#[tokio::test(start_paused = true)]
async fn connects_that_hang_are_no_more_than_are_admitted() {
    let manager = TestManager::new();
    let pool = with_less_patience_than_a_connect_takes(&manager).await;
    manager.connect.always(Act::Never);
    let mut alone = pin!(pool.acquire());
    assert!(timeout(9 * SECOND, alone.as_mut()).await.is_err());
    assert_eq!(manager.connect.calls(), 3, "one for him, and another beside it");
    let others = waiting(&pool, 8);
    tokio::time::sleep(900 * MILLISECOND).await;
    assert_eq!(manager.connect.calls(), 3);
    drop(others);
    assert!(matches!(alone.await, Err(AcquireError::Timeout(_))));
    pool.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_was_late_is_counted_on_no_more_only_until_it_ends() {
    let manager = TestManager::new();
    let pool = with_less_patience_than_a_connect_takes(&manager).await;
    let mut held = Vec::new();
    for refuses in [false, true] {
        manager.connect.once(if refuses { Act::Never } else { Act::Slow(3 * SECOND) });
        held.push(pool.acquire().await.unwrap());
        // The late one has served nobody, and comes back for whoever is next, or has been given up.
        tokio::time::sleep(20 * SECOND).await;
        assert_eq!((manager.connect.running(), pool.counts().connecting), (0, 0));
    }
    let idle = pool.counts().idle;
    held.extend((0..idle).map(|_| pool.try_acquire().unwrap()));
    let calls = manager.connect.calls();
    manager.connect.always(Act::Never);
    let _waiter = waiting(&pool, 1);
    tokio::time::sleep(900 * MILLISECOND).await;
    assert_eq!(manager.connect.calls(), calls + 1, "one for one who waits");
}

#[tokio::test(start_paused = true)]
async fn a_late_connect_that_fails_says_nothing_against_what_was_opened_since() {
    let manager = TestManager::new();
    let pool = with_less_patience_than_a_connect_takes(&manager).await;
    let mut held = Vec::new();
    for round in 1..=2 {
        manager.connect.once(Act::Never);
        let began = Instant::now();
        held.push(pool.acquire().await.unwrap());
        assert!(began.elapsed() <= 1_001 * MILLISECOND, "{:?} in round {round}", began.elapsed());
        tokio::time::sleep(20 * SECOND).await;
        assert_eq!(pool.metrics().connect_failures, round);
        assert_eq!(pool.status().health, Health::Healthy);
    }
    // One for good is to be heard of, however old.
    manager.connect.once(Act::Gated);
    held.push(pool.acquire().await.unwrap());
    manager.connect.refuse_for_good();
    let fails = || pool.status().health.to_string().contains("connecting fails for good");
    eventually("it is heard of", fails).await;
}

#[tokio::test(start_paused = true)]
async fn beside_a_connect_that_is_late_none_begins_for_what_is_only_kept_idle() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(8).min_idle(2).build().await.unwrap();
    manager.connect.always(Act::Slow(3 * SECOND));
    assert_eq!(pool.retain(|_, _| false), 2);
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!((manager.connect.calls(), pool.counts().idle), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn the_number_of_connects_at_once_grows_1_2_4_up_to_max_connecting() {
    for failures in [0, 3] {
        let manager = TestManager::new();
        for _ in 0..failures {
            manager.connect.once(Act::Error);
        }
        manager.connect.always(Act::Gated);
        let pool = Pool::builder(manager.clone())
            .max_size(32)
            .max_connecting(6)
            .connect_timeout(600 * SECOND)
            .build_lazy()
            .unwrap();
        let acquires = waiting(&pool, 32);
        eventually("the failures are over", || manager.connect.calls() == failures + 1).await;
        settle().await;
        assert_eq!(manager.connect.running(), 1, "alone, after {failures} failures");
        for (opened, running) in [(1, 2), (1, 4), (1, 6), (6, 6), (6, 6), (6, 6)] {
            manager.connect.open(opened);
            settle().await;
            assert_eq!(manager.connect.running(), running, "after {failures} failures");
            assert_eq!(pool.metrics().counts.connecting, running);
        }
        manager.connect.open(32);
        let mut guards = Vec::new();
        for acquire in acquires {
            guards.push(acquire.await.unwrap());
        }
        assert_eq!(manager.connect.most_running(), 6);
        drop(guards);
        assert_eq!(balanced(&pool, &manager.ledger).await.created, 32);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_makes_the_next_connect_go_alone_again() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(16).build_lazy().unwrap();
    let mut guards = Vec::new();
    for _ in 0..4 {
        guards.push(pool.acquire().await.unwrap());
    }
    manager.connect.once(Act::Error);
    guards.push(pool.acquire().await.unwrap());
    // That success has doubled it from one to two.
    manager.connect.always(Act::Gated);
    let acquires = waiting(&pool, 8);
    settle().await;
    assert_eq!(manager.connect.running(), 2);
    manager.connect.open(8);
    for acquire in acquires {
        guards.push(acquire.await.unwrap());
    }
    drop(guards);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test]
async fn never_more_than_max_connecting_at_once() {
    let manager = TestManager::new();
    manager.connect.always(Act::Slow(MILLISECOND));
    manager.condition.always(Act::Error);
    let pool = Pool::builder(manager.clone())
        .max_size(16)
        .max_connecting(3)
        .acquire_timeout(PATIENCE)
        .build_lazy()
        .unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    drop(pool.acquire().await.unwrap());
                }
            })
        })
        .collect();
    for task in tasks {
        joined(task).await;
    }
    assert_eq!(manager.connect.most_running(), 3);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.acquires, metrics.waits.timed_out), (320, 0));
}

#[tokio::test(start_paused = true)]
async fn a_returned_connection_goes_to_the_waiter_for_whom_a_dial_was_begun() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Gated);
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    settle().await;
    assert_eq!(manager.connect.running(), 1);

    let began = Instant::now();
    drop(held);
    let served = acquire.await.unwrap();
    assert_eq!((served.id, began.elapsed()), (1, Duration::ZERO));
    assert_eq!(pool.metrics().counts.connecting, 1, "the dial goes on");

    manager.connect.open(1);
    settle().await;
    assert_eq!(pool.metrics().counts.idle, 1);
    assert_eq!(pool.acquire().await.unwrap().id, 2);
    drop(served);
    assert_eq!(balanced(&pool, &manager.ledger).await.created, 2);
}

#[tokio::test(start_paused = true)]
async fn retries_stop_when_nobody_waits_and_one_is_left_and_begin_again_when_somebody_does() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(3).build_lazy().unwrap();
    let _left = pool.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    assert!(pool.acquire_timeout(5 * SECOND).await.is_err());
    tokio::time::sleep(pool.config().backoff_max).await;
    let attempts = manager.connect.calls();
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(manager.connect.calls(), attempts, "for whom?");

    let _waiting = waiting(&pool, 1);
    settle().await;
    assert_eq!(manager.connect.calls(), attempts + 1);
    manager.connect.calm();
    drop(pool.acquire().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_down_tries_again_after_each_pause_and_not_at_each_look() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    pool.maintenance().pause();
    assert!(pool.acquire_timeout(5 * SECOND).await.is_err());
    let before = manager.connect.calls();
    tokio::time::sleep(60 * SECOND).await;
    let attempts = manager.connect.calls() - before;
    assert!((30..=120).contains(&attempts), "{attempts} attempts in a minute");
    assert_eq!(manager.connect.most_running(), 1, "one prober");
    manager.connect.calm();
    tokio::time::sleep(pool.config().backoff_max).await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.created), (1, 1));
}

/// A pool whose prober pauses, and for long, since connecting has failed once; nobody waits.
async fn pausing(manager: &TestManager) -> Pool<TestManager> {
    manager.connect.once(Act::Error);
    let pool = Pool::builder(manager.clone()).max_size(3).backoff(6_000 * SECOND, 6_000 * SECOND);
    let pool = pool.acquire_timeout(60 * SECOND).build_lazy().unwrap();
    drop(waiting(&pool, 1));
    settle().await;
    assert_eq!(manager.connect.calls(), 1);
    pool
}

#[tokio::test(start_paused = true)]
async fn a_success_elsewhere_ends_the_pause_of_the_prober() {
    let manager = TestManager::new();
    let pool = pausing(&manager).await;
    pool.warm_up(1).await.unwrap();
    let began = Instant::now();
    let held = pool.acquire().await.unwrap();
    let _next = pool.acquire().await.unwrap();
    assert_eq!((held.id, began.elapsed()), (1, Duration::ZERO), "the server is well, so why wait");
    settle().await;
    assert_eq!(manager.connect.calls(), 3, "and none was opened that nobody wants");

    // With somebody who waits, the prober goes on at once.
    let manager = TestManager::new();
    let pool = pausing(&manager).await;
    let acquires = waiting(&pool, 2);
    let began = Instant::now();
    pool.warm_up(1).await.unwrap();
    let mut guards = Vec::new();
    for acquire in acquires {
        guards.push(acquire.await.unwrap());
    }
    assert_eq!((began.elapsed(), manager.connect.calls()), (Duration::ZERO, 3));
    drop(guards);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn each_waiter_beside_a_failing_connect_learns_the_cause_at_its_own_deadline() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = Pool::builder(manager.clone()).max_size(4).build_lazy().unwrap();
    let tasks: Vec<_> = (1..=4)
        .map(|seconds| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let began = Instant::now();
                let result = pool.acquire_timeout(seconds * SECOND).await;
                let Err(AcquireError::Timeout(timeout)) = result else {
                    panic!("no timeout: {result:?}");
                };
                assert!(began.elapsed() >= seconds * SECOND);
                assert!(began.elapsed() <= seconds * SECOND + MILLISECOND);
                assert_eq!(timeout.stage(), Stage::ConnectFailing);
                let source = timeout.source().expect("the cause");
                assert_eq!(source.to_string(), "scripted connect error");
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.waits.timed_out, metrics.created), (4, 0));
    assert_eq!(metrics.connect_failures, manager.connect.calls() as u64);
}

#[tokio::test(start_paused = true)]
async fn a_failed_connect_frees_its_place_for_the_next_waiter() {
    let manager = TestManager::new();
    manager.connect.once(Act::Error);
    manager.connect.once(Act::Error);
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { drop(pool.acquire().await.unwrap()) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.connect_failures, metrics.created, metrics.acquires), (2, 1, 4));
}

#[tokio::test(start_paused = true)]
async fn the_first_connect_goes_alone() {
    let manager = TestManager::new();
    manager.connect.always(Act::Gated);
    let pool = Pool::builder(manager.clone()).max_size(8).build_lazy().unwrap();
    let acquires = waiting(&pool, 8);
    settle().await;
    assert_eq!(manager.connect.running(), 1);
    assert_eq!(manager.connect.calls(), 1);
    drop(acquires);
    manager.connect.open(1);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.counts.idle, metrics.created), (1, 1), "nobody wants a second one now");
}
