//! A request that is passed through to one destination, and its answer on the way back: debuginfo (WIRE.md section 7).
//!
//! ```text
//!  inbound core                                       writer core of the first server in --to
//!  Call { path, fields, body } ── bounded queue ────▶ a connection of its own, apart from lanes and parcels
//!  body, piece by piece ── PIECES_WAITING_MAX ──────▶ written as it comes: a slow destination slows its client
//!  client ◀───────────────────────── CallAnswer ───── read whole, it is small
//! ```
//! Nothing is queued, copied to other destinations, or tried again, and no parcel's books are touched. A body that ends
//! without [`Piece::End`] was cut short: the destination is hung up on and never sees it as whole.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::runtime::clock::Mono;

/// Pieces of one body that wait for the destination.
pub const PIECES_WAITING_MAX: usize = 4;
/// Calls that wait to begin; more are told to come back.
pub const CALLS_WAITING_MAX: usize = 16;
/// Calls under way at a time.
pub const CALLS_AT_ONCE_MAX: usize = 16;

/// The entrance for calls, if there is a destination that takes any.
pub type Calls = mpsc::Sender<Call>;

/// One request to be passed through.
#[derive(Debug)]
pub struct Call {
    /// The path below the destination's own.
    pub path: String,
    /// Header lines of the client that are passed on, each ending in CRLF.
    pub fields: Bytes,
    /// Its length, where it is known; else the destination gets it chunked.
    pub length: Option<u64>,
    /// The body.
    pub body: mpsc::Receiver<Piece>,
    /// When it must be over; [`Mono::NEVER`] for the destination's own remote timeout.
    pub deadline: Mono,
    /// Where the answer goes; dropped when there is none any more.
    pub answer: oneshot::Sender<Result<CallAnswer, String>>,
}

/// A part of a body.
#[derive(Debug)]
pub enum Piece {
    /// Its next bytes, never empty.
    Data(Bytes),
    /// It is whole.
    End,
}

/// What the destination answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallAnswer {
    /// HTTP status.
    pub status: u16,
    /// The headers that say what the body is, or what went wrong.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}
