//! The requests of a run, made before it: heads, marked profiles, and where the id goes.
//!
//! ```text
//!  front, one per service and kind                                        tail, one per kind
//!  [request head][protobuf labels][gzip header][mark: id .... length hash][deflate ... crc size]
//!                                                     ▲ patched per request
//! ```
//! A profile is a gzip'd pprof that any reader opens; its mark lies in the EXTRA field of the gzip header. With `--gzip`
//! the body as a whole is gzip'd once more: what stands before the covered bytes goes into a stored block, so the id stays
//! in plain sight, and the mark is sealed, so the trailer's CRC stays right (`cmd/mark.rs`).
//!
//! Not responsible for sending (`connection.rs`) or for which request comes when (`mix.rs`).

use std::io::Write as _;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use prost::Message as _;

use super::{IngestFormat, RouteChoice};
use crate::cmd::mark::{self, MARK_BYTES, ProfileId};
use crate::profile::proto::{LabelPair, PushRequest, RawProfileSeries, RawSample};
use crate::profile::query;

/// Where the mark begins in a profile: gzip header (10), length of EXTRA (2), id and length of our field (4).
const MARK_AT: usize = 16;
/// Room in the EXTRA field beside the mark (RFC 1952 section 2.3.1.1: the whole field is below 64 KiB), rounded down.
const PADDING_MAX: usize = 60_000;
/// Functions a profile names.
const FUNCTIONS_MAX: u64 = 64;
/// One sample of our profiles takes about this many bytes once deflated: the first guess.
const SAMPLE_BYTES_GUESS: usize = 18;
/// Guesses at a sample count before we give up. Each lands within a few percent of what is left; 3 are usual.
const GUESSES_MAX: usize = 24;

/// What to make requests of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// `Host` and path prefix of the URL; the prefix has no slash at its end.
    pub host: String,
    /// Before `/ingest` and the Push path.
    pub path_prefix: String,
    /// Which routes.
    pub route: RouteChoice,
    /// What `/ingest` bodies are.
    pub ingest_format: IngestFormat,
    /// Whether Push bodies are gzip'd.
    pub gzip: bool,
    /// Body sizes in bytes.
    pub sizes: Vec<usize>,
    /// Different services.
    pub services: usize,
    /// Labels of each series beside the usual ones.
    pub labels: usize,
    /// What services are called, before their number.
    pub name: String,
    /// Whether each request asks for its connection to be closed.
    pub close: bool,
    /// Seconds since the unix epoch: when the profiles end.
    pub until: u64,
}

/// A request up to the end of its mark.
#[derive(Debug)]
pub struct Front {
    bytes: Vec<u8>,
    head_bytes: usize,
    /// The CRC register before the id, where the mark must be sealed.
    seal: Option<u32>,
}

/// All requests of one route and size.
#[derive(Debug)]
pub struct Kind {
    /// By service.
    pub fronts: Vec<Front>,
    /// What follows each of them.
    pub tail: Bytes,
}

impl Kind {
    /// A memory that holds any of the requests, for [`Kind::write`].
    pub fn buffer(&self) -> Vec<u8> {
        let front_bytes_max = self
            .fronts
            .iter()
            .map(|front| front.bytes.len())
            .max()
            .unwrap_or(0);
        let mut buffer = vec![0; front_bytes_max + self.tail.len()];
        buffer[front_bytes_max..].copy_from_slice(&self.tail);
        buffer
    }

    /// Puts the request of a service into a buffer from [`Kind::buffer`]. Returns where it begins; it ends with the
    /// buffer.
    pub fn write(&self, service: usize, id: ProfileId, buffer: &mut [u8]) -> usize {
        let front = &self.fronts[service];
        let end = buffer.len() - self.tail.len();
        let begin = end - front.bytes.len();
        buffer[begin..end].copy_from_slice(&front.bytes);
        let mark = &mut buffer[end - MARK_BYTES..end];
        mark::set_id(mark, id);
        if let Some(register) = front.seal {
            mark::seal(mark, register);
        }
        begin
    }

    /// Length of the body of any request of this kind, in bytes.
    pub fn body_bytes(&self) -> usize {
        let front = self
            .fronts
            .first()
            .map_or(0, |front| front.bytes.len() - front.head_bytes);
        front + self.tail.len()
    }
}

/// Makes the requests, a kind per route and size: all sizes of the first route, then those of the second.
///
/// # Errors
/// When a body cannot be as small as asked for.
pub fn make(recipe: &Recipe) -> anyhow::Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    for route in recipe.route.routes() {
        for size in &recipe.sizes {
            let kind = match route {
                Route::Push => push_kind(recipe, *size),
                Route::Ingest => ingest_kind(recipe, *size),
            };
            kinds.push(kind.with_context(|| format!("--size {size}B cannot be made for {route:?}"))?);
        }
    }
    Ok(kinds)
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/ingest`
    Ingest,
    /// `/push.v1.PusherService/Push`
    Push,
}

fn push_kind(recipe: &Recipe, size: usize) -> anyhow::Result<Kind> {
    // Services have names of one length, so the profile has one length for all of them.
    let around = push_request(recipe, 0, &Bytes::new()).encoded_len();
    ensure!(
        size > around,
        "the labels alone take {around} bytes; raise --size or lower --labels"
    );
    let mut profile_bytes = size - around;
    while push_request(recipe, 0, &vec![0; profile_bytes].into()).encoded_len() > size {
        profile_bytes -= 1;
    }
    let profile = Bytes::from(pprof(profile_bytes, recipe.until)?);
    let mut fronts = Vec::new();
    let mut tail = Bytes::new();
    for service in 0..recipe.services {
        let body = push_request(recipe, service, &profile).encode_to_vec();
        let profile_at = memchr::memmem::find(&body, &profile).context("a label looks like a profile")?;
        let covered_at = profile_at + MARK_AT + MARK_BYTES;
        let (front, rest, seal) = if recipe.gzip {
            let id_at = profile_at + MARK_AT + mark::ID_AT;
            (
                stored_front(&body[..covered_at])?,
                gzip_rest(&body, covered_at)?,
                Some(mark::crc_register(&body[..id_at])),
            )
        } else {
            (body[..covered_at].to_vec(), body[covered_at..].to_vec(), None)
        };
        let coding = if recipe.gzip {
            "Content-Encoding: gzip\r\n"
        } else {
            ""
        };
        let head = head(
            recipe,
            "/push.v1.PusherService/Push",
            &format!("Content-Type: application/proto\r\nConnect-Protocol-Version: 1\r\n{coding}"),
            front.len() + rest.len(),
        );
        fronts.push(Front {
            head_bytes: head.len(),
            bytes: [head.as_bytes(), &front].concat(),
            seal,
        });
        tail = rest.into();
    }
    Ok(Kind { fronts, tail })
}

fn ingest_kind(recipe: &Recipe, size: usize) -> anyhow::Result<Kind> {
    let (format, media_type, body, covered_at) = match recipe.ingest_format {
        IngestFormat::Pprof => (
            "pprof",
            "application/octet-stream",
            pprof(size, recipe.until)?,
            MARK_AT + MARK_BYTES,
        ),
        IngestFormat::Folded => ("folded", "text/plain", folded(size)?, MARK_BYTES),
    };
    let fronts = (0..recipe.services).map(|service| {
        let mut name = format!(
            "{}.cpu{{service_name={}",
            recipe.name,
            service_name(recipe, service)
        );
        for (key, value) in (0..recipe.labels).map(label) {
            name += &format!(",{key}={value}");
        }
        name.push('}');
        let mut escaped = Vec::new();
        query::escape(name.as_bytes(), &mut escaped);
        let path = format!(
            "/ingest?name={}&from={}&until={}&format={format}&sampleRate=100&spyName=pyrotee",
            String::from_utf8_lossy(&escaped),
            recipe.until.saturating_sub(10),
            recipe.until
        );
        let head = head(
            recipe,
            &path,
            &format!("Content-Type: {media_type}\r\n"),
            body.len(),
        );
        let bytes = [head.as_bytes(), &body[..covered_at]].concat();
        Front {
            head_bytes: head.len(),
            bytes,
            seal: None,
        }
    });
    Ok(Kind {
        fronts: fronts.collect(),
        tail: Bytes::copy_from_slice(&body[covered_at..]),
    })
}

fn head(recipe: &Recipe, path: &str, headers: &str, body_bytes: usize) -> String {
    let close = if recipe.close { "Connection: close\r\n" } else { "" };
    format!(
        "POST {}{path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: pyrotee-load/{}\r\n{headers}{close}Content-Length: \
         {body_bytes}\r\n\r\n",
        recipe.path_prefix,
        recipe.host,
        env!("CARGO_PKG_VERSION")
    )
}

fn push_request(recipe: &Recipe, service: usize, profile: &Bytes) -> PushRequest {
    let usual = [
        ("__name__".into(), "process_cpu".into()),
        ("__delta__".into(), "false".into()),
        ("service_name".into(), service_name(recipe, service)),
    ];
    let labels = usual.into_iter().chain((0..recipe.labels).map(label));
    let labels = labels.map(|(name, value): (String, String)| LabelPair { name, value });
    let sample = RawSample {
        raw_profile: profile.clone(),
        id: "6f6d6e69-0000-4000-8000-707972746565".to_owned(),
    };
    let series = RawProfileSeries {
        labels: labels.collect(),
        samples: vec![sample],
        annotations: Vec::new(),
    };
    PushRequest { series: vec![series] }
}

fn service_name(recipe: &Recipe, service: usize) -> String {
    let digits = (recipe.services - 1).to_string().len();
    format!("{}-{service:0digits$}", recipe.name)
}

fn label(index: usize) -> (String, String) {
    (format!("label_{index:03}"), format!("value-{index:03}"))
}

/// The front of a gzip'd body: header (RFC 1952) and one stored block (RFC 1951 section 3.2.4) that is not the last.
fn stored_front(plain: &[u8]) -> anyhow::Result<Vec<u8>> {
    let length =
        u16::try_from(plain.len()).context("labels do not fit before the profile; lower --labels")?;
    let mut front = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x00".to_vec();
    front.extend_from_slice(&length.to_le_bytes());
    front.extend_from_slice(&(!length).to_le_bytes());
    front.extend_from_slice(plain);
    Ok(front)
}

/// What follows [`stored_front`]: the rest deflated, and the trailer of the whole.
fn gzip_rest(body: &[u8], covered_at: usize) -> anyhow::Result<Vec<u8>> {
    let mut rest = deflate(&body[covered_at..])?;
    rest.extend_from_slice(
        &mark::crc_from_zero(&body[covered_at - MARK_BYTES + mark::SEALED_AT..]).to_le_bytes(),
    );
    #[allow(clippy::cast_possible_truncation)] // the trailer holds the length modulo 2^32
    rest.extend_from_slice(&(body.len() as u32).to_le_bytes());
    Ok(rest)
}

fn deflate(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain)?;
    encoder.finish()
}

/// Folded text of exactly `size` bytes; the mark is the first stack.
fn folded(size: usize) -> anyhow::Result<Vec<u8>> {
    let mut dice = fastrand::Rng::with_seed(size as u64);
    let mut covered = b" 1\n".to_vec();
    let last = "main;padding";
    let least = MARK_BYTES + covered.len() + last.len() + " 1\n".len();
    ensure!(
        size >= least,
        "a marked profile has at least {least} bytes; raise --size"
    );
    loop {
        let (handler, step, count) = (dice.u8(..), dice.u8(..), dice.u16(1..));
        let line = format!("main;serve;handle_{handler:03};step_{step:03} {count}\n");
        if MARK_BYTES + covered.len() + line.len() + last.len() + 3 > size {
            break;
        }
        covered.extend_from_slice(line.as_bytes());
    }
    covered.extend_from_slice(last.as_bytes());
    covered.resize(size - MARK_BYTES - 3, b'x');
    covered.extend_from_slice(b" 1\n");
    Ok([mark::write(&covered).as_slice(), &covered].concat())
}

/// A marked, gzip'd pprof of exactly `size` bytes: as many samples as fit, then padding in the gzip header.
fn pprof(size: usize, until: u64) -> anyhow::Result<Vec<u8>> {
    let around = MARK_AT + MARK_BYTES + 8;
    let mut samples = size.saturating_sub(around + 200) / SAMPLE_BYTES_GUESS;
    for _ in 0..GUESSES_MAX {
        let profile = pprof_message(samples.max(1) as u64, size as u64, until).encode_to_vec();
        let deflated = deflate(&profile)?;
        let least = around + deflated.len();
        match size.checked_sub(least) {
            Some(padding) if padding <= PADDING_MAX => return Ok(gzip_marked(&profile, &deflated, padding)),
            Some(missing) => samples += (missing - PADDING_MAX / 2) / SAMPLE_BYTES_GUESS,
            None if samples <= 1 => bail!("a marked profile has at least {least} bytes; raise --size"),
            // At least one fewer, and a little more than what is too much.
            None => samples -= ((least - size) / SAMPLE_BYTES_GUESS + 1 + samples / 100).min(samples),
        }
    }
    bail!("no number of samples gives a profile of {size} bytes")
}

fn gzip_marked(profile: &[u8], deflated: &[u8], padding: usize) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(profile);
    let mut covered = vec![b'.'; padding];
    covered.extend_from_slice(deflated);
    covered.extend_from_slice(&crc.sum().to_le_bytes());
    covered.extend_from_slice(&crc.amount().to_le_bytes());
    // `padding` is at most PADDING_MAX, so both lengths fit in 16 bits.
    let field = (MARK_BYTES + padding) as u16;
    let mut gzip = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff".to_vec();
    gzip.extend_from_slice(&(field + 4).to_le_bytes());
    gzip.extend_from_slice(b"PT");
    gzip.extend_from_slice(&field.to_le_bytes());
    debug_assert_eq!(gzip.len(), MARK_AT);
    gzip.extend_from_slice(&mark::write(&covered));
    gzip.extend_from_slice(&covered);
    gzip
}

/// A CPU profile with made-up stacks, the same for the same arguments.
fn pprof_message(samples: u64, seed: u64, until: u64) -> Profile {
    let mut dice = fastrand::Rng::with_seed(seed);
    let functions = samples.clamp(2, FUNCTIONS_MAX);
    let mut strings: Vec<String> = ["", "cpu", "nanoseconds", "samples", "count", "service.go"]
        .map(str::to_owned)
        .into();
    let value_type = |kind, unit| ValueType { kind, unit };
    let mut profile = Profile {
        sample_type: vec![value_type(3, 4), value_type(1, 2)],
        period_type: Some(value_type(1, 2)),
        period: 10_000_000,
        time_nanos: i64::try_from(until.saturating_sub(10).saturating_mul(1_000_000_000)).unwrap_or(i64::MAX),
        duration_nanos: 10_000_000_000,
        ..Profile::default()
    };
    for id in 1..=functions {
        let name = strings.len() as i64;
        strings.push(format!("main.handle_{id}"));
        profile.function.push(Function {
            id,
            name,
            system_name: name,
            filename: 5,
        });
        let line = Line {
            function_id: id,
            line: 10 + id as i64,
        };
        profile.location.push(Location {
            id,
            address: 0x40_0000 + id * 64,
            line: vec![line],
        });
    }
    for _ in 0..samples {
        let depth = dice.usize(4..=16);
        let count = dice.i64(1..100);
        profile.sample.push(Sample {
            location_id: (0..depth).map(|_| dice.u64(1..=functions)).collect(),
            value: vec![count, count * 10_000_000],
        });
    }
    profile.string_table = strings;
    profile
}

/// perftools.profiles.Profile, as much of it as we fill (proto/profile.proto of the pprof tool).
#[derive(Clone, PartialEq, prost::Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::cmd::mark::Checked;

    fn recipe(route: RouteChoice, size: usize) -> Recipe {
        Recipe {
            host: "localhost".into(),
            path_prefix: String::new(),
            route,
            ingest_format: IngestFormat::Pprof,
            gzip: false,
            sizes: vec![size],
            services: 11,
            labels: 4,
            name: "shop".into(),
            close: false,
            until: 1_700_000_000,
        }
    }

    fn gunzip(bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
        plain
    }

    /// Head and body of a request.
    fn request(kind: &Kind, service: usize, id: ProfileId) -> (String, Vec<u8>) {
        let mut buffer = kind.buffer();
        let begin = kind.write(service, id, &mut buffer);
        let head_bytes = kind.fronts[service].head_bytes;
        let (head, body) = buffer[begin..].split_at(head_bytes);
        let head = String::from_utf8(head.to_vec()).unwrap();
        assert!(
            head.ends_with(&format!("Content-Length: {}\r\n\r\n", body.len())),
            "{head}"
        );
        assert_eq!(body.len(), kind.body_bytes());
        (head, body.to_vec())
    }

    #[test]
    fn push_bodies_are_valid_marked_and_of_the_size_asked_for() {
        for gzip in [false, true] {
            for size in [700, 1024, 16 << 10, 100 << 10] {
                let recipe = Recipe {
                    gzip,
                    ..recipe(RouteChoice::Push, size)
                };
                let kinds = make(&recipe).unwrap();
                for service in [0, 10] {
                    let id = ProfileId {
                        run: 0xabcd,
                        sequence: 17 + service as u32,
                    };
                    let (_, body) = request(&kinds[0], service, id);
                    let body = if gzip { gunzip(&body) } else { body };
                    assert!(
                        (size - 3..=size).contains(&body.len()),
                        "{} for {size}",
                        body.len()
                    );
                    let push = PushRequest::decode(&*body).unwrap();
                    assert_eq!(push.series[0].labels.len(), 7);
                    assert_eq!(push.series[0].labels[2].value, format!("shop-{service:02}"));
                    let profile = &push.series[0].samples[0].raw_profile;
                    assert_eq!(mark::check(profile), Checked::Whole(id));
                    let pprof = Profile::decode(&*gunzip(profile)).unwrap();
                    assert!(!pprof.sample.is_empty());
                }
            }
        }
    }

    #[test]
    fn ingest_bodies_are_valid_marked_and_of_the_size_asked_for() {
        for format in [IngestFormat::Pprof, IngestFormat::Folded] {
            for size in [512, 1024, 16 << 10] {
                let recipe = Recipe {
                    ingest_format: format,
                    ..recipe(RouteChoice::Ingest, size)
                };
                let id = ProfileId { run: 1, sequence: 2 };
                let (head, body) = request(&make(&recipe).unwrap()[0], 3, id);
                assert_eq!(body.len(), size);
                assert_eq!(mark::check(&body), Checked::Whole(id));
                assert!(
                    head.starts_with("POST /ingest?name=shop.cpu%7Bservice_name%3Dshop-03%2Clabel_000"),
                    "{head}"
                );
                match format {
                    IngestFormat::Pprof => assert!(Profile::decode(&*gunzip(&body)).is_ok()),
                    IngestFormat::Folded => {
                        for line in String::from_utf8(body).unwrap().lines() {
                            let (_, count) = line.rsplit_once(' ').unwrap();
                            assert!(count.parse::<u64>().is_ok(), "{line}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn sizes_too_small_are_refused_with_the_least() {
        for route in [RouteChoice::Push, RouteChoice::Ingest] {
            let error = format!("{:#}", make(&recipe(route, 100)).unwrap_err());
            assert!(error.contains("raise --size"), "{error}");
        }
    }
}
