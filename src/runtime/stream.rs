//! Where bytes come in and go out: a connection's two halves, plain or TLS, behind one face.
//!
//! ```text
//!  Reader::Plain ── the kernel writes into the caller's buffer
//!  Reader::Tls   ── the kernel writes ciphertext, Session::take writes plaintext into the caller's buffer
//! ```
//! A plain half is the runtime's own, called directly: one branch, nothing allocated, nothing copied. The halves of a TLS
//! connection share its [`Session`]; what the session wants to say while bytes come in (a key update) goes out in front of
//! the next bytes, as RFC 8446 section 4.6.3 asks for.
//!
//! Memory of a TLS connection: one receive buffer of at most 64 KiB while a receive is under way or its
//! bytes wait, one send buffer of about that size while a send is. Both come from the core's pool and are not counted
//! against `--memory-limit`: a connection that waits holds 2 KiB.
//!
//! The goodbye (close_notify) goes out when the writer is dropped between two messages: at once or not at all.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;

use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{
    AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, CancelHandle, CancelableAsyncReadRent, OwnedReadHalf,
    OwnedWriteHalf, Splitable,
};
use monoio::net::TcpStream;

use super::pool::{self, BUFFER_BYTES_MIN, Buffer};
use super::socket;
use super::tls::{Session, TlsFailure};

/// Ciphertext received at a time: four records, after which another system call is cheap beside decrypting.
const RECEIVE_BYTES_MAX: usize = 64 << 10;
/// What a record has beside its plaintext, times the records in a receive (RFC 8446 section 5.2: 22 bytes each).
const RECORDS_OVERHEAD: usize = 256;

/// The receiving half of a connection.
pub enum Reader {
    /// Cleartext.
    Plain(OwnedReadHalf<TcpStream>),
    /// TLS.
    Tls(Box<TlsReader>),
    /// Nothing comes any more: the connection has been handed over.
    Gone,
}

/// The sending half of a connection.
pub enum Writer {
    /// Cleartext.
    Plain(OwnedWriteHalf<TcpStream>),
    /// TLS.
    Tls(Box<TlsWriter>),
}

/// The halves of a connection in cleartext.
pub fn plain(stream: TcpStream) -> (Reader, Writer) {
    let (read, write) = stream.into_split();
    (Reader::Plain(read), Writer::Plain(write))
}

/// A connection in cleartext for another runtime; `None` where it is not in cleartext.
///
/// # Errors
/// When the descriptor cannot be duplicated.
pub fn into_std(reader: Reader, writer: Writer) -> io::Result<Option<std::net::TcpStream>> {
    let (Reader::Plain(read), Writer::Plain(write)) = (reader, writer) else {
        return Ok(None);
    };
    // A write half that is dropped by itself ends sending, for all who have the connection.
    match read.reunite(write) {
        Ok(stream) => socket::duplicate(stream.as_raw_fd()).map(Some),
        Err(_) => Ok(None),
    }
}

impl Reader {
    /// Receives behind what is in `buffer`, up to `end`. 0: no more comes. A TLS connection that ends without its goodbye
    /// is an error, for what came may be cut short.
    pub async fn read(&mut self, buffer: Buffer, end: usize) -> (io::Result<usize>, Buffer) {
        match self {
            Self::Plain(read) => {
                let start = buffer.len();
                let (result, slice) = read.read(buffer.slice_mut(start..end)).await;
                (result, slice.into_inner())
            }
            Self::Tls(tls) => Box::pin(tls.read(buffer, end, None)).await,
            Self::Gone => (Ok(0), buffer),
        }
    }

    /// Whether nothing of what has come waits to be read: what was asked for has been answered, and no more.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Gone => true,
            Self::Tls(tls) => tls.cipher.is_empty() && !tls.session.borrow_mut().has_news(),
        }
    }
}

impl Writer {
    /// Sends all of `bytes`.
    pub async fn write_all<T: IoBuf + AsRef<[u8]>>(&mut self, bytes: T) -> (io::Result<usize>, T) {
        match self {
            Self::Plain(write) => write.write_all(bytes).await,
            Self::Tls(tls) => {
                let result = Box::pin(tls.write_all(bytes.as_ref())).await;
                (result.map(|()| bytes.as_ref().len()), bytes)
            }
        }
    }

    /// Sends `buffer` from `begin` on.
    pub async fn write_from(&mut self, buffer: Buffer, begin: usize) -> (io::Result<usize>, Buffer) {
        match self {
            Self::Plain(write) => {
                let (result, slice) = write.write_all(buffer.slice(begin..)).await;
                (result, slice.into_inner())
            }
            Self::Tls(tls) => {
                let result = Box::pin(tls.write_all(&buffer[begin..])).await;
                (result.map(|()| buffer.len() - begin), buffer)
            }
        }
    }

    /// Says goodbye where the protocol has one. Nothing can be sent afterwards.
    pub fn finish(&mut self) {
        if let Self::Tls(tls) = self {
            tls.finish();
        }
    }
}

/// The receiving half of a TLS connection.
pub struct TlsReader {
    read: OwnedReadHalf<TcpStream>,
    session: Rc<RefCell<Session>>,
    /// `cipher[at..]` has been received and not yet fed. Empty, and given back, once all is.
    cipher: Buffer,
    at: usize,
}

impl TlsReader {
    /// [`Reader::read`]; a receive that waits ends with ECANCELED when `cancel` says so.
    pub async fn read(
        &mut self,
        mut buffer: Buffer,
        end: usize,
        cancel: Option<CancelHandle>,
    ) -> (io::Result<usize>, Buffer) {
        loop {
            match self.decrypt(&mut buffer, end) {
                Ok(None) => {}
                Ok(Some(bytes)) => return (Ok(bytes), buffer),
                Err(error) => return (Err(error), buffer),
            }
            match self.receive(end - buffer.len(), cancel.clone()).await {
                Ok(1..) => {}
                Ok(0) => {
                    // The session now knows that this was the end, and tells whether it was a good one.
                    if let Err(failure) = self.session.borrow_mut().feed(&[]) {
                        return (Err(failure.into()), buffer);
                    }
                }
                Err(error) => return (Err(error), buffer),
            }
        }
    }

    /// Plaintext of what is here; `None` when more has to be received for any.
    fn decrypt(&mut self, buffer: &mut Buffer, end: usize) -> io::Result<Option<usize>> {
        let mut session = self.session.borrow_mut();
        loop {
            let room = end - buffer.len();
            if let Some(bytes) = session.take(room, |piece| buffer.extend_from_slice(piece))? {
                return Ok(Some(bytes));
            }
            if self.cipher.is_empty() {
                return Ok(None);
            }
            let used = session.feed(&self.cipher[self.at..])?;
            if used == 0 && !session.has_news() {
                return Err(TlsFailure::Protocol.into());
            }
            self.at += used;
            if self.at == self.cipher.len() {
                pool::release(std::mem::take(&mut self.cipher));
                self.at = 0;
            }
        }
    }

    /// Receives ciphertext that holds about `want` bytes of plaintext.
    async fn receive(&mut self, want: usize, cancel: Option<CancelHandle>) -> io::Result<usize> {
        let room = (want + RECORDS_OVERHEAD).clamp(BUFFER_BYTES_MIN, RECEIVE_BYTES_MAX);
        let buffer = pool::acquire(room).slice_mut(0..room);
        let (result, slice) = match cancel {
            Some(cancel) => self.read.cancelable_read(buffer, cancel).await,
            None => self.read.read(buffer).await,
        };
        let cipher = slice.into_inner();
        if matches!(result, Ok(1..)) {
            (self.cipher, self.at) = (cipher, 0);
        } else {
            pool::release(cipher);
        }
        result
    }
}

impl Drop for TlsReader {
    fn drop(&mut self) {
        pool::release(std::mem::take(&mut self.cipher));
    }
}

/// The sending half of a TLS connection.
pub struct TlsWriter {
    write: OwnedWriteHalf<TcpStream>,
    fd: RawFd,
    session: Rc<RefCell<Session>>,
    /// `out[sent..]` is ciphertext on its way.
    out: Buffer,
    sent: usize,
    /// Whether the kernel has bytes of which it has not yet said how many it took.
    is_sending: bool,
    is_finished: bool,
}

impl TlsWriter {
    /// Encrypts plaintext, at most 64 KiB of it, for [`TlsWriter::send_some`]; returns how much. What was loaded before must
    /// be out.
    ///
    /// # Errors
    /// When the session has failed.
    pub fn load<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        debug_assert!(self.is_sent(), "loaded over what is on its way");
        let mut session = self.session.borrow_mut();
        let given = session.give(pieces)?;
        self.out = pool::acquire(given + RECORDS_OVERHEAD);
        self.sent = 0;
        session.drain(&mut self.out);
        Ok(given)
    }

    /// Whether all that was loaded is out.
    pub fn is_sent(&self) -> bool {
        self.out.is_empty()
    }

    /// One write of what is loaded. Returns whether all of it is out.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn send_some(&mut self) -> io::Result<bool> {
        if self.is_sent() {
            return Ok(true);
        }
        self.is_sending = true;
        let out = std::mem::take(&mut self.out);
        let (result, slice) = self.write.write(out.slice(self.sent..)).await;
        self.out = slice.into_inner();
        self.is_sending = false;
        match result? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            bytes => self.sent += bytes,
        }
        if self.sent == self.out.len() {
            pool::release(std::mem::take(&mut self.out));
        }
        Ok(self.is_sent())
    }

    async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let loaded = self.load(std::iter::once(bytes))?;
            if loaded == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[loaded..];
            while !self.send_some().await? {}
        }
        Ok(())
    }

    /// The goodbye, or the alert of a session that has failed, where no message is cut short by it.
    fn finish(&mut self) {
        if self.is_finished || self.is_sending || !self.is_sent() {
            return;
        }
        self.is_finished = true;
        let mut session = self.session.borrow_mut();
        session.close();
        let mut last = Vec::new();
        session.drain(&mut last);
        // A peer that takes nothing any more gets nothing.
        let _ = socket::send_now(self.fd, &last);
    }
}

impl Drop for TlsWriter {
    fn drop(&mut self) {
        self.finish();
        pool::release(std::mem::take(&mut self.out));
    }
}

/// A connection whose handshake is under way.
pub struct Handshake {
    stream: TcpStream,
    session: Session,
    received: Buffer,
}

impl Handshake {
    /// Begins with `session`.
    pub fn new(stream: TcpStream, session: Session) -> Self {
        Self {
            stream,
            session,
            received: Buffer::new(),
        }
    }

    /// What has come and is not yet looked at.
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// The connection, when no handshake is to be.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Waits for the first bytes of the peer, until `cancel` says so. 0: it has closed.
    ///
    /// # Errors
    /// Those of the socket; ECANCELED.
    pub async fn first_bytes(&mut self, cancel: CancelHandle) -> io::Result<usize> {
        let buffer = pool::acquire(BUFFER_BYTES_MIN);
        let room = buffer.capacity();
        let (result, slice) = self
            .stream
            .cancelable_read(buffer.slice_mut(0..room), cancel)
            .await;
        self.received = slice.into_inner();
        result
    }

    /// Shakes hands to the end. The caller watches the time.
    ///
    /// # Errors
    /// Why there is no TLS; the peer has been told. The connection comes back, for a last word or a reset.
    pub async fn complete(mut self) -> Result<Shaken, (TlsFailure, TcpStream)> {
        match self.shake().await {
            Ok(fed) => Ok(Shaken {
                stream: self.stream,
                session: self.session,
                received: self.received,
                fed,
            }),
            Err(failure) => Err((failure, self.stream)),
        }
    }

    /// Returns how much of `received` has been fed.
    async fn shake(&mut self) -> Result<usize, TlsFailure> {
        let mut fed = 0;
        loop {
            self.say().await?;
            if !self.session.is_handshaking() {
                return Ok(fed);
            }
            if fed == self.received.len() {
                fed = 0;
                self.hear().await?;
            }
            match self.session.feed(&self.received[fed..]) {
                Ok(0) => return Err(TlsFailure::Protocol),
                Ok(used) => fed += used,
                Err(failure) => {
                    // The alert says why; whether it arrives changes nothing.
                    let _ = self.say().await;
                    return Err(failure);
                }
            }
        }
    }

    async fn say(&mut self) -> Result<(), TlsFailure> {
        if !self.session.wants_write() {
            return Ok(());
        }
        let mut out = pool::acquire(BUFFER_BYTES_MIN);
        self.session.drain(&mut out);
        let (sent, out) = self.stream.write_all(out).await;
        pool::release(out);
        sent.map(drop).map_err(|_| TlsFailure::Closed)
    }

    async fn hear(&mut self) -> Result<(), TlsFailure> {
        let mut buffer = std::mem::take(&mut self.received);
        if buffer.capacity() == 0 {
            buffer = pool::acquire(2 * BUFFER_BYTES_MIN);
        }
        buffer.clear();
        let room = buffer.capacity();
        let (received, slice) = self.stream.read(buffer.slice_mut(0..room)).await;
        self.received = slice.into_inner();
        match received {
            Ok(1..) => Ok(()),
            _ => Err(TlsFailure::Closed),
        }
    }
}

/// A connection whose handshake is over.
pub struct Shaken {
    stream: TcpStream,
    session: Session,
    /// `received[fed..]` has not been fed to the session.
    received: Buffer,
    fed: usize,
}

impl Shaken {
    /// Whether both sides have agreed on HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.session.is_http2()
    }

    /// Its two halves.
    pub fn into_halves(self) -> (Reader, Writer) {
        let fd = self.stream.as_raw_fd();
        let (read, write) = self.stream.into_split();
        let session = Rc::new(RefCell::new(self.session));
        let (cipher, at) = if self.fed < self.received.len() {
            (self.received, self.fed)
        } else {
            pool::release(self.received);
            (Buffer::new(), 0)
        };
        let reader = TlsReader {
            read,
            session: session.clone(),
            cipher,
            at,
        };
        let writer = TlsWriter {
            write,
            fd,
            session,
            out: Buffer::new(),
            sent: 0,
            is_sending: false,
            is_finished: false,
        };
        (Reader::Tls(Box::new(reader)), Writer::Tls(Box::new(writer)))
    }

    /// What another thread needs to go on with it: the socket, the session, and ciphertext that has not been fed.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn into_parts(self) -> io::Result<(std::net::TcpStream, Session, Vec<u8>)> {
        let stream = socket::duplicate(self.stream.as_raw_fd())?;
        Ok((stream, self.session, self.received[self.fed..].to_vec()))
    }
}
