//! What a pool says of itself: totals, outcomes of waits, distributions of times, and whom it tells.

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::{
    AcquireError, CheckPolicy, Histogram, Hooks, Pool, PoolBuilder, PoolMetrics, Priority, Shed,
};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DIRTY: Act = Act::Slow(Duration::ZERO);

fn pool_of(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    hush_scripted_panics();
    Pool::builder(manager.clone()).max_size(max_size).shards(1)
}

/// Whether a histogram holds these times and no others, to its own precision.
#[track_caller]
fn holds(histogram: &Histogram, times: &[Duration]) {
    let counts = histogram.iter().flat_map(|(time, count)| (0..count).map(move |_| time));
    let told: Vec<Duration> = counts.collect();
    assert_eq!(told.len(), times.len(), "{told:?}");
    for (told, exact) in told.iter().zip(times) {
        let off = told.abs_diff(*exact).as_secs_f64();
        assert!(off <= 0.032 * exact.as_secs_f64(), "{told:?} for {exact:?}");
    }
    assert_eq!(histogram.sum(), times.iter().sum(), "the sum is exact");
}

// ---- waits ----

#[tokio::test(start_paused = true)]
async fn each_acquire_counts_once_and_one_that_did_not_wait_as_zero() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).min_idle(1).build().await.unwrap();
    for _ in 0..5 {
        drop(pool.acquire().await.unwrap());
        drop(pool.try_acquire().unwrap());
    }
    let held = pool.acquire_owned().await.unwrap();
    let release = async {
        tokio::time::sleep(250 * MILLISECOND).await;
        drop(held);
    };
    let (waited, ()) = tokio::join!(pool.acquire(), release);
    drop(waited.unwrap());
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.acquires, metrics.waits.served, metrics.waits.total()), (12, 1, 1));
    let mut times = [Duration::ZERO; 12];
    times[11] = 250 * MILLISECOND;
    holds(&metrics.acquire_wait, &times);
}

#[tokio::test(start_paused = true)]
async fn every_way_in_which_a_wait_ends_is_counted_as_what_it_is() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).max_waiters(1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    assert_eq!(pool.metrics().waits.served, 1, "it waited for the first connect");
    assert!(matches!(pool.acquire_timeout(SECOND).await, Err(AcquireError::Timeout(_))));
    let mut waits = Box::pin(pool.acquire());
    assert!(poll_once(waits.as_mut()).is_pending());
    assert!(matches!(pool.acquire().await, Err(AcquireError::QueueFull)));
    drop(waits);
    drop(pool.acquire());
    assert!(pool.try_acquire().is_err(), "one that does not wait counts nowhere");
    held.discard();
    manager.connect.once(Act::Permanent);
    assert!(matches!(pool.acquire().await, Err(AcquireError::Connect(_))));
    pool.close().await;
    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    let waits = pool.metrics().waits;
    assert_eq!((waits.served, waits.timed_out, waits.cancelled, waits.shed), (1, 1, 1, 0));
    assert_eq!((waits.closed, waits.queue_full, waits.failed), (1, 1, 1));
    assert_eq!((waits.total(), waits.failures()), (6, 5));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_turned_away_is_counted_apart_from_who_would_have_been() {
    for report_only in [false, true] {
        let manager = TestManager::new();
        let shed = Shed::new(5 * MILLISECOND, 100 * MILLISECOND);
        let shed = if report_only { shed.report_only() } else { shed };
        let pool = pool_of(&manager, 1).shed(shed).build_lazy().unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let pool = pool.clone();
            tasks.spawn(async move {
                let acquired = pool.acquire().await;
                if acquired.is_ok() {
                    tokio::time::sleep(10 * MILLISECOND).await;
                }
                acquired.is_err()
            });
        }
        let refused = tasks.join_all().await.into_iter().filter(|refused| *refused).count() as u64;
        let metrics = pool.metrics();
        assert!(metrics.shed > 0);
        assert_eq!(metrics.waits.shed, refused);
        assert_eq!(refused, if report_only { 0 } else { metrics.shed });
        assert_eq!(metrics.waits.served + refused, 40);
    }
}

#[tokio::test]
async fn a_blocking_wait_counts_like_any_other() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let thread = thread::spawn({
        let pool = pool.clone();
        move || {
            let outcome = pool.acquire_blocking_timeout(MILLISECOND).map(drop);
            assert!(matches!(outcome, Err(AcquireError::Timeout(_))));
            drop(pool.acquire_blocking().unwrap());
        }
    });
    eventually("it waits for good", || pool.metrics().waits.timed_out == 1).await;
    eventually("it waits for good", || pool.metrics().counts.waiters == 1).await;
    drop(held);
    eventually("the thread has ended", || thread.is_finished()).await;
    join(thread);
    assert_eq!(balanced(&pool, &manager.ledger).await.waits.served, 2);
}

// ---- times ----

#[tokio::test(start_paused = true)]
async fn connect_times_and_lifetimes_are_those_of_the_connections() {
    let manager = TestManager::new();
    manager.connect.once(Act::Slow(20 * MILLISECOND));
    manager.connect.once(Act::Error);
    manager.connect.once(Act::Slow(40 * MILLISECOND));
    let pool = pool_of(&manager, 2).backoff(MILLISECOND, MILLISECOND).build_lazy().unwrap();
    let first = pool.acquire().await.unwrap();
    let second = pool.acquire().await.unwrap();
    holds(&pool.metrics().connect_time, &[20 * MILLISECOND, 40 * MILLISECOND]);
    tokio::time::advance(10 * SECOND).await;
    let detached = second.detach();
    tokio::time::advance(90 * SECOND).await;
    first.discard();
    let metrics = pool.metrics();
    assert_eq!((metrics.lifetime.count(), metrics.closed.total()), (2, 2));
    let (short, long) = (metrics.lifetime.quantile(0.0).unwrap(), metrics.lifetime.max().unwrap());
    assert!(short.abs_diff(10 * SECOND) < SECOND / 2, "{short:?}");
    assert!(long.abs_diff(100 * SECOND) < 4 * SECOND, "{long:?}");
    drop(detached);
}

#[tokio::test(start_paused = true)]
async fn every_way_in_which_a_connection_ends_leaves_its_lifetime() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).check(CheckPolicy::Always).build_lazy().unwrap();
    // Broken, reset in vain, abandoned in a check, invalidated, closed.
    manager.condition.once(Act::Error);
    drop(pool.acquire().await.unwrap());
    manager.condition.once(DIRTY);
    manager.reset.once(Act::Error);
    drop(pool.acquire().await.unwrap());
    drop(pool.acquire().await.unwrap());
    manager.check.once(Act::Never);
    {
        let mut acquire = pin!(pool.acquire());
        assert!(poll_once(acquire.as_mut()).is_pending());
    }
    drop(pool.acquire().await.unwrap());
    pool.invalidate();
    drop(pool.acquire().await.unwrap());
    pool.close().await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!(metrics.closed.total(), 5, "{metrics:?}");
    assert_eq!((metrics.closed.abandoned, metrics.closed.failed_reset), (1, 1));
    assert_eq!(metrics.lifetime.count(), 5);
}

#[tokio::test(start_paused = true)]
async fn the_time_in_use_is_measured_only_if_that_is_wanted() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    assert_eq!(pool.metrics().use_time, None);
    let pool = pool_of(&manager, 2).time_use(true).build_lazy().unwrap();
    let times = [3 * MILLISECOND, 50 * MILLISECOND, 700 * MILLISECOND, SECOND];
    for (round, time) in times.into_iter().enumerate() {
        let conn = pool.acquire().await.unwrap();
        tokio::time::advance(time).await;
        match round {
            0 => drop(conn),
            1 => conn.release().await.unwrap(),
            2 => conn.discard(),
            _ => drop(conn.detach()),
        }
    }
    holds(pool.metrics().use_time.as_ref().unwrap(), &times);
}

// ---- what went wrong, and who holds what ----

#[tokio::test(start_paused = true)]
async fn the_last_failure_to_connect_is_told_with_its_causes_and_its_age_for_good() {
    #[derive(Debug, thiserror::Error)]
    #[error("the door is shut")]
    struct Shut(#[source] std::num::ParseIntError);
    let fails = Arc::new(AtomicBool::new(true));
    let manager = millpond::from_fn({
        let fails = fails.clone();
        move || {
            let fails = fails.load(SeqCst);
            async move { if fails { Err(Shut("x".parse::<u8>().unwrap_err())) } else { Ok(()) } }
        }
    });
    let pool = Pool::builder(manager).max_size(1).build_lazy().unwrap();
    assert_eq!(pool.metrics().last_connect_error, None);
    pool.acquire_timeout(SECOND / 2).await.map(drop).unwrap_err();
    fails.store(false, SeqCst);
    drop(pool.acquire().await.unwrap());
    let before = pool.metrics().last_connect_error.unwrap();
    assert_eq!(before.message, "the door is shut: invalid digit found in string");
    tokio::time::advance(60 * SECOND).await;
    let after = pool.metrics().last_connect_error.unwrap();
    assert_eq!((after.message, after.ago), (before.message, before.ago + 60 * SECOND));
}

#[test]
fn an_error_is_told_with_its_causes_in_one_line() {
    #[derive(Debug, thiserror::Error)]
    #[error("ERROR: no such user\r\nHINT: another\n")]
    struct Refused;
    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Failed<'s> {
        says: &'s str,
        source: Refused,
    }
    let says = String::from("no:\nnot now");
    let error = Failed { says: &says, source: Refused };
    assert_eq!(millpond::with_causes(&error), "no: not now: ERROR: no such user HINT: another");
    let error: Box<dyn std::error::Error + Send + Sync> = "all of it".into();
    assert_eq!(millpond::with_causes(&*error), "all of it");
    fn words() -> &'static str {
        panic!("scripted")
    }
    #[derive(Debug, thiserror::Error)]
    #[error("{}", words())]
    struct Panics;
    let told = "an error that panicked while it was told: scripted";
    assert_eq!(millpond::with_causes(&Panics), told);
}

/// Of redis the error says what its cause says; of rusqlite the cause says what its error says, and more.
#[tokio::test(start_paused = true)]
async fn a_failure_whose_cause_says_the_same_is_told_once() {
    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Link {
        says: &'static str,
        #[source]
        cause: Option<Box<Link>>,
    }
    for (chain, told) in [
        (["refused", "refused", "refused"], "refused"),
        (["cannot connect: refused", "refused", "errno 111"], "cannot connect: refused: errno 111"),
        (
            ["cannot open", "no database", "code 26: no database"],
            "cannot open: code 26: no database",
        ),
        (["refused", "", "by the door"], "refused: by the door"),
        (
            ["the door is shut", "the key is lost", "the door is shut, lost"],
            "the door is shut: the key is lost: the door is shut, lost",
        ),
    ] {
        let connect = move || {
            let mut links = chain.into_iter().rev();
            let last = Link { says: links.next().unwrap(), cause: None };
            let first = links.fold(last, |cause, says| Link { says, cause: Some(Box::new(cause)) });
            async { Err::<(), _>(first) }
        };
        let pool = Pool::builder(millpond::from_fn(connect)).build_lazy().unwrap();
        pool.acquire_timeout(SECOND / 2).await.map(drop).unwrap_err();
        assert_eq!(pool.metrics().last_connect_error.unwrap().message, told);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_cannot_connect_is_told_as_well() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    manager.connect.once(Act::Error);
    pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err();
    let told = pool.metrics().last_connect_error.unwrap();
    assert_eq!(told.message, "scripted connect error");
}

#[tokio::test(start_paused = true)]
async fn the_oldest_holder_is_the_one_who_has_held_for_longest() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    assert_eq!(pool.metrics().oldest_holder, None);
    let first = pool.acquire().await.unwrap();
    tokio::time::sleep(10 * SECOND).await;
    let _second = pool.acquire().await.unwrap();
    tokio::time::sleep(10 * SECOND).await;
    let oldest = pool.metrics().oldest_holder.unwrap();
    assert_eq!(oldest.connection, first.info().id);
    assert!(oldest.held >= 18 * SECOND, "{oldest}");
    drop(first);
    assert_eq!(pool.metrics().oldest_holder.unwrap().connection, 2);
}

#[tokio::test(start_paused = true)]
async fn of_holders_of_the_same_time_the_one_with_the_smallest_number_is_named() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).build_lazy().unwrap();
    let held = [(); 3].map(|()| pool.acquire());
    let mut all = Vec::new();
    for acquire in held {
        all.push(acquire.await.unwrap());
    }
    assert_eq!(pool.metrics().oldest_holder.unwrap().connection, 1, "nobody has looked");
    tokio::time::sleep(10 * SECOND).await;
    let mut metrics = pool.metrics();
    assert_eq!(metrics.oldest_holder.unwrap().connection, 1);
    let mut other = metrics.clone();
    other.oldest_holder.as_mut().unwrap().connection = 7;
    other.merge(&metrics);
    metrics.merge(&other);
    assert_eq!([&other, &metrics].map(|sum| sum.oldest_holder.unwrap().connection), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_holder_is_told_with_at_least_how_long_the_connection_has_been_held() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    let mut holder = pool.holders()[0];
    let site = holder.site.take().unwrap();
    let mut told = |millis| {
        holder.held = Duration::from_millis(millis) + Duration::from_nanos(542_383);
        holder.to_string()
    };
    assert_eq!(told(99), "connection 1", "that is nothing");
    assert_eq!(told(100), "connection 1 for at least 0.1s");
    assert_eq!(told(4015), "connection 1 for at least 4.0s");
    assert_eq!(told(4999), "connection 1 for at least 4.9s", "and not more than it is");
    assert_eq!(told(754_321), "connection 1 for at least 754.3s");
    holder.site = Some(site);
    assert!(holder.to_string().ends_with(&format!("754.3s, acquired at {site}")), "{holder}");
}

// ---- under stress ----

/// Counts an acquire that gets its connection and did not have it at once.
async fn noting_a_wait<T, E>(
    waited: &AtomicU64,
    acquire: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let (mut acquire, mut waits) = (pin!(acquire), false);
    let outcome = poll_fn(|cx| {
        let polled = acquire.as_mut().poll(cx);
        waits |= polled.is_pending();
        polled
    });
    let outcome = outcome.await;
    waited.fetch_add(u64::from(waits && outcome.is_ok()), SeqCst);
    outcome
}

/// Figures that others count as well, at every moment and in the end.
#[test]
fn figures_match_an_independent_count_under_stress() {
    const TASKS: u64 = 16;
    const TURNS: u64 = 400;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let manager = TestManager::new();
        let (checkouts, destroyed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let hooks = Hooks::new()
            .on_checkout({
                let checkouts = checkouts.clone();
                move |_| {
                    checkouts.fetch_add(1, SeqCst);
                }
            })
            .on_destroy({
                let destroyed = destroyed.clone();
                move || {
                    destroyed.fetch_add(1, SeqCst);
                }
            });
        let builder = pool_of(&manager, 4).time_use(true).max_waiters(8).hooks(hooks);
        let pool = builder.reserved(Priority::High, 1).build_lazy().unwrap();
        let sampler = Sampler::start({
            let (pool, before) = (pool.clone(), Mutex::new(None::<PoolMetrics>));
            let (checkouts, destroyed) = (checkouts.clone(), destroyed.clone());
            move || {
                let (told, ends) = (checkouts.load(SeqCst), destroyed.load(SeqCst));
                let now = pool.metrics();
                // Of one acquire each, a hook may have been told before it was counted, or is still to be.
                let counted = told.saturating_sub(TASKS)..=checkouts.load(SeqCst) + TASKS;
                assert!(counted.contains(&now.acquires), "{counted:?} {now:?}");
                assert!(ends <= now.closed.total(), "{ends} {now:?}");
                let mut before = before.lock().unwrap();
                if let Some(before) = &*before {
                    let pairs = [
                        (before.acquires, now.acquires),
                        (before.created, now.created),
                        (before.closed.total(), now.closed.total()),
                        (before.waits.total(), now.waits.total()),
                        (before.connect_time.count(), now.connect_time.count()),
                    ];
                    assert!(pairs.iter().all(|(before, now)| before <= now), "{pairs:?}");
                }
                *before = Some(now);
            }
        });
        let (outcomes, waited): ([Arc<AtomicU64>; 4], Arc<AtomicU64>) = Default::default();
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            let (pool, outcomes, waited) = (pool.clone(), outcomes.clone(), waited.clone());
            tasks.spawn(async move {
                let mut random = Random::new(task);
                for _ in 0..TURNS {
                    let limit = Duration::from_micros(random.below(400) as u64);
                    let outcome = match random.below(4) {
                        0 => noting_a_wait(&waited, pool.acquire_timeout(limit)).await,
                        1 => noting_a_wait(&waited, pool.acquire_with(Priority::High)).await,
                        2 => match tokio::time::timeout(limit, pool.acquire()).await {
                            Ok(outcome) => outcome,
                            // Whether it had begun to wait by then, only the pool knows.
                            Err(_) => continue,
                        },
                        _ => noting_a_wait(&waited, pool.acquire()).await,
                    };
                    let which = match outcome {
                        Ok(conn) => {
                            tokio::task::yield_now().await;
                            if random.below(20) == 0 {
                                conn.discard();
                            } else {
                                drop(conn);
                            }
                            0
                        }
                        Err(AcquireError::Timeout(_)) => 1,
                        Err(AcquireError::QueueFull) => 2,
                        Err(_) => 3,
                    };
                    outcomes[which].fetch_add(1, SeqCst);
                }
            });
        }
        tasks.join_all().await;
        assert!(sampler.stop() > 0);
        let metrics = balanced(&pool, &manager.ledger).await;
        let outcomes = outcomes.map(|count| count.load(SeqCst));
        assert_eq!(metrics.waits.timed_out, outcomes[1]);
        assert_eq!(metrics.waits.queue_full, outcomes[2]);
        assert_eq!((metrics.waits.failed + metrics.waits.closed, outcomes[3]), (0, 0));
        assert_eq!(metrics.acquires, checkouts.load(SeqCst));
        assert!(metrics.acquires >= outcomes[0], "those that were given up may have had one");
        let served = metrics.waits.served;
        assert!((waited.load(SeqCst)..=metrics.acquires).contains(&served), "{metrics:?}");
        assert_eq!(metrics.use_time.as_ref().unwrap().count(), metrics.acquires);
        assert_eq!(metrics.lifetime.count(), manager.ledger.dropped() as u64);
        let told = || destroyed.load(SeqCst) == metrics.closed.total();
        eventually("each end is told", told).await;
        assert_eq!(metrics.connect_time.count(), metrics.created);
        assert_eq!(metrics.created, manager.ledger.opened() as u64);
    });
}

// ---- callbacks ----

#[tokio::test(start_paused = true)]
async fn a_callback_hears_at_each_interval_until_the_pool_is_closed() {
    let manager = TestManager::new();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let builder = pool_of(&manager, 2).on_metrics(10 * SECOND, {
        let heard = heard.clone();
        move |metrics| heard.lock().unwrap().push(metrics.acquires)
    });
    let pool = builder.build().await.unwrap();
    // It does not depend on the reaper.
    pool.maintenance().pause();
    for acquires in 1..=3 {
        drop(pool.acquire().await.unwrap());
        tokio::time::sleep(10 * SECOND + MILLISECOND).await;
        eventually("it has been told", || heard.lock().unwrap().len() == acquires).await;
    }
    assert_eq!(*heard.lock().unwrap(), [1, 2, 3]);
    pool.close().await;
    drop(pool);
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(heard.lock().unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_panics_is_called_again() {
    let manager = TestManager::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let builder = pool_of(&manager, 1).on_metrics(SECOND, {
        let calls = calls.clone();
        move |_| {
            calls.fetch_add(1, SeqCst);
            panic!("scripted panic in on_metrics");
        }
    });
    let pool = builder.build().await.unwrap();
    eventually("it is called again", || calls.load(SeqCst) > 2).await;
    drop(pool.acquire().await.unwrap());
}

#[tokio::test]
async fn a_callback_that_blocks_holds_nobody_up() {
    let manager = TestManager::new();
    let entered = Arc::new(AtomicUsize::new(0));
    let (gate, closed) = std::sync::mpsc::channel::<()>();
    let closed = Mutex::new(closed);
    let builder = pool_of(&manager, 1).on_metrics(MILLISECOND, {
        let entered = entered.clone();
        move |_| {
            entered.fetch_add(1, SeqCst);
            // Until the gate is dropped.
            let _ = closed.lock().unwrap().recv();
        }
    });
    let pool = builder.build().await.unwrap();
    eventually("it blocks", || entered.load(SeqCst) == 1).await;
    // It is due again several times.
    let began = std::time::Instant::now();
    while began.elapsed() < 20 * MILLISECOND {
        drop(pool.acquire().await.unwrap());
        pool.maintenance().run_once().await;
        // Lets the task run that would call it.
        tokio::time::sleep(MILLISECOND).await;
    }
    assert_eq!(entered.load(SeqCst), 1, "never twice at once");
    drop(gate);
    eventually("it is called once more", || entered.load(SeqCst) > 1).await;
}

#[test]
fn a_callback_that_outlives_its_runtime_is_not_called_beside_itself_on_the_next() {
    // A paused clock stands still while a callback blocks.
    let [one, two] = [false, true].map(|paused| {
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(paused).build().unwrap()
    });
    let manager = TestManager::new();
    let [calls, running, most]: [Arc<AtomicUsize>; 3] = Default::default();
    let (gate, closed) = std::sync::mpsc::channel::<()>();
    let closed = Mutex::new(closed);
    let builder = pool_of(&manager, 1).on_metrics(MILLISECOND, {
        let (calls, running, most) = (calls.clone(), running.clone(), most.clone());
        move |_| {
            most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            if calls.fetch_add(1, SeqCst) == 0 {
                // Until the gate is dropped.
                let _ = closed.lock().unwrap().recv();
            }
            running.fetch_sub(1, SeqCst);
        }
    });
    let pool = one.block_on(async { builder.build_lazy() }).unwrap();
    one.block_on(async {
        drop(pool.acquire().await.unwrap());
        eventually("it blocks", || calls.load(SeqCst) == 1).await;
    });
    one.shutdown_background();
    two.block_on(async {
        pool.acquire().await.unwrap().discard();
        drop(pool.acquire().await.expect("the pool goes on here"));
        // It is due several times.
        tokio::time::sleep(SECOND).await;
        drop(gate);
        eventually_blocking("it has ended", || running.load(SeqCst) == 0);
        eventually("it is called once more", || calls.load(SeqCst) > 1).await;
    });
    assert_eq!(most.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn an_interval_of_zero_is_refused_and_the_longest_does_not_overflow() {
    let manager = TestManager::new();
    let error = pool_of(&manager, 1).on_metrics(Duration::ZERO, |_| ()).build_lazy().unwrap_err();
    assert_eq!(error.to_string(), "on_metrics is 0ns, but it must be above zero");
    let pool = pool_of(&manager, 1).on_metrics(Duration::MAX, |_| ()).build().await.unwrap();
    tokio::time::sleep(100 * SECOND).await;
    drop(pool.acquire().await.unwrap());
}
