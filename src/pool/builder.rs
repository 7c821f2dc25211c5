//! How a pool is set up, and how its first connections are opened.
//!
//! Not here: the ranges of the settings (`config/mod.rs`).

use super::connector::Connector;
use super::deadlock::Detector;
use super::life::Record;
use super::operation::{has_timer, timer};
use super::reaper::{Memory, Upkeep};
use super::report::Reports;
use super::shed::Shedder;
use super::vain::Vain;
use super::{LastHandle, OPEN, OnConnect, Pool, Shared, WhichNode};
use crate::config::{CheckPolicy, Config, Priority, Shed, above_zero};
use crate::core::{Core, Flags, IdleOrder, Size, default_shards};
use crate::error::{BuildError, ConfigError, WarmUpError};
use crate::hooks::Hooks;
use crate::manager::Manager;
use crate::metrics::{PoolMetrics, Totals};
use crate::panics::caught;
use event_listener::Event;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// The settings of a [`Pool`], one method each; the fields of [`Config`] say more of them.
#[must_use]
pub struct PoolBuilder<M: Manager> {
    manager: M,
    pub(super) config: Config,
    hooks: Hooks<M>,
    reports: Option<Reports>,
    pub(super) cluster: Option<Box<WhichNode>>,
    pub(super) on_connect: Option<Box<OnConnect>>,
    /// So many connections the pool shares with others.
    pub(super) share_of: Option<usize>,
    /// The idle timeout for a lifetime that is long enough, unless the user has chosen one.
    usual_idle_timeout: Option<Duration>,
}

/// The example of a setting: what is said to the builder, and what the settings are then.
macro_rules! example {
    ($said:expr, $is:expr) => {
        concat!(
            "\n# Examples\n\n```\n",
            "# use millpond::{CheckPolicy, IdleOrder, Pool, Priority, Shed, from_fn};\n",
            "# use std::{convert::Infallible, time::Duration};\n",
            "# let manager = from_fn(|| async { Ok::<_, Infallible>(String::from(\"hello\")) });\n",
            "let pool = Pool::builder(manager)",
            $said,
            ".build_lazy()?;\n",
            "assert!(pool.config().",
            $is,
            ");\n# Ok::<(), millpond::ConfigError>(())\n```",
        )
    };
}

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $example:expr, $is:literal;)*) => {
        $(
            $(#[$doc])*
            #[doc = ""]
            #[doc = example!(
                concat!(".", stringify!($name), "(", stringify!($example), ")"),
                concat!(stringify!($name), $is)
            )]
            pub fn $name(mut self, $name: $type) -> Self {
                self.config.$name = $name.into();
                self
            }
        )*
    };
}

impl<M: Manager> PoolBuilder<M> {
    pub(super) fn new(manager: M) -> Self {
        let config = Config::default();
        let hooks = Hooks::new();
        let (reports, cluster, on_connect, share_of) = (None, None, None, None);
        let usual_idle_timeout = config.idle_timeout;
        Self { manager, config, hooks, reports, cluster, on_connect, share_of, usual_idle_timeout }
    }

    settings! {
        /// The pool's name in messages. Default: `millpond`.
        name: &str = "orders", r#".starts_with("orders")"#;
        /// The most connections at any instant: 1 to 1,048,576. Default: 10. See [`Config::max_size`].
        max_size: usize = 32, " == 32";
        /// How many idle connections to keep ready, as far as there is room: 0 to `max_size`;
        /// [`build`](Self::build) opens that many. Default: 0. See [`Config::min_idle`].
        min_idle: usize = 4, " == 4";
        /// How long an acquire waits, all in all; above zero. Default: 5 s.
        acquire_timeout: Duration = Duration::from_secs(2), " == Duration::from_secs(2)";
        /// How long one attempt to connect may take; above zero. Default: 5 s.
        connect_timeout: Duration = Duration::from_secs(2), " == Duration::from_secs(2)";
        /// How long a check may take; above zero. Default: 1 s.
        check_timeout: Duration = Duration::from_secs(2), " == Duration::from_secs(2)";
        /// How long a reset may take; above zero. Default: 1 s.
        reset_timeout: Duration = Duration::from_secs(2), " == Duration::from_secs(2)";
        /// How long closing a connection may take; above zero. Default: 1 s.
        close_timeout: Duration = Duration::from_secs(2), " == Duration::from_secs(2)";
        /// The most connects at the same time, at least 1. Default: 4. See [`Config::max_connecting`].
        max_connecting: usize = 8, " == 8";
        /// The largest size that the pool can be [resized](Pool::resize) to: `max_size` to 1,048,576.
        /// Default: `max_size`. See [`Config::capacity`].
        capacity: usize = 64, " == Some(64)";
        /// Measures for how long connections are in use. Default: `false`. See [`Config::time_use`].
        time_use: bool = true, " == true";
        /// Opens a span for each use of a connection. Default: `false`. See [`Config::trace_uses`].
        trace_uses: bool = true, " == true";
        /// When a connection is checked before it is handed out. Default: if it has been idle for 5 s.
        check: CheckPolicy = CheckPolicy::Always, " == CheckPolicy::Always";
        /// The part of `max_lifetime` by which a connection's life may be shorter: 0.0 to 1.0. Default:
        /// 0.2. See [`Config::lifetime_jitter`].
        lifetime_jitter: f64 = 0.1, " == 0.1";
        /// How often the reaper looks; above zero. Default: 1 s. See [`Config::maintenance_interval`].
        maintenance_interval: Duration = Duration::from_millis(200), " == Duration::from_millis(200)";
        /// Refuses at once whoever would have to wait while connecting fails and no connection is left that
        /// could come back to him. Default: `false`. See [`Config::fail_fast`].
        fail_fast: bool = true, " == true";
        /// Finds out when everybody who holds a connection waits for another one, and ends the last wait.
        /// It makes each acquire slower. Default: `false`. See [`Config::detect_deadlock`].
        detect_deadlock: bool = true, " == true";
        /// The order in which idle connections are handed out. Default: [`IdleOrder::Recent`].
        order: IdleOrder = IdleOrder::Fifo, " == IdleOrder::Fifo";
        /// The number of shards: a power of two from 1 to 256. Default: as many as `capacity` and the
        /// machine suggest. See [`Config::shards`].
        shards: usize = 1, " == Some(1)";
    }

    /// The pause after a failed connect: random, up to `first`, which each further failure doubles, up to
    /// `most`; both above zero. After one [for good](Manager::is_permanent), such as a wrong password, it is not
    /// random, and whoever comes meanwhile is told of that failure at once. Default: 50 ms, 2 s. See
    /// [`Config::backoff`].
    ///
    #[doc = example!(".backoff(Duration::from_millis(20), Duration::from_secs(1))", "backoff_max == Duration::from_secs(1)")]
    pub fn backoff(mut self, first: Duration, most: Duration) -> Self {
        self.config.backoff = first;
        self.config.backoff_max = most;
        self
    }

    /// How long a connection lives; above zero; `None` for no limit. An `idle_timeout` that was not chosen
    /// is shortened to it. Default: 30 min. See [`Config::max_lifetime`].
    ///
    #[doc = example!(".max_lifetime(Duration::from_secs(3600))", "max_lifetime == Some(Duration::from_secs(3600))")]
    pub fn max_lifetime(mut self, max_lifetime: impl Into<Option<Duration>>) -> Self {
        self.config.max_lifetime = max_lifetime.into();
        if self.usual_idle_timeout.is_some() {
            self.config.idle_timeout = self.usual_idle_timeout;
            self.config.shorten_idle_timeout();
        }
        self
    }

    /// How long connections may be idle that are not needed; above zero, at most `max_lifetime`; `None` for
    /// no limit. Default: 10 min. See [`Config::idle_timeout`].
    ///
    #[doc = example!(".idle_timeout(None)", "idle_timeout == None")]
    pub fn idle_timeout(mut self, idle_timeout: impl Into<Option<Duration>>) -> Self {
        self.config.idle_timeout = idle_timeout.into();
        self.usual_idle_timeout = None;
        self
    }

    /// How long a connection may be idle without a check to keep it alive; above zero; `None` for none.
    /// Default: 2 min.
    ///
    #[doc = example!(".keepalive_interval(Duration::from_secs(60))", "keepalive_interval == Some(Duration::from_secs(60))")]
    pub fn keepalive_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.config.keepalive_interval = interval.into();
        self
    }

    /// A connection that is held for longer is reported; above zero; `None` for never. Default: `None`. See
    /// [`Config::leak_after`].
    ///
    #[doc = example!(".leak_after(Duration::from_secs(60))", "leak_after == Some(Duration::from_secs(60))")]
    pub fn leak_after(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.config.leak_after = limit.into();
        self
    }

    /// An acquire that waits for longer is told, with the feature `tracing`; above zero; `None` for never.
    /// Default: `None`. See [`Config::slow_acquire`].
    ///
    #[doc = example!(".slow_acquire(Duration::from_millis(100))", "slow_acquire == Some(Duration::from_millis(100))")]
    pub fn slow_acquire(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.config.slow_acquire = limit.into();
        self
    }

    /// The most callers that may wait, at least 1; `None` for no limit. Default: `None`. See
    /// [`Config::max_waiters`].
    ///
    #[doc = example!(".max_waiters(1000)", "max_waiters == Some(1000)")]
    pub fn max_waiters(mut self, most: impl Into<Option<usize>>) -> Self {
        self.config.max_waiters = most.into();
        self
    }

    /// Turns callers away who have waited too long. Default: `None`.
    ///
    #[doc = example!(".shed(Shed::new(Duration::from_millis(5), Duration::from_millis(100)))", "shed.is_some()")]
    pub fn shed(mut self, shed: impl Into<Option<Shed>>) -> Self {
        self.config.shed = shed.into();
        self
    }

    /// Keeps `count` connections for callers of this priority: below `max_size` for [`Priority::High`], none
    /// for [`Priority::Normal`]. Default: none. See [`Config::reserved`].
    ///
    #[doc = example!(".reserved(Priority::High, 2)", "reserved == (Priority::High, 2)")]
    pub fn reserved(mut self, priority: Priority, count: usize) -> Self {
        self.config.reserved = (priority, count);
        self
    }

    /// What is called at the turns of a connection's life; see [`Hooks`] for an example. Default:
    /// nothing.
    pub fn hooks(mut self, hooks: Hooks<M>) -> Self {
        self.hooks = hooks;
        self
    }

    /// Calls back with the pool's figures every `interval`, which is above zero, until it is closed.
    ///
    /// The callback runs on one of tokio's threads for blocking work, outside any lock that others wait
    /// for, and never twice at once; one that takes longer than `interval` is called again when it is
    /// done, also if the pool has gone over to another runtime meanwhile. If it panics, it is called
    /// again all the same. Default: nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::{convert::Infallible, time::Duration};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager)
    ///     .on_metrics(Duration::from_secs(10), |metrics| {
    ///         println!("{} in use, {} wait", metrics.counts.in_use, metrics.counts.waiters);
    ///     })
    ///     .build()
    ///     .await?;
    /// # drop(pool); Ok(()) }
    /// ```
    pub fn on_metrics(
        mut self,
        interval: Duration,
        callback: impl Fn(&PoolMetrics) + Send + Sync + 'static,
    ) -> Self {
        self.reports = Some(Reports::new(interval, callback));
        self
    }

    /// What the thread of a blocking pool is called.
    pub(crate) fn thread_name(&self) -> String {
        format!("{}-pool", self.config.name).replace('\0', "")
    }

    /// Adds the pool's part in something larger to its name.
    #[cfg(feature = "sqlite")]
    pub(crate) fn part(mut self, part: &str) -> Self {
        self.config.name = format!("{}-{part}", self.config.name).into();
        self
    }

    /// Takes all settings from `config`. An `idle_timeout` that is the default, or what a
    /// `max_lifetime` shortens that to, counts as not chosen: it is shortened to `max_lifetime`.
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::{Config, Pool, from_fn};
    /// # use std::convert::Infallible;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// // Or from TOML, JSON or the environment, with the feature `serde`.
    /// let mut config = Config::default();
    /// (config.max_size, config.min_idle) = (32, 4);
    /// let pool = Pool::builder(manager).config(config).build().await?;
    /// assert_eq!((pool.max_size(), pool.counts().idle), (32, 4));
    /// # Ok(()) }
    /// ```
    pub fn config(mut self, mut config: Config) -> Self {
        self.usual_idle_timeout = None;
        if config.has_usual_idle_timeout() {
            self.usual_idle_timeout = config.idle_timeout;
            config.shorten_idle_timeout();
        }
        self.config = config;
        self
    }

    /// Builds the pool and opens its first `min_idle` connections, on the runtime that polls this.
    ///
    /// # Errors
    ///
    /// - [`BuildError::Config`] if a setting is out of range.
    /// - [`BuildError::NoRuntime`] outside a tokio runtime, or on one that has ended.
    /// - [`BuildError::NoTimer`] on one that was built without `enable_time`.
    /// - [`BuildError::Connect`] as soon as one of the connections cannot be opened; those that could
    ///   are closed in the background.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the pool and whatever has been opened.
    pub async fn build(self) -> Result<Pool<M>, BuildError<M::Error>> {
        let refusal = if Handle::try_current().is_err() {
            Some(BuildError::NoRuntime)
        } else if timer(Instant::now()).is_none() {
            Some(BuildError::NoTimer)
        } else if !has_timer() {
            Some(BuildError::NoRuntime)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.config.validate()?;
            return Err(refusal);
        }
        let pool = self.build_lazy()?;
        pool.shared.open_first().await?;
        Ok(pool)
    }

    /// As [`build`](Self::build), but what was opened for a pool that is not built has been closed when
    /// this completes.
    pub(crate) async fn build_or_close(self) -> Result<Pool<M>, BuildError<M::Error>> {
        let pool = self.build_lazy()?;
        match pool.shared.open_first().await {
            Ok(()) => Ok(pool),
            Err(error) => {
                pool.close().await;
                Err(error)
            }
        }
    }

    /// Builds the pool without opening anything; the first acquire does, and reports what goes
    /// wrong. [`min_idle`](Self::min_idle) is kept from the first acquire or [warm-up](Pool::warm_up) on: to have
    /// connections opened in the background at once, as bb8's `build_unchecked` and sqlx's `connect_lazy` do,
    /// spawn a task with a warm-up. The pool runs on the runtime that this is called in. Works outside one too, and on one without a
    /// timer: the pool then runs on that of the first caller that needs a connection.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a setting is out of range.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).max_size(4).build_lazy()?; // no runtime, no server
    /// assert_eq!(pool.counts().vacant, 4);
    /// # Ok::<(), millpond::ConfigError>(())
    /// ```
    ///
    /// A connection ends with the runtime that it was opened on. So a pool that several runtimes use at a time, as
    /// one in a `static` does that `#[tokio::test]`s share, is built on one that outlives them:
    ///
    /// ```
    /// use millpond::{Manager, Pool};
    /// use std::{convert::Infallible, sync::LazyLock};
    /// use tokio::runtime::Runtime;
    ///
    /// struct Greeter;
    ///
    /// impl Manager for Greeter {
    ///     type Connection = String;
    ///     type Error = Infallible;
    ///
    ///     async fn connect(&self) -> Result<String, Infallible> {
    ///         Ok(format!("on {:?}", tokio::runtime::Handle::current().id()))
    ///     }
    /// }
    ///
    /// static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
    /// static POOL: LazyLock<Pool<Greeter>> = LazyLock::new(|| {
    ///     let _entered = RUNTIME.enter();
    ///     Pool::builder(Greeter).build_lazy().unwrap()
    /// });
    ///
    /// let uses = || Runtime::new().unwrap().block_on(async { POOL.acquire().await.unwrap().clone() });
    /// assert_eq!(uses(), uses());
    /// assert_eq!(uses(), format!("on {:?}", RUNTIME.handle().id()));
    /// ```
    pub fn build_lazy(self) -> Result<Pool<M>, ConfigError> {
        let Self { manager, config, hooks, reports, cluster, on_connect, share_of, .. } = self;
        config.validate()?;
        if let Some(reports) = &reports {
            above_zero("on_metrics", reports.interval)?;
        }
        let capacity = config.slots();
        let size = Size {
            capacity,
            limit: config.max_size,
            reserved: config.reserved.1,
            shards: config.shards.unwrap_or_else(|| default_shards(capacity)),
            floor: config.min_idle,
        };
        let checks = config.check == CheckPolicy::Always;
        let watches = config.detect_deadlock || config.time_use || config.trace_uses;
        let greets = hooks.at_acquire() || watches;
        // The room beside one that is late is, under a cap, for whoever lacks it elsewhere.
        let patience = share_of.map_or(config.connect_patience(), |_| Duration::MAX);
        let target = target_of(&manager);
        let shared = Arc::new_cyclic(|me| Shared {
            core: Core::new(me, size, config.order),
            attentive: checks || hooks.at_release() || watches,
            greeting: if greets { Flags::GREET } else { Flags::NONE },
            manager,
            target: Mutex::new(target),
            hooks,
            reports,
            cluster,
            on_connect,
            connector: Connector::new(patience),
            totals: Totals::new(size.shards, config.time_use),
            vain: Vain::new(),
            keeps_idle: AtomicBool::new(false),
            closing: AtomicUsize::new(0),
            changed: Event::new(),
            phase: AtomicU8::new(OPEN),
            drains: AtomicUsize::new(0),
            began: Instant::now(),
            generation: AtomicU64::new(0),
            outdates_next: AtomicU64::new(0),
            spread: fastrand::f64(),
            records: (0..capacity).map(|_| Record::new()).collect(),
            upkeep: Arc::new(Upkeep::new(config.maintenance_interval)),
            memory: Mutex::new(Memory::new(capacity)),
            expiring: AtomicUsize::new(0),
            shedder: config.shed.map(Shedder::new),
            detector: config.detect_deadlock.then(|| {
                let most = share_of.map(|whole| whole.min(config.max_size));
                Detector::new(capacity, config.reserved.1, most)
            }),
            config,
            me: me.clone(),
        });
        // Outside a runtime there is none yet; the first caller who needs one brings it.
        drop(shared.ground_or_current());
        let handles = Arc::new(LastHandle(shared.clone()));
        Ok(Pool { shared, handles })
    }
}

/// Where a manager says that its connections lead, in one line.
pub(super) fn target_of(manager: &impl Manager) -> Option<Arc<str>> {
    // Who panics instead, which the panic hook reports, has none.
    let target = caught(|| manager.target()).ok()??;
    let in_one_line = target.replace(char::is_control, " ");
    Some(in_one_line.trim()).filter(|target| !target.is_empty()).map(Into::into)
}

impl<M: Manager> Shared<M> {
    /// Opens the first connections.
    async fn open_first(self: &Arc<Self>) -> Result<(), BuildError<M::Error>> {
        // One that fails here fails the build; until then nobody tries again in the background.
        match self.open(self.config.min_idle).await {
            Ok(()) => {}
            Err(WarmUpError::Connect(error)) => return Err(BuildError::Connect(error)),
            Err(WarmUpError::NoRuntime) => return Err(BuildError::NoRuntime),
            Err(error) => unreachable!("BUG: a pool that nobody else knows: {error}"),
        }
        self.keeps_idle.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl<M: Manager> fmt::Debug for PoolBuilder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::core::default_shards;
    use crate::manager::from_fn;
    use crate::pool::Pool;
    use std::convert::Infallible;

    #[test]
    fn a_pool_that_may_grow_has_the_shards_of_its_capacity() {
        let manager = || from_fn(|| async { Ok::<_, Infallible>(()) });
        let grows = Pool::builder(manager()).max_size(1).capacity(64).build_lazy().unwrap();
        assert_eq!(grows.shared.core.general(), default_shards(64));
        let stays = Pool::builder(manager()).max_size(1).build_lazy().unwrap();
        assert_eq!(stays.shared.core.general(), 1);
    }
}
