//! A small Rust service profiled by the real Pyroscope SDK.
//!
//! It burns CPU and allocates for SDK_SECONDS while the SDK uploads to PYROSCOPE_SERVER_ADDRESS, then
//! stops the SDK, which sends the last profile, and leaves with 0. The SDK logs to stderr; a line with
//! `[ERROR]` is a failed upload. Judging the uploads is the work of whoever listens at the address.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::error::Error;
use std::hash::{Hash, Hasher};
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pyroscope::backend::{pprof_backend, BackendConfig, PprofConfig};
use pyroscope::pyroscope::PyroscopeAgentBuilder;

/// Whole seconds, and 1 is the least the SDK takes.
const UPLOAD_INTERVAL: Duration = Duration::from_secs(1);
const SAMPLE_RATE_HZ: u32 = 100;
const SDK_NAME: &str = "pyroscope-rs";
const SDK_VERSION: &str = "2.1.5";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("[ERROR] {why}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let address = env::var("PYROSCOPE_SERVER_ADDRESS").map_err(|_| "PYROSCOPE_SERVER_ADDRESS is not set")?;
    let duration = run_duration()?;
    log::set_logger(&StderrLogger)?;
    log::set_max_level(log::LevelFilter::Info);

    let backend = pprof_backend(
        PprofConfig {
            sample_rate: SAMPLE_RATE_HZ,
        },
        BackendConfig::default(),
    );
    let agent = PyroscopeAgentBuilder::new(
        address,
        "sdk.rust",
        SAMPLE_RATE_HZ,
        SDK_NAME,
        SDK_VERSION,
        backend,
    )
    .tags(vec![("region", "eu"), ("lang", "rust")])
    .upload_interval(UPLOAD_INTERVAL)
    .build()?
    .start()?;
    work(Instant::now() + duration);
    agent.stop()?.shutdown();
    Ok(())
}

/// Keeps one thread busy and a megabyte alive until `deadline`.
fn work(deadline: Instant) {
    let mut kept = vec![Vec::new(); 64];
    let mut round = 0;
    while Instant::now() < deadline {
        let block = vec![round as u8; 16 << 10];
        let mut hasher = DefaultHasher::new();
        block.hash(&mut hasher);
        black_box(hasher.finish());
        let slot = round % kept.len();
        kept[slot] = block;
        round += 1;
    }
}

fn run_duration() -> Result<Duration, String> {
    let Ok(text) = env::var("SDK_SECONDS") else {
        return Ok(Duration::from_secs(25));
    };
    match text.parse() {
        Ok(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!(
            "SDK_SECONDS={text:?} is not a whole number of seconds from 1"
        )),
    }
}

/// Every record as one line, `[LEVEL] target: message`.
struct StderrLogger;

impl log::Log for StderrLogger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("[{}] {}: {}", record.level(), record.target(), record.args());
        }
    }

    fn flush(&self) {}
}
