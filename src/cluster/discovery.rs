//! A set of nodes that a cluster is to have, and what makes its nodes equal to it: only what differs
//! is touched.
//!
//! The nodes that are missing are made first, with the user's template and under no lock; then the
//! table is exchanged once, so that everybody sees all of a set or nothing of it. If the table has
//! changed meanwhile, and something else is missing now, that is made and it is tried again. Pools that
//! are out of the table are drained in the background, each by a task of its own, so the next set need
//! not wait for them.
//!
//! What was refused of a set is its *rest*: a watch takes it up again when the table has changed, or
//! after a pause, and touches nothing else of the set then.
//!
//! Not here: where sets come from (`watch.rs`, `dns.rs`).

use super::endpoint::Endpoint;
use super::error::NodeError;
use super::node::{Node, NodeOptions, Origin};
use super::table::Table;
use super::{Cluster, Key, Shared};
use crate::manager::Manager;
use crate::panics::caught;
#[cfg(feature = "tracing")]
use crate::{error::InWords, panics::tell};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::mem;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::runtime::Handle;

/// A node that a cluster is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeSpec<K> {
    /// What it is known by.
    pub key: K,
    /// Where it is; the cluster's [template](super::ClusterBuilder::template) makes its manager of
    /// this.
    pub endpoint: Endpoint,
    /// Its role, its weight and its labels.
    pub options: NodeOptions,
}

impl<K> NodeSpec<K> {
    /// A node with default options.
    pub fn new(key: impl Into<K>, endpoint: Endpoint) -> Self {
        Self { key: key.into(), endpoint, options: NodeOptions::default() }
    }

    /// With these options.
    #[must_use]
    pub fn options(mut self, options: NodeOptions) -> Self {
        self.options = options;
        self
    }
}

/// What a set of nodes has changed. Nodes that are in no list are as they were.
///
/// What was refused is told here alone, so the compiler warns where nobody looks:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// # use millpond::{Manager, cluster::{Cluster, NodeSpec, SetError}};
/// # use std::time::Duration;
/// # fn example<M: Manager>(
/// #     cluster: Cluster<String, M>, set: Vec<NodeSpec<String>>, limit: Duration,
/// # ) -> Result<(), SetError> {
/// cluster.apply(set, limit)?;
/// # Ok(()) }
/// ```
#[must_use = "nodes of a set may have been refused: `errors` says which"]
#[derive(Debug)]
#[non_exhaustive]
pub struct Changes<K> {
    /// Nodes that there were not before, in the order of the set.
    pub added: Vec<K>,
    /// Nodes that are not in the set. Their pools refuse everybody from now on, and are being drained.
    pub removed: Vec<K>,
    /// Nodes that are at another endpoint now: each has a new pool, and its old one is being drained.
    pub replaced: Vec<K>,
    /// Nodes that have other options now; their connections stay.
    pub changed: Vec<K>,
    /// What was refused, in the order of the set. A node that there was with such a key is as it was.
    pub errors: Vec<(K, NodeError)>,
}

impl<K> Changes<K> {
    fn none() -> Self {
        let (added, removed, replaced, changed) = (vec![], vec![], vec![], vec![]);
        Self { added, removed, replaced, changed, errors: Vec::new() }
    }

    /// Whether the cluster is as it was; there may be errors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        [&self.added, &self.removed, &self.replaced, &self.changed]
            .iter()
            .all(|keys| keys.is_empty())
    }
}

/// How many of each.
impl<K> fmt::Display for Changes<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, removed, replaced, changed, errors } = self;
        let (added, removed, replaced) = (added.len(), removed.len(), replaced.len());
        write!(
            f,
            "{added} added, {removed} removed, {replaced} replaced, {} changed",
            changed.len()
        )?;
        write!(f, ", {} refused", errors.len())
    }
}

/// Why a set of nodes is refused as a whole; the cluster is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// It has no node, which is more likely a source that is broken; see
    /// [`accept_empty_sets`](super::ClusterBuilder::accept_empty_sets).
    #[error("a set without nodes for cluster {cluster}, which keeps those that it has")]
    Empty {
        /// The cluster's name.
        cluster: Arc<str>,
    },
    /// The cluster is closed.
    #[error("cluster {cluster} is closed")]
    Closed {
        /// The cluster's name.
        cluster: Arc<str>,
    },
}

impl<K: Key, M: Manager> Cluster<K, M> {
    /// Makes the cluster's nodes equal to this set, and touches only what differs:
    ///
    /// - a node that is missing is added, by the [template](super::ClusterBuilder::template);
    /// - one that is not in the set is removed as by [`remove_node`](Self::remove_node), however it
    ///   was added;
    /// - one that is at another endpoint is [replaced](Self::replace): whoever waits for it goes on
    ///   waiting, for the new one; only a [`NodeHandle`](super::NodeHandle) is one to the old one. So is
    ///   one that was added with a manager, since nobody knows where it is;
    /// - one with other options gets them as by [`set_options`](Self::set_options);
    /// - all others stay as they are, with their connections.
    ///
    /// All of this happens at one instant: every acquire sees either the nodes of before, with their
    /// roles, or those of the set; a role that is [read](super::ClusterBuilder::read_role) from the server
    /// is set a moment before that. The call waits for nothing. Old pools refuse everybody when it returns, and are drained
    /// in the background: connections in use are waited for, for `limit` at the most, and closed when
    /// they come back, before that or after. Any number of drains may be under way, and none holds up the
    /// next set. Each goes on although the cluster is dropped or closed; a [`drain`](Self::drain) of the
    /// cluster waits for them as well. With the feature `tracing` it is told which connections are still out
    /// at the end; who needs that in the program removes the node with [`remove_node`](Self::remove_node)
    /// first. Outside a tokio runtime nobody waits for them.
    ///
    /// # Errors
    ///
    /// [`SetError::Empty`] if the set has no node, unless that is
    /// [accepted](super::ClusterBuilder::accept_empty_sets), and [`SetError::Closed`].
    ///
    /// What is wrong with one node does not keep the others from being applied; it is in
    /// [`Changes::errors`], and a node that there was with its key stays as it was:
    ///
    /// - [`NodeError::Config`], [`NodeError::NoTemplate`] and [`NodeError::Panicked`] if it cannot be
    ///   made;
    /// - [`NodeError::Ambiguous`] if the set has it more than once, though it be the same.
    ///
    /// If not one node of the set is in the cluster after that, nothing is removed either.
    ///
    /// # Cost
    ///
    /// One pass over the nodes and the set. The template is called for added and replaced nodes only,
    /// at times for one that then turns out not to be needed, since somebody else has added it.
    ///
    /// # Examples
    ///
    /// ```
    /// use millpond::{cluster::{Cluster, NodeOptions, NodeSpec}, from_fn};
    /// use std::{convert::Infallible, time::Duration};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cluster: Cluster<String, _> = Cluster::builder()
    ///     .template(|endpoint| {
    ///         let address = endpoint.to_string();
    ///         from_fn(move || std::future::ready(Ok::<_, Infallible>(address.clone())))
    ///     })
    ///     .build()?;
    /// let drain = Duration::from_secs(30);
    /// let a = NodeSpec::new("a", "10.0.0.1:5432".parse()?);
    /// let b = NodeSpec::new("b", "10.0.0.2:5432".parse()?);
    /// let changes = cluster.apply([a.clone(), b.clone()], drain)?;
    /// assert!(changes.errors.is_empty());
    ///
    /// let c = NodeSpec::new("c", "10.0.0.3:5432".parse()?);
    /// let b = b.options(NodeOptions::default().weight(2));
    /// let changes = cluster.apply([b, c], drain)?;
    /// assert_eq!((changes.added, changes.removed, changes.changed), (
    ///     vec!["c".to_owned()],
    ///     vec!["a".to_owned()],
    ///     vec!["b".to_owned()],
    /// ));
    /// assert!(cluster.apply([], drain).is_err());
    /// assert_eq!(cluster.nodes(), ["b", "c"]);
    /// # Ok(()) }
    /// ```
    pub fn apply(
        &self,
        set: impl IntoIterator<Item = NodeSpec<K>>,
        limit: Duration,
    ) -> Result<Changes<K>, SetError> {
        self.shared.apply(set.into_iter().collect(), limit, None)
    }
}

/// A node of a set.
struct Wanted<K: Key, M: Manager> {
    spec: NodeSpec<K>,
    /// A node like this that is not in the table yet, or why there is none; `None` as long as nobody
    /// has needed it.
    made: Option<Result<Arc<Node<K, M>>, NodeError>>,
    /// It was taken before, and whatever has become of it since then holds.
    settled: bool,
}

/// What is to become of a node of a set.
enum Fate {
    Add,
    Replace,
    SetOptions,
    /// The node stays as it is, though from now on it is the watch's.
    Adopt,
    /// It stays as it is; or it is settled, and whatever has become of it since then holds.
    Keep,
    /// It is somebody else's.
    Foreign,
    /// It cannot be made, or is not as it should be.
    Refuse,
}

/// What comes of a look at the table.
enum Look<K: Key, M: Manager> {
    Closed,
    /// These are missing, and have to be made first.
    Missing(Vec<usize>),
    /// The table is exchanged; these pools are out of it.
    Done(Changes<K>, Vec<Arc<Node<K, M>>>),
}

/// A set on its way into the table.
struct Plan<'p, K: Key, M: Manager> {
    cluster: &'p Shared<K, M>,
    wanted: Vec<Wanted<K, M>>,
    /// The set's nodes by their keys.
    places: HashMap<K, usize>,
    /// The watch whose nodes alone are changed; `None`: all are.
    watch: Option<&'p Weak<()>>,
}

impl<K: Key, M: Manager> Shared<K, M> {
    /// Makes the nodes, or those that a watch has added, equal to a set.
    pub(super) fn apply(
        &self,
        set: Vec<NodeSpec<K>>,
        limit: Duration,
        watch: Option<&Weak<()>>,
    ) -> Result<Changes<K>, SetError> {
        if set.is_empty() && !self.settings.accept_empty_sets {
            return Err(SetError::Empty { cluster: self.name() });
        }
        let changes = self.carry_out(Plan::new(self, set, watch), limit)?;
        self.tell_applied(&changes, &[]);
        Ok(changes)
    }

    /// Takes up what was refused of a set before, in case that the table is another one now; with what
    /// could not be `made` too, if it is time for that. `None` if nothing has come of it.
    pub(super) fn apply_rest(
        &self,
        rest: &mut Rest<K>,
        make: bool,
        limit: Duration,
        watch: &Weak<()>,
    ) -> Result<Option<Changes<K>>, SetError> {
        let is_time = make && rest.has_unmade();
        if !is_time && !rest.has_free(&self.table.load()) {
            return Ok(None);
        }
        let changes = self.carry_out(Plan::of_rest(self, rest, make, watch), limit)?;
        self.tell_applied(&changes, &rest.refused);
        let is_news = !changes.is_empty() || !rest.is_refused_alike(&changes.errors);
        rest.refused = changes.errors.clone();
        Ok(is_news.then_some(changes))
    }

    fn carry_out(&self, mut plan: Plan<'_, K, M>, limit: Duration) -> Result<Changes<K>, SetError> {
        // Each turn makes nodes that were not made before, so there are no more turns than nodes.
        loop {
            match self.swap(|table| plan.look(table)) {
                Look::Closed => return Err(SetError::Closed { cluster: self.name() }),
                Look::Missing(missing) => missing.into_iter().for_each(|place| plan.make(place)),
                Look::Done(changes, leaving) => {
                    leaving.into_iter().for_each(|node| drain(node, limit));
                    return Ok(changes);
                }
            }
        }
    }

    /// Tells what has changed, and what was refused but for what was `told` before.
    fn tell_applied(&self, changes: &Changes<K>, told: &[(K, NodeError)]) {
        #[cfg(feature = "tracing")]
        {
            let cluster = tracing::field::display(&self.settings.name);
            let is_told = |key: &K| told.iter().any(|(other, _)| other == key);
            for (key, error) in changes.errors.iter().filter(|(key, _)| !is_told(key)) {
                tell!(warn, cluster, node = %key, error = %InWords(error), "a node is refused");
            }
            if !changes.is_empty() {
                tell!(info, cluster, "the nodes have changed: {changes}");
            }
        }
        #[cfg(not(feature = "tracing"))]
        let _ = (changes, told);
    }
}

/// A set of which nodes were refused that may be taken another time.
pub(super) struct Rest<K> {
    set: Vec<NodeSpec<K>>,
    refused: Vec<(K, NodeError)>,
}

impl<K: Key> Rest<K> {
    /// `None` if nothing can come of another try.
    pub(super) fn new(set: Vec<NodeSpec<K>>, changes: &Changes<K>) -> Option<Self> {
        let rest = Self { set, refused: changes.errors.clone() };
        rest.may_be_taken().then_some(rest)
    }

    /// Whether something may come of another try.
    pub(super) fn may_be_taken(&self) -> bool {
        self.has_unmade() || self.refused.iter().any(|(_, error)| is_foreign(error))
    }

    /// Whether a node could not be made, and it may be possible another time.
    pub(super) fn has_unmade(&self) -> bool {
        self.refused.iter().any(|(_, error)| {
            matches!(error, NodeError::Config { .. } | NodeError::Panicked { .. })
        })
    }

    /// Whether a node is nobody's any more that was somebody else's.
    fn has_free<M: Manager>(&self, table: &Table<K, M>) -> bool {
        self.refused.iter().any(|(key, error)| {
            is_foreign(error) && table.get(key).is_none_or(|node| node.is_orphan())
        })
    }

    /// Whether the same nodes are refused as before, for reasons of the same kind.
    fn is_refused_alike(&self, refused: &[(K, NodeError)]) -> bool {
        let kind = |(key, error): &(K, NodeError)| (key.clone(), mem::discriminant(error));
        self.refused.iter().map(kind).eq(refused.iter().map(kind))
    }
}

/// Whether a node was refused because it is somebody else's.
fn is_foreign(error: &NodeError) -> bool {
    matches!(error, NodeError::Duplicate { .. })
}

impl<'p, K: Key, M: Manager> Plan<'p, K, M> {
    fn new(cluster: &'p Shared<K, M>, set: Vec<NodeSpec<K>>, watch: Option<&'p Weak<()>>) -> Self {
        let mut wanted: Vec<Wanted<K, M>> = Vec::with_capacity(set.len());
        let mut places = HashMap::with_capacity(set.len());
        for spec in set {
            if let Some(place) = places.get(&spec.key) {
                let (cluster, key) = (cluster.name(), spec.key.to_string());
                let first: &mut Wanted<K, M> = &mut wanted[*place];
                first.made = Some(Err(NodeError::Ambiguous { cluster, key }));
                continue;
            }
            let wrong = |error| NodeError::Config { key: spec.key.to_string(), error };
            let made = spec.options.validate().map_err(wrong).err().map(Err);
            places.insert(spec.key.clone(), wanted.len());
            wanted.push(Wanted { spec, made, settled: false });
        }
        Self { cluster, wanted, places, watch }
    }

    /// For what was refused of a set before, with what could not be made if that is to be tried again.
    fn of_rest(cluster: &'p Shared<K, M>, rest: &Rest<K>, make: bool, watch: &'p Weak<()>) -> Self {
        let mut plan = Self::new(cluster, rest.set.clone(), Some(watch));
        plan.wanted.iter_mut().for_each(|wanted| wanted.settled = true);
        for (key, error) in &rest.refused {
            let wanted = &mut plan.wanted[plan.places[key]];
            wanted.settled = false;
            if !make && !is_foreign(error) {
                wanted.made = Some(Err(error.clone()));
            }
        }
        plan
    }

    /// Makes a node that is missing, with the user's own code, which may panic.
    fn make(&mut self, place: usize) {
        let Wanted { spec, made, .. } = &mut self.wanted[place];
        let NodeSpec { key, endpoint, options } = &*spec;
        let origin = Origin { endpoint: Some(endpoint.clone()), watch: self.watch.cloned() };
        let made_now = caught(|| {
            let manager = self.cluster.manager_of(key, endpoint)?;
            self.cluster.new_node(key.clone(), manager, options.clone(), origin)
        });
        *made = Some(made_now.unwrap_or_else(|panic| {
            Err(NodeError::Panicked { key: key.to_string(), message: panic.message() })
        }));
    }

    /// Whether this node is to go if it is not in the set.
    fn is_ours(&self, node: &Node<K, M>) -> bool {
        self.watch.is_none_or(|us| node.origin.watch.as_ref().is_some_and(|it| it.ptr_eq(us)))
    }

    /// What is to become of a node of the set; `None` if that one has to be made first.
    fn fate(&self, wanted: &Wanted<K, M>, table: &Table<K, M>) -> Option<Fate> {
        let Wanted { spec, made, settled } = wanted;
        if *settled {
            return Some(Fate::Keep);
        }
        let made = match made {
            Some(Err(_)) => return Some(Fate::Refuse),
            Some(Ok(_)) => true,
            None => false,
        };
        let Some(node) = table.get(&spec.key) else { return made.then_some(Fate::Add) };
        let is_ours = self.is_ours(node);
        if !is_ours && !node.is_orphan() {
            return Some(Fate::Foreign);
        }
        let is_there = node.origin.endpoint.as_ref().is_some_and(|it| it.is_at(&spec.endpoint));
        if !is_there {
            return made.then_some(Fate::Replace);
        }
        Some(if node.options != spec.options {
            Fate::SetOptions
        } else if !is_ours {
            Fate::Adopt
        } else {
            Fate::Keep
        })
    }

    /// The table that there is to be, if all that it needs is made; runs while no other change does.
    fn look(&mut self, table: &Table<K, M>) -> (Option<Table<K, M>>, Look<K, M>) {
        if table.closed {
            return (None, Look::Closed);
        }
        let fates = self.wanted.iter().map(|wanted| self.fate(wanted, table));
        let fates: Vec<Option<Fate>> = fates.collect();
        let missing = fates.iter().enumerate().filter(|(_, fate)| fate.is_none());
        let missing: Vec<usize> = missing.map(|(place, _)| place).collect();
        if !missing.is_empty() {
            return (None, Look::Missing(missing));
        }
        self.next_table(&fates.into_iter().flatten().collect::<Vec<Fate>>(), table)
    }

    fn next_table(
        &mut self,
        fates: &[Fate],
        table: &Table<K, M>,
    ) -> (Option<Table<K, M>>, Look<K, M>) {
        let (mut changes, mut leaving) = (Changes::none(), Vec::new());
        let keep_all = self.none_can_be_made(fates, table);
        let mut nodes = Vec::with_capacity(table.nodes().len().max(fates.len()));
        for node in table.nodes() {
            let key = node.key().clone();
            nodes.push(match self.places.get(&key).copied() {
                None if keep_all || !self.is_ours(node) => node.clone(),
                None => {
                    changes.removed.push(key);
                    leaving.push(node.clone());
                    continue;
                }
                Some(place) => match fates[place] {
                    Fate::Replace => {
                        changes.replaced.push(key);
                        leaving.push(node.clone());
                        self.take(place)
                    }
                    Fate::SetOptions => {
                        changes.changed.push(key);
                        self.with_options(node, place)
                    }
                    Fate::Adopt => self.with_options(node, place),
                    Fate::Add | Fate::Keep | Fate::Foreign | Fate::Refuse => node.clone(),
                },
            });
        }
        for (place, fate) in fates.iter().enumerate() {
            match fate {
                Fate::Add => {
                    changes.added.push(self.wanted[place].spec.key.clone());
                    nodes.push(self.take(place));
                }
                Fate::Foreign | Fate::Refuse => changes.errors.push(self.error(place)),
                Fate::Replace | Fate::SetOptions | Fate::Adopt | Fate::Keep => {}
            }
        }
        leaving.iter().for_each(|node| self.cluster.dismiss(node));
        let is_other = !changes.is_empty() || fates.iter().any(|fate| matches!(fate, Fate::Adopt));
        (is_other.then(|| Table::new(nodes, false)), Look::Done(changes, leaving))
    }

    /// Whether nodes of the set cannot be made, and none of it is there: then what is broken is more
    /// likely the set than all that there was before. Nodes that are somebody else's say nothing of
    /// that, and if there are no others in the set, none of ours is to stay.
    fn none_can_be_made(&self, fates: &[Fate], table: &Table<K, M>) -> bool {
        let is_missing = |(fate, wanted): (&Fate, &Wanted<K, M>)| match fate {
            Fate::Refuse => table.get(&wanted.spec.key).is_none_or(|node| !self.is_ours(node)),
            _ => false,
        };
        let is_foreign = |fate: &Fate| matches!(fate, Fate::Foreign);
        let nodes = || fates.iter().zip(&self.wanted);
        nodes().any(is_missing) && nodes().all(|node| is_foreign(node.0) || is_missing(node))
    }

    /// The node that was made for this place, which goes into the table now.
    fn take(&mut self, place: usize) -> Arc<Node<K, M>> {
        match self.wanted[place].made.take() {
            Some(Ok(node)) => {
                self.cluster.admit(&node);
                node
            }
            _ => unreachable!("BUG: a node is put into the table that was not made"),
        }
    }

    /// A node with the options that it is to have, and the watch's, if there is one.
    fn with_options(&self, node: &Node<K, M>, place: usize) -> Arc<Node<K, M>> {
        let mut node = node.with_options(self.wanted[place].spec.options.clone());
        if let Some(watch) = self.watch {
            node.origin.watch = Some(watch.clone());
        }
        Arc::new(node)
    }

    /// Why the node of this place is refused.
    fn error(&mut self, place: usize) -> (K, NodeError) {
        let Wanted { spec, made, .. } = &mut self.wanted[place];
        let error = match made.take() {
            Some(Err(error)) => error,
            _ => {
                let (cluster, key) = (self.cluster.name(), spec.key.to_string());
                NodeError::Duplicate { cluster, key }
            }
        };
        (spec.key.clone(), error)
    }
}

/// Has a pool refuse everybody at once, and waits in the background for what is out of it.
fn drain<K: Key, M: Manager>(node: Arc<Node<K, M>>, limit: Duration) {
    let mut drain = Box::pin(async move {
        // The pool tells who is still out.
        drop(node.pool.drain(limit).await);
    });
    // The first step is taken here; the task wakes for all others, since it begins with a poll.
    let begun = drain.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    if begun.is_pending() {
        // Outside a runtime it has ended.
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn(drain));
        }
    }
}
