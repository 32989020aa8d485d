//! What the network does to the way between gateway and destinations: black holes, addresses that move, hosts that come
//! back, destinations that slow down. The real binary on loopback, under both engines.
//!
//! A black hole here is a socket whose kernel drops every packet that comes in for it, without a word
//! ([`Peer::vanish`]): to the gateway that is a host that has gone, and it needs neither rights nor tools.

#![allow(clippy::disallowed_methods)] // how long things really take is what these tests ask

mod support;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use support::gateway::{Gateway, to};
use support::peer::{Absent, Held, Peer, Received, Reply};
use support::{eventually, get, skip, under_both_engines};

under_both_engines!(
    a_black_hole_is_noticed_while_idle,
    a_black_hole_is_noticed_while_a_request_is_sent,
    a_black_hole_is_noticed_while_an_answer_is_awaited,
    what_waited_for_a_vanished_host_arrives_once,
    an_address_that_moves_is_followed,
    a_destination_that_comes_back_is_not_stormed,
    a_destination_that_slows_down_is_asked_for_less,
    a_destination_that_is_overloaded_is_asked_for_less,
    connections_of_a_burst_are_given_back,
);

/// An attempt may take this long: far longer than a black hole may go unnoticed.
const PATIENT: [&str; 4] = ["--remote-timeout", "8s", "--min-backoff", "10ms"];
/// Half of that, and some time for a machine that has other work. A quarter of a minute would pass without us.
const NOTICED_WITHIN: Duration = Duration::from_millis(7500);

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];

/// Asserts that each of these bodies has come once, and nothing else.
fn assert_each_once(received: &[Received], expected: impl IntoIterator<Item = String>) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for request in received {
        *counts.entry(request.text()).or_default() += 1;
    }
    let expected: BTreeMap<String, usize> = expected.into_iter().map(|text| (text, 1)).collect();
    assert_eq!(counts, expected);
}

fn ingest_all(gateway: &Gateway, bodies: impl IntoIterator<Item = String>) {
    let mut client = gateway.client();
    for body in bodies {
        let answer = client.post("/ingest?name=app", &[], body.as_bytes());
        assert_eq!(answer.expect("an answer").status, 200);
    }
}

fn a_black_hole_is_noticed_while_idle(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &[&PATIENT[..], &ADMIN].concat());
    assert_eq!(gateway.ingest("before").status, 200);
    peer.next();
    let connections = || gateway.metric(r#"pyrotee_destination_connections{destination="a"}"#);
    eventually("the connection to rest", || (connections() > 0.5).then_some(()));
    // The gateway's kernel may delay its acknowledgement of the answer by 40 ms. Without it the peer's kernel would go on
    // sending that answer, a sign of life that a host that has gone does not give.
    std::thread::sleep(Duration::from_millis(200));
    peer.vanish_from_connections();
    let gone = Instant::now();
    eventually("the black hole to be noticed", || {
        (connections() < 0.5).then_some(())
    });
    assert!(gone.elapsed() < NOTICED_WITHIN, "after {:?}", gone.elapsed());
    assert_eq!(gateway.ingest("after").status, 200);
    let after = peer.next();
    assert_eq!((after.text().as_str(), after.connection), ("after", 1));
    gateway.end_whole();
}

fn a_black_hole_is_noticed_while_a_request_is_sent(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &PATIENT);
    assert_eq!(gateway.ingest("before").status, 200);
    peer.next();
    peer.vanish_from_connections();
    let sent = Instant::now();
    assert_eq!(gateway.ingest("on the way").status, 200);
    let arrived = peer.next();
    assert_eq!((arrived.text().as_str(), arrived.connection), ("on the way", 1));
    let took = arrived.at.duration_since(sent);
    assert!(took < NOTICED_WITHIN, "{took:?}");
    peer.reappear();
    peer.expect_nothing(Duration::from_millis(300), "it has it already");
    gateway.end_whole();
}

fn a_black_hole_is_noticed_while_an_answer_is_awaited(engine: &str) {
    let held = Held::default();
    let door = held.clone();
    let peer = Peer::deciding(move |request| match request.index {
        0 => Reply::Held(door.clone()),
        _ => Reply::Ok,
    });
    let gateway = Gateway::before(engine, &[&peer], &PATIENT);
    assert_eq!(gateway.ingest("asked").status, 200);
    let asked = peer.next();
    // As above: the acknowledgement of what came before.
    std::thread::sleep(Duration::from_millis(200));
    peer.vanish_from_connections();
    let again = peer.next();
    assert_eq!((again.text().as_str(), again.connection), ("asked", 1));
    let took = again.at.duration_since(asked.at);
    assert!(took < NOTICED_WITHIN, "{took:?}");
    held.open();
    gateway.end_whole();
}

fn what_waited_for_a_vanished_host_arrives_once(engine: &str) {
    let peer = Peer::start();
    // Long enough for an answer on a busy machine: what is given up may have arrived.
    let flags = ["--remote-timeout", "3s", "--min-backoff", "10ms"];
    let mut gateway = Gateway::before(engine, &[&peer], &flags);
    assert_eq!(gateway.ingest("before").status, 200);
    peer.next();
    peer.vanish();
    let bodies = || (0..50).map(|number| format!("waits {number}"));
    ingest_all(&gateway, bodies());
    gateway.logged("destination is down");
    peer.expect_nothing(Duration::from_millis(100), "there is no way to it");
    peer.reappear();
    assert_each_once(&peer.take(50), bodies());
    peer.expect_nothing(Duration::from_millis(300), "it has all");
    gateway.end_whole();
}

/// A gateway in a mount namespace whose hosts file is in the test's hands; `None` where there can be none, aloud.
fn with_hosts(
    test: &str,
    engine: &str,
    flags: &[String],
    hosts: &tempfile::NamedTempFile,
) -> Option<Gateway> {
    let bind = ["-m", "mount", "--bind"];
    let may = Command::new("unshare")
        .args(bind)
        .arg(hosts.path())
        .arg("/etc/hosts")
        .output();
    match may {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            skip(test, format!("no mount namespace of its own: {why}"));
            return None;
        }
        Err(error) => {
            skip(test, format!("no unshare (util-linux): {error}"));
            return None;
        }
    }
    let path = hosts.path().to_str().expect("a plain path");
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    let first = ["-m", "sh", "-c", script, path, env!("CARGO_BIN_EXE_pyrotee")];
    Some(Gateway::start_by(Command::new("unshare"), &first, engine, flags))
}

fn an_address_that_moves_is_followed(engine: &str) {
    let name = "moving.pyrotee.invalid";
    let blue = Peer::start();
    let elsewhere = TcpListener::bind(("127.0.0.2", blue.address.port())).expect("all of 127/8 is ours");
    let green = Peer::on(elsewhere, |_| Reply::Ok);
    let hosts = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(hosts.path(), format!("127.0.0.1 {name}\n")).expect("it is ours");
    let url = format!("http://{name}:{}", blue.address.port());
    let flags = [
        &to(&[url])[..],
        &["--dns-refresh", "100ms", "--min-backoff", "10ms"].map(String::from),
    ]
    .concat();
    let Some(mut gateway) = with_hosts("an_address_that_moves_is_followed", engine, &flags, &hosts) else {
        return;
    };
    assert_eq!(gateway.ingest("to blue").status, 200);
    assert_eq!(blue.next().text(), "to blue");
    gateway.logged("name resolved to new addresses");
    std::fs::write(hosts.path(), format!("127.0.0.2 {name}\n")).expect("it is ours");
    gateway.logged("name resolved to new addresses");
    // Blue still answers, and there is a good connection to it.
    assert_eq!(gateway.ingest("to green").status, 200);
    assert_eq!(green.next().text(), "to green");
    eventually("the connection to blue to be closed", || {
        (blue.connections() == 0).then_some(())
    });
    // A name that no longer resolves is no reason to forget where it led.
    std::fs::write(hosts.path(), "").expect("it is ours");
    gateway.logged("name does not resolve");
    assert_eq!(gateway.ingest("to green still").status, 200);
    assert_eq!(green.next().text(), "to green still");
    blue.expect_nothing(Duration::ZERO, "the name has left it");
    gateway.end_whole();
}

fn a_destination_that_comes_back_is_not_stormed(engine: &str) {
    const WORK: Duration = Duration::from_millis(50);
    let absent = Absent::new();
    let flags = [
        &to(&[absent.url()])[..],
        &["--min-backoff", "10ms"].map(String::from),
    ]
    .concat();
    let mut gateway = Gateway::start(engine, &flags);
    let bodies = || (0..300).map(|number| format!("waits {number}"));
    ingest_all(&gateway, bodies());
    gateway.logged("destination is down");
    let peer = absent.appear_deciding(|_| {
        std::thread::sleep(WORK);
        Reply::Ok
    });
    let received = peer.take(300);
    let first = received[0].at;
    let at_once = received
        .iter()
        .filter(|request| request.at.duration_since(first) < Duration::from_secs(1))
        .count();
    // A probe, then 2 at a time, 4 after 375 ms at the earliest, 8 after 750 ms. All at once it would be all 300.
    let bound = 1 + (375 / 50 + 1) * 2 + (375 / 50 + 1) * 4 + (250 / 50 + 1) * 8;
    assert!(at_once <= bound, "{at_once} in the first second, at most {bound}");
    assert_each_once(&received, bodies());
    gateway.end_whole();
}

/// Windows as the gateway shows them; they are shown once a second.
fn window(gateway: &Gateway) -> f64 {
    gateway.metric(r#"pyrotee_destination_window_parcels{destination="a"}"#)
}

fn cuts(gateway: &Gateway, reason: &str) -> f64 {
    let series = format!(r#"pyrotee_destination_window_cuts_total{{destination="a",reason="{reason}"}}"#);
    gateway.metric(&series)
}

/// A lock for those who come in their order: a mutex on a busy machine may go to the same thread again and again.
struct Turns {
    /// How many have come, and how many are done.
    counts: Mutex<(u64, u64)>,
    news: Condvar,
}

/// Somebody's turn, over when dropped.
struct Turn(&'static Turns);

impl Turns {
    const fn new() -> Self {
        Self {
            counts: Mutex::new((0, 0)),
            news: Condvar::new(),
        }
    }

    fn take(&'static self) -> Turn {
        let mut counts = self.counts.lock().expect("nobody panics with it");
        let own = counts.0;
        counts.0 += 1;
        let waited = self.news.wait_while(counts, |counts| counts.1 < own);
        drop(waited.expect("nobody panics with it"));
        Turn(self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.counts.lock().expect("nobody panics with it").1 += 1;
        self.0.news.notify_all();
    }
}

fn a_destination_that_slows_down_is_asked_for_less(engine: &str) {
    static ONE_AT_A_TIME: [Turns; 2] = [const { Turns::new() }; 2];
    static SLOW: [AtomicUsize; 2] = [const { AtomicUsize::new(1) }; 2];
    // Both engines run at the same time.
    let lane = usize::from(engine == "epoll");
    let peer = Peer::deciding(move |_| {
        let turn = ONE_AT_A_TIME[lane].take();
        std::thread::sleep(Duration::from_millis(
            10 * SLOW[lane].load(Ordering::Relaxed) as u64,
        ));
        drop(turn);
        Reply::Ok
    });
    let gateway = Gateway::before(
        engine,
        &[&peer],
        &[&ADMIN[..], &["--remote-timeout", "1m"]].concat(),
    );
    for number in 0..5 {
        ingest_all(&gateway, [format!("alone {number}")]);
        peer.next();
    }
    // 64 at a time would wait for 640 ms there, and one alone needs 10 ms. On a busy machine clients may be slower than that,
    // so nothing is worked on until all have pushed.
    let turn = ONE_AT_A_TIME[lane].take();
    ingest_all(&gateway, (0..400).map(|number| format!("burst {number}")));
    drop(turn);
    peer.take(400);
    let small = eventually("the window to be shown", || {
        (cuts(&gateway, "slow") > 0.5).then(|| window(&gateway))
    });
    assert!((1.0..64.0).contains(&small), "{small}");
    SLOW[lane].store(0, Ordering::Relaxed);
    eventually("the window to open again", || {
        ingest_all(&gateway, (0..100).map(|number| format!("fast {number}")));
        peer.take(100);
        (window(&gateway) > 63.5).then_some(())
    });
    let limit = gateway.metric(r#"pyrotee_destination_window_limit_parcels{destination="a"}"#);
    assert!((limit - 64.0).abs() < 0.5, "{limit}");
    let config = get(gateway.admin.expect("an admin port"), "/-/config").json();
    let bounds = &config["derived"]["destinations"]["a"];
    assert_eq!(
        (&bounds["window_parcels_min"], &bounds["window_parcels_max"]),
        (&1.into(), &64.into())
    );
    gateway.end_whole();
}

fn a_destination_that_is_overloaded_is_asked_for_less(engine: &str) {
    let peer = Peer::deciding(|request| match (request.index, request.index % 2) {
        (0..40, 0) => Reply::Status(503, ""),
        (0..40, _) => Reply::Status(429, "Retry-After: 0\r\n"),
        _ => Reply::Ok,
    });
    let flags = ["--min-backoff", "10ms", "--max-backoff", "50ms"];
    let gateway = Gateway::before(engine, &[&peer], &[&flags[..], &ADMIN].concat());
    let bodies = || (0..40).map(|number| format!("refused {number}"));
    ingest_all(&gateway, bodies());
    let received = peer.take(80);
    assert_each_once(&received[40..], bodies());
    eventually("the cuts to be shown", || {
        (cuts(&gateway, "overloaded") > 0.5).then_some(())
    });
    eventually("the window to open again", || {
        ingest_all(&gateway, (0..100).map(|number| format!("good {number}")));
        peer.take(100);
        (window(&gateway) > 63.5).then_some(())
    });
    gateway.end_whole();
}

fn connections_of_a_burst_are_given_back(engine: &str) {
    let held = Held::default();
    let door = held.clone();
    let peer = Peer::deciding(move |_| Reply::Held(door.clone()));
    let gateway = Gateway::before(engine, &[&peer], &[]);
    let idle = gateway.descriptors();
    ingest_all(&gateway, (0..32).map(|number| format!("burst {number}")));
    peer.take(32);
    assert!(gateway.descriptors() >= idle + 32, "each has a connection");
    // They rest now, until the destination closes them: nothing is sent, and yet their descriptors come back.
    held.open();
    peer.close_connections();
    eventually("the descriptors to be given back", || {
        (gateway.descriptors() <= idle).then_some(())
    });
    assert_eq!(gateway.ingest("after").status, 200);
    peer.next();
    gateway.end_whole();
}
