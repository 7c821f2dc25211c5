//! The nodes of a cluster as they are at one moment. A change makes a new table; whoever reads the
//! old one goes on undisturbed.
//!
//! A hit that took a reference to the table would pay two locked instructions for it. So each thread
//! keeps the table that it has last seen, and a hit only compares an address.
//!
//! Not here: who makes the changes (`mod.rs`).

use super::Key;
use super::node::{Member, Node};
use crate::manager::Manager;
use crate::pool::PoolRef;
use arc_swap::{ArcSwap, Cache, Guard};
use crossbeam_utils::CachePadded;
use std::borrow::Borrow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use thread_local::ThreadLocal;

type Entry<K, M> = (PoolRef<Member<K, M>>, Arc<Node<K, M>>);

/// All nodes, by key and in the order in which they were added.
pub(super) struct Table<K: Key, M: Manager> {
    /// The pool beside its node, so that a hit goes to it straight.
    by_key: HashMap<K, Entry<K, M>, foldhash::fast::RandomState>,
    nodes: Vec<Arc<Node<K, M>>>,
    /// Of each node, the sum of the weights up to and with its own.
    weights: Vec<u64>,
    pub(super) closed: bool,
}

impl<K: Key, M: Manager> Table<K, M> {
    pub(super) fn new(nodes: Vec<Arc<Node<K, M>>>, closed: bool) -> Self {
        let by_key =
            nodes.iter().map(|node| (node.key().clone(), (node.pool.reference(), node.clone())));
        let sums = nodes.iter().scan(0, |sum, node| {
            *sum += u64::from(node.options.weight);
            Some(*sum)
        });
        Self { by_key: by_key.collect(), weights: sums.collect(), nodes, closed }
    }

    pub(super) fn nodes(&self) -> &[Arc<Node<K, M>>] {
        &self.nodes
    }

    #[inline]
    pub(super) fn get<Q>(&self, key: &Q) -> Option<&Arc<Node<K, M>>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.by_key.get(key).map(|(_, node)| node)
    }

    /// The pool of a node.
    #[inline(always)]
    pub(super) fn pool<Q>(&self, key: &Q) -> Option<PoolRef<Member<K, M>>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.by_key.get(key).map(|(pool, _)| pool.clone())
    }

    /// The place of the node at this part of the load, where all of it is 2^64; there is a node.
    pub(super) fn at(&self, part: u64) -> usize {
        let total = self.weights.last().expect("BUG: a table without nodes was asked for one");
        let weight = (u128::from(part) * u128::from(*total)) >> 64;
        self.weights.partition_point(|sum| u128::from(*sum) <= weight)
    }

    /// The same with another node, or another one in the place of that of the same key.
    pub(super) fn with(&self, node: Arc<Node<K, M>>) -> Self {
        let mut nodes = self.nodes.clone();
        match nodes.iter_mut().find(|other| other.key() == node.key()) {
            Some(other) => *other = node,
            None => nodes.push(node),
        }
        Self::new(nodes, self.closed)
    }

    /// The same without the node of this key.
    pub(super) fn without(&self, key: &K) -> Self {
        let others = self.nodes.iter().filter(|node| node.key() != key).cloned();
        Self::new(others.collect(), self.closed)
    }

    /// The first few keys, for an error.
    pub(super) fn names(&self) -> String {
        const SHOWN: usize = 8;
        if self.nodes.is_empty() {
            return "none".to_owned();
        }
        let shown: Vec<String> =
            self.nodes.iter().take(SHOWN).map(|node| node.key().to_string()).collect();
        match self.nodes.len().saturating_sub(SHOWN) {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }
}

/// The table of the moment.
pub(super) struct Current<K: Key, M: Manager> {
    current: Arc<ArcSwap<Table<K, M>>>,
    /// What each thread has last seen of it. A thread that does not come back keeps an old table
    /// alive, and the closed pools in it.
    seen: ThreadLocal<Seen<K, M>>,
}

/// Padded, since each look writes to it, and threads have theirs side by side.
type Seen<K, M> = CachePadded<RefCell<Cache<Arc<ArcSwap<Table<K, M>>>, Arc<Table<K, M>>>>>;

impl<K: Key, M: Manager> Current<K, M> {
    pub(super) fn new(table: Table<K, M>) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(table)), seen: ThreadLocal::new() }
    }

    pub(super) fn load(&self) -> Guard<Arc<Table<K, M>>> {
        self.current.load()
    }

    pub(super) fn load_full(&self) -> Arc<Table<K, M>> {
        self.current.load_full()
    }

    /// Whoever comes to know of this, by whichever way, sees this table or a later one.
    pub(super) fn store(&self, table: Table<K, M>) {
        self.current.store(Arc::new(table));
    }

    /// What `look` sees in the table. Costs no locked instruction unless it has changed since this
    /// thread looked.
    #[inline(always)]
    pub(super) fn with<T>(&self, look: impl FnOnce(&Table<K, M>) -> T) -> T {
        let seen = self.seen.get_or(|| RefCell::new(Cache::new(self.current.clone())).into());
        match seen.try_borrow_mut() {
            Ok(mut seen) => look(seen.load()),
            // A key's hash, or the end of a pool in an old table, has led here from within.
            Err(_) => look(&self.current.load()),
        }
    }
}
