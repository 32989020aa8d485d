//! The whole path of a parcel as a model, without threads, sockets and clocks: real gates, desks, spool keepers and fanout;
//! clock, peers and disks are made up. Each history comes from one seed, and each kind of trouble is on or off in it.
//!
//! ```text
//!  offer ─▶ Fanout ─▶ Gate ─┬─▶ Desk ─▶ wire ─▶ peer: takes it, is busy, stays silent, refuses
//!                           └─▶ SpoolLink ─▶ Keeper ─▶ FakeDisk: full, EIO, read-only
//!  from time to time: a restart as `gateway` does it, `kill -9`, a power loss
//!  by reloads: a destination changes, goes (`Departure`), comes back before it has ended or after
//! ```
//! After every step, for each destination: the books balance, and what they hold lies where it should, counted piece by
//! piece; memory stays in its bounds; nothing older than the limit goes on the wire, and nothing that was accepted before,
//! but for a delivery whose done mark a kill (or a disk that fails) has come before; what a client was told has been stored
//! is there; nothing is offered to a destination that has been removed once every core knows, nothing of it is dropped but for a
//! reason that it may be, and when it comes again its books and its spool go on where they ended. At the end all is healed and only wake-ups that were asked for move the clock: everything must end, and what
//! was not delivered must have been counted as dropped. Not responsible for bytes on disk (`spool::store::model`).
//!
//! A failing seed is printed. `PYROTEE_SEED=N` runs that one, `PYROTEE_SEEDS=N` so many.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;

use super::departure::{Crew, Departure, Seen as Observed};
use super::desk::{Desk, Limits, Trouble};
use crate::config::{Overflow, SpoolSync};
use crate::fanout::gate::Amount;
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
/// Cores that take pushes in. Each learns of a reload by itself.
const INBOUND_CORES: usize = 2;
/// How often the control plane looks at destinations that leave, when nothing else happens: less often than `gateway` does, or
/// the clock would go in small steps.
const LOOK_EVERY_MS: u64 = 500;
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
            "removed",
            "offered-by-a-core-that-does-not-know",
            "taken-back",
            "taken-back-changed",
            "held",
            "given-up",
            "dropped-as-removed",
            "gone",
            "gone-with-spool",
            "awaited-to-go",
            "come-again",
            "come-again-with-spool",
            "deleted",
            "restart-while-leaving",
            "restart-while-gone",
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
    presence: Presence,
    /// The last one, where it has gone.
    gate: &'static Gate,
    desk: Desk,
    /// What its core has been told and has not done.
    orders: Vec<Order>,
    has_core_ended: bool,
    keeper: Option<Keeper<FakeDisk>>,
    has_keeper_ended: bool,
    disk: FakeDisk,
    /// The limit, or what was there at the start: a segment that was removed may be there again after a power loss.
    disk_bytes_max: u64,
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
    /// When it was removed, or was delivered to after that.
    moved_ms: u64,
    has_given_up: bool,
    /// Of what was dropped as removed, what was deleted with its spool.
    deleted: u64,
}

/// Whether a destination is there.
enum Presence {
    /// It is in the plan.
    Planned,
    /// It was removed, and those are the fanouts that may still offer to it.
    Leaving(Departure, Vec<Weak<Fanout>>),
    /// It has ended.
    Gone,
}

/// What the core of a destination is told, as `gateway` does.
#[derive(Clone, Copy)]
enum Order {
    GiveUp,
    End,
}

/// Those who work for a destination that leaves, as the control plane sees them.
struct Hands<'a> {
    orders: &'a mut Vec<Order>,
    has_core_ended: bool,
    has_keeper_ended: bool,
}

impl Crew for Hands<'_> {
    fn give_up(&mut self) {
        self.orders.push(Order::GiveUp);
    }

    fn end(&mut self) {
        self.orders.push(Order::End);
    }

    fn has_ended(&mut self) -> bool {
        self.has_core_ended
    }

    fn has_keeper_ended(&mut self) -> bool {
        self.has_keeper_ended
    }
}

/// The reloads of a history that has some.
struct Reloads {
    random: fastrand::Rng,
    /// For how long a destination that leaves may take nothing.
    patience: Duration,
    /// `--spool-orphans drop`.
    drops_orphans: bool,
    /// The one that is being prepared.
    next: Option<Reload>,
}

/// One that is about to be put in force.
#[derive(Clone, Copy)]
struct Reload {
    /// Of which destination.
    index: usize,
    fate: Fate,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Changes,
    Goes,
    /// It comes again. Whether it can come back or begins anew shows when those who are about to go have gone.
    Comes,
    /// It comes back before it has ended.
    Stays,
    Starts,
}

struct World {
    random: fastrand::Rng,
    /// In one history of three there are reloads. The others are what they would be without.
    reloads: Option<Reloads>,
    setting: Setting,
    now_ms: u64,
    memory: Arc<MemoryBudget>,
    /// Where pushes go by the plan.
    course: Arc<Fanout>,
    /// Where each inbound core sends them, the order to do otherwise still before it maybe.
    followed: [Arc<Fanout>; INBOUND_CORES],
    /// All that somebody may still hold.
    fanouts: Vec<Weak<Fanout>>,
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
        let course = Arc::new(Fanout::new(Vec::new(), setting.overflow));
        let mut world = Self {
            followed: std::array::from_fn(|_| course.clone()),
            course,
            fanouts: Vec::new(),
            memory,
            now_ms: 0,
            sites: Vec::new(),
            open: BTreeMap::new(),
            promised: BTreeSet::new(),
            is_exact: true,
            seen: BTreeSet::new(),
            reloads: seed.is_multiple_of(3).then(|| Reloads::new(!seed)),
            setting,
            random,
        };
        for index in 0..world.random.usize(1..4) {
            let disk = FakeDisk::new(world.random.u64(..));
            let site = world.open_site(index, disk, None);
            world.sites.push(site);
        }
        world.connect();
        world
    }

    /// A destination that starts, in a new process or after `past`.
    fn open_site(&self, index: usize, disk: FakeDisk, past: Option<&Gate>) -> Site {
        let setting = &self.setting;
        let gate = Gate::new(DestinationId(index), format!("d{index}"), setting.queue_bytes_max)
            .with_crossing(CROSSING)
            .with_pinned_bytes_max(setting.pinned_bytes_max)
            .with_overflow(setting.overflow);
        let gate = match past {
            Some(past) => gate.continuing(past),
            None => gate,
        };
        let gate = if setting.has_spool {
            gate.with_spool(SpoolLink::new(
                setting.mode == AckMode::Stored,
                setting.waiting_bytes_max,
            ))
        } else {
            gate
        };
        let gate: &'static Gate = Box::leak(Box::new(gate));
        let mut disk_bytes_max = setting.store.bytes_max;
        let keeper = gate.spool().and_then(|_| {
            let (store, _) = Store::open(disk.clone(), setting.store).expect("it can be listed");
            disk_bytes_max = disk_bytes_max.max(store.totals().disk_bytes);
            let clock = (self.wall(), BOOT);
            Keeper::new(gate, store, self.memory.clone(), setting.rules(), clock)
        });
        Site {
            keeper,
            disk_bytes_max,
            ..self.empty_site(gate, disk)
        }
    }

    /// A destination that is not in the plan of a new process.
    fn absent_site(&self, index: usize, disk: FakeDisk) -> Site {
        let gate = Gate::new(DestinationId(index), format!("d{index}"), 0);
        Site {
            presence: Presence::Gone,
            ..self.empty_site(Box::leak(Box::new(gate)), disk)
        }
    }

    fn empty_site(&self, gate: &'static Gate, disk: FakeDisk) -> Site {
        Site {
            presence: Presence::Planned,
            gate,
            desk: Desk::new(self.setting.limits(), self.now()),
            orders: Vec::new(),
            has_core_ended: false,
            keeper: None,
            has_keeper_ended: false,
            disk,
            disk_bytes_max: 0,
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
            moved_ms: 0,
            has_given_up: false,
            deleted: 0,
        }
    }

    /// All cores of a new process go by the plan.
    fn connect(&mut self) {
        self.fanouts.clear();
        self.direct();
        self.follow_all();
    }

    /// Pushes are to go to those who are in the plan now.
    fn direct(&mut self) {
        let planned = self.sites.iter().filter(|site| site.is_planned());
        let gates = planned.map(|site| site.gate).collect();
        self.course = Arc::new(Fanout::new(gates, self.setting.overflow));
        self.fanouts.retain(|fanout| fanout.strong_count() > 0);
        self.fanouts.push(Arc::downgrade(&self.course));
    }

    fn follow_all(&mut self) {
        self.followed = std::array::from_fn(|_| self.course.clone());
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
            self.reload_some(index);
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
        let core = self
            .reloads
            .as_mut()
            .map_or(0, |reloads| reloads.random.usize(..INBOUND_CORES));
        let fanout = self.followed[core].clone();
        let push = Arc::new(Push::new(parts, self.setting.mode, fanout.len()));
        match fanout.offer(&push) {
            Ok(()) => {
                let is_offered =
                    |site: &&mut Site| fanout.gates().iter().any(|gate| std::ptr::eq(*gate, site.gate));
                for site in self.sites.iter_mut().filter(is_offered) {
                    if !site.is_planned() {
                        assert!(
                            site.can_return(),
                            "{number} is offered to a destination that was removed"
                        );
                        self.seen.insert("offered-by-a-core-that-does-not-know");
                    }
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
        site.core_goes_on();
        if site.has_core_ended {
            return;
        }
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
        site.core_goes_on();
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
        site.moved_ms = self.now_ms;
        site.gate.end_attempt();
        site.desk.observe(&parcel, Duration::from_millis(5), now);
        // What follows the books is another core's turn before it is this one's again, at times.
        if let Some(reloads) = &mut self.reloads
            && let Some(link) = site.gate.spool()
            && reloads.random.bool()
        {
            link.hold_back();
        }
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
        let Some(keeper) = site.keeper.as_mut().filter(|_| !site.has_keeper_ended) else {
            return Mono::NEVER;
        };
        let link = site.gate.spool().expect("it has a keeper");
        let is_finishing = link.is_finishing();
        let wake_at = keeper.step(now, wall);
        // As its thread does.
        if is_finishing && link.is_idle() {
            keeper.finish(now);
            site.has_keeper_ended = true;
        }
        let store = keeper.store();
        if store.is_behind() {
            self.seen.insert("behind");
        } else if !link.is_held_back() {
            site.unmarked.clear();
        }
        let totals = store.totals();
        // What the crossing has thrown back meanwhile, the store learns with the next step.
        if link.is_idle() && !link.is_held_back() {
            let alone = totals.left.parcels - totals.out.parcels;
            assert_eq!(site.gate.books().spooled_parcels, alone, "{totals:?}");
        }
        assert!(totals.disk_bytes <= site.disk_bytes_max, "{totals:?}");
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
        // What was ordered before is done; nobody looks after those who leave any more.
        if let Some(reloads) = &mut self.reloads {
            reloads.next = None;
        }
        self.follow_all();
        for index in indices.clone() {
            self.obey(index);
        }
        for site in &mut self.sites {
            match site.presence {
                Presence::Planned => {}
                Presence::Leaving(..) => _ = self.seen.insert("restart-while-leaving"),
                Presence::Gone => _ = self.seen.insert("restart-while-gone"),
            }
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
            self.give_up(index, DropReason::Shutdown);
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

    fn give_up(&mut self, index: usize, reason: DropReason) {
        let now = self.now();
        let site = &mut self.sites[index];
        site.core_goes_on();
        if !site.has_core_ended {
            site.desk.accept(site.gate, now);
            site.desk.give_up(site.gate, reason);
        }
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
        self.give_up(index, DropReason::Shutdown);
        let site = &mut self.sites[index];
        while let Some(parcel) = site.gate.take() {
            site.gate.evict(parcel, DropReason::Shutdown);
        }
        if let Some(link) = site.gate.spool() {
            link.finish();
            let mut rounds = 0;
            while !self.sites[index].has_keeper_ended {
                self.step_keeper(index);
                rounds += 1;
                assert!(rounds < 100, "the keeper does not come to an end");
            }
        }
        let site = &mut self.sites[index];
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
        if let Some(reloads) = &mut self.reloads {
            reloads.next = None;
        }
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
        let dropped = old.gate.books().dropped_total().parcels;
        let overflow = old.dropped(DropReason::Overflow);
        let undecided = old.wire.len() as u64;
        let found = self.close_store(&mut old, is_power_loss);
        let mut orphans = 0;
        let new = if old.is_planned() {
            self.start(index, old.disk.clone(), None, found)
        } else {
            if self.drops_orphans() {
                orphans = old.delete_spool(); // which the log tells
            }
            self.absent_site(index, old.disk.clone())
        };
        Site {
            dropped_before: old.dropped_before + dropped + orphans,
            overflow_before: old.overflow_before + overflow,
            undecided: old.undecided + undecided,
            ..old.remembered_by(new)
        }
    }

    /// The store of `old` is closed, whose memory goes. Returns how many parcels are on disk for who opens it next.
    fn close_store(&mut self, old: &mut Site, is_power_loss: bool) -> u64 {
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
        old.desk = Desk::new(self.setting.limits(), self.now());
        old.wire.clear();
        while old.gate.take().is_some() {}
        let link = old.gate.spool();
        while link.is_some_and(|link| link.take_parcel().is_some()) {}
        old.keeper = None;
        if left.is_some() {
            old.may_repeat.append(&mut old.unmarked);
        }
        if is_power_loss {
            old.disk.lose_power();
            old.may_repeat.extend(&old.offered); // marks are not synced
        }
        // What cannot be read at a start is left aside, which has a test of its own.
        old.disk.set_faults(Faults::default());
        let on_disk = on_disk(&old.disk);
        let found = on_disk.len() as u64;
        if let (Some(left), false) = (left, is_power_loss) {
            assert!(found >= left, "{found} of {left} are there");
            assert!(found == left || is_behind, "{found} of {left} are there");
        }
        let mut again = BTreeSet::new();
        for number in on_disk {
            assert!(old.offered.contains(&number), "{number} comes from nowhere");
            if !again.insert(number) {
                let may_be = is_behind || is_power_loss || old.may_repeat.contains(&number);
                assert!(may_be, "{number} is there twice");
                old.may_repeat.insert(number);
            }
            let may_be_there = !old.delivered.contains(&number) || old.may_repeat.contains(&number);
            assert!(may_be_there, "{number} was delivered and marked");
        }
        found
    }

    /// A destination starts, for which `found` parcels are on disk.
    fn start(&mut self, index: usize, disk: FakeDisk, past: Option<&Gate>, found: u64) -> Site {
        let new = self.open_site(index, disk, past);
        let recovered = new.gate.books().recovered_parcels;
        let expected = if self.setting.has_spool { found } else { 0 };
        assert_eq!(recovered, expected, "came back");
        if recovered > 0 {
            self.seen.insert("recovered");
        }
        new
    }

    // ---- reloads

    /// One is prepared or put in force, cores follow it, and those who leave get on; or none of that.
    fn reload_some(&mut self, index: usize) {
        let Some(reloads) = &mut self.reloads else { return };
        let random = &mut reloads.random;
        match random.u8(..100) {
            0..6 => self.prepare(index),
            6..40 => self.get_on_with_reload(),
            40..60 => {
                let core = random.usize(..INBOUND_CORES);
                self.followed[core] = self.course.clone();
            }
            _ => {}
        }
        for index in 0..self.sites.len() {
            match self.reloads.as_mut().map(|reloads| reloads.random.u8(..6)) {
                Some(0 | 1) => self.look(index),
                Some(2) => self.obey(index),
                _ => {}
            }
        }
    }

    /// Nothing is different until it is put in force. The last destination stays.
    fn prepare(&mut self, index: usize) {
        let has_followed = |fanout| Arc::ptr_eq(fanout, &self.course);
        let has_last_ended = self.followed.iter().all(has_followed);
        let Some(reloads) = self
            .reloads
            .as_mut()
            .filter(|reloads| reloads.next.is_none() && has_last_ended)
        else {
            return;
        };
        let planned = self.sites.iter().filter(|site| site.is_planned()).count();
        let fate = match self.sites[index].presence {
            Presence::Planned if planned > 1 && reloads.random.u8(..3) > 0 => Fate::Goes,
            Presence::Planned => Fate::Changes,
            Presence::Leaving(..) | Presence::Gone => Fate::Comes,
        };
        reloads.next = Some(Reload { index, fate });
    }

    fn get_on_with_reload(&mut self) {
        let next = self.reloads.as_mut().and_then(|reloads| reloads.next.take());
        let Some(Reload { index, fate }) = next else {
            return;
        };
        match fate {
            Fate::Changes => self.start_over(index),
            Fate::Goes => self.remove(index),
            Fate::Comes => self.look_for_fate(index),
            Fate::Stays => self.take_back(index),
            Fate::Starts => self.come_again(index),
        }
    }

    /// What one that comes again is must not change any more once that has been seen.
    fn look_for_fate(&mut self, index: usize) {
        let fate = match &self.sites[index].presence {
            Presence::Leaving(departure, _) if departure.can_return() => Fate::Stays,
            Presence::Leaving(..) => {
                self.seen.insert("awaited-to-go");
                Fate::Comes
            }
            Presence::Planned | Presence::Gone => Fate::Starts,
        };
        if let Some(reloads) = &mut self.reloads {
            reloads.next = Some(Reload { index, fate });
        }
    }

    fn remove(&mut self, index: usize) {
        self.seen.insert("removed");
        let now = self.now();
        let patience = self
            .reloads
            .as_ref()
            .map_or(Duration::ZERO, |reloads| reloads.patience);
        let site = &mut self.sites[index];
        site.moved_ms = self.now_ms;
        site.presence = Presence::Leaving(Departure::begin(site.gate, patience, now), self.fanouts.clone());
        self.direct();
    }

    fn take_back(&mut self, index: usize) {
        let presence = std::mem::replace(&mut self.sites[index].presence, Presence::Planned);
        let Presence::Leaving(departure, _) = presence else {
            panic!("it has gone while a reload was being prepared");
        };
        assert!(departure.can_return(), "it is about to go although it is wanted");
        departure.take_back();
        self.seen.insert("taken-back");
        if self.random.bool() {
            self.seen.insert("taken-back-changed");
            self.start_over(index);
        }
        self.direct();
    }

    /// It begins anew, with the books of before.
    fn come_again(&mut self, index: usize) {
        self.seen.insert("come-again");
        let mut old = self.sites.remove(index);
        assert!(matches!(old.presence, Presence::Gone), "two would have its spool");
        let found = self.close_store(&mut old, false);
        if found > 0 {
            self.seen.insert("come-again-with-spool");
        }
        let new = self.start(index, old.disk.clone(), Some(old.gate), found);
        let books = old.gate.books();
        let site = Site {
            life_offered: books.delivered.parcels + books.dropped_total().parcels,
            life_delivered: old.life_delivered,
            dropped_before: old.dropped_before,
            overflow_before: old.overflow_before,
            undecided: old.undecided,
            deleted: old.deleted,
            ..old.remembered_by(new)
        };
        self.sites.insert(index, site);
        self.direct();
    }

    /// The control plane looks at one that leaves.
    fn look(&mut self, index: usize) {
        let now = self.now();
        let Some(Reloads { patience, next, .. }) = &self.reloads else {
            return;
        };
        let is_held = next.is_some();
        let site = &mut self.sites[index];
        let Presence::Leaving(departure, fanouts) = &mut site.presence else {
            return;
        };
        fanouts.retain(|fanout| fanout.strong_count() > 0);
        let seen = Observed {
            now,
            is_held,
            is_cut_off: fanouts.is_empty(),
        };
        if is_held {
            self.seen.insert("held");
        }
        let mut hands = Hands {
            orders: &mut site.orders,
            has_core_ended: site.has_core_ended,
            has_keeper_ended: site.has_keeper_ended || site.keeper.is_none(),
        };
        let was_delivered_to = departure.can_return();
        let is_over = departure.step(seen, &mut hands);
        let is_delivered_to = departure.can_return();
        let gives_up = |order: &Order| matches!(order, Order::GiveUp);
        if site.orders.iter().any(gives_up) {
            let waited = Duration::from_millis(self.now_ms - site.moved_ms);
            let has_waited = !was_delivered_to || is_delivered_to || waited >= *patience;
            assert!(has_waited, "given up after {waited:?}");
            site.has_given_up = true;
        }
        if is_over {
            self.part_from(index);
        }
    }

    /// The core of a destination does what it was told.
    fn obey(&mut self, index: usize) {
        self.sites[index].core_goes_on();
        for order in std::mem::take(&mut self.sites[index].orders) {
            match order {
                Order::GiveUp => {
                    self.seen.insert("given-up");
                    self.give_up(index, DropReason::Removed);
                }
                Order::End => {
                    let site = &mut self.sites[index];
                    assert_eq!(site.in_memory(), 0, "it ends and has something left");
                    site.has_core_ended = true;
                }
            }
        }
    }

    /// A destination has ended.
    fn part_from(&mut self, index: usize) {
        let drops_orphans = self.drops_orphans();
        let is_roomy = self.setting.store.bytes_max >= 1 << 20;
        let is_awaited = matches!(self.setting.mode, AckMode::First | AckMode::All);
        let site = &mut self.sites[index];
        site.presence = Presence::Gone;
        self.seen.insert("gone");
        let books = site.gate.books();
        assert_eq!(site.in_memory(), 0, "nobody is left for it");
        assert!(site.gate.spool().is_none_or(SpoolLink::is_idle));
        if let Some(keeper) = &mut site.keeper {
            let totals = keeper.store().totals();
            assert_eq!(
                (totals.left.parcels, totals.out.parcels),
                (books.spooled_parcels, 0)
            );
            if is_roomy && !is_awaited && !site.has_had_faults {
                assert_eq!(
                    site.dropped(DropReason::Removed),
                    site.deleted,
                    "its spool had room"
                );
            }
        }
        if books.spooled_parcels > 0 {
            self.seen.insert("gone-with-spool");
            if drops_orphans {
                self.seen.insert("deleted");
                let lost = Amount {
                    parcels: books.spooled_parcels,
                    bytes: books.spooled_bytes,
                    ..Amount::default()
                };
                site.gate.drop_spooled(lost, DropReason::Removed);
                site.deleted += lost.parcels;
            }
        }
        if drops_orphans {
            site.delete_spool();
        }
    }

    fn drops_orphans(&self) -> bool {
        self.reloads.as_ref().is_some_and(|reloads| reloads.drops_orphans)
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
            let all = self.sites.iter().filter(|site| site.offered.contains(&number));
            let had = all.clone().filter(|site| site.delivered.contains(&number));
            let (had, all) = (had.count(), all.count());
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
            let promised = self.promised.intersection(&site.offered);
            let open = promised.filter(|number| !has_ended(number));
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
            let mut wake_at = self.end_reloads();
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
                site.is_planned() && is_idle && !site.keeper.as_mut().is_some_and(is_behind)
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

    /// Every reload ends, and who has gone comes again. Returns when the control plane looks again.
    fn end_reloads(&mut self) -> Mono {
        self.get_on_with_reload();
        self.follow_all();
        let mut wake_at = Mono::NEVER;
        for index in 0..self.sites.len() {
            self.obey(index);
            self.look(index);
            if !self.sites[index].is_planned() {
                wake_at = self.now().after(Duration::from_millis(LOOK_EVERY_MS));
            }
            if matches!(self.sites[index].presence, Presence::Gone) {
                self.prepare(index);
            }
        }
        wake_at
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

impl Reloads {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            patience: Duration::from_millis(random.u64(..20_000)),
            drops_orphans: random.u8(..4) == 0,
            next: None,
            random,
        }
    }
}

impl Site {
    fn is_planned(&self) -> bool {
        matches!(self.presence, Presence::Planned)
    }

    fn can_return(&self) -> bool {
        matches!(&self.presence, Presence::Leaving(departure, _) if departure.can_return())
    }

    /// Its core, which may have been interrupted, has its turn.
    fn core_goes_on(&self) {
        self.gate.spool().into_iter().for_each(SpoolLink::go_on);
    }

    /// `new`, which comes after this one, with what is known of the destination whoever serves it.
    fn remembered_by(self, new: Self) -> Self {
        Self {
            peer: self.peer,
            offered: self.offered,
            delivered: self.delivered,
            given_up: self.given_up,
            may_repeat: self.may_repeat,
            has_had_faults: self.has_had_faults,
            has_given_up: self.has_given_up,
            ..new
        }
    }

    /// What is left on its disk goes. Returns how many of that it has not had.
    fn delete_spool(&mut self) -> u64 {
        self.disk.set_faults(Faults::default());
        let gone: BTreeSet<u64> = on_disk(&self.disk).into_iter().collect();
        let lost = gone.difference(&self.delivered).count() as u64;
        self.given_up.extend(gone);
        self.unmarked.clear();
        self.keeper = None;
        self.disk = FakeDisk::new(lost);
        lost
    }

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
        for reason in [
            DropReason::Unauthorized,
            DropReason::Redirected,
            DropReason::WriteFailed,
            DropReason::Shutdown,
            DropReason::Abandoned,
        ] {
            assert_eq!(self.dropped(reason), 0, "{reason:?}");
        }
        if !setting.power {
            assert_eq!(self.dropped(DropReason::Damaged), 0, "nothing was torn");
        }
        if !self.has_given_up {
            assert_eq!(self.dropped(DropReason::Removed), self.deleted);
        }
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
            (DropReason::Removed, "dropped-as-removed"),
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
