//! `pyrotee sink`: a destination for tests and benchmarks.
//!
//! ```text
//!  connection.rs  accept, read, answer ──▶ stats.rs  counts per core ──▶ admin.rs  GET /stats
//!       │    ▲                                                             │
//!       │    └── faults.rs  delay, statuses, stall, reset, lies ◀──────────┘ POST /faults
//!       ├──▶ verify.rs  content coding, protobuf, gzip, marks ──▶ seen.rs  each id once
//!       └──▶ record.rs  one JSON line per request
//! ```
//! It answers like a Pyroscope server that accepts everything: 200, for Push with an empty `application/proto` body. It
//! stores nothing. Without `--verify` and `--record` a body is counted and forgotten as it comes.
//!
//! Not responsible for being a good server: no limit on connections, no timeouts.

mod admin;
mod connection;
mod faults;
mod record;
mod seen;
mod stats;
mod verify;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;

use crate::config::{ClientAuth, ServerTls, TlsVersion, units};
use crate::runtime::engine::{EngineChoice, probe};
use crate::runtime::tls::server::ServerSide;
use crate::runtime::{CoreId, Engine, socket, start_core};

use faults::{FaultArgs, Faults};
use record::Recorder;
use seen::Seen;
use stats::CoreStats;
pub(super) use stats::Stats;

/// How often the control thread looks whether all cores are alive.
const CORES_LOOK: Duration = Duration::from_millis(500);

/// The flags of `pyrotee sink`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where to receive, an IP address and a port; port 0 takes a free one, printed in the first line.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4100")]
    pub listen: SocketAddr,
    /// Where to serve GET /stats (JSON) and POST /faults (fault flags as text); port 0 takes a free one, printed in the
    /// second line; default: nowhere.
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Threads that receive.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub cores: u16,
    /// What moves the bytes.
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    pub engine: EngineChoice,
    /// Speak TLS with this certificate, a PEM file; default: cleartext.
    #[arg(long, value_name = "FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// The key of --tls-cert-file.
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// Check content coding, protobuf, gzip and the marks of `pyrotee load`, and count profiles, services and duplicates;
    /// default off.
    #[arg(long)]
    pub verify: bool,
    /// Write one JSON line per request to this file, replacing it; default: none.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Write each body to a file of its own in this folder; default: none.
    #[arg(long, value_name = "DIR", requires = "record")]
    pub record_bodies: Option<PathBuf>,
    /// The largest body taken, as it comes over the wire.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = units::parse_size)]
    pub body_limit: u64,
    /// How to misbehave.
    #[command(flatten, next_help_heading = "Faults")]
    pub faults: FaultArgs,
}

/// What the connections of all cores share.
#[derive(Debug)]
struct Sink {
    verify: bool,
    recorder: Option<Recorder>,
    body_bytes_max: u64,
    tls: Option<Arc<ServerSide>>,
    faults: Arc<ArcSwap<Faults>>,
    seen: Mutex<Seen>,
    cores: Vec<Arc<CoreStats>>,
}

impl Sink {
    /// Whether anybody will look at a request once it is complete.
    fn keeps_bodies(&self) -> bool {
        self.verify || self.recorder.is_some()
    }

    /// What has been counted so far.
    fn stats(&self) -> Stats {
        Stats::sum(self.cores.iter().map(|core| &**core))
    }
}

/// Receives until SIGTERM or SIGINT, then prints what it has counted.
///
/// # Errors
/// When an address, a file or the engine cannot be had, each before the first line is printed.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let verdict = probe(args.engine)?;
    let bound = Bound::new(&args)?;
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let admin = args.admin.map(|address| {
        control
            .block_on(tokio::net::TcpListener::bind(address))
            .with_context(|| format!("--admin {address}: cannot listen there"))
    });
    let admin = admin.transpose()?;
    // Before the first line: whoever has read it may send a signal.
    let signals = control.block_on(async { Signals::new() })?;

    let running = bound.start(verdict.engine)?;
    let mut first_lines = format!("listening on {}\n", running.address);
    if let Some(admin) = &admin {
        first_lines += &format!("admin on {}\n", admin.local_addr()?);
    }
    std::io::stdout().write_all(first_lines.as_bytes())?;
    eprintln!("engine {}: {}", verdict.engine, verdict.reason);

    control.block_on(async {
        if let Some(admin) = admin {
            let service = axum::serve(admin, admin::router(running.sink.clone()));
            tokio::spawn(async move { service.await });
        }
        tokio::select! {
            () = signals.wait() => Ok(()),
            () = first_end(&running.cores) => Err(anyhow::anyhow!("a core ended: the ring or the listener cannot be used")),
        }
    })?;
    // Whoever started us may have left; that is no failure.
    let _ = std::io::stdout().write_all(summary(&running.stats()).as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// A sink that has its address and its files, and receives nothing yet.
struct Bound {
    sink: Arc<Sink>,
    listeners: Vec<TcpListener>,
    address: SocketAddr,
}

impl Bound {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let recorder = args.record.as_ref().map(|file| {
            Recorder::create(file, args.record_bodies.as_deref())
                .with_context(|| format!("--record {}: cannot be written", file.display()))
        });
        let recorder = recorder.transpose()?;
        let tls = match (&args.tls_cert_file, &args.tls_key_file) {
            (Some(cert), Some(key)) => {
                let plan = ServerTls {
                    cert_file: cert.clone(),
                    key_file: key.clone(),
                    client_ca_file: None,
                    client_auth: ClientAuth::NoClientCert,
                    min_version: TlsVersion::default(),
                };
                Some(ServerSide::load(plan, &["http/1.1"])?.0)
            }
            _ => None,
        };
        let listeners = socket::listeners(args.listen, usize::from(args.cores))
            .with_context(|| format!("--listen {}: cannot listen there", args.listen))?;
        let address = listeners[0].local_addr()?;
        let sink = Arc::new(Sink {
            verify: args.verify,
            recorder,
            body_bytes_max: args.body_limit,
            tls,
            faults: Arc::new(ArcSwap::from_pointee(Faults::new(&args.faults))),
            seen: Mutex::default(),
            cores: listeners.iter().map(|_| Arc::default()).collect(),
        });
        Ok(Self {
            sink,
            listeners,
            address,
        })
    }

    fn start(self, engine: Engine) -> std::io::Result<Running> {
        let Self {
            sink,
            listeners,
            address,
        } = self;
        let cores = listeners.into_iter().enumerate().map(|(index, listener)| {
            let (sink, stats) = (sink.clone(), sink.cores[index].clone());
            start_core(CoreId(index), engine, None, move || {
                connection::accept(listener, sink, stats)
            })
        });
        let cores = cores.collect::<Result<Vec<_>, _>>()?;
        Ok(Running { sink, cores, address })
    }
}

/// A sink that receives, until its process ends.
pub(super) struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    sink: Arc<Sink>,
    cores: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Running {
    /// Starts one inside this process. `--admin` is for [`run`] alone.
    ///
    /// # Errors
    /// When the address, a file or a thread cannot be had.
    pub fn start(args: &Args, engine: Engine) -> anyhow::Result<Self> {
        Ok(Bound::new(args)?.start(engine)?)
    }

    /// What it has counted so far.
    pub fn stats(&self) -> Stats {
        self.sink.stats()
    }

    /// Replaces its faults; `line` is written like the flags, and empty for none.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub fn set_faults(&self, line: &str) -> Result<(), String> {
        let args = faults::parse_line(line)?;
        self.sink.faults.store(Arc::new(Faults::new(&args)));
        Ok(())
    }
}

/// Ends when a core has; none ever should.
async fn first_end(cores: &[JoinHandle<std::io::Result<()>>]) {
    let mut step = tokio::time::interval(CORES_LOOK);
    while !cores.iter().any(JoinHandle::is_finished) {
        step.tick().await;
    }
}

/// SIGTERM and SIGINT, both as a wish to end.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn summary(stats: &Stats) -> String {
    let mut text = format!(
        "{} requests with {} over {} connections\n",
        stats.requests,
        units::show_size(stats.bytes),
        stats.connections_accepted
    );
    for (status, count) in &stats.statuses {
        text += &format!("  answered {status}: {count}\n");
    }
    for (what, count) in [
        ("profiles accepted", stats.profiles),
        ("profiles verified", stats.verified),
        ("profiles without a mark", stats.unmarked),
        ("duplicates", stats.duplicates),
        ("corrupt requests", stats.corrupt),
        ("refused requests", stats.refused),
        ("truncated requests", stats.truncated),
        ("TLS handshakes that failed", stats.tls_failures),
        ("resets", stats.resets),
        ("stalls", stats.stalls),
        ("lies", stats.lies),
        ("requests that could not be recorded", stats.unrecorded),
    ] {
        if count > 0 {
            text += &format!("  {what}: {count}\n");
        }
    }
    text
}
