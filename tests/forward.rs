//! The main path: what a client pushes arrives at every destination, byte for byte, and the client is told the truth.
//!
//! Each test is a sentence about the real binary on loopback, under both engines. Faults of destinations, overload and
//! shutdown are in `faults.rs`.

mod support;

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use support::gateway::{Gateway, to};
use support::peer::{Absent, Held, Peer, Reply};
use support::wire::{
    CHUNK_STYLES, PUSH, assert_same_bytes, decode, encode, gunzip, gzip, labels_by_contract, labels_of,
    name_of, noise, pairs_but_name, post_chunked, push_message,
};
use support::{Process, Sink, post, run, under_both_engines};

under_both_engines!(
    bodies_of_every_size_reach_every_destination,
    bodies_chunked_in_every_style_arrive_whole,
    pipelined_requests_are_answered_in_order_and_arrive_whole,
    a_request_may_come_in_pieces_of_any_size,
    pushes_arrive_with_their_samples_untouched,
    recorded_sdk_requests_arrive_as_sent,
    connections_live_as_long_as_clients_wish,
    a_client_that_asks_first_is_told_to_go_on,
    a_client_may_close_its_sending_half,
    verbatim_touches_neither_query_nor_body,
    external_labels_are_set_on_everything,
    only_named_headers_are_passed_on,
    queued_answers_though_no_destination_does,
    first_answers_with_the_first_success,
    all_answers_when_all_have_and_relays_a_failure,
    what_can_be_refused_is_refused_at_once,
    many_cores_deliver_everything_once,
);

const SIZES: [usize; 7] = [0, 1, 1 << 10, 16 << 10, 128 << 10, 1 << 20, 20 << 20];

fn bodies_of_every_size_reach_every_destination(engine: &str) {
    let peers = [Peer::start(), Peer::start(), Peer::start()];
    let gateway = Gateway::before(engine, &[&peers[0], &peers[1], &peers[2]], &[]);
    let mut client = gateway.client();
    for size in SIZES {
        let body = noise(size, 1);
        let answer = client
            .post("/ingest?name=app&from=1", &[("Content-Type", "a/b")], &body)
            .unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{size} bytes");
        for peer in &peers {
            let got = peer.next();
            assert_same_bytes(&got.body, &body, &format!("{size} bytes to /ingest"));
            assert_eq!(got.header("content-type"), Some("a/b"));
            assert_eq!(got.target, "/ingest?from=1&name=app%7Bservice_name%3Dapp%7D");
        }
    }
    for size in SIZES {
        let profile = noise(size, 2);
        let message = push_message(&[("service_name", "s")], std::slice::from_ref(&profile));
        let answer = client
            .post(PUSH, &[("Content-Type", "application/proto")], &encode(&message))
            .unwrap();
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("application/proto"))
        );
        for peer in &peers {
            let got = decode(&peer.next().body);
            assert_same_bytes(
                &got.series[0].samples[0].raw_profile,
                &profile,
                &format!("{size} bytes in a Push"),
            );
        }
    }
    for (name, farewell) in gateway.farewell() {
        assert_eq!((farewell.delivered, farewell.accepted()), (14, 14), "{name}");
    }
}

fn bodies_chunked_in_every_style_arrive_whole(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &[]);
    let mut client = gateway.client();
    for style in &CHUNK_STYLES {
        for size in [0, 1, 700, 5000, 200_000] {
            let size = if style.bytes == 1 { size.min(5000) } else { size };
            let body = noise(size, 3);
            client
                .send(post_chunked("/ingest?name=app", "", &body, style))
                .unwrap();
            let answer = client.receive().unwrap();
            assert_eq!(
                answer.status,
                200,
                "{size} bytes {}: {}",
                style.name,
                answer.text()
            );
            let got = peer.next();
            assert_same_bytes(&got.body, &body, &format!("{size} bytes {}", style.name));
            assert_eq!(got.header("content-length"), Some(&*size.to_string()));
            assert!(got.header("transfer-encoding").is_none());
        }
    }
}

fn pipelined_requests_are_answered_in_order_and_arrive_whole(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &["--inflight", "1"]);
    let mut stream = Vec::new();
    let mut bodies = Vec::new();
    let mut statuses = Vec::new();
    for index in 0..60_usize {
        let body = noise([0, 10, 1000, 5000, 40_000][index % 5], index as u64);
        let target = format!("/ingest?name=app&n={index}");
        match index % 4 {
            0 => stream.extend(post_chunked(
                &target,
                "",
                &body,
                &CHUNK_STYLES[index / 4 % CHUNK_STYLES.len()],
            )),
            3 => {
                stream.extend(post("/nowhere", &[], &body));
                statuses.push(404);
                continue;
            }
            _ => stream.extend(post(&target, &[], &body)),
        }
        statuses.push(200);
        bodies.push((index, body));
    }
    let mut client = gateway.client();
    client.send(&stream).unwrap();
    let got: Vec<_> = statuses
        .iter()
        .map(|_| client.receive().unwrap().status)
        .collect();
    assert_eq!(got, statuses);
    for (index, body) in &bodies {
        let got = peer.next();
        assert!(
            got.target.contains(&format!("?n={index}&")),
            "{} instead of {index}",
            got.target
        );
        assert_same_bytes(&got.body, body, &format!("request {index}"));
    }
}

fn a_request_may_come_in_pieces_of_any_size(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &[]);
    let body = noise(3000, 4);
    for request in [
        post("/ingest?name=app", &[("X-Long", &"x".repeat(3000))], &body),
        post_chunked("/ingest?name=app", "", &body, &CHUNK_STYLES[7]),
    ] {
        for piece in [1, 7, 100, 2047, 4096] {
            let mut client = gateway.client();
            request
                .chunks(piece)
                .for_each(|piece| client.send(piece).unwrap());
            assert_eq!(client.receive().unwrap().status, 200, "in pieces of {piece}");
            assert_same_bytes(&peer.next().body, &body, &format!("in pieces of {piece}"));
        }
    }
}

fn pushes_arrive_with_their_samples_untouched(engine: &str) {
    let peers = [Peer::start(), Peer::start()];
    let gateway = Gateway::before(engine, &[&peers[0], &peers[1]], &[]);
    let mut client = gateway.client();
    let profiles = [gzip(&noise(300, 5)), noise(100_000, 6), Vec::new()];
    for labels in [
        &[
            ("__name__", "process_cpu"),
            ("service_name", "shop"),
            ("region", "eu"),
        ][..],
        &[("__name__", "memory"), ("zone", "b"), ("alpha", "a")],
        &[
            ("service_name", "shop"),
            ("app_name", "mine"),
            ("__session_id__", "1"),
            ("gone", ""),
        ],
    ] {
        let message = push_message(labels, &profiles);
        let wire = encode(&message);
        let json = serde_json::json!({"series": [{
            "labels": labels.iter().map(|(name, value)| serde_json::json!({"name": name, "value": value})).collect::<Vec<_>>(),
            "samples": profiles.iter().enumerate().map(|(index, profile)| serde_json::json!({
                "rawProfile": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, profile),
                "ID": format!("id-{index}"),
            })).collect::<Vec<_>>(),
        }]});
        let json = json.to_string().into_bytes();
        let proto = "Content-Type: application/proto\r\n";
        for (what, request) in [
            (
                "proto",
                post(PUSH, &[("Content-Type", "application/proto")], &wire),
            ),
            (
                "gzip",
                post(
                    PUSH,
                    &[
                        ("Content-Type", "application/proto"),
                        ("Content-Encoding", "gzip"),
                    ],
                    &gzip(&wire),
                ),
            ),
            ("json", post(PUSH, &[("Content-Type", "application/json")], &json)),
            (
                "json, gzip",
                post(
                    PUSH,
                    &[("Content-Type", "application/json"), ("Content-Encoding", "gzip")],
                    &gzip(&json),
                ),
            ),
            (
                "chunks of one byte",
                post_chunked(PUSH, proto, &wire[..], &CHUNK_STYLES[2]),
            ),
            ("large chunks", post_chunked(PUSH, proto, &wire, &CHUNK_STYLES[5])),
        ] {
            client.send(request).unwrap();
            let answer = client.receive().unwrap();
            assert_eq!(answer.status, 200, "{what}: {}", answer.text());
            for peer in &peers {
                let got = peer.next();
                assert_eq!(got.header("content-type"), Some("application/proto"), "{what}");
                assert_eq!(
                    (got.header("content-encoding"), got.query()),
                    (None, ""),
                    "{what}"
                );
                let got = decode(&got.body);
                assert_eq!(
                    labels_of(&got.series[0]),
                    labels_by_contract(&message.series[0]),
                    "{what}"
                );
                assert!(
                    got.series[0].labels.is_sorted_by(|a, b| a.name < b.name),
                    "{what}: {got:?}"
                );
                assert!(
                    got.series[0].samples == message.series[0].samples,
                    "{what}: samples changed"
                );
            }
        }
    }
}

fn recorded_sdk_requests_arrive_as_sent(engine: &str) {
    let peers = [Peer::start(), Peer::start()];
    let gateway = Gateway::before(engine, &[&peers[0], &peers[1]], &[]);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/corpus");
    let mut count = 0;
    for sdk in std::fs::read_dir(corpus).unwrap() {
        let mut files: Vec<_> = std::fs::read_dir(sdk.unwrap().path())
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        let mut client = gateway.client();
        for file in files
            .iter()
            .filter(|file| file.extension().is_some_and(|end| end == "http"))
        {
            let request = std::fs::read(file).unwrap();
            let what = file.display().to_string();
            // What a plain destination reads is what was sent.
            let sent = read_back(&request);
            client.send(&request).unwrap();
            let answer = client.receive().unwrap();
            assert_eq!(answer.status, 200, "{what}: {}", answer.text());
            count += 1;
            for peer in &peers {
                let got = peer.next();
                if sent.0.starts_with("/ingest") {
                    assert_same_bytes(&got.body, &sent.1, &what);
                    let query = sent.0.split_once('?').expect("SDKs send one").1;
                    assert_eq!(pairs_but_name(got.query()), pairs_but_name(query), "{what}");
                    let (app, _) = name_of(query)
                        .split_once('{')
                        .map(|(app, rest)| (app.to_owned(), rest.to_owned()))
                        .unwrap();
                    assert!(
                        name_of(got.query()).contains(&format!("service_name={app}")),
                        "{what}: {}",
                        got.query()
                    );
                } else {
                    let (sent, got) = (decode(&gunzip(&sent.1)), decode(&got.body));
                    assert_eq!(sent.series.len(), got.series.len(), "{what}");
                    for (sent, got) in sent.series.iter().zip(&got.series) {
                        assert!(sent.samples == got.samples, "{what}: samples changed");
                        assert_eq!(labels_of(got), labels_by_contract(sent), "{what}");
                    }
                }
            }
        }
    }
    assert!(count >= 12, "only {count} recorded requests were found");
}

/// Target and body of a recorded request, its chunk framing taken off by code that is not the gateway's.
fn read_back(request: &[u8]) -> (String, Vec<u8>) {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let head = parsed.parse(request).expect("a recorded head").unwrap();
    let target = parsed.path.expect("complete").to_owned();
    let is_chunked = parsed
        .headers
        .iter()
        .any(|header| header.name.eq_ignore_ascii_case("transfer-encoding"));
    let mut rest = &request[head..];
    if !is_chunked {
        return (target, rest.to_vec());
    }
    let mut body = Vec::new();
    while let Ok(httparse::Status::Complete((at, size))) = httparse::parse_chunk_size(rest) {
        let size = usize::try_from(size).unwrap();
        body.extend_from_slice(&rest[at..at + size]);
        if size == 0 {
            break;
        }
        rest = &rest[at + size + 2..];
    }
    (target, body)
}

fn connections_live_as_long_as_clients_wish(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &[]);
    for (version, header, lives) in [
        ("HTTP/1.1", "", true),
        ("HTTP/1.1", "Connection: close\r\n", false),
        ("HTTP/1.0", "", false),
        ("HTTP/1.0", "Connection: keep-alive\r\n", true),
    ] {
        let what = format!("{version} {header}");
        let request =
            format!("POST /ingest?name=app {version}\r\nHost: h\r\n{header}Content-Length: 2\r\n\r\nhi");
        let mut client = gateway.client();
        client.send(&request).unwrap();
        let answer = client.receive().unwrap();
        assert_eq!(
            (answer.status, peer.next().text().as_str()),
            (200, "hi"),
            "{what}"
        );
        let says = answer.header("connection").map(str::to_ascii_lowercase);
        if lives {
            let expected = (version == "HTTP/1.0").then_some("keep-alive");
            assert_eq!(says.as_deref(), expected, "{what}");
            client.send(&request).unwrap();
            assert_eq!(
                client.receive().unwrap().status,
                200,
                "{what}: the second request"
            );
            peer.next();
        } else {
            client.expect_closed(&what);
        }
    }
}

fn a_client_that_asks_first_is_told_to_go_on(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &["--body-limit", "1MiB"]);
    let mut client = gateway.client();
    let head = |length: usize, target: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    for _ in 0..2 {
        client.send(head(5, "/ingest?name=app")).unwrap();
        assert_eq!(client.receive().unwrap().status, 100);
        client.send("hello").unwrap();
        assert_eq!(client.receive().unwrap().status, 200);
        assert_eq!(peer.next().text(), "hello");
    }
    client.send(head(5, "/ingest?name=app") + "hello").unwrap();
    assert_eq!(
        client.receive().unwrap().status,
        200,
        "a body that is there needs no 100"
    );
    assert_eq!(peer.next().text(), "hello");
    for (length, target, status) in [
        (2 << 20, "/ingest?name=app", 413),
        (5, "/ingest?name=not%20allowed", 400),
        (5, "/nowhere", 404),
    ] {
        let mut client = gateway.client();
        client.send(head(length, target)).unwrap();
        assert_eq!(
            client.receive().unwrap().status,
            status,
            "{target} without a 100, so without the body"
        );
        client.finish();
        client.expect_closed(target);
    }
}

fn a_client_may_close_its_sending_half(engine: &str) {
    let peer = Peer::start();
    for ack in ["queued", "all"] {
        let gateway = Gateway::before(engine, &[&peer], &["--ack", ack]);
        let mut client = gateway.client();
        client.send(post("/ingest?name=app", &[], b"last words")).unwrap();
        client.finish();
        assert_eq!(client.receive().unwrap().status, 200, "--ack {ack}");
        assert_eq!(peer.next().text(), "last words");
        client.expect_closed("after the half-close");
        let mut client = gateway.client();
        client
            .send("POST /ingest?name=app HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf")
            .unwrap();
        client.finish();
        assert_eq!(
            client.receive().unwrap().status,
            400,
            "a body cut short is the client's fault"
        );
        let mut client = gateway.client();
        client
            .send(
                post_chunked("/ingest?name=app", "", b"half", &CHUNK_STYLES[0])
                    .split_last()
                    .unwrap()
                    .1,
            )
            .unwrap();
        client.finish();
        assert_eq!(client.receive().unwrap().status, 400, "so is a chunked one");
        let farewell = &gateway.farewell()["a"];
        assert_eq!(
            (farewell.delivered, farewell.accepted()),
            (1, 1),
            "nothing half was sent"
        );
    }
}

fn verbatim_touches_neither_query_nor_body(engine: &str) {
    let peers = [Peer::start(), Peer::start()];
    let gateway = Gateway::before(engine, &[&peers[0], &peers[1]], &["--labels", "verbatim"]);
    let mut client = gateway.client();
    let not_proto = noise(5000, 7);
    for (target, headers, body) in [
        (
            "/ingest?until=2&name=z%7bb=1,a=2%7d&x=%zz&;&a&&a=",
            &[("Content-Type", "x/y")][..],
            noise(2000, 8),
        ),
        ("/ingest", &[], noise(10, 9)),
        (
            "/ingest?name=not%20a%20name",
            &[("Content-Encoding", "gzip")],
            gzip(&noise(2000, 10)),
        ),
        (PUSH, &[("Content-Type", "application/proto")], not_proto.clone()),
        (
            PUSH,
            &[
                ("Content-Type", "application/proto"),
                ("Content-Encoding", "gzip"),
            ],
            gzip(&not_proto),
        ),
        (
            PUSH,
            &[("Content-Type", "application/json")],
            b"{\"series\": [ ]}".to_vec(),
        ),
    ] {
        let answer = client.post(target, headers, &body).unwrap();
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        for peer in &peers {
            let got = peer.next();
            assert_eq!(got.target, target);
            assert_same_bytes(&got.body, &body, target);
            for (name, value) in headers {
                assert_eq!(got.header(&name.to_ascii_lowercase()), Some(*value), "{target}");
            }
            assert_eq!(
                got.header("content-encoding").is_some(),
                headers.iter().any(|(name, _)| *name == "Content-Encoding")
            );
        }
    }
}

fn external_labels_are_set_on_everything(engine: &str) {
    let peer = Peer::start();
    let flags = ["--external-label", "cluster=eu-1", "--external-label", "secret="];
    let gateway = Gateway::before(engine, &[&peer], &flags);
    let mut client = gateway.client();
    client
        .post("/ingest?name=app{cluster=theirs,secret=x,z=1}", &[], b"x")
        .unwrap();
    assert_eq!(
        name_of(peer.next().query()),
        "app{cluster=eu-1,service_name=app,z=1}"
    );
    let labels = [("service_name", "s"), ("secret", "x"), ("cluster", "theirs")];
    let message = encode(&push_message(&labels, &[b"p".to_vec()]));
    client
        .post(PUSH, &[("Content-Type", "application/proto")], &message)
        .unwrap();
    let got = decode(&peer.next().body);
    let expected = [("cluster", "eu-1"), ("service_name", "s")];
    assert_eq!(labels_of(&got.series[0]), expected.into_iter().collect());
}

fn only_named_headers_are_passed_on(engine: &str) {
    let peer = Peer::start();
    let to = format!("a={}/base/,header.X-Own=ours", peer.url());
    let gateway = Gateway::start(
        engine,
        &[
            "--to",
            &to,
            "--pass-header",
            "X-Scope-OrgID",
            "--pass-header",
            "x-more",
        ],
    );
    let headers = [
        ("X-Scope-OrgID", "team"),
        ("X-More", "1"),
        ("X-More", "2"),
        ("X-Other", "no"),
        ("Authorization", "Bearer no"),
        ("User-Agent", "no"),
        ("Cookie", "no"),
        ("X-Own", "no"),
    ];
    gateway.client().post("/ingest?name=app", &headers, b"x").unwrap();
    let got = peer.next();
    assert!(got.target.starts_with("/base/ingest?"), "{}", got.target);
    assert_eq!(got.header("x-scope-orgid"), Some("team"));
    let more: Vec<_> = got
        .headers
        .iter()
        .filter(|(name, _)| name == "x-more")
        .map(|(_, value)| &**value)
        .collect();
    assert_eq!(more, ["1", "2"]);
    assert_eq!(got.header("x-own"), Some("ours"));
    assert_eq!(got.header("host"), Some(&*peer.address.to_string()));
    assert!(
        got.headers.iter().all(|(_, value)| !value.ends_with("no")),
        "{:?}",
        got.headers
    );
}

fn queued_answers_though_no_destination_does(engine: &str) {
    let held = Held::default();
    let gate = held.clone();
    let stalled = Peer::deciding(move |_| Reply::Held(gate.clone()));
    let dead = Absent::new();
    let gateway = Gateway::start(engine, &to(&[stalled.url(), dead.url()]));
    let mut client = gateway.client();
    client.set_patience(Duration::from_secs(5));
    for _ in 0..200 {
        assert_eq!(client.post("/ingest?name=app", &[], b"x").unwrap().status, 200);
    }
    held.open();
    stalled.take(200);
    gateway.process.signal(rustix::process::Signal::TERM);
    gateway.process.signal(rustix::process::Signal::TERM);
    drop(gateway);
}

fn first_answers_with_the_first_success(engine: &str) {
    let held = Held::default();
    let gate = held.clone();
    let (slow, quick) = (Peer::deciding(move |_| Reply::Held(gate.clone())), Peer::start());
    let gateway = Gateway::before(engine, &[&slow, &quick], &["--ack", "first"]);
    assert_eq!(
        gateway.ingest("one").status,
        200,
        "though the other has not answered"
    );
    assert_eq!(
        (quick.next().text(), slow.next().text()),
        ("one".into(), "one".into())
    );
    held.open();
    drop(gateway);
    let refusing = Peer::deciding(|_| Reply::Status(400, ""));
    let gateway = Gateway::before(engine, &[&refusing, &quick], &["--ack", "first"]);
    assert_eq!(gateway.ingest("two").status, 200, "one success is enough");
    drop(gateway);
    let gateway = Gateway::before(engine, &[&refusing], &["--ack", "first"]);
    assert_eq!(gateway.ingest("three").status, 400, "no success at all");
}

fn all_answers_when_all_have_and_relays_a_failure(engine: &str) {
    let held = Held::default();
    let gate = held.clone();
    let (slow, quick) = (Peer::deciding(move |_| Reply::Held(gate.clone())), Peer::start());
    let gateway = Gateway::before(engine, &[&slow, &quick], &["--ack", "all"]);
    let mut client = gateway.client();
    client.send(post("/ingest?name=app", &[], b"one")).unwrap();
    quick.next();
    slow.next();
    client.set_patience(Duration::from_millis(200));
    let early = client.receive().unwrap_err().kind();
    assert!(
        matches!(early, ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{early:?}"
    );
    client.set_patience(support::DEADLINE);
    held.open();
    assert_eq!(client.receive().unwrap().status, 200);

    for (status, route, expected) in [
        (403, "/ingest?name=app", 403),
        (418, "/ingest?name=app", 418),
        (404, PUSH, 501),
    ] {
        let refusing = Peer::deciding(move |_| Reply::Status(status, ""));
        let gateway = Gateway::before(
            engine,
            &[&quick, &refusing],
            &["--ack", "all", "--max-retries", "1"],
        );
        let message = encode(&push_message(&[("service_name", "s")], &[b"p".to_vec()]));
        let answer = gateway
            .client()
            .post(route, &[("Content-Type", "application/proto")], &message)
            .unwrap();
        assert_eq!(answer.status, expected, "{route}: {}", answer.text());
        quick.next();
        let farewells = gateway.farewell();
        assert_eq!(
            (farewells["a"].delivered, farewells["b"].lost()),
            (1, 1),
            "{farewells:?}"
        );
    }
    let dead = Absent::new();
    let flags = [
        &to(&[quick.url(), dead.url()])[..],
        &["--ack", "all", "--max-retries", "1"].map(String::from),
    ]
    .concat();
    let gateway = Gateway::start(engine, &flags);
    let answer = gateway.ingest("nobody there");
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (500, "Failed to process request\n")
    );
}

fn what_can_be_refused_is_refused_at_once(engine: &str) {
    let stalled = Peer::deciding(|_| Reply::Held(Held::default()));
    for ack in ["queued", "first", "all"] {
        let gateway = Gateway::before(engine, &[&stalled], &["--ack", ack, "--body-limit", "64KiB"]);
        for (request, status) in [
            (post("/ingest", &[], b"x"), 400),
            (post("/ingest?name=", &[], b"x"), 400),
            (post("/ingest?name=a%20b", &[], b"x"), 400),
            (post("/ingest?name=a", &[], &[b'x'; (64 << 10) + 1]), 413),
            (post_chunked("/ingest?name=a", "", &[b'x'; (64 << 10) + 1], &CHUNK_STYLES[4]), 413),
            (post("/other", &[], b"x"), 404),
            (post("/", &[], b""), 404),
            (b"GET /ingest?name=a HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 405),
            (post("/push.v1.PusherService/Other", &[], b""), 404),
            (post("//ingest?name=a", &[], b"x"), 301),
            (post(PUSH, &[("Content-Type", "text/plain")], b"x"), 415),
            (post(PUSH, &[("Content-Type", "application/proto"), ("Content-Encoding", "br")], b"x"), 501),
            (post(PUSH, &[("Content-Type", "application/proto"), ("Content-Encoding", "gzip")], b"x"), 400),
            (post(PUSH, &[("Content-Type", "application/proto")], b"\xff\xff"), 400),
            (post(PUSH, &[("Content-Type", "application/json")], b"[]"), 400),
            (post(PUSH, &[("Content-Type", "application/proto"), ("Connect-Timeout-Ms", "0")], b""), 504),
            (b"POST /ingest?name=a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), 400),
            (b"POST /ingest?name=a HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\nx".to_vec(), 400),
            (b"POST /ingest?name=a HTTP/1.1\r\nHost : h\r\nContent-Length: 1\r\n\r\nx".to_vec(), 400),
            (b"POST /ingest?name=a HTTP/2.7\r\nHost: h\r\nContent-Length: 1\r\n\r\nx".to_vec(), 505),
        ] {
            let mut client = gateway.client();
            // A refusal may come while the client still sends.
            let _sent = client.send(&request);
            let answer = client.receive().unwrap();
            assert_eq!(answer.status, status, "--ack {ack}: {}", String::from_utf8_lossy(&request[..request.len().min(200)]));
        }
        let farewell = &gateway.farewell()["a"];
        assert_eq!(farewell.accepted(), 0, "nothing of it was accepted");
    }
}

fn many_cores_deliver_everything_once(engine: &str) {
    for cores in [
        &["--cores", "2"][..],
        &["--cores", "4", "--writers", "2"],
        &["--cores", "3", "--writers", "1"],
    ] {
        let sinks: Vec<_> = (0..3)
            .map(|_| Sink::start(&["--engine", engine, "--verify"]))
            .collect();
        let urls: Vec<_> = sinks.iter().map(Sink::url).collect();
        let flags: Vec<String> = to(&urls)
            .into_iter()
            .chain(cores.iter().map(|flag| (*flag).to_owned()))
            .collect();
        for ack in ["queued", "all"] {
            let gateway = Gateway::start(engine, &[&flags[..], &["--ack".into(), ack.into()]].concat());
            let before: Vec<_> = sinks
                .iter()
                .map(|sink| sink.stats()["verified"].as_u64().unwrap())
                .collect();
            let url = format!("http://{}", gateway.address);
            let load = [
                "load",
                &url,
                "--requests",
                "400",
                "--connections",
                "24",
                "--route",
                "mix",
                "--quiet",
            ];
            let ended = run(&[&load[..], &["--size", "1KiB:20,40KiB:2", "--duration", "1m"]].concat());
            assert!(ended.status.success(), "{cores:?}: {}", ended.stderr);
            let farewells = gateway.farewell();
            for ((name, farewell), (sink, before)) in farewells.iter().zip(sinks.iter().zip(before)) {
                assert_eq!(
                    (farewell.delivered, farewell.accepted()),
                    (400, 400),
                    "{name} with {cores:?}"
                );
                let stats = sink.stats();
                assert_eq!(
                    stats["verified"],
                    before + 400,
                    "{name} with {cores:?}: {stats:#}"
                );
                assert_eq!(
                    (&stats["duplicates"], &stats["corrupt"]),
                    (&0.into(), &0.into()),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn bad_values_are_refused_with_flag_value_and_mend() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    for (flag, value, mend) in [
        ("--listen", "nowhere", "invalid socket address"),
        ("--listen", "4040", "invalid socket address"),
        ("--admin", "nowhere", "off"),
        ("--to", "https://h,tls-cert-file=c", "tls-key-file"),
        ("--to", "ftp://h", "http://"),
        ("--to", "http://", "http://"),
        ("--to", "http://h,max-age=x", "max-age"),
        ("--to", "http://h,colour=red", "colour"),
        ("--to", "http://h:99999", "port"),
        ("--external-label", "x", "KEY=VALUE"),
        ("--external-label", "a b=c", "a b"),
        ("--labels", "some", "alloy"),
        ("--ack", "never", "queued"),
        ("--ack", "stored", "--spool DIR"),
        ("--overflow", "panic", "drop-oldest"),
        ("--memory-limit", "1", "MiB"),
        ("--memory-limit", "1KiB", "1MiB"),
        ("--queue-limit", "lots", "MiB"),
        ("--queue-limit", "2TiB", "--memory-limit"),
        ("--max-age", "5", "10s"),
        ("--max-age", "0", "--max-age"),
        ("--conn-limit", "0", "16384"),
        ("--conn-limit", "-1", "--conn-limit"),
        ("--body-limit", "0", "256MiB"),
        ("--body-limit", "2GiB", "--memory-limit"),
        ("--read-timeout", "1ms", "100ms"),
        ("--write-timeout", "soon", "10s"),
        ("--idle-timeout", "0", "100ms"),
        ("--remote-timeout", "0", "--remote-timeout"),
        ("--min-backoff", "10m", "--max-backoff"),
        ("--max-backoff", "x", "10s"),
        ("--max-retries", "-1", "--max-retries"),
        ("--inflight", "0", "--inflight"),
        ("--dns-refresh", "1ms", "100ms"),
        ("--cores", "0", "1 to"),
        ("--cores", "1000", "1 to"),
        ("--writers", "many", "auto"),
        ("--writers", "500", "--cores"),
        ("--engine", "kqueue", "io_uring"),
        ("--drain-timeout", "1 fortnight", "10s"),
        ("--pass-header", "Host", "Host"),
        ("--pass-header", "a b", "a b"),
        ("--log", "xml", "json"),
        ("--log-level", "loud", "--log-level"),
        ("--no-such-flag", "1", "--no-such-flag"),
    ] {
        let mut args = vec!["run", flag, value];
        if flag != "--listen" {
            // Were a socket opened before the values are judged, this is what would be complained about.
            args.extend(["--listen", &taken]);
        }
        if flag != "--to" {
            args.extend(["--to", "http://127.0.0.1:1"]);
        }
        let ended = run(&args);
        let complaint = &ended.stderr;
        assert!(
            matches!(ended.status.code(), Some(2 | 64)),
            "{flag} {value}: {:?} {complaint}",
            ended.status
        );
        assert!(complaint.contains(flag), "{flag} {value}: {complaint}");
        assert!(
            complaint.contains(mend),
            "{flag} {value} should tell of '{mend}': {complaint}"
        );
        assert!(!complaint.contains("cannot bind"), "{flag} {value}: {complaint}");
    }
}

#[test]
fn an_address_in_use_is_refused_by_name() {
    for cores in ["1", "2"] {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let ended = run(&[
            "run",
            "--listen",
            &address,
            "--admin",
            "off",
            "--to",
            "http://127.0.0.1:1",
            "--cores",
            cores,
        ]);
        assert!(!ended.status.success());
        assert!(
            ended.stderr.contains(&format!("--listen {address}")),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn a_flag_may_come_from_the_environment() {
    let peer = Peer::start();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pyrotee"));
    command
        .env("PYROTEE_TO", format!("\n one={}\n\n", peer.url()))
        .env("PYROTEE_EXTERNAL_LABEL", "a=1,b=2");
    let gateway = Gateway::start_by(command, &[], "auto", &[] as &[&str]);
    assert_eq!(gateway.ingest("x").status, 200);
    assert_eq!(name_of(peer.next().query()), "app{a=1,b=2,service_name=app}");
    assert_eq!(gateway.farewell()["one"].delivered, 1);
}

#[test]
fn the_first_log_line_says_engine_and_reason() {
    for engine in support::engines() {
        let args = [
            "run",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "off",
            "--to",
            "http://127.0.0.1:1",
            "--engine",
            engine,
        ];
        let mut process = Process::start(&[&args[..], &["--log", "json"]].concat());
        let line = process.log("the first line", |line| Some(line.to_owned()));
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["engine"], engine);
        assert!(!line["reason"].as_str().unwrap().is_empty());
    }
}
