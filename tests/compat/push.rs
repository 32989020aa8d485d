//! Rows 65 to 83 and 87 to 101 of WIRE.md section 9: Push over Connect.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use pyrotee::outbound::head::USER_AGENT;
use pyrotee::profile::connect::ACCEPT_POST;
use pyrotee::profile::proto::{LabelPair, ProfileAnnotation, PushRequest, RawProfileSeries, RawSample};

use super::gateway::{
    Engine, Gateway, PUSH, assert_connect_error, assert_empty, gunzip, gzip, headers, under_both_engines,
};
use super::scripted::{Act, Latch, Received, Scripted, answer, connect_error};
use super::support::Answer;

under_both_engines!(
    row_065_proto_answers_an_empty_200,
    row_066_json_answers_an_empty_object,
    rows_067_068_content_types_in_any_case,
    rows_069_070_other_content_types_are_415,
    row_071_connect_protocol_version,
    rows_072_073_connect_timeout,
    row_074_gzip_requests_are_accepted,
    row_075_unknown_encodings_are_501,
    row_076_corrupt_gzip_is_400,
    rows_077_078_gzip_answers,
    rows_079_080_errors_and_their_headers,
    row_081_malformed_protobuf_is_400,
    row_082_unknown_fields_are_ignored,
    row_083_empty_bodies,
    row_087_a_request_without_series_is_success,
    row_088_one_push_for_each_destination,
    row_089_samples_arrive_as_they_are,
    row_090_annotations_are_not_forwarded,
    rows_091_to_093_service_name_and_app_name,
    row_094_an_empty_label_set_is_internal,
    row_095_a_bad_label_name_is_invalid_argument,
    row_096_reserved_labels_are_removed,
    row_097_the_last_duplicate_wins,
    row_098_codes_are_passed_through,
    row_099_good_series_go_on,
    row_100_outgoing_headers,
    row_101_a_short_client_timeout_shrinks_ours,
    external_labels_win,
    the_example_of_the_contract,
);

/// A series with labels and one sample for each body.
pub fn series(labels: &[(&str, &str)], samples: &[&[u8]]) -> RawProfileSeries {
    let label = |&(name, value): &(&str, &str)| LabelPair {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let sample = |(index, bytes): (usize, &&[u8])| RawSample {
        raw_profile: Bytes::copy_from_slice(bytes),
        id: format!("id-{index}"),
    };
    RawProfileSeries {
        labels: labels.iter().map(label).collect(),
        samples: samples.iter().enumerate().map(sample).collect(),
        annotations: Vec::new(),
    }
}

/// A request of these series, encoded.
pub fn request(series: &[RawProfileSeries]) -> Vec<u8> {
    let series = series.to_vec();
    PushRequest { series }.encode_to_vec()
}

/// A small good request.
pub fn good() -> Vec<u8> {
    request(&[series(
        &[("service_name", "svc"), ("__name__", "process_cpu")],
        &[b"pprof"],
    )])
}

/// The labels of the only series of an outgoing request, in order.
fn labels_of(received: &Received) -> Vec<(String, String)> {
    let request = PushRequest::decode(&*received.body).expect("what goes out is protobuf");
    assert_eq!(request.series.len(), 1);
    let labels = request.series[0].labels.iter();
    labels
        .map(|label| (label.name.clone(), label.value.clone()))
        .collect()
}

/// Asserts the labels that arrive for the labels sent.
fn assert_labels(gateway: &Gateway, a: &Scripted, sent: &[(&str, &str)], expected: &[(&str, &str)]) {
    let before = a.received().len();
    let answer = gateway.push(&request(&[series(sent, &[b"x"])]));
    assert_eq!(answer.status, 200, "{sent:?}: {answer:?}");
    let labels = labels_of(&a.newest(before + 1));
    let labels: Vec<_> = labels.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(labels, expected, "{sent:?}");
}

fn row_065_proto_answers_an_empty_200(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let answer = gateway.push(&good());
    assert_empty(&answer, 200);
    let expected = BTreeMap::from([
        ("accept-encoding", "gzip"),
        ("content-length", "0"),
        ("content-type", "application/proto"),
    ]);
    assert_eq!(headers(&answer), expected);
}

fn json(gateway: &Gateway, headers: &[(&str, &str)]) -> Answer {
    let all = [&[("Content-Type", "application/json")], headers].concat();
    gateway.post(
        PUSH,
        &all,
        br#"{"series":[{"labels":[{"name":"a","value":"b"}]}]}"#,
    )
}

fn row_066_json_answers_an_empty_object(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let answer = json(&gateway, &[]);
    assert_eq!((answer.status, &*answer.text()), (200, "{}"));
    let expected = BTreeMap::from([
        ("accept-encoding", "gzip"),
        ("content-length", "2"),
        ("content-type", "application/json"),
    ]);
    assert_eq!(headers(&answer), expected);
    assert_eq!(
        a.only().value("content-type").as_deref(),
        Some("application/proto")
    );
}

fn rows_067_068_content_types_in_any_case(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (sent, echoed) in [
        (
            "application/json; charset=UTF-8",
            "application/json; charset=utf-8",
        ),
        (
            "application/json;charset=utf-8",
            "application/json; charset=utf-8",
        ),
        (
            "Application/JSON; Charset=Utf-8",
            "application/json; charset=utf-8",
        ),
        ("application/json", "application/json"),
        ("APPLICATION/PROTO", "application/proto"),
        ("application/proto", "application/proto"),
    ] {
        let body: &[u8] = if echoed.contains("json") { b"{}" } else { b"" };
        let answer = gateway.post(PUSH, &[("Content-Type", sent)], body);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some(echoed)),
            "{sent}"
        );
    }
}

fn rows_069_070_other_content_types_are_415(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (row, content_type) in [
        (69, Some("application/proto; charset=utf-8")),
        (69, Some("application/json; charset=latin1")),
        (69, Some("application/json; charset=utf-8; x=y")),
        (70, None),
        (70, Some("")),
        (70, Some("text/plain")),
        (70, Some("application/x-protobuf")),
        (70, Some("application/connect+proto")),
        (70, Some("application/octet-stream")),
        // Over HTTP/1.1; Alloy answers it, no gRPC client can read that (docs/compatibility.md).
        (70, Some("application/grpc")),
        (70, Some("application/grpc+proto")),
    ] {
        let fields: Vec<_> = content_type
            .map(|value| ("Content-Type", value))
            .into_iter()
            .collect();
        let answer = gateway.post(PUSH, &fields, b"x");
        assert_empty(&answer, 415);
        let expected = BTreeMap::from([("accept-post", ACCEPT_POST), ("content-length", "0")]);
        assert_eq!(headers(&answer), expected, "row {row}: {content_type:?}");
    }
}

/// A good Push with one more header.
fn with(gateway: &Gateway, name: &str, value: &str) -> Answer {
    gateway.post(
        PUSH,
        &[("Content-Type", "application/proto"), (name, value)],
        &good(),
    )
}

fn row_071_connect_protocol_version(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_eq!(with(&gateway, "Connect-Protocol-Version", "1").status, 200);
    for value in ["2", "1.0", "x"] {
        let answer = with(&gateway, "Connect-Protocol-Version", value);
        assert_connect_error(&answer, 400, "invalid_argument");
    }
}

fn rows_072_073_connect_timeout(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for value in ["5000", "9999999999", "0000000500"] {
        assert_eq!(with(&gateway, "Connect-Timeout-Ms", value).status, 200, "{value}");
    }
    for value in ["abc", "1.5", "10s", "12345678901", "00000000001", "1_0"] {
        let answer = with(&gateway, "Connect-Timeout-Ms", value);
        assert_connect_error(&answer, 400, "invalid_argument");
    }
    for value in ["0", "-1", "00"] {
        let answer = with(&gateway, "Connect-Timeout-Ms", value);
        assert_connect_error(&answer, 504, "deadline_exceeded");
    }
    assert_eq!(a.received().len(), 3);
}

fn row_074_gzip_requests_are_accepted(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let plain = request(&[series(&[("service_name", "svc")], &[&[7; 100_000], b"x"])]);
    let zipped = gzip(&plain);
    let (first, second) = zipped.split_at(zipped.len() / 2);
    assert!(!first.is_empty() && !second.is_empty());
    let two_members = [gzip(&plain[..9]), gzip(&plain[9..])].concat();
    for (turn, body) in [&zipped, &two_members].into_iter().enumerate() {
        let answer = gateway.post(
            PUSH,
            &[
                ("Content-Type", "application/proto"),
                ("Content-Encoding", "gzip"),
            ],
            body,
        );
        assert_eq!(answer.status, 200);
        let received = a.newest(turn + 1);
        assert!(
            received.values("content-encoding").is_empty(),
            "never compressed outbound"
        );
        let request = PushRequest::decode(&*received.body).unwrap();
        assert!(request.series[0].samples[0].raw_profile == [7; 100_000][..]);
    }
    assert_eq!(with(&gateway, "Content-Encoding", "identity").status, 200);
    let answer = gateway.post(
        PUSH,
        &[
            ("Content-Type", "application/proto"),
            ("Content-Encoding", "gzip"),
        ],
        b"",
    );
    assert_eq!(answer.status, 200, "nothing, gzipped, is nothing");
}

fn row_075_unknown_encodings_are_501(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for value in ["zstd", "br", "GZIP", "gzip, gzip", "deflate", "x-gzip"] {
        let answer = with(&gateway, "Content-Encoding", value);
        let message = assert_connect_error(&answer, 501, "unimplemented");
        assert!(message.contains("gzip"), "it names what is supported: {message}");
    }
    assert!(a.received().is_empty());
}

fn row_076_corrupt_gzip_is_400(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let zipped = gzip(&good());
    let mut bad_sum = zipped.clone();
    let at = bad_sum.len() - 6;
    bad_sum[at] ^= 1;
    for (name, body) in [
        ("no gzip", &b"nonsense"[..]),
        ("cut short", &zipped[..zipped.len() - 1]),
        ("its head alone", &zipped[..10]),
        ("one byte", &zipped[..1]),
        ("a wrong checksum", &bad_sum),
        ("rubbish behind it", &[&zipped[..], b"rubbish"].concat()),
    ] {
        let fields = [
            ("Content-Type", "application/proto"),
            ("Content-Encoding", "gzip"),
        ];
        let answer = gateway.post(PUSH, &fields, body);
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        assert_connect_error(&answer, 400, "invalid_argument");
    }
    assert!(a.received().is_empty());
}

fn rows_077_078_gzip_answers(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let zipped = gzip(&good());
    for (name, fields, body, compressed) in [
        ("accepted", &[("Accept-Encoding", "gzip")][..], good(), true),
        (
            "among others",
            &[("Accept-Encoding", "br, gzip,zstd")],
            good(),
            true,
        ),
        ("by quality", &[("Accept-Encoding", "gzip;q=1.0")], good(), false),
        ("identity", &[("Accept-Encoding", "identity")], good(), false),
        (
            "gzip request",
            &[("Content-Encoding", "gzip")],
            zipped.clone(),
            true,
        ),
        (
            "gzip request, identity wanted",
            &[("Content-Encoding", "gzip"), ("Accept-Encoding", "identity")],
            zipped,
            true,
        ),
    ] {
        let fields = [&[("Content-Type", "application/proto")], fields].concat();
        let answer = gateway.post(PUSH, &fields, &body);
        assert_eq!(answer.status, 200, "{name}");
        assert_eq!(
            answer.header("content-encoding"),
            compressed.then_some("gzip"),
            "{name}"
        );
        if compressed {
            let bytes = "1f8b08000000000000ff010000ffff0000000000000000";
            let hex: String = answer.body.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, bytes, "{name}: the 23 bytes of connect-go");
            assert_eq!(gunzip(&answer.body), b"");
        } else {
            assert_eq!(answer.body, b"", "{name}");
        }
    }
    let answer = json(&gateway, &[("Accept-Encoding", "gzip")]);
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    assert_eq!(gunzip(&answer.body), b"{}");
}

fn rows_079_080_errors_and_their_headers(engine: Engine) {
    let a = Scripted::answering(&[500]);
    let gateway = Gateway::to(engine, &[&a], &["--max-retries", "1"]);
    let accepting = [("Accept-Encoding", "gzip"), ("Content-Type", "application/proto")];
    for (name, fields, body, status, code) in [
        ("malformed", &[][..], &b"\xff"[..], 400, "invalid_argument"),
        (
            "version",
            &[("Connect-Protocol-Version", "9")],
            b"",
            400,
            "invalid_argument",
        ),
        (
            "encoding",
            &[("Content-Encoding", "br")],
            b"",
            501,
            "unimplemented",
        ),
        ("labels", &[], b"\x0a\x00", 500, "internal"),
    ] {
        let answer = gateway.post(PUSH, &[&accepting, fields].concat(), body);
        assert_eq!(answer.status, status, "{name}");
        let message = assert_connect_error(&answer, status, code);
        assert!(!message.is_empty(), "{name}");
        let error = answer.json();
        let keys: Vec<_> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["code", "message"], "{name}");
    }
    // What a client sends comes back escaped as Go escapes it.
    let answer = gateway.push(&request(&[series(&[("<&>", "v")], &[])]));
    let text = answer.text();
    assert!(
        text.contains(r"\u003c\u0026\u003e") && !text.contains('<'),
        "{text}"
    );
}

fn row_081_malformed_protobuf_is_400(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let good = good();
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("a field without its length".into(), b"\x0a".to_vec()),
        ("a length beyond the end".into(), b"\x0a\x7f".to_vec()),
        ("an endless varint".into(), vec![0xff; 20]),
        ("field number 0".into(), b"\x02\x00".to_vec()),
        ("wire type 7".into(), b"\x0f\x00".to_vec()),
        ("an end without a start".into(), b"\x0c".to_vec()),
        (
            "invalid UTF-8 in a value".into(),
            b"\x0a\x08\x0a\x06\x0a\x01a\x12\x01\xff".to_vec(),
        ),
        (
            "invalid UTF-8 in a name".into(),
            b"\x0a\x08\x0a\x06\x0a\x01\xc0\x12\x01b".to_vec(),
        ),
        (
            "invalid UTF-8 in an ID".into(),
            b"\x0a\x05\x12\x03\x12\x01\xff".to_vec(),
        ),
        ("text".into(), b"{\"series\":[]}".to_vec()),
    ];
    // A message cut anywhere but between two fields of the outermost message.
    cases.extend((1..good.len()).map(|end| (format!("cut at {end}"), good[..end].to_vec())));
    let mut client = gateway.client();
    for (name, body) in cases {
        let answer = client
            .post(PUSH, &[("Content-Type", "application/proto")], &body)
            .unwrap();
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        assert_connect_error(&answer, 400, "invalid_argument");
    }
    assert!(a.received().is_empty());
}

fn row_082_unknown_fields_are_ignored(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    // Field 15 as varint, 64 bits, bytes, group and 32 bits, in every message.
    let unknown: &[u8] =
        b"\x78\x96\x01\x79\x01\x02\x03\x04\x05\x06\x07\x08\x7a\x02hi\x7b\x08\x01\x7c\x7d\x01\x02\x03\x04";
    let message = |field: u8, content: &[u8]| {
        let bytes = [unknown, content, unknown].concat();
        let mut out = vec![field << 3 | 2];
        prost::encode_length_delimiter(bytes.len(), &mut out).expect("a Vec takes everything");
        [out, bytes].concat()
    };
    let label = message(1, b"\x0a\x03env\x12\x04prod");
    let sample = message(2, b"\x0a\x05pprof\x12\x01i");
    let body = [unknown, &message(1, &[label, sample].concat()), unknown].concat();
    assert_eq!(gateway.push(&body).status, 200);
    let request = PushRequest::decode(&*a.only().body).unwrap();
    assert_eq!(request.series.len(), 1);
    assert_eq!(request.series[0].labels.len(), 1);
    let sample = &request.series[0].samples[0];
    assert_eq!((&*sample.raw_profile, &*sample.id), (&b"pprof"[..], "i"));
}

fn row_083_empty_bodies(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_empty(&gateway.push(b""), 200);
    let answer = gateway.post(PUSH, &[("Content-Type", "application/json")], b"");
    assert_connect_error(&answer, 400, "invalid_argument");
    assert!(a.received().is_empty(), "no series, no request");
}

/// Row 87 (zero receivers) cannot occur: there is always a destination. Without series nothing is sent either way.
fn row_087_a_request_without_series_is_success(engine: Engine) {
    let a = Scripted::answering(&[400]);
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_empty(&gateway.push(b""), 200);
    assert_eq!(
        gateway
            .post(PUSH, &[("Content-Type", "application/json")], b"{}")
            .status,
        200
    );
    assert!(a.received().is_empty());
}

/// Alloy sends N x M requests, one series each; ours is (D) one request with all series.
fn row_088_one_push_for_each_destination(engine: Engine) {
    let (a, b) = (Scripted::healthy(), Scripted::healthy());
    let gateway = Gateway::to(engine, &[&a, &b], &[]);
    let three = [
        series(&[("service_name", "one")], &[b"1"]),
        series(&[("service_name", "two")], &[]),
        series(&[("service_name", "three")], &[b"3", b"33"]),
    ];
    assert_eq!(gateway.push(&request(&three)).status, 200);
    for destination in [a, b] {
        let request = PushRequest::decode(&*destination.only().body).unwrap();
        let services: Vec<_> = request
            .series
            .iter()
            .map(|one| one.labels[0].value.clone())
            .collect();
        let samples: Vec<_> = request.series.iter().map(|one| one.samples.len()).collect();
        assert_eq!(services, ["one", "two", "three"], "also the one without samples");
        assert_eq!(samples, [1, 0, 2]);
    }
}

fn row_089_samples_arrive_as_they_are(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let large: Vec<u8> = (0..700_000_u32).map(|at| (at % 251) as u8).collect();
    let mut one = series(&[("zz", "1"), ("service_name", "svc"), ("Aa", "2")], &[]);
    for (index, bytes) in [&large[..], b"", b"\x00\xff", &large[..100_000]]
        .into_iter()
        .enumerate()
    {
        one.samples.push(RawSample {
            raw_profile: Bytes::copy_from_slice(bytes),
            id: format!("0000-{index}-é"),
        });
    }
    assert_eq!(gateway.push(&request(&[one.clone()])).status, 200);
    let received = a.only();
    let request = PushRequest::decode(&*received.body).unwrap();
    assert!(
        request.series[0].samples == one.samples,
        "same order, ids and bytes"
    );
    let names: Vec<_> = labels_of(&received).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["Aa", "service_name", "zz"]);
    assert_eq!(
        received.body,
        request.encode_to_vec(),
        "as Go and prost would encode it"
    );
}

fn row_090_annotations_are_not_forwarded(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let mut one = series(&[("service_name", "svc")], &[b"x"]);
    one.annotations.push(ProfileAnnotation {
        key: "k".into(),
        value: "v".into(),
    });
    assert_eq!(gateway.push(&request(&[one])).status, 200);
    assert!(
        PushRequest::decode(&*a.only().body).unwrap().series[0]
            .annotations
            .is_empty()
    );
}

fn rows_091_to_093_service_name_and_app_name(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (sent, expected) in [
        // 91
        (
            &[("__name__", "cpu")][..],
            &[("__name__", "cpu"), ("service_name", "cpu")][..],
        ),
        (
            &[("__name__", "cpu"), ("service_name", "svc")],
            &[("__name__", "cpu"), ("app_name", "cpu"), ("service_name", "svc")],
        ),
        (
            &[("app_name", "mine"), ("service_name", "svc"), ("__name__", "cpu")],
            &[("__name__", "cpu"), ("app_name", "cpu"), ("service_name", "svc")],
        ),
        (
            &[("app_name", "mine"), ("__name__", "cpu")],
            &[("__name__", "cpu"), ("app_name", "mine"), ("service_name", "cpu")],
        ),
        // An empty value deletes, so it counts as absent (WIRE.md 2.3).
        (
            &[("service_name", ""), ("__name__", "cpu")],
            &[("__name__", "cpu"), ("service_name", "cpu")],
        ),
        // 92
        (
            &[("app_name", "mine"), ("service_name", "svc")],
            &[("service_name", "svc")],
        ),
        // 93
        (&[("env", "prod")], &[("env", "prod")]),
        (&[("app_name", "mine")], &[("app_name", "mine")]),
        (&[("env", "prod"), ("__name__", "")], &[("env", "prod")]),
    ] {
        assert_labels(&gateway, &a, sent, expected);
    }
}

fn row_094_an_empty_label_set_is_internal(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for labels in [&[][..], &[("env", "")], &[("a", "1"), ("a", "")]] {
        let answer = gateway.push(&request(&[series(labels, &[b"x"])]));
        let message = assert_connect_error(&answer, 500, "internal");
        assert!(message.contains("service name is required"), "{message}");
    }
    assert!(a.received().is_empty());
}

/// Alloy answers internal, which the next hop retries; ours is (D) invalid_argument.
fn row_095_a_bad_label_name_is_invalid_argument(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for name in ["a-b", "a/b", "a b", "é", "", "__a-b__", "a{", "a:b"] {
        let answer = gateway.push(&request(&[series(&[("x", "1"), (name, "v")], &[b"x"])]));
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        assert_connect_error(&answer, 400, "invalid_argument");
    }
    assert!(a.received().is_empty());
}

fn row_096_reserved_labels_are_removed(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let sent = [
        ("__session_id__", "s"),
        ("__name__", "cpu"),
        ("__delta__", "false"),
        ("__", "x"),
        ("__x", "y"),
        ("_x", "kept"),
        ("service_name", "svc"),
    ];
    let expected = [
        ("__delta__", "false"),
        ("__name__", "cpu"),
        ("_x", "kept"),
        ("app_name", "cpu"),
        ("service_name", "svc"),
    ];
    assert_labels(&gateway, &a, &sent, &expected);
}

fn row_097_the_last_duplicate_wins(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_labels(
        &gateway,
        &a,
        &[("a", "1"), ("b", "x"), ("a", "2")],
        &[("a", "2"), ("b", "x")],
    );
    assert_labels(&gateway, &a, &[("a", "1"), ("b", "x"), ("a", "")], &[("b", "x")]);
    assert_labels(
        &gateway,
        &a,
        &[("a", ""), ("b", "x"), ("a", "3")],
        &[("a", "3"), ("b", "x")],
    );
}

fn external_labels_win(engine: Engine) {
    let a = Scripted::healthy();
    let flags = [
        "--external-label",
        "env=prod",
        "--external-label",
        "zone=",
        "--external-label",
        "__kept__=1",
    ];
    let gateway = Gateway::to(engine, &[&a], &flags);
    // The filter of reserved names runs before external labels are added (WIRE.md 2.4).
    assert_labels(
        &gateway,
        &a,
        &[("zone", "z"), ("env", "dev"), ("service_name", "svc")],
        &[("__kept__", "1"), ("env", "prod"), ("service_name", "svc")],
    );
}

/// Alloy answers internal/500 to every failure; ours (D) passes the destination's code on.
fn row_098_codes_are_passed_through(engine: Engine) {
    for (status, code) in [
        (400, "invalid_argument"),
        (401, "unauthenticated"),
        (403, "permission_denied"),
        (404, "not_found"),
        (409, "already_exists"),
        (400, "failed_precondition"),
        (400, "out_of_range"),
        (501, "unimplemented"),
        (499, "canceled"),
        (429, "resource_exhausted"),
        (503, "unavailable"),
        (500, "internal"),
        (500, "unknown"),
        (500, "data_loss"),
        (409, "aborted"),
        (504, "deadline_exceeded"),
    ] {
        let a = Scripted::following(move |_, _| vec![Act::Send(connect_error(status, code))]);
        let gateway = Gateway::to(engine, &[&a], &["--max-retries", "1"]);
        let answer = gateway.push(&good());
        let message = assert_connect_error(&answer, status, code);
        assert!(
            !message.contains("scripted") && !message.contains("127.0.0.1"),
            "{message}"
        );
    }
    // A plain server's status is read as a Connect client reads it (WIRE.md 3.3).
    for (status, expected_status, code) in [
        (400, 500, "internal"),
        (401, 401, "unauthenticated"),
        (403, 403, "permission_denied"),
        (404, 501, "unimplemented"),
        (413, 500, "unknown"),
        (429, 503, "unavailable"),
        (503, 503, "unavailable"),
        (500, 500, "unknown"),
    ] {
        let a = Scripted::answering(&[status]);
        let gateway = Gateway::to(engine, &[&a], &["--max-retries", "1"]);
        assert_connect_error(&gateway.push(&good()), expected_status, code);
    }
    // No answer at all.
    let a = Scripted::following(|_, _| vec![Act::Reset]);
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_connect_error(&gateway.push(&good()), 503, "unavailable");
}

fn row_099_good_series_go_on(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let mixed = [
        series(&[("service_name", "one")], &[b"1"]),
        series(&[("bad-name", "x")], &[b"2"]),
        series(&[], &[b"3"]),
        series(&[("service_name", "four")], &[b"4"]),
    ];
    let answer = gateway.push(&request(&mixed));
    let message = assert_connect_error(&answer, 400, "invalid_argument");
    assert!(
        message.contains("series 1") && message.contains('2'),
        "which, and how many: {message}"
    );
    let request = PushRequest::decode(&*a.only().body).unwrap();
    let samples: Vec<_> = request
        .series
        .iter()
        .map(|one| one.samples[0].raw_profile.clone())
        .collect();
    assert_eq!(samples, [&b"1"[..], b"4"]);
}

fn row_100_outgoing_headers(engine: Engine) {
    let a = Scripted::healthy();
    let to = format!("a={},header.X-Scope-OrgID=team", a.url());
    let gateway = Gateway::start(engine, &["--to", &to, "--remote-timeout", "1m"]);
    let client_headers = [
        ("Content-Type", "application/proto"),
        ("Connect-Protocol-Version", "1"),
        ("User-Agent", "client/1"),
        ("Authorization", "Bearer client"),
        ("traceparent", "00-1"),
        ("X-Other", "1"),
    ];
    for _ in 0..2 {
        assert_eq!(gateway.post(PUSH, &client_headers, &good()).status, 200);
    }
    let received = a.wait_for(2);
    let mut fields = BTreeMap::new();
    for (name, value) in received[0].fields() {
        assert!(fields.insert(name, value).is_none(), "{received:?}");
    }
    let timeout: u64 = fields.remove("Connect-Timeout-Ms").unwrap().parse().unwrap();
    assert!((45_000..=60_000).contains(&timeout), "{timeout}");
    for (name, length) in [("uber-trace-id", 32 + 16 + 5), ("traceparent", 32 + 16 + 7)] {
        let value = fields.remove(name).unwrap();
        assert_eq!(value.len(), length, "row 127: {value}");
    }
    let id = fields.remove("X-Alloy-Id").unwrap();
    assert_eq!(id.len(), 36, "a UUID: {id}");
    assert_eq!(
        received[1].value("x-alloy-id"),
        Some(id),
        "one for the life of the process"
    );
    let expected = [
        ("Accept-Encoding", "gzip"),
        ("Connect-Protocol-Version", "1"),
        ("Content-Length", &*received[0].body.len().to_string()),
        ("Content-Type", "application/proto"),
        ("Host", &*a.address.to_string()),
        ("User-Agent", USER_AGENT),
        ("X-Scope-OrgID", "team"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(fields, BTreeMap::from(expected));
    assert_eq!(received[0].target(), PUSH, "no query");
}

fn row_101_a_short_client_timeout_shrinks_ours(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    // Ours would be 10 s.
    assert_eq!(with(&gateway, "Connect-Timeout-Ms", "8000").status, 200);
    let timeout: u64 = a.only().value("connect-timeout-ms").unwrap().parse().unwrap();
    assert!((4000..=8000).contains(&timeout), "{timeout}");
    // The answer comes when the client's own time is over (Alloy says 500 internal here).
    let told = Latch::default();
    let until_told = told.clone();
    let slow = Scripted::following(move |_, _| {
        let late = answer(200, &[("Content-Type", "application/proto")], b"");
        vec![Act::Await(until_told.clone()), Act::Send(late)]
    });
    let gateway = Gateway::to(engine, &[&slow], &[]);
    let answer = with(&gateway, "Connect-Timeout-Ms", "300");
    told.open();
    assert_connect_error(&answer, 504, "deadline_exceeded");
}

/// WIRE.md 3.1.
fn the_example_of_the_contract(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let sent = request(&[series(&[("service_name", "svc2"), ("env", "prod")], &[])]);
    assert_eq!(gateway.push(&sent).status, 200);
    let hex: String = a.only().body.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "0a230a0b0a03656e76120470726f640a140a0c736572766963655f6e616d65120473766332"
    );
}
