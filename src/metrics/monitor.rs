//! Several pools, looked at together: what exporters and the status page are given.
//!
//! Not here: what is shown of them, and how.

use super::{Health, PoolStatus};
#[cfg(feature = "opentelemetry")]
use crate::panics::caught;
use crate::pool::{Holder, Pool};
use crate::{blocking, manager::Manager};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
#[cfg(any(feature = "metrics", feature = "opentelemetry", feature = "axum"))]
use std::{
    hash::{Hash, Hasher},
    sync::Weak,
};

/// Pools to look at, each under its name.
///
/// A clone is another handle to the same list. It does not keep pools open: one whose last handle is
/// dropped leaves the list by itself. One that is closed stays, and is down, while there are handles to
/// it, such as that of a long request; but it makes way for another one of its name that is added.
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
    entries: Arc<RwLock<Vec<Arc<Entry>>>>,
}

/// What was added, under the name that it had then.
struct Entry {
    name: String,
    what: What,
}

enum What {
    One(Arc<dyn Source>),
    Many(Arc<dyn Group>),
}

impl Entry {
    fn is_there(&self) -> bool {
        match &self.what {
            What::One(source) => source.is_there(),
            What::Many(group) => group.sources().is_some(),
        }
    }

    fn is_closed(&self) -> bool {
        match &self.what {
            What::One(source) => source.is_closed(),
            What::Many(group) => group.is_closed(),
        }
    }

    /// Those that there are, and perhaps some that are gone.
    fn sources(&self) -> Vec<Arc<dyn Source>> {
        match &self.what {
            What::One(source) => vec![source.clone()],
            What::Many(group) => group.sources().unwrap_or_default(),
        }
    }
}

/// Something whose status can be asked for: a pool, whatever its connections are.
///
/// Exporters tell of counters and distributions as of what only grows; so they should not become less
/// from one status to the next. Under load, a pool's
/// [acquires without a wait](crate::PoolMetrics::acquire_wait) may, by a few, since they are inferred; of
/// a source that is [added](Monitor::add_source) the monitor sees to it that they do not.
pub trait Source: Send + Sync {
    /// The name under which it is shown and told of, in place of that in its settings. Each source of a
    /// monitor needs one of its own, or exporters tell of two pools as if they were one; and not an empty
    /// one, since a label without a value is no label.
    fn name(&self) -> String;

    /// How it is, unless it is gone.
    fn status(&self) -> Option<PoolStatus>;

    /// Who holds its connections.
    fn holders(&self) -> Vec<Holder>;

    /// Whether it is still there. A source that can tell without working out its status should.
    fn is_there(&self) -> bool {
        self.status().is_some()
    }

    /// Whether it is closed for good, or about to be: another one of its name may take its place in a
    /// monitor then. By default it never is.
    fn is_closed(&self) -> bool {
        false
    }
}

/// Several pools that come and go, such as those of a cluster's nodes.
pub trait Group: Send + Sync {
    /// The name of all of them together.
    fn name(&self) -> String;

    /// Those that there are at the moment, unless the group itself is gone. Each is the same `Arc`
    /// every time: exporters that tell of changes know it by that. To have names of their own, their
    /// names best begin with the group's.
    fn sources(&self) -> Option<Vec<Arc<dyn Source>>>;

    /// How all of them are together, if each is as its status says: what a probe of the whole goes by.
    ///
    /// By default they stand in for each other: all are down if there are some and each of them is,
    /// degraded if one is not healthy. A group that needs all of its pools, or that is down without any,
    /// says so here.
    fn health(&self, pools: &[PoolStatus]) -> Health {
        Health::together(pools.iter().map(|pool| (&pool.config.name, &pool.health)))
    }

    /// As [`Source::is_closed`].
    fn is_closed(&self) -> bool {
        false
    }
}

/// Two sources of a monitor would have the same name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error(
    "there is something called {name} already: close it first if this is to take its place, or give each \
     pool and cluster its own name with its builder's `name`"
)]
pub struct DuplicateName {
    /// The name.
    pub name: String,
}

/// How something is that was added: a pool, or a group with its pools.
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) health: Health,
    #[cfg_attr(not(feature = "axum"), allow(dead_code, reason = "only the status page asks"))]
    pub(crate) is_group: bool,
    /// Those of a group, or the one that it is.
    #[cfg_attr(not(feature = "axum"), allow(dead_code, reason = "only the status page has lines"))]
    pub(crate) pools: Vec<(Arc<dyn Source>, PoolStatus)>,
}

impl Monitor {
    /// Looks at nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at this pool too, as long as it is there. It takes the place of one of the same name that is
    /// closed, or being drained.
    ///
    /// Its name is compared with those that were added, not with those of the pools in a group, which come
    /// and go: `shop/db1` would be told of as one with the node `db1` of a cluster `shop`, and the page would
    /// show one of the two.
    ///
    /// # Errors
    ///
    /// [`DuplicateName`] if there is one of the same name that is not closed; nothing is added then.
    pub fn add<M: Manager>(&self, pool: &Pool<M>) -> Result<(), DuplicateName> {
        let source = watched(pool);
        self.add_entry(source.name(), What::One(source))
    }

    /// Looks at this pool too, as long as it is there: neither the pool nor its thread is kept.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::{Monitor, Pool, from_fn};
    /// # use std::convert::Infallible;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let manager = from_fn(|| async { Ok::<_, Infallible>(String::from("hello")) });
    /// let pool = Pool::builder(manager).name("orders").build_blocking()?;
    /// let monitor = Monitor::new();
    /// monitor.add_blocking(&pool)?;
    /// assert_eq!(monitor.statuses().len(), 1);
    /// drop(pool);
    /// assert_eq!(monitor.statuses().len(), 0);
    /// # Ok(()) }
    /// ```
    pub fn add_blocking<M: Manager>(&self, pool: &blocking::Pool<M>) -> Result<(), DuplicateName> {
        let name = pool.config().name.to_string();
        self.add_source(Watched { name, upgrade: pool.weak() })
    }

    /// Looks at something else.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub fn add_source(&self, source: impl Source + 'static) -> Result<(), DuplicateName> {
        let source = Kept::of(source);
        self.add_entry(source.name(), What::One(source))
    }

    /// Looks at all pools of a group, whichever there are at the moment. Their names are not compared
    /// with any; see [`add`](Self::add).
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub fn add_group(&self, group: impl Group + 'static) -> Result<(), DuplicateName> {
        self.add_entry(group.name(), What::Many(Arc::new(group)))
    }

    fn add_entry(&self, name: String, what: What) -> Result<(), DuplicateName> {
        // Not under the lock: who is asked may take its time, or look at this very list. What is gone is
        // dropped after the lock, too.
        let mut gone = self.entries();
        gone.retain(|entry| !entry.is_there() || (entry.name == name && entry.is_closed()));
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| !gone.iter().any(|gone| Arc::ptr_eq(gone, entry)));
        if entries.iter().any(|other| other.name == name) {
            return Err(DuplicateName { name });
        }
        entries.push(Arc::new(Entry { name, what }));
        Ok(())
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The sources that there are, in the order in which they were added.
    #[must_use]
    pub fn sources(&self) -> Vec<Arc<dyn Source>> {
        let mut sources = self.listed();
        sources.retain(|source| source.is_there());
        sources
    }

    /// The same for those who will find out which of them are gone.
    pub(crate) fn listed(&self) -> Vec<Arc<dyn Source>> {
        // Not under the lock: a group may have to look.
        self.entries().iter().flat_map(|entry| entry.sources()).collect()
    }

    /// How each of them is, and which it is, for those who must not panic: a source that does is left
    /// out, and so are the sources of a group that does.
    #[cfg(feature = "opentelemetry")]
    pub(crate) fn looks(&self) -> Vec<(SourceId, PoolStatus)> {
        // What was gone meanwhile is dropped where it is caught, too.
        let looks = self.entries().into_iter().filter_map(|entry| {
            let looks = move || {
                let looks = entry.sources().into_iter().filter_map(|source| {
                    let look = move || Some((SourceId::of(&source), look_at(&*source)?));
                    caught(look).ok().flatten()
                });
                looks.collect::<Vec<_>>()
            };
            caught(looks).ok()
        });
        looks.flatten().collect()
    }

    /// How each of them is, under its source's name; those that are gone are left out.
    #[must_use]
    pub fn statuses(&self) -> Vec<PoolStatus> {
        // Not under the lock: a status takes a pass over all slots.
        self.listed().iter().filter_map(|source| look_at(&**source)).collect()
    }

    /// How each pool and each group is that was added, under its name: what a probe goes by. A group
    /// stands for its pools: a cluster that can serve is up though one of its nodes is down.
    ///
    /// # Examples
    ///
    /// ```
    /// # use millpond::Monitor;
    /// # let monitor = Monitor::new();
    /// let is_ready = monitor.health().iter().all(|(_, health)| health.is_up());
    /// # assert!(is_ready);
    /// ```
    #[must_use]
    pub fn health(&self) -> Vec<(String, Health)> {
        self.reports().into_iter().map(|report| (report.name, report.health)).collect()
    }

    /// The same, with the pools.
    pub(crate) fn reports(&self) -> Vec<Report> {
        let reports = self.entries().into_iter().filter_map(|entry| {
            let name = entry.name.clone();
            match &entry.what {
                What::One(source) => {
                    let status = look_at(&**source)?;
                    let health = status.health.clone();
                    let pools = vec![(source.clone(), status)];
                    Some(Report { name, health, is_group: false, pools })
                }
                What::Many(group) => {
                    let sources = group.sources()?.into_iter();
                    let looks = sources.filter_map(|source| Some((look_at(&*source)?, source)));
                    let (statuses, sources): (Vec<_>, Vec<_>) = looks.unzip();
                    let health = group.health(&statuses);
                    let pools = sources.into_iter().zip(statuses).collect();
                    Some(Report { name, health, is_group: true, pools })
                }
            }
        });
        reports.collect()
    }
}

/// How a source is, under the name that it has here.
pub(crate) fn look_at(source: &dyn Source) -> Option<PoolStatus> {
    let (mut status, name) = (source.status()?, source.name());
    if *status.config.name != *name {
        status.config.name = name.into();
    }
    Some(status)
}

/// A pool as a source, which is not kept open.
pub(crate) fn watched<M: Manager>(pool: &Pool<M>) -> Arc<dyn Source> {
    let (name, pool) = (pool.config().name.to_string(), pool.downgrade());
    Kept::of(Watched { name, upgrade: move || pool.upgrade() })
}

/// A pool that is looked at through a handle, for that moment.
struct Watched<F> {
    name: String,
    upgrade: F,
}

/// A pool's handle.
trait Handle {
    fn status(&self) -> PoolStatus;
    fn holders(&self) -> Vec<Holder>;
    fn is_closed(&self) -> bool;
}

impl<M: Manager> Handle for Pool<M> {
    fn status(&self) -> PoolStatus {
        self.status()
    }

    fn holders(&self) -> Vec<Holder> {
        self.holders()
    }

    fn is_closed(&self) -> bool {
        self.is_closed()
    }
}

impl<M: Manager> Handle for blocking::Look<M> {
    fn status(&self) -> PoolStatus {
        self.status()
    }

    fn holders(&self) -> Vec<Holder> {
        self.holders()
    }

    fn is_closed(&self) -> bool {
        self.is_closed()
    }
}

impl<H: Handle, F: Fn() -> Option<H> + Send + Sync> Source for Watched<F> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn status(&self) -> Option<PoolStatus> {
        Some((self.upgrade)()?.status())
    }

    fn holders(&self) -> Vec<Holder> {
        (self.upgrade)().map(|pool| pool.holders()).unwrap_or_default()
    }

    fn is_there(&self) -> bool {
        (self.upgrade)().is_some()
    }

    fn is_closed(&self) -> bool {
        (self.upgrade)().is_some_and(|pool| pool.is_closed())
    }
}

/// A source that keeps its name, and takes nothing back.
struct Kept<S> {
    name: String,
    source: S,
    /// The most acquires without a wait that have been told of.
    zeros: AtomicU64,
}

impl<S: Source + 'static> Kept<S> {
    fn of(source: S) -> Arc<dyn Source> {
        Arc::new(Self { name: source.name(), source, zeros: AtomicU64::new(0) })
    }
}

impl<S: Source> Source for Kept<S> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn status(&self) -> Option<PoolStatus> {
        let mut status = self.source.status()?;
        // They are inferred from two totals, which under load come from moments close together. Who
        // takes differences, as Prometheus does, must not see fewer of them than before.
        status.metrics.acquire_wait.keep_zeros(&self.zeros);
        Some(status)
    }

    fn holders(&self) -> Vec<Holder> {
        self.source.holders()
    }

    fn is_there(&self) -> bool {
        self.source.is_there()
    }

    fn is_closed(&self) -> bool {
        self.source.is_closed()
    }
}

/// Which source something was told of. It is known by itself, not by its name: another one of the same
/// name begins anew.
#[cfg(any(feature = "metrics", feature = "opentelemetry", feature = "axum"))]
#[derive(Clone)]
pub(crate) struct SourceId(Weak<dyn Source>);

#[cfg(any(feature = "metrics", feature = "opentelemetry", feature = "axum"))]
impl SourceId {
    pub(crate) fn of(source: &Arc<dyn Source>) -> Self {
        // A weak handle keeps the address from being given to another one.
        Self(Arc::downgrade(source))
    }

    fn address(&self) -> *const () {
        self.0.as_ptr().cast()
    }
}

#[cfg(any(feature = "metrics", feature = "opentelemetry", feature = "axum"))]
impl PartialEq for SourceId {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

#[cfg(any(feature = "metrics", feature = "opentelemetry", feature = "axum"))]
impl Eq for SourceId {}

#[cfg(any(feature = "metrics", feature = "opentelemetry", feature = "axum"))]
impl Hash for SourceId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.sources().iter().map(|source| source.name())).finish()
    }
}
