//! Rows 140 to 142 of WIRE.md section 9: debuginfo, passed through to the first server among the destinations.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc;

use super::gateway::{
    Engine, Gateway, INGEST, assert_connect_error, assert_empty, bare, headers, ms, under_both_engines,
};
use super::scripted::{Act, Scripted, answer, connect_error, read_chunked, uploaded};
use super::support::{DEADLINE, get, post};

under_both_engines!(
    row_140_codes_pass_through,
    row_140_none_configured_is_unavailable,
    row_140_a_destination_that_is_away_is_unavailable,
    row_141_an_upload_streams,
    row_141_an_upload_may_have_a_length,
    row_141_a_slow_destination_slows_the_client,
    row_141_an_upload_has_a_limit_of_its_own,
    row_141_an_upload_cut_short_is_never_whole,
    row_142_a_failed_upload_is_502,
    row_142_other_methods,
);

const SERVICE: &str = "/debuginfo.v1alpha1.DebuginfoService";

fn unary(gateway: &Gateway, procedure: &str, fields: &[(&str, &str)], body: &[u8]) -> super::support::Answer {
    let proto = [
        ("Content-Type", "application/proto"),
        ("Connect-Protocol-Version", "1"),
    ];
    let fields = if fields.is_empty() { &proto[..] } else { fields };
    gateway.post(&format!("{SERVICE}/{procedure}"), fields, body)
}

fn row_140_codes_pass_through(engine: Engine) {
    let a = Scripted::following(|turn, _| {
        vec![Act::Send(match turn {
            0 => answer(
                200,
                &[("Content-Type", "application/proto"), ("X-Inside", "1")],
                b"\x08\x01",
            ),
            1 => connect_error(404, "not_found"),
            2 => connect_error(401, "unauthenticated"),
            3 => answer(
                200,
                &[
                    ("Content-Type", "application/grpc-web"),
                    ("Grpc-Status", "7"),
                    ("Grpc-Message", "no"),
                ],
                b"",
            ),
            4 => b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
                   1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
                .to_vec(),
            _ => answer(200, &[("Content-Type", "application/proto")], &[b'x'; 10_000]),
        })]
    });
    let b = Scripted::healthy();
    let folder = tempfile::tempdir().unwrap();
    let archive = format!("file:{}", folder.path().display());
    let to = format!("a={}/base,bearer-token=t0ken,header.X-Scope-OrgID=team", a.url());
    let second = format!("b={}", b.url());
    let flags = [
        "--to",
        &archive,
        "--to",
        &to,
        "--to",
        &second,
        "--admin",
        "127.0.0.1:0",
    ];
    let gateway = Gateway::start(engine, &flags);
    let answer = unary(&gateway, "ShouldInitiateUpload", &[], b"\x0a\x00");
    assert_eq!((answer.status, &*answer.body), (200, &b"\x08\x01"[..]));
    assert_eq!(answer.header("content-type"), Some("application/proto"));
    assert_eq!(answer.header("x-inside"), None);
    let asked = a.only();
    assert_eq!(
        asked.request_line(),
        format!("POST /base{SERVICE}/ShouldInitiateUpload HTTP/1.1")
    );
    assert_eq!(asked.body, b"\x0a\x00");
    for (name, value) in [
        ("content-type", "application/proto"),
        ("connect-protocol-version", "1"),
        ("authorization", "Bearer t0ken"),
        ("x-scope-orgid", "team"),
    ] {
        assert_eq!(asked.value(name).as_deref(), Some(value), "{name}");
    }
    let refused = unary(&gateway, "UploadFinished", &[], b"");
    assert_eq!(refused.status, 404);
    assert_eq!(refused.json()["code"], "not_found");
    assert_eq!(refused.json()["message"], "scripted refusal", "its message too");
    assert_eq!(unary(&gateway, "UploadFinished", &[], b"").status, 401);
    let web = unary(
        &gateway,
        "UploadFinished",
        &[("Content-Type", "application/grpc-web")],
        b"\0\0\0\0\0",
    );
    assert_eq!(
        (web.header("grpc-status"), web.header("grpc-message")),
        (Some("7"), Some("no"))
    );
    let json = unary(
        &gateway,
        "UploadFinished",
        &[("Content-Type", "application/json")],
        b"{}",
    );
    assert_eq!((json.status, &*json.body), (200, &b"{}"[..]));
    assert_eq!(unary(&gateway, "UploadFinished", &[], b"").body.len(), 10_000);
    assert!(b.received().is_empty(), "it goes to one destination only");
    assert_eq!(
        unary(&gateway, "UploadFinished", &[("Content-Type", "text/plain")], b"").status,
        415
    );
    let admin = gateway.log_line("admin port address=").trim().parse().unwrap();
    let text = get(admin, "/metrics").text();
    for line in [
        "debuginfo_downstream_calls_total{method=\"ShouldInitiateUpload\",result=\"success\"} 1",
        "debuginfo_downstream_calls_total{method=\"UploadFinished\",result=\"success\"} 3",
        "route=\"debuginfo_v1alpha1_debuginfoservice_uploadfinished\",status_code=\"404\"",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

fn row_140_none_configured_is_unavailable(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let to = format!("file:{}", folder.path().display());
    let gateway = Gateway::start(engine, &["--to", &to]);
    for procedure in ["ShouldInitiateUpload", "UploadFinished"] {
        assert_connect_error(&unary(&gateway, procedure, &[], b""), 503, "unavailable");
    }
    let answer = gateway.post(&format!("{SERVICE}/Upload/abcd"), &[], b"body");
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("no destination"), "{answer:?}");
}

fn row_140_a_destination_that_is_away_is_unavailable(engine: Engine) {
    let gateway = Gateway::start(engine, &["--to", "a=http://127.0.0.1:1"]);
    let message = assert_connect_error(&unary(&gateway, "UploadFinished", &[], b""), 503, "unavailable");
    assert!(!message.contains("127.0.0.1"), "{message}");
}

const LIMITS: [&str; 8] = [
    "--memory-limit",
    "1MiB",
    "--queue-limit",
    "512KiB",
    "--body-limit",
    "256KiB",
    "--read-timeout",
    "2s",
];

/// Larger than the memory limit, and slower than the read timeout.
fn row_141_an_upload_streams(engine: Engine) {
    let (a, uploads) = uploaded(200);
    let gateway = Gateway::to(engine, &[&a], &LIMITS);
    let mut stream = TcpStream::connect(gateway.address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!(
        "POST {SERVICE}/Upload/ab%2Ecd HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nX-Other: 1\r\n\
         Content-Type: x/y\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..8 {
        std::thread::sleep(ms(300));
        write!(stream, "{:x}\r\n", chunk.len()).unwrap();
        stream.write_all(&chunk).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let mut answered = [0; 1024];
    let bytes = stream.read(&mut answered).unwrap();
    let text = String::from_utf8_lossy(&answered[..bytes]).into_owned();
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"),
        "{text}"
    );
    let (head, received, is_whole) = uploads.recv_timeout(DEADLINE).unwrap();
    assert!(is_whole && received == 8 << 20, "{received}");
    assert!(
        head.starts_with(&format!("POST {SERVICE}/Upload/ab.cd HTTP/1.1\r\n")),
        "{head}"
    );
    assert!(
        !head.contains("X-Other") && !head.contains("Content-Type"),
        "{head}"
    );
    // The connection goes on.
    write!(stream, "POST {INGEST} HTTP/1.0\r\nContent-Length: 0\r\n\r\n").unwrap();
    let (_, highest) = gateway.memory();
    assert!(highest < 200 << 20, "{highest}");
}

fn row_141_an_upload_may_have_a_length(engine: Engine) {
    let (a, uploads) = uploaded(200);
    let gateway = Gateway::to(engine, &[&a], &LIMITS);
    for bytes in [0, 5, 3 << 20] {
        let body = vec![b'y'; bytes];
        assert_empty(&gateway.post(&format!("{SERVICE}/Upload/abcd"), &[], &body), 200);
        let (_, received, is_whole) = uploads.recv_timeout(DEADLINE).unwrap();
        assert!(is_whole && received == bytes as u64, "{bytes}: {received}");
    }
}

fn row_141_a_slow_destination_slows_the_client(engine: Engine) {
    let (go, pause) = mpsc::channel();
    let pause = std::sync::Mutex::new(pause);
    let (sender, uploads) = mpsc::channel();
    let a = Scripted::raw(move |_, stream| {
        let upload = read_chunked(stream, Some(&pause.lock().unwrap()));
        let _ = stream.write_all(&answer(200, &[], b""));
        let _ = sender.send(upload);
    });
    let gateway = Gateway::to(engine, &[&a], &LIMITS);
    let total = 64 << 20;
    let stream = TcpStream::connect(gateway.address).unwrap();
    let head = format!("POST {SERVICE}/Upload/abcd HTTP/1.1\r\nHost: h\r\nContent-Length: {total}\r\n\r\n");
    (&stream).write_all(head.as_bytes()).unwrap();
    stream.set_write_timeout(Some(ms(1000))).unwrap();
    let body = vec![b'z'; 1 << 20];
    let mut sent = 0;
    while sent < total {
        match (&stream).write(&body[..body.len().min(total - sent)]) {
            Ok(bytes) => sent += bytes,
            Err(_) => break,
        }
    }
    assert!(
        sent < total,
        "the destination reads nothing, so not all of it is taken"
    );
    go.send(()).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    while sent < total {
        sent += (&stream).write(&body[..body.len().min(total - sent)]).unwrap();
    }
    let (_, received, is_whole) = uploads.recv_timeout(DEADLINE).unwrap();
    assert!(is_whole && received == total as u64);
}

fn row_141_an_upload_has_a_limit_of_its_own(engine: Engine) {
    let (a, uploads) = uploaded(200);
    let gateway = Gateway::to(engine, &[&a], &["--debuginfo-timeout", "3s"]);
    let begun = format!("POST {SERVICE}/Upload/abcd HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nbegun");
    let text = gateway.raw(begun.as_bytes());
    assert!(
        text.starts_with("HTTP/1.1 408 ") || text.starts_with("HTTP/1.1 502 "),
        "{text}"
    );
    assert!(!uploads.recv_timeout(DEADLINE).unwrap().2);
}

fn row_141_an_upload_cut_short_is_never_whole(engine: Engine) {
    let (a, uploads) = uploaded(200);
    let gateway = Gateway::to(engine, &[&a], &[]);
    for begun in [
        "Content-Length: 10\r\n\r\nbegun",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\nx\r\n",
    ] {
        let mut stream = TcpStream::connect(gateway.address).unwrap();
        write!(
            stream,
            "POST {SERVICE}/Upload/abcd HTTP/1.1\r\nHost: h\r\n{begun}"
        )
        .unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let (_, received, is_whole) = uploads.recv_timeout(DEADLINE).unwrap();
        assert!(!is_whole && received <= 5, "{begun}");
    }
}

fn row_142_a_failed_upload_is_502(engine: Engine) {
    for status in [201, 302, 400, 412, 500] {
        let (a, _uploads) = uploaded(status);
        let gateway = Gateway::to(engine, &[&a], &[]);
        let answer = gateway.post(&format!("{SERVICE}/Upload/abcd"), &[], b"body");
        assert_eq!(answer.status, 502, "{status}");
        let text = answer.text();
        assert!(
            text.starts_with("downstream upload: ") && text.contains(&status.to_string()),
            "{text}"
        );
        assert!(!text.contains("d0wnstream"), "{text}");
    }
    // One that refuses before the end and closes: the client is told, and does not send 64 MiB for nothing.
    let early = Scripted::raw(|_, stream| {
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer);
        let _ = stream.write_all(&answer(413, &[("Connection", "close")], b""));
    });
    let gone = Gateway::start(engine, &["--to", "a=http://127.0.0.1:1"]);
    let gateway = Gateway::to(engine, &[&early], &[]);
    for gateway in [gateway, gone] {
        let head =
            format!("POST {SERVICE}/Upload/abcd HTTP/1.1\r\nHost: h\r\nContent-Length: 67108864\r\n\r\n");
        let text = gateway.raw(&[head.as_bytes(), &[0; 1000]].concat());
        assert!(
            text.starts_with("HTTP/1.1 502 ") && text.contains("\r\n\r\ndownstream upload: "),
            "{text}"
        );
        assert!(!text.contains("127.0.0.1"), "{text}");
    }
}

fn row_142_other_methods(engine: Engine) {
    let gateway = Gateway::to(engine, &[&Scripted::healthy()], &[]);
    for procedure in ["ShouldInitiateUpload", "UploadFinished"] {
        for method in ["GET", "PUT", "OPTIONS"] {
            let text = gateway.raw(bare(method, &format!("{SERVICE}/{procedure}")).as_bytes());
            assert!(
                text.starts_with("HTTP/1.1 405 ") && text.contains("\r\nAllow: POST\r\n"),
                "{text}"
            );
        }
    }
    let text = gateway.raw(bare("GET", &format!("{SERVICE}/Upload/abcd")).as_bytes());
    assert!(text.starts_with("HTTP/1.1 405 "), "{text}");
    for path in ["/Upload", "/Upload/", "/Upload/a/b", "/ListDebuginfo", "/"] {
        let request = post(&format!("{SERVICE}{path}"), &[], b"");
        let mut client = gateway.client();
        client.send(request).unwrap();
        let answer = client.receive().unwrap();
        assert_eq!(answer.status, 404, "{path}");
        assert!(headers(&answer).contains_key("content-length"), "{path}");
    }
}
