//! A new plan in a running gateway: all of it or nothing.
//!
//! ```text
//!  plan ─▶ compare ─▶ open (elsewhere, may wait for disks) ─▶ commit: in one go ─▶ wait for the cores ─▶ seen off: leaving.rs
//!             │           │                                     errands, archives, orders to cores, the new course
//!             └───────────┴─▶ refused: nothing was changed
//! ```
//! A destination that stays as it is notices nothing. One that is changed keeps its gate, and so its queue, its books and its
//! spool. Each core follows the new course from one turn of its loop to the next, so that a push goes to the destinations of
//! before or to those of now.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;

use super::core::Order;
use super::destinations::{Opened, Running};
use super::{Gateway, course_of, rules_of};
use crate::config::{DestinationPlan, Plan, SpoolOrphans};
use crate::fanout::Fanout;
use crate::profile::labels::LabelRules;
use crate::runtime::clock;

/// How long a destination that comes again may take to go first: what it waits for is its spool's last sync.
const GOING_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether it has gone.
const GOING_LOOK: Duration = Duration::from_millis(20);

/// Why a plan is not in force. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It differs in what cannot change in a running process: by flags, or in words.
    #[error("{} cannot change in a running process; restart it to change that. Nothing was changed", .0.join(", "))]
    NeedsRestart(Vec<String>),
    /// Something that it names cannot be had.
    #[error("{0:#}. Nothing was changed")]
    Unavailable(anyhow::Error),
}

/// What a reload has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Destinations that were not there before.
    pub added: Vec<String>,
    /// Destinations that are not there any more.
    pub removed: Vec<String>,
    /// Destinations of which something is different.
    pub changed: Vec<String>,
    /// Whether relabel rules or external labels are others.
    pub labels: bool,
    /// Whether the order of destinations is another one.
    pub order: bool,
}

impl Changes {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return f.write_str("nothing is different");
        }
        let named = |what: &str, names: &[String]| match names {
            [] => None,
            names => Some(format!("{what} {}", names.join(", "))),
        };
        let told = [
            named("added", &self.added),
            named("removed", &self.removed),
            named("changed", &self.changed),
            self.labels.then(|| "changed labels and rules".to_owned()),
            self.order.then(|| "changed the order".to_owned()),
        ];
        f.write_str(&told.into_iter().flatten().collect::<Vec<_>>().join("; "))
    }
}

/// What becomes of a destination of the new plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Changes,
    Starts,
}

impl Gateway {
    /// Puts `plan` in force, as far as a running process can. What its file cannot say must be as it was. Must be called on a
    /// tokio `LocalSet`, and not again before it has ended.
    ///
    /// It may be dropped while it waits: then the plan is in force, or not at all.
    ///
    /// # Errors
    /// Why the plan of before is still in force.
    pub async fn reload(&mut self, plan: Plan) -> Result<Changes, Refused> {
        let plan = Arc::new(plan.on_the_threads_of(&self.plan));
        let needs_restart = self.needs_restart(&plan);
        if !needs_restart.is_empty() {
            return Err(Refused::NeedsRestart(needs_restart));
        }
        let rules = rules_of(&plan).map_err(Refused::Unavailable)?;
        let held = self.control.hold();
        self.wait_for_those_who_go(&plan)
            .await
            .map_err(Refused::Unavailable)?;
        self.check_spools(&plan).map_err(Refused::Unavailable)?;
        let fates: Vec<Fate> = plan
            .destinations
            .iter()
            .map(|one| self.fate(one, &plan))
            .collect();
        let opened = open(plan.clone(), fates.clone())
            .await
            .map_err(Refused::Unavailable)?;
        let changes = self.commit(plan, rules, &fates, opened);
        drop(held);
        self.control.all_told().await;
        Ok(changes)
    }

    /// What would need a restart, by flags and in words.
    fn needs_restart(&self, plan: &Plan) -> Vec<String> {
        let flags = plan.needs_restart(&self.plan).into_iter().map(str::to_owned);
        let kind = |one: &DestinationPlan| if one.is_http() { "a server" } else { "a folder" };
        let kinds = plan.destinations.iter().filter_map(|one| {
            let before = self.of_before(&one.name, |running| kind(&running.plan))?;
            (before != kind(one)).then(|| {
                format!(
                    "that destination '{}' is {before} (or give {} another name)",
                    one.name,
                    kind(one)
                )
            })
        });
        flags.chain(kinds).collect()
    }

    /// Reads of the destination of this name that runs, or leaves and may return.
    fn of_before<T>(&self, name: &str, read: impl Fn(&Running) -> T) -> Option<T> {
        let running = self.running.iter().find(|one| one.plan.name == name);
        match running {
            Some(running) => Some(read(running)),
            None => self.control.with_leaving(name, read),
        }
    }

    fn fate(&self, one: &DestinationPlan, whole: &Plan) -> Fate {
        match self.of_before(&one.name, |running| running.is_as(one, whole)) {
            Some(true) => Fate::Stays,
            Some(false) => Fate::Changes,
            None => Fate::Starts,
        }
    }

    /// One that comes again while it is about to go has to be gone first: two may not have its spool.
    async fn wait_for_those_who_go(&self, plan: &Plan) -> anyhow::Result<()> {
        let deadline = clock::now().after(GOING_MAX);
        for one in &plan.destinations {
            while self.control.is_ending(&one.name) {
                if clock::now() >= deadline {
                    anyhow::bail!(
                        "destination '{}' was removed and has not ended yet; try again",
                        one.name
                    );
                }
                tokio::time::sleep(GOING_LOOK).await;
            }
        }
        Ok(())
    }

    /// `--spool-orphans refuse`: nothing may be left for a destination that is removed.
    fn check_spools(&self, plan: &Plan) -> anyhow::Result<()> {
        let is_refused = plan
            .spool
            .as_ref()
            .is_some_and(|spool| spool.orphans == SpoolOrphans::Refuse);
        let removed = self.running.iter().filter(|one| !plan.has(&one.plan.name));
        for one in removed.filter(|_| is_refused) {
            let left = one.spool.as_ref().map_or(0, |spool| spool.left_parcels());
            if left > 0 {
                anyhow::bail!(
                    "--spool-orphans refuse: the spool holds {left} profiles for '{}', which would be no destination any more",
                    one.plan.name
                );
            }
        }
        Ok(())
    }

    /// Puts everything in force. Nothing in here waits or fails.
    fn commit(
        &mut self,
        plan: Arc<Plan>,
        rules: LabelRules,
        fates: &[Fate],
        opened: Vec<Option<Opened>>,
    ) -> Changes {
        let mut changes = Changes {
            labels: plan.relabel != self.plan.relabel || plan.external_labels != self.plan.external_labels,
            ..Changes::default()
        };
        let names = |plan: &Plan| -> Vec<String> {
            let all = plan.destinations.iter();
            all.map(|one| one.name.clone()).collect()
        };
        let before = names(&self.plan);
        let mut old = std::mem::take(&mut self.running);
        for ((one, fate), opened) in plan.destinations.iter().zip(fates).zip(opened) {
            let place = old.iter().position(|running| running.plan.name == one.name);
            let was_there = place.is_some();
            let running = match place {
                Some(place) => Some(old.remove(place)),
                None => self.control.take_back(&one.name),
            };
            let running = match (running, opened) {
                (Some(mut running), Some(opened)) => {
                    if let Some(order) = opened.change(&mut running, &plan, &self.shop)
                        && let Some(core) = running.core()
                    {
                        self.control.tell(core, order);
                    }
                    Some(running)
                }
                (Some(running), None) => Some(running),
                (None, Some(opened)) => self.start_destination(opened, &old, &plan),
                (None, None) => None,
            };
            let Some(mut running) = running else { continue };
            running.errands.spawn_keepers(running.gate, plan.dns_refresh);
            running.errands.spawn_rotation();
            match (was_there, fate) {
                (false, _) => changes.added.push(one.name.clone()),
                (true, Fate::Changes) => changes.changed.push(one.name.clone()),
                (true, _) => {}
            }
            self.running.push(running);
        }
        changes.removed = old.iter().map(|running| running.plan.name.clone()).collect();
        let stayed = |plan: &Plan, other: &[String]| -> Vec<String> {
            names(plan)
                .into_iter()
                .filter(|name| other.contains(name))
                .collect()
        };
        changes.order = stayed(&plan, &before) != stayed(&self.plan, &names(&plan));
        let fanouts = self.follow(rules, &plan);
        for running in old {
            self.control.see_off(running, fanouts.clone(), plan.drain_timeout);
        }
        self.plan = plan;
        self.publish();
        changes
    }

    /// Starts a new destination on the core that owns fewest; `old` are those that have no place in the new plan yet.
    fn start_destination(&mut self, opened: Opened, old: &[Running], plan: &Plan) -> Option<Running> {
        let mut owned = vec![0; plan.cores];
        let mut count = |one: &Running| {
            if let Some(count) = one.core().and_then(|core| owned.get_mut(core)) {
                *count += 1;
            }
        };
        self.running.iter().chain(old).for_each(&mut count);
        self.control.each_leaving(&mut count);
        let core = plan.writer_cores().min_by_key(|core| owned[*core])?;
        let (running, setup) = self.begin_destination(opened, core, plan)?;
        if let Some(setup) = setup {
            self.control.tell(core, Order::Start(setup));
        }
        Some(running)
    }

    /// Sends pushes to those who run now. Returns the fanouts of before that somebody may still hold.
    fn follow(&mut self, rules: LabelRules, plan: &Plan) -> Vec<Weak<Fanout>> {
        let course = course_of(&self.running, rules, plan);
        self.fanouts.retain(|fanout| fanout.strong_count() > 0);
        let before = self.fanouts.clone();
        self.fanouts.push(Arc::downgrade(&course.fanout));
        for core in 0..plan.inbound_cores() {
            self.control.tell(core, Order::Follow(course.for_another_core()));
        }
        if let Some(house) = &self.house {
            house.follow(course);
        }
        before
    }
}

/// Opens what changes or starts, on a thread that may wait for disks.
async fn open(plan: Arc<Plan>, fates: Vec<Fate>) -> anyhow::Result<Vec<Option<Opened>>> {
    let opening = tokio::task::spawn_blocking(move || {
        let each = plan.destinations.iter().zip(fates);
        each.map(|(one, fate)| match fate {
            Fate::Stays => Ok(None),
            fate => Opened::open(one, &plan, fate == Fate::Starts, &|_| ()).map(Some),
        })
        .collect()
    });
    opening.await.context("opening was interrupted")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_in_a_sentence() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        for (changes, text) in [
            (Changes::default(), "nothing is different"),
            (
                Changes {
                    added: names(&["a", "b"]),
                    removed: names(&["c"]),
                    ..Changes::default()
                },
                "added a, b; removed c",
            ),
            (
                Changes {
                    changed: names(&["a"]),
                    labels: true,
                    order: true,
                    ..Changes::default()
                },
                "changed a; changed labels and rules; changed the order",
            ),
        ] {
            assert_eq!(changes.to_string(), text);
        }
    }
}
