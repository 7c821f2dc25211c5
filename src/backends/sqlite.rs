//! SQLite, through [rusqlite](https://docs.rs/rusqlite): connections to one file, whose work is kept
//! off the runtime's workers.
//!
//! Not here: databases in memory, which belong to one connection each.

use crate::blocking;
use crate::config::{Config, Priority};
use crate::error::BuildError;
use crate::manager::{Condition, Manager};
use crate::pool::{Pool, PoolBuilder};
use crate::threads::{self, Call, Lost};
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, ffi};
use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::future::Future;
use std::mem;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};
use tokio::task::unconstrained;

/// Opens connections to an SQLite file.
///
/// Connections are [`SqliteConnection`]s. SQLite has one writer at a time: others wait up to
/// [`busy_timeout`](Self::busy_timeout), in no order. [`SqliteDatabase`] has them wait in a pool's
/// line instead.
///
/// # What is checked
///
/// - When a connection is released: it is **closed** if a call on it panicked or a statement is left
///   in the middle of its rows, and **reset** if a transaction is open or a call was given up. (Only
///   [`forget`](std::mem::forget) leaves a statement there. SQLite cannot close such a connection; it
///   goes on reading what it read, and stays open, in nobody's hands.)
/// - When the pool checks one: that it can read the file, and, on Unix, that its path still leads to
///   that file, symbolic links included. One that goes on writing to a file that was replaced loses what it writes
///   ([How To Corrupt](https://www.sqlite.org/howtocorrupt.html), 2.4).
///
/// # What is reset
///
/// A call that was given up is
/// [interrupted](https://www.sqlite.org/c3ref/interrupt.html) until it ends, and a transaction rolled
/// back. SQLite has no reset of the rest: attached databases, temporary tables, functions and pragmas
/// stay. Set them up in [`init`](Self::init), and leave them alone.
///
/// # What is permanent
///
/// A file that is no database or a damaged one, a folder in its place or none to put it in, a missing
/// file that is not to be created, a database in memory. Not a locked file, or one too many for the
/// system.
///
/// # Where its work is done
///
/// On threads of Millpond's own: they take none of the threads that a runtime has for blocking calls,
/// which are limited in number, and may all be taken by callers that wait for a connection. There are never
/// more of them at work than connections, beside calls that were given up and have not ended. Nobody waits
/// for those, neither a runtime that is dropped nor the end of the program; nor does tokio's paused clock
/// stand still for any call. A connection is dropped there, too, or in place on a thread without a runtime.
///
/// # Examples
///
/// ```
/// use millpond::{Pool, backends::sqlite::SqliteManager};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("shop.db");
/// let pool = Pool::builder(SqliteManager::new(path)).max_size(4).build().await?;
/// let mut connection = pool.acquire().await?;
/// connection.call(|db| db.execute_batch("CREATE TABLE items (name TEXT, price INT)")).await?;
/// let name = String::from("net");
/// let count = connection
///     .call(move |db| db.execute("INSERT INTO items VALUES (?1, ?2)", (name, 12)))
///     .await?;
/// assert_eq!(count, 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct SqliteManager {
    path: PathBuf,
    wal: bool,
    busy_timeout: Duration,
    foreign_keys: bool,
    read_only: bool,
    create: bool,
    statement_cache_capacity: usize,
    on_open: Option<Arc<Init>>,
    init: Option<Arc<Init>>,
    /// Of readers: the pool that stays open until they are closed.
    _writer: Option<Arc<dyn Any + Send + Sync>>,
}

/// How long what is done to open a connection waits for a lock: less than a pool's `connect_timeout`, so
/// that whoever waits for the connection is told that the file is locked. It is tried again.
const OPENING: Duration = Duration::from_secs(1);

/// What SQLite can count, in milliseconds.
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

type Init = dyn Fn(&mut Connection) -> rusqlite::Result<()> + Send + Sync;

impl SqliteManager {
    /// Opens connections to the file at this path, which is created if it is not there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            wal: true,
            busy_timeout: Duration::from_secs(5),
            foreign_keys: true,
            read_only: false,
            create: true,
            statement_cache_capacity: 16,
            on_open: None,
            init: None,
            _writer: None,
        }
    }

    /// Whether the file has a [write-ahead log](https://www.sqlite.org/wal.html): then readers and
    /// the writer do not wait for each other. The file keeps that setting; `false` leaves it as it
    /// is. Not for files on a network. Default: `true`.
    pub fn wal(mut self, wal: bool) -> Self {
        self.wal = wal;
        self
    }

    /// How long a statement waits for others to unlock the file before it fails with
    /// [`DatabaseBusy`](ErrorCode::DatabaseBusy), to the millisecond; zero for not at all. A
    /// transaction that has read already does not wait when it comes to write, so begin one that
    /// will with `BEGIN IMMEDIATE`
    /// ([why](https://www.sqlite.org/lang_transaction.html#read_transactions_versus_write_transactions)).
    /// Up to 24 days, by which a longer one is replaced. Opening a connection waits for 1 s of that at the
    /// most, and is then tried again while somebody waits for it. Default: 5 s.
    pub fn busy_timeout(mut self, limit: Duration) -> Self {
        self.busy_timeout = limit.min(LONGEST);
        self
    }

    /// Whether [foreign keys](https://www.sqlite.org/foreignkeys.html#fk_enable) are enforced; SQLite
    /// asks each connection to say so. Default: `true`.
    pub fn foreign_keys(mut self, enforced: bool) -> Self {
        self.foreign_keys = enforced;
        self
    }

    /// Whether connections can only read. Then the file must be there. Default: `false`.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Whether a file that is missing is created. Default: `true`.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// How many statements each connection keeps prepared, for
    /// [`prepare_cached`](Connection::prepare_cached); 0 for none. Default: 16, as in rusqlite.
    pub fn statement_cache_capacity(mut self, capacity: usize) -> Self {
        self.statement_cache_capacity = capacity;
        self
    }

    /// Does this first with each new connection, before its file is read and the options above are set:
    /// `PRAGMA key` for an encrypted file, `PRAGMA page_size` for a new one. It may block. Default:
    /// nothing.
    pub fn on_open(
        mut self,
        on_open: impl Fn(&mut Connection) -> rusqlite::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.on_open = Some(Arc::new(on_open));
        self
    }

    /// Sets up each new connection, once the options above are: pragmas, functions, attached
    /// databases. It may block. A busy timeout above zero that it sets is that of the connection from then
    /// on; a busy handler of its own would not outlast it. Default: nothing.
    pub fn init(
        mut self,
        init: impl Fn(&mut Connection) -> rusqlite::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.init = Some(Arc::new(init));
        self
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens one. Blocks.
    fn open(&self, given_up: &Arc<AtomicBool>) -> rusqlite::Result<Opened> {
        let mut flags = match self.read_only {
            true => OpenFlags::SQLITE_OPEN_READ_ONLY,
            false => OpenFlags::SQLITE_OPEN_READ_WRITE,
        };
        flags.set(OpenFlags::SQLITE_OPEN_CREATE, self.creates());
        // Only one thread at a time has it.
        flags |= OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags)?;
        let Some(path) = file_of(&connection)? else {
            let why = "a database in memory belongs to one connection, and a pool has several: \
                       give the path of a file";
            return Err(failure(ffi::SQLITE_MISUSE, why));
        };
        let file = File::new(path, &self.path).map(Arc::new);
        connection.busy_timeout(self.busy_timeout)?;
        let patience = Patience::new(self.busy_timeout.min(OPENING), given_up.clone());
        let chosen = patience.during(&mut connection, |db| {
            self.set_up(db)?;
            self.init.as_ref().map_or(Ok(()), |init| init(db))?;
            // Zero while there is a busy handler: ours.
            db.pragma_query_value(None, "busy_timeout", |row| row.get::<_, u32>(0))
        })?;
        let busy_timeout = match chosen {
            0 => self.busy_timeout,
            chosen => Duration::from_millis(chosen.into()),
        };
        connection.busy_timeout(busy_timeout)?;
        Ok(Opened { connection: Ends(connection), busy_timeout, file })
    }

    /// Sets all but `init`.
    fn set_up(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        if let Some(on_open) = &self.on_open {
            on_open(connection)?;
        }
        connection.set_prepared_statement_cache_capacity(self.statement_cache_capacity);
        if self.wal && !self.read_only {
            let mode: String =
                connection
                    .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
            if mode != "wal" {
                let why = format!("this file cannot have a write-ahead log, only {mode}");
                return Err(failure(ffi::SQLITE_MISUSE, &why));
            }
        }
        connection.pragma_update(None, "foreign_keys", self.foreign_keys)?;
        // The first read: that it is a database shows only now.
        connection.pragma_query_value(None, "schema_version", |row| row.get::<_, i64>(0)).map(drop)
    }

    fn creates(&self) -> bool {
        self.create && !self.read_only
    }
}

impl Manager for SqliteManager {
    type Connection = SqliteConnection;
    type Error = Error;

    async fn connect(&self) -> rusqlite::Result<SqliteConnection> {
        /// Nobody waits any more for a connection that is being opened.
        struct GivesUp(Arc<AtomicBool>);

        impl Drop for GivesUp {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }

        let (manager, given_up) = (self.clone(), Arc::<AtomicBool>::default());
        let opening = Call::begin({
            let given_up = given_up.clone();
            move || manager.open(&given_up)
        });
        // Cancel: it waits for no lock any more, and what it opens is closed on its thread.
        let _waiting = GivesUp(given_up);
        let opened = opening.await.unwrap_or_else(|error| Err(lost(error)))?;
        let Opened { connection, busy_timeout, file } = opened;
        Ok(SqliteConnection { place: Place::Here(connection), busy_timeout, file })
    }

    fn condition(&self, connection: &mut SqliteConnection) -> Condition {
        match &connection.place {
            Place::Lost => Condition::Broken,
            Place::Away(_) => Condition::Dirty,
            Place::Here(Ends(here)) if here.is_busy() => Condition::Broken,
            Place::Here(Ends(here)) if here.is_autocommit() => Condition::Clean,
            Place::Here(_) => Condition::Dirty,
        }
    }

    async fn check(&self, connection: &mut SqliteConnection) -> rusqlite::Result<()> {
        let file = connection.file.clone();
        let same = move |db: &mut Connection| {
            if file.is_some_and(|file| !file.is_there()) {
                let why = "the file was moved, replaced or deleted";
                return Err(failure(ffi::SQLITE_READONLY_DBMOVED, why));
            }
            db.pragma_query_value(None, "schema_version", |row| row.get::<_, i64>(0)).map(drop)
        };
        connection.call(same).await
    }

    async fn reset(&self, connection: &mut SqliteConnection) -> rusqlite::Result<()> {
        connection.fetch().await?;
        let roll_back = |db: &mut Connection| match db.is_autocommit() {
            true => Ok(()),
            false => db.execute_batch("ROLLBACK"),
        };
        connection.call(roll_back).await
    }

    async fn close(&self, mut connection: SqliteConnection) {
        // One that is lost is closed.
        if connection.fetch().await.is_err() {
            return;
        }
        if let Place::Here(here) = mem::replace(&mut connection.place, Place::Lost) {
            drop(Call::begin(move || drop(here)).await);
        }
    }

    fn is_permanent(&self, error: &Error) -> bool {
        match error.sqlite_error_code() {
            Some(
                ErrorCode::NotADatabase
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::PermissionDenied
                | ErrorCode::ApiMisuse,
            ) => true,
            // It says the same if the process has too many files open, and that will pass.
            Some(ErrorCode::CannotOpen) => {
                let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
                let is_futile = self.path.is_dir()
                    || folder.is_some_and(|folder| !folder.is_dir())
                    || !self.creates() && !self.path.exists();
                // Of a URI nothing is known.
                is_futile && !self.path.as_os_str().as_encoded_bytes().starts_with(b"file:")
            }
            _ => matches!(error, Error::NulError(_) | Error::InvalidPath(_)),
        }
    }

    fn target(&self) -> Option<String> {
        let path = self.path.display().to_string();
        // A URI may have a key behind that.
        let end = path.find(['?', '#']).filter(|_| path.starts_with("file:"));
        Some(path[..end.unwrap_or(path.len())].to_owned())
    }
}

impl fmt::Debug for SqliteManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteManager")
            .field("path", &self.path)
            .field("wal", &self.wal)
            .field("busy_timeout", &self.busy_timeout)
            .field("foreign_keys", &self.foreign_keys)
            .field("read_only", &self.read_only)
            .field("create", &self.create)
            .field("statement_cache_capacity", &self.statement_cache_capacity)
            .field("on_open", &self.on_open.is_some())
            .field("init", &self.init.is_some())
            .finish()
    }
}

/// What opening a connection comes to.
struct Opened {
    connection: Ends,
    busy_timeout: Duration,
    file: Option<Arc<File>>,
}

/// A connection to an SQLite file, for callers who must not block and for those who may.
pub struct SqliteConnection {
    place: Place,
    busy_timeout: Duration,
    file: Option<Arc<File>>,
}

/// Where the connection is.
enum Place {
    Here(Ends),
    /// A call works on it, or did when it was given up.
    Away(Errand),
    /// It went down with a call that panicked, or there was no thread for it.
    Lost,
}

/// A connection, which dropping this closes, wherever it has got to. That blocks: the last one to close may
/// write all of the log into the file.
struct Ends(Connection);

impl Ends {
    /// Takes away an interrupt that found nothing to interrupt: the next statement does.
    fn forget_interrupt(&self) {
        drop(self.0.execute_batch("SELECT 1"));
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        // An interrupt, such as of a call that panicked, would keep it from that.
        self.forget_interrupt();
    }
}

/// A call that has the connection. Dropping it before its end gives it up.
struct Errand {
    call: Call<Ends>,
    reins: Arc<Reins>,
    chased: bool,
}

/// What ends an errand early.
struct Reins {
    interrupt: rusqlite::InterruptHandle,
    given_up: Arc<AtomicBool>,
    /// Whether the errand is over, which ends what is done to end it.
    over: Mutex<bool>,
    ended: Condvar,
}

impl SqliteConnection {
    /// Does something with the connection, on a thread that may block, and waits for it without blocking
    /// this one. It needs no runtime; where there is one, `work` is done inside it.
    ///
    /// # Errors
    ///
    /// What `work` returns, and [`OperationAborted`](ErrorCode::OperationAborted) if an earlier call
    /// panicked or the system has no thread for this one.
    ///
    /// # Panics
    ///
    /// If `work` does. The connection is closed then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future interrupts what SQLite is doing, also if it waits for a lock; `work` sees
    /// an error and should return, as all that it goes on to ask SQLite for is interrupted too, soon after
    /// the pool has the connection back. Until it has, the pool hands the connection to nobody, and the
    /// next call waits. A transaction that `work` left open is rolled back before anybody else has
    /// the connection; what it has committed stays.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Manager, backends::sqlite::SqliteManager};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> rusqlite::Result<()> {
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let mut connection = SqliteManager::new(folder.path().join("db")).connect().await?;
    /// let answer: i64 = connection
    ///     .call(|db| {
    ///         let transaction = db.transaction()?;
    ///         let answer = transaction.query_row("SELECT 6 * 7", [], |row| row.get(0))?;
    ///         transaction.commit()?;
    ///         Ok::<_, rusqlite::Error>(answer)
    ///     })
    ///     .await?;
    /// assert_eq!(answer, 42);
    /// # Ok(()) }
    /// ```
    pub async fn call<T, E>(
        &mut self,
        work: impl FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.fetch().await?;
        let (report, outcome) = mpsc::channel();
        self.send_off(move |db| {
            // Whoever does not wait any more does not want it.
            drop(report.send(work(db)));
        });
        // Cancel: whatever ends this future before the errand is over gives the errand up.
        let waiting = GivesUp(self);
        waiting.0.comes_home().await.map_err(lost)?;
        outcome.try_recv().unwrap_or_else(|_| Err(failure(ffi::SQLITE_ABORT, GONE).into()))
    }

    /// The connection itself, for a thread that may block, or for what is over in a moment.
    ///
    /// # Errors
    ///
    /// [`OperationAborted`](ErrorCode::OperationAborted) if a [`call`](Self::call) on it panicked,
    /// [`ApiMisuse`](ErrorCode::ApiMisuse) if one was given up and is not over yet.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Pool, backends::sqlite::SqliteManager};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let manager = SqliteManager::new(folder.path().join("db"));
    /// let pool = Pool::builder(manager).build_blocking()?;
    /// let mut connection = pool.acquire()?;
    /// let answer: i64 = connection.in_place()?.query_row("SELECT 6 * 7", [], |row| row.get(0))?;
    /// assert_eq!(answer, 42);
    /// # Ok(()) }
    /// ```
    pub fn in_place(&mut self) -> rusqlite::Result<&mut Connection> {
        {
            // Whether a call that was given up is over, nobody else asks. Unconstrained, since a task that has
            // done much is told of nothing otherwise.
            let home = pin!(unconstrained(self.comes_home()));
            // The panic of such a call is not for this caller, and the panic hook has seen it.
            drop(home.poll(&mut Context::from_waker(Waker::noop())));
        }
        match &mut self.place {
            Place::Here(Ends(connection)) => Ok(connection),
            Place::Away(_) => {
                Err(failure(ffi::SQLITE_MISUSE, "a call that was given up is not over yet"))
            }
            Place::Lost => Err(failure(ffi::SQLITE_ABORT, GONE)),
        }
    }

    /// Sends the connection to a thread that may block.
    fn send_off(&mut self, work: impl FnOnce(&mut Connection) + Send + 'static) {
        let Place::Here(mut connection) = mem::replace(&mut self.place, Place::Lost) else {
            return;
        };
        let reins = Arc::new(Reins {
            interrupt: connection.0.get_interrupt_handle(),
            given_up: Arc::default(),
            over: Mutex::new(false),
            ended: Condvar::new(),
        });
        let (limit, errand) = (self.busy_timeout, Over(reins.clone()));
        let call = Call::begin(move || {
            // Ordering: Relaxed; nothing else is told by it.
            if !errand.0.given_up.load(Ordering::Relaxed) {
                Patience::new(limit, errand.0.given_up.clone()).during(&mut connection.0, work);
            }
            let given_up = errand.0.given_up.clone();
            drop(errand);
            // No interrupt comes any more, and the lock of `over` has told whether one came.
            if given_up.load(Ordering::Relaxed) {
                connection.forget_interrupt();
            }
            connection
        });
        self.place = Place::Away(Errand { call, reins, chased: false });
    }

    /// Waits until the errand is over.
    ///
    /// # Cancel safety
    ///
    /// It goes on, and can be waited for again.
    async fn comes_home(&mut self) -> Result<(), Lost> {
        let Place::Away(errand) = &mut self.place else { return Ok(()) };
        match (&mut errand.call).await {
            Ok(connection) => {
                self.place = Place::Here(connection);
                Ok(())
            }
            Err(error) => {
                self.place = Place::Lost;
                Err(error)
            }
        }
    }

    /// Has the connection here, if need be by interrupting an errand that was given up.
    ///
    /// # Cancel safety
    ///
    /// As [`comes_home`](Self::comes_home).
    async fn fetch(&mut self) -> rusqlite::Result<()> {
        if let Place::Away(errand) = &mut self.place {
            errand.chase();
        }
        // Its caller did not see the panic, and the panic hook has.
        drop(self.comes_home().await);
        self.in_place().map(drop)
    }
}

impl Drop for SqliteConnection {
    fn drop(&mut self) {
        if let Place::Here(connection) = mem::replace(&mut self.place, Place::Lost) {
            threads::aside(move || drop(connection));
        }
    }
}

impl fmt::Debug for SqliteConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.place {
            Place::Here(Ends(connection)) => return fmt::Debug::fmt(connection, f),
            Place::Away(_) => "Away",
            Place::Lost => "Lost",
        };
        f.debug_tuple("SqliteConnection").field(&place).finish()
    }
}

impl Errand {
    /// Has it interrupted until it is over.
    fn chase(&mut self) {
        if mem::replace(&mut self.chased, true) || *self.reins.over() {
            return;
        }
        let reins = self.reins.clone();
        reins.give_up();
        threads::run(move || reins.chase());
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        self.chase();
    }
}

impl Reins {
    fn over(&self) -> MutexGuard<'_, bool> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        // The errand cannot end meanwhile, so this never hits whoever has the connection next.
        let over = self.over();
        if !*over {
            self.interrupt.interrupt();
        }
    }

    /// Interrupts until the errand is over. Blocks.
    fn chase(&self) {
        /// Between two interrupts: one is lost if it comes between two statements.
        const AGAIN: Duration = Duration::from_millis(5);
        let mut over = self.over();
        while !*over {
            // The errand cannot end meanwhile, so this never hits the connection's next call.
            self.interrupt.interrupt();
            let wait = self.ended.wait_timeout(over, AGAIN);
            over = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// An errand, which is over when this is dropped.
struct Over(Arc<Reins>);

impl Drop for Over {
    fn drop(&mut self) {
        *self.0.over() = true;
        self.0.ended.notify_all();
    }
}

/// A call that waits for its errand.
struct GivesUp<'c>(&'c mut SqliteConnection);

impl Drop for GivesUp<'_> {
    fn drop(&mut self) {
        if let Place::Away(errand) = &self.0.place {
            errand.reins.give_up();
        }
    }
}

/// How long this thread's errand waits for a lock. SQLite's own busy handler does not notice an
/// interrupt.
struct Patience {
    limit: Duration,
    given_up: Arc<AtomicBool>,
    began: Instant,
}

thread_local! {
    static PATIENCE: RefCell<Option<Patience>> = const { RefCell::new(None) };
}

impl Patience {
    fn new(limit: Duration, given_up: Arc<AtomicBool>) -> Self {
        Self { limit, given_up, began: Instant::now() }
    }

    /// Does `work` with this patience.
    fn during<T>(self, connection: &mut Connection, work: impl FnOnce(&mut Connection) -> T) -> T {
        let limit = self.limit;
        let ours = !limit.is_zero() && connection.busy_handler(Some(Self::wait)).is_ok();
        PATIENCE.set(Some(self));
        let done = work(connection);
        if ours {
            // It has been accepted before.
            drop(connection.busy_timeout(limit));
        }
        done
    }

    /// The busy handler: waits a little, and answers whether to try again.
    fn wait(attempt: i32) -> bool {
        PATIENCE.with_borrow_mut(|patience| {
            let Some(patience) = patience else { return false };
            if attempt == 0 {
                patience.began = Instant::now();
            }
            let left = patience.limit.saturating_sub(patience.began.elapsed());
            if left.is_zero() || patience.given_up.load(Ordering::Relaxed) {
                return false;
            }
            thread::sleep(left.min(Duration::from_millis(1 << attempt.clamp(0, 4))));
            true
        })
    }
}

/// One SQLite file and two pools of connections to it: one connection that writes, and several that
/// only read.
///
/// SQLite has one writer at a time, and who waits for it waits without order and may go without
/// ([`busy_timeout`](SqliteManager::busy_timeout)). With this, writers wait in a pool's line, first
/// come, first served, with a pool's deadline; and readers never wait for them, since the file has a
/// [write-ahead log](https://www.sqlite.org/wal.html). Other processes are locked out for as long as
/// a statement or transaction of the writer takes, as ever.
///
/// Each pool is closed with its last handle, but the writer's not before all readers are: the last
/// connection to close writes the rest of the log into the file, which readers cannot.
///
/// # Examples
///
/// ```
/// use millpond::backends::sqlite::{SqliteDatabase, SqliteManager};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("shop.db");
/// let database = SqliteDatabase::open(SqliteManager::new(path), 4).await?;
/// let mut writer = database.writer().acquire().await?;
/// writer.call(|db| db.execute_batch("CREATE TABLE a (b); INSERT INTO a VALUES (1)")).await?;
/// let mut reader = database.readers().acquire().await?;
/// let b: i64 = reader.call(|db| db.query_row("SELECT b FROM a", [], |row| row.get(0))).await?;
/// assert_eq!(b, 1);
/// # Ok(()) }
/// ```
///
/// For threads, with pools that bring their own runtime:
///
/// ```
/// use millpond::backends::sqlite::{SqliteDatabase, SqliteManager};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("shop.db");
/// let database = SqliteDatabase::open_blocking(SqliteManager::new(path), 4)?;
/// let mut writer = database.writer().acquire()?;
/// writer.in_place()?.execute_batch("CREATE TABLE a (b); INSERT INTO a VALUES (1)")?;
/// let mut reader = database.readers().acquire()?;
/// let b: i64 = reader.in_place()?.query_row("SELECT b FROM a", [], |row| row.get(0))?;
/// assert_eq!(b, 1);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SqliteDatabase<P = Pool<SqliteManager>> {
    // Their manager has a handle of the writer's pool.
    readers: P,
    writer: P,
}

type Builder = PoolBuilder<SqliteManager>;

impl<P> SqliteDatabase<P> {
    /// The pool of the one connection that writes.
    #[must_use]
    pub fn writer(&self) -> &P {
        &self.writer
    }

    /// The pool of those that only read.
    #[must_use]
    pub fn readers(&self) -> &P {
        &self.readers
    }
}

/// The pool of the writer, which goes first: readers can neither create the file nor give it a log.
fn writing(manager: SqliteManager, settings: impl Fn(Builder) -> Builder) -> Builder {
    let writer = settings(Pool::builder(manager.wal(true).read_only(false)));
    let writer = writer.part("writer").max_size(1).capacity(1).reserved(Priority::High, 0);
    writer.min_idle(1)
}

/// The pool of so many readers, beside that of the writer.
fn reading(
    manager: SqliteManager,
    readers: usize,
    writer: impl Any + Send + Sync,
    settings: impl Fn(Builder) -> Builder,
) -> Builder {
    let manager = SqliteManager { _writer: Some(Arc::new(writer)), ..manager.read_only(true) };
    settings(Pool::builder(manager)).part("readers").max_size(readers)
}

/// How long the close of a database waits for one of its pools.
fn patience(config: &Config) -> Duration {
    config.reset_timeout.saturating_add(config.close_timeout)
}

impl SqliteDatabase {
    /// Opens the file with this manager's options, and one connection that writes; and lets up to
    /// `readers` connections read, from 1. The manager's [`wal`](SqliteManager::wal) and
    /// [`read_only`](SqliteManager::read_only) are set as each pool needs them.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build`].
    pub async fn open(
        manager: SqliteManager,
        readers: usize,
    ) -> Result<Self, BuildError<rusqlite::Error>> {
        Self::open_with(manager, readers, |builder| builder).await
    }

    /// The same with settings for both pools, other than their sizes; the `capacity` and what is
    /// `reserved` are those of the readers, since there is never more than one writer. To the name that
    /// they give, `-writer` and `-readers` are added.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build`].
    pub async fn open_with(
        manager: SqliteManager,
        readers: usize,
        settings: impl Fn(PoolBuilder<SqliteManager>) -> PoolBuilder<SqliteManager>,
    ) -> Result<Self, BuildError<rusqlite::Error>> {
        let writer = writing(manager.clone(), &settings).build().await?;
        let readers = reading(manager, readers, writer.clone(), &settings);
        Ok(Self { readers: readers.build().await?, writer })
    }

    /// Closes both pools, the writer's last: closing the last connection to a file writes the rest of
    /// the log into it. So the writer waits for readers that are being reset or in use, for the readers'
    /// `reset_timeout` and `close_timeout` together at the most; and this waits as long for a writer
    /// that is. Outside a tokio runtime, and on one without a timer, nothing is waited for.
    ///
    /// The log stays beside the file if a connection is open for longer: in use, or where a call goes on
    /// that did not end in time. So it may if one is being opened when this is called. Nothing is lost
    /// while the log is there. [`Pool::drain`] of the readers and then of the writer, before this, waits
    /// for as long as it is told to, and says who holds them.
    ///
    /// # Cancel safety
    ///
    /// The readers' pool is closed at the first poll. Dropping the future closes the writer's as well, and
    /// only stops waiting.
    pub async fn close(&self) {
        /// Closes a pool, however its time comes.
        struct Shuts<'p>(&'p Pool<SqliteManager>);

        impl Drop for Shuts<'_> {
            fn drop(&mut self) {
                self.0.shut();
            }
        }

        // Cancel: the writer's pool does not stay open because nobody waits for the readers any more.
        let writer = Shuts(&self.writer);
        for pool in [&self.readers, writer.0] {
            // First: whom it refuses is not told of a drain.
            pool.shut();
            drop(pool.drain(patience(pool.config())).await);
        }
    }
}

impl SqliteDatabase<blocking::Pool<SqliteManager>> {
    /// As [`open`](SqliteDatabase::open), for threads: each of the two pools is a [`blocking::Pool`].
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build_blocking`].
    pub fn open_blocking(
        manager: SqliteManager,
        readers: usize,
    ) -> Result<Self, BuildError<rusqlite::Error>> {
        Self::open_blocking_with(manager, readers, |builder| builder)
    }

    /// The same with settings for both pools, as [`open_with`](SqliteDatabase::open_with) takes them.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build_blocking`].
    pub fn open_blocking_with(
        manager: SqliteManager,
        readers: usize,
        settings: impl Fn(PoolBuilder<SqliteManager>) -> PoolBuilder<SqliteManager>,
    ) -> Result<Self, BuildError<rusqlite::Error>> {
        let writer = writing(manager.clone(), &settings).build_blocking()?;
        let readers = reading(manager, readers, writer.clone(), &settings);
        Ok(Self { readers: readers.build_blocking()?, writer })
    }

    /// Closes both pools, the writer's last, and waits for each as [`SqliteDatabase::close`] of tasks does, but inside
    /// a task for none.
    pub fn close(&self) {
        for pool in [&self.readers, &self.writer] {
            // First: whom it refuses is not told of a drain.
            pool.shut();
            drop(pool.drain(patience(pool.config())));
        }
    }
}

const GONE: &str = "the connection is gone, with a call that panicked or had no thread";
const NO_THREAD: &str =
    "the connection is gone: the system has no thread left for a call that blocks";

fn failure(code: i32, why: &str) -> Error {
    Error::SqliteFailure(ffi::Error::new(code), Some(why.to_owned()))
}

/// The error of an errand that has not come home; its panic goes on.
fn lost(error: Lost) -> Error {
    match error {
        Lost::Panicked(panic) => resume_unwind(panic),
        Lost::NoThread(error) => failure(ffi::SQLITE_ABORT, &format!("{NO_THREAD}: {error}")),
    }
}

/// The file that a connection has opened, as SQLite calls it; `None` if it is in memory. Reads nothing.
fn file_of(connection: &Connection) -> rusqlite::Result<Option<PathBuf>> {
    let mut file = None;
    connection.pragma_query(None, "database_list", |row| {
        // The first is the main one.
        if file.is_none() {
            file = Some(row.get_ref(2)?.as_bytes_or_null()?.unwrap_or_default().to_vec());
        }
        Ok(())
    })?;
    Ok(file.filter(|name| !name.is_empty()).and_then(path))
}

#[cfg(unix)]
fn path(name: Vec<u8>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Some(std::ffi::OsString::from_vec(name).into())
}

#[cfg(not(unix))]
fn path(name: Vec<u8>) -> Option<PathBuf> {
    String::from_utf8(name).ok().map(PathBuf::from)
}

/// A file, and the paths that lead to it.
struct File {
    id: FileId,
    paths: Vec<PathBuf>,
}

impl File {
    /// The file at the end of all symbolic links, and what its user calls it, unless that is no path but
    /// a URI. `None` if it is not there any more.
    fn new(opened: PathBuf, called: &Path) -> Option<Self> {
        let id = file_id(&opened)?;
        let called = file_id(called).map(|_| called.to_owned());
        Some(Self { id, paths: [opened].into_iter().chain(called).collect() })
    }

    fn is_there(&self) -> bool {
        self.paths.iter().all(|path| file_id(path) == Some(self.id))
    }
}

/// What tells files apart whatever they are called: device and number.
type FileId = (u64, u64);

#[cfg(unix)]
fn file_id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn file_id(path: &Path) -> Option<FileId> {
    // Files that are open cannot be replaced there.
    fs::exists(path).ok().filter(|exists| *exists).map(|_| (0, 0))
}
