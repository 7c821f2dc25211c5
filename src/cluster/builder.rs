//! How a cluster is set up.
//!
//! Not here: the settings of the nodes' pools (`crate::config`).

use super::endpoint::Endpoint;
use super::limits::Cap;
use super::node::{Member, NodeOptions, ReadRole, RoleFuture, State};
use super::policy::Turns;
use super::status::InVain;
use super::table::{Current, Table};
use super::watch::Watches;
use super::{Cluster, Key, Shared};
use crate::config::{Config, above_zero, check_name};
use crate::error::ConfigError;
use crate::manager::Manager;
use crate::metrics::ClusterNode;
use crate::pool::{Pool, PoolBuilder};
use event_listener::Event;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

type Pools<K, M> = dyn Fn(PoolBuilder<Member<K, M>>) -> PoolBuilder<Member<K, M>> + Send + Sync;
type PoolsFor<K, M> =
    dyn Fn(&K, &NodeOptions, PoolBuilder<Member<K, M>>) -> PoolBuilder<Member<K, M>> + Send + Sync;
type Template<M> = dyn Fn(&Endpoint) -> M + Send + Sync;

pub(super) struct Settings<K: Key, M: Manager> {
    pub(super) name: Arc<str>,
    pub(super) template: Option<Box<Template<M>>>,
    pools: Option<Box<Pools<K, M>>>,
    pools_for: Option<Box<PoolsFor<K, M>>>,
    read_role: Option<ReadRole<M>>,
    max_connections: Option<usize>,
    pub(super) acquire_timeout: Duration,
    pub(super) try_next_after: Duration,
    pub(super) slow_start: Duration,
    pub(super) fail_fast: bool,
    pub(super) accept_empty_sets: bool,
    pub(super) accept_several_primaries: bool,
}

impl<K: Key, M: Manager> Settings<K, M> {
    /// Whether servers are asked for their roles.
    pub(super) fn reads_role(&self) -> bool {
        self.read_role.is_some()
    }

    /// Whether what the cluster settles for all nodes is left to it, or is said to be what it is anyway.
    fn are_ours(&self, config: &Config) -> Result<(), ConfigError> {
        let usual = Config::default();
        let (name, timeout) = (&config.name, config.acquire_timeout);
        let settings = [
            ("name", name.to_string(), [&usual.name, &self.name].contains(&name)),
            (
                "acquire_timeout",
                format!("{timeout:?}"),
                [usual.acquire_timeout, self.acquire_timeout].contains(&timeout),
            ),
            ("fail_fast", config.fail_fast.to_string(), !config.fail_fast || self.fail_fast),
        ];
        match settings.into_iter().find(|(.., is_ours)| !is_ours) {
            None => Ok(()),
            Some((field, value, _)) => {
                let rule =
                    format!("must be left to the cluster: set it by ClusterBuilder::{field}");
                Err(ConfigError::new(field, value, rule))
            }
        }
    }

    /// A node's pool.
    pub(super) fn pool(
        &self,
        manager: M,
        state: &Arc<State<K>>,
        key: &str,
        options: &NodeOptions,
    ) -> Result<Pool<Member<K, M>>, ConfigError> {
        let member = Member::new(manager, state.clone(), self.read_role.clone());
        let mut builder = Pool::builder(member);
        if let Some(pools) = &self.pools {
            builder = pools(builder);
        }
        if let Some(pools_for) = &self.pools_for {
            builder = pools_for(&state.key, options, builder);
        }
        self.are_ours(builder.config_so_far())?;
        let name = format!("{}/{key}", self.name);
        let (cluster, node, asked) = (self.name.clone(), Arc::<str>::from(key), state.clone());
        let told = state.clone();
        let which = move || ClusterNode::new(cluster.clone(), node.clone(), asked.role());
        // Whoever is told that a node is down can go to another; its prober goes on.
        let pool = builder
            .name(&name)
            .cluster(which)
            .on_connect(move |succeeded| told.connected(succeeded))
            .share_of(self.max_connections)
            .fail_fast(true)
            .acquire_timeout(self.acquire_timeout)
            .build_lazy()?;
        let reserved = pool.config().reserved.1;
        if reserved > 0 {
            // Nobody could have them, and what is vacant would pass for room.
            let rule = "must be 0 in a cluster, where no acquire has a priority";
            return Err(ConfigError::new("reserved", reserved, rule));
        }
        Ok(pool)
    }
}

/// The settings of a [`Cluster`].
#[must_use]
pub struct ClusterBuilder<K: Key, M: Manager> {
    settings: Settings<K, M>,
}

impl<K: Key, M: Manager> ClusterBuilder<K, M> {
    pub(super) fn new() -> Self {
        Self {
            settings: Settings {
                name: "cluster".into(),
                template: None,
                pools: None,
                pools_for: None,
                read_role: None,
                max_connections: None,
                acquire_timeout: Duration::from_secs(5),
                try_next_after: Duration::from_millis(250),
                slow_start: Duration::from_secs(10),
                fail_fast: false,
                accept_empty_sets: false,
                accept_several_primaries: false,
            },
        }
    }

    /// The cluster's name in messages. The pool of a node is called by this and the node's key, as
    /// `cluster/node`. Not empty. Default: `cluster`.
    pub fn name(mut self, name: &str) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Settles the nodes' pools; called once for each. Their [`name`](Self::name), [`fail_fast`](Self::fail_fast)
    /// and [`acquire_timeout`](Self::acquire_timeout) are the cluster's business: a node whose pool is to have
    /// another one than the cluster or the default is an error. So is one whose pool is to have
    /// [`reserved`](crate::Config::reserved) connections: no acquire of a cluster has a priority. Where nodes
    /// differ, [`pools_for`](Self::pools_for) does the rest. Default: a pool's defaults.
    pub fn pools(
        mut self,
        pools: impl Fn(PoolBuilder<Member<K, M>>) -> PoolBuilder<Member<K, M>> + Send + Sync + 'static,
    ) -> Self {
        self.settings.pools = Some(Box::new(pools));
        self
    }

    /// Settles each node's pool by its key and its options, after [`pools`](Self::pools) has settled what all have in
    /// common: such as its size, where a server admits fewer connections than others, or hooks that are to know
    /// their node. Called once for each pool, with the options that the node has then, so also when a node is
    /// [replaced](Cluster::replace) or comes back; [other options](Cluster::set_options) change nothing of a pool
    /// that there is. What is the cluster's business is so here too. Default: nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{cluster::{Cluster, NodeOptions}, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = || from_fn(|| std::future::ready(Ok::<_, Infallible>(())));
    /// let cluster: Cluster<String, _> = Cluster::builder()
    ///     .pools(|pool| pool.max_size(10))
    ///     .pools_for(|_key, options, pool| match options.labels.get("machine") {
    ///         Some(machine) if machine == "large" => pool.max_size(50),
    ///         _ => pool,
    ///     })
    ///     .build()?;
    /// let large = NodeOptions::default().label("machine", "large");
    /// cluster.add_node_with("db1".to_owned(), manager(), large)?;
    /// cluster.add_node("db2".to_owned(), manager())?;
    /// let sizes = cluster.status().nodes.into_iter().map(|node| node.pool.max_size);
    /// assert_eq!(sizes.collect::<Vec<_>>(), [50, 10]);
    /// # Ok(()) }
    /// ```
    pub fn pools_for(
        mut self,
        pools_for: impl Fn(&K, &NodeOptions, PoolBuilder<Member<K, M>>) -> PoolBuilder<Member<K, M>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.settings.pools_for = Some(Box::new(pools_for));
        self
    }

    /// What makes the manager of a node that is given by its endpoint. Default: none, and such a node
    /// is an error.
    pub fn template(mut self, template: impl Fn(&Endpoint) -> M + Send + Sync + 'static) -> Self {
        self.settings.template = Some(Box::new(template));
        self
    }

    /// What reads a server's role from a connection: when one is opened, whenever one is checked, and
    /// when no node with the role that somebody wants is left, or none of them has served for
    /// [`try_next_after`](Self::try_next_after). A node that comes later is connected to
    /// as soon as it would be its turn, if its role were the right one; with
    /// [`Policy::Rank`](super::Policy::Rank), as soon as another node is preferred to it. A server that has
    /// answered [`Role::Unknown`](super::Role::Unknown), as one may that recovers, is asked again in the same way,
    /// once a second at the most, and so is one to which others have left no connection under
    /// [`max_connections`](Self::max_connections); however many wait, no other is asked more often than about once in
    /// `try_next_after`, or in a second if that is less. All of this takes part in `connect_timeout` and `check_timeout`; if it fails, so
    /// has the connect or the check. While two servers that are up say that they
    /// are the primary, the cluster's [health](super::ClusterStatus::health) names them, unless several are
    /// [accepted](Self::accept_several_primaries). Default: nothing, and the roles are those of the nodes' options.
    ///
    /// Where no connection is idle, what asks waits in line like everybody else, one at each node, and also
    /// if the line is full; it is not [shed](crate::Shed). It is one of those that `max_waiters` are compared
    /// with then, but not one of the acquires that [waited](crate::Waits).
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::{cluster::{Cluster, Policy, Role}, from_fn};
    /// # use std::convert::Infallible;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cluster = Cluster::builder()
    ///     .read_role(|is_in_recovery: &mut bool| {
    ///         // Such as `SELECT pg_is_in_recovery()`.
    ///         Box::pin(async move {
    ///             Ok(if *is_in_recovery { Role::Replica } else { Role::Primary })
    ///         })
    ///     })
    ///     .build()?;
    /// # let manager = |replica| from_fn(move || std::future::ready(Ok::<_, Infallible>(replica)));
    /// cluster.add_node("db1", manager(true))?;
    /// cluster.add_node("db2", manager(false))?;
    /// // Nobody has said which is which.
    /// assert_eq!(*cluster.acquire_any(Policy::Primary).await?.node(), "db2");
    /// # Ok(()) }
    /// ```
    pub fn read_role(
        mut self,
        read_role: impl for<'c> Fn(&'c mut M::Connection) -> RoleFuture<'c, M::Error>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.settings.read_role = Some(Arc::new(read_role));
        self
    }

    /// The most connections that are alive or being opened at any instant at all nodes together, beside
    /// the `max_size` of each; at least 1; `None` for no limit. A node that needs more while no more are
    /// to be had gets its fair share of them: at once if they are idle, or else when they come back.
    /// Beyond that it gets those that others have had no use for since some 50 ms. With fewer
    /// connections than nodes that are in use they are closed and opened all the time: each such node has
    /// one by turns, and uses it for as long as it took to open it, but for some 50 ms at least and a second
    /// at most, and until it comes back. So others wait for twice as long as a connect takes, for each
    /// node before theirs. One that does not answer has a second to do so; then it has failed to connect, and
    /// is down. It has twice as long the next time, and four seconds from then on, so one that takes longer
    /// to connect may not serve while callers wait for the others. For as long a node that has no connection
    /// yet may open several at once; one that has some in use keeps what it opens until its
    /// [`connect_timeout`](crate::Config::connect_timeout). Default: `None`.
    ///
    /// A node that refuses more than it has, as a server at its limit does, has room for one more to be tried
    /// with, and gets no other until it accepts that.
    ///
    /// It costs a hit nothing. While somebody waits for more, it looks every 5 ms who could give. An acquire
    /// that gets none in time because all are taken is told which nodes have them, and so are a rotation and
    /// a warm-up; how many there are says the cluster's [status](Cluster::status).
    ///
    /// A node has room only for what its callers have needed, so its
    /// [`min_idle`](crate::Config::min_idle) is kept within that: none is opened ahead of them, though
    /// others leave some of the cap unused.
    ///
    /// A pool's [`detect_deadlock`](crate::Config::detect_deadlock) finds out when those who hold all
    /// connections that its node may ever have wait for another one of it. Those who hold the connections of
    /// several nodes and wait for each other run into their deadlines.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{cluster::Cluster, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = || from_fn(|| std::future::ready(Ok::<_, Infallible>(())));
    /// let cluster = Cluster::builder().pools(|pool| pool.max_size(8)).max_connections(2).build()?;
    /// cluster.add_node("a", manager())?;
    /// cluster.add_node("b", manager())?;
    /// drop([cluster.acquire("a").await?, cluster.acquire("a").await?]);
    /// let b = cluster.acquire("b").await?; // one of a's is closed
    /// assert_eq!(cluster.status().totals.counts.alive(), 2);
    /// # Ok(()) }
    /// ```
    pub fn max_connections(mut self, most: impl Into<Option<usize>>) -> Self {
        self.settings.max_connections = most.into();
        self
    }

    /// How long an acquire waits, all in all, at whichever nodes; above zero. Default: 5 s.
    pub fn acquire_timeout(mut self, limit: Duration) -> Self {
        self.settings.acquire_timeout = limit;
        self
    }

    /// How long an acquire that may go to several nodes waits for one to open a connection, or to check an
    /// idle one, before another is to do so too; above zero. Default: 250 ms (as RFC 8305 recommends between two
    /// attempts to connect).
    pub fn try_next_after(mut self, pause: Duration) -> Self {
        self.settings.try_next_after = pause;
        self
    }

    /// Over which time a node that is back takes on its whole share of the load again; above zero. This
    /// holds for the policies that draw nodes by weight: [`Policy::Nearest`](super::Policy::Nearest),
    /// [`Policy::Rank`](super::Policy::Rank) and [`acquire_for`](Cluster::acquire_for) go to it at once.
    /// Default: 10 s.
    pub fn slow_start(mut self, time: Duration) -> Self {
        self.settings.slow_start = time;
        self
    }

    /// An acquire that may go to several nodes fails at once rather than at its deadline if none of them
    /// is up and none has a connection left that could come back, or if none has the role that it takes;
    /// if the [servers say](Self::read_role) which they have, once those have been asked that have never
    /// said so. One that names its node does so in any case: another node may serve. Not where
    /// the node was given up under [`max_connections`](Self::max_connections) because it took too long: it may take
    /// longer the next time. Nor where other nodes have all of these connections, for those who come within a quarter
    /// of a second of the first who waits for one: they see whether the node is back. Default: `false`.
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.settings.fail_fast = fail_fast;
        self
    }

    /// Whether a [set](Cluster::apply) without nodes takes all nodes away. By default it is refused, and
    /// the nodes stay: a source that names no node at all is more often broken than right. Default:
    /// `false`.
    pub fn accept_empty_sets(mut self, accept: bool) -> Self {
        self.settings.accept_empty_sets = accept;
        self
    }

    /// Whether several servers may [say](Self::read_role) at once that they are the primary, as those may that
    /// share their data and all take writes, or that have a part of it each. By default the cluster's
    /// [health](super::ClusterStatus::health) is degraded while two that are up do, and names them: writes go to
    /// them by turns, as they do in any case, and where a primary alone may write, their data part ways. Roles that
    /// are those of the nodes' options are meant to be as they are. Default: `false`.
    pub fn accept_several_primaries(mut self, accept: bool) -> Self {
        self.settings.accept_several_primaries = accept;
        self
    }

    /// Builds the cluster, without nodes.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a setting is out of range.
    pub fn build(self) -> Result<Cluster<K, M>, ConfigError> {
        let settings = self.settings;
        check_name("name", &settings.name)?;
        above_zero("acquire_timeout", settings.acquire_timeout)?;
        above_zero("try_next_after", settings.try_next_after)?;
        above_zero("slow_start", settings.slow_start)?;
        if settings.max_connections == Some(0) {
            return Err(ConfigError::new("max_connections", 0, "must be at least 1"));
        }
        let shared = Shared {
            cap: settings.max_connections.map(Cap::new),
            settings,
            table: Current::new(Table::new(Vec::new(), false)),
            changing: Mutex::new(()),
            removed: Mutex::new(Vec::new()),
            turns: Turns::new(),
            began: Instant::now(),
            changed: Arc::new(Event::new()),
            in_vain: InVain::default(),
            watches: Watches::new(),
        };
        Ok(Cluster { shared: Arc::new(shared) })
    }
}

impl<K: Key, M: Manager> fmt::Debug for ClusterBuilder<K, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings {
            name,
            max_connections,
            acquire_timeout,
            try_next_after,
            slow_start,
            fail_fast,
            accept_empty_sets,
            accept_several_primaries,
            ..
        } = &self.settings;
        f.debug_struct("ClusterBuilder")
            .field("name", name)
            .field("max_connections", max_connections)
            .field("acquire_timeout", acquire_timeout)
            .field("try_next_after", try_next_after)
            .field("slow_start", slow_start)
            .field("fail_fast", fail_fast)
            .field("accept_empty_sets", accept_empty_sets)
            .field("accept_several_primaries", accept_several_primaries)
            .finish_non_exhaustive()
    }
}
