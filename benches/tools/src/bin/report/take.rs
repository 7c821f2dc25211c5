//! Takes the figures. The loads and the rounds are those of the package; what is compared runs in
//! turn, and each ratio is the median of the ratios within the rounds.

use crate::data::{
    Allocating, Allocations, Data, Hit, Hits, Scaling, Side, Threads, Throughput, Wait, Waiting,
    Waits, rounded,
};
use millpond_bench::{
    BenchPool, Effort, RAW, Rounds, SHAPES, Shape, WaitingPool, contended, cores, count_boxes,
    count_hits, count_waits, disturbed, hits, thread_runtime, time_hits, time_threads, wait,
    waiting, worker_runtime,
};
use std::sync::Arc;
use tokio::runtime::Runtime;

/// Connections where nobody waits, unless there are more threads.
const CONNECTIONS: usize = 16;

/// The interfaces of the bench of hits that are in its picture; the others differ from one of them
/// by little.
const HITS: [&str; 10] = [
    "raw `ArrayQueue` pop + push",
    "`Pool::try_acquire()`",
    "`Pool::acquire().await`",
    "`Pool::acquire_owned().await`",
    "`Pool::acquire_blocking()`",
    "`ObjectPool::acquire().await`",
    "asyncband",
    "deadpool",
    "bb8",
    "r2d2",
];

/// Those whose waits are compared, without a deadline and with one, and their names in the picture.
/// Millpond is first: the others are measured by it.
const WAITS: [[(&str, &str); 3]; 2] = [
    [("millpond", "Millpond"), ("asyncband", "asyncband"), ("deadpool", "deadpool")],
    [
        ("millpond, deadline", "Millpond"),
        ("asyncband, deadline", "asyncband"),
        ("deadpool, deadline", "deadpool"),
    ],
];

/// What the curves of waits are drawn through.
const PERCENTILES: [f64; 10] = [50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 99.95, 99.99];

/// All of it, saying what it is at. Allocations come last, because a program that has begun to count
/// them goes on with it.
pub fn take(effort: &Effort) -> Data {
    let runtime = thread_runtime();
    eprintln!("hits …");
    let hit = take_hits(&runtime, effort);
    eprintln!("threads …");
    let threads = take_threads(&runtime, effort);
    eprintln!("waits …");
    let waiting = take_waits(effort);
    eprintln!("allocations …");
    let allocations = take_allocations(&runtime);
    let (disturbed_measurements, measurements) = disturbed();
    Data {
        cores: cores(),
        rounds: effort.rounds,
        measurements,
        disturbed_measurements,
        hit,
        threads,
        waiting,
        allocations,
    }
}

fn take_hits(runtime: &Runtime, effort: &Effort) -> Hits {
    let pools = pictured(runtime.block_on(hits(CONNECTIONS)));
    let rounds = time_hits(runtime, &pools, effort);
    let hit = |(who, pool): (usize, &Arc<dyn BenchPool>)| Hit {
        name: plain(pool.name()),
        side: side(pool.name()),
        acquire_and_release_ns: rounded(rounds.median(who, |ns| *ns)),
        times_bare_queue: rounded(rounds.ratio(who, RAW, |ns| *ns)),
    };
    Hits { connections: CONNECTIONS, pools: pools.iter().enumerate().map(hit).collect() }
}

fn take_threads(runtime: &Runtime, effort: &Effort) -> Threads {
    let threads = numbers_of_threads(2 * cores());
    let connections = threads.iter().fold(CONNECTIONS, |most, &threads| most.max(threads));
    let pools = runtime.block_on(contended(connections));
    let rounds = time_threads(runtime, &pools, &threads, effort);
    let scaling = |(who, pool): (usize, &Arc<dyn BenchPool>)| {
        let first = who * threads.len();
        let point = |(nth, &threads): (usize, &usize)| Throughput {
            threads,
            million_acquires_per_second: rounded(rounds.median(first + nth, |rate| *rate)),
            times_one_thread: rounded(rounds.ratio(first + nth, first, |rate| *rate)),
        };
        Scaling {
            name: plain(pool.name()),
            side: side(pool.name()),
            points: threads.iter().enumerate().map(point).collect(),
        }
    };
    Threads { connections, pools: pools.iter().enumerate().map(scaling).collect() }
}

/// From one thread to `most`: all of them while they are few, then in steps of about a half.
fn numbers_of_threads(most: usize) -> Vec<usize> {
    let steps = [1, 2, 3].into_iter().chain((2..).flat_map(|power| [1 << power, 3 << (power - 1)]));
    steps.take_while(|&threads| threads <= most.max(2)).collect()
}

fn take_waits(effort: &Effort) -> Waiting {
    let shape = SHAPES[0];
    let Shape { tasks, connections } = shape;
    let runtime = worker_runtime();
    let mut all = runtime.block_on(waiting(connections));
    let names = WAITS.as_flattened();
    all.retain(|pool| names.iter().any(|(name, _)| *name == pool.name()));
    let rounds = Rounds::run(effort.rounds, all.len(), |who| {
        let outcome = wait(&runtime, &all[who], shape, effort.window, true);
        PERCENTILES.map(|percentile| outcome.wait(percentile / 100.0))
    });
    let place = |name: &str| {
        let is_it = |pool: &Arc<dyn WaitingPool>| pool.name() == name;
        all.iter().position(is_it).unwrap_or_else(|| panic!("BUG: no pool is called {name}"))
    };
    let [without_deadline, with_deadline_of_5_s] = WAITS.map(|like| {
        let own = place(like[0].0);
        let waits = |(name, title): (&str, &str)| {
            let who = place(name);
            let point = |(nth, &percentile): (usize, &f64)| Wait {
                percentile,
                wait_us: rounded(rounds.median(who, |waits| waits[nth])),
                times_millpond: rounded(rounds.ratio(who, own, |waits| waits[nth])),
            };
            Waits {
                name: title.to_owned(),
                side: side(name),
                curve: PERCENTILES.iter().enumerate().map(point).collect(),
            }
        };
        like.map(waits).into()
    });
    let workers = runtime.metrics().num_workers();
    Waiting { tasks, connections, workers, without_deadline, with_deadline_of_5_s }
}

fn take_allocations(runtime: &Runtime) -> Allocations {
    let many = pictured(runtime.block_on(hits(CONNECTIONS)));
    let one = pictured(runtime.block_on(hits(1)));
    let allocating = |(many, one): (&Arc<dyn BenchPool>, &Arc<dyn BenchPool>)| {
        // Those on which nobody can wait are not compared.
        let waits = count_waits(runtime, &**one)?;
        Some(Allocating {
            name: plain(many.name()),
            side: side(many.name()),
            allocations_per_acquire_and_release: rounded(count_hits(runtime, &**many)),
            allocations_per_wait: rounded(waits),
        })
    };
    let allocations_per_box = rounded(count_boxes());
    let pools = many.iter().zip(&one).filter_map(allocating).collect();
    Allocations { allocations_per_box, pools }
}

/// Those of the bench of hits that are in its picture, in its order.
fn pictured(pools: Vec<Arc<dyn BenchPool>>) -> Vec<Arc<dyn BenchPool>> {
    let find = |name: &str| {
        let found = pools.iter().find(|pool| pool.name() == name);
        found.unwrap_or_else(|| panic!("BUG: no pool is called {name}")).clone()
    };
    HITS.map(find).into()
}

/// A name as it is in a picture: short, and without the marks that make it code in a table.
fn plain(name: &str) -> String {
    match side(name) {
        Side::BareQueue => "bare ArrayQueue".to_owned(),
        Side::Millpond | Side::Peer => name.replace('`', ""),
    }
}

fn side(name: &str) -> Side {
    if name.starts_with("raw") {
        Side::BareQueue
    } else if name.starts_with("millpond") || name.contains("Pool::") {
        Side::Millpond
    } else {
        Side::Peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn threads_are_counted_up_to_twice_the_cores() {
        assert_eq!(numbers_of_threads(2), [1, 2]);
        assert_eq!(numbers_of_threads(4), [1, 2, 3, 4]);
        assert_eq!(numbers_of_threads(32), [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]);
    }

    #[test]
    fn everybody_is_on_a_side() {
        let sides = HITS.map(side);
        let count = |side| sides.iter().filter(|each| **each == side).count();
        assert_eq!([Side::BareQueue, Side::Millpond, Side::Peer].map(count), [1, 5, 4]);
        for like in WAITS {
            assert_eq!(like.map(|(name, _)| side(name)), [Side::Millpond, Side::Peer, Side::Peer]);
        }
    }

    #[test]
    fn all_that_is_measured_can_be_read_again() {
        let short = Duration::from_millis(1);
        let data = take(&Effort { rounds: 1, sample: short, window: 10 * short, crowds: 1 });
        assert_eq!(Data::parse("measured", &data.text()).expect("its own text"), data);
        let of = |name: &str| {
            let mut pools = data.allocations.pools.iter();
            let pool = pools.find(|pool| pool.name == name).expect("it was counted");
            [pool.allocations_per_acquire_and_release, pool.allocations_per_wait]
        };
        assert_eq!(of("Pool::acquire().await"), [0.0, 0.0]);
    }
}
