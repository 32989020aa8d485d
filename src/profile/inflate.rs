//! Bounded gzip for request bodies. Not responsible for deciding what is gzip, and never used on `/ingest`.
//!
//! Output grows in blocks of at most 64 KiB. Each block is announced to the caller's memory budget before it is
//! allocated, so a bomb costs at most what the budget or `bytes_max` allows, plus the inflater's own window (about
//! 48 KiB).

use std::io::{self, BufRead, Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use thiserror::Error;

/// Largest block of output, in bytes: the size of a pooled receive buffer.
pub const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Smallest block, in bytes.
const BLOCK_BYTES_MIN: usize = 4 << 10;
/// The first block is this many times the compressed size, which most pushes fit (pprof inside is gzipped already).
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
/// `reserve(bytes)` is called before each block of `bytes` is allocated; false ends with [`InflateError::NoMemory`].
/// What was reserved before an error is the caller's to give back. At most `bytes_max` bytes come out.
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
            blocks.push(Bytes::from(block));
        }
        if !block_is_full {
            return Ok(blocks);
        }
        block_bytes = BLOCK_BYTES_MAX;
    }
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
