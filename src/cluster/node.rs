//! What a cluster knows of a node: where it is, what it is for, and how it is.
//!
//! The pool of a node has a [`Member`] for its manager, which hands everything on to the user's and
//! takes down on the way how long checks take and which role the server says it has; the pool tells
//! whether connecting fails. Nothing of this is touched by an acquire or a release that hits.
//!
//! Not here: which node is chosen (`policy.rs`).

use super::acquire::Word;
use super::endpoint::Endpoint;
use super::limits::PATIENCE;
use super::{Key, Shared};
use crate::core::Counts;
use crate::error::{ConfigError, names};
use crate::manager::{Condition, LossSignal, Manager};
use crate::metrics::{Role, Source};
#[cfg(feature = "tracing")]
use crate::panics::tell;
use crate::pool::Pool;
use crate::pool::node_side::{self, Attempt, Counted, PooledBare, attempt, nanos};
use event_listener::{Event, EventListener, IntoNotification};
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;
use tokio::time::Instant;

/// How often a node that is down is tried again, for all who pass it over or wait for it.
pub(super) const TRIED_AGAIN: Duration = Duration::from_secs(1);

/// What a node is for, how much of the load it takes, and what else is to be known of it.
///
/// With the feature `serde` it is read from TOML, JSON and the like, as a [`Config`](crate::Config) is, and written to
/// them: keys are the names of the fields, a role is [its word](Role::word), what is left out has its default, and a
/// key or value that is wrong is an error that names it, and the rule. An [`Endpoint`](super::Endpoint) is text.
///
/// # Examples
///
/// ```
/// use millpond::cluster::{NodeOptions, Role};
///
/// let near = NodeOptions::default().role(Role::Replica).weight(3).label("zone", "a");
/// assert_eq!(near.labels["zone"], "a");
/// ```
///
/// From a file:
///
#[cfg_attr(feature = "serde", doc = "```")]
#[cfg_attr(not(feature = "serde"), doc = "```ignore")]
/// use millpond::cluster::{Endpoint, NodeOptions, Role};
///
/// #[derive(serde::Deserialize)]
/// struct Server {
///     endpoint: Endpoint,
///     #[serde(flatten)]
///     options: NodeOptions,
/// }
/// let server: Server = toml::from_str(
///     r#"
///     endpoint = "db1.internal:5432"
///     role = "replica"
///     weight = 3
///     labels = { zone = "a" }
///     "#,
/// )?;
/// assert_eq!((server.endpoint.port, server.options.role), (5432, Role::Replica));
/// assert_eq!(server.options, NodeOptions::default().role(Role::Replica).weight(3).label("zone", "a"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeOptions {
    /// Its role, as long as nobody [reads](super::ClusterBuilder::read_role) another from it. Where roles are
    /// read, another one in [new options](super::Cluster::set_options) holds until the next time, and
    /// [`Role::Unknown`] leaves the node the one that it has.
    pub role: Role,
    /// Its share of the load beside the other nodes' weights: 1 to 1,000,000. Default: 1.
    pub weight: u32,
    /// Whatever a policy of the caller's own goes by.
    pub labels: BTreeMap<String, String>,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self { role: Role::Unknown, weight: 1, labels: BTreeMap::new() }
    }
}

impl NodeOptions {
    /// With this role.
    #[must_use]
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// With this weight.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// With this label too.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        const MOST: u32 = 1_000_000;
        let rule = match self.weight {
            0 => "must be at least 1: remove the node to give it no load",
            weight if weight > MOST => "must be at most 1,000,000",
            _ => return Ok(()),
        };
        Err(ConfigError::new("weight", self.weight, rule))
    }
}

/// What reads a server's role from a connection.
pub type RoleFuture<'c, E> = Pin<Box<dyn Future<Output = Result<Role, E>> + Send + 'c>>;

pub(super) type ReadRole<M> = Arc<
    dyn for<'c> Fn(&'c mut <M as Manager>::Connection) -> RoleFuture<'c, <M as Manager>::Error>
        + Send
        + Sync,
>;

/// How a node is, as far as its connections show.
pub(super) struct State<K> {
    pub(super) key: K,
    /// What the server has said last, or its options since.
    role: AtomicU8,
    /// Whether servers are asked for their roles.
    reads_role: bool,
    /// Connecting has failed and has not succeeded since.
    failing: AtomicBool,
    /// When it last failed, or was to be tried or asked again, by the cluster's clock.
    tried_at: AtomicU64,
    /// When it came back, by the cluster's clock, while that is not long ago; 0 otherwise.
    back_since: AtomicU64,
    /// How long its checks take, smoothed, in nanoseconds; 0 before the first.
    latency: AtomicU64,
    /// A connection is being opened in the background to try the node.
    trying: Work,
    /// Its server is being asked for its role.
    asking: Work,
    /// When somebody last began to ask it, by the cluster's clock; 0 if nobody has.
    asked_at: AtomicU64,
    /// How many of those for whom its pool is to open a connection may be served elsewhere.
    roving: AtomicUsize,
    began: Instant,
    /// Notified when a node has changed.
    changed: Arc<Event>,
    /// The cluster's name.
    #[cfg_attr(not(feature = "tracing"), allow(dead_code))]
    cluster: Arc<str>,
}

impl<K> State<K> {
    pub(super) fn new(
        key: K,
        role: Role,
        reads_role: bool,
        began: Instant,
        changed: Arc<Event>,
        cluster: Arc<str>,
    ) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            key,
            role: AtomicU8::new(role as u8),
            reads_role,
            failing: AtomicBool::new(false),
            tried_at: zero(),
            back_since: zero(),
            latency: zero(),
            trying: Work::default(),
            asking: Work::default(),
            asked_at: zero(),
            roving: AtomicUsize::new(0),
            began,
            changed,
            cluster,
        }
    }

    pub(super) fn role(&self) -> Role {
        Role::ALL[usize::from(self.role.load(Ordering::Relaxed))]
    }

    /// The role of a node with these options. Where no server is asked, it is theirs, so that it changes
    /// with the table and not before.
    fn role_by(&self, options: &NodeOptions) -> Role {
        if self.reads_role { self.role() } else { options.role }
    }

    /// Answers which role it had, if that was another one.
    fn set_role(&self, role: Role) -> Option<Role> {
        let before = Role::ALL[usize::from(self.role.swap(role as u8, Ordering::SeqCst))];
        let is_other = before != role;
        if is_other {
            self.tell();
        }
        is_other.then_some(before)
    }

    /// How many of those for whom its pool is to open a connection may be served elsewhere.
    pub(super) fn roving(&self) -> usize {
        self.roving.load(Ordering::SeqCst)
    }

    fn tell(&self) {
        self.changed.notify(usize::MAX.additional());
    }

    /// By the cluster's clock, which never says 0.
    fn now(&self) -> u64 {
        nanos(self.began.elapsed()).max(1)
    }

    /// Whether connecting works, as far as anybody knows.
    pub(super) fn is_up(&self) -> bool {
        !self.failing.load(Ordering::Relaxed)
    }

    /// The pool has come to know whether connecting works, its hooks included, or one of the node's
    /// connections has told.
    pub(super) fn connected(&self, succeeded: bool) {
        if succeeded { self.succeeded() } else { self.failed() }
    }

    fn failed(&self) {
        self.tried_at.store(self.now(), Ordering::Relaxed);
        if !self.failing.swap(true, Ordering::SeqCst) {
            self.tell();
        }
    }

    fn succeeded(&self) {
        if self.failing.load(Ordering::Relaxed) {
            // Before it is up again, so that nobody sees it up and unslowed.
            self.back_since.store(self.now(), Ordering::SeqCst);
            self.failing.store(false, Ordering::SeqCst);
            self.tell();
        }
    }

    /// Whether nobody has begun for so long to ask its server for its role.
    fn may_be_asked_after(&self, pause: Duration) -> bool {
        match self.asked_at.load(Ordering::Relaxed) {
            0 => true,
            asked_at => u128::from(self.now().saturating_sub(asked_at)) >= pause.as_nanos(),
        }
    }

    /// A round trip has taken so long.
    fn took(&self, time: Duration) {
        let time = nanos(time).max(1);
        // Each new one counts for an eighth. Of two at once, one may be lost.
        let smooth = match self.latency.load(Ordering::Relaxed) {
            0 => time,
            before => before - before / 8 + time / 8,
        };
        self.latency.store(smooth, Ordering::Relaxed);
    }
}

impl<K: Key> State<K> {
    /// The server has said which role it has.
    fn learn_role(&self, role: Role) {
        if let Some(before) = self.set_role(role) {
            self.tell_role(before, role);
        }
    }

    /// Tells of a change of its role, to whoever listens with `tracing`.
    pub(super) fn tell_role(&self, from: Role, to: Role) {
        #[cfg(feature = "tracing")]
        tell!(
            info,
            cluster = %self.cluster,
            node = %self.key,
            from = from.word(),
            to = to.word(),
            "the role has changed"
        );
        #[cfg(not(feature = "tracing"))]
        let _ = (from, to);
    }
}

/// The manager of a node's pool: the user's own, and what is taken down of the node on the way.
pub struct Member<K: Key, M: Manager> {
    manager: M,
    pub(super) state: Arc<State<K>>,
    read_role: Option<ReadRole<M>>,
}

impl<K: Key, M: Manager> Member<K, M> {
    pub(super) fn new(manager: M, state: Arc<State<K>>, read_role: Option<ReadRole<M>>) -> Self {
        Self { manager, state, read_role }
    }

    /// The node's key.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.state.key
    }

    /// The manager that the node was added with.
    #[must_use]
    pub fn manager(&self) -> &M {
        &self.manager
    }

    /// Finds out what a new connection can tell of its server.
    async fn get_to_know(&self, connection: &mut M::Connection) -> Result<(), M::Error> {
        if let Some(read_role) = &self.read_role {
            self.state.learn_role(read_role(connection).await?);
        }
        if self.state.latency.load(Ordering::Relaxed) == 0 {
            // Once for each node: how far away it is.
            let began = Instant::now();
            self.manager.check(connection).await?;
            self.state.took(began.elapsed());
        }
        Ok(())
    }
}

impl<K: Key, M: Manager> Manager for Member<K, M> {
    type Connection = M::Connection;
    type Error = M::Error;

    async fn connect(&self) -> Result<M::Connection, M::Error> {
        let mut connection = self.manager.connect().await?;
        if let Err(error) = self.get_to_know(&mut connection).await {
            self.manager.close(connection).await;
            return Err(error);
        }
        Ok(connection)
    }

    fn watch(&self, connection: &mut M::Connection, signal: LossSignal) {
        self.manager.watch(connection, signal);
    }

    fn condition(&self, connection: &mut M::Connection) -> Condition {
        self.manager.condition(connection)
    }

    async fn check(&self, connection: &mut M::Connection) -> Result<(), M::Error> {
        let began = Instant::now();
        self.manager.check(connection).await?;
        self.state.took(began.elapsed());
        if let Some(read_role) = &self.read_role {
            self.state.learn_role(read_role(connection).await?);
        }
        Ok(())
    }

    async fn reset(&self, connection: &mut M::Connection) -> Result<(), M::Error> {
        self.manager.reset(connection).await
    }

    async fn close(&self, connection: M::Connection) {
        self.manager.close(connection).await;
    }

    fn is_permanent(&self, error: &M::Error) -> bool {
        self.manager.is_permanent(error)
    }

    fn target(&self) -> Option<String> {
        // Most keys say it, and whatever is told of a node has that.
        self.manager.target().filter(|target| !names(&self.state.key.to_string(), target))
    }
}

/// A node of a cluster.
pub(super) struct Node<K: Key, M: Manager> {
    pub(super) state: Arc<State<K>>,
    pub(super) pool: Pool<Member<K, M>>,
    pub(super) options: NodeOptions,
    /// What tells this node from others to a hash.
    pub(super) seed: u64,
    /// What monitors are shown of it.
    pub(super) watched: Arc<dyn Source>,
    pub(super) origin: Origin,
}

/// Where a node comes from.
#[derive(Clone, Default)]
pub(super) struct Origin {
    /// Its endpoint, if it was given by that.
    pub(super) endpoint: Option<Endpoint>,
    /// The watch that has added it, if one has; alive for as long as that runs.
    pub(super) watch: Option<Weak<()>>,
}

impl<K: Key, M: Manager> Node<K, M> {
    pub(super) fn key(&self) -> &K {
        &self.state.key
    }

    pub(super) fn role(&self) -> Role {
        self.state.role_by(&self.options)
    }

    /// Whether it was added by a watch that has ended.
    pub(super) fn is_orphan(&self) -> bool {
        self.origin.watch.as_ref().is_some_and(|watch| watch.strong_count() == 0)
    }

    /// Whether connecting works, as far as anybody knows.
    pub(super) fn is_up(&self) -> bool {
        self.state.is_up()
    }

    /// Whether its server, if it is one that is asked, is still to say for the first time what it is.
    pub(super) fn is_unheard(&self) -> bool {
        let never_reached = self.state.latency.load(Ordering::Relaxed) == 0;
        never_reached && self.role() == Role::Unknown
    }

    /// This node, its pool and its connections, with other options, which have been validated.
    pub(super) fn with_options(&self, options: NodeOptions) -> Self {
        // Those that name no role take nothing back of what the server has said.
        let names_none = self.state.reads_role && options.role == Role::Unknown;
        if options.role != self.options.role && !names_none {
            self.state.set_role(options.role);
        }
        let Self { state, pool, seed, watched, origin, .. } = self;
        let (state, pool, seed) = (state.clone(), pool.clone(), *seed);
        Self { state, pool, options, seed, watched: watched.clone(), origin: origin.clone() }
    }
}

impl<K: Key, M: Manager> Node<K, M> {
    /// Which part of its load a node takes that has come back not long ago: 0.0 to 1.0.
    pub(super) fn ramp(&self, slow_start: Duration) -> f64 {
        let since = self.state.back_since.load(Ordering::Relaxed);
        if since == 0 {
            return 1.0;
        }
        // A thread for which a paused clock does not hold may have said since when.
        let part = self.state.now().saturating_sub(since) as f64 / slow_start.as_nanos() as f64;
        if part >= 1.0 || part.is_nan() {
            // Unless it has come back once more meanwhile.
            let over = self.state.back_since.compare_exchange(
                since,
                0,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
            return if over.is_ok() { 1.0 } else { 0.05 };
        }
        // Some of it at once, or it would never be seen to work.
        part.max(0.05)
    }

    /// Whether it is time to try it again, if it is down, or to ask its server again what it is, and that can be
    /// done; the caller does that then.
    fn is_due(&self) -> bool {
        let (state, relaxed) = (&self.state, Ordering::Relaxed);
        let (tried_at, now) = (state.tried_at.load(relaxed), state.now());
        let is_early = u128::from(now.saturating_sub(tried_at)) < TRIED_AGAIN.as_nanos();
        if is_early || self.pool.ground_or_current().is_none() {
            return false;
        }
        // Of several at once, one does it.
        state.tried_at.compare_exchange(tried_at, now, relaxed, relaxed).is_ok()
    }

    /// Opens one more connection in the background, if there is room and nobody does so already:
    /// because the node was passed over for want of an idle one, or to see whether it is back. If there
    /// is no room for another, one that it has can tell that as well.
    pub(super) fn try_in_background(self: &Arc<Self>) {
        // All who pass the node over rely on this, so it is nothing for the runtime of one of them, which may
        // be alive and be driven no more.
        let Some(ground) = self.pool.ground_or_current() else { return };
        let Some(trying) = UnderWay::begin(&self.state, |state| &state.trying) else { return };
        // Whoever tries the node does not keep its pool open.
        let (pool, limit) = (self.pool.without_handle().clone(), self.pool.config().check_timeout);
        let caller = Location::caller();
        ground.spawn(async move {
            until_it_may_have_one(&pool).await;
            let counts = pool.counts();
            // What is being closed can neither tell anything nor serve.
            let has = counts.alive() - counts.closing;
            let is_full = counts.vacant + counts.connecting == 0 && has > 0;
            if is_full && !trying.state.is_up() {
                check_one(&pool, limit, caller).await;
            } else {
                // The pool tells what comes of it.
                drop(pool.open(has + 1).await);
            }
        });
    }

    /// Sees whether a node is back that failed some time ago: whoever passes it over calls this, also if
    /// another serves him at once, since nobody else may ever go there.
    #[cold]
    pub(super) fn try_again(self: &Arc<Self>, cluster: &Arc<Shared<K, M>>) {
        if self.is_due() {
            cluster.passed_over(self);
            self.try_in_background();
        }
    }

    /// Goes to a node for the first time whose server is to say what it is, or nobody would ever who
    /// wants one role only; again once a second as long as it has not said so.
    pub(super) fn get_to_know(self: &Arc<Self>, cluster: &Arc<Shared<K, M>>) {
        let never_reached = self.state.latency.load(Ordering::Relaxed) == 0;
        let is_unknown = self.role() == Role::Unknown;
        if !(never_reached || is_unknown) || self.pool.manager().read_role.is_none() {
            return;
        }
        if never_reached && self.pool.max_size() > 0 {
            self.try_in_background();
        } else {
            // Without any, it has to get in line, or the cap would not give it one. Though another node loses its
            // last one for that: it may be the primary by now, and until this is over nobody else asks.
            self.read_role_again(cluster, None);
        }
    }

    /// Completes when the server has been asked for its role, or cannot be; `None` if it has one, or nobody
    /// asks.
    pub(super) fn when_asked(&self) -> Option<EventListener> {
        if self.role() != Role::Unknown || self.pool.manager().read_role.is_none() {
            return None;
        }
        // What it is asked with may be there already, while another connection takes long.
        self.state.asking.when_over().or_else(|| self.state.trying.when_over())
    }

    /// For how long nobody has its server asked again for its role.
    fn is_left_alone_for(&self, cluster: &Shared<K, M>) -> Duration {
        // One that does not know it needs its time, and one without a unit takes that of another node.
        if self.role() == Role::Unknown || self.pool.max_size() == 0 {
            return TRIED_AGAIN;
        }
        let pause = cluster.settings.try_next_after.min(TRIED_AGAIN);
        // Whoever looks at each of his pauses does not come too early by a moment.
        pause - pause / 10
    }

    /// Has the server asked for its role again, by somebody who is `roving` if it is not that urgent; unless it
    /// was a moment ago, since all who wait call this again and again.
    pub(super) fn read_role_again(
        self: &Arc<Self>,
        cluster: &Arc<Shared<K, M>>,
        roving: Option<Roving<K>>,
    ) {
        if !self.state.may_be_asked_after(self.is_left_alone_for(cluster)) {
            return;
        }
        let Some(read_role) = self.pool.manager().read_role.clone() else { return };
        // What is being opened tells its role as well, and there may be nothing else to ask with.
        if self.state.trying.is_under_way() && !self.pool.has_some_left() {
            return;
        }
        // Without an idle connection this tries to open one, which for one who waits may go on and on.
        if !self.is_up() && self.pool.counts().idle == 0 && !self.is_due() {
            return;
        }
        // As in `try_in_background`.
        let Some(ground) = self.pool.ground_or_current() else { return };
        let Some(asking) = UnderWay::begin(&self.state, |state| &state.asking) else { return };
        self.state.asked_at.store(self.state.now(), Ordering::Relaxed);
        let caller = Location::caller();
        let limit = self.pool.config().check_timeout;
        // With a limit or without, whoever waits does not keep the pool open.
        let (pool, patience) =
            (self.pool.without_handle().clone(), cluster.settings.acquire_timeout);
        let cluster = Arc::downgrade(cluster);
        ground.spawn(async move {
            let mut acquire = pin!(async {
                match attempt(&pool, caller) {
                    Attempt::Hit(pooled) => Ok(pooled),
                    Attempt::Miss(missed) => missed.wait(patience, Counted::Never).await,
                }
            });
            let mut word = Word::default();
            let acquired = poll_fn(|cx| {
                let acquired = acquire.as_mut().poll(cx);
                if let (Poll::Pending, Some(cluster)) = (&acquired, cluster.upgrade()) {
                    word.poll(&cluster, cx);
                }
                acquired
            });
            let acquired = acquired.await;
            drop(roving);
            let Ok(connection) = acquired else { return };
            let mut asked = Asked::new(connection);
            // Cancel: `asked` closes the connection.
            if let Ok(Ok(role)) = tokio::time::timeout(limit, read_role(&mut asked)).await {
                asked.has_answered();
                asking.state.learn_role(role);
            }
        });
    }
}

/// Sees whether one of the connections works, for so long at the most.
async fn check_one<K: Key, M: Manager>(
    pool: &Arc<node_side::Shared<Member<K, M>>>,
    limit: Duration,
    caller: &'static Location<'static>,
) {
    let acquired = match attempt(pool, caller) {
        Attempt::Hit(pooled) => Ok(pooled),
        Attempt::Miss(missed) => missed.wait(PATIENCE, Counted::Never).await,
    };
    let Ok(connection) = acquired else { return };
    let mut asked = Asked::new(connection);
    // Cancel: `asked` closes the connection.
    let check = tokio::time::timeout(limit, pool.manager().check(&mut asked));
    if let Ok(Ok(())) = check.await {
        asked.has_answered();
        pool.manager().state.connected(true);
    }
}

/// A connection that is asked something. Nobody knows where a question has left it that fails, takes too long
/// or ends with its runtime: it goes back only if it has answered, and is closed otherwise.
struct Asked<K: Key, M: Manager> {
    connection: PooledBare<Member<K, M>>,
    answered: bool,
}

impl<K: Key, M: Manager> Asked<K, M> {
    fn new(connection: PooledBare<Member<K, M>>) -> Self {
        Self { connection, answered: false }
    }

    fn has_answered(mut self) {
        self.answered = true;
    }
}

impl<K: Key, M: Manager> Deref for Asked<K, M> {
    type Target = M::Connection;

    fn deref(&self) -> &M::Connection {
        &self.connection
    }
}

impl<K: Key, M: Manager> DerefMut for Asked<K, M> {
    fn deref_mut(&mut self) -> &mut M::Connection {
        &mut self.connection
    }
}

impl<K: Key, M: Manager> Drop for Asked<K, M> {
    fn drop(&mut self) {
        if !self.answered {
            self.connection.owned().discard();
        }
    }
}

/// Waits for what the cap has been asked for: not for long, since it may be that nobody has one to
/// give.
async fn until_it_may_have_one<K: Key, M: Manager>(pool: &Arc<node_side::Shared<Member<K, M>>>) {
    if pool.max_size() > 0 {
        return;
    }
    let one = async {
        loop {
            let changed = pool.when_changed();
            if pool.max_size() > 0 {
                return;
            }
            changed.await;
        }
    };
    // An error: then there is none.
    drop(tokio::time::timeout(PATIENCE, one).await);
}

/// Somebody for whom a node's pool is to open a connection, and who may be served elsewhere.
pub(super) struct Roving<K>(Arc<State<K>>);

impl<K> Roving<K> {
    pub(super) fn new(state: &Arc<State<K>>) -> Self {
        state.roving.fetch_add(1, Ordering::SeqCst);
        Self(state.clone())
    }
}

impl<K> Drop for Roving<K> {
    fn drop(&mut self) {
        self.0.roving.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is done at a node in the background, once for all.
#[derive(Default)]
struct Work {
    is_under_way: AtomicBool,
    /// Notified when it is not any more.
    over: Event,
}

impl Work {
    fn is_under_way(&self) -> bool {
        self.is_under_way.load(Ordering::SeqCst)
    }

    /// Completes when it is over; `None` if nobody does it.
    fn when_over(&self) -> Option<EventListener> {
        // Before the look: its end is not missed.
        let over = self.over.listen();
        self.is_under_way().then_some(over)
    }
}

/// The right to do that.
struct UnderWay<K> {
    state: Arc<State<K>>,
    work: fn(&State<K>) -> &Work,
}

impl<K> UnderWay<K> {
    /// `None` if somebody does it already.
    fn begin(state: &Arc<State<K>>, work: fn(&State<K>) -> &Work) -> Option<Self> {
        let begun = work(state).is_under_way.swap(true, Ordering::SeqCst);
        (!begun).then(|| Self { state: state.clone(), work })
    }
}

impl<K> Drop for UnderWay<K> {
    fn drop(&mut self) {
        let work = (self.work)(&self.state);
        work.is_under_way.store(false, Ordering::SeqCst);
        work.over.notify(usize::MAX.additional());
    }
}

/// What a policy sees of a node.
pub struct NodeView<'n, K> {
    pub(super) state: &'n State<K>,
    pub(super) options: &'n NodeOptions,
    pub(super) counts: &'n dyn Fn() -> Counts,
}

impl<K> NodeView<'_, K> {
    /// Its key.
    #[must_use]
    pub fn key(&self) -> &K {
        &self.state.key
    }

    /// Its role: what the server said last, or what it was added with.
    #[must_use]
    pub fn role(&self) -> Role {
        self.state.role_by(self.options)
    }

    /// Its weight.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.options.weight
    }

    /// One of its labels.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.options.labels.get(name).map(String::as_str)
    }

    /// Whether connecting to it works, as far as anybody knows.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state.is_up()
    }

    /// How long its checks take, smoothed; `None` before the first.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        match self.state.latency.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// Its connections by state. Costs one pass over all slots of the node.
    #[must_use]
    pub fn counts(&self) -> Counts {
        (self.counts)()
    }
}

impl<K: fmt::Debug> fmt::Debug for NodeView<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeView")
            .field("key", self.key())
            .field("role", &self.role())
            .field("is_up", &self.is_up())
            .finish_non_exhaustive()
    }
}
