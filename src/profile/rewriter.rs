//! `/ingest` queries, the fast way: SDKs push under the same `name` again and again, and the rest of their queries needs no
//! decoding. [`rewrite_query`] is the slow twin that says what is right; whatever is not plain goes through it.
//!
//! ```text
//!  query ─▶ pieces, all plain but the name's value? ──no──▶ rewrite_query, and remember what the name became
//!                     │ yes
//!                     ▼
//!           name's value known? ──yes──▶ sort the pieces, write them as they are, and the name as remembered
//! ```
//! Bounds: [`NAMES_MAX`] names of up to [`NAME_BYTES_MAX`] each way; beyond that everything is forgotten and learned anew,
//! so a client that invents names costs what it cost without this.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::profile::ingest::{IngestError, Rewritten, rewrite_query};
use crate::profile::labels::{LabelLimits, LabelRules};
use crate::profile::query;

/// Names remembered at most: an edge gateway serves a few hundred applications.
pub const NAMES_MAX: usize = 1024;
/// A longer name is not remembered, in bytes; with [`NAMES_MAX`] that bounds the memory of one core to 8 MiB.
pub const NAME_BYTES_MAX: usize = 4 << 10;
/// More pieces than any SDK sends go the slow way.
const PIECES_MAX: usize = 16;

/// Rewrites the queries of one core.
#[derive(Debug)]
pub struct Rewriter {
    rules: Arc<LabelRules>,
    limits: LabelLimits,
    /// From a `name` value as it stands in queries to what goes out for it; `None` where a relabel rule drops it.
    names: HashMap<Box<[u8]>, Became, Keyed>,
}

/// What a name became.
type Became = Option<Box<[u8]>>;

type Pieces<'q> = SmallVec<[Piece<'q>; PIECES_MAX]>;

/// `key=value` as it stands in a query.
#[derive(Clone, Copy)]
struct Piece<'q> {
    bytes: &'q [u8],
    key_len: usize,
    /// The first bytes of the key, the first one highest: orders most keys without looking at them again.
    order: u64,
}

impl Piece<'_> {
    fn key(&self) -> &[u8] {
        &self.bytes[..self.key_len]
    }

    fn is_name(&self) -> bool {
        self.key_len == NAME.len() && self.order == NAME_ORDER
    }

    fn by_key(&self, other: &Self) -> Ordering {
        let first = self.order.cmp(&other.order);
        first.then_with(|| self.key().cmp(other.key()))
    }
}

const NAME: &[u8] = b"name";
const NAME_ORDER: u64 = (u32::from_be_bytes(*b"name") as u64) << 32;

impl Rewriter {
    /// A rewriter that knows no names yet.
    pub fn new(rules: Arc<LabelRules>, limits: LabelLimits) -> Self {
        Self {
            rules,
            limits,
            names: HashMap::with_hasher(Keyed(fastrand::u64(..))),
        }
    }

    /// Appends the outgoing query to `out`, exactly as [`rewrite_query`] does.
    ///
    /// # Errors
    /// Those of [`rewrite_query`]; `out` is then as it was.
    pub fn rewrite(&mut self, query: &[u8], out: &mut Vec<u8>) -> Result<Rewritten, IngestError> {
        let Some((mut pieces, name)) = plain_pieces(query) else {
            return rewrite_query(query, &self.rules, &self.limits, out);
        };
        let Some(known) = self.names.get(name) else {
            let start = out.len();
            let rewritten = rewrite_query(query, &self.rules, &self.limits, out)?;
            self.remember(name, rewritten, &out[start..]);
            return Ok(rewritten);
        };
        let Some(known) = known else {
            return Ok(Rewritten::Dropped);
        };
        // SDKs that sort keys are the rule.
        if !pieces.is_sorted_by(|one, next| one.by_key(next).is_le()) {
            pieces.sort_by(Piece::by_key);
        }
        for (index, piece) in pieces.iter().enumerate() {
            if index > 0 {
                out.push(b'&');
            }
            if piece.is_name() {
                out.extend_from_slice(b"name=");
                out.extend_from_slice(known);
            } else {
                out.extend_from_slice(piece.bytes);
            }
        }
        Ok(Rewritten::Written)
    }

    /// Remembers what `name` became in the outgoing query `sent`.
    fn remember(&mut self, name: &[u8], rewritten: Rewritten, sent: &[u8]) {
        let became = sent
            .split(|byte| *byte == b'&')
            .find_map(|piece| piece.strip_prefix(b"name="));
        if (rewritten == Rewritten::Written) != became.is_some()
            || became.map_or(0, <[u8]>::len).max(name.len()) > NAME_BYTES_MAX
        {
            return;
        }
        if self.names.len() >= NAMES_MAX {
            self.names.clear();
        }
        self.names.insert(name.into(), became.map(Into::into));
    }
}

/// The pieces of a query that needs no decoding but for one `name`, and that name's value as it stands. `None` for any
/// other query.
fn plain_pieces(query: &[u8]) -> Option<(Pieces<'_>, &[u8])> {
    let mut pieces = Pieces::new();
    let mut name = None;
    let mut rest = query;
    loop {
        let key_len = plain_len(rest);
        if rest.get(key_len) != Some(&b'=') || pieces.len() == PIECES_MAX {
            return None;
        }
        let mut piece = Piece {
            bytes: rest,
            key_len,
            order: order_of(rest, key_len),
        };
        let value = &rest[key_len + 1..];
        let value_len = if piece.is_name() {
            let end = memchr::memchr2(b'&', b';', value).unwrap_or(value.len());
            if name.replace(&value[..end]).is_some() {
                return None;
            }
            end
        } else {
            plain_len(value)
        };
        let end = key_len + 1 + value_len;
        piece.bytes = &rest[..end];
        pieces.push(piece);
        match rest.get(end) {
            None => return Some((pieces, name?)),
            Some(b'&') => rest = &rest[end + 1..],
            Some(_) => return None,
        }
    }
}

/// How many bytes at the front the encoding leaves as they are.
fn plain_len(bytes: &[u8]) -> usize {
    let first_other = bytes.iter().position(|byte| !PLAIN[usize::from(*byte)]);
    first_other.unwrap_or(bytes.len())
}

/// [`query::is_plain`] of every byte.
static PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        plain[byte] = query::is_plain(byte as u8);
        byte += 1;
    }
    plain
};

/// The first eight bytes of `bytes[..key_len]`, the first one highest, zeros behind a shorter key.
fn order_of(bytes: &[u8], key_len: usize) -> u64 {
    let first = match bytes.first_chunk::<8>() {
        Some(first) => u64::from_be_bytes(*first),
        None => bytes
            .iter()
            .zip((0..8).rev())
            .fold(0, |order, (byte, place)| order | u64::from(*byte) << (8 * place)),
    };
    match key_len {
        0 => 0,
        1..8 => first >> (64 - 8 * key_len) << (64 - 8 * key_len),
        _ => first,
    }
}

/// Hashes names: a multiplication for eight bytes, where the standard library's hash takes some thirty instructions. Its
/// key is random; whoever found colliding names all the same would make a lookup compare with [`NAMES_MAX`] names at most.
#[derive(Clone, Copy, Debug)]
struct Keyed(u64);

impl BuildHasher for Keyed {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Keyed {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for Keyed {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.mix(u64::from_le_bytes(*word)));
        let rest = rest.iter().fold(1, |word, byte| word << 8 | u64::from(*byte));
        self.mix(rest);
    }

    fn write_usize(&mut self, number: usize) {
        self.mix(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::profile::relabel::{Action, Relabel, RuleSpec};

    fn rewriter() -> Rewriter {
        let drop_b = RuleSpec {
            action: Action::Drop,
            source_labels: vec!["service_name".into()],
            regex: "b.*".into(),
            ..RuleSpec::default()
        };
        let rules = LabelRules::new(vec![("region".into(), "eu".into())]).unwrap();
        let rules = rules.with_relabel(Relabel::new(&[drop_b]).unwrap());
        Rewriter::new(Arc::new(rules), LabelLimits::default())
    }

    type Outcome = Result<(Rewritten, Vec<u8>), IngestError>;

    fn both(rewriter: &mut Rewriter, query: &[u8]) -> (Outcome, Outcome) {
        let (mut fast, mut slow) = (b"x".to_vec(), b"x".to_vec());
        let fast_result = rewriter.rewrite(query, &mut fast);
        let slow_result = rewrite_query(query, &rewriter.rules, &rewriter.limits, &mut slow);
        (
            fast_result.map(|done| (done, fast)),
            slow_result.map(|done| (done, slow)),
        )
    }

    #[test]
    fn a_known_name_is_written_as_the_slow_way_writes_it() {
        let mut rewriter = rewriter();
        for query in [
            "until=2&from=1&name=app%7Bz=1%7D&a=3&a=1&format=pprof",
            "name=app%7Bz=1%7D",
            "name=app%7Bz=1%7D&name=b",
            "name=app%7Bz=1%7D&a=%20",
            "name=app%7Bz=1%7D&&a=1",
            "name=app%7Bz=1%7D&a",
            "name=app%7Bz=1%7D;x",
            "name=bpp&a=1",
            "=1&name=app%7Bz=1%7D",
            "name=",
            "a=1",
            "name=%",
            "",
        ] {
            for _ in 0..3 {
                let (fast, slow) = both(&mut rewriter, query.as_bytes());
                assert_eq!(fast, slow, "{query}");
            }
        }
        assert!(rewriter.names[&b"app%7Bz=1%7D"[..]].is_some());
        assert!(
            rewriter.names[&b"bpp"[..]].is_none(),
            "what is dropped is remembered, too"
        );
    }

    #[test]
    fn names_are_bounded_in_number_and_size() {
        let mut rewriter = rewriter();
        for number in 0..3 * NAMES_MAX {
            rewriter
                .rewrite(format!("name=app{number}").as_bytes(), &mut Vec::new())
                .unwrap();
            assert!(rewriter.names.len() <= NAMES_MAX);
        }
        let long = format!("name=app%7Ba={}%7D", "v".repeat(NAME_BYTES_MAX));
        let before = rewriter.names.len();
        rewriter.rewrite(long.as_bytes(), &mut Vec::new()).unwrap();
        assert_eq!(rewriter.names.len(), before);
    }

    proptest! {
        /// Queries made of what queries are made of: fast and slow agree, first, second and third time.
        #[test]
        fn fast_equals_slow(queries in prop::collection::vec(
            prop::collection::vec(
                prop_oneof![
                    Just("name=a"), Just("name=a%7Bb%3Dc%7D"), Just("name=b+c"), Just("name"), Just("name=%zz"),
                    Just("a=1"), Just("a=2"), Just("b"), Just("c=%41"), Just(""), Just("d=~x"), Just("na%6de=q"),
                    Just("z=;"), Just("=v"), Just("name=a{b=c}"), Just("Name=x"), Just("e=ü"),
                ], 0..20),
            1..8,
        )) {
            let mut rewriter = rewriter();
            for _ in 0..3 {
                for pieces in &queries {
                    let (fast, slow) = both(&mut rewriter, pieces.join("&").as_bytes());
                    prop_assert_eq!(fast, slow);
                }
            }
        }
    }
}
