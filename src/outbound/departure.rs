//! How a destination ends that a reload has removed: what waits for it is delivered or given up, then whoever serves it ends,
//! then its spool. Pure: no clock and no threads, so that `gateway::leaving` and the model test run the same code.
//!
//! ```text
//!  begin ─▶ Delivering ──nothing waits─────────────────▶ Ending ─▶ Storing ─▶ over
//!              │  ▲                                        ▲
//!              │  └─ take_back: as if nothing had been     │ nothing waits
//!              └─ for its patience it took nothing ─▶ GivingUp
//! ```
//! Not responsible for who offers to it, and not for what is left on its disk.

use std::time::Duration;

use crate::fanout::{DropReason, Gate};
use crate::runtime::clock::Mono;

/// A destination on its way out.
pub struct Departure {
    gate: &'static Gate,
    /// For how long it may take nothing.
    patience: Duration,
    stage: Stage,
}

/// What is waited for.
enum Stage {
    /// What waits is sent. So many were delivered when something last was, or when nothing waited.
    Delivering { delivered: u64, moved: Mono },
    /// What waits is given up, what is on the wire ends.
    GivingUp,
    /// Nothing waits; its core or its archive comes to its end.
    Ending,
    /// The keeper of its spool comes to its end.
    Storing,
}

/// What a step goes by. It has to be seen before the step.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The time.
    pub now: Mono,
    /// Whether it may be wanted again soon: a reload is being prepared.
    pub is_held: bool,
    /// Whether nobody can offer to it any more.
    pub is_cut_off: bool,
}

/// Those who work for a destination that leaves.
pub trait Crew {
    /// Its core or its archive gives up what waits, as removed. Said more than once: an attempt that has failed since waits for
    /// its next one.
    fn give_up(&mut self);
    /// Its core or its archive ends. Nothing is left for it.
    fn end(&mut self);
    /// Whether that has been done.
    fn has_ended(&mut self) -> bool;
    /// Whether the keeper of its spool has ended, where it has one.
    fn has_keeper_ended(&mut self) -> bool;
}

impl Departure {
    /// The destination behind `gate` was removed.
    pub fn begin(gate: &'static Gate, patience: Duration, now: Mono) -> Self {
        if let Some(link) = gate.spool() {
            link.stop_reading();
        }
        let delivered = gate.books().delivered.parcels;
        let stage = Stage::Delivering {
            delivered,
            moved: now,
        };
        Self {
            gate,
            patience,
            stage,
        }
    }

    /// Whether it can still come back as if nothing had been; later it has to be gone first.
    pub fn can_return(&self) -> bool {
        matches!(self.stage, Stage::Delivering { .. })
    }

    /// It is wanted again, and can return.
    pub fn take_back(self) {
        debug_assert!(self.can_return(), "it has to be gone first");
        if let Some(link) = self.gate.spool() {
            link.resume_reading();
        }
    }

    /// Does what can be done now. Returns whether it is over.
    pub fn step(&mut self, seen: Seen, crew: &mut impl Crew) -> bool {
        let gate = self.gate;
        match &mut self.stage {
            Stage::Delivering { .. } if seen.is_held => {}
            Stage::Delivering { delivered, moved } => {
                let is_empty = gate.is_memory_empty();
                let delivered_now = gate.books().delivered.parcels;
                if is_empty && seen.is_cut_off {
                    self.end(crew);
                } else if is_empty || delivered_now != *delivered {
                    (*delivered, *moved) = (delivered_now, seen.now);
                } else if seen.is_cut_off && seen.now.since(*moved) >= self.patience {
                    self.give_up(crew);
                }
            }
            Stage::GivingUp if gate.is_memory_empty() => self.end(crew),
            Stage::GivingUp => crew.give_up(),
            Stage::Ending if crew.has_ended() => {
                // Not before: whoever ended the last parcel tells the spool so, and what it is not told is sent again.
                if let Some(link) = gate.spool() {
                    link.finish();
                }
                self.stage = Stage::Storing;
            }
            Stage::Ending => {}
            Stage::Storing => return crew.has_keeper_ended(),
        }
        false
    }

    fn give_up(&mut self, crew: &mut impl Crew) {
        tracing::warn!(
            destination = %self.gate.name,
            waiting = self.gate.parcels_in_memory(),
            "removed destination takes nothing; what waits for it is given up"
        );
        if let Some(link) = self.gate.spool() {
            link.set_last(DropReason::Removed);
        }
        crew.give_up();
        self.stage = Stage::GivingUp;
    }

    fn end(&mut self, crew: &mut impl Crew) {
        crew.end();
        self.stage = Stage::Ending;
    }
}
