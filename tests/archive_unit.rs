//! The archive as the gateway uses it: pushes through a gate, a real folder, real failures of it. After each test the
//! books must balance. Recorded requests are in `tests/data/corpus`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use pyrotee::config::Overflow;
use pyrotee::fanout::push::PushParts;
use pyrotee::fanout::{AckMode, DestinationId, DropReason, Fanout, Gate, Push, Verdict};
use pyrotee::outbound::archive::{ArchiveControl, ArchiveSetup, Folder, start};
use pyrotee::profile::inflate::gunzip;
use pyrotee::profile::ingest::rewrite_query;
use pyrotee::profile::labels::{LabelLimits, LabelRules};
use pyrotee::profile::push::splice;
use pyrotee::profile::route::Route;
use pyrotee::runtime::clock::{self, Mono};
use pyrotee::runtime::reserved::Reserved;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(20);
/// 2026-11-22T16:59:27.042Z.
const UNIX_MS: u64 = 1_795_366_767_042;
const INDEX: &str = "index-2026-11-22.jsonl";

/// An archive in a temporary folder.
struct Bench {
    folder: tempfile::TempDir,
    gate: &'static Gate,
    fanout: Fanout,
    control: Arc<ArchiveControl>,
    thread: Option<JoinHandle<()>>,
}

struct Limits {
    bytes_max: u64,
    max_age: Duration,
    max_retries: u32,
    min_backoff: Duration,
}

const LIMITS: Limits = Limits {
    bytes_max: 1 << 30,
    max_age: Duration::from_secs(3600),
    max_retries: 0,
    min_backoff: Duration::from_millis(2),
};

impl Bench {
    fn new() -> Self {
        Self::with(&LIMITS, |_| {})
    }

    /// `prepare` may spoil the folder once the archive has found it good.
    fn with(limits: &Limits, prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("profiles");
        let gate: &'static Gate = Box::leak(Box::new(Gate::new(
            DestinationId(0),
            "archive".into(),
            limits.bytes_max,
        )));
        let control = ArchiveControl::new(gate);
        let setup = ArchiveSetup {
            gate,
            folder: Folder::open(directory.clone(), false).expect("a folder"),
            max_age: limits.max_age,
            max_retries: limits.max_retries,
            min_backoff: limits.min_backoff,
            max_backoff: limits.min_backoff * 4,
        };
        let thread = start(
            setup,
            control.clone(),
            Reserved::new("archive").expect("a thread"),
        );
        prepare(&directory);
        Self {
            folder,
            gate,
            fanout: Fanout::new(vec![gate], Overflow::DropOldest),
            control,
            thread: Some(thread),
        }
    }

    fn directory(&self) -> PathBuf {
        self.folder.path().join("profiles")
    }

    fn offer(&self, push: Push) -> Arc<Push> {
        let push = Arc::new(push);
        self.fanout.offer(&push).unwrap();
        push
    }

    /// Offers a push and waits for its end.
    fn send(&self, push: Push) -> Verdict {
        verdict(&self.offer(push))
    }

    /// The index, which must be whole lines of JSON whose files are there.
    fn index(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.directory().join(INDEX)).unwrap_or_default();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        for line in &lines {
            if let Some(file) = line["file"].as_str() {
                let length = fs::metadata(self.directory().join(file)).unwrap().len();
                assert_eq!(Some(length), line["bytes"].as_u64(), "{line}");
            }
        }
        lines
    }

    fn content(&self, line: &Value) -> Vec<u8> {
        fs::read(self.directory().join(line["file"].as_str().unwrap())).unwrap()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.gate.books().dropped[reason.index()].parcels
    }

    fn delivered(&self) -> u64 {
        self.gate.books().delivered.parcels
    }

    /// Ends the thread and looks at the books.
    fn stop(mut self) {
        self.control.give_up();
        self.thread.take().unwrap().join().unwrap();
        let books = self.gate.books();
        assert!(books.balance(), "{books:?}");
        assert_eq!((books.held_parcels, books.held_bytes, books.in_flight), (0, 0, 0));
        assert_eq!(self.dropped(DropReason::Abandoned), 0);
        let unfinished = tree(&self.directory())
            .into_iter()
            .find(|name| name.contains("/.partial-"));
        assert_eq!(unfinished, None);
    }
}

/// The push's end, waited for as a client does under `--ack all`.
fn verdict(push: &Push) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(DEADLINE, push.verdict()).await })
        .expect("the push ends in time")
}

fn push(route: Route, query: &[u8], fields: &str, segments: Vec<Bytes>) -> Push {
    let bytes = segments.iter().map(|segment| segment.len() as u64).sum();
    let parts = PushParts {
        route,
        query: Bytes::copy_from_slice(query),
        fields: Bytes::copy_from_slice(fields.as_bytes()),
        segments: segments.into(),
        bytes,
        profile_bytes: bytes,
        profiles: 1,
        accepted: clock::now(),
        accepted_unix_ms: UNIX_MS,
        client_deadline: Mono::NEVER,
        pinned_bytes: 0,
        charge: None,
    };
    Push::new(parts, AckMode::All, 1)
}

fn folded(name: &str, body: &str) -> Push {
    let mut query = b"name=".to_vec();
    pyrotee::profile::query::escape(name.as_bytes(), &mut query);
    push(
        Route::Ingest,
        &query,
        "",
        vec![Bytes::copy_from_slice(body.as_bytes())],
    )
}

/// All files below `folder`.
fn tree(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names = Vec::new();
    for entry in entries.flatten() {
        if entry.file_type().unwrap().is_dir() {
            names.extend(tree(&entry.path()));
        } else {
            names.push(entry.path().to_str().unwrap().to_owned());
        }
    }
    names
}

/// A recorded request: query and body.
fn recorded(name: &str) -> (Vec<u8>, Bytes) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/corpus")
        .join(name);
    let request = Bytes::from(fs::read(path).unwrap());
    let head = request
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap();
    let line = request.split(|&byte| byte == b' ').nth(1).unwrap();
    let query = line.split(|&byte| byte == b'?').nth(1).unwrap_or_default();
    (query.to_vec(), request.slice(head + 4..))
}

/// As the gateway hands a recorded `/ingest` on under `--labels alloy`.
fn recorded_ingest(name: &str) -> (Push, Bytes) {
    let (query, body) = recorded(name);
    let mut outgoing = Vec::new();
    rewrite_query(
        &query,
        &LabelRules::default(),
        &LabelLimits::default(),
        &mut outgoing,
    )
    .unwrap();
    let fields = "content-type: application/octet-stream\r\n";
    let half = body.len() / 2;
    let segments = vec![body.slice(..half), body.slice(half..)];
    (push(Route::Ingest, &outgoing, fields, segments), body)
}

/// As the gateway hands a recorded Push on under `--labels alloy`: inflated and spliced.
fn recorded_push(name: &str) -> Push {
    let (_, body) = recorded(name);
    let inflated = gunzip(&[body], 1 << 20, &mut |_| true).unwrap();
    let spliced = splice(&inflated, &LabelRules::default(), &LabelLimits::default()).unwrap();
    push(
        Route::Push,
        b"",
        "Content-Type: application/proto\r\n",
        spliced.segments.into_vec(),
    )
}

fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, content) in parts {
        let head = format!(
            "--xYz\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}.x\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        body.extend_from_slice(&[head.as_bytes(), content, b"\r\n"].concat());
    }
    body.extend_from_slice(b"--xYz--\r\n");
    body
}

const FORM: &str = "Content-Type: multipart/form-data; boundary=xYz\r\n";

#[test]
fn node_profiles_land_as_they_were_sent() {
    let bench = Bench::new();
    for number in 0..5 {
        let (push, body) = recorded_ingest(&format!("node-sdk-0.6.4/{number:03}.http"));
        assert_eq!(bench.send(push), Verdict::Accepted);
        let line = &bench.index()[number];
        assert!(bench.content(line) == body, "{line}");
        let file = line["file"].as_str().unwrap();
        assert!(file.starts_with("shop.web/2026-11-22/165927.042Z_"), "{file}");
        assert!(file.ends_with(".pb.gz"), "{file}");
        assert_eq!(
            (&line["service"], &line["format"], &line["spy"]),
            (&"shop.web".into(), &"pprof".into(), &"nodespy".into())
        );
        assert_eq!(line["labels"]["region"], "eu-west-1");
        assert!(line["from"].is_string() && line["until"].is_string(), "{line}");
    }
    let kinds: BTreeMap<String, u32> = bench.index().iter().fold(BTreeMap::new(), |mut kinds, line| {
        *kinds
            .entry(line["type"].as_str().unwrap().to_owned())
            .or_default() += 1;
        kinds
    });
    assert_eq!(
        kinds,
        BTreeMap::from([("cpu".into(), 3), ("inuse_space".into(), 2)])
    );
    bench.stop();
}

#[test]
fn python_pushes_land_as_one_file_per_sample() {
    let bench = Bench::new();
    for number in 0..3 {
        assert_eq!(
            bench.send(recorded_push(&format!("python-sdk-1.4.0/{number:03}.http"))),
            Verdict::Accepted
        );
    }
    let lines = bench.index();
    assert!(lines.len() >= 3);
    for line in &lines {
        assert_eq!(line["format"], "pprof", "{line}");
        assert_eq!(line["type"], line["labels"]["__name__"], "{line}");
        assert_eq!(line["service"], line["labels"]["service_name"], "{line}");
    }
    bench.stop();
}

#[test]
fn forms_are_taken_apart() {
    let bench = Bench::new();
    let (_, pprof) = recorded("node-sdk-0.6.4/000.http");
    let jfr = [b"FLR\0".as_slice(), &[1; 5_000]].concat();
    let zipped_jfr = gzip(&jfr);
    let go = form(&[
        ("profile", &pprof),
        ("sample_type_config", br#"{"cpu":{"units":"samples"}}"#),
    ]);
    let java = form(&[("jfr", &zipped_jfr), ("labels", b"\x0a\x00")]);
    let slices = |body: &[u8]| body.chunks(300).map(Bytes::copy_from_slice).collect();
    let go = push(Route::Ingest, b"name=go.app", FORM, slices(&go));
    let java = push(Route::Ingest, b"format=jfr&name=java.app", FORM, slices(&java));
    assert_eq!(
        (bench.send(go), bench.send(java)),
        (Verdict::Accepted, Verdict::Accepted)
    );
    let lines = bench.index();
    assert!(bench.content(&lines[0]) == pprof);
    assert!(
        bench.content(&lines[1]) == jfr,
        "a recording is stored without gzip"
    );
    let beside = |line: &Value| line["beside"][0].as_str().unwrap().to_owned();
    assert!(
        beside(&lines[0]).ends_with(".sample_type_config.json"),
        "{}",
        lines[0]
    );
    assert!(beside(&lines[1]).ends_with(".labels.pb"), "{}", lines[1]);
    assert!(lines[1]["file"].as_str().unwrap().ends_with(".jfr"));
    assert!(bench.directory().join(beside(&lines[1])).is_file());
    bench.stop();
}

#[test]
fn unreadable_bodies_are_kept_beside_their_headers() {
    let bench = Bench::new();
    let fields = "Content-Type: application/json\r\nContent-Encoding: gzip\r\nAuthorization: Basic x\r\n";
    let sent = push(Route::Push, b"", fields, vec![Bytes::from_static(b"not gzip")]);
    assert_eq!(bench.send(sent), Verdict::Accepted);
    let line = &bench.index()[0];
    assert_eq!(bench.content(line), b"not gzip");
    assert_eq!(line["note"], "corrupt gzip body");
    let headers = fs::read_to_string(bench.directory().join(line["beside"][0].as_str().unwrap())).unwrap();
    assert_eq!(
        headers,
        "POST /push.v1.PusherService/Push\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
    );
    bench.stop();
}

#[test]
fn hostile_names_stay_inside_the_archive() {
    let bench = Bench::new();
    let long = "x".repeat(4_000);
    let names = [
        "a{service_name=../../../etc}",
        "a{service_name=/etc/passwd}",
        "a{service_name=..}",
        "a{service_name=index-2026-11-22.jsonl}",
        "a{service_name=.partial-1}",
        "a{service_name=x\0y}",
        "a{service_name=\n\u{202e}}",
        &format!("{long}.cpu"),
        "a/b.cpu",
        "",
        "}{",
    ];
    for name in names {
        assert_eq!(bench.send(folded(name, "a 1\n")), Verdict::Accepted, "{name}");
    }
    assert_eq!(bench.index().len(), names.len());
    for path in tree(bench.folder.path()) {
        let inside = Path::new(&path)
            .strip_prefix(bench.directory())
            .unwrap()
            .to_owned();
        assert!(matches!(inside.components().count(), 1 | 3), "{path}");
    }
    let folders = fs::read_dir(bench.directory())
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().is_dir());
    assert_eq!(
        folders.count(),
        names.len() - 1,
        "only the two nameless share one"
    );
    bench.stop();
}

/// Ways in which a folder turns bad, and how each is mended.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Something is where the archive should be.
    FileInTheWay,
    /// The index cannot grow: ENOSPC from the kernel.
    FullIndex,
}

impl Trouble {
    const ALL: [Self; 2] = [Self::FileInTheWay, Self::FullIndex];

    fn make(self, directory: &Path) {
        match self {
            Self::FileInTheWay => {
                fs::remove_dir_all(directory).unwrap();
                fs::write(directory, "").unwrap();
            }
            Self::FullIndex => symlink("/dev/full", directory.join(INDEX)).unwrap(),
        }
    }

    fn mend(self, directory: &Path) {
        match self {
            Self::FileInTheWay => fs::remove_file(directory).unwrap(),
            Self::FullIndex => fs::remove_file(directory.join(INDEX)).unwrap(),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::FileInTheWay => "cannot create a file: Not a directory (os error 20)",
            Self::FullIndex => "cannot append to the index: No space left on device (os error 28)",
        }
    }
}

/// Waits until something has become so, asking every millisecond.
fn wait_until(what: &str, so: impl Fn() -> bool) {
    let deadline = clock::now().after(DEADLINE);
    while !so() {
        assert!(clock::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_disk_that_fails_is_down_and_recovers_by_itself_with_everything() {
    for trouble in Trouble::ALL {
        let bench = Bench::with(&LIMITS, |directory| trouble.make(directory));
        let pushes: Vec<Arc<Push>> = (0..5)
            .map(|number| bench.offer(folded("app", &format!("a {number}\n"))))
            .collect();
        wait_until("some attempts", || bench.gate.status.retries() > 3);
        assert!(!bench.gate.status.is_up(), "{trouble:?}");
        assert_eq!(bench.gate.status.last_error().unwrap().text, trouble.text());
        assert_eq!((bench.delivered(), bench.gate.held_parcels()), (0, 5));
        trouble.mend(&bench.directory());
        for push in &pushes {
            assert_eq!(verdict(push), Verdict::Accepted, "{trouble:?}");
        }
        assert!(bench.gate.status.is_up(), "{trouble:?}");
        assert_eq!(bench.index().len(), 5, "{trouble:?}: each is indexed once");
        assert_eq!(
            tree(&bench.directory()).len(),
            6,
            "{trouble:?}: each is stored once"
        );
        bench.stop();
    }
}

#[test]
fn after_the_last_retry_it_is_dropped_as_write_failed() {
    let limits = Limits {
        max_retries: 3,
        ..LIMITS
    };
    let bench = Bench::with(&limits, |directory| Trouble::FileInTheWay.make(directory));
    for _ in 0..3 {
        assert_eq!(bench.send(folded("app", "a 1\n")), Verdict::Unanswered);
    }
    assert_eq!(bench.dropped(DropReason::WriteFailed), 3);
    bench.stop();
}

#[test]
fn what_grows_too_old_is_dropped_as_too_old() {
    let limits = Limits {
        max_age: Duration::from_millis(50),
        min_backoff: Duration::from_secs(600),
        ..LIMITS
    };
    let bench = Bench::with(&limits, |directory| Trouble::FileInTheWay.make(directory));
    let pushes = [(); 3].map(|()| bench.offer(folded("app", "a 1\n")));
    for push in &pushes {
        assert_eq!(verdict(push), Verdict::Unanswered);
    }
    assert_eq!(bench.dropped(DropReason::TooOld), 3);
    bench.stop();
}

#[test]
fn beyond_the_budget_the_oldest_goes() {
    let limits = Limits {
        bytes_max: 100,
        min_backoff: Duration::from_secs(600),
        ..LIMITS
    };
    let bench = Bench::with(&limits, |directory| Trouble::FileInTheWay.make(directory));
    let old = bench.offer(folded("app", &"a 1\n".repeat(15)));
    wait_until("it is down", || !bench.gate.status.is_up());
    let new = bench.offer(folded("app", &"b 1\n".repeat(15)));
    wait_until("the budget holds", || !bench.gate.is_over_budget());
    assert_eq!(bench.dropped(DropReason::Overflow), 1);
    assert_eq!(bench.gate.held_parcels(), 1);
    assert_eq!(verdict(&old), Verdict::Unanswered);
    drop(new);
    bench.stop();
}

#[test]
fn one_parcel_that_can_never_be_stored_does_not_stop_the_others() {
    let limits = Limits {
        min_backoff: Duration::from_millis(1),
        ..LIMITS
    };
    let bench = Bench::with(&limits, |directory| {
        fs::write(directory.join("poison"), "in the way").unwrap();
    });
    let poison = bench.offer(folded("poison", "a 1\n"));
    for number in 0..50 {
        let verdict = bench.send(folded("good", &format!("a {number}\n")));
        assert_eq!(verdict, Verdict::Accepted);
    }
    assert_eq!((bench.delivered(), bench.gate.held_parcels()), (50, 1));
    fs::remove_file(bench.directory().join("poison")).unwrap();
    assert_eq!(verdict(&poison), Verdict::Accepted);
    bench.stop();
}

#[test]
fn a_shutdown_drains_what_it_can_and_gives_up_the_rest() {
    let limits = Limits {
        min_backoff: Duration::from_secs(600),
        ..LIMITS
    };
    let bench = Bench::with(&limits, |directory| Trouble::FileInTheWay.make(directory));
    let saved = bench.offer(folded("app", "a 1\n"));
    wait_until("it waits for its backoff", || !bench.gate.status.is_up());
    Trouble::FileInTheWay.mend(&bench.directory());
    bench.control.drain();
    assert_eq!(
        verdict(&saved),
        Verdict::Accepted,
        "drain does not wait for a backoff of minutes"
    );
    Trouble::FileInTheWay.make(&bench.directory());
    let lost = [(); 3].map(|()| bench.offer(folded("app", "a 2\n")));
    wait_until("it is down again", || !bench.gate.status.is_up());
    bench.control.give_up();
    for push in &lost {
        assert_eq!(verdict(push), Verdict::Unanswered);
    }
    assert_eq!((bench.delivered(), bench.dropped(DropReason::Shutdown)), (1, 3));
    bench.stop();
}

#[test]
fn the_full_disk() {
    let disk = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "pyrotee-test"])
        .arg(disk.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED the_full_disk: no tmpfs may be mounted here; /dev/full covers the index");
        return;
    }
    let _unmount = Unmount(disk.path().to_owned());
    let bench = Bench::with(&LIMITS, |directory| {
        fs::remove_dir(directory).unwrap();
        symlink(disk.path(), directory).unwrap();
    });
    let body = "a 1\n".repeat(10_000);
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 250 << 10]).unwrap();
    let pushes: Vec<Arc<Push>> = (0..3)
        .map(|number| bench.offer(folded("app", &format!("{body}{number} 1\n"))))
        .collect();
    wait_until("some attempts", || bench.gate.status.retries() > 3);
    assert_eq!(
        bench.gate.status.last_error().unwrap().text,
        "cannot write a file: No space left on device (os error 28)"
    );
    assert_eq!(tree(disk.path()).len(), 1, "no half files");
    fs::remove_file(filler).unwrap();
    for push in &pushes {
        assert_eq!(verdict(push), Verdict::Accepted);
    }
    assert_eq!(bench.index().len(), 3);
    bench.stop();
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn an_impossible_folder_is_refused_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Folder::open(file.join("below"), false).unwrap_err().to_string();
    assert!(error.starts_with("cannot create the archive folder /"), "{error}");
}

#[test]
fn go_tool_pprof_opens_what_was_archived() {
    let bench = Bench::new();
    let (node, _) = recorded_ingest("node-sdk-0.6.4/002.http");
    assert_eq!(bench.send(node), Verdict::Accepted);
    assert_eq!(
        bench.send(recorded_push("python-sdk-1.4.0/000.http")),
        Verdict::Accepted
    );
    for line in bench.index() {
        let file = bench.directory().join(line["file"].as_str().unwrap());
        let output = Command::new("go")
            .args(["tool", "pprof", "-raw"])
            .arg(&file)
            .output();
        let output = match output {
            Ok(output) => output,
            Err(error) => {
                let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
                assert!(!in_ci, "CI needs Go to open archived profiles: {error}");
                eprintln!(
                    "SKIPPED go_tool_pprof_opens_what_was_archived: install Go (https://go.dev/dl) to run it"
                );
                break;
            }
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text.contains("Samples:") && text.contains("Locations"),
            "{line}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    bench.stop();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
