//! Managers that were written for deadpool.
//!
//! Not here: deadpool's pool. What its builder sets is set on
//! [`PoolBuilder`](crate::PoolBuilder).

use super::{Convert, Permanent};
use crate::manager::{Condition, Manager};
use deadpool::managed::{self, Metrics, RecycleError};
use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

/// Runs a manager that was written for deadpool.
///
/// | deadpool calls | when | here |
/// |---|---|---|
/// | `create` | an object is missing | [`connect`](Manager::connect), within `connect_timeout` |
/// | `recycle` | before each reuse | [`check`](Manager::check), within `check_timeout`: between any two uses, whatever the pool's [`CheckPolicy`](crate::CheckPolicy), and as a keepalive |
/// | `detach` | an object leaves the pool | the same, once for each: see [`Connection`] |
///
/// A recycle does two things: it makes sure that an object is alive, and makes it fit for the next
/// user. So it cannot be left to a policy. Every connection that comes back is
/// [`Condition::Unchecked`], and the next acquire recycles it, as in deadpool; one that is new is
/// handed out as it is. If the recycle fails, the object is closed, and the same acquire goes on to
/// the next one or to a new one.
///
/// deadpool leaves idle objects alone; here they are recycled each `keepalive_interval` as well, and
/// counted in [`Metrics`]. An object that has been recycled in the background since its last use, as a
/// keepalive or because another had not answered in time, is recycled again by the acquire that follows
/// only if that was longer ago than the [`CheckPolicy`](crate::CheckPolicy) allows: 5 s with `Always`, and
/// any time with `Never`.
/// `.keepalive_interval(None)` on the pool's builder stops keepalives. An object that was opened ahead of
/// its first use, for `min_idle`, is recycled before it once it has been idle for as long.
///
/// A manager whose connecting looks a name up on one of the runtime's threads for calls that block, as those of
/// tokio-postgres do, opens none while all of these wait in [`acquire_blocking`](crate::Pool::acquire_blocking).
///
/// | deadpool | here |
/// |---|---|
/// | `Timeouts { wait, create, recycle }`, none by default, one after the other | `acquire_timeout`, which is over all three together; `connect_timeout`, `check_timeout` |
/// | `Object::take` | [`detach`](crate::Pooled::detach), then [`Connection::into_inner`] |
/// | `Object::metrics` | [`Connection::metrics`] |
/// | hook `post_create` | [`after_connect`](crate::Hooks::after_connect) |
/// | hook `post_recycle` | [`before_acquire`](crate::Hooks::before_acquire), which sees new objects as well |
/// | hook `pre_recycle` | none: a manager around yours, whose `recycle` does that first |
///
/// # Functions that take a trait
///
/// A guard derefs to a [`Connection`], and that to the manager's own type, which is not deadpool's `Object`: a
/// trait that a crate has given to that alone is out of reach. So is `deadpool_postgres::GenericClient`, but
/// for transactions, which have it too. tokio-postgres's own trait does for both:
///
/// ```no_run
/// # use deadpool_postgres::{Manager, tokio_postgres};
/// # use millpond::{Pool, compat::deadpool::Adapter};
/// async fn theirs(client: &impl deadpool_postgres::GenericClient) -> Result<(), tokio_postgres::Error> {
///     client.batch_execute("SELECT 1").await
/// }
///
/// async fn librarys(client: &impl tokio_postgres::GenericClient) -> Result<(), tokio_postgres::Error> {
///     client.batch_execute("SELECT 1").await
/// }
///
/// # async fn example(pool: Pool<Adapter<Manager>>) -> Result<(), Box<dyn std::error::Error>> {
/// let mut guard = pool.acquire().await?;
/// librarys(&***guard).await?;
/// let transaction = guard.transaction().await?;
/// theirs(&transaction).await?;
/// librarys(&*transaction).await?;
/// # Ok(()) }
/// ```
///
/// # Cost
///
/// As every reuse waits for a recycle, no acquire but that of a new connection is a hit; that is
/// what deadpool's managers are written for.
///
/// # Examples
///
/// A manager for PostgreSQL, from the crate `deadpool-postgres`:
///
/// ```no_run
/// use deadpool_postgres::{Manager, tokio_postgres::NoTls};
/// use millpond::{Pool, compat::deadpool::Adapter};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let manager = Manager::new("postgresql://app@localhost/app".parse()?, NoTls);
/// let pool = Pool::builder(Adapter::new(manager)).max_size(16).build().await?;
/// let client = pool.acquire().await?;
/// let statement = client.prepare_cached("SELECT 1").await?;
/// assert_eq!(client.query_one(&statement, &[]).await?.get::<_, i32>(0), 1);
/// # Ok(()) }
/// ```
#[must_use]
pub struct Adapter<M: managed::Manager, E = <M as managed::Manager>::Error> {
    manager: Arc<M>,
    convert: Convert<M::Error, E>,
    permanent: Permanent<E>,
}

/// What can go wrong with an adapted manager.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError<E> {
    /// `create` or `recycle` failed with an error of the manager's: this one.
    #[error(transparent)]
    Backend(E),
    /// `recycle` refused the object, for this reason.
    #[error("not fit to be used again: {0}")]
    Refused(Cow<'static, str>),
}

/// An object of an adapted manager, to which it derefs.
///
/// Wherever it leaves the pool, the manager's `detach` is called for it once: before it is closed
/// and dropped, or in [`into_inner`](Self::into_inner).
pub struct Connection<M: managed::Manager> {
    // `None` only once it has been taken out by `into_inner`.
    object: Option<M::Type>,
    metrics: Metrics,
    manager: Arc<M>,
}

const TAKEN: &str = "BUG: the object has been taken out";

impl<M: managed::Manager> Connection<M> {
    fn new(manager: Arc<M>, object: M::Type) -> Self {
        Self { object: Some(object), metrics: Metrics::default(), manager }
    }

    /// Takes the object out, as deadpool's `Object::take` does: the manager's `detach` is called
    /// for it. For what [`Pooled::detach`](crate::Pooled::detach) gives.
    #[must_use]
    pub fn into_inner(mut this: Self) -> M::Type {
        let Some(mut object) = this.object.take() else { unreachable!("{TAKEN}") };
        this.manager.detach(&mut object);
        object
    }

    /// When it was created and last recycled, and how often; keepalives count as recycles.
    pub fn metrics(this: &Self) -> &Metrics {
        &this.metrics
    }
}

impl<M: managed::Manager> Drop for Connection<M> {
    fn drop(&mut self) {
        if let Some(object) = &mut self.object {
            self.manager.detach(object);
        }
    }
}

impl<M: managed::Manager> Deref for Connection<M> {
    type Target = M::Type;

    fn deref(&self) -> &M::Type {
        self.object.as_ref().expect(TAKEN)
    }
}

impl<M: managed::Manager> DerefMut for Connection<M> {
    fn deref_mut(&mut self) -> &mut M::Type {
        self.object.as_mut().expect(TAKEN)
    }
}

impl<M: managed::Manager<Type: fmt::Debug>> fmt::Debug for Connection<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("object", &self.object)
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}

impl<M: managed::Manager> Adapter<M> {
    /// Runs this manager.
    pub fn new(manager: M) -> Self {
        Self::with_error(manager, |error| error)
    }
}

impl<M: managed::Manager, E> Adapter<M, E> {
    /// Runs this manager, and makes of its errors what the pool reports. For managers whose error is
    /// no [`std::error::Error`], of which deadpool only asks that it is `Send`.
    pub fn with_error(manager: M, convert: impl Fn(M::Error) -> E + Send + Sync + 'static) -> Self {
        let (manager, convert) = (Arc::new(manager), Box::new(convert));
        Self { manager, convert, permanent: Permanent(None) }
    }

    /// Says which errors of `create` are beyond retrying, such as a wrong password: they end every
    /// wait after one attempt. Default: none.
    pub fn permanent(mut self, is_permanent: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.permanent = Permanent(Some(Box::new(is_permanent)));
        self
    }

    /// The manager.
    #[must_use]
    pub fn manager(&self) -> &M {
        &self.manager
    }
}

impl<M, E> Manager for Adapter<M, E>
where
    M: managed::Manager<Type: 'static> + 'static,
    M::Error: 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    type Connection = Connection<M>;
    type Error = AdapterError<E>;

    async fn connect(&self) -> Result<Connection<M>, AdapterError<E>> {
        match self.manager.create().await {
            Ok(object) => Ok(Connection::new(self.manager.clone(), object)),
            Err(error) => Err(AdapterError::Backend((self.convert)(error))),
        }
    }

    fn condition(&self, _: &mut Connection<M>) -> Condition {
        Condition::Unchecked
    }

    async fn check(&self, connection: &mut Connection<M>) -> Result<(), AdapterError<E>> {
        let Connection { object, metrics, .. } = connection;
        let object = object.as_mut().expect(TAKEN);
        self.manager.recycle(object, metrics).await.map_err(|error| match error {
            RecycleError::Message(message) => AdapterError::Refused(message),
            RecycleError::Backend(error) => AdapterError::Backend((self.convert)(error)),
        })?;
        metrics.recycle_count += 1;
        metrics.recycled = Some(Instant::now());
        Ok(())
    }

    fn is_permanent(&self, error: &AdapterError<E>) -> bool {
        match error {
            AdapterError::Backend(error) => self.permanent.is(error),
            AdapterError::Refused(_) => false,
        }
    }
}

impl<M: managed::Manager + fmt::Debug, E> fmt::Debug for Adapter<M, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter").field("manager", &self.manager).finish_non_exhaustive()
    }
}
