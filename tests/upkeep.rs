//! What the pool does by the clock: lifetimes, idle timeouts in each order, checks of what has been
//! idle, keepalive, `min_idle`, leaks; and that it can be paused, timed and run by hand.
//!
//! Not here: what happens to a connection that is ended (`health.rs`, `close.rs`).

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;

use millpond::{
    AcquireError, CheckPolicy, Health, Hooks, IdleOrder, Leak, Pool, PoolBuilder, Priority, Stage,
    WarmUpError, WeakPool, from_fn,
};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;
use support::{
    Act, Conn, TestManager, balanced, eventually, eventually_blocking, hush_scripted_panics,
    poll_once, turns,
};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const ORDERS: [IdleOrder; 3] = [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo];

/// Nothing by the clock but what a test asks for.
fn builder(manager: &TestManager) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone())
        .check(CheckPolicy::Never)
        .max_lifetime(None)
        .idle_timeout(None)
        .keepalive_interval(None)
}

/// Uses so many connections at the same time, once.
async fn use_at_once(pool: &Pool<TestManager>, count: usize) {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(pool.acquire().await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_at_its_lifetime_and_not_before() {
    let manager = TestManager::new();
    let pool =
        builder(&manager).max_lifetime(MINUTE).lifetime_jitter(0.0).min_idle(1).build().await;
    let pool = pool.unwrap();
    sleep(MINUTE - SECOND).await;
    assert_eq!(pool.metrics().closed.total(), 0);
    // Its replacement is opened first, so the two may be there together for one look.
    sleep(2 * SECOND + SECOND / 2).await;
    assert_eq!((pool.metrics().closed.lifetime, manager.ledger.closed()), (1, 1));
    assert_eq!((pool.metrics().counts.idle, pool.metrics().created), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_is_fixed_at_birth_and_use_does_not_prolong_it() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_lifetime(MINUTE).lifetime_jitter(0.0).build().await.unwrap();
    for _ in 0..70 {
        drop(pool.acquire().await.unwrap());
        sleep(SECOND).await;
    }
    assert_eq!(pool.metrics().closed.lifetime, 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_use_outlives_its_lifetime_and_ends_on_return() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_lifetime(MINUTE).lifetime_jitter(0.0).build().await.unwrap();
    let held = pool.acquire().await.unwrap();
    sleep(10 * MINUTE).await;
    assert_eq!((pool.metrics().closed.total(), manager.ledger.live()), (0, 1));
    drop(held);
    eventually("it is closed", || manager.ledger.live() == 0).await;
    assert_eq!(pool.metrics().closed.lifetime, 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_use_ends_on_return_from_the_beginning_of_its_jitter_on() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_lifetime(MINUTE).lifetime_jitter(1.0).build_lazy().unwrap();
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(pool.acquire().await.unwrap());
    }
    sleep(2 * MINUTE / 3).await;
    drop(held);
    // Their ends lie evenly on the minute.
    let ended = pool.metrics().closed.lifetime;
    assert!((4..=9).contains(&ended), "{ended} of 10 after two thirds of their lifetime");
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_limit_never_expires() {
    let manager = TestManager::new();
    let pool = builder(&manager).min_idle(2).build().await.unwrap();
    sleep(100_000 * SECOND).await;
    assert_eq!(pool.metrics().closed.total(), 0);
}

/// A hundred connections are opened at once; answers the most that were opened again, and the most
/// that were closed, within any second from then on, and how often each was replaced on average.
async fn most_in_a_second(max_size: usize) -> (u64, u64, u64) {
    let manager = TestManager::new();
    let pool = builder(&manager)
        .max_size(max_size)
        .min_idle(100)
        .max_connecting(100)
        .max_lifetime(30 * MINUTE)
        .build()
        .await
        .unwrap();
    let (mut opened, mut closed) = (0, 0);
    let mut before = pool.metrics();
    for _ in 0..3 * 30 * 60 {
        sleep(SECOND).await;
        let now = pool.metrics();
        opened = opened.max(now.created - before.created);
        closed = closed.max(now.closed.lifetime - before.closed.lifetime);
        assert!(max_size == 100 || now.counts.alive() >= 100, "closed before it was replaced");
        before = now;
    }
    (opened, closed, before.created / 100)
}

#[tokio::test(start_paused = true)]
async fn a_hundred_opened_together_never_reopen_more_than_five_in_a_second() {
    for max_size in [100, 120] {
        let (opened, closed, times) = most_in_a_second(max_size).await;
        assert!(opened <= 5 && closed <= 5, "{opened} opened, {closed} closed in a second");
        assert!(times >= 3, "they were not replaced");
    }
}

#[tokio::test(start_paused = true)]
async fn a_needed_connection_stays_until_its_replacement_is_there() {
    let manager = TestManager::new();
    let pool = builder(&manager)
        .max_size(2)
        .min_idle(1)
        .max_lifetime(MINUTE)
        .lifetime_jitter(0.5)
        .build()
        .await
        .unwrap();
    manager.connect.always(Act::Slow(SECOND / 2));
    let mut without = Duration::ZERO;
    for _ in 0..10 * 60 * 10 {
        sleep(SECOND / 10).await;
        if pool.metrics().counts.idle == 0 {
            without += SECOND / 10;
        }
    }
    let ended = pool.metrics().closed.lifetime;
    assert!((9..=21).contains(&ended), "{ended} in ten minutes");
    // Of so many in a row, one can be due so shortly before its end that no look comes between.
    assert!(without < SECOND, "none was there for {without:?}");
}

#[tokio::test(start_paused = true)]
async fn where_there_is_no_room_for_a_replacement_none_is_waited_for() {
    let manager = TestManager::new();
    let pool = builder(&manager)
        .max_size(10)
        .min_idle(10)
        .max_lifetime(MINUTE)
        .lifetime_jitter(0.5)
        .build()
        .await
        .unwrap();
    sleep(3 * MINUTE / 4).await;
    // Their ends lie evenly on the second half of the minute.
    let ended = pool.metrics().closed.lifetime;
    assert!((3..=7).contains(&ended), "{ended} of 10 after half of that");
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_is_reserved_is_no_room_for_a_replacement() {
    let manager = TestManager::new();
    let mut pools = Vec::new();
    for _ in 0..40 {
        let pool = builder(&manager).max_size(3).reserved(Priority::High, 2).min_idle(1);
        let pool = pool.max_lifetime(MINUTE).lifetime_jitter(0.5).build().await;
        pools.push(pool.unwrap());
    }
    sleep(3 * MINUTE / 4).await;
    let ended: u64 = pools.iter().map(|pool| pool.metrics().closed.lifetime).sum();
    // Their ends lie somewhere in the second half of the minute.
    assert!((8..=32).contains(&ended), "{ended} of 40 after half of that");
}

#[tokio::test(start_paused = true)]
async fn those_that_come_of_age_together_stay_until_each_can_be_replaced() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_size(8).min_idle(4).max_lifetime(MINUTE).lifetime_jitter(0.9);
    let pool = pool.build().await.unwrap();
    pool.maintenance().pause();
    sleep(MINUTE - SECOND).await;
    manager.connect.always(Act::Never);
    for _ in 0..4 {
        pool.maintenance().run_once().await;
        assert_eq!((pool.counts().idle, pool.counts().connecting), (4, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_replacement_that_cannot_be_opened_does_not_keep_the_old_one_for_ever() {
    let manager = TestManager::new();
    let pool =
        builder(&manager).min_idle(1).max_lifetime(MINUTE).lifetime_jitter(0.5).build().await;
    let pool = pool.unwrap();
    manager.connect.always(Act::Error);
    sleep(MINUTE - SECOND).await;
    assert_eq!(pool.metrics().counts.idle, 1, "it stays as long as it may");
    sleep(2 * SECOND).await;
    assert_eq!((pool.metrics().counts.idle, pool.metrics().closed.lifetime), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_they_do_not_all_end_at_once() {
    for interval in [SECOND, SECOND / 10] {
        let manager = TestManager::new();
        let pool = builder(&manager).max_size(100).max_lifetime(MINUTE);
        let pool = pool.maintenance_interval(interval).build_lazy().unwrap();
        pool.warm_up(100).await.unwrap();
        pool.maintenance().pause();
        sleep(10 * MINUTE).await;
        assert_eq!(pool.metrics().closed.total(), 0, "a pause");
        pool.maintenance().resume();
        for seconds in 1..=20 {
            pool.maintenance().run_once().await;
            sleep(SECOND).await;
            assert!(pool.metrics().closed.lifetime <= 5 * (seconds + 1));
        }
        sleep(2 * SECOND).await;
        assert_eq!(pool.metrics().closed.lifetime, 100);
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_not_end_at_once_ends_in_the_next_seconds_however_long_the_interval() {
    for in_use in [false, true] {
        let manager = TestManager::new();
        let pool = builder(&manager)
            .max_size(100)
            .max_lifetime(MINUTE)
            .lifetime_jitter(0.0)
            .maintenance_interval(10 * MINUTE)
            .build_lazy()
            .unwrap();
        pool.warm_up(100).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..if in_use { 100 } else { 0 } {
            held.push(pool.acquire().await.unwrap());
        }
        sleep(10 * MINUTE + SECOND / 2).await;
        let ended = pool.metrics().closed.lifetime;
        assert_eq!(ended, if in_use { 0 } else { 5 }, "at the first look");
        sleep(20 * SECOND).await;
        drop(held);
        assert_eq!(pool.metrics().closed.lifetime, 100, "in use: {in_use}");
    }
}

#[tokio::test(start_paused = true)]
async fn idle_connections_end_at_the_timeout_down_to_min_idle() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = builder(&manager).order(order).min_idle(2).idle_timeout(MINUTE).build().await;
        let pool = pool.unwrap();
        pool.warm_up(10).await.unwrap();
        sleep(MINUTE - SECOND).await;
        assert_eq!(pool.metrics().counts.idle, 10, "{order:?}");
        sleep(3 * SECOND).await;
        assert_eq!((pool.metrics().counts.idle, pool.metrics().closed.idle), (2, 8), "{order:?}");
        assert_eq!(manager.ledger.closed(), 8, "{order:?}");
        sleep(10 * MINUTE).await;
        assert_eq!(pool.metrics().counts.idle, 2, "{order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_peak_a_small_load_keeps_what_it_needs() {
    for order in ORDERS {
        for shards in [1, 4] {
            let manager = TestManager::new();
            let pool = builder(&manager).order(order).shards(shards).idle_timeout(MINUTE);
            let pool = pool.build().await.unwrap();
            use_at_once(&pool, 10).await;
            // Two at once, many times between any two looks, so that none ever looks idle.
            for _ in 0..3 * 60 * 10 {
                for _ in 0..10 {
                    use_at_once(&pool, 2).await;
                }
                sleep(SECOND / 10).await;
            }
            let left = pool.metrics().counts.alive();
            assert!((2..=3).contains(&left), "{order:?}, {shards} shards: {left} are left");
            // A look does not see those two in use, so they may end once or twice in that time.
            let created = pool.metrics().created;
            assert!(created <= 16, "{order:?}, {shards} shards: {created} were opened");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_surplus_ends_down_to_min_idle() {
    for order in [IdleOrder::Recent, IdleOrder::Fifo] {
        let manager = TestManager::new();
        let pool = builder(&manager).order(order).min_idle(4).idle_timeout(MINUTE).build().await;
        let pool = pool.unwrap();
        use_at_once(&pool, 10).await;
        // So that none ever looks idle, until the surplus ends.
        for _ in 0..10 * 61 {
            for _ in 0..10 {
                use_at_once(&pool, 2).await;
            }
            sleep(SECOND / 10).await;
        }
        eventually("it ends", || pool.metrics().closed.idle > 0).await;
        let metrics = pool.metrics();
        assert_eq!((metrics.closed.idle, metrics.counts.idle), (6, 4), "{order:?}");
        balanced(&pool, &manager.ledger).await;
        assert_eq!(manager.ledger.closed(), 6, "{order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_every_few_seconds_keeps_what_it_needs() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = builder(&manager).order(order).idle_timeout(MINUTE).build().await.unwrap();
        use_at_once(&pool, 10).await;
        for _ in 0..60 {
            let mut held = Vec::new();
            for _ in 0..6 {
                held.push(pool.acquire().await.unwrap());
            }
            // Long enough for a look to see it.
            sleep(SECOND).await;
            drop(held);
            sleep(4 * SECOND).await;
        }
        assert_eq!(pool.metrics().counts.alive(), 6, "{order:?}");
        assert_eq!(pool.metrics().created, 10, "{order:?}: the burst had to open some again");
    }
}

#[tokio::test(start_paused = true)]
async fn one_look_alone_says_nothing_about_a_time() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = builder(&manager).order(order).idle_timeout(SECOND).build().await.unwrap();
        pool.maintenance().pause();
        sleep(MINUTE).await;
        pool.warm_up(10).await.unwrap();
        pool.maintenance().run_once().await;
        assert_eq!(pool.metrics().counts.idle, 10, "{order:?}");
    }
}

/// The numbers of the idle connections, in the order in which they are handed out.
fn idle_in_order(pool: &Pool<TestManager>) -> Vec<usize> {
    let taken: Vec<_> = std::iter::from_fn(|| pool.try_acquire().ok()).collect();
    taken.iter().map(|connection| connection.id).collect()
}

#[tokio::test(start_paused = true)]
async fn what_on_leak_uses_is_not_ended_for_having_been_idle() {
    for order in ORDERS {
        let mut orders = Vec::new();
        for idle_timeout in [None, Some(MINUTE)] {
            let manager = TestManager::new();
            let weak: Arc<OnceLock<WeakPool<TestManager>>> = Arc::default();
            let used = Arc::new(Mutex::new(Vec::new()));
            // The look that finds the leak finds the others idle for too long, just before this.
            let hooks = Hooks::new().on_leak({
                let (weak, used) = (weak.clone(), used.clone());
                move |_| {
                    let pool = weak.get().and_then(WeakPool::upgrade).expect("it is there");
                    used.lock().unwrap().push(idle_in_order(&pool).len());
                }
            });
            let pool = builder(&manager)
                .order(order)
                .shards(1)
                .max_size(4)
                .idle_timeout(idle_timeout)
                .leak_after(MINUTE)
                .hooks(hooks)
                .build_lazy()
                .unwrap();
            weak.set(pool.downgrade()).expect("once");
            let _held = pool.acquire().await.unwrap();
            use_at_once(&pool, 3).await;
            while pool.metrics().leaks == 0 {
                sleep(SECOND / 10).await;
            }
            assert_eq!(*used.lock().unwrap(), [3], "{order:?}");
            assert_eq!(pool.metrics().closed.total(), 0, "{order:?}");
            orders.push(idle_in_order(&pool));
        }
        assert_eq!(orders[1], orders[0], "{order:?}: and the look leaves no trace");
    }
}

#[tokio::test(start_paused = true)]
async fn on_leak_may_ask_the_pool_for_all_that_it_knows() {
    let manager = TestManager::new();
    let weak: Arc<OnceLock<WeakPool<TestManager>>> = Arc::default();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hooks = Hooks::new().on_leak({
        let (weak, heard) = (weak.clone(), heard.clone());
        move |_| {
            let pool = weak.get().and_then(WeakPool::upgrade).expect("it is there");
            let leaks = (pool.metrics().leaks, pool.status().metrics.leaks);
            heard.lock().unwrap().push((leaks, pool.holders().len()));
        }
    });
    let pool = builder(&manager).leak_after(MINUTE).hooks(hooks).build().await.unwrap();
    weak.set(pool.downgrade()).expect("once");
    let _held = pool.acquire().await.unwrap();
    sleep(2 * MINUTE).await;
    assert_eq!(*heard.lock().unwrap(), [((1, 1), 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_has_been_idle_is_checked_before_its_next_use_and_once() {
    let manager = TestManager::new();
    let pool = builder(&manager).check(CheckPolicy::IfIdleFor(5 * SECOND)).build().await.unwrap();
    drop(pool.acquire().await.unwrap());
    sleep(4 * SECOND).await;
    drop(pool.acquire().await.unwrap());
    assert_eq!(manager.check.calls(), 0, "it has not been idle for long");
    sleep(7 * SECOND).await;
    drop(pool.acquire().await.unwrap());
    assert_eq!(manager.check.calls(), 1);
    drop(pool.acquire().await.unwrap());
    assert_eq!((manager.check.calls(), pool.metrics().checks), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_has_passed_its_check_in_the_background_is_there_for_whoever_only_tries() {
    for check in [CheckPolicy::IfIdleFor(5 * SECOND), CheckPolicy::Always] {
        let manager = TestManager::new();
        let pool = builder(&manager).check(check).min_idle(1).build().await.unwrap();
        sleep(10 * SECOND).await;
        assert!(pool.try_acquire().is_err(), "it has to be checked first");
        // Several looks of the maintenance later.
        sleep(3 * SECOND).await;
        assert_eq!(manager.check.calls(), 1);
        drop(pool.try_acquire().unwrap_or_else(|error| panic!("{check:?}: {error}")));
    }
}

#[tokio::test(start_paused = true)]
async fn what_passes_its_check_after_an_acquire_has_given_up_is_there_for_the_next_one() {
    let manager = TestManager::new();
    let pool = builder(&manager).check(CheckPolicy::Always).min_idle(1).build().await.unwrap();
    manager.check.always(Act::Slow(SECOND));
    sleep(2 * SECOND).await;
    assert!(pool.acquire_timeout(Duration::ZERO).await.is_err(), "it has to be checked first");
    // Several looks of the maintenance later.
    sleep(4 * SECOND).await;
    drop(pool.acquire_timeout(Duration::ZERO).await.unwrap());
    assert_eq!(manager.check.calls(), 1);
}

#[test]
fn what_passes_its_check_after_a_thread_has_given_up_is_there_for_the_next_one() {
    let runtime = &mut tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let manager = TestManager::new();
    let pool = builder(&manager).check(CheckPolicy::Always).min_idle(1);
    let pool = runtime.block_on(pool.build()).unwrap();
    runtime.block_on(async { sleep(2 * SECOND).await });
    // Nobody drives the runtime meanwhile.
    let refused = pool.acquire_blocking_timeout(Duration::ZERO).unwrap_err();
    assert!(matches!(&refused, AcquireError::Timeout(late) if late.stage() == Stage::Checking));
    // The check, and several looks of the maintenance.
    runtime.block_on(async { sleep(3 * SECOND).await });
    drop(pool.acquire_blocking_timeout(Duration::ZERO).unwrap());
    assert_eq!(manager.check.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thread_for_which_a_paused_clock_does_not_hold_may_look_at_what_is_idle() {
    let manager = TestManager::new();
    let pool = builder(&manager).min_idle(1).build().await.unwrap();
    sleep(10 * MINUTE).await;
    drop(pool.acquire().await.unwrap());
    sleep(10 * MINUTE).await;
    let idle = std::thread::spawn(move || {
        let mut idle = None;
        pool.retain(|_, info| idle.replace(info.idle).is_none());
        idle
    });
    let idle = idle.join().expect("it does not panic");
    assert!(idle.unwrap() < 20 * MINUTE, "{idle:?}");
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_that_succeeds_ends_the_trouble_of_one_that_failed() {
    let manager = TestManager::new();
    // A full one is healthy whatever has failed before.
    let pool = builder(&manager).max_size(2).build_lazy().unwrap();
    manager.connect.once(Act::Error);
    pool.warm_up(1).await.unwrap_err();
    assert!(pool.status().to_string().contains("connecting fails"), "{}", pool.status());
    pool.warm_up(1).await.unwrap();
    assert_eq!(pool.status().health, Health::Healthy, "{}", pool.status());
    let _held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Never);
    let error = pool.acquire_timeout(SECOND).await.unwrap_err();
    let AcquireError::Timeout(timeout) = error else { panic!("{error}") };
    assert_eq!(timeout.stage(), Stage::Connecting);
}

#[tokio::test(start_paused = true)]
async fn once_one_is_found_dead_the_idle_ones_are_checked_before_their_next_use() {
    hush_scripted_panics();
    // How it is found out: by its condition after use, by that after a reset, by a reset that fails, by a
    // check that fails, and by its condition though a hook panics as well.
    for found in 0..5 {
        for policy in [CheckPolicy::default(), CheckPolicy::Always, CheckPolicy::Never] {
            let manager = TestManager::new();
            let panics = Arc::new(AtomicBool::new(false));
            let hook = {
                let panics = panics.clone();
                move |_: &Conn| {
                    assert!(!panics.swap(false, Ordering::SeqCst), "scripted panic in on_checkin");
                }
            };
            let hooks = if found == 4 { Hooks::new().on_checkin(hook) } else { Hooks::new() };
            let pool = builder(&manager).check(policy).max_size(4).hooks(hooks);
            let pool = pool.build_lazy().unwrap();
            pool.maintenance().pause();
            use_at_once(&pool, 4).await;
            let checks = manager.check.calls();
            // As after the restart of a server: all that were there are dead.
            let first = pool.acquire().await.unwrap();
            match found {
                0 => manager.condition.once(Act::Error),
                1 => {
                    manager.condition.once(Act::Slow(SECOND));
                    manager.condition.once(Act::Error);
                }
                2 => {
                    manager.condition.once(Act::Slow(SECOND));
                    manager.reset.once(Act::Error);
                }
                3 => manager.condition.once(Act::Gated),
                _ => {
                    manager.condition.once(Act::Error);
                    panics.store(true, Ordering::SeqCst);
                }
            }
            manager.check.always(Act::Error);
            drop(first);
            turns().await;
            let next = pool.acquire().await.unwrap();
            if policy == CheckPolicy::Never {
                assert!(next.id <= 4, "{found}");
            } else {
                assert_eq!(next.id, 5, "{found}, {policy:?}");
                let checked = manager.check.calls() - checks;
                assert!((3..=5).contains(&checked), "{found}, {policy:?}: {checked}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn however_many_are_found_dead_the_others_are_checked_once_in_an_interval() {
    let manager = TestManager::new();
    let pool = builder(&manager).check(CheckPolicy::default()).maintenance_interval(SECOND);
    let pool = pool.max_size(4).build_lazy().unwrap();
    use_at_once(&pool, 4).await;
    assert_eq!(manager.check.calls(), 0);
    for interval in 1..4 {
        for _ in 0..10 {
            manager.condition.once(Act::Error);
            drop(pool.acquire().await.unwrap());
            turns().await;
            pool.warm_up(4).await.unwrap();
            use_at_once(&pool, 4).await;
            assert_eq!(manager.check.calls(), 3 * interval);
        }
        sleep(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_idle_is_doubted_again_after_the_interval_as_it_is_by_then() {
    let manager = TestManager::new();
    let pool = builder(&manager).check(CheckPolicy::default()).maintenance_interval(60 * MINUTE);
    let pool = pool.max_size(4).build_lazy().unwrap();
    use_at_once(&pool, 4).await;
    for interval in 1..4 {
        manager.condition.once(Act::Error);
        drop(pool.acquire().await.unwrap());
        turns().await;
        pool.warm_up(4).await.unwrap();
        use_at_once(&pool, 4).await;
        assert_eq!(manager.check.calls(), 3 * interval);
        pool.maintenance().set_interval(SECOND).unwrap();
        sleep(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_connection_that_fails_its_check_is_replaced_within_the_same_acquire() {
    let manager = TestManager::new();
    let pool = builder(&manager).check(CheckPolicy::IfIdleFor(SECOND)).max_size(3);
    let pool = pool.build().await.unwrap();
    use_at_once(&pool, 3).await;
    sleep(5 * SECOND).await;
    manager.check.always(Act::Error);
    let conn = pool.acquire().await.unwrap();
    assert_eq!((conn.id, pool.metrics().closed.failed_check), (4, 3));
}

#[tokio::test(start_paused = true)]
async fn a_million_hits_with_a_look_in_each_second_cause_no_check() {
    let manager = TestManager::new();
    let pool = builder(&manager).check(CheckPolicy::IfIdleFor(5 * SECOND)).leak_after(MINUTE / 2);
    let pool = pool.max_size(2).build().await.unwrap();
    let _held = pool.acquire().await.unwrap();
    for _ in 0..60 {
        for _ in 0..17_000 {
            drop(pool.acquire().await.unwrap());
        }
        // Hits never yield, so only now can the reaper look.
        sleep(SECOND).await;
    }
    assert_eq!(pool.metrics().leaks, 1, "it has looked");
    assert_eq!((manager.check.calls(), pool.metrics().checks), (0, 0));
    sleep(7 * SECOND).await;
    drop(pool.acquire().await.unwrap());
    assert_eq!(manager.check.calls(), 1, "what has been idle is checked");
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_checked_to_keep_them_alive_one_after_the_other() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = builder(&manager).order(order).keepalive_interval(MINUTE).min_idle(4);
        let pool = pool.build().await.unwrap();
        manager.check.always(Act::Slow(SECOND / 10));
        sleep(MINUTE - SECOND).await;
        assert_eq!(manager.check.calls(), 0, "{order:?}");
        sleep(5 * SECOND).await;
        assert_eq!(manager.check.calls(), 4, "{order:?}");
        assert_eq!(manager.check.most_running(), 1, "{order:?}");
        sleep(MINUTE + 5 * SECOND).await;
        assert_eq!((manager.check.calls(), pool.metrics().counts.idle), (8, 4), "{order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_leaves_the_order_of_idle_connections_alone() {
    for order in ORDERS {
        let mut orders = Vec::new();
        for interval in [None, Some(MINUTE)] {
            let manager = TestManager::new();
            let pool = builder(&manager).order(order).shards(1).keepalive_interval(interval);
            let pool = pool.build_lazy().unwrap();
            use_at_once(&pool, 4).await;
            sleep(MINUTE + 5 * SECOND).await;
            assert_eq!(manager.check.calls(), if interval.is_some() { 4 } else { 0 });
            orders.push(idle_in_order(&pool));
        }
        assert_eq!(orders[1], orders[0], "{order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_spares_the_check_before_use() {
    let manager = TestManager::new();
    let pool = builder(&manager)
        .keepalive_interval(2 * MINUTE / 3)
        .check(CheckPolicy::IfIdleFor(MINUTE))
        .build_lazy()
        .unwrap();
    pool.warm_up(1).await.unwrap();
    sleep(MINUTE + 5 * SECOND).await;
    assert_eq!(manager.check.calls(), 1, "to keep it alive");
    drop(pool.acquire().await.unwrap());
    assert_eq!(manager.check.calls(), 1, "that was not long ago");
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_of_long_ago_does_not_spare_the_check_before_each_use() {
    let manager = TestManager::new();
    let pool = builder(&manager).keepalive_interval(MINUTE).check(CheckPolicy::Always);
    let pool = pool.build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    sleep(MINUTE + 3 * SECOND).await;
    assert_eq!(manager.check.calls(), 1, "to keep it alive");
    sleep(MINUTE / 2).await;
    drop(pool.acquire().await.unwrap());
    assert_eq!(manager.check.calls(), 2, "before its use");
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_that_is_slow_is_not_joined_by_the_next_look() {
    let manager = TestManager::new();
    manager.check.always(Act::Slow(3 * SECOND));
    let pool = builder(&manager).keepalive_interval(MINUTE).check_timeout(MINUTE).build_lazy();
    let pool = pool.unwrap();
    pool.warm_up(4).await.unwrap();
    sleep(MINUTE + 20 * SECOND).await;
    assert_eq!((manager.check.calls(), manager.check.most_running()), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_used_while_others_are_checked_needs_no_keepalive() {
    for order in ORDERS {
        let manager = TestManager::new();
        manager.check.once(Act::Gated);
        let pool = builder(&manager)
            .order(order)
            .shards(1)
            .keepalive_interval(MINUTE)
            .check_timeout(10 * MINUTE)
            .build_lazy()
            .unwrap();
        pool.warm_up(4).await.unwrap();
        eventually("the first is being checked", || manager.check.running() == 1).await;
        let used = idle_in_order(&pool);
        assert_eq!(used.len(), 3, "{order:?}");
        manager.check.open(1);
        eventually("that is over", || pool.metrics().counts.checking == 0).await;
        sleep(5 * SECOND).await;
        assert_eq!(manager.check.calls(), 1, "{order:?}");
        let idle = idle_in_order(&pool);
        if order == IdleOrder::Recent {
            assert_eq!(idle[0], used[2], "the one that was used last");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_that_fails_or_hangs_costs_its_connection_and_holds_up_nobody() {
    let manager = TestManager::new();
    let pool = builder(&manager).keepalive_interval(MINUTE).max_size(2).min_idle(2);
    let pool = pool.build().await.unwrap();
    manager.check.once(Act::Never);
    manager.check.once(Act::Error);
    eventually("the first check hangs", || manager.check.running() == 1).await;
    let began = Instant::now();
    drop(pool.acquire().await.unwrap());
    assert_eq!(began.elapsed(), Duration::ZERO, "the other one was there");
    sleep(2 * MINUTE).await;
    let metrics = balanced(&pool, &manager.ledger).await;
    assert_eq!((metrics.closed.failed_check, metrics.closed.total()), (2, 2));
    assert_eq!(manager.ledger.closed(), 2);
    assert_eq!(metrics.counts.idle, 2, "replaced");
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_while_it_is_checked_goes_before_the_next_one_is_checked() {
    let manager = TestManager::new();
    let pool = builder(&manager).order(IdleOrder::Fifo).shards(1).keepalive_interval(MINUTE);
    let pool = pool.check_timeout(10 * MINUTE).build_lazy().unwrap();
    pool.warm_up(2).await.unwrap();
    manager.check.always(Act::Gated);
    eventually("the first is being checked", || manager.check.running() == 1).await;
    manager.lose(1);
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
    assert_eq!(manager.ledger.closed(), 0, "it is the one that is being checked");
    manager.check.open(1);
    eventually("it is closed", || manager.ledger.closed() == 1).await;
    assert_eq!((manager.check.calls(), manager.check.running()), (2, 1), "the other is checked");
}

#[tokio::test(start_paused = true)]
async fn min_idle_is_refilled_by_the_acquire_that_dips_below_it() {
    for order in ORDERS {
        for shards in [1, 4] {
            // With a hook, a connection leaves the fast path on its way to the caller.
            for hooks in [Hooks::new(), Hooks::new().on_checkout(|_| {})] {
                let manager = TestManager::new();
                let pool = builder(&manager).order(order).shards(shards).hooks(hooks).min_idle(3);
                let pool = pool.build().await.unwrap();
                pool.maintenance().pause();
                let began = Instant::now();
                let _held = pool.acquire().await.unwrap();
                for _ in 0..64 {
                    tokio::task::yield_now().await;
                }
                let counts = pool.metrics().counts;
                assert_eq!((counts.idle, counts.in_use), (3, 1), "{order:?}, {shards} shards");
                assert_eq!(began.elapsed(), Duration::ZERO);
            }
        }
    }
}

/// There is no room for another until the one in use has ended, and then nobody acquires and no look comes.
#[tokio::test(start_paused = true)]
async fn min_idle_is_refilled_by_the_end_of_a_connection_in_use() {
    for way in ["discarded", "broken", "detached"] {
        let manager = TestManager::new();
        let pool = builder(&manager).max_size(2).min_idle(2).build().await.unwrap();
        pool.maintenance().pause();
        let began = Instant::now();
        let mut held = pool.acquire().await.unwrap();
        turns().await;
        assert_eq!((pool.counts().idle, manager.connect.calls()), (1, 2), "{way}");
        match way {
            "discarded" => held.discard(),
            "broken" => {
                manager.condition.once(Act::Error);
                drop(held);
            }
            _ => {
                held.uncount();
                drop(held.detach());
            }
        }
        turns().await;
        assert_eq!(balanced(&pool, &manager.ledger).await.counts.idle, 2, "{way}");
        assert_eq!((manager.connect.calls(), manager.ledger.live()), (3, 2), "{way}");
        assert_eq!(began.elapsed(), Duration::ZERO, "{way}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lazy_pool_keeps_min_idle_once_it_was_warmed_up_or_somebody_took_what_was_there() {
    let manager = TestManager::new();
    let pool = builder(&manager).min_idle(2).max_lifetime(MINUTE).build_lazy().unwrap();
    pool.warm_up(3).await.unwrap();
    sleep(10 * MINUTE).await;
    assert!(pool.counts().idle >= 2, "others have come for those whose time was up");

    let pool = builder(&manager).min_idle(2).build_lazy().unwrap();
    pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap();
    sleep(MINUTE).await;
    assert_eq!(pool.counts().idle, 1, "nobody has wanted one so far");
    pool.maintenance().pause();
    let _held = pool.acquire().await.unwrap();
    eventually("two are idle", || pool.counts().idle == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_look_can_be_had_by_hand_while_maintenance_is_paused() {
    let manager = TestManager::new();
    let pool = builder(&manager).keepalive_interval(SECOND).min_idle(1).build().await.unwrap();
    pool.maintenance().pause();
    assert!(pool.maintenance().is_paused());
    pool.maintenance().run_once().await;
    sleep(MINUTE).await;
    assert_eq!(manager.check.calls(), 0);
    manager.check.always(Act::Slow(SECOND / 2));
    pool.maintenance().run_once().await;
    assert_eq!((manager.check.calls(), manager.check.running()), (1, 0), "it awaits the check");
}

#[tokio::test(start_paused = true)]
async fn maintenance_that_is_resumed_looks_again_by_itself() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_lifetime(MINUTE).lifetime_jitter(0.0).build_lazy().unwrap();
    pool.warm_up(1).await.unwrap();
    pool.maintenance().pause();
    sleep(10 * MINUTE).await;
    assert_eq!(pool.metrics().closed.total(), 0, "a pause");
    pool.maintenance().resume();
    sleep(2 * SECOND).await;
    assert_eq!(pool.metrics().closed.lifetime, 1);
}

#[tokio::test(start_paused = true)]
async fn the_interval_can_be_changed_and_not_to_zero() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_lifetime(MINUTE).lifetime_jitter(0.0).build().await.unwrap();
    pool.warm_up(1).await.unwrap();
    pool.maintenance().set_interval(60 * MINUTE).unwrap();
    sleep(30 * MINUTE).await;
    assert_eq!(pool.metrics().closed.total(), 0, "nobody looks yet");
    pool.maintenance().set_interval(SECOND).unwrap();
    assert_eq!(pool.maintenance().interval(), SECOND);
    sleep(2 * SECOND).await;
    assert_eq!(pool.metrics().closed.lifetime, 1);
    let error = pool.maintenance().set_interval(Duration::ZERO).unwrap_err();
    assert_eq!(error.to_string(), "maintenance_interval is 0ns, but it must be above zero");
}

#[tokio::test(start_paused = true)]
async fn whoever_resumes_or_times_maintenance_again_and_again_does_not_put_off_its_look() {
    let changes: [fn(&Pool<TestManager>); 2] = [
        |pool| pool.maintenance().resume(),
        |pool| pool.maintenance().set_interval(SECOND).unwrap(),
    ];
    for change in changes {
        let manager = TestManager::new();
        let pool = builder(&manager).max_lifetime(MINUTE).lifetime_jitter(0.0).build_lazy();
        let pool = pool.unwrap();
        pool.warm_up(1).await.unwrap();
        for _ in 0..124 {
            sleep(SECOND / 2).await;
            change(&pool);
        }
        assert_eq!(pool.metrics().closed.lifetime, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_leak_is_told_once_and_once_more_when_it_comes_back() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hooks = Hooks::new().on_leak({
        let told = told.clone();
        move |leak: &Leak| told.lock().unwrap().push(leak.clone())
    });
    let manager = TestManager::new();
    let pool = builder(&manager).leak_after(MINUTE).hooks(hooks).build().await.unwrap();
    let held = pool.acquire().await.unwrap();
    let line = line!() - 1;
    let soon = pool.acquire().await.unwrap();
    sleep(MINUTE / 2).await;
    drop(soon);
    sleep(10 * MINUTE).await;
    let metrics = pool.metrics();
    assert_eq!((metrics.leaks, metrics.late_returns), (1, 0));
    let holders = pool.holders();
    assert_eq!((holders.len(), holders[0].connection), (1, held.info().id));
    assert!(holders[0].held >= 10 * MINUTE);
    drop(held);
    sleep(2 * SECOND).await;
    let metrics = pool.metrics();
    assert_eq!((metrics.leaks, metrics.late_returns), (1, 1));
    let told = told.lock().unwrap();
    let [Leak::Held(first), Leak::Returned(second)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((first.connection, second.connection), (1, 1));
    let site = first.site.unwrap();
    assert_eq!((site.file(), site.line()), (file!(), line));
    assert!(told[0].to_string().contains(&format!("acquired at {}:{line}", file!())));
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_its_way_to_a_waiter_is_held_by_nobody() {
    for comes_back in [true, false] {
        let manager = TestManager::new();
        let pool = builder(&manager).max_size(1).leak_after(MINUTE).build_lazy().unwrap();
        let held = pool.acquire().await.unwrap();
        // Between two looks, the first of which sees this one held, and the other this one or the next
        // one on its way.
        sleep(2 * SECOND + SECOND / 2).await;
        assert!(!pool.holders()[0].held.is_zero());
        let mut waiter = pin!(pool.acquire_timeout(Duration::MAX));
        assert!(poll_once(waiter.as_mut()).is_pending());
        if comes_back {
            drop(held);
        } else {
            held.discard();
            eventually("the next one is on its way", || pool.metrics().created == 2).await;
        }
        sleep(10 * MINUTE).await;
        assert_eq!((pool.metrics().counts.in_use, pool.metrics().leaks), (1, 0), "{comes_back}");
        assert_eq!(pool.holders(), []);
        let _held = waiter.await.unwrap();
        assert_eq!(pool.holders().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_was_forgotten_stays_among_the_holders() {
    let manager = TestManager::new();
    let pool = builder(&manager).leak_after(SECOND).build().await.unwrap();
    #[expect(clippy::mem_forget, reason = "that is what is tested")]
    std::mem::forget(pool.acquire_owned().await.unwrap());
    sleep(5 * SECOND).await;
    assert_eq!((pool.holders().len(), pool.metrics().leaks), (1, 1));
    assert_eq!(pool.drain(SECOND).await.still_out.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn warm_up_opens_as_many_as_it_is_asked_for_and_never_too_many() {
    let manager = TestManager::new();
    manager.connect.always(Act::Slow(SECOND));
    let pool = builder(&manager).max_size(8).max_connecting(3).build().await.unwrap();
    let (one, other) = tokio::join!(pool.warm_up(6), pool.warm_up(8));
    one.unwrap();
    other.unwrap();
    assert_eq!((pool.metrics().counts.idle, manager.ledger.most_live()), (8, 8));
    let error = pool.warm_up(9).await.unwrap_err();
    assert_eq!(error.to_string(), "warm_up is 9, but it must be at most max_size, which is 8");
}

#[tokio::test(start_paused = true)]
async fn warm_up_reports_the_first_failure_and_keeps_what_is_open() {
    let manager = TestManager::new();
    manager.connect.once(Act::Ok);
    manager.connect.once(Act::Error);
    let pool = builder(&manager).max_connecting(1).build().await.unwrap();
    let error = pool.warm_up(4).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot open a connection");
    assert_eq!(pool.metrics().counts.idle, 1);
}

#[tokio::test(start_paused = true)]
async fn two_warm_ups_at_once_open_no_more_than_one_of_them_would() {
    let manager = TestManager::new();
    manager.connect.always(Act::Slow(SECOND));
    let pool = builder(&manager).build_lazy().unwrap();
    // Each opens the first one alone, and one of them has to wait for what the other opens then.
    let both = async { tokio::join!(pool.warm_up(3), pool.warm_up(3)) };
    let (one, other) = timeout(MINUTE, both).await.expect("it hears of that");
    one.unwrap();
    other.unwrap();
    assert_eq!((pool.metrics().created, pool.metrics().counts.idle), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_beside_dials_begins_no_more_connects_than_there_may_be() {
    let manager = TestManager::new();
    let pool = builder(&manager).max_connecting(2).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Gated);
    let mut waiters = [(); 2].map(|()| Box::pin(pool.acquire_timeout(Duration::MAX)));
    for waiter in &mut waiters {
        assert!(poll_once(waiter.as_mut()).is_pending());
    }
    eventually("two dials are under way", || manager.connect.running() == 2).await;
    let mut warm_up = pin!(pool.warm_up(8));
    assert!(poll_once(warm_up.as_mut()).is_pending());
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
    manager.connect.open(7);
    timeout(MINUTE, warm_up).await.expect("it hears of that").unwrap();
    assert_eq!((pool.counts().alive(), manager.connect.most_running()), (8, 2));
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_is_over_when_a_dial_has_opened_what_it_asks_for() {
    let manager = TestManager::new();
    manager.connect.once(Act::Gated);
    let pool = builder(&manager).build_lazy().unwrap();
    let mut waiter = pin!(pool.acquire_timeout(Duration::MAX));
    assert!(poll_once(waiter.as_mut()).is_pending());
    eventually("a dial is under way", || manager.connect.running() == 1).await;
    let mut warm_up = pin!(pool.warm_up(1));
    assert!(poll_once(warm_up.as_mut()).is_pending());
    manager.connect.open(1);
    timeout(SECOND, warm_up).await.expect("it hears of that").unwrap();
    drop(waiter.await.unwrap());
    assert_eq!(pool.metrics().created, 1);
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_is_over_when_a_rotation_has_opened_what_it_asks_for() {
    let manager = TestManager::new();
    manager.connect.once(Act::Gated);
    let pool = builder(&manager).build_lazy().unwrap();
    let mut rotation = pin!(pool.rotate(|_| Box::pin(async { Ok(()) })));
    assert!(poll_once(rotation.as_mut()).is_pending());
    let mut warm_up = pin!(pool.warm_up(1));
    assert!(poll_once(warm_up.as_mut()).is_pending());
    manager.connect.open(1);
    rotation.await.unwrap();
    timeout(SECOND, warm_up).await.expect("it hears of that").unwrap();
    assert_eq!(pool.metrics().created, 1);
}

#[tokio::test(start_paused = true)]
async fn warm_up_does_not_count_what_is_being_closed() {
    let manager = TestManager::new();
    manager.close.once(Act::Gated);
    let pool = builder(&manager).close_timeout(10 * MINUTE).build_lazy().unwrap();
    pool.acquire().await.unwrap().discard();
    assert_eq!(pool.metrics().counts.closing, 1);
    pool.warm_up(1).await.unwrap();
    assert_eq!((pool.metrics().counts.closing, pool.metrics().counts.idle), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_under_way_is_ended_by_close() {
    let manager = TestManager::new();
    manager.connect.always(Act::Never);
    let pool = builder(&manager).connect_timeout(10 * MINUTE).build_lazy().unwrap();
    let mut warm_up = pin!(pool.warm_up(2));
    assert!(poll_once(warm_up.as_mut()).is_pending());
    let began = Instant::now();
    pool.close().await;
    let error = warm_up.await.unwrap_err();
    assert!(matches!(error, WarmUpError::Closed), "{error:?}");
    assert_eq!(began.elapsed(), Duration::ZERO);
    eventually("its connects have ended", || manager.connect.running() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_that_waits_for_what_is_being_closed_is_ended_by_close() {
    let manager = TestManager::new();
    manager.close.always(Act::Never);
    let pool = builder(&manager).max_size(1).close_timeout(MINUTE).build_lazy().unwrap();
    pool.acquire().await.unwrap().discard();
    let mut warm_up = pin!(pool.warm_up(1));
    assert!(poll_once(warm_up.as_mut()).is_pending());
    assert_eq!((pool.counts().closing, manager.connect.calls()), (1, 1));
    let began = Instant::now();
    let mut close = pin!(pool.close());
    assert!(poll_once(close.as_mut()).is_pending());
    let error = warm_up.await.unwrap_err();
    assert!(matches!(error, WarmUpError::Closed), "{error:?}");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_connects_no_more_once_the_pool_is_closed() {
    let manager = TestManager::new();
    let pool = builder(&manager).build_lazy().unwrap();
    let mut warm_up = pin!(pool.warm_up(1));
    // It has begun a task, which has not run yet.
    assert!(poll_once(warm_up.as_mut()).is_pending());
    pool.close().await;
    eventually("the task has run", || pool.counts().connecting == 0).await;
    assert_eq!(manager.connect.calls(), 0);
    assert!(matches!(warm_up.await, Err(WarmUpError::Closed)));
}

#[test]
fn warm_up_outside_a_runtime_is_an_error() {
    let pool = builder(&TestManager::new()).build_lazy().unwrap();
    let error = pollster::block_on(pool.warm_up(1)).unwrap_err();
    assert!(matches!(error, WarmUpError::NoRuntime), "{error:?}");
}

#[test]
fn a_pool_without_a_runtime_goes_on_the_one_of_a_warm_up_or_a_rotation() {
    for rotates in [false, true] {
        let manager = TestManager::new();
        let pool = builder(&manager).max_size(1).max_lifetime(MINUTE).build_lazy().unwrap();
        let runtime = &mut tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            if rotates {
                pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap();
            } else {
                pool.warm_up(1).await.unwrap();
            }
            // In one go, and not by the steps of `eventually`.
            tokio::time::sleep(MINUTE).await;
            eventually("its time is up", || pool.metrics().closed.lifetime == 1).await;
        });
    }
}

/// The sockets of a runtime end with it.
#[test]
fn a_warm_up_on_another_runtime_opens_connections_on_the_pools() {
    let name = || thread::current().name().map(String::from);
    let manager = from_fn(move || async move { Ok::<_, Infallible>(name()) });
    let own = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("the pool's")
        .enable_time()
        .build()
        .unwrap();
    let pool = own.block_on(async { Pool::builder(manager).max_size(2).build_lazy() }).unwrap();
    let others = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    others.block_on(pool.warm_up(2)).unwrap();
    eventually_blocking("both are idle", || pool.counts().idle == 2);
    for _ in 0..2 {
        assert_eq!(pool.try_acquire().unwrap().detach().as_deref(), Some("the pool's"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_reaper_ends_with_the_pool() {
    let manager = TestManager::new();
    let pool = builder(&manager).build().await.unwrap();
    let held = pool.acquire_owned().await.unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks(), 1, "one task for each pool");
    drop(pool);
    eventually("it has ended", || tasks() == 0).await;
    drop(held);
}

#[tokio::test]
async fn a_look_at_thousands_of_idle_connections_ends_what_has_to_go() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = builder(&manager)
            .order(order)
            .max_size(4_000)
            .min_idle(1_000)
            .max_connecting(1_000)
            .idle_timeout(Duration::from_nanos(1))
            .maintenance_interval(Duration::MAX)
            .build()
            .await
            .unwrap();
        pool.warm_up(4_000).await.unwrap();
        pool.maintenance().run_once().await;
        pool.maintenance().run_once().await;
        assert_eq!(pool.metrics().closed.idle, 3_000, "{order:?}");
        eventually("only the floor is left", || pool.metrics().counts.alive() == 1_000).await;
    }
}
