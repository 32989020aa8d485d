//! The open loop: tickets are released at a fixed rate, whether or not anybody is free to take them.
//!
//! ```text
//!  pacer thread ── released += n, ring ──▶ core: dispatcher ── wake ──▶ idle connection takes ticket k
//! ```
//! A ticket is only a number: its moment follows from it ([`Schedule::moment`]), so any number of overdue tickets costs no
//! memory. The timers of a core have a resolution of 1 ms, too coarse for this, hence a thread of its own; it wakes at most
//! every [`TICK`], and moments lie on that grid, so a ticket is never released late by design.
//!
//! Not responsible for sending (`connection.rs`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::runtime::clock::{self, Mono};
use crate::runtime::doorbell::Doorbell;

/// Tickets of one tick are due at the same moment. Below 5000 per second each has a moment of its own.
const TICK: Duration = Duration::from_micros(200);
/// The longest the pacer sleeps before it looks whether the run is to stop.
const NAP_MAX: Duration = Duration::from_millis(50);

/// When which ticket is due.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// The moment of ticket 0.
    pub start: Mono,
    /// Tickets per second, at least 1.
    pub rate: u64,
    /// How many there are.
    pub tickets: u64,
    /// Dealt out in turn to this many cores.
    pub cores: u64,
}

impl Schedule {
    /// When a ticket is due.
    pub fn moment(&self, ticket: u64) -> Mono {
        let nanos = (u128::from(ticket) * 1_000_000_000).div_ceil(u128::from(self.rate));
        let tick = TICK.as_nanos();
        let nanos = if u128::from(self.rate) * tick > 1_000_000_000 {
            nanos.div_ceil(tick) * tick
        } else {
            nanos
        };
        self.start
            .after(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// How many tickets are due at `now`.
    fn due(&self, now: Mono) -> u64 {
        // Moments are rounded up, so this guess is never too small, and too large by a tick's tickets at most.
        let elapsed = now.since(self.start).as_nanos();
        let guess = elapsed * u128::from(self.rate) / 1_000_000_000;
        let mut due = u64::try_from(guess)
            .unwrap_or(u64::MAX)
            .saturating_add(1)
            .min(self.tickets);
        while due > 0 && self.moment(due - 1) > now {
            due -= 1;
        }
        due
    }

    /// How many of the first `due` tickets belong to a core.
    fn share(&self, due: u64, core: u64) -> u64 {
        due.saturating_sub(core).div_ceil(self.cores)
    }
}

/// What the pacer and a core share.
#[derive(Debug, Default)]
pub struct Gate {
    released: AtomicU64,
    closed: AtomicBool,
    bell: Doorbell,
}

impl Gate {
    /// Tickets released to this core.
    pub fn released(&self) -> u64 {
        self.released.load(Ordering::Acquire)
    }
}

/// Releases tickets until all are out, or all that are due before `deadline`, or `stop`. Runs on a thread of its own.
pub fn pace(schedule: Schedule, gates: &[Arc<Gate>], deadline: Mono, stop: &AtomicBool) {
    // Without this the kernel may wake us 50 us late (PR_SET_TIMERSLACK); a refusal costs just that.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let mut released = 0;
    while released < schedule.tickets && !stop.load(Ordering::Relaxed) {
        let now = clock::now();
        // Who comes late has slept over tickets that were due in time: they are told as not sent.
        let due = schedule.due(now.min(Mono(deadline.0.saturating_sub(1))));
        if due > released {
            released = due;
            for (core, gate) in (0..).zip(gates) {
                let share = schedule.share(due, core);
                if gate.released.swap(share, Ordering::Release) != share {
                    gate.bell.ring();
                }
            }
        }
        if now >= deadline {
            break;
        }
        let next = schedule.moment(released).min(deadline);
        std::thread::sleep(next.since(clock::now()).min(NAP_MAX));
    }
    for gate in gates {
        gate.closed.store(true, Ordering::Release);
        gate.bell.ring();
    }
}

/// A core's side: its connections take tickets here.
#[derive(Debug)]
pub struct Tickets {
    gate: Arc<Gate>,
    taken: Cell<u64>,
    idle: RefCell<VecDeque<Waker>>,
}

impl Tickets {
    /// Nothing taken yet.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self {
            gate,
            taken: Cell::new(0),
            idle: RefCell::default(),
        }
    }

    /// The next ticket of this core, counted from 0 on each core, as soon as it is released. `None` when the gate is
    /// closed and all that was released is taken.
    pub async fn take(&self) -> Option<u64> {
        poll_fn(|context| {
            // In this order: what was released before the gate closed is still there to take.
            let closed = self.gate.closed.load(Ordering::Acquire);
            let taken = self.taken.get();
            if taken < self.gate.released() {
                self.taken.set(taken + 1);
                return Poll::Ready(Some(taken));
            }
            if closed {
                return Poll::Ready(None);
            }
            self.idle.borrow_mut().push_back(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Wakes idle connections when tickets come; ends when the gate is closed.
    pub async fn dispatch(&self) {
        loop {
            self.gate.bell.rung().await;
            let closed = self.gate.closed.load(Ordering::Acquire);
            let wanted = if closed {
                u64::MAX
            } else {
                self.gate.released() - self.taken.get()
            };
            for _ in 0..wanted {
                let Some(waker) = self.idle.borrow_mut().pop_front() else {
                    break;
                };
                waker.wake();
            }
            if closed {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rate: u64, tickets: u64, cores: u64) -> Schedule {
        Schedule {
            start: Mono(1_000),
            rate,
            tickets,
            cores,
        }
    }

    #[test]
    fn moments_follow_from_the_number() {
        for (rate, ticket, nanos) in [
            (1, 0, 0),
            (1, 3, 3_000_000_000),
            (1000, 1, 1_000_000),
            (10_000, 1, 200_000),
            (10_000, 2, 200_000),
            (10_000, 3, 400_000),
        ] {
            let moment = schedule(rate, u64::MAX, 1).moment(ticket);
            assert_eq!(moment, Mono(1_000 + nanos), "ticket {ticket} at {rate}/s");
        }
    }

    #[test]
    fn due_is_the_inverse_of_moment() {
        for rate in [1, 7, 1000, 4999, 5001, 33_333, 1_000_000] {
            let schedule = schedule(rate, 100_000, 1);
            for ticket in [0, 1, 2, 99, 5_000, 99_999] {
                let moment = schedule.moment(ticket);
                assert!(schedule.due(moment) > ticket, "{ticket} at {rate}/s is due");
                assert!(
                    schedule.due(Mono(moment.0 - 1)) <= ticket,
                    "{ticket} at {rate}/s is not due earlier"
                );
            }
            assert_eq!(schedule.due(Mono::NEVER), 100_000);
        }
    }

    #[test]
    fn shares_add_up() {
        for cores in 1..5 {
            let schedule = schedule(10, 1000, cores);
            for due in 0..20 {
                let shares: Vec<_> = (0..cores).map(|core| schedule.share(due, core)).collect();
                assert_eq!(shares.iter().sum::<u64>(), due, "{cores} cores: {shares:?}");
            }
        }
    }

    #[test]
    fn a_closed_gate_has_released_everything() {
        let gates = [Arc::new(Gate::default()), Arc::new(Gate::default())];
        let start = clock::now();
        let schedule = Schedule {
            start,
            rate: 50_000,
            tickets: 101,
            cores: 2,
        };
        pace(
            schedule,
            &gates,
            start.after(Duration::from_secs(10)),
            &AtomicBool::new(false),
        );
        assert_eq!(gates.each_ref().map(|gate| gate.released()), [51, 50]);
        assert!(clock::now() >= schedule.moment(100));
    }

    /// A pacer that was not let run for a while tells of the tickets that were due meanwhile.
    #[test]
    fn what_was_due_before_the_deadline_is_released_behind_it() {
        let gate = Arc::new(Gate::default());
        let deadline = clock::now();
        let schedule = Schedule {
            start: Mono(deadline.0 - 500_000_000),
            rate: 200,
            tickets: 1_000,
            cores: 1,
        };
        let gates = std::slice::from_ref(&gate);
        pace(schedule, gates, deadline, &AtomicBool::new(false));
        assert_eq!(gate.released(), 100, "those of half a second");
    }
}
