//! The gateway put together: from a plan to running cores, and from a signal to the last line of the books.
//!
//! ```text
//!  control plane (this thread, tokio)            data plane (one thread per core)
//!   bind, start cores ──────────────────────────▶ inbound and / or destinations
//!   DNS, secrets, admin port, signals
//!   SIGTERM ─ Draining ─────────────────────────▶ stop accepting, finish requests
//!           ─ wait: listeners, then connections, then queues
//!           ─ GivingUp (drain timeout) ─────────▶ what waits goes to the spool, or is dropped and counted as "shutdown"
//!           ─ Leaving ──────────────────────────▶ cores end, then spools
//!   print what was delivered and what was lost
//! ```

mod spools;

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, watch};

use self::spools::Spools;
use crate::admin::Observed;
use crate::config::{AckPolicy, AuthPlan, DestinationPlan, DestinationTarget, Plan};
use crate::fanout::call::CALLS_WAITING_MAX;
use crate::fanout::{Calls, DestinationId, DropReason, Fanout, Gate};
use crate::inbound::http2::{self, SideDoor, Visitors};
use crate::inbound::tally::Tally;
use crate::inbound::{Connections, Inbound, InboundSetup};
use crate::outbound::addresses::{Addresses, Lookup, Resolver};
use crate::outbound::archive::{self, ArchiveControl, ArchiveSetup};
use crate::outbound::credentials::Credentials;
use crate::outbound::destination::{Destination, DestinationSetup};
use crate::outbound::dns;
use crate::outbound::head::{HeadWriter, Trace};
use crate::outbound::oauth2::{TokenProblem, Tokens};
use crate::outbound::secrets::{Keeper, SecretFiles};
use crate::profile::labels::LabelRules;
use crate::profile::relabel::Relabel;
use crate::runtime::clock::{self, Mono};
use crate::runtime::engine::Verdict;
use crate::runtime::phase::{self, Phase, PhaseReceiver};
use crate::runtime::pool::MemoryBudget;
use crate::runtime::sweeper::Sweeper;
use crate::runtime::tls::client::ClientSide;
use crate::runtime::tls::files::{self, Watched};
use crate::runtime::tls::server::ServerSide;
use crate::runtime::{self, CoreId, socket};

/// How often a shutdown looks whether all is done.
const DRAIN_POLL: Duration = Duration::from_millis(5);
/// After giving up, how long requests in flight may still report their end.
const LAST_OUTCOMES_WAIT: Duration = Duration::from_millis(200);
/// After giving up, how long what is left in memory may take to get to the spools.
const LAST_WRITES_WAIT: Duration = Duration::from_secs(20);

/// What clients may choose from by ALPN, the best first: those that know both and need HTTP/2 (gRPC) leave the choice to us.
const PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];

/// A running gateway, seen from the control plane.
pub struct Gateway {
    /// What it does.
    pub plan: Arc<Plan>,
    /// What its cores run on.
    pub engine: Verdict,
    /// Its destinations.
    pub gates: Vec<&'static Gate>,
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
    archives: Vec<Archive>,
    spools: Spools,
    http: Vec<HttpDestination>,
    keepers: Vec<Keeper>,
    certificates: Vec<Watched>,
    side_door: Option<(InboundSetup, Visitors)>,
    lookups: Option<mpsc::UnboundedReceiver<Lookup>>,
}

/// A destination that is a folder, and its thread.
struct Archive {
    control: Arc<ArchiveControl>,
    thread: JoinHandle<()>,
}

/// A destination whose name has to be kept resolved.
struct HttpDestination {
    gate: &'static Gate,
    host: String,
    port: u16,
    addresses: Arc<Addresses>,
}

/// What one core is started with.
struct CoreSetup {
    inbound: Option<(InboundSetup, Vec<TcpListener>)>,
    destinations: Vec<DestinationSetup>,
    phase: PhaseReceiver,
    ready: std::sync::mpsc::Sender<std::io::Result<()>>,
}

impl Gateway {
    /// Binds every listener and starts every core. Nothing is left running when it fails.
    ///
    /// # Errors
    /// An address that cannot be bound, a certificate that cannot be used, a thread or a ring that cannot be had.
    pub fn start(plan: Plan, engine: Verdict) -> anyhow::Result<Self> {
        let plan = Arc::new(plan);
        let mut certificates = Vec::new();
        let tls = server_side(&plan, &mut certificates)?;
        let clients = client_sides(&plan, &mut certificates)?;
        let (addresses, mut listeners) = bind(&plan)?;
        let memory = MemoryBudget::new(plan.memory_limit);
        let mut spools = Spools::open(&plan)?;
        let mut gates: Vec<&'static Gate> = Vec::new();
        for (index, one) in plan.destinations.iter().enumerate() {
            let gate = Gate::new(DestinationId(index), one.name.clone(), one.queue_limit)
                .with_pinned_bytes_max(pinned_bytes_max(&plan, one.queue_limit))
                .with_overflow(plan.overflow);
            gates.push(spools.start(gate, one, &plan, &memory)?);
        }
        let (phase, phase_receiver) = watch::channel(Phase::Serving);
        let (resolver, lookups) = Resolver::new();
        let Prepared {
            mut destinations,
            http,
            keepers,
            calls,
        } = prepare_http(&plan, &gates, clients, &resolver, &mut certificates)?;
        let archives = start_archives(&plan, &gates)?;
        // The side door has idle connections too, and so a place beside the cores.
        let connections = Arc::new(Connections::new(plan.conn_limit, plan.inbound_cores() + 1));
        let mut tallies: Vec<Arc<Tally>> = (0..plan.inbound_cores()).map(|_| Arc::default()).collect();
        let (side_door, visitors) = SideDoor::new();
        let has_side_door = plan.h2c || tls.is_some();
        let relabel = Relabel::new(&plan.relabel).context("--relabel")?;
        let rules = LabelRules::new(plan.external_labels.clone()).context("--external-label")?;
        let rules = rules.with_relabel(relabel);
        let shared = InboundSetup {
            core: 0,
            plan: plan.clone(),
            rules: Arc::new(rules.clone()),
            fanout: Arc::new(Fanout::new(gates.clone(), plan.overflow).with_calls(calls)),
            memory: memory.clone(),
            connections: connections.clone(),
            tls,
            side_door: has_side_door.then_some(side_door),
            tally: Arc::default(),
            phase: phase_receiver.clone(),
        };
        let (ready, started) = std::sync::mpsc::channel();
        let mut cores = Vec::new();
        for core in 0..plan.cores {
            let inbound = tallies.get(core).map(|tally| {
                let setup = InboundSetup {
                    core,
                    tally: tally.clone(),
                    // Of its own: what a regex works with is not shared between cores.
                    rules: Arc::new(rules.clone()),
                    ..shared.clone()
                };
                (setup, listeners.iter_mut().filter_map(Vec::pop).collect())
            });
            let (own, others) = destinations.into_iter().partition(|(owner, _)| *owner == core);
            destinations = others;
            let own: Vec<(usize, DestinationSetup)> = own;
            let setup = CoreSetup {
                inbound,
                destinations: own.into_iter().map(|(_, setup)| setup).collect(),
                phase: phase_receiver.clone(),
                ready: ready.clone(),
            };
            let cpu = plan.pinned.get(core).copied();
            let handle = runtime::start_core(CoreId(core), engine.engine, cpu, move || run_core(setup));
            cores.push(handle.with_context(|| format!("cannot start the thread of core {core}"))?);
        }
        drop(ready);
        for _ in 0..plan.cores {
            started
                .recv()
                .context("a core ended before it had started")?
                .context("a core cannot start")?;
        }
        let side_door = has_side_door.then(|| {
            // Counts beside the cores.
            tallies.push(shared.tally.clone());
            // The door stays open for as long as a core has it.
            let setup = InboundSetup {
                core: plan.inbound_cores(),
                side_door: None,
                ..shared
            };
            (setup, visitors)
        });
        let lookups = Some(lookups);
        let started_unix_ms = u64::try_from(clock::unix_now().as_millis()).unwrap_or(u64::MAX);
        Ok(Self {
            plan,
            engine,
            gates,
            tallies,
            connections,
            memory,
            addresses,
            started_unix_ms,
            phase,
            cores,
            archives,
            spools,
            http,
            keepers,
            certificates,
            side_door,
            lookups,
        })
    }

    /// What the admin port shows.
    pub fn observed(&self) -> Arc<Observed> {
        Arc::new(Observed {
            plan: self.plan.clone(),
            engine: self.engine.clone(),
            gates: self.gates.clone(),
            tallies: self.tallies.clone(),
            connections: self.connections.clone(),
            memory: self.memory.clone(),
            phase: self.phase.subscribe(),
            started_unix_ms: self.started_unix_ms,
        })
    }

    /// Starts keeping the destinations' names resolved and their secrets up to date. Must be called on a tokio `LocalSet`.
    pub fn spawn_keepers(&mut self) {
        for one in self.http.drain(..) {
            let refresh = self.plan.dns_refresh;
            tokio::task::spawn_local(dns::keep_resolved(
                one.gate,
                one.host,
                one.port,
                one.addresses,
                refresh,
            ));
        }
        for keeper in self.keepers.drain(..) {
            tokio::task::spawn_local(keeper.run());
        }
        if let Some(lookups) = self.lookups.take() {
            tokio::task::spawn_local(dns::answer_lookups(lookups));
        }
    }

    /// Starts reading certificates again when their files change. Must be called on a tokio `LocalSet`.
    pub fn spawn_rotation(&mut self) {
        for watched in self.certificates.drain(..).filter(|one| !one.files.is_empty()) {
            tokio::task::spawn_local(files::keep_fresh(watched));
        }
    }

    /// Starts serving clients that speak HTTP/2. Must be called on a tokio `LocalSet`.
    pub fn spawn_side_door(&mut self) {
        if let Some((setup, visitors)) = self.side_door.take() {
            tokio::task::spawn_local(http2::serve(visitors, setup));
        }
    }

    /// Stops accepting, finishes requests, drains queues up to `--drain-timeout`, and ends the cores.
    pub async fn shut_down(self) -> Vec<Farewell> {
        let deadline = clock::now().after(self.plan.drain_timeout);
        self.phase.send_replace(Phase::Draining);
        self.archives.iter().for_each(|archive| archive.control.drain());
        // In this order: each step makes sure that nothing can be added to what the next one waits for.
        wait_until(deadline, || self.connections.accepting() == 0).await;
        wait_until(deadline, || self.connections.open() == 0).await;
        // No more is read back from here on: a backlog on disk is the next process's.
        self.spools.stop_reading();
        let is_memory_empty = || self.gates.iter().all(|gate| gate.parcels_in_memory() == 0);
        wait_until(deadline, is_memory_empty).await;
        self.gates.iter().for_each(|gate| gate.close());
        self.spools.take_the_rest();
        self.phase.send_replace(Phase::GivingUp);
        self.archives.iter().for_each(|archive| archive.control.give_up());
        let last = clock::now().after(LAST_OUTCOMES_WAIT);
        wait_until(last, is_memory_empty).await;
        self.phase.send_replace(Phase::Leaving);
        for core in self.cores {
            let _ = core.join();
        }
        // What came in after the cores had given up and before they ended.
        for gate in &self.gates {
            while let Some(parcel) = gate.take() {
                gate.evict(parcel, DropReason::Shutdown);
            }
        }
        self.spools.finish().await;
        self.gates.iter().for_each(|gate| gate.drop_rest());
        // A write that hangs in the kernel cannot be interrupted: such a thread ends with the process.
        let last = clock::now().after(LAST_OUTCOMES_WAIT);
        wait_until(last, || {
            self.archives.iter().all(|archive| archive.thread.is_finished())
        })
        .await;
        Farewell::of_all(&self.gates)
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
            unknown: books.parcels_in_memory(),
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

/// The memory that one destination's parcels may pin: its share of three quarters of all, and never less than its queue
/// limit. Under `--overflow drop-oldest` destinations that are dead or behind then do not fill the memory and refuse
/// clients for the others, however small the parcels are; a quarter stays for requests that are being received.
fn pinned_bytes_max(plan: &Plan, queue_limit: u64) -> u64 {
    (plan.memory_limit / 4 * 3 / plan.destinations.len() as u64).max(queue_limit)
}

/// The listeners of every address, one for each inbound core.
fn bind(plan: &Plan) -> anyhow::Result<(Vec<SocketAddr>, Vec<Vec<TcpListener>>)> {
    let mut addresses = Vec::new();
    let mut all = Vec::new();
    for wanted in &plan.listen {
        let listeners = socket::listeners(*wanted, plan.inbound_cores())
            .with_context(|| format!("--listen {wanted}: cannot bind; is another process using it?"))?;
        addresses.push(listeners[0].local_addr()?);
        all.push(listeners);
    }
    Ok((addresses, all))
}

/// What handshakes with clients go by, if they speak TLS.
fn server_side(plan: &Plan, certificates: &mut Vec<Watched>) -> anyhow::Result<Option<Arc<ServerSide>>> {
    let Some(tls) = &plan.tls else { return Ok(None) };
    let (side, watched) = ServerSide::load(tls.clone(), &PROTOCOLS)?;
    certificates.push(watched);
    Ok(Some(side))
}

/// What handshakes with each destination go by; `None` for one in cleartext.
fn client_sides(
    plan: &Plan,
    certificates: &mut Vec<Watched>,
) -> anyhow::Result<Vec<Option<Arc<ClientSide>>>> {
    let mut sides = Vec::new();
    for one in &plan.destinations {
        let Some(tls) = &one.tls else {
            sides.push(None);
            continue;
        };
        let (side, watched) =
            ClientSide::load(tls.clone(), &one.name).with_context(|| format!("--to {}", one.name))?;
        certificates.push(watched);
        sides.push(Some(side));
    }
    Ok(sides)
}

/// Starts the thread of every archive.
fn start_archives(plan: &Plan, gates: &[&'static Gate]) -> anyhow::Result<Vec<Archive>> {
    let mut archives = Vec::new();
    for (one, gate) in plan.destinations.iter().zip(gates) {
        let DestinationTarget::File { directory } = &one.target else {
            continue;
        };
        let control = ArchiveControl::new(gate);
        let setup = ArchiveSetup {
            gate,
            directory: directory.clone(),
            synced: plan.ack == AckPolicy::Stored,
            max_age: one.max_age,
            max_retries: one.max_retries,
            min_backoff: one.min_backoff,
            max_backoff: one.max_backoff,
        };
        let thread = archive::start(setup, control.clone()).with_context(|| format!("--to {}", one.name))?;
        archives.push(Archive { control, thread });
    }
    Ok(archives)
}

/// What the cores and the control plane need to serve the destinations that are servers.
#[derive(Default)]
struct Prepared {
    /// By owner core.
    destinations: Vec<(usize, DestinationSetup)>,
    /// Whose names are to be resolved.
    http: Vec<HttpDestination>,
    /// Whose secrets are to be kept up to date.
    keepers: Vec<Keeper>,
    /// Where debuginfo goes: to the first of them (WIRE.md section 7).
    calls: Option<Calls>,
}

/// Prepares the destinations that are servers. Reads their secret files.
fn prepare_http(
    plan: &Plan,
    gates: &[&'static Gate],
    clients: Vec<Option<Arc<ClientSide>>>,
    resolver: &Resolver,
    certificates: &mut Vec<Watched>,
) -> anyhow::Result<Prepared> {
    let instance = uuid::Uuid::new_v4().to_string();
    let mut prepared = Prepared::default();
    let each = plan.destinations.iter().enumerate().zip(gates).zip(clients);
    for (((index, one), gate), tls) in each {
        let DestinationTarget::Http { host, port, .. } = &one.target else {
            continue;
        };
        let credentials = prepare_secrets(one, gate, &mut prepared.keepers, certificates)?;
        let trace = Trace {
            jaeger: plan.sends_trace_header(one, "uber-trace-id"),
            w3c: plan.sends_trace_header(one, "traceparent"),
        };
        let Some(head) = HeadWriter::new(one, &instance, credentials, trace) else {
            continue;
        };
        let proxies = one.proxy.rules(|name| std::env::var(name).ok());
        let proxies = proxies.map_err(|problem| anyhow::anyhow!("--to {}: {problem}", one.name))?;
        let via = proxies.via(one.tls.is_some(), host, *port).cloned();
        let (host, port) = via
            .as_ref()
            .map_or((host, port), |proxy| (&proxy.host, &proxy.port));
        let addresses = match dns::fixed_addresses(host, *port) {
            Some(fixed) => Arc::new(fixed),
            None => {
                let addresses = Arc::new(Addresses::default());
                prepared.http.push(HttpDestination {
                    gate,
                    host: host.clone(),
                    port: *port,
                    addresses: addresses.clone(),
                });
                addresses
            }
        };
        let resolver = resolver.clone();
        let calls = prepared.calls.is_none().then(|| {
            let (sender, calls) = mpsc::channel(CALLS_WAITING_MAX);
            prepared.calls = Some(sender);
            calls
        });
        let answers_wait = plan.ack != AckPolicy::Queued;
        let setup = DestinationSetup {
            gate,
            plan: one.clone(),
            tls,
            answers_wait,
            proxies,
            via,
            addresses,
            resolver,
            calls,
            head,
        };
        prepared.destinations.push((plan.writer_core(index), setup));
    }
    Ok(prepared)
}

/// The header lines that say who we are to `one`, and whoever keeps them up to date where they can change.
fn prepare_secrets(
    one: &DestinationPlan,
    gate: &'static Gate,
    keepers: &mut Vec<Keeper>,
    certificates: &mut Vec<Watched>,
) -> anyhow::Result<Arc<Credentials>> {
    let files =
        SecretFiles::read(one).with_context(|| format!("--to {}: a secret cannot be had", one.name))?;
    let tokens = match &one.auth {
        AuthPlan::OAuth2(plan) => {
            let proxies = plan.proxy.rules(|name| std::env::var(name).ok());
            let proxies =
                proxies.map_err(|problem| anyhow::anyhow!("--to {}: oauth2: {problem}", one.name))?;
            let (tokens, watched) = Tokens::new((**plan).clone(), &proxies, &one.name)
                .with_context(|| format!("--to {}: oauth2", one.name))?;
            certificates.extend(watched);
            Some(tokens)
        }
        _ => None,
    };
    let lines = files.lines(one, None);
    if files.is_empty() && tokens.is_none() {
        return Ok(Arc::new(Credentials::fixed(lines)));
    }
    let (credentials, wishes) = Credentials::kept(lines);
    if tokens.is_some() {
        credentials.set(Err(TokenProblem::NotYet));
    }
    let credentials = Arc::new(credentials);
    keepers.push(Keeper {
        gate,
        plan: one.clone(),
        files,
        tokens,
        credentials: credentials.clone(),
        wishes,
    });
    Ok(credentials)
}

/// The life of one core.
async fn run_core(setup: CoreSetup) {
    let CoreSetup {
        inbound,
        destinations,
        mut phase,
        ready,
    } = setup;
    let sweeper = Rc::new(Sweeper::default());
    monoio::spawn(sweeper.clone().run());
    let destinations: Vec<Rc<Destination>> = destinations
        .into_iter()
        .map(|one| Destination::start(one, sweeper.clone()))
        .collect();
    if let Some((inbound, listeners)) = inbound
        && let Err(error) = Inbound::start(inbound, listeners, sweeper)
    {
        let _ = ready.send(Err(error));
        return;
    }
    let _ = ready.send(Ok(()));
    // Whoever waits for the cores to start must notice one that never sends: no sender may outlive the start.
    drop(ready);
    phase::reached(&mut phase, Phase::Draining).await;
    destinations.iter().for_each(|destination| destination.hurry());
    phase::reached(&mut phase, Phase::GivingUp).await;
    destinations
        .iter()
        .for_each(|destination| destination.give_up(DropReason::Shutdown));
    phase::reached(&mut phase, Phase::Leaving).await;
    destinations.iter().for_each(|destination| destination.leave());
}
