//! HTTP/2 and gRPC at the data port: rows 105 to 109 of the contract, `/ingest` the same way, and what hostile clients try.
//!
//! Good clients are the `h2` crate; hostile ones write frames by hand (RFC 9113). connect-go over HTTP/2 is in `interop`.
//! Each test runs under both engines.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

mod support;
use support::gateway::Gateway;
use support::peer::{Held, Peer, Reply};
use support::speaker::{frame_of, run, speak, speak_tls};
use support::tls::Authority;
use support::wire::{PUSH, assert_same_bytes, decode, encode, gunzip, gzip, noise, push_message};
use support::{Client, DEADLINE, eventually, get, under_both_engines};

const INGEST: &str = "/ingest?name=app.cpu";

under_both_engines! {
    ingest_of_every_size,
    many_requests_at_a_time,
    grpc_in_every_codec,
    grpc_refusals_are_trailers_only,
    connect_and_grpc_web,
    routes_and_statuses,
    labels_and_headers_as_over_http1,
    tls_by_alpn,
    cleartext_only_where_enabled,
    verdicts_and_deadlines,
    limits_are_those_of_http1,
    a_stalled_body_times_out,
    idle_connections_end_and_make_room,
    a_shutdown_finishes_requests,
    a_reload_is_followed,
    rapid_resets_end_their_connection_only,
    endless_headers_end_their_connection_only,
    closed_windows_hold_nobody_else,
    broken_frames_end_their_connection_only,
    unfinished_prefaces_are_no_http2,
}

/// A gateway before one destination.
struct Front {
    gateway: Gateway,
    peer: Peer,
}

impl Front {
    fn start(engine: &str, flags: &[&str]) -> Self {
        Self::before(engine, Peer::start(), flags)
    }

    fn before(engine: &str, peer: Peer, flags: &[&str]) -> Self {
        let all = [&["--h2c", "--admin", "127.0.0.1:0"][..], flags].concat();
        let gateway = Gateway::before(engine, &[&peer], &all);
        Self { gateway, peer }
    }

    fn admin(&self) -> SocketAddr {
        self.gateway.admin.expect("the flags ask for one")
    }

    fn metric(&self, line: &str) -> u64 {
        let text = get(self.admin(), "/metrics").text();
        let value = text.lines().find_map(|one| one.strip_prefix(line));
        value.map_or(0, |value| value.trim().parse().expect("a number"))
    }

    fn refused(&self, reason: &str) -> u64 {
        self.metric(&format!(
            "pyrotee_inbound_refused_requests_total{{reason=\"{reason}\"}}"
        ))
    }

    /// Clients of both kinds are served.
    fn serves(&self, why: &str) {
        assert_eq!(self.gateway.ingest(b"one").status, 200, "{why}: HTTP/1.1");
        self.peer.next();
        let address = self.gateway.address;
        run(async move {
            let got = speak(address).await.post(INGEST, &[], b"two").await;
            assert_eq!(got.status, 200, "{why}: HTTP/2");
        });
        self.peer.next();
    }
}

fn push() -> Vec<u8> {
    encode(&push_message(
        &[("service_name", "s"), ("__name__", "cpu")],
        &[noise(5000, 1)],
    ))
}

fn ingest_of_every_size(engine: &str) {
    let front = Front::start(engine, &[]);
    let address = front.gateway.address;
    for (seed, bytes) in [0, 1, 16 << 10, (16 << 10) + 1, 100_000, 1 << 20, 20 << 20]
        .into_iter()
        .enumerate()
    {
        let body = noise(bytes, seed as u64);
        let sent = body.clone();
        let got = run(async move {
            speak(address)
                .await
                .post(INGEST, &[("content-type", "x/y")], &sent)
                .await
        });
        assert_eq!(
            (got.status, got.header("content-length"), got.body.len()),
            (200, Some("0"), 0)
        );
        let arrived = front.peer.next();
        assert_same_bytes(&arrived.body, &body, &format!("{bytes} bytes"));
        assert_eq!(arrived.header("content-type"), Some("x/y"));
    }
    assert!(front.metric("pyrotee_inbound_body_copied_bytes_total{site=\"http2\"}") > 20 << 20);
    eventually("all memory back", || {
        (front.metric("pyrotee_memory_used_bytes") < 10_000).then_some(())
    });
    front.gateway.end_whole();
}

fn many_requests_at_a_time(engine: &str) {
    let front = Front::start(engine, &[]);
    let address = front.gateway.address;
    run(async move {
        let speaker = speak(address).await;
        let calls: Vec<_> = (0..300u64)
            .map(|seed| {
                let speaker = speaker.clone();
                tokio::task::spawn_local(async move {
                    let body = noise(100 + 200 * usize::try_from(seed).expect("small"), seed);
                    speaker.post(INGEST, &[], &body).await.status
                })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.expect("no panic"), 200);
        }
    });
    let mut got: Vec<Vec<u8>> = front.peer.take(300).into_iter().map(|one| one.body).collect();
    got.sort_by_key(Vec::len);
    for (seed, body) in (0..300u64).zip(&got) {
        let size = 100 + 200 * usize::try_from(seed).expect("small");
        assert_same_bytes(body, &noise(size, seed), &format!("body {seed}"));
    }
    front.gateway.end_whole();
}

fn grpc_in_every_codec(engine: &str) {
    let front = Front::start(engine, &["--ack", "all"]);
    let address = front.gateway.address;
    let json = br#"{"series":[{"labels":[{"name":"service_name","value":"s"},{"name":"__name__","value":"cpu"}],"samples":[{"rawProfile":"AAAA"}]}]}"#;
    for (content_type, message, answer) in [
        ("application/grpc", push(), &b""[..]),
        ("application/grpc+proto", push(), b""),
        ("application/grpc+json", json.to_vec(), b"{}"),
    ] {
        for is_gzip in [false, true] {
            let mut headers = vec![("content-type", content_type), ("te", "trailers")];
            let mut body = frame_of(0, &message);
            if is_gzip {
                headers.push(("grpc-encoding", "gzip"));
                body = frame_of(1, &gzip(&message));
            }
            let got = run(async move { speak(address).await.post(PUSH, &headers, &body).await });
            let context = format!("{content_type}, gzip {is_gzip}: {got:?}");
            assert_eq!(
                (got.status, got.header("content-type")),
                (200, Some(content_type)),
                "{context}"
            );
            assert_eq!(got.trailer("grpc-status"), Some("0"), "{context}");
            assert_eq!(got.header("grpc-status"), None, "{context}");
            assert_eq!(got.header("grpc-accept-encoding"), Some("gzip"), "{context}");
            assert_eq!(got.header("date"), None, "{context}");
            // Row 108: who sends gzip, or says so, gets it.
            assert_eq!(
                got.header("grpc-encoding"),
                is_gzip.then_some("gzip"),
                "{context}"
            );
            let (head, payload) = got.body.split_at(5);
            assert_eq!(head[0], u8::from(is_gzip), "{context}");
            assert_eq!(
                head[1..],
                u32::try_from(payload.len()).expect("small").to_be_bytes()
            );
            let payload = if is_gzip {
                gunzip(payload)
            } else {
                payload.to_vec()
            };
            assert_eq!(payload, answer, "{context}");
            let arrived = front.peer.next();
            assert_eq!(arrived.header("content-type"), Some("application/proto"));
            assert_eq!(decode(&arrived.body).series[0].samples.len(), 1);
        }
    }
    let accepts = [
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "gzip"),
    ];
    let got = run(async move {
        speak(address)
            .await
            .post(PUSH, &accepts, &frame_of(0, &push()))
            .await
    });
    assert_eq!(got.header("grpc-encoding"), Some("gzip"));
    front.gateway.end_whole();
}

fn grpc_refusals_are_trailers_only(engine: &str) {
    let front = Front::start(engine, &[]);
    let address = front.gateway.address;
    let good = frame_of(0, &push());
    for (name, header, body, status) in [
        ("107 short frame", None, good[..20].to_vec(), "3"),
        ("107 no message", None, Vec::new(), "12"),
        ("two messages", None, [&good[..], &good].concat(), "12"),
        (
            "107 undeclared compression",
            None,
            frame_of(1, &gzip(&push())),
            "13",
        ),
        (
            "unknown encoding",
            Some(("grpc-encoding", "br")),
            good.clone(),
            "12",
        ),
        (
            "bad gzip",
            Some(("grpc-encoding", "gzip")),
            frame_of(1, b"no gzip"),
            "3",
        ),
        (
            "trailers in a frame, as in gRPC-Web",
            None,
            [&good[..], &frame_of(0x80, b"a: b\r\n")].concat(),
            "13",
        ),
        ("bad timeout", Some(("grpc-timeout", "soon")), good.clone(), "3"),
        ("no time left", Some(("grpc-timeout", "0S")), good.clone(), "4"),
        ("no protobuf", None, frame_of(0, b"\xff\xff\xff"), "3"),
        (
            "bad label",
            None,
            frame_of(0, &encode(&push_message(&[("a-b", "c")], &[vec![1]]))),
            "3",
        ),
    ] {
        let headers: Vec<_> = [("content-type", "application/grpc")]
            .into_iter()
            .chain(header)
            .collect();
        let got = run(async move { speak(address).await.post(PUSH, &headers, &body).await });
        assert_eq!(
            (got.status, got.header("grpc-status")),
            (200, Some(status)),
            "{name}: {got:?}"
        );
        assert_eq!(got.header("content-type"), Some("application/grpc"), "{name}");
        assert!(got.body.is_empty() && got.trailers.is_none(), "{name}: {got:?}");
        // Row 109: nothing but printable ASCII.
        let message = got.header("grpc-message").expect("a message");
        assert!(
            message.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{name}: {message}"
        );
    }
    front.peer.expect_nothing(Duration::from_millis(50), "refused");
    front.serves("after refusals");
}

fn connect_and_grpc_web(engine: &str) {
    let front = Front::start(engine, &[]);
    let address = front.gateway.address;
    for (content_type, body, expected) in [
        ("application/proto", push(), &b""[..]),
        ("application/json", br#"{"series":[{"labels":[{"name":"service_name","value":"s"}],"samples":[{"rawProfile":"AAAA"}]}]}"#.to_vec(), b"{}"),
        (
            "application/grpc-web+proto",
            frame_of(0, &push()),
            b"\0\0\0\0\0\x80\0\0\0\x10grpc-status: 0\r\n",
        ),
    ] {
        let headers = [("content-type", content_type)];
        let got = run(async move { speak(address).await.post(PUSH, &headers, &body).await });
        assert_eq!((got.status, got.header("content-type")), (200, Some(content_type)), "{got:?}");
        assert_eq!(got.body, expected, "{content_type}");
        assert!(got.trailers.is_none(), "{content_type}");
        front.peer.next();
    }
    let headers = [
        ("content-type", "application/proto"),
        ("connect-protocol-version", "2"),
    ];
    let got = run(async move { speak(address).await.post(PUSH, &headers, &push()).await });
    assert_eq!(
        (got.status, got.header("content-type")),
        (400, Some("application/json"))
    );
    assert!(
        String::from_utf8_lossy(&got.body).contains("invalid_argument"),
        "{got:?}"
    );
    front.gateway.end_whole();
}

fn routes_and_statuses(engine: &str) {
    let front = Front::start(engine, &[]);
    let address = front.gateway.address;
    run(async move {
        let speaker = speak(address).await;
        for (method, path, status) in [
            ("POST", INGEST, 200),
            ("POST", "/pyroscope/ingest?name=a", 200),
            ("POST", "/ing%65st?name=a", 200),
            ("GET", "/ingest", 405),
            ("HEAD", "/ingest", 405),
            ("GET", PUSH, 405),
            ("POST", "/", 404),
            ("HEAD", "/metrics", 404),
            ("POST", "//ingest?name=a", 301),
            ("POST", "/ingest", 400),
            ("POST", "/ingest?name=a%2Cb", 400),
            ("POST", PUSH, 415),
            ("GET", "/debuginfo.v1alpha1.DebuginfoService/UploadFinished", 405),
            ("POST", "/debuginfo.v1alpha1.DebuginfoService/UploadFinished", 415),
        ] {
            let got = speaker.call(method, path, &[], b"").await.expect("an answer");
            assert_eq!(got.status, status, "{method} {path}: {got:?}");
            match status {
                301 => assert_eq!(got.header("location"), Some("/ingest?name=a")),
                404 if method == "POST" => assert_eq!(got.body, b"404 page not found\n"),
                404 => assert_eq!((got.body.len(), got.header("content-length")), (0, Some("19"))),
                415 => assert!(
                    got.header("accept-post")
                        .is_some_and(|types| types.contains("application/grpc"))
                ),
                _ => {}
            }
        }
    });
    front.peer.take(3);
    assert_eq!(
        front.metric(
            "pyroscope_receive_http_request_duration_seconds_count{method=\"POST\",route=\"ingest\",status_code=\"200\",ws=\"false\"}"
        ),
        3
    );
    front.gateway.end_whole();
}

fn labels_and_headers_as_over_http1(engine: &str) {
    let front = Front::start(
        engine,
        &[
            "--pass-header",
            "X-Scope-OrgID",
            "--trace-headers",
            "off",
            "--external-label",
            "cluster=eu",
        ],
    );
    let address = front.gateway.address;
    let target = "/ingest?until=2&name=app%7Bb%3D1%7D&from=1";
    let headers = [
        ("x-scope-orgid", "team"),
        ("content-type", "a/b"),
        ("content-type", "c/d"),
        ("content-encoding", "gzip"),
        ("authorization", "Bearer x"),
    ];
    run(async move { speak(address).await.post(target, &headers, b"body").await });
    let second = front.peer.next();
    let lines: Vec<(&str, &str)> = headers.to_vec();
    let answer = Client::connect(address)
        .post(target, &lines, b"body")
        .expect("an answer");
    assert_eq!(answer.status, 200);
    let first = front.peer.next();
    assert_eq!(second.target, first.target);
    let told = |headers: &[(String, String)]| -> Vec<(String, String)> {
        headers
            .iter()
            .filter(|(name, _)| name != "x-alloy-id")
            .cloned()
            .collect()
    };
    assert_eq!(told(&second.headers), told(&first.headers));
    assert_eq!(
        (second.header("x-scope-orgid"), second.header("authorization")),
        (Some("team"), None)
    );
}

fn tls_by_alpn(engine: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("clients trust it");
    let files = authority.issue(&["localhost"]).write(folder.path(), "server");
    let peer = Peer::start();
    let flags = [
        "--tls-cert-file",
        files.cert.to_str().expect("plain"),
        "--tls-key-file",
        files.key.to_str().expect("plain"),
        // One at a time, so that the order of arrival is the order of sending.
        "--inflight",
        "1",
    ];
    let gateway = Gateway::before(engine, &[&peer], &flags);
    let address = gateway.address;
    let offering = |names: &[&str]| {
        let mut config = (*authority.client(None)).clone();
        config.alpn_protocols = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    };
    // Row 105, whichever order the client offers in.
    for names in [&["h2"][..], &["h2", "http/1.1"], &["http/1.1", "h2"]] {
        let config = offering(names);
        let body = noise(1 << 20, 3);
        let sent = frame_of(
            0,
            &encode(&push_message(
                &[("service_name", "s")],
                std::slice::from_ref(&body),
            )),
        );
        let got = run(async move {
            let headers = [("content-type", "application/grpc")];
            let speaker = speak_tls(address, config).await;
            for bytes in [1, 300_000] {
                assert_eq!(speaker.post(INGEST, &[], &noise(bytes, 9)).await.status, 200);
            }
            speaker.post(PUSH, &headers, &sent).await
        });
        assert_eq!(got.trailer("grpc-status"), Some("0"), "{got:?}");
        assert_eq!(peer.next().body.len(), 1);
        assert_same_bytes(&peer.next().body, &noise(300_000, 9), "over TLS");
        assert_same_bytes(
            &decode(&peer.next().body).series[0].samples[0].raw_profile,
            &body,
            "the profile",
        );
    }
    for names in [&["http/1.1"][..], &[]] {
        let mut client = Client::connect_tls(address, offering(names), "localhost");
        assert_eq!(client.post(INGEST, &[], b"b").expect("an answer").status, 200);
        peer.next();
    }
    let mut client = Client::connect_tls(address, offering(&["spdy/3"]), "localhost");
    assert!(client.post(INGEST, &[], b"b").is_err(), "nothing in common");
    // A preface inside TLS that has agreed on HTTP/1.1 is none.
    let mut client = Client::connect_tls(address, offering(&["http/1.1"]), "localhost");
    client.send(PREFACE).expect("it takes it");
    assert_eq!(client.receive().expect("an answer").status, 301);
    gateway.end_whole();
}

fn cleartext_only_where_enabled(engine: &str) {
    let peer = Peer::start();
    let gateway = Gateway::before(engine, &[&peer], &["--admin", "127.0.0.1:0"]);
    let mut client = Client::connect(gateway.address);
    client.send(PREFACE).expect("it takes it");
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.status, 301);
    assert!(answer.text().contains("--h2c"), "{}", answer.text());
    client.expect_closed("told off");
    let admin = gateway.admin.expect("the flags ask for one");
    eventually("its count", || {
        let metrics = get(admin, "/metrics").text();
        metrics.contains("reason=\"http2_in_cleartext\"} 1").then_some(())
    });
    // Where it is enabled: at the beginning of a connection only, in one piece or in many.
    let front = Front::start(engine, &[]);
    let mut client = front.gateway.client();
    assert_eq!(client.post(INGEST, &[], b"b").expect("an answer").status, 200);
    client.send(PREFACE).expect("it takes it");
    assert_eq!(client.receive().expect("an answer").status, 301);
    let mut raw = Raw::connect(&front);
    for byte in PREFACE {
        raw.send(&[*byte]);
    }
    raw.send(&frame(SETTINGS, 0, 0, &[]));
    assert_eq!(raw.next_frame().map(|frame| frame.kind), Some(SETTINGS));
    // An upgrade is no way there (RFC 9113 dropped it): the request is served as it is.
    let mut client = front.gateway.client();
    let upgrade = [
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABk"),
    ];
    assert_eq!(
        client.post(INGEST, &upgrade, b"b").expect("an answer").status,
        200
    );
}

fn verdicts_and_deadlines(engine: &str) {
    let peer = Peer::deciding(|_| Reply::Status(400, "Content-Type: text/plain\r\n"));
    let front = Front::before(engine, peer, &["--ack", "all"]);
    let address = front.gateway.address;
    let headers = [("content-type", "application/grpc")];
    let body = frame_of(0, &push());
    let sent = body.clone();
    let (grpc, ingest) = run(async move {
        let speaker = speak(address).await;
        (
            speaker.post(PUSH, &headers, &sent).await,
            speaker.post(INGEST, &[], b"b").await,
        )
    });
    assert_eq!(grpc.header("grpc-status"), Some("13"), "{grpc:?}");
    assert_eq!(
        (ingest.status, ingest.body.as_slice()),
        (400, &b"Bad Request\n"[..])
    );
    let held = Held::default();
    let gate = held.clone();
    let front = Front::before(
        engine,
        Peer::deciding(move |_| Reply::Held(gate.clone())),
        &["--ack", "all"],
    );
    let address = front.gateway.address;
    let headers = [("content-type", "application/grpc"), ("grpc-timeout", "300m")];
    let got = run(async move { speak(address).await.post(PUSH, &headers, &body).await });
    assert_eq!(got.header("grpc-status"), Some("4"), "{got:?}");
    held.open();
    // It was told the client's limit, and has the profile all the same.
    let told = front.peer.next();
    let told: u64 = told
        .header("connect-timeout-ms")
        .expect("told")
        .parse()
        .expect("a number");
    assert!(told <= 300, "{told}");
    front.gateway.end_whole();
}

fn limits_are_those_of_http1(engine: &str) {
    let front = Front::start(
        engine,
        &[
            "--body-limit",
            "100KiB",
            "--memory-limit",
            "1MiB",
            "--queue-limit",
            "512KiB",
        ],
    );
    let address = front.gateway.address;
    let grpc = [("content-type", "application/grpc")];
    let (announced, counted, framed, bomb) = run(async move {
        let speaker = speak(address).await;
        let large = noise(150 << 10, 1);
        let length = large.len().to_string();
        let announced = speaker.post(INGEST, &[("content-length", &length)], &large).await;
        let counted = speaker.post(INGEST, &[], &large).await;
        let framed = speaker.post(PUSH, &grpc, &frame_of(0, &large)).await;
        let zeros = gzip(&vec![0; 10 << 20]);
        let bomb = [("content-type", "application/grpc"), ("grpc-encoding", "gzip")];
        let bomb = speaker.post(PUSH, &bomb, &frame_of(1, &zeros)).await;
        (announced, counted, framed, bomb)
    });
    assert_eq!((announced.status, counted.status), (413, 413));
    assert_eq!(
        (framed.header("grpc-status"), bomb.header("grpc-status")),
        (Some("8"), Some("8"))
    );
    assert_eq!(front.refused("body_too_large"), 4);
    // Headers beyond the limit end their request only.
    run(async move {
        let speaker = speak(address).await;
        let long = "x".repeat(100 << 10);
        let got = speaker.call("POST", INGEST, &[("x-long", &long)], b"").await;
        assert!(got.is_err() || got.is_ok_and(|got| got.status == 431));
        assert_eq!(speak(address).await.post(INGEST, &[], b"b").await.status, 200);
    });
    front.peer.next();
    // Bodies that are not finished hold memory, which runs out; then they are gone and it is back.
    let front_of_it = &front;
    run(async move {
        let speaker = speak(address).await;
        let mut open = Vec::new();
        for _ in 0..40 {
            let mut send = speaker.send.clone().ready().await.expect("room");
            let request = speaker.request("POST", INGEST, &[]);
            let (answer, mut stream) = send.send_request(request, false).expect("room");
            stream.reserve_capacity(50_000);
            stream
                .send_data(Bytes::from(vec![0; 50_000]), false)
                .expect("room");
            open.push((answer, stream));
        }
        let one_refused = async {
            while front_of_it.refused("memory_limit") == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, one_refused)
            .await
            .expect("memory has an end");
        for (_, mut stream) in open {
            stream.send_reset(h2::Reason::CANCEL);
        }
    });
    eventually("all memory back", || {
        (front.metric("pyrotee_memory_used_bytes") < 10_000).then_some(())
    });
    front.serves("after the flood");
}

fn a_stalled_body_times_out(engine: &str) {
    let front = Front::start(engine, &["--read-timeout", "3s"]); // the others are quicker, on a busy machine too
    let address = front.gateway.address;
    run(async move {
        let speaker = speak(address).await;
        let mut send = speaker.send.clone().ready().await.expect("room");
        let (answer, mut stream) = send
            .send_request(speaker.request("POST", INGEST, &[]), false)
            .expect("room");
        stream
            .send_data(Bytes::from_static(b"half"), false)
            .expect("room");
        // Another one on the same connection is served meanwhile.
        assert_eq!(speaker.post(INGEST, &[], b"whole").await.status, 200);
        assert_eq!(answer.await.expect("an answer").status(), 408);
    });
    assert_eq!(front.peer.next().text(), "whole");
    eventually("the refusal", || {
        (front.refused("read_timeout") == 1).then_some(())
    });
    // A client that leaves in the middle.
    run(async move {
        let speaker = speak(address).await;
        let mut send = speaker.send.clone().ready().await.expect("room");
        let (_, mut stream) = send
            .send_request(speaker.request("POST", INGEST, &[]), false)
            .expect("room");
        stream
            .send_data(Bytes::from_static(b"half"), false)
            .expect("room");
        speaker.post(INGEST, &[], b"whole").await;
        stream.send_reset(h2::Reason::CANCEL);
        speaker.post(INGEST, &[], b"whole").await;
    });
    front.peer.take(2);
    front
        .peer
        .expect_nothing(Duration::from_millis(50), "half a body");
}

fn idle_connections_end_and_make_room(engine: &str) {
    let front = Front::start(engine, &["--idle-timeout", "2s"]); // it has greeted by then, on a busy machine too
    let mut raw = Raw::greeted(&front);
    // Pings are no requests.
    let mut last = None;
    while let Some(got) = raw.next_frame() {
        raw.try_send(&frame(PING, 0, 0, &[1; 8]));
        last = Some(got.kind).filter(|kind| *kind == GOAWAY).or(last);
    }
    assert_eq!(last, Some(GOAWAY), "it is told");
    let front = Front::start(engine, &["--conn-limit", "3"]);
    let idle: Vec<Raw> = (0..3).map(|_| Raw::greeted(&front)).collect();
    front.serves("beyond idle ones");
    drop(idle);
}

fn a_shutdown_finishes_requests(engine: &str) {
    let held = Held::default();
    let gate = held.clone();
    let front = Front::before(
        engine,
        Peer::deciding(move |_| Reply::Held(gate.clone())),
        &["--ack", "all"],
    );
    let address = front.gateway.address;
    let mut idle = Raw::greeted(&front);
    let client = std::thread::spawn(move || {
        run(async move { speak(address).await.post(INGEST, &[], b"body").await.status })
    });
    front.peer.next();
    front.gateway.process.signal(rustix::process::Signal::TERM);
    // It is told that there is a shutdown.
    while idle.next_frame().expect("a goodbye").kind != GOAWAY {}
    held.open();
    assert_eq!(client.join().expect("no panic"), 200, "finished");
    front.gateway.end_whole();
}

/// A connection of before pushes to the destinations of now, by the rules of now.
fn a_reload_is_followed(engine: &str) {
    let (before, after) = (Peer::start(), Peer::start());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.alloy");
    let write = |peer: &Peer, cluster: &str| {
        let text = format!(
            "pyroscope.receive_http \"in\" {{\nforward_to = [pyroscope.write.out.receiver]\n}}\npyroscope.write \"out\" \
             {{\nexternal_labels = {{ cluster = \"{cluster}\" }}\nendpoint {{\nurl = \"{}\"\n}}\n}}\n",
            peer.url()
        );
        std::fs::write(&file, text).expect("room");
    };
    write(&before, "one");
    let path = file.to_str().expect("plain");
    let gateway = Gateway::start(engine, &["--config", path, "--h2c", "--admin", "127.0.0.1:0"]);
    let (address, admin) = (gateway.address, gateway.admin.expect("the flags ask for one"));
    run(async {
        let client = speak(address).await;
        assert_eq!(client.post(INGEST, &[], b"one").await.status, 200);
        assert!(before.next().query().contains("cluster%3Done"));
        write(&after, "two");
        let answer = Client::connect(admin).post("/-/reload", &[], b"");
        assert_eq!(answer.expect("an answer").status, 200);
        assert_eq!(client.post(INGEST, &[], b"two").await.status, 200);
        assert!(after.next().query().contains("cluster%3Dtwo"));
    });
    gateway.end_whole();
}

fn rapid_resets_end_their_connection_only(engine: &str) {
    // CVE-2023-44487: open and reset as fast as one can write.
    let front = Front::start(engine, &[]);
    let mut raw = Raw::greeted(&front);
    for round in 0..200u32 {
        let mut bytes = Vec::new();
        for index in 0..100u32 {
            let stream = 1 + 2 * (round * 100 + index);
            bytes.extend(frame(HEADERS, END_HEADERS, stream, &request_headers(INGEST)));
            bytes.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        }
        if !raw.try_send(&bytes) {
            break;
        }
    }
    front.serves("while it resets");
    // Until GOAWAY, or a reset that takes it along.
    while raw.next_frame().is_some() {}
    eventually("its place back", || {
        (front.metric("pyroscope_receive_http_tcp_connections{protocol=\"http\"}") <= 1).then_some(())
    });
    front.serves("after resets");
}

fn endless_headers_end_their_connection_only(engine: &str) {
    // A header block that never ends (CVE-2024-27983 and its kin).
    let front = Front::start(engine, &["--idle-timeout", "2s"]);
    let mut raw = Raw::greeted(&front);
    raw.send(&frame(HEADERS, 0, 1, &request_headers(INGEST)));
    let piece = literal("x-y", &"z".repeat(4000));
    for _ in 0..5000 {
        if !raw.try_send(&frame(CONTINUATION, 0, 1, &piece)) {
            break;
        }
    }
    front.serves("while headers come");
    while raw.next_frame().is_some() {}
    front.serves("after headers");
    // Empty ones cost nothing to send.
    let mut raw = Raw::greeted(&front);
    raw.send(&frame(HEADERS, 0, 1, &request_headers(INGEST)));
    let many: Vec<u8> = (0..1000).flat_map(|_| frame(CONTINUATION, 0, 1, &[])).collect();
    while raw.try_send(&many) {}
    front.serves("after empty ones");
}

fn closed_windows_hold_nobody_else(engine: &str) {
    // A client that asks and never lets the answer through.
    let front = Front::start(engine, &["--idle-timeout", "500ms"]);
    let mut raw = Raw::connect(&front);
    raw.send(PREFACE);
    raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])); // INITIAL_WINDOW_SIZE 0
    for index in 0..90u32 {
        // 404 has a body, which waits for the window.
        raw.send(&frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1 + 2 * index,
            &request_headers("/nothing"),
        ));
    }
    front.serves("beside a closed window");
    eventually("its end", || {
        while let Some(got) = raw.next_frame() {
            if got.kind == GOAWAY {
                break;
            }
        }
        (front.metric("pyroscope_receive_http_tcp_connections{protocol=\"http\"}") <= 1).then_some(())
    });
    // A window of ours that is not kept to.
    let mut raw = Raw::greeted(&front);
    raw.send(&frame(HEADERS, END_HEADERS, 1, &request_headers(INGEST)));
    let data = frame(DATA, 0, 1, &[0; 16384]);
    for _ in 0..200 {
        if !raw.try_send(&data) {
            break;
        }
    }
    front.serves("beside a flood");
}

fn broken_frames_end_their_connection_only(engine: &str) {
    let front = Front::start(engine, &["--idle-timeout", "1s"]);
    let get = request_headers(INGEST);
    for (name, bytes) in [
        ("nothing after the preface", Vec::new()),
        ("no frames", b"hello hello hello hello".to_vec()),
        (
            "too large",
            [&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1][..], &[0; 100]].concat(),
        ),
        (
            "no settings first",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &get),
        ),
        (
            "an even stream",
            [frame(SETTINGS, 0, 0, &[]), frame(HEADERS, END_HEADERS, 2, &get)].concat(),
        ),
        (
            "data of nobody",
            [frame(SETTINGS, 0, 0, &[]), frame(DATA, 0, 7, b"x")].concat(),
        ),
        (
            "bad HPACK",
            [
                frame(SETTINGS, 0, 0, &[]),
                frame(HEADERS, END_HEADERS, 1, &[0xff; 40]),
            ]
            .concat(),
        ),
        (
            "window of 0",
            [frame(SETTINGS, 0, 0, &[]), frame(WINDOW_UPDATE, 0, 0, &[0; 4])].concat(),
        ),
        (
            "many settings",
            (0..3000).flat_map(|_| frame(SETTINGS, 0, 0, &[])).collect(),
        ),
        (
            "many pings",
            (0..3000).flat_map(|_| frame(PING, 0, 0, &[1; 8])).collect(),
        ),
        (
            "a length that is none",
            [
                frame(SETTINGS, 0, 0, &[]),
                frame(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    1,
                    &[get.clone(), literal("content-length", "77")].concat(),
                ),
            ]
            .concat(),
        ),
        (
            "a head that is none",
            [
                frame(SETTINGS, 0, 0, &[]),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &literal("a", "b")),
            ]
            .concat(),
        ),
    ] {
        let mut raw = Raw::connect(&front);
        raw.send(PREFACE);
        raw.try_send(&bytes);
        front.serves(name);
        // Whatever it is, it ends: at once, or when it has been idle too long.
        while raw.next_frame().is_some() {}
    }
    front.gateway.end_whole();
}

fn unfinished_prefaces_are_no_http2(engine: &str) {
    let front = Front::start(engine, &["--read-timeout", "400ms", "--idle-timeout", "400ms"]);
    for bytes in [
        &PREFACE[..10],
        &PREFACE[..16],
        &PREFACE[..20],
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(front.gateway.address).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        stream.write_all(bytes).expect("it takes it");
        let mut said = Vec::new();
        let _reset_is_fine = stream.read_to_end(&mut said);
        front.serves("after half a preface");
    }
}

/// How HTTP/2 begins in cleartext (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Frame types and flags (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header line of HPACK: literal, not indexed, not compressed (RFC 7541 section 6.2.2).
fn literal(name: &str, value: &str) -> Vec<u8> {
    [&[0][..], &text(name), &text(value)].concat()
}

/// A string of HPACK; its length is an integer with a prefix of 7 bits (RFC 7541 section 5.1).
fn text(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let length = text.len();
    if length < 127 {
        out.push(u8::try_from(length).expect("small"));
    } else {
        out.push(127);
        let mut rest = length - 127;
        while rest >= 128 {
            out.push(u8::try_from(rest % 128).expect("small") | 128);
            rest /= 128;
        }
        out.push(u8::try_from(rest).expect("small"));
    }
    out.extend_from_slice(text.as_bytes());
    out
}

fn request_headers(path: &str) -> Vec<u8> {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "h"),
    ]
    .map(|(name, value)| literal(name, value))
    .concat()
}

/// A client whose frames are written by hand.
struct Raw {
    stream: TcpStream,
}

/// A frame that came.
#[derive(Debug)]
struct Received {
    kind: u8,
}

impl Raw {
    fn connect(front: &Front) -> Self {
        let stream = TcpStream::connect(front.gateway.address).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        // Who is not read from any more must not hold the test.
        stream
            .set_write_timeout(Some(Duration::from_secs(2)))
            .expect("not zero");
        Self { stream }
    }

    /// Connects, greets, and waits to be greeted.
    fn greeted(front: &Front) -> Self {
        let mut raw = Self::connect(front);
        raw.send(PREFACE);
        raw.send(&frame(SETTINGS, 0, 0, &[]));
        assert_eq!(raw.next_frame().map(|frame| frame.kind), Some(SETTINGS));
        raw
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("it takes it");
    }

    fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next frame; `None` when the connection has ended.
    fn next_frame(&mut self) -> Option<Received> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).ok()?;
        Some(Received { kind: head[3] })
    }
}
