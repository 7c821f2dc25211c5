//! One, two and four threads on one pool of 16: how throughput grows, or does not.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millpond_bench::{contended as pools, thread_runtime, together};
use std::time::Duration;

fn contended(criterion: &mut Criterion) {
    // Its block_on may be called from several threads; the pools need no more of it.
    let runtime = thread_runtime();
    let mut group = criterion.benchmark_group("contended");
    for pool in runtime.block_on(pools(16)) {
        for threads in [1, 2, 4] {
            // One iteration is one turn of each thread.
            group.throughput(Throughput::Elements(threads as u64));
            group.bench_function(BenchmarkId::new(pool.name(), threads), |bencher| {
                bencher.iter_custom(|turns| together(runtime.handle(), &*pool, threads, turns));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = contended
}
criterion_main!(benches);
