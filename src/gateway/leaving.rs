//! Destinations that a reload has removed: they get nothing new, are given what waits for them, and end.
//!
//! ```text
//!  removed ─▶ delivering ──nothing waits──────────────────────────▶ ending ─▶ (deleting its spool) ─▶ gone
//!                │  ▲ back in the plan: it goes on as if nothing     ▲
//!                │  └─ had been                                      │ nothing waits
//!                └─ for --drain-timeout nothing was delivered ─▶ giving up
//! ```
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
use super::{Farewell, share_memory, spools};
use crate::admin::InForce;
use crate::config::{SpoolOrphans, SpoolPlan};
use crate::fanout::gate::Amount;
use crate::fanout::{DropReason, Fanout, Gate};
use crate::runtime::clock::{self, Mono};
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
    /// For how long it may take nothing.
    patience: Duration,
    stage: Stage,
}

enum Stage {
    /// What waits is sent. So many were delivered when something last was, or when nothing waited.
    Delivering { delivered: u64, moved: Mono },
    /// What waits is given up, what is on the wire ends.
    GivingUp,
    /// Nothing waits; its core or its archive comes to its end, then its spool.
    Ending(Option<oneshot::Receiver<()>>),
    /// Its spool is being deleted.
    Deleting(Deletion),
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
        let mut ending = leaving.iter().filter(|one| !one.can_return());
        ending.any(|one| one.running.plan.name == name)
    }

    /// Reads of a destination that leaves and can return.
    pub fn with_leaving<T>(&self, name: &str, read: impl FnOnce(&Running) -> T) -> Option<T> {
        let leaving = self.leaving.borrow();
        let mut returning = leaving.iter().filter(|one| one.can_return());
        let found = returning.find(|one| one.running.plan.name == name);
        found.map(|one| read(&one.running))
    }

    /// A destination that leaves is wanted again.
    pub fn take_back(&self, name: &str) -> Option<Running> {
        let mut leaving = self.leaving.borrow_mut();
        let place = leaving
            .iter()
            .position(|one| one.can_return() && one.running.plan.name == name)?;
        let running = leaving.remove(place).running;
        if let Some(spool) = &running.spool {
            spool.resume_reading();
        }
        Some(running)
    }

    /// Begins to see a destination off that no fanout but `fanouts` has. Must be called on a tokio `LocalSet`.
    pub fn see_off(self: &Rc<Self>, running: Running, fanouts: Vec<Weak<Fanout>>, patience: Duration) {
        if let Some(spool) = &running.spool {
            spool.stop_reading();
        }
        let stage = Stage::Delivering {
            delivered: running.gate.books().delivered.parcels,
            moved: clock::now(),
        };
        self.leaving.borrow_mut().push(Leaving {
            running,
            fanouts,
            patience,
            stage,
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
        for Leaving { running, stage, .. } in self.leaving.take() {
            all.push(running);
            if let Stage::Deleting(deletion) = stage {
                deletions.push(deletion);
            }
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
    fn can_return(&self) -> bool {
        matches!(self.stage, Stage::Delivering { .. })
    }

    /// Does what can be done now. Returns whether it has gone.
    fn step(&mut self, control: &Control) -> bool {
        let gate = self.running.gate;
        match &mut self.stage {
            Stage::Delivering { .. } if control.is_reloading.get() => {}
            Stage::Delivering { delivered, moved } => {
                let now = clock::now();
                self.fanouts.retain(|fanout| fanout.strong_count() > 0);
                // Whoever held one has let go of it after his last offer: that is seen from here on.
                fence(Ordering::Acquire);
                let is_cut_off = self.fanouts.is_empty();
                let is_empty = self.running.is_empty();
                let delivered_now = gate.books().delivered.parcels;
                if is_empty && is_cut_off {
                    self.end(control);
                } else if is_empty || delivered_now != *delivered {
                    (*delivered, *moved) = (delivered_now, now);
                } else if is_cut_off && now.since(*moved) >= self.patience {
                    self.give_up(control);
                }
            }
            Stage::GivingUp if self.running.is_empty() => self.end(control),
            // Again: an attempt that has failed since waits for its next one.
            Stage::GivingUp => self.tell_core(control, Order::GiveUp),
            Stage::Ending(report) => {
                let has_reported = report.as_mut().is_none_or(|report| {
                    !matches!(report.try_recv(), Err(oneshot::error::TryRecvError::Empty))
                });
                if has_reported {
                    *report = None;
                }
                let has_archive_ended = self
                    .running
                    .archive()
                    .is_none_or(|(_, thread)| thread.is_finished());
                if !(has_reported && has_archive_ended) {
                    return false;
                }
                // Not before: whoever ended the last parcel tells the spool so, and what it is not told is sent again.
                if let Some(spool) = &self.running.spool {
                    spool.finish();
                    if !spool.is_finished() {
                        return false;
                    }
                }
                return self.settle_spool(control);
            }
            Stage::Deleting(deletion) => return deletion.is_over(),
        }
        false
    }

    fn tell_core(&self, control: &Control, order: fn(&'static Gate) -> Order) {
        if let Some(core) = self.running.core() {
            control.tell(core, order(self.running.gate));
        }
    }

    fn give_up(&mut self, control: &Control) {
        let gate = self.running.gate;
        tracing::warn!(
            destination = %gate.name,
            waiting = gate.parcels_in_memory(),
            "removed destination takes nothing; what waits for it is given up"
        );
        if let Some(spool) = &self.running.spool {
            spool.take_the_rest(DropReason::Removed);
        }
        if let Some((archive, _)) = self.running.archive() {
            archive.give_up_removed();
        }
        self.tell_core(control, Order::GiveUp);
        self.stage = Stage::GivingUp;
    }

    fn end(&mut self, control: &Control) {
        self.tell_core(control, Order::End);
        let report = self.running.core().map(|core| {
            let (done, report) = oneshot::channel();
            control.tell(core, Order::Report(done));
            report
        });
        if let Some((archive, _)) = self.running.archive() {
            archive.give_up_removed();
        }
        self.stage = Stage::Ending(report);
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
                self.stage = Stage::Deleting(Deletion { gate, report });
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
    use crate::fanout::{AckMode, DestinationId, Outcome, Parcel, RecordId, SpoolLink, Ticket};
    use crate::gateway::destinations::{Errands, Work};
    use crate::gateway::spools::SpoolThread;
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
            let stage = Stage::Delivering {
                delivered: 0,
                moved: clock::now(),
            };
            Self {
                control: Control::new(vec![giving], None, Arc::new(in_force)),
                orders,
                leaving: Leaving {
                    running,
                    fanouts: Vec::new(),
                    patience,
                    stage,
                },
                gate,
                link,
            }
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
        let mut scene = Scene::new(NEVER);
        scene.recover_one();
        let reading = scene.link.begin_reading().expect("it may read");
        scene.link.stop_reading();
        assert!(
            !scene.step() && scene.leaving.can_return(),
            "its spool is reading"
        );
        scene.restore();
        drop(reading);
        assert!(scene.link.begin_reading().is_none(), "it may read no more");
        assert!(!scene.step() && scene.leaving.can_return(), "what was read waits");
        let read = scene.gate.take().expect("it was read");
        read.ticket.resolve(Outcome::Delivered);
        assert!(scene.order().is_none());
        assert!(!scene.step() && !scene.leaving.can_return());
        assert!(matches!(scene.order(), Some(Order::End(_))));
        assert_eq!(scene.gate.books().delivered.parcels, 1);
    }

    #[test]
    fn giving_up_waits_for_what_is_being_read_too() {
        let mut scene = Scene::new(Duration::ZERO);
        scene.recover_one();
        let reading = scene.link.begin_reading().expect("it may read");
        scene.link.stop_reading();
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
        scene.link.stop_reading();
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
        scene.leaving.stage = Stage::Deleting(Deletion { gate, report });
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
        scene.link.stop_reading();
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
