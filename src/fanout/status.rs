//! What an operator wants to know of one destination beyond its books: is it up, and if not, why not.
//!
//! Written by the destination's writer core alone (the last error under a lock that is taken only on errors), read by the
//! admin page.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::profile::route::Route;
use crate::runtime::clock::{self, Mono};
use crate::runtime::histogram::{Histogram, Reading, add};

/// Buckets of `pyroscope_write_latency`, in seconds: Prometheus' default ones, as Alloy has them (WIRE.md 4.6).
const LATENCY_BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The state of one destination.
#[derive(Debug)]
pub struct Status {
    up: AtomicBool,
    auth_failing: AtomicBool,
    secrets_failing: AtomicBool,
    connections: AtomicU64,
    attempts: AtomicU64,
    retries: AtomicU64,
    oldest: AtomicU64,
    window: AtomicU64,
    cuts: [AtomicU64; Cut::ALL.len()],
    last_success: AtomicU64,
    last_error: Mutex<Option<LastError>>,
    latency: [Histogram<11>; 4],
}

/// The most recent trouble.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LastError {
    /// When, in milliseconds since the unix epoch.
    pub unix_ms: u64,
    /// What happened. Never a URL, a header value or a body.
    pub text: String,
}

/// The `type` label of `pyroscope_write_latency`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// From accepted to its end, waits and retries included.
    Endpoint,
    /// One attempt.
    Downstream,
}

/// Why a destination's window was shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Even the fastest answers took long.
    Slow,
    /// It answered 429, 503 or the like.
    Overloaded,
    /// It did not answer.
    Silent,
    /// This process had no file descriptor left for one more connection.
    NoDescriptors,
}

impl Cut {
    /// Every reason, in the order of its index.
    pub const ALL: [Self; 4] = [Self::Slow, Self::Overloaded, Self::Silent, Self::NoDescriptors];

    /// The `reason` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Overloaded => "overloaded",
            Self::Silent => "silent",
            Self::NoDescriptors => "no_descriptors",
        }
    }
}

impl Default for Status {
    fn default() -> Self {
        Self {
            up: AtomicBool::new(true),
            auth_failing: AtomicBool::new(false),
            secrets_failing: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            attempts: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            oldest: AtomicU64::new(Mono::NEVER.0),
            window: AtomicU64::new(0),
            cuts: [const { AtomicU64::new(0) }; Cut::ALL.len()],
            last_success: AtomicU64::new(Mono::NEVER.0),
            last_error: Mutex::new(None),
            latency: [const { Histogram::new(&LATENCY_BOUNDS) }; 4],
        }
    }
}

impl Status {
    /// Every combination of latency labels.
    pub const LATENCIES: [(Route, Span, &'static str); 4] = [
        (Route::Ingest, Span::Endpoint, "ingest_endpoint"),
        (Route::Ingest, Span::Downstream, "ingest_downstream"),
        (Route::Push, Span::Endpoint, "push_endpoint"),
        (Route::Push, Span::Downstream, "push_downstream"),
    ];

    /// Goes on counting where `past` has stopped: the status of a destination of the same name that has ended.
    pub(super) fn continue_from(&self, past: &Self) {
        let cells = [
            (&self.attempts, &past.attempts),
            (&self.retries, &past.retries),
            (&self.last_success, &past.last_success),
        ];
        for (to, from) in cells.into_iter().chain(self.cuts.iter().zip(&past.cuts)) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        *self.lock() = past.last_error();
        for (to, from) in self.latency.iter().zip(&past.latency) {
            to.continue_from(from);
        }
    }

    /// The destination is asked in another way from now on: what was said of it before counts no more.
    pub fn start_over(&self) {
        self.set_up(true);
        self.auth_failing.store(false, Ordering::Relaxed);
    }

    /// Notes whether the destination is up.
    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }

    /// Whether it answers.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether its latest answer was 401, 403 or 407.
    pub fn is_auth_failing(&self) -> bool {
        self.auth_failing.load(Ordering::Relaxed)
    }

    /// Notes a refused credential.
    pub fn set_auth_failing(&self) {
        self.auth_failing.store(true, Ordering::Relaxed);
    }

    /// Whether one of its secrets cannot be had anew.
    pub fn is_secrets_failing(&self) -> bool {
        self.secrets_failing.load(Ordering::Relaxed)
    }

    /// Notes whether one of its secrets cannot be had anew. Written by the control plane.
    pub fn set_secrets_failing(&self, failing: bool) {
        self.secrets_failing.store(failing, Ordering::Relaxed);
    }

    /// Notes a delivery.
    pub fn delivered(&self, now: Mono) {
        self.last_success.store(now.0, Ordering::Relaxed);
        self.auth_failing.store(false, Ordering::Relaxed);
    }

    /// When something was last delivered, in milliseconds since the unix epoch.
    pub fn last_success_unix_ms(&self) -> Option<u64> {
        self.last_success().map(clock::unix_ms)
    }

    /// Whether something was delivered within the second before `now`: a destination that is up and does not deliver is
    /// stalled.
    pub fn has_delivered_lately(&self, now: Mono) -> bool {
        self.last_success()
            .is_some_and(|at| now.since(at) < Duration::from_secs(1))
    }

    fn last_success(&self) -> Option<Mono> {
        Some(Mono(self.last_success.load(Ordering::Relaxed))).filter(|at| *at != Mono::NEVER)
    }

    /// Notes trouble.
    pub fn failed(&self, text: String) {
        let unix_ms = u64::try_from(clock::unix_now().as_millis()).unwrap_or(u64::MAX);
        *self.lock() = Some(LastError { unix_ms, text });
    }

    /// The most recent trouble.
    pub fn last_error(&self) -> Option<LastError> {
        self.lock().clone()
    }

    /// Notes an attempt, and whether it was a retry.
    pub fn attempted(&self, retry: bool) {
        add(&self.attempts, 1);
        add(&self.retries, u64::from(retry));
    }

    /// Attempts made.
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Attempts that were not the first for their parcel.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Notes a connection opened (`1`) or closed (`-1`).
    pub fn connection(&self, change: i64) {
        add(&self.connections, change.cast_unsigned());
    }

    /// Connections open now.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Notes when the oldest waiting parcel was accepted.
    pub fn set_waiting(&self, oldest: Option<Mono>) {
        self.oldest
            .store(oldest.unwrap_or(Mono::NEVER).0, Ordering::Relaxed);
    }

    /// Notes how many requests may be in flight, and how often that was cut down.
    pub fn set_window(&self, window: usize, cuts: [u64; Cut::ALL.len()]) {
        self.window.store(window as u64, Ordering::Relaxed);
        for (cell, count) in self.cuts.iter().zip(cuts) {
            cell.store(count, Ordering::Relaxed);
        }
    }

    /// How long the oldest waiting parcel has waited.
    pub fn oldest_age(&self, now: Mono) -> Duration {
        match self.oldest.load(Ordering::Relaxed) {
            at if at == Mono::NEVER.0 => Duration::ZERO,
            at => now.since(Mono(at)),
        }
    }

    /// Requests that may be in flight now.
    pub fn window(&self) -> u64 {
        self.window.load(Ordering::Relaxed)
    }

    /// How often the window was shut, in the order of [`Cut::ALL`].
    pub fn window_cuts(&self) -> [u64; Cut::ALL.len()] {
        Cut::ALL.map(|cut| self.cuts[cut as usize].load(Ordering::Relaxed))
    }

    /// Notes how long something took.
    pub fn observe(&self, route: Route, span: Span, took: Duration) {
        self.latency[latency_index(route, span)].observe(took);
    }

    /// Reads one latency histogram.
    pub fn latency(&self, route: Route, span: Span) -> Reading {
        self.latency[latency_index(route, span)].read()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<LastError>> {
        self.last_error
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn latency_index(route: Route, span: Span) -> usize {
    usize::from(route == Route::Push) * 2 + usize::from(span == Span::Downstream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_listed_in_the_order_of_their_index() {
        for (index, (route, span, _)) in Status::LATENCIES.iter().enumerate() {
            assert_eq!(latency_index(*route, *span), index);
        }
    }

    #[test]
    fn cuts_are_listed_in_the_order_of_their_index() {
        for (index, cut) in Cut::ALL.iter().enumerate() {
            assert_eq!(*cut as usize, index);
        }
    }

    #[test]
    fn connections_go_up_and_down() {
        let status = Status::default();
        status.connection(1);
        status.connection(1);
        status.connection(-1);
        assert_eq!(status.connections(), 1);
    }
}
