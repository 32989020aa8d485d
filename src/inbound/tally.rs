//! What one inbound core counts. It alone writes; the admin page reads and sums over cores.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::http::Method;
use crate::profile::route::Procedure;
use crate::runtime::histogram::{Histogram, Reading, add};

/// Buckets of `pyroscope_receive_http_request_duration_seconds`, as in Alloy (WIRE.md 5.4), in seconds.
const DURATION_BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0,
];
/// Statuses 100 to 599.
const STATUSES: usize = 500;

type ByStatus = [OnceLock<Box<Histogram<14>>>; STATUSES];

/// The `route` label (WIRE.md 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteLabel {
    /// `/ingest` and its alias.
    Ingest,
    /// The Push procedure.
    Push,
    /// Debuginfo, by procedure.
    Debuginfo(Procedure),
    /// 404, 405, redirects, and what never got as far as a route.
    Other,
}

impl RouteLabel {
    const ALL: [Self; 6] = [
        Self::Ingest,
        Self::Push,
        Self::Debuginfo(Procedure::ShouldInitiateUpload),
        Self::Debuginfo(Procedure::Upload),
        Self::Debuginfo(Procedure::UploadFinished),
        Self::Other,
    ];

    /// Its place in [`RouteLabel::ALL`].
    fn index(self) -> usize {
        match self {
            Self::Ingest => 0,
            Self::Push => 1,
            Self::Debuginfo(procedure) => 2 + procedure as usize,
            Self::Other => 5,
        }
    }

    /// The label's text.
    pub fn text(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Push => "push_v1_pusherservice",
            Self::Debuginfo(Procedure::ShouldInitiateUpload) => {
                "debuginfo_v1alpha1_debuginfoservice_shouldinitiateupload"
            }
            Self::Debuginfo(Procedure::Upload) => "debuginfo_v1alpha1_debuginfoservice_upload_gnu_build_id",
            Self::Debuginfo(Procedure::UploadFinished) => {
                "debuginfo_v1alpha1_debuginfoservice_uploadfinished"
            }
            Self::Other => "other",
        }
    }
}

/// The `method` label. Bounded: an invented method counts as `OTHER`.
const METHODS: [(Method, &str); 7] = [
    (Method::Get, "GET"),
    (Method::Head, "HEAD"),
    (Method::Post, "POST"),
    (Method::Put, "PUT"),
    (Method::Delete, "DELETE"),
    (Method::Options, "OPTIONS"),
    (Method::Other, "OTHER"),
];

/// Where body bytes were copied in user space. None of these is on the plain path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopySite {
    /// A pipelined request's first bytes, moved out of the buffer of the request before it.
    Pipelined,
    /// Chunks too small to be segments of their own, moved together in place.
    TinyChunks,
    /// A head that outgrew its buffer, and body bytes behind it.
    HeadGrowth,
    /// Bodies that came over HTTP/2: taken out of its frames.
    Http2,
}

impl CopySite {
    /// Every site, in the order of its index.
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::Pipelined, "pipelined"),
        (Self::TinyChunks, "tiny_chunks"),
        (Self::HeadGrowth, "head_growth"),
        (Self::Http2, "http2"),
    ];
}

/// Why a client connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The client closed it, or asked us to (`Connection: close`).
    Client,
    /// Nothing came for `--idle-timeout`.
    IdleTimeout,
    /// It was older than `--max-connection-age`.
    MaxAge,
    /// It was idle longest, and another client needed its place or its descriptor.
    MadeRoom,
    /// The gateway stops.
    Shutdown,
    /// A request that could not be read to its end, or an answer that could not be sent.
    Error,
}

impl Closed {
    /// Every reason, in the order of its index.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Client, "client"),
        (Self::IdleTimeout, "idle_timeout"),
        (Self::MaxAge, "max_age"),
        (Self::MadeRoom, "made_room"),
        (Self::Shutdown, "shutdown"),
        (Self::Error, "error"),
    ];
}

/// One core's counters.
#[derive(Debug)]
pub struct Tally {
    durations: [[OnceLock<Box<ByStatus>>; METHODS.len()]; RouteLabel::ALL.len()],
    calls: [[AtomicU64; 2]; Procedure::ALL.len()],
    received: AtomicU64,
    copied: [AtomicU64; CopySite::ALL.len()],
    closed: [AtomicU64; Closed::ALL.len()],
    relabelled: AtomicU64,
    relabel_dropped: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

/// One line of the request histogram.
#[derive(Clone, Debug)]
pub struct Requests {
    /// `method` label.
    pub method: &'static str,
    /// `route` label.
    pub route: &'static str,
    /// `status_code` label.
    pub status: u16,
    /// The durations.
    pub durations: Reading,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            durations: [const { [const { OnceLock::new() }; METHODS.len()] }; RouteLabel::ALL.len()],
            calls: [const { [const { AtomicU64::new(0) }; 2] }; Procedure::ALL.len()],
            received: AtomicU64::new(0),
            copied: [const { AtomicU64::new(0) }; CopySite::ALL.len()],
            closed: [const { AtomicU64::new(0) }; Closed::ALL.len()],
            relabelled: AtomicU64::new(0),
            relabel_dropped: AtomicU64::new(0),
            refused: Mutex::default(),
        }
    }
}

impl Tally {
    /// A request was answered.
    pub fn answered(&self, method: Method, route: RouteLabel, status: u16, took: Duration) {
        let method = METHODS
            .iter()
            .position(|(known, _)| *known == method)
            .unwrap_or(METHODS.len() - 1);
        let statuses = self.durations[route.index()][method]
            .get_or_init(|| Box::new([const { OnceLock::new() }; STATUSES]));
        let place = usize::from(status.clamp(100, 599) - 100);
        statuses[place]
            .get_or_init(|| Box::new(Histogram::new(&DURATION_BOUNDS)))
            .observe(took);
    }

    /// A request was refused. `reason` is one of a fixed set of labels.
    pub fn refused(&self, reason: &'static str) {
        *self.refusals().entry(reason).or_default() += 1;
    }

    /// A debuginfo request was passed through, or could not be.
    pub fn called(&self, procedure: Procedure, success: bool) {
        add(&self.calls[procedure as usize][usize::from(success)], 1);
    }

    /// Debuginfo requests: `method` label, `result` label, and how many.
    pub fn calls(&self) -> Vec<(&'static str, &'static str, u64)> {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let each = Procedure::ALL.iter().zip(&self.calls);
        each.flat_map(|((_, method), cells)| {
            [
                (*method, "failure", read(&cells[0])),
                (*method, "success", read(&cells[1])),
            ]
        })
        .collect()
    }

    /// Body bytes came in.
    pub fn received(&self, bytes: u64) {
        add(&self.received, bytes);
    }

    /// Body bytes were copied in user space.
    pub fn copied(&self, site: CopySite, bytes: usize) {
        add(&self.copied[site as usize], bytes as u64);
    }

    /// A connection that was served has ended.
    pub fn closed(&self, why: Closed) {
        add(&self.closed[why as usize], 1);
    }

    /// Connections that have ended, by reason.
    pub fn closed_connections(&self) -> [(&'static str, u64); Closed::ALL.len()] {
        Closed::ALL.map(|(why, label)| (label, self.closed[why as usize].load(Ordering::Relaxed)))
    }

    /// Relabel rules were applied to so many label sets, and dropped so many of those.
    pub fn relabelled(&self, processed: u32, dropped: u32) {
        add(&self.relabelled, u64::from(processed));
        add(&self.relabel_dropped, u64::from(dropped));
    }

    /// All request histograms with observations.
    pub fn requests(&self) -> Vec<Requests> {
        let mut lines = Vec::new();
        for route in RouteLabel::ALL {
            for ((_, method), statuses) in METHODS.iter().zip(&self.durations[route.index()]) {
                let Some(statuses) = statuses.get() else { continue };
                for (status, histogram) in (100..).zip(statuses.iter()) {
                    if let Some(histogram) = histogram.get() {
                        let durations = histogram.read();
                        lines.push(Requests {
                            method,
                            route: route.text(),
                            status,
                            durations,
                        });
                    }
                }
            }
        }
        lines
    }

    /// Refusals by reason.
    pub fn refused_by_reason(&self) -> BTreeMap<&'static str, u64> {
        self.refusals().clone()
    }

    /// Body bytes received.
    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Label sets that relabel rules were applied to, and how many of those were dropped; never more than the former.
    pub fn relabelled_sets(&self) -> (u64, u64) {
        let dropped = self.relabel_dropped.load(Ordering::Relaxed);
        let processed = self.relabelled.load(Ordering::Relaxed);
        (processed.max(dropped), dropped)
    }

    /// Body bytes copied, by site.
    pub fn copied_bytes(&self) -> [(&'static str, u64); CopySite::ALL.len()] {
        CopySite::ALL.map(|(site, label)| (label, self.copied[site as usize].load(Ordering::Relaxed)))
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_their_labels() {
        let tally = Tally::default();
        tally.answered(Method::Post, RouteLabel::Ingest, 200, Duration::from_millis(1));
        tally.answered(Method::Post, RouteLabel::Ingest, 200, Duration::from_millis(1));
        tally.answered(Method::Get, RouteLabel::Other, 404, Duration::from_millis(1));
        tally.answered(Method::Post, RouteLabel::Push, 999, Duration::from_millis(1));
        let lines: Vec<_> = tally
            .requests()
            .iter()
            .map(|r| (r.method, r.route, r.status, r.durations.count()))
            .collect();
        assert_eq!(
            lines,
            [
                ("POST", "ingest", 200, 2),
                ("POST", "push_v1_pusherservice", 599, 1),
                ("GET", "other", 404, 1)
            ]
        );
    }

    #[test]
    fn routes_and_procedures_are_listed_in_the_order_of_their_index() {
        for (index, route) in RouteLabel::ALL.iter().enumerate() {
            assert_eq!(route.index(), index);
        }
        for (index, (procedure, _)) in Procedure::ALL.iter().enumerate() {
            assert_eq!(*procedure as usize, index);
        }
    }

    #[test]
    fn sites_are_listed_in_the_order_of_their_index() {
        for (index, (site, _)) in CopySite::ALL.iter().enumerate() {
            assert_eq!(*site as usize, index);
        }
        for (index, (why, _)) in Closed::ALL.iter().enumerate() {
            assert_eq!(*why as usize, index);
        }
    }
}
