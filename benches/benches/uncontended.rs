//! One task, one pool of 16, nobody else: what an acquire and a release cost when they hit.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millpond_bench::{alone, clusters, hits, thread_runtime};
use std::time::Duration;

fn uncontended(criterion: &mut Criterion) {
    let runtime = thread_runtime();
    let mut group = criterion.benchmark_group("uncontended");
    group.throughput(Throughput::Elements(1));
    for pool in runtime.block_on(hits(16)) {
        group.bench_function(pool.name(), |bencher| {
            bencher.iter_custom(|turns| alone(runtime.handle(), &*pool, turns));
        });
    }
}

/// By way of a cluster, which looks the node up first.
fn clustered(criterion: &mut Criterion) {
    let runtime = thread_runtime();
    let mut group = criterion.benchmark_group("cluster");
    group.throughput(Throughput::Elements(1));
    for pool in runtime.block_on(clusters(16)) {
        group.bench_function(pool.name(), |bencher| {
            bencher.iter_custom(|turns| alone(runtime.handle(), &*pool, turns));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = uncontended, clustered
}
criterion_main!(benches);
