//! The admin port as its users see it: over real sockets, with books, errors and secrets planted in what it observes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::Parser;
use pyrotee::admin::metrics::ROWS;
use pyrotee::admin::text::Kind;
use pyrotee::admin::{Front, InForce, Listed, Observed, Port, Reloads, serve};
use pyrotee::config::{Flags, Host, Overflow, Plan};
use pyrotee::fanout::push::PushParts;
use pyrotee::fanout::status::Span;
use pyrotee::fanout::{AckMode, DestinationId, DropReason, Fanout, Gate, Outcome, Push, SpoolLink};
use pyrotee::http::Method;
use pyrotee::inbound::Connections;
use pyrotee::inbound::tally::{CopySite, RouteLabel, Tally};
use pyrotee::profile::route::Route;
use pyrotee::runtime::clock;
use pyrotee::runtime::engine::{Engine, Verdict};
use pyrotee::runtime::phase::Phase;
use pyrotee::runtime::pool::MemoryBudget;
use tokio::sync::{oneshot, watch};

/// Nothing here takes longer, however busy the machine.
const DEADLINE: Duration = Duration::from_secs(20);
/// What no page may show: a password, its Basic form, a header's value, and text that would be markup.
const SECRETS: [&str; 4] = ["hunter2", "b3BzOmh1bnRlcjI=", "s3cr3t-token", "<script>alert"];
const OPEN_METRICS: &str = "Accept: application/openmetrics-text; version=1.0.0\r\n";
const PAGES: [&str; 5] = ["/", "/metrics", "/-/config", "/-/status", "/-/ready"];

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

/// A running admin port over a made-up gateway with the destinations `eu`, `us` and `archive`.
struct Gateway {
    address: SocketAddr,
    gates: Vec<&'static Gate>,
    fanout: Fanout,
    tallies: Vec<Arc<Tally>>,
    phase: watch::Sender<Phase>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Gateway {
    fn start() -> Self {
        let flags = Line::try_parse_from([
            "run",
            "--to",
            "eu=http://ops:hunter2@eu.example:4040/base,max-age=30m",
            "--to",
            "us=http://us.example:4040,header.X-Token=s3cr3t-token",
            "--to",
            "archive=file:./profiles",
        ])
        .unwrap()
        .flags;
        let host = Host {
            cpus: vec![0],
            cpu_quota: None,
        };
        let plan = Arc::new(Plan::new(&flags, &host).unwrap());
        let gate = |(index, name, limit): (usize, &String, u64)| -> &'static Gate {
            let gate = Gate::new(DestinationId(index), name.clone(), limit);
            Box::leak(Box::new(match index {
                0 => gate.with_spool(SpoolLink::new(false, limit)),
                _ => gate,
            }))
        };
        let planned = plan.destinations.iter().enumerate();
        let gates: Vec<_> = planned
            .map(|(index, one)| gate((index, &one.name, one.queue_limit)))
            .collect();
        let tallies = vec![Arc::new(Tally::default()), Arc::new(Tally::default())];
        let (phase, phases) = watch::channel(Phase::Serving);
        let listed = gates.iter().zip(&plan.destinations).map(|(gate, one)| Listed {
            gate,
            plan: Arc::new(one.clone()),
            core: one.is_http().then_some(0),
            is_leaving: false,
        });
        let in_force = InForce {
            destinations: listed.collect(),
            plan: plan.clone(),
        };
        let observed = Arc::new(Observed {
            in_force: Arc::new(ArcSwap::from_pointee(in_force)),
            reloads: Arc::new(Reloads::begin(1_000)),
            engine: Verdict {
                engine: Engine::Epoll,
                reason: "a \"quoted\\path\"\nand <script>alert(1)</script>".into(),
            },
            tallies: tallies.clone(),
            connections: Arc::new(Connections::new(plan.conn_limit, 1)),
            memory: MemoryBudget::new(plan.memory_limit),
            phase: phases,
            started_unix_ms: u64::try_from(clock::unix_now().as_millis()).unwrap() - 5_000,
        });
        let (end, ended) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let port = Port::bind(([127, 0, 0, 1], 0).into()).await?;
                let _ = tell.send(port.address()?);
                let front = Front::new(watch::channel(String::new()).1);
                front.open(observed, None);
                serve(port, front, async { drop(ended.await) }).await
            })
        });
        let address = told.recv().expect("it listens");
        let gateway = Self {
            address,
            fanout: Fanout::new(gates.clone(), Overflow::DropOldest),
            gates,
            tallies,
            phase,
            end: Some(end),
            thread: Some(thread),
        };
        // Its first sample is taken before the first answer, and so before any traffic.
        assert_eq!(gateway.get("/-/healthy").status, 200);
        gateway
    }

    /// Three pushes: `eu` has them, `us` refuses one and holds two, `archive` has lost one and holds two.
    fn with_traffic() -> Self {
        let gateway = Self::start();
        for bytes in [100, 200, 300] {
            let parts = PushParts {
                route: Route::Ingest,
                query: Default::default(),
                fields: Default::default(),
                segments: Default::default(),
                bytes,
                profile_bytes: bytes - 1,
                profiles: 2,
                accepted: clock::now(),
                accepted_unix_ms: 0,
                client_deadline: clock::Mono::NEVER,
                charge: None,
                pinned_bytes: 0,
            };
            gateway
                .fanout
                .offer(&Arc::new(Push::new(parts, AckMode::Detached, 3)))
                .unwrap();
        }
        let [eu, us, archive] = gateway.gates[..] else {
            panic!("three gates")
        };
        while let Some(parcel) = eu.take() {
            eu.status.attempted(true);
            eu.status
                .observe(Route::Ingest, Span::Downstream, Duration::from_millis(7));
            eu.status.delivered(clock::now());
            parcel.ticket.resolve(Outcome::Delivered);
        }
        us.status.set_up(false);
        us.status
            .failed("connection refused <script>alert(2)</script>".into());
        us.status.set_waiting(Some(clock::now()));
        us.status.set_window(1, [0, 2, 1, 0]);
        us.begin_attempt();
        us.take().unwrap().ticket.resolve(Outcome::Answered {
            status: 400,
            code: None,
            reason: DropReason::Rejected,
        });
        drop(archive.take());
        let [one, other] = &gateway.tallies[..] else {
            panic!("two tallies")
        };
        for tally in [one, other] {
            tally.answered(Method::Post, RouteLabel::Ingest, 200, Duration::from_millis(3));
            tally.received(300);
        }
        one.answered(Method::Post, RouteLabel::Ingest, 400, Duration::from_secs(200));
        one.refused("name_missing");
        other.copied(CopySite::TinyChunks, 9);
        gateway
    }

    fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Answer {
            status: status.expect("a status"),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join().expect("the server does not panic");
            if !std::thread::panicking() {
                ended.expect("the server ends well");
            }
        }
    }
}

/// One scrape, read as strictly as the two formats are written down.
#[derive(Debug, Default)]
struct Scrape {
    /// Name without suffixes → type.
    families: BTreeMap<String, String>,
    /// Series as written → value.
    series: BTreeMap<String, f64>,
    /// The bucket read last: its series without `le`, its bound and its value.
    bucket: (String, f64, f64),
}

impl Scrape {
    fn read(text: &str, open_metrics: bool) -> Self {
        let mut scrape = Self::default();
        let mut lines = text
            .strip_suffix('\n')
            .expect("the last line ends")
            .split('\n')
            .peekable();
        let mut ended = false;
        while let Some(line) = lines.next() {
            assert!(!ended, "something follows the end: {line}");
            if line == "# EOF" {
                ended = true;
                continue;
            }
            let (family, help) = line
                .strip_prefix("# HELP ")
                .and_then(|rest| rest.split_once(' '))
                .expect(line);
            assert!(!help.trim().is_empty(), "{family} has help");
            let kind = lines
                .next()
                .and_then(|line| line.strip_prefix("# TYPE "))
                .expect("a type follows");
            let kind = kind
                .strip_prefix(family)
                .expect("of the same family")
                .trim()
                .to_owned();
            if let Some(unit) = lines.next_if(|line| line.starts_with("# UNIT ")) {
                assert!(open_metrics, "{unit}");
                let unit = unit.rsplit(' ').next().unwrap();
                assert!(
                    family.ends_with(&format!("_{unit}")),
                    "{family} ends in its unit {unit}"
                );
            }
            while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
                scrape.sample(sample, family, &kind, open_metrics);
            }
            let before = scrape.families.insert(family.to_owned(), kind);
            assert_eq!(before, None, "{family} comes once");
        }
        assert_eq!(ended, open_metrics, "only OpenMetrics has an end mark");
        scrape.check_histograms();
        scrape
    }

    fn sample(&mut self, line: &str, family: &str, kind: &str, open_metrics: bool) {
        let (series, value) = line.rsplit_once(' ').expect(line);
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, read_labels(labels.strip_suffix('}').expect(line))),
            None => (series, Vec::new()),
        };
        let suffix = name
            .strip_prefix(family)
            .unwrap_or_else(|| panic!("{name} is not of {family}"));
        let suffixes: &[&str] = match (kind, open_metrics) {
            ("histogram", _) => &["_bucket", "_sum", "_count"],
            ("counter", true) => &["_total"],
            ("info", true) => &["_info"],
            _ => &[""],
        };
        assert!(suffixes.contains(&suffix), "{line}");
        let names: Vec<_> = labels.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{line}");
        assert_eq!(names.contains(&"le".to_owned()), suffix == "_bucket", "{line}");
        let value: f64 = value.parse().expect(line);
        assert!(value.is_finite() && value >= 0.0, "{line}");
        if let Some((_, le)) = labels.iter().find(|(name, _)| name == "le") {
            let base = series.replace(&format!("le=\"{le}\""), "");
            let bound: f64 = le.parse().expect(line);
            let (last, last_bound, last_value) = &self.bucket;
            assert!(
                *last != base || (*last_bound < bound && *last_value <= value),
                "{line} goes up"
            );
            assert!(
                !open_metrics || le.contains('.') || le == "+Inf",
                "{line}: OpenMetrics wants 1.0, not 1"
            );
            self.bucket = (base, bound, value);
        }
        assert_eq!(
            self.series.insert(series.to_owned(), value),
            None,
            "{line} comes once"
        );
    }

    fn check_histograms(&self) {
        let mut below = 0.0_f64;
        for (series, value) in &self.series {
            if let Some(infinite) = series.strip_suffix("le=\"+Inf\"}") {
                let base = infinite.replace("_bucket{", "_count{");
                let count = format!("{}}}", base.trim_end_matches(','));
                assert_eq!(
                    self.series.get(&count),
                    Some(value),
                    "{count} is what +Inf counts"
                );
                below = below.max(*value);
            }
        }
        assert!(below > 0.0, "the test observes something");
    }

    fn value(&self, series: &str) -> f64 {
        *self
            .series
            .get(series)
            .unwrap_or_else(|| panic!("no {series} in {:#?}", self.series.keys()))
    }

    fn sum(&self, start: &str) -> f64 {
        self.series
            .iter()
            .filter(|(series, _)| series.starts_with(start))
            .map(|(_, value)| value)
            .sum()
    }
}

/// Reads `a="x",b="y"`, with the three escapes that exist.
fn read_labels(text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").expect(text);
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{text}");
        let mut chars = value.char_indices();
        let mut unescaped = String::new();
        let end = loop {
            match chars.next().expect("the value is closed") {
                (at, '"') => break at,
                (_, '\\') => unescaped.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, c @ ('\\' | '"'))) => c,
                    other => panic!("unknown escape {other:?} in {text}"),
                }),
                (_, c) => unescaped.push(c),
            }
        };
        labels.push((name.to_owned(), unescaped));
        rest = value[end + 1..].strip_prefix(',').unwrap_or(&value[end + 1..]);
    }
    labels
}

fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
        Kind::Info => "info",
    }
}

#[test]
fn a_scrape_and_the_table_of_metrics_agree_in_both_formats() {
    let gateway = Gateway::with_traffic();
    for (headers, open_metrics, content_type) in [
        ("", false, "text/plain; version=0.0.4; charset=utf-8"),
        (
            OPEN_METRICS,
            true,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ] {
        let answer = gateway.ask("GET", "/metrics", headers);
        assert_eq!(answer.status, 200);
        assert!(
            answer.head.contains(&format!("content-type: {content_type}")),
            "{}",
            answer.head
        );
        let scrape = Scrape::read(&answer.body, open_metrics);
        let expected: BTreeMap<String, String> = ROWS
            .iter()
            .map(|row| match (row.family.kind, open_metrics) {
                (Kind::Counter, true) => (
                    row.family.name.trim_end_matches("_total").into(),
                    "counter".into(),
                ),
                (Kind::Info, true) => (row.family.name.trim_end_matches("_info").into(), "info".into()),
                (Kind::Info, false) => (row.family.name.into(), "gauge".into()),
                (kind, _) => (row.family.name.into(), kind_text(kind).into()),
            })
            .collect();
        assert_eq!(scrape.families, expected);
        assert_eq!(expected.len(), ROWS.len(), "no two rows share a name");
        for row in &ROWS {
            let is_there = scrape.series.keys().any(|series| {
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                let suffix = name.strip_prefix(row.family.name);
                let labels = read_labels(labels.strip_suffix('}').unwrap());
                let names: Vec<_> = labels
                    .iter()
                    .map(|(name, _)| name.as_str())
                    .filter(|name| *name != "le")
                    .collect();
                matches!(suffix, Some("" | "_bucket" | "_total")) && names == row.family.labels
            });
            assert!(is_there, "{} has a series with its labels", row.family.name);
        }
    }
}

#[test]
fn metric_names_follow_one_pattern() {
    for row in &ROWS {
        let family = &row.family;
        let name = family.name;
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        assert!(
            ["pyroscope_", "pyrotee_", "process_"]
                .iter()
                .any(|area| name.starts_with(area)),
            "{name}"
        );
        // Alloy's names without the ending stay as they are.
        if !name.starts_with("pyroscope_relabel_") {
            assert_eq!(family.kind == Kind::Counter, name.ends_with("_total"), "{name}");
        }
        assert_eq!(family.kind == Kind::Info, name.ends_with("_info"), "{name}");
        let noun = name.trim_end_matches("_total");
        // Alloy's names that leave their unit out, or say it earlier.
        if name != "pyroscope_write_latency" && !name.starts_with("pyroscope_relabel_") {
            assert!(
                family.unit.is_empty() || noun.ends_with(&format!("_{}", family.unit)),
                "{name} ends in its unit"
            );
        }
        assert!(
            family.kind != Kind::Counter || !family.unit.is_empty(),
            "{name} counts something"
        );
        assert!(family.help.ends_with('.'), "{name}: help is a sentence");
        assert!(!family.labels.contains(&"url"), "{name}");
    }
}

#[test]
fn the_documentation_lists_exactly_the_metrics_that_exist() {
    let documentation = include_str!("../docs/metrics.md");
    let documented: BTreeSet<&str> = documentation
        .lines()
        .filter(|line| line.starts_with("| `p"))
        .collect();
    let lines: Vec<String> = ROWS
        .iter()
        .map(|row| {
            let family = &row.family;
            let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            let (kind, labels) = (kind_text(family.kind), labels.join(" "));
            format!(
                "| `{}` | {kind} | {} | {labels} | {} |",
                family.name, family.unit, family.help
            )
        })
        .collect();
    let expected: BTreeSet<&str> = lines.iter().map(String::as_str).collect();
    let missing: Vec<_> = expected.difference(&documented).collect();
    let surplus: Vec<_> = documented.difference(&expected).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "docs/metrics.md lacks:\n{missing:#?}\nand has what does not exist:\n{surplus:#?}"
    );
}

#[test]
fn the_books_can_be_balanced_from_a_scrape() {
    let gateway = Gateway::with_traffic();
    let scrape = Scrape::read(&gateway.get("/metrics").body, false);
    for (name, accepted, delivered, dropped, held) in [
        ("eu", 600.0, 600.0, 0.0, 0.0),
        ("us", 600.0, 0.0, 100.0, 500.0),
        ("archive", 600.0, 0.0, 100.0, 500.0),
    ] {
        let of =
            |metric: &str| scrape.value(&format!("pyrotee_destination_{metric}{{destination=\"{name}\"}}"));
        let drops = |unit: &str| {
            scrape.sum(&format!(
                "pyrotee_destination_dropped_{unit}_total{{destination=\"{name}\","
            ))
        };
        assert_eq!(
            [
                of("accepted_bytes_total"),
                of("delivered_bytes_total"),
                drops("bytes"),
                of("held_bytes")
            ],
            [accepted, delivered, dropped, held],
            "{name}"
        );
        assert_eq!(
            of("accepted_parcels_total"),
            of("delivered_parcels_total") + drops("parcels") + of("held_parcels"),
            "{name}"
        );
        assert_eq!(
            of("held_parcels"),
            of("queued_parcels") + of("in_flight_parcels"),
            "{name}"
        );
    }
    for (series, value) in [
        (
            "pyrotee_destination_dropped_parcels_total{destination=\"us\",reason=\"rejected\"}",
            1.0,
        ),
        (
            "pyrotee_destination_dropped_parcels_total{destination=\"archive\",reason=\"abandoned\"}",
            1.0,
        ),
        ("pyrotee_destination_up{destination=\"us\"}", 0.0),
        ("pyrotee_destination_in_flight_parcels{destination=\"us\"}", 1.0),
        ("pyroscope_write_sent_bytes_total{endpoint=\"eu\"}", 597.0),
        ("pyroscope_write_sent_profiles_total{endpoint=\"eu\"}", 6.0),
        ("pyroscope_write_dropped_bytes_total{endpoint=\"us\"}", 99.0),
        ("pyroscope_write_dropped_profiles_total{endpoint=\"us\"}", 2.0),
        ("pyroscope_write_retries_total{endpoint=\"eu\"}", 3.0),
        (
            "pyroscope_write_latency_bucket{endpoint=\"eu\",type=\"ingest_downstream\",le=\"0.01\"}",
            3.0,
        ),
        (
            "pyroscope_write_latency_bucket{endpoint=\"eu\",type=\"ingest_downstream\",le=\"0.005\"}",
            0.0,
        ),
        ("pyrotee_inbound_body_received_bytes_total", 600.0),
        (
            "pyrotee_inbound_body_copied_bytes_total{site=\"tiny_chunks\"}",
            9.0,
        ),
        (
            "pyrotee_inbound_refused_requests_total{reason=\"name_missing\"}",
            1.0,
        ),
        (
            "pyroscope_receive_http_tcp_connections_limit{protocol=\"http\"}",
            16384.0,
        ),
        (
            "pyroscope_receive_http_request_duration_seconds_count\
             {method=\"POST\",route=\"ingest\",status_code=\"200\",ws=\"false\"}",
            2.0,
        ),
        (
            "pyroscope_receive_http_request_duration_seconds_bucket\
             {method=\"POST\",route=\"ingest\",status_code=\"400\",ws=\"false\",le=\"100\"}",
            0.0,
        ),
    ] {
        assert_eq!(scrape.value(series), value, "{series}");
    }
    assert!(
        !scrape
            .series
            .contains_key("pyrotee_destination_last_success_timestamp_seconds{destination=\"us\"}")
    );
    let uptime = |scrape: &Scrape| scrape.value("pyrotee_process_uptime_seconds");
    let later = Scrape::read(&gateway.get("/metrics").body, false);
    assert!(uptime(&later) > uptime(&scrape) && uptime(&scrape) >= 0.0);
}

#[test]
fn labels_are_escaped_and_read_back_the_same() {
    let gateway = Gateway::with_traffic();
    let scrape = Scrape::read(&gateway.get("/metrics").body, false);
    let series = scrape
        .series
        .keys()
        .find(|series| series.starts_with("pyrotee_engine_info{"))
        .unwrap();
    let labels = series.split_once('{').unwrap().1.strip_suffix('}').unwrap();
    assert_eq!(
        read_labels(labels),
        [
            ("engine".to_owned(), "epoll".to_owned()),
            (
                "reason".to_owned(),
                "a \"quoted\\path\"\nand <script>alert(1)</script>".to_owned()
            )
        ]
    );
}

#[test]
fn liveness_and_readiness_are_told_apart() {
    let gateway = Gateway::with_traffic();
    assert_eq!(gateway.get("/-/healthy").status, 200);
    // A destination is down, and that is nobody's reason to restart or to leave this gateway.
    for path in ["/-/ready", "/ready"] {
        assert_eq!(gateway.get(path).status, 200, "{path}");
    }
    for (phase, says) in [
        (Phase::Draining, "queues are being emptied"),
        (Phase::GivingUp, "drain timeout has passed"),
        (Phase::Leaving, "drain timeout has passed"),
    ] {
        gateway.phase.send(phase).unwrap();
        for path in ["/-/ready", "/ready"] {
            let answer = gateway.get(path);
            assert_eq!(answer.status, 503, "{path} {phase:?}");
            assert!(answer.body.contains(says), "{phase:?}: {}", answer.body);
        }
        assert_eq!(gateway.get("/-/healthy").status, 200, "{phase:?}");
        let scrape = Scrape::read(&gateway.get("/metrics").body, false);
        assert_eq!(scrape.value("pyrotee_process_ready"), 0.0, "{phase:?}");
    }
    assert!(gateway.get("/").body.contains("Shutting down."));
}

#[test]
fn what_is_not_there_is_said_so() {
    let gateway = Gateway::with_traffic();
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/metrics/", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/", 405),
        ("HEAD", "/", 200),
        ("HEAD", "/metrics", 200),
    ] {
        let answer = gateway.ask(method, path, "");
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.body.is_empty(), method == "HEAD", "{method} {path}");
    }
}

#[test]
fn no_page_shows_a_secret_or_lets_text_become_markup() {
    let gateway = Gateway::with_traffic();
    for page in PAGES.into_iter().chain(["/-/healthy", "/nothing"]) {
        let answer = gateway.get(page);
        let is_html = answer.head.contains("content-type: text/html");
        for secret in SECRETS {
            let matters = is_html || !secret.starts_with('<');
            assert!(
                !(matters && answer.body.contains(secret)),
                "{page} shows {secret}"
            );
        }
        for header in [
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "referrer-policy: no-referrer",
            "content-security-policy: default-src 'none'",
        ] {
            assert!(
                answer.head.contains(header),
                "{page} lacks {header}: {}",
                answer.head
            );
        }
        if page != "/-/config" {
            assert!(
                !answer.body.contains("eu.example"),
                "{page} shows where a destination is"
            );
        }
    }
    assert!(gateway.get("/-/config").body.contains("<redacted>"));
}

#[test]
fn the_status_page_is_complete_without_its_script() {
    let gateway = Gateway::with_traffic();
    let answer = gateway.get("/");
    assert_eq!(answer.status, 200);
    let page = &answer.body;
    for part in [
        "us is down.",
        "Profiles are being dropped.",
        "connection refused &lt;script&gt;alert(2)",
        "1 rejected",
        "name parameter",
        "<noscript><meta http-equiv=\"refresh\"",
        "prefers-color-scheme: dark",
        "500\u{a0}B of 256\u{a0}MiB",
        "≤\u{a0}10\u{a0}ms / ≤\u{a0}10\u{a0}ms",
        "epoll",
        env!("CARGO_PKG_VERSION"),
    ] {
        assert!(page.contains(part), "the page lacks {part}");
    }
    assert!(!page.contains("(no "), "every mark of the templates is filled");
    assert!(!page.contains("[[") && !page.contains("{{"), "no mark is left");
    for outside in ["src=\"http", "href=\"http", "url(http", "@import"] {
        assert!(!page.contains(outside), "the page asks elsewhere: {outside}");
    }
    let nonce = answer
        .head
        .split("'nonce-")
        .nth(1)
        .and_then(|rest| rest.split('\'').next())
        .unwrap();
    assert_eq!(
        page.matches(&format!("nonce=\"{nonce}\"")).count(),
        2,
        "the style's and the script's"
    );
    assert_eq!(page.matches("<script").count(), 1);
    assert!(!page.contains("style=\""), "inline styles would be blocked");
    assert!(!gateway.get("/").head.contains(nonce), "a nonce is used once");
}

#[test]
fn the_script_finds_all_it_needs_in_the_status() {
    let gateway = Gateway::with_traffic();
    let page = gateway.get("/").body;
    let status: serde_json::Value = serde_json::from_str(&gateway.get("/-/status").body).unwrap();
    for (attribute, part) in [
        ("data-text", "texts"),
        ("data-bar", "bars"),
        ("data-curve", "curves"),
        ("data-bind-state", "states"),
        ("data-rows", "rows"),
    ] {
        let keys: BTreeSet<&str> = page
            .split(&format!("{attribute}=\""))
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap())
            .filter(|key| !key.is_empty())
            .collect();
        assert!(!keys.is_empty(), "{attribute} is used");
        let told: BTreeSet<&str> = status["page"][part]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(keys, told, "{attribute}");
    }
    assert_eq!(status["destinations"][1]["state"], "down");
    assert_eq!(status["destinations"][1]["dropped"]["rejected"]["parcels"], 1);
    assert_eq!(status["destinations"][0]["delivered"]["bytes"], 600);
    assert_eq!(status["totals"]["accepted_pushes"], 3);
    assert_eq!(status["refusals"][0]["reason"], "name_missing");
}

#[test]
fn the_effective_plan_is_shown_as_an_operator_writes_it() {
    let gateway = Gateway::with_traffic();
    let config: serde_json::Value = serde_json::from_str(&gateway.get("/-/config").body).unwrap();
    assert_eq!(config["plan"]["destinations"][0]["max_age"], "1800s");
    let auth = &config["plan"]["destinations"][0]["auth"];
    assert_eq!(auth["scheme"]["credentials"]["value"], "<redacted>");
    assert_eq!(config["plan"]["engine"], "auto");
    assert_eq!(config["plan"]["log_level"], "info");
    assert_eq!(config["derived"]["engine"], "epoll");
    assert_eq!(config["derived"]["destination_connections_max"], 192);
}

#[test]
fn a_client_that_says_nothing_does_not_keep_the_process_from_ending() {
    let mut gateway = Gateway::start();
    let mut silent = TcpStream::connect(gateway.address).unwrap();
    silent.write_all(b"GET / HTT").unwrap();
    assert_eq!(gateway.get("/-/healthy").status, 200);
    let started = clock::now();
    gateway.end.take();
    gateway.thread.take().unwrap().join().unwrap().unwrap();
    assert!(clock::now().since(started) < DEADLINE);
}
