//! How long to wait before a retry. Pure.
//!
//! The intervals are those of dskit, which Alloy uses (WIRE.md 4.4): before retry r the wait is uniform in
//! `[min·2^(r−1), min·2^r)` with the upper end capped at `max`, and once that is reached the interval stays; and never
//! shorter than the destination's `Retry-After`.

use std::time::Duration;

/// The wait before retry `retry` (counted from 1). `random` is uniform in `[0, 1)`.
pub fn wait(
    retry: u32,
    min: Duration,
    max: Duration,
    retry_after: Option<Duration>,
    random: f64,
) -> Duration {
    let mut low = min;
    // At most 64 rounds: a duration does not double more often before it is beyond every limit.
    for _ in 1..retry.min(64) {
        // The last interval is the one that reaches the cap; from then on dskit keeps it.
        if low.saturating_mul(2) >= max {
            break;
        }
        low *= 2;
    }
    let high = low.saturating_mul(2).min(max);
    let own = low + high.saturating_sub(low).mul_f64(random);
    own.max(retry_after.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn waits_lie_in_the_intervals_of_the_contract() {
        for (retry, low, high) in [
            (1, 500, 1000),
            (2, 1000, 2000),
            (3, 2000, 4000),
            (9, 128_000, 256_000),
            (10, 256_000, 300_000),
            (11, 256_000, 300_000),
            (99, 256_000, 300_000),
        ] {
            assert_eq!(
                wait(retry, MS(500), MS(300_000), None, 0.0),
                MS(low),
                "retry {retry}"
            );
            let most = wait(retry, MS(500), MS(300_000), None, 0.999_999);
            assert!(
                most > MS(high) - MS(1) && most < MS(high),
                "retry {retry}: {most:?}"
            );
        }
    }

    #[test]
    fn no_retry_number_overflows() {
        for retry in [0, 11, 32, 1000, u32::MAX] {
            let waited = wait(retry, MS(500), MS(300_000), None, 0.5);
            assert!(waited >= MS(500) && waited <= MS(300_000), "{retry}: {waited:?}");
        }
        assert_eq!(
            wait(1, MS(500), MS(500), None, 0.5),
            MS(500),
            "one bound for both"
        );
    }

    #[test]
    fn the_destination_may_ask_for_longer_not_for_shorter() {
        assert_eq!(wait(1, MS(500), MS(1000), Some(MS(7000)), 0.0), MS(7000));
        assert_eq!(wait(1, MS(500), MS(1000), Some(MS(1)), 0.0), MS(500));
    }
}
