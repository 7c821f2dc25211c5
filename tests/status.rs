//! How a pool is, in words and for programs, and settings from text.

#![cfg(feature = "serde")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::{
    AcquireError, CheckPolicy, Config, Group, Health, Holder, Hooks, IdleOrder, Monitor, Pool,
    PoolBuilder, PoolStatus, Priority, Shed, Source, from_fn,
};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn pool_of(manager: &TestManager, max_size: usize) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone()).max_size(max_size).name("orders")
}

#[track_caller]
fn degraded(status: &PoolStatus, reasons: &[&str]) {
    assert!(matches!(status.health, Health::Degraded(_)), "{}", status.health);
    assert_eq!(status.health.reasons(), reasons);
    assert!(status.health.is_up());
}

// ---- health ----

#[tokio::test(start_paused = true)]
async fn a_pool_on_which_nothing_is_wrong_is_healthy() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build().await.unwrap();
    let _held = pool.acquire().await.unwrap();
    let status = pool.status();
    assert_eq!((&status.health, status.health.reasons().len()), (&Health::Healthy, 0));
    assert_eq!((status.max_size, &*status.config.name), (2, "orders"));
    assert_eq!(status.health.to_string(), "healthy");
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_cannot_connect_is_degraded_and_down_when_nothing_is_left() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    degraded(&pool.status(), &["connecting fails: scripted connect error"]);
    held.discard();
    eventually("it is closed", || pool.metrics().counts.alive() == 0).await;
    let status = pool.status();
    assert!(!status.health.is_up());
    assert_eq!(status.health.to_string(), "down: connecting fails: scripted connect error");
    manager.clear();
    drop(pool.acquire().await.unwrap());
    assert_eq!(pool.status().health, Health::Healthy, "an old failure is no reason");
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_takes_long_is_told_while_somebody_waits_though_nothing_has_failed_yet() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).connect_timeout(60 * SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Gated);
    let mut waits = Box::pin(pool.acquire());
    assert!(poll_once(waits.as_mut()).is_pending());
    tokio::time::sleep(SECOND).await;
    assert_eq!(pool.status().health, Health::Healthy, "it may take so long");
    tokio::time::sleep(SECOND / 5).await;
    let reason = "opening a connection has gone on for 1.2s, and 1 waits for one";
    degraded(&pool.status(), &[reason]);
    held.discard();
    eventually("it is closed", || pool.counts().alive() == 0).await;
    let status = pool.status();
    assert_eq!(status.health.to_string(), format!("down: {reason}"), "nobody is served");
    assert!(format!("{status:#}").ends_with(&format!("; {reason}")), "{status:#}");
    drop(waits);
    assert_eq!(pool.status().health, Health::Healthy, "nobody waits");
    // Another one was begun beside it.
    manager.connect.open(2);
    let _held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    tokio::time::sleep(2 * SECOND).await;
    let mut waits = Box::pin(pool.acquire());
    assert!(poll_once(waits.as_mut()).is_pending());
    assert_eq!(pool.status().health, Health::Healthy, "that connect is over");
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_for_others_does_not_hide_that_a_connect_takes_long() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).reserved(Priority::High, 1).connect_timeout(60 * SECOND);
    let pool = pool.build_lazy().unwrap();
    let general = [(); 3].map(|()| pool.acquire());
    let mut held = Vec::new();
    for acquire in general {
        held.push(acquire.await.unwrap());
    }
    // The reserved one, and no other, is left.
    drop(pool.acquire_with(Priority::High).await.unwrap());
    held.into_iter().for_each(millpond::Pooled::discard);
    eventually("one is idle", || (pool.counts().alive(), pool.counts().idle) == (1, 1)).await;
    manager.connect.always(Act::Gated);
    let mut waits = Box::pin(pool.acquire());
    assert!(poll_once(waits.as_mut()).is_pending());
    tokio::time::sleep(SECOND + SECOND / 5).await;
    assert_eq!((pool.counts().idle, pool.counts().waiters), (1, 1));
    degraded(&pool.status(), &["opening a connection has gone on for 1.2s, and 1 waits for one"]);
}

#[tokio::test(start_paused = true)]
async fn a_connect_takes_long_once_it_takes_longer_than_an_acquire_may() {
    let manager = TestManager::new();
    manager.connect.always(Act::Gated);
    let pool = pool_of(&manager, 1).acquire_timeout(SECOND / 10).build_lazy().unwrap();
    drop(pool.acquire().await.map(drop).unwrap_err());
    let mut waits = Box::pin(pool.acquire());
    assert!(poll_once(waits.as_mut()).is_pending());
    tokio::time::sleep(SECOND / 100).await;
    assert!(!pool.status().health.is_up(), "{}", pool.status());
}

/// How long an acquire that timed out is told of.
const TOLD_FOR: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_pool_that_serves_nobody_says_so_between_two_requests() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let monitor = Monitor::new();
    monitor.add(&pool).unwrap();
    let _leaked = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let site = format!("{}:{}:25", file!(), line!() - 1);
    for round in 0..3 {
        assert_eq!(pool.status().health == Health::Healthy, round == 0, "{}", pool.status());
        pool.acquire().await.map(drop).unwrap_err();
        tokio::time::sleep(SECOND / 2).await;
        let status = pool.status();
        let [in_vain, used_up, longest] = status.health.reasons() else { panic!("{status}") };
        assert_eq!(in_vain, "an acquire has waited 5.0s in vain, 500ms ago");
        assert_eq!(used_up, "all 2 connections are in use");
        assert!(longest.starts_with("held longest: connection 1 for at least "), "{longest}");
        assert!(longest.ends_with(&format!("s, acquired at {site}")), "{longest}");
        assert!(matches!(status.health, Health::Degraded(_)));
        assert!(matches!(&monitor.health()[0].1, Health::Degraded(_)));
    }
    tokio::time::sleep(TOLD_FOR - SECOND).await;
    assert_eq!(pool.status().health.reasons().len(), 3, "{}", pool.status());
    tokio::time::sleep(SECOND).await;
    assert_eq!(pool.status().health, Health::Healthy, "nobody has wanted one for long");
}

#[tokio::test(start_paused = true)]
async fn that_one_is_served_does_not_hide_that_others_are_not() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    pool.acquire().await.map(drop).unwrap_err();
    drop(held);
    let held = pool.acquire().await.unwrap();
    tokio::time::sleep(3 * SECOND).await;
    let status = pool.status();
    assert_eq!(status.health.reasons()[0], "an acquire has waited 5.0s in vain, 3s ago");
    assert_eq!(status.health.reasons()[1], "the only connection is in use");
    drop(held);
    degraded(&pool.status(), &["an acquire has waited 5.0s in vain, 3s ago"]);
    tokio::time::sleep(TOLD_FOR - 3 * SECOND).await;
    assert_eq!(pool.status().health, Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn who_has_a_deadline_that_is_short_for_the_pool_waits_in_vain_at_his_own_risk() {
    let manager = TestManager::new();
    for (timeout, deadline, is_told) in
        [(5000, 999, false), (5000, 1000, true), (100, 99, false), (100, 100, true)]
    {
        let timeout = Duration::from_millis(timeout);
        let pool = pool_of(&manager, 1).acquire_timeout(timeout).build_lazy().unwrap();
        let _held = pool.acquire().await.unwrap();
        pool.acquire_timeout(Duration::from_millis(deadline)).await.map(drop).unwrap_err();
        assert_eq!(pool.status().health != Health::Healthy, is_told, "{deadline}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_still_opening_its_first_connection_is_down_between_two_requests() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).connect_timeout(60 * SECOND).build_lazy().unwrap();
    manager.connect.always(Act::Gated);
    pool.acquire().await.map(drop).unwrap_err();
    tokio::time::sleep(SECOND).await;
    assert_eq!(
        pool.status().health.to_string(),
        "down: an acquire has waited 5.0s in vain, 1s ago"
    );
    manager.connect.open(1);
    eventually("it is there", || pool.counts().idle == 1).await;
    assert_eq!(pool.status().health, Health::Healthy, "what it waited for is there");
}

#[tokio::test(start_paused = true)]
async fn who_waited_in_vain_is_not_told_of_beside_what_he_waited_for_nor_after_it() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let _held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    pool.acquire().await.map(drop).unwrap_err();
    degraded(&pool.status(), &["connecting fails: scripted connect error"]);
    manager.clear();
    let other = pool.acquire().await.unwrap();
    assert_eq!(pool.status().health, Health::Healthy);
    drop(other);
    assert_eq!(pool.status().health, Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn how_many_are_held_for_too_long_is_told() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).leak_after(5 * SECOND).build_lazy().unwrap();
    let _first = pool.acquire().await.unwrap();
    let _second = pool.acquire().await.unwrap();
    tokio::time::sleep(7 * SECOND).await;
    let _young = pool.acquire().await.unwrap();
    let status = pool.status();
    let [reason] = status.health.reasons() else { panic!("{status}") };
    assert!(reason.starts_with("held for too long: connection 1 for at least "), "{reason}");
    assert!(reason.ends_with(", and 1 more"), "{reason}");
}

/// A pool with no connection, to which connecting has failed, and which nobody asks for one.
async fn down(manager: &TestManager, build: PoolBuilder<TestManager>) -> Pool<TestManager> {
    manager.connect.always(Act::Error);
    let pool = build.build_lazy().unwrap();
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    assert_eq!(pool.status().health.to_string(), "down: connecting fails: scripted connect error");
    pool
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_down_finds_out_by_itself_that_the_server_is_back() {
    let manager = TestManager::new();
    let pool = down(&manager, pool_of(&manager, 4)).await;
    let before = manager.connect.calls();
    tokio::time::sleep(3600 * SECOND).await;
    // No pause is longer than two seconds; on average it is half that.
    let attempts = manager.connect.calls() - before;
    assert!((1800..=7200).contains(&attempts), "{attempts} attempts in an hour");
    assert_eq!(manager.connect.most_running(), 1, "one at a time");
    assert!(!pool.status().health.is_up());

    manager.clear();
    let before = manager.connect.calls();
    eventually("it is up", || pool.status().health == Health::Healthy).await;
    tokio::time::sleep(3600 * SECOND).await;
    assert_eq!(pool.status().health, Health::Healthy, "though nobody has asked for anything");
    assert_eq!(manager.connect.calls(), before + 1, "and nobody looks again");
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_warm_up_failed_finds_out_as_well() {
    let manager = TestManager::new();
    manager.connect.once(Act::Error);
    let pool = pool_of(&manager, 4).build_lazy().unwrap();
    assert!(pool.warm_up(1).await.is_err());
    assert!(!pool.status().health.is_up());
    assert_eq!(manager.connect.calls(), 1, "it does not try again at once");
    tokio::time::sleep(3600 * SECOND).await;
    assert_eq!(pool.status().health, Health::Healthy);
    assert_eq!(manager.connect.calls(), 2);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_warm_up_failed_keeps_its_min_idle_from_then_on() {
    let manager = TestManager::new();
    manager.connect.once(Act::Error);
    let pool = pool_of(&manager, 4).min_idle(3).build_lazy().unwrap();
    assert!(pool.warm_up(2).await.is_err());
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(pool.counts().idle, 3);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_last_connection_ends_after_a_failure_finds_out_as_well() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).idle_timeout(180 * SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    degraded(&pool.status(), &["connecting fails: scripted connect error"]);
    drop(held);
    tokio::time::sleep(60 * SECOND).await;
    let attempts = manager.connect.calls();
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(manager.connect.calls(), attempts, "one is left, and nobody wants another");
    manager.clear();
    eventually("it has been idle for too long", || manager.ledger.closed() == 1).await;
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(pool.status().health, Health::Healthy);
    assert_eq!(manager.connect.calls(), attempts + 1);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_nobody_follows_up_any_more_is_told_with_its_time() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).backoff(60 * SECOND, 60 * SECOND).idle_timeout(None);
    let pool = pool.build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Error);
    let mut waiter = pin!(pool.acquire());
    assert!(poll_once(waiter.as_mut()).is_pending());
    eventually("connecting has failed", || pool.metrics().connect_failures == 1).await;
    degraded(&pool.status(), &["connecting fails: scripted connect error"]);
    drop(held);
    drop(waiter.await.unwrap());
    tokio::time::sleep(90 * SECOND).await;
    assert_eq!(manager.connect.calls(), 2, "one is idle, and nobody wants another");
    let told = "connecting failed 90s ago: scripted connect error; it is tried again when one more \
                is wanted";
    degraded(&pool.status(), &[told]);
    let both = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    assert_eq!(pool.status().health, Health::Healthy);
    drop(both);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_new_connections_were_all_rejected_opens_one_and_no_more_for_nobody() {
    let manager = TestManager::new();
    let hooks = Hooks::new()
        .before_acquire(|_| Box::pin(async { Err(TestError { what: "hook", permanent: false }) }));
    let pool = pool_of(&manager, 2).hooks(hooks).idle_timeout(None).max_lifetime(None);
    let pool = pool.build_lazy().unwrap();
    pool.acquire_timeout(10 * SECOND).await.map(drop).unwrap_err();
    eventually("it is up", || pool.status().health.is_up()).await;
    tokio::time::sleep(10 * SECOND).await;
    let opened = manager.connect.calls();
    tokio::time::sleep(3600 * SECOND).await;
    // Whether that one is any better, the next caller will find out.
    let status = pool.status();
    let [reason] = status.health.reasons() else { panic!("{status}") };
    assert!(reason.starts_with("hooks rejected what was opened 36"), "{reason}");
    assert!(reason.contains("s ago: before_acquire: scripted hook error; "), "{reason}");
    assert_eq!((manager.connect.calls(), pool.counts().idle), (opened, 1));
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_refused_for_good_says_so_and_tries_only_when_it_is_asked() {
    let manager = TestManager::new();
    manager.connect.always(Act::Permanent);
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let refused = pool.acquire().await.map(drop);
    assert!(matches!(refused, Err(AcquireError::Connect(_))), "{refused:?}");
    tokio::time::sleep(3600 * SECOND).await;
    assert_eq!(manager.connect.calls(), 1, "an account would have been locked");
    assert_eq!(
        pool.status().health.to_string(),
        "down: connecting fails for good: scripted connect error; it is tried again only when \
         somebody has to wait for one more, or for a warm-up or a rotation"
    );
    manager.clear();
    pool.warm_up(1).await.unwrap();
    assert_eq!(pool.status().health, Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_refused_for_good_does_not_try_for_min_idle_either() {
    let manager = TestManager::new();
    manager.connect.always(Act::Permanent);
    let pool = pool_of(&manager, 8).min_idle(2).build_lazy().unwrap();
    let waiting = || pool.acquire();
    let (one, other) = tokio::join!(waiting(), waiting());
    for refused in [one, other] {
        assert!(matches!(refused, Err(AcquireError::Connect(_))), "{refused:?}");
    }
    tokio::time::sleep(3600 * SECOND).await;
    assert_eq!(manager.connect.calls(), 1, "an account would have been locked");
    manager.clear();
    drop(pool.acquire().await.unwrap());
    eventually("it tops up", || pool.counts().idle >= 2).await;

    // Such as a password that is changed while it runs.
    manager.connect.always(Act::Permanent);
    let before = manager.connect.calls();
    pool.acquire().await.unwrap().discard();
    for _ in 0..100 {
        drop(pool.acquire().await.unwrap());
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!(manager.connect.calls(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_long_ago_is_no_reason_while_there_is_no_room_for_another_connection() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.once(Act::Error);
    manager.connect.always(Act::Never);
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    degraded(&pool.status(), &["connecting fails: scripted connect error"]);
    pool.resize(1).unwrap();
    eventually("nothing is under way", || pool.counts().connecting == 0).await;
    assert_eq!(pool.status().health, Health::Healthy);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_being_closed_can_serve_nobody_and_keeps_no_pool_up() {
    let manager = TestManager::new();
    manager.close.always(Act::Gated);
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    let failing = "connecting fails: scripted connect error";
    degraded(&pool.status(), &[failing]);
    held.discard();
    assert_eq!((pool.counts().closing, pool.counts().vacant), (1, 1));
    assert_eq!(pool.status().health, Health::Down(vec![failing.to_owned()]));
    // Nor is there a connection that an old failure would be over with.
    pool.resize(1).unwrap();
    assert_eq!((pool.counts().closing, pool.status().max_size), (1, 1));
    assert_eq!(pool.status().health, Health::Down(vec![failing.to_owned()]));
    manager.close.open(1);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_down_finds_out_that_the_server_is_back_while_a_close_goes_on() {
    let manager = TestManager::new();
    manager.close.always(Act::Gated);
    let pool = pool_of(&manager, 2).close_timeout(3600 * SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    manager.connect.always(Act::Error);
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    held.discard();
    manager.connect.always(Act::Ok);
    eventually("it is up", || pool.status().health == Health::Healthy).await;
    let counts = pool.counts();
    assert_eq!((counts.closing, counts.idle), (1, 1));
    manager.close.open(1);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_down_does_not_outlive_its_last_handle() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).backoff(60 * SECOND, 60 * SECOND);
    let pool = down(&manager, pool).await;
    drop(pool);
    eventually("its tasks have ended", || tasks() == before).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_used_up_held_for_too_long_or_left_alone_says_so() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).leak_after(5 * SECOND).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    let site = format!("{}:{}:{}", file!(), line!() - 1, 21);
    let mut waiter = pin!(pool.acquire_timeout(Duration::MAX));
    assert!(poll_once(waiter.as_mut()).is_pending());
    degraded(&pool.status(), &["the only connection is in use, and 1 waits for one"]);
    tokio::time::sleep(10 * SECOND).await;
    pool.maintenance().pause();
    let status = pool.status();
    assert_eq!(status.health.reasons().len(), 3);
    let leak = &status.health.reasons()[1];
    assert!(leak.starts_with("held for too long: connection 1 for at least "), "{leak}");
    assert!(leak.ends_with(&format!("acquired at {site}")), "{leak} {site}");
    assert_eq!(status.health.reasons()[2], "maintenance is paused");
    pool.maintenance().resume();
    drop(held);
    drop(waiter.await.unwrap());
    assert_eq!(pool.status().health, Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_for_others_does_not_hide_that_everything_else_is_used_up() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 4).reserved(Priority::High, 2).build_lazy().unwrap();
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    assert_eq!(pool.status().health, Health::Healthy, "nobody waits");
    let mut waiter = pin!(pool.acquire_timeout(Duration::MAX));
    assert!(poll_once(waiter.as_mut()).is_pending());
    let used_up = "2 connections are in use, all but what is reserved, and 1 waits for one";
    degraded(&pool.status(), &[used_up]);
    // One that is reserved and idle.
    drop(pool.acquire_with(Priority::High).await.unwrap());
    degraded(&pool.status(), &[used_up]);
    // One of the reserved is in use as well, and the other one is still to be had.
    let high = pool.acquire_with(Priority::High).await.unwrap();
    let used_up = "3 connections are in use, all but what is reserved, and 1 waits for one";
    degraded(&pool.status(), &[used_up]);
    drop((high, held));
    drop(waiter.await.unwrap());
    assert_eq!(pool.status().health, Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_connections_are_being_closed_does_not_say_that_they_are_in_use() {
    let manager = TestManager::new();
    manager.close.always(Act::Gated);
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let [a, b] = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let mut waiter = pin!(pool.acquire_timeout(Duration::MAX));
    assert!(poll_once(waiter.as_mut()).is_pending());
    pool.invalidate();
    drop(a);
    let one = "all 2 connections are in use or being closed, and 1 waits for one";
    degraded(&pool.status(), &[one]);
    drop(b);
    degraded(&pool.status(), &["all 2 connections are being closed, and 1 waits for one"]);
    manager.close.open(2);
    drop(waiter.await.unwrap());
    assert_eq!(pool.status().health, Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_pool_whose_connections_are_made_ready_between_two_users_is_used_up_all_the_same() {
    let manager = TestManager::new();
    manager.condition.always(Act::Slow(SECOND)); // dirty
    manager.reset.always(Act::Gated);
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let [a, b] = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    let mut waiter = pin!(pool.acquire_timeout(Duration::MAX));
    assert!(poll_once(waiter.as_mut()).is_pending());
    degraded(&pool.status(), &["all 2 connections are in use, and 1 waits for one"]);
    drop(a);
    eventually("it is being reset", || pool.counts().resetting == 1).await;
    let one = "all 2 connections are in use or being made ready, and 1 waits for one";
    degraded(&pool.status(), &[one]);
    drop(b);
    eventually("so is the other one", || pool.counts().resetting == 2).await;
    degraded(&pool.status(), &["all 2 connections are being made ready, and 1 waits for one"]);
    manager.reset.open(2);
    drop(waiter.await.unwrap());
    manager.reset.open(1);
    eventually("all are idle", || pool.counts().idle == 2).await;
    assert_eq!(pool.status().health, Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_fails_for_a_reason_that_may_pass_is_what_a_pool_goes_by_after_a_refusal() {
    let manager = TestManager::new();
    manager.connect.once(Act::Permanent);
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    pool.acquire().await.map(drop).unwrap_err();
    let health = pool.status().health.to_string();
    assert!(health.starts_with("down: connecting fails for good: "), "{health}");
    manager.connect.once(Act::Error);
    pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err();
    assert_eq!(pool.status().health.to_string(), "down: connecting fails: scripted connect error");
    eventually("it is up", || pool.status().health == Health::Healthy).await;
    assert_eq!(manager.connect.calls(), 3);
    balanced(&pool, &manager.ledger).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_refused_for_good_says_what_it_takes_to_be_tried_again() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).min_idle(2).build().await.unwrap();
    manager.connect.always(Act::Permanent);
    pool.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err();
    manager.connect.always(Act::Ok);
    let refused = "connecting fails for good: scripted connect error; it is tried again only when \
                   somebody has to wait for one more, or for a warm-up or a rotation";
    degraded(&pool.status(), &[refused]);
    // Neither needs another connection.
    drop(pool.acquire().await.unwrap());
    pool.warm_up(2).await.unwrap();
    degraded(&pool.status(), &[refused]);
    pool.warm_up(3).await.unwrap();
    assert_eq!(pool.status().health, Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_closed_or_being_drained_is_down() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 1).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    {
        let mut drain = pin!(pool.drain(SECOND));
        assert!(poll_once(drain.as_mut()).is_pending());
        assert_eq!(pool.status().health.to_string(), "down: the pool is being drained");
    }
    assert_eq!(pool.status().health.to_string(), "down: the pool is closed");
    drop(held);
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_pool_that_may_have_no_connection_at_all_is_not_called_used_up() {
    use millpond::cluster::Cluster;
    let cluster: Cluster<String, TestManager> =
        Cluster::builder().name("shop").max_connections(1).build().unwrap();
    for node in ["a", "b"] {
        cluster.add_node(node.to_owned(), TestManager::new()).unwrap();
    }
    let held = cluster.acquire("a").await.unwrap();
    {
        let mut waiter = pin!(cluster.acquire("b"));
        assert!(poll_once(waiter.as_mut()).is_pending());
        let status = cluster.status();
        let b = &status.nodes[1].pool;
        assert_eq!((b.max_size, b.metrics.counts.waiters), (0, 1));
        assert_eq!(b.health, Health::Healthy, "the cap has given all that there is elsewhere");
        drop(held);
        drop(waiter.await.unwrap());
    }
}

// ---- for a terminal and for programs ----

#[tokio::test(start_paused = true)]
async fn a_status_is_a_table_whose_columns_are_aligned() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    pool.acquire().await.unwrap().discard();
    manager.connect.always(Act::Error);
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    let table = pool.status().to_string();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "pool orders: degraded");
    assert_eq!(lines[1], "  ! connecting fails: scripted connect error");
    let rows = &lines[2..];
    assert!(rows.iter().all(|row| row.starts_with("  ") && row.as_bytes()[14] == b' '), "{table}");
    for what in [
        "  connections  1 of 2 in use, 0 idle",
        "  acquires     2 served, 2 of them after a wait; p50 0,",
        "  in vain      1 timed out",
        "  connects     2 opened",
        "  last error   ",
        "  closed       1 discarded",
        "  held longest ",
    ] {
        assert!(table.contains(what), "no {what:?} in\n{table}");
    }
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_status_is_one_line_for_a_log() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 2).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    drop(pool.acquire().await.unwrap());
    let line = || format!("{:#}", pool.status());
    assert_eq!(line(), "pool orders: healthy; 1 of 2 in use, 1 idle, 0 waiting");
    pool.acquire().await.unwrap().discard();
    manager.connect.always(Act::Error);
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    let mut waiter = pin!(pool.acquire_timeout(Duration::MAX));
    assert!(poll_once(waiter.as_mut()).is_pending());
    pool.maintenance().pause();
    assert_eq!(
        line(),
        "pool orders: degraded; 1 of 2 in use, 0 idle, 1 waiting; \
         connecting fails: scripted connect error; maintenance is paused"
    );
    drop(held);

    // Nothing looks then whether the server is back.
    pool.close().await;
    let pool = pool_of(&manager, 2).name("orders").build_lazy().unwrap();
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    pool.maintenance().pause();
    assert_eq!(
        format!("{:#}", pool.status()),
        "pool orders: down; 0 of 2 in use, 0 idle, 0 waiting; \
         connecting fails: scripted connect error; maintenance is paused"
    );

    // Whatever a server says.
    let refuses = || async { Err::<(), _>(std::io::Error::other("no:\nnot\r\nnow")) };
    let pool = Pool::builder(from_fn(refuses)).name("orders").build_lazy().unwrap();
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    let line = format!("{:#}", pool.status());
    assert!(line.ends_with("; connecting fails: no: not  now"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn a_status_is_json_with_everything_in_it() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, 3).time_use(true).build_lazy().unwrap();
    let held = pool.acquire().await.unwrap();
    tokio::time::advance(2 * SECOND).await;
    pool.acquire().await.unwrap().discard();
    let json = serde_json::to_value(pool.status()).unwrap();
    assert_eq!(json["name"], "orders");
    assert_eq!((&json["health"], &json["reasons"]), (&"healthy".into(), &serde_json::json!([])));
    let metrics = &json["metrics"];
    assert_eq!((&metrics["acquires"], &metrics["counts"]["in_use"]), (&2.into(), &1.into()));
    assert_eq!(metrics["closed"]["discarded"], 1);
    assert_eq!(metrics["waits"]["served"], 2);
    assert_eq!(metrics["acquire_wait"]["count"], 2);
    assert_eq!(metrics["acquire_wait"]["p50_seconds"], 0.0);
    assert_eq!(metrics["use_time"]["count"], 1);
    assert_eq!(metrics["oldest_holder"]["connection"], 1);
    let site = metrics["oldest_holder"]["site"].as_str().unwrap();
    assert!(site.starts_with("tests/status.rs:"), "{site}");
    assert_eq!(metrics["last_connect_error"], serde_json::Value::Null);
    assert_eq!(json["config"]["acquire_timeout"], "5s");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_monitor_lists_pools_by_name_as_long_as_they_are_there() {
    let manager = TestManager::new();
    let (orders, other) = (pool_of(&manager, 1).build_lazy().unwrap(), TestManager::new());
    let monitor = Monitor::new();
    monitor.add(&orders).unwrap();
    let error = monitor.add(&pool_of(&other, 1).build_lazy().unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is something called orders already: close it first if this is to take its place, or give \
         each pool and cluster its own name with its builder's `name`"
    );
    let carts = Pool::builder(other).name("carts").build_lazy().unwrap();
    monitor.clone().add(&carts).unwrap();
    let names = || -> Vec<String> {
        monitor.statuses().iter().map(|status| status.config.name.to_string()).collect()
    };
    assert_eq!(names(), ["orders", "carts"]);
    let _held = orders.acquire().await.unwrap();
    assert_eq!(monitor.sources()[0].holders().len(), 1);
    drop(_held);
    drop(orders);
    assert_eq!(names(), ["carts"], "it does not keep a pool open");
    let again = pool_of(&manager, 1).build_lazy().unwrap();
    monitor.add(&again).unwrap();
    assert_eq!(names(), ["carts", "orders"]);
    assert_eq!(format!("{monitor:?}"), r#"["carts", "orders"]"#);
}

#[tokio::test(start_paused = true)]
async fn a_monitor_lists_no_pool_that_is_gone() {
    let manager = TestManager::new();
    let (orders, monitor) = (pool_of(&manager, 1).build_lazy().unwrap(), Monitor::new());
    monitor.add(&orders).unwrap();
    assert_eq!(monitor.sources().len(), 1);
    drop(orders);
    assert_eq!(monitor.sources().len(), 0);
    assert_eq!(format!("{monitor:?}"), "[]");
}

#[tokio::test(start_paused = true)]
async fn a_closed_pool_makes_way_for_another_of_its_name_though_somebody_has_a_handle_to_it() {
    let manager = TestManager::new();
    let [old, new] = [(); 2].map(|()| pool_of(&manager, 1).build_lazy().unwrap());
    let monitor = Monitor::new();
    monitor.add(&old).unwrap();
    monitor.add(&new).unwrap_err();
    let _held = old.acquire().await.unwrap();
    {
        let mut drain = pin!(old.drain(SECOND));
        assert!(poll_once(drain.as_mut()).is_pending());
        let carts = Pool::builder(manager.clone()).name("carts").build_lazy().unwrap();
        monitor.add(&carts).unwrap();
        let down = Health::Down(vec!["the pool is being drained".to_owned()]);
        assert_eq!(monitor.health()[0], ("orders".to_owned(), down), "nothing takes its place");
        drop(carts);
        monitor.add(&new).unwrap();
    }
    assert_eq!(monitor.health(), [("orders".to_owned(), Health::Healthy)]);
    assert_eq!(monitor.sources()[0].holders().len(), 0, "it is the new one");
    let error = monitor.add(&old).unwrap_err();
    assert_eq!(error.name, "orders", "the new one makes way for nobody");
}

#[test]
fn a_closed_blocking_pool_makes_way_for_another_of_its_name() {
    let [old, new] = [(); 2].map(|()| pool_of(&TestManager::new(), 1).build_blocking().unwrap());
    let monitor = Monitor::new();
    monitor.add_blocking(&old).unwrap();
    monitor.add_blocking(&new).unwrap_err();
    old.close();
    monitor.add_blocking(&new).unwrap();
    assert_eq!(monitor.health(), [("orders".to_owned(), Health::Healthy)]);
}

/// Has another thread look at the monitor that looks at it, the first time.
struct Curious {
    monitor: Monitor,
    has_looked: AtomicBool,
    pool: Pool<TestManager>,
}

impl Source for Curious {
    fn name(&self) -> String {
        "curious".to_owned()
    }

    fn status(&self) -> Option<PoolStatus> {
        if !self.has_looked.swap(true, SeqCst) {
            let (looked, has_looked) = mpsc::channel();
            let monitor = self.monitor.clone();
            thread::spawn(move || looked.send(monitor.sources().len()));
            has_looked.recv_timeout(PATIENCE).expect("nobody has locked the monitor");
        }
        Some(self.pool.status())
    }

    fn holders(&self) -> Vec<Holder> {
        Vec::new()
    }
}

#[test]
fn a_monitor_asks_nobody_anything_while_it_is_locked() {
    let monitor = Monitor::new();
    let pool = pool_of(&TestManager::new(), 1).build_lazy().unwrap();
    let has_looked = AtomicBool::new(true);
    let curious = Curious { monitor: monitor.clone(), has_looked, pool: pool.clone() };
    let curious = Arc::new(curious);
    monitor.add_source(Shared(curious.clone())).unwrap();
    curious.has_looked.store(false, SeqCst);
    monitor.add(&pool).unwrap();
    assert!(curious.has_looked.load(SeqCst), "it was asked whether it is still there");
    assert_eq!(monitor.statuses().len(), 2);
}

/// A source that its test can still reach.
struct Shared(Arc<Curious>);

impl Source for Shared {
    fn name(&self) -> String {
        self.0.name()
    }

    fn status(&self) -> Option<PoolStatus> {
        self.0.status()
    }

    fn holders(&self) -> Vec<Holder> {
        self.0.holders()
    }
}

/// Of these pools any may serve.
struct Any(Vec<Arc<dyn Source>>);

impl Group for Any {
    fn name(&self) -> String {
        "any".to_owned()
    }

    fn sources(&self) -> Option<Vec<Arc<dyn Source>>> {
        Some(self.0.clone())
    }
}

/// Of these pools all are needed.
struct All(Any);

impl Group for All {
    fn name(&self) -> String {
        "all".to_owned()
    }

    fn sources(&self) -> Option<Vec<Arc<dyn Source>>> {
        self.0.sources()
    }

    fn health(&self, pools: &[PoolStatus]) -> Health {
        let down = pools.iter().find(|pool| !pool.health.is_up());
        down.map_or(Health::Healthy, |pool| Health::Down(vec![pool.config.name.to_string()]))
    }
}

#[tokio::test(start_paused = true)]
async fn the_pools_of_a_group_stand_in_for_each_other_unless_it_says_otherwise() {
    let pools =
        ["a", "b"].map(|name| Pool::builder(TestManager::new()).name(name).build_lazy().unwrap());
    let (each, monitor) = (Monitor::new(), Monitor::new());
    pools.iter().for_each(|pool| each.add(pool).unwrap());
    monitor.add_group(Any(each.sources())).unwrap();
    monitor.add_group(All(Any(each.sources()))).unwrap();
    monitor
        .add_source(Shared(Arc::new(Curious {
            monitor: Monitor::new(),
            has_looked: AtomicBool::new(true),
            pool: pools[1].clone(),
        })))
        .unwrap();
    let health = || -> Vec<String> {
        let health = monitor.health().into_iter();
        health.map(|(name, health)| format!("{name}: {health}")).collect()
    };
    assert_eq!(health(), ["any: healthy", "all: healthy", "curious: healthy"]);
    pools[0].close().await;
    let degraded = "any: degraded: a is down: the pool is closed";
    assert_eq!(health(), [degraded, "all: down: a", "curious: healthy"]);
    pools[1].close().await;
    let down = "any: down: a is down: the pool is closed; b is down: the pool is closed";
    assert_eq!(health(), [down, "all: down: a", "curious: down: the pool is closed"]);
    let none = Monitor::new();
    none.add_group(Any(Vec::new())).unwrap();
    assert_eq!(none.health(), [("any".to_owned(), Health::Healthy)]);
}

// ---- settings from text ----

#[test]
fn all_settings_come_back_from_toml_and_json_as_they_went() {
    let manager = TestManager::new();
    let shed = Shed::new(Duration::from_millis(7), SECOND).report_only();
    let pool = Pool::builder(manager)
        .name("a \"strange\"\nname")
        .max_size(3)
        .capacity(9)
        .min_idle(2)
        .acquire_timeout(Duration::from_millis(1500))
        .check(CheckPolicy::Always)
        .max_lifetime(None)
        .idle_timeout(90 * SECOND)
        .keepalive_interval(None)
        .lifetime_jitter(0.5)
        .leak_after(60 * SECOND)
        .slow_acquire(SECOND / 4)
        .max_waiters(17)
        .reserved(Priority::High, 1)
        .shed(shed)
        .fail_fast(true)
        .detect_deadlock(true)
        .time_use(true)
        .order(IdleOrder::Lifo)
        .shards(1)
        .build_lazy()
        .unwrap();
    for config in [pool.config().clone(), Config::default()] {
        let toml = toml::to_string(&config).unwrap();
        let json = serde_json::to_string(&config).unwrap();
        for back in [toml::from_str::<Config>(&toml).unwrap(), serde_json::from_str(&json).unwrap()]
        {
            assert_eq!(format!("{back:?}"), format!("{config:?}"), "{toml}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_file_is_told_by_key_value_and_rule() {
    for (toml, said) in [
        ("max_sise = 3", "max_sise is set, but it is no setting; there are name, max_size"),
        ("max_size = -3", "max_size is \"-3\", but it must be a whole number"),
        (
            "max_size = 99999999999999999999",
            "max_size is \"99999999999999999999\", but it must be at most",
        ),
        (
            "max_waiters = 99999999999999999999",
            "max_waiters is \"99999999999999999999\", but it must be at most",
        ),
        ("max_size = -99999999999999999999", "but it must be a whole number, from 0"),
        ("max_size = 1.5", "max_size is \"1.5\", but it must be a whole number"),
        ("acquire_timeout = 5", "acquire_timeout is \"5\", but it must be a time, such as"),
        ("acquire_timeout = \"-5s\"", "acquire_timeout is \"-5s\", but it must be a time"),
        ("acquire_timeout = \"99999999999999999999s\"", "acquire_timeout is \"99999999"),
        ("acquire_timeout = \"0s\"", "acquire_timeout is 0ns, but it must be above zero"),
        ("acquire_timeout = \"never\"", "acquire_timeout is \"never\", but it must be a time"),
        ("min_idle = 11", "min_idle is 11, but it must be at most max_size, which is 10"),
        ("lifetime_jitter = 2.0", "lifetime_jitter is 2, but it must be from 0.0 to 1.0"),
        ("fail_fast = \"yes\"", "fail_fast is \"yes\", but it must be true or false"),
        ("acquire_timeout = \"18446744073709551615s 1000ms\"", "but it must be at most 584"),
        (
            "shed_target = \"1s\"\nshed_interval = \"0.5s\"",
            "shed_target is 1s, but it must be at most shed_interval, which is 500ms",
        ),
        ("shed_target = \"0s\"", "shed_target is 0ns, but it must be above zero"),
        ("[check]\nidle_for = 1", "check: invalid type: map"),
        ("reserved = 10", "reserved is 10, but it must be below max_size"),
    ] {
        let error = toml::from_str::<Config>(toml).unwrap_err().to_string();
        assert!(error.contains(said), "{toml}: {error}");
    }
}

#[test]
fn null_is_no_value_and_the_rule_says_which_word_there_is_for_no_limit() {
    let time = "it must be a time, such as \"30s\" or \"5m\", or \"never\"";
    let count = "it must be a whole number, from 0, or \"none\"";
    for (key, rule) in [
        ("max_lifetime", time),
        ("idle_timeout", time),
        ("keepalive_interval", time),
        ("leak_after", time),
        ("slow_acquire", time),
        ("max_waiters", count),
        ("capacity", count),
        ("shards", count),
        ("acquire_timeout", "it must be a time, such as \"30s\" or \"5m\""),
        ("max_size", "it must be a whole number, from 0"),
        ("fail_fast", "it must be true or false"),
        ("name", "it must be text"),
    ] {
        let error = serde_json::from_str::<Config>(&format!("{{\"{key}\": null}}")).unwrap_err();
        let said = format!("{key} is null, but {rule} at line 1");
        assert!(error.to_string().starts_with(&said), "{error}");
    }
}

#[test]
fn the_value_of_a_key_that_is_no_setting_may_be_a_secret_and_is_not_told() {
    for (toml, json) in [
        ("url = \"postgres://app:hunter2@db\"", r#"{"url": "postgres://app:hunter2@db"}"#),
        ("max_size = 2\npassword = \"hunter2\"", r#"{"max_size": 2, "password": "hunter2"}"#),
        ("pin = [\"hunter2\"]", r#"{"pin": ["hunter2"]}"#),
    ] {
        for error in [
            toml::from_str::<Config>(toml).unwrap_err().message().to_owned(),
            serde_json::from_str::<Config>(json).unwrap_err().to_string(),
        ] {
            assert!(error.contains(" is set, but it is no setting"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    let error = serde_json::from_str::<Config>(r#"{"max_size": 2, "max_size": 3}"#).unwrap_err();
    assert!(
        error.to_string().contains("max_size is \"3\", but it must not be set twice"),
        "{error}"
    );
}

#[test]
fn never_and_none_are_the_same_for_whatever_has_no_limit() {
    for word in ["never", "none"] {
        for key in [
            "capacity",
            "max_lifetime",
            "idle_timeout",
            "keepalive_interval",
            "leak_after",
            "slow_acquire",
            "max_waiters",
            "shards",
        ] {
            let config: Config = toml::from_str(&format!("{key} = \"{word}\"")).unwrap();
            let json = serde_json::to_value(&config).unwrap();
            assert!(["never", "none"].contains(&json[key].as_str().unwrap()), "{json}");
        }
    }
}

#[test]
fn shedding_in_text_is_switched_on_by_a_time_or_by_asking_for_reports() {
    let shed = |toml: &str| toml::from_str::<Config>(toml).unwrap().shed;
    let (target, interval) = (SECOND / 200, SECOND / 10);
    assert_eq!(shed("shed_report_only = false"), None);
    assert_eq!(shed("shed_report_only = true"), Some(Shed::new(target, interval).report_only()));
    assert_eq!(
        shed("shed_report_only = false\nshed_target = \"7ms\""),
        Some(Shed::new(SECOND * 7 / 1000, interval))
    );
    // What is not said follows.
    assert_eq!(shed("shed_target = \"200ms\""), Some(Shed::new(SECOND / 5, SECOND / 5)));
    assert_eq!(shed("shed_interval = \"1ms\""), Some(Shed::new(SECOND / 1000, SECOND / 1000)));
}

#[test]
fn what_is_left_out_follows_what_is_there() {
    let config: Config = toml::from_str("max_lifetime = \"1m\"\nbackoff = \"10s\"").unwrap();
    assert_eq!((config.idle_timeout, config.backoff_max), (Some(60 * SECOND), 10 * SECOND));
    let config: Config = toml::from_str("backoff_max = \"40ms\"").unwrap();
    assert_eq!((config.backoff, config.backoff_max), (SECOND / 25, SECOND / 25));
    let config: Config = toml::from_str("shed_target = \"20ms\"").unwrap();
    let shed = config.shed.unwrap();
    assert_eq!((shed.interval, shed.report_only), (SECOND / 10, false));
    let error =
        toml::from_str::<Config>("max_lifetime = \"1m\"\nidle_timeout = \"2m\"").unwrap_err();
    assert!(error.to_string().contains("idle_timeout is 120s, but it must be at most"), "{error}");
}
