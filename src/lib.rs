//! A connection and object pool.

#![forbid(unsafe_code)]
// Loom: `model` lays the core open, whose accessors speak for themselves.
#![cfg_attr(loom, allow(missing_docs))]

mod core;
mod error;
mod guard;
mod object;
mod sync;

#[cfg(feature = "tokio")]
pub mod blocking;
#[cfg(feature = "tokio")]
mod config;
#[cfg(feature = "tokio")]
mod manager;
#[cfg(feature = "tokio")]
mod metrics;
#[cfg(feature = "tokio")]
mod pool;

pub use crate::core::{Counts, IdleOrder};
pub use crate::error::{AcquireObjectError, AddError, ConfigError, TryAcquireError};
pub use crate::object::{Object, ObjectPool, ObjectPoolBuilder, OwnedObject};

#[cfg(feature = "tokio")]
pub use crate::config::{CheckPolicy, Config};
#[cfg(feature = "tokio")]
pub use crate::error::{AcquireError, BuildError, OperationError, ReleaseError, Stage, Timeout};
#[cfg(feature = "tokio")]
pub use crate::manager::{Condition, FromFn, Manager, from_fn};
#[cfg(feature = "tokio")]
pub use crate::metrics::{Closed, PoolMetrics};
#[cfg(feature = "tokio")]
pub use crate::pool::{ConnectionInfo, Pool, PoolBuilder, Pooled, PooledOwned, WeakPool};

/// What the models in `loom-tests` need of the core, beyond the public surface.
#[cfg(loom)]
#[doc(hidden)]
pub mod model {
    pub use crate::core::{
        Core, Found, Keeper, Lease, Reservation, State, Trial, reserve, sweep, try_acquire, wait,
        wait_blocking,
    };
    pub use crate::sync::set_home;
}
