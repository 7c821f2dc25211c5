//! MySQL and MariaDB, through [mysql_async](https://docs.rs/mysql_async), without its own pool.
//!
//! Not here: any SQL but what brings a connection back to what it was.

use super::host::told;
use crate::manager::{Condition, Manager};
use crate::names::lookup;
use mysql_async::consts::StatusFlags;
use mysql_async::prelude::Queryable;
use mysql_async::{ChangeUserOpts, Conn, Connection, DriverError, Error, Opts, OptsBuilder};
use mysql_async::{QueryResult, Row, ServerError, TextProtocol, TxOpts, UrlError};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Opens connections to a MySQL or MariaDB server.
///
/// Connections are [`MysqlConnection`]s, which deref to mysql_async's [`Conn`]. Its methods come from
/// [`Queryable`]. Names are looked up on a thread of Millpond's own, for which tokio's paused clock does not
/// stand still.
///
/// If a host has several addresses, mysql_async tries the next one when the one before has failed. One that
/// leads nowhere does not fail within the pool's `connect_timeout`: it costs that attempt, and the next one
/// begins with the next address. Those after it do, too, until one comes to nothing. But if there is an IPv6
/// address that is good on one link only, every attempt begins with the first.
///
/// # What is checked
///
/// When a connection is released it is **closed** if mysql_async says that it has failed, or that a query
/// was given up before the server had begun to answer: then nobody can tell what comes next. The server
/// may go on with that query: see below. So it is if it has logged in as another user, with another password or to
/// another database ([`Conn::change_user`]), since mysql_async has no other login from then on.
///
/// Any other is asked for a number of the pool's own, in the background and within `reset_timeout`, and
/// closed if that is not what it answers. For mysql_async does not always say so: a query that has to
/// clear away first what the last one has left, a dropped
/// [`Transaction`](mysql_async::Transaction) or several results that nobody has read, counts as answered
/// while it waits for its own answer. Who is sure that nobody gives up on a query can do without:
/// [`verify_on_release`](Self::verify_on_release).
///
/// To check a connection, the pool asks in the same way. `COM_PING` takes any answer for its own.
///
/// Nothing tells after a failover that the server of a connection takes no writes any more, unless
/// [`must_write`](Self::must_write) has it asked for that: without, call
/// [`Pool::invalidate`](crate::Pool::invalidate).
///
/// # What is reset
///
/// Before that number is asked for, rows that are left are read, as many as `reset_timeout` allows, and a
/// dropped transaction is rolled back. If then a transaction is open, `autocommit` off, or another database
/// chosen than the connection had when it was new,
/// [`COM_RESET_CONNECTION`](https://dev.mysql.com/doc/c-api/8.4/en/mysql-reset-connection.html) rolls
/// back, unlocks, and forgets temporary tables, variables and prepared statements; the database is that
/// of the [`Opts`] again, the character set that of the login, and [`Opts::after_connect`],
/// [`Opts::init`] and [`Opts::setup`] run as at first; but where there is one of the first two,
/// [`Opts::setup`] runs both before and after them, so it must bear to be repeated.
///
/// A connection that has an [`Opts::setup`] gets `COM_CHANGE_USER` instead, a new login that does the same,
/// since the setup may rely on the database and the character set. So does one that has chosen a database
/// where the [`Opts`] have none, and one to a server before MySQL 5.7.3 or MariaDB 10.2.4. Where the server
/// no longer takes the password that it was opened with, it is closed. The server counts such a login as one
/// more connection of the user until it is through, and against his limit for an hour: where he may have
/// just as many as the pool, each of these resets fails, and closes its connection.
///
/// A server that does not go by the character set of the login (`skip-character-set-client-handshake`) has
/// its own on a new connection, and `utf8mb4` on one that was reset.
///
/// **A reset also undoes what [`Hooks::after_connect`](crate::Hooks::after_connect) has set up**: variables,
/// temporary tables, prepared statements, and the choice of a database, which has the connection reset after
/// its first use. So it does what the server's own `init_connect` has set, which
/// runs only for a connection that is new. What all users are to have belongs in the [`Opts`].
///
/// What a user leaves in variables, temporary tables, locks and [`Conn::set_infile_handler`] does not show,
/// and stays. Where users do that, have each connection
/// reset: [`MysqlReset::Always`].
///
/// # What the server goes on with
///
/// A query that was given up runs to its end, beside those on the connection that takes the place of its own: so
/// [`max_size`](crate::PoolBuilder::max_size) does not bound what the server does. A limit of the server's does, in
/// [`Opts::init`]: `SET max_execution_time = 30000` for each `SELECT` on MySQL, in ms, or on MariaDB
/// `SET max_statement_time = 30` for each statement, in seconds. The pool sends no `KILL`: it would have to go
/// over another connection, and by the number of this one, which may be somebody else's once the server has
/// started again, or at another server behind the same address.
///
/// # What is permanent
///
/// A user, password, host or database that the server refuses, and a way to log in that one of the
/// two does not know. Not a server that is not there or has too many connections.
///
/// # Cost
///
/// A round trip when it is opened, and one and a task for each release, off its path, as in mysql_async's own
/// pool, which resets each connection. Statements that are prepared stay so.
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
#[derive(Clone)]
#[must_use]
pub struct MysqlManager {
    opts: Arc<dyn Fn() -> Opts + Send + Sync>,
    reset: MysqlReset,
    verify: bool,
    must_write: bool,
    /// Where the host ends in the URL.
    is_clear: bool,
    turn: Arc<AtomicUsize>,
}

/// When a released connection gets a
/// [`COM_RESET_CONNECTION`](https://dev.mysql.com/doc/c-api/8.4/en/mysql-reset-connection.html).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MysqlReset {
    /// When it is known to be dirty, see [`MysqlManager`]. Statements that are prepared stay so.
    #[default]
    IfDirty,
    /// Every time, in the background: four round trips, or three without a database, and what the
    /// [`Opts`] run; statements have to be prepared again. The next user finds nothing that the last one
    /// left, but for a [`Transaction`](mysql_async::Transaction) that was ended by a statement that
    /// commits, such as `ALTER TABLE`, and then forgotten rather than dropped: mysql_async begins no other
    /// on that connection.
    Always,
}

impl MysqlManager {
    /// Opens connections with these options, or those of an [`OptsBuilder`]. Those that concern
    /// mysql_async's own pool do nothing.
    ///
    /// Unless [`prefer_socket`](Opts::prefer_socket) is switched off, mysql_async connects to a server
    /// at `localhost` or a loopback address twice: over TCP, to ask for its Unix socket, and then through
    /// that. Switch it off if such an address leads elsewhere, into a container or through a tunnel: a
    /// path that is good there may be another server's here. That is why it is always off for any other
    /// address, where mysql_async would try it too.
    pub fn new(opts: impl Into<Opts>) -> Self {
        let opts = opts.into();
        Self::with(move || opts.clone())
    }

    /// Opens connections as a URL says, such as `mysql://user:password@host:3306/database`, with
    /// options as described in [`Opts`].
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn from_url(url: &str) -> Result<Self, UrlError> {
        let manager = Self::new(Opts::from_url(url)?);
        // What stands before an `@` behind the host may be the rest of a password, and the host a part of one.
        let behind = url.split_once("://").and_then(|(_, rest)| rest.split_once(['/', '?', '#']));
        Ok(Self { is_clear: behind.is_none_or(|(_, behind)| !behind.contains('@')), ..manager })
    }

    /// Opens each connection by what `opts` says at that moment, as [`new`](Self::new) does: for
    /// passwords that change. After a change, [`Pool::rotate`](crate::Pool::rotate) replaces the
    /// connections there are.
    /// `opts` is asked once more when a pool is built or rotated, for the [`target`](crate::Manager::target).
    pub fn with(opts: impl Fn() -> Opts + Send + Sync + 'static) -> Self {
        Self {
            opts: Arc::new(opts),
            reset: MysqlReset::default(),
            verify: true,
            must_write: false,
            is_clear: true,
            turn: Arc::default(),
        }
    }

    /// When a released connection is reset. Default: [`MysqlReset::IfDirty`].
    pub fn reset(mut self, reset: MysqlReset) -> Self {
        self.reset = reset;
        self
    }

    /// Whether every connection that comes back is asked for a number. Default: `true`.
    ///
    /// With `false`, and unless it is reset [always](MysqlReset::Always), only one is that the server said
    /// last is in a transaction or without `autocommit`, that has rows left to read, or whose last query
    /// failed, since the server does not say then whether a transaction is open; releasing any other is a
    /// hit, also in another database, which stays chosen. That is for programs that never drop the future of a query half-way, neither in `select!` nor
    /// at a time limit nor with the task around it, or that at least commit or roll back each
    /// [`Transaction`](mysql_async::Transaction) and read all results of a query that has several. Nor may
    /// they leave a transaction of their own `BEGIN` open and prepare a statement after it: mysql_async
    /// takes the answer to that for one that says what is open.
    pub fn verify_on_release(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Whether a server that takes no writes will not do, so that writes follow a failover. Default: `false`.
    ///
    /// With `true` the question that each connection is asked is for `@@global.read_only` as well, at no
    /// further cost. Where that is on, connecting and a check fail, and the first connection that comes back
    /// has the pool [invalidate](crate::Pool::invalidate) all that are as old. With
    /// [`verify_on_release(false)`](Self::verify_on_release) the others are found out when they are checked.
    /// Users whom `read_only` does not concern are not served there either.
    pub fn must_write(mut self, must_write: bool) -> Self {
        self.must_write = must_write;
        self
    }

    /// Asks for something that nobody else has asked for, and compares: so no answer to an earlier query is
    /// under way.
    async fn ask(&self, connection: &mut Conn) -> Result<Told, Error> {
        let number = fastrand::u64(..);
        let read_only = if self.must_write { "@@global.read_only" } else { "0" };
        // The bytes of the name are the same whatever character set a user has chosen for answers.
        let question = format!("SELECT {number}, CAST(DATABASE() AS BINARY), {read_only}");
        // Whatever comes instead may be of any type.
        let Some(row) = connection.query_first::<Row, _>(question).await? else {
            return Err(Error::Other(ANOTHER_ANSWER.into()));
        };
        match (row.get_opt::<u64, _>(0), row.get_opt(1), row.get_opt::<Vec<u8>, _>(2)) {
            (Some(Ok(echo)), Some(Ok(database)), Some(Ok(read_only))) if echo == number => {
                // Some servers have a word for it.
                Ok(Told { database, is_read_only: !matches!(&*read_only, b"0" | b"OFF") })
            }
            _ => Err(Error::Other(ANOTHER_ANSWER.into())),
        }
    }
}

impl Manager for MysqlManager {
    type Connection = MysqlConnection;
    type Error = Error;

    async fn connect(&self) -> Result<MysqlConnection, Error> {
        let mut opts = (self.opts)();
        // Cancel: the next attempt begins with the next address.
        let turn = Turn::begin(&self.turn);
        if opts.socket().is_none() {
            let prefers_socket = opts.prefer_socket() && is_on_this_machine(&opts);
            let host = host(&opts).to_owned();
            let mut addresses = match opts.resolved_ips() {
                Some(addresses) => Some(addresses.clone()),
                // mysql_async would look the name up on one of the runtime's threads, or, that of a URL, on
                // the task's. It is still the name that a certificate has to have.
                None => bare(lookup((host.as_str(), opts.tcp_port())).await?),
            };
            if let Some(addresses) = &mut addresses {
                turn.choose(addresses);
            }
            let builder = OptsBuilder::from_opts(opts).ip_or_hostname(host);
            let builder = builder.resolved_ips(addresses);
            opts = builder.prefer_socket(prefers_socket).into();
        }
        let mut connection = Conn::new(opts.clone()).await?;
        // Not that of the options: the server may write it otherwise, and what they run may choose another.
        let Told { database, .. } = self.ask(&mut connection).await?.takes_writes()?;
        turn.succeeds();
        Ok(MysqlConnection { inner: connection, opts, database, is_outdated: false })
    }

    fn condition(&self, connection: &mut MysqlConnection) -> Condition {
        if connection.is_outdated {
            return Condition::Outdated;
        }
        // mysql_async says so from the moment in which a command is sent until its answer begins.
        if connection.is_disconnected() || login(connection.inner.opts()) != login(&connection.opts)
        {
            return Condition::Broken;
        }
        match self.reset {
            MysqlReset::IfDirty if !self.verify && is_at_rest(connection) => Condition::Clean,
            MysqlReset::IfDirty | MysqlReset::Always => Condition::Dirty,
        }
    }

    async fn check(&self, connection: &mut MysqlConnection) -> Result<(), Error> {
        self.ask(connection).await?.takes_writes().map(drop)
    }

    async fn reset(&self, connection: &mut MysqlConnection) -> Result<(), Error> {
        // The answer also has flags, as a failed query's has not.
        let Told { database, is_read_only } = self.ask(connection).await?;
        if is_read_only {
            // Which the pool asks for next; an error would say nothing of the others.
            connection.is_outdated = true;
            return Ok(());
        }
        let is_elsewhere = database != connection.database;
        if self.reset == MysqlReset::IfDirty && !is_elsewhere && is_at_rest(connection) {
            return Ok(());
        }
        let is_open = flags(connection).contains(StatusFlags::SERVER_STATUS_IN_TRANS);
        connection.renew(database.is_some()).await?;
        if is_open {
            // If it was forgotten rather than dropped, mysql_async would begin no other.
            connection.start_transaction(TxOpts::default()).await?.rollback().await?;
        }
        Ok(())
    }

    async fn close(&self, connection: MysqlConnection) {
        // The server is told, or is gone.
        drop(connection.inner.disconnect().await);
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

    fn target(&self) -> Option<String> {
        let opts = (self.opts)();
        // What stands before that `@` may be the rest of a password, and the port a part of one.
        if !self.is_clear || opts.db_name().is_some_and(|name| name.contains('@')) {
            return None;
        }
        match opts.socket() {
            Some(path) => Some(path.to_owned()),
            None => told(host(&opts), Some(opts.tcp_port())),
        }
    }
}

/// What the connections are opened with, which may hold a password, is not shown.
impl fmt::Debug for MysqlManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlManager")
            .field("reset", &self.reset)
            .field("verify_on_release", &self.verify)
            .field("must_write", &self.must_write)
            .finish_non_exhaustive()
    }
}

/// A connection to a MySQL or MariaDB server that remembers who logged in.
///
/// It derefs to [`Conn`]: a function that wants `&mut Conn` takes a `&mut connection`, one that wants
/// `impl Queryable` a `&mut **connection`, and [`Query::run`](mysql_async::prelude::Query::run) and its
/// like a `&mut *connection`.
pub struct MysqlConnection {
    inner: Conn,
    /// What it was opened with, and a reset brings back: the manager may say something else by then.
    opts: Opts,
    /// The database that it had when it was new.
    database: Option<Vec<u8>>,
    /// The server takes no writes, and must.
    is_outdated: bool,
}

impl MysqlConnection {
    /// The connection alone, say for [`Conn::disconnect`] on one that was
    /// [detached](crate::Pooled::detach).
    #[must_use]
    pub fn into_inner(self) -> Conn {
        self.inner
    }

    /// Makes a connection what a new one is.
    async fn renew(&mut self, has_database: bool) -> Result<(), Error> {
        let Self { inner: connection, opts, .. } = self;
        // A reset leaves the choice of a database alone and, on MySQL, replaces the character set of the
        // login by the server's own; `Conn::reset` runs the setup, which may rely on both, before either
        // can be made good. And USE cannot undo the choice of a database. A new login does all that.
        let logs_in = !opts.setup().is_empty() || opts.db_name().is_none() && has_database;
        if logs_in || !connection.reset().await? {
            connection.change_user(ChangeUserOpts::default()).await?;
        } else {
            connection.query_drop(NAMES).await?;
            if let Some(name) = opts.db_name() {
                // It resets what the database has set, such as its character set.
                connection.query_drop(format!("USE `{}`", name.replace('`', "``"))).await?;
            }
        }
        // Either has run the setup, and no more of what a new connection has: what comes before it is
        // made up for, in the order in which mysql_async runs it, and the setup may rely on that.
        let callback = opts.after_connect();
        if callback.is_none() && opts.init().is_empty() {
            return Ok(());
        }
        if let Some(callback) = callback {
            callback(connection).await?;
        }
        for command in opts.init().iter().rev().chain(opts.setup().iter().rev()) {
            connection.query_drop(command).await?;
        }
        Ok(())
    }
}

impl Deref for MysqlConnection {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.inner
    }
}

impl DerefMut for MysqlConnection {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.inner
    }
}

impl<'a> From<&'a mut MysqlConnection> for Connection<'a, 'static> {
    fn from(connection: &'a mut MysqlConnection) -> Self {
        Self::from(&mut connection.inner)
    }
}

/// That of a [`Conn`] would show the password.
impl fmt::Debug for MysqlConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlConnection").field("id", &self.inner.id()).finish_non_exhaustive()
    }
}

/// An attempt to connect: which address comes first, and, unless it succeeds, that it is another one's turn.
///
/// mysql_async would begin each attempt with the first, and go on to the next only when that has failed: it
/// does not, if it leads nowhere, before the pool ends the attempt.
struct Turn<'m> {
    first: usize,
    // `None` once it has succeeded.
    next: Option<&'m AtomicUsize>,
}

impl<'m> Turn<'m> {
    fn begin(next: &'m AtomicUsize) -> Self {
        Self { first: next.load(Ordering::Relaxed), next: Some(next) }
    }

    /// Puts the address first whose turn it is.
    fn choose(&self, addresses: &mut [IpAddr]) {
        if let Some(first) = self.first.checked_rem(addresses.len()) {
            addresses.rotate_left(first);
        }
    }

    /// The next attempt begins with the same address.
    fn succeeds(mut self) {
        self.next = None;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(next) = self.next else { return };
        // Of several that began with the same address, only the first to fail passes the turn on.
        let second = self.first.wrapping_add(1);
        let _ = next.compare_exchange(self.first, second, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// What the server says of a connection.
struct Told {
    /// That which is chosen.
    database: Option<Vec<u8>>,
    /// It takes no writes, and must.
    is_read_only: bool,
}

impl Told {
    fn takes_writes(self) -> Result<Self, Error> {
        if self.is_read_only {
            return Err(Error::Other("the server takes no writes, and must_write is set".into()));
        }
        Ok(self)
    }
}

/// Who logs in, and where: what [`Conn::change_user`] changes for good, as a reset knows nothing else.
fn login(opts: &Opts) -> [Option<&str>; 3] {
    [opts.user(), opts.pass(), opts.db_name()]
}

/// The host, without the brackets that an IPv6 address has in a URL.
fn host(opts: &Opts) -> &str {
    let host = opts.ip_or_hostname();
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Whether mysql_async takes the server for one on this machine.
fn is_on_this_machine(opts: &Opts) -> bool {
    let host = host(opts);
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The addresses alone, if that is all that there is to them: those of IPv6 that are good on one link only
/// come with the number of that link.
fn bare(addresses: impl Iterator<Item = SocketAddr>) -> Option<Vec<IpAddr>> {
    let is_bare = |address: &SocketAddr| match address {
        SocketAddr::V4(_) => true,
        SocketAddr::V6(address) => address.scope_id() == 0,
    };
    addresses.map(|address| is_bare(&address).then(|| address.ip())).collect()
}

/// What the server said last of the session; nothing after an error, which has no flags.
fn flags(connection: &Conn) -> StatusFlags {
    connection.last_ok_packet().map_or(StatusFlags::empty(), |packet| packet.status_flags())
}

/// Whether the server said last that no transaction is open, and nothing is left to read.
fn is_at_rest(connection: &mut Conn) -> bool {
    let flags = flags(connection);
    let at_rest = flags.contains(StatusFlags::SERVER_STATUS_AUTOCOMMIT)
        && !flags.contains(StatusFlags::SERVER_STATUS_IN_TRANS);
    // Of whatever protocol they are; this only looks.
    at_rest && QueryResult::<TextProtocol>::new(connection).is_empty()
}

const ANOTHER_ANSWER: &str = "the server answered another query than the pool's";

/// The character set that mysql_async asks for when it logs in, of all servers that can be reset. It asks for
/// this collation, too, and MySQL takes it; [MariaDB](https://mariadb.com/kb/en/comment-syntax/) passes the
/// comment over, and takes the one that it has for the character set, as it does at the login.
const NAMES: &str = "SET NAMES utf8mb4 /*!50703 COLLATE utf8mb4_general_ci */";

/// What a server says to a login that it will not accept another time either, from the lists of
/// [MySQL](https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html) and
/// [MariaDB](https://mariadb.com/kb/en/mariadb-error-code-reference/).
const REFUSALS: [u16; 13] = [
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
    3159, // ER_SECURE_TRANSPORT_REQUIRED
    4151, // ER_ACCOUNT_HAS_BEEN_LOCKED of MariaDB
];

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::net::SocketAddrV6;

    #[test]
    fn an_address_that_is_good_on_one_link_only_does_not_lose_its_link() {
        let near =
            |scope| SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 3306, 0, scope));
        let far = SocketAddr::from(([192, 0, 2, 1], 3306));
        assert_eq!(bare([far, near(0)].into_iter()), Some(vec![far.ip(), near(0).ip()]));
        assert_eq!(bare([far, near(2)].into_iter()), None);
    }
}
