//! A pooled connection: the driver library's client, and its prepared statements.
//!
//! Not here: whether it is clean (`session.rs`, `mod.rs`).

use super::Error as ManagerError;
use super::dial::{Address, Kept, Nameless, Socket};
use super::driver::Crank;
use super::session::Session;
use super::transaction::{Transaction, TransactionBuilder};
use crate::pool::operation::has_timer;
use std::collections::HashMap;
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::mem;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::Type;
use tokio_postgres::{Config, Error, Statement};

/// A connection to PostgreSQL: a [`tokio_postgres::Client`], with a cache of prepared statements.
///
/// It owns the task that runs the connection, which ends with it.
///
/// # Streams and copies
///
/// Keep the guard until a stream of rows or a copy has ended. What
/// [`query_raw`](tokio_postgres::Client::query_raw), [`copy_out`](tokio_postgres::Client::copy_out),
/// [`copy_in`](tokio_postgres::Client::copy_in) and the like answer with borrows nothing, so the compiler lets
/// it outlive the guard, as in `pool.acquire().await?.query_raw(…).await?`. But then it is given up as a query
/// is whose future was dropped, though somebody still reads it: the server is asked to cancel it after 20 ms.
/// A short one has ended by then. A longer one ends in its middle, with `canceling statement due to user
/// request` (57014), or with its connection if it has not ended within `reset_timeout`.
///
/// # Examples
///
/// ```no_run
/// # use millpond::{Pool, backends::postgres::PostgresManager};
/// # async fn example(pool: Pool<PostgresManager>) -> Result<(), Box<dyn std::error::Error>> {
/// let client = pool.acquire().await?;
/// let statement = client.prepare_cached("SELECT $1::int4 + 1").await?; // once per connection
/// let row = client.query_one(&statement, &[&41]).await?;
/// assert_eq!(row.get::<_, i32>(0), 42);
/// # Ok(()) }
/// ```
pub struct Client {
    pub(super) client: tokio_postgres::Client,
    pub(super) session: Arc<Session>,
    pub(super) driver: DriverTask,
    pub(super) crank: Arc<dyn Crank>,
    pub(super) statements: Statements,
    /// How many requests there had been when it was last known to be clean.
    pub(super) clean_at: u64,
    /// How many answers had ended when the pool asked last, by a check, a reset or a cancel that is not over.
    pub(super) asked: Option<u64>,
    /// It is to be one that takes writes.
    pub(super) must_write: bool,
    pub(super) token: CancelToken,
}

/// The task that runs a connection.
pub(super) struct DriverTask(pub(super) JoinHandle<()>);

impl Drop for DriverTask {
    fn drop(&mut self) {
        // By itself it would wait for the answers to whatever has been asked.
        self.0.abort();
    }
}

impl Client {
    /// Prepares a statement, or answers with the one that was prepared before on this connection.
    /// Several that ask for the same at once prepare it once.
    ///
    /// A statement outlives its holder, and the columns that it answers with are settled when it is prepared.
    /// Where they come to be others, because a table was altered or `search_path` leads to another one, it
    /// fails with `cached plan must not change result type` (0A000) for each user of this connection, until
    /// somebody [clears](Self::clear_statements) the cache. Holders with tables of their own under the same
    /// names had better write the schema into the text, or use [`prepare`](tokio_postgres::Client::prepare).
    ///
    /// # Errors
    ///
    /// As [`tokio_postgres::Client::prepare`]; nothing is cached then.
    ///
    /// # Cancel safety
    ///
    /// Whoever else waits for the same statement prepares it. If the server has been asked, it keeps what it
    /// prepares for the one that was given up until the connection ends: the driver has no handle to close it
    /// by.
    ///
    /// # Cost
    ///
    /// If it has been prepared before, one lock, one look into a hash map, and a copy of the text and the
    /// types to look by.
    pub async fn prepare_cached(&self, query: &str) -> Result<Statement, Error> {
        self.prepare_typed_cached(query, &[]).await
    }

    /// The same with the types of parameters, as [`tokio_postgres::Client::prepare_typed`] has them.
    ///
    /// # Errors
    ///
    /// As [`prepare_cached`](Self::prepare_cached).
    ///
    /// # Cancel safety
    ///
    /// As [`prepare_cached`](Self::prepare_cached).
    pub async fn prepare_typed_cached(
        &self,
        query: &str,
        types: &[Type],
    ) -> Result<Statement, Error> {
        self.statements.prepare(&self.client, query, types).await
    }

    /// Forgets the statements that were prepared with [`prepare_cached`](Self::prepare_cached), such
    /// as after the tables that they read have changed.
    pub fn clear_statements(&self) {
        let cleared = mem::take(&mut self.statements.lock().entries);
        // They end outside the lock, as each asks the driver.
        drop(cleared);
    }

    /// How many statements are cached.
    #[must_use]
    pub fn cached_statements(&self) -> usize {
        self.statements.lock().prepared()
    }

    /// What cancels a query of this connection, from any task.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use millpond::{Pool, backends::postgres::PostgresManager};
    /// # use std::time::Duration;
    /// # use tokio_postgres::NoTls;
    /// # async fn example(pool: Pool<PostgresManager>) -> Result<(), Box<dyn std::error::Error>> {
    /// let client = pool.acquire().await?;
    /// let query = client.batch_execute("REFRESH MATERIALIZED VIEW totals");
    /// tokio::pin!(query);
    /// if tokio::time::timeout(Duration::from_secs(60), query.as_mut()).await.is_err() {
    ///     client.cancel_token().cancel_query(NoTls).await?;
    ///     query.await?; // canceling statement due to user request
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.token.clone()
    }

    /// Begins a transaction, which can [prepare](Transaction::prepare_cached) and be
    /// [cancelled](Transaction::cancel_token) as its client can.
    ///
    /// # Errors
    ///
    /// As [`tokio_postgres::Client::transaction`].
    ///
    /// # Cancel safety
    ///
    /// It is rolled back if it has begun.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use millpond::{Pool, backends::postgres::PostgresManager};
    /// # async fn example(pool: Pool<PostgresManager>) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut client = pool.acquire().await?;
    /// let transaction = client.transaction().await?;
    /// let add = transaction.prepare_cached("UPDATE accounts SET held = held + $1 WHERE id = $2").await?;
    /// transaction.execute(&add, &[&1_i64, &42]).await?;
    /// transaction.commit().await?;
    /// # Ok(()) }
    /// ```
    pub async fn transaction(&mut self) -> Result<Transaction<'_>, Error> {
        self.build_transaction().start().await
    }

    /// Begins a transaction of another kind, as [`tokio_postgres::Client::build_transaction`] does.
    pub fn build_transaction(&mut self) -> TransactionBuilder<'_> {
        let builder = self.client.build_transaction();
        TransactionBuilder::new(builder, &self.statements, &self.token)
    }
}

/// How long a cancel takes at most unless the configuration says: as long as a connect of a pool, by
/// default.
const CANCEL: Duration = Duration::from_secs(5);

/// Cancels what the server does for one connection: see [`Client::cancel_token`].
///
/// Like [`tokio_postgres::CancelToken`], which knows nothing of the address of a connection that a pool
/// has opened. It is of no use to whoever has given the connection back, since the next user's query would
/// be cancelled; the pool cancels by itself what was given up.
#[derive(Clone)]
pub struct CancelToken {
    pub(super) token: tokio_postgres::CancelToken,
    pub(super) config: Arc<Config>,
    pub(super) address: Address,
    pub(super) hostname: Option<String>,
}

impl CancelToken {
    /// Asks the server to cancel the query that is running, on a connection for this alone, and waits
    /// until it has been told. Whether there was one, it does not say. All of that takes the
    /// `connect_timeout` of the configuration at most; or, if there is none, 5 s; on a runtime without a
    /// timer, as long as it takes.
    ///
    /// `tls` is what encrypts the connection, as for [`PostgresManager::tls`](super::PostgresManager::tls),
    /// or [`NoTls`](tokio_postgres::NoTls).
    ///
    /// # Errors
    ///
    /// [`Open`](ManagerError::Open), [`Tls`](ManagerError::Tls) and [`Postgres`](ManagerError::Postgres),
    /// if the server cannot be reached; `Open` too if it has not been told in time.
    ///
    /// # Cancel safety
    ///
    /// The query may be cancelled all the same, also after that: the next one may be hit.
    pub async fn cancel_query<T>(&self, tls: T) -> Result<(), ManagerError>
    where
        T: MakeTlsConnect<Socket>,
    {
        self.cancel_unless(pending(), tls, || ()).await
    }

    /// The same, unless there is no need for it any more by the time that a socket is open; `sent` is told
    /// once all has been written.
    pub(super) async fn cancel_unless<T>(
        &self,
        needless: impl Future<Output = ()>,
        mut tls: T,
        sent: impl FnOnce(),
    ) -> Result<(), ManagerError>
    where
        T: MakeTlsConnect<Socket>,
    {
        let limit = self.config.get_connect_timeout().copied().unwrap_or(CANCEL);
        let cancel = async {
            let socket = unless(needless, self.address.open(&self.config)).await;
            let Some(socket) = socket else { return Ok(()) };
            let kept = Kept::new(socket.map_err(|error| ManagerError::open(&self.address, error))?);
            match &self.hostname {
                None => self.token.cancel_query_raw(kept.handle(), Nameless).await?,
                Some(name) => {
                    let tls = tls.make_tls_connect(name);
                    let tls = tls.map_err(|error| ManagerError::Tls(error.into()))?;
                    self.token.cancel_query_raw(kept.handle(), tls).await?;
                }
            }
            sent();
            // Its end says that the server has passed it on: what came later would hit another query.
            kept.until_closed().await;
            Ok(())
        };
        if !has_timer() {
            return cancel.await;
        }
        let late = |_| Err(ManagerError::no_answer(&self.address, limit));
        timeout(limit, cancel).await.unwrap_or_else(late)
    }
}

/// What comes of `wanted`, or nothing if it is needless by then.
async fn unless<F: Future>(needless: impl Future<Output = ()>, wanted: F) -> Option<F::Output> {
    let (mut needless, mut wanted) = (pin!(needless), pin!(wanted));
    poll_fn(|cx| match needless.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => wanted.as_mut().poll(cx).map(Some),
    })
    .await
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Deref for Client {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        &self.client
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut tokio_postgres::Client {
        &mut self.client
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.token.address)
            .field("closed", &self.client.is_closed())
            .field("in_transaction", &self.session.in_transaction())
            .finish_non_exhaustive()
    }
}

/// The statements that a connection has prepared, the ones used last.
pub(super) struct Statements {
    capacity: usize,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    entries: HashMap<Key, Entry>,
    /// Looks so far.
    looks: u64,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    query: Box<str>,
    types: Box<[Type]>,
}

struct Entry {
    cell: Arc<OnceCell<Statement>>,
    /// The look that found it last.
    used: u64,
}

impl Cache {
    fn prepared(&self) -> usize {
        self.entries.values().filter(|entry| entry.cell.initialized()).count()
    }

    /// Which of the prepared ones has not been used for longest.
    fn oldest(&self) -> Option<Key> {
        let prepared = self.entries.iter().filter(|(_, entry)| entry.cell.initialized());
        let (Key { query, types }, _) = prepared.min_by_key(|(_, entry)| entry.used)?;
        Some(Key { query: query.clone(), types: types.clone() })
    }
}

impl Statements {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, cache: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepares a statement, or answers with the one that is there.
    pub(super) async fn prepare(
        &self,
        client: &tokio_postgres::Client,
        query: &str,
        types: &[Type],
    ) -> Result<Statement, Error> {
        let wanted = self.wanted(query, types);
        let prepare = || client.prepare_typed(query, types);
        // Cancel: as if it had failed.
        Ok(wanted.cell.get_or_try_init(prepare).await?.clone())
    }

    /// Where the statement is, or is to be put by whoever comes first.
    fn wanted<'s>(&'s self, query: &'s str, types: &'s [Type]) -> Wanted<'s> {
        let mut wanted =
            Wanted { statements: self, query, types, cell: Arc::default(), is_new: false };
        if self.capacity == 0 {
            return wanted;
        }
        let mut cache = self.lock();
        cache.looks += 1;
        let used = cache.looks;
        let new = || Entry { cell: Arc::default(), used };
        let entry = cache.entries.entry(wanted.key()).or_insert_with(new);
        entry.used = used;
        wanted.cell = entry.cell.clone();
        wanted.is_new = !wanted.cell.initialized();
        wanted
    }
}

/// A statement that somebody has asked for.
struct Wanted<'s> {
    statements: &'s Statements,
    query: &'s str,
    types: &'s [Type],
    cell: Arc<OnceCell<Statement>>,
    /// It was not there.
    is_new: bool,
}

impl Wanted<'_> {
    fn key(&self) -> Key {
        Key { query: self.query.into(), types: self.types.into() }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        if !self.is_new {
            return;
        }
        // What is pushed out ends with the last user of it, and not under the lock.
        let mut _gone = Vec::new();
        let mut cache = self.statements.lock();
        if !self.cell.initialized() {
            let (key, mine) = (self.key(), mem::take(&mut self.cell));
            let is_there = |entry: &Entry| Arc::ptr_eq(&entry.cell, &mine);
            if cache.entries.get(&key).is_some_and(is_there) {
                drop(mine);
                // The cache's own is the last one: nobody else is at it.
                let is_last = |entry: &Entry| Arc::strong_count(&entry.cell) == 1;
                if cache.entries.get(&key).is_some_and(is_last) {
                    _gone.extend(cache.entries.remove(&key));
                }
            }
            return;
        }
        // There was a round trip, beside which this is nothing.
        while cache.prepared() > self.statements.capacity {
            let Some(oldest) = cache.oldest() else { return };
            _gone.extend(cache.entries.remove(&oldest));
        }
    }
}
