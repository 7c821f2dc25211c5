//! The way of a cluster's acquire to a node's pool, beside a change that takes that node away or puts
//! another one in its place.
//!
//! A change takes the node out of the table first and closes its pool second. So an acquire that finds a
//! pool closed finds another node in the table, or none, and nobody gets a connection of a node that
//! was closed before he looked.
//!
//! Loom: the pools are real. The table is a number, stored SeqCst as the pointer of `arc_swap::ArcSwap`
//! is, and loaded Relaxed where a thread compares it with what it has seen (`arc_swap::Cache`), SeqCst
//! where it looks again. `go_to` repeats the few lines of `cluster/acquire.rs` that look nodes up; the
//! rest of a cluster needs a runtime, which cannot be modelled.

#![cfg(loom)]

use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::Ordering::{Relaxed, SeqCst};
use millpond::{AcquireObjectError, IdleOrder, ObjectPool, OwnedObject};
use millpond_loom::{Census, Token, acquire, block_on, check, pool_of, set_home, thread};
use std::panic::catch_unwind;
use std::sync::Arc;

/// The node that was there first, the one in its place, and a table with neither.
const OLD: usize = 0;
const NEW: usize = 1;
const NONE: usize = 2;

struct Nodes {
    table: AtomicUsize,
    pools: [ObjectPool<Token>; 2],
    censuses: [Census; 2],
}

impl Nodes {
    fn new() -> Arc<Self> {
        let censuses = [Census::default(), Census::default()];
        let pools = censuses.each_ref().map(|census| pool_of(1, 1, 1, IdleOrder::Recent, census));
        Arc::new(Self { table: AtomicUsize::new(OLD), pools, censuses })
    }

    /// As `Cluster::acquire`: looks again when the pool that it found is closed.
    fn go_to(&self) -> Option<OwnedObject<Token>> {
        let mut closed = None;
        loop {
            let node = self.table.load(if closed.is_none() { Relaxed } else { SeqCst });
            assert_ne!(Some(node), closed, "a node is in the table whose pool was closed");
            let Some(pool) = self.pools.get(node) else { return None };
            match block_on(pool.acquire_owned()) {
                Ok(object) => return Some(object),
                Err(AcquireObjectError::Closed) => closed = Some(node),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// As `Cluster::remove_node` and `replace`.
    fn put(&self, node: usize) {
        self.table.store(node, SeqCst);
        self.pools[OLD].close();
    }

    /// The other way round, which is wrong.
    fn put_after_close(&self, node: usize) {
        self.pools[OLD].close();
        self.table.store(node, SeqCst);
    }
}

/// One acquires, at once or after a wait, while the node is replaced or removed.
fn beside(waits: bool, node: usize, change: fn(&Nodes, usize)) {
    check(move || {
        let nodes = Nodes::new();
        let held = waits.then(|| acquire(&nodes.pools[OLD]));
        let other = thread::spawn({
            let nodes = nodes.clone();
            move || {
                set_home(1);
                nodes.go_to().map(|object| object.use_it())
            }
        });
        change(&nodes, node);
        // Whoever looks after the change has nothing of the old node.
        assert!(nodes.pools[OLD].try_acquire().is_err());
        drop(held);
        let served = other.join().unwrap();
        assert!(served.is_some() || node == NONE, "somebody was told that there is no node");
        assert_eq!(nodes.censuses[OLD].alive(), 0, "a connection has outlived its node");
        let waiters = nodes.pools[OLD].counts().waiters;
        assert_eq!(waiters, 0, "somebody still waits for a node that is gone");
    });
}

/// Mutant seen to be caught: the pool is closed first, in the last model.
#[test]
fn an_acquire_beside_a_replacement_is_served_by_one_of_the_two() {
    for waits in [false, true] {
        beside(waits, NEW, Nodes::put);
    }
}

/// Mutant seen to be caught: the same.
#[test]
fn an_acquire_beside_a_removal_is_served_or_told() {
    for waits in [false, true] {
        beside(waits, NONE, Nodes::put);
    }
}

/// That the models above can fail. Mutant seen to be caught: `Nodes::put_after_close`.
#[test]
fn a_pool_that_is_closed_before_its_node_is_out_of_the_table_is_noticed() {
    for node in [NEW, NONE] {
        let caught = catch_unwind(|| beside(true, node, Nodes::put_after_close));
        assert!(caught.is_err(), "the wrong order goes unnoticed");
    }
}
