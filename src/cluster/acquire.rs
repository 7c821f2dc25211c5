//! How a cluster hands out connections.
//!
//! | step | of `acquire` | of `acquire_any`, `acquire_for` |
//! |---|---|---|
//! | first look | the node's idle connections | those of the node that the policy picks |
//! | nothing idle | wait in the node's line | look at all others that are allowed, in order |
//! | still nothing | | wait in the lines of all that are allowed, until one serves |
//!
//! Of those that it waits at, only one opens a connection for it, the first in order that has room or
//! else, under a cap, may get it; at the others it is *patient* and takes what comes back. If the one
//! fails, or has not served within `try_next_after`, the next one opens a connection too. Where that fails
//! for good, as with a wrong password, an acquire has it tried once; whether such a node is back is seen by
//! one of all who wait, once a second. Beside a connection that is alive there it goes on waiting as for a
//! failure that may pass, and the node's pool tries again, every `backoff_max`. An idle
//! connection that has to be checked first is waited for in the same way: nobody looks further as long as
//! its check takes no longer than that, and a check that is late goes on in the background when another
//! node serves.
//!
//! A node that is down beside others that are up may have connections that work all the same, as where a
//! server is at its limit. So it comes last: an acquire waits there too, but has nothing opened any more, and what is
//! idle there it takes, once that has been checked, if the others have no room for it. Nothing else waits for
//! that check.
//!
//! So no acquire waits beside a connection that it could have, none takes more than it
//! needs, and a node that does not answer costs it little of its time.
//!
//! An acquire that waits counts once in the figures, however many nodes it waits at and refuse it: where it
//! was served, or else, by what it ended with, where it waited first; at the first node of all if none was
//! allowed.
//!
//! Not here: which nodes are allowed, and in which order (`policy.rs`).

use super::error::{ClusterError, NodeReport, UnknownNode, Unserved};
use super::node::{Member, Node, Roving, TRIED_AGAIN};
use super::policy::{Choice, Policy};
use super::table::{Current, Table};
use super::{Cluster, Key, Role, Shared};
use crate::error::{AcquireError, ReleaseError, Stage};
use crate::manager::Manager;
use crate::metrics::Outcome;
use crate::pool::node_side::{
    Attempt, Counted, FAR_FUTURE, Missed, PooledBare, Terms, attempt, poll_timer, timer,
};
use crate::pool::{ConnectionInfo, Pooled};
use event_listener::EventListener;
use std::borrow::Borrow;
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::hash::Hash;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task;
use tokio::time::{Instant, Sleep, sleep_until};

type Caller = &'static Location<'static>;

/// A connection of a node, on loan; dropping it gives it back to the node.
///
/// It borrows from the cluster's handle; [`into_owned`](Self::into_owned) makes one that does not.
#[must_use = "a guard that is dropped at once gives its connection back"]
pub struct ClusterGuard<'c, K: Key, M: Manager> {
    pooled: PooledBare<Member<K, M>>,
    /// Where a reference to its pool may be found.
    nodes: Option<&'c Current<K, M>>,
}

impl<'c, K: Key, M: Manager> ClusterGuard<'c, K, M> {
    #[inline(always)]
    fn new(pooled: PooledBare<Member<K, M>>, nodes: &'c Current<K, M>) -> Self {
        Self { pooled, nodes: Some(nodes) }
    }

    /// This guard without the tie to the cluster's handle: for a task of its own, or a struct.
    ///
    /// # Cost
    ///
    /// When it is dropped, an `Arc` is cloned and dropped, which all threads count in one place.
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
    /// let connection = cluster.acquire("db1").await?.into_owned();
    /// let length = tokio::spawn(async move { connection.len() });
    /// assert_eq!(length.await?, 5);
    /// # Ok(()) }
    /// ```
    pub fn into_owned(mut self) -> ClusterGuard<'static, K, M> {
        ClusterGuard { pooled: self.pooled.take(), nodes: None }
    }

    /// The node that the connection belongs to.
    #[must_use]
    pub fn node(&self) -> &K {
        self.pooled.pool().manager().key()
    }

    /// The node's role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.pooled.pool().manager().state.role()
    }

    /// The manager that has opened this connection.
    #[must_use]
    pub fn manager(&self) -> &M {
        self.pooled.pool().manager().manager()
    }

    /// What the pool knows of this connection. Reads the clock.
    #[must_use]
    pub fn info(&self) -> ConnectionInfo {
        self.pooled.info()
    }

    /// Takes the connection out of the pool for good.
    #[must_use]
    pub fn detach(mut self) -> M::Connection {
        self.pooled.owned().detach()
    }

    /// Has the connection closed rather than used again.
    pub fn discard(mut self) {
        self.pooled.owned().discard();
    }

    /// Gives the connection back like a drop, but resets a dirty one here and now, and reports what
    /// went wrong.
    ///
    /// # Errors
    ///
    /// As [`Pooled::release`](crate::Pooled::release); so is its cancel safety.
    pub async fn release(mut self) -> Result<(), ReleaseError<M::Error>> {
        self.pooled.owned().release().await
    }
}

impl<K: Key, M: Manager> Drop for ClusterGuard<'_, K, M> {
    #[inline]
    fn drop(&mut self) {
        if let (Some(nodes), false) = (self.nodes, self.pooled.is_over()) {
            nodes.give_back(&mut self.pooled);
        }
    }
}

impl<K: Key, M: Manager> Deref for ClusterGuard<'_, K, M> {
    type Target = M::Connection;

    #[inline]
    fn deref(&self) -> &M::Connection {
        &self.pooled
    }
}

impl<K: Key, M: Manager> DerefMut for ClusterGuard<'_, K, M> {
    #[inline]
    fn deref_mut(&mut self) -> &mut M::Connection {
        &mut self.pooled
    }
}

impl<K: Key, M: Manager> AsRef<M::Connection> for ClusterGuard<'_, K, M> {
    fn as_ref(&self) -> &M::Connection {
        self
    }
}

impl<K: Key, M: Manager> AsMut<M::Connection> for ClusterGuard<'_, K, M> {
    fn as_mut(&mut self) -> &mut M::Connection {
        self
    }
}

impl<K: Key, M: Manager> fmt::Debug for ClusterGuard<'_, K, M>
where
    M::Connection: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterGuard")
            .field("node", &format_args!("{}", self.node()))
            .field("connection", &**self)
            .finish()
    }
}

/// What a cluster answers.
type Answer<T, K, M> = Result<T, ClusterError<K, <M as Manager>::Error>>;
/// What an acquire answers.
type Served<'c, K, M> = Answer<ClusterGuard<'c, K, M>, K, M>;

impl<K: Key, M: Manager> Cluster<K, M> {
    /// Acquires a connection of one node: an idle one, or, in line with everybody else who waits for
    /// that node, whichever comes first.
    ///
    /// # Errors
    ///
    /// - [`ClusterError::UnknownNode`] if there is no such node; [`ClusterError::Removed`] if it is
    ///   removed meanwhile. If it is [replaced](Self::replace), the acquire goes on with what is in
    ///   its place.
    /// - [`ClusterError::Node`] with what the node's pool says: a timeout after the cluster's
    ///   `acquire_timeout`, or, while connecting fails and no connection of the node is left,
    ///   [`AcquireError::Unavailable`] at once.
    /// - [`ClusterError::Closed`] if the cluster is closed.
    ///
    /// # Cancel safety
    ///
    /// As [`Pool::acquire`](crate::Pool::acquire).
    ///
    /// # Cost
    ///
    /// A hit allocates nothing, takes no lock and reads no clock; it looks the node up in a table that
    /// changes never block. A key that is at the same address as last time is compared, not hashed. A
    /// [`NodeHandle`] saves the look-up. A thread's first acquire of a node, and its first after a change of
    /// the nodes, takes the new table over and allocates. A release counts no reference either, unless the
    /// thread has not acquired from the cluster since that node was added: then it clones an `Arc` and drops
    /// it.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{cluster::Cluster, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = |host: &'static str| from_fn(move || async move { Ok::<_, Infallible>(host) });
    /// let cluster: Cluster<String, _> = Cluster::builder().build()?;
    /// cluster.add_node("db1".to_owned(), manager("10.0.0.1"))?;
    /// let connection = cluster.acquire("db1").await?;
    /// assert_eq!((*connection, connection.node().as_str()), ("10.0.0.1", "db1"));
    /// assert!(cluster.acquire("db2").await.unwrap_err().to_string().contains("no node db2"));
    /// # Ok(()) }
    /// ```
    #[track_caller]
    #[inline]
    pub fn acquire<'c, 'k, Q>(
        &'c self,
        key: &'k Q,
    ) -> impl Future<Output = Served<'c, K, M>> + Send + use<'c, 'k, Q, K, M>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + fmt::Display + Sync + ?Sized,
    {
        self.acquire_within(key, Location::caller(), || None)
    }

    /// Acquires a connection of one node, waiting for `limit` at the most instead of the cluster's
    /// `acquire_timeout`. Zero takes what is idle or gives up at once; what has to be checked or opened first
    /// is so in the background then, for the next caller. [`Duration::MAX`] waits for good.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); so are its cancel safety and its cost.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{cluster::Cluster, from_fn};
    /// # use std::{convert::Infallible, time::Duration};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| std::future::ready(Ok::<_, Infallible>("hello")));
    /// let cluster = Cluster::builder().pools(|pool| pool.max_size(1)).build()?;
    /// cluster.add_node("db1", manager)?;
    /// let held = cluster.acquire("db1").await?;
    /// let error = cluster.acquire_timeout("db1", Duration::from_millis(10)).await.unwrap_err();
    /// assert!(error.to_string().starts_with("node db1: pool cluster/db1: no connection within 1"));
    /// # Ok(()) }
    /// ```
    #[track_caller]
    #[inline]
    pub fn acquire_timeout<'c, 'k, Q>(
        &'c self,
        key: &'k Q,
        limit: Duration,
    ) -> impl Future<Output = Served<'c, K, M>> + Send + use<'c, 'k, Q, K, M>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + fmt::Display + Sync + ?Sized,
    {
        self.acquire_within(key, Location::caller(), move || Some(limit))
    }

    /// What both do. For how long is asked after a miss, so that a hit need not.
    #[allow(clippy::manual_async_fn, reason = "an async function has room for its arguments twice")]
    #[inline(always)]
    fn acquire_within<'c, 'k, Q, L>(
        &'c self,
        key: &'k Q,
        caller: Caller,
        limit: L,
    ) -> impl Future<Output = Served<'c, K, M>> + Send + use<'c, 'k, Q, K, M, L>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + fmt::Display + Sync + ?Sized,
        L: FnOnce() -> Option<Duration> + Send,
    {
        async move {
            let nodes = &self.shared.table;
            let missed = match nodes.attempt_at(key, caller) {
                Some(Attempt::Hit(pooled)) => return Ok(ClusterGuard::new(pooled, nodes)),
                Some(Attempt::Miss(missed)) => missed,
                None => return Err(self.shared.unknown(key)),
            };
            let limit = limit().unwrap_or(self.shared.settings.acquire_timeout);
            self.shared.acquire_slow(key, missed, limit, caller).await
        }
    }

    /// A handle to one node, for those who go to the same one again and again.
    ///
    /// # Errors
    ///
    /// [`ClusterError::UnknownNode`] or [`ClusterError::Closed`].
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
    /// let node = cluster.node("db1")?;
    /// assert_eq!(*node.acquire().await?, "hello");
    /// cluster.remove_node("db1", Duration::ZERO).await?;
    /// assert!(node.acquire().await.unwrap_err().to_string().contains("db1 was removed"));
    /// # Ok(()) }
    /// ```
    pub fn node<Q>(&self, key: &Q) -> Answer<NodeHandle<K, M>, K, M>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + fmt::Display + ?Sized,
    {
        let table = self.shared.table.load();
        match table.get(key) {
            Some(node) if !table.closed => {
                Ok(NodeHandle { cluster: self.shared.clone(), node: node.clone() })
            }
            _ => Err(self.shared.unknown(key)),
        }
    }

    /// Acquires a connection of any node that the policy allows: an idle one if there is one, of the
    /// node that it prefers if possible; of a node that connecting fails to only if the others have none, nor
    /// room for one.
    ///
    /// # Errors
    ///
    /// - [`ClusterError::Timeout`] after the cluster's `acquire_timeout`. An acquire waits until then
    ///   although no node is up, or none has the role that it takes, because that may change. A node
    ///   whose error is [permanent](Manager::is_permanent) is tried once for it, unless it has said so just now,
    ///   and after that once a second for all who wait; while a connection of it is alive, also by its pool, every
    ///   [`backoff_max`](crate::Config::backoff_max).
    /// - [`ClusterError::Unavailable`] instead, at once, if the cluster is to
    ///   [fail fast](super::ClusterBuilder::fail_fast), or there is no tokio runtime to wait on.
    /// - [`ClusterError::Node`] if the only node that is left to wait for refuses, for instance because
    ///   too many wait already; with [`AcquireError::NoRuntime`] if no connection is ready and there is no
    ///   tokio runtime with a timer to wait on.
    /// - [`ClusterError::Closed`] if the cluster is closed.
    ///
    /// # Cancel safety
    ///
    /// As [`Pool::acquire`](crate::Pool::acquire).
    ///
    /// # Cost
    ///
    /// A hit at the first node looked at allocates nothing. A wait allocates: one future for each node
    /// that it waits at. In the figures of the nodes it is one wait all the same, from its beginning,
    /// however many of them refuse it: of the node that serves, or, if none does, of the one where it has
    /// waited first, or of the cluster's first if there was none to wait at.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{cluster::{Cluster, NodeOptions, Policy, Role}, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = |host: &'static str| from_fn(move || async move { Ok::<_, Infallible>(host) });
    /// let cluster: Cluster<String, _> = Cluster::builder().build()?;
    /// let (primary, replica) = (Role::Primary, Role::Replica);
    /// cluster.add_node_with("db1".into(), manager("10.0.0.1"), NodeOptions::default().role(primary))?;
    /// cluster.add_node_with("db2".into(), manager("10.0.0.2"), NodeOptions::default().role(replica))?;
    /// let reads = cluster.acquire_any(Policy::ReplicasThenPrimary).await?;
    /// assert_eq!(reads.node(), "db2");
    /// // The highest rank that is no `None` loses: this one takes whatever is not called db2.
    /// let other = cluster.acquire_any(Policy::Rank(&|node| (node.key() != "db2").then_some(0.0)));
    /// assert_eq!(other.await?.node(), "db1");
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn acquire_any<'c, 'p>(
        &'c self,
        policy: Policy<'p, K>,
    ) -> impl Future<Output = Served<'c, K, M>> + Send + use<'c, 'p, K, M> {
        let caller = Location::caller();
        async move { self.shared.acquire_of(Aim::Policy(policy), None, caller).await }
    }

    /// Acquires a connection of any node that the policy allows, waiting for `limit` at the most instead of
    /// the cluster's `acquire_timeout`; zero and [`Duration::MAX`] are those of
    /// [`acquire_timeout`](Self::acquire_timeout).
    ///
    /// # Errors
    ///
    /// As [`acquire_any`](Self::acquire_any); so are its cancel safety and its cost.
    #[track_caller]
    pub fn acquire_any_timeout<'c, 'p>(
        &'c self,
        policy: Policy<'p, K>,
        limit: Duration,
    ) -> impl Future<Output = Served<'c, K, M>> + Send + use<'c, 'p, K, M> {
        let caller = Location::caller();
        async move { self.shared.acquire_of(Aim::Policy(policy), Some(limit), caller).await }
    }

    /// Acquires a connection of the node that this session belongs to, by a hash of its name: always
    /// the same one, as long as that node is there and up. Sessions are spread by the nodes' weights.
    /// When a node goes or fails, its sessions are spread over the others and no other session moves;
    /// when one comes, it takes its share of each. One that does not answer has failed after
    /// [`connect_timeout`](crate::PoolBuilder::connect_timeout), and its sessions wait until then.
    ///
    /// The hash depends on the name and the keys' `Display` alone, so that all processes agree.
    ///
    /// # Errors
    ///
    /// As [`acquire_any`](Self::acquire_any); so is its cancel safety.
    ///
    /// # Cost
    ///
    /// One hash for each node, and an allocation.
    #[track_caller]
    pub fn acquire_for<'c, 's>(
        &'c self,
        session: &'s [u8],
    ) -> impl Future<Output = Served<'c, K, M>> + Send + use<'c, 's, K, M> {
        let caller = Location::caller();
        async move { self.shared.acquire_of(Aim::Session(session), None, caller).await }
    }

    /// As [`acquire_for`](Self::acquire_for), waiting for `limit` at the most instead of the cluster's
    /// `acquire_timeout`; zero and [`Duration::MAX`] are those of [`acquire_timeout`](Self::acquire_timeout).
    ///
    /// # Errors
    ///
    /// As [`acquire_any`](Self::acquire_any); so is its cancel safety. Its cost is that of
    /// [`acquire_for`](Self::acquire_for).
    #[track_caller]
    pub fn acquire_for_timeout<'c, 's>(
        &'c self,
        session: &'s [u8],
        limit: Duration,
    ) -> impl Future<Output = Served<'c, K, M>> + Send + use<'c, 's, K, M> {
        let caller = Location::caller();
        async move { self.shared.acquire_of(Aim::Session(session), Some(limit), caller).await }
    }
}

/// A node of a cluster. It keeps the cluster open, but not the node in it.
pub struct NodeHandle<K: Key, M: Manager> {
    pub(super) cluster: Arc<Shared<K, M>>,
    pub(super) node: Arc<Node<K, M>>,
}

impl<K: Key, M: Manager> NodeHandle<K, M> {
    /// The node's key.
    #[must_use]
    pub fn key(&self) -> &K {
        self.node.key()
    }

    /// Acquires a connection of this node; [`manager`](Pooled::manager) of what it answers tells which
    /// one that is.
    ///
    /// # Errors
    ///
    /// As [`Cluster::acquire`]; [`ClusterError::Removed`] also if the node has been replaced: then the
    /// cluster has a handle to the new one.
    ///
    /// # Cancel safety
    ///
    /// As [`Pool::acquire`](crate::Pool::acquire).
    ///
    /// # Cost
    ///
    /// A hit is a hit of the node's pool and nothing more.
    #[track_caller]
    #[inline]
    pub fn acquire(
        &self,
    ) -> impl Future<Output = Answer<Pooled<'_, Member<K, M>>, K, M>> + Send + use<'_, K, M> {
        self.acquire_within(Location::caller(), || None)
    }

    /// Acquires a connection of this node, waiting for `limit` at the most instead of the cluster's
    /// `acquire_timeout`; zero and [`Duration::MAX`] are those of [`Cluster::acquire_timeout`].
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); so are its cancel safety and its cost.
    #[track_caller]
    #[inline]
    pub fn acquire_timeout(
        &self,
        limit: Duration,
    ) -> impl Future<Output = Answer<Pooled<'_, Member<K, M>>, K, M>> + Send + use<'_, K, M> {
        self.acquire_within(Location::caller(), move || Some(limit))
    }

    /// What both do.
    #[allow(clippy::manual_async_fn, reason = "an async function has room for its arguments twice")]
    #[inline(always)]
    fn acquire_within<L: FnOnce() -> Option<Duration> + Send>(
        &self,
        caller: Caller,
        limit: L,
    ) -> impl Future<Output = Answer<Pooled<'_, Member<K, M>>, K, M>> + Send + use<'_, K, M, L>
    {
        async move {
            match self.node.pool.attempt_here(caller) {
                Ok(pooled) => Ok(pooled),
                Err(missed) => {
                    let mut waiting = pin!(missed.wait(limit()));
                    let served = self.cluster.in_line(self.key(), waiting.as_mut()).await;
                    served.map_err(|error| self.explain(error))
                }
            }
        }
    }

    #[cold]
    fn explain(&self, source: AcquireError<M::Error>) -> ClusterError<K, M::Error> {
        let (cluster, key) = (self.cluster.name(), self.key().clone());
        match source {
            AcquireError::Closed | AcquireError::Draining if self.cluster.table.load().closed => {
                ClusterError::Closed { cluster }
            }
            AcquireError::Closed | AcquireError::Draining => ClusterError::removed(cluster, key),
            mut source => {
                self.cluster.name_the_cap(&self.node, &mut source);
                ClusterError::of_node(key, source)
            }
        }
    }
}

impl<K: Key, M: Manager> Clone for NodeHandle<K, M> {
    fn clone(&self) -> Self {
        Self { cluster: self.cluster.clone(), node: self.node.clone() }
    }
}

impl<K: Key, M: Manager> fmt::Debug for NodeHandle<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeHandle").field("key", &format_args!("{}", self.key())).finish()
    }
}

/// What an acquire is after that does not name its node.
enum Aim<'a, K> {
    Policy(Policy<'a, K>),
    Session(&'a [u8]),
}

impl<K> Clone for Aim<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Aim<'_, K> {}

impl<K: Key> Aim<'_, K> {
    fn name(&self) -> &'static str {
        match self {
            Self::Policy(policy) => policy.name(),
            Self::Session(_) => "the node of this session",
        }
    }

    /// What is said where no node is what it is after.
    fn no_match(&self) -> Option<&'static str> {
        match self {
            Self::Policy(policy) => policy.no_match(),
            Self::Session(_) => None,
        }
    }

    /// The place of the node to look at first.
    fn pick<M: Manager>(&self, choice: &Choice<'_, K, M>) -> Option<usize> {
        match self {
            Self::Policy(policy) => choice.pick(*policy),
            Self::Session(session) => choice.of_session(session).first().copied(),
        }
    }

    /// The places of those that may be used, in order, `picked` first.
    fn order<M: Manager>(&self, choice: &Choice<'_, K, M>, picked: Option<usize>) -> Vec<usize> {
        match self {
            Self::Policy(policy) => choice.order(*policy, picked),
            // Its own node alone, or the first that is up.
            Self::Session(session) => choice.of_session(session).into_iter().take(1).collect(),
        }
    }

    fn allows<M: Manager>(&self, choice: &Choice<'_, K, M>, node: &Node<K, M>) -> bool {
        match self {
            Self::Policy(policy) => choice.allows(*policy, node),
            Self::Session(_) => true,
        }
    }
}

impl<K: Key, M: Manager> Shared<K, M> {
    fn choice<'t>(self: &'t Arc<Self>, table: &'t Table<K, M>) -> Choice<'t, K, M> {
        Choice { cluster: self, table, late: Vec::new() }
    }

    fn unknown<Q: fmt::Display + ?Sized>(&self, key: &Q) -> ClusterError<K, M::Error> {
        let (cluster, table) = (self.name(), self.table.load());
        if table.closed {
            return ClusterError::Closed { cluster };
        }
        let (key, nodes) = (key.to_string(), table.names());
        ClusterError::UnknownNode(Box::new(UnknownNode { cluster, key, nodes }))
    }

    /// Waits for a connection of one node.
    #[cold]
    async fn acquire_slow<'c, Q>(
        self: &'c Arc<Self>,
        key: &Q,
        mut missed: Missed<Member<K, M>>,
        limit: Duration,
        caller: Caller,
    ) -> Served<'c, K, M>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + fmt::Display + ?Sized,
    {
        let began = Instant::now();
        let mut again: Option<Again<K, M>> = None;
        loop {
            let node = missed.manager().key().clone();
            let left =
                if limit == Duration::MAX { limit } else { limit.saturating_sub(began.elapsed()) };
            let counted = again.as_ref().map_or(Counted::Here, |_| Counted::Elsewhere);
            let mut waiting = pin!(missed.wait(left, counted));
            let served = self.in_line(&node, waiting.as_mut()).await;
            if let Some(again) = &mut again {
                again.outcome = served.as_ref().map_or_else(Outcome::from, |_| Outcome::Served);
            }
            match served {
                Ok(pooled) => return Ok(ClusterGuard::new(pooled, &self.table)),
                Err(AcquireError::Closed | AcquireError::Draining) => {
                    // Whoever closes a node has taken it out of the table first.
                    let attempt = match self.table.load() {
                        table if table.closed => {
                            return Err(ClusterError::Closed { cluster: self.name() });
                        }
                        table => table.get(key).map(|node| {
                            let attempt = attempt(node.pool.without_handle(), caller);
                            let outcome = match attempt {
                                // It was not there at once.
                                Attempt::Hit(_) => Outcome::Served,
                                // Cancel: if nothing else comes, that is the outcome.
                                Attempt::Miss(_) => Outcome::Cancelled,
                            };
                            again = Some(Again { node: node.clone(), caller, began, outcome });
                            attempt
                        }),
                    };
                    match attempt {
                        Some(Attempt::Hit(pooled)) => {
                            return Ok(ClusterGuard::new(pooled, &self.table));
                        }
                        Some(Attempt::Miss(again)) => missed = again,
                        None => {
                            return Err(ClusterError::removed(self.name(), node));
                        }
                    }
                }
                Err(mut source) => {
                    // Since he began, which may have been at a node that this one has replaced.
                    match &mut source {
                        AcquireError::Timeout(timeout) => timeout.waited = began.elapsed(),
                        AcquireError::Shed { waited } => *waited = began.elapsed(),
                        _ => {}
                    }
                    if let Some(node) = self.table.load().get(key) {
                        self.name_the_cap(node, &mut source);
                    }
                    return Err(ClusterError::of_node(node, source));
                }
            }
        }
    }

    /// Adds to what a node's pool says instead of serving why it could have no more, if that is the cap.
    #[cold]
    pub(super) fn name_the_cap(&self, node: &Node<K, M>, source: &mut AcquireError<M::Error>) {
        match source {
            AcquireError::Timeout(timeout) if timeout.stage == Stage::Queued => {
                timeout.cap = self.why_no_more([node]);
            }
            _ => {}
        }
    }

    /// Waits, and tells the cap whenever it may have got in line. Not an async function, which would have
    /// room for its arguments twice.
    pub(super) fn in_line<F: Future>(
        self: &Arc<Self>,
        key: &K,
        mut waiting: Pin<&mut F>,
    ) -> impl Future<Output = F::Output> {
        let (mut word, mut has_begun) = (Word::default(), false);
        poll_fn(move |cx| {
            let served = waiting.as_mut().poll(cx);
            if served.is_ready() {
                return served;
            }
            word.poll(self, cx);
            if mem::replace(&mut has_begun, true) {
                return served;
            }
            // Who has no time at all was only to be seen by the cap, and gives up now.
            let served = waiting.as_mut().poll(cx);
            if served.is_ready() {
                self.missed(key);
            }
            served
        })
    }

    /// Somebody who had no time has left the line of this node. If the cap has none for it yet, its first
    /// connection is opened once there is room for that.
    #[cold]
    fn missed(self: &Arc<Self>, key: &K) {
        let table = self.table.load_full();
        let none_yet = |node: &&Arc<Node<K, M>>| node.pool.max_size() == 0;
        let Some(node) = table.get(key).filter(none_yet) else { return };
        self.passed_over(node);
        node.try_in_background();
    }

    async fn acquire_of<'c>(
        self: &'c Arc<Self>,
        aim: Aim<'_, K>,
        limit: Option<Duration>,
        caller: Caller,
    ) -> Served<'c, K, M> {
        let nodes = &self.table;
        let first = match nodes.attempt(|table, _| aim.pick(&self.choice(table)), caller) {
            Some(Attempt::Hit(pooled)) => return Ok(ClusterGuard::new(pooled, nodes)),
            Some(Attempt::Miss(missed)) => match missed.settle() {
                Attempt::Hit(pooled) => return Ok(ClusterGuard::new(pooled, nodes)),
                Attempt::Miss(missed) => Some(missed),
            },
            None => None,
        };
        let race = Race::new(self, aim, limit, caller, first);
        // The second question takes a reference to the runtime that all its threads share, so it is
        // asked only outside tasks.
        if task::try_id().is_none() && Handle::try_current().is_err() {
            return Ok(ClusterGuard::new(race.run_at_once()?, nodes));
        }
        Ok(ClusterGuard::new(race.run().await?, nodes))
    }
}

/// An acquire whose node has been replaced: what is in its place now counts all of the wait.
struct Again<K: Key, M: Manager> {
    node: Arc<Node<K, M>>,
    caller: Caller,
    began: Instant,
    outcome: Outcome,
}

impl<K: Key, M: Manager> Drop for Again<K, M> {
    fn drop(&mut self) {
        self.node.pool.has_waited(self.caller, self.outcome, self.began.elapsed());
    }
}

/// What somebody in line tells the cap: whenever he is polled, since he may have looked again in vain, and
/// the cap have taken him for gone meanwhile; so he has himself polled once nobody looks after the cap any
/// more.
#[derive(Default)]
pub(super) struct Word {
    /// Completes when nobody does.
    abandoned: Option<EventListener>,
}

impl Word {
    pub(super) fn poll<K: Key, M: Manager>(
        &mut self,
        cluster: &Arc<Shared<K, M>>,
        cx: &mut Context<'_>,
    ) {
        let Some(cap) = &cluster.cap else { return };
        let mut abandoned = self.abandoned.take().unwrap_or_else(|| cap.when_abandoned());
        if !cluster.more_wanted() {
            // No pool has a runtime, nor could anybody look later on in this one, which has ended or has no
            // timer: whoever has another hears of it, and gives everybody what there is.
            return;
        }
        if Pin::new(&mut abandoned).poll(cx).is_ready() {
            // Whoever looked after it may have ceased to at this moment.
            cx.waker().wake_by_ref();
            return;
        }
        self.abandoned = Some(abandoned);
    }
}

/// What a wait at one node answers.
type Found<K, M> = Result<PooledBare<Member<K, M>>, AcquireError<<M as Manager>::Error>>;
/// What a race ends with.
type Raced<K, M> = Answer<PooledBare<Member<K, M>>, K, M>;
type Waiting<K, M> = dyn Future<Output = Found<K, M>> + Send;

/// One of the nodes that an acquire waits at.
struct Runner<K: Key, M: Manager> {
    node: Arc<Node<K, M>>,
    waiting: Pin<Box<Waiting<K, M>>>,
    terms: Arc<Terms>,
    check: Check,
    /// It has just been told to have something opened, which it does when it is polled.
    hurried: bool,
    /// How many connects, resets and checks had ended at the node when it was last seen, if one was under way.
    asked: Option<u64>,
    /// One of these has been under way there for a whole pause.
    late: bool,
    /// It has something opened, and one of the others may serve as well.
    roving: Option<Roving<K>>,
    /// The node is down beside others.
    in_doubt: bool,
}

/// Whether a connection is being checked for a runner.
#[derive(Clone, Copy, PartialEq)]
enum Check {
    No,
    /// Of something that has come back since the last pause.
    Begun,
    UnderWay,
    /// For longer than a pause, or beyond the end of one.
    Late,
}

impl<K: Key, M: Manager> Runner<K, M> {
    fn new(
        node: Arc<Node<K, M>>,
        missed: Missed<Member<K, M>>,
        began: Instant,
        in_doubt: bool,
    ) -> Self {
        let check = if missed.has_found() { Check::UnderWay } else { Check::No };
        let (terms, waiting) = missed.wait_among_others(began, in_doubt);
        let waiting = Box::pin(waiting);
        let (hurried, asked, late, roving) = (false, None, false, None);
        Self { node, waiting, terms, check, hurried, asked, late, roving, in_doubt }
    }

    fn is_at<N: Borrow<Node<K, M>>>(&self, node: &N) -> bool {
        self.node.pool.is(&node.borrow().pool)
    }

    fn poll(&mut self, cx: &Context<'_>) -> Poll<Found<K, M>> {
        let found = self.terms.poll(self.waiting.as_mut(), cx);
        if mem::take(&mut self.hurried) {
            self.see_questions();
        }
        found
    }

    /// Whether what was checked when this was asked last has not passed.
    fn has_failed(&mut self) -> bool {
        let is_checking = self.terms.is_checking();
        let failed = self.check != Check::No && !is_checking;
        if failed {
            self.check = Check::No;
        } else if is_checking && self.check == Check::No {
            self.check = Check::Begun;
        }
        failed
    }

    /// Whether a check is under way for it that may be over soon.
    fn is_checking(&self) -> bool {
        matches!(self.check, Check::Begun | Check::UnderWay)
    }

    /// Takes down whether the node is being asked for something.
    fn see_questions(&mut self) {
        let pool = &self.node.pool;
        // Before the look at what is under way, so that one which ends in between is not taken to go on.
        let ended = pool.answers();
        let counts = pool.counts();
        let under_way = counts.connecting + counts.resetting + counts.checking;
        self.asked = (under_way > 0).then_some(ended);
    }

    /// A pause is over. What was under way before it and still is has taken all of it.
    fn see_pause(&mut self) {
        let before = self.asked;
        self.see_questions();
        self.late |= self.asked.is_some() && self.asked == before;
        match self.check {
            Check::No => {}
            Check::Begun => self.check = Check::Late,
            Check::UnderWay | Check::Late => {
                self.check = Check::Late;
                self.late = true;
            }
        }
    }

    /// The node is down beside others, or is not any more.
    fn doubt(&mut self, in_doubt: bool) {
        self.in_doubt = in_doubt;
        if in_doubt {
            self.terms.be_patient();
            self.roving = None;
        }
    }

    /// It is not to serve any more.
    fn leave(&mut self) {
        self.roving = None;
        let waiting = mem::replace(&mut self.waiting, Box::pin(pending()));
        if self.terms.leave() {
            self.node.pool.bring_to_an_end(async move { drop(waiting.await) });
        }
    }
}

/// An acquire that waits at several nodes at once. Dropping it gives up its place in all lines.
struct Race<'a, K: Key, M: Manager> {
    cluster: &'a Arc<Shared<K, M>>,
    aim: Aim<'a, K>,
    caller: Caller,
    began: Instant,
    /// When it gives up, if ever.
    deadline: Option<Instant>,
    /// What was found at the node that was picked.
    first: Option<Missed<Member<K, M>>>,
    /// The node that was picked. Another one is only if this one cannot be used any more, or each change
    /// would put the nodes in another order.
    picked: Option<Arc<Node<K, M>>>,
    /// In the order in which it has come to them.
    runners: Vec<Runner<K, M>>,
    /// Those that have failed since the last change or pause.
    out: Vec<Arc<Node<K, M>>>,
    /// Those where connecting has failed for good. This acquire has nothing opened there any more, unless
    /// somebody else has succeeded since.
    hopeless: Vec<Arc<Node<K, M>>>,
    /// How many of the runners are to have something opened.
    dials: usize,
    /// One of them has begun to, or to check something, since the last look at this.
    begun: bool,
    /// The cap is to see whether the nodes that are to open something have room for that.
    word: Option<Word>,
    /// How often the nodes it waits at had served when nothing had happened for a pause.
    uses: Option<u64>,
    /// They have served nobody since then.
    stuck: bool,
    /// It has had the servers asked for their roles, and fails unless one of those that have not
    /// answered yet says the right one.
    asked: bool,
    unanswered: Vec<EventListener>,
    /// The last refusal since then.
    refusal: Option<(K, AcquireError<M::Error>)>,
    /// Where it is counted: where it is served, or else where it has waited first.
    counted_at: Option<Arc<Node<K, M>>>,
    /// It has been counted, or has not waited and is not to be.
    over: bool,
}

/// What ends one wait of a race.
enum Event<K: Key, M: Manager> {
    /// This runner has an answer.
    Answer(usize, Found<K, M>),
    /// What was found has not passed its check, or a server has been asked for its role.
    LookAgain,
    /// A node has come, gone, failed, come back or changed its role.
    Changed,
    /// Nothing has happened for `try_next_after`.
    Quiet,
    /// The deadline has passed.
    Late,
    /// The runtime that it waits on has ended.
    Ended,
}

impl<'a, K: Key, M: Manager> Race<'a, K, M> {
    fn new(
        cluster: &'a Arc<Shared<K, M>>,
        aim: Aim<'a, K>,
        limit: Option<Duration>,
        caller: Caller,
        first: Option<Missed<Member<K, M>>>,
    ) -> Self {
        let (limit, began) = (limit.unwrap_or(cluster.settings.acquire_timeout), Instant::now());
        Self {
            cluster,
            aim,
            caller,
            began,
            deadline: (limit < Duration::MAX).then(|| began + limit.min(FAR_FUTURE)),
            first,
            picked: None,
            runners: Vec::new(),
            out: Vec::new(),
            hopeless: Vec::new(),
            dials: 1,
            begun: false,
            word: None,
            uses: None,
            stuck: false,
            asked: false,
            unanswered: Vec::new(),
            refusal: None,
            counted_at: None,
            over: true,
        }
    }

    /// Takes what is ready, where there is no runtime to wait on, or none with a timer.
    fn run_at_once(mut self) -> Raced<K, M> {
        loop {
            if let Some(guard) = self.line_up()? {
                return Ok(guard);
            }
            let Some(index) = self.runners.iter().position(|runner| runner.check != Check::No)
            else {
                break;
            };
            // Nobody could check it. It goes back.
            self.out.push(self.runners.remove(index).node);
        }
        Err(self.without_runtime())
    }

    #[cold]
    fn without_runtime(&self) -> ClusterError<K, M::Error> {
        let nodes = self.runners.iter().map(|runner| &runner.node);
        match nodes.chain(&self.out).next() {
            Some(node) => ClusterError::of_node(node.key().clone(), AcquireError::NoRuntime),
            None => ClusterError::Unavailable(self.unserved()),
        }
    }

    async fn run(mut self) -> Raced<K, M> {
        let pause = self.cluster.settings.try_next_after.min(FAR_FUTURE);
        let Some(quiet) = timer(Instant::now() + pause) else { return self.run_at_once() };
        let mut quiet = pin!(quiet);
        let mut quiet_at = quiet.deadline();
        let mut late = pin!(self.deadline.map(sleep_until));
        // Before the first look, and after each change before the next one: none is missed.
        let mut changed = self.cluster.changed.listen();
        let served = loop {
            match self.line_up() {
                Ok(Some(guard)) => break Ok(guard),
                Err(error) => break Err(error),
                Ok(None) => {}
            }
            if mem::take(&mut self.begun) {
                quiet_at = Instant::now() + pause;
            }
            let look_at = match self.hopeless.is_empty() {
                true => quiet_at,
                // Each look sees to it that somebody tries them again.
                false => quiet_at.min(Instant::now() + TRIED_AGAIN),
            };
            if quiet.deadline() != look_at {
                quiet.as_mut().reset(look_at);
            }
            self.over = false;
            match self.next(&mut changed, quiet.as_mut(), late.as_mut()).await {
                Event::Answer(index, Ok(pooled)) => {
                    let Runner { node, terms, .. } = self.runners.remove(index);
                    let table = self.cluster.table.load();
                    // By the options that it has now; one that has been removed meanwhile has those that it had.
                    let is_same = |other: &&Arc<Node<K, M>>| other.pool.is(&node.pool);
                    let by_now = table.nodes().iter().find(is_same).unwrap_or(&node);
                    if self.aim.allows(&self.choice(&table), by_now) {
                        node.pool.serves(&terms);
                        self.counted_at = Some(node);
                        break Ok(pooled);
                    }
                    // Its options are others, or the server has another role, which was learned when this
                    // was opened. Back it goes.
                }
                Event::Answer(index, Err(error)) => {
                    let Runner { node, in_doubt, .. } = self.runners.remove(index);
                    if matches!(error, AcquireError::NoRuntime) {
                        break Err(ClusterError::of_node(node.key().clone(), error));
                    }
                    match self.is_hopeless_now(&node, &error) {
                        false => self.out.push(node.clone()),
                        // It waits there for what may come back, if anything may.
                        true => self.hopeless.push(node.clone()),
                    }
                    if !in_doubt {
                        self.refusal = Some((node.key().clone(), error));
                    }
                }
                Event::LookAgain => {}
                Event::Changed => {
                    changed = self.cluster.changed.listen();
                    self.forget_refusals();
                }
                Event::Quiet if Instant::now() < quiet_at => {}
                Event::Quiet => {
                    // Also if nothing has begun by then.
                    quiet_at = Instant::now() + pause;
                    self.dials += 1;
                    self.forget_refusals();
                    self.look_further();
                    self.ask_the_others();
                }
                Event::Late => {
                    break Err(ClusterError::Timeout(self.unserved()));
                }
                Event::Ended => break Err(self.without_runtime()),
            }
        };
        self.count(served.as_ref().map_or_else(Self::outcome, |_| Outcome::Served));
        self.runners.iter_mut().for_each(Runner::leave);
        served
    }

    #[cold]
    fn unserved(&self) -> Box<Unserved<K, M::Error>> {
        let table = self.cluster.table.load_full();
        let choice = self.choice(&table);
        let nodes = table.nodes();
        let is_checking = |node: &Node<K, M>| {
            let mut runners = self.runners.iter();
            runners.any(|runner| runner.is_at(node) && runner.terms.is_checking())
        };
        let reports = nodes.iter().map(|node| NodeReport::new(node, is_checking(node)));
        let reports: Vec<_> = reports.collect();
        // Where it is in line, and would have one opened if there was room.
        let lines_up = |node: &Node<K, M>| {
            self.runners.iter().any(|runner| runner.is_at(node) && !runner.in_doubt)
        };
        let queued = nodes
            .iter()
            .zip(&reports)
            .filter(|(node, report)| report.stage == Stage::Queued && lines_up(node));
        let cap = self.cluster.why_no_more(queued.map(|(node, _)| &**node));
        let is_first = |node: &Arc<Node<K, M>>| {
            self.counted_at.as_ref().is_some_and(|first| first.pool.is(&node.pool))
        };
        let none_fits = !nodes.iter().any(|node| self.aim.allows(&choice, node));
        Box::new(Unserved::new(
            self.cluster.name(),
            self.aim.name(),
            self.began.elapsed(),
            self.aim.no_match().filter(|_| none_fits),
            reports,
            nodes.iter().position(is_first),
            cap,
        ))
    }

    /// As what an acquire counts that ended with this.
    fn outcome(error: &ClusterError<K, M::Error>) -> Outcome {
        match error {
            ClusterError::Node(refusal) => Outcome::from(&refusal.source),
            ClusterError::Timeout(_) => Outcome::TimedOut,
            ClusterError::Closed { .. } => Outcome::Closed,
            ClusterError::UnknownNode(_)
            | ClusterError::Removed(_)
            | ClusterError::Unavailable(_) => Outcome::Failed,
        }
    }

    /// It has come to its end, which is counted if it has waited.
    fn count(&mut self, outcome: Outcome) {
        if !mem::replace(&mut self.over, true) {
            // Where none may be used it waits nowhere, and is to be seen all the same.
            let table = self.cluster.table.load();
            if let Some(node) = self.counted_at.as_ref().or(table.nodes().first()) {
                node.pool.has_waited(self.caller, outcome, self.began.elapsed());
            }
        }
    }

    /// Looks at all that are allowed, and waits at each of them from now on; unless one has a
    /// connection that is ready, or has to be checked first.
    fn line_up(&mut self) -> Answer<Option<PooledBare<Member<K, M>>>, K, M> {
        let cluster = self.cluster;
        let table = cluster.table.load_full();
        if table.closed {
            return Err(ClusterError::Closed { cluster: cluster.name() });
        }
        let choice = self.choice(&table);
        let picked = self.place(&choice);
        self.hopeless.retain(|node| !node.is_up());
        let mut order = self.aim.order(&choice, picked);
        order.retain(|place| {
            let node = &table.nodes()[*place];
            if !self.is_hopeless(node) {
                return true;
            }
            node.try_again(cluster);
            // What it still has may come back.
            node.pool.counts().alive() > 0
        });
        let allowed = || order.iter().map(|place| &table.nodes()[*place]);
        self.runners.retain_mut(|runner| match allowed().find(|node| runner.is_at(*node)) {
            Some(node) => {
                // The same one may have other options.
                runner.node.clone_from(node);
                true
            }
            None => {
                runner.leave();
                false
            }
        });
        let is_up = |place: &usize| table.nodes()[*place].is_up();
        let (mut order, mut down): (Vec<_>, Vec<_>) = order.into_iter().partition(is_up);
        if order.is_empty() {
            mem::swap(&mut order, &mut down);
        }
        for runner in &mut self.runners {
            let is_there = |place: &usize| runner.is_at(&table.nodes()[*place]);
            runner.doubt(down.iter().any(is_there));
        }
        for node in order.iter().map(|place| &table.nodes()[*place]) {
            if self.waits_for_a_check() {
                break;
            }
            if self.has_been_at(node) {
                continue;
            }
            let missed = match self.first.take_if(|missed| missed.is_at(&node.pool)) {
                Some(missed) => missed,
                None => match self.look_at(node) {
                    Attempt::Hit(pooled) => {
                        self.passed_over(&table, picked, node);
                        self.counted_at = Some(node.clone());
                        return Ok(Some(pooled));
                    }
                    Attempt::Miss(missed) => missed,
                },
            };
            // One that has to be checked first is nearly as good as one that is ready.
            self.begun |= missed.has_found();
            self.wait_at(node, missed, false);
        }
        // A connection that was found at a node that may not be used after all goes back.
        self.first = None;
        for node in down.iter().map(|place| &table.nodes()[*place]) {
            node.try_again(cluster);
        }
        if !self.waits_for_a_check() {
            order.retain(|place| !self.is_hopeless(&table.nodes()[*place]));
            let is_provided_for = self.have_some_opened(&order, &table);
            if let Some(pooled) = self.fall_back(&down, is_provided_for, &table) {
                return Ok(Some(pooled));
            }
        }
        if self.runners.is_empty() {
            self.nobody_is_left(&table)?;
        }
        Ok(None)
    }

    /// Whether it waits at this node, or has been refused there just now.
    fn has_been_at(&self, node: &Node<K, M>) -> bool {
        let mut others = self.out.iter().chain(self.runners.iter().map(|runner| &runner.node));
        others.any(|other| other.pool.is(&node.pool))
    }

    fn wait_at(&mut self, node: &Arc<Node<K, M>>, missed: Missed<Member<K, M>>, in_doubt: bool) {
        if self.counted_at.as_ref().is_none_or(|node| node.pool.is_closed()) {
            self.counted_at = Some(node.clone());
        }
        self.runners.push(Runner::new(node.clone(), missed, self.began, in_doubt));
    }

    /// Waits also at these nodes, which are down beside others: nothing is opened there, but what they have
    /// may work. What is idle there is left alone by whom the others have room for.
    fn fall_back(
        &mut self,
        down: &[usize],
        is_provided_for: bool,
        table: &Table<K, M>,
    ) -> Option<PooledBare<Member<K, M>>> {
        for node in down.iter().map(|place| &table.nodes()[*place]) {
            let counts = node.pool.counts();
            if counts.alive() == 0 || self.has_been_at(node) {
                continue;
            }
            let is_checking = || self.runners.iter().any(|runner| runner.is_checking());
            if counts.idle > 0 && (is_provided_for || is_checking()) {
                continue;
            }
            // The server may be frozen.
            node.pool.have_idle_checked();
            match self.look_at(node) {
                Attempt::Miss(missed) => self.wait_at(node, missed, true),
                // It has come back just now.
                Attempt::Hit(pooled) => {
                    self.counted_at = Some(node.clone());
                    return Some(pooled);
                }
            }
        }
        None
    }

    /// All that have failed are looked at again, so what they said does not hold any more.
    fn forget_refusals(&mut self) {
        self.out.clear();
        self.refusal = None;
    }

    /// Whether a node has refused because connecting has failed for good just now, or because it did so
    /// before and somebody else is trying again already: one attempt is enough for both. Not if it is up
    /// again, for whatever reason.
    fn is_hopeless_now(&self, node: &Node<K, M>, error: &AcquireError<M::Error>) -> bool {
        let tried = matches!(error, AcquireError::Connect(_) | AcquireError::Unavailable(_));
        tried && node.pool.fails_for_good() && !node.is_up()
    }

    /// What it chooses from: with what it has come to know of the nodes that it waits at.
    fn choice<'t>(&self, table: &'t Table<K, M>) -> Choice<'t, K, M>
    where
        'a: 't,
    {
        let late = self.runners.iter().filter(|runner| runner.late);
        let late = late.map(|runner| runner.node.clone()).collect();
        Choice { cluster: self.cluster, table, late }
    }

    /// Whether nothing is to be opened at this node.
    fn is_hopeless(&self, node: &Node<K, M>) -> bool {
        self.hopeless.iter().any(|hopeless| hopeless.pool.is(&node.pool))
    }

    /// The place of the node that was picked.
    fn place(&mut self, choice: &Choice<'_, K, M>) -> Option<usize> {
        let nodes = choice.table.nodes();
        let place = match (&self.first, &self.picked) {
            (Some(missed), _) => nodes.iter().position(|node| missed.is_at(&node.pool)),
            (None, Some(picked)) => {
                nodes.iter().position(|node| node.pool.is(&picked.pool) && node.is_up())
            }
            (None, None) => None,
        };
        let place = place.or_else(|| self.aim.pick(choice));
        self.picked = place.map(|place| nodes[place].clone());
        place
    }

    /// Takes what is ready, or may be once it has been checked.
    fn look_at(&self, node: &Node<K, M>) -> Attempt<Member<K, M>> {
        match attempt(node.pool.without_handle(), self.caller) {
            Attempt::Miss(missed) => missed.settle(),
            hit @ Attempt::Hit(_) => hit,
        }
    }

    /// Whether something has been found that may be ready soon.
    fn waits_for_a_check(&self) -> bool {
        self.runners.iter().any(|runner| runner.is_checking() && !runner.in_doubt)
    }

    /// Another node has served because the one that was picked had nothing idle. It is to have next
    /// time, or it would be passed over for good.
    fn passed_over(&self, table: &Table<K, M>, picked: Option<usize>, server: &Arc<Node<K, M>>) {
        let Some(place) = picked else { return };
        let node = &table.nodes()[place];
        if !Arc::ptr_eq(node, server) {
            self.cluster.passed_over(node);
            node.try_in_background();
        }
    }

    /// No node may be used, or all that may have failed.
    fn nobody_is_left(&mut self, table: &Table<K, M>) -> Answer<(), K, M> {
        let fail_fast = self.cluster.settings.fail_fast;
        if !self.asked {
            // A node may have taken over another's role.
            table.nodes().iter().for_each(|node| node.read_role_again(self.cluster, None));
            // Once is enough for one who does not wait for another answer.
            self.asked = fail_fast;
        }
        if let Some((key, source)) = self.refusal.take_if(|(_, error)| {
            matches!(error, AcquireError::QueueFull | AcquireError::Shed { .. })
        }) {
            return Err(ClusterError::of_node(key, source));
        }
        if fail_fast {
            let nodes = table.nodes().iter();
            self.unanswered = nodes.filter_map(|node| node.when_asked()).collect();
            if self.unanswered.is_empty() {
                return Err(ClusterError::Unavailable(self.unserved()));
            }
        }
        Ok(())
    }

    /// Those that may be used do not serve. One that may not be used may have taken over their role.
    fn ask_the_others(&self) {
        let table = self.cluster.table.load();
        let choice = self.choice(&table);
        let others = table.nodes().iter().filter(|node| !self.aim.allows(&choice, node));
        // They may as well serve soon: no other node is to lose its last connection for that.
        let roving = |node: &Node<K, M>| Some(Roving::new(&node.state));
        others.for_each(|node| node.read_role_again(self.cluster, roving(node)));
    }

    /// Nothing has happened for a pause: no check is waited for any longer, what hangs is known to, and
    /// where nobody has been served since the last time, somebody else may have to let go of a connection.
    fn look_further(&mut self) {
        self.runners.iter_mut().for_each(Runner::see_pause);
        if self.cluster.cap.is_some() {
            let uses = self.runners.iter().map(|runner| runner.node.pool.uses()).sum();
            self.stuck = self.uses.replace(uses) == Some(uses);
        }
    }

    /// Sees to it that the first of the nodes that have room open a connection for this acquire, or, if
    /// these are too few and there is a cap on all nodes together, that may get more room; if there are
    /// none of either, that the first one does once it has room. Those that do so already go on. Answers
    /// whether one of them has room for this acquire, beside all others who wait there.
    fn have_some_opened(&mut self, order: &[usize], table: &Table<K, M>) -> bool {
        let nodes = || order.iter().map(|place| &table.nodes()[*place]);
        let capped = self.cluster.cap.is_some();
        let has_room = |node: &Node<K, M>| node.pool.counts().vacant > 0;
        let may_grow = |node: &Node<K, M>| {
            capped && !has_room(node) && node.pool.max_size() < node.pool.config().max_size
        };
        let impatient = |runner: &&Runner<K, M>| {
            !runner.terms.is_patient() && nodes().any(|node| runner.is_at(node))
        };
        let at_work = self.runners.iter().filter(impatient).filter(|runner| {
            let counts = runner.node.pool.counts();
            let has_room = counts.vacant + counts.connecting > 0;
            has_room || runner.check != Check::No || may_grow(&runner.node)
        });
        let mut missing = self.dials.saturating_sub(at_work.count());
        let mut none = !self.runners.iter().any(|runner| impatient(&runner));
        let roomy = nodes().filter(|node| has_room(node));
        for node in roomy.chain(nodes().filter(|node| may_grow(node))) {
            if missing == 0 {
                break;
            }
            if self.be_impatient(node) {
                (missing, none) = (missing - 1, false);
            }
        }
        if none {
            nodes().any(|node| self.be_impatient(node));
        }
        // Also for those that had room: so many may have seen the same.
        if capped && self.runners.iter().any(|runner| !runner.terms.is_patient()) {
            self.word = Some(Word::default());
            self.rove();
        }
        let is_provided_for = |runner: &Runner<K, M>| {
            let counts = runner.node.pool.counts();
            let wanted = runner.node.pool.unserved() + usize::from(!runner.terms.is_in_line());
            counts.vacant + counts.connecting >= wanted || may_grow(&runner.node)
        };
        missing == 0 && self.runners.iter().filter(impatient).any(is_provided_for)
    }

    /// Tells the nodes where something is to be opened whether another one may serve.
    fn rove(&mut self) {
        let may_serve = |runner: &Runner<K, M>| runner.node.pool.max_size() > 0;
        let able: Vec<bool> = self.runners.iter().map(may_serve).collect();
        let others = able.iter().filter(|able| **able).count();
        for (runner, able) in self.runners.iter_mut().zip(able) {
            let patient = runner.terms.is_patient();
            // Where nothing comes back, that another one might serve is of no use.
            let is_roving = !patient && !self.stuck && others > usize::from(able);
            if is_roving != runner.roving.is_some() {
                runner.roving = is_roving.then(|| Roving::new(&runner.node.state));
            }
        }
    }

    /// Has a connection opened by the runner at this node, if there is one that has been patient. It
    /// keeps its place in line.
    fn be_impatient(&mut self, node: &Arc<Node<K, M>>) -> bool {
        let mut runners = self.runners.iter_mut().filter(|runner| runner.terms.is_patient());
        let Some(runner) = runners.find(|runner| runner.is_at(node)) else { return false };
        node.pool.hurry(&runner.terms);
        runner.hurried = true;
        self.begun = true;
        true
    }

    /// Waits until something happens.
    async fn next(
        &mut self,
        changed: &mut EventListener,
        mut quiet: Pin<&mut Sleep>,
        mut late: Pin<&mut Option<Sleep>>,
    ) -> Event<K, M> {
        poll_fn(|cx: &mut Context<'_>| {
            let mut look_again = false;
            for (index, runner) in self.runners.iter_mut().enumerate() {
                if let Poll::Ready(answer) = runner.poll(cx) {
                    return Poll::Ready(Event::Answer(index, answer));
                }
                look_again |= runner.has_failed();
            }
            // Only now is it in line, where the cap sees it.
            if let Some(word) = &mut self.word {
                word.poll(self.cluster, cx);
            }
            let unanswered = self.unanswered.len();
            self.unanswered.retain_mut(|answer| Pin::new(answer).poll(cx).is_pending());
            if look_again || self.unanswered.len() < unanswered {
                return Poll::Ready(Event::LookAgain);
            }
            if Pin::new(&mut *changed).poll(cx).is_ready() {
                return Poll::Ready(Event::Changed);
            }
            if let Some(late) = late.as_mut().as_pin_mut() {
                match poll_timer(late, cx) {
                    None => return Poll::Ready(Event::Ended),
                    Some(Poll::Ready(())) => return Poll::Ready(Event::Late),
                    // Timers go by whole milliseconds, and none is left at all.
                    Some(Poll::Pending) if self.deadline == Some(self.began) => {
                        return Poll::Ready(Event::Late);
                    }
                    Some(Poll::Pending) => {}
                }
            }
            match poll_timer(quiet.as_mut(), cx) {
                None => Poll::Ready(Event::Ended),
                Some(polled) => polled.map(|()| Event::Quiet),
            }
        })
        .await
    }
}

impl<K: Key, M: Manager> Drop for Race<'_, K, M> {
    fn drop(&mut self) {
        // Cancel: whatever else has ended it has been counted.
        self.count(Outcome::Cancelled);
        // Half-way out of a line it may have hidden somebody else there from the cap.
        self.runners.clear();
        self.cluster.more_wanted();
    }
}
