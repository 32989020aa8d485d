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

/// A message on its way out. Reused for every message of a connection, so that nothing is allocated in between. One pointer
/// wide, because a write passes it on from layer to layer and back.
#[derive(Default)]
pub struct Gather(Box<Message>);

#[derive(Default)]
struct Message {
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
        let message = &mut *self.0;
        write_head(&mut message.head);
        message.push = Some(push.clone());
        message.entries.push(entry(&message.head));
        message.entries.extend(
            push.segments
                .iter()
                .filter(|segment| !segment.is_empty())
                .map(|bytes| entry(bytes)),
        );
    }

    /// Lets go of the message's memory.
    pub fn clear(&mut self) {
        let message = &mut *self.0;
        message.entries.clear();
        message.entries.shrink_to(ENTRIES_KEPT);
        message.done = 0;
        message.head.clear();
        message.head.shrink_to(HEAD_BYTES_KEPT);
        message.push = None;
    }

    /// Whether all of it is out.
    pub fn is_out(&self) -> bool {
        self.0.done == self.0.entries.len()
    }

    /// What is not out yet, in order: for a writer that does not take the entries themselves (TLS).
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.0.entries[self.0.done..].iter().map(|entry| {
            // SAFETY: the entry points to iov_len bytes that `self` owns and does not change while it is borrowed.
            unsafe { std::slice::from_raw_parts(entry.iov_base.cast::<u8>(), entry.iov_len) }
        })
    }

    /// Notes that `written` bytes are out. Returns whether all are.
    pub fn advance(&mut self, mut written: usize) -> bool {
        let message = &mut *self.0;
        while let Some(next) = message.entries.get_mut(message.done) {
            if written < next.iov_len {
                // SAFETY: written < iov_len, so the result stays inside the same allocation.
                next.iov_base = unsafe { next.iov_base.cast::<u8>().add(written) }.cast();
                next.iov_len -= written;
                return false;
            }
            written -= next.iov_len;
            message.done += 1;
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
        self.0.entries[self.0.done..].as_ptr()
    }

    fn read_iovec_len(&self) -> usize {
        (self.0.entries.len() - self.0.done).min(ENTRIES_MAX)
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
        assert_eq!(gather.0.entries[1].iov_base.cast_const().cast(), body.as_ptr());
    }
}
