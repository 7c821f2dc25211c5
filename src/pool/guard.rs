//! The guards: what a caller does with its connection, and what happens when it lets go.
//!
//! Not here: where a released connection goes (`core`).

use super::life::look_over;
use super::operation::{bounded, has_timer};
use super::{Shared, Tenant, runs_async_task, trace::no_span};
use crate::config::CheckPolicy;
use crate::core::{Doubt, Flags, Lease, Loan, State, Trial};
use crate::error::{OperationError, ReleaseError};
use crate::hooks::{AtEnd, Hooks};
use crate::manager::{Condition, Manager};
use crate::metrics::CloseReason;
use crate::panics::caught;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// A connection on loan; dropping it gives it back.
///
/// It borrows from the pool's handle; [`into_owned`](Self::into_owned) makes one that does not.
///
/// When it is dropped, the manager's [`condition`](Manager::condition) decides: a clean connection
/// is at once anybody's, an unchecked one is checked first when it is next acquired, a dirty one is
/// reset in the background, a broken one is closed. A guard that is dropped while its thread panics
/// has its connection closed: nobody knows what it was in the middle of.
///
/// # Cost
///
/// Dropping it needs no runtime, never blocks and never panics; for a clean connection it
/// allocates nothing, and takes no lock while nobody waits.
///
/// # Examples
///
/// ```
/// # use millpond::{Pool, from_fn};
/// # use std::convert::Infallible;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
/// let pool = Pool::builder(manager).max_size(1).build().await?;
/// pool.acquire().await?.discard(); // closed, not used again
/// pool.acquire().await?.release().await?; // given back; tells of errors
/// let mine: String = pool.acquire().await?.detach(); // out of the pool for good
/// assert_eq!(mine, "hello");
/// # Ok(()) }
/// ```
#[must_use = "a guard that is dropped at once gives its connection back"]
pub struct Pooled<'p, M: Manager> {
    loan: Loan<&'p Shared<M>>,
}

/// A connection on loan that is not tied to the lifetime of a pool's handle; otherwise a
/// [`Pooled`].
#[must_use = "a guard that is dropped at once gives its connection back"]
pub struct PooledOwned<M: Manager> {
    pub(super) loan: Loan<Arc<Shared<M>>>,
}

/// What a pool knows of a connection. Which node of a cluster it belongs to, its guard says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// The connection's number: 1 for the pool's first one; never used again.
    pub id: u64,
    /// When it was opened.
    pub created: Instant,
    /// How long ago that was.
    pub age: Duration,
    /// How often it has been acquired, this time included.
    pub uses: u64,
    /// Whether somebody has it.
    pub state: ConnectionState,
    /// How long it has been idle, to the resolution of `maintenance_interval`; zero for one in use.
    pub idle: Duration,
    /// When it was in use last: now, or when it became idle; `None` if it never was.
    pub last_used: Option<Instant>,
}

/// Whether somebody has a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionState {
    /// It is on loan.
    InUse,
    /// It waits for the next caller.
    Idle,
}

macro_rules! pooled {
    ($guard:ident<$($lifetime:lifetime,)? M>, $keeper:ty) => {
        impl<$($lifetime,)? M: Manager> $guard<$($lifetime,)? M> {
            #[inline]
            pub(super) fn new(loan: Loan<$keeper>) -> Self {
                Self { loan }
            }

            /// Takes the connection out of the pool for good. The pool may open another one in its
            /// place.
            #[must_use]
            pub fn detach(mut self) -> M::Connection {
                let mut lease = self.loan.recall();
                let shared = lease.keeper().clone();
                shared.comes_back(&mut lease);
                let tenant = lease.detach();
                shared.ends(&tenant, CloseReason::Detached);
                tenant.connection
            }

            /// Has the connection closed rather than used again.
            pub fn discard(mut self) {
                let lease = self.loan.recall();
                let shared = lease.keeper().clone();
                if let Some(lease) = check_in(lease, None) {
                    end(lease, CloseReason::Discarded);
                }
                shared.hooks.released();
            }

            /// Gives the connection back like a drop, but resets a dirty one here and now, and
            /// reports what went wrong. For threads, as those of a [`blocking::Pool`](crate::blocking::Pool),
            /// its twin is [`release_blocking`](Self::release_blocking).
            ///
            /// # Errors
            ///
            /// - [`ReleaseError::Rejected`] if the hook `on_checkin` panics: it is closed.
            /// - [`ReleaseError::Broken`] if the manager calls the connection broken or outdated, or it has
            ///   [said](crate::LossSignal) that it has ended: it is closed.
            /// - [`ReleaseError::Reset`] if the reset failed, panicked or took too long: it is
            ///   closed.
            /// - [`ReleaseError::NoRuntime`] if it is dirty and there is no tokio runtime with a timer
            ///   here, or it has ended: it is reset in the background, as by a drop.
            ///   [`release_blocking`](Self::release_blocking) waits for that without one.
            ///
            /// # Cancel safety
            ///
            /// If the future is dropped before the first poll, the connection is released as by a
            /// drop; if it is dropped during a reset, the connection is closed.
            pub async fn release(mut self) -> Result<(), ReleaseError<M::Error>> {
                let lease = self.loan.recall();
                let shared = lease.keeper().clone();
                let _told = AtEnd::new(&shared.hooks, Hooks::released);
                release(lease).await
            }

            /// As [`release`](Self::release), blocking the thread: for threads, and inside `spawn_blocking`. A
            /// dirty connection is reset on the pool's runtime.
            ///
            /// # Errors
            ///
            /// - [`ReleaseError::Rejected`] and [`ReleaseError::Broken`] as for `release`.
            /// - [`ReleaseError::Reset`] if the reset failed, panicked or took too long: it is closed. If that
            ///   runtime does not get to it, this ends after twice `reset_timeout`, and what comes of the
            ///   reset later nobody is told.
            /// - [`ReleaseError::NoRuntime`] if it is dirty and neither the pool nor this thread has a tokio
            ///   runtime, or the pool's ends meanwhile: it is closed.
            /// - [`ReleaseError::WouldBlock`] if it is dirty and this is an asynchronous task: it is reset in
            ///   the background, as by a drop.
            pub fn release_blocking(mut self) -> Result<(), ReleaseError<M::Error>> {
                let lease = self.loan.recall();
                let shared = lease.keeper().clone();
                let _told = AtEnd::new(&shared.hooks, Hooks::released);
                release_blocking(lease)
            }

            /// The manager that has opened this connection.
            #[must_use]
            pub fn manager(&self) -> &M {
                &self.loan.keeper().manager
            }

            /// What the pool knows of this connection. Reads the clock.
            #[must_use]
            pub fn info(&self) -> ConnectionInfo {
                self.loan.resource().info(self.loan.uses(), None)
            }
        }

        crate::guard::access!($guard<$($lifetime,)? M: Manager>, M::Connection, connection);
    };
}

pooled!(Pooled<'p, M>, &'p Shared<M>);
pooled!(PooledOwned<M>, Arc<Shared<M>>);

impl<M: Manager> Pooled<'_, M> {
    /// This guard without the tie to the handle that it was acquired by: for a task of its own, or a struct. The
    /// connection stays on loan as it is; [`Pool::acquire_owned`](crate::Pool::acquire_owned) has one so from the
    /// beginning.
    ///
    /// # Cost
    ///
    /// An `Arc` is cloned, which all threads count in one place.
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
    /// let connection = pool.acquire().await?.into_owned();
    /// let length = tokio::spawn(async move { connection.len() });
    /// assert_eq!(length.await?, 5);
    /// # Ok(()) }
    /// ```
    pub fn into_owned(mut self) -> PooledOwned<M> {
        let shared = self.loan.keeper().arc();
        PooledOwned::at_large(self.loan.with_keeper(shared))
    }
}

impl<M: Manager> PooledOwned<M> {
    /// A guard for whoever may take it anywhere: nobody knows who will hold the connection.
    pub(super) fn at_large(loan: Loan<Arc<Shared<M>>>) -> Self {
        loan.keeper().no_longer_lent(loan.number());
        Self::new(loan)
    }
}

impl<C> Tenant<C> {
    /// Whether it has said that it has ended.
    pub(super) fn is_lost(&self) -> bool {
        self.loss.as_ref().is_some_and(|loss| loss.has_been_told())
    }

    /// The doubt about one that comes back, its loss included: that ends it, unless it ends for another reason
    /// anyway.
    fn doubt_in_all(&self, doubt: Doubt) -> Doubt {
        match doubt {
            Doubt::Greeted | Doubt::Unchecked | Doubt::Dirty if self.is_lost() => Doubt::Broken,
            doubt => doubt,
        }
    }

    /// Whether nobody has used a connection in a slot that has been acquired `uses` times.
    pub(super) fn is_new(&self, uses: u64) -> bool {
        uses == self.uses_before
    }

    /// What there is to know of a connection in a slot that has been acquired `uses` times, and that has
    /// been idle for so long, unless it is in use.
    pub(super) fn info(&self, uses: u64, idle: Option<Duration>) -> ConnectionInfo {
        let age = self.created.elapsed();
        let (created, uses) = (self.created.into_std(), uses - self.uses_before);
        let state = if idle.is_some() { ConnectionState::Idle } else { ConnectionState::InUse };
        let idle = idle.unwrap_or_default();
        let last_used = (uses > 0).then(|| created + age.saturating_sub(idle));
        ConnectionInfo { id: self.id, created, age, uses, state, idle, last_used }
    }
}

impl<M: Manager> Shared<M> {
    /// What the manager makes of a connection; a manager that panics calls it broken.
    #[inline]
    fn condition(&self, tenant: &mut Tenant<M::Connection>) -> Condition {
        caught(|| self.manager.condition(&mut tenant.connection)).unwrap_or(Condition::Broken)
    }

    /// A connection is no longer in the hands of its caller.
    fn comes_back<R: Deref<Target = Self>>(&self, lease: &mut Lease<R>) {
        self.no_longer_lent(lease.number());
        if self.config.time_use {
            let lent_at = lease.resource_mut().lent_at;
            self.totals.used(self.now().saturating_sub(lent_at));
        }
        if self.config.trace_uses {
            lease.resource_mut().span = no_span();
        }
    }

    /// The detector of deadlocks is to forget who holds the connection of this slot.
    pub(super) fn no_longer_lent(&self, slot: usize) {
        if let Some(detector) = &self.detector {
            detector.returned(slot);
        }
    }

    /// Has a connection that comes back checked before its next use, if every use is to be.
    fn distrust<R: Deref<Target = Self>>(&self, lease: &Lease<R>) {
        if self.config.check == CheckPolicy::Always {
            lease.raise(Flags::CHECK);
        }
    }

    /// Whether a connection that comes back is anything but clean.
    #[inline]
    pub(super) fn doubt_about(&self, tenant: &mut Tenant<M::Connection>) -> Option<Doubt> {
        if std::thread::panicking() {
            return Some(Doubt::Interrupted);
        }
        match self.condition(tenant) {
            Condition::Clean if self.attentive => Some(Doubt::Greeted),
            Condition::Clean => None,
            Condition::Unchecked => Some(Doubt::Unchecked),
            Condition::Dirty => Some(Doubt::Dirty),
            Condition::Broken => Some(Doubt::Broken),
            Condition::Outdated => Some(Doubt::Outdated),
        }
    }
}

/// Does what a doubt asks for.
#[cold]
pub(super) fn settle<M, R>(mut lease: Lease<R>, doubt: Doubt)
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    if doubt == Doubt::Flagged {
        // Nobody gives it back now: a release has found the flag.
        return drop(look_over(lease));
    }
    let shared = lease.keeper().clone();
    let doubt = lease.resource_mut().doubt_in_all(doubt);
    if let Some(lease) = check_in(lease, Some(doubt)) {
        // A drop tells nobody.
        drop(act_on(lease, doubt));
    }
    shared.hooks.released();
}

/// Has the hook see a connection that comes back. A connection whose hook panics is closed, and what the
/// doubt about it says of the others holds all the same.
fn check_in<M, R>(mut lease: Lease<R>, doubt: Option<Doubt>) -> Option<Lease<R>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let shared = lease.keeper().clone();
    shared.comes_back(&mut lease);
    let Err(message) = shared.hooks.checkin(&lease.resource_mut().connection) else {
        return Some(lease);
    };
    let error = OperationError::Panicked { message };
    shared.tell_failed(lease.resource_mut().id, "on_checkin", &error);
    end_in_doubt(lease, doubt, CloseReason::Rejected);
    None
}

/// Does what the doubt about a connection that was in use asks for. An error says that it is of no use any more.
fn act_on<M, R>(lease: Lease<R>, doubt: Doubt) -> Result<(), ReleaseError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    match doubt {
        Doubt::Greeted => lease.keeper().distrust(&lease),
        Doubt::Unchecked => lease.raise(Flags::CHECK),
        Doubt::Dirty => reset_in_background(lease, drop),
        Doubt::Broken => end_in_doubt(lease, Some(doubt), CloseReason::Broken),
        Doubt::Outdated => end_in_doubt(lease, Some(doubt), CloseReason::Invalidated),
        Doubt::Interrupted => end(lease, CloseReason::HolderPanicked),
        // `settle` has looked it over, and no connection that comes back is in that doubt.
        Doubt::Flagged => unreachable!("BUG: a flag was taken for what a caller leaves behind"),
    }
    match doubt {
        Doubt::Broken | Doubt::Outdated => Err(ReleaseError::Broken),
        _ => Ok(()),
    }
}

/// Closes the connection of a lease. If it is broken, those that are idle are checked; if it is outdated, all
/// that are as old are closed.
fn end_in_doubt<M, R>(mut lease: Lease<R>, doubt: Option<Doubt>, reason: CloseReason)
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let shared = lease.keeper().clone();
    let (connection, generation) = (lease.resource_mut().id, lease.resource_mut().generation);
    end(lease, reason);
    match doubt {
        Some(Doubt::Broken) => shared.doubt_idle(),
        Some(Doubt::Outdated) => shared.outdate(connection, generation),
        _ => {}
    }
}

/// Closes the connection of a lease, in the background.
pub(super) fn end<M, R>(mut lease: Lease<R>, reason: CloseReason)
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let trial = lease.begin(State::Closing);
    let shared = trial.keeper().clone();
    shared.close_connection(trial, reason);
}

/// Has a dirty connection reset on the pool's runtime, and `tell` told what came of it; drops `tell` if there
/// is no runtime, or it ends before that.
fn reset_in_background<M, R>(
    mut lease: Lease<R>,
    tell: impl FnOnce(Result<(), ReleaseError<M::Error>>) + Send + 'static,
) where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let shared = lease.keeper().arc();
    let Some(ground) = shared.ground_or_current() else {
        return end(lease, CloseReason::Abandoned);
    };
    let trial = lease.begin(State::Resetting).with_keeper(shared);
    ground.spawn(async move { tell(reset(trial).await) });
}

/// Makes a dirty connection clean; closes it if that fails, or if it turns out to be of no use.
///
/// # Cancel safety
///
/// Dropping the future closes the connection: nobody knows where the reset has left it.
async fn reset<M, R>(mut trial: Trial<R>) -> Result<(), ReleaseError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let shared = trial.keeper().clone();
    let limit = shared.config.reset_timeout;
    let connection = &mut trial.resource_mut().connection;
    match bounded("reset_timeout", limit, async { shared.manager.reset(connection).await }).await {
        Ok(()) => {
            shared.totals.reset();
            let tenant = trial.resource_mut();
            let doubt = match shared.condition(tenant) {
                // A manager may call all that come back dirty.
                Condition::Clean | Condition::Dirty => Doubt::Greeted,
                Condition::Unchecked => Doubt::Unchecked,
                Condition::Broken => Doubt::Broken,
                Condition::Outdated => Doubt::Outdated,
            };
            let doubt = tenant.doubt_in_all(doubt);
            act_on(trial.pass(), doubt)
        }
        Err(error) => {
            shared.tell_failed(trial.resource_mut().id, "a reset", &error);
            shared.doubt_idle();
            shared.close_connection(trial.fail(), CloseReason::FailedReset);
            Err(ReleaseError::Reset(error))
        }
    }
}

async fn release<M, R>(lease: Lease<R>) -> Result<(), ReleaseError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let Some(mut dirty) = hand_in(lease)? else { return Ok(()) };
    if !has_timer() {
        reset_in_background(dirty, drop);
        return Err(ReleaseError::NoRuntime);
    }
    reset(dirty.begin(State::Resetting)).await
}

/// As [`release`], on the pool's runtime: this thread may be unable to drive timers.
fn release_blocking<M, R>(lease: Lease<R>) -> Result<(), ReleaseError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let Some(dirty) = hand_in(lease)? else { return Ok(()) };
    if runs_async_task() {
        reset_in_background(dirty, drop);
        return Err(ReleaseError::WouldBlock);
    }
    let (setting, limit) = ("reset_timeout", dirty.keeper().config.reset_timeout);
    let (report, outcome) = mpsc::sync_channel(1);
    // Whoever does not wait any more does not want it.
    reset_in_background(dirty, move |outcome| drop(report.send(outcome)));
    // The reset keeps to its limit by itself, unless nobody drives the runtime.
    match outcome.recv_timeout(limit.saturating_mul(2)) {
        Ok(outcome) => outcome,
        Err(RecvTimeoutError::Timeout) => {
            Err(ReleaseError::Reset(OperationError::TimedOut { setting, limit }))
        }
        Err(RecvTimeoutError::Disconnected) => Err(ReleaseError::NoRuntime),
    }
}

/// Does what a release does without waiting. A connection that is left is dirty, and to be reset.
fn hand_in<M, R>(mut lease: Lease<R>) -> Result<Option<Lease<R>>, ReleaseError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let shared = lease.keeper().clone();
    let tenant = lease.resource_mut();
    let doubt = shared.doubt_about(tenant).unwrap_or(Doubt::Greeted);
    let doubt = tenant.doubt_in_all(doubt);
    let Some(lease) = check_in(lease, Some(doubt)) else { return Err(ReleaseError::Rejected) };
    if doubt == Doubt::Dirty {
        return Ok(Some(lease));
    }
    act_on(lease, doubt).map(|()| None)
}
