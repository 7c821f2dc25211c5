//! Several pools, looked at together: what exporters and the status page are given.
//!
//! Not here: what is shown of them, and how.

use super::PoolStatus;
use crate::manager::Manager;
use crate::pool::{Holder, Pool, WeakPool};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};

/// Pools to look at, each under its name.
///
/// A clone is another handle to the same list. It does not keep pools open: one whose last handle is
/// dropped leaves the list by itself.
///
/// # Examples
///
/// ```
/// # use millpond::{Pool, from_fn};
/// # use std::convert::Infallible;
/// use millpond::Monitor;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
/// let pool = Pool::builder(manager).name("orders").build().await?;
/// let monitor = Monitor::new();
/// monitor.add(&pool)?;
/// for status in monitor.statuses() {
///     print!("{status}");
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Monitor {
    entries: Arc<RwLock<Vec<Entry>>>,
}

#[derive(Clone)]
enum Entry {
    One(Arc<dyn Source>),
    Many(Arc<dyn Group>),
}

impl Entry {
    fn name(&self) -> String {
        match self {
            Self::One(source) => source.name(),
            Self::Many(group) => group.name(),
        }
    }

    fn is_there(&self) -> bool {
        match self {
            Self::One(source) => source.status().is_some(),
            Self::Many(group) => group.sources().is_some(),
        }
    }
}

/// Something whose status can be asked for: a pool, whatever its connections are.
pub trait Source: Send + Sync {
    /// The name under which it is shown.
    fn name(&self) -> String;

    /// How it is, unless it is gone.
    fn status(&self) -> Option<PoolStatus>;

    /// Who holds its connections.
    fn holders(&self) -> Vec<Holder>;
}

/// Several pools that come and go, such as those of a cluster's nodes.
pub trait Group: Send + Sync {
    /// The name of all of them together.
    fn name(&self) -> String;

    /// Those that there are at the moment, unless the group itself is gone. Each is the same `Arc`
    /// every time: exporters that tell of changes know it by that.
    fn sources(&self) -> Option<Vec<Arc<dyn Source>>>;
}

/// Two sources of a monitor would have the same name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is a pool called {name} already: give each its own with PoolBuilder::name")]
pub struct DuplicateName {
    /// The name.
    pub name: String,
}

impl Monitor {
    /// Looks at nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at this pool too, as long as it is there.
    ///
    /// # Errors
    ///
    /// [`DuplicateName`] if there is one of the same name; nothing is added then.
    pub fn add<M: Manager>(&self, pool: &Pool<M>) -> Result<(), DuplicateName> {
        self.add_source(Watched::new(pool))
    }

    /// Looks at something else.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub fn add_source(&self, source: impl Source + 'static) -> Result<(), DuplicateName> {
        self.add_entry(Entry::One(Arc::new(source)))
    }

    /// Looks at all pools of a group, whichever there are at the moment.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub fn add_group(&self, group: impl Group + 'static) -> Result<(), DuplicateName> {
        self.add_entry(Entry::Many(Arc::new(group)))
    }

    fn add_entry(&self, entry: Entry) -> Result<(), DuplicateName> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.retain(Entry::is_there);
        let name = entry.name();
        if entries.iter().any(|other| other.name() == name) {
            return Err(DuplicateName { name });
        }
        entries.push(entry);
        Ok(())
    }

    /// The sources that there are, in the order in which they were added.
    #[must_use]
    pub fn sources(&self) -> Vec<Arc<dyn Source>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner).clone();
        // Not under the lock: a group may have to look.
        let sources = entries.into_iter().flat_map(|entry| match entry {
            Entry::One(source) => vec![source],
            Entry::Many(group) => group.sources().unwrap_or_default(),
        });
        sources.collect()
    }

    /// How each of them is; those that are gone are left out.
    #[must_use]
    pub fn statuses(&self) -> Vec<PoolStatus> {
        // Not under the lock: a status takes a pass over all slots.
        self.sources().iter().filter_map(|source| source.status()).collect()
    }
}

/// A pool that is not kept open.
pub(crate) struct Watched<M: Manager> {
    name: String,
    pool: WeakPool<M>,
    /// The most acquires without a wait that have been told of.
    zeros: AtomicU64,
}

impl<M: Manager> Watched<M> {
    pub(crate) fn new(pool: &Pool<M>) -> Self {
        let name = pool.config().name.to_string();
        Self { name, pool: pool.downgrade(), zeros: AtomicU64::new(0) }
    }
}

impl<M: Manager> Source for Watched<M> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn status(&self) -> Option<PoolStatus> {
        let mut status = self.pool.upgrade()?.status();
        // They are inferred from two totals, which under load come from moments close together. Who
        // takes differences, as Prometheus does, must not see fewer of them than before.
        status.metrics.acquire_wait.keep_zeros(&self.zeros);
        Some(status)
    }

    fn holders(&self) -> Vec<Holder> {
        self.pool.upgrade().map(|pool| pool.holders()).unwrap_or_default()
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.sources().iter().map(|source| source.name())).finish()
    }
}
