//! The Connect protocol's dress around a unary call (WIRE.md 3.2, 3.3): codes, error bodies, content types,
//! timeouts and compression headers. Not responsible for messages (`push`, `json`) or gRPC-Web frames
//! (`grpc_web`).

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};

/// `Accept-Post` of a 415 answer (WIRE.md 3.2).
pub const ACCEPT_POST: &str = "application/grpc, application/grpc+json, application/grpc+json; charset=utf-8, \
     application/grpc+proto, application/grpc-web, application/grpc-web+json, \
     application/grpc-web+json; charset=utf-8, application/grpc-web+proto, application/json, \
     application/json; charset=utf-8, application/proto";
/// A gzip member that holds nothing: the body of a compressed empty answer (WIRE.md 3.2).
pub const EMPTY_GZIP: [u8; 23] = [
    0x1f, 0x8b, 0x08, 0, 0, 0, 0, 0, 0, 0xff, 0x01, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, //
];
/// Longest `Connect-Timeout-Ms`, in characters (Connect protocol specification).
const TIMEOUT_CHARS_MAX: usize = 10;

/// A Connect or gRPC status code other than OK. The discriminant is the gRPC number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// The caller gave up.
    Canceled = 1,
    /// Nothing better is known.
    Unknown = 2,
    /// The request can never work.
    InvalidArgument = 3,
    /// The deadline passed.
    DeadlineExceeded = 4,
    /// No such thing.
    NotFound = 5,
    /// It is already there.
    AlreadyExists = 6,
    /// Known, but not allowed.
    PermissionDenied = 7,
    /// A quota or a limit.
    ResourceExhausted = 8,
    /// The system is not in the right state.
    FailedPrecondition = 9,
    /// A conflict; may be tried again.
    Aborted = 10,
    /// Beyond the valid range.
    OutOfRange = 11,
    /// No such method or feature.
    Unimplemented = 12,
    /// An invariant broke.
    Internal = 13,
    /// Not now.
    Unavailable = 14,
    /// Data is gone.
    DataLoss = 15,
    /// Who is calling?
    Unauthenticated = 16,
}

/// Every code in the order of gRPC numbers: code, name, HTTP status (WIRE.md 3.3).
pub const CODES: [(Code, &str, u16); 16] = [
    (Code::Canceled, "canceled", 499),
    (Code::Unknown, "unknown", 500),
    (Code::InvalidArgument, "invalid_argument", 400),
    (Code::DeadlineExceeded, "deadline_exceeded", 504),
    (Code::NotFound, "not_found", 404),
    (Code::AlreadyExists, "already_exists", 409),
    (Code::PermissionDenied, "permission_denied", 403),
    (Code::ResourceExhausted, "resource_exhausted", 429),
    (Code::FailedPrecondition, "failed_precondition", 400),
    (Code::Aborted, "aborted", 409),
    (Code::OutOfRange, "out_of_range", 400),
    (Code::Unimplemented, "unimplemented", 501),
    (Code::Internal, "internal", 500),
    (Code::Unavailable, "unavailable", 503),
    (Code::DataLoss, "data_loss", 500),
    (Code::Unauthenticated, "unauthenticated", 401),
];

impl Code {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        CODES[usize::from(self.grpc_number()) - 1].1
    }

    /// The HTTP status of a Connect error answer.
    pub fn http_status(self) -> u16 {
        CODES[usize::from(self.grpc_number()) - 1].2
    }

    /// The `grpc-status` number, 1 to 16.
    pub fn grpc_number(self) -> u8 {
        self as u8
    }

    /// The code with this `grpc-status` number.
    pub fn from_grpc_number(number: u8) -> Option<Code> {
        CODES.iter().find(|row| row.0 as u8 == number).map(|row| row.0)
    }

    /// The code with this exact name.
    pub fn from_name(name: &str) -> Option<Code> {
        CODES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// What a client takes an HTTP status for when no Connect error body says better (WIRE.md 3.3).
    pub fn from_http_status(status: u16) -> Code {
        match status {
            400 => Code::Internal,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::Unimplemented,
            429 | 502..=504 => Code::Unavailable,
            _ => Code::Unknown,
        }
    }
}

/// Which protocol a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Connect unary: the body is the message.
    Connect,
    /// gRPC-Web: frames, trailers in the body.
    GrpcWeb,
    /// gRPC: frames, trailers as HTTP trailers.
    Grpc,
}

/// A content type that the Push route takes, canonicalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// `application/proto`.
    Proto,
    /// `application/json`.
    Json {
        /// With `; charset=utf-8`.
        charset: bool,
    },
    /// `application/grpc-web`.
    GrpcWeb,
    /// `application/grpc-web+proto`.
    GrpcWebProto,
    /// `application/grpc-web+json`.
    GrpcWebJson {
        /// With `; charset=utf-8`.
        charset: bool,
    },
    /// `application/grpc`.
    Grpc,
    /// `application/grpc+proto`.
    GrpcProto,
    /// `application/grpc+json`.
    GrpcJson {
        /// With `; charset=utf-8`.
        charset: bool,
    },
}

impl Codec {
    /// Reads a request's `Content-Type`; `None` answers 415 with [`ACCEPT_POST`]. Media type and charset
    /// are taken in any case; any other parameter or charset is unsupported (WIRE.md 3.2).
    pub fn parse(content_type: Option<&[u8]>) -> Option<Codec> {
        let (essence, charset) = media_type(content_type?)?;
        let codec = match (&*essence, charset) {
            ("application/proto", false) => Codec::Proto,
            ("application/json", charset) => Codec::Json { charset },
            ("application/grpc-web", false) => Codec::GrpcWeb,
            ("application/grpc-web+proto", false) => Codec::GrpcWebProto,
            ("application/grpc-web+json", charset) => Codec::GrpcWebJson { charset },
            ("application/grpc", false) => Codec::Grpc,
            ("application/grpc+proto", false) => Codec::GrpcProto,
            ("application/grpc+json", charset) => Codec::GrpcJson { charset },
            _ => return None,
        };
        Some(codec)
    }

    /// The canonical text, which the answer repeats as its `Content-Type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Codec::Proto => "application/proto",
            Codec::Json { charset: false } => "application/json",
            Codec::Json { charset: true } => "application/json; charset=utf-8",
            Codec::GrpcWeb => "application/grpc-web",
            Codec::GrpcWebProto => "application/grpc-web+proto",
            Codec::GrpcWebJson { charset: false } => "application/grpc-web+json",
            Codec::GrpcWebJson { charset: true } => "application/grpc-web+json; charset=utf-8",
            Codec::Grpc => "application/grpc",
            Codec::GrpcProto => "application/grpc+proto",
            Codec::GrpcJson { charset: false } => "application/grpc+json",
            Codec::GrpcJson { charset: true } => "application/grpc+json; charset=utf-8",
        }
    }

    /// The protocol this content type selects.
    pub fn protocol(self) -> Protocol {
        match self {
            Codec::Proto | Codec::Json { .. } => Protocol::Connect,
            Codec::GrpcWeb | Codec::GrpcWebProto | Codec::GrpcWebJson { .. } => Protocol::GrpcWeb,
            Codec::Grpc | Codec::GrpcProto | Codec::GrpcJson { .. } => Protocol::Grpc,
        }
    }

    /// True if messages are JSON rather than protobuf.
    pub fn is_json(self) -> bool {
        matches!(
            self,
            Codec::Json { .. } | Codec::GrpcWebJson { .. } | Codec::GrpcJson { .. }
        )
    }
}

/// What `Connect-Timeout-Ms` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// No header, or an empty one.
    None,
    /// Zero or negative: 504 deadline_exceeded at once.
    Expired,
    /// Milliseconds, at least 1.
    Ms(u64),
}

/// A request header with a value that the protocol does not allow. Answered with [`HeaderError::code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// `Connect-Timeout-Ms` is not a number or longer than 10 characters.
    #[error("protocol error: invalid Connect-Timeout-Ms")]
    Timeout,
    /// `Connect-Protocol-Version` is not `1`.
    #[error("Connect-Protocol-Version must be \"1\"")]
    Version,
    /// `Content-Encoding` or `Grpc-Encoding` is neither `gzip` nor `identity`.
    #[error("unknown compression: supported encodings are gzip")]
    Encoding,
}

impl HeaderError {
    /// invalid_argument (400), or unimplemented (501) for an encoding.
    pub fn code(self) -> Code {
        match self {
            HeaderError::Timeout | HeaderError::Version => Code::InvalidArgument,
            HeaderError::Encoding => Code::Unimplemented,
        }
    }
}

/// Reads `Connect-Timeout-Ms` as Go's `ParseInt` does, at most 10 characters.
pub fn parse_timeout(value: Option<&[u8]>) -> Result<Timeout, HeaderError> {
    let value = match value {
        None | Some([]) => return Ok(Timeout::None),
        Some(value) if value.len() > TIMEOUT_CHARS_MAX => return Err(HeaderError::Timeout),
        Some(value) => value,
    };
    match parse_int(value) {
        None => Err(HeaderError::Timeout),
        Some(ms) => Ok(u64::try_from(ms)
            .ok()
            .filter(|&ms| ms > 0)
            .map_or(Timeout::Expired, Timeout::Ms)),
    }
}

/// Checks `Connect-Protocol-Version`: absent (or empty) is fine, else it must be `1`.
pub fn check_version(value: Option<&[u8]>) -> Result<(), HeaderError> {
    match value {
        None | Some([] | b"1") => Ok(()),
        Some(_) => Err(HeaderError::Version),
    }
}

/// True if a body with this `Content-Encoding` (or `Grpc-Encoding`) is gzip. Compared literally (WIRE.md
/// 3.2).
pub fn is_gzip_encoded(encoding: Option<&[u8]>) -> Result<bool, HeaderError> {
    match encoding {
        None | Some([] | b"identity") => Ok(false),
        Some(b"gzip") => Ok(true),
        Some(_) => Err(HeaderError::Encoding),
    }
}

/// True if `Accept-Encoding` (or `Grpc-Accept-Encoding`) has the literal token `gzip` between commas and
/// spaces; `gzip;q=1.0` is not it.
pub fn accepts_gzip(accept: Option<&[u8]>) -> bool {
    accept
        .unwrap_or_default()
        .split(|&b| b == b',' || b == b' ')
        .any(|token| token == b"gzip")
}

/// The body of a successful Connect answer: empty for protobuf, `{}` for JSON, gzipped on demand.
pub fn success_body(json: bool, gzip_wanted: bool) -> Cow<'static, [u8]> {
    match (json, gzip_wanted) {
        (false, false) => Cow::Borrowed(&[]),
        (true, false) => Cow::Borrowed(b"{}"),
        (false, true) => Cow::Borrowed(&EMPTY_GZIP),
        (true, true) => Cow::Owned(gzip(b"{}")),
    }
}

/// Gzips a small answer.
pub(crate) fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to a Vec has no way to fail; an empty answer would be seen by every test of this module.
    match encoder.write_all(plain).and_then(|()| encoder.finish()) {
        Ok(bytes) => bytes,
        Err(_) => EMPTY_GZIP.to_vec(),
    }
}

/// Appends `{"code":...,"message":...}` as Go's JSON encoder writes it, without a newline; an empty message
/// is left out.
pub fn write_error(code: Code, message: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"code\":\"");
    out.extend_from_slice(code.name().as_bytes());
    out.push(b'"');
    if !message.is_empty() {
        out.extend_from_slice(b",\"message\":\"");
        for c in message.chars() {
            write_json_char(c, out);
        }
        out.push(b'"');
    }
    out.push(b'}');
}

fn write_json_char(c: char, out: &mut Vec<u8>) {
    match c {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\u{8}' => out.extend_from_slice(b"\\b"),
        '\u{c}' => out.extend_from_slice(b"\\f"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        '<' | '>' | '&' | '\0'..='\u{1f}' | '\u{2028}' | '\u{2029}' => {
            out.extend_from_slice(format!("\\u{:04x}", c as u32).as_bytes());
        }
        c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// The code in a Connect error answer: `None` when it is no such answer (status 200, another Content-Type than Connect's
/// two JSON ones, or no known code in the body), so that the status alone decides (WIRE.md 3.3, client side, and Q13).
/// `body` is the first bytes of the answer, uncompressed, `is_cut` that there are more: a long message behind the code, as Alloy
/// writes it, takes nothing from the code.
pub fn error_code(status: u16, content_type: Option<&[u8]>, body: &[u8], is_cut: bool) -> Option<Code> {
    let is_json = matches!(
        content_type,
        Some(b"application/json" | b"application/json; charset=utf-8")
    );
    if status == 200 || !is_json {
        return None;
    }
    let mut found = ErrorBody { code: None };
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = json.deserialize_map(&mut found).and_then(|()| json.end());
    let is_good = match read {
        Ok(()) => true,
        Err(error) => is_cut && error.is_eof(),
    };
    found
        .code
        .as_deref()
        .filter(|_| is_good)
        .and_then(Code::from_name)
}

/// The words of a Connect error answer, for which [`error_code`] has found a code; empty where it has none.
pub fn error_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Text {
        #[serde(default)]
        message: String,
    }
    serde_json::from_slice(body).map_or_else(|_| String::new(), |text: Text| text.message)
}

/// The part of an error body that decides, filled while the body is read. As in Go, a name is found in any case, and the last of
/// several counts.
struct ErrorBody {
    code: Option<String>,
}

impl<'de> Visitor<'de> for &mut ErrorBody {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a Connect error")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<'_, str>>()? {
            if name.eq_ignore_ascii_case("code") {
                self.code = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Splits a media type into its lower-cased essence and whether `charset=utf-8` was given. `None` if it is
/// not one or has any other parameter.
fn media_type(value: &[u8]) -> Option<(String, bool)> {
    let value = std::str::from_utf8(value).ok()?;
    let mut parts = value.split(';');
    let essence = parts.next()?.trim_matches([' ', '\t']).to_ascii_lowercase();
    let mut charset = None;
    let mut last_empty = false;
    for part in parts {
        let part = part.trim_matches([' ', '\t']);
        // One trailing semicolon is forgiven; a parameter after an empty one is not.
        if last_empty {
            return None;
        }
        last_empty = part.is_empty();
        if last_empty {
            continue;
        }
        let (name, value) = part.split_once('=')?;
        let value = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .unwrap_or(value);
        // A parameter may be repeated with the same value, as Go's `mime` has it.
        let repeated = charset.is_some_and(|earlier| earlier != value);
        if repeated || !name.eq_ignore_ascii_case("charset") || !value.eq_ignore_ascii_case("utf-8") {
            return None;
        }
        charset = Some(value);
    }
    Some((essence, charset.is_some()))
}

/// A decimal number as Go's `strconv.ParseInt(text, 10, 64)` takes it: an optional sign, then digits only.
pub(crate) fn parse_int(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::inflate::gunzip;

    #[test]
    fn codes_of_wire_3_3() {
        for (index, (code, name, status)) in CODES.into_iter().enumerate() {
            assert_eq!(usize::from(code.grpc_number()), index + 1, "{name}");
            assert_eq!((code.name(), code.http_status()), (name, status));
            assert_eq!(Code::from_name(name), Some(code));
        }
        for name in ["", "ok", "Internal", "code_17", "internal "] {
            assert_eq!(Code::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn statuses_of_wire_3_3() {
        let unknown = [
            201, 204, 301, 304, 405, 408, 409, 413, 415, 422, 499, 500, 501, 599,
        ];
        let other = [
            (400, Code::Internal),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::Unimplemented),
            (429, Code::Unavailable),
            (502, Code::Unavailable),
            (503, Code::Unavailable),
            (504, Code::Unavailable),
        ];
        for (status, code) in unknown
            .map(|status| (status, Code::Unknown))
            .into_iter()
            .chain(other)
        {
            assert_eq!(Code::from_http_status(status), code, "{status}");
            assert_eq!(
                error_code(status, Some(b"text/plain"), b"{\"code\":\"aborted\"}", false),
                None,
                "{status}"
            );
        }
    }

    #[test]
    fn error_code_reads_error_bodies() {
        let json: Option<&[u8]> = Some(b"application/json");
        let charset: Option<&[u8]> = Some(b"application/json; charset=utf-8");
        type Case<'a> = (&'a str, u16, Option<&'a [u8]>, &'a [u8], Option<Code>);
        let cases: &[Case<'_>] = &[
            ("success", 200, Some(b"application/proto"), b"", None),
            ("200 json", 200, json, b"{\"code\":\"aborted\"}", None),
            (
                "code",
                400,
                json,
                b"{\"code\":\"invalid_argument\",\"message\":\"x\"}",
                Some(Code::InvalidArgument),
            ),
            (
                "charset",
                422,
                charset,
                b"{\"code\":\"resource_exhausted\"}",
                Some(Code::ResourceExhausted),
            ),
            (
                "code beats status",
                503,
                json,
                b"{\"code\":\"not_found\"}",
                Some(Code::NotFound),
            ),
            (
                "escaped code",
                500,
                json,
                b"{\"code\":\"\\u0061borted\"}",
                Some(Code::Aborted),
            ),
            (
                "name in another case",
                400,
                json,
                b"{\"Code\":\"aborted\"}",
                Some(Code::Aborted),
            ),
            (
                "the last of several",
                400,
                json,
                b"{\"code\":\"aborted\",\"code\":\"not_found\"}",
                Some(Code::NotFound),
            ),
            (
                "something behind it",
                400,
                json,
                b"{\"code\":\"aborted\"} x",
                None,
            ),
            ("unknown code", 403, json, b"{\"code\":\"nope\"}", None),
            ("no code", 404, json, b"{}", None),
            ("null code", 429, json, b"{\"code\":null}", None),
            ("code of another type", 429, json, b"{\"code\":8}", None),
            ("not JSON", 401, json, b"<html>", None),
            ("cut JSON", 401, json, b"{\"code\":\"abor", None),
            (
                "other charset",
                400,
                Some(b"application/json; charset=latin1"),
                b"{\"code\":\"aborted\"}",
                None,
            ),
        ];
        for (name, status, content_type, body, expected) in cases {
            assert_eq!(
                error_code(*status, *content_type, body, false),
                *expected,
                "{name}"
            );
        }
        // Of a long answer the first bytes are kept.
        for (body, expected) in [
            (
                &b"{\"code\":\"not_found\",\"message\":\"lo"[..],
                Some(Code::NotFound),
            ),
            (b"{\"code\":\"not_found\"", Some(Code::NotFound)),
            (b"{\"message\":\"long", None),
            (b"{\"code\":\"not_fou", None),
            (b"{\"code\":\"not_found\",]", None),
        ] {
            assert_eq!(error_code(400, json, body, true), expected, "{body:?}");
            assert_eq!(error_code(400, json, body, false), None, "{body:?}");
        }
    }

    #[test]
    fn error_bodies_are_escaped_like_go() {
        let cases = [
            ("", r#"{"code":"unavailable"}"#),
            ("plain", r#"{"code":"unavailable","message":"plain"}"#),
            (
                "<a> & 'b'",
                r#"{"code":"unavailable","message":"\u003ca\u003e \u0026 'b'"}"#,
            ),
            ("\"\\/", r#"{"code":"unavailable","message":"\"\\/"}"#),
            ("\n\r\t\u{8}\u{c}\0\u{1f}\u{7f}", {
                "{\"code\":\"unavailable\",\"message\":\"\\n\\r\\t\\b\\f\\u0000\\u001f\u{7f}\"}"
            }),
            (
                "é\u{2028}\u{2029}😀",
                "{\"code\":\"unavailable\",\"message\":\"é\\u2028\\u2029😀\"}",
            ),
        ];
        for (message, expected) in cases {
            let mut out = Vec::new();
            write_error(Code::Unavailable, message, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expected);
            let back: serde_json::Value = serde_json::from_slice(&out).expect("valid JSON");
            assert_eq!(
                back.get("message")
                    .and_then(|text| text.as_str())
                    .unwrap_or_default(),
                message
            );
        }
    }

    #[test]
    fn content_types_of_rows_67_to_70() {
        let json = |charset| Some(Codec::Json { charset });
        let cases: &[(&str, Option<Codec>)] = &[
            ("application/proto", Some(Codec::Proto)),
            ("APPLICATION/PROTO", Some(Codec::Proto)),
            (" application/proto ", Some(Codec::Proto)),
            ("application/proto;", Some(Codec::Proto)),
            ("application/proto; charset=utf-8", None),
            ("application/json", json(false)),
            ("application/json; charset=UTF-8", json(true)),
            ("application/json;charset=\"utf-8\"", json(true)),
            ("Application/JSON ; Charset=utf-8", json(true)),
            ("application/json; charset=latin1", None),
            ("application/json; charset=utf-8; charset=utf-8", json(true)),
            ("application/json; charset=utf-8; charset=UTF-8", None),
            ("application/json; q=1", None),
            ("application/json; charset", None),
            ("application/x-protobuf", None),
            ("application/connect+proto", None),
            ("application/grpc-web", Some(Codec::GrpcWeb)),
            ("application/grpc-web+proto", Some(Codec::GrpcWebProto)),
            (
                "application/grpc-web+json",
                Some(Codec::GrpcWebJson { charset: false }),
            ),
            (
                "application/grpc-web+json; charset=utf-8",
                Some(Codec::GrpcWebJson { charset: true }),
            ),
            ("application/grpc-web-text", None),
            ("application/grpc", Some(Codec::Grpc)),
            ("application/grpc+proto", Some(Codec::GrpcProto)),
            ("application/grpc+json", Some(Codec::GrpcJson { charset: false })),
            ("text/plain", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Codec::parse(Some(text.as_bytes())), *expected, "{text:?}");
            if let Some(codec) = expected {
                assert_eq!(
                    Codec::parse(Some(codec.as_str().as_bytes())),
                    *expected,
                    "canonical {text:?}"
                );
                assert!(
                    ACCEPT_POST.split(", ").any(|accepted| accepted == codec.as_str()),
                    "{text:?}"
                );
            }
        }
        assert_eq!(Codec::parse(None), None);
        assert_eq!(Codec::parse(Some(b"application/json; charset=\xff")), None);
    }

    #[test]
    fn headers_of_rows_71_to_78() {
        let timeouts: &[(&str, Result<Timeout, HeaderError>)] = &[
            ("", Ok(Timeout::None)),
            ("1", Ok(Timeout::Ms(1))),
            ("9999999999", Ok(Timeout::Ms(9_999_999_999))),
            ("+5", Ok(Timeout::Ms(5))),
            ("0", Ok(Timeout::Expired)),
            ("-0", Ok(Timeout::Expired)),
            ("-7", Ok(Timeout::Expired)),
            ("10000000000", Err(HeaderError::Timeout)),
            ("1s", Err(HeaderError::Timeout)),
            (" 1", Err(HeaderError::Timeout)),
            ("1_0", Err(HeaderError::Timeout)),
            ("+", Err(HeaderError::Timeout)),
        ];
        for (text, expected) in timeouts {
            assert_eq!(parse_timeout(Some(text.as_bytes())), *expected, "{text:?}");
        }
        assert_eq!(parse_timeout(None), Ok(Timeout::None));
        assert_eq!((check_version(None), check_version(Some(b"1"))), (Ok(()), Ok(())));
        assert_eq!(check_version(Some(b"2")), Err(HeaderError::Version));
        assert_eq!(
            (is_gzip_encoded(None), is_gzip_encoded(Some(b"identity"))),
            (Ok(false), Ok(false))
        );
        assert_eq!(is_gzip_encoded(Some(b"gzip")), Ok(true));
        for encoding in [&b"GZIP"[..], b"br", b"gzip, identity", b" gzip"] {
            assert_eq!(is_gzip_encoded(Some(encoding)), Err(HeaderError::Encoding));
        }
        assert_eq!(HeaderError::Encoding.code().http_status(), 501);
        assert_eq!(HeaderError::Timeout.code().http_status(), 400);
        for (accept, expected) in [
            ("gzip", true),
            ("br, gzip", true),
            ("deflate gzip", true),
            ("gzip;q=1.0", false),
            ("GZIP", false),
            ("xgzip", false),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(Some(accept.as_bytes())), expected, "{accept}");
        }
        assert!(!accepts_gzip(None));
    }

    #[test]
    fn success_bodies() {
        assert_eq!(
            EMPTY_GZIP[..],
            *b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01\0\0\xff\xff\0\0\0\0\0\0\0\0"
        );
        for (json, plain) in [(false, &b""[..]), (true, b"{}")] {
            assert_eq!(*success_body(json, false), *plain);
            let zipped = success_body(json, true).into_owned();
            let back = gunzip(&[zipped.into()], 10, &mut |_| true).expect("gzip");
            assert_eq!(back.concat(), plain);
        }
    }
}
