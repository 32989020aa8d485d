//! The disk behind the memory, on the real binary: outages longer than memory, restarts, kills, damage and full disks.
//!
//! What was answered is compared with what destinations received, in full: each body tells its number.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pyrotee::spool::{RealDisk, summary};
use rustix::process::Signal;
use serde_json::Value;
use support::gateway::{Farewell, Gateway, farewells, to};
use support::peer::{Absent, Held, Peer, Received, Reply};
use support::{Client, Process, eventually, get, post, run, skip, under_both_engines};

under_both_engines!(
    an_outage_longer_than_memory_loses_nothing,
    a_restart_during_an_outage_loses_nothing,
    a_shutdown_keeps_what_was_in_flight,
    a_kill_during_an_outage_loses_nothing_that_was_spooled,
    what_was_answered_under_stored_survives_kills,
    new_profiles_do_not_wait_for_the_backlog,
    a_second_gateway_is_kept_out,
    a_full_disk_is_survived_and_left_behind,
    a_disk_that_was_full_a_moment_ago_takes_the_rest_at_the_end,
    under_stored_a_full_disk_means_waiting_for_delivery,
    a_disk_that_hangs_is_told_and_passed_by,
    damage_costs_what_it_hits,
    what_is_no_file_hides_nothing,
    what_may_not_be_written_is_told,
    files_that_somebody_takes_away_are_told,
    a_folder_that_somebody_moves_away_is_told,
    what_cannot_be_read_is_told_to_the_end,
    what_cannot_be_read_of_another_destination_stops_nothing,
    a_spool_that_may_not_overflow_refuses,
    what_a_full_spool_cannot_take_at_the_end_is_told,
    what_is_spooled_for_nobody_is_kept_dropped_or_refused,
    what_grew_too_old_on_disk_is_not_sent,
    a_start_that_takes_long_says_so_and_can_be_ended,
);

/// A small memory, and bodies that fit it a few dozen times.
const SMALL: [&str; 8] = [
    "--queue-limit",
    "512KiB",
    "--body-limit",
    "256KiB",
    "--min-backoff",
    "10ms",
    "--max-backoff",
    "100ms",
];

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn start(engine: &str, url: &str, spool: &Path, flags: &[&str]) -> Gateway {
    let spool = spool.to_str().expect("a plain path");
    let fixed = [&SMALL[..], &["--spool", spool], flags].concat();
    let all: Vec<String> = to(&[url.to_owned()])
        .into_iter()
        .chain(fixed.iter().map(|flag| (*flag).to_owned()))
        .collect();
    Gateway::start(engine, &all)
}

/// A body that tells its number, of 10 KiB.
fn numbered(number: usize) -> Vec<u8> {
    let mut body = format!("{number:06}").into_bytes();
    body.resize(10 << 10, b'.');
    body
}

fn number_of(request: &Received) -> usize {
    let digits = request.body.get(..6).expect("numbered");
    String::from_utf8_lossy(digits).parse().expect("numbered")
}

/// Pushes the numbered bodies, each of which must be accepted.
fn push_all(gateway: &Gateway, numbers: std::ops::Range<usize>) {
    let mut client = gateway.client();
    for number in numbers {
        let answer = client.post("/ingest?name=app", &[], &numbered(number));
        assert_eq!(answer.expect("an answer").status, 200, "push {number}");
    }
}

/// How often each number arrives among the next `count` requests.
fn take(peer: &Peer, count: usize) -> BTreeMap<usize, usize> {
    let mut seen = BTreeMap::new();
    for request in peer.take(count) {
        *seen.entry(number_of(&request)).or_default() += 1;
    }
    seen
}

fn once_each(numbers: std::ops::Range<usize>) -> BTreeMap<usize, usize> {
    numbers.map(|number| (number, 1)).collect()
}

fn farewell(gateway: Gateway) -> Farewell {
    gateway
        .farewell()
        .remove("a")
        .expect("the destination's farewell")
}

/// All files of the spool that end in `ending`, in their order.
fn files(spool: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(spool.join("a")).expect("the destination's folder");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(ending)))
        .collect();
    files.sort();
    files
}

/// Waits until so many profiles are on disk: their bytes alone are fewer than those of one profile less with its head.
fn wait_for_profiles_on_disk(spool: &Path, count: u64) {
    eventually("the spool to take them", || {
        let seen = summary(&RealDisk::existing(&spool.join("a")), false).ok()?;
        (seen.left.parcels >= count).then_some(())
    });
}

fn an_outage_longer_than_memory_loses_nothing(engine: &str) {
    let (spool, absent) = (folder(), Absent::new());
    let gateway = start(engine, &absent.url(), spool.path(), &[]);
    push_all(&gateway, 0..300); // 3 MiB, six times the memory
    let peer = absent.appear();
    assert_eq!(take(&peer, 300), once_each(0..300));
    let farewell = farewell(gateway);
    assert_eq!((farewell.delivered, farewell.accepted()), (300, 300));
    assert!(
        files(spool.path(), ".spool").len() <= 1,
        "what is done is deleted"
    );
}

fn a_restart_during_an_outage_loses_nothing(engine: &str) {
    let (spool, absent) = (folder(), Absent::new());
    for round in 0..3 {
        let gateway = start(engine, &absent.url(), spool.path(), &["--drain-timeout", "200ms"]);
        push_all(&gateway, round * 40..(round + 1) * 40);
        let farewell = farewell(gateway);
        assert_eq!((farewell.spooled, farewell.lost()), ((round as u64 + 1) * 40, 0));
    }
    let url = absent.url();
    let peer = absent.appear();
    let gateway = start(engine, &url, spool.path(), &[]);
    assert_eq!(take(&peer, 120), once_each(0..120));
    push_all(&gateway, 120..121);
    assert_eq!(take(&peer, 1), once_each(120..121));
    assert_eq!(farewell(gateway).delivered, 121);
}

fn a_shutdown_keeps_what_was_in_flight(engine: &str) {
    let spool = folder();
    let silent = Peer::deciding(|_| Reply::Held(Held::default()));
    let flags = ["--drain-timeout", "100ms", "--remote-timeout", "1m"];
    let gateway = start(engine, &silent.url(), spool.path(), &flags);
    push_all(&gateway, 0..10);
    silent.take(10);
    let farewell = farewell(gateway);
    assert_eq!(
        (farewell.spooled, farewell.lost(), farewell.undecided),
        (10, 0, 0)
    );
    let peer = Peer::start();
    let gateway = start(engine, &peer.url(), spool.path(), &[]);
    assert_eq!(take(&peer, 10), once_each(0..10));
    gateway.end_whole();
}

fn a_kill_during_an_outage_loses_nothing_that_was_spooled(engine: &str) {
    let (spool, absent) = (folder(), Absent::new());
    let gateway = start(engine, &absent.url(), spool.path(), &[]);
    push_all(&gateway, 0..100);
    wait_for_profiles_on_disk(spool.path(), 100);
    gateway.process.signal(Signal::KILL);
    gateway.process.wait();
    let url = absent.url();
    let peer = absent.appear();
    let gateway = start(engine, &url, spool.path(), &[]);
    assert_eq!(take(&peer, 100), once_each(0..100));
    gateway.end_whole();
}

/// Kills the gateway in the middle of pushing, again and again, and starts it anew on its spool: whatever was answered has
/// to arrive. `PYROTEE_KILLS` sets how often.
fn what_was_answered_under_stored_survives_kills(engine: &str) {
    let kills: usize = std::env::var("PYROTEE_KILLS").map_or(10, |kills| kills.parse().expect("a number"));
    let spool = folder();
    let refusing = AtomicUsize::new(0);
    // One attempt in three fails in one of several ways, so that records wait, are retried and are in flight at each kill.
    let peer = Peer::deciding(move |_| match refusing.fetch_add(1, Ordering::Relaxed) % 9 {
        0 => Reply::Status(503, ""),
        3 => Reply::Close,
        6 => Reply::Reset,
        _ => Reply::Ok,
    });
    let next = AtomicUsize::new(0);
    let mut answered = Vec::new();
    for round in 0..kills {
        let gateway = start(engine, &peer.url(), spool.path(), &["--ack", "stored"]);
        let (address, is_over) = (gateway.address, AtomicBool::new(false));
        std::thread::scope(|scope| {
            // All are connected before one of them can have pushed enough for the kill.
            let clients: Vec<Client> = (0..4).map(|_| Client::connect(address)).collect();
            let (next, is_over) = (&next, &is_over);
            let pushers: Vec<_> = clients
                .into_iter()
                .map(|client| scope.spawn(move || push_until_gone(client, next, is_over)))
                .collect();
            eventually("pushes to be under way", || {
                pushers
                    .iter()
                    .any(|pusher| !pusher.is_finished())
                    .then_some(())
                    .filter(|()| next.load(Ordering::Relaxed) > (round + 1) * 20)
            });
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..60)));
            gateway.process.signal(Signal::KILL);
            is_over.store(true, Ordering::Relaxed);
            answered.extend(
                pushers
                    .into_iter()
                    .flat_map(|pusher| pusher.join().expect("a pusher")),
            );
        });
        gateway.process.wait();
    }
    let gateway = start(engine, &peer.url(), spool.path(), &["--ack", "stored"]);
    let mut missing: std::collections::BTreeSet<usize> = answered.iter().copied().collect();
    assert!(
        missing.len() >= kills * 10,
        "{} pushes were answered",
        missing.len()
    );
    while !missing.is_empty() {
        missing.remove(&number_of(&peer.next()));
    }
    let farewell = farewell(gateway);
    assert_eq!((farewell.lost(), farewell.undecided), (0, 0), "{farewell:?}");
}

/// Pushes until the gateway goes; returns the numbers that were answered with 200.
fn push_until_gone(mut client: Client, next: &AtomicUsize, is_over: &AtomicBool) -> Vec<usize> {
    let mut answered = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        match client.post("/ingest?name=app", &[], &numbered(number)) {
            Ok(answer) if answer.status == 200 => answered.push(number),
            Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
            Err(_) => break,
        }
    }
    answered
}

fn new_profiles_do_not_wait_for_the_backlog(engine: &str) {
    let (spool, absent) = (folder(), Absent::new());
    // One at a time, so that the order of arrival is the order of sending.
    let mut gateway = start(engine, &absent.url(), spool.path(), &["--inflight", "1"]);
    push_all(&gateway, 0..200);
    wait_for_profiles_on_disk(spool.path(), 200);
    // The backlog is stopped for as long as new ones are pushed.
    let pushed = Held::default();
    let until_pushed = pushed.clone();
    let peer = absent.appear_deciding(move |request| match request.index {
        1 => Reply::Held(until_pushed.clone()),
        _ => Reply::Ok,
    });
    let first = number_of(&peer.next());
    assert!(first < 200, "the backlog comes");
    // Until the probe's answer is there a new profile goes to disk, behind the backlog.
    gateway.logged("destination is up again");
    push_all(&gateway, 1000..1005);
    pushed.open();
    let arrived: Vec<usize> = peer.take(204).iter().map(number_of).collect();
    let last_new = arrived
        .iter()
        .rposition(|number| *number >= 1000)
        .expect("new ones arrive");
    let newest_behind = arrived[last_new..].iter().filter(|number| **number < 200).count();
    assert!(newest_behind > 50, "new ones overtook the backlog: {arrived:?}");
    gateway.end_whole();
}

fn a_second_gateway_is_kept_out(engine: &str) {
    let (spool, peer) = (folder(), Peer::start());
    let gateway = start(engine, &peer.url(), spool.path(), &[]);
    let path = spool.path().to_str().expect("a plain path");
    let url = format!("a={}", peer.url());
    let second = [
        "run",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "off",
        "--to",
        &url,
        "--spool",
        path,
    ];
    let ended = run(&second);
    assert!(!ended.status.success());
    let id = gateway.process.id().to_string();
    assert!(
        ended.stderr.contains("--spool") && ended.stderr.contains(&id),
        "it names the holder: {}",
        ended.stderr
    );
    push_all(&gateway, 0..1);
    gateway.end_whole();
}

/// A file system of 2 MiB of its own; `None`, said aloud, where the machine does not allow one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(test: &str) -> Option<Self> {
        let folder = folder();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "pyrotee-test"])
            .arg(folder.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => Some(Self(folder)),
            Ok(output) => {
                skip(test, String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                skip(test, error);
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn a_full_disk_is_survived_and_left_behind(engine: &str) {
    let Some(disk) = SmallDisk::mount("a_full_disk_is_survived_and_left_behind") else {
        return;
    };
    let absent = Absent::new();
    let mut gateway = start(engine, &absent.url(), disk.path(), &[]);
    push_all(&gateway, 0..400); // 4 MiB: more than disk and memory together
    gateway.logged("cannot be written");
    let url = absent.url();
    let peer = absent.appear();
    assert_eq!(url, peer.url());
    let mut seen = BTreeMap::new();
    loop {
        *seen.entry(number_of(&peer.next())).or_insert(0) += 1;
        if seen.contains_key(&399) && seen.len() >= 150 {
            break;
        }
    }
    push_all(&gateway, 1000..1001);
    let farewell = farewell(gateway);
    let lost = farewell.dropped.get("overflow").copied().unwrap_or(0);
    assert_eq!(
        (farewell.accepted(), farewell.lost()),
        (401, lost),
        "nothing is lost but for want of room: {farewell:?}"
    );
    assert!(lost > 0 && farewell.undecided == 0, "{farewell:?}");
}

/// After failures the disk is left alone for seconds, which a shutdown does not have: it tries the disk at once.
fn a_disk_that_was_full_a_moment_ago_takes_the_rest_at_the_end(engine: &str) {
    let Some(disk) = SmallDisk::mount("a_disk_that_was_full_a_moment_ago_takes_the_rest_at_the_end") else {
        return;
    };
    let ballast = disk.path().join("ballast");
    let absent = Absent::new();
    let url = absent.url();
    let flags = ["--drain-timeout", "100ms"];
    let mut gateway = start(engine, &url, disk.path(), &flags);
    fill(&ballast);
    push_all(&gateway, 0..20);
    gateway.logged("cannot be written");
    fs::remove_file(&ballast).expect("room is made");
    let first = farewell(gateway);
    assert_eq!((first.spooled, first.lost()), (20, 0), "{first:?}");
    let peer = absent.appear();
    let gateway = start(engine, &url, disk.path(), &flags);
    assert_eq!(take(&peer, 20), once_each(0..20));
    gateway.end_whole();
}

fn under_stored_a_full_disk_means_waiting_for_delivery(engine: &str) {
    let Some(disk) = SmallDisk::mount("under_stored_a_full_disk_means_waiting_for_delivery") else {
        return;
    };
    let ballast = disk.path().join("ballast");
    let peer = Peer::start();
    let gateway = start(engine, &peer.url(), disk.path(), &["--ack", "stored"]);
    push_all(&gateway, 0..1);
    fill(&ballast);
    push_all(&gateway, 1..20);
    assert_eq!(take(&peer, 20), once_each(0..20));
    fs::remove_file(&ballast).expect("room is made");
    push_all(&gateway, 20..21);
    gateway.end_whole();

    let absent = Absent::new();
    let gateway = start(engine, &absent.url(), disk.path(), &["--ack", "stored"]);
    fill(&ballast);
    let mut answers: Vec<u16> = Vec::new();
    for number in 0..3 {
        let answer = gateway.ingest(numbered(number));
        assert!(answer.header("retry-after").is_some() == (answer.status == 503));
        answers.push(answer.status);
    }
    assert_eq!(answers, [503; 3], "neither disk nor destination has it");
    let farewell = farewell(gateway);
    assert_eq!((farewell.delivered, farewell.spooled), (0, 0), "{farewell:?}");
}

/// A file system in a file, whose writers wait while it is frozen.
struct FreezableDisk(tempfile::TempDir);

impl FreezableDisk {
    /// `None`, said aloud, where the machine does not allow one.
    fn mount(test: &str) -> Option<Self> {
        let disk = Self(folder());
        let image = disk.0.path().join("image");
        fs::create_dir(disk.path()).expect("a folder");
        let made = fs::File::create(&image).and_then(|file| file.set_len(16 << 20));
        made.expect("a file");
        for (program, args) in [("mkfs.ext4", ["-q", "-F"]), ("mount", ["-o", "loop"])] {
            let mut command = Command::new(program);
            command.args(args).arg(&image);
            if program == "mount" {
                command.arg(disk.path());
            }
            match command.output() {
                Ok(output) if output.status.success() => {}
                Ok(output) => {
                    skip(test, String::from_utf8_lossy(&output.stderr));
                    return None;
                }
                Err(error) => {
                    skip(test, format!("{program}: {error}"));
                    return None;
                }
            }
        }
        Some(disk)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mounted")
    }

    fn fsfreeze(&self, flag: &str) -> bool {
        let ended = Command::new("fsfreeze").arg(flag).arg(self.path()).output();
        ended.is_ok_and(|ended| ended.status.success())
    }
}

impl Drop for FreezableDisk {
    fn drop(&mut self) {
        self.fsfreeze("--unfreeze");
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn a_disk_that_hangs_is_told_and_passed_by(engine: &str) {
    let Some(disk) = FreezableDisk::mount("a_disk_that_hangs_is_told_and_passed_by") else {
        return;
    };
    let peer = Peer::start();
    let flags = ["--ack", "stored", "--admin", "127.0.0.1:0"];
    let mut gateway = start(engine, &peer.url(), &disk.path(), &flags);
    let is_up = |gateway: &Gateway| gateway.metric(r#"pyrotee_spool_up{destination="a"}"#);
    push_all(&gateway, 0..1);
    assert_eq!(take(&peer, 1), once_each(0..1));
    assert_eq!(is_up(&gateway), 1.0);
    assert!(disk.fsfreeze("--freeze"), "it can be frozen");
    let mut patient = gateway.client();
    patient
        .send(post("/ingest?name=app", &[], &numbered(1)))
        .expect("it is sent");
    gateway.logged("the spool's disk does not answer");
    assert_eq!(is_up(&gateway), 0.0);
    // What comes now is answered when its destination has it; what the disk was given waits.
    push_all(&gateway, 2..20);
    assert_eq!(take(&peer, 18), (2..20).map(|number| (number, 1)).collect());
    assert!(disk.fsfreeze("--unfreeze"), "it goes on");
    assert_eq!(patient.receive().expect("an answer").status, 200);
    assert_eq!(take(&peer, 1), once_each(1..2));
    gateway.logged("the spool's disk answers again");
    assert_eq!(is_up(&gateway), 1.0);
    gateway.end_whole();
}

/// Writes until the disk is full.
fn fill(ballast: &Path) {
    use std::io::Write as _;
    let mut file = fs::File::create(ballast).expect("a file");
    while file.write_all(&[0; 4096]).is_ok() {}
}

fn damage_costs_what_it_hits(engine: &str) {
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, Damage, std::ops::RangeInclusive<usize>); 6] = [
        ("a torn tail", |bytes| bytes.truncate(bytes.len() - 100), 49..=49),
        (
            "a flipped bit in a body",
            |bytes| {
                let at = bytes.len() / 2;
                bytes[at] ^= 4;
            },
            49..=49,
        ),
        (
            "a hole of 4 KiB",
            |bytes| {
                let at = bytes.len() / 3;
                bytes[at..at + 4096].fill(0);
            },
            48..=49,
        ),
        ("a header that is gone", |bytes| bytes[..32].fill(0xff), 0..=50),
        ("an empty file", Vec::clear, 0..=0),
        (
            "garbage behind the end",
            |bytes| bytes.extend([0x5a; 5000]),
            50..=50,
        ),
    ];
    for (name, damage, expected) in cases {
        let (spool, absent) = (folder(), Absent::new());
        let gateway = start(engine, &absent.url(), spool.path(), &["--drain-timeout", "100ms"]);
        push_all(&gateway, 0..50);
        assert_eq!(farewell(gateway).spooled, 50, "{name}");
        let segments = files(spool.path(), ".spool");
        let segment = segments
            .iter()
            .max_by_key(|file| file.metadata().map_or(0, |metadata| metadata.len()));
        let segment = segment.expect("a segment");
        let mut bytes = fs::read(segment).expect("it can be read");
        damage(&mut bytes);
        fs::write(segment, bytes).expect("it can be written");
        let url = absent.url();
        let peer = absent.appear();
        let gateway = start(engine, &url, spool.path(), &[]);
        push_all(&gateway, 900..901);
        // A segment that is done is deleted, and the new one passes by in memory.
        eventually("the backlog to be sent", || {
            files(spool.path(), ".spool").is_empty().then_some(())
        });
        let farewell = farewell(gateway);
        let arrived = farewell.delivered as usize - 1;
        assert!(expected.contains(&arrived), "{name}: {arrived} of 50 arrived");
        let seen = take(&peer, arrived + 1);
        assert!(seen.values().all(|times| *times == 1), "{name}: {seen:?}");
        assert_eq!(farewell.undecided + farewell.spooled, 0, "{name}: {farewell:?}");
    }
}

/// A pipe would be waited for, a link was passed over in silence.
fn what_is_no_file_hides_nothing(engine: &str) {
    let (spool, elsewhere, absent) = (folder(), folder(), Absent::new());
    let gateway = start(engine, &absent.url(), spool.path(), &["--drain-timeout", "100ms"]);
    push_all(&gateway, 0..50);
    assert_eq!(farewell(gateway).spooled, 50);
    let segments = files(spool.path(), ".spool");
    let segment = segments.first().expect("a segment");
    let moved = elsewhere.path().join("moved");
    fs::rename(segment, &moved).expect("it can be moved");
    std::os::unix::fs::symlink(&moved, segment).expect("a link");
    let pipes = ["clock", "0000000000000900.spool", "0000000000000901.done"];
    for pipe in pipes.map(|name| spool.path().join("a").join(name)) {
        let _ = fs::remove_file(&pipe);
        let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success(), "{}", pipe.display());
    }
    fs::write(spool.path().join("a/0000000000000901.spool"), [0; 500]).expect("a file");
    let url = absent.url();
    let peer = absent.appear();
    let gateway = start(engine, &url, spool.path(), &[]);
    assert_eq!(take(&peer, 50), once_each(0..50));
    let log = gateway.process.terminate().stderr;
    for name in ["0000000000000900", "0000000000000901"] {
        assert!(log.contains(&format!("{name}.spool")), "{name}: {log}");
    }
    assert!(!log.contains("cannot mark"), "{log}");
}

/// Folders that this user may not use, and one that it may only read.
fn what_may_not_be_written_is_told(engine: &str) {
    let is_root = rustix::process::geteuid().is_root();
    if is_root && Command::new("setpriv").arg("--version").output().is_err() {
        return skip("what_may_not_be_written_is_told", "no setpriv (util-linux)");
    }
    // Root may do anything until it cannot pass over what the modes say.
    let launch = || {
        let mut setpriv = Command::new("setpriv");
        setpriv.args([
            "--bounding-set=-dac_override,-dac_read_search",
            env!("CARGO_BIN_EXE_pyrotee"),
        ]);
        if is_root {
            setpriv
        } else {
            Command::new(env!("CARGO_BIN_EXE_pyrotee"))
        }
    };
    let peer = Peer::start();
    let spool = folder();
    let (own, lock) = (spool.path().join("a"), spool.path().join("lock"));
    let (url, directory) = (format!("a={}", peer.url()), spool.path().display().to_string());
    let flags = ["--to", &url, "--spool", &directory];
    let refused = |says: &[&str]| {
        let fixed = ["run", "--listen", "127.0.0.1:0", "--admin", "off"];
        let ended = Process::start_by(launch(), &[&fixed[..], &flags].concat()).wait();
        assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
        for words in says {
            assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr);
        }
    };
    let allow = |mode| fs::set_permissions(&own, fs::Permissions::from_mode(mode)).expect("it is ours");
    fs::create_dir(&lock).expect("a folder");
    refused(&[&directory, "'lock'", "Is a directory"]);
    fs::remove_dir(&lock).expect("an empty folder");
    fs::write(&own, "").expect("a file");
    refused(&["destination 'a'", own.to_str().expect("plain"), "exists"]);
    fs::remove_file(&own).expect("a file");
    fs::create_dir(&own).expect("a folder");
    allow(0o300);
    refused(&[
        "destination 'a'",
        own.to_str().expect("plain"),
        "Permission denied",
    ]);
    allow(0o500);
    let gateway = Gateway::start_by(launch(), &[], engine, &flags);
    push_all(&gateway, 0..3);
    assert_eq!(take(&peer, 3), once_each(0..3));
    let ended = gateway.process.terminate();
    let told = "the spool cannot be written as it is";
    assert!(ended.stderr.contains(told), "{}", ended.stderr);
    assert_eq!(farewells(&ended)["a"].lost(), 0);
    allow(0o700);
}

/// A file without a name takes writes and syncs as ever, and nobody finds it again.
fn files_that_somebody_takes_away_are_told(engine: &str) {
    let flags = ["--drain-timeout", "100ms"];
    for (ack, is_killed) in [("queued", false), ("stored", false), ("stored", true)] {
        let (spool, absent) = (folder(), Absent::new());
        let flags = [&flags[..], &["--ack", ack]].concat();
        let mut gateway = start(engine, &absent.url(), spool.path(), &flags);
        push_all(&gateway, 0..10);
        wait_for_profiles_on_disk(spool.path(), 10);
        for segment in files(spool.path(), ".spool") {
            fs::remove_file(segment).expect("it can be removed");
        }
        push_all(&gateway, 10..20);
        wait_for_profiles_on_disk(spool.path(), 10);
        gateway.logged("somebody has taken away a file of the spool");
        if is_killed {
            gateway.process.signal(Signal::KILL);
            gateway.process.wait();
        } else {
            let farewell = farewell(gateway);
            let told = (farewell.spooled, farewell.dropped.get("damaged"), farewell.lost());
            assert_eq!(told, (10, Some(&10), 10), "{ack}");
        }
        let url = absent.url();
        let peer = absent.appear();
        let gateway = start(engine, &url, spool.path(), &[]);
        assert_eq!(take(&peer, 10), once_each(10..20), "{ack}");
        gateway.end_whole();
    }
}

/// What it holds is sent all the same, for it is open; what comes then has nowhere to go but memory.
fn a_folder_that_somebody_moves_away_is_told(engine: &str) {
    let (spool, absent) = (folder(), Absent::new());
    let mut gateway = start(engine, &absent.url(), &spool.path().join("in"), &[]);
    push_all(&gateway, 0..10);
    wait_for_profiles_on_disk(&spool.path().join("in"), 10);
    fs::rename(spool.path().join("in"), spool.path().join("moved")).expect("it can be moved");
    push_all(&gateway, 10..20);
    gateway.logged("the spool cannot be written");
    let peer = absent.appear();
    assert_eq!(take(&peer, 20), once_each(0..20));
    gateway.end_whole();
}

/// What it holds is in no count, so "all delivered" would say too much.
fn what_cannot_be_read_is_told_to_the_end(engine: &str) {
    let (spool, absent) = (folder(), Absent::new());
    let gateway = start(engine, &absent.url(), spool.path(), &["--drain-timeout", "100ms"]);
    push_all(&gateway, 0..5);
    assert_eq!(farewell(gateway).spooled, 5);
    let own = spool.path().join("a");
    let segment = files(spool.path(), ".spool").remove(0);
    fs::copy(segment, own.join("0000000000000009.spool")).expect("a copy");
    fs::create_dir(own.join("0000000000000009.done")).expect("a folder");
    let url = absent.url();
    let peer = absent.appear();
    let gateway = start(engine, &url, spool.path(), &["--admin", "127.0.0.1:0"]);
    assert_eq!(take(&peer, 5), once_each(0..5));
    let aside = r#"pyrotee_spool_aside_segments{destination="a"}"#;
    assert_eq!(gateway.metric(aside), 1.0);
    let ended = gateway.process.terminate();
    assert!(
        ended.stderr.contains("is left for the next start"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("all delivered"), "{}", ended.stderr);
    let told = &farewells(&ended)["a"];
    assert_eq!((told.delivered, told.lost()), (5, 0));
}

/// Neither a start nor a look at the others.
fn what_cannot_be_read_of_another_destination_stops_nothing(engine: &str) {
    let (spool, absent) = (folder(), Absent::new());
    let gateway = start(engine, &absent.url(), spool.path(), &["--drain-timeout", "100ms"]);
    push_all(&gateway, 0..5);
    assert_eq!(farewell(gateway).spooled, 5);
    let other = spool.path().join("b");
    fs::create_dir_all(other.join("0000000000000001.done")).expect("a folder");
    let segment = files(spool.path(), ".spool").remove(0);
    fs::copy(segment, other.join("0000000000000001.spool")).expect("a copy");
    let path = spool.path().to_str().expect("a plain path");
    let told = run(&["spool", "verify", "--spool", path]).stdout;
    assert!(told.contains("a: one segment, 5 records good"), "{told}");
    assert!(told.contains("cannot be read"), "{told}");
    let url = absent.url();
    let peer = absent.appear();
    let gateway = start(engine, &url, spool.path(), &[]);
    assert_eq!(take(&peer, 5), once_each(0..5));
    let log = gateway.process.terminate().stderr;
    assert!(log.contains("cannot be read"), "{log}");
    let to = format!("a={url}");
    let flags = [
        "run",
        "--listen",
        "127.0.0.1:0",
        "--to",
        &to,
        "--spool",
        path,
        "--spool-orphans",
        "refuse",
    ];
    let refused = run(&flags);
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("'b'"), "{}", refused.stderr);
}

fn a_spool_that_may_not_overflow_refuses(engine: &str) {
    let (spool, absent) = (folder(), Absent::new());
    let flags = ["--overflow", "refuse", "--spool-limit", "1MiB"];
    let gateway = start(engine, &absent.url(), spool.path(), &flags);
    let mut accepted = 0;
    let refused = loop {
        let answer = gateway.ingest(numbered(accepted));
        if answer.status != 200 {
            break answer;
        }
        accepted += 1;
        assert!(
            accepted < 1000,
            "1 MiB on disk and half of that in memory are full by now"
        );
    };
    assert_eq!(
        (refused.status, refused.header("retry-after").is_some()),
        (503, true)
    );
    let peer = absent.appear();
    assert_eq!(take(&peer, accepted), once_each(0..accepted));
    assert_eq!(farewell(gateway).delivered, accepted as u64);
}

fn what_a_full_spool_cannot_take_at_the_end_is_told(engine: &str) {
    let (spool, absent) = (folder(), Absent::new());
    let flags = [
        "--overflow",
        "refuse",
        "--spool-limit",
        "1MiB",
        "--drain-timeout",
        "100ms",
    ];
    let gateway = start(engine, &absent.url(), spool.path(), &flags);
    let mut accepted = 0;
    while gateway.ingest(numbered(accepted)).status == 200 {
        accepted += 1;
        assert!(accepted < 1000, "disk and memory are full by now");
    }
    let farewell = farewell(gateway);
    let lost = farewell.dropped.get("shutdown").copied().unwrap_or(0);
    assert_eq!(
        (farewell.accepted(), farewell.undecided),
        (accepted as u64, 0),
        "nothing was on the wire: {farewell:?}"
    );
    assert!(
        lost > 0 && farewell.spooled > 0 && farewell.lost() == lost,
        "{farewell:?}"
    );
}

fn what_is_spooled_for_nobody_is_kept_dropped_or_refused(engine: &str) {
    let (spool, absent) = (folder(), Absent::new());
    let gateway = start(engine, &absent.url(), spool.path(), &["--drain-timeout", "100ms"]);
    push_all(&gateway, 0..5);
    assert_eq!(farewell(gateway).spooled, 5);
    let peer = Peer::start();
    let path = spool.path().to_str().expect("a plain path");
    let url = format!("b={}", peer.url());
    let flags = |orphans| {
        let flags = ["--to", &url, "--spool", path, "--spool-orphans", orphans];
        flags.map(str::to_owned)
    };
    let fixed = ["run", "--listen", "127.0.0.1:0", "--admin", "off"].map(str::to_owned);
    let ended = run(&[&fixed[..], &flags("refuse")].concat());
    assert!(
        !ended.status.success() && ended.stderr.contains("--spool-orphans") && ended.stderr.contains('a'),
        "{}",
        ended.stderr
    );
    // The folder may be a file system of its own.
    fs::create_dir(spool.path().join("lost+found")).expect("a folder");
    for (orphans, is_there_after) in [("keep", true), ("drop", false)] {
        let log = Gateway::start(engine, &flags(orphans)).process.terminate().stderr;
        let line = log.lines().find(|line| line.contains("no longer given"));
        let line = line.unwrap_or_else(|| panic!("{orphans}: {log}"));
        assert!(line.contains("\"parcels\":5"), "{orphans}: {line}");
        assert_eq!(spool.path().join("a").exists(), is_there_after, "{orphans}");
        assert!(spool.path().join("lost+found").exists(), "{orphans}");
    }
}

fn what_grew_too_old_on_disk_is_not_sent(engine: &str) {
    let (spool, absent) = (folder(), Absent::new());
    let flags = ["--drain-timeout", "100ms", "--max-age", "1s"];
    let gateway = start(engine, &absent.url(), spool.path(), &flags);
    push_all(&gateway, 0..20);
    let first = farewell(gateway);
    let url = absent.url();
    let peer = absent.appear();
    std::thread::sleep(Duration::from_millis(1100)); // they have to grow old, and only time does that
    let gateway = start(engine, &url, spool.path(), &flags);
    let (mut pushed, mut arrived) = (100, Vec::new());
    // On a busy machine a fresh one may grow too old before it is sent.
    eventually("a fresh one to arrive", || {
        push_all(&gateway, pushed..pushed + 1);
        pushed += 1;
        arrived.extend(peer.received().iter().map(number_of));
        (!arrived.is_empty()).then_some(())
    });
    let second = farewell(gateway);
    arrived.extend(peer.received().iter().map(number_of));
    assert!(arrived.iter().all(|number| *number >= 100), "{arrived:?}");
    let too_old = |farewell: &Farewell| farewell.dropped.get("too_old").copied().unwrap_or(0);
    assert_eq!(second.delivered, arrived.len() as u64);
    let gone = too_old(&first) + too_old(&second);
    let fresh = pushed as u64 - 100;
    assert_eq!(gone + second.delivered, 20 + fresh, "{first:?} {second:?}");
}

fn a_start_that_takes_long_says_so_and_can_be_ended(engine: &str) {
    let spool = folder();
    fs::create_dir_all(spool.path().join("a")).unwrap();
    // A hole of so many bytes is read for minutes.
    let endless = fs::File::create(spool.path().join("a").join(format!("{:016}.spool", 1))).unwrap();
    if let Err(error) = endless.set_len(512 << 30) {
        return skip("a_start_that_takes_long_says_so_and_can_be_ended", error);
    }
    let path = spool.path().to_str().expect("a plain path");
    let args = [
        "run",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--log",
        "json",
    ];
    let rest = [
        "--engine",
        engine,
        "--cores",
        "1",
        "--to",
        "a=http://127.0.0.1:9",
        "--spool",
        path,
    ];
    let mut process = Process::start(&[&args[..], &rest].concat());
    let admin = process.log("the admin port", |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["message"] == "admin port").then(|| line["address"].as_str()?.parse().ok())?
    });
    let reading = "not ready: starting: reading the spool of 'a', segment 1 of 1\n";
    eventually("its being told", || {
        let answer = get(admin, "/-/ready");
        assert_eq!(answer.status, 503);
        assert_eq!(answer.header("retry-after"), Some("1"));
        (answer.text() == reading).then_some(())
    });
    assert_eq!(get(admin, "/-/healthy").status, 200);
    assert_eq!(get(admin, "/metrics").status, 503);
    let told = process.log("the log's word of it", |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let is_it = line["message"] == "still starting, clients wait";
        is_it.then(|| line["at"].as_str().map(str::to_owned))?
    });
    assert!(reading.contains(&told), "{told}");
    let ended = process.terminate();
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(
        ended
            .stderr
            .contains("SIGTERM: leaving before the start was over"),
        "{}",
        ended.stderr
    );
}
