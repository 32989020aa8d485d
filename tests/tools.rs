//! `pyrotee sink` and `pyrotee load`: the real binary over real sockets, under every engine that the host allows.

#[path = "support/command.rs"]
mod command;
mod support;

use std::io::ErrorKind;
use std::process::Command;
use std::time::Duration;

use command::Running;
use pyrotee::runtime::clock;
use serde_json::{Value, json};
use support::gateway::Gateway;
use support::peer::Absent;
use support::tls::Authority;
use support::{Client, Ended, Process, Sink, engines, get, post, run};

/// Runs load against a sink to its end; returns its report too.
fn load(sink: &Sink, engine: &str, flags: &[&str]) -> (Ended, Value) {
    let url = sink.url();
    let mut args = vec!["load", &url, "--engine", engine, "--json", "-", "--quiet"];
    args.extend(flags);
    let ended = run(&args);
    let report = serde_json::from_str(&ended.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}\n{}\n{}", ended.stdout, ended.stderr));
    (ended, report)
}

#[test]
fn everything_sent_arrives_once_and_whole() {
    for engine in engines() {
        for (name, flags) in [
            ("push", &["--route", "push"][..]),
            ("ingest", &["--route", "ingest"]),
            ("folded", &["--route", "ingest", "--ingest-format", "folded"]),
            ("gzip", &["--route", "push", "--gzip"]),
            (
                "mix",
                &[
                    "--route",
                    "mix",
                    "--gzip",
                    "--size",
                    "1KiB:3,16KiB:1",
                    "--services",
                    "3",
                ],
            ),
            ("large", &["--size", "300KiB", "--route", "mix"]),
            ("open", &["--rate", "2000", "--route", "mix"]),
            (
                "slow open",
                &["--rate", "300", "--size", "1KiB", "--connections", "2"],
            ),
            ("own connections", &["--connection-per-request", "--size", "1KiB"]),
            ("cores", &["--cores", "2", "--connections", "5", "--size", "1KiB"]),
            (
                "open cores",
                &["--cores", "2", "--rate", "1000", "--size", "1KiB"],
            ),
        ] {
            let sink = Sink::start(&["--verify", "--engine", engine, "--cores", "2"]);
            let requests = 101;
            let flags = [
                flags,
                &["--requests", "101", "--duration", "30s", "--timeout", "30s"],
            ]
            .concat();
            let (ended, report) = load(&sink, engine, &flags);
            let stats = sink.stats();
            let context = format!("{name} under {engine}\n{report:#}\n{stats:#}");
            assert!(ended.status.success(), "{context}\n{}", ended.stderr);
            for (key, expected) in [
                ("requests", requests),
                ("ok", requests),
                ("failed", 0),
                ("unsent", 0),
            ] {
                assert_eq!(report[key], expected, "{key}: {context}");
            }
            for (key, expected) in [
                ("requests", requests),
                ("verified", requests),
                ("duplicates", 0),
                ("corrupt", 0),
                ("unmarked", 0),
            ] {
                assert_eq!(stats[key], expected, "{key}: {context}");
            }
            assert_eq!(stats["bytes"], report["body_bytes"], "{context}");
            assert_eq!(
                stats["connections_accepted"], report["connections_opened"],
                "{context}"
            );
            let services = stats["services"].as_object().expect("a map");
            assert_eq!(
                services
                    .values()
                    .map(|count| count.as_u64().unwrap())
                    .sum::<u64>(),
                requests,
                "{context}"
            );
            let ended = sink.process.terminate();
            assert!(ended.status.success(), "{context}");
            assert!(
                ended.stdout.contains("profiles verified: 101"),
                "{}",
                ended.stdout
            );
        }
    }
}

#[test]
fn a_sink_that_does_not_look_counts_all_the_same() {
    for engine in engines() {
        let sink = Sink::start(&["--engine", engine]);
        let (ended, report) = load(&sink, engine, &["--requests", "200", "--size", "1KiB:1,200KiB:1"]);
        assert!(ended.status.success(), "{report:#}");
        let stats = sink.stats();
        assert_eq!(stats["requests"], 200);
        assert_eq!(stats["bytes"], report["body_bytes"]);
        assert_eq!(stats["statuses"], json!({"200": 200}));
    }
}

#[test]
fn copies_and_changes_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let flags = [
        "--verify",
        "--record",
        &path("lines"),
        "--record-bodies",
        &path("bodies"),
    ];
    let sink = Sink::start(&flags);
    let (ended, _) = load(&sink, "auto", &["--requests", "1", "--route", "push"]);
    assert!(ended.status.success());
    let mut body = std::fs::read(folder.path().join("bodies/000000.body")).unwrap();
    let proto = [("Content-Type", "application/proto")];
    let mut client = Client::connect(sink.address);
    let mut push = |body: &[u8]| {
        client
            .post("/push.v1.PusherService/Push", &proto, body)
            .unwrap()
            .status
    };

    assert_eq!(push(&body), 200);
    let stats = sink.stats();
    assert_eq!(
        (&stats["verified"], &stats["duplicates"], &stats["corrupt"]),
        (&json!(1), &json!(1), &json!(0))
    );

    let middle = body.len() / 2;
    body[middle] ^= 1;
    assert_eq!(push(&body), 200);
    assert_eq!(push(b"\x0a\xff"), 200);
    let stats = sink.stats();
    assert_eq!(
        (&stats["verified"], &stats["duplicates"], &stats["corrupt"]),
        (&json!(1), &json!(1), &json!(2))
    );
    assert_eq!(
        (&stats["corrupt_by"]["mark"], &stats["corrupt_by"]["message"]),
        (&json!(1), &json!(1))
    );

    // What was not accepted may come again.
    sink.set_faults("--answer 503,200");
    let (ended, _) = load(&sink, "auto", &["--requests", "1", "--allow-errors"]);
    assert!(ended.status.success());
    let refused = std::fs::read(folder.path().join("bodies/000004.body")).unwrap();
    assert_eq!(push(&refused), 200);
    let stats = sink.stats();
    assert_eq!((&stats["verified"], &stats["duplicates"]), (&json!(2), &json!(1)));
}

#[test]
fn requests_are_recorded_before_they_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let sink = Sink::start(&[
        "--record",
        &path("lines"),
        "--record-bodies",
        &path("bodies"),
        "--answer",
        "200,429",
    ]);
    let mut client = Client::connect(sink.address);
    client
        .post(
            "/base/ingest?name=app%7B%7D&x",
            &[("X-Scope-OrgID", "me")],
            b"abc",
        )
        .unwrap();
    client.send("POST /ingest HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n").unwrap();
    assert_eq!(client.receive().unwrap().status, 429);

    let lines = std::fs::read_to_string(folder.path().join("lines")).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // SHA-256 of `abc`, the first example of FIPS 180-4.
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for (n, path, query, status, header) in [
        (
            0,
            "/base/ingest",
            "name=app%7B%7D&x",
            200,
            json!(["x-scope-orgid", "me"]),
        ),
        (1, "/ingest", "", 429, json!(["transfer-encoding", "chunked"])),
    ] {
        let line = &lines[n];
        assert_eq!(line["n"], n, "{line}");
        assert_eq!(
            (&line["method"], &line["route"]),
            (&json!("POST"), &json!("ingest")),
            "{line}"
        );
        assert_eq!(
            (&line["path"], &line["query"]),
            (&json!(path), &json!(query)),
            "{line}"
        );
        assert_eq!(
            (&line["status"], &line["body_bytes"]),
            (&json!(status), &json!(3)),
            "{line}"
        );
        assert_eq!(line["sha256"], sha256, "{line}");
        assert!(line["headers"].as_array().unwrap().contains(&header), "{line}");
        let body = folder
            .path()
            .join("bodies")
            .join(line["body_file"].as_str().unwrap());
        assert_eq!(std::fs::read(body).unwrap(), b"abc");
    }
}

#[test]
fn a_sink_speaks_http() {
    for engine in engines() {
        for flags in [&["--engine", engine][..], &["--engine", engine, "--verify"]] {
            let sink = Sink::start(flags);
            let mut client = Client::connect(sink.address);
            let proto = [("Content-Type", "application/proto")];
            let answer = client.post("/push.v1.PusherService/Push", &proto, b"").unwrap();
            assert_eq!(
                (answer.status, answer.header("content-type")),
                (200, Some("application/proto"))
            );
            let answer = client
                .post("/ingest?name=app", &[], &vec![b'x'; 1 << 20])
                .unwrap();
            assert_eq!((answer.status, answer.header("content-length")), (200, Some("0")));
            assert_eq!(client.post("/other", &[], b"x").unwrap().status, 404);
            client.send("GET /ingest HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
            assert_eq!(client.receive().unwrap().status, 405);

            let chunked = b"POST /ingest HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
            client
                .send([&chunked[..], &post("/other", &[], b"abc"), &chunked[..]].concat())
                .unwrap();
            let pipelined: Vec<_> = (0..3).map(|_| client.receive().unwrap().status).collect();
            assert_eq!(pipelined, [200, 404, 200]);

            client.send("POST /ingest HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n").unwrap();
            assert_eq!(client.receive().unwrap().status, 100);
            client.send("abc").unwrap();
            assert_eq!(client.receive().unwrap().status, 200);

            client
                .send("POST /ingest HTTP/1.1\r\nHost : test\r\n\r\n")
                .unwrap();
            assert_eq!(client.receive().unwrap().status, 400);
            assert_eq!(client.receive_all().unwrap(), b"");

            let mut client = Client::connect(sink.address);
            client
                .send("POST /ingest HTTP/1.1\r\nHost: test\r\nContent-Length: 30\r\n\r\nabc")
                .unwrap();
            client.finish();
            assert_eq!(client.receive_all().unwrap(), b"");
            let stats = sink.stats_when("all connections to end", |stats| stats["connections_open"] == 0);
            assert_eq!(
                (&stats["refused"], &stats["truncated"]),
                (&json!(1), &json!(1)),
                "{stats:#}"
            );
            assert_eq!(
                stats["routes"],
                json!({"ingest": 5, "push": 1, "other": 2}),
                "{stats:#}"
            );
        }
    }
}

#[test]
fn faults_are_seen_by_a_client() {
    for engine in engines() {
        let sink = Sink::start(&["--engine", engine]);
        let connect = |faults: &str| {
            sink.set_faults(faults);
            Client::connect(sink.address)
        };
        let ingest = |client: &mut Client| client.post("/ingest?name=app", &[], b"main 1\n");

        let begun = clock::now();
        assert_eq!(ingest(&mut connect("--delay 60ms")).unwrap().status, 200);
        assert!(
            clock::now().since(begun) >= Duration::from_millis(60),
            "delay under {engine}"
        );

        let mut client = connect("--answer 200x2,503 --answer-header 'Retry-After: 3'");
        let answers: Vec<_> = (0..4).map(|_| ingest(&mut client).unwrap()).collect();
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 200, 503, 200]);
        assert!(
            answers
                .iter()
                .all(|answer| answer.header("retry-after") == Some("3"))
        );

        let answer = ingest(&mut connect("--answer-body connect:resource_exhausted")).unwrap();
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (429, Some("resource_exhausted"))
        );

        let mut client = connect("--reset 50%");
        assert_eq!(ingest(&mut client).unwrap().status, 200);
        assert_eq!(
            ingest(&mut client).unwrap_err().kind(),
            ErrorKind::ConnectionReset,
            "reset under {engine}"
        );

        let mut client = connect("--close");
        assert_eq!(ingest(&mut client).unwrap().header("connection"), Some("close"));
        assert_eq!(client.receive_all().unwrap(), b"");

        let mut client = connect("--lie length");
        assert_eq!(ingest(&mut client).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let mut client = connect("--lie garbage");
        client.send(post("/ingest?name=app", &[], b"x")).unwrap();
        assert!(!client.receive_all().unwrap().starts_with(b"HTTP/"));
        let mut client = connect("--lie extra");
        assert_eq!(ingest(&mut client).unwrap().status, 200);
        assert_eq!(client.receive_all().unwrap(), b"and then there was m");

        let mut client = connect("--stall");
        client.set_patience(Duration::from_millis(100));
        let stalled = ingest(&mut client).unwrap_err().kind();
        assert!(
            matches!(stalled, ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "{stalled:?} under {engine}"
        );
        client.set_patience(support::DEADLINE);
        sink.set_faults("");
        assert_eq!(client.receive().unwrap().status, 200, "a stalled request goes on");

        let open = sink.stats()["connections_open"].clone();
        let mut client = connect("--stall");
        client.send(post("/ingest?name=app", &[], b"x")).unwrap();
        sink.stats_when("the stall", |stats| stats["stalls"] == 2);
        drop(client);
        let stats = sink.stats_when("the stalled client's end", |stats| {
            stats["connections_open"] == open
        });
        assert_eq!(
            (&stats["resets"], &stats["lies"]),
            (&json!(1), &json!(3)),
            "{stats:#}"
        );
    }
}

#[test]
fn a_slow_reader_reads_slowly() {
    for engine in engines() {
        let sink = Sink::start(&["--engine", engine, "--bandwidth", "100KiB"]);
        let begun = clock::now();
        let answer = Client::connect(sink.address)
            .post("/ingest?name=app", &[], &[b'x'; 20 << 10])
            .unwrap();
        assert_eq!(answer.status, 200);
        let took = clock::now().since(begun);
        assert!(
            took >= Duration::from_millis(150),
            "20 KiB at 100 KiB/s took {took:?} under {engine}"
        );
    }
}

#[test]
fn load_tells_what_failed() {
    for engine in engines() {
        for (faults, flags, expected) in [
            ("--answer 200,503", &[][..], json!({"ok": 10, "failed": 10})),
            ("--reset 1", &[], json!({"ok": 0, "failed": 20, "broken": 20})),
            ("--lie length", &[], json!({"ok": 0, "failed": 20, "closed": 20})),
            (
                "--lie garbage",
                &[],
                json!({"ok": 0, "failed": 20, "bad_answer": 20}),
            ),
            (
                "--stall",
                &["--timeout", "100ms"],
                json!({"ok": 0, "failed": 20, "timeout": 20}),
            ),
            ("--close", &[], json!({"ok": 20, "failed": 0})),
            ("--lie extra", &[], json!({"ok": 20, "failed": 0})),
            ("--answer 204", &[], json!({"ok": 20, "failed": 0})),
        ] {
            let sink = Sink::start(&["--engine", engine]);
            sink.set_faults(faults);
            let flags = [
                &["--requests", "20", "--connections", "4", "--size", "1KiB"],
                flags,
            ]
            .concat();
            let (ended, report) = load(&sink, engine, &flags);
            for (key, count) in expected.as_object().unwrap() {
                let found = report.get(key).unwrap_or(&report["errors"][key]);
                assert_eq!(found, count, "{key} with {faults} under {engine}: {report:#}");
            }
            assert_eq!(ended.status.success(), report["failed"] == 0, "{faults}");
            let (ended, _) = load(&sink, engine, &[&flags[..], &["--allow-errors"]].concat());
            assert!(ended.status.success(), "{faults} with --allow-errors");
        }
    }
}

#[test]
fn load_tells_that_nobody_listens() {
    for engine in engines() {
        let absent = Absent::new();
        let url = absent.url();
        let ended = run(&[
            "load",
            &url,
            "--engine",
            engine,
            "--requests",
            "3",
            "--json",
            "-",
            "--quiet",
        ]);
        assert_eq!(ended.status.code(), Some(1));
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(report["errors"]["connect"], 3, "{report:#}");
    }
}

#[test]
fn a_rate_that_is_not_reached_is_told() {
    for engine in engines() {
        let sink = Sink::start(&["--engine", engine, "--delay", "50ms"]);
        let flags = [
            "--rate",
            "200",
            "--duration",
            "2s",
            "--connections",
            "1",
            "--size",
            "1KiB",
        ];
        let (ended, report) = load(&sink, engine, &flags);
        assert!(ended.status.success());
        let count = |key: &str| report[key].as_u64().unwrap();
        assert!((1..=41).contains(&count("ok")), "{report:#}");
        assert_eq!(count("ok") + count("unsent"), 400, "all that was due: {report:#}");
        // The last request began nearly 2 s after it was due: from the intended start, not from the send.
        assert!(
            report["latency_us"]["max"].as_f64().unwrap() > 800_000.0,
            "{report:#}"
        );
    }
}

#[test]
fn a_signal_ends_a_run_early_with_a_report() {
    for flags in [&[][..], &["--rate", "100"]] {
        let sink = Sink::start(&[] as &[&str]);
        let url = sink.url();
        let process = Process::start(&[&["load", &url, "--duration", "1h", "--json", "-"], flags].concat());
        sink.stats_when("requests", |stats| stats["requests"].as_u64() > Some(10));
        process.signal(rustix::process::Signal::INT);
        let ended = process.wait();
        assert!(ended.status.success(), "{}", ended.stderr);
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(
            (&report["failed"], &report["ok"]),
            (&json!(0), &report["requests"])
        );
        assert!(ended.stderr.contains("latency p50"), "{}", ended.stderr);
    }
}

#[test]
fn the_warmup_is_told_apart() {
    let sink = Sink::start(&["--verify"]);
    let flags = [
        "--warmup",
        "200ms",
        "--duration",
        "2s", // long enough for the last of the warm-up to be sent on a busy machine
        "--rate",
        "100",
        "--size",
        "1KiB",
    ];
    let (ended, report) = load(&sink, "auto", &flags);
    assert!(ended.status.success());
    let (warm, measured) = (
        report["warmup"]["ok"].as_u64().unwrap(),
        report["ok"].as_u64().unwrap(),
    );
    assert_eq!(warm, 20, "{report:#}");
    assert!((1..=200).contains(&measured), "{report:#}");
    assert_eq!(sink.stats()["verified"], warm + measured);
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    for (args, complaint) in [
        (&["load", "ftp://localhost"][..], "use an http:// or https:// URL"),
        (&["load", "http://localhost/?a=b"], "only host, port and path"),
        (&["load", "--size", "100B"], "raise --size"),
        (&["load", "--size", "1KiB:0"], "a weight is at least 1"),
        (
            &["load", "--cores", "2", "--connections", "1"],
            "each core needs one",
        ),
        (&["load", "--duration", "2d"], "longer than a day"),
        (&["load", "--name", "a{b}"], "letters"),
        (&["load", "--rate", "0"], "0 is not in"),
        (&["sink", "--answer", "100"], "no final status"),
        (&["sink", "--record-bodies", "x"], "--record"),
        (&["sink", "--listen", "192.0.2.1:1"], "cannot listen there"),
        (
            &["sink", "--listen", "127.0.0.1:0", "--record", "/nowhere/at/all"],
            "cannot be written",
        ),
    ] {
        let ended = run(args);
        assert!(!ended.status.success(), "{args:?}");
        assert!(ended.stderr.contains(complaint), "{args:?}: {}", ended.stderr);
        assert!(ended.stdout.is_empty(), "{args:?}: {}", ended.stdout);
    }
}

#[test]
fn the_admin_port_refuses_bad_faults() {
    let sink = Sink::start(&[] as &[&str]);
    let answer = Client::connect(sink.admin)
        .post("/faults", &[], b"--answer 99")
        .unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("no final status"), "{}", answer.text());
    sink.set_faults("--answer 418");
    assert!(get(sink.admin, "/faults").text().contains("418"));
    assert_eq!(
        Client::connect(sink.address)
            .post("/ingest?name=a", &[], b"")
            .unwrap()
            .status,
        418
    );
}

#[test]
fn load_scripts_end_by_themselves_and_lose_nothing() {
    // The drill's sink starts when the script does, on a port that the gateway knows before.
    let ports = [(); 2].map(|()| Absent::for_another());
    let [port, control] = ports.each_ref().map(|absent| absent.address().port().to_string());
    let sink = Sink::start(&["--verify"]);
    let to = [
        format!("prod={}", sink.url()),
        format!("drill=http://127.0.0.1:{port},max-age=1m"),
    ];
    let flags = [
        "--to",
        &to[0],
        "--to",
        &to[1],
        "--ack",
        "queued",
        "--drain-timeout",
        "1s",
    ];
    let gateway = Gateway::start(engines()[0], &flags);
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/load");
    let run = |script: &str, flags: &[&str]| {
        let mut command = Command::new(format!("{scripts}/{script}"));
        command.env("PYROTEE", env!("CARGO_BIN_EXE_pyrotee"));
        command.env("SINK_PORT", &port).env("SINK_CONTROL", &control);
        command.args(flags);
        Running::start(command).end(Duration::from_secs(60))
    };
    let (url, mut sent) = (gateway.url(), 0);
    for script in [
        "smoke",
        "steady",
        "saturation",
        "mixed",
        "connection-per-request",
        "outage",
    ] {
        let limits = ["--seconds", "3", "--requests", "60", "--size", "4KiB"];
        let (status, said) = run(script, &[&[url.as_str()], &limits[..]].concat());
        assert!(status.success(), "{script}\n{}\n{}", said.stdout, said.stderr);
        sent += 60;
        // An answer is counted last, after what was found in its request.
        sink.stats_when(script, |stats| stats["statuses"]["200"] == sent);
        let stats = sink.stats();
        assert_eq!(stats["requests"], sent, "{script}\n{stats:#}");
        assert_eq!(stats["verified"], sent, "{script}\n{stats:#}");
    }
    for (flags, status) in [
        (&["--help"][..], 0),
        (&["--requests", "0"], 64),
        (&["--fast"], 64),
    ] {
        for script in std::fs::read_dir(scripts).expect("our folder") {
            let script = script.expect("an entry").file_name();
            let script = script.to_str().expect("our names");
            if script != "common.sh" {
                assert_eq!(run(script, flags).0.code(), Some(status), "{script} {flags:?}");
            }
        }
    }
}

#[test]
fn both_tools_speak_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("operators have it");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let ca = ca.to_str().unwrap();
    let server = authority.issue(&["127.0.0.1"]).write(folder.path(), "server");
    let own = authority.issue(&["load"]).write(folder.path(), "own");
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (cert, key) = (text(&server.cert), text(&server.key));
    let load = |url: &str, engine: &str, flags: &[&str]| -> Value {
        let base = ["load", url, "--engine", engine, "--json", "-", "--quiet"];
        let short = ["--requests", "20", "--connections", "4", "--size", "40KiB"];
        let ended = run(&[&base[..], &short, flags].concat());
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.stderr))
    };
    for engine in engines() {
        let flags = [
            "--engine",
            engine,
            "--verify",
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
        ];
        let sink = Sink::start(&flags);
        let url = format!("https://{}", sink.address);
        for (name, flags, expected, why) in [
            ("good", &["--tls-ca-file", ca][..], json!({"tls": 0}), None),
            (
                "own connections",
                &["--tls-ca-file", ca, "--connection-per-request", "--rate", "200"],
                json!({"tls": 0}),
                None,
            ),
            (
                "anything goes",
                &["--tls-insecure-skip-verify"],
                json!({"tls": 0}),
                None,
            ),
            (
                "nobody knows it",
                &[],
                json!({"tls": 20}),
                Some("unknown authority"),
            ),
            (
                "another name",
                &["--tls-ca-file", ca, "--tls-server-name", "elsewhere.example"],
                json!({"tls": 20}),
                Some("another name"),
            ),
        ] {
            let report = load(&url, engine, flags);
            assert_eq!(
                report["errors"]["tls"], expected["tls"],
                "{name} under {engine}: {report:#}"
            );
            let ok = if why.is_none() { 20 } else { 0 };
            assert_eq!(report["ok"], ok, "{name} under {engine}: {report:#}");
            let told = report["tls_error"].as_str().unwrap_or_default();
            assert!(
                told.contains(why.unwrap_or_default()),
                "{name} under {engine}: {report:#}"
            );
        }
        let stats = sink.stats_when("the refused", |stats| stats["tls_failures"] == 40);
        assert_eq!(stats["verified"], 60, "{stats:#}");
        sink.set_faults("--reset 1");
        let report = load(&url, engine, &["--tls-ca-file", ca]);
        assert_eq!(
            (&report["errors"]["broken"], &report["ok"]),
            (&json!(20), &json!(0)),
            "{report:#}"
        );
        // In cleartext to one that speaks TLS: told as what it is, no answer.
        let plain = load(&format!("http://{}", sink.address), engine, &[]);
        assert_eq!(
            (&plain["ok"], &plain["failed"]),
            (&json!(0), &json!(20)),
            "{plain:#}"
        );

        let gateway = Gateway::start(
            engine,
            &[
                "--to",
                &format!("a=https://{},tls-ca-file={ca}", sink.address),
                "--tls-cert-file",
                &cert,
                "--tls-key-file",
                &key,
                "--tls-client-auth",
                "RequireAndVerifyClientCert",
                "--tls-client-ca-file",
                ca,
            ],
        );
        sink.set_faults("");
        let url = format!("https://{}", gateway.address);
        let (own_cert, own_key) = (text(&own.cert), text(&own.key));
        let shown = [
            "--tls-ca-file",
            ca,
            "--tls-cert-file",
            &own_cert,
            "--tls-key-file",
            &own_key,
        ];
        let report = load(&url, engine, &shown);
        assert_eq!(report["ok"], 20, "{report:#}");
        let report = load(&url, engine, &["--tls-ca-file", ca]);
        assert_eq!(report["errors"]["tls"], 20, "{report:#}");
        assert_eq!(
            report["tls_error"], "the peer refused: certificate required",
            "{report:#}"
        );
        gateway.end_whole();
        sink.stats_when("all that was accepted", |stats| stats["verified"] == 80);
    }
    for (args, says) in [
        (
            &["load", "http://127.0.0.1:1", "--tls-insecure-skip-verify"][..],
            "are for https://",
        ),
        (
            &["load", "https://127.0.0.1:1", "--tls-ca-file", "absent.pem"],
            "absent.pem",
        ),
        (
            &["load", "https://127.0.0.1:1", "--tls-cert-file", "a.pem"],
            "--tls-key-file",
        ),
        (
            &[
                "sink",
                "--tls-cert-file",
                "absent.pem",
                "--tls-key-file",
                "absent.pem",
            ],
            "absent.pem",
        ),
    ] {
        let ended = run(args);
        assert!(
            !ended.status.success() && ended.stderr.contains(says),
            "{args:?}: {}",
            ended.stderr
        );
    }
}
