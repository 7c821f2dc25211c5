//! Deadlines: of an acquire, of each of the manager's methods, and what a timeout tells.

#![cfg(feature = "tokio")]

mod support;
use support::*;

use millpond::{
    AcquireError, CheckPolicy, OperationError, Pool, Priority, ReleaseError, Stage, Timeout,
};
use std::error::Error;
use std::fmt::Debug;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

fn timeout_of<T: Debug>(result: Result<T, AcquireError<TestError>>) -> Timeout<TestError> {
    match result {
        Err(AcquireError::Timeout(timeout)) => *timeout,
        other => panic!("no timeout: {other:?}"),
    }
}

/// Asserts that so much of the paused clock's time has passed, to the timer's millisecond.
#[track_caller]
fn assert_passed(since: Instant, expected: Duration) {
    let passed = since.elapsed();
    assert!(passed >= expected, "{passed:?}, sooner than {expected:?}");
    assert!(passed <= expected + MILLISECOND, "{passed:?}, later than {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn an_acquire_times_out_at_its_deadline_and_not_before() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone())
        .max_size(1)
        .acquire_timeout(3 * SECOND)
        .build_lazy()
        .unwrap();
    let held = pool.acquire().await.unwrap();

    let began = Instant::now();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    tokio::time::advance(3 * SECOND - MILLISECOND).await;
    assert!(poll_once(acquire.as_mut()).is_pending(), "before its deadline");
    assert_eq!(pool.metrics().counts.waiters, 1);

    let timeout = timeout_of(acquire.await);
    assert_passed(began, 3 * SECOND);
    assert_eq!(timeout.waited(), began.elapsed());
    assert_eq!(pool.metrics().waits.timed_out, 1);
    assert_eq!(pool.metrics().acquires, 1);
    drop(held);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn acquire_timeout_overrides_the_configured_limit_both_ways() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager).max_size(1).acquire_timeout(2 * SECOND).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    for limit in [SECOND, 5 * SECOND] {
        let began = Instant::now();
        timeout_of(pool.acquire_timeout(limit).await);
        assert_passed(began, limit);
    }
    let began = Instant::now();
    timeout_of(pool.acquire_owned().await);
    assert_passed(began, 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn after_a_timeout_the_next_acquire_works() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    for _ in 0..3 {
        timeout_of(pool.acquire_timeout(SECOND).await);
    }
    drop(held);
    drop(pool.acquire_timeout(Duration::ZERO).await.unwrap());

    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.waits.timed_out, metrics.acquires, metrics.created), (3, 2, 1));
    assert_eq!(metrics.counts.idle, 1);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_the_callers_own_is_a_cancel_and_counts_as_none() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    assert!(tokio::time::timeout(SECOND, pool.acquire()).await.is_err());
    assert_eq!(pool.metrics().counts.waiters, 0);
    assert_eq!(pool.metrics().waits.timed_out, 0);

    drop(held);
    drop(tokio::time::timeout(SECOND, pool.acquire()).await.unwrap().unwrap());
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.waits.timed_out, metrics.acquires, metrics.created), (0, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_connect_is_bounded_by_its_own_timeout() {
    let manager = TestManager::new();
    manager.connect.once(Act::Never);
    let pool = Pool::builder(manager.clone())
        .max_size(1)
        .connect_timeout(SECOND)
        .acquire_timeout(60 * SECOND)
        .build_lazy()
        .unwrap();
    let began = Instant::now();
    drop(pool.acquire().await.unwrap());
    assert!(began.elapsed() >= SECOND);
    assert!(began.elapsed() <= SECOND + pool.config().backoff + MILLISECOND);

    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.connect_failures, metrics.created, metrics.waits.timed_out), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_acquire_honours_its_deadline_while_connect_hangs_and_the_slot_comes_back() {
    let manager = TestManager::new();
    manager.connect.once(Act::Never);
    let pool = Pool::builder(manager.clone())
        .max_size(1)
        .connect_timeout(20 * SECOND)
        .build_lazy()
        .unwrap();
    let began = Instant::now();
    let timeout = timeout_of(pool.acquire_timeout(2 * SECOND).await);
    assert_passed(began, 2 * SECOND);
    assert_eq!(timeout.stage(), Stage::Connecting);
    assert_eq!(pool.metrics().counts.connecting, 1, "the dial goes on without its caller");

    let metrics = balanced(&pool, &manager.ledger).await;
    assert_passed(began, 20 * SECOND);
    assert_eq!(metrics.counts.vacant, 1);
    drop(pool.acquire().await.unwrap());
    assert_eq!(balanced(&pool, &manager.ledger).await.created, 1);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_check_is_bounded_by_its_own_timeout() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone())
        .max_size(1)
        .min_idle(1)
        .check(CheckPolicy::Always)
        .check_timeout(SECOND)
        .acquire_timeout(60 * SECOND)
        .build()
        .await
        .unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Never);
    let began = Instant::now();
    let fresh = pool.acquire().await.unwrap();
    assert_passed(began, SECOND);
    assert_eq!(fresh.id, 2, "the one that did not answer is gone");
    drop(fresh);

    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!(metrics.closed.failed_check, 1);
    assert_eq!((metrics.closed.total(), metrics.created, metrics.waits.timed_out), (1, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn an_acquire_honours_its_deadline_while_a_check_hangs_and_the_slot_comes_back() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone())
        .max_size(1)
        .check(CheckPolicy::Always)
        .check_timeout(6 * SECOND)
        .build_lazy()
        .unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Never);
    let began = Instant::now();
    let timeout = timeout_of(pool.acquire_timeout(2 * SECOND).await);
    assert_passed(began, 2 * SECOND);
    assert_eq!(timeout.stage(), Stage::Checking);
    assert!(timeout.to_string().contains("checking or preparing one took too long"), "{timeout}");
    assert!(timeout.source().is_none());
    assert_eq!(manager.check.running(), 1, "it goes on, as long as a check may");

    let metrics = balanced(&pool, &manager.ledger).await;
    assert_passed(began, 6 * SECOND);
    assert_eq!((metrics.closed.failed_check, metrics.closed.total()), (1, 1));
    drop(pool.acquire().await.unwrap());
    assert_eq!(balanced(&pool, &manager.ledger).await.created, 2);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_reset_is_bounded_by_its_own_timeout() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone())
        .max_size(1)
        .reset_timeout(SECOND)
        .acquire_timeout(60 * SECOND)
        .build_lazy()
        .unwrap();
    let held = pool.acquire().await.unwrap();
    manager.condition.once(Act::Slow(Duration::ZERO));
    manager.reset.once(Act::Never);
    let began = Instant::now();
    drop(held);
    assert_eq!(pool.metrics().counts.resetting, 1);
    let fresh = pool.acquire().await.unwrap();
    assert_passed(began, SECOND);
    assert_eq!(fresh.id, 2);
    drop(fresh);

    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_reset, metrics.closed.total()), (1, 1));
    assert_eq!(metrics.resets, 0);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_honours_its_deadline_while_a_reset_hangs() {
    let manager = TestManager::new();
    let pool =
        Pool::builder(manager.clone()).max_size(1).reset_timeout(9 * SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.condition.once(Act::Slow(Duration::ZERO));
    manager.reset.once(Act::Never);
    let began = Instant::now();
    drop(held);
    let timeout = timeout_of(pool.acquire_timeout(2 * SECOND).await);
    assert_passed(began, 2 * SECOND);
    assert_eq!(timeout.counts().resetting, 1);

    balanced(&pool, &manager.ledger).await;
    assert_passed(began, 9 * SECOND);
    drop(pool.acquire().await.unwrap());
    assert_eq!(balanced(&pool, &manager.ledger).await.created, 2);
}

#[tokio::test(start_paused = true)]
async fn release_reports_a_reset_that_takes_too_long() {
    let manager = TestManager::new();
    let pool =
        Pool::builder(manager.clone()).max_size(1).reset_timeout(SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.condition.once(Act::Slow(Duration::ZERO));
    manager.reset.once(Act::Never);
    let began = Instant::now();
    let error = held.release().await.unwrap_err();
    assert_passed(began, SECOND);
    assert!(
        matches!(error, ReleaseError::Reset(OperationError::TimedOut { limit, .. }) if limit == SECOND),
        "{error:?}"
    );
    assert_eq!(error.source().unwrap().to_string(), "no answer within 1s (reset_timeout)");
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_reset, metrics.closed.total()), (1, 1));
    assert_eq!(manager.ledger.closed(), 1, "close was called once");
}

#[tokio::test(start_paused = true)]
async fn a_hanging_close_is_bounded_by_its_own_timeout() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone())
        .max_size(1)
        .close_timeout(SECOND)
        .acquire_timeout(60 * SECOND)
        .build_lazy()
        .unwrap();
    let held = pool.acquire().await.unwrap();
    manager.close.once(Act::Never);
    let began = Instant::now();
    held.discard();
    let fresh = pool.acquire().await.unwrap();
    assert_passed(began, SECOND);
    assert_eq!(fresh.id, 2);
    drop(fresh);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.discarded, metrics.closed.total()), (1, 1));
    assert_eq!(manager.ledger.dropped(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_honours_its_deadline_while_a_close_hangs() {
    let manager = TestManager::new();
    let pool =
        Pool::builder(manager.clone()).max_size(1).close_timeout(9 * SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.close.once(Act::Never);
    let began = Instant::now();
    held.discard();
    let timeout = timeout_of(pool.acquire_timeout(2 * SECOND).await);
    assert_passed(began, 2 * SECOND);
    assert_eq!(timeout.counts().closing, 1, "a connection occupies its place until it is gone");

    assert_eq!(balanced(&pool, &manager.ledger).await.counts.vacant, 1);
    assert_passed(began, 9 * SECOND);
    drop(pool.acquire().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn closing_a_pool_waits_for_hanging_closes_no_longer_than_close_timeout() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone())
        .max_size(4)
        .min_idle(4)
        .close_timeout(SECOND)
        .build()
        .await
        .unwrap();
    manager.close.always(Act::Never);
    let began = Instant::now();
    pool.close().await;
    assert_passed(began, SECOND);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.pool_closed, metrics.closed.total()), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_names_its_pool_to_a_program_too() {
    let pool = Pool::builder(TestManager::new()).name("orders").max_size(1).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    let timeout = timeout_of(pool.acquire_timeout(SECOND).await);
    assert_eq!(timeout.pool(), "orders");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_beside_connections_that_are_reserved_says_that_they_are() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager).max_size(4).reserved(Priority::High, 2).build_lazy();
    let pool = pool.unwrap();
    let _held = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    // One of those that are kept is idle, and one is not even opened.
    drop(pool.acquire_with(Priority::High).await.unwrap());
    let error = pool.acquire_timeout(SECOND).await.unwrap_err();
    let counts = "(2 of 4 in use, 1 idle; 2 are kept for Priority::High)";
    assert!(error.to_string().contains(counts), "{error}");
    assert_eq!(timeout_of::<()>(Err(error)).kept(), 2);
    let reserved = pool.acquire_with(Priority::High).await.unwrap();
    let error = pool.acquire_timeout(SECOND).await.unwrap_err();
    let counts = "(3 of 4 in use, 0 idle; 1 is kept for Priority::High)";
    assert!(error.to_string().contains(counts), "{error}");
    // To whom they are open, nothing is kept for others.
    let _reserved = (reserved, pool.acquire_with(Priority::High).await.unwrap());
    let error = pool.acquire_with(Priority::High).await.unwrap_err();
    assert!(error.to_string().contains("(4 of 4 in use, 0 idle);"), "{error}");
    assert_eq!(timeout_of::<()>(Err(error)).kept(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_while_all_are_in_use_says_queued() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager).name("orders").max_size(2).build_lazy().unwrap();
    let _held = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    let site = format!("{}:{}:23", file!(), line!() - 1);
    let mut other = pin!(pool.acquire_timeout(9 * SECOND));
    assert!(poll_once(other.as_mut()).is_pending());

    let error = pool.acquire_timeout(SECOND).await.unwrap_err();
    assert!(error.source().is_none());
    assert_eq!(
        error.to_string(),
        format!(
            "pool orders: no connection within 1s: none was released in time \
             (2 of 2 in use, 0 idle, 1 waiting); \
             held longest: connection 1, acquired at {site}"
        )
    );
    let timeout = timeout_of::<()>(Err(error));
    assert_eq!(timeout.stage(), Stage::Queued);
    assert_eq!(timeout.waited(), SECOND);
    assert_eq!((timeout.counts().in_use, timeout.counts().capacity()), (2, 2));
    assert_eq!(timeout.counts().waiters, 1, "the other one: the caller is no longer counted");
    assert!(timeout.last_connect_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_names_who_has_held_a_connection_for_longest() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager).max_size(3).build_lazy().unwrap();
    pool.warm_up(3).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.acquire().await.unwrap());
        tokio::time::sleep(10 * SECOND).await;
    }
    for out in (1..4).rev() {
        let timeout = timeout_of(pool.acquire_timeout(SECOND).await);
        let longest = timeout.longest_held().expect("somebody holds one");
        assert_eq!(longest.connection, held[0].info().id);
        assert!(longest.held > (10 * out - 2) * SECOND, "{longest:?}");
        drop(held.remove(0));
        held.push(pool.acquire().await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_after_a_failed_check_does_not_blame_the_check() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).check(CheckPolicy::Always);
    let pool = pool.build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Error);
    manager.connect.once(Act::Never);
    let timeout = timeout_of(pool.acquire_timeout(SECOND).await);
    assert_eq!((timeout.stage(), manager.check.calls()), (Stage::Connecting, 1));
}

#[tokio::test(start_paused = true)]
async fn a_timeout_while_connect_is_slow_says_connecting() {
    let manager = TestManager::new();
    manager.connect.once(Act::Gated);
    let pool = Pool::builder(manager).max_size(2).build_lazy().unwrap();
    let error = pool.acquire_timeout(SECOND).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "pool millpond: no connection within 1s: opening one took too long \
         (0 of 2 in use, 0 idle, 1 connecting)"
    );
    let timeout = timeout_of::<()>(Err(error));
    assert_eq!((timeout.stage(), timeout.counts().connecting), (Stage::Connecting, 1));
    assert!(timeout.source().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_while_connect_fails_carries_the_cause_in_its_source_chain() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let error = pool.acquire_timeout(SECOND).await.unwrap_err();
    let source = error.source().expect("the cause");
    assert_eq!(source.to_string(), "scripted connect error");
    let cause = source.downcast_ref::<OperationError<TestError>>().expect("an OperationError");
    assert!(matches!(cause, OperationError::Failed(error) if error.what == "connect"));
    assert!(!error.to_string().contains("scripted"), "Display does not repeat its source");

    let timeout = timeout_of::<()>(Err(error));
    assert_eq!(timeout.stage(), Stage::ConnectFailing);
    assert!(timeout.to_string().contains("opening one keeps failing"), "{timeout}");
    let last = timeout.last_connect_error().expect("the cause");
    assert!(matches!(last.error, OperationError::Failed(_)), "{last:?}");
    assert_eq!(pool.metrics().connect_failures, manager.connect.calls() as u64);
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_takes_too_long_is_a_cause_of_its_own() {
    let manager = TestManager::new();
    manager.connect.always(Act::Never);
    let pool = Pool::builder(manager).max_size(1).connect_timeout(SECOND).build_lazy().unwrap();
    let timeout = timeout_of(pool.acquire_timeout(3 * SECOND / 2).await);
    assert_eq!(timeout.stage(), Stage::ConnectFailing);
    let source = timeout.source().expect("the cause");
    assert_eq!(source.to_string(), "no answer within 1s (connect_timeout)");
}

#[tokio::test(start_paused = true)]
async fn the_cause_is_forgotten_when_a_connect_succeeds() {
    let manager = TestManager::new();
    manager.connect.once(Act::Error);
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    // There is room, so a failure would be to blame.
    manager.connect.once(Act::Never);
    let timeout = timeout_of(pool.acquire_timeout(SECOND).await);
    assert_eq!(timeout.stage(), Stage::Connecting);
    assert!(timeout.source().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_zero_limit_takes_what_is_idle_or_gives_up_at_once() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).min_idle(1).build().await.unwrap();
    let held = pool.acquire_timeout(Duration::ZERO).await.unwrap();
    let began = Instant::now();
    let timeout = timeout_of(pool.acquire_timeout(Duration::ZERO).await);
    assert_passed(began, Duration::ZERO);
    assert_eq!((timeout.stage(), timeout.counts().waiters), (Stage::Queued, 0));
    drop(held);
    drop(pool.acquire_timeout(Duration::ZERO).await.unwrap());
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.waits.timed_out, metrics.acquires), (1, 2));
}

/// By the real clock: a paused one stands at a whole millisecond, where the timer is not late.
#[tokio::test]
async fn a_zero_limit_is_up_at_the_first_poll_not_when_a_timer_rings() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let answer = poll_once(pin!(pool.acquire_timeout(Duration::ZERO)));
    let Poll::Ready(answer) = answer else { panic!("it waits for a connect") };
    assert_eq!(timeout_of(answer).stage(), Stage::Connecting);
    let held = pool.acquire().await.unwrap();
    let answer = poll_once(pin!(pool.acquire_timeout(Duration::ZERO)));
    let Poll::Ready(answer) = answer else { panic!("it waits for a release") };
    assert_eq!(timeout_of(answer).stage(), Stage::Queued);
    drop(held);

    let manager = TestManager::new();
    let pool = unchecked(&manager).await;
    manager.check.once(Act::Gated);
    let answer = poll_once(pin!(pool.acquire_timeout(Duration::ZERO)));
    let Poll::Ready(answer) = answer else { panic!("it waits for a check") };
    assert_eq!(timeout_of(answer).stage(), Stage::Checking);
    manager.check.open(1);
    assert_eq!(balanced(&pool, &manager.ledger).await.closed.total(), 0, "the check goes on");
}

#[tokio::test(start_paused = true)]
async fn an_unlimited_acquire_waits_for_good() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let mut acquire = pin!(pool.acquire_timeout(Duration::MAX));
    assert!(poll_once(acquire.as_mut()).is_pending());
    tokio::time::advance(Duration::from_secs(3600 * 24 * 365)).await;
    assert!(poll_once(acquire.as_mut()).is_pending());
    drop(held);
    drop(acquire.await.unwrap());
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test]
async fn a_blocking_acquire_times_out_and_not_before_its_deadline() {
    let limit = Duration::from_millis(40);
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).acquire_timeout(limit);
    let pool = pool.build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let blocked = std::thread::spawn({
        let pool = pool.clone();
        move || {
            for acquire in [0, 1] {
                let began = std::time::Instant::now();
                let result = match acquire {
                    0 => pool.acquire_blocking(),
                    _ => pool.acquire_blocking_timeout(limit),
                };
                let timeout = timeout_of(result);
                assert!(began.elapsed() >= limit, "{:?}", began.elapsed());
                assert!(timeout.waited() >= limit, "{:?}", timeout.waited());
                assert_eq!((timeout.stage(), timeout.counts().waiters), (Stage::Queued, 0));
            }
            timeout_of(pool.acquire_blocking_timeout(Duration::ZERO));
        }
    });
    eventually("the thread has ended", || blocked.is_finished()).await;
    join(blocked);
    drop(held);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.waits.timed_out, metrics.acquires), (3, 1));
    drop(pool.acquire().await.unwrap());
}

#[test]
fn a_hit_needs_neither_runtime_nor_timer() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(1).min_idle(1);
    let pool = runtime.block_on(pool.build()).unwrap();
    for _ in 0..100 {
        drop(pollster::block_on(pool.acquire()).unwrap());
        drop(pollster::block_on(pool.acquire_timeout(SECOND)).unwrap());
        drop(pollster::block_on(pool.acquire_owned()).unwrap());
        drop(pool.acquire_blocking().unwrap());
        drop(pool.try_acquire().unwrap());
        pollster::block_on(pollster::block_on(pool.acquire()).unwrap().release()).unwrap();
    }
    let without_timers = tokio::runtime::Builder::new_current_thread().build().unwrap();
    without_timers.block_on(async { drop(pool.acquire().await.unwrap()) });
    assert_eq!(balanced_blocking(&pool, &manager.ledger).acquires, 601);
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_past_is_not_blamed_where_no_connection_could_have_been_opened() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    let timeout = timeout_of(pool.acquire_timeout(SECOND).await);
    assert_eq!(timeout.stage(), Stage::ConnectFailing);
    assert!(timeout.source().is_some());
    pool.resize(1).unwrap();
    let timeout = timeout_of(pool.acquire_timeout(SECOND).await);
    assert_eq!(timeout.stage(), Stage::Queued, "it is held, and nothing else can be had");
    assert!(timeout.source().is_none(), "{:?}", timeout.source());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_failure_for_those_with_priority_is_not_blamed_for_the_wait_of_the_others() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(2).reserved(Priority::High, 1);
    let pool = pool.acquire_timeout(SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    let timeout = timeout_of(pool.acquire_with(Priority::High).await);
    assert_eq!(timeout.stage(), Stage::ConnectFailing);
    let timeout = timeout_of(pool.acquire().await);
    assert_eq!(timeout.stage(), Stage::Queued, "the vacant one is not for it");
    assert!(timeout.source().is_none(), "{:?}", timeout.source());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_connect_for_those_with_priority_is_not_blamed_for_the_wait_of_the_others() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(2).reserved(Priority::High, 1);
    let pool = pool.acquire_timeout(SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Never);
    let mut high = pin!(pool.acquire_with(Priority::High));
    assert!(poll_once(high.as_mut()).is_pending());
    eventually("it is being opened", || pool.counts().connecting == 1).await;
    let timeout = timeout_of(pool.acquire().await);
    assert_eq!((timeout.stage(), timeout.kept()), (Stage::Queued, 1), "{timeout}");
    let timeout = timeout_of(high.await);
    assert_eq!((timeout.stage(), timeout.kept()), (Stage::Connecting, 0), "{timeout}");
    drop(held);
}

/// A pool with one idle connection that is to be checked before its use.
async fn unchecked(manager: &TestManager) -> Pool<TestManager> {
    let pool = Pool::builder(manager.clone()).max_size(1).check(CheckPolicy::Always);
    let pool = pool.build_lazy().expect("the settings are in range");
    drop(pool.acquire().await.expect("it connects"));
    pool
}

#[tokio::test(start_paused = true)]
async fn a_check_that_a_limit_is_too_short_for_goes_on_and_costs_no_connection() {
    for limit in [Duration::ZERO, 2 * MILLISECOND] {
        let manager = TestManager::new();
        let pool = unchecked(&manager).await;
        manager.check.always(Act::Slow(10 * MILLISECOND));
        let began = Instant::now();
        let timeout = timeout_of(pool.acquire_timeout(limit).await);
        assert_passed(began, limit);
        assert_eq!((timeout.stage(), timeout.counts().checking), (Stage::Checking, 1));
        tokio::time::sleep(20 * MILLISECOND).await;
        let held = pool.acquire_timeout(Duration::ZERO).await.expect("it has passed");
        assert_eq!((held.id, manager.check.calls()), (1, 1), "limit {limit:?}");
        drop(held);
        let metrics = balanced(&pool, &manager.ledger).await;
        assert_eq!((metrics.closed.total(), metrics.created), (0, 1), "limit {limit:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_that_answers_at_once_is_in_time_for_a_limit_of_zero() {
    let manager = TestManager::new();
    let pool = unchecked(&manager).await;
    let held = pool.acquire_timeout(Duration::ZERO).await.unwrap();
    assert_eq!((held.id, manager.check.calls()), (1, 1));
    drop(held);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_check_that_is_too_late_and_fails_closes_its_connection() {
    let manager = TestManager::new();
    let pool = unchecked(&manager).await;
    manager.check.once(Act::Never);
    timeout_of(pool.acquire_timeout(MILLISECOND).await);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_check, metrics.closed.total()), (1, 1));
}

#[test]
fn a_check_that_goes_on_is_bounded_though_the_runtime_of_its_caller_stands_still() {
    let manager = TestManager::new();
    let [own, callers] = [(); 2].map(|()| {
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap()
    });
    let pool = own.block_on(unchecked(&manager));
    manager.check.once(Act::Never);
    timeout_of(callers.block_on(pool.acquire_timeout(MILLISECOND)));
    assert_eq!(pool.counts().checking, 1);
    let metrics = own.block_on(balanced(&pool, &manager.ledger));
    assert_eq!((metrics.closed.abandoned, metrics.closed.total()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_takes_a_check_along_however_short_its_limit() {
    let manager = TestManager::new();
    let pool = unchecked(&manager).await;
    manager.check.once(Act::Never);
    {
        let mut acquire = pin!(pool.acquire_timeout(2 * MILLISECOND));
        assert!(poll_once(acquire.as_mut()).is_pending());
    }
    assert_eq!(manager.check.running(), 0);
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.abandoned, metrics.closed.total()), (1, 1));
}
