//! A destination in the test's hands: it keeps every request byte for byte and does what its script says.
//!
//! Responsible for: receiving requests exactly as they come, and answering, waiting, breaking off or flooding on command.
//! Not responsible for judging what it gets: the test reads [`Received`].

#![allow(dead_code)] // every test binary compiles this file and uses its own part of it

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use pyrotee::runtime::clock::{self, Mono};

use super::support::DEADLINE;

/// One thing a destination does, in order, once it has a request.
#[derive(Clone)]
pub enum Act {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Does nothing for a while.
    Wait(Duration),
    /// Does nothing until the latch opens.
    Await(Latch),
    /// Sends these bytes again and again, until the other side has enough or this many bytes are out.
    Flood(Vec<u8>, usize),
    /// Closes in order.
    Close,
    /// Closes with a reset.
    Reset,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// When its head was complete.
    pub at: Mono,
    /// Which connection brought it, counted from 0.
    pub connection: usize,
    /// Request line and fields, the blank line included.
    pub head: Vec<u8>,
    /// The body, its chunked framing (if any) removed.
    pub body: Vec<u8>,
}

impl Received {
    /// The first line.
    pub fn request_line(&self) -> String {
        let head = String::from_utf8_lossy(&self.head);
        head.split("\r\n").next().unwrap_or_default().to_owned()
    }

    /// Path and query.
    pub fn target(&self) -> String {
        self.request_line()
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .to_owned()
    }

    /// The path.
    pub fn path(&self) -> String {
        self.target().split('?').next().unwrap_or_default().to_owned()
    }

    /// What follows the first `?`.
    pub fn query(&self) -> String {
        let target = self.target();
        target.split_once('?').map_or("", |(_, query)| query).to_owned()
    }

    /// All fields: names as sent, in order.
    pub fn fields(&self) -> Vec<(String, String)> {
        let head = String::from_utf8_lossy(&self.head);
        head.split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect()
    }

    /// All values of a field, in order.
    pub fn values(&self, name: &str) -> Vec<String> {
        self.fields()
            .into_iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }

    /// The one value of a field; `None` without one. Panics when there are several.
    pub fn value(&self, name: &str) -> Option<String> {
        let values = self.values(name);
        assert!(values.len() < 2, "{name} is repeated: {values:?}");
        values.into_iter().next()
    }

    /// The values of a query parameter as they were sent, still encoded.
    pub fn parameters(&self, key: &str) -> Vec<String> {
        self.query()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value.to_owned())
            .collect()
    }

    /// The `name` parameter, decoded.
    pub fn name(&self) -> String {
        let names = self.parameters("name");
        assert_eq!(names.len(), 1, "one name is sent: {}", self.query());
        String::from_utf8(decode(&names[0])).expect("the name is UTF-8")
    }
}

/// Decodes `+` and `%XX`.
pub fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.map(|hex| u8::from_str_radix(hex, 16))) {
            (b'%', Some(Ok(byte))) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    out
}

/// Opens once, for everyone who waits.
#[derive(Clone, Default)]
pub struct Latch(Arc<(Mutex<bool>, Condvar)>);

impl Latch {
    /// Lets everyone through from now on.
    pub fn open(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open. Returns whether it was in time.
    pub fn wait(&self) -> bool {
        let waited = self
            .0
            .1
            .wait_timeout_while(lock(&self.0.0), DEADLINE, |open| !*open);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running scripted destination; it stops listening when dropped.
pub struct Scripted {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    received: Mutex<Vec<Received>>,
    news: Condvar,
    connections: AtomicUsize,
    stopped: AtomicBool,
}

type Script = dyn Fn(usize, &Received) -> Vec<Act> + Send + Sync;
type Raw = dyn Fn(usize, &mut TcpStream) + Send + Sync;

impl Scripted {
    /// Answers every request as a healthy destination does.
    pub fn healthy() -> Self {
        Self::answering(&[200])
    }

    /// Answers the first request with the first status, and so on; the last one again and again.
    pub fn answering(statuses: &[u16]) -> Self {
        let statuses = statuses.to_vec();
        Self::following(move |turn, request| {
            let status = statuses[turn.min(statuses.len() - 1)];
            vec![Act::Send(plain_answer(request, status))]
        })
    }

    /// Does what `script` says to the request with this number, counted from 0 over all connections.
    pub fn following(script: impl Fn(usize, &Received) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let script: Arc<Script> = Arc::new(script);
        Self::listening(move |shared, connection, stream| {
            let _ = serve(stream, connection, shared, &*script);
        })
    }

    /// Hands every connection to `handler` as it is. Nothing is recorded but the number of connections.
    pub fn raw(handler: impl Fn(usize, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let handler: Arc<Raw> = Arc::new(handler);
        Self::listening(move |_, connection, mut stream| handler(connection, &mut stream))
    }

    fn listening(serve: impl Fn(&Shared, usize, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            received: Mutex::new(Vec::new()),
            news: Condvar::new(),
            connections: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let (serve, accepting) = (Arc::new(serve), shared.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if accepting.stopped.load(Ordering::Acquire) {
                    return;
                }
                let connection = accepting.connections.fetch_add(1, Ordering::AcqRel);
                let (serve, shared) = (serve.clone(), accepting.clone());
                let _ = stream.set_nodelay(true);
                let _ = stream.set_read_timeout(Some(DEADLINE));
                let _ = stream.set_write_timeout(Some(DEADLINE));
                std::thread::spawn(move || serve(&shared, connection, stream));
            }
        });
        Self { address, shared }
    }

    /// `http://` and its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }

    /// All requests so far.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// Waits until there are at least `count` requests, and returns all.
    pub fn wait_for(&self, count: usize) -> Vec<Received> {
        let received = lock(&self.shared.received);
        let waited = self
            .shared
            .news
            .wait_timeout_while(received, DEADLINE, |received| received.len() < count);
        let (received, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "{count} requests awaited, got {received:#?}");
        received.clone()
    }

    /// The one request that has come; waits for it.
    pub fn only(&self) -> Received {
        let mut received = self.wait_for(1);
        assert_eq!(received.len(), 1, "{received:#?}");
        received.remove(0)
    }

    /// The newest request, after waiting for `count`.
    pub fn newest(&self, count: usize) -> Received {
        self.wait_for(count).pop().expect("count is not 0")
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // Wakes the thread that accepts, which then leaves and closes the port.
        let _ = TcpStream::connect(self.address);
    }
}

/// The bytes of an answer with `Content-Length`.
pub fn answer(status: u16, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Scripted\r\n");
    for (name, value) in fields {
        head += &format!("{name}: {value}\r\n");
    }
    // These have no body (RFC 9110 section 15).
    let body = if matches!(status, 100..=199 | 204 | 304) {
        b""
    } else {
        body
    };
    if !matches!(status, 100..=199 | 204 | 304) {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    head += "\r\n";
    [head.as_bytes(), body].concat()
}

/// What a plain server answers; 200 to a Push is what a Connect server says.
pub fn plain_answer(request: &Received, status: u16) -> Vec<u8> {
    if status == 200 && request.path().ends_with("/Push") {
        answer(200, &[("Content-Type", "application/proto")], b"")
    } else if status == 200 {
        answer(200, &[], b"")
    } else {
        answer(status, &[("Content-Type", "text/plain")], b"scripted refusal\n")
    }
}

/// What a Connect server answers when it refuses.
pub fn connect_error(status: u16, code: &str) -> Vec<u8> {
    let body = format!(r#"{{"code":"{code}","message":"scripted refusal"}}"#);
    answer(status, &[("Content-Type", "application/json")], body.as_bytes())
}

fn serve(mut stream: TcpStream, connection: usize, shared: &Shared, script: &Script) -> io::Result<()> {
    let mut pending = Vec::new();
    while let Some(request) = receive(&mut stream, connection, &mut pending)? {
        let turn = {
            let mut received = lock(&shared.received);
            received.push(request.clone());
            shared.news.notify_all();
            received.len() - 1
        };
        for act in script(turn, &request) {
            if !perform(&mut stream, act)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Does one thing. Returns whether the connection goes on.
pub fn perform(stream: &mut TcpStream, act: Act) -> io::Result<bool> {
    match act {
        Act::Send(bytes) => stream.write_all(&bytes).map(|()| true),
        Act::Wait(time) => {
            std::thread::sleep(time);
            Ok(true)
        }
        Act::Await(latch) => Ok(latch.wait()),
        Act::Flood(bytes, most) => {
            let mut sent = 0;
            while sent < most {
                stream.write_all(&bytes)?;
                sent += bytes.len();
            }
            Ok(true)
        }
        Act::Close => Ok(false),
        Act::Reset => {
            // With no time to linger, closing resets.
            socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
            Ok(false)
        }
    }
}

/// Reads one request; `None` when the other side closes between two.
pub fn receive(
    stream: &mut TcpStream,
    connection: usize,
    pending: &mut Vec<u8>,
) -> io::Result<Option<Received>> {
    let head_end = loop {
        if let Some(at) = memchr::memmem::find(pending, b"\r\n\r\n") {
            break at + 4;
        }
        if more(stream, pending)? == 0 {
            return Ok(None);
        }
    };
    let mut request = Received {
        at: clock::now(),
        connection,
        head: pending.drain(..head_end).collect(),
        body: Vec::new(),
    };
    let length = request
        .value("content-length")
        .map(|value| value.parse::<usize>());
    let length = length
        .transpose()
        .map_err(io::Error::other)?
        .ok_or_else(|| io::Error::other("every request of the gateway says its length"))?;
    while pending.len() < length {
        if more(stream, pending)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    request.body = pending.drain(..length).collect();
    Ok(Some(request))
}

fn more(stream: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = [0; 64 << 10];
    let received = loop {
        match stream.read(&mut buffer) {
            // With a timeout a receive ends so where this process was stopped meanwhile (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    pending.extend_from_slice(&buffer[..received]);
    Ok(received)
}

/// Reads a request head and then its chunked body, as fast as `pause` lets it; tells how many body bytes came, and whether
/// the last chunk was among them.
pub fn read_chunked(stream: &mut TcpStream, pause: Option<&mpsc::Receiver<()>>) -> (String, u64, bool) {
    let mut pause = pause;
    read_chunked_when(stream, || {
        if let Some(pause) = pause.take() {
            let _ = pause.recv_timeout(DEADLINE);
        }
    })
}

/// The same, waiting for `ready` before each read behind the head.
pub fn read_chunked_when(stream: &mut TcpStream, mut ready: impl FnMut()) -> (String, u64, bool) {
    let mut all = Vec::new();
    let head_end = loop {
        if let Some(at) = memchr::memmem::find(&all, b"\r\n\r\n") {
            break at + 4;
        }
        assert!(more(stream, &mut all).unwrap() > 0, "a head comes");
    };
    let head = String::from_utf8(all.drain(..head_end).collect()).unwrap();
    ready();
    let mut decoder = pyrotee::http::ChunkedDecoder::new(pyrotee::http::ChunkLimits::default());
    let mut received = 0;
    loop {
        let mut at = 0;
        loop {
            match decoder.next(&all[at..]).unwrap() {
                pyrotee::http::Piece::Data(range) => {
                    received += range.len() as u64;
                    at += range.end;
                }
                pyrotee::http::Piece::End(_) => return (head, received, true),
                pyrotee::http::Piece::Starved => break,
            }
        }
        all.clear();
        ready();
        if !matches!(more(stream, &mut all), Ok(1..)) {
            return (head, received, false);
        }
    }
}

/// A destination that reads one upload and answers, and what it read.
pub fn uploaded(status: u16) -> (Scripted, mpsc::Receiver<(String, u64, bool)>) {
    let (sender, uploads) = mpsc::channel();
    let a = Scripted::raw(move |_, stream| {
        let upload = read_chunked(stream, None);
        if upload.2 {
            let _ = stream.write_all(&answer(status, &[], b"d0wnstream's words"));
        }
        let _ = sender.send(upload);
    });
    (a, uploads)
}
