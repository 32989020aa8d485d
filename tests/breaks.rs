//! Connections that end too early, by FIN and by RST, at every step of the protocol and on both sides of the gateway.
//!
//! What was complete is delivered exactly once, what was not is refused and reaches nobody, nothing is counted twice, and
//! no connection and no byte of memory is held afterwards. Not responsible for clients and destinations that are merely
//! slow (`hostile`, `faults`).

#![allow(clippy::disallowed_methods)] // sockets are given deadlines

#[path = "support/scripted.rs"]
mod scripted;
mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use scripted::{Scripted, receive};
use support::gateway::{Gateway, to};
use support::peer::{Held, Peer, Reply};
use support::wire::{PUSH, name_of};
use support::{DEADLINE, post, under_both_engines};

under_both_engines!(
    a_client_may_end_at_any_step,
    a_client_may_end_while_it_waits,
    a_client_may_end_while_it_is_answered,
    a_destination_may_end_at_any_step,
);

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// FIN, and what the other side still says is read.
    HalfClose,
    /// FIN, and nobody reads any more.
    Close,
    /// RST.
    Reset,
}

const ENDS: [End; 3] = [End::HalfClose, End::Close, End::Reset];

impl End {
    /// Ends a connection and returns what the other side said until it ended too.
    fn apply(self, mut stream: TcpStream) -> Vec<u8> {
        let mut told = Vec::new();
        match self {
            Self::HalfClose => {
                let _gone_already = stream.shutdown(Shutdown::Write);
                let mut buffer = [0; 16 << 10];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    told.extend_from_slice(&buffer[..count]);
                }
            }
            Self::Close => {}
            Self::Reset => {
                let socket = socket2::SockRef::from(&stream);
                socket.set_linger(Some(Duration::ZERO)).expect("a socket");
            }
        }
        told
    }
}

/// What a client has sent when it ends.
struct Step {
    name: &'static str,
    sent: Vec<u8>,
    /// The bodies of the requests that are complete.
    whole: &'static [&'static str],
    /// What a client that half-closes is told, final answers only.
    told: &'static [u16],
}

/// Every step from the handshake to an idle connection. Requests are named after the step.
fn steps() -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step = |name: &'static str, sent: &[&[u8]], whole, told| {
        let sent = sent.concat();
        steps.push(Step {
            name,
            sent,
            whole,
            told,
        });
    };
    let head = |name: &str, fields: &str| {
        format!("POST /ingest?name={name} HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes()
    };
    let length = "Content-Length: 10\r\n";
    let large = "Content-Length: 1048576\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    let whole = |name: &str, body: &str| post(&format!("/ingest?name={name}"), &[], body.as_bytes());
    step("after_connect", &[], &[], &[]);
    step("in_the_method", &[b"PO"], &[], &[]);
    step("in_the_request_line", &[b"POST /ingest?name=in_the"], &[], &[]);
    step("in_the_head", &[&head("in_the_head", length)[..50]], &[], &[]);
    let name = "before_the_blank_line";
    let all = head(name, length);
    step(name, &[&all[..all.len() - 1]], &[], &[]);
    step("after_the_head", &[&head("after_the_head", length)], &[], &[400]);
    let name = "after_an_expectation";
    step(
        name,
        &[&head(name, "Expect: 100-continue\r\nContent-Length: 10\r\n")],
        &[],
        &[400],
    );
    step(
        "in_the_body",
        &[&head("in_the_body", length), b"hello"],
        &[],
        &[400],
    );
    let name = "before_the_last_byte";
    step(name, &[&head(name, length), b"hello you"], &[], &[400]);
    let name = "in_a_large_body";
    step(name, &[&head(name, large), &[b'x'; 500_000]], &[], &[400]);
    for (name, sent) in [
        ("before_a_chunk_size", &b""[..]),
        ("in_a_chunk_size", b"1"),
        ("in_the_end_of_a_chunk_size", b"5\r"),
        ("after_a_chunk_size", b"5\r\n"),
        ("in_a_chunk", b"5\r\nhel"),
        ("after_the_data_of_a_chunk", b"5\r\nhello"),
        ("after_a_chunk", b"5\r\nhello\r\n"),
        ("in_the_last_chunk", b"5\r\nhello\r\n0\r"),
        ("after_the_last_chunk", b"5\r\nhello\r\n0\r\n"),
        ("in_a_trailer", b"5\r\nhello\r\n0\r\nA: b"),
        ("before_the_last_line", b"5\r\nhello\r\n0\r\nA: b\r\n\r"),
    ] {
        step(name, &[&head(name, chunked), sent], &[], &[400]);
    }
    let push = |name: &str| {
        post(
            &format!("{PUSH}?{name}"),
            &[("Content-Type", "application/proto")],
            &[0; 50],
        )
    };
    // Connect's word for a client that has left (WIRE.md 3.2).
    step("in_a_push", &[&push("in_a_push")[..120]], &[], &[499]);
    let name = "in_a_refused_body";
    step(
        name,
        &[b"POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhello"],
        &[],
        &[404],
    );
    let name = "after_a_request";
    step(name, &[&whole(name, "one")], &["one"], &[200]);
    let name = "after_a_chunked_request";
    step(
        name,
        &[&head(name, chunked), b"5\r\nhello\r\n0\r\n\r\n"],
        &["hello"],
        &[200],
    );
    let name = "after_two_requests";
    step(
        name,
        &[&whole(name, "one"), &whole(name, "two")],
        &["one", "two"],
        &[200, 200],
    );
    let name = "in_the_second_head";
    step(name, &[&whole(name, "one"), b"POST /ingest?na"], &["one"], &[200]);
    let name = "in_the_second_body";
    step(
        name,
        &[&whole(name, "one"), &head(name, length), b"two"],
        &["one"],
        &[200, 400],
    );
    let name = "in_the_second_chunk";
    step(
        name,
        &[&whole(name, "one"), &head(name, chunked), b"5\r\ntwo"],
        &["one"],
        &[200, 400],
    );
    steps
}

/// A connection to the gateway.
fn connect(gateway: &Gateway) -> TcpStream {
    let stream = TcpStream::connect(gateway.address).expect("the gateway listens");
    stream.set_nodelay(true).expect("a TCP socket");
    stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
    stream.set_write_timeout(Some(DEADLINE)).expect("not zero");
    stream
}

/// The final statuses among what a client was told.
fn statuses(told: &[u8]) -> Vec<u16> {
    let lines = memchr::memmem::find_iter(told, b"HTTP/1.1 ");
    let statuses = lines.filter_map(|at| std::str::from_utf8(told.get(at + 9..at + 12)?).ok()?.parse().ok());
    statuses.filter(|status| *status >= 200).collect()
}

/// Names and bodies.
type Arrived = Vec<(String, Vec<u8>)>;

/// What reached the destination is what was meant, once, and so say the books.
fn compare(gateway: Gateway, peer: &Peer, mut meant: Arrived) {
    gateway.await_rest();
    let farewell = &gateway.farewell()["a"];
    let count = meant.len() as u64;
    assert_eq!(
        (farewell.accepted(), farewell.delivered),
        (count, count),
        "{farewell:?}"
    );
    let bare = |name: String| name.split('{').next().unwrap_or_default().to_owned();
    let mut arrived: Arrived = peer
        .take(meant.len())
        .into_iter()
        .map(|request| (bare(name_of(request.query())), request.body))
        .collect();
    arrived.sort();
    meant.sort();
    assert_eq!(arrived, meant);
}

const WATCHED: [&str; 2] = ["--admin", "127.0.0.1:0"];

fn a_client_may_end_at_any_step(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &WATCHED);
    let mut meant = Vec::new();
    for end in ENDS {
        for step in steps() {
            let mut stream = connect(&gateway);
            stream.write_all(&step.sent).expect("the gateway reads");
            let told = end.apply(stream);
            if end == End::HalfClose {
                assert_eq!(
                    statuses(&told),
                    step.told,
                    "{} by {end:?}: {}",
                    step.name,
                    told.escape_ascii()
                );
            }
            let bodies = step.whole.iter();
            meant.extend(bodies.map(|body| (step.name.to_owned(), body.as_bytes().to_vec())));
            assert_eq!(
                gateway.ingest("next").status,
                200,
                "after {} by {end:?}",
                step.name
            );
            meant.push(("app".to_owned(), b"next".to_vec()));
        }
    }
    compare(gateway, &peer, meant);
}

/// Under every policy the profile is the gateway's from its last byte on.
fn a_client_may_end_while_it_waits(engine: &str) {
    for ack in ["queued", "first", "all"] {
        let held = Held::default();
        let gate = held.clone();
        let peer = Peer::deciding(move |_| Reply::Held(gate.clone()));
        let gateway = Gateway::before(engine, &[&peer], &[&WATCHED[..], &["--ack", ack]].concat());
        let mut half_closed = Vec::new();
        for (number, end) in ENDS.into_iter().cycle().take(12).enumerate() {
            let mut stream = connect(&gateway);
            let name = format!("number_{number}");
            let request = post(&format!("/ingest?name={name}"), &[], name.as_bytes());
            stream.write_all(&request).expect("the gateway reads");
            assert_eq!(peer.next().body, name.as_bytes(), "it is on its way");
            match end {
                End::HalfClose => {
                    stream.shutdown(Shutdown::Write).expect("still connected");
                    half_closed.push(stream);
                }
                end => drop(end.apply(stream)),
            }
        }
        held.open();
        for mut stream in half_closed {
            let mut told = Vec::new();
            stream.read_to_end(&mut told).expect("an answer and the end");
            assert_eq!(
                statuses(&told),
                [200],
                "--ack {ack}: who half-closes still listens"
            );
        }
        gateway.await_rest();
        let farewell = &gateway.farewell()["a"];
        assert_eq!((farewell.delivered, farewell.accepted()), (12, 12), "--ack {ack}");
        peer.expect_nothing(Duration::from_millis(20), "nothing twice");
    }
}

/// Answers of 8 KiB, until the gateway cannot write any more: then the client ends.
fn a_client_may_end_while_it_is_answered(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &WATCHED);
    let redirected = format!(
        "POST //ingest?{} HTTP/1.1\r\nHost: h\r\n\r\n",
        "x".repeat(8 << 10)
    );
    let mut meant = Vec::new();
    for end in ENDS {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4 << 10).expect("a size");
        socket
            .connect(&gateway.address.into())
            .expect("the gateway listens");
        socket
            .set_write_timeout(Some(Duration::from_millis(200)))
            .expect("not zero");
        socket.set_read_timeout(Some(DEADLINE)).expect("not zero");
        let mut stream: TcpStream = socket.into();
        stream
            .write_all(&post("/ingest?name=answered", &[], format!("{end:?}").as_bytes()))
            .expect("the gateway reads");
        meant.push(("answered".to_owned(), format!("{end:?}").into_bytes()));
        let stopped = loop {
            if let Err(error) = stream.write_all(redirected.as_bytes()) {
                break error.kind();
            }
        };
        // It reads no further request before it has written the last answer.
        assert_eq!(stopped, ErrorKind::WouldBlock, "{end:?}");
        let told = end.apply(stream);
        if end == End::HalfClose {
            let told = statuses(&told);
            assert!(
                told[0] == 200 && told[1..].iter().all(|status| *status == 301),
                "{told:?}"
            );
        }
        assert_eq!(gateway.ingest("next").status, 200, "after {end:?}");
        meant.push(("app".to_owned(), b"next".to_vec()));
    }
    compare(gateway, &peer, meant);
}

/// What a destination does with the first attempt before it ends.
struct Turn {
    name: &'static str,
    reads: Reads,
    says: &'static str,
    comes_to: Outcome,
}

/// How much of the request it reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    Nothing,
    Head,
    Some,
    All,
}

/// What becomes of the profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It is sent again, and taken then.
    Again,
    /// The destination has it.
    Taken,
    /// The destination does not want it.
    Refused,
}

/// Every step of an answer. What is said counts where it is whole; an early yes is one only to a request that has gone out
/// whole, for nobody keeps what he has not got.
const TURNS: [Turn; 20] = [
    turn("before_reading", Reads::Nothing, "", Outcome::Again),
    turn("after_the_head_of_the_request", Reads::Head, "", Outcome::Again),
    turn("in_the_body_of_the_request", Reads::Some, "", Outcome::Again),
    turn("before_answering", Reads::All, "", Outcome::Again),
    turn("in_the_status_line", Reads::All, "HTTP/1.1 20", Outcome::Again),
    turn(
        "after_the_status_line",
        Reads::All,
        "HTTP/1.1 200 OK\r\n",
        Outcome::Again,
    ),
    turn(
        "in_the_head",
        Reads::All,
        "HTTP/1.1 200 OK\r\nContent-Len",
        Outcome::Again,
    ),
    turn(
        "after_the_head",
        Reads::All,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        Outcome::Again,
    ),
    turn(
        "in_the_body",
        Reads::All,
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        Outcome::Again,
    ),
    turn(
        "in_a_chunk_size",
        Reads::All,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1",
        Outcome::Again,
    ),
    turn(
        "in_a_chunk",
        Reads::All,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        Outcome::Again,
    ),
    turn(
        "in_the_last_chunk",
        Reads::All,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        Outcome::Again,
    ),
    turn(
        "after_an_interim_answer",
        Reads::All,
        "HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n",
        Outcome::Again,
    ),
    turn(
        "after_going_on",
        Reads::Head,
        "HTTP/1.1 100 Continue\r\n\r\n",
        Outcome::Again,
    ),
    turn(
        "in_an_interim_answer",
        Reads::Head,
        "HTTP/1.1 103 Early",
        Outcome::Again,
    ),
    turn(
        "after_an_answer",
        Reads::All,
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        Outcome::Taken,
    ),
    turn(
        "after_a_refusal",
        Reads::All,
        "HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n",
        Outcome::Refused,
    ),
    turn(
        "after_an_early_yes",
        Reads::Head,
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        Outcome::Again,
    ),
    turn(
        "after_an_early_no",
        Reads::Head,
        "HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n",
        Outcome::Refused,
    ),
    turn(
        "after_an_early_later",
        Reads::Head,
        "HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n",
        Outcome::Again,
    ),
];

const fn turn(name: &'static str, reads: Reads, says: &'static str, comes_to: Outcome) -> Turn {
    Turn {
        name,
        reads,
        says,
        comes_to,
    }
}

/// Larger than what the kernel takes of a request that nobody reads (the last number of net.ipv4.tcp_wmem, 4 MiB by default,
/// and the destination's small buffer).
const UNREAD_BYTES: usize = 6 << 20;

/// A destination that takes its turn with the first request after [`Turning::take_turn`] and is good to all others.
#[derive(Clone, Default)]
struct Turning(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    turn: Option<(usize, End)>,
    /// Lengths of the bodies that came whole and were taken.
    taken: Vec<usize>,
}

impl Turning {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_turn(&self, turn: usize, end: End) {
        self.state().turn = Some((turn, end));
    }

    fn serve(&self, connection: usize, stream: &mut TcpStream) {
        let turn = self.state().turn.take();
        let Some((turn, end)) = turn else {
            if let Ok(Some(request)) = receive(stream, connection, &mut Vec::new()) {
                self.state().taken.push(request.body.len());
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
            return;
        };
        let turn = &TURNS[turn];
        let socket = socket2::SockRef::from(&*stream);
        socket.set_recv_buffer_size(4 << 10).expect("a size");
        let mut some = [0; 300];
        let read = match turn.reads {
            Reads::Nothing => Ok(()),
            // The head is shorter than this, what is behind it does not matter.
            Reads::Head => stream.read_exact(&mut some),
            Reads::Some => stream.read_exact(&mut [0; 100_000]),
            Reads::All => receive(stream, connection, &mut Vec::new()).map(|request| {
                if turn.comes_to == Outcome::Taken {
                    self.state()
                        .taken
                        .extend(request.map(|request| request.body.len()));
                }
            }),
        };
        read.expect("the gateway sends");
        stream
            .write_all(turn.says.as_bytes())
            .expect("the gateway listens");
        // A destination that half-closes waits for the gateway to end, and reads nothing before that.
        if end == End::HalfClose {
            stream.shutdown(Shutdown::Write).expect("still connected");
            if turn.reads == Reads::All {
                let _ = stream.read(&mut some);
            } else {
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        if end == End::Reset {
            let socket = socket2::SockRef::from(&*stream);
            socket.set_linger(Some(Duration::ZERO)).expect("a socket");
        }
    }
}

fn a_destination_may_end_at_any_step(engine: &str) {
    let turning = Turning::default();
    let serving = turning.clone();
    let destination = Scripted::raw(move |connection, stream| serving.serve(connection, stream));
    let flags = [
        "--ack",
        "all",
        "--min-backoff",
        "10ms",
        "--max-backoff",
        "20ms",
        "--remote-timeout",
        "5s",
    ];
    let mut all = to(&[destination.url()]);
    all.extend(WATCHED.iter().chain(&flags).map(|flag| (*flag).to_owned()));
    let gateway = Gateway::start(engine, &all);
    let (mut delivered, mut refused) = (0, 0);
    for end in ENDS {
        for (index, turn) in TURNS.iter().enumerate() {
            let what = format!("{} by {end:?}", turn.name);
            turning.take_turn(index, end);
            let bytes = if turn.reads == Reads::All {
                1000
            } else {
                UNREAD_BYTES
            };
            let body = vec![b'x'; bytes + index];
            let mut client = gateway.client();
            let answer = client.post("/ingest?name=app", &[], &body).expect(&what);
            let expected = if turn.comes_to == Outcome::Refused {
                400
            } else {
                200
            };
            assert_eq!(answer.status, expected, "{what}: {}", answer.text());
            let taken = std::mem::take(&mut turning.state().taken);
            if turn.comes_to == Outcome::Refused {
                refused += 1;
                assert!(taken.is_empty(), "{what}: {taken:?}");
            } else {
                delivered += 1;
                assert_eq!(taken, [body.len()], "{what}: whole, and once");
            }
        }
    }
    gateway.await_rest();
    let connections = r#"pyrotee_destination_connections{destination="a"}"#;
    support::eventually(connections, || (gateway.metric(connections) == 0.0).then_some(()));
    let farewell = &gateway.farewell()["a"];
    assert_eq!(
        (farewell.delivered, farewell.lost()),
        (delivered, refused),
        "{farewell:?}"
    );
    assert_eq!(farewell.dropped.get("rejected"), Some(&refused), "{farewell:?}");
}
