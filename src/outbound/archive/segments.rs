//! A run of body bytes as the slices it lies in. Responsible for cutting without copying; not for what the bytes mean.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use bytes::{Buf, Bytes};

/// Slices in order. Cutting and cloning cost reference counts, never bytes.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    /// INVARIANT: none is empty, and their lengths add up to `length`.
    slices: VecDeque<Bytes>,
    length: usize,
}

impl<'a> FromIterator<&'a Bytes> for Segments {
    fn from_iter<I: IntoIterator<Item = &'a Bytes>>(slices: I) -> Self {
        let slices: VecDeque<Bytes> = slices
            .into_iter()
            .filter(|slice| !slice.is_empty())
            .cloned()
            .collect();
        let length = slices.iter().map(Bytes::len).sum();
        Self { slices, length }
    }
}

impl From<Vec<u8>> for Segments {
    fn from(bytes: Vec<u8>) -> Self {
        [Bytes::from(bytes)].iter().collect()
    }
}

impl Segments {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Cuts the first `count` bytes off; `None` if there are fewer.
    pub fn cut(&mut self, count: usize) -> Option<Segments> {
        if count > self.length {
            return None;
        }
        let mut taken = Segments::default();
        while taken.length < count {
            let mut first = self.slices.pop_front()?;
            let wanted = count - taken.length;
            if wanted < first.len() {
                self.slices.push_front(first.split_off(wanted));
            }
            taken.length += first.len();
            self.length -= first.len();
            taken.slices.push_back(first);
        }
        Some(taken)
    }

    /// The bytes of `range`; none if it is not inside.
    pub fn range(&self, range: Range<usize>) -> Segments {
        let mut rest = self.clone();
        rest.cut(range.start)
            .and_then(|_| rest.cut(range.len()))
            .unwrap_or_default()
    }

    /// Everything in one piece: borrowed where it lies in one slice already, else copied together.
    pub fn contiguous(&self) -> Cow<'_, [u8]> {
        match self.slices.len() {
            0 => Cow::Borrowed(&[]),
            1 => Cow::Borrowed(&self.slices[0]),
            _ => {
                let mut whole = Vec::with_capacity(self.length);
                self.slices
                    .iter()
                    .for_each(|slice| whole.extend_from_slice(slice));
                Cow::Owned(whole)
            }
        }
    }

    /// Up to `count` bytes from the start, copied.
    pub fn head(&self, count: usize) -> Vec<u8> {
        self.slices.iter().flatten().take(count).copied().collect()
    }
}

impl Buf for Segments {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        self.slices.front().map_or(&[], |slice| slice)
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.length, "cannot advance beyond the end");
        let mut left = count;
        while let Some(first) = self.slices.front_mut() {
            if left < first.len() {
                first.advance(left);
                break;
            }
            left -= first.len();
            self.slices.pop_front();
        }
        self.length -= count;
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let filled = out.len().min(self.slices.len());
        for (entry, slice) in out.iter_mut().zip(&self.slices) {
            *entry = IoSlice::new(slice);
        }
        filled
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `bytes` in slices of `step`, with empty ones between them.
    pub(in super::super) fn split(bytes: &[u8], step: usize) -> Segments {
        let slices: Vec<Bytes> = bytes
            .chunks(step.max(1))
            .flat_map(|chunk| [Bytes::copy_from_slice(chunk), Bytes::new()])
            .collect();
        slices.iter().collect()
    }

    #[test]
    fn every_cut_of_every_split_gives_the_same_bytes() {
        let whole = b"hello wide world";
        for step in 1..=whole.len() {
            for at in 0..=whole.len() {
                let mut rest = split(whole, step);
                let first = rest.cut(at).unwrap();
                assert_eq!((first.len(), rest.len()), (at, whole.len() - at));
                assert_eq!(&*first.contiguous(), &whole[..at]);
                assert_eq!(&*rest.contiguous(), &whole[at..]);
                let mut advanced = split(whole, step);
                advanced.advance(at);
                assert_eq!(&*advanced.contiguous(), &whole[at..]);
                assert_eq!(
                    &*split(whole, step).range(at..whole.len()).contiguous(),
                    &whole[at..]
                );
            }
            assert!(split(whole, step).cut(whole.len() + 1).is_none());
            assert!(split(whole, step).range(3..whole.len() + 1).is_empty());
            assert_eq!(split(whole, step).head(5), b"hello");
        }
    }

    #[test]
    fn cutting_copies_nothing() {
        let segments = split(b"hello wide world", 8);
        let part = segments.range(2..12);
        assert_eq!(part.chunk().as_ptr(), segments.chunk()[2..].as_ptr());
    }
}
