//! pyrotee: an edge gateway for continuous-profiling data. This is the map.
//!
//! ```text
//!             inbound/             profile/            fanout/              outbound/
//!  client ──▶ accept, recv,   ──▶  route, labels  ──▶ one push becomes ──▶ window, retry,  ──▶ destination
//!             head, body                              N parcels on         new head, same
//!             (segments)                              N queues             segments
//!                                                     away, too much? ─▶ spool/ ─▶ back
//!  client ◀── one answer ◀───────  N outcomes ◀──────  tickets     ◀─────── outcome
//! ```
//! The folders are the stations of that picture. Imports go one way, `main → cmd → admin → inbound, outbound → spool → fanout
//! → profile → http → runtime`; everyone may read `config`; `inbound` and `outbound` never meet, the ticket is the only way
//! back. `http`, `profile` and `config` do no I/O and read no clock.

pub mod admin;
pub mod cmd;
pub mod config;
pub mod fanout;
pub mod gateway;
pub mod http;
pub mod inbound;
pub mod outbound;
pub mod profile;
pub mod runtime;
pub mod spool;
