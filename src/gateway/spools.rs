//! The spools of all destinations: opened before the gates, started with them, finished after the cores.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

use crate::config::{AckPolicy, DestinationPlan, Overflow, Plan, SpoolOrphans, SpoolPlan};
use crate::fanout::{DropReason, Gate, SpoolLink, StoreBounds};
use crate::runtime::clock;
use crate::runtime::pool::MemoryBudget;
use crate::runtime::reserved::Reserved;
use crate::spool::keeper::{self, Keeper, Rules};
use crate::spool::{self, Lock, RealDisk, Recovery, Store, StoreLimits, Sums, folder_name};

/// Of a queue limit, the part that may wait to be written to disk besides. A quarter is many times what a disk takes in
/// the time of one sync.
const WAITING_SHARE: u64 = 4;

/// How often it is looked whether a disk hangs.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Locks the folder of spools, if there is one, and looks at what is there for nobody. Tells what it reads.
///
/// # Errors
/// The folder cannot be had, another process has it, or it holds a backlog that the plan does not want to leave.
pub fn lock(plan: &Plan, tell: &dyn Fn(String)) -> anyhow::Result<Option<Lock>> {
    let Some(spool) = &plan.spool else { return Ok(None) };
    let lock = spool::lock(&spool.directory).context("--spool")?;
    settle_orphans(spool, plan, tell)?;
    Ok(Some(lock))
}

/// A destination's spool, read, and a thread for it.
pub struct OpenedSpool {
    folder: PathBuf,
    store: Store<RealDisk>,
    recovery: Recovery,
    /// Why nothing can be written there, if so.
    read_only: Option<io::Error>,
    thread: Reserved,
}

/// A destination's spool at work.
pub struct SpoolThread {
    link: &'static SpoolLink,
    thread: JoinHandle<()>,
}

impl OpenedSpool {
    /// Opens the spool of `one`, where the plan gives it one. Nobody else may have it open. Tells how far it is read.
    ///
    /// # Errors
    /// Its folder cannot be read, or no thread can be started.
    pub fn open(one: &DestinationPlan, plan: &Plan, tell: &dyn Fn(String)) -> anyhow::Result<Option<Self>> {
        let (Some(spool), Some(limit)) = (&plan.spool, one.spool_limit) else {
            return Ok(None);
        };
        let folder = spool.directory.join(folder_name(&one.name));
        let context = || {
            format!(
                "--spool: destination '{}': cannot use {}, which must be a folder that this user may read and write",
                one.name,
                folder.display()
            )
        };
        let disk = RealDisk::create(&folder).with_context(context)?;
        let read_only = disk.writable().err();
        let (store, recovery) = Store::open_telling(disk, StoreLimits::of(limit), |number, of| {
            tell(format!(
                "reading the spool of '{}', segment {number} of {of}",
                one.name
            ));
        })
        .with_context(context)?;
        let thread =
            Reserved::new("spool").with_context(|| format!("--spool: destination '{}'", one.name))?;
        Ok(Some(Self {
            folder,
            store,
            recovery,
            read_only,
            thread,
        }))
    }

    /// Finishes a destination's gate with its spool, whose thread starts now.
    pub fn start(
        self,
        gate: Gate,
        one: &DestinationPlan,
        plan: &Plan,
        memory: &Arc<MemoryBudget>,
    ) -> (&'static Gate, Option<SpoolThread>) {
        let Some(spool) = &plan.spool else {
            return (Box::leak(Box::new(gate)), None);
        };
        let link = SpoolLink::new(plan.ack == AckPolicy::Stored, gate.bytes_max() / WAITING_SHARE)
            .keeping_refused(spool.keeps_refused);
        keeper::tell_damages(&one.name, &link, &self.recovery.damages);
        if let Some(error) = self.read_only {
            tracing::warn!(
                destination = %one.name,
                folder = %self.folder.display(),
                %error,
                "the spool cannot be written as it is; what it holds is sent, and may be sent again by the next start"
            );
        }
        let found = self.recovery.totals.left;
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
        let keeper = Keeper::new(gate, self.store, memory.clone(), rules, clock);
        let started = gate.spool().zip(keeper).map(|(link, keeper)| SpoolThread {
            link,
            thread: keeper::start(keeper, self.thread),
        });
        (gate, started)
    }
}

impl SpoolThread {
    /// A keeper that is what a test makes of its end of the link.
    #[cfg(test)]
    pub(super) fn played(link: &'static SpoolLink, thread: JoinHandle<()>) -> Self {
        Self { link, thread }
    }

    /// Goes on with other limits.
    pub fn change(&self, gate: &Gate, one: &DestinationPlan) {
        let disk_bytes_max = one.spool_limit.unwrap_or_default();
        let bounds = StoreBounds {
            disk_bytes_max,
            max_age: one.max_age,
        };
        self.link.set_bounds(gate.bytes_max() / WAITING_SHARE, bounds);
    }

    /// Parcels on disk that have not ended.
    pub fn left_parcels(&self) -> u64 {
        self.link.counts().left_parcels.load(Ordering::Relaxed)
    }

    /// Nothing more comes back into memory: a shutdown has begun.
    pub fn stop_reading(&self) {
        self.link.stop_reading();
    }

    /// Nothing new comes: what is in memory gets to the disk, as far as that goes.
    pub fn take_the_rest(&self, reason: DropReason) {
        self.link.set_last(reason);
    }

    /// Ends the thread, which stores what it has been given first.
    pub fn finish(&self) {
        self.link.finish();
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Tells when the disk of `gate`'s spool hangs, which its own thread cannot do, and when that is over.
pub async fn watch(gate: &'static Gate, link: &'static SpoolLink) {
    let mut is_told = false;
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let is_stalled = link.stalled_for(clock::now()).is_some();
        if is_stalled && !is_told {
            tracing::error!(
                destination = %gate.name,
                waiting_bytes = link.waiting_bytes(),
                "the spool's disk does not answer; new profiles go on in memory, those that it was given wait for it"
            );
        } else if is_told && !is_stalled {
            tracing::info!(destination = %gate.name, "the spool's disk answers again");
        }
        is_told = is_stalled;
    }
}

/// Deletes what is left of a destination, whose spool nobody has open. Returns what that was.
///
/// # Errors
/// It cannot be read or deleted.
pub fn delete(spool: &SpoolPlan, destination: &str) -> anyhow::Result<Sums> {
    let all = spool::destinations(&spool.directory).context("--spool: cannot list the folder")?;
    let Some(orphan) = all.into_iter().find(|one| one.destination == destination) else {
        return Ok(Sums::default());
    };
    let context = || format!("--spool-orphans drop: '{destination}'");
    let left = spool::summary(&RealDisk::existing(&orphan.folder), false).with_context(context)?;
    spool::delete(&orphan).with_context(context)?;
    Ok(left.left)
}

/// Looks for spools of destinations that the plan does not know.
fn settle_orphans(spool: &SpoolPlan, plan: &Plan, tell: &dyn Fn(String)) -> anyhow::Result<()> {
    for orphan in spool::destinations(&spool.directory).context("--spool: cannot list the folder")? {
        let name = &orphan.destination;
        if plan.has(name) {
            continue;
        }
        let context = || format!("--spool: what is left of '{name}' cannot be read");
        tell(format!(
            "reading what the spool holds for '{name}', which is no longer given"
        ));
        let seen = match spool::summary(&RealDisk::existing(&orphan.folder), false) {
            Err(error) if spool.orphans == SpoolOrphans::Keep => {
                tracing::warn!(destination = %name, %error, "what the spool holds for a destination that is no longer given cannot be read");
                continue;
            }
            seen => seen.with_context(context)?,
        };
        let (parcels, bytes, unread) = (seen.left.parcels, seen.left.bytes, seen.unread());
        if unread > 0 {
            tracing::warn!(destination = %name, segments = unread, "part of what the spool holds for a destination that is no longer given cannot be read");
        }
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
            SpoolOrphans::Refuse if parcels + unread > 0 => anyhow::bail!(
                "--spool-orphans refuse: the spool holds {parcels} profiles ({bytes} bytes), and {unread} segments \
                 that cannot be read, for '{name}', which is no longer a destination; give it again, or see pyrotee spool drain and drop"
            ),
            SpoolOrphans::Refuse => {}
        }
    }
    Ok(())
}
