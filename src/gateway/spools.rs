//! The spools of all destinations: opened before the gates, started with them, finished after the cores.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;

use super::{LAST_WRITES_WAIT, wait_until};
use crate::config::{AckPolicy, DestinationPlan, Overflow, Plan, SpoolOrphans, SpoolPlan};
use crate::fanout::{Gate, SpoolLink};
use crate::runtime::clock;
use crate::runtime::pool::MemoryBudget;
use crate::spool::keeper::{self, Keeper, Rules};
use crate::spool::{self, Lock, RealDisk, Store, StoreLimits, folder_name};

/// Of a queue limit, the part that may wait to be written to disk besides. A quarter is many times what a disk takes in
/// the time of one sync.
const WAITING_SHARE: u64 = 4;

/// The spools of a gateway, and what keeps other processes out of them.
#[derive(Default)]
pub struct Spools {
    running: Vec<(&'static SpoolLink, JoinHandle<()>)>,
    _lock: Option<Lock>,
}

impl Spools {
    /// Locks the folder and looks at what is there for nobody.
    ///
    /// # Errors
    /// The folder cannot be had, another process has it, or it holds a backlog that the plan does not want to leave.
    pub fn open(plan: &Plan) -> anyhow::Result<Self> {
        let Some(spool) = &plan.spool else {
            return Ok(Self::default());
        };
        let lock = spool::lock(&spool.directory).context("--spool")?;
        settle_orphans(spool, plan)?;
        Ok(Self {
            running: Vec::new(),
            _lock: Some(lock),
        })
    }

    /// Finishes a destination's gate: with its spool, where it has one, whose thread starts now.
    ///
    /// # Errors
    /// Its folder cannot be read, or no thread can be started.
    pub fn start(
        &mut self,
        gate: Gate,
        one: &DestinationPlan,
        plan: &Plan,
        memory: &Arc<MemoryBudget>,
    ) -> anyhow::Result<&'static Gate> {
        let (Some(spool), Some(limit)) = (&plan.spool, one.spool_limit) else {
            return Ok(Box::leak(Box::new(gate)));
        };
        let context = || format!("--spool: destination '{}'", one.name);
        let disk = RealDisk::create(&spool.directory.join(folder_name(&one.name))).with_context(context)?;
        let (store, recovery) = Store::open(disk, StoreLimits::of(limit)).with_context(context)?;
        let link = SpoolLink::new(plan.ack == AckPolicy::Stored, gate.bytes_max() / WAITING_SHARE)
            .keeping_refused(spool.keeps_refused);
        keeper::tell_damages(&one.name, &link, &recovery.damages);
        let found = recovery.totals.left;
        if found.parcels > 0 {
            tracing::info!(destination = %one.name, parcels = found.parcels, bytes = found.bytes, "found in the spool");
        }
        let gate: &'static Gate = Box::leak(Box::new(gate.with_spool(link)));
        let rules = Rules {
            max_age: one.max_age,
            sync: spool.sync,
            drops_oldest: plan.overflow == Overflow::DropOldest,
        };
        let clock = (clock::wall(), clock::boot());
        let keeper = Keeper::new(gate, store, memory.clone(), rules, clock);
        if let (Some(link), Some(keeper)) = (gate.spool(), keeper) {
            let thread = keeper::start(keeper).with_context(context)?;
            self.running.push((link, thread));
        }
        Ok(gate)
    }

    /// Nothing more comes back into memory: a shutdown has begun, and what is on disk is the next start's.
    pub fn stop_reading(&self) {
        self.running.iter().for_each(|(link, _)| link.stop_reading());
    }

    /// Nothing new comes: what is in memory gets to the disk, as far as that goes.
    pub fn take_the_rest(&self) {
        self.running.iter().for_each(|(link, _)| link.set_last());
    }

    /// Ends the threads, each of which stores what it has been given first. A disk that hangs is waited for in vain.
    pub async fn finish(self) {
        self.running.iter().for_each(|(link, _)| link.finish());
        let deadline = clock::now().after(LAST_WRITES_WAIT);
        wait_until(deadline, || {
            self.running.iter().all(|(_, thread)| thread.is_finished())
        })
        .await;
    }
}

/// Looks for spools of destinations that the plan does not know.
fn settle_orphans(spool: &SpoolPlan, plan: &Plan) -> anyhow::Result<()> {
    for orphan in spool::destinations(&spool.directory).context("--spool: cannot list the folder")? {
        let name = &orphan.destination;
        if plan.destinations.iter().any(|one| one.name == *name) {
            continue;
        }
        let disk = RealDisk::existing(&orphan.folder);
        let context = || format!("--spool: what is left of '{name}' cannot be read");
        let left = spool::summary(&disk, false).with_context(context)?.left;
        let (parcels, bytes) = (left.parcels, left.bytes);
        match spool.orphans {
            SpoolOrphans::Keep if parcels > 0 => tracing::warn!(
                destination = %name,
                parcels,
                bytes,
                "the spool holds profiles for a destination that is no longer given; give it again, or see pyrotee spool"
            ),
            SpoolOrphans::Keep => {}
            SpoolOrphans::Drop => {
                spool::delete(&orphan).with_context(|| format!("--spool-orphans drop: '{name}'"))?;
                tracing::warn!(
                    destination = %name,
                    parcels,
                    bytes,
                    "the spool held profiles for a destination that is no longer given; they were deleted"
                );
            }
            SpoolOrphans::Refuse if parcels > 0 => anyhow::bail!(
                "--spool-orphans refuse: the spool holds {parcels} profiles ({bytes} bytes) for '{name}', which is no \
                 longer a destination; give it again, or see pyrotee spool drain and drop"
            ),
            SpoolOrphans::Refuse => {}
        }
    }
    Ok(())
}
