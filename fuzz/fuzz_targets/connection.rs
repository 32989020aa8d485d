//! See `pyrotee::inbound::understand::fuzz_connection`, which `cargo test` also runs over the saved corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrotee::inbound::understand::fuzz_connection(data));
