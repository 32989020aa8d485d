//! Rows 110 (its metric) and 129 to 131 of WIRE.md section 9: Alloy's metric names and labels on the admin port.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pyrotee::runtime::clock;

use super::gateway::{Engine, Gateway, INGEST, PUSH, bare, under_both_engines};
use super::push::{request, series};
use super::scripted::Scripted;
use super::support::{DEADLINE, get};

under_both_engines!(
    row_129_connections,
    row_130_request_durations,
    row_131_profiles_and_bytes,
    row_110_retries_are_counted,
);

/// A gateway with an admin port.
fn observed(engine: Engine, destinations: &[&Scripted], flags: &[&str]) -> (Gateway, SocketAddr) {
    let gateway = Gateway::to(
        engine,
        destinations,
        &[&["--admin", "127.0.0.1:0"], flags].concat(),
    );
    let admin = gateway.log_line("admin port address=");
    (gateway, admin.trim().parse().expect("the log names the address"))
}

/// The samples of a scrape, by name and labels as printed.
fn scrape(admin: SocketAddr) -> BTreeMap<String, f64> {
    let text = get(admin, "/metrics").text();
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let samples = lines.map(|line| {
        let (name, value) = line
            .rsplit_once(' ')
            .unwrap_or_else(|| panic!("no sample: {line}"));
        (
            name.to_owned(),
            value.parse().unwrap_or_else(|_| panic!("no number: {line}")),
        )
    });
    samples.collect()
}

/// Waits until samples have these values: counters move when an answer is out already.
fn assert_samples(admin: SocketAddr, expected: &[(&str, f64)]) {
    let mut seen = BTreeMap::new();
    let deadline = clock::now().after(DEADLINE);
    while clock::now() < deadline {
        seen = scrape(admin);
        if expected
            .iter()
            .all(|(name, value)| seen.get(*name) == Some(value))
        {
            return;
        }
        std::thread::sleep(super::gateway::ms(10));
    }
    let wrong: Vec<_> = expected
        .iter()
        .map(|(name, value)| (name, value, seen.get(*name)))
        .filter(|(_, value, got)| *got != Some(*value))
        .collect();
    panic!("{wrong:#?}\nin {seen:#?}");
}

fn row_129_connections(engine: Engine) {
    let a = Scripted::healthy();
    let (gateway, admin) = observed(engine, &[&a], &["--conn-limit", "77"]);
    let mut clients = [gateway.client(), gateway.client()];
    for client in &mut clients {
        assert_eq!(client.post(INGEST, &[], b"x").unwrap().status, 200);
    }
    let limit = (
        "pyroscope_receive_http_tcp_connections_limit{protocol=\"http\"}",
        77.0,
    );
    let open = "pyroscope_receive_http_tcp_connections{protocol=\"http\"}";
    assert_samples(admin, &[limit, (open, 2.0)]);
    drop(clients);
    assert_samples(admin, &[limit, (open, 0.0)]);
}

fn row_130_request_durations(engine: Engine) {
    let a = Scripted::healthy();
    let (gateway, admin) = observed(engine, &[&a], &[]);
    gateway.post(INGEST, &[], b"x");
    gateway.post(INGEST, &[], b"x");
    gateway.post("/ingest", &[], b"x");
    gateway.push(b"");
    gateway.push(b"\xff");
    gateway.post("/nothing", &[], b"x");
    for (method, target) in [("GET", INGEST), ("GET", PUSH), ("GET", "//ingest")] {
        gateway.raw(bare(method, target).as_bytes());
    }
    let count = |method: &str, route: &str, status: u16| {
        format!(
            "pyroscope_receive_http_request_duration_seconds_count{{method=\"{method}\",route=\"{route}\",\
             status_code=\"{status}\",ws=\"false\"}}"
        )
    };
    assert_samples(
        admin,
        &[
            (&count("POST", "ingest", 200), 2.0),
            (&count("POST", "ingest", 400), 1.0),
            (&count("POST", "push_v1_pusherservice", 200), 1.0),
            (&count("POST", "push_v1_pusherservice", 400), 1.0),
            (&count("POST", "other", 404), 1.0),
            (&count("GET", "other", 405), 2.0),
            (&count("GET", "other", 301), 1.0),
        ],
    );
    let buckets: Vec<String> = scrape(admin)
        .into_keys()
        .filter(|name| {
            name.contains("request_duration_seconds_bucket")
                && name.contains("route=\"ingest\",status_code=\"200\"")
        })
        .collect();
    for bound in [
        "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "25", "50", "100",
        "+Inf",
    ] {
        let mark = format!("le=\"{bound}\"");
        assert!(
            buckets.iter().any(|name| name.contains(&mark)),
            "no {mark} in {buckets:?}"
        );
    }
    assert_eq!(buckets.len(), 15, "dskit's buckets and no others");
}

fn row_131_profiles_and_bytes(engine: Engine) {
    let (a, b) = (Scripted::healthy(), Scripted::answering(&[400]));
    let (gateway, admin) = observed(engine, &[&a, &b], &[]);
    gateway.post(INGEST, &[], &[b'x'; 1000]);
    let two = [
        series(&[("service_name", "one")], &[b"12345", b"123"]),
        series(&[("service_name", "two")], &[b"1"]),
    ];
    gateway.push(&request(&two));
    // Alloy's semantics: the body of /ingest, the raw profiles of a Push; 1 profile, or as many as samples.
    assert_samples(
        admin,
        &[
            ("pyroscope_write_sent_bytes_total{endpoint=\"a\"}", 1009.0),
            ("pyroscope_write_sent_profiles_total{endpoint=\"a\"}", 4.0),
            ("pyroscope_write_dropped_bytes_total{endpoint=\"a\"}", 0.0),
            ("pyroscope_write_dropped_profiles_total{endpoint=\"a\"}", 0.0),
            ("pyroscope_write_sent_bytes_total{endpoint=\"b\"}", 0.0),
            ("pyroscope_write_dropped_bytes_total{endpoint=\"b\"}", 1009.0),
            ("pyroscope_write_dropped_profiles_total{endpoint=\"b\"}", 4.0),
            ("pyroscope_write_retries_total{endpoint=\"a\"}", 0.0),
            (
                "pyroscope_write_latency_count{endpoint=\"a\",type=\"ingest_downstream\"}",
                1.0,
            ),
            (
                "pyroscope_write_latency_count{endpoint=\"a\",type=\"ingest_endpoint\"}",
                1.0,
            ),
            (
                "pyroscope_write_latency_count{endpoint=\"a\",type=\"push_downstream\"}",
                1.0,
            ),
            (
                "pyroscope_write_latency_count{endpoint=\"a\",type=\"push_endpoint\"}",
                1.0,
            ),
        ],
    );
}

fn row_110_retries_are_counted(engine: Engine) {
    let a = Scripted::answering(&[503]);
    let (gateway, admin) = observed(engine, &[&a], &["--max-retries", "3"]);
    assert_eq!(gateway.post(INGEST, &[], b"x").status, 503);
    assert_eq!(a.received().len(), 3);
    assert_samples(admin, &[("pyroscope_write_retries_total{endpoint=\"a\"}", 2.0)]);
}
