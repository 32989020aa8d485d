//! Whether a destination is asked at all: its way down and up again, and its retry budget. Pure.
//!
//! ```text
//!            DOWN_AFTER failures in a row
//!      ┌──────┐ ─────────────────────▶ ┌──────┐ ── probe fails: wait longer (min_backoff·2^n, ≤ probe_wait_max) ──┐
//!      │  up  │                        │ down │ ◀────────────────────────────────────────────────────────────────┘
//!      └──────┘ ◀───────────────────── └──────┘   one probe at a time
//!        the window restarts              a probe is answered (any status)
//! ```
//! A failure is an attempt without an answer: refused, reset, unresolved, timed out. Any HTTP answer is a sign of life.
//! How much an up destination is asked is the work of [`Window`].
//!
//! The retry budget keeps a destination in trouble from being stormed: a first attempt earns [`RETRY_SHARE`] of a retry, a
//! retry costs one, and [`RETRIES_PER_SECOND`] come with time so that little traffic can retry too. A delivery earns a
//! whole retry: a destination that takes what it is given gets its backlog as fast as it takes it, one that refuses does
//! not.

use std::time::Duration;

use super::window::Window;
use crate::fanout::status::Cut;
use crate::runtime::clock::Mono;

/// Failures in a row that make a destination down.
pub const DOWN_AFTER: u32 = 5;
/// Longest wait between probes: a destination that is back gets its profiles within seconds.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(5);
/// The shortest that an age limit makes of it: ten probes a second harm nobody.
const PROBE_WAIT_FLOOR: Duration = Duration::from_millis(100);
/// Retries that one first attempt earns: at most 20 % of a destination's traffic (DESIGN.md section 6).
pub const RETRY_SHARE: f64 = 0.2;
/// Retries that come with time.
pub const RETRIES_PER_SECOND: f64 = 10.0;
/// Retries that can be saved up.
const RETRIES_SAVED_MAX: f64 = 100.0;

/// The state of one destination.
#[derive(Debug)]
pub struct Health {
    window: Window,
    failures: u32,
    down: Option<Down>,
    retries: f64,
    refilled: Mono,
}

#[derive(Debug)]
struct Down {
    probe_at: Mono,
    probes: u32,
}

/// The longest wait between probes where parcels are kept for `max_age`: half of that at most, so that each is young
/// enough for one probe at least.
pub fn probe_wait_max(min_backoff: Duration, max_age: Duration) -> Duration {
    let longest = PROBE_WAIT_MAX.max(min_backoff);
    longest.min(PROBE_WAIT_FLOOR.max(max_age / 2))
}

impl Health {
    /// A destination that is taken to be up until it shows otherwise.
    pub fn new(window_max: usize, now: Mono) -> Self {
        let retries = RETRIES_SAVED_MAX;
        Self {
            window: Window::new(window_max),
            failures: 0,
            down: None,
            retries,
            refilled: now,
        }
    }

    /// Goes on counting how often the window was shut.
    #[must_use]
    pub fn with_window_cuts(self, cuts: [u64; Cut::ALL.len()]) -> Self {
        Self {
            window: self.window.with_cuts(cuts),
            ..self
        }
    }

    /// How many requests may be in flight now.
    pub fn window(&self, now: Mono) -> usize {
        match &self.down {
            None => self.window.size(),
            Some(down) if now >= down.probe_at => 1,
            Some(_) => 0,
        }
    }

    /// Whether the destination is up.
    pub fn is_up(&self) -> bool {
        self.down.is_none()
    }

    /// When the next probe is due; `None` while up.
    pub fn probe_at(&self) -> Option<Mono> {
        self.down.as_ref().map(|down| down.probe_at)
    }

    /// Lets time pass. `random` is in `[0, 1)`.
    pub fn step(&mut self, now: Mono, random: f64) {
        self.window.step(now, random);
    }

    /// What the ends of attempts do to the window.
    pub fn window_mut(&mut self) -> &mut Window {
        &mut self.window
    }

    /// How often the window was shut, in the order of [`Cut::ALL`].
    pub fn window_cuts(&self) -> [u64; Cut::ALL.len()] {
        self.window.cuts()
    }

    /// The destination answered something. Returns whether it was down until now.
    pub fn answered(&mut self) -> bool {
        self.failures = 0;
        let was_down = self.down.take().is_some();
        if was_down {
            self.window.restart();
        }
        was_down
    }

    /// An attempt ended without an answer. Returns whether this made the destination down. Probes are as far apart as
    /// retries that begin with `min_backoff`, and at most [`probe_wait_max`]. `random` is in `[0, 1)`.
    pub fn failed(
        &mut self,
        now: Mono,
        min_backoff: Duration,
        probe_wait_max: Duration,
        random: f64,
    ) -> bool {
        if self.down.as_ref().is_some_and(|down| now < down.probe_at) {
            return false; // a straggler, sent before it went down: no probe has failed
        }
        self.failures = self.failures.saturating_add(1);
        let was_up = self.down.is_none();
        if was_up && self.failures < DOWN_AFTER {
            return false;
        }
        let probes = self.down.as_ref().map_or(1, |down| down.probes.saturating_add(1));
        let shortest = min_backoff.min(probe_wait_max);
        let wait = super::backoff::wait(probes, shortest, probe_wait_max, None, random);
        self.down = Some(Down {
            probe_at: now.after(wait),
            probes,
        });
        was_up
    }

    /// A first attempt is made.
    pub fn earn_retry(&mut self) {
        self.retries = (self.retries + RETRY_SHARE).min(RETRIES_SAVED_MAX);
    }

    /// Something was delivered.
    pub fn earn_by_delivery(&mut self) {
        self.retries = (self.retries + 1.0).min(RETRIES_SAVED_MAX);
    }

    /// Takes one retry out of the budget if there is one. A probe needs none.
    pub fn spend_retry(&mut self, now: Mono) -> bool {
        let passed = now.since(self.refilled).as_secs_f64();
        self.refilled = now;
        self.retries = (self.retries + passed * RETRIES_PER_SECOND).min(RETRIES_SAVED_MAX);
        if self.retries >= 1.0 || !self.is_up() {
            self.retries = (self.retries - 1.0).max(0.0);
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::window::RAMP_START;

    const BACKOFF: Duration = Duration::from_millis(500);

    fn at(millis: u64) -> Mono {
        Mono::default().after(Duration::from_millis(millis))
    }

    fn fail(health: &mut Health, times: u32) {
        for _ in 0..times {
            health.failed(at(0), BACKOFF, PROBE_WAIT_MAX, 0.0);
        }
    }

    #[test]
    fn goes_down_after_failures_in_a_row_only() {
        let mut health = Health::new(8, at(0));
        for _ in 0..3 {
            (1..DOWN_AFTER).for_each(|_| assert!(!health.failed(at(0), BACKOFF, PROBE_WAIT_MAX, 0.0)));
            assert!(!health.answered());
        }
        (1..DOWN_AFTER).for_each(|_| assert!(!health.failed(at(0), BACKOFF, PROBE_WAIT_MAX, 0.0)));
        assert!(health.failed(at(0), BACKOFF, PROBE_WAIT_MAX, 0.0));
        assert!(!health.is_up());
    }

    #[test]
    fn probes_one_at_a_time_and_at_most_seconds_apart() {
        let mut health = Health::new(8, at(0));
        fail(&mut health, DOWN_AFTER);
        assert_eq!(
            (
                health.window(at(0)),
                health.window(at(499)),
                health.window(at(500))
            ),
            (0, 0, 1)
        );
        for round in 0..40 {
            let now = at(round * 100_000);
            assert!(
                !health.failed(now, BACKOFF, PROBE_WAIT_MAX, 0.99),
                "it was down already"
            );
            assert!(health.probe_at().unwrap().since(now) <= PROBE_WAIT_MAX);
        }
    }

    #[test]
    fn comes_back_by_a_ramp() {
        let mut health = Health::new(8, at(0));
        fail(&mut health, DOWN_AFTER);
        assert!(health.answered());
        assert_eq!(health.window(at(0)), RAMP_START);
        for millis in (0..3000).step_by(100) {
            health.step(at(millis), 0.5);
            assert!(!health.answered());
        }
        assert_eq!(health.window(at(0)), 8);
    }

    #[test]
    fn retries_are_a_share_of_the_traffic() {
        let mut health = Health::new(8, at(0));
        while health.spend_retry(at(0)) {}
        let spent = (0..1000).filter(|_| {
            health.earn_retry();
            health.spend_retry(at(0))
        });
        let spent = spent.count();
        assert!(
            (190..=200).contains(&spent),
            "{spent} retries for 1000 first attempts"
        );
        assert!(!health.spend_retry(at(50)));
        assert!(health.spend_retry(at(250)), "time earns retries too");
    }

    #[test]
    fn a_destination_that_delivers_gets_its_backlog() {
        let mut health = Health::new(8, at(0));
        while health.spend_retry(at(0)) {}
        for _ in 0..1000 {
            health.earn_by_delivery();
            assert!(health.spend_retry(at(0)), "each delivery pays for the next retry");
        }
        assert!(!health.spend_retry(at(0)));
    }
}
