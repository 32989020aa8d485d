//! Row 128 of WIRE.md section 9, and clients that are slow, silent or gone.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use pyrotee::runtime::clock;

use super::gateway::{Engine, Gateway, INGEST, assert_empty, ms, under_both_engines};
use super::scripted::{Act, Latch, Scripted, plain_answer};
use super::support::{DEADLINE, post, run};

under_both_engines!(
    row_128_clients_beyond_the_limit_wait,
    row_128_idle_connections_make_room,
    row_128_nobody_waits_for_ever,
    many_slow_senders_do_not_disturb_others,
    clients_that_never_read_are_dropped,
    clients_that_vanish_leave_nothing_behind,
);

/// A destination that answers once the latch is open.
fn held() -> (Scripted, Latch) {
    let latch = Latch::default();
    let hold = latch.clone();
    let held = Scripted::following(move |_, request| {
        vec![Act::Await(hold.clone()), Act::Send(plain_answer(request, 200))]
    });
    (held, latch)
}

fn row_128_clients_beyond_the_limit_wait(engine: Engine) {
    let (a, latch) = held();
    let gateway = Gateway::to(engine, &[&a], &["--conn-limit", "2"]);
    let mut clients = [gateway.client(), gateway.client()];
    for client in &mut clients {
        client.send(post(INGEST, &[], b"body")).unwrap();
    }
    a.wait_for(2);
    let mut third = gateway.client();
    third.send(post(INGEST, &[], b"body")).unwrap();
    third.set_patience(ms(300));
    third.receive().expect_err("both places are taken and at work");
    third.set_patience(DEADLINE);
    latch.open();
    for client in &mut clients {
        assert_empty(&client.receive().unwrap(), 200);
    }
    // A place frees when one of them leaves, or as soon as one is idle.
    assert_empty(&third.receive().unwrap(), 200);
    let help = run(&["run", "--help"]).stdout;
    let (_, limit) = help.split_once("--conn-limit").expect("the flag exists");
    let default = limit.split("[default: ").nth(1).expect("it has a default");
    assert!(default.starts_with("16384]"), "Alloy's default: {default}");
}

/// In Alloy idle peers hold their places for two minutes; ours (DESIGN.md section 7) give way: on each core the one idle
/// longest, and where the client's own core has none, one of another core.
fn row_128_idle_connections_make_room(engine: Engine) {
    for cores in ["1", "2"] {
        let a = Scripted::healthy();
        let gateway = Gateway::to(engine, &[&a], &["--conn-limit", "3", "--cores", cores]);
        let mut clients: Vec<_> = (0..3).map(|_| gateway.client()).collect();
        for client in &mut clients {
            assert_empty(&client.post(INGEST, &[], b"body").unwrap(), 200);
        }
        let started = clock::now();
        assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
        assert!(
            clock::now().since(started) < ms(4000),
            "soon, not after the patience of 5 s"
        );
        let is_closed = |client: &mut super::support::Client| {
            client.set_patience(ms(100));
            let closed = client.receive_all().is_ok();
            client.set_patience(DEADLINE);
            closed
        };
        let closed: Vec<bool> = clients.iter_mut().map(is_closed).collect();
        // One is enough; on a busy machine its place may come back late, and a second one is closed.
        let count = closed.iter().filter(|closed| **closed).count();
        assert!((1..3).contains(&count), "{closed:?}");
        if cores == "1" {
            assert!(closed[0] && !closed[2], "the longest idle first: {closed:?}");
        }
        for (client, closed) in clients.iter_mut().zip(closed) {
            if !closed {
                assert_empty(&client.post(INGEST, &[], b"body").unwrap(), 200);
            }
        }
    }
}

fn row_128_nobody_waits_for_ever(engine: Engine) {
    let (a, latch) = held();
    let gateway = Gateway::to(engine, &[&a], &["--conn-limit", "1"]);
    let mut first = gateway.client();
    first.send(post(INGEST, &[], b"body")).unwrap();
    a.wait_for(1);
    let mut second = gateway.client();
    second.send(post(INGEST, &[], b"body")).unwrap();
    let answer = second.receive().unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    latch.open();
    assert_empty(&first.receive().unwrap(), 200);
}

fn many_slow_senders_do_not_disturb_others(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &["--read-timeout", "1500ms"]);
    let begun = format!("POST {INGEST} HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\nb");
    let mut slow: Vec<TcpStream> = (0..200)
        .map(|index| {
            let mut stream = TcpStream::connect(gateway.address).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            // Half of them stop in the head.
            let end = if index % 2 == 0 { 20 } else { begun.len() };
            stream.write_all(&begun.as_bytes()[..end]).unwrap();
            stream
        })
        .collect();
    let mut healthy = gateway.client();
    let mut latencies: Vec<_> = (0..50)
        .map(|_| {
            let started = clock::now();
            assert_empty(&healthy.post(INGEST, &[], b"body").unwrap(), 200);
            clock::now().since(started)
        })
        .collect();
    latencies.sort_unstable();
    // The median: on a busy machine single requests may wait for a processor.
    assert!(latencies[25] < ms(500), "{latencies:?}");
    for stream in &mut slow {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }
    assert_eq!(a.received().len(), 50);
}

fn clients_that_never_read_are_dropped(engine: Engine) {
    let a = Scripted::healthy();
    let flags = [
        "--write-timeout",
        "500ms",
        "--conn-limit",
        "1",
        "--idle-timeout",
        "2s",
    ];
    let mut gateway = Gateway::to(engine, &[&a], &flags);
    let stream = TcpStream::connect(gateway.address).unwrap();
    socket2::SockRef::from(&stream)
        .set_recv_buffer_size(64 << 10)
        .unwrap();
    stream.set_write_timeout(Some(ms(10_000))).unwrap();
    // Answers of 19 bytes and their heads pile up until nobody takes them; then we are hung up on.
    let many = "GET /nothing HTTP/1.1\r\nHost: test\r\n\r\n".repeat(1000);
    let started = clock::now();
    let broken = (0..2000).find_map(|_| (&stream).write_all(many.as_bytes()).err());
    let error = broken.expect("2 million unread answers are too many");
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "closed, not stuck");
    assert!(clock::now().since(started) < ms(20_000));
    drop(stream);
    gateway.assert_alive();
}

fn clients_that_vanish_leave_nothing_behind(engine: Engine) {
    let (a, latch) = held();
    let mut gateway = Gateway::to(engine, &[&a], &["--conn-limit", "64"]);
    let request = post(INGEST, &[], b"0123456789");
    // Reset after every byte of a request, and while the answer is awaited.
    for end in 0..=request.len() {
        let stream = TcpStream::connect(gateway.address).unwrap();
        (&stream).write_all(&request[..end]).unwrap();
        if end == request.len() {
            a.wait_for(1);
        }
        socket2::SockRef::from(&stream)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
    }
    latch.open();
    // All places are free again: as many clients as there may be are served side by side.
    let mut clients: Vec<_> = (0..64).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send(post(INGEST, &[], b"body")).unwrap();
    }
    for client in &mut clients {
        assert_empty(&client.receive().unwrap(), 200);
    }
    drop(clients);
    assert_eq!(a.received().len(), 65, "only whole requests are forwarded");
    gateway.assert_alive();
}
