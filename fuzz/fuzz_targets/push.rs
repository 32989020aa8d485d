//! See `pyrotee::profile::push::fuzz_push`, which `cargo test` also runs over the saved corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrotee::profile::push::fuzz_push(data));
