//! MySQL and MariaDB, through [mysql_async](https://docs.rs/mysql_async), without its own pool.
//!
//! Not here: any SQL but what brings a connection back to what it was.

use crate::manager::{Condition, Manager};
use mysql_async::consts::StatusFlags;
use mysql_async::prelude::Queryable;
use mysql_async::{ChangeUserOpts, Conn, DriverError, Error, Opts, QueryResult, TextProtocol};
use mysql_async::{ServerError, UrlError};

/// Opens connections to a MySQL or MariaDB server.
///
/// Connections are mysql_async's own [`Conn`]. Its methods come from
/// [`Queryable`]; for a function that wants `&mut Conn`, give it `&mut *connection`.
///
/// # What is checked
///
/// When a connection is released, by what the server said last, without asking it:
///
/// - It is **closed** if a query was given up before the server had begun to answer, or the
///   connection failed: then nobody can tell what comes next. The server may go on with that query.
/// - It is **reset** if a transaction is open or `autocommit` is off, if rows are left to read, and
///   if the last query failed, since the server does not say then whether a transaction is open.
///
/// To check one, the pool sends `COM_PING`.
///
/// # What is reset
///
/// Rows that are left are read, as many as `reset_timeout` allows. Then
/// [`COM_RESET_CONNECTION`](https://dev.mysql.com/doc/c-api/8.4/en/mysql-reset-connection.html) rolls
/// back, unlocks, and forgets temporary tables, variables and prepared statements; the commands of
/// [`Opts::init`] and [`Opts::setup`] run as at first, and the database is that of the [`Opts`]
/// again. After a failed query the server is asked first, and if it says that no transaction is open,
/// that is all. Servers before MySQL 5.7.3 and MariaDB 10.2.4 get `COM_CHANGE_USER` instead.
///
/// What a user leaves in variables, temporary tables, locks and the choice of a database does not
/// show, and stays. Where users do that, have each connection reset: [`MysqlReset::Always`].
///
/// # What is permanent
///
/// A user, password, host or database that the server refuses, and a way to log in that one of the
/// two does not know. Not a server that is not there or has too many connections.
///
/// # Examples
///
/// ```no_run
/// use millpond::{Pool, backends::mysql::MysqlManager};
/// use mysql_async::{TxOpts, prelude::Queryable};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let manager = MysqlManager::from_url("mysql://shop:secret@127.0.0.1:3306/shop")?;
/// let pool = Pool::builder(manager).max_size(16).build().await?;
///
/// let mut connection = pool.acquire().await?;
/// let mut transaction = connection.start_transaction(TxOpts::default()).await?;
/// transaction.exec_drop("UPDATE items SET stock = stock - 1 WHERE id = ?", (7,)).await?;
/// let stock: Option<i64> =
///     transaction.exec_first("SELECT stock FROM items WHERE id = ?", (7,)).await?;
/// transaction.commit().await?;
/// # drop(stock); Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct MysqlManager {
    opts: Opts,
    reset: MysqlReset,
}

/// When a released connection gets a
/// [`COM_RESET_CONNECTION`](https://dev.mysql.com/doc/c-api/8.4/en/mysql-reset-connection.html).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MysqlReset {
    /// When it is known to be dirty, see [`MysqlManager`]. Statements that are prepared stay so.
    #[default]
    IfDirty,
    /// Every time, in the background: one round trip, and statements have to be prepared again. The
    /// next user finds nothing that the last one left.
    Always,
}

impl MysqlManager {
    /// Opens connections with these options, or those of an
    /// [`OptsBuilder`](mysql_async::OptsBuilder). Those that concern mysql_async's own pool do
    /// nothing.
    ///
    /// Unless [`prefer_socket`](Opts::prefer_socket) is switched off, mysql_async connects to a server
    /// on this machine twice: over TCP, to ask for its Unix socket, and then through that.
    ///
    /// # Panics
    ///
    /// If they are a string that is no URL; see [`from_url`](Self::from_url).
    pub fn new(opts: impl Into<Opts>) -> Self {
        Self { opts: opts.into(), reset: MysqlReset::default() }
    }

    /// Opens connections as a URL says, such as `mysql://user:password@host:3306/database`, with
    /// options as described in [`Opts`].
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn from_url(url: &str) -> Result<Self, UrlError> {
        Ok(Self::new(Opts::from_url(url)?))
    }

    /// When a released connection is reset. Default: [`MysqlReset::IfDirty`].
    pub fn reset(mut self, reset: MysqlReset) -> Self {
        self.reset = reset;
        self
    }

    /// Makes a connection what a new one is.
    async fn renew(&self, connection: &mut Conn) -> Result<(), Error> {
        if !connection.reset().await? {
            // This brings the database back, too.
            connection.change_user(ChangeUserOpts::default()).await?;
        } else if let Some(database) = self.opts.db_name() {
            let database = database.replace('`', "``");
            connection.query_drop(format!("USE `{database}`")).await?;
        }
        // In the order in which mysql_async runs them.
        for command in self.opts.init().iter().rev() {
            connection.query_drop(command).await?;
        }
        Ok(())
    }
}

impl Manager for MysqlManager {
    type Connection = Conn;
    type Error = Error;

    async fn connect(&self) -> Result<Conn, Error> {
        Conn::new(self.opts.clone()).await
    }

    fn condition(&self, connection: &mut Conn) -> Condition {
        // mysql_async says so from the moment in which a command is sent until its answer begins.
        if connection.is_disconnected() {
            return Condition::Broken;
        }
        match self.reset {
            MysqlReset::IfDirty if is_at_rest(connection) => Condition::Clean,
            MysqlReset::IfDirty | MysqlReset::Always => Condition::Dirty,
        }
    }

    async fn check(&self, connection: &mut Conn) -> Result<(), Error> {
        connection.ping().await
    }

    async fn reset(&self, connection: &mut Conn) -> Result<(), Error> {
        if self.reset == MysqlReset::IfDirty && connection.last_ok_packet().is_none() {
            // The answer has the flags that the failed query's had not.
            connection.ping().await?;
            if is_at_rest(connection) {
                return Ok(());
            }
        }
        self.renew(connection).await
    }

    async fn close(&self, connection: Conn) {
        // The server is told, or is gone.
        drop(connection.disconnect().await);
    }

    fn is_permanent(&self, error: &Error) -> bool {
        match error {
            Error::Server(ServerError { code, .. }) => REFUSALS.contains(code),
            Error::Driver(error) => matches!(
                error,
                DriverError::UnknownAuthPlugin { .. }
                    | DriverError::MysqlOldPasswordDisabled
                    | DriverError::CleartextPluginDisabled
                    | DriverError::NoClientSslFlagFromServer
            ),
            Error::Url(_) => true,
            Error::Io(_) | Error::Other(_) => false,
        }
    }
}

/// Whether the server said last that no transaction is open, and nothing is left to read.
fn is_at_rest(connection: &mut Conn) -> bool {
    // No packet: the last answer was an error, which has no flags.
    let flags = connection.last_ok_packet().map(|packet| packet.status_flags());
    let at_rest = flags.is_some_and(|flags| {
        flags.contains(StatusFlags::SERVER_STATUS_AUTOCOMMIT)
            && !flags.contains(StatusFlags::SERVER_STATUS_IN_TRANS)
    });
    // Of whatever protocol they are; this only looks.
    at_rest && QueryResult::<TextProtocol>::new(connection).is_empty()
}

/// What a server says to a login that it will not accept another time either, from the lists of
/// [MySQL](https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html) and
/// [MariaDB](https://mariadb.com/kb/en/mariadb-error-code-reference/).
const REFUSALS: [u16; 12] = [
    1044, // ER_DBACCESS_DENIED_ERROR
    1045, // ER_ACCESS_DENIED_ERROR
    1049, // ER_BAD_DB_ERROR
    1129, // ER_HOST_IS_BLOCKED
    1130, // ER_HOST_NOT_PRIVILEGED
    1251, // ER_NOT_SUPPORTED_AUTH_MODE
    1524, // ER_PLUGIN_IS_NOT_LOADED
    1698, // ER_ACCESS_DENIED_NO_PASSWORD_ERROR
    1820, // ER_MUST_CHANGE_PASSWORD
    1862, // ER_MUST_CHANGE_PASSWORD_LOGIN
    3118, // ER_ACCOUNT_HAS_BEEN_LOCKED of MySQL
    4151, // ER_ACCOUNT_HAS_BEEN_LOCKED of MariaDB
];
