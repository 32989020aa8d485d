//! Connect JSON to protobuf bytes (WIRE.md 3.4), by the rules of Go's `protojson`. Responsible for the
//! mapping only; labels are handled later, by the splice, like those of any other Push.
//!
//! The output is never longer than the input. Memory: the output, plus one string at a time.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use thiserror::Error;

use crate::profile::connect::Code;

/// Bounds on a JSON Push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonLimits {
    /// Longest input, in bytes. Default 256 MiB, the server's own limit.
    pub bytes_max: usize,
    /// Deepest nesting inside an unknown field. Default 10000, as Go's; nesting costs one bit each, no
    /// recursion.
    pub depth_max: u32,
}

impl Default for JsonLimits {
    fn default() -> Self {
        JsonLimits {
            bytes_max: 256 << 20,
            depth_max: 10_000,
        }
    }
}

/// Why a JSON body is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum JsonError {
    /// Nothing at all; even an empty request is `{}`.
    #[error("zero-length payload is not a valid JSON object")]
    Empty,
    /// Longer than [`JsonLimits::bytes_max`].
    #[error("JSON body is too large")]
    TooLarge,
    /// Not JSON, or not UTF-8 in a string; at this byte.
    #[error("syntax error in JSON at byte {0}")]
    Syntax(usize),
    /// JSON, but of another type than the field's; before this byte.
    #[error("unexpected JSON value before byte {0}")]
    Type(usize),
    /// A field twice, perhaps in both of its spellings; before this byte.
    #[error("duplicate field before byte {0}")]
    Duplicate(usize),
    /// Not base64; before this byte.
    #[error("invalid base64 before byte {0}")]
    Base64(usize),
    /// Nested deeper than [`JsonLimits::depth_max`].
    #[error("JSON is nested too deep")]
    Depth,
}

impl JsonError {
    /// invalid_argument, or resource_exhausted for a body that is too large.
    pub fn code(self) -> Code {
        match self {
            JsonError::TooLarge => Code::ResourceExhausted,
            _ => Code::InvalidArgument,
        }
    }
}

/// Maps a JSON PushRequest to its protobuf encoding.
pub fn to_proto(json: &[u8], limits: &JsonLimits) -> Result<Vec<u8>, JsonError> {
    if json.is_empty() {
        return Err(JsonError::Empty);
    }
    if json.len() > limits.bytes_max {
        return Err(JsonError::TooLarge);
    }
    let mut scanner = Scanner {
        json,
        position: 0,
        depth_max: limits.depth_max,
    };
    let mut out = Vec::with_capacity(json.len() / 4 * 3);
    scanner.message(&REQUEST, &mut out)?;
    scanner.end()?;
    Ok(out)
}

/// A message type: its fields in the order of their numbers, from 1.
struct Message {
    fields: &'static [Field],
}

/// A field: its names on the JSON side and what it holds.
struct Field {
    names: &'static [&'static str],
    kind: Kind,
}

enum Kind {
    List(&'static Message),
    String,
    Bytes,
}

/// The tables of WIRE.md 3.1 and 3.4. They are a tree, so the walk over them is at most three deep.
static REQUEST: Message = Message {
    fields: &[Field {
        names: &["series"],
        kind: Kind::List(&SERIES),
    }],
};
static SERIES: Message = Message {
    fields: &[
        Field {
            names: &["labels"],
            kind: Kind::List(&LABEL),
        },
        Field {
            names: &["samples"],
            kind: Kind::List(&SAMPLE),
        },
        Field {
            names: &["annotations"],
            kind: Kind::List(&ANNOTATION),
        },
    ],
};
static LABEL: Message = Message {
    fields: &[
        Field {
            names: &["name"],
            kind: Kind::String,
        },
        Field {
            names: &["value"],
            kind: Kind::String,
        }, //
    ],
};
static SAMPLE: Message = Message {
    fields: &[
        Field {
            names: &["rawProfile", "raw_profile"],
            kind: Kind::Bytes,
        },
        Field {
            names: &["ID"],
            kind: Kind::String,
        },
    ],
};
static ANNOTATION: Message = Message {
    fields: &[
        Field {
            names: &["key"],
            kind: Kind::String,
        },
        Field {
            names: &["value"],
            kind: Kind::String,
        }, //
    ],
};

struct Scanner<'a> {
    json: &'a [u8],
    position: usize,
    depth_max: u32,
}

impl<'a> Scanner<'a> {
    /// Reads one object as `message`, appending its encoding. Fields keep the order they come in, which
    /// protobuf allows; repeated ones are one array each, so their order is the array's.
    fn message(&mut self, message: &'static Message, out: &mut Vec<u8>) -> Result<(), JsonError> {
        self.open(b'{')?;
        let mut seen = 0_u8;
        let mut first = true;
        while self.next_item(b'}', &mut first)? {
            let key = self.key()?;
            let found = message
                .fields
                .iter()
                .position(|field| field.names.contains(&&*key));
            let Some(index) = found else {
                self.skip_value()?;
                continue;
            };
            if seen & (1 << index) != 0 {
                return Err(JsonError::Duplicate(self.position));
            }
            seen |= 1 << index;
            if self.peek() == Some(b'n') {
                self.literal(b"null")?;
                continue;
            }
            self.field(index as u8 + 1, &message.fields[index].kind, out)?;
        }
        Ok(())
    }

    fn field(&mut self, number: u8, kind: &Kind, out: &mut Vec<u8>) -> Result<(), JsonError> {
        match kind {
            Kind::List(message) => {
                self.open(b'[')?;
                let mut first = true;
                while self.next_item(b']', &mut first)? {
                    let start = out.len();
                    self.message(message, out)?;
                    insert_head(number, start, out);
                }
                Ok(())
            }
            Kind::String => {
                let text = self.typed_string()?;
                write_field(number, text.as_bytes(), out);
                Ok(())
            }
            Kind::Bytes => {
                let text = self.typed_string()?;
                let start = out.len();
                decode_base64(&text, out).ok_or(JsonError::Base64(self.position))?;
                if out.len() > start {
                    insert_head(number, start, out);
                }
                Ok(())
            }
        }
    }

    /// Skips one value of any type: no recursion, one bit per level (set = object).
    fn skip_value(&mut self) -> Result<(), JsonError> {
        let mut open = Nesting::default();
        loop {
            let mut opened = false;
            match self.peek().ok_or(JsonError::Syntax(self.position))? {
                byte @ (b'{' | b'[') => {
                    if open.depth == self.depth_max {
                        return Err(JsonError::Depth);
                    }
                    self.position += 1;
                    open.push(byte == b'{');
                    opened = true;
                }
                b'"' => drop(self.string()?),
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                b'n' => self.literal(b"null")?,
                _ => self.number()?,
            }
            // Close what ends here; then either another item follows or the value is over.
            loop {
                let Some(is_object) = open.innermost() else {
                    return Ok(());
                };
                if self.next_item(if is_object { b'}' } else { b']' }, &mut opened)? {
                    if is_object {
                        self.key()?;
                    }
                    break;
                }
                open.pop();
                opened = false;
            }
        }
    }

    /// Before each item of an object or array: true if there is one, false once `close` was read.
    fn next_item(&mut self, close: u8, first: &mut bool) -> Result<bool, JsonError> {
        let was_first = std::mem::replace(first, false);
        match self.peek() {
            Some(byte) if byte == close => {
                self.position += 1;
                Ok(false)
            }
            Some(_) if was_first => Ok(true),
            Some(b',') => {
                self.position += 1;
                match self.peek() {
                    Some(b'}' | b']' | b',') | None => Err(JsonError::Syntax(self.position)),
                    Some(_) => Ok(true),
                }
            }
            _ => Err(JsonError::Syntax(self.position)),
        }
    }

    fn key(&mut self) -> Result<Cow<'a, str>, JsonError> {
        let key = self.string()?;
        self.open(b':').map_err(|_| JsonError::Syntax(self.position))?;
        Ok(key)
    }

    fn open(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.peek() != Some(byte) {
            return Err(JsonError::Type(self.position));
        }
        self.position += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<(), JsonError> {
        if self.peek().is_some() {
            Err(JsonError::Syntax(self.position))
        } else {
            Ok(())
        }
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(&byte) = self.json.get(self.position) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.position += 1;
        }
        None
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), JsonError> {
        let rest = &self.json[self.position..];
        let ends = rest.get(word.len()).is_none_or(|&b| is_delimiter(b));
        if !rest.starts_with(word) || !ends {
            return Err(JsonError::Syntax(self.position));
        }
        self.position += word.len();
        Ok(())
    }

    /// Skips a number by Go's grammar, which forgives an exponent without digits.
    fn number(&mut self) -> Result<(), JsonError> {
        let error = JsonError::Syntax(self.position);
        let mut rest = &self.json[self.position..];
        let digits = |rest: &[u8]| rest.iter().take_while(|b| b.is_ascii_digit()).count();
        rest = rest.strip_prefix(b"-").unwrap_or(rest);
        rest = match rest {
            [b'0', tail @ ..] => tail,
            [b'1'..=b'9', ..] => &rest[digits(rest)..],
            _ => return Err(error),
        };
        if let [b'.', b'0'..=b'9', ..] = rest {
            rest = &rest[1..];
            rest = &rest[digits(rest)..];
        }
        if let [b'e' | b'E', tail @ ..] = rest
            && !tail.is_empty()
        {
            rest = tail;
            if let [b'+' | b'-', tail @ ..] = rest {
                if tail.is_empty() {
                    return Err(error);
                }
                rest = tail;
            }
            rest = &rest[digits(rest)..];
        }
        if rest.first().is_some_and(|&b| !is_delimiter(b)) {
            return Err(error);
        }
        self.position = self.json.len() - rest.len();
        Ok(())
    }

    fn typed_string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(JsonError::Type(self.position));
        }
        self.string()
    }

    /// Reads a string; borrowed unless it has escapes.
    fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(JsonError::Syntax(self.position));
        }
        self.position += 1;
        let plain = self.plain()?;
        if self.json.get(self.position) == Some(&b'"') {
            self.position += 1;
            return Ok(Cow::Borrowed(plain));
        }
        let mut text = plain.to_owned();
        loop {
            match self.json.get(self.position) {
                Some(b'"') => {
                    self.position += 1;
                    return Ok(Cow::Owned(text));
                }
                Some(b'\\') => text.push(self.escape()?),
                _ => return Err(JsonError::Syntax(self.position)),
            }
            text.push_str(self.plain()?);
        }
    }

    /// Text up to the next quote, backslash or control character.
    fn plain(&mut self) -> Result<&'a str, JsonError> {
        let rest = &self.json[self.position..];
        let end = rest
            .iter()
            .position(|&b| matches!(b, b'"' | b'\\' | 0..=0x1f))
            .unwrap_or(rest.len());
        let plain = std::str::from_utf8(&rest[..end]).map_err(|_| JsonError::Syntax(self.position))?;
        self.position += end;
        Ok(plain)
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let error = JsonError::Syntax(self.position);
        let rest = &self.json[self.position..];
        let (c, length) = match rest.get(1).ok_or(error)? {
            &byte @ (b'"' | b'\\' | b'/') => (char::from(byte), 2),
            b'b' => ('\u{8}', 2),
            b'f' => ('\u{c}', 2),
            b'n' => ('\n', 2),
            b'r' => ('\r', 2),
            b't' => ('\t', 2),
            b'u' => {
                let high = hex4(rest).ok_or(error)?;
                match char::from_u32(high) {
                    Some(c) => (c, 6),
                    None => {
                        let low = hex4(&rest[6..])
                            .filter(|low| (0xdc00..0xe000).contains(low))
                            .ok_or(error)?;
                        // `high` is a surrogate; if it is a low one, the sum is beyond the last character.
                        let pair = ((high - 0xd800) << 10) + (low - 0xdc00) + 0x1_0000;
                        (char::from_u32(pair).ok_or(error)?, 12)
                    }
                }
            }
            _ => return Err(error),
        };
        self.position += length;
        Ok(c)
    }
}

/// The number in `\uXXXX` at the start of `text`.
fn hex4(text: &[u8]) -> Option<u32> {
    let [b'\\', b'u', digits @ ..] = text.get(..6)? else {
        return None;
    };
    digits.iter().try_fold(0, |number, &digit| {
        Some(number << 4 | char::from(digit).to_digit(16)?)
    })
}

/// True for a byte that may follow a literal or a number.
fn is_delimiter(byte: u8) -> bool {
    !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.' | b'_'))
}

/// A stack of bits.
#[derive(Default)]
struct Nesting {
    bits: Vec<u64>,
    depth: u32,
}

impl Nesting {
    fn push(&mut self, is_object: bool) {
        let (word, bit) = (self.depth as usize / 64, self.depth % 64);
        if word == self.bits.len() {
            self.bits.push(0);
        }
        self.bits[word] = self.bits[word] & !(1 << bit) | u64::from(is_object) << bit;
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.depth -= 1;
    }

    fn innermost(&self) -> Option<bool> {
        let top = self.depth.checked_sub(1)?;
        Some(self.bits[top as usize / 64] >> (top % 64) & 1 == 1)
    }
}

/// Go's choice of alphabet and padding: URL-safe if the text has `-` or `_`, unpadded if its length is no
/// multiple of four; line breaks are ignored.
fn decode_base64(text: &str, out: &mut Vec<u8>) -> Option<()> {
    let url_safe = memchr::memchr2(b'-', b'_', text.as_bytes()).is_some();
    let padded = text.len().is_multiple_of(4);
    let engine = match (url_safe, padded) {
        (false, true) => &STANDARD_PADDED,
        (false, false) => &STANDARD_BARE,
        (true, true) => &URL_SAFE_PADDED,
        (true, false) => &URL_SAFE_BARE,
    };
    let text = match memchr::memchr2(b'\r', b'\n', text.as_bytes()) {
        None => Cow::Borrowed(text),
        Some(_) => Cow::Owned(text.replace(['\r', '\n'], "")),
    };
    engine.decode_vec(&*text, out).ok()
}

static STANDARD_PADDED: GeneralPurpose = engine(&STANDARD, true);
static STANDARD_BARE: GeneralPurpose = engine(&STANDARD, false);
static URL_SAFE_PADDED: GeneralPurpose = engine(&URL_SAFE, true);
static URL_SAFE_BARE: GeneralPurpose = engine(&URL_SAFE, false);

const fn engine(alphabet: &Alphabet, padded: bool) -> GeneralPurpose {
    let mode = if padded {
        DecodePaddingMode::RequireCanonical
    } else {
        DecodePaddingMode::RequireNone
    };
    let config = GeneralPurposeConfig::new();
    GeneralPurpose::new(
        alphabet,
        config
            .with_decode_padding_mode(mode)
            .with_decode_allow_trailing_bits(true),
    )
}

fn write_field(number: u8, content: &[u8], out: &mut Vec<u8>) {
    if !content.is_empty() {
        let start = out.len();
        out.extend_from_slice(content);
        insert_head(number, start, out);
    }
}

/// Puts tag and length before the content that begins at `start`.
fn insert_head(number: u8, start: usize, out: &mut Vec<u8>) {
    let mut head = [0_u8; 11];
    head[0] = number << 3 | 2;
    let mut length = 1;
    let mut rest = out.len() - start;
    while rest >= 0x80 {
        head[length] = rest as u8 | 0x80;
        rest >>= 7;
        length += 1;
    }
    head[length] = rest as u8;
    length += 1;
    let content_end = out.len();
    out.resize(content_end + length, 0);
    out.copy_within(start..content_end, start + length);
    out[start..start + length].copy_from_slice(&head[..length]);
}

/// Fuzz target: what maps is a PushRequest no longer than its JSON.
#[doc(hidden)]
pub fn fuzz_json(data: &[u8]) {
    use prost::Message as _;
    let limits = JsonLimits {
        depth_max: 200,
        ..JsonLimits::default()
    };
    let Ok(proto) = to_proto(data, &limits) else {
        return;
    };
    assert!(proto.len() <= data.len(), "the mapping does not grow");
    let request = crate::profile::proto::PushRequest::decode(&*proto).expect("the output is protobuf");
    let value: Result<serde_json::Value, _> = serde_json::from_slice(data);
    if let Ok(serde_json::Value::Object(object)) = value
        && let Some(serde_json::Value::Array(series)) = object.get("series")
    {
        assert_eq!(request.series.len(), series.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::proto::PushRequest;
    use prost::Message as _;

    fn mapped(json: &str) -> Result<PushRequest, JsonError> {
        fuzz_json(json.as_bytes());
        let proto = to_proto(json.as_bytes(), &JsonLimits::default())?;
        Ok(PushRequest::decode(&*proto).expect("the output is protobuf"))
    }

    /// The raw profile and ID of the one sample in `{"series":[{"samples":[<sample>]}]}`.
    fn sample(sample: &str) -> Result<(Vec<u8>, String), JsonError> {
        let request = mapped(&format!("{{\"series\":[{{\"samples\":[{sample}]}}]}}"))?;
        let sample = &request.series[0].samples[0];
        Ok((sample.raw_profile.to_vec(), sample.id.clone()))
    }

    #[test]
    fn a_whole_request() {
        let json = r#" { "series" : [ { "labels":[{"name":"__name__","value":"cpu"},{"value":"x","name":"y"}],
            "samples":[{"rawProfile":"YWJj","ID":"1"},{"ID":"2"}], "annotations":[{"key":"k","value":"v"}] }, {} ] } "#;
        let request = mapped(json).expect("valid");
        assert_eq!(request.series.len(), 2);
        let first = &request.series[0];
        let labels: Vec<_> = first
            .labels
            .iter()
            .map(|pair| (&*pair.name, &*pair.value))
            .collect();
        assert_eq!(labels, [("__name__", "cpu"), ("y", "x")]);
        assert_eq!(
            (&first.samples[0].raw_profile[..], &*first.samples[0].id),
            (&b"abc"[..], "1")
        );
        assert_eq!(
            (first.samples[1].raw_profile.len(), &*first.samples[1].id),
            (0, "2")
        );
        assert_eq!(first.annotations[0].key, "k");
        assert_eq!(mapped("{}"), Ok(PushRequest::default()));
    }

    #[test]
    fn rows_84_and_85() {
        let ok = |raw: &[u8], id: &str| Ok((raw.to_vec(), id.to_owned()));
        let base64 = Err(JsonError::Base64(0));
        let cases = [
            (r#"{"rawProfile":"YQ=="}"#, ok(b"a", "")),
            (r#"{"raw_profile":"YQ"}"#, ok(b"a", "")),
            (r#"{"rawProfile":"-_-_"}"#, ok(b"\xfb\xff\xbf", "")),
            (r#"{"rawProfile":"+/+/"}"#, ok(b"\xfb\xff\xbf", "")),
            (r#"{"rawProfile":"-_8"}"#, ok(b"\xfb\xff", "")),
            (r#"{"rawProfile":"-_8="}"#, ok(b"\xfb\xff", "")),
            (r#"{"rawProfile":"+_+_"}"#, base64.clone()),
            (r#"{"rawProfile":""}"#, ok(b"", "")),
            (r#"{"rawProfile":"YR=="}"#, ok(b"a", "")),
            (r#"{"rawProfile":"YW\nJj\r"}"#, ok(b"abc", "")),
            (r#"{"rawProfile":"\u0059W\u004aj"}"#, ok(b"abc", "")),
            (r#"{"rawProfile":"YQ="}"#, base64.clone()),
            (r#"{"rawProfile":"Y"}"#, base64.clone()),
            (r#"{"rawProfile":"YQ==="}"#, base64.clone()),
            (r#"{"rawProfile":"YQ==YQ=="}"#, base64.clone()),
            (r#"{"rawProfile":"Y Q="}"#, base64),
            (r#"{"ID":"x"}"#, ok(b"", "x")),
            (r#"{"id":"x","Id":"y","iD":4}"#, ok(b"", "")),
            (r#"{"RawProfile":"YQ==","rawprofile":1}"#, ok(b"", "")),
            (r#"{"rawProfile":null,"ID":null}"#, ok(b"", "")),
            (
                r#"{"ID":"é\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t"}"#,
                ok(b"", "éé😀\"\\/\u{8}\u{c}\n\r\t"),
            ),
        ];
        for (json, expected) in cases {
            match (sample(json), expected) {
                (Err(JsonError::Base64(_)), Err(JsonError::Base64(_))) => {}
                (got, expected) => assert_eq!(got, expected, "{json}"),
            }
        }
    }

    #[test]
    fn row_86() {
        let good = [
            r#"{"Series":[1,2],"x":{"series":[null]},"y":[[],{},[{"a":[]}]],"z":-1.5e+7,"t":true,"f":false}"#,
            r#"{"series":null,"series2":null}"#,
            r#"{"series":[]}"#,
            r#"{"x":1,"x":2}"#,
            r#"{"x":1e }"#,
            r#"{"[ext]":1}"#,
            "{\"x\":\"\u{7f}\u{2028}\"}\r\n\t ",
        ];
        for json in good {
            assert_eq!(mapped(json).map(|request| request.series.len()), Ok(0), "{json}");
        }
        let bad = [
            "",
            " ",
            "null",
            "[]",
            "1",
            "\"x\"",
            "true",
            "{",
            "}",
            "{}}",
            "{}{}",
            "{} x",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{\"a\":1 \"b\":2}",
            "{a:1}",
            "{'a':1}",
            "{\"a\":[1,]}",
            "{\"a\":[,1]}",
            "{\"a\":[1 2]}",
            "{\"a\":[}",
            "{\"a\":{]}",
            "{\"a\":01}",
            "{\"a\":+1}",
            "{\"a\":.5}",
            "{\"a\":1.}",
            "{\"a\":-}",
            "{\"a\":1e+",
            "{\"a\":tru}",
            "{\"a\":truex}",
            "{\"a\":nul}",
            "{\"a\":NaN}",
            "{\"a\":\"\n\"}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12\"}",
            "{\"a\":\"\\ud800\"}",
            "{\"a\":\"\\udc00\"}",
            "{\"a\":\"\\udc00\\udc00\"}",
            "{\"a\":\"\\ud800\\u0041\"}",
            "{\"a\":\"\\ud800\\ud800\"}",
            "{\"a\":\"",
            "{\"a\":\"\\",
            "{\"a",
            "\u{feff}{}",
            r#"{"series":{}}"#,
            r#"{"series":[null]}"#,
            r#"{"series":[[]]}"#,
            r#"{"series":[1]}"#,
            r#"{"series":"x"}"#,
            r#"{"series":[],"series":[]}"#,
            r#"{"series":null,"series":[]}"#,
            r#"{"series":[{"labels":[null]}]}"#,
            r#"{"series":[{"labels":[{"name":1}]}]}"#,
            r#"{"series":[{"labels":[{"name":"a","name":"b"}]}]}"#,
            r#"{"series":[{"samples":[{"rawProfile":"","raw_profile":""}]}]}"#,
            r#"{"series":[{"samples":[{"rawProfile":[1]}]}]}"#,
            r#"{"series":[{"samples":[null]}]}"#,
            r#"{"series":[{"samples":[{"ID":1}]}]}"#,
            r#"{"series":[{"annotations":[{"key":{}}]}]}"#,
        ];
        for json in bad {
            let error = mapped(json).expect_err(json);
            assert_eq!(error.code(), Code::InvalidArgument, "{json}");
        }
        let bytes: [&[u8]; 3] = [b"{\"a\":\"\xff\"}", b"{\"\xff\":1}", b"{\"a\":\"\0\"}"];
        for json in bytes {
            assert!(matches!(
                to_proto(json, &JsonLimits::default()),
                Err(JsonError::Syntax(_))
            ));
        }
        assert!(matches!(
            mapped(r#"{"series":null,"series":[]}"#),
            Err(JsonError::Duplicate(_))
        ));
        assert_eq!(mapped(""), Err(JsonError::Empty));
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let limits = JsonLimits {
            bytes_max: 50_000,
            depth_max: 10_000,
        };
        for (depth, expected) in [(10_000, Ok(0)), (10_001, Err(JsonError::Depth))] {
            for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
                let limits = JsonLimits {
                    bytes_max: 1 << 20,
                    ..limits
                };
                let filling = if open == "[" { "" } else { "1" };
                let json = format!("{{\"x\":{}{filling}{}}}", open.repeat(depth), close.repeat(depth));
                assert_eq!(
                    to_proto(json.as_bytes(), &limits).map(|out| out.len()),
                    expected,
                    "{depth} {open}"
                );
            }
        }
        let open = format!("{{\"x\":{}", "[".repeat(40_000));
        assert_eq!(to_proto(open.as_bytes(), &limits), Err(JsonError::Depth));
        assert_eq!(to_proto(&[b' '; 50_001], &limits), Err(JsonError::TooLarge));
        assert_eq!(JsonError::TooLarge.code(), Code::ResourceExhausted);
    }

    #[test]
    fn long_contents_get_long_heads() {
        for length in [127, 128, 16_383, 16_384, 100_000] {
            let json = format!("{{\"ID\":\"{}\"}}", "x".repeat(length));
            assert_eq!(sample(&json).map(|(_, id)| id.len()), Ok(length));
        }
    }
}
