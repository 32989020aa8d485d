//! What was typed: every flag of `pyrotee run`, its environment variable, its default and its help.
//!
//! `docs/configuration.md` is checked against this table by a test.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, ValueEnum};
use serde::Serialize;

use super::tls::{ClientAuth, TlsVersion};
use super::units::{parse_duration, parse_size};
use crate::runtime::engine::EngineChoice;

/// When a client gets its answer (DESIGN.md section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AckPolicy {
    /// As soon as every destination's queue has taken the profile.
    Queued,
    /// When the first destination has accepted it.
    First,
    /// When every destination has a final outcome; the earliest failure is relayed.
    All,
    /// When it is on disk, synced, for every destination (needs --spool).
    Stored,
}

/// When what was written to the spool is synced to the disk itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpoolSync {
    /// With every batch of profiles.
    Always,
    /// At most this long after it was written.
    Every(Duration),
    /// When the operating system gets to it.
    Never,
}

/// What happens to what is spooled for a destination that is no longer given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SpoolOrphans {
    /// It stays where it is, and the log says so.
    Keep,
    /// It is deleted, and the log says what.
    Drop,
    /// The gateway does not start.
    Refuse,
}

/// What happens to a full queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overflow {
    /// The oldest waiting profile makes room and is counted as dropped.
    DropOldest,
    /// The push is refused with 503 and Retry-After.
    Refuse,
}

/// Whether labels are worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelMode {
    /// The label rules of Alloy: service_name, external labels, sorted query.
    Alloy,
    /// Query and body pass through byte for byte.
    Verbatim,
}

/// Which trace headers destinations get (WIRE.md 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceHeaders {
    /// Both.
    All,
    /// `uber-trace-id`: Alloy's `jaeger_propagator`.
    Jaeger,
    /// `traceparent`: Alloy's `trace_context_propagator`.
    W3c,
    /// None.
    Off,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// The flags of `pyrotee run` and `pyrotee check`.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Flags that were given, on the command line or in the environment, by their names with `_`: what is not given gives
    /// way to `--config`. Filled in by [`Flags::note_given`].
    #[arg(skip)]
    pub given: BTreeSet<String>,

    /// Configuration file in Alloy's syntax, for setups that move over: pyroscope.receive_http, pyroscope.relabel,
    /// pyroscope.write and logging. Flags given beside it win; destinations and relabel rules come from one of the two.
    #[arg(long, env = "PYROTEE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address that clients push to; repeat for several.
    #[arg(
        long,
        env = "PYROTEE_LISTEN",
        value_name = "ADDR",
        default_value = "0.0.0.0:4040",
        value_delimiter = ','
    )]
    pub listen: Vec<SocketAddr>,

    /// Address of metrics, health and the status page; `off` for none.
    #[arg(
        long,
        env = "PYROTEE_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:4041"
    )]
    pub admin: String,

    /// Certificate chain (PEM) that clients are shown; with it every --listen address speaks TLS. Read again when it
    /// changes.
    #[arg(long, env = "PYROTEE_TLS_CERT_FILE", value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,

    /// Private key (PEM) of --tls-cert-file. Read again when it changes.
    #[arg(long, env = "PYROTEE_TLS_KEY_FILE", value_name = "FILE")]
    pub tls_key_file: Option<PathBuf>,

    /// Certificates (PEM) that sign those of clients; --tls-client-auth says what for. Read again when it changes.
    #[arg(long, env = "PYROTEE_TLS_CLIENT_CA_FILE", value_name = "FILE")]
    pub tls_client_ca_file: Option<PathBuf>,

    /// Whether clients show certificates [default: NoClientCert].
    #[arg(long, env = "PYROTEE_TLS_CLIENT_AUTH", value_name = "POLICY")]
    pub tls_client_auth: Option<ClientAuth>,

    /// The oldest version of TLS that clients may speak [default: TLS12].
    #[arg(long, env = "PYROTEE_TLS_MIN_VERSION", value_name = "VERSION")]
    pub tls_min_version: Option<TlsVersion>,

    /// Also serve HTTP/2 (gRPC) in cleartext, to clients that begin with it. With TLS it is served anyway.
    #[arg(long, env = "PYROTEE_H2C")]
    pub h2c: bool,

    /// Where profiles go; repeat for several. `http://HOST[:PORT][/PATH]`, `https://...` or `file:DIR`, with an optional
    /// name in front and options behind: `eu=http://pyroscope:4040,max-age=30m,header.X-Scope-OrgID=team`. Options:
    /// queue-limit, spool-limit, max-age, inflight, remote-timeout, min-backoff, max-backoff, max-retries,
    /// retry-on-http-429, follow-redirects, header.NAME, header-file.NAME, basic-auth.username, basic-auth.password,
    /// basic-auth.password-file, bearer-token, bearer-token-file, authorization.type, authorization.credentials,
    /// authorization.credentials-file, oauth2.client-id, oauth2.client-secret, oauth2.client-secret-file,
    /// oauth2.token-url, oauth2.scopes, oauth2.endpoint-param.NAME, oauth2.proxy-url, oauth2.no-proxy,
    /// oauth2.proxy-from-environment, proxy-url, no-proxy, proxy-from-environment, proxy-connect-header.NAME, and for
    /// https tls-ca-file, tls-cert-file, tls-key-file, tls-server-name, tls-insecure-skip-verify, tls-min-version, which
    /// with oauth2. in front are for an https token URL. In the environment: one per line. With none given, profiles are
    /// archived in ./profiles.
    #[arg(long = "to", env = "PYROTEE_TO", value_name = "[NAME=]URL[,KEY=VALUE...]")]
    pub to: Vec<String>,

    /// Label set on every profile, over what the client sent; an empty value removes the label. Repeatable.
    #[arg(
        long,
        env = "PYROTEE_EXTERNAL_LABEL",
        value_name = "KEY=VALUE",
        value_delimiter = ','
    )]
    pub external_label: Vec<String>,

    /// Relabel rule, run in order given on the labels of every profile: what stands in a rule block of Alloy's
    /// pyroscope.relabel, separated by commas: 'action = "drop", source_labels = ["env"], regex = "dev|test"'. Repeatable.
    /// In the environment: one per line.
    #[arg(long, env = "PYROTEE_RELABEL", value_name = "RULE")]
    pub relabel: Vec<String>,

    /// Whether labels are worked on.
    #[arg(long, env = "PYROTEE_LABELS", default_value = "alloy")]
    pub labels: LabelMode,

    /// When a client gets its 200.
    #[arg(long, env = "PYROTEE_ACK", default_value = "queued")]
    pub ack: AckPolicy,

    /// What happens when a destination's queue is full, and its spool if there is one.
    #[arg(long, env = "PYROTEE_OVERFLOW", default_value = "drop-oldest")]
    pub overflow: Overflow,

    /// Most memory that profiles may hold, in flight and queued, shared bodies counted once.
    #[arg(long, env = "PYROTEE_MEMORY_LIMIT", value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    pub memory_limit: u64,

    /// Most bytes that one destination may have waiting and in flight [default: a quarter of --memory-limit].
    #[arg(long, env = "PYROTEE_QUEUE_LIMIT", value_name = "SIZE", value_parser = parse_size)]
    pub queue_limit: Option<u64>,

    /// Profiles older than this are dropped before they are sent (Pyroscope rejects older than 1h).
    #[arg(long, env = "PYROTEE_MAX_AGE", value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    pub max_age: Duration,

    /// Most client connections at a time; beyond it the longest-idle one makes room.
    #[arg(
        long,
        allow_negative_numbers = true,
        env = "PYROTEE_CONN_LIMIT",
        value_name = "N",
        default_value_t = 16384
    )]
    pub conn_limit: usize,

    /// Largest body, on the wire and after decompression [default: 256MiB, or --queue-limit where that is smaller].
    #[arg(long, env = "PYROTEE_BODY_LIMIT", value_name = "SIZE", value_parser = parse_size)]
    pub body_limit: Option<u64>,

    /// A request must have arrived whole this long after its first byte.
    #[arg(long, env = "PYROTEE_READ_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub read_timeout: Duration,

    /// Folder for profiles that memory cannot hold, whose destination is down, or that a shutdown leaves over. Without it
    /// they are dropped and counted.
    #[arg(long, env = "PYROTEE_SPOOL", value_name = "DIR")]
    pub spool: Option<PathBuf>,

    /// Most bytes that one destination may have on disk.
    #[arg(long, env = "PYROTEE_SPOOL_LIMIT", value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    pub spool_limit: u64,

    /// When the spool is synced: `always` (with each batch), a duration (at most so long after), or `never` (left to the
    /// operating system). A kill of the process loses nothing under any; this is about the machine. --ack stored syncs
    /// before it answers.
    #[arg(long, env = "PYROTEE_SPOOL_SYNC", value_name = "always|DURATION|never", default_value = "1s", value_parser = parse_spool_sync)]
    pub spool_sync: SpoolSync,

    /// What happens to what is spooled for a destination that is no longer given.
    #[arg(long, env = "PYROTEE_SPOOL_ORPHANS", default_value = "keep")]
    pub spool_orphans: SpoolOrphans,

    /// An answer must have been taken by the client within this time.
    #[arg(long, env = "PYROTEE_WRITE_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub write_timeout: Duration,

    /// A keep-alive connection without a request is closed after this time.
    #[arg(long, env = "PYROTEE_IDLE_TIMEOUT", value_name = "DURATION", default_value = "120s", value_parser = parse_duration)]
    pub idle_timeout: Duration,

    /// A keep-alive connection older than this, give or take a tenth, is closed behind its next answer or while it is idle,
    /// so that new instances behind a balancer get clients too [default: never].
    #[arg(long, env = "PYROTEE_MAX_CONNECTION_AGE", value_name = "DURATION", value_parser = parse_duration)]
    pub max_connection_age: Option<Duration>,

    /// One attempt at a destination: connect, send, and its whole answer.
    #[arg(long, env = "PYROTEE_REMOTE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub remote_timeout: Duration,

    /// One debuginfo upload, from its first byte to the destination's answer.
    #[arg(long, env = "PYROTEE_DEBUGINFO_TIMEOUT", value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    pub debuginfo_timeout: Duration,

    /// Wait before the first retry; doubles from there, with jitter.
    #[arg(long, env = "PYROTEE_MIN_BACKOFF", value_name = "DURATION", default_value = "500ms", value_parser = parse_duration)]
    pub min_backoff: Duration,

    /// Longest wait between retries.
    #[arg(long, env = "PYROTEE_MAX_BACKOFF", value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    pub max_backoff: Duration,

    /// Attempts in all for one profile at one destination (Alloy's counting: 1 = no retry, 0 = until --max-age)
    /// [default: 0 with --ack queued, 10 with first and all].
    #[arg(
        long,
        allow_negative_numbers = true,
        env = "PYROTEE_MAX_RETRIES",
        value_name = "N"
    )]
    pub max_retries: Option<u32>,

    /// Requests in flight at a time per destination, and so its connections.
    #[arg(
        long,
        allow_negative_numbers = true,
        env = "PYROTEE_INFLIGHT",
        value_name = "N",
        default_value_t = 64
    )]
    pub inflight: usize,

    /// How often names of destinations are resolved again.
    #[arg(long, env = "PYROTEE_DNS_REFRESH", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub dns_refresh: Duration,

    /// Data-plane threads in all [default: the CPUs that affinity and the cgroup quota allow].
    #[arg(long, allow_negative_numbers = true, env = "PYROTEE_CORES", value_name = "N")]
    pub cores: Option<usize>,

    /// How many of the cores only write to destinations; `auto` shares every core below 4 of them.
    #[arg(
        long,
        allow_negative_numbers = true,
        env = "PYROTEE_WRITERS",
        value_name = "auto|N",
        default_value = "auto"
    )]
    pub writers: String,

    /// Leave the placement of threads to the kernel.
    #[arg(long, env = "PYROTEE_NO_PIN")]
    pub no_pin: bool,

    /// What moves the bytes.
    #[arg(long, env = "PYROTEE_ENGINE", default_value = "auto")]
    pub engine: EngineChoice,

    /// At shutdown, queues are given this long to empty.
    #[arg(long, env = "PYROTEE_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub drain_timeout: Duration,

    /// Client header that is passed on to every destination, such as X-Scope-OrgID. Repeatable.
    #[arg(long, env = "PYROTEE_PASS_HEADER", value_name = "NAME", value_delimiter = ',')]
    pub pass_header: Vec<String>,

    /// Trace headers that every request to a destination gets, with an id of its own.
    #[arg(long, env = "PYROTEE_TRACE_HEADERS", default_value = "all")]
    pub trace_headers: TraceHeaders,

    /// How log lines look.
    #[arg(long, env = "PYROTEE_LOG", default_value = "text")]
    pub log: LogFormat,

    /// What is logged: error, warn, info, debug or trace.
    #[arg(long, env = "PYROTEE_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: tracing::Level,
}

fn parse_spool_sync(text: &str) -> Result<SpoolSync, String> {
    match text {
        "always" => Ok(SpoolSync::Always),
        "never" => Ok(SpoolSync::Never),
        text => parse_duration(text).map(SpoolSync::Every),
    }
}

impl std::fmt::Display for SpoolSync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Every(time) => write!(f, "{time:?}"),
            Self::Never => f.write_str("never"),
        }
    }
}

impl Serialize for SpoolSync {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Flags {
    /// Notes which flags were given, from what clap has read of the same words.
    pub fn note_given(&mut self, matches: &ArgMatches) {
        let is_given = |id: &&str| {
            let source = matches.value_source(id);
            source.is_some_and(|source| source != ValueSource::DefaultValue)
        };
        let ids = matches.ids().map(|id| id.as_str()).filter(is_given);
        self.given = ids.map(str::to_owned).collect();
    }

    /// Whether a flag was given; `flag` as it is typed, such as `--conn-limit`.
    pub fn is_given(&self, flag: &str) -> bool {
        self.given
            .contains(&flag.trim_start_matches('-').replace('-', "_"))
    }
}
