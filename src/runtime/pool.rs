//! Receive buffers, and the count of the memory that bodies hold.
//!
//! A [`Buffer`] is filled by the kernel, then frozen into `Bytes`; the segments of a body are slices of it. When the
//! last segment is gone the memory returns to the pool of the core that dropped it, or to the allocator when that pool
//! is full or the thread is no core (spools, archives, the control plane). Nothing is zeroed and nothing is copied.
//!
//! ```text
//!  acquire(want) ─▶ Buffer ──recv──▶ Buffer ──freeze(charge)──▶ Bytes ─slice▶ segments ──▶ last drop
//!      ▲                                                                                      │
//!      └───────────────────────────── pool of this core (≤ POOL_BYTES_MAX) ◀──────────────────┘ charge released
//! ```
//! The charge is the buffer's whole capacity: what a segment pins, not what it shows, so that `--memory-limit` is a
//! statement about resident memory.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// Idle buffers one core keeps, in bytes: small enough to stay in the last-level cache, enough for 64 bodies of 64 KiB.
const POOL_BYTES_MAX: usize = 4 << 20;
/// The smallest buffer, in bytes: a head and a small body.
pub const BUFFER_BYTES_MIN: usize = 2 << 10;
/// Size classes: four steps per doubling from [`BUFFER_BYTES_MIN`], so that a buffer wastes at most a fifth; the largest
/// class is 1 MiB + head, bigger buffers go straight to the allocator.
const CLASSES: usize = 40;

/// The bytes of body memory held in this process, against `--memory-limit`.
#[derive(Debug)]
pub struct MemoryBudget {
    used: AtomicU64,
    limit: u64,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicU64::new(0),
            limit,
        })
    }

    /// Takes `bytes` if they fit; the charge gives them back when dropped.
    pub fn try_charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let wanted = bytes as u64;
        let before = self.used.fetch_add(wanted, Ordering::Relaxed);
        if before.saturating_add(wanted) > self.limit {
            self.used.fetch_sub(wanted, Ordering::Relaxed);
            return None;
        }
        Some(Charge {
            budget: self.clone(),
            bytes: wanted,
        })
    }

    /// Bytes held now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }
}

/// Bytes taken from a [`MemoryBudget`], given back on drop.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Charge {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Memory that the kernel receives into. Its length is what has been received so far.
pub type Buffer = Vec<u8>;

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool {
        classes: std::array::from_fn(|_| Vec::new()),
        bytes: 0,
        bytes_max: 0,
    });
}

struct Pool {
    classes: [Vec<Buffer>; CLASSES],
    bytes: usize,
    /// `bytes ≤ bytes_max`.
    bytes_max: usize,
}

/// This thread is a core: it keeps idle buffers.
pub fn keep_idle_buffers() {
    POOL.with_borrow_mut(|pool| pool.bytes_max = POOL_BYTES_MAX);
}

/// An empty buffer with room for at least `want` bytes, its capacity rounded up to a size class.
pub fn acquire(want: usize) -> Buffer {
    let (class, capacity) = class_of(want);
    if class < CLASSES {
        let pooled = POOL.with_borrow_mut(|pool| {
            let buffer = pool.classes[class].pop();
            pool.bytes -= buffer.as_ref().map_or(0, Vec::capacity);
            buffer
        });
        if let Some(buffer) = pooled {
            return buffer;
        }
    }
    Vec::with_capacity(capacity)
}

/// The capacity that [`acquire`] gives for `want`, in bytes: what to charge before acquiring.
pub fn capacity_for(want: usize) -> usize {
    class_of(want).1
}

/// Gives memory back to this core's pool, or to the allocator when the pool is full or the size is no class.
pub fn release(mut buffer: Buffer) {
    let capacity = buffer.capacity();
    let (class, class_capacity) = class_of(capacity);
    if class >= CLASSES || class_capacity != capacity {
        return;
    }
    buffer.clear();
    // A thread that is going away has no pool any more: the memory just goes.
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.bytes + capacity <= pool.bytes_max {
            pool.bytes += capacity;
            pool.classes[class].push(buffer);
        }
    });
}

/// Makes received bytes immutable and shareable. The charge is held as long as any slice lives.
pub fn freeze(buffer: Buffer, charge: Option<Charge>) -> Bytes {
    Bytes::from_owner(Frozen {
        buffer,
        _charge: charge,
    })
}

/// Ties a charge to the life of `bytes` that somebody else allocated (an inflated body).
pub fn hold_charge(bytes: Bytes, charge: Charge) -> Bytes {
    Bytes::from_owner(Charged {
        bytes,
        _charge: charge,
    })
}

struct Charged {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

struct Frozen {
    buffer: Buffer,
    _charge: Option<Charge>,
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        release(std::mem::take(&mut self.buffer));
    }
}

/// The class of a size and the capacity of that class; `CLASSES` and the size itself when it is beyond the largest.
fn class_of(size: usize) -> (usize, usize) {
    if size <= BUFFER_BYTES_MIN {
        return (0, BUFFER_BYTES_MIN);
    }
    // size lies in (2^e, 2^(e+1)], cut in four steps.
    let exponent = (size - 1).ilog2();
    let base = 1usize << exponent;
    let step = base / 4;
    let steps = (size - base).div_ceil(step);
    let class = (exponent - BUFFER_BYTES_MIN.ilog2()) as usize * 4 + steps;
    if class < CLASSES {
        (class, base + steps * step)
    } else {
        (CLASSES, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_was_asked_and_waste_at_most_a_fifth() {
        let mut last = (0, BUFFER_BYTES_MIN);
        for size in (1..1_300_000).step_by(97) {
            let (class, capacity) = class_of(size);
            assert!(capacity >= size, "{size} -> {capacity}");
            if size > BUFFER_BYTES_MIN {
                assert!((capacity - size) * 5 <= capacity, "{size} -> {capacity}");
            }
            assert!(class >= last.0 && capacity >= last.1);
            if class < CLASSES {
                assert_eq!(class_of(capacity), (class, capacity), "a class maps to itself");
            }
            last = (class, capacity);
        }
    }

    #[test]
    fn only_cores_keep_idle_buffers() {
        let kept = || POOL.with_borrow(|pool| pool.bytes);
        std::thread::spawn(move || {
            release(acquire(4096));
            assert_eq!(kept(), 0);
            keep_idle_buffers();
            release(acquire(4096));
            assert_eq!(kept(), 4096);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn memory_returns_to_the_pool_with_the_last_slice() {
        keep_idle_buffers();
        let budget = MemoryBudget::new(10_000);
        let mut buffer = acquire(4096);
        buffer.extend_from_slice(b"hello");
        let address = buffer.as_ptr();
        let charge = budget.try_charge(buffer.capacity());
        assert!(charge.is_some());
        let bytes = freeze(buffer, charge);
        assert_eq!(bytes.as_ptr(), address);
        let slice = bytes.slice(1..);
        drop(bytes);
        assert_eq!(budget.used(), 4096);
        drop(slice);
        assert_eq!(budget.used(), 0);
        let again = acquire(4096);
        assert_eq!(again.as_ptr(), address);
    }

    #[test]
    fn a_charge_beyond_the_limit_is_refused_and_leaves_no_trace() {
        let budget = MemoryBudget::new(100);
        let first = budget.try_charge(60);
        assert!(first.is_some());
        assert!(budget.try_charge(41).is_none());
        assert_eq!(budget.used(), 60);
        assert!(budget.try_charge(40).is_some());
    }
}
