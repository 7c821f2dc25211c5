//! Connections to PostgreSQL, by [tokio-postgres](tokio_postgres).
//!
//! Read `mod.rs` (the manager and its options), `client.rs` (a pooled connection), `transaction.rs` (a
//! transaction on one), `session.rs` (what the pool knows of its state), `driver.rs` (what runs it) and
//! `tap.rs` (what reads along), `dial.rs` (where the server is) and `cluster.rs` (several servers).
//!
//! Not here: queries, and what is done on a connection while somebody holds it.

mod client;
#[cfg(feature = "cluster")]
mod cluster;
mod dial;
mod driver;
mod session;
mod tap;
mod transaction;

pub use self::client::{CancelToken, Client};
#[cfg(feature = "cluster")]
pub use self::cluster::{PostgresNodes, read_role};
pub use self::dial::Socket;
pub use self::transaction::{Transaction, TransactionBuilder};

use self::client::{DriverTask, Statements};
use self::dial::{Address, Course, Nameless, Silence, Target, encryptable, negotiable, targets};
use self::driver::{Crank, Driver};
use self::session::Session;
use self::tap::{Tap, TapInside};
use crate::error::ConfigError;
use crate::manager::{Condition, LossSignal, Manager};
use std::any::TypeId;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::task::unconstrained;
use tokio::time::timeout;
use tokio_postgres::config::{LoadBalanceHosts, SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, Connection, NoTls, SimpleQueryMessage};

/// For how long a holder is taken to have the session to himself, and so what has to be put right
/// after him.
///
/// The names are those of PgBouncer's [`pool_mode`](https://www.pgbouncer.org/config.html#pool_mode).
/// Whatever the mode, a connection with a transaction open or a request on its way is never handed
/// on: it waits for the request to end, and rolls back first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PoolMode {
    /// Holders may change the session: parameters, temporary tables, cursors, `LISTEN`, advisory
    /// locks. When one has sent anything, the session is made new: what
    /// [`DISCARD ALL`](https://www.postgresql.org/docs/current/sql-discard.html) does, except that
    /// statements that the driver has prepared stay, those of
    /// [`prepare_cached`](Client::prepare_cached) included, which says what that means where holders set
    /// `search_path`. One round trip, and a second one where a holder has left what `PREPARE` makes.
    ///
    /// What a `LISTEN` is answered with is out of reach, also once the connection is detached: whatever runs
    /// a pooled connection drops notifications. A listener needs a connection of its own, from
    /// `tokio_postgres::connect`, whose [`poll_message`](tokio_postgres::Connection::poll_message) has them.
    Session,
    /// Holders leave the session as it was. A transaction that is left open is rolled back. A clean
    /// connection costs no round trip.
    #[default]
    Transaction,
    /// Holders send single statements. A connection with a transaction open is closed.
    Statement,
}

/// What `DISCARD ALL` does, by its manual, but for `DEALLOCATE ALL`: the driver keeps statements of its
/// own, by which it looks up types, and does not expect them to go. For all others, the rows that this is
/// answered with (that of the locks is empty) are what is still to be run: a database may have no language
/// in which the server could do that by itself. All names are qualified: others may have made some that are
/// found first.
const NEW_SESSION: &str = "\
    CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; \
    SELECT pg_catalog.pg_advisory_unlock_all(); \
    SELECT pg_catalog.format('DEALLOCATE %I;', name) \
        FROM pg_catalog.pg_prepared_statements WHERE from_sql; \
    DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES";

/// How long a request that was given up may go on before the server is asked to cancel it. Most end
/// sooner than that, and a cancel costs a connection.
const GRACE: Duration = Duration::from_millis(20);

/// After so many times that, it is asked once more, since a cancel may be lost.
const CANCELLED_AGAIN: u32 = 10;

/// Opens connections to PostgreSQL.
///
/// # What is checked, reset and permanent
///
/// | | |
/// |---|---|
/// | on release | is the connection closed; is a transaction open; is a request on its way; has the server stopped taking writes; has `DISCARD ALL` or `DEALLOCATE ALL` taken the driver's statements away, which closes it |
/// | check | a `Sync`, the cheapest round trip that there is: no statement is run or logged |
/// | reset | by [`PoolMode`] |
/// | beyond retrying | wrong password, user or database; no way to log in that both sides take, such as with `channel_binding=require` on a connection without TLS; a configuration that cannot work |
///
/// How the state is known without asking: the manager reads along with the protocol. A query whose
/// future was dropped goes on, on the server and in the driver: its connection waits for it in the
/// background, the server is asked to cancel it after 20 ms, and again at times, and within
/// `reset_timeout` it is either clean or closed. One that is closed in the middle of a query, as when its
/// holder panics or discards it, has the server asked as well, within `close_timeout`. Of several that were
/// sent at once, each is cancelled when the server comes to it.
///
/// A stream of rows or a copy whose guard is gone counts as given up, also while somebody still reads it: keep
/// the guard until it has ended, as [`Client`] says.
///
/// With `target_session_attrs=read-write`, servers that take no writes are passed over; and when one
/// says that it has stopped taking them (it does from PostgreSQL 14 on), the next release of a
/// connection to it has the pool [invalidate](crate::Pool::invalidate) all that are as old. A holder who
/// sets `default_transaction_read_only` for his session has the server say the same, and costs the pool as
/// much, unless it ends with a transaction that was left open and is rolled back, or the reset of
/// [`PoolMode::Session`] undoes it; in [`PoolMode::Statement`] neither happens.
/// A [`reset_query`](Self::reset_query) in the place of that is not taken to do so: it may be one that a server
/// refuses which takes no writes.
///
/// Several hosts, and the addresses of each, are tried one after the other, as libpq does it. An attempt
/// takes the `connect_timeout` of the configuration at most: the question for a host's addresses, and each
/// of them up to the server's last word; or, if there is none, 2 s, as long as there is another place to go
/// to that has not had a turn. What has not answered is tried after all others for the next 30 s, and not cut
/// short then; also if dials to it were given up before that, once they have waited for 250 ms in all. So a
/// server that takes longer than 2 s to let anybody in had better have a `connect_timeout`.
/// All of it is a part of the *pool's* [`connect_timeout`](crate::PoolBuilder::connect_timeout), by default
/// 5 s: a dial that is cut there goes on behind the place that has held it up, next time. Names are looked
/// up on a thread of Millpond's own, for which tokio's paused clock does not stand still.
///
/// An idle connection that the server ends, or whose runtime does, is closed as soon as that is known, without
/// anybody having asked for it.
///
/// A `COPY … FROM STDIN` that has failed costs a round trip in the background: the server may answer its
/// end twice, and the pool makes sure that it does not, or closes the connection.
///
/// A clone knows what the others have found out about hosts that do not answer.
///
/// # Examples
///
/// ```no_run
/// use millpond::{Pool, backends::postgres::PostgresManager};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let manager = PostgresManager::from_url("postgresql://app@db.internal/app")?;
/// let pool = Pool::builder(manager).max_size(16).build().await?;
/// let row = pool.acquire().await?.query_one("SELECT 1 + 1", &[]).await?;
/// assert_eq!(row.get::<_, i32>(0), 2);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct PostgresManager<T = NoTls> {
    config: Arc<dyn Fn() -> Config + Send + Sync>,
    /// `None`: without encryption.
    tls: Option<T>,
    mode: PoolMode,
    reset_query: Option<String>,
    reset_always: bool,
    statement_cache_capacity: usize,
    /// Instead of the hosts of the configuration.
    only: Option<Target>,
    /// Instead of that of each host.
    certificate_name: Option<String>,
    silence: Arc<Silence>,
}

impl PostgresManager {
    /// Opens connections by this configuration, without encryption.
    ///
    /// Its times of keepalives count as 32,767 s, some 9 hours, if they are longer, more than 127 probes as
    /// that, and a `tcp_user_timeout` above 24 days as that: Linux takes no more.
    pub fn new(config: Config) -> Self {
        Self::with(move || config.clone())
    }

    /// Opens connections by a URL, or by words such as `host=/run/postgresql user=app`, without
    /// encryption; see [`Config`] for what there may be in it. It may be without a host, since
    /// [`only`](Self::only) may name one; if nothing does, the first connect is refused.
    ///
    /// # Errors
    ///
    /// [`Error::Postgres`] if it cannot be read, or [`Error::Config`] if the reason would show what may be
    /// a part of a password, or the database may be one.
    pub fn from_url(url: &str) -> Result<Self, Error> {
        let config = url.parse().map_err(|error| unreadable(url, error))?;
        no_password_in_path(url)?;
        Ok(Self::new(config))
    }

    /// Opens each connection by what `config` says at that moment, without encryption: for passwords
    /// that change. After a change, [`Pool::rotate`](crate::Pool::rotate) replaces the connections
    /// there are.
    /// `config` is asked once more when a pool is built or rotated, for the [`target`](crate::Manager::target).
    pub fn with(config: impl Fn() -> Config + Send + Sync + 'static) -> Self {
        Self {
            config: Arc::new(config),
            tls: None,
            mode: PoolMode::default(),
            reset_query: None,
            reset_always: false,
            statement_cache_capacity: 100,
            only: None,
            certificate_name: None,
            silence: Arc::default(),
        }
    }

    /// Encrypts with this connector, such as the crates tokio-postgres-rustls and
    /// postgres-native-tls have, as far as the configuration's `sslmode` asks for it. A server that encrypts
    /// must have a name, which its certificate is checked by: `hostaddr` alone leads to those that do not,
    /// without a [`certificate_name`](Self::certificate_name), and so does a Unix socket. `sslmode=require` with
    /// nothing but such hosts is refused, and so is `sslnegotiation=direct` without `sslmode=require`.
    pub fn tls<T: MakeTlsConnect<Socket>>(self, connector: T) -> PostgresManager<T> {
        PostgresManager {
            config: self.config,
            tls: Some(connector),
            mode: self.mode,
            reset_query: self.reset_query,
            reset_always: self.reset_always,
            statement_cache_capacity: self.statement_cache_capacity,
            only: self.only,
            certificate_name: self.certificate_name,
            silence: Arc::default(),
        }
    }
}

impl<T> PostgresManager<T> {
    /// What has to be put right when a connection comes back. Default: [`PoolMode::Transaction`].
    pub fn mode(mut self, mode: PoolMode) -> Self {
        self.mode = mode;
        self
    }

    /// Runs this when a connection comes back on which anything has been sent, instead of what the
    /// mode has for that. A transaction has been rolled back before. It must not take away what the driver
    /// has prepared, as `DISCARD ALL` and `DEALLOCATE ALL` do: that fails, and closes the connection. With
    /// `target_session_attrs=read-write`, a session that has become read-only is closed and the pool
    /// invalidated, whether this is run then or not, and whatever comes of it.
    pub fn reset_query(mut self, query: impl Into<String>) -> Self {
        self.reset_query = Some(query.into());
        self
    }

    /// Whether that is done whenever a connection comes back, even if nothing has been sent on it.
    /// Default: `false`.
    pub fn reset_always(mut self, always: bool) -> Self {
        self.reset_always = always;
        self
    }

    /// How many statements each connection keeps for
    /// [`prepare_cached`](Client::prepare_cached); 0 for none. Default: 100.
    pub fn statement_cache_capacity(mut self, capacity: usize) -> Self {
        self.statement_cache_capacity = capacity;
        self
    }

    /// Connects to this port of this host alone, whatever hosts, addresses and ports the configuration
    /// names: for a node of a cluster. A host that begins with a slash is the folder of a Unix socket. With
    /// TLS, the server's certificate must be for this host, even if it is an address, or for the
    /// [`certificate_name`](Self::certificate_name).
    pub fn only(self, host: &str, port: u16) -> Self {
        self.only_target(Target::new(host, port))
    }

    /// Checks the servers' certificates by this name, whatever hosts and addresses lead to them: for a node
    /// that is reached by its address, as `cluster::Dns` has them, while its certificate is for a name.
    /// Default: by the host that leads there. An empty name is refused at the first connect.
    pub fn certificate_name(mut self, name: impl Into<String>) -> Self {
        self.certificate_name = Some(name.into());
        self
    }

    fn only_target(mut self, target: Target) -> Self {
        self.only = Some(target);
        self
    }

    /// Whether anything makes a session new.
    fn renews(&self) -> bool {
        self.reset_query.is_some() || self.mode == PoolMode::Session
    }

    /// Whether that is to be done since a holder has sent something.
    fn is_touched(&self, client: &Client) -> bool {
        client.session.requests() != client.clean_at && self.renews()
    }

    /// Whether that is to be done.
    fn has_to_renew(&self, client: &Client) -> bool {
        self.is_touched(client) || (self.reset_always && self.renews())
    }
}

impl<T> PostgresManager<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    /// Whether nothing is encrypted.
    fn is_plain(&self) -> bool {
        self.tls.is_none() || TypeId::of::<T>() == TypeId::of::<NoTls>()
    }

    async fn connect_to(
        &self,
        config: &Arc<Config>,
        target: &Target,
        address: Address,
    ) -> Result<Client, Error> {
        let socket = address.open(config).await;
        let socket = socket.map_err(|error| Error::open(&address, error))?;
        let session = Arc::new(Session::new());
        let tap = Tap::new(socket, session.clone());
        let Started { client, driver, crank } = match (&self.tls, &target.hostname) {
            (None, _) => Started::new(config.connect_raw(tap, NoTls).await?, &session, &address),
            (Some(_), None) => {
                Started::new(config.connect_raw(tap, Nameless).await?, &session, &address)
            }
            (Some(tls), Some(name)) => {
                let tls = tls.clone().make_tls_connect(name);
                let tls = TapInside(tls.map_err(|error| Error::Tls(error.into()))?);
                Started::new(config.connect_raw(tap, tls).await?, &session, &address)
            }
        };
        let attributes = config.get_target_session_attrs();
        let client = Client {
            clean_at: session.requests(),
            asked: None,
            must_write: attributes == TargetSessionAttrs::ReadWrite,
            token: CancelToken {
                token: client.cancel_token(),
                config: config.clone(),
                address,
                hostname: target.hostname.clone(),
            },
            client,
            session,
            driver,
            crank,
            statements: Statements::new(self.statement_cache_capacity),
        };
        let writable = match attributes {
            TargetSessionAttrs::Any => return Ok(client),
            _ => client.is_writable().await?,
        };
        match attributes {
            TargetSessionAttrs::ReadWrite if !writable => Err(Error::ReadOnly),
            TargetSessionAttrs::ReadOnly if writable => Err(Error::ReadWrite),
            _ => Ok(client),
        }
    }

    /// Waits for what was given up to end; the server is asked to cancel what takes its time.
    async fn until_quiet(&self, client: &mut Client) -> Result<(), Error> {
        // Several may have been asked at once, and a cancel ends the one that the server is at. Whether it
        // takes another one shows in the answers. One that comes while the server is between two of them
        // is lost, hence once more at times; but not at each turn, for what cannot be cancelled.
        let mut cancelled_after = None;
        for turn in 0_u32.. {
            if timeout(GRACE, client.session.until_quiet()).await.is_ok() {
                break;
            }
            let answers = Some(client.session.answers());
            if cancelled_after != answers || turn % CANCELLED_AGAIN == 0 {
                cancelled_after = answers;
                let (token, session) = (client.cancel_token(), client.session.clone());
                // Not before: what has not been sent is still to be, should this be dropped.
                let sent = || client.asked = Some(session.answers());
                self.cancel(token, &session, sent).await?;
            }
        }
        Ok(())
    }

    /// Ends whatever is under way, rolls back, and makes the session new if that is to be.
    async fn make_clean(&self, client: &mut Client) -> Result<(), Error> {
        self.until_quiet(client).await?;
        if client.has_ended() {
            return Err(Error::Closed);
        }
        if client.session.in_transaction() && self.mode == PoolMode::Statement {
            return Err(Error::OpenTransaction);
        }
        if client.session.is_in_doubt() {
            client.clear_doubt().await?;
        }
        let renews = self.has_to_renew(client);
        match &self.reset_query {
            None if renews => client.make_new().await?,
            query => {
                if client.session.in_transaction() {
                    client.run("ROLLBACK").await?;
                }
                // By itself: what comes in one piece is in one transaction, and not everything may be. A
                // `CALL` of what commits may not.
                if let (Some(query), true) = (query, renews) {
                    client.run(query).await?;
                }
            }
        }
        if client.session.in_transaction() {
            return Err(Error::OpenTransaction);
        }
        if client.has_ended() {
            return Err(Error::Closed);
        }
        client.clean_at = client.session.requests();
        client.asked = None;
        Ok(())
    }

    /// Asks the server to cancel what it is at, unless it has answered all before there is a way to ask.
    async fn cancel(
        &self,
        token: CancelToken,
        session: &Session,
        sent: impl FnOnce(),
    ) -> Result<(), Error> {
        let quiet = session.until_quiet();
        match &self.tls {
            None => token.cancel_unless(quiet, NoTls, sent).await,
            Some(tls) => token.cancel_unless(quiet, tls.clone(), sent).await,
        }
    }
}

impl Client {
    /// Whether nobody may use it again.
    #[inline]
    fn has_ended(&self) -> bool {
        self.client.is_closed() || self.session.is_lost()
    }

    /// The pool asks something now.
    fn begin_to_ask(&mut self) {
        self.asked = Some(self.session.answers());
    }

    /// Whether the pool has asked last, and the server has not answered anything since.
    fn owes_the_pool(&self) -> bool {
        self.asked == Some(self.session.answers())
    }

    /// Runs what the pool asks for.
    async fn run(&mut self, sql: &str) -> Result<(), Error> {
        self.begin_to_ask();
        let answer = self.client.batch_execute(sql).await;
        // The driver may still be busy with the end of the answer.
        self.session.until_quiet().await;
        Ok(answer?)
    }

    /// Rolls back, and makes the session new.
    async fn make_new(&mut self) -> Result<(), Error> {
        self.begin_to_ask();
        let first = if self.session.in_transaction() { "ROLLBACK; " } else { "" };
        let answer = self.client.simple_query(&format!("{first}{NEW_SESSION}")).await;
        self.session.until_quiet().await;
        let rest: String = values(&answer?).collect();
        if rest.is_empty() { Ok(()) } else { self.run(&rest).await }
    }

    /// Asks something that nobody else asks. If another answer is still to come, the driver gives it to
    /// this question, and the connection is of no use.
    async fn clear_doubt(&mut self) -> Result<(), Error> {
        self.begin_to_ask();
        let number = fastrand::u64(..).to_string();
        // In a transaction that has failed, the server answers nothing else before.
        let first = if self.session.in_transaction() { "ROLLBACK; " } else { "" };
        let answer = self.client.simple_query(&format!("{first}SELECT '{number}'")).await?;
        self.session.until_quiet().await;
        if first_value(&answer) != Some(&*number) || self.has_ended() {
            return Err(Error::Closed);
        }
        self.session.trust();
        Ok(())
    }

    /// Whether the server takes writes. It says so by itself from PostgreSQL 14 on.
    async fn is_writable(&self) -> Result<bool, Error> {
        if let Some(writable) = self.session.is_writable() {
            return Ok(writable);
        }
        let answer = self.client.simple_query("SHOW transaction_read_only").await?;
        match first_value(&answer) {
            Some("off") => Ok(true),
            Some("on") => Ok(false),
            _ => Err(Error::Closed),
        }
    }
}

/// What a question with one value was answered; `None` if that is no answer to it, which only a
/// connection gives that is of no use.
fn first_value(answer: &[SimpleQueryMessage]) -> Option<&str> {
    values(answer).next()
}

/// What each row of an answer begins with.
fn values(answer: &[SimpleQueryMessage]) -> impl Iterator<Item = &str> {
    answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}

/// Why a URL, or words, cannot be read, without what may be a part of a password: where that is not
/// written as it should be, what follows is taken for something else, and named.
fn unreadable(url: &str, error: tokio_postgres::Error) -> Error {
    let names_an_option = || {
        let cause = std::error::Error::source(&error);
        cause.is_some_and(|cause| cause.to_string().starts_with("invalid value for option `"))
    };
    let login = url.split_once('@').map(|(login, _)| login.replace("://", ""));
    let has_password = url.contains("password") || login.is_some_and(|login| login.contains(':'));
    if !has_password || names_an_option() {
        return error.into();
    }
    let rule = "must have no unknown option, and a value for each; in a password in a URL, @ is written \
                %40, & %26 and = %3D, and one in words that has spaces in it stands in single quotes";
    Error::config("url", "not shown, as it has a password in it", rule)
}

/// Refuses a URL with a password and with an `@` in its path: the first `@` ends the password, so what
/// would be told as a host may be a part of one with an `@` and a `/` that are not written as they should be.
fn no_password_in_path(url: &str) -> Result<(), Error> {
    let has_at_in_path = |(login, rest): (&str, &str)| {
        let path = rest.split('?').next().and_then(|rest| rest.split_once('/'));
        login.contains(':') && path.is_some_and(|(_, path)| path.contains('@'))
    };
    let rest = url.strip_prefix("postgresql://").or_else(|| url.strip_prefix("postgres://"));
    if rest.and_then(|rest| rest.split_once('@')).is_some_and(has_at_in_path) {
        let rule =
            "must have no @ in it but as %40; in a password, too, @ is written %40, and / is %2F";
        return Err(Error::config("dbname", "not shown, as it may end a password", rule));
    }
    Ok(())
}

/// A client whose connection runs in a task of its own.
struct Started {
    client: tokio_postgres::Client,
    driver: DriverTask,
    crank: Arc<dyn Crank>,
}

impl Started {
    fn new<S, C>(
        (client, connection): (tokio_postgres::Client, Connection<S, C>),
        session: &Arc<Session>,
        address: &Address,
    ) -> Self
    where
        Connection<S, C>:
            Future<Output = Result<(), tokio_postgres::Error>> + Send + Unpin + 'static,
    {
        let (driver, crank) = Driver::new(connection, session.clone());
        let address = address.clone();
        let task = async move {
            if let Err(error) = driver.await {
                tell_lost(&address, error.into());
            }
        };
        Self { client, driver: DriverTask(tokio::spawn(task)), crank }
    }
}

/// Whether whoever is here runs in a task of tokio's, as the body of `#[tokio::main]` does not.
fn is_in_task() -> bool {
    tokio::task::try_id().is_some()
}

/// Polls with whatever it takes, also in a task that has used up its budget.
fn beyond_budget<T>(mut poll: impl FnMut() -> Poll<T>) -> Poll<T> {
    let polled = pin!(unconstrained(poll_fn(|_| poll())));
    polled.poll(&mut Context::from_waker(Waker::noop()))
}

/// A connection has ended that nobody has closed: tells whoever listens, with the feature `tracing`.
///
/// A server that ends one says why, and the driver passes that on to nobody unless a query is running. The
/// driver ends one itself when it has lost count of the answers, as after a copy that was refused.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables))]
fn tell_lost(address: &Address, error: Error) {
    #[cfg(feature = "tracing")]
    {
        let error = crate::error::InWords(&error);
        crate::panics::tell!(warn, server = %address, %error, "a connection is lost");
    }
}

impl<T> Manager for PostgresManager<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    type Connection = Client;
    type Error = Error;

    async fn connect(&self) -> Result<Client, Error> {
        let mut config = (self.config)();
        negotiable(&config)?;
        if self.is_plain() {
            if config.get_ssl_mode() == SslMode::Require {
                let rule = "needs a TLS connector: see PostgresManager::tls";
                return Err(Error::config("sslmode", "require", rule));
            }
            config.ssl_mode(SslMode::Disable);
        }
        let config = Arc::new(config);
        let mut targets = match &self.only {
            Some(target) => vec![target.clone().reachable(&config, 0)?],
            None => targets(&config)?,
        };
        if let Some(name) = &self.certificate_name {
            if name.is_empty() {
                return Err(Error::config("certificate_name", "", "must not be empty"));
            }
            targets.iter_mut().for_each(|target| target.name_certificate(name));
        }
        if !self.is_plain() {
            encryptable(&config, &targets)?;
        }
        let mut course = Course::new(&self.silence, &config, targets);
        let mut last = None;
        while let Some((place, limit)) = course.next() {
            let target = &place.target;
            let failed = match &place.address {
                None => {
                    let addresses = target.addresses(&config);
                    match self.silence.until_answer(&place, limit, addresses).await {
                        Ok(addresses) => {
                            course.add_addresses(target, addresses);
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Some(address) => {
                    let client = self.connect_to(&config, target, address.clone());
                    match self.silence.until_answer(&place, limit, client).await {
                        Ok(client) => return Ok(client),
                        // As libpq does: other hosts are for when one cannot be reached.
                        Err(error) if error.is_permanent() => return Err(error),
                        Err(error) => error,
                    }
                }
            };
            // One out of reach may be the one that is wanted, which another that is not says nothing of.
            let says_little = matches!(failed, Error::ReadOnly | Error::ReadWrite);
            if last.is_none() || !says_little {
                last = Some(failed);
            }
            course.failed(place);
        }
        Err(last.expect("BUG: a target without an outcome"))
    }

    fn watch(&self, client: &mut Client, signal: LossSignal) {
        client.session.when_ended(move || signal.send());
    }

    fn condition(&self, client: &mut Client) -> Condition {
        let session = &client.session;
        // First, so that whatever the end of the last answer, or of the driver, has changed is seen.
        let quiet = session.is_quiet() || {
            // Such as the end of a statement, which need not be waited for once it has been sent.
            client.crank.turn();
            session.is_quiet()
        };
        let takes_no_writes = client.must_write && session.is_writable() == Some(false);
        // What a holder has set for himself alone is undone by a reset, after which this is asked once more.
        // A query of the caller's own may fail instead, where the server takes no writes: nobody would hear.
        let may_be_his = || self.reset_query.is_none() && self.is_touched(client);
        if client.has_ended() {
            Condition::Broken
        } else if !quiet || session.is_in_doubt() {
            Condition::Dirty
        } else if session.in_transaction() {
            match self.mode {
                PoolMode::Statement if takes_no_writes => Condition::Outdated,
                PoolMode::Statement => Condition::Broken,
                PoolMode::Session | PoolMode::Transaction => Condition::Dirty,
            }
        } else if takes_no_writes && !may_be_his() {
            Condition::Outdated
        } else if self.has_to_renew(client) {
            Condition::Dirty
        } else {
            Condition::Clean
        }
    }

    async fn check(&self, client: &mut Client) -> Result<(), Error> {
        client.begin_to_ask();
        client.client.check_connection().await?;
        client.asked = None;
        Ok(())
    }

    async fn reset(&self, client: &mut Client) -> Result<(), Error> {
        let outcome = self.make_clean(client).await;
        if outcome.is_err() && self.condition(client) == Condition::Outdated {
            // The pool asks for that, and hears of all that are as old; an error says nothing of the others.
            return Ok(());
        }
        outcome
    }

    async fn close(&self, mut client: Client) {
        // To go on asking a server that does not answer would keep the place of the next connection. It is
        // worth more patience if it would go on with something else behind that.
        let turns = if client.session.unanswered() > 1 { CANCELLED_AGAIN } else { 1 };
        let mut is_quiet = false;
        for _ in 0..turns {
            if is_quiet || !client.owes_the_pool() {
                break;
            }
            // Cancel: it is dropped all the same.
            is_quiet = timeout(GRACE, client.session.until_quiet()).await.is_ok();
        }
        if !is_quiet && !client.owes_the_pool() {
            // The server would go on with what nobody is to read.
            is_quiet = self.until_quiet(&mut client).await.is_ok();
        }
        if !is_quiet {
            // The driver would wait for the answers before it says goodbye.
            return;
        }
        let owes = client.owes_the_pool();
        let Client { client, mut driver, .. } = client;
        // The driver tells the server goodbye.
        drop(client);
        // Cancel: the task is aborted, and the socket closed. Its panic has been reported.
        let goodbye = &mut driver.0;
        if owes {
            drop(timeout(GRACE, goodbye).await);
        } else {
            drop(goodbye.await);
        }
    }

    fn is_permanent(&self, error: &Error) -> bool {
        error.is_permanent()
    }

    /// All hosts, in the order in which they are named.
    fn target(&self) -> Option<String> {
        let mut config = (self.config)();
        config.load_balance_hosts(LoadBalanceHosts::Disable);
        // What stands before that `@` may be the rest of a password, and the host a part of one.
        if config.get_dbname().is_some_and(|name| name.contains('@')) {
            return None;
        }
        let targets = match &self.only {
            Some(target) => vec![target.clone()],
            None => targets(&config).ok()?,
        };
        Some(targets.iter().map(Target::told).collect::<Vec<_>>().join(","))
    }
}

impl<T> fmt::Debug for PostgresManager<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresManager")
            .field("tls", &self.tls.is_some())
            .field("mode", &self.mode)
            .field("reset_query", &self.reset_query)
            .field("reset_always", &self.reset_always)
            .field("statement_cache_capacity", &self.statement_cache_capacity)
            .finish_non_exhaustive()
    }
}

/// What goes wrong with a connection to PostgreSQL.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot work.
    Config(ConfigError),
    /// No connection to the server can be opened.
    Open {
        /// Where it should be.
        address: String,
        /// Why not.
        error: io::Error,
    },
    /// The TLS connector cannot be set up.
    Tls(Box<dyn std::error::Error + Send + Sync>),
    /// The server, or the driver, reports an error.
    Postgres(tokio_postgres::Error),
    /// `target_session_attrs` is `read-write`, and the server takes no writes.
    ReadOnly,
    /// `target_session_attrs` is `read-only`, and the server takes writes.
    ReadWrite,
    /// A transaction is open that must not be.
    OpenTransaction,
    /// The connection has ended.
    Closed,
}

impl Error {
    fn config(field: &'static str, value: impl fmt::Display, rule: impl Into<String>) -> Self {
        Self::Config(ConfigError::new(field, value, rule))
    }

    fn open(address: &Address, error: io::Error) -> Self {
        Self::Open { address: address.to_string(), error }
    }

    fn no_answer(address: impl fmt::Display, limit: Duration) -> Self {
        let error = io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {limit:?}"));
        Self::Open { address: address.to_string(), error }
    }

    /// The server's code for the error, if it is the server's:
    /// [Appendix A](https://www.postgresql.org/docs/current/errcodes-appendix.html) of its manual.
    #[must_use]
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(error) => error.code(),
            _ => None,
        }
    }

    /// Whether trying again is pointless.
    fn is_permanent(&self) -> bool {
        match self {
            Self::Config(_) => return true,
            // The driver does not tell these otherwise: no password, though the server asks for one, and no
            // way to log in that both sides know and the configuration allows.
            Self::Postgres(error) => match &*error.to_string() {
                "invalid configuration" | "authentication error" => return true,
                _ => {}
            },
            _ => {}
        }
        let permanent = [
            SqlState::INVALID_PASSWORD,
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            SqlState::INVALID_CATALOG_NAME,
        ];
        self.code().is_some_and(|code| permanent.contains(code))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config(error) => return fmt::Display::fmt(error, f),
            Self::Open { address, .. } => return write!(f, "cannot connect to {address}"),
            Self::Tls(_) => "cannot set up TLS",
            Self::Postgres(error) => match error.as_db_error() {
                Some(error) => return write!(f, "{error} (SQLSTATE {})", error.code().code()),
                None => return fmt::Display::fmt(error, f),
            },
            Self::ReadOnly => "the server takes no writes, and target_session_attrs is read-write",
            Self::ReadWrite => "the server takes writes, and target_session_attrs is read-only",
            Self::OpenTransaction => "a transaction was left open",
            Self::Closed => "the connection has ended",
        })
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open { error, .. } => Some(error),
            Self::Tls(error) => Some(&**error),
            // What the server says is said above.
            Self::Postgres(error) if error.as_db_error().is_none() => error.source(),
            _ => None,
        }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}
