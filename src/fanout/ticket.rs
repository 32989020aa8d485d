//! The way back: what became of one parcel, told once.

use std::sync::Arc;

use super::gate::Gate;
use super::push::Push;
use super::spool_link::{RecordId, Return};
use crate::profile::connect::Code;

/// Why a parcel was not delivered. The variant is the metric label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The queue was full and this was its oldest parcel.
    Overflow,
    /// Older than `--max-age` before it could be sent.
    TooOld,
    /// The destination said that it will never take it (4xx, DESIGN.md section 6).
    Rejected,
    /// The destination did not accept our credentials (401, 403).
    Unauthorized,
    /// The destination redirected in a way that would lose the body, or without end.
    Redirected,
    /// As many attempts as `--max-retries` allows have failed.
    RetriesExhausted,
    /// It could not be written to disk: to an archive, or to the spool where `--ack stored` wants it.
    WriteFailed,
    /// It was read back from the spool and is not what was written there.
    Damaged,
    /// It was waiting when the drain timeout of a shutdown ran out.
    Shutdown,
    /// Its destination was removed by a reload and took nothing for as long as the drain timeout.
    Removed,
    /// A ticket was lost: a mistake in pyrotee, please report it.
    Abandoned,
}

impl DropReason {
    /// Every reason, in the order of its [`DropReason::index`].
    pub const ALL: [Self; 11] = [
        Self::Overflow,
        Self::TooOld,
        Self::Rejected,
        Self::Unauthorized,
        Self::Redirected,
        Self::RetriesExhausted,
        Self::WriteFailed,
        Self::Damaged,
        Self::Shutdown,
        Self::Removed,
        Self::Abandoned,
    ];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::TooOld => "too_old",
            Self::Rejected => "rejected",
            Self::Unauthorized => "unauthorized",
            Self::Redirected => "redirected",
            Self::RetriesExhausted => "retries_exhausted",
            Self::WriteFailed => "write_failed",
            Self::Damaged => "damaged",
            Self::Shutdown => "shutdown",
            Self::Removed => "removed",
            Self::Abandoned => "abandoned",
        }
    }

    /// Whether a parcel that is on disk stays there for another time: it was its memory that had to go.
    fn leaves_it_stored(self) -> bool {
        matches!(
            self,
            Self::Overflow | Self::Shutdown | Self::Removed | Self::Abandoned
        )
    }

    /// The position in [`DropReason::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// What a destination made of a parcel, in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has it.
    Delivered,
    /// It answered, and not with success.
    Answered {
        /// Its HTTP status.
        status: u16,
        /// The Connect code in it, if it spoke Connect.
        code: Option<Code>,
        /// Why we stopped.
        reason: DropReason,
    },
    /// It never answered, or was never asked.
    Unanswered {
        /// Why we stopped.
        reason: DropReason,
    },
}

/// The duty to say what became of one parcel. Holding one is holding the parcel's place in the books.
///
/// ```text
///  new ──────────────┬─ resolve, drop_for ─▶ the end
///    │ stored        │
///    ▼               ├─ shelve ─▶ on disk alone ─┐
///  with a record ────┘                           │
///    ▲                                           │
///    └──────────────── restored ◀────────────────┘
/// ```
/// With a record, dropping it for want of memory or of time leaves it on disk.
#[must_use = "a parcel ends only by its ticket"]
#[derive(Debug)]
pub struct Ticket {
    push: Arc<Push>,
    gate: &'static Gate,
    /// Boxed, because few parcels have one and all are passed on by value.
    record: Option<Box<RecordId>>,
    /// Whether the gate's budget counts it.
    in_budget: bool,
    settled: bool,
}

impl Ticket {
    /// The ticket of a parcel whose push is reserved in the gate's budget.
    pub(super) fn new(push: Arc<Push>, gate: &'static Gate) -> Self {
        Self {
            push,
            gate,
            record: None,
            in_budget: true,
            settled: false,
        }
    }

    /// The ticket of a parcel that was on disk alone and is in memory again, not in the gate's budget yet.
    pub fn restored(push: Arc<Push>, gate: &'static Gate, record: RecordId) -> Self {
        gate.note_restored(&push);
        Self {
            push,
            gate,
            record: Some(Box::new(record)),
            in_budget: false,
            settled: false,
        }
    }

    /// The push it is for.
    pub fn push(&self) -> &Arc<Push> {
        &self.push
    }

    /// Whether the parcel is on disk too.
    pub fn is_stored(&self) -> bool {
        self.record.is_some()
    }

    /// The parcel is on disk, synced, and stays in memory too.
    pub fn stored(&mut self, record: RecordId) {
        self.record = Some(Box::new(record));
        self.push.note_stored();
    }

    /// The parcel is on disk, and its memory goes.
    pub fn shelve(mut self) {
        self.set_in_budget(false);
        self.settled = true;
        self.gate.note_spooled(&self.push);
        self.push.note_stored();
    }

    /// Counts it in the gate's budget, or no longer.
    pub(super) fn set_in_budget(&mut self, in_budget: bool) {
        match (self.in_budget, in_budget) {
            (false, true) => self.gate.reserve(&self.push),
            (true, false) => self.gate.unreserve(&self.push),
            _ => {}
        }
        self.in_budget = in_budget;
    }

    /// Ends the parcel.
    pub fn resolve(mut self, outcome: Outcome) {
        self.settle(outcome);
    }

    /// Ends the parcel without an answer of the destination.
    pub fn drop_for(self, reason: DropReason) {
        self.resolve(Outcome::Unanswered { reason });
    }

    fn settle(&mut self, outcome: Outcome) {
        self.settled = true;
        self.set_in_budget(false);
        match (self.record.as_deref().copied(), outcome) {
            (Some(record), Outcome::Unanswered { reason }) if reason.leaves_it_stored() => {
                self.gate.note_spooled(&self.push);
                self.gate.give_back(Return::Release(record));
            }
            (Some(record), Outcome::Unanswered { reason } | Outcome::Answered { reason, .. })
                if self.gate.keep_refused(reason) =>
            {
                self.gate.note_spooled(&self.push);
                self.gate.give_back(Return::Keep(record));
            }
            (Some(record), _) => {
                self.gate.settle(&self.push, outcome);
                self.gate.give_back(Return::Done(record));
            }
            (None, _) => {
                self.gate.settle(&self.push, outcome);
                self.push.settle(outcome);
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.settled {
            let reason = self.gate.reason_for_lost_ticket();
            self.settle(Outcome::Unanswered { reason });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_listed_once_and_in_order() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
        }
    }
}
