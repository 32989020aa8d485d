//! The only place that reads a clock: everything else takes a [`Mono`] or unix time as an argument.
//!
//! A reading costs 20 to 60 ns, which is a lot for a push that costs a few microseconds of our own time: what happens in
//! the same turn of a core's loop shares one ([`recent`]), and wall-clock times are worked out from monotonic ones
//! ([`unix_ms`]).

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What the clock shows at the first call in this process, in nanoseconds: 20 years, more than the longest duration that a
/// flag takes, so that what an earlier process accepted (and the spool kept) has its place before it.
const ORIGIN: u64 = 20 * 365 * 24 * 3600 * 1_000_000_000;

/// Nanoseconds on a clock of this process: never goes back, not affected by changes of the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mono(pub u64);

impl Mono {
    /// A moment that no deadline reaches.
    pub const NEVER: Self = Self(u64::MAX);

    /// The time from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// `self` moved on by `by`, stopping at [`Mono::NEVER`].
    pub fn after(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// The next moment, from `self` on, that is a multiple of `step`: those of many are the same.
    #[must_use]
    pub fn round_up(self, step: Duration) -> Self {
        let step = u64::try_from(step.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self(self.0.checked_next_multiple_of(step).unwrap_or(u64::MAX))
    }

    /// `self` moved back by `by`, stopping at zero.
    pub fn before(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// What the clocks show that outlive the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wall {
    /// Milliseconds since the unix epoch. Jumps when somebody sets it.
    pub unix_ms: u64,
    /// Milliseconds since the machine booted, sleep included. Never jumps.
    pub boot_ms: u64,
}

thread_local! {
    static RECENT: Cell<Mono> = const { Cell::new(Mono(0)) };
}

/// Wall clock minus monotonic clock, in milliseconds, when last looked at; `i64::MIN` = never.
static WALL_OFFSET_MS: AtomicI64 = AtomicI64::new(i64::MIN);

/// Monotonic now.
#[allow(clippy::disallowed_methods)] // the one reader of the monotonic clock
pub fn now() -> Mono {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    let now = Mono(ORIGIN).after(start.elapsed());
    RECENT.set(now);
    now
}

/// Time since the first call of [`now`] in this process, which is while it starts.
pub fn uptime() -> Duration {
    now().since(Mono(ORIGIN))
}

/// The latest reading of [`now`] on this thread: exact where the same turn of the loop has called it, and on a core never
/// older than `sweeper::SWEEP_EVERY` and the turn at hand.
pub fn recent() -> Mono {
    RECENT.get()
}

/// The wall-clock time at `at`, in milliseconds since the unix epoch. A step of the wall clock is followed by the next
/// [`follow_wall_clock`].
pub fn unix_ms(at: Mono) -> u64 {
    let mut offset = WALL_OFFSET_MS.load(Ordering::Relaxed);
    if offset == i64::MIN {
        offset = follow_wall_clock();
    }
    (at.0 / 1_000_000).saturating_add_signed(offset)
}

/// Compares the two clocks. Cores do so at every sweep.
pub fn follow_wall_clock() -> i64 {
    let unix_ms = i64::try_from(unix_now().as_millis()).unwrap_or(i64::MAX);
    let offset = unix_ms.saturating_sub_unsigned(now().0 / 1_000_000);
    WALL_OFFSET_MS.store(offset, Ordering::Relaxed);
    offset
}

/// Both clocks that outlive the process.
pub fn wall() -> Wall {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(boot.tv_sec).unwrap_or_default();
    Wall {
        unix_ms: u64::try_from(unix_now().as_millis()).unwrap_or(u64::MAX),
        boot_ms: seconds * 1_000 + u64::try_from(boot.tv_nsec / 1_000_000).unwrap_or_default(),
    }
}

/// A number that tells this boot of the machine from others. Where the kernel does not say, it is this process's own.
pub fn boot() -> u64 {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let id = id.and_then(|id| uuid::Uuid::parse_str(id.trim()).ok());
    id.unwrap_or_else(uuid::Uuid::new_v4).as_u64_pair().0
}

/// Wall-clock time since the unix epoch; zero if the clock stands before it.
#[allow(clippy::disallowed_methods)] // the one reader of the wall clock
pub fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_never_go_below_zero() {
        let early = now();
        let late = early.after(Duration::from_millis(3));
        assert_eq!(late.since(early), Duration::from_millis(3));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(Mono::NEVER.after(Duration::from_secs(1)), Mono::NEVER);
    }

    #[test]
    fn wall_clock_times_follow_from_monotonic_ones() {
        follow_wall_clock();
        let at = now();
        assert_eq!(recent(), at);
        let unix = u64::try_from(unix_now().as_millis()).unwrap();
        assert!(
            unix_ms(at).abs_diff(unix) < 5_000,
            "a wall clock that was not set meanwhile"
        );
        assert_eq!(unix_ms(at.after(Duration::from_secs(7))), unix_ms(at) + 7_000);
    }
}
