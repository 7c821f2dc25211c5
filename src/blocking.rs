//! The pool for programs that have no runtime: it brings its own.
//!
//! One thread runs a single-threaded tokio runtime, on which connections are opened, checked, reset
//! and closed. Callers never run on it; they wait in the same line as in [`crate::Pool`].
//!
//! Not here: any difference in what the pool does.

use crate::config::{Config, Priority};
use crate::core::Counts;
use crate::error::{AcquireError, BuildError, ConfigError, TryAcquireError};
use crate::manager::Manager;
use crate::metrics::{PoolMetrics, PoolStatus};
use crate::pool::{
    ConnectionInfo, DrainReport, Holder, Pool as AsyncPool, PoolBuilder, Pooled, PooledOwned,
};
use event_listener::{Event, IntoNotification, listener};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// A pool of connections for threads, with a runtime of its own.
///
/// Made by [`PoolBuilder::build_blocking`]. A clone is another handle to the same pool. When the
/// last handle is dropped, idle connections are closed and the runtime's thread ends; that takes
/// `close_timeout` at the most.
///
/// # Examples
///
/// ```
/// use millpond::{Pool, from_fn};
/// use std::convert::Infallible;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
/// let pool = Pool::builder(manager).max_size(4).build_blocking()?;
/// let connection = pool.acquire()?;
/// assert_eq!(*connection, "hello");
/// # Ok(()) }
/// ```
pub struct Pool<M: Manager> {
    // The order of the fields is the order in which they are dropped: the last handle closes the
    // connections, then the driver waits for that.
    pool: AsyncPool<M>,
    driver: Arc<Driver>,
}

/// The thread that runs the pool's runtime.
struct Driver {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Stop {
    stopped: AtomicBool,
    event: Event,
}

impl Stop {
    fn stop(&self) {
        // Ordering: SeqCst, partner: the load after listening in `stopped`.
        self.stopped.store(true, Ordering::SeqCst);
        self.event.notify(usize::MAX.additional());
    }

    async fn stopped(&self) {
        listener!(self.event => stopped);
        if !self.stopped.load(Ordering::SeqCst) {
            stopped.await;
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // The last handle may be dropped by one of the pool's own tasks.
            if thread.thread().id() != thread::current().id() {
                // A panic of that thread has been reported, and there is nothing left to save.
                drop(thread.join());
            }
        }
    }
}

impl<M: Manager> PoolBuilder<M> {
    /// Builds the pool for a program without a runtime, and opens its first `min_idle`
    /// connections. Blocks until they are open.
    ///
    /// # Errors
    ///
    /// - [`BuildError::Config`] if a setting is out of range.
    /// - [`BuildError::Connect`] as soon as one of the connections cannot be opened.
    /// - [`BuildError::Thread`] if the system refuses a thread or what a runtime needs.
    pub fn build_blocking(self) -> Result<Pool<M>, BuildError<M::Error>> {
        let (report, built) = mpsc::channel();
        let stop = Arc::new(Stop::default());
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(BuildError::Thread)?;
        let thread = thread::Builder::new().name(self.thread_name());
        let drive = {
            let stop = stop.clone();
            move || {
                drive(&runtime, self, &stop, &report);
                // Not a drop, which would wait for blocking calls that the pool has given up.
                runtime.shutdown_background();
            }
        };
        let thread = thread.spawn(drive).map_err(BuildError::Thread)?;
        let driver = Arc::new(Driver { stop, thread: Some(thread) });
        match built.recv() {
            Ok(built) => Ok(Pool { pool: built?, driver }),
            Err(_) => Err(BuildError::Thread(io::Error::other("the pool's thread panicked"))),
        }
    }
}

/// What the pool's thread does: builds the pool, and keeps its runtime going until the end.
fn drive<M: Manager>(
    runtime: &Runtime,
    builder: PoolBuilder<M>,
    stop: &Stop,
    report: &mpsc::Sender<Result<AsyncPool<M>, BuildError<M::Error>>>,
) {
    runtime.block_on(async {
        let (built, all_closed) = match builder.build().await {
            Ok(pool) => {
                let all_closed = pool.when_all_closed();
                (Ok(pool), Some(all_closed))
            }
            Err(error) => (Err(error), None),
        };
        // The one who waits for this is gone only if it panicked.
        drop(report.send(built));
        if let Some(all_closed) = all_closed {
            stop.stopped().await;
            all_closed.await;
        }
    });
}

impl<M: Manager> Pool<M> {
    /// What answers with another handle, as long as there is one: itself, it keeps neither the pool nor
    /// its thread.
    pub(crate) fn weak(&self) -> impl Fn() -> Option<Self> + Send + Sync + use<M> {
        let (pool, driver) = (self.pool.downgrade(), Arc::downgrade(&self.driver));
        move || {
            // Should this become the last handle, it needs the thread to close what is idle.
            let driver = driver.upgrade()?;
            Some(Self { pool: pool.upgrade()?, driver })
        }
    }

    /// Acquires a connection, waiting in line for `acquire_timeout` at the most.
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::acquire_blocking`].
    #[track_caller]
    pub fn acquire(&self) -> Result<Pooled<'_, M>, AcquireError<M::Error>> {
        self.pool.acquire_blocking()
    }

    /// Acquires a connection, waiting in line for `limit` at the most.
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::acquire_blocking`].
    #[track_caller]
    pub fn acquire_timeout(
        &self,
        limit: Duration,
    ) -> Result<Pooled<'_, M>, AcquireError<M::Error>> {
        self.pool.acquire_blocking_timeout(limit)
    }

    /// Acquires a connection that is not tied to this handle's lifetime.
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::acquire_blocking`].
    #[track_caller]
    pub fn acquire_owned(&self) -> Result<PooledOwned<M>, AcquireError<M::Error>> {
        self.pool.acquire_blocking_owned()
    }

    /// Acquires a connection if one is idle and nobody waits; never waits, never opens one.
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::try_acquire`].
    #[track_caller]
    pub fn try_acquire(&self) -> Result<Pooled<'_, M>, TryAcquireError> {
        self.pool.try_acquire()
    }

    /// Closes the pool for good, as [`crate::Pool::close`] does.
    pub fn close(&self) {
        self.pool.close_blocking();
    }

    /// Acquires a connection, waiting in the line of this priority; see
    /// [`crate::Pool::acquire_with`].
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::acquire_blocking`].
    #[track_caller]
    pub fn acquire_with(
        &self,
        priority: Priority,
    ) -> Result<Pooled<'_, M>, AcquireError<M::Error>> {
        self.pool.acquire_blocking_with(priority)
    }

    /// Changes the most connections that may be alive; see [`crate::Pool::resize`].
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::resize`].
    pub fn resize(&self, max_size: usize) -> Result<(), ConfigError> {
        self.pool.resize(max_size)
    }

    /// Declares all connections out of date; see [`crate::Pool::invalidate`].
    pub fn invalidate(&self) {
        self.pool.invalidate();
    }

    /// Closes the idle connections that `keep` does not want; see [`crate::Pool::retain`].
    ///
    /// # Panics
    ///
    /// If `keep` does.
    pub fn retain(&self, keep: impl FnMut(&mut M::Connection, &ConnectionInfo) -> bool) -> usize {
        self.pool.retain(keep)
    }

    /// Who holds a connection at the moment, and where it was acquired.
    #[must_use]
    pub fn holders(&self) -> Vec<Holder> {
        self.pool.holders()
    }

    /// Closes the pool for good, and waits for the connections in use until `deadline` from now; see
    /// [`crate::Pool::drain`].
    #[must_use = "the report says who still holds a connection"]
    pub fn drain(&self, deadline: Duration) -> DrainReport {
        self.pool.drain_blocking(deadline)
    }

    /// Whether the pool is closed. `true` stays true; `false` may be out of date at once.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.pool.is_closed()
    }

    /// The places by state, and the number of waiters. Costs one pass over all slots and allocates
    /// nothing.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.pool.counts()
    }

    /// The pool's figures at this moment. Costs one pass over all slots.
    #[must_use]
    pub fn metrics(&self) -> PoolMetrics {
        self.pool.metrics()
    }

    /// How the pool is: its health, its figures and its settings.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        self.pool.status()
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.pool.config()
    }

    /// The manager.
    #[must_use]
    pub fn manager(&self) -> &M {
        self.pool.manager()
    }
}

impl<M: Manager> Clone for Pool<M> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), driver: self.driver.clone() }
    }
}

impl<M: Manager> fmt::Debug for Pool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.pool, f)
    }
}
