//! Random operations on pools with one shard, compared with a plain model after each of them.
//!
//! `ARBTEST_BUDGET_MS` says how long (default: 2,000); `ARBTEST_SEED` runs the one case that a
//! failure has named.
//!
//! Not here: the model (`model/mod.rs`), which the fuzz target shares.

#[path = "model/mod.rs"]
mod model;

use arbtest::arbtest;
use millpond::ObjectPool;
use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

#[test]
fn pools_do_what_the_model_does() {
    let cases = Cell::new(0_u64);
    let (all, managed) = (Cell::new(0), Cell::new(0));
    let test = arbtest(|input| {
        cases.set(cases.get() + 1);
        let (operations, on_a_pool) = model::run(input)?;
        all.set(all.get() + operations);
        managed.set(managed.get() + on_a_pool);
        Ok(())
    });
    let test = test.size_min(64).size_max(2_048);
    let chosen = std::env::var_os("ARBTEST_BUDGET_MS").is_some();
    if chosen { test } else { test.budget_ms(2_000) }.run();
    let (all, managed, cases) = (all.get(), managed.get(), cases.get());
    eprintln!("{all} operations, {managed} of them on a `Pool`, in {cases} cases");
    if !chosen && std::env::var_os("ARBTEST_SEED").is_none() {
        // One that does nothing finds nothing.
        assert!(all > 1_000, "{all} operations");
        assert!(managed > 0 || cfg!(not(feature = "tokio")), "none of them on a `Pool`");
    }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_waiter_that_looks_for_a_vacancy_keeps_its_place() {
    let pool = ObjectPool::builder(1).shards(1).build(|| ()).expect("one object");
    let held = pool.try_acquire().expect("it is idle");
    let (mut first, mut second, mut third) =
        (pin!(pool.acquire()), pin!(pool.acquire()), pin!(pool.acquire()));
    assert!(poll(first.as_mut()).is_pending());
    assert!(poll(second.as_mut()).is_pending());
    assert!(poll(third.as_mut()).is_pending());

    let () = held.detach();
    let Poll::Ready(Ok(made)) = poll(first.as_mut()) else {
        panic!("the first in line does not get what it has made");
    };
    assert!(poll(second.as_mut()).is_pending());
    drop(made);
    assert!(poll(second.as_mut()).is_ready(), "the third was served before the second");
}

#[test]
fn a_newcomer_does_not_take_the_vacancy_that_a_waiter_was_told_of() {
    let pool = ObjectPool::builder(1).shards(1).build(|| ()).expect("one object");
    let held = pool.try_acquire().expect("it is idle");
    let mut first = pin!(pool.acquire());
    assert!(poll(first.as_mut()).is_pending());

    let () = held.detach();
    let mut newcomer = pin!(pool.acquire());
    assert!(poll(newcomer.as_mut()).is_pending(), "the newcomer overtakes");
    assert!(poll(first.as_mut()).is_ready());
}
