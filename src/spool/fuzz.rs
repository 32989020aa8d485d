//! The body of the fuzz target `spool`, which `cargo test` also runs over the saved corpus: a segment file and its marks,
//! whatever they hold, are opened, walked and read. Not responsible for faults and restarts: `store/model.rs`.

use std::io::{self, ErrorKind, IoSlice};

use super::disk::Disk;
use super::record::{HEADER_BYTES, Head, Header, VERSION, encode_mark};
use super::walk::summary;
use super::{ReadError, Store, StoreLimits, Sums, marks_name, segment_name};
use crate::profile::route::Route;

/// One folder with one segment and its marks, which nobody can change.
struct TwoFiles {
    segment: Vec<u8>,
    marks: Vec<u8>,
}

/// Opens, walks and reads what `data` makes: with an even first byte the two files as they are, with an odd one good files
/// and the changes made to them. What is left at the start is read or told as lost, and a walk sees the same.
///
/// # Panics
/// When one of these does not hold.
pub fn fuzz_spool(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else {
        return;
    };
    let (files, is_whole) = match kind & 1 {
        0 => (raw(data), false),
        _ => made(data),
    };
    let seen = summary(&files, false).expect("memory does not fail");
    let (mut store, recovery) = Store::open(files, StoreLimits::of(1 << 20)).expect("memory does not fail");
    let left = recovery.totals.left;
    assert_eq!(seen.left, left, "a walk sees what a start finds");

    let mut read = Sums::default();
    let mut buffer = Vec::new();
    while let Some(meta) = store.peek().expect("memory does not fail") {
        match store.read(&meta, &mut buffer) {
            Ok(()) => {
                assert_eq!(buffer.len() as u64, meta.payload_bytes());
                read = read.plus(meta.id.sums());
            }
            Err(ReadError::Damaged) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let damages = store.take_damages();
    assert_eq!(read.plus(damages.lost), left, "read or told as lost");
    assert_eq!(store.totals().left, read, "what was read is out");
    if is_whole {
        assert!(recovery.damages.is_empty() && damages.is_empty());
    }
}

/// The first two bytes say how long the marks are.
fn raw(data: &[u8]) -> TwoFiles {
    let (length, data) = data.split_at(data.len().min(2));
    let length = length
        .iter()
        .fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (marks, segment) = data.split_at(length.min(data.len()));
    TwoFiles {
        segment: segment.to_vec(),
        marks: marks.to_vec(),
    }
}

/// Good files as the first eight bytes say, then one change for every four. Whether nothing was changed.
fn made(data: &[u8]) -> (TwoFiles, bool) {
    let (plan, changes) = data.split_at(data.len().min(8));
    let header = Header {
        version: VERSION,
        number: NUMBER,
        salt: 0x0123_4567_89ab_cdef,
    };
    let mut segment = header.encode().to_vec();
    let mut marks = Vec::new();
    for (index, size) in plan.iter().enumerate() {
        let head = Head {
            salt: header.salt,
            index: index as u32,
            route: Route::Push,
            query_bytes: u32::from(size & 3),
            fields_bytes: u32::from(size >> 2 & 3),
            body_bytes: u64::from(size >> 4) * 3,
            profile_bytes: u64::from(*size),
            accepted_unix_ms: index as u64,
            profiles: 1,
        };
        let payload = vec![*size; head.payload_bytes() as usize];
        segment.extend_from_slice(&head.encode());
        segment.extend_from_slice(&payload);
        segment.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        if size & 0x11 == 0x11 {
            marks.extend_from_slice(&encode_mark(header.salt, &(head.index..=head.index)));
        }
    }
    for change in changes.chunks_exact(4) {
        let file = if change[0] & 1 == 0 {
            &mut segment
        } else {
            &mut marks
        };
        let at = usize::from(change[1]) << 8 | usize::from(change[2]);
        match file.get_mut(at) {
            Some(_) if change[3] == 0 => file.truncate(at),
            Some(byte) => *byte ^= change[3],
            None => file.push(change[3]),
        }
    }
    debug_assert!(segment.len() >= HEADER_BYTES || !changes.is_empty());
    (TwoFiles { segment, marks }, changes.len() < 4)
}

const NUMBER: u64 = 1;

impl Disk for TwoFiles {
    /// Whether it is the marks.
    type File = bool;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(vec![segment_name(NUMBER), marks_name(NUMBER)])
    }

    fn create(&self, _: &str) -> io::Result<bool> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn open(&self, name: &str) -> io::Result<bool> {
        Ok(name == marks_name(NUMBER))
    }

    fn has(&self, _: &str) -> bool {
        true
    }

    fn open_or_create(&self, _: &str) -> io::Result<bool> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn bytes(&self, file: &bool) -> io::Result<u64> {
        Ok(self.content(*file).len() as u64)
    }

    fn write_at(&self, _: &bool, _: u64, _: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn read_at(&self, file: &bool, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.from(*file, offset);
        let length = bytes.len().min(into.len());
        into[..length].copy_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn read_behind(&self, file: &bool, offset: u64, into: &mut Vec<u8>) -> io::Result<usize> {
        let bytes = self.from(*file, offset);
        let length = bytes.len().min(into.capacity() - into.len());
        into.extend_from_slice(&bytes[..length]);
        Ok(length)
    }

    fn truncate(&self, _: &bool, _: u64) -> io::Result<()> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self, _: &bool) -> io::Result<()> {
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn salt(&self) -> u64 {
        0
    }
}

impl TwoFiles {
    fn content(&self, is_marks: bool) -> &[u8] {
        if is_marks { &self.marks } else { &self.segment }
    }

    fn from(&self, is_marks: bool, offset: u64) -> &[u8] {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.content(is_marks).get(offset..).unwrap_or_default()
    }
}
