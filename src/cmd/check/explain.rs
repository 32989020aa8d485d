//! What a plan means, in sentences. Pure.
//!
//! Not responsible for finding mistakes: a plan has none.

use std::net::SocketAddr;

use serde::Serialize;

use crate::cmd::show;
use crate::config::alloy::rule;
use crate::config::destination::proxy::NoProxy;
use crate::config::units::show_size;
use crate::config::{
    AckPolicy, AuthPlan, ClientAuth, ClientTls, DestinationPlan, DestinationTarget, LabelMode, Overflow,
    Plan, ProxyPlan, ServerTls, TlsVersion, TraceHeaders,
};
use crate::http::HeadLimits;
use crate::inbound::ROOM_WAIT;
use crate::outbound::health::{self, DOWN_AFTER};
use crate::outbound::window::{RAMP_START, RAMP_STEP};
use crate::profile::relabel::RuleSpec;
use crate::runtime::engine::EngineChoice;

/// For "so many of this size": what a profile usually has.
const PROFILE_BYTES: u64 = 16 << 10;

/// What belongs together.
#[derive(Debug, Serialize)]
pub struct Section {
    title: String,
    lines: Vec<Line>,
}

/// One thing, and what is said of it.
#[derive(Debug, Serialize)]
struct Line {
    what: String,
    says: String,
}

impl Section {
    fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            lines: Vec::new(),
        }
    }

    fn line(mut self, what: impl Into<String>, says: impl Into<String>) -> Self {
        self.lines.push(Line {
            what: what.into(),
            says: says.into(),
        });
        self
    }
}

/// The whole explanation.
pub fn sections(plan: &Plan) -> Vec<Section> {
    let mut all = vec![addresses(plan)];
    all.extend(plan.destinations.iter().map(|one| destination(one, plan)));
    if !plan.notes.is_empty() {
        let notes = Section::new("Notes on the file");
        let line = |section: Section, note: &String| match note.split_once(": ") {
            Some((place, note)) => section.line(place, note),
            None => section.line("", note),
        };
        all.push(plan.notes.iter().fold(notes, line));
    }
    all.extend([
        answers(plan),
        profiles(plan),
        limits(plan),
        threads(plan),
        ending(plan),
    ]);
    all
}

/// The explanation as a person reads it.
pub fn to_text(sections: &[Section]) -> String {
    let lines = sections.iter().flat_map(|section| &section.lines);
    let width = lines.map(|line| line.what.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for section in sections {
        text += &format!("{}\n", section.title);
        for line in &section.lines {
            text += &format!("  {:width$}  {}\n", line.what, line.says);
        }
        text += "\n";
    }
    text
}

fn addresses(plan: &Plan) -> Section {
    let mut section = Section::new("Addresses");
    for address in &plan.listen {
        let says = "clients: POST /ingest (also /pyroscope/ingest) and /push.v1.PusherService/Push";
        section = section.line(show_address(*address), says);
    }
    if let Some(tls) = &plan.tls {
        section = section.line("TLS", server_tls(tls));
    }
    section = section.line(
        "HTTP/2, gRPC",
        match (&plan.tls, plan.h2c) {
            (Some(_), _) => "served to clients that ask for it (ALPN), on the control thread",
            (None, true) => "served in cleartext to clients that begin with it, on the control thread",
            (None, false) => "no; give --h2c, or TLS",
        },
    );
    match plan.admin {
        Some(address) => {
            let says = "operators: / (status page), /metrics, /-/healthy, /-/ready, /-/config, /-/status";
            section.line(show_address(address), says)
        }
        None => section.line("--admin off", "no metrics, no health, no status page"),
    }
}

fn server_tls(tls: &ServerTls) -> String {
    let shown = match (tls.client_auth, &tls.client_ca_file) {
        (ClientAuth::NoClientCert, _) => "clients are asked for no certificate".to_owned(),
        (policy, None) => format!("{}: any certificate of a client will do", policy.name()),
        (policy, Some(file)) => format!("{}, with the authorities in {}", policy.name(), file.display()),
    };
    format!(
        "all of these, {}; certificate {}, key {}, read again when they change; {shown}",
        versions(tls.min_version),
        tls.cert_file.display(),
        tls.key_file.display()
    )
}

fn versions(min: TlsVersion) -> &'static str {
    match min {
        TlsVersion::Tls12 => "TLS 1.2 and 1.3",
        TlsVersion::Tls13 => "TLS 1.3",
    }
}

fn client_tls(tls: &ClientTls) -> String {
    let trusted = match (&tls.ca_file, tls.insecure_skip_verify) {
        (_, true) => "ANY certificate is taken, so anyone in between can read along".to_owned(),
        (Some(file), _) => format!(
            "its certificate must be for {} and signed by those in {}",
            tls.server_name,
            file.display()
        ),
        (None, _) => format!(
            "its certificate must be for {} and signed by those that the system trusts",
            tls.server_name
        ),
    };
    let shown = match &tls.cert_file {
        Some(file) => format!("; it is shown {}", file.display()),
        None => String::new(),
    };
    format!("{}; {trusted}{shown}", versions(tls.min_version))
}

fn show_address(address: SocketAddr) -> String {
    match address.port() {
        0 => format!("{} (a free port)", address.ip()),
        _ => address.to_string(),
    }
}

fn destination(one: &DestinationPlan, plan: &Plan) -> Section {
    let mut section = Section::new(format!("Destination {}", one.name));
    section = match &one.target {
        DestinationTarget::Http {
            host,
            port,
            ingest_path,
            push_path,
            ..
        } => section
            .line(
                "where",
                format!(
                    "{}, host {host}, port {port}; looked up anew every {}",
                    if one.tls.is_some() { "https" } else { "http" },
                    show::duration(plan.dns_refresh)
                ),
            )
            .line("posts to", format!("{ingest_path} and {push_path}")),
        DestinationTarget::File { directory } => section.line(
            "where",
            format!("an archive in {}: one file per profile", directory.display()),
        ),
    };
    if let Some(tls) = &one.tls {
        section = section.line("TLS", client_tls(tls));
    }
    let mut names: Vec<&str> = one.headers.iter().map(|(name, _)| &**name).collect();
    names.extend(one.header_files.iter().map(|(name, _)| &**name));
    if one.auth != AuthPlan::None {
        names.push("Authorization");
    }
    if !names.is_empty() {
        section = section.line(
            "headers set",
            format!("{} (values are not shown)", names.join(", ")),
        );
    }
    if let Some(says) = proxies(&one.proxy) {
        section = section.line("proxy", says);
    }
    if let AuthPlan::OAuth2(plan) = &one.auth {
        let url = &plan.token_url;
        let scheme = url
            .tls
            .as_ref()
            .map_or("http".to_owned(), |tls| format!("https ({})", client_tls(tls)));
        let says = format!(
            "by {scheme} from host {}, port {}; without one, profiles wait",
            url.host, url.port
        );
        section = section.line("access tokens", says);
    }
    let files = one.secret_files();
    if !files.is_empty() {
        let files: Vec<String> = files.iter().map(|(_, path)| path.display().to_string()).collect();
        section = section.line(
            "secret files",
            format!("{}; read at start, and again when they change", files.join(", ")),
        );
    }
    if matches!(one.target, DestinationTarget::Http { .. }) {
        section = section
            .line(
                "at a time",
                format!(
                    "1 to {}, as many connections: more while answers come as fast, fewer while they are slow, 429 or \
                     503; {RAMP_START} after an outage, doubling every {}",
                    show::several(one.inflight as u64, "request"),
                    show::duration(RAMP_STEP),
                ),
            )
            .line(
                "one attempt",
                format!("at most {}", show::duration(one.remote_timeout)),
            );
    }
    section
        .line("tries again", retries(one))
        .line("when away", away(one, plan))
}

fn proxies(plan: &ProxyPlan) -> Option<String> {
    match plan {
        ProxyPlan::None => None,
        ProxyPlan::FromEnvironment { .. } => {
            Some("what HTTP_PROXY, HTTPS_PROXY and NO_PROXY say at start".into())
        }
        ProxyPlan::Rules(rules) => {
            let proxy = rules.http.as_ref().or(rules.https.as_ref())?;
            let but = match &rules.no_proxy {
                NoProxy::Nobody => "",
                NoProxy::These(_) => ", but for this machine and those of no-proxy",
                NoProxy::Everybody => ", but for everybody (no-proxy)",
            };
            Some(format!("host {}, port {}{but}", proxy.host, proxy.port))
        }
    }
}

fn retries(one: &DestinationPlan) -> String {
    let until = match one.max_retries {
        0 => format!("until the profile is {} old", show::duration(one.max_age)),
        1 => return "never: one attempt in all".into(),
        attempts => format!(
            "{attempts} attempts in all, and no longer than {}",
            show::duration(one.max_age)
        ),
    };
    format!(
        "{} after the first failure, doubling up to {}, with jitter; {until}",
        show::duration(one.min_backoff),
        show::duration(one.max_backoff)
    )
}

fn away(one: &DestinationPlan, plan: &Plan) -> String {
    let full = match plan.overflow {
        Overflow::DropOldest => "then the oldest make room and are counted as dropped",
        Overflow::Refuse => "then clients get 503 with Retry-After, for all destinations",
    };
    let full = match one.spool_limit {
        Some(limit) => format!(
            "what is more, and all of it while the destination is down, goes to disk, up to {}; {full}",
            show_size(limit)
        ),
        None => full.to_owned(),
    };
    let probes = match one.target {
        DestinationTarget::Http { .. } => format!(
            "After {DOWN_AFTER} attempts without an answer one profile at a time is its probe, at most {} apart",
            show::duration(health::probe_wait_max(one.min_backoff, one.max_age))
        ),
        DestinationTarget::File { .. } => "After a failure one profile at a time is tried".into(),
    };
    format!(
        "its profiles wait in memory, up to {} (about {} of {}) and {}; {full}. {probes}",
        show_size(one.queue_limit),
        show::count(one.queue_limit / PROFILE_BYTES),
        show_size(PROFILE_BYTES),
        show::duration(one.max_age),
    )
}

fn answers(plan: &Plan) -> Section {
    let says = match plan.ack {
        AckPolicy::Queued => {
            "a client gets its 200 as soon as every destination's queue has taken its profile; it never waits for a \
             destination"
        }
        AckPolicy::First => {
            "a client gets its 200 when the first destination has accepted its profile; the others follow"
        }
        AckPolicy::All => {
            "a client waits until every destination has a final outcome; the earliest failure is relayed (Alloy's way)"
        }
        AckPolicy::Stored => {
            "a client gets its 200 when its profile is on disk, synced, for every destination; kill -9 loses nothing \
             that was answered. Where the disk fails it waits for delivery instead"
        }
    };
    Section::new("Answers").line("--ack", says).line(
        "refused at once",
        "what no destination would take: unknown route, bad name or labels, too large, unknown encoding",
    )
}

fn profiles(plan: &Plan) -> Section {
    let mut section = Section::new("Profiles").line(
        "--labels",
        match plan.labels {
            LabelMode::Alloy => {
                "labels follow Alloy's rules: service_name is filled in, the query is sorted and encoded anew"
            }
            LabelMode::Verbatim => "query and body pass through byte for byte",
        },
    );
    if !plan.external_labels.is_empty() {
        let labels: Vec<String> = plan
            .external_labels
            .iter()
            .map(|(name, value)| {
                if value.is_empty() {
                    format!("{name} removed")
                } else {
                    format!("{name}={value}")
                }
            })
            .collect();
        section = section.line("labels set", labels.join(", "));
    }
    for (index, rule) in plan.relabel.iter().enumerate() {
        section = section.line(format!("relabel rule {}", index + 1), show_rule(rule));
    }
    let passed = match &*plan.pass_headers {
        [] => "none".into(),
        names => names.join(", "),
    };
    let traced = match plan.trace_headers {
        TraceHeaders::All => "uber-trace-id and traceparent",
        TraceHeaders::Jaeger => "uber-trace-id",
        TraceHeaders::W3c => "traceparent",
        TraceHeaders::Off => "none",
    };
    section
        .line("headers passed on", passed)
        .line("trace headers", traced)
}

fn show_rule(rule: &RuleSpec) -> String {
    match rule.note() {
        Some(note) => format!("{} ({note})", rule::show(rule)),
        None => rule::show(rule),
    }
}

fn limits(plan: &Plan) -> Section {
    let head = HeadLimits::default();
    let time = show::duration;
    Section::new("Limits")
        .line(
            "memory",
            format!(
                "{} of profiles in flight and queued, shared bodies counted once; beyond it 503",
                show_size(plan.memory_limit)
            ),
        )
        .line(
            "one body",
            format!(
                "{} on the wire and inflated; beyond it 413",
                show_size(plan.body_limit)
            ),
        )
        .line(
            "one head",
            format!(
                "{} of request line, {} of headers, {} of them; beyond it 431",
                show_size(head.request_line_bytes_max as u64),
                show_size(head.header_block_bytes_max as u64),
                head.header_count_max
            ),
        )
        .line(
            "connections",
            format!(
                "{} clients; then the longest idle makes room, or the new one waits up to {} and gets 503",
                show::count(plan.conn_limit as u64),
                time(ROOM_WAIT)
            ),
        )
        .line(
            "connection age",
            match plan.max_connection_age {
                Some(age) => format!(
                    "closed behind an answer or while idle at {}, give or take a tenth",
                    time(age)
                ),
                None => "no limit".into(),
            },
        )
        .line(
            "time",
            format!(
                "{} for a request to arrive, {} for its answer to be taken, {} between two requests",
                time(plan.read_timeout),
                time(plan.write_timeout),
                time(plan.idle_timeout)
            ),
        )
}

fn threads(plan: &Plan) -> Section {
    let cores = show::several(plan.cores as u64, "core");
    let roles = match plan.writers {
        0 => format!("{cores}; each takes connections and writes to destinations"),
        writers => format!(
            "{cores}: {} take connections, {writers} only write to destinations",
            plan.inbound_cores()
        ),
    };
    let owners = plan.destinations.iter().enumerate();
    let owners: Vec<String> = owners
        .filter(|(_, one)| matches!(one.target, DestinationTarget::Http { .. }))
        .map(|(index, one)| format!("{} on core {}", one.name, plan.writer_core(index)))
        .collect();
    let mut section = Section::new("Threads").line("cores", roles);
    if !owners.is_empty() {
        section = section.line("writers", owners.join(", "));
    }
    let pinned = match &*plan.pinned {
        [] => "no: the kernel places them".into(),
        cpus => {
            let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
            format!("to cpu {}, one core each", cpus.join(", "))
        }
    };
    let engine = match plan.engine {
        EngineChoice::Auto => "auto: io_uring where it works, epoll elsewhere; pyrotee doctor tells which",
        EngineChoice::IoUring => "io_uring, or no start",
        EngineChoice::Epoll => "epoll",
    };
    section.line("pinned", pinned).line("engine", engine)
}

fn ending(plan: &Plan) -> Section {
    let says = format!(
        "no new clients, requests under way are finished, queues drain for up to {}; what is left is told and lost",
        show::duration(plan.drain_timeout)
    );
    Section::new("The end")
        .line("SIGTERM, SIGINT", says)
        .line("kill -9, power", "what waits in memory is lost")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::{Flags, Host};

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        flags: Flags,
    }

    fn explained(words: &[&str]) -> String {
        let words = Words::try_parse_from([&["x"], words].concat()).expect("the flags parse");
        let host = Host {
            cpus: vec![2, 3, 4, 5, 6, 7],
            cpu_quota: None,
        };
        to_text(&sections(&Plan::new(&words.flags, &host).expect("a good plan")))
    }

    #[test]
    fn each_flag_has_its_sentence() {
        let http = "eu=http://u:hunter2@host:4040/base/,header.X-Scope-OrgID=s3cret,max-age=30m";
        for (words, says) in [
            (&["--to", http][..], "host host, port 4040"),
            (
                &["--to", http],
                "/base/ingest and /base/push.v1.PusherService/Push",
            ),
            (
                &["--to", http],
                "X-Scope-OrgID, Authorization (values are not shown)",
            ),
            (
                &[
                    "--to",
                    "http://h,bearer-token-file=/run/token,header-file.X-Key=/run/key",
                ],
                "X-Key, Authorization (values",
            ),
            (
                &[
                    "--to",
                    "http://h,bearer-token-file=/run/token,header-file.X-Key=/run/key",
                ],
                "/run/key, /run/token; read at start",
            ),
            (
                &[
                    "--to",
                    "http://h,proxy-url=http://u:hunter2@squid:3128,no-proxy=a b",
                ],
                "host squid, port 3128, but for this machine",
            ),
            (&["--to", "http://h,proxy-from-environment=true"], "NO_PROXY"),
            (
                &[
                    "--to",
                    "http://h,oauth2.client-id=i,oauth2.client-secret=hunter2,oauth2.token-url=http://idp:8080/t",
                ],
                "by http from host idp, port 8080",
            ),
            (
                &[
                    "--to",
                    "http://h,oauth2.client-id=i,oauth2.client-secret=hunter2,oauth2.token-url=https://idp/t,oauth2.tls-ca-file=ca.pem",
                ],
                "by https (TLS 1.2 and 1.3; its certificate must be for idp and signed by those in ca.pem) from host idp, port 443",
            ),
            (&["--to", http], "until the profile is 30m old"),
            (&["--to", http], "256 MiB (about 16,384 of 16 KiB) and 30m"),
            (&["--to", http, "--max-retries", "1"], "never: one attempt"),
            (&["--to", http, "--ack", "all"], "10 attempts in all"),
            (&["--to", http, "--overflow", "refuse"], "503 with Retry-After"),
            (&[], "an archive in ./profiles"),
            (&["--ack", "first"], "first destination has accepted"),
            (&["--admin", "off"], "no metrics"),
            (&["--listen", "127.0.0.1:0"], "127.0.0.1 (a free port)"),
            (&["--trace-headers", "w3c"], "  traceparent\n"),
            (&["--labels", "verbatim"], "byte for byte"),
            (&["--external-label", "a=b,c="], "a=b, c removed"),
            (
                &["--relabel", "action=\"drop\",regex=\"a,b\",source_labels=[\"c\"]"],
                "action = \"drop\", source_labels = [\"c\"], regex = \"a,b\"",
            ),
            (
                &["--relabel", "target_label = \"a.b\""],
                "the rule for 'a.b' does nothing",
            ),
            (&["--pass-header", "X-Scope-OrgID"], "x-scope-orgid"),
            (
                &["--cores", "4", "--to", http],
                "4 cores: 3 take connections, 1 only write",
            ),
            (&["--cores", "4", "--to", http], "eu on core 3"),
            (&["--cores", "1"], "one core; each takes"),
            (&["--cores", "2"], "to cpu 2, 3"),
            (&["--no-pin"], "the kernel places them"),
            (&["--h2c"], "served in cleartext"),
            (&[], "no; give --h2c, or TLS"),
            (&["--engine", "epoll"], "epoll"),
            (&["--to", "https://h"], "https, host h, port 443"),
            (
                &["--to", "https://h"],
                "for h and signed by those that the system trusts",
            ),
            (
                &["--to", "https://h,tls-ca-file=ca.pem,tls-min-version=TLS13"],
                "TLS 1.3; its certificate must be for h and signed by those in ca.pem",
            ),
            (
                &["--to", "https://h,tls-insecure-skip-verify=true"],
                "ANY certificate",
            ),
            (
                &["--to", "https://h,tls-cert-file=c.pem,tls-key-file=k.pem"],
                "it is shown c.pem",
            ),
            (
                &["--tls-cert-file", "c.pem", "--tls-key-file", "k.pem"],
                "certificate c.pem, key k.pem",
            ),
            (
                &[
                    "--tls-cert-file",
                    "c.pem",
                    "--tls-key-file",
                    "k.pem",
                    "--tls-client-auth",
                    "RequireAndVerifyClientCert",
                    "--tls-client-ca-file",
                    "ca.pem",
                ],
                "RequireAndVerifyClientCert, with the authorities in ca.pem",
            ),
            (&["--drain-timeout", "1m30s"][..0], "up to 30s"),
        ] {
            let text = explained(words);
            assert!(text.contains(says), "{words:?} does not say '{says}':\n{text}");
            assert!(!text.contains("hunter2") && !text.contains("s3cret"), "{text}");
        }
    }
}
