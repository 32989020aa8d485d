//! What the flags mean: every bound worked out, every contradiction refused, nothing touched yet.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::alloy::blocks::FileConfig;
use super::alloy::{Place, rule};
use super::destination::{DestinationDefaults, DestinationPlan, is_known, is_shown, valid_header};
use super::flags::{AckPolicy, Flags, LabelMode, LogFormat, Overflow, SpoolOrphans, SpoolSync, TraceHeaders};
use super::tls::{ClientAuth, ServerTls};
use super::units::show_size;
use crate::profile::relabel::{Relabel, RuleSpec};
use crate::runtime::engine::EngineChoice;

/// The largest body by default, as the Pyroscope server has it (WIRE.md 1.4).
const BODY_LIMIT: u64 = 256 << 20;
/// Shortest `--max-connection-age`: below it, connecting would cost more than pushing.
const CONNECTION_AGE_MIN: Duration = Duration::from_secs(1);
/// Destinations at most: a push is one parcel for each, and each has its own queue and connections.
const DESTINATIONS_MAX: usize = 64;
/// Threads at most.
const CORES_MAX: usize = 256;

/// What the plan needs to know of the machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// CPUs that this process may run on.
    pub cpus: Vec<usize>,
    /// CPUs' worth of time that the cgroup allows, if it limits any.
    pub cpu_quota: Option<f64>,
}

/// The configuration after every check. Serialised by `/-/config`, so it shows no secret.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Addresses that clients push to.
    pub listen: Vec<SocketAddr>,
    /// TLS on those addresses, if they speak it.
    pub tls: Option<ServerTls>,
    /// Whether HTTP/2 is served in cleartext.
    pub h2c: bool,
    /// Address of the admin port, if there is one.
    pub admin: Option<SocketAddr>,
    /// Where profiles go; never empty.
    pub destinations: Vec<DestinationPlan>,
    /// Labels set on every profile.
    pub external_labels: Vec<(String, String)>,
    /// Rules that work on labels before the external ones are added.
    pub relabel: Vec<RuleSpec>,
    /// Whether labels are worked on.
    pub labels: LabelMode,
    /// When clients are answered.
    pub ack: AckPolicy,
    /// What happens to a full queue.
    pub overflow: Overflow,
    /// Most body bytes held in memory.
    pub memory_limit: u64,
    /// Where profiles go that memory cannot hold; `null` = nowhere, they are dropped.
    pub spool: Option<SpoolPlan>,
    /// Largest body in bytes, on the wire and inflated.
    pub body_limit: u64,
    /// Most client connections.
    pub conn_limit: usize,
    /// From first byte to whole request.
    pub read_timeout: Duration,
    /// For an answer to be taken.
    pub write_timeout: Duration,
    /// For a connection without a request.
    pub idle_timeout: Duration,
    /// Age above which a client connection is closed, if there is a limit.
    pub max_connection_age: Option<Duration>,
    /// For a debuginfo upload.
    pub debuginfo_timeout: Duration,
    /// Between two look-ups of a destination's name.
    pub dns_refresh: Duration,
    /// Data-plane threads in all.
    pub cores: usize,
    /// How many of them only write; 0 = every core does both.
    pub writers: usize,
    /// The CPU of each core; empty = not pinned.
    pub pinned: Vec<usize>,
    /// What was asked of the engine.
    #[serde(skip)]
    pub engine: EngineChoice,
    /// For queues to empty at shutdown.
    pub drain_timeout: Duration,
    /// Client headers passed on, lower case.
    pub pass_headers: Vec<String>,
    /// Which trace headers destinations get.
    pub trace_headers: TraceHeaders,
    /// How log lines look.
    pub log: LogFormat,
    /// What is logged.
    #[serde(skip)]
    pub log_level: tracing::Level,
    /// What an operator should know of `--config`, though nothing is wrong.
    pub notes: Vec<String>,
}

/// The disk, as far as it is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpoolPlan {
    /// The folder.
    pub directory: PathBuf,
    /// When it is synced.
    pub sync: SpoolSync,
    /// What happens to what is spooled for a destination that is no longer given.
    pub orphans: SpoolOrphans,
    /// Whether it keeps what its destination does not take. No flag: `pyrotee spool drain` does so.
    #[serde(skip)]
    pub keeps_refused: bool,
}

/// One thing wrong with what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanError {
    /// The flag, such as `--to`.
    pub flag: &'static str,
    /// The value as typed; empty where the flag itself is the trouble. Credentials are masked.
    pub value: String,
    /// What is wrong and how to mend it.
    pub problem: String,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.value {
            "" => write!(f, "{}: {}", self.flag, self.problem),
            value => write!(f, "{} {value}: {}", self.flag, self.problem),
        }
    }
}

/// All that is wrong, so that the operator mends it in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanErrors(pub Vec<PlanError>);

impl fmt::Display for PlanErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PlanErrors {}

impl Plan {
    /// Works out the plan.
    ///
    /// # Errors
    /// Every contradiction and bad value found, together.
    pub fn new(flags: &Flags, host: &Host) -> Result<Self, PlanErrors> {
        Self::with_file(flags, None, host)
    }

    /// Works out the plan of flags and a file. A flag that was given wins; destinations and relabel rules come from one of
    /// the two; external labels of both are set, those of flags over those of the file.
    ///
    /// # Errors
    /// Every contradiction and bad value found, together.
    pub fn with_file(flags: &Flags, file: Option<&FileConfig>, host: &Host) -> Result<Self, PlanErrors> {
        let mut errors = Errors(Vec::new());
        let merged = file.map(|file| merge(flags, file));
        let (given, flags) = (flags, merged.as_ref().unwrap_or(flags));
        let queue_limit = flags.queue_limit.unwrap_or(flags.memory_limit / 4);
        let body_limit = flags.body_limit.unwrap_or(BODY_LIMIT.min(queue_limit));
        let mut notes: Vec<String> = file.map(|file| notes(flags, file)).unwrap_or_default();
        let destinations = destinations(flags, file, queue_limit, &mut notes, &mut errors);
        check_sizes(flags, body_limit, &destinations, &mut errors);
        check_spool(flags, body_limit, &destinations, &mut errors);
        let (cores, writers) = threads(
            flags,
            host,
            destinations.iter().filter(|one| one.is_http()).count(),
            &mut errors,
        );
        let plan = Self {
            listen: listen(flags, &mut errors),
            tls: server_tls(flags, &mut errors),
            h2c: flags.h2c,
            admin: admin(flags, &mut errors),
            external_labels: external_labels(flags, &mut errors),
            relabel: relabel(flags, file, &mut errors),
            pass_headers: pass_headers(flags, &mut errors),
            destinations,
            labels: flags.labels,
            ack: flags.ack,
            overflow: flags.overflow,
            memory_limit: flags.memory_limit,
            spool: flags.spool.clone().map(|directory| SpoolPlan {
                directory,
                sync: flags.spool_sync,
                orphans: flags.spool_orphans,
                keeps_refused: false,
            }),
            body_limit,
            conn_limit: flags.conn_limit,
            read_timeout: flags.read_timeout,
            write_timeout: flags.write_timeout,
            idle_timeout: flags.idle_timeout,
            max_connection_age: flags.max_connection_age,
            debuginfo_timeout: flags.debuginfo_timeout,
            dns_refresh: flags.dns_refresh,
            cores,
            writers,
            pinned: if flags.no_pin || cores > host.cpus.len() {
                Vec::new()
            } else {
                host.cpus[..cores].to_vec()
            },
            engine: flags.engine,
            drain_timeout: flags.drain_timeout,
            trace_headers: flags.trace_headers,
            log: flags.log,
            log_level: flags.log_level,
            notes,
        };
        if let Some(file) = file {
            errors.locate(given, file);
        }
        if errors.0.is_empty() {
            Ok(plan)
        } else {
            Err(PlanErrors(errors.0))
        }
    }

    /// The threads stay as they are in `running`, whatever the number of destinations would make of them now.
    #[must_use]
    pub fn on_the_threads_of(self, running: &Self) -> Self {
        Self {
            cores: running.cores,
            writers: running.writers,
            pinned: running.pinned.clone(),
            ..self
        }
    }

    /// What is other than in `running` and cannot change in a running process, by flags.
    pub fn needs_restart(&self, running: &Self) -> Vec<&'static str> {
        // Everything is named here, so that a new field is thought of.
        let Self {
            listen,
            tls,
            h2c,
            admin,
            destinations: _,
            external_labels: _,
            relabel: _,
            labels,
            ack,
            overflow,
            memory_limit,
            spool,
            body_limit,
            conn_limit,
            read_timeout,
            write_timeout,
            idle_timeout,
            max_connection_age,
            debuginfo_timeout,
            dns_refresh,
            cores,
            writers,
            pinned,
            engine,
            drain_timeout: _,
            pass_headers,
            trace_headers: _,
            log,
            log_level,
            notes: _,
        } = self;
        let differing = [
            ("--listen", *listen != running.listen),
            ("--tls-...", *tls != running.tls),
            ("--h2c", *h2c != running.h2c),
            ("--admin", *admin != running.admin),
            ("--labels", *labels != running.labels),
            ("--ack", *ack != running.ack),
            ("--overflow", *overflow != running.overflow),
            ("--memory-limit", *memory_limit != running.memory_limit),
            ("--spool", *spool != running.spool),
            ("--body-limit", *body_limit != running.body_limit),
            ("--conn-limit", *conn_limit != running.conn_limit),
            ("--read-timeout", *read_timeout != running.read_timeout),
            ("--write-timeout", *write_timeout != running.write_timeout),
            ("--idle-timeout", *idle_timeout != running.idle_timeout),
            (
                "--max-connection-age",
                *max_connection_age != running.max_connection_age,
            ),
            (
                "--debuginfo-timeout",
                *debuginfo_timeout != running.debuginfo_timeout,
            ),
            ("--dns-refresh", *dns_refresh != running.dns_refresh),
            ("--cores", *cores != running.cores || *pinned != running.pinned),
            ("--writers", *writers != running.writers),
            ("--engine", *engine != running.engine),
            ("--pass-header", *pass_headers != running.pass_headers),
            ("--log", *log != running.log),
            ("--log-level", *log_level != running.log_level),
        ];
        let differing = differing.into_iter().filter(|(_, differs)| *differs);
        differing.map(|(flag, _)| flag).collect()
    }

    /// The cores that may own destinations: all, or the writers, which are the last ones.
    pub fn writer_cores(&self) -> std::ops::Range<usize> {
        match self.writers {
            0 => 0..self.cores,
            writers => self.cores - writers..self.cores,
        }
    }

    /// Whether it has a destination of this name.
    pub fn has(&self, name: &str) -> bool {
        self.destinations.iter().any(|one| one.name == name)
    }

    /// The core that owns destination `index` at the start.
    pub fn writer_core(&self, index: usize) -> usize {
        // An archive has a thread of its own, so it takes no core's turn.
        let index = self
            .destinations
            .iter()
            .take(index)
            .filter(|one| one.is_http())
            .count();
        let cores = self.writer_cores();
        cores.start + index % cores.len()
    }

    /// How many cores take connections: the first ones.
    pub fn inbound_cores(&self) -> usize {
        self.cores - self.writers
    }

    /// Whether destination `one` gets our header `name` (lower case), one of those of `--trace-headers`: not where the
    /// operator sets it himself or passes that of clients on, for a request has one of each.
    pub fn sends_trace_header(&self, one: &DestinationPlan, name: &str) -> bool {
        let wanted = match self.trace_headers {
            TraceHeaders::All => true,
            TraceHeaders::Jaeger => name == "uber-trace-id",
            TraceHeaders::W3c => name == "traceparent",
            TraceHeaders::Off => false,
        };
        wanted && !one.sets_header(name) && !self.pass_headers.iter().any(|passed| passed == name)
    }

    /// Every bound on one line each, for the start of the log and `pyrotee check`.
    pub fn bounds(&self) -> Vec<(&'static str, String)> {
        vec![
            ("memory of all profiles held", show_size(self.memory_limit)),
            ("one body", show_size(self.body_limit)),
            ("client connections", self.conn_limit.to_string()),
        ]
    }
}

struct Errors(Vec<PlanError>);

impl Errors {
    /// Says of what comes from the file where it stands there.
    fn locate(&mut self, given: &Flags, file: &FileConfig) {
        for error in &mut self.0 {
            let place = file
                .places
                .get(error.flag)
                .filter(|_| !given.is_given(error.flag));
            if let Some(place) = place {
                error.problem += &format!(" (set at {})", file.locate(*place));
            }
        }
    }

    fn add(&mut self, flag: &'static str, value: impl fmt::Display, problem: impl Into<String>) {
        self.0.push(PlanError {
            flag,
            value: value.to_string(),
            problem: problem.into(),
        });
    }
}

fn destinations(
    flags: &Flags,
    file: Option<&FileConfig>,
    queue_limit: u64,
    notes: &mut Vec<String>,
    errors: &mut Errors,
) -> Vec<DestinationPlan> {
    let unlimited_by_default = matches!(flags.ack, AckPolicy::Queued | AckPolicy::Stored);
    let defaults = DestinationDefaults {
        queue_limit,
        spool_limit: flags.spool.as_ref().map(|_| flags.spool_limit),
        max_age: flags.max_age,
        inflight: flags.inflight,
        remote_timeout: flags.remote_timeout,
        min_backoff: flags.min_backoff,
        max_backoff: flags.max_backoff,
        max_retries: flags
            .max_retries
            .unwrap_or(if unlimited_by_default { 0 } else { 10 }),
    };
    if let Err(bad) = defaults.check() {
        errors.add(bad.flag, bad.value, bad.problem);
        return Vec::new();
    }
    let texts = flags.to.iter().flat_map(|text| text.lines()).map(str::trim);
    let mut texts: Vec<&str> = texts.filter(|text| !text.is_empty()).collect();
    let from_file = file.map_or(&[][..], |file| &file.destinations);
    match (texts.len(), file) {
        (0, None) => texts.push("file:./profiles"),
        (0, Some(file)) if from_file.is_empty() => {
            let problem =
                "has no endpoint that anything is forwarded to; add one to a pyroscope.write, or give --to";
            errors.add("--config", &file.name, problem);
        }
        (1.., Some(file)) if !from_file.is_empty() => {
            let problem = format!("{} has destinations, too; give them in one place", file.name);
            errors.add("--to", "", problem);
            return Vec::new();
        }
        _ => {}
    }
    let count = texts.len() + from_file.len();
    if count > DESTINATIONS_MAX {
        errors.add(
            "--to",
            count,
            format!("destinations given; at most {DESTINATIONS_MAX} are possible"),
        );
        return Vec::new();
    }
    let mut plans: Vec<DestinationPlan> = Vec::new();
    for text in texts {
        match DestinationPlan::parse(text, &defaults) {
            Err(problem) => errors.add("--to", masked(text), problem),
            Ok(plan) if plans.iter().any(|other| other.name == plan.name) => {
                let problem = format!(
                    "a second destination named '{}'; write NAME={}",
                    plan.name,
                    masked(text)
                );
                errors.add("--to", masked(text), problem);
            }
            Ok(plan) => plans.push(plan),
        }
    }
    if let Some(file) = file {
        endpoints(file, &defaults, &mut plans, notes, errors);
    }
    plans
}

/// The endpoints of a file. Those without a name are called after their host; of several the later ones get a number.
fn endpoints(
    file: &FileConfig,
    defaults: &DestinationDefaults,
    plans: &mut Vec<DestinationPlan>,
    notes: &mut Vec<String>,
    errors: &mut Errors,
) {
    for (spec, place) in &file.destinations {
        let place = file.locate(*place);
        let mut plan = match spec.plan(defaults) {
            Ok(plan) => plan,
            Err(problem) => {
                errors.add("--config", place, problem);
                continue;
            }
        };
        let is_taken = |name: &str| plans.iter().any(|other| other.name == name);
        if is_taken(&plan.name) && spec.name.is_some() {
            let problem = format!("a second endpoint named '{}'; give it another name", plan.name);
            errors.add("--config", place, problem);
            continue;
        }
        if is_taken(&plan.name) {
            let numbered = (2..).map(|number| format!("{}-{number}", plan.name));
            plan.name = numbered
                .take(DESTINATIONS_MAX)
                .find(|name| !is_taken(name))
                .unwrap_or_default();
            notes.push(format!(
                "{place}: this endpoint is called {}; give it a name of its own",
                plan.name
            ));
        }
        plans.push(plan);
    }
}

/// The flags as if the file had been typed, where they were not given themselves.
fn merge(flags: &Flags, file: &FileConfig) -> Flags {
    fn fill<T: Clone>(flags: &Flags, flag: &str, own: &T, said: Option<&T>) -> T {
        said.filter(|_| !flags.is_given(flag)).unwrap_or(own).clone()
    }
    let listen = Some(&file.listen).filter(|listen| !listen.is_empty());
    let mut external_label = flags.external_label.clone();
    let is_set = |name: &str| {
        flags
            .external_label
            .iter()
            .any(|text| text.split('=').next() == Some(name))
    };
    let labels = file.external_labels.iter().filter(|(name, _)| !is_set(name));
    external_label.extend(labels.map(|(name, value)| format!("{name}={value}")));
    let tls = &file.tls;
    let tls_cert_file = fill(
        flags,
        "--tls-cert-file",
        &flags.tls_cert_file,
        Some(&tls.cert_file),
    );
    // In Alloy `http2` goes with TLS, where it changes nothing; a flag that changes nothing is refused.
    let h2c = file.h2c && tls_cert_file.is_none();
    Flags {
        h2c: fill(flags, "--h2c", &flags.h2c, Some(&h2c)),
        tls_key_file: fill(flags, "--tls-key-file", &flags.tls_key_file, Some(&tls.key_file)),
        tls_client_auth: fill(
            flags,
            "--tls-client-auth",
            &flags.tls_client_auth,
            Some(&tls.client_auth),
        ),
        tls_client_ca_file: fill(
            flags,
            "--tls-client-ca-file",
            &flags.tls_client_ca_file,
            Some(&tls.client_ca_file),
        ),
        tls_min_version: fill(
            flags,
            "--tls-min-version",
            &flags.tls_min_version,
            Some(&tls.min_version),
        ),
        tls_cert_file,
        listen: fill(flags, "--listen", &flags.listen, listen),
        conn_limit: fill(flags, "--conn-limit", &flags.conn_limit, file.conn_limit.as_ref()),
        read_timeout: fill(
            flags,
            "--read-timeout",
            &flags.read_timeout,
            file.read_timeout.as_ref(),
        ),
        write_timeout: fill(
            flags,
            "--write-timeout",
            &flags.write_timeout,
            file.write_timeout.as_ref(),
        ),
        idle_timeout: fill(
            flags,
            "--idle-timeout",
            &flags.idle_timeout,
            file.idle_timeout.as_ref(),
        ),
        drain_timeout: fill(
            flags,
            "--drain-timeout",
            &flags.drain_timeout,
            file.drain_timeout.as_ref(),
        ),
        debuginfo_timeout: fill(
            flags,
            "--debuginfo-timeout",
            &flags.debuginfo_timeout,
            file.debuginfo_timeout.as_ref(),
        ),
        trace_headers: fill(
            flags,
            "--trace-headers",
            &flags.trace_headers,
            file.trace_headers.as_ref(),
        ),
        log: fill(flags, "--log", &flags.log, file.log.as_ref()),
        log_level: fill(flags, "--log-level", &flags.log_level, file.log_level.as_ref()),
        external_label,
        ..flags.clone()
    }
}

/// What the file and the flags (as merged) have to say of it.
fn notes(flags: &Flags, file: &FileConfig) -> Vec<String> {
    let note = |(place, note): &(Place, String)| format!("{}: {note}", file.locate(*place));
    let mut notes: Vec<String> = file.notes.iter().map(note).collect();
    if let Some(place) = file.places.get("--h2c").filter(|_| flags.tls_cert_file.is_some()) {
        notes.push(format!(
            "{}: http2 has no effect with TLS: HTTP/2 is served to every client that asks for it",
            file.locate(*place)
        ));
    }
    notes
}

/// A `--to` value with user and password hidden, and every value of an option that may be secret.
pub fn masked(text: &str) -> String {
    let mut out = text.to_owned();
    if let (Some(scheme), Some(at)) = (out.find("://"), out.rfind('@'))
        && scheme + 3 < at
    {
        out.replace_range(scheme + 3..at, "***");
    }
    let mut pieces = out.split(',');
    let url = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(url, |shown, piece| match piece.split_once('=') {
        Some((key, _)) if is_shown(key) => format!("{shown},{piece}"),
        Some((key, _)) if is_known(key) => format!("{shown},{key}=***"),
        _ => format!("{shown},***"),
    })
}

fn check_spool(flags: &Flags, body_limit: u64, destinations: &[DestinationPlan], errors: &mut Errors) {
    let is_needed = destinations.iter().any(DestinationPlan::is_http);
    if flags.ack == AckPolicy::Stored && is_needed && flags.spool.is_none() {
        errors.add(
            "--ack",
            "stored",
            "needs a folder to store profiles in; give --spool DIR",
        );
    }
    if flags
        .spool
        .as_ref()
        .is_some_and(|folder| folder.as_os_str().is_empty())
    {
        errors.add("--spool", "''", "is empty; give a folder");
    }
    for one in destinations {
        let Some(limit) = one.spool_limit else { continue };
        if limit < body_limit.saturating_mul(2) {
            let problem = format!(
                "of destination '{}' is less than twice one body ({}); raise it or lower --body-limit",
                one.name,
                show_size(body_limit)
            );
            errors.add("--spool-limit", show_size(limit), problem);
        }
    }
}

fn check_sizes(flags: &Flags, body_limit: u64, destinations: &[DestinationPlan], errors: &mut Errors) {
    if flags.memory_limit < 1 << 20 {
        errors.add(
            "--memory-limit",
            show_size(flags.memory_limit),
            "too small to work with; give 1MiB or more",
        );
    }
    if body_limit == 0 {
        errors.add(
            "--body-limit",
            0,
            "nothing could be pushed; the default is 256MiB",
        );
    }
    if body_limit > flags.memory_limit {
        let problem = format!(
            "larger than --memory-limit {}; lower it or raise that",
            show_size(flags.memory_limit)
        );
        errors.add("--body-limit", show_size(body_limit), problem);
    }
    for destination in destinations {
        if destination.queue_limit < body_limit {
            let problem = format!(
                "of destination '{}' is smaller than one body may be ({}); raise it or lower --body-limit",
                destination.name,
                show_size(body_limit)
            );
            errors.add("--queue-limit", show_size(destination.queue_limit), problem);
        }
        if destination.queue_limit > flags.memory_limit {
            let problem = format!(
                "of destination '{}' is larger than --memory-limit {}; it could never fill",
                destination.name,
                show_size(flags.memory_limit)
            );
            errors.add("--queue-limit", show_size(destination.queue_limit), problem);
        }
    }
    if flags.conn_limit == 0 {
        errors.add("--conn-limit", 0, "nobody could connect; the default is 16384");
    }
    if let Some(age) = flags.max_connection_age
        && age < CONNECTION_AGE_MIN
    {
        let problem = "clients would connect all the time; give 1s or more, or leave it out";
        errors.add("--max-connection-age", format!("{age:?}"), problem);
    }
    for (flag, value) in [
        ("--read-timeout", flags.read_timeout),
        ("--write-timeout", flags.write_timeout),
        ("--idle-timeout", flags.idle_timeout),
        ("--dns-refresh", flags.dns_refresh),
        ("--debuginfo-timeout", flags.debuginfo_timeout),
    ] {
        if value < Duration::from_millis(100) {
            errors.add(flag, format!("{value:?}"), "too short; give 100ms or more");
        }
    }
}

fn threads(flags: &Flags, host: &Host, destinations: usize, errors: &mut Errors) -> (usize, usize) {
    let cores = flags.cores.unwrap_or_else(|| default_cores(host));
    if cores == 0 || cores > CORES_MAX {
        errors.add("--cores", cores, format!("must be 1 to {CORES_MAX}"));
    }
    let writers = match flags.writers.as_str() {
        "auto" if cores < 4 => 0,
        // A push is received once and sent once per destination, so writers carry at least half of the work; a
        // destination has one owner, so more writers than destinations would idle.
        "auto" => destinations.clamp(1, cores / 2),
        text => match text.parse::<usize>() {
            Ok(writers) if writers < cores => writers,
            Ok(writers) => {
                let problem = format!("must be below --cores {cores}: someone has to take connections");
                errors.add("--writers", writers, problem);
                0
            }
            Err(_) => {
                errors.add("--writers", text, "must be 'auto' or a number of cores");
                0
            }
        },
    };
    (cores.max(1), writers)
}

fn default_cores(host: &Host) -> usize {
    let cpus = host.cpus.len().max(1);
    match host.cpu_quota {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped to 1 ..= cpus
        #[allow(clippy::cast_precision_loss)]
        Some(quota) => quota.ceil().clamp(1.0, cpus as f64) as usize,
        None => cpus,
    }
}

fn listen(flags: &Flags, errors: &mut Errors) -> Vec<SocketAddr> {
    for (index, address) in flags.listen.iter().enumerate() {
        if address.port() != 0 && flags.listen[..index].contains(address) {
            errors.add("--listen", address, "given twice");
        }
    }
    flags.listen.clone()
}

/// Row 134 (D): Alloy serves cleartext where one of the two is missing.
fn server_tls(flags: &Flags, errors: &mut Errors) -> Option<ServerTls> {
    let shown = |file: &PathBuf| file.display().to_string();
    let client_auth = flags.tls_client_auth.unwrap_or_default();
    match (&flags.tls_client_ca_file, client_auth) {
        (Some(file), ClientAuth::NoClientCert) => errors.add(
            "--tls-client-ca-file",
            shown(file),
            "has no effect without a policy; give --tls-client-auth RequireAndVerifyClientCert, or another one",
        ),
        (None, policy) if policy.verifies() => errors.add(
            "--tls-client-auth",
            policy.name(),
            "needs --tls-client-ca-file: it says whose certificates are good",
        ),
        _ => {}
    }
    if flags.h2c && flags.tls_cert_file.is_some() {
        let problem =
            "is for cleartext; with TLS HTTP/2 is served to every client that asks for it, so leave it out";
        errors.add("--h2c", "", problem);
    }
    match (&flags.tls_cert_file, &flags.tls_key_file) {
        (Some(cert_file), Some(key_file)) => Some(ServerTls {
            cert_file: cert_file.clone(),
            key_file: key_file.clone(),
            client_ca_file: flags.tls_client_ca_file.clone(),
            client_auth,
            min_version: flags.tls_min_version.unwrap_or_default(),
        }),
        (Some(cert_file), None) => {
            let problem = "needs --tls-key-file beside it; without both nothing would be encrypted";
            errors.add("--tls-cert-file", shown(cert_file), problem);
            None
        }
        (None, Some(key_file)) => {
            let problem = "needs --tls-cert-file beside it; without both nothing would be encrypted";
            errors.add("--tls-key-file", shown(key_file), problem);
            None
        }
        (None, None) => {
            let without = "has no effect without --tls-cert-file and --tls-key-file";
            if let Some(policy) = flags.tls_client_auth {
                errors.add("--tls-client-auth", policy.name(), without);
            }
            if let Some(version) = flags.tls_min_version {
                errors.add("--tls-min-version", format!("{version:?}"), without);
            }
            None
        }
    }
}

fn admin(flags: &Flags, errors: &mut Errors) -> Option<SocketAddr> {
    if flags.admin == "off" {
        return None;
    }
    match flags.admin.parse::<SocketAddr>() {
        Ok(address) => {
            if address.port() != 0 && flags.listen.contains(&address) {
                errors.add(
                    "--admin",
                    address,
                    "is also a --listen address; give it a port of its own",
                );
            }
            Some(address)
        }
        Err(_) => {
            errors.add(
                "--admin",
                &flags.admin,
                "must be ADDRESS:PORT, such as 127.0.0.1:4041, or 'off'",
            );
            None
        }
    }
}

fn external_labels(flags: &Flags, errors: &mut Errors) -> Vec<(String, String)> {
    if flags.labels == LabelMode::Verbatim && !flags.external_label.is_empty() {
        errors.add(
            "--external-label",
            flags.external_label.join(","),
            "has no effect with --labels verbatim; leave one of them out",
        );
    }
    let mut labels = Vec::new();
    for text in &flags.external_label {
        match text.split_once('=') {
            Some((key, value)) => labels.push((key.to_owned(), value.to_owned())),
            None => errors.add("--external-label", text, "must be KEY=VALUE"),
        }
    }
    if let Err(problem) = crate::profile::labels::LabelRules::new(labels.clone()) {
        errors.add(
            "--external-label",
            flags.external_label.join(","),
            problem.to_string(),
        );
    }
    labels
}

fn relabel(flags: &Flags, file: Option<&FileConfig>, errors: &mut Errors) -> Vec<RuleSpec> {
    let mut rules = file.map(|file| file.relabel.clone()).unwrap_or_default();
    if let Some(file) = file.filter(|_| !rules.is_empty() && !flags.relabel.is_empty()) {
        let problem = format!("{} has relabel rules, too; give them in one place", file.name);
        errors.add("--relabel", "", problem);
        return rules;
    }
    let mut good = true;
    let texts = flags.relabel.iter().flat_map(|text| text.lines()).map(str::trim);
    for text in texts.filter(|text| !text.is_empty()) {
        match rule::parse(text) {
            Ok(rule) => rules.push(rule),
            Err(mistakes) => {
                good = false;
                for mistake in mistakes {
                    errors.add(
                        "--relabel",
                        format!("{text} (column {})", mistake.place.column),
                        mistake.problem,
                    );
                }
            }
        }
    }
    if flags.labels == LabelMode::Verbatim && !rules.is_empty() {
        let problem = "rules have no effect with --labels verbatim; leave one of them out";
        errors.add("--relabel", "", problem);
    }
    if good && let Err(bad) = Relabel::new(&rules) {
        let text = rules.get(bad.index).map(rule::show).unwrap_or_default();
        errors.add("--relabel", text, bad.problem);
    }
    rules
}

fn pass_headers(flags: &Flags, errors: &mut Errors) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in &flags.pass_header {
        let lower = name.to_ascii_lowercase();
        match valid_header(name) {
            Err(problem) => errors.add("--pass-header", name, problem),
            Ok(_) if names.contains(&lower) => errors.add("--pass-header", name, "given twice"),
            Ok(_) => names.push(lower),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn plan(args: &[&str]) -> Result<Plan, PlanErrors> {
        let flags = Line::try_parse_from([&["x"], args].concat())
            .expect("the flags parse")
            .flags;
        Plan::new(
            &flags,
            &Host {
                cpus: vec![0, 1],
                cpu_quota: None,
            },
        )
    }

    #[test]
    fn defaults_make_a_plan() {
        let plan = plan(&[]).unwrap();
        assert_eq!(plan.destinations[0].name, "archive");
        assert_eq!(plan.body_limit, 256 << 20);
        assert_eq!((plan.cores, plan.writers), (2, 0));
        assert_eq!(plan.destinations[0].max_retries, 0);
    }

    #[test]
    fn the_cgroup_quota_bounds_the_cores() {
        let flags = Line::try_parse_from(["x"]).unwrap().flags;
        let host = Host {
            cpus: (0..8).collect(),
            cpu_quota: Some(2.5),
        };
        assert_eq!(Plan::new(&flags, &host).unwrap().cores, 3);
    }

    #[test]
    fn ack_all_retries_as_alloy_does() {
        assert_eq!(plan(&["--ack", "all"]).unwrap().destinations[0].max_retries, 10);
        assert_eq!(
            plan(&["--ack", "all", "--max-retries", "3"])
                .unwrap()
                .destinations[0]
                .max_retries,
            3
        );
    }

    #[test]
    fn contradictions_name_the_flag_and_the_mend() {
        for (args, flag, says) in [
            (&["--memory-limit", "1B"][..], "--memory-limit", "1MiB"),
            (&["--body-limit", "2GiB"], "--body-limit", "--memory-limit"),
            (
                &["--queue-limit", "1MiB", "--body-limit", "2MiB"],
                "--queue-limit",
                "raise it",
            ),
            (&["--queue-limit", "2GiB"], "--queue-limit", "never fill"),
            (&["--conn-limit", "0"], "--conn-limit", "16384"),
            (&["--cores", "0"], "--cores", "1 to"),
            (&["--cores", "2", "--writers", "2"], "--writers", "below"),
            (&["--writers", "many"], "--writers", "auto"),
            (&["--admin", "nowhere"], "--admin", "off"),
            (&["--admin", "0.0.0.0:4040"], "--admin", "own"),
            (
                &["--listen", "1.1.1.1:1", "--listen", "1.1.1.1:1"],
                "--listen",
                "twice",
            ),
            (&["--to", "http://a:1", "--to", "http://a:1"], "--to", "NAME="),
            (&["--ack", "stored", "--to", "http://a:1"], "--ack", "--spool DIR"),
            (
                &["--spool", "s", "--to", "http://a:1", "--spool-limit", "1MiB"],
                "--spool-limit",
                "raise it",
            ),
            (&["--to", "http://a:1,spool-limit=1GiB"], "--to", "--spool DIR"),
            (
                &["--spool", "s", "--to", "file:x,spool-limit=1GiB"],
                "--to",
                "folder",
            ),
            (&["--to", "https://a,tls-cert-file=c"], "--to", "tls-key-file"),
            (
                &["--tls-cert-file", "c", "--tls-key-file", "k", "--h2c"],
                "--h2c",
                "cleartext",
            ),
            (&["--tls-cert-file", "c"], "--tls-cert-file", "--tls-key-file"),
            (&["--tls-key-file", "k"], "--tls-key-file", "--tls-cert-file"),
            (
                &["--tls-client-auth", "RequestClientCert"],
                "--tls-client-auth",
                "--tls-cert-file",
            ),
            (
                &["--tls-min-version", "TLS13"],
                "--tls-min-version",
                "--tls-cert-file",
            ),
            (
                &[
                    "--tls-cert-file",
                    "c",
                    "--tls-key-file",
                    "k",
                    "--tls-client-ca-file",
                    "a",
                ],
                "--tls-client-ca-file",
                "--tls-client-auth",
            ),
            (
                &[
                    "--tls-cert-file",
                    "c",
                    "--tls-key-file",
                    "k",
                    "--tls-client-auth",
                    "VerifyClientCertIfGiven",
                ],
                "--tls-client-auth",
                "--tls-client-ca-file",
            ),
            (&["--external-label", "x"], "--external-label", "KEY=VALUE"),
            (
                &["--labels", "verbatim", "--external-label", "a=b"],
                "--external-label",
                "verbatim",
            ),
            (
                &["--relabel", "action = drop"],
                "--relabel",
                "(column 10): action must be a string",
            ),
            (
                &["--relabel", "regex = \"(\", target_label = \"t\""],
                "--relabel",
                "unclosed group",
            ),
            (
                &["--labels", "verbatim", "--relabel", "action = \"drop\""],
                "--relabel",
                "verbatim",
            ),
            (&["--pass-header", "Host"], "--pass-header", "Host"),
            (&["--pass-header", "A,a"], "--pass-header", "twice"),
            (&["--read-timeout", "1ms"], "--read-timeout", "100ms"),
            (&["--max-connection-age", "10ms"], "--max-connection-age", "1s"),
        ] {
            let errors = plan(args).unwrap_err().0;
            assert!(
                errors
                    .iter()
                    .any(|e| e.flag == flag && e.to_string().contains(says)),
                "{args:?}: {errors:?}"
            );
        }
    }

    #[test]
    fn errors_hide_credentials() {
        let error = plan(&["--to", "http://u:hunter2@h:1,header.X=s3cret,x=1"])
            .unwrap_err()
            .to_string();
        assert!(!error.contains("hunter2") && !error.contains("s3cret"), "{error}");
        for (text, shown) in [
            (
                "a=http://h,inflight=3,bearer-token=x",
                "a=http://h,inflight=3,bearer-token=***",
            ),
            (
                "http://u:p,q@h,basic-auth.password=a,b=c",
                "http://***@h,basic-auth.password=***,***",
            ),
            (
                "http://h,header-file.X-Key=/f,header.X=y",
                "http://h,header-file.X-Key=/f,header.X=***",
            ),
        ] {
            assert_eq!(masked(text), shown);
        }
    }
}
