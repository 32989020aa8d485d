//! Clients and destinations that mean harm or are merely endless: slow by the thousand, swelling, flooding, dead.
//!
//! Who behaves is served all the while, who does not is told and cut off, and resident memory stays within the formula of
//! docs/what-happens-when.md (`support::memory`). No test here judges speed: what is slow beside what is printed. Not
//! responsible for single odd clients (`faults`, `edges`) and for connections that break (`breaks`).

#![allow(clippy::disallowed_methods)] // latencies are printed

#[path = "support/scripted.rs"]
mod scripted;
mod support;

use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyrotee::runtime::raise_file_limit;
use scripted::{Act, Latch, Scripted};
use support::gateway::{Gateway, to};
use support::memory::{self, Memory};
use support::peer::{Absent, Peer, Reply};
use support::wire::{PUSH, encode, gzip, noise, push_message};
use support::{Client, DEADLINE, eventually, post, tell, under_both_engines};

under_both_engines!(
    a_crowd_that_is_slow_disturbs_nobody,
    swelling_heads_stay_within_the_limit,
    long_queries_stay_within_the_limit,
    endless_answers_stay_within_the_limit,
    what_a_flood_of_headers_took_is_given_back,
    dead_destinations_refuse_small_bodies,
    dead_destinations_refuse_medium_bodies,
    dead_destinations_refuse_large_bodies,
    dead_destinations_drop_small_bodies,
    dead_destinations_drop_medium_bodies,
    dead_destinations_drop_large_bodies,
    memory_comes_in_small_pages,
    spools_stay_within_the_limit,
);

const MIB: u64 = 1 << 20;
const WATCHED: [&str; 2] = ["--admin", "127.0.0.1:0"];

/// Each kind of slow client comes in this number, where descriptors allow.
const CROWD: usize = 2000;
/// Clients that ask for more than they read. More of them would fill the queue of packets that all of loopback shares, and the
/// one that behaves would wait for the kernel to send again.
const STUFFED: usize = 8;
/// How long a request may take to arrive, and its answer to be read.
const PATIENCE: Duration = Duration::from_secs(4);
/// A healthy client is answered within this time, whatever happens beside it: half of the time that SDKs wait (10 s), on a
/// machine that runs other tests too.
const HEALTHY_WITHIN: Duration = Duration::from_secs(5);

/// Bodies of all sizes go to the spools of two destinations that are dead, and come back when they live again: each spool's
/// thread has buffers, too.
fn spools_stay_within_the_limit(engine: &str) {
    const PUSHES: usize = 600;
    let spool = tempfile::tempdir().expect("a folder");
    let absent = [Absent::new(), Absent::new()];
    let urls: Vec<String> = absent.iter().map(Absent::url).collect();
    let folder = spool.path().to_str().expect("a plain path");
    let limits = [
        "--memory-limit",
        "8MiB",
        "--queue-limit",
        "3MiB",
        "--body-limit",
        "2MiB",
    ];
    let mut flags = to(&urls);
    flags.extend(
        [&limits[..], &["--spool", folder, "--ack", "stored"]]
            .concat()
            .iter()
            .map(|flag| (*flag).to_owned()),
    );
    let gateway = Gateway::start(engine, &flags);
    std::thread::scope(|scope| {
        for client in 0..3 {
            let mut connection = gateway.client();
            scope.spawn(move || {
                for number in 0..PUSHES / 3 {
                    let body = noise((number * 7_919 + client * 104_729) % 600_000 + 1, 0);
                    let answer = connection
                        .post("/ingest?name=app", &[], &body)
                        .expect("an answer");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
            });
        }
    });
    let peers = absent.map(Absent::appear);
    peers.iter().for_each(|peer| drop(peer.take(PUSHES)));
    let memory = Memory {
        limit: 8 * MIB,
        cores: 1,
        destinations: 2,
        spools: 2,
        connections: 3,
    };
    memory.assert_kept(&gateway, &format!("{engine}: {PUSHES} bodies through two spools"));
    gateway.end_whole();
}

/// With huge pages the formula would not hold on hosts that have them, where `--memory-limit` is small. What the program began
/// with may lie in some.
fn memory_comes_in_small_pages(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &[]);
    let huge = || {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", gateway.process.id()));
        let maps = maps.expect("the process lives");
        let huge = maps.lines().find_map(|line| line.strip_prefix("AnonHugePages:"));
        huge.expect("the kernel tells it").trim().to_owned()
    };
    let before = huge();
    let mut client = gateway.client();
    for size in (1..100).map(|step| step * 5_000) {
        let answer = client.post("/ingest?name=app", &[], &vec![b'.'; size]);
        assert_eq!(answer.expect("an answer").status, 200);
    }
    assert_eq!(huge(), before);
}

#[test]
fn the_formula_of_memory_is_the_one_on_the_page() {
    let page = include_str!("../docs/what-happens-when.md");
    let formula = memory::formula();
    assert!(page.lines().any(|line| line == formula), "{formula}");
}

/// One crowd at a time: descriptors are few.
fn crowd_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a slow client is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slow {
    /// A byte of the head now and then.
    Head,
    /// A byte of the body now and then.
    Body,
    /// Asks once, never reads what it is told, and says nothing more.
    Deaf,
    /// Asks again and again without reading, until the gateway cannot write. There are few of these: what they keep is the
    /// kernel's memory.
    Stuffed,
}

impl Slow {
    /// What it is told before it is cut off.
    fn is_told(self) -> &'static [u8] {
        match self {
            Self::Head | Self::Body => b"HTTP/1.1 408 ",
            Self::Deaf => b"HTTP/1.1 404 ",
            Self::Stuffed => b"HTTP/1.1 301 ",
        }
    }
}

/// Thousands of clients of each slow kind at once, while one that behaves pushes on: it is always served in time, all of
/// them are cut off at their timeouts, and memory stays within its formula.
fn a_crowd_that_is_slow_disturbs_nobody(engine: &str) {
    let _turn = crowd_turn();
    let files = usize::try_from(raise_file_limit().unwrap_or(1 << 20)).unwrap_or(usize::MAX);
    let each = CROWD.min(files.saturating_sub(400) / 3);
    if each < CROWD {
        tell(format_args!(
            "{each} slow clients of each kind instead of {CROWD}: {files} files may be open"
        ));
    }
    let peer = Peer::start();
    let flags = [
        "--memory-limit",
        "16MiB",
        "--read-timeout",
        "4s",
        "--write-timeout",
        "4s",
        "--idle-timeout",
        "4s",
    ];
    let gateway = Gateway::before(engine, &[&peer], &[&WATCHED[..], &flags].concat());
    let healthy = Healthy::start(gateway.address);
    healthy.await_answers(200);
    let before = healthy.latencies();

    let kinds = [Slow::Head, Slow::Body, Slow::Deaf];
    let kinds = (0..each).flat_map(|_| kinds).chain([Slow::Stuffed; STUFFED]);
    let mut crowd: Vec<(Slow, TcpStream)> = kinds.map(|slow| (slow, slow_client(&gateway, slow))).collect();
    let connections = r#"pyroscope_receive_http_tcp_connections{protocol="http"}"#;
    let clients = crowd.len();
    // Dripping is no way around the timeout.
    let dripping = Instant::now();
    let mut open_max = gateway.metric(connections);
    while dripping.elapsed() < PATIENCE {
        for (slow, stream) in &mut crowd {
            if matches!(slow, Slow::Head | Slow::Body) {
                let _cut_off_already = stream.write_all(b"x");
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        open_max = open_max.max(gateway.metric(connections));
    }
    // All of them, unless the first were cut off before the machine had let in the last.
    assert!(open_max > each as f64, "{open_max} of {clients} at once");
    eventually("the end of all others", || {
        (gateway.metric(connections) == 1.0).then_some(())
    });
    for (slow, mut stream) in crowd {
        let mut told = Vec::new();
        // The end is an event; how it comes is the kernel's business, for some have left bytes unread.
        if let Err(error) = stream.read_to_end(&mut told) {
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionReset,
                "{slow:?} is not cut off"
            );
        }
        assert!(
            told.starts_with(slow.is_told()),
            "{slow:?}: {}",
            told.escape_ascii()
        );
    }
    let (answers, during) = healthy.stop();
    tell(format_args!(
        "{engine}: {open_max} clients open; a healthy one waited {:?} (median) and {:?} (worst) beside {clients} slow ones, \
         {:?} and {:?} before: {:.1} times as long",
        during.median(),
        during.worst(),
        before.median(),
        before.worst(),
        during.median().as_secs_f64() / before.median().as_secs_f64(),
    ));
    let memory = Memory {
        limit: 16 * MIB,
        cores: 1,
        destinations: 1,
        spools: 0,
        connections: clients as u64 + 1,
    };
    memory.assert_kept(&gateway, &format!("{engine}: {clients} slow clients"));
    let farewell = &gateway.farewell()["a"];
    assert_eq!(
        (farewell.accepted(), farewell.delivered),
        (answers, answers),
        "{farewell:?}"
    );
}

/// A client that has sent a part of a request, or does not read its answers.
fn slow_client(gateway: &Gateway, slow: Slow) -> TcpStream {
    let mut stream = match slow {
        Slow::Stuffed => connect_deaf(gateway),
        _ => TcpStream::connect(gateway.address).expect("the gateway listens"),
    };
    stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
    let head = |fields: &str| format!("POST /ingest?name=slow HTTP/1.1\r\nHost: h\r\n{fields}");
    let sent = match slow {
        Slow::Head => head("X: "),
        Slow::Body => head("Content-Length: 5000\r\n\r\nhello"),
        Slow::Deaf => "GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
        Slow::Stuffed => {
            let redirected = format!(
                "POST //ingest?{} HTTP/1.1\r\nHost: h\r\n\r\n",
                "x".repeat(7 << 10)
            );
            redirected.repeat(100)
        }
    };
    let sent = stream.write_all(sent.as_bytes());
    assert!(slow == Slow::Stuffed || sent.is_ok(), "{slow:?}: {sent:?}");
    stream
}

/// A connection whose other side is soon full: with the segments of loopback the kernel would take megabytes of answers. It
/// gives up writing when the gateway does not read any more.
fn connect_deaf(gateway: &Gateway) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_tcp_mss(4096).expect("a size");
    socket
        .set_write_timeout(Some(Duration::from_millis(50)))
        .expect("not zero");
    socket
        .connect(&gateway.address.into())
        .expect("the gateway listens");
    socket.into()
}

/// A client that behaves and never stops pushing, on a thread of its own.
struct Healthy {
    stopped: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    waited: Arc<Mutex<Vec<Duration>>>,
    thread: std::thread::JoinHandle<()>,
}

/// How long answers took.
struct Latencies(Vec<Duration>);

impl Latencies {
    fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    fn worst(&self) -> Duration {
        self.0[self.0.len() - 1]
    }
}

impl Healthy {
    fn start(gateway: SocketAddr) -> Self {
        let (stopped, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let waited = Arc::new(Mutex::new(Vec::new()));
        let (stop, count, waits) = (stopped.clone(), answers.clone(), waited.clone());
        let thread = std::thread::spawn(move || {
            let mut client = Client::connect(gateway);
            client.set_patience(HEALTHY_WITHIN);
            let body = noise(1 << 10, 1);
            while !stop.load(Ordering::Acquire) {
                let asked = Instant::now();
                let answer = client.post("/ingest?name=healthy", &[], &body);
                let answer = answer.unwrap_or_else(|error| panic!("within {HEALTHY_WITHIN:?}: {error}"));
                assert_eq!(answer.status, 200, "{}", answer.text());
                waits.lock().expect("nobody panics with it").push(asked.elapsed());
                count.fetch_add(1, Ordering::AcqRel);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self {
            stopped,
            answers,
            waited,
            thread,
        }
    }

    fn await_answers(&self, count: u64) {
        eventually("healthy answers", || {
            (self.answers.load(Ordering::Acquire) >= count).then_some(())
        });
    }

    /// Since the last time.
    fn latencies(&self) -> Latencies {
        let mut waited = std::mem::take(&mut *self.waited.lock().expect("nobody panics with it"));
        waited.sort();
        Latencies(waited)
    }

    /// How many answers it got in all, and how long the last ones took.
    fn stop(self) -> (u64, Latencies) {
        self.await_answers(self.answers.load(Ordering::Acquire) + 1);
        let latencies = self.latencies();
        self.stopped.store(true, Ordering::Release);
        self.thread.join().expect("it was always served");
        (self.answers.load(Ordering::Acquire), latencies)
    }
}

/// A request that swells, and the statuses that it may be refused with.
struct Swelling {
    name: &'static str,
    request: Vec<u8>,
    refused: &'static [u16],
    body_limit: &'static str,
    at_once: usize,
}

/// Bodies that one client can send to make a careless server grow. What costs processor time rather than memory comes once.
fn swelling_bodies() -> Vec<Swelling> {
    let proto = ("Content-Type", "application/proto");
    let json = ("Content-Type", "application/json");
    let zipped = ("Content-Encoding", "gzip");
    let label =
        |name: &str, value: &str| encode(&push_message(&[("service_name", "s"), (name, value)], &[vec![1]]));
    let long = "v".repeat(17 << 20);
    let names: Vec<_> = (0..1_000_000).map(|number: u32| format!("l{number}")).collect();
    let pairs: Vec<_> = names.iter().map(|name| (&**name, "v")).collect();
    let many = encode(&push_message(&pairs, &[vec![1]]));
    let mut many_json = r#"{"series":[{"labels":["#.to_owned();
    for (name, value) in &pairs {
        let _ = write!(many_json, r#"{{"name":"{name}","value":"{value}"}},"#);
    }
    many_json += r#"{"name":"service_name","value":"s"}],"samples":[{"rawProfile":"AQ=="}]}]}"#;
    // 64 MiB of zeros in 300 KiB.
    let bomb = gzip(&vec![0; 4 << 20]).repeat(16);
    let push = |name, headers: &[(&str, &str)], body: &[u8], refused, body_limit, at_once| Swelling {
        name,
        request: post(PUSH, headers, body),
        refused,
        body_limit,
        at_once,
    };
    vec![
        push("a gzip bomb", &[proto, zipped], &bomb, &[429, 503], "8MiB", 8),
        push(
            "a gzip bomb of JSON",
            &[json, zipped],
            &bomb,
            &[429, 503],
            "8MiB",
            4,
        ),
        push(
            "a value of 17 MiB",
            &[proto],
            &label("l", &long),
            &[400, 503],
            "36MiB",
            4,
        ),
        push(
            "a name of 17 MiB",
            &[proto],
            &label(&long, "v"),
            &[400, 503],
            "36MiB",
            4,
        ),
        push("a million labels", &[proto], &many, &[400], "36MiB", 1),
        push(
            "a million labels in JSON",
            &[json],
            many_json.as_bytes(),
            &[400],
            "36MiB",
            1,
        ),
        push(
            "a million labels, zipped",
            &[proto, zipped],
            &gzip(&many),
            &[400],
            "36MiB",
            1,
        ),
    ]
}

/// Heads and framing without end.
fn swelling_heads() -> Vec<Swelling> {
    let endless = |name, begin: &str, again: String, refused| Swelling {
        name,
        request: [begin.as_bytes(), again.as_bytes()].concat(),
        refused,
        body_limit: "8MiB",
        at_once: 64,
    };
    let chunked = "POST /ingest?name=a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let trailers = format!("{chunked}1\r\nx\r\n0\r\n");
    let tiny = format!("1;{}\r\nx\r\n", "a".repeat(64));
    let fields = "A: b\r\n".repeat(1 << 16);
    let head = "POST /ingest HTTP/1.1\r\nHost: h\r\n";
    vec![
        endless(
            "a request line without end",
            "POST /ingest?name=",
            "x".repeat(4 << 20),
            &[431, 503],
        ),
        endless("a head without end", head, fields.clone(), &[431]),
        endless(
            "a header without end",
            head,
            format!("A: {}", "b".repeat(1 << 19)),
            &[431],
        ),
        endless("trailers without end", &trailers, fields, &[400, 431]),
        endless(
            "a size line without end",
            chunked,
            format!("1;{}", "a".repeat(1 << 19)),
            &[400],
        ),
        endless(
            "chunks of one byte without end",
            chunked,
            tiny.repeat(1 << 13),
            &[400],
        ),
    ]
}

fn swelling_heads_stay_within_the_limit(engine: &str) {
    swell(engine, swelling_heads());
}

/// What is inside a body is the same under both engines.
#[test]
fn swelling_bodies_stay_within_the_limit() {
    swell("auto", swelling_bodies());
}

fn swell(engine: &str, cases: Vec<Swelling>) {
    let peer = Peer::start();
    for case in cases {
        let limits = [
            "--memory-limit",
            "96MiB",
            "--queue-limit",
            "64MiB",
            "--body-limit",
            case.body_limit,
        ];
        let gateway = Gateway::before(engine, &[&peer], &limits);
        let (case, address) = (&case, gateway.address);
        std::thread::scope(|scope| {
            for _ in 0..case.at_once {
                scope.spawn(|| {
                    let mut client = Client::connect(address);
                    // It may be refused, and cut off, before it has sent all.
                    let _sent = client.send(&case.request);
                    let answer = client.receive();
                    let status = answer.map_or(0, |answer| answer.status);
                    assert!(case.refused.contains(&status), "{}: {status}", case.name);
                });
            }
        });
        assert_eq!(gateway.ingest("next").status, 200, "after {}", case.name);
        let memory = Memory {
            limit: 96 * MIB,
            cores: 1,
            destinations: 1,
            spools: 0,
            connections: case.at_once as u64 + 1,
        };
        memory.assert_kept(
            &gateway,
            &format!("{engine}: {} times {}", case.at_once, case.name),
        );
        assert_eq!(gateway.farewell()["a"].accepted(), 1, "{}", case.name);
    }
}

/// Long targets that are kept in a second form, rewritten until the body is there or repeated in a redirect: what
/// is held is charged, and what was needed once is not kept.
fn long_queries_stay_within_the_limit(engine: &str) {
    const LONG: usize = 500 << 10;
    const CLIENTS: usize = 64;
    let peer = Peer::start();
    let limits = [
        "--memory-limit",
        "16MiB",
        "--queue-limit",
        "8MiB",
        "--body-limit",
        "1MiB",
    ];
    let gateway = Gateway::before(engine, &[&peer], &[&WATCHED[..], &limits].concat());
    let long = |path: &str, byte: u8, rest: &str| {
        let query = [b"?name=a&x=".to_vec(), vec![byte; LONG]].concat();
        let rest = format!(" HTTP/1.1\r\nHost: h\r\n{rest}");
        [b"POST ", path.as_bytes(), &query, rest.as_bytes()].concat()
    };
    let await_charge = |what: &str, bytes: usize| {
        let used = "pyrotee_memory_used_bytes";
        eventually(what, || (gateway.metric(used) >= bytes as f64).then_some(()));
    };
    // Bytes beyond ASCII take three when they are written out again; the head lies in its buffer beside that.
    let mut slow = gateway.client();
    slow.send(long("/ingest", 0xff, "Content-Length: 10\r\n\r\nhello"))
        .expect("it reads");
    await_charge("a long query behind which the body is slow", 4 * LONG);
    slow.send(" you!").expect("it reads");
    assert_eq!(slow.receive().expect("an answer").status, 200);
    assert_eq!(peer.next().body, b"hello you!");

    let mut clients: Vec<_> = (0..CLIENTS).map(|_| gateway.client()).collect();
    let before = memory::resident_bytes(gateway.process.id());
    for client in &mut clients {
        client.send(long("//ingest", b'x', "\r\n")).expect("it reads");
        let answer = client.receive().expect("a redirect");
        assert_eq!(answer.status, 301);
        assert!(
            answer
                .header("location")
                .is_some_and(|location| location.len() > LONG)
        );
    }
    let kept = memory::resident_bytes(gateway.process.id()).saturating_sub(before);
    tell(format_args!(
        "{engine}: {} KiB more beside {CLIENTS} clients after long redirects",
        kept >> 10
    ));
    assert!(
        kept < CLIENTS as u64 * LONG as u64 / 2,
        "{kept} bytes are kept for idle clients"
    );
    drop((slow, clients));

    let mut deaf = connect_deaf(&gateway);
    // A whole request has to get through, on a busy machine too.
    deaf.set_write_timeout(Some(Duration::from_secs(2)))
        .expect("not zero");
    let redirected = long("//ingest", b'x', "\r\n");
    let stuffed = (0..100).find_map(|_| deaf.write_all(&redirected).err());
    assert_eq!(stuffed.map(|error| error.kind()), Some(ErrorKind::WouldBlock));
    await_charge("a long redirect that nobody reads", 3 * LONG);
    drop(deaf);
    gateway.await_rest();
    assert_eq!(gateway.farewell()["a"].accepted(), 1);
}

/// What a destination says without end, to each of many requests under way.
fn endless_answers_stay_within_the_limit(engine: &str) {
    const FLOOD: usize = 4 << 20;
    // As many as are under way at a time, so that all are asked before the first one has failed.
    const PUSHES: usize = 64;
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 1 << 16], b"\r\n"].concat();
    for (name, begin, again) in [
        (
            "a body without end",
            "HTTP/1.1 200 OK\r\n\r\n",
            vec![b'x'; 1 << 16],
        ),
        (
            "a long body",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            vec![b'x'; 1 << 16],
        ),
        (
            "chunks without end",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            chunk,
        ),
        (
            "a head without end",
            "HTTP/1.1 200 OK\r\n",
            b"A: b\r\n".repeat(1 << 12),
        ),
        (
            "a header without end",
            "HTTP/1.1 200 OK\r\nA: ",
            vec![b'x'; 1 << 16],
        ),
        ("a status line without end", "HTTP/1.1 200 ", vec![b'x'; 1 << 16]),
        (
            "hints without end",
            "",
            b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1 << 10),
        ),
        (
            "an error without end",
            "HTTP/1.1 400 No\r\n\r\n",
            vec![b'x'; 1 << 16],
        ),
    ] {
        let all_asked = Latch::default();
        let latch = all_asked.clone();
        let destination = Scripted::following(move |_, _| {
            vec![
                Act::Await(latch.clone()),
                Act::Send(begin.as_bytes().to_vec()),
                Act::Flood(again.clone(), FLOOD),
                Act::Reset,
            ]
        });
        let flags = [
            "--memory-limit",
            "8MiB",
            "--queue-limit",
            "4MiB",
            "--drain-timeout",
            "0",
            "--max-retries",
            "1",
            // None may end before all are asked, on a busy machine too.
            "--remote-timeout",
            "1m",
        ];
        let mut all = to(&[destination.url()]);
        all.extend(WATCHED.iter().chain(&flags).map(|flag| (*flag).to_owned()));
        let gateway = Gateway::start(engine, &all);
        let mut client = gateway.client();
        for _ in 0..PUSHES {
            assert_eq!(
                client.post("/ingest?name=app", &[], b"x").expect(name).status,
                200,
                "{name}"
            );
        }
        destination.wait_for(PUSHES);
        all_asked.open();
        let attempts = r#"pyrotee_destination_attempts_total{destination="a"}"#;
        eventually(name, || (gateway.metric(attempts) >= PUSHES as f64).then_some(()));
        let memory = Memory {
            limit: 8 * MIB,
            cores: 1,
            destinations: 1,
            spools: 0,
            connections: 1,
        };
        memory.assert_kept(&gateway, &format!("{engine}: {PUSHES} times {name}"));
        let farewell = &gateway.farewell()["a"];
        assert_eq!(farewell.accepted(), PUSHES as u64, "{name}: {farewell:?}");
    }
}

/// A destination that once answered with the longest head makes no lane keep that memory.
fn what_a_flood_of_headers_took_is_given_back(engine: &str) {
    const REQUESTS: usize = 256;
    const GIVEN_BACK: u64 = 12 * MIB;
    let all_asked = Latch::default();
    let latch = all_asked.clone();
    let destination = Scripted::following(move |turn, _| {
        if turn >= REQUESTS {
            return vec![Act::Send(
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(),
            )];
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n",
            "A: b\r\n".repeat(90)
        );
        let long = format!("B: {}\r\n", "c".repeat(60 << 10));
        let head = head.replacen("A: b\r\n", &long, 1);
        vec![Act::Await(latch.clone()), Act::Send(head.into_bytes())]
    });
    let mut all = to(&[destination.url()]);
    all.extend(
        WATCHED
            .iter()
            .chain(&["--inflight", "256", "--remote-timeout", "1m"]) // none ends before all are asked
            .map(|flag| (*flag).to_owned()),
    );
    let gateway = Gateway::start(engine, &all);
    let mut client = gateway.client();
    let mut push = || {
        client
            .post("/ingest?name=app", &[], b"x")
            .expect("an answer")
            .status
    };
    for _ in 0..REQUESTS {
        assert_eq!(push(), 200);
    }
    destination.wait_for(REQUESTS);
    let before = memory::resident_bytes(gateway.process.id());
    all_asked.open();
    let delivered = r#"pyrotee_destination_delivered_parcels_total{destination="a"}"#;
    eventually("answers", || {
        (gateway.metric(delivered) >= REQUESTS as f64).then_some(())
    });
    // The allocator gives back while it works.
    let grown = eventually("memory", || {
        assert_eq!(push(), 200);
        let grown = memory::resident_bytes(gateway.process.id()).saturating_sub(before);
        (grown < GIVEN_BACK).then_some(grown)
    });
    tell(format_args!(
        "{engine}: {} KiB more than before {REQUESTS} long heads",
        grown >> 10
    ));
}

fn dead_destinations_refuse_small_bodies(engine: &str) {
    dead_destinations(engine, "refuse", 200);
}

fn dead_destinations_refuse_medium_bodies(engine: &str) {
    dead_destinations(engine, "refuse", 16 << 10);
}

fn dead_destinations_refuse_large_bodies(engine: &str) {
    dead_destinations(engine, "refuse", 4 << 20);
}

fn dead_destinations_drop_small_bodies(engine: &str) {
    dead_destinations(engine, "drop-oldest", 200);
}

fn dead_destinations_drop_medium_bodies(engine: &str) {
    dead_destinations(engine, "drop-oldest", 16 << 10);
}

fn dead_destinations_drop_large_bodies(engine: &str) {
    dead_destinations(engine, "drop-oldest", 4 << 20);
}

/// How long clients push at dead destinations after the first queue was full.
const FULL_FOR: Duration = Duration::from_millis(500);

/// One destination refuses connections, another one takes them and never reads, and clients push as fast as they are
/// answered until queues are full and well beyond. Memory stays within its formula; clients are told 503 and when to come
/// back, or 200 while the oldest profiles are dropped and counted; and when the destinations are back, service resumes by
/// itself.
fn dead_destinations(engine: &str, overflow: &str, bytes: usize) {
    const CLIENTS: u64 = 4;
    let absent = Absent::new();
    let hole = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let hole_url = format!("http://{}", hole.local_addr().expect("it is bound"));
    let flags = [
        "--memory-limit",
        "64MiB",
        "--queue-limit",
        "16MiB",
        "--body-limit",
        "8MiB",
        "--overflow",
        overflow,
        "--remote-timeout",
        "1s",
        "--min-backoff",
        "20ms",
        "--max-backoff",
        "100ms",
        "--drain-timeout",
        "0",
    ];
    let mut all = to(&[absent.url(), hole_url]);
    all.extend(WATCHED.iter().chain(&flags).map(|flag| (*flag).to_owned()));
    let gateway = Gateway::start(engine, &all);
    let (accepted, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let stopped = AtomicBool::new(false);
    let address = gateway.address;
    std::thread::scope(|scope| {
        for seed in 0..CLIENTS {
            let (accepted, refused, stopped) = (&accepted, &refused, &stopped);
            scope.spawn(move || {
                let mut client = Client::connect(address);
                let request = post("/ingest?name=app", &[], &noise(bytes, seed));
                while !stopped.load(Ordering::Acquire) {
                    client.send(&request).expect("it reads");
                    let answer = client.receive().expect("it answers");
                    match answer.status {
                        200 => accepted.fetch_add(1, Ordering::AcqRel),
                        503 => {
                            assert!(answer.header("retry-after").is_some(), "{answer:?}");
                            assert_eq!(
                                overflow,
                                "refuse",
                                "dead destinations refuse nobody: {}",
                                answer.text()
                            );
                            refused.fetch_add(1, Ordering::AcqRel)
                        }
                        _ => panic!("{answer:?}"),
                    };
                    // A large body that is refused costs its connection.
                    if answer.header("connection") == Some("close") {
                        client = Client::connect(address);
                    }
                }
            });
        }
        let dropped = |name: &str| {
            let cell = format!(
                r#"pyrotee_destination_dropped_parcels_total{{destination="{name}",reason="overflow"}}"#
            );
            gateway.metric(&cell)
        };
        eventually("full queues", || match overflow {
            "refuse" => (refused.load(Ordering::Acquire) > 0).then_some(()),
            _ => (dropped("a") > 0.0 && dropped("b") > 0.0).then_some(()),
        });
        std::thread::sleep(FULL_FOR);
        stopped.store(true, Ordering::Release);
    });
    let memory = Memory {
        limit: 64 * MIB,
        cores: 1,
        destinations: 2,
        spools: 0,
        connections: CLIENTS + 1,
    };
    let (took, turned_away) = (accepted.load(Ordering::Acquire), refused.load(Ordering::Acquire));
    memory.assert_kept(
        &gateway,
        &format!("{engine}: {took} pushes of {bytes} B at dead destinations, {turned_away} refused"),
    );

    let peers = [absent.appear(), Peer::on(hole, |_| Reply::Ok)];
    for peer in &peers {
        peer.next();
    }
    let last = b"the last one";
    let answered = eventually("service", || {
        let answer = gateway.ingest(last);
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(answered.status, 200);
    for peer in &peers {
        while peer.next().body != last {}
    }
    for (name, farewell) in gateway.farewell() {
        assert_eq!(farewell.accepted(), took + 1, "{name}: {farewell:?}");
        assert!(farewell.delivered > 1, "{name}: {farewell:?}");
        if overflow == "refuse" {
            assert_eq!(farewell.dropped.get("overflow"), None, "{name}: {farewell:?}");
        }
    }
}
