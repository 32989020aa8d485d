//! The gateway between the two real ends of the Connect protocol: connect-go as a client, connect-go as a destination.
//!
//! ```text
//!  interop client ──▶ pyrotee run --ack all ──┬──▶ interop server
//!  (prints what should arrive)                └──▶ interop server (prints what arrived)
//! ```
//! What should arrive is the word of the reference model in `tests/interop/reference.go`. Where WIRE.md section 9 marks a
//! row (D) we differ from it on purpose; the row is named where that happens.

#[path = "support/command.rs"]
mod command;
#[path = "support/interop.rs"]
mod interop;
mod support;

use interop::{Server, call, cases, interop};
use serde_json::{Value, json};
use support::engines;
use support::gateway::Gateway;
use support::tls::Authority;

/// Cases with tests of their own below, or that take their input elsewhere.
const OTHER_CASES: [&str; 6] = [
    "grpc-h2c",
    "timeout",
    "timeout-grpc-web",
    "cancel",
    "cancel-mid-body",
    "stdin",
];
/// `--remote-timeout` unless set, in milliseconds.
const REMOTE_TIMEOUT_MS: u64 = 10_000;
/// `--ack all` that gives up soon.
const THREE_QUICK_ATTEMPTS: [&str; 6] = ["--ack", "all", "--min-backoff", "10ms", "--max-retries", "3"];

/// A gateway under `engine` in front of servers named `d0`, `d1`, ...
fn gateway(engine: &str, servers: &[&Server], flags: &[&str]) -> Gateway {
    let targets: Vec<String> = servers
        .iter()
        .enumerate()
        .flat_map(|(index, server)| ["--to".into(), server.to(&format!("d{index}"))])
        .collect();
    let mut all: Vec<&str> = targets.iter().map(String::as_str).collect();
    all.extend(flags);
    Gateway::start(engine, &all)
}

#[test]
fn what_the_real_client_sends_arrives_at_two_destinations() {
    let Some(program) = interop() else { return };
    for engine in engines() {
        let servers = [(); 2].map(|()| Server::start(program, &[]));
        let gateway = gateway(engine, &servers.each_ref(), &["--ack", "all"]);
        let mut expected = Vec::new();
        for case in cases(program) {
            if OTHER_CASES.contains(&&*case) {
                continue;
            }
            for flags in [
                &[][..],
                &["--gzip"],
                &["--wire", "connect-json"],
                &["--wire", "connect-json", "--gzip"],
                &["--wire", "grpc-web"],
                &["--wire", "grpc-web", "--gzip"],
                &["--wire", "grpc-web-json"],
            ] {
                let line = call(program, &gateway.url(), &case, flags);
                assert_result(&line, &format!("{case} {flags:?} under {engine}"));
                expected.extend(forwarded(&line).map(|series| (format!("{case} {flags:?}"), series)));
            }
        }
        gateway.end_whole();
        for server in servers {
            let seen = server.end();
            for (seen, (case, series)) in seen.iter().zip(&expected) {
                let context = format!("{case} under {engine}: {seen}");
                assert_eq!(seen["event"], "push", "{context}");
                assert_eq!(&seen["series"], series, "{context}");
                assert_head(seen, &context);
            }
            assert_eq!(seen.len(), expected.len(), "under {engine}");
        }
    }
}

/// What the client is told: success, or why a series was refused, which we answer with the code of the fault where Alloy
/// says `internal` for all (row 95 (D); row 94 stays).
fn assert_result(line: &Value, context: &str) {
    let first_refused = line["expected"]["refused"].get(0);
    let code = match first_refused.map(|refused| refused["kind"].as_str()) {
        None => "ok",
        Some(Some("no_labels")) => "internal",
        Some(_) => "invalid_argument",
    };
    let result = &line["result"];
    assert_eq!(result["code"], code, "{context}: {line}");
    assert_eq!(result["from_wire"], first_refused.is_some(), "{context}: {line}");
}

/// The series of the one request that each destination gets (row 88 (D): one for a push, not one for a series); none at
/// all for a push without good series.
fn forwarded(line: &Value) -> Option<Value> {
    let mut series = line["expected"]["series"].as_array().expect("a list").clone();
    for one in &mut series {
        one.as_object_mut().expect("an object").remove("index");
    }
    (!series.is_empty()).then_some(Value::Array(series))
}

/// WIRE.md 3.6 and 4.3, rows 89 and 100.
fn assert_head(seen: &Value, context: &str) {
    assert_eq!(seen["protocol"], "connect", "{context}");
    assert_eq!(seen["path"], "/push.v1.PusherService/Push", "{context}");
    assert_eq!(seen["query"], "", "{context}");
    assert_eq!(seen["content_length"], seen["body_bytes"], "{context}");
    let header = |name: &str| &seen["headers"][name];
    assert_eq!(header("Content-Type"), &json!(["application/proto"]), "{context}");
    assert_eq!(header("Content-Encoding"), &Value::Null, "{context}");
    assert_eq!(header("Accept-Encoding"), &json!(["gzip"]), "{context}");
    assert_eq!(header("Connect-Protocol-Version"), &json!(["1"]), "{context}");
    assert!(timeout_ms(seen) <= REMOTE_TIMEOUT_MS, "{context}");
    assert!(timeout_ms(seen) > REMOTE_TIMEOUT_MS / 2, "{context}");
    let agent = header("User-Agent")[0].as_str().unwrap_or_default();
    assert!(agent.starts_with("pyrotee/"), "{context}");
    assert!(header("X-Alloy-Id")[0].is_string(), "{context}");
    let sorted = seen["labels_sorted"].as_array().expect("a list");
    assert!(sorted.iter().all(|sorted| sorted == true), "{context}");
}

fn timeout_ms(seen: &Value) -> u64 {
    let value = seen["headers"]["Connect-Timeout-Ms"][0].as_str();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("no Connect-Timeout-Ms: {seen}"))
}

#[test]
fn external_labels_are_those_of_the_model() {
    let Some(program) = interop() else { return };
    let servers = [Server::start(program, &[])];
    let labels = ["zone=z1", "env=", "service_name=outer"];
    let flags: Vec<&str> = labels
        .iter()
        .flat_map(|label| ["--external-label", label])
        .chain(["--ack", "all"])
        .collect();
    let gateway = gateway("auto", &servers.each_ref(), &flags);
    let client_flags: Vec<&str> = labels.iter().flat_map(|label| ["--external", label]).collect();
    let mut expected = Vec::new();
    for case in [
        "connect-proto",
        "several-series",
        "duplicate-labels",
        "service-name",
    ] {
        let line = call(program, &gateway.url(), case, &client_flags);
        assert_result(&line, case);
        expected.extend(forwarded(&line));
    }
    gateway.end_whole();
    let [server] = servers;
    let seen: Vec<Value> = server.end().iter().map(|seen| seen["series"].clone()).collect();
    assert_eq!(seen, expected);
}

#[test]
fn labels_verbatim_passes_every_dress_through() {
    let Some(program) = interop() else { return };
    let servers = [(); 2].map(|()| Server::start(program, &[]));
    let gateway = gateway(
        "auto",
        &servers.each_ref(),
        &["--ack", "all", "--labels", "verbatim"],
    );
    let mut expected = Vec::new();
    for (case, flags) in [
        ("several-series", &[][..]),
        ("annotations", &["--gzip"]),
        ("duplicate-labels", &["--wire", "connect-json"]),
        ("unicode-labels", &["--wire", "connect-json", "--gzip"]),
    ] {
        let line = call(program, &gateway.url(), case, flags);
        assert_eq!(line["result"]["ok"], true, "{line}");
        expected.push(line["sent"]["series"].clone());
    }
    gateway.end_whole();
    for server in servers {
        let seen: Vec<Value> = server.end().iter().map(|seen| seen["series"].clone()).collect();
        assert_eq!(seen, expected);
    }
}

#[test]
fn each_code_is_retried_or_not_and_reaches_the_client() {
    let Some(program) = interop() else { return };
    // DESIGN.md section 6; row 98 (D): the code passes through.
    for (code, attempts) in [
        ("canceled", 1),
        ("unknown", 3),
        ("invalid_argument", 1),
        ("deadline_exceeded", 3),
        ("not_found", 1),
        ("already_exists", 1),
        ("permission_denied", 1),
        ("resource_exhausted", 3),
        ("failed_precondition", 1),
        ("aborted", 3),
        ("out_of_range", 1),
        ("unimplemented", 1),
        ("internal", 3),
        ("unavailable", 3),
        ("data_loss", 3),
        ("unauthenticated", 1),
    ] {
        for (engine, wire) in engines().into_iter().zip(["connect", "grpc-web"]) {
            let context = format!("{code} over {wire} under {engine}");
            let bad = Server::start(
                program,
                &["--code", code, "--message", "<secret> of the destination"],
            );
            let good = Server::start(program, &[]);
            let gateway = gateway(engine, &[&bad, &good], &THREE_QUICK_ATTEMPTS);
            let line = call(program, &gateway.url(), "connect-proto", &["--wire", wire]);
            assert_eq!(line["result"]["code"], code, "{context}: {line}");
            assert_eq!(line["result"]["from_wire"], true, "{context}: {line}");
            // Row 62: what the destination said beyond that stays with us.
            let message = line["result"]["message"].as_str().expect("text");
            assert!(!message.contains("secret"), "{context}: {line}");
            drop(gateway);
            assert_eq!(answers(bad), vec![code; attempts], "{context}");
            assert_eq!(answers(good), ["ok"], "{context}: never twice");
        }
    }
}

/// What a server answered, request by request.
fn answers(server: Server) -> Vec<String> {
    let answer = |seen: &Value| seen["answer"].as_str().expect("only pushes").to_owned();
    server.end().iter().map(answer).collect()
}

#[test]
fn a_plain_proxy_in_front_of_a_destination_goes_by_status() {
    let Some(program) = interop() else { return };
    // DESIGN.md section 6; rows 117 and 118 (D). The client's code is that of WIRE.md 3.3.
    for (status, attempts, code) in [
        ("400", 1, "internal"),
        ("401", 1, "unauthenticated"),
        ("403", 1, "permission_denied"),
        ("404", 1, "unimplemented"),
        ("408", 3, "unknown"),
        ("413", 1, "unknown"),
        ("415", 1, "unknown"),
        ("429", 3, "unavailable"),
        ("500", 3, "unknown"),
        ("501", 1, "unknown"),
        ("502", 3, "unavailable"),
        ("503", 3, "unavailable"),
        ("504", 3, "unavailable"),
    ] {
        let server = Server::start(program, &["--push-status", status]);
        let gateway = gateway("auto", &[&server], &THREE_QUICK_ATTEMPTS);
        let line = call(program, &gateway.url(), "connect-proto", &[]);
        assert_eq!(line["result"]["code"], code, "{status}: {line}");
        drop(gateway);
        assert_eq!(answers(server).len(), attempts, "{status}");
    }
}

#[test]
fn a_passing_trouble_is_nothing_to_the_client() {
    let Some(program) = interop() else { return };
    for (name, server_flags, answered, waited_ms_min) in [
        (
            "unavailable twice",
            &["--code", "unavailable", "--times", "2"][..],
            &["unavailable", "unavailable", "ok"][..],
            0,
        ),
        (
            "asked to wait",
            &[
                "--code",
                "resource_exhausted",
                "--times",
                "1",
                "--retry-after",
                "1",
            ],
            &["resource_exhausted", "ok"],
            1000,
        ),
        ("speaks protobuf only", &["--proto-only"], &["ok"], 0),
    ] {
        let server = Server::start(program, server_flags);
        let gateway = gateway("auto", &[&server], &THREE_QUICK_ATTEMPTS);
        let line = call(program, &gateway.url(), "connect-json", &[]);
        assert_eq!(line["result"]["ok"], true, "{name}: {line}");
        assert!(
            line["elapsed_ms"].as_u64() >= Some(waited_ms_min),
            "{name}: {line}"
        );
        gateway.end_whole();
        assert_eq!(answers(server), answered, "{name}");
    }
}

#[test]
fn a_client_that_waits_only_so_long_is_told_and_its_profile_arrives() {
    let Some(program) = interop() else { return };
    for (engine, case) in engines().into_iter().zip(["timeout", "timeout-grpc-web"]) {
        let server = Server::start(program, &["--delay", "5000", "--times", "1"]);
        let flags = ["--ack", "all", "--min-backoff", "10ms"];
        let gateway = gateway(engine, &[&server], &flags);
        let line = call(program, &gateway.url(), case, &["--timeout", "300ms"]);
        let context = format!("{case} under {engine}: {line}");
        assert_eq!(line["result"]["code"], "deadline_exceeded", "{context}");
        assert_eq!(line["cut"]["deadline"], false, "{context}");
        gateway.end_whole();
        let seen = server.end();
        let pushes: Vec<&Value> = seen.iter().filter(|seen| seen["event"] == "push").collect();
        let [first, second] = &*pushes else {
            panic!("{context}\n{seen:?}");
        };
        // Row 101 for the attempt that the client waits for; the next one is ours alone (row 64 (D)).
        assert!(timeout_ms(first) <= 300, "{context}\n{first}");
        assert!(timeout_ms(second) > 300, "{context}\n{second}");
        assert_eq!(first["series"], second["series"], "{context}");
    }
}

#[test]
fn what_the_real_grpc_client_sends_arrives() {
    let Some(program) = interop() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("the client trusts it");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).expect("a folder of ours");
    let files = authority.issue(&["127.0.0.1"]).write(folder.path(), "server");
    let path = |path: &std::path::Path| path.to_str().expect("plain").to_owned();
    let (cert, key, ca) = (path(&files.cert), path(&files.key), path(&ca));
    for engine in engines() {
        for in_tls in [false, true] {
            let server = Server::start(program, &[]);
            let flags = match in_tls {
                false => vec!["--ack", "all", "--h2c"],
                true => vec!["--ack", "all", "--tls-cert-file", &cert, "--tls-key-file", &key],
            };
            let gateway = gateway(engine, &[&server], &flags);
            let url = match in_tls {
                false => gateway.url(),
                true => format!("https://{}", gateway.address),
            };
            let mut expected = Vec::new();
            for case in cases(program)
                .iter()
                .filter(|case| !OTHER_CASES.contains(&&***case))
            {
                for wire in [
                    &["--wire", "grpc"][..],
                    &["--wire", "grpc", "--gzip"],
                    &["--wire", "grpc-json"],
                ] {
                    let flags = match in_tls {
                        false => wire.to_vec(),
                        true => [wire, &["--ca", &ca]].concat(),
                    };
                    let line = call(program, &url, case, &flags);
                    let context = format!("{case} {wire:?}, TLS {in_tls}, under {engine}");
                    assert_result(&line, &context);
                    assert_eq!(line["http"]["proto"], "HTTP/2.0", "{context}: {line}");
                    expected.extend(forwarded(&line));
                }
            }
            if in_tls {
                // Connect and gRPC-Web go the same way: Go's client offers HTTP/2 to everybody.
                for wire in ["connect", "connect-json", "grpc-web"] {
                    let line = call(program, &url, "connect-proto", &["--wire", wire, "--ca", &ca]);
                    assert_result(&line, wire);
                    assert_eq!(line["http"]["proto"], "HTTP/2.0", "{line}");
                    expected.extend(forwarded(&line));
                }
            }
            gateway.end_whole();
            let seen: Vec<Value> = server.end();
            for (seen, series) in seen.iter().zip(&expected) {
                assert_eq!(&seen["series"], series, "TLS {in_tls} under {engine}: {seen}");
                assert_head(seen, "gRPC");
            }
            assert_eq!(seen.len(), expected.len(), "TLS {in_tls} under {engine}");
        }
    }
}

#[test]
fn a_client_that_is_answered_at_once_has_no_deadline_to_pass_on() {
    let Some(program) = interop() else { return };
    for case in ["timeout", "timeout-grpc-web"] {
        let server = Server::start(program, &["--delay", "600"]);
        let gateway = gateway("auto", &[&server], &[]);
        let line = call(program, &gateway.url(), case, &["--timeout", "300ms"]);
        assert_eq!(line["result"]["ok"], true, "{case}: {line}");
        gateway.end_whole();
        let seen = server.end();
        assert_eq!(seen.len(), 1, "{case}: {seen:?}");
        assert!(timeout_ms(&seen[0]) > 300, "{case}: {seen:?}");
    }
}

#[test]
fn a_client_that_leaves_takes_nothing_with_it() {
    let Some(program) = interop() else { return };
    for engine in engines() {
        for ack in ["all", "first", "queued"] {
            let server = Server::start(program, &["--delay", "300"]);
            let gateway = gateway(engine, &[&server], &["--ack", ack]);
            let line = call(program, &gateway.url(), "cancel", &[]);
            let context = format!("--ack {ack} under {engine}: {line}");
            assert_eq!(line["cut"]["written"], true, "{context}");
            if ack != "queued" {
                assert_eq!(line["result"]["code"], "canceled", "{context}");
            }
            gateway.end_whole();
            let events: Vec<Value> = server.end().iter().map(|seen| seen["event"].clone()).collect();
            // No "gone": the destination's answer is waited for.
            assert_eq!(events, ["push"], "{context}");
        }
    }
}

#[test]
fn half_a_push_goes_nowhere() {
    let Some(program) = interop() else { return };
    for engine in engines() {
        let server = Server::start(program, &[]);
        let gateway = gateway(engine, &[&server], &[]);
        let line = call(program, &gateway.url(), "cancel-mid-body", &[]);
        assert_eq!(line["cut"]["mid_body"], true, "{engine}: {line}");
        assert_eq!(line["result"]["code"], "canceled", "{engine}: {line}");
        // The next one is served as if nothing had been.
        let line = call(program, &gateway.url(), "connect-proto", &[]);
        assert_eq!(line["result"]["ok"], true, "{engine}: {line}");
        gateway.end_whole();
        assert_eq!(answers(server), ["ok"], "{engine}");
    }
}

#[test]
fn grpc_over_h2c_is_refused_at_once() {
    let Some(program) = interop() else { return };
    let server = Server::start(program, &[]);
    let gateway = gateway("auto", &[&server], &[]);
    let line = call(program, &gateway.url(), "grpc-h2c", &[]);
    assert_eq!(line["result"]["ok"], false, "{line}");
    assert_eq!(line["cut"]["deadline"], false, "it did not hang: {line}");
    drop(gateway);
    assert_eq!(server.end(), [] as [Value; 0]);
}
