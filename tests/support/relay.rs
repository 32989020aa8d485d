//! A TCP relay that writes down both directions, and the reading of what it wrote down as HTTP/1.1 exchanges.
//!
//! It stands between a client that we do not control and the gateway, so that a test knows what the client really sent.
//! It changes nothing and understands nothing while bytes pass. Not responsible for judging exchanges.

#![allow(dead_code)] // every test binary compiles this file and uses its own part of it

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::support::eventually;

/// The relay; its threads end with the test.
pub struct Relay {
    /// Where clients connect.
    pub address: SocketAddr,
    connections: Arc<Mutex<Vec<Arc<Tape>>>>,
}

/// One connection, as it went.
#[derive(Default)]
struct Tape {
    sent: Mutex<Vec<u8>>,
    answered: Mutex<Vec<u8>>,
}

/// One request and its answer.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Such as `POST`.
    pub method: String,
    /// Before the `?`, as sent.
    pub path: String,
    /// Behind the `?`, as sent.
    pub query: String,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// Without chunk framing, otherwise as sent.
    pub body: Vec<u8>,
    /// The final status of the answer.
    pub status: u16,
}

impl Relay {
    /// Relays to `target` from a free port.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("bound");
        let connections = Arc::new(Mutex::new(Vec::new()));
        let shared = connections.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let tape = Arc::new(Tape::default());
                shared.lock().expect("nobody panics").push(tape.clone());
                if let Err(error) = relay(client, target, tape) {
                    // The client sees a closed connection and complains, which the test reads.
                    let _ = writeln!(io::stderr(), "relay: {error}");
                }
            }
        });
        Self { address, connections }
    }

    /// Waits until every connection is closed, then reads them all.
    ///
    /// # Errors
    /// What on a connection is no whole HTTP/1.1 exchange.
    pub fn exchanges(&self) -> Result<Vec<Exchange>, String> {
        eventually("the end of every relayed connection", || {
            let connections = self.connections.lock().expect("nobody panics");
            connections
                .iter()
                .all(|tape| Arc::strong_count(tape) == 1)
                .then_some(())
        });
        let connections = self.connections.lock().expect("nobody panics");
        let mut all = Vec::new();
        for tape in connections.iter() {
            let sent = tape.sent.lock().expect("nobody panics");
            let answered = tape.answered.lock().expect("nobody panics");
            all.extend(exchanges(&sent, &answered)?);
        }
        Ok(all)
    }
}

fn relay(client: TcpStream, target: SocketAddr, tape: Arc<Tape>) -> io::Result<()> {
    let server = TcpStream::connect(target)?;
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let (back_from, back_to) = (server.try_clone()?, client.try_clone()?);
    let back = tape.clone();
    std::thread::spawn(move || pump(back_from, back_to, |bytes| keep(&back.answered, bytes)));
    std::thread::spawn(move || pump(client, server, |bytes| keep(&tape.sent, bytes)));
    Ok(())
}

fn keep(tape: &Mutex<Vec<u8>>, bytes: &[u8]) {
    tape.lock().expect("nobody panics").extend_from_slice(bytes);
}

/// Moves bytes until one side ends; the end is passed on.
fn pump(mut from: TcpStream, mut to: TcpStream, keep: impl Fn(&[u8])) {
    let mut buffer = [0; 64 << 10];
    while let Ok(received @ 1..) = from.read(&mut buffer) {
        keep(&buffer[..received]);
        if to.write_all(&buffer[..received]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn exchanges(sent: &[u8], answered: &[u8]) -> Result<Vec<Exchange>, String> {
    let (mut sent, mut answered) = (sent, answered);
    let mut all = Vec::new();
    while !sent.is_empty() {
        let mut exchange = request(&mut sent)?;
        exchange.status = status(&mut answered)
            .map_err(|error| format!("{error}: the answer to {} {}", exchange.method, exchange.path))?;
        all.push(exchange);
    }
    match answered {
        [] => Ok(all),
        more => Err(format!(
            "more answers than requests: {}",
            String::from_utf8_lossy(more)
        )),
    }
}

fn request(rest: &mut &[u8]) -> Result<Exchange, String> {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut fields);
    let head = match request.parse(rest).map_err(|error| error.to_string())? {
        httparse::Status::Complete(head) => head,
        httparse::Status::Partial => return Err("a head without its end".into()),
    };
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let exchange = Exchange {
        method: request.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: headers(request.headers),
        body: Vec::new(),
        status: 0,
    };
    *rest = &rest[head..];
    let body = body(rest, &exchange.headers)?;
    Ok(Exchange { body, ..exchange })
}

/// The status of the next final answer.
fn status(rest: &mut &[u8]) -> Result<u16, String> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut answer = httparse::Response::new(&mut fields);
        let head = match answer.parse(rest).map_err(|error| error.to_string())? {
            httparse::Status::Complete(head) => head,
            httparse::Status::Partial => return Err("no whole answer".into()),
        };
        let (status, headers) = (answer.code.unwrap_or_default(), headers(answer.headers));
        *rest = &rest[head..];
        if !matches!(status, 100..=199) {
            body(rest, &headers)?;
            return Ok(status);
        }
    }
}

fn headers(fields: &[httparse::Header<'_>]) -> Vec<(String, String)> {
    let pair = |field: &httparse::Header<'_>| {
        let value = String::from_utf8_lossy(field.value).into_owned();
        (field.name.to_ascii_lowercase(), value)
    };
    fields.iter().map(pair).collect()
}

fn body(rest: &mut &[u8], headers: &[(String, String)]) -> Result<Vec<u8>, String> {
    let header = |name: &str| headers.iter().find(|(key, _)| key == name);
    if let Some((_, coding)) = header("transfer-encoding") {
        assert_eq!(coding, "chunked", "the only coding our clients use");
        return chunks(rest);
    }
    let length = header("content-length").map_or(Ok(0), |(_, length)| length.parse());
    let length: usize = length.map_err(|_| "a bad Content-Length")?;
    take(rest, length).map(<[u8]>::to_vec)
}

fn chunks(rest: &mut &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let line_end = memchr::memmem::find(rest, b"\r\n").ok_or("a chunk without its size")?;
        let line = take(rest, line_end + 2)?;
        let size = String::from_utf8_lossy(&line[..line_end]).into_owned();
        let size = size.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| "a bad chunk size")?;
        body.extend_from_slice(take(rest, size)?);
        if take(rest, 2)? != b"\r\n" {
            return Err("a chunk without its end, or trailers".into());
        }
        if size == 0 {
            return Ok(body);
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    let (taken, left) = rest.split_at_checked(length).ok_or("a body cut short")?;
    *rest = left;
    Ok(taken)
}
