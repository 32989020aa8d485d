//! The keeper of one destination's spool: the thread that writes parcels to disk, reads them back when there is room for
//! them in memory, and marks what has ended.
//!
//! ```text
//!  gate ─ put ─▶ [to store] ─▶ append ─┬─ --ack stored: sync the batch ─▶ ticket.stored ─▶ Gate::forward (memory and disk)
//!                                      └─ else: ticket.shelve (disk alone); synced by --spool-sync
//!  store.read_next ─▶ a new push ─▶ Gate::forward        while little is out and the gate has room
//!  ticket settled ─▶ [returns] ─▶ store.done | store.release
//! ```
//! A batch is what has gathered while the last one was synced, so that a slow disk makes batches larger and not the rate
//! lower. When the disk fails, parcels go on in memory: [`Keeper::step`] hands them to the gate as if there were no spool,
//! and tries the disk again after a pause. [`Keeper::step`] reads no clock and waits for nothing, so the model tests drive
//! it with a fake clock and a fake disk.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;

use super::ages::{self, Ages};
use super::disk::{Disk, RealDisk};
#[cfg(test)]
use super::fake::FakeDisk;
use super::store::{AppendError, Meta, ReadError, RecordParts, Store, StoreLimits, Totals};
use super::{Damages, Sums};
use crate::config::SpoolSync;
use crate::fanout::gate::Amount;
use crate::fanout::push::PushParts;
use crate::fanout::spool_link::Return;
use crate::fanout::{AckMode, DropReason, Gate, Parcel, Push, RecordId, SpoolLink, Ticket};
use crate::runtime::clock::{self, Mono, Wall};
use crate::runtime::pool::{self, MemoryBudget};
use crate::runtime::reserved::Reserved;

/// Parcels of one batch, so that a sync answers for a bounded number of clients.
const BATCH_PARCELS_MAX: usize = 1024;
/// Body bytes of one batch.
const BATCH_BYTES_MAX: u64 = 32 << 20;
/// Parcels read back and not ended yet: one default window.
const OUT_PARCELS_MAX: usize = 64;
/// Memory of those, in bytes.
const OUT_BYTES_MAX: u64 = 16 << 20;
/// Without room for the next parcel, look again after this time.
const ROOM_RECHECK: Duration = Duration::from_millis(50);
/// First pause after a failure of the disk; doubles from there.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What the keeper keeps to.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Age above which a parcel is dropped instead of read back.
    pub max_age: Duration,
    /// When files are synced, beyond `--ack stored`.
    pub sync: SpoolSync,
    /// Whether the oldest make room when the spool is full; otherwise new ones stay in memory.
    pub drops_oldest: bool,
}

/// One destination's spool at work.
pub struct Keeper<D: Disk> {
    gate: &'static Gate,
    link: &'static SpoolLink,
    store: Store<D>,
    memory: Arc<MemoryBudget>,
    rules: Rules,
    /// Records that were read back and have not ended, with the memory that each holds.
    out: HashMap<RecordId, u64>,
    out_bytes: u64,
    /// When the oldest unsynced byte was written.
    dirty_since: Option<Mono>,
    /// Failures in a row.
    failures: u32,
    /// No writing before.
    resume_at: Mono,
    /// Bytes on disk when the last parcel had no room: with fewer there may be some again.
    full_at: Option<u64>,
    /// Marks and removals that failed are not made up for before.
    tidy_at: Mono,
    ages: Ages,
}

/// Begins the work of one spool on its thread, which ends some time after [`SpoolLink::finish`].
pub fn start(mut keeper: Keeper<RealDisk>, thread: Reserved) -> JoinHandle<()> {
    thread.begin(move || {
        keeper.link.set_keeper(thread::current());
        loop {
            let is_finishing = keeper.link.is_finishing();
            let now = clock::now();
            keeper.link.begin_step(now);
            let wake_at = keeper.step(now, clock::wall());
            keeper.link.end_step();
            if !keeper.link.is_idle() {
                continue;
            }
            if is_finishing {
                return keeper.finish(now);
            }
            thread::park_timeout(wake_at.since(clock::now()));
        }
    })
}

impl<D: Disk> Keeper<D> {
    /// The keeper of `store`, whose outstanding records the gate gets into its books. `None` for a gate without a link. `clock`
    /// is what the clocks show now, and which boot of the machine this is ([`clock::boot`]).
    pub fn new(
        gate: &'static Gate,
        store: Store<D>,
        memory: Arc<MemoryBudget>,
        rules: Rules,
        clock: (Wall, u64),
    ) -> Option<Self> {
        let link = gate.spool()?;
        gate.recover(amount(store.totals().left));
        let ages = Ages::open(store.disk(), store.number_next(), clock.0, clock.1);
        let keeper = Self {
            gate,
            link,
            store,
            memory,
            rules,
            out: HashMap::new(),
            out_bytes: 0,
            dirty_since: None,
            failures: 0,
            resume_at: Mono::default(),
            full_at: None,
            tidy_at: Mono::default(),
            ages,
        };
        keeper.show();
        Some(keeper)
    }

    /// The store, for tests that look behind.
    pub fn store(&mut self) -> &mut Store<D> {
        &mut self.store
    }

    /// Does all that can be done now. Returns when to come again at the latest, if nobody wakes us before.
    pub fn step(&mut self, now: Mono, wall: Wall) -> Mono {
        if let Some(bounds) = self.link.take_bounds() {
            self.rules.max_age = bounds.max_age;
            self.store.set_limits(StoreLimits::of(bounds.disk_bytes_max));
            self.full_at = None;
            self.link.set_full(false);
        }
        self.follow_wall_clock(wall);
        self.take_returns();
        self.store_batch(now, wall);
        self.sync_when_due(now);
        let tidy_again = self.tidy_when_due(now);
        let read_again = self.restore(now, wall);
        self.note_room();
        self.show();
        let sync_at = self.sync_due();
        let resume_at = match self.failures {
            0 => Mono::NEVER,
            _ => self.resume_at,
        };
        if self.failures > 0 && now >= self.resume_at {
            self.link.set_trouble(None); // the next parcel is the probe
        }
        read_again
            .min(tidy_again)
            .min(sync_at)
            .min(resume_at.max(now.after(ROOM_RECHECK)))
    }

    /// Everything has been stored: syncs, says what will not be there for the next start, and makes up for marks that
    /// failed.
    pub fn finish(&mut self, now: Mono) {
        self.sync(now);
        let before = self.store.totals();
        self.store.give_up_gone();
        self.note_lost(before);
        self.show();
        if let Err(error) = self.store.tidy() {
            tracing::warn!(
                destination = %self.gate.name,
                %error,
                "the spool cannot mark delivered profiles; the next start sends them again"
            );
        }
    }

    /// Where the wall clock has been set, what is written from now on lies apart, so that each record's age is known.
    fn follow_wall_clock(&mut self, wall: Wall) {
        if let Some(step_ms) = self.ages.step(wall) {
            let segment = self.store.close_segment();
            self.ages.begin(segment, wall);
            tracing::info!(destination = %self.gate.name, step_ms, "the wall clock was set; profiles in the spool age by the time that passes");
        }
        self.ages.forget_before(self.store.first_segment());
    }

    fn take_returns(&mut self) {
        let mut done = Vec::new();
        while let Some(record) = self.link.take_return() {
            let (Return::Done(id) | Return::Release(id) | Return::Keep(id)) = record;
            if let Some(bytes) = self.out.remove(&id) {
                self.out_bytes -= bytes;
            }
            match record {
                Return::Done(id) => done.push(id),
                Return::Release(id) => self.store.release(&id),
                Return::Keep(_) => {} // it stays out, so it is not read again
            }
        }
        if !done.is_empty()
            && let Err(error) = self.store.done(&done)
        {
            // The store makes up for it later; a restart before that repeats them.
            self.note_failure("mark profiles as done", &error);
        }
    }

    /// Makes up for marks and removals that failed, also when nothing else happens: a restart before that sends profiles
    /// again. Returns when to come for it.
    fn tidy_when_due(&mut self, now: Mono) -> Mono {
        if !self.store.is_behind() {
            return Mono::NEVER;
        }
        if now >= self.tidy_at {
            match self.store.tidy() {
                Ok(()) => return Mono::NEVER,
                Err(error) => self.note_failure("mark profiles as done", &error),
            }
            self.tidy_at = now.after(PAUSE_MIN);
        }
        self.tidy_at
    }

    /// Writes what has gathered.
    fn store_batch(&mut self, now: Mono, wall: Wall) {
        let mut written: Vec<(Parcel, RecordId)> = Vec::new();
        let mut bytes = 0;
        while written.len() < BATCH_PARCELS_MAX && bytes < BATCH_BYTES_MAX {
            let Some(parcel) = self.link.take_parcel() else {
                break;
            };
            bytes += parcel.ticket.push().bytes;
            self.link.note_taken(parcel.ticket.push());
            if self.failures > 0 && now < self.resume_at && !self.link.is_last() {
                self.gate.forward(parcel);
                continue;
            }
            if written.is_empty() {
                self.will_be_found();
            }
            match self.append(parcel.ticket.push(), now, wall) {
                Ok(id) => written.push((parcel, id)),
                Err(AppendError::Full) => self.refuse_full(parcel),
                Err(AppendError::TooLarge) => self.keep_in_memory(parcel),
                Err(AppendError::Io(error)) => {
                    self.pause("write", &error, now);
                    self.keep_in_memory(parcel);
                }
            }
        }
        if written.is_empty() {
            return;
        }
        self.ages.save(self.store.disk());
        self.gate.doorbell.ring(); // there is room again for what had to stay in memory
        self.dirty_since.get_or_insert(now);
        self.link
            .counts()
            .stored_parcels
            .fetch_add(written.len() as u64, Ordering::Relaxed);
        let syncs_now = self.link.stores_all() || self.rules.sync == SpoolSync::Always;
        // At the end the kernel has what is written, and nothing else does.
        let needs_sync = self.link.stores_all() || !self.link.is_last();
        let is_synced = !syncs_now || self.sync(now) || !needs_sync;
        if !is_synced || self.link.stores_all() && !self.will_be_found() {
            // Whether they are on disk nobody knows now, so they go on in memory and never come back from there.
            let ids: Vec<RecordId> = written.iter().map(|(_, id)| *id).collect();
            let _ = self.store.done(&ids); // the trouble has been told
            written
                .into_iter()
                .for_each(|(parcel, _)| self.keep_in_memory(parcel));
            return;
        }
        for (mut parcel, id) in written {
            if self.link.stores_all() {
                parcel.ticket.stored(id);
                self.gate.forward(parcel);
            } else {
                parcel.ticket.shelve();
            }
        }
    }

    /// Whether what was written last is where the next start looks for it. If not, what is written next has another file.
    fn will_be_found(&mut self) -> bool {
        let Some(file) = self.store.look_for_written() else {
            return true;
        };
        self.link.counts().failures.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            destination = %self.gate.name,
            file,
            "somebody has taken away a file of the spool; what it holds is sent only if that is before this process ends"
        );
        false
    }

    /// Writes one push, the oldest making room where they may.
    fn append(&mut self, push: &Push, now: Mono, wall: Wall) -> Result<RecordId, AppendError> {
        let parts = RecordParts {
            accepted_unix_ms: ages::stamp(push.accepted, now, wall),
            route: push.route,
            profiles: push.profiles,
            profile_bytes: push.profile_bytes,
            query: &push.query,
            fields: &push.fields,
            segments: &push.segments,
        };
        loop {
            let result = self.store.append(&parts, self.link.stores_all());
            if matches!(result, Err(AppendError::Full))
                && self.rules.drops_oldest
                && let Some(dropped) = self.store.drop_oldest()
            {
                self.gate.drop_spooled(amount(dropped.sums), DropReason::Overflow);
                continue;
            }
            let is_full = matches!(result, Err(AppendError::Full));
            self.full_at = is_full.then(|| self.store.totals().disk_bytes);
            self.link.set_full(is_full);
            return result;
        }
    }

    /// The spool is full and nothing may or can make room: what can wait in memory does, a client that needs it stored is
    /// told.
    fn refuse_full(&mut self, parcel: Parcel) {
        if parcel.is_awaited() {
            parcel.ticket.drop_for(DropReason::Overflow);
        } else {
            self.keep_in_memory(parcel);
        }
    }

    /// The disk did not take it. At the end nobody is left who could send it.
    fn keep_in_memory(&self, parcel: Parcel) {
        match self.link.last() {
            Some(reason) => parcel.ticket.drop_for(reason),
            None => self.gate.forward(parcel),
        }
    }

    fn sync_due(&self) -> Mono {
        match (self.dirty_since, self.rules.sync) {
            (Some(since), SpoolSync::Every(time)) => since.after(time),
            _ => Mono::NEVER,
        }
    }

    fn sync_when_due(&mut self, now: Mono) {
        if now >= self.sync_due() {
            self.sync(now);
        }
    }

    /// Syncs what was written. Returns whether it is on the disk now.
    fn sync(&mut self, now: Mono) -> bool {
        if self.dirty_since.take().is_none() {
            return true;
        }
        match self.store.sync() {
            Ok(()) => {
                self.link.counts().syncs.fetch_add(1, Ordering::Relaxed);
                if self.failures > 0 {
                    self.failures = 0;
                    self.link.set_trouble(None);
                    tracing::info!(destination = %self.gate.name, "the spool works again");
                }
                true
            }
            Err(error) => {
                self.pause("sync", &error, now);
                false
            }
        }
    }

    /// Reads back what there is room for. Returns when to look again.
    fn restore(&mut self, now: Mono, wall: Wall) -> Mono {
        while self.out.len() < OUT_PARCELS_MAX
            && self.out_bytes < OUT_BYTES_MAX
            && let Some(_reading) = self.link.begin_reading()
        {
            let before = self.store.totals();
            let meta = self.store.peek();
            self.note_lost(before);
            let meta = match meta {
                Ok(Some(meta)) => meta,
                Ok(None) => return Mono::NEVER,
                Err(error) => {
                    self.note_failure("read", &error);
                    return now.after(PAUSE_MIN);
                }
            };
            let age = self.ages.of(meta.id.segment, meta.accepted_unix_ms, wall);
            if age > self.rules.max_age {
                self.give_up(&meta, DropReason::TooOld);
                continue;
            }
            let Ok(wanted) = usize::try_from(meta.read_bytes()) else {
                self.give_up(&meta, DropReason::Overflow);
                continue;
            };
            let pinned = pool::capacity_for(wanted) as u64;
            if pinned > self.memory.limit() {
                self.give_up(&meta, DropReason::Overflow); // a larger limit had let it in
                continue;
            }
            if !self.gate.has_room_for_stored(pinned) {
                return now.after(ROOM_RECHECK);
            }
            let Some(charge) = self.memory.try_charge(pool::capacity_for(wanted)) else {
                return now.after(ROOM_RECHECK);
            };
            let mut buffer = pool::acquire(wanted);
            let before = self.store.totals();
            match self.store.read(&meta, &mut buffer) {
                Ok(()) => {
                    let payload = pool::freeze(buffer, Some(charge));
                    let push = rebuild(&meta, &payload, pinned, now.before(age));
                    self.out.insert(meta.id, pinned);
                    self.out_bytes += pinned;
                    self.link
                        .counts()
                        .restored_parcels
                        .fetch_add(1, Ordering::Relaxed);
                    let ticket = Ticket::restored(Arc::new(push), self.gate, meta.id);
                    self.gate.forward(Parcel::new(ticket));
                }
                Err(ReadError::Damaged) => self.note_lost(before),
                Err(ReadError::Io(error)) => {
                    self.note_failure("read", &error);
                    return now.after(PAUSE_MIN);
                }
            }
        }
        Mono::NEVER
    }

    /// An unread record is not worth reading.
    fn give_up(&mut self, meta: &Meta, reason: DropReason) {
        self.gate.drop_spooled(amount(meta.id.sums()), reason);
        if let Err(error) = self.store.done(&[meta.id]) {
            self.note_failure("mark profiles as done", &error);
        }
    }

    /// What the store has found to be lost since `before` leaves the books, and is told.
    fn note_lost(&mut self, before: Totals) {
        let damages = self.store.take_damages();
        if !damages.is_empty() {
            tell_damages(&self.gate.name, self.link, &damages);
        }
        let lost = before.left.minus(self.store.totals().left);
        self.gate.drop_spooled(amount(lost), DropReason::Damaged);
    }

    /// The disk does not take what it is given: it is left alone for a while.
    fn pause(&mut self, doing: &str, error: &io::Error, now: Mono) {
        self.note_failure(doing, error);
        let doublings = self.failures.min(8);
        self.resume_at = now.after(PAUSE_MIN.saturating_mul(1 << doublings).min(PAUSE_MAX));
        self.failures = self.failures.saturating_add(1);
        let trouble = format!("cannot {doing}: {error}");
        if self.failures == 1 {
            tracing::warn!(
                destination = %self.gate.name,
                problem = trouble,
                "the spool cannot be written, profiles go on in memory"
            );
        }
        self.link.set_trouble(Some(trouble));
    }

    fn note_failure(&mut self, doing: &str, error: &io::Error) {
        self.link.counts().failures.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(destination = %self.gate.name, doing, %error, "spool");
    }

    /// Once full, it is given nothing more until something has left the disk.
    fn note_room(&mut self) {
        let bytes = self.store.totals().disk_bytes;
        if self.full_at.is_some_and(|full_at| bytes < full_at) {
            self.full_at = None;
            self.link.set_full(false);
            self.gate.doorbell.ring();
        }
    }

    fn show(&self) {
        let counts = self.link.counts();
        let totals = self.store.totals();
        counts.disk_bytes.store(totals.disk_bytes, Ordering::Relaxed);
        counts.left_parcels.store(totals.left.parcels, Ordering::Relaxed);
        counts
            .aside_segments
            .store(totals.aside_segments, Ordering::Relaxed);
        counts
            .disk_bytes_max
            .store(self.store.limits().bytes_max, Ordering::Relaxed);
    }
}

/// Logs damage, each place with file and offset, and counts it.
pub fn tell_damages(destination: &str, link: &SpoolLink, damages: &Damages) {
    let count = damages.list.len() as u64 + damages.more;
    link.counts().damages.fetch_add(count, Ordering::Relaxed);
    for one in &damages.list {
        tracing::warn!(
            destination,
            file = one.file,
            offset = one.offset,
            bytes = one.bytes,
            records = one.records,
            what = %one.what,
            "damage in the spool"
        );
    }
    if damages.more > 0 {
        tracing::warn!(destination, places = damages.more, "more damage in the spool");
    }
}

/// A push as it was, from what was read back. `payload` holds query, header lines and body.
fn rebuild(meta: &Meta, payload: &Bytes, pinned_bytes: u64, accepted: Mono) -> Push {
    let query_end = meta.query_bytes as usize;
    let fields_end = query_end + meta.fields_bytes as usize;
    let body_end = usize::try_from(meta.payload_bytes()).unwrap_or(payload.len());
    let parts = PushParts {
        route: meta.route,
        query: payload.slice(..query_end),
        fields: payload.slice(query_end..fields_end),
        segments: smallvec![payload.slice(fields_end..body_end)],
        bytes: meta.body_bytes,
        profile_bytes: meta.profile_bytes,
        profiles: meta.profiles,
        accepted,
        accepted_unix_ms: meta.accepted_unix_ms,
        client_deadline: Mono::NEVER,
        pinned_bytes,
        charge: None,
    };
    Push::new(parts, AckMode::Detached, 1)
}

fn amount(sums: Sums) -> Amount {
    Amount {
        parcels: sums.parcels,
        bytes: sums.bytes,
        profiles: sums.profiles,
        profile_bytes: sums.profile_bytes,
    }
}

#[cfg(test)]
impl Keeper<FakeDisk> {
    /// One of `gate`, which has a link, on an empty disk of 1 MiB at the beginning of time.
    pub(crate) fn on_fake_disk(gate: &'static Gate) -> (Self, FakeDisk, Wall) {
        let disk = FakeDisk::new(0);
        let limits = StoreLimits {
            bytes_max: 1 << 20,
            segment_bytes_max: 1 << 16,
        };
        let (store, _) = Store::open(disk.clone(), limits).expect("it can be listed");
        let rules = Rules {
            max_age: Duration::from_secs(3_600),
            sync: SpoolSync::Never,
            drops_oldest: true,
        };
        let wall = Wall {
            unix_ms: 0,
            boot_ms: 0,
        };
        let keeper = Self::new(gate, store, MemoryBudget::new(1 << 20), rules, (wall, 0));
        (keeper.expect("it has a link"), disk, wall)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::config::Overflow;
    use crate::fanout::push::tests::push;
    use crate::fanout::{DestinationId, Fanout};

    #[test]
    fn who_stops_it_knows_whether_it_is_reading() {
        let gate = Gate::new(DestinationId(0), "a".into(), u64::MAX);
        let gate: &'static Gate = Box::leak(Box::new(gate.with_spool(SpoolLink::new(false, u64::MAX))));
        let link = gate.spool().expect("given");
        let (mut keeper, disk, wall) = Keeper::on_fake_disk(gate);
        let fanout = Fanout::new(vec![gate], Overflow::DropOldest);
        for _ in 0..2 {
            let mut one = push(7, AckMode::Detached, 1);
            one.segments.push(Bytes::from_static(b"profile"));
            fanout.offer(&Arc::new(one)).expect("there is room");
            gate.spool_away(gate.take().expect("offered"))
                .expect("it has room");
        }
        let reads: &'static AtomicUsize = Box::leak(Box::default());
        disk.on_read(|| {
            link.stop_reading();
            assert!(!link.has_stopped_reading(), "this very parcel will come");
            reads.fetch_add(1, Ordering::Relaxed);
        });
        keeper.step(clock::now(), wall);
        assert!(reads.load(Ordering::Relaxed) > 0);
        assert!(link.has_stopped_reading());
        assert_eq!(
            gate.parcels_in_memory(),
            1,
            "the one that was being read, and no other"
        );
        keeper.step(clock::now(), wall);
        assert_eq!(gate.parcels_in_memory(), 1);
    }
}
