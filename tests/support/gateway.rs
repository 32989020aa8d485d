//! A running gateway and its farewell.
//!
//! The farewell is the gateway's own books, told per destination when it ends: what a test compares with what its sinks
//! and peers have counted. Not responsible for destinations.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::peer::Peer;
use super::{Answer, Client, Ended, Process, get};

/// A running gateway.
pub struct Gateway {
    /// The process.
    pub process: Process,
    /// Where it takes pushes.
    pub address: SocketAddr,
    /// Where it tells how it does, if it was started with `--admin`.
    pub admin: Option<SocketAddr>,
}

/// What a gateway said of one destination at its end, in parcels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Farewell {
    /// The destination has them.
    pub delivered: u64,
    /// It will not get them, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// They wait in the spool for the next start.
    pub spooled: u64,
    /// They were on the wire at the end.
    pub undecided: u64,
}

impl Farewell {
    /// All that was dropped.
    pub fn lost(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// All that was ever accepted.
    pub fn accepted(&self) -> u64 {
        self.delivered + self.lost() + self.spooled + self.undecided
    }
}

/// `--to` flags for destinations called a, b, c, ...
pub fn to(urls: &[String]) -> Vec<String> {
    let flags = ('a'..='z')
        .zip(urls)
        .map(|(name, url)| ["--to".to_owned(), format!("{name}={url}")]);
    flags.flatten().collect()
}

impl Gateway {
    /// Starts one before peers, which it calls a, b, c, ...
    pub fn before(engine: &str, peers: &[&Peer], flags: &[&str]) -> Self {
        let urls: Vec<String> = peers.iter().map(|peer| peer.url()).collect();
        let mut all = to(&urls);
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        Self::start(engine, &all)
    }

    /// Starts one on a free port, with one core unless the flags say otherwise.
    pub fn start<S: AsRef<str>>(engine: &str, flags: &[S]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_pyrotee")), &[], engine, flags)
    }

    /// The same through a launcher, which gets `first` in front of the gateway's arguments.
    pub fn start_by<S: AsRef<str>>(launcher: Command, first: &[&str], engine: &str, flags: &[S]) -> Self {
        let fixed = ["run", "--listen", "127.0.0.1:0", "--log", "json", "--no-pin"];
        let mut args = [first, &fixed, &["--engine", engine]].concat();
        args.extend(flags.iter().map(AsRef::as_ref));
        for (flag, value) in [("--cores", "1"), ("--admin", "off")] {
            if !args.contains(&flag) {
                args.extend([flag, value]);
            }
        }
        let mut process = Process::start_by(launcher, &args);
        let admin = Cell::new(None);
        let address = process.log("address", |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let address = || line["address"].as_str()?.parse().ok();
            if line["message"] == "admin port" {
                admin.set(address());
            }
            (line["message"] == "listening").then(address)?
        });
        let admin = admin.get();
        Self {
            process,
            address,
            admin,
        }
    }

    /// The value of a series as `/metrics` writes it, such as `a_total{x="1"}`; needs `--admin 127.0.0.1:0`.
    pub fn metric(&self, series: &str) -> f64 {
        let text = get(self.admin.expect("an admin port"), "/metrics").text();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no {series} in\n{text}"));
        value
            .parse()
            .unwrap_or_else(|error| panic!("{series} {value}: {error}"))
    }

    /// File descriptors that are open in it.
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.process.id());
        std::fs::read_dir(folder).expect("the process lives").count()
    }

    /// A client of its own.
    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Pushes a body to `/ingest` on a connection of its own and returns the answer.
    pub fn ingest(&self, body: impl AsRef<[u8]>) -> Answer {
        let answer = self.client().post("/ingest?name=app", &[], body.as_ref());
        answer.expect("an answer")
    }

    /// Waits for a log line with this message; returns it.
    pub fn logged(&mut self, message: &str) -> Value {
        self.process.log(message, |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            line["message"].as_str()?.contains(message).then_some(line)
        })
    }

    /// `http://` and its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it like [`Gateway::farewell`]; everything it ever accepted must have been delivered.
    pub fn end_whole(self) {
        for (destination, farewell) in self.farewell() {
            let missing = (farewell.lost(), farewell.undecided);
            assert_eq!(missing, (0, 0), "{destination}: {farewell:?}");
        }
    }

    /// Asks it to end, waits for that, and reads the farewell of every destination.
    pub fn farewell(self) -> BTreeMap<String, Farewell> {
        self.process.signal(Signal::TERM);
        farewells(&self.process.wait())
    }
}

/// Reads the farewells out of a log.
pub fn farewells(ended: &Ended) -> BTreeMap<String, Farewell> {
    assert!(ended.status.success(), "{:?}: {}", ended.status, ended.stderr);
    let lines = ended
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let farewells = lines.filter(|line: &Value| line["lost"].is_u64()).map(|line| {
        let mut farewell = Farewell {
            delivered: line["delivered"].as_u64().expect("a count"),
            spooled: line["spooled"].as_u64().unwrap_or(0),
            undecided: line["undecided"].as_u64().unwrap_or(0),
            ..Farewell::default()
        };
        for pair in line["reasons"].as_str().unwrap_or_default().split_whitespace() {
            let (reason, count) = pair.split_once('=').expect("reason=count");
            farewell
                .dropped
                .insert(reason.to_owned(), count.parse().expect("a count"));
        }
        assert_eq!(farewell.lost(), line["lost"].as_u64().expect("a count"), "{line}");
        (line["destination"].as_str().expect("a name").to_owned(), farewell)
    });
    let farewells: BTreeMap<_, _> = farewells.collect();
    assert!(!farewells.is_empty(), "no farewell: {}", ended.stderr);
    farewells
}
