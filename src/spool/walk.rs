//! Looks at a spool without changing it and without its lock, beside a gateway that writes into it: for tools, and to
//! find what is left of destinations that are no more. What it sees may be outdated when it is told.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::damage::{Damage, Damages, What};
use super::disk::{Disk, RealDisk, read_full_at};
use super::record::{HEAD_BYTES, SUM_BYTES, number_u32};
use super::recover::{Files, Kind, damage, open, understand, unreadable};
use super::scan::{Scan, Step};
use super::segment::Sums;
use super::store::{Meta, read_payload};
use super::{CLOCK_NAME, MARKS_ENDING, SEGMENT_ENDING, folder_name, number_in, segment_name};
use crate::profile::query::unpercent;

/// What a walk comes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A segment begins.
    Segment {
        /// Its number.
        number: u64,
        /// Length of its file in bytes.
        bytes: u64,
    },
    /// A record.
    Record {
        /// Its head.
        meta: Meta,
        /// Whether it is done. Records that are out look as if they were not.
        is_done: bool,
    },
    /// Something damaged. The end of the newest segment may also just be being written.
    Damage(Damage),
}

/// Who is told what a walk comes by, with the segment's file where that could be opened.
type Visitor<'a, F> = dyn FnMut(Option<&F>, Seen) -> io::Result<()> + 'a;

/// Goes through all segments in order. With `bodies` every checksum is looked at, else heads only. A segment that cannot be
/// read is told as damage, so that it hides no other.
///
/// # Errors
/// When the folder cannot be listed, or the visitor's.
pub fn walk<D: Disk>(disk: &D, bodies: bool, visit: &mut Visitor<'_, D::File>) -> io::Result<()> {
    let names = disk.list()?;
    let numbers: BTreeSet<u64> = names
        .iter()
        .filter_map(|name| number_in(name, SEGMENT_ENDING))
        .collect();
    for number in numbers {
        let walked = open(disk, number)
            .map_err(Stop::Disk)
            .and_then(|files| walk_segment(disk, number, &files, bodies, visit));
        match walked {
            Ok(()) => {}
            // Done with, and removed since it was listed.
            Err(Stop::Disk(error)) if error.kind() == ErrorKind::NotFound => {}
            Err(Stop::Disk(error)) => visit(None, Seen::Damage(unreadable(number, 0, &error)))?,
            Err(Stop::Visitor(error)) => return Err(error),
        }
    }
    Ok(())
}

/// What ends the walk through a segment early.
enum Stop {
    /// It cannot be read.
    Disk(io::Error),
    /// The visitor wants no more.
    Visitor(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

fn walk_segment<D: Disk>(
    disk: &D,
    number: u64,
    files: &Files<D::File>,
    bodies: bool,
    visit: &mut Visitor<'_, D::File>,
) -> Result<(), Stop> {
    let file = &files.segment;
    let bytes = files.bytes;
    let mut tell = |seen| visit(Some(file), seen).map_err(Stop::Visitor);
    tell(Seen::Segment { number, bytes })?;
    let mut damages = Damages::default();
    let kind = understand(disk, number, files, &mut damages)?;
    for damage in damages.list {
        tell(Seen::Damage(damage))?;
    }
    let Kind::Readable { salt, marks } = kind else {
        return Ok(());
    };
    let mut scan = Scan::whole(Some(salt), bytes);
    let mut index_next = 0;
    let mut gap = None;
    loop {
        match scan.next(disk, file)? {
            Step::Record { offset, head } => {
                let missing = (index_next..head.index).filter(|index| !marks.has(*index));
                let records = missing.count() as u64;
                let gap = gap.take();
                if gap.is_some() || records > 0 {
                    let (offset, bytes) = gap.unwrap_or((offset, 0));
                    let damage = damage(segment_name(number), offset, bytes, records, What::Head);
                    tell(Seen::Damage(damage))?;
                }
                index_next = head.index.saturating_add(1);
                let meta = Meta::new(number, offset, &head);
                let is_done = marks.has(head.index);
                if bodies && !is_good(disk, file, &meta)? {
                    let records = u64::from(!is_done);
                    let damage = damage(
                        segment_name(number),
                        offset,
                        head.record_bytes(),
                        records,
                        What::Body,
                    );
                    tell(Seen::Damage(damage))?;
                } else {
                    tell(Seen::Record { meta, is_done })?;
                }
            }
            Step::Gap { offset, bytes } => gap = Some((offset, bytes)),
            Step::Tail {
                offset,
                bytes,
                records,
            } => {
                let records = marks.missing(index_next, records);
                let damage = damage(segment_name(number), offset, bytes, records, What::Tail);
                return tell(Seen::Damage(damage));
            }
            Step::End => return Ok(()),
        }
    }
}

/// Whether the checksum of a record is good. Reads it piece by piece.
fn is_good<D: Disk>(disk: &D, file: &D::File, meta: &Meta) -> io::Result<bool> {
    let start = meta.offset() + HEAD_BYTES as u64;
    let end = start + meta.payload_bytes();
    let mut piece = vec![0; PIECE_BYTES];
    let mut sum = crc32fast::Hasher::new();
    let mut at = start;
    while at < end {
        let wanted = (end - at).min(PIECE_BYTES as u64) as usize;
        let read = read_full_at(disk, file, at, &mut piece[..wanted])?;
        if read < wanted {
            return Ok(false);
        }
        sum.update(&piece[..read]);
        at += read as u64;
    }
    let stored = &mut piece[..SUM_BYTES];
    let read = read_full_at(disk, file, end, stored)?;
    Ok(read == SUM_BYTES && number_u32(stored) == sum.finalize())
}

const PIECE_BYTES: usize = 64 << 10;

/// Query, header lines and body of a record that a walk has come by, in one piece. `None` if it is damaged.
///
/// # Errors
/// Those of the disk.
pub fn read_record<D: Disk>(disk: &D, file: &D::File, meta: &Meta) -> io::Result<Option<Vec<u8>>> {
    let mut payload = Vec::new();
    let is_good = read_payload(disk, file, meta, &mut payload)?;
    Ok(is_good.then_some(payload))
}

/// What is in a destination's folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Segment files.
    pub segments: u64,
    /// Their length in bytes.
    pub segment_bytes: u64,
    /// Records that are done, and still in a file.
    pub done: u64,
    /// What is left to be sent.
    pub left: Sums,
    /// When the oldest that is left was accepted, in milliseconds since the unix epoch.
    pub oldest_unix_ms: Option<u64>,
    /// What is damaged.
    pub damages: Damages,
}

impl Summary {
    /// Segments that may hold more than could be seen: of a newer version, or unreadable.
    pub fn unread(&self) -> u64 {
        let is_unread =
            |damage: &&Damage| matches!(damage.what, What::Newer { .. } | What::Unreadable { .. });
        self.damages.list.iter().filter(is_unread).count() as u64
    }
}

/// Walks a destination's folder and sums up.
///
/// # Errors
/// Those of the disk.
pub fn summary<D: Disk>(disk: &D, bodies: bool) -> io::Result<Summary> {
    let mut summary = Summary::default();
    walk(disk, bodies, &mut |_, seen| {
        match seen {
            Seen::Segment { bytes, .. } => {
                summary.segments += 1;
                summary.segment_bytes += bytes;
            }
            Seen::Record { is_done: true, .. } => summary.done += 1,
            Seen::Record { meta, .. } => {
                summary.left = summary.left.plus(meta.id.sums());
                let oldest = summary.oldest_unix_ms.unwrap_or(u64::MAX);
                summary.oldest_unix_ms = Some(oldest.min(meta.accepted_unix_ms));
            }
            Seen::Damage(damage) => summary.damages.add_unknown(damage),
        }
        Ok(())
    })?;
    Ok(summary)
}

/// A destination's folder in a spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationFolder {
    /// The destination's name.
    pub destination: String,
    /// Where it is.
    pub folder: PathBuf,
}

/// The folders of all destinations in the spool `dir`, by name. A spool that is not there has none.
///
/// # Errors
/// When `dir` cannot be listed.
pub fn destinations(dir: &Path) -> io::Result<Vec<DestinationFolder>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let destination = destination_name(&name);
        // Folders that no name leads to are not ours.
        if entry.file_type()?.is_dir() && folder_name(&destination) == name {
            let folder = entry.path();
            found.push(DestinationFolder { destination, folder });
        }
    }
    found.sort_by(|a, b| a.destination.cmp(&b.destination));
    Ok(found)
}

/// Deletes all that is spooled for a destination, and its folder unless somebody else has put something there. The
/// spool's lock must be held.
///
/// # Errors
/// When the folder cannot be listed or a file cannot be removed.
pub fn delete(one: &DestinationFolder) -> io::Result<()> {
    let disk = RealDisk::existing(&one.folder);
    for name in disk.list()?.iter().filter(|name| is_ours(name)) {
        disk.remove(name)?;
    }
    match fs::remove_dir(&one.folder) {
        Err(error) if error.kind() != ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
    }
}

/// Whether a file of this name in a destination's folder is one of ours.
fn is_ours(name: &str) -> bool {
    let is_numbered = |ending: &&str| number_in(name, ending).is_some();
    name == CLOCK_NAME || [SEGMENT_ENDING, MARKS_ENDING].iter().any(is_numbered)
}

/// The destination of a folder's name: [`folder_name`] backwards.
fn destination_name(folder: &str) -> String {
    let mut name = Vec::with_capacity(folder.len());
    let mut rest = folder.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        match unpercent(tail).filter(|_| byte == b'%') {
            Some(escaped) => {
                name.push(escaped);
                rest = &tail[2..];
            }
            None => {
                name.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&name).into_owned()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::profile::route::Route;
    use crate::spool::{RecordParts, Store, StoreLimits};

    #[test]
    fn every_name_has_a_folder_of_its_own_and_back() {
        let names = ["eu", "a-b_c", "lock", "a.b", ".", "..", "ü/ %41"];
        let mut folders = BTreeSet::new();
        for name in names {
            let folder = folder_name(name);
            assert!(!folder.contains(['/', '.']) && folder != "lock", "{folder}");
            assert_eq!(destination_name(&folder), name);
            folders.insert(folder);
        }
        assert_eq!(folders.len(), names.len());
        assert_eq!(folder_name("lock"), "%6Cock");
        assert_eq!(folder_name("eu.west"), "eu%2Ewest");
    }

    #[test]
    fn what_is_there_is_found_and_deleted() {
        let root = tempfile::tempdir().unwrap();
        for name in ["eu", "us.east", "empty"] {
            let disk = RealDisk::create(&root.path().join(folder_name(name))).unwrap();
            let (mut store, _) = Store::open(disk, StoreLimits::of(1 << 20)).unwrap();
            let parts = RecordParts {
                accepted_unix_ms: 7,
                route: Route::Push,
                profiles: 2,
                profile_bytes: 3,
                query: b"",
                fields: b"",
                segments: &[Bytes::from_static(b"body")],
            };
            let id = store.append(&parts, true).unwrap();
            if name == "empty" {
                store.done(&[id]).unwrap();
            }
        }
        std::fs::write(root.path().join("lock"), "").unwrap();
        std::fs::create_dir(root.path().join("lost+found")).unwrap();
        let found = destinations(root.path()).unwrap();
        let names: Vec<&str> = found.iter().map(|one| one.destination.as_str()).collect();
        assert_eq!(names, ["empty", "eu", "us.east"]);
        let left = found
            .iter()
            .map(|one| summary(&RealDisk::existing(&one.folder), false).unwrap());
        let left: Vec<Summary> = left.collect();
        assert_eq!((left[0].left.parcels, left[0].done), (0, 1));
        assert_eq!((left[2].left.parcels, left[2].left.bytes), (1, 4));
        assert_eq!((left[2].segments, left[2].oldest_unix_ms), (1, Some(7)));
        std::fs::write(found[2].folder.join("notes"), "").unwrap();
        found.iter().for_each(|one| delete(one).unwrap());
        let left = destinations(root.path()).unwrap();
        assert_eq!(left, [found[2].clone()], "what is not ours stays");
        assert!(root.path().join("lost+found").exists());
        assert_eq!(destinations(&root.path().join("not there")).unwrap(), []);
    }
}
