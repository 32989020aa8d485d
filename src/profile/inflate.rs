//! Bounded gzip for request bodies. Not responsible for deciding what is gzip, and never used on `/ingest`.
//!
//! Output grows in blocks of at most 64 KiB. Each block is announced to the caller's memory budget before
//! it is allocated, so a bomb costs at most what the budget or `bytes_max` allows, plus the inflater's own
//! window (about 48 KiB).

use std::io::{self, BufRead, Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use thiserror::Error;

/// Largest block of output, in bytes: the size of a pooled receive buffer.
pub const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Smallest block, in bytes.
const BLOCK_BYTES_MIN: usize = 4 << 10;
/// The first block is this many times the compressed size, which most pushes fit (pprof inside is gzipped
/// already).
const EXPANSION_GUESS: usize = 4;

/// Why a body could not be inflated.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InflateError {
    /// More output than `bytes_max`.
    #[error("decompressed body is too large")]
    TooLarge,
    /// Not gzip, truncated, or a wrong checksum.
    #[error("corrupt gzip body")]
    Corrupt,
    /// The caller's memory budget refused a block.
    #[error("no memory for the decompressed body")]
    NoMemory,
}

/// Inflates a gzip body of any number of members, cut anywhere into segments. A body of zero length is empty
/// (WIRE.md 3.2).
///
/// `reserve(bytes)` is called before each block of `bytes` is allocated; false ends with
/// [`InflateError::NoMemory`]. What was reserved before an error is the caller's to give back. At most
/// `bytes_max` bytes come out.
pub fn gunzip(
    segments: &[Bytes],
    bytes_max: u64,
    reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<Vec<Bytes>, InflateError> {
    let compressed: usize = segments.iter().map(Bytes::len).sum();
    let mut blocks = Vec::new();
    if compressed == 0 {
        return Ok(blocks);
    }
    let mut decoder = MultiGzDecoder::new(SegmentReader { segments, offset: 0 });
    let mut left = bytes_max;
    let mut block_bytes = compressed
        .saturating_mul(EXPANSION_GUESS)
        .clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX);
    loop {
        // One byte beyond the limit tells a full body from one that is too large.
        let size = (block_bytes as u64).min(left.saturating_add(1)) as usize;
        if !reserve(size) {
            return Err(InflateError::NoMemory);
        }
        let mut block = vec![0; size];
        let filled = fill(&mut decoder, &mut block).map_err(|_| InflateError::Corrupt)?;
        if filled as u64 > left {
            return Err(InflateError::TooLarge);
        }
        left -= filled as u64;
        let block_is_full = filled == size;
        if filled > 0 {
            block.truncate(filled);
            // Exactly as large as what it holds, so that a caller may count its length.
            blocks.push(Bytes::from(block.into_boxed_slice()));
        }
        if !block_is_full {
            return Ok(blocks);
        }
        block_bytes = BLOCK_BYTES_MAX;
    }
}

/// The first bytes of what a gzip text says, at most `bytes_max`, which may itself be only the beginning of one; up to where it
/// is broken.
pub fn beginning(text: &[u8], bytes_max: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    // What came before an error is kept: the text may be cut.
    let _ = MultiGzDecoder::new(text).take(limit).read_to_end(&mut out);
    out
}

/// Reads until `block` is full or the input has ended.
fn fill(reader: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match reader.read(&mut block[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Segments as one reader, without copying them together.
struct SegmentReader<'a> {
    segments: &'a [Bytes],
    offset: usize,
}

impl Read for SegmentReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let step = available.len().min(out.len());
        out[..step].copy_from_slice(&available[..step]);
        self.consume(step);
        Ok(step)
    }
}

impl BufRead for SegmentReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while let [first, rest @ ..] = self.segments {
            if self.offset < first.len() {
                return Ok(&first[self.offset..]);
            }
            self.segments = rest;
            self.offset = 0;
        }
        Ok(&[])
    }

    fn consume(&mut self, amount: usize) {
        self.offset += amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::connect::gzip;

    fn cut(bytes: &[u8], step: usize) -> Vec<Bytes> {
        bytes.chunks(step).map(Bytes::copy_from_slice).collect()
    }

    fn unlimited(_: usize) -> bool {
        true
    }

    #[test]
    fn a_beginning_is_what_can_be_read() {
        let whole = gzip(b"hello");
        assert_eq!(beginning(&whole, 100), b"hello");
        assert_eq!(beginning(&whole, 3), b"hel");
        assert_eq!(beginning(b"", 3), b"");
        assert_eq!(beginning(b"no gzip", 3), b"");
        let large = gzip(&vec![b'x'; 1 << 20]);
        assert_eq!(beginning(&large, 2048), vec![b'x'; 2048]);
        assert!(beginning(&whole[..whole.len() - 8], 100).starts_with(b"hello"));
    }

    #[test]
    fn round_trips_at_every_cut() {
        let plain: Vec<u8> = (0..5000_u32).flat_map(u32::to_le_bytes).collect();
        let zipped = gzip(&plain);
        for step in [1, 2, 3, 7, 100, 1000, zipped.len()] {
            let out = gunzip(&cut(&zipped, step), plain.len() as u64, &mut unlimited).expect("valid");
            assert_eq!(out.concat(), plain, "cut every {step}");
        }
    }

    #[test]
    fn good_and_corrupt_bodies() {
        let hello = gzip(b"hello ");
        let world = gzip(b"world");
        let mut bad_sum = hello.clone();
        let sum = bad_sum.len() - 8;
        bad_sum[sum] ^= 1;
        let mut bad_size = hello.clone();
        *bad_size.last_mut().expect("not empty") ^= 1;
        let corrupt = Err(InflateError::Corrupt);
        type Case = (&'static str, Vec<u8>, Result<&'static [u8], InflateError>);
        let cases: Vec<Case> = vec![
            ("zero length", vec![], Ok(b"")),
            ("one member", hello.clone(), Ok(b"hello ")),
            (
                "two members",
                [hello.clone(), world.clone()].concat(),
                Ok(b"hello world"),
            ),
            ("empty member", gzip(b""), Ok(b"")),
            (
                "empty member between",
                [hello.clone(), gzip(b""), world].concat(),
                Ok(b"hello world"),
            ),
            (
                "trailing garbage",
                [hello.clone(), b"garbage".to_vec()].concat(),
                corrupt,
            ),
            ("wrong checksum", bad_sum, corrupt),
            ("wrong size", bad_size, corrupt),
            ("cut trailer", hello[..hello.len() - 1].to_vec(), corrupt),
            ("cut data", hello[..12].to_vec(), corrupt),
            ("cut header", hello[..5].to_vec(), corrupt),
            ("not gzip", b"hello".to_vec(), corrupt),
            ("zlib", b"\x78\x9c\x03\x00\x00\x00\x00\x01".to_vec(), corrupt),
        ];
        for (name, body, expected) in cases {
            for step in [1, 5, 4096] {
                let out = gunzip(&cut(&body, step), 1 << 20, &mut unlimited).map(|blocks| blocks.concat());
                assert_eq!(out, expected.map(<[u8]>::to_vec), "{name}, cut every {step}");
            }
        }
    }

    #[test]
    fn a_bomb_costs_at_most_the_limit() {
        let bomb = gzip(&vec![0; 16 << 20]);
        assert!(bomb.len() < 512 << 10, "{}", bomb.len());
        let mut reserved = 0;
        let mut reserve = |bytes| {
            assert!(bytes <= BLOCK_BYTES_MAX);
            reserved += bytes;
            true
        };
        let out = gunzip(&[bomb.clone().into()], 1 << 20, &mut reserve);
        assert_eq!(out, Err(InflateError::TooLarge));
        assert!(reserved <= (1 << 20) + 1, "{reserved}");
        let mut blocks = 0;
        let out = gunzip(&[bomb.into()], u64::MAX, &mut |_| {
            blocks += 1;
            blocks <= 3
        });
        assert_eq!((out, blocks), (Err(InflateError::NoMemory), 4));
    }

    #[test]
    fn the_limit_is_exact() {
        for size in [1, BLOCK_BYTES_MIN, BLOCK_BYTES_MAX, BLOCK_BYTES_MAX + 1, 200_000] {
            let body = [Bytes::from(gzip(&vec![b'x'; size]))];
            let at = gunzip(&body, size as u64, &mut unlimited).map(|blocks| blocks.concat().len());
            assert_eq!(at, Ok(size));
            assert_eq!(
                gunzip(&body, size as u64 - 1, &mut unlimited),
                Err(InflateError::TooLarge),
                "{size}"
            );
        }
    }
}
