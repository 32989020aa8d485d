//! `pyrotee doctor`: what this host allows, and what to change.
//!
//! ```text
//!  facts.rs: /proc, /sys, limits, trials of the engines ──▶ Facts ──▶ findings (pure) ──▶ text or JSON, exit code
//! ```
//! It changes nothing and needs no privileges. Not responsible for a configuration: that is `pyrotee check`.

mod facts;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::show;
use crate::config::units::show_size;
use facts::{Facts, Trial};

/// The flags of `pyrotee doctor`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Folder that profiles are to be archived in; it need not exist yet.
    #[arg(long, value_name = "DIR", default_value = "./profiles")]
    pub archive: PathBuf,
    /// Client connections that are to be possible, as in `pyrotee run`.
    #[arg(long, value_name = "N", default_value_t = 16384)]
    pub conn_limit: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Descriptors beside those of clients: destinations, rings, files (as `pyrotee run` reckons).
const FILES_BESIDE_CLIENTS: u64 = 256;
/// With fewer files than this nothing works under any load: the usual soft limit of a login shell.
const FILES_MIN: u64 = 1024;
/// What the listeners ask for (`runtime/socket.rs`); the kernel caps it at net.core.somaxconn.
const BACKLOG: u64 = 4096;
/// Local ports that one destination needs at most: `--inflight` may be 4096.
const PORTS_MIN: u64 = 4096;
/// Longer ones let ports of ended connections pile up; the kernel's default.
const FIN_TIMEOUT_SECS_MAX: u64 = 60;
/// The default of `--memory-limit`.
const MEMORY_LIMIT: u64 = 1 << 30;
/// Beside bodies: code, connections, rings. A quarter on top of the limit is ample.
const MEMORY_WANTED: u64 = MEMORY_LIMIT + MEMORY_LIMIT / 4;
/// Below this even a small `--memory-limit` leaves no room.
const MEMORY_MIN: u64 = 64 << 20;
/// Free space in the archive folder below which one should know.
const SPACE_WANTED: u64 = 1 << 30;
/// What rings want to lock on kernels that count them (before 5.12; USERS.md section 6).
const MEMLOCK_WANTED: u64 = 8 << 20;

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// Nothing to do.
    Ok,
    /// It works, and could work better.
    Warn,
    /// pyrotee cannot run well like this.
    Bad,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Finding {
    topic: &'static str,
    level: Level,
    /// What is the case.
    says: String,
    /// What to do or to know, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn ok(topic: &'static str, says: impl Into<String>) -> Self {
        Self {
            topic,
            level: Level::Ok,
            says: says.into(),
            advice: None,
        }
    }

    fn warn(topic: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::ok(topic, says).but(Level::Warn, advice)
    }

    fn bad(topic: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::ok(topic, says).but(Level::Bad, advice)
    }

    fn but(self, level: Level, advice: impl Into<String>) -> Self {
        Self {
            level,
            advice: Some(advice.into()),
            ..self
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    /// What `--engine auto` would take; `none` where nothing works.
    engine: &'static str,
    /// The worst of all findings.
    verdict: Level,
    findings: Vec<Finding>,
}

/// Looks, and tells.
///
/// # Errors
/// When the report cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let facts = Facts::read(&args.archive);
    let report = Report::new(&facts, args.conn_limit);
    let mut out = std::io::stdout();
    if args.json {
        let mut json = serde_json::to_vec_pretty(&report)?;
        json.push(b'\n');
        out.write_all(&json)?;
    } else {
        out.write_all(report.to_text(out.is_terminal()).as_bytes())?;
    }
    let bad = report.verdict == Level::Bad;
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Report {
    fn new(facts: &Facts, conn_limit: u64) -> Self {
        let findings = findings(facts, conn_limit);
        let engine = match (&facts.ring_deferred, &facts.ring_plain, &facts.epoll) {
            (Trial::Works, ..) | (_, Trial::Works, _) => "io_uring",
            (_, _, Trial::Works) => "epoll",
            _ => "none",
        };
        Self {
            version: env!("CARGO_PKG_VERSION"),
            engine,
            verdict: findings
                .iter()
                .map(|finding| finding.level)
                .max()
                .unwrap_or(Level::Ok),
            findings,
        }
    }

    fn to_text(&self, colours: bool) -> String {
        let mut text = format!("pyrotee {} on this host\n\n", self.version);
        let width = self
            .findings
            .iter()
            .map(|finding| finding.topic.len())
            .max()
            .unwrap_or(0);
        for finding in &self.findings {
            let (word, colour) = match finding.level {
                Level::Ok => ("ok  ", "32"),
                Level::Warn => ("warn", "33"),
                Level::Bad => ("bad ", "31"),
            };
            let word = if colours {
                format!("\x1b[{colour}m{word}\x1b[0m")
            } else {
                word.to_owned()
            };
            text += &format!("{word}  {:width$}  {}\n", finding.topic, finding.says);
            if let Some(advice) = &finding.advice {
                text += &format!("      {:width$}  -> {advice}\n", "");
            }
        }
        text += "\n";
        text += &match self.verdict {
            Level::Ok => format!("pyrotee can run well here, on {}.\n", self.engine),
            Level::Warn => format!(
                "pyrotee can run here, on {}; the advice above makes it better.\n",
                self.engine
            ),
            Level::Bad => "pyrotee cannot run well here until what is marked bad is mended.\n".to_owned(),
        };
        text
    }
}

/// Everything there is to say about `facts`. Pure.
fn findings(facts: &Facts, conn_limit: u64) -> Vec<Finding> {
    let mut all = vec![kernel(facts), container(facts)];
    all.extend(engines(facts));
    all.extend([
        io_uring_switch(facts),
        seccomp(facts),
        privileges(facts),
        memlock(facts),
    ]);
    all.extend(iowait(facts));
    all.extend([
        files(facts, conn_limit),
        backlog(facts),
        ports(facts),
        time_wait(facts),
        fin_timeout(facts),
    ]);
    all.extend([
        cpus(facts),
        cpu_quota(facts),
        memory(facts),
        root_certificates(facts),
        archive(facts),
    ]);
    all
}

fn kernel(facts: &Facts) -> Finding {
    let says = format!("Linux {}", facts.kernel);
    match facts.kernel_version() {
        Some(version) if version < (5, 11) => Finding::warn(
            "kernel",
            says,
            "Linux 5.11 or later is needed for io_uring, 6.1 for its full speed.",
        ),
        Some(version) if version < (6, 1) => Finding::warn(
            "kernel",
            says,
            "Linux 6.1 or later lets io_uring work at full speed (DEFER_TASKRUN).",
        ),
        _ => Finding::ok("kernel", says),
    }
}

fn container(facts: &Facts) -> Finding {
    match &facts.container {
        Some(clue) => Finding::ok("container", format!("probably inside one ({clue})")),
        None => Finding::ok("container", "no sign of one"),
    }
}

fn engines(facts: &Facts) -> Vec<Finding> {
    let any_ring = facts.has_ring();
    let deferred = "io_uring, full";
    let plain = "io_uring, plain";
    let mut all = vec![match (&facts.ring_deferred, any_ring) {
        (Trial::Works, _) => Finding::ok(
            deferred,
            "works: a ring with SINGLE_ISSUER and DEFER_TASKRUN carried a message; --engine auto takes it",
        ),
        (Trial::Fails(error), true) => Finding::warn(
            deferred,
            format!("does not work: {error}"),
            "It needs Linux 6.1; until then the plain ring is taken, which costs more CPU with few connections.",
        ),
        (Trial::Fails(error), false) => {
            let (cause, fix) = &facts.refusal;
            let says = format!("does not work: {error}; likely cause: {cause}");
            Finding::warn(
                deferred,
                says,
                format!("pyrotee takes epoll instead, with more CPU per push; to change it, {fix}."),
            )
        }
        (Trial::Skipped, _) => Finding::ok(deferred, "not tried"),
    }];
    all.push(match &facts.ring_plain {
        Trial::Works => Finding::ok(plain, "works; --engine auto takes it"),
        Trial::Skipped => Finding::ok(plain, "not needed"),
        Trial::Fails(error) => Finding::warn(
            plain,
            format!("does not work: {error}"),
            "Nothing to add to the line above: io_uring as a whole is not to be had here.",
        ),
    });
    all.push(match &facts.epoll {
        Trial::Works if any_ring => Finding::ok("epoll", "works; --engine epoll takes it"),
        Trial::Works => Finding::ok("epoll", "works; --engine auto takes it"),
        Trial::Fails(error) => Finding::bad(
            "epoll",
            format!("does not work: {error}"),
            "An ordinary kernel allows it always; look for a filter on system calls that forbids epoll or sockets.",
        ),
        Trial::Skipped => Finding::ok("epoll", "not tried"),
    });
    all
}

fn io_uring_switch(facts: &Facts) -> Finding {
    const TOPIC: &str = "io_uring switch";
    match facts.io_uring_disabled {
        None => Finding::ok(
            TOPIC,
            "kernel.io_uring_disabled is absent (it came with Linux 6.6): nobody is kept out",
        ),
        Some(0) => Finding::ok(TOPIC, "kernel.io_uring_disabled is 0: everyone may"),
        Some(1) if facts.has_ring() => Finding::ok(
            TOPIC,
            "kernel.io_uring_disabled is 1: only its group and privileged processes, this one included",
        ),
        Some(value) => Finding::warn(
            TOPIC,
            format!(
                "kernel.io_uring_disabled is {value}: {}",
                if value == 1 {
                    "not for this process"
                } else {
                    "nobody may"
                }
            ),
            "Set it to 0 (sysctl -w kernel.io_uring_disabled=0) if this host's policy allows; epoll works without.",
        ),
    }
}

fn seccomp(facts: &Facts) -> Finding {
    const TOPIC: &str = "seccomp";
    match (facts.seccomp, facts.has_ring()) {
        (0, _) => Finding::ok(TOPIC, "no filter (Seccomp: 0)"),
        (mode, true) => Finding::ok(
            TOPIC,
            format!("a filter is active (Seccomp: {mode}) and lets io_uring through"),
        ),
        (mode, false) => Finding::warn(
            TOPIC,
            format!("a filter is active (Seccomp: {mode}); the default ones of containers forbid io_uring"),
            "Allow io_uring_setup, io_uring_enter and io_uring_register in its profile, or stay on epoll.",
        ),
    }
}

fn privileges(facts: &Facts) -> Finding {
    let says = match facts.no_new_privs {
        Some(true) => "set (NoNewPrivs: 1); fine, pyrotee needs no privileges",
        Some(false) => "not set (NoNewPrivs: 0); pyrotee needs no privileges, so it may be",
        None => "the kernel does not say",
    };
    Finding::ok("no new privileges", says)
}

fn memlock(facts: &Facts) -> Finding {
    const TOPIC: &str = "locked memory";
    let counts_rings = facts.kernel_version().is_some_and(|version| version < (5, 12));
    match facts.memlock {
        None => Finding::ok(TOPIC, "unlimited (ulimit -l)"),
        Some(limit) if limit < MEMLOCK_WANTED && (counts_rings || !facts.has_ring()) => Finding::warn(
            TOPIC,
            format!("at most {} (ulimit -l)", show_size(limit)),
            "Kernels before 5.12 count rings against it: raise it to 8 MiB or more if io_uring is to be used.",
        ),
        Some(limit) => Finding::ok(
            TOPIC,
            format!(
                "at most {} (ulimit -l); enough, rings are not counted on this kernel",
                show_size(limit)
            ),
        ),
    }
}

fn iowait(facts: &Facts) -> Option<Finding> {
    facts.has_ring().then(|| {
        Finding::ok(
            "iowait",
            "idle cores may show as iowait in top with io_uring: cosmetic, no time is lost; mind alarms on iowait",
        )
    })
}

fn files(facts: &Facts, conn_limit: u64) -> Finding {
    const TOPIC: &str = "open files";
    let wanted = conn_limit.saturating_add(FILES_BESIDE_CLIENTS);
    let show = |limit: Option<u64>| limit.map_or("unlimited".into(), show::count);
    let says = format!("soft {}, hard {}", show(facts.files_soft), show(facts.files_hard));
    let hard = facts.files_hard.unwrap_or(u64::MAX);
    if hard < FILES_MIN {
        let advice =
            format!("Raise the hard limit to {wanted} (LimitNOFILE= of systemd, ulimit -Hn elsewhere).");
        return Finding::bad(TOPIC, format!("{says}: too few for any real load"), advice);
    }
    if hard < wanted {
        let advice = format!(
            "Raise the hard limit to {wanted} (LimitNOFILE= of systemd), or run with --conn-limit {}.",
            hard.saturating_sub(FILES_BESIDE_CLIENTS)
        );
        let says = format!(
            "{says}: fewer than --conn-limit {} needs ({})",
            show::count(conn_limit),
            show::count(wanted)
        );
        return Finding::warn(TOPIC, says, advice);
    }
    let raised = facts.files_soft.is_some_and(|soft| soft < wanted);
    let how = if raised {
        " (pyrotee raises its soft limit itself)"
    } else {
        ""
    };
    Finding::ok(
        TOPIC,
        format!("{says}: enough for --conn-limit {}{how}", show::count(conn_limit)),
    )
}

fn backlog(facts: &Facts) -> Finding {
    const TOPIC: &str = "listen backlog";
    match facts.somaxconn {
        Some(limit) if limit < BACKLOG => Finding::warn(
            TOPIC,
            format!("net.core.somaxconn is {limit}, pyrotee asks for {BACKLOG}"),
            format!("Set net.core.somaxconn={BACKLOG}, so that a burst of new clients is not turned away."),
        ),
        Some(limit) => Finding::ok(TOPIC, format!("net.core.somaxconn is {limit}")),
        None => Finding::ok(TOPIC, "the kernel does not say"),
    }
}

fn ports(facts: &Facts) -> Finding {
    const TOPIC: &str = "local ports";
    let Some((first, last)) = facts.ports else {
        return Finding::ok(TOPIC, "the kernel does not say");
    };
    let says = format!("ip_local_port_range is {first} to {last}");
    if (last + 1).saturating_sub(first) < PORTS_MIN {
        return Finding::warn(
            TOPIC,
            says,
            "Widen net.ipv4.ip_local_port_range: each connection to a destination needs a port of its own.",
        );
    }
    Finding::ok(TOPIC, says)
}

fn time_wait(facts: &Facts) -> Finding {
    const TOPIC: &str = "tcp_tw_reuse";
    match facts.tw_reuse {
        Some(0) => Finding::warn(
            TOPIC,
            "0: ports of ended connections rest for a minute",
            "Set net.ipv4.tcp_tw_reuse=1 if a destination closes its connections often.",
        ),
        Some(2) => Finding::ok(
            TOPIC,
            "2: ports of ended connections are reused on loopback; enough with keep-alive",
        ),
        Some(value) => Finding::ok(TOPIC, format!("{value}: ports of ended connections are reused")),
        None => Finding::ok(TOPIC, "the kernel does not say"),
    }
}

fn fin_timeout(facts: &Facts) -> Finding {
    const TOPIC: &str = "tcp_fin_timeout";
    match facts.fin_timeout {
        Some(seconds) if seconds > FIN_TIMEOUT_SECS_MAX => Finding::warn(
            TOPIC,
            format!("{seconds} s"),
            format!(
                "Set net.ipv4.tcp_fin_timeout={FIN_TIMEOUT_SECS_MAX} or less, so that half-closed connections go away."
            ),
        ),
        Some(seconds) => Finding::ok(TOPIC, format!("{seconds} s")),
        None => Finding::ok(TOPIC, "the kernel does not say"),
    }
}

fn cpus(facts: &Facts) -> Finding {
    const TOPIC: &str = "cpus";
    let allowed = facts.cpus_allowed.len() as u64;
    let list = list(&facts.cpus_allowed);
    match facts.cpus_online {
        Some(online) if online > allowed => Finding::ok(
            TOPIC,
            format!(
                "{} of {online} allowed by affinity ({list}); --cores follows that",
                show::count(allowed)
            ),
        ),
        _ if allowed == 1 => Finding::ok(TOPIC, "1: all work shares one thread"),
        _ => Finding::ok(
            TOPIC,
            format!("{} ({list}), all of them allowed", show::count(allowed)),
        ),
    }
}

/// `0-3,8`.
fn list(numbers: &[usize]) -> String {
    let mut text = String::new();
    for run in numbers.chunk_by(|left, right| left + 1 == *right) {
        if !text.is_empty() {
            text.push(',');
        }
        text += &match run {
            [one] => one.to_string(),
            [first, .., last] => format!("{first}-{last}"),
            [] => String::new(),
        };
    }
    text
}

fn cpu_quota(facts: &Facts) -> Finding {
    const TOPIC: &str = "cgroup cpu";
    match facts.cgroup.cpus {
        None => Finding::ok(TOPIC, "no quota"),
        Some(quota) if quota < 1.0 => Finding::warn(
            TOPIC,
            format!("{quota:.2} CPUs' worth of time"),
            "Less than one CPU means pauses of tens of milliseconds when it is used up; give it 1 or more, or no quota.",
        ),
        Some(quota) => Finding::ok(
            TOPIC,
            format!("{quota:.2} CPUs' worth of time; --cores follows that"),
        ),
    }
}

fn memory(facts: &Facts) -> Finding {
    const TOPIC: &str = "memory";
    let (limit, whose) = match (facts.cgroup.memory, facts.memory) {
        (Some(limit), Some(host)) if limit < host => (limit, "the cgroup allows"),
        (_, Some(host)) => (host, "this host has"),
        (Some(limit), None) => (limit, "the cgroup allows"),
        (None, None) => return Finding::ok(TOPIC, "the kernel does not say"),
    };
    let says = format!("{whose} {}", show_size(limit));
    if limit < MEMORY_MIN {
        return Finding::bad(
            TOPIC,
            says,
            format!("Give it {} or more.", show_size(MEMORY_WANTED)),
        );
    }
    if limit < MEMORY_WANTED {
        let advice = format!(
            "Run with --memory-limit {}MiB (the default of {} would be ended by the OOM killer), or give it {}.",
            (limit / 2) >> 20,
            show_size(MEMORY_LIMIT),
            show_size(MEMORY_WANTED)
        );
        return Finding::warn(TOPIC, says, advice);
    }
    Finding::ok(
        TOPIC,
        format!(
            "{says}: enough for the default --memory-limit of {}",
            show_size(MEMORY_LIMIT)
        ),
    )
}

fn root_certificates(facts: &Facts) -> Finding {
    const TOPIC: &str = "root certificates";
    match facts.root_certificates {
        0 => Finding::warn(
            TOPIC,
            "this system trusts none",
            "For https:// destinations install ca-certificates, set SSL_CERT_FILE, or give tls-ca-file.",
        ),
        count => Finding::ok(
            TOPIC,
            format!("this system trusts {count}; https:// destinations can be verified"),
        ),
    }
}

fn archive(facts: &Facts) -> Finding {
    const TOPIC: &str = "archive folder";
    let name = facts.archive_name.display();
    match &facts.archive {
        Err(error) => Finding::warn(
            TOPIC,
            format!("{name} cannot be written: {error}"),
            "Name a folder that this user may write (--to file:DIR), or only destinations with http://.",
        ),
        Ok(free) if *free < SPACE_WANTED => Finding::warn(
            TOPIC,
            format!("{name} has {} free", show_size(*free)),
            "Make room, or archive elsewhere: on a full disk profiles wait in memory, and in the end are dropped.",
        ),
        Ok(free) => Finding::ok(
            TOPIC,
            format!("{name} can be written and has {} free", show_size(*free)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::facts::CgroupLimits;
    use super::*;

    fn good() -> Facts {
        Facts {
            kernel: "6.18.44".into(),
            container: None,
            ring_deferred: Trial::Works,
            ring_plain: Trial::Skipped,
            epoll: Trial::Works,
            refusal: Default::default(),
            io_uring_disabled: Some(0),
            seccomp: 0,
            no_new_privs: Some(false),
            memlock: Some(8 << 20),
            files_soft: Some(1024),
            files_hard: Some(1 << 20),
            somaxconn: Some(4096),
            ports: Some((32_768, 60_999)),
            tw_reuse: Some(2),
            fin_timeout: Some(60),
            cpus_allowed: vec![0, 1, 2, 3, 8],
            cpus_online: Some(16),
            cgroup: CgroupLimits::default(),
            memory: Some(8 << 30),
            root_certificates: 140,
            archive_name: "./profiles".into(),
            archive: Ok(50 << 30),
        }
    }

    fn no_ring(facts: &mut Facts) {
        facts.ring_deferred = Trial::Fails("Operation not permitted".into());
        facts.ring_plain = Trial::Fails("Operation not permitted".into());
        facts.refusal = (
            "sysctl kernel.io_uring_disabled is 2".into(),
            "set sysctl kernel.io_uring_disabled=0".into(),
        );
    }

    #[test]
    fn a_good_host_is_all_ok() {
        let report = Report::new(&good(), 16_384);
        assert_eq!(
            (report.verdict, report.engine),
            (Level::Ok, "io_uring"),
            "{}",
            report.to_text(false)
        );
        let text = report.to_text(false);
        assert!(text.contains("5 of 16 allowed by affinity (0-3,8)"), "{text}");
        assert!(
            text.contains("iowait") && text.contains("can run well here, on io_uring"),
            "{text}"
        );
    }

    /// Each case: what is spoiled, the topic that tells, how bad, and what it must say.
    #[test]
    fn each_trouble_is_told_with_advice() {
        type Spoil = fn(&mut Facts);
        let cases: [(&str, Spoil, Level, &str); 25] = [
            (
                "root certificates",
                |f| f.root_certificates = 0,
                Level::Warn,
                "ca-certificates",
            ),
            (
                "kernel",
                |f| f.kernel = "5.4.0-generic".into(),
                Level::Warn,
                "5.11",
            ),
            ("kernel", |f| f.kernel = "5.15.3".into(), Level::Warn, "6.1"),
            ("io_uring, full", no_ring, Level::Warn, "io_uring_disabled=0"),
            ("io_uring, plain", no_ring, Level::Warn, "not to be had"),
            (
                "io_uring, full",
                |f| (f.ring_deferred, f.ring_plain) = (Trial::Fails("EINVAL".into()), Trial::Works),
                Level::Warn,
                "plain ring is taken",
            ),
            (
                "epoll",
                |f| f.epoll = Trial::Fails("EPERM".into()),
                Level::Bad,
                "filter",
            ),
            (
                "io_uring switch",
                |f| {
                    no_ring(f);
                    f.io_uring_disabled = Some(2)
                },
                Level::Warn,
                "=0",
            ),
            (
                "io_uring switch",
                |f| {
                    no_ring(f);
                    f.io_uring_disabled = Some(1)
                },
                Level::Warn,
                "=0",
            ),
            (
                "seccomp",
                |f| {
                    no_ring(f);
                    f.seccomp = 2
                },
                Level::Warn,
                "io_uring_setup",
            ),
            (
                "locked memory",
                |f| {
                    no_ring(f);
                    f.memlock = Some(65_536)
                },
                Level::Warn,
                "8 MiB",
            ),
            (
                "open files",
                |f| f.files_hard = Some(4096),
                Level::Warn,
                "--conn-limit 3840",
            ),
            (
                "open files",
                |f| f.files_hard = Some(256),
                Level::Bad,
                "LimitNOFILE",
            ),
            ("listen backlog", |f| f.somaxconn = Some(128), Level::Warn, "4096"),
            (
                "local ports",
                |f| f.ports = Some((60_000, 60_999)),
                Level::Warn,
                "Widen",
            ),
            (
                "local ports",
                |f| f.ports = Some((60_999, 60_000)),
                Level::Warn,
                "Widen",
            ),
            ("tcp_tw_reuse", |f| f.tw_reuse = Some(0), Level::Warn, "=1"),
            (
                "tcp_fin_timeout",
                |f| f.fin_timeout = Some(600),
                Level::Warn,
                "60",
            ),
            ("cgroup cpu", |f| f.cgroup.cpus = Some(0.5), Level::Warn, "pauses"),
            (
                "memory",
                |f| f.cgroup.memory = Some(512 << 20),
                Level::Warn,
                "--memory-limit 256MiB",
            ),
            (
                "memory",
                |f| f.cgroup.memory = Some(32 << 20),
                Level::Bad,
                "Give it",
            ),
            (
                "memory",
                |f| f.memory = Some(1 << 30),
                Level::Warn,
                "--memory-limit 512MiB",
            ),
            (
                "archive folder",
                |f| f.archive = Err("Permission denied".into()),
                Level::Warn,
                "--to file:DIR",
            ),
            (
                "archive folder",
                |f| f.archive = Ok(1 << 20),
                Level::Warn,
                "Make room",
            ),
            (
                "locked memory",
                |f| (f.kernel, f.memlock) = ("5.10.0".into(), Some(65_536)),
                Level::Warn,
                "5.12",
            ),
        ];
        for (index, (topic, spoil, level, says)) in cases.into_iter().enumerate() {
            let mut facts = good();
            spoil(&mut facts);
            let all = findings(&facts, 16_384);
            let found = all
                .iter()
                .find(|finding| finding.topic == topic)
                .expect("every topic is there");
            assert_eq!(found.level, level, "{index}: {found:?}");
            assert!(
                found.advice.as_ref().is_some_and(|advice| advice.contains(says)),
                "{index}: {found:?}"
            );
        }
    }

    #[test]
    fn epoll_alone_is_no_failure() {
        let mut facts = good();
        no_ring(&mut facts);
        let report = Report::new(&facts, 16_384);
        assert_eq!((report.verdict, report.engine), (Level::Warn, "epoll"));
        assert!(report.findings.iter().all(|finding| finding.topic != "iowait"));
    }

    #[test]
    fn nothing_known_is_nothing_wrong() {
        let facts = Facts {
            io_uring_disabled: None,
            no_new_privs: None,
            memlock: None,
            files_soft: None,
            files_hard: None,
            somaxconn: None,
            ports: None,
            tw_reuse: None,
            fin_timeout: None,
            cpus_online: None,
            memory: None,
            ..good()
        };
        assert_eq!(Report::new(&facts, 16_384).verdict, Level::Ok);
    }
}
