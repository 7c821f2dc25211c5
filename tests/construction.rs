//! Building a pool: what is refused, what is opened, and how large things are.

#![cfg(feature = "tokio")]

mod support;

use millpond::{
    AcquireError, BuildError, CheckPolicy, Config, ConfigError, Hooks, IdleOrder, OperationError,
    Pool, PoolBuilder, Pooled, PooledOwned, Priority, ReleaseError, RotateError, Stage,
    WarmUpError, WeakPool, from_fn,
};
use std::error::Error;
use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use support::{Act, TestError, TestManager, eventually, join, poll_once};
use tokio::runtime::{Handle, Runtime};

const SECOND: Duration = Duration::from_secs(1);

fn builder(manager: &TestManager) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone())
}

/// What `build_lazy` and `build` say of these settings; they must say the same, and not connect.
fn refusal(set: impl Fn(PoolBuilder<TestManager>) -> PoolBuilder<TestManager>) -> ConfigError {
    let manager = TestManager::new();
    let lazy = set(builder(&manager)).build_lazy().expect_err("build_lazy must refuse this");
    match pollster::block_on(set(builder(&manager)).build()) {
        Err(BuildError::Config(error)) => assert_eq!(error, lazy),
        other => panic!("build must refuse this, but answers {other:?}"),
    }
    assert_eq!(manager.connect.calls(), 0);
    lazy
}

#[track_caller]
fn assert_refusal(error: &ConfigError, field: &str, value: &str, rule: &str) {
    assert_eq!((error.field(), error.value(), error.rule()), (field, value, rule));
    assert_eq!(error.to_string(), format!("{field} is {value}, but it {rule}"));
}

#[test]
fn max_size_zero_is_refused() {
    assert_refusal(&refusal(|b| b.max_size(0)), "max_size", "0", "must be from 1 to 1048576");
}

#[test]
fn max_size_above_the_largest_capacity_is_refused() {
    let error = refusal(|b| b.max_size(1_048_577));
    assert_refusal(&error, "max_size", "1048577", "must be from 1 to 1048576");
    let error = refusal(|b| b.max_size(usize::MAX));
    assert_refusal(&error, "max_size", &usize::MAX.to_string(), "must be from 1 to 1048576");
}

#[test]
fn the_smallest_and_a_large_max_size_are_accepted() {
    let manager = TestManager::new();
    for max_size in [1, 100_000] {
        let pool = builder(&manager).max_size(max_size).build_lazy().unwrap();
        assert_eq!(pool.metrics().counts.vacant, max_size);
        assert_eq!(pool.metrics().counts.capacity(), max_size);
    }
}

#[test]
fn min_idle_over_max_size_is_refused() {
    let error = refusal(|b| b.max_size(7).min_idle(8));
    assert_refusal(&error, "min_idle", "8", "must be at most max_size, which is 7");
}

#[test]
fn a_zero_in_any_duration_is_refused() {
    type Set = fn(PoolBuilder<TestManager>) -> PoolBuilder<TestManager>;
    let cases: [(&str, Set); 7] = [
        ("acquire_timeout", |b| b.acquire_timeout(Duration::ZERO)),
        ("connect_timeout", |b| b.connect_timeout(Duration::ZERO)),
        ("check_timeout", |b| b.check_timeout(Duration::ZERO)),
        ("reset_timeout", |b| b.reset_timeout(Duration::ZERO)),
        ("close_timeout", |b| b.close_timeout(Duration::ZERO)),
        ("backoff", |b| b.backoff(Duration::ZERO, SECOND)),
        ("backoff_max", |b| b.backoff(SECOND, Duration::ZERO)),
    ];
    for (field, set) in cases {
        assert_refusal(&refusal(set), field, "0ns", "must be above zero");
    }
}

#[test]
fn a_nanosecond_in_every_duration_is_accepted() {
    let tiny = Duration::from_nanos(1);
    let manager = TestManager::new();
    let built = builder(&manager)
        .acquire_timeout(tiny)
        .connect_timeout(tiny)
        .check_timeout(tiny)
        .reset_timeout(tiny)
        .close_timeout(tiny)
        .backoff(tiny, tiny)
        .build_lazy();
    assert!(built.is_ok());
}

#[test]
fn a_backoff_over_its_maximum_is_refused() {
    let error = refusal(|b| b.backoff(2 * SECOND, SECOND));
    assert_refusal(&error, "backoff", "2s", "must be at most backoff_max, which is 1s");
}

#[test]
fn max_connecting_zero_is_refused() {
    let error = refusal(|b| b.max_connecting(0));
    assert_refusal(&error, "max_connecting", "0", "must be at least 1");
}

#[test]
fn shards_that_are_no_power_of_two_or_too_many_are_refused() {
    for shards in [0, 3, 6, 255, 257, 512, usize::MAX] {
        let error = refusal(|b| b.shards(shards));
        let rule = "must be a power of two from 1 to 256";
        assert_refusal(&error, "shards", &shards.to_string(), rule);
    }
    let manager = TestManager::new();
    for shards in [1, 2, 64, 256] {
        assert!(builder(&manager).shards(shards).build_lazy().is_ok());
    }
}

#[test]
fn a_config_goes_through_the_same_checks_as_the_builder() {
    let mut config = Config::default();
    config.max_size = 3;
    config.min_idle = 4;
    let error = refusal(|b| b.config(config.clone()));
    assert_refusal(&error, "min_idle", "4", "must be at most max_size, which is 3");
}

#[test]
fn a_refused_setting_is_what_build_itself_says_and_no_cause_repeats_it() {
    let manager = TestManager::new();
    let error = pollster::block_on(builder(&manager).max_size(0).build()).unwrap_err();
    assert!(matches!(&error, BuildError::Config(error) if error.field() == "max_size"));
    assert_eq!(error.to_string(), "max_size is 0, but it must be from 1 to 1048576");
    assert!(error.source().is_none(), "{:?}", error.source());
}

#[test]
fn the_pool_has_the_settings_that_the_builder_was_given() {
    let manager = TestManager::new();
    let pool = builder(&manager)
        .name("orders")
        .max_size(20)
        .min_idle(2)
        .acquire_timeout(2 * SECOND)
        .connect_timeout(3 * SECOND)
        .check_timeout(4 * SECOND)
        .reset_timeout(5 * SECOND)
        .close_timeout(6 * SECOND)
        .max_connecting(7)
        .backoff(8 * SECOND, 9 * SECOND)
        .check(CheckPolicy::Always)
        .order(IdleOrder::Fifo)
        .shards(4)
        .build_lazy()
        .unwrap();
    let config = pool.config();
    assert_eq!(&*config.name, "orders");
    assert_eq!((config.max_size, config.min_idle, config.max_connecting), (20, 2, 7));
    assert_eq!(config.acquire_timeout, 2 * SECOND);
    assert_eq!(config.connect_timeout, 3 * SECOND);
    assert_eq!(config.check_timeout, 4 * SECOND);
    assert_eq!(config.reset_timeout, 5 * SECOND);
    assert_eq!(config.close_timeout, 6 * SECOND);
    assert_eq!((config.backoff, config.backoff_max), (8 * SECOND, 9 * SECOND));
    assert_eq!(config.check, CheckPolicy::Always);
    assert_eq!(config.order, IdleOrder::Fifo);
    assert_eq!(config.shards, Some(4));
    let debug = format!("{pool:?}");
    assert!(debug.contains("orders") && debug.contains("vacant: 20"), "{debug}");
}

// ---- what build opens ----

#[tokio::test(start_paused = true)]
async fn min_idle_at_max_size_is_warm_after_build() {
    let manager = TestManager::new();
    manager.connect.always(Act::Slow(Duration::from_millis(100)));
    let pool = builder(&manager).max_size(9).min_idle(9).build().await.unwrap();
    let metrics = pool.metrics();
    assert_eq!((metrics.counts.idle, metrics.counts.alive(), metrics.created), (9, 9, 9));
    assert_eq!((metrics.acquires, metrics.connect_failures), (0, 0));
    let warm: Vec<_> = (0..9).map(|_| pool.try_acquire().unwrap()).collect();
    assert_eq!(manager.connect.calls(), 9);
    drop(warm);
}

#[tokio::test]
async fn build_without_min_idle_opens_nothing() {
    let manager = TestManager::new();
    let pool = builder(&manager).build().await.unwrap();
    assert_eq!(manager.connect.calls(), 0);
    assert_eq!(pool.metrics().counts.vacant, 10);
}

#[tokio::test(start_paused = true)]
async fn the_first_connect_of_build_goes_alone_and_then_max_connecting_at_once() {
    let manager = TestManager::new();
    manager.connect.always(Act::Gated);
    let mut build = pin!(builder(&manager).max_connecting(3).min_idle(8).build());
    for (opened, running) in [(0, 1), (1, 3), (4, 3), (7, 1)] {
        manager.connect.open(opened - manager.ledger.opened());
        eventually("the connects that may begin have begun", || {
            assert!(poll_once(build.as_mut()).is_pending());
            manager.ledger.opened() == opened && manager.connect.running() == running
        })
        .await;
    }
    assert_eq!(manager.connect.most_running(), 3);
    manager.connect.open(1);
    let pool = build.await.unwrap();
    assert_eq!(pool.metrics().counts.idle, 8);
}

#[tokio::test]
async fn the_first_failing_connect_surfaces_in_build_after_one_attempt() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let error = builder(&manager).max_size(4).min_idle(4).build().await.unwrap_err();
    let BuildError::Connect(cause) = &error else { panic!("{error:?}") };
    let expected = TestError { what: "connect", permanent: false };
    assert!(matches!(&cause.error, OperationError::Failed(failed) if *failed == expected));
    assert_eq!(error.source().unwrap().to_string(), "scripted connect error");
    assert_eq!(manager.connect.calls(), 1);
}

#[tokio::test]
async fn a_later_failing_connect_surfaces_in_build_and_what_was_opened_is_closed() {
    let manager = TestManager::new();
    for act in [Act::Ok, Act::Ok, Act::Error] {
        manager.connect.once(act);
    }
    manager.connect.always(Act::Never);
    let built = builder(&manager).max_size(8).min_idle(8).build().await;
    assert!(matches!(built, Err(BuildError::Connect(_))), "{built:?}");
    eventually("nothing is left", || manager.ledger.live() == 0).await;
    assert_eq!((manager.ledger.opened(), manager.ledger.closed()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_panicking_or_hanging_connect_surfaces_in_build() {
    let manager = TestManager::new();
    manager.connect.once(Act::Panic);
    let built = builder(&manager).min_idle(1).build().await;
    let Err(BuildError::Connect(cause)) = &built else { panic!("{built:?}") };
    let OperationError::Panicked { message } = &cause.error else { panic!("{cause:?}") };
    assert_eq!(message, "scripted panic in connect");

    manager.connect.once(Act::Never);
    let began = tokio::time::Instant::now();
    let built = builder(&manager).min_idle(1).connect_timeout(3 * SECOND).build().await;
    let Err(BuildError::Connect(cause)) = &built else { panic!("{built:?}") };
    assert!(matches!(cause.error, OperationError::TimedOut { limit, .. } if limit == 3 * SECOND));
    assert_eq!(began.elapsed(), 3 * SECOND);
    assert_eq!(manager.ledger.live(), 0);
}

#[tokio::test(start_paused = true)]
async fn dropping_build_half_way_closes_what_was_opened() {
    let manager = TestManager::new();
    manager.connect.once(Act::Ok);
    manager.connect.always(Act::Never);
    {
        let mut build = pin!(builder(&manager).min_idle(4).build());
        eventually("one is open, three hang", || {
            assert!(poll_once(build.as_mut()).is_pending());
            manager.ledger.live() == 4
        })
        .await;
    }
    eventually("nothing is left", || manager.ledger.live() == 0).await;
    assert_eq!(manager.ledger.opened(), 1);
}

// ---- build_lazy ----

#[tokio::test(start_paused = true)]
async fn build_lazy_never_connects() {
    let manager = TestManager::new();
    let pool = builder(&manager).min_idle(3).build_lazy().unwrap();
    tokio::time::sleep(3600 * SECOND).await;
    assert_eq!(manager.connect.calls(), 0);
    assert_eq!(pool.metrics().counts.vacant, 10);
}

#[tokio::test]
async fn the_first_acquire_of_a_lazy_pool_connects_and_tops_up_to_min_idle() {
    let manager = TestManager::new();
    let pool = builder(&manager).min_idle(3).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    eventually("three are idle beside it", || pool.metrics().counts.idle == 3).await;
    assert_eq!(pool.metrics().counts.in_use, 1);
    assert_eq!(manager.connect.calls(), 4);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn the_first_acquire_of_a_lazy_pool_reports_the_error() {
    let manager = TestManager::new();
    manager.connect.always(Act::Permanent);
    let pool = builder(&manager).build_lazy().unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert!(matches!(error, AcquireError::Connect(_)), "{error:?}");
    assert_eq!(error.source().unwrap().to_string(), "scripted connect error");
    assert_eq!(manager.connect.calls(), 1);

    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = builder(&manager).build_lazy().unwrap();
    let error = pool.acquire().await.unwrap_err();
    let AcquireError::Timeout(timeout) = &error else { panic!("{error:?}") };
    assert_eq!(timeout.stage(), Stage::ConnectFailing);
    assert_eq!(error.source().unwrap().to_string(), "scripted connect error");
}

#[test]
fn build_lazy_works_outside_a_runtime_and_serves_the_runtime_that_comes() {
    let manager = TestManager::new();
    let pool = builder(&manager).build_lazy().unwrap();
    for id in 1..=2 {
        // The first runtime ends with its dial done; the second finds the connection idle.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let first = pool.acquire().await.unwrap();
            let second = pool.acquire().await.unwrap();
            assert_eq!((first.id.min(second.id), first.id.max(second.id)), (1, 2));
            assert_eq!(first.id + second.id, 3, "round {id}");
        });
    }
    assert_eq!(manager.connect.calls(), 2);
}

// ---- no runtime ----

#[test]
fn build_outside_a_runtime_is_a_clear_error() {
    let manager = TestManager::new();
    for min_idle in [0, 1] {
        let error = pollster::block_on(builder(&manager).min_idle(min_idle).build()).unwrap_err();
        assert!(matches!(error, BuildError::NoRuntime), "{error:?}");
        assert!(error.to_string().contains("no tokio runtime"), "{error}");
    }
    assert_eq!(manager.connect.calls(), 0);
}

#[test]
fn build_on_a_runtime_without_a_timer_is_a_clear_error() {
    let without = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for min_idle in [0, 1] {
        let manager = TestManager::new();
        let error = without.block_on(builder(&manager).min_idle(min_idle).build()).unwrap_err();
        assert!(matches!(error, BuildError::NoTimer), "{error:?}");
        assert!(error.to_string().contains("enable_time"), "{error}");
        assert_eq!(manager.connect.calls(), 0);
    }
    let error = without.block_on(builder(&TestManager::new()).max_size(0).build()).unwrap_err();
    assert!(matches!(error, BuildError::Config(_)), "{error:?}");
}

#[test]
fn a_runtime_without_a_timer_does_not_become_the_pools() {
    let manager = TestManager::new();
    let without = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let pool = without.block_on(async { builder(&manager).max_size(1).build_lazy() }).unwrap();
    for limit in [SECOND, Duration::MAX] {
        let _entered = without.enter();
        let Poll::Ready(answer) = poll_once(pin!(pool.acquire_timeout(limit))) else {
            panic!("it waits for nothing")
        };
        assert!(matches!(answer, Err(AcquireError::NoRuntime)), "{answer:?}");
    }
    let error = without.block_on(pool.warm_up(1)).unwrap_err();
    assert!(matches!(error, WarmUpError::NoRuntime), "{error:?}");
    assert_eq!((manager.connect.calls(), pool.counts().waiters), (0, 0));
    let with = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    with.block_on(async { drop(pool.acquire().await.unwrap()) });
    without.block_on(async { drop(pool.acquire().await.expect("it is idle")) });
    let pool = with.block_on(builder(&manager).check(CheckPolicy::Always).min_idle(1).build());
    let pool = pool.unwrap();
    with.block_on(async { drop(pool.acquire().await.unwrap()) });
    for limit in [SECOND, Duration::MAX] {
        // What is idle would have to be checked, which takes a timer as well.
        let unchecked = without.block_on(pool.acquire_timeout(limit)).map(drop);
        assert!(matches!(unchecked, Err(AcquireError::NoRuntime)), "{unchecked:?}");
        assert_eq!((pool.counts().idle, manager.check.calls()), (1, 0));
    }
}

#[test]
fn without_a_timer_or_a_deadline_an_acquire_waits_for_what_comes_back() {
    let without = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for is_outside in [false, true] {
        let manager = TestManager::new();
        let pool = builder(&manager).max_size(1).min_idle(1).check(CheckPolicy::Never);
        let pool = runtime().block_on(pool.build()).unwrap();
        let _entered = (!is_outside).then(|| without.enter());
        let held = pool.try_acquire().unwrap();
        let mut acquire = pin!(pool.acquire_timeout(Duration::MAX));
        assert!(poll_once(acquire.as_mut()).is_pending());
        drop(held);
        let Poll::Ready(answer) = poll_once(acquire.as_mut()) else { panic!("it has come back") };
        // Once nothing can come back, it is told so.
        let held = answer.unwrap();
        let mut acquire = pin!(pool.acquire_timeout(Duration::MAX));
        assert!(poll_once(acquire.as_mut()).is_pending());
        held.discard();
        let Poll::Ready(answer) = poll_once(acquire.as_mut()) else { panic!("it is not told") };
        assert!(matches!(answer, Err(AcquireError::NoRuntime)), "{answer:?}");
    }
}

#[test]
fn outside_any_runtime_an_acquire_without_a_deadline_has_the_pools_own_open_what_it_needs() {
    let own = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
    let own = own.unwrap();
    let manager = TestManager::new();
    let pool = own.block_on(async { builder(&manager).check(CheckPolicy::Always).build_lazy() });
    let pool = pool.unwrap();
    drop(pollster::block_on(pool.acquire_timeout(Duration::MAX)).expect("it is opened"));
    // But what is bounded in time is done by the caller.
    let answer = pollster::block_on(pool.acquire_timeout(Duration::MAX)).map(drop);
    assert!(matches!(answer, Err(AcquireError::NoRuntime)), "{answer:?}");
    assert_eq!((pool.counts().idle, manager.check.calls()), (1, 0));
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// A runtime that has ended.
fn ended() -> Handle {
    runtime().handle().clone()
}

#[test]
fn a_runtime_that_has_ended_is_none() {
    let manager = TestManager::new();
    let ended = ended();
    let _entered = ended.enter();
    for min_idle in [0, 1] {
        let error = pollster::block_on(builder(&manager).min_idle(min_idle).build()).unwrap_err();
        assert!(matches!(error, BuildError::NoRuntime), "{error:?}");
    }
    let pool = builder(&manager).build_lazy().unwrap();
    let error = pollster::block_on(pool.warm_up(1)).unwrap_err();
    assert!(matches!(error, WarmUpError::NoRuntime), "{error:?}");
    assert_eq!((manager.connect.calls(), pool.metrics().connect_failures), (0, 0));
    assert_eq!(pool.counts().vacant, pool.max_size());
}

#[test]
fn a_rotation_on_a_runtime_that_has_ended_is_a_clear_error() {
    for is_full in [false, true] {
        let (manager, runtime) = (TestManager::new(), runtime());
        let pool = builder(&manager).max_size(1).min_idle(usize::from(is_full));
        let pool = runtime.block_on(pool.build()).unwrap();
        let _held = pool.try_acquire();
        manager.connect.once(Act::Slow(SECOND));
        let rotated = ended().block_on(pool.rotate(|_| Box::pin(ready(Ok(())))));
        assert!(matches!(rotated, Err(RotateError::NoRuntime)), "{is_full}: {rotated:?}");
        let metrics = pool.metrics();
        assert_eq!((metrics.connect_failures, metrics.counts.waiters), (0, 0));
    }
}

#[test]
fn drain_and_close_do_not_wait_on_a_runtime_that_has_ended() {
    let (manager, runtime) = (TestManager::new(), runtime());
    let pool = runtime.block_on(builder(&manager).min_idle(2).build()).unwrap();
    let _held = pool.try_acquire().unwrap();
    assert_eq!(ended().block_on(pool.drain(SECOND)).still_out.len(), 1);
    let pool = runtime.block_on(builder(&manager).min_idle(2).build()).unwrap();
    ended().block_on(pool.close());
    assert_eq!(pool.counts().closing, 2, "on the pool's own runtime, which nobody drives");
}

#[test]
fn drain_close_and_a_rotation_hear_that_their_runtime_ends_while_they_wait() {
    let (manager, own) = (TestManager::new(), runtime());
    let full = || own.block_on(builder(&manager).max_size(2).min_idle(2).build()).unwrap();
    let callers = [runtime(), runtime(), runtime()];
    let handles = callers.each_ref().map(|runtime| runtime.handle().clone());
    let (drained, rotated, closed) = (full(), full(), full());
    let (_held, _all) = (drained.try_acquire(), [rotated.try_acquire(), rotated.try_acquire()]);
    let mut drain = pin!(drained.drain(SECOND));
    let mut rotation = pin!(rotated.rotate(|_| Box::pin(ready(Ok(())))));
    let mut close = pin!(closed.close());
    let [one, two, three] = handles;
    {
        let _entered = one.enter();
        assert!(poll_once(drain.as_mut()).is_pending());
        let _entered = two.enter();
        assert!(poll_once(rotation.as_mut()).is_pending());
        let _entered = three.enter();
        assert!(poll_once(close.as_mut()).is_pending(), "it closes on the pool's own runtime");
    }
    drop(callers);
    assert_eq!(one.block_on(drain).still_out.len(), 1);
    let rotation = two.block_on(rotation);
    assert!(matches!(rotation, Err(RotateError::NoRuntime)), "{rotation:?}");
    assert_eq!((rotated.counts().waiters, rotated.is_closed()), (0, false));
    three.block_on(close);
    assert_eq!(closed.counts().closing, 2);
}

#[test]
fn a_release_on_a_runtime_that_has_ended_has_the_pools_own_reset_the_connection() {
    let (manager, runtime) = (TestManager::new(), runtime());
    let pool = runtime.block_on(builder(&manager).min_idle(1).build()).unwrap();
    let held = pool.try_acquire().unwrap();
    manager.condition.once(Act::Slow(Duration::ZERO)); // dirty
    manager.reset.once(Act::Slow(SECOND / 100));
    let released = ended().block_on(held.release());
    assert!(matches!(released, Err(ReleaseError::NoRuntime)), "{released:?}");
    runtime.block_on(eventually("it is idle", || pool.counts().idle == 1));
    assert_eq!(manager.reset.calls(), 1);
}

#[test]
fn an_acquire_that_waits_on_a_runtime_that_has_ended_is_a_clear_error() {
    let manager = TestManager::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    // What is idle is not to be checked, which nobody could do then.
    let pool = builder(&manager).max_size(1).min_idle(1).check(CheckPolicy::Never);
    let pool = runtime.block_on(pool.build()).unwrap();
    let handle = runtime.handle().clone();
    drop(runtime);
    let held = pool.try_acquire().unwrap();
    // It might come back, but nobody would say when it is time to give up.
    let error = handle.block_on(pool.acquire()).unwrap_err();
    assert!(matches!(error, AcquireError::NoRuntime), "{error:?}");
    held.discard();
    let error = handle.block_on(pool.acquire()).unwrap_err();
    assert!(matches!(error, AcquireError::NoRuntime), "{error:?}");
    assert_eq!(pool.counts().waiters, 0);
}

#[test]
fn an_acquire_on_a_runtime_that_has_ended_costs_no_connection_that_is_to_be_checked_or_prepared() {
    for limit in [Duration::ZERO, SECOND, Duration::MAX] {
        for check in [CheckPolicy::Always, CheckPolicy::Never] {
            let (manager, runtime) = (TestManager::new(), runtime());
            let hooks = Hooks::new().before_acquire(|_| {
                Box::pin(async {
                    tokio::time::sleep(SECOND / 100).await;
                    Ok(())
                })
            });
            let pool = builder(&manager).check(check).hooks(hooks).max_size(2).min_idle(2);
            let pool = runtime.block_on(pool.build()).unwrap();
            runtime.block_on(async { drop([pool.acquire().await, pool.acquire().await]) });
            manager.check.always(Act::Slow(SECOND / 100));
            let error = ended().block_on(pool.acquire_timeout(limit)).map(drop).unwrap_err();
            assert!(matches!(error, AcquireError::NoRuntime), "{limit:?}: {error:?}");
            let metrics = pool.metrics();
            assert_eq!((metrics.counts.idle, metrics.closed.total()), (2, 0), "{limit:?}");
            drop(runtime.block_on(pool.acquire()).expect("it is as fit as before"));
        }
    }
}

#[test]
fn an_acquire_that_needs_a_runtime_and_has_none_is_a_clear_error() {
    let manager = TestManager::new();
    let pool = builder(&manager).build_lazy().unwrap();
    let error = pollster::block_on(pool.acquire()).unwrap_err();
    assert!(matches!(error, AcquireError::NoRuntime), "{error:?}");
    for limit in [SECOND, Duration::MAX] {
        let error = pollster::block_on(pool.acquire_timeout(limit)).unwrap_err();
        assert!(matches!(error, AcquireError::NoRuntime), "{error:?}");
    }
    let error = pollster::block_on(pool.acquire_owned()).unwrap_err();
    assert!(matches!(error, AcquireError::NoRuntime), "{error:?}");
    let error = pool.acquire_blocking().unwrap_err();
    assert!(matches!(error, AcquireError::NoRuntime), "{error:?}");
    assert_eq!(pool.metrics().counts.waiters, 0);
    assert_eq!(manager.connect.calls(), 0);
}

#[test]
fn an_idle_connection_is_acquired_and_released_without_a_runtime() {
    let manager = TestManager::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let pool = runtime.block_on(builder(&manager).min_idle(1).build()).unwrap();
    assert_eq!(pollster::block_on(pool.acquire()).unwrap().id, 1);
    assert_eq!(pool.acquire_blocking().unwrap().id, 1);
    assert_eq!(pool.metrics().counts.idle, 1);
}

// ---- durations without end ----

fn endless(manager: &TestManager) -> PoolBuilder<TestManager> {
    let max = Duration::MAX;
    builder(manager)
        .acquire_timeout(max)
        .connect_timeout(max)
        .check_timeout(max)
        .reset_timeout(max)
        .close_timeout(max)
        .backoff(max, max)
}

#[tokio::test(start_paused = true)]
async fn the_longest_duration_in_every_field_does_not_overflow() {
    let manager = TestManager::new();
    manager.connect.always(Act::Slow(SECOND));
    manager.check.always(Act::Slow(SECOND));
    manager.reset.always(Act::Slow(SECOND));
    manager.close.always(Act::Slow(SECOND));
    manager.condition.once(Act::Slow(SECOND)); // dirty
    let pool =
        endless(&manager).max_size(1).min_idle(1).check(CheckPolicy::Always).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    drop(pool.acquire_timeout(Duration::MAX).await.unwrap());
    drop(pool.acquire_owned().await.unwrap());
    assert_eq!(manager.reset.calls(), 1);
    assert!(manager.check.calls() >= 1);
    pool.close().await;
    assert_eq!((manager.ledger.closed(), manager.ledger.live()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_longest_pause_after_a_failed_connect_does_not_overflow() {
    let manager = TestManager::new();
    manager.connect.always(Act::Error);
    let pool = endless(&manager).build_lazy().unwrap();
    let mut acquire = pin!(pool.acquire());
    assert!(poll_once(acquire.as_mut()).is_pending());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!((manager.connect.calls(), pool.metrics().connect_failures), (1, 1));
    pool.close().await;
    assert!(matches!(acquire.await, Err(AcquireError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn the_pause_doubles_many_times_without_overflow() {
    let manager = TestManager::new();
    for _ in 0..70 {
        manager.connect.once(Act::Error);
    }
    let pool =
        endless(&manager).backoff(Duration::from_nanos(1), Duration::MAX).build_lazy().unwrap();
    assert_eq!(pool.acquire().await.unwrap().id, 1);
    assert_eq!(pool.metrics().connect_failures, 70);
}

#[tokio::test(start_paused = true)]
async fn doubling_the_longest_pause_does_not_overflow() {
    let manager = TestManager::new();
    for _ in 0..3 {
        manager.connect.once(Act::Error);
    }
    // The clock is about to go on for centuries.
    let pool = endless(&manager).maintenance_interval(Duration::MAX).build_lazy().unwrap();
    // A dial that panics is replaced, so that only the panic itself tells of it.
    let panicked = Arc::new(AtomicBool::new(false));
    std::panic::set_hook(Box::new({
        let (here, before) = (std::thread::current().id(), std::panic::take_hook());
        let panicked = panicked.clone();
        move |panic| {
            if std::thread::current().id() == here {
                panicked.store(true, Ordering::SeqCst);
            }
            before(panic);
        }
    }));
    // The pauses are random, up to 584 years; tokio's longest timeout is 30. No clock is too patient.
    for _ in 0..200 {
        match pool.acquire().await {
            Ok(conn) => {
                assert_eq!((conn.id, pool.metrics().connect_failures), (1, 3));
                assert!(!panicked.load(Ordering::SeqCst), "the dial panicked");
                return;
            }
            Err(error) => assert!(matches!(error, AcquireError::Timeout(_)), "{error:?}"),
        }
    }
    panic!("{:?}", pool.metrics());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_longest_blocking_wait_does_not_overflow() {
    let manager = TestManager::new();
    let pool = endless(&manager).max_size(1).build_lazy().unwrap();
    for limit in [None, Some(Duration::MAX)] {
        let held = pool.acquire().await.unwrap();
        let waiter = std::thread::spawn({
            let pool = pool.clone();
            move || match limit {
                None => pool.acquire_blocking().unwrap().id,
                Some(limit) => pool.acquire_blocking_timeout(limit).unwrap().id,
            }
        });
        eventually("the thread waits", || pool.metrics().counts.waiters == 1).await;
        drop(held);
        assert_eq!(join(waiter), 1);
    }
}

// ---- types and sizes ----

#[test]
fn the_pool_and_its_guards_and_futures_may_go_to_other_threads() {
    fn handle<T: Send + Sync + Clone + 'static>() {}
    fn value<T: Send + Sync>() {}
    fn of_future<F: Future + Send>(_: &F) {}
    handle::<Pool<TestManager>>();
    handle::<WeakPool<TestManager>>();
    value::<Pooled<'static, TestManager>>();
    value::<PooledOwned<TestManager>>();
    value::<PoolBuilder<TestManager>>();
    value::<AcquireError<TestError>>();
    value::<BuildError<TestError>>();
    let manager = TestManager::new();
    of_future(&builder(&manager).build());
    let pool = builder(&manager).build_lazy().unwrap();
    of_future(&pool.acquire());
    of_future(&pool.acquire_owned());
    of_future(&pool.acquire_timeout(SECOND));
    of_future(&pool.acquire_owned_timeout(SECOND));
    of_future(&pool.close());
    if let Ok(guard) = pool.try_acquire() {
        of_future(&guard.release());
    }
}

#[test]
fn a_manager_made_of_a_function_is_copied_as_the_function_is() {
    fn is_copy<T: Copy>(_: &T) {}
    // Neither the connection nor the error can be cloned.
    let manager = from_fn(|| async { Err::<Box<dyn Send>, _>(std::fmt::Error) });
    is_copy(&manager);
    let error = from_fn(|| async { Err::<u8, _>(std::io::Error::other("no")) });
    is_copy(&error);
}

#[test]
fn an_owned_acquire_does_not_borrow_the_pool() {
    fn owned<F: Future + Send + 'static>(future: F) -> F {
        future
    }
    let manager = TestManager::new();
    let pool = builder(&manager).build_lazy().unwrap();
    let acquires = (
        owned(pool.acquire_owned()),
        owned(pool.acquire_owned_timeout(SECOND)),
        owned(pool.acquire_owned_with(Priority::High)),
    );
    drop(pool);
    drop(acquires);
}

#[test]
fn a_guard_is_two_words_and_the_acquire_futures_stay_small() {
    assert_eq!(size_of::<Pooled<'_, TestManager>>(), 16);
    assert_eq!(size_of::<PooledOwned<TestManager>>(), 16);
    assert_eq!(size_of::<Pool<TestManager>>(), 16);
    assert_eq!(size_of::<Option<Pooled<'_, TestManager>>>(), 16);
    // A manager whose own futures are next to nothing.
    let manager = from_fn(|| std::future::ready(Ok::<_, TestError>(0_u64)));
    let pool = Pool::builder(manager).build_lazy().unwrap();
    let sizes = [
        ("acquire", size_of_val(&pool.acquire())),
        ("acquire_owned", size_of_val(&pool.acquire_owned())),
        ("acquire_timeout", size_of_val(&pool.acquire_timeout(SECOND))),
        ("acquire_owned_timeout", size_of_val(&pool.acquire_owned_timeout(SECOND))),
        ("acquire_with", size_of_val(&pool.acquire_with(Priority::High))),
        ("acquire_owned_with", size_of_val(&pool.acquire_owned_with(Priority::High))),
    ];
    eprintln!("{sizes:?}");
    for (what, size) in sizes {
        assert!(size <= LARGEST_FUTURE, "{what} has {size} bytes");
    }
}

/// The largest of them when this was written, without optimisation or with; most of it is two
/// timers and a listener, and with the feature `tracing` the span of the wait.
const LARGEST_FUTURE: usize = if cfg!(feature = "tracing") { 896 } else { 856 };
