//! Runs one of a manager's methods, so that neither a panic nor a hang gets past it; and asks tokio what
//! runs here.
//!
//! Not here: what is done about the outcome.

use crate::error::OperationError;
use crate::panics::caught;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::coop::{RestoreOnPending, poll_proceed};
use tokio::time::{Instant, Sleep, sleep_until};

/// A limit that no clock overflows at: some 30 years.
pub(crate) const FAR_FUTURE: Duration = Duration::from_secs(1 << 30);

/// Awaits `operation` for `limit` at the most, which is that of a `setting`, and turns a panic into an error.
/// What panics while it is dropped goes no further either.
///
/// # Cancel safety
///
/// Dropping it drops `operation` where it stands; a panic of that is caught too.
#[allow(clippy::manual_async_fn, reason = "an async function has room for its arguments twice")]
pub(super) fn bounded<T, E>(
    setting: &'static str,
    limit: Duration,
    operation: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, OperationError<E>>> {
    async move {
        let operation = pin!(Some(tokio::time::timeout(limit, operation)));
        let mut operation = Contained(operation);
        let outcome = poll_fn(move |cx| {
            let poll = || operation.0.as_mut().as_pin_mut().map(|timed| timed.poll(cx));
            match caught(poll) {
                Ok(None | Some(Poll::Pending)) => Poll::Pending,
                Ok(Some(Poll::Ready(outcome))) => Poll::Ready(Ok(outcome)),
                Err(panic) => Poll::Ready(Err(panic)),
            }
        });
        match outcome.await {
            Ok(Ok(outcome)) => outcome.map_err(OperationError::Failed),
            Ok(Err(_)) => Err(OperationError::TimedOut { setting, limit }),
            Err(panic) => Err(OperationError::Panicked { message: panic.message() }),
        }
    }
}

/// What goes no further if it panics while it is dropped, wherever that is.
struct Contained<'o, T>(Pin<&'o mut Option<T>>);

impl<T> Drop for Contained<'_, T> {
    fn drop(&mut self) {
        // The panic hook has reported it; the outcome is what it is.
        drop(caught(|| self.0.set(None)));
    }
}

/// Why [`within`] has given up.
pub(super) enum Over {
    /// The time is up.
    Late,
    /// There is no runtime with a timer that would say so, or it has ended.
    NoRuntime,
}

/// Awaits `work` for `limit` at the most. It does not wait where nobody would say that the time is up, and
/// hears so if the runtime ends meanwhile, of which `tokio::time::timeout` tells by a panic. Each poll that
/// leaves it waiting costs an empty task.
///
/// # Cancel safety
///
/// Dropping it drops `work` where it stands.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Over> {
    let Ok(runtime) = Handle::try_current() else { return Err(Over::NoRuntime) };
    let timer = timer(Instant::now() + limit.min(FAR_FUTURE)).ok_or(Over::NoRuntime)?;
    let (mut timer, mut work) = (pin!(timer), pin!(work));
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if has_ended(&runtime) {
            return Poll::Ready(Err(Over::NoRuntime));
        }
        match poll_timer(timer.as_mut(), cx) {
            None => Poll::Ready(Err(Over::NoRuntime)),
            Some(over) => over.map(|()| Err(Over::Late)),
        }
    })
    .await
}

/// Awaits `work`, unless something is `heard` first. If both are there, it is the work that counts.
///
/// # Cancel safety
///
/// Dropping it drops both where they stand.
pub(super) fn unless<T, H>(
    mut work: impl Future<Output = T> + Unpin,
    mut heard: impl Future<Output = H> + Unpin,
) -> impl Future<Output = Result<T, H>> {
    poll_fn(move |cx| match Pin::new(&mut work).poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => Pin::new(&mut heard).poll(cx).map(Err),
    })
}

/// Whether this is a tokio runtime that has a timer and has not ended, without which nothing here can be
/// bounded. It costs an empty task.
pub(crate) fn has_timer() -> bool {
    // Of a timer that is missing tokio tells by nothing but a panic, which the panic hook reports, so this
    // is asked only where the pool would panic otherwise.
    Handle::try_current().is_ok_and(|runtime| !has_ended(&runtime))
        && timer(Instant::now()).is_some()
}

/// The budget that tokio gives a task for one poll.
const COOP_BUDGET: usize = 128;

/// Whether this thread is running an asynchronous task of tokio's.
///
/// A task has a budget of operations for each poll; `spawn_blocking` and plain threads have no
/// limit. So this spends the budget, sees whether it ran out, and puts it back.
pub(crate) fn runs_async_task() -> bool {
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

/// Whether this runtime has ended. A thread may be in it all the same: one of `spawn_blocking` is.
pub(super) fn has_ended(runtime: &Handle) -> bool {
    // One that has ended drops a task as it is spawned; one that goes never gets to the end of this one.
    let task = runtime.spawn(pending::<()>());
    let dropped = task.is_finished();
    task.abort();
    dropped
}

/// `None` on a runtime without a timer, of which tokio tells by a panic.
pub(crate) fn timer(deadline: Instant) -> Option<Sleep> {
    caught(|| sleep_until(deadline)).ok()
}

/// `None` on a runtime that has ended, of which tokio tells in the same way; [`has_ended`] does without, for
/// the price of a task.
pub(crate) fn poll_timer(timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Option<Poll<()>> {
    caught(|| timer.poll(cx)).ok()
}
