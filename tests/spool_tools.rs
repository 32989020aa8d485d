//! `pyrotee spool`: what waits on disk is listed, proved, shown, sent and deleted, and never under a running gateway's feet.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use pyrotee::profile::route::Route;
use pyrotee::spool::{RealDisk, RecordParts, Store, StoreLimits, folder_name};
use serde_json::Value;
use support::gateway::Gateway;
use support::peer::{Absent, Peer, Reply};
use support::{Ended, engines, eventually, run};

const USAGE: Option<i32> = Some(64);
/// Length of a body.
const BODY_BYTES: usize = 1000;

fn body(number: usize) -> Vec<u8> {
    let mut body = format!("body {number};").into_bytes();
    body.resize(BODY_BYTES, b'.');
    body
}

/// Puts bodies of these numbers into the spool of a destination; the first is done already.
fn fill(spool: &Path, destination: &str, numbers: std::ops::Range<usize>) {
    let disk = RealDisk::create(&spool.join(folder_name(destination))).expect("a folder");
    let (mut store, _) = Store::open(disk, StoreLimits::of(1 << 20)).expect("a store");
    let mut first = None;
    for number in numbers {
        let body = Bytes::from(body(number));
        let query = format!("name=app{number}");
        let parts = RecordParts {
            accepted_unix_ms: 1_700_000_000_000 + number as u64,
            route: Route::Ingest,
            profiles: 1,
            profile_bytes: BODY_BYTES as u64,
            query: query.as_bytes(),
            fields: b"Content-Type: x/y\r\nX-Team: seven\r\n",
            segments: &[body.slice(..10), body.slice(10..)],
        };
        let id = store.append(&parts, false).expect("room");
        first.get_or_insert(id);
    }
    store.done(&[first.expect("one at least")]).expect("a mark");
}

/// Runs `pyrotee spool WORDS --spool FOLDER`.
fn tool(spool: &Path, words: &[&str]) -> Ended {
    let spool = spool.to_str().expect("a plain path");
    run(&[&["spool"], words, &["--spool", spool]].concat())
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", ended.stdout, ended.stderr))
}

/// What waits for each destination, by `ls`.
fn left(spool: &Path) -> Vec<(String, u64)> {
    let told = json(&tool(spool, &["ls", "--json"]));
    let rows = told["destinations"].as_array().expect("a list").iter();
    rows.map(|row| {
        let name = row["destination"].as_str().expect("a name").to_owned();
        (name, row["records"].as_u64().expect("a number"))
    })
    .collect()
}

#[test]
fn ls_lists_destinations_and_records() {
    let spool = tempfile::tempdir().expect("a folder");
    fill(spool.path(), "eu.west", 0..4);
    fill(spool.path(), "us", 10..12);
    let ended = tool(spool.path(), &["ls"]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    let lines: Vec<Vec<&str>> = ended
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0],
        [
            "destination",
            "records",
            "profiles",
            "bytes",
            "oldest",
            "segments",
            "on",
            "disk"
        ]
    );
    assert_eq!(lines[1][..4], ["eu.west", "3", "3", "2.9"], "{}", ended.stdout);
    assert_eq!(lines[2][..3], ["us", "1", "1"]);

    let told = json(&tool(spool.path(), &["ls", "--json", "--destination", "eu.west"]));
    let row = &told["destinations"][0];
    assert_eq!(told["destinations"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&row["done"], &row["oldest_unix_ms"], &row["damaged"]),
        (&1.into(), &1_700_000_000_001_u64.into(), &0.into())
    );

    let ended = tool(spool.path(), &["ls", "--records", "--json"]);
    let rows: Vec<Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let ids: Vec<(&str, bool)> = rows
        .iter()
        .map(|row| (row["record"].as_str().expect("an id"), row["done"] == true))
        .collect();
    let expected = [
        ("1-0", true),
        ("1-1", false),
        ("1-2", false),
        ("1-3", false),
        ("1-0", true),
        ("1-1", false),
    ];
    assert_eq!(ids, expected);
    let ended = tool(spool.path(), &["ls", "--records"]);
    assert!(
        ended.stdout.contains("/ingest") && ended.stdout.contains("waiting"),
        "{}",
        ended.stdout
    );
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let spool = tempfile::tempdir().expect("a folder");
    let ended = run(&["spool", "ls"]);
    assert_eq!(ended.status.code(), USAGE);
    assert!(ended.stderr.contains("add --spool DIR"), "{}", ended.stderr);
    let missing = spool.path().join("missing");
    let ended = tool(&missing, &["ls"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("is no folder"), "{}", ended.stderr);
    assert!(!missing.exists(), "looking changes nothing");
    let ended = tool(spool.path(), &["drop", "--yes"]);
    assert!(ended.stderr.contains("nothing is spooled"), "{}", ended.stderr);

    fill(spool.path(), "eu", 0..2);
    fill(spool.path(), "us", 0..2);
    let ended = tool(spool.path(), &["cat", "--record", "1-1"]);
    assert!(
        ended.stderr.contains("add --destination NAME; there is: eu, us"),
        "{}",
        ended.stderr
    );
    let ended = tool(spool.path(), &["cat", "--record", "1-9", "--destination", "eu"]);
    assert!(ended.stderr.contains("no record 1-9"), "{}", ended.stderr);
    let ended = tool(spool.path(), &["cat", "--record", "one", "--destination", "eu"]);
    assert_eq!(ended.status.code(), USAGE, "{}", ended.stderr);
    let ended = tool(spool.path(), &["ls", "--destination", "asia"]);
    assert!(
        ended
            .stderr
            .contains("nothing is spooled for 'asia'; there is: eu, us"),
        "{}",
        ended.stderr
    );
    let ended = tool(spool.path(), &["drain", "--destination", "eu", "--to", "file:x"]);
    assert_eq!(ended.status.code(), USAGE, "{}", ended.stderr);
    assert_eq!(left(spool.path()), [("eu".to_owned(), 1), ("us".to_owned(), 1)]);
}

#[test]
fn cat_writes_the_request_as_it_was() {
    let spool = tempfile::tempdir().expect("a folder");
    fill(spool.path(), "eu", 0..3);
    let output = Command::new(env!("CARGO_BIN_EXE_pyrotee"))
        .args(["spool", "cat", "--record", "1-2", "--spool"])
        .arg(spool.path())
        .output()
        .expect("it runs");
    let mut expected = b"POST /ingest?name=app2 HTTP/1.1\r\nHost: localhost\r\n".to_vec();
    expected.extend_from_slice(b"Content-Type: x/y\r\nX-Team: seven\r\nContent-Length: 1000\r\n\r\n");
    expected.extend_from_slice(&body(2));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&expected)
    );
    assert!(output.status.success());
}

#[test]
fn verify_finds_what_is_damaged_and_cat_does_not_show_it() {
    let spool = tempfile::tempdir().expect("a folder");
    fill(spool.path(), "eu", 0..4);
    let ended = tool(spool.path(), &["verify"]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stdout);
    assert!(
        ended
            .stdout
            .contains("eu: one segment, 3 records good and waiting, 1 done, 0 lost"),
        "{}",
        ended.stdout
    );

    let file = spool.path().join("eu/0000000000000001.spool");
    let mut bytes = fs::read(&file).expect("the segment");
    let at = bytes
        .windows(7)
        .position(|seven| seven == b"body 2;")
        .expect("its body");
    bytes[at + 300] ^= 1;
    fs::write(&file, &bytes).expect("writable");
    let ended = tool(spool.path(), &["verify"]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stdout);
    for part in [
        "2 records good and waiting, 1 done, 1 lost",
        "0000000000000001.spool",
        "checksum is wrong",
    ] {
        assert!(ended.stdout.contains(part), "no '{part}' in {}", ended.stdout);
    }
    let told = json(&tool(spool.path(), &["verify", "--json"]));
    assert_eq!(
        (&told["good"], &told["destinations"][0]["lost"]),
        (&false.into(), &1.into())
    );
    let ended = tool(spool.path(), &["cat", "--record", "1-2"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended.stdout.is_empty() && ended.stderr.contains("is damaged"),
        "{}",
        ended.stderr
    );
    assert_eq!(
        fs::read(&file).expect("the segment"),
        bytes,
        "looking changes nothing"
    );
}

#[test]
fn drain_sends_everything_once_and_as_it_was() {
    let spool = tempfile::tempdir().expect("a folder");
    fill(spool.path(), "eu", 0..40);
    fill(spool.path(), "us", 0..2);
    let peer = Peer::start();
    let to = format!("{},header.X-Scope-OrgID=team", peer.url());
    let ended = tool(spool.path(), &["drain", "--destination", "eu", "--to", &to]);
    assert_eq!(ended.status.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(
        ended.stdout.contains("sent 39 records with 39 profiles for 'eu'"),
        "{}",
        ended.stdout
    );
    let mut got = peer.take(39);
    got.sort_by_key(|request| {
        request.query()["name=app".len()..]
            .parse::<usize>()
            .expect("a number")
    });
    for (number, request) in (1..40).zip(&got) {
        assert_eq!(request.target, format!("/ingest?name=app{number}"));
        assert_eq!(request.body, body(number));
        assert_eq!(request.header("x-team"), Some("seven"));
        assert_eq!(request.header("x-scope-orgid"), Some("team"));
    }
    assert_eq!(left(spool.path()), [("eu".to_owned(), 0), ("us".to_owned(), 1)]);
}

#[test]
fn drain_keeps_what_is_not_taken() {
    let spool = tempfile::tempdir().expect("a folder");
    fill(spool.path(), "eu", 0..10);
    let is_odd = |target: &str| target.ends_with(['1', '3', '5', '7', '9']);
    let peer = Peer::deciding(move |request| match is_odd(&request.target) {
        true => Reply::Status(400, ""),
        false => Reply::Ok,
    });
    let ended = tool(spool.path(), &["drain", "--to", &peer.url()]);
    assert_eq!(ended.status.code(), Some(1), "{}{}", ended.stdout, ended.stderr);
    for part in [
        "sent 4 records",
        "not taken, and kept (rejected): 5",
        "left: 5 records",
    ] {
        assert!(ended.stdout.contains(part), "no '{part}' in {}", ended.stdout);
    }
    assert_eq!(left(spool.path()), [("eu".to_owned(), 5)]);

    let peer = Peer::start();
    let ended = tool(spool.path(), &["drain", "--to", &peer.url()]);
    assert_eq!(ended.status.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    let mut targets: Vec<String> = peer.take(5).into_iter().map(|request| request.target).collect();
    targets.sort();
    assert_eq!(
        targets,
        ["1", "3", "5", "7", "9"].map(|number| format!("/ingest?name=app{number}"))
    );
}

#[test]
fn drain_gives_up_on_a_destination_that_takes_nothing_and_loses_nothing() {
    let busy = Peer::deciding(|_| Reply::Status(503, ""));
    let locked = Peer::deciding(|_| Reply::Status(401, ""));
    let absent = Absent::new();
    let short = ",min-backoff=10ms,max-backoff=20ms";
    for (name, url, says) in [
        ("busy", busy.url() + short, "left: 9 records"),
        ("locked", locked.url(), "does not accept our credentials"),
        (
            "absent",
            absent.url() + short,
            "nothing was accepted or refused for 1s",
        ),
    ] {
        let spool = tempfile::tempdir().expect("a folder");
        fill(spool.path(), "eu", 0..10);
        let ended = tool(spool.path(), &["drain", "--to", &url, "--patience", "1s"]);
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(says), "{name}: {said}");
        assert!(!said.contains("http://"), "{name}: no URL is shown: {said}");
        assert_eq!(left(spool.path()), [("eu".to_owned(), 9)], "{name}");
    }
}

#[test]
fn drop_asks_first_and_then_deletes_one_destination() {
    let spool = tempfile::tempdir().expect("a folder");
    fill(spool.path(), "eu", 0..3);
    fill(spool.path(), "us", 0..3);
    let ended = tool(spool.path(), &["drop", "--destination", "eu"]);
    assert_eq!(ended.status.code(), USAGE);
    assert!(
        ended
            .stderr
            .contains("would delete 2 records with 2 profiles (2.0 KiB) for 'eu'")
            && ended.stderr.contains("--yes"),
        "{}",
        ended.stderr
    );
    assert_eq!(left(spool.path()), [("eu".to_owned(), 2), ("us".to_owned(), 2)]);
    let ended = tool(spool.path(), &["drop", "--destination", "eu", "--yes"]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(left(spool.path()), [("us".to_owned(), 2)]);
    assert!(!spool.path().join("eu").exists());
}

#[test]
fn beside_a_gateway_looking_is_safe_and_changing_is_refused() {
    let spool = tempfile::tempdir().expect("a folder");
    let absent = Absent::new();
    let to = format!("eu={}", absent.url());
    let path = spool.path().to_str().expect("a plain path");
    let gateway = Gateway::start(engines()[0], &["--to", &to, "--spool", path, "--ack", "stored"]);
    let peer = Peer::start();
    let done = Arc::new(AtomicBool::new(false));
    let mut client = gateway.client();
    // It ends with the test, however that ends: the gateway is gone then.
    let pushing = std::thread::spawn({
        let done = done.clone();
        move || {
            let mut pushed = 0;
            while !done.load(Ordering::Relaxed) {
                let answer = client.post("/ingest?name=app", &[], &body(pushed))?;
                assert_eq!(answer.status, 200);
                pushed += 1;
            }
            Ok::<u64, std::io::Error>(pushed as u64)
        }
    });
    eventually("something to be spooled", || {
        left(spool.path())
            .iter()
            .any(|(_, count)| *count > 5)
            .then_some(())
    });
    for _ in 0..10 {
        let ended = tool(spool.path(), &["verify"]);
        assert_eq!(ended.status.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    }
    for words in [&["drain", "--to", &peer.url()][..], &["drop", "--yes"], &["drop"]] {
        let ended = tool(spool.path(), words);
        assert_eq!(
            ended.status.code(),
            Some(1),
            "{words:?}: {}{}",
            ended.stdout,
            ended.stderr
        );
        let holder = format!("in use by process {}", gateway.process.id());
        assert!(ended.stderr.contains(&holder), "{words:?}: {}", ended.stderr);
    }
    done.store(true, Ordering::Relaxed);
    let pushed = pushing.join().expect("all were accepted").expect("answers");
    assert_eq!(left(spool.path()), [("eu".to_owned(), pushed)]);
    drop(gateway);
}
