//! Debuginfo over HTTP/2: rows 140 to 142 of the contract as a gRPC or Connect client over HTTP/2 sees them. Over HTTP/1.1
//! they are in `compat::debuginfo`.
//!
//! Clients are the `h2` crate, destinations scripted. Each test runs under both engines.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use pyrotee::runtime::clock;

#[path = "support/scripted.rs"]
mod scripted;
mod support;

use scripted::{
    Act, Scripted, answer, connect_error, plain_answer, read_chunked, read_chunked_when, uploaded,
};
use support::gateway::Gateway;
use support::speaker::{Got, Speaker, frame_of, run, send_body, send_part, speak, speak_tls};
use support::tls::Authority;
use support::wire::{gunzip, gzip};
use support::{DEADLINE, eventually, under_both_engines};

under_both_engines! {
    connect_passes_through,
    grpc_becomes_connect_and_back,
    grpc_errors_keep_code_and_message,
    bad_grpc_is_refused_in_grpc,
    nobody_to_ask,
    an_upload_streams,
    an_upload_streams_in_tls,
    uploads_of_every_size,
    a_slow_destination_slows_its_uploads_only,
    an_upload_has_a_limit_of_its_own,
    an_upload_cut_short_is_never_whole,
    failed_uploads_are_502,
    a_destination_refuses_early,
    more_uploads_than_there_may_be,
}

const SERVICE: &str = "/debuginfo.v1alpha1.DebuginfoService";
const INGEST: &str = "/ingest?name=app";
const PROTO: [(&str, &str); 2] = [
    ("content-type", "application/proto"),
    ("connect-protocol-version", "1"),
];
const GRPC: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];
/// Less than any upload here is, and shorter than any takes.
const LIMITS: [&str; 10] = [
    "--memory-limit",
    "1MiB",
    "--queue-limit",
    "512KiB",
    "--body-limit",
    "256KiB",
    "--read-timeout",
    "2s",
    "--write-timeout",
    "2s",
];

fn path(procedure: &str) -> String {
    format!("{SERVICE}/{procedure}")
}

fn gateway(engine: &str, a: &Scripted, flags: &[&str]) -> Gateway {
    let to = format!("a={}", a.url());
    let all = [&["--h2c", "--admin", "127.0.0.1:0", "--to", &to], flags].concat();
    Gateway::start(engine, &all)
}

fn call(address: SocketAddr, procedure: &str, headers: &[(&str, &str)], body: &[u8]) -> Got {
    run(async move { speak(address).await.post(&path(procedure), headers, body).await })
}

fn calls(gateway: &Gateway, method: &str, result: &str) -> f64 {
    gateway.metric(&format!(
        "pyroscope_receive_http_debuginfo_downstream_calls_total{{method=\"{method}\",result=\"{result}\"}}"
    ))
}

/// All memory has come back.
fn rests(gateway: &Gateway) {
    eventually("all memory back", || {
        (gateway.metric("pyrotee_memory_used_bytes") == 0.0).then_some(())
    });
}

fn connect_passes_through(engine: &str) {
    let a = Scripted::following(|turn, _| {
        let proto = ("Content-Type", "application/proto");
        vec![Act::Send(match turn {
            0 => answer(200, &[proto, ("X-Inside", "1")], b"\x08\x01"),
            1 => connect_error(404, "not_found"),
            2 => answer(
                200,
                &[
                    ("Content-Type", "application/grpc-web"),
                    ("Grpc-Status", "7"),
                    ("Grpc-Message", "no"),
                ],
                b"",
            ),
            3 => b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
                   1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
                .to_vec(),
            _ => answer(200, &[proto], &[b'x'; 700_000]),
        })]
    });
    let to = format!("a={}/base,bearer-token=t0ken", a.url());
    let flags = [
        "--h2c",
        "--admin",
        "127.0.0.1:0",
        "--to",
        &to,
        "--pass-header",
        "X-Scope-OrgID",
    ];
    let gateway = Gateway::start(engine, &flags);
    let address = gateway.address;
    let tenant = [
        &PROTO[..],
        &[
            ("x-scope-orgid", "team"),
            ("x-other", "1"),
            ("connect-timeout-ms", "900"),
        ],
    ];
    let got = call(address, "ShouldInitiateUpload", &tenant.concat(), b"\x0a\x00");
    assert_eq!((got.status, &*got.body), (200, &b"\x08\x01"[..]));
    assert_eq!(got.header("content-type"), Some("application/proto"));
    assert_eq!(
        (got.header("x-inside"), got.header("content-length")),
        (None, Some("2"))
    );
    let asked = a.only();
    assert_eq!(
        asked.request_line(),
        format!("POST /base{SERVICE}/ShouldInitiateUpload HTTP/1.1")
    );
    assert_eq!(asked.body, b"\x0a\x00");
    for (name, value) in [
        ("content-type", Some("application/proto")),
        ("connect-protocol-version", Some("1")),
        ("connect-timeout-ms", Some("900")),
        ("authorization", Some("Bearer t0ken")),
        ("x-scope-orgid", Some("team")),
        ("x-other", None),
    ] {
        assert_eq!(asked.value(name).as_deref(), value, "{name}");
    }
    let refused = call(address, "UploadFinished", &PROTO, b"");
    assert_eq!(refused.status, 404);
    let text = String::from_utf8_lossy(&refused.body);
    assert!(
        text.contains("not_found") && text.contains("scripted refusal"),
        "{text}"
    );
    let web = [("content-type", "application/grpc-web")];
    let web = call(address, "UploadFinished", &web, b"\0\0\0\0\0");
    assert_eq!(
        (web.header("grpc-status"), web.header("grpc-message")),
        (Some("7"), Some("no"))
    );
    assert_eq!(a.newest(3).body, b"\0\0\0\0\0", "as it came");
    let json = call(
        address,
        "UploadFinished",
        &[("content-type", "application/json")],
        b"{}",
    );
    assert_eq!((json.status, &*json.body), (200, &b"{}"[..]));
    assert_eq!(call(address, "UploadFinished", &PROTO, b"").body.len(), 700_000);
    assert_eq!(
        call(address, "UploadFinished", &[("content-type", "text/plain")], b"").status,
        415
    );
    assert_eq!(calls(&gateway, "ShouldInitiateUpload", "success"), 1.0);
    assert_eq!(calls(&gateway, "UploadFinished", "success"), 3.0);
    assert_eq!(calls(&gateway, "UploadFinished", "failure"), 2.0);
    rests(&gateway);
}

fn grpc_becomes_connect_and_back(engine: &str) {
    let a = Scripted::following(|_, request| {
        let content_type = request.value("content-type").expect("one is sent");
        let message: &[u8] = match content_type.contains("json") {
            true => br#"{"shouldInitiateUpload":true}"#,
            false => b"\x08\x01",
        };
        let plain = [("Content-Type", &*content_type)];
        vec![Act::Send(match request.value("accept-encoding") {
            Some(_) => answer(200, &[plain[0], ("Content-Encoding", "gzip")], &gzip(message)),
            None => answer(200, &plain, message),
        })]
    });
    let gateway = gateway(engine, &a, &["--pass-header", "X-Scope-OrgID"]);
    let address = gateway.address;
    let mut count = 0;
    for (content_type, connect, message, expected) in [
        (
            "application/grpc",
            "application/proto",
            &b"\x0a\x02\x0a\x00"[..],
            &b"\x08\x01"[..],
        ),
        ("application/grpc+proto", "application/proto", b"", b"\x08\x01"),
        (
            "application/grpc+json",
            "application/json",
            br#"{"file":{}}"#,
            br#"{"shouldInitiateUpload":true}"#,
        ),
    ] {
        for (is_gzip, accepts) in [(false, false), (false, true), (true, false)] {
            let mut headers = vec![
                ("content-type", content_type),
                ("te", "trailers"),
                ("grpc-timeout", "1500u"),
                ("x-scope-orgid", "team"),
            ];
            let mut body = frame_of(0, message);
            if is_gzip {
                headers.push(("grpc-encoding", "gzip"));
                body = frame_of(1, &gzip(message));
            }
            if accepts {
                headers.push(("grpc-accept-encoding", "gzip"));
            }
            let got = call(address, "ShouldInitiateUpload", &headers, &body);
            let context = format!("{content_type}, gzip {is_gzip}, accepts {accepts}: {got:?}");
            assert_eq!(
                (got.status, got.header("content-type")),
                (200, Some(content_type)),
                "{context}"
            );
            assert_eq!(
                (got.trailer("grpc-status"), got.header("grpc-status")),
                (Some("0"), None),
                "{context}"
            );
            let is_gzip_back = is_gzip || accepts;
            assert_eq!(
                got.header("grpc-encoding"),
                is_gzip_back.then_some("gzip"),
                "{context}"
            );
            let (head, payload) = got.body.split_at(5);
            assert_eq!(head[0], u8::from(is_gzip_back), "{context}");
            assert_eq!(
                head[1..],
                u32::try_from(payload.len()).unwrap().to_be_bytes(),
                "{context}"
            );
            let payload = if is_gzip_back {
                gunzip(payload)
            } else {
                payload.to_vec()
            };
            assert_eq!(payload, expected, "{context}");
            count += 1;
            let asked = a.newest(count);
            let sent_gzip = is_gzip.then(|| "gzip".to_owned());
            for (name, value) in [
                ("content-type", Some(connect.to_owned())),
                ("connect-protocol-version", Some("1".into())),
                ("connect-timeout-ms", Some("2".into())),
                ("content-encoding", sent_gzip),
                ("accept-encoding", is_gzip_back.then(|| "gzip".into())),
                ("grpc-timeout", None),
                ("te", None),
                ("x-scope-orgid", Some("team".into())),
            ] {
                assert_eq!(asked.value(name), value, "{name}: {context}");
            }
            let arrived = if is_gzip { gunzip(&asked.body) } else { asked.body };
            assert_eq!(arrived, message, "{context}");
        }
    }
    assert_eq!(
        calls(&gateway, "ShouldInitiateUpload", "success"),
        f64::from(u32::try_from(count).unwrap())
    );
    rests(&gateway);
}

fn grpc_errors_keep_code_and_message(engine: &str) {
    let json =
        |status: u16, body: &str| answer(status, &[("Content-Type", "application/json")], body.as_bytes());
    let long = format!(r#"{{"code":"not_found","message":"{}"}}"#, "ä".repeat(10_000));
    for (name, sent, number, message) in [
        (
            "a code",
            connect_error(404, "not_found"),
            "5",
            "scripted refusal".to_owned(),
        ),
        (
            "another",
            connect_error(401, "unauthenticated"),
            "16",
            "scripted refusal".into(),
        ),
        (
            "not of its status",
            connect_error(500, "aborted"),
            "10",
            "scripted refusal".into(),
        ),
        (
            "no words",
            json(503, r#"{"code":"unavailable"}"#),
            "14",
            String::new(),
        ),
        (
            "odd words",
            json(400, r#"{"code":"invalid_argument","message":"100%\né"}"#),
            "3",
            "100%25%0A%C3%A9".into(),
        ),
        ("long words", json(404, &long), "5", "%C3%A4".repeat(1024)),
        (
            "no Connect",
            answer(502, &[("Content-Type", "text/html")], b"<html>"),
            "14",
            "the destination answered 502".into(),
        ),
        (
            "a redirect",
            answer(302, &[("Location", "/x")], b""),
            "2",
            "the destination answered 302".into(),
        ),
        (
            "a login page",
            answer(200, &[("Content-Type", "text/html")], b"<html>"),
            "2",
            "what the destination answered is no message".into(),
        ),
        (
            "another codec",
            answer(200, &[("Content-Type", "application/json")], b"{}"),
            "2",
            "what the destination answered is no message".into(),
        ),
        (
            "unasked compression",
            answer(
                200,
                &[("Content-Type", "application/proto"), ("Content-Encoding", "br")],
                b"x",
            ),
            "13",
            "the destination's answer is in a compression that nobody asked for".into(),
        ),
    ] {
        let a = Scripted::following(move |_, _| vec![Act::Send(sent.clone())]);
        let gateway = gateway(engine, &a, &[]);
        let got = call(
            gateway.address,
            "UploadFinished",
            &GRPC,
            &frame_of(0, b"\x0a\x01x"),
        );
        let context = format!("{name}: {got:?}");
        assert_eq!(
            (got.status, got.header("content-type")),
            (200, Some("application/grpc")),
            "{context}"
        );
        assert_eq!(got.header("grpc-status"), Some(number), "{context}");
        assert_eq!(
            got.header("grpc-message").unwrap_or_default(),
            message,
            "{context}"
        );
        assert_eq!((got.body.len(), &got.trailers), (0, &None), "{context}");
    }
}

fn bad_grpc_is_refused_in_grpc(engine: &str) {
    let a = Scripted::healthy();
    let gateway = gateway(engine, &a, &[]);
    let address = gateway.address;
    let with = |name, value| vec![GRPC[0], (name, value)];
    for (name, headers, body, number) in [
        ("short", GRPC.to_vec(), b"\0\0".to_vec(), "3"),
        ("no message", GRPC.to_vec(), Vec::new(), "12"),
        (
            "two",
            GRPC.to_vec(),
            [frame_of(0, b"a"), frame_of(0, b"b")].concat(),
            "12",
        ),
        ("undeclared", GRPC.to_vec(), frame_of(1, &gzip(b"a")), "13"),
        (
            "a compression",
            with("grpc-encoding", "br"),
            frame_of(1, b"a"),
            "12",
        ),
        ("too late", with("grpc-timeout", "0m"), frame_of(0, b"a"), "4"),
        ("no timeout", with("grpc-timeout", "soon"), frame_of(0, b"a"), "3"),
        ("too large", GRPC.to_vec(), frame_of(0, &vec![0; 1 << 20]), "8"),
    ] {
        let got = call(address, "UploadFinished", &headers, &body);
        assert_eq!(got.header("grpc-status"), Some(number), "{name}: {got:?}");
    }
    assert!(a.received().is_empty(), "nothing of it goes on");
    rests(&gateway);
}

fn nobody_to_ask(engine: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let archive = format!("file:{}", folder.path().display());
    let message = frame_of(0, b"");
    for (to, says) in [(&*archive, "no%20destination"), ("a=http://127.0.0.1:1", "")] {
        let gateway = Gateway::start(engine, &["--h2c", "--to", to]);
        let address = gateway.address;
        let got = call(address, "ShouldInitiateUpload", &GRPC, &message);
        assert_eq!(got.header("grpc-status"), Some("14"), "{got:?}");
        let text = got
            .header("grpc-message")
            .expect("it says why")
            .replace(' ', "%20");
        assert!(text.contains(says) && !text.contains("127.0.0.1"), "{text}");
        let got = call(address, "ShouldInitiateUpload", &PROTO, b"");
        assert_eq!(got.status, 503, "{got:?}");
        let got = call(address, "Upload/abcd", &[], b"body");
        let expected = if to == archive { 503 } else { 502 };
        assert_eq!(got.status, expected, "{got:?}");
        assert!(
            !String::from_utf8_lossy(&got.body).contains("127.0.0.1"),
            "{got:?}"
        );
    }
}

/// Larger than the memory limit, and slower than every timeout but its own; others are served on the same connection.
async fn upload_slowly(speaker: Speaker) {
    let headers = [("content-type", "x/y"), ("x-other", "1")];
    let (answer, mut stream) = speaker.begin(&path("Upload/ab%2Ecd"), &headers).await;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(300)).await; // longer than any timeout in all
        send_part(&mut stream, &vec![b'x'; 1 << 20], false)
            .await
            .expect("it is taken");
        assert_eq!(speaker.post(INGEST, &[], b"beside").await.status, 200);
    }
    stream.send_data(Bytes::new(), true).expect("it is open");
    let got = Got::of(answer).await.expect("an answer");
    assert_eq!(
        (got.status, got.header("content-length"), got.body.len()),
        (200, Some("0"), 0)
    );
}

/// A destination that takes uploads and profiles.
fn taking_both() -> (Scripted, mpsc::Receiver<(String, u64, bool)>) {
    let (sender, uploads) = mpsc::channel();
    let a = Scripted::raw(move |connection, stream| {
        let mut first = [0; 6];
        while !matches!(stream.peek(&mut first), Ok(6)) {}
        if &first == b"POST /" && is_upload(stream) {
            let upload = read_chunked(stream, None);
            if upload.2 {
                let _ = stream.write_all(&answer(200, &[], b""));
            }
            let _ = sender.send(upload);
            return;
        }
        let mut pending = Vec::new();
        while let Ok(Some(request)) = scripted::receive(stream, connection, &mut pending) {
            let _ = stream.write_all(&plain_answer(&request, 200));
        }
    });
    (a, uploads)
}

fn is_upload(stream: &std::net::TcpStream) -> bool {
    let mut start = [0; 64];
    loop {
        let bytes = stream.peek(&mut start).expect("a request line comes");
        if start[..bytes].contains(&b'\n') || bytes == start.len() {
            return start.windows(9).any(|part| part == b"debuginfo");
        }
    }
}

fn an_upload_streams(engine: &str) {
    let (a, uploads) = taking_both();
    let gateway = gateway(engine, &a, &LIMITS);
    let address = gateway.address;
    run(async move { upload_slowly(speak(address).await).await });
    let (head, received, is_whole) = uploads.recv_timeout(DEADLINE).expect("it comes");
    assert!(is_whole && received == 8 << 20, "{received}");
    assert!(
        head.starts_with(&format!("POST {SERVICE}/Upload/ab.cd HTTP/1.1\r\n")),
        "{head}"
    );
    assert!(
        !head.contains("X-Other") && !head.contains("Content-Type"),
        "{head}"
    );
    assert_eq!(calls(&gateway, "Upload", "success"), 1.0);
    rests(&gateway);
}

fn an_upload_streams_in_tls(engine: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("clients trust it");
    let files = authority.issue(&["localhost"]).write(folder.path(), "server");
    let (a, uploads) = taking_both();
    let to = format!("a={}", a.url());
    let flags = [
        "--to",
        &to,
        "--tls-cert-file",
        files.cert.to_str().expect("plain"),
        "--tls-key-file",
        files.key.to_str().expect("plain"),
    ];
    let gateway = Gateway::start(engine, &[&flags[..], &LIMITS].concat());
    let address = gateway.address;
    let mut config = (*authority.client(None)).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    run(async move { upload_slowly(speak_tls(address, Arc::new(config)).await).await });
    let (_, received, is_whole) = uploads.recv_timeout(DEADLINE).expect("it comes");
    assert!(is_whole && received == 8 << 20, "{received}");
}

fn uploads_of_every_size(engine: &str) {
    let (a, uploads) = uploaded(200);
    let gateway = gateway(engine, &a, &LIMITS);
    for bytes in [0, 1, 5, (16 << 10) + 1, 3 << 20] {
        let length = bytes.to_string();
        for headers in [&[][..], &[("content-length", &*length)]] {
            let got = call(gateway.address, "Upload/abcd", headers, &vec![b'y'; bytes]);
            assert_eq!(got.status, 200, "{bytes}: {got:?}");
            let (_, received, is_whole) = uploads.recv_timeout(DEADLINE).expect("it comes");
            assert!(is_whole && received == bytes as u64, "{bytes}: {received}");
        }
    }
    rests(&gateway);
}

/// Sends until nothing is taken for a while; how much was.
async fn send_until_stuck(stream: &mut SendStream<Bytes>, total: usize) -> usize {
    let piece = vec![b'z'; 16 << 10];
    let mut sent = 0;
    while sent < total {
        let part = &piece[..piece.len().min(total - sent)];
        match tokio::time::timeout(Duration::from_millis(700), send_part(stream, part, false)).await {
            Ok(taken) => drop(taken.expect("the stream is open")),
            Err(_) => break,
        }
        sent += part.len();
    }
    sent
}

fn a_slow_destination_slows_its_uploads_only(engine: &str) {
    let go = Arc::new(AtomicBool::new(false));
    let goes = go.clone();
    let (sender, uploads) = mpsc::channel();
    let slow = Scripted::raw(move |_, stream| {
        // A mebibyte every two seconds until the test says so; from then on nobody waits. One that reads nothing, or too
        // little for its kernel to say so, would be given up after half of --remote-timeout, and the machine may be busy.
        let mut reads = 0;
        let upload = read_chunked_when(stream, || {
            reads += 1;
            if reads % 16 != 0 {
                return;
            }
            let until = clock::now().after(Duration::from_secs(2));
            while !goes.load(Ordering::Acquire) && clock::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let _ = stream.write_all(&answer(200, &[], b""));
        let _ = sender.send(upload);
    });
    let gateway = gateway(
        engine,
        &slow,
        // The uploads are stuck for longer, and a push comes within it on a busy machine, too.
        &["--memory-limit", "64MiB", "--read-timeout", "1s"],
    );
    let address = gateway.address;
    const TOTAL: usize = 64 << 20;
    let (held, stuck) = mpsc::channel();
    let client = std::thread::spawn(move || {
        run(async move {
            let speaker = speak(address).await;
            let mut open = Vec::new();
            for _ in 0..3 {
                let (answer, mut stream) = speaker.begin(&path("Upload/abcd"), &[]).await;
                let sent = send_until_stuck(&mut stream, TOTAL).await;
                assert!(
                    sent < TOTAL,
                    "the destination reads nothing, so not all of it is taken"
                );
                open.push((answer, stream));
            }
            // As many as there may be on one connection are stuck, and the connection is not.
            for _ in 0..20 {
                let status = speaker.post(INGEST, &[], &vec![b'p'; 100_000]).await.status;
                assert_eq!(status, 200);
            }
            held.send(()).expect("the test waits");
            for (answer, mut stream) in open {
                send_body(&mut stream, &vec![b'z'; 1 << 20])
                    .await
                    .expect("it is taken");
                let got = Got::of(answer).await.expect("an answer");
                assert_eq!(got.status, 200, "{got:?}");
            }
        });
    });
    stuck
        .recv_timeout(DEADLINE)
        .expect("uploads are stuck, pushes are not");
    // Three windows, what waits in three channels, and the pushes.
    let used = gateway.metric("pyrotee_memory_used_bytes");
    assert!(used < 3.0 * 512.0 * 1024.0 + 4e6, "{used}");
    go.store(true, Ordering::Release);
    for _ in 0..3 {
        let (_, received, is_whole) = uploads.recv_timeout(DEADLINE).expect("it comes");
        assert!(is_whole && received > 1 << 20, "{received}");
    }
    client.join().expect("the client is content");
}

fn an_upload_has_a_limit_of_its_own(engine: &str) {
    let (a, uploads) = uploaded(200);
    // What has come is passed on by then, on a busy machine too.
    let gateway = gateway(engine, &a, &["--debuginfo-timeout", "3s"]);
    let address = gateway.address;
    let got = run(async move {
        let (answer, mut stream) = speak(address).await.begin(&path("Upload/abcd"), &[]).await;
        send_part(&mut stream, b"begun", false)
            .await
            .expect("it is taken");
        Got::of(answer).await.expect("an answer")
    });
    assert!([408, 502].contains(&got.status), "{got:?}");
    let (_, received, is_whole) = uploads.recv_timeout(DEADLINE).expect("it comes");
    assert!(!is_whole && received == 5, "{received}");
    // And while the destination's answer is waited for.
    let silent = Scripted::raw(|_, stream| drop(stream.read_to_end(&mut Vec::new())));
    let gateway = self::gateway(engine, &silent, &["--debuginfo-timeout", "2s"]);
    assert_eq!(call(gateway.address, "Upload/abcd", &[], b"whole").status, 502);
    rests(&gateway);
}

fn an_upload_cut_short_is_never_whole(engine: &str) {
    let (a, uploads) = uploaded(200);
    let gateway = gateway(engine, &a, &LIMITS);
    let address = gateway.address;
    for how in ["reset", "gone", "refused by its length"] {
        run(async move {
            let speaker = speak(address).await;
            let headers = match how {
                "refused by its length" => &[("content-length", "10000000")][..],
                _ => &[],
            };
            let (answer, mut stream) = speaker.begin(&path("Upload/abcd"), headers).await;
            send_part(&mut stream, &vec![b'x'; 2 << 20], false)
                .await
                .expect("it is taken");
            match how {
                "reset" => {
                    stream.send_reset(Reason::CANCEL);
                    // The connection goes on.
                    assert_eq!(speaker.post("/none", &[], b"").await.status, 404);
                }
                "gone" => {}
                _ => {
                    // An end before what was announced breaks the rules of HTTP/2.
                    stream.send_data(Bytes::new(), true).expect("it is open");
                    assert!(Got::of(answer).await.is_err());
                }
            }
        });
        let (_, received, is_whole) = uploads.recv_timeout(DEADLINE).expect("it comes");
        assert!(!is_whole && received <= 2 << 20, "{how}: {received}");
    }
    eventually("all are counted", || {
        (calls(&gateway, "Upload", "failure") == 3.0).then_some(())
    });
    rests(&gateway);
}

fn failed_uploads_are_502(engine: &str) {
    for status in [201, 302, 400, 412, 500] {
        let (a, _uploads) = uploaded(status);
        let gateway = gateway(engine, &a, &[]);
        let got = call(gateway.address, "Upload/abcd", &[], b"body");
        assert_eq!(got.status, 502, "{status}");
        let text = String::from_utf8_lossy(&got.body).into_owned();
        assert!(
            text.starts_with("downstream upload: ") && text.contains(&status.to_string()),
            "{text}"
        );
        assert!(!text.contains("d0wnstream"), "{text}");
        assert_eq!(calls(&gateway, "Upload", "failure"), 1.0);
    }
}

fn a_destination_refuses_early(engine: &str) {
    // One that refuses before the end and closes, one that stays, and one that resets: the client is told, and does not
    // send 64 MiB for nothing.
    for (name, acts) in [
        (
            "closes",
            vec![
                Act::Send(answer(413, &[("Connection", "close")], b"")),
                Act::Close,
            ],
        ),
        (
            "stays",
            vec![
                Act::Send(answer(413, &[], b"")),
                Act::Wait(Duration::from_millis(500)),
            ],
        ),
        ("resets", vec![Act::Reset]),
    ] {
        let a = Scripted::raw(move |_, stream| {
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer);
            for act in acts.clone() {
                if !matches!(scripted::perform(stream, act), Ok(true)) {
                    return;
                }
            }
        });
        let gateway = gateway(engine, &a, &LIMITS);
        let address = gateway.address;
        let (got, sent) = run(async move {
            let (answer, mut stream) = speak(address).await.begin(&path("Upload/abcd"), &[]).await;
            let sending = async {
                let mut sent = 0;
                while let Ok(bytes @ 1..) = send_part(&mut stream, &[0; 64 << 10], false).await {
                    sent += bytes;
                    if sent >= 64 << 20 {
                        break;
                    }
                }
                sent
            };
            let (got, sent) = tokio::join!(Got::of(answer), sending);
            (got.expect("an answer"), sent)
        });
        assert_eq!(got.status, 502, "{name}: {got:?}");
        assert!(got.body.starts_with(b"downstream upload: "), "{name}: {got:?}");
        assert!(sent < 64 << 20, "{name}: all of it was sent for nothing");
        rests(&gateway);
    }
}

fn more_uploads_than_there_may_be(engine: &str) {
    let (go, pause) = mpsc::channel::<()>();
    let pause = Mutex::new(pause);
    let a = Scripted::raw(move |_, stream| {
        let _ = pause.lock().expect("nobody panics").recv();
        let _ = read_chunked(stream, None);
        let _ = stream.write_all(&answer(200, &[], b""));
    });
    let gateway = gateway(engine, &a, &[]);
    let address = gateway.address;
    let client = std::thread::spawn(move || {
        run(async move {
            let mut open = Vec::new();
            // 13 connections with as many as there may be on one; 16 are under way and 16 wait.
            for connection in 0..13 {
                let speaker = speak(address).await;
                for _ in 0..3 {
                    let (answer, mut stream) = speaker.begin(&path("Upload/abcd"), &[]).await;
                    let _refused_already = send_body(&mut stream, b"whole").await;
                    open.push(answer);
                }
                if connection == 0 {
                    let got = speaker.post(&path("Upload/abcd"), &[], b"a fourth").await;
                    assert_eq!(
                        (got.status, got.header("retry-after")),
                        (503, Some("5")),
                        "{got:?}"
                    );
                }
            }
            let mut busy = 0;
            for answer in open {
                match Got::of(answer).await.expect("an answer").status {
                    200 => {}
                    503 => busy += 1,
                    other => panic!("{other}"),
                }
            }
            busy
        })
    });
    let refused = "pyrotee_inbound_refused_requests_total{reason=\"debuginfo_busy\"}";
    eventually("uploads are refused", || {
        (gateway.metric(refused) >= 8.0).then_some(())
    });
    drop(go);
    let busy = client.join().expect("the client is content");
    // In a burst those that wait are refused before the first of them are under way.
    assert!((39 - 32..=39 - 16).contains(&busy), "{busy}");
    rests(&gateway);
}
