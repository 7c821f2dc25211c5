//! The pool for programs that have no runtime: it brings its own.
//!
//! One thread runs a single-threaded tokio runtime, on which connections are opened, checked, reset
//! and closed. Callers never run on it; they wait in the same line as in [`crate::Pool`].
//!
//! Not here: any difference in what the pool does.

use crate::config::{AcquireOptions, Config};
use crate::core::Counts;
use crate::error::{
    AcquireError, BuildError, ConfigError, RotateError, TryAcquireError, WarmUpError,
};
use crate::hooks::HookFuture;
use crate::manager::Manager;
use crate::metrics::{PoolMetrics, PoolStatus};
use crate::pool::{
    ConnectionInfo, DrainReport, Holder, Maintenance as AsyncMaintenance, Pool as AsyncPool,
    PoolBuilder, Pooled, PooledOwned, WeakPool as AsyncWeakPool, runs_async_task,
};
use event_listener::{Event, IntoNotification, listener};
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Deref;
use std::pin::pin;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};

/// A pool of connections for threads, with a runtime of its own.
///
/// Made by [`PoolBuilder::build_blocking`]. A clone is another handle to the same pool. When the
/// last handle is dropped, idle connections are closed; that takes `close_timeout` at the most, unless a
/// close or the drop of a connection blocks: then it takes as long as all of those do. Inside an asynchronous task,
/// whose thread others may need, and on the runtime's own it begins that and does not wait. The
/// runtime's thread ends then, or once those are closed that are still in use, with an
/// [owned guard](Self::acquire_owned): drivers work on that runtime. It does not wait for what was
/// [detached](crate::Pooled::detach): such a connection is of use while the pool is.
///
/// It is [`UnwindSafe`](std::panic::UnwindSafe) as [`crate::Pool`] is, and guards are those of that. To hear whether giving a connection back worked, there is
/// [`release_blocking`](Pooled::release_blocking).
///
/// The callers may block, the [`Manager`] must not: its asynchronous methods run on that one thread, and
/// one that blocks keeps every connection from being opened, checked, reset or closed, for longer than its
/// time limit allows. See [what must not block](Manager#what-must-not-block); for managers that do, as those
/// of r2d2, there is `compat::r2d2::Adapter`, with the feature `r2d2`.
///
/// Most hooks run on that thread, too. One that calls back into the pool is never kept waiting there, or
/// nothing would go on that it could wait for: what would wait fails with an error `WouldBlock`, and
/// [`close`](Self::close) and [`drain`](Self::drain) begin their work and return.
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
    runtime: Handle,
    thread: Option<JoinHandle<()>>,
    /// Says that the thread goes on, for the sake of connections that are in use.
    goes_on: Mutex<mpsc::Receiver<()>>,
    /// Whose thread it is.
    process: u32,
}

impl Driver {
    /// Whether this is the thread.
    fn is_here(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| thread.thread().id() == thread::current().id())
    }

    /// Whether whoever waits here may wait for good: the thread runs the tasks that it waits for, or
    /// others' tasks; or it is one of a process that was forked off, and nobody runs any.
    fn must_not_wait(&self) -> bool {
        self.is_here() || runs_async_task() || self.is_elsewhere()
    }

    /// Whether the thread is that of another process.
    fn is_elsewhere(&self) -> bool {
        self.process != process::id()
    }

    /// Runs a future on this thread, with timers and connections on the runtime.
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _runtime = self.runtime.enter();
        let (alarm, waker) = Alarm::new();
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            alarm.wait();
        }
    }
}

/// Wakes a thread. It keeps in mind that it has, since what is polled may park the thread as well.
struct Alarm {
    thread: Thread,
    rang: AtomicBool,
}

impl Alarm {
    fn new() -> (Arc<Self>, Waker) {
        let alarm = Arc::new(Self { thread: thread::current(), rang: AtomicBool::new(false) });
        (alarm.clone(), alarm.into())
    }

    fn wait(&self) {
        // Ordering: SeqCst, partner: the store in `wake`, after which whatever was done before it is
        // there for the next poll.
        while !self.rang.swap(false, Ordering::SeqCst) {
            thread::park();
        }
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.rang.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
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
        if self.is_elsewhere() {
            // The process was forked off from the one that has the thread: it would be waited for in vain, and a
            // lock that it held at that moment is never released here. Nor is its handle of any use.
            Box::leak(Box::new(self.thread.take()));
            return;
        }
        self.stop.stop();
        // The last handle may be dropped by one of the pool's own tasks, or by one that works on a connection.
        let must_not_wait = self.must_not_wait();
        if let Some(thread) = self.thread.take().filter(|_| !must_not_wait) {
            let goes_on = self.goes_on.get_mut().unwrap_or_else(PoisonError::into_inner);
            if goes_on.recv().is_err() {
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
    /// If the process is to fork, build it after that, in each child. The copy that a child has of a pool comes
    /// without its thread: it opens, checks and closes nothing, refuses to warm up or to rotate, and all that can be
    /// done with it is to drop it, which waits for nothing there.
    ///
    /// # Errors
    ///
    /// - [`BuildError::Config`] if a setting is out of range.
    /// - [`BuildError::Connect`] as soon as one of the connections cannot be opened, and those that
    ///   could are closed.
    /// - [`BuildError::Thread`] if the system refuses a thread or what a runtime needs.
    pub fn build_blocking(self) -> Result<Pool<M>, BuildError<M::Error>> {
        let (report, built) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let stop = Arc::new(Stop::default());
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = InBackground::new(runtime.map_err(BuildError::Thread)?);
        let handle = runtime.handle().clone();
        let thread = thread::Builder::new().name(self.thread_name());
        let drive = {
            let stop = stop.clone();
            move || {
                drive(&runtime, self, &stop, &report, go_on);
            }
        };
        let thread = thread.spawn(drive).map_err(BuildError::Thread)?;
        let (thread, goes_on) = (Some(thread), Mutex::new(goes_on));
        let process = process::id();
        let driver = Arc::new(Driver { stop, runtime: handle, thread, goes_on, process });
        match built.recv() {
            Ok(built) => Ok(Pool { pool: built?, driver }),
            Err(_) => Err(BuildError::Thread(io::Error::other("the pool's thread panicked"))),
        }
    }
}

/// A runtime that does not wait at its end for blocking calls, which have been given up by then; and which may end
/// inside another one, as where the system refuses a thread for it.
pub(crate) struct InBackground(Option<Runtime>);

impl InBackground {
    pub(crate) fn new(runtime: Runtime) -> Self {
        Self(Some(runtime))
    }
}

impl Deref for InBackground {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.0.as_ref().expect("BUG: it has ended")
    }
}

impl Drop for InBackground {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Its drop would wait, which is forbidden inside tasks.
            runtime.shutdown_background();
        }
    }
}

/// What the pool's thread does: builds the pool, and keeps its runtime going until the end.
fn drive<M: Manager>(
    runtime: &Runtime,
    builder: PoolBuilder<M>,
    stop: &Stop,
    report: &mpsc::Sender<Result<AsyncPool<M>, BuildError<M::Error>>>,
    go_on: mpsc::Sender<()>,
) {
    let ending = runtime.block_on(async {
        let (built, ending) = match builder.build_or_close().await {
            Ok(pool) => {
                let ending = pool.without_handle().clone();
                (Ok(pool), Some(ending))
            }
            Err(error) => (Err(error), None),
        };
        // The one who waits for this is gone only if it panicked.
        drop(report.send(built));
        if let Some(ending) = &ending {
            stop.stopped().await;
            ending.all_closed().await;
            if ending.is_held_up() {
                // The last handle is not to wait for those who hold connections. It need not be waiting.
                let _ = go_on.send(());
                ending.not_held_up().await;
                ending.all_closed().await;
            }
        }
        ending
    });
    // Not in there, where nothing waits: a manager may have the last handle of another such pool.
    let _inside = runtime.enter();
    drop(ending);
}

impl<M: Manager> Pool<M> {
    /// A handle to a pool that may have ended since its thread was asked for.
    fn upgraded(driver: Arc<Driver>, pool: Option<AsyncPool<M>>) -> Option<Self> {
        // Whoever comes too late may be the last to let go of the thread.
        let mut driver = Unawaited(Some(driver));
        Some(Self { pool: pool?, driver: driver.0.take()? })
    }

    /// What answers with a handle to look at the pool by, as long as there is another: itself, it keeps
    /// neither the pool nor its thread.
    pub(crate) fn weak(&self) -> impl Fn() -> Option<Look<M>> + Send + Sync + use<M> {
        let (pool, driver) = (self.pool.downgrade(), Arc::downgrade(&self.driver));
        move || {
            // Should this become the last handle, it needs the thread to close what is idle.
            let driver = Unawaited(Some(driver.upgrade()?));
            Some(Look { pool: pool.upgrade()?, _driver: driver })
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

    /// Acquires a connection, waiting in line for `limit` at the most; zero is that of
    /// [`crate::Pool::acquire_timeout`].
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

    /// Acquires a connection that is not tied to this handle's lifetime, waiting in line for `limit`
    /// at the most.
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::acquire_blocking`].
    #[track_caller]
    pub fn acquire_owned_timeout(
        &self,
        limit: Duration,
    ) -> Result<PooledOwned<M>, AcquireError<M::Error>> {
        self.pool.acquire_blocking_owned_timeout(limit)
    }

    /// Acquires a connection, waiting in the line of a [`Priority`](crate::Priority), or as these options
    /// say; see [`crate::Pool::acquire_with`].
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::acquire_blocking`].
    #[track_caller]
    pub fn acquire_with(
        &self,
        options: impl Into<AcquireOptions>,
    ) -> Result<Pooled<'_, M>, AcquireError<M::Error>> {
        self.pool.acquire_blocking_with(options)
    }

    /// The same for a connection that is not tied to this handle's lifetime.
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::acquire_blocking`].
    #[track_caller]
    pub fn acquire_owned_with(
        &self,
        options: impl Into<AcquireOptions>,
    ) -> Result<PooledOwned<M>, AcquireError<M::Error>> {
        self.pool.acquire_blocking_owned_with(options)
    }

    /// Acquires a connection if one is idle and nobody waits; never waits, never opens one. It finds none beside
    /// the hook [`before_acquire`](crate::Hooks::before_acquire); see [`crate::Pool::try_acquire`].
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::try_acquire`].
    #[track_caller]
    pub fn try_acquire(&self) -> Result<Pooled<'_, M>, TryAcquireError> {
        self.pool.try_acquire()
    }

    /// As [`try_acquire`](Self::try_acquire), for a connection that is not tied to this handle's
    /// lifetime.
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::try_acquire`].
    #[track_caller]
    pub fn try_acquire_owned(&self) -> Result<PooledOwned<M>, TryAcquireError> {
        self.pool.try_acquire_owned()
    }

    /// Closes the pool for good, as [`crate::Pool::close`] does. Called on the pool's own thread, by a
    /// hook, or inside an asynchronous task, it begins to close what is idle and returns.
    pub fn close(&self) {
        if self.driver.must_not_wait() {
            self.pool.shut();
        } else {
            self.pool.close_blocking();
        }
    }

    /// Closes the pool, and waits for nothing.
    #[cfg(feature = "sqlite")]
    pub(crate) fn shut(&self) {
        self.pool.shut();
    }

    /// The most connections that may be alive or being opened at the moment; see
    /// [`crate::Pool::max_size`].
    #[must_use]
    pub fn max_size(&self) -> usize {
        self.pool.max_size()
    }

    /// Changes the most connections that may be alive; see [`crate::Pool::resize`].
    ///
    /// # Errors
    ///
    /// As [`crate::Pool::resize`].
    pub fn resize(&self, max_size: usize) -> Result<(), ConfigError> {
        self.pool.resize(max_size)
    }

    /// Opens connections until `count` are open, in use or not, and returns when they are; see
    /// [`crate::Pool::warm_up`].
    ///
    /// # Errors
    ///
    /// - [`WarmUpError::TooMany`], [`WarmUpError::Connect`] and [`WarmUpError::Closed`] as for
    ///   [`crate::Pool::warm_up`].
    /// - [`WarmUpError::WouldBlock`] inside an asynchronous task, and on the pool's own thread.
    /// - [`WarmUpError::NoRuntime`] in a process that was forked off from the one that has the pool's thread.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).build_blocking()?;
    /// pool.warm_up(pool.max_size())?;
    /// assert_eq!(pool.counts().idle, 10);
    /// # Ok(()) }
    /// ```
    pub fn warm_up(&self, count: usize) -> Result<(), WarmUpError<M::Error>> {
        if self.driver.is_elsewhere() {
            return Err(WarmUpError::NoRuntime);
        }
        if self.driver.must_not_wait() {
            return Err(WarmUpError::WouldBlock);
        }
        self.driver.block_on(self.pool.warm_up(count))
    }

    /// Declares all connections out of date; see [`crate::Pool::invalidate`].
    pub fn invalidate(&self) {
        self.pool.invalidate();
    }

    /// Goes over to new credentials or another endpoint: opens one connection, has `verify` try it,
    /// and only if that goes well invalidates all others; see [`crate::Pool::rotate`]. `verify` is
    /// asynchronous, so that `check_timeout` can end it; it runs on this thread, with the pool's runtime for
    /// whatever it waits for. The connection is opened on the pool's own thread, like any other.
    ///
    /// # Errors
    ///
    /// - [`RotateError::Connect`], [`RotateError::Verify`], [`RotateError::NoRoom`] and
    ///   [`RotateError::Closed`] as for [`crate::Pool::rotate`].
    /// - [`RotateError::WouldBlock`] inside an asynchronous task, and on the pool's own thread.
    /// - [`RotateError::NoRuntime`] in a process that was forked off from the one that has the pool's thread.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).min_idle(2).build_blocking()?;
    /// pool.rotate(|connection| {
    ///     Box::pin(async move {
    ///         assert_eq!(connection, "hello"); // such as `SELECT current_user`
    ///         Ok(())
    ///     })
    /// })?;
    /// assert_eq!(pool.metrics().closed.invalidated, 2);
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn rotate<F>(&self, verify: F) -> Result<(), RotateError<M::Error>>
    where
        F: for<'c> FnOnce(&'c mut M::Connection) -> HookFuture<'c, M::Error> + Send,
    {
        let rotate = self.pool.rotate(verify);
        if self.driver.is_elsewhere() {
            return Err(RotateError::NoRuntime);
        }
        if self.driver.must_not_wait() {
            return Err(RotateError::WouldBlock);
        }
        self.driver.block_on(rotate)
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

    /// Closes the pool for good, and waits for the connections in use, for `limit` at the most; see
    /// [`crate::Pool::drain`]. Called on the pool's own thread, by a hook, or inside an asynchronous task, which may
    /// keep those from running that hold them, it waits for none of them.
    pub fn drain(&self, limit: Duration) -> DrainReport {
        self.pool.drain_blocking(if self.driver.must_not_wait() { Duration::ZERO } else { limit })
    }

    /// Pauses, resumes or runs what the pool does by the clock; see [`crate::Pool::maintenance`].
    #[must_use]
    pub fn maintenance(&self) -> Maintenance<'_, M> {
        Maintenance { upkeep: self.pool.maintenance(), driver: &self.driver }
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

    /// How the pool is: its health, its figures and its settings; `{:#}` is one line for a log.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        self.pool.status()
    }

    /// The settings, as the pool was built: what [`resize`](Self::resize) and
    /// [`set_interval`](Maintenance::set_interval) change does not show here.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.pool.config()
    }

    /// The manager.
    #[must_use]
    pub fn manager(&self) -> &M {
        self.pool.manager()
    }

    /// A handle that does not keep the pool open, such as for a hook.
    #[must_use]
    pub fn downgrade(&self) -> WeakPool<M> {
        WeakPool { pool: self.pool.downgrade(), driver: Arc::downgrade(&self.driver) }
    }
}

/// When a pool looks after its connections; from [`Pool::maintenance`].
///
/// # Examples
///
/// ```
/// # use millpond::{Pool, from_fn};
/// # use std::{convert::Infallible, time::Duration};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
/// let pool = Pool::builder(manager).build_blocking()?;
/// pool.maintenance().set_interval(Duration::from_millis(200))?;
/// pool.maintenance().pause(); // such as for a failover that is being rehearsed
/// pool.maintenance().run_once(); // by hand
/// pool.maintenance().resume();
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Maintenance<'p, M: Manager> {
    upkeep: AsyncMaintenance<'p, M>,
    driver: &'p Driver,
}

impl<M: Manager> Maintenance<'_, M> {
    /// Stops looking until [`resume`](Self::resume). A look that has begun goes on to its end. What becomes idle
    /// while nobody looks counts as idle from the [next look](Self::run_once) on.
    pub fn pause(&self) {
        self.upkeep.pause();
    }

    /// Looks again, one interval from now at the latest; see [`crate::Maintenance::resume`].
    pub fn resume(&self) {
        self.upkeep.resume();
    }

    /// Whether it is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.upkeep.is_paused()
    }

    /// How often the pool looks. At first, `maintenance_interval`.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.upkeep.interval()
    }

    /// Changes that, from now on.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the interval is zero.
    pub fn set_interval(&self, interval: Duration) -> Result<(), ConfigError> {
        self.upkeep.set_interval(interval)
    }

    /// Looks once, paused or not, and returns when the keepalive checks that were due are done;
    /// connections that have to go may still be closing then. Inside an asynchronous task and on the
    /// pool's own thread it looks, and waits for no checks. From when on a connection counts as idle:
    /// [`crate::Maintenance::run_once`].
    pub fn run_once(&self) {
        if self.driver.must_not_wait() {
            let look = pin!(self.upkeep.run_once());
            // Cancel: the first poll is the look, and the rest would only wait.
            let _ = look.poll(&mut Context::from_waker(Waker::noop()));
        } else {
            self.driver.block_on(self.upkeep.run_once());
        }
    }
}

/// A handle to look at a pool by.
pub(crate) struct Look<M: Manager> {
    // The order of the fields is the order in which they are dropped.
    pool: AsyncPool<M>,
    _driver: Unawaited,
}

impl<M: Manager> Look<M> {
    pub(crate) fn status(&self) -> PoolStatus {
        self.pool.status()
    }

    pub(crate) fn holders(&self) -> Vec<Holder> {
        self.pool.holders()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.pool.is_closed()
    }
}

/// Keeps the thread going, and does not wait for its end should nobody else keep it: whoever looks may
/// be a task.
struct Unawaited(Option<Arc<Driver>>);

impl Drop for Unawaited {
    fn drop(&mut self) {
        if let Some(mut last) = self.0.take().and_then(Arc::into_inner) {
            last.thread = None;
        }
    }
}

/// A handle to a pool that does not keep it open.
pub struct WeakPool<M: Manager> {
    pool: AsyncWeakPool<M>,
    driver: Weak<Driver>,
}

impl<M: Manager> WeakPool<M> {
    /// The pool, unless its last handle has been dropped.
    #[must_use]
    pub fn upgrade(&self) -> Option<Pool<M>> {
        // The driver first: a pool without its thread would be of no use.
        let driver = self.driver.upgrade()?;
        Pool::upgraded(driver, self.pool.upgrade())
    }
}

impl<M: Manager> Clone for WeakPool<M> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), driver: self.driver.clone() }
    }
}

impl<M: Manager> fmt::Debug for WeakPool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakPool")
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Driver")
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tokio::sync::oneshot;

    /// Its connections say that they are closed, once that is allowed.
    struct Slow {
        allowed: Mutex<Option<oneshot::Receiver<()>>>,
        closed: mpsc::Sender<()>,
    }

    impl Manager for Slow {
        type Connection = ();
        type Error = Infallible;

        async fn connect(&self) -> Result<(), Infallible> {
            Ok(())
        }

        async fn check(&self, (): &mut ()) -> Result<(), Infallible> {
            Ok(())
        }

        async fn close(&self, (): ()) {
            let allowed = self.allowed.lock().expect("nobody panics").take();
            allowed.expect("there is one connection").await.expect("the test allows it");
            self.closed.send(()).expect("the test waits for it");
        }
    }

    /// A pool with one idle connection, what allows that to be closed, and what tells that it is.
    fn slow() -> (Pool<Slow>, oneshot::Sender<()>, mpsc::Receiver<()>) {
        let (allow, allowed) = oneshot::channel();
        let (closed, is_closed) = mpsc::channel();
        let pool = AsyncPool::builder(Slow { allowed: Mutex::new(Some(allowed)), closed });
        let pool = pool.max_size(1).min_idle(1).close_timeout(Duration::from_secs(20));
        (pool.build_blocking().expect("it connects"), allow, is_closed)
    }

    #[test]
    fn a_look_that_is_the_last_to_let_go_of_a_pool_does_not_wait_for_its_end() {
        let (pool, allow, is_closed) = slow();
        let weak = pool.weak();
        let look = weak().expect("it is there");
        drop(pool);
        assert_eq!(look.status().metrics.counts.idle, 1);
        drop(look);
        assert!(weak().is_none());
        allow.send(()).expect("it is still closing");
        is_closed.recv().expect("it is closed as ever");
    }

    /// In a child of the process, which has a copy of the pool and not its thread.
    #[test]
    fn the_last_handle_in_another_process_waits_for_no_thread() {
        let (mut pool, allow, is_closed) = slow();
        let driver = Arc::get_mut(&mut pool.driver).expect("there is one handle");
        driver.process = driver.process.wrapping_add(1);
        let stop = driver.stop.clone();
        assert!(matches!(pool.warm_up(2), Err(WarmUpError::NoRuntime)));
        let rotate = pool.rotate(|_| Box::pin(std::future::pending()));
        assert!(matches!(rotate, Err(RotateError::NoRuntime)));
        drop(pool);
        allow.send(()).expect("it is still closing");
        is_closed.recv().expect("the thread is there after all");
        assert!(!stop.stopped.load(Ordering::SeqCst), "no lock of its thread is taken");
        stop.stop();
    }

    #[test]
    fn an_upgrade_that_comes_too_late_does_not_wait_for_the_pools_end() {
        let (Pool { pool, driver }, allow, is_closed) = slow();
        drop(pool);
        // It has the driver, which its last handle lets go of now.
        assert!(Pool::<Slow>::upgraded(driver, None).is_none());
        allow.send(()).expect("it is still closing");
        is_closed.recv().expect("it is closed as ever");
    }
}
