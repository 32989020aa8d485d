//! See `pyrotee::http::response::fuzz_response`, which `cargo test` also runs over the saved corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrotee::http::response::fuzz_response(data));
