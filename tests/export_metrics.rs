//! What a recorder of the `metrics` facade is told, flush by flush.

#![cfg(feature = "metrics")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};
use metrics_util::MetricKind;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
#[cfg(feature = "cluster")]
use millpond::cluster::{Cluster, NodeOptions, Role};
use millpond::export::StartError;
use millpond::export::metrics::Exporter;
use millpond::{CheckPolicy, Group, Holder, Monitor, Pool, PoolBuilder, PoolStatus, Source};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

fn pool_of(manager: &TestManager, name: &str) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone()).name(name).max_size(2).shards(1)
}

fn monitor_of(pool: &Pool<TestManager>) -> Monitor {
    let monitor = Monitor::new();
    monitor.add(pool).unwrap();
    monitor
}

/// What one flush has told: figures by name and labels, the pool last, and left out if it is this one.
#[derive(Debug, Default, PartialEq)]
struct Told {
    gauges: BTreeMap<String, f64>,
    counters: BTreeMap<String, u64>,
    times: BTreeMap<String, Vec<f64>>,
    units: BTreeMap<String, Unit>,
}

fn flushed(recorder: &DebuggingRecorder, exporter: &Exporter, pool: &str) -> Told {
    with_local_recorder(recorder, || exporter.flush());
    let mut told = Told::default();
    for (key, unit, help, value) in recorder.snapshotter().snapshot().into_vec() {
        assert!(help.is_some_and(|help| !help.is_empty()), "{key:?} is not described");
        let (kind, key) = key.into_parts();
        assert!(key.labels().any(|label| label.key() == "pool"), "{key:?}");
        let labels = key.labels().rev().filter(|label| label.value() != pool);
        let label: String = labels.map(|label| format!(" {}", label.value())).collect();
        told.units.insert(key.name().to_owned(), unit.unwrap());
        let name = format!("{}{label}", key.name());
        match (kind, value) {
            (MetricKind::Gauge, DebugValue::Gauge(value)) => {
                told.gauges.insert(name, value.into_inner());
            }
            (MetricKind::Counter, DebugValue::Counter(value)) => {
                told.counters.insert(name, value);
            }
            (MetricKind::Histogram, DebugValue::Histogram(values)) => {
                let mut values: Vec<f64> = values.into_iter().map(f64::from).collect();
                values.sort_by(f64::total_cmp);
                told.times.insert(name, values);
            }
            other => panic!("{key:?} is {other:?}"),
        }
    }
    told
}

#[track_caller]
fn near(told: &[f64], exact: &[Duration]) {
    assert_eq!(told.len(), exact.len(), "{told:?}");
    for (told, exact) in told.iter().zip(exact) {
        let exact = exact.as_secs_f64();
        assert!((told - exact).abs() <= 0.032 * exact, "{told} for {exact}");
    }
}

// ---- figures ----

#[tokio::test(start_paused = true)]
async fn every_figure_is_told_under_its_name_and_with_its_unit() {
    let manager = TestManager::new();
    manager.connect.once(Act::Slow(20 * MILLISECOND));
    let builder = pool_of(&manager, "orders").time_use(true).check(CheckPolicy::Always);
    let pool = builder.capacity(3).min_idle(1).build().await.unwrap();
    pool.acquire().await.unwrap().discard();
    manager.connect.once(Act::Slow(30 * MILLISECOND));
    let held = pool.acquire().await.unwrap();
    let other = pool.acquire().await.unwrap();
    tokio::time::sleep(3 * SECOND).await;
    drop(other);
    let (_third, mut waiter) = (pool.acquire().await.unwrap(), pin!(pool.acquire()));
    assert!(poll_once(waiter.as_mut()).is_pending());
    let metrics = pool.metrics();
    assert!(metrics.acquires == 4 && metrics.created >= 2 && metrics.checks > 0, "{metrics:?}");

    let recorder = DebuggingRecorder::new();
    let told = flushed(&recorder, &Exporter::new(monitor_of(&pool)), "orders");
    let counts = metrics.counts;
    let held_for = metrics.oldest_holder.as_ref().unwrap().held.as_secs_f64();
    let gauges = [
        ("millpond_up", 1.0),
        ("millpond_health healthy", 0.0),
        ("millpond_health degraded", 1.0),
        ("millpond_health down", 0.0),
        ("millpond_connections idle", counts.idle as f64),
        ("millpond_connections in_use", 2.0),
        ("millpond_connections checking", counts.checking as f64),
        ("millpond_connections resetting", counts.resetting as f64),
        ("millpond_connections closing", counts.closing as f64),
        ("millpond_connections connecting", counts.connecting as f64),
        ("millpond_connections vacant", counts.vacant as f64),
        ("millpond_connections spare", 1.0),
        ("millpond_connections_max", 2.0),
        ("millpond_connections_min_idle", 1.0),
        ("millpond_waiters", 1.0),
        ("millpond_oldest_holder_seconds", held_for),
    ];
    assert_eq!(told.gauges, gauges.map(|(name, value)| (name.to_owned(), value)).into());
    let mut counters: BTreeMap<String, u64> = [
        ("millpond_acquires_total", 4),
        ("millpond_shed_total", 0),
        ("millpond_connections_opened_total", metrics.created),
        ("millpond_connect_failures_total", 0),
        ("millpond_checks_total", metrics.checks),
        ("millpond_resets_total", 0),
        ("millpond_leaks_total", 0),
        ("millpond_late_returns_total", 0),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    for (outcome, count) in metrics.waits.by_outcome() {
        counters.insert(format!("millpond_acquire_waits_total {outcome}"), count);
    }
    for (reason, count) in metrics.closed.by_reason() {
        counters.insert(format!("millpond_connections_closed_total {reason}"), count);
    }
    assert_eq!(told.counters, counters);
    assert_eq!(told.times.len(), 4);
    let seconds = |millis: &[u64]| millis.iter().map(|ms| Duration::from_millis(*ms)).collect();
    let connects: Vec<Duration> = seconds(&[0, 20, 30]);
    let connects = &connects[3 - metrics.created as usize..];
    near(&told.times["millpond_connect_seconds"], connects);
    near(&told.times["millpond_use_seconds"], &seconds(&[0, 3_000]));
    assert_eq!(told.times["millpond_connection_lifetime_seconds"].len(), 1);
    for (name, unit) in &told.units {
        let is_time = name.ends_with("_seconds");
        assert_eq!(*unit, if is_time { Unit::Seconds } else { Unit::Count }, "{name}");
    }
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_flush_tells_only_what_has_come_since_the_one_before() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, "orders").max_size(1).min_idle(1).build().await.unwrap();
    let exporter = Exporter::new(monitor_of(&pool));
    let waits = async |time: Duration| {
        let held = pool.acquire_owned().await.unwrap();
        let release = async {
            tokio::time::sleep(time).await;
            drop(held);
        };
        drop(tokio::join!(pool.acquire(), release).0.unwrap());
    };
    // Whichever recorder there is, each thing is told once.
    for (acquires, times) in [(2, vec![40]), (0, vec![]), (6, vec![7, 40, 300])] {
        let times: Vec<Duration> = times.into_iter().map(Duration::from_millis).collect();
        for time in &times {
            waits(*time).await;
        }
        let told = flushed(&DebuggingRecorder::new(), &exporter, "orders");
        assert_eq!(told.counters["millpond_acquires_total"], acquires);
        assert_eq!(told.counters["millpond_acquire_waits_total served"], times.len() as u64);
        near(&told.times["millpond_acquire_wait_seconds"], &times);
        assert_eq!(told.gauges["millpond_connections idle"], 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn hits_are_counted_and_not_recorded_and_times_are_bounded() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, "orders").time_use(true).min_idle(1).build().await.unwrap();
    let exporter = Exporter::new(monitor_of(&pool));
    for _ in 0..12_000 {
        drop(pool.acquire().await.unwrap());
    }
    let told = flushed(&DebuggingRecorder::new(), &exporter, "orders");
    assert_eq!(told.counters["millpond_acquires_total"], 12_000);
    assert!(told.times["millpond_acquire_wait_seconds"].is_empty());
    assert_eq!(told.times["millpond_use_seconds"].len(), 10_000);
}

// ---- pools that come and go ----

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_gone_leaves_gauges_of_zero_and_its_successor_counts_on() {
    let manager = TestManager::new();
    let first = pool_of(&manager, "orders").min_idle(2).build().await.unwrap();
    let monitor = monitor_of(&first);
    let exporter = Exporter::new(monitor.clone());
    for _ in 0..5 {
        drop(first.acquire().await.unwrap());
    }
    let recorder = DebuggingRecorder::new();
    let told = flushed(&recorder, &exporter, "orders");
    assert_eq!((told.counters["millpond_acquires_total"], told.gauges["millpond_up"]), (5, 1.0));
    drop(first);
    eventually("nobody keeps its connections", || manager.ledger.live() == 0).await;
    assert!(monitor.statuses().is_empty(), "nobody keeps the pool");
    // A recorder that has heard nothing yet hears of the end, once.
    let told = flushed(&DebuggingRecorder::new(), &exporter, "orders");
    assert_eq!((told.gauges.len(), told.counters.len()), (16, 0));
    assert!(told.gauges.values().all(|value| *value == 0.0), "{told:?}");
    let told = flushed(&DebuggingRecorder::new(), &exporter, "orders");
    assert_eq!(told, Told::default());

    let second = pool_of(&manager, "orders").build_lazy().unwrap();
    monitor.add(&second).unwrap();
    for _ in 0..3 {
        drop(second.acquire().await.unwrap());
    }
    let told = flushed(&recorder, &exporter, "orders");
    assert_eq!((told.counters["millpond_acquires_total"], told.gauges["millpond_up"]), (3, 1.0));
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_takes_the_place_of_another_between_two_flushes_is_told_whole() {
    let manager = TestManager::new();
    let first = pool_of(&manager, "orders").build_lazy().unwrap();
    let monitor = monitor_of(&first);
    let exporter = Exporter::new(monitor.clone());
    drop(first.acquire().await.unwrap());
    let recorder = DebuggingRecorder::new();
    flushed(&recorder, &exporter, "orders");
    drop(first);
    let second = pool_of(&manager, "orders").build_lazy().unwrap();
    monitor.add(&second).unwrap();
    for _ in 0..3 {
        drop(second.acquire().await.unwrap());
    }
    let told = flushed(&recorder, &exporter, "orders");
    assert_eq!((told.counters["millpond_acquires_total"], told.gauges["millpond_up"]), (3, 1.0));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_pool_is_told_once_even_if_the_monitor_has_forgotten_it() {
    let manager = TestManager::new();
    let first = pool_of(&manager, "orders").build_lazy().unwrap();
    let second = pool_of(&manager, "carts").build_lazy().unwrap();
    let monitor = monitor_of(&first);
    let exporter = Exporter::new(monitor.clone());
    // Adding a pool is what makes a monitor forget those that are gone: before the end is told of the
    // first, and after it is told of the second.
    let told_of = |pool: &str| {
        let told = flushed(&DebuggingRecorder::new(), &exporter, "");
        let series = told.gauges.keys().filter(|name| name.ends_with(&format!(" {pool}")));
        series.count() > 0
    };
    assert!(told_of("orders"));
    drop(first);
    monitor.add(&second).unwrap();
    assert_eq!([told_of("orders"), told_of("orders")], [true, false]);
    drop(second);
    assert!(told_of("carts"));
    let third = pool_of(&manager, "third").build_lazy().unwrap();
    monitor.add(&third).unwrap();
    assert!(!told_of("carts"));
}

/// A pool that is held.
struct Held(Pool<TestManager>);

impl Source for Held {
    fn name(&self) -> String {
        self.0.config().name.to_string()
    }

    fn status(&self) -> Option<PoolStatus> {
        Some(self.0.status())
    }

    fn holders(&self) -> Vec<Holder> {
        self.0.holders()
    }
}

/// Pools that come and go under one entry of a monitor.
#[derive(Clone, Default)]
struct Several(Arc<Mutex<Vec<Arc<dyn Source>>>>);

impl Group for Several {
    fn name(&self) -> String {
        "several".to_owned()
    }

    fn sources(&self) -> Option<Vec<Arc<dyn Source>>> {
        Some(self.0.lock().unwrap().clone())
    }
}

#[tokio::test(start_paused = true)]
async fn pools_of_a_group_are_told_like_others_and_end_when_they_leave_it() {
    let pools =
        ["first", "second"].map(|name| pool_of(&TestManager::new(), name).build_lazy().unwrap());
    let several = Several::default();
    for pool in &pools {
        several.0.lock().unwrap().push(Arc::new(Held(pool.clone())));
        drop(pool.acquire().await.unwrap());
    }
    let monitor = Monitor::new();
    monitor.add_group(several.clone()).unwrap();
    let exporter = Exporter::new(monitor);
    let acquires = |told: &Told| {
        pools.each_ref().map(|pool| {
            let name = format!("millpond_acquires_total {}", pool.config().name);
            told.counters.get(&name).copied()
        })
    };
    assert_eq!(acquires(&flushed(&DebuggingRecorder::new(), &exporter, "")), [Some(1); 2]);
    drop(pools[1].acquire().await.unwrap());
    assert_eq!(acquires(&flushed(&DebuggingRecorder::new(), &exporter, "")), [Some(0), Some(1)]);
    several.0.lock().unwrap().remove(0);
    let told = flushed(&DebuggingRecorder::new(), &exporter, "");
    assert_eq!(acquires(&told), [None, Some(0)]);
    assert_eq!(told.gauges["millpond_up first"], 0.0);
    assert_eq!(told.gauges["millpond_up second"], 1.0);
}

// ---- pools of a cluster's nodes ----

/// A cluster of a primary and a replica.
#[cfg(feature = "cluster")]
fn cluster_of(name: &str) -> Cluster<String, TestManager> {
    let builder = Cluster::builder().name(name).pools(|pool| pool.time_use(true));
    let cluster = builder.build().unwrap();
    for (key, role) in [("db1", Role::Primary), ("db2", Role::Replica)] {
        let options = NodeOptions::default().role(role);
        cluster.add_node_with(key.to_owned(), TestManager::new(), options).unwrap();
    }
    cluster
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn every_series_of_a_clusters_node_says_which_node_of_which_cluster_and_no_other_does() {
    let orders = pool_of(&TestManager::new(), "orders").time_use(true).build_lazy().unwrap();
    let monitor = monitor_of(&orders);
    let shop = cluster_of("shop");
    monitor.add_cluster(&shop).unwrap();
    let recorder = DebuggingRecorder::new();
    with_local_recorder(&recorder, || Exporter::new(monitor).flush());
    let mut whose: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, ..) in recorder.snapshotter().snapshot().into_vec() {
        let labels =
            key.key().labels().filter(|label| ["pool", "cluster", "node"].contains(&label.key()));
        let labels: Vec<_> =
            labels.map(|label| format!("{}={}", label.key(), label.value())).collect();
        whose.entry(labels.join(" ")).or_default().push(key.key().name().to_owned());
    }
    whose.values_mut().for_each(|names| names.sort());
    let all = [
        "pool=orders",
        "pool=shop/db1 cluster=shop node=db1",
        "pool=shop/db2 cluster=shop node=db2",
    ];
    assert!(whose.keys().eq(all), "{whose:#?}");
    // The nodes' pools are told of as the other one is, and their roles besides.
    for node in &all[1..] {
        let names = whose[*node].iter().filter(|name| *name != "millpond_node_role");
        assert!(names.eq(&whose["pool=orders"]), "{whose:#?}");
    }
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn the_role_of_a_node_is_told_while_it_is_there() {
    let monitor = Monitor::new();
    let shop = cluster_of("shop");
    monitor.add_cluster(&shop).unwrap();
    let exporter = Exporter::new(monitor);
    let recorder = DebuggingRecorder::new();
    let roles = || {
        let told = flushed(&recorder, &exporter, "");
        ["db1", "db2"].map(|node| {
            ["primary", "replica", "unknown"].map(|role| {
                told.gauges[&format!("millpond_node_role {role} {node} shop shop/{node}")]
            })
        })
    };
    assert_eq!(roles(), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]);
    shop.set_options("db1", NodeOptions::default()).unwrap();
    shop.set_options("db2", NodeOptions::default().role(Role::Primary)).unwrap();
    assert_eq!(roles(), [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]);
    drop(shop.remove_node("db1", SECOND).await.unwrap());
    assert_eq!(roles(), [[0.0; 3], [1.0, 0.0, 0.0]]);
}

// ---- two at once ----

/// A recorder during whose first gauge something happens.
struct Interrupted<'m> {
    calm: DebuggingRecorder,
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send + 'm>>>,
}

impl Recorder for Interrupted<'_> {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.calm.describe_counter(name, unit, help);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.calm.describe_gauge(name, unit, help);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.calm.describe_histogram(name, unit, help);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.calm.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let meanwhile = self.meanwhile.lock().unwrap().take();
        meanwhile.into_iter().for_each(|meanwhile| meanwhile());
        self.calm.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.calm.register_histogram(key, metadata)
    }
}

#[tokio::test]
async fn a_flush_that_was_under_way_when_a_pool_ended_does_not_bring_its_gauges_back() {
    let pool = pool_of(&TestManager::new(), "orders").build_lazy().unwrap();
    let exporter = Exporter::new(monitor_of(&pool));
    let recorder = Interrupted { calm: DebuggingRecorder::new(), meanwhile: Mutex::default() };
    thread::scope(|scope| {
        let (begin, begun) = mpsc::channel::<()>();
        let (end, ended) = mpsc::channel::<()>();
        scope.spawn({
            let (exporter, recorder) = (&exporter, &recorder.calm);
            move || {
                begun.recv().unwrap();
                with_local_recorder(recorder, || exporter.flush());
                drop(end);
            }
        });
        let meanwhile = move || {
            drop(pool);
            begin.send(()).unwrap();
            // It has to wait for this one, so that nobody comes; else it is over long before.
            let _ = ended.recv_timeout(SECOND / 2);
        };
        *recorder.meanwhile.lock().unwrap() = Some(Box::new(meanwhile));
        with_local_recorder(&recorder, || exporter.flush());
    });
    let told = recorder.calm.snapshotter().snapshot().into_vec();
    let up = told.iter().find(|(key, ..)| key.key().name() == "millpond_up");
    assert_eq!(up.unwrap().3, DebugValue::Gauge(0.0.into()));
}

// ---- again and again ----

/// The recorder of the whole process: counts how often it hears of each pool, and panics if the
/// pool's name asks for it.
struct Global;

static HEARD: LazyLock<Mutex<BTreeMap<String, usize>>> = LazyLock::new(Mutex::default);

fn heard(pool: &str) -> usize {
    HEARD.lock().unwrap().get(pool).copied().unwrap_or_default()
}

impl Recorder for Global {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let pool = key.labels().find(|label| label.key() == "pool").map_or("", Label::value);
        if key.name() == "millpond_up" {
            *HEARD.lock().unwrap().entry(pool.to_owned()).or_default() += 1;
            assert!(pool != "panics", "scripted panic of a recorder");
            if pool == "panics twice" {
                panic_any(Bomb);
            }
        }
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("scripted panic of what a panic has left");
    }
}

fn with_global_recorder() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| metrics::set_global_recorder(Global).unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_exporter_flushes_at_each_interval_until_it_is_dropped() {
    with_global_recorder();
    let pool = pool_of(&TestManager::new(), "again").build_lazy().unwrap();
    let exporter = Exporter::start(monitor_of(&pool), 10 * SECOND).unwrap();
    tokio::time::sleep(9 * SECOND).await;
    assert_eq!(heard("again"), 0);
    for flushes in 1..=3 {
        eventually("it has flushed", || heard("again") == flushes).await;
        tokio::time::sleep(9 * SECOND).await;
        assert_eq!(heard("again"), flushes);
    }
    exporter.flush();
    assert_eq!(heard("again"), 4);
    drop(exporter);
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(heard("again"), 4);
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_panics_harms_neither_the_pool_nor_the_next_flush() {
    hush_scripted_panics();
    with_global_recorder();
    let manager = TestManager::new();
    let pool = pool_of(&manager, "panics").build_lazy().unwrap();
    let exporter = Exporter::start(monitor_of(&pool), SECOND).unwrap();
    eventually("it flushes again", || heard("panics") > 2).await;
    drop(catch_unwind(AssertUnwindSafe(|| exporter.flush())).unwrap_err());
    drop(pool.acquire().await.unwrap());
    let told = flushed(&DebuggingRecorder::new(), &exporter, "panics");
    assert_eq!(told.counters["millpond_acquires_total"], 1);
    assert_eq!(balanced(&pool, &manager.ledger).await.acquires, 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_panic_of_a_recorder_leaves_may_panic_too() {
    hush_scripted_panics();
    with_global_recorder();
    let pool = pool_of(&TestManager::new(), "panics twice").build_lazy().unwrap();
    let _exporter = Exporter::start(monitor_of(&pool), SECOND).unwrap();
    eventually("it flushes again", || heard("panics twice") > 2).await;
}

#[test]
fn an_exporter_that_cannot_be_started_says_why() {
    let error = Exporter::start(Monitor::new(), SECOND).unwrap_err();
    assert_eq!(error, StartError::NoRuntime);
    assert!(error.to_string().starts_with("no tokio runtime with a timer here"), "{error}");
    let timeless = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = timeless.block_on(async { Exporter::start(Monitor::new(), SECOND) });
    assert_eq!(error.unwrap_err(), StartError::NoRuntime);
    let error = Exporter::start(Monitor::new(), Duration::ZERO).unwrap_err();
    assert_eq!(error.to_string(), "interval is 0ns, but it must be above zero");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let exporter = Exporter::start(Monitor::new(), Duration::MAX).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(format!("{exporter:?}"), "Exporter { monitor: [], .. }");
    });
}
