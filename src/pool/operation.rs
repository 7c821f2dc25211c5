//! Runs one of a manager's methods, so that neither a panic nor a hang gets past it.
//!
//! Not here: what is done about the outcome.

use crate::error::OperationError;
use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// Awaits `operation` for `limit` at the most, and turns a panic into an error.
///
/// # Cancel safety
///
/// Dropping it drops `operation` where it stands.
pub(super) async fn bounded<T, E>(
    limit: Duration,
    operation: impl Future<Output = Result<T, E>>,
) -> Result<T, OperationError<E>> {
    let mut operation = pin!(operation);
    let caught =
        poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| operation.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(outcome)) => Poll::Ready(outcome.map_err(OperationError::Failed)),
            Err(panic) => Poll::Ready(Err(OperationError::Panicked { message: message(&*panic) })),
        });
    match tokio::time::timeout(limit, caught).await {
        Ok(outcome) => outcome,
        Err(_) => Err(OperationError::TimedOut { limit }),
    }
}

/// What a panic said.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
