//! See `pyrotee::profile::json::fuzz_json`, which `cargo test` also runs over the saved corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrotee::profile::json::fuzz_json(data));
