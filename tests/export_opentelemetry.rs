//! What an OpenTelemetry SDK is told: names, units, attributes and figures.

#![cfg(feature = "opentelemetry")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

#[cfg(feature = "cluster")]
use millpond::cluster::{Cluster, NodeOptions, Role};
use millpond::export::StartError;
use millpond::export::opentelemetry::Exporter;
use millpond::{CheckPolicy, Group, Holder, Monitor, Pool, PoolBuilder, PoolStatus, Source};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{
    HistogramBuilder, InstrumentProvider, Meter, MeterProvider, SyncInstrument,
};
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData};
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, InMemoryMetricExporterBuilder, SdkMeterProvider, Temporality,
};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
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

/// An SDK that collects when it is told to.
struct Sdk {
    told: InMemoryMetricExporter,
    provider: SdkMeterProvider,
}

/// How often, and all of them together.
type Times = (u64, f64);

/// What a collection has found: by name, and then by the value of the attribute that does not say whose
/// it is.
#[derive(Debug, Default)]
struct Told {
    kinds: BTreeMap<String, (&'static str, String)>,
    pools: BTreeSet<String>,
    attributes: BTreeSet<String>,
    /// By name, the pools, clusters and nodes that are told of.
    #[cfg_attr(not(feature = "cluster"), allow(dead_code, reason = "there are only pools"))]
    whose: BTreeMap<String, BTreeSet<String>>,
    figures: BTreeMap<(String, String), f64>,
    times: BTreeMap<String, Times>,
    bounds: BTreeMap<String, Vec<f64>>,
}

impl Sdk {
    fn new() -> Self {
        Self::telling(Temporality::Cumulative)
    }

    fn telling(temporality: Temporality) -> Self {
        let told = InMemoryMetricExporterBuilder::new().with_temporality(temporality).build();
        let provider = SdkMeterProvider::builder().with_periodic_exporter(told.clone()).build();
        Self { told, provider }
    }

    fn meter(&self) -> Meter {
        self.provider.meter("test")
    }

    fn collect(&self) -> Told {
        self.told.reset();
        self.provider.force_flush().unwrap();
        let mut told = Told::default();
        let collected = self.told.get_finished_metrics().unwrap();
        assert!(collected.len() <= 1);
        for metric in collected.iter().flat_map(|all| all.scope_metrics()).flat_map(|s| s.metrics())
        {
            assert!(!metric.description().is_empty(), "{}", metric.name());
            let kind = match metric.data() {
                AggregatedMetrics::F64(data) => told.read(metric.name(), data, |value| value),
                AggregatedMetrics::U64(data) => {
                    told.read(metric.name(), data, |value| value as f64)
                }
                AggregatedMetrics::I64(data) => {
                    told.read(metric.name(), data, |value| value as f64)
                }
            };
            told.kinds.insert(metric.name().to_owned(), (kind, metric.unit().to_owned()));
        }
        told
    }
}

impl Told {
    fn read<T: Copy>(
        &mut self,
        name: &str,
        data: &MetricData<T>,
        number: impl Fn(T) -> f64,
    ) -> &'static str {
        match data {
            MetricData::Gauge(gauge) => {
                for point in gauge.data_points() {
                    let value = self.attributes_of(name, point.attributes());
                    self.figures.insert((name.to_owned(), value), number(point.value()));
                }
                "gauge"
            }
            MetricData::Sum(sum) => {
                for point in sum.data_points() {
                    let value = self.attributes_of(name, point.attributes());
                    self.figures.insert((name.to_owned(), value), number(point.value()));
                }
                if sum.is_monotonic() { "counter" } else { "up-down counter" }
            }
            MetricData::Histogram(histogram) => {
                for point in histogram.data_points() {
                    assert_eq!(self.attributes_of(name, point.attributes()), "");
                    self.times.insert(name.to_owned(), (point.count(), number(point.sum())));
                    self.bounds.insert(name.to_owned(), point.bounds().collect());
                }
                "histogram"
            }
            MetricData::ExponentialHistogram(_) => panic!("{name} is exponential"),
        }
    }

    /// Notes whose it is, and answers with the value of the other attribute.
    fn attributes_of<'a>(
        &mut self,
        name: &str,
        attributes: impl Iterator<Item = &'a KeyValue>,
    ) -> String {
        let (mut whose, mut other) = (BTreeSet::new(), String::new());
        for KeyValue { key, value, .. } in attributes {
            match key.as_str() {
                "db.client.connection.pool.name" => {
                    self.pools.insert(value.to_string());
                    whose.insert(format!("pool={value}"));
                }
                "millpond.cluster" | "millpond.node" => {
                    self.attributes.insert(key.to_string());
                    whose.insert(format!("{key}={value}"));
                }
                _ => {
                    self.attributes.insert(key.to_string());
                    other = value.to_string();
                }
            }
        }
        let whose: Vec<_> = whose.into_iter().collect();
        self.whose.entry(name.to_owned()).or_default().insert(whose.join(" "));
        other
    }

    #[track_caller]
    fn figure(&self, name: &str) -> f64 {
        let key = (name.to_owned(), String::new());
        *self.figures.get(&key).unwrap_or_else(|| panic!("no {name} in {self:#?}"))
    }
}

// ---- figures ----

#[tokio::test(start_paused = true)]
async fn every_figure_has_the_name_unit_and_attributes_of_the_conventions_or_its_own() {
    let manager = TestManager::new();
    manager.connect.once(Act::Slow(20 * MILLISECOND));
    let builder = pool_of(&manager, "orders").time_use(true).check(CheckPolicy::Always);
    let pool = builder.capacity(3).max_waiters(1).build_lazy().unwrap();
    pool.acquire().await.unwrap().discard();
    let held = pool.acquire().await.unwrap();
    let other = pool.acquire().await.unwrap();
    tokio::time::sleep(3 * SECOND).await;
    pool.acquire_timeout(SECOND).await.map(drop).unwrap_err();
    drop(other);
    let mut third = Some(pool.acquire().await.unwrap());
    let mut waiter = pin!(pool.acquire_timeout(Duration::MAX));
    assert!(poll_once(waiter.as_mut()).is_pending());
    let metrics = pool.metrics();
    assert!(metrics.waits.timed_out == 1 && metrics.closed.discarded == 1, "{metrics:?}");

    let sdk = Sdk::new();
    let exporter = Exporter::new(monitor_of(&pool), &sdk.meter());
    exporter.flush();
    let told = sdk.collect();
    let counts = metrics.counts;
    let mut figures: BTreeMap<(String, String), f64> = [
        ("db.client.connection.count", "idle", 0.0),
        ("db.client.connection.count", "used", 2.0),
        ("db.client.connection.count", "checking", counts.checking as f64),
        ("db.client.connection.count", "resetting", counts.resetting as f64),
        ("db.client.connection.count", "closing", counts.closing as f64),
        ("db.client.connection.max", "", 2.0),
        ("db.client.connection.idle.max", "", 2.0),
        ("db.client.connection.idle.min", "", 0.0),
        ("db.client.connection.pending_requests", "", 1.0),
        ("db.client.connection.timeouts", "", 1.0),
        ("millpond.up", "", 1.0),
        ("millpond.health", "healthy", 0.0),
        ("millpond.health", "degraded", 1.0),
        ("millpond.health", "down", 0.0),
        ("millpond.acquires", "", 4.0),
        ("millpond.shed", "", 0.0),
        ("millpond.connections_opened", "", metrics.created as f64),
        ("millpond.connect_failures", "", 0.0),
        ("millpond.checks", "", metrics.checks as f64),
        ("millpond.resets", "", 0.0),
        ("millpond.leaks", "", 0.0),
        ("millpond.late_returns", "", 0.0),
    ]
    .map(|(name, value, figure)| ((name.to_owned(), value.to_owned()), figure))
    .into();
    for (outcome, count) in metrics.waits.by_outcome() {
        figures.insert(("millpond.acquire_waits".to_owned(), outcome.to_owned()), count as f64);
    }
    for (reason, count) in metrics.closed.by_reason() {
        figures.insert(("millpond.connections_closed".to_owned(), reason.to_owned()), count as f64);
    }
    let mut rest = told.figures.clone();
    // The SDK asks from a thread of its own, where the paused clock does not hold: see below.
    rest.remove(&("millpond.oldest_holder".to_owned(), String::new())).unwrap();
    assert_eq!(rest, figures);
    assert_eq!(told.pools, ["orders".to_owned()].into());
    let attributes =
        ["db.client.connection.state", "millpond.outcome", "millpond.reason", "millpond.state"];
    assert_eq!(told.attributes, attributes.map(str::to_owned).into());

    let document = include_str!("../src/export/opentelemetry.rs");
    for (name, (kind, unit)) in &told.kinds {
        if name.starts_with("db.") {
            let row = format!("//! | `{name}` | {kind} | `{unit}` | ");
            assert!(document.contains(&row), "the documentation has no {row}");
        }
    }
    assert_eq!(told.kinds["millpond.oldest_holder"], ("gauge", "s".to_owned()));
    assert_eq!(told.kinds["millpond.acquires"], ("counter", "{acquire}".to_owned()));
    assert_eq!(told.kinds["millpond.connections_closed"], ("counter", "{connection}".to_owned()));
    assert_eq!(told.kinds["millpond.connection_lifetime"], ("histogram", "s".to_owned()));
    assert_eq!(told.kinds.len(), 23, "{:#?}", told.kinds);
    drop((third.take(), held));
}

#[tokio::test]
async fn the_oldest_holder_is_told_in_seconds() {
    let builder = pool_of(&TestManager::new(), "orders").maintenance_interval(MILLISECOND);
    let pool = builder.build_lazy().unwrap();
    let sdk = Sdk::new();
    let _exporter = Exporter::new(monitor_of(&pool), &sdk.meter());
    assert_eq!(sdk.collect().figure("millpond.oldest_holder"), 0.0);
    let _held = pool.acquire().await.unwrap();
    let held = || pool.metrics().oldest_holder.map_or(0.0, |holder| holder.held.as_secs_f64());
    eventually("it has been held for long", || held() > 0.05).await;
    let before = held();
    let told = sdk.collect().figure("millpond.oldest_holder");
    assert!(before <= told && told <= held(), "{before}, {told}, {}", held());
}

#[track_caller]
fn near((count, sum): Times, times: &[Duration]) {
    let exact = times.iter().sum::<Duration>().as_secs_f64();
    assert_eq!(count, times.len() as u64);
    assert!((sum - exact).abs() <= 0.032 * exact, "{sum} for {exact}");
}

#[tokio::test(start_paused = true)]
async fn a_flush_records_the_times_that_have_come_since_the_one_before() {
    let manager = TestManager::new();
    manager.connect.once(Act::Slow(20 * MILLISECOND));
    let builder = pool_of(&manager, "orders").time_use(true).max_size(1).min_idle(1);
    let pool = builder.build().await.unwrap();
    let sdk = Sdk::new();
    let exporter = Exporter::new(monitor_of(&pool), &sdk.meter());
    let mut uses = Vec::new();
    let mut waits = Vec::new();
    for time in [40 * MILLISECOND, 3 * SECOND] {
        let held = pool.acquire_owned().await.unwrap();
        let release = async {
            tokio::time::sleep(time).await;
            drop(held);
        };
        drop(tokio::join!(pool.acquire(), release).0.unwrap());
        uses.extend([time, Duration::ZERO]);
        waits.push(time);
        exporter.flush();
        exporter.flush();
        let told = sdk.collect();
        near(told.times["db.client.connection.create_time"], &[20 * MILLISECOND]);
        near(told.times["db.client.connection.use_time"], &uses);
        // Those that found it idle did not wait.
        near(told.times["db.client.connection.wait_time"], &waits);
        assert_eq!(told.figure("millpond.acquires"), uses.len() as f64);
    }
    let before = sdk.collect();
    assert!(!before.times.contains_key("millpond.connection_lifetime"), "nothing has ended");
    pool.acquire().await.unwrap().discard();
    eventually("it is closed", || pool.metrics().closed.discarded == 1).await;
    assert!(!sdk.collect().times.contains_key("millpond.connection_lifetime"), "nor been flushed");
    exporter.flush();
    let told = sdk.collect();
    assert_eq!(told.times["millpond.connection_lifetime"].0, 1);
    let bounds = &told.bounds["db.client.connection.wait_time"];
    assert!(bounds[0] == 0.0001 && bounds.last() == Some(&10.0), "{bounds:?}");
}

#[tokio::test(start_paused = true)]
async fn hits_are_counted_and_not_recorded_and_times_are_bounded() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, "orders").time_use(true).min_idle(1).build().await.unwrap();
    let sdk = Sdk::new();
    let exporter = Exporter::new(monitor_of(&pool), &sdk.meter());
    for _ in 0..12_000 {
        drop(pool.acquire().await.unwrap());
    }
    exporter.flush();
    let told = sdk.collect();
    assert_eq!(told.figure("millpond.acquires"), 12_000.0);
    assert!(!told.times.contains_key("db.client.connection.wait_time"), "{told:#?}");
    assert_eq!(told.times["db.client.connection.use_time"].0, 10_000);
}

/// A pool that counts how often it is looked at.
struct Watched(Pool<TestManager>, Arc<AtomicUsize>);

impl Source for Watched {
    fn name(&self) -> String {
        self.0.config().name.to_string()
    }

    fn status(&self) -> Option<PoolStatus> {
        self.1.fetch_add(1, SeqCst);
        Some(self.0.status())
    }

    fn holders(&self) -> Vec<Holder> {
        self.0.holders()
    }
}

#[tokio::test(start_paused = true)]
async fn a_collection_looks_at_each_pool_once_and_never_at_what_was() {
    let pool = pool_of(&TestManager::new(), "orders").build_lazy().unwrap();
    let looks = Arc::new(AtomicUsize::new(0));
    let monitor = Monitor::new();
    monitor.add_source(Watched(pool.clone(), looks.clone())).unwrap();
    let before = looks.load(SeqCst);
    let sdk = Sdk::new();
    let _exporter = Exporter::new(monitor, &sdk.meter());
    for collections in 1..=5 {
        drop(pool.acquire().await.unwrap());
        let told = sdk.collect();
        assert_eq!(looks.load(SeqCst) - before, collections);
        assert_eq!(told.figure("millpond.acquires"), collections as f64);
    }
}

// ---- pools of a cluster's nodes ----

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn every_figure_of_a_clusters_node_says_which_node_of_which_cluster_and_no_other_does() {
    let slow = || {
        let manager = TestManager::new();
        manager.connect.once(Act::Slow(20 * MILLISECOND));
        manager
    };
    let orders = pool_of(&slow(), "orders").time_use(true).build_lazy().unwrap();
    let monitor = monitor_of(&orders);
    let builder = Cluster::builder().name("shop").pools(|pool| pool.time_use(true));
    let shop: Cluster<String, TestManager> = builder.build().unwrap();
    monitor.add_cluster(&shop).unwrap();
    for node in ["db1", "db2"] {
        shop.add_node(node.to_owned(), slow()).unwrap();
        shop.acquire(node).await.unwrap().discard();
    }
    orders.acquire().await.unwrap().discard();
    let ended = || monitor.statuses().iter().all(|pool| pool.metrics.closed.discarded == 1);
    eventually("all are closed", ended).await;

    let sdk = Sdk::new();
    let exporter = Exporter::new(monitor, &sdk.meter());
    exporter.flush();
    let told = sdk.collect();
    let whose = [
        "millpond.cluster=shop millpond.node=db1 pool=shop/db1",
        "millpond.cluster=shop millpond.node=db2 pool=shop/db2",
        "pool=orders",
    ]
    .map(str::to_owned);
    assert_eq!(told.whose.len(), 24, "{:#?}", told.whose);
    for (name, told_of) in &told.whose {
        let whose = if name == "millpond.node_role" { &whose[..2] } else { &whose[..] };
        assert!(told_of.iter().eq(whose), "{name}: {told_of:#?}");
    }
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn the_role_of_a_node_is_told_as_its_server_says_it() {
    let builder = Cluster::builder().name("shop").read_role(|connection: &mut Conn| {
        let is_primary = connection.server().mark.load(SeqCst) == 1;
        Box::pin(async move { Ok(if is_primary { Role::Primary } else { Role::Replica }) })
    });
    let shop: Cluster<String, TestManager> = builder.build().unwrap();
    let manager = TestManager::new();
    let options = NodeOptions::default();
    shop.add_node_with("db1".to_owned(), manager.clone(), options).unwrap();
    let monitor = Monitor::new();
    monitor.add_cluster(&shop).unwrap();
    let sdk = Sdk::new();
    let _exporter = Exporter::new(monitor, &sdk.meter());
    let role = || {
        let told = sdk.collect();
        assert_eq!(told.kinds["millpond.node_role"], ("gauge", "{node}".to_owned()));
        ["primary", "replica", "unknown"]
            .map(|role| told.figures[&("millpond.node_role".to_owned(), role.to_owned())])
    };
    let document = include_str!("../src/export/opentelemetry.rs");
    assert!(document.contains("//! | `millpond.node_role` | gauge | `{node}` | "));
    assert_eq!(role(), [0.0, 0.0, 1.0]);
    shop.acquire("db1").await.unwrap().discard();
    assert_eq!(role(), [0.0, 1.0, 0.0]);
    manager.ledger.mark.store(1, SeqCst);
    drop(shop.acquire("db1").await.unwrap());
    assert_eq!(role(), [1.0, 0.0, 0.0]);
}

// ---- pools that come and go ----

#[tokio::test(start_paused = true)]
async fn the_series_of_a_pool_begin_when_it_is_added_and_end_with_it() {
    let manager = TestManager::new();
    let orders = pool_of(&manager, "orders").min_idle(2).build().await.unwrap();
    let monitor = monitor_of(&orders);
    let sdk = Sdk::new();
    let exporter = Exporter::new(monitor.clone(), &sdk.meter());
    let told = sdk.collect();
    assert_eq!(told.pools, ["orders".to_owned()].into());
    let idle = ("db.client.connection.count".to_owned(), "idle".to_owned());
    assert_eq!(told.figures[&idle], 2.0);
    let carts = pool_of(&TestManager::new(), "carts").build_lazy().unwrap();
    monitor.add(&carts).unwrap();
    assert_eq!(sdk.collect().pools, ["carts".to_owned(), "orders".to_owned()].into());
    drop(orders);
    eventually("nobody keeps its connections", || manager.ledger.live() == 0).await;
    exporter.flush();
    assert_eq!(sdk.collect().pools, ["carts".to_owned()].into());
    drop(exporter);
    assert!(sdk.collect().pools.is_empty());
}

/// A monitor's pool `orders`, in the place of the one before, that serves so many.
async fn another(monitor: &Monitor, acquires: usize) -> Pool<TestManager> {
    let pool = pool_of(&TestManager::new(), "orders").build_lazy().unwrap();
    monitor.add(&pool).unwrap();
    for _ in 0..acquires {
        drop(pool.acquire().await.unwrap());
    }
    pool
}

#[tokio::test(start_paused = true)]
async fn a_counter_goes_on_from_one_pool_to_the_next_of_its_name() {
    for (temporality, told) in [
        (Temporality::Delta, [5.0, 3.0, 2.0, 0.0]),
        (Temporality::Cumulative, [5.0, 8.0, 10.0, 10.0]),
    ] {
        let monitor = Monitor::new();
        let sdk = Sdk::telling(temporality);
        let _exporter = Exporter::new(monitor.clone(), &sdk.meter());
        let acquires = || sdk.collect().figure("millpond.acquires");
        let first = another(&monitor, 5).await;
        assert_eq!(acquires(), told[0]);
        drop(first);
        let second = another(&monitor, 3).await;
        assert_eq!(acquires(), told[1]);
        drop((second.acquire().await.unwrap(), second.acquire().await.unwrap()));
        assert_eq!(acquires(), told[2]);
        assert_eq!(acquires(), told[3]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_counter_begins_anew_after_a_collection_that_has_found_no_pool() {
    for (temporality, told) in
        [(Temporality::Delta, [5.0, 3.0]), (Temporality::Cumulative, [5.0, 3.0])]
    {
        let monitor = Monitor::new();
        let sdk = Sdk::telling(temporality);
        let _exporter = Exporter::new(monitor.clone(), &sdk.meter());
        let first = another(&monitor, 5).await;
        assert_eq!(sdk.collect().figure("millpond.acquires"), told[0]);
        drop(first);
        assert!(sdk.collect().pools.is_empty());
        let _second = another(&monitor, 3).await;
        assert_eq!(sdk.collect().figure("millpond.acquires"), told[1]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_exporter_flushes_at_each_interval_until_it_is_dropped() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, "orders").build_lazy().unwrap();
    let sdk = Sdk::new();
    let exporter = Exporter::start(monitor_of(&pool), &sdk.meter(), 10 * SECOND).unwrap();
    let flushed = || sdk.collect().times.get("db.client.connection.create_time").map(|told| told.0);
    drop(pool.acquire().await.unwrap());
    tokio::time::sleep(9 * SECOND).await;
    assert_eq!(flushed(), None);
    eventually("it has flushed", || flushed() == Some(1)).await;
    drop(exporter);
    pool.acquire().await.unwrap().discard();
    drop(pool.acquire().await.unwrap());
    assert_eq!(pool.metrics().created, 2);
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(flushed(), Some(1));
}

// ---- what is wrong outside ----

/// An SDK whose histograms panic.
struct Broken;

impl InstrumentProvider for Broken {
    fn f64_histogram(
        &self,
        _: HistogramBuilder<'_, opentelemetry::metrics::Histogram<f64>>,
    ) -> opentelemetry::metrics::Histogram<f64> {
        opentelemetry::metrics::Histogram::new(Arc::new(Self))
    }
}

static RECORDED: AtomicUsize = AtomicUsize::new(0);

impl SyncInstrument<f64> for Broken {
    fn measure(&self, _: f64, _: &[KeyValue]) {
        RECORDED.fetch_add(1, SeqCst);
        panic!("scripted panic of an SDK");
    }
}

#[tokio::test(start_paused = true)]
async fn an_sdk_that_panics_harms_neither_the_pool_nor_the_next_flush() {
    hush_scripted_panics();
    let manager = TestManager::new();
    let pool = pool_of(&manager, "orders").build_lazy().unwrap();
    let meter = Meter::new(Arc::new(Broken));
    let exporter = Exporter::start(monitor_of(&pool), &meter, SECOND).unwrap();
    for panics in 1..=3 {
        pool.acquire().await.unwrap().discard();
        eventually("it has flushed", || RECORDED.load(SeqCst) == panics).await;
    }
    drop(pool.acquire().await.unwrap());
    drop(catch_unwind(AssertUnwindSafe(|| exporter.flush())).unwrap_err());
    exporter.flush();
    assert_eq!(balanced(&pool, &manager.ledger).await.acquires, 4);
}

/// Panics when it is looked at so often, and from then on no more.
struct Shy<T> {
    what: T,
    panics: AtomicUsize,
}

impl<T> Shy<T> {
    fn look(&self) -> &T {
        let left = self.panics.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "scripted panic of a source");
        &self.what
    }
}

fn shy(name: &str, panics: usize) -> Shy<Pool<TestManager>> {
    let what = pool_of(&TestManager::new(), name).build_lazy().unwrap();
    Shy { what, panics: panics.into() }
}

impl Source for Shy<Pool<TestManager>> {
    fn name(&self) -> String {
        self.what.config().name.to_string()
    }

    fn status(&self) -> Option<PoolStatus> {
        Some(self.look().status())
    }

    fn holders(&self) -> Vec<Holder> {
        self.what.holders()
    }

    fn is_there(&self) -> bool {
        true
    }
}

impl Group for Shy<Vec<Arc<dyn Source>>> {
    fn name(&self) -> String {
        "users".to_owned()
    }

    fn sources(&self) -> Option<Vec<Arc<dyn Source>>> {
        Some(self.look().clone())
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_is_left_out_of_that_collection_and_harms_no_other() {
    hush_scripted_panics();
    let orders = pool_of(&TestManager::new(), "orders").build_lazy().unwrap();
    let monitor = monitor_of(&orders);
    monitor.add_source(shy("carts", 1)).unwrap();
    let users: Vec<Arc<dyn Source>> = vec![Arc::new(shy("new", 1)), Arc::new(shy("old", 0))];
    monitor.add_group(Shy { what: users, panics: 1.into() }).unwrap();
    let sdk = Sdk::new();
    let _exporter = Exporter::new(monitor, &sdk.meter());
    assert_eq!(sdk.collect().pools, ["orders"].map(str::to_owned).into());
    assert_eq!(sdk.collect().pools, ["carts", "old", "orders"].map(str::to_owned).into());
    assert_eq!(sdk.collect().pools, ["carts", "new", "old", "orders"].map(str::to_owned).into());
}

#[test]
fn an_exporter_that_cannot_be_started_says_why() {
    let sdk = Sdk::new();
    let error = Exporter::start(Monitor::new(), &sdk.meter(), SECOND).unwrap_err();
    assert_eq!(error, StartError::NoRuntime);
    let timeless = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = timeless.block_on(async { Exporter::start(Monitor::new(), &sdk.meter(), SECOND) });
    assert_eq!(error.unwrap_err(), StartError::NoRuntime);
    let error = Exporter::start(Monitor::new(), &sdk.meter(), Duration::ZERO).unwrap_err();
    assert_eq!(error.to_string(), "interval is 0ns, but it must be above zero");
    let exporter = Exporter::new(Monitor::new(), &sdk.meter());
    assert_eq!(format!("{exporter:?}"), "Exporter { monitor: [], .. }");
}
