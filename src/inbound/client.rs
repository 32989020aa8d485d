//! One client connection: receive a request, offer it to the destinations, answer, and so on.
//!
//! ```text
//!   ┌─▶ waiting ──first byte──▶ head ──▶ body ──▶ offered ──(--ack first|all: verdict)──▶ answered ─┐
//!   │      │ idle timeout,        │ refused: answer, then skip or linger                            │
//!   │      ▼ made room: closed    ▼ read timeout: 408 and closed                                    │
//!   └────────────────────────────────────── keep-alive ─────────────────────────────────────────────┘
//! ```
//! A push that is here whole when its first bytes are looked at, which nearly every one is, goes from head to queues without
//! waiting (`Client::begin`): all that takes lies on the stack, which is warm, and a connection keeps little while it waits
//! for the verdict. Whatever has to wait earlier takes the long way (`Client::serve_further`), whose state is on the heap.
//!
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
use crate::fanout::call::CallAnswer;
use crate::fanout::push::PushParts;
use crate::fanout::{Fanout, Gate, Push};
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

/// What has come of the first look at a request.
enum Begun {
    /// Its answer is written.
    Answered(Written),
    /// Its answer has to wait.
    Offered(Offered),
    /// There is more to it, behind its head if that is here. Boxed, as it would be kept while answers wait.
    Further(Option<Box<RequestHead>>),
}

/// A push that goes on the queues.
struct Offered {
    terms: Terms,
    route: RouteLabel,
    dress: Option<Dress>,
    /// Why a part of it is not.
    rejected: Option<Box<Refusal>>,
    awaited: Awaited,
}

/// What the answer to a push waits for.
enum Awaited {
    /// What becomes of it.
    Verdict(Arc<Push>),
    /// That the writers come to this destination's parcels.
    Room(&'static Gate),
    /// That the disk takes what it was given before; nothing is on the queues until then.
    Disk(Rc<Bench>, Box<PushParts>),
}

/// What still matters of a head once the request is understood.
#[derive(Clone, Copy)]
struct Terms {
    method: Method,
    head_bytes: usize,
    framing: Framing,
    expect_continue: bool,
    asked: Connection,
}

impl Terms {
    fn of(head: &RequestHead) -> Self {
        Self {
            method: head.method,
            head_bytes: head.bytes,
            framing: head.framing,
            expect_continue: head.expect_continue,
            asked: Connection::after(head),
        }
    }
}

/// An answer that is ready to be sent.
struct Written {
    method: Method,
    route: RouteLabel,
    status: u16,
    /// Why the request was refused.
    reason: Option<&'static str>,
    then: Then,
    /// For a long one.
    _charge: Option<Charge>,
}

/// What comes behind an answer.
#[derive(Clone, Copy)]
enum Then {
    /// The next request.
    Wait,
    /// The end.
    Close,
    /// The next request, behind the rest of this one, which nobody wants.
    Skip { head_bytes: usize, body_bytes: u64 },
    /// The end, once the client has stopped sending.
    Linger,
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
    pub(super) charge: Option<Charge>,
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
        let answer = match self.begin(started) {
            Begun::Answered(answer) => answer,
            Begun::Offered(offered) => {
                let refused = offered.awaited.end(&self.inbound).await.or(offered.rejected);
                let result = refused.map_or(Ok(()), |refusal| Err(*refusal));
                self.write_answer(offered.terms, offered.route, offered.dress, result)
            }
            Begun::Further(head) => return Box::pin(self.serve_further(head, started)).await,
        };
        self.send_answer(answer, started).await
    }

    /// Takes a push that is here whole, and puts it on every queue. Where more of it has to come, or anything is wrong with its
    /// head, nothing has been done yet.
    fn begin(&mut self, started: Mono) -> Begun {
        let Some(head) = self.inlet.whole_head() else {
            return Begun::Further(None);
        };
        self.has_served = true;
        let bytes = self.inlet.head_bytes();
        let query = head.target.query.map(|query| query.of(bytes));
        let setup = &self.inbound.setup;
        let bench = self.inbound.bench();
        let (Framing::Length(length), Ok(Wanted::Push(route, label))) = (
            head.framing,
            place_of(head.method == Method::Post, head.target.path.of(bytes), query),
        ) else {
            return Begun::Further(Some(Box::new(head)));
        };
        if !self.inlet.has_whole_body(&head) {
            return Begun::Further(Some(Box::new(head)));
        }
        let lines = HeadLines { head: &head, bytes };
        let query = query.unwrap_or_default();
        let Ok(prepared) = prepare(setup, &bench, route, query, &lines, Some(length)) else {
            return Begun::Further(Some(Box::new(head)));
        };
        let Ok(body) = self.inlet.whole_body(head.bytes, length) else {
            return Begun::Further(Some(Box::new(head)));
        };
        self.watch.disarm();
        let (terms, dress) = (Terms::of(&head), prepared.dress);
        let offered = parts(setup, &bench, route, prepared, body, started, started)
            .and_then(|(parts, rejected)| Ok((offer(&self.inbound, &bench, parts)?, rejected)));
        match offered {
            Ok((Some(awaited), rejected)) => Begun::Offered(Offered {
                terms,
                route: label,
                dress,
                rejected: rejected.map(Box::new),
                awaited,
            }),
            Ok((None, None)) => Begun::Answered(self.write_answer(terms, label, dress, Ok(()))),
            Ok((None, Some(refusal))) | Err(refusal) => {
                Begun::Answered(self.write_answer(terms, label, dress, Err(refusal)))
            }
        }
    }

    /// Serves a request whose head is `head`, or has still to come.
    async fn serve_further(&mut self, head: Option<Box<RequestHead>>, started: Mono) -> Next {
        let head = match head {
            Some(head) => head,
            None => match self.inlet.head().await {
                Ok(head) => Box::new(head),
                Err(ReceiveError::Truncated) => return Next::Close,
                Err(ReceiveError::Head(HeadError::Http2)) if self.may_speak_http2() => return Next::HandOver,
                Err(error) => {
                    let answer = self.refuse_head(error.into());
                    return self.send_answer(answer, started).await;
                }
            },
        };
        self.has_served = true;
        let handled = self.handle(&head, started).await;
        let answer = self.write_handled(Terms::of(&head), handled);
        self.send_answer(answer, started).await
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
            charge: None,
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
                        Ok(charge) => handled.charge = charge,
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
        let awaited = offer(&self.inbound, &bench, parts)?;
        drop(bench); // nothing more is offered
        let refused = match awaited {
            Some(awaited) => awaited.end(&self.inbound).await,
            None => None,
        };
        match refused.map(|refusal| *refusal).or(rejected) {
            Some(refusal) => Err(refusal),
            None => Ok(()),
        }
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

    /// Writes the answer to a request whose body has come.
    fn write_answer(
        &mut self,
        terms: Terms,
        route: RouteLabel,
        dress: Option<Dress>,
        result: Result<(), Refusal>,
    ) -> Written {
        let handled = Handled {
            result,
            route,
            dress,
            body: BodyState::Received,
            passed: None,
            charge: None,
        };
        self.write_handled(terms, handled)
    }

    /// Writes the answer into `out`.
    fn write_handled(&mut self, terms: Terms, handled: Handled) -> Written {
        let then = self.what_comes_behind(terms, handled.body);
        let connection = match then {
            Then::Wait | Then::Skip { .. } => terms.asked,
            Then::Close | Then::Linger => Connection::Close,
        };
        let status = match &handled.passed {
            Some(passed) => self.write_passed(passed, connection),
            None => self.write_result(terms.method, handled.dress, &handled.result, connection),
        };
        Written {
            method: terms.method,
            route: handled.route,
            status,
            reason: handled.result.err().map(|refusal| refusal.reason()),
            then,
            _charge: handled.charge,
        }
    }

    /// A refused head leaves nothing to go on with.
    fn refuse_head(&mut self, refusal: Refusal) -> Written {
        self.closed = Closed::Error;
        let reason = Some(refusal.reason());
        let (method, route) = (Method::Other, RouteLabel::Other);
        Written {
            status: self.write_result(method, None, &Err(refusal), Connection::Close),
            method,
            route,
            reason,
            then: Then::Linger,
            _charge: None,
        }
    }

    /// What becomes of the connection behind the answer to a request of which so much has come.
    fn what_comes_behind(&mut self, terms: Terms, body: BodyState) -> Then {
        let unread = match (body, terms.framing) {
            (BodyState::Received, _) => None,
            (BodyState::Unread, Framing::Length(length))
                if length <= SKIP_BYTES_MAX && !terms.expect_continue =>
            {
                Some(length)
            }
            _ => {
                if self.closed == Closed::Client && body == BodyState::Broken {
                    self.closed = Closed::Error;
                }
                return Then::Linger;
            }
        };
        let ends = self.ends(terms.asked, unread.is_some());
        match unread {
            None if ends => Then::Close,
            None => Then::Wait,
            Some(_) if ends => Then::Linger,
            Some(body_bytes) => Then::Skip {
                head_bytes: terms.head_bytes,
                body_bytes,
            },
        }
    }

    /// Whether the connection ends behind the answer to a request that asked for `asked`. A client that has begun to send its
    /// next request gets an answer to that too, however old the connection is.
    fn ends(&mut self, asked: Connection, skips: bool) -> bool {
        self.closed = match asked {
            Connection::Close => Closed::Client,
            _ if self.inbound.is_draining() => Closed::Shutdown,
            _ if self.is_too_old() && (skips || !self.inlet.has_bytes()) => Closed::MaxAge,
            _ => return false,
        };
        true
    }

    /// Sends the answer that is written, and counts it.
    async fn send_answer(&mut self, answer: Written, started: Mono) -> Next {
        let sent = self.send().await;
        self.count(&answer, started);
        if !sent && !matches!(answer.then, Then::Linger) {
            self.closed = Closed::Error;
        }
        match answer.then {
            // A client that has left without its answer may have sent further requests whole before: they are served too.
            Then::Wait if sent || self.inlet.has_bytes() && !self.watch.expired() => Next::Wait,
            Then::Skip {
                head_bytes,
                body_bytes,
            } if sent => Box::pin(self.skip(head_bytes, body_bytes, started)).await,
            Then::Linger if sent => {
                Box::pin(self.linger()).await;
                Next::Close
            }
            _ => Next::Close,
        }
    }

    /// Skips the body of a refused request, which has no longer to arrive than that of a good one.
    async fn skip(&mut self, head_bytes: usize, body_bytes: u64, started: Mono) -> Next {
        self.watch
            .arm(started.after(self.inbound.setup.plan.read_timeout), Expiry::Stop);
        let skipped = self.inlet.skip_body(head_bytes, body_bytes).await;
        self.watch.disarm();
        match skipped {
            Ok(()) => Next::Wait,
            Err(_) => {
                self.closed = Closed::Error;
                Next::Close
            }
        }
    }

    /// Reads on until the client has seen its last answer, or for long enough.
    async fn linger(&mut self) {
        self.writer.finish();
        socket::stop_sending(self.fd);
        self.watch.arm(clock::now().after(LINGER), Expiry::Stop);
        self.inlet.linger().await;
    }

    fn count(&mut self, answer: &Written, started: Mono) {
        let tally = &self.inbound.setup.tally;
        self.idle_since = clock::now();
        tally.answered(
            answer.method,
            answer.route,
            answer.status,
            self.idle_since.since(started),
        );
        if let Some(reason) = answer.reason {
            tally.refused(reason);
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
}

impl Awaited {
    /// Returns why the push is refused after all.
    async fn end(self, inbound: &Inbound) -> Option<Box<Refusal>> {
        let verdict = match self {
            Self::Verdict(push) => match push.client_deadline {
                Mono::NEVER => push.verdict().await,
                deadline => {
                    let left = deadline.since(clock::now());
                    match Box::pin(monoio::time::timeout(left, push.verdict())).await {
                        Ok(verdict) => verdict,
                        Err(_) => return Some(Box::new(Refusal::deadline_exceeded())),
                    }
                }
            },
            Self::Room(gate) => {
                let _ = Box::pin(monoio::time::timeout(WAY_GIVEN_MAX, gate.room())).await;
                return None;
            }
            Self::Disk(bench, parts) => return Box::pin(offer_behind_disk(inbound, bench, *parts)).await,
        };
        Refusal::from_verdict(verdict).map(Box::new)
    }
}

/// Puts a push on every queue. Returns what its answer waits for, by policy or for want of room.
fn offer(inbound: &Inbound, bench: &Rc<Bench>, parts: Option<PushParts>) -> Result<Option<Awaited>, Refusal> {
    match parts {
        None => Ok(None),
        Some(parts) if bench.course.fanout.is_pressed(&parts) => {
            Ok(Some(Awaited::Disk(bench.clone(), Box::new(parts))))
        }
        Some(parts) => offer_now(inbound, bench, parts),
    }
}

fn offer_now(inbound: &Inbound, bench: &Bench, parts: PushParts) -> Result<Option<Awaited>, Refusal> {
    Ok(match put(&inbound.setup, bench, parts)? {
        Some(push) => Some(Awaited::Verdict(push)),
        None => gate_to_wait_for(inbound, &bench.course.fanout).map(Awaited::Room),
    })
}

async fn offer_behind_disk(inbound: &Inbound, bench: Rc<Bench>, parts: PushParts) -> Option<Box<Refusal>> {
    wait_for_disk(&bench.course.fanout, &parts).await;
    let awaited = offer_now(inbound, &bench, parts);
    drop(bench); // nothing more is offered
    match awaited {
        Ok(None) => None,
        Ok(Some(awaited)) => awaited.end(inbound).await,
        Err(refusal) => Some(Box::new(refusal)),
    }
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

/// Where the writers of a busy core should be let work because parcels come faster than they are sent: otherwise clients would
/// fill the queues of good destinations as fast as one core can receive, and the queues would overflow. Where the core has
/// time to spare, or one destination keeps up, the others are slow, and that is no concern of clients.
fn gate_to_wait_for(inbound: &Inbound, fanout: &Fanout) -> Option<&'static Gate> {
    if inbound.sweeper.is_busy() {
        fanout.crowded()
    } else {
        None
    }
}
