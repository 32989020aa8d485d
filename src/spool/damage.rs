//! What was found damaged, counted in full and listed up to a bound. Not responsible for what is done about it.

use std::io;

use super::segment::Sums;

/// So many are listed in full, the rest only counted.
const LIST_MAX: usize = 64;

/// One damaged place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Name of the file, in the destination's folder.
    pub file: String,
    /// Where the damage begins, in bytes.
    pub offset: u64,
    /// How far it reaches, in bytes.
    pub bytes: u64,
    /// Records lost by it, as far as can be known.
    pub records: u64,
    /// What it is.
    pub what: What,
}

/// Kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The segment's header. No record is lost by this.
    Header,
    /// Record heads. The records up to the next good head are lost.
    Head,
    /// The end of the last record is missing, or its head is damaged and nothing good follows.
    Tail,
    /// The checksum of a record's query, fields and body is wrong. It is lost.
    Body,
    /// Done marks. Their records may be sent again.
    Marks,
    /// None: the segment was written by a newer pyrotee. It stays as it is, untouched and unread.
    Newer {
        /// The version of its format.
        version: u32,
    },
    /// Somebody has taken the segment away while we had it. The records in it are lost.
    Gone,
    /// The segment could not be read. It stays as it is until the next start.
    Unreadable {
        /// The error.
        kind: io::ErrorKind,
    },
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => write!(f, "the file's header is damaged"),
            Self::Head => write!(f, "a record's head is damaged"),
            Self::Tail => write!(f, "the last record is cut off"),
            Self::Body => write!(f, "a record's checksum is wrong"),
            Self::Marks => write!(f, "done marks are damaged: their records may be sent again"),
            Self::Newer { version } => write!(
                f,
                "format version {version} is newer than this pyrotee: left untouched until a newer one reads it"
            ),
            Self::Gone => write!(f, "the file is not in its folder any more"),
            Self::Unreadable { kind } => write!(f, "cannot be read ({kind}): left until the next start"),
        }
    }
}

/// What was damaged in a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damages {
    /// The first of them.
    pub list: Vec<Damage>,
    /// How many more there were.
    pub more: u64,
    /// Records lost by all of them. Where a head is damaged, only their number is known.
    pub lost: Sums,
}

impl Damages {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.more == 0
    }

    /// Adds one, and what was lost by it.
    pub(super) fn add(&mut self, damage: Damage, lost: Sums) {
        self.lost = self.lost.plus(lost);
        if self.list.len() < LIST_MAX {
            self.list.push(damage);
        } else {
            self.more += 1;
        }
    }

    /// Adds all of `other`.
    pub(super) fn append(&mut self, other: Self) {
        self.lost = self.lost.plus(other.lost);
        self.more += other.more;
        for damage in other.list {
            self.add(damage, Sums::default());
        }
    }

    /// Adds one of which no more is known than how many records it cost.
    pub(super) fn add_unknown(&mut self, damage: Damage) {
        let lost = Sums {
            parcels: damage.records,
            ..Sums::default()
        };
        self.add(damage, lost);
    }
}
