//! What one destination sends next: queue, waiting retries, health and window put together. No I/O and no clock of its
//! own, so the model tests drive it with a fake one.
//!
//! ```text
//!  gate ─▶ accept ─▶ [queue] ─▶ next ─▶ in flight ─▶ conclude ─┬▶ delivered, given up: the ticket is resolved
//!                       ▲                                       └▶ [waiting for its backoff] ─▶ due ─┐
//!                       └──────────────────────────────────────────────────────────────────────────────┘
//! ```
//! While the destination is down a parcel without a waiting client stays in the queue and costs no attempt; one whose
//! client waits (`--ack first|all`) spends its attempts on the schedule of its backoff, so that the client gets its answer
//! when Alloy's would, without a storm.

use std::time::Duration;

use super::backoff;
use super::health::{self, Health};
use super::waiting::Waiting;
use crate::fanout::queue::Queue;
use crate::fanout::status::Cut;
use crate::fanout::{AckMode, DropReason, Gate, Outcome, Parcel};
use crate::profile::connect::Code;
use crate::runtime::clock::Mono;

/// A retry for which the budget has nothing left is looked at again after this time.
const BUDGET_RECHECK: Duration = Duration::from_millis(100);

/// While a destination is down nothing is sent when a wait is over, it is only counted: many ends of waits are counted in one
/// turn, so many times in the shortest wait, or each push of the last seconds would wake the core once more.
const DOWN_STEPS: u32 = 8;

/// Attempts at a parcel that should have been stored and could not be: its client waits, and is told soon to come back.
const UNSTORED_ATTEMPTS_MAX: u32 = 3;

/// The limits of one destination that the desk keeps to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Age above which a parcel is dropped.
    pub max_age: Duration,
    /// First backoff.
    pub min_backoff: Duration,
    /// Longest backoff.
    pub max_backoff: Duration,
    /// Attempts in all; 0 = until `max_age`.
    pub max_retries: u32,
    /// Requests in flight at a time.
    pub inflight: usize,
    /// Whether clients wait for outcomes (`--ack first|all`).
    pub answers_wait: bool,
}

/// How an attempt ended, when not with delivery or a final refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The destination answered that it cannot take it now.
    Answered {
        /// Its status.
        status: u16,
        /// Its Connect code.
        code: Option<Code>,
        /// How long it asks us to wait.
        after: Option<Duration>,
    },
    /// No answer.
    Silent,
    /// Not asked: this process had no file descriptor left for a connection.
    NoDescriptors,
}

impl Trouble {
    /// What it says about how much the destination should be asked.
    fn cut(self) -> Option<Cut> {
        match self {
            Self::Silent => Some(Cut::Silent),
            Self::NoDescriptors => Some(Cut::NoDescriptors),
            Self::Answered {
                code: Some(Code::ResourceExhausted | Code::Unavailable),
                ..
            } => Some(Cut::Overloaded),
            // 422 is retried only where it is an old rate limit, or its server stops or starts.
            Self::Answered {
                status: 422 | 429 | 503,
                code: None,
                ..
            } => Some(Cut::Overloaded),
            Self::Answered { .. } => None,
        }
    }
}

/// One destination's parcels between queue and wire.
#[derive(Debug)]
pub struct Desk {
    queue: Queue<Parcel>,
    waiting: Waiting<Parcel>,
    health: Health,
    /// Whether the queue's backlog may hold what [`Desk::spool_queue`] and [`Desk::fail_awaited`] look for. While the
    /// destination is down they look at what is fresh, and what need not be looked at again is put back behind it: so a turn
    /// costs what has come since the last one, and who waits for a probe to end, however much else is there.
    backlog: Backlog,
    in_flight: usize,
    limits: Limits,
    retry_blocked: bool,
    /// How often it has started over.
    starts: u32,
    /// Parcels looked at because the destination was down.
    #[cfg(test)]
    looks: usize,
}

/// What may be in a backlog: what was put there since all of it was looked at.
#[derive(Debug, Default)]
struct Backlog {
    may_be_spooled: bool,
    is_awaited: bool,
}

impl Desk {
    /// An empty desk.
    pub fn new(limits: Limits, now: Mono) -> Self {
        Self {
            queue: Queue::default(),
            waiting: Waiting::default(),
            health: Health::new(limits.inflight, now),
            backlog: Backlog::default(),
            in_flight: 0,
            limits,
            retry_blocked: false,
            starts: 0,
            #[cfg(test)]
            looks: 0,
        }
    }

    /// Goes on counting how often the window was shut: the destination was here before.
    #[must_use]
    pub fn with_window_cuts(self, cuts: [u64; Cut::ALL.len()]) -> Self {
        Self {
            health: self.health.with_window_cuts(cuts),
            ..self
        }
    }

    /// The destination is asked in another way from now on, or is another one: what waits is due at once, and nothing is
    /// known of its health. What is on the wire takes no place in the window any more, and how it ends says nothing of the
    /// destination; what is refused there is sent once more.
    pub fn start_over(&mut self, limits: Limits, now: Mono) {
        self.hurry();
        self.health = Health::new(limits.inflight, now).with_window_cuts(self.health.window_cuts());
        self.limits = limits;
        self.in_flight = 0;
        self.retry_blocked = false;
        self.starts = self.starts.wrapping_add(1);
    }

    /// Whether the attempt at `parcel` began before the desk started over.
    pub fn is_stale(&self, parcel: &Parcel) -> bool {
        parcel.start != self.starts
    }

    #[cold]
    fn conclude_stale(&mut self, parcel: Parcel, outcome: Outcome) {
        match outcome {
            Outcome::Delivered => parcel.ticket.resolve(outcome),
            _ => self.put_back(parcel),
        }
    }

    /// Takes what has come through the gate, then puts away or gives up what is too much or too old.
    pub fn accept(&mut self, gate: &Gate, now: Mono) {
        while let Some(parcel) = gate.take() {
            if parcel.ticket.is_stored() {
                self.put_back(parcel); // from the spool: it may be older than what came before it
            } else {
                self.queue.push(parcel.ticket.push().accepted, parcel);
            }
        }
        if !self.is_up() {
            self.spool_queue(gate);
        }
        while gate.is_over_budget() {
            let Some((parcel, due)) = self.take_oldest() else {
                break;
            };
            if let Err(parcel) = gate.make_room(parcel) {
                match due {
                    Some(due) => self.waiting.push(due, parcel.ticket.push().accepted, parcel),
                    None => self.put_back(parcel),
                }
                break;
            }
        }
        let limit = self.age_limit(now);
        while self.oldest().is_some_and(|oldest| oldest < limit) {
            let Some((parcel, _)) = self.take_oldest() else {
                break;
            };
            parcel.ticket.drop_for(DropReason::TooOld);
        }
    }

    /// The next parcel to put on the wire, if one may be now. It is in flight until [`Desk::conclude`].
    pub fn next(&mut self, now: Mono, random: f64) -> Option<Parcel> {
        self.health.step(now, random);
        let window = self.health.window(now);
        self.take_due(now, window, random);
        if self.in_flight >= window {
            if window == 0 && self.limits.answers_wait {
                self.fail_awaited(now, random);
            }
            return None;
        }
        while let Some(parcel) = self.queue.take_aged(now) {
            self.put_back(parcel);
        }
        let mut next = self.queue.take_next();
        // Where it lies: moving it would cost more than all the rest.
        if let Some(parcel) = &mut next {
            parcel.start = self.starts;
            if parcel.attempts == 0 {
                self.health.earn_retry();
            }
            self.in_flight += 1;
        }
        next
    }

    /// The attempt at `parcel`, which is about to be concluded as delivered, took so long.
    pub fn observe(&mut self, parcel: &Parcel, took: Duration, now: Mono) {
        if self.is_stale(parcel) {
            return;
        }
        self.health.window_mut().observe(took, self.in_flight, now);
    }

    /// The parcel's attempt is over: delivered or finally refused. The destination has answered.
    /// Returns whether it was down until now.
    pub fn conclude(&mut self, parcel: Parcel, outcome: Outcome) -> bool {
        if self.is_stale(&parcel) {
            self.conclude_stale(parcel, outcome);
            return false;
        }
        self.in_flight -= 1;
        if outcome == Outcome::Delivered {
            self.health.earn_by_delivery();
        }
        parcel.ticket.resolve(outcome);
        self.health.window_mut().ended_well();
        self.health.answered()
    }

    /// The parcel's attempt is over and failed: it waits for the next one, or is given up.
    /// Returns whether the destination changed between up and down.
    pub fn trouble(&mut self, parcel: Parcel, trouble: Trouble, now: Mono, random: f64) -> bool {
        if self.is_stale(&parcel) {
            self.wait_or_give_up(parcel, trouble, now, random);
            return false;
        }
        match trouble.cut() {
            Some(cut) => self.health.window_mut().ended_badly(cut, self.in_flight),
            None => self.health.window_mut().ended_otherwise(),
        }
        self.in_flight -= 1;
        let changed = match trouble {
            Trouble::Answered { .. } => self.health.answered(),
            Trouble::Silent => {
                let Limits {
                    min_backoff, max_age, ..
                } = self.limits;
                let longest = health::probe_wait_max(min_backoff, max_age);
                self.health.failed(now, min_backoff, longest, random)
            }
            Trouble::NoDescriptors => false,
        };
        self.wait_or_give_up(parcel, trouble, now, random);
        changed
    }

    /// When [`Desk::next`] may have something without anything else happening; `None` when only a new parcel or the end
    /// of an attempt can change anything.
    pub fn wake_at(&self, now: Mono) -> Option<Mono> {
        let retry = self.waiting.next_due().map(|due| match self.retry_blocked {
            true => due.max(now.after(BUDGET_RECHECK)),
            false => due,
        });
        // A probe under way changes things when it ends.
        let probe = if self.queue.is_empty() || self.in_flight > 0 {
            None
        } else {
            self.health.probe_at()
        };
        retry.into_iter().chain(probe).min()
    }

    /// Whether the destination is up.
    pub fn is_up(&self) -> bool {
        self.health.is_up()
    }

    /// When the oldest waiting parcel was accepted.
    pub fn oldest(&self) -> Option<Mono> {
        self.waiting.oldest().into_iter().chain(self.queue.oldest()).min()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.waiting.is_empty()
    }

    /// Requests that may be in flight now.
    pub fn window(&self, now: Mono) -> usize {
        self.health.window(now)
    }

    /// How often that was cut down, in the order of [`Cut::ALL`].
    pub fn window_cuts(&self) -> [u64; Cut::ALL.len()] {
        self.health.window_cuts()
    }

    /// Parcels on the wire.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Parcels that wait here, on the wire not counted.
    #[cfg(test)]
    pub(super) fn parcels(&self) -> usize {
        self.queue.len() + self.waiting.len()
    }

    /// Makes every retry due: a shutdown has begun, and what has recovered meanwhile shall get its parcels.
    pub fn hurry(&mut self) {
        while let Some(parcel) = self.waiting.take_next() {
            self.put_back(parcel);
        }
    }

    /// Whether something waits and may be sent now.
    pub fn has_room(&self, now: Mono) -> bool {
        !self.queue.is_empty() && self.in_flight < self.health.window(now)
    }

    /// Puts away or gives up everything that waits: the drain timeout has run out.
    pub fn give_up(&mut self, gate: &Gate, reason: DropReason) {
        while let Some((parcel, _)) = self.take_oldest() {
            gate.evict(parcel, reason);
        }
    }

    /// While the destination is down, what waits for it is safer on disk, and its memory is for others.
    fn spool_queue(&mut self, gate: &Gate) {
        let Some(link) = gate.spool().filter(|link| !link.stores_all()) else {
            return;
        };
        let look_at_all = self.backlog.may_be_spooled;
        let (mut kept, mut undecided) = (Vec::new(), Vec::new());
        while link.has_room() {
            let Some(parcel) = self.take_unseen(look_at_all) else {
                self.backlog.may_be_spooled = false;
                break;
            };
            match gate.spool_away(parcel) {
                Ok(()) => {}
                Err(parcel) if parcel.ticket.is_stored() => kept.push(parcel),
                Err(parcel) => undecided.push(parcel), // its client waits, or the disk has just had enough
            }
        }
        kept.into_iter().for_each(|parcel| self.put_back(parcel));
        for parcel in undecided {
            self.queue.push(parcel.ticket.push().accepted, parcel);
        }
    }

    /// What has come since the last look, or everything; oldest first.
    fn take_unseen(&mut self, look_at_all: bool) -> Option<Parcel> {
        #[cfg(test)]
        {
            self.looks += 1;
        }
        if look_at_all {
            self.queue.take_oldest()
        } else {
            self.queue.take_fresh()
        }
    }

    /// Puts a parcel back that was taken.
    fn put_back(&mut self, parcel: Parcel) {
        // Once nobody waits for it, it may go to the spool.
        self.backlog.may_be_spooled |= !parcel.ticket.is_stored();
        self.backlog.is_awaited |= parcel.is_awaited();
        self.queue.put_back(parcel.ticket.push().accepted, parcel);
    }

    /// Takes what was accepted longest ago, queued or waiting for a retry, and then with the moment at which that is due.
    fn take_oldest(&mut self) -> Option<(Parcel, Option<Mono>)> {
        let queued = self.queue.oldest().unwrap_or(Mono::NEVER);
        if self.waiting.oldest().is_some_and(|waiting| waiting <= queued) {
            self.waiting
                .take_oldest()
                .map(|(due, parcel)| (parcel, Some(due)))
        } else {
            self.queue.take_oldest().map(|parcel| (parcel, None))
        }
    }

    fn age_limit(&self, now: Mono) -> Mono {
        now.before(self.limits.max_age)
    }

    /// Moves retries whose wait is over back to the queue, as far as the budget goes.
    fn take_due(&mut self, now: Mono, window: usize, random: f64) {
        self.retry_blocked = false;
        while self.waiting.next_due().is_some_and(|due| due <= now) {
            let down = window == 0;
            if !down && !self.health.spend_retry(now) {
                self.retry_blocked = true;
                return;
            }
            let Some(parcel) = self.waiting.take_next() else {
                return;
            };
            if now.since(parcel.ticket.push().accepted) > self.limits.max_age {
                parcel.ticket.drop_for(DropReason::TooOld);
            } else if down && parcel.is_awaited() {
                self.wait_or_give_up(parcel, Trouble::Silent, now, random);
            } else if self.is_up() {
                self.put_back(parcel);
            } else {
                self.queue.push(parcel.ticket.push().accepted, parcel); // to be looked at anew
            }
        }
    }

    /// While down, queued parcels with a waiting client go on to their backoff as if they had been tried. A client that does
    /// not wait (any more) never will, so nobody is looked at twice.
    fn fail_awaited(&mut self, now: Mono, random: f64) {
        let look_at_all = std::mem::take(&mut self.backlog.is_awaited);
        let mut kept = Vec::new();
        while let Some(parcel) = self.take_unseen(look_at_all) {
            if parcel.is_awaited() {
                self.wait_or_give_up(parcel, Trouble::Silent, now, random);
            } else {
                kept.push(parcel);
            }
        }
        kept.into_iter().for_each(|parcel| self.put_back(parcel));
    }

    fn wait_or_give_up(&mut self, mut parcel: Parcel, trouble: Trouble, now: Mono, random: f64) {
        let not_its_fault = match trouble {
            Trouble::Silent => !self.is_up(),
            Trouble::NoDescriptors => true,
            Trouble::Answered { .. } => false,
        };
        if not_its_fault && !parcel.is_awaited() {
            self.put_back(parcel);
            return;
        }
        parcel.attempts = parcel.attempts.saturating_add(1);
        let attempts_max = match parcel.is_awaited() && parcel.ticket.push().ack_mode() == AckMode::Stored {
            true => UNSTORED_ATTEMPTS_MAX,
            false => self.limits.max_retries,
        };
        if attempts_max > 0 && parcel.attempts >= attempts_max {
            let reason = DropReason::RetriesExhausted;
            parcel.ticket.resolve(match trouble {
                Trouble::Answered { status, code, .. } => Outcome::Answered { status, code, reason },
                Trouble::Silent | Trouble::NoDescriptors => Outcome::Unanswered { reason },
            });
            return;
        }
        let push = parcel.ticket.push().clone();
        let after = match trouble {
            Trouble::Answered { after, .. } => after,
            Trouble::Silent | Trouble::NoDescriptors => None,
        };
        let limits = &self.limits;
        let wait = backoff::wait(
            parcel.attempts,
            limits.min_backoff,
            limits.max_backoff,
            after,
            random,
        );
        let too_old = push
            .accepted
            .after(limits.max_age.saturating_add(Duration::from_millis(1)));
        let mut due = now.after(wait);
        if !self.is_up() {
            due = due.round_up(limits.min_backoff / DOWN_STEPS);
        }
        self.waiting.push(due.min(too_old), push.accepted, parcel);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::health::DOWN_AFTER;
    use super::*;
    use crate::config::Overflow;
    use crate::fanout::push::Push;
    use crate::fanout::push::PushParts;
    use crate::fanout::push::tests::{parts, push};
    use crate::fanout::{DestinationId, Fanout, SpoolLink};

    fn at(millis: u64) -> Mono {
        Mono::default().after(Duration::from_millis(millis))
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn limits(max_retries: u32) -> Limits {
        Limits {
            max_age: Duration::from_secs(60),
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            max_retries,
            inflight: 4,
            answers_wait: true,
        }
    }

    struct Bench {
        gate: &'static Gate,
        fanout: Fanout,
        desk: Desk,
    }

    fn bench(max_retries: u32, bytes_max: u64) -> Bench {
        bench_of(Gate::new(DestinationId(0), "d".into(), bytes_max), max_retries)
    }

    fn spooling_bench(bytes_max: u64) -> Bench {
        let gate = Gate::new(DestinationId(0), "d".into(), bytes_max);
        bench_of(gate.with_spool(SpoolLink::new(false, 1 << 20)), 0)
    }

    fn bench_of(gate: Gate, max_retries: u32) -> Bench {
        let gate: &'static Gate = Box::leak(Box::new(gate));
        let fanout = Fanout::new(vec![gate], Overflow::DropOldest);
        Bench {
            gate,
            fanout,
            desk: Desk::new(limits(max_retries), at(0)),
        }
    }

    /// The gate of a second destination, to which the bench's fanout leads from now on too.
    fn second_gate(bench: &mut Bench) -> &'static Gate {
        let second: &'static Gate = Box::leak(Box::new(Gate::new(DestinationId(1), "e".into(), 1 << 30)));
        bench.fanout = Fanout::new(vec![bench.gate, second], Overflow::DropOldest);
        second
    }

    impl Bench {
        /// Down, with the first probe after `wait`.
        fn go_down(&mut self, wait: Duration) {
            for _ in 0..DOWN_AFTER {
                self.desk.health.failed(at(0), wait, wait, 0.0);
            }
        }

        /// A turn while it is down: nothing is sent.
        fn turn_down(&mut self, now: Mono) {
            self.desk.accept(self.gate, now);
            assert!(self.desk.next(now, 0.5).is_none());
        }

        fn offer(&mut self, mode: AckMode, now: Mono) {
            let mut push = push(10, mode, 1);
            push.accepted = now;
            self.fanout.offer(&Arc::new(push)).unwrap();
            self.desk.accept(self.gate, now);
        }

        fn dropped(&self, reason: DropReason) -> u64 {
            self.gate.books().dropped[reason.index()].parcels
        }
    }

    #[test]
    fn what_memory_cannot_hold_goes_to_the_spool() {
        let weight = push(10, AckMode::Detached, 1).weight();
        let mut bench = spooling_bench(2 * weight);
        for _ in 0..5 {
            bench.offer(AckMode::Detached, at(0));
        }
        let books = bench.gate.books();
        assert_eq!(
            (
                books.held_parcels,
                bench.desk.queue.len(),
                books.dropped_total().parcels
            ),
            (5, 2, 0)
        );
        assert!(books.balance());
    }

    /// With `--ack first`: the other destination takes each push at once, this one is dead.
    #[test]
    fn while_down_a_turn_costs_what_has_come_and_not_what_waits() {
        for spools in [false, true] {
            let mut bench = match spools {
                true => spooling_bench(1 << 30),
                false => bench(10, 1 << 30),
            };
            if let Some(link) = bench.gate.spool() {
                link.set_full(true);
            }
            let other = second_gate(&mut bench);
            bench.go_down(SECOND);
            let (mut looks_max, mut probes) = (0, 0);
            for now in 0..20_000 {
                let mut next = push(10, AckMode::First, 2);
                next.accepted = at(now);
                bench.fanout.offer(&Arc::new(next)).unwrap();
                let before = bench.desk.looks;
                bench.desk.accept(bench.gate, at(now));
                while let Some(probe) = bench.desk.next(at(now), 0.5) {
                    probes += 1;
                    bench.desk.trouble(probe, Trouble::Silent, at(now), 0.5);
                }
                other.take().unwrap().ticket.resolve(Outcome::Delivered);
                looks_max = looks_max.max(bench.desk.looks - before);
            }
            assert!(probes > 5, "{probes} probes");
            assert_eq!(bench.desk.parcels(), 20_000);
            // Its own, and those of the last 12 ms, whose waits end together.
            assert!(looks_max <= 30, "{looks_max} looks in a turn, spools: {spools}");
        }
    }

    #[test]
    fn while_down_waits_end_together() {
        let mut bench = bench(10, 1 << 30);
        bench.go_down(SECOND * 3600);
        for now in 0..100 {
            let mut next = push(10, AckMode::All, 1);
            next.accepted = at(now);
            bench.fanout.offer(&Arc::new(next)).unwrap();
            bench.turn_down(at(now));
        }
        let (mut ends, mut due) = (0, at(100));
        while due < at(300) {
            bench.turn_down(due);
            due = bench.desk.wake_at(due).expect("a hundred wait");
            ends += 1;
        }
        assert!((8..=17).contains(&ends), "{ends} turns in 200 ms");
    }

    #[test]
    fn want_of_room_shortens_no_wait() {
        let weight = push(10, AckMode::Detached, 1).weight();
        let gate = Gate::new(DestinationId(0), "d".into(), weight);
        let mut bench = bench_of(gate.with_spool(SpoolLink::new(false, 0)), 0); // its disk is behind
        bench.offer(AckMode::Detached, at(0));
        let busy = Trouble::Answered {
            status: 503,
            code: None,
            after: Some(SECOND * 30),
        };
        let parcel = bench.desk.next(at(0), 0.0).expect("the window is open");
        bench.desk.trouble(parcel, busy, at(0), 0.0);
        bench.offer(AckMode::Detached, at(1));
        assert!(bench.gate.is_over_budget());
        let other = bench.desk.next(at(1), 0.0).expect("it came just now");
        assert_eq!(other.ticket.push().accepted, at(1));
        assert!(bench.desk.next(at(1), 0.0).is_none(), "it shall wait for 30 s");
        assert_eq!(bench.desk.wake_at(at(1)), Some(at(30_000)));
        bench.desk.conclude(other, Outcome::Delivered);
    }

    #[test]
    fn what_a_full_disk_left_in_memory_goes_there_when_it_has_room() {
        let mut bench = spooling_bench(1 << 30);
        let link = bench.gate.spool().unwrap();
        link.set_full(true);
        let other = second_gate(&mut bench);
        bench.go_down(SECOND * 3600);
        for now in 0..30 {
            let mode = [AckMode::Detached, AckMode::First, AckMode::All][(now % 3) as usize];
            let mut next = push(10, mode, 2);
            next.accepted = at(now);
            bench.fanout.offer(&Arc::new(next)).unwrap();
            bench.turn_down(at(now));
            other.take().unwrap().ticket.resolve(Outcome::Delivered);
        }
        assert_eq!((bench.desk.parcels(), link.waiting_parcels()), (30, 0));
        link.set_full(false);
        bench.desk.accept(bench.gate, at(40));
        assert_eq!(link.waiting_parcels(), 10, "those that nobody ever waited for");
        // The others come out of their backoff: those of `first` have their answer, those of `all` have not.
        for now in (40..2000).step_by(10) {
            bench.turn_down(at(now));
        }
        assert_eq!((bench.desk.parcels(), link.waiting_parcels()), (10, 20));
        assert!(bench.gate.books().balance());
    }

    #[test]
    fn while_down_everything_nobody_waits_for_goes_to_the_spool() {
        let mut bench = spooling_bench(1 << 20);
        for _ in 0..DOWN_AFTER + 1 {
            bench.offer(AckMode::Detached, at(0));
        }
        bench.offer(AckMode::All, at(0));
        let link = bench.gate.spool().unwrap();
        for _ in 0..DOWN_AFTER {
            let parcel = bench.desk.next(at(0), 0.0).expect("the window is open");
            bench.desk.trouble(parcel, Trouble::Silent, at(0), 0.0);
        }
        assert_eq!(link.waiting_bytes(), 0);
        bench.desk.accept(bench.gate, at(1));
        assert!(link.waiting_bytes() > 0);
        assert!(bench.desk.queue.len() <= 1, "one with a waiting client at most");
        link.set_trouble(Some("disk full".into()));
        bench.offer(AckMode::Detached, at(2));
        assert!(
            !bench.desk.queue.is_empty(),
            "with a disk that fails it stays in memory"
        );
        assert!(bench.gate.books().balance());
    }

    #[test]
    fn a_full_spool_leaves_parcels_to_probe_with() {
        let mut bench = spooling_bench(1 << 20);
        for _ in 0..DOWN_AFTER {
            bench.offer(AckMode::Detached, at(0));
        }
        for _ in 0..DOWN_AFTER {
            let parcel = bench.desk.next(at(0), 0.0).expect("the window is open");
            bench.desk.trouble(parcel, Trouble::Silent, at(0), 0.0);
        }
        let link = bench.gate.spool().unwrap();
        link.set_full(true);
        bench.desk.accept(bench.gate, at(6_000));
        assert_eq!(link.waiting_parcels(), 0, "they would come back at once");
        assert!(bench.desk.next(at(6_000), 0.0).is_some());
    }

    #[test]
    fn a_stored_parcel_that_has_to_go_stays_on_disk() {
        use crate::fanout::spool_link::Return;
        use crate::fanout::{RecordId, Ticket};
        let mut bench = spooling_bench(1 << 20);
        bench.gate.recover(crate::fanout::gate::Amount {
            parcels: 1,
            bytes: 10,
            ..Default::default()
        });
        let record = RecordId {
            segment: 3,
            index: 7,
            profiles: 1,
            bytes: 10,
            profile_bytes: 10,
        };
        let link = bench.gate.spool().unwrap();
        for (reason, returned, held) in [
            (DropReason::Shutdown, Return::Release(record), 1),
            (DropReason::TooOld, Return::Done(record), 0),
        ] {
            let push = Arc::new(push(10, AckMode::Detached, 1));
            let ticket = Ticket::restored(push, bench.gate, record);
            bench.gate.forward(Parcel::new(ticket));
            bench.desk.accept(bench.gate, at(0));
            let parcel = bench.desk.next(at(0), 0.0).expect("it came back");
            assert_eq!(bench.gate.books().spooled_parcels, 0);
            parcel.ticket.drop_for(reason);
            bench.desk.in_flight -= 1;
            assert_eq!(link.take_return(), Some(returned));
            let books = bench.gate.books();
            assert_eq!(
                (books.held_parcels, books.spooled_parcels),
                (held, held),
                "{reason:?}"
            );
            assert!(books.balance());
        }
    }

    #[test]
    fn as_many_attempts_as_allowed_in_the_intervals_of_the_contract() {
        let mut bench = bench(3, 1 << 20);
        bench.offer(AckMode::All, at(0));
        let busy = Trouble::Answered {
            status: 503,
            code: None,
            after: None,
        };
        let mut now = 0;
        for wait in [100, 200] {
            let parcel = bench.desk.next(at(now), 0.0).expect("an attempt is due");
            bench.desk.trouble(parcel, busy, at(now), 0.0);
            assert_eq!(bench.desk.wake_at(at(now)), Some(at(now + wait)));
            assert!(
                bench.desk.next(at(now + wait - 1), 0.0).is_none(),
                "not before its wait is over"
            );
            now += wait;
        }
        let parcel = bench.desk.next(at(now), 0.0).expect("the third attempt");
        bench.desk.trouble(parcel, busy, at(now), 0.0);
        assert_eq!(bench.dropped(DropReason::RetriesExhausted), 1);
        assert_eq!(bench.desk.wake_at(at(now)), None);
    }

    #[test]
    fn starting_over_forgets_health_and_keeps_parcels() {
        let mut bench = bench(0, 1 << 20);
        for _ in 0..6 {
            bench.offer(AckMode::Detached, at(0));
        }
        let wire: Vec<Parcel> = (0..4)
            .map(|_| bench.desk.next(at(0), 0.0).expect("room"))
            .collect();
        for _ in 0..DOWN_AFTER {
            bench.desk.health.failed(at(0), SECOND, SECOND, 0.0);
        }
        assert!(!bench.desk.is_up());
        bench.desk.start_over(limits(0), at(1));
        assert!(bench.desk.is_up());
        assert_eq!((bench.desk.in_flight(), bench.desk.window(at(1))), (0, 4));
        let mut wire = wire.into_iter();
        bench.desk.conclude(wire.next().unwrap(), Outcome::Delivered);
        let refused = Outcome::Answered {
            status: 401,
            code: None,
            reason: DropReason::Unauthorized,
        };
        bench.desk.conclude(wire.next().unwrap(), refused);
        for parcel in wire {
            bench.desk.trouble(parcel, Trouble::Silent, at(1), 0.0);
        }
        assert!(
            bench.desk.is_up(),
            "failures of before say nothing of what is now"
        );
        assert_eq!(bench.desk.parcels(), 5);
        let mut sent = 0;
        for now in [1, 200] {
            while let Some(parcel) = bench.desk.next(at(now), 0.0) {
                bench.desk.conclude(parcel, Outcome::Delivered);
                sent += 1;
            }
        }
        assert_eq!((sent, bench.gate.books().delivered.parcels), (5, 6));
        assert!(bench.gate.books().balance());
    }

    #[test]
    fn an_outage_costs_a_queued_parcel_nothing_but_time() {
        let mut bench = bench(0, 1 << 20);
        bench.offer(AckMode::Detached, at(0));
        let mut now = 0;
        while bench.desk.is_up() && now < 60_000 {
            let Some(parcel) = bench.desk.next(at(now), 0.5) else {
                now += 100;
                continue;
            };
            bench.desk.trouble(parcel, Trouble::Silent, at(now), 0.5);
        }
        assert!(!bench.desk.is_up());
        let parcel = bench
            .desk
            .next(at(now + 6000), 0.5)
            .expect("a probe at the latest after 5 s");
        assert!(
            bench.desk.next(at(now + 6000), 0.5).is_none(),
            "one probe at a time"
        );
        assert!(bench.desk.conclude(parcel, Outcome::Delivered), "it is up again");
        assert_eq!(bench.gate.books().delivered.parcels, 1);
    }

    /// The writer takes what has come every few pushes, the disk takes one parcel when it is waited for.
    #[test]
    fn who_waits_for_the_disk_loses_nothing_to_it() {
        let weight = push(10, AckMode::Detached, 1).weight();
        let crowds = [(1, 1), (1, 3), (4, 3), (16, 2)];
        // Parcels pin more than they weigh, and it is what they pin that the way to the disk counts.
        let cases = crowds
            .into_iter()
            .flat_map(|crowd| [(crowd, 10), (crowd, 3 * weight)]);
        for ((offered_at_once, disk_parcels_max), pinned_bytes) in cases {
            let gate = Gate::new(DestinationId(0), "d".into(), 5 * weight);
            let link = SpoolLink::new(false, disk_parcels_max * weight);
            let mut bench = bench_of(gate.with_spool(link), 0);
            let link = bench.gate.spool().expect("it has one");
            for turn in 0..100 {
                for _ in 0..offered_at_once {
                    let next = PushParts {
                        pinned_bytes,
                        ..parts(10)
                    };
                    while bench.fanout.is_pressed(&next) {
                        bench.desk.accept(bench.gate, at(turn));
                        let parcel = link.take_parcel().expect("it is behind");
                        link.note_taken(parcel.ticket.push());
                        parcel.ticket.shelve();
                    }
                    let push = Push::new(next, AckMode::Detached, 1);
                    bench.fanout.offer(&Arc::new(push)).unwrap();
                }
                bench.desk.accept(bench.gate, at(turn));
            }
            let books = bench.gate.books();
            let lost = books.dropped[DropReason::Overflow.index()].parcels;
            assert_eq!(
                lost, 0,
                "{offered_at_once} at a time, {disk_parcels_max} may wait, {pinned_bytes} bytes pinned"
            );
            assert!(books.balance());
        }
    }

    #[test]
    fn whatever_comes_while_it_is_down_is_tried_before_it_is_too_old() {
        for max_age in [
            Duration::from_millis(300),
            Duration::from_millis(1500),
            SECOND * 3600,
        ] {
            let mut bench = bench(0, 1 << 20);
            let short = Limits { max_age, ..limits(0) };
            bench.desk.start_over(short, at(0));
            let mut now = 0;
            let mut tried_at = 0;
            while now < 60_000 {
                bench.desk.accept(bench.gate, at(now));
                while let Some(parcel) = bench.desk.next(at(now), 0.99) {
                    tried_at = now;
                    bench.desk.trouble(parcel, Trouble::Silent, at(now), 0.99);
                }
                if bench.desk.is_empty() {
                    bench.offer(AckMode::Detached, at(now)); // alone, as soon as the last one has gone
                }
                let waited = Duration::from_millis(now - tried_at);
                assert!(
                    waited <= max_age.min(SECOND * 5),
                    "{waited:?} without a probe, {max_age:?}"
                );
                now += 10;
            }
            assert!(!bench.desk.is_up());
        }
    }

    #[test]
    fn a_waiting_client_gets_its_answer_though_the_destination_is_down() {
        let mut bench = bench(3, 1 << 20);
        for _ in 0..8 {
            bench.offer(AckMode::All, at(0));
        }
        let mut attempts = 0;
        for now in (0..20_000).step_by(10) {
            while let Some(parcel) = bench.desk.next(at(now), 0.5) {
                attempts += 1;
                bench.desk.trouble(parcel, Trouble::Silent, at(now), 0.5);
            }
        }
        assert_eq!(bench.dropped(DropReason::RetriesExhausted), 8);
        assert!(attempts < 24, "{attempts} attempts: it was stormed");
    }

    #[test]
    fn nothing_too_old_is_sent() {
        let mut bench = bench(0, 1 << 20);
        bench.offer(AckMode::Detached, at(0));
        bench.offer(AckMode::Detached, at(30_000));
        let parcel = bench.desk.next(at(31_000), 0.0).unwrap();
        let busy = Trouble::Answered {
            status: 429,
            code: None,
            after: Some(Duration::from_secs(3600)),
        };
        bench.desk.trouble(parcel, busy, at(31_000), 0.0);
        bench.desk.accept(bench.gate, at(60_001));
        assert!(bench.desk.next(at(100_000), 0.0).is_none());
        assert_eq!(bench.dropped(DropReason::TooOld), 2);
    }

    #[test]
    fn retries_too_old_go_whatever_the_budget_says() {
        let mut bench = bench(0, 1 << 20);
        let busy = Trouble::Answered {
            status: 503,
            code: None,
            after: None,
        };
        for _ in 0..500 {
            bench.offer(AckMode::Detached, at(0));
            let parcel = bench.desk.next(at(0), 0.0).expect("the window is open");
            bench.desk.trouble(parcel, busy, at(0), 0.0);
        }
        bench.desk.accept(bench.gate, at(61_000));
        assert_eq!(bench.dropped(DropReason::TooOld), 500);
    }

    #[test]
    fn a_probe_costs_no_attempt_and_is_not_waited_for_by_the_clock() {
        let mut bench = bench(2, 1 << 20);
        for _ in 0..2 {
            bench.offer(AckMode::Detached, at(0));
        }
        let mut now = 0;
        while now < 50_000 {
            if let Some(parcel) = bench.desk.next(at(now), 0.5) {
                if !bench.desk.is_up() {
                    assert_eq!(
                        bench.desk.wake_at(at(now)).filter(|wake| *wake <= at(now)),
                        None,
                        "it would spin"
                    );
                }
                bench.desk.trouble(parcel, Trouble::Silent, at(now), 0.5);
            }
            // A third parcel keeps failures coming until it is down.
            if bench.desk.is_up() {
                bench.offer(AckMode::Detached, at(now));
            }
            now += 100;
        }
        assert!(!bench.desk.is_up());
        let lost_to_probes = bench.dropped(DropReason::RetriesExhausted);
        bench.desk.accept(bench.gate, at(now));
        assert!(
            lost_to_probes <= 2,
            "{lost_to_probes} lost: only what failed before it was known to be down"
        );
    }

    proptest! {
        /// Any sequence of events: the books balance after each, the window and the byte budget hold, nobody is given
        /// what it has already accepted, and time makes every parcel end.
        #[test]
        fn the_books_always_balance(
            seed in any::<u64>(),
            max_retries in 0u32..4,
            steps in prop::collection::vec((0u8..7, 1u64..3000), 1..300),
        ) {
                        let weight = push(10, AckMode::All, 1).weight();
            let mut bench = bench(max_retries, 10 * weight);
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut wire, mut now, mut accepted) = (Vec::new(), 0u64, 0u64);
            for (kind, amount) in steps {
                match kind {
                    0 | 1 => {
                        let mode = if amount % 3 == 0 { AckMode::All } else { AckMode::Detached };
                        bench.offer(mode, at(now));
                        accepted += 1;
                    }
                    2 => now += amount,
                    3 => {
                        bench.desk.accept(bench.gate, at(now));
                        if let Some(parcel) = bench.desk.next(at(now), random.f64()) {
                            prop_assert!(now <= parcel.ticket.push().accepted.0 / 1_000_000 + 60_000 + 1);
                            wire.push(parcel);
                        }
                    }
                    6 if amount % 10 == 0 => bench.desk.start_over(limits(max_retries), at(now)),
                    _ if wire.is_empty() => {}
                    4 => {
                        let parcel = wire.swap_remove(random.usize(..wire.len()));
                        bench.desk.observe(&parcel, Duration::from_millis(amount), at(now));
                        bench.desk.conclude(parcel, Outcome::Delivered);
                    }
                    _ => {
                        let parcel = wire.swap_remove(random.usize(..wire.len()));
                        let trouble = match amount % 4 {
                            0 => Trouble::Answered { status: 503, code: None, after: Some(Duration::from_secs(1)) },
                            1 => Trouble::Answered { status: 429, code: None, after: None },
                            2 => Trouble::NoDescriptors,
                            _ => Trouble::Silent,
                        };
                        bench.desk.trouble(parcel, trouble, at(now), random.f64());
                    }
                }
                let books = bench.gate.books();
                prop_assert!(books.balance(), "{books:?}");
                prop_assert_eq!(books.accepted_parcels, accepted);
                let fresh = wire.iter().filter(|parcel| !bench.desk.is_stale(parcel)).count();
                prop_assert_eq!(bench.desk.in_flight(), fresh);
                prop_assert!(fresh <= 4);
                bench.desk.accept(bench.gate, at(now));
                prop_assert!(bench.gate.books().held_parcels <= 10 + wire.len() as u64);
            }
            for parcel in wire.drain(..) {
                bench.desk.conclude(parcel, Outcome::Delivered);
            }
            bench.desk.accept(bench.gate, at(now + 200_000));
            while let Some(parcel) = bench.desk.next(at(now + 200_000), 0.5) {
                bench.desk.conclude(parcel, Outcome::Delivered);
            }
            let books = bench.gate.books();
            prop_assert_eq!(books.held_parcels, 0, "{:?}", books);
            prop_assert_eq!(books.dropped[DropReason::Abandoned.index()].parcels, 0);
        }
    }
}
