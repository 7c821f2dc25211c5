//! Redis, through [redis-rs](https://docs.rs/redis): connections that one user has to itself.
//!
//! Not here: publish and subscribe, which needs a connection for good, and clusters.

use super::host::told;
use crate::manager::{Condition, Manager};
use crate::names::lookup;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::io::AsyncDNSResolver;
use redis::{
    Arg, AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo, Pipeline, ProtocolVersion, RedisConnectionInfo, RedisError, RedisFuture,
    RedisResult, ServerError, ServerErrorKind, Value,
};
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// Opens connections to a Redis server, or to one that speaks its protocol, such as Valkey.
///
/// Whoever only sends single commands that do not wait is served as well by one
/// [`MultiplexedConnection`], which may be cloned. A pool is for what needs a connection to itself:
/// `WATCH` and `MULTI`, commands that wait such as `BLPOP`, `SELECT`, large values that would hold
/// up the others.
///
/// Connections are [`RedisConnection`]s. They notice what their user leaves behind. Names are looked up on a
/// thread of Millpond's own, for which tokio's paused clock does not stand still.
///
/// # What is checked
///
/// When a connection is released, without a word to the server:
///
/// - After `READONLY`, which says that this server is not the primary any more, **all** connections
///   that are as old are [invalidated](crate::Pool::invalidate), once a second at the most: new ones may find the one
///   that is. For a pool that reads from a replica, [`must_write(false)`](Self::must_write) takes it for an error like
///   any other.
/// - It is **closed** after an error of the connection itself; after `SUBSCRIBE` and its like, `MONITOR`, `CLIENT REPLY` and `QUIT`; and if its user gave up on a
///   command that waits for others, such as `BLPOP`: the server would go on waiting, and what it then
///   takes from a list would be lost.
/// - It is **reset** if its user gave up on any other command, or left a transaction (`MULTI`,
///   `WATCH`), another database (`SELECT`), name, user, protocol or tracking (`CLIENT`, `AUTH`,
///   `HELLO`) behind.
///
/// Only commands that pass through the connection are seen: what a module's commands or a proxy do
/// to it is not. To check one, the pool sends `PING` with a number and wants that number back; so no
/// answer to an earlier command passes for it. `NOPERM` and `MISCONF` will do as well: a user who may not
/// ask, and a server that cannot save its data and answers only those who read.
///
/// # What is reset
///
/// [`RESET`](https://redis.io/docs/latest/commands/reset/), which puts all of the above back to what
/// a new connection has; then `AUTH` or `HELLO`, `SELECT` and `CLIENT SETNAME` as at first, and
/// `PING`. The server answers in order, so once that is answered no answer to an earlier command is
/// under way. Servers before 6.2 have no `RESET`; there the connection is closed, and so it is where
/// the server no longer takes the password that it was opened with.
///
/// **A reset also undoes what [`Hooks::after_connect`](crate::Hooks::after_connect) has set up**: a
/// database, name, user, protocol or tracking. It is there for the first user only, so what all are to
/// have belongs in the URL and in the manager's own settings. A hook that sends `CLIENT NO-EVICT` or
/// `CLIENT NO-TOUCH` has each connection closed after its first use.
///
/// # What is permanent
///
/// A password, user, database or name that the server refuses, and one that is missing; a command for
/// it that the server does not have, such as `HELLO` for RESP3. Not a server that is not there, is loading
/// its data, or has as many clients as `maxclients` allows.
///
/// # Examples
///
/// ```no_run
/// use millpond::{Pool, backends::redis::RedisManager};
/// use redis::AsyncCommands;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let manager = RedisManager::new("redis://:secret@127.0.0.1:6379/2")?.client_name("shop");
/// let pool = Pool::builder(manager).max_size(16).build().await?;
///
/// let mut connection = pool.acquire().await?;
/// redis::cmd("WATCH").arg("stock").exec_async(&mut *connection).await?;
/// let stock: u64 = connection.get("stock").await?;
/// // Nothing, if somebody else has changed the stock meanwhile.
/// let sold: Option<(u64,)> =
///     redis::pipe().atomic().set("stock", stock - 1).ignore().incr("sold", 1)
///         .query_async(&mut *connection).await?;
/// drop(connection);
///
/// // Until nobody has: what `redis::aio::transaction_async` does with a connection that can be cloned.
/// let mut connection = pool.acquire().await?;
/// let (sold,): (u64,) = loop {
///     redis::cmd("WATCH").arg("stock").exec_async(&mut *connection).await?;
///     let stock: u64 = connection.get("stock").await?;
///     let mut sell = redis::pipe();
///     sell.atomic().set("stock", stock - 1).ignore().incr("sold", 1);
///     if let Some(sold) = sell.query_async(&mut *connection).await? {
///         break sold;
///     }
/// };
/// # let _ = sold; Ok(()) }
/// ```
#[derive(Clone)]
#[must_use]
pub struct RedisManager {
    config: Arc<dyn Fn() -> ConnectionInfo + Send + Sync>,
    client_name: Option<String>,
    /// Instead of that of the configuration.
    protocol: Option<ProtocolVersion>,
    response_timeout: Option<Duration>,
    must_write: bool,
}

impl RedisManager {
    /// Opens connections as a URL or a [`ConnectionInfo`] says: address, database, user, password,
    /// protocol (`?protocol=resp3`) and, with redis-rs's features for it, TLS.
    ///
    /// For a [`Client`], give its
    /// [`get_connection_info().clone()`](Client::get_connection_info). The name of the library is not
    /// sent (`CLIENT SETINFO`).
    ///
    /// # Errors
    ///
    /// If the URL is none.
    pub fn new(server: impl IntoConnectionInfo) -> RedisResult<Self> {
        let config = server.into_connection_info()?;
        Ok(Self::with(move || config.clone()))
    }

    /// Opens each connection by what `config` says at that moment: for passwords that change. After a
    /// change, [`Pool::rotate`](crate::Pool::rotate) replaces the connections there are.
    /// `config` is asked once more when a pool is built or rotated, for the [`target`](crate::Manager::target).
    pub fn with(config: impl Fn() -> ConnectionInfo + Send + Sync + 'static) -> Self {
        Self {
            config: Arc::new(config),
            client_name: None,
            protocol: None,
            // The default of redis-rs.
            response_timeout: Some(Duration::from_millis(500)),
            must_write: true,
        }
    }

    /// What the connections are called in the server's
    /// [`CLIENT LIST`](https://redis.io/docs/latest/commands/client-setname/): without spaces.
    /// Default: nothing.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = Some(name.into());
        self
    }

    /// The protocol: RESP3, from Redis 6.0, has more types. Default: as in the URL, or RESP2.
    pub fn protocol(mut self, protocol: ProtocolVersion) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// How long a user's command waits for its answer before it fails with
    /// [`is_timeout`](RedisError::is_timeout); `None` for as long as it takes. Above zero. Default: 500 ms, as in
    /// redis-rs.
    ///
    /// A command such as `BLPOP` has to be told to wait less than that: whoever sends one
    /// [sets](RedisConnection::set_response_timeout) a longer time for himself.
    ///
    /// What the pool itself sends is limited by its own timeouts instead.
    pub fn response_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.response_timeout = limit.into();
        self
    }

    /// Whether a server that refuses a write with `READONLY` is the wrong one, so that all connections to it are
    /// replaced. Without, they stay, as is right for a pool that reads from a replica. Default: true.
    ///
    /// It is not asked at connect: a server that takes no writes is found out by the first write.
    pub fn must_write(mut self, must_write: bool) -> Self {
        self.must_write = must_write;
        self
    }

    /// What else makes a new connection one of this pool's.
    fn furnish(&self, session: &RedisConnectionInfo, commands: &mut Pipeline) {
        if session.db() != 0 {
            commands.cmd("SELECT").arg(session.db());
        }
        if let Some(name) = &self.client_name {
            commands.cmd("CLIENT").arg("SETNAME").arg(name);
        }
    }
}

/// Has names looked up where nobody can wait for the connection.
struct Elsewhere;

impl AsyncDNSResolver for Elsewhere {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let mut addresses = lookup((host, port)).await?.peekable();
            if addresses.peek().is_none() {
                let error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                return Err(error.into());
            }
            Ok(Box::new(addresses) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

impl Manager for RedisManager {
    type Connection = RedisConnection;
    type Error = RedisError;

    async fn connect(&self) -> RedisResult<RedisConnection> {
        let server = (self.config)();
        let mut session = server.redis_settings().clone();
        if let Some(protocol) = self.protocol {
            session = session.set_protocol(protocol);
        }
        // redis-rs would do the same with the session, but it drops what the server says to a
        // password, and so whether it is worth trying again.
        let bare = RedisConnectionInfo::default().set_skip_set_lib_name();
        let client = Client::open(server.set_redis_settings(bare))?;
        // The pool has timeouts of its own.
        let config = AsyncConnectionConfig::new();
        let config = config.set_connection_timeout(None).set_response_timeout(None);
        let config = config.set_dns_resolver(Elsewhere);
        let inner = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut connection = RedisConnection {
            inner,
            session,
            response_timeout: self.response_timeout,
            runtime: Handle::current(),
            left: Traces::default(),
            unanswered: None,
            pings: 0,
        };
        // The first command goes alone: a server that has too many clients says so in its answer and
        // hangs up, and of a pipeline redis-rs would tell the hang-up only.
        if let Some(login) = login(&connection.session) {
            let answer = connection.inner.send_packed_command(&login).await?;
            heard(&login, answer)?;
        } else {
            connection.confirm(redis::pipe()).await?;
        }
        let mut commands = redis::pipe();
        self.furnish(&connection.session, &mut commands);
        connection.confirm(commands).await?;
        Ok(connection)
    }

    fn condition(&self, connection: &mut RedisConnection) -> Condition {
        connection.response_timeout = self.response_timeout;
        if !self.must_write {
            connection.left.read_only = false;
        }
        connection.condition()
    }

    async fn check(&self, connection: &mut RedisConnection) -> RedisResult<()> {
        connection.confirm(redis::pipe()).await
    }

    async fn reset(&self, connection: &mut RedisConnection) -> RedisResult<()> {
        let mut commands = redis::pipe();
        commands.cmd("RESET");
        if let Some(login) = login(&connection.session) {
            commands.add_command(login);
        }
        self.furnish(&connection.session, &mut commands);
        connection.confirm(commands).await?;
        (connection.left, connection.unanswered) = (Traces::default(), None);
        Ok(())
    }

    // Dropping a connection closes its socket, which is what Redis asks for: `QUIT` is deprecated
    // (https://redis.io/docs/latest/commands/quit/).

    fn is_permanent(&self, error: &RedisError) -> bool {
        if matches!(error.kind(), ErrorKind::InvalidClientConfig) {
            return true;
        }
        // What servers say to HELLO, AUTH, SELECT and CLIENT SETNAME; the plain ERR also comes with
        // what will pass, such as too many clients.
        const REFUSALS: [&str; 7] = [
            "db index",
            "select is not allowed",
            "password",
            "for 'auth'",
            "client names",
            UNKNOWN,
            "unsupported protocol",
        ];
        match error.code() {
            Some("WRONGPASS" | "NOAUTH" | "NOPERM" | "NOPROTO") => true,
            Some("ERR") => {
                let detail = error.detail().unwrap_or_default().to_ascii_lowercase();
                REFUSALS.iter().any(|refusal| detail.contains(refusal))
            }
            _ => false,
        }
    }

    fn target(&self) -> Option<String> {
        match (self.config)().addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                told(host, Some(*port))
            }
            ConnectionAddr::Unix(path) => Some(path.display().to_string()),
            _ => None,
        }
    }
}

/// What servers say to a command that they do not have, in lower case.
const UNKNOWN: &str = "unknown command";

/// What the connections are opened with, which may hold a password, is not shown.
impl fmt::Debug for RedisManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisManager")
            .field("client_name", &self.client_name)
            .field("protocol", &self.protocol)
            .field("response_timeout", &self.response_timeout)
            .field("must_write", &self.must_write)
            .finish_non_exhaustive()
    }
}

/// A connection to a Redis server that remembers what is left on it.
///
/// It is a [`ConnectionLike`], so what redis-rs does with one works on it: [`AsyncCommands`](redis::AsyncCommands)
/// as its methods, and [`Cmd::query_async`] and [`Pipeline::query_async`] with `&mut *connection`. It cannot be
/// cloned, which [`transaction_async`](redis::aio::transaction_async) asks for: the example of [`RedisManager`]
/// does the same.
///
/// Its futures need no particular runtime: a thread that has none awaits them with any `block_on`.
///
/// # Cancel safety
///
/// Dropping the future of a command abandons its answer, not the command: the server may carry it
/// out all the same. The connection can be used further at once, since redis-rs keeps answers and
/// commands together; the pool hands it to nobody else before that answer is in.
pub struct RedisConnection {
    inner: MultiplexedConnection,
    /// What it was opened with, and a reset brings back: the manager may say something else by then.
    session: RedisConnectionInfo,
    /// That of the manager, unless its user has set another.
    response_timeout: Option<Duration>,
    /// Where it was opened; its timers run there.
    runtime: Handle,
    /// What the commands that have been answered left behind.
    left: Traces,
    /// Set while the answer to a command is under way. It stays if nobody waits for it any more.
    unanswered: Option<Unanswered>,
    pings: u64,
}

/// What commands leave behind on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Traces {
    /// `MULTI` without its `EXEC`.
    transaction: bool,
    /// `WATCH` likewise.
    watch: bool,
    /// The session is not what it was, and can be made so.
    altered: bool,
    /// Nobody is to have it again.
    spoiled: bool,
    /// Nor any other: the server takes no writes.
    read_only: bool,
}

#[derive(Clone, Copy, Debug)]
struct Unanswered {
    /// What will be left behind when the answer is in, if the server does all that it is told.
    leaves: Traces,
    /// The same, if it refuses some of it: an `EXEC` without a `MULTI` ends no `WATCH`.
    may_leave: Traces,
    /// The server may answer as late as it likes.
    waits: bool,
}

/// What was known before a request.
struct Noted {
    left: Traces,
    unanswered: Option<Unanswered>,
}

/// What the server makes of a request.
#[derive(Default)]
struct Verdict {
    /// It has not done all of it.
    refused: bool,
    /// It says that it is not the primary (any more).
    read_only: bool,
}

impl RedisConnection {
    /// The connection alone, which may be cloned, say for a connection that was
    /// [detached](crate::Pooled::detach). Without a timeout for answers, unless
    /// [set](MultiplexedConnection::set_response_timeout). redis-rs takes it for one to database 0 that
    /// speaks RESP2, whatever it is: the pool chooses both by commands of its own.
    #[must_use]
    pub fn into_inner(self) -> MultiplexedConnection {
        self.inner
    }

    /// How long each command waits for its answer from now on; `None` for as long as it takes. Above zero. When
    /// the connection is released it is the manager's [`response_timeout`](RedisManager::response_timeout)
    /// again.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use millpond::{Pool, backends::redis::RedisManager};
    /// # use redis::AsyncCommands;
    /// # use std::time::Duration;
    /// # async fn example(pool: Pool<RedisManager>) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut connection = pool.acquire().await?;
    /// connection.set_response_timeout(Duration::from_secs(31));
    /// let job: Option<(String, String)> = connection.blpop("jobs", 30.0).await?;
    /// # drop(job); Ok(()) }
    /// ```
    pub fn set_response_timeout(&mut self, limit: impl Into<Option<Duration>>) {
        self.response_timeout = limit.into();
    }

    fn condition(&self) -> Condition {
        if self.left.read_only {
            return Condition::Outdated;
        }
        if self.left.spoiled {
            return Condition::Broken;
        }
        match self.unanswered {
            Some(sent) if sent.may_leave.spoiled || sent.waits => Condition::Broken,
            Some(_) => Condition::Dirty,
            None if self.left == Traces::default() => Condition::Clean,
            None => Condition::Dirty,
        }
    }

    /// Sends commands and a `PING` of its own, and looks at every answer.
    async fn confirm(&mut self, mut commands: Pipeline) -> RedisResult<()> {
        self.pings += 1;
        let number = self.pings.to_string();
        commands.cmd("PING").arg(&number);
        let count = commands.len();
        let mut answers = match count {
            // A pipeline of one is a command, whose answer arrives even if the server hangs up.
            1 => vec![self.inner.send_packed_command(&ping(&number)).await?],
            _ => self.inner.send_packed_commands(&commands, 0, count).await?,
        };
        let pong = answers.pop().unwrap_or_default();
        for (command, answer) in commands.cmd_iter().zip(answers) {
            heard(command, answer)?;
        }
        match pong {
            Value::BulkString(pong) if pong == number.as_bytes() => Ok(()),
            // A user who may not ask has been answered, and so has everybody where the server cannot
            // save its data: it refuses this as it does what writes, and serves whoever reads.
            Value::ServerError(error) if matches!(error.code(), "NOPERM" | "MISCONF") => Ok(()),
            Value::ServerError(error) => Err(error.into()),
            _ => Err((ErrorKind::UnexpectedReturnType, "PING got another command's answer").into()),
        }
    }

    /// Notes what is about to be sent, and returns what was noted before.
    fn begin<'c>(&mut self, commands: impl Iterator<Item = &'c Cmd>) -> Noted {
        let noted = Noted { left: self.left, unanswered: self.unanswered };
        let mut waits = false;
        if let Some(before) = self.unanswered.take() {
            // Whether that one was carried out nobody knows, even when this one is answered.
            self.left.altered |= before.leaves != noted.left || before.may_leave != noted.left;
            self.left.spoiled |= before.may_leave.spoiled;
            waits = before.waits;
        }
        let mut sent = Unanswered { leaves: self.left, may_leave: self.left, waits };
        for command in commands {
            sent.add(command);
        }
        // Cancel: from the first poll of the request on, until its answer is in.
        self.unanswered = Some(sent);
        noted
    }

    /// Notes how a request has ended.
    fn end<T>(&mut self, noted: Noted, answer: &RedisResult<T>, says: impl Fn(&T) -> Verdict) {
        match answer {
            Ok(answer) => self.settle(says(answer)),
            // The answer may still come.
            Err(error) if error.is_timeout() => {}
            Err(error) if matches!(error.kind(), ErrorKind::Server(_)) => {
                let errors = error.clone().into_server_errors();
                let errors = errors.iter().flat_map(|errors| errors.iter());
                let verdict = Verdict::of(errors.map(|(_, error)| error));
                self.settle(Verdict { refused: true, ..verdict });
            }
            // Nothing was sent, so an answer that was under way still is.
            Err(error) if matches!(error.kind(), ErrorKind::Client) => {
                (self.left, self.unanswered) = (noted.left, noted.unanswered);
            }
            Err(_) => self.left.spoiled = true,
        }
    }

    fn settle(&mut self, verdict: Verdict) {
        if let Some(Unanswered { leaves, may_leave, .. }) = self.unanswered.take() {
            self.left = if verdict.refused { may_leave } else { leaves };
        }
        self.left.read_only |= verdict.read_only;
    }
}

impl ConnectionLike for RedisConnection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let noted = self.begin(std::iter::once(cmd));
            let request = self.inner.send_packed_command(cmd);
            let answer = within(self.response_timeout, &self.runtime, request).await;
            // An answer that nobody waits for counts as under way until the next one is in.
            if answer.is_err() || !cmd.is_no_response() {
                self.end(noted, &answer, |answer| Verdict::on(std::slice::from_ref(answer)));
            }
            answer
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let noted = self.begin(cmd.cmd_iter());
            let answers = match cmd.is_transaction() {
                true => (cmd.len() + 1, 1),
                false => (0, cmd.len()),
            };
            if let Some(sent) = &mut self.unanswered {
                if cmd.is_transaction() {
                    sent.leaves.end_transaction();
                    sent.may_leave.transaction = true;
                }
                // Whoever waits for another number of answers mixes them up from here on.
                sent.leaves.spoiled |= answers != (offset, count);
                sent.may_leave.add(sent.leaves);
            }
            let request = self.inner.send_packed_commands(cmd, offset, count);
            let answer = within(self.response_timeout, &self.runtime, request).await;
            self.end(noted, &answer, |answers| Verdict::on(answers));
            answer
        })
    }

    fn get_db(&self) -> i64 {
        self.session.db()
    }
}

impl fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConnection")
            .field("database", &self.session.db())
            .field("left", &self.left)
            .field("unanswered", &self.unanswered)
            .finish_non_exhaustive()
    }
}

impl Traces {
    fn end_transaction(&mut self) {
        (self.transaction, self.watch) = (false, false);
    }

    fn add(&mut self, other: Self) {
        let Self { transaction, watch, altered, spoiled, read_only } = other;
        self.transaction |= transaction;
        self.watch |= watch;
        self.altered |= altered;
        self.spoiled |= spoiled;
        self.read_only |= read_only;
    }
}

impl Verdict {
    fn of<'e>(errors: impl Iterator<Item = &'e ServerError>) -> Self {
        errors.fold(Self::default(), |verdict, error| Self {
            // An `EXEC` that answers so has discarded the transaction.
            refused: verdict.refused || error.kind() != Some(ServerErrorKind::ExecAbort),
            read_only: verdict.read_only || error.kind() == Some(ServerErrorKind::ReadOnly),
        })
    }

    fn on(answers: &[Value]) -> Self {
        Self::of(answers.iter().filter_map(|answer| match answer {
            Value::ServerError(error) => Some(error),
            _ => None,
        }))
    }
}

impl Unanswered {
    /// Adds what a command leaves behind once it has been carried out.
    fn add(&mut self, command: &Cmd) {
        self.carry_out(command);
        self.may_leave.add(self.leaves);
    }

    fn carry_out(&mut self, command: &Cmd) {
        let mut words = command.args_iter().map(|word| match word {
            Arg::Simple(word) => word.to_ascii_uppercase(),
            _ => Vec::new(),
        });
        let mut word = || words.next().unwrap_or_default();
        match &*word() {
            b"MULTI" => self.leaves.transaction = true,
            b"WATCH" => self.leaves.watch = true,
            b"UNWATCH" => self.leaves.watch = false,
            b"EXEC" | b"DISCARD" => self.leaves.end_transaction(),
            b"SELECT" | b"AUTH" | b"HELLO" | b"RESET" | b"READONLY" | b"READWRITE" | b"ASKING" => {
                self.leaves.altered = true;
            }
            b"CLIENT" => match &*word() {
                b"SETNAME" | b"TRACKING" | b"CACHING" => self.leaves.altered = true,
                // What redis-rs waits for and what comes do not match from here on.
                b"REPLY" => self.leaves.spoiled = true,
                // Not every server's RESET ends these.
                b"NO-EVICT" | b"NO-TOUCH" => self.leaves.spoiled = true,
                _ => {}
            },
            // Each may have any number of answers, now or later.
            b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE" | b"UNSUBSCRIBE" | b"PUNSUBSCRIBE"
            | b"SUNSUBSCRIBE" | b"MONITOR" | b"SYNC" | b"PSYNC" | b"REPLCONF" | b"QUIT" => {
                self.leaves.spoiled = true;
            }
            b"SCRIPT" => self.leaves.spoiled |= *word() == *b"DEBUG",
            b"BLPOP" | b"BRPOP" | b"BRPOPLPUSH" | b"BLMOVE" | b"BLMPOP" | b"BZPOPMIN"
            | b"BZPOPMAX" | b"BZMPOP" | b"XREAD" | b"XREADGROUP" | b"WAIT" | b"WAITAOF" => {
                self.waits = true;
            }
            _ => {}
        }
    }
}

/// Proves who we are, or finds out that nobody asks.
fn login(session: &RedisConnectionInfo) -> Option<Cmd> {
    let (user, password) = (session.username(), session.password());
    if session.protocol() != ProtocolVersion::RESP2 {
        let mut hello = redis::cmd("HELLO");
        hello.arg(3);
        if let Some(password) = password {
            hello.arg("AUTH").arg(user.unwrap_or("default")).arg(password);
        }
        return Some(hello);
    }
    let mut auth = redis::cmd("AUTH");
    if let Some(user) = user {
        auth.arg(user);
    }
    auth.arg(password?);
    Some(auth)
}

/// Finds out whether a command of the pool's has failed. A server that does not know one repeats all of it
/// in its answer, and so the password: that is not passed on.
fn heard(command: &Cmd, answer: Value) -> RedisResult<()> {
    let Err(error) = answer.extract_error() else { return Ok(()) };
    if !error.detail().unwrap_or_default().to_ascii_lowercase().contains(UNKNOWN) {
        return Err(error);
    }
    let name = match command.args_iter().next() {
        Some(Arg::Simple(name)) => String::from_utf8_lossy(name),
        _ => "".into(),
    };
    let kind = ErrorKind::Server(ServerErrorKind::ResponseError);
    Err((kind, "a command of the pool's is refused", format!("{UNKNOWN} {name}")).into())
}

/// Waits for an answer as long as the user may, on whatever executor.
async fn within<T>(
    limit: Option<Duration>,
    runtime: &Handle,
    request: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    let Some(limit) = limit else { return request.await };
    let limited = {
        let _inside = runtime.enter();
        tokio::time::timeout(limit, request)
    };
    limited.await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

fn ping(number: &str) -> Cmd {
    let mut ping = redis::cmd("PING");
    ping.arg(number);
    ping
}
