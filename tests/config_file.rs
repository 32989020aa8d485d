//! `--config`: a setup of Alloy moves over, and what does not is refused by name (rows 43, 122, 126, 135, 138 of WIRE.md
//! section 9 from a file; of TLS what a file says, not how it is spoken). The real binary, under both engines where it runs.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use tempfile::{NamedTempFile, TempDir};

mod support;
use support::gateway::{Gateway, farewells};
use support::peer::{Peer, Reply};
use support::tls::Authority;
use support::wire::{name_of, pairs_but_name};
use support::{Client, DEADLINE, Ended, Process, get, run, under_both_engines};

under_both_engines!(
    a_file_is_forwarded_as_alloy_would,
    flags_win_over_the_file,
    an_address_left_out_is_every_address,
    both_sides_of_tls_come_from_the_file,
    http2_in_cleartext_comes_from_the_file
);

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a folder for temporary files");
    file.write_all(text.as_bytes()).expect("room");
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().expect("plain")
}

/// A gateway of a file and flags; listens where the log says.
fn start(engine: &str, file: &NamedTempFile, flags: &[&str]) -> Gateway {
    let mut args = vec![
        "run",
        "--config",
        path(file),
        "--engine",
        engine,
        "--log",
        "json",
        "--cores",
        "1",
        "--no-pin",
    ];
    args.extend(flags);
    if !flags.contains(&"--admin") {
        args.extend(["--admin", "off"]);
    }
    let mut process = Process::start(&args);
    let address = process.log("address", |line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        (line["message"] == "listening").then(|| line["address"].as_str()?.parse().ok())?
    });
    Gateway {
        process,
        address,
        admin: None,
    }
}

fn check(flags: &[&str]) -> Ended {
    run(&[&["check"], flags].concat())
}

fn a_file_is_forwarded_as_alloy_would(engine: &str) {
    let (eu, us) = (Peer::start(), Peer::start());
    let token = file("t0ken\n");
    let text = format!(
        r#"
// Two regions, one of them with a tenant.
pyroscope.receive_http "apps" {{
  http {{
    listen_address = "127.0.0.1"
    listen_port    = 0
  }}
  forward_to = [pyroscope.relabel.tidy.receiver]
}}

pyroscope.relabel "tidy" {{
  forward_to = [pyroscope.write.eu.receiver, pyroscope.write.us.receiver]
  rule {{
    action        = "drop"
    source_labels = ["env"]
    regex         = "dev|test"
  }}
  rule {{
    source_labels = ["service_name"]
    target_label  = "team"
    replacement   = "of-$1"
  }}
}}

pyroscope.write "eu" {{
  external_labels = {{ cluster = "c" + "1" }}
  endpoint {{
    name = "eu"
    url  = "{}/base/"
    headers = {{
      "X-Scope-OrgID" = "a, b",
    }}
    basic_auth {{
      username = "user"
      password = "p,w"
    }}
  }}
  tracing {{ jaeger_propagator = false }}
}}

pyroscope.write "us" {{
  external_labels = {{ cluster = "c1" }}
  endpoint {{
    url               = "{}"
    bearer_token_file = "{}"
  }}
  tracing {{ jaeger_propagator = false }}
}}
"#,
        eu.url(),
        us.url(),
        path(&token)
    );
    let file = file(&text);
    let gateway = start(engine, &file, &[]);
    let mut client = gateway.client();
    let mut post = |target: &str, body: &[u8]| client.post(target, &[], body).expect("an answer").status;
    assert_eq!(post("/ingest?name=app{env=dev}", b"no"), 200);
    assert_eq!(post("/ingest?name=app{env=prod}&from=1", b"yes"), 200);
    let at_eu = eu.next();
    assert_eq!(at_eu.target.split('?').next(), Some("/base/ingest"));
    assert_eq!(
        name_of(at_eu.query()),
        "app{cluster=c1,env=prod,service_name=app,team=of-app}"
    );
    assert_eq!(
        pairs_but_name(at_eu.query()),
        [("from".to_owned(), "1".to_owned())]
    );
    assert_eq!(at_eu.body, b"yes");
    assert_eq!(at_eu.header("x-scope-orgid"), Some("a, b"));
    assert_eq!(at_eu.header("authorization"), Some("Basic dXNlcjpwLHc="));
    let at_us = us.next();
    assert_eq!(name_of(at_us.query()), name_of(at_eu.query()));
    assert_eq!(at_us.header("authorization"), Some("Bearer t0ken"));
    assert_eq!(at_us.header("x-scope-orgid"), None);
    let traced = |name| at_us.header(name).is_some();
    assert!(traced("traceparent") && !traced("uber-trace-id"));
    let ended = gateway.process.terminate();
    let farewells = farewells(&ended);
    let names: Vec<&str> = farewells.keys().map(String::as_str).collect();
    assert_eq!(names, [us.address.to_string().as_str(), "eu"]);
    assert!(
        farewells
            .values()
            .all(|one| one.delivered == 1 && one.lost() == 0)
    );
    for secret in ["p,w", "dXNlcjpwLHc", "a, b", "t0ken"] {
        assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
    }
}

fn flags_win_over_the_file(engine: &str) {
    let a = Peer::start();
    let text = format!(
        "pyroscope.receive_http \"x\" {{\nforward_to = [pyroscope.write.y.receiver]\nhttp {{\nlisten_port = 1\nconn_limit = 7\n\
         server_idle_timeout = \"7s\"\n}}\n}}\npyroscope.write \"y\" {{\nexternal_labels = {{ a = \"file\", b = \"file\" }}\n\
         endpoint {{\nurl = \"{}\"\n}}\n}}\nlogging {{ level = \"error\" }}\n",
        a.url()
    );
    let file = file(&text);
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--external-label",
        "a=flag",
        "--conn-limit",
        "9",
        "--log-level",
        "info",
    ];
    let mut flags = flags.to_vec();
    flags.extend(["--admin", "127.0.0.1:0"]);
    let mut args = vec![
        "run",
        "--config",
        path(&file),
        "--engine",
        engine,
        "--log",
        "json",
        "--cores",
        "1",
        "--no-pin",
    ];
    args.extend(flags);
    let mut process = Process::start(&args);
    let mut addresses = Vec::new();
    while addresses.len() < 2 {
        addresses.push(process.log("address", |line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line["address"].as_str()?.parse().ok()
        }));
    }
    let config = get(addresses[0], "/-/config").json();
    assert_eq!(config["plan"]["conn_limit"], 9);
    assert_eq!(
        config["plan"]["idle_timeout"], "7s",
        "what no flag says comes from the file"
    );
    let answer = Client::connect(addresses[1])
        .post("/ingest?name=app", &[], b"x")
        .expect("an answer");
    assert_eq!(answer.status, 200);
    assert_eq!(name_of(a.next().query()), "app{a=flag,b=file,service_name=app}");
}

fn an_address_left_out_is_every_address(engine: &str) {
    let a = Peer::start();
    let text = format!(
        "pyroscope.receive_http \"x\" {{\nforward_to = [pyroscope.write.y.receiver]\nhttp {{ listen_port = 0 }}\n}}\n\
         pyroscope.write \"y\" {{\nendpoint {{ url = \"{}\" }}\n}}\n",
        a.url()
    );
    let gateway = start(engine, &file(&text), &[]);
    assert!(gateway.address.ip().is_unspecified());
    let over_ipv4 = ([127, 0, 0, 1], gateway.address.port()).into();
    let answer = Client::connect(over_ipv4)
        .post("/ingest?name=app", &[], b"x")
        .expect("an answer");
    assert_eq!(answer.status, 200);
    assert_eq!(a.next().body, b"x");
}

fn both_sides_of_tls_come_from_the_file(engine: &str) {
    let folder = TempDir::new().expect("a folder for temporary files");
    let (front, back) = (Authority::new("clients trust it"), Authority::new("we trust it"));
    let server = front.issue(&["localhost"]).write(folder.path(), "server");
    let (app, own) = (front.issue(&["app"]), back.issue(&["gateway"]));
    let shown = own.write(folder.path(), "own");
    let (clients_ca, back_ca) = (folder.path().join("clients.pem"), folder.path().join("ca.pem"));
    std::fs::write(&clients_ca, front.pem()).expect("a folder of ours");
    std::fs::write(&back_ca, back.pem()).expect("a folder of ours");
    // Its certificate is for another name than the URL's, so server_name counts.
    let peer = Peer::with_tls(back.server_asking(&back.issue(&["push.example"])), |_| Reply::Ok);
    let text = format!(
        r#"
pyroscope.receive_http "apps" {{
  forward_to = [pyroscope.write.out.receiver]
  http {{
    listen_address = "127.0.0.1"
    listen_port    = 0
    tls {{
      cert_file        = "{}"
      key_file         = "{}"
      client_auth_type = "RequireAndVerifyClientCert"
      client_ca_file   = "{}"
      min_version      = "VersionTLS13"
    }}
    http2 {{
      enabled = true
    }}
  }}
}}
pyroscope.write "out" {{
  endpoint {{
    name = "out"
    url  = "{}"
    tls_config {{
      ca_file     = "{}"
      cert_file   = "{}"
      key_file    = "{}"
      server_name = "push.example"
      min_version = "TLS12"
    }}
  }}
}}
"#,
        server.cert.display(),
        server.key.display(),
        clients_ca.display(),
        peer.https(),
        back_ca.display(),
        shown.cert.display(),
        shown.key.display(),
    );
    let file = file(&text);
    let push = |gateway: &Gateway, config, body: &[u8]| {
        let mut client = Client::connect_tls(gateway.address, config, "localhost");
        client
            .post("/ingest?name=app", &[], body)
            .map(|answer| answer.status)
    };
    let (tls12, tls13) = (&[&rustls::version::TLS12], &[&rustls::version::TLS13]);
    let gateway = start(engine, &file, &[]);
    let status = push(&gateway, front.client_of(Some(&app), tls13), b"body");
    assert_eq!(status.expect("an answer"), 200);
    let received = peer.next();
    assert_eq!(
        (received.text(), received.certificate),
        ("body".to_owned(), Some(own.der()))
    );
    assert!(push(&gateway, front.client_of(None, tls13), b"x").is_err());
    assert!(push(&gateway, front.client_of(Some(&app), tls12), b"x").is_err());
    gateway.end_whole();

    let gateway = start(engine, &file, &["--tls-min-version", "TLS12"]);
    let status = push(&gateway, front.client_of(Some(&app), tls12), b"older");
    assert_eq!(status.expect("the flag wins"), 200);
    assert_eq!(peer.next().text(), "older");
    gateway.end_whole();

    let ended = check(&["--config", path(&file)]);
    assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
    for says in [
        "all of these, TLS 1.3; certificate ",
        "server-key.pem",
        "RequireAndVerifyClientCert, with the authorities in ",
        "served to clients that ask for it (ALPN)",
        "https, host 127.0.0.1",
        "its certificate must be for push.example and signed by those in ",
        "it is shown ",
        "http2 has no effect with TLS",
    ] {
        assert!(ended.stdout.contains(says), "{says}:\n{}", ended.stdout);
    }
}

fn http2_in_cleartext_comes_from_the_file(engine: &str) {
    for enabled in [true, false] {
        let text = format!(
            "pyroscope.receive_http \"x\" {{\nforward_to = [pyroscope.write.y.receiver]\nhttp {{\n\
             listen_address = \"127.0.0.1\"\nlisten_port = 0\nhttp2 {{ enabled = {enabled} }}\n}}\n}}\n\
             pyroscope.write \"y\" {{\nendpoint {{ url = \"http://127.0.0.1:1\" }}\n}}\n"
        );
        let gateway = start(engine, &file(&text), &[]);
        let mut stream = TcpStream::connect(gateway.address).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        // RFC 9113, 3.4: the preface, then SETTINGS, of which the server sends some too: length, then type 4.
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        stream.write_all(preface).expect("it takes it");
        let mut said = [0; 4];
        stream.read_exact(&mut said).expect("an answer");
        if enabled {
            assert_eq!((said[0], said[1], said[3]), (0, 0, 4), "SETTINGS");
        } else {
            assert_eq!(&said, b"HTTP", "HTTP/1.1 refuses");
        }
    }
}

/// The complete example of docs/configuration.md.
fn example() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(page).expect("the page of flags");
    let (_, rest) = page.split_once("```alloy\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    example.to_owned()
}

#[test]
fn the_example_of_the_page_is_good_and_explained() {
    let file = file(&example());
    let ended = check(&["--config", path(&file)]);
    assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
    for says in [
        "[::]:4040",
        "Destination eu",
        "Destination us",
        "cluster=eu-1",
        "action = \"drop\", source_labels = [\"env\", \"team\"], regex = \"dev;.*\"",
        "X-Scope-OrgID, Authorization (values are not shown)",
        "/run/secrets/eu-token",
        "8,192 clients",
        "Notes on the file",
        "max_cache_size has no effect",
        "US_PASSWORD is not set in the environment",
        "The configuration is good.",
    ] {
        assert!(ended.stdout.contains(says), "{says}:\n{}", ended.stdout);
    }
    let ended = check(&["--config", path(&file), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!(json["good"], true);
    assert_eq!(json["plan"]["relabel"].as_array().map(Vec::len), Some(3));
}

#[test]
fn mistakes_have_file_line_and_column_and_are_told_at_once() {
    let text = "pyroscope.receive_http \"x\" {\n  forward_to = [pyroscope.write.y.receiver]\n  http {\n    conn_limt = 5\n  }\n}\n\
                pyroscope.write \"y\" {\n  endpoint {\n    url = \"ftp://h\"\n    bearer_token = \"hunter2\"\n    basic_auth {\n\
                      password = \"hunter2\"\n    }\n  }\n}\npyroscope.ebpf \"z\" {\n}\n";
    let bad = file(text);
    for command in ["check", "run"] {
        let ended = run(&[command, "--config", path(&bad)]);
        assert_eq!(ended.status.code(), Some(64));
        for says in [
            ":4:5: unknown attribute conn_limt in http of pyroscope.receive_http \"x\"; known: listen_address",
            ":11:5: both bearer_token and basic_auth in endpoint of pyroscope.write \"y\"",
            ":16:1: pyroscope.ebpf \"z\" is no part of pyrotee, which only forwards profiles",
        ] {
            let says = format!("error: --config {}{says}", path(&bad));
            assert!(ended.stderr.contains(&says), "{says}:\n{}", ended.stderr);
        }
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}

#[test]
fn what_only_the_plan_can_see_has_its_place_too() {
    let receiver = |http: &str| {
        format!("pyroscope.receive_http \"x\" {{\nforward_to = [pyroscope.write.y.receiver]\n{http}\n}}\n")
    };
    let write = |lines: &str| format!("pyroscope.write \"y\" {{\n{lines}\n}}\n");
    let good = "endpoint { url = \"http://h:1\" }";
    let folder = TempDir::new().expect("a folder for temporary files");
    for (text, flags, says) in [
        (receiver("") + &write("endpoint { url = \"ftp://h\" }"), &[][..], ":6:1: is no destination; write http://"),
        (receiver("") + &write("endpoint {\nurl = \"http://u:hunter2@h:99999\"\n}"), &[], ":6:1: is no good URL"),
        (
            receiver("") + &write("endpoint {\nurl = \"http://h\"\nheaders = { Host = \"x\" }\n}"),
            &[],
            ":6:1: header Host is set by pyrotee itself",
        ),
        (
            receiver("") + &write("endpoint {\nurl = \"http://u:p@h\"\nbearer_token = \"x\"\n}"),
            &[],
            ":6:1: has both a user in the URL and bearer-token",
        ),
        (
            receiver("") + &write("endpoint {\nurl = \"file:./p\"\nheaders = { A = \"x\" }\n}"),
            &[],
            ":6:1: headers are for http:// destinations",
        ),
        (
            receiver("") + &write("endpoint {\nurl = \"http://h\"\nname = \"a\"\n}\nendpoint {\nurl = \"http://i\"\nname = \"a\"\n}"),
            &[],
            ":10:1: a second endpoint named 'a'",
        ),
        (
            receiver("http {\nserver_read_timeout = \"1ms\"\n}") + &write(good),
            &[],
            "--read-timeout 1ms: too short; give 100ms or more (set at ",
        ),
        (
            receiver("") + &write("endpoint {\nurl = \"http://h\"\ntls_config { ca_file = \"ca\" }\n}"),
            &[],
            ":6:1: option 'tls-ca-file' is for https:// destinations; write https://",
        ),
        (
            receiver("") + &write("endpoint {\nurl = \"https://h\"\ntls_config { cert_file = \"c\" }\n}"),
            &[],
            ":6:1: tls-cert-file needs tls-key-file beside it",
        ),
        (
            receiver("") + &write("endpoint {\nurl = \"https://h\"\ntls_config { ca_file = \"\" }\n}"),
            &[],
            ":6:1: tls-ca-file= needs the path of a file",
        ),
        (
            receiver("") + &write("endpoint {\nurl = \"https://h\"\ntls_config { min_version = \"TLS11\" }\n}"),
            &[],
            ":6:1: tls-min-version=TLS11: expected TLS12 or TLS13",
        ),
        (
            receiver("http {\ntls {\ncert_file = \"c\"\n}\n}") + &write(good),
            &[],
            "--tls-cert-file c: needs --tls-key-file beside it; without both nothing would be encrypted (set at ",
        ),
        (
            receiver("http {\ntls {\nmin_version = \"VersionTLS13\"\n}\n}") + &write(good),
            &[],
            "has no effect without --tls-cert-file and --tls-key-file (set at ",
        ),
        (
            receiver("http {\ntls {\ncert_file = \"c\"\nkey_file = \"k\"\n}\n}") + &write(good),
            &["--h2c"],
            "--h2c: is for cleartext",
        ),
        (receiver("") + &write(""), &[], "has no endpoint that anything is forwarded to"),
        (receiver("") + &write(good), &["--to", "http://i:1"], "--to: "),
        (
            "pyroscope.receive_http \"x\" { forward_to = [pyroscope.relabel.r.receiver] }\npyroscope.relabel \"r\" {\n\
             forward_to = [pyroscope.write.y.receiver]\nrule {\ntarget_label = \"t\"\n}\n}\n"
                .to_owned()
                + &write(good),
            &["--relabel", "action = \"drop\""],
            "has relabel rules, too; give them in one place",
        ),
        (receiver("") + &write("external_labels = { a = \"b\" }\nendpoint { url = \"http://h:1\" }"), &["--labels", "verbatim"], "no effect with --labels verbatim"),
        ("x".repeat(3 << 20), &[], ":1:1: the text is longer than"),
        ("\u{0}".into(), &[], ":1:1: '\\u{0}' means nothing here"),
    ] {
        let bad = file(&text);
        let ended = check(&[&["--config", path(&bad)], flags].concat());
        assert_eq!(ended.status.code(), Some(64), "{says}: {}", ended.stdout);
        assert!(ended.stderr.contains(says), "{says}:\n{}", ended.stderr);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
    for (path, says) in [
        (folder.path().to_str().expect("plain"), "is a folder"),
        ("does-not-exist.alloy", "cannot be read: No such file"),
    ] {
        let ended = check(&["--config", path]);
        assert!(
            ended.status.code() == Some(64) && ended.stderr.contains(says),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn endpoints_without_a_name_are_told_apart() {
    let text = "pyroscope.receive_http \"x\" { forward_to = [pyroscope.write.y.receiver] }\npyroscope.write \"y\" {\n\
                endpoint { url = \"http://h:1\" }\nendpoint { url = \"http://h:1\" }\nendpoint { url = \"http://h:1\" }\n}\n";
    let same = file(text);
    let ended = check(&["--config", path(&same)]);
    assert!(ended.status.success(), "{}", ended.stderr);
    for says in [
        "Destination h:1\n",
        "Destination h:1-2\n",
        "Destination h:1-3\n",
        "give it a name of its own",
    ] {
        assert!(ended.stdout.contains(says), "{says}:\n{}", ended.stdout);
    }
}

#[test]
fn http2_and_tls_of_flags_go_with_a_file() {
    let text = "pyroscope.receive_http \"x\" {\nforward_to = []\nhttp {\nhttp2 { enabled = true }\n}\n}\n";
    let receiver = file(text);
    let to = ["--config", path(&receiver), "--to", "eu=http://h:1"];
    let pair = ["--tls-cert-file", "c", "--tls-key-file", "k"];
    for (flags, says, is_noted) in [
        (&[][..], "served in cleartext to clients", false),
        (&pair, "served to clients that ask for it (ALPN)", true),
    ] {
        let ended = check(&[&to, flags].concat());
        assert!(ended.status.success(), "{}", ended.stderr);
        assert!(ended.stdout.contains(says), "{says}:\n{}", ended.stdout);
        let noted = ended.stdout.contains("4:19  http2 has no effect with TLS");
        assert_eq!(noted, is_noted, "{}", ended.stdout);
    }
}

#[test]
fn a_flag_with_a_file_alone_takes_destinations_of_flags() {
    let text = "pyroscope.receive_http \"x\" { forward_to = [] }\n";
    let receiver = file(text);
    let ended = check(&["--config", path(&receiver), "--to", "eu=http://h:1"]);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(
        ended.stdout.contains("Destination eu") && ended.stdout.contains("[::]:8080"),
        "{}",
        ended.stdout
    );
}
