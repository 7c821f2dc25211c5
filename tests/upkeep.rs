//! What the pool does by the clock: lifetimes, idle timeouts in each order, checks of what has been
//! idle, keepalive, `min_idle`, leaks; and that it can be paused, timed and run by hand.
//!
//! Mutants that it has caught: a jitter that is added, left out or not even; no replacement before the
//! end, or one that is waited for for good; no budget after a pause; an idle timeout that takes the
//! last `min_idle`; no surplus rule, or one that forgets the fewest or goes by one look; a connection
//! in use that is not flagged; a leak told at each look; a pause that is none; stale connections that
//! are never flagged or stay so; keepalive checks that are not noted; a dip that nobody notices.
//!
//! Not here: what happens to a connection that is ended (`health.rs`, `close.rs`).

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;

use millpond::{CheckPolicy, Hooks, IdleOrder, Leak, Pool, PoolBuilder};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Act, TestManager, eventually};
use tokio::time::{Instant, sleep};

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
    assert_eq!(pool.metrics().closed.lifetime, 1);
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
    let manager = TestManager::new();
    let pool =
        builder(&manager).max_size(100).min_idle(0).max_lifetime(MINUTE).build().await.unwrap();
    pool.warm_up(100).await.unwrap();
    pool.maintenance().pause();
    sleep(10 * MINUTE).await;
    assert_eq!(pool.metrics().closed.total(), 0, "a pause");
    pool.maintenance().resume();
    for seconds in 1..=20 {
        sleep(SECOND).await;
        assert!(pool.metrics().closed.lifetime <= 5 * (seconds + 1));
    }
    sleep(2 * SECOND).await;
    assert_eq!(pool.metrics().closed.lifetime, 100);
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
        }
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

#[tokio::test]
async fn a_million_hits_cause_no_check() {
    let manager = TestManager::new();
    let pool = Pool::builder(manager.clone()).max_size(2).build().await.unwrap();
    for _ in 0..1_000_000 {
        drop(pool.acquire().await.unwrap());
    }
    assert_eq!(manager.check.calls(), 0);
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
    assert!(pool.metrics().closed.failed_check >= 1);
    assert_eq!(pool.metrics().counts.idle, 2, "replaced");
}

#[tokio::test(start_paused = true)]
async fn min_idle_is_refilled_by_the_acquire_that_dips_below_it() {
    for order in ORDERS {
        for shards in [1, 4] {
            let manager = TestManager::new();
            let pool = builder(&manager).order(order).shards(shards).min_idle(3).build().await;
            let pool = pool.unwrap();
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
async fn a_look_at_ten_thousand_idle_connections_ends_what_has_to_go() {
    for order in ORDERS {
        let manager = TestManager::new();
        let pool = builder(&manager)
            .order(order)
            .max_size(10_000)
            .min_idle(1_000)
            .max_connecting(1_000)
            .idle_timeout(Duration::from_nanos(1))
            .maintenance_interval(Duration::MAX)
            .build()
            .await
            .unwrap();
        pool.warm_up(10_000).await.unwrap();
        pool.maintenance().run_once().await;
        pool.maintenance().run_once().await;
        assert_eq!(pool.metrics().closed.idle, 9_000, "{order:?}");
        eventually("only the floor is left", || pool.metrics().counts.alive() == 1_000).await;
    }
}
