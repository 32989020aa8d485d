//! See `pyrotee::profile::grpc_web::fuzz_grpc_web`, which `cargo test` also runs over the saved corpus.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrotee::profile::grpc_web::fuzz_grpc_web(data));
