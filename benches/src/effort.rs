//! How much is measured, and the rounds that the figures and their pictures have in common.

use crate::counting::{allocations, start_counting};
use crate::load::{alone, together};
use crate::pools::BenchPool;
use crate::rounds::Rounds;
use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::unconstrained;

/// The bare queue's place in the lists of [`hits`](crate::hits) and [`contended`](crate::contended).
pub const RAW: usize = 0;
/// The place of `Pool::acquire` in them.
pub const POOL: usize = 1;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds in which everybody takes part once.
    pub rounds: usize,
    /// The time that one measurement of hits is to take: less than a time slice, so that even on a
    /// busy machine many are undisturbed.
    pub sample: Duration,
    /// The time that one load of waiting tasks runs.
    pub window: Duration,
    /// Rounds of the 100,000 waiters.
    pub crowds: usize,
}

impl Effort {
    /// What a table needs.
    pub const FULL: Self = Self {
        rounds: 25,
        sample: Duration::from_millis(2),
        window: Duration::from_millis(80),
        crowds: 9,
    };
    /// What a first impression needs.
    pub const QUICK: Self = Self {
        rounds: 5,
        sample: Duration::from_millis(1),
        window: Duration::from_millis(30),
        crowds: 3,
    };
}

/// How many turns fill the sample time.
fn turns_for(runtime: &Runtime, pool: &dyn BenchPool, sample: Duration) -> u64 {
    const PROBE: u64 = 2000;
    let probe = alone(runtime.handle(), pool, PROBE);
    (PROBE as f64 * sample.as_secs_f64() / probe.as_secs_f64()).max(100.0) as u64
}

/// Nanoseconds of a hit of each pool, used by one task.
#[must_use]
pub fn time_hits(runtime: &Runtime, pools: &[Arc<dyn BenchPool>], effort: &Effort) -> Rounds<f64> {
    let turns: Vec<u64> =
        pools.iter().map(|pool| turns_for(runtime, &**pool, effort.sample)).collect();
    Rounds::run(effort.rounds, pools.len(), |who| {
        let took = alone(runtime.handle(), &*pools[who], turns[who]);
        took.as_nanos() as f64 / turns[who] as f64
    })
}

/// Millions of turns a second of each pool, used by so many threads at once. The numbers of threads
/// of one pool follow each other: that of pool `who` and `threads[nth]` is the contestant
/// `who * threads.len() + nth`.
#[must_use]
pub fn time_threads(
    runtime: &Runtime,
    pools: &[Arc<dyn BenchPool>],
    threads: &[usize],
    effort: &Effort,
) -> Rounds<f64> {
    /// Threads that share a core are to take over from each other many times.
    const LONGER: u64 = 10;
    let cores = cores();
    let turns: Vec<u64> =
        pools.iter().map(|pool| turns_for(runtime, &**pool, 2 * effort.sample)).collect();
    let is_crowd = |entry: usize| threads[entry % threads.len()] > cores;
    Rounds::with_crowds(effort.rounds, threads.len() * pools.len(), is_crowd, |entry| {
        let (who, threads) = (entry / threads.len(), threads[entry % threads.len()]);
        let turns = if is_crowd(entry) { LONGER * turns[who] } else { turns[who] };
        let took = together(runtime.handle(), &*pools[who], threads, turns);
        (threads as u64 * turns) as f64 / took.as_secs_f64() / 1e6
    })
}

/// How many threads can run at the same time.
#[must_use]
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Allocations of each acquire and release that find a connection idle.
///
/// # Panics
///
/// If the program's allocator is not [`CountingAllocator`](crate::CountingAllocator).
#[must_use]
pub fn count_hits(runtime: &Runtime, pool: &dyn BenchPool) -> f64 {
    count_each(|turns| _ = alone(runtime.handle(), pool, turns))
}

/// Allocations of each acquire that waits for another's release, with that release; none if nobody
/// can wait. The pool has to be one of a single connection.
///
/// # Panics
///
/// If the program's allocator is not [`CountingAllocator`](crate::CountingAllocator).
#[must_use]
pub fn count_waits(runtime: &Runtime, pool: &dyn BenchPool) -> Option<f64> {
    pool.waits(0).is_some().then(|| {
        count_each(|turns| {
            if let Some(waits) = pool.waits(turns) {
                runtime.block_on(unconstrained(waits));
            }
        })
    })
}

/// Allocations of each box, for comparison: one, or somebody else allocates as well.
///
/// # Panics
///
/// If the program's allocator is not [`CountingAllocator`](crate::CountingAllocator).
#[must_use]
pub fn count_boxes() -> f64 {
    count_each(|turns| (0..turns).for_each(|turn| drop(black_box(Box::new(turn)))))
}

/// Allocations per turn. Twice as many turns less once as many leave out what does not depend on
/// their number, such as the box around the loop; the median leaves out what somebody else
/// allocates now and then, such as a peer's own reaper.
fn count_each(work: impl Fn(u64)) -> f64 {
    const TURNS: u64 = 500;
    const TIMES: usize = 5;
    start_counting();
    let count = |turns| {
        let before = allocations();
        work(turns);
        (allocations() - before) as f64
    };
    // A counter that counts nothing would find everything free of charge.
    assert!(count_one(), "the program's allocator does not count");
    count(TURNS);
    let mut each: Vec<f64> =
        (0..TIMES).map(|_| (count(2 * TURNS) - count(TURNS)) / TURNS as f64).collect();
    each.sort_by(f64::total_cmp);
    each[TIMES / 2].max(0.0)
}

/// Whether an allocation is counted.
fn count_one() -> bool {
    let before = allocations();
    drop(black_box(Box::new(before)));
    allocations() > before
}
