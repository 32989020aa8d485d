//! What a sink has counted: one set of cells per core, summed when someone asks.
//!
//! A cell has one writer, its core, so counting is a relaxed load and store. Not responsible for deciding what counts as
//! what (`connection.rs` and `verify.rs` do).

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::verify::{Corruption, Route};

/// Services a core counts by name; further ones share [`Stats::services_other`].
const SERVICES_MAX: usize = 1000;
/// Statuses 100 to 599.
const STATUS_COUNT: usize = 500;

/// A counter that one core writes and anyone reads.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`. Only the owning core may call it.
    pub fn add(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one core has counted. The fields mean what the fields of [`Stats`] mean. Aligned so that no two cores write to one
/// cache line (128 bytes: lines are fetched in pairs).
#[derive(Debug)]
#[repr(align(128))]
#[allow(missing_docs)]
pub struct CoreStats {
    pub requests: Count,
    pub bytes: Count,
    pub profiles: Count,
    pub routes: [Count; 3],
    pub statuses: Box<[Count; STATUS_COUNT]>,
    pub verified: Count,
    pub unmarked: Count,
    pub unchecked: Count,
    pub duplicates: Count,
    pub corrupt: [Count; Corruption::ALL.len()],
    pub resets: Count,
    pub stalls: Count,
    pub lies: Count,
    pub refused: Count,
    pub truncated: Count,
    pub tls_failures: Count,
    pub unrecorded: Count,
    pub connections_accepted: Count,
    pub connections_closed: Count,
    services: Mutex<HashMap<String, u64>>,
    services_other: Count,
}

impl Default for CoreStats {
    fn default() -> Self {
        Self {
            requests: Count::default(),
            bytes: Count::default(),
            profiles: Count::default(),
            routes: Default::default(),
            statuses: Box::new(std::array::from_fn(|_| Count::default())),
            verified: Count::default(),
            unmarked: Count::default(),
            unchecked: Count::default(),
            duplicates: Count::default(),
            corrupt: Default::default(),
            resets: Count::default(),
            stalls: Count::default(),
            lies: Count::default(),
            refused: Count::default(),
            truncated: Count::default(),
            tls_failures: Count::default(),
            unrecorded: Count::default(),
            connections_accepted: Count::default(),
            connections_closed: Count::default(),
            services: Mutex::default(),
            services_other: Count::default(),
        }
    }
}

impl CoreStats {
    /// Counts an answer.
    pub fn count_status(&self, status: u16) {
        if let Some(count) = self.statuses.get(usize::from(status).wrapping_sub(100)) {
            count.add(1);
        }
    }

    /// Counts `profiles` of a service.
    pub fn count_service(&self, service: &str, profiles: u64) {
        let mut services = self
            .services
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(count) = services.get_mut(service) {
            *count += profiles;
        } else if services.len() < SERVICES_MAX {
            services.insert(service.to_owned(), profiles);
        } else {
            self.services_other.add(profiles);
        }
    }
}

/// The sums over all cores, as `GET /stats` answers them. At rest they are exact.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests read to their end.
    pub requests: u64,
    /// Bytes of their bodies as they came (compressed where they were, chunk framing left out).
    pub bytes: u64,
    /// Profiles in accepted requests (answered with a 2xx). Counted with `--verify` only.
    pub profiles: u64,
    /// Requests by route: `ingest`, `push`, `other`.
    pub routes: BTreeMap<&'static str, u64>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Accepted profiles by service (`service_name`, else the application's name). Counted with `--verify` only.
    pub services: BTreeMap<String, u64>,
    /// Accepted profiles of services beyond the first 1000 of a core.
    pub services_other: u64,
    /// Accepted profiles whose mark was found and matched their bytes.
    pub verified: u64,
    /// Accepted profiles without a mark (not made by `pyrotee load`).
    pub unmarked: u64,
    /// Accepted marked profiles that found no place in the memory of seen ids.
    pub unchecked: u64,
    /// Accepted profiles whose id had been accepted before.
    pub duplicates: u64,
    /// Requests whose content was wrong, whatever they were answered.
    pub corrupt: u64,
    /// The same by what was wrong.
    pub corrupt_by: BTreeMap<&'static str, u64>,
    /// Connections reset instead of an answer (`--reset`).
    pub resets: u64,
    /// Requests held by `--stall`, whether or not they were answered later.
    pub stalls: u64,
    /// Answers that were wrong on purpose (`--lie`).
    pub lies: u64,
    /// Requests refused because of their framing or size.
    pub refused: u64,
    /// Connections that ended inside a request.
    pub truncated: u64,
    /// TLS handshakes that failed.
    pub tls_failures: u64,
    /// Requests that `--record` could not write down (a full disk).
    pub unrecorded: u64,
    /// Connections open now.
    pub connections_open: u64,
    /// Connections accepted since the start.
    pub connections_accepted: u64,
}

impl Stats {
    /// Sums the cores.
    pub fn sum<'a>(cores: impl IntoIterator<Item = &'a CoreStats>) -> Self {
        let mut sum = Self::default();
        for core in cores {
            for (total, count) in [
                (&mut sum.requests, &core.requests),
                (&mut sum.bytes, &core.bytes),
                (&mut sum.profiles, &core.profiles),
                (&mut sum.services_other, &core.services_other),
                (&mut sum.verified, &core.verified),
                (&mut sum.unmarked, &core.unmarked),
                (&mut sum.unchecked, &core.unchecked),
                (&mut sum.duplicates, &core.duplicates),
                (&mut sum.resets, &core.resets),
                (&mut sum.stalls, &core.stalls),
                (&mut sum.lies, &core.lies),
                (&mut sum.refused, &core.refused),
                (&mut sum.truncated, &core.truncated),
                (&mut sum.tls_failures, &core.tls_failures),
                (&mut sum.unrecorded, &core.unrecorded),
                (&mut sum.connections_accepted, &core.connections_accepted),
            ] {
                *total += count.get();
            }
            let (accepted, closed) = (core.connections_accepted.get(), core.connections_closed.get());
            sum.connections_open += accepted.saturating_sub(closed);
            for (route, count) in Route::ALL.iter().zip(&core.routes) {
                *sum.routes.entry(route.name()).or_default() += count.get();
            }
            for (corruption, count) in Corruption::ALL.iter().zip(&core.corrupt) {
                *sum.corrupt_by.entry(corruption.name()).or_default() += count.get();
                sum.corrupt += count.get();
            }
            for (status, count) in (100..)
                .zip(core.statuses.iter())
                .filter(|(_, count)| count.get() > 0)
            {
                *sum.statuses.entry(status).or_default() += count.get();
            }
            let services = core
                .services
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            for (service, count) in services.iter() {
                *sum.services.entry(service.clone()).or_default() += count;
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_summed_and_services_bounded() {
        let cores = [CoreStats::default(), CoreStats::default()];
        for core in &cores {
            core.requests.add(2);
            core.connections_accepted.add(3);
            core.connections_closed.add(1);
            core.count_status(200);
            core.count_status(99);
            core.count_status(600);
            for service in 0..SERVICES_MAX + 5 {
                core.count_service(&format!("service-{service}"), 2);
            }
        }
        let sum = Stats::sum(&cores);
        assert_eq!(
            (sum.requests, sum.connections_open, sum.services_other),
            (4, 4, 20)
        );
        assert_eq!(sum.statuses, BTreeMap::from([(200, 2)]));
        assert_eq!(sum.services.len(), SERVICES_MAX);
        assert_eq!(sum.services["service-0"], 4);
    }
}
