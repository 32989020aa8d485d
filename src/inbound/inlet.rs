//! From a client's socket to a head and a body in segments, without copying the body.
//!
//! ```text
//!   buffer   [ ....head....|..body so far..|   room   ]        body fits the room: go on receiving into it
//!              ▲ start                      ▲ len              else: freeze it, receive the rest into a buffer
//!                                                              of exactly the right size
//!   segments  Bytes(buffer)[head..] , Bytes(rest)
//! ```
//! The first buffer of a request is as large as the connection's last request was, so requests of a steady size arrive in
//! one piece. While a connection waits for a request it keeps that buffer for a second at most, then one of
//! `QUIET_BYTES`, which costs the request that comes in the end one more receive.
//!
//! Memory: every buffer above [`BUFFER_BYTES_MIN`] is charged to `--memory-limit` from the moment it is taken, the small
//! ones from the moment they hold a body. So what is not counted is at most [`BUFFER_BYTES_MIN`] per connection.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use monoio::buf::IoBufMut;
use monoio::io::CancelableAsyncReadRent;
use smallvec::SmallVec;

use super::tally::{CopySite, Tally};
use crate::http::{
    BodyError, ChunkLimits, ChunkedDecoder, Framing, HeadError, HeadLimits, HeadReader, Piece, Progress,
    RequestHead,
};
use crate::runtime::pool::{self, BUFFER_BYTES_MIN, Buffer, Charge, MemoryBudget};
use crate::runtime::stream::Reader;
use crate::runtime::sweeper::Watch;

/// Largest first buffer of a request: bigger bodies get a buffer of their own size once their head is known.
const FIRST_BYTES_MAX: usize = 256 << 10;
/// Next buffer for a chunked body whose size nobody knows.
const CHUNKED_BYTES: usize = 64 << 10;
/// A body that is passed on as it comes is received in pieces of at most this size.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// A chunk below this size is moved up to the one before it instead of becoming a segment (a segment costs 32 bytes, an
/// iovec 16, and a reference count).
const SEGMENT_BYTES_MIN: usize = 512;
/// Room that is kept behind a request of the last size, for a query that grew.
const HEADROOM: usize = 256;
/// What a connection that has been idle for long waits with, in bytes. No request is as short, so nothing of a body gets
/// into it: the shortest is `GET / HTTP/1.0` and two line ends.
const QUIET_BYTES: usize = 16;
/// How many times as large as expected, or as a buffer for a body of unknown size, a buffer may be that waits for a request.
const BUFFER_TIMES_MAX: usize = 4;
/// ECANCELED: the sweeper wants the buffer back.
const CANCELED: i32 = 125;

/// A body, in order.
#[derive(Debug, Default)]
pub struct Body {
    /// The bytes.
    pub segments: SmallVec<[Bytes; 4]>,
    /// How many.
    pub bytes: u64,
    /// The memory that the segments keep, in bytes.
    pub pinned_bytes: u64,
}

/// How long [`Inlet::wait`] waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Until the receive buffer is given back.
    Warm,
    /// As long as the connection lives.
    Quiet,
}

/// What has come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Bytes of a request.
    Ready,
    /// Nothing: the connection is quiet now.
    Quiet,
}

/// What is still to come of a body that is received piece by piece.
pub enum Streaming {
    /// So many bytes.
    Length(u64),
    /// The decoder knows.
    Chunked(Box<ChunkedDecoder>),
}

/// Why a request could not be received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The client has closed between two requests, or we have.
    #[error("the connection is closed")]
    Closed,
    /// The client has closed, or half-closed, in the middle of a request.
    #[error("the request ended early: less arrived than its headers announced")]
    Truncated,
    /// The head is wrong or too large.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The chunked framing is wrong.
    #[error(transparent)]
    Framing(#[from] BodyError),
    /// Larger than `--body-limit`.
    #[error("the body is larger than this gateway takes (--body-limit)")]
    TooLarge,
    /// `--memory-limit` is reached.
    #[error("the gateway holds as many profiles as its memory limit allows; try again later")]
    NoMemory,
    /// The read timeout is over.
    #[error("the request did not arrive in time (--read-timeout)")]
    TimedOut,
}

/// The receiving side of one client connection.
pub struct Inlet {
    reader: Reader,
    watch: Rc<Watch>,
    memory: Arc<MemoryBudget>,
    tally: Arc<Tally>,
    heads: HeadReader,
    buffer: Buffer,
    charge: Option<Charge>,
    /// `buffer[start..]` is the request at hand.
    start: usize,
    /// What the buffers frozen for the body at hand were charged with.
    pinned_bytes: u64,
    /// How large the next first buffer should be.
    expected: usize,
    /// Whether nothing has come for so long that the receive buffer was given back.
    is_quiet: bool,
}

impl Inlet {
    /// Receives from `reader`.
    pub fn new(reader: Reader, watch: Rc<Watch>, memory: Arc<MemoryBudget>, tally: Arc<Tally>) -> Self {
        Self {
            reader,
            watch,
            memory,
            tally,
            heads: HeadReader::new(HeadLimits::default()),
            buffer: Buffer::new(),
            charge: None,
            start: 0,
            pinned_bytes: 0,
            expected: BUFFER_BYTES_MIN,
            is_quiet: false,
        }
    }

    /// Whether bytes of a further request are here already.
    pub fn has_bytes(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// Waits for the first bytes of the next request.
    pub async fn wait(&mut self, patience: Patience) -> Result<Waited, ReceiveError> {
        let mut is_last = false;
        while !self.has_bytes() {
            let is_quiet = self.is_quiet;
            if !is_quiet && !self.suits_next() {
                self.replace_buffer(self.expected);
            }
            self.buffer.clear();
            self.start = 0;
            let (result, buffer) = {
                let buffer = std::mem::take(&mut self.buffer);
                let room = if is_quiet { QUIET_BYTES } else { buffer.capacity() };
                let cancel = self.watch.cancel_handle(!is_quiet);
                // Spelled out here, not behind `Reader`: this is what an idle connection is made of.
                match &mut self.reader {
                    Reader::Plain(read) => {
                        let (result, slice) = read.cancelable_read(buffer.slice_mut(0..room), cancel).await;
                        (result, slice.into_inner())
                    }
                    Reader::Tls(tls) => Box::pin(tls.read(buffer, room, Some(cancel))).await,
                    Reader::Gone => (Ok(0), buffer),
                }
            };
            self.buffer = buffer;
            match result {
                Ok(1..) if is_quiet => self.end_quiet(),
                Ok(1..) => {}
                Err(error) if error.raw_os_error() == Some(CANCELED) && !self.watch.expired() => {
                    self.begin_quiet();
                    if patience == Patience::Warm {
                        return Ok(Waited::Quiet);
                    }
                }
                // On epoll a receive that is cancelled does not look at the socket any more. Where the core was busy a
                // request may lie there since long before, and it wins.
                Err(error) if error.raw_os_error() == Some(CANCELED) && !is_last => {
                    if !self.watch.has_input() {
                        return Err(ReceiveError::Closed);
                    }
                    is_last = true;
                    self.watch.expire_again();
                }
                _ => return Err(ReceiveError::Closed),
            }
        }
        Ok(Waited::Ready)
    }

    /// Whether the buffer at hand is one to wait for the next request with: room for one like the last, and not much more. One
    /// that a long head has grown is memory that others may need.
    fn suits_next(&self) -> bool {
        let capacity = self.buffer.capacity();
        capacity >= self.expected && capacity <= BUFFER_TIMES_MAX * self.expected.max(CHUNKED_BYTES)
    }

    /// Gives the receive buffer back, to the allocator: it will not be needed again soon.
    fn begin_quiet(&mut self) {
        self.is_quiet = true;
        self.charge = None;
        self.expected = BUFFER_BYTES_MIN;
        self.buffer = Buffer::with_capacity(QUIET_BYTES);
    }

    /// Takes a receive buffer again, for the first bytes of a request and what follows.
    fn end_quiet(&mut self) {
        self.is_quiet = false;
        let first = std::mem::replace(&mut self.buffer, pool::acquire(BUFFER_BYTES_MIN));
        self.buffer.extend_from_slice(&first);
    }

    /// Reads a head. The bytes it spans are [`Inlet::head_bytes`], until the body is received.
    pub async fn head(&mut self) -> Result<RequestHead, ReceiveError> {
        self.heads.reset();
        loop {
            match self.heads.read(&self.buffer[self.start..])? {
                Progress::Complete(head) => return Ok(head),
                Progress::Partial => {}
            }
            if self.buffer.len() == self.buffer.capacity() {
                self.grow_head()?;
            }
            self.fill().await?;
        }
    }

    /// A head that is here whole. `None` where it is not, or not good: then [`Inlet::head`] tells.
    pub fn whole_head(&mut self) -> Option<RequestHead> {
        self.heads.reset();
        match self.heads.read(&self.buffer[self.start..]) {
            Ok(Progress::Complete(head)) => Some(head),
            Ok(Progress::Partial) | Err(_) => None,
        }
    }

    /// The bytes of the head at hand.
    pub fn head_bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Gives up receiving: what has come and is not yet part of a request, and the half to receive more from.
    pub fn give_up(&mut self) -> (Vec<u8>, Reader) {
        let received = self.buffer[self.start..].to_vec();
        (received, std::mem::replace(&mut self.reader, Reader::Gone))
    }

    /// Whether all of the body of `head` is here already.
    pub fn has_whole_body(&self, head: &RequestHead) -> bool {
        match head.framing {
            Framing::Length(bytes) => (self.buffer.len() - self.start - head.bytes) as u64 >= bytes,
            Framing::Chunked => false,
        }
    }

    /// The body of a head, all of which is here, as [`Inlet::has_whole_body`] says.
    pub fn whole_body(&mut self, head_bytes: usize, bytes: u64) -> Result<Body, ReceiveError> {
        self.pinned_bytes = 0;
        let bytes = usize::try_from(bytes).map_err(|_| ReceiveError::TooLarge)?;
        let body = if bytes == 0 {
            self.start += head_bytes;
            Body::default()
        } else {
            self.expect_next(head_bytes + bytes);
            self.charge_buffer()?;
            let start = self.start + head_bytes;
            self.cut(start, bytes)
        };
        Ok(self.finish(body))
    }

    /// Receives the body of `head`, of at most `limit` bytes.
    pub async fn body(&mut self, head: &RequestHead, limit: u64) -> Result<Body, ReceiveError> {
        self.pinned_bytes = 0;
        let body = match head.framing {
            Framing::Length(0) => return self.whole_body(head.bytes, 0),
            Framing::Length(bytes) if bytes > limit => return Err(ReceiveError::TooLarge),
            Framing::Length(bytes) => {
                let bytes = usize::try_from(bytes).map_err(|_| ReceiveError::TooLarge)?;
                self.expect_next(head.bytes + bytes);
                self.body_of_length(head.bytes, bytes).await?
            }
            Framing::Chunked => {
                // Boxed: few clients send chunks, and the state for them would make every request's future larger.
                let body = Box::pin(self.body_of_chunks(head.bytes, limit)).await?;
                let bytes = usize::try_from(body.bytes).unwrap_or(usize::MAX);
                self.expect_next(bytes.saturating_add(head.bytes));
                body
            }
        };
        Ok(self.finish(body))
    }

    /// The next request will be about as long as this one, which had `bytes`.
    fn expect_next(&mut self, bytes: usize) {
        self.expected = bytes
            .saturating_add(HEADROOM)
            .clamp(BUFFER_BYTES_MIN, FIRST_BYTES_MAX);
    }

    /// The body that is in the buffer from `start` on, whole.
    fn cut(&mut self, start: usize, bytes: usize) -> Body {
        let end = start + bytes;
        Body {
            segments: SmallVec::from_iter([self.freeze(end).slice(start..end)]),
            bytes: bytes as u64,
            pinned_bytes: 0,
        }
    }

    /// Books a body that is whole.
    fn finish(&mut self, body: Body) -> Body {
        self.tally.received(body.bytes);
        Body {
            pinned_bytes: self.pinned_bytes,
            ..body
        }
    }

    /// Begins to receive the body of `head` piece by piece.
    pub fn begin_streaming(&mut self, head: &RequestHead) -> Streaming {
        self.start += head.bytes;
        match head.framing {
            Framing::Length(left) => Streaming::Length(left),
            Framing::Chunked => Streaming::Chunked(Box::new(ChunkedDecoder::new(ChunkLimits::default()))),
        }
    }

    /// The next bytes of a body, at most `PIECE_BYTES_MAX`; `None` when it is whole. They are copied out of the receive
    /// buffer, which goes on being used.
    pub async fn next_piece(&mut self, streaming: &mut Streaming) -> Result<Option<Bytes>, ReceiveError> {
        loop {
            let here = &self.buffer[self.start..];
            let mut piece = Vec::new();
            let mut is_whole = false;
            let used = match streaming {
                Streaming::Length(left) => {
                    let bytes = here
                        .len()
                        .min(PIECE_BYTES_MAX)
                        .min(usize::try_from(*left).unwrap_or(usize::MAX));
                    piece.extend_from_slice(&here[..bytes]);
                    *left -= bytes as u64;
                    is_whole = *left == 0;
                    bytes
                }
                Streaming::Chunked(decoder) => {
                    let mut at = 0;
                    loop {
                        match decoder.next(&here[at..])? {
                            Piece::Data(range) => {
                                piece.extend_from_slice(&here[at + range.start..at + range.end]);
                                at += range.end;
                            }
                            Piece::End(used) => {
                                is_whole = true;
                                break at + used;
                            }
                            Piece::Starved => break here.len(),
                        }
                    }
                }
            };
            self.start += used;
            if is_whole {
                *streaming = Streaming::Length(0);
            }
            if !piece.is_empty() {
                self.tally.received(piece.len() as u64);
                let charge = self
                    .memory
                    .try_charge(piece.capacity())
                    .ok_or(ReceiveError::NoMemory)?;
                return Ok(Some(pool::hold_charge(Bytes::from(piece), charge)));
            }
            if is_whole {
                return Ok(None);
            }
            if self.buffer.capacity() < PIECE_BYTES_MAX {
                self.replace_buffer(PIECE_BYTES_MAX);
            }
            self.buffer.clear();
            self.start = 0;
            self.fill_to(self.buffer.capacity().min(PIECE_BYTES_MAX)).await?;
        }
    }

    /// Reads and throws away a body of `body_bytes` behind its head, so that the connection can carry another request.
    pub async fn skip_body(&mut self, head_bytes: usize, body_bytes: u64) -> Result<(), ReceiveError> {
        self.start += head_bytes;
        let mut left = body_bytes;
        loop {
            let here = left.min((self.buffer.len() - self.start) as u64);
            self.start += usize::try_from(here).unwrap_or(usize::MAX);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.buffer.clear();
            self.start = 0;
            self.fill().await?;
        }
    }

    /// Reads and throws away whatever still comes, until the client closes or the watch's deadline ends it: closing a
    /// socket with unread bytes would reset it and take our last answer along.
    pub async fn linger(&mut self) {
        loop {
            self.buffer.clear();
            self.start = 0;
            if self.buffer.capacity() == 0 {
                self.buffer = pool::acquire(BUFFER_BYTES_MIN);
            }
            if self.fill().await.is_err() {
                return;
            }
        }
    }

    async fn body_of_length(&mut self, head_bytes: usize, bytes: usize) -> Result<Body, ReceiveError> {
        let body_start = self.start + head_bytes;
        let body_end = body_start + bytes;
        self.charge_buffer()?;
        if body_end <= self.buffer.capacity() {
            while self.buffer.len() < body_end {
                self.fill().await?;
            }
            Ok(self.cut(body_start, bytes))
        } else {
            let mut segments = SmallVec::new();
            let here = self.buffer.len() - body_start;
            let rest = bytes - here;
            let charge = self
                .memory
                .try_charge(pool::capacity_for(rest))
                .ok_or(ReceiveError::NoMemory)?;
            if here > 0 {
                let end = self.buffer.len();
                segments.push(self.freeze(end).slice(body_start..end));
            } else {
                pool::release(std::mem::take(&mut self.buffer));
            }
            self.buffer = pool::acquire(rest);
            self.charge = Some(charge);
            while self.buffer.len() < rest {
                // Never beyond the body, so that nothing of the next request has to be moved.
                self.fill_to(rest).await?;
            }
            segments.push(self.freeze(rest));
            Ok(Body {
                segments,
                bytes: bytes as u64,
                pinned_bytes: 0,
            })
        }
    }

    async fn body_of_chunks(&mut self, head_bytes: usize, limit: u64) -> Result<Body, ReceiveError> {
        let mut decoder = ChunkedDecoder::new(ChunkLimits::default());
        let mut body = Body::default();
        let mut at = self.start + head_bytes;
        self.charge_buffer()?;
        let mut pieces: SmallVec<[std::ops::Range<usize>; 16]> = SmallVec::new();
        loop {
            let end = loop {
                match decoder.next(&self.buffer[at..])? {
                    Piece::Data(range) => {
                        let range = at + range.start..at + range.end;
                        at = range.end;
                        body.bytes += range.len() as u64;
                        if body.bytes > limit {
                            return Err(ReceiveError::TooLarge);
                        }
                        self.add_piece(&mut pieces, range);
                    }
                    Piece::Starved => break None,
                    Piece::End(used) => break Some(at + used),
                }
            };
            at = self.buffer.len();
            if end.is_none() && at < self.buffer.capacity() {
                // However little a receive brings, a buffer is filled before the next one is taken.
                self.fill().await?;
                continue;
            }
            if !pieces.is_empty() {
                let frozen = self.freeze(end.unwrap_or(at));
                body.segments
                    .extend(pieces.drain(..).map(|piece| frozen.slice(piece)));
            } else if let Some(end) = end {
                self.start = end;
            }
            if end.is_some() {
                return Ok(body);
            }
            if self.buffer.capacity() == 0 {
                let want = CHUNKED_BYTES.max(self.expected);
                let charge = self
                    .memory
                    .try_charge(pool::capacity_for(want))
                    .ok_or(ReceiveError::NoMemory)?;
                self.buffer = pool::acquire(want);
                self.charge = Some(charge);
            }
            self.buffer.clear();
            self.start = 0;
            at = 0;
            self.fill().await?;
        }
    }

    /// Adds a chunk's bytes as a segment, or moves them up to the piece before when they are few.
    fn add_piece(
        &mut self,
        pieces: &mut SmallVec<[std::ops::Range<usize>; 16]>,
        range: std::ops::Range<usize>,
    ) {
        match pieces.last_mut() {
            Some(last) if range.len() < SEGMENT_BYTES_MIN => {
                self.tally.copied(CopySite::TinyChunks, range.len());
                let end = last.end + range.len();
                self.buffer.copy_within(range, last.end);
                last.end = end;
            }
            _ => pieces.push(range),
        }
    }

    /// Makes the buffer immutable. What lies behind `end` belongs to the next request and moves to a new buffer.
    fn freeze(&mut self, end: usize) -> Bytes {
        let buffer = std::mem::take(&mut self.buffer);
        let charge = self.charge.take();
        self.pinned_bytes += charge.as_ref().map_or(0, Charge::bytes);
        self.start = 0;
        if end < buffer.len() {
            let next = &buffer[end..];
            self.tally.copied(CopySite::Pipelined, next.len());
            self.replace_buffer(self.expected.max(next.len()));
            self.buffer.extend_from_slice(next);
        }
        pool::freeze(buffer, charge)
    }

    /// Charges the buffer at hand, which is about to hold a body.
    fn charge_buffer(&mut self) -> Result<(), ReceiveError> {
        if self.charge.is_none() {
            let charge = self.memory.try_charge(self.buffer.capacity());
            self.charge = Some(charge.ok_or(ReceiveError::NoMemory)?);
        }
        Ok(())
    }

    /// Takes an empty buffer for `want` bytes, or a small one where memory is short.
    fn replace_buffer(&mut self, want: usize) {
        pool::release(std::mem::take(&mut self.buffer));
        self.charge = None;
        self.start = 0;
        if want > BUFFER_BYTES_MIN {
            self.charge = self.memory.try_charge(pool::capacity_for(want));
        }
        self.buffer = pool::acquire(if self.charge.is_some() {
            want
        } else {
            BUFFER_BYTES_MIN
        });
    }

    /// Moves a head that has outgrown its buffer into one of twice the size. The head limits bound it.
    fn grow_head(&mut self) -> Result<(), ReceiveError> {
        let here = self.buffer.len() - self.start;
        let want = (here * 2).max(BUFFER_BYTES_MIN);
        let charge = self
            .memory
            .try_charge(pool::capacity_for(want))
            .ok_or(ReceiveError::NoMemory)?;
        let mut larger = pool::acquire(want);
        larger.extend_from_slice(&self.buffer[self.start..]);
        self.tally.copied(CopySite::HeadGrowth, here);
        pool::release(std::mem::replace(&mut self.buffer, larger));
        self.charge = Some(charge);
        self.start = 0;
        Ok(())
    }

    async fn fill(&mut self) -> Result<(), ReceiveError> {
        self.fill_to(self.buffer.capacity()).await
    }

    /// Receives behind what is there, up to `end`.
    async fn fill_to(&mut self, end: usize) -> Result<(), ReceiveError> {
        let (result, buffer) = self.reader.read(std::mem::take(&mut self.buffer), end).await;
        self.buffer = buffer;
        match result {
            Ok(1..) => Ok(()),
            _ if self.watch.expired() => Err(ReceiveError::TimedOut),
            _ => Err(ReceiveError::Truncated),
        }
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        pool::release(std::mem::take(&mut self.buffer));
    }
}
