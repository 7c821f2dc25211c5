//! A pooled connection: the driver library's client, and its prepared statements.
//!
//! Not here: whether it is clean (`session.rs`, `mod.rs`).

use super::dial::Address;
use super::driver::Crank;
use super::session::Session;
use std::collections::HashMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Statement};

/// A connection to PostgreSQL: a [`tokio_postgres::Client`], with a cache of prepared statements.
///
/// It owns the task that runs the connection, which ends with it.
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
    /// It is to be one that takes writes.
    pub(super) must_write: bool,
    pub(super) address: Address,
    pub(super) hostname: Option<String>,
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
    /// # Errors
    ///
    /// As [`tokio_postgres::Client::prepare`]; nothing is cached then.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: whoever else waits for the same statement prepares it.
    ///
    /// # Cost
    ///
    /// One lock and one look into a hash map, if it has been prepared before.
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
        let cell = self.statements.cell(query, types);
        let prepare = || self.client.prepare_typed(query, types);
        Ok(cell.get_or_try_init(prepare).await?.clone())
    }

    /// Forgets the statements that were prepared with [`prepare_cached`](Self::prepare_cached), such
    /// as after the tables that they read have changed.
    pub fn clear_statements(&self) {
        self.statements.lock().entries.clear();
    }

    /// How many statements are cached.
    #[must_use]
    pub fn cached_statements(&self) -> usize {
        self.statements.lock().entries.len()
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
            .field("address", &self.address)
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

impl Statements {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, cache: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the statement is, or is to be put by whoever comes first.
    fn cell(&self, query: &str, types: &[Type]) -> Arc<OnceCell<Statement>> {
        if self.capacity == 0 {
            return Arc::default();
        }
        let key = Key { query: query.into(), types: types.into() };
        // What is pushed out ends with the last user of it.
        let mut _oldest = None;
        let mut cache = self.lock();
        cache.looks += 1;
        let used = cache.looks;
        if let Some(entry) = cache.entries.get_mut(&key) {
            entry.used = used;
            return entry.cell.clone();
        }
        if cache.entries.len() >= self.capacity {
            // There is a round trip to come, beside which this is nothing.
            let oldest = cache.entries.iter().min_by_key(|(_, entry)| entry.used);
            let oldest = oldest.map(|(Key { query, types }, _)| (query.clone(), types.clone()));
            let oldest = oldest.map(|(query, types)| Key { query, types });
            _oldest = oldest.and_then(|key| cache.entries.remove(&key));
        }
        let cell = Arc::<OnceCell<Statement>>::default();
        cache.entries.insert(key, Entry { cell: cell.clone(), used });
        cell
    }
}
