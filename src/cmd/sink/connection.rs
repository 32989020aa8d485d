//! A sink's data plane: accept, read a request, decide, answer, again.
//!
//! ```text
//!  Head ─▶ Body (kept whole, or counted and forgotten) ─▶ fate ─▶ answer ─▶ Head | close
//!                                                        └▶ stall, reset, lie
//! ```
//! As little as possible happens per request when nothing is verified or recorded: one receive, one parse, one send of
//! bytes that were built beforehand. Not responsible for what an answer looks like (`faults.rs`) or for judging a body
//! (`verify.rs`).

use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use monoio::net::{TcpListener, TcpStream};

use super::Sink;
use super::faults::{Fate, Faults, Reply, plain_reply};
use super::record::Request;
use super::seen::Sighting;
use super::stats::CoreStats;
use super::verify::{self, Contents, Corruption, Route};
use crate::http::answer::CONTINUE;
use crate::http::{
    ChunkLimits, ChunkedDecoder, Framing, HeadLimits, HeadReader, Method, Piece, Progress, RequestHead,
    Version,
};
use crate::runtime::socket;
use crate::runtime::stream::{self, Handshake, Reader, Writer};
use crate::runtime::tls::server::ServerSide;
use crate::runtime::tls::{Session, TlsFailure};

/// What one receive asks for at most. Large enough that a large body costs few system calls, small enough to stay in the
/// second-level cache.
const RECEIVE_BYTES: usize = 64 << 10;
/// The least room for a receive; with less, the buffer grows.
const ROOM_BYTES_MIN: usize = 4 << 10;
/// How often a stalled request looks whether the faults have changed or its client has left.
const STALL_STEP: Duration = Duration::from_millis(20);
/// What a client may send behind a stalled request before we stop reading it.
const STALLED_BYTES_MAX: usize = 1 << 20;
/// A slow reader reads this many times per second.
const SLOW_READS_PER_SECOND: u64 = 20;
/// After an accept that failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Accepts until the process ends; returns only if the runtime does not take the listener.
pub async fn accept(listener: std::net::TcpListener, sink: Arc<Sink>, stats: Arc<CoreStats>) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                socket::tune_client(&stream);
                stats.connections_accepted.add(1);
                monoio::spawn(serve(stream, sink.clone(), stats.clone()));
            }
            Err(_) => monoio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Serves one connection to its end, in TLS where the sink speaks it.
async fn serve(stream: TcpStream, sink: Arc<Sink>, stats: Arc<CoreStats>) {
    let fd = stream.as_raw_fd();
    let halves = match &sink.tls {
        None => Ok(stream::plain(stream)),
        // Its state is large and soon over.
        Some(side) => Box::pin(shake_hands(stream, side)).await,
    };
    match halves {
        Ok(halves) => Connection::new(halves, fd, sink, stats.clone()).serve().await,
        Err(_) => stats.tls_failures.add(1),
    }
    stats.connections_closed.add(1);
}

async fn shake_hands(stream: TcpStream, side: &ServerSide) -> Result<(Reader, Writer), TlsFailure> {
    let session = Session::server(side.config())?;
    let shaken = Handshake::new(stream, session).complete().await;
    Ok(shaken.map_err(|(failure, _)| failure)?.into_halves())
}

struct Connection {
    reader: Reader,
    writer: Writer,
    fd: RawFd,
    /// `buffer[start..]` is what has been received and not yet consumed.
    buffer: Vec<u8>,
    start: usize,
    sink: Arc<Sink>,
    /// One load per request while the faults do not change.
    faults: Cache<Arc<ArcSwap<Faults>>, Arc<Faults>>,
    stats: Arc<CoreStats>,
}

/// Why a connection ended.
enum End {
    /// Between two requests, or as it was told to.
    Closed,
    /// Inside a request.
    Truncated,
    /// Its request could not be read; the status says why.
    Refused(u16),
}

/// A request read to its end.
struct Received {
    head: RequestHead,
    route: Route,
    /// Bytes of `pending()` that belong to it; what it had more is gone already.
    message_bytes: usize,
    body_bytes: u64,
    /// The body, if it came in chunks and is kept.
    joined: Vec<u8>,
}

impl Connection {
    fn new((reader, writer): (Reader, Writer), fd: RawFd, sink: Arc<Sink>, stats: Arc<CoreStats>) -> Self {
        let buffer = Vec::with_capacity(RECEIVE_BYTES);
        let faults = Cache::new(sink.faults.clone());
        Self {
            reader,
            writer,
            fd,
            buffer,
            start: 0,
            sink,
            faults,
            stats,
        }
    }

    async fn serve(mut self) {
        match self.serve_requests().await {
            End::Closed => {}
            End::Truncated => self.stats.truncated.add(1),
            End::Refused(status) => {
                self.stats.refused.add(1);
                self.stats.count_status(status);
                let _ = self.writer.write_all(plain_reply(status).close).await;
            }
        }
    }

    async fn serve_requests(&mut self) -> End {
        let mut heads = HeadReader::new(HeadLimits::default());
        loop {
            let request = match self.receive_request(&mut heads).await {
                Ok(request) => request,
                Err(end) => return end,
            };
            self.stats.requests.add(1);
            self.stats.bytes.add(request.body_bytes);
            self.stats.routes[request.route as usize].add(1);
            if let Err(end) = self.decide(&request).await {
                return end;
            }
            self.start += request.message_bytes;
        }
    }

    /// Reads the next request to its end.
    async fn receive_request(&mut self, reader: &mut HeadReader) -> Result<Received, End> {
        let head = loop {
            match reader.read(self.pending()) {
                Ok(Progress::Complete(head)) => break head,
                Ok(Progress::Partial) if self.receive().await => {}
                Ok(Progress::Partial) if self.pending().is_empty() => return Err(End::Closed),
                Ok(Progress::Partial) => return Err(End::Truncated),
                Err(error) => return Err(End::Refused(error.status())),
            }
        };
        if head.expect_continue && self.pending().len() == head.bytes {
            self.writer
                .write_all(CONTINUE)
                .await
                .0
                .map_err(|_| End::Truncated)?;
        }
        let route = Route::of(head.target.path.of(self.pending()));
        let mut request = Received {
            message_bytes: head.bytes,
            head,
            route,
            body_bytes: 0,
            joined: Vec::new(),
        };
        match request.head.framing {
            Framing::Length(length) => self.receive_length(&mut request, length).await?,
            Framing::Chunked => self.receive_chunks(&mut request).await?,
        }
        Ok(request)
    }

    async fn receive_length(&mut self, request: &mut Received, length: u64) -> Result<(), End> {
        if length > self.sink.body_bytes_max {
            return Err(End::Refused(413));
        }
        loop {
            let have = (self.pending().len() - request.message_bytes) as u64;
            let taken = have.min(length - request.body_bytes);
            request.body_bytes += taken;
            #[allow(clippy::cast_possible_truncation)] // at most what lies in memory
            {
                request.message_bytes += taken as usize;
            }
            if request.body_bytes == length {
                return Ok(());
            }
            self.forget(request);
            if !self.receive().await {
                return Err(End::Truncated);
            }
        }
    }

    async fn receive_chunks(&mut self, request: &mut Received) -> Result<(), End> {
        let mut decoder = ChunkedDecoder::new(ChunkLimits::default());
        loop {
            let input = &self.buffer[self.start + request.message_bytes..];
            match decoder.next(input) {
                Ok(Piece::Data(data)) => {
                    request.body_bytes += data.len() as u64;
                    if request.body_bytes > self.sink.body_bytes_max {
                        return Err(End::Refused(413));
                    }
                    if self.sink.keeps_bodies() {
                        request.joined.extend_from_slice(&input[data.clone()]);
                    }
                    request.message_bytes += data.end;
                }
                Ok(Piece::Starved) => {
                    request.message_bytes += input.len();
                    self.forget(request);
                    if !self.receive().await {
                        return Err(End::Truncated);
                    }
                }
                Ok(Piece::End(bytes)) => {
                    request.message_bytes += bytes;
                    return Ok(());
                }
                Err(error) => return Err(End::Refused(error.status())),
            }
        }
    }

    /// Lets go of what has been read of a request whose bytes nobody will look at.
    fn forget(&mut self, request: &mut Received) {
        if !self.sink.keeps_bodies() {
            self.start += request.message_bytes;
            request.message_bytes = 0;
        }
    }

    /// Does with a complete request what the faults say. `Err` ends the connection.
    async fn decide(&mut self, request: &Received) -> Result<(), End> {
        if request.route == Route::Other || request.head.method != Method::Post {
            let status = if request.route == Route::Other { 404 } else { 405 };
            return self.answer(request, &plain_reply(status), false).await;
        }
        let mut faults = self.faults.load().clone();
        if faults.stall {
            self.stats.stalls.add(1);
            faults = self.stall(&faults).await?;
        }
        if !faults.delay.is_zero() {
            monoio::time::sleep(faults.delay).await;
        }
        match faults.next(request.route) {
            Fate::Answered(reply) => self.answer(request, reply, faults.close).await,
            Fate::Reset => {
                self.judge(request, 0);
                self.stats.resets.add(1);
                socket::reset(self.fd);
                Err(End::Closed)
            }
            Fate::Lied(lie) => {
                self.judge(request, 0);
                self.stats.lies.add(1);
                let _ = self.writer.write_all(lie.bytes()).await;
                Err(End::Closed)
            }
        }
    }

    async fn answer(&mut self, request: &Received, reply: &Reply, close: bool) -> Result<(), End> {
        self.judge(request, reply.status);
        self.stats.count_status(reply.status);
        // A client of HTTP/1.0 that wants to stay would have to be told so: closing is as correct.
        let keep = request.head.keep_alive && request.head.version == Version::Http11 && !close;
        let bytes = if keep { &reply.keep } else { &reply.close };
        match self.writer.write_all(bytes.clone()).await {
            (Ok(_), _) if keep => Ok(()),
            _ => Err(End::Closed),
        }
    }

    /// Waits until the faults change; they are returned. Ends when the client leaves.
    async fn stall(&mut self, stalled: &Arc<Faults>) -> Result<Arc<Faults>, End> {
        loop {
            monoio::time::sleep(STALL_STEP).await;
            let faults = self.faults.load().clone();
            if !Arc::ptr_eq(&faults, stalled) {
                return Ok(faults);
            }
            let room = self.pending().len() < STALLED_BYTES_MAX;
            if room && !socket::is_quiet(self.fd) && !self.receive().await {
                return Err(End::Closed);
            }
        }
    }

    /// Verifies and records a complete request that is about to be answered with `status` (0: with none that is true).
    fn judge(&self, request: &Received, status: u16) {
        if !self.sink.keeps_bodies() {
            return;
        }
        let message = &self.pending()[..request.message_bytes];
        let head = &request.head;
        let body = match head.framing {
            Framing::Length(_) => &message[head.bytes..],
            Framing::Chunked => &request.joined,
        };
        let query = head.target.query.map_or(&b""[..], |query| query.of(message));
        if self.sink.verify && request.route != Route::Other {
            let contents = match request.route {
                Route::Push => {
                    let media_type = head.value(message, "content-type").unwrap_or_default();
                    verify::read_push(media_type, head.value(message, "content-encoding"), body)
                }
                _ => verify::read_ingest(query, body),
            };
            self.count(contents, (200..300).contains(&status));
        }
        if let Some(recorder) = &self.sink.recorder {
            let line = message.split(|byte| *byte == b' ').next().unwrap_or_default();
            let headers: Vec<_> = head
                .fields
                .iter()
                .map(|field| (field.name.of(message), field.value.of(message)))
                .collect();
            let recorded = recorder.write(
                Request {
                    route: request.route,
                    method: line.trim_ascii(),
                    path: head.target.path.of(message),
                    query,
                    headers: &headers,
                    body,
                },
                status,
            );
            if recorded.is_err() {
                self.stats.unrecorded.add(1);
            }
        }
    }

    fn count(&self, contents: Result<Contents, Corruption>, accepted: bool) {
        let contents = match contents {
            Ok(contents) => contents,
            Err(corruption) => {
                self.stats.corrupt[corruption as usize].add(1);
                return;
            }
        };
        if !accepted {
            return;
        }
        self.stats
            .profiles
            .add(contents.marked.len() as u64 + contents.unmarked);
        self.stats.unmarked.add(contents.unmarked);
        for (service, profiles) in &contents.services {
            self.stats.count_service(service, *profiles);
        }
        let mut seen = self
            .sink
            .seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for id in contents.marked {
            match seen.insert(id) {
                Sighting::First => self.stats.verified.add(1),
                Sighting::Again => self.stats.duplicates.add(1),
                Sighting::Unknown => self.stats.unchecked.add(1),
            }
        }
    }

    fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Receives more bytes behind the pending ones. False when the client has left.
    async fn receive(&mut self) -> bool {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        if self.buffer.capacity() - self.buffer.len() < ROOM_BYTES_MIN {
            if self.start > 0 {
                self.buffer.drain(..self.start);
                self.start = 0;
            }
            self.buffer.reserve(RECEIVE_BYTES);
        }
        let begin = self.buffer.len();
        let mut end = self.buffer.capacity();
        let bandwidth = self.faults.load().bandwidth;
        if let Some(bandwidth) = bandwidth {
            let step = usize::try_from(bandwidth.div_ceil(SLOW_READS_PER_SECOND)).unwrap_or(usize::MAX);
            end = end.min(begin.saturating_add(step));
        }
        let buffer = std::mem::take(&mut self.buffer);
        let (received, buffer) = self.reader.read(buffer, end).await;
        self.buffer = buffer;
        let Ok(received @ 1..) = received else {
            return false;
        };
        if let Some(bandwidth) = bandwidth {
            monoio::time::sleep(Duration::from_secs(1).mul_f64(received as f64 / bandwidth as f64)).await;
        }
        true
    }
}
