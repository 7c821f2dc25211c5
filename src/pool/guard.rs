//! The guards: what a caller does with its connection, and what happens when it lets go.
//!
//! Not here: where a released connection goes (`core`).

use super::{Shared, Tenant, operation::bounded};
use crate::core::{Lease, State, Trial};
use crate::error::{OperationError, ReleaseError};
use crate::manager::{Condition, Manager};
use crate::metrics::CloseReason;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection on loan; dropping it gives it back.
///
/// When it is dropped, the manager's [`condition`](Manager::condition) decides: a clean connection
/// is at once anybody's, a dirty one is reset in the background first, a broken one is closed. A
/// guard that is dropped while its thread panics has its connection closed: nobody knows what it
/// was in the middle of.
///
/// # Cost
///
/// Dropping it needs no runtime, never blocks and never panics (P4); for a clean connection it
/// allocates nothing, and takes no lock while nobody waits (P1, P2).
pub struct Pooled<'p, M: Manager> {
    lease: Lease<&'p Shared<M>>,
}

/// A connection on loan that is not tied to the lifetime of a pool's handle; otherwise a
/// [`Pooled`].
pub struct PooledOwned<M: Manager> {
    lease: Lease<Arc<Shared<M>>>,
}

/// What a pool knows of a connection.
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
}

macro_rules! pooled {
    ($guard:ident<$($lifetime:lifetime,)? M>, $keeper:ty) => {
        impl<$($lifetime,)? M: Manager> $guard<$($lifetime,)? M> {
            #[inline]
            pub(super) fn new(lease: Lease<$keeper>) -> Self {
                Self { lease }
            }

            /// Takes the connection out of the pool for good. The pool may open another one in its
            /// place.
            #[must_use]
            pub fn detach(mut self) -> M::Connection {
                self.lease.keeper().totals.closed(CloseReason::Detached);
                self.lease.detach().connection
            }

            /// Has the connection closed rather than used again.
            pub fn discard(mut self) {
                end(&mut self.lease, CloseReason::Discarded);
            }

            /// Gives the connection back like a drop, but resets a dirty one here and now, and
            /// reports what went wrong.
            ///
            /// # Errors
            ///
            /// - [`ReleaseError::Broken`] if the manager calls the connection broken.
            /// - [`ReleaseError::Reset`] if the reset failed, panicked or took too long.
            ///
            /// In both cases the connection is closed.
            ///
            /// # Cancel safety
            ///
            /// If the future is dropped before the first poll, the connection is released as by a
            /// drop; if it is dropped during a reset, the connection is closed.
            pub async fn release(mut self) -> Result<(), ReleaseError<M::Error>> {
                release(&mut self.lease).await
            }

            /// What the pool knows of this connection. Reads the clock.
            #[must_use]
            pub fn info(&self) -> ConnectionInfo {
                let tenant = self.lease.resource();
                ConnectionInfo {
                    id: tenant.id,
                    created: tenant.created.into_std(),
                    age: tenant.created.elapsed(),
                    uses: self.lease.uses() - tenant.uses_before,
                }
            }
        }

        impl<$($lifetime,)? M: Manager> Drop for $guard<$($lifetime,)? M> {
            #[inline]
            fn drop(&mut self) {
                let_go(&mut self.lease);
            }
        }

        crate::guard::access!($guard<$($lifetime,)? M: Manager>, M::Connection, connection);
    };
}

pooled!(Pooled<'p, M>, &'p Shared<M>);
pooled!(PooledOwned<M>, Arc<Shared<M>>);

/// What the manager makes of a connection; a manager that panics calls it broken.
#[inline]
fn condition<M: Manager>(shared: &Shared<M>, tenant: &mut Tenant<M::Connection>) -> Condition {
    let ask = AssertUnwindSafe(|| shared.manager.condition(&mut tenant.connection));
    catch_unwind(ask).unwrap_or(Condition::Broken)
}

/// Decides what becomes of a connection whose guard is dropped, before its lease is dropped.
#[inline]
fn let_go<M, R>(lease: &mut Lease<R>)
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let Some((shared, tenant)) = lease.parts() else {
        return;
    };
    if std::thread::panicking() {
        return end(lease, CloseReason::HolderPanicked);
    }
    match condition(shared, tenant) {
        Condition::Clean => {
            if shared.check_always {
                lease.flag();
            }
        }
        Condition::Dirty => reset_in_background(lease),
        Condition::Broken => end(lease, CloseReason::Broken),
    }
}

/// Closes the connection of a lease, in the background.
#[cold]
fn end<M, R>(lease: &mut Lease<R>, reason: CloseReason)
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let trial = lease.begin(State::Closing);
    let shared = trial.keeper().clone();
    shared.close_connection(trial, reason);
}

#[cold]
fn reset_in_background<M, R>(lease: &mut Lease<R>)
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let shared = lease.keeper().arc();
    let Some(runtime) = shared.connector.runtime() else {
        return end(lease, CloseReason::Abandoned);
    };
    let trial = lease.begin(State::Resetting).with_keeper(shared);
    runtime.spawn(async move { drop(reset(trial).await) });
}

/// Makes a dirty connection clean; closes it if that fails.
///
/// # Cancel safety
///
/// Dropping the future closes the connection: nobody knows where the reset has left it.
async fn reset<M, R>(mut trial: Trial<R>) -> Result<Lease<R>, OperationError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let shared = trial.keeper().clone();
    let limit = shared.config.reset_timeout;
    let connection = &mut trial.resource_mut().connection;
    match bounded(limit, async { shared.manager.reset(connection).await }).await {
        Ok(()) => {
            shared.totals.reset();
            Ok(trial.pass())
        }
        Err(error) => {
            shared.close_connection(trial.fail(), CloseReason::FailedReset);
            Err(error)
        }
    }
}

async fn release<M, R>(lease: &mut Lease<R>) -> Result<(), ReleaseError<M::Error>>
where
    M: Manager,
    R: Deref<Target = Shared<M>> + Clone,
{
    let Some((shared, tenant)) = lease.parts() else {
        return Ok(());
    };
    match condition(shared, tenant) {
        Condition::Clean => Ok(()),
        Condition::Dirty => {
            let trial = lease.begin(State::Resetting);
            let fit = reset(trial).await.map_err(ReleaseError::Reset)?;
            drop(fit);
            Ok(())
        }
        Condition::Broken => {
            end(lease, CloseReason::Broken);
            Err(ReleaseError::Broken)
        }
    }
}
