//! The conformance suite: the rows of the wire contract (WIRE.md section 9), against the real binary over real sockets,
//! under both engines.
//!
//! A test is named after its row or rows. Where our behaviour is deliberately better than Alloy's (rows marked (D)) the
//! test is of ours, and `docs/compatibility.md` tells the operator. Rows of features that do not exist yet are not here;
//! that page lists them.
//!
//! `PYROTEE_ENGINES=epoll` (or `io_uring`) restricts a run to one engine.

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/scripted.rs"]
mod scripted;

mod auth;
mod debuginfo;
mod gateway;
mod grpc_web;
mod hostile;
mod ingest;
mod json;
mod metrics;
mod names;
mod oauth2;
mod proxy;
mod push;
mod query;
mod relabel;
mod results;
mod retries;
mod routing;
mod secrets;
mod server;
mod trace;
