//! Connections of pg-wired, which speaks PostgreSQL's protocol and leaves rows as they come.
//!
//! Not here: queries. What is sent over a connection is up to its user.

mod address;
mod ground;
mod raw;
mod rows;
mod shared;

pub use self::address::InvalidUrl;
pub use self::rows::Rows;
pub use self::shared::Connection;

use self::ground::Grounds;
use super::host::told;
use ::pg_wired::{PgWireError, TlsMode, WireConn};
use std::fmt;
use std::io::ErrorKind;
use std::marker::PhantomData;
use std::sync::Arc;

/// Opens connections of pg-wired 0.4, of one of its two kinds.
///
/// | manager | a connection is | for |
/// |---|---|---|
/// | `PgWiredManager`, from [`new`](Self::new), [`from_url`](Self::from_url) or [`with`](Self::with) | [`Connection`], which derefs to [`AsyncConn`](::pg_wired::AsyncConn) | queries with cached statements, pipelining, streams of rows, `COPY`, `LISTEN` |
/// | `PgWiredManager<WireConn>`, from [`raw`](Self::raw) | [`WireConn`] | messages of the protocol, one by one |
///
/// TLS is what pg-wired offers: [`Options::tls`] says whether it is wanted, and it needs
/// pg-wired's feature `tls` (`pg-wired = { version = "0.4", features = ["tls"] }` beside Millpond).
///
/// # What is checked
///
/// [`check`](crate::Manager::check) is one round trip: of a [`Connection`] a `SELECT` of a text that is
/// used only once, of a [`WireConn`] a `Sync`, which the server's log of statements does not show. A
/// server that says anything but that it is ready, and outside a transaction, fails it.
///
/// Nothing tells after a failover that the server of a connection takes no writes any more: call
/// [`Pool::invalidate`](crate::Pool::invalidate).
///
/// # What is reset
///
/// A connection that is marked as broken, or whose tasks have ended, is closed when it comes back.
/// Of every other one nobody knows whether a query is still in flight, because its future was
/// dropped, or which state the server is in; so it is asked, in the background, before anybody else
/// gets it, within `reset_timeout`: `SELECT` with a text that is used only once is sent, and the
/// connection is clean when that text has come back. Whatever is in flight is waited for; an open
/// transaction is rolled back; where neither works, or another answer comes, the connection is closed.
///
/// - Of a [`Connection`] pg-wired itself notices whether there has been a transaction, and its user
///   says with `mark_state_mutated` whether there is anything else to undo. If so, `DISCARD ALL` is
///   sent as well, and the cache of statements emptied, as pg-wired asks pools to do;
///   [`discard_session`](Self::discard_session) says otherwise.
/// - Of a [`WireConn`] nothing is known. Prepared statements, settings and the like stay.
///
/// **`DISCARD ALL` also undoes what [`Hooks::after_connect`](crate::Hooks::after_connect) has set up**,
/// once the connection has been in its first transaction: settings, `LISTEN`, temporary tables,
/// prepared statements. Settings that all connections are to have belong in
/// [`Options::parameter`]: the server goes back to those. For anything else there is
/// `discard_session(false)`.
///
/// When a [`Connection`] is closed, the server is asked to cancel what it still does for it. What a
/// [`WireConn`] was asked for goes on to its end, as pg-wired 0.4 has no way to cancel it; give the
/// server a `statement_timeout`, or have it look whether anybody is left, `client_connection_check_interval`, both as
/// [`Options::parameter`].
///
/// # What is permanent
///
/// 28P01 and 28000 (a wrong password, no right to connect), 3D000 (an unknown database), and an
/// address that is none.
///
/// # Cost
///
/// A round trip and a task for each release, off its path; see
/// [`verify_on_release`](Self::verify_on_release).
///
/// pg-wired's connections of the first kind consist of two tasks, and those of 0.4 never end the one
/// that reads: it stays behind, with its socket, whenever a connection is closed. So the tasks do not
/// run on the program's runtime but on one with one thread, which up to 16 connections share, those of
/// clones of the manager too, and which ends together with the last of them.
///
/// # Examples
///
/// ```no_run
/// use millpond::{Pool, backends::pg_wired::{Options, PgWiredManager}};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let options = Options::from_url("postgresql://app:secret@localhost:5432/app")?
///     .parameter("application_name", "millpond");
/// let pool = Pool::builder(PgWiredManager::new(options)).max_size(16).build().await?;
/// let connection = pool.acquire().await?;
/// let rows = connection.exec_query("SELECT $1::text", &[Some(b"hello")], &[25]).await?;
/// assert_eq!(rows[0].cell(0), Some(b"hello".as_slice()));
/// # Ok(()) }
/// ```
#[must_use]
pub struct PgWiredManager<C = Connection> {
    options: Arc<dyn Fn() -> Options + Send + Sync>,
    verify: bool,
    discard: bool,
    grounds: Arc<Grounds>,
    opens: PhantomData<fn() -> C>,
}

// Not derived: that would ask the connection for it too, of which there is none here.
impl<C> Clone for PgWiredManager<C> {
    fn clone(&self) -> Self {
        Self {
            options: self.options.clone(),
            verify: self.verify,
            discard: self.discard,
            grounds: self.grounds.clone(),
            opens: PhantomData,
        }
    }
}

/// Where the server is, and who logs in how.
#[derive(Clone)]
#[must_use]
pub struct Options {
    address: String,
    user: String,
    password: String,
    database: String,
    parameters: Vec<(String, String)>,
    tls: TlsMode,
}

impl Options {
    /// Connections to the server at `address`, as `"localhost:5432"`, which is looked up for each
    /// connection. Without a password; TLS as pg-wired prefers.
    ///
    /// If a name has several addresses, pg-wired tries the next one when the one before has failed. One that
    /// leads nowhere does not fail within the pool's `connect_timeout`, and every attempt begins with the
    /// first. Without TLS, which needs the name, the address of the server serves in its place.
    pub fn new(
        address: impl Into<String>,
        user: impl Into<String>,
        database: impl Into<String>,
    ) -> Self {
        Self {
            address: address.into(),
            user: user.into(),
            password: String::new(),
            database: database.into(),
            parameters: Vec::new(),
            tls: TlsMode::default(),
        }
    }

    /// Connections to a URL: `postgresql://user:password@host:port/database`, of which all but the host
    /// may be missing; the user is then `postgres`, the port 5432, and the database called as the user.
    /// What has a meaning in a URL is percent-encoded: a `/` in a password is written `%2F`.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] says what is wrong with it. That includes options after a `?`: they would be
    /// ignored.
    pub fn from_url(url: &str) -> Result<Self, InvalidUrl> {
        let address::Parts { address, user, password, database } = address::parse(url)?;
        Ok(Self::new(address, user, database).password(password))
    }

    /// The user's password. Default: empty.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = password.into();
        self
    }

    /// A parameter of the session, such as `application_name`, `search_path` or `options`. It is what
    /// `DISCARD ALL` goes back to.
    pub fn parameter(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.parameters.push((name.into(), value.into()));
        self
    }

    /// Whether connections are encrypted. Default: if the server can, and pg-wired's feature `tls` is
    /// on.
    pub fn tls(mut self, mode: TlsMode) -> Self {
        self.tls = mode;
        self
    }

    fn target(&self) -> Option<String> {
        told(&self.address, None)
    }

    async fn connect(&self) -> Result<WireConn, PgWireError> {
        let Self { address, user, password, database, tls, .. } = self;
        let parameters: Vec<(&str, &str)> =
            self.parameters.iter().map(|(name, value)| (&**name, &**value)).collect();
        WireConn::connect_with_options(address, user, password, database, &parameters, *tls).await
    }
}

/// The password is not shown.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("address", &self.address)
            .field("user", &self.user)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

impl PgWiredManager {
    /// Opens connections with these options.
    pub fn new(options: Options) -> Self {
        Self::with(move || options.clone())
    }

    /// Opens connections to a URL; see [`Options::from_url`].
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] says what is wrong with it.
    pub fn from_url(url: &str) -> Result<Self, InvalidUrl> {
        Options::from_url(url).map(Self::new)
    }

    /// Opens each connection by what `options` says at that moment: for passwords that change. After a
    /// change, [`Pool::rotate`](crate::Pool::rotate) replaces the connections there are.
    /// `options` is asked once more when a pool is built or rotated, for the [`target`](crate::Manager::target).
    pub fn with(options: impl Fn() -> Options + Send + Sync + 'static) -> Self {
        Self {
            options: Arc::new(options),
            verify: true,
            discard: true,
            grounds: Arc::default(),
            opens: PhantomData,
        }
    }

    /// Opens raw connections instead. As nothing is known of these, whatever
    /// [`verify_on_release`](Self::verify_on_release) and [`discard_session`](Self::discard_session) say,
    /// every one that comes back is asked, and none loses its session.
    ///
    /// pg-wired looks the server's name up on a thread that the program's runtime keeps for calls that
    /// block. If all of these wait for connections, in `acquire_blocking`, none is opened before one of them
    /// gives up; that of an address needs no thread. A [`Connection`] is opened on a runtime of its own.
    ///
    /// Whoever drops the future of a `send_raw` half-way should
    /// [`discard`](crate::Pooled::discard) the connection: what the pool asks next is taken for the rest
    /// of a message that was sent in part. In nearly all cases the server then refuses it and ends the
    /// connection. But a statement of which only the last two bytes are missing is run, with an `S` in
    /// the place of its last character.
    pub fn raw(self) -> PgWiredManager<WireConn> {
        PgWiredManager {
            options: self.options,
            verify: true,
            discard: false,
            grounds: Arc::default(),
            opens: PhantomData,
        }
    }

    /// Whether every connection that comes back is asked whether it is clean; a [raw](Self::raw) one always
    /// is. Default: `true`.
    ///
    /// With `false` only one that pg-wired knows to have been in a transaction, or that is marked, is
    /// asked; releasing any other is a hit. That is for programs that never drop the future of a query
    /// half-way, neither in `select!` nor at a time limit nor with the task around it; that send one
    /// statement with each request; and that [`discard`](crate::Pooled::discard) a connection after any
    /// error but [`PgWireError::Pg`]. For an answer that could not be read to its end is taken for that of
    /// the next request, and a connection that has ended counts as alive until pg-wired has failed to send
    /// something.
    pub fn verify_on_release(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Whether a connection that has been in a transaction, or whose user has called
    /// `mark_state_mutated`, loses all that belongs to its session (`DISCARD ALL`), what a hook has set
    /// up included, and its cached statements. With `false`, and of a [raw](Self::raw) connection always, an
    /// open transaction is rolled back, and that is all. Default: `true`.
    pub fn discard_session(mut self, discard: bool) -> Self {
        self.discard = discard;
        self
    }
}

/// What the connections are opened with, which may hold a password, is not shown.
impl<C> fmt::Debug for PgWiredManager<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgWiredManager")
            .field("verify_on_release", &self.verify)
            .field("discard_session", &self.discard)
            .finish_non_exhaustive()
    }
}

fn is_permanent(error: &PgWireError) -> bool {
    match error {
        PgWireError::Pg(error) => matches!(&*error.code, "28P01" | "28000" | "3D000"),
        // The system says the same of one address of several, which another lookup may not have.
        PgWireError::Io(error) => {
            error.kind() == ErrorKind::InvalidInput && error.raw_os_error().is_none()
        }
        _ => false,
    }
}

/// Asks for an answer, and changes nothing.
const SYNC: &[u8] = b"S\0\0\0\x04";
/// The code of all answers while a transaction that has failed is open.
const FAILED_TRANSACTION: &str = "25P02";
/// Says goodbye.
const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// A message that has these statements run.
fn query(sql: &str) -> Vec<u8> {
    // The length counts itself and the zero at the end, not the letter.
    let length = u32::try_from(sql.len() + 5).expect("BUG: a statement of our own of 4 GiB");
    [b"Q", &length.to_be_bytes()[..], sql.as_bytes(), b"\0"].concat()
}

/// A text that is in no other answer, not even in one that lists many like it, and the message that asks
/// for it.
fn question() -> (String, Vec<u8>) {
    let text = format!("millpond {}", fastrand::u64(..));
    let question = query(&format!("SELECT '{text}'"));
    (text, question)
}
