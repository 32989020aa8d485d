//! The gateway put together: from a plan to running cores, and from a signal to the last line of the books.
//!
//! ```text
//!  control plane (this thread, tokio)            data plane (one thread per core)
//!   prepare: bind, read spools (beside it: admin port, signals)
//!   start cores ────────────────────────────────▶ inbound and / or destinations
//!   DNS, secrets, admin port, signals
//!   reload ── orders ───────────────────────────▶ destinations start, change, end; pushes go another course
//!   SIGTERM ─ Draining ─────────────────────────▶ stop accepting, finish requests
//!           ─ wait: listeners, then connections, then queues
//!           ─ GivingUp (drain timeout) ─────────▶ what waits goes to the spool, or is dropped and counted as "shutdown"
//!           ─ Leaving ──────────────────────────▶ cores end, then spools
//!   print what was delivered and what was lost
//! ```

mod core;
mod destinations;
mod leaving;
mod prepared;
pub mod reload;
mod spools;

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};

use self::core::CoreSetup;
use self::destinations::{Opened, Running, Workshop};
use self::leaving::Control;
pub use self::prepared::Prepared;
use crate::admin::{InForce, Listed, Observed, Reloads};
use crate::config::Plan;
use crate::fanout::{Calls, DestinationId, DropReason, Fanout, Gate};
use crate::inbound::http2::{House, SideDoor, Visitors};
use crate::inbound::tally::Tally;
use crate::inbound::{Connections, Course, InboundSetup};
use crate::outbound::addresses::{Lookup, Resolver};
use crate::outbound::destination::DestinationSetup;
use crate::outbound::dns;
use crate::profile::labels::LabelRules;
use crate::profile::relabel::Relabel;
use crate::runtime::clock::{self, Mono};
use crate::runtime::engine::Verdict;
use crate::runtime::phase::Phase;
use crate::runtime::pool::MemoryBudget;
use crate::runtime::tls::files::{self, Watched};
use crate::runtime::{self, CoreId};
use crate::spool::Lock;

/// How often a shutdown looks whether all is done.
const DRAIN_POLL: Duration = Duration::from_millis(5);
/// After giving up, how long requests in flight may still report their end.
const LAST_OUTCOMES_WAIT: Duration = Duration::from_millis(200);
/// After giving up, how long an archive may take to write the profile that it is at, and files may take to be deleted.
const LAST_FILE_WAIT: Duration = Duration::from_secs(5);
/// After giving up, how long what is left in memory may take to get to the spools.
const LAST_WRITES_WAIT: Duration = Duration::from_secs(20);

/// A running gateway, seen from the control plane.
pub struct Gateway {
    /// What it does now.
    plan: Arc<Plan>,
    /// What its cores run on.
    pub engine: Verdict,
    /// The counters of its inbound cores, and of the side door where there is one.
    pub tallies: Vec<Arc<Tally>>,
    /// Its client connections.
    pub connections: Arc<Connections>,
    /// The memory its bodies hold.
    pub memory: Arc<MemoryBudget>,
    /// Where it listens; the ports that the kernel chose where the plan says 0.
    pub addresses: Vec<SocketAddr>,
    started_unix_ms: u64,
    phase: watch::Sender<Phase>,
    cores: Vec<JoinHandle<std::io::Result<()>>>,
    /// The destinations of the plan, in its order.
    running: Vec<Running>,
    /// How many there have been.
    destinations: usize,
    shop: Workshop,
    control: Rc<Control>,
    /// Where pushes have been sent to, as long as somebody may still hold that; the last one is in force.
    fanouts: Vec<Weak<Fanout>>,
    in_force: Arc<ArcSwap<InForce>>,
    reloads: Arc<Reloads>,
    certificates: Option<Watched>,
    house: Option<Rc<House>>,
    visitors: Option<Visitors>,
    lookups: Option<mpsc::UnboundedReceiver<Lookup>>,
    _lock: Option<Lock>,
}

impl Gateway {
    /// Prepares and starts. Nothing is left running when it fails.
    ///
    /// # Errors
    /// Those of [`Prepared::new`] and [`Gateway::begin`].
    pub fn start(plan: Plan, engine: Verdict) -> anyhow::Result<Self> {
        Self::begin(Prepared::new(plan, &|_| ())?, engine)
    }

    /// Starts every core. Nothing is left running when it fails.
    ///
    /// # Errors
    /// A thread or a ring that cannot be had, a rule that cannot be used.
    pub fn begin(prepared: Prepared, engine: Verdict) -> anyhow::Result<Self> {
        let Prepared {
            plan,
            tls,
            certificates,
            addresses,
            listeners,
            lock,
            opened,
        } = prepared;
        let (phase, phase_receiver) = watch::channel(Phase::Serving);
        let (resolver, lookups) = Resolver::new();
        let (orders, receivers): (Vec<_>, Vec<_>) =
            (0..plan.cores).map(|_| mpsc::unbounded_channel()).unzip();
        let in_force = Arc::new(ArcSwap::from_pointee(InForce {
            plan: plan.clone(),
            destinations: Vec::new(),
        }));
        // The side door has idle connections too, and so a place beside the cores.
        let connections = Arc::new(Connections::new(plan.conn_limit, plan.inbound_cores() + 1));
        let started_unix_ms = u64::try_from(clock::unix_now().as_millis()).unwrap_or(u64::MAX);
        let mut gateway = Self {
            control: Control::new(orders, plan.spool.clone(), in_force.clone()),
            shop: Workshop {
                instance: uuid::Uuid::new_v4().to_string(),
                resolver,
            },
            tallies: (0..plan.inbound_cores()).map(|_| Arc::default()).collect(),
            memory: MemoryBudget::new(plan.memory_limit),
            reloads: Arc::new(Reloads::begin(started_unix_ms)),
            plan: plan.clone(),
            engine,
            connections,
            addresses,
            started_unix_ms,
            phase,
            cores: Vec::new(),
            running: Vec::new(),
            destinations: 0,
            fanouts: Vec::new(),
            in_force,
            certificates,
            house: None,
            visitors: None,
            lookups: Some(lookups),
            _lock: lock,
        };
        let mut destinations = Vec::new();
        for (index, opened) in opened.into_iter().enumerate() {
            let core = plan.writer_core(index);
            if let Some((running, setup)) = gateway.begin_destination(opened, core, &plan) {
                gateway.running.push(running);
                destinations.extend(setup.map(|setup| (core, *setup)));
            }
        }
        gateway.publish();
        let course = course_of(&gateway.running, rules_of(&plan)?, &plan);
        gateway.fanouts.push(Arc::downgrade(&course.fanout));
        let (side_door, visitors) = SideDoor::new();
        let has_side_door = plan.h2c || tls.is_some();
        let shared = InboundSetup {
            core: 0,
            plan: plan.clone(),
            memory: gateway.memory.clone(),
            connections: gateway.connections.clone(),
            tls,
            side_door: has_side_door.then_some(side_door),
            tally: Arc::default(),
            phase: phase_receiver.clone(),
        };
        gateway.start_cores(&shared, &course, destinations, receivers, listeners)?;
        if has_side_door {
            // Counts beside the cores.
            gateway.tallies.push(shared.tally.clone());
            // The door stays open for as long as a core has it.
            let setup = InboundSetup {
                core: plan.inbound_cores(),
                side_door: None,
                ..shared
            };
            gateway.house = Some(House::new(setup, course));
            gateway.visitors = Some(visitors);
        }
        Ok(gateway)
    }

    /// Starts the thread of every core and waits until all run.
    fn start_cores(
        &mut self,
        shared: &InboundSetup,
        course: &Course,
        mut destinations: Vec<(usize, DestinationSetup)>,
        orders: Vec<mpsc::UnboundedReceiver<core::Order>>,
        mut listeners: Vec<Vec<TcpListener>>,
    ) -> anyhow::Result<()> {
        let (ready, started) = std::sync::mpsc::channel();
        for (core, orders) in orders.into_iter().enumerate() {
            let inbound = self.tallies.get(core).map(|tally| {
                let setup = InboundSetup {
                    core,
                    tally: tally.clone(),
                    ..shared.clone()
                };
                let course = course.for_another_core();
                (setup, course, listeners.iter_mut().filter_map(Vec::pop).collect())
            });
            let (own, others): (Vec<_>, _) = destinations.into_iter().partition(|(owner, _)| *owner == core);
            destinations = others;
            let setup = CoreSetup {
                inbound,
                destinations: own.into_iter().map(|(_, setup)| setup).collect(),
                orders,
                phase: shared.phase.clone(),
                ready: ready.clone(),
            };
            let cpu = self.plan.pinned.get(core).copied();
            let engine = self.engine.engine;
            let handle = runtime::start_core(CoreId(core), engine, cpu, move || core::run(setup));
            self.cores
                .push(handle.with_context(|| format!("cannot start the thread of core {core}"))?);
        }
        drop(ready);
        for _ in 0..self.plan.cores {
            match started.recv() {
                Ok(begun) => begun.context("a core cannot start")?,
                Err(_) => return Err(self.why_a_core_ended()),
            }
        }
        Ok(())
    }

    /// Why a core has ended that never said that it had started. Its thread ends right behind its sender.
    fn why_a_core_ended(&mut self) -> anyhow::Error {
        let deadline = clock::now().after(LAST_OUTCOMES_WAIT);
        while clock::now() < deadline {
            match self.cores.iter().position(JoinHandle::is_finished) {
                None => std::thread::sleep(DRAIN_POLL),
                Some(core) => match self.cores.remove(core).join() {
                    Ok(Err(error)) => return anyhow::Error::new(error).context("a core cannot start"),
                    _ => break,
                },
            }
        }
        anyhow::anyhow!("a core ended before it had started")
    }

    /// Begins a destination: its gate, with the books of before where it was here, its spool and its archive. Returns what
    /// its core has to be told.
    fn begin_destination(
        &mut self,
        mut opened: Opened,
        core: usize,
        plan: &Plan,
    ) -> Option<(Running, Option<Box<DestinationSetup>>)> {
        let spool = opened.spool.take();
        let one = opened.plan();
        let id = DestinationId(self.destinations);
        self.destinations += 1;
        let gate = Gate::new(id, one.name.clone(), one.queue_limit).with_overflow(plan.overflow);
        let gate = match self.control.past(&one.name) {
            Some(past) => gate.continuing(past),
            None => gate,
        };
        let (gate, spool): (&'static Gate, _) = match spool {
            Some(spool) => spool.start(gate, one, plan, &self.memory),
            None => (Box::leak(Box::new(gate)), None),
        };
        opened.start(gate, core, spool, plan, &self.shop)
    }

    /// What is in force.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Its destinations, those of the plan first, then those that leave.
    pub fn gates(&self) -> Vec<&'static Gate> {
        let mut gates: Vec<&'static Gate> = self.running.iter().map(|one| one.gate).collect();
        self.control.each_leaving(|one| gates.push(one.gate));
        gates
    }

    /// How reloads went.
    pub fn reloads(&self) -> &Reloads {
        &self.reloads
    }

    /// What the admin port shows.
    pub fn observed(&self) -> Arc<Observed> {
        Arc::new(Observed {
            in_force: self.in_force.clone(),
            reloads: self.reloads.clone(),
            engine: self.engine.clone(),
            tallies: self.tallies.clone(),
            connections: self.connections.clone(),
            memory: self.memory.clone(),
            phase: self.phase.subscribe(),
            started_unix_ms: self.started_unix_ms,
        })
    }

    /// Shares out the memory among those who are there, and lets the admin port see what is in force.
    fn publish(&self) {
        let listed = |one: &Running, is_leaving| Listed {
            gate: one.gate,
            plan: one.plan.clone(),
            core: one.core(),
            is_leaving,
        };
        let mut destinations: Vec<Listed> = self.running.iter().map(|one| listed(one, false)).collect();
        self.control
            .each_leaving(|one| destinations.push(listed(one, true)));
        let in_force = InForce {
            plan: self.plan.clone(),
            destinations,
        };
        share_memory(&in_force);
        self.in_force.store(Arc::new(in_force));
    }

    /// Starts keeping the destinations' names resolved and their secrets up to date. Must be called on a tokio `LocalSet`.
    pub fn spawn_keepers(&mut self) {
        for one in &mut self.running {
            one.errands.spawn_keepers(one.gate, self.plan.dns_refresh);
        }
        if let Some(lookups) = self.lookups.take() {
            tokio::task::spawn_local(dns::answer_lookups(lookups));
        }
    }

    /// Starts reading certificates again when their files change. Must be called on a tokio `LocalSet`.
    pub fn spawn_rotation(&mut self) {
        for one in &mut self.running {
            one.errands.spawn_rotation();
        }
        if let Some(watched) = self.certificates.take() {
            tokio::task::spawn_local(files::keep_fresh(watched));
        }
    }

    /// Starts serving clients that speak HTTP/2. Must be called on a tokio `LocalSet`.
    pub fn spawn_side_door(&mut self) {
        if let (Some(house), Some(visitors)) = (&self.house, self.visitors.take()) {
            tokio::task::spawn_local(house.clone().serve(visitors));
        }
    }

    /// Stops accepting, finishes requests, drains queues up to `--drain-timeout`, and ends the cores.
    pub async fn shut_down(mut self) -> Vec<Farewell> {
        let deadline = clock::now().after(self.plan.drain_timeout);
        let (leaving, deletions) = self.control.take_all();
        self.running.extend(leaving);
        let all = &self.running;
        let archives = || all.iter().filter_map(Running::archive);
        let spools = || all.iter().filter_map(|one| one.spool.as_ref());
        let gates: Vec<&'static Gate> = all.iter().map(|one| one.gate).collect();
        self.phase.send_replace(Phase::Draining);
        archives().for_each(|(archive, _)| archive.drain());
        // In this order: each step makes sure that nothing can be added to what the next one waits for.
        wait_until(deadline, || self.connections.accepting() == 0).await;
        wait_until(deadline, || self.connections.open() == 0).await;
        // No more is read back from here on: a backlog on disk is the next process's.
        spools().for_each(|spool| spool.stop_reading());
        let is_memory_empty = || gates.iter().all(|gate| gate.is_memory_empty());
        wait_until(deadline, is_memory_empty).await;
        gates.iter().for_each(|gate| gate.close());
        spools().for_each(|spool| spool.take_the_rest(DropReason::Shutdown));
        self.phase.send_replace(Phase::GivingUp);
        archives().for_each(|(archive, _)| archive.give_up());
        let last = clock::now().after(LAST_OUTCOMES_WAIT);
        wait_until(last, is_memory_empty).await;
        self.phase.send_replace(Phase::Leaving);
        for core in self.cores {
            let _ = core.join();
        }
        // What came in after the cores had given up and before they ended.
        for gate in &gates {
            while let Some(parcel) = gate.take() {
                gate.evict(parcel, DropReason::Shutdown);
            }
        }
        // Each stores what it has been given first.
        spools().for_each(|spool| spool.finish());
        // A write that hangs in the kernel cannot be interrupted: such a thread ends with the process. One that is only slow is told.
        let last = clock::now().after(LAST_FILE_WAIT);
        wait_until(last, || archives().all(|(_, thread)| thread.is_finished())).await;
        let last = clock::now().after(LAST_WRITES_WAIT);
        wait_until(last, || spools().all(|spool| spool.is_finished())).await;
        gates.iter().for_each(|gate| gate.drop_rest());
        let last = tokio::time::Instant::now() + LAST_FILE_WAIT;
        for deletion in deletions {
            let _ = tokio::time::timeout_at(last, deletion.over()).await;
        }
        Farewell::of_all(&gates)
    }
}

/// What became of one destination's profiles, told at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// The destination's name.
    pub name: String,
    /// Parcels that it has.
    pub delivered: u64,
    /// Parcels that it will not get, by reason, where there were any.
    pub dropped: Vec<(&'static str, u64)>,
    /// Parcels in its spool, for the next start.
    pub spooled: u64,
    /// Segment files of its spool that nobody could read: what they hold is in no count, and left for the next start.
    pub aside_segments: u64,
    /// Parcels that were on the wire when we left: it may have them.
    pub unknown: u64,
}

impl Farewell {
    /// Reads the books of every destination.
    pub fn of_all(gates: &[&'static Gate]) -> Vec<Self> {
        gates.iter().map(|gate| Self::of(gate)).collect()
    }

    fn of(gate: &Gate) -> Self {
        let books = gate.books();
        let dropped = DropReason::ALL
            .iter()
            .zip(&books.dropped)
            .filter(|(_, amount)| amount.parcels > 0);
        Self {
            name: gate.name.clone(),
            delivered: books.delivered.parcels,
            dropped: dropped
                .map(|(reason, amount)| (reason.label(), amount.parcels))
                .collect(),
            spooled: books.spooled_parcels,
            aside_segments: gate
                .spool()
                .map_or(0, |link| link.counts().aside_segments.load(Ordering::Relaxed)),
            unknown: books.parcels_in_memory(),
        }
    }

    /// Logs it.
    pub fn tell(&self) {
        let Self {
            name,
            delivered,
            dropped,
            spooled,
            aside_segments,
            unknown,
        } = self;
        if *aside_segments > 0 {
            tracing::warn!(
                destination = %name, segments = aside_segments,
                "part of the spool could not be read and is left for the next start; what it holds is in no count"
            );
        }
        if self.is_whole() && *spooled > 0 {
            tracing::info!(destination = %name, delivered, spooled, lost = 0, "the rest waits in the spool for the next start");
        } else if self.is_whole() {
            let all = if *aside_segments > 0 {
                "all that could be read is delivered"
            } else {
                "all delivered"
            };
            tracing::info!(destination = %name, delivered, lost = 0, "{all}");
        } else if dropped.is_empty() {
            tracing::warn!(
                destination = %name, delivered, lost = 0, spooled, undecided = unknown,
                "nothing is lost for sure; those undecided were on the wire at the end, and the destination may have them"
            );
        } else {
            let reasons: Vec<String> = dropped
                .iter()
                .map(|(reason, parcels)| format!("{reason}={parcels}"))
                .collect();
            let lost: u64 = dropped.iter().map(|(_, parcels)| parcels).sum();
            tracing::error!(destination = %name, delivered, lost, reasons = reasons.join(" "), spooled, undecided = unknown, "lost");
        }
    }

    /// Whether everything that was accepted is there.
    pub fn is_whole(&self) -> bool {
        self.dropped.is_empty() && self.unknown == 0
    }
}

async fn wait_until(deadline: Mono, done: impl Fn() -> bool) {
    while !done() && clock::now() < deadline {
        tokio::time::sleep(DRAIN_POLL).await;
    }
}

/// Shares out the memory that parcels may pin. Each destination, those that leave included, may pin its share of three
/// quarters of all, and never less than its queue limit. Under `--overflow drop-oldest` destinations that are dead or behind
/// then do not fill the memory and refuse clients for the others, however small the parcels are; a quarter stays for requests
/// that are being received.
fn share_memory(in_force: &InForce) {
    let all = &in_force.destinations;
    let share = in_force.plan.memory_limit / 4 * 3 / all.len().max(1) as u64;
    for one in all {
        one.gate.set_pinned_bytes_max(share.max(one.plan.queue_limit));
    }
}

/// Where pushes go, and what becomes of their labels on the way.
fn course_of(running: &[Running], rules: LabelRules, plan: &Plan) -> Course {
    // Debuginfo goes to the first server (WIRE.md section 7).
    let calls: Option<Calls> = running.iter().find_map(|one| one.calls().cloned());
    let gates = running.iter().map(|one| one.gate).collect();
    Course {
        rules: Arc::new(rules),
        fanout: Arc::new(Fanout::new(gates, plan.overflow).with_calls(calls)),
    }
}

/// What becomes of labels.
fn rules_of(plan: &Plan) -> anyhow::Result<LabelRules> {
    let relabel = Relabel::new(&plan.relabel).context("--relabel")?;
    let rules = LabelRules::new(plan.external_labels.clone()).context("--external-label")?;
    Ok(rules.with_relabel(relabel))
}
