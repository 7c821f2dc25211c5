//! Runtimes for the tasks of connections, which end with them.
//!
//! The task that reads for a connection of pg-wired 0.4 waits for ever when there is nothing left to
//! read, and holds the socket. Nobody has a handle to it, but a runtime that ends drops its tasks. So
//! each runtime has room for a few connections in all, and ends when those are closed: what stays
//! behind is bounded by the connections that are open.
//!
//! Not here: anything that runs on them.

use crate::blocking::InBackground;
use std::io;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::runtime::Builder;
use tokio::task::JoinHandle;

/// The most connections that a runtime has, one after the other or at the same time.
const ROOM: usize = 16;

/// A runtime with one thread, which ends when the last connection on it does.
pub(super) type Ground = InBackground;

/// The runtime that the next connection runs on, if it is still there, and what room it has left.
#[derive(Default)]
pub(super) struct Grounds(Mutex<(Weak<Ground>, usize)>);

impl Grounds {
    /// A runtime with room for one more connection, which is taken.
    pub(super) fn next(&self) -> io::Result<Arc<Ground>> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (ground, room) = &mut *current;
        if let (Some(ground), Some(left)) = (ground.upgrade(), room.checked_sub(1)) {
            *room = left;
            return Ok(ground);
        }
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("pg-wired").enable_all().build()?;
        let new = Arc::new(Ground::new(runtime));
        *current = (Arc::downgrade(&new), ROOM - 1);
        Ok(new)
    }
}

/// A task that ends when nobody waits for it any more.
pub(super) struct Awaited<T>(pub(super) JoinHandle<T>);

impl<T> Awaited<T> {
    /// What the task has come to; `None` if its runtime has ended first.
    pub(super) async fn outcome(mut self) -> Option<T> {
        match (&mut self.0).await {
            Ok(outcome) => Some(outcome),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => None,
            },
        }
    }
}

impl<T> Drop for Awaited<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
