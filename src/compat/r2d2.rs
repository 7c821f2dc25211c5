//! Managers that were written for r2d2.
//!
//! Their methods block, so they run on threads of the crate's own. What may take long (opening, checking,
//! dropping a connection) never runs on a thread of tasks.
//!
//! Not here: r2d2's pool. What its builder sets is set on [`PoolBuilder`](crate::PoolBuilder).

use super::{Convert, Permanent};
use crate::manager::{Condition, Manager};
use crate::panics::caught;
use crate::threads::{Call, Lost, aside};
use r2d2::{CustomizeConnection, ManageConnection};
use std::error::Error;
use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::panic::resume_unwind;
use std::sync::{Arc, mpsc};
use std::thread;

/// Runs a manager that was written for r2d2, in an asynchronous pool as well as in a
/// [`blocking::Pool`](crate::blocking::Pool).
///
/// | r2d2 calls | when | here |
/// |---|---|---|
/// | `connect` | a connection is missing | [`connect`](Manager::connect), within `connect_timeout` |
/// | `is_valid` | with `test_on_check_out`, its default, before each use | [`check`](Manager::check): by default if it has been idle for 5 s, and as a keepalive; within `check_timeout` |
/// | `has_broken` | a connection is released | [`condition`](Manager::condition), on the thread that releases it: broken or clean |
/// | `CustomizeConnection::on_acquire` | a connection has been opened | with `connect`, within the same limit; see [`customizer`](Self::customizer) |
/// | `CustomizeConnection::on_release` | a connection leaves the pool | in the place of its drop; see [`customizer`](Self::customizer) |
///
/// `.check(CheckPolicy::Always)` on the pool's builder is `test_on_check_out`, but for what was checked in
/// the background no more than some [5 s](crate::CheckPolicy::Always) ago.
///
/// # Where the calls run
///
/// `connect`, `is_valid` and the drop of a connection run on threads of Millpond's own, inside the
/// runtime that asks for them. They take none of the threads that a runtime has for blocking calls: those
/// are limited in number, and may all be taken by callers that wait for a connection. Threads are reused;
/// a call costs some ten microseconds more than in place. There are never more of them at work than
/// connections, beside the calls that were given up and have not ended.
///
/// **A blocking call cannot be interrupted.** When its time is up, or when the caller of an acquire
/// goes away during a check, the pool goes on without it; the call ends when it ends, on its thread,
/// with the connection, which is dropped there and never used again. Until then that connection is
/// alive beside those of the pool. So give the driver time limits of its own, no longer than the
/// pool's. Nobody waits for such a call, neither a runtime that is dropped nor the end of the program.
/// Nor does tokio's paused clock stand still for any call.
///
/// Where there is no runtime, a connection that is dropped is dropped in place.
///
/// A panic costs that connection and nothing else.
///
/// # What is done with a connection
///
/// While a pool is asynchronous, its callers are tasks, and using a connection of this kind blocks
/// the thread of such a task: do so inside [`spawn_blocking`](tokio::task::spawn_blocking), with
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
    customizer: Option<Arc<Customizer<M>>>,
    release: Arc<Release<M::Connection>>,
}

type Customizer<M> =
    dyn CustomizeConnection<<M as ManageConnection>::Connection, <M as ManageConnection>::Error>;

/// What is done with a connection in the end.
type Release<C> = dyn Fn(C) + Send + Sync;

/// Drops a connection where that may block, or gives it to the customizer there.
fn release<M: ManageConnection>(
    customizer: Option<Arc<Customizer<M>>>,
) -> Arc<Release<M::Connection>> {
    Arc::new(move |connection| {
        let customizer = customizer.clone();
        aside(move || match customizer {
            Some(customizer) => customizer.on_release(connection),
            None => drop(connection),
        });
    })
}

/// A connection of an adapted manager, to which it derefs.
pub struct Connection<C> {
    place: Place<C>,
}

/// A connection that is released when it is dropped.
struct Held<C> {
    // `None` only once it has been taken out.
    connection: Option<C>,
    release: Arc<Release<C>>,
}

const TAKEN: &str = "BUG: the connection has been taken out";

impl<C> Deref for Held<C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.connection.as_ref().expect(TAKEN)
    }
}

impl<C> DerefMut for Held<C> {
    fn deref_mut(&mut self) -> &mut C {
        self.connection.as_mut().expect(TAKEN)
    }
}

impl<C> Drop for Held<C> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let release = || (self.release)(connection);
        if thread::panicking() {
            // A panic in `is_valid` takes the connection along. A second one would end the process.
            drop(caught(release));
        } else {
            release();
        }
    }
}

/// Where a connection is.
enum Place<C> {
    /// At hand; whenever a user has it, it is here.
    Here(Held<C>),
    /// In a call that brings it back.
    Away(Call<Held<C>>),
    /// Lost in a call that panicked.
    Gone,
}

const NOT_HERE: &str = "BUG: a connection that is being checked is in use";

const NO_THREAD: &str = "the system has no thread left for a call that blocks";

/// Waits for the end of a call. Panics as it did, and if there was no thread for it: the error that the pool
/// tells then says so.
async fn end<T>(call: Call<T>) -> T {
    match call.await {
        Ok(value) => value,
        Err(lost) => go_on_with(lost),
    }
}

fn go_on_with(lost: Lost) -> ! {
    match lost {
        Lost::Panicked(panic) => resume_unwind(panic),
        // Without a word to the panic hook: nothing has failed that anybody could mend in the code.
        Lost::NoThread(error) => resume_unwind(Box::new(format!("{NO_THREAD}: {error}"))),
    }
}

impl<C> Connection<C> {
    /// Takes the connection out, for what [`Pooled::detach`](crate::Pooled::detach) gives. A customizer
    /// is not told.
    #[must_use]
    pub fn into_inner(this: Self) -> C {
        let Place::Here(mut held) = this.place else { unreachable!("{NOT_HERE}") };
        let Some(connection) = held.connection.take() else { unreachable!("{TAKEN}") };
        connection
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
            Place::Here(held) => f.debug_tuple("Connection").field(&**held).finish(),
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
        let (convert, release) = (Box::new(convert), release::<M>(None));
        let parts = Arc::new(Parts { manager, convert, customizer: None, release });
        Self { parts, permanent: Permanent(None) }
    }

    /// Has a customizer that was written for r2d2 set up each new connection, and take each in the end:
    /// also one that is [detached](crate::Pooled::detach), when it is dropped, unless
    /// [`Connection::into_inner`] takes it out. Both may block. What [`Hooks`](crate::Hooks) does runs on
    /// threads of tasks, and must not. Default: none.
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::{Pool, compat::r2d2::Adapter};
    /// use r2d2_sqlite::{SqliteConnectionManager, rusqlite};
    ///
    /// #[derive(Debug)]
    /// struct Attach;
    ///
    /// impl r2d2::CustomizeConnection<rusqlite::Connection, rusqlite::Error> for Attach {
    ///     fn on_acquire(&self, db: &mut rusqlite::Connection) -> rusqlite::Result<()> {
    ///         db.execute_batch("ATTACH ':memory:' AS scratch")
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let adapter = Adapter::new(SqliteConnectionManager::memory()).customizer(Box::new(Attach));
    /// let pool = Pool::builder(adapter).max_size(4).build_blocking()?;
    /// pool.acquire()?.execute_batch("CREATE TABLE scratch.t (n)")?;
    /// # Ok(()) }
    /// ```
    pub fn customizer(
        mut self,
        customizer: Box<dyn CustomizeConnection<M::Connection, M::Error>>,
    ) -> Self {
        let customizer: Arc<Customizer<M>> = customizer.into();
        let Some(parts) = Arc::get_mut(&mut self.parts) else {
            unreachable!("BUG: a call before there is a pool")
        };
        parts.release = release::<M>(Some(customizer.clone()));
        parts.customizer = Some(customizer);
        self
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
        // Cancel: what the call opens is released on its thread.
        let opened = Call::begin(move || {
            let open = || {
                let mut connection = parts.manager.connect()?;
                // As in r2d2, one that cannot be set up has never been in the pool.
                parts.customizer.as_ref().map_or(Ok(()), |to| to.on_acquire(&mut connection))?;
                Ok(connection)
            };
            let connection = Some(open().map_err(&parts.convert)?);
            Ok(Held { connection, release: parts.release.clone() })
        });
        end(opened).await.map(|held| Connection { place: Place::Here(held) })
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
        match call.await {
            Ok(checked) => *place = Place::Here(checked),
            Err(lost) => {
                *place = Place::Gone;
                go_on_with(lost);
            }
        }
        verdict.recv().expect("BUG: the call has ended without a verdict")
    }

    async fn close(&self, connection: Connection<M::Connection>) {
        let held = match connection.place {
            Place::Here(held) => held,
            Place::Away(call) => end(call).await,
            Place::Gone => return,
        };
        end(Call::begin(move || drop(held))).await;
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
