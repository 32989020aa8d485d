//! How old a record is, whatever has been done to the wall clock since it was written. Pure: reads no clock.
//!
//! A record carries the time of the wall clock, for that is what a machine that boots anew can understand. Between two boots the
//! boot clock tells how much time has really passed. So it is remembered, for each run of segments, by how much the wall clock
//! was ahead of the boot clock when they were written:
//!
//! ```text
//!  segment   1   2 │ 3   4   5 │ 6        the wall clock was set before 3, and again before 6
//!  ahead        a  │     b     │ c
//!  age of a record in 4 = (boot clock now + b) − its stamp
//! ```
//! The runs are in the file `clock` beside the segments, for the next process:
//!
//! ```text
//!  run       0               8        16     24    28
//!            │ first segment │ ahead  │ boot │ crc │      ahead: signed, in milliseconds
//!                                            │ of 0..24
//! ```
//! What was written before the machine booted, or before there was such a file, goes by the wall clock as this process found it
//! at its start.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::Duration;

use super::CLOCK_NAME;
use super::disk::{Disk, read_full_at, write_all_at};
use super::record::{number_u32, number_u64};
use crate::runtime::clock::{Mono, Wall};

/// Of a run in the file.
const RUN_BYTES: usize = 28;
/// Runs that a file is believed to have: more segments than that have never been set apart by a clock.
const RUNS_MAX: usize = 1 << 16;
/// The wall clock was set where it moves against the monotonic one by more than this. Less is the slow correction of a clock
/// that runs too fast or slow, and no age is that exact.
const STEP_MIN_MS: u64 = 1_000;

/// By how much the wall clock was ahead, for each segment there may be.
#[derive(Debug)]
pub struct Ages {
    /// The first segment of a run, and the milliseconds. In the order of segments, and at most one run more than there are
    /// segments: see [`Ages::forget_before`]. The first run begins with segment 0.
    runs: VecDeque<(u64, i64)>,
    /// Which boot this is.
    boot: u64,
    /// Whether the file knows of all runs.
    is_saved: bool,
}

impl Ages {
    /// What is known of the segments on `disk`; those from `next` on are written by the clock as it is now. `boot` tells this
    /// boot of the machine from others.
    pub fn open<D: Disk>(disk: &D, next: u64, wall: Wall, boot: u64) -> Self {
        let mut runs = VecDeque::from([(0, ahead(wall))]);
        for (first, ahead) in load(disk, boot).unwrap_or_default() {
            let is_behind = runs.back().is_some_and(|(last, _)| *last < first);
            if is_behind && first < next {
                runs.push_back((first, ahead));
            }
        }
        let mut ages = Self {
            runs,
            boot,
            is_saved: false,
        };
        ages.begin(next, wall);
        ages
    }

    /// Whether the wall clock has been set since the last run began, and by how many milliseconds.
    pub fn step(&self, wall: Wall) -> Option<i64> {
        let (_, last) = self.runs.back()?;
        let step = ahead(wall).saturating_sub(*last);
        (step.unsigned_abs() > STEP_MIN_MS).then_some(step)
    }

    /// Segments from `segment` on are written by the clock as it is now.
    pub fn begin(&mut self, segment: u64, wall: Wall) {
        while self.runs.back().is_some_and(|(first, _)| *first >= segment) {
            self.runs.pop_back();
        }
        self.runs.push_back((segment, ahead(wall)));
        self.is_saved = false;
    }

    /// There are no segments before `segment` any more.
    pub fn forget_before(&mut self, segment: u64) {
        while self.runs.get(1).is_some_and(|(first, _)| *first <= segment) {
            self.runs.pop_front();
        }
    }

    /// How old a record in `segment` is that bears the stamp `accepted_unix_ms`; zero for one from the future.
    pub fn of(&self, segment: u64, accepted_unix_ms: u64, wall: Wall) -> Duration {
        let behind = self.runs.partition_point(|(first, _)| *first <= segment);
        let run = self.runs.get(behind.saturating_sub(1));
        let shown = wall
            .boot_ms
            .saturating_add_signed(run.map_or(0, |(_, ahead)| *ahead));
        Duration::from_millis(shown.saturating_sub(accepted_unix_ms))
    }

    /// Writes down for the next process what it has not been told yet. Where that fails, ages go by the wall clock there.
    pub fn save<D: Disk>(&mut self, disk: &D) {
        if self.is_saved {
            return;
        }
        let mut bytes = Vec::new();
        for (first, ahead) in &self.runs {
            let at = bytes.len();
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(&ahead.to_le_bytes());
            bytes.extend_from_slice(&self.boot.to_le_bytes());
            let sum = crc32fast::hash(&bytes[at..]);
            bytes.extend_from_slice(&sum.to_le_bytes());
        }
        let written = disk.open_or_create(CLOCK_NAME).and_then(|file| {
            write_all_at(disk, &file, 0, &mut [IoSlice::new(&bytes)])?;
            disk.truncate(&file, bytes.len() as u64)
        });
        self.is_saved = written.is_ok();
    }
}

/// The runs of this boot in the file.
fn load<D: Disk>(disk: &D, boot: u64) -> io::Result<Vec<(u64, i64)>> {
    let file = disk.open(CLOCK_NAME)?;
    let bytes = usize::try_from(disk.bytes(&file)?).unwrap_or(usize::MAX);
    let mut content = vec![0; bytes.min(RUNS_MAX * RUN_BYTES)];
    let read = read_full_at(disk, &file, 0, &mut content)?;
    let runs = content[..read].chunks_exact(RUN_BYTES).filter(|run| {
        number_u64(&run[16..]) == boot && number_u32(&run[24..]) == crc32fast::hash(&run[..24])
    });
    Ok(runs
        .map(|run| (number_u64(run), number_u64(&run[8..]).cast_signed()))
        .collect())
}

/// The stamp of what was accepted at `accepted`, by the wall clock as it is now: in the terms of the run it is written in.
pub fn stamp(accepted: Mono, now: Mono, wall: Wall) -> u64 {
    let age = u64::try_from(now.since(accepted).as_millis()).unwrap_or(u64::MAX);
    wall.unix_ms.saturating_sub(age)
}

fn ahead(wall: Wall) -> i64 {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    signed(wall.unix_ms).saturating_sub(signed(wall.boot_ms))
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeDisk;
    use super::*;

    const START: u64 = 1_795_000_000_000;
    const DAY: u64 = 24 * 3_600_000;
    const BOOT: u64 = 7;

    /// So many seconds after the beginning, with the wall clock that many milliseconds off.
    fn at(seconds: u64, off_ms: i64) -> Wall {
        Wall {
            unix_ms: (START + seconds * 1_000).saturating_add_signed(off_ms),
            boot_ms: 1_000_000 + seconds * 1_000,
        }
    }

    fn mono(seconds: u64) -> Mono {
        Mono::default().after(Duration::from_secs(1_000 + seconds))
    }

    fn stamp_at(accepted: u64, written: u64, off_ms: i64) -> u64 {
        stamp(mono(accepted), mono(written), at(written, off_ms))
    }

    #[test]
    fn ages_go_by_the_time_that_has_passed() {
        let (disk, day) = (FakeDisk::new(1), DAY as i64);
        let mut ages = Ages::open(&disk, 1, at(0, 0), BOOT);
        let first = stamp_at(0, 2, 0);
        assert_eq!(ages.step(at(10, 400)), None, "it runs a little fast");
        assert_eq!(ages.step(at(10, day)), Some(day));
        ages.begin(3, at(10, day));
        let second = stamp_at(9, 10, day);
        assert_eq!(ages.step(at(20, -day)), Some(-2 * day));
        ages.begin(4, at(20, -day));
        let third = stamp_at(20, 20, -day);
        let records = [
            (1, first, 30),
            (2, first, 30),
            (3, second, 21),
            (4, third, 10),
            (9, third, 10),
        ];
        for (segment, stamp, seconds) in records {
            assert_eq!(
                ages.of(segment, stamp, at(30, 5)),
                Duration::from_secs(seconds),
                "{segment}"
            );
        }
        // The next process knows it too, wherever its clock stands.
        ages.save(&disk);
        let ages = Ages::open(&disk, 5, at(40, 99 * day), BOOT);
        for (segment, stamp, seconds) in records {
            let age = ages.of(segment, stamp, at(50, 99 * day)).as_secs();
            let expected = if segment < 5 { seconds + 20 } else { 0 };
            assert!(segment >= 5 || age == expected, "{segment}: {age}");
        }
    }

    #[test]
    fn what_was_written_before_a_boot_goes_by_the_wall_clock() {
        let disk = FakeDisk::new(1);
        let mut ages = Ages::open(&disk, 1, at(0, 0), BOOT);
        let old = stamp_at(0, 0, 0);
        ages.save(&disk);
        let ages = Ages::open(&disk, 2, at(9, DAY as i64), BOOT + 1);
        let day = Duration::from_millis(DAY);
        assert_eq!(ages.of(1, old, at(10, DAY as i64)), day + Duration::from_secs(10));
        assert_eq!(
            ages.of(1, START + 2 * DAY, at(10, 0)),
            Duration::ZERO,
            "from the future"
        );
        assert_eq!(ages.of(1, u64::MAX, at(10, 0)), Duration::ZERO);
        assert!(ages.of(1, 0, at(10, 0)) > Duration::from_secs(50 * 365 * 24 * 3600));
    }

    #[test]
    fn a_damaged_file_is_none() {
        let disk = FakeDisk::new(1);
        Ages::open(&disk, 3, at(0, 0), BOOT).save(&disk);
        let good = disk.content(CLOCK_NAME);
        assert_eq!(load(&disk, BOOT).unwrap().len(), 2);
        for cut in 0..good.len() {
            disk.put(CLOCK_NAME, good[..cut].to_vec());
            assert_eq!(load(&disk, BOOT).unwrap().len(), cut / RUN_BYTES, "{cut}");
        }
        for at in 0..good.len() {
            disk.put(CLOCK_NAME, good.clone());
            disk.flip(CLOCK_NAME, at, 3);
            assert_eq!(load(&disk, BOOT).unwrap().len(), 1, "{at}");
        }
    }

    #[test]
    fn runs_without_segments_are_forgotten() {
        let mut ages = Ages::open(&FakeDisk::new(1), 1, at(0, 0), BOOT);
        for segment in 2..100 {
            ages.begin(segment, at(segment, 0));
            ages.begin(segment, at(segment, 0)); // nothing was written in between
        }
        ages.forget_before(97);
        let firsts: Vec<u64> = ages.runs.iter().map(|(first, _)| *first).collect();
        assert_eq!(firsts, [97, 98, 99]);
    }
}
