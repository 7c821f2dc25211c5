//! The ranges of the settings of a connection's life and of overload.
//!
//! Not here: the settings that `construction.rs` has.

#![cfg(feature = "tokio")]

mod support;

use millpond::{CheckPolicy, Config, Pool, PoolBuilder, Priority, Shed};
use std::time::Duration;
use support::*;

const SECOND: Duration = Duration::from_secs(1);

fn builder() -> PoolBuilder<TestManager> {
    Pool::builder(TestManager::new())
}

/// The message with which a pool of these settings is refused.
#[track_caller]
fn refusal(builder: PoolBuilder<TestManager>) -> String {
    builder.build_lazy().expect_err("out of range").to_string()
}

#[test]
fn the_defaults_are_those_that_are_documented() {
    // As text, in which no field is missing.
    let defaults = format!("{:?}", Config::default());
    let expected = [
        r#"name: "millpond""#,
        "max_size: 10",
        "capacity: None",
        "min_idle: 0",
        "acquire_timeout: 5s",
        "connect_timeout: 5s",
        "check_timeout: 1s",
        "reset_timeout: 1s",
        "close_timeout: 1s",
        "max_connecting: 4",
        "backoff: 50ms",
        "backoff_max: 2s",
        "check: IfIdleFor(5s)",
        "max_lifetime: Some(1800s)",
        "lifetime_jitter: 0.2",
        "idle_timeout: Some(600s)",
        "keepalive_interval: Some(120s)",
        "maintenance_interval: 1s",
        "leak_after: None",
        "slow_acquire: None",
        "max_waiters: None",
        "reserved: (High, 0)",
        "shed: None",
        "fail_fast: false",
        "detect_deadlock: false",
        "time_use: false",
        "trace_uses: false",
        "order: Recent",
        "shards: None",
    ];
    assert_eq!(defaults, format!("Config {{ {} }}", expected.join(", ")));
}

#[test]
fn a_name_that_is_empty_is_refused() {
    let refused = "name is \"\", but it must not be empty";
    assert_eq!(refusal(builder().name("")), refused);
}

#[test]
fn a_capacity_below_max_size_is_refused() {
    assert_eq!(
        refusal(builder().max_size(4).capacity(3)),
        "capacity is 3, but it must be at least max_size, which is 4"
    );
    assert_eq!(refusal(builder().capacity(0)), "capacity is 0, but it must be from 1 to 1048576");
    builder().max_size(4).capacity(4).build_lazy().unwrap();
}

#[test]
fn an_idle_timeout_above_the_lifetime_is_refused() {
    assert_eq!(
        refusal(builder().max_lifetime(SECOND).idle_timeout(2 * SECOND)),
        "idle_timeout is 2s, but it must be at most max_lifetime, which is 1s"
    );
    builder().max_lifetime(SECOND).idle_timeout(SECOND).build_lazy().unwrap();
    builder().max_lifetime(None).idle_timeout(Duration::MAX).build_lazy().unwrap();
}

#[test]
fn an_idle_timeout_that_was_not_chosen_follows_the_lifetime() {
    let pool = builder().max_lifetime(SECOND).build_lazy().unwrap();
    assert_eq!(pool.config().idle_timeout, Some(SECOND));
    let pool = builder().max_lifetime(None).build_lazy().unwrap();
    assert_eq!(pool.config().idle_timeout, Some(600 * SECOND));
    let pool = builder().idle_timeout(None).max_lifetime(SECOND).build_lazy().unwrap();
    assert_eq!(pool.config().idle_timeout, None);
}

#[test]
fn an_idle_timeout_that_was_not_chosen_follows_the_lifetime_beside_a_config() {
    let idle =
        |builder: PoolBuilder<TestManager>| builder.build_lazy().unwrap().config().idle_timeout;
    let config = |max_lifetime| {
        let mut config = Config::default();
        config.max_lifetime = max_lifetime;
        config
    };
    // Nobody has chosen the ten minutes of the default.
    let short = config(Some(60 * SECOND));
    assert_eq!(idle(builder().config(short.clone())), Some(60 * SECOND));
    assert_eq!(idle(builder().config(config(None)).max_lifetime(SECOND)), Some(SECOND));
    // Nor what it has been shortened to.
    let short = builder().config(short).build_lazy().unwrap().config().clone();
    assert_eq!(short.idle_timeout, Some(60 * SECOND));
    assert_eq!(idle(builder().config(short.clone()).max_lifetime(SECOND)), Some(SECOND));
    // Perhaps somebody has, so nobody makes it longer.
    assert_eq!(idle(builder().config(short).max_lifetime(None)), Some(60 * SECOND));
    // This is chosen.
    let mut chosen = config(Some(60 * SECOND));
    chosen.idle_timeout = Some(30 * SECOND);
    assert_eq!(
        refusal(builder().config(chosen.clone()).max_lifetime(SECOND)),
        "idle_timeout is 30s, but it must be at most max_lifetime, which is 1s"
    );
    chosen.idle_timeout = None;
    assert_eq!(idle(builder().config(chosen).max_lifetime(SECOND)), None);
}

#[test]
fn a_jitter_outside_of_nothing_and_all_is_refused() {
    for jitter in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert_eq!(
            refusal(builder().lifetime_jitter(jitter)),
            format!("lifetime_jitter is {jitter}, but it must be from 0.0 to 1.0")
        );
    }
    for jitter in [0.0, 1.0] {
        builder().lifetime_jitter(jitter).build_lazy().unwrap();
    }
}

#[test]
fn no_duration_may_be_zero() {
    let zero = Duration::ZERO;
    let shed = Shed::new(zero, SECOND);
    for (field, builder) in [
        ("check", builder().check(CheckPolicy::IfIdleFor(zero))),
        ("max_lifetime", builder().max_lifetime(zero).idle_timeout(None)),
        ("idle_timeout", builder().idle_timeout(zero)),
        ("keepalive_interval", builder().keepalive_interval(zero)),
        ("leak_after", builder().leak_after(zero)),
        ("slow_acquire", builder().slow_acquire(zero)),
        ("maintenance_interval", builder().maintenance_interval(zero)),
        ("shed_target", builder().shed(shed)),
        ("on_metrics", builder().on_metrics(zero, |_| {})),
    ] {
        assert_eq!(refusal(builder), format!("{field} is 0ns, but it must be above zero"));
    }
}

#[test]
fn the_rules_of_overload_are_checked() {
    assert_eq!(refusal(builder().max_waiters(0)), "max_waiters is 0, but it must be at least 1");
    assert_eq!(
        refusal(builder().max_size(2).reserved(Priority::High, 2)),
        "reserved is 2, but it must be below max_size, which is 2"
    );
    assert_eq!(
        refusal(builder().reserved(Priority::Normal, 1)),
        "reserved is 1, but it must be 0 for Priority::Normal, which takes what is not reserved"
    );
    assert_eq!(
        refusal(builder().shed(Shed::new(2 * SECOND, SECOND))),
        "shed_target is 2s, but it must be at most shed_interval, which is 1s"
    );
}

#[tokio::test(start_paused = true)]
async fn the_longest_durations_do_not_overflow() {
    let max = Duration::MAX;
    let pool = builder()
        .max_size(1)
        .min_idle(1)
        .check(CheckPolicy::IfIdleFor(max))
        .max_lifetime(max)
        .idle_timeout(max)
        .keepalive_interval(max)
        .leak_after(max)
        .slow_acquire(max)
        .lifetime_jitter(1.0)
        .shed(Shed::new(max, max))
        .build()
        .await
        .unwrap();
    for _ in 0..100 {
        let held = pool.acquire().await.unwrap();
        let other = tokio::spawn({
            let pool = pool.clone();
            async move { pool.acquire().await.is_ok() }
        });
        tokio::time::sleep(SECOND).await;
        drop(held);
        assert!(other.await.unwrap());
    }
    assert_eq!((pool.metrics().created, pool.metrics().leaks), (1, 0));
    pool.maintenance().set_interval(max).unwrap();
    pool.maintenance().run_once().await;
    assert!(pool.drain(max).await.still_out.is_empty());
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn the_longest_durations_of_a_cluster_do_not_overflow() {
    use futures_util::StreamExt;
    use millpond::cluster::{Cluster, Dns, Policy};
    let max = Duration::MAX;
    let dns = Dns::new("db.internal:5432".parse().unwrap(), max).unwrap();
    let mut dns = dns.lookup(async |_| Ok(vec![([127, 0, 0, 1], 5432).into()]));
    assert_eq!(dns.next().await.unwrap().unwrap().len(), 1);
    let other = tokio::time::timeout(1_000_000 * SECOND, dns.next()).await;
    assert!(other.is_err(), "it asks but once");

    let cluster = Cluster::builder().slow_start(max).acquire_timeout(max).try_next_after(max);
    let cluster = cluster.build().unwrap();
    let managers = ["a", "b"].map(|key| {
        let manager = TestManager::new();
        cluster.add_node(key.to_owned(), manager.clone()).unwrap();
        manager
    });
    managers[0].connect.always(Act::Error);
    for _ in 0..10 {
        assert_eq!(cluster.acquire_any(Policy::RoundRobin).await.unwrap().node(), "b");
    }
    managers[0].connect.calm();
    eventually("a is back", || managers[0].ledger.live() > 0).await;
    let mut served = 0;
    for _ in 0..1_000 {
        let guard = cluster.acquire_any(Policy::RoundRobin).await.unwrap();
        served += usize::from(guard.node() == "a");
    }
    assert!((1..250).contains(&served), "{served} of 1000, and half once it has started");
}
