//! A destination in the test's own hands: it shows every request and answers as the test decides.
//!
//! For what `pyrotee sink` cannot be told: to close between two requests, to answer the third request differently, to
//! hold one answer back. Not responsible for counting or verifying (`Sink`).

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use socket2::{SockFilter, SockRef};

use super::DEADLINE;
use super::tls::{Link, ServerConfig};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// The connection it came on, counted from 0.
    pub connection: usize,
    /// Its place among all requests of this peer, counted from 0.
    pub index: usize,
    /// Path and query as sent.
    pub target: String,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
    /// The certificate that the gateway has shown, in DER.
    pub certificate: Option<Vec<u8>>,
    /// When its last byte was read.
    pub at: Instant,
}

impl Received {
    /// The first value of a header; `name` is lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| &**value)
    }

    /// Behind the `?`.
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What a peer does with a request.
pub enum Reply {
    /// 200.
    Ok,
    /// 200, and the connection is closed behind it without having said so.
    OkThenClose,
    /// A status and header lines.
    Status(u16, &'static str),
    /// A status with this as `application/json`.
    Json(u16, String),
    /// Closes without an answer.
    Close,
    /// Resets.
    Reset,
    /// 200 once the gate is open.
    Held(Held),
}

/// A gate that answers wait at.
#[derive(Clone, Default)]
pub struct Held(Arc<(Mutex<bool>, Condvar)>);

impl Held {
    /// Lets everything through from now on.
    pub fn open(&self) {
        *self.0.0.lock().expect("nobody panics with it") = true;
        self.0.1.notify_all();
    }

    /// Waits for that.
    pub fn wait(&self) {
        let open = self.0.0.lock().expect("nobody panics with it");
        let _open = self.0.1.wait_timeout_while(open, DEADLINE, |open| !*open);
    }
}

/// A listening peer. Its threads end with the test.
pub struct Peer {
    /// Where it listens.
    pub address: SocketAddr,
    received: Receiver<Received>,
    listener: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    /// Every connection that is open.
    streams: Mutex<Vec<(usize, TcpStream)>>,
    tls: Option<Arc<ServerConfig>>,
    decide: Box<dyn Fn(&Received) -> Reply + Send + Sync>,
    sender: Mutex<(Sender<Received>, usize)>,
}

/// An address that refuses connections until it becomes a [`Peer`]. It is bound all the while: a port that is merely free may
/// belong to another test a moment later.
pub struct Absent(socket2::Socket);

impl Absent {
    /// Takes a port and does not listen on it.
    pub fn new() -> Self {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        socket.bind(&any.into()).expect("loopback has ports");
        Self(socket)
    }

    /// The same for another process, which binds it as well, as every server may (SO_REUSEADDR).
    pub fn for_another() -> Self {
        let absent = Self::new();
        absent.0.set_reuse_address(true).expect("a socket");
        absent
    }

    /// Where it will be.
    pub fn address(&self) -> SocketAddr {
        let address = self.0.local_addr().expect("it is bound").as_socket();
        address.expect("an IP address")
    }

    /// As a `--to` value.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Listens from now on and accepts everything.
    pub fn appear(self) -> Peer {
        self.appear_deciding(|_| Reply::Ok)
    }

    /// The same, with `decide` asked for each request.
    pub fn appear_deciding(self, decide: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Peer {
        self.0.listen(128).expect("it is bound");
        Peer::on(self.0.into(), decide)
    }
}

impl Peer {
    /// Listens and accepts everything.
    pub fn start() -> Self {
        Self::deciding(|_| Reply::Ok)
    }

    /// Listens; `decide` is asked for each request.
    pub fn deciding(decide: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        Self::on(listener, decide)
    }

    /// The same on a listener that exists.
    pub fn on(listener: TcpListener, decide: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Self::speaking(None, listener, decide)
    }

    /// Listens and speaks TLS.
    pub fn with_tls(
        tls: Arc<ServerConfig>,
        decide: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        Self::speaking(Some(tls), listener, decide)
    }

    fn speaking(
        tls: Option<Arc<ServerConfig>>,
        listener: TcpListener,
        decide: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("it is bound");
        let (sender, received) = mpsc::channel();
        let shared = Arc::new(Shared {
            streams: Mutex::default(),
            tls,
            decide: Box::new(decide),
            sender: Mutex::new((sender, 0)),
        });
        let peer = Self {
            address,
            received,
            listener: listener.try_clone().expect("a descriptor"),
            shared: shared.clone(),
        };
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let shared = shared.clone();
                shared
                    .streams()
                    .push((connection, stream.try_clone().expect("a descriptor")));
                std::thread::spawn(move || {
                    let link = match &shared.tls {
                        None => Link::Plain(stream),
                        Some(config) => Link::server(stream, config.clone()),
                    };
                    let _ended = serve(link, connection, &shared);
                    shared.streams().retain(|(open, _)| *open != connection);
                });
            }
        });
        peer
    }

    /// Its host vanishes for the connections that are open now: no packet on them is seen, answered or reset any more.
    pub fn vanish_from_connections(&self) {
        for (_, stream) in self.shared.streams().iter() {
            vanish(&SockRef::from(stream));
        }
    }

    /// Its host vanishes altogether, for new connections too.
    pub fn vanish(&self) {
        vanish(&SockRef::from(&self.listener));
        self.vanish_from_connections();
    }

    /// Its host is back.
    pub fn reappear(&self) {
        let _never_gone = SockRef::from(&self.listener).detach_filter();
        for (_, stream) in self.shared.streams().iter() {
            let _never_gone = SockRef::from(stream).detach_filter();
        }
    }

    /// Closes all connections, once the answers under way are out.
    pub fn close_connections(&self) {
        for (_, stream) in self.shared.streams().iter() {
            // Whoever waits for the next request finds the end.
            let _closed_already = stream.shutdown(std::net::Shutdown::Read);
        }
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.shared.streams().len()
    }

    /// As a `--to` value.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same for one that speaks TLS.
    pub fn https(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The next request.
    pub fn next(&self) -> Received {
        self.received
            .recv_timeout(DEADLINE)
            .expect("the destination gets a request in time")
    }

    /// The next `count` requests.
    pub fn take(&self, count: usize) -> Vec<Received> {
        (0..count).map(|_| self.next()).collect()
    }

    /// All requests that have come and were not taken.
    pub fn received(&self) -> Vec<Received> {
        self.received.try_iter().collect()
    }

    /// Asserts that nothing comes within `time`, for what must never be sent.
    pub fn expect_nothing(&self, time: Duration, why: &str) {
        if let Ok(request) = self.received.recv_timeout(time) {
            panic!("{why}: got {request:?}");
        }
    }
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, Vec<(usize, TcpStream)>> {
        self.streams.lock().expect("nobody panics with it")
    }
}

/// Makes the kernel drop every packet that comes in for a socket, without a word: a black hole that needs no rights.
fn vanish(socket: &SockRef<'_>) {
    // A classic BPF program of one instruction: keep 0 bytes of the packet.
    const KEEP: u16 = 0x06;
    socket
        .attach_filter(&[SockFilter::new(KEEP, 0, 0, 0)])
        .expect("a filter");
}

fn serve(link: Link, connection: usize, shared: &Shared) -> io::Result<()> {
    link.tcp().set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(64 << 10, link);
    while let Some((target, headers, body)) = read_request(&mut reader)? {
        let request = {
            let mut sender = shared.sender.lock().expect("nobody panics with it");
            let request = Received {
                connection,
                index: sender.1,
                target,
                headers,
                body,
                certificate: reader.get_ref().peer_certificate(),
                #[allow(clippy::disallowed_methods)] // when it really was is what tests ask
                at: Instant::now(),
            };
            sender.1 += 1;
            let _test_may_be_over = sender.0.send(request.clone());
            request
        };
        let writer = reader.get_mut();
        let ok = b"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 0\r\n\r\n";
        match (shared.decide)(&request) {
            Reply::Ok => writer.write_all(ok)?,
            Reply::Held(held) => {
                held.wait();
                writer.write_all(ok)?;
            }
            Reply::OkThenClose => {
                writer.write_all(ok)?;
                return writer.say_goodbye();
            }
            Reply::Status(status, headers) => {
                write!(
                    writer,
                    "HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{headers}\r\n"
                )?;
            }
            Reply::Json(status, body) => {
                let length = body.len();
                let head = format!("HTTP/1.1 {status} Status\r\nContent-Type: application/json");
                write!(writer, "{head}\r\nContent-Length: {length}\r\n\r\n{body}")?;
            }
            Reply::Close => return Ok(()),
            Reply::Reset => return SockRef::from(writer.tcp()).set_linger(Some(Duration::ZERO)),
        }
    }
    Ok(())
}

type Request = (String, Vec<(String, String)>, Vec<u8>);

fn read_request(reader: &mut BufReader<Link>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((target, headers, body)))
}
