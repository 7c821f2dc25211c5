//! Sets of nodes: what one changes in a cluster and what it leaves alone, streams of them, and those
//! that DNS answers.

#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use millpond::DrainReport;
use millpond::Health;
use millpond::cluster::{
    Changes, Cluster, ClusterBuilder, ClusterError, Dns, Endpoint, LookupError, NodeError,
    NodeOptions, NodeSpec, Policy, Role, SetError, Watch, WatchError,
};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{convert::Infallible, io};
use tokio::sync::mpsc;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

type TestCluster = Cluster<String, TestManager>;
type Spec = NodeSpec<String>;

/// The servers that the template leads to, by their endpoints.
#[derive(Clone, Default)]
struct Servers(Arc<Mutex<HashMap<String, TestManager>>>);

impl Servers {
    /// The server at an endpoint, which is there from the first time on that somebody asks.
    fn at(&self, endpoint: &str) -> TestManager {
        let mut servers = self.0.lock().unwrap();
        servers.entry(endpoint.to_owned()).or_insert_with(TestManager::new).clone()
    }

    /// How many there are.
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn builder(&self) -> ClusterBuilder<String, TestManager> {
        let servers = self.clone();
        Cluster::builder()
            .name("test")
            .pools(|pool| pool.max_size(2))
            .acquire_timeout(PATIENCE)
            .template(move |endpoint| {
                assert!(endpoint.host != "panic", "scripted panic for {endpoint}");
                servers.at(&endpoint.to_string())
            })
    }
}

fn test_cluster() -> (TestCluster, Servers) {
    let servers = Servers::default();
    (servers.builder().build().unwrap(), servers)
}

/// A node that is called like its host, or `key@host`.
fn node(name: &str) -> Spec {
    let (key, host) = name.split_once('@').unwrap_or((name, name));
    NodeSpec::new(key, Endpoint::new(host, 1))
}

fn nodes(names: &str) -> Vec<Spec> {
    names.split_whitespace().map(node).collect()
}

fn weight(weight: u32) -> NodeOptions {
    NodeOptions::default().weight(weight)
}

/// What has changed, in a few words.
fn brief(changes: &Changes<String>) -> String {
    let lists = [
        ("+", &changes.added),
        ("-", &changes.removed),
        ("@", &changes.replaced),
        ("=", &changes.changed),
    ];
    let keys = |(sign, keys): (&str, &Vec<String>)| -> Vec<String> {
        keys.iter().map(|key| format!("{sign}{key}")).collect()
    };
    let mut words: Vec<String> = lists.into_iter().flat_map(keys).collect();
    words.extend(changes.errors.iter().map(|(key, _)| format!("!{key}")));
    words.join(" ")
}

fn apply(cluster: &TestCluster, names: &str) -> String {
    brief(&cluster.apply(nodes(names), PATIENCE).unwrap())
}

/// The message of the only error.
fn only_error(changes: &Changes<String>) -> &NodeError {
    let [(_, error)] = &changes.errors[..] else { panic!("not one error: {changes:?}") };
    error
}

#[tokio::test]
async fn a_set_adds_what_is_missing_and_takes_away_what_it_has_not() {
    let (cluster, servers) = test_cluster();
    assert_eq!(apply(&cluster, "a b c"), "+a +b +c");
    assert_eq!(cluster.nodes(), ["a", "b", "c"]);
    for key in ["a", "b", "c"] {
        drop(cluster.acquire(key).await.unwrap());
        assert_eq!(servers.at(&format!("{key}:1")).ledger.live(), 1, "{key}");
    }
    let changes = cluster.apply(nodes("d b"), PATIENCE).unwrap();
    assert_eq!(brief(&changes), "+d -a -c");
    assert_eq!(changes.to_string(), "1 added, 2 removed, 0 replaced, 0 changed, 0 refused");
    assert_eq!(cluster.nodes(), ["b", "d"]);
    assert!(matches!(cluster.acquire("a").await, Err(ClusterError::UnknownNode(_))));
    for key in ["a", "c"] {
        let ledger = servers.at(&format!("{key}:1")).ledger.clone();
        eventually("what was idle is closed", || ledger.live() == 0).await;
        assert_eq!(ledger.closed(), 1, "{key}");
    }
    assert_eq!(servers.at("b:1").ledger.live(), 1);
}

#[tokio::test]
async fn a_node_whose_key_is_empty_is_refused_however_it_comes() {
    let (cluster, _) = test_cluster();
    // As of "a,".split(',').
    let changes = cluster.apply(["a", "@b"].map(node), PATIENCE).unwrap();
    assert_eq!(brief(&changes), "+a !");
    let refused = "node : key is \"\", but it must not be empty";
    assert_eq!(only_error(&changes).to_string(), refused);
    let error = cluster.add_node(String::new(), TestManager::new()).unwrap_err();
    assert_eq!(error.to_string(), refused);
    assert_eq!(cluster.nodes(), ["a"]);
}

#[tokio::test]
async fn what_is_the_same_keeps_its_pool_and_its_connections() {
    let (cluster, servers) = test_cluster();
    apply(&cluster, "a b");
    let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
    drop(cluster.acquire("b").await.unwrap());
    let mut waits = pin!(cluster.acquire("a"));
    assert!(poll_once(waits.as_mut()).is_pending());
    for set in ["a b", "b a", "a b c", "b a"] {
        apply(&cluster, set);
    }
    assert_eq!(apply(&cluster, "a b"), "");
    assert!(cluster.apply(nodes("a b"), PATIENCE).unwrap().is_empty());
    // Whatever a set might have begun in the background has its turn.
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
    for (endpoint, live) in [("a:1", 2), ("b:1", 1)] {
        let ledger = servers.at(endpoint).ledger.clone();
        assert_eq!(
            (ledger.opened(), ledger.live(), ledger.closed()),
            (live, live, 0),
            "{endpoint}"
        );
    }
    assert_eq!(cluster.nodes(), ["a", "b"], "in the order in which they came, not in the set's");
    assert!(poll_once(waits.as_mut()).is_pending(), "still in the same line");
    drop(held);
    assert_eq!(waits.await.unwrap().info().uses, 2);
}

#[tokio::test]
async fn a_node_at_another_endpoint_is_replaced_and_its_waiters_go_on() {
    let (cluster, servers) = test_cluster();
    apply(&cluster, "a b");
    let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
    let mut waits = pin!(cluster.acquire("a"));
    assert!(poll_once(waits.as_mut()).is_pending());
    let mut set = nodes("a@z b");
    set[0].options = weight(3);
    let changes = cluster.apply(set, PATIENCE).unwrap();
    assert_eq!(brief(&changes), "@a");
    let (old, new) = (servers.at("a:1"), servers.at("z:1"));
    let guard = waits.await.unwrap();
    assert_eq!((guard.node().as_str(), new.ledger.opened(), old.ledger.live()), ("a", 1, 2));
    drop((guard, held));
    eventually("the old one is drained", || old.ledger.live() == 0).await;
    assert_eq!(old.ledger.closed(), 2);
    assert_eq!((cluster.nodes(), new.ledger.live()), (vec!["a".to_owned(), "b".to_owned()], 1));
    assert_eq!(cluster.status().nodes[0].weight, 3);
}

#[tokio::test]
async fn other_options_count_at_once_and_connections_stay() {
    let (cluster, servers) = test_cluster();
    apply(&cluster, "a b");
    drop(cluster.acquire("a").await.unwrap());
    let mut set = nodes("a b");
    set[0].options = weight(7).role(Role::Primary).label("zone", "x");
    assert_eq!(brief(&cluster.apply(set.clone(), PATIENCE).unwrap()), "=a");
    assert_eq!(brief(&cluster.apply(set.clone(), PATIENCE).unwrap()), "");
    let status = cluster.status();
    assert_eq!((status.nodes[0].weight, status.nodes[0].role), (7, Role::Primary));
    let zone = |node: &millpond::cluster::NodeView<'_, String>| {
        (node.label("zone") == Some("x")).then_some(0.0)
    };
    let guard = cluster.acquire_any(Policy::Rank(&zone)).await.unwrap();
    assert_eq!((guard.node().as_str(), guard.info().uses), ("a", 2));
    assert_eq!(guard.role(), Role::Primary);
    assert_eq!(servers.at("a:1").ledger.opened(), 1);
    // What somebody has changed by hand is changed back.
    cluster.set_options("a", weight(1)).unwrap();
    assert_eq!(brief(&cluster.apply(set, PATIENCE).unwrap()), "=a");
    assert_eq!(cluster.status().nodes[0].weight, 7);
}

#[tokio::test]
async fn an_endpoint_that_is_written_in_another_way_is_the_same() {
    let (cluster, servers) = test_cluster();
    let at = |key: &str, host: &str| NodeSpec::new(key, Endpoint::new(host, 1));
    drop(cluster.apply([at("a", "db1.internal"), at("b", "::1")], PATIENCE).unwrap());
    drop(cluster.acquire("a").await.unwrap());
    let set = [at("a", "DB1.internal"), at("b", "0:0:0:0:0:0:0:1")];
    assert_eq!(brief(&cluster.apply(set, PATIENCE).unwrap()), "");
    assert_eq!((cluster.acquire("a").await.unwrap().info().uses, servers.count()), (2, 2));
}

thread_local! {
    /// Called whenever a key is copied, which the cluster does while it makes another table.
    static ON_COPY: std::cell::RefCell<Option<Box<dyn Fn()>>> = const { std::cell::RefCell::new(None) };
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Watched(&'static str);

impl Clone for Watched {
    fn clone(&self) -> Self {
        ON_COPY.with_borrow(|hook| hook.iter().for_each(|hook| hook()));
        Self(self.0)
    }
}

impl std::fmt::Display for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

#[tokio::test]
async fn roles_change_at_one_instant_with_the_nodes() {
    let builder = Cluster::<Watched, TestManager>::builder();
    let cluster = builder.template(|_| TestManager::new()).build().unwrap();
    let set = |roles: [Role; 2]| {
        let keys = [Watched("a"), Watched("b")].into_iter().zip(roles);
        let spec = |(key, role): (Watched, _)| {
            let endpoint = Endpoint::new(key.0, 1);
            NodeSpec::new(key, endpoint).options(NodeOptions::default().role(role))
        };
        keys.map(spec).collect::<Vec<_>>()
    };
    let (before, after) = ([Role::Primary, Role::Replica], [Role::Replica, Role::Primary]);
    drop(cluster.apply(set(before), PATIENCE).unwrap());
    let seen = Arc::<Mutex<Vec<Vec<Role>>>>::default();
    let look = {
        let (cluster, seen) = (cluster.clone(), seen.clone());
        move || {
            let roles = cluster.status().nodes.iter().map(|node| node.role).collect();
            seen.lock().unwrap().push(roles);
        }
    };
    ON_COPY.set(Some(Box::new(look)));
    drop(cluster.apply(set(after), PATIENCE).unwrap());
    ON_COPY.set(None);
    let seen = seen.lock().unwrap();
    assert!(seen.len() > 1 && seen.iter().all(|roles| roles[..] == before), "{seen:?}");
    assert!(cluster.status().nodes.iter().map(|node| node.role).eq(after));
}

#[tokio::test]
async fn a_bad_node_keeps_none_of_the_others_from_being_applied() {
    hush_scripted_panics();
    let (cluster, servers) = test_cluster();
    apply(&cluster, "a b gone");
    drop(cluster.acquire("a").await.unwrap());
    let mut set = nodes("a new heavy p@panic b@panic");
    set[0].options = weight(0);
    set[2].options = weight(1_000_001);
    let changes = cluster.apply(set, PATIENCE).unwrap();
    assert_eq!(brief(&changes), "+new -gone !a !heavy !p !b");
    let errors: Vec<String> = changes.errors.iter().map(|(_, error)| error.to_string()).collect();
    assert_eq!(
        errors[0],
        "node a: weight is 0, but it must be at least 1: remove the node to give it no load"
    );
    assert!(errors[1].starts_with("node heavy: weight is 1000001, but"), "{errors:?}");
    assert_eq!(errors[2], "node p: what makes it panicked: scripted panic for panic:1");
    assert_eq!(errors[3], "node b: what makes it panicked: scripted panic for panic:1");
    assert!(matches!(changes.errors[3].1, NodeError::Panicked { .. }));
    assert_eq!(cluster.nodes(), ["a", "b", "new"], "those that there were stay as they were");
    assert_eq!(cluster.acquire("a").await.unwrap().info().uses, 2);
    drop(cluster.acquire("b").await.unwrap());
    assert_eq!(servers.at("b:1").ledger.opened(), 1);
    // The next set mends it.
    assert_eq!(apply(&cluster, "a b heavy p"), "+heavy +p -new");
}

#[tokio::test]
async fn a_key_that_a_set_has_twice_is_an_error_that_names_it() {
    let (cluster, _servers) = test_cluster();
    apply(&cluster, "a b");
    let changes = cluster.apply(nodes("a@x c a@y d d a@x"), PATIENCE).unwrap();
    assert_eq!(brief(&changes), "+c -b !a !d");
    let text = changes.errors[0].1.to_string();
    assert_eq!(text, "a set of nodes for cluster test has node a more than once");
    assert!(matches!(changes.errors[1].1, NodeError::Ambiguous { .. }));
    assert_eq!(cluster.nodes(), ["a", "c"]);
    assert_eq!(apply(&cluster, "a c"), "", "a is where it was");
}

#[tokio::test]
async fn without_a_template_a_node_is_an_error_that_says_so() {
    let cluster: TestCluster = Cluster::builder().build().unwrap();
    cluster.add_node("b".to_owned(), TestManager::new()).unwrap();
    let changes = cluster.apply(nodes("a"), PATIENCE).unwrap();
    assert_eq!(brief(&changes), "!a");
    assert!(matches!(only_error(&changes), NodeError::NoTemplate { .. }));
    assert_eq!(cluster.nodes(), ["b"], "nothing would be left");
}

#[tokio::test]
async fn a_set_of_which_nothing_can_be_applied_takes_nothing_away() {
    hush_scripted_panics();
    let (cluster, servers) = test_cluster();
    apply(&cluster, "a b");
    drop(cluster.acquire("a").await.unwrap());
    assert_eq!(apply(&cluster, "x@panic y y"), "!x !y");
    assert_eq!(cluster.nodes(), ["a", "b"]);
    assert_eq!(cluster.acquire("a").await.unwrap().info().uses, 2);
    assert_eq!(servers.count(), 2);
    // One that there was and that stays is enough for the others to go.
    assert_eq!(apply(&cluster, "x@panic a@panic"), "-b !x !a");
}

#[tokio::test]
async fn an_empty_set_is_refused_unless_it_is_accepted() {
    let (cluster, servers) = test_cluster();
    apply(&cluster, "a");
    drop(cluster.acquire("a").await.unwrap());
    let error = cluster.apply([], PATIENCE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a set without nodes for cluster test, which keeps those that it has"
    );
    assert!(matches!(error, SetError::Empty { .. }));
    assert_eq!(cluster.acquire("a").await.unwrap().info().uses, 2);
    let cluster = servers.builder().accept_empty_sets(true).build().unwrap();
    assert_eq!(apply(&cluster, "a b"), "+a +b");
    assert_eq!(apply(&cluster, ""), "-a -b");
    assert!(cluster.nodes().is_empty());
}

#[tokio::test]
async fn a_set_is_for_all_nodes_however_they_were_added() {
    let (cluster, servers) = test_cluster();
    let manager = TestManager::new();
    cluster.add_node("by-manager".to_owned(), manager.clone()).unwrap();
    cluster.add_node("other".to_owned(), TestManager::new()).unwrap();
    cluster.add_endpoint("by-endpoint", Endpoint::new("by-endpoint", 1)).unwrap();
    for key in ["by-manager", "by-endpoint"] {
        drop(cluster.acquire(key).await.unwrap());
    }
    assert_eq!(apply(&cluster, "by-manager by-endpoint"), "-other @by-manager");
    drop(cluster.acquire("by-manager").await.unwrap());
    assert_eq!(servers.at("by-manager:1").ledger.opened(), 1);
    assert_eq!(cluster.acquire("by-endpoint").await.unwrap().info().uses, 2);
    eventually("the old one is closed", || manager.ledger.live() == 0).await;
    // What was replaced by hand is somewhere that nobody knows.
    drop(cluster.replace("by-endpoint", TestManager::new(), PATIENCE).await.unwrap());
    assert_eq!(apply(&cluster, "by-manager by-endpoint"), "@by-endpoint");
}

#[tokio::test]
async fn a_closed_cluster_takes_no_set() {
    let (cluster, servers) = test_cluster();
    apply(&cluster, "a");
    cluster.close().await;
    let error = cluster.apply(nodes("a b"), PATIENCE).unwrap_err();
    assert_eq!(error.to_string(), "cluster test is closed");
    assert_eq!(servers.count(), 1, "nothing is made for it");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_sees_all_of_a_set_or_nothing_of_it() {
    let (cluster, servers) = test_cluster();
    let began = tokio::time::Instant::now();
    let mut for_any = pin!(cluster.acquire_any(Policy::RoundRobin));
    let mut for_primary = pin!(cluster.acquire_any(Policy::Primary));
    assert!(poll_once(for_any.as_mut()).is_pending());
    assert!(poll_once(for_primary.as_mut()).is_pending());
    apply(&cluster, "a");
    assert_eq!(for_any.await.unwrap().node(), "a");
    assert!(poll_once(for_primary.as_mut()).is_pending());
    let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
    let mut by_name = pin!(cluster.acquire("a"));
    let mut for_any = pin!(cluster.acquire_any(Policy::RoundRobin));
    assert!(poll_once(by_name.as_mut()).is_pending());
    assert!(poll_once(for_any.as_mut()).is_pending());
    let set = [node("b").options(NodeOptions::default().role(Role::Primary))];
    assert_eq!(brief(&cluster.apply(set, PATIENCE).unwrap()), "+b -a");
    assert!(matches!(by_name.await, Err(ClusterError::Removed(_))));
    assert_eq!(for_any.await.unwrap().node(), "b");
    assert_eq!(for_primary.await.unwrap().node(), "b");
    assert_eq!(began.elapsed(), Duration::ZERO, "they are told, and do not find out by and by");
    assert_eq!(servers.at("a:1").ledger.live(), 2, "the guards outlive the node");
    drop(held);
    eventually("a is drained", || servers.at("a:1").ledger.live() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_drain_holds_up_neither_the_next_set_nor_the_node_when_it_is_back() {
    let (cluster, servers) = test_cluster();
    let began = tokio::time::Instant::now();
    let mut held = Vec::new();
    // Each round leaves a pool of a behind that is being drained.
    for _ in 0..50 {
        assert!(brief(&cluster.apply(nodes("a b"), 100 * SECOND).unwrap()).contains("+a"));
        held.push(cluster.acquire("a").await.unwrap());
        assert_eq!(brief(&cluster.apply(nodes("b"), 100 * SECOND).unwrap()), "-a");
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    let ledger = servers.at("a:1").ledger.clone();
    assert_eq!((ledger.live(), ledger.opened()), (50, 50));
    // Those that are back in time are closed then, and those that are late when they come.
    held.truncate(25);
    eventually("half of them are closed", || ledger.closed() == 25).await;
    tokio::time::sleep(101 * SECOND).await;
    assert_eq!(ledger.live(), 25);
    drop(held);
    eventually("all are closed", || ledger.live() == 0).await;
    assert_eq!(ledger.closed(), 50);
}

#[tokio::test]
async fn a_pool_that_is_taken_away_refuses_everybody_before_the_call_returns() {
    let (cluster, servers) = test_cluster();
    apply(&cluster, "a b");
    let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
    let (wakes, waker) = Wakes::new();
    let mut waits = pin!(cluster.acquire("a"));
    assert!(poll_with(waits.as_mut(), &waker).is_pending());
    apply(&cluster, "b");
    // No other task has run.
    assert!(wakes.count() > 0);
    let Poll::Ready(Err(ClusterError::Removed(_))) = poll_once(waits.as_mut()) else {
        panic!("it still waits")
    };
    drop(held);
    eventually("a is drained", || servers.at("a:1").ledger.live() == 0).await;
}

#[tokio::test]
async fn what_is_in_use_is_closed_in_order_though_the_cluster_is_gone() {
    let (cluster, servers) = test_cluster();
    apply(&cluster, "a b");
    let (a, b) = (cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap());
    let (a, b) = (a.into_owned(), b.into_owned());
    drop(cluster.acquire("b").await.unwrap());
    apply(&cluster, "b");
    drop(cluster);
    let (at_a, at_b) = (servers.at("a:1").ledger.clone(), servers.at("b:1").ledger.clone());
    assert_eq!((at_a.live(), a.node().as_str()), (1, "a"));
    drop(a);
    eventually("a is closed", || at_a.live() == 0).await;
    assert_eq!(at_a.closed(), 1, "in order, and not just dropped");
    drop(b);
    eventually("b is closed", || at_b.live() == 0).await;
}

#[test]
fn outside_a_runtime_a_set_is_applied_and_nobody_waits_for_a_drain() {
    let (cluster, servers) = test_cluster();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    apply(&cluster, "a b");
    let held = runtime.block_on(cluster.acquire("a")).unwrap();
    assert_eq!(apply(&cluster, "b"), "-a");
    let unknown = runtime.block_on(cluster.acquire("a"));
    assert!(matches!(unknown, Err(ClusterError::UnknownNode(_))));
    drop(held);
    runtime.block_on(eventually("a is closed", || servers.at("a:1").ledger.live() == 0));
}

/// How many were closed and how many are still out, by node.
fn drained(reports: &[(String, DrainReport)]) -> Vec<(&str, u64, usize)> {
    let told = reports.iter();
    told.map(|(key, report)| (key.as_str(), report.closed, report.still_out.len())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_a_cluster_waits_for_what_nodes_have_out_that_were_removed() {
    let (cluster, servers) = test_cluster();
    apply(&cluster, "a b c d");
    let mut held = Vec::new();
    for key in ["a", "b", "c"] {
        held.push(cluster.acquire(key).await.unwrap());
    }
    drop(cluster.acquire("d").await.unwrap());
    drop(cluster.apply(nodes("a c@other"), 60 * SECOND).unwrap());
    let holders = || -> Vec<String> { cluster.holders().into_iter().map(|it| it.0).collect() };
    assert_eq!(holders(), ["a", "b", "c"]);
    eventually("that of d is closed", || servers.at("d:1").ledger.live() == 0).await;
    assert_eq!(cluster.status().connections, 3);
    let began = tokio::time::Instant::now();
    let reports = cluster.drain(10 * MILLISECOND).await;
    assert_eq!(began.elapsed(), 10 * MILLISECOND);
    assert_eq!(drained(&reports), [("a", 0, 1), ("c", 0, 0), ("b", 0, 1), ("c", 0, 1)]);
    // Again, and they come back.
    let mut drain = pin!(cluster.drain(30 * SECOND));
    for guard in held {
        assert!(poll_once(drain.as_mut()).is_pending());
        drop(guard);
    }
    let reports = drain.await;
    assert_eq!(drained(&reports), [("a", 1, 0), ("c", 0, 0), ("b", 1, 0), ("c", 1, 0)]);
    assert_eq!(began.elapsed(), 10 * MILLISECOND);
    assert!(holders().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_drain_and_a_close_of_a_cluster_know_of_nodes_that_were_removed_by_hand() {
    for replaced in [false, true] {
        let (cluster, servers) = test_cluster();
        apply(&cluster, "a b");
        let held = cluster.acquire("b").await.unwrap();
        let old = servers.at("b:1");
        old.close.always(Act::Slow(100 * MILLISECOND));
        let went = if replaced {
            cluster.replace("b", TestManager::new(), 60 * SECOND).now_or_never().is_some()
        } else {
            cluster.remove_node("b", 60 * SECOND).now_or_never().is_some()
        };
        assert!(!went, "it is given up, and its node is out");
        let reports = cluster.drain(10 * MILLISECOND).await;
        assert_eq!(drained(&reports).last(), Some(&("b", 0, 1)));
        drop(held);
        let began = tokio::time::Instant::now();
        cluster.close().await;
        assert_eq!((began.elapsed(), old.ledger.live()), (100 * MILLISECOND, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_removed_is_gone_with_its_last_connection() {
    let token = Arc::new(());
    let of_managers = token.clone();
    let builder = Cluster::<String, _>::builder().template(move |_| {
        let token = of_managers.clone();
        millpond::from_fn(move || std::future::ready(Ok::<_, Infallible>(token.clone())))
    });
    let cluster = builder.build().unwrap();
    drop(cluster.apply(nodes("a"), SECOND).unwrap());
    drop(cluster.acquire("a").await.unwrap());
    let before = Arc::strong_count(&token);
    for late in [false, true] {
        for _ in 0..10 {
            drop(cluster.apply(nodes("a b"), SECOND).unwrap());
            let held = cluster.acquire("b").await.unwrap();
            drop(cluster.apply(nodes("a"), SECOND).unwrap());
            tokio::time::sleep(if late { 2 * SECOND } else { Duration::ZERO }).await;
            assert_eq!((cluster.holders().len(), cluster.status().connections), (1, 2));
            drop(held);
            eventually("its manager is gone", || {
                // This thread has another look at which nodes there are.
                assert!(matches!(poll_once(pin!(cluster.acquire("a"))), Poll::Ready(Ok(_))));
                Arc::strong_count(&token) == before
            })
            .await;
            assert_eq!((cluster.holders().len(), cluster.status().connections), (0, 1));
        }
    }
}

#[tokio::test]
async fn nodes_of_a_set_share_the_cap_with_those_that_are_still_drained() {
    let servers = Servers::default();
    let cluster = servers.builder().max_connections(2).build().unwrap();
    apply(&cluster, "a");
    let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
    apply(&cluster, "b");
    let mut waits = pin!(cluster.acquire("b"));
    for _ in 0..64 {
        assert!(poll_once(waits.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(servers.at("b:1").ledger.opened(), 0, "there are two already");
    drop(held);
    assert_eq!(waits.await.unwrap().node(), "b");
}

#[tokio::test]
async fn a_thousand_nodes_come_and_change_and_go_in_one_set_each() {
    let (cluster, servers) = test_cluster();
    let all = || (0..1_000).map(|number| node(&format!("n{number}")));
    let changes = cluster.apply(all(), PATIENCE).unwrap();
    assert_eq!(
        (changes.added.len(), cluster.nodes().len(), servers.count()),
        (1_000, 1_000, 1_000)
    );
    assert_eq!(changes.added[999], "n999");
    for key in ["n0", "n500", "n999"] {
        assert_eq!(cluster.acquire(key).await.unwrap().node(), key);
    }
    assert!(cluster.apply(all(), PATIENCE).unwrap().is_empty());
    // A quarter each goes, moves, changes and stays.
    let next = all().enumerate().filter(|(number, _)| number % 4 != 0).map(|(number, mut spec)| {
        match number % 4 {
            1 => spec.endpoint.host.push('x'),
            2 => spec.options.weight = 2,
            _ => {}
        }
        spec
    });
    let changes = cluster.apply(next, PATIENCE).unwrap();
    let Changes { added, removed, replaced, changed, errors, .. } = &changes;
    let counts = [added, removed, replaced, changed].map(Vec::len);
    assert_eq!((counts, errors.len()), ([0, 250, 250, 250], 0));
    assert_eq!((cluster.nodes().len(), servers.count()), (750, 1_250));
    let n999 = cluster.acquire("n999").await.unwrap();
    assert_eq!(n999.info().uses, 2);
    assert_eq!(cluster.status().nodes.iter().map(|node| node.weight).sum::<u32>(), 1_000);
    assert_eq!(cluster.apply([node("last")], PATIENCE).unwrap().removed.len(), 750);
}

#[tokio::test]
async fn a_template_may_use_the_cluster_that_asks_it() {
    let cell: Arc<std::sync::OnceLock<TestCluster>> = Arc::default();
    let inside = cell.clone();
    let template = move |endpoint: &Endpoint| {
        let cluster = inside.get().unwrap();
        match endpoint.host.as_str() {
            // Adds by hand what the set is about to add.
            "a" => drop(cluster.add_endpoint("b", Endpoint::new("b", 1))),
            // Takes away what the set found there.
            "c" => drop(cluster.apply(nodes("z"), PATIENCE)),
            _ => {}
        }
        TestManager::new()
    };
    let cluster: TestCluster = Cluster::builder().template(template).build().unwrap();
    assert!(cell.set(cluster.clone()).is_ok());
    assert_eq!(apply(&cluster, "a b"), "+a", "b is as it should be already");
    assert_eq!(apply(&cluster, "a c"), "+a +c -z -b", "a is made once it is missing");
    assert_eq!(cluster.nodes(), ["a", "c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sets_of_several_tasks_are_applied_one_after_the_other() {
    let (cluster, servers) = test_cluster();
    apply(&cluster, "s");
    let sets = ["s a b c", "s c d@x", "s d@y a", "s e f g h"];
    let tasks = sets.map(|set| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            for _ in 0..200 {
                drop(cluster.apply(nodes(set), PATIENCE).unwrap());
                let guard = cluster.acquire_any(Policy::RoundRobin).await.unwrap();
                drop(guard);
                tokio::task::yield_now().await;
            }
        })
    });
    for task in tasks {
        joined(task).await;
    }
    let present = cluster.nodes();
    let is_one = sets.iter().any(|set| {
        let mut keys: Vec<String> = nodes(set).into_iter().map(|spec| spec.key).collect();
        let mut present = present.clone();
        keys.sort();
        present.sort();
        keys == present
    });
    assert!(is_one, "a mixture of sets: {present:?}");
    apply(&cluster, "s");
    let others: Vec<TestManager> = {
        let servers = servers.0.lock().unwrap();
        servers.iter().filter(|(name, _)| *name != "s:1").map(|(_, it)| it.clone()).collect()
    };
    eventually("all that is gone is closed", || {
        others.iter().all(|server| server.ledger.live() == 0)
    })
    .await;
}

/// What the streams of these tests yield.
type Answer = Result<Vec<Spec>, io::Error>;

/// A watch of what is sent, and what sends it.
fn watch_of(cluster: &TestCluster) -> (mpsc::UnboundedSender<Answer>, Watch<String>) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<Answer>();
    let answers = stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (sender, cluster.watch(answers, PATIENCE))
}

async fn applied(watch: &Watch<String>, count: u64) {
    eventually("the set is applied", || watch.applied() == count).await;
}

#[tokio::test]
async fn a_watch_applies_each_set_until_its_stream_ends_and_the_nodes_stay() {
    let (cluster, servers) = test_cluster();
    let (sender, watch) = watch_of(&cluster);
    assert!(watch.last_changes().is_none() && watch.last_error().is_none());
    sender.send(Ok(nodes("a b"))).unwrap();
    applied(&watch, 1).await;
    assert_eq!(brief(&watch.last_changes().unwrap()), "+a +b");
    drop(cluster.acquire("b").await.unwrap());
    sender.send(Ok(nodes("b c"))).unwrap();
    sender.send(Ok(nodes("b c"))).unwrap();
    applied(&watch, 3).await;
    assert!(watch.last_changes().unwrap().is_empty());
    assert_eq!(cluster.nodes(), ["b", "c"]);
    sender.send(Ok(nodes("b d"))).unwrap();
    drop(sender);
    eventually("the watch has ended", || !watch.is_running()).await;
    assert_eq!((watch.applied(), cluster.nodes()), (4, vec!["b".to_owned(), "d".to_owned()]));
    assert!(watch.last_error().is_none());
    assert_eq!(cluster.acquire("b").await.unwrap().info().uses, 2);
    assert_eq!(servers.at("b:1").ledger.opened(), 1);
}

#[tokio::test]
async fn an_error_of_the_stream_leaves_the_nodes_and_is_to_be_seen_until_a_set_is_applied() {
    let (cluster, servers) = test_cluster();
    let (sender, watch) = watch_of(&cluster);
    sender.send(Ok(nodes("a"))).unwrap();
    applied(&watch, 1).await;
    drop(cluster.acquire("a").await.unwrap());
    sender.send(Err(io::Error::other("no answer"))).unwrap();
    eventually("the error is told", || watch.last_error().is_some()).await;
    let error = watch.last_error().unwrap();
    assert!(matches!(&*error, WatchError::Source(source) if source.to_string() == "no answer"));
    assert_eq!(error.to_string(), "the source of nodes has an error");
    assert_eq!(std::error::Error::source(&*error).unwrap().to_string(), "no answer");
    sender.send(Ok(Vec::new())).unwrap();
    eventually("the empty set is refused", || {
        matches!(watch.last_error().as_deref(), Some(WatchError::Refused(SetError::Empty { .. })))
    })
    .await;
    assert_eq!((watch.applied(), cluster.nodes()), (1, vec!["a".to_owned()]));
    sender.send(Ok(nodes("a"))).unwrap();
    applied(&watch, 2).await;
    assert!(watch.last_error().is_none());
    assert_eq!(cluster.acquire("a").await.unwrap().info().uses, 2);
    assert_eq!(servers.at("a:1").ledger.closed(), 0);
}

#[tokio::test]
async fn a_watch_removes_and_changes_only_what_it_has_added() {
    let servers = Servers::default();
    let cluster = servers.builder().accept_empty_sets(true).build().unwrap();
    cluster.add_endpoint("hand", Endpoint::new("hand", 1)).unwrap();
    let ((one, first), (other, second)) = (watch_of(&cluster), watch_of(&cluster));
    one.send(Ok(nodes("a b"))).unwrap();
    applied(&first, 1).await;
    // Neither what was added by hand nor what another watch has added.
    other.send(Ok(nodes("c a@elsewhere hand"))).unwrap();
    applied(&second, 1).await;
    let changes = second.last_changes().unwrap();
    assert_eq!(brief(&changes), "+c !a !hand");
    assert_eq!(changes.errors[1].1.to_string(), "cluster test has a node hand already");
    assert_eq!(cluster.nodes(), ["hand", "a", "b", "c"]);
    assert!(second.last_error().is_none());
    other.send(Ok(Vec::new())).unwrap();
    applied(&second, 2).await;
    assert_eq!(cluster.nodes(), ["hand", "a", "b"]);
    // What is done by hand to its nodes holds until the next set.
    cluster.set_options("a", weight(5)).unwrap();
    drop(cluster.remove_node("b", SECOND).await.unwrap());
    one.send(Ok(nodes("a b"))).unwrap();
    applied(&first, 2).await;
    assert_eq!(brief(&first.last_changes().unwrap()), "+b =a");
    // What is replaced by hand is no longer the watch's.
    drop(cluster.replace("a", TestManager::new(), SECOND).await.unwrap());
    one.send(Ok(nodes("a b"))).unwrap();
    applied(&first, 3).await;
    assert_eq!(brief(&first.last_changes().unwrap()), "!a");
    one.send(Ok(nodes("c"))).unwrap();
    applied(&first, 4).await;
    assert_eq!(cluster.nodes(), ["hand", "a", "c"]);
    assert_eq!(servers.at("elsewhere:1").ledger.opened(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_by_hand_is_lost_beside_a_watch() {
    let (cluster, _servers) = test_cluster();
    let sets = [0..200, 100..300].map(|numbers| -> Vec<Spec> {
        numbers.map(|number| node(&format!("n{number}"))).collect()
    });
    let answers = stream::iter(sets).cycle().map(Ok::<_, Infallible>);
    let watch = cluster.watch(answers, PATIENCE);
    let enough = watch.applied() + 10;
    let by_hand = async {
        for number in 0.. {
            let key = format!("hand{number}");
            cluster.add_node(key.clone(), TestManager::new()).unwrap();
            tokio::task::yield_now().await;
            drop(cluster.remove_node(&key, PATIENCE).await.unwrap());
            assert!(!cluster.nodes().contains(&key), "{key} is back");
            if number >= 500 && watch.applied() >= enough {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, by_hand).await.expect("sets are applied all the while");
    watch.stop().await;
    assert_eq!(cluster.nodes().len(), 200);
}

#[tokio::test]
async fn a_watch_whose_nodes_cannot_be_made_keeps_those_that_it_has() {
    hush_scripted_panics();
    let (cluster, _servers) = test_cluster();
    cluster.add_endpoint("hand", Endpoint::new("hand", 1)).unwrap();
    let (sender, watch) = watch_of(&cluster);
    sender.send(Ok(nodes("a b"))).unwrap();
    applied(&watch, 1).await;
    for (count, set) in [(2, "hand x@panic"), (3, "x@panic y@panic")] {
        sender.send(Ok(nodes(set))).unwrap();
        applied(&watch, count).await;
        assert_eq!(cluster.nodes(), ["hand", "a", "b"], "{set}");
    }
    sender.send(Ok(nodes("hand x@panic b"))).unwrap();
    applied(&watch, 4).await;
    assert_eq!(brief(&watch.last_changes().unwrap()), "-a !hand !x");
}

#[tokio::test]
async fn a_watch_with_a_set_of_what_is_somebody_elses_has_no_nodes_of_its_own() {
    let (cluster, _servers) = test_cluster();
    cluster.add_endpoint("hand", Endpoint::new("hand", 1)).unwrap();
    let (sender, watch) = watch_of(&cluster);
    sender.send(Ok(nodes("a b"))).unwrap();
    sender.send(Ok(nodes("hand"))).unwrap();
    applied(&watch, 2).await;
    assert_eq!(brief(&watch.last_changes().unwrap()), "-a -b !hand");
    assert_eq!(cluster.nodes(), ["hand"]);
}

#[tokio::test]
async fn a_watch_has_a_node_that_it_was_refused_as_soon_as_nobody_else_has_it() {
    let (cluster, _servers) = test_cluster();
    cluster.add_endpoint("hand", Endpoint::new("hand", 1)).unwrap();
    let ((one, first), (other, second)) = (watch_of(&cluster), watch_of(&cluster));
    one.send(Ok(nodes("a b"))).unwrap();
    applied(&first, 1).await;
    other.send(Ok(nodes("hand a c d e"))).unwrap();
    applied(&second, 1).await;
    assert_eq!(brief(&second.last_changes().unwrap()), "+c +d +e !hand !a");
    let comes = async |what: &str| {
        eventually(what, || brief(&second.last_changes().unwrap()) == what).await;
    };
    // What is done by hand to the others holds meanwhile.
    drop(cluster.remove_node("c", SECOND).await.unwrap());
    cluster.set_options("d", weight(5)).unwrap();
    drop(cluster.replace("e", TestManager::new(), SECOND).await.unwrap());
    drop(cluster.remove_node("hand", SECOND).await.unwrap());
    comes("+hand !a").await;
    one.send(Ok(nodes("b"))).unwrap();
    comes("+a").await;
    assert_eq!(cluster.status().nodes[1].weight, 5);
    let mut present = cluster.nodes();
    present.sort();
    assert_eq!(present, ["a", "b", "d", "e", "hand"]);
    // The end of a watch sets its nodes free too, however it ends.
    other.send(Ok(nodes("a b"))).unwrap();
    comes("-d -hand !b").await;
    first.stop().await;
    comes("").await;
    other.send(Ok(nodes("a"))).unwrap();
    comes("-b").await;
    assert_eq!((second.applied(), second.last_error().is_none()), (3, true));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_could_not_be_made_is_made_when_it_can_be_though_the_set_stays_the_same() {
    hush_scripted_panics();
    let (broken, calls) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let template = {
        let (broken, calls) = (broken.clone(), calls.clone());
        move |_: &Endpoint| {
            calls.fetch_add(1, Ordering::SeqCst);
            assert!(!broken.load(Ordering::SeqCst), "scripted panic");
            TestManager::new()
        }
    };
    let cluster: TestCluster = Cluster::builder().template(template).build().unwrap();
    let resolver = Resolver::default();
    resolver.answers("10.0.0.1:5432 10.0.0.2:5432");
    cluster.add_node("10.0.0.1:5432".to_owned(), TestManager::new()).unwrap();
    let watch = cluster.watch(resolver.dns(), PATIENCE);
    applied(&watch, 1).await;
    tokio::time::sleep(1_000 * SECOND).await;
    let refused = "!10.0.0.1:5432 !10.0.0.2:5432";
    assert_eq!(brief(&watch.last_changes().unwrap()), refused);
    // Not over and over, and not whenever something changes.
    for number in 0..100 {
        cluster.add_node(format!("other{number}"), TestManager::new()).unwrap();
        tokio::task::yield_now().await;
    }
    let calls = calls.load(Ordering::SeqCst);
    assert!((10..=30).contains(&calls), "{calls} calls");
    broken.store(false, Ordering::SeqCst);
    eventually("it is made", || cluster.nodes().contains(&"10.0.0.2:5432".to_owned())).await;
    assert_eq!(brief(&watch.last_changes().unwrap()), "+10.0.0.2:5432 !10.0.0.1:5432");
    assert_eq!(watch.applied(), 1, "it is the same set");
    drop(cluster.remove_node("10.0.0.1:5432", SECOND).await.unwrap());
    eventually("it is the watch's", || brief(&watch.last_changes().unwrap()) == "+10.0.0.1:5432")
        .await;
}

#[tokio::test]
async fn a_stopped_watch_applies_nothing_more_and_a_later_one_takes_over_its_nodes() {
    let (cluster, servers) = test_cluster();
    let (sender, watch) = watch_of(&cluster);
    sender.send(Ok(nodes("a b c"))).unwrap();
    applied(&watch, 1).await;
    for key in ["a", "b"] {
        drop(cluster.acquire(key).await.unwrap());
    }
    watch.stop().await;
    assert!(sender.send(Ok(nodes("x"))).is_err(), "its stream is dropped");
    assert_eq!(cluster.nodes(), ["a", "b", "c"]);
    let (sender, watch) = watch_of(&cluster);
    sender.send(Ok(nodes("a b@elsewhere"))).unwrap();
    applied(&watch, 1).await;
    assert_eq!(brief(&watch.last_changes().unwrap()), "@b");
    assert_eq!(cluster.nodes(), ["a", "b", "c"], "c is nobody's");
    sender.send(Ok(nodes("d"))).unwrap();
    applied(&watch, 2).await;
    assert_eq!(brief(&watch.last_changes().unwrap()), "+d -a -b");
    assert_eq!(servers.at("a:1").ledger.opened(), 1);
}

#[tokio::test]
async fn a_watch_goes_on_without_its_handle() {
    let (cluster, _servers) = test_cluster();
    let (sender, watch) = watch_of(&cluster);
    drop(watch);
    sender.send(Ok(nodes("a"))).unwrap();
    eventually("the set is applied", || cluster.nodes() == ["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_with_the_cluster_and_does_not_keep_it_alive() {
    for close in [true, false] {
        let (cluster, servers) = test_cluster();
        let (sender, watch) = watch_of(&cluster);
        sender.send(Ok(nodes("a"))).unwrap();
        applied(&watch, 1).await;
        drop(cluster.acquire("a").await.unwrap());
        drop(cluster.clone());
        tokio::time::sleep(SECOND).await;
        assert!(watch.is_running(), "there is another handle");
        let _closed = if close {
            cluster.close().await;
            Some(cluster)
        } else {
            drop(cluster);
            None
        };
        // Although its stream is silent.
        eventually("the watch has ended", || !watch.is_running()).await;
        assert!(sender.is_closed(), "its stream is dropped");
        eventually("the connection is closed", || servers.at("a:1").ledger.live() == 0).await;
        assert!(watch.last_error().is_none());
    }
}

#[tokio::test]
async fn a_stream_that_panics_ends_its_watch_and_nothing_else() {
    hush_scripted_panics();
    let (cluster, _servers) = test_cluster();
    let answers = stream::iter([Ok::<_, Infallible>(nodes("a"))]);
    let answers = answers.chain(stream::poll_fn(|_: &mut Context<'_>| panic!("scripted end")));
    let watch = cluster.watch(answers, PATIENCE);
    eventually("the watch has ended", || !watch.is_running()).await;
    assert_eq!((watch.applied(), cluster.nodes()), (1, vec!["a".to_owned()]));
    let error = watch.last_error().unwrap();
    assert_eq!(error.to_string(), "the source of nodes panicked: scripted end");
    drop(cluster.acquire("a").await.unwrap());
}

#[test]
fn a_stream_that_is_always_ready_keeps_nobody_from_running_and_can_be_stopped() {
    let scene = async {
        let (cluster, _servers) = test_cluster();
        let sets = ["a b", "b c", "c a"];
        let answers = stream::iter(sets).cycle().map(|set| Ok::<_, Infallible>(nodes(set)));
        let watch = cluster.watch(answers, PATIENCE);
        eventually("many sets are applied", || watch.applied() > 100).await;
        let guard = cluster.acquire_any(Policy::RoundRobin).await.unwrap();
        eventually("more are applied while one is in use", || watch.applied() > 200).await;
        watch.stop().await;
        drop(guard);
        assert_eq!(cluster.nodes().len(), 2);
    };
    // In a thread of its own, so that there is somebody to see it if the only thread has no time left.
    join(std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(scene);
    }));
}

/// A resolver whose answers a test gives.
#[derive(Clone, Default)]
struct Resolver {
    answer: Arc<Mutex<Vec<SocketAddr>>>,
    fails: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    takes: Arc<Mutex<Duration>>,
}

impl Resolver {
    fn answers(&self, addresses: &str) {
        let addresses = addresses.split_whitespace().map(|address| address.parse().unwrap());
        *self.answer.lock().unwrap() = addresses.collect();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn lookup(
        &self,
        endpoint: Endpoint,
    ) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send + use<> {
        assert_eq!(endpoint.to_string(), "db.internal:5432");
        let this = self.clone();
        async move {
            this.asked.fetch_add(1, Ordering::SeqCst);
            assert_eq!(this.running.fetch_add(1, Ordering::SeqCst), 0, "one lookup at a time");
            let takes = *this.takes.lock().unwrap();
            tokio::time::sleep(takes).await;
            this.running.fetch_sub(1, Ordering::SeqCst);
            if this.fails.load(Ordering::SeqCst) {
                return Err(io::Error::other("SERVFAIL"));
            }
            Ok(this.answer.lock().unwrap().clone())
        }
    }

    fn dns(&self) -> Dns {
        self.dns_every(10 * SECOND)
    }

    fn dns_every(&self, every: Duration) -> Dns {
        let this = self.clone();
        let dns = Dns::new("db.internal:5432".parse().unwrap(), every).unwrap();
        dns.lookup(move |endpoint| this.lookup(endpoint))
    }
}

/// The keys of a set.
fn keys(set: &[Spec]) -> Vec<&str> {
    set.iter().map(|spec| spec.key.as_str()).collect()
}

/// The next answer of DNS, which comes within a few lookups.
async fn soon(dns: &mut Dns) -> Result<Vec<Spec>, LookupError> {
    tokio::time::timeout(50 * SECOND, dns.next()).await.expect("nothing comes").unwrap()
}

fn poll_stream(dns: &mut Dns) -> Poll<Option<Result<Vec<Spec>, LookupError>>> {
    use futures_util::Stream;
    Pin::new(dns).poll_next(&mut Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn dns_yields_a_set_at_once_and_then_only_when_it_has_changed() {
    let resolver = Resolver::default();
    resolver.answers("10.0.0.2:5432 [::1]:5432 10.0.0.1:5432 10.0.0.2:5432");
    let options = NodeOptions::default().role(Role::Replica);
    let mut dns = resolver.dns().options(options.clone());
    let began = tokio::time::Instant::now();
    let set = dns.next().await.unwrap().unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(keys(&set), ["10.0.0.1:5432", "10.0.0.2:5432", "[::1]:5432"]);
    assert_eq!((set[2].endpoint.to_string(), &set[2].options), ("[::1]:5432".into(), &options));
    assert_eq!((set[2].endpoint.host.as_str(), set[2].endpoint.port), ("::1", 5432));
    // The same in another order is nothing new, however often it is looked up.
    resolver.answers("[::1]:5432 10.0.0.1:5432 10.0.0.2:5432");
    let quiet = tokio::time::timeout(100 * SECOND, dns.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let asked = resolver.asked();
    assert!((10..=13).contains(&asked), "asked {asked} times in 100 s");
    resolver.answers("10.0.0.1:5432");
    let set = dns.next().await.unwrap().unwrap();
    assert_eq!(keys(&set), ["10.0.0.1:5432"]);
}

#[tokio::test(start_paused = true)]
async fn dns_passes_errors_on_and_yields_the_same_set_after_one() {
    let resolver = Resolver::default();
    resolver.answers("10.0.0.1:5432");
    let mut dns = resolver.dns();
    soon(&mut dns).await.unwrap();
    resolver.fails.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let error = soon(&mut dns).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot look up db.internal:5432");
        assert_eq!(error.source.to_string(), "SERVFAIL");
        assert!(poll_stream(&mut dns).is_pending(), "it pauses after an error too");
    }
    resolver.fails.store(false, Ordering::SeqCst);
    assert_eq!(keys(&soon(&mut dns).await.unwrap()), ["10.0.0.1:5432"]);
    resolver.answers("");
    assert!(soon(&mut dns).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn dns_pauses_a_little_less_than_it_may_and_never_as_long_twice() {
    let resolver = Resolver::default();
    resolver.fails.store(true, Ordering::SeqCst);
    *resolver.takes.lock().unwrap() = SECOND;
    let mut dns = resolver.dns();
    dns.next().await;
    let mut pauses = Vec::new();
    for _ in 0..20 {
        let began = tokio::time::Instant::now();
        dns.next().await;
        pauses.push(began.elapsed() - SECOND);
    }
    // The clock goes by milliseconds.
    let range = 9 * SECOND..=10 * SECOND + MILLISECOND;
    assert!(pauses.iter().all(|pause| range.contains(pause)), "{pauses:?}");
    pauses.sort();
    pauses.dedup();
    assert!(pauses.len() > 10, "{pauses:?}");
}

#[tokio::test]
async fn dns_asks_nothing_until_it_is_polled_and_refuses_to_ask_without_pause() {
    let resolver = Resolver::default();
    let dns = resolver.dns();
    tokio::task::yield_now().await;
    assert_eq!(resolver.asked(), 0);
    drop(dns);
    let error = Dns::new(Endpoint::new("localhost", 1), Duration::ZERO).unwrap_err();
    assert_eq!(error.field(), "every");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_follows_dns_through_changes_and_outages() {
    let resolver = Resolver::default();
    let (cluster, servers) = test_cluster();
    resolver.answers("10.0.0.1:5432 [::1]:5432");
    let watch = cluster.watch(resolver.dns().filter(SocketAddr::is_ipv4), PATIENCE);
    let guard = cluster.acquire_any(Policy::RoundRobin).await.unwrap();
    assert_eq!(guard.node(), "10.0.0.1:5432");
    assert_eq!(cluster.nodes().len(), 1);
    resolver.fails.store(true, Ordering::SeqCst);
    eventually("the outage is told", || watch.last_error().is_some()).await;
    resolver.fails.store(false, Ordering::SeqCst);
    eventually("the outage is over", || watch.last_error().is_none()).await;
    // No address is an outage too.
    resolver.answers("");
    eventually("the empty answer is told", || watch.last_error().is_some()).await;
    assert_eq!(servers.at("10.0.0.1:5432").ledger.live(), 1);
    resolver.answers("10.0.0.1:5432 10.0.0.2:5432");
    eventually("the second node is there", || cluster.nodes().len() == 2).await;
    assert!(watch.last_error().is_none());
    resolver.answers("10.0.0.2:5432");
    eventually("the first node is gone", || cluster.nodes() == ["10.0.0.2:5432"]).await;
    drop(guard);
    let ledger = servers.at("10.0.0.1:5432").ledger.clone();
    eventually("the first node is drained", || ledger.live() == 0).await;
    assert_eq!(ledger.opened(), 1);
    drop(cluster);
    eventually("the watch has ended", || !watch.is_running()).await;
    let asked = resolver.asked();
    tokio::time::sleep(100 * SECOND).await;
    assert_eq!(resolver.asked(), asked, "nobody asks any more");
}

/// How a cluster is that has one reason not to be healthy.
fn degraded(reason: &str) -> Health {
    Health::Degraded(vec![reason.to_owned()])
}

const SERVFAIL: &str =
    "the source of nodes has an error: cannot look up db.internal:5432: SERVFAIL";

#[tokio::test(start_paused = true)]
async fn what_the_resolver_says_is_told_by_whoever_waits_for_a_node_and_by_the_clusters_health() {
    let resolver = Resolver::default();
    let (cluster, _servers) = test_cluster();
    let monitor = millpond::Monitor::new();
    monitor.add_cluster(&cluster).unwrap();
    let told = async |expected: &str| {
        let error = cluster.acquire_any_timeout(Policy::RoundRobin, SECOND).await.unwrap_err();
        let expected = format!("there are no nodes; {expected}");
        assert!(error.to_string().ends_with(&format!(": {expected}")), "{error}");
        assert!(std::error::Error::source(&error).is_none(), "that is said already");
        let unknown = cluster.acquire("a").await.unwrap_err().to_string();
        assert!(
            unknown.ends_with(&format!("; {}", expected.replace("there are no nodes; ", ""))),
            "{unknown}"
        );
        let status = cluster.status();
        assert_eq!(status.health.to_string(), format!("down: {expected}"));
        assert_eq!(monitor.health(), [("test".to_owned(), status.health.clone())]);
        let lines: String = expected.split("; ").map(|line| format!("  ! {line}\n")).collect();
        assert!(status.to_string().ends_with(&lines), "{status}");
    };
    // A resolver that has nobody to ask takes its time.
    *resolver.takes.lock().unwrap() = 3 * SECOND;
    resolver.fails.store(true, Ordering::SeqCst);
    // As it is documented: nobody has the handle.
    cluster.watch(resolver.dns(), PATIENCE);
    told("the source of nodes has not answered yet").await;
    tokio::time::sleep(5 * SECOND).await;
    told(SERVFAIL).await;

    resolver.answers("10.0.0.1:5432");
    resolver.fails.store(false, Ordering::SeqCst);
    drop(cluster.acquire_any_timeout(Policy::RoundRobin, 20 * SECOND).await.unwrap());
    assert_eq!(cluster.status().health, Health::Healthy);
    // Later on it has nodes, of which it is not known whether they are the right ones.
    resolver.fails.store(true, Ordering::SeqCst);
    eventually("it is told", || cluster.status().health == degraded(SERVFAIL)).await;
    assert_eq!(monitor.health(), [("test".to_owned(), degraded(SERVFAIL))]);
    let held = [cluster.acquire("10.0.0.1:5432").await, cluster.acquire("10.0.0.1:5432").await];
    let error = cluster.acquire_any_timeout(Policy::RoundRobin, SECOND).await.unwrap_err();
    assert!(error.to_string().ends_with(&format!("; {SERVFAIL}")), "{error}");
    drop(held);
    resolver.fails.store(false, Ordering::SeqCst);
    eventually("it is over", || cluster.status().health == Health::Healthy).await;
    // No address is an outage too.
    resolver.answers("");
    let refused = "the source of nodes answers what is refused: a set without nodes for cluster test, \
                   which keeps those that it has";
    eventually("it is told", || cluster.status().health == degraded(refused)).await;
}

#[tokio::test]
async fn a_cluster_tells_that_a_watch_has_ended_by_an_error_until_it_has_another_one() {
    hush_scripted_panics();
    let (cluster, _servers) = test_cluster();
    let ended = async |watch: &Watch<String>| {
        eventually("the watch has ended", || !watch.is_running()).await;
    };
    let panics = || {
        let answers = stream::iter([Ok::<_, Infallible>(nodes("a"))]);
        answers.chain(stream::poll_fn(|_: &mut Context<'_>| panic!("scripted end")))
    };
    let panicked = "the source of nodes panicked: scripted end; its watch has ended";
    let watch = cluster.watch(panics(), PATIENCE);
    ended(&watch).await;
    drop(watch);
    assert_eq!(cluster.status().health, degraded(panicked));
    // One more is not said twice.
    let watch = cluster.watch(panics(), PATIENCE);
    ended(&watch).await;
    assert_eq!(cluster.status().health, degraded(panicked));
    let (sender, watch) = watch_of(&cluster);
    assert_eq!(cluster.status().health, Health::Healthy, "somebody has begun another one");

    // So it is with a stream that ends after an error.
    sender.send(Err(io::Error::other("no answer"))).unwrap();
    let error = "the source of nodes has an error: no answer";
    eventually("it is told", || cluster.status().health == degraded(error)).await;
    drop(sender);
    ended(&watch).await;
    let over = degraded(&format!("{error}; its watch has ended"));
    assert_eq!(cluster.status().health, over);
    watch.stop().await;
    assert_eq!(cluster.status().health, Health::Healthy, "who has stopped it needs it no more");

    // One that ends in an orderly way is no trouble, and one that is stopped is none any more.
    ended(&cluster.watch(stream::iter([Ok::<_, Infallible>(nodes("a"))]), PATIENCE)).await;
    assert_eq!(cluster.status().health, Health::Healthy);
    let (sender, watch) = watch_of(&cluster);
    sender.send(Err(io::Error::other("no answer"))).unwrap();
    eventually("it is told", || cluster.status().health == degraded(error)).await;
    watch.stop().await;
    assert_eq!(cluster.status().health, Health::Healthy);
}

#[tokio::test]
async fn each_of_several_watches_tells_of_its_own_error() {
    let (cluster, _servers) = test_cluster();
    let watches = [watch_of(&cluster), watch_of(&cluster)];
    let say = |text: &str| format!("the source of nodes has an error: {text}");
    for ((sender, _), text) in watches.iter().zip(["one", "two"]) {
        sender.send(Err(io::Error::other(text))).unwrap();
    }
    let both = Health::Down(vec!["there are no nodes".to_owned(), say("one"), say("two")]);
    eventually("both are told", || cluster.status().health == both).await;
    watches[0].0.send(Ok(nodes("a"))).unwrap();
    eventually("one is over", || cluster.status().health == degraded(&say("two"))).await;
    cluster.close().await;
    assert_eq!(cluster.status().health.to_string(), "down: the cluster is closed");
}

#[tokio::test]
async fn an_error_of_a_stream_that_panics_when_it_is_told_is_one_all_the_same() {
    #[derive(Debug)]
    struct Untold;
    impl std::fmt::Display for Untold {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("scripted")
        }
    }
    impl std::error::Error for Untold {}
    hush_scripted_panics();
    let (cluster, _servers) = test_cluster();
    let answers = stream::iter([Err(Untold), Ok(nodes("a"))]);
    let watch = cluster.watch(answers.chain(stream::pending()), PATIENCE);
    applied(&watch, 1).await;
    assert_eq!(cluster.status().health, Health::Healthy);
    let _watch = cluster.watch(stream::iter([Err(Untold)]).chain(stream::pending()), PATIENCE);
    let untold =
        "the source of nodes has an error: an error that panicked while it was told: scripted";
    eventually("it is told", || cluster.status().health == degraded(untold)).await;
}

/// What it says, which it does soon.
async fn soon_said(says: impl Future<Output = bool>) -> bool {
    tokio::time::timeout(PATIENCE, says).await.expect("nothing is said")
}

#[tokio::test]
async fn whoever_waits_for_news_of_a_watch_hears_of_each_answer_and_of_its_end() {
    let (cluster, _servers) = test_cluster();
    let (sender, mut watch) = watch_of(&cluster);
    {
        let mut changed = pin!(watch.changed());
        assert!(poll_once(changed.as_mut()).is_pending());
        sender.send(Err(io::Error::other("no answer"))).unwrap();
        assert!(soon_said(changed).await);
    }
    assert!(watch.last_error().is_some());
    sender.send(Ok(nodes("a"))).unwrap();
    applied(&watch, 1).await;
    // Whoever comes late hears of what he has not heard of, once.
    assert!(soon_said(watch.changed()).await);
    let mut changed = Box::pin(watch.changed());
    assert!(poll_once(changed.as_mut()).is_pending());
    sender.send(Ok(nodes("a b"))).unwrap();
    eventually("the set is applied", || cluster.nodes().len() == 2).await;
    // Nothing is lost with one who gives up.
    drop(changed);
    assert!(soon_said(watch.changed()).await);
    sender.send(Ok(nodes("b"))).unwrap();
    drop(sender);
    eventually("the watch has ended", || !watch.is_running()).await;
    assert!(soon_said(watch.changed()).await, "of the last set");
    assert!(!soon_said(watch.changed()).await);
    assert!(!soon_said(watch.changed()).await);
    // Not only if it has ended by itself.
    let (_sender, mut watch) = watch_of(&cluster);
    let mut changed = pin!(watch.changed());
    assert!(poll_once(changed.as_mut()).is_pending());
    cluster.close().await;
    assert!(!soon_said(changed).await);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_becomes_the_primary_goes_from_one_watch_to_the_other() {
    let [a, b, c] = ["10.0.0.1:5432", "10.0.0.2:5432", "10.0.0.3:5432"];
    // Whichever of the two hears of it first.
    for (primary_every, replicas_every) in [(5, 15), (15, 5)] {
        for (replicas, others) in [(format!("{b} {c}"), vec![a, c]), (b.to_owned(), vec![a])] {
            let (cluster, _servers) = test_cluster();
            let (of_primary, of_replicas) = (Resolver::default(), Resolver::default());
            of_primary.answers(a);
            of_replicas.answers(&replicas);
            let watch = |resolver: &Resolver, every, role| {
                let dns = resolver.dns_every(every * SECOND);
                cluster.watch(dns.options(NodeOptions::default().role(role)), PATIENCE)
            };
            let first = watch(&of_replicas, replicas_every, Role::Replica);
            let second = watch(&of_primary, primary_every, Role::Primary);
            applied(&first, 1).await;
            applied(&second, 1).await;
            assert_eq!(cluster.acquire_any(Policy::Primary).await.unwrap().node(), a);
            of_primary.answers(b);
            of_replicas.answers(&others.join(" "));
            tokio::time::sleep(1_000 * SECOND).await;
            assert_eq!(cluster.acquire_any(Policy::Primary).await.unwrap().node(), b);
            let roles: HashMap<String, Role> =
                cluster.status().nodes.into_iter().map(|node| (node.key, node.role)).collect();
            assert_eq!(roles.len(), others.len() + 1, "{roles:?}");
            assert!(others.iter().all(|other| roles[*other] == Role::Replica), "{roles:?}");
        }
    }
}

#[test]
fn a_name_is_looked_up_though_whoever_waits_for_it_has_all_of_the_runtimes_blocking_threads() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_blocking_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (found, finds) = std::sync::mpsc::channel();
        let waiting = tokio::task::spawn_blocking(move || finds.recv());
        let mut dns = Dns::new("localhost:5432".parse().unwrap(), PATIENCE).unwrap();
        let set = tokio::time::timeout(PATIENCE, dns.next()).await.expect("it is looked up");
        found.send(set.unwrap().unwrap().len()).unwrap();
        assert!(joined(waiting).await.unwrap() > 0);
    });
}

#[tokio::test]
async fn localhost_is_found_by_the_systems_resolver() {
    let mut dns = Dns::new("localhost:5432".parse().unwrap(), PATIENCE).unwrap();
    let set = dns.next().await.unwrap().unwrap();
    assert!(!set.is_empty());
    for spec in set {
        let address: SocketAddr = spec.key.parse().unwrap();
        assert!(address.ip().is_loopback() && address.port() == 5432, "{address}");
    }
    // It refuses this name without asking any server.
    let mut dns = Dns::new(Endpoint::new("no\0name", 5432), PATIENCE).unwrap();
    let error = dns.next().await.unwrap().unwrap_err();
    assert_eq!(error.endpoint.host, "no\0name");
}

#[cfg(feature = "serde")]
#[test]
fn nodes_come_back_from_toml_and_json_as_they_went() {
    use std::collections::BTreeMap;
    let endpoints = ["db1:5432", "[fe80::1%eth0]:5432", "/run/postgresql:5432"];
    let endpoints = endpoints.map(|text| text.parse::<Endpoint>().unwrap());
    let json = serde_json::to_string(&endpoints).unwrap();
    assert_eq!(json, r#"["db1:5432","[fe80::1%eth0]:5432","/run/postgresql:5432"]"#);
    assert_eq!(serde_json::from_str::<[Endpoint; 3]>(&json).unwrap(), endpoints);
    for role in [Role::Unknown, Role::Primary, Role::Replica] {
        let json = serde_json::to_string(&role).unwrap();
        assert_eq!(json, format!("{:?}", role.word()));
        assert_eq!(serde_json::from_str::<Role>(&json).unwrap(), role);
        let options = NodeOptions::default().role(role).weight(1_000_000).label("zone", "a");
        let options = options.label("weight", "heavy");
        let (toml, json) =
            (toml::to_string(&options).unwrap(), serde_json::to_string(&options).unwrap());
        assert_eq!(toml::from_str::<NodeOptions>(&toml).unwrap(), options, "{toml}");
        assert_eq!(serde_json::from_str::<NodeOptions>(&json).unwrap(), options, "{json}");
    }
    assert_eq!(toml::from_str::<NodeOptions>("").unwrap(), NodeOptions::default());
    // A number may be text, as in a pool's settings, and a label is whatever its value says.
    let read: NodeOptions = toml::from_str("weight = \"7\"\nlabels.rack = 4").unwrap();
    assert_eq!(read, NodeOptions::default().weight(7).label("rack", "4"));
    let set = "[a]\nrole = \"primary\"\n[b]\nlabels = { x = true }";
    let set: BTreeMap<String, NodeOptions> = toml::from_str(set).unwrap();
    assert_eq!((set["a"].role, set["b"].labels["x"].as_str()), (Role::Primary, "true"));
}

#[cfg(feature = "serde")]
#[test]
fn what_is_wrong_with_a_node_in_a_file_is_named_with_its_value_and_the_rule() {
    for (json, said) in [
        (r#"{"weight": 0}"#, "weight is 0, but it must be at least 1: remove the node"),
        (r#"{"weight": 1000001}"#, "weight is 1000001, but it must be at most 1,000,000"),
        (r#"{"weight": 4294967296}"#, "weight is \"4294967296\", but it must be at most 1,000,000"),
        (
            r#"{"weight": -1}"#,
            "weight is \"-1\", but it must be a whole number, from 1 to 1,000,000",
        ),
        (r#"{"weight": 1.5}"#, "weight is \"1.5\", but it must be a whole number"),
        (r#"{"weight": null}"#, "weight is null, but it must be a whole number"),
        (r#"{"weight": []}"#, "weight: invalid type: sequence, expected a number"),
        (r#"{"weight": 1, "weight": 2}"#, "weight is set, but it must not be set twice"),
        (
            r#"{"role": "Primary"}"#,
            "role is \"Primary\", but it must be \"unknown\", \"primary\" or \"replica\"",
        ),
        (r#"{"role": null}"#, "role is null, but it must be \"unknown\", \"primary\""),
        (r#"{"labels": {"zone": null}}"#, "labels: zone is null, but it must be text"),
        (r#"{"labels": {"zone": {}}}"#, "labels: zone: invalid type: map"),
        (r#"{"labels": {"a": 1, "a": 2}}"#, "labels: a is set, but it must not be set twice"),
        (r#"{"labels": "a"}"#, "labels: invalid type: string \"a\", expected labels"),
        (
            r#"{"password": "hush"}"#,
            "password is set, but it is no option of a node; there are role, weight, labels",
        ),
        (r#""replica""#, "invalid type: string \"replica\", expected the options of a node"),
    ] {
        let error = serde_json::from_str::<NodeOptions>(json).expect_err(json).to_string();
        assert!(error.starts_with(said), "{json}: {error}");
        assert!(!error.contains("hush"), "{error}");
    }
    let error = serde_json::from_str::<Role>("\"leader\"").unwrap_err().to_string();
    assert!(error.starts_with("role is \"leader\", but it must be \"unknown\", "), "{error}");
    for text in ["db1", "db1:0", "postgres://u:hush@h:5432"] {
        let own = text.parse::<Endpoint>().unwrap_err().to_string();
        let error = serde_json::from_str::<Endpoint>(&format!("{text:?}")).unwrap_err().to_string();
        assert!(error.starts_with(&own), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }
}
