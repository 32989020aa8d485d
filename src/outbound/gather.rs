//! One vectored write: the head of a parcel and the segments of its body, referenced where they lie.
//!
//! The kernel reads the memory that the entries point to while a write is in flight, so the memory is owned by the same
//! value: the head by [`Gather`] itself, the segments by the push that it holds.
#![allow(unsafe_code)]

use std::sync::Arc;

use monoio::buf::IoVecBuf;

use crate::fanout::Push;

/// Entries that one system call takes (IOV_MAX, limits.h).
const ENTRIES_MAX: usize = 1024;

/// What is kept for the next message: entries, and bytes of its head.
const ENTRIES_KEPT: usize = 256;
const HEAD_BYTES_KEPT: usize = 16 << 10;

/// A message on its way out. Reused for every message of a connection, so that nothing is allocated in between.
#[derive(Default)]
pub struct Gather {
    head: Vec<u8>,
    push: Option<Arc<Push>>,
    /// INVARIANT: each entry points into `head` or into a segment of `push`, neither of which changes while entries
    /// exist; `entries[..done]` are written, `entries[done]` has been moved on by what is written of it.
    entries: Vec<libc::iovec>,
    done: usize,
}

impl Gather {
    /// Sets the message: `write_head` fills the (emptied) head, the body is that of `push`.
    pub fn load(&mut self, push: &Arc<Push>, write_head: impl FnOnce(&mut Vec<u8>)) {
        self.clear();
        write_head(&mut self.head);
        self.push = Some(push.clone());
        self.entries.push(entry(&self.head));
        self.entries.extend(
            push.segments
                .iter()
                .filter(|segment| !segment.is_empty())
                .map(|bytes| entry(bytes)),
        );
    }

    /// Lets go of the message's memory.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.entries.shrink_to(ENTRIES_KEPT);
        self.done = 0;
        self.head.clear();
        self.head.shrink_to(HEAD_BYTES_KEPT);
        self.push = None;
    }

    /// Whether all of it is out.
    pub fn is_out(&self) -> bool {
        self.done == self.entries.len()
    }

    /// What is not out yet, in order: for a writer that does not take the entries themselves (TLS).
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.entries[self.done..].iter().map(|entry| {
            // SAFETY: the entry points to iov_len bytes that `self` owns and does not change while it is borrowed.
            unsafe { std::slice::from_raw_parts(entry.iov_base.cast::<u8>(), entry.iov_len) }
        })
    }

    /// Notes that `written` bytes are out. Returns whether all are.
    pub fn advance(&mut self, mut written: usize) -> bool {
        while let Some(next) = self.entries.get_mut(self.done) {
            if written < next.iov_len {
                // SAFETY: written < iov_len, so the result stays inside the same allocation.
                next.iov_base = unsafe { next.iov_base.cast::<u8>().add(written) }.cast();
                next.iov_len -= written;
                return false;
            }
            written -= next.iov_len;
            self.done += 1;
        }
        debug_assert_eq!(written, 0, "more written than there was");
        true
    }
}

fn entry(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

// SAFETY: the entries live on the heap and are not touched while the runtime owns the value, and what they point to is
// owned by the same value (see INVARIANT). The count never goes beyond the vector.
unsafe impl IoVecBuf for Gather {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        self.entries[self.done..].as_ptr()
    }

    fn read_iovec_len(&self) -> usize {
        (self.entries.len() - self.done).min(ENTRIES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::fanout::AckMode;
    use crate::fanout::push::tests::push;

    fn remaining(gather: &Gather) -> Vec<u8> {
        gather.pieces().collect::<Vec<_>>().concat()
    }

    #[test]
    fn any_split_of_writes_sends_the_same_bytes() {
        let mut model = push(0, AckMode::Detached, 1);
        model.segments = ["hello ", "", "wide ", "world"]
            .map(|text| Bytes::from_static(text.as_bytes()))
            .into();
        let model = Arc::new(model);
        let whole = b"HEAD hello wide world";
        for step in 1..=whole.len() {
            let mut gather = Gather::default();
            gather.load(&model, |head| head.extend_from_slice(b"HEAD "));
            let mut sent = Vec::new();
            loop {
                let rest = remaining(&gather);
                let written = rest.len().min(step);
                sent.extend_from_slice(&rest[..written]);
                if gather.advance(written) {
                    break;
                }
            }
            assert_eq!(sent, whole, "step {step}");
            assert_eq!(gather.read_iovec_len(), 0);
        }
    }

    #[test]
    fn segments_are_referenced_where_they_lie() {
        let body = Bytes::from(vec![7u8; 100]);
        let mut parts = push(0, AckMode::Detached, 1);
        parts.segments = [body.clone()].into_iter().collect();
        let mut gather = Gather::default();
        gather.load(&Arc::new(parts), |head| head.push(b'h'));
        assert_eq!(gather.entries[1].iov_base.cast_const().cast(), body.as_ptr());
    }
}
