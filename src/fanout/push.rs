//! One accepted request, understood: what every parcel shares, and the answer it is waiting for.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Poll;

use atomic_waker::AtomicWaker;
use bytes::Bytes;
use smallvec::SmallVec;

use super::ticket::{DropReason, Outcome};
use crate::profile::connect::Code;
use crate::profile::route::Route;
use crate::runtime::clock::Mono;
use crate::runtime::pool::Charge;

/// One accepted request. Immutable but for the answer that gathers in it.
#[derive(Debug)]
pub struct Push {
    /// Where it came in and goes out.
    pub route: Route,
    /// The outgoing query without `?`; empty for Push.
    pub query: Bytes,
    /// Header lines that every destination gets, each ending in CRLF: Content-Type and passed-on headers.
    pub fields: Bytes,
    /// The body, in order.
    pub segments: SmallVec<[Bytes; 4]>,
    /// Length of the body.
    pub bytes: u64,
    /// What Alloy's byte counters count: the body of `/ingest`, the raw profiles of a Push (WIRE.md 4.6).
    pub profile_bytes: u64,
    /// Profiles in it: 1 for `/ingest`, the samples of a Push.
    pub profiles: u32,
    /// When it was accepted.
    pub accepted: Mono,
    /// The same on the wall clock, in milliseconds since the unix epoch.
    pub accepted_unix_ms: u64,
    /// What `--trace-headers` calls it at every destination and attempt; never 0.
    pub trace_id: u128,
    /// When the client stops waiting for its answer (Connect-Timeout-Ms); [`Mono::NEVER`] without one.
    pub client_deadline: Mono,
    /// The memory that the body's segments hold on to, in bytes: what their buffers were charged with.
    pub pinned_bytes: u64,
    /// The memory beside the body, counted against `--memory-limit`.
    _charge: Option<Charge>,
    ack: Ack,
}

/// What is known about a push before its answer: everything but the way back.
#[derive(Debug)]
pub struct PushParts {
    /// See [`Push::route`].
    pub route: Route,
    /// See [`Push::query`].
    pub query: Bytes,
    /// See [`Push::fields`].
    pub fields: Bytes,
    /// See [`Push::segments`].
    pub segments: SmallVec<[Bytes; 4]>,
    /// See [`Push::bytes`].
    pub bytes: u64,
    /// See [`Push::profile_bytes`].
    pub profile_bytes: u64,
    /// See [`Push::profiles`].
    pub profiles: u32,
    /// See [`Push::accepted`].
    pub accepted: Mono,
    /// See [`Push::accepted_unix_ms`].
    pub accepted_unix_ms: u64,
    /// See [`Push::client_deadline`].
    pub client_deadline: Mono,
    /// See [`Push::pinned_bytes`].
    pub pinned_bytes: u64,
    /// The memory that [`PushParts::overhead`] asks for.
    pub charge: Option<Charge>,
}

/// What a push holds beside its body and what hangs on it, in bytes: this struct, its parcels, allocator slack.
const PUSH_BYTES: usize = 512;

impl PushParts {
    /// See [`Push::weight`].
    pub fn weight(&self) -> u64 {
        weight(self.bytes, &self.query, &self.fields)
    }

    /// The memory that the push holds beside its body: query, header lines, and what lists the segments.
    pub fn overhead(&self) -> usize {
        PUSH_BYTES + self.query.len() + self.fields.len() + self.segments.len() * size_of::<Bytes>()
    }
}

fn weight(bytes: u64, query: &Bytes, fields: &Bytes) -> u64 {
    bytes + (PUSH_BYTES + query.len() + fields.len()) as u64
}

/// How many outcomes the answer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckMode {
    /// None: the client has been answered when its parcels were queued.
    Detached,
    /// One success, or the last failure.
    First,
    /// All.
    All,
    /// None, but every destination has the parcel on disk (or has accepted it, where the disk does not).
    Stored,
}

/// What the client is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 200.
    Accepted,
    /// A destination's answer, relayed: the earliest one with a status (WIRE.md 1.7).
    Relayed {
        /// The destination's HTTP status.
        status: u16,
        /// The Connect code in it, if it spoke Connect.
        code: Option<Code>,
    },
    /// No destination answered at all.
    Unanswered,
    /// It could neither be stored nor delivered soon.
    NotStored,
}

#[derive(Debug)]
struct Ack {
    mode: AckMode,
    pending: AtomicU32,
    delivered: AtomicBool,
    /// 0 = none yet, else status << 8 | (code + 1).
    failure: AtomicU32,
    unanswered: AtomicBool,
    waker: AtomicWaker,
}

impl Push {
    /// A push that will have `destinations` outcomes.
    pub fn new(parts: PushParts, mode: AckMode, destinations: u32) -> Self {
        Self {
            route: parts.route,
            query: parts.query,
            fields: parts.fields,
            segments: parts.segments,
            bytes: parts.bytes,
            profile_bytes: parts.profile_bytes,
            profiles: parts.profiles,
            accepted: parts.accepted,
            accepted_unix_ms: parts.accepted_unix_ms,
            trace_id: fastrand::u128(1..),
            client_deadline: parts.client_deadline,
            pinned_bytes: parts.pinned_bytes + parts.charge.as_ref().map_or(0, Charge::bytes),
            _charge: parts.charge,
            ack: Ack {
                mode,
                pending: AtomicU32::new(destinations),
                delivered: AtomicBool::new(false),
                failure: AtomicU32::new(0),
                unanswered: AtomicBool::new(false),
                waker: AtomicWaker::new(),
            },
        }
    }

    /// What a queue counts for it against its byte limit: the body, and a floor that bounds the number of empty ones.
    pub fn weight(&self) -> u64 {
        weight(self.bytes, &self.query, &self.fields)
    }

    /// The first `Content-Type` in [`Push::fields`].
    pub fn content_type(&self) -> Option<&[u8]> {
        const NAME: &[u8] = b"Content-Type: ";
        let mut lines = self.fields.split(|byte| *byte == b'\n');
        let value = lines.find_map(|line| line.strip_prefix(NAME));
        value.map(<[u8]>::trim_ascii)
    }

    /// Whether a client waits for this push's outcomes still.
    pub fn is_awaited(&self) -> bool {
        self.ack.verdict().is_none()
    }

    /// When the client is answered.
    pub fn ack_mode(&self) -> AckMode {
        self.ack.mode
    }

    /// Ends when the answer is known under the push's mode; at once when detached.
    pub async fn verdict(&self) -> Verdict {
        poll_fn(|context| {
            if let Some(verdict) = self.ack.verdict() {
                return Poll::Ready(verdict);
            }
            self.ack.waker.register(context.waker());
            match self.ack.verdict() {
                Some(verdict) => Poll::Ready(verdict),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// One destination's parcel is on disk. Called by its ticket, once, instead of [`Push::settle`].
    pub(super) fn note_stored(&self) {
        if self.ack.mode == AckMode::Stored {
            self.settle(Outcome::Delivered);
        }
    }

    /// Takes one destination's outcome. Called by its ticket, once.
    pub(super) fn settle(&self, outcome: Outcome) {
        let ack = &self.ack;
        if ack.mode == AckMode::Detached {
            return;
        }
        match outcome {
            Outcome::Delivered => ack.delivered.store(true, Ordering::Release),
            // It would have been stored, and is worth coming back with: what the last attempt was answered is no verdict on it.
            Outcome::Answered {
                reason: DropReason::RetriesExhausted,
                ..
            } if ack.mode == AckMode::Stored => ack.unanswered.store(true, Ordering::Release),
            Outcome::Answered { status, code, .. } => {
                let packed =
                    u32::from(status) << 8 | code.map_or(0, |code| u32::from(code.grpc_number()) + 1);
                let _ = ack
                    .failure
                    .compare_exchange(0, packed, Ordering::AcqRel, Ordering::Relaxed);
            }
            Outcome::Unanswered { .. } => ack.unanswered.store(true, Ordering::Release),
        }
        let before = ack.pending.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "more outcomes than destinations");
        if ack.verdict().is_some() {
            ack.waker.wake();
        }
    }
}

impl Ack {
    fn verdict(&self) -> Option<Verdict> {
        let pending = self.pending.load(Ordering::Acquire);
        let delivered = self.delivered.load(Ordering::Acquire);
        match self.mode {
            AckMode::Detached => return Some(Verdict::Accepted),
            AckMode::First if delivered => return Some(Verdict::Accepted),
            _ if pending > 0 => return None,
            _ => {}
        }
        let failure = self.failure.load(Ordering::Acquire);
        if failure != 0 {
            let code = (failure & 0xff)
                .checked_sub(1)
                .and_then(|number| Code::from_grpc_number(number as u8));
            return Some(Verdict::Relayed {
                status: (failure >> 8) as u16,
                code,
            });
        }
        Some(match (self.unanswered.load(Ordering::Acquire), self.mode) {
            (false, _) => Verdict::Accepted,
            (true, AckMode::Stored) => Verdict::NotStored,
            (true, _) => Verdict::Unanswered,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn push(bytes: u64, mode: AckMode, destinations: u32) -> Push {
        Push::new(parts(bytes), mode, destinations)
    }

    pub(crate) fn parts(bytes: u64) -> PushParts {
        PushParts {
            route: Route::Ingest,
            query: Bytes::new(),
            fields: Bytes::new(),
            segments: SmallVec::new(),
            bytes,
            profile_bytes: bytes,
            profiles: 1,
            accepted: Mono(0),
            accepted_unix_ms: 0,
            client_deadline: Mono::NEVER,
            pinned_bytes: bytes,
            charge: None,
        }
    }

    fn verdict(mode: AckMode, outcomes: &[Outcome]) -> Option<Verdict> {
        let push = push(1, mode, 3);
        outcomes.iter().for_each(|outcome| push.settle(*outcome));
        push.ack.verdict()
    }

    #[test]
    fn answers_follow_the_mode() {
        let ok = Outcome::Delivered;
        let bad = Outcome::Answered {
            status: 400,
            code: Some(Code::InvalidArgument),
            reason: DropReason::Rejected,
        };
        let busy = Outcome::Answered {
            status: 503,
            code: None,
            reason: DropReason::RetriesExhausted,
        };
        let gone = Outcome::Unanswered {
            reason: DropReason::RetriesExhausted,
        };
        let relayed_400 = Verdict::Relayed {
            status: 400,
            code: Some(Code::InvalidArgument),
        };
        for (mode, outcomes, expected) in [
            (AckMode::Detached, &[][..], Some(Verdict::Accepted)),
            (AckMode::First, &[], None),
            (AckMode::First, &[bad], None),
            (AckMode::First, &[bad, ok], Some(Verdict::Accepted)),
            (AckMode::First, &[gone, bad, busy], Some(relayed_400)),
            (AckMode::All, &[ok, ok], None),
            (AckMode::All, &[ok, ok, ok], Some(Verdict::Accepted)),
            (AckMode::All, &[ok, bad, ok], Some(relayed_400)),
            (
                AckMode::All,
                &[busy, bad, ok],
                Some(Verdict::Relayed {
                    status: 503,
                    code: None,
                }),
            ),
            (AckMode::All, &[gone, bad, ok], Some(relayed_400)),
            (AckMode::All, &[gone, ok, ok], Some(Verdict::Unanswered)),
            (AckMode::Stored, &[ok, ok], None),
            (AckMode::Stored, &[ok, ok, ok], Some(Verdict::Accepted)),
            (AckMode::Stored, &[gone, ok, ok], Some(Verdict::NotStored)),
            (AckMode::Stored, &[gone, bad, ok], Some(relayed_400)),
            (AckMode::Stored, &[busy, ok, ok], Some(Verdict::NotStored)),
        ] {
            assert_eq!(verdict(mode, outcomes), expected, "{mode:?} {outcomes:?}");
        }
    }
}
