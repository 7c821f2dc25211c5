//! Millpond's figures, as the tables of the README: `cargo run --release -p millpond-bench --bin
//! figures`. With `--quick` it gives a first impression; with some of the words `waiting`, `hit`,
//! `threads` and `crowds`, only those parts.
//!
//! What is compared runs in turn, and each ratio is the median of the ratios within the rounds (see
//! `rounds.rs`); so the ratios hold on a machine that does other things as well, the times less so.

use millpond_bench::{
    BenchPool, Connection, Rounds, SHAPES, Shape, WaitingPool, alone, contended, disturbed, hits,
    millpond_pool, thread_runtime, together, wait, waiting, worker_runtime,
};
use std::future::Future;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Places in the lists of `millpond_bench`.
const RAW: usize = 0;
const POOL: usize = 1;

/// How much of everything.
struct Effort {
    rounds: usize,
    /// The time that one measurement of hits is to take: less than a time slice, so that even on a
    /// busy machine many are undisturbed.
    sample: Duration,
    /// The time that one load of waiting tasks runs.
    window: Duration,
    /// Rounds of the 100,000 waiters.
    crowds: usize,
}

/// A goal, what was measured, and whether that meets it.
struct Goals(Vec<(String, String, bool)>);

impl Goals {
    fn at_most(&mut self, what: impl Into<String>, mark: f64, measured: f64) {
        self.0.push((
            format!("{}: at most {mark}", what.into()),
            format!("{measured:.2}"),
            measured <= mark,
        ));
    }

    fn at_least(&mut self, what: impl Into<String>, mark: f64, measured: f64) {
        self.0.push((
            format!("{}: at least {mark}", what.into()),
            format!("{measured:.2}"),
            measured >= mark,
        ));
    }

    fn print(&self) {
        println!("\n## Goals\n\n| goal | measured | met |\n|---|--:|---|");
        for (goal, measured, met) in &self.0 {
            println!("| {goal} | {measured} | {} |", if *met { "yes" } else { "**no**" });
        }
    }
}

fn main() {
    let effort = if std::env::args().any(|argument| argument == "--quick") {
        Effort {
            rounds: 5,
            sample: Duration::from_millis(1),
            window: Duration::from_millis(30),
            crowds: 3,
        }
    } else {
        Effort {
            rounds: 25,
            sample: Duration::from_millis(2),
            window: Duration::from_millis(80),
            crowds: 9,
        }
    };
    let wanted = |part: &str| {
        let mut parts = std::env::args().skip(1).filter(|part| !part.starts_with("--")).peekable();
        parts.peek().is_none() || parts.any(|named| named == part)
    };
    let mut goals = Goals(Vec::new());
    let runtime = thread_runtime();
    if wanted("hit") {
        hit(&runtime, &effort, &mut goals);
    }
    if wanted("threads") {
        scaling(&runtime, &effort, &mut goals);
    }
    if wanted("waiting") {
        for shape in SHAPES {
            waits(shape, &effort, &mut goals);
        }
    }
    if wanted("crowds") {
        crowds(&runtime, &effort, &mut goals);
    }
    goals.print();
    let (disturbed, taken) = disturbed();
    println!("\n{disturbed} of {taken} measurements were disturbed by other processes.");
}

/// How many turns fill the sample time.
fn turns_for(runtime: &Runtime, pool: &dyn BenchPool, sample: Duration) -> u64 {
    const PROBE: u64 = 2000;
    let probe = alone(runtime.handle(), pool, PROBE);
    (PROBE as f64 * sample.as_secs_f64() / probe.as_secs_f64()).max(100.0) as u64
}

fn hit(runtime: &Runtime, effort: &Effort, goals: &mut Goals) {
    let pools = runtime.block_on(hits(16));
    let turns: Vec<u64> =
        pools.iter().map(|pool| turns_for(runtime, &**pool, effort.sample)).collect();
    let rounds = Rounds::run(effort.rounds, pools.len(), |who| {
        let took = alone(runtime.handle(), &*pools[who], turns[who]);
        took.as_nanos() as f64 / turns[who] as f64
    });
    println!("\n## A hit: one task, 16 connections\n");
    println!("| | ns | times the raw queue | times `Pool::acquire` |\n|---|--:|--:|--:|");
    for (who, pool) in pools.iter().enumerate() {
        println!(
            "| {} | {:.1} | {:.2} | {:.2} |",
            pool.name(),
            rounds.median(who, |ns| *ns),
            rounds.ratio(who, RAW, |ns| *ns),
            rounds.ratio(who, POOL, |ns| *ns)
        );
    }
    goals.at_most("hit, times the raw queue", 1.4, rounds.ratio(POOL, RAW, |ns| *ns));
    for (who, pool) in pools.iter().enumerate() {
        if ["deadpool", "bb8", "r2d2"].contains(&pool.name()) {
            let what = format!("hit, times faster than {}", pool.name());
            goals.at_least(what, 8.0, rounds.ratio(who, POOL, |ns| *ns));
        }
    }
}

fn scaling(runtime: &Runtime, effort: &Effort, goals: &mut Goals) {
    let pools = runtime.block_on(contended(16));
    let turns: Vec<u64> =
        pools.iter().map(|pool| turns_for(runtime, &**pool, 2 * effort.sample)).collect();
    // One thread and two threads of one pool follow each other: 2 × who, 2 × who + 1.
    let rounds = Rounds::run(effort.rounds, 2 * pools.len(), |entry| {
        let (who, threads) = (entry / 2, 1 + entry % 2);
        let took = together(runtime.handle(), &*pools[who], threads, turns[who]);
        (threads as u64 * turns[who]) as f64 / took.as_secs_f64() / 1e6
    });
    println!("\n## Threads: 16 connections, millions of turns a second\n");
    println!("| | one thread | two threads | ratio |\n|---|--:|--:|--:|");
    for (who, pool) in pools.iter().enumerate() {
        println!(
            "| {} | {:.2} | {:.2} | {:.2} |",
            pool.name(),
            rounds.median(2 * who, |rate| *rate),
            rounds.median(2 * who + 1, |rate| *rate),
            rounds.ratio(2 * who + 1, 2 * who, |rate| *rate)
        );
    }
    let ratio = rounds.ratio(2 * POOL + 1, 2 * POOL, |rate| *rate);
    goals.at_least("two threads, times the work of one", 1.8, ratio);
}

/// One round of one contestant: throughput in millions a second, and waits in µs.
struct Sample {
    rate: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

fn waits(shape: Shape, effort: &Effort, goals: &mut Goals) {
    const PUNCTUAL: usize = 0;
    const PATIENT: usize = 1;
    let Shape { tasks, connections } = shape;
    let runtime = worker_runtime();
    let pools: Vec<Arc<dyn WaitingPool>> = runtime.block_on(waiting(connections));
    let rounds = Rounds::run(effort.rounds, pools.len(), |who| {
        let run = |timed| wait(&runtime, &pools[who], shape, effort.window, timed);
        let rate = run(false).per_second() / 1e6;
        let timed = run(true);
        Sample {
            rate,
            p50: timed.wait(0.5),
            p99: timed.wait(0.99),
            p999: timed.wait(0.999),
            max: timed.wait(1.0),
        }
    });
    println!("\n## Waiting: {tasks} tasks, {connections} connections, two workers\n");
    println!(
        "| | M/s | p50 µs | p99 µs | p99.9 µs | max µs | its throughput / `millpond` | its p99.9 / `millpond` |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    for (who, pool) in pools.iter().enumerate() {
        println!(
            "| {} | {:.2} | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} |",
            pool.name(),
            rounds.median(who, |sample| sample.rate),
            rounds.median(who, |sample| sample.p50),
            rounds.median(who, |sample| sample.p99),
            rounds.median(who, |sample| sample.p999),
            rounds.median(who, |sample| sample.max),
            rounds.ratio(who, PATIENT, |sample| sample.rate),
            rounds.ratio(who, PATIENT, |sample| sample.p999),
        );
    }
    // A pool whose newcomers overtake is no measure for those that keep the line. Of the others,
    // like is compared with like: nobody with a deadline, then all with one.
    for (own, suffix, comparison) in [
        (PATIENT, "", "the best fair peer's"),
        (PUNCTUAL, ", deadline", "the best fair peer's, all with a deadline"),
    ] {
        let is_fair = |who: &usize| {
            ["deadpool", "asyncband"]
                .iter()
                .any(|peer| pools[*who].name().strip_prefix(peer) == Some(suffix))
        };
        let ratios = |figure: fn(&Sample) -> f64| {
            (0..pools.len()).filter(is_fair).map(move |peer| (peer, figure))
        };
        let throughput = ratios(|sample| sample.rate)
            .map(|(peer, figure)| rounds.ratio(own, peer, figure))
            .fold(f64::INFINITY, f64::min);
        let tail = ratios(|sample| sample.p999)
            .map(|(peer, figure)| rounds.ratio(own, peer, figure))
            .fold(0.0, f64::max);
        let what = format!("{tasks} on {connections}");
        goals.at_least(format!("{what}, throughput, times {comparison}"), 1.1, throughput);
        goals.at_most(format!("{what}, p99.9 of the wait, times {comparison}"), 1.1, tail);
    }
}

/// What a crowd of waiters on one connection costs.
#[derive(Clone, Copy)]
struct Crowd {
    /// Nanoseconds for each waiter to park, be served and release to the next.
    each: f64,
    /// Nanoseconds for one in the middle to give up.
    cancel: f64,
}

/// Parks so many waiters behind one guard, cancels some in their midst, and serves the rest.
///
/// The futures are polled by hand: the runtime's own queues would be the larger part of it.
fn crowd<G, F>(waiters: usize, held: G, acquire: impl Fn() -> F) -> Crowd
where
    F: Future<Output = G>,
{
    const CANCELLED: usize = 200;
    let mut cx = Context::from_waker(Waker::noop());
    let mut crowd: Vec<Option<Pin<Box<F>>>> =
        (0..waiters).map(|_| Some(Box::pin(acquire()))).collect();

    let began = Instant::now();
    for waiter in crowd.iter_mut().flatten() {
        assert!(waiter.as_mut().poll(&mut cx).is_pending(), "somebody did not wait");
    }
    let mut took = began.elapsed();

    // The median: a single cancel is shorter than an interrupt.
    let mut cancels: Vec<f64> = (0..CANCELLED)
        .map(|nth| {
            let waiter = &mut crowd[(2 * nth + 1) * waiters / (2 * CANCELLED)];
            let began = Instant::now();
            *waiter = None;
            began.elapsed().as_nanos() as f64
        })
        .collect();
    cancels.sort_by(f64::total_cmp);

    let began = Instant::now();
    drop(held);
    for waiter in crowd.iter_mut().flatten() {
        match waiter.as_mut().poll(&mut cx) {
            Poll::Ready(guard) => drop(black_box(guard)),
            Poll::Pending => panic!("the first in line was not served"),
        }
    }
    took += began.elapsed();
    Crowd { each: took.as_nanos() as f64 / waiters as f64, cancel: cancels[CANCELLED / 2] }
}

fn crowds(runtime: &Runtime, effort: &Effort, goals: &mut Goals) {
    const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
    let objects = millpond::ObjectPool::new(1, Connection::default);
    // Nobody's deadline may pass while the crowd is polled by hand.
    let pool =
        runtime.block_on(millpond_pool(1, |pool| pool.acquire_timeout(Duration::from_secs(3600))));
    let _context = runtime.enter();
    println!("\n## Crowds: waiters on one connection\n");
    println!("| | waiters | ns each | ns to cancel one |\n|---|--:|--:|--:|");
    let mut report = |name: &str, measure: &dyn Fn(usize) -> Crowd| {
        let rounds = Rounds::run(effort.crowds, SIZES.len(), |size| measure(SIZES[size]));
        for (size, waiters) in SIZES.iter().enumerate() {
            println!(
                "| {name} | {waiters} | {:.0} | {:.0} |",
                rounds.median(size, |crowd| crowd.each),
                rounds.median(size, |crowd| crowd.cancel)
            );
        }
        goals.at_most(
            format!("{name}: the cost of each of 100,000 waiters, times that of 10,000"),
            2.0,
            rounds.ratio(2, 1, |crowd| crowd.each),
        );
        goals.at_most(
            format!("{name}: cancelling one of 100,000 waiters, times one of 1,000"),
            5.0,
            rounds.ratio(2, 0, |crowd| crowd.cancel),
        );
    };
    report("`ObjectPool`", &|waiters| {
        let held = hold(objects.acquire());
        crowd(waiters, held, || objects.acquire())
    });
    report("`Pool`", &|waiters| {
        let held = hold(pool.acquire());
        crowd(waiters, held, || pool.acquire())
    });
}

/// Acquires what is known to be idle.
fn hold<G>(acquire: impl Future<Output = G>) -> G {
    match pin!(acquire).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(guard) => guard,
        Poll::Pending => panic!("the connection is not idle"),
    }
}
