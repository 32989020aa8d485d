//! Destinations that a reload has removed: they get nothing new, are given what waits for them, and end.
//!
//! ```text
//!  removed ─▶ departure: delivering, giving up, ending ─▶ (deleting its spool) ─▶ gone
//!               │  back in the plan while it is delivered to: it goes on as if nothing had been
//!               ▼
//! ```
//! What is done when is decided by [`Departure`]; its patience is `--drain-timeout`.
//!
//! What is given up goes to its spool, where it has one, and is dropped as `removed` otherwise. Once gone it is in no metric any
//! more; the log has its farewell, and its books are kept for the case that it comes again.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use super::core::Order;
use super::destinations::Running;
use super::spools::SpoolThread;
use super::{Farewell, share_memory, spools};
use crate::admin::InForce;
use crate::config::{SpoolOrphans, SpoolPlan};
use crate::fanout::gate::Amount;
use crate::fanout::{DropReason, Fanout, Gate};
use crate::outbound::departure::{Crew, Departure, Seen};
use crate::runtime::clock;
use crate::spool::Sums;

/// How often those that leave are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the gateway and the destinations that leave it share.
pub struct Control {
    orders: Vec<mpsc::UnboundedSender<Order>>,
    spool: Option<SpoolPlan>,
    in_force: Arc<ArcSwap<InForce>>,
    leaving: RefCell<Vec<Leaving>>,
    /// The last gate of each destination that has gone, for its books.
    past: RefCell<HashMap<String, &'static Gate>>,
    /// While a reload is being prepared nobody goes: it may be wanted again.
    is_reloading: Cell<bool>,
    is_seeing_off: Cell<bool>,
}

/// A destination that leaves.
struct Leaving {
    running: Running,
    /// The fanouts that it was part of: whoever holds one may still offer to it.
    fanouts: Vec<Weak<Fanout>>,
    departure: Departure,
    /// Where its core says that it has ended it, until it has.
    report: Option<oneshot::Receiver<()>>,
    /// Its spool is being deleted.
    deletion: Option<Deletion>,
}

/// The deletion of a removed destination's spool, which goes on by itself.
pub struct Deletion {
    gate: &'static Gate,
    report: oneshot::Receiver<anyhow::Result<Sums>>,
}

impl Control {
    /// Nobody leaves yet.
    pub fn new(
        orders: Vec<mpsc::UnboundedSender<Order>>,
        spool: Option<SpoolPlan>,
        in_force: Arc<ArcSwap<InForce>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            orders,
            spool,
            in_force,
            leaving: RefCell::default(),
            past: RefCell::default(),
            is_reloading: Cell::new(false),
            is_seeing_off: Cell::new(false),
        })
    }

    /// Tells a core something. One that has ended needs to know nothing.
    pub fn tell(&self, core: usize, order: Order) {
        if let Some(orders) = self.orders.get(core) {
            let _ = orders.send(order);
        }
    }

    /// Ends when every core has carried out what it was told.
    pub async fn all_told(&self) {
        let reports: Vec<_> = (0..self.orders.len())
            .map(|core| {
                let (done, report) = oneshot::channel();
                self.tell(core, Order::Report(done));
                report
            })
            .collect();
        for report in reports {
            let _ = report.await; // a core that ends carries nothing out
        }
    }

    /// Keeps everybody here who is still being delivered to, until what is returned is dropped.
    pub fn hold(self: &Rc<Self>) -> Held {
        self.is_reloading.set(true);
        Held(self.clone())
    }

    /// Whether the destination is past its return: it has to be gone before it can come again.
    pub fn is_ending(&self, name: &str) -> bool {
        let leaving = self.leaving.borrow();
        let mut ending = leaving.iter().filter(|one| !one.departure.can_return());
        ending.any(|one| one.running.plan.name == name)
    }

    /// Reads of a destination that leaves and can return.
    pub fn with_leaving<T>(&self, name: &str, read: impl FnOnce(&Running) -> T) -> Option<T> {
        let leaving = self.leaving.borrow();
        let mut returning = leaving.iter().filter(|one| one.departure.can_return());
        let found = returning.find(|one| one.running.plan.name == name);
        found.map(|one| read(&one.running))
    }

    /// A destination that leaves is wanted again.
    pub fn take_back(&self, name: &str) -> Option<Running> {
        let mut leaving = self.leaving.borrow_mut();
        let place = leaving
            .iter()
            .position(|one| one.departure.can_return() && one.running.plan.name == name)?;
        let returning = leaving.remove(place);
        returning.departure.take_back();
        Some(returning.running)
    }

    /// Begins to see a destination off that no fanout but `fanouts` has. Must be called on a tokio `LocalSet`.
    pub fn see_off(self: &Rc<Self>, running: Running, fanouts: Vec<Weak<Fanout>>, patience: Duration) {
        let departure = Departure::begin(running.gate, patience, clock::now());
        self.leaving.borrow_mut().push(Leaving {
            running,
            fanouts,
            departure,
            report: None,
            deletion: None,
        });
        if !self.is_seeing_off.replace(true) {
            let control = self.clone();
            tokio::task::spawn_local(async move {
                while !control.leaving.borrow().is_empty() {
                    control.look();
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                control.is_seeing_off.set(false);
            });
        }
    }

    /// Takes out all who leave, and what is being deleted of theirs: a shutdown goes on with them.
    pub fn take_all(&self) -> (Vec<Running>, Vec<Deletion>) {
        let (mut all, mut deletions) = (Vec::new(), Vec::new());
        for Leaving {
            running, deletion, ..
        } in self.leaving.take()
        {
            all.push(running);
            deletions.extend(deletion);
        }
        (all, deletions)
    }

    /// Calls `visit` with all who leave.
    pub fn each_leaving(&self, mut visit: impl FnMut(&Running)) {
        self.leaving.borrow().iter().for_each(|one| visit(&one.running));
    }

    /// The gate of a destination that was here before and has gone. It is forgotten.
    pub fn past(&self, name: &str) -> Option<&'static Gate> {
        self.past.borrow_mut().remove(name)
    }

    fn look(&self) {
        let mut leaving = self.leaving.borrow_mut();
        let mut gone = Vec::new();
        let mut at = 0;
        while at < leaving.len() {
            if leaving[at].step(self) {
                gone.push(leaving.remove(at).running);
            } else {
                at += 1;
            }
        }
        drop(leaving);
        gone.into_iter().for_each(|running| self.part_from(running));
    }

    fn part_from(&self, running: Running) {
        let gate = running.gate;
        let mut in_force = InForce::clone(&self.in_force.load());
        in_force
            .destinations
            .retain(|listed| !std::ptr::eq(listed.gate, gate));
        share_memory(&in_force);
        self.in_force.store(Arc::new(in_force));
        self.past.borrow_mut().insert(gate.name.clone(), gate);
        tracing::info!(destination = %gate.name, "removed destination has ended");
        Farewell::of(gate).tell();
    }
}

/// While this lives nobody goes.
pub struct Held(Rc<Control>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.is_reloading.set(false);
    }
}

impl Leaving {
    /// Does what can be done now. Returns whether it has gone.
    fn step(&mut self, control: &Control) -> bool {
        if let Some(deletion) = &mut self.deletion {
            return deletion.is_over();
        }
        self.fanouts.retain(|fanout| fanout.strong_count() > 0);
        // Whoever held one has let go of it after his last offer: that is seen from here on.
        fence(Ordering::Acquire);
        let seen = Seen {
            now: clock::now(),
            is_held: control.is_reloading.get(),
            is_cut_off: self.fanouts.is_empty(),
        };
        let mut staff = Staff {
            control,
            running: &self.running,
            report: &mut self.report,
        };
        self.departure.step(seen, &mut staff) && self.settle_spool(control)
    }

    /// What is left on disk stays there or goes, as `--spool-orphans` says. Returns whether that is all.
    fn settle_spool(&mut self, control: &Control) -> bool {
        let gate = self.running.gate;
        let (Some(plan), Some(_)) = (&control.spool, &self.running.spool) else {
            return true;
        };
        let books = gate.books();
        let (parcels, bytes) = (books.spooled_parcels, books.spooled_bytes);
        match plan.orphans {
            SpoolOrphans::Drop => {
                let (plan, name) = (plan.clone(), gate.name.clone());
                let (done, report) = oneshot::channel();
                tokio::task::spawn_blocking(move || done.send(spools::delete(&plan, &name)));
                self.deletion = Some(Deletion { gate, report });
                return false;
            }
            _ if parcels > 0 => tracing::warn!(
                destination = %gate.name,
                parcels,
                bytes,
                "the spool keeps profiles for a destination that was removed; give it again, or see pyrotee spool"
            ),
            _ => {}
        }
        true
    }
}

impl Deletion {
    /// Notes its end, if it has come.
    fn is_over(&mut self) -> bool {
        match self.report.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return false,
            Err(oneshot::error::TryRecvError::Closed) => {}
            Ok(deleted) => note_deleted(self.gate, deleted),
        }
        true
    }

    /// Waits for its end and notes it.
    pub async fn over(self) {
        if let Ok(deleted) = self.report.await {
            note_deleted(self.gate, deleted);
        }
    }
}

/// The core or the archive of a destination that leaves, and the thread of its spool.
struct Staff<'a> {
    control: &'a Control,
    running: &'a Running,
    report: &'a mut Option<oneshot::Receiver<()>>,
}

impl Staff<'_> {
    fn give_up_archive(&self) {
        if let Some((archive, _)) = self.running.archive() {
            archive.give_up_removed();
        }
    }
}

impl Crew for Staff<'_> {
    fn give_up(&mut self) {
        self.give_up_archive();
        if let Some(core) = self.running.core() {
            self.control.tell(core, Order::GiveUp(self.running.gate));
        }
    }

    fn end(&mut self) {
        self.give_up_archive();
        if let Some(core) = self.running.core() {
            self.control.tell(core, Order::End(self.running.gate));
            let (done, report) = oneshot::channel();
            self.control.tell(core, Order::Report(done));
            *self.report = Some(report);
        }
    }

    fn has_ended(&mut self) -> bool {
        let is_awaited = |report: &mut oneshot::Receiver<()>| {
            matches!(report.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        };
        if self.report.as_mut().is_some_and(is_awaited) {
            return false;
        }
        *self.report = None; // it is told once
        let archive = self.running.archive();
        archive.is_none_or(|(_, thread)| thread.is_finished())
    }

    fn has_keeper_ended(&mut self) -> bool {
        let spool = self.running.spool.as_ref();
        spool.is_none_or(SpoolThread::is_finished)
    }
}

/// What a removed destination had on disk has gone, or has not.
fn note_deleted(gate: &Gate, deleted: anyhow::Result<Sums>) {
    match deleted {
        Ok(sums) => {
            let books = gate.books();
            let lost = Amount {
                parcels: books.spooled_parcels,
                bytes: books.spooled_bytes,
                profiles: sums.profiles,
                profile_bytes: sums.profile_bytes,
            };
            gate.drop_spooled(lost, DropReason::Removed);
            if lost.parcels > 0 {
                tracing::warn!(
                    destination = %gate.name,
                    parcels = lost.parcels,
                    bytes = lost.bytes,
                    "the spool held profiles for a destination that was removed; they were deleted"
                );
            }
        }
        Err(error) => {
            tracing::error!(destination = %gate.name, error = format!("{error:#}"), "a spool cannot be deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use clap::Parser as _;

    use super::*;
    use crate::config::{Flags, Host, Overflow, Plan};
    use crate::fanout::push::tests::push;
    use crate::fanout::spool_link::Reading;
    use crate::fanout::{AckMode, DestinationId, Outcome, Parcel, RecordId, SpoolLink, Ticket};
    use crate::gateway::destinations::{Errands, Work};
    use crate::outbound::head::Trace;
    use crate::spool::fake::Faults;
    use crate::spool::keeper::Keeper;

    /// The flags of `pyrotee run`, read as the program reads them.
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    /// A destination that was removed and that nobody offers to any more; its core and its spool's thread are the test.
    struct Scene {
        control: Rc<Control>,
        orders: mpsc::UnboundedReceiver<Order>,
        leaving: Leaving,
        gate: &'static Gate,
        link: &'static SpoolLink,
    }

    impl Scene {
        fn new(patience: Duration) -> Self {
            Self::while_reading(patience).0
        }

        /// Its spool had begun to read something back.
        fn while_reading(patience: Duration) -> (Self, Reading<'static>) {
            let flags = Line::try_parse_from(["x", "--to", "a=http://127.0.0.1:1"]);
            let host = Host {
                cpus: vec![0],
                cpu_quota: None,
            };
            let plan = Plan::new(&flags.expect("flags").flags, &host).expect("a plan");
            let plan = Arc::new(plan);
            let gate = Gate::new(DestinationId(0), "a".into(), u64::MAX);
            let gate: &'static Gate = Box::leak(Box::new(gate.with_spool(SpoolLink::new(false, u64::MAX))));
            let link = gate.spool().expect("given");
            // Ends as a keeper does that has nothing left.
            let thread = std::thread::spawn(|| {
                link.set_keeper(std::thread::current());
                while !link.is_finishing() {
                    std::thread::park();
                }
            });
            let (calls, _) = mpsc::channel(1);
            let running = Running {
                plan: Arc::new(plan.destinations[0].clone()),
                gate,
                work: Work::Server {
                    core: 0,
                    calls,
                    trace: Trace::default(),
                },
                spool: Some(SpoolThread::played(link, thread)),
                errands: Errands::default(),
            };
            let (giving, orders) = mpsc::unbounded_channel();
            let in_force = ArcSwap::from_pointee(InForce {
                plan,
                destinations: Vec::new(),
            });
            let reading = link.begin_reading().expect("it may read");
            let scene = Self {
                control: Control::new(vec![giving], None, Arc::new(in_force)),
                orders,
                leaving: Leaving {
                    running,
                    fanouts: Vec::new(),
                    departure: Departure::begin(gate, patience, clock::now()),
                    report: None,
                    deletion: None,
                },
                gate,
                link,
            };
            (scene, reading)
        }

        fn step(&mut self) -> bool {
            self.leaving.step(&self.control)
        }

        fn order(&mut self) -> Option<Order> {
            self.orders.try_recv().ok()
        }

        /// A parcel that was on disk alone comes back.
        fn restore(&self) {
            let record = RecordId {
                segment: 1,
                index: 0,
                profiles: 1,
                bytes: 7,
                profile_bytes: 7,
            };
            let push = Arc::new(push(7, AckMode::Detached, 1));
            let ticket = Ticket::restored(push, self.gate, record);
            self.gate.forward(Parcel::new(ticket));
        }

        fn recover_one(&self) {
            self.gate.recover(Amount {
                parcels: 1,
                bytes: 7,
                profiles: 1,
                profile_bytes: 7,
            });
        }
    }

    const NEVER: Duration = Duration::from_secs(3_600);

    #[test]
    fn it_stays_while_its_spool_reads_something_back() {
        let (mut scene, reading) = Scene::while_reading(NEVER);
        scene.recover_one();
        assert!(
            !scene.step() && scene.leaving.departure.can_return(),
            "its spool is reading"
        );
        scene.restore();
        drop(reading);
        assert!(scene.link.begin_reading().is_none(), "it may read no more");
        assert!(
            !scene.step() && scene.leaving.departure.can_return(),
            "what was read waits"
        );
        let read = scene.gate.take().expect("it was read");
        read.ticket.resolve(Outcome::Delivered);
        assert!(scene.order().is_none());
        assert!(!scene.step() && !scene.leaving.departure.can_return());
        assert!(matches!(scene.order(), Some(Order::End(_))));
        assert_eq!(scene.gate.books().delivered.parcels, 1);
    }

    #[test]
    fn giving_up_waits_for_what_is_being_read_too() {
        let (mut scene, reading) = Scene::while_reading(Duration::ZERO);
        scene.recover_one();
        assert!(!scene.step() && !scene.step(), "it takes nothing");
        scene.restore();
        drop(reading);
        assert!(!scene.step());
        let read = scene.gate.take().expect("it was read");
        scene.gate.evict(read, DropReason::Removed);
        assert!(!scene.step());
        let mut all = std::iter::from_fn(|| scene.orders.try_recv().ok()).collect::<Vec<_>>();
        assert!(matches!(all.pop(), Some(Order::Report(_))));
        assert!(matches!(all.pop(), Some(Order::End(_))));
        assert!(all.iter().all(|order| matches!(order, Order::GiveUp(_))) && !all.is_empty());
        let books = scene.gate.books();
        assert_eq!((books.spooled_parcels, books.dropped_total().parcels), (1, 0));
    }

    #[test]
    fn its_spool_hears_what_became_of_the_last_parcel() {
        let mut scene = Scene::new(NEVER);
        assert!(!scene.step());
        assert!(matches!(scene.order(), Some(Order::End(_))));
        let Some(Order::Report(done)) = scene.order() else {
            panic!("its core has to say that it has ended");
        };
        assert!(!scene.step());
        assert!(
            !scene.link.is_finishing(),
            "its core may still be about to tell it"
        );
        done.send(()).expect("it is waited for");
        let deadline = clock::now().after(Duration::from_secs(10));
        while !scene.step() {
            assert!(clock::now() < deadline, "it does not go");
            std::thread::yield_now();
        }
        assert!(scene.link.is_finishing());
    }

    #[tokio::test]
    async fn a_shutdown_hears_what_was_deleted() {
        let mut scene = Scene::new(NEVER);
        scene.recover_one();
        let (done, report) = oneshot::channel();
        let gate = scene.gate;
        scene.leaving.deletion = Some(Deletion { gate, report });
        scene.control.leaving.borrow_mut().push(scene.leaving);
        let (all, deletions) = scene.control.take_all();
        assert_eq!((all.len(), deletions.len()), (1, 1));
        let sums = Sums {
            profiles: 1,
            profile_bytes: 7,
            ..Sums::default()
        };
        assert!(done.send(Ok(sums)).is_ok(), "it is waited for");
        for deletion in deletions {
            deletion.over().await;
        }
        let farewell = Farewell::of(gate);
        assert_eq!(
            (farewell.spooled, &*farewell.dropped),
            (0, &[(DropReason::Removed.label(), 1)][..])
        );
        scene.link.finish();
    }

    #[test]
    fn what_it_cannot_store_is_dropped_as_removed() {
        let mut scene = Scene::new(Duration::ZERO);
        let gate = scene.gate;
        let (mut keeper, disk, wall) = Keeper::on_fake_disk(gate);
        let fanout = Fanout::new(vec![gate], Overflow::DropOldest);
        let mut one = push(7, AckMode::Detached, 1);
        one.segments.push(Bytes::from_static(b"profile"));
        fanout.offer(&Arc::new(one)).expect("there is room");
        disk.set_faults(Faults {
            read_only: true,
            ..Faults::default()
        });
        assert!(!scene.step(), "it takes nothing");
        assert!(matches!(scene.order(), Some(Order::GiveUp(_))));
        // As its core does.
        gate.evict(gate.take().expect("it was offered"), DropReason::Removed);
        // A shutdown that begins now changes nothing of that.
        scene.link.set_last(DropReason::Shutdown);
        keeper.step(clock::now(), wall);
        let books = gate.books();
        let dropped = |reason: DropReason| books.dropped[reason.index()].parcels;
        assert_eq!(
            (dropped(DropReason::Removed), dropped(DropReason::Shutdown)),
            (1, 0)
        );
        assert_eq!(scene.link.last(), Some(DropReason::Removed));
        assert!(!scene.step() && matches!(scene.order(), Some(Order::End(_))));
    }
}
