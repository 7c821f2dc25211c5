//! What the integration tests share: conditions awaited with a deadline, wakers that count, a
//! thread that samples an invariant, a manager that does as it is told (`manager.rs`), throwaway
//! servers (`servers`), a proxy that does what networks do (`proxy.rs`), and what tests of backends have in
//! common (`backends.rs`).
//!
//! Not here: any test.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of this")]
#![allow(clippy::unwrap_used, reason = "these are tests, though clippy only sees their helpers")]

#[cfg(feature = "tokio")]
mod backends;
#[cfg(feature = "tokio")]
mod books;
#[cfg(feature = "tokio")]
mod manager;
#[cfg(feature = "tokio")]
mod proxy;
#[cfg(all(unix, feature = "tokio"))]
mod servers;

#[cfg(feature = "tokio")]
pub use self::backends::{Nowhere, at_rest, given_up_after, given_up_at_wake, is_whole, refusal};
#[cfg(feature = "tokio")]
pub use self::books::{balanced, balanced_blocking, hush_scripted_panics};
#[cfg(feature = "tokio")]
pub use self::manager::{Act, Conn, Ledger, Script, TestError, TestManager};
#[cfg(feature = "tokio")]
pub use self::proxy::Proxy;
#[cfg(all(unix, feature = "tokio"))]
pub use self::servers::{Browser, Mariadb, Postgres, Redis, tool};

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long anything may take that a test waits for, in real time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// By how much a loaded machine may be late where real time is measured.
pub const SLACK: Duration = Duration::from_secs(4);

/// Awaits a condition: lets other tasks run, then lets time pass in steps of a millisecond (which a
/// paused clock takes at once). Panics, naming `what`, after [`PATIENCE`] of real time or 200 s of
/// the paused clock.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let began = (Instant::now(), tokio::time::Instant::now());
        for _ in 0..64 {
            if condition() {
                return;
            }
            tokio::task::yield_now().await;
        }
        while !condition() {
            let late = began.0.elapsed() > PATIENCE || began.1.elapsed().as_secs() > 200;
            assert!(!late, "{caller}: still not: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Lets all other tasks run until they have nothing to do; a paused clock stands still meanwhile.
pub async fn turns() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// The same as [`eventually`] for a thread without a runtime.
#[track_caller]
pub fn eventually_blocking(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "still not: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Joins a thread, or panics after [`PATIENCE`]; a panic of the thread goes on here.
#[track_caller]
pub fn join<T>(thread: JoinHandle<T>) -> T {
    eventually_blocking("the thread has ended", || thread.is_finished());
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Joins a task, or panics after [`PATIENCE`] of real time; a panic of the task goes on here. Not
/// for a paused clock, which would run away while other threads work.
pub async fn joined<T>(task: tokio::task::JoinHandle<T>) -> T {
    match tokio::time::timeout(PATIENCE, task).await.expect("the task has not ended") {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A waker that counts how often it was woken.
#[derive(Default)]
pub struct Wakes(AtomicUsize);

impl Wakes {
    /// The counter, and a waker for it.
    pub fn new() -> (Arc<Self>, Waker) {
        let wakes = Arc::new(Self::default());
        (wakes.clone(), wakes.into())
    }

    /// How often the waker was woken.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Polls a future once, with a waker that does nothing.
pub fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    poll_with(future, Waker::noop())
}

/// Polls a future once, with this waker.
pub fn poll_with<F: Future + ?Sized>(future: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(waker))
}

/// Polls a future to its end, or drops it after its first `polls` polls and one more; between them it
/// is woken as ever.
pub async fn cut_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let (mut future, mut left) = (std::pin::pin!(future), polls);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// A thread that checks something over and over until it is stopped.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Sampler {
    /// Starts calling `check`, which panics if it finds something wrong.
    pub fn start(mut check: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut samples = 0;
                while !stop.load(Ordering::SeqCst) || samples == 0 {
                    check();
                    samples += 1;
                    std::thread::yield_now();
                }
                samples
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops, and goes on with the panic of `check` if there was one. Answers how often it looked.
    pub fn stop(mut self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        join(self.thread.take().expect("stopped once"))
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// A small random number generator, for tests that do random things: the same seed, the same run.
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        // xorshift64*, the upper half.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize % limit
    }
}
