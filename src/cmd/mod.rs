//! The subcommands. Each file holds one: its flags and what it does with them.

pub mod run;
