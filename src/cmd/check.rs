//! `pyrotee check`: reads the flags of `pyrotee run`, and says what they mean before anything runs.
//!
//! ```text
//!  Flags ─▶ Plan (the very code of `run`) ─▶ explain.rs: sections of lines ─▶ text or JSON
//!                                        └▶ online.rs, with --online: names, connections, TLS, folders
//! ```
//! Exit codes: 0 good, 64 the configuration cannot work (every mistake at once), 1 it can, but `--online` found trouble.
//! Without `--online` it touches neither network nor disk. Credentials and header values are never shown.

mod explain;
mod online;

use std::io::Write as _;
use std::process::ExitCode;

use super::{settle, usage};
use crate::config::Flags;

/// The flags of `pyrotee check`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Those of `pyrotee run`.
    #[command(flatten)]
    pub flags: Flags,
    /// Also resolve names, try to connect and to speak TLS, read certificates, and write to archive folders.
    #[arg(long)]
    pub online: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Checks, and tells.
///
/// # Errors
/// When the result cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = match settle::plan(&args.flags) {
        Ok(plan) => plan,
        Err(troubles) => return Ok(usage::tell(&troubles, args.json)),
    };
    let sections = explain::sections(&plan);
    let probes = args.online.then(|| online::probe(&plan));
    let good = probes.iter().flatten().all(|probe| probe.good);
    let text = if args.json {
        let body = serde_json::json!({ "good": good, "plan": plan, "meaning": sections, "online": probes });
        format!("{body:#}\n")
    } else {
        let mut text = explain::to_text(&sections);
        if let Some(probes) = &probes {
            text += &online::to_text(probes);
        }
        text + if good {
            "The configuration is good.\n"
        } else {
            "The configuration can work, but something is not reachable now.\n"
        }
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
