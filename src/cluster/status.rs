//! How a cluster is: its health in words, and the status of each node's pool.
//!
//! Not here: how a pool is (`crate::metrics`).

use super::limits::Cap;
use super::node::{Node, NodeView};
use super::policy::{Choice, Policy};
use super::table::Table;
use super::{Key, Role, Shared};
use crate::manager::Manager;
use crate::metrics::{Health, OneLine, PoolMetrics, PoolStatus, write_line};
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How a cluster is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// Down if no node can serve. Degraded if one cannot or is degraded itself; and, whatever the nodes' pools do,
    ///
    /// - if no node has the role that somebody has asked for by [`Policy::Primary`], [`Policy::Replica`] or
    ///   [`Policy::ReplicasThenPrimary`], and no server is still to say which it has. Where nobody wants a primary,
    ///   none is missed. That somebody has wanted one is remembered, as what the servers said last is: those who
    ///   wait have them asked again;
    /// - if two that are up [say](super::ClusterBuilder::read_role) that they are the primary, unless that is
    ///   [accepted](super::ClusterBuilder::accept_several_primaries);
    /// - if a [watch](super::Cluster::watch) has not applied what its source answered last, because that was an
    ///   error or was refused: the nodes may not be those that there should be. If it has ended by that, until
    ///   another one begins.
    pub health: Health,
    /// How each node is, in the order in which they were added.
    pub nodes: Vec<NodeStatus>,
    /// The sums over the nodes that there are; what those had counted that were removed is gone.
    pub totals: PoolMetrics,
    /// The most connections that there may be at all nodes together, if that is
    /// [limited](super::ClusterBuilder::max_connections).
    pub max_connections: Option<usize>,
    /// How many of them there are, or are being opened, also at nodes that were removed, as long as somebody
    /// holds one there.
    pub connections: usize,
    /// Those of the reasons that are of no node alone.
    of_all: Vec<String>,
}

/// How a node of a cluster is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NodeStatus {
    /// Its key.
    pub key: String,
    /// Its role: what the server said last, or what it was added with.
    pub role: Role,
    /// Its weight.
    pub weight: u32,
    /// Whether connecting to it works, as far as anybody knows.
    pub is_up: bool,
    /// How long its checks take, smoothed; `None` before the first.
    pub latency: Option<Duration>,
    /// How its pool is.
    pub pool: PoolStatus,
}

impl ClusterStatus {
    pub(super) fn new<K: Key, M: Manager>(shared: &Arc<Shared<K, M>>) -> Self {
        let table = shared.table.load_full();
        let mut totals = PoolMetrics::default();
        let nodes = table.nodes().iter().map(|node| {
            let counts = || node.pool.counts();
            let view = NodeView { state: &node.state, options: &node.options, counts: &counts };
            let pool = node.pool.status();
            totals.merge(&pool.metrics);
            NodeStatus {
                key: node.key().to_string(),
                role: view.role(),
                weight: view.weight(),
                is_up: view.is_up(),
                latency: view.latency(),
                pool,
            }
        });
        let nodes: Vec<NodeStatus> = nodes.collect();
        let each = nodes.iter().map(|node| (&*node.key, &node.pool.health));
        let (health, of_all) = shared.health(&table, each);
        let max_connections = shared.cap.as_ref().map(Cap::most);
        let removed = shared.removed(&table);
        let counts = removed.iter().map(|pool| pool.counts()).chain([totals.counts]);
        let connections = counts.map(|counts| counts.connecting + counts.alive()).sum();
        let name = shared.settings.name.to_string();
        Self { name, health, nodes, totals, max_connections, connections, of_all }
    }
}

/// What is said of a cluster that is closed.
pub(super) const CLOSED: &str = "the cluster is closed";

/// Whether somebody has asked for a role that no node had.
#[derive(Default)]
pub(super) struct InVain {
    primary: AtomicBool,
    replica: AtomicBool,
    either: AtomicBool,
}

impl InVain {
    /// Whether somebody has done so by this policy; `None` if that does not go by roles.
    fn by<K>(&self, policy: Policy<'_, K>) -> Option<&AtomicBool> {
        match policy {
            Policy::Primary => Some(&self.primary),
            Policy::Replica => Some(&self.replica),
            Policy::ReplicasThenPrimary => Some(&self.either),
            Policy::RoundRobin | Policy::LeastInUse | Policy::Nearest | Policy::Rank(_) => None,
        }
    }
}

impl<K: Key, M: Manager> Shared<K, M> {
    /// How the cluster is whose nodes, by their keys, are like this; and which of the reasons are of none of them
    /// alone.
    pub(super) fn health<'n>(
        self: &Arc<Self>,
        table: &Table<K, M>,
        nodes: impl Iterator<Item = (&'n str, &'n Health)>,
    ) -> (Health, Vec<String>) {
        if table.closed {
            let closed = vec![CLOSED.to_owned()];
            return (Health::Down(closed.clone()), closed);
        }
        let mut of_all = Vec::new();
        let of_nodes = if table.nodes().is_empty() {
            of_all.push("there are no nodes".to_owned());
            Health::Down(Vec::new())
        } else {
            Health::together(nodes.map(|(key, health)| (format!("node {key}"), health)))
        };
        of_all.extend(self.watches.say(table.nodes().is_empty()));
        of_all.extend(self.missed_roles(table));
        of_all.extend(self.too_many_primaries(table));
        (of_nodes.degraded_by(of_all.clone()), of_all)
    }

    /// Takes down that somebody has come who goes by roles, if no node has the right one.
    pub(super) fn take_down_in_vain(self: &Arc<Self>, policy: Policy<'_, K>, table: &Table<K, M>) {
        if let Some(in_vain) = self.in_vain.by(policy) {
            if self.lacks(policy, table) {
                in_vain.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether this policy allows no node, nor one that is up and whose server is still to say what it is. Where
    /// none has ever said so, it is they who are missed, and no role.
    fn lacks(self: &Arc<Self>, policy: Policy<'_, K>, table: &Table<K, M>) -> bool {
        let choice = Choice { cluster: self, table, late: Vec::new() };
        let is_unheard = |node: &Arc<Node<K, M>>| self.settings.reads_role() && node.is_unheard();
        let may_be = |node: &Arc<Node<K, M>>| {
            is_unheard(node) && node.is_up() || choice.allows(policy, node)
        };
        let nodes = table.nodes();
        !nodes.iter().all(is_unheard) && !nodes.iter().any(may_be)
    }

    /// What somebody has asked for, and no node is.
    fn missed_roles(self: &Arc<Self>, table: &Table<K, M>) -> Vec<String> {
        let come_to = if self.settings.fail_fast { "fail" } else { "wait" };
        let policies = [Policy::Primary, Policy::Replica, Policy::ReplicasThenPrimary];
        let missed = policies.into_iter().filter(|policy| {
            let in_vain = self.in_vain.by(*policy);
            let has_been_wanted = in_vain.is_some_and(|in_vain| in_vain.load(Ordering::Relaxed));
            has_been_wanted && self.lacks(*policy, table)
        });
        let say = |policy: Policy<'_, K>| {
            let none = policy.no_match()?;
            Some(match policy {
                Policy::Primary => format!("{none}: writes {come_to} until one is promoted"),
                _ => format!("{none}: whoever asks for one {come_to}s until one is there"),
            })
        };
        missed.filter_map(say).collect()
    }

    /// That several servers say that they are the primary, though one alone may be.
    fn too_many_primaries(&self, table: &Table<K, M>) -> Option<String> {
        if !self.settings.reads_role() || self.settings.accept_several_primaries {
            return None;
        }
        let nodes = table.nodes().iter();
        let primaries = nodes.filter(|node| node.is_up() && node.role() == Role::Primary);
        let keys: Vec<String> = primaries.map(|node| node.key().to_string()).collect();
        if keys.len() < 2 {
            return None;
        }
        let all = if keys.len() == 2 { "both" } else { "all" };
        Some(format!(
            "nodes {} {all} say that they are the primary: writes go to them by turns, and their data part \
             ways until all but one are demoted or removed",
            listed(&keys)
        ))
    }
}

/// Several keys in words; of many, the first few.
fn listed(keys: &[String]) -> String {
    const SHOWN: usize = 8;
    let (named, last) = match keys {
        [named @ .., last] if keys.len() <= SHOWN => (named, last.clone()),
        _ => (&keys[..SHOWN], format!("{} more", keys.len() - SHOWN)),
    };
    format!("{} and {last}", named.join(", "))
}

/// A line for the cluster and what is wrong with it as a whole, and a table for each node; `{:#}` is one line for a
/// log: name, health, connections, and what is wrong.
impl fmt::Display for ClusterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, health, nodes, totals, max_connections, connections, of_all } = self;
        let (counts, count) = (totals.counts, nodes.len());
        let cap = max_connections.map(|most| format!("{connections} of max_connections {most}"));
        if f.alternate() {
            let max_size = nodes.iter().map(|node| node.pool.max_size).sum();
            write!(OneLine(f), "cluster {name}: {}; {count} nodes, ", health.word())?;
            if let Some(cap) = cap {
                write!(f, "{cap}, ")?;
            }
            return write_line(f, counts, max_size, health);
        }
        write!(f, "cluster {name}: {}; {count} nodes, {counts}", health.word())?;
        if let Some(cap) = cap {
            write!(f, "; {cap}")?;
        }
        writeln!(f)?;
        for reason in of_all {
            writeln!(f, "  ! {reason}")?;
        }
        for node in nodes {
            let NodeStatus { role, weight, latency, pool, .. } = node;
            write!(f, "{role}, weight {weight}")?;
            if let Some(latency) = latency {
                write!(f, ", {latency:.1?} away")?;
            }
            write!(f, ": {pool}")?;
        }
        Ok(())
    }
}

#[cfg(feature = "serde")]
mod serialize {
    use super::{ClusterStatus, NodeStatus};
    use serde::ser::{Serialize, SerializeStruct, Serializer};

    impl Serialize for NodeStatus {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let Self { key, role, weight, is_up, latency, pool } = self;
            let mut fields = serializer.serialize_struct("NodeStatus", 6)?;
            fields.serialize_field("key", key)?;
            fields.serialize_field("role", role)?;
            fields.serialize_field("weight", weight)?;
            fields.serialize_field("is_up", is_up)?;
            let latency = latency.map(|latency| latency.as_secs_f64());
            fields.serialize_field("latency_seconds", &latency)?;
            fields.serialize_field("pool", pool)?;
            fields.end()
        }
    }

    impl Serialize for ClusterStatus {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let Self { name, health, nodes, totals, max_connections, connections, of_all: _ } =
                self;
            let mut fields = serializer.serialize_struct("ClusterStatus", 7)?;
            fields.serialize_field("name", name)?;
            fields.serialize_field("health", health)?;
            fields.serialize_field("reasons", health.reasons())?;
            fields.serialize_field("nodes", nodes)?;
            fields.serialize_field("totals", totals)?;
            fields.serialize_field("max_connections", max_connections)?;
            fields.serialize_field("connections", connections)?;
            fields.end()
        }
    }
}
