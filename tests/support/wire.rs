//! Bodies, requests and messages as tests send and compare them.
//!
//! Responsible for: making them. Not responsible for sending them (`Client`) or receiving them (`Peer`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};

use prost::Message as _;
use pyrotee::profile::proto::{LabelPair, PushRequest, RawProfileSeries, RawSample};

/// The Push route.
pub const PUSH: &str = "/push.v1.PusherService/Push";

/// `bytes` bytes that no two positions or seeds share by accident.
pub fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed ^ (bytes as u64) << 20);
    let mut body = vec![0; bytes];
    random.fill(&mut body);
    body
}

/// A gzip member holding `bytes`.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("a Vec takes everything");
    encoder.finish().expect("a Vec takes everything")
}

/// What a gzip member holds.
pub fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let read = flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain);
    read.expect("whole gzip");
    plain
}

/// A POST with a chunked body; each piece of `pieces` is written as one chunk by `style`.
pub fn post_chunked(target: &str, headers: &str, body: &[u8], style: &ChunkStyle) -> Vec<u8> {
    let mut request =
        format!("POST {target} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n{headers}\r\n")
            .into_bytes();
    for chunk in body.chunks(style.bytes) {
        request.extend_from_slice((style.size_line)(chunk.len()).as_bytes());
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(style.end.as_bytes());
    request
}

/// A way of writing chunks.
pub struct ChunkStyle {
    /// What a failure calls it.
    pub name: &'static str,
    /// Data bytes of each chunk but the last.
    pub bytes: usize,
    /// The line in front of a chunk, without CRLF.
    pub size_line: fn(usize) -> String,
    /// The last chunk, trailers, and the empty line.
    pub end: &'static str,
}

/// Every way that RFC 9112 section 7.1 allows and some client uses.
pub const CHUNK_STYLES: [ChunkStyle; 9] = [
    style("one chunk", usize::MAX, |n| format!("{n:x}"), END),
    style("of one byte", 1, |n| format!("{n:x}"), END),
    style("of 13 bytes", 13, |n| format!("{n:x}"), END),
    style("of 511 bytes", 511, |n| format!("{n:x}"), END),
    style("of 8 KiB, upper case", 8 << 10, |n| format!("{n:X}"), END),
    style("of 64 KiB + 1", (64 << 10) + 1, |n| format!("{n:x}"), END),
    style(
        "with leading zeros",
        1000,
        |n| format!("0000{n:x}"),
        "0000\r\n\r\n",
    ),
    style(
        "with extensions",
        700,
        |n| format!("{n:x};a=b;c=\"d e\""),
        "0;last\r\n\r\n",
    ),
    style(
        "with trailers",
        4096,
        |n| format!("{n:x}"),
        "0\r\nX-Checksum: 1\r\nX-Other: a, b\r\n\r\n",
    ),
];

const END: &str = "0\r\n\r\n";

const fn style(
    name: &'static str,
    bytes: usize,
    size_line: fn(usize) -> String,
    end: &'static str,
) -> ChunkStyle {
    ChunkStyle {
        name,
        bytes,
        size_line,
        end,
    }
}

/// A Push of one series with these labels and one sample per profile.
pub fn push_message(labels: &[(&str, &str)], profiles: &[Vec<u8>]) -> PushRequest {
    let labels = labels.iter().map(|(name, value)| LabelPair {
        name: (*name).to_owned(),
        value: (*value).to_owned(),
    });
    let samples = profiles.iter().enumerate().map(|(index, profile)| RawSample {
        raw_profile: profile.clone().into(),
        id: format!("id-{index}"),
    });
    PushRequest {
        series: vec![RawProfileSeries {
            labels: labels.collect(),
            samples: samples.collect(),
            annotations: Vec::new(),
        }],
    }
}

/// The message as the wire has it.
pub fn encode(message: &PushRequest) -> Vec<u8> {
    message.encode_to_vec()
}

/// What a destination got on the Push route.
pub fn decode(body: &[u8]) -> PushRequest {
    PushRequest::decode(body).expect("a PushRequest")
}

/// The labels of a series.
pub fn labels_of(series: &RawProfileSeries) -> BTreeMap<&str, &str> {
    series
        .labels
        .iter()
        .map(|label| (&*label.name, &*label.value))
        .collect()
}

/// The labels that Alloy would send for these (WIRE.md 2.3 and 2.4, Push).
pub fn labels_by_contract(series: &RawProfileSeries) -> BTreeMap<&str, &str> {
    let mut labels = labels_of(series);
    labels.retain(|_, value| !value.is_empty());
    let name = labels.get("__name__").copied();
    if labels.contains_key("service_name") {
        match name {
            Some(name) => labels.insert("app_name", name),
            None => labels.remove("app_name"),
        };
    } else if let Some(name) = name {
        labels.insert("service_name", name);
    }
    labels.retain(|name, _| !name.starts_with("__") || matches!(*name, "__name__" | "__delta__"));
    labels
}

/// A query without its `name`, as sorted pairs, percent-decoded.
pub fn pairs_but_name(query: &str) -> Vec<(String, String)> {
    let pairs = url::form_urlencoded::parse(query.as_bytes()).into_owned();
    let mut pairs: Vec<_> = pairs.filter(|(key, _)| key != "name").collect();
    pairs.sort();
    pairs
}

/// The value of `name` in a query, percent-decoded.
pub fn name_of(query: &str) -> String {
    let found = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "name");
    found.map(|(_, value)| value.into_owned()).unwrap_or_default()
}

/// Says where two bodies part, without printing them.
pub fn assert_same_bytes(got: &[u8], expected: &[u8], what: &str) {
    if got == expected {
        return;
    }
    let at = got.iter().zip(expected).position(|(a, b)| a != b);
    let mut text = String::new();
    let _ = write!(text, "{what}: {} bytes instead of {}", got.len(), expected.len());
    if let Some(at) = at {
        let _ = write!(text, ", different from byte {at} on");
    }
    panic!("{text}");
}
