//! Rows 84 to 86 of WIRE.md section 9 and WIRE.md 3.4: how protobuf is read from JSON.

use prost::Message as _;
use pyrotee::profile::proto::PushRequest;

use super::gateway::{Engine, Gateway, PUSH, assert_connect_error, under_both_engines};
use super::scripted::Scripted;

under_both_engines!(
    row_084_spellings_and_base64,
    row_085_the_id_field,
    row_086_what_is_ignored,
    row_086_what_is_refused,
    json_means_the_same_as_protobuf,
);

const TYPE: (&str, &str) = ("Content-Type", "application/json");

/// Sends JSON and returns what arrives.
fn forwarded(gateway: &Gateway, a: &Scripted, json: &str) -> PushRequest {
    let before = a.received().len();
    let answer = gateway.post(PUSH, &[TYPE], json.as_bytes());
    assert_eq!(answer.status, 200, "{json}: {answer:?}");
    PushRequest::decode(&*a.newest(before + 1).body).expect("what goes out is protobuf")
}

/// A request with one sample of these fields.
fn with_sample(fields: &str) -> String {
    format!(
        r#"{{"series":[{{"labels":[{{"name":"service_name","value":"svc"}}],"samples":[{{{fields}}}]}}]}}"#
    )
}

fn row_084_spellings_and_base64(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (fields, bytes) in [
        (r#""rawProfile":"aGk=""#, &b"hi"[..]),
        (r#""raw_profile":"aGk=""#, b"hi"),
        (r#""rawProfile":"aGk""#, b"hi"),
        (r#""rawProfile":"+/+/""#, b"\xfb\xff\xbf"),
        (r#""rawProfile":"-_-_""#, b"\xfb\xff\xbf"),
        (r#""rawProfile":"\/w==""#, b"\xff"),
        (r#""rawProfile":"_w""#, b"\xff"),
        (r#""rawProfile":"""#, b""),
        (r#""rawProfile":null"#, b""),
        // Go's decoder does not mind unused bits that are set, nor line ends.
        (r#""rawProfile":"aGl=""#, b"hi"),
        (r#""rawProfile":"aG\r\n\r\nk=""#, b"hi"),
        ("", b""),
    ] {
        let request = forwarded(&gateway, &a, &with_sample(fields));
        assert_eq!(request.series[0].samples[0].raw_profile, bytes, "{fields}");
    }
}

fn row_085_the_id_field(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (fields, id) in [
        (r#""ID":"one""#, "one"),
        (r#""id":"one""#, ""),
        (r#""Id":"one""#, ""),
        (r#""id":"two","ID":"one""#, "one"),
        (r#""ID":"\u00e9\ud83e\udd80""#, "é🦀"),
        (r#""ID":null"#, ""),
    ] {
        let request = forwarded(&gateway, &a, &with_sample(fields));
        assert_eq!(request.series[0].samples[0].id, id, "{fields}");
    }
}

fn row_086_what_is_ignored(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let plain = forwarded(&gateway, &a, &with_sample(r#""ID":"one""#));
    for (name, json) in [
        (
            "unknown values of all kinds",
            with_sample(r#""ID":"one","x":[1,{"y":null},-2.5e9,"\n",true,[[]]]"#),
        ),
        ("an unknown field twice", with_sample(r#""ID":"one","x":1,"x":2"#)),
        (
            "white space",
            format!(" \r\n\t{} \n", with_sample("\n\"ID\" :\t\"one\" ")),
        ),
        (
            "another case",
            format!(r#"{{"Series":[],{}"#, &with_sample(r#""ID":"one""#)[1..]),
        ),
        (
            "annotations",
            with_sample(r#""ID":"one""#).replacen(
                "\"labels\"",
                r#""annotations":[{"key":"k","value":"v"}],"labels""#,
                1,
            ),
        ),
        (
            "escapes in names",
            with_sample(r#""ID":"one""#).replacen("series", r"s\u0065ries", 1),
        ),
    ] {
        assert_eq!(forwarded(&gateway, &a, &json), plain, "{name}");
    }
    for json in [
        "{}",
        r#"{"series":[]}"#,
        r#"{"series":null}"#,
        r#"{"x":{"y":[]}}"#,
    ] {
        assert_eq!(gateway.post(PUSH, &[TYPE], json.as_bytes()).status, 200, "{json}");
    }
}

fn row_086_what_is_refused(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let deep = format!(r#"{{"x":{}1{}}}"#, "[".repeat(20_000), "]".repeat(20_000));
    let cases = [
        ("nothing", String::new()),
        ("null", "null".into()),
        ("an array", "[]".into()),
        ("a string", "\"x\"".into()),
        ("a null element", r#"{"series":[null]}"#.into()),
        ("a null label", r#"{"series":[{"labels":[null]}]}"#.into()),
        ("a series that is no object", r#"{"series":[1]}"#.into()),
        ("series that are no array", r#"{"series":{}}"#.into()),
        (
            "a number for a string",
            r#"{"series":[{"labels":[{"name":1}]}]}"#.into(),
        ),
        ("a field twice", r#"{"series":[],"series":[]}"#.into()),
        (
            "a field in both spellings",
            with_sample(r#""rawProfile":"aGk=","raw_profile":"aGk=""#),
        ),
        ("bad base64", with_sample(r#""rawProfile":"a""#)),
        (
            "foreign characters in base64",
            with_sample(r#""rawProfile":"a*==""#),
        ),
        ("a number for bytes", with_sample(r#""rawProfile":1"#)),
        ("trailing data", "{}{}".into()),
        ("trailing rubbish", "{} x".into()),
        ("cut short", r#"{"series":["#.into()),
        ("a comma too many", r#"{"series":[],}"#.into()),
        ("single quotes", "{'series':[]}".into()),
        ("a bare control character", "{\"x\":\"\n\"}".into()),
        ("half a surrogate pair", with_sample(r#""ID":"\ud83e""#)),
        ("a comment", "{}//".into()),
        ("nested too deep", deep),
    ];
    for (name, json) in cases {
        let answer = gateway.post(PUSH, &[TYPE], json.as_bytes());
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        assert_connect_error(&answer, 400, "invalid_argument");
    }
    let answer = gateway.post(PUSH, &[TYPE], b"{\"x\":\"\xff\"}");
    assert_connect_error(&answer, 400, "invalid_argument");
    assert!(a.received().is_empty());
}

fn json_means_the_same_as_protobuf(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let json = r#"{"series":[
        {"labels":[{"name":"__name__","value":"cpu"},{"name":"service_name","value":"svc"},{"value":"ü","name":"env"}],
         "samples":[{"rawProfile":"aGk=","ID":"1"},{"rawProfile":"aG8=","ID":"2"}]},
        {"samples":[],"labels":[{"name":"service_name","value":"other"}]}
    ]}"#;
    let from_json = forwarded(&gateway, &a, json);
    let proto = super::push::request(&[
        super::push::series(
            &[("__name__", "cpu"), ("service_name", "svc"), ("env", "ü")],
            &[b"hi", b"ho"],
        ),
        super::push::series(&[("service_name", "other")], &[]),
    ]);
    assert_eq!(gateway.push(&proto).status, 200);
    let mut from_proto = PushRequest::decode(&*a.newest(2).body).unwrap();
    for (sample, id) in from_proto.series[0].samples.iter_mut().zip(["1", "2"]) {
        sample.id = id.to_owned();
    }
    assert_eq!(from_json, from_proto);
}
