//! One destination, from its plan to what runs: at the start of the process, and when a reload brings or changes it.
//!
//! ```text
//!  plan ─▶ open: files read, folders opened, threads reserved ─▶ start | change: nothing can fail any more
//! ```
//! So a reload knows that all of it will work before any of it is in force.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::core::Order;
use super::spools::{self, OpenedSpool, SpoolThread};
use crate::config::{AckPolicy, AuthPlan, DestinationPlan, DestinationTarget, Plan, ProxyRules};
use crate::fanout::call::CALLS_WAITING_MAX;
use crate::fanout::{Call, Calls, Gate};
use crate::outbound::addresses::{Addresses, Resolver};
use crate::outbound::archive::{self, ArchiveControl, ArchiveSetup, Folder};
use crate::outbound::credentials::Credentials;
use crate::outbound::destination::DestinationSetup;
use crate::outbound::dns;
use crate::outbound::head::{HeadWriter, Trace};
use crate::outbound::oauth2::{TokenProblem, Tokens};
use crate::outbound::secrets::{Keeper, SecretFiles};
use crate::runtime::reserved::Reserved;
use crate::runtime::tls::client::ClientSide;
use crate::runtime::tls::files::{self, Watched};

/// A destination at work, seen from the control plane.
pub struct Running {
    /// What the operator asked for.
    pub plan: Arc<DestinationPlan>,
    /// Its entrance.
    pub gate: &'static Gate,
    /// Who serves it.
    pub work: Work,
    /// Its spool, if it has one.
    pub spool: Option<SpoolThread>,
    /// What the control plane does for it.
    pub errands: Errands,
}

/// Who serves a destination.
pub enum Work {
    /// A core.
    Server {
        /// Which one.
        core: usize,
        /// Where debuginfo for it goes.
        calls: Calls,
        /// The trace headers that it gets.
        trace: Trace,
    },
    /// A thread.
    Archive {
        /// How it is told what to do.
        control: Arc<ArchiveControl>,
        /// The thread.
        thread: JoinHandle<()>,
    },
}

impl Running {
    /// The core that owns it; `None` for an archive.
    pub fn core(&self) -> Option<usize> {
        match self.work {
            Work::Server { core, .. } => Some(core),
            Work::Archive { .. } => None,
        }
    }

    /// Where debuginfo for it goes; `None` for an archive.
    pub fn calls(&self) -> Option<&Calls> {
        match &self.work {
            Work::Server { calls, .. } => Some(calls),
            Work::Archive { .. } => None,
        }
    }

    /// Its archive, if it is one.
    pub fn archive(&self) -> Option<(&ArchiveControl, &JoinHandle<()>)> {
        match &self.work {
            Work::Server { .. } => None,
            Work::Archive { control, thread } => Some((control, thread)),
        }
    }

    /// Whether `one`, of the same name, asks for what is there already.
    pub fn is_as(&self, one: &DestinationPlan, whole: &Plan) -> bool {
        let same_trace = match &self.work {
            Work::Server { trace, .. } => *trace == trace_of(one, whole),
            Work::Archive { .. } => true,
        };
        *self.plan == *one && same_trace
    }
}

/// What destinations of one process are made with.
pub struct Workshop {
    /// What identifies the process to them.
    pub instance: String,
    /// For redirects to elsewhere.
    pub resolver: Resolver,
}

/// A destination of which everything has been read and opened that can fail.
pub struct Opened {
    plan: Arc<DestinationPlan>,
    target: Target,
    /// Where it is new and has one.
    pub spool: Option<OpenedSpool>,
}

enum Target {
    Server(Box<Server>),
    Archive(Folder, Option<Reserved>),
}

struct Server {
    tls: Option<(Arc<ClientSide>, Watched)>,
    files: SecretFiles,
    tokens: Option<Tokens>,
    /// Those of the token endpoint.
    token_certificates: Option<Watched>,
    proxies: ProxyRules,
}

impl Opened {
    /// Reads and opens what `one` names. For one that is new, threads are reserved and its spool is opened too; nobody else
    /// may have that open. How far the spool is read is told.
    ///
    /// # Errors
    /// A file that cannot be used, a folder that cannot be had, a thread that cannot be started.
    pub fn open(
        one: &DestinationPlan,
        whole: &Plan,
        is_new: bool,
        tell: &dyn Fn(String),
    ) -> anyhow::Result<Self> {
        let target = match &one.target {
            DestinationTarget::Http { .. } => Target::Server(Box::new(Server::open(one)?)),
            DestinationTarget::File { directory } => {
                let context = || format!("--to {}", one.name);
                let synced = whole.ack == AckPolicy::Stored;
                let folder = Folder::open(directory.clone(), synced).with_context(context)?;
                let thread = is_new.then(|| Reserved::new("archive")).transpose();
                Target::Archive(folder, thread.with_context(context)?)
            }
        };
        let spool = match is_new {
            true => OpenedSpool::open(one, whole, tell)?,
            false => None,
        };
        Ok(Self {
            plan: Arc::new(one.clone()),
            target,
            spool,
        })
    }

    /// What the operator asked for.
    pub fn plan(&self) -> &DestinationPlan {
        &self.plan
    }

    /// Starts a new destination behind `gate`, owned by `core` where a core serves it. Returns what that core has to be told.
    pub fn start(
        self,
        gate: &'static Gate,
        core: usize,
        spool: Option<SpoolThread>,
        whole: &Plan,
        shop: &Workshop,
    ) -> Option<(Running, Option<Box<DestinationSetup>>)> {
        let (plan, mut errands) = (self.plan, Errands::default());
        let (work, setup) = match self.target {
            Target::Server(server) => {
                let (calls, receiver) = mpsc::channel(CALLS_WAITING_MAX);
                let setup = server.setup(gate, &plan, Some(receiver), whole, shop, &mut errands)?;
                let trace = trace_of(&plan, whole);
                (Work::Server { core, calls, trace }, Some(Box::new(setup)))
            }
            Target::Archive(folder, thread) => {
                let control = ArchiveControl::new(gate);
                let thread = archive::start(archive_setup(gate, folder, &plan), control.clone(), thread?);
                (Work::Archive { control, thread }, None)
            }
        };
        let running = Running {
            plan,
            gate,
            work,
            spool,
            errands,
        };
        Some((running, setup))
    }

    /// Lets `running` go on by what has been opened. Returns what its core has to be told.
    pub fn change(self, running: &mut Running, whole: &Plan, shop: &Workshop) -> Option<Order> {
        let gate = running.gate;
        let mut errands = Errands::default();
        gate.status.set_secrets_failing(false); // whose secrets failed is looked after no more
        gate.set_bytes_max(self.plan.queue_limit);
        if let Some(spool) = &running.spool {
            spool.change(gate, &self.plan);
        }
        let order = match (self.target, &mut running.work) {
            (Target::Server(server), Work::Server { trace, .. }) => {
                *trace = trace_of(&self.plan, whole);
                let setup = server.setup(gate, &self.plan, None, whole, shop, &mut errands)?;
                Some(Order::Change(Box::new(setup)))
            }
            (Target::Archive(folder, _), Work::Archive { control, .. }) => {
                control.change(archive_setup(gate, folder, &self.plan));
                None
            }
            _ => return None, // refused before: a name keeps its kind
        };
        running.plan = self.plan;
        running.errands = errands;
        order
    }
}

impl Server {
    fn open(one: &DestinationPlan) -> anyhow::Result<Self> {
        let context = || format!("--to {}", one.name);
        let tls = one
            .tls
            .as_ref()
            .map(|tls| ClientSide::load(tls.clone(), &one.name));
        let tls = tls.transpose().with_context(context)?;
        let secret = || format!("--to {}: a secret cannot be had", one.name);
        let files = SecretFiles::read(one).with_context(secret)?;
        let environment = |name: &str| std::env::var(name).ok();
        let (tokens, token_certificates) = match &one.auth {
            AuthPlan::OAuth2(plan) => {
                let proxies = plan.proxy.rules(environment);
                let proxies =
                    proxies.map_err(|problem| anyhow::anyhow!("--to {}: oauth2: {problem}", one.name))?;
                let (tokens, watched) = Tokens::new((**plan).clone(), &proxies, &one.name)
                    .with_context(|| format!("--to {}: oauth2", one.name))?;
                (Some(tokens), watched)
            }
            _ => (None, None),
        };
        let proxies = one.proxy.rules(environment);
        let proxies = proxies.map_err(|problem| anyhow::anyhow!("--to {}: {problem}", one.name))?;
        Ok(Self {
            tls,
            files,
            tokens,
            token_certificates,
            proxies,
        })
    }

    /// What its core needs. What the control plane has to do for it is added to `errands`.
    fn setup(
        self,
        gate: &'static Gate,
        one: &DestinationPlan,
        calls: Option<mpsc::Receiver<Call>>,
        whole: &Plan,
        shop: &Workshop,
        errands: &mut Errands,
    ) -> Option<DestinationSetup> {
        let DestinationTarget::Http { host, port, .. } = &one.target else {
            return None;
        };
        let credentials = keep_secrets(one, gate, self.files, self.tokens, errands);
        let head = HeadWriter::new(one, &shop.instance, credentials, trace_of(one, whole))?;
        let via = self.proxies.via(one.tls.is_some(), host, *port).cloned();
        let (host, port) = via
            .as_ref()
            .map_or((host, port), |proxy| (&proxy.host, &proxy.port));
        let addresses = match dns::fixed_addresses(host, *port) {
            Some(fixed) => Arc::new(fixed),
            None => {
                let addresses = Arc::new(Addresses::default());
                errands.name = Some((host.clone(), *port, addresses.clone()));
                addresses
            }
        };
        let tls = self.tls.map(|(side, watched)| {
            errands.certificates.push(watched);
            side
        });
        errands.certificates.extend(self.token_certificates);
        Some(DestinationSetup {
            gate,
            plan: one.clone(),
            tls,
            answers_wait: whole.ack != AckPolicy::Queued,
            proxies: self.proxies,
            via,
            addresses,
            resolver: shop.resolver.clone(),
            calls,
            head,
        })
    }
}

/// The header lines that say who we are to `one`, and whoever keeps them up to date where they can change.
fn keep_secrets(
    one: &DestinationPlan,
    gate: &'static Gate,
    files: SecretFiles,
    tokens: Option<Tokens>,
    errands: &mut Errands,
) -> Arc<Credentials> {
    let lines = files.lines(one, None);
    if files.is_empty() && tokens.is_none() {
        return Arc::new(Credentials::fixed(lines));
    }
    let (credentials, wishes) = Credentials::kept(lines);
    if tokens.is_some() {
        credentials.set(Err(TokenProblem::NotYet));
    }
    let credentials = Arc::new(credentials);
    errands.secrets = Some(Keeper {
        gate,
        plan: one.clone(),
        files,
        tokens,
        credentials: credentials.clone(),
        wishes,
    });
    credentials
}

fn trace_of(one: &DestinationPlan, whole: &Plan) -> Trace {
    Trace {
        jaeger: whole.sends_trace_header(one, "uber-trace-id"),
        w3c: whole.sends_trace_header(one, "traceparent"),
    }
}

fn archive_setup(gate: &'static Gate, folder: Folder, one: &DestinationPlan) -> ArchiveSetup {
    ArchiveSetup {
        gate,
        folder,
        max_age: one.max_age,
        max_retries: one.max_retries,
        min_backoff: one.min_backoff,
        max_backoff: one.max_backoff,
    }
}

/// What the control plane does for a destination, for as long as this lives.
#[derive(Default)]
pub struct Errands {
    /// A name to be kept resolved.
    name: Option<(String, u16, Arc<Addresses>)>,
    /// Secrets to be kept up to date.
    secrets: Option<Keeper>,
    /// Certificates to be read again when they change.
    certificates: Vec<Watched>,
    under_way: Vec<AbortHandle>,
}

impl Errands {
    /// Begins to keep its name resolved and its secrets up to date, and to watch its disk. Must be called on a tokio `LocalSet`.
    pub fn spawn_keepers(&mut self, gate: &'static Gate, dns_refresh: Duration) {
        if let Some((host, port, addresses)) = self.name.take() {
            self.spawn(dns::keep_resolved(gate, host, port, addresses, dns_refresh));
        }
        if let Some(keeper) = self.secrets.take() {
            self.spawn(keeper.run());
        }
        if let Some(link) = gate.spool() {
            self.spawn(spools::watch(gate, link));
        }
    }

    /// Begins to read its certificates again when they change. Must be called on a tokio `LocalSet`.
    pub fn spawn_rotation(&mut self) {
        for watched in std::mem::take(&mut self.certificates) {
            if !watched.files.is_empty() {
                self.spawn(files::keep_fresh(watched));
            }
        }
    }

    fn spawn(&mut self, errand: impl Future<Output = ()> + 'static) {
        self.under_way
            .push(tokio::task::spawn_local(errand).abort_handle());
    }
}

impl Drop for Errands {
    fn drop(&mut self) {
        self.under_way.iter().for_each(AbortHandle::abort);
    }
}
