//! The mark that `pyrotee load` puts into a profile and `pyrotee sink` looks for: who I am, and what follows me.
//!
//! ```text
//!  offset  bytes  what
//!       0     12  magic `pyrotee-mark`
//!      12     16  id, hex: run (8 digits) and sequence number in that run (8 digits)
//!      28      4  filler, any value (see below)
//!      32      8  length of what the mark covers, hex
//!      40     32  first 16 bytes of the SHA-256 of what the mark covers, hex
//!      72      -  the covered bytes: all of the profile behind the mark
//! ```
//! The mark travels inside the profile, because a gateway may rewrite everything around it (labels, query, protobuf
//! framing). In a gzip'd pprof it is a field of the gzip header, which every reader skips; in folded text it is a frame
//! name. It holds nothing that folded text cannot hold: no space, no semicolon, no line end.
//!
//! The hash leaves the id out, so a sender changes 16 bytes in place and hashes nothing. The filler lets it do the same
//! under a gzip content coding, whose trailer holds a CRC-32 of everything: when the four bytes behind the id are the
//! running CRC register itself, the register is zero behind them, whatever the id was ([`seal`]).
//!
//! Not responsible for: counting ids (`sink/seen.rs`) and building profiles (`load/bodies.rs`).

use sha2::{Digest, Sha256};

/// Length of a mark in bytes.
pub const MARK_BYTES: usize = 72;
/// Where the id begins in a mark.
pub const ID_AT: usize = 12;
/// Where a sealed mark has left the CRC register zero: behind the filler.
pub const SEALED_AT: usize = 32;
/// Where the id lies in a mark.
const ID: std::ops::Range<usize> = ID_AT..28;
/// Where the filler lies.
const FILLER: std::ops::Range<usize> = 28..SEALED_AT;
const LENGTH: std::ops::Range<usize> = SEALED_AT..40;
const HASH: std::ops::Range<usize> = 40..MARK_BYTES;
const MAGIC: &[u8; 12] = b"pyrotee-mark";
/// A mark begins within this many bytes of a profile: behind a gzip header (16) with room to spare.
const BEGIN_MAX: usize = 64;

/// One marked profile: which run of `load` made it, and its number there, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProfileId {
    /// Drawn at random for each run.
    pub run: u32,
    /// Dense: a run that sends n profiles uses 0..n.
    pub sequence: u32,
}

/// What a profile's mark says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It has none.
    Unmarked,
    /// What follows the mark is what the sender put there.
    Whole(ProfileId),
    /// It is not.
    Corrupt,
}

/// A mark that covers `covered`, with the id zero and a filler of dots.
pub fn write(covered: &[u8]) -> [u8; MARK_BYTES] {
    let mut mark = [b'.'; MARK_BYTES];
    mark[..MAGIC.len()].copy_from_slice(MAGIC);
    set_id(&mut mark, ProfileId::default());
    // A body of 4 GiB cannot be prepared (`load` refuses far less), so the length fits.
    hex(covered.len() as u64, &mut mark[LENGTH]);
    for (byte, digits) in Sha256::digest(covered).iter().zip(mark[HASH].chunks_exact_mut(2)) {
        hex(u64::from(*byte), digits);
    }
    mark
}

/// Changes the id of a mark in place.
pub fn set_id(mark: &mut [u8], id: ProfileId) {
    hex(u64::from(id.run) << 32 | u64::from(id.sequence), &mut mark[ID]);
}

/// Sets the filler so that the CRC-32 register is zero behind it. `before` is the register (not inverted) after all
/// bytes before the id.
///
/// Why it works: the register takes in a byte by looking at its own low byte XOR that byte. Fed its own four bytes, it
/// looks at zero four times and shifts itself empty.
pub fn seal(mark: &mut [u8], before: u32) {
    let mut register = before;
    for byte in &mark[ID] {
        register = CRC[((register ^ u32::from(*byte)) & 0xff) as usize] ^ (register >> 8);
    }
    mark[FILLER].copy_from_slice(&register.to_le_bytes());
}

/// The offset of the first byte behind the id's mark, so where the covered bytes begin; `None` without a mark.
pub fn end(profile: &[u8]) -> Option<usize> {
    let head = &profile[..profile.len().min(BEGIN_MAX + MAGIC.len())];
    let begin = memchr::memmem::find(head, MAGIC)?;
    (profile.len() >= begin + MARK_BYTES).then_some(begin + MARK_BYTES)
}

/// Compares a profile with its mark.
pub fn check(profile: &[u8]) -> Checked {
    let head = &profile[..profile.len().min(BEGIN_MAX + MAGIC.len())];
    if memchr::memmem::find(head, MAGIC).is_none() {
        return Checked::Unmarked;
    }
    let Some(end) = end(profile) else {
        return Checked::Corrupt;
    };
    let (mark, covered) = (&profile[end - MARK_BYTES..end], &profile[end..]);
    let Some(id) = read_hex(&mark[ID]) else {
        return Checked::Corrupt;
    };
    let expected = write(covered);
    if mark[LENGTH] != expected[LENGTH] || mark[HASH] != expected[HASH] {
        return Checked::Corrupt;
    }
    #[allow(clippy::cast_possible_truncation)] // the two halves of 64 bits
    Checked::Whole(ProfileId {
        run: (id >> 32) as u32,
        sequence: id as u32,
    })
}

/// The CRC-32 register (not inverted) after `bytes`, from the start of a gzip member.
pub fn crc_register(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    !crc.sum()
}

/// The CRC-32 of a gzip member whose register is zero at some point and which ends in `rest`.
pub fn crc_from_zero(rest: &[u8]) -> u32 {
    !rest.iter().fold(0, |register: u32, byte| {
        CRC[((register ^ u32::from(*byte)) & 0xff) as usize] ^ (register >> 8)
    })
}

/// Writes `value` in lower-case hex over all of `digits`.
fn hex(mut value: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

/// Reads up to 16 lower-case hex digits.
fn read_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

/// What the register becomes per low byte: the polynomial of RFC 1952 section 8, reflected.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                0xedb8_8320 ^ (value >> 1)
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(before: &[u8], covered: &[u8], id: ProfileId) -> Vec<u8> {
        let mut mark = write(covered);
        set_id(&mut mark, id);
        [before, &mark, covered].concat()
    }

    #[test]
    fn a_mark_is_found_and_checked() {
        let id = ProfileId {
            run: 0xdead_beef,
            sequence: 7,
        };
        for before in [0, 16, BEGIN_MAX] {
            let profile = marked(&vec![b'x'; before], b"the rest", id);
            assert_eq!(check(&profile), Checked::Whole(id), "{before} bytes before");
        }
        assert_eq!(
            check(&marked(&[b'x'; BEGIN_MAX + 1], b"the rest", id)),
            Checked::Unmarked
        );
        assert_eq!(check(b"main;work 12\n"), Checked::Unmarked);
        assert_eq!(check(b""), Checked::Unmarked);
    }

    #[test]
    fn every_change_behind_the_id_is_seen() {
        let id = ProfileId { run: 1, sequence: 2 };
        let good = marked(b"", b"the rest", id);
        for at in MAGIC.len()..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            match check(&bad) {
                Checked::Corrupt => assert!(!FILLER.contains(&at), "byte {at}"),
                Checked::Whole(other) => {
                    assert!(
                        FILLER.contains(&at) || (ID.contains(&at) && other != id),
                        "byte {at}"
                    );
                }
                Checked::Unmarked => panic!("byte {at}"),
            }
        }
        for cut in MAGIC.len()..good.len() {
            assert_eq!(check(&good[..cut]), Checked::Corrupt, "cut at {cut}");
        }
        assert_eq!(check(&[&good[..], b"!"].concat()), Checked::Corrupt);
    }

    #[test]
    fn a_sealed_mark_leaves_the_crc_as_it_was() {
        let (before, rest) = (b"some bytes before".as_slice(), b"the rest".as_slice());
        let register = crc_register(&[before, MAGIC].concat());
        for sequence in [0, 1, 77, u32::MAX] {
            let mut mark = write(rest);
            set_id(
                &mut mark,
                ProfileId {
                    run: 0x1234_5678,
                    sequence,
                },
            );
            seal(&mut mark, register);
            let mut whole = flate2::Crc::new();
            whole.update(&[before, &mark, rest].concat());
            let behind_filler = [&mark[FILLER.end..], rest].concat();
            assert_eq!(whole.sum(), crc_from_zero(&behind_filler), "sequence {sequence}");
        }
    }
}
