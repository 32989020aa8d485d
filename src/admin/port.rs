//! The admin port's connections: how many at a time, and how long one may be silent.
//!
//! The HTTP server on top does neither by itself. Not responsible for what is asked and answered.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use rustix::event::{EventfdFlags, eventfd};
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

/// Descriptors that are kept for this port, so that it can be asked what is wrong when there are no others: two scrapers, a
/// probe and a person.
const SPARES: usize = 4;

/// A listener that keeps to the bounds above.
#[derive(Debug)]
pub struct Port {
    listener: TcpListener,
    places: Arc<Semaphore>,
    spares: Arc<Spares>,
}

impl Port {
    /// Bounds `listener`.
    pub fn new(listener: TcpListener) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let spares = Arc::new(Spares::default());
        spares.put_by();
        Self {
            listener,
            places,
            spares,
        }
    }
}

/// Descriptors put by: closed when one is needed, and had again as soon as one is free.
#[derive(Debug, Default)]
struct Spares(Mutex<Vec<OwnedFd>>);

impl Spares {
    fn kept(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts by as many as there may be and can be had.
    fn put_by(&self) {
        let mut kept = self.kept();
        while kept.len() < SPARES
            && let Ok(spare) = eventfd(0, EventfdFlags::CLOEXEC)
        {
            kept.push(spare);
        }
    }

    /// Closes one. Another thread may be faster to take what it leaves.
    fn spend(&self) -> bool {
        self.kept().pop().is_some()
    }
}

/// The place of one connection, given back when dropped.
#[derive(Debug)]
struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    spares: Arc<Spares>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.spares.put_by();
    }
}

impl Listener for Port {
    type Io = Bounded<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed; were it, connections would go on without a place rather than not at all.
        let place = Place {
            _permit: self.places.clone().acquire_owned().await.ok(),
            spares: self.spares.clone(),
        };
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => return (Bounded::new(stream, SILENCE_MAX, place), address),
                Err(error) if descriptors::is_shortage(&error) && self.spares.spend() => {}
                // A client that has left before it was accepted costs nothing, and want of descriptors passes.
                Err(error) => {
                    tracing::debug!(%error, "the admin port could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when nothing moves for a while, and gives its place back when dropped.
#[derive(Debug)]
pub struct Bounded<S> {
    stream: S,
    silence: Pin<Box<Sleep>>,
    silence_max: Duration,
    /// Behind the stream, so that its descriptor is there when this is dropped.
    _place: Place,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Bounded<S> {
    fn new(stream: S, silence_max: Duration, place: Place) -> Self {
        Self {
            stream,
            silence: Box::pin(tokio::time::sleep(silence_max)),
            silence_max,
            _place: place,
        }
    }

    /// Passes progress on; without any, ends with an error once the silence has lasted too long.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(result) = poll(Pin::new(&mut self.stream), cx) {
            self.silence.as_mut().reset(Instant::now() + self.silence_max);
            return Poll::Ready(result);
        }
        ready!(self.silence.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.bounded(cx, |stream, cx| stream.poll_read(cx, buffer))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
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
        self.stream.is_write_vectored()
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
            let place = Place {
                _permit: Some(place),
                spares: Arc::default(),
            };
            let mut bounded = Bounded::new(accepted, Duration::from_millis(20), place);
            let mut memory = [0; 1];
            let mut buffer = ReadBuf::new(&mut memory);
            let reading = std::future::poll_fn(|cx| Pin::new(&mut bounded).poll_read(cx, &mut buffer));
            let error = reading.await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!(places.available_permits(), 0);
            drop(bounded);
            assert_eq!(places.available_permits(), 1);
        });
    }
}
