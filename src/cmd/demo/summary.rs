//! What the demo has shown: the counts of everyone who took part, side by side, and whether they agree.
//!
//! Not responsible for counting.

use std::time::Duration;

use serde::Serialize;

use super::Act;
use crate::cmd::load::Latencies;
use crate::cmd::show;
use crate::cmd::sink::Stats;
use crate::config::units::show_size;
use crate::fanout::gate::Books;

/// The end of the play, as `--json` writes it.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// What the gateway ran on.
    pub engine: String,
    /// From the first push to the last answer.
    pub seconds: f64,
    /// Whether a signal ended it before its time.
    pub ended_early: bool,
    /// Pushes that the gateway answered with a 2xx: it has taken these profiles.
    pub pushed: u64,
    /// Pushes that it answered otherwise, or not at all.
    pub failed: u64,
    /// Pushes that were due and never sent, because none of the connections was free.
    pub unsent: u64,
    /// How long clients waited, by act.
    pub answers: Vec<Answers>,
    /// The outage, if it came to that.
    pub outage: Option<Outage>,
    /// Both sides of each destination's books.
    pub destinations: Vec<Ledger>,
}

/// How long clients waited for their answers in one act.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Answers {
    act: Act,
    pub count: u64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

/// The time in which one destination did not answer.
#[derive(Debug, Default, Serialize)]
pub struct Outage {
    /// Whose.
    pub destination: &'static str,
    /// How long.
    pub seconds: f64,
    /// Most profiles that waited for it, requests without an answer included.
    pub waiting_max: u64,
    /// Most bytes that waited for it.
    pub waiting_bytes_max: u64,
    /// After it was back, until its queue was empty.
    pub drained_seconds: Option<f64>,
    /// What the other destination was given in the meantime.
    pub others_delivered: u64,
}

/// One destination, as the gateway and the destination itself see it.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(Clone, Default))]
pub struct Ledger {
    name: &'static str,
    /// By the gateway: parcels taken in for it.
    accepted: u64,
    /// By the gateway: parcels that it has.
    delivered: u64,
    /// By the gateway: parcels given up.
    dropped: u64,
    /// By the gateway: parcels without an outcome.
    waiting: u64,
    /// By the gateway: the conservation law, in parcels and in bytes.
    balanced: bool,
    /// By the destination: profiles that arrived whole (the content hash fits), each counted once.
    received: u64,
    /// By the destination: profiles that arrived again.
    duplicates: u64,
    /// By the destination: requests that arrived changed.
    corrupt: u64,
}

impl Ledger {
    /// Puts both sides together.
    pub fn new(name: &'static str, books: &Books, stats: &Stats) -> Self {
        Self {
            name,
            accepted: books.accepted_parcels,
            delivered: books.delivered.parcels,
            dropped: books.dropped_total().parcels,
            waiting: books.held_parcels,
            balanced: books.balance(),
            received: stats.verified,
            duplicates: stats.duplicates,
            corrupt: stats.corrupt,
        }
    }

    fn complaints(&self, pushed: u64) -> Vec<String> {
        let Self { name, .. } = self;
        let mut found = Vec::new();
        let mut check = |good: bool, complaint: String| {
            if !good {
                found.push(complaint);
            }
        };
        check(self.balanced, format!("the books of {name} do not balance"));
        check(
            self.accepted == pushed,
            format!(
                "{} pushes were answered with 200, yet {} were accepted for {name}",
                pushed, self.accepted
            ),
        );
        check(
            self.dropped == 0,
            format!("{} for {name} dropped", show::several(self.dropped, "profile")),
        );
        check(
            self.waiting == 0,
            format!("{} for {name} undecided", show::several(self.waiting, "profile")),
        );
        check(
            self.received == self.delivered,
            format!(
                "{} delivered to {name} by our books, {} received by its own",
                self.delivered, self.received
            ),
        );
        check(
            self.duplicates == 0,
            format!(
                "{name} received {} again",
                show::several(self.duplicates, "profile")
            ),
        );
        check(
            self.corrupt == 0,
            format!(
                "{name} received {} changed on the way",
                show::several(self.corrupt, "request")
            ),
        );
        found
    }
}

impl Answers {
    /// Reads off one act's latencies.
    pub fn new(act: Act, latencies: &Latencies) -> Self {
        // To a tenth of a microsecond.
        let micros = |quantile| (latencies.at(quantile).as_secs_f64() * 1e7).round() / 10.0;
        Self {
            act,
            count: latencies.count(),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            max_us: micros(1.0),
        }
    }

    fn p99(&self) -> String {
        show_micros(self.p99_us)
    }
}

impl Summary {
    /// All that is not as it should be; nothing when every profile is where it belongs.
    pub fn complaints(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.failed > 0 {
            found.push(format!(
                "{} got no 200",
                show::several(self.failed, "push").replace("pushs", "pushes")
            ));
        }
        if self.pushed == 0 && !self.ended_early {
            found.push("nothing was pushed".into());
        }
        for ledger in &self.destinations {
            found.extend(ledger.complaints(self.pushed));
        }
        found
    }

    /// The summary as a newcomer reads it.
    pub fn to_text(&self) -> String {
        let pushed = show::count(self.pushed);
        let complaints = self.complaints();
        let mut text = String::from("\n");
        if complaints.is_empty() {
            text += &format!(
                "{pushed} profiles pushed, all {pushed} delivered to each of {} destinations: \
                 each exactly once, none changed, nothing lost.\n",
                self.destinations.len()
            );
        } else {
            text += &format!("{pushed} profiles pushed, and not all is well:\n");
            complaints
                .iter()
                .for_each(|complaint| text += &format!("  - {complaint}\n"));
        }
        self.outage
            .iter()
            .for_each(|outage| text += &self.tell_outage(outage));
        text += "\n  how long clients waited      pushes       p50       p99       max\n";
        for answers in self.answers.iter().filter(|answers| answers.count > 0) {
            let [p50, p99, max] = [answers.p50_us, answers.p99_us, answers.max_us].map(show_micros);
            let what = self.describe(answers.act);
            text += &format!(
                "    {what:<24}{:>9}{p50:>10}{p99:>10}{max:>10}\n",
                show::count(answers.count)
            );
        }
        text += "\n  the books                  accepted = delivered + dropped + waiting   destination's own count\n";
        for ledger in &self.destinations {
            text += &format!(
                "    {:<24}{:>9} {:>11} {:>9} {:>9} {:>25}\n",
                ledger.name,
                show::count(ledger.accepted),
                show::count(ledger.delivered),
                show::count(ledger.dropped),
                show::count(ledger.waiting),
                show::count(ledger.received)
            );
        }
        if self.unsent > 0 {
            text += &format!(
                "\n  {} more were due and never sent: this machine or this build is too slow for that --rate.\n",
                show::count(self.unsent)
            );
        }
        text + "\nNext: pyrotee run --to eu=http://HOST:4040 --to archive=file:./profiles, and point an SDK at port 4040.\n"
    }

    fn tell_outage(&self, outage: &Outage) -> String {
        let Outage { destination, .. } = outage;
        let p99 = |act: Act| {
            self.answers
                .iter()
                .find(|answers| answers.act == act)
                .map(Answers::p99)
        };
        let mut text = format!(
            "While {destination} was away ({:.1} s), {} ({}) waited for it",
            outage.seconds,
            show::several(outage.waiting_max, "profile"),
            show_size(outage.waiting_bytes_max)
        );
        text += &match outage.drained_seconds {
            Some(seconds) => format!(" and {seconds:.1} s after it was back its queue was empty.\n"),
            None => " and its queue had not emptied at the end.\n".into(),
        };
        let others = self.destinations.iter().map(|ledger| ledger.name);
        let others: Vec<&str> = others.filter(|name| name != destination).collect();
        text += &format!(
            "Meanwhile {} got {} as they came, and clients were answered with a p99 of {} ({} before).\n",
            others.join(" and "),
            show::several(outage.others_delivered, "profile"),
            p99(Act::Away).unwrap_or_default(),
            p99(Act::AllWell).unwrap_or_default()
        );
        text
    }

    fn describe(&self, act: Act) -> String {
        let name = self.outage.as_ref().map_or("", |outage| outage.destination);
        match act {
            Act::AllWell => "all well".into(),
            Act::Away => format!("{name} away"),
            Act::Back => format!("{name} back"),
        }
    }
}

fn show_micros(micros: f64) -> String {
    show::latency(Duration::from_secs_f64(micros / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Summary {
        let ledger = |name| Ledger {
            name,
            accepted: 10,
            delivered: 10,
            balanced: true,
            received: 10,
            ..Ledger::default()
        };
        let mut latencies = Latencies::default();
        latencies.record(Duration::from_micros(250));
        Summary {
            engine: "epoll".into(),
            seconds: 3.0,
            ended_early: false,
            pushed: 10,
            failed: 0,
            unsent: 0,
            answers: Act::ALL
                .iter()
                .map(|act| Answers::new(*act, &latencies))
                .collect(),
            outage: Some(Outage {
                destination: "b",
                seconds: 1.0,
                waiting_max: 4,
                waiting_bytes_max: 4096,
                drained_seconds: Some(0.2),
                others_delivered: 3,
            }),
            destinations: vec![ledger("a"), ledger("b")],
        }
    }

    #[test]
    fn a_good_end_is_told_in_one_sentence() {
        let text = good().to_text();
        for part in [
            "10 profiles pushed, all 10 delivered to each of 2 destinations",
            "nothing lost",
            "While b was away (1.0 s), 4 profiles (4 KiB) waited for it and 0.2 s after",
            "a got 3 profiles as they came",
            "p99 of 250 us (250 us before)",
        ] {
            assert!(text.contains(part), "'{part}' is not in\n{text}");
        }
    }

    /// Each is one thing gone wrong.
    #[test]
    fn nothing_that_is_wrong_passes() {
        type Spoil = fn(&mut Summary);
        let cases: [(&str, Spoil, &str); 9] = [
            ("failed", |s| s.failed = 2, "2 pushes got no 200"),
            ("nothing", |s| s.pushed = 0, "nothing was pushed"),
            (
                "unbalanced",
                |s| s.destinations[0].balanced = false,
                "books of a do not balance",
            ),
            (
                "not accepted",
                |s| s.destinations[1].accepted = 9,
                "9 were accepted for b",
            ),
            (
                "dropped",
                |s| s.destinations[1].dropped = 1,
                "one profile for b dropped",
            ),
            (
                "undecided",
                |s| s.destinations[1].waiting = 3,
                "3 profiles for b undecided",
            ),
            (
                "not received",
                |s| s.destinations[0].received = 9,
                "9 received by its own",
            ),
            (
                "twice",
                |s| s.destinations[0].duplicates = 1,
                "a received one profile again",
            ),
            (
                "changed",
                |s| s.destinations[0].corrupt = 1,
                "a received one request changed",
            ),
        ];
        assert!(good().complaints().is_empty());
        for (name, spoil, complaint) in cases {
            let mut summary = good();
            spoil(&mut summary);
            let text = summary.to_text();
            assert!(
                text.contains(complaint) && !text.contains("nothing lost"),
                "{name}:\n{text}"
            );
            assert!(!summary.complaints().is_empty(), "{name}");
        }
    }
}
