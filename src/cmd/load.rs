//! `pyrotee load`: sends made-up profiles as fast as they are answered, or at a fixed rate, and tells how it went.
//!
//! ```text
//!  Args ─▶ mix.rs (which request when), bodies.rs (made beforehand) ─▶ Run
//!  pace.rs (open loop only) ──tickets──▶ connection.rs, on each core ──▶ report.rs (latencies, text, JSON)
//! ```
//! Every run ends: by its duration, or by `--requests`, whichever comes first; a request under way then has its timeout.
//!
//! Not responsible for what a gateway does with the profiles; `pyrotee sink --verify` checks what comes out.

mod bodies;
mod connection;
mod mix;
mod pace;
mod report;

use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use url::Url;

use crate::config::{ClientTls, units};
use crate::runtime::clock::{self, Mono};
use crate::runtime::engine::{EngineChoice, probe};
use crate::runtime::tls::client::ClientSide;
use crate::runtime::{CoreId, Engine, start_core};

use bodies::{Kind, Recipe, Route};
use connection::{Live, Run, run_core};
use mix::SizeMix;
use pace::{Gate, Schedule};
pub(super) use report::{Latencies, Report};
use report::{Setup, SizePart, Tally};

/// Requests of one run: as many as a mark has numbers.
const REQUESTS_MAX: u64 = 1 << 32;
/// Fronts in memory: routes x sizes x services; each has about 600 bytes.
const FRONTS_MAX: usize = 100_000;
/// How often the progress bar moves.
const PROGRESS_STEP: Duration = Duration::from_millis(100);
/// Between the start of the threads and the first request, so that all begin together.
const START_DELAY: Duration = Duration::from_millis(20);

/// The flags of `pyrotee load`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where to send, an http:// or https:// URL; a path in it goes before /ingest and the Push path.
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:4040")]
    pub url: Url,
    /// Connections, each with one request under way.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub connections: u32,
    /// Send this many requests per second whether or not the last ones are answered, and measure latency from the moment
    /// each was due; default: send the next one when the last one is answered.
    #[arg(long, value_name = "PER SECOND", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub rate: Option<u64>,
    /// How long to send and measure, such as 30s or 2m, at most 1d.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_run_time)]
    pub duration: Duration,
    /// How long to send before measuring.
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = parse_run_time)]
    pub warmup: Duration,
    /// Stop after this many requests, those of the warm-up included; default: when the time is up.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=REQUESTS_MAX))]
    pub requests: Option<u64>,
    /// Sizes of bodies (before --gzip) and their weights, such as 1KiB:8,16KiB:1.
    #[arg(long, value_name = "SIZE[:WEIGHT],...", default_value = "16KiB", value_parser = SizeMix::parse)]
    pub size: SizeMix,
    /// What to send: /ingest, Push, or both in turn.
    #[arg(long, value_enum, default_value_t = RouteChoice::Push)]
    pub route: RouteChoice,
    /// What /ingest bodies are.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = IngestFormat::Pprof)]
    pub ingest_format: IngestFormat,
    /// Send Push bodies with Content-Encoding: gzip; default off (the profile inside is gzip'd either way).
    #[arg(long)]
    pub gzip: bool,
    /// Different services, in turn.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub services: u32,
    /// Labels of each profile beside its service.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub labels: u32,
    /// What services are called, before their number.
    #[arg(long, value_name = "NAME", default_value = "pyrotee-load", value_parser = parse_name)]
    pub name: String,
    /// Send each request on a connection of its own, as the .NET SDK does; default off.
    #[arg(long)]
    pub connection_per_request: bool,
    /// How long a request may take until its answer is whole.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_timeout)]
    pub timeout: Duration,
    /// Threads that send.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub cores: u16,
    /// What moves the bytes.
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    pub engine: EngineChoice,
    /// For https://: who must have signed the server's certificate, a PEM file; default: whom the system trusts.
    #[arg(long, value_name = "FILE", conflicts_with = "tls_insecure_skip_verify")]
    pub tls_ca_file: Option<PathBuf>,
    /// For https://: our certificate, where the server asks for one.
    #[arg(long, value_name = "FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// The key of --tls-cert-file.
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// For https://: whom the server's certificate must be for; default: the URL's host.
    #[arg(long, value_name = "NAME")]
    pub tls_server_name: Option<String>,
    /// For https://: take any certificate; default off.
    #[arg(long)]
    pub tls_insecure_skip_verify: bool,
    /// Write the report as JSON to this file, or to stdout with `-` (the text then goes to stderr); default: none.
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<String>,
    /// End with success even if requests failed; default off.
    #[arg(long)]
    pub allow_errors: bool,
    /// Neither a progress bar nor a summary; default off.
    #[arg(long)]
    pub quiet: bool,
    /// Keep latencies apart for someone who looks while it runs (`pyrotee demo`).
    #[arg(skip)]
    pub watched: bool,
}

/// `--route`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RouteChoice {
    /// POST /ingest
    Ingest,
    /// POST /push.v1.PusherService/Push
    Push,
    /// Both in turn.
    Mix,
}

impl RouteChoice {
    fn routes(self) -> &'static [Route] {
        match self {
            Self::Ingest => &[Route::Ingest],
            Self::Push => &[Route::Push],
            Self::Mix => &[Route::Ingest, Route::Push],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Push => "push",
            Self::Mix => "mix",
        }
    }
}

/// `--ingest-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum IngestFormat {
    /// A gzip'd pprof.
    Pprof,
    /// Folded text.
    Folded,
}

/// Sends until the run is over, then reports.
///
/// # Errors
/// When the flags contradict each other, the URL cannot be resolved, the engine cannot be had, or the report cannot be
/// written. Failed requests are no error but an exit code of 1.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let running = control.block_on(async {
        // Before the first request: whoever has seen one may send a signal.
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let running = Running::start(&args, probe(args.engine)?.engine)?;
        running.watch(&args, [&mut interrupt, &mut terminate]).await;
        anyhow::Ok(running)
    })?;
    let report = running.finish()?;
    write_report(&report, &args)?;
    let bad = report.failed() > 0 && !args.allow_errors;
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A run under way.
pub(super) struct Running {
    run: Arc<Run>,
    setup: Setup,
    team: Team,
}

impl Running {
    /// Makes the bodies and starts the threads.
    ///
    /// # Errors
    /// When the flags contradict each other, the URL cannot be resolved, or a thread cannot be had.
    pub fn start(args: &Args, engine: Engine) -> anyhow::Result<Self> {
        let address = resolve(&args.url)?;
        let tls = client_side(args)?;
        ensure!(
            args.connections >= u32::from(args.cores),
            "--connections {} is less than --cores {}; each core needs one",
            args.connections,
            args.cores
        );
        let kinds = make_kinds(args)?;
        let started_unix = clock::unix_now();
        let start = clock::now().after(START_DELAY);
        let cores = u64::from(args.cores);
        let requests = args.requests.unwrap_or(REQUESTS_MAX);
        let run = Arc::new(Run {
            address,
            tls,
            kinds,
            cycle: make_cycle(args),
            services: u64::from(args.services),
            run: fastrand::u32(..),
            connection_per_request: args.connection_per_request,
            timeout: args.timeout,
            cores,
            requests,
            start,
            measure_from: start.after(args.warmup),
            deadline: start.after(args.warmup + args.duration),
            stop: AtomicBool::new(false),
            schedule: args.rate.map(|rate| Schedule {
                start,
                rate,
                tickets: requests,
                cores,
            }),
        });
        let setup = Setup {
            version: env!("CARGO_PKG_VERSION"),
            url: args.url.to_string(),
            mode: if args.rate.is_some() { "open" } else { "closed" },
            rate: args.rate,
            engine: engine.to_string(),
            cores: usize::from(args.cores),
            connections: args.connections as usize,
            connection_per_request: args.connection_per_request,
            route: args.route.name(),
            gzip: args.gzip,
            sizes: args
                .size
                .parts
                .iter()
                .map(|(bytes, weight)| SizePart {
                    bytes: *bytes,
                    weight: *weight,
                })
                .collect(),
            services: args.services as usize,
            labels: args.labels as usize,
            run: format!("{:08x}", run.run),
            started_unix_ms: u64::try_from(started_unix.as_millis()).unwrap_or(u64::MAX),
            warmup_seconds: args.warmup.as_secs_f64(),
        };
        let team = Team::start(&run, args, engine)?;
        Ok(Self { run, setup, team })
    }

    /// Ends it early.
    pub fn stop(&self) {
        self.run.stop.store(true, Ordering::Relaxed);
    }

    /// Whether every thread has ended.
    pub fn is_finished(&self) -> bool {
        self.team.cores.iter().all(JoinHandle::is_finished)
    }

    /// Requests that have ended, and how many of them failed.
    pub fn progress(&self) -> (u64, u64) {
        let sum = |count: fn(&Live) -> u64| self.team.lives.iter().map(|live| count(live)).sum::<u64>();
        (
            sum(|live| live.done.load(Ordering::Relaxed)),
            sum(|live| live.failed.load(Ordering::Relaxed)),
        )
    }

    /// Latencies of successes since the last call. Empty unless [`Args::watched`] was set.
    pub fn take_latencies(&self) -> Latencies {
        let mut sum = Latencies::default();
        for live in &self.team.lives {
            sum.add(&live.take_latencies());
        }
        sum
    }

    /// Waits for the end of all threads and works out the report.
    ///
    /// # Errors
    /// When a core could not start, or panicked.
    pub fn finish(self) -> anyhow::Result<Report> {
        let tally = self.team.finish()?;
        Ok(Report::new(self.setup, &tally, self.run.measure_from))
    }

    /// Shows the progress until the end, and ends the run early when asked to.
    async fn watch(&self, args: &Args, [interrupt, terminate]: [&mut Signal; 2]) {
        let bar = progress_bar(args);
        let mut step = tokio::time::interval(PROGRESS_STEP);
        while !self.is_finished() {
            tokio::select! {
                _ = step.tick() => show_progress(&bar, self.progress(), self.run.start, args),
                _ = interrupt.recv() => self.stop(),
                _ = terminate.recv() => self.stop(),
            }
        }
        bar.finish_and_clear();
    }
}

/// The threads of a run.
struct Team {
    cores: Vec<JoinHandle<std::io::Result<()>>>,
    pacer: Option<JoinHandle<()>>,
    lives: Vec<Arc<Live>>,
    tallies: mpsc::Receiver<Tally>,
}

impl Team {
    fn start(run: &Arc<Run>, args: &Args, engine: Engine) -> anyhow::Result<Self> {
        let gates: Option<Vec<Arc<Gate>>> = run
            .schedule
            .map(|_| (0..run.cores).map(|_| Arc::default()).collect());
        let (sender, tallies) = mpsc::channel();
        let mut cores = Vec::new();
        let mut lives = Vec::new();
        for index in 0..usize::from(args.cores) {
            // Connections as even as they go: the first cores have one more.
            let connections = (args.connections as usize - index).div_ceil(usize::from(args.cores));
            let live = Arc::new(Live::new(args.watched));
            lives.push(live.clone());
            let gate = gates.as_ref().map(|gates| gates[index].clone());
            let (run, sender) = (run.clone(), sender.clone());
            cores.push(start_core(CoreId(index), engine, None, move || async move {
                let tally = run_core(run, index as u64, connections, gate, live).await;
                // Nobody listens only if this run has failed already.
                let _ = sender.send(tally);
            })?);
        }
        let pacer = match (run.schedule, gates) {
            (Some(schedule), Some(gates)) => {
                let run = run.clone();
                let pace = move || pace::pace(schedule, &gates, run.deadline, &run.stop);
                Some(std::thread::Builder::new().name("pacer".into()).spawn(pace)?)
            }
            _ => None,
        };
        Ok(Self {
            cores,
            pacer,
            lives,
            tallies,
        })
    }

    /// Waits for the end of all threads.
    fn finish(self) -> anyhow::Result<Tally> {
        for core in self.cores {
            core.join()
                .map_err(|_| anyhow::anyhow!("a core panicked"))?
                .context("a core could not start")?;
        }
        if let Some(pacer) = self.pacer {
            pacer.join().map_err(|_| anyhow::anyhow!("the pacer panicked"))?;
        }
        let mut sum = Tally::new();
        for tally in self.tallies.try_iter() {
            sum.add(&tally);
        }
        Ok(sum)
    }
}

fn make_kinds(args: &Args) -> anyhow::Result<Vec<Kind>> {
    let routes = args.route.routes().len();
    let fronts = routes * args.size.parts.len() * args.services as usize;
    ensure!(
        fronts <= FRONTS_MAX,
        "--services times sizes is {fronts}, more than {FRONTS_MAX}; lower either"
    );
    let host = args.url.host_str().unwrap_or_default();
    let host = args
        .url
        .port()
        .map_or(host.to_owned(), |port| format!("{host}:{port}"));
    bodies::make(&Recipe {
        host,
        path_prefix: args.url.path().trim_end_matches('/').to_owned(),
        route: args.route,
        ingest_format: args.ingest_format,
        gzip: args.gzip,
        sizes: args.size.parts.iter().map(|(size, _)| *size).collect(),
        services: args.services as usize,
        labels: args.labels as usize,
        name: args.name.clone(),
        close: args.connection_per_request,
        until: clock::unix_now().as_secs(),
    })
}

/// Which kind comes when: the sizes in their order, with routes in turn for each of them.
fn make_cycle(args: &Args) -> Vec<usize> {
    let (routes, sizes) = (args.route.routes().len(), args.size.parts.len());
    let kinds = |size: usize| (0..routes).map(move |route| route * sizes + size);
    args.size.cycle().into_iter().flat_map(kinds).collect()
}

fn resolve(url: &Url) -> anyhow::Result<SocketAddr> {
    match url.scheme() {
        "http" | "https" => {}
        scheme => bail!("{url}: '{scheme}' is no scheme to send to; use an http:// or https:// URL"),
    }
    ensure!(
        url.query().is_none() && url.fragment().is_none() && url.username().is_empty(),
        "{url}: only host, port and path can be given"
    );
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(80);
    let mut addresses = (host, port)
        .to_socket_addrs()
        .with_context(|| format!("{url}: the host has no address"))?;
    addresses
        .next()
        .with_context(|| format!("{url}: the host has no address"))
}

/// What handshakes go by, where the URL asks for them.
fn client_side(args: &Args) -> anyhow::Result<Option<Arc<ClientSide>>> {
    if args.url.scheme() != "https" {
        let is_given = args.tls_ca_file.is_some()
            || args.tls_cert_file.is_some()
            || args.tls_server_name.is_some()
            || args.tls_insecure_skip_verify;
        ensure!(!is_given, "{}: --tls- flags are for https:// URLs", args.url);
        return Ok(None);
    }
    let host = args.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let tls = ClientTls {
        ca_file: args.tls_ca_file.clone(),
        cert_file: args.tls_cert_file.clone(),
        key_file: args.tls_key_file.clone(),
        insecure_skip_verify: args.tls_insecure_skip_verify,
        ..ClientTls::new(args.tls_server_name.as_deref().unwrap_or(host))
    };
    let (side, _) = ClientSide::load(tls, "load")?;
    Ok(Some(side))
}

fn progress_bar(args: &Args) -> ProgressBar {
    if args.quiet {
        return ProgressBar::hidden();
    }
    // indicatif draws on stderr, and only on a terminal.
    let bar = ProgressBar::new(1000);
    let style = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // for display
fn show_progress(bar: &ProgressBar, (done, failed): (u64, u64), start: Mono, args: &Args) {
    let seconds = clock::now().since(start).as_secs_f64();
    let by_time = seconds / (args.warmup + args.duration).as_secs_f64();
    let by_count = args
        .requests
        .map_or(0.0, |requests| done as f64 / requests as f64);
    bar.set_position((by_time.max(by_count).min(1.0) * 1000.0) as u64);
    bar.set_message(format!(
        "{done} requests, {:.0}/s, {failed} failed",
        done as f64 / seconds.max(0.001)
    ));
}

fn write_report(report: &Report, args: &Args) -> anyhow::Result<()> {
    let to_stdout = args.json.as_deref() == Some("-");
    if let Some(file) = &args.json {
        let mut json = serde_json::to_vec_pretty(report)?;
        json.push(b'\n');
        if to_stdout {
            std::io::stdout().write_all(&json)?;
        } else {
            std::fs::write(file, json).with_context(|| format!("--json {file}: cannot be written"))?;
        }
    }
    if !args.quiet {
        // Nobody may be there to read it; the run has its result all the same.
        if to_stdout {
            let _ = std::io::stderr().write_all(report.to_text().as_bytes());
        } else {
            let _ = std::io::stdout().write_all(report.to_text().as_bytes());
        }
    }
    Ok(())
}

/// A bound on a run that nobody stops: one day.
fn parse_run_time(text: &str) -> Result<Duration, String> {
    let time = units::parse_duration(text)?;
    if time > Duration::from_secs(86_400) {
        return Err("longer than a day".into());
    }
    Ok(time)
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let time = units::parse_duration(text)?;
    if !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&time) {
        return Err("must lie between 1ms and 1h".into());
    }
    Ok(time)
}

/// What both a label value and an application's name may be (WIRE.md 2.1), so that no gateway changes it.
fn parse_name(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-/".contains(&byte);
    if text.is_empty() || text.len() > 200 || !text.bytes().all(good) {
        return Err("a name has 1 to 200 letters, digits, '_', '-' or '/'".into());
    }
    Ok(text.to_owned())
}
