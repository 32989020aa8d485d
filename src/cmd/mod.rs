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
