//! What a run found out: tallies per core, their sum, and how it is told (JSON and text).
//!
//! Not responsible for measuring (`connection.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::config::units;
use crate::runtime::clock::Mono;
use crate::runtime::tls::TlsFailure;

/// Latencies are told apart up to an hour; longer ones count as an hour.
const LATENCY_NANOS_MAX: u64 = 3_600_000_000_000;
/// Significant digits of a latency.
const LATENCY_DIGITS: u8 = 3;

/// Why a request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection.
    Connect,
    /// A connection, and no TLS on it.
    Tls,
    /// No complete answer in time.
    Timeout,
    /// The peer closed before its answer was complete.
    Closed,
    /// The connection broke (reset).
    Broken,
    /// Bytes that are no HTTP answer.
    BadAnswer,
}

impl Failure {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Closed,
        Self::Broken,
        Self::BadAnswer,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::Broken => "broken",
            Self::BadAnswer => "bad_answer",
        }
    }
}

/// Latencies with three significant digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        // The bounds are constants that the constructor takes.
        Self(
            Histogram::new_with_bounds(1, LATENCY_NANOS_MAX, LATENCY_DIGITS)
                .expect("1 <= 1 h and at most 5 digits"),
        )
    }
}

impl Latencies {
    /// Adds one; more than an hour counts as an hour.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanos);
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds, so none of the values is refused.
        let _ = self.0.add(&other.0);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that the share `quantile` (0 to 1) of all does not exceed; zero when there are none.
    pub fn at(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(quantile))
    }

    #[allow(clippy::cast_precision_loss)] // microseconds for people
    fn micros(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// What one core has counted. Without a `warmup` in its name a number is about requests that began after the warm-up.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Tally {
    pub latencies: Latencies,
    pub statuses: BTreeMap<u16, u64>,
    pub failures: [u64; Failure::ALL.len()],
    /// Why there was no TLS, the last time.
    pub tls_failure: Option<TlsFailure>,
    /// Bodies of requests answered with a 2xx.
    pub body_bytes: u64,
    /// When the last of the requests ended.
    pub ended: Mono,
    pub warmup_ok: u64,
    pub warmup_failed: u64,
    pub connections_opened: u64,
    /// Tickets released and not taken before the run was over.
    pub unsent: u64,
}

impl Tally {
    /// Nothing counted.
    pub fn new() -> Self {
        Self {
            latencies: Latencies::default(),
            statuses: BTreeMap::new(),
            failures: [0; Failure::ALL.len()],
            tls_failure: None,
            body_bytes: 0,
            ended: Mono(0),
            warmup_ok: 0,
            warmup_failed: 0,
            connections_opened: 0,
            unsent: 0,
        }
    }

    /// Counts one request of the measured time.
    pub fn count(&mut self, outcome: Result<u16, Failure>, latency: Duration, body_bytes: usize, now: Mono) {
        self.ended = self.ended.max(now);
        match outcome {
            Ok(status) => {
                *self.statuses.entry(status).or_default() += 1;
                if is_ok(status) {
                    self.latencies.record(latency);
                    self.body_bytes += body_bytes as u64;
                }
            }
            Err(failure) => self.failures[failure as usize] += 1,
        }
    }

    /// Adds what another core has counted.
    pub fn add(&mut self, other: &Self) {
        self.latencies.add(&other.latencies);
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (total, count) in self.failures.iter_mut().zip(other.failures) {
            *total += count;
        }
        self.tls_failure = other.tls_failure.or(self.tls_failure);
        self.body_bytes += other.body_bytes;
        self.ended = self.ended.max(other.ended);
        self.warmup_ok += other.warmup_ok;
        self.warmup_failed += other.warmup_failed;
        self.connections_opened += other.connections_opened;
        self.unsent += other.unsent;
    }
}

/// Whether a status is a success.
pub fn is_ok(status: u16) -> bool {
    (200..300).contains(&status)
}

/// What was run.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Setup {
    pub version: &'static str,
    pub url: String,
    /// `closed` or `open`.
    pub mode: &'static str,
    /// Requests per second, in an open loop.
    pub rate: Option<u64>,
    pub engine: String,
    pub cores: usize,
    pub connections: usize,
    pub connection_per_request: bool,
    pub route: &'static str,
    pub gzip: bool,
    /// Sizes asked for.
    pub sizes: Vec<SizePart>,
    pub services: usize,
    pub labels: usize,
    /// The run number in the marks of the profiles, hex.
    pub run: String,
    pub started_unix_ms: u64,
    pub warmup_seconds: f64,
}

/// A part of the body mix.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct SizePart {
    pub bytes: usize,
    pub weight: usize,
}

/// The report, as `--json` writes it.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    setup: Setup,
    /// Measured: from the end of the warm-up to the last answer.
    seconds: f64,
    /// Measured requests: `ok + failed`.
    requests: u64,
    /// Answered with a 2xx.
    pub ok: u64,
    /// Answered otherwise, or not at all; warm-up included in `warmup.failed` only.
    failed: u64,
    /// Open loop: due before the end and never begun, because no connection was free.
    pub unsent: u64,
    warmup: Warmup,
    requests_per_second: f64,
    body_bytes_per_second: f64,
    /// Bodies of the `ok` requests.
    body_bytes: u64,
    /// Of the `ok` requests. Open loop: from the moment a request was due.
    latency_us: Latency,
    statuses: BTreeMap<u16, u64>,
    errors: BTreeMap<&'static str, u64>,
    /// What the last of the `tls` errors was.
    tls_error: Option<String>,
    connections_opened: u64,
}

#[derive(Debug, Serialize)]
struct Warmup {
    ok: u64,
    failed: u64,
}

#[derive(Debug, Serialize)]
struct Latency {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    max: f64,
}

impl Report {
    /// Works out a report from the sum of all tallies. Measured time began at `begun`.
    #[allow(clippy::cast_precision_loss)] // rates and microseconds for people
    pub fn new(setup: Setup, tally: &Tally, begun: Mono) -> Self {
        let ok = tally
            .statuses
            .iter()
            .filter(|(status, _)| is_ok(**status))
            .map(|(_, count)| count)
            .sum::<u64>();
        let answered: u64 = tally.statuses.values().sum();
        let requests = answered + tally.failures.iter().sum::<u64>();
        let seconds = tally.ended.since(begun).as_secs_f64();
        let per_second = |count: u64| {
            if seconds > 0.0 {
                count as f64 / seconds
            } else {
                0.0
            }
        };
        let latency = &tally.latencies;
        Self {
            setup,
            seconds,
            requests,
            ok,
            failed: requests - ok,
            unsent: tally.unsent,
            warmup: Warmup {
                ok: tally.warmup_ok,
                failed: tally.warmup_failed,
            },
            requests_per_second: per_second(ok),
            body_bytes_per_second: per_second(tally.body_bytes),
            body_bytes: tally.body_bytes,
            latency_us: Latency {
                min: latency.0.min() as f64 / 1e3,
                mean: latency.0.mean() / 1e3,
                p50: latency.micros(0.5),
                p90: latency.micros(0.9),
                p99: latency.micros(0.99),
                p999: latency.micros(0.999),
                max: latency.0.max() as f64 / 1e3,
            },
            statuses: tally.statuses.clone(),
            errors: Failure::ALL
                .iter()
                .map(|kind| kind.name())
                .zip(tally.failures)
                .collect(),
            tls_error: tally.tls_failure.map(|failure| failure.to_string()),
            connections_opened: tally.connections_opened,
        }
    }

    /// Requests that failed, in the warm-up too.
    pub fn failed(&self) -> u64 {
        self.failed + self.warmup.failed
    }

    /// The report as a person reads it.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )] // for display
    pub fn to_text(&self) -> String {
        let setup = &self.setup;
        let loop_text = match setup.rate {
            Some(rate) => format!("open loop at {rate}/s"),
            None => "closed loop".to_owned(),
        };
        let mut text = format!(
            "{loop_text}, {} connections, {} to {}\n",
            setup.connections, setup.route, setup.url
        );
        text += &format!(
            "  {} requests in {:.2} s: {} ok, {} failed\n",
            self.requests, self.seconds, self.ok, self.failed
        );
        text += &format!(
            "  {:.0} requests/s, {}/s of bodies\n",
            self.requests_per_second,
            units::show_size(self.body_bytes_per_second as u64)
        );
        let Latency {
            p50,
            p90,
            p99,
            p999,
            max,
            ..
        } = self.latency_us;
        text += &format!(
            "  latency p50 {}  p90 {}  p99 {}  p99.9 {}  max {}\n",
            show(p50),
            show(p90),
            show(p99),
            show(p999),
            show(max)
        );
        for (status, count) in &self.statuses {
            text += &format!("  answered {status}: {count}\n");
        }
        for (error, count) in self.errors.iter().filter(|(_, count)| **count > 0) {
            text += &format!("  no answer ({error}): {count}\n");
        }
        if let Some(why) = &self.tls_error {
            text += &format!("  TLS: {why}\n");
        }
        if self.warmup.ok + self.warmup.failed > 0 {
            text += &format!(
                "  not measured, in the warm-up: {} ok, {} failed\n",
                self.warmup.ok, self.warmup.failed
            );
        }
        if self.unsent > 0 {
            text += &format!(
                "  {} requests were due and never sent: the rate was not reached; more --connections may help\n",
                self.unsent
            );
        }
        text
    }
}

fn show(micros: f64) -> String {
    match micros {
        ..1_000.0 => format!("{micros:.0} us"),
        ..1_000_000.0 => format!("{:.2} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up_to_a_report() {
        let mut sum = Tally::new();
        for second in 1..=2 {
            let mut tally = Tally::new();
            let now = Mono(second * 1_000_000_000);
            tally.count(Ok(200), Duration::from_micros(100), 1000, now);
            tally.count(Ok(204), Duration::from_micros(300), 1000, now);
            tally.count(Ok(503), Duration::from_secs(9), 1000, now);
            tally.count(Err(Failure::Timeout), Duration::from_secs(9), 1000, now);
            tally.count(Err(Failure::Tls), Duration::ZERO, 1000, now);
            tally.tls_failure = Some(TlsFailure::Expired);
            tally.warmup_failed = 1;
            sum.add(&tally);
        }
        let setup = Setup {
            version: "0",
            url: "http://x".into(),
            mode: "closed",
            rate: None,
            engine: "epoll".into(),
            cores: 1,
            connections: 1,
            connection_per_request: false,
            route: "push",
            gzip: false,
            sizes: Vec::new(),
            services: 1,
            labels: 0,
            run: "0".into(),
            started_unix_ms: 0,
            warmup_seconds: 0.0,
        };
        let report = Report::new(setup, &sum, Mono(0));
        assert_eq!(
            (report.requests, report.ok, report.failed, report.failed()),
            (10, 4, 6, 8)
        );
        assert_eq!((report.body_bytes, report.requests_per_second), (4000, 2.0));
        assert_eq!(report.errors["timeout"], 2);
        assert!(
            (99.0..102.0).contains(&report.latency_us.p50),
            "{:?}",
            report.latency_us
        );
        assert!(
            (299.0..302.0).contains(&report.latency_us.max),
            "{:?}",
            report.latency_us
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["statuses"]["503"], 2);
        assert_eq!(json["latency_us"]["p99.9"], json["latency_us"]["max"]);
        assert!(
            report.to_text().contains("10 requests in 2.00 s: 4 ok, 6 failed"),
            "{}",
            report.to_text()
        );
        assert!(
            report.to_text().contains("TLS: the certificate has expired"),
            "{}",
            report.to_text()
        );
    }
}
