//! Our label pipeline and decoders against other people's: Go's `net/url`, connect-go's codecs, and the reference model of
//! WIRE.md in `tests/interop/reference.go`, on inputs made up from a seed.
//!
//! Inputs are built so that many are nearly right: pieces that the grammar knows, put together at random, and then
//! sometimes a byte changed. The seed is printed with a failure and fixed, so a failure comes again. Differences that we
//! want (rows marked (D) in WIRE.md section 9) are refusals by size, which these inputs do not reach, and operator's labels
//! that would inject others, which `LabelRules` refuses at start.

#[path = "support/command.rs"]
mod command;
#[path = "support/interop.rs"]
mod interop;
mod support;

use bytes::Bytes;
use fastrand::Rng;
use interop::{ask, interop};
use prost::Message as _;
use pyrotee::profile::ingest::{IngestError, rewrite_query};
use pyrotee::profile::json::{JsonLimits, to_proto};
use pyrotee::profile::labels::{LabelLimits, LabelRules, NameError};
use pyrotee::profile::proto::{LabelPair, ProfileAnnotation, PushRequest, RawProfileSeries, RawSample};
use pyrotee::profile::push::{PushError, SeriesReason, splice};
use pyrotee::profile::query::{self, Query};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What every generator starts from.
const SEED: u64 = 0x5079_726f_7465_6500;
/// Inputs of each kind.
const INPUTS: usize = 4_000;

/// The operator's labels of one input; all of them pass `LabelRules`.
const EXTERNALS: [&[(&str, &str)]; 7] = [
    &[],
    &[("zone", "z1"), ("a", "outer")],
    &[("a", "")],
    &[("service_name", "outer")],
    &[("service_name", "")],
    &[("__name__", "outer"), ("__kept__", "1")],
    &[("app_name", ""), ("__name__", "")],
];

#[test]
fn pushes_are_spliced_as_the_model_says() {
    let Some(program) = interop() else { return };
    let mut rng = Rng::with_seed(SEED);
    let inputs: Vec<_> = (0..INPUTS)
        .map(|_| {
            let external = EXTERNALS[rng.usize(..EXTERNALS.len())];
            let series = (0..rng.usize(0..4)).map(|_| series(&mut rng)).collect();
            (PushRequest { series }, external, rng.usize(1..64))
        })
        .collect();
    let questions: Vec<Value> = inputs
        .iter()
        .map(|(push, external, _)| {
            json!({"op": "push", "series": described(push), "external": external_map(external)})
        })
        .collect();
    let mut tally = Tally::default();
    for ((push, external, cut), answer) in inputs.iter().zip(ask(program, "reference", &questions)) {
        let body = push.encode_to_vec();
        let segments: Vec<Bytes> = body.chunks(*cut).map(Bytes::copy_from_slice).collect();
        let spliced = splice(&segments, &rules(external), &LabelLimits::default());
        let spliced = spliced.unwrap_or_else(|error| panic!("{error}: {push:?}"));
        let refused: Vec<Value> = spliced
            .rejected
            .iter()
            .map(|series| json!({"index": series.index, "kind": series_kind(&series.reason)}))
            .collect();
        let sent = PushRequest::decode(&*spliced.segments.concat()).expect("the splice is protobuf");
        let mut expected = answer["series"].clone();
        for one in expected.as_array_mut().expect("a list") {
            one.as_object_mut().expect("an object").remove("index");
        }
        let context = format!("seed {SEED:#x}: {push:?} with {external:?}");
        assert_eq!(described(&sent), expected, "{context}");
        assert_eq!(Value::Array(refused), answer["refused"], "{context}");
        tally.count(answer["ok"] == true);
    }
    tally.assert_both();
}

#[test]
fn queries_of_ingest_are_rewritten_as_the_model_says() {
    let Some(program) = interop() else { return };
    let mut rng = Rng::with_seed(SEED);
    let inputs: Vec<_> = (0..INPUTS)
        .map(|_| (ingest_query(&mut rng), EXTERNALS[rng.usize(..EXTERNALS.len())]))
        .collect();
    let questions: Vec<Value> = inputs
        .iter()
        .map(|(query, external)| {
            json!({"op": "ingest", "query": {"hex": hex(query)}, "external": external_map(external)})
        })
        .collect();
    let mut tally = Tally::default();
    for ((query, external), answer) in inputs.iter().zip(ask(program, "reference", &questions)) {
        let mut out = Vec::new();
        let rewritten = rewrite_query(query, &rules(external), &LabelLimits::default(), &mut out);
        let ours = match rewritten {
            Ok(_) => json!({"ok": true, "query": String::from_utf8(out).expect("ASCII")}),
            Err(error) => json!({"ok": false, "kind": ingest_kind(&error)}),
        };
        let theirs = match answer["ok"].as_bool() {
            Some(true) => json!({"ok": true, "query": answer["query"]}),
            _ => json!({"ok": false, "kind": answer["kind"]}),
        };
        let text = String::from_utf8_lossy(query);
        assert_eq!(ours, theirs, "seed {SEED:#x}: {text} with {external:?}");
        tally.count(answer["ok"] == true);
    }
    tally.assert_both();
}

#[test]
fn queries_are_read_and_written_as_go_does() {
    let Some(program) = interop() else { return };
    let mut rng = Rng::with_seed(SEED);
    let mut inputs: Vec<Vec<u8>> = (0..INPUTS).map(|_| raw_query(&mut rng)).collect();
    // Go's limit on pieces, from both sides.
    inputs.push(vec![b'&'; 9_999]);
    inputs.push(vec![b'&'; 10_000]);
    inputs.push([&b"a=1"[..], &b"&b=2".repeat(9_999)].concat());
    inputs.push([&b"a=1"[..], &b"&b=2".repeat(10_000)].concat());
    let questions: Vec<Value> = inputs.iter().map(|raw| json!({"hex": hex(raw)})).collect();
    let mut tally = Tally::default();
    for (raw, answer) in inputs.iter().zip(ask(program, "query", &questions)) {
        let mut query = Query::default();
        query.parse(raw);
        query.sort();
        let mut encoded = Vec::new();
        query::encode(&query, &mut encoded);
        let pairs: Vec<[String; 2]> = query.pairs().map(|(key, value)| [hex(key), hex(value)]).collect();
        let context = format!("seed {SEED:#x}: {}", raw.escape_ascii());
        assert_eq!(
            answer["encoded"],
            String::from_utf8(encoded).expect("ASCII"),
            "{context}"
        );
        assert_eq!(answer["pairs"], json!(pairs), "{context}");
        tally.count(answer["error"] == "");
    }
    tally.assert_both();
}

#[test]
fn json_bodies_mean_what_the_real_decoder_says() {
    let Some(program) = interop() else { return };
    let mut rng = Rng::with_seed(SEED);
    let bodies: Vec<Vec<u8>> = (0..INPUTS).map(|_| json_body(&mut rng)).collect();
    let mut tally = Tally::default();
    for (body, answer) in bodies.iter().zip(decoded(program, "json", &bodies)) {
        let ours = to_proto(body, &JsonLimits::default());
        let context = format!("seed {SEED:#x}: {}: {answer}", body.escape_ascii());
        assert_eq!(json!(ours.is_ok()), answer["ok"], "{ours:?}: {context}");
        if let Ok(proto) = ours {
            let push = PushRequest::decode(&*proto).expect("the mapping is protobuf");
            assert_eq!(described(&push), answer["series"], "{context}");
        }
        tally.count(answer["ok"] == true);
    }
    tally.assert_both();
}

#[test]
fn protobuf_bodies_are_taken_when_the_real_decoder_takes_them() {
    let Some(program) = interop() else { return };
    let mut rng = Rng::with_seed(SEED);
    let bodies: Vec<Vec<u8>> = (0..INPUTS).map(|_| proto_body(&mut rng)).collect();
    let mut tally = Tally::default();
    for (body, answer) in bodies.iter().zip(decoded(program, "proto", &bodies)) {
        let segments = [Bytes::copy_from_slice(body)];
        let ours = splice(&segments, &LabelRules::default(), &LabelLimits::default());
        let context = format!("seed {SEED:#x}: {}: {answer}", body.escape_ascii());
        match ours {
            Ok(spliced) => {
                assert_eq!(answer["ok"], true, "{context}");
                let series = answer["series"].as_array().expect("a list").len();
                assert_eq!(
                    (spliced.series + spliced.rejected_count) as usize,
                    series,
                    "{context}"
                );
            }
            Err(PushError::Malformed(_)) => assert_eq!(answer["ok"], false, "{context}"),
            Err(error) => panic!("{error}: no input is that large: {context}"),
        }
        tally.count(answer["ok"] == true);
    }
    tally.assert_both();
}

/// Makes sure that the inputs were neither all good nor all bad: then they would show little.
#[derive(Default)]
struct Tally {
    good: usize,
    bad: usize,
}

impl Tally {
    fn count(&mut self, good: bool) {
        *(if good { &mut self.good } else { &mut self.bad }) += 1;
    }

    fn assert_both(&self) {
        let all = self.good + self.bad;
        let (good, bad) = (self.good, self.bad);
        assert!(
            good * 8 > all && bad * 8 > all,
            "{good} good, {bad} bad: the generator is lopsided"
        );
    }
}

fn decoded(program: &std::path::Path, codec: &str, bodies: &[Vec<u8>]) -> Vec<Value> {
    let question = |body: &Vec<u8>| json!({"codec": codec, "body": {"hex": hex(body)}});
    let questions: Vec<Value> = bodies.iter().map(question).collect();
    ask(program, "decode", &questions)
}

fn rules(external: &[(&str, &str)]) -> LabelRules {
    let owned = external
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    LabelRules::new(owned.collect()).expect("the list above is valid")
}

fn external_map(external: &[(&str, &str)]) -> Value {
    external
        .iter()
        .map(|(name, value)| (*name, json!(value)))
        .collect()
}

fn series_kind(reason: &SeriesReason) -> &'static str {
    match reason {
        SeriesReason::LabelsEmpty => "no_labels",
        SeriesReason::NameEmpty => "empty_name",
        SeriesReason::NameInvalid(_) => "label_invalid",
        other => other.label(),
    }
}

fn ingest_kind(error: &IngestError) -> &'static str {
    match error {
        IngestError::NameMissing | IngestError::NameMalformed(NameError::ServiceNameRequired) => {
            "name_required"
        }
        IngestError::NameMalformed(NameError::ServiceNameInvalid { .. }) => "name_invalid",
        IngestError::NameMalformed(NameError::LabelNameRequired) => "label_required",
        IngestError::NameMalformed(NameError::LabelNameInvalid { .. }) => "label_invalid",
        IngestError::LabelsEmpty => "no_labels",
        other => other.reason(),
    }
}

/// Series in the form of `tests/interop/series.go`.
fn described(push: &PushRequest) -> Value {
    let series = push.series.iter().map(|series| {
        let labels: Vec<_> = series
            .labels
            .iter()
            .map(|label| [&label.name, &label.value])
            .collect();
        let samples: Vec<Value> = series
            .samples
            .iter()
            .map(|sample| {
                let raw = &sample.raw_profile;
                json!({"id": sample.id, "size": raw.len(), "sha256": hex(&Sha256::digest(raw))})
            })
            .collect();
        // The reference model forwards no annotations, so inputs for it have none.
        json!({"labels": labels, "samples": samples, "annotations": series.annotations.len()})
    });
    series.collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pick<'a>(rng: &mut Rng, choices: &[&'a str]) -> &'a str {
    choices[rng.usize(..choices.len())]
}

/// Labels whose names matter to the rules, or are good, or (one in eight) are not.
fn series(rng: &mut Rng) -> RawProfileSeries {
    let labels = (0..rng.usize(0..6)).map(|_| {
        let name = match rng.u8(..16) {
            0..=1 => pick(rng, &["a-b", "", "é", "x y", "__a-b__", "a\0"]),
            2..=8 => pick(rng, &["__name__", "service_name", "app_name"]),
            9..=11 => pick(rng, &["__delta__", "__session_id__", "__meta", "__", "_"]),
            _ => pick(rng, &["a", "B", "b", "a.b", "1a", "zone", "env"]),
        };
        let value = pick(
            rng,
            &[
                "",
                "",
                "v",
                "process_cpu",
                "svc",
                "a,b}=c{",
                "λ🦀",
                "  spaced ",
                "\0",
                "\u{10ffff}",
            ],
        );
        LabelPair {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    });
    let labels = labels.collect();
    RawProfileSeries {
        labels,
        samples: (0..rng.usize(0..3)).map(|_| sample(rng)).collect(),
        annotations: vec![],
    }
}

fn sample(rng: &mut Rng) -> RawSample {
    let size = [0, 1, 100, 130, 20_000][rng.usize(..5)];
    let raw: Vec<u8> = (0..rng.usize(0..=size)).map(|_| rng.u8(..)).collect();
    RawSample {
        raw_profile: raw.into(),
        id: pick(rng, &["", "id", "925dbb78-413f-5cac-e36a-ff46f5c01cf2", "é"]).to_owned(),
    }
}

/// A query with a `name`, mostly, among other parameters.
fn ingest_query(rng: &mut Rng) -> Vec<u8> {
    let mut pieces: Vec<Vec<u8>> = (0..rng.usize(0..4)).map(|_| query_piece(rng)).collect();
    for _ in 0..[1, 1, 1, 1, 1, 2, 0][rng.usize(..7)] {
        let mut piece = b"name=".to_vec();
        let name = name(rng);
        if rng.u8(..8) == 0 {
            piece.extend_from_slice(&name);
        } else {
            query::escape(&name, &mut piece);
        }
        pieces.insert(rng.usize(0..=pieces.len()), piece);
    }
    pieces.join(&b'&')
}

/// A `name` put together from pieces of its grammar.
fn name(rng: &mut Rng) -> Vec<u8> {
    let app = pick(
        rng,
        &[
            "foo",
            "my.app-1/x_y",
            " foo\t",
            "9",
            "",
            "f o",
            "föö",
            "\u{a0}foo\u{2003}",
        ],
    );
    let mut name = pick(rng, &["foo", "app.cpu", app]).as_bytes().to_vec();
    if rng.u8(..8) > 0 {
        name.push(b'{');
        for _ in 0..rng.usize(0..5) {
            let key = pick(
                rng,
                &[
                    "service_name",
                    "app_name",
                    "__name__",
                    "__session_id__",
                    "a",
                    " b ",
                    "B.c",
                    "_",
                ],
            );
            let key = if rng.u8(..24) == 0 {
                pick(rng, &["a-b", "", "é", "{b", "k,l"])
            } else {
                key
            };
            let value = pick(
                rng,
                &[
                    "", "1", " v ", "a=b", "{", "é", "svc", "a b;c&d", "\"q\"", "\u{2003}",
                ],
            );
            name.extend_from_slice(format!("{key}={value}").as_bytes());
            name.extend_from_slice(pick(rng, &[",", ",", ",", ",", "}", ",,", ""]).as_bytes());
        }
        name.extend_from_slice(pick(rng, &["}", "}", "}", "", "}}", "}x=1}"]).as_bytes());
    }
    if rng.u8(..16) == 0 {
        change_a_byte(rng, &mut name, b"{}=, \xff\xc3%&;+-_.");
    }
    name
}

fn query_piece(rng: &mut Rng) -> Vec<u8> {
    let pieces: [&[u8]; 20] = [
        b"from=1",
        b"until=2",
        b"format=pprof",
        b"a=1",
        b"a=2",
        b"a",
        b"=",
        b"",
        b"=v",
        b"b=+x+",
        b"c=%20%7e",
        b"d=~-_.!*'()",
        b"e=%zz",
        b"f=%4",
        b"g;h=1",
        b"i=\xc3\xa9",
        b"j=\xff",
        b"%61=3",
        b"k=a=b",
        b"l=%E2%80%83",
    ];
    pieces[rng.usize(..pieces.len())].to_vec()
}

fn raw_query(rng: &mut Rng) -> Vec<u8> {
    let pieces: Vec<Vec<u8>> = (0..rng.usize(0..6)).map(|_| query_piece(rng)).collect();
    let mut raw = pieces.join(&b'&');
    for _ in 0..rng.usize(0..3) {
        change_a_byte(rng, &mut raw, b"%&=;+ aF0\x00\x7f\x80\xff#?/{}");
    }
    raw
}

/// Inserts, replaces or removes one byte.
fn change_a_byte(rng: &mut Rng, text: &mut Vec<u8>, alphabet: &[u8]) {
    let byte = alphabet[rng.usize(..alphabet.len())];
    let at = rng.usize(0..=text.len());
    match rng.u8(..3) {
        _ if at == text.len() => text.push(byte),
        0 => text.insert(at, byte),
        1 => text[at] = byte,
        _ => drop(text.remove(at)),
    }
}

/// A JSON PushRequest with odd spellings, unknown fields and wrong types, sometimes with bytes changed.
fn json_body(rng: &mut Rng) -> Vec<u8> {
    let mut body = json_object(rng, 0).into_bytes();
    if rng.u8(..4) == 0 {
        for _ in 0..rng.usize(1..3) {
            change_a_byte(rng, &mut body, b"{}[]\",:\\ntfu0-.eE \t\n\x00\x1f\xff\xc3\xa9=");
        }
    }
    body
}

/// The messages of WIRE.md 3.4, outermost first: for each the key of the list in it, if it has one.
const JSON_LISTS: [&str; 2] = ["series", "labels"];

fn json_object(rng: &mut Rng, depth: usize) -> String {
    let mut fields = Vec::new();
    for _ in 0..rng.usize(0..4) {
        let field = match (depth, rng.u8(..8)) {
            (_, 0) => format!(
                "{}:{}",
                pick(rng, &["\"unknown\"", "\"Series\"", "\"id\"", "\"\""]),
                json_value(rng, 0)
            ),
            (0 | 1, 1..=4) => format!("\"{}\":{}", JSON_LISTS[depth], json_list(rng, depth + 1)),
            (1, _) => format!("\"samples\":{}", json_list(rng, 3)),
            (2, 1..=4) => format!("\"name\":{}", json_text(rng)),
            (2, _) => format!("\"value\":{}", json_text(rng)),
            (3, 1..=5) => format!(
                "\"{}\":{}",
                pick(rng, &["rawProfile", "raw_profile"]),
                json_bytes(rng)
            ),
            (3, _) => format!("\"ID\":{}", json_text(rng)),
            _ => format!(" \"unknown\" : {} ", json_value(rng, 0)),
        };
        // A field twice is an error, and should not be the usual one.
        let key = field.split(':').next().unwrap_or_default().trim().to_owned();
        if rng.u8(..16) == 0 || !fields.iter().any(|other: &String| other.trim().starts_with(&key)) {
            fields.push(field);
        }
    }
    format!("{{{}}}", fields.join(pick(rng, &[",", ",", " ,\n"])))
}

fn json_list(rng: &mut Rng, depth: usize) -> String {
    match rng.u8(..24) {
        0 => return json_value(rng, 0),
        1 => return "null".into(),
        _ => {}
    }
    let items: Vec<String> = (0..rng.usize(0..3)).map(|_| json_object(rng, depth)).collect();
    format!("[{}]", items.join(","))
}

fn json_text(rng: &mut Rng) -> String {
    if rng.u8(..32) == 0 {
        return json_value(rng, 0);
    }
    let texts = [
        r#""""#,
        r#""a""#,
        r#""service_name""#,
        r#""é🦀""#,
        r#""\u00e9\ud83e\udd80""#,
        r#""\n\t\"\\\/\b\f\r""#,
        "null",
        r#""\ud800""#,
        r#""\u12""#,
        r#""\x""#,
    ];
    // The last three are errors.
    let usual = texts.len() - if rng.u8(..8) == 0 { 0 } else { 3 };
    pick(rng, &texts[..usual]).to_owned()
}

fn json_bytes(rng: &mut Rng) -> String {
    let texts = [
        r#""""#,
        r#""YQ==""#,
        r#""YQ""#,
        r#""YWI=""#,
        r#""YWJj""#,
        r#""_-8=""#,
        r#""/+8""#,
        r#""_-8""#,
        "null",
        r#""YR==""#,
        r#""YQ=""#,
        r#""Y""#,
        r#""Y Q==""#,
        r#""_/8=""#,
        r#""YQ==YQ==""#,
        "7",
    ];
    let usual = if rng.u8(..8) == 0 { texts.len() } else { 10 };
    pick(rng, &texts[..usual]).to_owned()
}

fn json_value(rng: &mut Rng, depth: usize) -> String {
    let scalars = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "1.5e+3",
        "1E5",
        "\"x\"",
        "{}",
        "[]",
        "-1",
        "12345678901234567890",
        "01",
        "1.",
        "-",
        "tru",
        "nul",
        ".5",
        "1e",
        "+1",
    ];
    match rng.u8(..8) {
        0 if depth < 5 => format!("[{},{}]", json_value(rng, depth + 1), json_value(rng, depth + 1)),
        1 if depth < 5 => format!("{{\"k\":{}}}", json_value(rng, depth + 1)),
        2 if rng.u8(..4) == 0 => pick(rng, &scalars).to_owned(),
        _ => pick(rng, &scalars[..12]).to_owned(),
    }
}

/// A protobuf PushRequest with unknown fields and annotations, half of the time with bytes changed.
fn proto_body(rng: &mut Rng) -> Vec<u8> {
    let mut push = PushRequest {
        series: (0..rng.usize(0..3)).map(|_| series(rng)).collect(),
    };
    for series in &mut push.series {
        series
            .samples
            .iter_mut()
            .for_each(|sample| sample.raw_profile.truncate(40));
        if rng.bool() {
            series.annotations.push(ProfileAnnotation {
                key: "k".into(),
                value: pick(rng, &["", "v", "é"]).into(),
            });
        }
    }
    let mut body = push.encode_to_vec();
    if rng.bool() {
        let unknown: [&[u8]; 8] = [
            b"\x10\x01",
            b"\x1a\x01x",
            b"\x25abcd",
            b"\x29abcdefgh",
            b"\x13\x14",
            b"\x13\x08\x01\x14",
            b"\x0a\x00",
            b"\xf8\xff\xff\xff\x0f\x01",
        ];
        body.extend_from_slice(unknown[rng.usize(..unknown.len())]);
    }
    if rng.bool() {
        for _ in 0..rng.usize(1..3) {
            change_a_byte(
                rng,
                &mut body,
                b"\x00\x01\x02\x08\x0a\x0b\x0c\x12\x13\x14\x1a\x7f\x80\xc3\xff",
            );
        }
    }
    body
}
