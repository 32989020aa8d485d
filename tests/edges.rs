//! Edges of the wire that a review found, each on the real binary: what a client or destination does there is odd, and
//! allowed.

#![allow(clippy::disallowed_methods)] // a client that drips has to wait between its drops

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use support::gateway::Gateway;
use support::peer::Peer;
use support::{Client, DEADLINE, post, under_both_engines};

under_both_engines!(
    a_dripping_body_pins_no_more_than_it_is,
    a_refusal_arrives_though_the_connection_closes,
    early_hints_do_not_stop_a_body,
);

/// Chunks of 1 KiB, each in a packet of its own, under a memory limit that a buffer for each would break at once.
fn a_dripping_body_pins_no_more_than_it_is(engine: &str) {
    let peer = Peer::start();
    let flags = [
        "--memory-limit",
        "4MiB",
        "--queue-limit",
        "3MiB",
        "--body-limit",
        "3MiB",
    ];
    let gateway = Gateway::before(engine, &[&peer], &flags);
    let mut client = gateway.client();
    client
        .send("POST /ingest?name=a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    let mut sent = Vec::new();
    for number in 0..512u32 {
        let chunk = vec![number as u8; 1024];
        client
            .send([b"400\r\n".as_slice(), &chunk, b"\r\n"].concat())
            .unwrap();
        sent.extend(chunk);
        std::thread::sleep(Duration::from_millis(1));
    }
    client.send("0\r\n\r\n").unwrap();
    assert_eq!(client.receive().unwrap().status, 200);
    assert!(peer.next().body == sent, "the body changed on its way");
}

/// HTTP/1.0, as a proxy in front speaks it: the body is larger than what the kernel takes at once and nobody wants it.
fn a_refusal_arrives_though_the_connection_closes(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &[]);
    for _ in 0..10 {
        let mut client = gateway.client();
        let body = vec![b'x'; 500 << 10];
        client
            .send(format!(
                "POST /nowhere HTTP/1.0\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ))
            .unwrap();
        for piece in body.chunks(64 << 10) {
            client.send(piece).unwrap();
        }
        let answer = client.receive().expect("the refusal, not a reset");
        assert_eq!(answer.status, 404);
        assert_eq!(client.receive_all().expect("a clean end"), b"");
    }
}

/// A destination that says 103 while it is still being sent to, reads on, and takes the profile.
fn early_hints_do_not_stop_a_body(engine: &str) {
    const BODY: usize = 16 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = format!("a=http://{}", listener.local_addr().unwrap());
    let destination = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut received = vec![0; 64 << 10];
        let mut count = stream.read(&mut received).unwrap();
        stream
            .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
            .unwrap();
        // Time for the hint to arrive in the middle of the body.
        std::thread::sleep(Duration::from_millis(100));
        while count < BODY {
            count += stream.read(&mut received).unwrap();
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        count
    });
    let gateway = Gateway::start(engine, &["--to", &to, "--ack", "all", "--max-retries", "1"]);
    let mut client: Client = gateway.client();
    client
        .send(post("/ingest?name=a", &[], &vec![b'x'; BODY]))
        .unwrap();
    assert_eq!(client.receive().unwrap().status, 200);
    assert!(destination.join().unwrap() >= BODY);
}
