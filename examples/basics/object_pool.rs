//! Buffers shared by threads, without any runtime.
//!
//! ```sh
//! cargo run --release --example object_pool
//! ```

use millpond::ObjectPool;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

const BUFFERS: usize = 4;
const THREADS: usize = 16;
const RECORDS: usize = 10_000;

fn main() -> io::Result<()> {
    // Four buffers of 4 KiB for 16 threads. `reset` runs when a buffer comes back.
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let pool = ObjectPool::builder(BUFFERS)
        .reset(|buffer: &mut String| {
            buffer.clear();
            buffer.capacity() <= 64 << 10 // one that has grown too large is not kept
        })
        .build(|| {
            MADE.fetch_add(1, Relaxed);
            String::with_capacity(4 << 10)
        })
        .map_err(io::Error::other)?;

    let (pool, written) = (&pool, &AtomicUsize::new(0));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for record in 0..RECORDS {
                    // Waits until one of the four is free; fails only once the pool is closed.
                    let Ok(mut buffer) = pool.acquire_blocking() else { return };
                    assert!(buffer.is_empty(), "the last user's text is still there");
                    let _ = writeln!(buffer, "thread {thread:>2}, record {record:>5}");
                    written.fetch_add(buffer.len(), Relaxed);
                } // the buffer goes back
            });
        }
    });

    let mut out = io::stdout();
    writeln!(out, "threads       {THREADS:>10}")?;
    writeln!(out, "records       {:>10}", THREADS * RECORDS)?;
    writeln!(out, "bytes written {:>10}", written.load(Relaxed))?;
    writeln!(out, "buffers made  {:>10}", MADE.load(Relaxed))?;
    writeln!(out, "now idle      {:>10}", pool.counts().idle)
}
