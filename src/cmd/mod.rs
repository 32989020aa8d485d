//! The subcommands. Each file holds one: its flags and what it does with them.

pub mod check;
pub mod demo;
pub mod doctor;
mod folder;
pub mod load;
mod mark;
pub mod run;
mod settle;
mod show;
pub mod sink;
pub mod spool;
pub mod usage;

use clap::{Command, FromArgMatches};

/// Flags of another command from words alone: what the environment says is meant for a real gateway.
fn parsed<A: clap::Args + FromArgMatches>(words: &[&str]) -> anyhow::Result<A> {
    let command = A::augment_args(Command::new("pyrotee").no_binary_name(true));
    let command = command.mut_args(|arg| arg.env(clap::builder::Resettable::Reset));
    Ok(A::from_arg_matches(&command.try_get_matches_from(words)?)?)
}
