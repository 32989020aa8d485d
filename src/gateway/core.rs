//! The life of one core: what it is started with, and what the control plane tells it while it runs.

use std::net::TcpListener;
use std::rc::Rc;

use tokio::sync::{mpsc, oneshot};

use crate::fanout::{DropReason, Gate};
use crate::inbound::{Course, Inbound, InboundSetup};
use crate::outbound::destination::{Destination, DestinationSetup};
use crate::runtime::phase::{self, Phase, PhaseReceiver};
use crate::runtime::sweeper::Sweeper;

/// What one core is started with.
pub struct CoreSetup {
    /// Its inbound role, if it has one.
    pub inbound: Option<(InboundSetup, Course, Vec<TcpListener>)>,
    /// The destinations that it owns.
    pub destinations: Vec<DestinationSetup>,
    /// What it is told later.
    pub orders: mpsc::UnboundedReceiver<Order>,
    /// How far the process is.
    pub phase: PhaseReceiver,
    /// Where it says that it has started.
    pub ready: std::sync::mpsc::Sender<std::io::Result<()>>,
}

/// What a reload tells a core. Orders are carried out one after the other, until a shutdown begins.
pub enum Order {
    /// A new destination.
    Start(Box<DestinationSetup>),
    /// The destination behind the setup's gate goes on by it.
    Change(Box<DestinationSetup>),
    /// Pushes go another course.
    Follow(Course),
    /// The destination behind the gate gives up all that waits, as removed.
    GiveUp(&'static Gate),
    /// The destination behind the gate ends. It has nothing left.
    End(&'static Gate),
    /// Says that the orders before have been carried out.
    Report(oneshot::Sender<()>),
}

/// The roles of a core at work.
struct Core {
    inbound: Option<Rc<Inbound>>,
    destinations: Vec<Rc<Destination>>,
    sweeper: Rc<Sweeper>,
}

impl Core {
    fn obey(&mut self, order: Order) {
        match order {
            Order::Start(setup) => {
                let destination = Destination::start(*setup, self.sweeper.clone());
                self.destinations.push(destination);
            }
            Order::Change(setup) => {
                if let Some(destination) = self.behind(setup.gate) {
                    destination.change(*setup);
                }
            }
            Order::Follow(course) => {
                if let Some(inbound) = &self.inbound {
                    inbound.follow(course);
                }
            }
            Order::GiveUp(gate) => {
                if let Some(destination) = self.behind(gate) {
                    destination.give_up(DropReason::Removed);
                }
            }
            Order::End(gate) => {
                if let Some(destination) = self.behind(gate) {
                    destination.end();
                }
                self.destinations
                    .retain(|destination| !std::ptr::eq(destination.gate(), gate));
            }
            // The control plane may have stopped waiting.
            Order::Report(done) => drop(done.send(())),
        }
    }

    fn behind(&self, gate: &'static Gate) -> Option<&Rc<Destination>> {
        let mut all = self.destinations.iter();
        all.find(|destination| std::ptr::eq(destination.gate(), gate))
    }
}

/// Runs to the end of the process.
pub async fn run(setup: CoreSetup) {
    let CoreSetup {
        inbound,
        destinations,
        mut orders,
        mut phase,
        ready,
    } = setup;
    let sweeper = Rc::new(Sweeper::default());
    monoio::spawn(sweeper.clone().run());
    let mut core = Core {
        inbound: None,
        destinations: destinations
            .into_iter()
            .map(|one| Destination::start(one, sweeper.clone()))
            .collect(),
        sweeper,
    };
    if let Some((setup, course, listeners)) = inbound {
        match Inbound::start(setup, course, listeners, core.sweeper.clone()) {
            Ok(inbound) => core.inbound = Some(inbound),
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        }
    }
    let _ = ready.send(Ok(()));
    // Whoever waits for the cores to start must notice one that never sends: no sender may outlive the start.
    drop(ready);
    loop {
        tokio::select! {
            biased;
            () = phase::reached(&mut phase, Phase::Draining) => break,
            Some(order) = orders.recv() => core.obey(order),
        }
    }
    // What was ordered before the shutdown began still counts: pushes may be on their way to a destination that is to start.
    while let Ok(order) = orders.try_recv() {
        core.obey(order);
    }
    drop(orders);
    let destinations = &core.destinations;
    destinations.iter().for_each(|destination| destination.hurry());
    phase::reached(&mut phase, Phase::GivingUp).await;
    destinations
        .iter()
        .for_each(|destination| destination.give_up(DropReason::Shutdown));
    phase::reached(&mut phase, Phase::Leaving).await;
    destinations.iter().for_each(|destination| destination.leave());
}
