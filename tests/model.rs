//! Random operations on pools with one shard, compared with a plain model after each of them.
//!
//! `ARBTEST_BUDGET_MS` says how long (default: 2,000); `ARBTEST_SEED` runs the one case that a
//! failure has named.
//!
//! Not here: the model (`model/mod.rs`), which the fuzz target shares.

#[path = "model/mod.rs"]
mod model;

use arbtest::arbtest;
use std::cell::Cell;

#[test]
fn pools_do_what_the_model_does() {
    let cases = Cell::new(0_u64);
    let operations = Cell::new(0);
    let test = arbtest(|input| {
        cases.set(cases.get() + 1);
        operations.set(operations.get() + model::run(input)?);
        Ok(())
    });
    let test = test.size_min(64).size_max(2_048);
    let chosen = std::env::var_os("ARBTEST_BUDGET_MS").is_some();
    if chosen { test } else { test.budget_ms(2_000) }.run();
    eprintln!("{} operations in {} cases", operations.get(), cases.get());
}
