//! Rows 135 to 138 of WIRE.md section 9: relabel rules, given with `--relabel`.

use std::net::SocketAddr;

use prost::Message as _;
use pyrotee::profile::proto::PushRequest;

use super::gateway::{Engine, Gateway, INGEST, assert_connect_error, assert_empty, under_both_engines};
use super::push::{request, series};
use super::scripted::{Received, Scripted};
use super::support::{get, run};

under_both_engines!(
    row_135_a_drop_answers_200_and_is_counted,
    row_135_series_of_a_push_are_dropped_one_by_one,
    row_136_regexes_are_anchored_and_hashes_are_alloy_s,
    row_137_an_empty_result_removes_the_label,
    row_138_rules_run_between_service_name_and_external_labels,
    what_rules_make_is_checked,
    a_rule_that_cannot_be_is_refused_at_start,
);

const DROP_DEV: &str =
    r#"action = "drop", source_labels = ["env", "tier"], separator = ",", regex = "dev,.*""#;

/// Labels of every series of an outgoing Push, as `a=1,b=2`.
fn pushed(received: &Received) -> Vec<String> {
    let request = PushRequest::decode(&*received.body).expect("what goes out is protobuf");
    let show = |labels: &[pyrotee::profile::proto::LabelPair]| {
        let pairs = labels
            .iter()
            .map(|label| format!("{}={}", label.name, label.value));
        pairs.collect::<Vec<_>>().join(",")
    };
    request.series.iter().map(|series| show(&series.labels)).collect()
}

/// The relabel counters: processed, written, dropped.
fn counted(gateway: &Gateway) -> [String; 3] {
    let admin: SocketAddr = gateway
        .log_line("admin port address=")
        .trim()
        .parse()
        .expect("an address");
    let scrape = get(admin, "/metrics").text();
    ["processed", "written", "dropped"].map(|which| {
        let name = format!("pyroscope_relabel_profiles_{which} ");
        let line = scrape.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name} in {scrape}")).to_owned()
    })
}

fn row_135_a_drop_answers_200_and_is_counted(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &["--relabel", DROP_DEV, "--admin", "127.0.0.1:0"]);
    let mut client = gateway.client();
    let large = vec![b'x'; 3 << 20];
    // The same name twice: what is remembered about it is the drop. A large body, so that it is read and not cut off.
    for body in [&b"x"[..], b"x", &large] {
        let answer = client
            .post("/ingest?name=app{env=dev,tier=1}", &[], body)
            .unwrap();
        assert_empty(&answer, 200);
    }
    let chunked = b"POST /ingest?name=app{env=dev,tier=2} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    client.send(chunked).unwrap();
    assert_empty(&client.receive().unwrap(), 200);
    let answer = client.post("/ingest?name=app{env=prod}", &[], b"kept").unwrap();
    assert_empty(&answer, 200);
    assert_eq!(
        a.newest(1).body,
        b"kept",
        "the connection went on, and nothing else was sent"
    );
    assert_eq!(counted(&gateway), ["5", "1", "4"]);
}

fn row_135_series_of_a_push_are_dropped_one_by_one(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &["--relabel", DROP_DEV, "--admin", "127.0.0.1:0"]);
    let one = |env: &str| series(&[("__name__", "cpu"), ("env", env), ("tier", "1")], &[b"profile"]);
    let answer = gateway.push(&request(&[one("dev"), one("prod"), one("dev")]));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        pushed(&a.newest(1)),
        ["__name__=cpu,env=prod,service_name=cpu,tier=1"]
    );
    let answer = gateway.push(&request(&[one("dev")]));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(a.received().len(), 1, "nothing is left to send");
    assert_eq!(counted(&gateway), ["4", "1", "3"]);
}

fn row_136_regexes_are_anchored_and_hashes_are_alloy_s(engine: Engine) {
    let a = Scripted::healthy();
    let hash = r#"action = "hashmod", source_labels = ["env"], target_label = "shard", modulus = 10"#;
    let keep = r#"action = "keep", source_labels = ["service_name"], regex = "my-app""#;
    let gateway = Gateway::to(engine, &[&a], &["--relabel", hash, "--relabel", keep]);
    for (name, sent) in [
        (
            "my-app{env=prod}",
            Some("my-app{env=prod,service_name=my-app,shard=3}"),
        ),
        (
            "my-app{env=my-app}",
            Some("my-app{env=my-app,service_name=my-app,shard=8}"),
        ),
        ("my-app2{env=prod}", None),
        ("xmy-app{env=prod}", None),
    ] {
        let before = a.received().len();
        assert_empty(&gateway.post(&format!("/ingest?name={name}"), &[], b"x"), 200);
        match sent {
            Some(sent) => assert_eq!(a.newest(before + 1).name(), sent),
            None => assert_eq!(a.received().len(), before, "{name} is not the whole of it"),
        }
    }
}

fn row_137_an_empty_result_removes_the_label(engine: Engine) {
    let a = Scripted::healthy();
    let remove = r#"source_labels = ["none"], target_label = "pod""#;
    let gateway = Gateway::to(engine, &[&a], &["--relabel", remove]);
    assert_empty(&gateway.post("/ingest?name=app{pod=1,x=2}", &[], b"x"), 200);
    assert_eq!(a.newest(1).name(), "app{service_name=app,x=2}");
    let sent = series(&[("__name__", "cpu"), ("pod", "1")], &[b"x"]);
    assert_eq!(gateway.push(&request(&[sent])).status, 200);
    assert_eq!(pushed(&a.newest(2)), ["__name__=cpu,service_name=cpu"]);
}

fn row_138_rules_run_between_service_name_and_external_labels(engine: Engine) {
    let a = Scripted::healthy();
    let copy = r#"source_labels = ["service_name", "cluster"], target_label = "seen""#;
    let flags = ["--relabel", copy, "--external-label", "cluster=eu"];
    let gateway = Gateway::to(engine, &[&a], &flags);
    assert_empty(&gateway.post(INGEST, &[], b"x"), 200);
    assert_eq!(a.newest(1).name(), "app{cluster=eu,seen=app;,service_name=app}");
    let sent = series(&[("__name__", "cpu")], &[b"x"]);
    assert_eq!(gateway.push(&request(&[sent])).status, 200);
    assert_eq!(
        pushed(&a.newest(2)),
        ["__name__=cpu,cluster=eu,seen=cpu;,service_name=cpu"]
    );
}

fn what_rules_make_is_checked(engine: Engine) {
    let a = Scripted::healthy();
    let inject = r#"source_labels = ["x"], regex = "(.+)", target_label = "y", replacement = "$1,$1""#;
    let drop = r#"action = "labeldrop", regex = ".*-.*""#;
    let gateway = Gateway::to(engine, &[&a], &["--relabel", inject, "--relabel", drop]);
    let answer = gateway.post("/ingest?name=app{x=1}", &[], b"x");
    assert_eq!(answer.status, 400);
    assert!(
        answer.text().contains("relabel rule of this gateway"),
        "{}",
        answer.text()
    );
    // A Push has no such trouble, and a bad name that a rule removes does no harm.
    let sent = series(&[("__name__", "cpu"), ("x", "1"), ("a-b", "1")], &[b"x"]);
    assert_eq!(gateway.push(&request(&[sent])).status, 200);
    assert_eq!(pushed(&a.newest(1)), ["__name__=cpu,service_name=cpu,x=1,y=1,1"]);
    let long = "v".repeat(40 << 10);
    let sent = series(&[("__name__", "cpu"), ("x", &long)], &[b"x"]);
    assert_connect_error(&gateway.push(&request(&[sent])), 400, "invalid_argument");
}

fn a_rule_that_cannot_be_is_refused_at_start(_: Engine) {
    for (flags, says) in [
        (
            &["--relabel", "action=drop,regex=("][..],
            "--relabel action=drop,regex=( (column 20)",
        ),
        (
            &["--relabel", r#"action = "keep", regex = "(""#],
            "unclosed group",
        ),
        (
            &["--relabel", DROP_DEV, "--labels", "verbatim"],
            "no effect with --labels verbatim",
        ),
    ] {
        let ended = run(&[&["check"], flags].concat());
        assert_eq!(ended.status.code(), Some(64), "{}", ended.stderr);
        assert!(ended.stderr.contains(says), "{says}: {}", ended.stderr);
    }
}
