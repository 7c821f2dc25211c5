//! Connections of sqlx's databases, so that its users can swap the pool and keep their queries.
//!
//! Not here: any database. The drivers come with the user's `sqlx`, whose types are those of
//! `sqlx-core`.

use crate::manager::{Condition, Manager};
use sqlx_core::Error;
use sqlx_core::connection::{ConnectOptions, Connection};
use sqlx_core::database::Database;
use sqlx_core::sql_str::SqlSafeStr;
use sqlx_core::transaction::TransactionManager;
use std::fmt;

type Options<DB> = <<DB as Database>::Connection as Connection>::Options;
type IsPermanent = Box<dyn Fn(&Error) -> bool + Send + Sync>;

/// Opens connections of one of sqlx's databases: `SqlxManager<Postgres>` and so on.
///
/// A guard derefs to the database's own connection, which is an `Executor`:
/// `sqlx::query("…").fetch_one(&mut *connection)`, `connection.begin()`. The driver and the runtime
/// are features of the user's `sqlx` 0.9, such as `postgres` and `runtime-tokio`.
///
/// # What is checked
///
/// [`check`](Manager::check) is sqlx's `ping`, one round trip.
///
/// # What is reset
///
/// Every connection that comes back, as in sqlx's own pool: one does not see of a connection whether
/// somebody has dropped the future of a query half-way, nor, if that was a `begin`, whether a
/// transaction has been left open. So it is asked, in the background, before anybody else gets it,
/// within `reset_timeout`:
///
/// - The `ROLLBACK` of a dropped `Transaction` is sent now and not when somebody uses the connection
///   next, so its locks are free at once; and the answers to abandoned queries are read and thrown
///   away.
/// - PostgreSQL, MySQL and SQLite are then asked whether a transaction is open, with one `SELECT 1`
///   past the log of statements. If it is (a `begin` dropped half-way, or a `BEGIN` among the user's
///   queries), it is rolled back. sqlx's own pool hands such a connection on. Other databases are
///   pinged.
/// - A connection that reports an error meanwhile, such as that of an abandoned query or of a failed
///   transaction that sqlx did not begin, is closed.
///
/// Session settings, temporary tables and advisory locks stay, as in sqlx's own pool; a
/// [`before_acquire`](crate::Hooks::before_acquire) hook can undo them.
///
/// # What is permanent
///
/// An invalid option, and what the database says of a wrong password, a missing right or an unknown
/// database: 28P01, 28000 and 3D000 of PostgreSQL; 28000 (errors 1045 and 1698) and 42000 (1044,
/// 1049) of MySQL. [`permanent`](Self::permanent) says otherwise.
///
/// # Cost
///
/// A round trip and a task for each release, off its path; see
/// [`verify_on_release`](Self::verify_on_release). sqlx's own pool pings at each acquire too; here
/// only what has been idle for a while is, unless
/// [`CheckPolicy::Always`](crate::CheckPolicy::Always) is set.
///
/// # Examples
///
/// ```no_run
/// use millpond::{Pool, backends::sqlx::SqlxManager};
/// use sqlx::{Connection, Postgres};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let manager = SqlxManager::<Postgres>::from_url("postgres://app@localhost/app")?;
/// let pool = Pool::builder(manager).max_size(16).build().await?;
///
/// let mut connection = pool.acquire().await?;
/// let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&mut *connection).await?;
/// assert_eq!(one, 1);
///
/// let mut transaction = connection.begin().await?;
/// sqlx::query("DELETE FROM sessions").execute(&mut *transaction).await?;
/// transaction.commit().await?;
/// # Ok(()) }
/// ```
#[must_use]
pub struct SqlxManager<DB: Database> {
    options: Options<DB>,
    verify: bool,
    permanent: Option<IsPermanent>,
}

impl<DB: Database> SqlxManager<DB> {
    /// Opens connections with these options, such as `PgConnectOptions`.
    pub fn new(options: Options<DB>) -> Self {
        Self { options, verify: true, permanent: None }
    }

    /// Opens connections to this URL.
    ///
    /// # Errors
    ///
    /// [`Error::Configuration`] if the driver cannot read it.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        url.parse().map(Self::new)
    }

    /// Whether every connection that comes back is asked whether it is clean. Default: `true`.
    ///
    /// With `false` only one that sqlx knows to be in a transaction, or that has something to send,
    /// is; releasing any other is a hit. That is for programs that never drop the future of a query
    /// or of `begin` half-way, neither in `select!` nor at a time limit nor with the task around it,
    /// and that leave transactions to sqlx.
    pub fn verify_on_release(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Says which errors of connecting are beyond retrying, in place of what is said above.
    pub fn permanent(
        mut self,
        is_permanent: impl Fn(&Error) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.permanent = Some(Box::new(is_permanent));
        self
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &Options<DB> {
        &self.options
    }
}

/// Ends a transaction that sqlx does not know of. `SELECT 1` is given to sqlx for a statement that
/// begins a transaction: it looks at what the database says of its state afterwards, and that one is
/// open is the exception here.
async fn end_unknown_transaction<DB: Database>(
    connection: &mut DB::Connection,
) -> Result<(), Error> {
    let probe = "SELECT 1".into_sql_str();
    match DB::TransactionManager::begin(connection, Some(probe)).await {
        Err(Error::BeginFailed) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => DB::TransactionManager::rollback(connection).await,
    }
}

impl<DB: Database> Manager for SqlxManager<DB> {
    type Connection = DB::Connection;
    type Error = Error;

    async fn connect(&self) -> Result<DB::Connection, Error> {
        self.options.connect().await
    }

    fn condition(&self, connection: &mut DB::Connection) -> Condition {
        if self.verify || connection.is_in_transaction() || connection.should_flush() {
            Condition::Dirty
        } else {
            Condition::Clean
        }
    }

    async fn check(&self, connection: &mut DB::Connection) -> Result<(), Error> {
        connection.ping().await
    }

    async fn reset(&self, connection: &mut DB::Connection) -> Result<(), Error> {
        // Those of transactions that were forgotten rather than dropped.
        while connection.is_in_transaction() {
            DB::TransactionManager::rollback(connection).await?;
        }
        match DB::NAME {
            "PostgreSQL" | "MySQL" | "SQLite" => end_unknown_transaction::<DB>(connection).await,
            _ => connection.ping().await,
        }
    }

    async fn close(&self, connection: DB::Connection) {
        // Whatever goes wrong with a goodbye, the connection is gone.
        drop(connection.close().await);
    }

    fn is_permanent(&self, error: &Error) -> bool {
        if let Some(is_permanent) = &self.permanent {
            return is_permanent(error);
        }
        match error {
            Error::Configuration(_) => true,
            Error::Database(error) => {
                let codes: &[&str] = match DB::NAME {
                    "PostgreSQL" => &["28P01", "28000", "3D000"],
                    "MySQL" => &["28000", "42000"],
                    _ => &[],
                };
                error.code().is_some_and(|code| codes.contains(&&*code))
            }
            _ => false,
        }
    }
}

/// The options, which may hold a password, are not shown.
impl<DB: Database> fmt::Debug for SqlxManager<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlxManager").field("database", &DB::NAME).finish_non_exhaustive()
    }
}
