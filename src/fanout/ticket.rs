//! The way back: what became of one parcel, told once.

use std::sync::Arc;

use super::gate::Gate;
use super::push::Push;
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
    /// It could not be written to the archive's disk.
    WriteFailed,
    /// It was waiting when the drain timeout of a shutdown ran out.
    Shutdown,
    /// A ticket was lost: a mistake in pyrotee, please report it.
    Abandoned,
}

impl DropReason {
    /// Every reason, in the order of its [`DropReason::index`].
    pub const ALL: [Self; 9] = [
        Self::Overflow,
        Self::TooOld,
        Self::Rejected,
        Self::Unauthorized,
        Self::Redirected,
        Self::RetriesExhausted,
        Self::WriteFailed,
        Self::Shutdown,
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
            Self::Shutdown => "shutdown",
            Self::Abandoned => "abandoned",
        }
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
#[must_use = "a parcel ends only by its ticket"]
#[derive(Debug)]
pub struct Ticket {
    push: Arc<Push>,
    gate: &'static Gate,
    settled: bool,
}

impl Ticket {
    pub(super) fn new(push: Arc<Push>, gate: &'static Gate) -> Self {
        Self {
            push,
            gate,
            settled: false,
        }
    }

    /// The push it is for.
    pub fn push(&self) -> &Arc<Push> {
        &self.push
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
        self.gate.settle(&self.push, outcome);
        self.push.settle(outcome);
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
