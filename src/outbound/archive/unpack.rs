//! What lies in a push: the profiles that become files, and what the index says of them. Pure, no disk.
//!
//! ```text
//!  /ingest  raw ───────────────────────▶ one file, the segments as they are
//!           form ─▶ part profile | jfr ─▶ one file, the other parts beside it
//!  Push     [unframe] [gunzip] [JSON] ──▶ one file per sample
//!  neither can be read ────────────────▶ the whole body as .bin, its describing headers beside it
//! ```
//! Memory: references into the push, at most [`FILES_MAX`] of them. A form that came in several segments is copied
//! together while its parts are looked for. A Push that `--labels verbatim` left compressed or as JSON is unpacked in
//! memory, at most [`INFLATED_BYTES_MAX`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sample_type::sample_type;
use super::segments::Segments;
use super::wire::{Malformed, Value, next_field};
use crate::fanout::Push;
use crate::profile::connect::{Codec, Protocol, is_gzip_encoded};
use crate::profile::grpc_web::unframe;
use crate::profile::inflate::gunzip;
use crate::profile::json::{JsonLimits, to_proto};
use crate::profile::multipart::parts;
use crate::profile::route::Route;
use crate::profile::{ingest, labels};

/// Most profiles of one push that become files of their own; a push of more is kept whole. Clients send a few dozen.
pub const FILES_MAX: usize = 4_096;
/// Most bytes that a compressed Push is inflated to; a larger one is kept whole. The server takes profiles of 4 MiB
/// (WIRE.md 1.4).
pub const INFLATED_BYTES_MAX: u64 = 64 << 20;
/// The first two bytes of gzip (RFC 1952, section 2.3.1).
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
/// The first bytes of a flight recording (jdk.jfr chunk header).
const JFR_MAGIC: &[u8] = b"FLR\0";
/// How much of a text is looked at to tell that it is one.
const TEXT_PROBE_BYTES: usize = 512;
/// The profile types that may end an app name (WIRE.md 1.4).
const TYPE_WORDS: [&str; 25] = [
    "cpu",
    "wall",
    "itimer",
    "inuse_objects",
    "inuse_space",
    "alloc_objects",
    "alloc_space",
    "goroutines",
    "mutex_count",
    "mutex_duration",
    "block_count",
    "block_duration",
    "lock_count",
    "lock_duration",
    "alloc_in_new_tlab_objects",
    "alloc_in_new_tlab_bytes",
    "alloc_outside_tlab_objects",
    "alloc_outside_tlab_bytes",
    "live",
    "exceptions",
    "seconds",
    "nanoseconds",
    "microseconds",
    "milliseconds",
    "bytes",
];

/// One profile and what is known of it.
#[derive(Clone, Debug)]
pub struct Profile {
    /// What it belongs to.
    pub meta: Arc<Meta>,
    /// The profile type, e.g. `process_cpu`; unsanitised.
    pub kind: String,
    /// How to read it.
    pub format: Format,
    /// Whether to gunzip it on the way to its file.
    pub gunzip: bool,
    /// Its bytes; none for an empty profile, which a server accepts and does not store (WIRE.md 1.4).
    pub content: Segments,
    /// What came with it.
    pub companions: Vec<Companion>,
    /// Why it was kept whole, if it was.
    pub note: Option<String>,
}

/// Something that came with a profile and is kept beside it.
#[derive(Clone, Debug)]
pub struct Companion {
    /// What its file name ends with, e.g. `labels.pb`; unsanitised.
    pub suffix: String,
    /// Its bytes.
    pub content: Segments,
}

/// What several profiles of a push have in common. What the client did not say is absent.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Meta {
    /// `service_name`, or else the app name; empty if there is neither.
    pub service: String,
    /// All labels with `__name__`, sorted.
    pub labels: BTreeMap<String, String>,
    /// `from` as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// `until` as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// `spyName`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spy: Option<String>,
    /// `units`, without which the numbers of text formats mean little.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<String>,
    /// `aggregationType`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<String>,
    /// `sampleRate` as sent, in Hz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_rate: Option<String>,
}

/// How to read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// pprof inside gzip, as Go writes it.
    PprofGzip,
    /// pprof without gzip.
    Pprof,
    /// A flight recording.
    Jfr,
    /// Stacks and counts, one per line.
    Folded,
    /// Stacks, one per line.
    Lines,
    /// WIRE.md 1.4.
    Trie,
    /// WIRE.md 1.4.
    Tree,
    /// speedscope.app.
    Speedscope,
    /// Kept as it came.
    Unknown,
}

impl Format {
    /// What the index calls it.
    pub fn name(self) -> &'static str {
        match self {
            Format::PprofGzip | Format::Pprof => "pprof",
            Format::Jfr => "jfr",
            Format::Folded => "folded",
            Format::Lines => "lines",
            Format::Trie => "trie",
            Format::Tree => "tree",
            Format::Speedscope => "speedscope",
            Format::Unknown => "unknown",
        }
    }

    /// What the file's name ends with.
    pub fn extension(self) -> &'static str {
        match self {
            Format::PprofGzip => "pb.gz",
            Format::Pprof => "pprof",
            Format::Jfr => "jfr",
            Format::Folded => "folded",
            Format::Lines => "lines",
            Format::Trie => "trie",
            Format::Tree => "tree",
            Format::Speedscope => "speedscope.json",
            Format::Unknown => "bin",
        }
    }
}

/// Why a push could not be taken apart. The text names no value of the client's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unreadable(String);

impl From<Malformed> for Unreadable {
    fn from(_: Malformed) -> Self {
        Unreadable("malformed protobuf".into())
    }
}

impl From<&str> for Unreadable {
    fn from(text: &str) -> Self {
        Unreadable(text.into())
    }
}

/// The profiles of `push`, in order. Never fails: what cannot be read is one profile of unknown format.
pub fn unpack(push: &Push) -> Vec<Profile> {
    let meta = match push.route {
        Route::Ingest => ingest_meta(&push.query),
        Route::Push => Meta::default(),
    };
    let profiles = match push.route {
        Route::Ingest => ingest_profile(push, &meta).map(|profile| vec![profile]),
        Route::Push => push_message(push).and_then(push_profiles),
    };
    profiles.unwrap_or_else(|Unreadable(note)| vec![whole(push, meta, note)])
}

/// The whole body as it came.
fn whole(push: &Push, meta: Meta, note: String) -> Profile {
    Profile {
        meta: Arc::new(meta),
        kind: "unread".into(),
        format: Format::Unknown,
        gunzip: false,
        content: push.segments.iter().collect(),
        companions: vec![Companion {
            suffix: "headers".into(),
            content: describing_fields(push).into(),
        }],
        note: Some(note),
    }
}

/// The request's line and the header lines that say how to read the body. Others stay out: passed-on headers may
/// carry credentials.
fn describing_fields(push: &Push) -> Vec<u8> {
    let path: &[u8] = match push.route {
        Route::Ingest => b"POST /ingest",
        Route::Push => b"POST /push.v1.PusherService/Push",
    };
    let mut text = path.to_vec();
    if !push.query.is_empty() {
        text.push(b'?');
        text.extend_from_slice(&push.query);
    }
    text.extend_from_slice(b"\r\n");
    for (name, value) in fields(&push.fields) {
        let lower = name.to_ascii_lowercase();
        if lower.starts_with(b"content-") || lower == b"grpc-encoding" {
            text.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
        }
    }
    text
}

fn fields(lines: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines.split(|&byte| byte == b'\n').filter_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        Some((line[..colon].trim_ascii(), line[colon + 1..].trim_ascii()))
    })
}

fn field<'a>(push: &'a Push, wanted: &str) -> Option<&'a [u8]> {
    fields(&push.fields)
        .find(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()))
        .map(|(_, value)| value)
}

fn ingest_meta(query: &[u8]) -> Meta {
    let description = ingest::describe(query);
    let mut meta = Meta {
        labels: description.labels.into_iter().collect(),
        from: description.from,
        until: description.until,
        spy: description.spy_name,
        units: description.units,
        aggregation: description.aggregation_type,
        sample_rate: description.sample_rate,
        service: String::new(),
    };
    if !description.app_name.is_empty() {
        meta.labels.insert("__name__".into(), description.app_name);
    }
    meta.service = service(&meta.labels, true);
    meta
}

/// The service that labels name. On Push `__name__` is the profile type and no name to fall back on.
fn service(labels: &BTreeMap<String, String>, name_is_service: bool) -> String {
    let named = |name: &[u8]| {
        let name = std::str::from_utf8(name).ok()?;
        labels.get(name).filter(|value| !value.is_empty())
    };
    named(labels::SERVICE_NAME)
        .or_else(|| named(labels::NAME).filter(|_| name_is_service))
        .cloned()
        .unwrap_or_default()
}

/// The one profile of an `/ingest`, by the server's own rules of dispatch (WIRE.md 1.3).
fn ingest_profile(push: &Push, meta: &Meta) -> Result<Profile, Unreadable> {
    let content_type = field(push, "content-type").unwrap_or_default();
    let wanted = ingest::describe(&push.query).format.unwrap_or_default();
    let is_form = memchr::memmem::find(content_type, b"multipart/form-data").is_some();
    let format = match wanted.as_str() {
        "trie" => Format::Trie,
        _ if content_type == b"binary/octet-stream+trie" => Format::Trie,
        "tree" => Format::Tree,
        _ if content_type == b"binary/octet-stream+tree" => Format::Tree,
        "lines" => Format::Lines,
        "jfr" => Format::Jfr,
        "pprof" => Format::Pprof,
        "speedscope" => Format::Speedscope,
        _ if is_form => Format::Pprof,
        _ => Format::Folded,
    };
    let body: Segments = push.segments.iter().collect();
    let (content, companions) = match format {
        Format::Jfr if is_form => form(content_type, &body, "jfr")?,
        Format::Pprof if is_form => form(content_type, &body, "profile")?,
        _ => (body, Vec::new()),
    };
    let mut profile = Profile {
        meta: Arc::new(meta.clone()),
        kind: String::new(),
        format,
        gunzip: false,
        content,
        companions,
        note: None,
    };
    if !recognise(&mut profile) {
        return Err(Unreadable(format!("the body is no {}", format.name())));
    }
    profile.kind = ingest_kind(&profile);
    Ok(profile)
}

/// The type of a profile from `/ingest`. pprof says it itself. Text formats name it in the last word of the app name;
/// before the label rules were applied that was the `__name__`, which is kept as `app_name` (WIRE.md 2.3).
fn ingest_kind(profile: &Profile) -> String {
    match profile.format {
        Format::Pprof => sample_type(&profile.content, false).unwrap_or_else(|| "pprof".into()),
        Format::PprofGzip => sample_type(&profile.content, true).unwrap_or_else(|| "pprof".into()),
        Format::Jfr => "jfr".into(),
        _ => {
            let labels = &profile.meta.labels;
            let app_name = labels.get("app_name").or_else(|| labels.get("__name__"));
            let last_word = app_name.and_then(|name| name.rsplit_once('.'));
            let kind = last_word
                .map(|(_, word)| word)
                .filter(|word| TYPE_WORDS.contains(word));
            kind.unwrap_or("cpu").into()
        }
    }
}

/// The part `wanted` of a form, and all others that have content.
fn form(
    content_type: &[u8],
    body: &Segments,
    wanted: &str,
) -> Result<(Segments, Vec<Companion>), Unreadable> {
    let found = parts(content_type, &body.contiguous());
    let main = found
        .iter()
        .position(|part| part.name == wanted)
        .ok_or("the form lacks its profile")?;
    let companions = found
        .iter()
        .enumerate()
        .filter(|(index, part)| *index != main && !part.range.is_empty())
        .map(|(_, part)| Companion {
            suffix: companion_suffix(&part.name, &body.range(part.range.clone())),
            content: body.range(part.range.clone()),
        })
        .collect();
    Ok((body.range(found[main].range.clone()), companions))
}

fn companion_suffix(part: &str, content: &Segments) -> String {
    let extension = match part {
        "sample_type_config" => "json",
        "labels" if content.head(2) == GZIP_MAGIC => "pb.gz",
        "labels" => "pb",
        _ if content.head(2) == GZIP_MAGIC => "gz",
        _ => "bin",
    };
    format!("{part}.{extension}")
}

/// Looks at the content where that is cheap, and settles what depends on it. False if it is not what it is said to be.
fn recognise(profile: &mut Profile) -> bool {
    let content = &profile.content;
    if content.is_empty() {
        return true;
    }
    let head = content.head(TEXT_PROBE_BYTES);
    let is_gzip = head.starts_with(GZIP_MAGIC);
    match profile.format {
        Format::Pprof if is_gzip => {
            profile.format = Format::PprofGzip;
            true
        }
        Format::Pprof => looks_like_pprof(content.clone()),
        Format::Jfr => {
            profile.gunzip = is_gzip;
            is_gzip || head.starts_with(JFR_MAGIC)
        }
        Format::Folded | Format::Lines | Format::Speedscope => !is_gzip && !head.contains(&0),
        _ => true,
    }
}

/// Whether all fields are fields of a pprof Profile (profile.proto: 1 to 15), with at least one sample type.
fn looks_like_pprof(mut message: Segments) -> bool {
    let mut has_type = false;
    loop {
        match next_field(&mut message) {
            Ok(None) => return has_type,
            Ok(Some((1, Value::Bytes(_)))) => has_type = true,
            Ok(Some((2..=6 | 11 | 13, Value::Bytes(_)))) => {}
            Ok(Some((7..=10 | 12 | 14 | 15, Value::Varint(_)))) => {}
            Ok(Some((13, Value::Varint(_)))) => {}
            _ => return false,
        }
    }
}

/// The PushRequest of a push, whatever it is wrapped in.
fn push_message(push: &Push) -> Result<Segments, Unreadable> {
    let gzip_declared =
        |name| is_gzip_encoded(field(push, name)).map_err(|_| Unreadable::from("unknown encoding"));
    let codec = match field(push, "content-type") {
        None => Codec::Proto,
        Some(value) => Codec::parse(Some(value)).ok_or("unknown content type")?,
    };
    let (segments, compressed) = match codec.protocol() {
        Protocol::Connect => (push.segments.clone(), gzip_declared("content-encoding")?),
        Protocol::GrpcWeb | Protocol::Grpc => {
            let message = unframe(&push.segments, gzip_declared("grpc-encoding")?, true)
                .map_err(|error| Unreadable(error.to_string()))?;
            (message.segments, message.compressed)
        }
    };
    let message: Segments = if compressed {
        let blocks = gunzip(&segments, INFLATED_BYTES_MAX, &mut |_| true)
            .map_err(|error| Unreadable(error.to_string()))?;
        blocks.iter().collect()
    } else {
        segments.iter().collect()
    };
    if codec.is_json() {
        let limits = JsonLimits {
            bytes_max: usize::try_from(INFLATED_BYTES_MAX).unwrap_or(usize::MAX),
            ..JsonLimits::default()
        };
        let proto =
            to_proto(&message.contiguous(), &limits).map_err(|error| Unreadable(error.to_string()))?;
        return Ok(proto.into());
    }
    Ok(message)
}

/// One profile per sample (WIRE.md 3.1).
fn push_profiles(mut message: Segments) -> Result<Vec<Profile>, Unreadable> {
    let mut profiles = Vec::new();
    while let Some((number, value)) = next_field(&mut message)? {
        if let (1, Value::Bytes(series)) = (number, value) {
            series_profiles(series, &mut profiles)?;
        }
    }
    Ok(profiles)
}

fn series_profiles(mut series: Segments, profiles: &mut Vec<Profile>) -> Result<(), Unreadable> {
    let limits = labels::LabelLimits::default();
    let mut labels = BTreeMap::new();
    let mut samples = Vec::new();
    while let Some((number, value)) = next_field(&mut series)? {
        match (number, value) {
            (1, Value::Bytes(pair)) => {
                let (name, value) = label(pair)?;
                labels.insert(name, value);
                if labels.len() > limits.count_max {
                    return Err("too many labels".into());
                }
            }
            (2, Value::Bytes(sample)) => {
                if profiles.len() + samples.len() >= FILES_MAX {
                    return Err("too many profiles in one push".into());
                }
                samples.push(raw_profile(sample)?);
            }
            _ => {}
        }
    }
    let kind = match labels.get("__name__") {
        Some(name) if !name.is_empty() => name.clone(),
        _ => "pprof".into(),
    };
    let meta = Arc::new(Meta {
        service: service(&labels, false),
        labels,
        ..Meta::default()
    });
    for content in samples {
        let mut profile = Profile {
            meta: meta.clone(),
            kind: kind.clone(),
            format: Format::Pprof,
            gunzip: false,
            content,
            companions: Vec::new(),
            note: None,
        };
        if !recognise(&mut profile) {
            profile.format = Format::Unknown;
            profile.note = Some("the sample is no pprof".into());
        }
        profiles.push(profile);
    }
    Ok(())
}

fn label(mut pair: Segments) -> Result<(String, String), Malformed> {
    let (mut name, mut value) = (String::new(), String::new());
    while let Some((number, content)) = next_field(&mut pair)? {
        if let (1 | 2, Value::Bytes(text)) = (number, content) {
            let text = String::from_utf8_lossy(&text.contiguous()).into_owned();
            *(if number == 1 { &mut name } else { &mut value }) = text;
        }
    }
    Ok((name, value))
}

fn raw_profile(mut sample: Segments) -> Result<Segments, Malformed> {
    let mut profile = Segments::default();
    while let Some((number, value)) = next_field(&mut sample)? {
        if let (1, Value::Bytes(bytes)) = (number, value) {
            profile = bytes;
        }
    }
    Ok(profile)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;

    use base64::Engine as _;
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::fanout::AckMode;
    use crate::fanout::push::tests::push;
    use crate::profile::grpc_web::write_message;

    /// One sample type, `cpu`, and its string table.
    pub(in super::super) const PPROF: &[u8] = b"\x0a\x02\x08\x01\x32\x00\x32\x03cpu";

    pub(in super::super) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    pub(in super::super) fn made(route: Route, query: &str, fields: &str, body: &[u8], step: usize) -> Push {
        let mut made = push(body.len() as u64, AckMode::Detached, 1);
        made.route = route;
        made.query = Bytes::copy_from_slice(query.as_bytes());
        made.fields = Bytes::copy_from_slice(fields.as_bytes());
        made.segments = body.chunks(step.max(1)).map(Bytes::copy_from_slice).collect();
        made
    }

    fn form_of(parts: &[(&str, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, content) in parts {
            let head = format!(
                "--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\r\n"
            );
            body.extend_from_slice(&[head.as_bytes(), content, b"\r\n"].concat());
        }
        body.extend_from_slice(b"--b--\r\n");
        body
    }

    const FORM: &str = "Content-Type: multipart/form-data; boundary=b\r\n";

    #[test]
    fn ingest_by_the_rules_of_dispatch() {
        let zipped = gzip(PPROF);
        let jfr = b"FLR\0\0\x02rest".as_slice();
        let zipped_jfr = gzip(jfr);
        let binary = "Content-Type: binary/octet-stream";
        let go_form = form_of(&[("profile", &zipped), ("sample_type_config", b"{}")]);
        let jfr_form = form_of(&[("jfr", &zipped_jfr), ("labels", b"\x0a\x00")]);
        type Case<'a> = (&'a str, &'a str, &'a str, &'a [u8], &'a str, &'a str, &'a [u8]);
        let cases: &[Case<'_>] = &[
            (
                "gzip",
                "name=a&format=pprof",
                "",
                &zipped,
                "pb.gz",
                "cpu",
                &zipped,
            ),
            ("plain", "name=a&format=pprof", "", PPROF, "pprof", "cpu", PPROF),
            (
                "no pprof",
                "name=a&format=pprof",
                "",
                b"<html>",
                "bin",
                "unread",
                b"<html>",
            ),
            ("go form", "name=a", FORM, &go_form, "pb.gz", "cpu", &zipped),
            (
                "form said to be raw",
                "name=a&format=pprof",
                FORM,
                &go_form,
                "pb.gz",
                "cpu",
                &zipped,
            ),
            ("jfr", "name=a&format=jfr", "", jfr, "jfr", "jfr", jfr),
            (
                "jfr in gzip",
                "name=a&format=jfr",
                "",
                &zipped_jfr,
                "jfr",
                "jfr",
                &zipped_jfr,
            ),
            (
                "jfr form",
                "name=a&format=jfr",
                FORM,
                &jfr_form,
                "jfr",
                "jfr",
                &zipped_jfr,
            ),
            (
                "no jfr",
                "name=a&format=jfr",
                "",
                b"text",
                "bin",
                "unread",
                b"text",
            ),
            (
                "form without jfr",
                "name=a&format=jfr",
                FORM,
                &go_form,
                "bin",
                "unread",
                &go_form,
            ),
            (
                "form of another boundary",
                "name=a",
                FORM,
                b"--c\r\n",
                "bin",
                "unread",
                b"--c\r\n",
            ),
            (
                "folded",
                "name=a.wall",
                "",
                b"a;b 1\n",
                "folded",
                "wall",
                b"a;b 1\n",
            ),
            (
                "folded, rewritten name",
                "name=s{app_name=a.wall,service_name=s}",
                "",
                b"a 1",
                "folded",
                "wall",
                b"a 1",
            ),
            (
                "folded without a word",
                "name=a.b&format=groups",
                "",
                b"a 1",
                "folded",
                "cpu",
                b"a 1",
            ),
            (
                "folded that is none",
                "name=a",
                "",
                &zipped,
                "bin",
                "unread",
                &zipped,
            ),
            (
                "lines",
                "name=a&format=lines",
                "",
                b"a;b\n",
                "lines",
                "cpu",
                b"a;b\n",
            ),
            (
                "trie",
                "name=a.itimer&format=trie",
                "",
                b"\0\0",
                "trie",
                "itimer",
                b"\0\0",
            ),
            (
                "trie by type",
                "name=a",
                &format!("{binary}+trie\r\n"),
                b"\0",
                "trie",
                "cpu",
                b"\0",
            ),
            (
                "tree by type",
                "name=a",
                &format!("{binary}+tree\r\n"),
                b"\0",
                "tree",
                "cpu",
                b"\0",
            ),
            (
                "speedscope",
                "name=a&format=speedscope",
                "",
                b"{}",
                "speedscope.json",
                "cpu",
                b"{}",
            ),
            ("empty", "name=a&format=pprof", "", b"", "pprof", "pprof", b""),
        ];
        for (name, query, fields, body, extension, kind, content) in cases {
            for step in [1, 7, 1 << 20] {
                let [profile] =
                    <[Profile; 1]>::try_from(unpack(&made(Route::Ingest, query, fields, body, step)))
                        .expect("one profile");
                assert_eq!(
                    (profile.format.extension(), profile.kind.as_str()),
                    (*extension, *kind),
                    "{name}"
                );
                assert_eq!(&*profile.content.contiguous(), *content, "{name}");
                assert_eq!(profile.note.is_some(), *kind == "unread", "{name}");
            }
        }
    }

    #[test]
    fn what_comes_with_a_profile_is_kept_beside_it() {
        let form = form_of(&[
            ("labels", b"\x0a\x00"),
            ("jfr", b"FLR\0"),
            ("empty", b""),
            ("../x", b"?"),
        ]);
        let profile = &unpack(&made(Route::Ingest, "name=a&format=jfr", FORM, &form, 9))[0];
        let beside: Vec<(&str, Vec<u8>)> = profile
            .companions
            .iter()
            .map(|companion| (companion.suffix.as_str(), companion.content.head(9)))
            .collect();
        assert_eq!(
            beside,
            [("labels.pb", b"\x0a\x00".to_vec()), ("../x.bin", b"?".to_vec())]
        );
    }

    #[test]
    fn the_query_is_described() {
        let query = "name=shop.cpu%7Bservice_name%3Dshop%2Ca%3D1%7D&from=1&until=2&spyName=x&units=bytes&sampleRate=17\
                     &aggregationType=average";
        let meta = unpack(&made(Route::Ingest, query, "", b"a 1", 9))[0].meta.clone();
        assert_eq!(
            serde_json::to_value(&*meta).unwrap(),
            serde_json::json!({
                "service": "shop", "from": "1", "until": "2", "spy": "x", "units": "bytes", "aggregation": "average",
                "sample_rate": "17", "labels": {"__name__": "shop.cpu", "a": "1", "service_name": "shop"},
            })
        );
    }

    fn field_of(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap();
        let varint = [length as u8 & 0x7f | 0x80, (length >> 7) as u8];
        [&[number << 3 | 2], varint.as_slice(), content].concat()
    }

    fn label_of(name: &str, value: &str) -> Vec<u8> {
        field_of(
            1,
            &[field_of(1, name.as_bytes()), field_of(2, value.as_bytes())].concat(),
        )
    }

    /// Two series: one of two samples, one of one that is no pprof.
    fn request() -> Vec<u8> {
        let sample = |content: &[u8]| field_of(2, &[field_of(1, content), field_of(2, b"id")].concat());
        let first = [
            sample(PPROF),
            label_of("service_name", "shop"),
            label_of("__name__", "process_cpu"),
            sample(&gzip(PPROF)),
        ];
        let second = [label_of("a", "b"), sample(b"junk")];
        [field_of(1, &first.concat()), field_of(1, &second.concat())].concat()
    }

    fn summary(push: &Push) -> Vec<(String, String, &'static str, Vec<u8>)> {
        unpack(push)
            .into_iter()
            .map(|profile| {
                let content = profile.content.contiguous().into_owned();
                (
                    profile.meta.service.clone(),
                    profile.kind,
                    profile.format.extension(),
                    content,
                )
            })
            .collect()
    }

    #[test]
    fn a_push_is_one_file_per_sample_however_it_is_wrapped() {
        let request = request();
        let of = |service: &str, kind: &str, extension, content: &[u8]| {
            (service.to_owned(), kind.to_owned(), extension, content.to_vec())
        };
        let expected = [
            of("shop", "process_cpu", "pprof", PPROF),
            of("shop", "process_cpu", "pb.gz", &gzip(PPROF)),
            of("", "pprof", "bin", b"junk"),
        ];
        let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let json = format!(
            r#"{{"series":[{{"labels":[{{"name":"service_name","value":"shop"}},{{"name":"__name__","value":"process_cpu"}}],
            "samples":[{{"rawProfile":"{}"}},{{"rawProfile":"{}"}}]}},{{"labels":[{{"name":"a","value":"b"}}],"samples":[{{"rawProfile":"{}"}}]}}]}}"#,
            base64(PPROF),
            base64(&gzip(PPROF)),
            base64(b"junk")
        );
        let (mut framed, mut framed_gzip) = (Vec::new(), Vec::new());
        write_message(&request, false, &mut framed);
        write_message(&gzip(&request), true, &mut framed_gzip);
        let cases: &[(&str, &str, &[u8])] = &[
            ("proto", "Content-Type: application/proto\r\n", &request),
            ("no type", "", &request),
            (
                "gzip",
                "content-type:application/proto\r\nContent-Encoding: gzip\r\n",
                &gzip(&request),
            ),
            ("json", "Content-Type: application/json\r\n", json.as_bytes()),
            (
                "json gzip",
                "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
                &gzip(json.as_bytes()),
            ),
            (
                "grpc-web",
                "Content-Type: application/grpc-web+proto\r\n",
                &framed,
            ),
            (
                "grpc-web gzip",
                "Content-Type: application/grpc-web\r\nGrpc-Encoding: gzip\r\n",
                &framed_gzip,
            ),
        ];
        for (name, fields, body) in cases {
            for step in [1, 5, 1 << 20] {
                assert_eq!(
                    summary(&made(Route::Push, "", fields, body, step)),
                    expected,
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn a_push_that_cannot_be_read_is_kept_whole_with_its_describing_headers() {
        let proto = "Content-Type: application/proto\r\nAuthorization: Bearer secret\r\nX-Scope-OrgID: t\r\n";
        let gzipped = format!("{proto}Content-Encoding: gzip\r\n");
        let many = [0x12, 0x00].repeat(FILES_MAX + 1);
        let cases: &[(&str, &str, &[u8])] = &[
            ("cut protobuf", proto, b"\x0a\x05abc"),
            ("cut gzip", &gzipped, &gzip(&request())[..20]),
            ("no gzip", &gzipped, b"hello"),
            ("bad json", "Content-Type: application/json\r\n", b"[1"),
            ("unknown type", "Content-Type: text/plain\r\n", b"x"),
            ("unknown encoding", "Content-Encoding: br\r\n", b"x"),
            ("too many samples", proto, &field_of(1, &many)),
        ];
        for (name, fields, body) in cases {
            let profiles = unpack(&made(Route::Push, "", fields, body, 4));
            assert_eq!(profiles.len(), 1, "{name}");
            assert_eq!(&*profiles[0].content.contiguous(), *body, "{name}");
            assert_eq!(profiles[0].format, Format::Unknown, "{name}");
            let headers = String::from_utf8(profiles[0].companions[0].content.head(4096)).unwrap();
            assert!(
                headers.starts_with("POST /push.v1.PusherService/Push\r\nContent-"),
                "{name}: {headers}"
            );
            assert!(
                !headers.contains("secret") && !headers.contains("Scope"),
                "{name}: {headers}"
            );
        }
    }

    #[test]
    fn gzip_bombs_are_kept_whole() {
        let bomb = gzip(&vec![0; INFLATED_BYTES_MAX as usize + 1]);
        let fields = "Content-Type: application/proto\r\nContent-Encoding: gzip\r\n";
        let profiles = unpack(&made(Route::Push, "", fields, &bomb, 1 << 16));
        assert_eq!((profiles.len(), profiles[0].format), (1, Format::Unknown));
    }

    #[test]
    fn files_are_slices_of_the_body() {
        let request = request();
        let push = made(Route::Push, "", "", &request, 1 << 20);
        let body = push.segments[0].as_ptr_range();
        let form = form_of(&[("profile", PPROF)]);
        let form = made(Route::Ingest, "name=a", FORM, &form, 1 << 20);
        let form_body = form.segments[0].as_ptr_range();
        for (profile, body) in unpack(&push)
            .iter()
            .map(|profile| (profile, &body))
            .chain(unpack(&form).iter().map(|profile| (profile, &form_body)))
        {
            assert!(body.contains(&bytes::Buf::chunk(&profile.content).as_ptr()));
        }
    }

    proptest! {
        /// Whatever comes, no byte is invented and nothing panics.
        #[test]
        fn any_bytes_are_unpacked(body in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..8, step in 1usize..50) {
            let (route, query, fields) = [
                (Route::Push, "", ""),
                (Route::Push, "", "Content-Type: application/json\r\n"),
                (Route::Push, "", "Content-Type: application/grpc-web\r\n"),
                (Route::Push, "", "Content-Encoding: gzip\r\n"),
                (Route::Ingest, "format=pprof", ""),
                (Route::Ingest, "format=jfr", FORM),
                (Route::Ingest, "name=%", FORM),
                (Route::Ingest, "", ""),
            ][kind];
            let profiles = unpack(&made(route, query, fields, &body, step));
            let bytes: usize = profiles.iter().map(|profile| profile.content.len()).sum();
            prop_assert!(bytes <= body.len());
            prop_assert!(route == Route::Push || profiles.len() == 1);
        }

        /// Every change of one byte of a good request is read or kept whole.
        #[test]
        fn broken_requests_are_unpacked(at in any::<prop::sample::Index>(), byte in any::<u8>(), step in 1usize..50) {
            let mut body = request();
            let at = at.index(body.len());
            body[at] = byte;
            for profile in unpack(&made(Route::Push, "", "", &body, step)) {
                prop_assert!(profile.content.len() <= body.len());
            }
        }
    }
}
