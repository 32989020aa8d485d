//! A handed-over connection as hyper wants it: bytes in, bytes out, through TLS where there is some.
//!
//! Not responsible for HTTP/2, nor for time: [`super`] ends connections that take too long.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

use crate::runtime::tls::{Session, TlsFailure};

/// Received at a time: one frame of the size that peers send by default (RFC 9113 section 4.2), or one record of TLS.
const RECEIVE_BYTES: usize = 16 << 10;

/// A connection on the control plane.
pub struct Wire {
    stream: TcpStream,
    session: Option<Session>,
    /// `received[at..filled]` has not been looked at.
    received: Vec<u8>,
    at: usize,
    filled: usize,
    /// `out[sent..]` is ciphertext on its way.
    out: Vec<u8>,
    sent: usize,
    is_closed: bool,
}

impl Wire {
    /// Goes on with a connection of which `received` has come already.
    pub fn new(stream: TcpStream, session: Option<Session>, mut received: Vec<u8>) -> Self {
        let filled = received.len();
        received.resize(filled.max(RECEIVE_BYTES), 0);
        Self {
            stream,
            session,
            received,
            at: 0,
            filled,
            out: Vec::new(),
            sent: 0,
            is_closed: false,
        }
    }

    /// Hands what is here to `into`; false when more has to be received first.
    fn take(&mut self, into: &mut ReadBufCursor<'_>) -> io::Result<bool> {
        let Some(session) = &mut self.session else {
            let step = into.remaining().min(self.filled - self.at);
            into.put_slice(&self.received[self.at..self.at + step]);
            self.at += step;
            return Ok(step > 0);
        };
        loop {
            let room = into.remaining();
            if session.take(room, |piece| into.put_slice(piece))?.is_some() {
                return Ok(true);
            }
            if self.at == self.filled {
                return Ok(false);
            }
            let used = session.feed(&self.received[self.at..self.filled])?;
            if used == 0 && !session.has_news() {
                return Err(TlsFailure::Protocol.into());
            }
            self.at += used;
        }
    }

    /// Receives; false at the end.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut buffer = ReadBuf::new(&mut self.received);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        (self.at, self.filled) = (0, buffer.filled().len());
        Poll::Ready(Ok(self.filled > 0))
    }

    /// Sends ciphertext until none is left.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.sent == self.out.len() {
                self.out.clear();
                self.sent = 0;
                match &mut self.session {
                    Some(session) if session.wants_write() => session.drain(&mut self.out),
                    _ => return Poll::Ready(Ok(())),
                }
            }
            let rest = &self.out[self.sent..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.sent += bytes,
            }
        }
    }
}

impl hyper::rt::Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.take(&mut into)? {
                return Poll::Ready(Ok(()));
            }
            if !ready!(this.poll_receive(context))? {
                match &mut this.session {
                    None => return Poll::Ready(Ok(())),
                    // The session now knows that this was the end, and tells whether it was a good one.
                    Some(session) => drop(session.feed(&[])?),
                }
            }
        }
    }
}

impl hyper::rt::Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.session.is_none() {
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        }
        ready!(this.poll_send(context))?;
        let given = match &mut this.session {
            Some(session) => session.give(std::iter::once(bytes))?,
            None => 0,
        };
        // What the kernel does not take now goes with the next write or flush.
        if let Poll::Ready(Err(error)) = this.poll_send(context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(given))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.is_closed {
            this.is_closed = true;
            if let Some(session) = &mut this.session {
                session.close();
            }
        }
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}
