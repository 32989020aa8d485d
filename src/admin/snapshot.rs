//! What `/-/status` tells and the status page shows, taken at one moment. Numbers only; how they are written for a person
//! is the page's work.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::history::{Curve, History, Point, attempts};
use super::metrics::{books, received_bytes, refusals, requests};
use super::{Listed, Observed};
use super::{process, refusal};
use crate::fanout::gate::{Amount, Books};
use crate::fanout::status::LastError;
use crate::fanout::{DestinationId, DropReason, SpoolLink};
use crate::runtime::clock::Mono;
use crate::runtime::phase::Phase;

/// A destination that has had nothing to do for this long is idle.
const IDLE_AFTER: Duration = Duration::from_secs(60);

/// The gateway at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Of pyrotee.
    pub version: &'static str,
    /// `serving`, `draining`, `giving_up` or `leaving`.
    pub phase: &'static str,
    /// Whether pushes are taken, as `/-/ready` says it.
    pub ready: bool,
    /// `io_uring` or `epoll`.
    pub engine: String,
    /// Why that one.
    pub engine_reason: String,
    /// Milliseconds since the unix epoch.
    pub now_unix_ms: u64,
    /// Since the process started.
    pub uptime_seconds: f64,
    /// Where clients push to.
    pub listen: Vec<SocketAddr>,
    /// Whether they speak TLS there.
    pub tls: bool,
    /// Client connections, open and at most.
    pub connections: Share,
    /// Memory that bodies hold, in bytes, now and at most.
    pub memory: Share,
    /// Of the whole process; `null` where Linux does not say.
    pub resident_bytes: Option<u64>,
    /// Body bytes received from clients.
    pub received_bytes: u64,
    /// Over all destinations.
    pub totals: Totals,
    /// In the order of the plan, then those that leave.
    pub destinations: Vec<Destination>,
    /// What clients were told.
    pub answers: Vec<Answers>,
    /// What was not accepted, and why.
    pub refusals: Vec<Refusals>,
    /// Pushes accepted per second, one number per second of the last two minutes.
    #[serde(skip)]
    pub accepted_curve: Vec<f64>,
    /// Parcels delivered per second, likewise, over all destinations.
    #[serde(skip)]
    pub delivered_curve: Vec<f64>,
}

/// How much of a limit is used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Share {
    /// Now.
    pub used: u64,
    /// At most.
    pub limit: u64,
}

/// Sums over all destinations.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Totals {
    /// Pushes accepted; each is a parcel for every destination.
    pub accepted_pushes: u64,
    /// Per second, over ten seconds.
    pub accepted_pushes_per_second: f64,
    /// Parcels delivered.
    pub delivered_parcels: u64,
    /// Per second, over ten seconds.
    pub delivered_parcels_per_second: f64,
    /// Parcels queued or in flight.
    pub held_parcels: u64,
    /// Body bytes of those, counted for each destination.
    pub held_bytes: u64,
    /// Age of the oldest queued parcel.
    pub oldest_age_seconds: f64,
    /// Parcels given up.
    pub dropped_parcels: u64,
    /// Of those, within the last minute.
    pub dropped_parcels_last_minute: u64,
}

/// How a destination does, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It answers.
    Up,
    /// It would, as far as we know: nothing to send for a minute.
    Idle,
    /// It does not answer; parcels wait.
    Down,
    /// It refuses our credentials; parcels are dropped.
    AuthFailing,
}

/// One destination.
#[derive(Clone, Debug, Serialize)]
pub struct Destination {
    /// Which one of this process.
    #[serde(skip)]
    pub id: DestinationId,
    /// Its name.
    pub name: String,
    /// `http` or `file`.
    pub kind: &'static str,
    /// Whether a reload has removed it, and it only gets what waits for it.
    pub leaving: bool,
    /// In a word.
    pub state: State,
    /// Parcels taken in.
    pub accepted_parcels: u64,
    /// Body bytes taken in.
    pub accepted_bytes: u64,
    /// What it has.
    pub delivered: Amount,
    /// What was given up, by reason; reasons without any are left out.
    pub dropped: BTreeMap<&'static str, Amount>,
    /// Parcels given up within the last minute.
    pub dropped_parcels_last_minute: u64,
    /// Parcels queued or waiting for a retry.
    pub queued_parcels: u64,
    /// Parcels being sent.
    pub in_flight_parcels: u64,
    /// How many may be.
    pub window_parcels: u64,
    /// How many that may become (`inflight`); `null` for an archive, which writes one after the other.
    pub window_parcels_max: Option<u64>,
    /// How often that was cut down on trouble.
    pub window_cuts: u64,
    /// Body bytes queued and in flight in memory, now and at most.
    pub queue_bytes: Share,
    /// What is on disk; `null` without a spool.
    pub spool: Option<Spool>,
    /// Age of the oldest queued parcel.
    pub oldest_age_seconds: f64,
    /// Age at which parcels are dropped.
    pub max_age_seconds: f64,
    /// Open connections.
    pub connections: u64,
    /// Requests that ended.
    pub attempts: u64,
    /// Of those, not the first for their parcel.
    pub retries: u64,
    /// Parcels taken in per second, over ten seconds.
    pub accepted_parcels_per_second: f64,
    /// Parcels delivered per second, likewise.
    pub delivered_parcels_per_second: f64,
    /// Body bytes delivered per second, over ten seconds.
    pub delivered_bytes_per_second: f64,
    /// Single attempts of the last minute.
    pub latency: Latency,
    /// When it last accepted a parcel, in milliseconds since the unix epoch.
    pub last_success_unix_ms: Option<u64>,
    /// The most recent trouble.
    pub last_error: Option<LastError>,
    /// Parcels delivered per second, one number per second of the last two minutes.
    #[serde(skip)]
    pub curve: Vec<f64>,
}

/// A destination's spool.
#[derive(Clone, Debug, Serialize)]
pub struct Spool {
    /// Parcels that are on disk and not in memory.
    pub parcels: u64,
    /// Size of its files, now and at most.
    pub disk_bytes: Share,
    /// Segment files that could not be read, or not by this version: left for the next start.
    pub aside_segments: u64,
    /// Damaged places found in its files.
    pub damages: u64,
    /// Why it takes nothing now, if so.
    pub trouble: Option<String>,
}

/// Upper bounds of the buckets that the quantiles lie in.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    /// Attempts looked at.
    pub count: u64,
    /// Half were no slower; `null` when beyond [`Latency::seconds_max`], or without attempts.
    pub p50_seconds: Option<f64>,
    /// 99 in 100 were no slower; likewise.
    pub p99_seconds: Option<f64>,
    /// The last bound.
    pub seconds_max: f64,
}

/// Requests answered alike.
#[derive(Clone, Debug, Serialize)]
pub struct Answers {
    /// As in `pyroscope_receive_http_request_duration_seconds`.
    pub route: &'static str,
    /// HTTP method.
    pub method: &'static str,
    /// HTTP status.
    pub status: u16,
    /// How many.
    pub count: u64,
    /// How long they took on average.
    pub mean_seconds: f64,
}

/// Requests refused alike.
#[derive(Clone, Debug, Serialize)]
pub struct Refusals {
    /// As in `pyrotee_inbound_refused_requests_total`.
    pub reason: &'static str,
    /// How many.
    pub count: u64,
    /// A sentence.
    pub meaning: &'static str,
}

impl Snapshot {
    /// Reads everything.
    pub fn take(observed: &Observed, history: &History, now: Mono, unix_now: Duration) -> Self {
        let in_force = observed.in_force.load();
        let listed = in_force.destinations.iter();
        let destinations: Vec<Destination> = listed
            .map(|listed| Destination::take(listed, history, now))
            .collect();
        let phase = observed.phase();
        let ids: Vec<DestinationId> = destinations.iter().map(|one| one.id).collect();
        let curves = |curve| ids.iter().map(move |id| history.curve(*id, curve));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            phase: phase_label(phase),
            ready: phase == Phase::Serving,
            engine: observed.engine.engine.to_string(),
            engine_reason: observed.engine.reason.clone(),
            now_unix_ms: u64::try_from(unix_now.as_millis()).unwrap_or(u64::MAX),
            uptime_seconds: observed.uptime().as_secs_f64(),
            listen: in_force.plan.listen.clone(),
            tls: in_force.plan.tls.is_some(),
            connections: Share {
                used: observed.connections.open() as u64,
                limit: observed.connections.limit() as u64,
            },
            memory: Share {
                used: observed.memory.used(),
                limit: observed.memory.limit(),
            },
            resident_bytes: process::resident_bytes(),
            received_bytes: received_bytes(observed),
            totals: Totals::sum(&destinations),
            answers: requests(observed)
                .iter()
                .map(|requests| {
                    let count = requests.durations.count();
                    Answers {
                        route: requests.route,
                        method: requests.method,
                        status: requests.status,
                        count,
                        #[allow(clippy::cast_precision_loss)] // for display
                        mean_seconds: requests.durations.seconds / count.max(1) as f64,
                    }
                })
                .collect(),
            refusals: refusals(observed)
                .into_iter()
                .map(|(reason, count)| Refusals {
                    reason,
                    count,
                    meaning: refusal::meaning(reason),
                })
                .collect(),
            accepted_curve: combine(curves(Curve::Accepted), f64::max),
            delivered_curve: combine(curves(Curve::Delivered), |sum, one| sum + one),
            destinations,
        }
    }
}

impl Totals {
    fn sum(destinations: &[Destination]) -> Self {
        let mut totals = Self::default();
        for one in destinations {
            // Every destination takes every push, so the largest count is that of the pushes; a reading taken a moment
            // earlier lags by a few.
            totals.accepted_pushes = totals.accepted_pushes.max(one.accepted_parcels);
            totals.accepted_pushes_per_second = totals
                .accepted_pushes_per_second
                .max(one.accepted_parcels_per_second);
            totals.delivered_parcels += one.delivered.parcels;
            totals.delivered_parcels_per_second += one.delivered_parcels_per_second;
            totals.held_parcels += one.queued_parcels + one.in_flight_parcels;
            totals.held_bytes += one.queue_bytes.used;
            totals.oldest_age_seconds = totals.oldest_age_seconds.max(one.oldest_age_seconds);
            totals.dropped_parcels += one.dropped_parcels();
            totals.dropped_parcels_last_minute += one.dropped_parcels_last_minute;
        }
        totals
    }
}

impl Destination {
    fn take(listed: &Listed, history: &History, now: Mono) -> Self {
        let Listed { gate, plan, .. } = listed;
        let id = gate.id;
        let books = books(gate);
        let status = &gate.status;
        let point = Point::read(&books, status);
        let recent = history.recent_attempts(id, now, attempts(status));
        let is_busy = books.held_parcels > 0
            || history.recent_within(id, now, IDLE_AFTER, &point, |point| {
                point.accepted + point.delivered
            }) > 0;
        Self {
            id,
            name: gate.name.clone(),
            kind: if plan.is_http() { "http" } else { "file" },
            leaving: listed.is_leaving,
            state: match (status.is_auth_failing(), status.is_up(), is_busy) {
                (true, _, _) => State::AuthFailing,
                (false, false, _) => State::Down,
                (false, true, false) => State::Idle,
                (false, true, true) => State::Up,
            },
            accepted_parcels: books.accepted_parcels,
            accepted_bytes: books.accepted_bytes,
            delivered: books.delivered,
            dropped: DropReason::ALL
                .iter()
                .map(|reason| (reason.label(), books.dropped[reason.index()]))
                .filter(|(_, amount)| amount.parcels > 0)
                .collect(),
            dropped_parcels_last_minute: history.recent(id, now, &point, |point| point.dropped),
            queued_parcels: books.queued_parcels(),
            in_flight_parcels: books.in_flight,
            window_parcels: status.window(),
            window_parcels_max: plan.is_http().then_some(plan.inflight as u64),
            window_cuts: status.window_cuts().iter().sum(),
            queue_bytes: Share {
                used: books.held_bytes.saturating_sub(books.spooled_bytes),
                limit: gate.bytes_max(),
            },
            spool: gate.spool().map(|link| Spool::take(link, &books)),
            oldest_age_seconds: status.oldest_age(now).as_secs_f64(),
            max_age_seconds: plan.max_age.as_secs_f64(),
            connections: status.connections(),
            attempts: status.attempts(),
            retries: status.retries(),
            accepted_parcels_per_second: history.rate(id, now, &point, |point| point.accepted),
            delivered_parcels_per_second: history.rate(id, now, &point, |point| point.delivered),
            delivered_bytes_per_second: history.rate(id, now, &point, |point| point.delivered_bytes),
            latency: Latency {
                count: recent.count(),
                p50_seconds: recent.quantile(0.5),
                p99_seconds: recent.quantile(0.99),
                seconds_max: recent.buckets.last().map_or(0.0, |(bound, _)| *bound),
            },
            last_success_unix_ms: status.last_success_unix_ms(),
            last_error: status.last_error(),
            curve: history.curve(id, Curve::Delivered),
        }
    }

    /// Parcels given up, for whatever reason.
    pub fn dropped_parcels(&self) -> u64 {
        self.dropped.values().map(|amount| amount.parcels).sum()
    }
}

impl Spool {
    fn take(link: &SpoolLink, books: &Books) -> Self {
        let counts = link.counts();
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Self {
            parcels: books.spooled_parcels,
            disk_bytes: Share {
                used: read(&counts.disk_bytes),
                limit: read(&counts.disk_bytes_max),
            },
            aside_segments: read(&counts.aside_segments),
            damages: read(&counts.damages),
            trouble: link.trouble(),
        }
    }
}

fn phase_label(phase: Phase) -> &'static str {
    match phase {
        Phase::Serving => "serving",
        Phase::Draining => "draining",
        Phase::GivingUp => "giving_up",
        Phase::Leaving => "leaving",
    }
}

/// Curves of several destinations made one, second by second.
fn combine(curves: impl Iterator<Item = Vec<f64>>, with: fn(f64, f64) -> f64) -> Vec<f64> {
    curves
        .reduce(|sum, curve| {
            sum.iter()
                .zip(&curve)
                .map(|(sum, one)| with(*sum, *one))
                .collect()
        })
        .unwrap_or_default()
}
