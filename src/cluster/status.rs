//! How a cluster is: its health in words, and the status of each node's pool.
//!
//! Not here: how a pool is (`crate::metrics`).

use super::limits::Cap;
use super::node::NodeView;
use super::{Key, Role, Shared};
use crate::manager::Manager;
use crate::metrics::{Health, OneLine, PoolMetrics, PoolStatus, write_line};
use std::fmt::{self, Write};
use std::time::Duration;

/// How a cluster is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterStatus {
    /// Its name.
    pub name: String,
    /// Down if no node can serve, degraded if one cannot or is degraded itself.
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
    pub(super) fn new<K: Key, M: Manager>(shared: &Shared<K, M>) -> Self {
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
        let health = health(table.closed, each);
        let max_connections = shared.cap.as_ref().map(Cap::most);
        let removed = shared.removed(&table);
        let counts = removed.iter().map(|pool| pool.counts()).chain([totals.counts]);
        let connections = counts.map(|counts| counts.connecting + counts.alive()).sum();
        let name = shared.settings.name.to_string();
        Self { name, health, nodes, totals, max_connections, connections }
    }
}

/// How a cluster is whose nodes, by their keys, are like this.
pub(super) fn health<'n>(
    is_closed: bool,
    nodes: impl Iterator<Item = (&'n str, &'n Health)>,
) -> Health {
    let mut nodes = nodes.map(|(key, health)| (format!("node {key}"), health)).peekable();
    if is_closed {
        Health::Down(vec!["the cluster is closed".to_owned()])
    } else if nodes.peek().is_none() {
        Health::Down(vec!["there are no nodes".to_owned()])
    } else {
        Health::together(nodes)
    }
}

/// A line for the cluster, and a table for each node; `{:#}` is one line for a log: name, health, connections, and
/// what is wrong.
impl fmt::Display for ClusterStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, health, nodes, totals, max_connections, connections } = self;
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
            let Self { name, health, nodes, totals, max_connections, connections } = self;
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
