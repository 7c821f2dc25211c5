//! Several nodes: which one serves, what happens when one comes, goes, fails or changes its role.

#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use millpond::cluster::{
    Cluster, ClusterBuilder, ClusterError, ClusterGuard, Endpoint, Key, Member, NodeError,
    NodeHandle, NodeOptions, NodeView, Policy, Role, WeakCluster,
};
use millpond::{
    AcquireError, CheckPolicy, Condition, Config, DrainReport, Health, Hooks, Manager,
    OperationError, PoolBuilder, Priority, Shed, Stage, from_fn,
};
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fmt;
use std::future::{Future, pending, ready};
use std::iter::successors;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::task::{Poll, Wake};
use std::time::Duration;
use tokio::time::timeout;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// The largest when this was written, without optimisation or with.
const LARGEST_FUTURE: usize = if cfg!(feature = "tracing") { 1408 } else { 1368 };

type TestCluster = Cluster<String, TestManager>;
type Guard<'c> = ClusterGuard<'c, String, TestManager>;
type Served<'c> = Result<Guard<'c>, ClusterError<String, TestError>>;

fn builder() -> ClusterBuilder<String, TestManager> {
    Cluster::builder().name("test").pools(|pool| pool.max_size(4)).acquire_timeout(PATIENCE)
}

/// A cluster of these nodes, and the managers of their pools.
fn cluster_of<const N: usize>(
    builder: ClusterBuilder<String, TestManager>,
    nodes: [(&str, NodeOptions); N],
) -> (TestCluster, [TestManager; N]) {
    let cluster = builder.build().unwrap();
    let managers = nodes.map(|(key, options)| {
        let manager = TestManager::new();
        cluster.add_node_with(key.to_owned(), manager.clone(), options).unwrap();
        manager
    });
    (cluster, managers)
}

fn plain() -> NodeOptions {
    NodeOptions::default()
}

fn primary() -> NodeOptions {
    plain().role(Role::Primary)
}

fn replica() -> NodeOptions {
    plain().role(Role::Replica)
}

/// Asserts the conservation law of each node at rest.
async fn settled<const N: usize>(cluster: &TestCluster, managers: &[TestManager; N]) {
    for (key, manager) in cluster.nodes().iter().zip(managers) {
        eventually("nothing is under way", || {
            let counts = cluster.node(key).unwrap().metrics().counts;
            counts.waiters + counts.connecting + counts.checking + counts.closing + counts.in_use
                == 0
        })
        .await;
        let metrics = cluster.node(key).unwrap().metrics();
        let alive = metrics.counts.alive();
        assert_eq!(metrics.created, metrics.closed.total() + alive as u64, "{key}: {metrics:?}");
        assert_eq!(manager.ledger.live(), alive, "{key}: {metrics:?}");
    }
}

/// How often each node serves in so many acquires, each given back before the next.
async fn spread(
    cluster: &TestCluster,
    policy: Policy<'_, String>,
    acquires: usize,
) -> HashMap<String, usize> {
    let mut served = HashMap::new();
    for _ in 0..acquires {
        let guard = cluster.acquire_any(policy).await.unwrap();
        *served.entry(guard.node().clone()).or_default() += 1;
    }
    served
}

fn assert_near(what: &str, count: usize, expected: usize) {
    let (count, expected) = (count as f64, expected as f64);
    assert!((count - expected).abs() <= expected * 0.05, "{what}: {count} instead of {expected}");
}

#[tokio::test]
async fn an_acquire_gets_a_connection_of_the_node_that_it_names() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let a = cluster.acquire("a").await.unwrap();
    let b = cluster.acquire("b").await.unwrap();
    assert_eq!((a.node().as_str(), b.node().as_str()), ("a", "b"));
    assert_eq!(managers.each_ref().map(|manager| manager.ledger.live()), [1, 1]);
    assert!(Arc::ptr_eq(&a.manager().ledger, &managers[0].ledger));
    assert!(std::ptr::eq(AsRef::<Conn>::as_ref(&b), &*b));
    drop((a, b));
    assert_eq!(cluster.acquire("a").await.unwrap().info().uses, 2);
    assert_eq!(managers[0].ledger.opened(), 1);
    settled(&cluster, &managers).await;
}

#[tokio::test]
async fn each_pool_is_settled_by_its_node_after_what_all_have_in_common() {
    let created = Arc::new(Mutex::new(Vec::new()));
    let told = created.clone();
    let builder = builder().pools(|pool| pool.max_size(3).check(CheckPolicy::Never)).pools_for(
        move |key, options, pool| {
            let (key, told) = (key.clone(), told.clone());
            let hooks =
                Hooks::new().on_create(move |_: &Conn| told.lock().unwrap().push(key.clone()));
            let pool = pool.hooks(hooks);
            match options.labels.get("most") {
                Some(most) => pool.max_size(most.parse().unwrap()),
                None => pool,
            }
        },
    );
    let most = |most: &str| plain().label("most", most);
    let nodes = [("a", most("5")), ("b", plain()), ("c", most("1"))];
    let (cluster, _managers) = cluster_of(builder, nodes);
    let sizes =
        || -> Vec<usize> { cluster.status().nodes.iter().map(|node| node.pool.max_size).collect() };
    assert_eq!(sizes(), [5, 3, 1]);
    for key in ["a", "b", "c"] {
        let held = cluster.acquire(key).await.unwrap();
        assert_eq!(held.node(), key);
    }
    assert_eq!(*created.lock().unwrap(), ["a", "b", "c"]);
    assert!(cluster.status().nodes.iter().all(|it| it.pool.config.check == CheckPolicy::Never));
    // Other options are for the next pool.
    cluster.set_options("a", most("2")).unwrap();
    assert_eq!(sizes(), [5, 3, 1]);
    drop(cluster.replace("a", TestManager::new(), SECOND).await.unwrap());
    assert_eq!(sizes(), [2, 3, 1]);
    let error = cluster.add_node_with("d".to_owned(), TestManager::new(), most("0")).unwrap_err();
    assert_eq!(error.to_string(), "node d: max_size is 0, but it must be from 1 to 1048576");
}

#[tokio::test(start_paused = true)]
async fn a_handle_pauses_and_runs_the_maintenance_of_its_node_alone() {
    let settle =
        |pool: PoolBuilder<Member<String, TestManager>>| pool.max_size(4).idle_timeout(10 * SECOND);
    let nodes = [("a", plain()), ("b", plain())];
    let (cluster, managers) = cluster_of(builder().pools(settle), nodes);
    let a = cluster.node("a").unwrap();
    a.maintenance().pause();
    drop([cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()]);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(managers.each_ref().map(|manager| manager.ledger.live()), [1, 0]);
    assert!(a.maintenance().is_paused());
    a.maintenance().resume();
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(managers.map(|manager| manager.ledger.live()), [0, 0]);
    // Nor does it keep from others what they need.
    let (cluster, _, _) = capped(1, 1, [("a", plain()), ("b", plain())]);
    cluster.node("a").unwrap().maintenance().pause();
    drop(cluster.acquire("a").await.unwrap());
    assert_eq!(cluster.acquire("b").await.unwrap().node(), "b");
}

#[tokio::test]
async fn a_handle_goes_to_its_node_until_that_is_gone() {
    let builder = builder().pools(|pool| pool.max_size(1)).acquire_timeout(20 * MILLISECOND);
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let error = cluster.node("c").unwrap_err();
    assert_eq!(error.to_string(), "cluster test has no node c; its nodes are: a, b");
    let (a, b) = (cluster.node("a").unwrap(), cluster.node("b").unwrap());
    let held = a.acquire().await.unwrap();
    assert_eq!((a.key().as_str(), held.manager().key().as_str()), ("a", "a"));
    let error = a.acquire().await.unwrap_err();
    assert!(
        matches!(&error, ClusterError::Node(node) if matches!(node.source, AcquireError::Timeout(_))),
        "{error}"
    );
    drop(held);
    drop(a.acquire().await.unwrap());
    assert_eq!(managers[0].ledger.opened(), 1);
    drop(cluster.replace("a", TestManager::new(), SECOND).await.unwrap());
    assert!(matches!(a.acquire().await, Err(ClusterError::Removed(_))));
    drop(cluster.node("a").unwrap().acquire().await.unwrap());
    managers[1].connect.always(Act::Error);
    assert!(b.acquire().await.unwrap_err().to_string().starts_with("node b: "));
    managers[1].connect.calm();
    cluster.close().await;
    assert!(matches!(b.acquire().await, Err(ClusterError::Closed { .. })));
    assert!(matches!(cluster.node("b"), Err(ClusterError::Closed { .. })));
}

#[tokio::test]
async fn an_unknown_node_is_named_and_so_are_those_that_there_are() {
    let (cluster, _) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let error = cluster.acquire("c").await.unwrap_err();
    assert!(matches!(error, ClusterError::UnknownNode(_)));
    assert_eq!(error.to_string(), "cluster test has no node c; its nodes are: a, b");
    assert!(cluster.node("c").is_err());
    let error = cluster.remove_node("c", SECOND).await.unwrap_err();
    assert_eq!(error.to_string(), "cluster test has no node c; its nodes are: a, b");
    let error = cluster.replace("c", TestManager::new(), SECOND).await.unwrap_err();
    assert!(matches!(error, NodeError::Unknown { .. }));
    assert!(matches!(cluster.set_options("c", plain()), Err(NodeError::Unknown { .. })));
}

#[tokio::test]
async fn of_many_nodes_an_error_names_the_first_few() {
    let cluster = builder().build().unwrap();
    let error = cluster.acquire("x").await.unwrap_err();
    assert!(error.to_string().ends_with("its nodes are: none"), "{error}");
    for number in 0..20 {
        cluster.add_node(number.to_string(), TestManager::new()).unwrap();
    }
    let error = cluster.acquire("x").await.unwrap_err();
    assert!(error.to_string().ends_with("0, 1, 2, 3, 4, 5, 6, 7 and 12 more"), "{error}");
}

#[tokio::test]
async fn a_second_node_with_one_key_is_refused_and_the_first_one_stays() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain())]);
    let held = cluster.acquire("a").await.unwrap();
    let other = TestManager::new();
    let error = cluster.add_node("a".to_owned(), other.clone()).unwrap_err();
    assert_eq!(error.to_string(), "cluster test has a node a already");
    drop(held);
    drop(cluster.acquire("a").await.unwrap());
    assert_eq!((managers[0].ledger.opened(), other.ledger.opened()), (1, 0));
}

#[tokio::test]
async fn settings_out_of_range_are_refused_and_name_the_node() {
    let cluster = builder().pools(|pool| pool.max_size(0)).build().unwrap();
    let error = cluster.add_node("a".to_owned(), TestManager::new()).unwrap_err();
    assert_eq!(error.to_string(), "node a: max_size is 0, but it must be from 1 to 1048576");
    let cluster = builder().build().unwrap();
    let none = cluster.add_node_with("a".to_owned(), TestManager::new(), plain().weight(0));
    let rule = "node a: weight is 0, but it must be at least 1: remove the node to give it no load";
    assert_eq!(none.unwrap_err().to_string(), rule);
    let more = cluster.add_node_with("a".to_owned(), TestManager::new(), plain().weight(1_000_001));
    assert!(more.unwrap_err().to_string().contains("must be at most 1,000,000"));
    assert!(cluster.nodes().is_empty());
    cluster.add_node("a".to_owned(), TestManager::new()).unwrap();
    assert_eq!(cluster.set_options("a", plain().weight(0)).unwrap_err().to_string(), rule);
    for (field, builder) in [
        ("acquire_timeout", builder().acquire_timeout(Duration::ZERO)),
        ("try_next_after", builder().try_next_after(Duration::ZERO)),
        ("slow_start", builder().slow_start(Duration::ZERO)),
    ] {
        assert_eq!(builder.build().unwrap_err().field(), field);
    }
}

#[tokio::test]
async fn reserved_connections_are_refused_as_no_acquire_of_a_cluster_has_a_priority() {
    let mut config = Config::default();
    config.reserved = (Priority::High, 1);
    for cap in [None, Some(5)] {
        let config = config.clone();
        let builder = builder().pools(move |pool| pool.config(config.clone()));
        let cluster = builder.max_connections(cap).build().unwrap();
        let error = cluster.add_node("a".to_owned(), TestManager::new()).unwrap_err();
        let rule = "it must be 0 in a cluster, where no acquire has a priority";
        assert_eq!(error.to_string(), format!("node a: reserved is 1, but {rule}"));
        let NodeError::Config { error, .. } = error else { panic!("{error}") };
        assert_eq!((error.field(), cluster.nodes().len()), ("reserved", 0));
    }
}

#[tokio::test]
async fn settings_that_are_the_clusters_business_are_refused_at_its_pools() {
    let config = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        let pools = move |pool: PoolBuilder<_>| pool.config(config.clone());
        let builder: ClusterBuilder<String, TestManager> = Cluster::builder().name("test");
        builder.pools(pools)
    };
    let add = |builder: ClusterBuilder<String, TestManager>| {
        let cluster = builder.build().unwrap();
        cluster.add_node("a".to_owned(), TestManager::new())
    };
    let name: fn(&mut Config) = |config| config.name = "test".into();
    let timeout: fn(&mut Config) = |config| config.acquire_timeout = 100 * MILLISECOND;
    let fail_fast: fn(&mut Config) = |config| config.fail_fast = true;
    for (field, value, builder) in [
        ("name", "test", config(name).name("other")),
        ("acquire_timeout", "100ms", config(timeout)),
        ("fail_fast", "true", config(fail_fast)),
    ] {
        let error = add(builder).expect_err(field);
        let rule = format!("must be left to the cluster: set it by ClusterBuilder::{field}");
        assert_eq!(error.to_string(), format!("node a: {field} is {value}, but it {rule}"));
    }
    // What the cluster has anyway may be said.
    add(config(name)).unwrap();
    add(config(timeout).acquire_timeout(100 * MILLISECOND)).unwrap();
    add(config(fail_fast).fail_fast(true)).unwrap();
}

#[tokio::test]
async fn an_endpoint_becomes_a_node_by_the_template_and_only_by_it() {
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let template = {
        let asked = asked.clone();
        move |endpoint: &Endpoint| {
            asked.lock().unwrap().push(endpoint.to_string());
            TestManager::new()
        }
    };
    let cluster = builder().template(template).build().unwrap();
    cluster.add_endpoint("a", "db1:5432".parse().unwrap()).unwrap();
    assert_eq!(cluster.acquire("a").await.unwrap().node(), "a");
    assert_eq!(*asked.lock().unwrap(), ["db1:5432"]);
    let cluster = builder().build().unwrap();
    let error = cluster.add_endpoint("a", "db1:5432".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("node a is given by its endpoint db1:5432"), "{error}");
    assert!(error.to_string().contains("ClusterBuilder::template"), "{error}");
}

#[tokio::test]
async fn an_endpoint_may_be_added_with_a_role_and_a_weight() {
    let cluster = builder().template(|_: &Endpoint| TestManager::new()).build().unwrap();
    let options = replica().weight(3);
    cluster.add_endpoint_with("a", "db1:5432".parse().unwrap(), options).unwrap();
    let node = &cluster.status().nodes[0];
    assert_eq!((node.key.as_str(), node.role, node.weight), ("a", Role::Replica, 3));
}

/// What is written once for all clusters, whatever their keys and managers are.
async fn reaches<K: Key, M: Manager>(
    cluster: &Cluster<K, M>,
    key: &K,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    drop(cluster.acquire(key).await?);
    drop(cluster.node(key)?.acquire().await?.into_owned());
    Ok(())
}

#[tokio::test]
async fn whoever_knows_nothing_of_a_key_passes_a_clusters_errors_on() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain())]);
    reaches(&cluster, &"a".to_owned()).await.unwrap();
    let error = reaches(&cluster, &"b".to_owned()).await.unwrap_err();
    assert_eq!(error.to_string(), "cluster test has no node b; its nodes are: a");
    settled(&cluster, &managers).await;
}

/// What an error says, and then all that has led to it.
fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let causes = successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn no_error_of_a_cluster_says_anything_twice() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, [a, b, _]) = cluster_of(builder(), nodes);
    let of = |error: &ClusterError<String, TestError>| chain(error);
    let mut chains = vec![of(&cluster.acquire("x").await.unwrap_err())];
    let weight = cluster.set_options("a", plain().weight(0)).unwrap_err();
    chains.push(chain(&weight));
    let held = cluster.acquire("a").await.unwrap();
    a.connect.always(Act::Error);
    let timeout = cluster.acquire("a").await.unwrap_err();
    assert!(timeout.to_string().starts_with("node a: pool test/a: no connection"), "{timeout}");
    assert_eq!(chain(&timeout)[1..], ["scripted connect error"]);
    chains.push(of(&timeout));
    held.discard();
    chains.push(of(&cluster.acquire("a").await.unwrap_err()));
    b.connect.always(Act::Permanent);
    let permanent = cluster.acquire("b").await.unwrap_err();
    assert_eq!(chain(&permanent)[1..], ["scripted connect error"]);
    for error in [&timeout, &permanent] {
        assert!(TestError::within(error).is_some(), "the manager's own error is found: {error:?}");
    }
    chains.push(of(&permanent));
    chains.push(of(&cluster.acquire_any(Policy::Primary).await.unwrap_err()));
    let handle = cluster.node("c").unwrap();
    drop(cluster.remove_node("c", SECOND).await.unwrap());
    chains.push(of(&handle.acquire().await.unwrap_err()));
    cluster.close().await;
    chains.push(of(&cluster.acquire("a").await.unwrap_err()));
    for said in chains {
        for pair in said.windows(2) {
            assert!(!pair[0].contains(&pair[1]), "{said:#?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_has_the_cause_for_its_source_and_says_who_holds_what_and_what_no_node_is() {
    let builder = builder().pools(|pool| pool.max_size(1)).acquire_timeout(3 * SECOND);
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", replica())]);
    let held = cluster.acquire("a").await.unwrap();
    managers[1].connect.always(Act::Error);
    let error = cluster.acquire_any(Policy::RoundRobin).await.unwrap_err();
    let ClusterError::Timeout(unserved) = &error else { panic!("{error}") };
    let [a, b] = &*unserved.nodes else { panic!("{error}") };
    assert_eq!((a.stage, b.stage), (Stage::Queued, Stage::ConnectFailing));
    assert_eq!(a.longest_held.and_then(|holder| holder.site).unwrap().file(), "tests/cluster.rs");
    let last = b.last_connect_error.as_ref().map(|failed| &failed.error);
    assert!(matches!(last, Some(OperationError::Failed(error)) if error.what == "connect"));
    // Of the only node where connecting fails, though another was waited at first.
    assert_eq!(chain(&error)[1..], ["scripted connect error"]);
    assert!(TestError::within(&error).is_some(), "the manager's own error is found: {error:?}");
    let said = error.to_string();
    assert!(said.contains("a (role unknown) is degraded: the only connection is in use"), "{said}");
    assert!(said.contains("; held longest: connection 1"), "{said}");
    assert!(said.contains(", acquired at tests/cluster.rs:"), "{said}");
    assert!(said.contains("; b (replica) is down: connecting fails ["), "{said}");
    drop(held);

    // Of the one that was waited at first. What is not the same is said of the other one too.
    managers[0].condition.once(Act::Error);
    managers[0].connect.always(Act::Never);
    drop(cluster.acquire("a").await.unwrap());
    let first_a = first("a");
    let error = cluster.acquire_any(Policy::Rank(&first_a)).await.unwrap_err();
    assert_eq!(chain(&error)[1..], ["scripted connect error"], "one at a is under way");
    tokio::time::sleep(5 * SECOND).await;
    let first_b = first("b");
    let error = cluster.acquire_any(Policy::Rank(&first_b)).await.unwrap_err();
    assert_eq!(chain(&error)[1..], ["scripted connect error"]);
    let said = error.to_string();
    let of_a =
        "a (role unknown) is down: connecting fails: no answer within 5s (connect_timeout) [";
    assert!(
        said.contains(of_a) && said.contains("; b (replica) is down: connecting fails ["),
        "{said}"
    );

    let primary = cluster.acquire_any(Policy::Primary).await.unwrap_err().to_string();
    let begins =
        "no connection of cluster test for the primary within 3.0s: no node is a primary: a (";
    assert!(primary.starts_with(begins), "{primary}");
    let none = cluster.acquire_any(Policy::Rank(&|_| None)).await.unwrap_err().to_string();
    assert!(
        none.contains(" the caller's own choice within 3.0s: it allows no node: a ("),
        "{none}"
    );
}

#[tokio::test]
async fn an_empty_cluster_says_so_at_the_deadline_or_at_once() {
    let cluster = builder().acquire_timeout(20 * MILLISECOND).build().unwrap();
    let error = cluster.acquire_any(Policy::RoundRobin).await.unwrap_err();
    assert!(matches!(error, ClusterError::Timeout(_)));
    assert!(error.to_string().ends_with("there are no nodes"), "{error}");
    let cluster = builder().fail_fast(true).build().unwrap();
    let error = cluster.acquire_any(Policy::Primary).await.unwrap_err();
    assert!(matches!(error, ClusterError::Unavailable(_)));
    assert_eq!(
        error.to_string(),
        "no node of cluster test can serve the primary: there are no nodes"
    );
    let status = cluster.status();
    assert_eq!(status.health, Health::Down(vec!["there are no nodes".to_owned()]));
    assert!(status.to_string().ends_with("\n  ! there are no nodes\n"), "{status}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_an_empty_cluster_is_served_by_the_first_node_that_comes() {
    let cluster = builder().build().unwrap();
    let began = tokio::time::Instant::now();
    let mut acquire = pin!(cluster.acquire_any(Policy::RoundRobin));
    assert!(poll_once(acquire.as_mut()).is_pending());
    cluster.add_node("a".to_owned(), TestManager::new()).unwrap();
    assert_eq!(acquire.await.unwrap().node(), "a");
    assert_eq!(began.elapsed(), Duration::ZERO, "it was not told, but looked again by the clock");
}

#[tokio::test]
async fn reads_are_spread_by_the_weights_once_all_nodes_are_warm() {
    let nodes = [("a", plain().weight(1)), ("b", plain().weight(2)), ("c", plain().weight(5))];
    let (cluster, managers) = cluster_of(builder(), nodes);
    spread(&cluster, Policy::RoundRobin, 100).await;
    eventually("all nodes are warm", || managers.iter().all(|manager| manager.ledger.live() > 0))
        .await;
    let served = spread(&cluster, Policy::RoundRobin, 8_000).await;
    assert_near("a", served["a"], 1_000);
    assert_near("b", served["b"], 2_000);
    assert_near("c", served["c"], 5_000);
    settled(&cluster, &managers).await;
}

#[tokio::test]
async fn reads_are_spread_by_the_weights_beside_a_primary_that_outweighs_them_all() {
    let nodes = [("p", primary().weight(1_000)), ("q", replica()), ("r", replica().weight(3))];
    let (cluster, _managers) = cluster_of(builder(), nodes);
    for key in ["q", "r"] {
        drop(cluster.acquire(key).await.unwrap());
    }
    let served = spread(&cluster, Policy::Replica, 4_000).await;
    assert_near("q", served["q"], 1_000);
    assert_near("r", served["r"], 3_000);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_back_takes_its_share_little_by_little_beside_one_that_outweighs_it() {
    let nodes = [("p", primary().weight(1_000)), ("q", replica()), ("r", replica())];
    let (cluster, managers) = cluster_of(builder().slow_start(10 * SECOND), nodes);
    drop(cluster.acquire("r").await.unwrap());
    managers[1].connect.once(Act::Permanent);
    assert!(cluster.acquire("q").await.is_err());
    tokio::time::sleep(SECOND).await; // until it may be tried again
    drop(cluster.acquire("q").await.unwrap());
    let share = async || spread(&cluster, Policy::Replica, 1_000).await.get("q").copied();
    assert!(share().await.is_some_and(|served| (10..=120).contains(&served)));
    tokio::time::sleep(10 * SECOND).await;
    // They have been idle for so long that they are checked first.
    drop([cluster.acquire("q").await.unwrap(), cluster.acquire("r").await.unwrap()]);
    assert_near("q", share().await.unwrap(), 500);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_back_is_chosen_by_a_thread_with_another_clock_too() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain())]);
    tokio::time::sleep(100 * SECOND).await;
    managers[0].connect.once(Act::Permanent);
    assert!(cluster.acquire("a").await.is_err());
    tokio::time::sleep(SECOND).await; // until it may be tried again
    drop(cluster.acquire("a").await.unwrap());
    // For a thread without a runtime that lies ahead.
    let other = cluster.clone();
    join(std::thread::spawn(move || {
        assert!(pollster::block_on(other.acquire_any(Policy::RoundRobin)).is_ok());
    }));
}

#[tokio::test]
async fn new_weights_count_from_now_on_and_connections_stay() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    for key in ["a", "b"] {
        drop(cluster.acquire(key).await.unwrap());
    }
    cluster.set_options("a", plain().weight(9)).unwrap();
    let served = spread(&cluster, Policy::RoundRobin, 2_000).await;
    assert_near("a", served["a"], 1_800);
    assert_eq!(managers.map(|manager| manager.ledger.opened()), [1, 1]);
}

#[tokio::test]
async fn a_node_that_is_picked_cold_lets_another_serve_and_warms_up_meanwhile() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    drop(cluster.acquire("a").await.unwrap());
    managers[1].connect.always(Act::Gated);
    // Nobody waits for b as long as a has an idle connection.
    let served = spread(&cluster, Policy::RoundRobin, 10).await;
    assert_eq!(served.get("b"), None);
    eventually("b is being warmed up", || managers[1].connect.running() == 1).await;
    managers[1].connect.open(1);
    eventually("b is warm", || cluster.node("b").unwrap().metrics().counts.idle == 1).await;
    let served = spread(&cluster, Policy::RoundRobin, 100).await;
    assert_near("b", served["b"], 50);
    assert_eq!(managers[1].ledger.opened(), 1, "one at a time, and no more than were missing");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_picked_cold_warms_up_by_one_though_it_closes_others() {
    let builder = builder().pools(|pool| pool.max_size(16));
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    cluster.node("b").unwrap().warm_up(1).await.unwrap();
    let a = cluster.node("a").unwrap();
    a.warm_up(4).await.unwrap();
    managers[0].close.always(Act::Slow(3 * SECOND));
    assert_eq!(a.retain(|_, _| false), 4);
    let guard = cluster.acquire_any(Policy::Rank(&first("a"))).await.unwrap();
    assert_eq!((guard.node().as_str(), a.metrics().counts.closing), ("b", 4));
    drop(guard);
    eventually("all are closed", || a.metrics().counts.closing == 0).await;
    settled(&cluster, &managers).await;
    assert_eq!(managers[0].ledger.opened(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_be_connected_to_in_time_is_down() {
    let builder = builder().pools(|pool| pool.max_size(4).connect_timeout(2 * SECOND));
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Never);
    assert!(cluster.acquire("a").await.unwrap_err().to_string().starts_with("node a: "));
    assert!(!cluster.status().nodes[0].is_up);
    managers[1].connect.always(Act::Panic);
    hush_scripted_panics();
    assert!(cluster.acquire("b").await.is_err());
    assert!(!cluster.status().nodes[1].is_up);
}

#[tokio::test]
async fn a_connect_that_is_not_wanted_any_more_is_no_failure_of_the_node() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    drop(cluster.acquire("a").await.unwrap());
    managers[1].connect.once(Act::Gated);
    spread(&cluster, Policy::RoundRobin, 4).await;
    eventually("b is being warmed up", || managers[1].connect.running() == 1).await;
    // Somebody else opens what was to be opened.
    drop(cluster.acquire("b").await.unwrap());
    eventually("it is given up", || managers[1].connect.running() == 0).await;
    assert!(cluster.status().nodes[1].is_up);
    assert_eq!(cluster.status().health, Health::Healthy);
    settled(&cluster, &managers).await;
}

#[tokio::test]
async fn of_two_nodes_the_one_less_in_use_serves() {
    let (cluster, _managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
    drop([cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()]);
    let served = spread(&cluster, Policy::LeastInUse, 400).await;
    // Only if both draws are a, which is one time out of four.
    assert!(served["b"] > 270, "{served:?}");
    drop(held);
}

#[tokio::test]
async fn the_primary_takes_the_writes_and_replicas_the_reads() {
    let nodes = [("p", primary()), ("r1", replica()), ("r2", replica().weight(3)), ("x", plain())];
    let (cluster, _managers) = cluster_of(builder(), nodes);
    for key in ["p", "r1", "r2", "x"] {
        drop(cluster.acquire(key).await.unwrap());
    }
    let writes = spread(&cluster, Policy::Primary, 100).await;
    assert_eq!(writes, HashMap::from([("p".to_owned(), 100)]));
    let reads = spread(&cluster, Policy::ReplicasThenPrimary, 4_000).await;
    assert_eq!(reads.len(), 2, "{reads:?}");
    assert_near("r1", reads["r1"], 1_000);
    assert_near("r2", reads["r2"], 3_000);
}

#[tokio::test]
async fn reads_go_to_the_primary_only_while_no_replica_is_up() {
    let (cluster, [_, r]) = cluster_of(builder(), [("p", primary()), ("r", replica())]);
    r.connect.always(Act::Error);
    let read = cluster.acquire_any(Policy::ReplicasThenPrimary).await.unwrap();
    assert_eq!((read.node().as_str(), read.role()), ("p", Role::Primary));
    drop(read);
    r.connect.calm();
    eventually_served(&cluster, Policy::ReplicasThenPrimary, "r").await;
    // It is full, but it has not failed: whoever wants a replica waits for it.
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(cluster.acquire("r").await.unwrap());
    }
    let mut acquire = pin!(cluster.acquire_any(Policy::ReplicasThenPrimary));
    assert!(poll_once(acquire.as_mut()).is_pending());
    drop(held.pop());
    assert_eq!(acquire.await.unwrap().node(), "r");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_answer_costs_a_read_a_quarter_of_a_second() {
    let (cluster, [_, r]) = cluster_of(builder(), [("p", primary()), ("r", replica())]);
    r.connect.always(Act::Never);
    let began = tokio::time::Instant::now();
    let read = cluster.acquire_any(Policy::ReplicasThenPrimary).await.unwrap();
    assert_eq!((read.node().as_str(), began.elapsed()), ("p", 250 * MILLISECOND));

    let checks = |pool: PoolBuilder<_>| pool.check(CheckPolicy::Always);
    let nodes = [("p", primary()), ("r", replica())];
    let (cluster, [_, r]) = cluster_of(builder().pools(checks), nodes);
    drop(cluster.acquire("r").await.unwrap());
    r.check.always(Act::Never);
    let began = tokio::time::Instant::now();
    let read = cluster.acquire_any(Policy::ReplicasThenPrimary).await.unwrap();
    assert_eq!((read.node().as_str(), began.elapsed()), ("p", 250 * MILLISECOND));

    // So does one whose connections are all being checked, or prepared, for others.
    for prepares in [false, true] {
        let pools = move |pool: PoolBuilder<Member<String, TestManager>>| {
            let hooks = Hooks::new().before_acquire(|conn: &mut Conn| {
                let is_frozen = conn.server().mark.load(Ordering::SeqCst) > 0;
                Box::pin(async move { if is_frozen { pending().await } else { Ok(()) } })
            });
            let pool = pool.max_size(1);
            if prepares { pool.hooks(hooks) } else { pool.check(CheckPolicy::Always) }
        };
        let nodes = [("p", primary()), ("r", replica())];
        let (cluster, [_, r]) = cluster_of(builder().pools(pools), nodes);
        for key in ["p", "r"] {
            drop(cluster.acquire(key).await.unwrap());
        }
        r.check.always(Act::Never);
        r.ledger.mark.store(1, Ordering::SeqCst);
        let began = tokio::time::Instant::now();
        let read = || async {
            let read = cluster.acquire_any(Policy::ReplicasThenPrimary).await.unwrap();
            assert_eq!((read.node().as_str(), began.elapsed()), ("p", 250 * MILLISECOND));
        };
        tokio::join!(read(), read());
    }

    let nodes = [("p", primary()), ("r", replica())];
    let (cluster, [_, r]) = cluster_of(builder().pools(|pool| pool.max_size(1)), nodes);
    let held = cluster.acquire("r").await.unwrap();
    r.condition.once(Act::Slow(Duration::ZERO)); // dirty
    r.reset.always(Act::Never);
    drop(held);
    let began = tokio::time::Instant::now();
    let read = cluster.acquire_any(Policy::ReplicasThenPrimary).await.unwrap();
    assert_eq!((read.node().as_str(), began.elapsed()), ("p", 250 * MILLISECOND));
}

#[tokio::test(start_paused = true)]
async fn a_primary_is_spared_as_long_as_one_replica_is_merely_busy() {
    let checks = |pool: PoolBuilder<_>| pool.max_size(1).check(CheckPolicy::Always);
    let nodes = [("p", primary()), ("r1", replica()), ("r2", replica())];
    let (cluster, [_, r1, r2]) = cluster_of(builder().pools(checks), nodes);
    drop(cluster.acquire("p").await.unwrap());
    r1.connect.always(Act::Never);
    for dials in [false, true] {
        let held = cluster.acquire("r2").await.unwrap();
        let mut read = pin!(cluster.acquire_any(Policy::ReplicasThenPrimary));
        assert!(timeout(999 * MILLISECOND, read.as_mut()).await.is_err());
        // Just before a pause is over, so that what begins now has not taken one.
        let begun = if dials { &r2.connect } else { &r2.check };
        begun.once(Act::Gated);
        match dials {
            true => held.discard(),
            false => drop(held),
        }
        assert!(timeout(10 * MILLISECOND, read.as_mut()).await.is_err());
        assert_eq!(begun.running(), 1);
        begun.open(1);
        assert_eq!(read.await.unwrap().node(), "r2");
    }
}

#[tokio::test(start_paused = true)]
async fn a_primary_is_spared_while_a_replica_checks_one_connection_after_another() {
    for prepares in [false, true] {
        let pools = move |pool: PoolBuilder<Member<String, TestManager>>| {
            let hooks = Hooks::new().before_acquire(|_| {
                Box::pin(async {
                    tokio::time::sleep(200 * MILLISECOND).await;
                    Ok(())
                })
            });
            let pool = pool.max_size(1).shards(1);
            if prepares { pool.hooks(hooks) } else { pool.check(CheckPolicy::Always) }
        };
        let nodes = [("p", primary()), ("r", replica())];
        let (cluster, [_, r]) = cluster_of(builder().pools(pools), nodes);
        for key in ["p", "r"] {
            drop(cluster.acquire(key).await.unwrap());
        }
        r.check.always(Act::Slow(200 * MILLISECOND));
        let reads = [(); 8].map(|()| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                let read = cluster.acquire_any(Policy::ReplicasThenPrimary).await.unwrap();
                assert_eq!(read.node(), "r");
            })
        });
        for read in reads {
            read.await.unwrap();
        }
    }
}

#[tokio::test]
async fn who_wants_a_replica_gets_no_primary_though_no_replica_is_up() {
    let nodes = [("p", primary()), ("r1", replica()), ("r2", replica().weight(3)), ("x", plain())];
    let (cluster, managers) = cluster_of(builder().fail_fast(true), nodes);
    for key in ["p", "r1", "r2", "x"] {
        drop(cluster.acquire(key).await.unwrap());
    }
    let reads = spread(&cluster, Policy::Replica, 4_000).await;
    assert_eq!(reads.len(), 2, "{reads:?}");
    assert_near("r1", reads["r1"], 1_000);
    assert_near("r2", reads["r2"], 3_000);
    for (key, manager) in [("r1", &managers[1]), ("r2", &managers[2])] {
        manager.connect.always(Act::Error);
        manager.condition.once(Act::Error);
        drop(cluster.acquire(key).await.unwrap()); // broken, and closed
        eventually("it has no connection", || manager.ledger.live() == 0).await;
    }
    let error = cluster.acquire_any(Policy::Replica).await.unwrap_err();
    assert!(error.to_string().contains("can serve a replica: p (primary) is healthy"), "{error}");
}

/// Acquires until this node serves.
async fn eventually_served(cluster: &TestCluster, policy: Policy<'_, String>, key: &str) {
    let began = std::time::Instant::now();
    while cluster.acquire_any(policy).await.unwrap().node() != key {
        assert!(began.elapsed() < PATIENCE, "{key} never serves: {:#?}", cluster.status());
        tokio::time::sleep(MILLISECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_nearest_node_is_the_one_whose_checks_are_fastest() {
    let (cluster, managers) = cluster_of(builder(), [("far", plain()), ("near", plain())]);
    managers[0].check.always(Act::Slow(30 * MILLISECOND));
    managers[1].check.always(Act::Slow(2 * MILLISECOND));
    for key in ["far", "near"] {
        drop(cluster.acquire(key).await.unwrap());
    }
    let status = cluster.status();
    let latency = |node: usize| status.nodes[node].latency.unwrap();
    assert!(latency(0) >= 30 * MILLISECOND && latency(1) < 10 * MILLISECOND, "{status}");
    let served = spread(&cluster, Policy::Nearest, 20).await;
    assert_eq!(served, HashMap::from([("near".to_owned(), 20)]));
    // The next nearest, rather than a wait.
    let held = [(); 4].map(|()| cluster.acquire("near"));
    let mut guards = Vec::new();
    for acquire in held {
        guards.push(acquire.await.unwrap());
    }
    assert_eq!(cluster.acquire_any(Policy::Nearest).await.unwrap().node(), "far");
}

#[tokio::test]
async fn a_rank_of_the_callers_own_decides() {
    let nodes = [("a", plain().label("zone", "x")), ("b", plain().label("zone", "y").weight(7))];
    let (cluster, _managers) = cluster_of(builder(), nodes);
    let rank = |zone: &'static str| {
        move |node: &millpond::cluster::NodeView<'_, String>| {
            assert_eq!(node.counts().capacity(), 4);
            assert_eq!(node.weight(), if node.key() == "a" { 1 } else { 7 });
            assert!(node.is_up() && node.role() == Role::Unknown);
            (node.label("zone") == Some(zone)).then_some(0.0)
        }
    };
    for (zone, key) in [("x", "a"), ("y", "b")] {
        let rank = rank(zone);
        let guard = cluster.acquire_any(Policy::Rank(&rank)).await.unwrap();
        assert_eq!(guard.node(), key);
    }
    let b_first = |node: &millpond::cluster::NodeView<'_, String>| {
        Some(if node.key() == "b" { f64::NEG_INFINITY } else { f64::INFINITY })
    };
    assert_eq!(cluster.acquire_any(Policy::Rank(&b_first)).await.unwrap().node(), "b");
    // No number is no rank.
    let cluster = {
        cluster.close().await;
        cluster_of(builder().fail_fast(true), [("a", plain())]).0
    };
    let nan = |_: &millpond::cluster::NodeView<'_, String>| Some(f64::NAN);
    let error = cluster.acquire_any(Policy::Rank(&nan)).await.unwrap_err();
    assert!(
        error.to_string().contains("the caller's own choice: it allows no node: a (role unknown)"),
        "{error}"
    );
}

#[tokio::test]
async fn a_session_stays_at_its_node_and_others_do_not_move_when_a_node_goes() {
    let keys: Vec<String> = (0..8).map(|number| format!("node-{number}")).collect();
    let cluster = builder().build().unwrap();
    for key in &keys {
        cluster.add_node(key.clone(), TestManager::new()).unwrap();
    }
    let sessions: Vec<String> = (0..2_000).map(|number| format!("session {number}")).collect();
    async fn homes(cluster: &TestCluster, sessions: &[String]) -> BTreeMap<String, String> {
        let mut homes = BTreeMap::new();
        for session in sessions {
            let guard = cluster.acquire_for(session.as_bytes()).await.unwrap();
            homes.insert(session.clone(), guard.node().clone());
        }
        homes
    }
    let before = homes(&cluster, &sessions).await;
    assert_eq!(homes(&cluster, &sessions).await, before);
    for key in &keys {
        let share = before.values().filter(|home| *home == key).count();
        assert!((180..=320).contains(&share), "{key} has {share} of 2000");
    }
    drop(cluster.remove_node("node-3", SECOND).await.unwrap());
    let after = homes(&cluster, &sessions).await;
    for (session, home) in &before {
        if home == "node-3" {
            assert_ne!(after[session], "node-3");
        } else {
            assert_eq!(&after[session], home, "{session} has moved without need");
        }
    }
    cluster.add_node("node-3".to_owned(), TestManager::new()).unwrap();
    assert_eq!(
        homes(&cluster, &sessions).await,
        before,
        "whatever comes back has the same sessions"
    );
    // Twice the weight, twice the sessions; they come from all others, and nothing else moves.
    cluster.set_options("node-0", plain().weight(2)).unwrap();
    let weighted = homes(&cluster, &sessions).await;
    let share = weighted.values().filter(|home| *home == "node-0").count();
    assert!((360..=540).contains(&share), "node-0 has {share} of 2000");
    for (session, home) in &before {
        assert!(&weighted[session] == home || weighted[session] == "node-0", "{session}");
    }
}

#[tokio::test]
async fn a_session_moves_while_its_node_is_down_and_comes_back() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let session = (0..100_u32).map(|number| number.to_string());
    let mut session = session.into_iter();
    let session = loop {
        let session = session.next().expect("one of a hundred is at home at a");
        if cluster.acquire_for(session.as_bytes()).await.unwrap().node() == "a" {
            break session;
        }
    };
    managers[0].connect.always(Act::Error);
    managers[0].condition.always(Act::Error);
    drop(cluster.acquire_for(session.as_bytes()).await.unwrap()); // broken, and closed
    eventually("a has no connection", || managers[0].ledger.live() == 0).await;
    assert_eq!(cluster.acquire_for(session.as_bytes()).await.unwrap().node(), "b");
    managers[0].connect.calm();
    managers[0].condition.calm();
    let began = std::time::Instant::now();
    while cluster.acquire_for(session.as_bytes()).await.unwrap().node() != "a" {
        assert!(began.elapsed() < PATIENCE, "it never comes back");
        tokio::time::sleep(MILLISECOND).await;
    }
}

#[tokio::test]
async fn a_node_that_is_down_costs_nobody_an_acquire_and_serves_again_when_it_is_back() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Error);
    let served = spread(&cluster, Policy::RoundRobin, 200).await;
    assert_eq!(served, HashMap::from([("b".to_owned(), 200)]));
    let status = cluster.status();
    assert!(
        matches!(&status.health, Health::Degraded(reasons) if reasons[0].starts_with("node a is down"))
    );
    assert!(!status.nodes[0].is_up && status.nodes[1].is_up);
    assert_eq!(
        format!("{status:#}"),
        "cluster test: degraded; 2 nodes, 0 of 8 in use, 1 idle, 0 waiting; \
         node a is down: connecting fails: scripted connect error"
    );
    // By name it is told at once.
    let error = cluster.acquire("a").await.unwrap_err();
    let ClusterError::Node(refusal) = &error else { panic!("{error}") };
    assert!(matches!(refusal.source, AcquireError::Unavailable(_)), "{error}");
    assert!(error.to_string().starts_with("node a: "), "{error}");
    managers[0].connect.calm();
    eventually_served(&cluster, Policy::RoundRobin, "a").await;
    assert_eq!(cluster.status().health, Health::Healthy);
    settled(&cluster, &managers).await;
}

/// Acquires now and then, one at a time, until the node of this name is up; panics if it never is.
async fn comes_back_under_light_load(cluster: &TestCluster, key: &str, aim: &str) {
    for session in 0..100_u32 {
        let acquire = async {
            match aim {
                "by turns" => cluster.acquire_any(Policy::RoundRobin).await,
                "least in use" => cluster.acquire_any(Policy::LeastInUse).await,
                "nearest" => cluster.acquire_any(Policy::Nearest).await,
                "rank" => cluster.acquire_any(Policy::Rank(&|_| Some(0.0))).await,
                _ => cluster.acquire_for(&session.to_le_bytes()).await,
            }
        };
        drop(acquire.await.unwrap());
        if cluster.status().nodes.iter().any(|node| node.key == key && node.is_up) {
            return;
        }
        tokio::time::sleep(100 * MILLISECOND).await;
    }
    panic!("{aim}: it was never tried again: {}", cluster.status());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_down_is_tried_again_though_the_others_always_serve() {
    for aim in ["by turns", "least in use", "nearest", "rank", "session"] {
        let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
        drop(cluster.acquire("a").await.unwrap());
        managers[1].connect.once(Act::Permanent);
        assert!(cluster.acquire("b").await.is_err());
        assert!(!cluster.status().nodes[1].is_up);
        comes_back_under_light_load(&cluster, "b", aim).await;
    }
}

/// Two replicas of the same size, `a` and `b`, with so many connections each, all idle. The server of `a`
/// refuses any more of them, and that is known.
async fn at_its_limit(of_a: usize, of_b: usize) -> (TestCluster, [TestManager; 2]) {
    let builder = builder().pools(|pool| pool.max_size(3).check(CheckPolicy::Never));
    let (cluster, managers) = cluster_of(builder, [("a", replica()), ("b", replica())]);
    for (key, many) in [("a", of_a), ("b", of_b)] {
        cluster.node(key).unwrap().warm_up(many).await.unwrap();
    }
    managers[0].connect.always(Act::Error);
    cluster.node("a").unwrap().warm_up(of_a + 1).await.unwrap_err();
    assert!(!cluster.status().nodes[0].is_up);
    (cluster, managers)
}

#[tokio::test(start_paused = true)]
async fn what_a_node_has_that_refuses_more_serves_once_all_others_are_in_use() {
    let first_a = first("a");
    for policy in [
        Policy::Replica,
        Policy::ReplicasThenPrimary,
        Policy::RoundRobin,
        Policy::LeastInUse,
        Policy::Nearest,
        Policy::Rank(&first_a),
    ] {
        let (cluster, managers) = at_its_limit(2, 3).await;
        let began = tokio::time::Instant::now();
        let (tried, checked) = (managers[0].connect.calls(), managers[0].check.calls());
        let mut held = Vec::new();
        for (key, checks) in [("b", 0), ("b", 0), ("b", 0), ("a", 1), ("a", 2)] {
            let guard = cluster.acquire_any(policy).await.unwrap();
            assert_eq!(guard.node(), key, "{policy:?}");
            assert_eq!(managers[0].check.calls() - checked, checks, "{policy:?}");
            held.push(guard);
        }
        // Now nothing is idle anywhere: whatever comes back serves.
        let mut waits = [(); 4].map(|()| Box::pin(cluster.acquire_any(policy)));
        for wait in &mut waits {
            assert!(poll_once(wait.as_mut()).is_pending(), "{policy:?}");
        }
        for (wait, key) in waits.iter_mut().zip(["a", "b", "a", "b"]) {
            let place = held.iter().position(|guard| guard.node() == key).unwrap();
            drop(held.swap_remove(place));
            let Poll::Ready(served) = poll_once(wait.as_mut()) else { panic!("{key}: {policy:?}") };
            assert_eq!(served.as_ref().unwrap().node(), key, "{policy:?}");
            held.push(served.unwrap());
        }
        assert_eq!(managers[0].connect.calls(), tried, "{policy:?}: something was opened for them");
        assert_eq!(began.elapsed(), Duration::ZERO, "{policy:?}");
        drop(held);
        settled(&cluster, &managers).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_node_has_that_refuses_more_is_taken_by_whom_the_others_have_no_room_for() {
    // Of what b has room for, all is being opened, or only the first, since none has been before.
    for of_b in [1, 0] {
        let (cluster, managers) = at_its_limit(2, of_b).await;
        managers[1].connect.always(Act::Gated);
        let held = hold(&cluster, "b", of_b).await;
        let waits = (of_b..3).map(|_| Box::pin(cluster.acquire_any(Policy::RoundRobin)));
        let mut waits: Vec<_> = waits.collect();
        for wait in &mut waits {
            assert!(poll_once(wait.as_mut()).is_pending(), "b has room for {}", 3 - of_b);
        }
        let of_a = || cluster.node("a").unwrap().metrics().counts;
        assert_eq!((of_a().idle, of_a().in_use), (2, 0));
        // That is for those who have come first.
        let began = tokio::time::Instant::now();
        let served = cluster.acquire_any(Policy::RoundRobin).await.unwrap();
        assert_eq!((served.node().as_str(), began.elapsed()), ("a", Duration::ZERO));
        managers[1].connect.open(waits.len());
        let mut guards = Vec::new();
        for wait in waits {
            guards.push(wait.await.unwrap());
        }
        assert!(guards.iter().all(|guard| guard.node() == "b"), "{guards:?}");
        drop((held, served, guards));
        settled(&cluster, &managers).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_node_has_that_refuses_more_is_taken_if_another_does_not_answer() {
    let (cluster, managers) = at_its_limit(1, 0).await;
    managers[1].connect.always(Act::Never);
    let began = tokio::time::Instant::now();
    let guard = cluster.acquire_any(Policy::RoundRobin).await.unwrap();
    assert_eq!((guard.node().as_str(), began.elapsed()), ("a", 250 * MILLISECOND));
}

#[tokio::test(start_paused = true)]
async fn where_what_a_node_has_does_not_pass_its_check_nothing_is_opened_in_its_place() {
    let (cluster, managers) = at_its_limit(2, 3).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(cluster.acquire("b").await.unwrap());
    }
    managers[0].check.always(Act::Error);
    let tried = managers[0].connect.calls();
    let mut acquire = pin!(cluster.acquire_any(Policy::Replica));
    assert!(timeout(100 * MILLISECOND, acquire.as_mut()).await.is_err());
    let a = cluster.node("a").unwrap().metrics();
    assert_eq!((a.counts.alive(), a.closed.failed_check), (0, 2));
    assert_eq!(managers[0].connect.calls(), tried);
    drop(held.pop());
    assert_eq!(acquire.await.unwrap().node(), "b");
}

#[tokio::test(start_paused = true)]
async fn whoever_has_one_opened_at_a_node_that_refuses_it_has_the_next_one_do_so_at_once() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let _held = cluster.acquire("a").await.unwrap();
    managers[0].connect.always(Act::Slow(10 * MILLISECOND));
    managers[0].connect.once(Act::Gated);
    let began = tokio::time::Instant::now();
    let first_a = first("a");
    let mut acquire = pin!(cluster.acquire_any(Policy::Rank(&first_a)));
    assert!(poll_once(acquire.as_mut()).is_pending());
    eventually("it connects", || managers[0].connect.running() == 1).await;
    managers[0].connect.refuse();
    assert_eq!(acquire.await.unwrap().node(), "b");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_handed_an_unchecked_connection_of_a_node_that_is_frozen_nor_waits_for_its_check()
{
    let (cluster, managers) = at_its_limit(2, 3).await;
    managers[0].check.always(Act::Never);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(cluster.acquire("b").await.unwrap());
    }
    let (began, of_a) = (tokio::time::Instant::now(), cluster.node("a").unwrap());
    let mut waits = [(); 4].map(|()| Box::pin(cluster.acquire_any(Policy::Replica)));
    for wait in &mut waits {
        assert!(poll_once(wait.as_mut()).is_pending());
    }
    assert_eq!((managers[0].check.running(), of_a.metrics().counts.checking), (2, 2));
    let [one, two, three, _four] = &mut waits;
    // What comes back elsewhere serves at once, and so does a node that comes; the check goes on.
    drop(held.pop());
    let served = one.await.unwrap();
    assert_eq!(served.node(), "b");
    let new = TestManager::new();
    cluster.add_node_with("c".to_owned(), new, replica()).unwrap();
    let guards = [two.await.unwrap(), three.await.unwrap()];
    assert!(guards.iter().all(|guard| guard.node() != "a"), "{guards:?}");
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(of_a.metrics().counts.checking, 2);
    eventually("its connections are closed", || of_a.metrics().counts.alive() == 0).await;
    assert_eq!((of_a.metrics().acquires, of_a.metrics().closed.failed_check), (0, 2));
}

/// Its first connect fails.
struct FailsFirst(Mutex<Option<SlowToTell>>);

impl Manager for FailsFirst {
    type Connection = ();
    type Error = SlowToTell;

    async fn connect(&self) -> Result<(), SlowToTell> {
        self.0.lock().unwrap().take().map_or(Ok(()), Err)
    }
}

/// It asks before it is told for the first time, and is told when to go on.
#[derive(Debug)]
struct SlowToTell(Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>);

impl fmt::Display for SlowToTell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((asks, goes_on)) = self.0.lock().unwrap().take() {
            asks.send(()).unwrap();
            goes_on.recv().unwrap();
        }
        f.write_str("scripted connect error")
    }
}

impl std::error::Error for SlowToTell {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_down_if_its_pool_has_noted_a_failure_after_a_success() {
    let (asks, asked) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel();
    let error = SlowToTell(Mutex::new(Some((asks, goes_on))));
    let manager = FailsFirst(Mutex::new(Some(error)));
    let builder = Cluster::builder().pools(|pool| pool.max_size(2)).acquire_timeout(PATIENCE);
    let cluster = builder.build().unwrap();
    cluster.add_node("a".to_owned(), manager).unwrap();
    let fails = tokio::spawn({
        let node = cluster.node("a").unwrap();
        async move { node.warm_up(2).await }
    });
    asked.recv().unwrap();
    // The cluster knows, and the pool not yet. Another connect begins later, succeeds, and is noted first.
    let _held = cluster.acquire("a").await.unwrap();
    go_on.send(()).unwrap();
    joined(fails).await.unwrap_err();
    assert!(cluster.node("a").unwrap().metrics().last_connect_error.is_some());
    assert!(!cluster.status().nodes[0].is_up, "a failure is the last that its pool knows of");
}

/// Asks for a connection of `a` as soon as it is woken while that is up.
struct Asks {
    cluster: TestCluster,
    /// Whether it was refused.
    refused: OnceLock<bool>,
}

impl Wake for Asks {
    fn wake(self: Arc<Self>) {
        if self.cluster.status().nodes[0].is_up {
            self.refused.get_or_init(|| {
                let answer = poll_once(pin!(self.cluster.acquire("a")));
                matches!(answer, Poll::Ready(Err(_)))
            });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_back_refuses_nobody_any_more() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain())]);
    managers[0].connect.once(Act::Error);
    cluster.acquire("a").await.unwrap_err();
    let asks = Arc::new(Asks { cluster: cluster.clone(), refused: OnceLock::new() });
    let mut acquire = pin!(cluster.acquire_any(Policy::RoundRobin));
    assert!(poll_with(acquire.as_mut(), &asks.clone().into()).is_pending());
    eventually("a is back", || asks.refused.get().is_some()).await;
    assert_eq!(asks.refused.get(), Some(&false));
    drop(acquire.await.unwrap());
    settled(&cluster, &managers).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_new_connections_fail_in_a_hook_is_down() {
    hush_scripted_panics();
    for panics in [false, true] {
        let pools = move |pool: PoolBuilder<Member<String, TestManager>>| {
            let marked = |conn: &Conn| conn.server().mark.load(Ordering::SeqCst) == PRIMARY;
            let hooks = Hooks::new();
            pool.hooks(if panics {
                hooks.on_create(move |conn: &Conn| assert!(marked(conn), "scripted panic"))
            } else {
                hooks.after_connect(move |conn: &mut Conn| {
                    let error = TestError { what: "after_connect", permanent: false };
                    Box::pin(ready(if marked(conn) { Ok(()) } else { Err(error) }))
                })
            })
        };
        let nodes = [("p", primary()), ("r", replica())];
        let (cluster, managers) = cluster_of(builder().pools(pools), nodes);
        become_primary(&managers[0], true);
        let guard = cluster.acquire_any(Policy::ReplicasThenPrimary).await.unwrap();
        assert_eq!(guard.node(), "p");
        assert!(!cluster.status().nodes[1].is_up);
        drop(guard);
        // It is tried again now and then, and not with every acquire.
        let tried = managers[1].ledger.opened();
        for _ in 0..500 {
            spread(&cluster, Policy::RoundRobin, 1).await;
            tokio::time::sleep(10 * MILLISECOND).await;
        }
        let tried = managers[1].ledger.opened() - tried;
        assert!((2..=20).contains(&tried), "tried {tried} times in five seconds");
        become_primary(&managers[1], true);
        comes_back_under_light_load(&cluster, "r", "by turns").await;
    }
}

#[tokio::test]
async fn a_connect_that_nobody_needs_any_more_says_nothing_against_its_node() {
    let (cluster, managers) = cluster_of(builder(), [("p", primary()), ("r", replica())]);
    drop(cluster.acquire("p").await.unwrap());
    // In the background, since another serves meanwhile.
    managers[1].connect.once(Act::Gated);
    while managers[1].connect.running() == 0 {
        drop(cluster.acquire_any(Policy::RoundRobin).await.unwrap());
        tokio::task::yield_now().await;
    }
    // Somebody else is faster.
    drop(cluster.acquire("r").await.unwrap());
    eventually("the first one is given up", || managers[1].connect.running() == 0).await;
    assert_eq!(managers[1].connect.calls(), 2);
    assert!(cluster.status().nodes[1].is_up);
    let guard = cluster.acquire_any(Policy::ReplicasThenPrimary).await.unwrap();
    assert_eq!(guard.node(), "r");
}

#[tokio::test(start_paused = true)]
async fn nor_does_it_if_a_connect_may_take_hardly_any_time() {
    let builder = builder().pools(|pool| pool.max_size(4).connect_timeout(4 * MILLISECOND));
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    drop(cluster.acquire("a").await.unwrap());
    managers[1].connect.once(Act::Gated);
    while managers[1].connect.running() == 0 {
        drop(cluster.acquire_any(Policy::RoundRobin).await.unwrap());
        tokio::task::yield_now().await;
    }
    drop(cluster.acquire("b").await.unwrap());
    eventually("the first one is given up", || managers[1].connect.running() == 0).await;
    assert!(cluster.status().nodes[1].is_up);
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_hangs_or_panics_says_that_its_node_is_down() {
    hush_scripted_panics();
    for act in [Act::Never, Act::Panic] {
        let (cluster, managers) = cluster_of(builder(), [("a", plain())]);
        managers[0].connect.always(act);
        let error = cluster.acquire("a").await.unwrap_err();
        assert!(matches!(&error, ClusterError::Node(_)), "{error}");
        assert!(!cluster.status().nodes[0].is_up, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_error_is_for_good_is_tried_again_now_and_then() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Permanent);
    spread(&cluster, Policy::RoundRobin, 20).await;
    let tried = managers[0].connect.calls();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(cluster.acquire("b").await.unwrap());
    }
    for _ in 0..20 {
        assert!(poll_once(pin!(cluster.acquire_any(Policy::RoundRobin))).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(managers[0].connect.calls(), tried, "not with every acquire");
    drop(held);
    managers[0].connect.calm();
    let mut served = String::new();
    for _ in 0..100 {
        tokio::time::sleep(100 * MILLISECOND).await;
        // Sees to it that the other one is full, so that this one is looked at.
        let held = [cluster.acquire("b").await.unwrap(), cluster.acquire("b").await.unwrap()];
        let more = [cluster.acquire("b").await.unwrap(), cluster.acquire("b").await.unwrap()];
        let mut acquire = pin!(cluster.acquire_any(Policy::RoundRobin));
        let at_once = poll_once(acquire.as_mut());
        drop((held, more));
        let guard = match at_once {
            std::task::Poll::Ready(served) => served,
            std::task::Poll::Pending => acquire.await,
        };
        served.clone_from(guard.unwrap().node());
        if served == "a" {
            return;
        }
    }
    panic!("it was never tried again: {:#?}", cluster.status());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_back_takes_its_share_little_by_little() {
    let builder = builder().slow_start(10 * SECOND);
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Error);
    spread(&cluster, Policy::RoundRobin, 10).await;
    managers[0].connect.calm();
    eventually("a is back", || managers[0].ledger.live() > 0).await;
    let mut shares = Vec::new();
    for _ in 0..6 {
        let served = spread(&cluster, Policy::RoundRobin, 1_000).await;
        shares.push(served.get("a").copied().unwrap_or_default());
        tokio::time::sleep(2 * SECOND).await;
    }
    assert!((10..=120).contains(&shares[0]), "{shares:?}");
    assert!(shares.is_sorted(), "{shares:?}");
    assert_near("a", shares[5], 500);
}

#[tokio::test]
async fn an_acquire_that_waits_takes_the_first_connection_that_comes_back_anywhere() {
    for policy in [Policy::RoundRobin, Policy::LeastInUse, Policy::Nearest] {
        let builder = builder().pools(|pool| pool.max_size(1));
        let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
        let mut held: HashMap<String, Guard<'_>> = HashMap::new();
        for key in ["a", "b"] {
            held.insert(key.to_owned(), cluster.acquire(key).await.unwrap());
        }
        for key in ["a", "b", "b", "a"] {
            let mut acquire = pin!(cluster.acquire_any(policy));
            assert!(poll_once(acquire.as_mut()).is_pending());
            drop(held.remove(key));
            let guard = acquire.await.unwrap();
            assert_eq!(guard.node(), key, "{policy:?}");
            held.insert(key.to_owned(), guard);
        }
        drop(held);
        settled(&cluster, &managers).await;
        assert_eq!(managers.map(|manager| manager.ledger.opened()), [1, 1]);
    }
}

#[tokio::test]
async fn only_one_node_opens_a_connection_for_an_acquire() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers) = cluster_of(builder(), nodes);
    for _ in 0..3 {
        drop(cluster.acquire_any(Policy::Rank(&|node| Some(f64::from(node.key() != "b")))).await);
    }
    settled(&cluster, &managers).await;
    assert_eq!(managers.map(|manager| manager.connect.calls()), [0, 1, 0]);
}

/// Two nodes with room for so many connections each, where nobody looks at the next one because time passes.
fn unhurried(each: usize) -> (TestCluster, [TestManager; 2]) {
    let pools = move |pool: PoolBuilder<_>| pool.max_size(each).max_lifetime(Some(60 * SECOND));
    let builder = builder().pools(pools).try_next_after(Duration::MAX);
    cluster_of(builder.acquire_timeout(600 * SECOND), [("a", plain()), ("b", plain())])
}

/// So many acquires that would rather go to `a`, and have to wait.
fn in_line<'c>(
    cluster: &'c TestCluster,
    policy: Policy<'c, String>,
    many: usize,
) -> Vec<Pin<Box<dyn Future<Output = Served<'c>> + 'c>>> {
    let acquire = |_| {
        let mut acquire: Pin<Box<dyn Future<Output = _> + 'c>> =
            Box::pin(cluster.acquire_any(policy));
        assert!(poll_once(acquire.as_mut()).is_pending());
        acquire
    };
    (0..many).map(acquire).collect()
}

/// All of them are served without any time passing; answers by which nodes.
async fn served_at_once<'c>(
    acquires: Vec<Pin<Box<dyn Future<Output = Served<'c>> + 'c>>>,
) -> Vec<Guard<'c>> {
    let began = tokio::time::Instant::now();
    let mut served = Vec::new();
    for acquire in acquires {
        served.push(timeout(SECOND, acquire).await.expect("there is room").unwrap());
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    served
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_where_no_node_has_room_has_one_opened_where_there_is_some_first() {
    let policy = first("a");
    for many in [1, 3] {
        for has_outlived in [false, true] {
            let (cluster, managers) = unhurried(many);
            let held = (hold(&cluster, "a", many).await, hold(&cluster, "b", many).await);
            let mut acquires = in_line(&cluster, Policy::Rank(&policy), many + 1);
            // Who would have been the first gives up.
            drop(acquires.remove(0));
            if has_outlived {
                tokio::time::sleep(120 * SECOND).await;
            }
            for guard in held.1 {
                if has_outlived { drop(guard) } else { guard.discard() }
            }
            let served = served_at_once(acquires).await;
            assert!(served.iter().all(|guard| guard.node() == "b"));
            drop((held.0, served));
            settled(&cluster, &managers).await;
            assert_eq!(managers.map(|manager| manager.connect.calls()), [many, 2 * many]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_those_who_wait_where_no_node_has_room_each_has_one_opened_somewhere() {
    let policy = first("a");
    let (cluster, managers) = unhurried(1);
    let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()];
    let acquires = in_line(&cluster, Policy::Rank(&policy), 2);
    held.into_iter().for_each(Guard::discard);
    drop(served_at_once(acquires).await);
    settled(&cluster, &managers).await;
    assert_eq!(managers.map(|manager| manager.connect.calls()), [2, 2]);
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_when_all_room_of_a_node_is_for_others_has_one_opened_at_the_next() {
    let policy = first("a");
    // At first, one is opened at a time.
    let (cluster, managers) = unhurried(3);
    let served = served_at_once(in_line(&cluster, Policy::Rank(&policy), 6)).await;
    let of_a = served.iter().filter(|guard| guard.node() == "a").count();
    assert_eq!(of_a, 3);
    drop(served);
    settled(&cluster, &managers).await;
    assert_eq!(managers.map(|manager| manager.connect.calls()), [3, 3]);
}

#[tokio::test(start_paused = true)]
async fn whoever_has_one_opened_beside_others_who_have_has_no_second_one_opened_where_there_is_more()
 {
    let policy = first("a");
    let (cluster, [a, b]) = unhurried(2);
    a.connect.always(Act::Gated);
    b.connect.always(Act::Gated);
    // At first, one is opened at a time.
    let mut acquires = in_line(&cluster, Policy::Rank(&policy), 3);
    eventually("both connect", || a.connect.running() + b.connect.running() == 2).await;
    let c = TestManager::new();
    cluster.add_node("c".to_owned(), c.clone()).unwrap();
    for acquire in &mut acquires {
        assert!(poll_once(acquire.as_mut()).is_pending());
    }
    a.connect.open(2);
    let last = acquires.split_off(2);
    let first_two = served_at_once(acquires).await;
    b.connect.open(1);
    drop((first_two, served_at_once(last).await));
    let calls = [&a, &b, &c].map(|manager| manager.connect.calls());
    assert_eq!(calls, [2, 1, 0]);
}

/// Two threads may see the same room at the same moment.
#[test]
fn of_two_who_see_the_same_room_one_has_one_opened_elsewhere() {
    let pools = |pool: PoolBuilder<_>| pool.max_size(1);
    let builder = builder().pools(pools).try_next_after(Duration::MAX);
    let (cluster, _managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build();
    let runtime = runtime.unwrap();
    for _ in 0..500 {
        let arrived = Arc::new(AtomicUsize::new(0));
        let acquire = || {
            let (cluster, arrived) = (cluster.clone(), arrived.clone());
            runtime.spawn(async move {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
                let policy = first("a");
                cluster.acquire_any(Policy::Rank(&policy)).await.map(ClusterGuard::into_owned)
            })
        };
        let acquires = [acquire(), acquire()];
        runtime.block_on(async {
            let mut served = Vec::new();
            for acquire in acquires {
                served.push(joined(acquire).await.expect("there is room for both"));
            }
            served.into_iter().for_each(ClusterGuard::discard);
            eventually("both are closed", || cluster.status().totals.counts.alive() == 0).await;
        });
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_while_a_node_opens_one_for_others_is_served_by_the_next_that_comes() {
    let policy = first("a");
    let (cluster, [a, _]) = unhurried(1);
    drop(cluster.remove_node("b", SECOND).await.unwrap());
    a.connect.always(Act::Gated);
    let mut acquires = in_line(&cluster, Policy::Rank(&policy), 2);
    eventually("it connects", || a.connect.running() == 1).await;
    for acquire in &mut acquires {
        assert!(poll_once(acquire.as_mut()).is_pending());
    }
    cluster.add_node("c".to_owned(), TestManager::new()).unwrap();
    let second = served_at_once(acquires.drain(1..).collect()).await;
    assert_eq!(second[0].node(), "c");
    a.connect.open(1);
    assert_eq!(served_at_once(acquires).await[0].node(), "a");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_at_a_node_that_does_not_answer_is_served_where_there_is_room_next() {
    let policy = first("a");
    let pools = |pool: PoolBuilder<_>| pool.max_size(1);
    let nodes = [("a", plain()), ("b", plain())];
    let (cluster, [a, _]) = cluster_of(builder().pools(pools), nodes);
    a.connect.always(Act::Never);
    let held = cluster.acquire("b").await.unwrap();
    let mut acquire = in_line(&cluster, Policy::Rank(&policy), 1);
    assert!(timeout(251 * MILLISECOND, acquire[0].as_mut()).await.is_err());
    held.discard();
    assert_eq!(served_at_once(acquire).await[0].node(), "b");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_answer_costs_a_quarter_of_a_second() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Never);
    let first = |node: &millpond::cluster::NodeView<'_, String>| Some(f64::from(node.key() != "a"));
    let began = tokio::time::Instant::now();
    let guard = cluster.acquire_any(Policy::Rank(&first)).await.unwrap();
    assert_eq!(guard.node(), "b");
    assert_eq!(began.elapsed(), 250 * MILLISECOND);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_of_nodes_that_do_not_answer_is_down_before_their_connects_have_failed() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    for manager in &managers {
        manager.connect.always(Act::Never);
    }
    let mut acquire = pin!(cluster.acquire_any(Policy::RoundRobin));
    assert!(timeout(3 * SECOND, acquire.as_mut()).await.is_err());
    let health = cluster.status().health;
    let text = health.to_string();
    assert!(!health.is_up(), "{text}");
    assert_eq!(text.matches("is down: opening a connection has gone on for").count(), 2, "{text}");
}

#[tokio::test(start_paused = true)]
async fn while_all_nodes_are_down_an_acquire_waits_for_one_until_its_deadline() {
    let builder = builder().acquire_timeout(3 * SECOND);
    let (cluster, managers) = cluster_of(builder, [("a", primary()), ("b", replica())]);
    for manager in &managers {
        manager.connect.always(Act::Error);
    }
    let began = tokio::time::Instant::now();
    let error = cluster.acquire_any(Policy::RoundRobin).await.unwrap_err();
    assert_eq!(began.elapsed(), 3 * SECOND);
    let text = error.to_string();
    assert!(
        text.starts_with("no connection of cluster test for any node, by turns within 3.0s: "),
        "{text}"
    );
    assert!(text.contains("a (primary) is down: connecting fails ["), "{text}");
    assert!(text.contains("b (replica) is down: connecting fails ["), "{text}");
    assert_eq!(chain(&error)[1..], ["scripted connect error"]);
    let acquire = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.acquire_any(Policy::RoundRobin).await.map(|guard| guard.node().clone()) }
    });
    tokio::time::sleep(100 * MILLISECOND).await;
    managers[1].connect.calm();
    assert_eq!(joined(acquire).await.unwrap(), "b");
}

#[tokio::test]
async fn while_all_nodes_are_down_a_cluster_may_fail_fast() {
    for act in [Act::Error, Act::Permanent] {
        let builder = builder().fail_fast(true);
        let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
        for manager in &managers {
            manager.connect.always(act);
        }
        for _ in 0..3 {
            let error = cluster.acquire_any(Policy::RoundRobin).await.unwrap_err();
            let ClusterError::Unavailable(unserved) = &error else { panic!("{error}") };
            assert_eq!(unserved.nodes.len(), 2);
        }
        let error = cluster.acquire_any(Policy::Primary).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("the primary: no node is a primary: a (role unknown) is down"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_full_line_is_no_failure_of_the_node() {
    let builder = builder().pools(|pool| pool.max_size(1).max_waiters(1));
    let (cluster, managers) = cluster_of(builder, [("a", plain())]);
    let held = cluster.acquire("a").await.unwrap();
    let mut waits = pin!(cluster.acquire_any(Policy::RoundRobin));
    assert!(poll_once(waits.as_mut()).is_pending());
    let error = cluster.acquire_any(Policy::RoundRobin).await.unwrap_err();
    assert!(
        matches!(&error, ClusterError::Node(node) if matches!(node.source, AcquireError::QueueFull)),
        "{error}"
    );
    assert!(cluster.status().nodes[0].is_up);
    drop(held);
    drop(waits.await.unwrap());
    settled(&cluster, &managers).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_was_refused_and_is_in_line_by_now_waits_on_though_no_node_may_serve() {
    let builder = builder().pools(|pool| pool.max_size(1).max_waiters(1));
    let (cluster, managers) = cluster_of(builder, [("a", replica()), ("b", replica())]);
    let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()];
    let waiters = || ["a", "b"].map(|key| cluster.node(key).unwrap().metrics().counts.waiters);
    let mut acquire = pin!(cluster.acquire_any(Policy::Replica));
    {
        let mut by_name = pin!(cluster.acquire("a"));
        assert!(poll_once(by_name.as_mut()).is_pending());
        assert!(poll_once(acquire.as_mut()).is_pending());
        assert_eq!(waiters(), [1, 1], "it is refused at a");
    }
    assert!(timeout(SECOND, acquire.as_mut()).await.is_err(), "all are in use");
    assert_eq!(waiters(), [1, 1], "it is in line at a");
    cluster.set_options("a", primary()).unwrap();
    cluster.set_options("b", primary()).unwrap();
    let served = timeout(SECOND, acquire.as_mut()).await.map(|served| served.map(drop));
    assert!(served.is_err(), "{served:?}");
    cluster.set_options("a", replica()).unwrap();
    drop(held);
    assert_eq!(acquire.await.unwrap().node(), "a");
    settled(&cluster, &managers).await;
}

#[tokio::test]
async fn whoever_waits_for_a_node_that_is_removed_is_told_and_others_are_not_disturbed() {
    let builder = builder().pools(|pool| pool.max_size(1));
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let (a, b) = (cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap());
    let mut by_name = pin!(cluster.acquire("a"));
    let mut by_policy = pin!(cluster.acquire_any(Policy::RoundRobin));
    assert!(poll_once(by_name.as_mut()).is_pending());
    assert!(poll_once(by_policy.as_mut()).is_pending());
    let mut removal = pin!(cluster.remove_node("a", SECOND));
    assert!(poll_once(removal.as_mut()).is_pending());
    let error = by_name.await.unwrap_err();
    assert!(matches!(error, ClusterError::Removed(_)));
    assert_eq!(error.to_string(), "node a was removed from cluster test");
    assert!(poll_once(by_policy.as_mut()).is_pending(), "b may still serve");
    assert!(matches!(cluster.acquire("a").await, Err(ClusterError::UnknownNode(_))));
    drop(a);
    let report = removal.await.unwrap();
    assert_eq!((report.closed, report.still_out.len()), (1, 0));
    assert_eq!(managers[0].ledger.live(), 0);
    drop(b);
    assert_eq!(by_policy.await.unwrap().node(), "b");
}

#[tokio::test]
async fn who_was_served_before_the_removal_and_comes_for_it_after_that_gets_none_of_that_node() {
    for by_name in [true, false] {
        let builder = builder().pools(|pool| pool.max_size(1));
        let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
        let (a, b) = (cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap());
        let mut acquire = pin!(async {
            match by_name {
                true => cluster.acquire("a").await,
                false => cluster.acquire_any(Policy::RoundRobin).await,
            }
        });
        assert!(poll_once(acquire.as_mut()).is_pending());
        drop(a);
        assert_eq!(cluster.node("a").unwrap().metrics().counts.waiters, 0, "it is served");
        let mut removal = pin!(cluster.remove_node("a", PATIENCE));
        assert!(poll_once(removal.as_mut()).is_pending());
        if by_name {
            assert!(matches!(acquire.await, Err(ClusterError::Removed(_))));
        } else {
            assert!(poll_once(acquire.as_mut()).is_pending(), "b may still serve");
            drop(b);
            assert_eq!(acquire.await.unwrap().node(), "b");
        }
        let report = removal.await.unwrap();
        assert_eq!((report.closed, report.still_out.len(), managers[0].ledger.live()), (1, 0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_has_been_to_a_node_learns_at_once_that_it_is_gone_or_replaced() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain())]);
    let (ask, asked) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let other = std::thread::spawn({
        let (cluster, runtime) = (cluster.clone(), tokio::runtime::Handle::current());
        move || {
            for () in asked {
                let served = runtime.block_on(cluster.acquire("a"));
                tell.send(served.map(|guard| guard.info().uses)).unwrap();
            }
        }
    });
    let go = || {
        ask.send(()).unwrap();
        tokio::task::block_in_place(|| told.recv().unwrap())
    };
    assert_eq!((go().unwrap(), go().unwrap()), (1, 2));
    let manager = TestManager::new();
    drop(cluster.replace("a", manager.clone(), SECOND).await.unwrap());
    assert_eq!(go().unwrap(), 1);
    assert_eq!((managers[0].ledger.opened(), manager.ledger.opened()), (1, 1));
    drop(cluster.remove_node("a", SECOND).await.unwrap());
    assert!(matches!(go(), Err(ClusterError::UnknownNode(_))));
    cluster.close().await;
    assert!(matches!(go(), Err(ClusterError::Closed { .. })));
    drop(ask);
    other.join().unwrap();
}

#[tokio::test]
async fn a_policy_may_use_the_cluster_that_it_chooses_for() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    drop(cluster.acquire("a").await.unwrap());
    let rank = |node: &NodeView<'_, String>| {
        let Poll::Ready(Ok(guard)) = poll_once(pin!(cluster.acquire("a"))) else {
            panic!("a has an idle connection")
        };
        (guard.node() != node.key()).then_some(0.0)
    };
    for _ in 0..2 {
        assert_eq!(cluster.acquire_any(Policy::Rank(&rank)).await.unwrap().node(), "b");
    }
    settled(&cluster, &managers).await;
}

#[tokio::test]
async fn what_an_acquire_answers_and_its_future_stay_small() {
    assert_eq!(size_of::<Result<Guard<'_>, ClusterError<String, TestError>>>(), 24);
    let manager = from_fn(|| ready(Ok::<_, TestError>(0_u64)));
    let cluster = Cluster::builder().build().unwrap();
    cluster.add_node("a", manager).unwrap();
    let node = cluster.node("a").unwrap();
    let sizes = [
        ("acquire", size_of_val(&cluster.acquire("a"))),
        ("acquire_any", size_of_val(&cluster.acquire_any(Policy::RoundRobin))),
        ("the handle's acquire", size_of_val(&node.acquire())),
    ];
    eprintln!("{sizes:?}");
    for (what, size) in sizes {
        assert!(size <= LARGEST_FUTURE, "{what} has {size} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_found_at_a_node_that_is_not_wanted_any_more_is_not_held() {
    let check = |pool: PoolBuilder<_>| pool.max_size(1).check(CheckPolicy::Always);
    let (cluster, managers) = cluster_of(builder().pools(check), [("a", plain())]);
    drop(cluster.acquire("a").await.unwrap());
    let asked = AtomicUsize::new(0);
    let once =
        |_: &NodeView<'_, String>| (asked.fetch_add(1, Ordering::SeqCst) == 0).then_some(0.0);
    // It finds a connection that has to be checked, and then that no node may be used.
    let mut waits = pin!(cluster.acquire_any(Policy::Rank(&once)));
    assert!(poll_once(waits.as_mut()).is_pending());
    assert!(asked.load(Ordering::SeqCst) > 1);
    drop(timeout(SECOND, cluster.acquire("a")).await.expect("it is held").unwrap());
    assert_eq!(managers[0].ledger.opened(), 1);
}

/// A manager that counts its ends, and uses and changes its cluster in the middle of each.
struct Parting {
    ended: Arc<AtomicUsize>,
    cluster: Weak<Cluster<&'static str, Parting>>,
}

impl Manager for Parting {
    type Connection = ();
    type Error = TestError;

    async fn connect(&self) -> Result<(), TestError> {
        Ok(())
    }

    async fn check(&self, _: &mut ()) -> Result<(), TestError> {
        Ok(())
    }
}

impl Drop for Parting {
    fn drop(&mut self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
        let Some(cluster) = self.cluster.upgrade() else { return };
        assert!(matches!(poll_once(pin!(cluster.acquire("b"))), Poll::Ready(Ok(_))));
        cluster.add_node("c", Parting { ended: self.ended.clone(), cluster: Weak::new() }).unwrap();
    }
}

#[tokio::test]
async fn a_removed_node_is_gone_from_memory_once_its_threads_have_looked_again() {
    for cap in [None, Some(4)] {
        let cluster = Arc::new(Cluster::builder().max_connections(cap).build().unwrap());
        let ended = Arc::new(AtomicUsize::new(0));
        for key in ["a", "b"] {
            let manager = Parting { ended: ended.clone(), cluster: Arc::downgrade(&cluster) };
            cluster.add_node(key, manager).unwrap();
            drop(cluster.acquire(key).await.unwrap());
        }
        drop(cluster.remove_node("a", SECOND).await.unwrap());
        eventually("what is left of the node has ended", || {
            assert!(matches!(poll_once(pin!(cluster.acquire("b"))), Poll::Ready(Ok(_))));
            ended.load(Ordering::SeqCst) == 1
        })
        .await;
        assert_eq!(cluster.nodes(), ["b", "c"]);
        drop(cluster);
        eventually("so have the others", || ended.load(Ordering::SeqCst) == 3).await;
    }
}

/// A holder may drop his guard under a lock, in a panic, anywhere.
#[tokio::test]
async fn the_drop_of_a_guard_ends_nothing_of_another_node() {
    let cluster = Arc::new(Cluster::builder().build().unwrap());
    let ended = Arc::new(AtomicUsize::new(0));
    for key in ["gone", "b"] {
        let manager = Parting { ended: ended.clone(), cluster: Weak::new() };
        cluster.add_node(key, manager).unwrap();
    }
    drop(cluster.acquire("gone").await.unwrap());
    let guard = cluster.acquire("b").await.unwrap();
    drop(cluster.remove_node("gone", SECOND).await.unwrap());
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    eventually("only this thread knows of the node", || tasks() <= 1).await;
    drop(guard);
    assert_eq!(ended.load(Ordering::SeqCst), 0);
    drop(cluster.acquire("b").await.unwrap());
    eventually("an acquire has ended it", || ended.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_key_whose_hash_panics_keeps_no_connection_from_coming_back() {
    static PANICS: AtomicBool = AtomicBool::new(false);

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Moody(u8);

    impl std::hash::Hash for Moody {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            assert!(!PANICS.load(Ordering::SeqCst), "scripted panic of a key");
            state.write_u8(self.0);
        }
    }

    impl std::fmt::Display for Moody {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.fmt(f)
        }
    }

    hush_scripted_panics();
    let cluster = Cluster::<Moody, TestManager>::builder().build().unwrap();
    let manager = TestManager::new();
    cluster.add_node(Moody(0), TestManager::new()).unwrap();
    cluster.add_node(Moody(1), manager.clone()).unwrap();
    // The first of them that comes back is looked for.
    let guard = cluster.acquire(&Moody(1)).await.unwrap();
    PANICS.store(true, Ordering::SeqCst);
    drop(guard);
    PANICS.store(false, Ordering::SeqCst);
    let idle = cluster.node(&Moody(1)).unwrap().metrics().counts.idle;
    assert_eq!((idle, manager.ledger.live()), (1, 1));
}

#[tokio::test]
async fn under_a_cap_a_node_that_was_removed_with_a_connection_out_is_let_go_of_later() {
    let cluster = Arc::new(Cluster::builder().max_connections(4).build().unwrap());
    let ended = Arc::new(AtomicUsize::new(0));
    for key in ["a", "b"] {
        let manager = Parting { ended: ended.clone(), cluster: Arc::downgrade(&cluster) };
        cluster.add_node(key, manager).unwrap();
    }
    cluster.add_node("d", Parting { ended: ended.clone(), cluster: Weak::new() }).unwrap();
    let out = cluster.acquire("a").await.unwrap();
    drop(cluster.acquire("b").await.unwrap());
    drop(cluster.remove_node("a", MILLISECOND).await.unwrap());
    drop(out);
    let began = std::time::Instant::now();
    while ended.load(Ordering::SeqCst) == 0 {
        assert!(began.elapsed() < PATIENCE, "what is left of the node never ends");
        // The next one finds nothing idle, so that the cap looks.
        cluster.acquire("d").await.unwrap().discard();
    }
    assert_eq!(cluster.nodes(), ["b", "d", "c"]);
}

#[tokio::test]
async fn a_guard_outlives_the_removal_of_its_node() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain())]);
    let guard = cluster.acquire("a").await.unwrap();
    let report = cluster.remove_node("a", 10 * MILLISECOND).await.unwrap();
    assert_eq!(report.still_out.len(), 1);
    assert_eq!(guard.node(), "a");
    drop(guard);
    eventually("it is closed", || managers[0].ledger.live() == 0).await;
}

#[tokio::test]
async fn a_removal_that_is_given_up_closes_the_node_at_once() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain())]);
    let guard = cluster.acquire("a").await.unwrap();
    drop(cluster.acquire("a").await.unwrap());
    assert_eq!(managers[0].ledger.live(), 2);
    assert!(cut_after(1, cluster.remove_node("a", PATIENCE)).await.is_none());
    eventually("the idle one is closed", || managers[0].ledger.live() == 1).await;
    assert!(cluster.nodes().is_empty());
    drop(guard);
    eventually("the other one is closed", || managers[0].ledger.live() == 0).await;
}

#[tokio::test]
async fn whoever_waits_for_a_node_that_is_replaced_gets_what_is_in_its_place() {
    let builder = builder().pools(|pool| pool.max_size(1));
    let (cluster, managers) = cluster_of(builder, [("a", primary().weight(5))]);
    let held = cluster.acquire("a").await.unwrap();
    let mut by_name = pin!(cluster.acquire("a"));
    let mut by_policy = pin!(cluster.acquire_any(Policy::Primary));
    assert!(poll_once(by_name.as_mut()).is_pending());
    assert!(poll_once(by_policy.as_mut()).is_pending());
    let new = TestManager::new();
    let mut replacing = pin!(cluster.replace("a", new.clone(), PATIENCE));
    assert!(poll_once(replacing.as_mut()).is_pending());
    drop(by_name.await.unwrap());
    drop(by_policy.await.unwrap());
    assert_eq!((managers[0].ledger.live(), new.ledger.opened()), (1, 1));
    drop(held);
    assert_eq!(replacing.await.unwrap().closed, 1);
    let status = cluster.status();
    assert_eq!((status.nodes[0].role, status.nodes[0].weight), (Role::Primary, 5));
}

#[tokio::test]
async fn nodes_come_and_go_under_load_without_an_error() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers) = cluster_of(builder(), nodes);
    let served = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..16)
        .map(|number| {
            let (cluster, served) = (cluster.clone(), served.clone());
            tokio::spawn(async move {
                for turn in 0..500_usize {
                    let guard = match (number + turn) % 3 {
                        0 => cluster.acquire_any(Policy::RoundRobin).await,
                        1 => cluster.acquire_any(Policy::LeastInUse).await,
                        _ => cluster.acquire_for(&turn.to_le_bytes()).await,
                    };
                    drop(guard.expect("no acquire fails because a node goes"));
                    served.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let mut others = Vec::new();
    while served.load(Ordering::Relaxed) < 7_000 {
        let manager = TestManager::new();
        cluster.add_node("d".to_owned(), manager.clone()).unwrap();
        tokio::task::yield_now().await;
        drop(cluster.replace("a", TestManager::new(), PATIENCE).await.unwrap());
        let report = cluster.remove_node("d", PATIENCE).await.unwrap();
        assert!(report.still_out.is_empty());
        assert_eq!(manager.ledger.live(), 0, "no guard of a node is left after its drain");
        others.push(manager);
    }
    for task in tasks {
        joined(task).await;
    }
    assert_eq!(served.load(Ordering::Relaxed), 8_000);
    assert!(others.len() > 1, "nothing came and went");
    drop(cluster.remove_node("a", PATIENCE).await.unwrap());
    settled(&cluster, &[managers[1].clone(), managers[2].clone()]).await;
}

#[test]
fn what_settles_the_pool_of_a_replacement_may_change_the_cluster() {
    let cell: Arc<std::sync::OnceLock<TestCluster>> = Arc::default();
    let inside = cell.clone();
    let builder = builder().pools(move |pool| {
        if let Some(cluster) = inside.get() {
            cluster.set_options("a", plain().weight(7)).unwrap();
        }
        pool
    });
    let (cluster, _managers) = cluster_of(builder, [("a", replica())]);
    assert!(cell.set(cluster.clone()).is_ok());
    // In a thread of its own, so that there is somebody to see it if it hangs.
    join(std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let replace = cluster.replace("a", TestManager::new(), SECOND);
        drop(runtime.unwrap().block_on(replace).unwrap());
        let status = cluster.status();
        // What was changed meanwhile is not undone.
        assert_eq!((status.nodes[0].weight, status.nodes[0].role), (7, Role::Unknown));
    }));
}

#[tokio::test]
async fn a_closed_cluster_says_so_to_all_and_closes_everything() {
    let builder = builder().pools(|pool| pool.max_size(1));
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let held = cluster.acquire("a").await.unwrap();
    drop(cluster.acquire("b").await.unwrap());
    let mut by_name = pin!(cluster.acquire("a"));
    assert!(poll_once(by_name.as_mut()).is_pending());
    let mut by_policy =
        pin!(cluster.acquire_any(Policy::Rank(&|node| (node.key() == "a").then_some(0.0))));
    assert!(poll_once(by_policy.as_mut()).is_pending());
    cluster.close().await;
    cluster.close().await;
    assert!(cluster.is_closed());
    for error in [by_name.await.unwrap_err(), by_policy.await.unwrap_err()] {
        assert_eq!(error.to_string(), "cluster test is closed");
    }
    assert!(matches!(cluster.acquire("b").await, Err(ClusterError::Closed { .. })));
    assert!(matches!(cluster.acquire("x").await, Err(ClusterError::Closed { .. })));
    assert!(matches!(
        cluster.add_node("c".to_owned(), TestManager::new()),
        Err(NodeError::Closed { .. })
    ));
    assert!(matches!(cluster.remove_node("a", SECOND).await, Err(NodeError::Closed { .. })));
    assert_eq!(managers[1].ledger.live(), 0);
    drop(held);
    eventually("all is closed", || managers[0].ledger.live() == 0).await;
    assert!(matches!(cluster.status().health, Health::Down(_)));
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_a_cluster_waits_for_what_is_in_use_at_all_nodes_until_one_deadline() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers) = cluster_of(builder(), nodes);
    let (a, b) = (cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap());
    drop(cluster.acquire("c").await.unwrap());
    let began = tokio::time::Instant::now();
    let mut drain = pin!(cluster.drain(3 * SECOND));
    assert!(poll_once(drain.as_mut()).is_pending());
    assert!(matches!(cluster.acquire("a").await, Err(ClusterError::Closed { .. })));
    assert!(timeout(SECOND, drain.as_mut()).await.is_err());
    drop(a);
    let reports = drain.await;
    assert_eq!(began.elapsed(), 3 * SECOND);
    let told = |(key, report): &(String, DrainReport)| {
        (key.clone(), report.closed, report.still_out.len())
    };
    let told: Vec<_> = reports.iter().map(told).collect();
    let expected = [("a", 1, 0), ("b", 0, 1), ("c", 1, 0)];
    assert_eq!(told, expected.map(|(key, closed, out)| (key.to_owned(), closed, out)));
    // Again, by which time the last one comes back.
    let mut drain = pin!(cluster.drain(3 * SECOND));
    assert!(poll_once(drain.as_mut()).is_pending());
    drop(b);
    assert_eq!(drain.await[1].1.closed, 1);
    assert_eq!(began.elapsed(), 3 * SECOND);
    assert_eq!(managers.map(|manager| manager.ledger.live()), [0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_of_a_cluster_that_is_given_up_has_closed_it() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let a = cluster.acquire("a").await.unwrap();
    assert!(timeout(SECOND, cluster.drain(Duration::MAX)).await.is_err());
    assert!(cluster.is_closed());
    assert!(matches!(cluster.acquire("b").await, Err(ClusterError::Closed { .. })));
    drop(a);
    cluster.close().await;
    assert_eq!(managers.map(|manager| manager.ledger.live()), [0, 0]);
}

#[test]
fn a_cluster_whose_connections_do_not_close_keeps_nobody_waiting_for_longer_than_one_pool() {
    let (one, other) = (runtime(), paused());
    let builder = builder().pools(|pool| pool.close_timeout(SECOND));
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers) = one.block_on(async {
        let (cluster, managers) = cluster_of(builder, nodes);
        for key in ["a", "b", "c"] {
            drop(cluster.acquire(key).await.unwrap());
        }
        (cluster, managers)
    });
    // Nobody drives the runtime that they would be closed on.
    other.block_on(async {
        let began = tokio::time::Instant::now();
        cluster.close().await;
        assert_eq!(began.elapsed(), SECOND);
    });
    assert_eq!(managers.map(|manager| manager.ledger.live()), [1; 3]);
}

/// A connection on loan keeps its pool in memory, and an idle one that comes back keeps it for the next.
#[tokio::test]
async fn nothing_of_a_cluster_that_is_gone_stays_in_memory() {
    let token = Arc::new(());
    let manager = || {
        let token = token.clone();
        from_fn(move || {
            let _opened_by = token.clone();
            ready(Ok::<_, std::convert::Infallible>(7_u32))
        })
    };
    let cluster = Cluster::<String, _>::builder().pools(|pool| pool.max_size(8)).build().unwrap();
    for key in ["a", "b", "c"] {
        cluster.add_node(key.to_owned(), manager()).unwrap();
    }
    // Idle, and lent before.
    drop((cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()));
    drop(cluster.acquire("a").await.unwrap());
    drop(cluster.acquire_any(Policy::RoundRobin).await.unwrap());
    // Lent by a thread that does not come back, and given back by another one.
    drop(cluster.acquire("b").await.unwrap());
    std::thread::scope(|scope| {
        let lent = scope.spawn(|| pollster::block_on(cluster.acquire("b")).unwrap());
        drop(lent.join().unwrap());
    });
    assert_eq!(cluster.acquire("b").await.unwrap().detach(), 7);
    cluster.acquire("b").await.unwrap().discard();
    cluster.acquire("a").await.unwrap().release().await.unwrap();
    // A node that is gone while a connection is out, and one that the last handle leaves behind.
    let gone = cluster.acquire("c").await.unwrap().into_owned();
    drop(cluster.acquire("c").await.unwrap());
    drop(cluster.remove_node("c", Duration::ZERO).await.unwrap());
    let out = cluster.acquire("a").await.unwrap().into_owned();
    let weak = Arc::downgrade(&token);
    drop((cluster, token));
    assert_eq!((*gone, *out), (7, 7));
    drop((gone, out));
    eventually("the managers are gone", || weak.strong_count() == 0).await;
}

#[tokio::test]
async fn a_connection_goes_back_to_its_node_on_whatever_thread() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let idle = |key: &str| cluster.node(key).unwrap().metrics().counts.idle;
    let (a, b) = (cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap());
    let (owned, other) = (cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap());
    let owned = owned.into_owned();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The thread has been to neither, then to both.
            drop(a);
            assert_eq!((idle("a"), idle("b")), (1, 0));
            drop(b);
            assert_eq!((idle("a"), idle("b")), (1, 1));
            drop(other);
            assert_eq!((idle("a"), idle("b")), (1, 2));
        });
    });
    drop(owned);
    assert_eq!((idle("a"), idle("b")), (2, 2));
    assert_eq!([managers[0].ledger.live(), managers[1].ledger.live()], [2, 2]);
}

#[tokio::test]
async fn a_connection_of_a_nodes_handle_may_be_moved_to_a_task() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain())]);
    let node = cluster.node("a").unwrap();
    let (owned, line) = (node.acquire().await.unwrap().into_owned(), line!());
    drop(node);
    let served = tokio::spawn(async move { (owned.id, owned.manager().key().clone(), owned) });
    let (id, key, owned) = served.await.unwrap();
    assert_eq!((id, &*key), (1, "a"));
    let site = cluster.holders()[0].1.site.unwrap();
    assert_eq!((site.line(), site.file().ends_with("cluster.rs")), (line, true), "{site}");
    drop(owned);
    settled(&cluster, &managers).await;
    // As with any other, it goes to a node that is there no more, though no handle is.
    let owned = cluster.node("a").unwrap().try_acquire().unwrap().into_owned();
    drop(cluster);
    assert_eq!((owned.id, managers[0].ledger.live()), (1, 1));
    drop(owned);
    eventually("it is closed", || managers[0].ledger.live() == 0).await;
}

/// The new node has the old one's key, and perhaps its place.
#[tokio::test]
async fn a_connection_of_a_node_that_was_replaced_does_not_come_to_the_new_one() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain())]);
    let (here, there) = (cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap());
    let (late, new) = (cluster.acquire("a").await.unwrap(), TestManager::new());
    drop(cluster.replace("a", new.clone(), Duration::ZERO).await.unwrap());
    let live = || managers[0].ledger.live();
    // This thread has not seen yet that the nodes have changed.
    drop(here);
    eventually("it is closed", || live() == 2).await;
    drop(cluster.acquire("a").await.unwrap());
    drop(late);
    eventually("this one too", || live() == 1).await;
    // A thread that has not been to either.
    std::thread::scope(|scope| scope.spawn(|| drop(there)).join().unwrap());
    eventually("so is the last", || live() == 0).await;
    assert_eq!(managers[0].ledger.closed(), 3, "in order, and not just dropped");
    assert_eq!((new.ledger.live(), cluster.node("a").unwrap().metrics().counts.idle), (1, 1));
}

/// What a manager does while a connection comes back is done in the middle of a look at what its thread has
/// seen of the nodes.
#[tokio::test]
async fn a_manager_may_use_its_cluster_while_a_connection_comes_back() {
    static CLUSTER: OnceLock<Cluster<u8, Nested>> = OnceLock::new();
    static NESTED: AtomicUsize = AtomicUsize::new(0);
    struct Nested;

    impl Manager for Nested {
        /// Whether another one is to be used while it comes back.
        type Connection = bool;
        type Error = std::convert::Infallible;

        async fn connect(&self) -> Result<bool, Self::Error> {
            Ok(false)
        }

        fn condition(&self, nest: &mut bool) -> Condition {
            if std::mem::take(nest) {
                let mut acquire = pin!(CLUSTER.get().unwrap().acquire(&1));
                let Poll::Ready(Ok(other)) = poll_once(acquire.as_mut()) else { panic!("none") };
                drop(other);
                NESTED.fetch_add(1, Ordering::SeqCst);
            }
            Condition::Clean
        }
    }

    let cluster = CLUSTER.get_or_init(|| Cluster::builder().build().unwrap());
    cluster.add_node(1, Nested).unwrap();
    let (mut one, other) = (cluster.acquire(&1).await.unwrap(), cluster.acquire(&1).await.unwrap());
    *one = true;
    drop(other);
    drop(one);
    assert_eq!(
        (NESTED.load(Ordering::SeqCst), cluster.node(&1).unwrap().metrics().counts.idle),
        (1, 2)
    );
}

#[tokio::test]
async fn the_last_handle_takes_the_idle_connections_with_it() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let guard = cluster.acquire("a").await.unwrap().into_owned();
    drop(cluster.acquire("b").await.unwrap());
    drop(cluster.clone());
    assert_eq!(managers[1].ledger.live(), 1);
    drop(cluster);
    eventually("b is closed", || managers[1].ledger.live() == 0).await;
    assert_eq!(managers[0].ledger.live(), 1);
    drop(guard);
    eventually("a is closed", || managers[0].ledger.live() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn an_acquire_dropped_at_any_poll_leaves_no_trace() {
    let builder = builder().pools(|pool| pool.max_size(1));
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let policies = [Policy::RoundRobin, Policy::LeastInUse, Policy::Nearest];
    for policy in policies {
        for polls in 1..16 {
            // With nothing idle, with everything in use, and with a connection that comes back.
            drop(cut_after(polls, cluster.acquire_any(policy)).await);
            let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()];
            assert!(cut_after(polls, cluster.acquire_any(policy)).await.is_none());
            let mut acquire = Box::pin(cluster.acquire_any(policy));
            assert!(poll_once(acquire.as_mut()).is_pending());
            drop(held);
            drop(acquire);
            settled(&cluster, &managers).await;
        }
    }
    assert_eq!(managers.map(|manager| manager.ledger.opened()), [1, 1]);
}

/// A cluster whose servers say themselves what they are.
fn with_roles(roles: [Role; 2]) -> (TestCluster, [TestManager; 2]) {
    with_roles_of(builder(), roles)
}

fn with_roles_of(
    builder: ClusterBuilder<String, TestManager>,
    roles: [Role; 2],
) -> (TestCluster, [TestManager; 2]) {
    let builder = builder.read_role(|connection: &mut Conn| {
        Box::pin(async move {
            match connection.server().mark.load(Ordering::SeqCst) {
                PRIMARY => Ok(Role::Primary),
                SILENT => pending().await,
                _ => Ok(Role::Replica),
            }
        })
    });
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    for (manager, role) in managers.iter().zip(roles) {
        become_primary(manager, role == Role::Primary);
    }
    (cluster, managers)
}

/// The mark of a primary.
const PRIMARY: usize = 1;
/// The mark of a server that does not say what it is.
const SILENT: usize = 2;
/// The mark of a server that says that it does not know yet.
const RECOVERING: usize = 3;

fn become_primary(manager: &TestManager, primary: bool) {
    manager.ledger.mark.store(if primary { PRIMARY } else { 0 }, Ordering::SeqCst);
}

#[tokio::test]
async fn the_servers_say_themselves_which_one_is_the_primary() {
    let (cluster, _managers) = with_roles([Role::Replica, Role::Primary]);
    let guard = cluster.acquire_any(Policy::Primary).await.unwrap();
    assert_eq!((guard.node().as_str(), guard.role()), ("b", Role::Primary));
    drop(guard);
    let guard = cluster.acquire_any(Policy::ReplicasThenPrimary).await.unwrap();
    assert_eq!((guard.node().as_str(), guard.role()), ("a", Role::Replica));
}

#[tokio::test]
async fn what_the_server_says_of_itself_counts_for_the_acquire_that_opened_the_connection() {
    let (cluster, managers) = with_roles([Role::Replica, Role::Primary]);
    cluster.set_options("a", primary()).unwrap();
    assert_eq!(cluster.status().nodes[0].role, Role::Primary, "so it is said");
    let guard = cluster.acquire_any(Policy::Primary).await.unwrap();
    assert_eq!((guard.node().as_str(), guard.role()), ("b", Role::Primary));
    assert_eq!(managers[0].ledger.opened(), 1, "a was asked first");
}

#[tokio::test]
async fn writes_follow_the_primary_when_the_servers_change_roles() {
    let (cluster, managers) = with_roles([Role::Primary, Role::Replica]);
    assert_eq!(cluster.acquire_any(Policy::Primary).await.unwrap().node(), "a");
    // The old primary becomes a replica; its connections say that they are out of date.
    become_primary(&managers[0], false);
    become_primary(&managers[1], true);
    managers[0].condition.once(Act::Permanent);
    drop(cluster.acquire("a").await.unwrap());
    assert_eq!(cluster.acquire_any(Policy::Primary).await.unwrap().node(), "b");
    for _ in 0..20 {
        let guard = cluster.acquire_any(Policy::Primary).await.unwrap();
        assert_eq!((guard.node().as_str(), guard.role()), ("b", Role::Primary));
    }
}

#[tokio::test]
async fn who_waits_for_a_primary_gets_the_replica_that_is_promoted() {
    let (cluster, managers) = with_roles([Role::Replica, Role::Replica]);
    let acquire = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.acquire_any(Policy::Primary).await.map(|guard| guard.node().clone()) }
    });
    eventually("both roles are known", || {
        cluster.status().nodes.iter().all(|node| node.role == Role::Replica)
    })
    .await;
    become_primary(&managers[1], true);
    assert_eq!(joined(acquire).await.unwrap(), "b");
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_no_node_may_serve_has_all_asked_for_their_role_at_once() {
    let (cluster, managers) = with_roles([Role::Replica, Role::Replica]);
    drop(cluster.acquire("a").await.unwrap());
    drop(cluster.acquire("b").await.unwrap());
    become_primary(&managers[1], true);
    let began = tokio::time::Instant::now();
    assert_eq!(cluster.acquire_any(Policy::Primary).await.unwrap().node(), "b");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn who_waits_at_a_primary_that_does_not_answer_gets_the_replica_that_is_promoted() {
    let (cluster, managers) = with_roles([Role::Primary, Role::Replica]);
    let writer = cluster.acquire_any(Policy::Primary).await.unwrap();
    let reader = cluster.acquire_any(Policy::Replica).await.unwrap();
    managers[0].connect.always(Act::Never);
    become_primary(&managers[1], true);
    drop(reader);
    let began = tokio::time::Instant::now();
    let guard = cluster.acquire_any(Policy::Primary).await.unwrap();
    assert_eq!((guard.node().as_str(), guard.role()), ("b", Role::Primary));
    assert_eq!(began.elapsed(), 250 * MILLISECOND);
    drop(writer);
}

#[tokio::test]
async fn a_node_that_comes_later_is_asked_for_its_role_though_others_can_serve() {
    let (cluster, _managers) = with_roles([Role::Primary, Role::Replica]);
    for policy in [Policy::Primary, Policy::Replica] {
        drop(cluster.acquire_any(policy).await.unwrap());
    }
    let late = TestManager::new();
    become_primary(&late, false);
    late.connect.once(Act::Permanent);
    cluster.add_node("late".to_owned(), late.clone()).unwrap();
    let status = cluster.status();
    assert_eq!((late.ledger.opened(), status.nodes[2].role), (0, Role::Unknown));
    eventually_served(&cluster, Policy::Replica, "late").await;
    spread(&cluster, Policy::Replica, 100).await;
    assert_eq!(late.ledger.opened(), 1);
}

/// Has each server say what it is, and answers how the cluster is then.
async fn health_after_all_have_said(cluster: &TestCluster) -> Health {
    cluster.invalidate();
    for key in cluster.nodes() {
        drop(cluster.acquire(&key).await.unwrap());
    }
    cluster.status().health
}

#[tokio::test]
async fn servers_that_all_say_that_they_are_the_primary_are_named_unless_that_is_accepted() {
    let (cluster, managers) = with_roles([Role::Primary, Role::Primary]);
    let monitor = millpond::Monitor::new();
    monitor.add_cluster(&cluster).unwrap();
    assert_eq!(cluster.status().health, Health::Healthy, "nobody has said anything yet");
    let both = "nodes a and b both say that they are the primary: writes go to them by turns, and \
                their data part ways until all but one are demoted or removed";
    let degraded = Health::Degraded(vec![both.to_owned()]);
    assert_eq!(health_after_all_have_said(&cluster).await, degraded);
    assert_eq!(monitor.health(), [("test".to_owned(), degraded.clone())]);
    let text = cluster.status().to_string();
    assert!(text.contains(&format!("\n  ! {both}\n")), "{text}");
    let line = format!("{:#}", cluster.status());
    assert!(line.ends_with(&format!("; {both}")), "{line}");
    #[cfg(feature = "serde")]
    assert_eq!(serde_json::to_value(cluster.status()).unwrap()["reasons"][0], both);

    // Whatever a dead server has said does not count.
    managers[0].connect.always(Act::Error);
    cluster.invalidate();
    cluster.acquire("a").await.unwrap_err();
    let reasons = cluster.status().health.reasons().to_vec();
    assert_eq!(reasons, ["node a is down: connecting fails: scripted connect error"]);
    managers[0].clear();
    become_primary(&managers[0], false);
    eventually("a is back", || cluster.status().health == Health::Healthy).await;

    let builder = || builder().accept_several_primaries(true);
    let (cluster, _managers) = with_roles_of(builder(), [Role::Primary, Role::Primary]);
    assert_eq!(health_after_all_have_said(&cluster).await, Health::Healthy);
}

#[tokio::test]
async fn of_many_servers_that_say_that_they_are_the_primary_a_few_are_named() {
    let (cluster, _managers) = with_roles([Role::Primary, Role::Primary]);
    for (number, expected) in [
        (3, "nodes a, b and n3 all say"),
        (4, "nodes a, b, n3 and n4 all say"),
        (9, "nodes a, b, n3, n4, n5, n6, n7, n8 and 1 more all say"),
    ] {
        for another in cluster.nodes().len() + 1..=number {
            let manager = TestManager::new();
            become_primary(&manager, true);
            cluster.add_node(format!("n{another}"), manager).unwrap();
        }
        let health = health_after_all_have_said(&cluster).await;
        assert!(health.reasons()[0].starts_with(expected), "{health}");
    }
}

#[tokio::test]
async fn primaries_that_were_given_as_such_are_meant_to_be_several() {
    let (cluster, _managers) = cluster_of(builder(), [("a", primary()), ("b", primary())]);
    drop(cluster.acquire_any(Policy::Primary).await.unwrap());
    assert_eq!(cluster.status().health, Health::Healthy);
}

const NO_PRIMARY: &str = "no node is a primary: writes wait until one is promoted";

#[tokio::test]
async fn a_cluster_that_has_no_primary_says_so_once_somebody_has_wanted_one() {
    let (cluster, managers) = with_roles([Role::Primary, Role::Replica]);
    let monitor = millpond::Monitor::new();
    monitor.add_cluster(&cluster).unwrap();
    drop(cluster.acquire_any(Policy::Primary).await.unwrap());
    become_primary(&managers[0], false);
    let well = health_after_all_have_said(&cluster).await;
    assert_eq!(well, Health::Healthy, "nobody knows that it is to have one");
    let writes = || cluster.acquire_any_timeout(Policy::Primary, 20 * MILLISECOND);
    writes().await.unwrap_err();
    let degraded = Health::Degraded(vec![NO_PRIMARY.to_owned()]);
    assert_eq!(cluster.status().health, degraded);
    assert_eq!(monitor.health(), [("test".to_owned(), degraded.clone())]);
    let text = cluster.status().to_string();
    assert!(text.contains(&format!("\n  ! {NO_PRIMARY}\n")), "{text}");
    become_primary(&managers[1], true);
    assert_eq!(cluster.acquire_any(Policy::Primary).await.unwrap().node(), "b");
    assert_eq!(cluster.status().health, Health::Healthy);
    become_primary(&managers[1], false);
    assert_eq!(health_after_all_have_said(&cluster).await, degraded, "as was wanted before");
}

#[tokio::test]
async fn where_nobody_wants_a_primary_none_is_missed() {
    let (cluster, _managers) = with_roles([Role::Replica, Role::Replica]);
    for policy in [Policy::Replica, Policy::ReplicasThenPrimary, Policy::RoundRobin] {
        drop(cluster.acquire_any(policy).await.unwrap());
        assert_eq!(health_after_all_have_said(&cluster).await, Health::Healthy);
    }
}

#[test]
fn whoever_waits_where_connecting_fails_for_good_waits_for_nothing_that_is_being_closed() {
    for fail_fast in [false, true] {
        let waits = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let builder = builder().fail_fast(fail_fast);
                let builder = builder.pools(|pool| pool.max_size(2).close_timeout(600 * SECOND));
                let (cluster, managers) = cluster_of(builder, [("a", plain())]);
                let held = cluster.acquire("a").await.unwrap();
                managers[0].connect.always(Act::Permanent);
                managers[0].close.always(Act::Gated);
                held.discard();
                let limit = 30 * SECOND;
                let served = cluster.acquire_any_timeout(Policy::RoundRobin, limit).await;
                match served.unwrap_err() {
                    ClusterError::Timeout(_) => assert!(!fail_fast),
                    error => assert!(fail_fast, "{error}"),
                }
                assert_eq!(cluster.status().totals.counts.closing, 1, "it still is");
                managers[0].close.open(1);
            });
        });
        let began = std::time::Instant::now();
        while !waits.is_finished() {
            assert!(began.elapsed() < PATIENCE, "it never lets the runtime go on");
            std::thread::sleep(MILLISECOND);
        }
        waits.join().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn no_primary_is_missed_while_no_server_that_may_be_one_has_been_reached() {
    let (cluster, managers) = with_roles([Role::Replica, Role::Primary]);
    managers.iter().for_each(|manager| manager.connect.always(Act::Error));
    let served = cluster.acquire_any_timeout(Policy::Primary, SECOND).await;
    served.unwrap_err();
    let health = cluster.status().health;
    let is_a_nodes =
        |reason: &String| reason.starts_with("node a ") || reason.starts_with("node b ");
    assert!(health.reasons().iter().all(is_a_nodes), "{health}");
    // One that has been is no primary. The other one may be down for ever.
    managers[0].clear();
    become_primary(&managers[0], false);
    eventually("a is back", || cluster.status().nodes[0].is_up).await;
    drop(cluster.acquire("a").await.unwrap());
    let served = cluster.acquire_any_timeout(Policy::Primary, SECOND).await;
    served.unwrap_err();
    let health = cluster.status().health;
    assert!(health.reasons()[0].starts_with("no node is a primary: "), "{health}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_become_the_primary_is_asked_though_others_use_all_there_may_be() {
    let builder = builder().max_connections(2).acquire_timeout(60 * SECOND);
    let builder = builder.read_role(|connection: &mut Conn| {
        let role = match connection.server().mark.load(Ordering::SeqCst) {
            RECOVERING => Role::Unknown,
            mark if mark == PRIMARY => Role::Primary,
            _ => Role::Replica,
        };
        Box::pin(ready(Ok(role)))
    });
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers) = cluster_of(builder, nodes);
    managers[2].ledger.mark.store(RECOVERING, Ordering::SeqCst);
    for key in ["c", "a", "b"] {
        drop(cluster.acquire(key).await.unwrap());
    }
    let users = ["a", "b", "a", "b"].map(|key| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            loop {
                let held = cluster.acquire(key).await.unwrap();
                tokio::time::sleep(5 * MILLISECOND).await;
                drop(held);
            }
        })
    });
    // Somebody reads by role as well, and passes c.
    let reads = tokio::spawn({
        let cluster = cluster.clone();
        async move {
            loop {
                drop(cluster.acquire_any(Policy::Replica).await.unwrap());
                tokio::time::sleep(5 * MILLISECOND).await;
            }
        }
    });
    tokio::time::sleep(3 * SECOND).await;
    become_primary(&managers[2], true);
    let served = cluster.acquire_any_timeout(Policy::Primary, 20 * SECOND).await;
    assert_eq!(served.expect("it is asked").node(), "c");
    users.iter().for_each(tokio::task::JoinHandle::abort);
    reads.abort();
}

#[tokio::test(start_paused = true)]
async fn no_primary_is_missed_as_long_as_a_server_has_not_said_what_it_is() {
    let (cluster, managers) = with_roles([Role::Replica, Role::Primary]);
    managers[1].connect.once(Act::Slow(SECOND));
    let mut acquire = pin!(cluster.acquire_any(Policy::Primary));
    for _ in 0..5 {
        assert!(timeout(100 * MILLISECOND, acquire.as_mut()).await.is_err());
        assert_eq!(cluster.status().health, Health::Healthy);
    }
    assert_eq!(cluster.status().nodes[0].role, Role::Replica, "b alone is waited for");
    assert_eq!(acquire.await.unwrap().node(), "b");
    assert_eq!(cluster.status().health, Health::Healthy);
}

#[tokio::test]
async fn whatever_else_no_node_is_that_somebody_wants_is_told_too_with_what_comes_of_it() {
    let builder = builder().fail_fast(true);
    let (cluster, _managers) = cluster_of(builder, [("a", primary()), ("b", plain())]);
    cluster.acquire_any(Policy::Replica).await.unwrap_err();
    let none = "no node is a replica: whoever asks for one fails until one is there";
    assert_eq!(cluster.status().health, Health::Degraded(vec![none.to_owned()]));
    cluster.set_options("a", plain()).unwrap();
    cluster.acquire_any(Policy::Primary).await.unwrap_err();
    cluster.acquire_any(Policy::ReplicasThenPrimary).await.unwrap_err();
    assert_eq!(
        cluster.status().health.reasons(),
        [
            "no node is a primary: writes fail until one is promoted",
            none,
            "no node is a replica or a primary: whoever asks for one fails until one is there",
        ]
    );
    cluster.set_options("a", replica()).unwrap();
    cluster.set_options("b", primary()).unwrap();
    assert_eq!(cluster.status().health, Health::Healthy);
}

#[tokio::test]
async fn what_a_cluster_says_of_itself_stands_beside_what_it_says_of_its_nodes() {
    let (cluster, managers) = with_roles([Role::Replica, Role::Replica]);
    health_after_all_have_said(&cluster).await;
    cluster.acquire_any_timeout(Policy::Primary, 20 * MILLISECOND).await.unwrap_err();
    let down = |key| format!("node {key} is down: connecting fails: scripted connect error");
    for (manager, key) in managers.iter().zip(["a", "b"]) {
        manager.connect.always(Act::Error);
        cluster.invalidate();
        cluster.acquire(key).await.unwrap_err();
        let status = cluster.status();
        let text = status.to_string();
        assert_eq!(text.matches(NO_PRIMARY).count(), 1, "{text}");
        assert!(!text.contains(&down("a")), "its own lines say that: {text}");
        match key {
            "a" => {
                let reasons = vec![NO_PRIMARY.to_owned(), down("a")];
                assert_eq!(status.health, Health::Degraded(reasons));
            }
            _ => {
                let reasons = vec![NO_PRIMARY.to_owned(), down("a"), down("b")];
                assert_eq!(status.health, Health::Down(reasons));
            }
        }
    }
    cluster.close().await;
    let closed = "cluster is closed";
    let text = cluster.status().to_string();
    assert!(text.contains(&format!("\n  ! the {closed}\n")), "{text}");
}

/// Replicas before the primary, and `unknown` where nobody knows which of them it is.
fn reads_first(unknown: Option<f64>) -> impl Fn(&NodeView<'_, String>) -> Option<f64> + Sync {
    move |node| match node.role() {
        Role::Replica => Some(0.0),
        Role::Primary => Some(1.0),
        _ => unknown,
    }
}

#[tokio::test]
async fn a_node_that_comes_later_is_asked_for_its_role_though_a_rank_prefers_others() {
    for unknown in [None, Some(2.0)] {
        let rank = reads_first(unknown);
        let policy = Policy::Rank(&rank);
        let (cluster, _managers) = with_roles([Role::Primary, Role::Primary]);
        drop(cluster.acquire_any(policy).await.unwrap());
        let late = TestManager::new();
        become_primary(&late, false);
        cluster.add_node("late".to_owned(), late.clone()).unwrap();
        eventually_served(&cluster, policy, "late").await;
        spread(&cluster, policy, 100).await;
        assert_eq!(late.ledger.opened(), 1);
    }
}

#[tokio::test]
async fn options_that_name_no_role_leave_the_one_that_was_read() {
    let (cluster, _managers) = with_roles([Role::Replica, Role::Replica]);
    let late = TestManager::new();
    become_primary(&late, false);
    cluster.add_node_with("late".to_owned(), late, primary()).unwrap();
    let role = || cluster.status().nodes[2].role;
    drop(cluster.acquire("late").await.unwrap());
    assert_eq!(role(), Role::Replica, "so says the server");
    cluster.set_options("late", plain().weight(2)).unwrap();
    assert_eq!(role(), Role::Replica);
    assert!(spread(&cluster, Policy::Replica, 20).await.contains_key("late"));
    cluster.set_options("late", primary()).unwrap();
    assert_eq!(role(), Role::Primary, "until it is asked again");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_know_its_role_yet_is_asked_once_a_second() {
    let rank = reads_first(None);
    for policy in [Policy::Replica, Policy::Rank(&rank)] {
        let asked = Arc::new(AtomicUsize::new(0));
        let reads = asked.clone();
        let builder = builder().read_role(move |connection: &mut Conn| {
            let is_recovering = connection.server().mark.load(Ordering::SeqCst) == RECOVERING;
            reads.fetch_add(usize::from(is_recovering), Ordering::SeqCst);
            let role = if is_recovering { Role::Unknown } else { Role::Replica };
            Box::pin(ready(Ok(role)))
        });
        let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
        managers[1].ledger.mark.store(RECOVERING, Ordering::SeqCst);
        drop([cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()]);
        assert_eq!(asked.load(Ordering::SeqCst), 1, "when it was opened");
        for _ in 0..300 {
            assert_eq!(cluster.acquire_any(policy).await.unwrap().node(), "a", "{policy:?}");
            tokio::time::sleep(10 * MILLISECOND).await;
        }
        let times = asked.load(Ordering::SeqCst);
        assert!((3..=4).contains(&times), "{policy:?}: asked {times} times");
        become_primary(&managers[1], false);
        let role = || cluster.status().nodes[1].role;
        let known = async {
            while role() != Role::Replica {
                drop(cluster.acquire_any(policy).await.unwrap());
                tokio::time::sleep(10 * MILLISECOND).await;
            }
        };
        timeout(2 * SECOND, known).await.expect("it is asked");
        assert_eq!(managers[1].ledger.opened(), 1);
    }
}

/// A cluster of these nodes, whose servers take so long to say what they are, and how often each has: by its mark.
fn with_slow_roles<const N: usize>(
    builder: ClusterBuilder<String, TestManager>,
    time: Duration,
    nodes: [(&str, usize); N],
) -> (TestCluster, [TestManager; N], Arc<[AtomicUsize; 4]>) {
    let asked = Arc::<[AtomicUsize; 4]>::default();
    let reads = asked.clone();
    let builder = builder.read_role(move |connection: &mut Conn| {
        let mark = connection.server().mark.load(Ordering::SeqCst);
        reads[mark].fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if time > Duration::ZERO {
                tokio::time::sleep(time).await;
            }
            Ok(match mark {
                PRIMARY => Role::Primary,
                RECOVERING => Role::Unknown,
                _ => Role::Replica,
            })
        })
    });
    let (cluster, managers) = cluster_of(builder, nodes.map(|(key, _)| (key, plain())));
    for (manager, (_, mark)) in managers.iter().zip(nodes) {
        manager.ledger.mark.store(mark, Ordering::SeqCst);
    }
    (cluster, managers, asked)
}

/// The mark of a replica.
const REPLICA: usize = 0;

#[tokio::test(start_paused = true)]
async fn however_many_want_another_role_a_server_is_asked_for_its_own_now_and_then() {
    for (writers, fail_fast) in [(1, false), (100, false), (1, true)] {
        let nodes = [("a", REPLICA), ("b", RECOVERING)];
        let builder = builder().fail_fast(fail_fast);
        let (cluster, _managers, asked) = with_slow_roles(builder, Duration::ZERO, nodes);
        drop([cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()]);
        let began = tokio::time::Instant::now();
        let writers: Vec<_> = (0..writers)
            .map(|number| {
                let cluster = cluster.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(2 * number * MILLISECOND).await;
                    while began.elapsed() < 3 * SECOND {
                        let left = 3 * SECOND - began.elapsed();
                        cluster.acquire_any_timeout(Policy::Primary, left).await.unwrap_err();
                        tokio::time::sleep(MILLISECOND).await;
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let times = [REPLICA, RECOVERING].map(|mark| asked[mark].load(Ordering::SeqCst));
        // Once when each was opened.
        assert!((1 + 10..=1 + 14).contains(&times[0]), "some four times a second: {times:?}");
        assert!((1 + 3..=1 + 4).contains(&times[1]), "once a second: {times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_primary_under_a_cap_leaves_it_its_connections_though_replicas_have_none() {
    let builder = builder().pools(|pool| pool.max_size(3)).acquire_timeout(60 * SECOND);
    let nodes = [("p", PRIMARY), ("r1", REPLICA), ("r2", REPLICA)];
    let (cluster, _managers, _) =
        with_slow_roles(builder.max_connections(3), 2 * MILLISECOND, nodes);
    for key in ["r1", "r2", "p"] {
        drop(cluster.acquire(key).await.unwrap());
    }
    let served = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..200)
        .map(|_| {
            let (cluster, served) = (cluster.clone(), served.clone());
            tokio::spawn(async move {
                loop {
                    let held = cluster.acquire_any(Policy::Primary).await.unwrap();
                    tokio::time::sleep(5 * MILLISECOND).await;
                    served.fetch_add(1, Ordering::SeqCst);
                    drop(held);
                }
            })
        })
        .collect();
    tokio::time::sleep(SECOND).await;
    let before = served.load(Ordering::SeqCst);
    let (looks, mut whole) = (1_000, 0);
    for _ in 0..looks {
        tokio::time::sleep(3 * MILLISECOND).await;
        whole += usize::from(cluster.status().nodes[0].pool.max_size == 3);
    }
    let served = served.load(Ordering::SeqCst) - before;
    assert!(whole * 10 >= looks * 8, "it had all three in {whole} of {looks} looks");
    assert!(served * 10 >= 3 * 600 * 8, "served {served} times");
    writers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn while_there_is_no_primary_a_cap_has_few_connections_closed_to_look_for_one() {
    let nodes = [("a", REPLICA), ("b", REPLICA), ("c", REPLICA)];
    let builder = builder().max_connections(2).acquire_timeout(60 * SECOND);
    let (cluster, managers, _) = with_slow_roles(builder, 2 * MILLISECOND, nodes);
    for key in ["c", "a", "b"] {
        drop(cluster.acquire(key).await.unwrap());
    }
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                loop {
                    let held = cluster.acquire_any(Policy::Replica).await.unwrap();
                    tokio::time::sleep(5 * MILLISECOND).await;
                    drop(held);
                }
            })
        })
        .collect();
    tokio::time::sleep(SECOND).await;
    let before = closed(&managers);
    let writers: Vec<_> = (0..50)
        .map(|number| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                tokio::time::sleep(5 * number * MILLISECOND).await;
                let acquire = cluster.acquire_any_timeout(Policy::Primary, 5 * SECOND);
                assert!(matches!(acquire.await, Err(ClusterError::Timeout(_))));
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let closed = closed(&managers) - before;
    assert!(closed <= 15, "{closed} connections were closed in five seconds");
    // The one that has none is found all the same once it is the primary.
    let lacks = |manager: &&TestManager| manager.ledger.live() == 0;
    become_primary(managers.iter().find(lacks).expect("there are two for three"), true);
    let served = cluster.acquire_any_timeout(Policy::Primary, 2 * SECOND).await;
    assert_eq!(served.expect("it is asked").role(), Role::Primary);
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_server_is_asked_for_its_role_though_another_connection_to_it_takes_long() {
    let (cluster, managers) = with_roles([Role::Primary, Role::Replica]);
    let of_b = cluster.acquire("b").await.unwrap();
    drop(cluster.acquire("a").await.unwrap());
    managers[1].connect.always(Act::Never);
    let of_a = loop {
        let guard = cluster.acquire_any(Policy::RoundRobin).await.unwrap();
        assert_eq!(guard.node(), "a");
        if managers[1].connect.running() == 1 {
            break guard;
        }
        drop(guard);
        tokio::task::yield_now().await;
    };
    drop(of_b);
    become_primary(&managers[1], true);
    managers[0].connect.always(Act::Never);
    let began = tokio::time::Instant::now();
    let guard = cluster.acquire_any(Policy::Primary).await.unwrap();
    assert_eq!((guard.node().as_str(), began.elapsed()), ("b", 250 * MILLISECOND));
    drop(of_a);
}

#[tokio::test(start_paused = true)]
async fn who_fails_fast_does_not_wait_for_what_others_ask_a_server_that_does_not_know() {
    for time in [10 * MILLISECOND, 1_500 * MILLISECOND] {
        let nodes = [("a", REPLICA), ("b", RECOVERING)];
        let builder = builder().pools(|pool| pool.check_timeout(2 * SECOND)).fail_fast(true);
        let (cluster, _managers, _) = with_slow_roles(builder, time, nodes);
        drop([cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()]);
        let others = tokio::spawn({
            let cluster = cluster.clone();
            async move {
                loop {
                    let began = tokio::time::Instant::now();
                    cluster.acquire_any(Policy::Primary).await.unwrap_err();
                    // Or else it has asked again before anybody else hears the answer.
                    if began.elapsed().is_zero() {
                        tokio::task::yield_now().await;
                    }
                }
            }
        });
        tokio::time::sleep(time / 2).await;
        let refused = timeout(2 * time, cluster.acquire_any(Policy::Primary)).await;
        let error = refused.expect("one answer is enough").unwrap_err();
        assert!(matches!(error, ClusterError::Unavailable(_)), "{error}");
        others.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn who_fails_fast_hears_what_a_server_says_that_did_not_know_before() {
    let nodes = [("a", REPLICA), ("b", RECOVERING)];
    let (cluster, managers, _) = with_slow_roles(builder().fail_fast(true), MILLISECOND, nodes);
    drop([cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()]);
    become_primary(&managers[1], true);
    assert_eq!(cluster.acquire_any(Policy::Primary).await.unwrap().node(), "b");
}

#[tokio::test(start_paused = true)]
async fn a_node_at_which_somebody_has_waited_in_vain_is_degraded_and_no_other_is() {
    let of = |cluster: &TestCluster, node: usize| {
        let status = cluster.status();
        (status.nodes[node].pool.health.to_string(), status.health)
    };
    let in_vain = "degraded: an acquire has waited 3.0s in vain, 0ns ago";
    // It may have none beside the only one that there may be, and that is nothing to keep others from it for.
    let builder = || builder().acquire_timeout(3 * SECOND);
    let (cluster, _managers) =
        cluster_of(builder().max_connections(1), [("a", plain()), ("b", plain())]);
    let _held = cluster.acquire("a").await.unwrap();
    cluster.acquire("b").await.map(drop).unwrap_err();
    assert_eq!(of(&cluster, 0).0, "healthy");
    let (b, all) = of(&cluster, 1);
    assert_eq!(b, in_vain);
    assert_eq!(all, Health::Degraded(vec![format!("node b is {in_vain}")]));
    // Nobody has waited at a node that may not be used.
    let (cluster, _managers) = cluster_of(builder(), [("a", replica()), ("b", replica())]);
    cluster.acquire_any(Policy::Primary).await.map(drop).unwrap_err();
    assert_eq!((of(&cluster, 0).0, of(&cluster, 1).0), ("healthy".into(), "healthy".into()));
}

#[tokio::test]
async fn who_is_to_ask_a_node_for_its_role_does_not_keep_it_open() {
    let builder = builder().max_connections(1).acquire_timeout(Duration::MAX);
    let (cluster, _managers) = with_roles_of(builder, [Role::Replica, Role::Replica]);
    let held = cluster.acquire("a").await.unwrap();
    {
        // Nobody is known to be one, so both are to be asked; b waits for a unit in vain.
        let mut acquire = pin!(cluster.acquire_any(Policy::Primary));
        assert!(poll_once(acquire.as_mut()).is_pending());
        let waiters = || cluster.node("b").unwrap().metrics().counts.waiters;
        eventually("b is to be asked", || waiters() == 1).await;
    }
    drop(held);
    drop(cluster);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    eventually("no task is left", || tasks() == 0).await;
}

#[test]
fn a_connection_whose_runtime_ends_while_it_is_asked_for_its_role_serves_nobody() {
    let (cluster, managers) = with_roles([Role::Replica, Role::Replica]);
    let one = runtime();
    one.block_on(async {
        drop(cluster.acquire("a").await.unwrap());
        managers[0].ledger.mark.store(SILENT, Ordering::SeqCst);
        let mut acquire = pin!(cluster.acquire_any(Policy::Primary));
        assert!(poll_once(acquire.as_mut()).is_pending());
        let counts = || cluster.node("a").unwrap().metrics().counts;
        eventually("it is being asked", || counts().in_use == 1).await;
    });
    drop(one);
    become_primary(&managers[0], false);
    let guard = runtime().block_on(cluster.acquire("a")).unwrap();
    assert_eq!((guard.id, managers[0].ledger.dropped()), (2, 1));
}

#[test]
fn a_connection_whose_runtime_ends_while_it_shows_that_its_node_is_back_serves_nobody() {
    let (cluster, managers, _) = capped(3, 2, [("a", plain()), ("b", plain())]);
    let one = paused();
    one.block_on(async {
        let of_a = cluster.acquire("a").await.unwrap();
        managers[0].connect.always(Act::Error);
        {
            let mut second = pin!(cluster.acquire("a"));
            assert!(poll_once(second.as_mut()).is_pending());
            eventually("it is down", || !cluster.status().nodes[0].is_up).await;
        }
        // The spare one of a goes to b, so that a has room for no other.
        let of_b = [cluster.acquire("b").await.unwrap(), cluster.acquire("b").await.unwrap()];
        drop((of_a, of_b));
        managers[0].check.always(Act::Never);
        tokio::time::sleep(SECOND).await;
        assert_eq!(cluster.acquire_any(Policy::RoundRobin).await.unwrap().node(), "b");
        eventually("it is checked", || managers[0].check.running() == 1).await;
    });
    drop(one);
    managers[0].clear();
    let guard = runtime().block_on(cluster.acquire("a")).unwrap();
    assert_eq!((guard.id, managers[0].ledger.dropped()), (2, 1));
}

#[tokio::test]
async fn a_monitor_sees_the_nodes_that_there_are_and_keeps_nothing_open() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let monitor = millpond::Monitor::new();
    monitor.add_cluster(&cluster).unwrap();
    assert_eq!(monitor.add_cluster(&cluster).unwrap_err().name, "test");
    let names = || -> Vec<String> {
        monitor.statuses().iter().map(|status| status.config.name.to_string()).collect()
    };
    assert_eq!(names(), ["test/a", "test/b"]);
    drop(cluster.remove_node("a", SECOND).await.unwrap());
    cluster.add_node("c".to_owned(), TestManager::new()).unwrap();
    assert_eq!(names(), ["test/b", "test/c"]);
    let guard = cluster.acquire("b").await.unwrap();
    let holders: usize = monitor.sources().iter().map(|source| source.holders().len()).sum();
    assert_eq!(holders, 1);
    drop(guard);
    drop(cluster);
    assert_eq!(names(), [""; 0]);
    eventually("all is closed", || managers[1].ledger.live() == 0).await;
}

#[tokio::test]
async fn a_closed_cluster_makes_way_for_another_of_its_name_though_somebody_has_a_handle_to_it() {
    let (old, _) = cluster_of(builder(), [("a", plain())]);
    let (new, _) = cluster_of(builder(), [("b", plain())]);
    let monitor = millpond::Monitor::new();
    monitor.add_cluster(&old).unwrap();
    assert_eq!(monitor.add_cluster(&new).unwrap_err().name, "test");
    old.close().await;
    monitor.add_cluster(&new).unwrap();
    assert_eq!(monitor.health(), [("test".to_owned(), millpond::Health::Healthy)]);
    assert_eq!(&*monitor.statuses()[0].config.name, "test/b");
}

#[tokio::test]
async fn figures_of_all_nodes_add_up() {
    let (cluster, _managers) = cluster_of(builder(), [("a", plain()), ("b", plain().weight(3))]);
    let held = cluster.acquire("a").await.unwrap();
    for _ in 0..3 {
        drop(cluster.acquire("b").await.unwrap());
    }
    let status = cluster.status();
    assert_eq!((status.totals.acquires, status.totals.created), (4, 2));
    assert_eq!((status.totals.counts.in_use, status.totals.counts.idle), (1, 1));
    assert_eq!(status.totals.counts.capacity(), 8);
    assert_eq!(status.totals.acquire_wait.count(), 4);
    assert_eq!(cluster.node("b").unwrap().metrics().acquires, 3);
    let text = status.to_string();
    assert!(text.starts_with("cluster test: healthy; 2 nodes, "), "{text}");
    assert!(text.contains("role unknown, weight 3"), "{text}");
    assert!(text.contains("pool test/b: healthy"), "{text}");
    drop(held);
}

/// A cluster with a cap, and what counts the connections of all nodes: from the beginning of each
/// connect to the end of each drop.
fn capped<const N: usize>(
    most: usize,
    each: usize,
    nodes: [(&str, NodeOptions); N],
) -> (TestCluster, [TestManager; N], Arc<Ledger>) {
    let cluster = builder().pools(move |pool| pool.max_size(each)).max_connections(most);
    let cluster = cluster.build().unwrap();
    let whole = Arc::new(Ledger::default());
    let managers = nodes.map(|(key, options)| {
        let manager = TestManager::counted_in(Some(whole.clone()));
        cluster.add_node_with(key.to_owned(), manager.clone(), options).unwrap();
        manager
    });
    (cluster, managers, whole)
}

/// As many connections as the cap allows can be had at the same time, at all nodes by turns, and no
/// more at any of them.
async fn has_all_its_units(cluster: &TestCluster, cap: usize) {
    let (keys, mut held) = (cluster.nodes(), Vec::new());
    for key in keys.iter().cycle().take(cap) {
        held.push(cluster.acquire(key).await.expect("no unit is lost"));
    }
    for key in &keys {
        let one_more = timeout(20 * MILLISECOND, cluster.acquire(key)).await;
        assert!(one_more.is_err(), "{key} has one more than the cap: {one_more:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_goes_on_though_the_cap_wants_its_connection_for_another_node() {
    let (cluster, managers, _) = capped(1, 1, [("a", plain()), ("b", plain())]);
    drop(cluster.acquire("a").await.unwrap());
    let a = cluster.node("a").unwrap();
    managers[0].connect.once(Act::Gated);
    let mut rotation = pin!(a.rotate(|_| Box::pin(async { Ok(()) })));
    assert!(poll_once(rotation.as_mut()).is_pending());
    eventually("it connects", || {
        assert!(poll_once(rotation.as_mut()).is_pending());
        managers[0].connect.running() == 1
    })
    .await;
    let mut other = pin!(cluster.acquire("b"));
    assert!(poll_once(other.as_mut()).is_pending());
    tokio::time::sleep(SECOND).await;
    assert!(poll_once(rotation.as_mut()).is_pending());
    managers[0].connect.open(1);
    rotation.await.unwrap();
    drop(other.await.unwrap());
}

#[tokio::test]
async fn a_cap_holds_over_all_nodes_and_idle_connections_make_room() {
    let (cluster, managers, whole) = capped(4, 4, [("a", plain()), ("b", plain())]);
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(cluster.acquire("a").await.unwrap());
    }
    assert_eq!(managers[0].ledger.live(), 4);
    // Nothing is idle: b gets its share when a's come back, and no earlier.
    let mut first = pin!(cluster.acquire("b"));
    assert!(poll_once(first.as_mut()).is_pending());
    drop(held.pop());
    held.push(first.await.unwrap());
    drop(held);
    // All are idle: whoever needs them gets them.
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(cluster.acquire("b").await.unwrap());
    }
    assert_eq!(managers.each_ref().map(|manager| manager.ledger.live()), [0, 4]);
    drop(held);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 4);
}

#[tokio::test]
async fn a_cap_takes_no_more_from_others_than_is_needed() {
    let (cluster, managers, whole) = capped(3, 3, [("a", plain()), ("b", plain())]);
    let held = [(); 3].map(|()| cluster.acquire("a"));
    let mut guards = Vec::new();
    for acquire in held {
        guards.push(acquire.await.unwrap());
    }
    drop(guards);
    // Slowly, so that the cap looks at it while it is under way.
    managers[1].connect.always(Act::Slow(30 * MILLISECOND));
    drop(cluster.acquire("b").await.unwrap());
    settled(&cluster, &managers).await;
    assert_eq!(managers.each_ref().map(|manager| manager.ledger.live()), [2, 1]);
    assert_eq!(whole.most_live(), 3);
}

/// How many connections have been closed, of all nodes.
fn closed(managers: &[TestManager]) -> usize {
    managers.iter().map(|manager| manager.ledger.closed()).sum()
}

#[tokio::test]
async fn for_one_unit_one_idle_connection_is_closed_and_no_other() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain()), ("d", plain())];
    let (cluster, managers, whole) = capped(3, 3, nodes);
    let held = [cluster.acquire("a"), cluster.acquire("b"), cluster.acquire("c")];
    for acquire in held {
        drop(acquire.await.unwrap());
    }
    // So that the cap looks while one is being closed.
    for manager in &managers {
        manager.close.always(Act::Slow(30 * MILLISECOND));
    }
    drop(cluster.acquire("d").await.unwrap());
    settled(&cluster, &managers).await;
    assert_eq!(closed(&managers), 1);
    assert_eq!(whole.most_live(), 3);
}

#[tokio::test(start_paused = true)]
async fn for_one_unit_one_of_many_connections_in_use_is_closed() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let (cluster, managers, whole) = capped(100, 10, names.map(|name| (name, plain())));
    let mut held = Vec::new();
    for name in names {
        for _ in 0..10 {
            held.push(cluster.acquire(name).await.unwrap());
        }
    }
    let late = TestManager::counted_in(Some(whole.clone()));
    cluster.add_node("late".to_owned(), late.clone()).unwrap();
    let mut acquire = pin!(cluster.acquire("late"));
    // For a longer time another one would be asked as well.
    assert!(timeout(40 * MILLISECOND, acquire.as_mut()).await.is_err(), "all are in use");
    drop(held);
    assert_eq!(acquire.await.unwrap().node(), "late");
    settled(&cluster, &managers).await;
    assert_eq!((closed(&managers), whole.most_live()), (1, 100));
}

#[tokio::test(start_paused = true)]
async fn who_was_asked_to_give_and_need_not_closes_nothing() {
    let (cluster, managers, whole) = capped(3, 3, [("a", plain()), ("b", plain())]);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(cluster.acquire("a").await.unwrap());
    }
    assert!(timeout(50 * MILLISECOND, cluster.acquire("b")).await.is_err(), "all are in use");
    // The cap looks every 5 ms.
    tokio::time::sleep(20 * MILLISECOND).await;
    drop(held);
    settled(&cluster, &managers).await;
    assert_eq!((closed(&managers), whole.most_live()), (0, 3));
}

/// This many connections of a node, one after the other.
async fn hold<'c>(cluster: &'c TestCluster, key: &str, many: usize) -> Vec<Guard<'c>> {
    let mut held = Vec::new();
    for _ in 0..many {
        held.push(cluster.acquire(key).await.unwrap());
    }
    held
}

#[tokio::test(start_paused = true)]
async fn no_unit_goes_to_and_fro_while_one_who_is_to_give_his_last_one_wants_more() {
    let nodes = [("x", plain()), ("q", plain()), ("p", plain())];
    let (cluster, managers, whole) = capped(5, 5, nodes);
    let (mut of_x, of_p) = (hold(&cluster, "x", 4).await, hold(&cluster, "p", 1).await);
    tokio::time::sleep(60 * MILLISECOND).await;
    let mut q = pin!(cluster.acquire("q"));
    assert!(poll_once(q.as_mut()).is_pending());
    // After 50 ms x has been waited for in vain, and p is asked as well.
    tokio::time::sleep(65 * MILLISECOND).await;
    let mut more = pin!(cluster.acquire("p"));
    assert!(poll_once(more.as_mut()).is_pending());
    drop(of_x.pop());
    let q = timeout(40 * MILLISECOND, q).await.expect("x has given one").unwrap();
    tokio::time::sleep(200 * MILLISECOND).await;
    drop(of_x);
    drop((timeout(SECOND, more).await.expect("x has one to give").unwrap(), of_p, q));
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 5);
}

#[tokio::test(start_paused = true)]
async fn no_unit_goes_to_and_fro_while_one_who_closes_a_connection_wants_it_back() {
    let nodes = [("x", plain()), ("p", plain()), ("z", plain())];
    let (cluster, managers, whole) = capped(8, 8, nodes);
    let (of_z, of_p) = (hold(&cluster, "z", 4).await, hold(&cluster, "p", 2).await);
    let mut of_x = hold(&cluster, "x", 2).await;
    drop(of_x.pop());
    // The cap sees that nobody has use for it.
    assert!(poll_once(pin!(cluster.acquire("z"))).is_pending());
    tokio::time::sleep(60 * MILLISECOND).await;
    let (mut p, mut x) = (pin!(cluster.acquire("p")), pin!(cluster.acquire("x")));
    // The close has only begun by then.
    assert!(poll_once(p.as_mut()).is_pending());
    assert!(poll_once(x.as_mut()).is_pending());
    tokio::time::sleep(20 * MILLISECOND).await;
    drop((of_z, of_p, of_x));
    drop((timeout(SECOND, p).await.expect("in time").unwrap(), x.await.unwrap()));
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 8);
}

#[tokio::test(start_paused = true)]
async fn who_was_asked_to_give_what_only_his_own_callers_miss_closes_nothing() {
    // Less than after which p has been asked in vain, and more.
    for pause in [20, 200] {
        let (cluster, managers, _) = capped(1, 2, [("p", plain()), ("q", plain())]);
        let held = cluster.acquire("p").await.unwrap();
        tokio::time::sleep(60 * MILLISECOND).await;
        let mut more = pin!(cluster.acquire("p"));
        {
            let mut q = pin!(cluster.acquire("q"));
            assert!(poll_once(q.as_mut()).is_pending());
            assert!(poll_once(more.as_mut()).is_pending());
            tokio::time::sleep(pause * MILLISECOND).await;
        }
        tokio::time::sleep(10 * MILLISECOND).await;
        drop(held);
        drop(timeout(MILLISECOND, more).await.expect("it is the next").unwrap());
        settled(&cluster, &managers).await;
        assert_eq!(closed(&managers), 0, "after {pause} ms");
    }
}

#[tokio::test]
async fn an_idle_connection_makes_room_though_another_node_is_to_give_one_that_is_out() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers, whole) = capped(3, 3, nodes);
    let out = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
    let of_b = cluster.acquire("b").await.unwrap();
    let mut acquire = pin!(cluster.acquire("c"));
    assert!(poll_once(acquire.as_mut()).is_pending());
    drop(of_b);
    let c = timeout(PATIENCE, acquire).await.expect("b has one to give").unwrap();
    drop((c, out));
    settled(&cluster, &managers).await;
    assert_eq!((closed(&managers), whole.most_live()), (1, 3));
}

#[tokio::test]
async fn a_cap_is_shared_fairly_while_all_want_more() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers, whole) = capped(6, 6, nodes);
    let mut of_a = Vec::new();
    for _ in 0..6 {
        of_a.push(cluster.acquire("a").await.unwrap());
    }
    let wait_for = |key: &'static str| {
        let cluster = cluster.clone();
        tokio::spawn(async move { cluster.acquire(key).await.unwrap().into_owned() })
    };
    let waiting: Vec<_> =
        ["b", "c"].into_iter().flat_map(|key| [(); 4].map(|()| wait_for(key))).collect();
    let more_of_a = [(); 4].map(|()| wait_for("a"));
    eventually("all are in line", || cluster.status().totals.counts.waiters == 12).await;
    drop(of_a);
    // Each node has two and no more, however many wait.
    eventually("each has two", || {
        managers.iter().all(|manager| manager.ledger.live() == 2)
            && cluster.status().totals.counts.in_use == 6
    })
    .await;
    for _ in 0..50 {
        tokio::time::sleep(MILLISECOND).await;
        assert!(managers.iter().all(|manager| manager.ledger.live() == 2), "{}", cluster.status());
    }
    // Whoever is served gives back, until all have been.
    for task in waiting.into_iter().chain(more_of_a) {
        drop(joined(task).await);
    }
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 6);
}

#[tokio::test]
async fn with_a_cap_reads_are_spread_over_nodes_that_have_nothing_yet() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers, whole) = capped(3, 3, nodes);
    for _ in 0..3 {
        let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
        drop((cluster.acquire("a").await.unwrap(), held));
    }
    for _ in 0..500 {
        spread(&cluster, Policy::RoundRobin, 1).await;
        tokio::task::yield_now().await;
    }
    eventually("each has one", || managers.iter().all(|manager| manager.ledger.live() == 1)).await;
    let served = spread(&cluster, Policy::RoundRobin, 3_000).await;
    for key in ["a", "b", "c"] {
        assert_near(key, served[key], 1_000);
    }
    let opened: usize = managers.iter().map(|manager| manager.ledger.opened()).sum();
    assert!(opened < 20, "{opened} opened");
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 3);
}

/// The node of this name first, then the others.
fn first(key: &'static str) -> impl Fn(&NodeView<'_, String>) -> Option<f64> {
    move |node| Some(f64::from(node.key() != key))
}

#[tokio::test(start_paused = true)]
async fn with_a_cap_who_may_go_anywhere_goes_where_there_can_be_more() {
    let (cluster, managers, _) = capped(10, 1, [("a", plain()), ("b", plain())]);
    let held = cluster.acquire("a").await.unwrap();
    let began = tokio::time::Instant::now();
    let guard = cluster.acquire_any(Policy::Rank(&first("a"))).await.unwrap();
    assert_eq!((guard.node().as_str(), began.elapsed()), ("b", Duration::ZERO));
    drop((held, guard));
    settled(&cluster, &managers).await;
}

#[tokio::test(start_paused = true)]
async fn with_a_cap_whoever_was_refused_one_gets_it_where_others_work() {
    let (cluster, managers, whole) = capped(3, 2, [("a", plain()), ("b", plain())]);
    let held = (hold(&cluster, "a", 1).await, hold(&cluster, "b", 1).await);
    managers[1].connect.always(Act::Error);
    let policy = first("b");
    let acquire = cluster.acquire_any(Policy::Rank(&policy));
    let served = timeout(SECOND, acquire).await.expect("b has one to spare").unwrap();
    assert_eq!(served.node(), "a");
    drop((held, served));
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 3);
}

#[tokio::test(start_paused = true)]
async fn with_a_cap_too_a_node_that_does_not_answer_costs_a_quarter_of_a_second() {
    let (cluster, managers, _) = capped(4, 2, [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Never);
    let began = tokio::time::Instant::now();
    let guard = cluster.acquire_any(Policy::Rank(&first("a"))).await.unwrap();
    assert_eq!((guard.node().as_str(), began.elapsed()), ("b", 250 * MILLISECOND));
}

#[tokio::test]
async fn with_a_cap_too_the_servers_say_themselves_which_one_is_the_primary() {
    for cap in [1, 4] {
        for roles in [[Role::Replica, Role::Primary], [Role::Primary, Role::Replica]] {
            let (cluster, _managers) = with_roles_of(builder().max_connections(cap), roles);
            for (policy, role) in
                [(Policy::Primary, Role::Primary), (Policy::Replica, Role::Replica)]
            {
                let served = timeout(PATIENCE, cluster.acquire_any(policy)).await;
                assert_eq!(served.expect("one has that role").unwrap().role(), role, "cap {cap}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_down_is_tried_again_though_a_cap_has_left_it_nothing() {
    for (aim, cap) in ["by turns", "least in use", "nearest", "rank", "session"]
        .into_iter()
        .flat_map(|aim| [(aim, 1), (aim, 2)])
    {
        let (cluster, managers, whole) = capped(cap, cap, [("a", plain()), ("b", plain())]);
        managers[1].connect.always(Act::Permanent);
        assert!(cluster.acquire("b").await.is_err());
        let mut held = Vec::new();
        for _ in 0..cap {
            held.push(cluster.acquire("a").await.unwrap());
        }
        drop(held);
        settled(&cluster, &managers).await;
        let tried = managers[1].connect.calls();
        for number in 0..1_000_u32 {
            drop(cluster.acquire_for(&number.to_le_bytes()).await.unwrap());
            spread(&cluster, Policy::RoundRobin, 1).await;
            tokio::time::sleep(5 * MILLISECOND).await;
        }
        let tried = managers[1].connect.calls() - tried;
        assert!((2..=6).contains(&tried), "{aim}: tried {tried} times in five seconds");
        managers[1].connect.calm();
        comes_back_under_light_load(&cluster, "b", aim).await;
        assert_eq!(whole.most_live(), cap);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_only_unit_is_in_use_does_not_lose_it_to_one_that_is_tried() {
    let (cluster, managers, _) = capped(1, 1, [("a", plain()), ("b", plain())]);
    managers[1].connect.always(Act::Never);
    assert!(cluster.acquire("b").await.is_err());
    drop(cluster.acquire("a").await.unwrap());
    let opened = managers[0].ledger.opened();
    for _ in 0..2_500 {
        let guard = cluster.acquire_any(Policy::RoundRobin).await.unwrap();
        tokio::time::sleep(MILLISECOND).await;
        drop(guard);
        tokio::time::sleep(MILLISECOND).await;
    }
    assert_eq!(managers[0].ledger.opened(), opened);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_does_not_wait_for_a_node_that_is_only_tried() {
    let (cluster, managers, _) = capped(1, 1, [("a", plain()), ("b", plain())]);
    managers[1].connect.always(Act::Never);
    assert!(cluster.acquire("b").await.is_err());
    drop(cluster.acquire("a").await.unwrap());
    let tried = managers[1].connect.calls();
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        let began = tokio::time::Instant::now();
        drop(cluster.acquire_any(Policy::RoundRobin).await.unwrap());
        longest = longest.max(began.elapsed());
        tokio::time::sleep(100 * MILLISECOND).await;
    }
    assert!(managers[1].connect.calls() > tried);
    assert!(longest <= 260 * MILLISECOND, "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_down_is_tried_again_though_callers_wait_at_all_others() {
    let (cluster, managers, whole) = capped(4, 4, [("a", plain()), ("b", plain())]);
    managers[1].connect.always(Act::Permanent);
    assert!(cluster.acquire("b").await.is_err());
    let (of_a, _) = workers(&cluster, "a", 6, MILLISECOND, Duration::ZERO);
    let anywhere = tokio::spawn({
        let cluster = cluster.clone();
        async move {
            loop {
                drop(cluster.acquire_any(Policy::RoundRobin).await.unwrap());
                tokio::time::sleep(MILLISECOND).await;
            }
        }
    });
    tokio::time::sleep(2 * SECOND).await;
    managers[1].connect.calm();
    // Not at once, as with most servers.
    managers[1].connect.always(Act::Slow(100 * MILLISECOND));
    eventually("b is up", || cluster.status().nodes[1].is_up).await;
    of_a.iter().chain([&anywhere]).for_each(tokio::task::JoinHandle::abort);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 4);
}

#[tokio::test(start_paused = true)]
async fn while_somebody_waits_for_room_at_a_node_that_is_down_whoever_comes_is_told() {
    for fail_fast in [false, true] {
        let builder = builder().max_connections(2).fail_fast(fail_fast);
        let (cluster, managers) = cluster_of(builder, [("a", primary()), ("b", replica())]);
        let is_told = |served: Served<'_>| match served.unwrap_err() {
            ClusterError::Node(node) => matches!(node.source, AcquireError::Unavailable(_)),
            ClusterError::Unavailable(_) => true,
            _ => false,
        };
        let mut of_b = hold(&cluster, "b", 1).await;
        managers[0].connect.always(Act::Error);
        assert!(is_told(cluster.acquire("a").await));
        of_b.extend(hold(&cluster, "b", 1).await);
        // By then its pool has no room to try again in, and has ceased to.
        tokio::time::sleep(5 * SECOND).await;
        assert!(timeout(SECOND, cluster.acquire("a")).await.is_err(), "somebody has to see it");
        let [mut one, mut other] = [(); 2].map(|()| Box::pin(cluster.acquire("a")));
        assert!(poll_once(one.as_mut()).is_pending());
        assert!(poll_once(other.as_mut()).is_pending(), "there may be room soon");
        tokio::time::sleep(300 * MILLISECOND).await;
        for _ in 0..2 {
            let served = timeout(MILLISECOND, cluster.acquire("a")).await;
            assert!(is_told(served.expect("it is told at once")));
        }
        let primary = timeout(MILLISECOND, cluster.acquire_any(Policy::Primary)).await;
        assert_eq!(primary.map(is_told).ok(), fail_fast.then_some(true));
        // Whoever waits sees that it is back, and then all who come are served.
        managers[0].connect.calm();
        drop(of_b);
        drop((one.await.unwrap(), other.await.unwrap()));
        drop(cluster.acquire_any(Policy::Primary).await.unwrap());
        settled(&cluster, &managers).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_to_a_node_that_is_down_while_room_is_made_there_waits_for_that() {
    let (cluster, managers, whole) = capped(3, 3, [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Error);
    assert!(cluster.acquire("a").await.is_err());
    drop(hold(&cluster, "b", 3).await);
    // By then its pool has no room to try again in, and has ceased to.
    tokio::time::sleep(5 * SECOND).await;
    managers[0].connect.calm();
    managers[1].close.always(Act::Slow(30 * MILLISECOND));
    let mut of_a: Vec<_> = (0..3).map(|_| Box::pin(cluster.acquire("a"))).collect();
    of_a.iter_mut().for_each(|acquire| assert!(poll_once(acquire.as_mut()).is_pending()));
    for acquire in of_a {
        drop(acquire.await.unwrap());
    }
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_room_for_another_connection_is_up_again_when_one_that_it_has_works() {
    let (cluster, managers, _) = capped(3, 2, [("a", plain()), ("b", plain())]);
    let of_a = cluster.acquire("a").await.unwrap();
    managers[0].connect.always(Act::Error);
    {
        let mut second = pin!(cluster.acquire("a"));
        assert!(poll_once(second.as_mut()).is_pending());
        eventually("it is down", || !cluster.status().nodes[0].is_up).await;
    }
    // The spare one of a goes to b, so that a has room for no other.
    let of_b = [cluster.acquire("b").await.unwrap(), cluster.acquire("b").await.unwrap()];
    managers[0].connect.calm();
    drop((of_a, of_b));
    comes_back_under_light_load(&cluster, "a", "by turns").await;
    assert_eq!(managers[0].ledger.opened(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_at_its_servers_limit_has_no_more_units_than_it_is_tried_with() {
    let (cluster, managers, whole) = capped(10, 10, [("p", plain()), ("r", plain())]);
    let held = cluster.acquire("p").await.unwrap();
    let (of_r, _) = workers(&cluster, "r", 20, MILLISECOND, Duration::ZERO);
    eventually("r has the others", || managers[1].ledger.live() == 9).await;
    managers[0].connect.always(Act::Error);
    let (of_p, _) = workers(&cluster, "p", 20, MILLISECOND, Duration::ZERO);
    eventually("p is down", || !cluster.status().nodes[0].is_up).await;
    eventually("r has what p has no use for", || managers[1].ledger.live() == 8).await;
    let before = closed(&managers);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!((managers[1].ledger.live(), closed(&managers)), (8, before));
    // Once its server accepts more it has its share again.
    managers[0].connect.calm();
    eventually("p has half of them", || managers[0].ledger.live() == 5).await;
    of_r.iter().chain(&of_p).for_each(tokio::task::JoinHandle::abort);
    drop(held);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_cap_below_the_number_of_nodes_serves_each_of_them() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers, whole) = capped(2, 2, nodes);
    for key in ["a", "b", "c", "a", "c", "b"] {
        assert_eq!(cluster.acquire(key).await.unwrap().node(), key);
    }
    settled(&cluster, &managers).await;
    let opened = || managers.iter().map(|manager| manager.ledger.opened()).sum::<usize>();
    let before = opened();
    for _ in 0..100 {
        spread(&cluster, Policy::RoundRobin, 1).await;
        tokio::time::sleep(5 * MILLISECOND).await;
    }
    settled(&cluster, &managers).await;
    // One may move from a node that had both.
    assert!(opened() <= before + 1, "units go round although nobody waits");
    assert_eq!(whole.most_live(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cap_below_the_number_of_busy_nodes_serves_them_by_turns() {
    for cap in [1, 2] {
        let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
        let (cluster, managers, whole) = capped(cap, 2, nodes);
        let served = Arc::new([(); 3].map(|()| AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..12)
            .map(|number| {
                let (cluster, served) = (cluster.clone(), served.clone());
                tokio::spawn(async move {
                    let node = number % 3;
                    loop {
                        let guard = cluster.acquire(["a", "b", "c"][node]).await.unwrap();
                        served[node].fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(MILLISECOND).await;
                        drop(guard);
                    }
                })
            })
            .collect();
        tokio::time::sleep(6 * SECOND).await;
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        let served = served.each_ref().map(|served| served.load(Ordering::SeqCst));
        let fair = 6_000 * cap / 3;
        assert!(served.iter().all(|served| (fair / 2..2 * fair).contains(served)), "{served:?}");
        let opened = managers.iter().map(|manager| manager.ledger.opened()).sum::<usize>();
        assert!(opened < 300 * cap, "{opened} opened for {served:?}");
        settled(&cluster, &managers).await;
        assert_eq!(whole.most_live(), cap);
    }
}

#[tokio::test(start_paused = true)]
async fn by_turns_a_node_uses_what_it_opens_for_as_long_as_that_took() {
    let mut figures = Vec::new();
    for (cap, connect) in [(2, 10), (2, 40), (2, 60), (2, 150), (1, 300)] {
        let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
        let (cluster, managers, whole) = capped(cap, 8, nodes);
        for manager in &managers {
            manager.connect.always(Act::Slow(connect * MILLISECOND));
        }
        let all = ["a", "b", "c"].map(|key| workers(&cluster, key, 4, MILLISECOND, Duration::ZERO));
        tokio::time::sleep(6 * SECOND).await;
        let tasks = || all.iter().flat_map(|(tasks, _)| tasks);
        tasks().for_each(tokio::task::JoinHandle::abort);
        let served: usize = all.iter().map(|(_, served)| served.load(Ordering::SeqCst)).sum();
        let opened: usize = managers.iter().map(|manager| manager.ledger.opened()).sum();
        figures.push((cap, connect, served / opened));
        assert_eq!(whole.most_live(), cap);
    }
    // Each is held for a millisecond or two.
    let worth = |&(_, connect, uses): &(_, u32, usize)| uses >= connect.max(50) as usize / 2;
    assert!(figures.iter().all(worth), "cap, connect in ms, uses of each: {figures:?}");
}

#[tokio::test(start_paused = true)]
async fn a_turn_takes_a_second_at_the_most_however_long_the_connect() {
    let (cluster, managers, whole) = capped(1, 2, [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Slow(3 * SECOND));
    let (of_a, served) = workers(&cluster, "a", 2, MILLISECOND, Duration::ZERO);
    eventually("a has its turn", || served.load(Ordering::SeqCst) > 0).await;
    let began = tokio::time::Instant::now();
    drop(cluster.acquire("b").await.unwrap());
    let waited = began.elapsed();
    assert!((900 * MILLISECOND..1_050 * MILLISECOND).contains(&waited), "{waited:?}");
    of_a.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(whole.most_live(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_may_go_anywhere_takes_no_last_connection_of_a_node() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers, whole) = capped(2, 2, nodes);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                for _ in 0..1_000 {
                    let guard = cluster.acquire_any(Policy::RoundRobin).await.unwrap();
                    tokio::time::sleep(MILLISECOND).await;
                    drop(guard);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let opened = managers.iter().map(|manager| manager.ledger.opened()).sum::<usize>();
    assert!(opened <= 4, "{opened} opened");
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_node_gets_the_last_connection_of_another_beside_one_whose_callers_may_go_anywhere() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers, whole) = capped(1, 2, nodes);
    drop(cluster.acquire("c").await.unwrap());
    drop(cluster.acquire("a").await.unwrap());
    let tasks = [(); 4].map(|()| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            loop {
                // One that has never had any.
                let guard = cluster.acquire_any(Policy::Rank(&first("b"))).await.unwrap();
                tokio::time::sleep(MILLISECOND).await;
                drop(guard);
            }
        })
    });
    tokio::time::sleep(10 * MILLISECOND).await;
    for _ in 0..3 {
        let served = timeout(80 * MILLISECOND, cluster.acquire("c")).await;
        drop(served.expect("it has the next turn").unwrap());
        tokio::time::sleep(100 * MILLISECOND).await;
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 1);
}

/// Uses a node over and over, so many at a time, and counts how often.
fn workers(
    cluster: &TestCluster,
    node: &'static str,
    many: usize,
    hold: Duration,
    think: Duration,
) -> (Vec<tokio::task::JoinHandle<()>>, Arc<AtomicUsize>) {
    let served = Arc::new(AtomicUsize::new(0));
    let worker = || {
        let (cluster, served) = (cluster.clone(), served.clone());
        tokio::spawn(async move {
            loop {
                let guard = cluster.acquire(node).await.unwrap();
                served.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(hold).await;
                drop(guard);
                if !think.is_zero() {
                    tokio::time::sleep(think).await;
                }
            }
        })
    };
    ((0..many).map(|_| worker()).collect(), served)
}

#[tokio::test(start_paused = true)]
async fn a_node_within_its_share_is_not_robbed_by_one_that_wants_ever_more() {
    // The cap looks every 5 ms: with the last pair it sees the node at the same moment of its rounds.
    for (hold, think, most) in [(1, 1, 6), (2, 5, 6), (1, 4, 100)] {
        let (cluster, managers, whole) = capped(4, 4, [("a", plain()), ("b", plain())]);
        let first = [cluster.acquire("a"), cluster.acquire("a")];
        let other = [cluster.acquire("b"), cluster.acquire("b")];
        let mut held = Vec::new();
        for acquire in first.into_iter().chain(other) {
            held.push(acquire.await.unwrap());
        }
        drop(held);
        let (hold, think) = (hold * MILLISECOND, think * MILLISECOND);
        let (of_a, served) = workers(&cluster, "a", 2, hold, think);
        let (of_b, _) = workers(&cluster, "b", 4, MILLISECOND, Duration::ZERO);
        tokio::time::sleep(SECOND).await;
        of_a.iter().chain(&of_b).for_each(tokio::task::JoinHandle::abort);
        let opened: usize = managers.iter().map(|manager| manager.ledger.opened()).sum();
        let served = served.load(Ordering::SeqCst) as u128;
        let (all, what) = (2 * SECOND.as_millis() / (hold + think).as_millis(), (hold, think));
        assert!(opened <= most, "{what:?}: {opened} opened");
        assert!(served >= all * 8 / 10, "{what:?}: {served} of {all} served");
        settled(&cluster, &managers).await;
        assert_eq!(whole.most_live(), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_node_within_its_share_has_no_use_for_is_given_on_after_a_while() {
    let (cluster, managers, whole) = capped(4, 4, [("a", plain()), ("b", plain())]);
    let of_a = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
    drop(of_a);
    let mut of_b = Vec::new();
    let began = tokio::time::Instant::now();
    for _ in 0..4 {
        of_b.push(cluster.acquire("b").await.unwrap());
    }
    let took = began.elapsed();
    assert!((50 * MILLISECOND..60 * MILLISECOND).contains(&took), "{took:?}");
    drop(of_b);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_was_in_use_at_the_last_look_has_not_rested_since() {
    let (cluster, managers, whole) = capped(2, 2, [("a", plain()), ("b", plain())]);
    let (of_a, of_b) = (hold(&cluster, "a", 1).await, hold(&cluster, "b", 1).await);
    let in_vain = cluster.acquire_timeout("b", 100 * MILLISECOND).await;
    assert!(in_vain.is_err(), "all are in use");
    // Nobody looks meanwhile.
    tokio::time::sleep(100 * MILLISECOND).await;
    drop(of_a);
    let mut more = pin!(cluster.acquire("b"));
    assert!(timeout(40 * MILLISECOND, more.as_mut()).await.is_err());
    assert_eq!(managers[0].ledger.live(), 1, "it was in use a moment ago");
    drop(timeout(20 * MILLISECOND, more).await.expect("it has rested").unwrap());
    drop(of_b);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_unit_goes_to_who_waits_before_a_node_that_was_only_passed_over() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain()), ("d", plain())];
    let (cluster, managers, _) = capped(4, 3, nodes);
    let [one, other] = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
    let c = cluster.acquire("c").await.unwrap();
    drop(cluster.acquire("d").await.unwrap());
    let d = cluster.acquire_any(Policy::Rank(&first("b"))).await.unwrap();
    assert_eq!(d.node(), "d");
    let mut acquire = pin!(cluster.acquire("c"));
    assert!(poll_once(acquire.as_mut()).is_pending());
    drop(one);
    let more = timeout(SECOND, acquire).await.expect("one of a is free").unwrap();
    assert_eq!(managers[1].connect.calls(), 0);
    drop((other, c, d, more));
}

#[tokio::test(start_paused = true)]
async fn what_is_closed_for_a_node_that_was_only_passed_over_makes_room_there() {
    let (cluster, managers, whole) = capped(3, 3, [("a", plain()), ("b", plain())]);
    drop(hold(&cluster, "a", 3).await);
    let guard = cluster.acquire_any(Policy::Rank(&first("b"))).await.unwrap();
    assert_eq!(guard.node(), "a");
    drop(guard);
    eventually("one is closed", || closed(&managers) == 1).await;
    eventually("b has one", || managers[1].ledger.live() == 1).await;
    settled(&cluster, &managers).await;
    assert_eq!((closed(&managers), whole.most_live()), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_what_is_idle_though_a_node_that_was_passed_over_has_less() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain()), ("d", plain())];
    let (cluster, managers, whole) = capped(6, 4, nodes);
    let mut held = Vec::new();
    for key in ["a", "a", "a", "a", "c"] {
        held.push(cluster.acquire(key).await.unwrap());
    }
    drop(cluster.acquire("d").await.unwrap());
    let d = cluster.acquire_any(Policy::Rank(&first("b"))).await.unwrap();
    assert_eq!(d.node(), "d");
    drop(d);
    held.push(timeout(SECOND, cluster.acquire("c")).await.expect("d has one to give").unwrap());
    drop(held);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 6);
}

#[tokio::test(start_paused = true)]
async fn who_holds_connections_for_long_is_not_the_only_one_to_be_asked_for_one() {
    for (cap, of_a) in [(5, 3), (2, 1)] {
        let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
        let (cluster, managers, whole) = capped(cap, 5, nodes);
        let mut held = Vec::new();
        for _ in 0..of_a {
            held.push(cluster.acquire("a").await.unwrap());
        }
        let (of_c, _) = workers(&cluster, "c", cap - of_a, MILLISECOND, Duration::ZERO);
        tokio::time::sleep(100 * MILLISECOND).await;
        assert_eq!(cluster.node("c").unwrap().metrics().counts.in_use, cap - of_a);
        drop(timeout(SECOND, cluster.acquire("b")).await.expect("c has some to give").unwrap());
        of_c.iter().for_each(tokio::task::JoinHandle::abort);
        drop(held);
        settled(&cluster, &managers).await;
        assert_eq!(whole.most_live(), cap);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_connections_are_being_checked_is_not_the_only_one_to_be_asked_for_one() {
    let checks = |pool: PoolBuilder<_>| pool.max_size(5).check(CheckPolicy::Always);
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers) = cluster_of(builder().pools(checks).max_connections(5), nodes);
    drop(hold(&cluster, "a", 3).await);
    managers[0].check.always(Act::Never);
    let mut of_a: Vec<_> = (0..3).map(|_| Box::pin(cluster.acquire("a"))).collect();
    of_a.iter_mut().for_each(|acquire| assert!(poll_once(acquire.as_mut()).is_pending()));
    let (of_c, _) = workers(&cluster, "c", 2, MILLISECOND, Duration::ZERO);
    eventually("c has the others", || managers[2].ledger.live() == 2).await;
    let served = timeout(100 * MILLISECOND, cluster.acquire("b")).await;
    drop(served.expect("c has one to give").unwrap());
    of_c.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn the_only_unit_leaves_a_node_that_does_not_answer() {
    let builder = builder().max_connections(1).acquire_timeout(5 * SECOND);
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Never);
    let began = tokio::time::Instant::now();
    let guard = cluster.acquire_any(Policy::Rank(&first("a"))).await.unwrap();
    assert_eq!(guard.node(), "b");
    assert!(began.elapsed() < 1_300 * MILLISECOND, "{:?}", began.elapsed());
    drop(guard);
    // So it does for somebody who waits for the other one by its name; and it comes back.
    for key in ["a", "b"] {
        let mut acquire = pin!(cluster.acquire("a"));
        assert!(timeout(500 * MILLISECOND, acquire.as_mut()).await.is_err());
        let served = timeout(2 * SECOND, cluster.acquire(key)).await;
        assert_eq!(served.is_ok(), key == "b");
    }
    managers[0].connect.calm();
    drop(timeout(2 * SECOND, cluster.acquire("a")).await.expect("in time").unwrap());
    settled(&cluster, &managers).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_loses_its_unit_because_it_does_not_answer_is_down_and_says_why() {
    let (cluster, managers, _) = capped(1, 1, [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Never);
    let mut of_a = pin!(cluster.acquire("a"));
    assert!(poll_once(of_a.as_mut()).is_pending());
    drop(timeout(2 * SECOND, cluster.acquire("b")).await.expect("in time").unwrap());
    let a = &cluster.status().nodes[0];
    assert!(!a.is_up && !a.pool.health.is_up(), "{a:?}");
    assert_eq!(a.pool.metrics.connect_failures, 1);
    let failure = a.pool.metrics.last_connect_error.clone().expect("it is told").message;
    assert_eq!(failure, "no answer within 1s (max_connections)");
    // It may merely take long, so whoever waits for it by its name does so, and so does who comes.
    assert!(poll_once(of_a.as_mut()).is_pending());
    assert!(poll_once(pin!(cluster.acquire("a"))).is_pending());
    // It is tried again, as any node that is down.
    managers[0].connect.calm();
    assert!(timeout(SECOND, of_a).await.expect("it has answered").is_ok());
    assert!(cluster.status().nodes[0].is_up);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_answer_is_down_though_none_of_its_callers_waits_for_a_second() {
    let (cluster, managers, _) = capped(1, 1, [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Never);
    for _ in 0..3 {
        assert!(cluster.acquire_timeout("a", 400 * MILLISECOND).await.is_err());
    }
    assert!(cluster.status().nodes[0].is_up, "it has all the time that it likes");
    drop(timeout(SECOND, cluster.acquire("b")).await.expect("nobody waits for a").unwrap());
    let a = &cluster.status().nodes[0];
    assert_eq!((a.is_up, a.pool.metrics.connect_failures), (false, 1));
}

/// So many callers of a node for whom connections are opened at once, none of which comes to be.
async fn opens<'c>(
    cluster: &'c TestCluster,
    a: &TestManager,
    many: usize,
) -> Vec<Pin<Box<dyn Future<Output = Served<'c>> + 'c>>> {
    // At first only one may be opened at a time.
    for guard in hold(cluster, "a", many).await {
        guard.discard();
    }
    eventually("all are gone", || a.ledger.live() == 0).await;
    a.connect.always(Act::Never);
    let mut waiting: Vec<Pin<Box<dyn Future<Output = _>>>> = Vec::new();
    for _ in 0..many {
        waiting.push(Box::pin(cluster.acquire("a")));
    }
    waiting.iter_mut().for_each(|acquire| assert!(poll_once(acquire.as_mut()).is_pending()));
    eventually("all are being opened", || a.connect.running() == many).await;
    waiting
}

#[tokio::test(start_paused = true)]
async fn a_unit_leaves_a_node_that_does_not_answer_though_it_has_several() {
    for many in [2, 3] {
        let (cluster, managers, whole) = capped(many, 4, [("a", plain()), ("b", plain())]);
        let of_a = opens(&cluster, &managers[0], many).await;
        let served = timeout(1_300 * MILLISECOND, cluster.acquire("b")).await;
        drop(served.expect("a has been silent for a second").unwrap());
        drop(of_a);
        assert_eq!(whole.most_live(), many);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_takes_long_goes_on_beside_a_unit_that_its_node_has_no_use_for() {
    let (cluster, managers, whole) = capped(2, 2, [("a", plain()), ("b", plain())]);
    for guard in hold(&cluster, "a", 2).await {
        guard.discard();
    }
    eventually("both are gone", || managers[0].ledger.live() == 0).await;
    managers[0].connect.always(Act::Slow(1_500 * MILLISECOND));
    let mut of_a = pin!(cluster.acquire("a"));
    assert!(timeout(1_200 * MILLISECOND, of_a.as_mut()).await.is_err());
    drop(timeout(200 * MILLISECOND, cluster.acquire("b")).await.expect("a can spare one").unwrap());
    drop(timeout(400 * MILLISECOND, of_a).await.expect("it has gone on").unwrap());
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 2);
}

#[tokio::test(start_paused = true)]
async fn of_connections_that_are_opened_those_for_nobody_make_room() {
    let (cluster, managers, _) = capped(3, 3, [("a", plain()), ("b", plain())]);
    let mut of_a = opens(&cluster, &managers[0], 3).await;
    let begun = managers[0].connect.calls();
    let mut of_b = Vec::new();
    for more in [1, 2] {
        drop(of_a.pop());
        let served = timeout(200 * MILLISECOND, cluster.acquire("b")).await;
        of_b.push(served.expect("nobody wants one of those that a opens").unwrap());
        // The others go on.
        assert_eq!((managers[0].connect.running(), managers[0].connect.calls()), (3 - more, begun));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_opens_again_is_not_silent_however_long_ago_it_got_its_unit() {
    let (cluster, managers, whole) = capped(1, 1, [("a", plain()), ("b", plain())]);
    cluster.acquire("a").await.unwrap().discard();
    managers[0].connect.always(Act::Slow(300 * MILLISECOND));
    tokio::time::sleep(2 * SECOND).await;
    let began = tokio::time::Instant::now();
    let guard = cluster.acquire_any(Policy::Rank(&first("a"))).await.unwrap();
    assert_eq!((guard.node().as_str(), began.elapsed()), ("a", 300 * MILLISECOND));
    assert_eq!(managers[1].connect.calls(), 0);
    drop(guard);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_has_just_begun_is_not_cut_short_however_long_ago_another_one_failed() {
    let (cluster, managers, whole) = capped(1, 1, [("a", plain()), ("b", plain())]);
    managers[0].connect.once(Act::Permanent);
    assert!(cluster.acquire("a").await.is_err());
    // Nobody looks meanwhile.
    tokio::time::sleep(2 * SECOND).await;
    managers[0].connect.always(Act::Slow(500 * MILLISECOND));
    let mut of_a = pin!(cluster.acquire("a"));
    assert!(timeout(5 * MILLISECOND, of_a.as_mut()).await.is_err());
    let mut of_b = pin!(cluster.acquire("b"));
    assert!(timeout(5 * MILLISECOND, of_b.as_mut()).await.is_err());
    drop(timeout(500 * MILLISECOND, of_a).await.expect("it has gone on").unwrap());
    drop(timeout(SECOND, of_b).await.expect("a has had its turn").unwrap());
    assert_eq!(cluster.status().nodes[0].pool.metrics.connect_failures, 1);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_just_answered_is_not_silent_however_long_its_other_connects_take() {
    let (cluster, managers, _) = capped(3, 4, [("a", plain()), ("b", plain())]);
    for guard in hold(&cluster, "a", 3).await {
        guard.discard();
    }
    eventually("all are gone", || managers[0].ledger.live() == 0).await;
    managers[0].connect.once(Act::Slow(900 * MILLISECOND));
    managers[0].connect.always(Act::Never);
    let mut of_a: Vec<_> = (0..3).map(|_| Box::pin(cluster.acquire("a"))).collect();
    of_a.iter_mut().for_each(|acquire| assert!(poll_once(acquire.as_mut()).is_pending()));
    let served = of_a.remove(0).await.unwrap();
    // Whoever comes next has another one opened.
    let mut next = pin!(cluster.acquire("a"));
    served.discard();
    assert!(poll_once(next.as_mut()).is_pending());
    eventually("it is being opened", || managers[0].connect.running() == 3).await;
    let mut of_b = pin!(cluster.acquire("b"));
    assert!(timeout(500 * MILLISECOND, of_b.as_mut()).await.is_err());
    assert_eq!((managers[0].connect.running(), cluster.status().nodes[0].is_up), (3, true));
    drop(timeout(SECOND, of_b).await.expect("a has been silent for a second").unwrap());
    assert!(!cluster.status().nodes[0].is_up);
}

#[tokio::test(start_paused = true)]
async fn what_is_opened_with_the_only_unit_serves_before_that_goes_on() {
    let (cluster, managers, whole) = capped(1, 1, [("a", plain()), ("b", plain())]);
    let served = |key: &'static str| {
        let cluster = cluster.clone();
        async move { drop(cluster.acquire(key).await.unwrap()) }
    };
    for manager in &managers {
        manager.connect.always(Act::Slow(300 * MILLISECOND));
    }
    let began = tokio::time::Instant::now();
    let a = tokio::spawn(served("a"));
    tokio::task::yield_now().await;
    let b = tokio::spawn(served("b"));
    a.await.unwrap();
    assert_eq!(began.elapsed(), 300 * MILLISECOND);
    b.await.unwrap();
    assert_eq!(managers.each_ref().map(|manager| manager.ledger.opened()), [1, 1]);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_only_unit_leaves_a_node_whose_callers_use_up_what_it_opens_at_once() {
    let (cluster, managers, whole) = capped(1, 1, [("a", plain()), ("b", plain())]);
    // The cap looks every 5 ms, and never sees one in use.
    managers[0].connect.always(Act::Slow(303 * MILLISECOND));
    let of_a = [(); 60].map(|()| {
        let cluster = cluster.clone();
        tokio::spawn(async move { cluster.acquire("a").await.unwrap().discard() })
    });
    tokio::time::sleep(100 * MILLISECOND).await;
    for _ in 0..3 {
        let served = timeout(2 * SECOND, cluster.acquire("b")).await;
        drop(served.expect("a has used it for a second").unwrap());
        tokio::time::sleep(100 * MILLISECOND).await;
    }
    of_a.iter().for_each(tokio::task::JoinHandle::abort);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_takes_long_to_connect_gets_its_only_unit_for_longer_each_time() {
    let (cluster, managers, whole) = capped(1, 1, [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Slow(3_500 * MILLISECOND));
    let (of_b, served) = workers(&cluster, "b", 2, MILLISECOND, Duration::ZERO);
    tokio::time::sleep(100 * MILLISECOND).await;
    drop(timeout(11 * SECOND, cluster.acquire("a")).await.expect("it may take so long").unwrap());
    let served = served.load(Ordering::SeqCst);
    assert!(served > 1_000, "the other one had it for as long in between, and served {served}");
    // Once it has answered, it has a second again.
    managers[0].connect.always(Act::Never);
    tokio::time::sleep(100 * MILLISECOND).await;
    let mut frozen = pin!(cluster.acquire("a"));
    assert!(timeout(100 * MILLISECOND, frozen.as_mut()).await.is_err());
    let served = timeout(1_100 * MILLISECOND, cluster.acquire("b")).await;
    drop(served.expect("a is silent").unwrap());
    of_b.iter().for_each(tokio::task::JoinHandle::abort);
    assert_eq!(whole.most_live(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_primary_is_found_under_a_cap_though_each_connect_takes_more_than_a_second() {
    let builder = builder().max_connections(1);
    let (cluster, managers) = with_roles_of(builder, [Role::Replica, Role::Primary]);
    for manager in &managers {
        manager.connect.always(Act::Slow(1_500 * MILLISECOND));
    }
    let served = timeout(8 * SECOND, cluster.acquire_any(Policy::Primary)).await;
    assert_eq!(served.expect("both have said what they are").unwrap().node(), "b");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_opened_for_nobody_makes_room() {
    for cap in [1, 2] {
        let (cluster, managers, whole) = capped(cap, 2, [("a", plain()), ("b", plain())]);
        managers[0].connect.always(Act::Never);
        assert!(timeout(MILLISECOND, cluster.acquire("a")).await.is_err());
        assert_eq!(managers[0].connect.running(), 1, "it goes on");
        let mut held = Vec::new();
        for _ in 0..cap {
            let served = timeout(200 * MILLISECOND, cluster.acquire("b")).await;
            held.push(served.expect("nobody wants what a opens").unwrap());
        }
        // Which says nothing against it.
        let a = &cluster.status().nodes[0];
        assert_eq!((a.is_up, a.pool.metrics.connect_failures), (true, 0));
        drop(held);
        settled(&cluster, &managers).await;
        assert_eq!(whole.most_live(), cap);
    }
}

#[tokio::test(start_paused = true)]
async fn of_idle_connections_no_more_are_closed_than_may_be_opened_in_their_place() {
    let (cluster, managers, whole) = capped(10, 10, [("a", plain()), ("b", plain())]);
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(cluster.acquire("b").await.unwrap());
    }
    drop(held);
    managers[0].connect.always(Act::Gated);
    let mut waiting: Vec<_> = (0..10).map(|_| Box::pin(cluster.acquire("a"))).collect();
    waiting.iter_mut().for_each(|acquire| assert!(poll_once(acquire.as_mut()).is_pending()));
    tokio::time::sleep(500 * MILLISECOND).await;
    assert_eq!((closed(&managers), managers[0].connect.running()), (1, 1));
    // It answers after all, and all are served.
    managers[0].connect.open(10);
    let mut held = Vec::new();
    for acquire in waiting {
        held.push(timeout(SECOND, acquire).await.expect("b has some to give").unwrap());
    }
    drop(held);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 10);
}

#[tokio::test(start_paused = true)]
async fn of_connections_in_use_none_is_closed_while_another_node_has_idle_ones() {
    let nodes = [("a", plain()), ("b", plain()), ("q", plain())];
    let (cluster, managers, whole) = capped(13, 13, nodes);
    let of_a = hold(&cluster, "a", 8).await;
    drop(hold(&cluster, "b", 5).await);
    tokio::time::sleep(60 * MILLISECOND).await;
    // One at a time may be opened there at first.
    managers[2].connect.always(Act::Gated);
    let mut waiting: Vec<_> = (0..5).map(|_| Box::pin(cluster.acquire("q"))).collect();
    waiting.iter_mut().for_each(|acquire| assert!(poll_once(acquire.as_mut()).is_pending()));
    tokio::time::sleep(20 * MILLISECOND).await;
    drop(of_a);
    tokio::time::sleep(20 * MILLISECOND).await;
    assert_eq!((closed(&managers[..1]), closed(&managers[1..2])), (0, 1));
    managers[2].connect.open(5);
    let mut of_q = Vec::new();
    for acquire in waiting {
        of_q.push(timeout(SECOND, acquire).await.expect("others have some to give").unwrap());
    }
    drop(of_q);
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cap_holds_while_nodes_come_and_go() {
    let (cluster, _, whole) = capped(3, 3, [("stays", plain())]);
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let tasks: Vec<_> = (0..6_u64)
        .map(|number| {
            let (cluster, is_over) = (cluster.clone(), is_over.clone());
            tokio::spawn(async move {
                let (mut random, mut served) = (Random::new(number), 0);
                while !is_over.load(Ordering::SeqCst) {
                    let key = ["stays", "goes"][random.below(2)];
                    match cut_after(random.below(6), cluster.acquire(key)).await {
                        Some(Ok(_)) => served += 1,
                        // It may be gone, or on its way.
                        None
                        | Some(Err(ClusterError::UnknownNode(_) | ClusterError::Removed(_))) => {}
                        Some(Err(error)) => panic!("{error}"),
                    }
                    tokio::task::yield_now().await;
                }
                served
            })
        })
        .collect();
    for _ in 0..300 {
        cluster.add_node("goes".to_owned(), TestManager::counted_in(Some(whole.clone()))).unwrap();
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        drop(cluster.remove_node("goes", Duration::ZERO).await.unwrap());
    }
    is_over.store(true, Ordering::SeqCst);
    let mut served = 0;
    for task in tasks {
        served += joined(task).await;
    }
    assert!(served > 0);
    cluster.add_node("goes".to_owned(), TestManager::counted_in(Some(whole.clone()))).unwrap();
    has_all_its_units(&cluster, 3).await;
    assert_eq!(whole.most_live(), 3);
}

#[test]
fn a_hook_may_use_the_cluster_when_a_cap_has_its_connection_closed() {
    let cluster: Arc<OnceLock<TestCluster>> = Arc::default();
    let hears = cluster.clone();
    let (destroyed, served) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, by_d) = (destroyed.clone(), served.clone());
    let pools = move |pool: PoolBuilder<_>| {
        let (hears, count, by_d) = (hears.clone(), count.clone(), by_d.clone());
        let hooks = Hooks::new().on_destroy(move || {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                // The one node serves, and the other has been passed over.
                let cluster = hears.get().expect("it is built");
                let (c, d) = (first("c"), first("d"));
                let policy = |node: &NodeView<'_, String>| Some(c(node)? * 2.0 + d(node)?);
                let acquired = poll_once(pin!(cluster.acquire_any(Policy::Rank(&policy))));
                let is_d = matches!(acquired, Poll::Ready(Ok(guard)) if guard.node() == "d");
                by_d.fetch_add(usize::from(is_d), Ordering::SeqCst);
            }
        });
        // Where their runtime has ended nobody could check what is idle.
        pool.max_size(3).hooks(hooks).check(CheckPolicy::Never)
    };
    let builder = builder().pools(pools).max_connections(5);
    let nodes = [("a", plain()), ("b", plain()), ("c", plain()), ("d", plain())];
    let (built, managers) = cluster_of(builder, nodes);
    let _ = cluster.set(built.clone());
    runtime().block_on(async {
        let of_a = [built.acquire("a").await.unwrap(), built.acquire("a").await.unwrap()];
        let of_d = [built.acquire("d").await.unwrap(), built.acquire("d").await.unwrap()];
        drop((built.acquire("a").await.unwrap(), of_a, of_d));
    });
    // Without a runtime, who has a connection closed does it.
    let (b, d) = (first("b"), first("d"));
    let policy = |node: &NodeView<'_, String>| Some(b(node)? * 2.0 + d(node)?);
    let guard = pollster::block_on(built.acquire_any(Policy::Rank(&policy))).unwrap();
    assert_eq!(guard.node(), "d");
    assert_eq!(served.load(Ordering::SeqCst), 1);
    assert_eq!(managers[0].ledger.live() + destroyed.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_cap_that_cannot_be_shared_evenly_leaves_connections_where_they_are() {
    let (cluster, managers, whole) = capped(3, 3, [("a", plain()), ("b", plain())]);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(cluster.acquire("a").await.unwrap());
    }
    let turns = |key: &'static str| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            for _ in 0..100 {
                let guard = cluster.acquire(key).await.unwrap();
                tokio::time::sleep(MILLISECOND).await;
                drop(guard);
            }
        })
    };
    let tasks: Vec<_> =
        ["a", "b"].into_iter().flat_map(|key| [(); 8].map(|()| turns(key))).collect();
    drop(held);
    eventually("b has its share", || managers[1].ledger.opened() > 0).await;
    let opened = || managers.iter().map(|manager| manager.ledger.opened()).sum::<usize>();
    let before = opened();
    for _ in 0..100 {
        tokio::time::sleep(MILLISECOND).await;
        assert!(opened() <= before + 1, "connections are closed and opened all the time");
    }
    for task in tasks {
        joined(task).await;
    }
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 3);
}

#[tokio::test]
async fn connections_of_a_node_that_was_removed_count_until_they_are_gone() {
    let (cluster, managers, whole) = capped(2, 2, [("a", plain()), ("b", plain())]);
    let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
    let report = cluster.remove_node("a", 5 * MILLISECOND).await.unwrap();
    assert_eq!(report.still_out.len(), 2);
    let mut acquire = pin!(cluster.acquire("b"));
    for _ in 0..50 {
        assert!(poll_once(acquire.as_mut()).is_pending());
        tokio::time::sleep(MILLISECOND).await;
    }
    assert_eq!(managers[1].connect.calls(), 0);
    let [one, _other] = held;
    drop(one);
    assert_eq!(acquire.await.unwrap().node(), "b");
    assert_eq!(whole.most_live(), 2);
}

#[tokio::test]
async fn an_idle_connection_makes_room_though_a_removed_node_has_one_out() {
    let nodes = [("a", plain()), ("b", plain()), ("gone", plain())];
    let (cluster, managers, whole) = capped(2, 2, nodes);
    let out = cluster.acquire("gone").await.unwrap();
    drop(cluster.acquire("a").await.unwrap());
    assert_eq!(cluster.remove_node("gone", MILLISECOND).await.unwrap().still_out.len(), 1);
    let b = timeout(PATIENCE, cluster.acquire("b")).await.expect("a has one to give").unwrap();
    assert_eq!(managers.each_ref().map(|manager| manager.ledger.live()), [0, 1, 1]);
    drop((b, out));
    assert_eq!(whole.most_live(), 2);
}

#[tokio::test]
async fn with_a_cap_too_a_removal_that_is_given_up_closes_the_node_at_once() {
    let (cluster, managers, whole) = capped(2, 2, [("a", plain()), ("b", plain())]);
    let guard = cluster.acquire("a").await.unwrap();
    drop(cluster.acquire("a").await.unwrap());
    assert!(cut_after(1, cluster.remove_node("a", PATIENCE)).await.is_none());
    eventually("the idle one is closed", || managers[0].ledger.live() == 1).await;
    drop(cluster.acquire("b").await.unwrap());
    drop(guard);
    eventually("the other one is closed", || managers[0].ledger.live() == 0).await;
    assert_eq!(whole.most_live(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_fails_because_a_cap_is_used_up_says_so_and_who_has_what() {
    let builder = builder().max_connections(1).acquire_timeout(400 * MILLISECOND);
    let (cluster, _) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let b = cluster.node("b").unwrap();
    let only_b = |node: &NodeView<'_, String>| (node.key() == "b").then_some(0.0);
    let held = cluster.acquire("a").await.unwrap();
    let why = "the cap of 1 connection on all nodes together (max_connections) is used up: a";
    let failures = [
        cluster.acquire("b").await.unwrap_err().to_string(),
        b.acquire().await.unwrap_err().to_string(),
        cluster.acquire_any(Policy::Rank(&only_b)).await.unwrap_err().to_string(),
    ];
    for failure in failures {
        assert!(failure.ends_with(&format!("; {why} has 1")), "{failure}");
    }
    let refused = "warm_up is 1, but it must be at most what the node may have under max_connections, \
                   which is 0 now";
    let failure = b.warm_up(1).await.unwrap_err().to_string();
    assert_eq!(failure, format!("{refused}: {why} has 1"));
    let failure = b.rotate(|_| Box::pin(async { Ok(()) })).await.unwrap_err();
    let failure = std::error::Error::source(&failure).expect("there is no room").to_string();
    assert!(failure.ends_with(&format!("; {why} has 1")), "{failure}");
    // Also if it is not there any more.
    drop(cluster.remove_node("a", Duration::ZERO).await.unwrap());
    let failure = cluster.acquire("b").await.unwrap_err().to_string();
    assert!(failure.ends_with(&format!("; {why} (removed) has 1")), "{failure}");
    drop(held);
    eventually("that of a is closed", || cluster.status().connections == 0).await;
    let failure = b.warm_up(1).await.unwrap_err().to_string();
    assert_eq!(failure, format!("{refused}, and gets more as its callers need it"));
    // Above its own limit it is that which counts.
    let failure = b.warm_up(5).await.unwrap_err().to_string();
    assert_eq!(failure, "warm_up is 5, but it must be at most max_size, which is 4");
}

#[tokio::test(start_paused = true)]
async fn a_cap_that_is_not_why_is_not_named() {
    let builder = builder().pools(|pool| pool.max_size(1)).max_connections(2);
    let builder = builder.acquire_timeout(400 * MILLISECOND);
    let (cluster, _) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let _held = [cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()];
    for failure in [
        cluster.acquire("a").await.unwrap_err().to_string(),
        cluster.acquire_any(Policy::RoundRobin).await.unwrap_err().to_string(),
    ] {
        assert!(!failure.contains("max_connections"), "{failure}");
    }
    // Another one could have more, but nobody waits there.
    drop(cluster.remove_node("b", Duration::ZERO).await.unwrap());
    cluster.add_node("c".to_owned(), TestManager::new()).unwrap();
    let only_a = |node: &NodeView<'_, String>| (node.key() == "a").then_some(0.0);
    let failure = cluster.acquire_any(Policy::Rank(&only_a)).await.unwrap_err().to_string();
    assert!(!failure.contains("max_connections"), "{failure}");
    let failure = cluster.acquire("c").await.unwrap_err().to_string();
    assert!(failure.ends_with(" is used up: a has 1, b (removed) has 1"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn of_many_nodes_that_use_up_a_cap_the_three_are_named_that_have_most() {
    let builder = builder().max_connections(7).acquire_timeout(400 * MILLISECOND);
    let nodes = [("a", plain()), ("b", plain()), ("c", plain()), ("d", plain()), ("e", plain())];
    let (cluster, _) = cluster_of(builder, nodes);
    let mut held = Vec::new();
    for (key, many) in [("a", 1), ("b", 2), ("c", 3), ("d", 1)] {
        held.extend(hold(&cluster, key, many).await);
    }
    let failure = cluster.acquire("e").await.unwrap_err().to_string();
    let who = "the cap of 7 connections on all nodes together (max_connections) is used up: \
               c has 3, b has 2, a has 1, others the rest";
    assert!(failure.ends_with(who), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_status_tells_the_cap_and_how_much_of_it_is_in_use() {
    let (cluster, _, _) = capped(3, 3, [("a", plain()), ("b", plain())]);
    let held = hold(&cluster, "a", 2).await;
    let of_b = cluster.acquire("b").await.unwrap();
    drop(cluster.remove_node("a", Duration::ZERO).await.unwrap());
    drop(of_b);
    let status = cluster.status();
    assert_eq!((status.max_connections, status.connections), (Some(3), 3));
    let line = status.to_string().lines().next().unwrap().to_owned();
    assert!(line.ends_with("; 3 of max_connections 3"), "{line}");
    let line = format!("{status:#}");
    assert!(line.contains("; 1 nodes, 3 of max_connections 3, 0 of 1 in use, 1 idle"), "{line}");
    #[cfg(feature = "serde")]
    {
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!((&json["max_connections"], &json["connections"]), (&3.into(), &3.into()));
    }
    drop(held);
    eventually("those of a are closed", || cluster.status().connections == 1).await;
    // Without a cap as well.
    let (cluster, _) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let held = cluster.acquire("a").await.unwrap();
    drop(cluster.acquire("b").await.unwrap());
    drop(cluster.remove_node("a", Duration::ZERO).await.unwrap());
    let status = cluster.status();
    assert_eq!((status.max_connections, status.connections), (None, 2));
    drop(held);
    assert!(!status.to_string().contains("max_connections"));
}

#[tokio::test]
async fn settings_that_a_cap_cannot_do_with_are_refused() {
    let error = builder().max_connections(0).build().unwrap_err();
    assert_eq!(error.to_string(), "max_connections is 0, but it must be at least 1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cap_holds_under_load_and_nobody_waits_in_vain() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain()), ("d", plain())];
    let (cluster, managers, whole) = capped(5, 4, nodes);
    let tasks: Vec<_> = (0..24_usize)
        .map(|number| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                let mut random = Random::new(number as u64);
                for _ in 0..400 {
                    let key = ["a", "b", "c", "d"][random.below(4)];
                    let guard = match random.below(8) {
                        0 => cluster.acquire_any(Policy::LeastInUse).await.map(Some),
                        1 => Ok(cut_after(2, cluster.acquire(key))
                            .await
                            .transpose()
                            .expect("no error")),
                        2 => cluster.acquire_any(Policy::RoundRobin).await.map(Some),
                        _ => cluster.acquire(key).await.map(Some),
                    };
                    let guard = guard.expect("served in time");
                    if random.below(16) == 0 {
                        guard.into_iter().for_each(ClusterGuard::discard);
                    } else if random.below(4) == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        joined(task).await;
    }
    settled(&cluster, &managers).await;
    has_all_its_units(&cluster, 5).await;
    settled(&cluster, &managers).await;
    assert_eq!(whole.most_live(), 5);
}

/// A runtime for a test that has several.
#[test]
fn who_waits_under_a_cap_in_a_runtime_that_has_ended_waits_and_does_no_more() {
    join(std::thread::spawn(|| {
        let nodes = [("a", plain()), ("b", plain())];
        let builder = builder().max_connections(1).acquire_timeout(Duration::MAX);
        let (cluster, _managers) = cluster_of(builder, nodes);
        let ended = runtime();
        let _held = ended.block_on(cluster.acquire("a")).unwrap();
        let handle = ended.handle().clone();
        drop(ended);
        let _in_it = handle.enter();
        let mut acquire = pin!(cluster.acquire("b"));
        assert!(poll_once(acquire.as_mut()).is_pending());
    }));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The same with a clock that goes on when nothing else does.
fn paused() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

#[test]
fn outside_a_runtime_who_may_go_anywhere_gets_what_is_idle_or_is_told() {
    for limit in [PATIENCE, Duration::MAX] {
        let builder = builder().acquire_timeout(limit);
        let (cluster, _managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
        let told = |served: Result<Guard<'_>, ClusterError<String, TestError>>| {
            let error = served.unwrap_err();
            let ClusterError::Node(refusal) = &error else { panic!("{error}") };
            assert!(matches!(refusal.source, AcquireError::NoRuntime), "{error}");
        };
        told(pollster::block_on(cluster.acquire("a")));
        told(pollster::block_on(cluster.acquire_any(Policy::RoundRobin)));
        told(pollster::block_on(cluster.acquire_for(b"session")));
        let one = runtime();
        one.block_on(async { drop(cluster.acquire("b").await.unwrap()) });
        let policy = Policy::Rank(&first("a"));
        let guard = pollster::block_on(cluster.acquire_any(policy)).unwrap();
        assert_eq!(guard.node(), "b", "a has none that is idle");
        told(pollster::block_on(cluster.acquire_any(policy)));
    }
    let (empty, []) = cluster_of(builder(), []);
    let error = pollster::block_on(empty.acquire_any(Policy::RoundRobin)).unwrap_err();
    assert!(matches!(error, ClusterError::Unavailable(_)), "{error}");
}

#[test]
fn a_cap_goes_on_though_the_runtime_ends_before_it_has_begun_there() {
    let (cluster, managers, whole) = capped(2, 2, [("a", plain()), ("b", plain())]);
    let one = runtime();
    let mut held = one.block_on(async {
        let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
        // What it leaves to the runtime is not polled any more.
        assert!(poll_once(pin!(cluster.acquire("b"))).is_pending());
        held.into_iter()
    });
    drop(one);
    runtime().block_on(async {
        let mut acquire = pin!(cluster.acquire("b"));
        assert!(poll_once(acquire.as_mut()).is_pending());
        held.next();
        assert_eq!(timeout(PATIENCE, acquire).await.expect("in time").unwrap().node(), "b");
        drop(held);
        settled(&cluster, &managers).await;
    });
    assert_eq!(whole.most_live(), 2);
}

#[test]
fn a_cap_goes_on_for_others_though_the_runtime_ends_where_it_looks() {
    let (cluster, managers, whole) = capped(2, 2, [("a", plain()), ("b", plain())]);
    let (one, other) = (runtime(), runtime());
    let held = one.block_on(async {
        let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
        tokio::spawn({
            let cluster = cluster.clone();
            async move { drop(cluster.acquire("b").await) }
        });
        eventually("it is in line", || cluster.status().totals.counts.waiters == 1).await;
        held
    });
    other.block_on(async {
        let mut acquire = pin!(cluster.acquire("b"));
        assert!(poll_once(acquire.as_mut()).is_pending());
        one.shutdown_background();
        assert!(timeout(20 * MILLISECOND, acquire.as_mut()).await.is_err(), "all are in use");
        drop(held);
        assert_eq!(timeout(PATIENCE, acquire).await.expect("in time").unwrap().node(), "b");
        settled(&cluster, &managers).await;
    });
    assert_eq!(whole.most_live(), 2);
}

#[test]
fn what_asks_a_server_for_its_role_hears_that_the_runtime_has_ended_where_the_cap_looks() {
    let (one, other) = (runtime(), runtime());
    let builder = builder().max_connections(1);
    let (cluster, managers) = with_roles_of(builder, [Role::Replica, Role::Primary]);
    cluster.add_node("x".to_owned(), TestManager::new()).unwrap();
    let waiters = |key: &str| cluster.node(key).unwrap().metrics().counts.waiters;
    let held = other.block_on(cluster.acquire("a")).unwrap();
    one.block_on(async {
        tokio::spawn({
            let cluster = cluster.clone();
            async move { drop(cluster.acquire("x").await) }
        });
        eventually("it is in line", || waiters("x") == 1).await;
    });
    other.block_on(async {
        let mut acquire = pin!(cluster.acquire_any(Policy::Primary));
        assert!(poll_once(acquire.as_mut()).is_pending());
        eventually("both are to be asked", || waiters("a") + waiters("b") == 2).await;
        // So that nobody asks it again, who would look after the cap himself.
        drop(cluster.remove_node("x", Duration::ZERO).await.unwrap());
        one.shutdown_background();
        assert!(timeout(100 * MILLISECOND, acquire.as_mut()).await.is_err(), "it is in use");
        drop(held);
        assert_eq!(acquire.await.unwrap().node(), "b");
        settled(&cluster, &managers).await;
    });
}

#[test]
fn a_cap_sees_who_is_in_line_once_more_after_he_has_looked_again_in_vain() {
    let (cluster, managers, whole) = capped(1, 1, [("a", plain()), ("b", plain())]);
    let one = runtime();
    one.block_on(async {
        cluster.acquire("a").await.unwrap().discard();
        settled(&cluster, &managers).await;
    });
    paused().block_on(async {
        let mut acquire = pin!(cluster.acquire("a"));
        assert!(poll_once(acquire.as_mut()).is_pending());
        // It is to be opened where nobody opens it, for more than a turn, so that the unit may go elsewhere.
        tokio::time::sleep(200 * MILLISECOND).await;
        one.shutdown_background();
        // It is to look again, and until it does, the cap sees nobody who waits for a.
        let held = cluster.acquire("b").await.unwrap();
        assert!(poll_once(acquire.as_mut()).is_pending());
        drop(held);
        assert_eq!(timeout(SECOND, acquire).await.expect("in time").unwrap().node(), "a");
        settled(&cluster, &managers).await;
    });
    assert_eq!(whole.most_live(), 1);
}

#[test]
fn a_node_is_tried_where_its_pool_lives_though_nobody_drives_the_runtime_of_who_passed_it_over() {
    let (one, other) = (runtime(), runtime());
    let (cluster, _managers) = {
        let _in_it = one.enter();
        cluster_of(builder(), [("a", plain()), ("b", plain())])
    };
    one.block_on(async { drop(cluster.acquire("b").await.unwrap()) });
    let policy = first("a");
    let guard = other.block_on(cluster.acquire_any(Policy::Rank(&policy))).unwrap();
    assert_eq!(guard.node(), "b");
    let idle = || cluster.node("a").unwrap().metrics().counts.idle;
    one.block_on(eventually("a is warm", || idle() == 1));
}

#[test]
fn servers_are_asked_for_their_roles_though_nobody_drives_the_runtime_of_who_wants_to_know() {
    let (one, other) = (runtime(), runtime());
    let (cluster, managers) = {
        let _in_it = one.enter();
        with_roles([Role::Replica, Role::Replica])
    };
    one.block_on(async {
        drop([cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()]);
    });
    become_primary(&managers[1], true);
    other.block_on(async {
        assert!(poll_once(pin!(cluster.acquire_any(Policy::Primary))).is_pending());
    });
    let guard = one.block_on(cluster.acquire_any(Policy::Primary)).unwrap();
    assert_eq!((guard.node().as_str(), guard.role()), ("b", Role::Primary));
}

#[test]
fn a_cap_goes_on_though_nobody_drives_the_runtime_of_who_waited_first() {
    let (one, other) = (runtime(), runtime());
    let (cluster, managers, whole) = {
        let _in_it = one.enter();
        capped(2, 2, [("a", plain()), ("b", plain())])
    };
    let mut held = one.block_on(async {
        [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()].into_iter()
    });
    other.block_on(async { assert!(poll_once(pin!(cluster.acquire("b"))).is_pending()) });
    one.block_on(async {
        let mut acquire = pin!(cluster.acquire("b"));
        assert!(poll_once(acquire.as_mut()).is_pending());
        held.next();
        assert_eq!(acquire.await.unwrap().node(), "b");
        drop(held);
        settled(&cluster, &managers).await;
    });
    assert_eq!(whole.most_live(), 2);
}

#[test]
fn a_cap_looks_where_some_node_lives_for_those_who_wait_outside_a_runtime() {
    for keys in [&["b"][..], &["a", "b"], &["a"]] {
        let builder = builder().max_connections(2).acquire_timeout(Duration::MAX);
        let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
        let (cluster, managers) = cluster_of(builder, nodes);
        let one = runtime();
        let held = one.block_on(async {
            let held = [cluster.acquire("b").await.unwrap(), cluster.acquire("c").await.unwrap()];
            // Each node has had its turn with its only unit, and may be asked for that.
            tokio::time::sleep(60 * MILLISECOND).await;
            held
        });
        // Nobody has used a, so its pool has no runtime: who waits there is told so once it may have one.
        let mut waiting: Vec<_> =
            keys.iter().map(|key| (*key, Wakes::new(), Box::pin(cluster.acquire(*key)))).collect();
        for (_, (_, waker), acquire) in &mut waiting {
            assert!(poll_with(acquire.as_mut(), waker).is_pending());
        }
        one.block_on(async { drop(held) });
        for (key, (wakes, waker), mut acquire) in waiting {
            let mut seen = 0;
            let served = loop {
                one.block_on(eventually("it is woken", || wakes.count() > seen));
                seen = wakes.count();
                if let Poll::Ready(served) = poll_with(acquire.as_mut(), &waker) {
                    break served;
                }
            };
            match served {
                Ok(guard) => assert_eq!((key, guard.node().as_str()), ("b", "b")),
                Err(ClusterError::Node(refusal)) => {
                    let source = refusal.source;
                    assert!(key == "a" && matches!(source, AcquireError::NoRuntime), "{source}");
                }
                Err(error) => panic!("{error}"),
            }
        }
        one.block_on(settled(&cluster, &managers));
    }
}

#[test]
fn a_check_that_is_late_comes_to_its_end_though_nobody_drives_the_runtime_of_who_began_it() {
    for (act, idle) in [(Act::Gated, 1), (Act::Never, 0)] {
        let (one, other) = (paused(), paused());
        let (cluster, managers) = one.block_on(warm_and_checked());
        managers[0].check.always(act);
        let policy = first("a");
        let guard = other.block_on(cluster.acquire_any(Policy::Rank(&policy))).unwrap();
        assert_eq!((guard.node().as_str(), managers[0].check.running()), ("b", 1));
        managers[0].check.open(1);
        let counts = || cluster.node("a").unwrap().metrics().counts;
        one.block_on(eventually("it is over", || counts().checking == 0));
        assert_eq!(counts().idle, idle);
    }
}

/// A cluster of three nodes whose connections are checked before each use, each with one that is idle.
async fn warm_and_checked() -> (TestCluster, [TestManager; 3]) {
    let checks = |pool: PoolBuilder<_>| pool.max_size(1).check(CheckPolicy::Always);
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers) = cluster_of(builder().pools(checks), nodes);
    for key in ["a", "b", "c"] {
        drop(cluster.acquire(key).await.unwrap());
    }
    (cluster, managers)
}

/// How many checks there have been, of all nodes.
fn checked(managers: &[TestManager]) -> usize {
    managers.iter().map(|manager| manager.check.calls()).sum()
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_may_go_anywhere_checks_one_connection_and_closes_none() {
    let (cluster, managers) = warm_and_checked().await;
    for manager in &managers {
        manager.check.always(Act::Slow(MILLISECOND));
    }
    let before = checked(&managers);
    for policy in [Policy::RoundRobin, Policy::LeastInUse, Policy::Nearest] {
        spread(&cluster, policy, 4).await;
    }
    assert_eq!(checked(&managers) - before, 12);
    assert_eq!(cluster.status().totals.closed.total(), 0);
    settled(&cluster, &managers).await;
}

#[tokio::test(start_paused = true)]
async fn a_check_that_does_not_answer_costs_a_quarter_of_a_second_and_goes_on() {
    let (cluster, managers) = warm_and_checked().await;
    managers[0].check.always(Act::Gated);
    let began = tokio::time::Instant::now();
    let guard = cluster.acquire_any(Policy::Rank(&first("a"))).await.unwrap();
    assert_eq!((guard.node().as_str(), began.elapsed()), ("b", 250 * MILLISECOND));
    assert_eq!(managers[0].check.running(), 1);
    managers[0].check.open(1);
    eventually("its connection is idle again", || {
        cluster.node("a").unwrap().metrics().counts.idle == 1
    })
    .await;
    drop(guard);
    let totals = cluster.status().totals;
    assert_eq!((totals.closed.total(), totals.waits.failures()), (0, 0));
    assert_eq!(totals.acquires, 4, "nobody had that connection");
    settled(&cluster, &managers).await;
}

#[tokio::test(start_paused = true)]
async fn what_passes_its_check_after_another_node_has_served_is_not_checked_again() {
    let (cluster, managers) = warm_and_checked().await;
    managers[0].check.always(Act::Slow(SECOND));
    let before = managers[0].check.calls();
    let guard = cluster.acquire_any(Policy::Rank(&first("a"))).await.unwrap();
    assert_eq!((guard.node().as_str(), managers[0].check.running()), ("b", 1));
    // The rest of the check, and several looks of the maintenance.
    tokio::time::sleep(4 * SECOND).await;
    drop(cluster.acquire("a").await.unwrap());
    assert_eq!(managers[0].check.calls() - before, 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_check_that_fails_the_next_node_serves_at_once() {
    let (cluster, managers) = warm_and_checked().await;
    managers[0].check.always(Act::Error);
    managers[0].connect.always(Act::Never);
    let began = tokio::time::Instant::now();
    let guard = cluster.acquire_any(Policy::Rank(&first("a"))).await.unwrap();
    assert_eq!((guard.node().as_str(), began.elapsed()), ("b", Duration::ZERO));
    assert_eq!(cluster.node("a").unwrap().metrics().closed.failed_check, 1);
}

#[tokio::test]
async fn a_check_of_what_came_back_goes_on_though_another_node_serves_first() {
    let (cluster, managers) = warm_and_checked().await;
    let mut held = HashMap::new();
    for key in ["a", "b", "c"] {
        held.insert(key, cluster.acquire(key).await.unwrap());
    }
    managers[0].check.always(Act::Gated);
    let mut acquire = pin!(cluster.acquire_any(Policy::RoundRobin));
    assert!(poll_once(acquire.as_mut()).is_pending());
    held.remove("a");
    assert!(poll_once(acquire.as_mut()).is_pending());
    assert_eq!(managers[0].check.running(), 1);
    held.remove("b");
    assert_eq!(acquire.await.unwrap().node(), "b");
    managers[0].check.open(1);
    eventually("a's connection is idle", || cluster.node("a").unwrap().metrics().counts.idle == 1)
        .await;
    drop(held);
    assert_eq!(cluster.status().totals.closed.total(), 0);
    settled(&cluster, &managers).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_answer_costs_no_more_though_another_changes_all_the_time() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers) = cluster_of(builder(), nodes);
    managers[0].connect.always(Act::Never);
    let changes = tokio::spawn({
        let cluster = cluster.clone();
        async move {
            loop {
                tokio::time::sleep(100 * MILLISECOND).await;
                cluster.set_options("c", plain()).unwrap();
            }
        }
    });
    let began = tokio::time::Instant::now();
    let guard = cluster.acquire_any(Policy::Rank(&first("a"))).await.unwrap();
    assert_eq!((guard.node().as_str(), began.elapsed()), ("b", 250 * MILLISECOND));
    changes.abort();
}

#[tokio::test]
async fn a_change_elsewhere_has_no_other_node_open_a_connection() {
    let nodes = [("a", plain()), ("b", plain()), ("c", plain()), ("d", plain())];
    let (cluster, managers) = cluster_of(builder().pools(|pool| pool.max_size(1)), nodes);
    for manager in &managers {
        manager.connect.always(Act::Gated);
    }
    let mut acquire = pin!(cluster.acquire_any(Policy::RoundRobin));
    assert!(poll_once(acquire.as_mut()).is_pending());
    let dialing = || managers.iter().filter(|manager| manager.connect.running() > 0).count();
    eventually("one opens a connection", || dialing() == 1).await;
    for _ in 0..10 {
        cluster.set_options("d", plain()).unwrap();
        assert!(poll_once(acquire.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(dialing(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_is_counted_once_at_however_many_nodes_it_waits() {
    let builder = builder().pools(|pool| pool.max_size(1)).acquire_timeout(SECOND);
    let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
    let (cluster, managers) = cluster_of(builder, nodes);
    let waits = |key: &str| cluster.node(key).unwrap().metrics().waits;
    let mut held = HashMap::new();
    for key in ["a", "b"] {
        held.insert(key, cluster.acquire(key).await.unwrap());
    }
    managers[2].connect.always(Act::Never);
    let first = first("b");
    let policy = Policy::Rank(&first);
    assert!(cluster.acquire_any(policy).await.is_err());
    assert_eq!((waits("b").timed_out, waits("b").failures()), (1, 1), "it waited there first");
    assert_eq!((waits("a").failures(), waits("c").failures()), (0, 0));
    // One that is given up.
    assert!(cut_after(2, cluster.acquire_any(policy)).await.is_none());
    assert_eq!((waits("b").cancelled, waits("b").failures()), (1, 2));
    assert_eq!((waits("a").failures(), waits("c").failures()), (0, 0));
    // One that is served.
    let mut acquire = pin!(cluster.acquire_any(policy));
    assert!(timeout(600 * MILLISECOND, acquire.as_mut()).await.is_err(), "all are in use");
    drop(held.remove("a"));
    assert_eq!(acquire.await.unwrap().node(), "a");
    assert_eq!((waits("b").failures(), waits("c").failures()), (2, 0));
    let a = cluster.node("a").unwrap().metrics();
    assert_eq!((a.waits.served, a.waits.failures()), (2, 0));
    assert!(a.acquire_wait.max() >= Some(550 * MILLISECOND), "{:?}", a.acquire_wait.max());
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_node_that_was_not_the_first_has_begun_with_the_acquire() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Never);
    managers[1].connect.always(Act::Gated);
    let first = first("a");
    let mut acquire = pin!(cluster.acquire_any(Policy::Rank(&first)));
    assert!(timeout(400 * MILLISECOND, acquire.as_mut()).await.is_err());
    managers[1].connect.open(1);
    assert_eq!(acquire.await.unwrap().node(), "b");
    let waited = cluster.node("b").unwrap().metrics().acquire_wait.max();
    assert!(waited >= Some(350 * MILLISECOND), "{waited:?}");
    assert_eq!(cluster.status().totals.waits.failures(), 0);
}

#[tokio::test]
async fn who_waits_is_not_served_by_a_node_that_he_would_not_choose_any_more() {
    let builder = builder().pools(|pool| pool.max_size(1));
    let (cluster, _managers) = cluster_of(builder, [("a", plain())]);
    let near = |node: &NodeView<'_, String>| node.label("zone").map(|_| 0.0);
    for (policy, fit, unfit) in [
        (Policy::Primary, primary(), replica()),
        (Policy::Replica, replica(), primary()),
        (Policy::Rank(&near), plain().label("zone", "x"), plain()),
    ] {
        cluster.set_options("a", fit.clone()).unwrap();
        let held = cluster.acquire("a").await.unwrap();
        let mut acquire = pin!(cluster.acquire_any(policy));
        assert!(poll_once(acquire.as_mut()).is_pending());
        cluster.set_options("a", unfit).unwrap();
        // It is handed to him before he has heard of the change.
        drop(held);
        assert!(poll_once(acquire.as_mut()).is_pending(), "{policy:?}");
        cluster.set_options("a", fit).unwrap();
        drop(acquire.await.unwrap());
    }
}

#[tokio::test]
async fn new_options_leave_everybody_his_place_in_line() {
    let builder = builder().pools(|pool| pool.max_size(1).shards(1));
    let (cluster, _managers) = cluster_of(builder, [("a", plain())]);
    let held = cluster.acquire("a").await.unwrap();
    let mut one = pin!(cluster.acquire_any(Policy::RoundRobin));
    assert!(poll_once(one.as_mut()).is_pending());
    let mut other = pin!(cluster.acquire("a"));
    assert!(poll_once(other.as_mut()).is_pending());
    cluster.set_options("a", plain().weight(2)).unwrap();
    assert!(poll_once(one.as_mut()).is_pending());
    assert!(poll_once(other.as_mut()).is_pending());
    drop(held);
    assert!(poll_once(other.as_mut()).is_pending(), "he came later");
    drop(one.await.unwrap());
    drop(other.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_fails_fast_asks_the_servers_first_who_they_are() {
    let began = tokio::time::Instant::now();
    let (cluster, managers) =
        with_roles_of(builder().fail_fast(true), [Role::Replica, Role::Primary]);
    managers[0].connect.always(Act::Slow(MILLISECOND));
    assert_eq!(cluster.acquire_any(Policy::Primary).await.unwrap().node(), "b");
    assert_eq!(cluster.acquire_any(Policy::Replica).await.unwrap().node(), "a");
    let (cluster, managers) =
        with_roles_of(builder().fail_fast(true), [Role::Replica, Role::Replica]);
    managers[1].connect.always(Act::Slow(MILLISECOND));
    for _ in 0..2 {
        let error = cluster.acquire_any(Policy::Primary).await.unwrap_err();
        assert!(matches!(error, ClusterError::Unavailable(_)), "{error}");
        assert!(!error.to_string().contains("role unknown"), "{error}");
    }
    assert!(began.elapsed() < 100 * MILLISECOND, "{:?}", began.elapsed());
    // One that does not answer is waited for until the deadline.
    let builder = builder().fail_fast(true).acquire_timeout(SECOND);
    let (cluster, managers) = with_roles_of(builder, [Role::Replica, Role::Replica]);
    managers[0].connect.always(Act::Never);
    let error = cluster.acquire_any(Policy::Primary).await.unwrap_err();
    assert!(matches!(error, ClusterError::Timeout(_)), "{error}");
}

#[test]
fn who_fails_fast_hears_what_a_server_says_while_he_looks_at_it() {
    let builder = builder().fail_fast(true);
    let (cluster, [_, b]) = with_roles_of(builder, [Role::Replica, Role::Primary]);
    b.connect.always(Act::Gated);
    let role = |key: &str| {
        let nodes = cluster.status().nodes;
        nodes.iter().find(|node| node.key == key).unwrap().role
    };
    let looks = AtomicUsize::new(0);
    let policy = |node: &NodeView<'_, String>| {
        if node.key() == "a" || role("a") != Role::Replica {
            return None;
        }
        if looks.fetch_add(1, Ordering::SeqCst) == 0 {
            b.connect.open(64);
            eventually_blocking("it has answered", || role("b") == Role::Primary);
        }
        // For the first of all nodes and then for their order it goes by what was so before.
        (looks.load(Ordering::SeqCst) > 2).then_some(0.0)
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build();
    runtime.unwrap().block_on(async {
        let served = cluster.acquire_any(Policy::Rank(&policy)).await.unwrap();
        assert_eq!(served.node(), "b");
        // Whoever is none is not taken for one, however often it is looked at.
        let nobody = |_: &NodeView<'_, String>| None;
        let error = cluster.acquire_any(Policy::Rank(&nobody)).await.unwrap_err();
        assert!(matches!(error, ClusterError::Unavailable(_)), "{error}");
    });
}

#[tokio::test(start_paused = true)]
async fn who_may_go_anywhere_gets_the_last_connection_of_a_node_where_nothing_comes_back() {
    let nodes = [("p", primary()), ("r1", replica()), ("r2", replica())];
    let (cluster, _managers, whole) = capped(2, 2, nodes);
    let held = cluster.acquire("r1").await.unwrap();
    let writes = tokio::spawn({
        let cluster = cluster.clone();
        async move {
            loop {
                let guard = cluster.acquire("p").await.unwrap();
                tokio::time::sleep(MILLISECOND).await;
                drop(guard);
            }
        }
    });
    tokio::time::sleep(100 * MILLISECOND).await;
    let served = timeout(2 * SECOND, cluster.acquire_any(Policy::Replica)).await;
    assert_eq!(served.expect("p has its turns only").unwrap().node(), "r2");
    writes.abort();
    drop(held);
    assert_eq!(whole.most_live(), 2);
}

#[test]
fn outside_a_runtime_who_may_go_anywhere_gets_what_has_only_to_be_looked_at() {
    let timed = |pool: PoolBuilder<_>| pool.time_use(true);
    let (cluster, managers) = cluster_of(builder().pools(timed), [("a", plain()), ("b", plain())]);
    let one = runtime();
    one.block_on(async { drop(cluster.acquire("b").await.unwrap()) });
    let policy = Policy::Rank(&first("a"));
    assert_eq!(pollster::block_on(cluster.acquire_any(policy)).unwrap().node(), "b");
    // One that has to be checked is in nobody's way, and stays.
    one.block_on(async {
        managers[0].condition.once(Act::Gated);
        drop(cluster.acquire("a").await.unwrap());
    });
    assert_eq!(pollster::block_on(cluster.acquire_any(policy)).unwrap().node(), "b");
    assert_eq!(cluster.node("a").unwrap().metrics().counts.idle, 1);
    assert_eq!(cluster.status().totals.closed.total(), 0);
}

#[tokio::test]
async fn who_has_been_served_and_does_not_know_it_yet_hides_nobody_else_who_waits() {
    let builder = builder().pools(|pool| pool.max_size(2));
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let held = [cluster.acquire("b").await.unwrap(), cluster.acquire("b").await.unwrap()];
    managers[0].connect.always(Act::Gated);
    let first = first("a");
    let mut acquire = pin!(cluster.acquire_any(Policy::Rank(&first)));
    assert!(poll_once(acquire.as_mut()).is_pending());
    let [one, other] = held;
    drop(one);
    other.discard();
    eventually("it is closed", || managers[1].ledger.live() == 1).await;
    let by_name = timeout(PATIENCE, cluster.acquire("b")).await.expect("there is room").unwrap();
    assert_eq!(acquire.await.unwrap().node(), "b");
    drop(by_name);
    assert_eq!(managers[1].ledger.opened(), 3);
}

#[test]
fn who_waits_under_a_cap_in_a_runtime_that_has_ended_does_not_wake_himself() {
    join(std::thread::spawn(|| {
        let nodes = [("a", plain()), ("b", plain())];
        let builder = builder().max_connections(1).acquire_timeout(Duration::MAX);
        let (cluster, _managers) = cluster_of(builder, nodes);
        let ended = runtime();
        let _held = ended.block_on(cluster.acquire("a")).unwrap();
        let handle = ended.handle().clone();
        drop(ended);
        let _in_it = handle.enter();
        let mut acquire = pin!(cluster.acquire("b"));
        let (wakes, waker) = Wakes::new();
        for _ in 0..3 {
            assert!(poll_with(acquire.as_mut(), &waker).is_pending());
        }
        assert_eq!(wakes.count(), 0);
    }));
}

#[test]
fn who_may_go_anywhere_too_hears_that_the_runtime_has_ended_where_the_cap_looks() {
    let builder = builder().max_connections(2).try_next_after(PATIENCE);
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let (one, other) = (runtime(), runtime());
    let held = one.block_on(async {
        let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("a").await.unwrap()];
        tokio::spawn({
            let cluster = cluster.clone();
            async move { drop(cluster.acquire("b").await) }
        });
        eventually("it is in line", || cluster.status().totals.counts.waiters == 1).await;
        held
    });
    other.block_on(async {
        let only = |node: &NodeView<'_, String>| (node.key() == "b").then_some(0.0);
        let mut acquire = pin!(cluster.acquire_any(Policy::Rank(&only)));
        assert!(poll_once(acquire.as_mut()).is_pending());
        one.shutdown_background();
        assert!(timeout(20 * MILLISECOND, acquire.as_mut()).await.is_err(), "all are in use");
        drop(held);
        assert_eq!(timeout(PATIENCE, acquire).await.expect("in time").unwrap().node(), "b");
        settled(&cluster, &managers).await;
    });
}

/// A task that goes to any node, and answers which one has served it.
fn goes_anywhere(
    cluster: &TestCluster,
) -> tokio::task::JoinHandle<Result<String, ClusterError<String, TestError>>> {
    let cluster = cluster.clone();
    tokio::spawn(async move {
        cluster.acquire_any(Policy::RoundRobin).await.map(|guard| guard.node().clone())
    })
}

#[tokio::test(start_paused = true)]
async fn a_node_that_fails_for_good_is_tried_once_for_an_acquire_and_once_a_second_for_all() {
    let (cluster, managers) = cluster_of(builder().acquire_timeout(3 * SECOND), [("a", plain())]);
    managers[0].connect.always(Act::Permanent);
    let error = cluster.acquire_any(Policy::RoundRobin).await.unwrap_err();
    assert!(matches!(error, ClusterError::Timeout(_)), "{error}");
    assert_eq!(managers[0].connect.calls(), 3);
    assert!(cluster.acquire_for(b"session").await.is_err());
    let tried = managers[0].connect.calls();
    assert!(tried <= 7, "{tried}");
    let callers: Vec<_> = (0..20).map(|_| goes_anywhere(&cluster)).collect();
    for caller in callers {
        assert!(caller.await.unwrap().is_err());
    }
    assert!(managers[0].connect.calls() <= tried + 4, "{}", managers[0].connect.calls());
    let waits = goes_anywhere(&cluster);
    tokio::time::sleep(100 * MILLISECOND).await;
    managers[0].connect.calm();
    assert_eq!(waits.await.unwrap().unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn where_connecting_fails_for_good_an_acquire_waits_for_what_comes_back() {
    for fails_fast in [false, true] {
        let (cluster, managers) =
            cluster_of(builder().fail_fast(fails_fast), [("a", plain()), ("b", plain())]);
        let held = cluster.acquire("a").await.unwrap();
        for manager in &managers {
            manager.connect.always(Act::Permanent);
        }
        let mut acquire = pin!(cluster.acquire_any(Policy::RoundRobin));
        assert!(timeout(2 * SECOND, acquire.as_mut()).await.is_err());
        assert!(managers.iter().all(|manager| manager.connect.calls() <= 4), "{managers:?}");
        let began = tokio::time::Instant::now();
        drop(held);
        assert_eq!(acquire.await.unwrap().node(), "a");
        assert_eq!(
            began.elapsed(),
            Duration::ZERO,
            "it was not in line, but looked again by the clock"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquire_waits_for_what_comes_back_at_a_node_that_it_has_nothing_opened_at_any_more() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let first_a = first("a");
    let _elsewhere = cluster.acquire("b").await.unwrap();
    for manager in &managers {
        manager.connect.always(Act::Permanent);
    }
    // It is refused at a, and in line at b, where one may come back.
    let mut acquire = pin!(cluster.acquire_any(Policy::Rank(&first_a)));
    assert!(timeout(SECOND / 2, acquire.as_mut()).await.is_err());
    // Before it hears that a is back, a fails again; but somebody has a connection of it by then.
    managers[0].connect.calm();
    let held = cluster.acquire("a").await.unwrap();
    managers[0].connect.always(Act::Permanent);
    assert!(timeout(MILLISECOND, cluster.acquire("a")).await.is_err());
    assert!(cluster.status().nodes.iter().all(|node| !node.is_up), "{}", cluster.status());
    assert!(poll_once(acquire.as_mut()).is_pending());
    drop(held);
    let Poll::Ready(served) = poll_once(acquire.as_mut()) else { panic!("it was not in line") };
    assert_eq!(served.unwrap().node(), "a");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_where_connecting_fails_for_good_is_served_when_others_succeed() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain())]);
    managers[0].connect.always(Act::Permanent);
    let mut acquire = pin!(cluster.acquire_any(Policy::RoundRobin));
    assert!(timeout(MILLISECOND, acquire.as_mut()).await.is_err());
    // While a connection is alive there, nobody is.
    for _ in 0..3 {
        assert!(cluster.acquire("a").await.is_err());
        assert!(poll_once(acquire.as_mut()).is_pending());
    }
    managers[0].connect.calm();
    tokio::time::sleep(100 * MILLISECOND).await; // until it may be tried again
    drop(cluster.acquire("a").await.unwrap());
    assert!(poll_once(acquire.as_mut()).is_ready(), "it was not in line");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_fails_for_good_is_tried_for_those_who_wait_elsewhere_or_for_nothing_else() {
    // Beside another node, and alone, however long an acquire waits before it goes further.
    for (others, try_next_after) in [(1, SECOND / 4), (0, SECOND / 4), (0, Duration::MAX)] {
        let builder = builder().try_next_after(try_next_after).acquire_timeout(Duration::MAX);
        let builder = builder.pools(|pool| pool.max_size(1));
        let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
        let held = cluster.acquire("b").await.unwrap();
        if others == 0 {
            drop(cluster.remove_node("b", Duration::ZERO).await.unwrap());
        }
        managers[0].connect.always(Act::Permanent);
        let first_a = first("a");
        let mut acquire = pin!(cluster.acquire_any(Policy::Rank(&first_a)));
        assert!(timeout(SECOND / 2, acquire.as_mut()).await.is_err());
        managers[0].connect.calm();
        let served = timeout(3 * SECOND, acquire).await.expect("somebody tries it");
        assert_eq!(served.unwrap().node(), "a");
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquire_yields_at_a_node_that_is_up_though_connecting_has_failed_for_good_there() {
    let (cluster, managers, _) = capped(2, 2, [("a", plain()), ("b", plain())]);
    let first_a = first("a");
    let held = cluster.acquire("a").await.unwrap();
    managers[0].connect.always(Act::Permanent);
    assert!(cluster.acquire("a").await.is_err());
    let other = cluster.acquire("b").await.unwrap();
    drop((held, other));
    tokio::time::sleep(2 * SECOND).await;
    // It has been passed over, and one of its connections found to work, while nothing was opened.
    let guard = cluster.acquire_any(Policy::Rank(&first_a)).await.unwrap();
    eventually("it is up", || cluster.status().nodes.iter().all(|node| node.is_up)).await;
    let calls = managers[0].connect.calls();
    cluster.acquire("a").await.unwrap().discard();
    managers[0].connect.calm();
    managers[0].connect.once(Act::Gated);
    let mut dials = pin!(cluster.acquire("a"));
    assert!(poll_once(dials.as_mut()).is_pending());
    eventually("it connects", || managers[0].connect.calls() > calls).await;
    let (tell, told) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn({
        let cluster = cluster.clone();
        move || {
            let _runtime = runtime.enter();
            let first_a = first("a");
            let mut acquire = pin!(cluster.acquire_any(Policy::Rank(&first_a)));
            tell.send(poll_once(acquire.as_mut()).is_pending()).unwrap();
        }
    });
    assert_eq!(told.recv_timeout(PATIENCE), Ok(true), "one poll comes to its end");
    managers[0].connect.open(1);
    drop((dials.await.unwrap(), guard));
}

#[tokio::test(start_paused = true)]
async fn who_has_no_node_to_wait_at_is_counted_all_the_same() {
    let builder = builder().acquire_timeout(SECOND);
    let (cluster, _managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    assert!(cluster.acquire_any(Policy::Primary).await.is_err());
    assert_eq!(cluster.status().totals.waits.timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn servers_that_fail_for_good_are_asked_for_their_roles_now_and_then() {
    for are_known in [false, true] {
        let builder = builder().acquire_timeout(3 * SECOND);
        let (cluster, managers) = with_roles_of(builder, [Role::Replica, Role::Replica]);
        if are_known {
            drop([cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()]);
            cluster.invalidate();
            settled(&cluster, &managers).await;
        }
        for manager in &managers {
            manager.connect.always(Act::Permanent);
        }
        let error = cluster.acquire_any(Policy::Primary).await.unwrap_err();
        assert!(matches!(error, ClusterError::Timeout(_)), "{error}");
        for manager in &managers {
            let tried = manager.connect.calls() - usize::from(are_known);
            assert!((2..=4).contains(&tried), "{tried}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_is_refused_again_and_again_is_counted_once() {
    let builder = builder().acquire_timeout(3 * SECOND);
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    for manager in &managers {
        manager.connect.always(Act::Error);
    }
    let waits = || cluster.status().totals.waits;
    assert!(cluster.acquire_any(Policy::RoundRobin).await.is_err());
    assert_eq!((waits().timed_out, waits().failures()), (1, 1), "{:?}", waits());
    assert!(timeout(SECOND, cluster.acquire_any(Policy::RoundRobin)).await.is_err());
    assert_eq!((waits().cancelled, waits().failures()), (1, 2), "{:?}", waits());
    let acquire = goes_anywhere(&cluster);
    tokio::time::sleep(SECOND).await;
    cluster.close().await;
    assert!(matches!(acquire.await.unwrap(), Err(ClusterError::Closed { .. })));
    assert_eq!((waits().closed, waits().failures()), (1, 3), "{:?}", waits());
}

#[tokio::test(start_paused = true)]
async fn what_a_cluster_asks_its_servers_is_not_counted_as_a_wait() {
    let builder = builder().acquire_timeout(3 * SECOND);
    let (cluster, managers) = with_roles_of(builder, [Role::Replica, Role::Replica]);
    for manager in &managers {
        manager.connect.always(Act::Permanent);
    }
    let acquire = cluster.acquire_any(Policy::Primary).await;
    assert!(matches!(acquire, Err(ClusterError::Timeout(_))));
    // By then nobody waits any more to ask one.
    tokio::time::sleep(10 * SECOND).await;
    let waits = || cluster.status().totals.waits;
    assert_eq!((waits().timed_out, waits().total()), (1, 1), "{:?}", waits());
}

#[tokio::test(start_paused = true)]
async fn nor_is_the_wait_for_a_connection_that_may_show_that_its_node_is_back() {
    let (cluster, managers, _) = capped(3, 2, [("a", plain()), ("b", plain())]);
    let _held = cluster.acquire("a").await.unwrap();
    managers[0].connect.always(Act::Error);
    {
        let mut second = pin!(cluster.acquire("a"));
        assert!(poll_once(second.as_mut()).is_pending());
        eventually("it is down", || !cluster.status().nodes[0].is_up).await;
    }
    // The spare one of a goes to b, so that a has room for no other.
    drop([cluster.acquire("b").await.unwrap(), cluster.acquire("b").await.unwrap()]);
    tokio::time::sleep(SECOND).await;
    assert_eq!(cluster.acquire_any(Policy::RoundRobin).await.unwrap().node(), "b");
    let a = || cluster.node("a").unwrap().metrics();
    eventually("it waits for the one that is out", || a().counts.waiters == 1).await;
    eventually("it has given up", || a().counts.waiters == 0).await;
    assert_eq!((a().waits.cancelled, a().waits.failures()), (1, 1), "{:?}", a().waits);
}

/// If the callers of a node keep its line full, it would never be known to be the primary now.
#[tokio::test]
async fn a_full_line_keeps_no_server_from_being_asked_for_its_role() {
    let builder = builder().pools(|pool| pool.max_size(1).max_waiters(1));
    let (cluster, managers) = with_roles_of(builder, [Role::Replica, Role::Replica]);
    let held = cluster.acquire("a").await.unwrap();
    let mut waits = pin!(cluster.acquire("a"));
    assert!(poll_once(waits.as_mut()).is_pending());
    become_primary(&managers[0], true);
    let mut acquire = pin!(cluster.acquire_any(Policy::Primary));
    assert!(poll_once(acquire.as_mut()).is_pending());
    let a = || cluster.node("a").unwrap().metrics();
    eventually("it is to be asked", || a().counts.waiters == 2).await;
    drop(held);
    drop(waits.await.unwrap());
    assert_eq!(acquire.await.unwrap().node(), "a");
    assert_eq!(a().waits.failures(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_cluster_asks_its_servers_is_not_shed() {
    let shed = Shed::new(20 * MILLISECOND, 100 * MILLISECOND);
    let builder = builder().pools(move |pool| pool.max_size(1).shards(1).shed(shed));
    let (cluster, managers) = with_roles_of(builder, [Role::Replica, Role::Replica]);
    let held = cluster.acquire("a").await.unwrap();
    let (mut first, mut second) = (pin!(cluster.acquire("a")), pin!(cluster.acquire("a")));
    assert!(poll_once(first.as_mut()).is_pending() && poll_once(second.as_mut()).is_pending());
    let mut acquire = pin!(cluster.acquire_any(Policy::Primary));
    assert!(poll_once(acquire.as_mut()).is_pending());
    let a = || cluster.node("a").unwrap().metrics();
    eventually("it is to be asked", || a().counts.waiters == 3).await;
    // All who are served in the first interval have waited for too long.
    tokio::time::sleep(150 * MILLISECOND).await;
    drop(held);
    let held = first.await.unwrap();
    tokio::time::sleep(150 * MILLISECOND).await;
    become_primary(&managers[0], true);
    drop(held);
    assert!(second.await.is_err(), "the line does not empty");
    assert_eq!(acquire.await.unwrap().node(), "a");
    assert_eq!((a().waits.shed, a().shed), (1, 1));
}

#[tokio::test]
async fn an_acquire_that_is_refused_at_once_is_counted_as_that() {
    let builder = builder().pools(|pool| pool.max_size(1).max_waiters(1));
    let (cluster, _managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let held = [cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()];
    let (mut a, mut b) = (pin!(cluster.acquire("a")), pin!(cluster.acquire("b")));
    assert!(poll_once(a.as_mut()).is_pending() && poll_once(b.as_mut()).is_pending());
    let waits = || cluster.status().totals.waits;
    assert!(cluster.acquire_any(Policy::RoundRobin).await.is_err());
    assert_eq!((waits().queue_full, waits().failures()), (1, 1), "{:?}", waits());
    drop(held);
    drop((a.await.unwrap(), b.await.unwrap()));
    let served = waits().served;
    drop(cluster.acquire_any(Policy::RoundRobin).await.unwrap());
    assert_eq!(waits().served, served, "it was there at once");
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_for_a_node_to_come_back_is_seen_to_have_waited() {
    let (cluster, managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    for manager in &managers {
        manager.connect.always(Act::Error);
    }
    let acquire = goes_anywhere(&cluster);
    tokio::time::sleep(100 * MILLISECOND).await;
    managers[1].connect.calm();
    assert_eq!(acquire.await.unwrap().unwrap(), "b");
    let b = cluster.node("b").unwrap().metrics();
    assert_eq!((b.waits.served, cluster.status().totals.waits.total()), (1, 1));
    assert!(b.acquire_wait.max() >= Some(90 * MILLISECOND), "{:?}", b.acquire_wait.max());
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_for_a_node_that_is_replaced_is_seen_to_have_waited() {
    let builder = builder().pools(|pool| pool.max_size(1));
    let (cluster, _managers) = cluster_of(builder, [("a", plain())]);
    let _held = cluster.acquire("a").await.unwrap();
    let mut acquire = pin!(cluster.acquire("a"));
    assert!(timeout(SECOND, acquire.as_mut()).await.is_err());
    let old = cluster.replace("a", TestManager::new(), Duration::ZERO).await.unwrap();
    assert_eq!(old.still_out.len(), 1);
    // Before he has heard of it.
    cluster.node("a").unwrap().warm_up(1).await.unwrap();
    drop(acquire.await.unwrap());
    let a = cluster.node("a").unwrap().metrics();
    assert_eq!(a.waits.served, 1);
    assert!(a.acquire_wait.max() >= Some(900 * MILLISECOND), "{:?}", a.acquire_wait.max());
}

#[tokio::test(start_paused = true)]
async fn who_waits_on_for_what_replaces_his_node_has_waited_since_he_began() {
    let builder = builder().pools(|pool| pool.max_size(1)).acquire_timeout(3 * SECOND);
    let (cluster, _managers) = cluster_of(builder, [("a", plain())]);
    let waits = || cluster.node("a").unwrap().metrics().waits;
    let slow = Act::Slow(500 * MILLISECOND);
    for (connect, limit) in [(slow, 3 * SECOND), (Act::Never, 3 * SECOND), (Act::Never, SECOND)] {
        let _held = cluster.acquire("a").await.unwrap();
        let mut acquire = Box::pin(cluster.acquire("a"));
        assert!(timeout(SECOND, acquire.as_mut()).await.is_err());
        let manager = TestManager::new();
        manager.connect.always(connect);
        drop(cluster.replace("a", manager, Duration::ZERO).await.unwrap());
        let ended = timeout(limit, acquire.as_mut()).await;
        drop(acquire);
        match ended {
            Ok(Ok(_guard)) => {
                let a = cluster.node("a").unwrap().metrics();
                assert_eq!((a.waits.served, a.waits.failures()), (1, 0));
                assert!(a.acquire_wait.max() >= Some(1_400 * MILLISECOND), "{:?}", a.acquire_wait);
            }
            Ok(Err(ClusterError::Node(refusal))) => {
                assert_eq!((waits().timed_out, waits().total()), (1, 1));
                let AcquireError::Timeout(timeout) = refusal.source else { panic!("{refusal}") };
                assert_eq!(timeout.waited(), 3 * SECOND);
            }
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => assert_eq!((waits().cancelled, waits().total()), (1, 1)),
        }
        drop(cluster.replace("a", TestManager::new(), Duration::ZERO).await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_shed_by_what_replaces_his_node_is_told_that_he_has_waited_since_he_began() {
    let shed = Shed::new(20 * MILLISECOND, 100 * MILLISECOND);
    let builder = builder().pools(move |pool| pool.max_size(1).shards(1).shed(shed));
    let (cluster, _managers) = cluster_of(builder, [("a", plain())]);
    let _held = cluster.acquire("a").await.unwrap();
    let mut late = pin!(cluster.acquire("a"));
    assert!(timeout(SECOND, late.as_mut()).await.is_err());
    drop(cluster.replace("a", TestManager::new(), Duration::ZERO).await.unwrap());
    // All who are served in the first interval have waited for too long.
    let held = cluster.acquire("a").await.unwrap();
    let mut first = pin!(cluster.acquire("a"));
    assert!(poll_once(first.as_mut()).is_pending() && poll_once(late.as_mut()).is_pending());
    tokio::time::sleep(150 * MILLISECOND).await;
    drop(held);
    let held = first.await.unwrap();
    tokio::time::sleep(150 * MILLISECOND).await;
    drop(held);
    let ClusterError::Node(refusal) = late.await.unwrap_err() else { panic!("not by its pool") };
    let AcquireError::Shed { waited } = refusal.source else { panic!("{refusal}") };
    assert_eq!(waited, 1_300 * MILLISECOND);
    let a = cluster.node("a").unwrap().metrics();
    assert_eq!((a.waits.shed, a.shed), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_several_nodes_turn_away_or_would_is_counted_once() {
    for reports in [false, true] {
        let mut shed = Shed::new(5 * MILLISECOND, 50 * MILLISECOND);
        shed.report_only = reports;
        let builder = builder().pools(move |pool| pool.max_size(2).shed(shed));
        let nodes = [("a", plain()), ("b", plain()), ("c", plain())];
        let (cluster, managers) = cluster_of(builder, nodes);
        let callers = (0..64).map(|_| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                let (mut late, mut refused) = (0, 0);
                for _ in 0..40 {
                    let began = tokio::time::Instant::now();
                    match cluster.acquire_any(Policy::RoundRobin).await {
                        Ok(_guard) => {
                            late += u64::from(began.elapsed() > 10 * MILLISECOND);
                            tokio::time::sleep(5 * MILLISECOND).await;
                        }
                        Err(error) => {
                            assert!(matches!(&error, ClusterError::Node(node) if matches!(node.source, AcquireError::Shed { .. })), "{error}");
                            refused += 1;
                        }
                    }
                }
                (late, refused)
            })
        });
        let (mut late, mut refused) = (0, 0);
        for caller in callers.collect::<Vec<_>>() {
            let (more_late, more_refused) = caller.await.unwrap();
            (late, refused) = (late + more_late, refused + more_refused);
        }
        let totals = cluster.status().totals;
        assert_eq!(totals.waits.shed, refused);
        match reports {
            false => {
                assert!(totals.shed == refused && refused > 0, "{} for {refused}", totals.shed);
            }
            true => assert!((1..=late).contains(&totals.shed), "{} for {late}", totals.shed),
        }
        settled(&cluster, &managers).await;
    }
}

/// An acquire of each kind with a deadline of its own, and its name.
fn within<'c>(
    cluster: &'c TestCluster,
    node: &'c NodeHandle<String, TestManager>,
    limit: Duration,
) -> [(&'static str, Bounded<'c>); 4] {
    let of_node = async move { node.acquire_timeout(limit).await.map(|_| ()) };
    let named = async move { cluster.acquire_timeout("a", limit).await.map(|_| ()) };
    let any =
        async move { cluster.acquire_any_timeout(Policy::RoundRobin, limit).await.map(|_| ()) };
    let session = async move { cluster.acquire_for_timeout(b"session", limit).await.map(|_| ()) };
    [
        ("handle", Box::pin(of_node)),
        ("named", Box::pin(named)),
        ("any", Box::pin(any)),
        ("session", Box::pin(session)),
    ]
}

type Bounded<'c> = Pin<Box<dyn Future<Output = Result<(), ClusterError<String, TestError>>> + 'c>>;

#[tokio::test(start_paused = true)]
async fn an_acquire_may_have_a_deadline_of_its_own() {
    let builder = builder().pools(|pool| pool.max_size(1)).acquire_timeout(SECOND);
    let (cluster, managers) = cluster_of(builder, [("a", plain())]);
    let node = cluster.node("a").unwrap();
    let held = cluster.acquire("a").await.unwrap();
    let is_timeout = |error: &ClusterError<String, TestError>| match error {
        ClusterError::Timeout(_) => true,
        ClusterError::Node(node) => matches!(node.source, AcquireError::Timeout(_)),
        _ => false,
    };
    for limit in [Duration::ZERO, 20 * MILLISECOND, 3 * SECOND] {
        for (what, acquire) in within(&cluster, &node, limit) {
            let before = node.metrics().waits;
            let began = tokio::time::Instant::now();
            let error = acquire.await.unwrap_err();
            assert!(is_timeout(&error), "{what}: {error}");
            assert_eq!(began.elapsed(), limit, "{what}");
            let waits = node.metrics().waits;
            assert_eq!(waits.timed_out - before.timed_out, 1, "{what}: {waits:?}");
            assert_eq!(waits.total() - before.total(), 1, "{what}: {waits:?}");
        }
    }
    for (what, mut acquire) in within(&cluster, &node, Duration::MAX) {
        assert!(timeout(10 * SECOND, acquire.as_mut()).await.is_err(), "{what}");
    }
    drop(held);
    for limit in [Duration::ZERO, SECOND, Duration::MAX] {
        for (what, acquire) in within(&cluster, &node, limit) {
            acquire.await.expect(what);
        }
    }
    settled(&cluster, &managers).await;
}

#[tokio::test]
async fn who_has_no_time_at_all_gives_up_at_once_and_has_one_opened_for_the_next() {
    for (place, cap) in (0..4).flat_map(|place| [(place, None), (place, Some(4))]) {
        let (cluster, managers) = cluster_of(builder().max_connections(cap), [("a", plain())]);
        let node = cluster.node("a").unwrap();
        let (what, mut acquire) =
            within(&cluster, &node, Duration::ZERO).into_iter().nth(place).unwrap();
        assert!(matches!(poll_once(acquire.as_mut()), Poll::Ready(Err(_))), "{what}");
        eventually("one is opened", || node.metrics().counts.idle == 1).await;
        drop(acquire);
        let (_, mut acquire) =
            within(&cluster, &node, Duration::ZERO).into_iter().nth(place).unwrap();
        assert!(matches!(poll_once(acquire.as_mut()), Poll::Ready(Ok(()))), "{what}");
        drop(acquire);
        settled(&cluster, &managers).await;
    }
}

#[tokio::test(start_paused = true)]
async fn under_a_cap_who_has_no_time_at_all_has_one_opened_though_there_is_no_room_yet() {
    // One is free, and the node has none to spare; another node has all, idle; it has its only one.
    for (cap, of_a, of_b) in [(4, 1, 0), (4, 0, 4), (1, 0, 1)] {
        for place in 0..2 {
            let (cluster, managers, whole) = capped(cap, 4, [("a", plain()), ("b", plain())]);
            let node = cluster.node("a").unwrap();
            let held = hold(&cluster, "a", of_a).await;
            drop(hold(&cluster, "b", of_b).await);
            // In which b has had its turn.
            tokio::time::sleep(100 * MILLISECOND).await;
            let (what, acquire) =
                within(&cluster, &node, Duration::ZERO).into_iter().nth(place).unwrap();
            assert!(acquire.await.is_err(), "{what}");
            eventually("one is opened", || node.metrics().counts.idle == 1).await;
            drop(held);
            settled(&cluster, &managers).await;
            assert_eq!((closed(&managers), whole.most_live() <= cap), (of_b.min(1), true));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_never_wants_the_next_node_tried_may_say_so() {
    let never = || builder().try_next_after(Duration::MAX);
    let (cluster, _managers) = cluster_of(never(), [("a", plain())]);
    drop(cluster.acquire_for(b"session").await.unwrap());
    let (cluster, managers) = cluster_of(never(), [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Never);
    let policy = first("a");
    let mut acquire = pin!(cluster.acquire_any(Policy::Rank(&policy)));
    assert!(timeout(2 * SECOND, acquire.as_mut()).await.is_err());
    assert_eq!(managers.map(|manager| manager.connect.calls()), [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn under_a_cap_a_node_that_has_nothing_yet_can_be_rotated() {
    let (cluster, managers, _) = capped(4, 2, [("a", plain()), ("b", plain())]);
    let (began, a) = (tokio::time::Instant::now(), cluster.node("a").unwrap());
    a.rotate(|_| Box::pin(ready(Ok(())))).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(managers[0].ledger.live(), 1);
}

/// A runtime that has no timer.
fn without_timer() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

#[test]
fn without_a_timer_who_may_go_anywhere_gets_what_is_idle_or_is_told() {
    let (cluster, _managers) = cluster_of(builder(), [("a", plain()), ("b", plain())]);
    let told = |served: Result<Guard<'_>, ClusterError<String, TestError>>| {
        let error = served.unwrap_err();
        let ClusterError::Node(refusal) = &error else { panic!("{error}") };
        assert!(matches!(refusal.source, AcquireError::NoRuntime), "{error}");
    };
    let (one, poor) = (runtime(), without_timer());
    poor.block_on(async {
        told(cluster.acquire_any(Policy::RoundRobin).await);
        told(cluster.acquire_for(b"session").await);
    });
    one.block_on(async { drop(cluster.acquire("b").await.unwrap()) });
    poor.block_on(async {
        let policy = first("a");
        let guard = cluster.acquire_any(Policy::Rank(&policy)).await.unwrap();
        assert_eq!(guard.node(), "b", "a has none that is idle");
        // What it has left to the runtime.
        tokio::task::yield_now().await;
        told(cluster.acquire_any(Policy::Rank(&policy)).await);
    });
}

#[test]
fn on_a_runtime_that_has_ended_who_may_go_anywhere_gets_what_is_idle_or_is_told() {
    for limit in [PATIENCE, Duration::MAX] {
        // What is idle is not to be checked, which nobody could do on it.
        let pools = |pool: PoolBuilder<_>| pool.max_size(1).check(CheckPolicy::Never);
        let builder = builder().pools(pools).acquire_timeout(limit);
        let (cluster, _managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
        let ended = runtime();
        ended.block_on(async { drop(cluster.acquire("b").await.unwrap()) });
        let a = ended.block_on(cluster.acquire("a")).unwrap();
        let handle = ended.handle().clone();
        drop(ended);
        let policy = first("a");
        let any = || handle.block_on(cluster.acquire_any(Policy::Rank(&policy)));
        let b = any().unwrap();
        assert_eq!(b.node(), "b", "a has none that is idle");
        // One might come back, but nobody would say when it is time to look further.
        let error = any().unwrap_err();
        let ClusterError::Node(refusal) = &error else { panic!("{error}") };
        assert!(matches!(refusal.source, AcquireError::NoRuntime), "{error}");
        drop((a, b));
    }
}

#[test]
fn without_a_timer_who_waits_under_a_cap_is_not_woken_for_nothing() {
    let builder = builder().max_connections(1).acquire_timeout(Duration::MAX);
    let (cluster, _managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let (one, poor) = (runtime(), without_timer());
    let _held = one.block_on(async {
        // Its pool has a runtime with a timer from now on.
        drop(cluster.acquire("b").await.unwrap());
        cluster.acquire("a").await.unwrap()
    });
    poor.block_on(async {
        let (wakes, waker) = Wakes::new();
        let mut acquire = pin!(cluster.acquire("b"));
        for _ in 0..3 {
            assert!(poll_with(acquire.as_mut(), &waker).is_pending());
            tokio::task::yield_now().await;
        }
        assert_eq!(wakes.count(), 0);
    });
}

#[tokio::test]
async fn who_may_be_served_by_another_node_blocks_nobody() {
    let builder = builder().pools(|pool| pool.max_size(2).detect_deadlock(true));
    let (cluster, _managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    let elsewhere = [cluster.acquire("b").await.unwrap(), cluster.acquire("b").await.unwrap()];
    let counts = |cluster: &TestCluster| cluster.node("a").unwrap().metrics().counts;
    let anywhere = tokio::spawn({
        let cluster = cluster.clone();
        async move {
            let _one = cluster.acquire("a").await.unwrap();
            eventually("the other has one", || counts(&cluster).in_use == 2).await;
            cluster.acquire_any(Policy::RoundRobin).await.map(|guard| guard.node().clone())
        }
    });
    let by_name = tokio::spawn({
        let cluster = cluster.clone();
        async move {
            let _other = cluster.acquire("a").await.unwrap();
            eventually("the one waits", || counts(&cluster).waiters == 1).await;
            cluster.acquire("a").await.map(drop)
        }
    });
    eventually("both wait", || counts(&cluster).waiters == 2 || by_name.is_finished()).await;
    drop(elsewhere);
    assert_eq!(joined(anywhere).await.unwrap(), "b");
    joined(by_name).await.unwrap();
}

#[tokio::test]
async fn who_may_be_served_by_another_node_is_not_stuck_though_all_others_wait_already() {
    let builder = builder().pools(|pool| pool.max_size(2).detect_deadlock(true));
    let (cluster, _managers) = cluster_of(builder, [("a", replica()), ("b", primary())]);
    let counts = |cluster: &TestCluster| cluster.node("a").unwrap().metrics().counts;
    let by_name = tokio::spawn({
        let cluster = cluster.clone();
        async move {
            let _one = cluster.acquire("a").await.unwrap();
            eventually("the other has one", || counts(&cluster).in_use == 2).await;
            cluster.acquire("a").await.map(drop)
        }
    });
    let anywhere = tokio::spawn({
        let cluster = cluster.clone();
        async move {
            let _other = cluster.acquire("a").await.unwrap();
            eventually("the one waits", || counts(&cluster).waiters == 1).await;
            cluster.acquire_any(Policy::Replica).await.map(|guard| guard.node().clone())
        }
    });
    eventually("both wait", || counts(&cluster).waiters == 2 || anywhere.is_finished()).await;
    cluster.set_options("b", replica()).unwrap();
    assert_eq!(joined(anywhere).await.unwrap(), "b");
    joined(by_name).await.unwrap();
}

#[tokio::test]
async fn under_a_cap_who_holds_a_connection_gets_another_as_long_as_more_can_come() {
    for (most, can_come) in [(100, 4), (3, 3)] {
        let pools = |pool: PoolBuilder<_>| pool.max_size(4).detect_deadlock(true);
        let builder = builder().pools(pools).max_connections(most);
        let (cluster, _managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
        let mut held = Vec::new();
        for _ in 0..can_come {
            held.push(cluster.acquire("a").await.unwrap());
        }
        let error = cluster.acquire("a").await.unwrap_err();
        let ClusterError::Node(refusal) = &error else { panic!("{error}") };
        assert!(matches!(refusal.source, AcquireError::WouldDeadlock(_)), "{error}");
    }
}

#[tokio::test]
async fn who_holds_a_connection_by_a_guard_that_was_made_owned_may_wait_for_another() {
    let builder = builder().pools(|pool| pool.max_size(1).detect_deadlock(true));
    let (cluster, _managers) = cluster_of(builder, [("a", plain())]);
    let held = cluster.acquire("a").await.unwrap().into_owned();
    let elsewhere = tokio::spawn({
        let cluster = cluster.clone();
        async move {
            let counts = || cluster.node("a").unwrap().metrics().counts;
            eventually("somebody waits", || counts().waiters == 1).await;
            drop(held);
        }
    });
    drop(cluster.acquire("a").await.unwrap());
    joined(elsewhere).await;
}

#[tokio::test]
async fn a_node_that_is_tried_in_the_background_is_not_kept_open_by_that() {
    let builder = builder().pools(|pool| pool.max_size(4).connect_timeout(100 * SECOND));
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    drop(cluster.acquire("b").await.unwrap());
    managers[0].connect.always(Act::Never);
    let policy = first("a");
    assert_eq!(cluster.acquire_any(Policy::Rank(&policy)).await.unwrap().node(), "b");
    eventually("a is tried", || managers[0].connect.running() == 1).await;
    drop(cluster);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    eventually("no task is left", || tasks() == 0).await;
    assert_eq!(managers[0].connect.running(), 0);
}

#[tokio::test]
async fn a_weak_handle_finds_the_cluster_and_does_not_keep_it_open() {
    type Own = Arc<OnceLock<WeakCluster<String, TestManager>>>;
    let (own, seen) = (Own::default(), Arc::new(AtomicUsize::new(0)));
    let builder = builder().pools_for({
        let (own, seen) = (own.clone(), seen.clone());
        move |_, _, pool| {
            let (own, seen) = (own.clone(), seen.clone());
            pool.hooks(Hooks::new().on_checkout(move |_| {
                let cluster = own.get().and_then(WeakCluster::upgrade).expect("it is in use");
                seen.store(cluster.nodes().len(), Ordering::SeqCst);
            }))
        }
    });
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    own.set(cluster.downgrade()).expect("once");
    drop((cluster.acquire("a").await.unwrap(), cluster.acquire("b").await.unwrap()));
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    let live = || managers[0].ledger.live() + managers[1].ledger.live();
    // One that it makes is as good as any other.
    let weak = own.get().expect("it is set").clone();
    let other = weak.upgrade().expect("it is there");
    drop(cluster);
    drop(other.acquire("b").await.unwrap());
    assert_eq!((live(), other.is_closed(), format!("{weak:?}")), (2, false, "WeakCluster".into()));
    drop(other);
    assert!(weak.upgrade().is_none());
    eventually("all are closed", || live() == 0).await;
}

#[test]
fn the_defaults_of_a_cluster_are_those_that_are_documented() {
    let defaults = format!("{:?}", Cluster::<String, TestManager>::builder());
    let expected = [
        r#"name: "cluster""#,
        "max_connections: None",
        "acquire_timeout: 5s",
        "try_next_after: 250ms",
        "slow_start: 10s",
        "fail_fast: false",
        "accept_empty_sets: false",
        "accept_several_primaries: false",
        "..",
    ];
    assert_eq!(defaults, format!("ClusterBuilder {{ {} }}", expected.join(", ")));
}

#[test]
fn a_cluster_whose_name_is_empty_is_refused() {
    let refused = Cluster::<String, TestManager>::builder().name("").build().map(drop).unwrap_err();
    assert_eq!(refused.to_string(), "name is \"\", but it must not be empty");
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_by_name_is_given_room_when_the_node_is_up_again_though_nobody_else_comes() {
    let (cluster, managers, whole) = capped(10, 10, [("a", plain()), ("b", plain())]);
    let held = cluster.acquire("a").await.unwrap();
    managers[0].connect.always(Act::Error);
    let acquire = || {
        let cluster = cluster.clone();
        tokio::spawn(async move { cluster.acquire("a").await.map(ClusterGuard::into_owned) })
    };
    let waiters = || cluster.node("a").unwrap().metrics().counts.waiters;
    let mut waiting = vec![acquire()];
    eventually("a is down", || !cluster.status().nodes[0].is_up).await;
    waiting.extend((0..4).map(|_| acquire()));
    eventually("all wait", || waiters() == 5).await;
    managers[0].connect.calm();
    let mut guards = Vec::new();
    for task in waiting {
        guards.push(joined(task).await.unwrap());
    }
    assert_eq!(managers[0].ledger.live(), 6);
    drop((held, guards));
    settled(&cluster, &managers).await;
    assert!(whole.most_live() <= 10);
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_for_a_node_that_has_lost_its_room_because_it_is_frozen_is_told_both() {
    let builder = builder().max_connections(1).acquire_timeout(5 * SECOND);
    let (cluster, managers) = cluster_of(builder, [("a", plain()), ("b", plain())]);
    managers[0].connect.always(Act::Never);
    let frozen = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.acquire("a").await.map(drop).unwrap_err() }
    });
    eventually("a is tried", || managers[0].connect.running() == 1).await;
    let held = cluster.acquire("b").await.unwrap();
    let error = joined(frozen).await;
    let said = error.to_string();
    assert!(said.ends_with("(max_connections) is used up: b has 1"), "{said}");
    let mut cause: &dyn Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    assert_eq!(cause.to_string(), "no answer within 1s (max_connections)");
    drop(held);
}
