//! Rows 20 to 36 and 38 to 45 of WIRE.md section 9: what reaches the destinations of an `/ingest`.

use pyrotee::outbound::head::USER_AGENT;

use super::gateway::{Engine, Gateway, INGEST, assert_text, percent, under_both_engines};
use super::scripted::Scripted;
use super::support::post;

under_both_engines!(
    row_020_bodies_arrive_unchanged,
    row_021_content_type_arrives_unchanged,
    row_022_several_content_types_stay_several,
    row_023_no_content_type_in_none_out,
    row_024_content_encoding_is_passed_on,
    row_025_other_headers_are_not_forwarded,
    row_026_parameters_keep_their_values,
    row_032_the_path_prefix_is_kept_and_cleaned,
    row_033_the_query_of_the_url_is_dropped,
    row_034_a_missing_name_is_400,
    row_035_a_malformed_name_is_400,
    row_036_a_missing_name_is_400_under_every_policy,
    rows_038_to_040_service_name_and_app_name,
    row_041_session_id_survives,
    row_042_external_labels_win,
    row_043_an_external_name_is_the_app_name,
    row_044_utf8_values_round_trip,
    row_045_labels_are_sorted_bytewise,
    headers_of_an_ingest,
    pass_header_lets_chosen_headers_through,
    labels_verbatim_changes_nothing,
);

/// A body of `length` bytes in which every byte value and no short period occurs.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn row_020_bodies_arrive_unchanged(engine: Engine) {
    let destinations = [Scripted::healthy(), Scripted::healthy(), Scripted::healthy()];
    let [a, b, c] = &destinations;
    let gateway = Gateway::to(engine, &[a, b, c], &[]);
    let multipart = b"--x\r\nContent-Disposition: form-data; name=\"profile\"; filename=\"p\"\r\n\r\n\x1f\x8b\x00\r\n--x--\r\n";
    let all_bytes: Vec<u8> = (0..=255).collect();
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("gzip", [&[0x1f, 0x8b, 8, 0], &*noise(500)].concat()),
        ("multipart", multipart.to_vec()),
        ("empty", Vec::new()),
        ("every byte", all_bytes),
        ("looks like HTTP", b"GET / HTTP/1.1\r\n\r\n0\r\n\r\n".to_vec()),
        ("one byte less than a small buffer", noise(2047)),
        ("a page", noise(4096)),
        ("larger than the first buffer", noise(300_001)),
        ("megabytes", noise(3_000_000)),
    ];
    let mut client = gateway.client();
    for (turn, (name, body)) in bodies.iter().enumerate() {
        let answer = client.post(INGEST, &[("Content-Type", "application/octet-stream")], body);
        assert_eq!(answer.unwrap().status, 200, "{name}");
        for destination in &destinations {
            let received = destination.newest(turn + 1);
            assert!(
                received.body == *body,
                "{name}: {} bytes arrived",
                received.body.len()
            );
            assert_eq!(received.value("content-length"), Some(body.len().to_string()));
        }
    }
    for destination in &destinations {
        assert_eq!(destination.received().len(), bodies.len(), "each once");
    }
}

fn row_021_content_type_arrives_unchanged(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (turn, value) in [
        "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
        "multipart/form-data;boundary=\"a b;c\"; x=y",
        "binary/octet-stream+trie",
        "TEXT/Plain;  Charset=UTF-8",
        "nonsense",
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(gateway.post(INGEST, &[("content-type", value)], b"x").status, 200);
        assert_eq!(a.newest(turn + 1).values("content-type"), [value]);
    }
}

fn row_022_several_content_types_stay_several(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let headers = [
        ("Content-Type", "b/1"),
        ("X-Between", "x"),
        ("content-type", "a/2"),
        ("CONTENT-TYPE", "b/1"),
    ];
    assert_eq!(gateway.post(INGEST, &headers, b"x").status, 200);
    assert_eq!(a.only().values("content-type"), ["b/1", "a/2", "b/1"]);
}

fn row_023_no_content_type_in_none_out(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_eq!(gateway.post(INGEST, &[], b"x").status, 200);
    assert!(a.only().values("content-type").is_empty());
}

/// Alloy drops it; ours is (D) to pass it on, so that what the client says of its bytes stays true of them.
fn row_024_content_encoding_is_passed_on(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let zipped = super::gateway::gzip(b"app;main 1\n");
    for (turn, (encoding, body)) in [
        ("gzip", &*zipped),
        ("gzip", b"not gzip at all"),
        ("zstd, br", b"x"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(
            gateway
                .post(INGEST, &[("Content-Encoding", encoding)], body)
                .status,
            200
        );
        let received = a.newest(turn + 1);
        assert_eq!(received.body, body, "not decoded");
        assert_eq!(received.values("content-encoding"), [encoding]);
    }
}

fn row_025_other_headers_are_not_forwarded(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let dropped = [
        ("Authorization", "Bearer client"),
        ("X-Scope-OrgID", "client"),
        ("Accept-Encoding", "gzip"),
        ("Accept", "*/*"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("uber-trace-id", "1:2:0:1"),
        ("Cookie", "a=b"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Origin", "http://evil"),
        ("Via", "1.1 proxy"),
        ("TE", "trailers"),
    ];
    let mut headers = dropped.to_vec();
    headers.push(("User-Agent", "client/1"));
    assert_eq!(gateway.post(INGEST, &headers, b"x").status, 200);
    let received = a.only();
    for (name, value) in dropped {
        // There are trace headers, but none of the client's (row 127).
        let got = received
            .values(name)
            .into_iter()
            .filter(|got| !name.contains("trace") || got == value);
        assert_eq!(got.count(), 0, "{name} got through: {received:?}");
    }
    assert_eq!(received.values("user-agent"), [USER_AGENT]);
}

/// WIRE.md 4.3 for `/ingest`, with our own User-Agent where Alloy leaks Go's (Q20).
fn headers_of_an_ingest(engine: Engine) {
    let a = Scripted::healthy();
    let to = format!(
        "a={}/,header.X-Scope-OrgID=team,header.Authorization=Bearer t",
        a.url()
    );
    let gateway = Gateway::start(engine, &["--to", &to]);
    assert_eq!(
        gateway.post(INGEST, &[("Content-Type", "x/y")], b"body").status,
        200
    );
    let received = a.only();
    let (mut names, mut values): (Vec<_>, Vec<_>) = received.fields().into_iter().unzip();
    names.sort_unstable();
    let expected = [
        "Authorization",
        "Content-Length",
        "Content-Type",
        "Host",
        "User-Agent",
        "X-Alloy-Id",
        "X-Scope-OrgID",
        "traceparent",
        "uber-trace-id",
    ];
    assert_eq!(names, expected, "these and no others");
    values.retain(|value| ["team", "Bearer t", "x/y", "4"].contains(&&**value));
    assert_eq!(values.len(), 4, "{received:?}");
    assert_eq!(received.value("host"), Some(a.address.to_string()));
    assert!(received.request_line().starts_with("POST /ingest?"));
    assert!(received.request_line().ends_with(" HTTP/1.1"));
}

fn row_026_parameters_keep_their_values(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let parameters = [
        ("from", "1655834200"),
        ("until", "now-1h"),
        ("format", "pprof"),
        ("sampleRate", "100"),
        ("spyName", "gospy"),
        ("units", "lock_nanoseconds"),
        ("aggregationType", "average"),
        ("x-unknown", "a b+c%&=~é/"),
        ("empty", ""),
    ];
    let query: Vec<_> = parameters
        .iter()
        .map(|(key, value)| format!("{}={}", percent(key.as_bytes()), percent(value.as_bytes())))
        .collect();
    let target = format!("{INGEST}&{}", query.join("&"));
    assert_eq!(gateway.post(&target, &[], b"x").status, 200);
    let received = a.only();
    for (key, value) in parameters {
        let got: Vec<_> = received
            .parameters(key)
            .iter()
            .map(|value| super::scripted::decode(value))
            .collect();
        assert_eq!(got, [value.as_bytes()], "{key}");
    }
}

fn row_032_the_path_prefix_is_kept_and_cleaned(engine: Engine) {
    for (prefix, ingest, push) in [
        ("", "/ingest", "/push.v1.PusherService/Push"),
        ("/", "/ingest", "/push.v1.PusherService/Push"),
        ("/base/", "/base/ingest", "/base/push.v1.PusherService/Push"),
        ("/base", "/base/ingest", "/base/push.v1.PusherService/Push"),
        ("/a//b/", "/a/b/ingest", "/a//b/push.v1.PusherService/Push"),
        ("/a%20b", "/a%20b/ingest", "/a%20b/push.v1.PusherService/Push"),
    ] {
        let a = Scripted::healthy();
        let gateway = Gateway::start(engine, &["--to", &format!("a={}{prefix}", a.url())]);
        assert_eq!(gateway.post(INGEST, &[], b"x").status, 200);
        assert_eq!(a.newest(1).path(), ingest, "{prefix}");
        assert_eq!(
            gateway.push(b"\x0a\x0d\x0a\x0b\x0a\x03env\x12\x04prod").status,
            200
        );
        assert_eq!(a.newest(2).path(), push, "{prefix}");
    }
}

fn row_033_the_query_of_the_url_is_dropped(engine: Engine) {
    let a = Scripted::healthy();
    let to = format!("a={}/base?name=own&token=t#part", a.url());
    let gateway = Gateway::start(engine, &["--to", &to]);
    assert_eq!(gateway.post(INGEST, &[], b"x").status, 200);
    assert_eq!(a.only().target(), "/base/ingest?name=app%7Bservice_name%3Dapp%7D");
}

/// Alloy answers 500, which clients retry; ours is (D) 400 and says why.
fn row_034_a_missing_name_is_400(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for target in [
        "/ingest",
        "/ingest?",
        "/ingest?name=",
        "/ingest?name",
        "/ingest?Name=app",
        "/ingest?name=&name=app",
        "/ingest?from=1&until=2",
    ] {
        let answer = gateway.post(target, &[], b"x");
        assert_text(&answer, 400, "name: service name is required\n");
    }
    assert!(a.received().is_empty());
}

fn row_035_a_malformed_name_is_400(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (name, text) in [
        (
            "foo bar",
            "name: invalid service name: foo bar: character is not allowed: ' '\n",
        ),
        (
            "foo{a-b=1}",
            "name: invalid label name: a-b: character is not allowed: '-'\n",
        ),
        ("foo{=1}", "name: label name is required\n"),
        ("{}", "name: service name is required\n"),
    ] {
        let answer = gateway.post(&format!("/ingest?name={}", percent(name.as_bytes())), &[], b"x");
        assert_text(&answer, 400, text);
    }
    assert!(a.received().is_empty());
}

/// Alloy answers 200 when nothing is configured behind it. We always have a destination, so a name is always needed.
fn row_036_a_missing_name_is_400_under_every_policy(engine: Engine) {
    let a = Scripted::healthy();
    for ack in ["queued", "first", "all"] {
        let gateway = Gateway::to(engine, &[&a], &["--ack", ack]);
        assert_eq!(gateway.post("/ingest", &[], b"x").status, 400, "{ack}");
    }
}

/// Posts each name and compares the name that arrives.
fn assert_names(gateway: &Gateway, a: &Scripted, cases: &[(&str, &str)]) {
    for (name, expected) in cases {
        let before = a.received().len();
        let target = format!("/ingest?name={}", percent(name.as_bytes()));
        assert_eq!(gateway.post(&target, &[], b"x").status, 200, "{name}");
        assert_eq!(a.newest(before + 1).name(), *expected, "{name}");
    }
}

fn rows_038_to_040_service_name_and_app_name(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_names(
        &gateway,
        &a,
        &[
            ("foo", "foo{service_name=foo}"),
            ("foo.cpu{env=x}", "foo.cpu{env=x,service_name=foo.cpu}"),
            ("foo{service_name=svc}", "svc{app_name=foo,service_name=svc}"),
            (
                "foo{service_name=svc,app_name=mine}",
                "svc{app_name=foo,service_name=svc}",
            ),
            ("foo{app_name=mine}", "foo{app_name=mine,service_name=foo}"),
        ],
    );
}

fn row_041_session_id_survives(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let names = [
        (
            "foo{__session_id__=abc}",
            "foo{__session_id__=abc,service_name=foo}",
        ),
        ("foo{__other__=abc}", "foo{__other__=abc,service_name=foo}"),
    ];
    assert_names(&gateway, &a, &names);
}

fn row_042_external_labels_win(engine: Engine) {
    let a = Scripted::healthy();
    let flags = [
        "--external-label",
        "env=prod",
        "--external-label",
        "region=",
        "--external-label",
        "zone=z 1",
    ];
    let gateway = Gateway::to(engine, &[&a], &flags);
    assert_names(
        &gateway,
        &a,
        &[
            ("foo", "foo{env=prod,service_name=foo,zone=z 1}"),
            (
                "foo{env=dev,region=eu,zone=z}",
                "foo{env=prod,service_name=foo,zone=z 1}",
            ),
            ("foo{a=b}", "foo{a=b,env=prod,service_name=foo,zone=z 1}"),
        ],
    );
    let gateway = Gateway::to(engine, &[&a], &["--external-label", "service_name=other"]);
    assert_names(&gateway, &a, &[("foo", "foo{service_name=other}")]);
    let gateway = Gateway::to(engine, &[&a], &["--external-label", "service_name="]);
    assert_names(&gateway, &a, &[("foo{a=1}", "foo{a=1}")]);
}

fn row_043_an_external_name_is_the_app_name(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &["--external-label", "__name__=fixed"]);
    let names = [
        ("foo{env=x}", "fixed{env=x,service_name=foo}"),
        ("foo{service_name=svc}", "fixed{app_name=foo,service_name=svc}"),
    ];
    assert_names(&gateway, &a, &names);
    let gateway = Gateway::to(engine, &[&a], &["--external-label", "__name__="]);
    assert_names(&gateway, &a, &[("foo", "{service_name=foo}")]);
}

fn row_044_utf8_values_round_trip(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let value = "é日本語🦀 ~";
    assert_names(
        &gateway,
        &a,
        &[(
            &format!("foo{{v={value}x}}"),
            &format!("foo{{service_name=foo,v={value}x}}"),
        )],
    );
    // The same bytes unescaped in the request line.
    let mut client = gateway.client();
    let mut request = "POST /ingest?name=foo{v=é} HTTP/1.1\r\n".as_bytes().to_vec();
    request.extend_from_slice(b"Host: test\r\nContent-Length: 0\r\n\r\n");
    client.send(request).unwrap();
    assert_eq!(client.receive().unwrap().status, 200);
    assert_eq!(
        a.newest(2).query(),
        "name=foo%7Bservice_name%3Dfoo%2Cv%3D%C3%A9%7D"
    );
}

fn row_045_labels_are_sorted_bytewise(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let names = [(
        "foo{b=1,a.b=2,a=3,_z=4,Z=5,aa=6,9=7,A.=8}",
        "foo{9=7,A.=8,Z=5,_z=4,a=3,a.b=2,aa=6,b=1,service_name=foo}",
    )];
    assert_names(&gateway, &a, &names);
}

/// Q17: a tenant or a trace can be let through by name.
fn pass_header_lets_chosen_headers_through(engine: Engine) {
    let a = Scripted::healthy();
    let flags = ["--pass-header", "X-Scope-OrgID", "--pass-header", "traceparent"];
    let gateway = Gateway::to(engine, &[&a], &flags);
    let headers = [
        ("x-scope-orgid", "t1"),
        ("TraceParent", "00-1"),
        ("X-Other", "no"),
    ];
    assert_eq!(gateway.post(INGEST, &headers, b"x").status, 200);
    let received = a.only();
    assert_eq!(received.values("x-scope-orgid"), ["t1"]);
    assert_eq!(received.values("traceparent"), ["00-1"]);
    assert!(received.values("x-other").is_empty());
}

/// DESIGN.md section 7: a pure tee.
fn labels_verbatim_changes_nothing(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &["--labels", "verbatim"]);
    let query = "until=2&from=1&name=foo{b=1,a=2}&x=%zz;&&name=second";
    let mut client = gateway.client();
    client
        .send(post(&format!("/ingest?{query}"), &[], b"body"))
        .unwrap();
    assert_eq!(client.receive().unwrap().status, 200);
    assert_eq!(a.only().query(), query);
}
