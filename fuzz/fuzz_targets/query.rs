//! See `pyrotee::profile::query::fuzz_query`, which `cargo test` also runs over the saved corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrotee::profile::query::fuzz_query(data));
