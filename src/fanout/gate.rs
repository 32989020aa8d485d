//! The entrance of one destination: its byte budget, its bounded queue between cores, and its books.
//!
//! Inbound cores call `Gate::accept`, its writer core calls [`Gate::take`]; neither ever waits. The counters are relaxed
//! atomics: each is one locked instruction per parcel on a line of its own side, against the ten thousand instructions
//! that the kernel spends on that parcel.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, SendError, Sender};
use crossbeam_utils::CachePadded;
use tokio::sync::Notify;

use super::Parcel;
use super::push::{AckMode, Push, PushParts};
use super::spool_link::{Return, SpoolLink};
use super::status::Status;
use super::ticket::{DropReason, Outcome};
use crate::config::Overflow;
use crate::runtime::clock;
use crate::runtime::doorbell::Doorbell;

/// Parcels that may lie between two turns of the writer core's loop. It empties the queue at each turn; more than this
/// many can arrive only while that core is not scheduled at all. 48 bytes each, in blocks that are taken as they are needed:
/// a ring of this size would have each parcel on lines that no cache holds any more.
const CROSSING_PARCELS_MAX: usize = 16_384;

/// Parcels waiting beyond which a gate is crowded: one turn of a default window.
const CROWDED_PARCELS: u64 = 64;
/// Bytes held beyond which it is crowded: what fits the caches of a core beside everything else.
const CROWDED_BYTES: u64 = 4 << 20;

/// Which destination of this process, counted as they come. One that was removed and comes again is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DestinationId(pub usize);

/// The entrance of one destination.
#[derive(Debug)]
pub struct Gate {
    /// Which destination this is.
    pub id: DestinationId,
    /// What logs, metrics and pages call it.
    pub name: String,
    /// Rung when something was put on the queue.
    pub doorbell: Doorbell,
    /// Is it up, and if not, why not.
    pub status: Status,
    bytes_max: AtomicU64,
    pinned_bytes_max: AtomicU64,
    drops_oldest: bool,
    spool: Option<SpoolLink>,
    closing: AtomicBool,
    sender: Sender<Parcel>,
    receiver: Receiver<Parcel>,
    crossing_parcels_max: usize,
    inbound: CachePadded<Accepted>,
    outbound: CachePadded<Settled>,
}

/// Written by inbound cores.
#[derive(Debug, Default)]
struct Accepted {
    parcels: AtomicU64,
    bytes: AtomicU64,
    held_parcels: AtomicU64,
    held_bytes: AtomicU64,
    /// Against the limit: [`Push::weight`] of what is held.
    held_weight: AtomicU64,
    /// [`Push::pinned_bytes`] of what is held. A parcel can pin far more than it weighs: a few bytes keep the buffer that
    /// they were received into.
    held_pinned_bytes: AtomicU64,
    /// Of what is held, on disk and not in memory.
    spooled_parcels: AtomicU64,
    spooled_bytes: AtomicU64,
    /// Of what was accepted, by an earlier process.
    recovered_parcels: AtomicU64,
}

/// Written where parcels end: the writer core, and inbound cores for overflow.
#[derive(Debug, Default)]
struct Settled {
    delivered: Tally,
    dropped: [Tally; DropReason::ALL.len()],
    in_flight: AtomicU64,
    /// Clients that wait for room.
    waiters: AtomicU32,
    /// Rung for one of them when a parcel ends.
    room: Notify,
}

/// One that waits for room, counted until it is dropped.
struct Waiter<'a>(&'a AtomicU32);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Parcels, and what they carried.
#[derive(Debug, Default)]
struct Tally {
    parcels: AtomicU64,
    bytes: AtomicU64,
    profiles: AtomicU64,
    profile_bytes: AtomicU64,
}

impl Tally {
    fn add(&self, other: &Self) {
        for (to, from) in [
            (&self.parcels, &other.parcels),
            (&self.bytes, &other.bytes),
            (&self.profiles, &other.profiles),
            (&self.profile_bytes, &other.profile_bytes),
        ] {
            to.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// A reading of a `Tally`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Amount {
    /// Parcels.
    pub parcels: u64,
    /// Body bytes.
    pub bytes: u64,
    /// Profiles in them.
    pub profiles: u64,
    /// Bytes of those profiles (WIRE.md 4.6).
    pub profile_bytes: u64,
}

/// A reading of a gate's books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Books {
    /// Taken in.
    pub accepted_parcels: u64,
    /// Taken in, in body bytes.
    pub accepted_bytes: u64,
    /// Had by the destination.
    pub delivered: Amount,
    /// Given up, by [`DropReason::index`].
    pub dropped: [Amount; DropReason::ALL.len()],
    /// Waiting or in flight.
    pub held_parcels: u64,
    /// Waiting or in flight, in body bytes.
    pub held_bytes: u64,
    /// Of what is held, on disk and not in memory.
    pub spooled_parcels: u64,
    /// The same in body bytes.
    pub spooled_bytes: u64,
    /// Of what was accepted, found in the spool when the destination was started: it had been accepted before.
    pub recovered_parcels: u64,
    /// Being sent right now.
    pub in_flight: u64,
}

impl Books {
    /// All that was given up.
    pub fn dropped_total(&self) -> Amount {
        self.dropped.iter().fold(Amount::default(), |sum, one| Amount {
            parcels: sum.parcels + one.parcels,
            bytes: sum.bytes + one.bytes,
            profiles: sum.profiles + one.profiles,
            profile_bytes: sum.profile_bytes + one.profile_bytes,
        })
    }

    /// Parcels waiting, in memory or on disk, not in flight.
    pub fn queued_parcels(&self) -> u64 {
        self.held_parcels.saturating_sub(self.in_flight)
    }

    /// Parcels held in memory.
    pub fn parcels_in_memory(&self) -> u64 {
        self.held_parcels.saturating_sub(self.spooled_parcels)
    }

    /// Whether the conservation law holds. Exact at rest; while parcels move, readings are taken one after the other.
    pub fn balance(&self) -> bool {
        let dropped = self.dropped_total();
        self.accepted_parcels == self.delivered.parcels + dropped.parcels + self.held_parcels
            && self.accepted_bytes == self.delivered.bytes + dropped.bytes + self.held_bytes
    }
}

impl Gate {
    /// The gate of one destination that may hold `bytes_max`.
    pub fn new(id: DestinationId, name: String, bytes_max: u64) -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded();
        Self {
            id,
            name,
            doorbell: Doorbell::default(),
            status: Status::default(),
            bytes_max: AtomicU64::new(bytes_max),
            pinned_bytes_max: AtomicU64::new(u64::MAX),
            drops_oldest: true,
            spool: None,
            closing: AtomicBool::new(false),
            sender,
            receiver,
            crossing_parcels_max: CROSSING_PARCELS_MAX,
            inbound: CachePadded::default(),
            outbound: CachePadded::default(),
        }
    }

    /// A gate on whose crossing `crossing_parcels_max` may lie, for tests that want it to run over.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn with_crossing(self, crossing_parcels_max: usize) -> Self {
        Self {
            crossing_parcels_max,
            ..self
        }
    }

    /// Bounds the memory that its parcels may pin, too.
    #[must_use]
    pub fn with_pinned_bytes_max(self, pinned_bytes_max: u64) -> Self {
        self.set_pinned_bytes_max(pinned_bytes_max);
        self
    }

    /// Goes on with the books of `past`, the gate of a destination of this name that has ended: what it had delivered and
    /// dropped. What it left in a spool is not in them any more, it is found there again.
    #[must_use]
    pub fn continuing(self, past: &Self) -> Self {
        let ended = |tally: &Tally| tally.parcels.load(Ordering::Relaxed);
        let (from, to) = (&past.outbound, &self.outbound);
        let mut parcels = ended(&from.delivered);
        let mut bytes = from.delivered.bytes.load(Ordering::Relaxed);
        to.delivered.add(&from.delivered);
        for (to, from) in to.dropped.iter().zip(&from.dropped) {
            to.add(from);
            parcels += ended(from);
            bytes += from.bytes.load(Ordering::Relaxed);
        }
        self.inbound.parcels.store(parcels, Ordering::Relaxed);
        self.inbound.bytes.store(bytes, Ordering::Relaxed);
        self.status.continue_from(&past.status);
        self
    }

    /// Changes the byte budget. What is too much then goes at the writer's next turn.
    pub fn set_bytes_max(&self, bytes_max: u64) {
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// Changes how much memory its parcels may pin.
    pub fn set_pinned_bytes_max(&self, pinned_bytes_max: u64) {
        self.pinned_bytes_max.store(pinned_bytes_max, Ordering::Relaxed);
    }

    /// Says what gives way when it is full: its oldest parcel, or new pushes. What was taken in on the spool's account, which
    /// then had no room after all, stays in memory under [`Overflow::Refuse`].
    #[must_use]
    pub fn with_overflow(self, overflow: Overflow) -> Self {
        Self {
            drops_oldest: overflow == Overflow::DropOldest,
            ..self
        }
    }

    /// Gives it a spool.
    #[must_use]
    pub fn with_spool(self, link: SpoolLink) -> Self {
        let spool = Some(link);
        Self { spool, ..self }
    }

    /// Its spool, if it has one.
    pub fn spool(&self) -> Option<&SpoolLink> {
        self.spool.as_ref()
    }

    /// Takes what `push` weighs and pins out of the budget if it fits, in memory or in the spool. A single parcel always
    /// does.
    pub(super) fn try_reserve(&self, push: &Push) -> bool {
        self.reserve(push);
        let held = &self.inbound;
        let others = held
            .held_weight
            .load(Ordering::Relaxed)
            .saturating_sub(push.weight());
        let is_full = others > 0 && self.exceeds(1);
        // What a client waits for at a destination never goes to the spool.
        let may_be_spooled = matches!(push.ack_mode(), AckMode::Detached | AckMode::Stored);
        let has_room =
            may_be_spooled && !self.exceeds(2) && self.spool.as_ref().is_some_and(SpoolLink::has_room);
        if is_full && !has_room || self.is_crossing_full() {
            self.unreserve(push);
            return false;
        }
        true
    }

    /// Takes it whether or not it fits: the writer core makes room from the oldest.
    pub(super) fn reserve(&self, push: &Push) {
        self.inbound
            .held_weight
            .fetch_add(push.weight(), Ordering::Relaxed);
        self.inbound
            .held_pinned_bytes
            .fetch_add(push.pinned_bytes, Ordering::Relaxed);
    }

    pub(super) fn unreserve(&self, push: &Push) {
        self.inbound
            .held_weight
            .fetch_sub(push.weight(), Ordering::Relaxed);
        self.inbound
            .held_pinned_bytes
            .fetch_sub(push.pinned_bytes, Ordering::Relaxed);
    }

    /// Whether more is held than `times` the budget.
    fn exceeds(&self, times: u64) -> bool {
        let held = &self.inbound;
        let is_heavy = held.held_weight.load(Ordering::Relaxed) > self.bytes_max().saturating_mul(times);
        let pinned = held.held_pinned_bytes.load(Ordering::Relaxed);
        is_heavy || pinned > self.pinned_bytes_max().saturating_mul(times)
    }

    /// Whether the spool, which has to store every parcel first, is behind by as much as it may be.
    pub(super) fn is_spool_behind(&self) -> bool {
        self.spool
            .as_ref()
            .is_some_and(|link| link.stores_all() && link.is_behind() && !link.is_stalled())
    }

    /// Whether the disk is behind, though it works, and new parcels need it: all do under `--ack stored`, else those that
    /// memory has no room for. What is too much for memory already and has not been taken out of it yet is on its way to the
    /// disk, too.
    pub(super) fn is_pressed(&self, next: &PushParts) -> bool {
        self.spool.as_ref().is_some_and(|link| {
            if !link.is_well() {
                return false;
            }
            if link.stores_all() {
                return link.is_behind();
            }
            let held = &self.inbound;
            let weight = held.held_weight.load(Ordering::Relaxed);
            let pinned = held.held_pinned_bytes.load(Ordering::Relaxed);
            let too_much = weight
                .saturating_sub(self.bytes_max())
                .max(pinned.saturating_sub(self.pinned_bytes_max()));
            let is_needed = weight.saturating_add(next.weight()) > self.bytes_max()
                || pinned.saturating_add(next.pinned_bytes) > self.pinned_bytes_max()
                || !self.status.is_up();
            is_needed && link.is_behind_with(too_much)
        })
    }

    /// Queues a parcel whose weight has been reserved. If the crossing is full, its oldest parcel makes room.
    pub(super) fn accept(&self, parcel: Parcel) {
        let books = &self.inbound;
        books.parcels.fetch_add(1, Ordering::Relaxed);
        books
            .bytes
            .fetch_add(parcel.ticket.push().bytes, Ordering::Relaxed);
        books.held_parcels.fetch_add(1, Ordering::Relaxed);
        books
            .held_bytes
            .fetch_add(parcel.ticket.push().bytes, Ordering::Relaxed);
        match &self.spool {
            // Past a disk that hangs, what comes now is for its destination alone.
            Some(link) if link.stores_all() && !link.is_stalled() => link.put(parcel),
            _ => self.cross(parcel),
        }
    }

    /// Puts a parcel on the crossing, whose oldest make room where there is none.
    fn cross(&self, parcel: Parcel) {
        while self.is_crossing_full() {
            match self.receiver.try_recv() {
                Ok(oldest) => self.evict(oldest, DropReason::Overflow),
                Err(_) => break,
            }
        }
        if let Err(SendError(parcel)) = self.sender.send(parcel) {
            parcel.ticket.drop_for(DropReason::Abandoned); // never: the other end is here too
        }
        // Its consumer makes room from its oldest; where it does not come to that (an archive's disk hangs), nobody else may
        // suffer, and what lies here makes room instead.
        while self.drops_oldest && self.exceeds(2) && self.receiver.len() > 1 {
            match self.receiver.try_recv() {
                Ok(oldest) => self.evict(oldest, DropReason::Overflow),
                Err(_) => break,
            }
        }
        self.doorbell.call();
    }

    /// Takes a parcel out of memory: to the spool where it can go there, else it is dropped for `reason`.
    pub fn evict(&self, parcel: Parcel, reason: DropReason) {
        if let Err(parcel) = self.spool_away(parcel) {
            parcel.ticket.drop_for(reason);
        }
    }

    /// Takes the oldest parcel out of memory because it is too much: to the spool, or else it is dropped where it may be. For a
    /// disk that is only behind it waits in memory, up to twice the budget: clients wait for that disk too, so what comes
    /// meanwhile is little.
    ///
    /// # Errors
    /// The parcel, when the spool does not take it now, or at all and nothing may be dropped (`--overflow refuse`).
    pub fn make_room(&self, parcel: Parcel) -> Result<(), Parcel> {
        match self.spool_away(parcel) {
            Err(parcel)
                if parcel.may_be_spooled()
                    && self.spool.as_ref().is_some_and(SpoolLink::is_only_behind)
                    && !self.exceeds(2) =>
            {
                Err(parcel)
            }
            // One that is stored stays there.
            Err(parcel) if self.drops_oldest || parcel.ticket.is_stored() => {
                parcel.ticket.drop_for(DropReason::Overflow);
                Ok(())
            }
            other => other,
        }
    }

    /// Nobody is left to send or store what lies in the crossing: a spool that ended could not take it and gave it back.
    pub fn drop_rest(&self) {
        while let Some(parcel) = self.take() {
            parcel.ticket.drop_for(DropReason::Shutdown);
        }
    }

    /// Hands a parcel to the spool.
    ///
    /// # Errors
    /// The parcel, when there is no spool, when the spool takes nothing now, when a client waits for the parcel's
    /// outcome, or when the parcel is stored already (dropping its ticket for [`DropReason::Overflow`] leaves it there).
    pub fn spool_away(&self, parcel: Parcel) -> Result<(), Parcel> {
        match &self.spool {
            Some(link) if parcel.may_be_spooled() && link.has_room() => {
                link.put(parcel);
                Ok(())
            }
            _ => Err(parcel),
        }
    }

    /// The spool's side: a parcel comes (back) into memory, to be delivered.
    pub fn forward(&self, mut parcel: Parcel) {
        parcel.ticket.set_in_budget(true);
        self.cross(parcel);
    }

    /// The spool's side: whether a stored parcel of `bytes` may come back into memory. Half of the budget stays for new
    /// ones.
    pub fn has_room_for_stored(&self, bytes: u64) -> bool {
        let held = &self.inbound;
        let is_free = |cell: &AtomicU64, limit: u64| {
            let held = cell.load(Ordering::Relaxed);
            held == 0 || held.saturating_add(bytes) <= limit / 2
        };
        is_free(&held.held_weight, self.bytes_max())
            && is_free(&held.held_pinned_bytes, self.pinned_bytes_max())
            && self.receiver.len() < self.crossing_parcels_max / 2
    }

    /// Whether as many parcels lie in the crossing as may; with several cores that accept, one for each more. All of them are
    /// held, so that number is looked at first: it is on a line that is at hand.
    fn is_crossing_full(&self) -> bool {
        let held = self.inbound.held_parcels.load(Ordering::Relaxed);
        held >= self.crossing_parcels_max as u64 && self.receiver.len() >= self.crossing_parcels_max
    }

    /// The spool's side: what an earlier process had accepted and not delivered.
    pub fn recover(&self, found: Amount) {
        let books = &self.inbound;
        for (cell, by) in [
            (&books.parcels, found.parcels),
            (&books.bytes, found.bytes),
            (&books.held_parcels, found.parcels),
            (&books.held_bytes, found.bytes),
            (&books.spooled_parcels, found.parcels),
            (&books.spooled_bytes, found.bytes),
            (&books.recovered_parcels, found.parcels),
        ] {
            cell.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// The spool's side: parcels that were on disk alone are given up for `reason`.
    pub fn drop_spooled(&self, lost: Amount, reason: DropReason) {
        let tally = &self.outbound.dropped[reason.index()];
        for (cell, by) in [
            (&tally.parcels, lost.parcels),
            (&tally.bytes, lost.bytes),
            (&tally.profiles, lost.profiles),
            (&tally.profile_bytes, lost.profile_bytes),
        ] {
            cell.fetch_add(by, Ordering::Relaxed);
        }
        let books = &self.inbound;
        books.held_parcels.fetch_sub(lost.parcels, Ordering::Relaxed);
        books.held_bytes.fetch_sub(lost.bytes, Ordering::Relaxed);
        books.spooled_parcels.fetch_sub(lost.parcels, Ordering::Relaxed);
        books.spooled_bytes.fetch_sub(lost.bytes, Ordering::Relaxed);
    }

    /// A parcel's memory goes, it stays on disk.
    pub(super) fn note_spooled(&self, push: &Push) {
        self.inbound.spooled_parcels.fetch_add(1, Ordering::Relaxed);
        self.inbound
            .spooled_bytes
            .fetch_add(push.bytes, Ordering::Relaxed);
    }

    /// A parcel that was on disk alone is in memory again.
    pub(super) fn note_restored(&self, push: &Push) {
        self.inbound.spooled_parcels.fetch_sub(1, Ordering::Relaxed);
        self.inbound
            .spooled_bytes
            .fetch_sub(push.bytes, Ordering::Relaxed);
    }

    /// Whether a stored parcel that is not taken stays on disk, which is noted then.
    pub(super) fn keep_refused(&self, reason: DropReason) -> bool {
        self.spool.as_ref().is_some_and(|link| link.keep_refused(reason))
    }

    /// Tells the spool what becomes of a record that was out.
    pub(super) fn give_back(&self, record: Return) {
        if let Some(link) = &self.spool {
            link.give_back(record);
        }
    }

    /// Parcels in the crossing.
    #[cfg(test)]
    pub(crate) fn crossing_parcels(&self) -> usize {
        self.receiver.len()
    }

    /// The next parcel in the crossing, if any.
    pub fn take(&self) -> Option<Parcel> {
        self.receiver.try_recv().ok()
    }

    /// Whether the destination has accepted something lately, and is not down.
    pub(super) fn is_answering(&self) -> bool {
        self.status.is_up() && self.status.has_delivered_lately(clock::recent())
    }

    /// Whether parcels come faster than they are sent: more wait than its writer takes in a turn, or so many bytes that they
    /// leave the cache before they are read again.
    pub(super) fn is_crowded(&self) -> bool {
        let waiting = self.parcels_waiting();
        waiting > CROWDED_PARCELS
            || waiting > 0 && self.inbound.held_weight.load(Ordering::Relaxed) > CROWDED_BYTES
    }

    /// Ends when a parcel has ended after the call, at most one call for each parcel: so a crowd does not grow. The caller sets
    /// the limit.
    pub async fn room(&self) {
        self.outbound.waiters.fetch_add(1, Ordering::Relaxed);
        let _left = Waiter(&self.outbound.waiters);
        self.outbound.room.notified().await;
    }

    /// Whether more is held than the budget allows, so that the oldest has to go. A single parcel never is too much.
    pub fn is_over_budget(&self) -> bool {
        self.exceeds(1) && self.parcels_in_memory() > 1
    }

    /// The process leaves: tickets lost from now on are lost to the shutdown.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Why a ticket may be dropped unresolved.
    pub(super) fn reason_for_lost_ticket(&self) -> DropReason {
        if self.closing.load(Ordering::Acquire) {
            DropReason::Shutdown
        } else {
            DropReason::Abandoned
        }
    }

    /// The byte budget.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Ordering::Relaxed)
    }

    fn pinned_bytes_max(&self) -> u64 {
        self.pinned_bytes_max.load(Ordering::Relaxed)
    }

    /// Parcels waiting or in flight, in memory or on disk.
    pub fn held_parcels(&self) -> u64 {
        self.inbound.held_parcels.load(Ordering::Relaxed)
    }

    /// Parcels waiting or in flight that are not on disk alone. While parcels move this is too many rather than too few, as long
    /// as no new ones are accepted: once it is 0 there are none.
    pub fn parcels_in_memory(&self) -> u64 {
        self.parcels_in_memory_while(|| ())
    }

    /// The same, while something happens between its two readings. What is held gets only less, so it is read first: one that
    /// comes back from disk, and another that ends, are then seen once at least.
    fn parcels_in_memory_while(&self, moving: impl FnOnce()) -> u64 {
        let held = self.inbound.held_parcels.load(Ordering::Acquire);
        moving();
        held.saturating_sub(self.inbound.spooled_parcels.load(Ordering::Relaxed))
    }

    /// Whether nothing is in memory and nothing comes back there from disk. Exact once nobody offers any more and the spool was
    /// told to stop reading.
    pub fn is_memory_empty(&self) -> bool {
        let has_stopped = self.spool.as_ref().is_none_or(SpoolLink::has_stopped_reading);
        // In this order: what was read last is counted.
        has_stopped && self.parcels_in_memory() == 0
    }

    /// One parcel goes on the wire.
    pub fn begin_attempt(&self) {
        self.outbound.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// It is off the wire, whatever became of it.
    pub fn end_attempt(&self) {
        self.outbound.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Books the end of a parcel. Called by its ticket, once.
    pub(super) fn settle(&self, push: &Push, outcome: Outcome) {
        let tally = match outcome {
            Outcome::Delivered => &self.outbound.delivered,
            Outcome::Answered { reason, .. } | Outcome::Unanswered { reason } => {
                &self.outbound.dropped[reason.index()]
            }
        };
        tally.parcels.fetch_add(1, Ordering::Relaxed);
        tally.bytes.fetch_add(push.bytes, Ordering::Relaxed);
        tally
            .profiles
            .fetch_add(u64::from(push.profiles), Ordering::Relaxed);
        tally
            .profile_bytes
            .fetch_add(push.profile_bytes, Ordering::Relaxed);
        self.inbound.held_parcels.fetch_sub(1, Ordering::Relaxed);
        self.inbound.held_bytes.fetch_sub(push.bytes, Ordering::Relaxed);
        if self.outbound.waiters.load(Ordering::Relaxed) > 0 {
            self.let_in();
        }
    }

    /// One of the clients that wait for room may go on, for a parcel has ended. Where more wait than should, every second one
    /// lets nobody in, so that the crowd gets smaller.
    fn let_in(&self) {
        let is_second = self
            .outbound
            .delivered
            .parcels
            .load(Ordering::Relaxed)
            .is_multiple_of(2);
        if !is_second || self.parcels_waiting() <= CROWDED_PARCELS {
            self.outbound.room.notify_one();
        }
    }

    /// Parcels in memory that are not on the wire.
    fn parcels_waiting(&self) -> u64 {
        let in_flight = self.outbound.in_flight.load(Ordering::Relaxed);
        self.parcels_in_memory().saturating_sub(in_flight)
    }

    /// Reads the books.
    pub fn books(&self) -> Books {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let amount = |tally: &Tally| Amount {
            parcels: read(&tally.parcels),
            bytes: read(&tally.bytes),
            profiles: read(&tally.profiles),
            profile_bytes: read(&tally.profile_bytes),
        };
        Books {
            accepted_parcels: read(&self.inbound.parcels),
            accepted_bytes: read(&self.inbound.bytes),
            delivered: amount(&self.outbound.delivered),
            dropped: std::array::from_fn(|index| amount(&self.outbound.dropped[index])),
            held_parcels: read(&self.inbound.held_parcels),
            held_bytes: read(&self.inbound.held_bytes),
            spooled_parcels: read(&self.inbound.spooled_parcels),
            spooled_bytes: read(&self.inbound.spooled_bytes),
            recovered_parcels: read(&self.inbound.recovered_parcels),
            in_flight: read(&self.outbound.in_flight),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::push::tests::push;
    use super::super::{Fanout, OfferRefused, RecordId, Ticket};
    use super::*;

    fn gate(bytes_max: u64) -> &'static Gate {
        Box::leak(Box::new(Gate::new(DestinationId(0), "one".into(), bytes_max)))
    }

    #[test]
    fn the_books_balance_through_every_ending() {
        let weight = push(30, AckMode::Detached, 1).weight();
        let gate = gate(3 * weight);
        let fanout = Fanout::new(vec![gate], Overflow::DropOldest);
        for _ in 0..4 {
            fanout.offer(&Arc::new(push(30, AckMode::Detached, 1))).unwrap();
            assert!(gate.books().balance());
        }
        assert!(gate.is_over_budget());
        gate.take().unwrap().ticket.drop_for(DropReason::Overflow);
        assert!(!gate.is_over_budget());
        gate.take().unwrap().ticket.resolve(Outcome::Delivered);
        drop(gate.take().unwrap());
        let books = gate.books();
        assert!(books.balance());
        assert_eq!(
            (
                books.accepted_parcels,
                books.delivered.parcels,
                books.held_parcels
            ),
            (4, 1, 1)
        );
        assert_eq!(books.dropped[DropReason::Abandoned.index()].bytes, 30);
    }

    #[test]
    fn refuse_queues_on_all_or_on_none() {
        let weight = push(40, AckMode::Detached, 2).weight();
        let (roomy, tight) = (gate(10 * weight), gate(weight + 10));
        let fanout = Fanout::new(vec![roomy, tight], Overflow::Refuse);
        let offer = || fanout.offer(&Arc::new(push(40, AckMode::Detached, 2)));
        assert_eq!(offer(), Ok(()));
        assert_eq!(offer(), Err(OfferRefused::QueueFull));
        assert_eq!(roomy.books().held_bytes, 40);
        assert_eq!(roomy.books().accepted_parcels, 1);
        tight.take().unwrap().ticket.resolve(Outcome::Delivered);
        assert_eq!(offer(), Ok(()));
    }

    #[test]
    fn a_full_crossing_drops_its_oldest_and_counts_it() {
        let gate = gate(u64::MAX);
        let fanout = Fanout::new(vec![gate], Overflow::DropOldest);
        for bytes in 0..CROSSING_PARCELS_MAX as u64 + 3 {
            fanout
                .offer(&Arc::new(push(bytes, AckMode::Detached, 1)))
                .unwrap();
        }
        let books = gate.books();
        assert_eq!(books.dropped[DropReason::Overflow.index()].parcels, 3);
        assert!(books.balance());
        assert_eq!(
            gate.take().unwrap().ticket.push().bytes,
            3,
            "the oldest went first"
        );
    }

    #[test]
    fn a_full_crossing_refuses_where_nothing_may_be_dropped() {
        let gate = Gate::new(DestinationId(0), "d".into(), u64::MAX)
            .with_crossing(2)
            .with_overflow(Overflow::Refuse);
        let gate: &'static Gate = Box::leak(Box::new(gate));
        let fanout = Fanout::new(vec![gate], Overflow::Refuse);
        let offer = || fanout.offer(&Arc::new(push(10, AckMode::Detached, 1)));
        assert_eq!((offer(), offer()), (Ok(()), Ok(())));
        assert_eq!(offer(), Err(OfferRefused::QueueFull));
        let books = gate.books();
        assert_eq!((books.held_parcels, books.dropped_total().parcels), (2, 0));
    }

    #[test]
    fn a_consumer_that_hangs_holds_no_more_than_twice_the_budget() {
        let weight = push(10, AckMode::Detached, 1).weight();
        let gate = gate(10 * weight);
        let fanout = Fanout::new(vec![gate], Overflow::DropOldest);
        for _ in 0..100 {
            fanout.offer(&Arc::new(push(10, AckMode::Detached, 1))).unwrap();
        }
        let books = gate.books();
        assert!(books.balance() && books.held_parcels <= 20, "{books:?}");
    }

    #[test]
    fn a_destination_that_comes_again_goes_on_with_its_books() {
        let past = gate(u64::MAX);
        let fanout = Fanout::new(vec![past], Overflow::DropOldest);
        for _ in 0..3 {
            fanout.offer(&Arc::new(push(30, AckMode::Detached, 1))).unwrap();
        }
        past.take().unwrap().ticket.resolve(Outcome::Delivered);
        past.take().unwrap().ticket.drop_for(DropReason::Removed);
        past.take().unwrap().ticket.shelve();
        past.status.attempted(true);
        past.status.delivered(clock::now());
        let again = Gate::new(DestinationId(1), past.name.clone(), 1).continuing(past);
        let (before, after) = (past.books(), again.books());
        assert!(after.balance(), "{after:?}");
        assert_eq!((before.accepted_parcels, before.spooled_parcels), (3, 1));
        assert_eq!((after.accepted_parcels, after.held_parcels), (2, 0));
        assert_eq!((after.accepted_bytes, after.delivered), (60, before.delivered));
        assert_eq!(after.dropped, before.dropped);
        assert_eq!((again.status.attempts(), again.status.retries()), (1, 1));
        assert_eq!(
            again.status.last_success_unix_ms(),
            past.status.last_success_unix_ms()
        );
    }

    #[test]
    fn memory_is_not_taken_for_empty_while_parcels_move() {
        let gate = gate(u64::MAX);
        let fanout = Fanout::new(vec![gate], Overflow::DropOldest);
        (0..3).for_each(|_| fanout.offer(&Arc::new(push(30, AckMode::Detached, 1))).unwrap());
        let record = |index| RecordId {
            segment: 1,
            index,
            profiles: 1,
            bytes: 30,
            profile_bytes: 30,
        };
        let from_disk = |index| {
            let push = Arc::new(push(30, AckMode::Detached, 1));
            gate.forward(Parcel::new(Ticket::restored(push, gate, record(index))));
        };
        let deliver = || gate.take().unwrap().ticket.resolve(Outcome::Delivered);
        // Two are on disk alone, one is on the wire; it ends, and another one has come back.
        (0..2).for_each(|_| gate.take().unwrap().ticket.shelve());
        let seen = gate.parcels_in_memory_while(|| {
            from_disk(0);
            deliver();
        });
        assert_ne!(seen, 0, "one is in memory");
        assert_eq!(gate.parcels_in_memory(), 1);
        // It goes to disk again: that is seen late at most.
        let seen = gate.parcels_in_memory_while(|| gate.take().unwrap().ticket.drop_for(DropReason::Removed));
        assert_eq!((seen, gate.parcels_in_memory()), (0, 0));
        // As one that comes and ends in between.
        let seen = gate.parcels_in_memory_while(|| {
            from_disk(0);
            deliver();
        });
        assert_eq!((seen, gate.parcels_in_memory(), gate.held_parcels()), (1, 0, 1));
    }

    #[test]
    fn limits_may_change_while_parcels_wait() {
        let weight = push(30, AckMode::Detached, 1).weight();
        let gate = gate(10 * weight);
        let fanout = Fanout::new(vec![gate], Overflow::DropOldest);
        for _ in 0..4 {
            fanout.offer(&Arc::new(push(30, AckMode::Detached, 1))).unwrap();
        }
        assert!(!gate.is_over_budget());
        gate.set_bytes_max(2 * weight);
        assert!(gate.is_over_budget());
        gate.set_bytes_max(4 * weight);
        assert!(!gate.is_over_budget());
        gate.set_pinned_bytes_max(1);
        assert!(gate.is_over_budget());
    }

    #[test]
    fn refuse_looks_at_what_is_pinned_too() {
        let pinned = push(10, AckMode::Detached, 1).pinned_bytes;
        let gate = Gate::new(DestinationId(0), "one".into(), u64::MAX).with_pinned_bytes_max(3 * pinned);
        let gate: &'static Gate = Box::leak(Box::new(gate));
        let fanout = Fanout::new(vec![gate], Overflow::Refuse);
        let taken = (0..10)
            .filter(|_| fanout.offer(&Arc::new(push(10, AckMode::Detached, 1))).is_ok())
            .count();
        assert_eq!(taken, 3);
        assert!(!gate.is_over_budget(), "what was taken stays");
    }

    #[tokio::test]
    async fn one_waiting_client_goes_on_for_each_parcel_that_ends() {
        use std::future::poll_fn;
        use std::pin::pin;
        use std::task::Poll;

        let gate = gate(u64::MAX);
        let fanout = Fanout::new(vec![gate], Overflow::DropOldest);
        let offer = || fanout.offer(&Arc::new(push(1, AckMode::Detached, 1))).unwrap();
        let end = || gate.take().unwrap().ticket.resolve(Outcome::Delivered);
        offer();
        end(); // nobody waits: nobody is let in later for it
        (0..CROWDED_PARCELS + 4).for_each(|_| offer());
        let (mut first, mut second) = (pin!(gate.room()), pin!(gate.room()));
        let mut gone = async || {
            poll_fn(|context| {
                let gone = [first.as_mut().poll(context), second.as_mut().poll(context)];
                Poll::Ready(gone.map(|poll| poll.is_ready()))
            })
            .await
        };
        assert_eq!(gone().await, [false, false]);
        end();
        assert_eq!(
            gone().await,
            [false, false],
            "every second one makes the crowd smaller"
        );
        end();
        assert!(gone().await[0], "the one that came first");
    }
}
