//! What a push means: routes, the query and label rules of `/ingest`, the protobuf splice of Push, and the
//! Connect, JSON and gRPC-Web dress around it. Pure functions over bytes.
//!
//! ```text
//!  path ─▶ route ─┬▶ Ingest ─▶ query ─▶ ingest (labels) ──────────────▶ outgoing query, body untouched
//!                 └▶ Push ─▶ connect | grpc_web ─▶ inflate ─▶ json ─▶ push (labels) ─▶ [new][old][new][old]
//! ```
//!
//! Not its business: sockets, time, queues, retries. Nothing here does I/O or reads a clock, and no function
//! panics, recurses without a bound, or allocates without one on bytes from outside.

pub mod connect;
pub mod grpc_web;
pub mod inflate;
pub mod ingest;
pub mod json;
pub mod labels;
pub mod multipart;
mod oracle;
pub mod proto;
pub mod push;
pub mod query;
pub mod relabel;
pub mod rewriter;
pub mod route;
