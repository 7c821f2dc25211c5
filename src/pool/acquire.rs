//! How a caller gets a connection: at once, or in line until its deadline.
//!
//! Not here: who is next in line (`core`), and how connections are opened (`connector.rs`).

use super::{Shared, operation::bounded};
use crate::core::{
    Found, Keeper, Lease, Loan, State, Trial, Woken, try_acquire as look, wait, wait_blocking,
};
use crate::error::{AcquireError, Stage, Timeout, TryAcquireError};
use crate::manager::Manager;
use crate::metrics::CloseReason;
use std::ops::Deref;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task;
use tokio::task::coop::{RestoreOnPending, poll_proceed};

type Caller = &'static Location<'static>;

/// What a look at the shelves did not settle: checks what it found, or waits in line, for
/// `acquire_timeout` unless there is a limit.
#[cold]
pub(super) async fn acquire_slow<M, R>(
    keeper: R,
    caller: Caller,
    limit: Option<Duration>,
    found: Found<R>,
) -> Result<Loan<R>, AcquireError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone + Send,
{
    let limit = limit.unwrap_or(keeper.config.acquire_timeout);
    let found = match found {
        Found::Ready(loan) => return Ok(loan),
        Found::Flagged(lease) => Some(lease),
        Found::Nothing => None,
    };
    if keeper.core.is_closed() {
        return Err(AcquireError::Closed);
    }
    // The second question takes a reference to the runtime that all its threads share, so it is
    // asked only outside tasks.
    if task::try_id().is_none() && Handle::try_current().is_err() {
        return Err(AcquireError::NoRuntime);
    }
    let checking = AtomicBool::new(false);
    let obtain = obtain(&keeper, caller, found, &checking);
    if limit == Duration::MAX {
        return obtain.await;
    }
    let began = tokio::time::Instant::now();
    // Cancel: `obtain` is dropped at the deadline as it would be by its caller.
    match tokio::time::timeout_at(began + limit.min(FAR_FUTURE), obtain).await {
        Ok(obtained) => obtained,
        Err(_) => Err(keeper.timed_out(began.elapsed(), checking.into_inner())),
    }
}

/// A limit that no clock overflows at: some 30 years.
const FAR_FUTURE: Duration = Duration::from_secs(1 << 30);

/// Waits in line, and checks what arrives, until something is fit for use.
async fn obtain<M, R>(
    keeper: &R,
    caller: Caller,
    mut found: Option<Lease<R>>,
    checking: &AtomicBool,
) -> Result<Loan<R>, AcquireError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone + Send,
{
    loop {
        let mut lease = match found.take() {
            Some(lease) => lease,
            None => {
                let verdicts = keeper.connector.verdicts();
                match wait(keeper).await {
                    Woken::Lease(lease) => lease,
                    // Vacant slots are the connector's; dropping this one tells it.
                    Woken::Vacant(_) | Woken::LookAgain => {
                        keeper.why_woken(verdicts)?;
                        continue;
                    }
                }
            }
        };
        if lease.is_flagged() {
            checking.store(true, Ordering::Relaxed);
            let checked = check(lease.begin(State::Checking)).await;
            checking.store(false, Ordering::Relaxed);
            match checked {
                Some(fit) => lease = fit,
                None => continue,
            }
        }
        return Ok(lease.lend(caller));
    }
}

/// Checks a connection; closes it if it fails.
///
/// # Cancel safety
///
/// Dropping the future closes the connection: nobody knows where the check has left it.
async fn check<M, R>(mut trial: Trial<R>) -> Option<Lease<R>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone + Send,
{
    let shared = trial.keeper().clone();
    let limit = shared.config.check_timeout;
    let connection = &mut trial.resource_mut().connection;
    match bounded(limit, async { shared.manager.check(connection).await }).await {
        Ok(()) => Some(trial.pass()),
        Err(_) => {
            shared.close_connection(trial.fail(), CloseReason::FailedCheck);
            None
        }
    }
}

/// A connection that is ready at once.
#[inline]
pub(super) fn try_acquire<M: Manager>(
    shared: &Shared<M>,
    caller: Caller,
) -> Result<Loan<&Shared<M>>, TryAcquireError> {
    match look(&shared, caller) {
        Found::Ready(loan) => Ok(loan),
        Found::Flagged(lease) => {
            shared.check_in_background(lease);
            Err(TryAcquireError::Empty)
        }
        Found::Nothing if shared.core.is_closed() => Err(TryAcquireError::Closed),
        Found::Nothing => Err(TryAcquireError::Empty),
    }
}

/// As [`acquire_slow`], blocking the thread.
#[cold]
pub(super) fn acquire_blocking_slow<M, R>(
    keeper: &R,
    caller: Caller,
    limit: Option<Duration>,
    found: Found<R>,
) -> Result<Loan<R>, AcquireError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let limit = limit.unwrap_or(keeper.config.acquire_timeout);
    let mut found = match found {
        Found::Ready(loan) => return Ok(loan),
        Found::Flagged(lease) => Some(lease),
        Found::Nothing => None,
    };
    if keeper.core.is_closed() {
        return Err(AcquireError::Closed);
    }
    if runs_async_task() {
        return Err(AcquireError::WouldBlock);
    }
    let began = Instant::now();
    // A limit too far away for the clock is no limit.
    let deadline = began.checked_add(limit);
    loop {
        let verdicts = keeper.connector.verdicts();
        if keeper.core.has_vacant() && keeper.ground_or_current().is_none() {
            return Err(keeper.give_up(AcquireError::NoRuntime));
        }
        let woken = match found.take() {
            Some(lease) => Woken::Lease(lease),
            None => wait_blocking(keeper, deadline),
        };
        match woken {
            // This thread may be unable to drive a check's timers, so the pool's runtime does it,
            // and what passes comes back through the line.
            Woken::Lease(lease) if lease.is_flagged() => keeper.check_in_background(lease),
            Woken::Lease(lease) => return Ok(lease.lend(caller)),
            Woken::Vacant(_) | Woken::LookAgain => keeper.why_woken(verdicts)?,
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(keeper.give_up(keeper.timed_out(began.elapsed(), false)));
        }
    }
}

/// The budget that tokio gives a task for one poll.
const COOP_BUDGET: usize = 128;

/// Whether this thread is running an asynchronous task of tokio's.
///
/// A task has a budget of operations for each poll; `spawn_blocking` and plain threads have no
/// limit. So this spends the budget, sees whether it ran out, and puts it back.
fn runs_async_task() -> bool {
    if Handle::try_current().is_err() {
        return false;
    }
    let mut cx = Context::from_waker(Waker::noop());
    let mut spent: [Option<RestoreOnPending>; COOP_BUDGET + 1] = [const { None }; COOP_BUDGET + 1];
    let limited = spent.iter_mut().any(|unit| match poll_proceed(&mut cx) {
        Poll::Ready(restore) => {
            *unit = Some(restore);
            false
        }
        Poll::Pending => true,
    });
    // Each unit restores the budget to what it was before it: the first must be the last to go.
    for unit in spent.iter_mut().rev() {
        *unit = None;
    }
    limited
}

impl<M: Manager> Shared<M> {
    /// A waiter was woken without a connection: because the pool was closed, because of a verdict
    /// since there were `verdicts`, or for nothing that concerns it.
    fn why_woken(&self, verdicts: u64) -> Result<(), AcquireError<M::Error>> {
        if self.core.is_closed() {
            return Err(AcquireError::Closed);
        }
        match self.connector.verdict_since(verdicts) {
            Some(error) => Err(self.give_up(AcquireError::Connect(error))),
            None => Ok(()),
        }
    }

    /// A waiter that may have been told to look again leaves without doing so: whoever is next in
    /// line must hear of it (I7).
    fn give_up(&self, error: AcquireError<M::Error>) -> AcquireError<M::Error> {
        self.vacancy();
        error
    }

    fn timed_out(&self, waited: Duration, checking: bool) -> AcquireError<M::Error> {
        self.totals.timed_out();
        let counts = self.core.counts();
        let last_connect_error = self.connector.last_error();
        let stage = if checking {
            Stage::Checking
        } else if last_connect_error.is_some() {
            Stage::ConnectFailing
        } else if counts.connecting > 0 {
            Stage::Connecting
        } else {
            Stage::Queued
        };
        let pool = self.config.name.clone();
        AcquireError::Timeout(Box::new(Timeout { pool, waited, stage, counts, last_connect_error }))
    }

    /// Checks a connection on the pool's runtime; if it passes, it goes to whoever is first in
    /// line, and needs no other check until it has been used.
    fn check_in_background<R>(&self, mut lease: Lease<R>)
    where
        R: Deref<Target = Self> + Clone,
    {
        let trial = lease.begin(State::Checking).with_keeper(self.arc());
        match self.ground_or_current() {
            Some(ground) => ground.spawn(async move { drop(check(trial).await) }),
            // Dropping the trial closes the connection: nobody can check it.
            None => drop(trial),
        }
    }
}
