//! Which marked profiles have been accepted, so that a second one with the same id is a duplicate.
//!
//! A bit per id in pages of 65536 ids, made when first touched. Ids of one run are dense, so a page is nearly always
//! used fully: a million profiles cost 128 KiB. Not responsible for finding ids in bodies (`verify.rs`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::cmd::mark::ProfileId;

/// Words of one page: 65536 ids, 8 KiB.
const PAGE_WORDS: usize = 1024;
/// 16384 pages are 128 MiB, or a thousand million profiles.
const PAGES_MAX: usize = 16384;

/// What [`Seen::insert`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// A new id.
    First,
    /// The id was there already.
    Again,
    /// All pages are in use, so it cannot be told.
    Unknown,
}

/// The set of accepted ids.
#[derive(Debug, Default)]
pub struct Seen {
    pages: HashMap<(u32, u16), Box<[u64; PAGE_WORDS]>>,
}

impl Seen {
    /// Notes an accepted profile.
    #[allow(clippy::cast_possible_truncation)] // the two halves of 32 bits
    pub fn insert(&mut self, id: ProfileId) -> Sighting {
        let full = self.pages.len() >= PAGES_MAX;
        let page = match self.pages.entry((id.run, (id.sequence >> 16) as u16)) {
            Entry::Occupied(page) => page.into_mut(),
            Entry::Vacant(_) if full => return Sighting::Unknown,
            Entry::Vacant(place) => place.insert(Box::new([0; PAGE_WORDS])),
        };
        let index = id.sequence as u16;
        let (word, bit) = (&mut page[usize::from(index >> 6)], 1u64 << (index & 63));
        let again = *word & bit != 0;
        *word |= bit;
        if again { Sighting::Again } else { Sighting::First }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once() {
        let mut seen = Seen::default();
        for run in [0, 1, u32::MAX] {
            for sequence in [0, 1, 63, 64, 65_535, 65_536, u32::MAX] {
                let id = ProfileId { run, sequence };
                assert_eq!(seen.insert(id), Sighting::First, "{id:?}");
                assert_eq!(seen.insert(id), Sighting::Again, "{id:?}");
            }
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut seen = Seen::default();
        for run in 0..PAGES_MAX as u32 {
            assert_eq!(seen.insert(ProfileId { run, sequence: 0 }), Sighting::First);
        }
        assert_eq!(
            seen.insert(ProfileId {
                run: u32::MAX,
                sequence: 0
            }),
            Sighting::Unknown
        );
        assert_eq!(seen.insert(ProfileId { run: 0, sequence: 0 }), Sighting::Again);
    }
}
