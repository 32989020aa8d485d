//! Rows 102 to 104 and 107 to 109 of WIRE.md section 9: Push over gRPC-Web.

use prost::Message as _;
use pyrotee::profile::proto::PushRequest;

use super::gateway::{Engine, Gateway, PUSH, gunzip, gzip, ms, under_both_engines};
use super::push::{good, request, series};
use super::scripted::{Act, Scripted, connect_error};
use super::support::Answer;

under_both_engines!(
    row_102_success_is_a_message_and_trailers,
    row_103_errors_are_headers,
    row_103_outcomes_of_destinations,
    row_104_the_text_variant_is_415,
    row_107_bad_frames,
    row_107_timeouts,
    row_108_compressed_frames,
    row_109_messages_are_percent_encoded,
);

const PROTO: &str = "application/grpc-web+proto";

/// A frame.
fn frame(flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&[flags], &length[..], payload].concat()
}

/// The frames of a body.
fn frames(mut body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = body.split_at_checked(5) {
        let length = u32::from_be_bytes(head[1..].try_into().expect("four bytes")) as usize;
        let (payload, rest) = rest.split_at(length);
        frames.push((head[0], payload.to_vec()));
        body = rest;
    }
    assert!(body.is_empty(), "{body:?} is left over");
    frames
}

fn send(gateway: &Gateway, content_type: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    gateway.post(PUSH, &[&[("Content-Type", content_type)], headers].concat(), body)
}

/// Asserts an error before any message (WIRE.md 3.5) and returns its text.
#[track_caller]
fn assert_error(answer: &Answer, status: u8) -> String {
    assert_eq!((answer.status, &*answer.body), (200, &b""[..]), "{answer:?}");
    let number = status.to_string();
    assert_eq!(answer.header("grpc-status"), Some(&*number), "{answer:?}");
    answer.header("grpc-message").unwrap_or_default().to_owned()
}

fn row_102_success_is_a_message_and_trailers(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let json = br#"{"series":[{"labels":[{"name":"service_name","value":"svc"}]}]}"#;
    for (turn, (content_type, echoed, body, message)) in [
        ("application/grpc-web", "application/grpc-web", good(), &b""[..]),
        (PROTO, PROTO, good(), b""),
        ("Application/GRPC-Web+Proto", PROTO, good(), b""),
        (
            "application/grpc-web+json",
            "application/grpc-web+json",
            json.to_vec(),
            b"{}",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = send(&gateway, content_type, &[("X-Grpc-Web", "1")], &frame(0, &body));
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some(echoed))
        );
        assert_eq!(answer.header("grpc-accept-encoding"), Some("gzip"));
        assert_eq!(answer.header("grpc-status"), None, "it is in the trailers");
        let expected = [(0, message.to_vec()), (0x80, b"grpc-status: 0\r\n".to_vec())];
        assert_eq!(frames(&answer.body), expected, "{content_type}");
        let received = a.newest(turn + 1);
        assert_eq!(
            received.value("content-type").as_deref(),
            Some("application/proto")
        );
        assert_eq!(PushRequest::decode(&*received.body).unwrap().series.len(), 1);
    }
    // An empty frame is an empty message, in JSON too.
    for content_type in [PROTO, "application/grpc-web+json"] {
        let answer = send(&gateway, content_type, &[], &frame(0, b""));
        assert_eq!(frames(&answer.body).len(), 2, "{content_type}");
    }
    // A trailers frame of the client's is legal and says nothing.
    let body = [frame(0, &good()), frame(0x80, b"x: y\r\n")].concat();
    let answer = send(&gateway, PROTO, &[], &body);
    assert_eq!(frames(&answer.body).len(), 2);
}

fn row_103_errors_are_headers(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (name, payload, status) in [
        ("malformed protobuf", b"\xff".to_vec(), 3),
        ("an empty label set", request(&[series(&[], &[])]), 13),
        ("a bad label", request(&[series(&[("a-b", "1")], &[])]), 3),
    ] {
        let answer = send(&gateway, PROTO, &[], &frame(0, &payload));
        let message = assert_error(&answer, status);
        assert!(!message.is_empty(), "{name}");
        assert_eq!(answer.header("content-type"), Some(PROTO), "{name}");
        assert_eq!(answer.header("grpc-encoding"), None, "{name}");
    }
    // connect-go names the coding that a message would have had.
    let accepts = ("Grpc-Accept-Encoding", "gzip");
    for (name, value, body) in [
        ("X", "y", frame(0, b"\xff")),
        ("Grpc-Timeout", "soon", frame(0, &good())),
    ] {
        let answer = send(&gateway, PROTO, &[accepts, (name, value)], &body);
        assert_error(&answer, 3);
        assert_eq!(answer.header("grpc-encoding"), Some("gzip"), "{name}");
    }
    assert!(a.received().is_empty());
}

fn row_103_outcomes_of_destinations(engine: Engine) {
    for (http, code, status) in [
        (400, "invalid_argument", 3),
        (401, "unauthenticated", 16),
        (429, "resource_exhausted", 8),
        (503, "unavailable", 14),
    ] {
        let a = Scripted::following(move |_, _| vec![Act::Send(connect_error(http, code))]);
        let gateway = Gateway::to(engine, &[&a], &["--max-retries", "1"]);
        assert_error(&send(&gateway, PROTO, &[], &frame(0, &good())), status);
    }
}

fn row_104_the_text_variant_is_415(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for content_type in ["application/grpc-web-text", "application/grpc-web-text+proto"] {
        let answer = send(&gateway, content_type, &[], b"AAAAAAA=");
        assert_eq!(
            (answer.status, answer.header("accept-post").is_some()),
            (415, true)
        );
    }
}

fn row_107_bad_frames(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let gzip_encoding = ("Grpc-Encoding", "gzip");
    let good = good();
    for (name, headers, body, status) in [
        ("a short head", &[][..], b"\x00\x00\x00".to_vec(), 3),
        ("a short message", &[], frame(0, &good)[..20].to_vec(), 3),
        ("a length of 4 GiB", &[], b"\x00\xff\xff\xff\xffx".to_vec(), 3),
        ("no message", &[], Vec::new(), 12),
        ("trailers alone", &[], frame(0x80, b""), 12),
        (
            "two messages",
            &[],
            [frame(0, &good), frame(0, &good)].concat(),
            12,
        ),
        ("undeclared compression", &[], frame(1, &gzip(&good)), 13),
        (
            "unknown encoding",
            &[("Grpc-Encoding", "br")],
            frame(0, &good),
            12,
        ),
        ("corrupt gzip", &[gzip_encoding], frame(1, b"nonsense"), 3),
        ("unknown flags", &[], frame(2, &good), 13),
    ] {
        let answer = send(&gateway, PROTO, headers, &body);
        assert_eq!(
            answer.header("grpc-status"),
            Some(&*status.to_string()),
            "{name}: {answer:?}"
        );
        assert_error(&answer, status);
    }
    assert!(a.received().is_empty());
}

fn row_107_timeouts(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (value, status) in [
        ("1", 3),
        ("x", 3),
        ("1x", 3),
        ("123456789S", 3),
        ("-1S", 3),
        ("0S", 4),
    ] {
        let answer = send(&gateway, PROTO, &[("Grpc-Timeout", value)], &frame(0, &good()));
        assert_eq!(
            answer.header("grpc-status"),
            Some(&*status.to_string()),
            "{value}: {answer:?}"
        );
    }
    assert!(a.received().is_empty());
    for (turn, value) in ["2S", "2000m", "2000000u", "99999999H"].into_iter().enumerate() {
        let answer = send(&gateway, PROTO, &[("Grpc-Timeout", value)], &frame(0, &good()));
        assert_eq!(frames(&answer.body).len(), 2, "{value}");
        let left: u64 = a
            .newest(turn + 1)
            .value("connect-timeout-ms")
            .unwrap()
            .parse()
            .unwrap();
        let most = if value.ends_with('H') { 10_000 } else { 2000 };
        assert!(left <= most && left > most / 2, "{value}: {left}");
    }
    let slow = Scripted::following(|_, _| vec![Act::Wait(ms(1500)), Act::Close]);
    let gateway = Gateway::to(engine, &[&slow], &[]);
    assert_error(
        &send(&gateway, PROTO, &[("Grpc-Timeout", "300m")], &frame(0, &good())),
        4,
    );
}

fn row_108_compressed_frames(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let zipped = frame(1, &gzip(&good()));
    for (name, headers, body) in [
        (
            "accepted",
            &[("Grpc-Accept-Encoding", "identity,gzip")][..],
            frame(0, &good()),
        ),
        ("used", &[("Grpc-Encoding", "gzip")], zipped.clone()),
        (
            "declared, not used",
            &[("Grpc-Encoding", "gzip")],
            frame(0, &good()),
        ),
    ] {
        let answer = send(&gateway, PROTO, headers, &body);
        assert_eq!(answer.header("grpc-encoding"), Some("gzip"), "{name}");
        assert_eq!(
            answer.header("content-encoding"),
            None,
            "the frames are compressed, not the body"
        );
        let frames = frames(&answer.body);
        assert_eq!((frames.len(), frames[0].0, frames[1].0), (2, 1, 0x81), "{name}");
        assert_eq!(gunzip(&frames[0].1), b"", "{name}");
        assert_eq!(gunzip(&frames[1].1), b"grpc-status: 0\r\n", "{name}");
    }
    // Content-Encoding is not gRPC's header.
    let answer = send(
        &gateway,
        PROTO,
        &[("Accept-Encoding", "gzip")],
        &frame(0, &good()),
    );
    assert_eq!(frames(&answer.body)[0].0, 0);
    for received in a.received() {
        assert_eq!(PushRequest::decode(&*received.body).unwrap().series.len(), 1);
    }
}

fn row_109_messages_are_percent_encoded(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let payload = request(&[series(&[("é%\r\nX: y", "1")], &[])]);
    let answer = send(&gateway, PROTO, &[], &frame(0, &payload));
    let message = assert_error(&answer, 3);
    assert!(
        message.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        "{message}"
    );
    assert!(message.contains("%C3%A9%25%0D%0AX: y"), "{message}");
    assert_eq!(answer.header("x"), None, "nothing breaks out of the header");
}
