//! The side door: clients that speak HTTP/2, gRPC among them, served on the control plane.
//!
//! ```text
//!  core: accept, TLS ─▶ h2 agreed on (ALPN), or its preface (--h2c) ─▶ SideDoor ─▶ control plane: hyper
//!                                                                                     │ Lines, Body
//!                        queues ◀── put ◀── parts ◀── prepare (understand.rs) ◀───────┘
//! ```
//! HTTP/2 is hyper's; what a request means and what it is answered is the code that HTTP/1.1 uses. A body is copied once,
//! out of its frames into buffers that count against `--memory-limit`.
//!
//! A connection keeps its place of `--conn-limit`. Everything a client can hold is bounded: 100 requests at a time, each for
//! `--read-timeout`; 64 KiB of headers; 1 MiB of body bytes on their way. Streams that it resets as fast as it opens them
//! (CVE-2023-44487) and header blocks without an end finish the connection; that is the work of `h2` below hyper. One
//! without a request for `--idle-timeout` is closed, however many other frames it sends, and sooner where others need its
//! place.

mod debuginfo;
mod wire;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use hyper::server::conn::http2::Builder;
use hyper::service::Service;
use hyper::{Request, Response, StatusCode};
use tokio::sync::{Notify, mpsc};

use super::inlet::{Body, ReceiveError};
use super::tally::{Closed, CopySite, RouteLabel};
use super::understand::{
    Carrier, Dress, Lines, Refusal, Wanted, charge_if_much, parts, place_of, prepare, put,
};
use super::{Bench, Course, DISK_LOOK_EVERY, DISK_LOOKS, InboundSetup, Place, reply};
use crate::fanout::Fanout;
use crate::fanout::push::PushParts;
use crate::http::{Answer, Connection, Method};
use crate::profile::connect::Protocol;
use crate::runtime::clock::{self, Mono};
use crate::runtime::phase::{self, Phase};
use crate::runtime::pool::{self, BUFFER_BYTES_MIN, Buffer, Charge};
use crate::runtime::sweeper::{SWEEP_EVERY, YIELD_IDLE_MIN};
use crate::runtime::tls::Session;
use wire::Wire;

/// Requests of one connection at a time, as in Alloy (WIRE.md 5.1).
const STREAMS_MAX: u32 = 100;
/// Headers of one request, its path included: what HTTP/1.1 allows its headers.
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// Body bytes of one request, and of one connection, that may be on their way: they are taken out at once.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// What waits to be sent on one stream: answers are a few hundred bytes.
const SEND_BYTES_MAX: usize = 16 << 10;
/// First and largest buffer of a body. Each is as large as what came before, so that what is announced costs nothing.
const BODY_BUFFER_MIN: usize = 16 << 10;
const BODY_BUFFER_MAX: usize = 1 << 20;
/// How long a connection that is asked to end (GOAWAY) may take where no request is under way.
const PARTING_MAX: Duration = Duration::from_secs(2);

/// A client on its way from its core to the control plane.
pub struct Visitor {
    /// Its connection.
    pub stream: std::net::TcpStream,
    /// Its TLS, whose handshake is over.
    pub session: Option<Session>,
    /// What has been received and not yet looked at: ciphertext where there is a session.
    pub received: Vec<u8>,
    /// Its place under `--conn-limit`.
    pub place: Place,
}

/// Where cores hand clients over.
#[derive(Clone)]
pub struct SideDoor(mpsc::UnboundedSender<Visitor>);

/// Those who have been handed over. Never more than `--conn-limit`: each has a place.
pub type Visitors = mpsc::UnboundedReceiver<Visitor>;

impl SideDoor {
    /// A door, and its other side.
    pub fn new() -> (Self, Visitors) {
        let (sender, visitors) = mpsc::unbounded_channel();
        (Self(sender), visitors)
    }

    /// Hands a client over.
    pub fn let_in(&self, visitor: Visitor) {
        // Nobody on the other side means that the process ends; the client's connection closes.
        let _ = self.0.send(visitor);
    }
}

/// What all connections here share.
pub struct House {
    setup: InboundSetup,
    bench: RefCell<Rc<Bench>>,
    guests: RefCell<Vec<Rc<Guest>>>,
}

/// One connection, as others see it.
struct Guest {
    /// Requests under way.
    active: Cell<usize>,
    /// Uploads of debuginfo among them.
    uploads: Cell<usize>,
    /// Since when there are none.
    idle_since: Cell<Mono>,
    /// Rung when it is to end.
    leave: Notify,
}

impl Guest {
    fn idle_since(&self) -> Option<Mono> {
        (self.active.get() == 0).then(|| self.idle_since.get())
    }
}

/// A request under way.
struct UnderWay(Rc<Guest>);

impl UnderWay {
    fn of(guest: &Rc<Guest>) -> Self {
        guest.active.set(guest.active.get() + 1);
        Self(guest.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.idle_since.set(clock::now());
    }
}

impl House {
    /// Nobody has come yet. Pushes go on `course`.
    pub fn new(setup: InboundSetup, course: Course) -> Rc<Self> {
        Rc::new(Self {
            setup,
            bench: RefCell::new(Bench::new(course)),
            guests: RefCell::default(),
        })
    }

    /// Sends pushes whose head comes from now on on `course`.
    pub fn follow(&self, course: Course) {
        self.bench.replace(Bench::new(course));
    }

    /// Serves all who come, until every core is gone. Must be called on a tokio `LocalSet`.
    pub async fn serve(self: Rc<Self>, mut visitors: Visitors) {
        tokio::task::spawn_local(self.clone().make_room());
        while let Some(visitor) = visitors.recv().await {
            tokio::task::spawn_local(self.clone().entertain(visitor));
        }
    }

    /// Shows the cores since when the longest-idle connection here is idle, and ends it when one of them needs its place.
    async fn make_room(self: Rc<Self>) {
        let connections = &self.setup.connections;
        let shown = &connections.cores[self.setup.core];
        loop {
            let since = self.longest_idle().map_or(Mono::NEVER, |(since, _)| since);
            shown.since.store(since.0, Ordering::Relaxed);
            let asked = tokio::time::timeout(SWEEP_EVERY, shown.wanted.notified()).await;
            if asked.is_ok()
                && connections.is_full()
                && let Some((_, guest)) = self.longest_idle()
            {
                guest.leave.notify_one();
            }
        }
    }

    /// The connection that is idle longest, and for so long that it may make room for others.
    fn longest_idle(&self) -> Option<(Mono, Rc<Guest>)> {
        let now = clock::now();
        let guests = self.guests.borrow();
        let idle = guests
            .iter()
            .filter_map(|guest| Some((guest.idle_since()?, guest)));
        let longest = idle
            .filter(|(since, _)| now.since(*since) >= YIELD_IDLE_MIN)
            .min_by_key(|(since, _)| *since);
        longest.map(|(since, guest)| (since, guest.clone()))
    }

    /// Serves one connection to its end.
    async fn entertain(self: Rc<Self>, visitor: Visitor) {
        let Visitor {
            stream,
            session,
            received,
            place,
        } = visitor;
        let Ok(stream) = tokio::net::TcpStream::from_std(stream) else {
            self.setup.tally.refused("accept_failed");
            self.setup.tally.closed(Closed::Error);
            return;
        };
        let guest = Rc::new(Guest {
            active: Cell::new(0),
            uploads: Cell::new(0),
            idle_since: Cell::new(clock::now()),
            leave: Notify::new(),
        });
        self.guests.borrow_mut().push(guest.clone());
        let served = Host {
            house: self.clone(),
            guest: guest.clone(),
        };
        let connection = Builder::new(OnThisThread)
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BYTES_MAX)
            .auto_date_header(false)
            .serve_connection(Wire::new(stream, session, received), served);
        let why = self.attend(connection, &guest).await;
        self.setup.tally.closed(why);
        self.guests
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, &guest));
        drop(place);
    }

    /// Drives a connection, and ends it when it has been idle too long or is too old, when others need its place, or at a
    /// shutdown. Returns why it ended.
    async fn attend<C: Drive>(&self, connection: C, guest: &Guest) -> Closed {
        let mut connection = pin!(connection);
        let mut phase = self.setup.phase.clone();
        let idle_timeout = self.setup.plan.idle_timeout;
        let retire_at = self.setup.retire_at();
        let mut leaving: Option<(Mono, Closed)> = None;
        loop {
            let now = clock::now();
            let idle_end = guest
                .idle_since()
                .map_or(Mono::NEVER, |since| since.after(idle_timeout));
            let look_at = match leaving {
                Some((until, _)) => until,
                None => idle_end.min(retire_at).min(now.after(idle_timeout)),
            };
            let mut asked = None;
            tokio::select! {
                result = connection.as_mut() => {
                    let why = match result {
                        Ok(()) => Closed::Client,
                        Err(error) => {
                            tracing::debug!(%error, "an HTTP/2 connection ended");
                            Closed::Error
                        }
                    };
                    return leaving.map_or(why, |(_, why)| why);
                }
                () = tokio::time::sleep(look_at.since(now)) => {}
                () = guest.leave.notified() => asked = Some(Closed::MadeRoom),
                () = phase::reached(&mut phase, Phase::Draining), if leaving.is_none() => {
                    asked = Some(Closed::Shutdown);
                }
            }
            let now = clock::now();
            let idle_since = guest.idle_since();
            match leaving {
                // What is under way is finished.
                Some((until, why)) if now >= until && idle_since.is_some() => return why,
                Some((until, why)) if now >= until => leaving = Some((now.after(PARTING_MAX), why)),
                Some(_) => {}
                None => {
                    let too_long = idle_since.is_some_and(|since| now.since(since) >= idle_timeout);
                    let why = asked
                        .or((now >= retire_at).then_some(Closed::MaxAge))
                        .or(too_long.then_some(Closed::IdleTimeout));
                    if let Some(why) = why {
                        connection.as_mut().graceful_shutdown();
                        leaving = Some((now.after(PARTING_MAX), why));
                    }
                }
            }
        }
    }

    /// One request, from its head to its answer.
    async fn respond(&self, guest: &Rc<Guest>, request: Request<Incoming>) -> Response<Reply> {
        let started = clock::now();
        let (head, body) = request.into_parts();
        let method = method_of(&head.method);
        let mut label = RouteLabel::Other;
        let mut dress = None;
        let handled = self
            .handle(guest, (&head, body), method, started, &mut label, &mut dress)
            .await;
        let (result, passed) = match handled {
            Ok(passed) => (Ok(()), passed),
            Err(refusal) => (Err(refusal), None),
        };
        let is_grpc = dress.is_some_and(|dress| dress.codec.protocol() == Protocol::Grpc);
        let trailers = is_grpc && result.is_ok();
        let response = passed.unwrap_or_else(|| {
            reply::answer(
                dress,
                &result,
                method == Method::Head,
                Connection::KeepAlive,
                |answer| to_response(answer, is_grpc, trailers),
            )
        });
        let tally = &self.setup.tally;
        let took = clock::now().since(started);
        tally.answered(method, label, response.status().as_u16(), took);
        if let Err(refusal) = &result {
            tally.refused(refusal.reason());
        }
        response
    }

    /// Returns the answer of the destination, where that is passed on.
    async fn handle(
        &self,
        guest: &Rc<Guest>,
        (head, body): (&hyper::http::request::Parts, Incoming),
        method: Method,
        started: Mono,
        label: &mut RouteLabel,
        dress: &mut Option<Dress>,
    ) -> Result<Option<Response<Reply>>, Refusal> {
        let setup = &self.setup;
        let query = head.uri.query().map(str::as_bytes);
        let route = match place_of(method == Method::Post, head.uri.path().as_bytes(), query)? {
            Wanted::Push(route, route_label) => {
                *label = route_label;
                route
            }
            Wanted::Debuginfo(procedure, path) => {
                *label = RouteLabel::Debuginfo(procedure);
                // Rare, and its state is large.
                let passing = self.pass_through(procedure, path, (head, body), guest, started, dress);
                return Box::pin(passing).await;
            }
        };
        let length = body.size_hint().exact();
        let query = query.unwrap_or_default();
        let bench = self.bench.borrow().clone();
        let prepared =
            prepare(setup, &bench, route, query, &head.headers, length).map_err(|(known, refusal)| {
                *dress = known;
                refusal
            })?;
        *dress = prepared.dress;
        let held = prepared.query.as_ref().map_or(0, Bytes::len) + prepared.fields.len();
        let meanwhile = charge_if_much(setup, held)?;
        let left = started.after(setup.plan.read_timeout).since(clock::now());
        let body = tokio::time::timeout(left, self.receive(body, length, setup.plan.body_limit))
            .await
            .unwrap_or(Err(ReceiveError::TimedOut))?;
        setup.tally.received(body.bytes);
        drop(meanwhile);
        let (parts, rejected) = parts(setup, &bench, route, prepared, body, started, clock::now())?;
        if let Some(parts) = parts {
            let deadline = parts.client_deadline;
            wait_for_disk(&bench.course.fanout, &parts).await;
            let push = put(setup, &bench, parts)?;
            drop(bench); // nothing more is offered
            if let Some(push) = push {
                let left = match deadline {
                    Mono::NEVER => Duration::MAX,
                    deadline => deadline.since(clock::now()),
                };
                let verdict = tokio::time::timeout(left, push.verdict())
                    .await
                    .map_err(|_| Refusal::deadline_exceeded())?;
                Refusal::from_verdict(verdict).map_or(Ok(()), Err)?;
            }
        }
        rejected.map_or(Ok(None), Err)
    }

    /// Takes a body out of its frames, into buffers that count.
    async fn receive(
        &self,
        mut body: Incoming,
        length: Option<u64>,
        limit: u64,
    ) -> Result<Body, ReceiveError> {
        let setup = &self.setup;
        let mut whole = Body::default();
        let mut filling: (Buffer, Option<Charge>) = (Buffer::new(), None);
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let Ok(data) = frame.map_err(|_| ReceiveError::Truncated)?.into_data() else {
                continue;
            };
            if whole.bytes + data.len() as u64 > limit {
                return Err(ReceiveError::TooLarge);
            }
            let mut rest = &data[..];
            while !rest.is_empty() {
                let (buffer, charge) = &mut filling;
                if buffer.len() == buffer.capacity() {
                    let want = buffer_for(whole.bytes, length);
                    let more = setup.memory.try_charge(pool::capacity_for(want));
                    let more = Some(more.ok_or(ReceiveError::NoMemory)?);
                    let full = std::mem::replace(buffer, pool::acquire(want));
                    finish(&mut whole, full, std::mem::replace(charge, more));
                }
                let step = rest.len().min(buffer.capacity() - buffer.len());
                buffer.extend_from_slice(&rest[..step]);
                whole.bytes += step as u64;
                rest = &rest[step..];
            }
            setup.tally.copied(CopySite::Http2, data.len());
        }
        finish(&mut whole, filling.0, filling.1);
        Ok(whole)
    }
}

/// As over HTTP/1.1: a disk that is behind takes what it was given before more is put on it.
async fn wait_for_disk(fanout: &Fanout, next: &PushParts) {
    for _ in 0..DISK_LOOKS {
        if !fanout.is_pressed(next) {
            return;
        }
        tokio::time::sleep(DISK_LOOK_EVERY).await;
    }
}

/// Adds a full buffer to a body.
fn finish(body: &mut Body, buffer: Buffer, charge: Option<Charge>) {
    if !buffer.is_empty() {
        body.pinned_bytes += charge.as_ref().map_or(0, Charge::bytes);
        body.segments.push(pool::freeze(buffer, charge));
    }
}

/// The next buffer of a body of which `received` bytes are here: as much as came before, or what is still to come.
fn buffer_for(received: u64, length: Option<u64>) -> usize {
    let grown = usize::try_from(received)
        .unwrap_or(usize::MAX)
        .clamp(BODY_BUFFER_MIN, BODY_BUFFER_MAX);
    let left = length.map_or(u64::MAX, |length| length.saturating_sub(received));
    usize::try_from(left)
        .unwrap_or(usize::MAX)
        .clamp(BUFFER_BYTES_MIN, grown)
}

/// hyper's connection, as far as it is driven here.
trait Drive: Future<Output = hyper::Result<()>> {
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl Drive for hyper::server::conn::http2::Connection<Wire, Host, OnThisThread> {
    fn graceful_shutdown(self: Pin<&mut Self>) {
        hyper::server::conn::http2::Connection::graceful_shutdown(self);
    }
}

/// What hyper calls for each request of one connection.
struct Host {
    house: Rc<House>,
    guest: Rc<Guest>,
}

impl Service<Request<Incoming>> for Host {
    type Response = Response<Reply>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (house, under_way) = (self.house.clone(), UnderWay::of(&self.guest));
        Box::pin(async move {
            let response = house.respond(&under_way.0, request).await;
            drop(under_way);
            Ok(response)
        })
    }
}

/// Runs what hyper spawns where it is spawned.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

impl Lines for HeaderMap {
    const CARRIER: Carrier = Carrier::Http2;

    fn value(&self, name: &'static str) -> Option<&[u8]> {
        self.get(name).map(HeaderValue::as_bytes)
    }

    fn values(&self, name: &'static str, mut visit: impl FnMut(&[u8])) {
        self.get_all(name)
            .iter()
            .for_each(|value| visit(value.as_bytes()));
    }

    fn each(&self, mut visit: impl FnMut(&[u8], &[u8])) {
        for (name, value) in self {
            visit(name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

/// The body of an answer, and the trailer of gRPC.
struct Reply {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl hyper::body::Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.data.take().map(Frame::data);
        let frame = data.or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.data, &self.trailers) {
            (data, None) => SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64)),
            _ => SizeHint::default(),
        }
    }
}

fn to_response(answer: &Answer<'_>, is_grpc: bool, trailers: bool) -> Response<Reply> {
    let has_body = !answer.head_only && !answer.body.is_empty() && !matches!(answer.status, 204 | 304);
    let mut response = Response::new(Reply {
        data: has_body.then(|| Bytes::copy_from_slice(answer.body)),
        trailers: trailers.then(|| {
            let ok = (
                HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            );
            HeaderMap::from_iter([ok])
        }),
    });
    // Every status that we answer is one.
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    let mut put = |name: HeaderName, value: &[u8]| {
        // Values are ours, or parts of a URL that hyper has taken.
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    };
    if let Some(content_type) = answer.content_type {
        put(CONTENT_TYPE, content_type.as_bytes());
    }
    for (name, value) in answer.headers {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            put(name, value.as_bytes());
        }
    }
    if let Some(seconds) = answer.retry_after_secs {
        put(RETRY_AFTER, seconds.to_string().as_bytes());
    }
    if let Some(location) = answer.location {
        put(LOCATION, location);
    }
    if !is_grpc && !matches!(answer.status, 204 | 304) {
        put(CONTENT_LENGTH, answer.body.len().to_string().as_bytes());
    }
    response
}

fn method_of(method: &hyper::Method) -> Method {
    match *method {
        hyper::Method::POST => Method::Post,
        hyper::Method::GET => Method::Get,
        hyper::Method::HEAD => Method::Head,
        hyper::Method::PUT => Method::Put,
        hyper::Method::DELETE => Method::Delete,
        hyper::Method::OPTIONS => Method::Options,
        _ => Method::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_grow_with_what_has_come_and_not_with_what_is_announced() {
        const MIB: u64 = 1 << 20;
        for (received, length, expected) in [
            (0, Some(100), BUFFER_BYTES_MIN),
            (0, Some(256 * MIB), BODY_BUFFER_MIN),
            (0, None, BODY_BUFFER_MIN),
            (100_000, None, 100_000),
            (100_000, Some(120_000), 20_000),
            (64 * MIB, None, BODY_BUFFER_MAX),
            (10, Some(5), BUFFER_BYTES_MIN),
        ] {
            assert_eq!(buffer_for(received, length), expected, "{received} of {length:?}");
        }
    }
}
