//! What happens when this process runs out of file descriptors: it is counted, told once in a while, and a client
//! connection that idles is closed to make room, on whichever core there is one; so is, each second, half of the connections
//! to destinations that idle. A few are put by for whoever asks what is wrong.
//!
//! One limit for the whole process, so one state for the whole process. Not responsible for waiting: whoever could not get
//! a descriptor tries again after [`SHORTAGE_PAUSE`], when it [may](may_try_again).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::clock::{self, Mono};

/// How long to wait before the next try for a descriptor.
pub const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);
/// A shortage is logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// A wish for room that nobody could grant is forgotten after this time.
const WISH_KEPT: Duration = Duration::from_secs(1);

/// Descriptors put by for the admin port: two scrapers, a probe and a person.
const RESERVED: usize = 4;

/// Who needed a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A client that wants to be accepted.
    Inbound,
    /// A connection to a destination.
    Outbound,
}

impl Side {
    /// Every side, in the order of its index.
    pub const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The `side` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

static SHORTAGES: [AtomicU64; Side::ALL.len()] = [const { AtomicU64::new(0) }; Side::ALL.len()];
/// When the next line may be logged, in [`Mono`] nanoseconds.
static QUIET_UNTIL: AtomicU64 = AtomicU64::new(0);
/// Until when room is wished for, likewise; 0 for not at all.
static WISHED_UNTIL: AtomicU64 = AtomicU64::new(0);

static RESERVE: Mutex<Reserve> = Mutex::new(Reserve {
    wanted: 0,
    kept: Vec::new(),
});

#[derive(Debug)]
struct Reserve {
    /// How many there should be: none in a process that has no admin port.
    wanted: usize,
    /// Each is open, so that nobody else has its number.
    kept: Vec<OwnedFd>,
}

impl Reserve {
    fn fill(&mut self) {
        while self.kept.len() < self.wanted
            && let Ok(spare) = eventfd(0, EventfdFlags::CLOEXEC)
        {
            self.kept.push(spare);
        }
    }
}

/// From now on a few descriptors are put by, for an admin port.
pub fn keep_reserve() {
    borrow().0.wanted = RESERVED;
}

/// The reserve, for somebody who takes a descriptor of it or gives one back. Until it is dropped nobody else tries again
/// after a shortage; then what is missing is put by, as far as it can be had.
#[derive(Debug)]
pub struct Borrowed(MutexGuard<'static, Reserve>);

/// Borrows the reserve, for as long as a system call takes.
pub fn borrow() -> Borrowed {
    Borrowed(RESERVE.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Borrowed {
    /// Closes a descriptor that was put by. Returns whether there was one.
    pub fn spend(&mut self) -> bool {
        self.0.kept.pop().is_some()
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.0.fill();
    }
}

/// Does what needs a descriptor for a moment, with one of the reserve where there is no other.
pub fn lend<T>(mut open_and_close: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match open_and_close() {
        Err(error) if is_shortage(&error) => {
            let mut reserve = borrow();
            if reserve.spend() {
                open_and_close()
            } else {
                Err(error)
            }
        }
        result => result,
    }
}

/// Whether one who could not get a descriptor may try again: not while the reserve is in use, and what has become free goes
/// to the reserve first.
pub fn may_try_again() -> bool {
    match RESERVE.try_lock() {
        Ok(mut reserve) => {
            reserve.fill();
            true
        }
        Err(TryLockError::Poisoned(_)) => true,
        Err(TryLockError::WouldBlock) => false,
    }
}

/// Whether `error` says that there is no descriptor left, for this process (EMFILE) or the whole system (ENFILE).
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Notes that `side` could not get a descriptor, and wishes for room.
pub fn ran_out(side: Side) {
    SHORTAGES[side as usize].fetch_add(1, Ordering::Relaxed);
    let now = clock::now();
    WISHED_UNTIL.store(now.after(WISH_KEPT).0, Ordering::Relaxed);
    let quiet = QUIET_UNTIL.load(Ordering::Relaxed);
    let is_ours = || {
        let next = now.after(LOG_EVERY).0;
        let swapped = QUIET_UNTIL.compare_exchange(quiet, next, Ordering::Relaxed, Ordering::Relaxed);
        swapped.is_ok()
    };
    if now.0 >= quiet && is_ours() {
        tracing::error!(
            side = side.label(),
            shortages = shortages(side),
            "out of file descriptors: idle connections make room, new clients and profiles wait; raise the limit of open files (ulimit -n)"
        );
    }
}

/// How often `side` could not get one.
pub fn shortages(side: Side) -> u64 {
    SHORTAGES[side as usize].load(Ordering::Relaxed)
}

/// Whether somebody wishes for room.
pub fn is_room_wished(now: Mono) -> bool {
    now.0 < WISHED_UNTIL.load(Ordering::Relaxed)
}

/// Room has been made.
pub(super) fn grant_room() {
    WISHED_UNTIL.store(0, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_counted_and_wishes_for_room_for_a_while() {
        let before = shortages(Side::Outbound);
        ran_out(Side::Outbound);
        assert_eq!(shortages(Side::Outbound), before + 1);
        assert!(is_room_wished(clock::now()));
        assert!(!is_room_wished(clock::now().after(2 * WISH_KEPT)));
        grant_room();
        assert!(!is_room_wished(clock::now()));
    }

    #[test]
    fn only_a_lack_of_descriptors_is_one() {
        for (errno, expected) in [
            (libc::EMFILE, true),
            (libc::ENFILE, true),
            (libc::ECONNREFUSED, false),
        ] {
            assert_eq!(is_shortage(&io::Error::from_raw_os_error(errno)), expected);
        }
    }
}
