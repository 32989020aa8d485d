//! The body of every fuzz target, over the saved corpus: what fuzzing has found stays found (docs/testing.md).

use std::path::Path;

use pyrotee::{config, http, inbound, profile, spool};

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 11] = [
    ("head", http::head::fuzz_head),
    ("body", http::body::fuzz_body),
    ("response", http::response::fuzz_response),
    ("labels", profile::labels::fuzz_labels),
    ("query", profile::query::fuzz_query),
    ("push", profile::push::fuzz_push),
    ("json", profile::json::fuzz_json),
    ("grpc_web", profile::grpc_web::fuzz_grpc_web),
    ("config", config::alloy::blocks::fuzz_config),
    ("connection", inbound::understand::fuzz_connection),
    ("spool", spool::fuzz::fuzz_spool),
];

#[test]
fn every_target_stands_its_corpus() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, target) in TARGETS {
        let folder = fuzz.join("corpus").join(name);
        let mut inputs = 0;
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let path = entry.expect("a folder that can be listed").path();
            println!("{}", path.display());
            target(&std::fs::read(&path).expect("a file that can be read"));
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no corpus");
    }
}

#[test]
fn every_target_is_a_binary_of_the_fuzz_crate() {
    let manifest = include_str!("../fuzz/Cargo.toml");
    let listed = manifest.matches("[[bin]]").count();
    assert_eq!(listed, TARGETS.len());
    for (name, _) in TARGETS {
        assert!(
            manifest.contains(&format!("name = \"{name}\"")),
            "{name} is not in fuzz/Cargo.toml"
        );
    }
}
