//! Alloy's configuration syntax, as much of it as setups of this kind use, and what its blocks mean for the gateway.
//!
//! ```text
//!  text ─▶ lexer: tokens ─▶ parser: File (blocks, attributes, values evaluated) ─▶ blocks: FileConfig ─▶ Plan
//! ```
//! Everything that is wrong has a [`Place`] and a sentence with what to do. No I/O: the text and the environment are given.

pub mod blocks;
mod fields;
mod graph;
mod lexer;
pub mod parser;
pub mod rule;

use std::fmt;

/// Where something stands in the text, counted from 1. Columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One thing wrong with a text, and what to do about it. It never repeats a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: String,
}

impl Mistake {
    fn new(place: Place, problem: impl Into<String>) -> Self {
        Self {
            place,
            problem: problem.into(),
        }
    }
}

/// Where variables of the environment come from; `None` for one that is not set.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;
