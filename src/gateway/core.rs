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
    obey_until_draining(&mut phase, &mut orders, |order| core.obey(order)).await;
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

/// Carries out what is ordered until a shutdown begins, all that was ordered before it included: pushes may be on their way to
/// a destination that is to start.
async fn obey_until_draining<T>(
    phase: &mut PhaseReceiver,
    orders: &mut mpsc::UnboundedReceiver<T>,
    mut obey: impl FnMut(T),
) {
    loop {
        tokio::select! {
            biased;
            () = phase::reached(phase, Phase::Draining) => break,
            Some(order) = orders.recv() => obey(order),
        }
    }
    while let Ok(order) = orders.try_recv() {
        obey(order);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    #[tokio::test]
    async fn what_was_ordered_before_a_shutdown_is_carried_out() {
        let (phases, mut phase) = watch::channel(Phase::Serving);
        let (giving, mut orders) = mpsc::unbounded_channel();
        (0..5).for_each(|order| giving.send(order).expect("the core is there"));
        // The core has slept meanwhile, and learns of both in one turn.
        phases.send_replace(Phase::Draining);
        let mut obeyed = Vec::new();
        obey_until_draining(&mut phase, &mut orders, |order| obeyed.push(order)).await;
        assert_eq!(obeyed, [0, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn orders_are_carried_out_as_they_come() {
        let (phases, mut phase) = watch::channel(Phase::Serving);
        let (giving, mut orders) = mpsc::unbounded_channel();
        giving.send(0).expect("the core is there");
        let mut obeyed = Vec::new();
        let deadline = std::time::Duration::from_secs(10);
        let obeying = obey_until_draining(&mut phase, &mut orders, |order| {
            obeyed.push(order);
            match order {
                0..3 => drop(giving.send(order + 1)),
                _ => drop(phases.send_replace(Phase::GivingUp)),
            }
        });
        tokio::time::timeout(deadline, obeying)
            .await
            .expect("a shutdown ends it");
        assert_eq!(obeyed, [0, 1, 2, 3]);
    }
}
