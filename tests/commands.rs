//! `pyrotee check`, `doctor` and `demo`: the real binary, its words, its exit codes, and no secret in any of them.

mod support;

use std::process::Command;

use serde_json::Value;
use support::{DEADLINE, Ended, Process, engines, eventually, get, run};

const USAGE: Option<i32> = Some(64);

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", ended.stdout, ended.stderr))
}

#[test]
fn check_explains_a_good_configuration() {
    let ended = run(&[
        "check",
        "--to",
        "eu=http://user:hunter2@127.0.0.1:9/base,header.X-Scope-OrgID=s3cret,max-age=30m",
        "--to",
        "file:/nowhere/profiles",
        "--ack",
        "all",
        "--cores",
        "2",
        "--writers",
        "1",
        "--no-pin",
    ]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    for part in [
        "Destination eu",
        "host 127.0.0.1, port 9",
        "/base/ingest and /base/push.v1.PusherService/Push",
        "X-Scope-OrgID, Authorization (values are not shown)",
        "256 MiB (about 16,384 of 16 KiB) and 30m",
        "Destination archive",
        "until every destination has a final outcome",
        "eu on core 1",
        "The configuration is good.",
    ] {
        assert!(ended.stdout.contains(part), "no '{part}' in\n{}", ended.stdout);
    }
    for secret in ["hunter2", "s3cret", "dXNlcjpodW50ZXIy"] {
        assert!(!ended.stdout.contains(secret), "{}", ended.stdout);
    }
}

#[test]
fn check_tells_the_same_in_json() {
    let to = "eu=http://user:hunter2@127.0.0.1:9,header.X-Scope-OrgID=s3cret";
    let ended = run(&["check", "--json", "--to", to]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    let told = json(&ended);
    assert_eq!(
        (&told["good"], &told["plan"]["destinations"][0]["name"]),
        (&true.into(), &"eu".into())
    );
    assert!(
        told["meaning"]
            .as_array()
            .is_some_and(|sections| sections.len() > 4),
        "{told:#}"
    );
    assert!(told["online"].is_null(), "nobody asked: {told:#}");
    for secret in ["hunter2", "s3cret", "dXNlcjpodW50ZXIy"] {
        assert!(!ended.stdout.contains(secret), "{told:#}");
    }
}

/// Each is refused with all its mistakes, by `check` as by `run`, before any socket opens.
#[test]
fn a_bad_configuration_is_refused_with_everything_that_is_wrong() {
    for (name, words, mistakes) in [
        (
            "values",
            &["--max-age", "10", "--ack", "never", "--cores", "0"][..],
            &[
                ("--max-age 10", "500ms"),
                ("--ack never", "queued, first, all"),
                ("--cores 0", "1 to 256"),
            ][..],
        ),
        (
            "flags",
            &["--lissten", "x", "stray"],
            &[("--lissten", "--listen"), ("stray", "behind their flag")],
        ),
        (
            "destinations",
            &[
                "--to",
                "ftp://u:hunter2@h",
                "--to",
                "https://u:hunter2@h,tls-cert-file=c",
                "--to",
                "a=http://h,inflight=0",
            ],
            &[
                ("--to ftp://***@h", "http://HOST"),
                ("--to https://***@h", "tls-key-file"),
                ("--to a=http://h", "1 to 4096"),
            ],
        ),
        (
            "contradictions",
            &["--body-limit", "2GiB", "--admin", "0.0.0.0:4040"],
            &[
                ("--body-limit 2 GiB", "--memory-limit"),
                ("--admin 0.0.0.0:4040", "--listen"),
            ],
        ),
    ] {
        for command in ["check", "run"] {
            let ended = run(&[&[command], words].concat());
            assert_eq!(ended.status.code(), USAGE, "{name}: {}", ended.stderr);
            for (what, mend) in mistakes {
                let line = ended.stderr.lines().find(|line| line.contains(what));
                assert!(
                    line.is_some_and(|line| line.contains(mend)),
                    "{name}, {what}:\n{}",
                    ended.stderr
                );
            }
            assert!(ended.stdout.is_empty(), "{name}: {}", ended.stdout);
            assert!(!ended.stderr.contains("hunter2"), "{name}: {}", ended.stderr);
        }
        let told = json(&run(&[&["check", "--json"], words].concat()));
        assert_eq!(told["good"], false, "{name}");
        let errors = told["errors"].as_array().expect("a list");
        assert!(errors.len() >= mistakes.len(), "{name}: {told:#}");
        let complete = |error: &Value| {
            ["flag", "value", "problem"]
                .iter()
                .all(|key| error[key].is_string())
        };
        assert!(errors.iter().all(complete), "{name}: {told:#}");
    }
}

#[test]
fn a_bad_value_in_the_environment_is_refused_too() {
    let mut launcher = Command::new(env!("CARGO_BIN_EXE_pyrotee"));
    launcher.env("PYROTEE_MAX_AGE", "soon").env("PYROTEE_CORES", "0");
    let ended = Process::start_by(launcher, &["check"]).wait();
    assert_eq!(ended.status.code(), USAGE, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("--max-age soon") && ended.stderr.contains("--cores 0"),
        "{}",
        ended.stderr
    );
}

#[test]
fn check_online_looks_at_names_connections_and_folders() {
    let sink = support::Sink::start(&[] as &[&str]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap().to_owned();
    let good = [
        "check".to_owned(),
        "--online".into(),
        "--to".into(),
        format!("here={}", sink.url()),
        "--to".into(),
        format!("file:{path}/new"),
    ];
    let ended = run(&good);
    assert_eq!(ended.status.code(), Some(0), "{}\n{}", ended.stdout, ended.stderr);
    assert!(
        ended.stdout.contains("takes connections") && ended.stdout.contains("can be made in"),
        "{}",
        ended.stdout
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "nothing is left behind"
    );

    // Bound and never listening: it refuses, and nobody else can get its port meanwhile. A sink that was killed would not
    // do: the kernel ends its ring, and with it the listener, some time after the process.
    let reserved = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    reserved.bind(&any.into()).unwrap();
    let gone = reserved
        .local_addr()
        .unwrap()
        .as_socket()
        .expect("an address of IPv4");
    let gone = format!("http://{gone}");
    let file = format!("{path}/file");
    std::fs::write(&file, "").unwrap();
    for (to, what) in [
        (format!("eu={gone}"), "connect"),
        ("eu=http://name.invalid".to_owned(), "resolve"),
        (format!("eu=file:{file}"), "write"),
    ] {
        let ended = run(&["check", "--online", "--json", "--to", &to]);
        assert_eq!(ended.status.code(), Some(1), "{to}: {}", ended.stdout);
        let told = json(&ended);
        let probes = told["online"].as_array().expect("a list");
        let bad: Vec<&Value> = probes.iter().filter(|probe| probe["good"] == false).collect();
        assert!(
            told["good"] == false && bad.len() == 1 && bad[0]["what"] == what,
            "{to}: {told:#}"
        );
        // What is away is no mistake: without --online nobody looks.
        assert_eq!(run(&["check", "--to", &to]).status.code(), Some(0), "{to}");
    }
}

#[test]
fn doctor_tells_what_the_host_allows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let ended = run(&["doctor", "--archive", path]);
    for topic in [
        "kernel",
        "container",
        "io_uring, full",
        "io_uring, plain",
        "epoll",
        "io_uring switch",
        "seccomp",
        "no new privileges",
        "locked memory",
        "open files",
        "listen backlog",
        "local ports",
        "tcp_tw_reuse",
        "tcp_fin_timeout",
        "cpus",
        "cgroup cpu",
        "memory",
        "root certificates",
        "archive folder",
    ] {
        let line = ended
            .stdout
            .lines()
            .find(|line| line.get(6..).is_some_and(|rest| rest.starts_with(topic)));
        assert!(
            line.is_some_and(|line| ["ok  ", "warn", "bad "].contains(&&line[..4])),
            "{topic}:\n{}",
            ended.stdout
        );
    }
    let told = json(&run(&["doctor", "--json", "--archive", path]));
    let engine = if engines().contains(&"io_uring") {
        "io_uring"
    } else {
        "epoll"
    };
    assert_eq!(told["engine"], engine, "{told:#}");
    let findings = told["findings"].as_array().expect("a list");
    for finding in findings {
        let advised = finding["advice"].is_string();
        assert_eq!(
            advised,
            finding["level"] != "ok",
            "advice where it is due: {finding:#}"
        );
    }
    let bad = findings.iter().any(|finding| finding["level"] == "bad");
    assert_eq!(told["verdict"] == "bad", bad, "{told:#}");
    assert_eq!(ended.status.code(), Some(i32::from(bad)), "{}", ended.stdout);
}

#[test]
fn doctor_fails_where_nothing_can_run_well() {
    // Too few files for any load: a limit that a process may lower for itself.
    let mut launcher = Command::new("sh");
    launcher.args([
        "-c",
        "ulimit -n 512; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_pyrotee"),
    ]);
    let ended = Process::start_by(launcher, &["doctor", "--json"]).wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stdout);
    let told = json(&ended);
    assert_eq!(told["verdict"], "bad");
    let files = told["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|one| one["topic"] == "open files");
    assert_eq!(files.expect("it is looked at")["level"], "bad", "{told:#}");
}

#[test]
fn a_demo_ends_with_balanced_books() {
    for engine in engines() {
        let ended = run(&[
            "demo",
            "--duration",
            "3s",
            "--rate",
            "100",
            "--json",
            "--engine",
            engine,
        ]);
        assert_eq!(ended.status.code(), Some(0), "{}\n{}", ended.stdout, ended.stderr);
        let told = json(&ended);
        let pushed = told["pushed"].as_u64().expect("a number");
        assert!((1..=300).contains(&pushed), "{told:#}");
        assert_eq!(told["engine"], engine);
        for ledger in told["destinations"].as_array().expect("a list") {
            for (key, count) in [
                ("accepted", pushed),
                ("delivered", pushed),
                ("received", pushed),
                ("dropped", 0),
                ("waiting", 0),
                ("duplicates", 0),
                ("corrupt", 0),
            ] {
                assert_eq!(ledger[key], count, "{key}: {told:#}");
            }
        }
        let outage = &told["outage"];
        assert!(
            outage["waiting_max"].as_u64() > Some(10),
            "profiles waited: {told:#}"
        );
        assert!(
            outage["others_delivered"].as_u64() > Some(10),
            "the other went on: {told:#}"
        );
        assert!(outage["drained_seconds"].is_number(), "{told:#}");
        let answered: u64 = told["answers"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|act| act["count"].as_u64())
            .sum();
        assert_eq!(answered, pushed, "every answer belongs to an act: {told:#}");
        // The same in words, on the other stream.
        let sentence = format!("{pushed} profiles pushed, all {pushed} delivered to each of 2 destinations");
        assert!(ended.stderr.contains(&sentence), "{}", ended.stderr);
        assert!(ended.stderr.contains("b away"), "{}", ended.stderr);
    }
}

#[test]
fn a_demo_shows_its_status_page_and_ends_early_when_asked() {
    let mut process = Process::start(&["demo", "--duration", "10m", "--rate", "100"]);
    let page = process.line("Status page while it runs: http://");
    let address = page.trim_end_matches('/').parse().expect("an address");
    assert_eq!(get(address, "/-/ready").status, 200);
    eventually("deliveries on the status page", || {
        let text = get(address, "/metrics").text();
        let sent = |name: &str| {
            let lines = text
                .lines()
                .filter(|line| line.starts_with("pyroscope_write_sent_profiles_total{"));
            let mut ours = lines.filter(|line| line.contains(&format!("endpoint=\"{name}\"")));
            ours.any(|line| !line.ends_with(" 0"))
        };
        (sent("a") && sent("b")).then_some(())
    });
    process.signal(rustix::process::Signal::INT);
    let ended = process.wait();
    assert_eq!(ended.status.code(), Some(0), "{}\n{}", ended.stdout, ended.stderr);
    assert!(
        ended.stdout.contains("nothing lost"),
        "within {DEADLINE:?}: {}",
        ended.stdout
    );
}

/// A demo that was not given what it needs says so and leaves.
#[test]
fn a_demo_that_cannot_start_says_why() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (args, code, says) in [
        (&["demo", "--admin", &*address][..], Some(1), "cannot bind"),
        (&["demo", "--duration", "1ms"], USAGE, "between 1s and 10m"),
        (&["demo", "--rate", "0"], USAGE, "0 is not in"),
    ] {
        let ended = run(args);
        assert_eq!(ended.status.code(), code, "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(says), "{args:?}: {}", ended.stderr);
    }
}
