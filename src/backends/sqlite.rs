//! SQLite, through [rusqlite](https://docs.rs/rusqlite): connections to one file, whose work is kept
//! off the runtime's workers.
//!
//! Not here: databases in memory, which belong to one connection each.

use crate::error::BuildError;
use crate::manager::{Condition, Manager};
use crate::pool::{Pool, PoolBuilder};
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, ffi};
use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;

/// Opens connections to an SQLite file.
///
/// Connections are [`SqliteConnection`]s. SQLite has one writer at a time: others wait up to
/// [`busy_timeout`](Self::busy_timeout), in no order. [`SqliteDatabase`] has them wait in a pool's
/// line instead.
///
/// # What is checked
///
/// - When a connection is released: it is **closed** if a call on it panicked or a statement is left
///   in the middle of its rows, and **reset** if a transaction is open or a call was given up.
/// - When the pool checks one: that it can read the file, and, on Unix, that its path still leads to
///   that file. One that goes on writing to a file that was replaced loses what it writes
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
    init: Option<Arc<Init>>,
}

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
            init: None,
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
    /// Default: 5 s.
    pub fn busy_timeout(mut self, limit: Duration) -> Self {
        self.busy_timeout = limit;
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

    /// Sets up each new connection, once the options above are: pragmas, functions, attached
    /// databases. It may block. Default: nothing.
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
    fn open(&self) -> rusqlite::Result<(Connection, Option<FileId>)> {
        let mut flags = match self.read_only {
            true => OpenFlags::SQLITE_OPEN_READ_ONLY,
            false => OpenFlags::SQLITE_OPEN_READ_WRITE,
        };
        flags.set(OpenFlags::SQLITE_OPEN_CREATE, self.creates());
        // Only one thread at a time has it.
        flags |= OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags)?;
        let Some(path) = connection.path().filter(|path| !path.is_empty()) else {
            let why = "a database in memory belongs to one connection, and a pool has several: \
                       give the path of a file";
            return Err(failure(ffi::SQLITE_MISUSE, why));
        };
        let file = file_id(path);
        connection.busy_timeout(self.busy_timeout)?;
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
        let _: i64 = connection.pragma_query_value(None, "schema_version", |row| row.get(0))?;
        if let Some(init) = &self.init {
            init(&mut connection)?;
        }
        Ok((connection, file))
    }

    fn creates(&self) -> bool {
        self.create && !self.read_only
    }
}

impl Manager for SqliteManager {
    type Connection = SqliteConnection;
    type Error = Error;

    async fn connect(&self) -> rusqlite::Result<SqliteConnection> {
        let manager = self.clone();
        let runtime = Handle::current();
        let opened = runtime.spawn_blocking(move || manager.open()).await;
        let (connection, file) = opened.unwrap_or_else(|error| Err(lost(error)))?;
        let place = Place::Here(connection);
        Ok(SqliteConnection { place, runtime, busy_timeout: self.busy_timeout, file })
    }

    fn condition(&self, connection: &mut SqliteConnection) -> Condition {
        match &connection.place {
            Place::Lost => Condition::Broken,
            Place::Away(_) => Condition::Dirty,
            Place::Here(here) if here.is_busy() => Condition::Broken,
            Place::Here(here) if here.is_autocommit() => Condition::Clean,
            Place::Here(_) => Condition::Dirty,
        }
    }

    async fn check(&self, connection: &mut SqliteConnection) -> rusqlite::Result<()> {
        let opened = connection.file;
        let same = move |db: &mut Connection| {
            if opened.is_some() && opened != db.path().and_then(file_id) {
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
        if let Place::Here(here) = std::mem::replace(&mut connection.place, Place::Lost) {
            // The last one to close may write all of the log into the file.
            drop(connection.runtime().spawn_blocking(move || drop(here)).await);
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
                self.path.is_dir()
                    || folder.is_some_and(|folder| !folder.is_dir())
                    || !self.creates() && !self.path.exists()
            }
            _ => matches!(error, Error::NulError(_) | Error::InvalidPath(_)),
        }
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
            .field("init", &self.init.is_some())
            .finish()
    }
}

/// A connection to an SQLite file, for callers who must not block and for those who may.
pub struct SqliteConnection {
    place: Place,
    /// Where it was opened: its calls run there if their caller has no runtime.
    runtime: Handle,
    busy_timeout: Duration,
    file: Option<FileId>,
}

/// Where the connection is.
enum Place {
    Here(Connection),
    /// A call works on it, or did when it was given up.
    Away(Errand),
    /// It went down with a call that panicked, or with its runtime.
    Lost,
}

struct Errand {
    task: JoinHandle<Connection>,
    interrupt: rusqlite::InterruptHandle,
    given_up: Arc<AtomicBool>,
}

impl SqliteConnection {
    /// Does something with the connection, on a thread of tokio's that may block, and waits for it
    /// without blocking this one.
    ///
    /// # Errors
    ///
    /// What `work` returns, and [`OperationAborted`](ErrorCode::OperationAborted) if an earlier call
    /// panicked or the runtime has ended.
    ///
    /// # Panics
    ///
    /// If `work` does. The connection is closed then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future interrupts what SQLite is doing, also if it waits for a lock; `work` sees
    /// an error and should return. Until it has, the pool hands the connection to nobody, and the
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
        match &mut self.place {
            Place::Here(connection) => Ok(connection),
            Place::Away(_) => {
                Err(failure(ffi::SQLITE_MISUSE, "a call that was given up is not over yet"))
            }
            Place::Lost => Err(failure(ffi::SQLITE_ABORT, GONE)),
        }
    }

    fn runtime(&self) -> Handle {
        // The one it was opened on may have ended.
        Handle::try_current().unwrap_or_else(|_| self.runtime.clone())
    }

    /// Sends the connection to a thread that may block.
    fn send_off(&mut self, work: impl FnOnce(&mut Connection) + Send + 'static) {
        let runtime = self.runtime();
        let Place::Here(mut connection) = std::mem::replace(&mut self.place, Place::Lost) else {
            return;
        };
        let interrupt = connection.get_interrupt_handle();
        let given_up = Arc::<AtomicBool>::default();
        let patience = Patience {
            limit: self.busy_timeout,
            given_up: given_up.clone(),
            began: Instant::now(),
        };
        let task = runtime.spawn_blocking(move || {
            // Ordering: Relaxed; nothing else is told by it.
            if !patience.given_up.load(Ordering::Relaxed) {
                patience.during(&mut connection, work);
            }
            connection
        });
        self.place = Place::Away(Errand { task, interrupt, given_up });
    }

    /// Waits until the errand is over.
    ///
    /// # Cancel safety
    ///
    /// It goes on, and can be waited for again.
    async fn comes_home(&mut self) -> Result<(), JoinError> {
        let Place::Away(errand) = &mut self.place else { return Ok(()) };
        match (&mut errand.task).await {
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
        /// Between two interrupts: one is lost if it comes between two statements.
        const AGAIN: Duration = Duration::from_millis(5);
        while let Place::Away(errand) = &self.place {
            errand.give_up();
            let runtime = self.runtime();
            let wait = {
                let _inside = runtime.enter();
                timeout(AGAIN, self.comes_home())
            };
            if let Ok(Err(_)) = wait.await {
                // Its caller did not see the panic, and the panic hook has.
                break;
            }
        }
        self.in_place().map(drop)
    }
}

impl fmt::Debug for SqliteConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.place {
            Place::Here(connection) => return fmt::Debug::fmt(connection, f),
            Place::Away(_) => "Away",
            Place::Lost => "Lost",
        };
        f.debug_tuple("SqliteConnection").field(&place).finish()
    }
}

impl Errand {
    fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        self.interrupt.interrupt();
    }
}

/// A call that waits for its errand.
struct GivesUp<'c>(&'c mut SqliteConnection);

impl Drop for GivesUp<'_> {
    fn drop(&mut self) {
        if let Place::Away(errand) = &self.0.place {
            errand.give_up();
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
    /// Does `work` with this patience.
    fn during(self, connection: &mut Connection, work: impl FnOnce(&mut Connection)) {
        let limit = self.limit;
        let ours = !limit.is_zero() && connection.busy_handler(Some(Self::wait)).is_ok();
        PATIENCE.set(Some(self));
        work(connection);
        if ours {
            // It has been accepted before.
            drop(connection.busy_timeout(limit));
        }
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
#[derive(Clone, Debug)]
pub struct SqliteDatabase {
    writer: Pool<SqliteManager>,
    readers: Pool<SqliteManager>,
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

    /// The same with settings for both pools, other than their sizes.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build`].
    pub async fn open_with(
        manager: SqliteManager,
        readers: usize,
        settings: impl Fn(PoolBuilder<SqliteManager>) -> PoolBuilder<SqliteManager>,
    ) -> Result<Self, BuildError<rusqlite::Error>> {
        let writer = settings(Pool::builder(manager.clone().wal(true).read_only(false)));
        // It goes first: readers can neither create the file nor give it a log.
        let writer = writer.max_size(1).min_idle(1).build().await?;
        let reading = settings(Pool::builder(manager.read_only(true)));
        let readers = reading.max_size(readers).build().await?;
        Ok(Self { writer, readers })
    }

    /// The pool of the one connection that writes.
    #[must_use]
    pub fn writer(&self) -> &Pool<SqliteManager> {
        &self.writer
    }

    /// The pool of those that only read.
    #[must_use]
    pub fn readers(&self) -> &Pool<SqliteManager> {
        &self.readers
    }

    /// Closes both pools, the writer's last: closing the last connection to a file writes the rest of
    /// the log into it.
    ///
    /// # Cancel safety
    ///
    /// As [`Pool::close`].
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

const GONE: &str = "the connection is gone, with a call that panicked or with its runtime";

fn failure(code: i32, why: &str) -> Error {
    Error::SqliteFailure(ffi::Error::new(code), Some(why.to_owned()))
}

/// The error of an errand that has not come home; its panic goes on.
fn lost(error: JoinError) -> Error {
    if error.is_panic() {
        resume_unwind(error.into_panic());
    }
    failure(ffi::SQLITE_ABORT, GONE)
}

/// What tells files apart whatever they are called: device and number.
type FileId = (u64, u64);

#[cfg(unix)]
fn file_id(path: &str) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn file_id(path: &str) -> Option<FileId> {
    // Files that are open cannot be replaced there.
    fs::exists(path).ok().filter(|exists| *exists).map(|_| (0, 0))
}
