//! More tasks than connections, two worker threads, one yield to the runtime while holding:
//! throughput, and then how long each acquire waited.

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use millpond_bench::{SHAPES, Shape, wait, waiting as pools, worker_runtime};
use std::time::Duration;

/// How long the tasks run for one sample.
const SAMPLE: Duration = Duration::from_millis(20);
/// How long they run for the table of waits.
const WINDOW: Duration = Duration::from_millis(500);

fn waiting(criterion: &mut Criterion) {
    let runtime = worker_runtime();
    let mut group = criterion.benchmark_group("waiting");
    group.throughput(Throughput::Elements(1)).sampling_mode(SamplingMode::Flat);
    let mut tables = String::new();
    for shape in SHAPES {
        let Shape { tasks, connections } = shape;
        tables += &format!(
            "\n{tasks} tasks, {connections} connections: the wait of each acquire, in µs\n\
             {:<24}{:>10}{:>10}{:>10}{:>10}\n",
            "", "p50", "p99", "p99.9", "max"
        );
        for pool in runtime.block_on(pools(connections)) {
            let name = BenchmarkId::new(format!("{tasks} on {connections}"), pool.name());
            group.bench_function(name, |bencher| {
                // A sample is a window of fixed length, and its mean time stands for every turn:
                // a fixed number of turns would end with a few stragglers that wait for nobody.
                bencher.iter_custom(|turns| {
                    let outcome = wait(&runtime, &pool, shape, SAMPLE, false);
                    Duration::from_secs_f64(outcome.seconds() * turns as f64)
                });
            });
            let outcome = wait(&runtime, &pool, shape, WINDOW, true);
            tables += &format!("{:<24}", pool.name());
            for share in [0.5, 0.99, 0.999, 1.0] {
                tables += &format!("{:>10.1}", outcome.wait(share));
            }
            tables.push('\n');
        }
    }
    group.finish();
    println!("{tables}");
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_secs(1));
    targets = waiting
}
criterion_main!(benches);
