//! `pyrotee demo`: a gateway, two destinations and a stream of profiles in one process, for people who want to see it.
//!
//! ```text
//!  load (open loop) ──▶ gateway ──▶ sink a
//!                          └──────▶ sink b, which stops answering in the second of three acts
//!        │ latencies       │ books     │ own counts
//!        └──────▶ view.rs ◀┴───────────┴──▶ summary.rs, exit code
//! ```
//! Everything is the real thing: the code of `pyrotee run`, `sink` and `load`, over real sockets on loopback. All of it
//! lives in this process, so nothing can be left behind when it ends, in whatever way. Every number shown was counted by
//! the one it is about: answers by the load, queues by the gateway's books, deliveries by both the gateway and the sinks.
//!
//! Not responsible for how it looks (`view.rs`) or for what the numbers prove (`summary.rs`).

mod summary;
mod view;

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::LocalSet;

use super::load::{self, Latencies};
use super::parsed;
use super::run::{abort_on_panic, bind_admin};
use super::sink;
use crate::admin;
use crate::config::{Flags, Plan, units};
use crate::fanout::Gate;
use crate::gateway::Gateway;
use crate::runtime;
use crate::runtime::clock::{self, Mono};
use crate::runtime::engine::{EngineChoice, Verdict, probe};

use summary::{Ledger, Outage, Summary};
use view::{Moment, Row, View};

/// What the two destinations are called.
const NAMES: [&str; 2] = ["a", "b"];
/// Which of them stops answering.
const AWAY: usize = 1;
/// The outage is a third of the time, but shorter than `--remote-timeout` (10 s): requests that wait for their answer
/// then get it, and none has to be sent twice.
const AWAY_MAX: Duration = Duration::from_secs(8);
/// How often the books are read.
const STEP: Duration = Duration::from_millis(100);
/// Rates and latencies are those of the last full span of this length.
const SPAN: Duration = Duration::from_secs(1);
/// After the last push, how long the queues may take to empty.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// Sizes of profiles: 4 KiB on average, as real ones are small.
const SIZES: &str = "1KiB:4,4KiB:3,16KiB:1";
/// Pushes per second at most: what piles up in the longest outage (8 s x 5000/s x 4 KiB = 156 MiB) fits the queue's
/// default limit of 256 MiB.
const RATE_MAX: i64 = 5_000;

/// The flags of `pyrotee demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How long profiles are pushed, 1s to 10m.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = parse_run_time)]
    pub duration: Duration,
    /// Profiles pushed per second.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=RATE_MAX as u64))]
    pub rate: u64,
    /// Where the status page is served while it runs; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub admin: SocketAddr,
    /// What moves the bytes.
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    pub engine: EngineChoice,
    /// One line per second instead of a live view; the default where the output is no terminal.
    #[arg(long)]
    pub plain: bool,
    /// Write the summary as JSON to stdout; all else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

/// The three parts of the play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Act {
    /// Both destinations answer.
    AllWell,
    /// One of them does not.
    Away,
    /// It does again.
    Back,
}

impl Act {
    const ALL: [Self; 3] = [Self::AllWell, Self::Away, Self::Back];
}

/// When the acts change, from the first push on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Script {
    away_from: Duration,
    back_from: Duration,
}

impl Script {
    fn new(total: Duration) -> Self {
        let away = (total / 3).min(AWAY_MAX);
        let away_from = (total - away) / 2;
        Self {
            away_from,
            back_from: away_from + away,
        }
    }

    fn act(&self, at: Duration) -> Act {
        if at < self.away_from {
            Act::AllWell
        } else if at < self.back_from {
            Act::Away
        } else {
            Act::Back
        }
    }
}

/// Plays it.
///
/// # Errors
/// When something cannot be started: an address, a thread, the engine. Numbers that do not add up are no error but an exit
/// code of 1.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    abort_on_panic();
    runtime::raise_file_limit();
    let verdict = probe(args.engine)?;
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let summary = LocalSet::new().block_on(&control, play(&args, verdict))?;
    let Some(summary) = summary else {
        eprintln!("left at once: what was under way is not known");
        return Ok(ExitCode::FAILURE);
    };
    if args.json {
        let mut json = serde_json::to_vec_pretty(&summary)?;
        json.push(b'\n');
        std::io::stdout().write_all(&json)?;
    }
    let good = summary.complaints().is_empty();
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// From the first listener to the summary; `None` when a second signal ended it.
async fn play(args: &Args, verdict: Verdict) -> anyhow::Result<Option<Summary>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let (sinks, mut gateway) = start(args, &verdict)?;
    gateway.spawn_keepers();
    let admin = bind_admin(args.admin).await?;
    let mut view = View::new(args.plain, args.json);
    view.say(&view::opening(&verdict, admin.address()?));
    let front = admin::Front::new(watch::channel(String::new()).1);
    front.open(gateway.observed(), None);
    tokio::task::spawn_local(admin::serve(admin, front, std::future::pending()));
    let load = start_load(args, &gateway, &verdict)?;

    let mut stage = Stage::new(args, load, sinks, gateway.gates());
    let mut steps = tokio::time::interval(STEP);
    loop {
        let asked_to_end = tokio::select! {
            _ = steps.tick() => false,
            _ = interrupt.recv() => true,
            _ = terminate.recv() => true,
        };
        if asked_to_end && stage.ended_early {
            return Ok(None);
        }
        stage.ended_early |= asked_to_end;
        let goes_on = stage.step(clock::now())?;
        if let Some(moment) = stage.moment() {
            view.show(&moment);
        }
        if !goes_on {
            break;
        }
    }
    gateway.shut_down().await;
    let summary = stage.summary(&verdict)?;
    view.end();
    view.say(&summary.to_text());
    Ok(Some(summary))
}

fn start(args: &Args, verdict: &Verdict) -> anyhow::Result<([sink::Running; 2], Gateway)> {
    let sink = || {
        let args = parsed::<sink::Args>(&["--listen", "127.0.0.1:0", "--verify"])?;
        sink::Running::start(&args, verdict.engine)
    };
    let sinks = [sink()?, sink()?];
    let mut words = vec!["--listen".to_owned(), "127.0.0.1:0".into()];
    words.extend(["--admin".to_owned(), args.admin.to_string()]);
    for (name, sink) in NAMES.iter().zip(&sinks) {
        words.extend(["--to".to_owned(), format!("{name}=http://{}", sink.address)]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let plan = Plan::new(&parsed::<Flags>(&words)?, &runtime::host())?;
    Ok((sinks, Gateway::start(plan, verdict.clone())?))
}

fn start_load(args: &Args, gateway: &Gateway, verdict: &Verdict) -> anyhow::Result<load::Running> {
    let url = format!("http://{}", gateway.addresses[0]);
    let (rate, millis) = (args.rate.to_string(), format!("{}ms", args.duration.as_millis()));
    let words = [
        &*url,
        "--rate",
        &*rate,
        "--duration",
        &*millis,
        "--size",
        SIZES,
        "--route",
        "mix",
        "--name",
        "demo",
    ];
    let mut load = parsed::<load::Args>(&words)?;
    load.watched = true;
    load::Running::start(&load, verdict.engine)
}

/// All that plays, and what has been seen of it.
struct Stage {
    duration: Duration,
    script: Script,
    load: load::Running,
    sinks: [sink::Running; 2],
    gates: Vec<&'static Gate>,
    begun: Mono,
    now: Mono,
    act: Act,
    ended_early: bool,
    load_ended: Option<Mono>,
    /// Client latencies of each act.
    answers: [Latencies; 3],
    /// The last full span, once there is one.
    span: Option<Span>,
    span_begun: Mark,
    outage: Option<Outage>,
    /// What waited for each destination, at every [`SPAN`] / 2.
    curves: [Vec<u64>; 2],
    curve_at: Mono,
    away_at: Option<(Mono, u64)>,
    back_at: Option<Mono>,
}

/// Counters at one moment.
#[derive(Clone, Copy)]
struct Mark {
    at: Mono,
    answered: u64,
    delivered: [u64; 2],
}

/// What happened between two marks.
struct Span {
    act: Act,
    pushes_per_second: f64,
    delivered_per_second: [f64; 2],
    latencies: Latencies,
}

impl Stage {
    fn new(args: &Args, load: load::Running, sinks: [sink::Running; 2], gates: Vec<&'static Gate>) -> Self {
        let now = clock::now();
        Self {
            duration: args.duration,
            script: Script::new(args.duration),
            load,
            sinks,
            gates,
            begun: now,
            now,
            act: Act::AllWell,
            ended_early: false,
            load_ended: None,
            answers: Default::default(),
            span: None,
            span_begun: Mark {
                at: now,
                answered: 0,
                delivered: [0; 2],
            },
            outage: None,
            curves: Default::default(),
            curve_at: now,
            away_at: None,
            back_at: None,
        }
    }

    /// Moves on to `now`. Returns whether there is more to come.
    fn step(&mut self, now: Mono) -> anyhow::Result<bool> {
        self.now = now;
        if self.ended_early {
            self.load.stop();
        }
        if self.load.is_finished() {
            self.load_ended.get_or_insert(now);
        }
        let over = self.ended_early || self.load_ended.is_some();
        let act = if over {
            Act::Back
        } else {
            self.script.act(now.since(self.begun))
        };
        if act != self.act {
            self.close_span();
            self.enter(act)?;
        } else if now.since(self.span_begun.at) >= SPAN {
            self.close_span();
        }
        self.watch_queues();
        let held: u64 = self.gates.iter().map(|gate| gate.held_parcels()).sum();
        Ok(match self.load_ended {
            Some(ended) => held > 0 && now.since(ended) < DRAIN_MAX,
            None => true,
        })
    }

    fn enter(&mut self, act: Act) -> anyhow::Result<()> {
        let faults = if act == Act::Away { "--stall" } else { "" };
        self.sinks[AWAY].set_faults(faults).map_err(anyhow::Error::msg)?;
        let others = self.gates[0].books().delivered.parcels;
        match (act, self.away_at) {
            (Act::Away, _) => self.away_at = Some((self.now, others)),
            (Act::Back, Some((away, others_before))) => {
                self.back_at = Some(self.now);
                let outage = self.outage.get_or_insert_default();
                outage.destination = NAMES[AWAY];
                outage.seconds = self.now.since(away).as_secs_f64();
                outage.others_delivered = others - others_before;
            }
            _ => {}
        }
        self.act = act;
        Ok(())
    }

    fn watch_queues(&mut self) {
        let books = self.gates[AWAY].books();
        if self.away_at.is_some() {
            let outage = self.outage.get_or_insert_default();
            outage.waiting_max = outage.waiting_max.max(books.held_parcels);
            outage.waiting_bytes_max = outage.waiting_bytes_max.max(books.held_bytes);
            if let (Some(back), 0, None) = (self.back_at, books.queued_parcels(), outage.drained_seconds) {
                outage.drained_seconds = Some(self.now.since(back).as_secs_f64());
            }
        }
        if self.now >= self.curve_at {
            self.curve_at = self.now.after(SPAN / 2);
            for (curve, gate) in self.curves.iter_mut().zip(&self.gates) {
                curve.push(gate.held_parcels());
            }
        }
    }

    /// Ends the span under way: its latencies go to the act that they belong to.
    fn close_span(&mut self) {
        let end = Mark {
            at: self.now,
            answered: self.answered(),
            delivered: [0, 1].map(|index| self.gates[index].books().delivered.parcels),
        };
        let begun = std::mem::replace(&mut self.span_begun, end);
        let seconds = end.at.since(begun.at).as_secs_f64().max(0.001);
        #[allow(clippy::cast_precision_loss)] // for display
        let rate = |from: u64, to: u64| (to - from) as f64 / seconds;
        let latencies = self.load.take_latencies();
        self.answers[self.act as usize].add(&latencies);
        self.span = Some(Span {
            act: self.act,
            pushes_per_second: rate(begun.answered, end.answered),
            delivered_per_second: [0, 1].map(|index| rate(begun.delivered[index], end.delivered[index])),
            latencies,
        });
    }

    /// Pushes that were answered with a 2xx.
    fn answered(&self) -> u64 {
        let (done, failed) = self.load.progress();
        done - failed
    }

    /// What is to be seen now; `None` before the first span is over.
    fn moment(&self) -> Option<Moment<'_>> {
        let span = self.span.as_ref()?;
        let row = |index: usize| {
            let books = self.gates[index].books();
            Row {
                name: NAMES[index],
                stopped: index == AWAY && self.act == Act::Away,
                delivered_per_second: span.delivered_per_second[index],
                delivered: books.delivered.parcels,
                waiting: books.held_parcels,
                waiting_bytes: books.held_bytes,
                curve: &self.curves[index],
            }
        };
        Some(Moment {
            elapsed: self.now.since(self.begun),
            total: self.duration,
            act: self.act,
            span_act: span.act,
            away: self.away_at.is_some(),
            pushing: self.load_ended.is_none(),
            pushes_per_second: span.pushes_per_second,
            answered: self.answered(),
            failed: self.load.progress().1,
            p50: span.latencies.at(0.5),
            p99: span.latencies.at(0.99),
            rows: [row(0), row(1)],
        })
    }

    /// Waits for the load's last word and puts the numbers side by side.
    fn summary(mut self, verdict: &Verdict) -> anyhow::Result<Summary> {
        self.close_span();
        let ledger = |index: usize| {
            Ledger::new(
                NAMES[index],
                &self.gates[index].books(),
                &self.sinks[index].stats(),
            )
        };
        let destinations = vec![ledger(0), ledger(1)];
        let seconds = self
            .load_ended
            .unwrap_or(self.now)
            .since(self.begun)
            .as_secs_f64();
        let report = self.load.finish()?;
        Ok(Summary {
            engine: verdict.engine.to_string(),
            seconds,
            ended_early: self.ended_early,
            pushed: report.ok,
            failed: report.failed(),
            unsent: report.unsent,
            answers: Act::ALL
                .iter()
                .zip(&self.answers)
                .map(|(act, latencies)| summary::Answers::new(*act, latencies))
                .collect(),
            outage: self.outage,
            destinations,
        })
    }
}

fn parse_run_time(text: &str) -> Result<Duration, String> {
    let time = units::parse_duration(text)?;
    if !(Duration::from_secs(1)..=Duration::from_secs(600)).contains(&time) {
        return Err("must lie between 1s and 10m".into());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_a_third_and_shorter_than_an_attempt() {
        for (total, away_from, back_from) in [(3, 1_000, 2_000), (15, 5_000, 10_000), (600, 296_000, 304_000)]
        {
            let script = Script::new(Duration::from_secs(total));
            let expected = (Duration::from_millis(away_from), Duration::from_millis(back_from));
            assert_eq!((script.away_from, script.back_from), expected, "{total} s");
            let acts = [0, away_from, back_from].map(|at| script.act(Duration::from_millis(at)));
            assert_eq!(acts, Act::ALL, "{total} s");
        }
        let flags = parsed::<Flags>(&[]).unwrap();
        assert!(AWAY_MAX + Duration::from_secs(1) < flags.remote_timeout);
    }
}
