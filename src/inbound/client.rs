//! One client connection: receive a request, offer it to the destinations, answer, and so on.
//!
//! ```text
//!   ┌─▶ waiting ──first byte──▶ head ──▶ body ──▶ offered ──(--ack first|all: verdict)──▶ answered ─┐
//!   │      │ idle timeout,        │ refused: answer, then skip or linger                            │
//!   │      ▼ made room: closed    ▼ read timeout: 408 and closed                                    │
//!   └────────────────────────────────────── keep-alive ─────────────────────────────────────────────┘
//! ```
//! Once it is older than `--max-connection-age` a connection ends with its next answer, which says so, or while it is idle.
//! A push belongs to its parcels from `offered` on: a client that leaves afterwards takes nothing with it.

use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use monoio::net::TcpStream;
use smallvec::SmallVec;

use super::handshake;
use super::inlet::{Inlet, ReceiveError};
use super::tally::{Closed, RouteLabel};
use super::understand::{Dress, Refusal, dress, ingest_query, message, push_body};
use super::{Inbound, Place};
use crate::config::{AckPolicy, LabelMode};
use crate::fanout::call::CallAnswer;
use crate::fanout::push::PushParts;
use crate::fanout::{AckMode, Push};
use crate::http::answer;
use crate::http::{Answer, Connection, Framing, Method, RequestHead, reason_phrase};
use crate::profile::connect::{self, ACCEPT_POST, Code, Protocol};
use crate::profile::grpc_web;
use crate::profile::route::{Route, Routed, route};
use crate::runtime::clock::{self, Mono};
use crate::runtime::pool::Charge;
use crate::runtime::socket;
use crate::runtime::stream::{self, Reader, Writer};
use crate::runtime::sweeper::{Ended, Expiry, Watch, YIELD_IDLE_MIN};
use crate::runtime::tls::server::ServerSide;

/// A refused request's body of at most this many bytes is read and thrown away, so that the connection lives on.
const SKIP_BYTES_MAX: u64 = 1 << 20;
/// What a connection keeps of the memory that its last answer took. Most answers are below 300 bytes; a redirect repeats the
/// target, which may have 1 MiB.
const ANSWER_BYTES_KEPT: usize = 1 << 10;
/// A query, header lines or a redirect of at most this many bytes are part of what a connection may hold uncharged.
const UNCHARGED_BYTES_MAX: usize = 1 << 10;
/// How long we still read from a client that we have told off.
const LINGER: Duration = Duration::from_secs(2);
/// Once a shutdown has begun, how long a client that has just connected may take to send its first bytes.
const LAST_REQUEST_WAIT: Duration = Duration::from_millis(50);

/// Turns of its core's loop that a push gives to writers which are behind, each at least [`TURN_MIN`].
const TURNS_GIVEN: usize = 8;
const TURN_MIN: Duration = Duration::from_millis(1);

/// How often a push looks whether the disk has caught up before it goes on regardless, one second in all.
const DISK_LOOKS: usize = 200;
const DISK_LOOK_EVERY: Duration = Duration::from_millis(5);

/// Serves one connection in cleartext to its end. Whatever is built before the first wait is not part of what a connection
/// holds.
pub fn serve(stream: TcpStream, inbound: Rc<Inbound>, place: Place) -> impl Future<Output = ()> {
    socket::tune_client(&stream);
    let watch = Rc::new(inbound.sweeper.watch(stream.as_raw_fd()));
    let fd = stream.as_raw_fd();
    Client::new(fd, stream::plain(stream), watch, inbound).run(place)
}

/// Serves one connection in TLS to its end.
pub async fn serve_tls(stream: TcpStream, inbound: Rc<Inbound>, side: Arc<ServerSide>, place: Place) {
    socket::tune_client(&stream);
    let fd = stream.as_raw_fd();
    let watch = Rc::new(inbound.sweeper.watch(fd));
    // A handshake needs much memory and little time: it lives on the heap only as long as it takes.
    let shaken = Box::pin(handshake::shake_hands(stream, &inbound, &side, &watch)).await;
    if let Some(halves) = shaken {
        Client::new(fd, halves, watch, inbound).run(place).await;
    }
}

pub(super) struct Client {
    pub(super) inbound: Rc<Inbound>,
    /// When it is too old (`--max-connection-age`); `NEVER` without a limit.
    retire_at: Mono,
    /// Why it ends, once it does.
    closed: Closed,
    fd: RawFd,
    pub(super) watch: Rc<Watch>,
    pub(super) inlet: Inlet,
    writer: Writer,
    out: Vec<u8>,
    /// When the last answer was out, or the connection came.
    idle_since: Mono,
}

/// What became of a request before its answer is written.
pub(super) struct Handled {
    pub(super) result: Result<(), Refusal>,
    pub(super) route: RouteLabel,
    pub(super) dress: Option<Dress>,
    pub(super) body: BodyState,
    /// A destination's answer that is passed back as it is.
    pub(super) passed: Option<CallAnswer>,
    /// For a long answer.
    pub(super) _charge: Option<Charge>,
}

/// What a head alone says of a push.
struct Prepared {
    dress: Option<Dress>,
    /// The outgoing query; `None` where a relabel rule drops the profile.
    query: Option<Bytes>,
    /// Header lines that every destination gets.
    fields: Bytes,
}

/// Whether the client is still sending.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyState {
    Received,
    Unread,
    Broken,
}

impl Client {
    fn new(fd: RawFd, (reader, writer): (Reader, Writer), watch: Rc<Watch>, inbound: Rc<Inbound>) -> Self {
        let setup = &inbound.setup;
        let inlet = Inlet::new(reader, watch.clone(), setup.memory.clone(), setup.tally.clone());
        Self {
            retire_at: inbound.retire_at(),
            closed: Closed::Client,
            inbound,
            fd,
            watch,
            inlet,
            writer,
            out: Vec::new(),
            idle_since: clock::now(),
        }
    }

    /// A connection is idle most of its life, so this future is small: what serving a request needs (3 KiB of state) lives
    /// on the heap only as long as the request, and `self` is captured as it is (an `async fn` would keep it twice).
    fn run(self, place: Place) -> impl Future<Output = ()> {
        let mut client = self;
        async move {
            while client.wait().await && Box::pin(client.serve_one()).await {}
            client.inbound.setup.tally.closed(client.closed);
            drop(client);
            drop(place);
        }
    }

    /// Waits for the next request. Returns whether there is one. A request may be on its way when a shutdown begins, so even
    /// then it is waited for, a moment.
    async fn wait(&mut self) -> bool {
        if !self.inlet.has_bytes() {
            let now = self.idle_since;
            let patience = if self.inbound.is_draining() {
                LAST_REQUEST_WAIT
            } else {
                self.inbound.setup.plan.idle_timeout
            };
            // One that is too old is closed like one that makes room: not while its client may just be about to send.
            let retired = self.retire_at.max(now.after(YIELD_IDLE_MIN));
            self.watch.set_idle(now, now.after(patience).min(retired));
            if self.inlet.wait().await.is_err() {
                self.closed = self.why_closed_idle();
                return false;
            }
            self.watch.set_busy();
        }
        true
    }

    fn why_closed_idle(&self) -> Closed {
        match self.watch.ended() {
            None => Closed::Client,
            Some(Ended::MadeRoom) => Closed::MadeRoom,
            Some(Ended::ShutDown) => Closed::Shutdown,
            Some(Ended::Deadline) if self.inbound.is_draining() => Closed::Shutdown,
            Some(Ended::Deadline) if self.is_too_old() => Closed::MaxAge,
            Some(Ended::Deadline) => Closed::IdleTimeout,
        }
    }

    fn is_too_old(&self) -> bool {
        self.retire_at != Mono::NEVER && clock::now() >= self.retire_at
    }

    /// Serves the request that has begun to arrive. Returns whether the connection goes on.
    async fn serve_one(&mut self) -> bool {
        let started = clock::now();
        let limit = self.inbound.setup.plan.read_timeout;
        self.watch.arm(started.after(limit), Expiry::StopReceiving);
        let head = match self.inlet.head().await {
            Ok(head) => head,
            Err(ReceiveError::Truncated) => return false,
            Err(error) => {
                Box::pin(self.refuse_head(error.into(), started)).await;
                return false;
            }
        };
        let handled = self.handle(&head, started).await;
        self.answer(&head, handled, started).await
    }

    /// Everything from a head to a result.
    async fn handle(&mut self, head: &RequestHead, started: Mono) -> Handled {
        let mut handled = Handled {
            result: Ok(()),
            route: RouteLabel::Other,
            dress: None,
            body: BodyState::Unread,
            passed: None,
            _charge: None,
        };
        let bytes = self.inlet.head_bytes();
        let routed = route(head.method == Method::Post, head.target.path.of(bytes));
        let route = match routed {
            Routed::Route(route) => route,
            Routed::Debuginfo(procedure, path) => {
                // Rare, and its state is large.
                return Box::pin(self.pass_through(procedure, path, head, started)).await;
            }
            other => {
                let refusal = self.refuse_route(other, head);
                if let Refusal::Redirect(location) = &refusal {
                    // Once here and once in the answer.
                    match self.charge(2 * location.len()) {
                        Ok(charge) => handled._charge = charge,
                        Err(error) => {
                            handled.result = Err(error.into());
                            return handled;
                        }
                    }
                }
                handled.result = Err(refusal);
                return handled;
            }
        };
        handled.route = if route == Route::Ingest {
            RouteLabel::Ingest
        } else {
            RouteLabel::Push
        };
        handled.result = match self.prepare(route, head) {
            Ok(prepared) => {
                handled.dress = prepared.dress;
                self.receive_and_offer(route, head, started, prepared, &mut handled)
                    .await
            }
            Err((dress, refusal)) => {
                handled.dress = dress;
                Err(refusal)
            }
        };
        handled
    }

    /// Charges what is held beside the receive buffer, where it is much.
    fn charge(&self, bytes: usize) -> Result<Option<Charge>, ReceiveError> {
        if bytes <= UNCHARGED_BYTES_MAX {
            return Ok(None);
        }
        let charge = self.inbound.setup.memory.try_charge(bytes);
        charge.map(Some).ok_or(ReceiveError::NoMemory)
    }

    fn refuse_route(&self, routed: Routed, head: &RequestHead) -> Refusal {
        match routed {
            Routed::MethodNotAllowed => Refusal::MethodNotAllowed,
            Routed::PostOnly => Refusal::PostOnly,
            Routed::Malformed => Refusal::malformed_path(),
            Routed::Redirect(path) => {
                let mut location = path.into_bytes();
                if let Some(query) = head.target.query {
                    location.push(b'?');
                    location.extend_from_slice(query.of(self.inlet.head_bytes()));
                }
                Refusal::Redirect(location)
            }
            Routed::NotFound | Routed::Route(_) | Routed::Debuginfo(..) => Refusal::NotFound,
        }
    }

    /// What the head alone says: the outgoing query and header lines, or a refusal before any of the body is read.
    fn prepare(&self, route: Route, head: &RequestHead) -> Result<Prepared, (Option<Dress>, Refusal)> {
        let setup = &self.inbound.setup;
        let bytes = self.inlet.head_bytes();
        let query = head.target.query.map_or(&[][..], |query| query.of(bytes));
        let verbatim = setup.plan.labels == LabelMode::Verbatim;
        let dress = match route {
            Route::Ingest => None,
            Route::Push => Some(dress(head, bytes)?),
        };
        let query = match (route, verbatim) {
            (_, true) => Some(Bytes::copy_from_slice(query)),
            (Route::Ingest, false) => {
                let mut rewriter = self.inbound.rewriter.borrow_mut();
                let mut scratch = self.inbound.scratch();
                ingest_query(query, &mut rewriter, &mut scratch).map_err(|refusal| (None, refusal))?
            }
            (Route::Push, false) => Some(Bytes::new()),
        };
        if let Framing::Length(length) = head.framing
            && length > setup.plan.body_limit
        {
            return Err((dress, ReceiveError::TooLarge.into()));
        }
        let fields = self.fields(head, dress.and_then(|dress| outgoing_type(dress, verbatim)));
        Ok(Prepared { dress, query, fields })
    }

    /// The header lines that every destination gets: what is said of the body, and what is passed on. `rewritten` is the
    /// content type of a body that we have made ourselves.
    fn fields(&self, head: &RequestHead, rewritten: Option<&'static str>) -> Bytes {
        let bytes = self.inlet.head_bytes();
        let mut out = self.inbound.scratch();
        let mut pass = |name: &[u8], value: &[u8]| {
            out.extend_from_slice(name);
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        };
        if let Some(content_type) = rewritten {
            pass(b"Content-Type", content_type.as_bytes());
        } else {
            head.values(bytes, "content-type")
                .for_each(|value| pass(b"Content-Type", value));
            // Row 24 (D): what the client says about its bytes stays true of them.
            head.values(bytes, "content-encoding")
                .for_each(|value| pass(b"Content-Encoding", value));
        }
        let passed = &self.inbound.setup.plan.pass_headers;
        if !passed.is_empty() {
            for field in &head.fields {
                let name = field.name.of(bytes);
                if passed
                    .iter()
                    .any(|wanted| name.eq_ignore_ascii_case(wanted.as_bytes()))
                {
                    pass(name, field.value.of(bytes));
                }
            }
        }
        Bytes::copy_from_slice(&out)
    }

    /// Header lines of the client with these names, and those of `--pass-header`.
    pub(super) fn fields_of(&self, head: &RequestHead, names: &[&str]) -> Bytes {
        let bytes = self.inlet.head_bytes();
        let passed = &self.inbound.setup.plan.pass_headers;
        let mut out = Vec::new();
        for field in &head.fields {
            let name = field.name.of(bytes);
            let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
            if names.iter().any(|name| is(name)) || passed.iter().any(|name| is(name)) {
                let line = [name, b": ", field.value.of(bytes), b"\r\n"];
                out.extend_from_slice(&line.concat());
            }
        }
        Bytes::from(out)
    }

    async fn receive_and_offer(
        &mut self,
        route: Route,
        head: &RequestHead,
        started: Mono,
        prepared: Prepared,
        handled: &mut Handled,
    ) -> Result<(), Refusal> {
        // The push is charged with them once it is whole; its body may take as long as the read timeout allows.
        let meanwhile = self.charge(prepared.query.as_ref().map_or(0, Bytes::len) + prepared.fields.len())?;
        self.continue_if_expected(head, started, handled).await?;
        let inbound = self.inbound.clone();
        let setup = &inbound.setup;
        let was_here = self.inlet.has_whole_body(head);
        let body = match self.inlet.body(head, setup.plan.body_limit).await {
            Ok(body) => body,
            Err(error) => {
                handled.body = BodyState::Broken;
                return Err(error.into());
            }
        };
        handled.body = BodyState::Received;
        self.watch.disarm();
        let accepted = if was_here { started } else { clock::now() };
        let Prepared {
            query: Some(query),
            fields,
            ..
        } = prepared
        else {
            setup.tally.relabelled(1, 1);
            return Ok(());
        };
        let timeout = handled.dress.and_then(|dress| dress.timeout);
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
        match handled.dress {
            Some(dress) if setup.plan.labels == LabelMode::Alloy => {
                let spliced = push_body(body, dress, &setup.rules, setup.plan.body_limit, &setup.memory)?;
                if spliced.relabelled > 0 {
                    setup
                        .tally
                        .relabelled(spliced.relabelled, spliced.relabel_dropped);
                }
                rejected = Refusal::from_rejected(&spliced.rejected, spliced.rejected_count);
                if spliced.series == 0 {
                    return rejected.map_or(Ok(()), Err);
                }
                new_bytes = spliced.new_bytes;
                parts.bytes = spliced.bytes;
                parts.profile_bytes = spliced.raw_bytes;
                parts.profiles = spliced.profiles;
                parts.segments = spliced.segments;
            }
            // A destination speaks Connect: what is in the frame passes through, the frame does not.
            Some(dress) if dress.codec.protocol() == Protocol::GrpcWeb => {
                parts.segments = message(body, dress, setup.plan.body_limit, &setup.memory)?;
                parts.bytes = parts.segments.iter().map(|segment| segment.len() as u64).sum();
                parts.profile_bytes = parts.bytes;
            }
            _ => {
                if route == Route::Ingest && !setup.rules.relabel().is_empty() {
                    setup.tally.relabelled(1, 0);
                }
                parts.segments = body.segments;
            }
        }
        // Inflated or rewritten, a body pins what it has become.
        parts.pinned_bytes = parts.pinned_bytes.max(parts.bytes);
        drop(meanwhile);
        let charge = setup.memory.try_charge(parts.overhead() + new_bytes);
        parts.charge = Some(charge.ok_or(ReceiveError::NoMemory)?);
        offer(&inbound, parts).await?;
        rejected.map_or(Ok(()), Err)
    }

    /// Tells a client that waits for it to go on.
    pub(super) async fn continue_if_expected(
        &mut self,
        head: &RequestHead,
        started: Mono,
        handled: &mut Handled,
    ) -> Result<(), Refusal> {
        if !head.expect_continue || self.inlet.has_whole_body(head) {
            return Ok(());
        }
        let plan = &self.inbound.setup.plan;
        self.watch
            .arm(clock::now().after(plan.write_timeout), Expiry::Stop);
        let (sent, _) = self.writer.write_all(answer::CONTINUE).await;
        self.watch
            .arm(started.after(plan.read_timeout), Expiry::StopReceiving);
        if sent.is_err() {
            handled.body = BodyState::Broken;
            return Err(ReceiveError::Truncated.into());
        }
        Ok(())
    }

    async fn answer(&mut self, head: &RequestHead, handled: Handled, started: Mono) -> bool {
        let skips = match handled.body {
            BodyState::Received => false,
            BodyState::Broken => return Box::pin(self.answer_and_close(head, handled, started)).await,
            BodyState::Unread => match head.framing {
                Framing::Length(length) => {
                    if length > SKIP_BYTES_MAX || head.expect_continue {
                        return Box::pin(self.answer_and_close(head, handled, started)).await;
                    }
                    true
                }
                Framing::Chunked => return Box::pin(self.answer_and_close(head, handled, started)).await,
            },
        };
        let connection = self.after(head, skips);
        if skips && connection == Connection::Close {
            return Box::pin(self.answer_and_close(head, handled, started)).await;
        }
        let status = self.write_result(head, &handled, connection);
        let sent = self.send().await;
        self.count(head.method, &handled, status, started);
        if !sent {
            self.closed = Closed::Error;
        }
        if connection == Connection::Close {
            return false;
        }
        if !skips {
            // A client that has left without its answer may have sent further requests whole before: they are served too.
            return sent || self.inlet.has_bytes() && !self.watch.expired();
        }
        if !sent {
            return false;
        }
        // The body of a refused request has no longer to arrive than that of a good one.
        self.watch
            .arm(started.after(self.inbound.setup.plan.read_timeout), Expiry::Stop);
        let skipped = Box::pin(self.inlet.skip_body(head)).await;
        self.watch.disarm();
        if skipped.is_err() {
            self.closed = Closed::Error;
        }
        skipped.is_ok()
    }

    /// What becomes of the connection behind the answer to `head`. A client that has begun to send its next request gets an
    /// answer to that too, however old the connection is.
    fn after(&mut self, head: &RequestHead, skips: bool) -> Connection {
        let why = match Connection::after(head) {
            Connection::Close => Closed::Client,
            _ if self.inbound.is_draining() => Closed::Shutdown,
            _ if self.is_too_old() && (skips || !self.inlet.has_bytes()) => Closed::MaxAge,
            keeps => return keeps,
        };
        self.closed = why;
        Connection::Close
    }

    async fn answer_and_close(&mut self, head: &RequestHead, handled: Handled, started: Mono) -> bool {
        if self.closed == Closed::Client && handled.body == BodyState::Broken {
            self.closed = Closed::Error;
        }
        let status = self.write_result(head, &handled, Connection::Close);
        self.send_and_linger().await;
        self.count(head.method, &handled, status, started);
        false
    }

    async fn refuse_head(&mut self, refusal: Refusal, started: Mono) {
        self.closed = Closed::Error;
        let handled = Handled {
            result: Err(refusal),
            route: RouteLabel::Other,
            dress: None,
            body: BodyState::Broken,
            passed: None,
            _charge: None,
        };
        let status = self.write_plain(&handled, false, Connection::Close);
        self.send_and_linger().await;
        self.count(Method::Other, &handled, status, started);
    }

    fn count(&mut self, method: Method, handled: &Handled, status: u16, started: Mono) {
        let tally = &self.inbound.setup.tally;
        self.idle_since = clock::now();
        tally.answered(method, handled.route, status, self.idle_since.since(started));
        if let Err(refusal) = &handled.result {
            tally.refused(refusal.reason());
        }
    }

    /// Writes the answer into `out` and returns its status.
    fn write_result(&mut self, head: &RequestHead, handled: &Handled, connection: Connection) -> u16 {
        if let Some(passed) = &handled.passed {
            return self.write_passed(passed, connection);
        }
        match (handled.dress, &handled.result) {
            (None, Ok(())) => {
                self.out.clear();
                self.out.extend_from_slice(answer::ok(connection));
                200
            }
            (Some(dress), _) if dress.codec.protocol() == Protocol::GrpcWeb => {
                self.write_grpc_web(dress, &handled.result, connection)
            }
            (Some(dress), Ok(())) => self.write_connect_ok(dress, connection),
            (Some(_), Err(refusal)) => self.write_connect_error(refusal, connection),
            (None, Err(_)) => self.write_plain(handled, head.method == Method::Head, connection),
        }
    }

    fn write_passed(&mut self, passed: &CallAnswer, connection: Connection) -> u16 {
        let headers: Vec<(&str, &str)> = passed
            .headers
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        self.write(&Answer {
            headers: &headers,
            body: &passed.body,
            ..Answer::empty(passed.status, connection)
        })
    }

    fn write_connect_ok(&mut self, dress: Dress, connection: Connection) -> u16 {
        let body = connect::success_body(dress.codec.is_json(), dress.gzip_answer);
        let headers: &[(&str, &str)] = match dress.gzip_answer {
            true => &[("Accept-Encoding", "gzip"), ("Content-Encoding", "gzip")],
            false => &[("Accept-Encoding", "gzip")],
        };
        let content_type = Some(dress.codec.as_str());
        self.write(&Answer {
            content_type,
            headers,
            body: &body,
            ..Answer::empty(200, connection)
        })
    }

    fn write_connect_error(&mut self, refusal: &Refusal, connection: Connection) -> u16 {
        let (code, message, retry_after) = connect_error(refusal);
        let mut body = Vec::new();
        connect::write_error(code, &message, &mut body);
        self.write(&Answer {
            content_type: Some("application/json"),
            headers: &[("Accept-Encoding", "gzip")],
            retry_after_secs: retry_after,
            body: &body,
            ..Answer::empty(code.http_status(), connection)
        })
    }

    fn write_grpc_web(&mut self, dress: Dress, result: &Result<(), Refusal>, connection: Connection) -> u16 {
        let content_type = Some(dress.codec.as_str());
        match result {
            Ok(()) => {
                let body = grpc_web::success_frames(dress.codec.is_json(), dress.gzip_answer);
                let headers: &[(&str, &str)] = match dress.gzip_answer {
                    true => &[("Grpc-Accept-Encoding", "gzip"), ("Grpc-Encoding", "gzip")],
                    false => &[("Grpc-Accept-Encoding", "gzip")],
                };
                self.write(&Answer {
                    content_type,
                    headers,
                    body: &body,
                    ..Answer::empty(200, connection)
                })
            }
            Err(refusal) => {
                let (code, message, _) = connect_error(refusal);
                let (number, message) = (code.grpc_number().to_string(), grpc_web::percent_encode(&message));
                let headers: &[(&str, &str)] = &[
                    ("Grpc-Accept-Encoding", "gzip"),
                    ("Grpc-Status", &number),
                    ("Grpc-Message", &message),
                ];
                self.write(&Answer {
                    content_type,
                    headers,
                    ..Answer::empty(200, connection)
                })
            }
        }
    }

    /// A refusal in plain HTTP.
    fn write_plain(&mut self, handled: &Handled, head_only: bool, connection: Connection) -> u16 {
        let Err(refusal) = &handled.result else { return 200 };
        let text;
        let answer = match refusal {
            Refusal::NotFound => Answer::not_found(connection),
            Refusal::MethodNotAllowed => Answer::method_not_allowed(connection),
            Refusal::PostOnly => Answer {
                headers: &[("Allow", "POST")],
                ..Answer::method_not_allowed(connection)
            },
            Refusal::Redirect(location) => Answer::moved(location, connection),
            Refusal::UnsupportedMediaType => Answer {
                headers: &[("Accept-Post", ACCEPT_POST)],
                ..Answer::empty(415, connection)
            },
            Refusal::Because {
                status,
                message,
                retry_after,
                ..
            } => {
                text = format!("{message}\n");
                let answer = Answer::text(*status, text.as_bytes(), connection);
                Answer {
                    retry_after_secs: *retry_after,
                    ..answer
                }
            }
            Refusal::Relayed { status, .. } => {
                text = format!("{}\n", reason_phrase(*status));
                Answer::text(*status, text.as_bytes(), connection)
            }
            Refusal::Unanswered => Answer::text(500, b"Failed to process request\n", connection),
        };
        self.write(&if head_only { answer.for_head() } else { answer })
    }

    fn write(&mut self, answer: &Answer<'_>) -> u16 {
        self.out.clear();
        answer.write(&mut self.out);
        answer.status
    }

    /// Sends `out`. Returns whether the client took it.
    async fn send(&mut self) -> bool {
        // Exact enough: timeouts are kept to within a sweep, and no core goes longer without reading the clock.
        let deadline = clock::recent().after(self.inbound.setup.plan.write_timeout);
        self.watch.arm(deadline, Expiry::Stop);
        let (sent, out) = self.writer.write_all(std::mem::take(&mut self.out)).await;
        self.out = out;
        self.out.clear();
        self.out.shrink_to(ANSWER_BYTES_KEPT);
        self.watch.disarm();
        sent.is_ok()
    }

    async fn send_and_linger(&mut self) {
        if self.send().await {
            self.writer.finish();
            socket::stop_sending(self.fd);
            self.watch.arm(clock::now().after(LINGER), Expiry::Stop);
            self.inlet.linger().await;
        }
    }
}

/// The content type of a Push body that we make ourselves; `None` where the client's passes through.
fn outgoing_type(dress: Dress, verbatim: bool) -> Option<&'static str> {
    match (verbatim, dress.codec.protocol()) {
        (false, _) => Some("application/proto"),
        (true, Protocol::GrpcWeb) if dress.codec.is_json() => Some("application/json"),
        (true, Protocol::GrpcWeb) => Some("application/proto"),
        (true, _) => None,
    }
}

/// Puts a push on every queue, and waits for its verdict where the policy says so.
async fn offer(inbound: &Inbound, parts: PushParts) -> Result<(), Refusal> {
    let setup = &inbound.setup;
    let mode = match setup.plan.ack {
        AckPolicy::Queued => AckMode::Detached,
        AckPolicy::First => AckMode::First,
        AckPolicy::All => AckMode::All,
        AckPolicy::Stored => AckMode::Stored,
    };
    let deadline = parts.client_deadline;
    let push = Arc::new(Push::new(parts, mode, setup.fanout.len()));
    wait_for_disk(inbound).await;
    setup.fanout.offer(&push)?;
    if mode == AckMode::Detached {
        give_way(inbound).await;
        return Ok(());
    }
    let verdict = match deadline {
        Mono::NEVER => push.verdict().await,
        deadline => {
            let left = deadline.since(clock::now());
            Box::pin(monoio::time::timeout(left, push.verdict()))
                .await
                .map_err(|_| Refusal::deadline_exceeded())?
        }
    };
    Refusal::from_verdict(verdict).map_or(Ok(()), Err)
}

/// Lets a disk that is behind take what it was given before more is put on it: for want of room on the way to it a parcel
/// would be dropped, or under `--ack stored` refused.
async fn wait_for_disk(inbound: &Inbound) {
    for _ in 0..DISK_LOOKS {
        if !inbound.setup.fanout.is_pressed() {
            return;
        }
        monoio::time::sleep(DISK_LOOK_EVERY).await;
    }
}

/// Lets the writers of a busy core work where parcels come faster than they are sent: otherwise clients would fill the
/// queues of good destinations as fast as one core can receive, and the queues would overflow. Where the core has time to
/// spare it is the destination that is slow, and that is no concern of clients.
async fn give_way(inbound: &Inbound) {
    for _ in 0..TURNS_GIVEN {
        if !inbound.sweeper.is_busy() || !inbound.setup.fanout.is_crowded() {
            return;
        }
        monoio::time::sleep(TURN_MIN).await;
    }
}

/// A refusal as a Connect or gRPC error: code, message, and when to come back.
fn connect_error(refusal: &Refusal) -> (Code, String, Option<u64>) {
    match refusal {
        Refusal::Because {
            code,
            message,
            retry_after,
            ..
        } => (*code, message.clone(), *retry_after),
        Refusal::Relayed { status, code } => {
            let code = code.unwrap_or_else(|| Code::from_http_status(*status));
            (code, format!("a destination answered {status}"), None)
        }
        Refusal::Unanswered => (Code::Unavailable, "no destination answered".into(), None),
        other => (Code::Unknown, other.reason().replace('_', " "), None),
    }
}
