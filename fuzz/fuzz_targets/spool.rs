//! See `pyrotee::spool::fuzz::fuzz_spool`, which `cargo test` also runs over the saved corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrotee::spool::fuzz::fuzz_spool(data));
