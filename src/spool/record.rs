//! The bytes of the spool's files: segment headers, record heads and done marks, written and read back. Pure: no files,
//! no clock. Not responsible for where they lie (`scan.rs`, `store.rs`). The drawing is in `spool/mod.rs`.
//!
//! Reading never trusts a length: whatever passes its checksum is still held against the bounds below.

use std::ops::RangeInclusive;

use crate::profile::route::Route;

/// The version that this program writes. A file of a higher one is left untouched.
pub const VERSION: u32 = 1;
/// Length of a segment's header in bytes.
pub const HEADER_BYTES: usize = 32;
/// Length of a record's head in bytes.
pub const HEAD_BYTES: usize = 64;
/// Length of the checksum behind a record's body in bytes.
pub const SUM_BYTES: usize = 4;
/// Length of the shortest record in bytes: no query, no fields, no body.
pub const RECORD_BYTES_MIN: u64 = (HEAD_BYTES + SUM_BYTES) as u64;
/// Length of a done mark in bytes.
pub const MARK_BYTES: usize = 12;
/// No body, and no count of profile bytes, is longer: 1 TiB. It keeps sums of them far from overflowing.
pub const BODY_BYTES_MAX: u64 = 1 << 40;
/// What begins a record's head. Looked for behind damage, so it begins with a byte that is in no text.
pub const HEAD_MAGIC: [u8; 8] = *b"\xf1pyrorec";

const HEADER_MAGIC: [u8; 8] = *b"\xf1pyroseg";

/// What stands at the start of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format of all that follows. See [`VERSION`].
    pub version: u32,
    /// The number of the segment, also in its name: for files that were found without one.
    pub number: u64,
    /// A number that no client can guess: every head and mark that belongs to the segment knows it, so that nothing in
    /// a body, and no stale block of an older file, passes for one.
    pub salt: u64,
}

impl Header {
    /// As bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&HEADER_MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.number.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.salt.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    /// From the first bytes of a file. `None` if they are no header, or a damaged one. The version may be any: these 32
    /// bytes stay the same in all of them.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = sealed::<HEADER_BYTES>(bytes, HEADER_MAGIC)?;
        Some(Self {
            version: number_u32(&bytes[8..]),
            number: number_u64(&bytes[12..]),
            salt: number_u64(&bytes[20..]),
        })
    }
}

/// What stands in front of a record's query, fields and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The salt of its segment.
    pub salt: u64,
    /// Its number in its segment, from 0. A failed write may leave a number to the next record; none comes twice.
    pub index: u32,
    /// Where it came in and goes out.
    pub route: Route,
    /// Length of the query in bytes.
    pub query_bytes: u32,
    /// Length of the header lines in bytes.
    pub fields_bytes: u32,
    /// Length of the body in bytes, at most [`BODY_BYTES_MAX`].
    pub body_bytes: u64,
    /// What Alloy's byte counters count (WIRE.md 4.6), at most [`BODY_BYTES_MAX`].
    pub profile_bytes: u64,
    /// When it was accepted, in milliseconds since the unix epoch.
    pub accepted_unix_ms: u64,
    /// Profiles in it.
    pub profiles: u32,
}

impl Head {
    /// As bytes.
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(&HEAD_MAGIC);
        bytes[8..16].copy_from_slice(&self.salt.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.index.to_le_bytes());
        bytes[20] = match self.route {
            Route::Ingest => ROUTE_INGEST,
            Route::Push => ROUTE_PUSH,
        };
        bytes[24..28].copy_from_slice(&self.query_bytes.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.fields_bytes.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.profile_bytes.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.accepted_unix_ms.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.profiles.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    /// From the first bytes of a slice. `None` if they are no head, a damaged one, or out of bounds.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = sealed::<HEAD_BYTES>(bytes, HEAD_MAGIC)?;
        let head = Self {
            salt: number_u64(&bytes[8..]),
            index: number_u32(&bytes[16..]),
            route: match bytes[20] {
                ROUTE_INGEST => Route::Ingest,
                ROUTE_PUSH => Route::Push,
                _ => return None,
            },
            query_bytes: number_u32(&bytes[24..]),
            fields_bytes: number_u32(&bytes[28..]),
            body_bytes: number_u64(&bytes[32..]),
            profile_bytes: number_u64(&bytes[40..]),
            accepted_unix_ms: number_u64(&bytes[48..]),
            profiles: number_u32(&bytes[56..]),
        };
        (head.body_bytes <= BODY_BYTES_MAX && head.profile_bytes <= BODY_BYTES_MAX).then_some(head)
    }

    /// Length of query, fields and body together in bytes.
    pub fn payload_bytes(&self) -> u64 {
        u64::from(self.query_bytes) + u64::from(self.fields_bytes) + self.body_bytes
    }

    /// Length of the whole record in bytes.
    pub fn record_bytes(&self) -> u64 {
        RECORD_BYTES_MIN + self.payload_bytes()
    }
}

const ROUTE_INGEST: u8 = 1;
const ROUTE_PUSH: u8 = 2;

/// The mark that the records of these numbers are done. The salt is part of its checksum only.
pub fn encode_mark(salt: u64, records: &RangeInclusive<u32>) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..4].copy_from_slice(&records.start().to_le_bytes());
    bytes[4..8].copy_from_slice(&records.end().to_le_bytes());
    let sum = mark_sum(salt, &bytes[..8]);
    bytes[8..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// From the first bytes of a slice. `None` if they are no mark, a damaged one, or one of another segment.
pub fn decode_mark(salt: u64, bytes: &[u8]) -> Option<RangeInclusive<u32>> {
    let bytes = bytes.first_chunk::<MARK_BYTES>()?;
    let (first, last) = (number_u32(bytes), number_u32(&bytes[4..]));
    let is_good = number_u32(&bytes[8..]) == mark_sum(salt, &bytes[..8]) && first <= last;
    is_good.then_some(first..=last)
}

fn mark_sum(salt: u64, bytes: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&salt.to_le_bytes());
    sum.update(bytes);
    sum.finalize()
}

/// Writes the checksum of all bytes but the last four into those.
fn seal(bytes: &mut [u8]) {
    let (covered, sum) = bytes.split_at_mut(bytes.len() - SUM_BYTES);
    sum.copy_from_slice(&crc32fast::hash(covered).to_le_bytes());
}

/// The first `N` bytes, if they begin with `magic` and their checksum is good.
fn sealed<const N: usize>(bytes: &[u8], magic: [u8; 8]) -> Option<&[u8; N]> {
    let bytes = bytes.first_chunk::<N>()?;
    let (covered, sum) = bytes.split_at(N - SUM_BYTES);
    (covered.starts_with(&magic) && number_u32(sum) == crc32fast::hash(covered)).then_some(bytes)
}

/// The first four bytes as a number.
pub fn number_u32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

pub(super) fn number_u64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heads() -> impl Strategy<Value = Head> {
        let route = prop_oneof![Just(Route::Ingest), Just(Route::Push)];
        let lengths = (any::<u32>(), any::<u32>(), 0..=BODY_BYTES_MAX, 0..=BODY_BYTES_MAX);
        (
            any::<u64>(),
            any::<u32>(),
            route,
            lengths,
            any::<u64>(),
            any::<u32>(),
        )
            .prop_map(|(salt, index, route, lengths, accepted_unix_ms, profiles)| Head {
                salt,
                index,
                route,
                query_bytes: lengths.0,
                fields_bytes: lengths.1,
                body_bytes: lengths.2,
                profile_bytes: lengths.3,
                accepted_unix_ms,
                profiles,
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_no_flipped_bit_passes(
            head in heads(),
            header in (any::<u32>(), any::<u64>(), any::<u64>()),
            mark in (any::<u32>(), any::<u32>()),
            bit in 0_usize..HEAD_BYTES * 8,
        ) {
            let flip = |bytes: &mut [u8]| {
                let bit = bit % (bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            };
            let mut bytes = head.encode();
            prop_assert_eq!(Head::decode(&bytes), Some(head));
            flip(&mut bytes);
            prop_assert_eq!(Head::decode(&bytes), None);

            let header = Header { version: header.0, number: header.1, salt: header.2 };
            let mut bytes = header.encode();
            prop_assert_eq!(Header::decode(&bytes), Some(header));
            flip(&mut bytes);
            prop_assert_eq!(Header::decode(&bytes), None);

            let records = mark.0.min(mark.1)..=mark.0.max(mark.1);
            let mut bytes = encode_mark(header.salt, &records);
            prop_assert_eq!(decode_mark(header.salt, &bytes), Some(records));
            prop_assert_eq!(decode_mark(header.salt ^ 1, &bytes), None);
            flip(&mut bytes);
            prop_assert_eq!(decode_mark(header.salt, &bytes), None);
        }
    }

    /// The format does not change by accident: these bytes were made from its description by another program.
    #[test]
    fn version_1_stays_as_it_is() {
        let header = Header {
            version: 1,
            number: 2,
            salt: 3,
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(&header.encode()), HEADER_HEX);
        let head = Head {
            salt: 3,
            index: 4,
            route: Route::Push,
            query_bytes: 5,
            fields_bytes: 6,
            body_bytes: 7,
            profile_bytes: 8,
            accepted_unix_ms: 9,
            profiles: 10,
        };
        assert_eq!(hex(&head.encode()), HEAD_HEX);
        assert_eq!(hex(&encode_mark(3, &(4..=5))), MARK_HEX);
    }

    const HEADER_HEX: &str = "f17079726f7365670100000002000000000000000300000000000000d5a0f8ef";
    const HEAD_HEX: &str = concat!(
        "f17079726f726563030000000000000004000000020000000500000006000000",
        "0700000000000000080000000000000009000000000000000a0000002d143fb1"
    );
    const MARK_HEX: &str = "04000000050000006f01e776";

    #[test]
    fn what_is_too_short_or_out_of_bounds_is_nothing() {
        for length in 0..HEAD_BYTES {
            assert_eq!(Head::decode(&[0xf1; HEAD_BYTES][..length]), None);
            assert_eq!(
                Header::decode(&[0; HEADER_BYTES][..length.min(HEADER_BYTES - 1)]),
                None
            );
            assert_eq!(
                decode_mark(0, &[0; MARK_BYTES][..length.min(MARK_BYTES - 1)]),
                None
            );
        }
        let mut backwards = encode_mark(1, &(0..=1));
        backwards[..4].copy_from_slice(&2_u32.to_le_bytes());
        let sum = mark_sum(1, &backwards[..8]).to_le_bytes();
        backwards[8..].copy_from_slice(&sum);
        assert_eq!(decode_mark(1, &backwards), None);
        let head = Head {
            salt: 0,
            index: 0,
            route: Route::Ingest,
            query_bytes: 0,
            fields_bytes: 0,
            body_bytes: BODY_BYTES_MAX + 1,
            profile_bytes: 0,
            accepted_unix_ms: 0,
            profiles: 0,
        };
        assert_eq!(Head::decode(&head.encode()), None);
    }
}
