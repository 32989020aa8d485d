//! See `pyrotee::http::body::fuzz_body`, which `cargo test` also runs over the saved corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrotee::http::body::fuzz_body(data));
