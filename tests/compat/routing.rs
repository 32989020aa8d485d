//! Rows 1 to 19 of WIRE.md section 9: routes and HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use pyrotee::runtime::clock;

use super::gateway::{
    Engine, Gateway, INGEST, PUSH, assert_connect_error, assert_empty, assert_text, bare, closing_post, ms,
    percent, under_both_engines,
};
use super::scripted::Scripted;
use super::support::{Client, post};

under_both_engines!(
    row_001_ingest_answers_200_empty,
    row_002_other_methods_on_ingest_are_405,
    row_003_other_methods_on_push_are_405,
    row_004_unknown_paths_are_404,
    row_005_a_trailing_slash_is_404,
    row_006_an_unclean_path_is_redirected,
    row_007_an_encoded_path_is_accepted,
    row_008_other_procedures_are_404,
    row_009_the_data_port_has_no_other_pages,
    row_010_chunks_become_a_length,
    row_011_expect_100_continue,
    row_012_http_1_0,
    row_013_limits_of_heads,
    row_014_host_is_needed,
    row_015_doubtful_framing,
    row_016_pipelined_requests_are_answered_in_order,
    row_017_a_client_that_stops_is_dropped,
    row_018_a_truncated_body_is_400,
    row_019_idle_connections_are_closed,
    targets_in_absolute_form,
    the_alias_of_a_pyroscope_server,
);

fn row_001_ingest_answers_200_empty(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let answer = gateway.post(INGEST, &[], b"body");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.headers,
        [("content-length".to_owned(), "0".to_owned())],
        "no Content-Type and nothing else"
    );
    assert_eq!(a.only().body, b"body");
}

fn row_002_other_methods_on_ingest_are_405(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for method in ["GET", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "post", "BREW"] {
        let mut client = gateway.client();
        client.send(bare(method, INGEST)).unwrap();
        let answer = client.receive().unwrap();
        assert_empty(&answer, 405);
        assert_eq!(answer.header("allow"), None, "{method}");
        assert_eq!(answer.header("content-type"), None, "{method}");
    }
    assert!(a.received().is_empty());
}

fn row_003_other_methods_on_push_are_405(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for target in [PUSH, "/push.v1.PusherService/Other", "/push.v1.PusherService/"] {
        for method in ["GET", "PUT", "HEAD", "OPTIONS"] {
            let mut client = gateway.client();
            client.send(bare(method, target)).unwrap();
            let answer = client.receive().unwrap();
            assert_empty(&answer, 405);
            assert_eq!(answer.header("allow"), None, "{method} {target}");
        }
    }
}

fn assert_404(gateway: &Gateway, target: &str) {
    let answer = gateway.post(target, &[], b"x");
    assert_text(&answer, 404, "404 page not found\n");
}

fn row_004_unknown_paths_are_404(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for target in [
        "/",
        "/nothing",
        "/ingest2",
        "/INGEST",
        "/nothing?name=app",
        "/push",
    ] {
        assert_404(&gateway, target);
    }
    // The answer leaves the connection usable: the body was read and thrown away.
    let mut client = gateway.client();
    assert_eq!(
        client.post("/nothing", &[], &[b'x'; 100_000]).unwrap().status,
        404
    );
    assert_eq!(client.post(INGEST, &[], b"x").unwrap().status, 200);
    let mut client = gateway.client();
    client
        .send("GET /nothing HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    assert_text(&client.receive().unwrap(), 404, "404 page not found\n");
}

fn row_005_a_trailing_slash_is_404(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_404(&gateway, "/ingest/?name=app");
    assert_404(&gateway, "/ingest/");
}

fn row_006_an_unclean_path_is_redirected(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (target, location) in [
        ("//ingest?name=app&x=%7B", "/ingest?name=app&x=%7B"),
        ("/./ingest?name=app", "/ingest?name=app"),
        ("/a/../ingest", "/ingest"),
        ("//ingest", "/ingest"),
        ("/push.v1.PusherService//Push", PUSH),
    ] {
        for method in ["POST", "GET"] {
            let mut client = gateway.client();
            client.send(bare(method, target)).unwrap();
            let answer = client.receive().unwrap();
            assert_empty(&answer, 301);
            assert_eq!(answer.header("location"), Some(location), "{method} {target}");
        }
    }
    assert!(a.received().is_empty());
}

fn row_007_an_encoded_path_is_accepted(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let everything = format!("/{}?name=app", percent(b"ingest"));
    for (turn, target) in ["/ing%65st?name=app", "/%69ngest?name=app", &everything]
        .into_iter()
        .enumerate()
    {
        assert_eq!(gateway.post(target, &[], b"x").status, 200, "{target}");
        assert_eq!(a.newest(turn + 1).path(), "/ingest", "{target}");
    }
    assert_eq!(gateway.post("/ing%6?name=app", &[], b"x").status, 400);
}

fn row_008_other_procedures_are_404(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for target in [
        "/push.v1.PusherService/Pull",
        "/push.v1.PusherService/",
        "/push.v1.PusherService",
        "/push.v1.PusherService/Push/",
        "/push.v1.PusherService/push",
    ] {
        assert_404(&gateway, target);
    }
}

fn row_009_the_data_port_has_no_other_pages(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for target in [
        "/metrics",
        "/ready",
        "/-/healthy",
        "/-/config",
        "/debug/pprof/",
        "/",
    ] {
        let mut client = gateway.client();
        client.send(bare("GET", target)).unwrap();
        assert_text(&client.receive().unwrap(), 404, "404 page not found\n");
    }
}

fn row_010_chunks_become_a_length(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let large = vec![b'z'; 100_000];
    let mut large_chunks = format!("{:x}\r\n", large.len()).into_bytes();
    large_chunks.extend_from_slice(&large);
    large_chunks.extend_from_slice(b"\r\n0\r\n\r\n");
    for (turn, (name, chunks, expected)) in [
        ("one", &b"4\r\nbody\r\n0\r\n\r\n"[..], &b"body"[..]),
        ("several", b"1\r\nb\r\n2\r\nod\r\n1\r\ny\r\n0\r\n\r\n", b"body"),
        ("extensions", b"4;a=b;c=\"d\"\r\nbody\r\n0;x\r\n\r\n", b"body"),
        ("trailers", b"4\r\nbody\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n", b"body"),
        (
            "upper and lower hex",
            b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
            b"01234567890123456789",
        ),
        ("leading zeros", b"0004\r\nbody\r\n000\r\n\r\n", b"body"),
        ("nothing", b"0\r\n\r\n", b""),
        ("large", &large_chunks, &large),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = gateway.client();
        let head = format!("POST {INGEST} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send([head.as_bytes(), chunks].concat()).unwrap();
        assert_eq!(client.receive().unwrap().status, 200, "{name}");
        let received = a.newest(turn + 1);
        assert_eq!(received.body, expected, "{name}");
        assert_eq!(
            received.value("content-length"),
            Some(expected.len().to_string()),
            "{name}"
        );
        for absent in ["transfer-encoding", "trailer", "x-t"] {
            assert_eq!(received.value(absent), None, "{name}: {absent}");
        }
    }
}

fn row_011_expect_100_continue(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let head = |target: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    };
    let mut client = gateway.client();
    client.send(head(INGEST)).unwrap();
    assert_eq!(client.receive().unwrap().status, 100);
    client.send("body").unwrap();
    assert_empty(&client.receive().unwrap(), 200);
    assert_eq!(a.only().body, b"body");
    assert_eq!(a.only().value("expect"), None, "it concerns one hop only");
    // A refusal needs no body, so none is asked for.
    let mut client = gateway.client();
    client.send(head("/nothing")).unwrap();
    assert_eq!(client.receive().unwrap().status, 404);
    let answer = gateway.post(INGEST, &[("Expect", "200-maybe")], b"body");
    assert_eq!(answer.status, 417);
}

fn row_012_http_1_0(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let answer = gateway.raw(format!("POST {INGEST} HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(a.only().body, b"body");
    let mut client = gateway.client();
    for _ in 0..2 {
        let kept =
            format!("POST {INGEST} HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nbody");
        client.send(kept).unwrap();
        let answer = client.receive().unwrap();
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some("keep-alive"))
        );
    }
}

fn row_013_limits_of_heads(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let value = "v".repeat(500_000);
    let answer = gateway.post(&format!("{INGEST}&q={value}"), &[], b"body");
    assert_eq!(answer.status, 200, "a query of 500 kB");
    assert_eq!(a.only().parameters("q"), [value]);
    for (name, request) in [
        (
            "a query beyond 1 MiB",
            closing_post(&format!("{INGEST}&q={}", "v".repeat(1_100_000)), &[], b""),
        ),
        (
            "fields beyond 1 MiB",
            closing_post(INGEST, &[("X-Long", &"v".repeat(1_200_000))], b""),
        ),
        (
            "many fields beyond 1 MiB",
            closing_post(INGEST, &vec![("X-Many", &*"v".repeat(1000)); 1200], b""),
        ),
    ] {
        let answer = gateway.raw(&request);
        assert!(
            answer.starts_with("HTTP/1.1 431 ") || answer.is_empty(),
            "{name}: {answer}"
        );
        assert!(!answer.is_empty(), "{name}: the refusal is heard");
    }
    assert_eq!(a.received().len(), 1);
}

fn row_014_host_is_needed(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let request = format!("POST {INGEST} HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
    let answer = gateway.raw(request.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(a.received().is_empty());
}

fn row_015_doubtful_framing(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (name, fields, status) in [
        ("two lengths", "Content-Length: 4\r\nContent-Length: 5\r\n", 400),
        ("two lengths in one field", "Content-Length: 4, 5\r\n", 400),
        ("length that is no number", "Content-Length: 4x\r\n", 400),
        ("signed length", "Content-Length: +4\r\n", 400),
        (
            "length and chunked",
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
            400,
        ),
        ("gzip coding", "Transfer-Encoding: gzip\r\n", 501),
        ("gzip and chunked", "Transfer-Encoding: gzip, chunked\r\n", 501),
        // Alloy says 501; it is an old smuggling trick and refused as the others are.
        ("identity", "Transfer-Encoding: identity\r\n", 400),
        (
            "two equal lengths",
            "Content-Length: 4\r\nContent-Length: 4\r\n",
            400,
        ),
    ] {
        let request = format!("POST {INGEST} HTTP/1.1\r\nHost: test\r\n{fields}\r\nbody");
        let answer = gateway.raw(request.as_bytes());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{name}: {answer}"
        );
    }
    let versions = [("HTTP/2.0", 505), ("HTTP/1.2", 505), ("HTTP/x", 400)];
    for (version, status) in versions {
        let answer = gateway.raw(format!("POST {INGEST} {version}\r\nHost: test\r\n\r\n").as_bytes());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{version}: {answer}"
        );
    }
    assert!(a.received().is_empty());
}

fn row_016_pipelined_requests_are_answered_in_order(engine: Engine) {
    let a = Scripted::answering(&[200, 400, 200]);
    let gateway = Gateway::to(engine, &[&a], &[]);
    let mut client = gateway.client();
    let all = [
        post(INGEST, &[], b"first"),
        post(INGEST, &[], b"second"),
        post("/nothing", &[], b"third"),
        post(INGEST, &[], b"fourth"),
    ];
    client.send(all.concat()).unwrap();
    let statuses: Vec<u16> = (0..4).map(|_| client.receive().unwrap().status).collect();
    assert_eq!(statuses, [200, 400, 404, 200]);
    let bodies: Vec<_> = a.received().into_iter().map(|one| one.body).collect();
    assert_eq!(bodies, [&b"first"[..], b"second", b"fourth"]);
}

fn row_017_a_client_that_stops_is_dropped(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &["--read-timeout", "300ms"]);
    for (name, bytes) in [
        (
            "in the body",
            format!("POST {INGEST} HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nbody"),
        ),
        (
            "in a chunk",
            format!("POST {INGEST} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nbody"),
        ),
        ("in the head", format!("POST {INGEST} HTTP/1.1\r\nHost: te")),
        // Its answer does not depend on the body, but the connection does.
        (
            "in the body of a refused request",
            "POST /nothing HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nbody".to_owned(),
        ),
    ] {
        let started = clock::now();
        let mut stream = TcpStream::connect(gateway.address).unwrap();
        stream.set_read_timeout(Some(ms(10_000))).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .unwrap_or_else(|error| panic!("{name}: still open: {error}"));
        assert!(
            clock::now().since(started) >= ms(290),
            "{name}: not before the timeout"
        );
        let status = if name.contains("refused") { 404 } else { 408 };
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{name}: {answer}"
        );
    }
    assert!(a.received().is_empty());
}

/// Alloy answers 500 without a body; ours is (D) a 400.
fn row_018_a_truncated_body_is_400(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for framing in [
        "Content-Length: 9\r\n\r\nbody",
        "Transfer-Encoding: chunked\r\n\r\n9\r\nbody",
    ] {
        let mut client = gateway.client();
        client
            .send(format!("POST {INGEST} HTTP/1.1\r\nHost: test\r\n{framing}"))
            .unwrap();
        client.finish();
        let answer = client.receive().unwrap();
        assert_eq!((answer.status, answer.header("connection")), (400, Some("close")));
    }
    // On Push the error speaks Connect (WIRE.md 3.2).
    let mut client = gateway.client();
    client
        .send(format!(
            "POST {PUSH} HTTP/1.1\r\nHost: test\r\nContent-Type: application/proto\r\nContent-Length: 9\r\n\r\nbody"
        ))
        .unwrap();
    client.finish();
    assert_connect_error(&client.receive().unwrap(), 499, "canceled");
    assert!(a.received().is_empty(), "nothing of it is forwarded");
}

fn row_019_idle_connections_are_closed(engine: Engine) {
    let a = Scripted::healthy();
    // It has asked by then, on a busy machine too; the default is far away.
    let gateway = Gateway::to(engine, &[&a], &["--idle-timeout", "2s"]);
    let mut silent = gateway.client();
    let mut used = gateway.client();
    assert_eq!(used.post(INGEST, &[], b"body").unwrap().status, 200);
    let started = clock::now();
    for client in [&mut used, &mut silent] {
        assert_eq!(
            client.receive_all().unwrap(),
            b"",
            "closed in order, without a word"
        );
    }
    assert!(clock::now().since(started) < ms(10_000));
    let help = super::support::run(&["run", "--help"]).stdout;
    let (_, idle) = help.split_once("--idle-timeout").expect("the flag exists");
    let default = idle.split("[default: ").nth(1).expect("it has a default");
    assert!(default.starts_with("120s]"), "Alloy's default: {default}");
}

/// WIRE.md 5.2: "Absolute-form target works".
fn targets_in_absolute_form(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_eq!(
        gateway
            .post("http://somewhere:99/ingest?name=app", &[], b"x")
            .status,
        200
    );
    assert_eq!(a.only().target(), "/ingest?name=app%7Bservice_name%3Dapp%7D");
}

/// WIRE.md 1.1: a Pyroscope server serves it, Alloy does not; SDKs that push there find us a server.
fn the_alias_of_a_pyroscope_server(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let mut client = Client::connect(gateway.address);
    assert_eq!(
        client
            .post("/pyroscope/ingest?name=app", &[], b"x")
            .unwrap()
            .status,
        200
    );
    assert_eq!(a.only().path(), "/ingest");
}
