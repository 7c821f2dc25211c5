//! `Pool`: connections that are opened, checked, reset and closed by a [`Manager`].
//!
//! Read `mod.rs` (the handle), `builder.rs` (its settings), `acquire.rs` (how a caller gets a
//! connection), `prepare.rs` (what is done to it before), `guard.rs` (how it comes back),
//! `connector.rs` (when one is opened), `dial.rs` (how), `trouble.rs` (what follows if that fails),
//! `vain.rs` (who has waited in vain), `close.rs` (how one ends), `life.rs` (when it has to),
//! `reaper.rs` (what happens by the clock), `admin.rs` (what an operator does), `report.rs` (who is
//! told the figures), `trace.rs` (what is told of events), `shed.rs` and `deadlock.rs` (two options for
//! when too much is asked), `node_side.rs` (what a cluster asks of the pool of a node).
//!
//! Not here: which slot belongs to whom; see `core`.

mod acquire;
mod admin;
mod builder;
mod close;
mod connector;
mod deadlock;
mod dial;
mod guard;
mod life;
#[cfg(feature = "cluster")]
pub(crate) mod node_side;
pub(crate) mod operation;
mod prepare;
mod reaper;
mod report;
mod shed;
mod terms;
mod trace;
mod trouble;
mod vain;

pub use self::admin::DrainReport;
pub use self::builder::PoolBuilder;
pub use self::guard::{ConnectionInfo, ConnectionState, Pooled, PooledOwned};
pub use self::reaper::{Holder, Maintenance};

use self::acquire::{acquire, acquire_blocking, acquire_blocking_owned, acquire_owned};
use self::connector::Connector;
use self::deadlock::Detector;
pub(crate) use self::life::nanos;
use self::life::{Record, Term};
pub(crate) use self::operation::runs_async_task;
use self::reaper::{Longest, Memory, Upkeep};
use self::report::Reports;
use self::shed::Shedder;
use self::vain::Vain;
use crate::config::{AcquireOptions, Config};
use crate::core::{Core, Counts, Doubt, Flags, Keeper, Lease, Line, State, Trial};
use crate::error::{AcquireError, TryAcquireError};
use crate::hooks::Hooks;
use crate::manager::{Loss, Manager};
use crate::metrics::{CloseReason, ClusterNode, PoolMetrics, PoolStatus, Signs, Totals};
use event_listener::{Event, IntoNotification};
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// A pool of connections.
///
/// A clone is another handle to the same pool. When the last handle is dropped, idle connections
/// are closed; guards that are still out go on working, and close theirs when they are dropped.
///
/// A panic beside it, or in its manager, leaves it in order: it is [`UnwindSafe`](std::panic::UnwindSafe)
/// whatever the manager is, and what is in a guard that a panic drops is closed.
///
/// # Examples
///
/// ```
/// use millpond::{Pool, from_fn};
/// use std::convert::Infallible;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Anything that can be opened is a connection; here, a string.
/// let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
/// let pool = Pool::builder(manager).max_size(4).build().await?;
///
/// let connection = pool.acquire().await?;
/// assert_eq!(*connection, "hello");
/// drop(connection); // back in the pool
/// assert_eq!(pool.metrics().counts.idle, 1);
/// # Ok(()) }
/// ```
pub struct Pool<M: Manager> {
    shared: Arc<Shared<M>>,
    /// Closes the pool when the last handle goes. The pool's own tasks do without it.
    handles: Arc<LastHandle<M>>,
}

/// What a pool's handles, guards and tasks share.
pub(crate) struct Shared<M: Manager> {
    core: Core<Self>,
    /// Whether there is something to do whenever a clean connection comes back.
    attentive: bool,
    /// What is flagged of each connection as long as it lives.
    greeting: Flags,
    manager: M,
    /// Where that says that connections lead: one line.
    target: Mutex<Option<Arc<str>>>,
    config: Config,
    hooks: Hooks<M>,
    reports: Option<Reports>,
    cluster: Option<Box<WhichNode>>,
    /// Is told of each connect whether it has succeeded, before anybody else is; and again when that has
    /// been noted.
    on_connect: Option<Box<OnConnect>>,
    connector: Connector<M::Error>,
    totals: Totals,
    vain: Vain,
    /// False until the first connections are open, or somebody wants one.
    keeps_idle: AtomicBool,
    /// Connections that are being closed at the moment.
    // Ordering: SeqCst, partner: the decrement in `Count::drop`. Who waits for it looks after listening (I8).
    closing: AtomicUsize,
    /// Notified when a slot becomes vacant, a connection has been opened, none is being closed, or a rotation is over.
    changed: Event,
    /// [`OPEN`], [`DRAINING`] or [`CLOSED`]; only tells which error a closed core stands for.
    // Ordering: SeqCst, partner: the flag of the core, which is raised after this has changed: whoever finds the core
    // closed does not find the phase open.
    phase: AtomicU8,
    /// How many drains are under way.
    // Ordering: SeqCst, partner: `phase`. A drain is on this count before it changes that, and off it first.
    drains: AtomicUsize,
    /// When the pool's clock began.
    began: Instant,
    /// How often all connections have been invalidated.
    generation: AtomicU64,
    /// When a connection that is out of date may take all that are as old with it again, by the pool's clock.
    outdates_next: AtomicU64,
    /// Where the sequence of lifetimes begins, 0.0 to 1.0.
    spread: f64,
    /// By slot.
    records: Box<[Record]>,
    upkeep: Arc<Upkeep>,
    memory: Mutex<Memory>,
    /// Idle connections that are kept until their replacement is there.
    expiring: AtomicUsize,
    shedder: Option<Shedder>,
    detector: Option<Detector>,
    me: Weak<Self>,
}

const OPEN: u8 = 0;
const DRAINING: u8 = 1;
const CLOSED: u8 = 2;

/// Tells which node of a cluster a pool stands for.
type WhichNode = dyn Fn() -> ClusterNode + Send + Sync;

/// Is told of a connect whether it has succeeded, hooks included.
type OnConnect = dyn Fn(bool) + Send + Sync;

/// What lives in a slot.
pub(crate) struct Tenant<C> {
    connection: C,
    /// 1 for the pool's first connection.
    id: u64,
    created: Instant,
    /// How many invalidations there had been when it was opened.
    generation: u64,
    /// How many new ones had been counted as of no use when it began to be opened.
    round: u64,
    term: Term,
    /// How often the slot had been acquired before this connection came.
    uses_before: u64,
    /// When it was lent last, by the pool's clock, if that is measured.
    lent_at: u64,
    /// That of its use, if that is asked for.
    span: trace::Span,
    /// Where it says that it has ended, if it does.
    loss: Option<Arc<Loss>>,
}

impl<M: Manager> Shared<M> {
    fn arc(&self) -> Arc<Self> {
        self.me.upgrade().expect("BUG: a pool that is gone was asked for something")
    }

    fn metrics(&self) -> PoolMetrics {
        self.metrics_with(self.longest().holder)
    }

    fn metrics_with(&self, oldest_holder: Option<Holder>) -> PoolMetrics {
        let Self { core, totals, connector, .. } = self;
        totals.snapshot(core.counts(), core.uses(), oldest_holder, connector.last_failure())
    }

    /// What its health follows from, besides its figures.
    fn signs(&self, longest: &Longest) -> Signs {
        let (useless, _) = self.connector.useless();
        let (connecting, failure, rejects) = self.connector.state();
        Signs {
            closed: match self.phase.load(Ordering::SeqCst) {
                OPEN => None,
                DRAINING => Some("being drained"),
                _ => Some("closed"),
            },
            connecting,
            failure,
            target: self.target(),
            rejects,
            is_dialing: self.connector.is_dialing(),
            connecting_for: self.connector.connecting_for(),
            in_vain: self.in_vain(),
            held_too_long: longest.too_long,
            all_are_useless: useless > 0,
            maintenance_is_paused: self.upkeep.is_paused(),
            max_size: self.core.limit(),
            kept: self.kept(),
            kept_idle: self.reserved_in(State::Idle),
        }
    }

    /// Tells those who wait for the pool to open, close or give up connections.
    fn changed(&self) {
        self.changed.notify(usize::MAX.additional());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Manager> Keeper for Shared<M> {
    type Resource = Tenant<M::Connection>;

    #[inline]
    fn core(&self) -> &Core<Self> {
        &self.core
    }

    fn vacancy(&self) {
        self.changed();
        self.demand_of_somebody();
    }

    fn parked(&self, line: Line) {
        // Whoever looked before it was in line would not be told of a slot that becomes vacant after that look,
        // nor that the runtime has ended (I4).
        if !self.keep_idle() && self.core.has_vacant_for(line) {
            self.core.nudge();
        }
        // Nor that a smaller pool leaves it stuck.
        if self.detector.as_ref().is_some_and(|detector| detector.has_missed(self.core.limit())) {
            self.core.nudge_all();
        }
        // Nor of a failure after which nobody is to wait; but a rotation waits all the same.
        if self.may_wait(line).is_err() && self.has_callers() {
            self.core.nudge_all();
        }
    }

    #[cold]
    fn dipped(&self) {
        self.keep_idle();
    }

    fn flagged(&self) {
        self.look_at_flagged();
    }

    #[inline]
    fn inspect(&self, tenant: &mut Self::Resource) -> Option<Doubt> {
        self.doubt_about(tenant)
    }

    fn doubt<R: Deref<Target = Self> + Clone>(lease: Lease<R>, doubt: Doubt) {
        guard::settle(lease, doubt);
    }

    fn retire(&self, trial: Trial<&Self>) {
        self.close_connection(trial, self.closed_because());
    }

    fn abandoned(&self, tenant: &Self::Resource) {
        self.ends(tenant, CloseReason::Abandoned);
        self.hooks.destroyed();
    }
}

struct LastHandle<M: Manager>(Arc<Shared<M>>);

impl<M: Manager> Drop for LastHandle<M> {
    fn drop(&mut self) {
        self.0.shut();
    }
}

impl<M: Manager> Pool<M> {
    /// Settings for a pool of `manager`'s connections.
    pub fn builder(manager: M) -> PoolBuilder<M> {
        PoolBuilder::new(manager)
    }

    /// Acquires a connection: an idle one, or, in line with everybody else who waits, whichever
    /// comes first of one that is released and one that the pool opens.
    ///
    /// # Errors
    ///
    /// - [`AcquireError::Timeout`] after `acquire_timeout`; it says what the pool was waiting for,
    ///   and its source is the last failure to connect, if there was one and a connection could have
    ///   been opened.
    /// - [`AcquireError::Connect`] if connecting failed for good, and no connection is left to wait for.
    /// - [`AcquireError::Closed`] if the pool is closed, before or meanwhile;
    ///   [`AcquireError::Draining`] while it is being drained.
    /// - [`AcquireError::Unavailable`], [`AcquireError::QueueFull`], [`AcquireError::Shed`] and
    ///   [`AcquireError::WouldDeadlock`] only if the settings `fail_fast`, `max_waiters`, `shed` and
    ///   `detect_deadlock` ask for them.
    /// - [`AcquireError::NoRuntime`] if it has to wait and there is no tokio runtime with a timer, or it has
    ///   ended. An acquire without a deadline needs none while it waits for a connection that comes back, or
    ///   that the pool opens on its own runtime. It fails like this only if the connection has to be checked
    ///   or shown to [`before_acquire`](crate::Hooks::before_acquire), or if one has to be opened and the
    ///   pool's runtime has ended too. tokio says by a panic that there is no timer, or that the runtime has
    ///   ended; it is caught, but the panic hook reports it, and with `panic = "abort"` it ends the program.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in line and nothing else: a connection that was on
    /// its way goes to the next caller, one that is being opened stays in the pool. Only a
    /// connection that was being checked, or shown to [`before_acquire`](crate::Hooks::before_acquire), is
    /// closed; at the deadline that goes on in the background instead.
    ///
    /// # Cost
    ///
    /// A hit, which finds an idle connection that is fit for use, allocates nothing, takes no lock and reads no
    /// clock; nor does it yield to the runtime. Some settings ask more of it, such as
    /// [`time_use`](PoolBuilder::time_use), or [`min_idle`](PoolBuilder::min_idle) where few are left idle at the
    /// thread's own shard. A wait creates one timer and allocates nothing. What a check costs is up to the
    /// manager; where less than two `check_timeout` are left of the time, it is put into a box, so that it may
    /// go on in the background.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::{convert::Infallible, time::Duration};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).max_size(1).build().await?;
    /// let connection = pool.acquire().await?;
    /// assert_eq!(connection.info().uses, 1);
    ///
    /// // There is one connection, and it is in use; the error says so.
    /// let error = pool.acquire_timeout(Duration::from_millis(10)).await.unwrap_err();
    /// assert!(error.to_string().contains("1 of 1 in use"));
    /// # Ok(()) }
    /// ```
    #[track_caller]
    #[inline]
    pub fn acquire(
        &self,
    ) -> impl Future<Output = Result<Pooled<'_, M>, AcquireError<M::Error>>> + Send + use<'_, M>
    {
        acquire(&self.shared, Location::caller(), AcquireOptions::new)
    }

    /// Acquires a connection, waiting in the line of a [`Priority`](crate::Priority), or as these options say;
    /// otherwise as [`acquire`](Self::acquire).
    ///
    /// Callers with [`Priority::High`](crate::Priority::High) are served before all others, have the
    /// [reserved](PoolBuilder::reserved) connections to themselves, and are neither refused because
    /// of `max_waiters` nor shed. While they keep coming, nobody else is served.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); so are its cancel safety and its cost. A reserved connection costs what
    /// one costs that is waited for, idle or not: a timer and a place in line.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// use millpond::{AcquireOptions, Priority};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).max_size(2).reserved(Priority::High, 1).build().await?;
    /// let bulk = pool.acquire().await?;
    /// assert!(pool.try_acquire().is_err()); // the other one is reserved
    /// let probe = pool.acquire_with(Priority::High).await?;
    ///
    /// // With a deadline of its own.
    /// let briefly = AcquireOptions::new().priority(Priority::High).timeout(Duration::from_millis(10));
    /// assert!(pool.acquire_with(briefly).await.is_err());
    /// # Ok(()) }
    /// ```
    #[track_caller]
    #[inline]
    pub fn acquire_with<O>(
        &self,
        options: O,
    ) -> impl Future<Output = Result<Pooled<'_, M>, AcquireError<M::Error>>> + Send + use<'_, M, O>
    where
        O: Into<AcquireOptions>,
    {
        let options = options.into();
        acquire(&self.shared, Location::caller(), move || options)
    }

    /// Acquires a connection, waiting for `limit` at the most instead of `acquire_timeout`. Zero
    /// takes what is idle or gives up at once; a connection that has to be checked or opened first is then
    /// checked or opened in the background, for the next caller. [`Duration::MAX`] waits for good, and
    /// without a timer, which is the larger part of what a short wait costs.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); so are its cancel safety and its cost.
    #[track_caller]
    #[inline]
    pub fn acquire_timeout(
        &self,
        limit: Duration,
    ) -> impl Future<Output = Result<Pooled<'_, M>, AcquireError<M::Error>>> + Send + use<'_, M>
    {
        acquire(&self.shared, Location::caller(), move || AcquireOptions::new().timeout(limit))
    }

    /// Acquires a connection that is not tied to this handle's lifetime, for one `Arc` clone more. While it
    /// waits it does not keep the pool open: if the last handle goes, it fails with
    /// [`AcquireError::Closed`].
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); so is its cancel safety.
    ///
    /// # Cost
    ///
    /// That of [`acquire`](Self::acquire) and of the clone, which all threads count in one place: where
    /// many acquire at once, a guard that borrows from a handle of the task's own is the faster one.
    #[track_caller]
    #[inline]
    pub fn acquire_owned(
        &self,
    ) -> impl Future<Output = Result<PooledOwned<M>, AcquireError<M::Error>>> + Send + use<M> {
        acquire_owned(self.shared.clone(), Location::caller(), AcquireOptions::new)
    }

    /// As [`acquire_owned`](Self::acquire_owned), waiting in the line of a [`Priority`](crate::Priority), or as
    /// these options say; see [`acquire_with`](Self::acquire_with).
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); so is its cancel safety. Its cost is that of
    /// [`acquire_owned`](Self::acquire_owned), and of a reserved connection that of
    /// [`acquire_with`](Self::acquire_with).
    #[track_caller]
    #[inline]
    pub fn acquire_owned_with<O>(
        &self,
        options: O,
    ) -> impl Future<Output = Result<PooledOwned<M>, AcquireError<M::Error>>> + Send + use<M, O>
    where
        O: Into<AcquireOptions>,
    {
        let options = options.into();
        acquire_owned(self.shared.clone(), Location::caller(), move || options)
    }

    /// As [`acquire_owned`](Self::acquire_owned), waiting for `limit` at the most instead of
    /// `acquire_timeout`; see [`acquire_timeout`](Self::acquire_timeout).
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); so is its cancel safety. Its cost is that of
    /// [`acquire_owned`](Self::acquire_owned).
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::{convert::Infallible, time::Duration};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).max_size(1).build().await?;
    /// let connection = pool.acquire_owned_timeout(Duration::from_millis(100)).await?;
    /// let elsewhere = tokio::spawn(async move { connection.len() });
    /// assert_eq!(elsewhere.await?, 5);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    #[inline]
    pub fn acquire_owned_timeout(
        &self,
        limit: Duration,
    ) -> impl Future<Output = Result<PooledOwned<M>, AcquireError<M::Error>>> + Send + use<M> {
        acquire_owned(self.shared.clone(), Location::caller(), move || {
            AcquireOptions::new().timeout(limit)
        })
    }

    /// Acquires a connection if one is idle and nobody waits; never waits, never opens one.
    ///
    /// An idle connection that has to be [checked](crate::CheckPolicy) first is sent to its check in
    /// the background, and the answer is [`TryAcquireError::Empty`]. That is always the answer in a pool with the
    /// hook [`before_acquire`](crate::Hooks::before_acquire), for which this cannot wait.
    ///
    /// # Errors
    ///
    /// - [`TryAcquireError::Empty`] if none is idle that is fit for use at once, or if others wait.
    /// - [`TryAcquireError::Draining`] if the pool is being drained.
    /// - [`TryAcquireError::Closed`] if the pool is closed.
    ///
    /// # Cost
    ///
    /// A hit is one of [`acquire`](Self::acquire). To find none takes a look at each shard, and neither allocates
    /// nor takes a lock or reads a clock; to send one to its check begins a task.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).min_idle(1).build().await?;
    /// let first = pool.try_acquire();
    /// assert!(first.is_ok());
    /// assert!(pool.try_acquire().is_err());
    /// # Ok(()) }
    /// ```
    #[track_caller]
    #[inline]
    pub fn try_acquire(&self) -> Result<Pooled<'_, M>, TryAcquireError> {
        acquire::try_acquire(&self.shared, Location::caller())
    }

    /// As [`try_acquire`](Self::try_acquire), for a connection that is not tied to this handle's
    /// lifetime, for one `Arc` clone more.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    #[track_caller]
    #[inline]
    pub fn try_acquire_owned(&self) -> Result<PooledOwned<M>, TryAcquireError> {
        acquire::try_acquire_owned(&self.shared, Location::caller())
    }

    /// Acquires a connection from a thread that runs no asynchronous tasks, blocking it while it
    /// waits in line with everybody else. Connections are opened and checked on the pool's runtime.
    ///
    /// # Errors
    ///
    /// - As [`acquire`](Self::acquire).
    /// - [`AcquireError::WouldBlock`] if it has to wait and the thread is running an asynchronous
    ///   task: blocking it would hold up the very tasks that it waits for. `spawn_blocking` is fine.
    ///   Inside [`tokio::task::unconstrained`] this is not noticed, and it blocks.
    ///
    /// # On all threads at once
    ///
    /// A runtime has so many threads for `spawn_blocking`
    /// ([512](tokio::runtime::Builder::max_blocking_threads) by default). If all of them wait here, a manager whose
    /// `connect` needs one as well, say to look a name up as `TcpStream::connect` does, opens no connection before one
    /// of them gives up. Those of [`backends`](crate::backends) need none, but for sqlx's and raw ones of pg-wired,
    /// if the server is not given by its address.
    ///
    /// # Cost
    ///
    /// As [`acquire`](Self::acquire); a thread's first wait allocates.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).build().await?;
    /// let on_a_thread = tokio::task::spawn_blocking({
    ///     let pool = pool.clone();
    ///     move || pool.acquire_blocking().map(|connection| connection.len())
    /// });
    /// assert_eq!(on_a_thread.await??, 5);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    #[inline]
    pub fn acquire_blocking(&self) -> Result<Pooled<'_, M>, AcquireError<M::Error>> {
        acquire_blocking(&self.shared, Location::caller(), AcquireOptions::new)
    }

    /// As [`acquire_blocking`](Self::acquire_blocking), for `limit` at the most; zero is that of
    /// [`acquire_timeout`](Self::acquire_timeout).
    ///
    /// # Errors
    ///
    /// As [`acquire_blocking`](Self::acquire_blocking).
    #[track_caller]
    #[inline]
    pub fn acquire_blocking_timeout(
        &self,
        limit: Duration,
    ) -> Result<Pooled<'_, M>, AcquireError<M::Error>> {
        let options = || AcquireOptions::new().timeout(limit);
        acquire_blocking(&self.shared, Location::caller(), options)
    }

    /// As [`acquire_blocking`](Self::acquire_blocking), in the line of a [`Priority`](crate::Priority), or as these options
    /// say; see [`acquire_with`](Self::acquire_with).
    ///
    /// # Errors
    ///
    /// As [`acquire_blocking`](Self::acquire_blocking).
    #[track_caller]
    #[inline]
    pub fn acquire_blocking_with(
        &self,
        options: impl Into<AcquireOptions>,
    ) -> Result<Pooled<'_, M>, AcquireError<M::Error>> {
        let options = options.into();
        acquire_blocking(&self.shared, Location::caller(), || options)
    }

    /// As [`acquire_blocking`](Self::acquire_blocking), for a connection that is not tied to this
    /// handle's lifetime.
    ///
    /// # Errors
    ///
    /// As [`acquire_blocking`](Self::acquire_blocking).
    #[track_caller]
    #[inline]
    pub fn acquire_blocking_owned(&self) -> Result<PooledOwned<M>, AcquireError<M::Error>> {
        acquire_blocking_owned(&self.shared, Location::caller(), AcquireOptions::new)
    }

    /// As [`acquire_blocking_owned`](Self::acquire_blocking_owned), for `limit` at the most.
    ///
    /// # Errors
    ///
    /// As [`acquire_blocking`](Self::acquire_blocking).
    #[track_caller]
    #[inline]
    pub fn acquire_blocking_owned_timeout(
        &self,
        limit: Duration,
    ) -> Result<PooledOwned<M>, AcquireError<M::Error>> {
        let options = || AcquireOptions::new().timeout(limit);
        acquire_blocking_owned(&self.shared, Location::caller(), options)
    }

    /// As [`acquire_blocking_owned`](Self::acquire_blocking_owned), in the line of a [`Priority`](crate::Priority), or as these
    /// options say; see [`acquire_with`](Self::acquire_with).
    ///
    /// # Errors
    ///
    /// As [`acquire_blocking`](Self::acquire_blocking).
    #[track_caller]
    #[inline]
    pub fn acquire_blocking_owned_with(
        &self,
        options: impl Into<AcquireOptions>,
    ) -> Result<PooledOwned<M>, AcquireError<M::Error>> {
        let options = options.into();
        acquire_blocking_owned(&self.shared, Location::caller(), || options)
    }

    /// Closes the pool for good: everyone who waits gets [`AcquireError::Closed`], so does whoever
    /// comes later, and idle connections are closed. Returns when they are, and so is what was being opened, checked
    /// or reset, or on its way to somebody who waited; or after `close_timeout`, or when
    /// the runtime that it is awaited on ends; at once if there is none, or none with a timer. Connections
    /// that are in use are not waited for; each is closed when its guard is dropped. May be called again, and
    /// by several tasks at once.
    ///
    /// An acquire under way is part of that: a future that is kept and not polled any more, in the task that awaits
    /// this, may have a connection on its way or being checked, and then it takes `close_timeout`.
    ///
    /// # Cancel safety
    ///
    /// The pool is closed at the first poll. Dropping the future only stops waiting.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// use millpond::AcquireError;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).build().await?;
    /// let connection = pool.acquire().await?;
    /// pool.close().await;
    /// assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    /// assert_eq!(*connection, "hello"); // to the end of its use
    /// # Ok(()) }
    /// ```
    pub async fn close(&self) {
        self.shared.close().await;
    }

    /// As [`close`](Self::close), blocking the thread.
    pub(crate) fn close_blocking(&self) {
        self.shared.shut();
        self.shared.all_closed_blocking();
    }

    /// Closes the pool, and waits for nothing.
    pub(crate) fn shut(&self) {
        self.shared.shut();
    }

    /// The pool without its handle, which does not keep it open.
    pub(crate) fn without_handle(&self) -> &Arc<Shared<M>> {
        &self.shared
    }

    /// Whether the pool is closed. `true` stays true; `false` may be out of date at once.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.core.is_closed()
    }

    /// The pool's figures at this moment. Costs one pass over all slots and a copy of the distributions;
    /// [`counts`](Self::counts) is the pass alone.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).max_size(4).build().await?;
    /// drop(pool.acquire().await?);
    /// let metrics = pool.metrics();
    /// assert_eq!((metrics.created, metrics.acquires), (1, 1));
    /// assert_eq!((metrics.counts.idle, metrics.counts.vacant), (1, 3));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn metrics(&self) -> PoolMetrics {
        self.shared.metrics()
    }

    /// The places by state, and the number of waiters: what is in [`metrics`](Self::metrics) too,
    /// without what that copies. Costs one pass over all slots and allocates nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).max_size(4).min_idle(1).build().await?;
    /// let connection = pool.acquire().await?;
    /// assert_eq!(pool.counts().in_use, 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.core.counts()
    }

    /// How the pool is: its health in words, its figures and its settings, for a terminal, in one line for a
    /// log (`{:#}`) or, with the feature `serde`, for a program. Costs one pass over all slots.
    ///
    /// Whether connecting works is what the last attempt says, be it one of a [`rotate`](Self::rotate). A pool that is down
    /// because connecting fails goes on trying though nobody asks it for anything,
    /// one connect at a time with the pauses of [`backoff`](PoolBuilder::backoff), so it is up again soon
    /// after the server is. If nobody tried at the moment when the last connection went, that begins at the next look of
    /// the [maintenance](Self::maintenance), and does not while that is paused. Not so if the manager calls the last failure
    /// [permanent](Manager::is_permanent), such as a wrong password, since accounts get locked: then its
    /// health says so, and stays down until an [`acquire`](Self::acquire), a
    /// [`warm_up`](Self::warm_up) or a [`rotate`](Self::rotate) succeeds. A pool that has connections tries
    /// again only while one more is wanted: after that it stays degraded, and says when connecting failed.
    ///
    /// A connect that has not failed yet is something wrong as well once it has taken a second, or
    /// [`acquire_timeout`](crate::Config::acquire_timeout) if that is shorter, while somebody waits and nothing is
    /// idle but for callers with priority: the pool is degraded then, and down if nothing is alive.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).name("orders").min_idle(1).build().await?;
    /// let status = pool.status();
    /// assert!(status.to_string().starts_with("pool orders: healthy"));
    /// let line = format!("{status:#}");
    /// assert_eq!(line, "pool orders: healthy; 0 of 10 in use, 1 idle, 0 waiting");
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        let shared = &*self.shared;
        let longest = shared.longest();
        let (metrics, signs) = (shared.metrics_with(longest.holder), shared.signs(&longest));
        let cluster = shared.cluster.as_ref().map(|which| which());
        PoolStatus::new(&signs, metrics, shared.config.clone(), cluster)
    }

    /// The settings, as the pool was built: what [`resize`](Self::resize) and
    /// [`set_interval`](crate::Maintenance::set_interval) change does not show here.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The manager.
    #[must_use]
    pub fn manager(&self) -> &M {
        &self.shared.manager
    }

    /// A handle that does not keep the pool open.
    #[must_use]
    pub fn downgrade(&self) -> WeakPool<M> {
        WeakPool { handles: Arc::downgrade(&self.handles) }
    }
}

impl<M: Manager> Clone for Pool<M> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), handles: self.handles.clone() }
    }
}

impl<M: Manager> fmt::Debug for Pool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.shared.config.name)
            .field("counts", &self.shared.core.counts())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// A handle to a pool that does not keep it open.
pub struct WeakPool<M: Manager> {
    handles: Weak<LastHandle<M>>,
}

impl<M: Manager> WeakPool<M> {
    /// The pool, unless its last handle has been dropped.
    #[must_use]
    pub fn upgrade(&self) -> Option<Pool<M>> {
        let handles = self.handles.upgrade()?;
        Some(Pool { shared: handles.0.clone(), handles })
    }
}

impl<M: Manager> Clone for WeakPool<M> {
    fn clone(&self) -> Self {
        Self { handles: self.handles.clone() }
    }
}

impl<M: Manager> fmt::Debug for WeakPool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakPool")
    }
}
