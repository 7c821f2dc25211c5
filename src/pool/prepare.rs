//! How a connection that was found is made fit for its caller: checked, shown to the hooks, lent.
//!
//! Not here: who gets one (`acquire.rs`), and when the reaper has one checked (`reaper.rs`).

use super::Shared;
use super::acquire::Caller;
use super::connector::Ground;
use super::guard::end;
use super::life::look_over;
use super::operation::bounded;
use crate::core::{Flags, Lease, Loan, State, Trial};
use crate::error::OperationError;
use crate::manager::Manager;
use crate::metrics::CloseReason;
use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Does what can be done without waiting with a connection that leaves the fast path, and hands it out. Otherwise
/// it is the connection that has to be checked, or for which a hook awaits something, if it was not ended.
#[inline]
pub(super) fn welcome<M, R>(lease: Lease<R>, caller: Caller) -> Result<Loan<R>, Option<Lease<R>>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    if lease.flags() == Flags::NONE && lease.keeper().hooks.before_acquire.is_none() {
        return Ok(lease.lend(caller));
    }
    welcome_slow(lease, caller)
}

#[cold]
fn welcome_slow<M, R>(lease: Lease<R>, caller: Caller) -> Result<Loan<R>, Option<Lease<R>>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let lease = look_over(lease).ok_or(None)?;
    if lease.flags().has(Flags::CHECK) || lease.keeper().hooks.before_acquire.is_some() {
        return Err(Some(lease));
    }
    lend(lease, caller).ok_or(None)
}

/// Hands a connection out, unless the hook rejects it.
pub(super) fn lend<M, R>(mut lease: Lease<R>, caller: Caller) -> Option<Loan<R>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    if lease.flags().has(Flags::GREET) {
        let shared = lease.keeper().clone();
        let uses = lease.uses();
        let new = lease.resource_mut().is_new(uses);
        if let Err(message) = shared.hooks.checkout(&lease.resource_mut().connection) {
            let error = OperationError::Panicked { message };
            shared.rejected(lease.resource_mut(), new, "on_checkout", error);
            end(lease, CloseReason::Rejected);
            return None;
        }
        if new {
            shared.connector.accepted();
        }
        if let Some(detector) = &shared.detector {
            detector.lent(lease.number(), caller);
        }
        if shared.config.time_use {
            lease.resource_mut().lent_at = shared.now();
        }
        if shared.config.trace_uses {
            let tenant = lease.resource_mut();
            tenant.span = shared.use_span(tenant.id, caller);
        }
    }
    Some(lease.lend(caller))
}

/// A connection did not pass, and has been closed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Unfit {
    Failed,
    /// It did not answer in time.
    Silent,
}

impl<E> From<&OperationError<E>> for Unfit {
    fn from(error: &OperationError<E>) -> Self {
        match error {
            OperationError::TimedOut { .. } => Self::Silent,
            OperationError::Failed(_)
            | OperationError::Panicked { .. }
            | OperationError::Lost { .. } => Self::Failed,
        }
    }
}

/// Checks a connection if it has to be, and has the hook prepare it; closes it if either fails.
///
/// # Cancel safety
///
/// As [`check`].
pub(super) async fn prepare<M, R>(mut lease: Lease<R>) -> Result<Lease<R>, Unfit>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone + Send,
{
    if lease.flags().has(Flags::CHECK) {
        lease = check(lease.begin(State::Checking)).await?;
    }
    let shared = lease.keeper().clone();
    let Some(hook) = &shared.hooks.before_acquire else { return Ok(lease) };
    let mut trial = lease.begin(State::Checking);
    let limit = shared.config.check_timeout;
    let connection = &mut trial.resource_mut().connection;
    let prepared = bounded("check_timeout", limit, async { hook(connection).await }).await;
    shared.totals.tried();
    match prepared {
        Ok(()) => Ok(trial.pass()),
        Err(error) => {
            let unfit = Unfit::from(&error);
            let uses = trial.uses();
            let new = trial.resource_mut().is_new(uses);
            shared.rejected(trial.resource_mut(), new, "before_acquire", error);
            shared.close_connection(trial.fail(), CloseReason::Rejected);
            Err(unfit)
        }
    }
}

/// As [`prepare`], for a caller who may not have the time for it. If `is_late` says that it was too
/// little, what has begun goes on in the background, and its connection stays in the pool: otherwise each
/// caller in a hurry would cost one.
pub(super) fn prepare_in_a_hurry<M, R>(
    lease: Lease<R>,
    is_late: &AtomicBool,
) -> impl Future<Output = Result<Lease<R>, Unfit>> + Send
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone + Send,
{
    let keeper = lease.keeper().clone();
    let checks = lease.flags().has(Flags::CHECK);
    let work = Box::pin(prepare(lease.with_keeper(keeper.arc())));
    let mut begun = Begun { work: Some(work), checks, is_late, pool: keeper.me.clone() };
    poll_fn(move |cx| {
        let Some(work) = &mut begun.work else { unreachable!("BUG: polled after its end") };
        let Poll::Ready(prepared) = work.as_mut().poll(cx) else { return Poll::Pending };
        begun.work = None;
        Poll::Ready(prepared.map(|lease| lease.with_keeper(keeper.clone())))
    })
}

type Preparing<M> = Pin<Box<dyn Future<Output = Result<Lease<Arc<Shared<M>>>, Unfit>> + Send>>;

/// A connection that is being prepared for a caller who may not wait for that.
struct Begun<'a, M: Manager> {
    work: Option<Preparing<M>>,
    /// It is being checked, not only shown to a hook.
    checks: bool,
    is_late: &'a AtomicBool,
    pool: Weak<Shared<M>>,
}

impl<M: Manager> Drop for Begun<'_, M> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        if !self.is_late.load(Ordering::Relaxed) {
            // The caller has gone, and what it began goes with it.
            return;
        }
        let Some(pool) = self.pool.upgrade() else { return };
        let checks = self.checks;
        // Cancel: dropping the work closes the connection.
        pool.bring_to_an_end(async move {
            if let Ok(lease) = work.await {
                give_back(lease, checks);
            }
        });
    }
}

/// Gives back a connection that was prepared for a caller who has gone. A check that it has passed is not
/// in vain: otherwise it would be flagged for the next one soon, and whoever comes seldom and waits briefly
/// would never be served.
pub(super) fn give_back<M, R>(mut lease: Lease<R>, checked: bool)
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    if checked {
        lease.keeper().clone().has_checked(&mut lease);
    }
}

/// Checks a connection; closes it if it fails.
///
/// # Cancel safety
///
/// Dropping the future closes the connection: nobody knows where the check has left it.
pub(super) async fn check<M, R>(mut trial: Trial<R>) -> Result<Lease<R>, Unfit>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone + Send,
{
    let shared = trial.keeper().clone();
    let limit = shared.config.check_timeout;
    shared.totals.check();
    // Before the check: whoever raises the flag from here on wants the next one.
    trial.lower(Flags::CHECK);
    let connection = &mut trial.resource_mut().connection;
    let check = bounded("check_timeout", limit, async { shared.manager.check(connection).await });
    let checked = check.await;
    shared.totals.tried();
    match checked {
        Ok(()) => Ok(trial.pass()),
        Err(error) => {
            shared.tell_failed(trial.resource_mut().id, "a check", &error);
            shared.doubt_idle();
            shared.close_connection(trial.fail(), CloseReason::FailedCheck);
            Err((&error).into())
        }
    }
}

/// As [`prepare`], on the pool's runtime: this thread may be unable to drive timers. A connection
/// that is ready after the deadline goes back to the pool.
pub(super) fn prepare_blocking<M, R>(
    lease: Lease<R>,
    ground: &Ground,
    deadline: Option<Instant>,
) -> Result<Lease<R>, Unfit>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let keeper = lease.keeper().clone();
    let lease = lease.with_keeper(keeper.arc());
    let checked = lease.flags().has(Flags::CHECK);
    let (report, prepared) = mpsc::sync_channel(1);
    ground.spawn(async move {
        let prepared = prepare(lease).await;
        // Whoever does not wait any more does not want it, and dropping it puts it back.
        drop(report.send(prepared.map(|lease| Prepared { lease: Some(lease), checked })));
    });
    let prepared = match deadline {
        None => prepared.recv().ok(),
        Some(deadline) => {
            prepared.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
        }
    };
    // Nothing comes of it if the deadline is first, or the runtime ends.
    let mut prepared = prepared.unwrap_or(Err(Unfit::Failed))?;
    let lease = prepared.lease.take().ok_or(Unfit::Failed)?;
    Ok(lease.with_keeper(keeper))
}

/// A connection on its way to a thread that may have given up, though it seemed to wait when this was sent.
struct Prepared<M: Manager> {
    lease: Option<Lease<Arc<Shared<M>>>>,
    checked: bool,
}

impl<M: Manager> Drop for Prepared<M> {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            give_back(lease, self.checked);
        }
    }
}

impl<M: Manager> Shared<M> {
    /// How long a check and a hook may take.
    pub(super) fn longest_preparation(&self) -> Duration {
        self.config.check_timeout.saturating_mul(2)
    }

    /// Goes on elsewhere with a check and a hook that a caller does not wait for any more, and drops them if
    /// they take too long. What bounds them so far is a timer of the caller's runtime, which nobody may
    /// drive any more; if that runtime ends meanwhile, tokio has them end with a panic, which costs the
    /// connection.
    pub(super) fn bring_to_an_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Some(ground) = self.ground_or_current() else { return };
        let longest = self.longest_preparation();
        ground.spawn(async move { drop(timeout(longest, work).await) });
    }

    /// Checks a connection on the pool's runtime; if it passes, it goes to whoever is first in
    /// line, and needs no other check until it has been used.
    pub(super) fn check_in_background<R>(&self, mut lease: Lease<R>, ground: &Ground)
    where
        R: Deref<Target = Self> + Clone,
    {
        let trial = lease.begin(State::Checking).with_keeper(self.arc());
        ground.spawn(async move {
            if let Ok(mut lease) = check(trial).await {
                lease.keeper().clone().has_checked(&mut lease);
            }
        });
    }
}
