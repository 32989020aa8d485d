//! Row 143 of WIRE.md section 9 and what else is meant to break the gateway: clients and destinations that send too much,
//! too little, or nonsense. Nothing may crash, grow without bound, or disturb others.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use pyrotee::runtime::clock;

use super::gateway::{
    Engine, Gateway, INGEST, PUSH, assert_connect_error, assert_empty, assert_text, gzip, gzip_tightly, ms,
    under_both_engines,
};
use super::push::{good, request, series};
use super::scripted::{Act, Latch, Scripted, perform};
use super::support::{DEADLINE, post};

under_both_engines!(
    row_143_a_label_of_17_mib,
    row_143_gzip_bombs,
    row_143_a_million_labels,
    row_143_deep_messages,
    endless_heads,
    endless_chunk_framing,
    tiny_chunks,
    bodies_beyond_the_limit,
    hostile_destinations,
    endless_answers,
    early_answers_are_heard,
    a_destination_that_does_not_read,
);

const PROTO: (&str, &str) = ("Content-Type", "application/proto");
const GZIP: (&str, &str) = ("Content-Encoding", "gzip");
/// What the process may grow by beyond what it is told to hold: buffers, allocator, debug build.
const GROWTH_MAX: usize = 48 << 20;

fn row_143_a_label_of_17_mib(engine: Engine) {
    let a = Scripted::healthy();
    let mut gateway = Gateway::to(engine, &[&a], &[]);
    let long = "v".repeat(17 << 20);
    for labels in [[("a", &*long)], [(&*long, "v")]] {
        let body = gzip(&request(&[series(&labels, &[b"x"])]));
        assert!(body.len() < 256 << 10, "a small request");
        assert_connect_error(
            &gateway.post(PUSH, &[PROTO, GZIP], &body),
            400,
            "invalid_argument",
        );
    }
    let json = format!(r#"{{"series":[{{"labels":[{{"name":"a","value":"{long}"}}]}}]}}"#);
    let fields = [("Content-Type", "application/json"), GZIP];
    assert_connect_error(
        &gateway.post(PUSH, &fields, &gzip(json.as_bytes())),
        400,
        "invalid_argument",
    );
    // As a name it does not even fit into the request line.
    let answer = gateway.raw(&post(&format!("/ingest?name=app{{a={long}}}"), &[], b""));
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    // The longest line that fits holds a value that is still too long.
    let name = format!("app{{a={}}}", "v".repeat(1_000_000));
    assert_eq!(
        gateway.post(&format!("/ingest?name={name}"), &[], b"").status,
        400
    );
    assert!(a.received().is_empty());
    gateway.assert_alive();
}

fn row_143_gzip_bombs(engine: Engine) {
    let a = Scripted::healthy();
    let flags = ["--body-limit", "8MiB", "--memory-limit", "64MiB"];
    let mut gateway = Gateway::to(engine, &[&a], &flags);
    assert_eq!(gateway.push(&good()).status, 200);
    let (before, _) = gateway.memory();
    // 1 GiB in 1 MB; and the same as a protobuf field that announces its length.
    let zeros = gzip_tightly(&vec![0; 16 << 20]);
    let bomb = zeros.repeat(64);
    let mut announced = gzip(b"\x0a\x80\x80\x80\x80\x04\x12\xff\xff\xff\xff\x03");
    announced.extend_from_slice(&bomb);
    let started = clock::now();
    for bomb in [&bomb, &announced] {
        let answer = gateway.post(PUSH, &[PROTO, GZIP], bomb);
        assert_connect_error(&answer, 429, "resource_exhausted");
        let mut frame = vec![1];
        frame.extend_from_slice(&u32::try_from(bomb.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(bomb);
        let fields = [
            ("Content-Type", "application/grpc-web+proto"),
            ("Grpc-Encoding", "gzip"),
        ];
        let answer = gateway.post(PUSH, &fields, &frame);
        assert_eq!(answer.header("grpc-status"), Some("8"), "{answer:?}");
    }
    assert!(clock::now().since(started) < ms(20_000));
    let (_, most) = gateway.memory();
    assert!(most < before + (64 << 20) + GROWTH_MAX, "{before} grew to {most}");
    // On /ingest nothing is inflated.
    assert_empty(&gateway.post(INGEST, &[GZIP], &bomb), 200);
    gateway.assert_alive();
}

fn row_143_a_million_labels(engine: Engine) {
    let a = Scripted::healthy();
    let mut gateway = Gateway::to(engine, &[&a], &[]);
    let label = b"\x0a\x06\x0a\x01a\x12\x01b";
    let mut body = Vec::new();
    let labels = label.repeat(1_000_000);
    body.push(0x0a);
    prost::encode_length_delimiter(labels.len(), &mut body).unwrap();
    body.extend_from_slice(&labels);
    assert_connect_error(&gateway.push(&body), 400, "invalid_argument");
    assert!(gateway.cpu_time() < ms(10_000));
    // As many series, each of one label.
    let series = [&[0x0a, 8], &label[..]].concat().repeat(500_000);
    let answer = gateway.push(&series);
    assert!(matches!(answer.status, 400 | 429), "{answer:?}");
    // The same in a name: as many as fit into a request line.
    let name = format!("app{{{}}}", "a=b,".repeat(200_000));
    assert_eq!(
        gateway.post(&format!("/ingest?name={name}"), &[], b"").status,
        400
    );
    gateway.assert_alive();
}

fn row_143_deep_messages(engine: Engine) {
    let a = Scripted::healthy();
    let mut gateway = Gateway::to(engine, &[&a], &[]);
    // Groups in groups: 0x1b opens field 3, 0x1c closes it.
    for (name, body) in [
        ("unclosed", vec![0x1b; 3_000_000]),
        ("closed", [vec![0x1b; 1_000_000], vec![0x1c; 1_000_000]].concat()),
    ] {
        let answer = gateway.push(&body);
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
    }
    for open in ["[", "{\"x\":"] {
        let json = format!("{{\"x\":{}", open.repeat(500_000));
        let answer = gateway.post(PUSH, &[("Content-Type", "application/json")], json.as_bytes());
        assert_connect_error(&answer, 400, "invalid_argument");
    }
    assert!(a.received().is_empty());
    gateway.assert_alive();
}

/// Sends `head`, then `more` again and again until the gateway has had enough. Returns what it said, and how much it took.
fn send_endlessly(gateway: &Gateway, head: &str, more: &[u8]) -> (String, usize) {
    let mut stream = TcpStream::connect(gateway.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let mut reading = stream.try_clone().unwrap();
    let answer = std::thread::spawn(move || {
        let mut answer = Vec::new();
        let _ = reading.read_to_end(&mut answer); // a reset may follow the answer
        String::from_utf8_lossy(&answer).into_owned()
    });
    let mut sent = 0;
    let _ = stream.write_all(head.as_bytes());
    let block = more.repeat((64 << 10) / more.len());
    while sent < 1 << 30 && !answer.is_finished() && stream.write_all(&block).is_ok() {
        sent += block.len();
    }
    (answer.join().expect("it does not panic"), sent)
}

fn endless_heads(engine: Engine) {
    let a = Scripted::healthy();
    let mut gateway = Gateway::to(engine, &[&a], &[]);
    let (before, _) = gateway.memory();
    for (name, head, more, statuses) in [
        (
            "request line",
            "POST /ingest?name=".to_owned(),
            &b"aaaaaaaa"[..],
            &[431][..],
        ),
        ("method", String::new(), b"AAAAAAAA", &[400, 431]),
        (
            "fields",
            format!("POST {INGEST} HTTP/1.1\r\n"),
            b"X-A: b\r\n",
            &[431],
        ),
        (
            "one field",
            format!("POST {INGEST} HTTP/1.1\r\nX-A: "),
            b"bbbbbbbb",
            &[431],
        ),
        (
            "field name",
            format!("POST {INGEST} HTTP/1.1\r\n"),
            b"XXXXXXXX",
            &[400, 431],
        ),
        ("blank lines", String::new(), b"\r\n", &[400]),
        ("rubbish", String::new(), b"\x00\xff\x16\x03", &[400, 431]),
    ] {
        let (answer, _) = send_endlessly(&gateway, &head, more);
        let status = answer.get(9..12).and_then(|status| status.parse::<u16>().ok());
        assert!(
            status.is_some_and(|status| statuses.contains(&status)),
            "{name}: {answer}"
        );
    }
    let (_, most) = gateway.memory();
    assert!(most < before + GROWTH_MAX, "{before} grew to {most}");
    gateway.assert_alive();
}

fn endless_chunk_framing(engine: Engine) {
    let a = Scripted::healthy();
    let mut gateway = Gateway::to(engine, &[&a], &[]);
    let (before, _) = gateway.memory();
    let head = format!("POST {INGEST} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (name, start, more) in [
        ("one extension", "1;a=", &b"bbbbbbbb"[..]),
        ("many extensions", "1", b";a=b"),
        (
            "extensions on every chunk",
            "",
            b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa=bbbbbbbbbbbbbbbbbbbbbbbbbbb\r\nx\r\n",
        ),
        ("zeros in front of a size", "", b"00000000"),
        ("a size", "", b"ffffffff"),
        ("one trailer", "0\r\nX-A: ", b"bbbbbbbb"),
        ("many trailers", "0\r\n", b"X-A: b\r\n"),
        ("rubbish for a size", "x", b"yyyyyyyy"),
    ] {
        let (answer, _) = send_endlessly(&gateway, &format!("{head}{start}"), more);
        let status = answer.get(9..12);
        assert!(matches!(status, Some("400" | "413" | "431")), "{name}: {answer}");
    }
    let (_, most) = gateway.memory();
    assert!(most < before + GROWTH_MAX, "{before} grew to {most}");
    assert!(a.received().is_empty());
    gateway.assert_alive();
}

fn tiny_chunks(engine: Engine) {
    let a = Scripted::healthy();
    let mut gateway = Gateway::to(engine, &[&a], &["--memory-limit", "64MiB"]);
    let (before, _) = gateway.memory();
    const CHUNKS: usize = 1_000_000;
    let mut bytes =
        format!("POST {INGEST} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    let mut expected = Vec::with_capacity(CHUNKS);
    for at in 0..CHUNKS {
        let byte = b'a' + (at % 26) as u8;
        bytes.extend_from_slice(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']);
        expected.push(byte);
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    let mut client = gateway.client();
    client.send(&bytes).unwrap();
    assert_empty(&client.receive().unwrap(), 200);
    assert!(
        a.only().body == expected,
        "a million chunks of one byte make a megabyte"
    );
    let (_, most) = gateway.memory();
    assert!(most < before + GROWTH_MAX, "{before} grew to {most}");
    gateway.assert_alive();
}

fn bodies_beyond_the_limit(engine: Engine) {
    let a = Scripted::healthy();
    let mut gateway = Gateway::to(engine, &[&a], &["--body-limit", "1MiB"]);
    let (before, _) = gateway.memory();
    let announced =
        |length: &str| format!("POST {INGEST} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n");
    let (answer, _) = send_endlessly(&gateway, &announced("9223372036854775807"), &[b'x'; 1024]);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let (answer, _) = send_endlessly(&gateway, &announced("99999999999999999999"), &[b'x'; 1024]);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let chunked = format!("POST {INGEST} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = [b"1000\r\n", &[b'x'; 4096][..], b"\r\n"].concat();
    let (answer, sent) = send_endlessly(&gateway, &chunked, &chunk);
    assert!(answer.starts_with("HTTP/1.1 413 "), "after {sent}: {answer}");
    assert_empty(&gateway.post(INGEST, &[], &vec![b'x'; 1 << 20]), 200);
    assert_eq!(gateway.post(INGEST, &[], &vec![b'x'; (1 << 20) + 1]).status, 413);
    let push = gateway.post(PUSH, &[PROTO], &vec![b'x'; (1 << 20) + 1]);
    assert_connect_error(&push, 429, "resource_exhausted");
    let (_, most) = gateway.memory();
    assert!(most < before + GROWTH_MAX, "{before} grew to {most}");
    assert_eq!(a.received().len(), 1);
    gateway.assert_alive();
}

/// Does what it is told after the head of every request. Bodies have to be small: they are taken for a part of the next
/// head.
fn after_a_head(acts: Vec<Act>) -> Scripted {
    Scripted::raw(move |_, stream| {
        let mut pending = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            while let Some(at) = memchr::memmem::find(&pending, b"\r\n\r\n") {
                pending.drain(..at + 4);
                for act in &acts {
                    if !perform(stream, act.clone()).unwrap_or(false) {
                        return;
                    }
                }
            }
            match stream.read(&mut buffer) {
                Ok(received @ 1..) => pending.extend_from_slice(&buffer[..received]),
                _ => return,
            }
        }
    })
}

fn hostile_destinations(engine: Engine) {
    const ENDLESS: usize = 256 << 20;
    let send = |text: &str| Act::Send(text.as_bytes().to_vec());
    let flood = |text: &str| Act::Flood(text.as_bytes().repeat(2048 / text.len()), ENDLESS);
    let healthy = Scripted::healthy();
    let cases: Vec<(&str, Vec<Act>)> = vec![
        ("nothing", vec![Act::Close]),
        ("a reset", vec![Act::Reset]),
        ("silence", vec![]),
        ("half a status line", vec![send("HTTP/1."), Act::Close]),
        (
            "half a head",
            vec![send("HTTP/1.1 200 OK\r\nContent-Le"), Act::Close],
        ),
        (
            "half a body",
            vec![
                send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbody"),
                Act::Close,
            ],
        ),
        (
            "half a chunk",
            vec![
                send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nbody"),
                Act::Close,
            ],
        ),
        (
            "bad chunks",
            vec![send(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            )],
        ),
        (
            "two lengths",
            vec![send(
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
            )],
        ),
        (
            "a length that is none",
            vec![send("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")],
        ),
        (
            "length and chunks",
            vec![send(
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            )],
        ),
        ("no HTTP", vec![send("220 mail.example ESMTP\r\n")]),
        (
            "HTTP/2",
            vec![
                Act::Send(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00".to_vec()),
                Act::Close,
            ],
        ),
        (
            "TLS",
            vec![Act::Send(b"\x15\x03\x01\x00\x02\x02\x46".to_vec()), Act::Close],
        ),
        ("a status of 99", vec![send("HTTP/1.1 099 Low\r\n\r\n")]),
        (
            "a status of 600",
            vec![send("HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n")],
        ),
        (
            "another protocol",
            vec![send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")],
        ),
        (
            "endless status line",
            vec![send("HTTP/1.1 200 "), flood("OOOOOOOO")],
        ),
        (
            "endless fields",
            vec![send("HTTP/1.1 200 OK\r\n"), flood("X-A: b\r\n")],
        ),
        (
            "one endless field",
            vec![send("HTTP/1.1 200 OK\r\nX-A: "), flood("bbbbbbbb")],
        ),
        (
            "endless interim answers",
            vec![flood("HTTP/1.1 100 Continue\r\n\r\n")],
        ),
        (
            "endless early hints",
            vec![flood("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")],
        ),
        (
            "an interim answer with a body",
            vec![send("HTTP/1.1 100 Continue\r\nContent-Length: 9\r\n\r\n")],
        ),
        (
            "endless chunk extensions",
            vec![
                send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a="),
                flood("bbbbbbbb"),
            ],
        ),
        (
            "endless trailers",
            vec![
                send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"),
                flood("X-A: b\r\n"),
            ],
        ),
    ];
    let destinations: Vec<_> = cases
        .into_iter()
        .map(|(name, acts)| (name, after_a_head(acts)))
        .collect();
    // All of them at once, beside a healthy one: each fails for itself.
    let to: Vec<String> = destinations
        .iter()
        .enumerate()
        .map(|(index, (_, destination))| format!("bad{index}={}", destination.url()))
        .collect();
    let good_to = format!("good={}", healthy.url());
    let mut flags = vec!["--remote-timeout", "3s", "--max-retries", "1", "--to", &good_to];
    flags.extend(to.iter().flat_map(|to| ["--to", to]));
    let mut gateway = Gateway::start(engine, &flags);
    let (before, _) = gateway.memory();
    assert_text(
        &gateway.post(INGEST, &[], b"body"),
        500,
        "Failed to process request\n",
    );
    assert_eq!(healthy.only().body, b"body");
    // Each has failed, for itself: alone it is a 500 too.
    for (index, (name, _)) in destinations.iter().enumerate() {
        let problem = gateway.log_line(&format!("attempt failed destination=bad{index} "));
        assert!(problem.contains("problem="), "{name}: {problem}");
    }
    let (_, most) = gateway.memory();
    assert!(most < before + GROWTH_MAX, "{before} grew to {most}");
    gateway.assert_alive();
}

/// Answers whose status is good and whose body has no end: the status counts, the rest is not read.
fn endless_answers(engine: Engine) {
    let send = |text: &str| Act::Send(text.as_bytes().to_vec());
    let flood = |text: &str| Act::Flood(text.as_bytes().repeat(4096 / text.len()), 256 << 20);
    for (name, acts) in [
        (
            "length",
            vec![
                send("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
                flood("x"),
            ],
        ),
        (
            "chunked",
            vec![
                send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
                flood("8\r\nxxxxxxxx\r\n"),
            ],
        ),
        ("until close", vec![send("HTTP/1.1 200 OK\r\n\r\n"), flood("x")]),
        (
            "more than announced",
            vec![send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"), flood("x")],
        ),
        (
            "an answer more than asked for",
            vec![send(&"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".repeat(3))],
        ),
        (
            "a few interim answers first",
            vec![
                send(&"HTTP/1.1 100 Continue\r\n\r\n".repeat(5)),
                send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        ("HTTP/1.0", vec![send("HTTP/1.0 200 OK\r\n\r\nbody"), Act::Close]),
    ] {
        let a = after_a_head(acts);
        let mut gateway = Gateway::to(engine, &[&a], &["--remote-timeout", "5s", "--max-retries", "1"]);
        let (before, _) = gateway.memory();
        let started = clock::now();
        for _ in 0..2 {
            let answer = gateway.post(INGEST, &[], b"body");
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
        }
        assert!(clock::now().since(started) < ms(8000), "{name}");
        let (_, most) = gateway.memory();
        assert!(most < before + GROWTH_MAX, "{name}: {before} grew to {most}");
        gateway.assert_alive();
    }
}

/// A destination that refuses before it has read the body, and closes.
fn early_answers_are_heard(engine: Engine) {
    let body = vec![b'x'; 20 << 20];
    for (status, phrase, close) in [
        (413, "Request Entity Too Large", false),
        (401, "Unauthorized", true),
    ] {
        let refusal = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let heard = Latch::default();
        let until_heard = heard.clone();
        let a = Scripted::raw(move |_, stream| {
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer);
            let _ = stream.write_all(refusal.as_bytes());
            if close {
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            // The rest of the body is left to lie. To close makes a reset of that, which may overtake the answer.
            until_heard.wait();
        });
        let mut gateway = Gateway::to(engine, &[&a], &["--max-retries", "1"]);
        assert_text(&gateway.post(INGEST, &[], &body), status, &format!("{phrase}\n"));
        heard.open();
        gateway.assert_alive();
    }
}

fn a_destination_that_does_not_read(engine: Engine) {
    let over = Latch::default();
    let until_over = over.clone();
    let a = Scripted::raw(move |_, _| {
        until_over.wait();
    });
    let b = Scripted::healthy();
    // The other one has all of it by then, on a busy machine too.
    let flags = ["--remote-timeout", "4s", "--max-retries", "1"];
    let mut gateway = Gateway::to(engine, &[&a, &b], &flags);
    let body = vec![b'x'; 20 << 20];
    let started = clock::now();
    assert_text(
        &gateway.post(INGEST, &[], &body),
        500,
        "Failed to process request\n",
    );
    assert!(clock::now().since(started) < ms(15_000));
    over.open();
    assert!(b.only().body == body);
    gateway.assert_alive();
}
