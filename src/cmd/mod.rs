//! The subcommands. Each file holds one: its flags and what it does with them.

pub mod load;
mod mark;
pub mod run;
pub mod sink;
