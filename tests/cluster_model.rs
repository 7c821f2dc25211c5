//! Random topologies and faults: nodes come, go, are replaced, fail and come back, while callers come,
//! wait, give up and give back. After each step:
//!
//! - no caller has a connection of a node whose drain is over;
//! - there are never more connections than the caps allow, of each node and of all together;
//! - no caller waits beside an idle connection of a node that it may use, nor, without a cap on all together, beside
//!   room for one while nothing is being opened for it;
//! - no more waits are counted as given up, and no more checks as abandoned, than callers have given up;
//! - at the end everybody is served, each node's books are balanced, and as many connections as the caps
//!   allow can be had at the same time.
//!
//! `ARBTEST_BUDGET_MS` says how long (default: 2,000); `ARBTEST_SEED` runs the one case that a
//! failure has named.

#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

mod support;
use support::*;

use arbitrary::{Arbitrary, Unstructured};
use arbtest::arbtest;
use millpond::CheckPolicy;
use millpond::cluster::{Cluster, ClusterError, ClusterGuard, NodeOptions, Policy, Role};
use std::cell::Cell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::time::timeout;

type TestCluster = Cluster<u8, TestManager>;
type Served<'c> = Result<ClusterGuard<'c, u8, TestManager>, ClusterError<u8, TestError>>;

/// How many nodes there may be.
const NODES: u8 = 4;
const EACH: usize = 2;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Operation {
    Add {
        key: u8,
        weight: u8,
        replica: bool,
    },
    Remove {
        key: u8,
    },
    Replace {
        key: u8,
    },
    Options {
        key: u8,
        weight: u8,
        replica: bool,
    },
    /// Connecting to the node fails from now on, and its connections are broken.
    Fail {
        key: u8,
    },
    /// Connecting to the node never ends from now on.
    Hang {
        key: u8,
    },
    Heal {
        key: u8,
    },
    Acquire {
        key: u8,
    },
    AcquireAny {
        policy: Choice,
    },
    AcquireFor {
        session: u8,
    },
    GiveUp {
        which: u8,
    },
    Release {
        which: u8,
    },
    Discard {
        which: u8,
    },
    Time {
        millis: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Choice {
    RoundRobin,
    LeastInUse,
    Primary,
    ReplicasThenPrimary,
    Nearest,
}

impl Choice {
    fn policy(self) -> Policy<'static, u8> {
        match self {
            Self::RoundRobin => Policy::RoundRobin,
            Self::LeastInUse => Policy::LeastInUse,
            Self::Primary => Policy::Primary,
            Self::ReplicasThenPrimary => Policy::ReplicasThenPrimary,
            Self::Nearest => Policy::Nearest,
        }
    }
}

struct Waiting<'c> {
    /// What it may use; `None` for one that names its node, or its session.
    policy: Option<Choice>,
    key: Option<u8>,
    future: Pin<Box<dyn Future<Output = Served<'c>> + 'c>>,
}

struct World<'c> {
    cluster: &'c TestCluster,
    cap: Option<usize>,
    whole: Arc<Ledger>,
    nodes: HashMap<u8, TestManager>,
    /// Those that were removed or replaced and drained, and no guard was left.
    gone: Vec<TestManager>,
    held: Vec<ClusterGuard<'c, u8, TestManager>>,
    waiting: Vec<Waiting<'c>>,
    served: usize,
    given_up: u64,
}

fn options(weight: u8, replica: bool) -> NodeOptions {
    let role = if replica { Role::Replica } else { Role::Primary };
    NodeOptions::default().role(role).weight(u32::from(weight % 8) + 1)
}

/// The index of one of `many`.
fn pick(which: u8, many: usize) -> Option<usize> {
    (many > 0).then(|| usize::from(which) % many)
}

fn test_cluster(cap: Option<usize>, check: CheckPolicy, hurries: bool) -> TestCluster {
    Cluster::builder()
        .pools(move |pool| {
            pool.max_size(EACH).max_lifetime(None).keepalive_interval(None).check(check)
        })
        .max_connections(cap)
        .acquire_timeout(Duration::MAX)
        // No look because time passes makes up for one that is missing.
        .try_next_after(if hurries { Duration::from_millis(250) } else { Duration::MAX })
        .build()
        .unwrap()
}

impl<'c> World<'c> {
    fn new(cluster: &'c TestCluster, cap: Option<usize>) -> Self {
        let (nodes, gone, held, waiting) = Default::default();
        let (served, given_up) = (0, 0);
        Self { cluster, cap, whole: Arc::default(), nodes, gone, held, waiting, served, given_up }
    }

    fn manager(&self) -> TestManager {
        TestManager::counted_in(Some(self.whole.clone()))
    }

    fn acquire(&mut self, policy: Option<Choice>, key: Option<u8>, session: u8) {
        let cluster = self.cluster;
        let future = async move {
            match (policy, key) {
                (Some(policy), _) => cluster.acquire_any(policy.policy()).await,
                (_, Some(key)) => cluster.acquire(&key).await,
                _ => cluster.acquire_for(&[session]).await,
            }
        };
        self.waiting.push(Waiting { policy, key, future: Box::pin(future) });
    }

    /// Drains nodes without waiting for those who hold a connection.
    async fn leaves(&mut self, manager: TestManager, replace_by: Option<TestManager>, key: u8) {
        let held_before: Vec<usize> = self.held.iter().map(|guard| guard.id).collect();
        let report = match replace_by {
            Some(new) => self.cluster.replace(&key, new, Duration::from_millis(1)).await,
            None => self.cluster.remove_node(&key, Duration::from_millis(1)).await,
        };
        let out = report.unwrap().still_out.len();
        assert!(out <= held_before.len());
        if out == 0 {
            self.gone.push(manager);
        }
    }

    async fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Add { key, weight, replica } => {
                let (key, manager) = (key % NODES, self.manager());
                let added =
                    self.cluster.add_node_with(key, manager.clone(), options(weight, replica));
                assert_eq!(added.is_ok(), !self.nodes.contains_key(&key), "{added:?}");
                if added.is_ok() {
                    self.nodes.insert(key, manager);
                }
            }
            Operation::Remove { key } => {
                let key = key % NODES;
                match self.nodes.remove(&key) {
                    Some(manager) => self.leaves(manager, None, key).await,
                    None => {
                        let removed = self.cluster.remove_node(&key, Duration::ZERO).await;
                        assert!(removed.is_err());
                    }
                }
            }
            Operation::Replace { key } => {
                let key = key % NODES;
                if let Some(old) = self.nodes.get(&key).cloned() {
                    let new = self.manager();
                    self.nodes.insert(key, new.clone());
                    self.leaves(old, Some(new), key).await;
                }
            }
            Operation::Options { key, weight, replica } => {
                let key = key % NODES;
                let set = self.cluster.set_options(&key, options(weight, replica));
                assert_eq!(set.is_ok(), self.nodes.contains_key(&key));
            }
            Operation::Fail { key } => {
                if let Some(manager) = self.nodes.get(&(key % NODES)) {
                    manager.connect.always(Act::Error);
                    manager.condition.always(Act::Error);
                }
            }
            Operation::Hang { key } => {
                if let Some(manager) = self.nodes.get(&(key % NODES)) {
                    manager.connect.always(Act::Never);
                }
            }
            Operation::Heal { key } => {
                if let Some(manager) = self.nodes.get(&(key % NODES)) {
                    manager.clear();
                }
            }
            Operation::Acquire { key } => self.acquire(None, Some(key % NODES), 0),
            Operation::AcquireAny { policy } => self.acquire(Some(policy), None, 0),
            Operation::AcquireFor { session } => self.acquire(None, None, session),
            Operation::GiveUp { which } => {
                if let Some(index) = pick(which, self.waiting.len()) {
                    drop(self.waiting.swap_remove(index));
                    self.given_up += 1;
                }
            }
            Operation::Release { which } => {
                if let Some(index) = pick(which, self.held.len()) {
                    drop(self.held.swap_remove(index));
                }
            }
            Operation::Discard { which } => {
                if let Some(index) = pick(which, self.held.len()) {
                    self.held.swap_remove(index).discard();
                }
            }
            Operation::Time { millis } => {
                tokio::time::sleep(Duration::from_millis(u64::from(millis) * 4)).await;
            }
        }
    }

    /// Polls everybody who waits once; whether that changed anything.
    fn poll(&mut self) -> bool {
        let before = self.waiting.len();
        let mut index = 0;
        while index < self.waiting.len() {
            let Poll::Ready(served) = poll_once(self.waiting[index].future.as_mut()) else {
                index += 1;
                continue;
            };
            let Waiting { key, .. } = self.waiting.swap_remove(index);
            match served {
                Ok(guard) => {
                    assert!(key.is_none_or(|key| key == *guard.node()));
                    self.served += 1;
                    let is_owned = self.served % 3 == 0;
                    self.held.push(if is_owned { guard.into_owned() } else { guard });
                }
                Err(ClusterError::UnknownNode(_) | ClusterError::Removed(_)) => {
                    assert!(key.is_some());
                }
                // Its node is down, and its connections are gone.
                Err(ClusterError::Node(refusal)) => assert_eq!(key, Some(refusal.key)),
                Err(error) => panic!("{error}"),
            }
        }
        before != self.waiting.len()
    }

    /// Lets everything happen that can happen without time.
    async fn settle(&mut self) {
        for _ in 0..4 {
            if self.cap.is_some() {
                // It looks every 5 ms.
                tokio::time::sleep(Duration::from_millis(6)).await;
            }
            loop {
                for _ in 0..24 {
                    tokio::task::yield_now().await;
                }
                if !self.poll() {
                    break;
                }
            }
        }
    }

    fn check(&self) {
        for (key, manager) in &self.nodes {
            assert!(manager.ledger.most_live() <= EACH, "node {key}");
            let counts = self.cluster.node(key).unwrap().metrics().counts;
            // Each connection is somewhere, and one that is being opened may not have begun.
            let (least, live) = (counts.alive(), manager.ledger.live());
            assert!(
                (least..=least + counts.connecting).contains(&live),
                "node {key}: {live} of {counts:?}"
            );
        }
        if let Some(cap) = self.cap {
            assert!(self.whole.most_live() <= cap, "{} of {cap}", self.whole.most_live());
        }
        for manager in &self.gone {
            assert_eq!(manager.ledger.live(), 0, "a connection of a node that is gone");
        }
        let status = self.cluster.status();
        let totals = &status.totals;
        assert!(totals.waits.cancelled <= self.given_up, "{status}");
        assert!(totals.closed.abandoned <= self.given_up, "{status}");
        let replica_is_up =
            status.nodes.iter().any(|node| node.role == Role::Replica && node.is_up);
        // One that cannot be connected to is passed over while others are up.
        let any_is_up = status.nodes.iter().any(|node| node.is_up);
        for waiting in &self.waiting {
            let allowed = status.nodes.iter().filter(|node| match waiting.policy {
                Some(Choice::Primary) => node.role == Role::Primary,
                Some(Choice::ReplicasThenPrimary) => node.role == Role::Replica || !replica_is_up,
                Some(_) => true,
                // A session may have to wait for its own node.
                None => waiting.key.is_some_and(|key| key.to_string() == node.key),
            });
            let counts = allowed.filter(|node| node.is_up || !any_is_up).map(|node| {
                let room = if node.is_up { node.pool.metrics.counts.vacant } else { 0 };
                (room, node.pool.metrics.counts)
            });
            let counts: Vec<_> = counts.collect();
            let has_idle = counts.iter().any(|(_, counts)| counts.idle > 0);
            assert!(!has_idle, "{:?} waits beside:\n{status}", waiting.policy);
            let is_opening = counts.iter().any(|(_, counts)| counts.connecting > 0);
            let has_room = self.cap.is_none() && counts.iter().any(|(room, _)| *room > 0);
            assert!(!has_room || is_opening, "{:?} waits beside room:\n{status}", waiting.policy);
        }
    }

    /// As many connections as the caps allow can be had at the same time, and no more.
    async fn has_all_its_units(&self) {
        let room = self.nodes.len() * EACH;
        let most = self.cap.unwrap_or(room).min(room);
        let (mut held, long) = (Vec::new(), Duration::from_secs(60));
        for key in self.nodes.keys().cycle().take(most) {
            let served = timeout(long, self.cluster.acquire(key)).await;
            let served = served.unwrap_or_else(|_| panic!("{most}?\n{}", self.cluster.status()));
            held.push(served.unwrap());
        }
        for key in self.nodes.keys() {
            let one_more = timeout(Duration::from_secs(1), self.cluster.acquire(key)).await;
            assert!(one_more.is_err(), "more than {most}:\n{}", self.cluster.status());
        }
    }

    /// Everything is well again: whoever waits is served, and nothing is left.
    async fn end(mut self) -> usize {
        if self.nodes.is_empty() {
            self.apply(Operation::Add { key: 0, weight: 0, replica: false }).await;
        }
        let keys: Vec<u8> = self.nodes.keys().copied().collect();
        for key in keys {
            self.nodes[&key].clear();
            self.nodes[&key].connect.open(64);
            // There is a primary again.
            self.cluster.set_options(&key, options(0, false)).unwrap();
        }
        let mut rounds = 0;
        while !self.waiting.is_empty() {
            self.held.clear();
            self.settle().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            rounds += 1;
            assert!(
                rounds < 400,
                "{} wait in vain:\n{}",
                self.waiting.len(),
                self.cluster.status()
            );
        }
        self.held.clear();
        self.settle().await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        self.has_all_its_units().await;
        self.settle().await;
        for (key, manager) in &self.nodes {
            let metrics = self.cluster.node(key).unwrap().metrics();
            let (alive, busy) =
                (metrics.counts.alive(), metrics.counts.in_use + metrics.counts.waiters);
            assert_eq!((manager.ledger.live(), busy), (alive, 0), "node {key}: {metrics:?}");
            assert_eq!(metrics.created, metrics.closed.total() + alive as u64, "node {key}");
        }
        self.cluster.close().await;
        assert_eq!(self.whole.live(), 0);
        self.served
    }
}

fn run(input: &mut Unstructured<'_>) -> arbitrary::Result<(usize, usize)> {
    let cap = if input.arbitrary()? { Some(input.int_in_range(1..=5)?) } else { None };
    let check = if input.arbitrary()? { CheckPolicy::Always } else { CheckPolicy::Never };
    let hurries = input.arbitrary()?;
    let mut operations = Vec::new();
    for key in 0..input.int_in_range(0..=NODES)? {
        operations.push(Operation::Add { key, weight: input.arbitrary()?, replica: key > 0 });
    }
    while !input.is_empty() {
        operations.push(input.arbitrary()?);
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let served = runtime.unwrap().block_on(async {
        let cluster = test_cluster(cap, check, hurries);
        let mut world = World::new(&cluster, cap);
        for operation in &operations {
            world.apply(*operation).await;
            world.settle().await;
            world.check();
        }
        world.end().await
    });
    Ok((operations.len(), served))
}

#[test]
fn no_topology_and_no_fault_leaves_anybody_waiting_beside_what_he_could_have() {
    let (cases, all, served) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let test = arbtest(|input| {
        let (operations, acquires) = run(input)?;
        cases.set(cases.get() + 1);
        all.set(all.get() + operations);
        served.set(served.get() + acquires);
        Ok(())
    });
    let test = test.size_min(32).size_max(512);
    let chosen = std::env::var_os("ARBTEST_BUDGET_MS").is_some();
    if chosen { test } else { test.budget_ms(2_000) }.run();
    let (cases, all, served) = (cases.get(), all.get(), served.get());
    eprintln!("{all} operations, {served} acquires served, in {cases} cases");
    assert!(served > 0);
}
