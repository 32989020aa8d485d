//! The `pyrotee` program: picks the subcommand and turns errors into a line and an exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
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
}

fn main() -> ExitCode {
    let result = match Line::parse().command {
        Command::Run(flags) => cmd::run::run(&flags),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
