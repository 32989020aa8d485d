//! What passes between a gate and the thread that keeps its spool: parcels to store, and word of what became of records.
//!
//! ```text
//!  Gate::accept (--ack stored), Gate::spool_away ─▶ put ─▶ [to store] ─▶ take_parcel ─▶ keeper
//!  Ticket::settle ──────────────────────────────▶ give_back ─▶ [returns] ─▶ take_return ─▶ keeper
//!  keeper ─▶ Gate::forward ─▶ crossing
//! ```
//! Nobody waits here: what waits to be stored is bounded by its bytes, which the gate asks about before it puts. Not
//! responsible for files; that is `spool`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::Parcel;
use super::push::Push;
use super::ticket::DropReason;
use crate::runtime::clock::{self, Mono};

/// A keeper that is at one step for so long has a disk that hangs: a step writes 32 MiB at most, which one that takes 10 MB/s
/// has in 3 s.
const STALL: Duration = Duration::from_secs(5);

/// Where a parcel lies in its spool, and what it counts. Valid while the store that gave it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordId {
    /// The number of the segment.
    pub segment: u64,
    /// The record's number in it, from 0.
    pub index: u32,
    /// Profiles in it.
    pub profiles: u32,
    /// Body bytes.
    pub bytes: u64,
    /// What Alloy's byte counters count (WIRE.md 4.6).
    pub profile_bytes: u64,
}

/// What became of a record that was in memory too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// Its parcel has ended.
    Done(RecordId),
    /// Its memory had to go: it is to be read again.
    Release(RecordId),
    /// Its destination did not take it, and it stays on disk all the same (`pyrotee spool drain`): for the next start.
    Keep(RecordId),
}

/// The gate's end and the keeper's end in one.
#[derive(Debug)]
pub struct SpoolLink {
    stores_all: bool,
    keeps_refused: bool,
    waiting_bytes_max: AtomicU64,
    waiting_bytes: AtomicU64,
    changed: Mutex<Option<StoreBounds>>,
    reads: AtomicBool,
    /// Whether the keeper has begun to read something that is not in the books of memory yet.
    is_reading: AtomicBool,
    /// Why what cannot be stored any more is dropped, once nothing new comes.
    last: OnceLock<DropReason>,
    is_finishing: AtomicBool,
    is_full: AtomicBool,
    trouble: Mutex<Option<String>>,
    is_well: AtomicBool,
    /// Since when the keeper is at its step, in [`Mono`] nanoseconds; 0 while it rests.
    busy_since: AtomicU64,
    counts: Counts,
    to_store: (Sender<Parcel>, Receiver<Parcel>),
    returns: (Sender<Return>, Receiver<Return>),
    keeper: OnceLock<Thread>,
    #[cfg(test)]
    held_back: Mutex<Option<Vec<Return>>>,
}

/// Bounds of what is stored that may change while the keeper is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreBounds {
    /// Most bytes on disk.
    pub disk_bytes_max: u64,
    /// Age above which a parcel is dropped instead of read back.
    pub max_age: Duration,
}

/// What the keeper counts, for metrics and pages. Written by it alone.
#[derive(Debug, Default)]
pub struct Counts {
    /// Bytes of the spool's files.
    pub disk_bytes: AtomicU64,
    /// Its limit.
    pub disk_bytes_max: AtomicU64,
    /// Parcels on disk that have not ended, those that are in memory too included.
    pub left_parcels: AtomicU64,
    /// Parcels written.
    pub stored_parcels: AtomicU64,
    /// Parcels read back.
    pub restored_parcels: AtomicU64,
    /// Segment files whose records are left for the next start: unreadable, or of a newer version.
    pub aside_segments: AtomicU64,
    /// Damaged places found in its files, and records among them.
    pub damages: AtomicU64,
    /// Times that its files were synced.
    pub syncs: AtomicU64,
    /// Writes, syncs and reads that failed.
    pub failures: AtomicU64,
    /// Parcels that were not taken and stay on disk, by [`DropReason::index`].
    pub kept_parcels: [AtomicU64; DropReason::ALL.len()],
}

impl SpoolLink {
    /// A link on which parcels of `waiting_bytes_max` in all may wait to be stored. With `stores_all` every parcel is
    /// stored before it is sent (`--ack stored`).
    pub fn new(stores_all: bool, waiting_bytes_max: u64) -> Self {
        Self {
            stores_all,
            keeps_refused: false,
            waiting_bytes_max: AtomicU64::new(waiting_bytes_max),
            waiting_bytes: AtomicU64::new(0),
            changed: Mutex::new(None),
            reads: AtomicBool::new(true),
            is_reading: AtomicBool::new(false),
            last: OnceLock::new(),
            is_finishing: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            trouble: Mutex::new(None),
            is_well: AtomicBool::new(true),
            busy_since: AtomicU64::new(0),
            counts: Counts::default(),
            to_store: crossbeam_channel::unbounded(),
            returns: crossbeam_channel::unbounded(),
            keeper: OnceLock::new(),
            #[cfg(test)]
            held_back: Mutex::new(None),
        }
    }

    /// Leaves on disk what its destination does not take, whatever the reason.
    #[must_use]
    pub fn keeping_refused(self, keeps_refused: bool) -> Self {
        Self {
            keeps_refused,
            ..self
        }
    }

    /// Notes that a stored parcel was not taken. Whether it stays on disk.
    pub(super) fn keep_refused(&self, reason: DropReason) -> bool {
        if self.keeps_refused {
            self.counts.kept_parcels[reason.index()].fetch_add(1, Ordering::Relaxed);
        }
        self.keeps_refused
    }

    /// Whether every parcel is stored before it is sent.
    pub fn stores_all(&self) -> bool {
        self.stores_all
    }

    /// Whether a parcel may be put now.
    pub(super) fn takes(&self) -> bool {
        self.is_well() && !self.is_behind()
    }

    /// Whether there is room on disk, and the disk works and keeps up. At the end everything is tried once.
    pub fn has_room(&self) -> bool {
        self.is_last() || self.takes() && !self.is_full.load(Ordering::Relaxed)
    }

    /// Whether there is room on a disk that works, and only what waits for it already is as much as may.
    pub(super) fn is_only_behind(&self) -> bool {
        self.is_well() && self.is_behind() && !self.is_full.load(Ordering::Relaxed)
    }

    /// Whether the gateway leaves: what cannot be stored now is lost.
    pub fn is_last(&self) -> bool {
        self.last.get().is_some()
    }

    /// Whether as much waits to be stored as may.
    pub fn is_behind(&self) -> bool {
        self.is_behind_with(0)
    }

    /// Whether that will be so once `bytes` more wait.
    pub(super) fn is_behind_with(&self, bytes: u64) -> bool {
        !self.is_last()
            && self.waiting_bytes().saturating_add(bytes) >= self.waiting_bytes_max.load(Ordering::Relaxed)
    }

    /// Whether the disk takes what it is given.
    pub fn is_well(&self) -> bool {
        self.is_well.load(Ordering::Relaxed) && !self.is_stalled()
    }

    /// Whether the disk hangs: it has neither taken nor refused what it was given.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled_for(clock::recent()).is_some()
    }

    /// How long the disk has been hanging, if it does.
    pub fn stalled_for(&self, now: Mono) -> Option<Duration> {
        let since = self.busy_since.load(Ordering::Relaxed);
        let busy = now.since(Mono(since));
        (since > 0 && busy >= STALL).then_some(busy)
    }

    /// The keeper's side: begins what takes as long as the disk wants it to.
    pub fn begin_step(&self, now: Mono) {
        self.busy_since.store(now.0, Ordering::Relaxed);
    }

    /// The keeper's side: that is over.
    pub fn end_step(&self) {
        self.busy_since.store(0, Ordering::Relaxed);
    }

    /// Bytes that wait to be stored.
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    /// Parcels that wait to be stored.
    #[cfg(test)]
    pub(crate) fn waiting_parcels(&self) -> usize {
        self.to_store.1.len()
    }

    pub(super) fn put(&self, mut parcel: Parcel) {
        parcel.ticket.set_in_budget(false);
        self.waiting_bytes
            .fetch_add(held_by(parcel.ticket.push()), Ordering::Relaxed);
        // The receiver is in this struct, so the channel is open.
        let _ = self.to_store.0.send(parcel);
        self.wake();
    }

    pub(super) fn give_back(&self, record: Return) {
        #[cfg(test)]
        if let Some(held_back) = &mut *self.held_back.lock().expect("no test panics there") {
            return held_back.push(record);
        }
        let _ = self.returns.0.send(record);
        self.wake();
    }

    /// The core that ends parcels is interrupted: the books say so, and the keeper is not told.
    #[cfg(test)]
    pub(crate) fn hold_back(&self) {
        let mut held_back = self.held_back.lock().expect("no test panics there");
        held_back.get_or_insert_default();
    }

    /// That core goes on.
    #[cfg(test)]
    pub(crate) fn go_on(&self) {
        let held_back = self.held_back.lock().expect("no test panics there").take();
        held_back
            .into_iter()
            .flatten()
            .for_each(|record| self.give_back(record));
    }

    /// Whether there is something that the keeper is not told.
    #[cfg(test)]
    pub(crate) fn is_held_back(&self) -> bool {
        let held_back = self.held_back.lock().expect("no test panics there");
        held_back.as_ref().is_some_and(|records| !records.is_empty())
    }

    /// Wakes the keeper.
    pub fn wake(&self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.unpark();
        }
    }

    /// The keeper's side: the thread that is to be woken.
    pub fn set_keeper(&self, thread: Thread) {
        let _ = self.keeper.set(thread);
    }

    /// Nothing comes back into memory from now on, but for what is just being read: [`SpoolLink::has_stopped_reading`].
    pub fn stop_reading(&self) {
        self.reads.store(false, Ordering::SeqCst);
    }

    /// Whether nothing comes back into memory any more. What has come is in the gate's books then.
    pub fn has_stopped_reading(&self) -> bool {
        !self.reads.load(Ordering::SeqCst) && !self.is_reading.load(Ordering::SeqCst)
    }

    /// What is on disk may come back again.
    pub fn resume_reading(&self) {
        self.reads.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Changes the bounds: how much may wait to be stored, and what the keeper keeps to from its next step on.
    pub fn set_bounds(&self, waiting_bytes_max: u64, bounds: StoreBounds) {
        self.waiting_bytes_max.store(waiting_bytes_max, Ordering::Relaxed);
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = Some(bounds);
        self.wake();
    }

    /// The keeper's side: the bounds, where they have changed.
    pub fn take_bounds(&self) -> Option<StoreBounds> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The gateway or the destination leaves: what is in memory now is all that will come, and none of it is too much. What
    /// cannot be stored is dropped for `reason`; the first one counts.
    pub fn set_last(&self, reason: DropReason) {
        let _ = self.last.set(reason);
    }

    /// The reason of [`SpoolLink::set_last`], once it was called.
    pub fn last(&self) -> Option<DropReason> {
        self.last.get().copied()
    }

    /// Everything has been put: the keeper stores it and ends.
    pub fn finish(&self) {
        self.is_finishing.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether parcels may come back into memory.
    pub fn may_read(&self) -> bool {
        self.reads.load(Ordering::SeqCst)
    }

    /// The keeper's side: begins to read a parcel back, where that may be; it lasts until what is returned is dropped. It says
    /// so first and asks then, and who stops it does the same, so that one of them sees the other.
    pub fn begin_reading(&self) -> Option<Reading<'_>> {
        self.is_reading.store(true, Ordering::SeqCst);
        let reading = Reading(self);
        self.may_read().then_some(reading)
    }

    /// The keeper's side: whether to end when all is stored.
    pub fn is_finishing(&self) -> bool {
        self.is_finishing.load(Ordering::Acquire)
    }

    /// What has been counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Why the disk takes nothing now, if so.
    pub fn trouble(&self) -> Option<String> {
        if let Some(stalled) = self.stalled_for(clock::now()) {
            return Some(format!("the disk has not answered for {} s", stalled.as_secs()));
        }
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The keeper's side: why the disk takes nothing; `None` when it does. While it does not, parcels stay in memory.
    pub fn set_trouble(&self, trouble: Option<String>) {
        self.is_well.store(trouble.is_none(), Ordering::Relaxed);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Whether the spool has reached its limit.
    #[cfg(test)]
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// The keeper's side: whether the spool has reached its limit.
    pub fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Relaxed);
    }

    /// The keeper's side: the next parcel to store. It counts as waiting until [`SpoolLink::note_taken`].
    pub fn take_parcel(&self) -> Option<Parcel> {
        self.to_store.1.try_recv().ok()
    }

    /// The keeper's side: a taken parcel waits no longer, whatever became of it.
    pub fn note_taken(&self, push: &Push) {
        self.waiting_bytes.fetch_sub(held_by(push), Ordering::Relaxed);
    }

    /// The keeper's side: the next record that comes back.
    pub fn take_return(&self) -> Option<Return> {
        self.returns.1.try_recv().ok()
    }

    /// Whether there is nothing for the keeper to take.
    pub fn is_idle(&self) -> bool {
        self.to_store.1.is_empty() && self.returns.1.is_empty()
    }
}

/// While this lives something is being read back.
#[derive(Debug)]
pub struct Reading<'a>(&'a SpoolLink);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.is_reading.store(false, Ordering::SeqCst);
    }
}

/// What a parcel that waits holds on to, in bytes.
fn held_by(push: &Push) -> u64 {
    push.weight().max(push.pinned_bytes)
}
