//! The disk queue of one destination: where parcels wait while its memory queue is full or it is away.
//!
//! Not responsible for when a parcel is spooled or sent, and not for threads, clocks and policies: a [`Store`] is a plain
//! value that one thread owns and calls.
//!
//! # Layout
//! ```text
//!  DIR/lock                                      held by the one process that may write (lock.rs)
//!  DIR/<destination>/0000000000000001.spool      a segment: records, one behind the other
//!                    0000000000000001.done       its done marks
//!                    0000000000000002.spool      ...
//!                    clock                       how the wall clock was set when segments were written (ages.rs)
//! ```
//! Folders are 0700, files 0600. All numbers in files are little-endian, all checksums CRC-32 (the one of zip and gzip).
//!
//! # Format
//! ```text
//!  segment   header │ record │ record │ ...
//!
//!  header    0      8      12       20     28    32
//!            │ magic│version│ number │ salt │ crc │
//!            │ f1 "pyroseg" │        │      │ of 0..28
//!
//!  record    0                      64      +query_bytes  +fields_bytes   +body_bytes     +4
//!            │ head                 │ query │ header lines │ body          │ crc          │
//!            │                      │       │ each + CRLF  │               │ of all behind the head
//!  head      0      8      16      20    21  24            28             32
//!            │ magic│ salt │ index │route│ 0 │ query_bytes │ fields_bytes │
//!            │ f1 "pyrorec"        │ 1 ingest, 2 push
//!            32           40              48                 56         60    64
//!            │ body_bytes │ profile_bytes │ accepted_unix_ms │ profiles │ crc │
//!                                                                       │ of 0..60
//!  mark      0       4      8     12
//!            │ first │ last │ crc │     the records of these numbers are done
//!                           │ of salt, first, last
//! ```
//! The salt is drawn for each segment. Nothing in a body and no stale block of the disk can pass for a head or mark.
//!
//! # Write
//! A record is written with one vectored write from the slices that it lies in. If that fails, the file is cut back to its
//! last good record, and where that fails too, closed. A segment is closed at its size and by a restart.
//!
//! # Read
//! In order, from head to head. The body is read into the caller's memory, and its checksum looked at.
//!
//! # Delete
//! A done record gets a mark; marks are not synced, so a power loss can repeat a record, `kill -9` cannot. A segment of
//! which all is done is removed: first the records, then the marks.
//!
//! # Recover
//! Heads are read, bodies skipped. Behind a damaged head the next good one is searched, so damage costs the records it
//! hits. The numbers in the heads tell how many those were.
//!
//! # Sums
//! Half a byte of memory for each stored record (`segment.rs`), for 10 GiB of 10 KiB records 512 KiB.

pub mod ages;
pub mod damage;
pub mod disk;
#[cfg(test)]
pub(crate) mod fake;
pub mod fuzz;
pub mod keeper;
pub mod lock;
pub mod record;
mod recover;
mod scan;
pub mod segment;
pub mod store;
pub mod walk;

pub use damage::{Damage, Damages, What};
pub use disk::{Disk, RealDisk};
pub use lock::{Lock, LockError, lock};
pub use segment::Sums;
pub use store::{AppendError, Meta, ReadError, RecordParts, Recovery, Store, StoreLimits, Totals};
pub use walk::{DestinationFolder, Seen, Summary, delete, destinations, read_record, summary, walk};

/// The folder of a destination in the spool's folder. Names that the plan allows come out as they are, but for dots
/// and the name of the lock.
pub fn folder_name(destination: &str) -> String {
    if destination == lock::FILE_NAME {
        return format!("%{:02X}{}", lock::FILE_NAME.as_bytes()[0], &lock::FILE_NAME[1..]);
    }
    let mut name = String::with_capacity(destination.len());
    for byte in destination.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            name.push(char::from(byte));
        } else {
            name.extend(crate::profile::query::percent(byte).map(char::from));
        }
    }
    name
}

/// The name of a segment's file.
fn segment_name(number: u64) -> String {
    format!("{number:016}{SEGMENT_ENDING}")
}

/// The name of its marks' file.
fn marks_name(number: u64) -> String {
    format!("{number:016}{MARKS_ENDING}")
}

/// The number in a file's name that ends in `ending`. `None` for files that are not ours.
fn number_in(name: &str, ending: &str) -> Option<u64> {
    let digits = name.strip_suffix(ending)?;
    let is_ours = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_digit());
    let number = digits.parse().ok().filter(|_| is_ours)?;
    (number <= NUMBER_MAX).then_some(number)
}

const SEGMENT_ENDING: &str = ".spool";
const MARKS_ENDING: &str = ".done";
/// What the clocks showed when segments were written, see [`ages`].
const CLOCK_NAME: &str = "clock";
/// Names keep their 16 digits; a million segments a second reach this in 285 years.
const NUMBER_MAX: u64 = 8_999_999_999_999_999;
