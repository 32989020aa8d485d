//! The store against a model of it: random calls, faults, restarts, power losses and flipped bits on a disk in memory,
//! each history from one seed. After every step the books must agree; after every start all that was synced, not done and
//! not damaged must be there, and nothing that was done and marked; at the end all that is left is read back, byte for
//! byte. Kinds of trouble are on or off per history.
//!
//! A failing seed is printed. `PYROTEE_SEED=N` runs that one, `PYROTEE_SEEDS=N` so many.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::spool::fake::{FakeDisk, Faults, Operation};
use crate::spool::walk::{Seen, walk};

/// Histories in a plain `cargo test`.
const SEEDS: u64 = 600;
const STEPS: usize = 120;

#[test]
fn the_store_agrees_with_its_model() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("PYROTEE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PYROTEE_SEEDS").unwrap_or(SEEDS),
    };
    let mut seen = BTreeSet::new();
    for seed in seeds.clone() {
        let told = Told(seed);
        let mut history = History::new(seed);
        history.run();
        seen.append(&mut history.seen);
        std::mem::forget(told);
    }
    // A model test that never meets what it is for proves nothing.
    if seeds.end - seeds.start >= SEEDS {
        let all = [
            "full",
            "io",
            "sync-failed",
            "damaged-body",
            "damaged-head",
            "kill",
            "power",
            "read-failed",
            "behind",
            "repeated",
            "pinned",
        ];
        for event in all {
            assert!(seen.contains(event), "{event} never happened: {seen:?}");
        }
    }
}

/// Prints the seed of a history that panics.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("PYROTEE_SEED={}", self.0);
    }
}

/// What the model knows of a record.
#[derive(Clone, Debug)]
struct Known {
    id: RecordId,
    /// Of its segment: a number can be given again after a power loss.
    salt: u64,
    payload: Vec<u8>,
    accepted_unix_ms: u64,
    state: State,
    /// Where it lies in its file.
    place: std::ops::Range<u64>,
    /// A sync after it was good.
    is_synced: bool,
    /// A sync after it failed.
    is_in_doubt: bool,
    /// It may be damaged.
    is_hit: bool,
    /// It is done and may have no mark.
    is_unmarked: bool,
}

/// Which kinds of trouble a history has.
#[derive(Debug)]
struct Trouble {
    faults: bool,
    kills: bool,
    power: bool,
    flips: bool,
    mark_flips: bool,
}

struct History {
    random: fastrand::Rng,
    trouble: Trouble,
    disk: FakeDisk,
    store: Option<Store<FakeDisk>>,
    limits: StoreLimits,
    /// All there were. What is done may come back.
    known: BTreeMap<u64, Known>,
    serial: u64,
    has_faults: bool,
    had_faults: bool,
    had_flips: bool,
    had_power: bool,
    seen: BTreeSet<&'static str>,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = FakeDisk::new(random.u64(..));
        let limits = StoreLimits {
            bytes_max: random.u64(8_000..40_000),
            segment_bytes_max: random.u64(500..5_000),
        };
        let trouble = Trouble {
            faults: random.bool(),
            kills: random.bool(),
            power: random.bool(),
            flips: random.u8(..3) == 0,
            mark_flips: random.u8(..6) == 0,
        };
        let (store, _) = Store::open(disk.clone(), limits).expect("an empty disk");
        Self {
            random,
            trouble,
            disk,
            store: Some(store),
            limits,
            known: BTreeMap::new(),
            serial: 0,
            has_faults: false,
            had_faults: false,
            had_flips: false,
            had_power: false,
            seen: BTreeSet::new(),
        }
    }

    fn store(&mut self) -> &mut Store<FakeDisk> {
        self.store.as_mut().expect("it is open")
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            match self.random.u8(..100) {
                0..35 => self.append(),
                35..55 => _ = self.read(),
                55..62 => self.release(),
                62..76 => self.finish(),
                76..84 => self.sync(),
                84..86 => _ = self.drop_oldest(),
                86..91 if self.trouble.faults => self.change_faults(),
                91..93 if self.trouble.kills => self.restart(false),
                93..95 if self.trouble.power => self.restart(true),
                95..98 if self.trouble.flips => self.flip(),
                98..100 => _ = self.store().tidy(),
                _ => {}
            }
            self.check();
        }
        self.drain();
    }

    // ---- calls

    fn append(&mut self) {
        self.serial += 1;
        let random = &mut self.random;
        let query = format!("serial={}", self.serial).into_bytes();
        let fields = vec![b'f'; random.usize(..30)];
        let count = match random.u8(..20) {
            0 => random.usize(1_000..3_000),
            _ => random.usize(..5),
        };
        let segments: Vec<Bytes> = (0..count)
            .map(|_| {
                let length = random.usize(..if count > 5 { 3 } else { 400 });
                (0..length).map(|_| random.u8(..)).collect()
            })
            .collect();
        let parts = RecordParts {
            accepted_unix_ms: 1_000 + self.serial,
            route: if random.bool() { Route::Push } else { Route::Ingest },
            profiles: random.u32(..9),
            profile_bytes: random.u64(..1_000),
            query: &query,
            fields: &fields,
            segments: &segments,
        };
        let hold = random.bool();
        let body = segments.concat();
        let length = RECORD_BYTES_MIN + (query.len() + fields.len() + body.len()) as u64;
        let id = loop {
            let before = self.store().totals();
            match self.store().append(&parts, hold) {
                Ok(id) => break id,
                Err(AppendError::Full) => {
                    self.seen.insert("full");
                    let room = self.limits.bytes_max.saturating_sub(before.disk_bytes);
                    assert!(
                        room < length + (HEADER_BYTES + MARK_BYTES) as u64,
                        "{room} left for {length}"
                    );
                    if !self.drop_oldest() {
                        self.seen.insert("pinned");
                        return;
                    }
                }
                Err(AppendError::Io(error)) => {
                    self.seen.insert("io");
                    assert!(self.has_faults, "{error}");
                    return;
                }
                Err(AppendError::TooLarge) => panic!("{length} bytes are not too large"),
            }
        };
        let limit = self.limits.bytes_max;
        assert!(self.store().totals().disk_bytes <= limit, "the limit holds");
        let segment = &self.store().segments[&id.segment];
        let (salt, end) = (segment.salt, segment.bytes);
        let known = Known {
            id,
            salt,
            payload: [query, fields, body].concat(),
            accepted_unix_ms: 1_000 + self.serial,
            state: if hold { State::Out } else { State::Unread },
            place: end - length..end,
            is_synced: false,
            is_in_doubt: false,
            is_hit: false,
            is_unmarked: false,
        };
        self.known.insert(self.serial, known);
    }

    /// Peeks, and mostly reads. Whether there was something.
    fn read(&mut self) -> bool {
        let is_failing = self.store().segments.values().any(|segment| segment.is_failing);
        let peeked = self.store().peek();
        self.learn_of_damage();
        let meta = match peeked {
            Ok(meta) => meta,
            Err(error) => {
                self.seen.insert("read-failed");
                assert!(self.has_faults, "{error}");
                return true;
            }
        };
        let first = self
            .first(|known| known.state == State::Unread)
            .map(|known| known.id);
        let Some(meta) = meta else {
            assert_eq!(first, None, "there is something to read");
            return false;
        };
        assert!(is_failing || first == Some(meta.id), "in order");
        let known = self
            .known
            .values()
            .find(|known| known.id == meta.id)
            .expect("it is known");
        assert_eq!(known.state, State::Unread);
        if !known.is_hit {
            assert_eq!(known.accepted_unix_ms, meta.accepted_unix_ms);
            assert_eq!(known.payload.len() as u64, meta.payload_bytes());
        }
        if self.random.u8(..5) == 0 {
            return true;
        }
        let mut buffer = Vec::with_capacity(self.random.usize(..2) * meta.read_bytes() as usize);
        let read = self.store().read(&meta, &mut buffer);
        let known = self
            .known
            .values_mut()
            .find(|known| known.id == meta.id)
            .expect("it is known");
        match read {
            Ok(()) => {
                assert!(known.payload == buffer, "byte for byte");
                known.state = State::Out;
            }
            Err(ReadError::Damaged) => {
                self.seen.insert("damaged-body");
                assert!(known.is_hit, "nothing hit {known:?}");
            }
            Err(ReadError::Io(error)) => {
                self.seen.insert("read-failed");
                assert!(self.has_faults, "{error}");
            }
        }
        self.learn_of_damage();
        true
    }

    fn release(&mut self) {
        if let Some(serial) = self.choose(|known| known.state == State::Out) {
            let known = self.known.get_mut(&serial).expect("chosen");
            known.state = State::Unread;
            let id = known.id;
            self.store().release(&id);
        }
    }

    fn finish(&mut self) {
        let mut ids = Vec::new();
        for _ in 0..self.random.usize(..6) {
            let unread_too = self.random.u8(..8) == 0;
            let may =
                |known: &Known| known.state == State::Out || (unread_too && known.state == State::Unread);
            if let Some(serial) = self.choose(may) {
                let known = self.known.get_mut(&serial).expect("chosen");
                known.state = State::Done;
                known.is_unmarked = true;
                ids.push(known.id);
            }
        }
        let result = self.store().done(&ids);
        if result.is_err() {
            self.seen.insert("behind");
            assert!(self.has_faults && self.store().is_behind());
        }
    }

    fn sync(&mut self) {
        let result = self.store().sync();
        if let Err(error) = &result {
            self.seen.insert("sync-failed");
            assert!(self.had_faults, "{error}");
        }
        // What is done need not reach the medium.
        for known in self.known.values_mut().filter(|known| known.state != State::Done) {
            known.is_synced |= result.is_ok() && !known.is_in_doubt;
            known.is_in_doubt |= result.is_err() && !known.is_synced;
        }
    }

    /// Whether it is worth trying again.
    fn drop_oldest(&mut self) -> bool {
        let Some(dropped) = self.store().drop_oldest() else {
            return false;
        };
        if dropped.sums.parcels == 0 {
            assert!(dropped.freed_bytes > 0);
            return true;
        }
        let first = self.first(|known| known.state == State::Unread);
        let segment = first.expect("something to drop").id.segment;
        let mut sums = Sums::default();
        for known in self.known.values_mut() {
            if known.id.segment == segment && known.state == State::Unread {
                known.state = State::Done;
                known.is_unmarked = true;
                sums = sums.plus(known.id.sums());
            }
        }
        assert_eq!(sums, dropped.sums);
        true
    }

    // ---- trouble

    fn change_faults(&mut self) {
        self.has_faults = self.random.bool();
        let random = &mut self.random;
        if !self.has_faults {
            self.disk.set_faults(Faults::default());
            return;
        }
        self.had_faults = true;
        let all = [
            Operation::Create,
            Operation::Open,
            Operation::Write,
            Operation::Read,
            Operation::Truncate,
            Operation::Sync,
            Operation::SyncFolder,
            Operation::Remove,
        ];
        let mut faults = Faults::default();
        for operation in all {
            if random.u8(..4) == 0 {
                faults.eio.push((operation, random.usize(1..6)));
            }
        }
        if random.u8(..3) == 0 {
            faults.room = Some(self.disk.used() + random.u64(..3_000));
        }
        if random.u8(..3) == 0 {
            faults.short_writes = Some(random.usize(1..4));
        }
        faults.read_only = random.u8(..6) == 0;
        self.disk.set_faults(faults);
    }

    fn flip(&mut self) {
        let mut names = self.disk.names();
        if !self.trouble.mark_flips {
            names.retain(|name| name.ends_with(SEGMENT_ENDING));
        }
        names.retain(|name| !self.disk.content(name).is_empty());
        if names.is_empty() {
            return;
        }
        let name = &names[self.random.usize(..names.len())];
        let at = self.random.usize(..self.disk.content(name).len());
        self.disk.flip(name, at, self.random.u32(..8));
        self.had_flips = true;
        let number: u64 = name[..16].parse().expect("a number");
        let is_marks = name.ends_with(MARKS_ENDING);
        for known in self.known.values_mut().filter(|known| known.id.segment == number) {
            known.is_hit |= !is_marks && known.place.contains(&(at as u64));
            known.is_unmarked |= is_marks;
        }
    }

    /// What the store reports as lost was hit, and no more and no less is gone.
    fn learn_of_damage(&mut self) {
        let damages = self.store().take_damages();
        let mut lost = Sums::default();
        let store = self.store.as_ref().expect("it is open");
        for known in self
            .known
            .values_mut()
            .filter(|known| known.state == State::Unread)
        {
            let state = store
                .segments
                .get(&known.id.segment)
                .map(|segment| segment.state(known.id.index));
            if state != Some(State::Unread) {
                assert!(known.is_hit, "lost without damage: {known:?}");
                known.state = State::Done;
                known.is_unmarked = true;
                lost = lost.plus(known.id.sums());
            }
        }
        assert_eq!(damages.lost, lost, "{damages:?}");
        if damages.list.iter().any(|damage| damage.what == What::Head) {
            self.seen.insert("damaged-head");
        }
    }

    fn restart(&mut self, is_power_loss: bool) {
        self.seen.insert(if is_power_loss { "power" } else { "kill" });
        self.learn_of_marks();
        self.store = None;
        // What cannot be read at a start is left aside, which has a test of its own.
        self.disk.set_faults(Faults::default());
        self.has_faults = false;
        if is_power_loss {
            self.had_power = true;
            self.disk.lose_power();
        }
        let (store, recovery) = Store::open(self.disk.clone(), self.limits).expect("no faults");
        let damages = recovery.damages;
        if !self.had_faults && !self.had_flips && !self.had_power {
            assert!(damages.is_empty(), "{damages:?}");
        }
        let mut heads = BTreeMap::new();
        walk(&self.disk, false, &mut |_, seen| {
            if let Seen::Record { meta, .. } = seen {
                heads.insert((meta.id.segment, meta.id.index), meta.id);
            }
            Ok(())
        })
        .expect("no faults");
        let mut missing = 0;
        for known in self.known.values_mut() {
            let segment = store
                .segments
                .get(&known.id.segment)
                .filter(|segment| segment.salt == known.salt);
            let is_there = segment.is_some_and(|segment| segment.state(known.id.index) == State::Unread);
            let is_left = known.state != State::Done;
            if is_there {
                let may_repeat = is_power_loss || known.is_unmarked;
                assert!(is_left || may_repeat, "done and marked, and back: {known:?}");
                known.is_hit |= is_power_loss && !known.is_synced;
                if known.is_hit
                    && let Some(id) = heads.get(&(known.id.segment, known.id.index))
                {
                    // A record whose write failed was in its place before, and its head has come back.
                    known.id = *id;
                }
                known.state = State::Unread;
                if !is_left {
                    self.seen.insert("repeated");
                }
            } else if is_left {
                let may_be_lost = known.is_hit || (is_power_loss && !known.is_synced);
                assert!(may_be_lost, "lost: {known:?}");
                missing += u64::from(!is_power_loss || known.is_synced);
            }
            if !is_there {
                known.state = State::Done;
            }
        }
        // Of a damaged end nobody knows how many records it was; it is told at least.
        let has_tail = damages.list.iter().any(|damage| damage.what == What::Tail);
        assert!(
            damages.lost.parcels >= missing || has_tail,
            "{missing} are gone, told were {damages:?}"
        );
        assert!(damages.lost.parcels == 0 || !damages.is_empty());
        self.store = Some(store);
        self.check();

        // What is lost is told once.
        let (again, recovery) = Store::open(self.disk.clone(), self.limits).expect("no faults");
        assert_eq!(recovery.damages.lost.parcels, 0, "{:?}", recovery.damages);
        assert_eq!(recovery.totals.left, again.totals().left);
        self.store = Some(again);
    }

    // ---- the books

    fn check(&mut self) {
        self.learn_of_marks();
        let totals = self.store().totals();
        let sum = |state: &dyn Fn(&State) -> bool| {
            let known = self.known.values().filter(|known| state(&known.state));
            known.fold(Sums::default(), |sums, known| sums.plus(known.id.sums()))
        };
        assert_eq!(totals.left, sum(&|state| *state != State::Done));
        assert_eq!(totals.out, sum(&|state| *state == State::Out));
        let used = self.disk.used();
        // A failed header may leave its file, which the next start removes.
        let slack = if self.had_faults {
            40 * HEADER_BYTES as u64
        } else {
            0
        };
        assert!(
            used <= totals.disk_bytes + slack,
            "{used} bytes are used, {totals:?}"
        );
        let disk_bytes = self
            .store()
            .segments
            .values()
            .map(|segment| segment.disk_bytes)
            .sum::<u64>();
        assert_eq!(disk_bytes, totals.disk_bytes);
        if !self.has_faults && !self.had_flips {
            let first = self.first(|known| known.state != State::Done);
            let first = first.map(|known| (known.accepted_unix_ms, known.is_hit));
            let oldest = self.store().oldest_unix_ms();
            let is_right = first.map_or(oldest.is_none(), |(unix_ms, is_hit)| {
                is_hit || oldest == Some(unix_ms)
            });
            assert!(is_right, "{oldest:?}, and it is {first:?}");
        }
    }

    fn learn_of_marks(&mut self) {
        if !self.store().is_behind() && !self.trouble.mark_flips {
            self.known
                .values_mut()
                .for_each(|known| known.is_unmarked = false);
        }
    }

    /// All is well again: everything comes back, and nothing stays.
    fn drain(&mut self) {
        self.disk.set_faults(Faults::default());
        self.has_faults = false;
        let out: Vec<RecordId> = self
            .known
            .values_mut()
            .filter(|known| known.state == State::Out)
            .map(|known| {
                known.state = State::Unread;
                known.id
            })
            .collect();
        out.iter().for_each(|id| self.store().release(id));
        while self.read() {
            while let Some(serial) = self.choose(|known| known.state == State::Out) {
                let known = self.known.get_mut(&serial).expect("chosen");
                known.state = State::Done;
                let id = known.id;
                self.store().done(&[id]).expect("no faults");
            }
        }
        let _ = self.store().sync(); // tells of a fault before
        self.store().sync().expect("no faults");
        self.store().tidy().expect("no faults");
        assert_eq!(self.store().totals().left, Sums::default());
        self.known.clear();
        self.store = None;
        let (store, recovery) = Store::open(self.disk.clone(), self.limits).expect("no faults");
        if !self.trouble.mark_flips {
            assert_eq!(recovery.totals, Totals::default());
            assert_eq!(self.disk.used(), 0, "{:?}", self.disk.names());
        }
        drop(store);
    }

    /// The first in the order of the segments. That is the order of the calls, unless a power loss took the newest segments
    /// away and brought back some that were removed: numbers go on behind those that are there.
    fn first(&self, may: impl Fn(&Known) -> bool) -> Option<&Known> {
        let known = self.known.values().filter(|known| may(known));
        known.min_by_key(|known| (known.id.segment, known.id.index))
    }

    fn choose(&mut self, may: impl Fn(&Known) -> bool) -> Option<u64> {
        let all: Vec<u64> = self
            .known
            .iter()
            .filter(|(_, known)| may(known))
            .map(|(serial, _)| *serial)
            .collect();
        (!all.is_empty()).then(|| all[self.random.usize(..all.len())])
    }
}
