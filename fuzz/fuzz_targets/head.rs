//! See `pyrotee::http::head::fuzz_head`, which `cargo test` also runs over the saved corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrotee::http::head::fuzz_head(data));
