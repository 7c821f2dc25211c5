//! Millpond's figures, as the tables of the README: `cargo run --release -p millpond-tools --bin
//! figures`. It exits with 1 if a goal was missed. With `--quick` it gives a first impression; with some of the words `waiting`, `hit`,
//! `threads`, `crowds`, `cluster` and `upkeep`, only those parts.
//!
//! What is compared runs in turn, and each ratio is the median of the ratios within the rounds (see
//! `rounds.rs`); so the ratios hold on a machine that does other things as well, the times less so.

use millpond::IdleOrder;
use millpond_bench::{
    BenchPool, Connection, Effort, POOL, RAW, Rounds, SHAPES, Shape, WaitingPool, clusters,
    contended, contended_clusters, disturbed, everything_by_the_clock, hits, millpond_pool,
    thread_runtime, time_hits, time_threads, upkept, wait, waiting, worker_runtime,
};
use std::future::Future;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

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

    /// Answers whether all are met.
    fn print(&self) -> bool {
        println!("\n## Goals\n\n| goal | measured | met |\n|---|--:|---|");
        for (goal, measured, met) in &self.0 {
            println!("| {goal} | {measured} | {} |", if *met { "yes" } else { "**no**" });
        }
        self.0.iter().all(|(_, _, met)| *met)
    }
}

fn main() -> ExitCode {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let effort = if quick { Effort::QUICK } else { Effort::FULL };
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
    if wanted("cluster") {
        cluster(&runtime, &effort, &mut goals);
    }
    if wanted("upkeep") {
        upkeep(&runtime, &effort, &mut goals);
    }
    let all_met = goals.print();
    let (disturbed, taken) = disturbed();
    println!("\n{disturbed} of {taken} measurements were disturbed by other processes.");
    if all_met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn hit(runtime: &Runtime, effort: &Effort, goals: &mut Goals) {
    let pools = runtime.block_on(hits(16));
    let rounds = time_hits(runtime, &pools, effort);
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

/// What a hit costs that looks its node up, against the same without: one pool, or, for nodes that are
/// used by turns, as many pools by turns. How much more than `acquire_owned` it takes, whose guard borrows
/// nothing either, stands there too.
fn cluster(runtime: &Runtime, effort: &Effort, goals: &mut Goals) {
    const OWNED: usize = 2;
    const BY_TURNS: usize = 3;
    /// Where the parts of a contestant lie in memory makes up to 8 ns of its hit, on some processors.
    /// So all are built several times, each time elsewhere.
    const LAYOUTS: usize = 7;
    let mut elsewhere = Vec::new();
    let mut pools = Vec::new();
    let each = Effort { rounds: effort.rounds.div_ceil(3), ..*effort };
    let rounds = (0..LAYOUTS).map(|layout| {
        elsewhere.push(vec![0_u8; 1 + 1_200 * layout]);
        pools = runtime.block_on(clusters(16));
        time_hits(runtime, &pools, &each)
    });
    let rounds = rounds.reduce(Rounds::and).expect("some layouts");
    println!("\n## A hit of a cluster: one task, 16 connections\n");
    println!("| | ns | times the raw queue | ns more than `acquire` | than `acquire_owned` |");
    println!("|---|--:|--:|--:|--:|");
    let ns = |who| rounds.median(who, |ns| *ns);
    for (who, pool) in pools.iter().enumerate() {
        let (name, times) = (pool.name(), rounds.ratio(who, RAW, |ns| *ns));
        let bare = if name.ends_with("by turns") { BY_TURNS } else { POOL };
        let (more, more_than_owned) = (ns(who) - ns(bare), ns(who) - ns(OWNED));
        println!("| {name} | {:.1} | {times:.2} | {more:.1} | {more_than_owned:.1} |", ns(who));
        if name.starts_with("`Cluster::acquire`") || name.starts_with("`NodeHandle") {
            goals.at_most(format!("{name}, ns more for a hit"), 15.0, more);
        }
    }
    println!("\n## Threads at a cluster: 16 connections a node, millions of turns a second\n");
    let pools = runtime.block_on(contended_clusters(16));
    let ratios = two_threads(runtime, &pools, effort);
    for (pool, ratio) in pools.iter().zip(ratios) {
        goals.at_least(format!("{}, two threads, times the work of one", pool.name()), 1.8, ratio);
    }
}

/// What a hit, an idle pool and a parked crowd cost when the pool does everything by the clock.
fn upkeep(runtime: &Runtime, effort: &Effort, goals: &mut Goals) {
    const NOTHING: usize = 1;
    const EVERYTHING: usize = 2;
    let pools = runtime.block_on(upkept(16));
    let rounds = time_hits(runtime, &pools, effort);
    println!("\n## By the clock: a hit, one task, 16 connections\n");
    println!("| | ns | times the raw queue |\n|---|--:|--:|");
    for (who, pool) in pools.iter().enumerate() {
        let (ns, times) = (rounds.median(who, |ns| *ns), rounds.ratio(who, RAW, |ns| *ns));
        println!("| {} | {ns:.1} | {times:.2} |", pool.name());
    }
    let ns = |who| rounds.median(who, |ns| *ns);
    goals.at_most("everything by the clock, ns more for a hit", 10.0, ns(EVERYTHING) - ns(NOTHING));
    goals.at_most(
        "everything by the clock, times the raw queue",
        1.4,
        rounds.ratio(EVERYTHING, RAW, |ns| *ns),
    );

    println!("\n## By the clock: a look at 10,000 idle connections\n");
    println!("| order | ms | p99.9 of the acquires meanwhile, µs |\n|---|--:|--:|");
    for order in [IdleOrder::Recent, IdleOrder::Fifo, IdleOrder::Lifo] {
        let (look, slowest) = look_at_many(order, effort.rounds);
        println!("| {order:?} | {look:.2} | {slowest:.2} |");
        goals.at_most(format!("a look at 10,000 idle connections, {order:?}, ms"), 5.0, look);
    }
    let share = parked_crowd();
    println!("\n1,000 parked waiters: {share:.2} % of a core.");
    goals.at_most("1,000 parked waiters, % of a core", 1.0, share);
}

/// Milliseconds of one look of the reaper at 10,000 idle connections, half of which have to be ended
/// in it, and the p99.9 of the acquires that another thread makes meanwhile in µs (of the very
/// longest, the scheduler has its part); medians.
fn look_at_many(order: IdleOrder, rounds: usize) -> (f64, f64) {
    const IDLE: usize = 10_000;
    let runtime = worker_runtime();
    let sample = || {
        runtime.block_on(async {
            let pool = millpond_pool(IDLE, |pool| {
                everything_by_the_clock(pool)
                    .min_idle(IDLE / 2)
                    .order(order)
                    .max_connecting(64)
                    .idle_timeout(Duration::from_nanos(1))
                    .maintenance_interval(Duration::from_secs(3600))
            });
            let pool = pool.await;
            pool.warm_up(IDLE).await.expect("connections");
            // The first look sees them for the first time, so that they count as idle from there.
            pool.maintenance().run_once().await;
            let done = Arc::new(AtomicBool::new(false));
            let beside = tokio::spawn({
                let (pool, done) = (pool.clone(), done.clone());
                async move {
                    let mut took = Vec::with_capacity(1 << 20);
                    while !done.load(Ordering::SeqCst) || took.len() < 1_000 {
                        let began = Instant::now();
                        drop(black_box(pool.acquire().await.expect("a connection")));
                        took.push(began.elapsed());
                    }
                    took.sort();
                    took[took.len() * 999 / 1000]
                }
            });
            let began = Instant::now();
            pool.maintenance().run_once().await;
            let took = began.elapsed();
            done.store(true, Ordering::SeqCst);
            let slowest = beside.await.expect("the acquires go on");
            assert!(pool.metrics().closed.idle > 0, "nothing was ended");
            (took.as_secs_f64() * 1e3, slowest.as_secs_f64() * 1e6)
        })
    };
    // No ratios here, so nothing has to take turns; and each is long enough to outlast a disturbance.
    let (mut looks, mut slowest): (Vec<f64>, Vec<f64>) =
        (0..rounds.min(9)).map(|_| sample()).unzip();
    looks.sort_by(f64::total_cmp);
    slowest.sort_by(f64::total_cmp);
    (looks[looks.len() / 2], slowest[slowest.len() / 2])
}

/// How much of a core 1,000 parked waiters use, in per cent.
fn parked_crowd() -> f64 {
    const WINDOW: Duration = Duration::from_secs(3);
    let runtime = worker_runtime();
    runtime.block_on(async {
        let pool = millpond_pool(1, everything_by_the_clock).await;
        let held = pool.acquire().await.expect("a connection");
        let hour = Duration::from_secs(3600);
        let waiters: Vec<_> = (0..1_000)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move { pool.acquire_timeout(hour).await.is_ok() })
            })
            .collect();
        while pool.counts().waiters < waiters.len() {
            tokio::task::yield_now().await;
        }
        let before = cpu_ticks();
        tokio::time::sleep(WINDOW).await;
        let used = cpu_ticks() - before;
        drop(held);
        for waiter in waiters {
            assert!(waiter.await.expect("a waiter"), "a waiter was not served");
        }
        // The kernel counts in hundredths of a second.
        used as f64 / WINDOW.as_secs_f64()
    })
}

/// Hundredths of a second that this process has used.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux's account of this process");
    // The name, in parentheses, may hold spaces; what follows begins with the third field.
    let fields = stat.rsplit(')').next().expect("fields").split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

fn scaling(runtime: &Runtime, effort: &Effort, goals: &mut Goals) {
    println!("\n## Threads: 16 connections, millions of turns a second\n");
    let pools = runtime.block_on(contended(16));
    let ratios = two_threads(runtime, &pools, effort);
    goals.at_least("two threads, times the work of one", 1.8, ratios[POOL]);
}

/// How much more two threads do than one, pool by pool.
fn two_threads(runtime: &Runtime, pools: &[Arc<dyn BenchPool>], effort: &Effort) -> Vec<f64> {
    // One thread and two threads of one pool follow each other: 2 × who, 2 × who + 1.
    let rounds = time_threads(runtime, pools, &[1, 2], effort);
    println!("| | one thread | two threads | ratio |\n|---|--:|--:|--:|");
    let ratio = |who: usize| rounds.ratio(2 * who + 1, 2 * who, |rate| *rate);
    for (who, pool) in pools.iter().enumerate() {
        println!(
            "| {} | {:.2} | {:.2} | {:.2} |",
            pool.name(),
            rounds.median(2 * who, |rate| *rate),
            rounds.median(2 * who + 1, |rate| *rate),
            ratio(who)
        );
    }
    (0..pools.len()).map(ratio).collect()
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
