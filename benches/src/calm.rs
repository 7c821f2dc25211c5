//! Notices when other processes disturb a measurement.
//!
//! On Linux each thread knows how long it has stood ready without a core to run on. That is time that
//! somebody else had, or that two threads of ours shared one core; a measurement with more than a
//! little of it says nothing about a pool. Elsewhere every measurement counts as undisturbed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Nanoseconds that threads which have ended since were kept waiting.
static ENDED: AtomicU64 = AtomicU64::new(0);
/// Measurements that stayed disturbed, and all of them.
static DISTURBED: AtomicUsize = AtomicUsize::new(0);
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Runs `measure` again until it was not disturbed; after eight times, settles for the best. Says
/// whether the result is undisturbed.
pub(crate) fn calm<M>(mut measure: impl FnMut() -> M) -> (M, bool) {
    const ATTEMPTS: u32 = 8;
    /// The share of the time for which our threads, taken together, may have been kept waiting.
    const TOLERABLE: f64 = 0.03;

    let mut best: Option<(f64, M)> = None;
    for _ in 0..ATTEMPTS {
        let (before, began) = (delay(), Instant::now());
        let sample = measure();
        let took = began.elapsed().as_nanos() as f64;
        let share = delay().saturating_sub(before) as f64 / took;
        if best.as_ref().is_none_or(|(least, _)| share < *least) {
            best = Some((share, sample));
        }
        if share < TOLERABLE {
            break;
        }
    }
    let (share, sample) = best.expect("at least one attempt");
    TAKEN.fetch_add(1, Ordering::Relaxed);
    if share >= TOLERABLE {
        DISTURBED.fetch_add(1, Ordering::Relaxed);
    }
    (sample, share < TOLERABLE)
}

/// How many measurements stayed disturbed, of how many.
#[must_use]
pub fn disturbed() -> (usize, usize) {
    (DISTURBED.load(Ordering::Relaxed), TAKEN.load(Ordering::Relaxed))
}

/// Runs `work` on a thread that will have ended when the measurement does, and takes its delays
/// down.
pub(crate) fn noting_delay<T>(work: impl FnOnce() -> T) -> T {
    let own = Path::new("/proc/thread-self/schedstat");
    let before = delay_in(own);
    let done = work();
    ENDED.fetch_add(delay_in(own).saturating_sub(before), Ordering::Relaxed);
    done
}

/// How long the threads of this process that are alive have run so far, in the program or in the
/// kernel for it; zero where that is not to be had.
#[must_use]
pub fn run_time() -> Duration {
    Duration::from_nanos(threads().map(|thread| number_in(&thread, 0)).sum())
}

/// How long all threads of this process have been kept waiting so far, in nanoseconds.
fn delay() -> u64 {
    let alive: u64 = threads().map(|thread| delay_in(&thread)).sum();
    alive + ENDED.load(Ordering::Relaxed)
}

fn delay_in(schedstat: &Path) -> u64 {
    number_in(schedstat, 1)
}

/// What the kernel tells of each thread that is alive.
fn threads() -> impl Iterator<Item = PathBuf> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    threads.map(|thread| thread.path().join("schedstat"))
}

/// One of the three numbers: run time, delay, time slices.
fn number_in(schedstat: &Path, place: usize) -> u64 {
    let text = fs::read_to_string(schedstat).unwrap_or_default();
    text.split_whitespace().nth(place).and_then(|number| number.parse().ok()).unwrap_or(0)
}
