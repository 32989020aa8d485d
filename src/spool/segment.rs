//! The books of one segment: which records are done, which are out, which marks are written, and sums of what is left.
//! Pure. Half a byte of memory for each record; nothing else is kept of one.
//!
//! ```text
//!  a record is   unread ──take──▶ out ──finish──▶ done
//!                  ▲  └───────────drop/finish──────▲
//!                  └───release──── out
//!  left = unread + out
//! ```

use std::ops::RangeInclusive;

use super::record::{Head, MARK_BYTES};
use crate::fanout::RecordId;

/// What some records come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Records.
    pub parcels: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Profiles in them.
    pub profiles: u64,
    /// What Alloy's byte counters count (WIRE.md 4.6).
    pub profile_bytes: u64,
}

impl Sums {
    /// One record.
    pub fn of(head: &Head) -> Self {
        Self {
            parcels: 1,
            bytes: head.body_bytes,
            profiles: u64::from(head.profiles),
            profile_bytes: head.profile_bytes,
        }
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            parcels: self.parcels + other.parcels,
            bytes: self.bytes + other.bytes,
            profiles: self.profiles + other.profiles,
            profile_bytes: self.profile_bytes + other.profile_bytes,
        }
    }

    /// Without `other`, which is a part of it.
    pub fn minus(self, other: Self) -> Self {
        debug_assert!(
            self.parcels >= other.parcels && self.bytes >= other.bytes,
            "{self:?} {other:?}"
        );
        Self {
            parcels: self.parcels.saturating_sub(other.parcels),
            bytes: self.bytes.saturating_sub(other.bytes),
            profiles: self.profiles.saturating_sub(other.profiles),
            profile_bytes: self.profile_bytes.saturating_sub(other.profile_bytes),
        }
    }
}

impl RecordId {
    pub(super) fn new(segment: u64, head: &Head) -> Self {
        Self {
            segment,
            index: head.index,
            profiles: head.profiles,
            bytes: head.body_bytes,
            profile_bytes: head.profile_bytes,
        }
    }

    /// What it counts.
    pub fn sums(&self) -> Sums {
        Sums {
            parcels: 1,
            bytes: self.bytes,
            profiles: u64::from(self.profiles),
            profile_bytes: self.profile_bytes,
        }
    }
}

/// As `pyrotee spool` names it: number of the segment, number in it.
impl std::fmt::Display for RecordId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.segment, self.index)
    }
}

/// The state of 64 records in a row: one bit each, and where the first of them lies.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Finished, dropped, or lost to damage.
    done: u64,
    /// A mark says so on disk. INVARIANT: `marked & !done == 0`.
    marked: u64,
    /// In the hands of the store's user. INVARIANT: `out & done == 0`.
    out: u64,
    /// Offset of the first record of the block that there is, in bytes; `u64::MAX` if there is none.
    offset: u64,
}

const BLOCK_RECORDS: u32 = u64::BITS;

/// See the module's text.
#[derive(Debug)]
pub struct Segment {
    /// See [`super::record::Header::salt`].
    pub salt: u64,
    /// Length of its good part in bytes: records end here, and the next one would begin.
    pub bytes: u64,
    /// Length of its marks file in whole marks, in bytes: where the next mark is written.
    pub marks_bytes: u64,
    /// What it counts against the limit, in bytes: the file, and a mark for each record.
    pub disk_bytes: u64,
    /// Reading failed; it is passed over until nothing else is left to read.
    pub is_failing: bool,
    /// Numbers given: the next record's. `ceil(records / 64)` blocks hold their state.
    records: u32,
    blocks: Vec<Block>,
    left: Sums,
    out: Sums,
    /// No block before this one has an unread record.
    unread_from: usize,
    /// No block before this one has a record that is left.
    left_from: usize,
    /// No block outside has a record that is done and not marked.
    unmarked: std::ops::Range<usize>,
    /// All numbers from [`Segment::records`] on are to be marked, too.
    is_end_unmarked: bool,
}

impl Segment {
    /// A segment of `bytes` without records.
    pub fn new(salt: u64, bytes: u64) -> Self {
        Self {
            salt,
            bytes,
            marks_bytes: 0,
            disk_bytes: bytes,
            is_failing: false,
            records: 0,
            blocks: Vec::new(),
            left: Sums::default(),
            out: Sums::default(),
            unread_from: 0,
            left_from: 0,
            unmarked: 0..0,
            is_end_unmarked: false,
        }
    }

    /// Numbers given.
    pub fn records(&self) -> u32 {
        self.records
    }

    /// What is not done: unread and out.
    pub fn left(&self) -> Sums {
        self.left
    }

    /// What is out.
    pub fn out(&self) -> Sums {
        self.out
    }

    /// What is neither done nor out.
    pub fn unread(&self) -> Sums {
        self.left.minus(self.out)
    }

    /// Books a record that lies at `offset`, behind all others. Numbers that were left out are of no record.
    pub fn push(&mut self, offset: u64, head: &Head, state: State) {
        debug_assert!(head.index >= self.records, "numbers rise");
        self.skip_to(head.index);
        let (block, bit) = self.place(head.index);
        self.records = head.index.saturating_add(1);
        self.blocks[block].offset = self.blocks[block].offset.min(offset);
        match state {
            State::Unread => self.left = self.left.plus(Sums::of(head)),
            State::Out => {
                self.blocks[block].out |= bit;
                self.left = self.left.plus(Sums::of(head));
                self.out = self.out.plus(Sums::of(head));
            }
            State::Done => {
                self.blocks[block].done |= bit;
                self.blocks[block].marked |= bit;
            }
        }
    }

    /// Books the numbers up to `index` as of no record: done without a mark, until [`Segment::set_marked`].
    pub fn skip_to(&mut self, index: u32) {
        while self.records < index {
            let (block, bit) = self.place(self.records);
            self.blocks[block].done |= bit;
            self.note_unmarked(block);
            self.records += 1;
        }
    }

    /// No record comes behind the last one: what follows it is damaged, and a mark is to say that this was told.
    pub fn end(&mut self) {
        self.is_end_unmarked = true;
    }

    /// A mark on disk says that this record is done, which it is.
    pub fn set_marked(&mut self, index: u32) {
        let (block, bit) = self.place(index);
        debug_assert!(self.blocks[block].done & bit != 0, "it is done");
        self.blocks[block].marked |= bit;
    }

    /// The state of a record; done if there is none of this number.
    pub fn state(&self, index: u32) -> State {
        let (block, bit) = position(index);
        match self.blocks.get(block) {
            Some(block) if index < self.records && block.done & bit == 0 => match block.out & bit {
                0 => State::Unread,
                _ => State::Out,
            },
            _ => State::Done,
        }
    }

    /// The first record that is unread.
    pub fn next_unread(&mut self) -> Option<u32> {
        let (block, index) = self.first(self.unread_from, |block| !block.done & !block.out);
        self.unread_from = block;
        index
    }

    /// The first record that is left.
    pub fn next_left(&mut self) -> Option<u32> {
        let (block, index) = self.first(self.left_from, |block| !block.done);
        self.left_from = block;
        index
    }

    /// Where to begin to look for a record: an offset where one begins, and the lowest number that one there may have.
    pub fn near(&self, index: u32) -> (u64, u32) {
        let (block, _) = position(index);
        let offset = self.blocks.get(block).map_or(u64::MAX, |block| block.offset);
        (offset, index - index % BLOCK_RECORDS)
    }

    /// The unread record is out. Whether it was unread.
    pub fn take(&mut self, id: &RecordId) -> bool {
        let is_unread = self.state(id.index) == State::Unread;
        if is_unread {
            let (block, bit) = position(id.index);
            self.blocks[block].out |= bit;
            self.out = self.out.plus(id.sums());
        }
        is_unread
    }

    /// The record that was out is unread. Whether it was out.
    pub fn release(&mut self, id: &RecordId) -> bool {
        let is_out = self.state(id.index) == State::Out;
        if is_out {
            let (block, bit) = position(id.index);
            self.blocks[block].out &= !bit;
            self.out = self.out.minus(id.sums());
            self.unread_from = self.unread_from.min(block);
        }
        is_out
    }

    /// The record is done. Whether it was not before.
    pub fn finish(&mut self, id: &RecordId) -> bool {
        let was = self.state(id.index);
        if was == State::Done {
            return false;
        }
        let (block, bit) = position(id.index);
        if was == State::Out {
            self.blocks[block].out &= !bit;
            self.out = self.out.minus(id.sums());
        }
        self.blocks[block].done |= bit;
        self.left = self.left.minus(id.sums());
        self.note_unmarked(block);
        true
    }

    /// All unread records are done. What they were.
    pub fn finish_unread(&mut self) -> Sums {
        self.keep_unread(&[], Sums::default())
    }

    /// All unread records are done but those whose bits are in `present` (64 to a word); those come to `kept`. What the
    /// others were.
    pub fn keep_unread(&mut self, present: &[u64], kept: Sums) -> Sums {
        let lost = self.unread().minus(kept);
        for index in 0..self.blocks.len() {
            let numbers = self.numbers(index);
            let block = &mut self.blocks[index];
            let gone = numbers & !block.done & !block.out & !present.get(index).copied().unwrap_or(0);
            if gone != 0 {
                block.done |= gone;
                self.note_unmarked(index);
            }
        }
        self.left = self.out.plus(kept);
        lost
    }

    /// The records that are done and not marked, as runs.
    pub fn unmarked(&self) -> Vec<RangeInclusive<u32>> {
        let mut runs: Vec<RangeInclusive<u32>> = Vec::new();
        for index in self.unmarked.clone() {
            let mut bits = self.blocks[index].done & !self.blocks[index].marked;
            while bits != 0 {
                let number = index as u32 * BLOCK_RECORDS + bits.trailing_zeros();
                bits &= bits - 1;
                match runs.last_mut() {
                    Some(run) if run.end() + 1 == number => *run = *run.start()..=number,
                    _ => runs.push(number..=number),
                }
            }
        }
        if self.is_end_unmarked {
            runs.push(self.records..=u32::MAX);
        }
        runs
    }

    /// All that are done are marked, with marks of `bytes` in all.
    pub fn set_all_marked(&mut self, bytes: u64) {
        for block in &mut self.blocks[self.unmarked.clone()] {
            block.marked = block.done;
        }
        self.unmarked = 0..0;
        self.is_end_unmarked = false;
        self.marks_bytes += bytes;
    }

    /// Room for the marks that are still to be written, in bytes: one for each record without, and for the end.
    pub fn marks_ahead_bytes(&self) -> u64 {
        let marked: u64 = self
            .blocks
            .iter()
            .map(|block| u64::from(block.marked.count_ones()))
            .sum();
        (u64::from(self.records) - marked + u64::from(self.is_end_unmarked)) * MARK_BYTES as u64
    }

    fn note_unmarked(&mut self, block: usize) {
        self.unmarked = match self.unmarked.is_empty() {
            true => block..block + 1,
            false => self.unmarked.start.min(block)..self.unmarked.end.max(block + 1),
        };
    }

    /// Block and bit of a number, which from now on there are.
    fn place(&mut self, index: u32) -> (usize, u64) {
        let (block, bit) = position(index);
        if block >= self.blocks.len() {
            let empty = Block {
                done: 0,
                marked: 0,
                out: 0,
                offset: u64::MAX,
            };
            self.blocks.resize(block + 1, empty);
        }
        (block, bit)
    }

    /// The bits of a block that are numbers given.
    fn numbers(&self, block: usize) -> u64 {
        match self.records as usize - block * BLOCK_RECORDS as usize {
            count if count < BLOCK_RECORDS as usize => (1 << count) - 1,
            _ => u64::MAX,
        }
    }

    /// The first number from block `from` on whose bit is in `bits`, and its block; without one, the last block.
    fn first(&self, from: usize, bits: impl Fn(&Block) -> u64) -> (usize, Option<u32>) {
        for index in from..self.blocks.len() {
            let bits = bits(&self.blocks[index]) & self.numbers(index);
            if bits != 0 {
                return (index, Some(index as u32 * BLOCK_RECORDS + bits.trailing_zeros()));
            }
        }
        (self.blocks.len().saturating_sub(1), None)
    }
}

/// What a record is to its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// To be read.
    Unread,
    /// In the hands of the store's user.
    Out,
    /// Nothing to be done any more.
    Done,
}

fn position(index: u32) -> (usize, u64) {
    ((index / BLOCK_RECORDS) as usize, 1 << (index % BLOCK_RECORDS))
}
