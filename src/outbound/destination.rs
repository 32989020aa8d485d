//! One destination on its writer core: a dispatcher that hands parcels out, and lanes that carry them.
//!
//! ```text
//!  offered on this core ─▶ desk.accept, and what may go at once goes the same way
//!  doorbell ─▶ dispatcher: desk.accept, then a parcel for each idle lane (or a new lane) while the window allows
//!  lane: carry its parcel ─▶ desk.conclude | desk.trouble ─▶ desk.next ─┬▶ the next one, at once
//!                                                                        └▶ idle, until the dispatcher hands it one
//! ```
//! A reload may change everything but the gate ([`Destination::change`]): what waits and what comes goes by the new setup on
//! new connections, what is on the wire ends by the old one.
//!
//! A lane owns one connection and the memory for one exchange. The lane used last is handed the next parcel, so few
//! connections stay warm. A lane lives as long as its connection is worth keeping: one whose peer has closed, whose address
//! the name no longer has, or that was unused for too long is dismissed within a second and gives its descriptor back.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::sync::mpsc;

use super::addresses::{Addresses, Resolver};
use super::classify::{self, Asked, Decision, Leniency, Reply, classify};
use super::connection::{AttemptError, Connection, Entry, Exchanged, Scratch};
use super::desk::{Desk, Limits, Trouble};
use super::head::{Aim, HeadWriter, connect_request};
use crate::config::{DestinationPlan, DestinationTarget, Proxy, ProxyRules};
use crate::fanout::status::Span;
use crate::fanout::{Call, DropReason, Gate, Outcome, Parcel, Push};
use crate::profile::route::Route;
use crate::runtime::clock::{self, Mono};
use crate::runtime::descriptors;
use crate::runtime::sweeper::Sweeper;
use crate::runtime::tls::client::{ClientSide, Greeting};

/// Redirects followed for one attempt, as in Alloy (WIRE.md 4.2).
const REDIRECTS_MAX: usize = 10;
/// Without anything to do the dispatcher still looks for parcels that have grown too old.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How often the age of the oldest waiting parcel is worked out: it takes a look at every waiting retry.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What a destination answers but success is logged so often at most.
const TROUBLE_LOG_EVERY: Duration = Duration::from_secs(60);
/// Bytes of its own words that are logged.
const WORDS_BYTES_MAX: usize = 300;

/// What a writer core needs to serve one destination. Made on the control plane, moved to the core.
pub struct DestinationSetup {
    /// Its entrance.
    pub gate: &'static Gate,
    /// What the operator asked for.
    pub plan: DestinationPlan,
    /// TLS, where its URL says so.
    pub tls: Option<Arc<ClientSide>>,
    /// Whether clients wait for outcomes (`--ack first|all`).
    pub answers_wait: bool,
    /// Which requests go through which proxy.
    pub proxies: ProxyRules,
    /// The proxy of requests to the destination itself.
    pub via: Option<Proxy>,
    /// Where its name leads, or its proxy's.
    pub addresses: Arc<Addresses>,
    /// For redirects to elsewhere.
    pub resolver: Resolver,
    /// What is passed through to it, where it is the destination for that.
    pub calls: Option<mpsc::Receiver<Call>>,
    /// Writes its request heads.
    pub head: HeadWriter,
}

impl DestinationSetup {
    fn leniency(&self) -> Leniency {
        Leniency {
            retry_on_http_429: self.plan.retry_on_http_429,
            follow_redirects: self.plan.follow_redirects,
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            max_age: self.plan.max_age,
            min_backoff: self.plan.min_backoff,
            max_backoff: self.plan.max_backoff,
            max_retries: self.plan.max_retries,
            inflight: self.plan.inflight,
            answers_wait: self.answers_wait,
        }
    }

    /// What a connection to the destination itself begins with; `None` in cleartext.
    fn entry(&self) -> Option<Entry> {
        let side = self.tls.as_ref()?;
        let tunnel = match (&self.via, &self.plan.target) {
            (Some(proxy), DestinationTarget::Http { host, port, .. }) => {
                Some(self.tunnel(proxy, host, *port))
            }
            _ => None,
        };
        Some(Entry {
            tunnel,
            greeting: side.own(),
        })
    }

    /// The version of what says who we are; where that is missing, the control plane is asked for it first.
    pub(super) async fn await_credentials(&self, deadline: Mono) -> Result<u64, AttemptError> {
        let credentials = self.head.credentials();
        if credentials.ready().is_err() {
            let _ = monoio::time::timeout(left(deadline), credentials.wanted()).await;
        }
        credentials.ready().map_err(AttemptError::NoToken)
    }

    /// The destination's own place for a route.
    fn own_aim(&self, route: Route) -> Aim<'_> {
        Aim {
            // Behind a tunnel a head is written as if there were no proxy.
            via: self.via.as_ref().filter(|_| self.tls.is_none()),
            ..self.head.aim(route)
        }
    }

    fn tunnel(&self, proxy: &Proxy, host: &str, port: u16) -> Vec<u8> {
        connect_request(proxy, host, port, &self.proxies.connect_headers)
    }
}

/// A destination at work on its core.
pub struct Destination {
    gate: &'static Gate,
    setup: RefCell<Rc<DestinationSetup>>,
    has_ended: Cell<bool>,
    sweeper: Rc<Sweeper>,
    desk: RefCell<Desk>,
    idle: RefCell<Vec<Rc<Slot>>>,
    /// Every lane's, idle or not; at most as many as the widest window was.
    lanes: RefCell<Vec<Rc<Slot>>>,
    turn: Cell<usize>,
    refusals: Told,
    failures: Told,
}

/// What has been logged of one kind of trouble.
#[derive(Default)]
struct Told {
    /// None before.
    next_at: Cell<Mono>,
    /// How many were not.
    untold: Cell<u64>,
}

impl Told {
    /// Whether this one is to be logged: how many have not been since the last one.
    fn tell(&self, now: Mono) -> Option<u64> {
        if now < self.next_at.get() {
            self.untold.set(self.untold.get() + 1);
            return None;
        }
        self.next_at.set(now.after(TROUBLE_LOG_EVERY));
        Some(self.untold.take())
    }
}

/// Where a lane's parcel is, so that it can be saved when the core ends, and where an idle lane leaves its connection and
/// hears what comes next.
#[derive(Default)]
struct Slot {
    carried: RefCell<Option<Parcel>>,
    connection: RefCell<Option<Box<Connection>>>,
    word: Cell<Option<Word>>,
    waker: RefCell<Option<Waker>>,
}

/// What an idle lane waits for.
#[derive(Clone, Copy)]
enum Word {
    /// Its next parcel is in the slot, since then.
    Carry(Mono),
    Dismissed,
}

impl Destination {
    /// Starts serving on this core.
    pub fn start(mut setup: DestinationSetup, sweeper: Rc<Sweeper>) -> Rc<Self> {
        let calls = setup.calls.take();
        let gate = setup.gate;
        let desk = Desk::new(setup.limits(), clock::now()).with_window_cuts(gate.status.window_cuts());
        let destination = Rc::new(Self {
            gate,
            desk: RefCell::new(desk),
            setup: RefCell::new(Rc::new(setup)),
            has_ended: Cell::new(false),
            sweeper,
            idle: RefCell::new(Vec::new()),
            lanes: RefCell::new(Vec::new()),
            turn: Cell::new(0),
            refusals: Told::default(),
            failures: Told::default(),
        });
        let attendant = Rc::downgrade(&destination);
        gate.doorbell.attend(move || {
            if let Some(destination) = attendant.upgrade() {
                destination.dispatch_now();
            }
        });
        monoio::spawn(destination.clone().dispatch());
        monoio::spawn(destination.clone().tidy());
        if let Some(calls) = calls {
            monoio::spawn(destination.clone().serve_calls(calls));
        }
        destination
    }

    /// Its entrance.
    pub fn gate(&self) -> &'static Gate {
        self.gate
    }

    /// Goes on by `setup`, of the same gate: a reload has changed it.
    pub fn change(&self, setup: DestinationSetup) {
        debug_assert!(std::ptr::eq(setup.gate, self.gate), "another destination's setup");
        self.desk.borrow_mut().start_over(setup.limits(), clock::now());
        self.gate.status.start_over();
        self.setup.replace(Rc::new(setup));
        self.dismiss_idle();
        self.gate.doorbell.ring();
    }

    /// Ends its tasks. Nothing may wait or be in flight, and nothing may come any more.
    pub fn end(&self) {
        self.gate.doorbell.dismiss_attendant();
        self.has_ended.set(true);
        self.dismiss_idle();
        self.gate.doorbell.ring();
    }

    fn dismiss_idle(&self) {
        for slot in self.idle.take() {
            slot.say(Word::Dismissed);
        }
    }

    /// A shutdown has begun: what waits for a retry is tried now.
    pub fn hurry(&self) {
        self.desk.borrow_mut().hurry();
        self.gate.doorbell.ring();
    }

    /// Gives up all that waits: the drain timeout has run out. What is in flight ends by its own timeout.
    pub fn give_up(&self, reason: DropReason) {
        let mut desk = self.desk.borrow_mut();
        desk.accept(self.gate, clock::now());
        desk.give_up(self.gate, reason);
    }

    /// The core ends with requests on the wire. Where there is a spool their parcels go (or stay) there: better sent twice
    /// than lost. Without one they are undecided, which the farewell tells.
    pub fn leave(&self) {
        let gate = self.gate;
        for lane in self.lanes.borrow().iter() {
            let Some(parcel) = lane.carried.take() else {
                continue;
            };
            if parcel.ticket.is_stored() {
                parcel.ticket.drop_for(DropReason::Shutdown);
            } else if let Err(parcel) = gate.spool_away(parcel) {
                lane.carried.replace(Some(parcel));
                continue;
            }
            gate.end_attempt();
        }
        self.give_up(DropReason::Shutdown); // attempts that failed since
    }

    /// What new attempts go by.
    pub(super) fn setup(&self) -> Rc<DestinationSetup> {
        self.setup.borrow().clone()
    }

    fn goes_by(&self, setup: &Rc<DestinationSetup>) -> bool {
        Rc::ptr_eq(&self.setup.borrow(), setup)
    }

    /// A connection of nobody's yet.
    pub(super) async fn connect(
        &self,
        setup: &DestinationSetup,
        deadline: Mono,
    ) -> Result<Box<Connection>, AttemptError> {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let addresses = &setup.addresses;
        let _ = monoio::time::timeout(left(deadline), addresses.looked_up()).await;
        let address = addresses.pick(turn).ok_or(AttemptError::Unresolved)?;
        let connection = Connection::open(
            address,
            setup.entry(),
            left(deadline),
            setup.plan.remote_timeout,
            &self.sweeper,
        );
        connection.await.map(Box::new)
    }

    /// Hands out what has just been offered on this core, in the turn of the client that it came from: so the sends of one push
    /// follow each other, and all but the first read its body from the cache. What has to wait is the dispatcher's, and so is all
    /// of a destination that is down: its backlog is no client's concern.
    fn dispatch_now(self: &Rc<Self>) {
        if !self.desk.borrow().is_up() {
            return self.gate.doorbell.ring();
        }
        let now = clock::recent();
        self.desk.borrow_mut().accept(self.gate, now);
        while let Some(parcel) = self.next(now) {
            self.hand_out(parcel, now);
        }
        if !self.desk.borrow().is_empty() {
            self.gate.doorbell.ring();
        }
    }

    async fn dispatch(self: Rc<Self>) {
        let mut looked_at = Mono::default();
        let mut has_waiting = false;
        while !self.has_ended.get() {
            let now = clock::now();
            self.desk.borrow_mut().accept(self.gate, now);
            while let Some(parcel) = self.next(now) {
                self.hand_out(parcel, now);
            }
            let wake_at = {
                let desk = self.desk.borrow();
                if now.since(looked_at) > LOOK_EVERY {
                    looked_at = now;
                    let oldest = desk.oldest();
                    has_waiting = oldest.is_some();
                    self.gate.status.set_waiting(oldest);
                    self.show_window(&desk, now);
                }
                desk.wake_at(now)
            };
            let rung = self.gate.doorbell.rung();
            let has_more = has_waiting || !self.desk.borrow().is_empty();
            let tidy_at = if has_more {
                now.after(HOUSEKEEPING)
            } else {
                Mono::NEVER
            };
            match wake_at.unwrap_or(Mono::NEVER).min(tidy_at) {
                Mono::NEVER => rung.await,
                at => drop(monoio::time::timeout(at.since(now), rung).await),
            }
        }
    }

    /// Closes connections that are not worth keeping.
    async fn tidy(self: Rc<Self>) {
        loop {
            monoio::time::sleep(HOUSEKEEPING).await;
            if self.has_ended.get() {
                return;
            }
            let now = clock::now();
            let setup = self.setup();
            // Where somebody has no descriptor, half of what idles makes room, those that have idled longest.
            let mut spared = match descriptors::is_room_wished(now) {
                true => self.idle.borrow().len().div_ceil(2),
                false => 0,
            };
            self.idle.borrow_mut().retain(|slot| {
                let makes_room = spared > 0;
                spared = spared.saturating_sub(1);
                let keep = !makes_room
                    && slot.connection.borrow().as_ref().is_some_and(|connection| {
                        setup.addresses.contains(connection.address()) && connection.is_worth_keeping(now)
                    });
                if !keep {
                    slot.say(Word::Dismissed);
                }
                keep
            });
            self.show_window(&self.desk.borrow(), now);
        }
    }

    fn show_window(&self, desk: &Desk, now: Mono) {
        self.gate.status.set_window(desk.window(now), desk.window_cuts());
    }

    fn next(&self, now: Mono) -> Option<Parcel> {
        let parcel = self.desk.borrow_mut().next(now, fastrand::f64())?;
        self.gate.begin_attempt();
        Some(parcel)
    }

    fn hand_out(self: &Rc<Self>, parcel: Parcel, now: Mono) {
        let idle = self.idle.borrow_mut().pop();
        match idle {
            Some(slot) => {
                slot.carried.replace(Some(parcel));
                slot.say(Word::Carry(now));
            }
            None => {
                let slot = Rc::new(Slot::default());
                slot.carried.replace(Some(parcel));
                self.lanes.borrow_mut().push(slot.clone());
                drop(monoio::spawn(self.clone().lane(slot, now)));
            }
        }
    }

    async fn lane(self: Rc<Self>, slot: Rc<Slot>, now: Mono) {
        let mut lane = Lane {
            connection: None,
            checked_at: None,
            credentials_used: 0,
            scratch: Scratch::default(),
            setup: self.setup(),
            destination: self.clone(),
        };
        let mut started = now;
        loop {
            let result = lane.attempt(&slot, started).await;
            let Some(carried) = slot.carried.take() else {
                return;
            };
            // With an answer the exchange has read the clock last, in this very turn.
            let now = if result.is_ok() {
                clock::recent()
            } else {
                clock::now()
            };
            self.conclude(&lane.setup, carried, result, started, now);
            started = if let Some(next) = self.next_after_exchange(now) {
                slot.carried.replace(Some(next));
                now
            } else {
                match self.rest(&mut lane, &slot).await {
                    Word::Carry(now) => now,
                    Word::Dismissed => break,
                }
            };
        }
        lane.give_connection_up();
        self.lanes.borrow_mut().retain(|other| !Rc::ptr_eq(other, &slot));
    }

    /// Waits for the next parcel. A lane without a connection has nothing to wait with.
    async fn rest(&self, lane: &mut Lane, slot: &Rc<Slot>) -> Word {
        if self.has_ended.get() || !self.goes_by(&lane.setup) {
            return Word::Dismissed;
        }
        let Some(connection) = lane.connection.take() else {
            return Word::Dismissed;
        };
        slot.connection.replace(Some(connection));
        self.idle.borrow_mut().push(slot.clone());
        let word = slot.heard().await;
        lane.connection = slot.connection.take();
        word
    }

    fn next_after_exchange(&self, now: Mono) -> Option<Parcel> {
        self.desk.borrow_mut().accept(self.gate, now);
        self.next(now)
    }

    /// Books the end of an attempt that went by `setup`.
    fn conclude(
        &self,
        setup: &DestinationSetup,
        parcel: Parcel,
        result: Result<Rc<Reply>, AttemptError>,
        started: Mono,
        now: Mono,
    ) {
        let gate = self.gate;
        let status = &gate.status;
        let (route, accepted) = (parcel.ticket.push().route, parcel.ticket.push().accepted);
        gate.end_attempt();
        if let Err(error @ AttemptError::NoDescriptors) = &result {
            self.note_trouble(&error.to_string());
            let mut desk = self.desk.borrow_mut();
            desk.trouble(parcel, Trouble::NoDescriptors, now, fastrand::f64());
            drop(desk);
            return self.note_change(false, now);
        }
        status.attempted(parcel.attempts > 0);
        status.observe(route, Span::Downstream, now.since(started));
        let decision = match &result {
            Ok(reply) => classify(asked(parcel.ticket.push()), reply, setup.leniency()),
            Err(error) => {
                self.note_trouble(&error.to_string());
                setup.addresses.stale.notify_one();
                let changed = self
                    .desk
                    .borrow_mut()
                    .trouble(parcel, Trouble::Silent, now, fastrand::f64());
                return self.note_change(changed, now);
            }
        };
        let reply_status = result.as_ref().map_or(0, |reply| reply.status);
        let changed = match decision {
            Decision::Delivered => {
                status.delivered(now);
                status.observe(route, Span::Endpoint, now.since(accepted));
                let mut desk = self.desk.borrow_mut();
                desk.observe(&parcel, now.since(started), now);
                desk.conclude(parcel, Outcome::Delivered)
            }
            Decision::Retry { after, code } => {
                let text = answer_text(reply_status, code.map(|code| code.name()), "will be retried");
                self.note_failure(&text, result.as_deref().ok(), now);
                let trouble = Trouble::Answered {
                    status: reply_status,
                    code,
                    after,
                };
                self.desk
                    .borrow_mut()
                    .trouble(parcel, trouble, now, fastrand::f64())
            }
            Decision::GiveUp(_) | Decision::Follow if self.desk.borrow().is_stale(&parcel) => {
                self.note_trouble(&answer_text(
                    reply_status,
                    None,
                    "will be sent as is asked for now",
                ));
                let outcome = Outcome::Unanswered {
                    reason: DropReason::Rejected,
                };
                self.desk.borrow_mut().conclude(parcel, outcome)
            }
            Decision::GiveUp(outcome) => {
                let (code, reason) = match outcome {
                    Outcome::Answered { code, reason, .. } => (code, reason),
                    Outcome::Unanswered { reason } => (None, reason),
                    Outcome::Delivered => (None, DropReason::Rejected),
                };
                if reason == DropReason::Unauthorized {
                    status.set_auth_failing();
                }
                status.observe(route, Span::Endpoint, now.since(accepted));
                let text = answer_text(reply_status, code.map(|code| code.name()), "dropped");
                self.note_refusal(&text, result.as_deref().ok(), now);
                self.desk.borrow_mut().conclude(parcel, outcome)
            }
            Decision::Follow => {
                let text = "redirected too often, or to no http:// or https:// URL; dropped";
                self.note_refusal(text, None, now);
                let outcome = Outcome::Answered {
                    status: reply_status,
                    code: None,
                    reason: DropReason::Redirected,
                };
                self.desk.borrow_mut().conclude(parcel, outcome)
            }
        };
        self.note_change(changed, now);
    }

    pub(super) fn note_trouble(&self, text: &str) {
        tracing::debug!(destination = %self.gate.name, problem = text, "attempt failed");
        self.gate.status.failed(text.to_owned());
    }

    /// Tells of a profile that is lost because the destination does not take it.
    fn note_refusal(&self, text: &str, reply: Option<&Reply>, now: Mono) {
        self.note_trouble(text);
        if let Some(more_since_last) = self.refusals.tell(now) {
            tracing::warn!(
                destination = %self.gate.name, problem = text, it_says = ?its_words(reply), more_since_last,
                "a profile was refused and is dropped; told once a minute at most, pyrotee_destination_dropped_parcels_total counts all"
            );
        }
    }

    /// Tells of an answer after which the profile waits for another attempt.
    fn note_failure(&self, text: &str, reply: Option<&Reply>, now: Mono) {
        self.note_trouble(text);
        if let Some(more_since_last) = self.failures.tell(now) {
            tracing::warn!(
                destination = %self.gate.name, problem = text, it_says = ?its_words(reply), more_since_last,
                "the destination has failed to take a profile; told once a minute at most, pyroscope_write_retries_total counts the repeated"
            );
        }
    }

    /// Tells of the way down and up again, and lets the dispatcher see what that changes.
    fn note_change(&self, changed: bool, now: Mono) {
        let gate = self.gate;
        if changed {
            let up = self.desk.borrow().is_up();
            gate.status.set_up(up);
            let held = gate.held_parcels();
            if up {
                tracing::info!(destination = %gate.name, waiting = held, "destination is up again");
            } else {
                let reason = gate
                    .status
                    .last_error()
                    .map(|error| error.text)
                    .unwrap_or_default();
                tracing::warn!(destination = %gate.name, waiting = held, reason, "destination is down, its profiles wait");
            }
        }
        let desk = self.desk.borrow();
        if changed || desk.has_room(now) || desk.wake_at(now).is_some() {
            gate.doorbell.ring();
        }
    }
}

fn asked(push: &Push) -> Asked<'_> {
    let content_type = match push.route {
        Route::Ingest => None, // nobody asks, and looking it up is not free
        Route::Push => push.content_type(),
    };
    Asked {
        route: push.route,
        content_type,
    }
}

fn answer_text(status: u16, code: Option<&str>, consequence: &str) -> String {
    match code {
        Some(code) => format!("answered {status} {code}; {consequence}"),
        None => format!("answered {status}; {consequence}"),
    }
}

/// The beginning of what a destination says in its answer, for the log.
fn its_words(reply: Option<&Reply>) -> String {
    let mut words = reply.map_or_else(String::new, classify::words);
    words.truncate(words.floor_char_boundary(WORDS_BYTES_MAX));
    words
}

impl Slot {
    fn say(&self, word: Word) {
        self.word.set(Some(word));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    async fn heard(&self) -> Word {
        poll_fn(|context| match self.word.take() {
            Some(word) => Poll::Ready(word),
            None => {
                self.waker.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

/// One connection and the memory for one exchange.
struct Lane {
    connection: Option<Box<Connection>>,
    /// [`Addresses::changes`] when its connection was last compared with the addresses. What is connected to later is one of
    /// those or newer.
    checked_at: Option<u64>,
    /// The version of what said who we are in its last request.
    credentials_used: u64,
    scratch: Scratch,
    /// What its connection was made by, and its attempt under way goes by.
    setup: Rc<DestinationSetup>,
    destination: Rc<Destination>,
}

/// Where a redirect led.
struct Detour {
    is_tls: bool,
    authority: String,
    path: String,
    host: String,
    port: u16,
    trusted: bool,
}

impl Lane {
    /// One attempt at the parcel in `slot`. The short way is a good answer on a connection that is there. Everything else is
    /// rare, and its state is large: it lives on the heap.
    async fn attempt(&mut self, slot: &Slot, started: Mono) -> Result<Rc<Reply>, AttemptError> {
        let first = match self.prepare(slot, started) {
            Some(deadline) => Some(self.exchange(deadline).await),
            None => None,
        };
        match first {
            Some(Ok(reply)) if !may_need_more(&reply) => Ok(reply),
            first => Box::pin(self.attempt_further(slot, started, first)).await,
        }
    }

    /// Loads the request of an attempt and returns its deadline, if nothing has to be waited for.
    fn prepare(&mut self, slot: &Slot, started: Mono) -> Option<Mono> {
        if !self.destination.goes_by(&self.setup) || !self.is_fit(started) {
            return None;
        }
        let carried = slot.carried.borrow();
        let push = carried.as_ref()?.ticket.push();
        self.credentials_used = self.setup.head.credentials().ready().ok()?;
        let deadline = started.after(self.setup.plan.remote_timeout);
        let aim = self.setup.own_aim(push.route);
        load(&self.setup, &mut self.scratch, push, aim, deadline, started);
        Some(deadline)
    }

    /// The rest of an attempt: connect if need be, send, read the answer, follow redirects that keep the body. `first` is
    /// what has come of it already.
    async fn attempt_further(
        &mut self,
        slot: &Slot,
        started: Mono,
        first: Option<Result<Rc<Reply>, AttemptError>>,
    ) -> Result<Rc<Reply>, AttemptError> {
        let carried = slot
            .carried
            .borrow()
            .as_ref()
            .map(|parcel| parcel.ticket.push().clone());
        let push = &carried.ok_or(AttemptError::Unanswered(io::ErrorKind::Interrupted))?; // the core ends
        if first.is_none() && !self.destination.goes_by(&self.setup) {
            self.give_connection_up();
            self.setup = self.destination.setup();
            self.checked_at = None; // other addresses, counted from their own beginning
        }
        let setup = &*self.setup.clone();
        let deadline = started.after(setup.plan.remote_timeout);
        let own = setup.own_aim(push.route);
        let credentials = setup.head.credentials();
        let mut reply = match first {
            // A connection that turns out stale is replaced at once.
            Some(Err(AttemptError::Unanswered(_))) => self.send(push, own, started, deadline).await?,
            Some(first) => first?,
            None => {
                self.credentials_used = match credentials.ready() {
                    Ok(version) => version,
                    Err(_) => setup.await_credentials(deadline).await?,
                };
                self.send(push, own, started, deadline).await?
            }
        };
        // A secret may just have been rotated: where there is a new one, it gets its chance.
        if reply.status == 401
            && monoio::time::timeout(left(deadline), credentials.refused(self.credentials_used))
                .await
                .unwrap_or(false)
        {
            credentials.ready().map_err(AttemptError::NoToken)?;
            reply = self.send(push, own, clock::recent(), deadline).await?;
        }
        let mut detour: Option<Detour> = None;
        for _ in 0..REDIRECTS_MAX {
            if classify(asked(push), &reply, setup.leniency()) != Decision::Follow {
                break;
            }
            let home = (setup.tls.is_some(), own.authority);
            let from = detour
                .as_ref()
                .map_or((home.0, own.authority, own.path), |detour| {
                    (detour.is_tls, &detour.authority, &detour.path)
                });
            let Some(next) = follow(from, &reply, home) else {
                break;
            };
            let aim = Aim {
                authority: &next.authority,
                path: &next.path,
                trusted: next.trusted,
                via: match (next.trusted, next.is_tls) {
                    (true, _) => own.via,
                    (false, false) => setup.proxies.via(false, &next.host, next.port),
                    // Its head is read behind the tunnel.
                    (false, true) => None,
                },
            };
            reply = if next.trusted {
                self.send(push, aim, clock::recent(), deadline).await?
            } else {
                self.send_elsewhere(push, aim, &next, deadline).await?
            };
            detour = Some(next);
        }
        Ok(reply)
    }

    /// One request and its answer, on this lane's connection or, where that is none or turns out stale, on a fresh one.
    async fn send(
        &mut self,
        push: &Arc<Push>,
        aim: Aim<'_>,
        now: Mono,
        deadline: Mono,
    ) -> Result<Rc<Reply>, AttemptError> {
        if self.is_fit(now) {
            load(&self.setup, &mut self.scratch, push, aim, deadline, now);
            match self.exchange(deadline).await {
                Err(AttemptError::Unanswered(_)) => {}
                ended => return ended,
            }
        }
        let connection = self.destination.connect(&self.setup, deadline).await?;
        self.destination.gate.status.connection(1);
        self.connection = Some(connection);
        load(&self.setup, &mut self.scratch, push, aim, deadline, clock::now());
        self.exchange(deadline).await
    }

    /// Sends the request that is loaded and reads its answer. The connection stays where it is good for more.
    async fn exchange(&mut self, deadline: Mono) -> Result<Rc<Reply>, AttemptError> {
        let Some(connection) = &mut self.connection else {
            return Err(AttemptError::Unanswered(io::ErrorKind::NotConnected));
        };
        let exchanged = connection.exchange(&mut self.scratch, deadline).await;
        match &exchanged {
            Ok(Exchanged { reusable: true, .. }) => connection.rest(clock::now()),
            Ok(_) => {
                clock::now();
                self.give_connection_up();
            }
            Err(_) => self.give_connection_up(),
        }
        exchanged.map(|exchanged| exchanged.reply)
    }

    async fn send_elsewhere(
        &mut self,
        push: &Arc<Push>,
        aim: Aim<'_>,
        detour: &Detour,
        deadline: Mono,
    ) -> Result<Rc<Reply>, AttemptError> {
        let destination = self.destination.clone();
        let setup = &*self.setup.clone();
        let proxy = match detour.is_tls {
            true => setup.proxies.via(true, &detour.host, detour.port),
            false => aim.via,
        };
        let (host, port) = match proxy {
            Some(proxy) => (&proxy.host, proxy.port),
            None => (&detour.host, detour.port),
        };
        let resolving = setup.resolver.resolve(host, port, detour.is_tls);
        let resolved = monoio::time::timeout(left(deadline), resolving)
            .await
            .unwrap_or(None);
        let address = resolved.ok_or(AttemptError::Unresolved)?;
        let greeting = match (detour.is_tls, &setup.tls) {
            (false, _) => None,
            (true, Some(side)) => Some(side.elsewhere(&detour.host)?),
            (true, None) => Some(Greeting::by_system(&detour.host)?),
        };
        let entry = greeting.map(|greeting| Entry {
            tunnel: proxy.map(|proxy| setup.tunnel(proxy, &detour.host, detour.port)),
            greeting,
        });
        let mut connection = Connection::open(
            address,
            entry,
            left(deadline),
            setup.plan.remote_timeout,
            &destination.sweeper,
        )
        .await?;
        load(setup, &mut self.scratch, push, aim, deadline, clock::now());
        let exchanged = connection.exchange(&mut self.scratch, deadline).await?;
        clock::now(); // as `exchange` does: the lane takes the end of an answered attempt from there
        Ok(exchanged.reply)
    }

    /// Whether the lane's connection can be used: alive, and to an address that the name still has. Otherwise it is given up.
    fn is_fit(&mut self, now: Mono) -> bool {
        let Some(connection) = &self.connection else {
            return false;
        };
        let addresses = &self.setup.addresses;
        let changes = addresses.changes();
        let leads_there = self.checked_at == Some(changes) || addresses.contains(connection.address());
        let is_fit = connection.is_fit(now) && leads_there;
        if is_fit {
            self.checked_at = Some(changes);
        } else {
            self.give_connection_up();
        }
        is_fit
    }

    /// Gives up the connection, if there is one.
    fn give_connection_up(&mut self) {
        if self.connection.take().is_some() {
            self.destination.gate.status.connection(-1);
        }
    }
}

/// Makes `push` the next message of `scratch`.
fn load(
    setup: &DestinationSetup,
    scratch: &mut Scratch,
    push: &Arc<Push>,
    aim: Aim<'_>,
    deadline: Mono,
    now: Mono,
) {
    let told = told_limit(push, deadline.since(now), now);
    let told_ms = u64::try_from(told.as_millis()).unwrap_or(u64::MAX);
    scratch
        .gather()
        .load(push, |out| setup.head.write(out, push, aim, told_ms));
}

/// Whether an attempt may go on behind `reply`: with other credentials, or elsewhere.
fn may_need_more(reply: &Reply) -> bool {
    matches!(reply.status, 401 | 300..=399)
}

fn left(deadline: Mono) -> Duration {
    deadline.since(clock::now())
}

/// How long the destination is told to take at most: what is left of the attempt, or of the client's patience where that
/// is less (WIRE.md 9, row 101). The client's limit is told, not kept: an attempt goes on without the client, or a client
/// that waits for less than a destination needs would never get a profile there.
fn told_limit(push: &Push, attempt_left: Duration, now: Mono) -> Duration {
    let client_left = push.client_deadline.since(now);
    if push.is_awaited() && client_left >= Duration::from_millis(1) {
        attempt_left.min(client_left)
    } else {
        attempt_left
    }
}

/// Where `reply` redirects to, seen from where it was asked: TLS or not, authority and path. `None` when that is no http or
/// https URL. Credentials go along only to the very scheme, host and port of `home`.
fn follow(
    (is_tls, authority, path): (bool, &str, &str),
    reply: &Reply,
    home: (bool, &str),
) -> Option<Detour> {
    let location = std::str::from_utf8(reply.location.as_deref()?).ok()?;
    let scheme = if is_tls { "https" } else { "http" };
    let base = url::Url::parse(&format!("{scheme}://{authority}{path}")).ok()?;
    let url = base.join(location).ok()?;
    let (is_tls, default_port) = match url.scheme() {
        "http" => (false, 80),
        "https" => (true, 443),
        _ => return None,
    };
    let (host, port) = (url.host_str()?, url.port().unwrap_or(default_port));
    let authority = if port == default_port {
        host.to_owned()
    } else {
        format!("{host}:{port}")
    };
    let path = url.query().map_or_else(
        || url.path().to_owned(),
        |query| format!("{}?{query}", url.path()),
    );
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some(Detour {
        trusted: (is_tls, authority.as_str()) == home,
        is_tls,
        authority,
        path,
        host,
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_s_limit_is_told_while_it_waits() {
        use crate::fanout::AckMode;
        use crate::fanout::push::tests::push;
        const MS: fn(u64) -> Duration = Duration::from_millis;
        let at = |ms| Mono::default().after(MS(ms));
        for (name, mode, client_deadline, now, told) in [
            ("nobody waits", AckMode::Detached, at(300), at(0), MS(10_000)),
            ("waits for ever", AckMode::All, Mono::NEVER, at(0), MS(10_000)),
            ("waits for less", AckMode::All, at(300), at(100), MS(200)),
            ("waits for more", AckMode::First, at(60_000), at(0), MS(10_000)),
            ("has left", AckMode::All, at(300), at(300), MS(10_000)),
        ] {
            let mut push = push(1, mode, 1);
            push.client_deadline = client_deadline;
            assert_eq!(told_limit(&push, MS(10_000), now), told, "{name}");
        }
    }

    #[test]
    fn redirects_are_resolved_against_where_they_came_from() {
        for (location, is_tls, authority, path, trusted) in [
            ("/new", false, "h:1", "/new", true),
            ("other?x=1", false, "h:1", "/a/other?x=1", true),
            ("http://h:1/b", false, "h:1", "/b", true),
            ("http://else/", false, "else", "/", false),
            ("//else:9/p", false, "else:9", "/p", false),
            ("https://h:1/b", true, "h:1", "/b", false),
            ("https://h/b", true, "h", "/b", false),
        ] {
            let detour = follow((false, "h:1", "/a/ingest"), &to(location), (false, "h:1"));
            let detour = detour.expect(location);
            assert_eq!(
                (
                    detour.is_tls,
                    detour.authority.as_str(),
                    detour.path.as_str(),
                    detour.trusted
                ),
                (is_tls, authority, path, trusted),
                "{location}"
            );
        }
        for location in ["ftp://x/", "http://", "\u{0}"] {
            let detour = follow((false, "h:1", "/a"), &to(location), (false, "h:1"));
            assert!(detour.is_none_or(|detour| detour.trusted), "{location}");
        }
    }

    #[test]
    fn the_same_name_on_another_scheme_is_not_trusted() {
        for (location, port, trusted) in [
            ("/b", 443, true),
            ("https://h:443/b", 443, true),
            ("http://h/b", 80, false),
            ("http://h:443/b", 443, false),
        ] {
            let detour = follow((true, "h", "/a"), &to(location), (true, "h")).expect(location);
            assert_eq!((detour.port, detour.trusted), (port, trusted), "{location}");
        }
    }

    fn to(location: &str) -> Reply {
        Reply {
            location: Some(location.as_bytes().to_vec()),
            ..Reply::default()
        }
    }
}
