//! What goes wrong around the gateway, and what it promises then: nothing lost in silence, nothing twice, nobody hangs.
//!
//! Each test is a sentence about the real binary on loopback, under both engines. The books are read from the farewell
//! and compared with what destinations counted and what clients were told.

#![allow(clippy::disallowed_methods)] // how long things really take is what these tests ask

mod support;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::gateway::{Farewell, Gateway, farewells, to};
use support::peer::{Absent, Held, Peer, Received, Reply};
use support::wire::{CHUNK_STYLES, PUSH, encode, noise, post_chunked, push_message};
use support::{Client, DEADLINE, Process, Sink, eventually, post, run, skip, under_both_engines};

under_both_engines!(
    a_stopped_destination_disturbs_nobody,
    a_stalled_destination_disturbs_nobody,
    a_resetting_destination_disturbs_nobody,
    a_failing_destination_disturbs_nobody,
    a_throttling_destination_disturbs_nobody,
    a_destination_that_comes_back_gets_what_waited_once,
    a_destination_that_has_it_never_gets_it_again,
    a_stale_connection_costs_no_attempt,
    a_fresh_connection_without_an_answer_costs_one,
    retry_after_is_waited_for,
    final_answers_are_not_asked_again,
    a_server_that_stops_says_422_and_is_asked_again,
    what_is_refused_is_logged_once_a_minute,
    a_redirect_that_keeps_the_body_is_followed,
    an_early_refusal_is_heard_while_the_body_is_sent,
    overflow_drops_the_oldest_and_keeps_the_newest,
    overflow_drops_the_oldest_though_it_waits_for_a_retry,
    a_body_as_large_as_the_queue_is_delivered,
    overflow_may_refuse_and_then_queues_on_none,
    a_full_memory_refuses_until_there_is_room,
    a_dead_destination_refuses_nobody,
    what_is_too_old_is_never_sent,
    a_name_may_resolve_later,
    the_longest_idle_connection_makes_room,
    idle_connections_of_other_cores_make_room_too,
    a_client_without_room_is_told_so,
    too_few_descriptors_are_survived,
    too_few_descriptors_to_start_are_told,
    without_descriptors_the_admin_port_answers,
    a_request_that_does_not_arrive_is_given_up,
    an_idle_connection_is_closed,
    a_client_that_does_not_read_is_given_up,
    a_client_that_leaves_takes_nothing_along,
    a_shutdown_finishes_requests_and_drains_queues,
    a_shutdown_gives_up_after_the_drain_timeout,
    a_second_signal_leaves_at_once,
    a_shutdown_under_load_keeps_its_word,
    the_books_balance_through_random_faults,
);

/// How long something takes at most that happens at once: what would happen instead comes after this, and the machine may be
/// busy.
const AT_ONCE: Duration = Duration::from_secs(4);

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];

/// Quick retries, so that tests need not wait.
const QUICK: [&str; 4] = ["--min-backoff", "10ms", "--max-backoff", "100ms"];

fn start(engine: &str, urls: &[String], flags: &[&str]) -> Gateway {
    let flags = flags.iter().map(|flag| (*flag).to_owned());
    Gateway::start(engine, &to(urls).into_iter().chain(flags).collect::<Vec<_>>())
}

/// A body that tells its number, of 10 KiB.
fn numbered(number: usize) -> Vec<u8> {
    let mut body = format!("{number:06}").into_bytes();
    body.resize(10 << 10, b'.');
    body
}

fn number_of(request: &Received) -> usize {
    String::from_utf8_lossy(&request.body[..6])
        .parse()
        .expect("numbered")
}

fn dropped(farewell: &Farewell, reason: &str) -> u64 {
    farewell.dropped.get(reason).copied().unwrap_or(0)
}

/// Three destinations, the last one misbehaves while load comes in: the others get everything at once, no client notices,
/// and when it is well again it gets everything, once.
fn disturbs_nobody(engine: &str, flags: &[&str], hurt: impl Fn(&Sink), heal: impl Fn(&Sink)) {
    // As many as a destination may retry without waiting for its retry budget.
    const PUSHES: u64 = 100;
    let sinks: Vec<_> = (0..3)
        .map(|_| Sink::start(&["--engine", engine, "--verify"]))
        .collect();
    let urls: Vec<_> = sinks.iter().map(Sink::url).collect();
    let gateway = start(engine, &urls, &[&QUICK, flags].concat());
    hurt(&sinks[2]);
    let url = format!("http://{}", gateway.address);
    let count = PUSHES.to_string();
    let load = [
        "load",
        &url,
        "--requests",
        &count,
        "--size",
        "2KiB:4,20KiB:1",
        "--route",
        "mix",
        "--timeout",
        "5s",
    ];
    let ended = run(&[&load[..], &["--duration", "1m", "--quiet"]].concat());
    assert!(ended.status.success(), "clients noticed: {}", ended.stderr);
    for sink in &sinks[..2] {
        sink.stats_when("the healthy destinations", |stats| stats["verified"] == PUSHES);
    }
    heal(&sinks[2]);
    sinks[2].stats_when("the destination that is well again", |stats| {
        stats["verified"] == PUSHES
    });
    for (farewell, sink) in gateway.farewell().values().zip(&sinks) {
        assert_eq!((farewell.delivered, farewell.accepted()), (PUSHES, PUSHES));
        let stats = sink.stats();
        assert_eq!(
            (&stats["duplicates"], &stats["corrupt"]),
            (&0.into(), &0.into()),
            "{stats:#}"
        );
    }
}

fn a_stopped_destination_disturbs_nobody(engine: &str) {
    disturbs_nobody(
        engine,
        &["--remote-timeout", "1m"], // what is given up meanwhile would arrive all the same
        |sink| sink.process.signal(Signal::STOP),
        |sink| sink.process.signal(Signal::CONT),
    );
}

fn a_stalled_destination_disturbs_nobody(engine: &str) {
    let flags = ["--remote-timeout", "3s", "--inflight", "16"];
    let heal = |sink: &Sink| {
        // An attempt that is given up at the very moment of the healing may have arrived, and would be sent again. So the
        // healing comes when all attempts have been given up and the next one has just begun.
        for open in [0, 1] {
            sink.stats_when("the next attempt", |stats| {
                stats["stalls"].as_u64() > Some(15) && stats["connections_open"] == open
            });
        }
        sink.set_faults("");
    };
    disturbs_nobody(engine, &flags, |sink| sink.set_faults("--stall"), heal);
}

fn a_resetting_destination_disturbs_nobody(engine: &str) {
    disturbs_nobody(
        engine,
        &[],
        |sink| sink.set_faults("--reset 1"),
        |sink| sink.set_faults(""),
    );
}

fn a_failing_destination_disturbs_nobody(engine: &str) {
    disturbs_nobody(
        engine,
        &[],
        |sink| sink.set_faults("--answer 500,503,408"),
        |sink| sink.set_faults(""),
    );
}

fn a_throttling_destination_disturbs_nobody(engine: &str) {
    let faults = "--answer 429 --answer-header 'Retry-After: 1'";
    disturbs_nobody(
        engine,
        &[],
        |sink| sink.set_faults(faults),
        |sink| sink.set_faults(""),
    );
}

fn a_destination_that_comes_back_gets_what_waited_once(engine: &str) {
    let (there, absent) = (Peer::start(), Absent::new());
    let gateway = start(engine, &[there.url(), absent.url()], &QUICK);
    let mut client = gateway.client();
    for number in 0..100 {
        assert_eq!(
            client
                .post("/ingest?name=app", &[], &numbered(number))
                .unwrap()
                .status,
            200
        );
    }
    let back = absent.appear();
    for peer in [&there, &back] {
        let mut numbers: Vec<_> = peer.take(100).iter().map(number_of).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    }
    for (name, farewell) in gateway.farewell() {
        assert_eq!((farewell.delivered, farewell.accepted()), (100, 100), "{name}");
    }
    back.expect_nothing(Duration::from_millis(50), "once is enough");
}

fn a_destination_that_has_it_never_gets_it_again(engine: &str) {
    let healthy = Peer::start();
    let flaky = Peer::deciding(|request| match request.index % 4 {
        0 => Reply::Status(503, ""),
        1 => Reply::Close,
        2 => Reply::Reset,
        _ => Reply::Ok,
    });
    for ack in ["all", "first", "queued"] {
        let gateway = Gateway::before(
            engine,
            &[&healthy, &flaky],
            &[&QUICK[..], &["--ack", ack]].concat(),
        );
        for number in 0..10 {
            assert_eq!(gateway.ingest(numbered(number)).status, 200, "--ack {ack}");
        }
        let farewells = gateway.farewell();
        assert_eq!(
            (farewells["a"].delivered, farewells["b"].delivered),
            (10, 10),
            "--ack {ack}: {farewells:?}"
        );
        let mut numbers: Vec<_> = healthy.take(10).iter().map(number_of).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..10).collect::<Vec<_>>());
        healthy.expect_nothing(Duration::from_millis(20), "it has them all");
    }
}

fn a_stale_connection_costs_no_attempt(engine: &str) {
    let peer = Peer::deciding(|_| Reply::OkThenClose);
    let gateway = Gateway::before(engine, &[&peer], &["--ack", "all", "--max-retries", "1"]);
    let mut client = gateway.client();
    for number in 0..30 {
        // At once, and after a pause in which the gateway can have seen the end.
        std::thread::sleep(Duration::from_millis(if number % 10 == 9 { 30 } else { 0 }));
        let answer = client.post("/ingest?name=app", &[], &numbered(number)).unwrap();
        assert_eq!(answer.status, 200, "{number}: {}", answer.text());
        assert_eq!(number_of(&peer.next()), number);
    }
    peer.expect_nothing(Duration::from_millis(20), "nothing twice");
}

fn a_fresh_connection_without_an_answer_costs_one(engine: &str) {
    let peer = Peer::deciding(|_| Reply::Close);
    let gateway = Gateway::before(
        engine,
        &[&peer],
        &["--ack", "all", "--max-retries", "3", "--min-backoff", "1ms"],
    );
    assert_eq!(gateway.ingest("x").status, 500);
    assert_eq!(peer.take(3).len(), 3);
    peer.expect_nothing(Duration::from_millis(50), "three attempts were allowed");
    assert_eq!(dropped(&gateway.farewell()["a"], "retries_exhausted"), 1);
}

fn retry_after_is_waited_for(engine: &str) {
    let peer = Peer::deciding(|request| match request.index {
        0 => Reply::Status(429, "Retry-After: 1\r\n"),
        1 => Reply::Status(503, "Retry-After: 1\r\n"),
        // A second by its own clock, whatever ours shows.
        2 => Reply::Status(
            503,
            "Retry-After: Sun, 06 Nov 1994 08:49:38 GMT\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
        ),
        _ => Reply::Ok,
    });
    let gateway = Gateway::before(engine, &[&peer], &QUICK);
    assert_eq!(gateway.ingest("x").status, 200);
    let times: Vec<_> = peer.take(4).iter().map(|request| request.at).collect();
    for pair in times.windows(2) {
        let waited = pair[1] - pair[0];
        assert!(
            (Duration::from_millis(990)..Duration::from_secs(5)).contains(&waited),
            "waited {waited:?}"
        );
    }
    assert_eq!(gateway.farewell()["a"].delivered, 1);
}

fn final_answers_are_not_asked_again(engine: &str) {
    let statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422, 501, 301, 302, 303];
    let peer =
        Peer::deciding(move |request| Reply::Status(statuses[request.index], "Location: /elsewhere\r\n"));
    let gateway = Gateway::before(engine, &[&peer], &[&QUICK[..], &["--inflight", "1"]].concat());
    for _ in statuses {
        assert_eq!(gateway.ingest("x").status, 200);
    }
    peer.take(statuses.len());
    peer.expect_nothing(Duration::from_millis(50), "each was asked once");
    let farewell = &gateway.farewell()["a"];
    let expected = [("rejected", 8), ("unauthorized", 2), ("redirected", 3)];
    let expected: BTreeMap<_, _> = expected
        .into_iter()
        .map(|(reason, count)| (reason.to_owned(), count))
        .collect();
    assert_eq!((farewell.delivered, &farewell.dropped), (0, &expected));
}

/// As Pyroscope 1.21.1 and 2.2.1 do while they stop and start: what was accepted for them must not be lost by that.
fn a_server_that_stops_says_422_and_is_asked_again(engine: &str) {
    let failed = |what: &str| {
        let message =
            format!("pushing IngestInput-pprof failed push series with index 0 and id  failed: {what}");
        Reply::Json(422, format!(r#"{{"code":"unknown","message":"{message}"}}"#))
    };
    let peer = Peer::deciding(move |request| match request.index {
        0 => failed("unknown: rpc error: code = Unavailable desc = service is unavailable"),
        1 => failed("unknown: empty ring"),
        2 => failed("invalid_argument: outside of the ingestion window"),
        _ => Reply::Ok,
    });
    let gateway = Gateway::before(engine, &[&peer], &[&QUICK[..], &["--inflight", "1"]].concat());
    assert_eq!(gateway.ingest("old").status, 200);
    let texts: Vec<_> = peer.take(3).iter().map(Received::text).collect();
    assert_eq!(texts, ["old"; 3]);
    assert_eq!(gateway.ingest("new").status, 200);
    peer.take(1);
    let farewell = &gateway.farewell()["a"];
    assert_eq!(
        (farewell.delivered, farewell.dropped.get("rejected")),
        (1, Some(&1))
    );
}

fn what_is_refused_is_logged_once_a_minute(engine: &str) {
    let peer = Peer::deciding(|request| match request.index {
        0..3 => Reply::Json(500, r#"{"code":"unknown","message":"gzip reset: EOF"}"#.into()),
        _ => Reply::Ok,
    });
    let mut gateway = Gateway::before(engine, &[&peer], &QUICK);
    assert_eq!(gateway.ingest("x").status, 200);
    let line = gateway.logged("has failed to take a profile");
    assert_eq!(line["problem"], "answered 500; will be retried");
    assert_eq!(line["it_says"], r#""gzip reset: EOF""#);
    peer.take(4);
    let ended = gateway.process.terminate();
    let told = ended.stderr.matches("has failed to take a profile").count();
    assert_eq!(
        (told, farewells(&ended)["a"].delivered),
        (1, 1),
        "{}",
        ended.stderr
    );
    let peer = Peer::deciding(|_| {
        Reply::Json(
            400,
            r#"{"code":"invalid_argument","message":"too \u001b old"}"#.into(),
        )
    });
    let mut gateway = Gateway::before(engine, &[&peer], &QUICK);
    for _ in 0..5 {
        assert_eq!(gateway.ingest("x").status, 200);
    }
    let line = gateway.logged("a profile was refused");
    assert_eq!(line["destination"], "a");
    assert_eq!(line["problem"], "answered 400; dropped");
    assert_eq!(line["it_says"], r#""too \u{1b} old""#);
    peer.take(5);
    let ended = gateway.process.terminate();
    assert_eq!(
        ended.stderr.matches("a profile was refused").count(),
        1,
        "{}",
        ended.stderr
    );
    assert_eq!(farewells(&ended)["a"].dropped["rejected"], 5);
}

fn a_redirect_that_keeps_the_body_is_followed(engine: &str) {
    for status in [307, 308] {
        let peer = Peer::deciding(move |request| match request.target.starts_with("/new") {
            true => Reply::Ok,
            false => Reply::Status(status, "Location: /new/ingest?moved=1\r\n"),
        });
        let gateway = Gateway::before(engine, &[&peer], &["--ack", "all"]);
        assert_eq!(gateway.ingest("whole").status, 200);
        let texts: Vec<_> = peer.take(2).iter().map(Received::text).collect();
        assert_eq!(texts, ["whole", "whole"], "{status} keeps the body");
    }
}

fn an_early_refusal_is_heard_while_the_body_is_sent(engine: &str) {
    // A server that answers after the head and closes: the body can never be sent whole.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (heard, is_heard) = mpsc::channel::<()>();
    let answering = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        let mut some = [0; 1000];
        stream.read_exact(&mut some).unwrap();
        stream
            .write_all(b"HTTP/1.1 413 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        // Bytes that nobody reads make the close a reset, which may overtake the answer.
        let _ = is_heard.recv_timeout(DEADLINE);
    });
    let gateway = start(engine, &[url], &["--ack", "all", "--remote-timeout", "20s"]);
    let body = noise(20 << 20, 1);
    let begun = Instant::now();
    assert_eq!(gateway.ingest(body).status, 413);
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "heard after {:?}",
        begun.elapsed()
    );
    drop(heard);
    answering.join().unwrap();
    assert_eq!(dropped(&gateway.farewell()["a"], "rejected"), 1);
}

/// A queue limit that ten numbered bodies fit, with what each weighs beside its body, and eleven do not.
const TEN_FIT: [&str; 4] = ["--queue-limit", "110KiB", "--body-limit", "10KiB"];

fn overflow_drops_the_oldest_and_keeps_the_newest(engine: &str) {
    let held = Held::default();
    let gate = held.clone();
    let peer = Peer::deciding(move |_| Reply::Held(gate.clone()));
    let gateway = Gateway::before(engine, &[&peer], &[&TEN_FIT[..], &["--inflight", "1"]].concat());
    let mut client = gateway.client();
    for number in 0..40 {
        assert_eq!(
            client
                .post("/ingest?name=app", &[], &numbered(number))
                .unwrap()
                .status,
            200
        );
        if number == 0 {
            assert_eq!(number_of(&peer.next()), 0, "it is on the wire");
        }
    }
    held.open();
    let farewell = &gateway.farewell()["a"];
    assert_eq!(
        (farewell.delivered, dropped(farewell, "overflow")),
        (10, 30),
        "{farewell:?}"
    );
    assert_eq!(farewell.accepted(), 40);
    let numbers: Vec<_> = peer.take(9).iter().map(number_of).collect();
    assert_eq!(numbers, (31..40).collect::<Vec<_>>(), "the newest, in order");
}

fn overflow_drops_the_oldest_though_it_waits_for_a_retry(engine: &str) {
    let failures = AtomicUsize::new(0);
    // Those that overflow would never be asked for again; the others not before all are in, on a busy machine too.
    let peer = Peer::deciding(move |_| match failures.fetch_add(1, Ordering::Relaxed) {
        0..20 => Reply::Status(503, "Retry-After: 3600\r\n"),
        20..30 => Reply::Status(503, "Retry-After: 5\r\n"),
        _ => Reply::Ok,
    });
    let gateway = Gateway::before(engine, &[&peer], &[&TEN_FIT[..], &["--inflight", "1"]].concat());
    let mut client = gateway.client();
    for number in 0..30 {
        assert_eq!(
            client
                .post("/ingest?name=app", &[], &numbered(number))
                .unwrap()
                .status,
            200
        );
        assert_eq!(number_of(&peer.next()), number, "its first attempt, which fails");
    }
    let farewell = &gateway.farewell()["a"];
    assert_eq!(
        (farewell.delivered, dropped(farewell, "overflow")),
        (10, 20),
        "{farewell:?}"
    );
    let mut numbers: Vec<_> = peer.take(10).iter().map(number_of).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (20..30).collect::<Vec<_>>(), "the newest");
}

fn a_body_as_large_as_the_queue_is_delivered(engine: &str) {
    let peer = Peer::start();
    for overflow in ["drop-oldest", "refuse"] {
        let flags = [
            "--overflow",
            overflow,
            "--memory-limit",
            "4MiB",
            "--queue-limit",
            "1MiB",
        ];
        let gateway = Gateway::before(engine, &[&peer], &flags);
        assert_eq!(gateway.ingest(noise(1 << 20, 1)).status, 200, "{overflow}");
        assert_eq!(peer.next().body.len(), 1 << 20, "{overflow}");
        assert_eq!(gateway.farewell()["a"].delivered, 1, "{overflow}");
    }
}

fn overflow_may_refuse_and_then_queues_on_none(engine: &str) {
    let held = Held::default();
    let gate = held.clone();
    let (slow, quick) = (Peer::deciding(move |_| Reply::Held(gate.clone())), Peer::start());
    let flags = [
        "--overflow",
        "refuse",
        "--queue-limit",
        "55KiB",
        "--body-limit",
        "10KiB",
    ];
    let gateway = Gateway::before(engine, &[&quick, &slow], &flags);
    let mut client = gateway.client();
    for number in 0..12 {
        let answer = client.post("/ingest?name=app", &[], &numbered(number)).unwrap();
        let expected = if number < 5 { (200, false) } else { (503, true) };
        assert_eq!(
            (answer.status, answer.header("retry-after").is_some()),
            expected,
            "push {number}"
        );
    }
    let message = encode(&push_message(
        &[("service_name", "s")],
        &[numbered(0)[..9000].to_vec()],
    ));
    let answer = client
        .post(PUSH, &[("Content-Type", "application/proto")], &message)
        .unwrap();
    assert_eq!(
        (answer.status, answer.json()["code"].as_str()),
        (503, Some("unavailable"))
    );
    assert!(answer.header("retry-after").is_some());
    assert_eq!(quick.take(5).iter().map(number_of).max(), Some(4));
    quick.expect_nothing(Duration::from_millis(20), "a refused push is queued on none");
    held.open();
    eventually("room", || {
        (client.post("/ingest?name=app", &[], b"000099").unwrap().status == 200).then_some(())
    });
    for (name, farewell) in gateway.farewell() {
        assert_eq!((farewell.delivered, farewell.accepted()), (6, 6), "{name}");
    }
}

fn a_full_memory_refuses_until_there_is_room(engine: &str) {
    let peer = Peer::start();
    let flags = [
        "--memory-limit",
        "4MiB",
        "--queue-limit",
        "4MiB",
        "--body-limit",
        "3MiB",
    ];
    let gateway = Gateway::before(engine, &[&peer], &flags);
    let body = noise((5 << 20) / 2, 2);
    let request = post("/ingest?name=app", &[], &body);
    let (first, rest) = request.split_at(1000);
    let mut slow = gateway.client();
    slow.send(first).unwrap();
    // Both routes refuse as soon as the first body has its room.
    let message = encode(&push_message(
        &[("service_name", "s")],
        std::slice::from_ref(&body),
    ));
    for (target, body) in [("/ingest?name=app", &body), (PUSH, &message)] {
        eventually("a refusal", || {
            let answer = gateway
                .client()
                .post(target, &[("Content-Type", "application/proto")], body)
                .unwrap();
            (answer.status == 503 && answer.header("retry-after").is_some()).then_some(())
        });
    }
    slow.send(rest).unwrap();
    assert_eq!(
        slow.receive().unwrap().status,
        200,
        "what had room before still has it"
    );
    eventually("room", || (gateway.ingest(&body).status == 200).then_some(()));
    let farewell = &gateway.farewell()["a"];
    assert_eq!(farewell.delivered, farewell.accepted());
}

/// Small pushes pin more memory than they show, and buffers grow with the last body: neither may fill the memory limit
/// before the queue of a dead destination overflows, or it would refuse clients for all others.
fn a_dead_destination_refuses_nobody(engine: &str) {
    for sizes in [&[10][..], &[200_000, 10]] {
        let there = Peer::start();
        let dead = Absent::new();
        let flags = [
            "--memory-limit",
            "4MiB",
            "--queue-limit",
            "1MiB",
            "--body-limit",
            "1MiB",
            "--drain-timeout",
            "0",
        ];
        let gateway = start(engine, &[there.url(), dead.url()], &flags);
        let mut client = gateway.client();
        for number in 0..6000 / sizes.len() {
            let body = vec![b'x'; sizes[number % sizes.len()]];
            let answer = client.post("/ingest?name=app", &[], &body).unwrap();
            assert_eq!(
                answer.status,
                200,
                "push {number} of {sizes:?}: {}",
                answer.text()
            );
            // The healthy destination is not behind, so what fills up is the dead one.
            there.next();
        }
        let farewell = &gateway.farewell()["b"];
        assert!(dropped(farewell, "overflow") > 0, "{farewell:?}");
    }
}

fn what_is_too_old_is_never_sent(engine: &str) {
    let (there, absent) = (Peer::start(), Absent::new());
    let short_lived = format!("{},max-age=500ms", absent.url());
    let gateway = start(engine, &[there.url(), short_lived], &QUICK);
    for number in 0..10 {
        assert_eq!(gateway.ingest(numbered(number)).status, 200);
    }
    std::thread::sleep(Duration::from_millis(600)); // they have to grow old, and only time does that
    let back = absent.appear();
    let (mut pushed, mut arrived) = (10, Vec::new());
    // On a busy machine one may grow too old before the next probe.
    eventually("a fresh one to arrive", || {
        assert_eq!(gateway.ingest(numbered(pushed)).status, 200);
        pushed += 1;
        arrived.extend(back.received().iter().map(number_of));
        (!arrived.is_empty()).then_some(())
    });
    let farewells = gateway.farewell();
    arrived.extend(back.received().iter().map(number_of));
    assert!(
        arrived.iter().all(|number| *number >= 10),
        "all that it gets is fresh: {arrived:?}"
    );
    let (pushed, delivered) = (pushed as u64, arrived.len() as u64);
    assert_eq!(
        (farewells["a"].delivered, farewells["b"].delivered),
        (pushed, delivered)
    );
    assert_eq!(
        (dropped(&farewells["b"], "too_old"), farewells["b"].accepted()),
        (pushed - delivered, pushed)
    );
}

fn a_name_may_resolve_later(engine: &str) {
    let there = Peer::start();
    let late = Peer::start();
    let hosts = tempfile::NamedTempFile::new().unwrap();
    let may = Command::new("unshare")
        .args(["-m", "mount", "--bind"])
        .arg(hosts.path())
        .arg("/etc/hosts")
        .output();
    if let Some(why) = match may {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(error.to_string()),
    } {
        return skip(
            "a_name_may_resolve_later",
            format!("no mount namespace of its own: {why}"),
        );
    }
    let path = hosts.path().to_str().unwrap();
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    let first = ["-m", "sh", "-c", script, path, env!("CARGO_BIN_EXE_pyrotee")];
    let url = format!("http://late.pyrotee.invalid:{}", late.address.port());
    let flags = [
        &to(&[there.url(), url])[..],
        &["--dns-refresh", "100ms"].map(String::from),
    ]
    .concat();
    let gateway = Gateway::start_by(Command::new("unshare"), &first, engine, &flags);
    for number in 0..10 {
        assert_eq!(gateway.ingest(numbered(number)).status, 200);
    }
    there.take(10);
    late.expect_nothing(Duration::from_millis(100), "nobody knows its name yet");
    std::fs::write(hosts.path(), "127.0.0.1 late.pyrotee.invalid\n").unwrap();
    late.take(10);
    for (name, farewell) in gateway.farewell() {
        assert_eq!((farewell.delivered, farewell.accepted()), (10, 10), "{name}");
    }
}

/// Waits until the gateway has accepted so many clients.
fn await_clients(gateway: &Gateway, count: u32) {
    let open = r#"pyroscope_receive_http_tcp_connections{protocol="http"}"#;
    eventually("the clients to be accepted", || {
        (gateway.metric(open) == f64::from(count)).then_some(())
    });
}

/// A client that has been served and is idle now.
fn idle_client(gateway: &Gateway) -> Client {
    let mut client = gateway.client();
    assert_eq!(client.post("/ingest?name=app", &[], b"x").unwrap().status, 200);
    client
}

fn the_longest_idle_connection_makes_room(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &["--conn-limit", "3"]);
    let mut clients: Vec<_> = (0..3).map(|_| idle_client(&gateway)).collect();
    // The first one is used again, so the second is idle longest.
    assert_eq!(
        clients[0].post("/ingest?name=app", &[], b"x").unwrap().status,
        200
    );
    let begun = Instant::now();
    let mut newcomer = idle_client(&gateway);
    assert!(begun.elapsed() < AT_ONCE, "it waited {:?}", begun.elapsed()); // 5 s where nobody makes room
    clients[1].expect_closed("it was idle longest");
    for client in [&mut clients[0], &mut newcomer] {
        assert_eq!(client.post("/ingest?name=app", &[], b"x").unwrap().status, 200);
    }
}

fn idle_connections_of_other_cores_make_room_too(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &["--conn-limit", "2", "--cores", "2"]);
    let mut clients = Vec::new();
    for _ in 0..16 {
        let begun = Instant::now();
        clients.push(idle_client(&gateway));
        assert!(begun.elapsed() < AT_ONCE, "it waited {:?}", begun.elapsed()); // as above
    }
}

fn a_client_without_room_is_told_so(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &[&ADMIN[..], &["--conn-limit", "2"]].concat());
    let request = post("/ingest?name=app", &[], b"whole");
    let (head, tail) = request.split_at(request.len() - 2);
    let mut busy: Vec<_> = (0..2).map(|_| gateway.client()).collect();
    busy.iter_mut().for_each(|client| client.send(head).unwrap());
    // Until the gateway has accepted them, newcomers may be first.
    await_clients(&gateway, 2);
    let mut turned_away = gateway.client();
    turned_away.send(&request).unwrap();
    let answer = turned_away.receive().unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some() && answer.header("connection") == Some("close"));
    for client in &mut busy {
        client.send(tail).unwrap();
        assert_eq!(
            client.receive().unwrap().status,
            200,
            "whoever was there is served"
        );
    }
    drop(busy);
    assert_eq!(
        gateway.ingest("y").status,
        200,
        "and so is who comes when there is room again"
    );
}

fn too_few_descriptors_are_survived(engine: &str) {
    let peer = Peer::start();
    let first = ["--nofile=48:48", env!("CARGO_BIN_EXE_pyrotee")];
    let launcher = Command::new("prlimit");
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skip("too_few_descriptors_are_survived", "no prlimit (util-linux)");
    }
    let mut gateway = Gateway::start_by(launcher, &first, engine, &to(&[peer.url()]));
    // The connection to the destination is there before descriptors run out.
    assert_eq!(gateway.ingest("first").status, 200);
    peer.next();
    let crowd: Vec<_> = (0..80).map(|_| Client::connect(gateway.address)).collect();
    gateway.logged("out of file descriptors");
    drop(crowd);
    assert_eq!(gateway.ingest("second").status, 200);
    assert_eq!(peer.next().text(), "second");
    assert_eq!(gateway.farewell()["a"].delivered, 2);
}

/// A crowd in the middle of its requests makes no room, and whoever looks after the process must see that.
fn without_descriptors_the_admin_port_answers(engine: &str) {
    let peer = Peer::start();
    let first = ["--nofile=48:48", env!("CARGO_BIN_EXE_pyrotee")];
    let launcher = Command::new("prlimit");
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skip(
            "without_descriptors_the_admin_port_answers",
            "no prlimit (util-linux)",
        );
    }
    let mut flags = to(&[peer.url()]);
    flags.extend(["--admin", "127.0.0.1:0"].map(str::to_owned));
    let mut gateway = Gateway::start_by(launcher, &first, engine, &flags);
    let crowd: Vec<_> = (0..80)
        .map(|_| {
            let mut half = TcpStream::connect(gateway.address).expect("the backlog takes it");
            half.write_all(b"POST /ingest?name=app HTTP/1.1\r\n")
                .expect("it is sent");
            half
        })
        .collect();
    gateway.logged("out of file descriptors");
    let since = Instant::now();
    // More often than it has descriptors put by; each time the crowd has reached for one, too.
    let mut tries = 0.0;
    for _ in 0..20 {
        tries = eventually("another try to accept one of the crowd", || {
            let now = gateway.metric(r#"pyrotee_process_descriptor_shortages_total{side="inbound"}"#);
            (now > tries).then_some(now)
        });
        assert!(gateway.metric("process_open_fds") >= 40.0);
    }
    // The crowd is told off after 30 s, and then there are descriptors again.
    assert!(since.elapsed() < Duration::from_secs(20));
    drop(crowd);
}

/// However few, a start either works or says what to raise.
fn too_few_descriptors_to_start_are_told(engine: &str) {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skip("too_few_descriptors_to_start_are_told", "no prlimit (util-linux)");
    }
    let tells = |files: u32, cores: &str| {
        let mut run = Command::new("prlimit");
        run.arg(format!("--nofile={files}:{files}"));
        let binary = env!("CARGO_BIN_EXE_pyrotee");
        let mut flags = vec![binary, "run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        flags.extend([
            "--engine",
            engine,
            "--cores",
            cores,
            "--to",
            "a=http://127.0.0.1:9",
        ]);
        let ended = run.args(flags).output().expect("it ends by itself");
        String::from_utf8_lossy(&ended.stderr).into_owned()
    };
    for files in [6, 7, 10, 14, 18] {
        let told = tells(files, "1");
        let is_clear =
            told.contains("ulimit -n") || told.contains("io_uring does not work here: Too many open files");
        assert!(is_clear && !told.contains("panicked"), "{files}: {told}");
    }
    // Enough for the process, not for its cores.
    let told = tells(30, "16");
    assert!(told.contains("Too many open files"), "{told}");
    assert!(!told.contains("closed channel"), "{told}");
}

fn a_request_that_does_not_arrive_is_given_up(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &["--read-timeout", "300ms"]);
    let request = post("/ingest?name=app", &[], &noise(100_000, 3));
    let chunked = post_chunked("/ingest?name=app", "", &[b'x'; 5000], &CHUNK_STYLES[2]);
    for part in [
        &request[..10],
        &request[..200],
        &request[..90_000],
        &chunked[..3000],
    ] {
        let mut client = gateway.client();
        let begun = Instant::now();
        client.send(part).unwrap();
        let answer = client.receive().unwrap();
        assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
        let took = begun.elapsed();
        assert!(
            (Duration::from_millis(290)..AT_ONCE).contains(&took),
            "after {took:?}"
        );
        client.finish();
        client.expect_closed("after 408");
    }
    // Dripping is no way around it: the whole request counts.
    let mut client = gateway.client();
    let begun = Instant::now();
    let dripped = request.chunks(10).try_for_each(|piece| {
        std::thread::sleep(Duration::from_millis(20));
        client.send(piece)
    });
    assert!(dripped.is_err() && begun.elapsed() < Duration::from_secs(10));
    assert_eq!(gateway.farewell()["a"].accepted(), 0);
}

fn an_idle_connection_is_closed(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(
        engine,
        &[&peer],
        &["--idle-timeout", "300ms", "--read-timeout", "10s"],
    );
    let mut silent = gateway.client();
    // On a busy machine a client may be closed as idle before it has sent anything.
    let (begun, mut served) = eventually("a client that is served", || {
        let (mut client, begun) = (gateway.client(), Instant::now());
        let answer = client.post("/ingest?name=app", &[], b"x").ok()?;
        assert_eq!(answer.status, 200);
        Some((begun, client))
    });
    served.expect_closed("idle after a request");
    let took = begun.elapsed();
    assert!(
        (Duration::from_millis(300)..AT_ONCE).contains(&took),
        "after {took:?}"
    );
    silent.expect_closed("idle from the start");
}

fn a_client_that_does_not_read_is_given_up(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(
        engine,
        &[&peer],
        &[&ADMIN[..], &["--write-timeout", "300ms"]].concat(),
    );
    let mut client = Client::connect_small(gateway.address, 1 << 12);
    // Each is answered with all of its query, so a few hundred answers fill what the kernel takes.
    let request = format!(
        "POST //ingest?{} HTTP/1.1\r\nHost: h\r\n\r\n",
        "x".repeat(7 << 10)
    );
    let requests = request.repeat(8);
    let answers = r#"pyrotee_inbound_refused_requests_total{reason="redirect"}"#;
    let open = r#"pyroscope_receive_http_tcp_connections{protocol="http"}"#;
    await_clients(&gateway, 1);
    let mut asked = 0.0;
    let begun = Instant::now();
    let ended = eventually("the end of the connection", || {
        let sent = client.send(&requests);
        asked += 8.0;
        // No more than it can take: where its side is full as well as the client's, the kernels ask each other less and less
        // often whether there is room again, and it could go on answering for a minute.
        eventually("the answers, or that it is given up", || {
            (gateway.metric(answers) >= asked || gateway.metric(open) == 0.0).then_some(())
        });
        sent.err()
    });
    assert!(
        matches!(ended.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "after {:?}: {ended}",
        begun.elapsed()
    );
    assert_eq!(gateway.ingest("x").status, 200, "others are served");
}

fn a_client_that_leaves_takes_nothing_along(engine: &str) {
    let held = Held::default();
    let gate = held.clone();
    let peer = Peer::deciding(move |_| Reply::Held(gate.clone()));
    for ack in ["queued", "first", "all"] {
        let gateway = Gateway::before(engine, &[&peer], &["--ack", ack]);
        for number in 0..20 {
            let mut client = gateway.client();
            client
                .send(post("/ingest?name=app", &[], &numbered(number)))
                .unwrap();
            assert_eq!(number_of(&peer.next()), number);
            match number % 3 {
                0 => client.reset(),
                1 => client.finish(),
                _ => drop(client),
            }
        }
        held.open();
        let farewell = &gateway.farewell()["a"];
        assert_eq!((farewell.delivered, farewell.accepted()), (20, 20), "--ack {ack}");
    }
}

fn a_shutdown_finishes_requests_and_drains_queues(engine: &str) {
    let held = Held::default();
    let gate = held.clone();
    let peer = Peer::deciding(move |_| Reply::Held(gate.clone()));
    let gateway = Gateway::before(engine, &[&peer], &[&ADMIN[..], &["--inflight", "2"]].concat());
    for number in 0..20 {
        assert_eq!(gateway.ingest(numbered(number)).status, 200);
    }
    let mut idle = idle_client(&gateway);
    let mut late = gateway.client();
    let request = post("/ingest?name=app", &[], &numbered(20));
    late.send(&request[..5000]).unwrap();
    await_clients(&gateway, 2);
    gateway.process.signal(Signal::TERM);
    idle.expect_closed("an idle connection has nothing to finish");
    late.send(&request[5000..]).unwrap();
    let answer = late.receive().unwrap();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("close")),
        "a request in flight is finished"
    );
    eventually("the listener's end", || {
        std::net::TcpStream::connect(gateway.address)
            .is_err()
            .then_some(())
    });
    held.open();
    let farewells = farewells(&gateway.process.wait());
    assert_eq!((farewells["a"].delivered, farewells["a"].accepted()), (22, 22));
}

fn a_shutdown_gives_up_after_the_drain_timeout(engine: &str) {
    let stalled = Peer::deciding(|_| Reply::Held(Held::default()));
    let there = Peer::start();
    let flags = ["--drain-timeout", "300ms", "--inflight", "2"];
    let gateway = Gateway::before(engine, &[&stalled, &there], &[&ADMIN[..], &flags].concat());
    for number in 0..20 {
        assert_eq!(gateway.ingest(numbered(number)).status, 200);
    }
    stalled.take(2);
    let delivered = r#"pyrotee_destination_delivered_parcels_total{destination="b"}"#;
    eventually("b to have all", || {
        (gateway.metric(delivered) == 20.0).then_some(())
    });
    let begun = Instant::now();
    let farewells = gateway.farewell();
    // The requests on the wire would be waited for for 10 s.
    assert!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
    assert_eq!((farewells["b"].delivered, farewells["b"].accepted()), (20, 20));
    let lost = &farewells["a"];
    let given_up = dropped(lost, "shutdown") + lost.undecided;
    assert_eq!((lost.delivered, given_up), (0, 20), "{lost:?}");
}

fn a_second_signal_leaves_at_once(engine: &str) {
    for (first, second) in [
        (Signal::TERM, Signal::TERM),
        (Signal::INT, Signal::TERM),
        (Signal::INT, Signal::INT),
    ] {
        let stalled = Peer::deciding(|_| Reply::Held(Held::default()));
        let mut gateway = Gateway::before(engine, &[&stalled], &["--drain-timeout", "1h"]);
        for number in 0..5 {
            assert_eq!(gateway.ingest(numbered(number)).status, 200);
        }
        gateway.process.signal(first);
        gateway.logged("a second signal leaves at once");
        let begun = Instant::now();
        gateway.process.signal(second);
        let farewells = farewells(&gateway.process.wait());
        // The requests on the wire would be waited for for 10 s, and an hour for the rest.
        assert!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
        assert_eq!((farewells["a"].delivered, farewells["a"].accepted()), (0, 5));
    }
}

fn a_shutdown_under_load_keeps_its_word(engine: &str) {
    for cores in ["1", "2"] {
        let sinks: Vec<_> = (0..2)
            .map(|_| Sink::start(&["--engine", engine, "--verify", "--delay", "3ms"]))
            .collect();
        let urls: Vec<_> = sinks.iter().map(Sink::url).collect();
        let gateway = start(engine, &urls, &["--cores", cores]);
        let url = format!("http://{}", gateway.address);
        let flags = [
            "--size",
            "1KiB",
            "--duration",
            "1m",
            "--json",
            "-",
            "--quiet",
            "--allow-errors",
            "--timeout",
            "20s",
        ];
        let load = Process::start(&[&["load", &url][..], &flags].concat());
        sinks[0].stats_when("some load", |stats| stats["verified"].as_u64() > Some(50));
        let farewells = gateway.farewell();
        load.signal(Signal::INT);
        let ended = load.wait();
        let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let told = report["ok"].as_u64().unwrap();
        for (farewell, sink) in farewells.values().zip(&sinks) {
            let stats = sink.stats();
            assert_eq!(
                stats["verified"], farewell.delivered,
                "--cores {cores}: {stats:#}"
            );
            assert_eq!(
                farewell.delivered,
                farewell.accepted(),
                "--cores {cores}: all was drained"
            );
            // A client may have been cut off while its answer was on its way; never the other way round.
            assert!(
                farewell.accepted() >= told,
                "--cores {cores}: {told} were told 200: {farewell:?}"
            );
            assert_eq!(
                farewell.accepted(),
                told,
                "--cores {cores}: and answers arrive too"
            );
            assert_eq!(stats["duplicates"], 0);
        }
    }
}

/// One seed, three sinks with faults that change under load, small queues: at rest every destination's books balance and
/// are the same as what its sink counted, and every push that a client was told 200 for is in them.
fn the_books_balance_through_random_faults(engine: &str) {
    for (seed, flags) in [
        (1, &["--cores", "1"][..]),
        (2, &["--cores", "2"]),
        (3, &["--cores", "2", "--overflow", "refuse"]),
        (4, &["--cores", "4", "--writers", "2", "--ack", "first"]),
    ] {
        println!("seed {seed} with {flags:?}");
        let mut random = fastrand::Rng::with_seed(seed);
        let sinks: Vec<_> = (0..3)
            .map(|_| Sink::start(&["--engine", engine, "--verify"]))
            .collect();
        let urls: Vec<_> = sinks.iter().map(Sink::url).collect();
        let limits = [
            "--queue-limit",
            "200KiB",
            "--body-limit",
            "100KiB",
            "--inflight",
            "8",
        ];
        let gateway = start(engine, &urls, &[&QUICK[..], &limits, flags].concat());
        let url = format!("http://{}", gateway.address);
        let mut load = vec![
            "load",
            &url,
            "--duration",
            "1m",
            "--size",
            "1KiB:8,16KiB:2,64KiB:1",
            "--route",
            "mix",
        ];
        load.extend([
            "--json",
            "-",
            "--quiet",
            "--allow-errors",
            "--connections",
            "12",
            "--timeout",
            "20s",
        ]);
        let load = Process::start(&load);
        let faults = [
            "",
            "--reset 0.3",
            "--reset 1",
            "--answer 500,200,503,408",
            "--answer 429 --answer-header 'Retry-After: 1'",
            "--answer 400,200x3,401",
            "--delay 20ms",
            "--stall",
            "--close",
            "--bandwidth 200KiB",
        ];
        for _ in 0..8 {
            let sink = &sinks[random.usize(..sinks.len())];
            sink.set_faults(faults[random.usize(..faults.len())]);
            std::thread::sleep(Duration::from_millis(random.u64(50..200)));
        }
        sinks.iter().for_each(|sink| sink.set_faults(""));
        sinks[0].stats_when("some load", |stats| stats["verified"].as_u64() > Some(20));
        load.signal(Signal::INT);
        let ended = load.wait();
        let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let told = report["ok"].as_u64().unwrap();
        assert!(told > 20, "hardly any load: {report:#}");
        let farewells = gateway.farewell();
        for ((name, farewell), sink) in farewells.iter().zip(&sinks) {
            let stats = sink.stats();
            let what = format!("{name}, seed {seed}: {farewell:?}, told {told}: {stats:#}");
            assert_eq!(farewell.undecided, 0, "{what}");
            assert_eq!(stats["verified"], farewell.delivered, "{what}");
            assert_eq!(
                (&stats["duplicates"], &stats["corrupt"]),
                (&0.into(), &0.into()),
                "{what}"
            );
            if flags.contains(&"first") {
                assert!(farewell.accepted() >= told, "{what}");
            } else {
                assert_eq!(farewell.accepted(), told, "{what}");
            }
            let reasons = ["overflow", "rejected", "unauthorized"];
            assert!(
                farewell.dropped.keys().all(|reason| reasons.contains(&&**reason)),
                "{what}"
            );
        }
    }
}

/// Becomes a program to which io_uring is forbidden by a seccomp filter (EPERM for system call 425 on every
/// architecture that Linux has had since io_uring came).
const FORBID_IO_URING: &str = "
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def op(code, jt, jf, k): return struct.pack('HBBI', code, jt, jf, k)
program = op(0x20, 0, 0, 0) + op(0x15, 0, 1, 425) + op(0x06, 0, 0, 0x00050001) + op(0x06, 0, 0, 0x7fff0000)
buffer = ctypes.create_string_buffer(program, len(program))
class Fprog(ctypes.Structure): _fields_ = [('len', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
fprog = Fprog(4, ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0, 'no_new_privs'
assert libc.prctl(22, 2, ctypes.byref(fprog), 0, 0) == 0, 'seccomp'
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn a_forbidden_io_uring_is_said_aloud_or_done_without() {
    let may = Command::new("python3")
        .args(["-c", FORBID_IO_URING, "/bin/true"])
        .output();
    if !may.as_ref().is_ok_and(|output| output.status.success()) {
        return skip(
            "a_forbidden_io_uring_is_said_aloud_or_done_without",
            format!("no python3 or no seccomp: {may:?}"),
        );
    }
    let launch = ["-c", FORBID_IO_URING, env!("CARGO_BIN_EXE_pyrotee")];
    let demanded = [
        "run",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "off",
        "--to",
        "http://127.0.0.1:1",
        "--engine",
        "io_uring",
    ];
    let ended = Process::start_by(Command::new("python3"), &[&launch[..], &demanded].concat()).wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    for word in ["--engine io_uring", "seccomp", "--engine auto"] {
        assert!(ended.stderr.contains(word), "{word} is missing: {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("listening"), "{}", ended.stderr);

    let peer = Peer::start();
    let mut gateway = Gateway::start_by(Command::new("python3"), &launch, "auto", &to(&[peer.url()]));
    assert_eq!(gateway.ingest("x").status, 200);
    assert_eq!(peer.next().text(), "x");
    gateway.process.signal(Signal::TERM);
    gateway.logged("all delivered");
    let ended = gateway.process.wait();
    let first: serde_json::Value = serde_json::from_str(ended.stderr.lines().next().unwrap()).unwrap();
    assert_eq!(first["engine"], "epoll");
    assert!(first["reason"].as_str().unwrap().contains("seccomp"), "{first}");
}
