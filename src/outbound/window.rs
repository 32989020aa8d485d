//! How many requests may be in flight to one destination: a window that opens while that does no harm and shuts on
//! trouble. Pure: no clock, no I/O.
//!
//! ```text
//!   1 ≤ size ≤ max (--inflight)
//!
//!   each good answer          opens it by GROWTH of itself per round of answers, by at least one
//!   a second slow round       shuts it by how slow it was, to CUT at least   ┐ then the answers to what is still on the
//!   429, 503                  shuts it to CUT of what was in flight          │ wire say nothing new: they are not judged,
//!   no answer                 likewise                                       │ so that one trouble is one cut
//!   no file descriptor left   shuts it to the connections that exist         ┘
//!   back after an outage      RAMP_START, doubling every RAMP_STEP, with jitter
//! ```
//! A round is slow when even its fastest answer took more than [`SLOW_TIMES`] the fastest of the last half to whole minute,
//! and more than [`LATENCY_FLOOR`]: below that, noise is larger than any signal. Only rounds in which several requests were
//! in flight at a time are judged, because with one there is nothing to shut. And a slow round is only believed when what was
//! sent after it is slow too: a stall, theirs or ours, delays all that is on the wire at that moment and is over then.
//!
//! Shutting the window is a trial. Where half of it did not make answers faster, the load was not the reason (larger
//! profiles, a longer way): the new latency becomes the normal one and the window opens again. And what lasts for a minute
//! is normal too, so a window never stays small for a reason that has long gone.

use std::time::Duration;

use crate::fanout::status::Cut;
use crate::runtime::clock::Mono;

/// Requests in flight right after a destination came back.
pub const RAMP_START: usize = 2;
/// How often that doubles, on average: 64 are reached after two and a half seconds.
pub const RAMP_STEP: Duration = Duration::from_millis(500);
/// Answers faster than this are never called slow.
pub const LATENCY_FLOOR: Duration = Duration::from_millis(100);
/// Nor those within this many times the fastest.
pub const SLOW_TIMES: u32 = 2;
/// How much the window opens per round of answers.
const GROWTH: f64 = 1.0 / 8.0;
/// What one cut leaves at least of what was in flight.
const CUT: f64 = 0.5;
/// What a round leaves at most that was a little slow.
const CUT_LEAST: f64 = 0.9;
/// A trial has helped when answers take less than this part of what they took before.
const HELPED: f64 = 0.75;
/// Answers that make a round.
const ROUND: usize = 16;
/// The fastest answer is remembered for this time to twice this time.
const FASTEST_KEPT: Duration = Duration::from_secs(30);

/// The window of one destination.
#[derive(Debug)]
pub struct Window {
    /// `1.0 ≤ limit ≤ max`
    limit: f64,
    max: f64,
    ramp: Option<Ramp>,
    round: Round,
    fastest: Fastest,
    trial: Option<Trial>,
    /// Whether the round before was slow.
    is_suspect: bool,
    /// Answers still to come that were on their way at the last cut.
    unjudged: usize,
    cuts: [u64; Cut::ALL.len()],
}

/// The way up after an outage.
#[derive(Debug)]
struct Ramp {
    size: usize,
    /// When it doubles; `None` until it is first looked at.
    step_at: Option<Mono>,
}

/// Answers judged together.
#[derive(Debug, Default)]
struct Round {
    answers: usize,
    in_flight_max: usize,
    fastest: Option<Duration>,
}

/// The fastest answer of the last half to whole minute: the present stretch of time, and the one before it.
#[derive(Debug, Default)]
struct Fastest {
    present: Option<Duration>,
    before: Option<Duration>,
    turn_at: Mono,
}

/// What was when the window began to shut for slowness.
#[derive(Debug)]
struct Trial {
    size: usize,
    /// Of the last round that was sent before the cut.
    latency: Duration,
}

impl Window {
    /// A window of at most `max` that is wide open: a destination is well until it shows otherwise.
    pub fn new(max: usize) -> Self {
        #[allow(clippy::cast_precision_loss)] // at most 4096
        let max = max.max(1) as f64;
        Self {
            limit: max,
            max,
            ramp: None,
            round: Round::default(),
            fastest: Fastest::default(),
            trial: None,
            is_suspect: false,
            unjudged: 0,
            cuts: [0; Cut::ALL.len()],
        }
    }

    /// Requests that may be in flight.
    pub fn size(&self) -> usize {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 1.0 ≤ limit ≤ 4096.0
        let limit = self.limit as usize;
        self.ramp.as_ref().map_or(limit, |ramp| limit.min(ramp.size))
    }

    /// How often it was shut, in the order of [`Cut::ALL`].
    pub fn cuts(&self) -> [u64; Cut::ALL.len()] {
        self.cuts
    }

    /// Goes on counting from `cuts`.
    #[must_use]
    pub fn with_cuts(self, cuts: [u64; Cut::ALL.len()]) -> Self {
        Self { cuts, ..self }
    }

    /// The destination is back after an outage.
    pub fn restart(&mut self) {
        *self = Self {
            limit: self.max,
            max: self.max,
            ramp: Some(Ramp {
                size: RAMP_START,
                step_at: None,
            }),
            cuts: self.cuts,
            ..Self::new(1)
        };
    }

    /// Lets time pass on the ramp. `random` in `[0, 1)` spreads the steps of many gateways by a quarter each way.
    pub fn step(&mut self, now: Mono, random: f64) {
        let Some(ramp) = &mut self.ramp else { return };
        let next = now.after(RAMP_STEP.mul_f64(0.75 + random / 2.0));
        match ramp.step_at {
            None => ramp.step_at = Some(next),
            Some(step_at) if now >= step_at => {
                ramp.size *= 2;
                ramp.step_at = Some(next);
            }
            Some(_) => {}
        }
        #[allow(clippy::cast_precision_loss)] // at most twice 4096
        if ramp.size as f64 >= self.max {
            self.ramp = None;
        }
    }

    /// A good answer came after `took`, while `in_flight` requests, this one included, were in flight.
    pub fn observe(&mut self, took: Duration, in_flight: usize, now: Mono) {
        let is_judged = self.unjudged == 0;
        if is_judged {
            self.fastest.note(took, now);
        }
        let round = &mut self.round;
        round.answers += 1;
        round.in_flight_max = round.in_flight_max.max(in_flight);
        let fastest = round.fastest.map_or(took, |fastest| fastest.min(took));
        round.fastest = Some(fastest);
        if round.answers < ROUND {
            return;
        }
        let round = std::mem::take(round);
        if is_judged {
            self.judge(fastest, round.in_flight_max, in_flight, now);
        } else if let Some(trial) = &mut self.trial {
            trial.latency = fastest;
        }
    }

    /// An attempt has ended well; `in_flight` as in [`Window::observe`].
    pub fn ended_well(&mut self) {
        if !self.is_judged() || self.trial.is_some() {
            return;
        }
        let per_round = (self.limit * GROWTH).max(1.0);
        self.limit = (self.limit + per_round / self.limit).min(self.max);
    }

    /// An attempt has ended with an answer that says neither well nor overloaded.
    pub fn ended_otherwise(&mut self) {
        self.is_judged();
    }

    /// An attempt has shown that the destination is overloaded, silent or out of our reach; `in_flight` as in
    /// [`Window::observe`].
    pub fn ended_badly(&mut self, why: Cut, in_flight: usize) {
        if !self.is_judged() {
            return;
        }
        #[allow(clippy::cast_precision_loss)] // at most 4096
        let in_use = self.limit.min(in_flight as f64);
        let left = match why {
            Cut::NoDescriptors => in_use - 1.0,
            _ => in_use * CUT,
        };
        self.cut(why, left, in_flight);
    }

    /// Whether the end of this attempt counts. To be asked once for each.
    fn is_judged(&mut self) -> bool {
        if self.unjudged == 0 {
            return true;
        }
        self.unjudged -= 1;
        if self.unjudged == 0 {
            self.round = Round::default();
        }
        false
    }

    fn cut(&mut self, why: Cut, left: f64, in_flight: usize) {
        self.limit = left.max(1.0);
        self.cuts[why as usize] += 1;
        self.unjudged = in_flight.saturating_sub(1);
        self.round = Round::default();
        if why != Cut::Slow {
            self.trial = None;
        }
    }

    /// A round is complete: its fastest answer took `latency`, and at most `in_flight_max` were in flight, `in_flight` now.
    fn judge(&mut self, latency: Duration, in_flight_max: usize, in_flight: usize, now: Mono) {
        let allowed = LATENCY_FLOOR.max(self.fastest.get().unwrap_or(latency) * SLOW_TIMES);
        if latency <= allowed {
            self.trial = None;
            self.is_suspect = false;
            return;
        }
        if !std::mem::replace(&mut self.is_suspect, true) {
            self.unjudged = in_flight;
            return;
        }
        let size = self.size();
        if let Some(trial) = &self.trial
            && size <= trial.size / 2
        {
            if latency > trial.latency.mul_f64(HELPED) {
                self.fastest = Fastest::default();
                self.fastest.note(latency, now);
                self.is_suspect = false;
            }
            self.trial = None;
            return;
        }
        if in_flight_max < 2 {
            return;
        }
        self.trial.get_or_insert(Trial {
            size: size.min(in_flight_max),
            latency,
        });
        #[allow(clippy::cast_precision_loss)] // at most 4096
        let in_use = self.limit.min(in_flight_max as f64);
        let left = allowed.as_secs_f64() / latency.as_secs_f64();
        // The end of the attempt that completes the round comes after this.
        self.cut(Cut::Slow, in_use * left.clamp(CUT, CUT_LEAST), in_flight + 1);
    }
}

impl Fastest {
    fn note(&mut self, took: Duration, now: Mono) {
        if now >= self.turn_at {
            // After a silence of two stretches nothing is remembered.
            let is_next = now < self.turn_at.after(FASTEST_KEPT);
            self.before = self.present.take().filter(|_| is_next);
            self.turn_at = now.after(FASTEST_KEPT);
        }
        self.present = Some(self.present.map_or(took, |fastest| fastest.min(took)));
    }

    fn get(&self) -> Option<Duration> {
        self.present.into_iter().chain(self.before).min()
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// A destination that is asked as fast as the window allows: `workers` requests are worked on at a time, each for
    /// `work`, the others wait there. All of it `away` from us.
    struct Closed {
        window: Window,
        now: Duration,
        workers: usize,
        work: Duration,
        away: Duration,
        free_at: BinaryHeap<Reverse<Duration>>,
        on_the_way: BinaryHeap<Reverse<(Duration, Duration)>>,
    }

    impl Closed {
        fn new(max: usize, workers: usize, work: Duration, away: Duration) -> Self {
            Self {
                window: Window::new(max),
                now: Duration::ZERO,
                workers,
                work,
                away,
                free_at: BinaryHeap::new(),
                on_the_way: BinaryHeap::new(),
            }
        }

        fn send(&mut self) {
            let arrived = self.now + self.away / 2;
            let free = match self.free_at.len() < self.workers {
                true => arrived,
                false => self
                    .free_at
                    .pop()
                    .map_or(arrived, |Reverse(free)| free.max(arrived)),
            };
            let done = free + self.work;
            self.free_at.push(Reverse(done));
            self.on_the_way.push(Reverse((done + self.away / 2, self.now)));
        }

        /// Keeps `wanted` requests in flight, or as many as may be, for `time`. Returns answers per second.
        fn run(&mut self, wanted: usize, time: Duration) -> f64 {
            let (end, mut answers) = (self.now + time, 0u32);
            while self.now < end {
                while self.on_the_way.len() < wanted.min(self.window.size()) {
                    self.send();
                }
                let Some(Reverse((done, sent))) = self.on_the_way.pop() else {
                    break;
                };
                self.now = done;
                let at = Mono::default().after(done);
                let in_flight = self.on_the_way.len() + 1;
                self.window.step(at, 0.5);
                self.window.observe(done - sent, in_flight, at);
                self.window.ended_well();
                answers += 1;
            }
            f64::from(answers) / time.as_secs_f64()
        }
    }

    #[test]
    fn a_fast_destination_keeps_the_whole_window() {
        for (name, workers, work, away) in [
            (
                "loopback",
                4,
                Duration::from_micros(50),
                Duration::from_micros(100),
            ),
            ("one at a time, fast", 1, MS(1), MS(0)),
            ("far and wide", 64, MS(5), MS(200)),
        ] {
            let mut closed = Closed::new(64, workers, work, away);
            closed.run(1, MS(1000));
            closed.run(64, MS(60_000));
            assert_eq!(closed.window.size(), 64, "{name}: {:?}", closed.window);
        }
    }

    #[test]
    fn a_destination_that_slows_down_under_load_is_spared_and_loses_no_throughput() {
        for (name, workers, work, away) in [
            ("one worker", 1, MS(20), MS(0)),
            ("four workers", 4, MS(50), MS(10)),
            ("a far one", 2, MS(10), MS(80)),
        ] {
            let mut closed = Closed::new(256, workers, work, away);
            closed.run(1, MS(2000));
            closed.run(256, MS(10_000));
            let asked = closed.run(256, MS(10_000));
            #[allow(clippy::cast_precision_loss)]
            let can = workers as f64 / work.as_secs_f64();
            assert!(asked > 0.9 * can, "{name}: {asked} of {can} a second");
            let queued = closed.window.size() as f64 / can;
            let unloaded = (work + away).as_secs_f64();
            assert!(
                queued < 2.0 * unloaded.mul_add(2.0, 0.1),
                "{name}: {:?} is {queued} s of work",
                closed.window.size()
            );
        }
    }

    #[test]
    fn it_opens_again_when_the_destination_is_fast_again() {
        let mut closed = Closed::new(64, 1, MS(20), MS(0));
        closed.run(1, MS(2000));
        closed.run(64, MS(10_000));
        assert!(closed.window.size() < 32, "{:?}", closed.window);
        closed.work = MS(1);
        closed.run(64, MS(5000));
        assert_eq!(closed.window.size(), 64, "{:?}", closed.window);
    }

    #[test]
    fn slowness_that_is_not_ours_costs_nothing_for_long() {
        let mut closed = Closed::new(64, 64, MS(5), MS(0));
        closed.run(64, MS(5000));
        closed.work = MS(500);
        let before = closed.run(64, MS(60_000));
        assert_eq!(closed.window.size(), 64, "{:?}", closed.window);
        assert!(before > 0.75 * 128.0, "{before} of 128 a second");
    }

    #[test]
    fn a_stall_is_no_slowness() {
        let mut closed = Closed::new(64, 8, MS(1), MS(0));
        for _ in 0..20 {
            closed.run(64, MS(500));
            // Nothing is worked on for a while, and then all goes on.
            let stalled = closed.now + MS(400);
            closed.free_at = closed.free_at.drain().map(|_| Reverse(stalled)).collect();
            let late = std::mem::take(&mut closed.on_the_way).into_iter();
            closed.on_the_way = late
                .map(|Reverse((done, sent))| Reverse((done + MS(400), sent)))
                .collect();
        }
        assert_eq!(closed.window.cuts(), [0; Cut::ALL.len()]);
    }

    #[test]
    fn trouble_shuts_it_once_per_round_and_good_answers_open_it() {
        let mut window = Window::new(64);
        for left in (1..=64).rev() {
            window.ended_badly(Cut::Overloaded, left);
        }
        assert_eq!((window.size(), window.cuts()[Cut::Overloaded as usize]), (32, 1));
        (0..20).for_each(|_| window.ended_badly(Cut::Silent, 1));
        assert_eq!(window.size(), 1);
        (0..2000).for_each(|_| window.ended_well());
        assert_eq!(window.size(), 64);
        window.ended_badly(Cut::NoDescriptors, 10);
        assert_eq!(window.size(), 9, "the connections that there are");
    }

    #[test]
    fn after_an_outage_it_opens_with_time_not_with_answers() {
        let mut window = Window::new(64);
        window.restart();
        let at = |millis| Mono::default().after(MS(millis));
        let mut sizes = Vec::new();
        for millis in (0..4000).step_by(10) {
            window.step(at(millis), 0.5);
            (0..100).for_each(|_| window.ended_well());
            sizes.push(window.size());
        }
        assert_eq!([sizes[0], sizes[49], sizes[50], sizes[100]], [2, 2, 4, 8]);
        assert_eq!(sizes.last(), Some(&64));
    }

    #[test]
    fn steps_of_many_gateways_are_spread() {
        let at = |millis| Mono::default().after(MS(millis));
        for (random, early, late) in [(0.0, 374, 375), (0.999, 620, 625)] {
            let mut window = Window::new(64);
            window.restart();
            window.step(at(0), random);
            window.step(at(early), random);
            assert_eq!(window.size(), RAMP_START);
            window.step(at(late), random);
            assert_eq!(window.size(), 2 * RAMP_START);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever happens: within its bounds, and never stuck.
        #[test]
        fn it_keeps_its_bounds_and_recovers(
            max in 1usize..4097,
            steps in prop::collection::vec((0u8..6, 0u64..20_000, 1usize..4097), 0..300),
        ) {
            let mut window = Window::new(max);
            let mut now = Mono::default();
            for (kind, amount, in_flight) in steps {
                let in_flight = in_flight.min(max);
                match kind {
                    0 => window.ended_well(),
                    1 => window.ended_badly(Cut::ALL[amount as usize % Cut::ALL.len()], in_flight),
                    2 => window.restart(),
                    3 => window.ended_otherwise(),
                    4 => now = now.after(MS(amount)),
                    _ => {
                        window.observe(MS(amount), in_flight, now);
                        window.ended_well();
                    }
                }
                window.step(now, 0.5);
                prop_assert!((1..=max).contains(&window.size()), "{window:?}");
            }
            // What was on the wire first, then as many rounds as an eighth each takes from 1 to 4096.
            for _ in 0..4096 {
                window.ended_well();
            }
            for _ in 0..90 {
                now = now.after(RAMP_STEP);
                window.step(now, 0.9);
                for _ in 0..window.size().max(ROUND) {
                    window.observe(MS(1), 1, now);
                    window.ended_well();
                }
            }
            prop_assert_eq!(window.size(), max);
        }

        /// Noise below the floor shuts nothing, however large its factors.
        #[test]
        fn noise_below_the_floor_is_no_trouble(micros in prop::collection::vec(10u64..100_000, 1..2000)) {
            let mut window = Window::new(64);
            for (index, micros) in micros.into_iter().enumerate() {
                window.observe(Duration::from_micros(micros), 64, Mono::default().after(MS(index as u64)));
                window.ended_well();
            }
            prop_assert_eq!(window.size(), 64);
        }
    }
}
