//! How a pool is set up, and how its first connections are opened.
//!
//! Not here: the ranges of the settings (`config.rs`).

use super::connector::Connector;
use super::{LastHandle, Pool, Shared};
use crate::config::{CheckPolicy, Config};
use crate::core::{Core, IdleOrder, default_shards, reserve};
use crate::error::{BuildError, ConfigError, OperationError};
use crate::manager::Manager;
use crate::metrics::Totals;
use event_listener::Event;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// The settings of a [`Pool`], one method each; see [`Config`] for units, ranges and defaults.
#[must_use]
pub struct PoolBuilder<M> {
    manager: M,
    config: Config,
}

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        $(
            $(#[$doc])*
            pub fn $name(mut self, $name: $type) -> Self {
                self.config.$name = $name.into();
                self
            }
        )*
    };
}

impl<M: Manager> PoolBuilder<M> {
    pub(super) fn new(manager: M) -> Self {
        Self { manager, config: Config::default() }
    }

    settings! {
        /// The pool's name in messages. Default: `millpond`.
        name: &str,
        /// The most connections that are alive or being opened at any instant: 1 to 1,048,576.
        /// Default: 10.
        max_size: usize,
        /// How many idle connections to keep ready: 0 to `max_size`. [`build`](Self::build) opens
        /// that many. Default: 0.
        min_idle: usize,
        /// How long an acquire waits, all in all; above zero. Default: 5 s.
        acquire_timeout: Duration,
        /// How long one attempt to connect may take; above zero. Default: 5 s.
        connect_timeout: Duration,
        /// How long a check may take; above zero. Default: 1 s.
        check_timeout: Duration,
        /// How long a reset may take; above zero. Default: 1 s.
        reset_timeout: Duration,
        /// How long closing a connection may take; above zero. Default: 1 s.
        close_timeout: Duration,
        /// The most connects at the same time, at least 1. Default: 4.
        max_connecting: usize,
        /// When a connection is checked before it is handed out. Default: [`CheckPolicy::Never`].
        check: CheckPolicy,
        /// The order in which idle connections are handed out. Default: [`IdleOrder::Recent`].
        order: IdleOrder,
        /// The number of shards: a power of two from 1 to 256. One is strictly first come, first
        /// served; more scale with threads. Default: the largest power of two that is neither above
        /// the machine's parallelism nor above half of `max_size`.
        shards: usize,
    }

    /// The pause after a failed connect: random, up to `first`; each further failure doubles that,
    /// up to `most`. Both above zero. Default: 50 ms, 2 s.
    pub fn backoff(mut self, first: Duration, most: Duration) -> Self {
        self.config.backoff = first;
        self.config.backoff_max = most;
        self
    }

    /// What the thread of a blocking pool is called.
    pub(crate) fn thread_name(&self) -> String {
        format!("{}-pool", self.config.name).replace('\0', "")
    }

    /// Takes all settings from `config`.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Builds the pool and opens its first `min_idle` connections, on the runtime that polls this.
    ///
    /// # Errors
    ///
    /// - [`BuildError::Config`] if a setting is out of range.
    /// - [`BuildError::NoRuntime`] outside a tokio runtime.
    /// - [`BuildError::Connect`] as soon as one of the connections cannot be opened.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the pool and whatever has been opened.
    pub async fn build(self) -> Result<Pool<M>, BuildError<M::Error>> {
        self.config.validate()?;
        if Handle::try_current().is_err() {
            return Err(BuildError::NoRuntime);
        }
        let pool = self.build_lazy()?;
        pool.shared.open_first().await.map_err(BuildError::Connect)?;
        Ok(pool)
    }

    /// Builds the pool without opening anything; the first acquire does, and reports what goes
    /// wrong. Works outside a runtime too: the pool then runs on the one of the first caller that
    /// needs a connection.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a setting is out of range.
    pub fn build_lazy(self) -> Result<Pool<M>, ConfigError> {
        let Self { manager, config } = self;
        config.validate()?;
        let shards = config.shards.unwrap_or_else(|| default_shards(config.max_size));
        let shared = Arc::new_cyclic(|me| Shared {
            core: Core::new(me, config.max_size, shards, config.order),
            check_always: config.check == CheckPolicy::Always,
            manager,
            config,
            connector: Connector::new(),
            totals: Totals::default(),
            keeps_idle: AtomicBool::new(true),
            closing: AtomicUsize::new(0),
            closed: Event::new(),
            me: me.clone(),
        });
        // Outside a runtime there is none yet; the first caller who needs one brings it.
        drop(shared.ground_or_current());
        let handles = Arc::new(LastHandle(shared.clone()));
        Ok(Pool { shared, handles })
    }
}

type Opened<M> = Result<(), Arc<OperationError<<M as Manager>::Error>>>;

impl<M: Manager> Shared<M> {
    /// Opens `min_idle` connections, the first alone, so that a wrong password is tried once.
    async fn open_first(self: &Arc<Self>) -> Opened<M> {
        // One that fails here fails the build; nobody is to try again in the background.
        self.keeps_idle.store(false, Ordering::Relaxed);
        let mut opening = JoinSet::new();
        for begun in 0..self.config.min_idle {
            // Cancel: dropping the set aborts its tasks, and their reservations free the slots.
            if begun == 1 || opening.len() == self.config.max_connecting {
                self.opened(&mut opening).await?;
            }
            if let Some(reservation) = reserve(self.clone()) {
                let shared = self.clone();
                opening.spawn(async move {
                    match shared.connect(reservation.uses()).await {
                        Ok(tenant) => drop(reservation.fill(tenant)),
                        Err(error) => return Err(shared.connect_failed(error).error),
                    }
                    Ok(())
                });
            }
        }
        while !opening.is_empty() {
            self.opened(&mut opening).await?;
        }
        self.keeps_idle.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn opened(&self, opening: &mut JoinSet<Opened<M>>) -> Opened<M> {
        match opening.join_next().await {
            None => Ok(()),
            Some(Ok(outcome)) => outcome,
            // A panic in a connect is an outcome; what is left is one while its future was dropped.
            Some(Err(panic)) => {
                let message = panic.to_string();
                Err(self.connect_failed(OperationError::Panicked { message }).error)
            }
        }
    }
}

impl<M> fmt::Debug for PoolBuilder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
