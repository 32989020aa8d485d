//! The one crossing between cores: a push becomes one parcel per destination, and outcomes become one answer.
//!
//! ```text
//!  inbound core                     this module                            writer core of destination i
//!  Push ──▶ Fanout::offer ──▶ Gate i: reserve bytes ──▶ bounded queue ──▶ Parcel { Arc<Push>, Ticket }
//!                                                                                   │
//!  Push::outcome().await ◀── ack: pending − 1, first failure kept ◀── Ticket::resolve(Outcome)
//! ```
//! With a spool (`spool_link`), what memory cannot hold goes to disk and comes back through the same queue; under
//! `--ack stored` every parcel passes by the disk first.
//!
//! Invariants, per gate and at every moment that no call is under way:
//! `accepted = delivered + Σ dropped{reason} + held`, in parcels and in bytes; `0 ≤ in_flight ≤ held in memory`.
//! A parcel ends by its ticket alone; a ticket that is dropped unresolved counts as `abandoned`, so a mistake of ours is
//! visible too.

pub mod call;
pub mod gate;
pub mod push;
pub mod queue;
pub mod spool_link;
pub mod status;
pub mod ticket;

use std::sync::Arc;

use crate::config::Overflow;
use push::PushParts;

pub use call::{Call, Calls};
pub use gate::{DestinationId, Gate};
pub use push::{AckMode, Push, Verdict};
pub use spool_link::{RecordId, SpoolLink, StoreBounds};
pub use status::Status;
pub use ticket::{DropReason, Outcome, Ticket};

/// One push for one destination.
#[derive(Debug)]
pub struct Parcel {
    /// The way back.
    pub ticket: Ticket,
    /// Attempts that count against the destination's limit, made so far.
    pub attempts: u32,
    /// Which start of its desk the attempt under way belongs to.
    pub start: u32,
}

impl Parcel {
    /// A parcel that has not been tried.
    pub fn new(ticket: Ticket) -> Self {
        Self {
            ticket,
            attempts: 0,
            start: 0,
        }
    }

    /// Whether it may go to a spool and is not there yet: what a client waits for at a destination never does.
    pub fn may_be_spooled(&self) -> bool {
        !self.ticket.is_stored() && !self.is_awaited()
    }

    /// Whether a client waits for what becomes of it.
    pub fn is_awaited(&self) -> bool {
        !self.ticket.is_stored() && self.ticket.push().is_awaited()
    }
}

/// All destinations, as a push sees them. Never changed: a reload makes another one.
#[derive(Debug)]
pub struct Fanout {
    gates: Vec<&'static Gate>,
    overflow: Overflow,
    has_spools: bool,
    calls: Option<Calls>,
}

/// Why no destination took a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferRefused {
    /// `--overflow refuse` and at least one queue is full.
    QueueFull,
    /// Everything has to be stored first (`--ack stored`), and the disk is behind.
    SpoolBehind,
}

impl Fanout {
    /// Gates live as long as the process: they are few, and every parcel refers to one.
    pub fn new(gates: Vec<&'static Gate>, overflow: Overflow) -> Self {
        Self {
            has_spools: gates.iter().any(|gate| gate.spool().is_some()),
            gates,
            overflow,
            calls: None,
        }
    }

    /// Gives it a destination that takes calls.
    #[must_use]
    pub fn with_calls(self, calls: Option<Calls>) -> Self {
        Self { calls, ..self }
    }

    /// Where calls go, if any destination takes them.
    pub fn calls(&self) -> Option<&Calls> {
        self.calls.as_ref()
    }

    /// The gates in the order of the plan.
    pub fn gates(&self) -> &[&'static Gate] {
        &self.gates
    }

    /// How many outcomes a push will have.
    pub fn len(&self) -> u32 {
        u32::try_from(self.gates.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is no destination at all.
    pub fn is_empty(&self) -> bool {
        self.gates.is_empty()
    }

    /// A destination that gets parcels faster than they are sent, where that holds for all that answer: then it is our writers
    /// that are behind. Where one of them keeps up, a crowd at another says that this one is slow.
    pub fn crowded(&self) -> Option<&'static Gate> {
        let mut answering = self.gates.iter().copied().filter(|gate| gate.is_answering());
        let first = answering.next().filter(|gate| gate.is_crowded())?;
        answering.all(Gate::is_crowded).then_some(first)
    }

    /// Whether a spool that works is behind and needed, now or once `next` is here: whoever waits a little before his offer
    /// loses nothing to it.
    pub fn is_pressed(&self, next: &PushParts) -> bool {
        self.has_spools && self.gates.iter().any(|gate| gate.is_pressed(next))
    }

    /// Puts one parcel of `push` on every destination's queue: on all, or under `--overflow refuse` on none.
    ///
    /// # Errors
    /// [`OfferRefused::QueueFull`] when a queue may not overflow and is full; [`OfferRefused::SpoolBehind`] when a spool
    /// that has to store everything can't keep up. Nothing has been queued then.
    pub fn offer(&self, push: &Arc<Push>) -> Result<(), OfferRefused> {
        if self.has_spools && self.gates.iter().any(|gate| gate.is_spool_behind()) {
            return Err(OfferRefused::SpoolBehind);
        }
        if self.overflow == Overflow::Refuse {
            for (index, gate) in self.gates.iter().enumerate() {
                if !gate.try_reserve(push) {
                    self.gates[..index].iter().for_each(|gate| gate.unreserve(push));
                    return Err(OfferRefused::QueueFull);
                }
            }
        } else {
            self.gates.iter().for_each(|gate| gate.reserve(push));
        }
        for gate in &self.gates {
            gate.accept(Parcel::new(Ticket::new(push.clone(), gate)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::push::tests::push;
    use super::*;
    use crate::runtime::clock;

    /// A destination that has answered just now.
    fn answering(index: usize) -> &'static Gate {
        let gate = Gate::new(DestinationId(index), format!("d{index}"), u64::MAX);
        gate.status.set_up(true);
        gate.status.delivered(clock::now());
        Box::leak(Box::new(gate))
    }

    #[test]
    fn a_crowd_is_one_where_none_that_answers_keeps_up() {
        let (slow, quick, silent) = (
            answering(0),
            answering(1),
            Gate::new(DestinationId(2), "silent".into(), u64::MAX),
        );
        let silent: &'static Gate = Box::leak(Box::new(silent));
        let all = Fanout::new(vec![silent, slow, quick], Overflow::DropOldest);
        let crowd_before = |gates: &[&'static Gate]| {
            let fanout = Fanout::new(gates.to_vec(), Overflow::DropOldest);
            (0..100).for_each(|_| fanout.offer(&Arc::new(push(1, AckMode::Detached, 1))).unwrap());
        };
        let crowded = || all.crowded().map(|gate| gate.id.0);
        assert_eq!(crowded(), None, "nothing waits");
        crowd_before(&[slow, silent]);
        assert_eq!(
            crowded(),
            None,
            "one keeps up: the other is slow, which clients need not know"
        );
        crowd_before(&[quick]);
        assert_eq!(crowded(), Some(0), "all that answer are behind: so are we");
        while let Some(parcel) = slow.take() {
            parcel.ticket.resolve(Outcome::Delivered);
        }
        assert_eq!(crowded(), None, "whichever of them keeps up");
        slow.status.set_up(false);
        assert_eq!(crowded(), Some(1), "one that is down does not keep up");
        quick.status.set_up(false);
        assert_eq!(crowded(), None, "nobody answers: nothing to wait for");
    }
}
