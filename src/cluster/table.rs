//! The nodes of a cluster as they are at one moment. A change makes a new table; whoever reads the
//! old one goes on undisturbed.
//!
//! What all threads count, such as references to the table or to one of its pools, they would fetch
//! from each other at each hit. So each thread keeps what it has seen of the nodes: the table, of which a
//! hit only looks whether it is still the same, and for each pool a reference of which it makes those of
//! its guards.
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
use std::sync::atomic::{AtomicU64, Ordering};
use thread_local::ThreadLocal;

/// All nodes, by key and in the order in which they were added.
pub(super) struct Table<K: Key, M: Manager> {
    /// No other table of this process has it.
    number: u64,
    /// The places of the nodes.
    by_key: HashMap<K, usize, foldhash::fast::RandomState>,
    nodes: Vec<Arc<Node<K, M>>>,
    /// Of each node, the sum of the weights up to and with its own.
    weights: Vec<u64>,
    pub(super) closed: bool,
}

impl<K: Key, M: Manager> Table<K, M> {
    pub(super) fn new(nodes: Vec<Arc<Node<K, M>>>, closed: bool) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let by_key = nodes.iter().enumerate().map(|(place, node)| (node.key().clone(), place));
        let sums = nodes.iter().scan(0, |sum, node| {
            *sum += u64::from(node.options.weight);
            Some(*sum)
        });
        Self { number, by_key: by_key.collect(), weights: sums.collect(), nodes, closed }
    }

    pub(super) fn nodes(&self) -> &[Arc<Node<K, M>>] {
        &self.nodes
    }

    pub(super) fn get<Q>(&self, key: &Q) -> Option<&Arc<Node<K, M>>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.place(key).map(|place| &self.nodes[place])
    }

    /// Where a node is in [`nodes`](Self::nodes).
    #[inline(always)]
    pub(super) fn place<Q>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.by_key.get(key).copied()
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

type Swap<K, M> = Arc<ArcSwap<Table<K, M>>>;

/// The table of the moment.
pub(super) struct Current<K: Key, M: Manager> {
    table: Swap<K, M>,
    /// Padded, since each look writes to it, and threads have theirs side by side. A thread that does
    /// not come back keeps an old table alive, and the closed pools in it.
    seen: ThreadLocal<CachePadded<RefCell<Seen<K, M>>>>,
}

impl<K: Key, M: Manager> Current<K, M> {
    pub(super) fn new(table: Table<K, M>) -> Self {
        Self { table: Arc::new(ArcSwap::from_pointee(table)), seen: ThreadLocal::new() }
    }

    pub(super) fn load(&self) -> Guard<Arc<Table<K, M>>> {
        self.table.load()
    }

    pub(super) fn load_full(&self) -> Arc<Table<K, M>> {
        self.table.load_full()
    }

    /// Whoever comes to know of this, by whichever way, sees this table or a later one.
    pub(super) fn store(&self, table: Table<K, M>) {
        self.table.store(Arc::new(table));
    }

    /// The pool of the node that `find` finds the place of.
    #[inline(always)]
    pub(super) fn pool(
        &self,
        find: impl FnOnce(&Table<K, M>) -> Option<usize>,
    ) -> Option<PoolRef<Member<K, M>>> {
        let Some(seen) = self.seen.get() else { return self.pool_of_newcomer(find) };
        match seen.try_borrow_mut() {
            Ok(mut seen) => seen.pool(find),
            // A key's hash, a policy of the caller's own, or the end of a pool in an old table has led
            // here from within.
            Err(_) => self.pool_of_nobody(find),
        }
    }

    #[cold]
    fn pool_of_newcomer(
        &self,
        find: impl FnOnce(&Table<K, M>) -> Option<usize>,
    ) -> Option<PoolRef<Member<K, M>>> {
        let seen = self.seen.get_or(|| RefCell::new(Seen::new(&self.table)).into());
        seen.borrow_mut().pool(find)
    }

    #[cold]
    fn pool_of_nobody(
        &self,
        find: impl FnOnce(&Table<K, M>) -> Option<usize>,
    ) -> Option<PoolRef<Member<K, M>>> {
        let table = self.table.load();
        find(&table).map(|place| table.nodes[place].pool.reference())
    }
}

/// What a thread has seen of the nodes.
struct Seen<K: Key, M: Manager> {
    table: Cache<Swap<K, M>, Arc<Table<K, M>>>,
    /// The number of the table that the pools are those of.
    number: u64,
    /// By place; those that the thread has been to.
    pools: Vec<Option<PoolRef<Member<K, M>>>>,
}

impl<K: Key, M: Manager> Seen<K, M> {
    fn new(table: &Swap<K, M>) -> Self {
        Self { table: Cache::new(table.clone()), number: 0, pools: Vec::new() }
    }

    #[inline(always)]
    fn pool(
        &mut self,
        find: impl FnOnce(&Table<K, M>) -> Option<usize>,
    ) -> Option<PoolRef<Member<K, M>>> {
        let table = self.table.load();
        if self.number != table.number {
            forget(&mut self.pools, table.nodes.len());
            self.number = table.number;
        }
        let place = find(table)?;
        match &self.pools[place] {
            Some(pool) => Some(pool.clone()),
            None => Some(remember(&mut self.pools[place], &table.nodes[place])),
        }
    }
}

#[cold]
fn forget<M: Manager>(pools: &mut Vec<Option<PoolRef<M>>>, nodes: usize) {
    pools.clear();
    pools.resize_with(nodes, || None);
}

#[cold]
fn remember<K: Key, M: Manager>(
    pool: &mut Option<PoolRef<Member<K, M>>>,
    node: &Node<K, M>,
) -> PoolRef<Member<K, M>> {
    pool.insert(node.pool.reference()).clone()
}
