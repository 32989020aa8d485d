//! What the blocks of a file mean: `pyroscope.receive_http`, `pyroscope.relabel`, `pyroscope.write` (WIRE.md 4.1, 5.1, 6)
//! and `logging`, read into a [`FileConfig`] that says what flags would say.
//!
//! What pyrotee does otherwise or not at all is a mistake with its name, or, where it makes no difference to what is
//! delivered, a note. Not responsible for limits that flags have too (`plan`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum as _;

use super::fields::{Fields, text_of, wrong_type};
use super::graph::Graph;
use super::parser::{Attribute, Block, Kind, Parsed, parse};
use super::{Environment, Mistake, Place, rule};
use crate::config::destination::{DestinationSpec, Secret};
use crate::config::flags::{LogFormat, TraceHeaders};
use crate::config::tls::{ClientAuth, TlsVersion};
use crate::profile::labels::LabelRules;
use crate::profile::relabel::{Relabel, RuleSpec};

/// The port of `pyroscope.receive_http` where nothing else is said.
const LISTEN_PORT: u16 = 8080;
/// What "no limit" of connections becomes: pyrotee always has one.
const CONN_LIMIT_NONE: usize = 1 << 20;
/// Header names that `http_headers` may not set, lower case (WIRE.md 4.1).
const HTTP_HEADERS_RESERVED: [&str; 18] = [
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "user-agent",
    "www-authenticate",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-security-token",
    "x-prometheus-remote-read-version",
    "x-prometheus-remote-write-version",
    "x-prometheus-scrape-timeout-seconds",
];
/// What Alloy lets one choose of HTTP/2 beside whether it is there (WIRE.md 5.1).
const HTTP2_LIMITS: [&str; 12] = [
    "max_handlers",
    "max_concurrent_streams",
    "max_decoder_header_table_size",
    "max_encoder_header_table_size",
    "max_read_frame_size",
    "permit_prohibited_ciphers",
    "idle_timeout",
    "read_idle_timeout",
    "ping_timeout",
    "write_byte_timeout",
    "max_upload_buffer_per_connection",
    "max_upload_buffer_per_stream",
];

/// What a file says, in the terms of flags. What it does not say is absent.
#[derive(Clone, Debug, Default)]
pub struct FileConfig {
    /// What messages call the file.
    pub name: String,
    /// `--listen`; never empty.
    pub listen: Vec<SocketAddr>,
    /// `--conn-limit`.
    pub conn_limit: Option<usize>,
    /// `--read-timeout`.
    pub read_timeout: Option<Duration>,
    /// `--write-timeout`.
    pub write_timeout: Option<Duration>,
    /// `--idle-timeout`.
    pub idle_timeout: Option<Duration>,
    /// `--drain-timeout`.
    pub drain_timeout: Option<Duration>,
    /// `--debuginfo-timeout`.
    pub debuginfo_timeout: Option<Duration>,
    /// The `--tls-` flags.
    pub tls: FileTls,
    /// `--h2c`, as Alloy means it: with TLS, HTTP/2 is there anyway.
    pub h2c: bool,
    /// `--log`.
    pub log: Option<LogFormat>,
    /// `--log-level`.
    pub log_level: Option<tracing::Level>,
    /// `--to`, and where each stands.
    pub destinations: Vec<(DestinationSpec, Place)>,
    /// `--trace-headers`.
    pub trace_headers: Option<TraceHeaders>,
    /// `--external-label`.
    pub external_labels: Vec<(String, String)>,
    /// `--relabel`.
    pub relabel: Vec<RuleSpec>,
    /// Where flags are set.
    pub places: BTreeMap<&'static str, Place>,
    /// What an operator should know, though nothing is wrong.
    pub notes: Vec<(Place, String)>,
}

impl FileConfig {
    /// `NAME:LINE:COLUMN`.
    pub fn locate(&self, place: Place) -> String {
        format!("{}:{place}", self.name)
    }
}

/// What a file says of TLS towards clients. What it does not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileTls {
    /// `--tls-cert-file`.
    pub cert_file: Option<PathBuf>,
    /// `--tls-key-file`.
    pub key_file: Option<PathBuf>,
    /// `--tls-client-auth`.
    pub client_auth: Option<ClientAuth>,
    /// `--tls-client-ca-file`.
    pub client_ca_file: Option<PathBuf>,
    /// `--tls-min-version`.
    pub min_version: Option<TlsVersion>,
}

/// A `pyroscope.receive_http`.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) what: String,
    pub(super) place: Place,
    pub(super) forward_to: Vec<(String, Place)>,
    listen: SocketAddr,
    limits: Limits,
}

/// What all receivers must agree on.
#[derive(Debug, Default, PartialEq)]
struct Limits {
    conn_limit: Option<usize>,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
    debuginfo_timeout: Option<Duration>,
    tls: FileTls,
    h2c: bool,
}

/// A `pyroscope.relabel`.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) label: String,
    pub(super) forward_to: Vec<(String, Place)>,
    pub(super) rules: Vec<RuleSpec>,
    place: Place,
}

/// A `pyroscope.write`.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) label: String,
    pub(super) place: Place,
    endpoints: Vec<(DestinationSpec, Place)>,
    external_labels: Vec<(String, String)>,
    trace_headers: TraceHeaders,
}

/// Reads a file that messages call `name`.
///
/// # Errors
/// Everything that is wrong with it; of text that cannot be read at all, the first thing.
pub fn read(name: &str, text: &str, environment: Environment<'_>) -> Result<FileConfig, Vec<Mistake>> {
    let Parsed { body, unset } = parse(text, environment).map_err(|mistake| vec![mistake])?;
    let mut reading = Reading {
        file: FileConfig {
            name: name.to_owned(),
            ..FileConfig::default()
        },
        mistakes: Vec::new(),
    };
    for Attribute { name, place, .. } in &body.attributes {
        let problem = format!("{name} stands outside of any block; put it into the block that it belongs to");
        reading.mistakes.push(Mistake::new(*place, problem));
    }
    let (mut receivers, mut rules, mut writes) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen: Vec<(&str, Option<&str>)> = Vec::new();
    for block in &body.blocks {
        if seen.contains(&(&block.name, block.label.as_deref())) {
            reading.wrong(
                block.place,
                format!("a second {}; give it a label of its own", title(block)),
            );
            continue;
        }
        seen.push((&block.name, block.label.as_deref()));
        match &*block.name {
            "pyroscope.receive_http" => receivers.push(reading.receiver(block)),
            "pyroscope.relabel" => rules.push(reading.relabel(block)),
            "pyroscope.write" => writes.push(reading.write(block)),
            "logging" => reading.logging(block),
            _ => reading.wrong(
                block.place,
                format!(
                    "{} is no part of pyrotee, which only forwards profiles: it knows pyroscope.receive_http, \
                     pyroscope.relabel, pyroscope.write and logging. Leave this block with Alloy",
                    title(block)
                ),
            ),
        }
    }
    for (variable, place) in unset {
        reading.file.notes.push((
            place,
            format!("{variable} is not set in the environment, so it is empty"),
        ));
    }
    reading.put_together(&receivers, &rules, &writes);
    if reading.mistakes.is_empty() {
        Ok(reading.file)
    } else {
        reading.mistakes.sort_by_key(|mistake| mistake.place);
        Err(reading.mistakes)
    }
}

/// `pyroscope.write "eu"`.
fn title(block: &Block) -> String {
    match &block.label {
        Some(label) => format!("{} \"{label}\"", block.name),
        None => block.name.clone(),
    }
}

/// A file while it is read.
struct Reading {
    file: FileConfig,
    mistakes: Vec<Mistake>,
}

impl Reading {
    fn wrong(&mut self, place: Place, problem: impl Into<String>) {
        self.mistakes.push(Mistake::new(place, problem));
    }

    fn note(&mut self, place: Option<Place>, note: &str) {
        self.file
            .notes
            .extend(place.map(|place| (place, note.to_owned())));
    }

    /// The label that a component must have.
    fn label(&mut self, block: &Block) -> String {
        let is_name = |label: &str| {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            !label.is_empty() && label.chars().all(word) && !label.starts_with(|c: char| c.is_numeric())
        };
        match &block.label {
            Some(label) if is_name(label) => label.clone(),
            Some(_) => {
                self.wrong(
                    block.place,
                    format!("the label of {} must be letters, digits and '_'", block.name),
                );
                String::new()
            }
            None => {
                self.wrong(
                    block.place,
                    format!("{0} needs a label, such as {0} \"default\"", block.name),
                );
                String::new()
            }
        }
    }

    fn receiver(&mut self, block: &Block) -> Receiver {
        self.label(block);
        let what = title(block);
        let mut fields = Fields::of(what.clone(), block);
        let forward_to = self.forward_to(&mut fields);
        let drain_timeout = fields.duration("graceful_shutdown_timeout", &mut self.mistakes);
        self.remember("--drain-timeout", drain_timeout);
        let debuginfo_timeout = fields.duration("debug_info_upload_timeout", &mut self.mistakes);
        self.remember("--debuginfo-timeout", debuginfo_timeout);
        let place = fields.ignore("grpc");
        self.note(place, "grpc has no effect: pyrotee opens no second listener");
        let mut limits = Limits {
            drain_timeout: drain_timeout.map(|(time, _)| time),
            debuginfo_timeout: debuginfo_timeout.map(|(time, _)| time),
            ..Limits::default()
        };
        let http = fields.block("http", &mut self.mistakes);
        let listen = match http {
            Some(http) => self.http(&what, http, &mut limits),
            None => self.listen_address("", Some(LISTEN_PORT), block.place),
        };
        fields.finish(&mut self.mistakes);
        Receiver {
            what,
            place: block.place,
            forward_to,
            listen,
            limits,
        }
    }

    fn http(&mut self, what: &str, block: &Block, limits: &mut Limits) -> SocketAddr {
        let mut fields = Fields::of(format!("http of {what}"), block);
        let (address, mut place) = fields
            .text("listen_address", &mut self.mistakes)
            .unwrap_or(("", block.place));
        let port = match fields.whole("listen_port", &mut self.mistakes) {
            None => Some(LISTEN_PORT),
            Some((port, port_place)) => {
                if address.is_empty() {
                    place = port_place;
                }
                u16::try_from(port).ok()
            }
        };
        if let Some((limit, place)) = fields.whole("conn_limit", &mut self.mistakes) {
            limits.conn_limit = Some(
                usize::try_from(limit)
                    .ok()
                    .filter(|limit| *limit > 0)
                    .unwrap_or(CONN_LIMIT_NONE),
            );
            self.file.places.insert("--conn-limit", place);
            if limit <= 0 {
                let note = format!(
                    "conn_limit is none in Alloy; here it is {CONN_LIMIT_NONE}, within the limit of open files"
                );
                self.note(Some(place), &note);
            }
        }
        for (name, flag, limit) in [
            ("server_read_timeout", "--read-timeout", &mut limits.read_timeout),
            (
                "server_write_timeout",
                "--write-timeout",
                &mut limits.write_timeout,
            ),
            ("server_idle_timeout", "--idle-timeout", &mut limits.idle_timeout),
        ] {
            let duration = fields.duration(name, &mut self.mistakes);
            self.remember(flag, duration);
            *limit = duration.map(|(duration, _)| duration);
        }
        if let Some(tls) = fields.block("tls", &mut self.mistakes) {
            limits.tls = self.server_tls(what, tls);
        }
        if let Some(http2) = fields.block("http2", &mut self.mistakes) {
            limits.h2c = self.http2(what, http2);
        }
        fields.finish(&mut self.mistakes);
        self.listen_address(address, port, place)
    }

    /// TLS towards clients (WIRE.md 5.3, rows 132 to 134). Whether its parts go together is judged with the flags.
    fn server_tls(&mut self, what: &str, block: &Block) -> FileTls {
        let what = format!("tls of {what}");
        let before = self.mistakes.len();
        let mut fields = Fields::of(what.clone(), block);
        let mut tls = FileTls::default();
        for (name, flag, path) in [
            ("cert_file", "--tls-cert-file", &mut tls.cert_file),
            ("key_file", "--tls-key-file", &mut tls.key_file),
            ("client_ca_file", "--tls-client-ca-file", &mut tls.client_ca_file),
        ] {
            let given = fields.text(name, &mut self.mistakes);
            self.remember(flag, given);
            match given {
                Some(("", place)) => self.wrong(place, format!("{name} is empty; give the path of a file")),
                Some((file, _)) => *path = Some(PathBuf::from(file)),
                None => {}
            }
        }
        let policy = fields.text("client_auth_type", &mut self.mistakes);
        self.remember("--tls-client-auth", policy);
        if let Some((policy, place)) = policy {
            tls.client_auth = ClientAuth::from_str(policy, false).ok();
            if tls.client_auth.is_none() {
                let names = ClientAuth::value_variants().iter().map(|one| one.name());
                let names = names.collect::<Vec<_>>().join(", ");
                self.wrong(place, format!("client_auth_type must be one of {names}"));
            }
        }
        let version = fields.text("min_version", &mut self.mistakes);
        self.remember("--tls-min-version", version);
        if let Some((version, place)) = version {
            tls.min_version = TlsVersion::from_str(version, false).ok();
            if tls.min_version.is_none() {
                self.wrong(
                    place,
                    "min_version must be \"VersionTLS12\" or \"VersionTLS13\"; older ones are not spoken",
                );
            }
        }
        let place = fields.ignore("cipher_suites");
        self.note(
            place,
            "cipher_suites has no effect: the suites are those of rustls, none of them weak",
        );
        self.refuse_inline(
            &mut fields,
            &[
                ("cert_pem", "cert_file"),
                ("key_pem", "key_file"),
                ("client_ca", "client_ca_file"),
                ("client_ca_pem", "client_ca_file"),
            ],
        );
        fields.finish(&mut self.mistakes);
        if tls == FileTls::default() && self.mistakes.len() == before {
            let problem = format!(
                "{what} names no certificate, so nothing would be encrypted; give cert_file and key_file, or remove it"
            );
            self.wrong(block.place, problem);
        }
        tls
    }

    /// Certificates and keys in the file itself: pyrotee reads them again when they change, which needs a file of theirs.
    fn refuse_inline(&mut self, fields: &mut Fields<'_>, names: &[(&'static str, &str)]) {
        for (name, instead) in names {
            let why = format!("is not supported: put it into a file of its own and give {instead} its path");
            fields.refuse(name, &why, &mut self.mistakes);
        }
    }

    /// Whether HTTP/2 is wanted in cleartext.
    fn http2(&mut self, what: &str, block: &Block) -> bool {
        let mut fields = Fields::of(format!("http2 of {what}"), block);
        let enabled = fields.truth("enabled", &mut self.mistakes);
        let enabled = enabled.filter(|(enabled, _)| *enabled);
        self.remember("--h2c", enabled);
        for name in HTTP2_LIMITS {
            let place = fields.ignore(name);
            self.note(
                place,
                &format!("{name} has no effect: the limits of HTTP/2 are fixed"),
            );
        }
        fields.finish(&mut self.mistakes);
        enabled.is_some()
    }

    fn listen_address(&mut self, address: &str, port: Option<u16>, place: Place) -> SocketAddr {
        let ip = match address {
            "" => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            address => address.trim_start_matches('[').trim_end_matches(']').parse().ok(),
        };
        if ip.is_none() {
            self.wrong(
                place,
                "listen_address must be an IP address, such as \"0.0.0.0\" or \"127.0.0.1\"",
            );
        }
        if port.is_none() {
            self.wrong(place, "listen_port must be 0 to 65535");
        }
        self.file.places.entry("--listen").or_insert(place);
        SocketAddr::new(
            ip.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            port.unwrap_or(LISTEN_PORT),
        )
    }

    fn remember<T>(&mut self, flag: &'static str, taken: Option<(T, Place)>) {
        if let Some((_, place)) = taken {
            self.file.places.insert(flag, place);
        }
    }

    /// The components that something is forwarded to.
    fn forward_to(&mut self, fields: &mut Fields<'_>) -> Vec<(String, Place)> {
        let Some(value) = fields.take("forward_to") else {
            self.wrong(
                fields.place,
                "forward_to is missing; write forward_to = [pyroscope.write.LABEL.receiver]",
            );
            return Vec::new();
        };
        let Kind::List(list) = &value.kind else {
            self.mistakes.push(wrong_type(
                "forward_to",
                "a list, such as [pyroscope.write.default.receiver]",
                value,
            ));
            return Vec::new();
        };
        let mut references = Vec::new();
        for one in list {
            match &one.kind {
                Kind::Reference(to) => references.push((to.clone(), one.place)),
                _ => {
                    let wanted = "of references, such as pyroscope.write.default.receiver without quotes";
                    self.mistakes.push(wrong_type("forward_to", wanted, one));
                }
            }
        }
        references
    }

    fn relabel(&mut self, block: &Block) -> Rules {
        let label = self.label(block);
        let what = title(block);
        let mut fields = Fields::of(what.clone(), block);
        let forward_to = self.forward_to(&mut fields);
        let place = fields.ignore("max_cache_size");
        self.note(
            place,
            "max_cache_size has no effect: pyrotee remembers what 1024 names of /ingest became, per core",
        );
        let blocks = fields.blocks("rule");
        fields.finish(&mut self.mistakes);
        let before = self.mistakes.len();
        let mut rules = Vec::new();
        for block in &blocks {
            let rule = rule::read(Fields::of(format!("rule of {what}"), block), &mut self.mistakes);
            self.note(rule.note().map(|_| block.place), &rule.note().unwrap_or_default());
            rules.push(rule);
        }
        if self.mistakes.len() == before
            && let Err(bad) = Relabel::new(&rules)
        {
            let place = blocks.get(bad.index).map_or(block.place, |block| block.place);
            self.wrong(place, bad.problem);
        }
        Rules {
            label,
            forward_to,
            rules,
            place: block.place,
        }
    }

    fn write(&mut self, block: &Block) -> Write {
        let label = self.label(block);
        let what = title(block);
        let mut fields = Fields::of(what.clone(), block);
        let mut external_labels = Vec::new();
        let before = self.mistakes.len();
        let pairs = fields.object("external_labels", &mut self.mistakes);
        for pair in pairs {
            if let Some(text) = text_of(&pair.value, &pair.name, &mut self.mistakes) {
                external_labels.push((pair.name.clone(), text.to_owned()));
            }
        }
        external_labels.sort();
        if self.mistakes.len() == before
            && let Err(bad) = LabelRules::new(external_labels.clone())
        {
            self.wrong(
                pairs.first().map_or(block.place, |pair| pair.place),
                bad.to_string(),
            );
        }
        let tracing = fields.block("tracing", &mut self.mistakes);
        let trace_headers = self.tracing(&what, tracing);
        let blocks = fields.blocks("endpoint");
        fields.finish(&mut self.mistakes);
        let endpoints = blocks
            .into_iter()
            .map(|block| (self.endpoint(&what, block), block.place));
        let endpoints = endpoints.collect();
        Write {
            label,
            place: block.place,
            endpoints,
            external_labels,
            trace_headers,
        }
    }

    /// Which trace headers are sent; both where nothing else is said.
    fn tracing(&mut self, what: &str, block: Option<&Block>) -> TraceHeaders {
        let Some(block) = block else {
            return TraceHeaders::All;
        };
        let mut fields = Fields::of(format!("tracing of {what}"), block);
        let mut is_on = |name| {
            fields
                .truth(name, &mut self.mistakes)
                .is_none_or(|(truth, _)| truth)
        };
        let traced = match (is_on("jaeger_propagator"), is_on("trace_context_propagator")) {
            (true, true) => TraceHeaders::All,
            (true, false) => TraceHeaders::Jaeger,
            (false, true) => TraceHeaders::W3c,
            (false, false) => TraceHeaders::Off,
        };
        fields.finish(&mut self.mistakes);
        traced
    }

    fn endpoint(&mut self, what: &str, block: &Block) -> DestinationSpec {
        let what = format!("endpoint of {what}");
        let mut fields = Fields::of(what.clone(), block);
        let url = fields.text("url", &mut self.mistakes).map(|(url, _)| url);
        if url.is_none() {
            self.wrong(block.place, format!("url is missing in {what}"));
        }
        let name = fields.text("name", &mut self.mistakes).map(|(name, _)| name);
        let mut spec = DestinationSpec {
            name: name.filter(|name| !name.is_empty()).map(str::to_owned),
            url: Secret::new(url.unwrap_or_default()),
            headers: Vec::new(),
            options: Vec::new(),
        };
        self.options(&mut fields, &mut spec);
        self.headers(&mut fields, &mut spec);
        self.authorization(&what, &mut fields, &mut spec);
        self.proxy("", &mut fields, &mut spec);
        self.client_tls("", &mut fields, &mut spec);
        self.left_out(&mut fields);
        fields.finish(&mut self.mistakes);
        spec
    }

    fn options(&mut self, fields: &mut Fields<'_>, spec: &mut DestinationSpec) {
        let mut set = |key: &str, value: String| spec.options.push((key.to_owned(), Secret::new(value)));
        for (name, option) in [
            ("remote_timeout", "remote-timeout"),
            ("min_backoff_period", "min-backoff"),
            ("max_backoff_period", "max-backoff"),
        ] {
            if let Some((duration, _)) = fields.duration(name, &mut self.mistakes) {
                set(option, format!("{}ms", duration.as_secs_f64() * 1e3));
            }
        }
        if let Some((retries, place)) = fields.whole("max_backoff_retries", &mut self.mistakes) {
            match u32::try_from(retries) {
                Ok(retries) => set("max-retries", retries.to_string()),
                Err(_) => self.wrong(place, "max_backoff_retries must be 0 or more"),
            }
        }
        for (name, option) in [
            ("retry_on_http_429", "retry-on-http-429"),
            ("follow_redirects", "follow-redirects"),
        ] {
            if let Some((truth, _)) = fields.truth(name, &mut self.mistakes) {
                set(option, truth.to_string());
            }
        }
    }

    fn headers(&mut self, fields: &mut Fields<'_>, spec: &mut DestinationSpec) {
        for pair in fields.object("headers", &mut self.mistakes) {
            if let Some(value) = text_of(&pair.value, &pair.name, &mut self.mistakes) {
                spec.headers.push((pair.name.clone(), Secret::new(value)));
            }
        }
        for pair in fields.object("http_headers", &mut self.mistakes) {
            if HTTP_HEADERS_RESERVED.contains(&pair.name.to_ascii_lowercase().as_str()) {
                self.wrong(
                    pair.place,
                    format!(
                        "http_headers may not set {}; see headers and the blocks for it",
                        pair.name
                    ),
                );
                continue;
            }
            let Kind::List(values) = &pair.value.kind else {
                self.mistakes
                    .push(wrong_type(&pair.name, "a list of strings", &pair.value));
                continue;
            };
            for value in values {
                if let Some(value) = text_of(value, &pair.name, &mut self.mistakes) {
                    spec.headers.push((pair.name.clone(), Secret::new(value)));
                }
            }
        }
    }

    /// At most one of the ways to authorize (WIRE.md 9, row 122).
    fn authorization(&mut self, what: &str, fields: &mut Fields<'_>, spec: &mut DestinationSpec) {
        let mut given: Vec<(&str, Place)> = Vec::new();
        for (name, _) in &spec.headers {
            if name.eq_ignore_ascii_case("authorization") {
                given.push(("an Authorization in headers", fields.place));
            }
        }
        for name in ["bearer_token", "bearer_token_file"] {
            given.extend(
                self.copy(name, &name.replace('_', "-"), fields, spec)
                    .map(|place| (name, place)),
            );
        }
        for (name, attributes) in [
            ("basic_auth", &["username", "password", "password_file"][..]),
            ("authorization", &["type", "credentials", "credentials_file"]),
        ] {
            if let Some(block) = fields.block(name, &mut self.mistakes) {
                given.push((name, block.place));
                let mut fields = Fields::of(format!("{name} of {what}"), block);
                for attribute in attributes {
                    let option = format!("{name}.{attribute}").replace('_', "-");
                    self.copy(attribute, &option, &mut fields, spec);
                }
                fields.finish(&mut self.mistakes);
            }
        }
        if let Some(block) = fields.block("oauth2", &mut self.mistakes) {
            given.push(("oauth2", block.place));
            self.oauth2(Fields::of(format!("oauth2 of {what}"), block), spec);
        }
        given.retain(|(name, _)| {
            *name != "bearer_token_file" || !spec.options.iter().any(|(key, _)| key == "bearer-token")
        });
        if let [(first, _), (second, place), ..] = &*given {
            let problem = format!(
                "both {first} and {second} in {what}; an endpoint has one way to authorize, remove one"
            );
            self.wrong(*place, problem);
        }
    }

    /// Makes a string that is not empty an option of the destination; where it stood.
    fn copy(
        &mut self,
        name: &'static str,
        option: &str,
        fields: &mut Fields<'_>,
        spec: &mut DestinationSpec,
    ) -> Option<Place> {
        let (text, place) = fields.text(name, &mut self.mistakes)?;
        // A user without a password is allowed, and no name is that of the URL; what is empty elsewhere is a mistake that
        // the plan tells.
        if !(text.is_empty() && matches!(name, "password" | "server_name")) {
            spec.options.push((option.to_owned(), Secret::new(text)));
        }
        Some(place)
    }

    fn oauth2(&mut self, mut fields: Fields<'_>, spec: &mut DestinationSpec) {
        for name in ["client_id", "client_secret", "client_secret_file", "token_url"] {
            let option = format!("oauth2.{}", name.replace('_', "-"));
            self.copy(name, &option, &mut fields, spec);
        }
        if let Some(scopes) = fields.texts("scopes", &mut self.mistakes) {
            spec.options
                .push(("oauth2.scopes".into(), Secret::new(scopes.join(" "))));
        }
        for pair in fields.object("endpoint_params", &mut self.mistakes) {
            if let Some(value) = text_of(&pair.value, &pair.name, &mut self.mistakes) {
                let option = format!("oauth2.endpoint-param.{}", pair.name);
                spec.options.push((option, Secret::new(value)));
            }
        }
        self.proxy("oauth2.", &mut fields, spec);
        self.client_tls("oauth2.", &mut fields, spec);
        fields.finish(&mut self.mistakes);
    }

    /// The proxy that requests go through: those of the endpoint, or those for its tokens.
    fn proxy(&mut self, prefix: &str, fields: &mut Fields<'_>, spec: &mut DestinationSpec) {
        for name in ["proxy_url", "no_proxy"] {
            self.copy(name, &format!("{prefix}{}", name.replace('_', "-")), fields, spec);
        }
        if let Some((truth, _)) = fields.truth("proxy_from_environment", &mut self.mistakes) {
            let option = format!("{prefix}proxy-from-environment");
            spec.options.push((option, Secret::new(truth.to_string())));
        }
        for pair in fields.object("proxy_connect_header", &mut self.mistakes) {
            let Kind::List(values) = &pair.value.kind else {
                self.mistakes
                    .push(wrong_type(&pair.name, "a list of strings", &pair.value));
                continue;
            };
            let [value] = &**values else {
                self.wrong(pair.place, "a proxy_connect_header has one value here");
                continue;
            };
            if let Some(value) = text_of(value, &pair.name, &mut self.mistakes) {
                let option = format!("{prefix}proxy-connect-header.{}", pair.name);
                spec.options.push((option, Secret::new(value)));
            }
        }
    }

    /// TLS towards a destination, or towards the endpoint of its tokens (WIRE.md 4.1, rows 123 and 125).
    fn client_tls(&mut self, prefix: &str, fields: &mut Fields<'_>, spec: &mut DestinationSpec) {
        let Some(block) = fields.block("tls_config", &mut self.mistakes) else {
            return;
        };
        let mut fields = Fields::of(format!("tls_config of {}", fields.what()), block);
        for name in ["ca_file", "cert_file", "key_file", "server_name", "min_version"] {
            let option = format!("{prefix}tls-{}", name.replace('_', "-"));
            self.copy(name, &option, &mut fields, spec);
        }
        if let Some((truth, _)) = fields.truth("insecure_skip_verify", &mut self.mistakes) {
            let option = format!("{prefix}tls-insecure-skip-verify");
            spec.options.push((option, Secret::new(truth.to_string())));
        }
        let inline = [
            ("ca_pem", "ca_file"),
            ("cert_pem", "cert_file"),
            ("key_pem", "key_file"),
        ];
        self.refuse_inline(&mut fields, &inline);
        fields.finish(&mut self.mistakes);
    }

    /// What pyrotee does not do, or does anyway.
    fn left_out(&mut self, fields: &mut Fields<'_>) {
        if let Some((true, place)) = fields.truth("enable_http2", &mut self.mistakes) {
            self.note(
                Some(place),
                "enable_http2 has no effect: destinations are spoken to in HTTP/1.1",
            );
        }
        let place = fields.ignore("debug_info_upload_timeout");
        self.note(
            place,
            "debug_info_upload_timeout has no effect on an endpoint: that of pyroscope.receive_http counts",
        );
    }

    fn logging(&mut self, block: &Block) {
        let mut fields = Fields::of("logging".into(), block);
        if let Some((level, place)) = fields.text("level", &mut self.mistakes) {
            self.file.places.insert("--log-level", place);
            self.file.log_level = match level {
                "error" => Some(tracing::Level::ERROR),
                "warn" => Some(tracing::Level::WARN),
                "info" => Some(tracing::Level::INFO),
                "debug" => Some(tracing::Level::DEBUG),
                _ => {
                    self.wrong(place, "level must be \"error\", \"warn\", \"info\" or \"debug\"");
                    None
                }
            };
        }
        if let Some((format, place)) = fields.text("format", &mut self.mistakes) {
            self.file.log = match format {
                "logfmt" => Some(LogFormat::Text),
                "json" => Some(LogFormat::Json),
                _ => {
                    self.wrong(place, "format must be \"logfmt\" or \"json\"");
                    None
                }
            };
        }
        fields.refuse(
            "write_to",
            "is not supported: logs go to standard error only",
            &mut self.mistakes,
        );
        fields.finish(&mut self.mistakes);
    }

    fn put_together(&mut self, receivers: &[Receiver], rules: &[Rules], writes: &[Write]) {
        let Some(first) = receivers.first() else {
            let start = Place { line: 1, column: 1 };
            if self.mistakes.is_empty() {
                self.wrong(
                    start,
                    "there is no pyroscope.receive_http, so nothing would be received; add one",
                );
            }
            return;
        };
        let routes = Graph {
            receivers,
            rules,
            writes,
        }
        .routes(&mut self.mistakes);
        for write in writes
            .iter()
            .filter(|write| !routes.writes.iter().any(|one| one.label == write.label))
        {
            let note = format!(
                "nothing forwards to pyroscope.write \"{}\", so it is left out",
                write.label
            );
            self.note(Some(write.place), &note);
        }
        for idle in rules
            .iter()
            .filter(|rules| !routes.passed.iter().any(|one| one.label == rules.label))
        {
            let note = format!(
                "nothing is forwarded through pyroscope.relabel \"{}\", so it is left out",
                idle.label
            );
            self.note(Some(idle.place), &note);
        }
        for other in receivers.iter().filter(|other| other.limits != first.limits) {
            let problem = format!(
                "{} and {} differ in their limits, timeouts, TLS or HTTP/2: pyrotee has the same for all listeners",
                other.what, first.what
            );
            self.wrong(other.place, problem);
        }
        if let Some(write) = routes.writes.first() {
            for other in routes
                .writes
                .iter()
                .filter(|other| other.external_labels != write.external_labels)
            {
                let problem = format!(
                    "pyroscope.write \"{}\" and \"{}\" have different external_labels: pyrotee sets the same on every \
                     profile. Run a pyrotee for each",
                    other.label, write.label
                );
                self.wrong(other.place, problem);
            }
            for other in routes
                .writes
                .iter()
                .filter(|other| other.trace_headers != write.trace_headers)
            {
                let problem = format!(
                    "pyroscope.write \"{}\" and \"{}\" differ in tracing: pyrotee sends the same trace headers everywhere",
                    other.label, write.label
                );
                self.wrong(other.place, problem);
            }
            self.file.external_labels.clone_from(&write.external_labels);
            self.file.trace_headers = Some(write.trace_headers);
        }
        self.file.listen = receivers.iter().map(|receiver| receiver.listen).collect();
        let Limits {
            conn_limit,
            read_timeout,
            write_timeout,
            idle_timeout,
            drain_timeout,
            debuginfo_timeout,
            ref tls,
            h2c,
        } = first.limits;
        self.file.conn_limit = conn_limit;
        self.file.read_timeout = read_timeout;
        self.file.write_timeout = write_timeout;
        self.file.idle_timeout = idle_timeout;
        self.file.drain_timeout = drain_timeout;
        self.file.debuginfo_timeout = debuginfo_timeout;
        self.file.tls.clone_from(tls);
        self.file.h2c = h2c;
        self.file.destinations = routes
            .writes
            .iter()
            .flat_map(|write| write.endpoints.clone())
            .collect();
        self.file.relabel = routes.rules;
    }
}

/// The body of the fuzz target `config`: whatever is read is a file or a list of mistakes inside the text, and a file has
/// listeners and rules that compile.
#[doc(hidden)]
pub fn fuzz_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let environment = |variable: &str| (variable.len() == 1).then(|| variable.to_owned());
    let lines = text.matches('\n').count() as u32 + 1;
    match read("fuzz", text, &environment) {
        Ok(file) => {
            assert!(!file.listen.is_empty());
            assert!(
                Relabel::new(&file.relabel).is_ok()
                    || file.relabel.len() > crate::profile::relabel::RULES_MAX
            );
            assert!(file.notes.iter().all(|(place, _)| place.line <= lines));
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            assert!(
                mistakes
                    .iter()
                    .all(|one| (1..=lines).contains(&one.place.line) && one.place.column > 0)
            );
        }
    }
    if let Ok(rule) = rule::parse(text) {
        assert_eq!(
            rule::parse(&rule::show(&rule)),
            Ok(rule),
            "what is shown reads back the same"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
pyroscope.receive_http "in" {
  forward_to = [pyroscope.write.out.receiver]
}
pyroscope.write "out" {
  endpoint {
    url = "http://h:4040"
  }
}
"#;

    fn read_text(text: &str) -> Result<FileConfig, Vec<String>> {
        let environment = |variable: &str| (variable == "SECRET").then(|| "hunter2".to_owned());
        let told = |mistakes: Vec<Mistake>| {
            mistakes
                .iter()
                .map(|one| format!("{} {}", one.place, one.problem))
                .collect()
        };
        read("f", text, &environment).map_err(told)
    }

    /// The good file with these lines in the receiver, its http block, the write and its endpoint.
    fn with(receiver: &str, http: &str, write: &str, endpoint: &str) -> String {
        let http = if http.is_empty() {
            String::new()
        } else {
            format!("http {{\n{http}\n}}")
        };
        format!(
            "pyroscope.receive_http \"in\" {{\nforward_to = [pyroscope.write.out.receiver]\n{receiver}\n{http}\n}}\n\
             pyroscope.write \"out\" {{\n{write}\nendpoint {{\nurl = \"http://h:4040\"\n{endpoint}\n}}\n}}\n"
        )
    }

    fn options(file: &FileConfig) -> Vec<String> {
        let options = file.destinations[0].0.options.iter();
        options
            .map(|(key, value)| format!("{key}={}", value.reveal()))
            .collect()
    }

    fn headers(file: &FileConfig) -> Vec<String> {
        let headers = file.destinations[0].0.headers.iter();
        headers
            .map(|(name, value)| format!("{name}: {}", value.reveal()))
            .collect()
    }

    #[test]
    fn a_small_file_has_the_defaults_of_alloy() {
        let file = read_text(GOOD).unwrap();
        assert_eq!(file.listen, ["[::]:8080".parse().unwrap()]);
        assert_eq!((file.conn_limit, file.read_timeout, file.log), (None, None, None));
        assert_eq!(file.destinations.len(), 1);
        assert_eq!(file.destinations[0].1.to_string(), "6:3");
        assert!(options(&file).is_empty() && headers(&file).is_empty() && file.notes.is_empty());
    }

    #[test]
    fn a_listener_is_what_flags_say() {
        let http = "listen_address = \"127.0.0.1\"\nlisten_port = 9999\nconn_limit = 5\nserver_read_timeout = \"1m30s\"\n\
                    server_write_timeout = \"1s\"\nserver_idle_timeout = \"2h\"\nhttp2 { enabled = false }";
        let receiver = "graceful_shutdown_timeout = \"3s\"\ndebug_info_upload_timeout = \"4m\"";
        let file = read_text(&with(receiver, http, "", "")).unwrap();
        let secs = |secs| Some(Duration::from_secs(secs));
        assert_eq!(file.listen, ["127.0.0.1:9999".parse().unwrap()]);
        assert_eq!(file.conn_limit, Some(5));
        assert_eq!(
            (file.read_timeout, file.write_timeout, file.idle_timeout),
            (secs(90), secs(1), secs(7200))
        );
        assert_eq!((file.drain_timeout, file.debuginfo_timeout), (secs(3), secs(240)));
        assert_eq!(file.places["--conn-limit"].line, 8);
        let file = read_text(&with(
            "",
            "conn_limit = 0\nlisten_address = \"localhost\"",
            "",
            "",
        ))
        .unwrap();
        assert_eq!(
            (file.conn_limit, file.listen[0].to_string()),
            (Some(1 << 20), "127.0.0.1:8080".into())
        );
        assert!(file.notes[0].1.contains("conn_limit is none"));
    }

    #[test]
    fn tls_and_http2_of_a_listener_are_what_flags_say() {
        let file = |path: &str| Some(PathBuf::from(path));
        let pair = FileTls {
            cert_file: file("/c"),
            key_file: file("/k"),
            ..FileTls::default()
        };
        let files = "cert_file = \"/c\"\nkey_file = \"/k\"";
        for (name, http, tls, h2c, notes) in [
            ("nothing", String::new(), FileTls::default(), false, &[][..]),
            ("a pair", format!("tls {{\n{files}\n}}"), pair.clone(), false, &[]),
            (
                "everything",
                format!(
                    "tls {{\n{files}\nclient_auth_type = \"RequireClientCert\"\nclient_ca_file = \"/ca\"\n\
                     min_version = \"VersionTLS13\"\ncipher_suites = \"TLS_RSA_WITH_AES_128_CBC_SHA\"\n}}"
                ),
                FileTls {
                    client_auth: Some(ClientAuth::RequireAnyClientCert),
                    client_ca_file: file("/ca"),
                    min_version: Some(TlsVersion::Tls13),
                    ..pair.clone()
                },
                false,
                &["cipher_suites has no effect"],
            ),
            (
                "HTTP/2",
                "http2 {\nenabled = true\nmax_concurrent_streams = 5\nping_timeout = \"1s\"\n}".into(),
                FileTls::default(),
                true,
                &[
                    "max_concurrent_streams has no effect",
                    "ping_timeout has no effect",
                ],
            ),
            (
                "no HTTP/2",
                "http2 { enabled = false }".into(),
                FileTls::default(),
                false,
                &[],
            ),
            (
                "no word on it",
                "http2 { }".into(),
                FileTls::default(),
                false,
                &[],
            ),
        ] {
            let file = read_text(&with("", &http, "", "")).unwrap_or_else(|told| panic!("{name}: {told:?}"));
            assert_eq!((file.tls, file.h2c), (tls, h2c), "{name}");
            assert_eq!(file.notes.len(), notes.len(), "{name}: {:?}", file.notes);
            for ((_, note), says) in file.notes.iter().zip(notes) {
                assert!(note.starts_with(says), "{name}: {note}");
            }
            assert_eq!(file.places.contains_key("--h2c"), h2c, "{name}");
        }
    }

    #[test]
    fn an_endpoint_is_what_a_destination_says() {
        for (lines, expected_options, expected_headers) in [
            ("", "", ""),
            (
                "remote_timeout = \"1m\"\nname = \"eu\"",
                "remote-timeout=60000ms",
                "",
            ),
            (
                "min_backoff_period = \"250ms\"\nmax_backoff_period = \"1m\"",
                "min-backoff=250ms max-backoff=60000ms",
                "",
            ),
            ("max_backoff_retries = 3", "max-retries=3", ""),
            ("max_backoff_retries = \"3\"", "max-retries=3", ""),
            (
                "headers = { \"X-Scope-OrgID\" = 12345678901234567890 }\nhttp_headers = { X = [-1, 1.50] }",
                "",
                "X-Scope-OrgID: 12345678901234567890|X: -1|X: 1.5",
            ),
            (
                "retry_on_http_429 = false\nfollow_redirects = false",
                "retry-on-http-429=false follow-redirects=false",
                "",
            ),
            (
                "headers = { \"X-Scope-OrgID\" = \"a,b\" }",
                "",
                "X-Scope-OrgID: a,b",
            ),
            ("http_headers = { \"X-A\" = [\"1\", \"2\"] }", "", "X-A: 1|X-A: 2"),
            (
                "basic_auth {\nusername = \"u\"\npassword = \"p,w\"\n}",
                "basic-auth.username=u basic-auth.password=p,w",
                "",
            ),
            ("bearer_token = sys.env(\"SECRET\")", "bearer-token=hunter2", ""),
            ("bearer_token_file = \"/f\"", "bearer-token-file=/f", ""),
            (
                "basic_auth {\nusername = \"u\"\npassword = \"\"\n}",
                "basic-auth.username=u",
                "",
            ),
            (
                "basic_auth {\nusername = \"u\"\npassword_file = \"/f\"\n}",
                "basic-auth.username=u basic-auth.password-file=/f",
                "",
            ),
            (
                "authorization {\ntype = \"Token\"\ncredentials = \"c\"\n}",
                "authorization.type=Token authorization.credentials=c",
                "",
            ),
            (
                "authorization {\ncredentials_file = \"/f\"\n}",
                "authorization.credentials-file=/f",
                "",
            ),
            (
                "oauth2 {\nclient_id = \"i\"\nclient_secret = \"s\"\ntoken_url = \"http://t\"\nscopes = [\"a\", \"b\"]\n\
                 endpoint_params = { audience = \"x\" }\nproxy_url = \"http://p\"\n}",
                "oauth2.client-id=i oauth2.client-secret=s oauth2.token-url=http://t oauth2.scopes=a b \
                 oauth2.endpoint-param.audience=x oauth2.proxy-url=http://p",
                "",
            ),
            (
                "proxy_url = \"http://p\"\nno_proxy = \"a,b\"\nproxy_connect_header = { X = [\"1\"] }",
                "proxy-url=http://p no-proxy=a,b proxy-connect-header.X=1",
                "",
            ),
            (
                "proxy_from_environment = true\nenable_http2 = false\nproxy_url = null",
                "proxy-from-environment=true",
                "",
            ),
            (
                "tls_config {\nca_file = \"/ca\"\ncert_file = \"/c\"\nkey_file = \"/k\"\nserver_name = \"n\"\n\
                 insecure_skip_verify = false\nmin_version = \"TLS13\"\n}",
                "tls-ca-file=/ca tls-cert-file=/c tls-key-file=/k tls-server-name=n tls-min-version=TLS13 \
                 tls-insecure-skip-verify=false",
                "",
            ),
            ("tls_config {\nserver_name = \"\"\nca_pem = null\n}", "", ""),
            (
                "oauth2 {\nclient_id = \"i\"\nclient_secret = \"s\"\ntoken_url = \"https://t\"\ntls_config {\nca_file = \"/ca\"\n\
                 cert_file = \"/c\"\nkey_file = \"/k\"\nserver_name = \"n\"\nmin_version = \"TLS13\"\n\
                 insecure_skip_verify = false\n}\n}",
                "oauth2.client-id=i oauth2.client-secret=s oauth2.token-url=https://t oauth2.tls-ca-file=/ca \
                 oauth2.tls-cert-file=/c oauth2.tls-key-file=/k oauth2.tls-server-name=n oauth2.tls-min-version=TLS13 \
                 oauth2.tls-insecure-skip-verify=false",
                "",
            ),
        ] {
            let file = read_text(&with("", "", "", lines)).unwrap_or_else(|told| panic!("{lines}: {told:?}"));
            assert_eq!(options(&file).join(" "), expected_options, "{lines}");
            assert_eq!(headers(&file).join("|"), expected_headers, "{lines}");
        }
        let named = read_text(&with("", "", "", "name = \"eu\"")).unwrap();
        assert_eq!(named.destinations[0].0.name.as_deref(), Some("eu"));
    }

    #[test]
    fn labels_rules_and_logging_are_read() {
        let text = r#"
logging {
  level  = "debug"
  format = "json"
}
pyroscope.receive_http "in" { forward_to = [pyroscope.relabel.a.receiver] }
pyroscope.relabel "a" {
  forward_to = [pyroscope.relabel.b.receiver]
  max_cache_size = 5
  rule {
    action = "labeldrop"
    regex  = "x"
  }
}
pyroscope.relabel "b" {
  forward_to = [pyroscope.write.out.receiver, pyroscope.write.other.receiver]
  rule {
    target_label = "a.b"
  }
}
pyroscope.write "out" {
  external_labels = { b = "2", a = "1" }
  endpoint { url = "http://h:1" }
  endpoint { url = "http://h:2" }
}
pyroscope.write "other" {
  external_labels = { a = "1", b = "2" }
  endpoint { url = "http://h:3" }
}
pyroscope.write "idle" { }
"#;
        let file = read_text(text).unwrap();
        assert_eq!(
            (file.log, file.log_level),
            (Some(LogFormat::Json), Some(tracing::Level::DEBUG))
        );
        let shown: Vec<String> = file.relabel.iter().map(rule::show).collect();
        assert_eq!(
            shown,
            [
                "action = \"labeldrop\", regex = \"x\"",
                "action = \"replace\", target_label = \"a.b\""
            ],
            "rules of a chain, in order"
        );
        assert_eq!(
            file.external_labels,
            [("a".into(), "1".into()), ("b".into(), "2".into())]
        );
        assert_eq!(file.destinations.len(), 3);
        let notes: Vec<&str> = file
            .notes
            .iter()
            .map(|(_, note)| note.split(' ').next().unwrap())
            .collect();
        assert_eq!(notes, ["max_cache_size", "the", "nothing"]);
    }

    #[test]
    fn several_listeners_with_one_aim_are_one_gateway() {
        let second = "pyroscope.receive_http \"two\" {\nforward_to = [pyroscope.write.out.receiver]\nhttp { listen_port = 1 }\n}\n";
        let file = read_text(&format!("{GOOD}{second}")).unwrap();
        let listen: Vec<String> = file.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, ["[::]:8080", "[::]:1"]);
    }

    #[test]
    fn what_cannot_be_is_told_with_its_place_and_what_to_do() {
        let endpoint = |lines: &str| with("", "", "", lines);
        let receiver = "pyroscope.receive_http \"x\" {\nforward_to = ";
        for (text, says) in [
            (String::new(), "1:1 there is no pyroscope.receive_http"),
            ("a = 1".into(), "1:1 a stands outside of any block"),
            (
                "pyroscope.scrape \"x\" { }".into(),
                "1:1 pyroscope.scrape \"x\" is no part of pyrotee, which only forwards",
            ),
            (
                "discovery.process \"all\" { }".into(),
                "1:1 discovery.process \"all\" is no part",
            ),
            ("livedebugging { }".into(), "1:1 livedebugging is no part"),
            (
                format!("{GOOD}{GOOD}"),
                "11:1 a second pyroscope.receive_http \"in\"",
            ),
            (
                "pyroscope.write { }".into(),
                "1:1 pyroscope.write needs a label, such as pyroscope.write \"default\"",
            ),
            (
                "pyroscope.write \"a-b\" { }".into(),
                "1:1 the label of pyroscope.write must be letters",
            ),
            (
                "pyroscope.receive_http \"x\" { }".into(),
                "1:1 forward_to is missing",
            ),
            (format!("{receiver}\"a\"\n}}"), "2:14 forward_to must be a list"),
            (
                format!("{receiver}[\"a\"]\n}}"),
                "2:15 forward_to must be of references",
            ),
            (
                format!("{receiver}[a.b.c.receiver]\n}}"),
                "2:15 nothing here is a.b.c.receiver",
            ),
            (
                format!("{receiver}[pyroscope.write.no.receiver]\n}}"),
                "2:15 nothing here is pyroscope.write.no.receiver",
            ),
            (
                with("", "listen_address = \"example.com\"", "", ""),
                "5:18 listen_address must be an IP address",
            ),
            (
                with("", "listen_port = 70000", "", ""),
                "5:15 listen_port must be 0 to 65535",
            ),
            (
                with("", "listen_port = \"x80\"", "", ""),
                "5:15 listen_port must be a whole number, not a string",
            ),
            (
                with("", "server_read_timeout = \"30\"", "", ""),
                "5:23 server_read_timeout must be a duration",
            ),
            (
                with("", "tls {\n}", "", ""),
                "5:1 tls of pyroscope.receive_http \"in\" names no certificate, so nothing would be encrypted",
            ),
            (
                with("", "tls {\ncert_file = null\ncipher_suites = \"x\"\n}", "", ""),
                "5:1 tls of pyroscope.receive_http \"in\" names no certificate",
            ),
            (
                with("", "tls {\ncert_file = \"\"\n}", "", ""),
                "6:13 cert_file is empty; give the path",
            ),
            (
                with("", "tls {\ncert_pem = \"hunter2\"\n}", "", ""),
                "6:1 cert_pem is not supported: put it into a file of its own and give cert_file",
            ),
            (
                with("", "tls {\nkey_pem = sys.env(\"SECRET\")\n}", "", ""),
                "6:1 key_pem is not supported: put it into a file of its own and give key_file",
            ),
            (
                with("", "tls {\nclient_ca = local.file.ca.content\n}", "", ""),
                "6:1 client_ca is not supported: put it into a file of its own and give client_ca_file",
            ),
            (
                with("", "tls {\nclient_ca_pem = \"x\"\n}", "", ""),
                "6:1 client_ca_pem is not supported",
            ),
            (
                with("", "tls {\nclient_auth_type = \"Maybe\"\n}", "", ""),
                "6:20 client_auth_type must be one of NoClientCert, RequestClientCert",
            ),
            (
                with("", "tls {\nmin_version = \"VersionTLS11\"\n}", "", ""),
                "6:15 min_version must be \"VersionTLS12\" or \"VersionTLS13\"; older",
            ),
            (
                with("", "tls {\ncolour = 1\n}", "", ""),
                "6:1 unknown attribute colour in tls of pyroscope.receive_http \"in\"; known: cert_file",
            ),
            (
                with("", "http2 { enabled = 1 }", "", ""),
                "5:19 enabled must be true or false",
            ),
            (
                with("", "http2 { colour = 1 }", "", ""),
                "5:9 unknown attribute colour in http2",
            ),
            (
                with("colour = 1", "", "", ""),
                "3:1 unknown attribute colour in pyroscope.receive_http \"in\"; known: forward_to",
            ),
            (with("colour { }", "", "", ""), "3:1 unknown block colour"),
            (
                with("http = 1", "", "", ""),
                "3:1 http in pyroscope.receive_http \"in\" is no attribute",
            ),
            (
                with("http {\n}\nhttp {\n}", "", "", ""),
                "5:1 a second http block",
            ),
            (
                with("", "", "external_labels = { a = true }", ""),
                "7:25 a must be a string",
            ),
            (
                with("", "", "external_labels = { a = \"x,y\" }", ""),
                "7:21 external label \"a\": the value must not contain ','",
            ),
            (
                with("", "", "endpoint {\n}", ""),
                "7:1 url is missing in endpoint of pyroscope.write \"out\"",
            ),
            (
                endpoint("url2 = 1"),
                "10:1 unknown attribute url2 in endpoint of pyroscope.write",
            ),
            (
                endpoint("max_backoff_retries = -1"),
                "10:23 max_backoff_retries must be 0 or more",
            ),
            (endpoint("headers = { a = [1] }"), "10:17 a must be a string"),
            (
                endpoint("http_headers = { host = [\"a\"] }"),
                "10:18 http_headers may not set host",
            ),
            (
                endpoint("http_headers = { a = \"a\" }"),
                "10:22 a must be a list of strings",
            ),
            (
                endpoint("bearer_token = local.file.token.content"),
                "10:16 bearer_token must be a string; local.file.token.content belongs",
            ),
            (
                endpoint("oauth2 {\ntls_config {\nca_pem = \"x\"\n}\n}"),
                "12:1 ca_pem is not supported: put it into a file of its own and give ca_file its path",
            ),
            (
                endpoint("oauth2 {\ntls_config {\ncolour = 1\n}\n}"),
                "12:1 unknown attribute colour in tls_config of oauth2 of endpoint of pyroscope.write",
            ),
            (
                endpoint("oauth2 {\n}\nbasic_auth {\n}"),
                "both basic_auth and oauth2",
            ),
            (
                endpoint("tls_config {\nca_pem = \"x\"\n}"),
                "11:1 ca_pem is not supported: put it into a file of its own and give ca_file its path",
            ),
            (
                endpoint("tls_config {\ncert_pem = local.file.cert.content\n}"),
                "11:1 cert_pem is not supported: put it into a file of its own and give cert_file",
            ),
            (
                endpoint("tls_config {\nkey_pem = \"hunter2\"\n}"),
                "11:1 key_pem is not supported: put it into a file of its own and give key_file",
            ),
            (
                endpoint("tls_config {\ninsecure_skip_verify = \"true\"\n}"),
                "11:24 insecure_skip_verify must be true or false, not a string",
            ),
            (
                endpoint("tls_config {\ncolour = 1\n}"),
                "11:1 unknown attribute colour in tls_config of endpoint of pyroscope.write",
            ),
            (
                endpoint("tls_config {\n}\ntls_config {\n}"),
                "12:1 a second tls_config block",
            ),
            (
                endpoint("bearer_token = \"a\"\nbasic_auth { }"),
                "both bearer_token and basic_auth",
            ),
            (
                endpoint("bearer_token = \"a\"\nauthorization { }"),
                "11:1 both bearer_token and authorization",
            ),
            (
                endpoint("headers = { Authorization = \"a\" }\nbearer_token = \"a\""),
                "both an Authorization in headers and bearer_token",
            ),
            ("logging { level = \"trace\" }".into(), "1:19 level must be"),
            ("logging { format = \"xml\" }".into(), "1:20 format must be"),
            (
                "logging { write_to = [] }".into(),
                "1:11 write_to is not supported",
            ),
        ] {
            let told = read_text(&text).unwrap_err();
            assert!(told.iter().any(|one| one.contains(says)), "{says}: {told:#?}");
            assert!(!told.iter().any(|one| one.contains("hunter2")));
        }
    }

    #[test]
    fn graphs_that_pyrotee_cannot_be_are_refused() {
        let write = |label: &str, extra: &str| {
            format!(
                "pyroscope.write \"{label}\" {{\n{extra}\nendpoint {{ url = \"http://{label}:1\" }}\n}}\n"
            )
        };
        let to = |name: &str, component: &str, targets: &str, extra: &str| {
            format!("{component} \"{name}\" {{\nforward_to = [{targets}]\n{extra}\n}}\n")
        };
        let (a, b) = ("pyroscope.write.a.receiver", "pyroscope.write.b.receiver");
        let relabel = "pyroscope.relabel";
        let both = format!("{a}, {b}");
        let writes = write("a", "") + &write("b", "");
        let receive = |name, targets: &str, extra| to(name, "pyroscope.receive_http", targets, extra);
        let rule = "rule {\ntarget_label = \"x\"\n}";
        let loops = to("r", relabel, "pyroscope.relabel.s.receiver", "")
            + &to("s", relabel, "pyroscope.relabel.r.receiver", "");
        let through = format!("pyroscope.relabel.r.receiver, {b}");
        let twice = format!("pyroscope.relabel.r.receiver, {a}");
        for (text, says) in [
            (
                receive("x", a, "") + &receive("y", b, "") + &writes,
                "pyroscope.receive_http \"y\" forwards elsewhere than",
            ),
            (
                receive("x", &through, "") + &to("r", relabel, a, rule) + &writes,
                "there are other relabel rules than to \"a\"",
            ),
            (
                receive("x", &twice, "") + &to("r", relabel, a, "") + &writes,
                "in two ways, which sends every profile twice",
            ),
            (
                receive("x", "pyroscope.relabel.r.receiver", "") + &loops + &writes,
                "forwards to itself in the end",
            ),
            (
                receive("x", &both, "") + &write("a", "external_labels = { l = \"1\" }") + &write("b", ""),
                "\"b\" and \"a\" have different external_labels",
            ),
            (
                receive("x", a, "") + &receive("y", a, "http { conn_limit = 5 }") + &writes,
                "differ in their limits, timeouts, TLS or HTTP/2",
            ),
            (
                receive("x", a, "") + &receive("y", a, "http { tls { cert_file = \"c\" } }") + &writes,
                "differ in their limits, timeouts, TLS or HTTP/2",
            ),
            (
                receive("x", a, "")
                    + &writes
                    + &to("r", relabel, a, "rule {\naction = \"keep\"\nregex = \"(\"\n}"),
                "unclosed group",
            ),
        ] {
            let told = read_text(&text).unwrap_err();
            assert!(told.iter().any(|one| one.contains(says)), "{says}: {told:#?}");
        }
        let same = receive("x", &through, "") + &to("r", relabel, a, "") + &writes;
        assert_eq!(
            read_text(&same).unwrap().destinations.len(),
            2,
            "a relabel without rules makes no difference"
        );
        let many = (0..70).map(|_| a).collect::<Vec<_>>().join(", ");
        assert!(read_text(&(receive("x", &many, "") + &writes)).is_err());
    }
}
