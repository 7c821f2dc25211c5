//! What users have called at the turns of a connection's life.
//!
//! Not here: when that is; each hook is called where its turn comes (`pool`).

use crate::manager::Manager;
use crate::panics::caught;
use crate::pool::Holder;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// What an asynchronous hook returns.
pub type HookFuture<'c, E> = Pin<Box<dyn Future<Output = Result<(), E>> + Send + 'c>>;

type AsyncHook<M> = Box<
    dyn for<'c> Fn(&'c mut <M as Manager>::Connection) -> HookFuture<'c, <M as Manager>::Error>
        + Send
        + Sync,
>;
type Observer<M> = Box<dyn Fn(&<M as Manager>::Connection) + Send + Sync>;
type Listener = Box<dyn Fn() + Send + Sync>;
type LeakListener = Box<dyn Fn(&Leak) + Send + Sync>;

/// Functions that a pool calls at the turns of a connection's life; none by default.
///
/// Each may call back into the pool: no lock is held meanwhile. One that panics, or an asynchronous
/// one that fails, costs the connection that it was called for and nothing else. Those that are not
/// asynchronous run inside acquire, release and the pool's own tasks: they must not block.
///
/// # Cost
///
/// A hook that is not set costs nothing. With [`before_acquire`](Self::before_acquire) or
/// [`on_checkout`](Self::on_checkout) every acquire leaves the fast path, with
/// [`on_checkin`](Self::on_checkin) or [`after_release`](Self::after_release) every release does;
/// `before_acquire` allocates its future.
///
/// # Examples
///
/// ```
/// use millpond::{Hooks, Pool, from_fn};
/// use std::convert::Infallible;
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let checkouts = Arc::new(AtomicUsize::new(0));
/// let hooks = Hooks::new()
///     // Set-up of each new connection, such as `SET search_path`.
///     .after_connect(|connection: &mut String| {
///         Box::pin(async move {
///             connection.push_str(", set up");
///             Ok(())
///         })
///     })
///     .on_checkout({
///         let checkouts = checkouts.clone();
///         move |_| {
///             checkouts.fetch_add(1, Relaxed);
///         }
///     });
/// let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
/// let pool = Pool::builder(manager).hooks(hooks).build().await?;
/// assert_eq!(*pool.acquire().await?, "hello, set up");
/// assert_eq!(checkouts.load(Relaxed), 1);
/// # Ok(()) }
/// ```
#[must_use]
pub struct Hooks<M: Manager> {
    pub(crate) after_connect: Option<AsyncHook<M>>,
    pub(crate) before_acquire: Option<AsyncHook<M>>,
    on_create: Option<Observer<M>>,
    on_checkout: Option<Observer<M>>,
    on_checkin: Option<Observer<M>>,
    after_release: Option<Listener>,
    on_destroy: Option<Listener>,
    on_leak: Option<LeakListener>,
}

/// A connection that is held for longer than `leak_after`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leak {
    /// It has been held for too long, and is still out. Told once for each time it is acquired.
    Held(Holder),
    /// It has come back after all, or was detached; `held` says when.
    Returned(Holder),
}

impl Leak {
    /// Who holds it, or held it.
    #[must_use]
    pub fn holder(&self) -> &Holder {
        match self {
            Self::Held(holder) | Self::Returned(holder) => holder,
        }
    }
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(holder) => write!(f, "held for too long: {holder}"),
            Self::Returned(holder) => write!(f, "came back late: {holder}"),
        }
    }
}

impl<M: Manager> Default for Hooks<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Manager> Hooks<M> {
    /// No hooks.
    ///
    /// What a closure is given has to be known where it stands: from the manager's type at `new`, as here, or
    /// from the closure's own arguments (`|connection: &mut String|`). The type of the variable that all of it
    /// goes to comes too late for the compiler.
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::{Hooks, Manager, Pool};
    /// # use std::convert::Infallible;
    /// # struct Greeter;
    /// # impl Manager for Greeter {
    /// #     type Connection = String;
    /// #     type Error = Infallible;
    /// #     async fn connect(&self) -> Result<String, Infallible> { Ok(String::from("hello")) }
    /// #     async fn check(&self, _: &mut String) -> Result<(), Infallible> { Ok(()) }
    /// # }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // `Greeter` is a manager, such as `PostgresManager`.
    /// let hooks = Hooks::<Greeter>::new().after_connect(move |connection| {
    ///     Box::pin(async move {
    ///         connection.push_str(", set up");
    ///         Ok(())
    ///     })
    /// });
    /// let pool = Pool::builder(Greeter).hooks(hooks).build().await?;
    /// assert_eq!(*pool.acquire().await?, "hello, set up");
    /// # Ok(()) }
    /// ```
    pub fn new() -> Self {
        Self {
            after_connect: None,
            before_acquire: None,
            on_create: None,
            on_checkout: None,
            on_checkin: None,
            after_release: None,
            on_destroy: None,
            on_leak: None,
        }
    }

    /// Sets up each new connection, within `connect_timeout`. If it fails, so has the connect, with
    /// this error; the connection is closed.
    ///
    /// It runs once in a connection's life, and a [reset](Manager::reset) may undo what it has set up, as
    /// those of Redis, MySQL and pg-wired do, and PostgreSQL's with `PoolMode::Session` or a `reset_query`.
    /// What is to outlive that belongs in the manager's own settings, or in
    /// [`before_acquire`](Self::before_acquire).
    pub fn after_connect(
        mut self,
        hook: impl for<'c> Fn(&'c mut M::Connection) -> HookFuture<'c, M::Error> + Send + Sync + 'static,
    ) -> Self {
        self.after_connect = Some(Box::new(hook));
        self
    }

    /// Prepares or examines a connection before it is handed out, within `check_timeout`. If it
    /// fails, the connection is closed, and the acquire goes on with another. While it fails for one new
    /// connection after the other, the pool pauses before it opens the next, as after a failed connect,
    /// and timeouts tell its error. `try_acquire`, which cannot wait for it, finds nothing in a pool with
    /// this hook.
    ///
    /// Once one connection has not answered it in time, the same acquire has others checked before it,
    /// all at once, unless the policy is [`CheckPolicy::Never`](crate::CheckPolicy::Never).
    pub fn before_acquire(
        mut self,
        hook: impl for<'c> Fn(&'c mut M::Connection) -> HookFuture<'c, M::Error> + Send + Sync + 'static,
    ) -> Self {
        self.before_acquire = Some(Box::new(hook));
        self
    }

    /// Sees each new connection once, before its first use.
    pub fn on_create(mut self, hook: impl Fn(&M::Connection) + Send + Sync + 'static) -> Self {
        self.on_create = Some(Box::new(hook));
        self
    }

    /// Sees a connection each time it is handed out. While it panics for one new connection after the
    /// other, the pool does as with [`before_acquire`](Self::before_acquire).
    pub fn on_checkout(mut self, hook: impl Fn(&M::Connection) + Send + Sync + 'static) -> Self {
        self.on_checkout = Some(Box::new(hook));
        self
    }

    /// Sees a connection each time its guard is dropped, released or discarded, before anything is
    /// done with it.
    pub fn on_checkin(mut self, hook: impl Fn(&M::Connection) + Send + Sync + 'static) -> Self {
        self.on_checkin = Some(Box::new(hook));
        self
    }

    /// Called after that, when the connection is back in the pool, or on its way to be reset or
    /// closed; by then it is somebody else's, so this hook sees none, unlike sqlx's hook of this name.
    /// What examines a connection that comes back is [`on_checkin`](Self::on_checkin), what decides
    /// whether it is used again is [`Manager::condition`].
    pub fn after_release(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.after_release = Some(Box::new(hook));
        self
    }

    /// Called for each connection that the pool has closed, when it is closed. Not for a detached
    /// one, which lives on.
    pub fn on_destroy(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_destroy = Some(Box::new(hook));
        self
    }

    /// Told of each connection that is held for longer than `leak_after`, and once more when it
    /// comes back or is detached, unless the pool is closed by then; both to the reaper's resolution.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, from_fn};
    /// # use std::{convert::Infallible, time::Duration};
    /// use millpond::{Hooks, Leak};
    ///
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let hooks = Hooks::new().on_leak(|leak| match leak {
    ///     // Such as `connection 7 for 60s, acquired at src/orders.rs:12:30`.
    ///     Leak::Held(holder) => eprintln!("who has forgotten {holder}?"),
    ///     over => eprintln!("{over}"),
    /// });
    /// let limit = Duration::from_secs(60);
    /// let pool = Pool::builder(manager).leak_after(limit).hooks(hooks).build_lazy()?;
    /// # Ok::<(), millpond::ConfigError>(())
    /// ```
    pub fn on_leak(mut self, hook: impl Fn(&Leak) + Send + Sync + 'static) -> Self {
        self.on_leak = Some(Box::new(hook));
        self
    }

    /// Whether an acquire has anything to call.
    pub(crate) fn at_acquire(&self) -> bool {
        self.before_acquire.is_some() || self.on_checkout.is_some()
    }

    /// Whether a release has.
    pub(crate) fn at_release(&self) -> bool {
        self.on_checkin.is_some() || self.after_release.is_some()
    }

    /// The message of its panic if the hook panics.
    pub(crate) fn create(&self, connection: &M::Connection) -> Result<(), String> {
        let hook = self.on_create.as_ref();
        call(|| hook.map_or((), |hook| hook(connection)))
    }

    /// The same: then nobody is to have the connection.
    pub(crate) fn checkout(&self, connection: &M::Connection) -> Result<(), String> {
        let hook = self.on_checkout.as_ref();
        call(|| hook.map_or((), |hook| hook(connection)))
    }

    /// The same.
    pub(crate) fn checkin(&self, connection: &M::Connection) -> Result<(), String> {
        let hook = self.on_checkin.as_ref();
        call(|| hook.map_or((), |hook| hook(connection)))
    }

    // The panic hook has reported what the following three drop; no connection is in their hands.

    pub(crate) fn released(&self) {
        drop(call(|| self.after_release.as_ref().map_or((), |hook| hook())));
    }

    pub(crate) fn destroyed(&self) {
        drop(call(|| self.on_destroy.as_ref().map_or((), |hook| hook())));
    }

    pub(crate) fn leaked(&self, leak: &Leak) {
        drop(call(|| self.on_leak.as_ref().map_or((), |hook| hook(leak))));
    }
}

/// Has a hook told when it is dropped, however what it is told of ends.
pub(crate) struct AtEnd<'h, M: Manager> {
    hooks: &'h Hooks<M>,
    tell: fn(&Hooks<M>),
}

impl<'h, M: Manager> AtEnd<'h, M> {
    pub(crate) fn new(hooks: &'h Hooks<M>, tell: fn(&Hooks<M>)) -> Self {
        Self { hooks, tell }
    }
}

impl<M: Manager> Drop for AtEnd<'_, M> {
    fn drop(&mut self) {
        (self.tell)(self.hooks);
    }
}

fn call(hook: impl FnOnce()) -> Result<(), String> {
    caught(hook).map_err(|panic| panic.message())
}

impl<M: Manager> fmt::Debug for Hooks<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("after_connect", &self.after_connect.is_some())
            .field("before_acquire", &self.before_acquire.is_some())
            .field("on_create", &self.on_create.is_some())
            .field("on_checkout", &self.on_checkout.is_some())
            .field("on_checkin", &self.on_checkin.is_some())
            .field("after_release", &self.after_release.is_some())
            .field("on_destroy", &self.on_destroy.is_some())
            .field("on_leak", &self.on_leak.is_some())
            .finish()
    }
}
