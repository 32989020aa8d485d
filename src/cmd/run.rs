//! `pyrotee run`: the gateway, from flags to the farewell.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;

use super::{settle, usage};
use crate::admin::reload::{Answer, WAITING_MAX, Wish};
use crate::admin::{self, Front};
use crate::config::units::show_size;
use crate::config::{DestinationPlan, Flags, LogFormat, Plan};
use crate::gateway::reload::Refused;
use crate::gateway::{Farewell, Gateway, Prepared};
use crate::runtime::{self, engine, patience};

/// Exit code for a configuration that cannot work (sysexits.h EX_USAGE).
pub const EXIT_USAGE: u8 = 64;

/// Standard streams, signals, timers and the log (8), the admin port, its client and its spares (6), a core's ring, doorbell and
/// listener (4), a spool's locks, folder and files (6), one client and one connection to a destination (2), and a few to spare.
const FILES_MIN: u64 = 28;

/// A start that takes long says this often what it is at.
const START_LOG_EVERY: Duration = Duration::from_secs(5);

/// Runs the gateway until a signal ends it.
///
/// # Errors
/// When it cannot start: what could not be had, and what to do.
pub fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    runtime::take_small_pages();
    let plan = match settle::plan(flags) {
        Ok(plan) => plan,
        Err(troubles) => return Ok(usage::tell(&troubles, false)),
    };
    start_logging(&plan);
    abort_on_panic();
    let files = runtime::raise_file_limit();
    let verdict = engine::probe(plan.engine)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        engine = %verdict.engine,
        reason = verdict.reason,
        cores = plan.cores,
        writers = plan.writers,
        "pyrotee starts"
    );
    for note in &plan.notes {
        tracing::warn!(note, "of the configuration file");
    }
    for (what, limit) in plan.bounds() {
        tracing::debug!(limit, "limit of {what}");
    }
    if files.is_some_and(|files| files < plan.conn_limit as u64 + 256) {
        tracing::warn!(
            files,
            conn_limit = plan.conn_limit,
            "fewer open files allowed than --conn-limit needs"
        );
    }
    // Below it the first thing that gets none would have the word, and that may be a panic of a library.
    if let Some(files) = files.filter(|files| *files < FILES_MIN) {
        anyhow::bail!(
            "only {files} open files are allowed, a start takes {FILES_MIN} at least, and each client and destination more: \
             raise the limit (ulimit -n, LimitNOFILE of systemd)"
        );
    }
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = LocalSet::new().block_on(&control, serve(flags.clone(), plan, verdict));
    // A name look-up that hangs in the system's resolver must not keep the process.
    control.shutdown_background();
    result
}

async fn serve(flags: Flags, plan: Plan, verdict: engine::Verdict) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let (tell, at) = watch::channel(String::from("opening what the plan names"));
    let front = Front::new(at.clone());
    let (admin_stop, admin_stopped) = oneshot::channel::<()>();
    if let Some(address) = plan.admin {
        let port = bind_admin(address).await?;
        tracing::info!(address = %port.address()?, "admin port");
        let until = async move { drop(admin_stopped.await) };
        tokio::task::spawn_local(admin::serve(port, front.clone(), until));
    }
    let prepared = tokio::select! {
        biased;
        _ = terminate.recv() => return Ok(leave_early("SIGTERM")),
        _ = interrupt.recv() => return Ok(leave_early("SIGINT")),
        prepared = prepare(plan, tell) => prepared?,
        never = tell_of_start(at) => never,
    };
    let mut gateway = Gateway::begin(prepared, verdict)?;
    gateway.spawn_keepers();
    gateway.spawn_rotation();
    gateway.spawn_side_door();
    let (wishes, mut wished) = mpsc::channel(WAITING_MAX);
    front.open(gateway.observed(), Some(wishes));
    for destination in &gateway.plan().destinations {
        tell_of(destination);
    }
    for address in &gateway.addresses {
        tracing::info!(%address, "listening");
    }
    loop {
        let wish: Option<Wish> = tokio::select! {
            biased;
            _ = terminate.recv() => break tracing::info!("SIGTERM: finishing; a second signal leaves at once"),
            _ = interrupt.recv() => break tracing::info!("SIGINT: finishing; a second signal leaves at once"),
            _ = hangup.recv() => None,
            Some(wish) = wished.recv() => Some(wish),
        };
        // A disk that hangs may hold a reload up, never the end.
        let answer = tokio::select! {
            biased;
            _ = terminate.recv() => break tracing::info!("SIGTERM: finishing; a second signal leaves at once"),
            _ = interrupt.recv() => break tracing::info!("SIGINT: finishing; a second signal leaves at once"),
            answer = patience::telling(reload(&flags, &mut gateway), tell_of_hanging) => answer,
        };
        if let Some(wish) = wish {
            let _ = wish.send(answer); // whoever asked may have left
        }
    }
    drop(wished);
    let gates = gateway.gates();
    let farewells = tokio::select! {
        farewells = gateway.shut_down() => farewells,
        _ = terminate.recv() => Farewell::of_all(&gates),
        _ = interrupt.recv() => Farewell::of_all(&gates),
    };
    drop(admin_stop);
    farewells.iter().for_each(Farewell::tell);
    Ok(ExitCode::SUCCESS)
}

/// Prepares on a thread that may wait for disks.
async fn prepare(plan: Plan, tell: watch::Sender<String>) -> anyhow::Result<Prepared> {
    let tell = move |at| drop(tell.send_replace(at));
    let preparing = tokio::task::spawn_blocking(move || Prepared::new(plan, &tell));
    preparing.await.context("the start was interrupted")?
}

/// Tells what a start that takes long is at.
async fn tell_of_start(at: watch::Receiver<String>) -> ! {
    loop {
        tokio::time::sleep(START_LOG_EVERY).await;
        tracing::info!(at = *at.borrow(), "still starting, clients wait");
    }
}

/// What has been read is as it was, and nothing has been accepted.
fn leave_early(signal: &str) -> ExitCode {
    tracing::info!("{signal}: leaving before the start was over");
    ExitCode::SUCCESS
}

/// Reads the configuration file again and puts what it says in force, or nothing. Says how that went, in the log too.
async fn reload(flags: &Flags, gateway: &mut Gateway) -> Answer {
    let Some(file) = flags.config.as_deref().map(Path::display) else {
        let text = "there is nothing to read again: the configuration came from flags and the environment alone, which cannot \
                    change in a running process; start it with --config FILE";
        tracing::warn!("asked to read the configuration again: {text}");
        return answer(409, text.into());
    };
    let own = flags.clone();
    // A file system may hang, and what it holds up must not be the control plane.
    let read = tokio::task::spawn_blocking(move || settle::plan(&own)).await;
    let told = match read {
        Ok(Ok(plan)) => gateway.reload(plan).await.map_err(|refused| match refused {
            Refused::NeedsRestart(_) => (409, vec![refused.to_string()]),
            Refused::Unavailable(_) => (400, vec![refused.to_string()]),
        }),
        Ok(Err(troubles)) => Err((400, troubles.iter().map(ToString::to_string).collect())),
        Err(error) => Err((500, vec![error.to_string()])),
    };
    gateway.reloads().note(told.is_ok());
    match told {
        Ok(changes) => {
            for note in &gateway.plan().notes {
                tracing::warn!(note, "of the configuration file");
            }
            let is_new = |name: &String| changes.added.contains(name) || changes.changed.contains(name);
            let destinations = gateway.plan().destinations.iter();
            destinations.filter(|one| is_new(&one.name)).for_each(tell_of);
            tracing::info!(%file, %changes, "configuration read again");
            answer(200, format!("{file} is in force: {changes}"))
        }
        Err((status, problems)) => {
            for problem in &problems {
                tracing::error!(%file, problem, "configuration not taken over, that of before stays in force");
            }
            let lines: Vec<String> = problems
                .iter()
                .map(|problem| format!("error: {problem}"))
                .collect();
            answer(status, lines.join("\n"))
        }
    }
}

/// Whoever has sent a signal sees nothing of it otherwise.
fn tell_of_hanging() {
    tracing::warn!(
        "the configuration is still being read again: its file, or one that it names, does not answer; that of before stays in \
         force meanwhile, and other reloads wait"
    );
}

fn answer(status: u16, text: String) -> Answer {
    Answer {
        status,
        text: text + "\n",
    }
}

fn tell_of(destination: &DestinationPlan) {
    tracing::info!(
        destination = %destination.name,
        queue_limit = show_size(destination.queue_limit),
        max_age = ?destination.max_age,
        "forwarding"
    );
}

pub(super) async fn bind_admin(address: SocketAddr) -> anyhow::Result<admin::Port> {
    let bound = admin::Port::bind(address).await;
    bound.with_context(|| format!("--admin {address}: cannot bind; is another process using it?"))
}

fn start_logging(plan: &Plan) {
    let logs = tracing_subscriber::fmt()
        .with_max_level(plan.log_level)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match plan.log {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
}

/// A core that panics would leave its connections and queues behind in silence: better to end as a whole, loudly, and be
/// started again. Release builds cannot do otherwise.
pub(super) fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
