//! Counts allocations: on hits, waits, time-outs, cancels and hand-offs, and what a slot costs.
//!
//! Nothing is timed here. The exit code is 1 if one of Millpond's promises does not hold.

#![forbid(unsafe_code)]

use millpond::cluster::{Cluster, ClusterError, Policy};
use millpond::{AcquireError, AcquireObjectError, IdleOrder, ObjectPool, Pool, from_fn};
use millpond_bench::{
    CountingAllocator, TrivialManager, allocated_bytes, allocations, is_pending, millpond_pool,
    start_counting, thread_runtime,
};
use std::convert::Infallible;
use std::hint::black_box;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tokio::task::yield_now;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const TURNS: usize = 10_000;
/// Each of these waits for a timer.
const TIMEOUTS: usize = 500;

/// The table, and whether all of it holds.
struct Report {
    holds: bool,
}

impl Report {
    /// One row: allocations counted during `operations`, and how many each of them may make.
    fn row(&mut self, what: &str, operations: usize, counted: usize, allowed: usize) {
        let holds = counted == allowed * operations;
        let verdict = if holds { "" } else { "  <- BROKEN" };
        println!(
            "{what:<58}{operations:>8}{counted:>10}{:>10.4}{allowed:>10}{verdict}",
            counted as f64 / operations as f64
        );
        self.holds &= holds;
    }
}

/// Two threads share one connection, and each keeps it until the other is parked. What that allocates, after each
/// thread's first waits.
fn alternating<G>(acquire: impl Fn() -> G + Sync, waiters: impl Fn() -> usize + Sync) -> usize {
    let done = AtomicBool::new(false);
    let alternate = |warm: usize| {
        let mut counted = (0, 0);
        for turn in 0..TURNS / 2 + warm {
            if turn == warm {
                counted.0 = allocations();
            }
            let held = acquire();
            while waiters() == 0 && !done.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            counted.1 = allocations();
            drop(held);
        }
        done.store(true, Ordering::Relaxed);
        counted
    };
    thread::scope(|scope| {
        let (first, second) = (scope.spawn(|| alternate(100)), scope.spawn(|| alternate(100)));
        let (first, second) = (first.join(), second.join());
        let (first, second) = (first.expect("no panic"), second.expect("no panic"));
        // Up to the first one's end: after it a thread is torn down.
        first.1.min(second.1) - first.0.max(second.0)
    })
}

/// Both kinds of pools, so that each row is written once. `$pool` has the capacity that the macro's
/// user says; `waiters` reads how many wait.
macro_rules! rows {
    ($report:expr, $kind:literal, $pool:expr, $one:expr, $waiters:expr) => {{
        let (report, pool, one): (&mut Report, _, _) = ($report, &$pool, &$one);

        macro_rules! hits {
            ($what:literal, $acquire:expr) => {{
                drop($acquire.expect("idle"));
                let before = allocations();
                for _ in 0..TURNS {
                    drop($acquire.expect("idle"));
                }
                report.row(concat!($kind, ": hit, ", $what), TURNS, allocations() - before, 0);
            }};
        }
        hits!("acquire().await", pool.acquire().await);
        hits!("acquire_owned().await", pool.acquire_owned().await);
        hits!("acquire_blocking()", pool.acquire_blocking());
        hits!("acquire_blocking_owned()", pool.acquire_blocking_owned());
        hits!("try_acquire()", pool.try_acquire());
        hits!("try_acquire_owned()", pool.try_acquire_owned());

        // What the first one makes is made once, so no other row would show it.
        let held = one.acquire().await.expect("idle");
        let before = allocations();
        {
            let mut acquire = pin!(one.acquire());
            assert!(is_pending(acquire.as_mut()).await, "an acquire did not wait");
        }
        report.row(concat!($kind, ": a pool's first wait"), 1, allocations() - before, 0);
        drop(held);

        // Two tasks share one connection, and each acquire has to wait for the other's release.
        let alternate = |warm: usize| async move {
            let mut counted = (0, 0);
            for turn in 0..TURNS / 2 + warm {
                if turn == warm {
                    counted.0 = allocations();
                }
                let mut acquire = pin!(one.acquire());
                // The very first one of the two finds it idle; from then on both wait.
                let held = if turn == 0 || is_pending(acquire.as_mut()).await {
                    acquire.await
                } else {
                    panic!("an acquire did not wait")
                };
                yield_now().await;
                drop(held.expect("handed over"));
                counted.1 = allocations();
            }
            counted
        };
        let (first, _) = tokio::join!(alternate(100), alternate(100));
        report.row(concat!($kind, ": wait, async"), TURNS, first.1 - first.0, 0);

        // A hand-off is the release that a waiter is waiting for; nothing else is counted.
        let mut counted = 0;
        for _ in 0..TURNS {
            let held = one.acquire().await.expect("idle");
            let mut acquire = pin!(one.acquire());
            assert!(is_pending(acquire.as_mut()).await, "an acquire did not wait");
            let before = allocations();
            drop(held);
            counted += allocations() - before;
            drop(acquire.await.expect("handed over"));
        }
        report.row(concat!($kind, ": release that hands over to a waiter"), TURNS, counted, 0);

        let held = one.acquire().await.expect("idle");
        let before = allocations();
        for _ in 0..TURNS {
            let mut acquire = pin!(one.acquire());
            assert!(is_pending(acquire.as_mut()).await, "an acquire did not wait");
        }
        report.row(concat!($kind, ": cancel while queued"), TURNS, allocations() - before, 0);
        drop(held);

        let before = allocations();
        for _ in 0..TURNS {
            let held = one.acquire().await.expect("given back by the cancelled one");
            let mut acquire = pin!(one.acquire());
            assert!(is_pending(acquire.as_mut()).await, "an acquire did not wait");
            drop(held);
        }
        report.row(concat!($kind, ": cancel after the hand-off"), TURNS, allocations() - before, 0);

        let acquire = || one.acquire_blocking().expect("handed over");
        let counted = alternating(acquire, || $waiters(one));
        let what = concat!($kind, ": wait, blocking (after each thread's first)");
        report.row(what, TURNS, counted, 0);
    }};
}

/// Hits of two at once, of which one at least does not go through the hot cell, and waits for what another shard
/// gives back.
async fn shelves_and_shards(report: &mut Report) {
    for order in [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo] {
        let objects = ObjectPool::builder(16).order(order).build(|| 0_u64).expect("in range");
        let pool = millpond_pool(16, |pool| pool.order(order)).await;
        let before = allocations();
        for _ in 0..TURNS {
            drop((objects.try_acquire().expect("idle"), objects.try_acquire().expect("idle")));
        }
        let counted = allocations() - before;
        report.row(&format!("ObjectPool, {order:?}: two hits at once"), TURNS, counted, 0);
        let before = allocations();
        for _ in 0..TURNS {
            drop((pool.acquire().await.expect("idle"), pool.acquire().await.expect("idle")));
        }
        let counted = allocations() - before;
        report.row(&format!("Pool, {order:?}: two hits at once"), TURNS, counted, 0);
    }
    let object = ObjectPool::builder(1).shards(4).build(|| 0_u64).expect("in range");
    let acquire = || object.acquire_blocking().expect("handed over");
    let counted = alternating(acquire, || object.counts().waiters);
    report.row("ObjectPool: wait for what another shard gives back", TURNS, counted, 0);
    let one = millpond_pool(1, |pool| pool.shards(4)).await;
    let acquire = || one.acquire_blocking().expect("handed over");
    let counted = alternating(acquire, || one.counts().waiters);
    report.row("Pool: wait for what another shard gives back", TURNS, counted, 0);
}

/// What a pool does by the clock while nothing is due.
async fn looks(report: &mut Report, pool: &Pool<TrivialManager>) {
    pool.maintenance().run_once().await;
    let before = allocations();
    for _ in 0..TURNS {
        pool.maintenance().run_once().await;
    }
    report.row("Pool: a look that finds nothing", TURNS, allocations() - before, 0);
}

/// Hits by way of a cluster of three nodes.
async fn clustered(report: &mut Report) {
    let cluster = Cluster::builder().pools(|pool| pool.max_size(4)).build().expect("in range");
    let keys = ["db1", "db2", "db3"];
    for key in keys {
        cluster.add_node(key, TrivialManager::default()).expect("a node");
        drop(cluster.acquire(key).await.expect("a connection"));
    }
    let mut row = |what, counted| report.row(what, TURNS, counted, 0);

    let before = allocations();
    for turn in 0..TURNS {
        drop(cluster.acquire(keys[turn % keys.len()]).await.expect("idle"));
    }
    row("Cluster: hit, acquire(key).await", allocations() - before);

    let before = allocations();
    for turn in 0..TURNS {
        drop(cluster.acquire(keys[turn % keys.len()]).await.expect("idle").into_owned());
    }
    row("Cluster: hit, into_owned()", allocations() - before);

    let node = cluster.node(keys[0]).expect("a node");
    let before = allocations();
    for _ in 0..TURNS {
        drop(node.acquire().await.expect("idle").into_owned());
    }
    row("NodeHandle: hit, into_owned()", allocations() - before);

    let before = allocations();
    for _ in 0..TURNS {
        drop(cluster.acquire_any(Policy::LeastInUse).await.expect("idle"));
    }
    row("Cluster: hit, acquire_any(LeastInUse).await", allocations() - before);
}

/// Expired deadlines.
async fn timeouts(report: &mut Report, pool: &Pool<TrivialManager>, objects: &ObjectPool<u64>) {
    let limit = Duration::from_millis(1);
    // The runtime's first timer allocates twice, whoever sets it; that is tokio's and happens once.
    tokio::time::sleep(limit).await;

    let _held = objects.acquire().await.expect("idle");
    let before = allocations();
    for _ in 0..TIMEOUTS {
        let gave_up = objects.acquire_until(tokio::time::sleep(limit)).await;
        assert!(matches!(gave_up, Err(AcquireObjectError::Timeout)));
    }
    let counted = allocations() - before;
    report.row("ObjectPool: time-out", TIMEOUTS, counted, 0);

    let _held = pool.acquire().await.expect("idle");
    let (mut waiting, mut all) = (0, 0);
    for _ in 0..TIMEOUTS {
        let before = allocations();
        {
            // Waits until the timer is about to expire, and is cancelled: all but the error.
            let mut acquire = pin!(pool.acquire_timeout(limit));
            assert!(is_pending(acquire.as_mut()).await, "an acquire did not wait");
        }
        waiting += allocations() - before;
        let before = allocations();
        let gave_up = pool.acquire_timeout(limit).await;
        all += allocations() - before;
        assert!(matches!(gave_up, Err(AcquireError::Timeout(_))));
    }
    report.row("Pool: acquire_timeout, its wait and timer, cancelled", TIMEOUTS, waiting, 0);
    report.row("Pool: acquire_timeout that expires: the error's own box", TIMEOUTS, all, 1);
}

/// What an acquire allocates that none of the nodes serves: its waits, and an error that says how each node is.
async fn unserved(report: &mut Report) {
    const MOST: usize = 6144;
    let cluster = Cluster::builder().pools(|pool| pool.max_size(1)).build().expect("in range");
    let keys = ["db1", "db2", "db3"];
    let mut held = Vec::new();
    for key in keys {
        cluster.add_node(key, TrivialManager::default()).expect("a node");
        held.push(cluster.acquire(key).await.expect("a connection"));
    }
    println!("\nbytes allocated by an acquire that none of three nodes serves: at most {MOST}");
    let before = allocated_bytes();
    for _ in 0..TIMEOUTS {
        let gave_up = cluster.acquire_any_timeout(Policy::LeastInUse, Duration::ZERO).await;
        assert!(matches!(gave_up, Err(ClusterError::Timeout(_))));
    }
    let each = (allocated_bytes() - before).div_ceil(TIMEOUTS);
    let verdict = if each <= MOST { "" } else { "  <- BROKEN" };
    println!("{:<58}{TIMEOUTS:>8}{each:>10}{verdict}", "Cluster: acquire_any_timeout that expires");
    report.holds &= each <= MOST;
}

/// What building a pool allocates for each slot, beyond the connection itself.
fn memory(report: &mut Report) {
    const MOST: usize = 288;
    println!(
        "\nbytes allocated for each slot of an ObjectPool<u64>, beyond the object: at most {MOST}"
    );
    for order in [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo] {
        for slots in [1_000, 10_000] {
            let before = allocated_bytes();
            let pool = ObjectPool::builder(slots).order(order).build(|| 0_u64).expect("in range");
            let bytes = allocated_bytes() - before;
            let each = bytes.div_ceil(slots) - size_of::<u64>();
            let verdict = if each <= MOST { "" } else { "  <- BROKEN" };
            println!("{:<58}{slots:>8}{each:>10}{verdict}", format!("{order:?}"));
            report.holds &= each <= MOST;
            drop(pool);
        }
    }
    const MOST_OF_POOL: usize = 392;
    println!(
        "\nbytes allocated for each slot of a Pool without `tracing`, a connection of one word \
         included: at most {MOST_OF_POOL}"
    );
    for order in [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo] {
        // What a pool has but once is left out: mostly distributions.
        let allocated = |slots| {
            let manager = from_fn(|| async { Ok::<_, Infallible>(0_u64) });
            let pool = Pool::builder(manager).max_size(slots).shards(1).order(order);
            let before = allocated_bytes();
            let pool = pool.build_lazy().expect("in range");
            let bytes = allocated_bytes() - before;
            drop(pool);
            bytes
        };
        let more = 10_000;
        let each = (allocated(2 * more) - allocated(more)).div_ceil(more);
        let verdict = if each <= MOST_OF_POOL { "" } else { "  <- BROKEN" };
        println!("{:<58}{more:>8}{each:>10}{verdict}", format!("{order:?}"));
        report.holds &= each <= MOST_OF_POOL;
    }
}

fn main() -> ExitCode {
    let mut report = Report { holds: true };
    start_counting();
    println!("{:<58}{:>8}{:>10}{:>10}{:>10}", "", "times", "counted", "each", "allowed");
    // A counter that counts nothing would find everything free of charge.
    let before = allocations();
    for number in 0..TURNS {
        black_box(Box::new(number));
    }
    report.row("for comparison: Box::new", TURNS, allocations() - before, 1);

    // One thread runs the tasks, so that nobody else allocates meanwhile.
    thread_runtime().block_on(async {
        let objects = ObjectPool::new(16, || 0_u64);
        let object = ObjectPool::new(1, || 0_u64);
        rows!(&mut report, "ObjectPool", objects, object, |pool: &ObjectPool<u64>| {
            pool.counts().waiters
        });
        let pool = millpond_pool(16, |pool| pool).await;
        let one = millpond_pool(1, |pool| pool).await;
        rows!(&mut report, "Pool", pool, one, |pool: &Pool<TrivialManager>| {
            pool.counts().waiters
        });
        shelves_and_shards(&mut report).await;
        looks(&mut report, &pool).await;
        clustered(&mut report).await;
        timeouts(&mut report, &one, &object).await;
        unserved(&mut report).await;
    });
    memory(&mut report);
    if report.holds {
        println!("\nall of it holds");
        ExitCode::SUCCESS
    } else {
        println!("\nsomething does not hold: see BROKEN");
        ExitCode::FAILURE
    }
}
