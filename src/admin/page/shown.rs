//! A snapshot written out for a person: every text, bar, curve, state and table row of the page that changes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::super::history::SAMPLES_MAX;
use super::super::show::{ago, count, duration, rate, size, span};
use super::super::snapshot::{Destination, Latency, Share, Snapshot, Spool, State};

/// The drawing area of a curve, as its `viewBox` says.
const CURVE_WIDTH: f64 = 240.0;
const CURVE_HEIGHT: f64 = 40.0;
/// Room above the highest point, so that its line is not cut.
const CURVE_MARGIN: f64 = 2.0;

/// The names by which the style sheet chooses colours.
const GOOD: &str = "up";
const QUIET: &str = "idle";
const WARNING: &str = "auth_failing";
const BAD: &str = "down";

/// What changes on the page, by the keys that its templates use.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Shown {
    /// Of the browser's tab.
    pub title: String,
    /// Texts, not escaped.
    pub texts: BTreeMap<String, String>,
    /// Widths in percent.
    pub bars: BTreeMap<String, f64>,
    /// SVG path data.
    pub curves: BTreeMap<String, String>,
    /// `up`, `idle`, `down`, `auth_failing`: what colours are chosen by.
    pub states: BTreeMap<String, &'static str>,
    /// Table bodies.
    pub rows: BTreeMap<&'static str, Rows>,
    /// What tells the cards of destinations apart, in their order.
    pub cards: Vec<String>,
}

/// Something that an operator should know of first.
struct Problem {
    state: &'static str,
    title: &'static str,
    sentence: String,
    hint: &'static str,
}

/// The body of a table.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Row by row, not escaped.
    pub cells: Vec<Vec<String>>,
    /// From left to right.
    pub columns: &'static [Column],
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// What stands above it.
    pub title: &'static str,
    /// Whether it holds numbers, which are aligned to the right.
    pub is_number: bool,
}

const DROPS: [Column; 5] = [
    text("Destination"),
    text("Reason"),
    number("Parcels"),
    number("Bytes"),
    text("What it means"),
];
const ANSWERS: [Column; 5] = [
    text("Route"),
    text("Method"),
    number("Status"),
    number("Requests"),
    number("Mean time"),
];
const REFUSALS: [Column; 3] = [text("Reason"), number("Requests"), text("What it means")];

const fn text(title: &'static str) -> Column {
    Column {
        title,
        is_number: false,
    }
}

const fn number(title: &'static str) -> Column {
    Column {
        title,
        is_number: true,
    }
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.cells.serialize(serializer)
    }
}

/// The key of destination `index`.
pub fn destination_id(one: &Destination) -> String {
    format!("d{}", one.id.0)
}

impl Shown {
    /// Writes `snapshot` out.
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut shown = Self::default();
        shown.verdict(snapshot);
        shown.header(snapshot);
        shown.totals(snapshot);
        for destination in &snapshot.destinations {
            let id = destination_id(destination);
            shown.destination(&id, destination, snapshot.now_unix_ms);
            shown.cards.push(id);
        }
        shown.tables(snapshot);
        shown
    }

    fn text(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.texts.insert(key.into(), text.into());
    }

    fn bar(&mut self, key: impl Into<String>, share: Share) {
        #[allow(clippy::cast_precision_loss)] // for display
        let percent = 100.0 * share.used as f64 / share.limit.max(1) as f64;
        self.bars
            .insert(key.into(), (percent.clamp(0.0, 100.0) * 10.0).round() / 10.0);
    }

    fn curve(&mut self, key: &str, values: &[f64]) {
        let line = line(values);
        self.curves
            .insert(format!("{key}.area"), format!("{line}V{CURVE_HEIGHT}H0Z"));
        self.curves.insert(format!("{key}.line"), line);
    }

    fn header(&mut self, snapshot: &Snapshot) {
        self.text(
            "uptime",
            duration(Duration::from_secs_f64(snapshot.uptime_seconds.max(0.0))),
        );
        self.text("phase", snapshot.phase.replace('_', " "));
        self.states
            .insert("phase".into(), if snapshot.ready { GOOD } else { WARNING });
    }

    /// The one sentence that an operator came for, and what to make of it.
    fn verdict(&mut self, snapshot: &Snapshot) {
        let problems = problems(snapshot);
        let (state, title, verdict, hint) = match problems.first() {
            Some(first) => {
                let sentences: Vec<&str> = problems.iter().map(|problem| problem.sentence.as_str()).collect();
                let hints: Vec<&str> = problems.iter().map(|problem| problem.hint).collect();
                let state = if problems.iter().any(|problem| problem.state == BAD) {
                    BAD
                } else {
                    first.state
                };
                (state, first.title, sentences.join(" "), hints.join(" "))
            }
            None if snapshot.totals.accepted_pushes == 0 => {
                let hint = where_to_push(&snapshot.listen, snapshot.tls);
                (
                    QUIET,
                    "waiting",
                    "Ready, and waiting for the first profile.".into(),
                    hint,
                )
            }
            None => (GOOD, "all is well", "All is well.".into(), all_is_well(snapshot)),
        };
        self.title = format!("pyrotee: {title}");
        self.text("verdict", verdict);
        self.text("hint", hint);
        self.states.insert("verdict".into(), state);
    }

    fn totals(&mut self, snapshot: &Snapshot) {
        let totals = &snapshot.totals;
        self.text("accepted_rate", rate(totals.accepted_pushes_per_second));
        self.text(
            "accepted_under",
            format!(
                "{} since the start, {} received",
                count(totals.accepted_pushes),
                size(snapshot.received_bytes)
            ),
        );
        self.text("delivered_rate", rate(totals.delivered_parcels_per_second));
        let destinations = match snapshot.destinations.len() {
            1 => "to 1 destination".to_owned(),
            many => format!("to {many} destinations; a push is one parcel for each"),
        };
        self.text(
            "delivered_under",
            format!(
                "{} since the start, {destinations}",
                count(totals.delivered_parcels)
            ),
        );
        self.text("held", count(totals.held_parcels));
        self.text(
            "held_under",
            match totals.held_parcels {
                0 => "nothing queued or in flight".to_owned(),
                _ => format!(
                    "{}, oldest {}",
                    size(totals.held_bytes),
                    waited(totals.oldest_age_seconds)
                ),
            },
        );
        self.text("dropped", count(totals.dropped_parcels));
        self.text(
            "dropped_under",
            format!("{} in the last minute", count(totals.dropped_parcels_last_minute)),
        );
        self.states
            .insert("dropped".into(), bad_if(totals.dropped_parcels_last_minute > 0));
        self.text("connections", count(snapshot.connections.used));
        self.text(
            "connections_under",
            format!("of {} at most", count(snapshot.connections.limit)),
        );
        self.bar("connections", snapshot.connections);
        self.text("memory", size(snapshot.memory.used));
        let process = snapshot
            .resident_bytes
            .map_or(String::new(), |bytes| format!("; process {}", size(bytes)));
        self.text(
            "memory_under",
            format!("of {}{process}", size(snapshot.memory.limit)),
        );
        self.bar("memory", snapshot.memory);
        self.curve("accepted", &snapshot.accepted_curve);
        self.curve("delivered", &snapshot.delivered_curve);
    }

    fn destination(&mut self, id: &str, one: &Destination, now_unix_ms: u64) {
        let (state, word) = match one.state {
            State::Up => (GOOD, "up"),
            State::Idle => (QUIET, "idle"),
            State::Down => (BAD, "down"),
            State::AuthFailing => (WARNING, "auth failing"),
        };
        let since = |unix_ms: u64| ago(Duration::from_millis(now_unix_ms.saturating_sub(unix_ms)));
        self.states.insert(id.into(), state);
        let mut text = |key: &str, text: String| self.texts.insert(format!("{id}.{key}"), text);
        let leaving = if one.leaving { ", leaving" } else { "" };
        text("state", format!("{word}{leaving}"));
        text("rate", rate(one.delivered_parcels_per_second));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // never below zero, and saturating
        text(
            "byte_rate",
            format!("{}/s", size(one.delivered_bytes_per_second as u64)),
        );
        text(
            "why",
            match &one.last_error {
                Some(error) => format!("Last error {}: {}", since(error.unix_ms), error.text),
                None => String::new(),
            },
        );
        text(
            "peak",
            format!("peak {}/s", rate(one.curve.iter().copied().fold(0.0, f64::max))),
        );
        text(
            "kept",
            format!(", kept for {} at most", max_age(one.max_age_seconds)),
        );
        text(
            "queue",
            format!(
                "{} of {}{}",
                size(one.queue_bytes.used),
                size(one.queue_bytes.limit),
                one.spool.as_ref().map_or(String::new(), spooled)
            ),
        );
        text(
            "oldest",
            match one.queued_parcels {
                0 => "none waits".into(),
                _ => waited(one.oldest_age_seconds),
            },
        );
        text(
            "in_flight",
            match one.window_parcels {
                0 => count(one.in_flight_parcels),
                window => match one.window_parcels_max.filter(|max| window < *max) {
                    Some(max) => format!(
                        "{} of {}, at best {}",
                        count(one.in_flight_parcels),
                        count(window),
                        count(max)
                    ),
                    None => format!("{} of {}", count(one.in_flight_parcels), count(window)),
                },
            },
        );
        text("latency", latency(&one.latency));
        text(
            "delivered",
            format!("{} ({})", count(one.delivered.parcels), size(one.delivered.bytes)),
        );
        text("success", one.last_success_unix_ms.map_or("never".into(), since));
        text(
            "attempts",
            format!("{}, {}", count(one.attempts), count(one.retries)),
        );
        text("dropped", dropped(one));
        self.states
            .insert(format!("{id}.drops"), bad_if(one.dropped_parcels_last_minute > 0));
        let is_nearly_full = one.queue_bytes.used > one.queue_bytes.limit / 10 * 9;
        self.states.insert(format!("{id}.queue"), bad_if(is_nearly_full));
        self.bar(format!("{id}.queue"), one.queue_bytes);
        self.curve(id, &one.curve);
    }

    fn tables(&mut self, snapshot: &Snapshot) {
        let drops = snapshot.destinations.iter().flat_map(|one| {
            one.dropped.iter().map(|(reason, amount)| {
                let meaning = drop_meaning(reason).to_owned();
                vec![
                    one.name.clone(),
                    spaced(reason),
                    count(amount.parcels),
                    size(amount.bytes),
                    meaning,
                ]
            })
        });
        let answers = snapshot.answers.iter().map(|one| {
            let mean = span(one.mean_seconds);
            vec![
                route(one.route).to_owned(),
                one.method.to_owned(),
                one.status.to_string(),
                count(one.count),
                mean,
            ]
        });
        let refusals = snapshot.refusals.iter();
        let refusals = refusals.map(|one| vec![spaced(one.reason), count(one.count), one.meaning.to_owned()]);
        let (drops, answers): (Vec<_>, Vec<_>) = (drops.collect(), answers.collect());
        let refusals: Vec<_> = refusals.collect();
        let note = |is_empty: bool, empty: &str, full: &str| {
            if is_empty {
                empty.to_owned()
            } else {
                full.to_owned()
            }
        };
        self.text(
            "drops_note",
            note(
                drops.is_empty(),
                "Nothing has been dropped.",
                "Accepted, and then given up for one destination; the others got theirs.",
            ),
        );
        self.text(
            "answers_note",
            note(
                answers.is_empty(),
                "Nobody has asked yet.",
                "Every request since the start.",
            ),
        );
        self.text(
            "refusals_note",
            note(
                refusals.is_empty(),
                "Nothing has been refused.",
                "Never accepted: the client got an error and knows.",
            ),
        );
        for (key, cells, columns) in [
            ("drops", drops, DROPS.as_slice()),
            ("answers", answers, &ANSWERS),
            ("refusals", refusals, &REFUSALS),
        ] {
            self.rows.insert(key, Rows { cells, columns });
        }
    }
}

/// What is wrong, the worst first.
fn problems(snapshot: &Snapshot) -> Vec<Problem> {
    let named = |state: State| -> Vec<&str> {
        let those = snapshot.destinations.iter().filter(|one| one.state == state);
        those.map(|one| one.name.as_str()).collect()
    };
    let (down, unauthorized) = (named(State::Down), named(State::AuthFailing));
    let mut problems = Vec::new();
    if !snapshot.ready {
        problems.push(Problem {
            state: WARNING,
            title: "shutting down",
            sentence: "Shutting down.".into(),
            hint: "No new connections are taken; what waits is delivered until the drain timeout.",
        });
    }
    if snapshot.totals.dropped_parcels_last_minute > 0 {
        problems.push(Problem {
            state: BAD,
            title: "dropping",
            sentence: "Profiles are being dropped.".into(),
            hint: "The reasons are below, under Dropped.",
        });
    }
    if !down.is_empty() {
        problems.push(Problem {
            state: BAD,
            title: "destination down",
            sentence: format!("{} down.", is_or_are(&down)),
            hint: "Profiles for a destination that is down wait in its queue; the others are not affected.",
        });
    }
    if !unauthorized.is_empty() {
        problems.push(Problem {
            state: WARNING,
            title: "credentials refused",
            sentence: format!("Credentials are refused by {}.", list(&unauthorized)),
            hint: "What is refused is dropped until header.Authorization, or the user and password in the URL, are right.",
        });
    }
    problems
}

fn where_to_push(listen: &[SocketAddr], tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    let place = |address: &SocketAddr| {
        if address.ip().is_unspecified() {
            format!("port {} of this machine ({scheme})", address.port())
        } else {
            format!("{scheme}://{address}")
        }
    };
    let places: Vec<String> = listen.iter().map(place).collect();
    format!(
        "Point the server address of a profiler at {}.",
        places.join(" or ")
    )
}

fn all_is_well(snapshot: &Snapshot) -> String {
    let lost = match snapshot.totals.dropped_parcels {
        0 => "every profile accepted was delivered or is on its way".to_owned(),
        dropped => format!(
            "nothing was dropped in the last minute, {} before",
            count(dropped)
        ),
    };
    match snapshot.destinations.len() {
        1 => format!("The destination answers; {lost}."),
        many => format!("All {many} destinations answer; {lost}."),
    }
}

fn is_or_are(names: &[&str]) -> String {
    format!("{} {}", list(names), if names.len() == 1 { "is" } else { "are" })
}

/// `a`, `a and b`, `a, b and 3 more`.
fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [one, two] => format!("{one} and {two}"),
        [one, two, rest @ ..] => format!("{one}, {two} and {} more", rest.len()),
    }
}

fn latency(latency: &Latency) -> String {
    if latency.count == 0 {
        return "none lately".into();
    }
    let bound = |seconds: Option<f64>| match seconds {
        Some(seconds) => format!("≤\u{a0}{}", span(seconds)),
        None => format!(">\u{a0}{}", span(latency.seconds_max)),
    };
    format!("{} / {}", bound(latency.p50_seconds), bound(latency.p99_seconds))
}

fn dropped(one: &Destination) -> String {
    if one.dropped.is_empty() {
        return "none".into();
    }
    let reasons = one
        .dropped
        .iter()
        .map(|(reason, amount)| format!("{} {}", count(amount.parcels), spaced(reason)));
    reasons.collect::<Vec<_>>().join(", ")
}

fn bad_if(bad: bool) -> &'static str {
    if bad { BAD } else { QUIET }
}

fn spaced(label: &str) -> String {
    label.replace('_', " ")
}

fn waited(seconds: f64) -> String {
    duration(Duration::from_secs_f64(seconds.max(0.0)))
}

/// `1 h` rather than `1 h 0 min`: an operator chose it, so it is mostly round.
fn max_age(seconds: f64) -> String {
    let text = waited(seconds);
    ["\u{a0}0\u{a0}s", "\u{a0}0\u{a0}min", "\u{a0}0\u{a0}h"]
        .iter()
        .find_map(|end| text.strip_suffix(end))
        .unwrap_or(&text)
        .to_owned()
}

/// A `route` label as clients know it.
fn route(label: &str) -> &str {
    match label {
        "ingest" => "/ingest",
        "push_v1_pusherservice" => "Push",
        _ => "other paths",
    }
}

/// Why a parcel was given up, in a sentence.
/// What is on disk, behind what is in memory.
fn spooled(spool: &Spool) -> String {
    let aside = match spool.aside_segments {
        0 => String::new(),
        segments => format!(" · {} of its files unreadable, see the log", count(segments)),
    };
    let now = match &spool.trouble {
        Some(trouble) => format!(" · the spool fails: {trouble}"),
        None => format!(
            " · {} on disk, {} of {}",
            count(spool.parcels),
            size(spool.disk_bytes.used),
            size(spool.disk_bytes.limit)
        ),
    };
    now + &aside
}

fn drop_meaning(reason: &str) -> &'static str {
    match reason {
        "overflow" => {
            "Its queue was full, and the oldest profile made room. Raise queue-limit, or mend the destination."
        }
        "too_old" => "It had waited longer than max-age before it could be sent.",
        "rejected" => "The destination answered that it will never take it; its last error says more.",
        "unauthorized" => {
            "The destination did not accept our credentials (401, 403), or its proxy did not (407)."
        }
        "redirected" => "The destination redirected in a way that loses the body, or without end.",
        "retries_exhausted" => "All attempts that max-retries allows have failed.",
        "write_failed" => "The archive's disk did not take it.",
        "damaged" => "What was read back from the spool is not what was written there.",
        "shutdown" => "It was still waiting when the drain timeout ran out.",
        "removed" => {
            "A reload has removed the destination, and it took nothing for as long as the drain timeout."
        }
        _ => "It was lost inside pyrotee. That is our mistake: please report it.",
    }
}

/// The curve's line, the latest value at the right edge, the highest at the top.
fn line(values: &[f64]) -> String {
    #[allow(clippy::cast_precision_loss)] // 120
    let step = CURVE_WIDTH / (SAMPLES_MAX - 2) as f64;
    let floor = CURVE_HEIGHT - 1.0;
    let top = values.iter().copied().fold(1.0, f64::max);
    let mut path = String::new();
    #[allow(clippy::cast_precision_loss)] // at most 120
    for (index, value) in values.iter().enumerate() {
        let x = CURVE_WIDTH - step * (values.len() - 1 - index) as f64;
        let y = floor - value / top * (floor - CURVE_MARGIN);
        if index == 0 {
            // Before the first sample nothing is known, and the line stays on the floor.
            let _ = match x < step {
                true => write!(path, "M0,{y:.1}"),
                false => write!(path, "M0,{floor}H{x:.1}"),
            };
        }
        let _ = write!(path, "L{x:.1},{y:.1}");
    }
    if values.is_empty() {
        let _ = write!(path, "M0,{floor}H{CURVE_WIDTH}");
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fanout::DropReason;

    #[test]
    fn curves_end_at_the_right_edge_and_touch_the_top() {
        assert_eq!(line(&[]), "M0,39H240");
        let path = line(&[0.0, 5.0, 10.0]);
        assert!(
            path.starts_with("M0,39H235.9") || path.starts_with("M0,39H236.0"),
            "{path}"
        );
        assert!(path.ends_with("L240.0,2.0"), "{path}");
        let full = line(&[5.0; SAMPLES_MAX - 1]);
        assert!(full.starts_with("M0,2.0L0.0,2.0L2.0,2.0"), "{full}");
    }

    #[test]
    fn every_drop_reason_has_a_sentence_of_its_own() {
        let sentences: std::collections::BTreeSet<_> =
            DropReason::ALL.map(|r| drop_meaning(r.label())).into();
        assert_eq!(sentences.len(), DropReason::ALL.len());
    }

    #[test]
    fn names_are_listed_short() {
        assert_eq!(is_or_are(&["eu"]), "eu is");
        assert_eq!(is_or_are(&["eu", "us"]), "eu and us are");
        assert_eq!(list(&["a", "b", "c", "d"]), "a, b and 2 more");
        assert_eq!(
            [3600.0, 1800.0, 5400.0].map(|s| max_age(s).replace("\u{a0}", " ")),
            ["1 h", "30 min", "1 h 30 min"]
        );
    }
}
