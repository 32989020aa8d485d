//! See `pyrotee::profile::labels::fuzz_labels`, which `cargo test` also runs over the saved corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrotee::profile::labels::fuzz_labels(data));
