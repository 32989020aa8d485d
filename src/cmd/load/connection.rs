//! A load generator's data plane: connections that each send one request at a time and read its answer.
//!
//! ```text
//!  ticket ─▶ connect if need be ─▶ one write (front copied, id patched) ─▶ read until the answer is whole ─▶ tally
//! ```
//! Not responsible for what is sent (`bodies.rs`) or when (`pace.rs`, or as soon as the last answer is there).
//!
//! A request's timeout is kept by one watchdog per core that looks every few milliseconds, not by a timer per request: it
//! shuts the socket down, whatever operation is in flight completes, and the connection finds `expired` set.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use monoio::net::TcpStream;

use super::bodies::Kind;
use super::pace::{Gate, Schedule, Tickets};
use super::report::{Failure, Latencies, Tally, is_ok};
use crate::cmd::mark::ProfileId;
use crate::http::response::{ResponseFraming, ResponseHead};
use crate::http::{ChunkLimits, ChunkedDecoder, HeadLimits, Piece, Progress, ResponseReader};
use crate::runtime::clock::{self, Mono};
use crate::runtime::socket;
use crate::runtime::stream::{self, Handshake, Reader, Writer};
use crate::runtime::tls::client::ClientSide;
use crate::runtime::tls::{Session, TlsFailure};

/// Room for an answer. Larger ones are read in pieces of this.
const ANSWER_BYTES: usize = 16 << 10;
/// A longer answer is none that we know: a hundred times what a server says to a push.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Interim answers before the final one.
const INTERIM_MAX: usize = 8;
/// After a connection that failed, so that a dead destination is not stormed.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// What all cores share, immutable but for `stop`.
#[derive(Debug)]
pub struct Run {
    /// Where to send.
    pub address: SocketAddr,
    /// What handshakes go by, where there are any.
    pub tls: Option<Arc<ClientSide>>,
    /// What to send.
    pub kinds: Vec<Kind>,
    /// Indices into `kinds`; the n-th request of a core is of kind `cycle[n % len]`.
    pub cycle: Vec<usize>,
    /// Number of services; a whole cycle is one service's turn.
    pub services: u64,
    /// The run in the marks.
    pub run: u32,
    /// Each request on a connection of its own.
    pub connection_per_request: bool,
    /// Per request, connecting included.
    pub timeout: Duration,
    /// Number of cores.
    pub cores: u64,
    /// Requests in all, at most 2^32.
    pub requests: u64,
    /// No request begins before it.
    pub start: Mono,
    /// Requests that begin before are not measured.
    pub measure_from: Mono,
    /// No request begins after it.
    pub deadline: Mono,
    /// Set when a run is to end early.
    pub stop: AtomicBool,
    /// An open loop's schedule.
    pub schedule: Option<Schedule>,
}

/// What a core shows while it runs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Live {
    /// Requests that have ended.
    pub done: AtomicU64,
    /// Those of them that failed.
    pub failed: AtomicU64,
    /// Latencies of successes since someone last took them; `None` when nobody will.
    latencies: Option<Mutex<Latencies>>,
}

impl Live {
    /// Nothing yet. `watched`: whether [`Self::take_latencies`] will be called.
    pub fn new(watched: bool) -> Self {
        Self {
            latencies: watched.then(Mutex::default),
            ..Self::default()
        }
    }

    /// Latencies of successes since the last call.
    pub fn take_latencies(&self) -> Latencies {
        let taken = |latencies: &Mutex<Latencies>| std::mem::take(&mut *lock(latencies));
        self.latencies.as_ref().map(taken).unwrap_or_default()
    }
}

fn lock(latencies: &Mutex<Latencies>) -> MutexGuard<'_, Latencies> {
    latencies.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the connections of one core to their end and returns what they have counted.
pub async fn run_core(
    run: Arc<Run>,
    core: u64,
    connections: usize,
    gate: Option<Arc<Gate>>,
    live: Arc<Live>,
) -> Tally {
    let core = Rc::new(Core {
        number: core,
        // The n-th request of this core is the (n * cores + core)-th of all.
        requests: run.requests.saturating_sub(core).div_ceil(run.cores),
        begun: Cell::new(0),
        tickets: gate.clone().map(Tickets::new),
        buffers: RefCell::new(run.kinds.iter().map(|_| Vec::new()).collect()),
        watches: (0..connections).map(|_| Watch::default()).collect(),
        tally: RefCell::new(Tally::new()),
        run,
        live,
    });
    monoio::spawn({
        let core = core.clone();
        async move { core.watch().await }
    });
    let dispatching = {
        let core = core.clone();
        monoio::spawn(async move {
            if let Some(tickets) = &core.tickets {
                tickets.dispatch().await;
            }
        })
    };
    let connections: Vec<_> = (0..connections)
        .map(|index| {
            let connection = Connection {
                core: core.clone(),
                index,
                link: None,
                reader: ResponseReader::new(HeadLimits::for_responses()),
                answer: Vec::with_capacity(ANSWER_BYTES),
            };
            monoio::spawn(connection.run())
        })
        .collect();
    for connection in connections {
        connection.await;
    }
    dispatching.await; // until the gate is closed: from then on nothing is released
    let mut tally = core.tally.replace(Tally::new());
    tally.unsent = gate.map_or(0, |gate| gate.released() - core.begun.get());
    tally
}

struct Core {
    number: u64,
    run: Arc<Run>,
    /// How many requests this core may begin, and how many it has begun.
    requests: u64,
    begun: Cell<u64>,
    /// Open loop only.
    tickets: Option<Tickets>,
    /// Requests being written hold one each; the others lie here, by kind, the last used on top (it is in the cache).
    buffers: RefCell<Vec<Vec<Vec<u8>>>>,
    watches: Vec<Watch>,
    tally: RefCell<Tally>,
    live: Arc<Live>,
}

/// What the watchdog knows of a connection.
struct Watch {
    /// When the request under way must have ended; never when none is.
    limit: Cell<Mono>,
    /// Its socket; only read while a limit is set, and then open.
    fd: Cell<RawFd>,
    expired: Cell<bool>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            limit: Cell::new(Mono::NEVER),
            fd: Cell::new(-1),
            expired: Cell::new(false),
        }
    }
}

/// One request that may begin.
struct Ticket {
    /// The n-th of its core.
    n: u64,
    /// Where its latency begins.
    since: Mono,
}

impl Core {
    /// Waits for the next ticket. `None` ends the connection.
    async fn ticket(&self) -> Option<Ticket> {
        let ticket = match (&self.tickets, &self.run.schedule) {
            (Some(tickets), Some(schedule)) => {
                let n = tickets.take().await?;
                Ticket {
                    n,
                    since: schedule.moment(n * self.run.cores + self.number),
                }
            }
            _ => Ticket {
                n: self.begun.get(),
                since: clock::now(),
            },
        };
        let over = clock::now() >= self.run.deadline || self.run.stop.load(Ordering::Relaxed);
        if over || ticket.n >= self.requests {
            return None;
        }
        self.begun.set(self.begun.get() + 1);
        Some(ticket)
    }

    async fn watch(&self) {
        let step = (self.run.timeout / 16).clamp(Duration::from_millis(2), Duration::from_millis(100));
        loop {
            monoio::time::sleep(step).await;
            let now = clock::now();
            for watch in &self.watches {
                if now >= watch.limit.get() {
                    watch.expired.set(true);
                    watch.limit.set(Mono::NEVER);
                    socket::stop(watch.fd.get());
                }
            }
        }
    }

    fn count(&self, ticket: &Ticket, outcome: Result<u16, Failure>, body_bytes: usize) {
        let now = clock::now();
        let ok = outcome.is_ok_and(is_ok);
        let mut tally = self.tally.borrow_mut();
        if ticket.since >= self.run.measure_from {
            tally.count(outcome, now.since(ticket.since), body_bytes, now);
        } else if ok {
            tally.warmup_ok += 1;
        } else {
            tally.warmup_failed += 1;
        }
        let add = |count: &AtomicU64| count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        add(&self.live.done);
        if let (true, Some(latencies)) = (ok, &self.live.latencies) {
            lock(latencies).record(now.since(ticket.since));
        }
        if !ok {
            add(&self.live.failed);
        }
    }
}

struct Connection {
    core: Rc<Core>,
    index: usize,
    link: Option<Link>,
    reader: ResponseReader,
    /// What has been received and not yet consumed.
    answer: Vec<u8>,
}

/// What a connection is made of, in cleartext or not.
struct Link {
    reader: Reader,
    writer: Writer,
    fd: RawFd,
}

impl Connection {
    async fn run(mut self) {
        while clock::now() < self.core.run.start {
            monoio::time::sleep(self.core.run.start.since(clock::now())).await;
        }
        while let Some(ticket) = self.core.clone().ticket().await {
            let run = &self.core.run.clone();
            // Core by core the same cycle, a service per turn; 0 is no length, the mix is never empty.
            let turn = ticket.n / run.cycle.len() as u64;
            let kind = run.cycle[(ticket.n % run.cycle.len() as u64) as usize];
            let service = ((turn * run.cores + self.core.number) % run.services) as usize;
            let outcome = self.exchange(&ticket, kind, service).await;
            if outcome.is_err() || run.connection_per_request {
                self.link = None;
            }
            self.core.count(&ticket, outcome, run.kinds[kind].body_bytes());
            if matches!(outcome, Err(Failure::Connect | Failure::Tls)) {
                monoio::time::sleep(CONNECT_PAUSE).await;
            }
        }
    }

    /// Sends one request and reads its answer: the status.
    async fn exchange(&mut self, ticket: &Ticket, kind: usize, service: usize) -> Result<u16, Failure> {
        let core = self.core.clone();
        let run = &core.run;
        let begun = clock::now();
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.connect().await?,
        };
        let watch = &core.watches[self.index];
        watch.fd.set(link.fd);
        watch.expired.set(false);
        watch.limit.set(begun.after(run.timeout));

        // `requests` is at most 2^32, so the number of a request fits.
        let sequence = (ticket.n * run.cores + core.number) as u32;
        let kind_of = &run.kinds[kind];
        let pooled = core.buffers.borrow_mut()[kind].pop();
        let mut buffer = pooled.unwrap_or_else(|| kind_of.buffer());
        let begin = kind_of.write(
            service,
            ProfileId {
                run: run.run,
                sequence,
            },
            &mut buffer,
        );
        let (written, buffer) = link.writer.write_from(buffer, begin).await;
        core.buffers.borrow_mut()[kind].push(buffer);

        // A server may answer and close before it has read all of a request: its answer counts.
        let mut answered = self.receive_answer(&mut link.reader).await;
        if let (Err(_), Err(failure)) = (written, &mut answered)
            && !matches!(failure, Failure::BadAnswer | Failure::Tls)
        {
            *failure = Failure::Broken;
        }
        watch.limit.set(Mono::NEVER);
        let (status, keep_alive) = match answered {
            Ok(answered) => answered,
            Err(_) if watch.expired.get() => return Err(Failure::Timeout),
            Err(failure) => return Err(failure),
        };
        if keep_alive && !watch.expired.get() {
            self.link = Some(link);
        }
        Ok(status)
    }

    async fn connect(&mut self) -> Result<Link, Failure> {
        let timeout = self.core.run.timeout;
        let link = monoio::time::timeout(timeout, self.open()).await;
        let link = link.map_err(|_| Failure::Timeout)??;
        self.reader.reset();
        self.answer.clear();
        Ok(link)
    }

    async fn open(&self) -> Result<Link, Failure> {
        let run = &self.core.run;
        let stream = TcpStream::connect_addr(run.address).await;
        let stream = stream.map_err(|_| Failure::Connect)?;
        let _ = stream.set_nodelay(true);
        self.core.tally.borrow_mut().connections_opened += 1;
        let fd = stream.as_raw_fd();
        let (reader, writer) = match &run.tls {
            None => stream::plain(stream),
            Some(side) => {
                let greeting = side.own();
                let session = Session::client(greeting.config, greeting.name);
                let session = session.map_err(|failure| self.note(failure))?;
                // Its state is large and soon over.
                let shaken = Box::pin(Handshake::new(stream, session).complete()).await;
                shaken.map_err(|(failure, _)| self.note(failure))?.into_halves()
            }
        };
        Ok(Link { reader, writer, fd })
    }

    /// Remembers why there is no TLS.
    fn note(&self, failure: TlsFailure) -> Failure {
        self.core.tally.borrow_mut().tls_failure = Some(failure);
        Failure::Tls
    }

    /// Reads one final answer to its end: its status, and whether the connection may be used again.
    async fn receive_answer(&mut self, reader: &mut Reader) -> Result<(u16, bool), Failure> {
        for _ in 0..=INTERIM_MAX {
            let head = loop {
                match self.reader.read(&self.answer) {
                    Ok(Progress::Complete(head)) => break head,
                    Ok(Progress::Partial) => self.receive(reader).await?,
                    Err(_) => return Err(Failure::BadAnswer),
                }
            };
            self.answer.drain(..head.bytes);
            if head.status >= 200 {
                self.receive_body(&head, reader).await?;
                // Bytes that nobody asked for: the next answer would be read wrong.
                let in_step = self.answer.is_empty();
                return Ok((head.status, head.keep_alive && in_step));
            }
        }
        Err(Failure::BadAnswer)
    }

    async fn receive_body(&mut self, head: &ResponseHead, reader: &mut Reader) -> Result<(), Failure> {
        let mut total = 0;
        match head.framing {
            ResponseFraming::Empty => {}
            ResponseFraming::Length(length) => loop {
                let taken = (self.answer.len() as u64).min(length - total);
                total += taken;
                self.answer.drain(..taken as usize);
                if total == length {
                    break;
                }
                self.receive(reader).await?;
            },
            ResponseFraming::Chunked => {
                let mut decoder = ChunkedDecoder::new(ChunkLimits::default());
                loop {
                    let taken = match decoder.next(&self.answer) {
                        Ok(Piece::Data(data)) => data.end,
                        Ok(Piece::Starved) => self.answer.len(),
                        Ok(Piece::End(bytes)) => {
                            self.answer.drain(..bytes);
                            break;
                        }
                        Err(_) => return Err(Failure::BadAnswer),
                    };
                    total += taken as u64;
                    self.answer.drain(..taken);
                    if total > ANSWER_BYTES_MAX {
                        return Err(Failure::BadAnswer);
                    }
                    if self.answer.is_empty() {
                        self.receive(reader).await?;
                    }
                }
            }
            ResponseFraming::UntilClose => loop {
                total += self.answer.len() as u64;
                self.answer.clear();
                match self.receive(reader).await {
                    Ok(()) if total <= ANSWER_BYTES_MAX => {}
                    Ok(()) => return Err(Failure::BadAnswer),
                    Err(Failure::Closed) => break,
                    Err(failure) => return Err(failure),
                }
            },
        }
        Ok(())
    }

    async fn receive(&mut self, reader: &mut Reader) -> Result<(), Failure> {
        if self.answer.capacity() == self.answer.len() {
            self.answer.reserve(ANSWER_BYTES);
        }
        let answer = std::mem::take(&mut self.answer);
        let end = answer.capacity();
        let (received, answer) = reader.read(answer, end).await;
        self.answer = answer;
        match received {
            Ok(0) => Err(Failure::Closed),
            Ok(_) => Ok(()),
            // A server may say only now what it thinks of our certificate (TLS 1.3).
            Err(error) => {
                Err(TlsFailure::within(&error).map_or(Failure::Broken, |failure| self.note(failure)))
            }
        }
    }
}
