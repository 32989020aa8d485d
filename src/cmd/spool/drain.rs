//! `pyrotee spool drain`: sends what waits for a destination to a server, once the gateway is gone or for one that is no
//! longer in its configuration.
//!
//! ```text
//!  store.peek, read ─▶ lanes, each with a connection ─▶ accepted: store.done
//!                                                    ├▶ refused for good: counted, stays
//!                                                    └▶ no answer or "not now", a few times: nobody sends any more
//! ```
//! Not responsible for redirects: a server that sends elsewhere is told so.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::Semaphore;

use super::{show, the_folder};
use crate::config::destination::DestinationDefaults;
use crate::config::units::show_size;
use crate::config::{AuthPlan, DestinationPlan, DestinationTarget, ProxyPlan};
use crate::fanout::{Push, RecordId};
use crate::outbound::backoff;
use crate::outbound::classify::{Asked, Decision, Leniency, classify};
use crate::outbound::connection::{AttemptError, Connection, Entry, Scratch};
use crate::outbound::credentials::Credentials;
use crate::outbound::head::{HeadWriter, Trace};
use crate::outbound::secrets::SecretFiles;
use crate::runtime::clock::{self, Mono};
use crate::runtime::engine::{EngineChoice, probe};
use crate::runtime::run_local;
use crate::runtime::sweeper::Sweeper;
use crate::runtime::tls::client::ClientSide;
use crate::spool::keeper::rebuild;
use crate::spool::{self, Meta, ReadError, RealDisk, Store, StoreLimits, Sums};

/// The arguments of `pyrotee spool drain`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The destination; not needed if there is only one.
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Where to send, as in `pyrotee run --to`, options and all: http://host:port,header.X-Scope-OrgID=team. Records of any
    /// age are sent. Options have other defaults here: inflight=8, max-retries=4, max-backoff=5s.
    #[arg(long, env = "PYROTEE_DRAIN_TO", value_name = "URL[,key=value...]", value_parser = parse_to, hide_env_values = true)]
    to: DestinationPlan,
}

/// Bodies in memory at most; a larger one goes alone.
const BODY_BYTES_MAX: usize = 64 << 20;
/// What [`BODY_BYTES_MAX`] is counted in.
const PERMIT_BYTES: usize = 1 << 10;
const PERMITS: usize = BODY_BYTES_MAX / PERMIT_BYTES;
/// A segment that cannot be read comes back after the others; so often in a row means that nothing can.
const READ_FAILURES_MAX: u32 = 3;

fn parse_to(text: &str) -> Result<DestinationPlan, String> {
    let defaults = DestinationDefaults {
        queue_limit: 1 << 30,
        spool_limit: None,
        max_age: Duration::from_secs(3_600),
        inflight: 8,
        remote_timeout: Duration::from_secs(10),
        min_backoff: Duration::from_millis(500),
        max_backoff: Duration::from_secs(5),
        max_retries: 4,
    };
    DestinationPlan::parse(text, &defaults)
}

/// Drains.
///
/// # Errors
/// When the spool is in use or cannot be opened, or the destination's name does not resolve.
pub fn run(args: &super::Args, drain: &Args) -> anyhow::Result<ExitCode> {
    let folder = the_folder(args, drain.destination.as_deref())?;
    let address = resolve(&drain.to)?;
    if matches!(drain.to.auth, AuthPlan::OAuth2(_)) || drain.to.proxy != ProxyPlan::None {
        bail!(
            "--to: draining goes straight to the destination, without oauth2 and proxies; start the gateway instead"
        );
    }
    let credentials = Credentials::fixed(SecretFiles::read(&drain.to)?.lines(&drain.to, None));
    let instance = uuid::Uuid::new_v4().to_string();
    let head = HeadWriter::new(&drain.to, &instance, Arc::new(credentials), Trace::default());
    let Some(head) = head else {
        bail!("--to: a folder cannot be drained to; give an http:// URL")
    };
    let tls = match &drain.to.tls {
        Some(tls) => Some(ClientSide::load(tls.clone(), "--to")?.0),
        None => None,
    };
    let _lock = spool::lock(&args.spool)?;
    let disk = RealDisk::existing(&folder.folder);
    // Nothing is appended, so no limit matters.
    let (store, recovery) = Store::open(disk, StoreLimits::of(u64::MAX))
        .with_context(|| format!("cannot open the spool of '{}'", folder.destination))?;
    for damage in &recovery.damages.list {
        eprintln!(
            "damaged: {}, byte {}: {}",
            damage.file, damage.offset, damage.what
        );
    }
    let total = recovery.totals.left;
    let drainer = Rc::new(Drainer {
        plan: drain.to.clone(),
        head,
        tls,
        address,
        room: Semaphore::new(PERMITS),
        turn: tokio::sync::Mutex::new(()),
        work: RefCell::new(Work {
            store,
            sent: Sums::default(),
            refused: BTreeMap::new(),
            lost: recovery.damages.lost.parcels,
            read_failures: 0,
            stopped: None,
            bar: progress_bar(total.parcels),
        }),
    });
    let engine = probe(EngineChoice::Auto)?.engine;
    run_local(engine, {
        let drainer = drainer.clone();
        || drainer.run_lanes()
    })?;
    Ok(tell(&folder.destination, &drainer.work.borrow()))
}

fn resolve(plan: &DestinationPlan) -> anyhow::Result<SocketAddr> {
    let DestinationTarget::Http { host, port, .. } = &plan.target else {
        bail!("--to: a folder cannot be drained to; give an http:// URL")
    };
    let mut addresses = (host.as_str(), *port)
        .to_socket_addrs()
        .context("--to: its name does not resolve")?;
    addresses.next().context("--to: its name has no address")
}

fn progress_bar(records: u64) -> ProgressBar {
    // indicatif draws on stderr, and only on a terminal.
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} records  {eta}");
    ProgressBar::new(records).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Says what became of everything.
fn tell(destination: &str, work: &Work) -> ExitCode {
    work.bar.finish_and_clear();
    let sent = show::several(work.sent.parcels, "record");
    println!(
        "sent {sent} of '{destination}' with {} ({})",
        show::several(work.sent.profiles, "profile"),
        show_size(work.sent.bytes)
    );
    for (answer, count) in &work.refused {
        println!("refused for good, {answer}: {count}");
    }
    if work.lost > 0 {
        println!("lost to damage: {}", show::count(work.lost));
    }
    let left = work.store.totals().left.parcels;
    if let Some(why) = &work.stopped {
        eprintln!("error: stopped: {why}");
    }
    if left == 0 {
        return ExitCode::SUCCESS;
    }
    println!(
        "left: {}; drain again when the destination takes them, or 'pyrotee spool drop'",
        show::several(left, "record")
    );
    ExitCode::FAILURE
}

struct Drainer {
    plan: DestinationPlan,
    head: HeadWriter,
    tls: Option<Arc<ClientSide>>,
    address: SocketAddr,
    /// What bodies may still take.
    room: Semaphore,
    /// One lane at a time looks for a record.
    turn: tokio::sync::Mutex<()>,
    work: RefCell<Work>,
}

struct Work {
    store: Store<RealDisk>,
    sent: Sums,
    /// By answer. Bounded by the number of status codes.
    refused: BTreeMap<String, u64>,
    lost: u64,
    read_failures: u32,
    /// Why nobody sends any more.
    stopped: Option<String>,
    bar: ProgressBar,
}

/// How the sending of one record ended.
enum End {
    Accepted,
    Refused(String),
    /// It was tried often enough.
    Failed(String),
}

impl Drainer {
    async fn run_lanes(self: Rc<Self>) {
        let sweeper = Rc::new(Sweeper::default());
        monoio::spawn(sweeper.clone().run());
        let lanes: Vec<_> = (0..self.plan.inflight)
            .map(|_| {
                let lane = Lane {
                    drainer: self.clone(),
                    sweeper: sweeper.clone(),
                    connection: None,
                    scratch: Scratch::default(),
                };
                monoio::spawn(lane.run())
            })
            .collect();
        for lane in lanes {
            lane.await;
        }
    }
}

impl Work {
    /// The next record, if there is one and sending goes on.
    fn peek(&mut self) -> Option<Meta> {
        while self.stopped.is_none() {
            let peeked = self.store.peek();
            self.count_damage();
            match peeked {
                Ok(meta) => return meta,
                Err(error) => self.count_read_failure(&error),
            }
        }
        None
    }

    fn read(&mut self, meta: &Meta) -> Option<Arc<Push>> {
        let mut buffer = Vec::new();
        match self.store.read(meta, &mut buffer) {
            Ok(()) => {
                self.read_failures = 0;
                let pinned = buffer.capacity() as u64;
                Some(Arc::new(rebuild(meta, &buffer.into(), pinned, clock::now())))
            }
            Err(ReadError::Damaged) => {
                self.count_damage();
                None
            }
            Err(ReadError::Io(error)) => {
                self.count_read_failure(&error);
                None
            }
        }
    }

    fn count_damage(&mut self) {
        for damage in self.store.take_damages().list {
            self.lost += damage.records;
            let text = format!(
                "damaged: {}, byte {}: {}",
                damage.file, damage.offset, damage.what
            );
            self.bar.suspend(|| eprintln!("{text}"));
        }
    }

    fn count_read_failure(&mut self, error: &std::io::Error) {
        self.read_failures += 1;
        if self.read_failures >= READ_FAILURES_MAX {
            self.stop(format!("cannot read the spool: {error}"));
        }
    }

    fn stop(&mut self, why: String) {
        self.stopped.get_or_insert(why);
    }

    fn settle(&mut self, id: RecordId, end: End) {
        self.bar.inc(1);
        match end {
            End::Accepted => {
                self.sent = self.sent.plus(id.sums());
                if let Err(error) = self.store.done(&[id]) {
                    self.stop(format!(
                        "cannot mark what was sent, so it would be sent again: {error}"
                    ));
                }
            }
            End::Refused(answer) => *self.refused.entry(answer).or_default() += 1,
            End::Failed(why) => self.stop(why),
        }
    }
}

/// One connection, and what it sends one after the other.
struct Lane {
    drainer: Rc<Drainer>,
    sweeper: Rc<Sweeper>,
    connection: Option<Connection>,
    scratch: Scratch,
}

impl Lane {
    async fn run(mut self) {
        let drainer = self.drainer.clone();
        loop {
            let turn = drainer.turn.lock().await;
            let Some(meta) = drainer.work.borrow_mut().peek() else {
                return;
            };
            let bytes = usize::try_from(meta.read_bytes()).unwrap_or(usize::MAX);
            let permits = bytes.div_ceil(PERMIT_BYTES).min(PERMITS) as u32;
            let Ok(_room) = drainer.room.acquire_many(permits).await else {
                return;
            };
            let Some(push) = drainer.work.borrow_mut().read(&meta) else {
                continue;
            };
            drop(turn);
            let end = self.deliver(&push).await;
            drainer.work.borrow_mut().settle(meta.id, end);
        }
    }

    /// Sends until there is a last word. A retry waits; meanwhile other lanes go on.
    async fn deliver(&mut self, push: &Arc<Push>) -> End {
        let plan = &self.drainer.clone().plan;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (trouble, after) = match self.attempt(push).await {
                Ok((Decision::Delivered, _)) => return End::Accepted,
                Ok((Decision::Retry { after, .. }, status)) => (format!("it answers {status}"), after),
                Ok((Decision::Follow | Decision::GiveUp(_), status)) => {
                    return End::Refused(status.to_string());
                }
                Err(error) => (error.to_string(), None),
            };
            let is_stopped = self.drainer.work.borrow().stopped.is_some();
            if is_stopped || (attempt >= plan.max_retries && plan.max_retries > 0) {
                return End::Failed(format!("the destination does not take a record: {trouble}"));
            }
            let wait = backoff::wait(
                attempt,
                plan.min_backoff,
                plan.max_backoff,
                after,
                fastrand::f64(),
            );
            monoio::time::sleep(wait).await;
        }
    }

    /// One attempt: what the answer means, and its status. A connection that turns out stale is replaced at once.
    async fn attempt(&mut self, push: &Arc<Push>) -> Result<(Decision, u16), AttemptError> {
        let deadline = clock::now().after(self.drainer.plan.remote_timeout);
        loop {
            let now = clock::now();
            let reused = self.connection.take().filter(|connection| connection.is_fit(now));
            let is_reused = reused.is_some();
            let connection = match reused {
                Some(connection) => connection,
                None => self.connect(deadline).await?,
            };
            match self.exchange(connection, push, deadline).await {
                Err(AttemptError::Unanswered(_)) if is_reused => {}
                result => return result,
            }
        }
    }

    async fn connect(&self, deadline: Mono) -> Result<Connection, AttemptError> {
        let left = deadline.since(clock::now());
        let silence_max = self.drainer.plan.remote_timeout;
        let entry = self.drainer.tls.as_ref().map(|side| Entry {
            tunnel: None,
            greeting: side.own(),
        });
        Connection::open(self.drainer.address, entry, left, silence_max, &self.sweeper).await
    }

    async fn exchange(
        &mut self,
        mut connection: Connection,
        push: &Arc<Push>,
        deadline: Mono,
    ) -> Result<(Decision, u16), AttemptError> {
        let head = &self.drainer.head;
        let timeout_ms = u64::try_from(self.drainer.plan.remote_timeout.as_millis()).unwrap_or(u64::MAX);
        let aim = head.aim(push.route);
        let write_head = |out: &mut Vec<u8>| head.write(out, push, aim, timeout_ms);
        self.scratch.gather.load(push, write_head);
        let exchanged = connection.exchange(&mut self.scratch, deadline).await?;
        if exchanged.reusable {
            connection.rest(clock::now());
            self.connection = Some(connection);
        }
        let asked = Asked {
            route: push.route,
            content_type: push.content_type(),
        };
        let leniency = Leniency {
            retry_on_http_429: self.drainer.plan.retry_on_http_429,
            follow_redirects: false,
        };
        let reply = exchanged.reply;
        Ok((classify(asked, &reply, leniency), reply.status))
    }
}
