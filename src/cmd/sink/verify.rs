//! Whether what arrived is what was sent: routes, content coding, protobuf, gzip of profiles, marks.
//!
//! Responsible for: reading one complete request. Not responsible for its framing (`http` has refused what is wrong there)
//! nor for what has been seen before (`seen.rs`).

use bytes::Bytes;
use prost::Message as _;

use crate::cmd::mark::{self, Checked, ProfileId};
use crate::profile::inflate::{InflateError, gunzip};
use crate::profile::ingest::describe;
use crate::profile::json;
use crate::profile::proto::{PushRequest, RawProfileSeries};

/// What may come out of a gzip'd body: 256 MiB, the limit of a Pyroscope server (WIRE.md 3.2).
const INFLATED_BYTES_MAX: u64 = 256 << 20;
/// RFC 1952 section 2.3.1.
const GZIP_MAGIC: &[u8] = b"\x1f\x8b";

/// Where a request goes. A destination's URL may put a prefix before either path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/ingest`
    Ingest,
    /// `/push.v1.PusherService/Push`
    Push,
    /// Neither: answered 404.
    Other,
}

impl Route {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Ingest, Self::Push, Self::Other];

    /// The route of a path, still percent-encoded.
    pub fn of(path: &[u8]) -> Self {
        if path.ends_with(b"/ingest") {
            Self::Ingest
        } else if path.ends_with(b"/push.v1.PusherService/Push") {
            Self::Push
        } else {
            Self::Other
        }
    }

    /// Its name in statistics and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Push => "push",
            Self::Other => "other",
        }
    }
}

/// What can be wrong with a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// The content coding is neither absent nor identity nor gzip, or its gzip is broken or too large.
    Coding,
    /// The media type is neither application/proto nor application/json.
    MediaType,
    /// Not a PushRequest.
    Message,
    /// A profile that begins like gzip is broken gzip.
    Gzip,
    /// A profile does not match its mark.
    Mark,
}

impl Corruption {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Coding,
        Self::MediaType,
        Self::Message,
        Self::Gzip,
        Self::Mark,
    ];

    /// Its name in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coding => "coding",
            Self::MediaType => "media_type",
            Self::Message => "message",
            Self::Gzip => "gzip",
            Self::Mark => "mark",
        }
    }
}

/// What a good request holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Profiles per service, a service perhaps more than once.
    pub services: Vec<(String, u64)>,
    /// Those that have a mark.
    pub marked: Vec<ProfileId>,
    /// The number of those that have none.
    pub unmarked: u64,
}

/// Reads an `/ingest` request.
///
/// # Errors
/// What is wrong with its body.
pub fn read_ingest(query: &[u8], body: &[u8]) -> Result<Contents, Corruption> {
    let mut contents = Contents::default();
    let description = describe(query);
    let service = description
        .labels
        .into_iter()
        .find(|(name, _)| name == "service_name");
    contents
        .services
        .push((service.map_or(description.app_name, |(_, value)| value), 1));
    contents.take(body)?;
    Ok(contents)
}

/// Reads a Push request.
///
/// # Errors
/// What is wrong with its headers or body.
pub fn read_push(media_type: &[u8], coding: Option<&[u8]>, body: &[u8]) -> Result<Contents, Corruption> {
    let message = match coding {
        None | Some(b"" | b"identity") => Bytes::copy_from_slice(body),
        Some(b"gzip") => inflate(body).map_err(|_| Corruption::Coding)?,
        Some(_) => return Err(Corruption::Coding),
    };
    let message = match media_type {
        b"application/proto" => message,
        b"application/json" | b"application/json; charset=utf-8" => {
            let message = json::to_proto(&message, &json::JsonLimits::default());
            message.map_err(|_| Corruption::Message)?.into()
        }
        _ => return Err(Corruption::MediaType),
    };
    let push = PushRequest::decode(message).map_err(|_| Corruption::Message)?;
    let mut contents = Contents::default();
    for series in &push.series {
        contents
            .services
            .push((service_of(series).to_owned(), series.samples.len() as u64));
        for sample in &series.samples {
            contents.take(&sample.raw_profile)?;
        }
    }
    Ok(contents)
}

impl Contents {
    fn take(&mut self, profile: &[u8]) -> Result<(), Corruption> {
        match mark::check(profile) {
            Checked::Whole(id) => self.marked.push(id),
            Checked::Corrupt => return Err(Corruption::Mark),
            Checked::Unmarked => {
                self.unmarked += 1;
                if profile.starts_with(GZIP_MAGIC) {
                    inflate(profile).map_err(|_| Corruption::Gzip)?;
                }
            }
        }
        Ok(())
    }
}

fn inflate(compressed: &[u8]) -> Result<Bytes, InflateError> {
    let blocks = gunzip(
        &[Bytes::copy_from_slice(compressed)],
        INFLATED_BYTES_MAX,
        &mut |_| true,
    )?;
    Ok(blocks.concat().into())
}

fn service_of(series: &RawProfileSeries) -> &str {
    let value = |wanted: &str| {
        series
            .labels
            .iter()
            .find(|label| label.name == wanted)
            .map(|label| &*label.value)
    };
    value("service_name")
        .or_else(|| value("__name__"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::profile::proto::{LabelPair, RawSample};

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn push(profile: &[u8]) -> Vec<u8> {
        let label = |name: &str, value: &str| LabelPair {
            name: name.into(),
            value: value.into(),
        };
        let sample = RawSample {
            raw_profile: Bytes::copy_from_slice(profile),
            id: String::new(),
        };
        let series = RawProfileSeries {
            labels: vec![label("__name__", "process_cpu"), label("service_name", "shop")],
            samples: vec![sample.clone(), sample],
            annotations: Vec::new(),
        };
        PushRequest { series: vec![series] }.encode_to_vec()
    }

    #[test]
    fn routes_are_told_by_the_end_of_the_path() {
        for (path, route) in [
            ("/ingest", Route::Ingest),
            ("/base/ingest", Route::Ingest),
            ("/push.v1.PusherService/Push", Route::Push),
            ("/base/push.v1.PusherService/Push", Route::Push),
            ("/push.v1.PusherService/Pull", Route::Other),
            ("/ingest/", Route::Other),
            ("/", Route::Other),
        ] {
            assert_eq!(Route::of(path.as_bytes()), route, "{path}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let marked = [mark::write(b"rest").as_slice(), b"rest"].concat();
        let broken_mark = [mark::write(b"rest").as_slice(), b"tail"].concat();
        let mut broken_gzip = gzip(b"profile");
        broken_gzip[12] ^= 0xff;
        let proto: &[u8] = b"application/proto";
        for (name, media_type, coding, body, expected) in [
            ("plain", proto, None, push(b"profile"), Ok((0, 2))),
            (
                "identity",
                proto,
                Some(&b"identity"[..]),
                push(&gzip(b"profile")),
                Ok((0, 2)),
            ),
            ("gzip", proto, Some(b"gzip"), gzip(&push(&marked)), Ok((2, 0))),
            ("nothing", proto, None, Vec::new(), Ok((0, 0))),
            ("json", b"application/json", None, b"{}".to_vec(), Ok((0, 0))),
            (
                "bad json",
                b"application/json",
                None,
                b"[]".to_vec(),
                Err(Corruption::Message),
            ),
            (
                "bad coding",
                proto,
                Some(b"br"),
                push(b"profile"),
                Err(Corruption::Coding),
            ),
            (
                "bad gzip",
                proto,
                Some(b"gzip"),
                broken_gzip.clone(),
                Err(Corruption::Coding),
            ),
            (
                "bad type",
                b"text/plain",
                None,
                push(b"profile"),
                Err(Corruption::MediaType),
            ),
            (
                "bad message",
                proto,
                None,
                b"\x0a\xff".to_vec(),
                Err(Corruption::Message),
            ),
            ("bad mark", proto, None, push(&broken_mark), Err(Corruption::Mark)),
            (
                "bad profile",
                proto,
                None,
                push(&broken_gzip),
                Err(Corruption::Gzip),
            ),
        ] {
            let got = read_push(media_type, coding, &body);
            let got = got.map(|contents| (contents.marked.len(), contents.unmarked));
            assert_eq!(got, expected, "{name}");
        }
    }

    #[test]
    fn services_are_found_on_both_routes() {
        assert_eq!(
            read_push(b"application/proto", None, &push(b"p"))
                .unwrap()
                .services,
            [("shop".into(), 2)]
        );
        for (query, service) in [
            (&b"name=app%7Bservice_name%3Dshop%7D&from=1"[..], "shop"),
            (b"name=app.cpu", "app.cpu"),
            (b"", ""),
        ] {
            assert_eq!(
                read_ingest(query, b"main 1\n").unwrap().services,
                [(service.into(), 1)]
            );
        }
    }
}
