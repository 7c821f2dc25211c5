//! Several servers that belong together: a pool for each, and a choice between them.
//!
//! A [`Cluster`] has a [`Pool`](crate::Pool) for each of its nodes, under a key. An acquire names its
//! node, or a [`Policy`] that chooses one; a node that cannot be connected to is passed over until it
//! is back. Nodes come, go and are replaced while the cluster is in use; nobody waits for that, since
//! the nodes share nothing on the way of an acquire that hits.
//!
//! Which nodes there are may be said one by one, as a whole ([`Cluster::apply`]), or by a stream
//! ([`Cluster::watch`]), such as of the addresses that a name has ([`Dns`]).
//!
//! # Examples
//!
//! ```
//! use millpond::{cluster::{Cluster, NodeOptions, Policy, Role}, from_fn};
//! use std::{convert::Infallible, time::Duration};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster: Cluster<String, _> = Cluster::builder()
//!     .name("orders")
//!     .pools(|pool| pool.max_size(16))
//!     // What makes a manager for a node that is given by its endpoint.
//!     .template(|endpoint| {
//!         let address = endpoint.to_string(); // say, for `TcpStream::connect`
//!         from_fn(move || std::future::ready(Ok::<_, Infallible>(address.clone())))
//!     })
//!     .build()?;
//! let replica = |weight| NodeOptions::default().role(Role::Replica).weight(weight);
//! cluster.add_endpoint_with("a", "10.0.0.1:5432".parse()?, replica(2))?;
//! cluster.add_endpoint_with("b", "10.0.0.2:5432".parse()?, replica(1))?;
//!
//! let connection = cluster.acquire_any(Policy::ReplicasThenPrimary).await?;
//! println!("{} is {}", connection.node(), *connection);
//! drop(connection);
//!
//! let report = cluster.remove_node("a", Duration::from_secs(5)).await?;
//! assert!(report.still_out.is_empty());
//! assert_eq!(*cluster.acquire("b").await?, "10.0.0.2:5432");
//! # Ok(()) }
//! ```

mod acquire;
mod allot;
mod builder;
mod discovery;
mod dns;
mod endpoint;
mod error;
mod guard;
mod handle;
mod limits;
mod node;
mod policy;
mod race;
mod runner;
mod status;
mod table;
#[cfg(feature = "serde")]
mod text;
mod watch;

pub use self::acquire::NodeHandle;
pub use self::builder::ClusterBuilder;
pub use self::discovery::{Changes, NodeSpec, SetError};
pub use self::dns::{Dns, LookupError};
pub use self::endpoint::{Endpoint, ParseEndpointError};
pub use self::error::{
    ClusterError, NodeError, NodeRefusal, NodeReport, RemovedNode, UnknownNode, Unserved,
};
pub use self::guard::ClusterGuard;
pub use self::node::{Member, NodeOptions, NodeView, RoleFuture};
pub use self::policy::{Policy, Rank};
pub use self::status::{ClusterStatus, NodeStatus};
pub use self::watch::{Watch, WatchError};
pub use crate::metrics::Role;

use self::limits::Cap;
use self::node::{Node, Origin, State};
use self::policy::Turns;
use self::status::{CLOSED, InVain};
use self::table::{Current, Table};
use self::watch::Watches;
use crate::config::check_name;
use crate::manager::Manager;
use crate::metrics::{DuplicateName, Group, Health, Monitor, PoolStatus, Source, watched};
#[cfg(feature = "tracing")]
use crate::panics::tell;
use crate::pool::{DrainReport, node_side};
use event_listener::{Event, IntoNotification};
use std::borrow::Borrow;
use std::fmt;
use std::future::{Future, poll_fn};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// What a node can be known by: whatever has all of these.
///
/// `Debug`, which every [`Error`](std::error::Error) has, is among them for the errors that have a key in them: so
/// whoever writes for any key can pass them on.
pub trait Key: Hash + Eq + Clone + fmt::Debug + fmt::Display + Send + Sync + 'static {}

impl<K: Hash + Eq + Clone + fmt::Debug + fmt::Display + Send + Sync + 'static> Key for K {}

/// A pool for each of several nodes.
///
/// A clone is another handle to the same cluster. When the last handle is dropped, all pools are
/// closed as a [`Pool`](crate::Pool) is; one by [`downgrade`](Self::downgrade) does not count.
///
/// Each thread that acquires remembers which nodes there are until it finds, at its next acquire, that
/// they have changed. So the manager of a node that was removed may be dropped later than its
/// connections: with the cluster at the latest, or with the last guard that is out then.
pub struct Cluster<K: Key, M: Manager> {
    shared: Arc<Shared<K, M>>,
}

/// The pool of a node, without a handle that keeps it open.
type NodePool<K, M> = node_side::Shared<Member<K, M>>;

/// What a cluster's handles share.
struct Shared<K: Key, M: Manager> {
    settings: builder::Settings<K, M>,
    table: Current<K, M>,
    /// Held while a new table is made.
    changing: Mutex<()>,
    /// The pools of nodes that were removed or replaced, in that order. A connection that is out keeps its pool
    /// here, and nothing else needs to; what is left of the others goes with the next change.
    removed: Mutex<Vec<Weak<NodePool<K, M>>>>,
    turns: Turns,
    cap: Option<Cap<K, M>>,
    began: Instant,
    /// Notified when a node has come, gone, failed, come back or changed its role.
    changed: Arc<Event>,
    in_vain: InVain,
    watches: Watches<K>,
}

impl<K: Key, M: Manager> Shared<K, M> {
    fn name(&self) -> Arc<str> {
        self.settings.name.clone()
    }

    /// Puts another table in the place of the present one, unless that is refused.
    fn change<T>(
        &self,
        change: impl FnOnce(&Table<K, M>) -> Result<(Table<K, M>, T), NodeError>,
    ) -> Result<T, NodeError> {
        self.swap(|table| {
            if table.closed {
                return (None, Err(NodeError::Closed { cluster: self.name() }));
            }
            match change(table) {
                Ok((next, answer)) => (Some(next), Ok(answer)),
                Err(error) => (None, Err(error)),
            }
        })
    }

    /// Puts another table in the place of the present one, if there is to be another.
    fn swap<T>(&self, next: impl FnOnce(&Table<K, M>) -> (Option<Table<K, M>>, T)) -> T {
        let (is_other, answer) = {
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let (next, answer) = next(&self.table.load());
            let is_other = next.is_some();
            if let Some(next) = next {
                self.table.store(next);
            }
            (is_other, answer)
        };
        if is_other {
            self.changed.notify(usize::MAX.additional());
            self.forget_removed();
        }
        answer
    }

    fn no_such_node<Q: fmt::Display + ?Sized>(&self, key: &Q, table: &Table<K, M>) -> NodeError {
        NodeError::Unknown { cluster: self.name(), key: key.to_string(), nodes: table.names() }
    }

    /// Tells what has been done to a node by hand, to whoever listens with `tracing`; though he panics, what is
    /// still to be done is done.
    fn tell_node(&self, key: &K, what: &'static str) {
        #[cfg(feature = "tracing")]
        tell!(info, cluster = %self.settings.name, node = %key, "{what}");
        #[cfg(not(feature = "tracing"))]
        let _ = (key, what);
    }

    /// A node is about to be put into the table.
    fn admit(&self, node: &Node<K, M>) {
        if let Some(cap) = &self.cap {
            cap.add(&node.pool);
        }
    }

    /// A node is about to be taken out of the table.
    fn dismiss(&self, node: &Node<K, M>) {
        self.lock_removed().push(Arc::downgrade(node.pool.without_handle()));
    }

    fn lock_removed(&self) -> MutexGuard<'_, Vec<Weak<NodePool<K, M>>>> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pools of nodes that were not in the table any more when this one was read, as long as they have
    /// connections.
    fn removed(&self, table: &Table<K, M>) -> Vec<Arc<NodePool<K, M>>> {
        // After the table: a node comes here before it is out of that, so none is in neither.
        let removed: Vec<_> = self.lock_removed().iter().filter_map(Weak::upgrade).collect();
        let is_there = |pool: &Arc<NodePool<K, M>>| {
            let node = table.get(pool.manager().key());
            node.is_some_and(|node| Arc::ptr_eq(node.pool.without_handle(), pool))
        };
        removed.into_iter().filter(|pool| !pool.is_empty() && !is_there(pool)).collect()
    }

    /// The pools of all nodes, in their order, and then those of the ones that were removed.
    fn pools(&self, table: &Table<K, M>) -> Vec<Arc<NodePool<K, M>>> {
        let present = table.nodes().iter().map(|node| node.pool.without_handle().clone());
        present.chain(self.removed(table)).collect()
    }

    /// Lets go of what is left of nodes that were removed and are gone.
    fn forget_removed(&self) {
        self.lock_removed().retain(|pool| pool.strong_count() > 0);
        if let Some(cap) = &self.cap {
            cap.forget();
        }
    }

    /// Drains the pool of a node that is out of the table.
    async fn drain(&self, node: Arc<Node<K, M>>, limit: Duration) -> DrainReport {
        // Cancel: its first poll has closed the pool.
        let report = node.pool.drain(limit).await;
        self.forget_removed();
        report
    }

    /// Closes the cluster, and answers which nodes it had.
    fn shut(&self) -> Arc<Table<K, M>> {
        let closed = |table: &Table<K, M>| Ok((Table::new(table.nodes().to_vec(), true), ()));
        // An error: it is closed already.
        drop(self.change(closed));
        self.table.load_full()
    }

    /// What the template makes of an endpoint.
    fn manager_of(&self, key: &K, endpoint: &Endpoint) -> Result<M, NodeError> {
        let Some(template) = &self.settings.template else {
            return Err(NodeError::NoTemplate {
                cluster: self.name(),
                key: key.to_string(),
                endpoint: endpoint.to_string(),
            });
        };
        Ok(template(endpoint))
    }

    /// A node with a pool of its own, which is not in the table yet.
    fn new_node(
        &self,
        key: K,
        manager: M,
        options: NodeOptions,
        origin: Origin,
    ) -> Result<Arc<Node<K, M>>, NodeError> {
        let name = key.to_string();
        let wrong = |error| NodeError::Config { key: name.clone(), error };
        check_name("key", &name).and_then(|()| options.validate()).map_err(wrong)?;
        let seed = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
        let (reads_role, changed) = (self.settings.reads_role(), self.changed.clone());
        let (role, began, cluster) = (options.role, self.began, self.name());
        let state = Arc::new(State::new(key, role, reads_role, began, changed, cluster));
        let pool = self.settings.pool(manager, &state, &name, &options).map_err(wrong)?;
        let watched = watched(&pool);
        Ok(Arc::new(Node { state, pool, options, seed, watched, origin }))
    }
}

/// The pools of a cluster that is not kept open.
struct Nodes<K: Key, M: Manager> {
    name: String,
    shared: Weak<Shared<K, M>>,
}

impl<K: Key, M: Manager> Group for Nodes<K, M> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn sources(&self) -> Option<Vec<Arc<dyn Source>>> {
        let table = self.shared.upgrade()?.table.load_full();
        Some(table.nodes().iter().map(|node| node.watched.clone()).collect())
    }

    /// That of [`Cluster::status`].
    fn health(&self, pools: &[PoolStatus]) -> Health {
        let Some(shared) = self.shared.upgrade() else {
            return Health::Down(vec![CLOSED.to_owned()]);
        };
        let nodes =
            pools.iter().filter_map(|pool| Some((&*pool.cluster.as_ref()?.node, &pool.health)));
        shared.health(&shared.table.load(), nodes).0
    }

    fn is_closed(&self) -> bool {
        self.shared.upgrade().is_none_or(|shared| shared.table.load().closed)
    }
}

impl Monitor {
    /// Looks at the pools of all nodes of a cluster too, whichever there are at the moment, as long as the
    /// cluster is there. Each has the name `cluster/node`; [exporters](crate::export) tell besides which
    /// cluster and which node it is, and its role. A [probe](Self::health) goes by the health of the
    /// cluster as a whole, as [`Cluster::status`] has it.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{cluster::Cluster, from_fn};
    /// # use std::convert::Infallible;
    /// use millpond::Monitor;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| std::future::ready(Ok::<_, Infallible>(())));
    /// let cluster = Cluster::builder().name("orders").build()?;
    /// let monitor = Monitor::new();
    /// monitor.add_cluster(&cluster)?;
    /// cluster.add_node("db1", manager)?;
    /// assert_eq!(&*monitor.statuses()[0].config.name, "orders/db1");
    /// # Ok(()) }
    /// ```
    pub fn add_cluster<K: Key, M: Manager>(
        &self,
        cluster: &Cluster<K, M>,
    ) -> Result<(), DuplicateName> {
        let shared = Arc::downgrade(&cluster.shared);
        self.add_group(Nodes { name: cluster.name().to_owned(), shared })
    }
}

impl<K: Key, M: Manager> Cluster<K, M> {
    /// Settings for a cluster without nodes.
    pub fn builder() -> ClusterBuilder<K, M> {
        ClusterBuilder::new()
    }

    /// Adds a node. Nothing is opened until somebody acquires.
    ///
    /// # Errors
    ///
    /// [`NodeError::Duplicate`], [`NodeError::Config`] if the key is an empty text or a setting of its pool
    /// is out of range, or [`NodeError::Closed`]; the cluster is as it was then.
    pub fn add_node(&self, key: K, manager: M) -> Result<(), NodeError> {
        self.add_node_with(key, manager, NodeOptions::default())
    }

    /// Adds a node with a role, a weight and labels.
    ///
    /// # Errors
    ///
    /// As [`add_node`](Self::add_node).
    pub fn add_node_with(&self, key: K, manager: M, options: NodeOptions) -> Result<(), NodeError> {
        self.add(key, manager, options, Origin::default())
    }

    fn add(
        &self,
        key: K,
        manager: M,
        options: NodeOptions,
        origin: Origin,
    ) -> Result<(), NodeError> {
        let node = self.shared.new_node(key, manager, options, origin)?;
        self.shared.change(|table| {
            if table.get(node.key()).is_some() {
                let (cluster, key) = (self.shared.name(), node.key().to_string());
                return Err(NodeError::Duplicate { cluster, key });
            }
            self.shared.admit(&node);
            Ok((table.with(node.clone()), ()))
        })?;
        self.shared.tell_node(node.key(), "a node is added");
        Ok(())
    }

    /// Adds a node whose manager the cluster's [template](ClusterBuilder::template) makes.
    ///
    /// # Errors
    ///
    /// As [`add_node`](Self::add_node), and [`NodeError::NoTemplate`].
    pub fn add_endpoint(&self, key: impl Into<K>, endpoint: Endpoint) -> Result<(), NodeError> {
        self.add_endpoint_with(key, endpoint, NodeOptions::default())
    }

    /// Adds a node whose manager the cluster's [template](ClusterBuilder::template) makes, with a
    /// role, a weight and labels.
    ///
    /// # Errors
    ///
    /// As [`add_node`](Self::add_node), and [`NodeError::NoTemplate`].
    pub fn add_endpoint_with(
        &self,
        key: impl Into<K>,
        endpoint: Endpoint,
        options: NodeOptions,
    ) -> Result<(), NodeError> {
        let key = key.into();
        let manager = self.shared.manager_of(&key, &endpoint)?;
        self.add(key, manager, options, Origin { endpoint: Some(endpoint), watch: None })
    }

    /// Takes a node out, and drains its pool as [`Pool::drain`](crate::Pool::drain) does: whoever
    /// waits for it is told, and connections in use are waited for, for `limit` at the most. From
    /// the first poll on, nobody is given a connection of it any more, nor does anybody keep one who was
    /// served while he waited and has not run since.
    ///
    /// # Errors
    ///
    /// [`NodeError::Unknown`] or [`NodeError::Closed`].
    ///
    /// # Cancel safety
    ///
    /// The node is out at the first poll. Dropping the future closes its pool at once.
    pub async fn remove_node<Q>(&self, key: &Q, limit: Duration) -> Result<DrainReport, NodeError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + fmt::Display + ?Sized,
    {
        let node = self.shared.change(|table| {
            let node = table.get(key).ok_or_else(|| self.shared.no_such_node(key, table))?;
            self.shared.dismiss(node);
            Ok((table.without(node.key()), node.clone()))
        })?;
        self.shared.tell_node(node.key(), "a node is removed");
        // Cancel: its first poll has closed the pool.
        Ok(self.shared.drain(node, limit).await)
    }

    /// Puts another manager, and a new pool, in the place of a node's, and drains the old one, for `limit` at
    /// the most. Whoever waits for the node goes on waiting, for the new one.
    ///
    /// # Errors
    ///
    /// As [`remove_node`](Self::remove_node), and [`NodeError::Config`].
    ///
    /// # Cancel safety
    ///
    /// The new one is in its place at the first poll. Dropping the future closes the old pool at once.
    pub async fn replace<Q>(
        &self,
        key: &Q,
        manager: M,
        limit: Duration,
    ) -> Result<DrainReport, NodeError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + fmt::Display + ?Sized,
    {
        // Made before any lock is taken, since that runs the user's own code.
        let node = {
            let table = self.shared.table.load();
            if table.closed {
                return Err(NodeError::Closed { cluster: self.shared.name() });
            }
            let old = table.get(key).ok_or_else(|| self.shared.no_such_node(key, &table))?;
            let (key, options) = (old.key().clone(), old.options.clone());
            self.shared.new_node(key, manager, options, Origin::default())?
        };
        let old = self.shared.change(|table| {
            let old = table.get(key).ok_or_else(|| self.shared.no_such_node(key, table))?;
            let node = if node.options == old.options {
                node.clone()
            } else {
                // They have been changed meanwhile.
                Arc::new(node.with_options(old.options.clone()))
            };
            self.shared.admit(&node);
            self.shared.dismiss(old);
            Ok((table.with(node), old.clone()))
        })?;
        self.shared.tell_node(old.key(), "a node is replaced");
        // Cancel: as in `remove_node`.
        Ok(self.shared.drain(old, limit).await)
    }

    /// Gives a node another role, another weight and other labels; its connections stay.
    ///
    /// # Errors
    ///
    /// [`NodeError::Unknown`], [`NodeError::Config`] or [`NodeError::Closed`].
    pub fn set_options<Q>(&self, key: &Q, options: NodeOptions) -> Result<(), NodeError>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + fmt::Display + ?Sized,
    {
        options.validate().map_err(|error| NodeError::Config { key: key.to_string(), error })?;
        let (old, role, node) = self.shared.change(|table| {
            let old = table.get(key).ok_or_else(|| self.shared.no_such_node(key, table))?;
            let (old, role) = (old.clone(), old.role());
            let node = Arc::new(old.with_options(options));
            Ok((table.with(node.clone()), (old, role, node)))
        })?;
        if node.options != old.options {
            self.shared.tell_node(node.key(), "a node has other options");
        }
        if node.role() != role {
            node.state.tell_role(role, node.role());
        }
        Ok(())
    }

    /// The keys of the nodes, in the order in which they were added.
    #[must_use]
    pub fn nodes(&self) -> Vec<K> {
        self.shared.table.load().nodes().iter().map(|node| node.key().clone()).collect()
    }

    /// How the cluster and each of its nodes are, for a terminal, in one line for a log (`{:#}`) or, with the
    /// feature `serde`, for a program. Costs one pass over all slots of all nodes.
    #[must_use]
    pub fn status(&self) -> ClusterStatus {
        ClusterStatus::new(&self.shared)
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.settings.name
    }

    /// Whether the cluster is closed. `true` stays true; `false` may be out of date at once.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.table.load().closed
    }

    /// A handle that does not keep the cluster open, such as for a hook of its pools, or for a task that looks after
    /// its nodes.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{cluster::Cluster, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| std::future::ready(Ok::<_, Infallible>("hello")));
    /// let cluster = Cluster::builder().build()?;
    /// cluster.add_node("db1", manager)?;
    /// let weak = cluster.downgrade();
    /// assert_eq!(weak.upgrade().expect("it is there").nodes(), ["db1"]);
    /// drop(cluster);
    /// assert!(weak.upgrade().is_none());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn downgrade(&self) -> WeakCluster<K, M> {
        WeakCluster { shared: Arc::downgrade(&self.shared) }
    }

    /// Closes the cluster for good, and all its pools as [`Pool::close`](crate::Pool::close) does, all of
    /// them together, with those of nodes that were removed: it takes `close_timeout` at the most, however many
    /// nodes there are. May be called again, and by several tasks at once. Connections in use are not waited for,
    /// nor one by which the cluster is asking a node for its role: [`drain`](Self::drain) does that.
    ///
    /// # Cancel safety
    ///
    /// The cluster is closed at the first poll. Dropping the future only stops waiting.
    pub async fn close(&self) {
        let pools = self.shared.pools(&self.shared.shut());
        together(pools.iter().map(|pool| pool.close())).await;
    }

    /// Closes the cluster for good like [`close`](Self::close), but waits for the connections that are in
    /// use too, at all nodes together, for `limit` at the most. Whoever waits or comes gets
    /// [`ClusterError::Closed`]. Answers what [`Pool::drain`](crate::Pool::drain) does, of each node in the
    /// order of [`nodes`](Self::nodes), and then, by the keys that they had, of those that were removed or
    /// replaced before and still had connections; so a key may be there more than once. May be called again, and
    /// by several tasks at once.
    ///
    /// # Cancel safety
    ///
    /// The cluster is closed at the first poll. Dropping the future only stops waiting.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{cluster::Cluster, from_fn};
    /// # use std::{convert::Infallible, time::Duration};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| std::future::ready(Ok::<_, Infallible>("hello")));
    /// let cluster = Cluster::builder().build()?;
    /// cluster.add_node("db1", manager)?;
    /// let connection = cluster.acquire("db1").await?;
    /// for (node, report) in cluster.drain(Duration::from_millis(10)).await {
    ///     println!("{node}: {report}"); // says who holds it, with file and line
    ///     assert_eq!(report.still_out.len(), 1);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn drain(&self, limit: Duration) -> Vec<(K, DrainReport)> {
        let pools = self.shared.pools(&self.shared.shut());
        let reports = together(pools.iter().map(|pool| pool.drain(limit))).await;
        pools.iter().map(|pool| pool.manager().key().clone()).zip(reports).collect()
    }
}

/// Awaits all of them at once: one after the other, each might take its whole limit.
async fn together<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        for (future, output) in running.iter_mut().filter(|(_, output)| output.is_none()) {
            if let Poll::Ready(ready) = future.as_mut().poll(cx) {
                *output = Some(ready);
            }
        }
        if running.iter().any(|(_, output)| output.is_none()) {
            return Poll::Pending;
        }
        Poll::Ready(running.drain(..).filter_map(|(_, output)| output).collect())
    })
    .await
}

impl<K: Key, M: Manager> Clone for Cluster<K, M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Key, M: Manager> fmt::Debug for Cluster<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<String> = self.nodes().iter().map(ToString::to_string).collect();
        f.debug_struct("Cluster").field("name", &self.name()).field("nodes", &nodes).finish()
    }
}

/// A handle to a cluster that does not keep it open.
pub struct WeakCluster<K: Key, M: Manager> {
    shared: Weak<Shared<K, M>>,
}

impl<K: Key, M: Manager> WeakCluster<K, M> {
    /// The cluster, unless its last handle has been dropped.
    #[must_use]
    pub fn upgrade(&self) -> Option<Cluster<K, M>> {
        Some(Cluster { shared: self.shared.upgrade()? })
    }
}

impl<K: Key, M: Manager> Clone for WeakCluster<K, M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<K: Key, M: Manager> fmt::Debug for WeakCluster<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakCluster")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::from_fn;
    use std::convert::Infallible;

    #[tokio::test]
    async fn of_nodes_that_were_removed_no_list_grows_for_ever() {
        let manager = || from_fn(|| std::future::ready(Ok::<_, Infallible>(())));
        let cluster = Cluster::builder().build().unwrap();
        for _ in 0..50 {
            cluster.add_node("a", manager()).unwrap();
            let held = cluster.acquire("a").await.unwrap();
            drop(cluster.remove_node("a", Duration::ZERO).await.unwrap());
            drop(held);
            tokio::task::yield_now().await;
        }
        let left = cluster.shared.lock_removed().len();
        assert!(left <= 3, "{left}");
    }
}
