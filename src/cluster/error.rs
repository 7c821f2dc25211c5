//! What goes wrong in a cluster: each error names the node, and says what is known of the others.
//!
//! Not here: what goes wrong in one pool (`crate::error`).

use super::node::Node;
use super::{Key, Role};
use crate::error::{AcquireError, ConfigError, ConnectError, Stage};
use crate::manager::Manager;
use crate::metrics::Health;
use crate::pool::Holder;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Why a cluster hands out no connection. Small, since every acquire has room for one.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClusterError<K, E> {
    /// There is no node with this key.
    UnknownNode(Box<UnknownNode>),
    /// The node was removed while the caller waited.
    Removed(Box<RemovedNode<K>>),
    /// The only node that could serve does not.
    Node(Box<NodeRefusal<K, E>>),
    /// No node that may serve is in reach, and the cluster is [to fail
    /// fast](super::ClusterBuilder::fail_fast).
    Unavailable(Box<Unserved<K, E>>),
    /// The deadline has passed.
    Timeout(Box<Unserved<K, E>>),
    /// The cluster is closed.
    Closed {
        /// The cluster's name.
        cluster: Arc<str>,
    },
}

impl<K: fmt::Display, E> fmt::Display for ClusterError<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownNode(unknown) => {
                let UnknownNode { cluster, key, nodes, watches } = &**unknown;
                write!(f, "cluster {cluster} has no node {key}; its nodes are: {nodes}")?;
                watches.iter().try_for_each(|what| write!(f, "; {what}"))
            }
            Self::Removed(removed) => {
                let RemovedNode { cluster, key } = &**removed;
                write!(f, "node {key} was removed from cluster {cluster}")
            }
            Self::Node(refusal) => fmt::Display::fmt(refusal, f),
            Self::Unavailable(unserved) => {
                let Unserved { cluster, policy, .. } = &**unserved;
                write!(f, "no node of cluster {cluster} can serve {policy}: {unserved}")
            }
            Self::Timeout(unserved) => {
                let Unserved { cluster, policy, waited, .. } = &**unserved;
                write!(
                    f,
                    "no connection of cluster {cluster} for {policy} within {waited:.1?}: {unserved}"
                )?;
                match &unserved.cap {
                    Some(cap) => write!(f, "; {cap}"),
                    None => Ok(()),
                }
            }
            Self::Closed { cluster } => write!(f, "cluster {cluster} is closed"),
        }
    }
}

impl<K: fmt::Debug + fmt::Display, E: Error + 'static> Error for ClusterError<K, E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Node(refusal) => refusal.source(),
            Self::Unavailable(unserved) | Self::Timeout(unserved) => {
                unserved.cause().map(|error| &error.error as _)
            }
            Self::UnknownNode(_) | Self::Removed(_) | Self::Closed { .. } => None,
        }
    }
}

/// A key that no node has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnknownNode {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// What was asked for.
    pub key: String,
    /// The keys that there are; of many, the first few.
    pub nodes: String,
    /// What is wrong with the [sources](super::Cluster::watch) of nodes, if anything is.
    pub watches: Vec<String>,
}

/// A node that is no longer there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemovedNode<K> {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The node.
    pub key: K,
}

/// What the pool of a node says instead of serving.
///
/// It says so itself, beside the node, for those who log nothing else; its
/// [source](std::error::Error::source) is what lies behind that, so that no chain says anything twice.
#[derive(Debug)]
#[non_exhaustive]
pub struct NodeRefusal<K, E> {
    /// The node.
    pub key: K,
    /// What its pool says.
    pub source: AcquireError<E>,
}

impl<K: fmt::Display, E> fmt::Display for NodeRefusal<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}: {}", self.key, self.source)
    }
}

impl<K: fmt::Debug + fmt::Display, E: Error + 'static> Error for NodeRefusal<K, E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// An acquire that no node has served.
///
/// The error's [source](std::error::Error::source) is the last failure to connect to the node that it waited at
/// first, or else to the first that has one; where it is the same at other nodes, they do not repeat it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unserved<K, E> {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// What was asked for.
    pub policy: &'static str,
    /// How long the caller has waited.
    pub waited: Duration,
    /// That no node is what was asked for, in words, such as `no node is a primary`.
    pub no_match: Option<&'static str>,
    /// What is known of each node.
    pub nodes: Vec<NodeReport<K, E>>,
    /// In words, if that is why one where it waited had no more connections: the cluster's `max_connections`, and
    /// which nodes had them.
    pub cap: Option<String>,
    /// In words, what is wrong with the sources that the cluster [learns](super::Cluster::watch) its nodes from:
    /// their errors, with all causes; while there are no nodes, also that one has not answered yet.
    pub watches: Vec<String>,
    /// The place of the node whose failure is the source.
    cause: Option<usize>,
}

impl<K, E> Unserved<K, E> {
    /// One that waited at the node of this place first, if at any.
    pub(super) fn new(
        cluster: Arc<str>,
        policy: &'static str,
        waited: Duration,
        no_match: Option<&'static str>,
        nodes: Vec<NodeReport<K, E>>,
        first: Option<usize>,
        cap: Option<String>,
    ) -> Self {
        let fails = |place: &usize| nodes[*place].last_connect_error.is_some();
        let cause = first.filter(fails).or_else(|| (0..nodes.len()).find(fails));
        Self { cluster, policy, waited, no_match, nodes, cap, watches: Vec::new(), cause }
    }

    /// With what is wrong with watches.
    pub(super) fn beside(self, watches: Vec<String>) -> Self {
        Self { watches, ..self }
    }

    fn cause(&self) -> Option<&Arc<ConnectError<E>>> {
        self.cause.and_then(|place| self.nodes[place].last_connect_error.as_ref())
    }
}

/// What is known of the nodes, one after the other, and what is wrong with watches.
impl<K: fmt::Display, E> fmt::Display for Unserved<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes.is_empty() {
            f.write_str("there are no nodes")?;
        } else if let Some(no_match) = self.no_match {
            write!(f, "{no_match}: ")?;
        }
        let cause = self.cause.map(|place| &*self.nodes[place].failure);
        for (index, report) in self.nodes.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "; " })?;
            report.say(f, cause)?;
        }
        self.watches.iter().try_for_each(|what| write!(f, "; {what}"))
    }
}

impl<K, E> ClusterError<K, E> {
    pub(super) fn removed(cluster: Arc<str>, key: K) -> Self {
        Self::Removed(Box::new(RemovedNode { cluster, key }))
    }

    pub(super) fn of_node(key: K, source: AcquireError<E>) -> Self {
        Self::Node(Box::new(NodeRefusal { key, source }))
    }
}

/// What is known of a node.
#[derive(Debug)]
#[non_exhaustive]
pub struct NodeReport<K, E> {
    /// The node.
    pub key: K,
    /// Its role.
    pub role: Role,
    /// How its pool is.
    pub health: Health,
    /// Its connections, in words.
    pub connections: String,
    /// What an acquire there waits for.
    pub stage: Stage,
    /// Who has held a connection of it for longest, to the resolution of the pool's maintenance.
    pub longest_held: Option<Holder>,
    /// The last failure to connect, if no connect has succeeded since and one could have been opened.
    pub last_connect_error: Option<Arc<ConnectError<E>>>,
    /// What that said, with all causes; nothing if there is none.
    failure: Arc<str>,
}

impl<K: Key, E> NodeReport<K, E> {
    /// Of a node where a connection is being checked for the acquire, or not.
    pub(super) fn new<M: Manager<Error = E>>(node: &Node<K, M>, is_checking: bool) -> Self {
        let (health, counts) = node.pool.health_now();
        let timeout = node.pool.timeout_now(is_checking);
        let failure = timeout.last_connect_error.as_ref().and_then(|_| node.pool.last_failure());
        Self {
            key: node.key().clone(),
            role: node.role(),
            health,
            connections: counts.to_string(),
            stage: timeout.stage,
            longest_held: timeout.longest_held,
            last_connect_error: timeout.last_connect_error,
            failure: failure.unwrap_or_else(|| "".into()),
        }
    }
}

impl<K: fmt::Display, E> NodeReport<K, E> {
    /// In one line, without what is `told` already.
    fn say(&self, f: &mut fmt::Formatter<'_>, told: Option<&str>) -> fmt::Result {
        let Self { key, role, health, connections, stage, longest_held, failure, .. } = self;
        let health = health.to_string();
        let health = match told {
            Some(told) if *told == **failure && !told.is_empty() => {
                health.replacen(&format!(": {failure}"), "", 1)
            }
            _ => health,
        };
        write!(f, "{key} ({role}) is {health} [{connections}")?;
        match longest_held {
            Some(holder) if *stage == Stage::Queued => write!(f, "; held longest: {holder}]"),
            _ => f.write_str("]"),
        }
    }
}

impl<K: fmt::Display, E> fmt::Display for NodeReport<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.say(f, None)
    }
}

/// Why a cluster's nodes are not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// There is one with this key.
    #[error("cluster {cluster} has a node {key} already")]
    Duplicate {
        /// The cluster's name.
        cluster: Arc<str>,
        /// The key.
        key: String,
    },
    /// A [set](super::Cluster::apply) has several with this key.
    #[error("a set of nodes for cluster {cluster} has node {key} more than once")]
    Ambiguous {
        /// The cluster's name.
        cluster: Arc<str>,
        /// The key.
        key: String,
    },
    /// There is none with this key.
    #[error("cluster {cluster} has no node {key}; its nodes are: {nodes}")]
    Unknown {
        /// The cluster's name.
        cluster: Arc<str>,
        /// The key.
        key: String,
        /// The keys that there are; of many, the first few.
        nodes: String,
    },
    /// Its key is an empty text, or one of its settings is out of range. It says what that error says, and
    /// has no source.
    #[error("node {key}: {error}")]
    Config {
        /// The node.
        key: String,
        /// Which, and the rule.
        error: ConfigError,
    },
    /// There is an endpoint, and nothing that makes a manager of it.
    #[error(
        "node {key} is given by its endpoint {endpoint}, but cluster {cluster} has no template: see \
         ClusterBuilder::template"
    )]
    NoTemplate {
        /// The cluster's name.
        cluster: Arc<str>,
        /// The node.
        key: String,
        /// Where it is.
        endpoint: String,
    },
    /// The template, or what settles the pool, panicked while the node of a
    /// [set](super::Cluster::apply) was made.
    #[error("node {key}: what makes it panicked: {message}")]
    Panicked {
        /// The node.
        key: String,
        /// What the panic said.
        message: String,
    },
    /// The cluster is closed.
    #[error("cluster {cluster} is closed")]
    Closed {
        /// The cluster's name.
        cluster: Arc<str>,
    },
}
