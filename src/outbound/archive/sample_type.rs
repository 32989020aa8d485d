//! What a pprof profile measures, read from the profile itself: clients of `/ingest` often do not say it elsewhere.
//! Streaming and bounded; a profile that cannot be read has no type, which is no error.

use std::io::{self, BufRead, BufReader, Read};

use bytes::Buf;
use flate2::bufread::MultiGzDecoder;

use super::segments::Segments;
use super::wire::{Value, next_field};

/// Most bytes of a profile, gunzipped, that are looked through. The string table comes late, profiles over 4 MiB are
/// refused by the server (WIRE.md 1.4).
const SCAN_BYTES_MAX: u64 = 16 << 20;
/// Longest name of a sample type, in bytes; also the longest encoded ValueType.
const NAME_BYTES_MAX: u64 = 64;

/// The type of the last value of each sample, which is what `go tool pprof` shows first: `cpu`, `inuse_space`, `wall`.
pub fn sample_type(content: &Segments, is_gzip: bool) -> Option<String> {
    let reader = content.clone().reader();
    let name = if is_gzip {
        let inflated = MultiGzDecoder::new(reader).take(SCAN_BYTES_MAX);
        scan(BufReader::new(inflated))
    } else {
        scan(reader.take(SCAN_BYTES_MAX))
    };
    name.ok().flatten()
}

fn scan(mut profile: impl BufRead) -> io::Result<Option<String>> {
    let mut wanted = None;
    let mut strings = 0;
    while !profile.fill_buf()?.is_empty() {
        let key = varint(&mut profile)?;
        match (key >> 3, key & 7) {
            (1, 2) => wanted = type_index(&short(&mut profile)?),
            (6, 2) if wanted.is_none() => break, // every encoder known puts the types first
            (6, 2) if wanted == Some(strings) => {
                let name = String::from_utf8(short(&mut profile)?).unwrap_or_default();
                return Ok(Some(name).filter(|name| !name.is_empty()));
            }
            (number, 2) => {
                strings += u64::from(number == 6);
                let length = varint(&mut profile)?;
                skip(&mut profile, length)?;
            }
            (_, 0) => {
                varint(&mut profile)?;
            }
            (_, 1) => skip(&mut profile, 8)?,
            (_, 5) => skip(&mut profile, 4)?,
            _ => break,
        }
    }
    Ok(None)
}

/// `ValueType.type`: an index into the string table.
fn type_index(value_type: &[u8]) -> Option<u64> {
    let mut message = Segments::from(value_type.to_vec());
    while let Ok(Some((number, value))) = next_field(&mut message) {
        if let (1, Value::Varint(index)) = (number, value) {
            return Some(index);
        }
    }
    None
}

/// The bytes of a field; none of one that is too long to be what we look for.
fn short(profile: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let length = varint(profile)?;
    let mut bytes = Vec::new();
    if length > NAME_BYTES_MAX {
        skip(profile, length)?;
    } else {
        profile.take(length).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn skip(profile: &mut impl BufRead, count: u64) -> io::Result<()> {
    io::copy(&mut profile.take(count), &mut io::sink()).map(drop)
}

fn varint(profile: &mut impl BufRead) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        profile.read_exact(&mut byte)?;
        number |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            return Ok(number);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::segments::tests::split;
    use super::*;

    const CPU: &[u8] = b"\x0a\x04\x08\x01\x10\x02\x0a\x04\x08\x03\x10\x04\x12\x02\x10\x05\x32\x00\x32\x07samples\x32\x05count\x32\x03cpu\x32\x0bnanoseconds";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_last_type_is_found_in_any_split_and_both_ways() {
        for step in 1..=CPU.len() {
            assert_eq!(sample_type(&split(CPU, step), false).as_deref(), Some("cpu"));
            assert_eq!(
                sample_type(&split(&gzip(CPU), step), true).as_deref(),
                Some("cpu")
            );
        }
    }

    /// The SDK for Node adds names to the end of the table.
    #[test]
    fn names_may_be_late_in_the_table() {
        let mut profile = b"\x0a\x03\x08\xc8\x01".to_vec();
        for number in 0..300 {
            profile.extend_from_slice(&[b"\x32\x03".as_slice(), format!("{number:03}").as_bytes()].concat());
        }
        assert_eq!(sample_type(&split(&profile, 9), false).as_deref(), Some("200"));
    }

    #[test]
    fn what_cannot_be_read_has_no_type() {
        let long = [b"\x32\x80\x01".as_slice(), &[b'a'; 128]].concat();
        let cases: &[(&str, &[u8])] = &[
            ("empty", b""),
            ("types after the table", b"\x32\x00\x32\x01a\x0a\x02\x08\x01"),
            ("no types", b"\x32\x00\x32\x01a"),
            ("no table", b"\x0a\x02\x08\x01"),
            ("index beyond the table", b"\x0a\x02\x08\x7f\x32\x00\x32\x01a"),
            (
                "too long a name",
                &[b"\x0a\x02\x08\x00".as_slice(), &long].concat(),
            ),
            ("not UTF-8", b"\x0a\x02\x08\x00\x32\x01\xff"),
            ("group", b"\x0a\x02\x08\x01\x0b"),
            ("endless varint", &[0xff; 32]),
            ("cut", &CPU[..20]),
        ];
        for (name, bytes) in cases {
            assert_eq!(sample_type(&split(bytes, 3), false), None, "{name}");
            assert_eq!(sample_type(&split(&gzip(bytes), 3), true), None, "{name}, gzip");
        }
        assert_eq!(sample_type(&split(&gzip(CPU)[..20], 7), true), None, "cut gzip");
        assert_eq!(sample_type(&split(CPU, 7), true), None, "no gzip");
    }

    #[test]
    fn a_bomb_is_looked_at_up_to_the_bound() {
        let mut bomb = b"\x0a\x02\x08\x01\x12\x80\x80\x80\x10".to_vec(); // a sample of 32 MiB
        bomb.resize(bomb.len() + (32 << 20), 0);
        bomb.extend_from_slice(b"\x32\x00\x32\x03cpu");
        assert_eq!(sample_type(&split(&gzip(&bomb), 1 << 16), true), None);
    }
}
