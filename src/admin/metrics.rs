//! Every metric, one row each: what it is called, what it means, and how it is read. A new metric is a row here and a row
//! in `docs/metrics.md`; a test compares the two with a scrape.
//!
//! Names: `pyroscope_*` are Alloy's, for dashboards that exist (WIRE.md 4.6, 5.4); `process_*` are what every Prometheus
//! client exposes; ours are `pyrotee_<area>_<noun>_<unit>`, counters with `_total`. The value of `endpoint` and
//! `destination` is the destination's name, never its URL.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::process;
use super::text::{Encoder, Family, Format, Kind, Samples, Value};
use super::{InForce, Observed};
use crate::fanout::gate::{Amount, Books};
use crate::fanout::status::Cut;
use crate::fanout::{DropReason, Gate, SpoolLink, Status};
use crate::inbound::tally::{Closed, Requests};
use crate::runtime::clock;
use crate::runtime::descriptors::{self, Side};
use crate::runtime::phase::Phase;

/// Readings of a gate that are taken until one balances. Cells are read one after the other while cores go on; on an idle
/// or moderately busy gate the first or second reading balances.
const READINGS_MAX: usize = 16;

/// One metric.
#[derive(Debug)]
pub struct Row {
    /// What is known without its values.
    pub family: Family,
    read: Read,
}

/// How a row's values are read.
#[derive(Debug)]
enum Read {
    /// All at once.
    All(fn(&Seen<'_>, &mut Samples<'_>)),
    /// One value per destination, its name the only label; `None` leaves the series out.
    Each(fn(&Gate, &Books) -> Option<Value>),
    /// The same for destinations with a spool; without one the series is left out.
    EachSpool(fn(&SpoolLink, &Books) -> Value),
    /// One value per destination and drop reason.
    EachReason(fn(&Amount) -> u64),
}

/// What all rows of one scrape are read from, so that they agree.
struct Seen<'a> {
    observed: &'a Observed,
    in_force: Arc<InForce>,
    gates: Vec<(&'static Gate, Books)>,
}

/// Writes all metrics.
pub fn scrape(observed: &Observed, format: Format) -> String {
    let in_force = observed.in_force.load_full();
    let gates = in_force.destinations.iter().map(|listed| listed.gate);
    let seen = Seen {
        observed,
        gates: gates.map(|gate| (gate, books(gate))).collect(),
        in_force,
    };
    let mut encoder = Encoder::new(format);
    for row in &ROWS {
        row.write(&seen, &mut encoder.family(&row.family));
    }
    encoder.finish()
}

/// Reads a gate's books, preferring a reading that balances.
pub fn books(gate: &Gate) -> Books {
    let mut books = gate.books();
    for _ in 1..READINGS_MAX {
        if books.balance() {
            break;
        }
        books = gate.books();
    }
    books
}

/// The request histograms of all cores, merged by their labels and in their order.
pub fn requests(observed: &Observed) -> Vec<Requests> {
    let mut places: HashMap<(&str, &str, u16), usize> = HashMap::new();
    let mut merged: Vec<Requests> = Vec::new();
    for requests in observed.tallies.iter().flat_map(|tally| tally.requests()) {
        let labels = (requests.route, requests.method, requests.status);
        match places.get(&labels) {
            Some(place) => merged[*place].durations.merge(&requests.durations),
            None => {
                places.insert(labels, merged.len());
                merged.push(requests);
            }
        }
    }
    merged.sort_by_key(|requests| (requests.route, requests.method, requests.status));
    merged
}

/// Refusals of all cores by reason.
pub fn refusals(observed: &Observed) -> BTreeMap<&'static str, u64> {
    let mut sum = BTreeMap::new();
    for (reason, count) in observed
        .tallies
        .iter()
        .flat_map(|tally| tally.refused_by_reason())
    {
        *sum.entry(reason).or_default() += count;
    }
    sum
}

/// Body bytes received by all cores.
pub fn received_bytes(observed: &Observed) -> u64 {
    observed.tallies.iter().map(|tally| tally.received_bytes()).sum()
}

/// Client connections that have ended, over all cores, by reason.
pub fn closed_connections(observed: &Observed) -> [(&'static str, u64); Closed::ALL.len()] {
    let mut sum = Closed::ALL.map(|(_, label)| (label, 0));
    for tally in &observed.tallies {
        for (place, (_, count)) in sum.iter_mut().zip(tally.closed_connections()) {
            place.1 += count;
        }
    }
    sum
}

/// Every metric, in the order of a scrape.
pub static ROWS: [Row; 66] = [
    row(
        "pyrotee_build_info",
        Kind::Info,
        "",
        &["version"],
        "Which pyrotee this is. Always 1.",
        Read::All(|_, out| out.add(&[env!("CARGO_PKG_VERSION")], 1u64)),
    ),
    row(
        "pyrotee_engine_info",
        Kind::Info,
        "",
        &["engine", "reason"],
        "What moves the bytes, io_uring or epoll, and why that one was taken. Always 1.",
        Read::All(|seen, out| {
            let engine = &seen.observed.engine;
            out.add(&[&engine.engine.to_string(), &engine.reason], 1u64);
        }),
    ),
    row(
        "pyrotee_process_ready",
        Kind::Gauge,
        "",
        &[],
        "1 while pushes are taken, 0 from the first shutdown signal on, as /-/ready says it.",
        Read::All(|seen, out| out.add(&[], seen.observed.phase() == Phase::Serving)),
    ),
    row(
        "pyrotee_process_uptime_seconds",
        Kind::Gauge,
        "seconds",
        &[],
        "Time since the process started.",
        Read::All(|seen, out| out.add(&[], seconds(seen.observed.uptime()))),
    ),
    row(
        "pyrotee_config_last_reload_successful",
        Kind::Gauge,
        "",
        &[],
        "1 while the configuration last asked for is in force, at the start or by a reload; 0 after a reload \
         that was refused.",
        Read::All(|seen, out| out.add(&[], seen.observed.reloads.is_successful())),
    ),
    row(
        "pyrotee_config_last_reload_success_timestamp_seconds",
        Kind::Gauge,
        "seconds",
        &[],
        "When a configuration was last put in force, in seconds since the unix epoch.",
        Read::All(|seen, out| {
            let unix_ms = seen.observed.reloads.succeeded_unix_ms();
            out.add(&[], seconds(Duration::from_millis(unix_ms)));
        }),
    ),
    row(
        "pyrotee_config_reloads_total",
        Kind::Counter,
        "reloads",
        &["result"],
        "Reloads of --config, applied or refused. A refused one changes nothing.",
        Read::All(|seen, out| {
            for (result, count) in seen.observed.reloads.counts() {
                out.add(&[result], count);
            }
        }),
    ),
    row(
        "pyrotee_memory_used_bytes",
        Kind::Gauge,
        "bytes",
        &[],
        "Memory that bodies hold, in flight and queued, shared bodies counted once, the unused \
         ends of their buffers included.",
        Read::All(|seen, out| out.add(&[], seen.observed.memory.used())),
    ),
    row(
        "pyrotee_memory_limit_bytes",
        Kind::Gauge,
        "bytes",
        &[],
        "What pyrotee_memory_used_bytes may reach (--memory-limit). A push beyond it is answered \
         503 and counted as refused with reason memory_limit.",
        Read::All(|seen, out| out.add(&[], seen.observed.memory.limit())),
    ),
    row(
        "pyrotee_inbound_body_received_bytes_total",
        Kind::Counter,
        "bytes",
        &[],
        "Body bytes received from clients, before decompression, those of refused pushes \
         included.",
        Read::All(|seen, out| out.add(&[], received_bytes(seen.observed))),
    ),
    row(
        "pyrotee_inbound_body_copied_bytes_total",
        Kind::Counter,
        "bytes",
        &["site"],
        "Body bytes copied in user space, by the place in the code. On the plain path there are \
         none.",
        Read::All(|seen, out| {
            copied_bytes(seen.observed)
                .iter()
                .for_each(|(site, bytes)| out.add(&[site], *bytes))
        }),
    ),
    row(
        "pyrotee_inbound_refused_requests_total",
        Kind::Counter,
        "requests",
        &["reason"],
        "Requests and connections that were not accepted, by reason. Nothing of them is in a \
         queue, and the client was told. A reason appears with its first refusal.",
        Read::All(|seen, out| {
            refusals(seen.observed)
                .iter()
                .for_each(|(reason, count)| out.add(&[reason], *count))
        }),
    ),
    row(
        "pyrotee_inbound_closed_connections_total",
        Kind::Counter,
        "connections",
        &["reason"],
        "Client connections that were served and have ended, by reason.",
        Read::All(|seen, out| {
            closed_connections(seen.observed)
                .iter()
                .for_each(|(reason, count)| out.add(&[reason], *count))
        }),
    ),
    row(
        "pyrotee_process_descriptor_shortages_total",
        Kind::Counter,
        "shortages",
        &["side"],
        "How often there was no file descriptor for a client that wanted to be accepted (inbound) \
         or for a connection to a destination (outbound). Both were tried again.",
        Read::All(|_, out| {
            Side::ALL
                .iter()
                .for_each(|side| out.add(&[side.label()], descriptors::shortages(*side)))
        }),
    ),
    row(
        "pyrotee_destination_accepted_parcels_total",
        Kind::Counter,
        "parcels",
        &["destination"],
        "Parcels taken in for the destination, one per accepted push. At rest, exactly: accepted \
         = delivered + dropped (all reasons) + held. And held = queued + in flight.",
        Read::Each(|_, books| Some(books.accepted_parcels.into())),
    ),
    row(
        "pyrotee_destination_accepted_bytes_total",
        Kind::Counter,
        "bytes",
        &["destination"],
        "Body bytes taken in for the destination. At rest, exactly: accepted = delivered + \
         dropped (all reasons) + held.",
        Read::Each(|_, books| Some(books.accepted_bytes.into())),
    ),
    row(
        "pyrotee_destination_delivered_parcels_total",
        Kind::Counter,
        "parcels",
        &["destination"],
        "Parcels that the destination has accepted.",
        Read::Each(|_, books| Some(books.delivered.parcels.into())),
    ),
    row(
        "pyrotee_destination_delivered_bytes_total",
        Kind::Counter,
        "bytes",
        &["destination"],
        "Body bytes that the destination has accepted.",
        Read::Each(|_, books| Some(books.delivered.bytes.into())),
    ),
    row(
        "pyrotee_destination_dropped_parcels_total",
        Kind::Counter,
        "parcels",
        &["destination", "reason"],
        "Parcels given up, by reason. They are lost for this destination.",
        Read::EachReason(|amount| amount.parcels),
    ),
    row(
        "pyrotee_destination_dropped_bytes_total",
        Kind::Counter,
        "bytes",
        &["destination", "reason"],
        "Body bytes given up, by reason. They are lost for this destination.",
        Read::EachReason(|amount| amount.bytes),
    ),
    row(
        "pyrotee_destination_held_parcels",
        Kind::Gauge,
        "parcels",
        &["destination"],
        "Parcels accepted and not ended yet: queued, waiting for a retry, or in flight.",
        Read::Each(|_, books| Some(books.held_parcels.into())),
    ),
    row(
        "pyrotee_destination_held_bytes",
        Kind::Gauge,
        "bytes",
        &["destination"],
        "Body bytes accepted and not ended yet: queued, waiting for a retry, or in flight. A body \
         that several destinations hold counts for each of them here.",
        Read::Each(|_, books| Some(books.held_bytes.into())),
    ),
    row(
        "pyrotee_destination_queued_parcels",
        Kind::Gauge,
        "parcels",
        &["destination"],
        "Parcels queued or waiting for a retry.",
        Read::Each(|_, books| Some(books.queued_parcels().into())),
    ),
    row(
        "pyrotee_destination_in_flight_parcels",
        Kind::Gauge,
        "parcels",
        &["destination"],
        "Parcels being sent or awaiting their answer.",
        Read::Each(|_, books| Some(books.in_flight.into())),
    ),
    row(
        "pyrotee_destination_queue_limit_bytes",
        Kind::Gauge,
        "bytes",
        &["destination"],
        "What pyrotee_destination_held_bytes may reach in memory (queue-limit). Beyond it the oldest parcel \
         goes to the spool if there is one, else it is dropped with reason overflow, or pushes are refused (--overflow).",
        Read::Each(|gate, _| Some(gate.bytes_max().into())),
    ),
    row(
        "pyrotee_destination_oldest_age_seconds",
        Kind::Gauge,
        "seconds",
        &["destination"],
        "How long the oldest queued parcel has waited; 0 with none. At max-age it is dropped with \
         reason too_old.",
        Read::Each(|gate, _| Some(seconds(gate.status.oldest_age(clock::now())).into())),
    ),
    row(
        "pyrotee_spool_parcels",
        Kind::Gauge,
        "parcels",
        &["destination"],
        "Parcels that are on disk and not in memory; they are part of the held and the queued ones.",
        Read::EachSpool(|_, books| books.spooled_parcels.into()),
    ),
    row(
        "pyrotee_spool_disk_bytes",
        Kind::Gauge,
        "bytes",
        &["destination"],
        "Size of the spool's files.",
        Read::EachSpool(|link, _| load(&link.counts().disk_bytes)),
    ),
    row(
        "pyrotee_spool_disk_limit_bytes",
        Kind::Gauge,
        "bytes",
        &["destination"],
        "What pyrotee_spool_disk_bytes may reach (spool-limit). Beyond it the oldest parcels are dropped with reason \
         overflow, or new ones stay in memory (--overflow refuse).",
        Read::EachSpool(|link, _| load(&link.counts().disk_bytes_max)),
    ),
    row(
        "pyrotee_spool_waiting_bytes",
        Kind::Gauge,
        "bytes",
        &["destination"],
        "Memory of parcels that wait to be written to the spool.",
        Read::EachSpool(|link, _| link.waiting_bytes().into()),
    ),
    row(
        "pyrotee_spool_up",
        Kind::Gauge,
        "",
        &["destination"],
        "1 while the spool takes profiles; 0 while its disk fails or has not answered for 5 s, and profiles go on in memory.",
        Read::EachSpool(|link, _| link.is_well().into()),
    ),
    row(
        "pyrotee_spool_stored_parcels_total",
        Kind::Counter,
        "parcels",
        &["destination"],
        "Parcels written to the spool.",
        Read::EachSpool(|link, _| load(&link.counts().stored_parcels)),
    ),
    row(
        "pyrotee_spool_restored_parcels_total",
        Kind::Counter,
        "parcels",
        &["destination"],
        "Parcels read back from the spool to be delivered.",
        Read::EachSpool(|link, _| load(&link.counts().restored_parcels)),
    ),
    row(
        "pyrotee_spool_recovered_parcels_total",
        Kind::Counter,
        "parcels",
        &["destination"],
        "Of the accepted parcels, those that were found in the spool at the start: an earlier process had accepted them.",
        Read::EachSpool(|_, books| books.recovered_parcels.into()),
    ),
    row(
        "pyrotee_spool_damages_total",
        Kind::Counter,
        "damages",
        &["destination"],
        "Places in the spool's files that were not what had been written there, most of them a profile each. The log \
         names file and offset.",
        Read::EachSpool(|link, _| load(&link.counts().damages)),
    ),
    row(
        "pyrotee_spool_aside_segments",
        Kind::Gauge,
        "segments",
        &["destination"],
        "Segment files that the start could not read, or that a newer version has written: whatever they hold is neither \
         counted nor sent, and left for the next start. The log names them.",
        Read::EachSpool(|link, _| load(&link.counts().aside_segments)),
    ),
    row(
        "pyrotee_spool_syncs_total",
        Kind::Counter,
        "syncs",
        &["destination"],
        "Times that the spool was synced to the disk itself.",
        Read::EachSpool(|link, _| load(&link.counts().syncs)),
    ),
    row(
        "pyrotee_spool_failures_total",
        Kind::Counter,
        "failures",
        &["destination"],
        "Writes, syncs and reads of the spool that failed.",
        Read::EachSpool(|link, _| load(&link.counts().failures)),
    ),
    row(
        "pyrotee_destination_attempts_total",
        Kind::Counter,
        "attempts",
        &["destination"],
        "Requests that ended, with or without an answer, the first and the repeated ones.",
        Read::Each(|gate, _| Some(gate.status.attempts().into())),
    ),
    row(
        "pyrotee_destination_connections",
        Kind::Gauge,
        "connections",
        &["destination"],
        "Open connections to the destination.",
        Read::Each(|gate, _| Some(gate.status.connections().into())),
    ),
    row(
        "pyrotee_destination_window_parcels",
        Kind::Gauge,
        "parcels",
        &["destination"],
        "Parcels that may be in flight at a time now. It opens with good answers and shuts on \
         trouble; 1 while a destination that is down is probed, 0 between probes.",
        Read::Each(|gate, _| Some(gate.status.window().into())),
    ),
    row(
        "pyrotee_destination_window_limit_parcels",
        Kind::Gauge,
        "parcels",
        &["destination"],
        "What pyrotee_destination_window_parcels may reach (inflight).",
        Read::All(|seen, out| {
            let plans = seen.in_force.destinations.iter().map(|listed| &listed.plan);
            for plan in plans.filter(|plan| plan.is_http()) {
                out.add(&[&plan.name], plan.inflight as u64);
            }
        }),
    ),
    row(
        "pyrotee_destination_window_cuts_total",
        Kind::Counter,
        "cuts",
        &["destination", "reason"],
        "How often the window was shut on trouble, by reason.",
        Read::All(|seen, out| {
            for (gate, _) in &seen.gates {
                for (cut, count) in Cut::ALL.iter().zip(gate.status.window_cuts()) {
                    out.add(&[&gate.name, cut.label()], count);
                }
            }
        }),
    ),
    row(
        "pyrotee_destination_up",
        Kind::Gauge,
        "",
        &["destination"],
        "1 while the destination answers; 0 after several failures in a row, until a probe \
         succeeds.",
        Read::Each(|gate, _| Some(gate.status.is_up().into())),
    ),
    row(
        "pyrotee_destination_leaving",
        Kind::Gauge,
        "",
        &["destination"],
        "1 while a destination that a reload has removed is given what waits for it. After that its series \
         are gone.",
        Read::All(|seen, out| {
            for listed in &seen.in_force.destinations {
                out.add(&[&listed.gate.name], listed.is_leaving);
            }
        }),
    ),
    row(
        "pyrotee_destination_auth_failing",
        Kind::Gauge,
        "",
        &["destination"],
        "1 while its latest final answer is 401, 403, or 407 of its proxy: the credentials want \
         mending.",
        Read::Each(|gate, _| Some(gate.status.is_auth_failing().into())),
    ),
    row(
        "pyrotee_destination_secrets_failing",
        Kind::Gauge,
        "",
        &["destination"],
        "1 while one of its secret files cannot be used, and the secret read last stays in use, or its \
         token endpoint gives no access token.",
        Read::Each(|gate, _| Some(gate.status.is_secrets_failing().into())),
    ),
    row(
        "pyrotee_destination_last_success_timestamp_seconds",
        Kind::Gauge,
        "seconds",
        &["destination"],
        "When it last accepted a parcel, in seconds since the unix epoch. Absent before the \
         first.",
        Read::Each(|gate, _| {
            gate.status
                .last_success_unix_ms()
                .map(|ms| seconds(Duration::from_millis(ms)).into())
        }),
    ),
    row(
        "pyroscope_receive_http_tcp_connections",
        Kind::Gauge,
        "connections",
        &["protocol"],
        "Open client connections.",
        Read::All(|seen, out| out.add(&["http"], seen.observed.connections.open() as u64)),
    ),
    row(
        "pyroscope_receive_http_tcp_connections_limit",
        Kind::Gauge,
        "",
        &["protocol"],
        "Most client connections at a time (--conn-limit).",
        Read::All(|seen, out| out.add(&["http"], seen.observed.connections.limit() as u64)),
    ),
    row(
        "pyroscope_receive_http_request_duration_seconds",
        Kind::Histogram,
        "seconds",
        &["method", "route", "status_code", "ws"],
        "From the first byte of a request to its answer, by what was asked and answered.",
        Read::All(|seen, out| {
            for requests in requests(seen.observed) {
                let labels = [
                    requests.method,
                    requests.route,
                    &requests.status.to_string(),
                    "false",
                ];
                out.histogram(&labels, &requests.durations);
            }
        }),
    ),
    row(
        "pyroscope_receive_http_debuginfo_downstream_calls_total",
        Kind::Counter,
        "calls",
        &["method", "result"],
        "Debuginfo requests passed through to the first server in --to, by what became of them.",
        Read::All(|seen, out| {
            let mut calls: BTreeMap<(&str, &str), u64> = BTreeMap::new();
            for (method, result, count) in seen.observed.tallies.iter().flat_map(|tally| tally.calls()) {
                *calls.entry((method, result)).or_default() += count;
            }
            for ((method, result), count) in calls {
                out.add(&[method, result], count);
            }
        }),
    ),
    row(
        "pyroscope_relabel_profiles_processed",
        Kind::Counter,
        "profiles",
        &[],
        "Label sets that relabel rules (--relabel) were applied to: one per /ingest, one per series \
         of a Push.",
        Read::All(|seen, out| {
            let (processed, _) = relabelled(seen.observed);
            out.add(&[], processed);
        }),
    ),
    row(
        "pyroscope_relabel_profiles_written",
        Kind::Counter,
        "profiles",
        &[],
        "Label sets that relabel rules kept.",
        Read::All(|seen, out| {
            let (processed, dropped) = relabelled(seen.observed);
            out.add(&[], processed - dropped);
        }),
    ),
    row(
        "pyroscope_relabel_profiles_dropped",
        Kind::Counter,
        "profiles",
        &[],
        "Label sets that a relabel rule dropped. Their clients were answered 200.",
        Read::All(|seen, out| {
            let (_, dropped) = relabelled(seen.observed);
            out.add(&[], dropped);
        }),
    ),
    row(
        "pyroscope_write_sent_bytes_total",
        Kind::Counter,
        "bytes",
        &["endpoint"],
        "Profile bytes delivered: bodies of /ingest, raw profiles of Push.",
        Read::Each(|_, books| Some(books.delivered.profile_bytes.into())),
    ),
    row(
        "pyroscope_write_sent_profiles_total",
        Kind::Counter,
        "profiles",
        &["endpoint"],
        "Profiles delivered: one per /ingest, the samples of a Push.",
        Read::Each(|_, books| Some(books.delivered.profiles.into())),
    ),
    row(
        "pyroscope_write_dropped_bytes_total",
        Kind::Counter,
        "bytes",
        &["endpoint"],
        "Profile bytes given up, for whatever reason.",
        Read::Each(|_, books| Some(books.dropped_total().profile_bytes.into())),
    ),
    row(
        "pyroscope_write_dropped_profiles_total",
        Kind::Counter,
        "profiles",
        &["endpoint"],
        "Profiles given up, for whatever reason.",
        Read::Each(|_, books| Some(books.dropped_total().profiles.into())),
    ),
    row(
        "pyroscope_write_retries_total",
        Kind::Counter,
        "retries",
        &["endpoint"],
        "Attempts that were not the first for their parcel.",
        Read::Each(|gate, _| Some(gate.status.retries().into())),
    ),
    row(
        "pyroscope_write_latency",
        Kind::Histogram,
        "seconds",
        &["endpoint", "type"],
        "How long deliveries take: *_downstream is one attempt, *_endpoint is from accepted to \
         its end with all waits and retries.",
        Read::All(|seen, out| {
            for (gate, _) in &seen.gates {
                for (route, span, label) in Status::LATENCIES {
                    out.histogram(&[&gate.name, label], &gate.status.latency(route, span));
                }
            }
        }),
    ),
    row(
        "process_start_time_seconds",
        Kind::Gauge,
        "seconds",
        &[],
        "When the process started, in seconds since the unix epoch.",
        Read::All(|seen, out| out.add(&[], seconds(Duration::from_millis(seen.observed.started_unix_ms)))),
    ),
    row(
        "process_cpu_seconds_total",
        Kind::Counter,
        "seconds",
        &[],
        "User and system time of all threads.",
        Read::All(|_, out| out.add(&[], process::cpu_seconds())),
    ),
    row(
        "process_resident_memory_bytes",
        Kind::Gauge,
        "bytes",
        &[],
        "Resident memory.",
        Read::All(|_, out| out.add_if(&[], process::resident_bytes())),
    ),
    row(
        "process_open_fds",
        Kind::Gauge,
        "fds",
        &[],
        "Open file descriptors.",
        Read::All(|_, out| out.add_if(&[], process::open_fds())),
    ),
    row(
        "process_max_fds",
        Kind::Gauge,
        "fds",
        &[],
        "The limit of open file descriptors.",
        Read::All(|_, out| out.add_if(&[], process::max_fds())),
    ),
];

const fn row(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
) -> Row {
    Row {
        family: Family {
            name,
            kind,
            unit,
            labels,
            help,
        },
        read,
    }
}

impl Row {
    fn write(&self, seen: &Seen<'_>, out: &mut Samples<'_>) {
        match self.read {
            Read::All(read) => read(seen, out),
            Read::Each(read) => {
                for (gate, books) in &seen.gates {
                    out.add_if(&[&gate.name], read(gate, books));
                }
            }
            Read::EachSpool(read) => {
                for (gate, books) in &seen.gates {
                    out.add_if(&[&gate.name], gate.spool().map(|link| read(link, books)));
                }
            }
            Read::EachReason(read) => {
                for (gate, books) in &seen.gates {
                    for reason in DropReason::ALL {
                        out.add(
                            &[&gate.name, reason.label()],
                            read(&books.dropped[reason.index()]),
                        );
                    }
                }
            }
        }
    }
}

/// Label sets that relabel rules were applied to, and those they dropped, of all cores.
fn relabelled(observed: &Observed) -> (u64, u64) {
    let sets = observed.tallies.iter().map(|tally| tally.relabelled_sets());
    sets.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

fn copied_bytes(observed: &Observed) -> BTreeMap<&'static str, u64> {
    let mut sites = BTreeMap::new();
    for (site, bytes) in observed.tallies.iter().flat_map(|tally| tally.copied_bytes()) {
        *sites.entry(site).or_default() += bytes;
    }
    sites
}

fn load(count: &AtomicU64) -> Value {
    count.load(Ordering::Relaxed).into()
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
