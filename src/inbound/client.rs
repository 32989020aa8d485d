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

use super::http2::Visitor;
use super::inlet::{Inlet, Patience, ReceiveError, Waited};
use super::tally::{Closed, RouteLabel};
use super::understand::{
    Dress, HeadLines, Prepared, Refusal, Wanted, charge_if_much, parts, place_of, prepare, put,
};
use super::{Bench, DISK_LOOK_EVERY, DISK_LOOKS, Inbound, Place, handshake, reply};
use crate::fanout::Fanout;
use crate::fanout::call::CallAnswer;
use crate::fanout::push::PushParts;
use crate::http::answer;
use crate::http::{Answer, Connection, Framing, HeadError, Method, RequestHead};
use crate::profile::route::Route;
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
/// How long we still read from a client that we have told off.
const LINGER: Duration = Duration::from_secs(2);
/// Once a shutdown has begun, how long a client that has just connected may take to send its first bytes.
const LAST_REQUEST_WAIT: Duration = Duration::from_millis(50);

/// How long a push waits at most for writers that are behind: what a thousand clients' pushes take on one core.
const WAY_GIVEN_MAX: Duration = Duration::from_millis(50);

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
    let shaken = match Box::pin(handshake::shake_hands(stream, &inbound, &side, &watch)).await {
        Ok(shaken) => shaken,
        Err(closed) => return inbound.setup.tally.closed(closed),
    };
    match (&inbound.setup.side_door, shaken.is_http2()) {
        (Some(door), true) => match shaken.into_parts() {
            Ok((stream, session, received)) => door.let_in(Visitor {
                stream,
                session: Some(session),
                received,
                place,
            }),
            Err(_) => inbound.setup.tally.refused("accept_failed"),
        },
        _ => {
            Client::new(fd, shaken.into_halves(), watch, inbound)
                .run(place)
                .await
        }
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
    /// Whether a request in HTTP/1.1 has come already.
    has_served: bool,
}

/// What comes after a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Another one.
    Wait,
    /// The end.
    Close,
    /// It was none: HTTP/2 begins.
    HandOver,
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
            retire_at: inbound.setup.retire_at(),
            closed: Closed::Client,
            inbound,
            fd,
            watch,
            inlet,
            writer,
            out: Vec::new(),
            idle_since: clock::now(),
            has_served: false,
        }
    }

    /// A connection is idle most of its life, so this future is small: what serving requests needs (3 KiB of state) lives on
    /// the heap only as long as requests keep coming, and `self` is captured as it is (an `async fn` would keep it twice).
    fn run(self, place: Place) -> impl Future<Output = ()> {
        let mut client = self;
        async move {
            loop {
                if client.wait(Patience::Quiet).await.is_none() {
                    break;
                }
                match Box::pin(client.serve()).await {
                    Next::Wait => {}
                    Next::Close => break,
                    Next::HandOver => return client.hand_over(place),
                }
            }
            client.inbound.setup.tally.closed(client.closed);
            drop(client);
            drop(place);
        }
    }

    /// Serves one request after the other, until none has come for a while.
    async fn serve(&mut self) -> Next {
        loop {
            match self.serve_one().await {
                Next::Wait => {}
                end => return end,
            }
            match self.wait(Patience::Warm).await {
                Some(Waited::Ready) => {}
                Some(Waited::Quiet) => return Next::Wait,
                None => return Next::Close,
            }
        }
    }

    /// The client speaks HTTP/2: the control plane goes on with it.
    fn hand_over(mut self, place: Place) {
        let (received, reader) = self.inlet.give_up();
        match (
            &self.inbound.setup.side_door,
            stream::into_std(reader, self.writer),
        ) {
            (Some(door), Ok(Some(stream))) => door.let_in(Visitor {
                stream,
                session: None,
                received,
                place,
            }),
            (_, Err(_)) => self.inbound.setup.tally.refused("accept_failed"),
            (None, _) | (_, Ok(None)) => {} // it is in cleartext, and there is a door where --h2c is
        }
    }

    /// Waits for the next request; `None` is the end of the connection. A request may be on its way when a shutdown begins,
    /// so even then it is waited for, a moment.
    async fn wait(&mut self, patience: Patience) -> Option<Waited> {
        if !self.inlet.has_bytes() {
            let now = self.idle_since;
            let idle_max = if self.inbound.is_draining() {
                LAST_REQUEST_WAIT
            } else {
                self.inbound.setup.plan.idle_timeout
            };
            // One that is too old is closed like one that makes room: not while its client may just be about to send.
            let retired = self.retire_at.max(now.after(YIELD_IDLE_MIN));
            self.watch.set_idle(now, now.after(idle_max).min(retired));
            match self.inlet.wait(patience).await {
                Ok(Waited::Ready) => self.watch.set_busy(),
                Ok(Waited::Quiet) => return Some(Waited::Quiet),
                Err(_) => {
                    self.closed = self.why_closed_idle();
                    return None;
                }
            }
        }
        Some(Waited::Ready)
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

    /// Serves the request that has begun to arrive.
    async fn serve_one(&mut self) -> Next {
        let started = clock::now();
        let limit = self.inbound.setup.plan.read_timeout;
        self.watch.arm(started.after(limit), Expiry::StopReceiving);
        let head = match self.inlet.head().await {
            Ok(head) => head,
            Err(ReceiveError::Truncated) => return Next::Close,
            Err(ReceiveError::Head(HeadError::Http2)) if self.may_speak_http2() => return Next::HandOver,
            Err(error) => {
                Box::pin(self.refuse_head(error.into(), started)).await;
                return Next::Close;
            }
        };
        self.has_served = true;
        let handled = self.handle(&head, started).await;
        if self.answer(&head, handled, started).await {
            Next::Wait
        } else {
            Next::Close
        }
    }

    /// Whether a preface of HTTP/2 is welcome here: at the beginning, and where the operator says so, which is in cleartext
    /// only.
    fn may_speak_http2(&self) -> bool {
        self.inbound.setup.plan.h2c && !self.has_served
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
        let query = head.target.query.map(|query| query.of(bytes));
        let path = head.target.path.of(bytes);
        let route = match place_of(head.method == Method::Post, path, query) {
            Ok(Wanted::Push(route, label)) => {
                handled.route = label;
                route
            }
            Ok(Wanted::Debuginfo(procedure, path)) => {
                // Rare, and its state is large.
                return Box::pin(self.pass_through(procedure, path, head, started)).await;
            }
            Err(refusal) => {
                if let Refusal::Redirect(location) = &refusal {
                    // Once here and once in the answer.
                    match charge_if_much(&self.inbound.setup, 2 * location.len()) {
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
        let length = match head.framing {
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        };
        let lines = HeadLines { head, bytes };
        let setup = &self.inbound.setup;
        let query = query.unwrap_or_default();
        let bench = self.inbound.bench();
        handled.result = match prepare(setup, &bench, route, query, &lines, length) {
            Ok(prepared) => {
                handled.dress = prepared.dress;
                self.receive_and_offer(bench, route, head, started, prepared, &mut handled)
                    .await
            }
            Err((dress, refusal)) => {
                handled.dress = dress;
                Err(refusal)
            }
        };
        handled
    }

    async fn receive_and_offer(
        &mut self,
        bench: Rc<Bench>,
        route: Route,
        head: &RequestHead,
        started: Mono,
        prepared: Prepared,
        handled: &mut Handled,
    ) -> Result<(), Refusal> {
        // The push is charged with them once it is whole; its body may take as long as the read timeout allows.
        let meanwhile = charge_if_much(
            &self.inbound.setup,
            prepared.query.as_ref().map_or(0, Bytes::len) + prepared.fields.len(),
        )?;
        self.continue_if_expected(head, started, handled).await?;
        let setup = &self.inbound.setup;
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
        drop(meanwhile);
        let (parts, rejected) = parts(setup, &bench, route, prepared, body, started, accepted)?;
        if let Some(parts) = parts {
            offer(&self.inbound, bench, parts).await?;
        }
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
        let status = self.write_handled(head.method, &handled, connection);
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
        let status = self.write_handled(head.method, &handled, Connection::Close);
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
        let status = self.write_result(Method::Other, None, &handled.result, Connection::Close);
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
    fn write_handled(&mut self, method: Method, handled: &Handled, connection: Connection) -> u16 {
        match &handled.passed {
            Some(passed) => self.write_passed(passed, connection),
            None => self.write_result(method, handled.dress, &handled.result, connection),
        }
    }

    fn write_passed(&mut self, passed: &CallAnswer, connection: Connection) -> u16 {
        let headers: Vec<(&str, &str)> = passed
            .headers
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        self.out.clear();
        let answer = Answer {
            headers: &headers,
            body: &passed.body,
            ..Answer::empty(passed.status, connection)
        };
        answer.write(&mut self.out);
        answer.status
    }

    /// Writes the answer into `out` and returns its status.
    fn write_result(
        &mut self,
        method: Method,
        dress: Option<Dress>,
        result: &Result<(), Refusal>,
        connection: Connection,
    ) -> u16 {
        self.out.clear();
        if let (None, Ok(())) = (dress, result) {
            self.out.extend_from_slice(answer::ok(connection));
            return 200;
        }
        let out = &mut self.out;
        reply::answer(dress, result, method == Method::Head, connection, |answer| {
            answer.write(out);
            answer.status
        })
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

/// Puts a push on every queue, and waits for its verdict where the policy says so.
async fn offer(inbound: &Inbound, bench: Rc<Bench>, parts: PushParts) -> Result<(), Refusal> {
    wait_for_disk(&bench.course.fanout, &parts).await;
    let deadline = parts.client_deadline;
    let Some(push) = put(&inbound.setup, &bench, parts)? else {
        give_way(inbound, &bench.course.fanout).await;
        return Ok(());
    };
    drop(bench); // nothing more is offered
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
async fn wait_for_disk(fanout: &Fanout, next: &PushParts) {
    for _ in 0..DISK_LOOKS {
        if !fanout.is_pressed(next) {
            return;
        }
        monoio::time::sleep(DISK_LOOK_EVERY).await;
    }
}

/// Lets the writers of a busy core work where parcels come faster than they are sent: otherwise clients would fill the
/// queues of good destinations as fast as one core can receive, and the queues would overflow. Where the core has time to
/// spare, or one destination keeps up, the others are slow, and that is no concern of clients.
async fn give_way(inbound: &Inbound, fanout: &Fanout) {
    if inbound.sweeper.is_busy()
        && let Some(gate) = fanout.crowded()
    {
        let _ = monoio::time::timeout(WAY_GIVEN_MAX, gate.room()).await;
    }
}
