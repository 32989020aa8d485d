//! The only place that reads a clock: everything else takes a [`Mono`] or unix time as an argument.

use std::sync::OnceLock;
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

    /// `self` moved back by `by`, stopping at zero.
    pub fn before(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// Monotonic now. About 25 ns (vDSO).
#[allow(clippy::disallowed_methods)] // the one reader of the monotonic clock
pub fn now() -> Mono {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    Mono(ORIGIN).after(start.elapsed())
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
}
