//! Runs one of a manager's methods, so that neither a panic nor a hang gets past it.
//!
//! Not here: what is done about the outcome.

use crate::error::OperationError;
use crate::panics::caught;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Handle;

/// Awaits `operation` for `limit` at the most, and turns a panic into an error. What panics while it
/// is dropped goes no further either.
///
/// # Cancel safety
///
/// Dropping it drops `operation` where it stands.
pub(super) async fn bounded<T, E>(
    limit: Duration,
    operation: impl Future<Output = Result<T, E>>,
) -> Result<T, OperationError<E>> {
    let mut operation = pin!(Some(tokio::time::timeout(limit, operation)));
    poll_fn(|cx| {
        let poll = || operation.as_mut().as_pin_mut().map(|timed| timed.poll(cx));
        let outcome = match caught(poll) {
            Ok(None | Some(Poll::Pending)) => return Poll::Pending,
            Ok(Some(Poll::Ready(Ok(outcome)))) => outcome.map_err(OperationError::Failed),
            Ok(Some(Poll::Ready(Err(_)))) => Err(OperationError::TimedOut { limit }),
            Err(panic) => Err(OperationError::Panicked { message: panic.message() }),
        };
        // The panic hook has reported it; the outcome is what it is.
        drop(caught(|| operation.set(None)));
        Poll::Ready(outcome)
    })
    .await
}

/// Whether this is a tokio runtime that has a timer, without which nothing here can be bounded.
pub(crate) fn has_timer() -> bool {
    // Tokio tells of a timer that is missing by nothing but a panic, which the panic hook reports, so
    // this is asked only where the pool would panic otherwise.
    Handle::try_current().is_ok() && caught(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok()
}
