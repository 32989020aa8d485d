//! See `pyrotee::config::alloy::blocks::fuzz_config`, which `cargo test` also runs over the saved corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrotee::config::alloy::blocks::fuzz_config(data));
