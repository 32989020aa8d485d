//! The disk queue itself: appends records to segments, reads them back in order, keeps marks and sums, and goes on after
//! every error. Not responsible for the format (`record.rs`), the books of a segment (`segment.rs`) and for retries,
//! ages and policies, which are its user's.
//!
//! ```text
//!             append(hold)──────────────┐
//!                                       ▼         done
//!  append ──▶ unread ──peek, read──▶   out ────────────▶ done ──▶ (all of a segment) removed
//!               ▲   │                   │                  ▲
//!               │   └───drop_oldest, done──────────────────┘
//!               └───────release─────────┘
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice};

use bytes::Bytes;

use super::damage::{Damage, Damages, What};
use super::disk::{Disk, write_all_at};
use super::record::{
    BODY_BYTES_MAX, HEADER_BYTES, Head, Header, MARK_BYTES, RECORD_BYTES_MIN, SUM_BYTES, VERSION,
    encode_mark, number_u32,
};
use super::recover::{Recovered, recover};
use super::scan::{Scan, Step};
use super::segment::{Segment, State, Sums};
use super::{MARKS_ENDING, NUMBER_MAX, SEGMENT_ENDING, marks_name, number_in, segment_name};
use crate::fanout::RecordId;
use crate::profile::route::Route;

/// What a store may use.
#[derive(Clone, Copy, Debug)]
pub struct StoreLimits {
    /// Bytes on disk: segments, and a mark for each record.
    pub bytes_max: u64,
    /// A segment is closed before it grows beyond this, but holds one record at least. Room is made by segments.
    pub segment_bytes_max: u64,
}

impl StoreLimits {
    /// Segments of at most 64 MiB, and at least eight of them.
    pub fn of(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            segment_bytes_max: (bytes_max / 8).min(64 << 20),
        }
    }
}

/// A record to be stored.
#[derive(Clone, Copy, Debug)]
pub struct RecordParts<'a> {
    /// When it was accepted, in milliseconds since the unix epoch.
    pub accepted_unix_ms: u64,
    /// Where it came in and goes out.
    pub route: Route,
    /// Profiles in it.
    pub profiles: u32,
    /// What Alloy's byte counters count (WIRE.md 4.6).
    pub profile_bytes: u64,
    /// The outgoing query.
    pub query: &'a [u8],
    /// The header lines.
    pub fields: &'a [u8],
    /// The body, in order.
    pub segments: &'a [Bytes],
}

/// A stored record without its query, header lines and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Which one.
    pub id: RecordId,
    /// When it was accepted, in milliseconds since the unix epoch.
    pub accepted_unix_ms: u64,
    /// Where it came in and goes out.
    pub route: Route,
    /// Length of the query in bytes.
    pub query_bytes: u32,
    /// Length of the header lines in bytes.
    pub fields_bytes: u32,
    /// Length of the body in bytes.
    pub body_bytes: u64,
    /// What Alloy's byte counters count.
    pub profile_bytes: u64,
    /// Profiles in it.
    pub profiles: u32,
    /// Where its head lies in its segment.
    offset: u64,
}

impl Meta {
    pub(super) fn new(segment: u64, offset: u64, head: &Head) -> Self {
        Self {
            id: RecordId::new(segment, head),
            accepted_unix_ms: head.accepted_unix_ms,
            route: head.route,
            query_bytes: head.query_bytes,
            fields_bytes: head.fields_bytes,
            body_bytes: head.body_bytes,
            profile_bytes: head.profile_bytes,
            profiles: head.profiles,
            offset,
        }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Length of query, header lines and body together in bytes: what is left in the buffer by [`Store::read`].
    pub fn payload_bytes(&self) -> u64 {
        u64::from(self.query_bytes) + u64::from(self.fields_bytes) + self.body_bytes
    }

    /// The capacity that [`Store::read`] needs, in bytes.
    pub fn read_bytes(&self) -> u64 {
        self.payload_bytes() + SUM_BYTES as u64
    }
}

/// What is in a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Everything that is not done.
    pub left: Sums,
    /// The part of it that is out.
    pub out: Sums,
    /// What counts against [`StoreLimits::bytes_max`].
    pub disk_bytes: u64,
    /// Bytes of files that are left as they are, see [`What::Newer`] and [`What::Unreadable`]. They do not count against
    /// the limit.
    pub aside_bytes: u64,
    /// How many segment files those are.
    pub aside_segments: u64,
    /// Segment files, without those left aside.
    pub segments: u64,
}

/// What [`Store::open`] found.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// What is in the store.
    pub totals: Totals,
    /// What was damaged.
    pub damages: Damages,
}

/// Why a record was not stored.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The limit would be passed. [`Store::drop_oldest`] can make room.
    #[error("the spool is full")]
    Full,
    /// It could not be stored even alone: it is larger than the limit or than the format allows.
    #[error("larger than the spool's limit")]
    TooLarge,
    /// The disk. The store can be used as before; whether it is worth trying again soon is the caller's to judge.
    #[error("cannot write to the spool: {0}")]
    Io(#[source] io::Error),
}

/// Why a record was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is damaged, and done now: see [`Store::take_damages`]. The next one can be peeked at.
    #[error("the record is damaged")]
    Damaged,
    /// The disk, or no memory. The record's segment comes after all others now; with no others it is tried again.
    #[error("cannot read from the spool: {0}")]
    Io(#[source] io::Error),
}

/// What was dropped to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The records.
    pub sums: Sums,
    /// Bytes that count no more against the limit. Zero when records of the same segment are still out.
    pub freed_bytes: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Store<D: Disk> {
    disk: D,
    limits: StoreLimits,
    /// By number. INVARIANT: the sums below are the sums of these.
    segments: BTreeMap<u64, Segment>,
    active: Option<Active<D::File>>,
    /// Closed segments that may not have been synced since they were written. At most [`UNSYNCED_MAX`].
    unsynced: VecDeque<(u64, D::File)>,
    /// A file may have been made since the folder was synced.
    is_folder_unsynced: bool,
    /// A sync failed that nobody asked for; told by the next [`Store::sync`].
    sync_error: Option<io::Error>,
    number_next: u64,
    left: Sums,
    out: Sums,
    disk_bytes: u64,
    aside_bytes: u64,
    aside_segments: u64,
    handles: Handles<D::File>,
    /// Where reading stands: behind the record that was peeked at last, in this segment.
    scan: Option<(u64, Scan)>,
    /// What `peek` says, until something changes it.
    next: Option<Meta>,
    /// Age of the first record that is left.
    oldest: Option<(u64, u32, u64)>,
    damages: Damages,
    /// Marks or removals failed and are still to be done.
    is_behind: bool,
}

/// The segment that is appended to.
#[derive(Debug)]
struct Active<F> {
    number: u64,
    file: F,
    is_unsynced: bool,
}

/// Closed segments wait for the next sync up to this many; each holds a file open.
const UNSYNCED_MAX: usize = 8;
/// Numbers tried for a new segment when files of foreign make have them.
const CREATE_ATTEMPTS: u32 = 8;

impl<D: Disk> Store<D> {
    /// Reads what is there, and goes on behind it: new records go to a new segment.
    ///
    /// # Errors
    /// When the folder cannot be listed. Damaged and unreadable files are no errors.
    pub fn open(disk: D, limits: StoreLimits) -> io::Result<(Self, Recovery)> {
        Self::open_telling(disk, limits, |_, _| ())
    }

    /// [`Store::open`], which takes long where there is much: before each segment it tells which one that is, from 1 on, and
    /// of how many.
    ///
    /// # Errors
    /// Likewise.
    pub fn open_telling(
        disk: D,
        limits: StoreLimits,
        mut tell: impl FnMut(usize, usize),
    ) -> io::Result<(Self, Recovery)> {
        let names = disk.list()?;
        let numbers = |ending| names.iter().filter_map(move |name| number_in(name, ending));
        let mut store = Self {
            limits,
            segments: BTreeMap::new(),
            active: None,
            unsynced: VecDeque::new(),
            is_folder_unsynced: true,
            sync_error: None,
            number_next: numbers(SEGMENT_ENDING)
                .chain(numbers(MARKS_ENDING))
                .max()
                .map_or(1, |number| number + 1),
            left: Sums::default(),
            out: Sums::default(),
            disk_bytes: 0,
            aside_bytes: 0,
            aside_segments: 0,
            handles: Handles::new(),
            scan: None,
            next: None,
            oldest: None,
            damages: Damages::default(),
            is_behind: false,
            disk,
        };
        let mut found: Vec<u64> = numbers(SEGMENT_ENDING).collect();
        found.sort_unstable();
        let newest = found.last().copied();
        for (index, &number) in found.iter().enumerate() {
            tell(index + 1, found.len());
            store.take_over(number, newest == Some(number));
        }
        for number in numbers(MARKS_ENDING).filter(|number| found.binary_search(number).is_err()) {
            let _ = store.disk.remove(&marks_name(number)); // the next start tries again
        }
        // Lost records are marked, so that they are counted once; where that fails, it is tried again with the next mark.
        store.is_behind = true;
        let _ = store.tidy();
        let recovery = Recovery {
            totals: store.totals(),
            damages: store.take_damages(),
        };
        Ok((store, recovery))
    }

    fn take_over(&mut self, number: u64, is_newest: bool) {
        match recover(&self.disk, number, &mut self.damages) {
            Ok(Recovered::Segment { segment, tail_bytes }) => {
                let mut segment = segment;
                if is_newest && tail_bytes > 0 && self.cut(number, segment.bytes).is_ok() {
                    segment.disk_bytes -= tail_bytes;
                }
                // The process before may have been killed between a write and its sync.
                if segment.left().parcels > 0 {
                    match self.disk.open(&segment_name(number)) {
                        Ok(file) => self.sync_later(number, file),
                        Err(error) => self.sync_error = Some(error),
                    }
                }
                self.left = self.left.plus(segment.left());
                self.disk_bytes += segment.disk_bytes;
                self.segments.insert(number, segment);
            }
            Ok(Recovered::Lost) => {
                // Without records it is no loss if it stays; the next start tries again.
                let _ = self.disk.remove(&segment_name(number));
                let _ = self.disk.remove(&marks_name(number));
            }
            Ok(Recovered::Aside(bytes)) => {
                self.aside_bytes += bytes;
                self.aside_segments += 1;
            }
            Err(_) => {} // gone since it was listed
        }
    }

    fn cut(&self, number: u64, bytes: u64) -> io::Result<()> {
        let file = self.disk.open_or_create(&segment_name(number))?;
        self.disk.truncate(&file, bytes)
    }

    /// What is in the store.
    pub fn totals(&self) -> Totals {
        Totals {
            left: self.left,
            out: self.out,
            disk_bytes: self.disk_bytes,
            aside_bytes: self.aside_bytes,
            aside_segments: self.aside_segments,
            segments: self.segments.len() as u64,
        }
    }

    /// Where it lies.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The limits it keeps to.
    pub fn limits(&self) -> StoreLimits {
        self.limits
    }

    /// Changes the limits. What is there stays; below it, the next record makes room or has none.
    pub fn set_limits(&mut self, limits: StoreLimits) {
        self.limits = limits;
    }

    /// What was found damaged since the last call, or since [`Store::open`] has told.
    pub fn take_damages(&mut self) -> Damages {
        std::mem::take(&mut self.damages)
    }

    // ---- write

    /// Stores a record behind all others. With `hold` it is out at once: the caller keeps it in memory, and it is read
    /// back only after [`Store::release`] or a restart. Not synced: see [`Store::sync`].
    ///
    /// # Errors
    /// See [`AppendError`]. Nothing of the record is left then.
    pub fn append(&mut self, parts: &RecordParts<'_>, hold: bool) -> Result<RecordId, AppendError> {
        let mut head = head(parts).ok_or(AppendError::TooLarge)?;
        let bytes = head.record_bytes();
        let charge = bytes + MARK_BYTES as u64;
        if HEADER_BYTES as u64 + charge > self.limits.bytes_max {
            return Err(AppendError::TooLarge);
        }
        let fits = |segment: &Segment| {
            segment.records() == 0
                || segment.bytes + bytes <= self.limits.segment_bytes_max && segment.records() < u32::MAX
        };
        let number = self.active.as_ref().map(|active| active.number);
        let number = number.filter(|number| self.segments.get(number).is_some_and(fits));
        let header = if number.is_none() { HEADER_BYTES as u64 } else { 0 };
        if self.disk_bytes + header + charge > self.limits.bytes_max {
            return Err(AppendError::Full);
        }
        if number.is_none() {
            self.seal();
            self.begin().map_err(AppendError::Io)?;
        }
        let Some(active) = &mut self.active else {
            return Err(AppendError::Io(io::Error::other("no segment was begun")));
        };
        let Some(segment) = self.segments.get_mut(&active.number) else {
            return Err(AppendError::Io(io::Error::other(
                "the segment begun is not known",
            )));
        };

        head.salt = segment.salt;
        head.index = segment.records();
        let offset = segment.bytes;
        active.is_unsynced = true;
        if let Err(error) = write_record(&self.disk, &active.file, offset, &head, parts) {
            if let Err(_worse) = self.disk.truncate(&active.file, offset) {
                // What was written of it stays behind the last record, and is charged so.
                segment.disk_bytes += bytes;
                self.disk_bytes += bytes;
                self.seal();
            }
            return Err(AppendError::Io(error));
        }

        let state = if hold { State::Out } else { State::Unread };
        segment.push(offset, &head, state);
        segment.bytes += bytes;
        segment.disk_bytes += charge;
        self.disk_bytes += charge;
        let id = RecordId::new(active.number, &head);
        self.left = self.left.plus(id.sums());
        if hold {
            self.out = self.out.plus(id.sums());
        }
        Ok(id)
    }

    /// Closes the segment that is appended to. Returns the number that the next one has at least.
    pub fn close_segment(&mut self) -> u64 {
        self.seal();
        self.number_next
    }

    /// The number that the next segment has at least.
    pub fn number_next(&self) -> u64 {
        self.number_next
    }

    /// The number of the first segment, or that of the next one where there is none.
    pub fn first_segment(&self) -> u64 {
        self.segments
            .first_key_value()
            .map_or(self.number_next, |(number, _)| *number)
    }

    /// Begins a new segment.
    fn begin(&mut self) -> io::Result<()> {
        let (number, file) = self.create()?;
        self.is_folder_unsynced = true;
        let header = Header {
            version: VERSION,
            number,
            salt: self.disk.salt(),
        };
        let bytes = header.encode();
        if let Err(error) = write_all_at(&self.disk, &file, 0, &mut [IoSlice::new(&bytes)]) {
            let _ = self.disk.remove(&segment_name(number)); // the next start removes it
            return Err(error);
        }
        let segment = Segment::new(header.salt, HEADER_BYTES as u64);
        self.disk_bytes += segment.disk_bytes;
        self.segments.insert(number, segment);
        self.active = Some(Active {
            number,
            file,
            is_unsynced: true,
        });
        Ok(())
    }

    fn create(&mut self) -> io::Result<(u64, D::File)> {
        let mut result = Err(io::Error::other("no number left for a segment file"));
        for _ in 0..CREATE_ATTEMPTS {
            if self.number_next > NUMBER_MAX {
                break;
            }
            let number = self.number_next;
            self.number_next += 1;
            result = self.disk.create(&segment_name(number)).map(|file| (number, file));
            match &result {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                _ => break,
            }
        }
        // A disk that refuses for hours must not use up the numbers.
        if result
            .as_ref()
            .is_err_and(|error| error.kind() != ErrorKind::AlreadyExists)
        {
            self.number_next -= 1;
        }
        result
    }

    /// Closes the active segment.
    fn seal(&mut self) {
        let Some(active) = self.active.take() else { return };
        if active.is_unsynced {
            self.sync_later(active.number, active.file);
        }
        if self.remove_if_finished(active.number).is_err() {
            self.is_behind = true;
        }
    }

    /// Leaves a closed segment to the next sync; when too many are left to it, the oldest is synced now.
    fn sync_later(&mut self, number: u64, file: D::File) {
        self.unsynced.push_back((number, file));
        while self.unsynced.len() > UNSYNCED_MAX {
            if let Some((_, file)) = self.unsynced.pop_front()
                && let Err(error) = self.disk.sync(&file)
            {
                self.sync_error = Some(error);
            }
        }
    }

    /// Returns when all records in the store, also those of processes before, have reached the medium, but those that an
    /// error was told for.
    ///
    /// After a failed sync the kernel may have forgotten what it could not write, and a later success would say nothing
    /// about it. So what was written so far is closed and never synced again: it is still read back, checked, as long as
    /// the kernel has it, and whoever needs it stored appends it again. That is the caller's choice, because only it
    /// knows who waits for it.
    ///
    /// # Errors
    /// Records appended since the last success may not have reached the medium, and will not by a later one.
    pub fn sync(&mut self) -> io::Result<()> {
        let mut failure = self.sync_error.take();
        for (_, file) in std::mem::take(&mut self.unsynced) {
            failure = self.disk.sync(&file).err().or(failure);
        }
        if let Some(active) = &mut self.active
            && active.is_unsynced
        {
            failure = self.disk.sync(&active.file).err().or(failure);
            active.is_unsynced = false;
        }
        if self.is_folder_unsynced {
            match self.disk.sync_folder() {
                Ok(()) => self.is_folder_unsynced = false,
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            None => Ok(()),
            Some(error) => {
                self.seal();
                Err(error)
            }
        }
    }

    /// Looks whether what was appended last will be found by who opens the store next: a file that somebody has removed,
    /// or whose folder somebody has moved, takes writes and syncs all the same. Where it will not, nothing more is
    /// written to it, and it is read as long as it stays open. Returns the name of the file that is gone.
    pub fn look_for_written(&mut self) -> Option<String> {
        let active = self.active.as_ref()?;
        let name = segment_name(active.number);
        if self.disk.has(&name) {
            return None;
        }
        let active = self.active.take()?;
        self.is_folder_unsynced = true; // whether it is there at all is for the next sync to say
        self.handles.keep(name.clone(), active.file);
        if self.remove_if_finished(active.number).is_err() {
            self.is_behind = true;
        }
        Some(name)
    }

    /// Gives up what nobody will find any more, because its file is gone: see [`Store::take_damages`].
    pub fn give_up_gone(&mut self) {
        let unread = |(_, segment): &(&u64, &Segment)| segment.unread().parcels > 0;
        let unread: Vec<u64> = self
            .segments
            .iter()
            .filter(unread)
            .map(|(number, _)| *number)
            .collect();
        for number in unread {
            self.give_up_if_gone(number);
        }
    }

    /// Drops the oldest unread records, those of one segment, to make room. `None` if there are none, or if the disk does
    /// not let go of what was dropped before.
    pub fn drop_oldest(&mut self) -> Option<Dropped> {
        let before = self.disk_bytes;
        if self.is_behind {
            let tidied = self.tidy();
            if self.disk_bytes < before {
                return Some(Dropped {
                    sums: Sums::default(),
                    freed_bytes: before - self.disk_bytes,
                });
            }
            tidied.ok()?;
        }
        let is_unread = |(_, segment): &(&u64, &Segment)| segment.unread().parcels > 0;
        let number = *self.segments.iter().find(is_unread)?.0;
        if self.active.as_ref().is_some_and(|active| active.number == number) {
            self.seal();
        }
        self.next = None;
        let sums = self.segments.get_mut(&number)?.finish_unread();
        self.left = self.left.minus(sums);
        if self.settle(number).is_err() {
            self.is_behind = true;
        }
        Some(Dropped {
            sums,
            freed_bytes: before.saturating_sub(self.disk_bytes),
        })
    }

    // ---- read

    /// The oldest unread record. It stays unread: [`Store::read`], [`Store::done`] and [`Store::drop_oldest`] change that.
    ///
    /// # Errors
    /// Those of the disk. The segment then comes after all others; with no others it is tried again, so a caller that
    /// waits a little after an error and goes on asking comes through by itself when the disk does.
    pub fn peek(&mut self) -> io::Result<Option<Meta>> {
        loop {
            if self.next.is_some() {
                return Ok(self.next);
            }
            let Some(number) = self.readable() else {
                return Ok(None);
            };
            let Some(segment) = self.segments.get_mut(&number) else {
                return Ok(None);
            };
            let Some(index) = segment.next_unread() else {
                return Ok(None);
            };
            let found = self.find(number, index).and_then(|found| match found {
                Some(meta) => Ok(Some(meta)),
                None => self.recheck(number, index).map(|()| None),
            });
            match found {
                Ok(found) => self.next = found,
                Err(_) if self.give_up_if_gone(number) => {}
                Err(error) => {
                    self.fail(number);
                    return Err(error);
                }
            }
        }
    }

    /// Reads query, header lines and body, in this order, into `buffer`, whose content is replaced; the record is out
    /// then. `buffer` should have the capacity [`Meta::read_bytes`], and not much more: up to its capacity is read.
    ///
    /// # Errors
    /// See [`ReadError`]; `buffer` is empty then.
    pub fn read(&mut self, meta: &Meta, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        buffer.clear();
        let number = meta.id.segment;
        let is_unread = self
            .segments
            .get(&number)
            .is_some_and(|segment| segment.state(meta.id.index) == State::Unread);
        if !is_unread {
            let error = io::Error::new(ErrorKind::InvalidInput, "the record is not there to be read");
            return Err(ReadError::Io(error));
        }
        let file = self.handles.get(&self.disk, segment_name(number));
        let read = file.and_then(|file| read_payload(&self.disk, file, meta, buffer));
        match read {
            Ok(true) => {
                if let Some(segment) = self.segments.get_mut(&number)
                    && segment.take(&meta.id)
                {
                    self.out = self.out.plus(meta.id.sums());
                }
                self.forget_next(&meta.id);
                Ok(())
            }
            Ok(false) => {
                buffer.clear();
                let damage = Damage {
                    file: segment_name(number),
                    offset: meta.offset,
                    bytes: RECORD_BYTES_MIN + meta.payload_bytes(),
                    records: 1,
                    what: What::Body,
                };
                self.damages.add(damage, meta.id.sums());
                let _ = self.done(&[meta.id]); // a mark that fails is written with the next
                Err(ReadError::Damaged)
            }
            Err(error) => {
                buffer.clear();
                if self.give_up_if_gone(number) {
                    return Err(ReadError::Damaged);
                }
                self.fail(number);
                Err(ReadError::Io(error))
            }
        }
    }

    /// The record that was out is unread again. Others than those that are out are left alone.
    pub fn release(&mut self, id: &RecordId) {
        let Some(segment) = self.segments.get_mut(&id.segment) else {
            return;
        };
        if segment.release(id) {
            self.out = self.out.minus(id.sums());
            let is_older = |next: Meta| (id.segment, id.index) < (next.id.segment, next.id.index);
            if self.next.is_some_and(is_older) {
                self.next = None;
            }
        }
    }

    /// The records are done and will not come back. Those that are done already are left alone.
    ///
    /// # Errors
    /// The records are done in any case, but a mark or a removal is still missing on the disk: it is made up for by a
    /// later call, or [`Store::tidy`]; a restart before that repeats records.
    pub fn done(&mut self, ids: &[RecordId]) -> io::Result<()> {
        let mut touched: Vec<u64> = Vec::new();
        for id in ids {
            let Some(segment) = self.segments.get_mut(&id.segment) else {
                continue;
            };
            let was = segment.state(id.index);
            if segment.finish(id) {
                self.left = self.left.minus(id.sums());
                if was == State::Out {
                    self.out = self.out.minus(id.sums());
                }
                self.forget_next(id);
                if touched.last() != Some(&id.segment) {
                    touched.push(id.segment);
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        let mut result = if self.is_behind { self.tidy() } else { Ok(()) };
        for number in touched {
            if let Err(error) = self.settle(number) {
                self.is_behind = true;
                result = Err(error);
            }
        }
        result
    }

    /// Whether marks or removals failed that [`Store::tidy`] would try again.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Writes marks and removes files that failed before.
    ///
    /// # Errors
    /// What is in the way.
    pub fn tidy(&mut self) -> io::Result<()> {
        if !self.is_behind {
            return Ok(());
        }
        self.is_behind = false;
        let numbers: Vec<u64> = self.segments.keys().copied().collect();
        let mut result = Ok(());
        for number in numbers {
            if let Err(error) = self.settle(number) {
                self.is_behind = true;
                result = Err(error);
            }
        }
        result
    }

    /// When the oldest record that is left was accepted, in milliseconds since the unix epoch. `None` without one, or if
    /// its head cannot be read.
    pub fn oldest_unix_ms(&mut self) -> Option<u64> {
        let (&number, segment) = self
            .segments
            .iter_mut()
            .find(|(_, segment)| segment.left().parcels > 0)?;
        let index = segment.next_left()?;
        if let Some((known_number, known_index, unix_ms)) = self.oldest
            && (known_number, known_index) == (number, index)
        {
            return Some(unix_ms);
        }
        let (offset, index_min) = segment.near(index);
        let mut scan = Scan::from(offset, index_min, Some(segment.salt), segment.bytes);
        let file = self.handles.get(&self.disk, segment_name(number)).ok()?;
        let (_, head) = seek(&self.disk, file, &mut scan, index).ok()??;
        self.oldest = Some((number, index, head.accepted_unix_ms));
        Some(head.accepted_unix_ms)
    }

    /// The segment to read from: the oldest with an unread record that does not fail; if all fail, they have another try.
    fn readable(&mut self) -> Option<u64> {
        let unread = |segments: &BTreeMap<u64, Segment>, failing: bool| {
            let mut segments = segments.iter();
            let found = segments
                .find(|(_, segment)| segment.unread().parcels > 0 && (failing || !segment.is_failing));
            found.map(|(number, _)| *number)
        };
        if let Some(number) = unread(&self.segments, false) {
            return Some(number);
        }
        let number = unread(&self.segments, true)?;
        self.segments
            .values_mut()
            .for_each(|segment| segment.is_failing = false);
        Some(number)
    }

    fn fail(&mut self, number: u64) {
        self.next = None;
        self.scan = None;
        self.handles.close(&segment_name(number));
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.is_failing = true;
        }
    }

    /// Whether the file of a segment is gone. Then its unread records are lost, and told as that.
    fn give_up_if_gone(&mut self, number: u64) -> bool {
        let name = segment_name(number);
        if self.disk.has(&name) {
            return false;
        }
        let Some(segment) = self.segments.get_mut(&number) else {
            return true;
        };
        let lost = segment.finish_unread();
        let damage = Damage {
            file: name.clone(),
            offset: 0,
            bytes: segment.bytes,
            records: lost.parcels,
            what: What::Gone,
        };
        self.damages.add(damage, lost);
        self.left = self.left.minus(lost);
        self.next = None;
        self.scan = None;
        self.handles.close(&name);
        if self.active.as_ref().is_some_and(|active| active.number == number) {
            self.active = None;
        }
        if self.settle(number).is_err() {
            self.is_behind = true;
        }
        true
    }

    fn forget_next(&mut self, id: &RecordId) {
        if self.next.is_some_and(|next| next.id == *id) {
            self.next = None;
        }
    }

    /// Looks for a record from where reading stands, or else from the last record before it whose place is known.
    fn find(&mut self, number: u64, index: u32) -> io::Result<Option<Meta>> {
        let Some(segment) = self.segments.get(&number) else {
            return Ok(None);
        };
        let (near, index_min) = segment.near(index);
        let kept = self
            .scan
            .take()
            .filter(|(of, _)| *of == number)
            .map(|(_, scan)| scan);
        let mut scan = match kept {
            Some(mut scan) => {
                scan.extend(segment.bytes);
                if !scan.is_between(near, index) {
                    scan.seek(near, index_min);
                }
                scan
            }
            None => Scan::from(near, index_min, Some(segment.salt), segment.bytes),
        };
        let file = self.handles.get(&self.disk, segment_name(number))?;
        let found = seek(&self.disk, file, &mut scan, index)?;
        self.scan = Some((number, scan));
        Ok(found.map(|(offset, head)| Meta::new(number, offset, &head)))
    }

    /// A record whose head was good is not found any more: goes through all heads of its segment, and counts what is gone.
    fn recheck(&mut self, number: u64, missing: u32) -> io::Result<()> {
        let Some(segment) = self.segments.get_mut(&number) else {
            return Ok(());
        };
        self.scan = None;
        let file = self.handles.get(&self.disk, segment_name(number))?;
        let mut present = vec![0; segment.records().div_ceil(u64::BITS) as usize];
        let mut kept = Sums::default();
        let mut scan = Scan::whole(Some(segment.salt), segment.bytes);
        let mut damaged: Option<(u64, u64)> = None;
        loop {
            match scan.next(&self.disk, file)? {
                Step::Record { head, .. } => {
                    if head.index != missing && segment.state(head.index) == State::Unread {
                        present[(head.index / u64::BITS) as usize] |= 1 << (head.index % u64::BITS);
                        kept = kept.plus(Sums::of(&head));
                    }
                }
                Step::Gap { offset, bytes } => damaged = damaged.or(Some((offset, bytes))),
                Step::Tail { offset, bytes, .. } => {
                    damaged = damaged.or(Some((offset, bytes)));
                    break;
                }
                Step::End => break,
            }
        }
        let lost = segment.keep_unread(&present, kept);
        self.left = self.left.minus(lost);
        let (offset, bytes) = damaged.unwrap_or((0, segment.bytes));
        let damage = Damage {
            file: segment_name(number),
            offset,
            bytes,
            records: lost.parcels,
            what: What::Head,
        };
        self.damages.add(damage, lost);
        if self.settle(number).is_err() {
            self.is_behind = true;
        }
        Ok(())
    }

    // ---- delete

    /// Brings the disk up to the books of a segment: removes it, or writes marks.
    fn settle(&mut self, number: u64) -> io::Result<()> {
        let quarter = self.limits.segment_bytes_max / 4;
        let is_worth_closing = |segment: &Segment| segment.left().parcels == 0 && segment.bytes >= quarter;
        let is_active = self.active.as_ref().is_some_and(|active| active.number == number);
        if is_active && self.segments.get(&number).is_some_and(is_worth_closing) {
            self.seal();
        }
        let removed = self.remove_if_finished(number);
        let marked = self.mark(number);
        removed.and(marked)
    }

    fn remove_if_finished(&mut self, number: u64) -> io::Result<()> {
        let is_active = self.active.as_ref().is_some_and(|active| active.number == number);
        let is_finished = self
            .segments
            .get(&number)
            .is_some_and(|segment| segment.left().parcels == 0);
        if is_active || !is_finished {
            return Ok(());
        }
        self.unsynced.retain(|(unsynced, _)| *unsynced != number);
        self.scan = self.scan.take().filter(|(of, _)| *of != number);
        // Records first: marks without records are nothing, records without marks would come again.
        for name in [segment_name(number), marks_name(number)] {
            self.handles.close(&name);
            match self.disk.remove(&name) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if let Some(segment) = self.segments.remove(&number) {
            self.disk_bytes -= segment.disk_bytes;
        }
        Ok(())
    }

    /// Writes the marks that are missing.
    fn mark(&mut self, number: u64) -> io::Result<()> {
        let Some(segment) = self.segments.get_mut(&number) else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        for run in segment.unmarked() {
            bytes.extend_from_slice(&encode_mark(segment.salt, &run));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let name = marks_name(number);
        let file = self.handles.get_or_create(&self.disk, name.clone())?;
        let written = write_all_at(&self.disk, file, segment.marks_bytes, &mut [IoSlice::new(&bytes)]);
        match written {
            Ok(()) => segment.set_all_marked(bytes.len() as u64),
            Err(_) => self.handles.close(&name),
        }
        written
    }
}

/// The head of a record to be stored; `None` if the format has no room for it.
fn head(parts: &RecordParts<'_>) -> Option<Head> {
    let body_bytes = parts.segments.iter().map(|segment| segment.len() as u64).sum();
    let head = Head {
        salt: 0,
        index: 0,
        route: parts.route,
        query_bytes: parts.query.len().try_into().ok()?,
        fields_bytes: parts.fields.len().try_into().ok()?,
        body_bytes,
        profile_bytes: parts.profile_bytes,
        accepted_unix_ms: parts.accepted_unix_ms,
        profiles: parts.profiles,
    };
    (head.body_bytes <= BODY_BYTES_MAX && head.profile_bytes <= BODY_BYTES_MAX).then_some(head)
}

/// Writes a record from the slices that it lies in.
fn write_record<D: Disk>(
    disk: &D,
    file: &D::File,
    offset: u64,
    head: &Head,
    parts: &RecordParts<'_>,
) -> io::Result<()> {
    let mut sum = crc32fast::Hasher::new();
    let head = head.encode();
    let mut slices = Vec::with_capacity(parts.segments.len() + 4);
    slices.push(IoSlice::new(&head));
    let body = parts.segments.iter().map(|segment| &**segment);
    for slice in [parts.query, parts.fields].into_iter().chain(body) {
        sum.update(slice);
        slices.push(IoSlice::new(slice));
    }
    let sum = sum.finalize().to_le_bytes();
    slices.push(IoSlice::new(&sum));
    write_all_at(disk, file, offset, &mut slices)
}

/// Reads what follows a head, and says whether its checksum is good. The checksum is not left in `buffer`.
pub(super) fn read_payload<D: Disk>(
    disk: &D,
    file: &D::File,
    meta: &Meta,
    buffer: &mut Vec<u8>,
) -> io::Result<bool> {
    let wanted = usize::try_from(meta.read_bytes()).map_err(|_| ErrorKind::OutOfMemory)?;
    buffer
        .try_reserve_exact(wanted)
        .map_err(|_| ErrorKind::OutOfMemory)?;
    let start = meta.offset + super::record::HEAD_BYTES as u64;
    while buffer.len() < wanted {
        match disk.read_behind(file, start + buffer.len() as u64, buffer) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let payload = wanted - SUM_BYTES;
    let sum = number_u32(&buffer[payload..wanted]);
    buffer.truncate(payload);
    Ok(crc32fast::hash(buffer) == sum)
}

/// Goes on to the record of this number; `None` if it is not there.
fn seek<D: Disk>(disk: &D, file: &D::File, scan: &mut Scan, index: u32) -> io::Result<Option<(u64, Head)>> {
    loop {
        match scan.next(disk, file)? {
            Step::Record { offset, head } if head.index == index => return Ok(Some((offset, head))),
            Step::Record { head, .. } if head.index > index => return Ok(None),
            Step::Record { .. } | Step::Gap { .. } => {}
            Step::Tail { .. } | Step::End => return Ok(None),
        }
    }
}

/// Files kept open for the next use of them: one to read, one or two for marks.
#[derive(Debug)]
struct Handles<F> {
    /// The one used last is at the back.
    kept: VecDeque<(String, F)>,
}

const HANDLES_MAX: usize = 4;

impl<F> Handles<F> {
    fn new() -> Self {
        Self {
            kept: VecDeque::with_capacity(HANDLES_MAX),
        }
    }

    fn get<D: Disk<File = F>>(&mut self, disk: &D, name: String) -> io::Result<&F> {
        self.get_with(name, |name| disk.open(name))
    }

    fn get_or_create<D: Disk<File = F>>(&mut self, disk: &D, name: String) -> io::Result<&F> {
        self.get_with(name, |name| disk.open_or_create(name))
    }

    fn get_with(&mut self, name: String, open: impl FnOnce(&str) -> io::Result<F>) -> io::Result<&F> {
        let at = self.kept.iter().position(|(kept, _)| *kept == name);
        let (name, file) = match at.and_then(|at| self.kept.remove(at)) {
            Some(entry) => entry,
            None => {
                let file = open(&name)?;
                (name, file)
            }
        };
        self.keep(name, file);
        let (_, file) = &self.kept[self.kept.len() - 1];
        Ok(file)
    }

    fn keep(&mut self, name: String, file: F) {
        self.close(&name);
        if self.kept.len() == HANDLES_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back((name, file));
    }

    fn close(&mut self, name: &str) {
        self.kept.retain(|(kept, _)| kept != name);
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests;
