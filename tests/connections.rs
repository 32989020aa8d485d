//! Client connections: many that idle, one per request, too few file descriptors, too old ones, and restarts behind a
//! balancer. The real binary on loopback, under both engines.

#![allow(clippy::disallowed_methods)] // how long things really take is what these tests ask

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pyrotee::runtime::sweeper::YIELD_IDLE_MIN;
use support::gateway::{Farewell, Gateway, to};
use support::peer::Peer;
use support::{Client, Process, Sink, eventually, get, post, skip, tell, under_both_engines};

under_both_engines!(
    an_old_connection_ends_with_its_answer,
    an_old_idle_connection_is_closed,
    an_old_connection_finishes_its_request,
    clients_that_came_together_do_not_go_together,
    reasons_of_closed_connections_are_counted,
    the_longest_idle_connection_of_all_cores_makes_room,
    idle_clients_make_room_when_descriptors_run_out,
    busy_clients_are_served_on_without_descriptors,
    profiles_wait_for_descriptors,
    idle_clients_make_room_for_destinations_too,
    many_idle_connections_and_load,
    a_connection_per_request,
    restarts_behind_a_balancer_fail_no_request,
    whoever_waits_in_the_backlog_is_served_at_a_shutdown,
    a_request_that_has_come_wins_over_the_idle_timeout,
);

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];

fn ingest(client: &mut Client, body: &str) -> support::Answer {
    let answer = client.post("/ingest?name=app", &[], body.as_bytes());
    answer.expect("an answer")
}

fn closed(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!(
        r#"pyrotee_inbound_closed_connections_total{{reason="{reason}"}}"#
    ))
}

/// A request in two parts, of which the second is its last bytes.
fn halves() -> (Vec<u8>, Vec<u8>) {
    let request = post("/ingest?name=app", &[], b"whole");
    let (head, tail) = request.split_at(request.len() - 2);
    (head.to_vec(), tail.to_vec())
}

fn an_old_connection_ends_with_its_answer(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &["--max-connection-age", "1s"]);
    let mut sent = 0;
    eventually("a connection that was never idle for long", || {
        let begun = Instant::now();
        let mut client = gateway.client();
        let mut asked = begun;
        loop {
            let before = std::mem::replace(&mut asked, Instant::now());
            let answer = match client.post("/ingest?name=app", &[], b"x") {
                Ok(answer) => answer,
                // It was idle while the machine had other work, and then an old one is closed without a word.
                Err(_) if before.elapsed() >= YIELD_IDLE_MIN => return None,
                Err(error) => panic!("no answer: {error}"),
            };
            sent += 1;
            assert_eq!(answer.status, 200);
            if answer.header("connection") == Some("close") {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(
            begun.elapsed() >= Duration::from_millis(900),
            "a tenth early at most"
        );
        client.expect_closed("its answer has said so");
        Some(())
    });
    peer.take(sent);
    gateway.end_whole();
}

fn an_old_idle_connection_is_closed(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &["--max-connection-age", "1s"]);
    let begun = Instant::now();
    let mut silent = gateway.client();
    // On a busy machine a client may be old before it is served.
    let (served_begun, mut served) = eventually("a client that is served young", || {
        let (begun, mut client) = (Instant::now(), gateway.client());
        let answer = client.post("/ingest?name=app", &[], b"x").ok()?;
        answer.header("connection").is_none().then_some((begun, client))
    });
    for (begun, client) in [(begun, &mut silent), (served_begun, &mut served)] {
        client.expect_closed("it is old, and --idle-timeout is far away");
        assert!(
            begun.elapsed() >= Duration::from_millis(900),
            "a tenth early at most"
        );
    }
}

fn an_old_connection_finishes_its_request(engine: &str) {
    let peer = Peer::start();
    // Long enough for a request to begin in time on a busy machine.
    let gateway = Gateway::before(engine, &[&peer], &["--max-connection-age", "3s"]);
    let (head, tail) = halves();
    let mut client = gateway.client();
    client.send(&head).expect("connected");
    std::thread::sleep(Duration::from_millis(3500));
    client.send(&tail).expect("still connected");
    let answer = client.receive().expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    // Whoever has begun a further request gets an answer to that too.
    let mut client = gateway.client();
    std::thread::sleep(Duration::from_millis(500));
    client.send(&head).expect("connected");
    std::thread::sleep(Duration::from_millis(3000));
    let request = [&tail[..], &post("/ingest?name=app", &[], b"second")].concat();
    client.send(&request).expect("still connected");
    let first = client.receive().expect("an answer");
    let second = client.receive().expect("another");
    let said = [first, second].map(|answer| (answer.status, answer.header("connection") == Some("close")));
    assert_eq!(said, [(200, false), (200, true)]);
    client.expect_closed("that was said");
    peer.take(3);
    gateway.end_whole();
}

fn clients_that_came_together_do_not_go_together(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &["--max-connection-age", "10s"]);
    let begun = Instant::now();
    let clients: Vec<_> = (0..40).map(|_| gateway.client()).collect();
    let ends: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                client.expect_closed("it is old");
                begun.elapsed()
            })
        })
        .collect();
    let ends: Vec<_> = ends.into_iter().map(|end| end.join().expect("closed")).collect();
    let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
    // Of 40 ages between 9 and 11 s all within a sixth of that is as good as impossible. The ages are so far apart that a
    // machine which stands still for a second does not bring them together.
    assert!(
        *last - *first > Duration::from_millis(333),
        "{first:?} to {last:?}"
    );
}

fn reasons_of_closed_connections_are_counted(engine: &str) {
    let peer = Peer::start();
    let flags = [
        &ADMIN[..],
        &["--idle-timeout", "3s", "--read-timeout", "3s"], // the other clients are quicker, on a busy machine too
    ]
    .concat();
    let gateway = Gateway::before(engine, &[&peer], &flags);
    let mut idle = gateway.client();
    let mut slow = gateway.client();
    slow.send("POST /ingest?name=app HTTP/1.1\r\n")
        .expect("connected");
    let mut polite = gateway.client();
    polite
        .send(post("/ingest?name=app", &[("Connection", "close")], b"x"))
        .expect("connected");
    assert_eq!(polite.receive().expect("an answer").status, 200);
    drop(gateway.client());
    assert_eq!(slow.receive().expect("an answer").status, 408);
    idle.expect_closed("nothing came");
    drop((slow, polite));
    for (reason, count) in [("client", 2.0), ("idle_timeout", 1.0), ("error", 1.0)] {
        eventually(reason, || {
            ((closed(&gateway, reason) - count).abs() < 0.5).then_some(())
        });
    }
}

fn the_longest_idle_connection_of_all_cores_makes_room(engine: &str) {
    const CLIENTS: usize = 8;
    let peer = Peer::start();
    let limit = CLIENTS.to_string();
    let flags = [&ADMIN[..], &["--conn-limit", &limit, "--cores", "2"]].concat();
    let gateway = Gateway::before(engine, &[&peer], &flags);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = gateway.client();
        assert_eq!(ingest(&mut client, "x").status, 200);
        clients.push(client);
        // Their ages differ by more than a core needs to show what it has.
        std::thread::sleep(Duration::from_millis(150));
    }
    std::thread::sleep(Duration::from_millis(300));
    let mut newcomers = Vec::new();
    for longest in &mut clients[..CLIENTS / 2] {
        let mut newcomer = gateway.client();
        assert_eq!(ingest(&mut newcomer, "x").status, 200);
        newcomers.push(newcomer);
        longest.set_patience(Duration::from_secs(5));
        longest.expect_closed("of all it was idle longest");
        std::thread::sleep(Duration::from_millis(150));
    }
    for client in clients[CLIENTS / 2..].iter_mut().chain(&mut newcomers) {
        assert_eq!(ingest(client, "x").status, 200, "nobody else had to go");
    }
    assert!((closed(&gateway, "made_room") - 4.0).abs() < 0.5);
}

/// A gateway that may have this many descriptors; `None` where that cannot be arranged, aloud.
fn with_descriptors(test: &str, engine: &str, count: usize, flags: &[String]) -> Option<Gateway> {
    if let Err(error) = Command::new("prlimit").arg("--version").output() {
        skip(test, format!("no prlimit (util-linux): {error}"));
        return None;
    }
    let limit = format!("--nofile={count}:{count}");
    let first = [&*limit, env!("CARGO_BIN_EXE_pyrotee")];
    Some(Gateway::start_by(Command::new("prlimit"), &first, engine, flags))
}

/// How often the shortage was told.
fn complaints(ended: &support::Ended) -> usize {
    ended.stderr.matches("out of file descriptors").count()
}

fn idle_clients_make_room_when_descriptors_run_out(engine: &str) {
    let peer = Peer::start();
    let test = "idle_clients_make_room_when_descriptors_run_out";
    let Some(gateway) = with_descriptors(test, engine, 64, &to(&[peer.url()])) else {
        return;
    };
    let begun = Instant::now();
    let mut clients = Vec::new();
    for number in 0..120 {
        let mut client = gateway.client();
        assert_eq!(ingest(&mut client, &format!("{number}")).status, 200);
        clients.push(client);
        if number == 30 {
            // They count as idle only then.
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    peer.take(120);
    gateway.process.signal(rustix::process::Signal::TERM);
    let ended = gateway.process.wait();
    let farewell = &support::gateway::farewells(&ended)["a"];
    assert_eq!((farewell.delivered, farewell.accepted()), (120, 120));
    let told = complaints(&ended);
    let most = 2 + usize::try_from(begun.elapsed().as_secs() / 10).unwrap_or(0);
    assert!((1..=most).contains(&told), "told {told} times");
}

fn busy_clients_are_served_on_without_descriptors(engine: &str) {
    let peer = Peer::start();
    let test = "busy_clients_are_served_on_without_descriptors";
    let flags = [&to(&[peer.url()])[..], &ADMIN.map(String::from)].concat();
    let Some(gateway) = with_descriptors(test, engine, 64, &flags) else {
        return;
    };
    // The connection to the destination is there before descriptors run out, and so is one to the admin port.
    assert_eq!(gateway.ingest("first").status, 200);
    peer.next();
    let shortages = r#"pyrotee_process_descriptor_shortages_total{side="inbound"}"#;
    let mut admin = Client::connect(gateway.admin.expect("an admin port"));
    let mut count = || {
        admin
            .send("GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
            .expect("connected");
        let text = admin.receive().expect("metrics").text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(shortages))
            .expect("a series");
        value.trim().parse::<f64>().expect("a number")
    };
    assert!(count() < 0.5);
    let (head, tail) = halves();
    let mut crowd: Vec<_> = (0..100).map(|_| gateway.client()).collect();
    for client in &mut crowd {
        client.send(&head).expect("the kernel takes it");
    }
    eventually("descriptors to run out", || (count() > 0.5).then_some(()));
    // It tries again, but it does not spin: ten times a second, and a listener each.
    let (begun, before) = (Instant::now(), count());
    std::thread::sleep(Duration::from_millis(500));
    eventually("another try", || (count() > before).then_some(()));
    let tries = count() - before;
    let took = begun.elapsed();
    assert!(tries < 100.0 * took.as_secs_f64(), "{tries} tries in {took:?}");
    // Whoever is in is served, and makes room by leaving.
    for client in &mut crowd {
        client.send(&tail).expect("the kernel takes it");
    }
    for client in &mut crowd {
        client.set_patience(Duration::from_secs(20));
        let answer = client.receive().expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    drop(crowd);
    assert_eq!(gateway.ingest("last").status, 200);
    peer.take(101);
    gateway.end_whole();
}

fn profiles_wait_for_descriptors(engine: &str) {
    let peer = Peer::start();
    let test = "profiles_wait_for_descriptors";
    let Some(mut gateway) = with_descriptors(test, engine, 64, &to(&[peer.url()])) else {
        return;
    };
    let (head, tail) = halves();
    let mut busy: Vec<_> = (0..100).map(|_| gateway.client()).collect();
    for client in &mut busy {
        client.send(&head).expect("the kernel takes it");
    }
    gateway.logged("out of file descriptors");
    // There is no descriptor for a connection to the destination, and nobody idle who could make room.
    busy[0].send(&tail).expect("it was accepted first");
    assert_eq!(busy[0].receive().expect("an answer").status, 200);
    busy[0].send(&head).expect("busy again");
    peer.expect_nothing(
        Duration::from_millis(700),
        "there is no descriptor to connect with",
    );
    drop(busy);
    assert_eq!(peer.next().text(), "whole");
    peer.expect_nothing(Duration::from_millis(200), "once");
    gateway.process.signal(rustix::process::Signal::TERM);
    let ended = gateway.process.wait();
    let delivered = Farewell {
        delivered: 1,
        ..Farewell::default()
    };
    assert_eq!(support::gateway::farewells(&ended)["a"], delivered);
    assert!(!ended.stderr.contains("destination is down"), "{}", ended.stderr);
}

fn idle_clients_make_room_for_destinations_too(engine: &str) {
    let peer = Peer::start();
    let test = "idle_clients_make_room_for_destinations_too";
    let flags = [&to(&[peer.url()])[..], &ADMIN.map(String::from)].concat();
    let Some(mut gateway) = with_descriptors(test, engine, 64, &flags) else {
        return;
    };
    let mut pushing = gateway.client();
    let (head, tail) = halves();
    pushing.send(&head).expect("connected");
    let crowd: Vec<_> = (0..100).map(|_| gateway.client()).collect();
    gateway.logged("out of file descriptors");
    pushing.send(&tail).expect("connected");
    assert_eq!(pushing.receive().expect("an answer").status, 200);
    // The crowd stays, and more of it waits to be accepted; there is a descriptor for the destination all the same.
    assert_eq!(peer.next().text(), "whole");
    drop(crowd);
    gateway.end_whole();
}

fn many_idle_connections_and_load(engine: &str) {
    // The default --conn-limit, under the engine that most hosts have.
    let wanted = if engine == "io_uring" || !support::is_allowed("io_uring") {
        16384
    } else {
        4096
    };
    // Room for what else this process, and each other test in it, has open; the gateway has a limit like ours.
    const OTHERS: usize = 1500;
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    let files = pyrotee::runtime::raise_file_limit().map_or(usize::MAX, |files| files as usize);
    let count = wanted.min(files.saturating_sub(OTHERS));
    if count < wanted {
        tell(format_args!(
            "many_idle_connections_and_load: {count} instead of {wanted} connections: {files} open files allowed"
        ));
    }
    let sink = Sink::start(&["--verify"]);
    let flags = [
        &to(&[sink.url()])[..],
        &ADMIN.map(String::from),
        &[
            "--conn-limit".to_owned(),
            (count + 64).to_string(),
            "--cores".into(),
            "2".into(),
        ],
    ]
    .concat();
    let gateway = Gateway::start(engine, &flags);
    let mut idle: Vec<_> = (0..count).map(|_| gateway.client()).collect();
    let open = || gateway.metric(r#"pyroscope_receive_http_tcp_connections{protocol="http"}"#);
    #[allow(clippy::cast_precision_loss)]
    eventually("all to be accepted", || (open() >= count as f64).then_some(()));
    let load = Process::start(&[
        "load",
        &gateway.url(),
        "--connections",
        "32",
        "--requests",
        "2000",
        "--size",
        "1KiB",
        "--duration",
        "1m",
    ]);
    let report = load.wait();
    assert!(report.status.success(), "{report:?}");
    sink.stats_when("all to arrive", |stats| stats["requests"] == 2000);
    // Those that idle are still there, and good for a request.
    for client in idle.iter_mut().step_by(64) {
        assert_eq!(ingest(client, "x").status, 200);
    }
    assert!(closed(&gateway, "made_room") < 0.5);
    gateway.end_whole();
}

fn a_connection_per_request(engine: &str) {
    let sink = Sink::start(&["--verify"]);
    let flags = [&to(&[sink.url()])[..], &ADMIN.map(String::from)].concat();
    let gateway = Gateway::start(engine, &flags);
    let load = Process::start(&[
        "load",
        &gateway.url(),
        "--connection-per-request",
        "--connections",
        "32",
        "--requests",
        "3000",
        "--size",
        "1KiB",
        "--duration",
        "1m",
    ]);
    let report = load.wait();
    assert!(report.status.success(), "{report:?}");
    sink.stats_when("all to be answered", |stats| stats["statuses"]["200"] == 3000);
    let stats = sink.stats();
    assert_eq!(stats["duplicates"], 0, "{stats}");
    eventually("every connection to be closed", || {
        (closed(&gateway, "client") > 2999.5).then_some(())
    });
    assert!(gateway.metric(r#"pyroscope_receive_http_tcp_connections{protocol="http"}"#) < 0.5);
    gateway.end_whole();
}

/// What a balancer knows: who takes requests now.
#[derive(Default)]
struct Balancer {
    instances: Mutex<Vec<SocketAddr>>,
    turn: AtomicUsize,
}

impl Balancer {
    /// Connects to one of them. None leaves between that it is picked and that it is connected to.
    fn connect(&self) -> Client {
        let instances = self.instances.lock().expect("nobody panics with it");
        Client::connect(instances[self.turn.fetch_add(1, Ordering::Relaxed) % instances.len()])
    }

    fn set(&self, instances: Vec<SocketAddr>) {
        *self.instances.lock().expect("nobody panics with it") = instances;
    }

    /// Pushes as a client behind a balancer does: over one keep-alive connection as long as it lives. What every balancer
    /// and HTTP client does with a kept connection that turns out closed before a byte has come: once more, elsewhere.
    fn push_until(&self, over: &AtomicBool, name: usize) -> Vec<String> {
        let (mut pushed, mut kept): (Vec<String>, Option<Client>) = (Vec::new(), None);
        while !over.load(Ordering::Relaxed) {
            let body = format!("{name}/{}", pushed.len());
            let reused = kept.take().and_then(|mut client| {
                let answer = client.post("/ingest?name=app", &[], body.as_bytes());
                answer.ok().map(|answer| (client, answer))
            });
            let (client, answer) = reused.unwrap_or_else(|| {
                let mut client = self.connect();
                let answer = client.post("/ingest?name=app", &[], body.as_bytes());
                (client, answer.expect("a fresh connection is served"))
            });
            assert_eq!(answer.status, 200, "{}", answer.text());
            pushed.push(body);
            kept = (answer.header("connection") != Some("close")).then_some(client);
        }
        pushed
    }
}

fn restarts_behind_a_balancer_fail_no_request(engine: &str) {
    const ROUNDS: usize = 4;
    const CLIENTS: usize = 6;
    let peer = Peer::start();
    let start = || {
        let gateway = Gateway::before(engine, &[&peer], &ADMIN);
        let admin = gateway.admin.expect("an admin port");
        eventually("readiness", || {
            (get(admin, "/-/ready").status == 200).then_some(())
        });
        gateway
    };
    let balancer = Arc::new(Balancer::default());
    let mut instances = vec![start(), start()];
    let addresses = |instances: &[Gateway]| instances.iter().map(|one| one.address).collect();
    balancer.set(addresses(&instances));
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|name| {
            let (balancer, over) = (balancer.clone(), over.clone());
            std::thread::spawn(move || balancer.push_until(&over, name))
        })
        .collect();
    for _ in 0..ROUNDS {
        std::thread::sleep(Duration::from_millis(200));
        // As a rolling update does it: the old one leaves the balancer and is told to stop, then comes its successor.
        let leaving = instances.remove(0);
        balancer.set(addresses(&instances));
        let farewell = &leaving.farewell()["a"];
        assert_eq!((farewell.lost(), farewell.undecided), (0, 0), "{farewell:?}");
        instances.push(start());
        balancer.set(addresses(&instances));
    }
    over.store(true, Ordering::Relaxed);
    let pushed: Vec<_> = clients
        .into_iter()
        .flat_map(|client| client.join().expect("no request has failed"))
        .collect();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for request in peer.take(pushed.len()) {
        *counts.entry(request.text()).or_default() += 1;
    }
    let expected: BTreeMap<_, _> = pushed.into_iter().map(|body| (body, 1)).collect();
    assert!(
        counts == expected,
        "each once: {} of {}",
        counts.len(),
        expected.len()
    );
    peer.expect_nothing(Duration::from_millis(100), "nothing twice");
    instances.into_iter().for_each(Gateway::end_whole);
}

/// Does not let the gateway run any more, until it gets SIGCONT. What is sent to it afterwards it sees then.
fn stop(gateway: &Gateway) {
    gateway.process.signal(rustix::process::Signal::STOP);
    let tasks = format!("/proc/{}/task", gateway.process.id());
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.expect("an entry").path().join("stat"));
        // proc(5): the number, the name in parentheses, the state.
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    };
    eventually("every thread to be stopped", || {
        let mut tasks = std::fs::read_dir(&tasks).expect("the process lives");
        tasks.all(is_stopped).then_some(())
    });
}

/// The kernel has finished their handshakes and holds their requests while the gateway does not run; then it runs and is to
/// end at once.
fn whoever_waits_in_the_backlog_is_served_at_a_shutdown(engine: &str) {
    const CLIENTS: usize = 800;
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &[]);
    stop(&gateway);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client
            .send(post("/ingest?name=app", &[], b"x"))
            .expect("connected");
    }
    gateway.process.signal(rustix::process::Signal::TERM);
    gateway.process.signal(rustix::process::Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.receive().expect("an answer").status, 200);
    }
    peer.take(CLIENTS);
    let farewell = &support::gateway::farewells(&gateway.process.wait())["a"];
    assert_eq!(
        (farewell.delivered, farewell.accepted()),
        (CLIENTS as u64, CLIENTS as u64)
    );
}

/// Requests come in time, and the gateway does not run until long after its idle timeout: it finds both at once.
fn a_request_that_has_come_wins_over_the_idle_timeout(engine: &str) {
    const CLIENTS: usize = 50;
    let peer = Peer::start();
    // Nobody is idle for that long before the gateway is stopped, on a busy machine too.
    let gateway = Gateway::before(engine, &[&peer], &["--idle-timeout", "4s"]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| gateway.client()).collect();
    for client in &mut clients {
        assert_eq!(ingest(client, "x").status, 200);
    }
    stop(&gateway);
    for client in &mut clients {
        client
            .send(post("/ingest?name=app", &[], b"x"))
            .expect("connected");
    }
    std::thread::sleep(Duration::from_millis(4500)); // longer than they may be idle
    gateway.process.signal(rustix::process::Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.receive().expect("an answer").status, 200);
    }
    peer.take(CLIENTS * 2);
    gateway.end_whole();
}
