//! `pyrotee run`: the gateway, from flags to the farewell.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::{settle, usage};
use crate::admin;
use crate::config::units::show_size;
use crate::config::{Flags, LogFormat, Plan};
use crate::gateway::{Farewell, Gateway};
use crate::runtime::{self, engine};

/// Exit code for a configuration that cannot work (sysexits.h EX_USAGE).
pub const EXIT_USAGE: u8 = 64;

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
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = LocalSet::new().block_on(&control, serve(plan, verdict));
    // A name look-up that hangs in the system's resolver must not keep the process.
    control.shutdown_background();
    result
}

async fn serve(plan: Plan, verdict: engine::Verdict) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let admin = match plan.admin {
        Some(address) => Some(bind_admin(address).await?),
        None => None,
    };
    let mut gateway = Gateway::start(plan, verdict)?;
    gateway.spawn_keepers();
    gateway.spawn_rotation();
    gateway.spawn_side_door();
    let (admin_stop, admin_stopped) = oneshot::channel::<()>();
    if let Some(listener) = admin {
        tracing::info!(address = %listener.local_addr()?, "admin port");
        let until = async move { drop(admin_stopped.await) };
        tokio::task::spawn_local(admin::serve(listener, gateway.observed(), until));
    }
    for destination in &gateway.plan.destinations {
        tracing::info!(
            destination = %destination.name,
            queue_limit = show_size(destination.queue_limit),
            max_age = ?destination.max_age,
            "forwarding"
        );
    }
    for address in &gateway.addresses {
        tracing::info!(%address, "listening");
    }
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: finishing; a second signal leaves at once"),
        _ = interrupt.recv() => tracing::info!("SIGINT: finishing; a second signal leaves at once"),
    }
    let gates = gateway.gates.clone();
    let farewells = tokio::select! {
        farewells = gateway.shut_down() => farewells,
        _ = terminate.recv() => Farewell::of_all(&gates),
        _ = interrupt.recv() => Farewell::of_all(&gates),
    };
    drop(admin_stop);
    farewells.iter().for_each(tell);
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn bind_admin(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("--admin {address}: cannot bind; is another process using it?"))
}

fn tell(farewell: &Farewell) {
    let Farewell {
        name,
        delivered,
        dropped,
        spooled,
        unknown,
    } = farewell;
    if farewell.is_whole() && *spooled > 0 {
        tracing::info!(destination = %name, delivered, spooled, lost = 0, "the rest waits in the spool for the next start");
    } else if farewell.is_whole() {
        tracing::info!(destination = %name, delivered, lost = 0, "all delivered");
    } else {
        let reasons: Vec<String> = dropped
            .iter()
            .map(|(reason, parcels)| format!("{reason}={parcels}"))
            .collect();
        let lost: u64 = dropped.iter().map(|(_, parcels)| parcels).sum();
        tracing::error!(destination = %name, delivered, lost, reasons = reasons.join(" "), spooled, undecided = unknown, "lost");
    }
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
/// started again.
pub(super) fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}
