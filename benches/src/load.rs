//! The loads: one user alone, several threads together, and more tasks than connections.

use crate::calm::noting_delay;
use crate::pools::{BenchPool, WaitingPool};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::unconstrained;

/// The runtime for loads of one user: the task runs on the calling thread.
///
/// # Panics
///
/// If the runtime cannot be built.
#[must_use]
pub fn thread_runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The runtime for loads of many tasks: two workers, whatever the machine has, so that figures from
/// different machines are about the same thing.
///
/// # Panics
///
/// If the runtime cannot be built.
#[must_use]
pub fn worker_runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// How long `turns` acquires and releases take on the calling thread.
///
/// The loop runs inside one `block_on`, so that the harness adds nothing to a turn. Tokio's budget
/// is switched off for it: some pools would yield to the runtime on every 128th turn and others
/// would not, and that is not what is measured.
#[must_use]
pub fn alone(runtime: &Handle, pool: &dyn BenchPool, turns: u64) -> Duration {
    let began = Instant::now();
    runtime.block_on(unconstrained(pool.turns(turns)));
    began.elapsed()
}

/// How long `threads` threads take for `turns` turns each, from the first one's start to the last
/// one's end.
///
/// # Panics
///
/// If one of the threads does.
#[must_use]
pub fn together(runtime: &Handle, pool: &dyn BenchPool, threads: usize, turns: u64) -> Duration {
    // The threads spin until all of them run. A barrier that puts them to sleep often wakes them on
    // one and the same core, where they share the time until the scheduler moves one away.
    let ready = AtomicUsize::new(0);
    let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    // Some turns first: the thread gets its home shard and warms its caches.
                    let _ = alone(runtime, pool, turns / 10);
                    // One that is kept from starting spoils the measurement as well.
                    noting_delay(|| {
                        ready.fetch_add(1, Ordering::Relaxed);
                        while ready.load(Ordering::Relaxed) < threads {
                            thread::yield_now();
                        }
                        let began = Instant::now();
                        (began, began + alone(runtime, pool, turns))
                    })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread panicked")).collect()
    });
    let began = spans.iter().map(|span| span.0).min().expect("at least one thread");
    let ended = spans.iter().map(|span| span.1).max().expect("at least one thread");
    ended - began
}

/// Polls a future once; whether it is still pending.
pub async fn is_pending<F: Future>(mut future: Pin<&mut F>) -> bool {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

/// Two threads pass one connection to and fro, so that each of `turns` acquires has to wait, but the
/// very first.
///
/// Some pools do not say who waits, so whoever holds the connection knows when the other is about to
/// ask for it, and then gives it the time to park.
pub(crate) fn pass_to_and_fro<G>(turns: u64, acquire: impl Fn() -> G + Sync) {
    const TO_PARK: Duration = Duration::from_micros(200);
    let asking = [AtomicBool::new(false), AtomicBool::new(false)];
    let done = AtomicBool::new(false);
    let take_turns = |own: usize| {
        let other = &asking[1 - own];
        let until = |wish: bool| {
            while other.load(Ordering::SeqCst) != wish && !done.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        };
        for _ in 0..turns / 2 {
            asking[own].store(true, Ordering::SeqCst);
            let held = acquire();
            asking[own].store(false, Ordering::SeqCst);
            until(true);
            thread::sleep(TO_PARK);
            drop(held);
            // Not before the other has it: in some pools a newcomer overtakes.
            until(false);
        }
        done.store(true, Ordering::SeqCst);
    };
    thread::scope(|scope| {
        scope.spawn(|| take_turns(0));
        scope.spawn(|| take_turns(1));
    });
}

/// How many tasks share how many connections.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Tasks, each of which acquires, yields once, and releases, over and over.
    pub tasks: usize,
    /// Connections.
    pub connections: usize,
}

/// A small service and a large one, both with far more tasks than connections.
pub const SHAPES: [Shape; 2] =
    [Shape { tasks: 64, connections: 8 }, Shape { tasks: 1000, connections: 50 }];

const WARMING_UP: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

/// What a task of [`wait`] takes down.
#[derive(Debug)]
pub struct Log {
    phase: Arc<AtomicU8>,
    timed: bool,
    turns: u64,
    waits: Vec<u32>,
}

impl Log {
    /// The time before an acquire, if waits are timed. Reading the clock twice a turn costs all
    /// pools the same, and so hides a part of what sets them apart: throughput is measured without.
    pub(crate) fn begin(&self) -> Option<Instant> {
        self.timed.then(Instant::now)
    }

    /// Takes down one turn; false when the time is up.
    pub(crate) fn note(&mut self, waited: Option<Duration>) -> bool {
        let phase = self.phase.load(Ordering::Relaxed);
        if phase == COUNTING {
            self.turns += 1;
            if let Some(waited) = waited {
                self.waits.push(u32::try_from(waited.as_nanos()).unwrap_or(u32::MAX));
            }
        }
        phase != OVER
    }
}

/// What came of a load of waiting tasks.
#[derive(Debug)]
pub struct Outcome {
    turns: u64,
    took: Duration,
    /// Nanoseconds, in ascending order.
    waits: Vec<u32>,
}

impl Outcome {
    /// Acquires and releases per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.turns as f64 / self.took.as_secs_f64()
    }

    /// Seconds per acquire and release.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.took.as_secs_f64() / self.turns as f64
    }

    /// The wait, in microseconds, that this share of all acquires stayed within.
    #[must_use]
    pub fn wait(&self, share: f64) -> f64 {
        let last = self.waits.len() - 1;
        f64::from(self.waits[(share * last as f64).round() as usize]) / 1000.0
    }
}

/// Lets the tasks of a shape take turns for a while, timing each wait or not.
///
/// Counting begins when all tasks have long been at it and ends while all of them still are, so
/// that neither the start nor the last stragglers count.
///
/// # Panics
///
/// If one of the tasks does.
#[must_use]
pub fn wait(
    runtime: &Runtime,
    pool: &Arc<dyn WaitingPool>,
    shape: Shape,
    window: Duration,
    timed: bool,
) -> Outcome {
    let phase = Arc::new(AtomicU8::new(WARMING_UP));
    let tasks: Vec<_> = (0..shape.tasks)
        .map(|_| {
            let pool = pool.clone();
            // Room enough for most: growing in the middle would show as a wait of the others.
            let waits = Vec::with_capacity(if timed { 4096 } else { 0 });
            let log = Log { phase: phase.clone(), timed, turns: 0, waits };
            runtime.spawn(async move { pool.take_turns(log).await })
        })
        .collect();
    thread::sleep(window / 5);
    let began = Instant::now();
    phase.store(COUNTING, Ordering::Relaxed);
    thread::sleep(window);
    phase.store(OVER, Ordering::Relaxed);
    let took = began.elapsed();

    let mut outcome = Outcome { turns: 0, took, waits: Vec::new() };
    runtime.block_on(async {
        for task in tasks {
            let log = task.await.expect("a task panicked");
            outcome.turns += log.turns;
            outcome.waits.extend(log.waits);
        }
    });
    if outcome.turns == 0 {
        // The machine gave us nothing at all in this window.
        return wait(runtime, pool, shape, window, timed);
    }
    outcome.waits.sort_unstable();
    outcome
}
