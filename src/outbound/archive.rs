//! A destination on disk: `file:DIR`. Each profile becomes one file that `go tool pprof`, or its format's own tool,
//! opens. Not responsible for cleaning up: files stay until the operator removes them, which may be done at any time.
//!
//! ```text
//! DIR/index-2026-11-22.jsonl                                       one JSON line per profile
//! DIR/shop.web/2026-11-22/165927.042Z_process_cpu_1c291ca3.pb.gz   service, date, time (UTC), type, CRC-32
//! ```
//! A file appears under its name whole or not at all, and its index line is there before the parcel counts as delivered.
//! Nothing is synced but under `--ack stored`: what a crash of the machine takes back is the file system's choice.
//!
//! One plain thread per archive, with blocking I/O: a hanging disk holds up this archive and nothing else.
//!
//! ```text
//!  gate ─▶ [queue] ─▶ store ─┬▶ delivered: the ticket is resolved
//!             ▲              └▶ failed ─▶ [waiting for its backoff] ─┐
//!             └───────────────────────────────────────────────────────┘
//! ```
//! After a failure the archive is *down*: it pauses, longer after each failure in a row, and then tries one parcel; a
//! success makes it up again. A single parcel that can never be stored has its own, growing wait, so that others pass it.
//!
//! Pure: `layout` (names), `unpack` (what lies in a push), `sample_type`, `segments`, `wire`. I/O: `store`.

mod layout;
mod sample_type;
mod segments;
mod store;
mod unpack;
mod wire;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use self::store::{Store, StoreError};
use super::backoff;
use crate::fanout::queue::Queue;
use crate::fanout::status::{Cut, Span};
use crate::fanout::{DropReason, Gate, Outcome, Parcel};
use crate::runtime::clock::{self, Mono};
use crate::runtime::reserved::Reserved;

/// Longest pause after a failure while draining: what can be saved before the drain timeout should be.
const DRAIN_PAUSE_MAX: Duration = Duration::from_millis(200);

/// What one archive needs.
#[derive(Debug)]
pub struct ArchiveSetup {
    /// Where its parcels come from.
    pub gate: &'static Gate,
    /// Its folder.
    pub folder: Folder,
    /// Age above which a parcel is dropped as `too_old`.
    pub max_age: Duration,
    /// Attempts in all before a parcel is dropped as `write_failed`; 0 = until `max_age`.
    pub max_retries: u32,
    /// First pause after a failure.
    pub min_backoff: Duration,
    /// Longest pause after a failure.
    pub max_backoff: Duration,
}

/// A folder that profiles can be written to.
#[derive(Debug)]
pub struct Folder(Store);

impl Folder {
    /// Prepares `directory`, creating it if it is not there. `synced`: whether a profile counts as delivered only when it is
    /// on the disk itself (`--ack stored`).
    ///
    /// # Errors
    /// It can't be created or may not be written to; the text says which and why.
    pub fn open(directory: PathBuf, synced: bool) -> io::Result<Self> {
        Store::open(directory, synced).map(Self)
    }
}

/// How the control plane talks to one archive's thread. A reload may [`ArchiveControl::change`] it. At its end first
/// [`ArchiveControl::drain`], then, once the gate holds nothing or time is up, [`ArchiveControl::give_up`], then join the
/// thread.
#[derive(Debug)]
pub struct ArchiveControl {
    gate: &'static Gate,
    stage: AtomicU8,
    is_removed: AtomicBool,
    changed: Mutex<Option<ArchiveSetup>>,
}

const RUNNING: u8 = 0;
const DRAINING: u8 = 1;
const GIVEN_UP: u8 = 2;

impl ArchiveControl {
    /// The control of the archive behind `gate`.
    pub fn new(gate: &'static Gate) -> Arc<Self> {
        Arc::new(Self {
            gate,
            stage: AtomicU8::new(RUNNING),
            is_removed: AtomicBool::new(false),
            changed: Mutex::new(None),
        })
    }

    /// Goes on with another setup, of the same gate, once the write under way is over. What waits is tried at once.
    pub fn change(&self, setup: ArchiveSetup) {
        *self.changed() = Some(setup);
        self.gate.doorbell.ring();
    }

    fn changed(&self) -> MutexGuard<'_, Option<ArchiveSetup>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hurry: what waits for its backoff is tried now, and pauses are short. Parcels are still taken.
    pub fn drain(&self) {
        self.advance(DRAINING);
    }

    /// The end, because a reload has removed it: as [`ArchiveControl::give_up`], but what is still held is dropped as
    /// `removed`.
    pub fn give_up_removed(&self) {
        self.is_removed.store(true, Ordering::SeqCst);
        self.give_up();
    }

    /// The end: what is still held is dropped as `shutdown`, and the thread returns. Nothing may be offered to the gate
    /// from now on. A write under way is finished first, and one to a disk that hangs never returns: do not join
    /// without an end where that matters.
    pub fn give_up(&self) {
        self.advance(GIVEN_UP);
    }

    fn advance(&self, stage: u8) {
        self.stage.fetch_max(stage, Ordering::SeqCst);
        self.gate.doorbell.ring();
    }

    fn is(&self, stage: u8) -> bool {
        self.stage.load(Ordering::SeqCst) >= stage
    }

    /// Why the rest is dropped at the end.
    fn reason(&self) -> DropReason {
        if self.is_removed.load(Ordering::SeqCst) {
            DropReason::Removed
        } else {
            DropReason::Shutdown
        }
    }
}

/// Begins the archive's work on its thread, which ends by `control` alone. `control` must be that of the same gate.
pub fn start(setup: ArchiveSetup, control: Arc<ArchiveControl>, thread: Reserved) -> JoinHandle<()> {
    assert!(
        std::ptr::eq(setup.gate, control.gate),
        "each gate has its own control"
    );
    let archivist = Archivist {
        setup,
        control,
        queue: Queue::default(),
        waiting: BTreeMap::new(),
        waits: 0,
        failures: 0,
        resume_at: Mono::default(),
        is_draining: false,
    };
    thread.begin(move || archivist.run())
}

/// The thread's state.
struct Archivist {
    setup: ArchiveSetup,
    control: Arc<ArchiveControl>,
    queue: Queue<Parcel>,
    /// Parcels that failed, by when they are due; the number tells equal moments apart.
    waiting: BTreeMap<(Mono, u64), Parcel>,
    waits: u64,
    /// Failures in a row.
    failures: u32,
    /// No attempt before.
    resume_at: Mono,
    is_draining: bool,
}

impl Archivist {
    fn run(mut self) {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            let now = clock::now();
            self.accept(now);
            if self.control.is(GIVEN_UP) {
                return self.give_up();
            }
            match self.next(now) {
                Some(parcel) => self.attempt(parcel),
                None => wait_for_ring(self.setup.gate, &waker, self.wake_at()),
            }
            let window = usize::from(self.failures == 0);
            self.setup.gate.status.set_waiting(self.oldest());
            self.setup.gate.status.set_window(window, [0; Cut::ALL.len()]);
        }
    }

    /// Takes what has come, then gives up what is too much or too old.
    fn accept(&mut self, now: Mono) {
        let gate = self.setup.gate;
        let changed = self.control.changed().take();
        if let Some(setup) = changed {
            self.setup = setup;
            self.failures = 0;
            self.resume_at = now;
            gate.status.start_over();
            self.take_due(Mono::NEVER);
        }
        while let Some(parcel) = gate.take() {
            self.queue.push(parcel.ticket.push().accepted, parcel);
        }
        if self.control.is(DRAINING) && !self.is_draining {
            self.is_draining = true;
            self.resume_at = now;
            self.take_due(Mono::NEVER);
        }
        self.take_due(now);
        while gate.is_over_budget()
            && let Some(parcel) = self.take_oldest()
        {
            parcel.ticket.drop_for(DropReason::Overflow);
        }
        let limit = now.before(self.setup.max_age);
        while let Some(parcel) = self.queue.take_older_than(limit) {
            parcel.ticket.drop_for(DropReason::TooOld);
        }
    }

    fn take_due(&mut self, now: Mono) {
        while let Some(first) = self.waiting.first_entry()
            && first.key().0 <= now
        {
            let parcel = first.remove();
            self.queue.put_back(parcel.ticket.push().accepted, parcel);
        }
    }

    /// Takes the parcel accepted longest ago, waiting ones included. They are few: one per pause while down, or one per
    /// waiting client.
    fn take_oldest(&mut self) -> Option<Parcel> {
        let waiting = self.waiting.iter();
        let oldest = waiting
            .map(|(key, parcel)| (parcel.ticket.push().accepted, *key))
            .min();
        match oldest {
            Some((accepted, key)) if self.queue.oldest().is_none_or(|queued| accepted < queued) => {
                self.waiting.remove(&key)
            }
            _ => self.queue.take_oldest(),
        }
    }

    fn next(&mut self, now: Mono) -> Option<Parcel> {
        if now < self.resume_at {
            return None;
        }
        self.queue.take(now)
    }

    /// When something may change without a ring.
    fn wake_at(&self) -> Mono {
        let queued = self.queue.oldest().map(|oldest| {
            let too_old = self.too_old_at(oldest);
            self.resume_at.min(too_old)
        });
        let due = self.waiting.first_key_value().map(|((due, _), _)| *due);
        queued.into_iter().chain(due).min().unwrap_or(Mono::NEVER)
    }

    fn too_old_at(&self, accepted: Mono) -> Mono {
        accepted.after(self.setup.max_age.saturating_add(Duration::from_nanos(1)))
    }

    fn oldest(&self) -> Option<Mono> {
        let waiting = self.waiting.values().map(|parcel| parcel.ticket.push().accepted);
        waiting.chain(self.queue.oldest()).min()
    }

    fn attempt(&mut self, parcel: Parcel) {
        let gate = self.setup.gate;
        let (route, accepted) = (parcel.ticket.push().route, parcel.ticket.push().accepted);
        let started = clock::now();
        gate.begin_attempt();
        let result = self
            .setup
            .folder
            .0
            .put(parcel.ticket.push(), || self.control.is(GIVEN_UP));
        gate.end_attempt();
        let now = clock::now();
        gate.status.attempted(parcel.attempts > 0);
        gate.status.observe(route, Span::Downstream, now.since(started));
        match result {
            Ok(()) => {
                gate.status.delivered(clock::now());
                gate.status.observe(route, Span::Endpoint, now.since(accepted));
                self.note_success();
                parcel.ticket.resolve(Outcome::Delivered);
            }
            Err(StoreError::GivenUp) => parcel.ticket.drop_for(self.control.reason()),
            Err(StoreError::Disk(step, error)) => {
                self.note_failure(format!("cannot {step}: {error}"), now);
                if self.failures > 1 && parcel.ticket.push().is_awaited() {
                    self.fail_awaited(now);
                }
                self.wait_or_give_up(parcel, now);
            }
        }
    }

    fn note_success(&mut self) {
        let gate = self.setup.gate;
        if std::mem::take(&mut self.failures) > 0 {
            gate.status.set_up(true);
            tracing::info!(destination = %gate.name, waiting = gate.held_parcels(), "archive can be written to again");
        }
    }

    fn note_failure(&mut self, text: String, now: Mono) {
        let gate = self.setup.gate;
        if self.failures == 0 {
            let waiting = gate.held_parcels();
            tracing::warn!(destination = %gate.name, waiting, reason = text, "archive is down, its profiles wait");
        }
        gate.status.failed(text);
        gate.status.set_up(false);
        self.failures = self.failures.saturating_add(1);
        self.resume_at = now.after(self.pause(self.failures));
    }

    /// A second failure in a row stands for every parcel whose client waits: they are not held up one by one.
    fn fail_awaited(&mut self, now: Mono) {
        let mut kept = Vec::new();
        while let Some(parcel) = self.queue.take_oldest() {
            kept.push(parcel);
        }
        for parcel in kept {
            if parcel.ticket.push().is_awaited() {
                self.wait_or_give_up(parcel, now);
            } else {
                self.queue.put_back(parcel.ticket.push().accepted, parcel);
            }
        }
    }

    fn wait_or_give_up(&mut self, mut parcel: Parcel, now: Mono) {
        parcel.attempts = parcel.attempts.saturating_add(1);
        let attempts_max = self.setup.max_retries;
        if attempts_max > 0 && parcel.attempts >= attempts_max {
            parcel.ticket.drop_for(DropReason::WriteFailed);
            return;
        }
        let accepted = parcel.ticket.push().accepted;
        let due = now
            .after(self.pause(parcel.attempts))
            .min(self.too_old_at(accepted));
        self.waits += 1;
        self.waiting.insert((due, self.waits), parcel);
    }

    fn pause(&self, failures: u32) -> Duration {
        let (min, max) = (self.setup.min_backoff, self.setup.max_backoff);
        let pause = backoff::wait(failures, min, max, None, fastrand::f64());
        if self.is_draining {
            pause.min(DRAIN_PAUSE_MAX)
        } else {
            pause
        }
    }

    fn give_up(mut self) {
        let reason = self.control.reason();
        while let Some(parcel) = self.queue.take_oldest() {
            parcel.ticket.drop_for(reason);
        }
        for parcel in std::mem::take(&mut self.waiting).into_values() {
            parcel.ticket.drop_for(reason);
        }
        self.setup.gate.status.set_waiting(None);
    }
}

/// Wakes the thread that waits for its doorbell.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Sleeps until the gate's doorbell rings, or until `until`.
fn wait_for_ring(gate: &Gate, waker: &Waker, until: Mono) {
    let mut rung = pin!(gate.doorbell.rung());
    let mut context = Context::from_waker(waker);
    while rung.as_mut().poll(&mut context).is_pending() {
        let now = clock::now();
        if now >= until {
            return;
        }
        match until {
            Mono::NEVER => thread::park(),
            until => thread::park_timeout(until.since(now)),
        }
    }
}
