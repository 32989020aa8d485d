//! `pyrotee spool drain`: sends what waits for a destination, once its gateway is gone or has forgotten it.
//!
//! ```text
//!  a gateway without listeners, one destination, its spool ─▶ accepted: done
//!                                                          ├▶ not taken: stays on disk, counted by reason
//!                                                          └▶ nothing of either for a while: stop
//! ```
//! It is the gateway's own code that reads, sends, retries and marks, so credentials, proxies and answers mean the same.
//! What differs: whatever is not accepted stays, and no record is too old.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use super::{show, the_folder};
use crate::cmd::parsed;
use crate::cmd::run::{EXIT_USAGE, abort_on_panic};
use crate::config::units::parse_duration;
use crate::config::{Flags, Plan};
use crate::fanout::{DropReason, Gate};
use crate::gateway::Gateway;
use crate::runtime::clock::{self, Mono};
use crate::runtime::{self, engine};

/// The arguments of `pyrotee spool drain`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The destination; not needed if there is only one.
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Where to send, as in `pyrotee run --to` but without a name: http://host:port,header.X-Scope-OrgID=team. Other
    /// defaults here: max-retries=4, max-backoff=5s.
    #[arg(
        long,
        env = "PYROTEE_DRAIN_TO",
        value_name = "URL[,key=value...]",
        hide_env_values = true
    )]
    to: String,
    /// Stop when nothing has been accepted or refused for this time.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    patience: Duration,
}

/// How often it is looked whether all is done.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Drains.
///
/// # Errors
/// When the spool is in use or cannot be opened.
pub fn run(spool: &Path, drain: &Args) -> anyhow::Result<ExitCode> {
    let folder = the_folder(spool, drain.destination.as_deref())?;
    let Some(spool) = spool.to_str() else {
        bail!("--spool: the folder's name is no UTF-8")
    };
    let plan = match plan(&folder.destination, spool, &drain.to)? {
        Ok(plan) => plan,
        Err(mistakes) => {
            eprintln!("error: {mistakes}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    };
    let warnings = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_target(false);
    warnings.with_writer(std::io::stderr).init();
    abort_on_panic();
    let verdict = engine::probe(plan.engine)?;
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = LocalSet::new().block_on(&control, send(plan, verdict, drain.patience));
    control.shutdown_background();
    result
}

/// The plan of a gateway that only drains, or what is wrong with `to`.
fn plan(name: &str, spool: &str, to: &str) -> anyhow::Result<Result<Plan, String>> {
    let to = format!("{name}={to}");
    let words = [
        "--to",
        &*to,
        "--spool",
        spool,
        "--admin",
        "off",
        "--cores",
        "1",
        "--no-pin",
        "--max-age",
        NO_AGE,
        "--drain-timeout",
        "1s",
        "--max-retries",
        "4",
        "--max-backoff",
        "5s",
    ];
    let flags = match parsed::<Flags>(&words) {
        Ok(flags) => flags,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut plan = match Plan::new(&flags, &runtime::host()) {
        Ok(plan) => plan,
        Err(mistakes) => return Ok(Err(mistakes.to_string())),
    };
    if plan.destinations.iter().any(|one| !one.is_http()) {
        return Ok(Err(
            "--to: a folder cannot be drained to; give an http:// URL".into()
        ));
    }
    plan.listen.clear();
    if let Some(spool) = &mut plan.spool {
        spool.keeps_refused = true;
    }
    Ok(Ok(plan))
}

/// The longest age that there is: ten years.
const NO_AGE: &str = "3650d";

async fn send(plan: Plan, verdict: engine::Verdict, patience: Duration) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut gateway = Gateway::start(plan, verdict)?;
    gateway.spawn_keepers();
    let Some(gate) = gateway.gates().first().copied() else {
        bail!("no destination")
    };
    let why = tokio::select! {
        why = until_over(gate, patience) => why,
        _ = terminate.recv() => Some("SIGTERM".to_owned()),
        _ = interrupt.recv() => Some("SIGINT".to_owned()),
    };
    gateway.shut_down().await;
    Ok(tell(gate, why))
}

/// Ends when everything has been accepted or not taken, or with why there is no more to be hoped for.
async fn until_over(gate: &Gate, patience: Duration) -> Option<String> {
    let bar = progress_bar(gate.books().held_parcels);
    let (mut seen, mut moved) = (0, clock::now());
    loop {
        let books = gate.books();
        let kept = kept(gate).iter().map(|(_, count)| count).sum::<u64>();
        let ended = books.delivered.parcels + books.dropped_total().parcels + kept;
        bar.set_position(ended);
        let now = clock::now();
        if ended != seen {
            (seen, moved) = (ended, now);
        }
        let why = hopeless(gate, now, moved, patience);
        if why.is_some() || books.held_parcels <= kept {
            bar.finish_and_clear();
            return why;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn hopeless(gate: &Gate, now: Mono, moved: Mono, patience: Duration) -> Option<String> {
    if gate.status.is_auth_failing() {
        return Some("the destination does not accept our credentials".into());
    }
    if now.since(moved) < patience {
        return None;
    }
    let trouble = gate.spool().and_then(|link| link.trouble());
    let last = trouble.or_else(|| gate.status.last_error().map(|error| error.text));
    let last = last.map_or_else(String::new, |text| format!("; the last trouble: {text}"));
    Some(format!(
        "nothing was accepted or refused for {}{last}",
        show::duration(patience)
    ))
}

/// What stays on disk because it was not taken, by reason.
fn kept(gate: &Gate) -> Vec<(DropReason, u64)> {
    let Some(link) = gate.spool() else {
        return Vec::new();
    };
    let counts = link.counts().kept_parcels.iter();
    let counts = DropReason::ALL
        .into_iter()
        .zip(counts.map(|count| count.load(Ordering::Relaxed)));
    counts.filter(|(_, count)| *count > 0).collect()
}

fn progress_bar(records: u64) -> ProgressBar {
    // indicatif draws on stderr, and only on a terminal.
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} records  {eta}");
    ProgressBar::new(records).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Says what became of everything.
fn tell(gate: &Gate, why: Option<String>) -> ExitCode {
    let books = gate.books();
    let sent = &books.delivered;
    println!(
        "sent {} with {} for '{}'",
        show::several(sent.parcels, "record"),
        show::several(sent.profiles, "profile"),
        gate.name
    );
    for (reason, count) in kept(gate) {
        println!("not taken, and kept ({}): {}", reason.label(), show::count(count));
    }
    let lost = books.dropped_total().parcels;
    if lost > 0 {
        println!("lost to damage: {}", show::count(lost));
    }
    if let Some(why) = why {
        eprintln!("error: stopped: {why}");
    }
    if books.held_parcels == 0 {
        return ExitCode::SUCCESS;
    }
    println!(
        "left: {}; drain again when the destination takes them, or 'pyrotee spool drop'",
        show::several(books.held_parcels, "record")
    );
    ExitCode::FAILURE
}
