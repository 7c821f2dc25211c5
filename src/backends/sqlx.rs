//! Connections of sqlx's databases, so that its users can swap the pool and keep their queries.
//!
//! Not here: any database. The drivers come with the user's `sqlx`, whose types are those of
//! `sqlx-core`.

use super::host::told;
use crate::manager::{Condition, Manager};
use sqlx_core::column::Column;
use sqlx_core::connection::{ConnectOptions, Connection};
use sqlx_core::database::Database;
use sqlx_core::error::DatabaseError;
use sqlx_core::executor::Executor;
use sqlx_core::percent_encoding::percent_decode_str;
use sqlx_core::raw_sql::raw_sql;
use sqlx_core::row::Row;
use sqlx_core::sql_str::{AssertSqlSafe, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use sqlx_core::{Error, Url};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

type Options<DB> = <<DB as Database>::Connection as Connection>::Options;
type IsPermanent = Arc<dyn Fn(&Error) -> bool + Send + Sync>;

/// Opens connections of one of sqlx's databases: `SqlxManager<Postgres>` and so on.
///
/// A guard derefs to the database's own connection, which is an `Executor`:
/// `sqlx::query("…").fetch_one(&mut *connection)`, `connection.begin()`. The driver and the runtime
/// are features of the user's `sqlx` 0.9, such as `postgres` and `runtime-tokio`.
///
/// If a host has several addresses, sqlx tries the next one when the one before has failed. One that leads
/// nowhere does not fail within the pool's `connect_timeout`, and every attempt begins with the first.
/// Without TLS, which needs the name, the address of the server serves in its place.
///
/// sqlx looks the server's name up on a thread that the program's runtime keeps for calls that block. If all of
/// these wait for connections, in [`acquire_blocking`](crate::Pool::acquire_blocking), none is opened before one of
/// them gives up; that of an address, or at a Unix socket, needs no thread.
///
/// # What is checked
///
/// [`check`](Manager::check) is sqlx's `ping`, one round trip.
///
/// Nothing tells after a failover that the server of a connection takes no writes any more: call
/// [`Pool::invalidate`](crate::Pool::invalidate).
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
/// - PostgreSQL and MySQL are asked for a column with a name of the pool's own, with a `SELECT 1 AS …` or,
///   of MySQL, a number, and the connection is closed if that is not what comes. For sqlx loses count of the answers after a
///   `COPY` of PostgreSQL that fails or is dropped half-way, and after a `ping` or `prepare` of MySQL that
///   is; sqlx's own pool hands such a connection on, and from then on each of its users gets the answer to
///   the last one's query. sqlx logs this query as it does the user's.
/// - PostgreSQL, MySQL and SQLite are then asked whether a transaction is open, with one `SELECT 1`. If it
///   is (a `begin` dropped half-way, or a `BEGIN` among the user's queries), it is rolled back. sqlx's own
///   pool hands such a connection on. Other databases are pinged.
/// - Whatever is behind sqlx's `Any` is asked both, the first as PostgreSQL is. MySQL takes each for another
///   statement then: in its `performance_schema`, they fill the table of digests.
/// - A connection that reports an error meanwhile, such as that of an abandoned query or of a failed
///   transaction that sqlx did not begin, is closed.
///
/// A query that was given up runs to its end at the server, also where its connection is closed since that has taken
/// longer than `reset_timeout`, and another takes its place, as in sqlx's own pool: so
/// [`max_size`](crate::PoolBuilder::max_size) does not bound what the server does. A setting of the server's does.
/// Of PostgreSQL, `PgConnectOptions::options([("client_connection_check_interval", "1s")])` has it end what nobody
/// is left for (PostgreSQL 14+, on Linux and the like), and `("statement_timeout", "30s")` each statement that
/// takes longer. Of MySQL it is `max_execution_time`, for each `SELECT` and in ms, of MariaDB `max_statement_time`,
/// for each statement and in seconds: `SET` them in [`after_connect`](crate::Hooks::after_connect).
///
/// Prepared statements stay, and sqlx prepares what it is given. After a change of tables, those of PostgreSQL whose
/// columns are others now fail with `cached plan must not change result type` (0A000) on each connection that has run
/// them before, until it ends: call [`Pool::invalidate`](crate::Pool::invalidate) after a migration.
///
/// Session settings, temporary tables and advisory locks stay, as in sqlx's own pool; a
/// [`before_acquire`](crate::Hooks::before_acquire) hook can undo them. A `LISTEN` of PostgreSQL stays too,
/// and a later user's query fails if a notification comes before its answer. Listen on a connection that
/// is no longer the pool's, such as sqlx's `PgListener` or one that is [detached](crate::Pooled::detach),
/// or send `UNLISTEN *` before it goes back.
///
/// # What is permanent
///
/// An invalid option, and what the database says of a wrong password, a missing right or an unknown
/// database: 28P01, 28000 and 3D000 of PostgreSQL; 28000 (errors 1045 and 1698) and, of those with 42000,
/// errors 1044 and 1049 of MySQL; the same behind `Any`. [`permanent`](Self::permanent) says otherwise.
///
/// # Cost
///
/// Two round trips and a task for each release, off its path; see
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
    options: Arc<dyn Fn() -> Options<DB> + Send + Sync>,
    verify: bool,
    permanent: Option<IsPermanent>,
    /// Where a URL leads.
    target: Option<String>,
}

// Not derived: that would ask the database for it too, of which there is none here.
impl<DB: Database> Clone for SqlxManager<DB> {
    fn clone(&self) -> Self {
        let (options, permanent) = (self.options.clone(), self.permanent.clone());
        Self { options, verify: self.verify, permanent, target: self.target.clone() }
    }
}

impl<DB: Database> SqlxManager<DB> {
    /// Opens connections with these options, such as `PgConnectOptions`.
    pub fn new(options: Options<DB>) -> Self {
        Self::with(move || options.clone())
    }

    /// Opens connections to this URL. Only of one that is made like this is the [`target`](Manager::target) known,
    /// as far as the URL names it: sqlx's options tell nothing of it without the password.
    ///
    /// # Errors
    ///
    /// [`Error::Configuration`] if the driver cannot read it.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        let manager = url.parse().map(Self::new)?;
        Ok(Self { target: target(url), ..manager })
    }

    /// Opens each connection by what `options` says at that moment: for passwords that change. After a
    /// change, [`Pool::rotate`](crate::Pool::rotate) replaces the connections there are.
    pub fn with(options: impl Fn() -> Options<DB> + Send + Sync + 'static) -> Self {
        Self { options: Arc::new(options), verify: true, permanent: None, target: None }
    }

    /// Whether every connection that comes back is asked whether it is clean. Default: `true`.
    ///
    /// With `false` only one that sqlx knows to be in a transaction, or to have something to send or to
    /// receive that has not arrived yet, is; the latter is closed unless the database is sqlx's `Postgres`, so
    /// also behind `Any`. Releasing any other is a hit.
    /// One whose answers end with the connection, as when the server has been stopped, is closed. That is
    /// for programs that never drop
    /// the future of a query or of `begin` half-way, neither in `select!` nor at a time limit nor with
    /// the task around it, that [discard](crate::Pooled::discard) a connection whose `COPY` has failed,
    /// and that leave transactions to sqlx. Nor do they take only the first of many rows, as `fetch_one`
    /// does: what has arrived of the others is read at release, on the releasing thread, for as long as more
    /// arrives.
    pub fn verify_on_release(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Says which errors of connecting are beyond retrying, in place of what is said above.
    pub fn permanent(
        mut self,
        is_permanent: impl Fn(&Error) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.permanent = Some(Arc::new(is_permanent));
        self
    }

    /// The options of a connection that is opened now.
    #[must_use]
    pub fn options(&self) -> Options<DB> {
        (self.options)()
    }
}

/// Where a URL leads, as far as that is sure. Only a URL tells: options have the password in all that they tell, and
/// some of sqlx's panic there.
fn target(url: &str) -> Option<String> {
    let decoded = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
    if let Some(file) = url.strip_prefix("sqlite:") {
        let path = file.strip_prefix("//").unwrap_or(file);
        return decoded(path.split('?').next()?);
    }
    let url: Url = url.parse().ok()?;
    // What stands before that `@` may be the rest of a password, and the port a part of one.
    let behind = [Some(url.path()), url.query(), url.fragment()];
    if behind.into_iter().flatten().any(|part| decoded(part).is_none_or(|it| it.contains('@'))) {
        return None;
    }
    let (mut host, mut port) = (decoded(url.host_str().unwrap_or_default())?, url.port());
    for (key, value) in url.query_pairs() {
        match &*key {
            "host" | "hostaddr" | "socket" => host = value.into_owned(),
            "port" => port = value.parse().ok(),
            _ => {}
        }
    }
    match host.starts_with('/') {
        true => Some(host),
        false => told(&host, port),
    }
}

/// A query that nobody else asks, and the name of the column that answers it.
///
/// MySQL calls a column what the query asks for, and its performance schema knows a statement by what is
/// left of it without the numbers: with a name of its own, each release would take up another of the
/// places that there are for statements, until there are none for those of others.
fn question(database: &str) -> (String, String) {
    let number = fastrand::u64(..);
    match database {
        "MySQL" => (format!("SELECT {number}"), number.to_string()),
        _ => (format!("SELECT 1 AS millpond_{number:x}"), format!("millpond_{number:x}")),
    }
}

/// Asks for something that nobody else has asked for, and compares: so no answer to an earlier query is
/// under way. It goes by the name of a column, which can be read whatever types the database has.
async fn confirm<DB: Database>(connection: &mut DB::Connection) -> Result<(), Error>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    let (question, name) = question(DB::NAME);
    let rows = raw_sql(AssertSqlSafe(question)).fetch_all(&mut *connection).await?;
    match rows.first().map(Row::columns) {
        Some([column]) if column.name() == name => Ok(()),
        _ => Err(Error::Protocol("the server answered another query than the pool's".to_owned())),
    }
}

/// Whether MySQL or MariaDB will always refuse such a login. Of the errors whose code is 42000, others
/// pass, such as 1203 and 1226: the user has too many connections. A number is what the driver shows
/// first, and nowhere else without its own type.
fn is_refusal_of_mysql(code: &str, error: &dyn DatabaseError) -> bool {
    let number = || error.to_string().split(' ').next()?.parse().ok();
    code == "28000" || code == "42000" && matches!(number(), Some(1044_u16 | 1049))
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

impl<DB: Database> Manager for SqlxManager<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    type Connection = DB::Connection;
    type Error = Error;

    async fn connect(&self) -> Result<DB::Connection, Error> {
        self.options().connect().await
    }

    fn condition(&self, connection: &mut DB::Connection) -> Condition {
        if self.verify || connection.is_in_transaction() || connection.should_flush() {
            return Condition::Dirty;
        }
        // What sqlx knows to be under way it reads before anything else: there it finds out that the
        // server is gone, and as nothing has been sent by then, it would each time. If nothing is, this
        // does nothing. Nobody waits, so nobody has to be woken.
        let flush = pin!(connection.flush());
        match flush.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Condition::Clean,
            Poll::Ready(Err(_)) => Condition::Broken,
            // A packet of MySQL that is given up half-way is lost.
            Poll::Pending if DB::NAME != "PostgreSQL" => Condition::Broken,
            Poll::Pending => Condition::Dirty,
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
            "PostgreSQL" | "MySQL" | "Any" => {
                confirm::<DB>(connection).await?;
                end_unknown_transaction::<DB>(connection).await
            }
            // Its answers cannot be mistaken: each has a channel of its own.
            "SQLite" => end_unknown_transaction::<DB>(connection).await,
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
                let Some(code) = error.code() else { return false };
                let of_postgres = || ["28P01", "28000", "3D000"].contains(&&*code);
                let of_mysql = || is_refusal_of_mysql(&code, &**error);
                match DB::NAME {
                    "PostgreSQL" => of_postgres(),
                    "MySQL" => of_mysql(),
                    // Neither gives the other's codes another meaning.
                    "Any" => of_postgres() || of_mysql(),
                    _ => false,
                }
            }
            _ => false,
        }
    }

    fn target(&self) -> Option<String> {
        self.target.clone()
    }
}

/// The options, which may hold a password, are not shown.
impl<DB: Database> fmt::Debug for SqlxManager<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlxManager").field("database", &DB::NAME).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx_core::error::ErrorKind;
    use std::error::Error as StdError;

    /// An error that shows itself as those of sqlx's MySQL driver do.
    #[derive(Debug)]
    struct Refusal(&'static str);

    impl fmt::Display for Refusal {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl StdError for Refusal {}

    impl DatabaseError for Refusal {
        fn message(&self) -> &str {
            self.0
        }

        fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    /// Its performance schema counts statements by what is left of them without numbers and texts, and has
    /// room for so many only.
    #[test]
    fn mysql_is_asked_the_same_statement_each_time_but_for_a_number() {
        let digest = |question: String| question.replace(|char: char| char.is_ascii_digit(), "");
        for _ in 0..20 {
            let (sql, column) = question("MySQL");
            assert_eq!(sql, format!("SELECT {column}"));
            assert_eq!(digest(sql), "SELECT ");
            let (sql, column) = question("PostgreSQL");
            assert_eq!(sql, format!("SELECT 1 AS {column}"));
        }
        assert_ne!(question("MySQL"), question("MySQL"));
    }

    #[test]
    fn a_user_of_mysql_with_too_many_connections_is_not_refused_for_good() {
        for (code, shown, is_refusal) in [
            ("28000", "1045 (28000): Access denied for user 'app'@'localhost'", true),
            ("42000", "1044 (42000): Access denied for user 'app'@'%' to database 'x'", true),
            ("42000", "1049 (42000): Unknown database 'x'", true),
            ("42000", "1203 (42000): User app has more than 'max_user_connections'", false),
            ("42000", "1226 (42000): User 'app' has exceeded 'max_user_connections'", false),
            ("08004", "1040 (08004): Too many connections", false),
        ] {
            assert_eq!(is_refusal_of_mysql(code, &Refusal(shown)), is_refusal, "{shown}");
        }
    }
}
