//! What the benches and the program `figures` share: a connection that costs nothing, every pool
//! behind one interface, the loads, and rounds that take turns.
//!
//! Read `pools.rs` (who takes part, and how each is set up), `load.rs` (what they are put through),
//! `rounds.rs` and `calm.rs` (how two of them are compared on a machine that does other things as
//! well), `effort.rs` (how much of it), `counting.rs` (how allocations are counted).

mod calm;
mod counting;
mod effort;
mod load;
mod pools;
mod rounds;

pub use self::calm::{disturbed, run_time};
pub use self::counting::{CountingAllocator, allocated_bytes, allocations, start_counting};
pub use self::effort::{
    Effort, POOL, RAW, cores, count_boxes, count_hits, count_waits, time_hits, time_threads,
};
pub use self::load::{
    Outcome, SHAPES, Shape, alone, is_pending, thread_runtime, together, wait, worker_runtime,
};
pub use self::pools::{
    BenchPool, Connection, Tally, TrivialManager, WaitingPool, clusters, contended,
    contended_clusters, everything_by_the_clock, hits, millpond_pool, nothing_by_the_clock, upkept,
    waiting,
};
pub use self::rounds::Rounds;
