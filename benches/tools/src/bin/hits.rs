//! Makes hits of one kind and nothing else, for `scripts/hot-path` to count their instructions.
//!
//! `hits KIND COUNT`, where KIND is one of those below.

use crossbeam_queue::ArrayQueue;
use millpond::cluster::Cluster;
use millpond::{IdleOrder, ObjectPool, Pool};
use millpond_bench::{TrivialManager, everything_by_the_clock, nothing_by_the_clock};
use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::runtime::{Builder, Runtime};

/// The loop whose instructions are counted. The script looks for its name.
#[inline(never)]
fn counted_loop(count: u64, mut hit: impl FnMut()) {
    for _ in 0..count {
        hit();
    }
}

/// Acquires and releases. One poll is all that an executor does for a hit. A macro, so that the
/// future is made where it is polled, as an `await` does it.
macro_rules! poll_once {
    ($acquire:expr) => {
        match pin!($acquire).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(connection) => {
                black_box(&*connection.expect("an idle connection"));
            }
            Poll::Pending => unreachable!("a hit does not wait"),
        }
    };
}

/// The same twice at once: the slot of the one goes through the hot cell, if the order has one, and that of the
/// other is taken from what lies behind it and put back there.
macro_rules! poll_two {
    ($pool:expr) => {{
        let mut cx = Context::from_waker(Waker::noop());
        let one = pin!($pool.acquire()).poll(&mut cx);
        let other = pin!($pool.acquire()).poll(&mut cx);
        let (Poll::Ready(one), Poll::Ready(other)) = (one, other) else {
            unreachable!("a hit does not wait")
        };
        black_box(&*one.expect("an idle connection"));
        black_box(&*other.expect("an idle connection"));
    }};
}

/// Of the length that a host and a port have.
const KEY: &str = "db-5.internal:5432";

/// A cluster of ten nodes, of which one has a connection.
fn cluster(runtime: &Runtime) -> Cluster<String, TrivialManager> {
    let cluster = Cluster::builder().pools(|pool| pool.max_size(16)).build().expect("a cluster");
    for number in 0..10 {
        let key = format!("db-{number}.internal:5432");
        cluster.add_node(key, TrivialManager::default()).expect("a node");
    }
    let connected = runtime.block_on(cluster.acquire(KEY));
    drop(connected.expect("a connection"));
    cluster
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().unwrap_or_default();
    let count = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(0);
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let builder = || Pool::builder(TrivialManager::default()).max_size(16).min_idle(16);
    let pool = runtime.block_on(nothing_by_the_clock(builder()).build()).expect("a pool");
    let kept = runtime.block_on(everything_by_the_clock(builder()).build()).expect("a pool");
    let objects = ObjectPool::new(16, || 0_u64);
    let queue = ArrayQueue::new(16);
    for number in 0..16_u64 {
        assert!(queue.push(Box::new(number)).is_ok(), "the queue has room for 16");
    }
    match kind.as_str() {
        "queue" => counted_loop(count, || {
            let number = queue.pop().expect("a number");
            assert!(queue.push(black_box(number)).is_ok(), "the queue has room");
        }),
        // What the script has to notice.
        "mutex" => {
            let queue = Mutex::new(queue);
            counted_loop(count, || {
                let queue = queue.lock().expect("no panic");
                let number = queue.pop().expect("a number");
                assert!(queue.push(black_box(number)).is_ok(), "the queue has room");
            });
        }
        // And this.
        "clock" => counted_loop(count, || {
            black_box(Instant::now());
            let number = queue.pop().expect("a number");
            assert!(queue.push(black_box(number)).is_ok(), "the queue has room");
        }),
        "object" => counted_loop(count, || {
            black_box(&*objects.acquire_blocking().expect("an idle object"));
        }),
        "blocking" => counted_loop(count, || {
            black_box(&*pool.acquire_blocking().expect("an idle connection"));
        }),
        "try" => counted_loop(count, || {
            black_box(&*pool.try_acquire().expect("an idle connection"));
        }),
        "async" => counted_loop(count, || poll_once!(pool.acquire())),
        "upkeep" => counted_loop(count, || poll_once!(kept.acquire())),
        "recent" | "fifo" | "lifo" => {
            let order = match kind.as_str() {
                "recent" => IdleOrder::Recent,
                "fifo" => IdleOrder::Fifo,
                _ => IdleOrder::Lifo,
            };
            let pool = nothing_by_the_clock(builder().order(order));
            let pool = runtime.block_on(pool.build()).expect("a pool");
            counted_loop(count, || poll_two!(pool));
        }
        "owned" => counted_loop(count, || poll_once!(pool.acquire_owned())),
        "cluster" => {
            let cluster = cluster(&runtime);
            counted_loop(count, || poll_once!(cluster.acquire(KEY)));
        }
        "node" => {
            let node = cluster(&runtime).node(KEY).expect("a node");
            counted_loop(count, || poll_once!(node.acquire()));
        }
        other => {
            eprintln!("'{other}' is not a kind of hit");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
