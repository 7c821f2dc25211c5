//! What Prometheus is told: every figure, in a text that Prometheus accepts.

#![cfg(feature = "prometheus")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

#[cfg(feature = "cluster")]
use millpond::cluster::{Cluster, NodeOptions, Role};
use millpond::export::prometheus::{self, Collector};
use millpond::{CheckPolicy, Holder, Monitor, Pool, PoolBuilder, PoolMetrics, PoolStatus, Source};
use prometheus_client::encoding::{prometheus_text, text as openmetrics};
use prometheus_client::registry::Registry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

fn pool_of(manager: &TestManager, name: &str) -> PoolBuilder<TestManager> {
    Pool::builder(manager.clone()).name(name).max_size(3).capacity(5).shards(1)
}

fn monitor_of(pools: &[&Pool<TestManager>]) -> Monitor {
    let monitor = Monitor::new();
    pools.iter().for_each(|pool| monitor.add(pool).unwrap());
    monitor
}

fn registry_of(mut registry: Registry, monitor: &Monitor) -> Registry {
    registry.register_collector(Box::new(Collector::new(monitor.clone())));
    registry
}

// ---- reading what was written ----

type Labels = BTreeMap<String, String>;

/// What a scrape has told.
#[derive(Debug, Default)]
struct Scrape {
    kinds: BTreeMap<String, String>,
    samples: BTreeMap<(String, Labels), f64>,
}

impl Scrape {
    /// Reads Prometheus' text, or OpenMetrics, and panics at whatever either of them forbids.
    #[track_caller]
    fn read(text: &str) -> Self {
        let mut scrape = Self::default();
        let mut family = String::new();
        assert!(text.is_empty() || text.ends_with('\n'), "the last line ends");
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (word, name) = (words.next().unwrap(), words.next().unwrap_or_default());
                match word {
                    "HELP" => {
                        assert!(words.next().is_some_and(|help| !help.is_empty()), "{line}");
                        assert!(!scrape.kinds.contains_key(name), "{name} comes twice");
                        name.clone_into(&mut family);
                    }
                    "TYPE" => {
                        assert_eq!(name, family, "the kind follows the help");
                        let kind = words.next().unwrap().to_owned();
                        scrape.kinds.insert(name.to_owned(), kind);
                    }
                    "UNIT" => assert!(name == family && name.ends_with(words.next().unwrap())),
                    _ => assert_eq!(line, "# EOF"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap();
            let suffix = name.strip_prefix(&family).expect("a sample follows its family");
            let kind = scrape.kinds[&family].as_str();
            assert!(
                match kind {
                    "gauge" => suffix.is_empty(),
                    "counter" => name.ends_with("_total"),
                    _ => ["_bucket", "_sum", "_count"].contains(&suffix),
                },
                "{name} is no {kind}"
            );
            let key = (name.to_owned(), labels_of(labels));
            let before = scrape.samples.insert(key, value.parse().unwrap());
            assert!(before.is_none(), "{series} comes twice");
        }
        scrape
    }

    /// The value of a series, whose labels are in pairs.
    #[track_caller]
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let pairs = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let key = (name.to_owned(), pairs.collect());
        *self.samples.get(&key).unwrap_or_else(|| panic!("no {key:?} in {self:#?}"))
    }

    /// The series of a pool, without the label that names it.
    #[cfg(feature = "cluster")]
    fn series_of(&self, pool: &str) -> BTreeSet<(String, Labels)> {
        let of_pool = self.samples.keys().filter(|(_, labels)| labels["pool"] == pool);
        let mut series: Vec<_> = of_pool.cloned().collect();
        series.iter_mut().for_each(|(_, labels)| drop(labels.remove("pool")));
        series.into_iter().collect()
    }

    /// The values of a label over all series.
    fn values_of(&self, label: &str) -> BTreeSet<&str> {
        let labels = self.samples.keys().filter_map(|(_, labels)| labels.get(label));
        labels.map(String::as_str).collect()
    }
}

/// The labels behind the opening brace.
fn labels_of(text: &str) -> Labels {
    let mut labels = Labels::new();
    let mut rest = text;
    while rest != "}" {
        let (key, quoted) = rest.split_once("=\"").unwrap();
        let mut value = String::new();
        let mut chars = quoted.chars();
        loop {
            match chars.next().expect("the value ends") {
                '"' => break,
                '\\' => value.push(match chars.next() {
                    Some('n') => '\n',
                    Some(escaped @ ('\\' | '"')) => escaped,
                    other => panic!("{other:?} is escaped in {text}"),
                }),
                other => value.push(other),
            }
        }
        assert!(labels.insert(key.to_owned(), value).is_none(), "{key} comes twice in {text}");
        rest = chars.as_str();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    labels
}

/// Asserts that a scrape tells of this pool what the pool says itself, and counts the series.
#[track_caller]
fn tells_of(scrape: &Scrape, pool: &Pool<TestManager>) -> usize {
    let PoolStatus { health, max_size, metrics, config, .. } = pool.status();
    let name = ("pool", &*config.name);
    let mut series = 0;
    let mut says = |family: &str, label: Option<(&str, &str)>, figure: f64| {
        let labels: Vec<(&str, &str)> = [name].into_iter().chain(label).collect();
        assert_eq!(scrape.value(family, &labels), figure, "{family} {label:?}");
        series += 1;
    };
    says("millpond_up", None, u8::from(health.is_up()).into());
    for state in ["healthy", "degraded", "down"] {
        says("millpond_health", Some(("state", state)), u8::from(health.word() == state).into());
    }
    let counts = metrics.counts;
    for (state, count) in [
        ("idle", counts.idle),
        ("in_use", counts.in_use),
        ("checking", counts.checking),
        ("resetting", counts.resetting),
        ("closing", counts.closing),
        ("connecting", counts.connecting),
        ("vacant", counts.vacant),
        ("spare", counts.spare),
    ] {
        says("millpond_connections", Some(("state", state)), count as f64);
    }
    let held = metrics.oldest_holder.as_ref().map_or(0.0, |holder| holder.held.as_secs_f64());
    for (family, figure) in [
        ("millpond_connections_max", max_size as f64),
        ("millpond_connections_min_idle", config.min_idle as f64),
        ("millpond_waiters", counts.waiters as f64),
        ("millpond_oldest_holder_seconds", held),
        ("millpond_acquires_total", metrics.acquires as f64),
        ("millpond_shed_total", metrics.shed as f64),
        ("millpond_connections_opened_total", metrics.created as f64),
        ("millpond_connect_failures_total", metrics.connect_failures as f64),
        ("millpond_checks_total", metrics.checks as f64),
        ("millpond_resets_total", metrics.resets as f64),
        ("millpond_leaks_total", metrics.leaks as f64),
        ("millpond_late_returns_total", metrics.late_returns as f64),
    ] {
        says(family, None, figure);
    }
    for (outcome, count) in metrics.waits.by_outcome() {
        says("millpond_acquire_waits_total", Some(("outcome", outcome)), count as f64);
    }
    for (reason, count) in metrics.closed.by_reason() {
        says("millpond_connections_closed_total", Some(("reason", reason)), count as f64);
    }
    for (family, times) in [
        ("millpond_acquire_wait_seconds", Some(&metrics.acquire_wait)),
        ("millpond_connect_seconds", Some(&metrics.connect_time)),
        ("millpond_connection_lifetime_seconds", Some(&metrics.lifetime)),
        ("millpond_use_seconds", metrics.use_time.as_ref()),
    ] {
        let Some(times) = times else { continue };
        says(&format!("{family}_count"), None, times.count() as f64);
        says(&format!("{family}_sum"), None, times.sum().as_secs_f64());
        for bound in bounds(scrape, &format!("{family}_bucket"), &config.name) {
            let number: f64 = bound.parse().unwrap();
            let within = Duration::try_from_secs_f64(number).unwrap_or(Duration::MAX);
            let within = times.count_within(within) as f64;
            says(&format!("{family}_bucket"), Some(("le", &bound)), within);
        }
    }
    series
}

/// The bounds of the buckets of a distribution.
fn bounds(scrape: &Scrape, name: &str, pool: &str) -> Vec<String> {
    let of_pool = |(family, labels): &&(String, Labels)| family == name && labels["pool"] == pool;
    let bounds: Vec<String> =
        scrape.samples.keys().filter(of_pool).map(|(_, labels)| labels["le"].clone()).collect();
    assert!(bounds.len() > 10 && bounds.iter().any(|bound| bound == "+Inf"), "{bounds:?}");
    bounds
}

// ---- every figure ----

/// A pool on which each of the totals is another one, and something is in each state that lasts.
async fn eventful(name: &str) -> (TestManager, Pool<TestManager>) {
    let manager = TestManager::new();
    let builder = pool_of(&manager, name).time_use(true).leak_after(5 * SECOND).max_waiters(1);
    let builder = builder.backoff(MILLISECOND, MILLISECOND).min_idle(1);
    let pool = builder.check(CheckPolicy::Always).build().await.unwrap();
    manager.connect.once(Act::Error);
    manager.connect.once(Act::Slow(30 * MILLISECOND));
    let held = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    tokio::time::sleep(10 * SECOND).await;
    pool.maintenance().run_once().await;
    drop(held);
    for _ in 0..4 {
        drop(pool.acquire().await.unwrap());
    }
    for time in [3 * MILLISECOND, 40 * MILLISECOND, 2 * SECOND] {
        manager.condition.once(Act::Slow(Duration::ZERO));
        let conn = pool.acquire().await.unwrap();
        tokio::time::sleep(time).await;
        drop(conn);
        eventually("it is clean", || pool.metrics().counts.resetting == 0).await;
    }
    pool.acquire().await.unwrap().discard();
    eventually("it is gone", || pool.metrics().counts.closing == 0).await;
    (manager, pool)
}

#[tokio::test(start_paused = true)]
async fn every_figure_of_every_pool_is_told_as_it_is() {
    let (_manager, orders) = eventful("orders").await;
    let (_other, carts) = (TestManager::new(), TestManager::new());
    let carts = pool_of(&carts, "carts").build_lazy().unwrap();
    let held = [orders.acquire_owned().await.unwrap(), orders.acquire_owned().await.unwrap()];
    let _third = orders.acquire().await.unwrap();
    let mut waiter = pin!(orders.acquire_timeout(Duration::MAX));
    assert!(poll_once(waiter.as_mut()).is_pending());
    tokio::time::sleep(2 * SECOND).await;
    let metrics = orders.metrics();
    assert!(metrics.leaks == 2 && metrics.late_returns == 2 && metrics.resets == 3, "{metrics:?}");
    assert!(metrics.checks > 0 && metrics.connect_failures == 1 && metrics.shed == 0);
    assert!(metrics.oldest_holder.is_some() && metrics.counts.waiters == 1);

    let monitor = monitor_of(&[&orders, &carts]);
    let registry = registry_of(Registry::default(), &monitor);
    let (mut plain, mut open) = (String::new(), String::new());
    prometheus_text::encode(&mut plain, &registry).unwrap();
    openmetrics::encode(&mut open, &registry).unwrap();
    for text in [prometheus::text(&monitor), plain, open] {
        let scrape = Scrape::read(&text);
        let told = tells_of(&scrape, &orders) + tells_of(&scrape, &carts);
        assert_eq!(told, scrape.samples.len(), "nothing else is told\n{text}");
        assert_eq!(scrape.values_of("pool"), ["carts", "orders"].into());
    }
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn waits_are_in_the_buckets_where_they_belong() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, "orders").max_size(1).min_idle(1).build().await.unwrap();
    for wait in [Duration::ZERO, 3 * MILLISECOND, 70 * MILLISECOND, 4 * SECOND] {
        let held = pool.acquire_owned().await.unwrap();
        let release = async {
            tokio::time::sleep(wait).await;
            drop(held);
        };
        drop(tokio::join!(pool.acquire(), release).0.unwrap());
    }
    let scrape = Scrape::read(&prometheus::text(&monitor_of(&[&pool])));
    let within = |bound| {
        scrape.value("millpond_acquire_wait_seconds_bucket", &[("pool", "orders"), ("le", bound)])
    };
    // Four found it idle, and one waited for no time.
    let told = ["0.0001", "0.001", "0.005", "0.05", "0.1", "2.5", "5", "10", "+Inf"].map(within);
    assert_eq!(told, [5.0, 5.0, 6.0, 6.0, 7.0, 7.0, 8.0, 8.0, 8.0]);
}

#[tokio::test(start_paused = true)]
async fn health_is_told_by_state() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, "orders").build_lazy().unwrap();
    let monitor = monitor_of(&[&pool]);
    let health = || {
        let scrape = Scrape::read(&prometheus::text(&monitor));
        let is = |state| scrape.value("millpond_health", &[("pool", "orders"), ("state", state)]);
        (
            scrape.value("millpond_up", &[("pool", "orders")]),
            ["healthy", "degraded", "down"].map(is),
        )
    };
    assert_eq!(health(), (1.0, [1.0, 0.0, 0.0]));
    pool.maintenance().pause();
    assert_eq!(health(), (1.0, [0.0, 1.0, 0.0]));
    pool.close().await;
    assert_eq!(health(), (0.0, [0.0, 0.0, 1.0]));
}

// ---- names and labels ----

#[tokio::test(start_paused = true)]
async fn a_name_with_quotes_backslashes_and_newlines_arrives_as_it_is() {
    const NAME: &str = "a \"quoted\\\"\n\\name\\n {x=\"y\"} äöü,";
    let manager = TestManager::new();
    let pool = pool_of(&manager, NAME).build_lazy().unwrap();
    let monitor = monitor_of(&[&pool]);
    let mut open = String::new();
    openmetrics::encode(&mut open, &registry_of(Registry::default(), &monitor)).unwrap();
    for text in [prometheus::text(&monitor), open] {
        assert_eq!(Scrape::read(&text).values_of("pool"), [NAME].into(), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_may_have_a_prefix_and_labels() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, "orders").build_lazy().unwrap();
    drop(pool.acquire().await.unwrap());
    let monitor = monitor_of(&[&pool]);
    let labels = [("zone".into(), "a\"b".into())];
    let registry = Registry::with_prefix_and_labels("shop", labels.into_iter());
    let mut text = String::new();
    openmetrics::encode(&mut text, &registry_of(registry, &monitor)).unwrap();
    let scrape = Scrape::read(&text);
    let labels = [("pool", "orders"), ("zone", "a\"b")];
    assert_eq!(scrape.value("shop_millpond_acquires_total", &labels), 1.0);
    assert_eq!(scrape.value("shop_millpond_acquire_wait_seconds_count", &labels), 1.0);
    assert!(scrape.kinds.keys().all(|name| name.starts_with("shop_millpond_")), "{scrape:?}");
    assert_eq!(scrape.values_of("zone"), ["a\"b"].into());
}

/// The names in backticks between two phrases of a text.
#[cfg(feature = "cluster")]
fn quoted<'t>(text: &'t str, from: &str, to: &str) -> BTreeSet<&'t str> {
    let (_, rest) = text.split_once(from).expect("the rule begins");
    let (rule, _) = rest.split_once(to).expect("the rule ends");
    rule.split('`').skip(1).step_by(2).collect()
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn the_documentation_names_all_labels_that_a_registry_must_not_have_too() {
    let (shop, monitor) = (cluster_of("shop"), Monitor::new());
    drop(shop.acquire("db1").await.unwrap());
    monitor.add_cluster(&shop).unwrap();
    let scrape = Scrape::read(&prometheus::text(&monitor));
    let labels = scrape.samples.keys().flat_map(|(_, labels)| labels.keys());
    let used: BTreeSet<&str> = labels.map(String::as_str).collect();
    let collector = include_str!("../src/export/prometheus.rs");
    assert_eq!(quoted(collector, "no label of it may be called", "A scrape"), used);
    let exporters = include_str!("../src/export/mod.rs");
    // A target has no buckets, and so no bounds.
    let theirs = used.iter().filter(|label| **label != "le").copied().collect();
    assert_eq!(
        quoted(exporters, "A Prometheus whose targets have labels called", "themselves"),
        theirs
    );
}

#[test]
fn what_has_no_figures_has_no_heading() {
    let monitor = Monitor::new();
    assert_eq!(prometheus::text(&monitor), "");
    let pool = pool_of(&TestManager::new(), "orders").build_lazy().unwrap();
    monitor.add(&pool).unwrap();
    let scrape = Scrape::read(&prometheus::text(&monitor));
    assert!(!scrape.kinds.contains_key("millpond_use_seconds"), "it is not measured");
    assert!(!scrape.kinds.contains_key("millpond_node_role"), "there is no node");
    assert_eq!(scrape.kinds["millpond_connect_seconds"], "histogram");
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
    let monitor = monitor_of(&[&orders]);
    let shop = cluster_of("shop");
    monitor.add_cluster(&shop).unwrap();
    let mut open = String::new();
    openmetrics::encode(&mut open, &registry_of(Registry::default(), &monitor)).unwrap();
    for text in [prometheus::text(&monitor), open] {
        let scrape = Scrape::read(&text);
        assert_eq!(scrape.values_of("pool"), ["orders", "shop/db1", "shop/db2"].into());
        let plain = scrape.series_of("orders");
        assert!(plain.len() > 100, "{plain:?}");
        for node in ["db1", "db2"] {
            // Those of the other pool with two labels more, and the role.
            let mut expected = plain.clone();
            for role in ["primary", "replica", "unknown"] {
                let label = ("role".to_owned(), role.to_owned());
                expected.insert(("millpond_node_role".to_owned(), [label].into()));
            }
            let labels = [("cluster", "shop"), ("node", node)];
            let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned()));
            let expected = expected.into_iter().map(|(name, mut its_own)| {
                its_own.extend(labels.clone());
                (name, its_own)
            });
            let told = scrape.series_of(&format!("shop/{node}"));
            assert_eq!(told, expected.collect(), "{text}");
        }
    }
}

#[cfg(feature = "cluster")]
#[tokio::test(start_paused = true)]
async fn a_change_of_role_changes_figures_and_begins_no_series() {
    let monitor = Monitor::new();
    let shop = cluster_of("shop");
    monitor.add_cluster(&shop).unwrap();
    let scrape = || Scrape::read(&prometheus::text(&monitor));
    let role = |scrape: &Scrape, node: &str| {
        let pool = format!("shop/{node}");
        ["primary", "replica", "unknown"].map(|role| {
            let labels = [("pool", &*pool), ("cluster", "shop"), ("node", node), ("role", role)];
            scrape.value("millpond_node_role", &labels)
        })
    };
    let before = scrape();
    assert_eq!(["db1", "db2"].map(|node| role(&before, node)), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]);
    shop.set_options("db1", NodeOptions::default()).unwrap();
    shop.set_options("db2", NodeOptions::default().role(Role::Primary)).unwrap();
    let after = scrape();
    assert_eq!(["db1", "db2"].map(|node| role(&after, node)), [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]);
    assert!(before.samples.keys().eq(after.samples.keys()), "{before:?}, then {after:?}");
}

// ---- pools that come and go, and what goes on meanwhile ----

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_gone_is_not_told_of_and_one_that_comes_later_is() {
    let manager = TestManager::new();
    let orders = pool_of(&manager, "orders").build_lazy().unwrap();
    let monitor = monitor_of(&[&orders]);
    let registry = registry_of(Registry::default(), &monitor);
    let pools = || {
        let mut text = String::new();
        openmetrics::encode(&mut text, &registry).unwrap();
        let scrape = Scrape::read(&text);
        scrape.values_of("pool").into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let carts = pool_of(&TestManager::new(), "carts").build_lazy().unwrap();
    monitor.add(&carts).unwrap();
    assert_eq!(pools(), ["carts", "orders"]);
    drop(orders);
    assert_eq!(pools(), ["carts"]);
    drop(carts);
    assert!(pools().is_empty());
}

/// A pool that counts how often it is looked at.
struct Watched(Pool<TestManager>, Arc<AtomicUsize>);

impl Source for Watched {
    fn name(&self) -> String {
        self.0.config().name.to_string()
    }

    fn status(&self) -> Option<PoolStatus> {
        self.1.fetch_add(1, SeqCst);
        // What another family would be told, if it asked for itself.
        drop(self.0.try_acquire().ok()?);
        Some(self.0.status())
    }

    fn holders(&self) -> Vec<Holder> {
        self.0.holders()
    }
}

/// Pools under another name than their own; which of them it is shown changes at each look.
struct Called(&'static str, Vec<Pool<TestManager>>, AtomicUsize);

impl Source for Called {
    fn name(&self) -> String {
        self.0.to_owned()
    }

    fn status(&self) -> Option<PoolStatus> {
        Some(self.1[self.2.fetch_add(1, SeqCst) % self.1.len()].status())
    }

    fn holders(&self) -> Vec<Holder> {
        Vec::new()
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_is_told_of_under_its_own_name_and_takes_back_no_acquire_that_did_not_wait() {
    let pool = pool_of(&TestManager::new(), "orders").min_idle(1).build().await.unwrap();
    for _ in 0..5 {
        drop(pool.acquire().await.unwrap());
    }
    let unused = pool_of(&TestManager::new(), "orders").build_lazy().unwrap();
    let monitor = Monitor::new();
    let called = |name, pools| Called(name, pools, AtomicUsize::new(0));
    monitor.add_source(called("first", vec![pool.clone()])).unwrap();
    monitor.add_source(called("second", vec![pool, unused])).unwrap();
    let waits = || {
        let scrape = Scrape::read(&prometheus::text(&monitor));
        ["first", "second"].map(|name| {
            let labels = [("pool".to_owned(), name.to_owned())].into();
            scrape.samples.get(&("millpond_acquire_wait_seconds_count".to_owned(), labels)).copied()
        })
    };
    assert_eq!([waits(), waits(), waits()], [[Some(5.0); 2]; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_scrape_looks_at_each_pool_once() {
    let manager = TestManager::new();
    let pool = pool_of(&manager, "orders").min_idle(1).build().await.unwrap();
    let looks = Arc::new(AtomicUsize::new(0));
    let monitor = Monitor::new();
    monitor.add_source(Watched(pool.clone(), looks.clone())).unwrap();
    for scrapes in 1..=3 {
        let scrape = Scrape::read(&prometheus::text(&monitor));
        assert_eq!(looks.load(SeqCst), scrapes);
        tells_of(&scrape, &pool);
    }
}

/// Prometheus takes differences: what only grows must not shrink, or it counts as a restart.
#[test]
fn nothing_that_only_grows_ever_shrinks_under_load() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let pool = pool_of(&TestManager::new(), "orders").max_size(1).build_lazy().unwrap();
    let monitor = monitor_of(&[&pool]);
    // These did not wait; from then on everybody does, so that no newcomer hides one that is missing.
    for _ in 0..1_000 {
        drop(runtime.block_on(pool.acquire()).unwrap());
    }
    for _ in 0..8 {
        let pool = pool.clone();
        runtime.spawn(async move {
            loop {
                let held = pool.acquire().await;
                tokio::task::yield_now().await;
                drop(held);
            }
        });
    }
    let (mut before, mut scrapes) = (Scrape::default(), 0);
    eventually_blocking("they have waited, and been looked at often", || {
        let now = Scrape::read(&prometheus::text(&monitor));
        for (series @ (name, _), value) in &now.samples {
            let grows =
                ["_total", "_bucket", "_sum", "_count"].iter().any(|end| name.ends_with(end));
            let earlier = before.samples.get(series).copied().unwrap_or_default();
            assert!(!grows || earlier <= *value, "{series:?}: {earlier}, then {value}");
        }
        before = now;
        scrapes += 1;
        scrapes >= 400 && pool.metrics().waits.served > 100
    });
}

/// Takes so many bytes, and then fails or panics.
struct Full(usize, bool);

impl Write for Full {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match self.0.checked_sub(text.len()) {
            Some(left) => self.0 = left,
            None if self.1 => panic!("scripted panic of a writer"),
            None => return Err(fmt::Error),
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_is_full_or_panics_harms_neither_the_pool_nor_the_next_scrape() {
    hush_scripted_panics();
    let manager = TestManager::new();
    let pool = pool_of(&manager, "orders").min_idle(1).build().await.unwrap();
    let registry = registry_of(Registry::default(), &monitor_of(&[&pool]));
    let mut whole = String::new();
    openmetrics::encode(&mut whole, &registry).unwrap();
    for room in [0, 1, 5_000, whole.len() - 1] {
        openmetrics::encode(&mut Full(room, false), &registry).unwrap_err();
        let encode = || openmetrics::encode(&mut Full(room, true), &registry);
        drop(catch_unwind(AssertUnwindSafe(encode)).unwrap_err());
        drop(pool.acquire().await.unwrap());
    }
    let mut text = String::new();
    openmetrics::encode(&mut text, &registry).unwrap();
    tells_of(&Scrape::read(&text), &pool);
    let PoolMetrics { acquires, .. } = balanced_with_capacity(&pool).await;
    assert_eq!(acquires, 4);
}

/// As `balanced`, for a pool that could be larger.
async fn balanced_with_capacity(pool: &Pool<TestManager>) -> PoolMetrics {
    eventually("nothing is in use", || pool.metrics().counts.in_use == 0).await;
    let metrics = pool.metrics();
    let (ledger, alive) = (&pool.manager().ledger, metrics.counts.alive());
    assert_eq!(metrics.created, metrics.closed.total() + alive as u64, "{metrics:?}");
    assert_eq!((ledger.opened() as u64, ledger.live()), (metrics.created, alive), "{ledger:?}");
    metrics
}

// ---- what Prometheus says to it ----

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn promtool_has_nothing_to_object_to() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let Some(promtool) = tool("promtool") else { return };
    let (_manager, pool) = eventful("with \"quotes\", a \\ and\na newline").await;
    let (_other, other) = eventful("orders").await;
    let monitor = monitor_of(&[&pool, &other]);
    #[cfg(feature = "cluster")]
    let shops = ["shop", "a \"shop\" with \\ and\na newline"].map(cluster_of);
    #[cfg(feature = "cluster")]
    shops.iter().for_each(|shop| monitor.add_cluster(shop).unwrap());
    let text = prometheus::text(&monitor);
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
    assert!(output.status.success() && said.iter().all(String::is_empty), "{said:?}\n{text}");
    assert_eq!(prometheus::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
}
