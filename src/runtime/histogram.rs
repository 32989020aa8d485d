//! A histogram of durations that one core writes and the admin page reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets with fixed upper bounds, as Prometheus wants them. One writer: a relaxed load and store, no locked
/// instruction.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [f64; N],
    buckets: [AtomicU64; N],
    beyond: AtomicU64,
    nanos: AtomicU64,
}

/// A reading: counts per bucket (not cumulative), what lay beyond the last bound, and the sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Upper bound in seconds, and observations in that bucket alone.
    pub buckets: Vec<(f64, u64)>,
    /// Observations above the last bound.
    pub beyond: u64,
    /// Sum of all observations in seconds.
    pub seconds: f64,
}

impl<const N: usize> Histogram<N> {
    /// An empty histogram over ascending `bounds`, in seconds.
    pub const fn new(bounds: &'static [f64; N]) -> Self {
        Self {
            bounds,
            buckets: [const { AtomicU64::new(0) }; N],
            beyond: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
        }
    }

    /// Takes over what `past` has counted. Before the first observation.
    pub fn continue_from(&self, past: &Self) {
        let cells = [(&self.beyond, &past.beyond), (&self.nanos, &past.nanos)];
        for (to, from) in cells.into_iter().chain(self.buckets.iter().zip(&past.buckets)) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Adds one observation. Only the owning core may call it.
    pub fn observe(&self, value: Duration) {
        let seconds = value.as_secs_f64();
        let place = self.bounds.iter().position(|bound| seconds <= *bound);
        add(place.map_or(&self.beyond, |index| &self.buckets[index]), 1);
        add(&self.nanos, u64::try_from(value.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Reads it, from any thread.
    pub fn read(&self) -> Reading {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Reading {
            buckets: self.bounds.iter().copied().zip(self.buckets.iter().map(load)).collect(),
            beyond: load(&self.beyond),
            #[allow(clippy::cast_precision_loss)] // a sum for graphs
            seconds: load(&self.nanos) as f64 / 1e9,
        }
    }
}

impl Reading {
    /// All observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum::<u64>() + self.beyond
    }

    /// Adds another core's reading of the same histogram.
    pub fn merge(&mut self, other: &Self) {
        for ((_, count), (_, more)) in self.buckets.iter_mut().zip(&other.buckets) {
            *count += more;
        }
        self.beyond += other.beyond;
        self.seconds += other.seconds;
    }

    /// The upper bound of the bucket that the `share`-quantile lies in, in seconds; `None` without observations or when
    /// it lies beyond the last bound.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss
        )]
        let rank = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        self.buckets.iter().find_map(|(bound, count)| {
            seen += count;
            (seen >= rank && rank > 0).then_some(*bound)
        })
    }
}

/// Adds to a cell that this thread alone writes.
pub fn add(cell: &AtomicU64, amount: u64) {
    cell.store(
        cell.load(Ordering::Relaxed).wrapping_add(amount),
        Ordering::Relaxed,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_land_in_their_bucket() {
        static BOUNDS: [f64; 3] = [0.01, 0.1, 1.0];
        let histogram = Histogram::new(&BOUNDS);
        for millis in [5, 10, 11, 500, 2000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut reading = histogram.read();
        assert_eq!(reading.buckets, [(0.01, 2), (0.1, 1), (1.0, 1)]);
        assert_eq!((reading.beyond, reading.count()), (1, 5));
        assert!((reading.seconds - 2.526).abs() < 1e-9);
        assert_eq!(
            [
                reading.quantile(0.4),
                reading.quantile(0.5),
                reading.quantile(1.0)
            ],
            [Some(0.01), Some(0.1), None]
        );
        reading.merge(&histogram.read());
        assert_eq!(reading.count(), 10);
    }
}
