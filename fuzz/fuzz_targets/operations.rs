//! Operations of the fuzzer's choice on a pool, compared with the model that the tests use.

#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::{Corpus, fuzz_target};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[path = "../../tests/model/mod.rs"]
mod model;

/// Says how far it is each time that so many operations have been done.
const REPORT_EVERY: u64 = 1_000_000;

static OPERATIONS: AtomicU64 = AtomicU64::new(0);

fuzz_target!(|input: &[u8]| -> Corpus {
    match model::run(&mut Unstructured::new(input)) {
        Ok((operations, _)) if operations > 0 => {
            let before = OPERATIONS.fetch_add(operations, Relaxed);
            let all = before + operations;
            if all / REPORT_EVERY > before / REPORT_EVERY {
                eprintln!("{all} operations");
            }
            Corpus::Keep
        }
        // Too short to say anything.
        _ => Corpus::Reject,
    }
});
