//! Real Pyroscope SDKs push through the real gateway to two destinations, and every profile arrives at both.
//!
//! ```text
//!  SDK program ──▶ relay (writes down) ──▶ pyrotee run ──┬──▶ sink (records)
//!  scripts/sdk-run                                       └──▶ sink (records)
//! ```
//! Under `--labels verbatim` what arrives is what was sent, byte for byte. Under `--labels alloy` an `/ingest` body is,
//! and its labels are those of WIRE.md 2.3 and 2.4; of a Push every `raw_profile` and ID is. The rules are written out
//! here a second time, plainly, so that the gateway is not its own judge.
//!
//! Each language is set up by `scripts/sdk-setup`, which downloads at most once. A language that is missing is skipped
//! aloud; with `CI=true` that is a failure.

#[path = "support/command.rs"]
mod command;
#[path = "support/relay.rs"]
mod relay;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use command::Running;
use prost::Message as _;
use pyrotee::profile::proto::PushRequest;
use relay::{Exchange, Relay};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use support::gateway::Gateway;
use support::{Sink, engines, skip};

/// Downloads and builds, on a slow machine.
const SETUP_TIME_MAX: Duration = Duration::from_secs(600);
/// How long an SDK program works: enough for two uploads of the slowest SDK.
const WORK_SECONDS: &str = "7";
/// From start to end of an SDK program.
const RUN_TIME_MAX: Duration = Duration::from_secs(60);
/// `scripts/sdk-run` for a language that was skipped.
const EXIT_SKIPPED: i32 = 77;
/// Uploads that each program makes in its time, or it proves little.
const UPLOADS_MIN: usize = 2;

macro_rules! languages {
    ($($language:ident: $route:literal),* $(,)?) => {$(
        mod $language {
            #[test]
            fn labels_alloy() {
                super::everything_arrives_twice(stringify!($language), $route, "alloy");
            }

            #[test]
            fn labels_verbatim() {
                super::everything_arrives_twice(stringify!($language), $route, "verbatim");
            }
        }
    )*};
}

const INGEST: &str = "/ingest";
const PUSH: &str = "/push.v1.PusherService/Push";

languages! {
    go: "/ingest",
    java: "/ingest",
    node: "/ingest",
    python: "/push.v1.PusherService/Push",
    rust: "/push.v1.PusherService/Push",
}

fn everything_arrives_twice(language: &str, route: &str, labels: &str) {
    if !set_up(language) {
        return;
    }
    // Each language sees both engines: one with each kind of labels.
    let engines = engines();
    let engine = match labels {
        "alloy" => engines.first(),
        _ => engines.last(),
    };
    let engine = engine.expect("epoll works everywhere");
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("there is a temporary folder"));
    let sinks = folders
        .each_ref()
        .map(|folder| record_into(folder.path(), engine));
    let [first, second] = sinks.each_ref().map(Sink::url);
    let (first, second) = (format!("first={first}"), format!("second={second}"));
    let flags = ["--labels", labels, "--to", &first, "--to", &second];
    let gateway = Gateway::start(engine, &flags);
    let relay = Relay::start(gateway.address);

    let log = run_program(language, &format!("http://{}", relay.address));
    let exchanges = relay.exchanges().unwrap_or_else(|error| panic!("{error}\n{log}"));
    for exchange in &exchanges {
        assert_eq!(exchange.status, 200, "{exchange:?}\n{log}");
        assert_eq!(exchange.path, route, "the route of this SDK\n{log}");
    }
    let sent = exchanges.len();
    assert!(sent >= UPLOADS_MIN, "only {sent} uploads\n{log}");

    let mut expected: Vec<Arrival> = exchanges.iter().map(|sent| expect(sent, labels)).collect();
    expected.sort();
    for (sink, folder) in sinks.iter().zip(&folders) {
        // An answer is counted when the upload has been recorded, a request before.
        sink.stats_when("every upload at a destination", |stats| {
            stats["statuses"]["200"] == sent
        });
        let mut arrived = recorded(folder.path(), labels);
        arrived.sort();
        assert_eq!(arrived, expected, "what arrived and what should have\n{log}");
    }
    gateway.end_whole();
}

/// Prepares a language. False when it is not there, which is said aloud.
fn set_up(language: &str) -> bool {
    let (status, said) = Running::start(script("sdk-setup", &[language])).end(SETUP_TIME_MAX);
    assert!(
        status.success(),
        "sdk-setup {language}: {status}\n{}{}",
        said.stdout,
        said.stderr
    );
    let mark = format!("skip {language}: ");
    let skipped = said.stdout.lines().find_map(|line| line.strip_prefix(&mark));
    if let Some(why) = skipped {
        skip(&format!("sdk {language}"), why);
    }
    skipped.is_none()
}

fn script(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name));
    // Where cargo put us says nothing about how an SDK of another project is built.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO") && name != "CARGO_HOME" && !name.starts_with("CARGO_HTTP") {
            command.env_remove(&*name);
        }
    }
    command.args(args);
    command
}

/// Runs the program of a language to its end and returns its log, which must not complain.
fn run_program(language: &str, address: &str) -> String {
    let mut command = script("sdk-run", &[language, address]);
    command.env("SDK_SECONDS", WORK_SECONDS);
    let (status, said) = Running::start(command).end(RUN_TIME_MAX);
    let log = format!("{}{}", said.stdout, said.stderr);
    assert_ne!(
        status.code(),
        Some(EXIT_SKIPPED),
        "it has just been prepared\n{log}"
    );
    assert!(status.success(), "{status}\n{log}");
    if let Some(complaint) = log.lines().find(|line| is_complaint(line)) {
        panic!("{complaint}\nin\n{log}");
    }
    log
}

/// Whether a line of an SDK's log says that something went wrong. Node's SDK logs nothing else than trouble, through
/// `debug`, whose lines are `<time>Z pyroscope <text>`.
fn is_complaint(line: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let says_error = line
        .match_indices("ERROR")
        .any(|(at, word)| !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word));
    let is_debug = line
        .split_once("Z pyroscope ")
        .is_some_and(|(time, _)| !time.is_empty() && !time.contains(char::is_whitespace));
    let fatal = ["panicked at", "Traceback", "Exception in thread"];
    says_error || is_debug || fatal.iter().any(|words| line.contains(words))
}

fn record_into(folder: &Path, engine: &str) -> Sink {
    let path = |name| folder.join(name).to_str().expect("a plain name").to_owned();
    let (lines, bodies) = (path("lines"), path("bodies"));
    Sink::start(&["--engine", engine, "--record", &lines, "--record-bodies", &bodies])
}

/// One request at a destination, in a form that can be compared. The fields that decide the order come first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    path: String,
    /// Alloy labels: the parameters but `name`, decoded, in order. Verbatim: the raw query alone.
    query: Vec<(String, String)>,
    labels: BTreeMap<String, String>,
    content_type: Vec<String>,
    content_encoding: Vec<String>,
    body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Body {
    /// Its bytes, by length and hash.
    Verbatim(usize, String),
    /// A Push with its labels worked on.
    Push(Vec<Series>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    labels: Vec<(String, String)>,
    /// ID and `raw_profile`, by length and hash.
    samples: Vec<(String, usize, String)>,
}

/// What a destination must get for what an SDK sent.
fn expect(sent: &Exchange, labels: &str) -> Arrival {
    let mut arrival = Arrival {
        path: sent.path.clone(),
        query: vec![(sent.query.clone(), String::new())],
        labels: BTreeMap::new(),
        content_type: values(&sent.headers, "content-type"),
        content_encoding: values(&sent.headers, "content-encoding"),
        body: verbatim(&sent.body),
    };
    match (labels, &*sent.path) {
        ("alloy", INGEST) => {
            let (mut query, name) = parameters(&sent.query);
            query.sort_by(|one, other| one.0.cmp(&other.0));
            arrival.query = query;
            arrival.labels = expected_ingest_labels(read_name(&name));
        }
        ("alloy", PUSH) => {
            let plain = if arrival.content_encoding == ["gzip"] {
                inflate(&sent.body)
            } else {
                sent.body.clone()
            };
            arrival.query = vec![Default::default()];
            arrival.content_encoding.clear();
            let series = push_series(&plain).into_iter().map(|series| Series {
                labels: expected_push_labels(series.labels),
                ..series
            });
            arrival.body = Body::Push(series.collect());
        }
        _ => {}
    }
    arrival
}

/// What a sink has written down.
fn recorded(folder: &Path, labels: &str) -> Vec<Arrival> {
    let lines = fs::read_to_string(folder.join("lines")).expect("the sink writes it");
    let arrival = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("a line is JSON");
        let text = |key: &str| line[key].as_str().expect(key).to_owned();
        let headers: Vec<(String, String)> =
            serde_json::from_value(line["headers"].clone()).expect("pairs of text");
        let body = fs::read(folder.join("bodies").join(text("body_file"))).expect("written before its line");
        assert_eq!(text("method"), "POST");
        let mut arrival = Arrival {
            path: text("path"),
            query: vec![(text("query"), String::new())],
            labels: BTreeMap::new(),
            content_type: values(&headers, "content-type"),
            content_encoding: values(&headers, "content-encoding"),
            body: verbatim(&body),
        };
        match (labels, &*arrival.path) {
            ("alloy", INGEST) => {
                let (query, name) = parameters(&text("query"));
                arrival.query = query;
                arrival.labels = read_name(&name);
            }
            ("alloy", PUSH) => arrival.body = Body::Push(push_series(&body)),
            _ => {}
        }
        arrival
    };
    lines.lines().map(arrival).collect()
}

fn values(headers: &[(String, String)], name: &str) -> Vec<String> {
    let values = headers.iter().filter(|(key, _)| key == name);
    values.map(|(_, value)| value.clone()).collect()
}

fn verbatim(body: &[u8]) -> Body {
    Body::Verbatim(body.len(), hash(body))
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn inflate(body: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(body)
        .read_to_end(&mut plain)
        .expect("the SDK says that this is gzip");
    plain
}

/// Every parameter but `name`, decoded, and `name`.
fn parameters(query: &str) -> (Vec<(String, String)>, String) {
    let (names, others): (Vec<_>, Vec<_>) = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .partition(|(key, _)| key == "name");
    match &*names {
        [(_, name)] => (others, name.clone()),
        _ => panic!("one name in {query}"),
    }
}

/// `app{key=value,...}` as labels; the SDKs write nothing more difficult.
fn read_name(name: &str) -> BTreeMap<String, String> {
    let (app, labels) = name.split_once('{').unwrap_or((name, "}"));
    let labels = labels.strip_suffix('}').expect("a closed name");
    let pairs = labels.split(',').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').expect("key=value"));
    [("__name__", app)]
        .into_iter()
        .chain(pairs)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// WIRE.md 2.3, then 2.4 step 1.
fn expected_ingest_labels(mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    ensure_service_name(&mut labels);
    labels.insert("__name__".into(), labels["service_name"].clone());
    labels
}

/// WIRE.md 2.3, then 2.4 steps 3 and 5.
fn expected_push_labels(labels: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut labels: BTreeMap<_, _> = labels
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect();
    ensure_service_name(&mut labels);
    labels.retain(|name, _| !name.starts_with("__") || name == "__name__" || name == "__delta__");
    labels.into_iter().collect()
}

fn ensure_service_name(labels: &mut BTreeMap<String, String>) {
    let app = labels["__name__"].clone();
    let key = if labels.contains_key("service_name") {
        "app_name"
    } else {
        "service_name"
    };
    labels.insert(key.into(), app);
}

fn push_series(body: &[u8]) -> Vec<Series> {
    let push = PushRequest::decode(body).expect("a Push is protobuf");
    let series = push.series.into_iter().map(|series| Series {
        labels: series
            .labels
            .into_iter()
            .map(|label| (label.name, label.value))
            .collect(),
        samples: series
            .samples
            .into_iter()
            .map(|sample| (sample.id, sample.raw_profile.len(), hash(&sample.raw_profile)))
            .collect(),
    });
    series.collect()
}

#[test]
fn complaints_are_told_from_other_lines() {
    for (line, complains) in [
        ("[ERROR] upload profile: 500", true),
        ("2026-01-01T00:00:00Z ERROR pyroscope: no", true),
        ("ERROR", true),
        ("2026-01-01T00:00:00.000Z pyroscope failed to send", true),
        ("thread 'main' panicked at src/main.rs:1:1:", true),
        ("Traceback (most recent call last):", true),
        ("Exception in thread \"main\" java.lang.Error", true),
        ("[INFO] starting profiling session", false),
        ("NO_ERRORS seen", false),
        ("TERRORS", false),
        ("a Z pyroscope line", false),
    ] {
        assert_eq!(is_complaint(line), complains, "{line}");
    }
}
