//! The wall clock is set while profiles wait, by a day, forward and back: nothing is given up as too old for that, nothing
//! hangs, nothing comes twice. The gateway is the real binary; its wall clock is moved by a library that `tests/data/shifted_clock.rs`
//! is built to. Not responsible for ages themselves (`spool`, `faults`).

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;
use support::gateway::{Farewell, Gateway, to};
use support::peer::{Absent, Peer, Received};
use support::{eventually, skip, under_both_engines};

under_both_engines!(
    what_waits_in_memory_does_not_age_by_a_jump,
    what_waits_in_the_spool_does_not_age_by_a_jump,
    what_was_stored_before_a_jump_survives_a_kill_behind_it,
    what_was_spooled_survives_a_jump_before_the_next_start,
    stamps_from_the_future_are_as_good_as_new,
    what_is_too_old_is_too_old_whatever_the_clock_shows,
    a_clock_that_is_set_all_the_time_loses_nothing,
);

const DAY: i64 = 24 * 3600;

/// The wall clock of the gateways of one test.
struct WallClock {
    folder: tempfile::TempDir,
    library: &'static Path,
}

impl WallClock {
    /// One that is right for now; `None`, said aloud, where the library cannot be built.
    fn new() -> Option<Self> {
        let clock = Self {
            folder: tempfile::tempdir().expect("a folder"),
            library: library()?,
        };
        clock.set(0);
        Some(clock)
    }

    /// Sets it, to so many seconds from the right time.
    fn set(&self, seconds: i64) {
        let shift = (seconds * 1_000_000_000).to_le_bytes();
        // Never seen half-written: the length does not change, and 8 bytes are written in one call.
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(self.path());
        std::os::unix::fs::FileExt::write_all_at(&file.expect("our folder"), &shift, 0)
            .expect("room for 8 bytes");
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("shift")
    }

    /// Starts a gateway that goes by it, with a spool in `spool` if there is one.
    fn start(&self, engine: &str, url: &str, spool: Option<&Path>, flags: &[&str]) -> Gateway {
        let mut launcher = Command::new(env!("CARGO_BIN_EXE_pyrotee"));
        launcher
            .env("LD_PRELOAD", self.library)
            .env("SHIFTED_CLOCK", self.path());
        let mut all = to(&[url.to_owned()]);
        if let Some(spool) = spool {
            all.extend([
                "--spool".to_owned(),
                spool.to_str().expect("a plain path").to_owned(),
            ]);
        }
        let fixed = [
            "--admin",
            "127.0.0.1:0",
            "--min-backoff",
            "10ms",
            "--max-backoff",
            "100ms",
        ];
        all.extend(fixed.iter().chain(flags).map(|flag| (*flag).to_owned()));
        Gateway::start_by(launcher, &[], engine, &all)
    }
}

/// The library, built once.
fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = LIBRARY.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libshifted_clock.so");
        let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shifted_clock.rs");
        let built = Command::new(compiler)
            .args([
                "--edition",
                "2024",
                "--crate-type",
                "cdylib",
                "-C",
                "panic=abort",
                "-o",
            ])
            .arg(&target)
            .arg(source)
            .output();
        match built {
            Ok(output) if output.status.success() => Some(target),
            Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                skip(
                    "clocks",
                    format_args!("rustc cannot be run: {error}; put it on the PATH"),
                );
                None
            }
        }
    });
    built.as_deref()
}

/// A body that tells its number.
fn numbered(number: usize) -> Vec<u8> {
    let mut body = format!("{number:06}").into_bytes();
    body.resize(10 << 10, b'.');
    body
}

/// That number.
fn number(request: &Received) -> usize {
    let digits = request.body.get(..6).expect("numbered");
    String::from_utf8_lossy(digits).parse().expect("numbered")
}

fn push_all(gateway: &Gateway, numbers: std::ops::Range<usize>) {
    for number in numbers {
        assert_eq!(gateway.ingest(numbered(number)).status, 200, "push {number}");
    }
}

/// Waits for as many requests as there are numbers; each has to come once.
fn take_once_each(peer: &Peer, numbers: std::ops::Range<usize>) {
    let mut seen = BTreeMap::new();
    for request in peer.take(numbers.len()) {
        *seen.entry(number(&request)).or_insert(0) += 1;
    }
    assert_eq!(seen, numbers.map(|number| (number, 1)).collect());
}

fn farewell(gateway: Gateway) -> Farewell {
    gateway
        .farewell()
        .remove("a")
        .expect("the destination's farewell")
}

fn await_spooled(gateway: &Gateway, count: usize) {
    let old = r#"pyrotee_destination_dropped_parcels_total{destination="a",reason="too_old"}"#;
    eventually("all to be on disk", || {
        let spooled = gateway.metric(r#"pyrotee_spool_stored_parcels_total{destination="a"}"#);
        // On a busy machine some may have grown too old before.
        (spooled + gateway.metric(old) >= count as f64).then_some(())
    });
}

fn what_waits_in_memory_does_not_age_by_a_jump(engine: &str) {
    let Some(clock) = WallClock::new() else { return };
    for jump in [DAY, -DAY] {
        let absent = Absent::new();
        clock.set(0);
        let gateway = clock.start(engine, &absent.url(), None, &[]);
        push_all(&gateway, 0..20);
        clock.set(jump);
        push_all(&gateway, 20..40);
        let peer = absent.appear();
        take_once_each(&peer, 0..40);
        assert!(gateway.metric("pyrotee_process_uptime_seconds") < 60.0);
        let farewell = farewell(gateway);
        assert_eq!((farewell.delivered, farewell.accepted()), (40, 40), "{jump}");
    }
}

fn what_waits_in_the_spool_does_not_age_by_a_jump(engine: &str) {
    let Some(clock) = WallClock::new() else { return };
    for jump in [DAY, -DAY] {
        let (spool, absent) = (tempfile::tempdir().expect("a folder"), Absent::new());
        clock.set(0);
        let gateway = clock.start(engine, &absent.url(), Some(spool.path()), &[]);
        push_all(&gateway, 0..100);
        await_spooled(&gateway, 99); // one may be the probe
        clock.set(jump);
        push_all(&gateway, 100..120);
        let peer = absent.appear();
        take_once_each(&peer, 0..120);
        let farewell = farewell(gateway);
        assert_eq!((farewell.delivered, farewell.accepted()), (120, 120), "{jump}");
    }
}

fn what_was_stored_before_a_jump_survives_a_kill_behind_it(engine: &str) {
    let Some(clock) = WallClock::new() else { return };
    for jump in [DAY, -DAY] {
        let (spool, absent) = (tempfile::tempdir().expect("a folder"), Absent::new());
        let url = absent.url();
        clock.set(0);
        let gateway = clock.start(engine, &url, Some(spool.path()), &["--ack", "stored"]);
        push_all(&gateway, 0..100);
        clock.set(jump);
        push_all(&gateway, 100..120);
        gateway.process.signal(Signal::KILL);
        gateway.process.wait();
        let gateway = clock.start(engine, &url, Some(spool.path()), &["--ack", "stored"]);
        push_all(&gateway, 120..130);
        let peer = absent.appear();
        take_once_each(&peer, 0..130);
        let farewell = farewell(gateway);
        assert_eq!((farewell.delivered, farewell.lost()), (130, 0), "{jump}");
    }
}

/// The clock is set while no gateway runs: forward, or back from a time that has not come yet.
fn what_was_spooled_survives_a_jump_before_the_next_start(engine: &str) {
    let Some(clock) = WallClock::new() else { return };
    for (before, after) in [(0, DAY), (40 * 365 * DAY, 0)] {
        let (spool, absent) = (tempfile::tempdir().expect("a folder"), Absent::new());
        let url = absent.url();
        clock.set(before);
        let gateway = clock.start(engine, &url, Some(spool.path()), &["--drain-timeout", "100ms"]);
        push_all(&gateway, 0..100);
        assert_eq!(farewell(gateway).spooled, 100);
        clock.set(after);
        let gateway = clock.start(engine, &url, Some(spool.path()), &[]);
        let peer = absent.appear();
        take_once_each(&peer, 0..100);
        let farewell = farewell(gateway);
        assert_eq!((farewell.delivered, farewell.lost()), (100, 0), "{after}");
    }
}

/// Without the file `clock`, as behind a boot, stamps from the future are as good as new.
fn stamps_from_the_future_are_as_good_as_new(engine: &str) {
    let Some(clock) = WallClock::new() else { return };
    let (spool, absent) = (tempfile::tempdir().expect("a folder"), Absent::new());
    let url = absent.url();
    clock.set(40 * 365 * DAY);
    let gateway = clock.start(engine, &url, Some(spool.path()), &["--drain-timeout", "100ms"]);
    push_all(&gateway, 0..100);
    assert_eq!(farewell(gateway).spooled, 100);
    clock.set(0);
    fs::remove_file(spool.path().join("a/clock")).expect("it is there");
    let gateway = clock.start(engine, &url, Some(spool.path()), &[]);
    let peer = absent.appear();
    take_once_each(&peer, 0..100);
    let farewell = farewell(gateway);
    assert_eq!((farewell.delivered, farewell.lost()), (100, 0));
}

fn what_is_too_old_is_too_old_whatever_the_clock_shows(engine: &str) {
    let Some(clock) = WallClock::new() else { return };
    for jump in [DAY, -DAY] {
        let (spool, absent) = (tempfile::tempdir().expect("a folder"), Absent::new());
        clock.set(0);
        let gateway = clock.start(
            engine,
            &absent.url(),
            Some(spool.path()),
            &["--max-age", "1500ms"],
        );
        push_all(&gateway, 0..100);
        await_spooled(&gateway, 99);
        clock.set(jump);
        std::thread::sleep(Duration::from_millis(1600)); // they have to grow old, and only time does that
        let peer = absent.appear();
        let mut pushed = 100;
        let mut arrived = Vec::new();
        // On a busy machine one may grow too old before the next probe.
        eventually("a fresh one to arrive", || {
            push_all(&gateway, pushed..pushed + 1);
            pushed += 1;
            arrived.extend(peer.received().iter().map(number));
            (!arrived.is_empty()).then_some(())
        });
        let farewell = farewell(gateway);
        arrived.extend(peer.received().iter().map(number));
        assert!(arrived.iter().all(|number| *number >= 100), "{jump}: {arrived:?}");
        let too_old = farewell.dropped.get("too_old").copied();
        let delivered = arrived.len() as u64;
        let expected = (Some(pushed as u64 - delivered), delivered);
        assert_eq!((too_old, farewell.delivered), expected, "{jump}");
    }
}

fn a_clock_that_is_set_all_the_time_loses_nothing(engine: &str) {
    let Some(clock) = WallClock::new() else { return };
    let (spool, absent) = (tempfile::tempdir().expect("a folder"), Absent::new());
    let gateway = clock.start(engine, &absent.url(), Some(spool.path()), &[]);
    for step in 0..100 {
        let days = [0, 3, -2, 11_000, -7, 1][step % 6];
        clock.set(days * DAY);
        push_all(&gateway, step..step + 1);
    }
    let peer = absent.appear();
    take_once_each(&peer, 0..100);
    let farewell = farewell(gateway);
    assert_eq!((farewell.delivered, farewell.accepted()), (100, 100));
}
