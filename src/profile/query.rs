//! URL queries by the rules of Go's `net/url` (WIRE.md 2.6): what both Alloy and the server parse and Alloy
//! emits. Not responsible for what the parameters mean (`ingest`).

use std::ops::Range;

use memchr::{memchr, memchr_iter};

/// Most `&`-separated pieces a query may have; beyond it the whole query counts as empty (WIRE.md 2.6).
pub const PIECES_MAX: usize = 10_000;
/// Scratch memory kept between queries, in bytes of decoded text. A larger one is given back.
const SCRATCH_BYTES_KEPT: usize = 64 << 10;
/// Pairs kept between queries.
const SCRATCH_PAIRS_KEPT: usize = 1024;

/// Bytes that are escaped in one go, from the first that needs it on.
const ESCAPED_AT_ONCE: usize = 32;
/// Behind an escape, so many plain bytes in a row are taken one by one before the next escape is searched for: about what a
/// search costs.
const PLAIN_IN_COMPANY: usize = 16;

/// A parsed query: decoded pairs in one arena, in the order received. Reusable; holds no more than the
/// query's length in text and [`PIECES_MAX`] pairs.
#[derive(Debug, Default)]
pub struct Query {
    text: Vec<u8>,
    pairs: Vec<Pair>,
}

/// `text[start..key_end]` is the key, `text[key_end..value_end]` the value.
#[derive(Clone, Copy, Debug)]
struct Pair {
    start: usize,
    key_end: usize,
    value_end: usize,
}

impl Query {
    /// Parses `raw` (without `?`), replacing what was held before.
    ///
    /// Empty pieces are skipped; a piece with a raw `;` or a bad percent-escape is dropped; no `=` means an
    /// empty value; more than [`PIECES_MAX`] pieces make the whole query empty.
    pub fn parse(&mut self, raw: &[u8]) {
        self.clear();
        if memchr_iter(b'&', raw).count() >= PIECES_MAX {
            return;
        }
        self.text.reserve(raw.len());
        for piece in raw.split(|&b| b == b'&') {
            if piece.is_empty() || memchr(b';', piece).is_some() {
                continue;
            }
            let split = memchr(b'=', piece).unwrap_or(piece.len());
            let start = self.text.len();
            let value = piece.get(split + 1..).unwrap_or_default();
            let key_good = unescape(&piece[..split], &mut self.text);
            let key_end = self.text.len();
            if key_good && unescape(value, &mut self.text) {
                self.pairs.push(Pair {
                    start,
                    key_end,
                    value_end: self.text.len(),
                });
            } else {
                self.text.truncate(start);
            }
        }
    }

    /// The first value of `key`, decoded.
    pub fn first(&self, key: &[u8]) -> Option<&[u8]> {
        self.first_range(key).map(|range| &self.text[range])
    }

    /// All pairs as received, decoded.
    pub fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pairs.iter().map(|pair| {
            (
                &self.text[pair.start..pair.key_end],
                &self.text[pair.key_end..pair.value_end],
            )
        })
    }

    /// Sorts pairs bytewise by key; values of one key keep their order.
    pub fn sort(&mut self) {
        let text = &self.text;
        // Ranges grow with the order received (one may be empty), so they break ties and an unstable sort,
        // which does not allocate, will do.
        self.pairs.sort_unstable_by(|a, b| {
            let keys = text[a.start..a.key_end].cmp(&text[b.start..b.key_end]);
            keys.then((a.start, a.value_end).cmp(&(b.start, b.value_end)))
        });
    }

    /// Forgets the content; keeps up to 64 KiB of memory for the next query.
    pub fn clear(&mut self) {
        self.text.clear();
        self.pairs.clear();
        self.text.shrink_to(SCRATCH_BYTES_KEPT);
        self.pairs.shrink_to(SCRATCH_PAIRS_KEPT);
    }

    fn first_range(&self, key: &[u8]) -> Option<Range<usize>> {
        let is_key = |pair: &&Pair| &self.text[pair.start..pair.key_end] == key;
        self.pairs
            .iter()
            .find(is_key)
            .map(|pair| pair.key_end..pair.value_end)
    }
}

/// Appends the Go query encoding of `text` to `out`: `A-Z a-z 0-9 - _ . ~` as they are, space as `+`, the
/// rest as `%XX` in upper case.
pub fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while !rest.is_empty() {
        let plain = rest.iter().position(|&b| !is_plain(b)).unwrap_or(rest.len());
        out.extend_from_slice(&rest[..plain]);
        // Bytes that are not plain come in company: a block from the first of them on is written as one.
        let (block, behind) = rest[plain..].split_at(ESCAPED_AT_ONCE.min(rest.len() - plain));
        let mut escaped = [0; 3 * ESCAPED_AT_ONCE];
        let mut len = 0;
        for &byte in block {
            match byte {
                b' ' => escaped[len] = b'+',
                byte if is_plain(byte) => escaped[len] = byte,
                byte => {
                    escaped[len..len + 3].copy_from_slice(&percent(byte));
                    len += 2;
                }
            }
            len += 1;
        }
        out.extend_from_slice(&escaped[..len]);
        rest = behind;
    }
}

/// `byte` as `%XX`, upper case.
pub(crate) fn percent(byte: u8) -> [u8; 3] {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    [b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]
}

/// The byte that `escaped` (the two digits after a `%`) stands for.
pub(crate) fn unpercent(escaped: &[u8]) -> Option<u8> {
    let digit = |b: u8| (b as char).to_digit(16).map(|digit| digit as u8);
    match escaped {
        &[high, low, ..] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    }
}

/// Whether the encoding leaves a byte as it is.
pub(crate) const fn is_plain(b: u8) -> bool {
    PLAIN[b as usize]
}

const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        #[allow(clippy::cast_possible_truncation)] // below 256
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
        byte += 1;
    }
    table
};

/// Appends `text` decoded (`+` is a space). False on a bad escape; then `out` may have gained some bytes.
fn unescape(text: &[u8], out: &mut Vec<u8>) -> bool {
    let mut rest = text;
    while let Some(special) = memchr::memchr2(b'%', b'+', rest) {
        out.extend_from_slice(&rest[..special]);
        rest = &rest[special..];
        // Where there is one there are more, as in `%C3%A9t%C3%A9`: a search for each would cost more than the byte.
        let mut plain = 0;
        while plain < PLAIN_IN_COMPANY {
            let (byte, used) = match rest {
                [] => return true,
                [b'+', ..] => (b' ', 1),
                [b'%', escaped @ ..] => match unpercent(escaped) {
                    Some(byte) => (byte, 3),
                    None => return false,
                },
                [byte, ..] => (*byte, 1),
            };
            plain = if matches!(rest[0], b'+' | b'%') {
                0
            } else {
                plain + 1
            };
            out.push(byte);
            rest = &rest[used..];
        }
    }
    out.extend_from_slice(rest);
    true
}

/// Encodes every pair as received; [`Query::sort`] first gives Go's order.
pub fn encode(query: &Query, out: &mut Vec<u8>) {
    for (index, (key, value)) in query.pairs().enumerate() {
        if index > 0 {
            out.push(b'&');
        }
        escape(key, out);
        out.push(b'=');
        escape(value, out);
    }
}

/// Fuzz target: encoding what was parsed and parsing it again changes nothing.
#[doc(hidden)]
pub fn fuzz_query(data: &[u8]) {
    let mut query = Query::default();
    query.parse(data);
    query.sort();
    let mut once = Vec::new();
    encode(&query, &mut once);
    assert!(
        once.iter()
            .all(|&b| is_plain(b) || matches!(b, b'%' | b'+' | b'&' | b'='))
    );
    let mut again = Query::default();
    again.parse(&once);
    assert!(
        query.pairs().eq(again.pairs()),
        "what was encoded parses to the same pairs"
    );
    let mut twice = Vec::new();
    encode(&again, &mut twice);
    assert_eq!(once, twice);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    fn reencoded(raw: &[u8]) -> String {
        let mut query = Query::default();
        query.parse(raw);
        query.sort();
        let mut out = Vec::new();
        encode(&query, &mut out);
        String::from_utf8(out).expect("an encoded query is ASCII")
    }

    #[test]
    fn rules_of_wire_2_6() {
        let cases: &[(&str, &str, &str)] = &[
            (
                "27 sorted, values keep their order",
                "c=1&a=2&b=3&a=1",
                "a=2&a=1&b=3&c=1",
            ),
            ("29 unreserved", "k=AZaz09-_.~", "k=AZaz09-_.~"),
            ("29 escaped", "k={ }=,/", "k=%7B+%7D%3D%2C%2F"),
            (
                "29 lower-case escape comes out upper",
                "k=%7b%c3%a9",
                "k=%7B%C3%A9",
            ),
            ("30 bad escape in a value", "a=%zz&b=1", "b=1"),
            ("30 bad escape in a key", "%=1&b=1", "b=1"),
            ("30 cut escape", "a=%4&b=%", ""),
            ("31 raw semicolon", "a=1;b=2&c=3", "c=3"),
            ("31 escaped semicolon", "a=1%3Bb", "a=1%3Bb"),
            ("empty pieces", "&&a=1&&", "a=1"),
            ("no equals sign", "a&b", "a=&b="),
            ("empty key", "=1&=", "=1&="),
            ("empty key and value before a value", "=&=2&=1&=", "=&=2&=1&="),
            ("first equals splits", "a=b=c", "a=b%3Dc"),
            ("plus is a space", "a+b=c+d", "a+b=c+d"),
            ("escaped plus stays", "a=%2B", "a=%2B"),
            ("NUL and high bytes", "a=%00%ff", "a=%00%FF"),
        ];
        for (name, raw, expected) in cases {
            assert_eq!(reencoded(raw.as_bytes()), *expected, "{name}");
            fuzz_query(raw.as_bytes());
        }
    }

    /// Both directions take bytes in company at once; the twins here take them one by one.
    #[test]
    fn escapes_in_company_are_as_escapes_alone() {
        let one_by_one = |text: &[u8]| -> Vec<u8> {
            let escaped = |&byte: &u8| match byte {
                b' ' => vec![b'+'],
                byte if is_plain(byte) => vec![byte],
                byte => percent(byte).to_vec(),
            };
            text.iter().flat_map(escaped).collect()
        };
        for length in 0..=3 * ESCAPED_AT_ONCE {
            for step in 1..=2 * PLAIN_IN_COMPANY {
                // A byte in `step` needs an escape, in turn a space, a byte of two digits, and a `%`.
                let byte = |at: usize| match (at % step, at / step % 3) {
                    (0, 0) => b' ',
                    (0, 1) => b'\xc3',
                    (0, _) => b'%',
                    _ => b'a',
                };
                let text: Vec<u8> = (0..length).map(byte).collect();
                let mut escaped = Vec::new();
                escape(&text, &mut escaped);
                assert_eq!(escaped, one_by_one(&text), "{length} by {step}");
                let mut back = Vec::new();
                assert!(
                    unescape(&escaped, &mut back) && back == text,
                    "{length} by {step}"
                );
                escaped.extend_from_slice(b"%4");
                assert!(!unescape(&escaped, &mut Vec::new()), "{length} by {step}");
            }
        }
    }

    #[test]
    fn ten_thousand_pieces_and_no_more() {
        // Values fall, so that a sort which does not keep their order would show.
        let pieces = |count: usize| {
            (0..count)
                .map(|n| format!("a={}", count - n))
                .collect::<Vec<_>>()
                .join("&")
        };
        assert_eq!(reencoded(pieces(PIECES_MAX).as_bytes()), pieces(PIECES_MAX));
        assert_eq!(reencoded(pieces(PIECES_MAX + 1).as_bytes()), "");
        let empty_first = ["=", "=2", "=1"].repeat(20).join("&");
        assert_eq!(reencoded(empty_first.as_bytes()), empty_first);
        assert_eq!(
            reencoded("&".repeat(PIECES_MAX - 1).as_bytes()),
            "",
            "empty pieces are no pairs"
        );
        assert_eq!(
            reencoded(format!("a=1{}", "&".repeat(PIECES_MAX)).as_bytes()),
            "",
            "but they count"
        );
    }

    #[test]
    fn long_queries_keep_the_order_of_values() {
        let mut pairs: Vec<(usize, usize)> = (0..500).map(|n| (n * 7919 % 13, 500 - n)).collect();
        let text = |pairs: &[(usize, usize)]| {
            let pieces: Vec<String> = pairs
                .iter()
                .map(|(key, value)| format!("{key:02}={value}"))
                .collect();
            pieces.join("&")
        };
        let raw = text(&pairs);
        pairs.sort_by_key(|pair| pair.0);
        assert_eq!(reencoded(raw.as_bytes()), text(&pairs));
    }

    #[test]
    fn scratch_is_given_back() {
        let mut query = Query::default();
        query.parse(&vec![b'a'; 1 << 20]);
        query.clear();
        assert!(query.text.capacity() <= SCRATCH_BYTES_KEPT);
    }

    /// One query as Go's `net/url` sees it. Bytes are hex, since JSON has no bytes.
    #[derive(Deserialize)]
    struct Vector {
        raw: String,
        encoded: String,
        name: Option<String>,
    }

    /// `tests/data/neturl/main.go` wrote the vectors with Go's own `net/url`.
    #[test]
    fn agrees_with_go_net_url() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/neturl/vectors.json");
        let text = std::fs::read(file).expect("the vectors are in the repository");
        let vectors: Vec<Vector> = serde_json::from_slice(&text).expect("the generator writes JSON");
        assert!(vectors.len() > 300, "{}", vectors.len());
        let bytes = |hex: &str| -> Vec<u8> {
            hex.as_bytes()
                .chunks(2)
                .map(|pair| unpercent(pair).expect("hex"))
                .collect()
        };
        for vector in &vectors {
            let raw = bytes(&vector.raw);
            let shown = String::from_utf8_lossy(&raw[..raw.len().min(200)]).into_owned();
            assert_eq!(reencoded(&raw), vector.encoded, "{shown}");
            let mut query = Query::default();
            query.parse(&raw);
            assert_eq!(
                query.first(b"name"),
                vector.name.as_deref().map(bytes).as_deref(),
                "{shown}"
            );
            fuzz_query(&raw);
        }
    }
}
