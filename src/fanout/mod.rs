//! The one crossing between cores: a push becomes one parcel per destination, and outcomes become one answer.
//!
//! ```text
//!  inbound core                     this module                            writer core of destination i
//!  Push ──▶ Fanout::offer ──▶ Gate i: reserve bytes ──▶ bounded queue ──▶ Parcel { Arc<Push>, Ticket }
//!                                                                                   │
//!  Push::outcome().await ◀── ack: pending − 1, first failure kept ◀── Ticket::resolve(Outcome)
//! ```
//! Invariants, per gate and at every moment that no call is under way:
//! `accepted = delivered + Σ dropped{reason} + held`, in parcels and in bytes; `0 ≤ in_flight ≤ held`.
//! A parcel ends by its ticket alone; a ticket that is dropped unresolved counts as `abandoned`, so a mistake of ours is
//! visible too.

pub mod gate;
pub mod push;
pub mod queue;
pub mod status;
pub mod ticket;

use std::sync::Arc;

use crate::config::Overflow;

pub use gate::{DestinationId, Gate};
pub use push::{AckMode, Push, Verdict};
pub use status::Status;
pub use ticket::{DropReason, Outcome, Ticket};

/// One push for one destination.
#[derive(Debug)]
pub struct Parcel {
    /// The way back.
    pub ticket: Ticket,
    /// Attempts that count against the destination's limit, made so far.
    pub attempts: u32,
}

/// All destinations, as a push sees them.
#[derive(Debug)]
pub struct Fanout {
    gates: Vec<&'static Gate>,
    overflow: Overflow,
}

/// Why no destination took a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferRefused {
    /// `--overflow refuse` and at least one queue is full.
    QueueFull,
}

impl Fanout {
    /// Gates live as long as the process: they are few, and every parcel refers to one.
    pub fn new(gates: Vec<&'static Gate>, overflow: Overflow) -> Self {
        Self { gates, overflow }
    }

    /// The gates in the order of `--to`.
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

    /// Whether a destination that answers gets parcels faster than they are sent.
    pub fn is_crowded(&self) -> bool {
        self.gates.iter().any(|gate| gate.is_crowded())
    }

    /// Puts one parcel of `push` on every destination's queue: on all, or under `--overflow refuse` on none.
    ///
    /// # Errors
    /// [`OfferRefused::QueueFull`] when a queue may not overflow and is full; nothing has been queued then.
    pub fn offer(&self, push: &Arc<Push>) -> Result<(), OfferRefused> {
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
            gate.accept(Parcel {
                ticket: Ticket::new(push.clone(), gate),
                attempts: 0,
            });
        }
        Ok(())
    }
}
