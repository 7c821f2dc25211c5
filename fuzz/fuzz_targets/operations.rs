//! Operations of the fuzzer's choice on a pool, compared with the model that the tests use.

#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::{Corpus, fuzz_target};

#[path = "../../tests/model/mod.rs"]
mod model;

fuzz_target!(|input: &[u8]| -> Corpus {
    match model::run(&mut Unstructured::new(input)) {
        Ok(operations) if operations > 0 => Corpus::Keep,
        // Too short to say anything.
        _ => Corpus::Reject,
    }
});
