//! The admin port's connections: how many at a time, and how long one may be silent.
//!
//! The HTTP server on top does neither by itself. Not responsible for what is asked and answered.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::runtime::descriptors;

/// Connections served at a time; more wait in the kernel's backlog. A scraper, probes and many open pages are few; each
/// costs some tens of KiB while it is answered.
pub const CONNECTIONS_MAX: usize = 256;
/// Silence after which a connection is closed. Scrapers connect again by themselves, the page polls every second.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Pause after accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener that keeps to the bounds above.
#[derive(Debug)]
pub struct Port {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Port {
    /// Listens on `address`, and puts descriptors by: before there are clients who could take them.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        descriptors::keep_reserve();
        Ok(Self {
            listener,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts a client, with a descriptor of the reserve where there is no other.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        match ready!(self.listener.poll_accept(cx)) {
            Err(error) if descriptors::is_shortage(&error) && self.has_client() => {
                let mut reserve = descriptors::borrow();
                match reserve.spend() {
                    true => self.listener.poll_accept(cx),
                    false => Poll::Ready(Err(error)),
                }
            }
            result => Poll::Ready(result),
        }
    }

    /// Whether a client waits to be accepted. Where there are no descriptors accept fails whether one does or not.
    fn has_client(&self) -> bool {
        let mut listener = [PollFd::new(&self.listener, PollFlags::IN)];
        poll(&mut listener, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl Listener for Port {
    type Io = Bounded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed; were it, connections would go on without a place rather than not at all.
        let place = self.places.clone().acquire_owned().await.ok();
        loop {
            match poll_fn(|cx| self.poll_accept(cx)).await {
                Ok((stream, address)) => return (Bounded::new(stream, SILENCE_MAX, place), address),
                // A client that has left before it was accepted costs nothing, and want of descriptors passes.
                Err(error) => {
                    tracing::debug!(%error, "the admin port could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.address()
    }
}

/// A connection that ends when nothing moves for a while, and gives its place and its descriptor back when dropped.
#[derive(Debug)]
pub struct Bounded {
    /// There until it is dropped.
    stream: Option<TcpStream>,
    silence: Pin<Box<Sleep>>,
    silence_max: Duration,
    _place: Option<OwnedSemaphorePermit>,
}

impl Bounded {
    fn new(stream: TcpStream, silence_max: Duration, place: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            stream: Some(stream),
            silence: Box::pin(tokio::time::sleep(silence_max)),
            silence_max,
            _place: place,
        }
    }

    /// Passes progress on; without any, ends with an error once the silence has lasted too long.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Some(stream) = &mut self.stream
            && let Poll::Ready(result) = poll(Pin::new(stream), cx)
        {
            self.silence.as_mut().reset(Instant::now() + self.silence_max);
            return Poll::Ready(result);
        }
        ready!(self.silence.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        let reserve = descriptors::borrow();
        self.stream = None;
        drop(reserve);
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.bounded(cx, |stream, cx| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.bounded(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.bounded(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.bounded(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.bounded(cx, AsyncWrite::poll_shutdown)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_silent_connection_ends_and_gives_its_place_back() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let places = Arc::new(Semaphore::new(1));
            let place = places.clone().acquire_owned().await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            let mut bounded = Bounded::new(accepted, Duration::from_millis(20), Some(place));
            let mut memory = [0; 1];
            let mut buffer = ReadBuf::new(&mut memory);
            let reading = poll_fn(|cx| Pin::new(&mut bounded).poll_read(cx, &mut buffer));
            let error = reading.await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!(places.available_permits(), 0);
            drop(bounded);
            assert_eq!(places.available_permits(), 1);
        });
    }
}
