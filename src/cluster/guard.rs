//! A connection of a node, on loan.
//!
//! Not here: how a cluster hands it out (`acquire.rs`).

use super::node::Member;
use super::table::Current;
use super::{Key, Role};
use crate::error::ReleaseError;
use crate::manager::Manager;
use crate::pool::ConnectionInfo;
use crate::pool::node_side::PooledBare;
use std::fmt;
use std::ops::{Deref, DerefMut};

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
    pub(super) fn new(pooled: PooledBare<Member<K, M>>, nodes: &'c Current<K, M>) -> Self {
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
