//! The whole path of a parcel as a model, without threads, sockets and clocks: real gates, desks, spool keepers and fanout;
//! clock, peers and disks are made up. Each history comes from one seed, and each kind of trouble is on or off in it.
//!
//! ```text
//!  offer ─▶ Fanout ─▶ Gate ─┬─▶ Desk ─▶ wire ─▶ peer: takes it, is busy, stays silent, refuses
//!                           └─▶ SpoolLink ─▶ Keeper ─▶ FakeDisk: full, EIO, read-only
//!  from time to time: a restart as `gateway` does it, `kill -9`, a power loss
//! ```
//! After every step, for each destination: the books balance, and what they hold lies where it should, counted piece by
//! piece; memory stays in its bounds; nothing older than the limit goes on the wire, and nothing that was accepted before,
//! but for a delivery whose done mark a kill (or a disk that fails) has come before; what a client was told has been stored
//! is there. At the end all is healed and only wake-ups that were asked for move the clock: everything must end, and what
//! was not delivered must have been counted as dropped. Not responsible for bytes on disk (`spool::store::model`).
//!
//! A failing seed is printed. `PYROTEE_SEED=N` runs that one, `PYROTEE_SEEDS=N` so many.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;

use super::desk::{Desk, Limits, Trouble};
use crate::config::{Overflow, SpoolSync};
use crate::fanout::push::PushParts;
use crate::fanout::{
    AckMode, DestinationId, DropReason, Fanout, Gate, OfferRefused, Outcome, Parcel, Push, SpoolLink, Verdict,
};
use crate::profile::route::Route;
use crate::runtime::clock::{Mono, Wall};
use crate::runtime::pool::MemoryBudget;
use crate::spool::fake::{FakeDisk, Faults, Operation};
use crate::spool::keeper::{Keeper, Rules};
use crate::spool::walk::{Seen, walk};
use crate::spool::{Store, StoreLimits};

/// Histories in a plain `cargo test`.
const SEEDS: u64 = 2_000;
const STEPS: usize = 120;
/// What the clocks show when a history begins; the monotonic one has room for earlier processes' parcels.
const MONO_START: u64 = 20 * 365 * 24 * 3600 * 1_000_000_000;
const UNIX_MS_START: u64 = 1_700_000_000_000;
/// The machine is never booted anew, which a spool would only notice by its clocks.
const BOOT: u64 = 1;
/// Parcels that a crossing holds here, so that it runs over too.
const CROSSING: usize = 64;
/// A push without a body weighs so much, and none here weighs more than that and `BODY_MAX`.
const WEIGHT_MIN: u64 = 512;
const BODY_MAX: usize = 200;
/// Rounds in which everything must have ended when all is well again.
const HEALING_ROUNDS: usize = 5_000;

#[test]
fn nothing_is_lost_doubled_or_late_on_the_whole_path() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("PYROTEE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PYROTEE_SEEDS").unwrap_or(SEEDS),
    };
    let mut seen = BTreeSet::new();
    for seed in seeds.clone() {
        let told = Told(seed);
        let mut world = World::new(seed);
        world.run();
        seen.append(&mut world.seen);
        std::mem::forget(told);
    }
    // A model test that never meets what it is for proves nothing.
    if seeds.end - seeds.start >= SEEDS {
        let all = [
            "queue-full",
            "spool-behind",
            "delivered",
            "busy",
            "silent",
            "refused",
            "no-descriptors",
            "down",
            "overflow",
            "too-old",
            "retries-exhausted",
            "shutdown",
            "shelved",
            "restored",
            "released",
            "disk-failed",
            "disk-full",
            "restart",
            "restart-with-wire",
            "kill",
            "power",
            "recovered",
            "repeated",
            "behind",
            "accepted",
            "relayed",
            "unanswered",
            "not-stored",
            "promise-kept-on-disk",
            "reload-with-wire",
            "refused-before-a-reload",
        ];
        let missing: Vec<_> = all.iter().filter(|event| !seen.contains(*event)).collect();
        assert!(missing.is_empty(), "{missing:?} never happened: {seen:?}");
    }
}

/// Prints the seed of a history that panics.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("PYROTEE_SEED={}", self.0);
    }
}

/// What does not change in a history.
#[derive(Debug)]
struct Setting {
    mode: AckMode,
    overflow: Overflow,
    has_spool: bool,
    sync: SpoolSync,
    max_age: Duration,
    max_retries: u32,
    inflight: usize,
    queue_bytes_max: u64,
    pinned_bytes_max: u64,
    waiting_bytes_max: u64,
    store: StoreLimits,
    memory_limit: u64,
    disk_faults: bool,
    restarts: bool,
    kills: bool,
    power: bool,
}

impl Setting {
    fn new(random: &mut fastrand::Rng) -> Self {
        let mode = [AckMode::Detached, AckMode::First, AckMode::All, AckMode::Stored][random.usize(..4)];
        let queue_bytes_max = random.u64(3..30) * (WEIGHT_MIN + 100);
        let has_spool = mode == AckMode::Stored || random.u8(..3) > 0;
        Self {
            mode,
            overflow: if random.bool() {
                Overflow::DropOldest
            } else {
                Overflow::Refuse
            },
            has_spool,
            sync: match random.u8(..3) {
                0 => SpoolSync::Always,
                1 => SpoolSync::Every(Duration::from_millis(random.u64(1..5_000))),
                _ => SpoolSync::Never,
            },
            max_age: Duration::from_secs(if random.u8(..3) == 0 { 20 } else { 3_600 }),
            max_retries: if random.bool() { 0 } else { random.u32(1..6) },
            inflight: random.usize(1..6),
            queue_bytes_max,
            pinned_bytes_max: if random.bool() {
                u64::MAX
            } else {
                queue_bytes_max * 3
            },
            waiting_bytes_max: random.u64(1..10) * 700,
            store: StoreLimits {
                bytes_max: if random.bool() {
                    random.u64(2_000..10_000)
                } else {
                    1 << 20
                },
                segment_bytes_max: random.u64(400..3_000),
            },
            memory_limit: random.u64(16..64) << 10,
            disk_faults: has_spool && random.bool(),
            restarts: random.bool(),
            kills: random.u8(..3) == 0,
            power: has_spool && random.u8(..4) == 0,
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            max_age: self.max_age,
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            max_retries: self.max_retries,
            inflight: self.inflight,
            answers_wait: matches!(self.mode, AckMode::First | AckMode::All),
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            max_age: self.max_age,
            sync: self.sync,
            drops_oldest: self.overflow == Overflow::DropOldest,
        }
    }
}

/// How a destination takes what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Takes,
    Busy,
    Silent,
    Refuses,
    Mixed,
}

/// One destination: what is real of it, and what is known about it. Pushes go by the millisecond in which they were
/// accepted, which is another for each.
struct Site {
    gate: &'static Gate,
    desk: Desk,
    keeper: Option<Keeper<FakeDisk>>,
    disk: FakeDisk,
    wire: Vec<Parcel>,
    peer: Peer,
    /// Taken in, by any process.
    offered: BTreeSet<u64>,
    /// Had by the peer.
    delivered: BTreeSet<u64>,
    /// Refused or given up in a way that tells which one.
    given_up: BTreeSet<u64>,
    /// Delivered, and the mark may not have been written yet.
    unmarked: BTreeSet<u64>,
    /// May come again.
    may_repeat: BTreeSet<u64>,
    /// Since the process began.
    life_offered: u64,
    life_delivered: u64,
    /// By processes before this one.
    dropped_before: u64,
    overflow_before: u64,
    /// On the wire when a process left, without a spool to stay in.
    undecided: u64,
    has_had_faults: bool,
}

struct World {
    random: fastrand::Rng,
    /// In one history of three destinations are changed by reloads. The others are what they would be without.
    reloads: Option<fastrand::Rng>,
    setting: Setting,
    now_ms: u64,
    memory: Arc<MemoryBudget>,
    fanout: Fanout,
    sites: Vec<Site>,
    /// Whose clients have no answer yet.
    open: BTreeMap<u64, Arc<Push>>,
    /// What clients were told is stored.
    promised: BTreeSet<u64>,
    /// A delivery may have been forgotten, or a loss be undone: sums over lives do not add up any more.
    is_exact: bool,
    seen: BTreeSet<&'static str>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let setting = Setting::new(&mut random);
        let memory = MemoryBudget::new(setting.memory_limit);
        let mut world = Self {
            fanout: Fanout::new(Vec::new(), setting.overflow),
            memory,
            now_ms: 0,
            sites: Vec::new(),
            open: BTreeMap::new(),
            promised: BTreeSet::new(),
            is_exact: true,
            seen: BTreeSet::new(),
            reloads: seed.is_multiple_of(3).then(|| fastrand::Rng::with_seed(!seed)),
            setting,
            random,
        };
        for index in 0..world.random.usize(1..4) {
            let disk = FakeDisk::new(world.random.u64(..));
            let site = world.open_site(index, disk);
            world.sites.push(site);
        }
        world.connect();
        world
    }

    /// A destination in a new process.
    fn open_site(&self, index: usize, disk: FakeDisk) -> Site {
        let setting = &self.setting;
        let gate = Gate::new(DestinationId(index), format!("d{index}"), setting.queue_bytes_max)
            .with_crossing(CROSSING)
            .with_pinned_bytes_max(setting.pinned_bytes_max)
            .with_overflow(setting.overflow);
        let gate = if setting.has_spool {
            gate.with_spool(SpoolLink::new(
                setting.mode == AckMode::Stored,
                setting.waiting_bytes_max,
            ))
        } else {
            gate
        };
        let gate: &'static Gate = Box::leak(Box::new(gate));
        let keeper = gate.spool().and_then(|_| {
            let (store, _) = Store::open(disk.clone(), setting.store).expect("it can be listed");
            let clock = (self.wall(), BOOT);
            Keeper::new(gate, store, self.memory.clone(), setting.rules(), clock)
        });
        Site {
            gate,
            desk: Desk::new(setting.limits(), self.now()),
            keeper,
            disk,
            wire: Vec::new(),
            peer: Peer::Takes,
            offered: BTreeSet::new(),
            delivered: BTreeSet::new(),
            given_up: BTreeSet::new(),
            unmarked: BTreeSet::new(),
            may_repeat: BTreeSet::new(),
            life_offered: 0,
            life_delivered: 0,
            dropped_before: 0,
            overflow_before: 0,
            undecided: 0,
            has_had_faults: false,
        }
    }

    fn connect(&mut self) {
        let gates = self.sites.iter().map(|site| site.gate).collect();
        self.fanout = Fanout::new(gates, self.setting.overflow);
    }

    fn now(&self) -> Mono {
        Mono(MONO_START).after(Duration::from_millis(self.now_ms))
    }

    fn unix_ms(&self) -> u64 {
        UNIX_MS_START + self.now_ms
    }

    fn wall(&self) -> Wall {
        Wall {
            unix_ms: self.unix_ms(),
            boot_ms: self.now_ms,
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            let index = self.random.usize(..self.sites.len());
            match self.random.u8(..100) {
                0..28 => self.offer(),
                28..46 => self.dispatch(index),
                46..68 => self.end_one(index),
                68..82 => _ = self.step_keeper(index),
                82..89 => self.now_ms += self.random.u64(1..2_000),
                89..91 => self.now_ms += self.random.u64(2_000..30_000),
                91..95 => self.sites[index].peer = any_peer(&mut self.random),
                95..97 if self.setting.disk_faults => self.change_faults(index),
                97 if self.setting.restarts => self.restart(),
                98 if self.setting.kills => self.kill(false),
                99 if self.setting.power => self.kill(true),
                _ => {}
            }
            if self.reloads.as_mut().is_some_and(|random| random.u8(..100) == 0) {
                self.start_over(index);
            }
            self.check();
        }
        self.heal();
    }

    // ---- steps

    fn offer(&mut self) {
        self.now_ms += 1;
        let number = self.unix_ms();
        let mut body = number.to_le_bytes().to_vec();
        body.resize(self.random.usize(8..=BODY_MAX), b'b');
        let bytes = body.len() as u64;
        let parts = PushParts {
            route: if self.random.bool() {
                Route::Ingest
            } else {
                Route::Push
            },
            query: Bytes::new(),
            fields: Bytes::new(),
            segments: smallvec![Bytes::from(body)],
            bytes,
            profile_bytes: bytes,
            profiles: 1,
            accepted: self.now(),
            accepted_unix_ms: number,
            client_deadline: Mono::NEVER,
            pinned_bytes: bytes + self.random.u64(..800),
            charge: None,
        };
        let destinations = self.fanout.len();
        let push = Arc::new(Push::new(parts, self.setting.mode, destinations));
        match self.fanout.offer(&push) {
            Ok(()) => {
                for site in &mut self.sites {
                    site.offered.insert(number);
                    site.life_offered += 1;
                }
                self.open.insert(number, push);
            }
            Err(OfferRefused::QueueFull) => {
                assert_eq!(self.setting.overflow, Overflow::Refuse);
                self.seen.insert("queue-full");
            }
            Err(OfferRefused::SpoolBehind) => {
                assert_eq!(self.setting.mode, AckMode::Stored);
                self.seen.insert("spool-behind");
            }
        }
    }

    /// What a turn of the writer core does.
    fn dispatch(&mut self, index: usize) {
        let (now, unix_ms) = (self.now(), self.unix_ms());
        let setting = &self.setting;
        let site = &mut self.sites[index];
        site.desk.accept(site.gate, now);
        site.check_memory(setting, 1);
        while let Some(parcel) = site.desk.next(now, self.random.f64()) {
            let number = number_of(parcel.ticket.push());
            assert!(site.offered.contains(&number), "{number} comes from nowhere");
            let age = unix_ms - number;
            assert!(u128::from(age) <= setting.max_age.as_millis(), "{age} ms old");
            if site.delivered.contains(&number) {
                assert!(site.may_repeat.contains(&number), "{number} goes out again");
                self.seen.insert("repeated");
            }
            site.gate.begin_attempt();
            site.wire.push(parcel);
            let fresh = site.wire.iter().filter(|parcel| !site.desk.is_stale(parcel));
            assert!(fresh.count() <= setting.inflight, "more in flight than allowed");
            if self.random.u8(..4) == 0 {
                break;
            }
        }
    }

    /// An attempt ends as the peer wants it.
    fn end_one(&mut self, index: usize) {
        let site = &self.sites[index];
        if site.wire.is_empty() {
            return;
        }
        let at = self.random.usize(..site.wire.len());
        let peer = match site.peer {
            Peer::Mixed => [Peer::Takes, Peer::Busy, Peer::Silent, Peer::Refuses][self.random.usize(..4)],
            peer => peer,
        };
        match peer {
            Peer::Refuses => self.refuse(index, at),
            Peer::Busy => {
                let wait = self.random.u64(..20);
                let after = self.random.bool().then(|| Duration::from_secs(wait));
                let status = if self.random.bool() { 503 } else { 429 };
                let code = None;
                self.seen.insert("busy");
                self.trouble(index, at, Trouble::Answered { status, code, after });
            }
            Peer::Silent if self.random.u8(..10) == 0 => {
                self.seen.insert("no-descriptors");
                self.trouble(index, at, Trouble::NoDescriptors);
            }
            Peer::Silent => {
                self.seen.insert("silent");
                self.trouble(index, at, Trouble::Silent);
            }
            Peer::Takes | Peer::Mixed => self.deliver(index, at),
        }
    }

    fn deliver(&mut self, index: usize, at: usize) {
        let (now, site) = (self.now(), &mut self.sites[index]);
        let parcel = site.wire.swap_remove(at);
        let number = number_of(parcel.ticket.push());
        if !site.delivered.insert(number) {
            assert!(site.may_repeat.contains(&number), "{number} is delivered twice");
        }
        site.unmarked.insert(number);
        site.life_delivered += 1;
        site.gate.end_attempt();
        site.desk.observe(&parcel, Duration::from_millis(5), now);
        site.desk.conclude(parcel, Outcome::Delivered);
        self.seen.insert("delivered");
    }

    /// A reload has changed the destination: what waits and what comes is sent in another way.
    fn start_over(&mut self, index: usize) {
        self.seen.insert("reload");
        let now = self.now();
        let limits = self.setting.limits();
        let site = &mut self.sites[index];
        if !site.wire.is_empty() {
            self.seen.insert("reload-with-wire");
        }
        site.desk.start_over(limits, now);
    }

    fn refuse(&mut self, index: usize, at: usize) {
        let site = &mut self.sites[index];
        let parcel = site.wire.swap_remove(at);
        if site.desk.is_stale(&parcel) {
            self.seen.insert("refused-before-a-reload");
        } else {
            site.given_up.insert(number_of(parcel.ticket.push()));
        }
        site.gate.end_attempt();
        let outcome = Outcome::Answered {
            status: 400,
            code: None,
            reason: DropReason::Rejected,
        };
        site.desk.conclude(parcel, outcome);
        self.seen.insert("refused");
    }

    fn trouble(&mut self, index: usize, at: usize, trouble: Trouble) {
        let (now, random) = (self.now(), self.random.f64());
        let site = &mut self.sites[index];
        let parcel = site.wire.swap_remove(at);
        let number = number_of(parcel.ticket.push());
        let before = site.dropped(DropReason::RetriesExhausted);
        site.gate.end_attempt();
        site.desk.trouble(parcel, trouble, now, random);
        if site.dropped(DropReason::RetriesExhausted) > before {
            site.given_up.insert(number);
        }
        if !site.desk.is_up() {
            self.seen.insert("down");
        }
    }

    /// Returns when the keeper wants to come again.
    fn step_keeper(&mut self, index: usize) -> Mono {
        let (now, wall) = (self.now(), self.wall());
        let site = &mut self.sites[index];
        let Some(keeper) = &mut site.keeper else {
            return Mono::NEVER;
        };
        let wake_at = keeper.step(now, wall);
        let store = keeper.store();
        if store.is_behind() {
            self.seen.insert("behind");
        } else {
            site.unmarked.clear();
        }
        let totals = store.totals();
        let link = site.gate.spool().expect("it has a keeper");
        // What the crossing has thrown back meanwhile, the store learns with the next step.
        if link.is_idle() {
            let alone = totals.left.parcels - totals.out.parcels;
            assert_eq!(site.gate.books().spooled_parcels, alone, "{totals:?}");
        }
        assert!(totals.disk_bytes <= self.setting.store.bytes_max, "{totals:?}");
        wake_at
    }

    // ---- trouble

    fn change_faults(&mut self, index: usize) {
        let random = &mut self.random;
        let site = &mut self.sites[index];
        let mut faults = Faults::default();
        if random.u8(..3) > 0 {
            site.has_had_faults = true;
            let all = [
                Operation::Create,
                Operation::Write,
                Operation::Read,
                Operation::Truncate,
                Operation::Sync,
                Operation::SyncFolder,
                Operation::Remove,
            ];
            for operation in all {
                if random.u8(..3) == 0 {
                    faults.eio.push((operation, random.usize(1..5)));
                }
            }
            if random.u8(..3) == 0 {
                faults.room = Some(site.disk.used() + random.u64(..2_000));
            }
            faults.read_only = random.u8(..5) == 0;
        }
        site.disk.set_faults(faults);
    }

    /// As `gateway` does it.
    fn restart(&mut self) {
        self.seen.insert("restart");
        let indices = 0..self.sites.len();
        for site in &mut self.sites {
            site.gate.spool().into_iter().for_each(SpoolLink::stop_reading);
            if self.random.bool() {
                site.desk.hurry();
            }
        }
        for _ in 0..self.random.usize(..20) {
            let index = self.random.usize(indices.clone());
            match self.random.u8(..4) {
                0 => self.dispatch(index),
                1 => _ = self.step_keeper(index),
                2 => self.end_one(index),
                _ => self.now_ms += self.random.u64(..500),
            }
            self.check();
        }
        self.sites.iter().for_each(|site| site.gate.close());
        for site in &self.sites {
            let links = site.gate.spool().into_iter();
            links.for_each(|link| link.set_last(DropReason::Shutdown));
        }
        for index in indices.clone() {
            self.give_up(index);
            if self.random.bool() {
                self.step_keeper(index);
            }
            for _ in 0..self.random.usize(..4) {
                self.end_one(index);
            }
        }
        for index in indices {
            self.leave(index);
        }
        self.answer();
        let is_decided = self.sites.iter().all(|site| site.wire.is_empty());
        assert!(
            !is_decided || self.open.is_empty(),
            "clients without an answer: {:?}",
            self.open.keys()
        );
        self.reopen(false);
    }

    fn give_up(&mut self, index: usize) {
        let now = self.now();
        let site = &mut self.sites[index];
        site.desk.accept(site.gate, now);
        site.desk.give_up(site.gate, DropReason::Shutdown);
    }

    /// The core ends, then the keeper.
    fn leave(&mut self, index: usize) {
        let mut undecided = Vec::new();
        let site = &mut self.sites[index];
        for parcel in std::mem::take(&mut site.wire) {
            self.seen.insert("restart-with-wire");
            if parcel.ticket.is_stored() {
                parcel.ticket.drop_for(DropReason::Shutdown);
            } else if let Err(parcel) = site.gate.spool_away(parcel) {
                undecided.push(parcel);
                continue;
            }
            site.gate.end_attempt();
        }
        site.wire = undecided;
        self.give_up(index);
        let site = &mut self.sites[index];
        while let Some(parcel) = site.gate.take() {
            site.gate.evict(parcel, DropReason::Shutdown);
        }
        if let Some(link) = site.gate.spool() {
            link.finish();
            self.step_keeper(index);
            let mut rounds = 0;
            while !self.sites[index].gate.spool().is_none_or(SpoolLink::is_idle) {
                self.step_keeper(index);
                rounds += 1;
                assert!(rounds < 100, "the keeper does not come to an end");
            }
        }
        let now = self.now();
        let site = &mut self.sites[index];
        if let Some(keeper) = &mut site.keeper {
            keeper.finish(now);
            if !keeper.store().is_behind() {
                site.unmarked.clear();
            }
        }
        site.gate.drop_rest();
        let books = site.gate.books();
        assert!(books.balance(), "{books:?}");
        assert_eq!(
            books.parcels_in_memory(),
            site.wire.len() as u64,
            "what was not on the wire is on disk or counted as dropped"
        );
        if books.dropped[DropReason::Shutdown.index()].parcels > 0 {
            self.seen.insert("shutdown");
        }
    }

    /// The process is gone from one moment to the next, and the power with it, maybe.
    fn kill(&mut self, is_power_loss: bool) {
        self.seen.insert(if is_power_loss { "power" } else { "kill" });
        self.is_exact = false;
        self.reopen(is_power_loss);
    }

    /// The next process.
    fn reopen(&mut self, is_power_loss: bool) {
        self.open.clear();
        self.is_exact &= !is_power_loss;
        let sites = std::mem::take(&mut self.sites);
        for (index, old) in sites.into_iter().enumerate() {
            let site = self.succeed(index, old, is_power_loss);
            self.sites.push(site);
        }
        self.connect();
        assert_eq!(self.memory.used(), 0, "all memory went with the process");
        self.check();
        self.check_promises();
    }

    fn succeed(&mut self, index: usize, mut old: Site, is_power_loss: bool) -> Site {
        let books = old.gate.books();
        let dropped = books.dropped_total().parcels;
        let overflow = old.dropped(DropReason::Overflow);
        // What has ended and whose mark is on its way is left in the store still.
        let left = old
            .keeper
            .as_mut()
            .map(|keeper| keeper.store().totals().left.parcels);
        let is_behind = old
            .keeper
            .as_mut()
            .is_some_and(|keeper| keeper.store().is_behind());
        self.is_exact &= !is_behind;
        let undecided = old.wire.len() as u64;
        drop(old.desk);
        old.wire.clear();
        while old.gate.take().is_some() {}
        let link = old.gate.spool();
        while link.is_some_and(|link| link.take_parcel().is_some()) {}
        drop(old.keeper);
        if left.is_some() {
            old.may_repeat.append(&mut old.unmarked);
        }
        if is_power_loss {
            old.disk.lose_power();
            old.may_repeat.extend(&old.offered); // marks are not synced
        }
        // What cannot be read at a start is left aside, which has a test of its own.
        old.disk.set_faults(Faults::default());
        let new = self.open_site(index, old.disk);
        let recovered = new.gate.books().recovered_parcels;
        if recovered > 0 {
            self.seen.insert("recovered");
        }
        if let (Some(left), false) = (left, is_power_loss) {
            assert!(recovered >= left, "{recovered} of {left} came back");
            assert!(recovered == left || is_behind, "{recovered} of {left} came back");
        }
        let mut again = BTreeSet::new();
        for number in on_disk(&new.disk) {
            assert!(old.offered.contains(&number), "{number} comes from nowhere");
            if !again.insert(number) {
                assert!(is_behind || is_power_loss, "{number} is there twice");
                old.may_repeat.insert(number);
            }
            let may_be_there = !old.delivered.contains(&number) || old.may_repeat.contains(&number);
            assert!(may_be_there, "{number} was delivered and marked");
        }
        Site {
            peer: old.peer,
            offered: old.offered,
            delivered: old.delivered,
            given_up: old.given_up,
            may_repeat: old.may_repeat,
            dropped_before: old.dropped_before + dropped,
            overflow_before: old.overflow_before + overflow,
            undecided: old.undecided + undecided,
            has_had_faults: old.has_had_faults,
            ..new
        }
    }

    // ---- what must hold

    fn check(&mut self) {
        self.answer();
        for site in &self.sites {
            site.check(&self.setting);
            site.note_events(&mut self.seen);
        }
    }

    /// Clients look for their answers.
    fn answer(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let open = std::mem::take(&mut self.open);
        for (number, push) in open {
            let Poll::Ready(verdict) = pin!(push.verdict()).poll(&mut context) else {
                self.open.insert(number, push);
                continue;
            };
            let had = self.sites.iter().filter(|site| site.delivered.contains(&number));
            let (had, all) = (had.count(), self.sites.len());
            match (verdict, self.setting.mode) {
                (Verdict::Accepted, AckMode::Detached) => {}
                (Verdict::Accepted, AckMode::First) => assert!(had > 0, "{number} was delivered nowhere"),
                (Verdict::Accepted, AckMode::All) => assert_eq!(had, all, "{number} was not delivered"),
                (Verdict::Accepted, AckMode::Stored) => {
                    self.promised.insert(number);
                }
                (_, AckMode::First) => assert_eq!(had, 0, "{number} was delivered"),
                (_, AckMode::All) => assert!(had < all, "{number} was delivered everywhere"),
                (_, AckMode::Stored) => {}
                (verdict, AckMode::Detached) => panic!("{verdict:?} and nobody asked"),
            }
            self.seen.insert(match verdict {
                Verdict::Accepted => "accepted",
                Verdict::Relayed { .. } => "relayed",
                Verdict::Unanswered => "unanswered",
                Verdict::NotStored => "not-stored",
            });
        }
    }

    /// What was told to be stored is delivered, on disk, or has been dropped and counted. Only the spool's limit drops
    /// without telling which: those are counted.
    fn check_promises(&mut self) {
        let oldest = self
            .unix_ms()
            .saturating_sub(self.setting.max_age.as_millis() as u64);
        for site in &self.sites {
            let stored: BTreeSet<u64> = on_disk(&site.disk).into_iter().collect();
            let is_kept = |number: &&u64| stored.contains(number);
            let has_ended = |number: &&u64| {
                site.delivered.contains(number) || site.given_up.contains(number) || **number < oldest
            };
            let open = self.promised.iter().filter(|number| !has_ended(number));
            let missing: Vec<&u64> = open.clone().filter(|number| !is_kept(number)).collect();
            let overflow = site.overflow_before + site.dropped(DropReason::Overflow);
            assert!(
                missing.len() as u64 <= overflow,
                "{missing:?} were said to be stored, {overflow} were dropped"
            );
            if open.count() > missing.len() {
                self.seen.insert("promise-kept-on-disk");
            }
        }
    }

    /// All is well again: everything ends, and only what asks to be woken moves the clock.
    fn heal(&mut self) {
        for site in &mut self.sites {
            site.disk.set_faults(Faults::default());
            site.peer = Peer::Takes;
        }
        let indices = 0..self.sites.len();
        for _ in 0..HEALING_ROUNDS {
            let before: Vec<_> = self.sites.iter().map(|site| site.gate.books()).collect();
            let mut wake_at = Mono::NEVER;
            for index in indices.clone() {
                wake_at = wake_at.min(self.step_keeper(index));
                self.dispatch(index);
                while !self.sites[index].wire.is_empty() {
                    self.end_one(index);
                    self.dispatch(index);
                }
                let desk_at = self.sites[index].desk.wake_at(self.now());
                wake_at = wake_at.min(desk_at.unwrap_or(Mono::NEVER));
            }
            self.check();
            let has_ended = |site: &mut Site| {
                let link = site.gate.spool();
                let is_idle = site.gate.held_parcels() == 0 && link.is_none_or(SpoolLink::is_idle);
                let is_behind = |keeper: &mut Keeper<FakeDisk>| keeper.store().is_behind();
                is_idle && !site.keeper.as_mut().is_some_and(is_behind)
            };
            if self.sites.iter_mut().all(has_ended) {
                return self.check_end();
            }
            let is_same = self
                .sites
                .iter()
                .zip(&before)
                .all(|(site, before)| site.gate.books() == *before);
            // Who has been given something has been woken.
            let is_idle = |site: &Site| site.gate.spool().is_none_or(SpoolLink::is_idle);
            if is_same && self.sites.iter().all(is_idle) {
                assert!(wake_at < Mono::NEVER, "something waits and nobody will come");
                let wait = wake_at.since(self.now()).as_nanos().div_ceil(1_000_000) as u64;
                self.now_ms += wait.max(1);
            }
        }
        let books: Vec<_> = self.sites.iter().map(|site| site.gate.books()).collect();
        panic!("not everything ends: {books:?}");
    }

    fn check_end(&mut self) {
        assert!(
            self.open.is_empty(),
            "clients without an answer: {:?}",
            self.open.keys()
        );
        self.check_promises();
        for site in &mut self.sites {
            if let Some(keeper) = &mut site.keeper {
                assert_eq!(keeper.store().totals().left.parcels, 0);
                assert!(
                    on_disk(&site.disk).is_empty(),
                    "the next start would send them again"
                );
            }
            let dropped = site.dropped_before + site.gate.books().dropped_total().parcels;
            let missing = site.offered.difference(&site.delivered).count() as u64;
            if self.is_exact {
                assert_eq!(missing, dropped + site.undecided, "lost and not counted");
            }
        }
        assert_eq!(self.memory.used(), 0, "memory is held for nothing");
    }
}

impl Site {
    fn dropped(&self, reason: DropReason) -> u64 {
        self.gate.books().dropped[reason.index()].parcels
    }

    /// Parcels in memory, counted where they lie.
    fn in_memory(&self) -> u64 {
        let to_store = self.gate.spool().map_or(0, SpoolLink::waiting_parcels);
        (self.gate.crossing_parcels() + to_store + self.desk.parcels() + self.wire.len()) as u64
    }

    fn check(&self, setting: &Setting) {
        let books = self.gate.books();
        assert!(books.balance(), "{books:?}");
        assert_eq!(
            books.accepted_parcels,
            self.life_offered + books.recovered_parcels
        );
        assert_eq!(books.delivered.parcels, self.life_delivered);
        assert_eq!(
            books.held_parcels,
            self.in_memory() + books.spooled_parcels,
            "{books:?}"
        );
        assert_eq!(books.in_flight, self.wire.len() as u64);
        let fresh = self.wire.iter().filter(|parcel| !self.desk.is_stale(parcel));
        assert_eq!(self.desk.in_flight(), fresh.count());
        assert_eq!(self.dropped(DropReason::Abandoned), 0);
        if setting.overflow == Overflow::Refuse && setting.mode == AckMode::Detached {
            let overflow = self.dropped(DropReason::Overflow);
            assert_eq!(overflow, 0, "dropped although pushes may be refused");
        }
        self.check_memory(setting, 2);
    }

    /// At most `times` the queue limit is held, and what may wait for the disk, and one each. Twice the limit is what the
    /// crossing allows before the writer core comes, what stays in memory for a disk that is behind, and where nothing may be
    /// dropped and the spool had no room after all.
    fn check_memory(&self, setting: &Setting, times: u64) {
        let times = match setting.overflow {
            Overflow::DropOldest if self.gate.spool().is_none_or(|link| !link.is_behind()) => times,
            Overflow::Refuse | Overflow::DropOldest => 2,
        };
        if self.gate.spool().is_some_and(|link| !link.may_read()) {
            return; // a process that leaves moves all it has to the disk
        }
        let one = WEIGHT_MIN + 800 + BODY_MAX as u64;
        let most = times * setting.queue_bytes_max + setting.waiting_bytes_max + 2 * one;
        let held = self.in_memory() * WEIGHT_MIN;
        assert!(held <= most, "{held} bytes at least are held, allowed are {most}");
    }

    fn note_events(&self, seen: &mut BTreeSet<&'static str>) {
        let events = [
            (DropReason::Overflow, "overflow"),
            (DropReason::TooOld, "too-old"),
            (DropReason::RetriesExhausted, "retries-exhausted"),
        ];
        for (reason, event) in events {
            if self.dropped(reason) > 0 {
                seen.insert(event);
            }
        }
        if let Some(link) = self.gate.spool() {
            let counts = link.counts();
            let read =
                |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
            if read(&counts.stored_parcels) > 0 && !link.stores_all() {
                seen.insert("shelved");
            }
            if read(&counts.restored_parcels) > 0 {
                seen.insert("restored");
            }
            if read(&counts.restored_parcels)
                > self.life_delivered + self.gate.books().dropped_total().parcels + self.in_memory()
            {
                seen.insert("released");
            }
            if read(&counts.failures) > 0 {
                seen.insert("disk-failed");
            }
            if link.is_full() {
                seen.insert("disk-full");
            }
        }
    }
}

fn any_peer(random: &mut fastrand::Rng) -> Peer {
    [
        Peer::Takes,
        Peer::Takes,
        Peer::Busy,
        Peer::Silent,
        Peer::Refuses,
        Peer::Mixed,
    ][random.usize(..6)]
}

/// The number that a push carries in its body.
fn number_of(push: &Push) -> u64 {
    let body = push.segments.concat();
    let number = u64::from_le_bytes(body[..8].try_into().expect("8 bytes"));
    assert_eq!(number, push.accepted_unix_ms, "head and body belong together");
    assert_eq!(body.len() as u64, push.bytes);
    number
}

/// The numbers of the records that are not done, as the next start would find them.
fn on_disk(disk: &FakeDisk) -> Vec<u64> {
    let mut numbers = Vec::new();
    walk(disk, false, &mut |_, seen| {
        if let Seen::Record { meta, is_done: false } = seen {
            numbers.push(meta.accepted_unix_ms);
        }
        Ok(())
    })
    .expect("no faults");
    numbers
}
