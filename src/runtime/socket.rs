//! Sockets as the data plane wants them: listeners that cores share, and the options of a connection.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Clients that finished their handshake and wait for `accept`. The kernel caps it at net.core.somaxconn.
pub const BACKLOG: i32 = 4096;

/// How long an address that is in use is tried again: the kernel tears down the ring of a killed process after the process
/// itself has gone, and its listener lives as long (up to 40 ms seen on Linux 6.18).
const REBIND_WAIT: Duration = Duration::from_millis(500);
const REBIND_EVERY: Duration = Duration::from_millis(20);

/// A client's connection without traffic is probed after this time.
const CLIENT_PROBED_AFTER: Duration = Duration::from_secs(60);
/// A destination's connection without traffic is probed after this time: there are few of them, and what waits for an
/// answer waits on one.
const DESTINATION_PROBED_AFTER: Duration = Duration::from_secs(3);

/// Binds `count` listeners to one address. With more than one, the kernel spreads new connections over them
/// (SO_REUSEPORT), so each core accepts for itself.
///
/// # Errors
/// When the address is in use (also by a second pyrotee: SO_REUSEPORT alone would let two share a port and split the
/// traffic in silence, so exclusive use is tried first), not ours, or not allowed.
pub fn listeners(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let first = bind_patiently(address)?;
    if count <= 1 {
        return Ok(vec![first]);
    }
    let address = first.local_addr()?;
    drop(first);
    (0..count).map(|_| bind(address, true)).collect()
}

fn bind_patiently(address: SocketAddr) -> io::Result<TcpListener> {
    let mut left = REBIND_WAIT;
    loop {
        match bind(address, false) {
            Err(error) if lacks_ipv6(address, &error) => {
                return bind((std::net::Ipv4Addr::UNSPECIFIED, address.port()).into(), false);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && !left.is_zero() => {
                std::thread::sleep(REBIND_EVERY);
                left = left.saturating_sub(REBIND_EVERY);
            }
            result => return result,
        }
    }
}

/// Whether all addresses of both families were wanted where the kernel has one family only: the other is all there is.
fn lacks_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    let is_any = address.is_ipv6() && address.ip().is_unspecified();
    is_any
        && matches!(
            error.raw_os_error(),
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
        )
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    // What is accepted inherits it, which costs nothing per connection. A client that has gone without a word gives its
    // place back after two minutes, also where idle connections are kept for longer or an answer is waited for.
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(CLIENT_PROBED_AFTER)
            .with_interval(Duration::from_secs(15))
            .with_retries(4),
    )?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Options of an accepted connection.
pub fn tune_client(connection: &impl AsRawFd) {
    with_socket(connection.as_raw_fd(), |socket| {
        let _ = socket.set_tcp_nodelay(true);
    });
}

/// Options of a connection to a destination: answers at once, and a host that has gone without a word is noticed after
/// about `silence_max`, with data on the way (TCP_USER_TIMEOUT) and without (keep-alive probes once a second, which that
/// timeout ends too).
pub fn tune_destination(connection: &impl AsRawFd, silence_max: Duration) {
    with_socket(connection.as_raw_fd(), |socket| {
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_user_timeout(Some(silence_max));
        let probes = TcpKeepalive::new()
            .with_time(DESTINATION_PROBED_AFTER)
            .with_interval(Duration::from_secs(1))
            .with_retries(3);
        let _ = socket.set_tcp_keepalive(&probes);
    });
}

/// Ends receiving: a receive in flight completes with 0 bytes, sending an answer stays possible.
pub fn stop_receiving(fd: RawFd) {
    with_socket(fd, |socket| {
        let _ = socket.shutdown(std::net::Shutdown::Read);
    });
}

/// Ends sending: the peer reads our last bytes and then the end.
pub fn stop_sending(fd: RawFd) {
    with_socket(fd, |socket| {
        let _ = socket.shutdown(std::net::Shutdown::Write);
    });
}

/// Ends both directions: every operation in flight completes.
pub fn stop(fd: RawFd) {
    with_socket(fd, |socket| {
        let _ = socket.shutdown(std::net::Shutdown::Both);
    });
}

/// Makes the close that follows send a reset (RST) instead of a FIN: the peer loses what it has not read yet.
pub fn reset_on_close(fd: RawFd) {
    with_socket(fd, |socket| {
        let _ = socket.set_linger(Some(Duration::ZERO));
    });
}

/// Resets a connection at once (RST), whatever ends it afterwards; nothing can be sent any more.
pub fn reset(fd: RawFd) {
    with_socket(fd, |socket| {
        let _ = rustix::net::connect_unspec(&**socket);
    });
}

/// Whether an idle connection is still good: nothing to read and not closed by the peer. One system call.
pub fn is_quiet(fd: RawFd) -> bool {
    let mut quiet = false;
    with_socket(fd, |socket| {
        let mut byte = [std::mem::MaybeUninit::uninit(); 1];
        let peeked = socket.recv_with_flags(&mut byte, libc::MSG_PEEK | libc::MSG_DONTWAIT);
        quiet = matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    });
    quiet
}

/// The same connection once more, for another runtime. The caller drops its own.
///
/// # Errors
/// When there are no more descriptors.
pub fn duplicate(fd: RawFd) -> io::Result<std::net::TcpStream> {
    let stream = std::net::TcpStream::from(borrow(fd).try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Sends `bytes` if the kernel takes them at once.
///
/// # Errors
/// Those of the socket; [`io::ErrorKind::WouldBlock`] when its buffer is full.
pub fn send_now(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = Err(io::ErrorKind::NotConnected.into());
    with_socket(fd, |socket| {
        sent = socket.send_with_flags(bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    });
    sent
}

fn with_socket(fd: RawFd, act: impl FnOnce(&SockRef<'_>)) {
    if fd < 0 {
        return;
    }
    let borrowed = borrow(fd);
    act(&SockRef::from(&borrowed.as_fd()));
}

/// The caller owns the connection while it calls, so the descriptor is open.
#[allow(unsafe_code)] // monoio's sockets give a raw descriptor only
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    debug_assert!(fd >= 0);
    // SAFETY: every caller holds the socket that `fd` belongs to for the length of the call.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_is_probed() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), CLIENT_PROBED_AFTER);
    }

    #[test]
    fn a_port_in_use_is_refused_even_when_shared() {
        let any = "127.0.0.1:0".parse().unwrap();
        let ours = listeners(any, 2).unwrap();
        let address = ours[0].local_addr().unwrap();
        assert_eq!(address, ours[1].local_addr().unwrap());
        assert_eq!(
            listeners(address, 1).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        assert_eq!(
            listeners(address, 2).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }
}
