//! Managers that were written for r2d2.
//!
//! Their methods block, so they run on the threads that the runtime keeps for blocking calls. What
//! may take long (opening, checking, dropping a connection) never runs on a thread of tasks.
//!
//! Not here: r2d2's pool. What its builder sets is set on [`PoolBuilder`](crate::PoolBuilder).

use super::{Convert, Permanent};
use crate::manager::{Condition, Manager};
use r2d2::ManageConnection;
use std::error::Error;
use std::fmt;
use std::future::pending;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::panic::resume_unwind;
use std::sync::{Arc, mpsc};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

/// Runs a manager that was written for r2d2, in an asynchronous pool as well as in a
/// [`blocking::Pool`](crate::blocking::Pool).
///
/// | r2d2 calls | when | here |
/// |---|---|---|
/// | `connect` | a connection is missing | [`connect`](Manager::connect), within `connect_timeout` |
/// | `is_valid` | with `test_on_check_out`, its default, before each use | [`check`](Manager::check): by default if it has been idle for 5 s, and as a keepalive; within `check_timeout` |
/// | `has_broken` | a connection is released | [`condition`](Manager::condition), on the thread that releases it: broken or clean |
///
/// `.check(CheckPolicy::Always)` on the pool's builder is `test_on_check_out`.
///
/// # Where the calls run
///
/// `connect`, `is_valid` and the drop of a connection run on a thread for blocking calls
/// ([`spawn_blocking`]) of the runtime that the pool uses. The runtime of a `blocking::Pool` has such
/// threads as well: its one thread for tasks also keeps the time limits and opens the other
/// connections, which a blocking call in place would hold up. Threads are reused; a call costs some
/// ten microseconds more than in place.
///
/// **A blocking call cannot be interrupted.** When its time is up, or when the caller of an acquire
/// goes away during a check, the pool goes on without it; the call ends when it ends, on its thread,
/// with the connection, which is dropped there and never used again. Until then that connection is
/// alive beside those of the pool. So give the driver time limits of its own, no longer than the
/// pool's. A runtime that is dropped waits for such calls, unless it is told not to
/// ([`shutdown_background`](tokio::runtime::Runtime::shutdown_background)); that of a `blocking::Pool`
/// does not wait.
///
/// A panic costs that connection and nothing else.
///
/// # What is done with a connection
///
/// While a pool is asynchronous, its callers are tasks, and using a connection of this kind blocks
/// the thread of such a task: do so inside [`spawn_blocking`] too, with
/// [`acquire_owned`](crate::Pool::acquire_owned) or [`acquire_blocking`](crate::Pool::acquire_blocking).
/// A connection need not be `Sync`.
///
/// # Errors
///
/// The pool's errors are the manager's own, which are sent from one thread to another. Those that
/// are not `Send + Sync`, which r2d2 does not ask for, are adapted with
/// [`with_error`](Self::with_error).
///
/// # Examples
///
/// A manager for SQLite, from the crate `r2d2_sqlite`:
///
/// ```
/// use millpond::{Pool, compat::r2d2::Adapter};
/// use r2d2_sqlite::SqliteConnectionManager;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let manager = SqliteConnectionManager::memory();
/// let pool = Pool::builder(Adapter::new(manager)).max_size(4).build_blocking()?;
/// let connection = pool.acquire()?;
/// let two: i64 = connection.query_row("SELECT 1 + 1", [], |row| row.get(0))?;
/// assert_eq!(two, 2);
/// # Ok(()) }
/// ```
#[must_use]
pub struct Adapter<M: ManageConnection, E = <M as ManageConnection>::Error> {
    parts: Arc<Parts<M, E>>,
    permanent: Permanent<E>,
}

/// What blocking calls take along.
struct Parts<M: ManageConnection, E> {
    manager: M,
    convert: Convert<M::Error, E>,
}

/// A connection of an adapted manager, to which it derefs.
pub struct Connection<C> {
    place: Place<C>,
}

/// Where a connection is.
enum Place<C> {
    /// At hand; whenever a user has it, it is here.
    Here(C),
    /// In a call that brings it back.
    Away(Call<C>),
    /// Lost in a call that panicked.
    Gone,
}

const NOT_HERE: &str = "BUG: a connection that is being checked is in use";

/// A blocking call on a thread of its own. Dropping it lets the call go on alone, or, if it has not
/// begun, keeps it from beginning.
struct Call<T>(JoinHandle<T>);

impl<T: Send + 'static> Call<T> {
    fn begin(call: impl FnOnce() -> T + Send + 'static) -> Self {
        Self(spawn_blocking(call))
    }

    async fn end(mut self) -> T {
        match (&mut self.0).await {
            Ok(value) => value,
            Err(error) => go_on_with(error).await,
        }
    }
}

impl<T> Drop for Call<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Panics as the call did. One that was never made, because its runtime has ended, never ends: it is
/// up to the time limit of whoever waits.
async fn go_on_with<T>(error: JoinError) -> T {
    match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_) => pending().await,
    }
}

impl<C> Connection<C> {
    /// Takes the connection out. For what [`Pooled::detach`](crate::Pooled::detach) gives.
    #[must_use]
    pub fn into_inner(this: Self) -> C {
        match this.place {
            Place::Here(connection) => connection,
            Place::Away(_) | Place::Gone => unreachable!("{NOT_HERE}"),
        }
    }
}

impl<C> Deref for Connection<C> {
    type Target = C;

    fn deref(&self) -> &C {
        match &self.place {
            Place::Here(connection) => connection,
            Place::Away(_) | Place::Gone => unreachable!("{NOT_HERE}"),
        }
    }
}

impl<C> DerefMut for Connection<C> {
    fn deref_mut(&mut self) -> &mut C {
        match &mut self.place {
            Place::Here(connection) => connection,
            Place::Away(_) | Place::Gone => unreachable!("{NOT_HERE}"),
        }
    }
}

impl<C: fmt::Debug> fmt::Debug for Connection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Here(connection) => f.debug_tuple("Connection").field(connection).finish(),
            Place::Away(_) | Place::Gone => f.debug_struct("Connection").finish_non_exhaustive(),
        }
    }
}

impl<M: ManageConnection> Adapter<M> {
    /// Runs this manager.
    pub fn new(manager: M) -> Self {
        Self::with_error(manager, |error| error)
    }
}

impl<M: ManageConnection, E> Adapter<M, E> {
    /// Runs this manager, and makes of its errors what the pool reports. The function runs on the
    /// thread of the blocking call, so the manager's own errors need not be `Send`.
    pub fn with_error(manager: M, convert: impl Fn(M::Error) -> E + Send + Sync + 'static) -> Self {
        let parts = Arc::new(Parts { manager, convert: Box::new(convert) });
        Self { parts, permanent: Permanent(None) }
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
        &self.parts.manager
    }
}

impl<M, E> Manager for Adapter<M, E>
where
    M: ManageConnection,
    E: Error + Send + Sync + 'static,
{
    type Connection = Connection<M::Connection>;
    type Error = E;

    async fn connect(&self) -> Result<Connection<M::Connection>, E> {
        let parts = self.parts.clone();
        // Cancel: what the call opens is dropped on its thread.
        let opened = Call::begin(move || parts.manager.connect().map_err(&parts.convert)).end();
        opened.await.map(|connection| Connection { place: Place::Here(connection) })
    }

    fn condition(&self, connection: &mut Connection<M::Connection>) -> Condition {
        if self.parts.manager.has_broken(connection) { Condition::Broken } else { Condition::Clean }
    }

    async fn check(&self, connection: &mut Connection<M::Connection>) -> Result<(), E> {
        let place = &mut connection.place;
        let Place::Here(mut checked) = mem::replace(place, Place::Gone) else {
            unreachable!("{NOT_HERE}")
        };
        let parts = self.parts.clone();
        let (report, verdict) = mpsc::sync_channel(1);
        *place = Place::Away(Call::begin(move || {
            let valid = parts.manager.is_valid(&mut checked).map_err(&parts.convert);
            // Whoever does not wait any more has given the connection up.
            drop(report.send(valid));
            checked
        }));
        let Place::Away(call) = place else { unreachable!("BUG: it has just been sent away") };
        // Cancel: the connection stays away, so nobody can use it, and `close` can wait for it.
        match (&mut call.0).await {
            Ok(checked) => *place = Place::Here(checked),
            Err(error) => {
                *place = Place::Gone;
                return go_on_with(error).await;
            }
        }
        verdict.recv().expect("BUG: the call has ended without a verdict")
    }

    async fn close(&self, connection: Connection<M::Connection>) {
        let connection = match connection.place {
            Place::Here(connection) => connection,
            Place::Away(call) => call.end().await,
            Place::Gone => return,
        };
        Call::begin(move || drop(connection)).end().await;
    }

    fn is_permanent(&self, error: &E) -> bool {
        self.permanent.is(error)
    }
}

impl<M: ManageConnection + fmt::Debug, E> fmt::Debug for Adapter<M, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapter").field("manager", &self.parts.manager).finish_non_exhaustive()
    }
}
