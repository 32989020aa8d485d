//! The last two minutes of every destination, one sample a second, for rates, curves and recent latencies.
//!
//! Bound: [`SAMPLES_MAX`] samples of at most 64 destinations, about 150 bytes each: 1.2 MB at most, 40 KB for two
//! destinations. Not responsible for the counters themselves, which only grow.

use std::collections::VecDeque;
use std::time::Duration;

use super::Observed;
use super::metrics::books;
use crate::fanout::DestinationId;
use crate::fanout::gate::Books;
use crate::fanout::status::{Span, Status};
use crate::profile::route::Route;
use crate::runtime::clock::Mono;
use crate::runtime::histogram::Reading;

/// Samples kept: two minutes and the point that the first second is measured from.
pub const SAMPLES_MAX: usize = 121;
/// What a rate is averaged over: steady enough to read, quick enough to believe.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// What "recent" means for latencies and drops.
pub const RECENT: Duration = Duration::from_secs(60);

/// The recent past.
#[derive(Debug, Default)]
pub struct History {
    samples: VecDeque<Sample>,
}

#[derive(Debug)]
struct Sample {
    at: Mono,
    points: Vec<(DestinationId, Point)>,
}

/// One destination at one moment. Everything in it only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Parcels taken in.
    pub accepted: u64,
    /// Parcels delivered.
    pub delivered: u64,
    /// Body bytes delivered.
    pub delivered_bytes: u64,
    /// Parcels dropped.
    pub dropped: u64,
    /// Single attempts by bucket of duration, those beyond the last bound at the end.
    pub latency: Box<[u64]>,
}

/// What a curve shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// [`Point::accepted`].
    Accepted,
    /// [`Point::delivered`].
    Delivered,
}

impl Sample {
    fn of(&self, id: DestinationId) -> Option<&Point> {
        let found = self.points.iter().find(|(other, _)| *other == id);
        found.map(|(_, point)| point)
    }
}

impl Point {
    /// One destination now.
    pub fn read(books: &Books, status: &Status) -> Self {
        let attempts = attempts(status);
        Self {
            accepted: books.accepted_parcels,
            delivered: books.delivered.parcels,
            delivered_bytes: books.delivered.bytes,
            dropped: books.dropped_total().parcels,
            latency: attempts
                .buckets
                .iter()
                .map(|(_, count)| *count)
                .chain([attempts.beyond])
                .collect(),
        }
    }

    fn of(&self, curve: Curve) -> u64 {
        match curve {
            Curve::Accepted => self.accepted,
            Curve::Delivered => self.delivered,
        }
    }
}

/// All single attempts of a destination since it was made, both routes together.
pub fn attempts(status: &Status) -> Reading {
    let mut reading = status.latency(Route::Ingest, Span::Downstream);
    reading.merge(&status.latency(Route::Push, Span::Downstream));
    reading
}

impl History {
    /// Keeps a sample of `observed` unless the last one is younger than `every`, give or take a tenth.
    pub fn sample(&mut self, observed: &Observed, now: Mono, every: Duration) {
        let is_due = |last: &Sample| now.since(last.at) >= every.mul_f64(0.9);
        if !self.samples.back().is_none_or(is_due) {
            return;
        }
        let in_force = observed.in_force.load();
        let gates = in_force.destinations.iter().map(|listed| listed.gate);
        let points = gates.map(|gate| (gate.id, Point::read(&books(gate), &gate.status)));
        self.push(now, points.collect());
    }

    fn push(&mut self, at: Mono, points: Vec<(DestinationId, Point)>) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { at, points });
    }

    /// A destination at the oldest sample of it that is at most `ago` old, and the seconds since then.
    fn point(&self, id: DestinationId, now: Mono, ago: Duration) -> Option<(&Point, f64)> {
        let samples = self.samples.iter();
        let mut recent = samples.filter(|sample| now.since(sample.at) <= ago && now > sample.at);
        recent.find_map(|sample| Some((sample.of(id)?, now.since(sample.at).as_secs_f64())))
    }

    /// Per second over the last ten seconds, up to `point`.
    pub fn rate(&self, id: DestinationId, now: Mono, point: &Point, of: fn(&Point) -> u64) -> f64 {
        match self.point(id, now, RATE_WINDOW) {
            Some((before, seconds)) if seconds > 0.1 => difference(of(before), of(point)) / seconds,
            _ => 0.0,
        }
    }

    /// What was added within [`RECENT`], up to `point`.
    pub fn recent(&self, id: DestinationId, now: Mono, point: &Point, of: fn(&Point) -> u64) -> u64 {
        self.recent_within(id, now, RECENT, point, of)
    }

    /// What was added within `ago`, up to `point`.
    pub fn recent_within(
        &self,
        id: DestinationId,
        now: Mono,
        ago: Duration,
        point: &Point,
        of: fn(&Point) -> u64,
    ) -> u64 {
        self.point(id, now, ago)
            .map_or(0, |(before, _)| of(point).saturating_sub(of(before)))
    }

    /// Single attempts within [`RECENT`]: `all` without what was there before.
    pub fn recent_attempts(&self, id: DestinationId, now: Mono, mut all: Reading) -> Reading {
        if let Some((before, _)) = self.point(id, now, RECENT) {
            for ((_, count), earlier) in all.buckets.iter_mut().zip(&before.latency) {
                *count = count.saturating_sub(*earlier);
            }
            all.beyond = all
                .beyond
                .saturating_sub(before.latency.last().copied().unwrap_or(0));
        }
        all
    }

    /// Rates between neighbouring samples, the latest last, of a destination. Where it was not there, it is 0.
    pub fn curve(&self, id: DestinationId, curve: Curve) -> Vec<f64> {
        let value = |sample: &Sample| sample.of(id).map(|point| point.of(curve));
        self.samples
            .iter()
            .zip(self.samples.iter().skip(1))
            .map(|(before, after)| {
                let seconds = after.at.since(before.at).as_secs_f64().max(0.1);
                let values = value(before).zip(value(after));
                values.map_or(0.0, |(before, after)| difference(before, after) / seconds)
            })
            .collect()
    }
}

#[allow(clippy::cast_precision_loss)] // for display
fn difference(before: u64, after: u64) -> f64 {
    after.saturating_sub(before) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: DestinationId = DestinationId(0);

    fn at(seconds: u64) -> Mono {
        Mono::default().after(Duration::from_secs(seconds))
    }

    fn point(delivered: u64) -> Point {
        Point {
            delivered,
            latency: [delivered, 0].into(),
            ..Point::default()
        }
    }

    fn ramp(seconds: u64) -> History {
        let mut history = History::default();
        for second in 0..=seconds {
            history.push(at(second), vec![(ONE, point(second * 5))]);
        }
        history
    }

    #[test]
    fn rates_are_per_second_and_counts_per_minute() {
        let history = ramp(100);
        let now = point(100 * 5);
        assert!((history.rate(ONE, at(100), &now, |p| p.delivered) - 5.0).abs() < 1e-9);
        assert_eq!(history.recent(ONE, at(100), &now, |p| p.delivered), 300);
        assert_eq!(history.curve(ONE, Curve::Delivered), vec![5.0; 100]);
        let all = Reading {
            buckets: vec![(0.1, 510)],
            beyond: 3,
            seconds: 1.0,
        };
        let recent = history.recent_attempts(ONE, at(100), all);
        assert_eq!((recent.buckets[0].1, recent.beyond), (510 - 40 * 5, 3));
    }

    #[test]
    fn a_young_history_shows_nothing_it_does_not_know() {
        let history = ramp(0);
        assert!(history.rate(ONE, at(0), &point(7), |p| p.delivered).abs() < 1e-9);
        assert_eq!(history.curve(ONE, Curve::Accepted), Vec::<f64>::new());
        assert_eq!(
            history.recent(DestinationId(9), at(1), &point(7), |p| p.delivered),
            0
        );
    }

    #[test]
    fn one_that_comes_later_has_no_past_and_takes_none_away() {
        let mut history = ramp(3);
        let late = DestinationId(7);
        history.push(at(4), vec![(late, point(1000)), (ONE, point(20))]);
        history.push(at(5), vec![(late, point(1002)), (ONE, point(25))]);
        assert_eq!(history.curve(late, Curve::Delivered), [0.0, 0.0, 0.0, 0.0, 2.0]);
        assert_eq!(history.curve(ONE, Curve::Delivered), [5.0; 5]);
        assert_eq!(history.recent(late, at(6), &point(1003), |p| p.delivered), 3);
    }

    #[test]
    fn the_past_is_bounded() {
        assert_eq!(ramp(500).samples.len(), SAMPLES_MAX);
    }
}
