//! Goes through a segment file from head to head, over bodies without reading them, and over damage to the next good
//! head. Not responsible for done marks and for what is done about damage.

use std::io;
use std::ops::RangeInclusive;

use memchr::memmem;

use super::disk::{Disk, read_full_at};
use super::record::{
    HEAD_BYTES, HEAD_MAGIC, HEADER_BYTES, Head, Header, MARK_BYTES, RECORD_BYTES_MIN, decode_mark,
};

/// What comes next in a segment file. Offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A record with a good head, whole in length. Whether its body is good is not known.
    Record {
        /// Where its head lies.
        offset: u64,
        /// The head.
        head: Head,
    },
    /// Bytes that are no record, and a good head behind them.
    Gap {
        /// Where they begin.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Bytes that are no whole record, and no good head behind them.
    Tail {
        /// Where they begin.
        offset: u64,
        /// How many.
        bytes: u64,
        /// Records that they were, as far as their heads can be made out: at least one.
        records: u64,
    },
    /// The end of the file.
    End,
}

/// A pass over a segment file.
#[derive(Debug)]
pub struct Scan {
    at: u64,
    end: u64,
    rule: Rule,
    /// Damaged heads that the search for a good one came by.
    remnants: u64,
    window: Window,
}

/// Which heads belong here.
#[derive(Clone, Copy, Debug)]
struct Rule {
    salt: Option<u64>,
    index_min: u32,
}

impl Rule {
    /// The head at `offset`, if it is a good one of this segment that may stand there.
    fn accept(&self, offset: u64, bytes: &[u8]) -> Option<Head> {
        let head = Head::decode(bytes)?;
        let is_ours = self.salt.is_none_or(|salt| salt == head.salt);
        let is_in_order = head.index >= self.index_min && u64::from(head.index) <= records_max(offset);
        (is_ours && is_in_order).then_some(head)
    }

    /// Whether bytes that begin with the magic of a head, and are none, were one: no client knows the salt.
    fn was_head(&self, bytes: &[u8]) -> bool {
        let salt = self.salt.map(u64::to_le_bytes);
        salt.is_some_and(|salt| bytes[HEAD_MAGIC.len()..].starts_with(&salt))
    }
}

impl Scan {
    /// A pass over a whole file of `end` bytes. Without a `salt` (a damaged header) the first good head tells it.
    pub fn whole(salt: Option<u64>, end: u64) -> Self {
        Self::from(HEADER_BYTES as u64, 0, salt, end)
    }

    /// A pass from `at` on, where a record begins whose number is at least `index_min`.
    pub fn from(at: u64, index_min: u32, salt: Option<u64>, end: u64) -> Self {
        Self {
            at: at.min(end),
            end,
            rule: Rule { salt, index_min },
            remnants: 0,
            window: Window::default(),
        }
    }

    /// The file has grown to `end`.
    pub fn extend(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// Goes on at `at`, where a record begins whose number is at least `index_min`.
    pub fn seek(&mut self, at: u64, index_min: u32) {
        self.at = at.min(self.end);
        self.rule.index_min = index_min;
    }

    /// Whether the pass stands at `offset` or behind it, but not behind the record `index`.
    pub fn is_between(&self, offset: u64, index: u32) -> bool {
        self.at >= offset && self.rule.index_min <= index
    }

    /// The segment's salt, if it is known by now.
    pub fn salt(&self) -> Option<u64> {
        self.rule.salt
    }

    /// The next step; the pass stands behind it then. After an error it stands where it stood.
    ///
    /// # Errors
    /// Those of [`Disk::read_at`].
    pub fn next<D: Disk>(&mut self, disk: &D, file: &D::File) -> io::Result<Step> {
        let offset = self.at;
        if offset >= self.end {
            return Ok(Step::End);
        }
        let bytes = self.window.get(disk, file, offset, self.end)?;
        let Some(head) = self.rule.accept(offset, bytes) else {
            let next = self.find_head(disk, file, offset + 1)?;
            self.at = next.unwrap_or(self.end);
            let bytes = self.at - offset;
            return Ok(match next {
                Some(_) => Step::Gap { offset, bytes },
                None => Step::Tail {
                    offset,
                    bytes,
                    records: 1 + self.remnants,
                },
            });
        };
        let left = self.end - offset;
        if head.record_bytes() > left {
            // Torn, or it lies about its length: what is good behind it is not lost with it.
            self.rule.salt = Some(head.salt);
            let next = self.find_head(disk, file, offset + 1)?;
            self.at = next.unwrap_or(self.end);
            return Ok(match next {
                Some(at) => Step::Gap {
                    offset,
                    bytes: at - offset,
                },
                None => Step::Tail {
                    offset,
                    bytes: left,
                    records: 1 + self.remnants,
                },
            });
        }
        self.at = offset + head.record_bytes();
        self.rule.salt = Some(head.salt);
        self.rule.index_min = head.index.saturating_add(1);
        Ok(Step::Record { offset, head })
    }

    /// Where the next good head begins, at `from` or behind it.
    fn find_head<D: Disk>(&mut self, disk: &D, file: &D::File, from: u64) -> io::Result<Option<u64>> {
        let finder = memmem::Finder::new(&HEAD_MAGIC);
        let mut at = from;
        self.remnants = 0;
        while at + HEAD_BYTES as u64 <= self.end {
            let bytes = self.window.get(disk, file, at, self.end)?;
            if bytes.len() < HEAD_BYTES {
                break;
            }
            for found in finder.find_iter(bytes) {
                if self.rule.accept(at + found as u64, &bytes[found..]).is_some() {
                    return Ok(Some(at + found as u64));
                }
                let is_last = found + HEAD_BYTES > bytes.len();
                self.remnants += u64::from(!is_last && self.rule.was_head(&bytes[found..]));
            }
            // What may be the start of a head at the end of the window is looked at again.
            at += (bytes.len() - (HEAD_BYTES - 1)) as u64;
        }
        Ok(None)
    }
}

/// How many records a file of `bytes` can hold at most: what bounds memory, whatever a head or a mark says.
pub fn records_max(bytes: u64) -> u64 {
    bytes.saturating_sub(HEADER_BYTES as u64) / RECORD_BYTES_MIN
}

/// The header of a segment file; `None` if it is damaged.
///
/// # Errors
/// Those of [`Disk::read_at`].
pub fn read_header<D: Disk>(disk: &D, file: &D::File) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    let filled = read_full_at(disk, file, 0, &mut bytes)?;
    Ok(Header::decode(&bytes[..filled]))
}

/// Hands every good mark of a file to `take`, and returns how many bytes are whole marks, good or bad, and how many of
/// these marks are bad.
///
/// # Errors
/// Those of [`Disk::read_at`].
pub fn read_marks<D: Disk>(
    disk: &D,
    file: &D::File,
    salt: u64,
    mut take: impl FnMut(RangeInclusive<u32>),
) -> io::Result<(u64, u64)> {
    let mut buffer = vec![0; MARK_BYTES * 1024];
    let (mut at, mut bad) = (0, 0);
    loop {
        let filled = read_full_at(disk, file, at, &mut buffer)?;
        for bytes in buffer[..filled].chunks_exact(MARK_BYTES) {
            match decode_mark(salt, bytes) {
                Some(records) => take(records),
                None => bad += 1,
            }
        }
        at += (filled / MARK_BYTES * MARK_BYTES) as u64;
        if filled < buffer.len() {
            return Ok((at, bad));
        }
    }
}

/// The part of a file that was read last, so that many small records cost few system calls.
#[derive(Debug, Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

/// Large enough for a hundred small records, small enough to cost nothing beside one large one.
const WINDOW_BYTES: usize = 16 << 10;

impl Window {
    /// What lies at `at`: at least a head's length, unless the file ends before.
    fn get<D: Disk>(&mut self, disk: &D, file: &D::File, at: u64, end: u64) -> io::Result<&[u8]> {
        let wanted = (end - at).min(HEAD_BYTES as u64);
        let is_inside = at >= self.start && at + wanted <= self.start + self.bytes.len() as u64;
        if !is_inside {
            let size = (end - at).min(WINDOW_BYTES as u64) as usize;
            self.start = at;
            self.bytes.resize(size, 0);
            let read = read_full_at(disk, file, at, &mut self.bytes);
            self.bytes.truncate(*read.as_ref().unwrap_or(&0));
            read?;
        }
        Ok(&self.bytes[(at - self.start) as usize..])
    }
}
