//! HTTP/1.1 without I/O and without a clock: bytes in, meaning out, and the bytes of our own answers.
//!
//! ```text
//! client bytes ──▶ HeadReader ──▶ RequestHead ──▶ Length(n): the next n bytes are the body
//!                  (head)                    └──▶ Chunked:   ChunkedDecoder (body) finds the body's pieces
//! Answer (answer) ──▶ bytes to the client
//! destination bytes ──▶ ResponseReader (response) ──▶ ResponseHead ──▶ the same two kinds of body
//! ```
//!
//! Responsible for: where a message begins and ends, and refusing whatever two implementations could read in
//! two ways (RFC 9112 section 11.2, request smuggling). Every refusal is a value with a sentence for the
//! client, a status and a metric label. Not responsible for: sockets, timeouts, routes, percent-decoding,
//! content codings, or the total size of a body (the caller knows its budget).
//!
//! The readers are handed all bytes of a message so far and remember where they stopped, so a sender of
//! single bytes costs the same as a sender of whole heads. What they answer does not depend on how the bytes
//! were cut.

pub mod answer;
pub mod body;
pub mod field;
pub mod head;
pub mod response;

pub use answer::{Answer, Connection, reason_phrase};
pub use body::{BodyError, ChunkLimits, ChunkedDecoder, Framing, Piece};
pub use field::{Field, Fields, FramingError, HeadLimits, LineError, Progress, Span};
pub use head::{HeadError, HeadReader, Method, RequestHead, Target, Version};
pub use response::{ResponseError, ResponseFraming, ResponseHead, ResponseReader, parse_retry_after};
