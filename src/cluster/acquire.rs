//! How a cluster hands out connections.
//!
//! | step | of `acquire` | of `acquire_any`, `acquire_for` |
//! |---|---|---|
//! | first look | the node's idle connections | those of the node that the policy picks |
//! | nothing idle | wait in the node's line | look at all others that are allowed, in order |
//! | still nothing | | wait in the lines of all that are allowed, until one serves |
//!
//! Not here: how it waits at several nodes at once (`race.rs`).

use super::error::{ClusterError, UnknownNode};
use super::guard::ClusterGuard;
use super::node::{Member, Node};
use super::policy::{Choice, Policy};
use super::race::{Aim, Race};
use super::table::Table;
use super::{Cluster, Key, Shared};
use crate::error::{AcquireError, Stage};
use crate::manager::Manager;
use crate::metrics::Outcome;
use crate::pool::Pooled;
use crate::pool::node_side::{Attempt, Counted, Missed, attempt};
use event_listener::EventListener;
use std::borrow::Borrow;
use std::fmt;
use std::future::{Future, poll_fn};
use std::hash::Hash;
use std::mem;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task;
use tokio::time::Instant;

pub(super) type Caller = &'static Location<'static>;

/// What a cluster answers.
pub(super) type Answer<T, K, M> = Result<T, ClusterError<K, <M as Manager>::Error>>;
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
    ///   [`AcquireError::Unavailable`] at once. Not so under a [cap](super::ClusterBuilder::max_connections): where
    ///   the node was given up because it took too long, since it may get another chance, and where others
    ///   have all the room, for those who come within a quarter of a second of the first who waits for some, to see
    ///   whether the node is back.
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
    /// let report = cluster.remove_node("db1", Duration::ZERO).await?;
    /// assert!(report.still_out.is_empty());
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
        let watches = self.watches.say(table.nodes().is_empty());
        ClusterError::UnknownNode(Box::new(UnknownNode { cluster, key, nodes, watches }))
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
                    let table = self.table.load();
                    if table.closed {
                        return Err(ClusterError::Closed { cluster: self.name() });
                    }
                    let Some(next) = table.get(key) else {
                        return Err(ClusterError::removed(self.name(), node));
                    };
                    let attempt = attempt(next.pool.without_handle(), caller);
                    // Cancel: if nothing else comes, that is the outcome.
                    let outcome = Outcome::Cancelled;
                    let again = again.insert(Again { node: next.clone(), caller, began, outcome });
                    match attempt {
                        Attempt::Hit(pooled) => {
                            // It was not there at once.
                            again.outcome = Outcome::Served;
                            return Ok(ClusterGuard::new(pooled, &self.table));
                        }
                        Attempt::Miss(next) => missed = next,
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
                // What it had, it may have lost because it does not answer.
                if timeout.cap.is_some() && !node.is_up() {
                    node.pool.add_failure(timeout);
                }
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
