//! Reads what an earlier process left: one segment file and its marks into books. Not responsible for the store's
//! totals, and it changes no file; what it finds says what should be changed.

use std::io;

use super::damage::{Damage, Damages, What};
use super::disk::Disk;
use super::record::{HEADER_BYTES, MARK_BYTES, VERSION};
use super::scan::{Scan, Step, read_header, read_marks, records_max};
use super::segment::{Segment, State};
use super::{marks_name, segment_name};

/// What a segment file turned out to be.
#[derive(Debug)]
pub enum Recovered {
    /// A segment, of which some, all or nothing may be left.
    Segment {
        /// Its books.
        segment: Segment,
        /// Bytes behind its last record that are none.
        tail_bytes: u64,
    },
    /// A file without a good head.
    Lost,
    /// To be left as it is: that many bytes.
    Aside(u64),
}

/// Reads the heads and marks of segment `number`. What is damaged goes to `damages`.
///
/// # Errors
/// When the file is gone. Any other error makes it [`Recovered::Aside`].
pub fn recover<D: Disk>(disk: &D, number: u64, damages: &mut Damages) -> io::Result<Recovered> {
    let files = match open(disk, number) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
        Err(error) => {
            damages.add_unknown(unreadable(number, 0, &error));
            return Ok(Recovered::Aside(0));
        }
    };
    // Found damage counts only if the whole segment could be read.
    let mut found = Damages::default();
    match read(disk, number, &files, &mut found) {
        Ok(recovered) => {
            damages.append(found);
            Ok(recovered)
        }
        Err(error) => {
            damages.add_unknown(unreadable(number, files.bytes, &error));
            Ok(Recovered::Aside(files.bytes))
        }
    }
}

/// A segment of so many bytes that cannot be read, or whose marks cannot.
pub(super) fn unreadable(number: u64, bytes: u64, error: &io::Error) -> Damage {
    let what = What::Unreadable { kind: error.kind() };
    damage(segment_name(number), 0, bytes, 0, what)
}

pub(super) fn damage(file: String, offset: u64, bytes: u64, records: u64, what: What) -> Damage {
    Damage {
        file,
        offset,
        bytes,
        records,
        what,
    }
}

fn read<D: Disk>(
    disk: &D,
    number: u64,
    files: &Files<D::File>,
    damages: &mut Damages,
) -> io::Result<Recovered> {
    let name = || segment_name(number);
    let (salt, marks) = match understand(disk, number, files, damages)? {
        Kind::Readable { salt, marks } => (salt, marks),
        Kind::Newer => return Ok(Recovered::Aside(files.bytes)),
        Kind::Lost => return Ok(Recovered::Lost),
    };
    let Files {
        segment: file, bytes, ..
    } = files;
    let bytes = *bytes;

    let mut segment = Segment::new(salt, HEADER_BYTES as u64);
    let mut scan = Scan::whole(Some(salt), bytes);
    let mut gap: Option<(u64, u64)> = None;
    let mut tail_bytes = 0;
    loop {
        match scan.next(disk, file)? {
            Step::Record { offset, head } => {
                let lost = skip(&mut segment, head.index, &marks);
                let gap = gap.take();
                if lost > 0 {
                    // Without bytes that are none, records were taken out whole.
                    let (offset, bytes) = gap.unwrap_or((offset, 0));
                    damages.add_unknown(damage(name(), offset, bytes, lost, What::Head));
                }
                let state = match marks.has(head.index) {
                    true => State::Done,
                    false => State::Unread,
                };
                segment.push(offset, &head, state);
                segment.bytes = offset + head.record_bytes();
            }
            Step::Gap { offset, bytes } => gap = Some((offset, bytes)),
            Step::Tail {
                offset,
                bytes,
                records,
            } => {
                tail_bytes = bytes;
                if !marks.end_by(segment.records()) {
                    let lost = marks.missing(segment.records(), records);
                    damages.add_unknown(damage(name(), offset, bytes, lost, What::Tail));
                    segment.end();
                }
                break;
            }
            Step::End => break,
        }
    }
    segment.marks_bytes = marks.file_bytes;
    segment.disk_bytes = bytes + marks.file_bytes + segment.marks_ahead_bytes();
    Ok(Recovered::Segment { segment, tail_bytes })
}

/// Books the numbers up to `index` as of no record, and says how many of them were not done.
fn skip(segment: &mut Segment, index: u32, marks: &Marks) -> u64 {
    let missing = segment.records()..index;
    segment.skip_to(index);
    let mut lost = 0;
    for number in missing {
        if marks.has(number) {
            segment.set_marked(number);
        } else {
            lost += 1;
        }
    }
    lost
}

/// The files of a segment, opened to be read.
#[derive(Debug)]
pub(super) struct Files<F> {
    pub(super) segment: F,
    pub(super) marks: Option<F>,
    /// Length of the segment file.
    pub(super) bytes: u64,
}

/// Opens the files of segment `number`.
///
/// # Errors
/// Those of the disk.
pub(super) fn open<D: Disk>(disk: &D, number: u64) -> io::Result<Files<D::File>> {
    // Marks first: beside a process that removes the segment just now, marks are gone only if the records are.
    let marks = match disk.open(&marks_name(number)) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let segment = disk.open(&segment_name(number))?;
    let bytes = disk.bytes(&segment)?;
    Ok(Files {
        segment,
        marks,
        bytes,
    })
}

/// What a segment file can be.
#[derive(Debug)]
pub(super) enum Kind {
    /// A segment of ours.
    Readable { salt: u64, marks: Marks },
    /// Written by a newer pyrotee.
    Newer,
    /// Without any good head.
    Lost,
}

/// Reads header and marks of a segment.
///
/// # Errors
/// Those of the disk.
pub(super) fn understand<D: Disk>(
    disk: &D,
    number: u64,
    files: &Files<D::File>,
    damages: &mut Damages,
) -> io::Result<Kind> {
    let bytes = files.bytes;
    let header = read_header(disk, &files.segment)?;
    let salt = match header {
        Some(header) if header.version != VERSION => {
            let what = What::Newer {
                version: header.version,
            };
            damages.add_unknown(damage(segment_name(number), 0, bytes, 0, what));
            return Ok(Kind::Newer);
        }
        Some(header) => Some(header.salt),
        None => {
            let length = bytes.min(HEADER_BYTES as u64);
            damages.add_unknown(damage(segment_name(number), 0, length, 0, What::Header));
            first_salt(disk, &files.segment, bytes)?
        }
    };
    let Some(salt) = salt else {
        if bytes > HEADER_BYTES as u64 {
            let length = bytes - HEADER_BYTES as u64;
            damages.add_unknown(damage(
                segment_name(number),
                HEADER_BYTES as u64,
                length,
                1,
                What::Tail,
            ));
        }
        return Ok(Kind::Lost);
    };
    let mut marks = Marks::default();
    if let Some(file) = &files.marks {
        let bad = marks.read(disk, file, salt, records_max(bytes))?;
        if bad > 0 {
            let length = bad * MARK_BYTES as u64;
            damages.add_unknown(damage(marks_name(number), 0, length, 0, What::Marks));
        }
    }
    Ok(Kind::Readable { salt, marks })
}

/// The salt of a segment whose header is damaged, from its first good head.
fn first_salt<D: Disk>(disk: &D, file: &D::File, bytes: u64) -> io::Result<Option<u64>> {
    let mut scan = Scan::whole(None, bytes);
    while scan.salt().is_none() {
        if let Step::Tail { .. } | Step::End = scan.next(disk, file)? {
            break;
        }
    }
    Ok(scan.salt())
}

/// The done marks of a segment.
#[derive(Debug, Default)]
pub(super) struct Marks {
    bits: Vec<u64>,
    /// From this number on all is done: the end of the file is damaged, and that has been told.
    end: Option<u32>,
    /// Length of the file in whole marks, in bytes.
    file_bytes: u64,
}

impl Marks {
    /// Whether the record of this number is done.
    pub(super) fn has(&self, index: u32) -> bool {
        let word = self.bits.get((index / u64::BITS) as usize);
        let is_marked = word.is_some_and(|word| word >> (index % u64::BITS) & 1 == 1);
        is_marked || self.end.is_some_and(|end| index >= end)
    }

    /// Whether everything from `index` on is done: damage at the end of the file that has been told.
    fn end_by(&self, index: u32) -> bool {
        self.end.is_some_and(|end| end <= index)
    }

    /// How many of `count` numbers from `index` on are not done.
    pub(super) fn missing(&self, index: u32, count: u64) -> u64 {
        let end = u64::from(index).saturating_add(count).min(u64::from(u32::MAX));
        let numbers = index..end as u32;
        numbers.filter(|index| !self.has(*index)).count() as u64
    }

    /// Reads a file of marks, and says how many of them are bad.
    fn read<D: Disk>(&mut self, disk: &D, file: &D::File, salt: u64, records_max: u64) -> io::Result<u64> {
        let (file_bytes, bad) = read_marks(disk, file, salt, |records| {
            if *records.end() == u32::MAX {
                self.end = Some(self.end.map_or(*records.start(), |end| end.min(*records.start())));
            } else if u64::from(*records.end()) < records_max {
                records.for_each(|index| self.set(index));
            }
            // Else it is of a record that a power loss took away.
        })?;
        self.file_bytes = file_bytes;
        Ok(bad)
    }

    fn set(&mut self, index: u32) {
        let word = (index / u64::BITS) as usize;
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= 1 << (index % u64::BITS);
    }
}
