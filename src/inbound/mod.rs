//! From a client's socket to parcels, and the answer back.
//!
//! One core: [`Inbound::start`] accepts on its own listeners and spawns a task per connection ([`client`]), which receives
//! ([`inlet`]), understands ([`understand`]), offers to the fan-out and answers. What happened is counted in [`tally`].
//!
//! At the connection limit the longest-idle connection is closed to make room, whichever core has it: each core shows ten
//! times a second since when its own longest-idle one is idle, so that "longest" is true to within that. When none is idle the
//! new client waits, at most [`ROOM_WAIT`], and is then told 503, so nobody hangs. Clients behind it wait in the kernel's
//! backlog. Where file descriptors run out before the limit is reached, idle connections make room likewise.
//!
//! A client that speaks HTTP/2 is handed to the control plane, which understands it by the same code ([`http2`]).
//!
//! With TLS a connection begins with a handshake (`handshake`).

pub mod client;
mod debuginfo;
mod handshake;
pub mod http2;
pub mod inlet;
mod reply;
pub mod tally;
pub mod understand;

use std::cell::{Cell, RefCell, RefMut};
use std::io;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use monoio::io::AsyncWriteRentExt;
use monoio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::config::Plan;
use crate::fanout::Fanout;
use crate::http::{Answer, Connection};
use crate::profile::labels::{LabelLimits, LabelRules};
use crate::profile::rewriter::Rewriter;
use crate::runtime::clock::{self, Mono};
use crate::runtime::descriptors::{self, SHORTAGE_PAUSE, Side};
use crate::runtime::phase::{self, Phase, PhaseReceiver};
use crate::runtime::pool::MemoryBudget;
use crate::runtime::socket;
use crate::runtime::sweeper::{SWEEP_EVERY, Sweeper};
use crate::runtime::tls::server::ServerSide;
use http2::SideDoor;
use tally::Tally;

/// How long a client beyond the connection limit waits for room.
pub const ROOM_WAIT: Duration = Duration::from_secs(5);
/// How long the clients behind it wait, once one has waited in vain.
const ROOM_WAIT_CROWDED: Duration = Duration::from_millis(100);
/// How often a client that waits for room is looked after.
const ROOM_LOOK: Duration = Duration::from_millis(20);
/// What `Retry-After` says when something is full, in seconds.
pub const RETRY_AFTER_SECS: u64 = 5;
/// Pause after accept failed for want of memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Pause after it failed for want of descriptors, where a connection has just been closed.
const ROOM_PAUSE: Duration = Duration::from_millis(10);
/// How far the ages at which connections are closed lie apart, as a part of `--max-connection-age` each way: clients that
/// came together do not go together.
const AGE_JITTER: f64 = 0.1;
/// Such failures are logged at most this often.
const ACCEPT_LOG_EVERY: Duration = Duration::from_secs(10);

/// What is kept of the memory for queries and header lines.
const SCRATCH_BYTES_KEPT: usize = 64 << 10;
/// After the shutdown has begun, how long nobody may have come for the listener to close.
const LAST_ACCEPT_WAIT: Duration = Duration::from_millis(5);
/// How long it stays open at most, where somebody always comes and there is no room. Where there is, the kernel's backlog is
/// emptied.
const LAST_ACCEPTS_MAX: Duration = Duration::from_millis(100);

/// How often a push looks whether the disk has caught up before it goes on regardless, one second in all.
const DISK_LOOKS: usize = 200;
const DISK_LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long the last word to a client that is not served may take to arrive.
const PARTING_MAX: Duration = Duration::from_secs(1);

/// Client connections of the whole process.
#[derive(Debug)]
pub struct Connections {
    open: AtomicUsize,
    accepting: AtomicUsize,
    limit: usize,
    /// Rung for one who waits when a place is given back.
    room: Notify,
    cores: Box<[CoreIdle]>,
}

/// What a core shows to the others.
#[derive(Debug)]
struct CoreIdle {
    /// Since when its longest-idle connection is idle ([`Mono`]); `NEVER` with none.
    since: AtomicU64,
    /// Rung to make it close that one.
    wanted: Notify,
}

impl Connections {
    /// None yet, at most `limit`, on `cores` cores.
    pub fn new(limit: usize, cores: usize) -> Self {
        let core = || CoreIdle {
            since: AtomicU64::new(Mono::NEVER.0),
            wanted: Notify::new(),
        };
        Self {
            open: AtomicUsize::new(0),
            accepting: AtomicUsize::new(0),
            limit,
            room: Notify::new(),
            cores: (0..cores).map(|_| core()).collect(),
        }
    }

    /// Another core than `own` with a connection that is idle for longer than `since`; the one that has the longest.
    fn longer_idle(&self, own: usize, since: Mono) -> Option<&CoreIdle> {
        let others = self.cores.iter().enumerate().filter(|(core, _)| *core != own);
        let shown = others.map(|(_, core)| (core.since.load(Ordering::Relaxed), core));
        let longest = shown.min_by_key(|(since, _)| *since)?;
        (longest.0 < since.0).then_some(longest.1)
    }

    /// Open now. When none is, everything that one has offered is on its queue.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Listeners that still take connections. When none does, [`Connections::open`] does not grow any more.
    pub fn accepting(&self) -> usize {
        self.accepting.load(Ordering::Acquire)
    }

    /// `--conn-limit`.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether there is no place left.
    fn is_full(&self) -> bool {
        self.open() >= self.limit
    }

    fn begin_accepting(self: &Arc<Self>) -> Accepting {
        self.accepting.fetch_add(1, Ordering::AcqRel);
        Accepting {
            connections: self.clone(),
        }
    }

    fn try_enter(self: &Arc<Self>) -> Option<Place> {
        let entered = self
            .open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                (open < self.limit).then_some(open + 1)
            });
        entered.ok().map(|_| Place {
            connections: self.clone(),
        })
    }
}

/// One connection's place under the limit, given back on drop.
pub struct Place {
    connections: Arc<Connections>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let before = self.connections.open.fetch_sub(1, Ordering::AcqRel);
        if before >= self.connections.limit {
            self.connections.room.notify_one();
        }
    }
}

/// A listener that takes connections, until it is dropped.
struct Accepting {
    connections: Arc<Connections>,
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.connections.accepting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What becomes of pushes: what a reload may change of it, replaced as a whole. A push goes by one course, the one that was
/// followed when its head had come.
#[derive(Clone, Debug)]
pub struct Course {
    /// The operator's part of the label rules. Each core needs its own: what a regex works with is not shared.
    pub rules: Arc<LabelRules>,
    /// All destinations. Whoever still holds it may still offer to them.
    pub fanout: Arc<Fanout>,
}

impl Course {
    /// The same with rules of its own.
    #[must_use]
    pub fn for_another_core(&self) -> Self {
        Self {
            rules: Arc::new((*self.rules).clone()),
            fanout: self.fanout.clone(),
        }
    }
}

/// What every inbound core shares. Made on the control plane.
#[derive(Clone)]
pub struct InboundSetup {
    /// Its place among the inbound cores.
    pub core: usize,
    /// The plan that the process was started with, for what no reload changes.
    pub plan: Arc<Plan>,
    /// `--memory-limit`.
    pub memory: Arc<MemoryBudget>,
    /// `--conn-limit`.
    pub connections: Arc<Connections>,
    /// TLS, where clients speak it.
    pub tls: Option<Arc<ServerSide>>,
    /// To the control plane, for clients that speak HTTP/2.
    pub side_door: Option<SideDoor>,
    /// This core's counters.
    pub tally: Arc<Tally>,
    /// How far the process is.
    pub phase: PhaseReceiver,
}

impl InboundSetup {
    /// When a connection that begins now is too old.
    fn retire_at(&self) -> Mono {
        let age = self.plan.max_connection_age;
        let spread = 1.0 - AGE_JITTER + 2.0 * AGE_JITTER * fastrand::f64();
        age.map_or(Mono::NEVER, |age| clock::now().after(age.mul_f64(spread)))
    }
}

/// What one thread understands requests with. A request holds on to the one that it began with.
pub struct Bench {
    course: Course,
    rewriter: RefCell<Rewriter>,
    scratch: RefCell<Vec<u8>>,
}

impl Bench {
    fn new(course: Course) -> Rc<Self> {
        Rc::new(Self {
            rewriter: RefCell::new(Rewriter::new(course.rules.clone(), LabelLimits::default())),
            scratch: RefCell::default(),
            course,
        })
    }

    /// Memory to write short text in, empty.
    fn scratch(&self) -> RefMut<'_, Vec<u8>> {
        let mut scratch = self.scratch.borrow_mut();
        scratch.clear();
        scratch.shrink_to(SCRATCH_BYTES_KEPT);
        scratch
    }
}

/// The inbound role of one core.
pub struct Inbound {
    setup: InboundSetup,
    sweeper: Rc<Sweeper>,
    bench: RefCell<Rc<Bench>>,
    draining: Cell<bool>,
}

impl Inbound {
    /// Accepts on `listeners` until the process drains, and sends pushes on `course`.
    ///
    /// # Errors
    /// When the runtime cannot take over a listener.
    pub fn start(
        setup: InboundSetup,
        course: Course,
        listeners: Vec<std::net::TcpListener>,
        sweeper: Rc<Sweeper>,
    ) -> io::Result<Rc<Self>> {
        let inbound = Rc::new(Self {
            bench: RefCell::new(Bench::new(course)),
            setup,
            sweeper,
            draining: Cell::new(false),
        });
        for listener in listeners {
            let listener = TcpListener::from_std(listener)?;
            let accepting = inbound.setup.connections.begin_accepting();
            monoio::spawn(inbound.clone().accept(listener, accepting));
        }
        monoio::spawn(inbound.clone().follow_phase());
        monoio::spawn(inbound.clone().make_room_for_others());
        Ok(inbound)
    }

    /// Sends pushes whose head comes from now on on `course`.
    pub fn follow(&self, course: Course) {
        self.bench.replace(Bench::new(course));
    }

    /// What a request that begins now is understood with.
    fn bench(&self) -> Rc<Bench> {
        self.bench.borrow().clone()
    }

    /// Whether a shutdown has begun: answers then close their connection.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    async fn follow_phase(self: Rc<Self>) {
        let mut phase = self.setup.phase.clone();
        phase::reached(&mut phase, Phase::Draining).await;
        self.draining.set(true);
        self.sweeper.close_idle();
    }

    /// Shows other cores since when this one's longest-idle connection is idle, and closes it when one of them asks.
    async fn make_room_for_others(self: Rc<Self>) {
        let connections = &self.setup.connections;
        let shown = &connections.cores[self.setup.core];
        loop {
            let since = self.sweeper.longest_idle();
            shown.since.store(since.0, Ordering::Relaxed);
            let asked = monoio::time::timeout(SWEEP_EVERY, shown.wanted.notified()).await;
            if asked.is_ok() && connections.is_full() {
                self.sweeper.close_longest_idle(clock::now());
            }
        }
    }

    async fn accept(self: Rc<Self>, listener: TcpListener, under_way: Accepting) {
        let mut phase = self.setup.phase.clone();
        let mut crowded = false;
        let mut logged_until = Mono::default();
        // One accept is always under way and never abandoned: an abandoned one could take a client with it.
        let mut accepting = pin!(listener.accept());
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = &mut accepting => accepted,
                () = phase::reached(&mut phase, Phase::Draining) => break,
            };
            accepting.set(listener.accept());
            match accepted {
                Ok((stream, _)) => crowded = self.clone().admit(stream, crowded).await,
                Err(error) if descriptors::is_shortage(&error) => {
                    self.setup.tally.refused("accept_failed");
                    descriptors::ran_out(Side::Inbound);
                    let made = self.sweeper.make_room(clock::now());
                    monoio::time::sleep(if made { ROOM_PAUSE } else { SHORTAGE_PAUSE }).await;
                    while !descriptors::may_try_again() {
                        monoio::time::sleep(ROOM_PAUSE).await;
                    }
                }
                Err(error) => {
                    self.setup.tally.refused("accept_failed");
                    let now = clock::now();
                    if now >= logged_until {
                        logged_until = now.after(ACCEPT_LOG_EVERY);
                        tracing::error!(%error, "cannot accept connections, they wait");
                    }
                    monoio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Clients whose handshake the kernel has finished already are not left behind, however long that takes: they are as
        // many as its backlog holds at most.
        let last = clock::now().after(LAST_ACCEPTS_MAX);
        let mut late = 0;
        while late < socket::BACKLOG
            && let Ok(Ok((stream, _))) = monoio::time::timeout(LAST_ACCEPT_WAIT, accepting.as_mut()).await
        {
            accepting.set(listener.accept());
            let was_full = self.clone().admit(stream, true).await;
            if clock::now() >= last {
                late = if was_full { socket::BACKLOG } else { late + 1 };
            }
        }
        // The accept under way keeps the listener open until the kernel has torn the ring down, which is after the process
        // has ended: somebody may want the address before.
        socket::stop(listener.as_raw_fd());
        drop(under_way);
    }

    /// Serves the connection, or refuses it when there is no room. Returns whether there was none.
    async fn admit(self: Rc<Self>, stream: TcpStream, crowded: bool) -> bool {
        match self.find_place(crowded).await {
            Some(place) => {
                match self.setup.tls.clone() {
                    None => drop(monoio::spawn(client::serve(stream, self, place))),
                    Some(side) => drop(monoio::spawn(client::serve_tls(stream, self, side, place))),
                }
                false
            }
            None => {
                self.setup.tally.refused("connection_limit");
                monoio::spawn(refuse_connection(stream));
                true
            }
        }
    }

    async fn find_place(&self, crowded: bool) -> Option<Place> {
        let connections = &self.setup.connections;
        let patience = if crowded { ROOM_WAIT_CROWDED } else { ROOM_WAIT };
        let waiting = async {
            loop {
                if let Some(place) = connections.try_enter() {
                    return place;
                }
                let room = connections.room.notified();
                match connections.longer_idle(self.setup.core, self.sweeper.longest_idle()) {
                    Some(core) => core.wanted.notify_one(),
                    None => drop(self.sweeper.close_longest_idle(clock::now())),
                }
                // A place given back by another core between the lines above rings nobody: look again soon.
                let _ = monoio::time::timeout(ROOM_LOOK, room).await;
            }
        };
        if let Some(place) = connections.try_enter() {
            return Some(place);
        }
        monoio::time::timeout(patience, waiting).await.ok()
    }
}

/// Tells a client that there is no room. It has sent nothing that was read, so nothing is lost.
async fn refuse_connection(mut stream: TcpStream) {
    let mut answer = Vec::new();
    let text = b"too many connections (--conn-limit); try again later\n";
    Answer::unavailable(text, RETRY_AFTER_SECS, Connection::Close).write(&mut answer);
    let sending = async {
        let _ = stream.write_all(answer).await;
        part_from(&mut stream).await;
    };
    let _ = monoio::time::timeout(PARTING_MAX, sending).await;
}

/// Ends a connection on which the last word has been sent: closing with unread bytes would reset it and take that word
/// along.
async fn part_from(stream: &mut TcpStream) {
    socket::stop_sending(stream.as_raw_fd());
    let (mut buffer, mut left) = (vec![0u8; 4096], 64);
    while left > 0 {
        let (read, back) = monoio::io::AsyncReadRent::read(stream, buffer).await;
        buffer = back;
        left = if matches!(read, Ok(1..)) { left - 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_never_more_than_the_limit() {
        let connections = Arc::new(Connections::new(2, 1));
        let first = connections.try_enter();
        let second = connections.try_enter();
        assert!(first.is_some() && second.is_some() && connections.try_enter().is_none());
        drop(first);
        assert_eq!(connections.open(), 1);
        assert!(connections.try_enter().is_some());
    }

    #[test]
    fn the_core_with_the_longest_idle_connection_is_found() {
        let connections = Connections::new(2, 4);
        assert!(
            connections.longer_idle(0, Mono::NEVER).is_none(),
            "nobody has any"
        );
        for (core, since) in [(0, 1), (1, 30), (2, 20)] {
            connections.cores[core].since.store(since, Ordering::Relaxed);
        }
        for (own, since, expected) in [
            (0, Mono(1), None),
            (0, Mono(25), Some(20)),
            (3, Mono::NEVER, Some(1)),
            (1, Mono(30), Some(1)),
        ] {
            let found = connections.longer_idle(own, since);
            let found = found.map(|core| core.since.load(Ordering::Relaxed));
            assert_eq!(found, expected, "{own} {since:?}");
        }
    }
}
