//! The `pyrotee` program: picks the subcommand and turns errors into a line and an exit code.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use pyrotee::cmd;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Receives continuous-profiling data and copies every profile to any number of destinations.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Run(Box<pyrotee::config::Flags>),
    /// Say what a configuration means, or everything that is wrong with it.
    Check(Box<cmd::check::Args>),
    /// Say what this host allows, and what to change.
    Doctor(cmd::doctor::Args),
    /// See it work: a gateway, two destinations and load on this machine, one destination failing half way.
    Demo(cmd::demo::Args),
    /// Look at what waits on disk, verify it, send it or delete it.
    Spool(cmd::spool::Args),
    /// Receive profiles as a destination does: verify, count, misbehave on demand.
    Sink(cmd::sink::Args),
    /// Send made-up profiles, as fast as they are answered or at a fixed rate, and tell how it went.
    Load(cmd::load::Args),
}

fn main() -> ExitCode {
    let line = match read_line() {
        Ok(line) => line,
        Err(error) => return cmd::usage::refuse(Line::command(), &error),
    };
    let result = match line.command {
        Command::Run(flags) => cmd::run::run(&flags),
        Command::Check(args) => cmd::check::run(&args),
        Command::Doctor(args) => cmd::doctor::run(&args),
        Command::Demo(args) => cmd::demo::run(args),
        Command::Spool(args) => cmd::spool::run(&args),
        Command::Sink(args) => cmd::sink::run(args),
        Command::Load(args) => cmd::load::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// What was typed, and which flags were given at all.
fn read_line() -> Result<Line, clap::Error> {
    let matches = Line::command().try_get_matches()?;
    let mut line = Line::from_arg_matches(&matches)?;
    let flags = match &mut line.command {
        Command::Run(flags) => Some(&mut **flags),
        Command::Check(args) => Some(&mut args.flags),
        _ => None,
    };
    if let (Some(flags), Some((_, matches))) = (flags, matches.subcommand()) {
        flags.note_given(matches);
    }
    Ok(line)
}
