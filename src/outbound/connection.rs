//! One keep-alive connection to a destination: one request out, one answer back.
//!
//! The whole head and body go out in one vectored write. Where the kernel takes only a part, the rest is written while
//! the answer is already listened for, so a destination that refuses early (413, 401) is heard instead of waited for.
//!
//! An exchange ends in one of: an answer; broken before its first byte (on a reused connection: stale, to be repeated at
//! once on a fresh one); broken after it; a timeout, which the core's sweeper brings about by shutting the socket down.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt};
use monoio::net::TcpStream;

use super::classify::{BODY_BYTES_KEPT, Reply};
use super::gather::Gather;
use super::oauth2::TokenProblem;
use crate::http::{
    ChunkLimits, ChunkedDecoder, HeadLimits, Piece, Progress, ResponseError, ResponseFraming, ResponseHead,
    ResponseReader, parse_retry_after,
};
use crate::profile::inflate;
use crate::runtime::clock::{self, Mono};
use crate::runtime::descriptors::{self, SHORTAGE_PAUSE, Side};
use crate::runtime::socket;
use crate::runtime::stream::{self, Handshake, Reader, Writer};
use crate::runtime::sweeper::{Expiry, Sweeper, Watch};
use crate::runtime::tls::client::Greeting;
use crate::runtime::tls::{Session, TlsFailure};

/// First read of an answer: Pyroscope's are below 300 bytes.
const RECEIVE_BYTES: usize = 1024;
/// What a lane keeps of the memory that its last answer took. The head of an answer may have been 72 KiB long
/// (`HeadLimits::for_responses`), and there may be thousands of lanes.
const RECEIVE_BYTES_KEPT: usize = 4 << 10;
/// Interim (1xx) answers in front of one answer.
const INTERIM_MAX: usize = 16;
/// A longer answer is not read to its end: the connection is closed instead.
pub(super) const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// A connection unused for longer is looked at before it is used: one system call that saves a failed send.
const QUIET_CHECK_AFTER: Duration = Duration::from_secs(1);

/// An unused connection is closed after this time. Below the keep-alive of common servers and balancers (60 s and up), so
/// that we close first.
const IDLE_MAX: Duration = Duration::from_secs(55);
/// Shortest and longest silence of a peer's kernel before it is given up.
const SILENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// Why an attempt has no answer. Never shown with an address or a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttemptError {
    /// Its name has not resolved.
    #[error("its name does not resolve")]
    Unresolved,
    /// No descriptor for a connection; nothing was tried.
    #[error(
        "this process has no file descriptor left to connect with; raise the limit of open files (ulimit -n)"
    )]
    NoDescriptors,
    /// Nothing says who we are, so nothing was sent.
    #[error("no access token: {0}")]
    NoToken(TokenProblem),
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(io::ErrorKind),
    /// The proxy gives no tunnel.
    #[error("its proxy gives no tunnel: answered {0}")]
    NoTunnel(u16),
    /// A connection, and no TLS on it.
    #[error("TLS: {0}")]
    Tls(#[from] TlsFailure),
    /// The attempt's time was over.
    #[error("no answer within the remote timeout")]
    TimedOut,
    /// The connection ended before the answer's first byte.
    #[error("the connection ended before an answer: {0}")]
    Unanswered(io::ErrorKind),
    /// The connection ended before the request was out, and the answer said that all is well.
    #[error("it accepted the profile and ended the connection before it had all of it: {0}")]
    AcceptedTooEarly(io::ErrorKind),
    /// The connection ended in the middle of the answer.
    #[error("the connection ended within the answer")]
    CutOff,
    /// What came is no HTTP answer.
    #[error("its answer is no good HTTP ({})", .0.label())]
    BadAnswer(ResponseError),
    /// The answer's chunked framing is wrong.
    #[error("its answer's body is badly framed")]
    BadBody,
    /// Interim answers without end.
    #[error("interim answers without end")]
    TooManyInterim,
}

/// What lies between a TCP connection and HTTP on it.
#[derive(Debug)]
pub struct Entry {
    /// The request for a tunnel, where a proxy stands in between.
    pub tunnel: Option<Vec<u8>>,
    /// How TLS begins.
    pub greeting: Greeting,
}

/// A connection between two requests.
pub struct Connection {
    reader: Reader,
    writer: Writer,
    watch: Watch,
    fd: std::os::fd::RawFd,
    address: SocketAddr,
    last_used: Mono,
}

/// The memory that a lane's exchanges reuse.
#[derive(Default)]
pub struct Scratch {
    /// The message on its way out; `None` while a write has it, or before the first one.
    gather: Option<Gather>,
    received: Vec<u8>,
    last: LastAnswer,
}

impl Scratch {
    /// Where the next message is loaded.
    pub fn gather(&mut self) -> &mut Gather {
        self.gather.get_or_insert_default()
    }

    /// Lets go of what belonged to one exchange.
    fn clear(&mut self) {
        self.gather().clear();
        self.received.clear();
        self.received.shrink_to(RECEIVE_BYTES_KEPT);
    }
}

/// The latest answer that had no body and kept its connection. Destinations answer in the same bytes again and again (the
/// `Date` changes once a second), and the same bytes mean the same, so they are read once.
#[derive(Default)]
struct LastAnswer {
    bytes: Vec<u8>,
    reply: Rc<Reply>,
}

impl LastAnswer {
    /// What `bytes` mean, if they are those of the last answer and nothing else.
    fn recognise(&self, bytes: &[u8]) -> Option<Exchanged> {
        (bytes == self.bytes).then(|| Exchanged {
            reply: self.reply.clone(),
            reusable: true,
        })
    }

    /// Remembers what `bytes` mean. A `Retry-After` may be a date: what it means depends on when it comes.
    fn remember(&mut self, bytes: &[u8], reply: &Rc<Reply>) {
        if bytes.len() <= RECEIVE_BYTES && reply.retry_after.is_none() {
            self.bytes.clear();
            self.bytes.extend_from_slice(bytes);
            self.reply = reply.clone();
        }
    }
}

/// An answer, and whether its connection can carry another request.
pub struct Exchanged {
    /// The answer.
    pub reply: Rc<Reply>,
    /// Whether the connection is good for more.
    pub reusable: bool,
}

impl Connection {
    /// Connects to `address` within `timeout`, for attempts of at most `remote_timeout`, and shakes hands where there is an
    /// `entry`.
    pub async fn open(
        address: SocketAddr,
        entry: Option<Entry>,
        timeout: Duration,
        remote_timeout: Duration,
        sweeper: &Rc<Sweeper>,
    ) -> Result<Self, AttemptError> {
        let deadline = clock::now().after(timeout);
        let stream = match monoio::time::timeout(timeout, TcpStream::connect_addr(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if descriptors::is_shortage(&error) => {
                descriptors::ran_out(Side::Outbound);
                monoio::time::sleep(SHORTAGE_PAUSE).await;
                while !descriptors::may_try_again() {
                    monoio::time::sleep(SHORTAGE_PAUSE).await;
                }
                return Err(AttemptError::NoDescriptors);
            }
            Ok(Err(error)) => return Err(AttemptError::Connect(error.kind())),
            Err(_) => return Err(AttemptError::Connect(io::ErrorKind::TimedOut)),
        };
        socket::tune_destination(&stream, silence_max(remote_timeout));
        let fd = stream.as_raw_fd();
        let watch = sweeper.watch(fd);
        let (reader, writer) = match entry {
            None => stream::plain(stream),
            // Its state is large and soon over.
            Some(entry) => Box::pin(enter(stream, entry, &watch, deadline)).await?,
        };
        Ok(Self {
            reader,
            writer,
            watch,
            fd,
            address,
            last_used: clock::now(),
        })
    }

    /// Where it leads.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its halves and its watch, for a message that is sent piece by piece.
    pub(super) fn into_parts(self) -> (Reader, Writer, Watch) {
        (self.reader, self.writer, self.watch)
    }

    /// Whether it still looks good for another request.
    pub fn is_fit(&self, now: Mono) -> bool {
        !self.watch.expired()
            && self.reader.is_empty()
            && (now.since(self.last_used) < QUIET_CHECK_AFTER || socket::is_quiet(self.fd))
    }

    /// Whether it is worth keeping without a request: not unused for longer than `IDLE_MAX`, and not closed by the peer.
    /// One system call.
    pub fn is_worth_keeping(&self, now: Mono) -> bool {
        now.since(self.last_used) < IDLE_MAX && socket::is_quiet(self.fd)
    }

    /// Keeps it for the next request.
    pub fn rest(&mut self, now: Mono) {
        self.last_used = now;
    }

    /// Sends what is loaded in `scratch` and reads the answer, both before `deadline`.
    pub async fn exchange(
        &mut self,
        scratch: &mut Scratch,
        deadline: Mono,
    ) -> Result<Exchanged, AttemptError> {
        self.watch.arm(deadline, Expiry::Stop);
        let result = self.send_and_receive(scratch).await;
        scratch.clear();
        self.watch.disarm();
        if result.is_err() {
            // Otherwise the kernel goes on sending what it still holds of the request, long after we have closed: a
            // destination that comes back would get it from there, and once more from us.
            socket::reset_on_close(self.fd);
        }
        match result {
            Err(_) if self.watch.expired() => Err(AttemptError::TimedOut),
            result => result,
        }
    }

    async fn send_and_receive(&mut self, scratch: &mut Scratch) -> Result<Exchanged, AttemptError> {
        let (sent, gather) = send_some(&mut self.writer, scratch.gather.take().unwrap_or_default()).await;
        scratch.gather = Some(gather);
        if !matches!(sent, Ok(true)) {
            // Boxed: its state is large, and few messages come here.
            return Box::pin(self.send_rest_and_receive(scratch, sent)).await;
        }
        let exchanged = receive(&mut self.reader, &mut scratch.received, &mut scratch.last).await?;
        Ok(self.ended(exchanged))
    }

    /// The same behind a first write that did not take all, or failed.
    async fn send_rest_and_receive(
        &mut self,
        scratch: &mut Scratch,
        sent: io::Result<bool>,
    ) -> Result<Exchanged, AttemptError> {
        let sent = match sent {
            Ok(_) => {
                let gather = scratch.gather.take().unwrap_or_default();
                let received = std::mem::take(&mut scratch.received);
                let (sent, early, gather) =
                    write_rest(&mut self.writer, gather, &mut self.reader, received).await;
                scratch.gather = Some(gather);
                scratch.received = early;
                sent
            }
            Err(error) => Err(error.kind()),
        };
        let received = receive(&mut self.reader, &mut scratch.received, &mut scratch.last).await;
        match (sent, received) {
            (Ok(true), received) => received.map(|exchanged| self.ended(exchanged)),
            (Ok(false), received) => received.map(Exchanged::closed),
            // A destination that refuses and closes while we still send leaves its answer behind. Where it accepted, it
            // cannot have kept what it never got.
            (Err(kind), Ok(Exchanged { reply, .. })) if reply.status < 300 => {
                Err(AttemptError::AcceptedTooEarly(kind))
            }
            (Err(_), Ok(exchanged)) => Ok(exchanged.closed()),
            (Err(_), Err(AttemptError::Tls(failure))) => Err(failure.into()),
            (Err(kind), Err(_)) => Err(AttemptError::Unanswered(kind)),
        }
    }

    /// An answer to a message that went out whole: bytes behind it belong to nothing.
    fn ended(&self, exchanged: Exchanged) -> Exchanged {
        Exchanged {
            reusable: exchanged.reusable && self.reader.is_empty(),
            ..exchanged
        }
    }
}

impl Exchanged {
    fn closed(self) -> Self {
        Self {
            reusable: false,
            ..self
        }
    }
}

/// How long a peer's kernel may acknowledge nothing: half an attempt, so that what is left of it can go over another
/// connection. A live host acknowledges within its round-trip time however slow its server is, unless the server has not
/// read for so long that its receive buffer is full.
fn silence_max(remote_timeout: Duration) -> Duration {
    (remote_timeout / 2).clamp(SILENCE.0, SILENCE.1)
}

/// Asks for a tunnel if need be, and shakes hands, before `deadline`.
async fn enter(
    mut stream: TcpStream,
    entry: Entry,
    watch: &Watch,
    deadline: Mono,
) -> Result<(Reader, Writer), AttemptError> {
    watch.arm(deadline, Expiry::Stop);
    let entered = async {
        if let Some(request) = entry.tunnel {
            ask_for_tunnel(&mut stream, request).await?;
        }
        let session = Session::client(entry.greeting.config, entry.greeting.name)?;
        match Handshake::new(stream, session).complete().await {
            Ok(shaken) => Ok(shaken.into_halves()),
            Err((failure, _)) => Err(AttemptError::Tls(failure)),
        }
    };
    let result = entered.await;
    watch.disarm();
    match result {
        Err(_) if watch.expired() => Err(TlsFailure::TimedOut.into()),
        result => result,
    }
}

async fn ask_for_tunnel(stream: &mut TcpStream, request: Vec<u8>) -> Result<(), AttemptError> {
    let lost = |error: io::Error| AttemptError::Unanswered(error.kind());
    let (sent, _) = stream.write_all(request).await;
    sent.map_err(lost)?;
    let mut heads = ResponseReader::new(HeadLimits::for_responses());
    let mut received: Vec<u8> = Vec::with_capacity(RECEIVE_BYTES);
    loop {
        if received.len() == received.capacity() {
            received.reserve(RECEIVE_BYTES);
        }
        let (start, end) = (received.len(), received.capacity());
        let (read, slice) = stream.read(received.slice_mut(start..end)).await;
        received = slice.into_inner();
        match read {
            Ok(1..) => {}
            Ok(0) => return Err(AttemptError::Unanswered(io::ErrorKind::UnexpectedEof)),
            Err(error) => return Err(lost(error)),
        }
        match heads.read(&received).map_err(AttemptError::BadAnswer)? {
            // The server behind it does not speak first.
            Progress::Complete(head) if (200..300).contains(&head.status) && head.bytes == received.len() => {
                return Ok(());
            }
            Progress::Complete(head) => return Err(AttemptError::NoTunnel(head.status)),
            Progress::Partial => {}
        }
    }
}

/// One write of a message. Returns whether all of it is out.
async fn send_some(writer: &mut Writer, mut gather: Gather) -> (io::Result<bool>, Gather) {
    match writer {
        Writer::Plain(write) => {
            let (written, mut gather) = write.writev(gather).await;
            let result = match written {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => Ok(gather.advance(bytes)),
                Err(error) => Err(error),
            };
            (result, gather)
        }
        Writer::Tls(tls) => {
            if tls.is_sent() {
                match tls.load(gather.pieces()) {
                    Ok(bytes) => drop(gather.advance(bytes)),
                    Err(error) => return (Err(error), gather),
                }
            }
            let sent = Box::pin(tls.send_some()).await;
            (sent.map(|sent| sent && gather.is_out()), gather)
        }
    }
}

/// Writes the rest of a message while listening. Returns whether all of it went out (false: a refusal came first), what was
/// received so far, and the message. Interim answers and an early success do not stop the writing.
async fn write_rest(
    writer: &mut Writer,
    gather: Gather,
    reader: &mut Reader,
    received: Vec<u8>,
) -> (Result<bool, io::ErrorKind>, Vec<u8>, Gather) {
    let mut listening = pin!(async move {
        let mut received = received;
        let heard = hear(reader, &mut received).await;
        (heard, received)
    });
    let mut writing = pin!(async move {
        let mut gather = gather;
        loop {
            let (sent, back) = send_some(writer, gather).await;
            gather = back;
            match sent {
                Ok(true) => return (Ok(true), gather),
                Ok(false) => {}
                Err(error) => return (Err(error.kind()), gather),
            }
        }
    });
    let (mut wrote, mut heard) = (None, None);
    let (heard, received) = poll_fn(|context| {
        if wrote.is_none()
            && let Poll::Ready(done) = writing.as_mut().poll(context)
        {
            wrote = Some(done);
        }
        if heard.is_none()
            && let Poll::Ready(got) = listening.as_mut().poll(context)
        {
            heard = Some(got);
        }
        match &heard {
            None | Some((Heard::Success, _)) if wrote.is_none() => Poll::Pending,
            _ => heard.take().map_or(Poll::Pending, Poll::Ready),
        }
    })
    .await;
    let (sent, gather) = wrote.unwrap_or((Ok(false), Gather::default()));
    match heard {
        Heard::Success | Heard::Refusal => (sent, received, gather),
        Heard::Closed(kind) => (Err(kind), received, gather),
    }
}

/// What came first while a message was being written.
pub(super) enum Heard {
    /// The head of a 2xx.
    Success,
    /// The head of another final answer, or no good HTTP.
    Refusal,
    /// The end of the connection.
    Closed(io::ErrorKind),
}

/// Listens until the head of a final answer is there; it stays in `received`, interim ones do not.
pub(super) async fn hear(reader: &mut Reader, received: &mut Vec<u8>) -> Heard {
    let mut heads = ResponseReader::new(HeadLimits::for_responses());
    let mut interim = 0;
    loop {
        match fill(reader, received).await {
            Ok(1..) => {}
            Ok(0) => return Heard::Closed(io::ErrorKind::UnexpectedEof),
            Err(error) => return Heard::Closed(error.kind()),
        }
        while !received.is_empty() {
            match heads.read(received) {
                Ok(Progress::Complete(head)) if head.status < 200 && interim < INTERIM_MAX => {
                    interim += 1;
                    received.drain(..head.bytes);
                    heads.reset();
                }
                Ok(Progress::Complete(head)) if head.status < 300 => return Heard::Success,
                Ok(Progress::Complete(_)) | Err(_) => return Heard::Refusal,
                Ok(Progress::Partial) => break,
            }
        }
    }
}

/// Reads one answer; `received` may hold its beginning.
async fn receive(
    reader: &mut Reader,
    received: &mut Vec<u8>,
    last: &mut LastAnswer,
) -> Result<Exchanged, AttemptError> {
    if received.is_empty() {
        match fill(reader, received).await {
            Ok(1..) => {}
            Ok(0) => return Err(AttemptError::Unanswered(io::ErrorKind::UnexpectedEof)),
            Err(error) => return Err(unanswered(&error)),
        }
    }
    match last.recognise(received) {
        Some(exchanged) => Ok(exchanged),
        // Boxed: its state is large, and most answers do not come here.
        None => Box::pin(receive_unknown(reader, received, last)).await,
    }
}

/// What a read that brought nothing of an answer means: TLS says why it failed.
fn unanswered(error: &io::Error) -> AttemptError {
    TlsFailure::within(error).map_or(AttemptError::Unanswered(error.kind()), AttemptError::Tls)
}

/// Reads one answer whose first bytes are in `received`.
async fn receive_unknown(
    reader: &mut Reader,
    received: &mut Vec<u8>,
    last: &mut LastAnswer,
) -> Result<Exchanged, AttemptError> {
    let mut heads = ResponseReader::new(HeadLimits::for_responses());
    for _ in 0..=INTERIM_MAX {
        let head = loop {
            if !received.is_empty() {
                match heads.read(received).map_err(AttemptError::BadAnswer)? {
                    Progress::Complete(head) => break head,
                    Progress::Partial => {}
                }
            }
            let was_empty = received.is_empty();
            match fill(reader, received).await {
                Ok(1..) => {}
                _ if !was_empty => return Err(AttemptError::CutOff),
                Ok(0) => return Err(AttemptError::Unanswered(io::ErrorKind::UnexpectedEof)),
                Err(error) => return Err(unanswered(&error)),
            }
        };
        if head.status >= 200 {
            return finish(reader, received, head, last).await;
        }
        received.drain(..head.bytes);
        heads.reset();
    }
    Err(AttemptError::TooManyInterim)
}

/// Reads the body of the answer whose head is complete, keeping its first bytes.
async fn finish(
    reader: &mut Reader,
    received: &mut Vec<u8>,
    head: ResponseHead,
    last: &mut LastAnswer,
) -> Result<Exchanged, AttemptError> {
    let mut reply = Reply {
        status: head.status,
        content_type: head.value(received, "content-type").map(<[u8]>::to_vec),
        retry_after: head.value(received, "retry-after").and_then(|value| {
            let date = head.value(received, "date");
            parse_retry_after(value, date, clock::unix_now().as_secs())
        }),
        location: head.value(received, "location").map(<[u8]>::to_vec),
        body: Vec::new(),
    };
    let is_bare = matches!(head.framing, ResponseFraming::Empty | ResponseFraming::Length(0));
    if is_bare && head.keep_alive && received.len() == head.bytes {
        let reply = Rc::new(reply);
        last.remember(received, &reply);
        return Ok(Exchanged {
            reply,
            reusable: true,
        });
    }
    // A Push says that it takes gzip, and what a refusal says has a code (WIRE.md 4.2).
    let is_gzip = head.status >= 300 && head.value(received, "content-encoding") == Some(b"gzip");
    received.drain(..head.bytes);
    let whole = match head.framing {
        ResponseFraming::Empty | ResponseFraming::Length(0) => received.is_empty(),
        ResponseFraming::Length(bytes) => {
            let mut left = bytes;
            loop {
                let piece = received.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                keep(&mut reply.body, &received[..piece]);
                left -= piece as u64;
                received.drain(..piece);
                if left == 0 {
                    break received.is_empty();
                }
                if bytes > ANSWER_BYTES_MAX {
                    break false;
                }
                more(reader, received).await?;
            }
        }
        ResponseFraming::Chunked => read_chunked(reader, received, &mut reply.body).await?,
        ResponseFraming::UntilClose => {
            let mut bytes = 0;
            loop {
                keep(&mut reply.body, received);
                bytes += received.len() as u64;
                received.clear();
                if bytes > ANSWER_BYTES_MAX {
                    break false;
                }
                match fill(reader, received).await {
                    Ok(1..) => {}
                    // TLS says whether this was the end or a cut.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        return Err(AttemptError::CutOff);
                    }
                    _ => break false,
                }
            }
        }
    };
    if is_gzip {
        reply.body = inflate::beginning(&reply.body, BODY_BYTES_KEPT);
    }
    Ok(Exchanged {
        reply: Rc::new(reply),
        reusable: whole && head.keep_alive,
    })
}

async fn read_chunked(
    reader: &mut Reader,
    received: &mut Vec<u8>,
    kept: &mut Vec<u8>,
) -> Result<bool, AttemptError> {
    let mut decoder = ChunkedDecoder::new(ChunkLimits::default());
    let mut bytes = 0;
    loop {
        let mut at = 0;
        loop {
            match decoder.next(&received[at..]).map_err(|_| AttemptError::BadBody)? {
                Piece::Data(range) => {
                    bytes += range.len() as u64;
                    keep(kept, &received[at + range.start..at + range.end]);
                    at += range.end;
                }
                Piece::End(used) => return Ok(at + used == received.len()),
                Piece::Starved => break,
            }
        }
        received.clear();
        if bytes > ANSWER_BYTES_MAX {
            return Ok(false);
        }
        more(reader, received).await?;
    }
}

fn keep(kept: &mut Vec<u8>, piece: &[u8]) {
    let room = BODY_BYTES_KEPT - kept.len();
    kept.extend_from_slice(&piece[..piece.len().min(room)]);
}

pub(super) async fn more(reader: &mut Reader, received: &mut Vec<u8>) -> Result<(), AttemptError> {
    match fill(reader, received).await {
        Ok(1..) => Ok(()),
        _ => Err(AttemptError::CutOff),
    }
}

/// Receives behind what is there already.
async fn fill(reader: &mut Reader, received: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = std::mem::take(received);
    if buffer.capacity() - buffer.len() < RECEIVE_BYTES / 2 {
        buffer.reserve(RECEIVE_BYTES);
    }
    let end = buffer.capacity();
    let (result, buffer) = reader.read(buffer, end).await;
    *received = buffer;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_same_bytes_are_recognised() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let mut last = LastAnswer::default();
        assert!(last.recognise(answer).is_none());
        let reply = Rc::new(Reply {
            status: 200,
            ..Reply::default()
        });
        last.remember(answer, &reply);
        let again = last.recognise(answer).expect("the same bytes");
        assert!(Rc::ptr_eq(&again.reply, &reply) && again.reusable);
        for (name, other) in [
            ("its beginning", &answer[..answer.len() - 1]),
            ("more behind it", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nH"),
            ("another status", b"HTTP/1.1 500 OK\r\nContent-Length: 0\r\n\r\n"),
        ] {
            assert!(last.recognise(other).is_none(), "{name}");
        }
        let later = Rc::new(Reply {
            retry_after: Some(Duration::from_secs(1)),
            ..Reply::default()
        });
        last.remember(
            b"HTTP/1.1 503 x\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
            &later,
        );
        assert!(
            last.recognise(answer).is_some(),
            "what depends on the time is not remembered"
        );
    }
}
