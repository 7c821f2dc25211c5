//! What is done to the connections of a node, or of all, by whoever operates a cluster.
//!
//! Not here: acquires (`acquire.rs`), and which nodes there are (`mod.rs`).

use super::acquire::NodeHandle;
use super::node::Member;
use super::{Cluster, Key};
use crate::error::{ConfigError, RotateError, TryAcquireError, WarmUpError};
use crate::hooks::HookFuture;
use crate::manager::Manager;
use crate::metrics::PoolMetrics;
use crate::pool::{ConnectionInfo, Holder, Maintenance, Pooled};
use std::future::Future;
use std::pin::pin;

impl<K: Key, M: Manager> NodeHandle<K, M> {
    /// Acquires a connection of this node if one is idle and nobody waits; never waits, never opens one. It finds
    /// none beside the hook [`before_acquire`](crate::Hooks::before_acquire); see
    /// [`Pool::try_acquire`](crate::Pool::try_acquire).
    ///
    /// # Errors
    ///
    /// As [`Pool::try_acquire`](crate::Pool::try_acquire); [`TryAcquireError::Closed`] also if the node
    /// has been removed or replaced.
    #[track_caller]
    pub fn try_acquire(&self) -> Result<Pooled<'_, Member<K, M>>, TryAcquireError> {
        self.node.pool.try_acquire()
    }

    /// Opens connections of this node until `count` are open; see
    /// [`Pool::warm_up`](crate::Pool::warm_up).
    ///
    /// # Errors
    ///
    /// As [`Pool::warm_up`](crate::Pool::warm_up). Under a
    /// [cap](super::ClusterBuilder::max_connections), a node may have as many as it has now or as others
    /// have let it have: [`WarmUpError::TooMany`] beyond that.
    ///
    /// # Cancel safety
    ///
    /// As [`Pool::warm_up`](crate::Pool::warm_up).
    pub async fn warm_up(&self, count: usize) -> Result<(), WarmUpError<M::Error>> {
        self.node.pool.warm_up(count).await.map_err(|error| match error {
            WarmUpError::TooMany(_) => WarmUpError::TooMany(self.too_many(count)),
            error => error,
        })
    }

    /// By what rule these are more than the node may have open.
    #[cold]
    fn too_many(&self, count: usize) -> ConfigError {
        let (most, room) = (self.node.pool.config().max_size, self.node.pool.max_size());
        let rule = if count > most {
            format!("must be at most max_size, which is {most}")
        } else {
            let why = match self.cluster.why_no_more([&*self.node]) {
                Some(why) => format!(": {why}"),
                None => ", and gets more as its callers need it".to_owned(),
            };
            format!(
                "must be at most what the node may have under max_connections, which is {room} now{why}"
            )
        };
        ConfigError::new("warm_up", count, rule)
    }

    /// Declares all connections of this node out of date; see
    /// [`Pool::invalidate`](crate::Pool::invalidate).
    pub fn invalidate(&self) {
        self.node.pool.invalidate();
    }

    /// The same once a new connection has been opened and tried; see
    /// [`Pool::rotate`](crate::Pool::rotate). Under a [cap](super::ClusterBuilder::max_connections), other
    /// nodes make room for it as they do for an acquire.
    ///
    /// # Errors
    ///
    /// As [`Pool::rotate`](crate::Pool::rotate); [`RotateError::NoRoom`] says which nodes have all that there
    /// may be under a cap.
    ///
    /// # Cancel safety
    ///
    /// As [`Pool::rotate`](crate::Pool::rotate).
    #[track_caller]
    pub fn rotate<F>(
        &self,
        verify: F,
    ) -> impl Future<Output = Result<(), RotateError<M::Error>>> + Send + use<'_, K, M, F>
    where
        F: for<'c> FnOnce(&'c mut M::Connection) -> HookFuture<'c, M::Error> + Send,
    {
        let rotation = self.node.pool.rotate(verify);
        async move {
            let mut rotation = pin!(rotation);
            self.cluster.in_line(self.key(), rotation.as_mut()).await.map_err(|mut error| {
                if let RotateError::NoRoom(source) = &mut error {
                    self.cluster.name_the_cap(&self.node, source);
                }
                error
            })
        }
    }

    /// Closes the idle connections of this node that `keep` does not want; see
    /// [`Pool::retain`](crate::Pool::retain).
    ///
    /// # Panics
    ///
    /// If `keep` does.
    pub fn retain(&self, keep: impl FnMut(&mut M::Connection, &ConnectionInfo) -> bool) -> usize {
        self.node.pool.retain(keep)
    }

    /// Pauses, resumes or runs what this node's pool does by the clock; see
    /// [`Pool::maintenance`](crate::Pool::maintenance). Under a [cap](super::ClusterBuilder::max_connections), a
    /// node whose maintenance is paused gives connections to others all the same.
    #[must_use]
    pub fn maintenance(&self) -> Maintenance<'_, Member<K, M>> {
        self.node.pool.maintenance()
    }

    /// Who holds a connection of this node, and where it was acquired.
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        self.node.pool.holders()
    }

    /// The figures of this node's pool, also after the node was removed.
    #[must_use]
    pub fn metrics(&self) -> PoolMetrics {
        self.node.pool.metrics()
    }
}

impl<K: Key, M: Manager> Cluster<K, M> {
    /// Declares the connections of all nodes out of date, such as after a change of credentials; see
    /// [`Pool::invalidate`](crate::Pool::invalidate). For one node, there is
    /// [`NodeHandle::invalidate`].
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
    /// cluster.node("db1")?.warm_up(2).await?;
    /// cluster.invalidate();
    /// assert_eq!(cluster.node("db1")?.metrics().closed.invalidated, 2);
    /// # Ok(()) }
    /// ```
    pub fn invalidate(&self) {
        for node in self.shared.table.load_full().nodes() {
            node.pool.invalidate();
        }
    }

    /// Who holds a connection, of which node, and where it was acquired; also of nodes that were removed or
    /// replaced, behind the others.
    #[must_use]
    pub fn holders(&self) -> Vec<(K, Holder)> {
        let pools = self.shared.pools(&self.shared.table.load_full());
        let holders = pools.iter().flat_map(|pool| {
            pool.holders().into_iter().map(|holder| (pool.manager().key().clone(), holder))
        });
        holders.collect()
    }
}
