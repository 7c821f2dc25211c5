//! Managers that were written for bb8.
//!
//! Not here: bb8's pool. What its builder sets is set on [`PoolBuilder`](crate::PoolBuilder).

use super::{Convert, Permanent};
use crate::manager::{Condition, Manager};
use bb8::ManageConnection;
use std::error::Error;
use std::fmt;

/// Runs a manager that was written for bb8.
///
/// | bb8 calls | when | here |
/// |---|---|---|
/// | `connect` | a connection is missing | [`connect`](Manager::connect), within `connect_timeout` |
/// | `is_valid` | with `test_on_check_out`, its default, before each use | [`check`](Manager::check): by default if it has been idle for 5 s, and as a keepalive; within `check_timeout` |
/// | `has_broken` | a connection is released | [`condition`](Manager::condition): broken or clean |
///
/// `.check(CheckPolicy::Always)` on the pool's builder is `test_on_check_out`, but for what was checked in
/// the background no more than some [5 s](crate::CheckPolicy::Always) ago.
///
/// A manager whose connecting looks a name up on one of the runtime's threads for calls that block, as those of
/// tokio-postgres do, opens none while all of these wait in [`acquire_blocking`](crate::Pool::acquire_blocking).
///
/// A connection is closed by dropping it, as in bb8. One whose `is_valid` has failed, was given up
/// at its time limit or was dropped half-way, because its caller was, is closed as well.
///
/// # Errors
///
/// The pool's errors are the manager's own. bb8 only asks them to be `Debug` and `Send`; a manager
/// whose error is no [`std::error::Error`] is adapted with [`with_error`](Self::with_error).
///
/// # Examples
///
/// A manager for PostgreSQL, from the crate `bb8-postgres`:
///
/// ```no_run
/// use bb8_postgres::{PostgresConnectionManager, tokio_postgres::NoTls};
/// use millpond::{Pool, compat::bb8::Adapter};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let url = "postgresql://app@localhost/app";
/// let manager = PostgresConnectionManager::new_from_stringlike(url, NoTls)?;
/// let pool = Pool::builder(Adapter::new(manager)).max_size(16).build().await?;
/// let client = pool.acquire().await?;
/// let row = client.query_one("SELECT 1", &[]).await?;
/// assert_eq!(row.get::<_, i32>(0), 1);
/// # Ok(()) }
/// ```
#[must_use]
pub struct Adapter<M: ManageConnection, E = <M as ManageConnection>::Error> {
    manager: M,
    convert: Convert<M::Error, E>,
    permanent: Permanent<E>,
}

impl<M: ManageConnection> Adapter<M> {
    /// Runs this manager.
    pub fn new(manager: M) -> Self {
        Self::with_error(manager, |error| error)
    }
}

impl<M: ManageConnection, E> Adapter<M, E> {
    /// Runs this manager, and makes of its errors what the pool reports.
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::{Pool, compat::bb8::Adapter};
    ///
    /// struct Sockets;
    ///
    /// impl bb8::ManageConnection for Sockets {
    ///     type Connection = String;
    ///     type Error = String; // no `std::error::Error`
    /// #   async fn connect(&self) -> Result<String, String> { Ok("open".into()) }
    /// #   async fn is_valid(&self, _: &mut String) -> Result<(), String> { Ok(()) }
    /// #   fn has_broken(&self, _: &mut String) -> bool { false }
    ///     // …
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let adapter = Adapter::with_error(Sockets, std::io::Error::other);
    /// let pool = Pool::builder(adapter).build().await?;
    /// assert_eq!(*pool.acquire().await?, "open");
    /// # Ok(()) }
    /// ```
    pub fn with_error(manager: M, convert: impl Fn(M::Error) -> E + Send + Sync + 'static) -> Self {
        Self { manager, convert: Box::new(convert), permanent: Permanent(None) }
    }

    /// Says which errors of `connect` are beyond retrying, such as a wrong password: they end every
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
    M: ManageConnection,
    E: Error + Send + Sync + 'static,
{
    type Connection = M::Connection;
    type Error = E;

    async fn connect(&self) -> Result<M::Connection, E> {
        self.manager.connect().await.map_err(&self.convert)
    }

    fn condition(&self, connection: &mut M::Connection) -> Condition {
        if self.manager.has_broken(connection) { Condition::Broken } else { Condition::Clean }
    }

    async fn check(&self, connection: &mut M::Connection) -> Result<(), E> {
        self.manager.is_valid(connection).await.map_err(&self.convert)
    }

    fn is_permanent(&self, error: &E) -> bool {
        self.permanent.is(error)
    }
}

impl<M: ManageConnection + fmt::Debug, E> fmt::Debug for Adapter<M, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter").field("manager", &self.manager).finish_non_exhaustive()
    }
}
