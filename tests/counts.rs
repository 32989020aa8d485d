//! The regression gate that is exact on any machine: what one push costs in counts, not in time.
//!
//! A gateway runs in this process between a plain client and plain destinations on threads of their own. Counted on its
//! core's thread only, after a warm-up: body bytes copied in user space, allocations, bytes allocated. The real binary
//! runs under `strace` for system calls. The committed numbers are upper bounds: a change that lowers one lowers it here.
#![allow(unsafe_code)] // the counting allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::Parser;
use pyrotee::config::{Flags, Plan};
use pyrotee::gateway::Gateway;
use pyrotee::runtime::engine::{self, EngineChoice};
use pyrotee::runtime::{self, clock};

mod support;
use support::DEADLINE;

/// Pushes before counting begins: pools fill, connections open, tables are made.
const WARM_UP: usize = 300;
/// Pushes counted.
const PUSHES: usize = 500;
/// A block of a queue between cores is one allocation and holds 31 parcels (crossbeam-channel), of which each push has two.
const QUEUE_ALLOCATIONS: f64 = 2.0 / 31.0 + 0.01;
/// Allocations of one `/ingest` with two destinations (issue 5 asks for at most 10).
const INGEST_ALLOCATIONS_MAX: f64 = 3.0 + QUEUE_ALLOCATIONS;
/// Allocations of one Push with two destinations.
const PUSH_ALLOCATIONS_MAX: f64 = 6.0 + QUEUE_ALLOCATIONS;
/// Connections of the idle test.
const IDLE: usize = 200;
/// Heap bytes of one idle connection, its receive buffer included (issue 5 asks for 4096 of resident memory).
const IDLE_BYTES_MAX: u64 = 1600;
/// System calls of one `/ingest` with two destinations and one connection, where nothing can be batched.
const IO_URING_CALLS_MAX: f64 = 5.5;
/// The same on epoll; how many waits are saved depends on timing a little.
const EPOLL_CALLS_MAX: f64 = 9.5;
/// Runs of which the least counts.
const TRACES_MAX: usize = 4;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED_BYTES: AtomicU64 = AtomicU64::new(0);
static FREED_BYTES: AtomicU64 = AtomicU64::new(0);
/// The counters belong to one test at a time.
static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether this is the thread of a core; asked once, when something is counted for the first time.
    static IS_CORE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// The system's allocator, and a count of what cores take from it.
struct Counting;

// SAFETY: every call goes to `System` unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        discount(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        discount(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn count(bytes: usize) {
    if COUNTING.load(Ordering::Relaxed) && IS_CORE.try_with(is_core).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        ALLOCATED_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

fn discount(bytes: usize) {
    if COUNTING.load(Ordering::Relaxed) && IS_CORE.try_with(is_core).unwrap_or(false) {
        FREED_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

fn is_core(cached: &Cell<Option<bool>>) -> bool {
    cached.get().unwrap_or_else(|| {
        let mut name = [0u8; 16]; // TASK_COMM_LEN
        // SAFETY: PR_GET_NAME writes at most 16 bytes, the room that `name` has.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        let is_core = name.starts_with(b"core-");
        cached.set(Some(is_core));
        is_core
    })
}

#[test]
fn an_ingest_copies_no_body_byte_and_allocates_as_little_as_before() {
    let body = vec![0x5a; 16 << 10];
    let request = request(
        "/ingest?name=app.cpu%7Benv%3Dprod%7D&from=1&until=2&format=pprof",
        "",
        &body,
    );
    each_engine(|engine| {
        let counted = gateway_with(engine, &request);
        counted.expect_within(engine, INGEST_ALLOCATIONS_MAX);
    });
}

#[test]
fn a_push_with_identity_encoding_copies_no_body_byte() {
    let body = push_body(&vec![0x5a; 16 << 10]);
    let request = request(
        "/push.v1.PusherService/Push",
        "Content-Type: application/proto\r\n",
        &body,
    );
    each_engine(|engine| {
        let counted = gateway_with(engine, &request);
        counted.expect_within(engine, PUSH_ALLOCATIONS_MAX);
    });
}

#[test]
fn a_large_body_is_received_into_place() {
    let body = vec![0x5a; 3 << 20];
    let request = request("/ingest?name=app.cpu", "", &body);
    each_engine(|engine| assert_eq!(gateway_with_pushes(engine, &request, 3, 5).copied_bytes, 0));
}

#[test]
fn an_idle_connection_holds_as_little_as_before() {
    let request = request("/ingest?name=app.cpu", "", &[0x5a; 1 << 10]);
    each_engine(|engine| {
        let request = request.clone();
        gateway(engine, WARM_UP + IDLE, move |address| {
            send(&mut connect(address), &request, WARM_UP);
            start_counting();
            let connections: Vec<TcpStream> = (0..IDLE)
                .map(|_| {
                    let mut connection = connect(address);
                    send(&mut connection, &request, 1);
                    connection
                })
                .collect();
            // The receive buffer of an idle connection is taken back after 1 s, at the next sweep.
            std::thread::sleep(Duration::from_millis(1500));
            COUNTING.store(false, Ordering::Relaxed);
            drop(connections);
        });
        let held = ALLOCATED_BYTES
            .load(Ordering::Relaxed)
            .saturating_sub(FREED_BYTES.load(Ordering::Relaxed));
        let each = held / IDLE as u64;
        println!("{engine:?}: an idle connection holds {each} bytes");
        assert!(
            each <= IDLE_BYTES_MAX,
            "{engine:?}: {each} bytes per idle connection, at most {IDLE_BYTES_MAX} before"
        );
    });
}

#[test]
fn a_push_takes_as_few_system_calls_as_before() {
    if Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_err()
    {
        eprintln!("SKIPPED: no strace on this machine");
        return;
    }
    for (engine, most) in [("io_uring", IO_URING_CALLS_MAX), ("epoll", EPOLL_CALLS_MAX)] {
        if !support::engines().contains(&engine) {
            continue;
        }
        // A neighbour that takes the CPU away splits what would be one turn of the loop in two, and never the reverse: the
        // least of a few runs is what the program needs.
        let mut least = f64::MAX;
        for _ in 0..TRACES_MAX {
            let Some(calls) = traced(engine) else { return };
            let total: f64 = calls.values().sum();
            println!("{engine}: {total:.2} system calls per push: {calls:?}");
            least = least.min(total);
            if least <= most {
                break;
            }
        }
        assert!(
            least <= most,
            "{engine}: {least:.2} system calls per push, at most {most} before"
        );
    }
}

/// What the counted pushes cost.
struct Counted {
    pushes: usize,
    copied_bytes: u64,
    allocations: u64,
    allocated_bytes: u64,
}

impl Counted {
    fn expect_within(&self, engine: EngineChoice, allocations_max: f64) {
        let per_push = self.allocations as f64 / self.pushes as f64;
        let bytes = self.allocated_bytes as f64 / self.pushes as f64;
        println!(
            "{engine:?}: {per_push:.2} allocations of {bytes:.0} bytes in all per push, {} bytes copied",
            self.copied_bytes
        );
        assert_eq!(self.copied_bytes, 0, "body bytes were copied in user space");
        assert!(
            per_push <= allocations_max,
            "{engine:?}: {per_push:.2} allocations per push, at most {allocations_max} before"
        );
    }
}

fn each_engine(test: impl Fn(EngineChoice)) {
    test(EngineChoice::Epoll);
    match engine::probe(EngineChoice::IoUring) {
        Ok(_) => test(EngineChoice::IoUring),
        Err(refused) => eprintln!("SKIPPED under io_uring: {refused}"),
    }
}

fn gateway_with(engine: EngineChoice, request: &[u8]) -> Counted {
    gateway_with_pushes(engine, request, WARM_UP, PUSHES)
}

/// Sends `request` again and again through a gateway with two destinations, one at a time, answered after both.
fn gateway_with_pushes(engine: EngineChoice, request: &[u8], warm_up: usize, pushes: usize) -> Counted {
    let request = request.to_vec();
    let copied_bytes = gateway(engine, warm_up + pushes, move |address| {
        let mut client = connect(address);
        send(&mut client, &request, warm_up);
        start_counting();
        send(&mut client, &request, pushes);
        COUNTING.store(false, Ordering::Relaxed);
    });
    Counted {
        pushes,
        copied_bytes,
        allocations: ALLOCATIONS.load(Ordering::Relaxed),
        allocated_bytes: ALLOCATED_BYTES.load(Ordering::Relaxed),
    }
}

fn start_counting() {
    for counter in [&ALLOCATIONS, &ALLOCATED_BYTES, &FREED_BYTES] {
        counter.store(0, Ordering::Relaxed);
    }
    COUNTING.store(true, Ordering::Relaxed);
}

/// Runs `client` against a gateway with two destinations, one core and `--ack all`, and returns the body bytes it has
/// copied.
fn gateway(engine: EngineChoice, pushes: usize, client: impl FnOnce(SocketAddr) + Send + 'static) -> u64 {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut line = "pyrotee --listen 127.0.0.1:0 --admin off --ack all --cores 1 --no-pin".to_owned();
    for address in [destination(), destination()] {
        line += &format!(" --to d{}=http://{address}", address.port());
    }
    let flags = Line::try_parse_from(line.split(' ')).expect("good flags").flags;
    let plan = Plan::new(&flags, &runtime::host()).unwrap_or_else(|errors| panic!("{:?}", errors.0));
    let verdict = engine::probe(engine).expect("probed before");
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    tokio::task::LocalSet::new().block_on(&control, async {
        let mut gateway = Gateway::start(plan, verdict).expect("it starts");
        gateway.spawn_keepers();
        let address = gateway.addresses[0];
        let client = tokio::task::spawn_blocking(move || client(address));
        tokio::time::timeout(DEADLINE, client)
            .await
            .expect("in time")
            .expect("every push was answered with 200");
        let tallies = gateway.tallies.iter();
        let copied = tallies
            .flat_map(|tally| tally.copied_bytes())
            .map(|(_, bytes)| bytes)
            .sum();
        for farewell in gateway.shut_down().await {
            assert!(
                farewell.is_whole() && farewell.delivered == pushes as u64,
                "{farewell:?}"
            );
        }
        copied
    })
}

/// The flags of `pyrotee run`, read as the program reads them.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

/// System calls per push by name, of the real binary under `strace`; `None` where it may not trace.
fn traced(engine: &str) -> Option<BTreeMap<String, f64>> {
    let destinations = [destination(), destination()];
    let folder = tempfile::tempdir().expect("a folder");
    let request = request("/ingest?name=app.cpu", "", &[0x5a; 1024]);
    let run = |pushes: usize| -> Option<BTreeMap<String, f64>> {
        let port = TcpListener::bind("127.0.0.1:0")
            .expect("a port")
            .local_addr()
            .expect("bound");
        let counts = folder.path().join("counts");
        let mut command = Command::new("strace");
        command
            .args(["-f", "-c", "-o"])
            .arg(&counts)
            .arg(env!("CARGO_BIN_EXE_pyrotee"))
            .arg("run");
        command.args([
            "--admin",
            "off",
            "--ack",
            "all",
            "--cores",
            "1",
            "--engine",
            engine,
            "--drain-timeout",
            "1s",
        ]);
        command.arg("--listen").arg(port.to_string());
        for address in destinations {
            command
                .arg("--to")
                .arg(format!("d{}=http://{address}", address.port()));
        }
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace starts");
        let until = clock::now().after(DEADLINE);
        let mut client = loop {
            if let Ok(client) = TcpStream::connect(port) {
                break client;
            }
            if child.try_wait().expect("a child").is_some() {
                eprintln!("SKIPPED: strace may not trace here");
                return None;
            }
            assert!(clock::now() < until, "the traced gateway does not listen");
            std::thread::sleep(Duration::from_millis(20)); // there is no event to await in a foreign process
        };
        prepare(&client);
        send(&mut client, &request, pushes);
        drop(client);
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).ok()?;
        for pid in children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .filter_map(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        child.wait().expect("a child");
        let text = std::fs::read_to_string(counts).ok()?;
        let calls = text.lines().skip(2).filter_map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            let count: f64 = cells.get(3)?.parse().ok()?;
            Some(((*cells.last()?).to_owned(), count))
        });
        Some(calls.filter(|(name, _)| name != "total").collect())
    };
    // What start and end cost is in both runs, so the difference is what pushes cost.
    let (few, many) = (run(100)?, run(600)?);
    let per_push = many
        .into_iter()
        .map(|(name, count)| (count - few.get(&name).copied().unwrap_or(0.0), name))
        .filter(|(count, _)| *count >= 5.0)
        .map(|(count, name)| (name, count / 500.0));
    Some(per_push.collect())
}

/// A destination that answers every request with 200, until the test ends.
fn destination() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            std::thread::spawn(move || answer_all(stream));
        }
    });
    address
}

fn answer_all(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let (mut buffer, mut filled) = (vec![0; 4 << 20], 0);
    loop {
        let total = loop {
            if let Some(total) = message_bytes(&buffer[..filled])
                && filled >= total
            {
                break total;
            }
            match stream.read(&mut buffer[filled..]) {
                Ok(bytes @ 1..) => filled += bytes,
                _ => return,
            }
        };
        // As Pyroscope does: an answer to /ingest has no type, one to Push has (WIRE.md 1.5, 3.2).
        let answer: &[u8] = if buffer.starts_with(b"POST /ingest") {
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 0\r\n\r\n"
        };
        buffer.copy_within(total..filled, 0);
        filled -= total;
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

/// Length of the request that `bytes` begins with, once its head is whole.
fn message_bytes(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    Some(end + length.map_or(Ok(0), |length| length.trim().parse()).ok()?)
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("it listens");
    prepare(&client);
    client
}

fn prepare(client: &TcpStream) {
    client.set_nodelay(true).expect("a socket");
    client.set_read_timeout(Some(DEADLINE)).expect("a socket");
    client.set_write_timeout(Some(DEADLINE)).expect("a socket");
}

fn send(client: &mut TcpStream, request: &[u8], times: usize) {
    let mut answer = [0; 1024];
    for _ in 0..times {
        client.write_all(request).expect("it reads");
        let mut filled = 0;
        while message_bytes(&answer[..filled]).is_none_or(|total| filled < total) {
            let bytes = loop {
                match client.read(&mut answer[filled..]) {
                    // With a timeout a receive ends so where this process was stopped meanwhile (signal(7)).
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    received => break received.expect("it answers"),
                }
            };
            assert!(bytes > 0, "closed instead of answered");
            filled += bytes;
        }
        assert!(
            answer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&answer[..filled])
        );
    }
}

fn request(target: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A PushRequest with one series, four labels and one sample.
fn push_body(profile: &[u8]) -> Vec<u8> {
    use prost::Message as _;
    use pyrotee::profile::proto::{LabelPair, PushRequest, RawProfileSeries, RawSample};
    let labels = [
        ("__name__", "process_cpu"),
        ("service_name", "checkout"),
        ("region", "eu"),
        ("pod", "checkout-1"),
    ];
    let labels = labels.map(|(name, value)| LabelPair {
        name: name.to_owned(),
        value: value.to_owned(),
    });
    let series = RawProfileSeries {
        labels: labels.to_vec(),
        samples: vec![RawSample {
            raw_profile: profile.to_vec().into(),
            id: String::new(),
        }],
        annotations: Vec::new(),
    };
    PushRequest { series: vec![series] }.encode_to_vec()
}
