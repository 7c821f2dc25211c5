//! The nodes of a cluster as they are at one moment. A change makes a new table; whoever reads the
//! old one goes on undisturbed.
//!
//! What all threads count, such as references to the table or to one of its pools, they would fetch
//! from each other at each hit. So each thread keeps what it has seen of the nodes: the table, of which a
//! hit only looks whether it is still the same, and a reference to each pool. A connection is taken and
//! given back by that reference, so its guard needs none: it borrows from the cluster, and has its thread's
//! reference looked up again when it is dropped.
//!
//! Not here: who makes the changes (`mod.rs`).

use super::Key;
use super::node::{Member, Node};
use crate::manager::Manager;
use crate::panics::caught;
use crate::pool::node_side::{self, Attempt, PooledBare, attempt};
use arc_swap::{ArcSwap, Cache, Guard};
use crossbeam_utils::CachePadded;
use std::borrow::Borrow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::panic::Location;
use std::ptr;
use std::sync::Arc;
use thread_local::ThreadLocal;

/// All nodes, by key and in the order in which they were added.
pub(super) struct Table<K: Key, M: Manager> {
    /// The places of the nodes.
    by_key: HashMap<K, usize, foldhash::fast::RandomState>,
    nodes: Vec<Arc<Node<K, M>>>,
    /// Those of the nodes, in the same order.
    keys: Vec<K>,
    /// Of each node, the sum of the weights up to and with its own.
    weights: Vec<u64>,
    pub(super) closed: bool,
}

impl<K: Key, M: Manager> Table<K, M> {
    pub(super) fn new(nodes: Vec<Arc<Node<K, M>>>, closed: bool) -> Self {
        let keys: Vec<K> = nodes.iter().map(|node| node.key().clone()).collect();
        let by_key = keys.iter().enumerate().map(|(place, key)| (key.clone(), place));
        let sums = nodes.iter().scan(0, |sum, node| {
            *sum += u64::from(node.options.weight);
            Some(*sum)
        });
        Self { by_key: by_key.collect(), weights: sums.collect(), nodes, keys, closed }
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

    /// The same for somebody who remembers where it was found last.
    #[inline(always)]
    fn place_near<Q>(&self, key: &Q, last: &mut usize) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        // The processor foretells that it is there still, and so need not wait for what it compares.
        if self.keys.get(*last).is_some_and(|known| known.borrow() == key) {
            return Some(*last);
        }
        *last = self.place(key)?;
        Some(*last)
    }

    /// The place of the node at this part of the load, where all of it is 2^64; there is a node.
    pub(super) fn at(&self, part: u64) -> usize {
        let total = self.weights.last().expect("BUG: a table without nodes was asked for one");
        let weight = (u128::from(part) * u128::from(*total)) >> 64;
        self.weights.partition_point(|sum| u128::from(*sum) <= weight)
    }

    /// This table with another node, or another one in the place of that of the same key.
    pub(super) fn with(&self, node: Arc<Node<K, M>>) -> Self {
        let mut nodes = self.nodes.clone();
        match nodes.iter_mut().find(|other| other.key() == node.key()) {
            Some(other) => *other = node,
            None => nodes.push(node),
        }
        Self::new(nodes, self.closed)
    }

    /// This table without the node of this key.
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

    /// What an acquire finds at once at the node of this key, if there is one.
    #[inline(always)]
    pub(super) fn attempt_at<Q>(&self, key: &Q, caller: Caller) -> Option<Attempt<Member<K, M>>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.attempt(|table, places| table.place_near(key, places.of(key)), caller)
    }

    /// What an acquire finds at once at the node that `find` finds the place of.
    #[inline(always)]
    pub(super) fn attempt(
        &self,
        find: impl FnOnce(&Table<K, M>, &mut Places) -> Option<usize>,
        caller: Caller,
    ) -> Option<Attempt<Member<K, M>>> {
        if let Some(seen) = self.seen.get() {
            if let Ok(mut seen) = seen.try_borrow_mut() {
                return Some(attempt(seen.pool(find)?, caller));
            }
        }
        Some(attempt(&self.pool_for_stranger(find)?, caller))
    }

    #[cold]
    fn pool_for_stranger(
        &self,
        find: impl FnOnce(&Table<K, M>, &mut Places) -> Option<usize>,
    ) -> Option<PoolOf<K, M>> {
        let seen = self.seen.get_or(|| RefCell::new(Seen::new(&self.table)).into());
        if let Ok(mut seen) = seen.try_borrow_mut() {
            return seen.pool(find).cloned();
        }
        // A key's hash, a policy of the caller's own, or what somebody does who is woken or whose pool
        // ends has led here from within.
        let table = self.table.load();
        let place = find(&table, &mut Places::default())?;
        Some(table.nodes[place].pool.without_handle().clone())
    }

    /// Gives a connection back by the reference that this thread has to its pool, if it has one.
    #[inline(always)]
    pub(super) fn give_back(&self, pooled: &mut PooledBare<Member<K, M>>) {
        if let Some(seen) = self.seen.get() {
            if let Ok(mut seen) = seen.try_borrow_mut() {
                if let Some(pool) = seen.pool_of(pooled) {
                    pooled.give_back(pool);
                }
            }
        }
    }
}

type Caller = &'static Location<'static>;
type PoolOf<K, M> = Arc<node_side::Shared<Member<K, M>>>;

/// What a thread has seen of the nodes.
struct Seen<K: Key, M: Manager> {
    table: Cache<Swap<K, M>, Arc<Table<K, M>>>,
    /// The table that the pools are those of.
    known: Arc<Table<K, M>>,
    /// By place; those that the thread has been to.
    pools: Vec<Option<PoolOf<K, M>>>,
    places: Places,
    /// Those of the pools to which connections came back last.
    returns: Places,
}

/// The places that were looked up last, by where that lies in memory which was looked up: most callers have
/// the same key at the same address again, and to compare it costs less than to hash it.
pub(super) struct Places([usize; PLACES]);

const PLACES: usize = 64;

impl Default for Places {
    fn default() -> Self {
        Self([0; PLACES])
    }
}

impl Places {
    #[inline(always)]
    fn of<Q: ?Sized>(&mut self, what: &Q) -> &mut usize {
        let address = ptr::from_ref(what).cast::<u8>() as u64;
        // The upper bits of the product depend on all of the address.
        &mut self.0[(address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACES.ilog2())) as usize]
    }
}

impl<K: Key, M: Manager> Seen<K, M> {
    fn new(table: &Swap<K, M>) -> Self {
        let mut table = Cache::new(table.clone());
        let known = table.load().clone();
        let (places, returns) = <(Places, Places)>::default();
        let mut pools = Vec::new();
        forget(&mut pools, known.nodes.len());
        Self { table, known, pools, places, returns }
    }

    #[inline(always)]
    fn pool(
        &mut self,
        find: impl FnOnce(&Table<K, M>, &mut Places) -> Option<usize>,
    ) -> Option<&PoolOf<K, M>> {
        let table = self.table.load();
        if !Arc::ptr_eq(&self.known, table) {
            forget(&mut self.pools, table.nodes.len());
            self.known.clone_from(table);
        }
        let place = find(table, &mut self.places)?;
        match &mut self.pools[place] {
            Some(pool) => Some(pool),
            none => Some(remember(none, &table.nodes[place])),
        }
    }

    /// The thread's reference to the pool that a connection belongs to; none if that is of another table
    /// than the thread has seen last. Which one there is now is looked at by an acquire alone: a release is
    /// not to end what others have removed.
    #[inline(always)]
    fn pool_of(&mut self, pooled: &PooledBare<Member<K, M>>) -> Option<&PoolOf<K, M>> {
        let pool = pooled.pool();
        let place = *self.returns.of(&**pool);
        match self.pools.get(place) {
            Some(Some(known)) if Arc::ptr_eq(known, pool) => self.pools[place].as_ref(),
            _ => self.look_for(pool),
        }
    }

    #[cold]
    fn look_for(&mut self, pool: &PoolOf<K, M>) -> Option<&PoolOf<K, M>> {
        // A key's hash may panic, and this is the end of a guard.
        let place = caught(|| self.known.place(pool.manager().key())).ok()??;
        if !Arc::ptr_eq(self.known.nodes[place].pool.without_handle(), pool) {
            return None;
        }
        *self.returns.of(&**pool) = place;
        // There are none if what has been removed panicked at its end.
        Some(self.pools.get_mut(place)?.get_or_insert_with(|| pool.clone()))
    }
}

#[cold]
fn forget<T>(pools: &mut Vec<Option<T>>, nodes: usize) {
    pools.clear();
    pools.resize_with(nodes, || None);
}

#[cold]
fn remember<'p, K: Key, M: Manager>(
    pool: &'p mut Option<PoolOf<K, M>>,
    node: &Node<K, M>,
) -> &'p PoolOf<K, M> {
    pool.insert(node.pool.without_handle().clone())
}
