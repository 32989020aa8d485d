//! What a request means: from its lines and its body to the parts of a push, or a refusal. The same for every carrier:
//! HTTP/1.1 (`client`) and HTTP/2 (`http2`) bring [`Lines`] and a [`Body`].
//!
//! ```text
//!  place_of ─▶ prepare (lines alone) ─▶ the carrier receives the body ─▶ parts ─▶ put: on every queue
//! ```
//! Everything that can be refused at once is refused here, before or after the body as early as it can be known. The one
//! place where errors become answers is [`Refusal`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::inlet::{Body, ReceiveError};
use super::tally::RouteLabel;
use super::{Bench, InboundSetup};
use crate::config::{AckPolicy, LabelMode};
use crate::fanout::push::PushParts;
use crate::fanout::{AckMode, OfferRefused, Push, Verdict};
use crate::http::{
    ChunkLimits, ChunkedDecoder, Framing, HeadLimits, HeadReader, Method, Piece, Progress, RequestHead,
};
use crate::profile::connect::{self, Code, Codec, Protocol, Timeout};
use crate::profile::grpc_web;
use crate::profile::grpc_web::FrameError;
use crate::profile::inflate::{InflateError, gunzip};
use crate::profile::ingest::Rewritten;
use crate::profile::json::{self, JsonLimits};
use crate::profile::labels::{LabelLimits, LabelRules};
use crate::profile::push::{RejectedSeries, Spliced, splice};
use crate::profile::rewriter::Rewriter;
use crate::profile::route::{Procedure, Route, Routed, route};
use crate::runtime::clock::{self, Mono};
use crate::runtime::pool::{Charge, MemoryBudget, hold_charge};

/// A query, header lines or a redirect of at most this many bytes are part of what a connection may hold uncharged.
const UNCHARGED_BYTES_MAX: usize = 1 << 10;

/// Why a request is not served. One variant per kind of answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 405 that says what is allowed.
    PostOnly,
    /// 301 to a clean path.
    Redirect(Vec<u8>),
    /// 415 on the Push route.
    UnsupportedMediaType,
    /// Anything else: a status for `/ingest`, a code for Push, and a sentence for the client.
    Because {
        /// HTTP status where the protocol is plain HTTP.
        status: u16,
        /// Connect or gRPC code where it is one of those.
        code: Code,
        /// The metric label.
        reason: &'static str,
        /// What is wrong and what to do.
        message: String,
        /// Whether to come back later, in seconds.
        retry_after: Option<u64>,
    },
    /// A destination's answer under `--ack first|all`.
    Relayed {
        /// Its HTTP status.
        status: u16,
        /// Its Connect code.
        code: Option<Code>,
    },
    /// No destination answered, under `--ack first|all`.
    Unanswered,
}

impl Refusal {
    fn bad_request(reason: &'static str, message: impl Into<String>) -> Self {
        Self::because(400, Code::InvalidArgument, reason, message)
    }

    fn because(status: u16, code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self::Because {
            status,
            code,
            reason,
            message: message.into(),
            retry_after: None,
        }
    }

    fn busy(reason: &'static str, message: &str) -> Self {
        Self::Because {
            status: 503,
            code: Code::Unavailable,
            reason,
            message: message.into(),
            retry_after: Some(super::RETRY_AFTER_SECS),
        }
    }

    /// No destination takes debuginfo, or it cannot be asked.
    pub fn debuginfo_unavailable(message: String) -> Self {
        Self::because(503, Code::Unavailable, "debuginfo_unavailable", message)
    }

    /// Too many debuginfo requests are under way.
    pub fn debuginfo_busy() -> Self {
        Self::busy(
            "debuginfo_busy",
            "too many debuginfo requests are under way; try again later",
        )
    }

    /// An upload that its destination does not have.
    pub fn debuginfo_failed(message: String) -> Self {
        Self::because(502, Code::Unavailable, "debuginfo_failed", message)
    }

    /// The bad path of a request line.
    pub fn malformed_path() -> Self {
        Self::bad_request(
            "path_malformed",
            "the path has a bad percent-escape or a control character",
        )
    }

    /// The metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::MethodNotAllowed | Self::PostOnly => "method_not_allowed",
            Self::Redirect(_) => "redirect",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::Because { reason, .. } => reason,
            Self::Relayed { .. } => "relayed",
            Self::Unanswered => "unanswered",
        }
    }

    /// The answer to a verdict other than success.
    pub fn from_verdict(verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::Accepted => None,
            Verdict::Relayed { status, code } => Some(Self::Relayed { status, code }),
            Verdict::Unanswered => Some(Self::Unanswered),
            Verdict::NotStored => Some(Self::busy(
                "not_stored",
                "the profile could not be stored on disk (--ack stored), nor delivered at once; try again later",
            )),
        }
    }

    /// The client's own deadline has passed while destinations were still asked.
    pub fn deadline_exceeded() -> Self {
        Self::because(
            504,
            Code::DeadlineExceeded,
            "deadline_exceeded",
            "the deadline of the request has passed",
        )
    }

    /// Series that were left out while the others went on (row 99).
    pub fn from_rejected(rejected: &[RejectedSeries], count: u32) -> Option<Self> {
        let first = rejected.first()?;
        let code = first.reason.code();
        let message = format!(
            "series {} was refused: {} ({count} refused in all)",
            first.index, first.reason
        );
        Some(Self::because(
            code.http_status(),
            code,
            first.reason.label(),
            message,
        ))
    }
}

impl From<ReceiveError> for Refusal {
    fn from(error: ReceiveError) -> Self {
        let message = error.to_string();
        match error {
            ReceiveError::Closed | ReceiveError::Truncated => {
                Self::because(400, Code::Canceled, "truncated", message)
            }
            ReceiveError::Head(error) => {
                Self::because(error.status(), Code::InvalidArgument, error.label(), message)
            }
            ReceiveError::Framing(error) => {
                Self::because(error.status(), Code::InvalidArgument, error.label(), message)
            }
            ReceiveError::TooLarge => Self::because(413, Code::ResourceExhausted, "body_too_large", message),
            ReceiveError::NoMemory => Self::busy("memory_limit", &message),
            ReceiveError::TimedOut => Self::because(408, Code::DeadlineExceeded, "read_timeout", message),
        }
    }
}

impl From<OfferRefused> for Refusal {
    fn from(refused: OfferRefused) -> Self {
        match refused {
            OfferRefused::QueueFull => Self::busy(
                "queue_full",
                "the queue of a destination is full and may not overflow (--overflow refuse); try again later",
            ),
            OfferRefused::SpoolBehind => Self::busy(
                "spool_behind",
                "profiles come faster than the disk stores them (--ack stored); try again later",
            ),
        }
    }
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        Self::because(
            error.code().http_status(),
            error.code(),
            "grpc_web_frame",
            error.to_string(),
        )
    }
}

/// How a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2: gRPC can be answered, for there are trailers.
    Http2,
}

/// The header lines of a request, whichever way they have come.
pub trait Lines {
    /// How.
    const CARRIER: Carrier;

    /// The first value of `name`, which is in lower case.
    fn value(&self, name: &'static str) -> Option<&[u8]>;

    /// Calls `visit` with every value of `name`, in order.
    fn values(&self, name: &'static str, visit: impl FnMut(&[u8]));

    /// Calls `visit` with every name and value.
    fn each(&self, visit: impl FnMut(&[u8], &[u8]));
}

/// The lines of a head as it lies in its buffer.
pub struct HeadLines<'a> {
    /// The head.
    pub head: &'a RequestHead,
    /// The buffer, from where the head begins.
    pub bytes: &'a [u8],
}

impl Lines for HeadLines<'_> {
    const CARRIER: Carrier = Carrier::Http1;

    fn value(&self, name: &'static str) -> Option<&[u8]> {
        self.head.value(self.bytes, name)
    }

    fn values(&self, name: &'static str, visit: impl FnMut(&[u8])) {
        self.head.values(self.bytes, name).for_each(visit);
    }

    fn each(&self, mut visit: impl FnMut(&[u8], &[u8])) {
        for field in &self.head.fields {
            visit(field.name.of(self.bytes), field.value.of(self.bytes));
        }
    }
}

/// What a request wants.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// To push.
    Push(Route, RouteLabel),
    /// To be passed through, with the clean path to ask with.
    Debuginfo(Procedure, String),
}

/// Where a request belongs.
///
/// # Errors
/// 404, 405, or where to go instead.
pub fn place_of(is_post: bool, path: &[u8], query: Option<&[u8]>) -> Result<Wanted, Refusal> {
    match route(is_post, path) {
        Routed::Route(Route::Ingest) => Ok(Wanted::Push(Route::Ingest, RouteLabel::Ingest)),
        Routed::Route(Route::Push) => Ok(Wanted::Push(Route::Push, RouteLabel::Push)),
        Routed::Debuginfo(procedure, path) => Ok(Wanted::Debuginfo(procedure, path)),
        Routed::PostOnly => Err(Refusal::PostOnly),
        Routed::MethodNotAllowed => Err(Refusal::MethodNotAllowed),
        Routed::Malformed => Err(Refusal::malformed_path()),
        Routed::Redirect(path) => {
            let mut location = path.into_bytes();
            if let Some(query) = query {
                location.push(b'?');
                location.extend_from_slice(query);
            }
            Err(Refusal::Redirect(location))
        }
        Routed::NotFound => Err(Refusal::NotFound),
    }
}

/// Charges what is held beside a request's buffers, where it is much.
///
/// # Errors
/// When there is no memory left.
pub fn charge_if_much(setup: &InboundSetup, bytes: usize) -> Result<Option<Charge>, ReceiveError> {
    if bytes <= UNCHARGED_BYTES_MAX {
        return Ok(None);
    }
    let charge = setup.memory.try_charge(bytes);
    charge.map(Some).ok_or(ReceiveError::NoMemory)
}

/// What a request's lines come to.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// How a Push client is spoken to; `None` for `/ingest`.
    pub dress: Option<Dress>,
    /// The outgoing query; `None` where a relabel rule drops the profile.
    pub query: Option<Bytes>,
    /// The header lines that every destination gets.
    pub fields: Bytes,
}

/// What the lines alone say. `length` is the body's, where they tell it.
///
/// # Errors
/// Why the request is refused before any of its body is read, and the dress to say it in, where that is known.
pub fn prepare<L: Lines>(
    setup: &InboundSetup,
    bench: &Bench,
    route: Route,
    query: &[u8],
    lines: &L,
    length: Option<u64>,
) -> Result<Prepared, (Option<Dress>, Refusal)> {
    let verbatim = setup.plan.labels == LabelMode::Verbatim;
    let dress = match route {
        Route::Ingest => None,
        Route::Push => Some(dress(lines)?),
    };
    let query = match (route, verbatim) {
        (_, true) => Some(Bytes::copy_from_slice(query)),
        (Route::Ingest, false) => {
            let (mut rewriter, mut scratch) = (bench.rewriter.borrow_mut(), bench.scratch());
            ingest_query(query, &mut rewriter, &mut scratch).map_err(|refusal| (None, refusal))?
        }
        (Route::Push, false) => Some(Bytes::new()),
    };
    if length.is_some_and(|length| length > setup.plan.body_limit) {
        return Err((dress, ReceiveError::TooLarge.into()));
    }
    let fields = outgoing_fields(
        &mut bench.scratch(),
        lines,
        &setup.plan.pass_headers,
        dress.and_then(|dress| outgoing_type(dress, verbatim)),
    );
    Ok(Prepared { dress, query, fields })
}

/// The header lines that every destination gets: what is said of the body, and what is passed on. `rewritten` is the
/// content type of a body that we have made ourselves. `out` is memory to work in.
fn outgoing_fields(
    out: &mut Vec<u8>,
    lines: &impl Lines,
    passed: &[String],
    rewritten: Option<&'static str>,
) -> Bytes {
    let mut pass = |name: &[u8], value: &[u8]| {
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    };
    if let Some(content_type) = rewritten {
        pass(b"Content-Type", content_type.as_bytes());
    } else {
        lines.values("content-type", |value| pass(b"Content-Type", value));
        // Row 24 (D): what the client says about its bytes stays true of them.
        lines.values("content-encoding", |value| pass(b"Content-Encoding", value));
    }
    if !passed.is_empty() {
        lines.each(|name, value| {
            if passed
                .iter()
                .any(|wanted| name.eq_ignore_ascii_case(wanted.as_bytes()))
            {
                pass(name, value);
            }
        });
    }
    Bytes::copy_from_slice(out)
}

/// The content type of a Push body that we make ourselves; `None` where the client's passes through.
fn outgoing_type(dress: Dress, verbatim: bool) -> Option<&'static str> {
    match (verbatim, dress.codec.protocol()) {
        (false, _) => Some("application/proto"),
        (true, Protocol::Connect) => None,
        (true, _) if dress.codec.is_json() => Some("application/json"),
        (true, _) => Some("application/proto"),
    }
}

/// The parts of a push whose body is here since `accepted`, and the refusal of series that were left out (row 99). No parts:
/// nothing of it goes on, for a relabel rule drops it or nothing good was in it.
///
/// # Errors
/// Why none of it is taken.
pub fn parts(
    setup: &InboundSetup,
    bench: &Bench,
    route: Route,
    prepared: Prepared,
    body: Body,
    started: Mono,
    accepted: Mono,
) -> Result<(Option<PushParts>, Option<Refusal>), Refusal> {
    let Prepared { dress, query, fields } = prepared;
    let Some(query) = query else {
        setup.tally.relabelled(1, 1);
        return Ok((None, None));
    };
    let timeout = dress.and_then(|dress| dress.timeout);
    let mut parts = PushParts {
        route,
        query,
        fields,
        segments: SmallVec::new(),
        bytes: body.bytes,
        profile_bytes: body.bytes,
        profiles: 1,
        accepted,
        accepted_unix_ms: clock::unix_ms(accepted),
        client_deadline: timeout.map_or(Mono::NEVER, |timeout| started.after(timeout)),
        pinned_bytes: body.pinned_bytes,
        charge: None,
    };
    let mut rejected = None;
    let mut new_bytes = 0;
    match dress {
        Some(dress) if setup.plan.labels == LabelMode::Alloy => {
            let spliced = push_body(
                body,
                dress,
                &bench.course.rules,
                setup.plan.body_limit,
                &setup.memory,
            )?;
            if spliced.relabelled > 0 {
                setup
                    .tally
                    .relabelled(spliced.relabelled, spliced.relabel_dropped);
            }
            rejected = Refusal::from_rejected(&spliced.rejected, spliced.rejected_count);
            if spliced.series == 0 {
                return Ok((None, rejected));
            }
            new_bytes = spliced.new_bytes;
            parts.bytes = spliced.bytes;
            parts.profile_bytes = spliced.raw_bytes;
            parts.profiles = spliced.profiles;
            parts.segments = spliced.segments;
        }
        // A destination speaks Connect: what is in the frame passes through, the frame does not.
        Some(dress) if dress.codec.protocol() != Protocol::Connect => {
            parts.segments = message(body, dress, setup.plan.body_limit, &setup.memory)?;
            parts.bytes = parts.segments.iter().map(|segment| segment.len() as u64).sum();
            parts.profile_bytes = parts.bytes;
        }
        _ => {
            if route == Route::Ingest && !bench.course.rules.relabel().is_empty() {
                setup.tally.relabelled(1, 0);
            }
            parts.segments = body.segments;
        }
    }
    // Inflated or rewritten, a body pins what it has become.
    parts.pinned_bytes = parts.pinned_bytes.max(parts.bytes);
    let charge = setup.memory.try_charge(parts.overhead() + new_bytes);
    parts.charge = Some(charge.ok_or(ReceiveError::NoMemory)?);
    Ok((Some(parts), rejected))
}

/// Puts a push on every queue. Returns it where the policy says that its verdict is waited for.
///
/// # Errors
/// When a queue may not overflow and is full.
pub fn put(setup: &InboundSetup, bench: &Bench, parts: PushParts) -> Result<Option<Arc<Push>>, Refusal> {
    let mode = match setup.plan.ack {
        AckPolicy::Queued => AckMode::Detached,
        AckPolicy::First => AckMode::First,
        AckPolicy::All => AckMode::All,
        AckPolicy::Stored => AckMode::Stored,
    };
    let fanout = &bench.course.fanout;
    let push = Arc::new(Push::new(parts, mode, fanout.len()));
    fanout.offer(&push)?;
    Ok((mode != AckMode::Detached).then_some(push))
}

/// How a Push client is to be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dress {
    /// Its content type, which the answer repeats.
    pub codec: Codec,
    /// Whether its message is gzipped (Connect: the whole body).
    pub gzip_request: bool,
    /// Whether the answer is.
    pub gzip_answer: bool,
    /// How long the client waits.
    pub timeout: Option<Duration>,
}

/// Reads the headers of a Push.
///
/// # Errors
/// 415, or the code that WIRE.md 3.2 and 3.5 give for a bad header. The dress, where known, comes along so that the
/// refusal is spoken in it.
pub fn dress<L: Lines>(lines: &L) -> Result<Dress, (Option<Dress>, Refusal)> {
    let codec = Codec::parse(lines.value("content-type"))
        .filter(|codec| codec.protocol() != Protocol::Grpc || L::CARRIER == Carrier::Http2);
    let Some(codec) = codec else {
        return Err((None, Refusal::UnsupportedMediaType));
    };
    let is_framed = codec.protocol() != Protocol::Connect;
    let (encoding, accept) = if is_framed {
        (lines.value("grpc-encoding"), lines.value("grpc-accept-encoding"))
    } else {
        (lines.value("content-encoding"), lines.value("accept-encoding"))
    };
    let mut plain = Dress {
        codec,
        gzip_request: false,
        gzip_answer: false,
        timeout: None,
    };
    let gzip_request = connect::is_gzip_encoded(encoding);
    plain.gzip_answer = gzip_request.is_ok_and(|gzip| gzip || connect::accepts_gzip(accept));
    let refuse = |code: Code, reason, text: String| {
        (
            Some(plain),
            Refusal::because(code.http_status(), code, reason, text),
        )
    };
    let gzip_request =
        gzip_request.map_err(|error| refuse(error.code(), "unsupported_encoding", error.to_string()))?;
    if !is_framed {
        connect::check_version(lines.value("connect-protocol-version"))
            .map_err(|error| refuse(error.code(), "connect_version", error.to_string()))?;
    }
    let timeout = if is_framed {
        grpc_web::parse_timeout(lines.value("grpc-timeout"))
            .map_err(|error| refuse(error.code(), "timeout_malformed", error.to_string()))?
    } else {
        match connect::parse_timeout(lines.value("connect-timeout-ms"))
            .map_err(|error| refuse(error.code(), "timeout_malformed", error.to_string()))?
        {
            Timeout::None => None,
            Timeout::Expired => Some(Duration::ZERO),
            Timeout::Ms(ms) => Some(Duration::from_millis(ms)),
        }
    };
    if timeout == Some(Duration::ZERO) {
        return Err((Some(plain), Refusal::deadline_exceeded()));
    }
    Ok(Dress {
        codec,
        gzip_request,
        gzip_answer: plain.gzip_answer,
        timeout,
    })
}

/// The outgoing query of `/ingest` under the label rules; `None` where a relabel rule drops the profile. `scratch` is
/// memory to work in.
///
/// # Errors
/// 400 with the grammar's own words (rows 34, 35 (D)).
pub fn ingest_query(
    query: &[u8],
    rewriter: &mut Rewriter,
    scratch: &mut Vec<u8>,
) -> Result<Option<Bytes>, Refusal> {
    scratch.clear();
    let rewritten = rewriter.rewrite(query, scratch).map_err(|error| {
        Refusal::because(
            error.status(),
            Code::InvalidArgument,
            error.reason(),
            error.message(),
        )
    })?;
    // Exactly as long as it is: one allocation, where a vector with room to spare would take two.
    Ok((rewritten == Rewritten::Written).then(|| Bytes::copy_from_slice(scratch)))
}

/// The body of a Push as the destinations get it: unframed, inflated, as protobuf, its labels rewritten.
///
/// # Errors
/// The codes of WIRE.md 3.2 to 3.5.
pub fn push_body(
    body: Body,
    dress: Dress,
    rules: &LabelRules,
    body_limit: u64,
    memory: &Arc<MemoryBudget>,
) -> Result<Spliced, Refusal> {
    let mut segments = message(body, dress, body_limit, memory)?;
    if dress.codec.is_json() {
        segments = json_to_proto(&segments, memory)?;
    }
    splice(&segments, rules, &LabelLimits::default()).map_err(|error| {
        Refusal::because(
            error.code().http_status(),
            error.code(),
            "protobuf_malformed",
            error.to_string(),
        )
    })
}

/// The message of a Push without its gRPC or gRPC-Web frame and gzip.
///
/// # Errors
/// The codes of WIRE.md 3.2 and 3.5.
pub fn message(
    body: Body,
    dress: Dress,
    body_limit: u64,
    memory: &Arc<MemoryBudget>,
) -> Result<SmallVec<[Bytes; 4]>, Refusal> {
    let mut segments = body.segments;
    let mut is_gzipped = dress.gzip_request && body.bytes > 0;
    let protocol = dress.codec.protocol();
    if protocol != Protocol::Connect {
        let message = grpc_web::unframe(&segments, dress.gzip_request, protocol == Protocol::GrpcWeb)?;
        is_gzipped = message.compressed;
        segments = message.segments;
        if segments.is_empty() && dress.codec.is_json() {
            // An empty frame is an empty message in every codec.
            segments.push(Bytes::from_static(b"{}"));
        }
    }
    if is_gzipped {
        inflate(&segments, body_limit, memory)
    } else {
        Ok(segments)
    }
}

fn inflate(
    segments: &[Bytes],
    body_limit: u64,
    memory: &Arc<MemoryBudget>,
) -> Result<SmallVec<[Bytes; 4]>, Refusal> {
    let mut charges: Vec<Charge> = Vec::new();
    let inflated = gunzip(
        segments,
        body_limit,
        &mut |bytes| match memory.try_charge(bytes) {
            Some(charge) => {
                charges.push(charge);
                true
            }
            None => false,
        },
    );
    // What inflating took at most is given back; each block holds what it is.
    drop(charges);
    match inflated {
        Ok(blocks) => blocks
            .into_iter()
            .map(|block| {
                let charge = memory.try_charge(block.len()).ok_or(ReceiveError::NoMemory)?;
                Ok(hold_charge(block, charge))
            })
            .collect(),
        Err(InflateError::NoMemory) => Err(ReceiveError::NoMemory.into()),
        Err(error @ InflateError::TooLarge) => Err(Refusal::because(
            413,
            Code::ResourceExhausted,
            "body_too_large",
            error.to_string(),
        )),
        Err(error) => Err(Refusal::bad_request("gzip_corrupt", error.to_string())),
    }
}

fn json_to_proto(segments: &[Bytes], memory: &Arc<MemoryBudget>) -> Result<SmallVec<[Bytes; 4]>, Refusal> {
    let bytes: usize = segments.iter().map(Bytes::len).sum();
    // The text joined, and the protobuf, which is never longer.
    let charge = memory.try_charge(bytes * 2).ok_or(ReceiveError::NoMemory)?;
    let joined;
    let text: &[u8] = match segments {
        [one] => one,
        many => {
            joined = many.concat();
            &joined
        }
    };
    let proto = json::to_proto(text, &JsonLimits::default()).map_err(|error| {
        Refusal::because(
            error.code().http_status(),
            error.code(),
            "json_malformed",
            error.to_string(),
        )
    })?;
    drop(charge);
    let proto = Bytes::from(proto.into_boxed_slice());
    let charge = memory.try_charge(proto.len()).ok_or(ReceiveError::NoMemory)?;
    Ok([hold_charge(proto, charge)].into_iter().collect())
}

/// The body of the fuzz target `connection`: everything that happens to a connection's bytes between the socket and the
/// queues. Whatever comes, the memory budget is whole again afterwards.
#[doc(hidden)]
pub fn fuzz_connection(data: &[u8]) {
    const BODY_LIMIT: u64 = 1 << 20;
    let memory = MemoryBudget::new(8 << 20);
    let rules = Arc::new(LabelRules::default());
    let mut rewriter = Rewriter::new(rules.clone(), LabelLimits::default());
    let mut reader = HeadReader::new(HeadLimits::default());
    let mut rest = data;
    for _ in 0..64 {
        let Ok(Progress::Complete(head)) = reader.read(rest) else {
            break;
        };
        let routed = route(head.method == Method::Post, head.target.path.of(rest));
        let Some((body, used)) = fuzz_body_of(&head, &rest[head.bytes..], BODY_LIMIT) else {
            break;
        };
        match routed {
            Routed::Route(Route::Ingest) => {
                let _ = ingest_query(
                    head.target.query.map_or(&[][..], |query| query.of(rest)),
                    &mut rewriter,
                    &mut Vec::new(),
                );
            }
            Routed::Route(Route::Push) => {
                if let Ok(dress) = dress(&HeadLines {
                    head: &head,
                    bytes: rest,
                }) {
                    let spliced = push_body(body, dress, &rules, BODY_LIMIT, &memory);
                    let bytes =
                        |spliced: &Spliced| spliced.segments.iter().map(|one| one.len() as u64).sum::<u64>();
                    assert!(
                        spliced.is_err() || spliced.is_ok_and(|spliced| bytes(&spliced) == spliced.bytes)
                    );
                }
            }
            _ => {}
        }
        rest = &rest[head.bytes + used..];
    }
    assert_eq!(memory.used(), 0, "a charge was lost");
}

/// The body that `bytes` begins with, and how many of them it takes.
fn fuzz_body_of(head: &RequestHead, bytes: &[u8], limit: u64) -> Option<(Body, usize)> {
    let mut body = Body::default();
    match head.framing {
        Framing::Length(length) => {
            let length = usize::try_from(length)
                .ok()
                .filter(|length| *length <= bytes.len())?;
            body.bytes = length as u64;
            body.segments.push(Bytes::copy_from_slice(&bytes[..length]));
            Some((body, length))
        }
        Framing::Chunked => {
            let mut decoder = ChunkedDecoder::new(ChunkLimits::default());
            let mut at = 0;
            loop {
                match decoder.next(&bytes[at..]).ok()? {
                    Piece::Data(range) => {
                        body.bytes += range.len() as u64;
                        body.segments
                            .push(Bytes::copy_from_slice(&bytes[at + range.start..at + range.end]));
                        at += range.end;
                    }
                    Piece::End(used) => return (body.bytes <= limit).then_some((body, at + used)),
                    Piece::Starved => return None,
                }
            }
        }
    }
}
