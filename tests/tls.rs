//! TLS on both sides of the real binary: rows 125, 132, 133 and 134 of the contract, and what hostile peers try.
//!
//! Clients and destinations are rustls by itself; certificates are made anew by each test. Each test runs under both
//! engines.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, IsCa};
use serde_json::Value;

mod support;
use support::gateway::Gateway;
use support::peer::{Peer, Reply};
use support::tls::{Authority, ClientConfig, Pair, PairFiles};
use support::wire::{
    CHUNK_STYLES, PUSH, assert_same_bytes, decode, encode, gzip, noise, post_chunked, push_message,
};
use support::{Answer, Client, DEADLINE, eventually, get, post, run, under_both_engines};

const INGEST: &str = "/ingest?name=app.cpu";

under_both_engines! {
    bodies_of_every_size_go_both_ways,
    chunks_keep_alive_and_pipelines,
    pushes_through_tls,
    plain_http_is_told_off,
    garbage_is_counted_and_others_are_served,
    slow_handshakes_are_cut_off,
    a_message_cut_short_is_an_error,
    goodbyes_are_said,
    client_certificates_by_policy,
    resumption_is_for_clients_without_certificates,
    old_versions_are_refused,
    rotation_of_the_server_s_certificate,
    bad_rotations_change_nothing,
    silent_clients_make_room,
    destinations_are_verified,
    failures_are_told_without_the_address,
    client_certificate_for_a_destination,
    rotation_towards_a_destination,
    a_destination_s_versions,
    redirects_between_schemes,
    proxies_give_tunnels,
    early_refusals_of_large_bodies_are_heard,
    a_stale_connection_is_replaced,
    answers_until_the_end_are_not_cut_short,
}

/// A gateway that speaks TLS, before a destination in cleartext.
struct Front {
    authority: Authority,
    files: PairFiles,
    folder: tempfile::TempDir,
    gateway: Gateway,
    peer: Peer,
}

impl Front {
    fn start(engine: &str, flags: &[&str]) -> Self {
        Self::start_with(engine, |_, _| {
            flags.iter().map(|flag| (*flag).to_owned()).collect()
        })
    }

    /// `flags` may put files into the folder.
    fn start_with(engine: &str, flags: impl FnOnce(&Authority, &Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::new("clients trust it");
        let files = authority
            .issue(&["localhost", "127.0.0.1"])
            .write(folder.path(), "server");
        let peer = Peer::start();
        let mut all = vec![
            "--to".to_owned(),
            format!("a={}", peer.url()),
            "--tls-cert-file".into(),
            files.cert.to_str().expect("plain").into(),
            "--tls-key-file".into(),
            files.key.to_str().expect("plain").into(),
        ];
        all.extend(flags(&authority, folder.path()));
        let gateway = Gateway::start(engine, &all);
        Self {
            authority,
            files,
            folder,
            gateway,
            peer,
        }
    }

    fn client(&self) -> Client {
        self.client_with(self.authority.client(None))
    }

    fn client_with(&self, config: Arc<ClientConfig>) -> Client {
        Client::connect_tls(self.gateway.address, config, "localhost")
    }

    fn plain(&self) -> TcpStream {
        let stream = TcpStream::connect(self.gateway.address).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        stream
    }

    /// A push over TLS is answered 200.
    fn serves(&self, why: &str) {
        let answer = self.client().post(INGEST, &[], b"body").expect(why);
        assert_eq!(answer.status, 200, "{why}");
        self.peer.next();
    }
}

/// Where `--admin 127.0.0.1:0` came to be.
fn admin_of(gateway: &Gateway) -> std::net::SocketAddr {
    gateway.admin.expect("the flags ask for one")
}

/// The refusals by reason.
fn refused(admin: std::net::SocketAddr, reason: &str) -> u64 {
    let text = get(admin, "/metrics").text();
    let wanted = format!("pyrotee_inbound_refused_requests_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&wanted));
    line.map_or(0, |count| count.parse().expect("a number"))
}

fn refused_is(admin: std::net::SocketAddr, reason: &str, count: u64) {
    eventually(&format!("{count} refusals {reason}"), || {
        (refused(admin, reason) == count).then_some(())
    });
}

fn is_ok(answer: std::io::Result<Answer>) -> bool {
    answer.is_ok_and(|answer| answer.status == 200)
}

fn bodies_of_every_size_go_both_ways(engine: &str) {
    // In and out through TLS: the gateway's own client side speaks to a second one's server side.
    let front = Front::start(engine, &["--body-limit", "64MiB"]);
    let ca = front.folder.path().join("ca.pem");
    fs::write(&ca, front.authority.pem()).expect("a folder of ours");
    let to = format!(
        "b=https://localhost:{},tls-ca-file={}",
        front.gateway.address.port(),
        ca.display()
    );
    let first = Gateway::start(engine, &["--to", &to, "--body-limit", "64MiB"]);
    for (seed, bytes) in [
        0,
        1,
        100,
        2048,
        16 << 10,
        (16 << 10) + 1,
        65_000,
        300_000,
        1 << 20,
        20 << 20,
    ]
    .into_iter()
    .enumerate()
    {
        let body = noise(bytes, seed as u64);
        assert_eq!(first.ingest(&body).status, 200);
        assert_same_bytes(
            &front.peer.next().body,
            &body,
            &format!("{bytes} bytes through both"),
        );
        let answer = front.client().post(INGEST, &[], &body).expect("an answer");
        assert_eq!(answer.status, 200);
        assert_same_bytes(&front.peer.next().body, &body, &format!("{bytes} bytes"));
    }
    first.end_whole();
    front.gateway.end_whole();
}

fn chunks_keep_alive_and_pipelines(engine: &str) {
    let front = Front::start(engine, &[]);
    let mut client = front.client();
    let body = noise(150_000, 7);
    for style in &CHUNK_STYLES {
        let body = if style.bytes < 100 {
            &body[..5000]
        } else {
            &body[..]
        };
        client
            .send(post_chunked(INGEST, "", body, style))
            .expect("it takes it");
        assert_eq!(client.receive().expect("an answer").status, 200, "{}", style.name);
        assert_same_bytes(&front.peer.next().body, body, style.name);
    }
    let bodies: Vec<Vec<u8>> = (0..40)
        .map(|seed| noise(3000 + 400 * seed as usize, seed))
        .collect();
    let requests: Vec<u8> = bodies.iter().flat_map(|body| post(INGEST, &[], body)).collect();
    client.send(&requests).expect("it takes them");
    for _ in &bodies {
        assert_eq!(client.receive().expect("an answer").status, 200);
    }
    let mut got: Vec<Vec<u8>> = front
        .peer
        .take(bodies.len())
        .into_iter()
        .map(|one| one.body)
        .collect();
    let mut expected = bodies;
    got.sort();
    expected.sort();
    assert!(got == expected, "pipelined bodies arrive, each once");
    // One byte of a request per record.
    for byte in post(INGEST, &[("Expect", "100-continue")], b"slow") {
        client.send([byte]).expect("it takes it");
    }
    let mut answer = client.receive().expect("an answer");
    if answer.status == 100 {
        answer = client.receive().expect("an answer");
    }
    assert_eq!(answer.status, 200);
    assert_eq!(front.peer.next().text(), "slow");
    front.gateway.end_whole();
}

fn pushes_through_tls(engine: &str) {
    let front = Front::start(engine, &[]);
    let profile = gzip(&noise(100_000, 3));
    let body = encode(&push_message(
        &[("service_name", "s"), ("__name__", "cpu")],
        std::slice::from_ref(&profile),
    ));
    let answer = front
        .client()
        .post(PUSH, &[("Content-Type", "application/proto")], &body);
    let answer = answer.expect("an answer");
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/proto"))
    );
    let got = decode(&front.peer.next().body);
    assert_same_bytes(&got.series[0].samples[0].raw_profile, &profile, "the profile");
}

fn plain_http_is_told_off(engine: &str) {
    let front = Front::start(engine, &["--admin", "127.0.0.1:0"]);
    let admin = admin_of(&front.gateway);
    for request in [
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        String::from_utf8(post(INGEST, &[], b"b")).expect("text"),
    ] {
        let mut client = Client::connect(front.gateway.address);
        client.send(&request).expect("it takes it");
        let answer = client.receive().expect("an answer in cleartext");
        assert_eq!(answer.status, 400);
        assert_eq!(answer.text(), "Client sent an HTTP request to an HTTPS server.\n");
        client.expect_closed("told off");
    }
    refused_is(admin, "http_on_tls_port", 2);
    front.serves("after cleartext");
}

fn garbage_is_counted_and_others_are_served(engine: &str) {
    let front = Front::start(engine, &["--admin", "127.0.0.1:0"]);
    let admin = admin_of(&front.gateway);
    for garbage in [
        &b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"[..],
        b"\x16\x03\x01\x00\x05hello",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"\x16\x03\x01\xff\xff",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
    ] {
        let mut stream = front.plain();
        let _ = stream.write_all(garbage);
        let mut said = Vec::new();
        let _reset_is_fine = stream.read_to_end(&mut said);
        assert!(!said.starts_with(b"HTTP"), "{garbage:?}");
    }
    eventually("five failed handshakes", || {
        let all: u64 = ["tls_malformed", "tls_protocol", "tls_refused_by_client"]
            .iter()
            .map(|reason| refused(admin, reason))
            .sum();
        (all == 5).then_some(())
    });
    // Closing without a word is what probes do.
    drop(front.plain());
    // Leaving in the middle is not.
    let mut stream = front.plain();
    stream.write_all(b"\x16\x03\x01\x02").expect("it takes it");
    drop(stream);
    refused_is(admin, "tls_closed", 1);
    // A client that does not trust us says so, or is gone before that is read.
    let broken_off = || refused(admin, "tls_refused_by_client") + refused(admin, "tls_closed");
    let before = broken_off();
    let stranger = Authority::new("somebody else");
    let mut client = front.client_with(stranger.client(None));
    assert!(client.post(INGEST, &[], b"").is_err());
    eventually("the stranger's refusal", || {
        (broken_off() == before + 1).then_some(())
    });
    let page = get(admin, "/").text();
    assert!(page.contains("https://127.0.0.1"), "the page says how to push");
    front.serves("after garbage");
}

fn slow_handshakes_are_cut_off(engine: &str) {
    let front = Front::start(engine, &["--read-timeout", "3s", "--admin", "127.0.0.1:0"]);
    let admin = admin_of(&front.gateway);
    let mut silent = front.plain();
    let mut slow = front.plain();
    slow.write_all(b"\x16\x03\x01\x02\x00").expect("it takes it");
    for stream in [&mut silent, &mut slow] {
        let mut said = Vec::new();
        let _reset_is_fine = stream.read_to_end(&mut said);
    }
    refused_is(admin, "tls_timeout", 2);
    front.serves("after slow ones");
}

fn a_message_cut_short_is_an_error(engine: &str) {
    let front = Front::start(engine, &["--admin", "127.0.0.1:0"]);
    let admin = admin_of(&front.gateway);
    let request = post(INGEST, &[], &noise(5000, 1));
    for (goodbye, what) in [(false, "without a goodbye"), (true, "with one")] {
        let before = refused(admin, "truncated");
        let mut client = front.client();
        client.send(&request[..3000]).expect("it takes it");
        if goodbye {
            client.link().say_goodbye().expect("it is there");
        }
        client.finish();
        let answer = client.receive().expect(what);
        assert_eq!(answer.status, 400, "{what}");
        refused_is(admin, "truncated", before + 1);
    }
    front
        .peer
        .expect_nothing(Duration::from_millis(100), "half a body");
    front.serves("after cut ones");
}

fn goodbyes_are_said(engine: &str) {
    let front = Front::start(engine, &["--idle-timeout", "3s"]); // its requests come earlier, on a busy machine too
    // rustls reports an end without close_notify as UnexpectedEof, so reading to the end asserts it.
    let mut client = front.client();
    let answer = client
        .post(INGEST, &[("Connection", "close")], b"b")
        .expect("an answer");
    assert_eq!(answer.status, 200);
    assert_eq!(client.receive_all().expect("an orderly end"), b"");
    let mut client = front.client();
    assert_eq!(client.post(INGEST, &[], b"b").expect("an answer").status, 200);
    assert_eq!(client.receive_all().expect("an orderly end after idling"), b"");
    let mut client = front.client();
    client.send("BAD\r\n\r\n").expect("it takes it");
    assert_eq!(client.receive().expect("an answer").status, 400);
    assert_eq!(client.receive_all().expect("an orderly end after a refusal"), b"");
}

fn client_certificates_by_policy(engine: &str) {
    let own = Authority::new("signs clients");
    let stranger = Authority::new("signs others");
    let good = own.issue(&["client"]);
    let bad = stranger.issue(&["client"]);
    let expired = own.issue_with(&["client"], |params| {
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    // Policy, whether a CA is given, then who is served: none shown, a good one, a stranger's, an expired one.
    for (policy, with_ca, served) in [
        ("NoClientCert", false, [true, true, true, true]),
        ("RequestClientCert", false, [true, true, true, true]),
        ("RequestClientCert", true, [true, true, true, true]),
        ("RequireAnyClientCert", false, [false, true, true, true]),
        ("RequireClientCert", true, [false, true, true, true]),
        ("VerifyClientCertIfGiven", true, [true, true, false, false]),
        ("RequireAndVerifyClientCert", true, [false, true, false, false]),
    ] {
        let front = Front::start_with(engine, |_, folder| {
            let mut flags = vec!["--tls-client-auth".to_owned(), policy.into()];
            if with_ca {
                let ca = folder.join("clients.pem");
                fs::write(&ca, own.pem()).expect("a folder of ours");
                flags.extend([
                    "--tls-client-ca-file".to_owned(),
                    ca.to_str().expect("plain").into(),
                ]);
            }
            flags
        });
        let shown: [Option<&Pair>; 4] = [None, Some(&good), Some(&bad), Some(&expired)];
        for versions in [
            &[&rustls::version::TLS12] as &[&rustls::SupportedProtocolVersion],
            &[&rustls::version::TLS13],
        ] {
            for (index, (pair, expected)) in shown.iter().zip(served).enumerate() {
                // A client does not show what the server's hint of authorities rules out; these always do.
                let config = front.authority.client_of(*pair, versions);
                let answer = front.client_with(config).post(INGEST, &[], b"b");
                assert_eq!(
                    is_ok(answer),
                    expected,
                    "{policy}, CA {with_ca}, certificate {index}, {versions:?}"
                );
            }
        }
    }
}

fn resumption_is_for_clients_without_certificates(engine: &str) {
    let own = Authority::new("signs clients");
    let pair = own.issue(&["client"]);
    for (policy, resumed) in [("NoClientCert", true), ("RequireAnyClientCert", false)] {
        let front = Front::start(engine, &["--tls-client-auth", policy]);
        let config = front.authority.client(Some(&pair));
        let mut kinds = Vec::new();
        for _ in 0..3 {
            let mut client = front.client_with(config.clone());
            assert!(is_ok(client.post(INGEST, &[], b"b")), "{policy}");
            kinds.push(client.link().is_resumed());
        }
        assert_eq!(kinds, [false, resumed, resumed], "{policy}");
    }
}

fn old_versions_are_refused(engine: &str) {
    let front = Front::start(
        engine,
        &["--tls-min-version", "VersionTLS13", "--admin", "127.0.0.1:0"],
    );
    let admin = admin_of(&front.gateway);
    let old = front.authority.client_of(None, &[&rustls::version::TLS12]);
    assert!(front.client_with(old).post(INGEST, &[], b"b").is_err());
    refused_is(admin, "tls_incompatible", 1);
    front.serves("TLS 1.3");
    let both = Front::start(engine, &[]);
    for version in rustls::ALL_VERSIONS {
        let config = both.authority.client_of(None, &[version]);
        assert!(
            is_ok(both.client_with(config).post(INGEST, &[], b"b")),
            "{version:?}"
        );
    }
}

fn rotation_of_the_server_s_certificate(engine: &str) {
    let front = Front::start(engine, &[]);
    let mut old = front.client();
    assert!(is_ok(old.post(INGEST, &[], b"b")));
    let next = front.authority.issue(&["localhost"]);
    next.write(front.folder.path(), "server");
    let expected = next.der();
    eventually("the new certificate", || {
        let mut client = front.client();
        assert!(is_ok(client.post(INGEST, &[], b"b")), "served all the while");
        (client.link().peer_certificate().as_ref() == Some(&expected)).then_some(())
    });
    assert!(is_ok(old.post(INGEST, &[], b"b")), "open connections go on");
}

fn bad_rotations_change_nothing(engine: &str) {
    let mut front = Front::start(engine, &[]);
    let before = fs::read_to_string(&front.files.cert).expect("ours");
    fs::write(&front.files.cert, "-----BEGIN").expect("ours");
    let line = front.gateway.logged("cannot be used");
    assert!(
        line["error"]
            .as_str()
            .is_some_and(|text| text.contains("--tls-cert-file")),
        "{line}"
    );
    front.serves("with a broken file");
    fs::write(&front.files.cert, before).expect("ours");
    front.gateway.logged("certificates read again");
    // A certificate without its key, as between the two writes of a rotation.
    let next = front.authority.issue(&["localhost"]);
    fs::write(&front.files.cert, &next.cert).expect("ours");
    let line = front.gateway.logged("cannot be used");
    assert!(
        line["error"]
            .as_str()
            .is_some_and(|text| text.contains("one pair")),
        "{line}"
    );
    front.serves("between the writes");
    fs::write(&front.files.key, &next.key).expect("ours");
    front.gateway.logged("certificates read again");
    let mut client = front.client();
    assert!(is_ok(client.post(INGEST, &[], b"b")));
    assert_eq!(client.link().peer_certificate(), Some(next.der()));
}

fn silent_clients_make_room(engine: &str) {
    let front = Front::start(engine, &["--conn-limit", "4"]);
    let silent: Vec<TcpStream> = (0..4).map(|_| front.plain()).collect();
    // All places are taken by clients that never begin their handshake; one of them makes room.
    front.serves("beyond silent ones");
    drop(silent);
}

/// A destination that speaks TLS, and the folder with its authority's certificate.
struct Back {
    authority: Authority,
    folder: tempfile::TempDir,
}

impl Back {
    fn new() -> Self {
        let back = Self {
            authority: Authority::new("destinations trust it"),
            folder: tempfile::tempdir().expect("a folder"),
        };
        fs::write(back.folder.path().join("ca.pem"), back.authority.pem()).expect("a folder of ours");
        back
    }

    fn ca(&self) -> String {
        format!("tls-ca-file={}", self.folder.path().join("ca.pem").display())
    }

    fn issue(&self) -> Pair {
        self.authority.issue(&["localhost", "127.0.0.1"])
    }
}

fn accept(pair: &Pair) -> Peer {
    Peer::with_tls(pair.server(), |_| Reply::Ok)
}

fn destinations_are_verified(engine: &str) {
    let back = Back::new();
    let good = back.issue();
    let expired = back.authority.issue_with(&["127.0.0.1"], |params| {
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let future = back.authority.issue_with(&["127.0.0.1"], |params| {
        params.not_before = rcgen::date_time_ymd(2060, 1, 1);
        params.not_after = rcgen::date_time_ymd(2061, 1, 1);
    });
    let elsewhere = back.authority.issue(&["elsewhere.example"]);
    let stranger = Authority::new("nobody trusts it").issue(&["127.0.0.1"]);
    let authority_itself = back.authority.issue_with(&["127.0.0.1"], |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let ca = back.ca();
    for (name, pair, options, trouble) in [
        ("good", &good, ca.as_str(), None),
        ("expired", &expired, &ca, Some("expired")),
        ("future", &future, &ca, Some("not valid yet")),
        ("for elsewhere", &elsewhere, &ca, Some("for another name")),
        (
            "for elsewhere, as told",
            &elsewhere,
            &format!("{ca},tls-server-name=elsewhere.example"),
            None,
        ),
        (
            "not as told",
            &good,
            &format!("{ca},tls-server-name=elsewhere.example"),
            Some("for another name"),
        ),
        ("a stranger's", &stranger, &ca, Some("unknown authority")),
        (
            "of nobody in the system",
            &good,
            "tls-server-name=localhost",
            Some("unknown authority"),
        ),
        ("an authority's", &authority_itself, &ca, Some("CA:TRUE")),
        ("anything goes", &stranger, "tls-insecure-skip-verify=true", None),
        ("expired goes", &expired, "tls-insecure-skip-verify=true", None),
    ] {
        let peer = accept(pair);
        let to = format!(
            "dest={},{options},min-backoff=20ms,max-backoff=50ms",
            peer.https()
        );
        let mut gateway = Gateway::start(engine, &["--to", &to, "--log-level", "debug"]);
        assert_eq!(
            gateway.ingest(b"body").status,
            200,
            "{name}: nobody waits for a destination"
        );
        match trouble {
            None => assert_eq!(peer.next().text(), "body", "{name}"),
            Some(trouble) => {
                for _ in 0..2 {
                    let line = gateway.logged("attempt failed");
                    let problem = line["problem"].as_str().expect("text");
                    assert!(
                        problem.contains("TLS") && problem.contains(trouble),
                        "{name}: {line}"
                    );
                }
                peer.expect_nothing(Duration::from_millis(50), name);
            }
        }
    }
}

fn failures_are_told_without_the_address(engine: &str) {
    let back = Back::new();
    let expired = back.authority.issue_with(&["127.0.0.1"], |params| {
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let peer = accept(&expired);
    let port = peer.address.port().to_string();
    let to = format!(
        "dest=https://127.0.0.1:{port}/some-path,{},min-backoff=10ms,max-backoff=20ms",
        back.ca()
    );
    let mut gateway = Gateway::start(engine, &["--to", &to, "--admin", "127.0.0.1:0"]);
    let admin = admin_of(&gateway);
    assert_eq!(gateway.ingest(b"body").status, 200);
    let line = gateway.logged("destination is down");
    assert!(
        line["reason"]
            .as_str()
            .is_some_and(|text| text.contains("expired")),
        "{line}"
    );
    let status = get(admin, "/-/status").json();
    let error = &status["destinations"][0]["last_error"]["text"];
    assert_eq!(error, "TLS: the certificate has expired", "{status:#}");
    assert_eq!(
        status["destinations"][0]["queued_parcels"].as_u64().unwrap_or(0)
            + status["destinations"][0]["in_flight_parcels"]
                .as_u64()
                .unwrap_or(0),
        1,
        "it waits"
    );
    for page in ["/", "/metrics", "/-/status"] {
        let text = get(admin, page).text();
        assert!(
            !text.contains(&port) && !text.contains("some-path"),
            "{page} names the address"
        );
    }
    let config = get(admin, "/-/config").json()["plan"].clone();
    let tls = &config["destinations"][0]["tls"];
    assert!(
        tls["ca_file"]
            .as_str()
            .is_some_and(|file| file.ends_with("ca.pem")),
        "{config:#}"
    );
    assert!(!config.to_string().contains("BEGIN"), "{config:#}");
    // A server that speaks no TLS, one that hangs up, and nobody.
    let plain = Peer::start();
    let hung_up = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let address = hung_up.local_addr().expect("it is bound");
    std::thread::spawn(move || hung_up.incoming().for_each(drop));
    for (to, says) in [(plain.address, "TLS"), (address, "TLS: the connection ended")] {
        let to = format!("dest=https://{to},tls-insecure-skip-verify=true,min-backoff=10ms");
        let mut gateway = Gateway::start(engine, &["--to", &to, "--log-level", "debug"]);
        gateway.ingest(b"body");
        let line = gateway.logged("attempt failed");
        assert!(
            line["problem"].as_str().is_some_and(|text| text.contains(says)),
            "{line}"
        );
    }
}

fn client_certificate_for_a_destination(engine: &str) {
    let back = Back::new();
    let server = back.issue();
    let own = back.authority.issue(&["gateway"]);
    let files = own.write(back.folder.path(), "own");
    let peer = Peer::with_tls(back.authority.server_asking(&server), |_| Reply::Ok);
    let with = format!(
        "a={},{},tls-cert-file={},tls-key-file={}",
        peer.https(),
        back.ca(),
        files.cert.display(),
        files.key.display()
    );
    let gateway = Gateway::start(engine, &["--to", &with]);
    assert_eq!(gateway.ingest(b"body").status, 200);
    assert_eq!(peer.next().certificate, Some(own.der()));
    gateway.end_whole();
    let without = format!("a={},{},min-backoff=10ms", peer.https(), back.ca());
    let mut gateway = Gateway::start(engine, &["--to", &without, "--log-level", "debug"]);
    gateway.ingest(b"body");
    let line = gateway.logged("attempt failed");
    let problem = line["problem"].as_str().expect("text");
    assert!(
        problem.contains("the peer refused: certificate required"),
        "{line}"
    );
}

fn rotation_towards_a_destination(engine: &str) {
    let back = Back::new();
    let server = back.issue();
    let files = back
        .authority
        .issue(&["gateway"])
        .write(back.folder.path(), "own");
    // Each request on a connection of its own, so that each is a handshake.
    let peer = Peer::with_tls(back.authority.server_asking(&server), |_| Reply::OkThenClose);
    let to = format!(
        "a={},{},tls-cert-file={},tls-key-file={}",
        peer.https(),
        back.ca(),
        files.cert.display(),
        files.key.display()
    );
    let gateway = Gateway::start(engine, &["--to", &to]);
    gateway.ingest(b"body");
    peer.next();
    let next = back.authority.issue(&["gateway"]);
    next.write(back.folder.path(), "own");
    eventually("the new certificate", || {
        gateway.ingest(b"body");
        (peer.next().certificate == Some(next.der())).then_some(())
    });
    gateway.end_whole();
}

fn a_destination_s_versions(engine: &str) {
    let back = Back::new();
    let pair = back.issue();
    for version in rustls::ALL_VERSIONS {
        let peer = Peer::with_tls(pair.server_of(&[version]), |_| Reply::Ok);
        let gateway = Gateway::start(engine, &["--to", &format!("a={},{}", peer.https(), back.ca())]);
        gateway.ingest(noise(100_000, 1));
        assert_eq!(peer.next().body.len(), 100_000, "{version:?}");
    }
    let old = Peer::with_tls(pair.server_of(&[&rustls::version::TLS12]), |_| Reply::Ok);
    let to = format!(
        "a={},{},tls-min-version=TLS13,min-backoff=10ms",
        old.https(),
        back.ca()
    );
    let mut gateway = Gateway::start(engine, &["--to", &to, "--log-level", "debug"]);
    gateway.ingest(b"body");
    let line = gateway.logged("attempt failed");
    assert!(
        line["problem"].as_str().is_some_and(|text| text.contains("TLS")),
        "{line}"
    );
    old.expect_nothing(Duration::from_millis(50), "an old version");
}

fn redirects_between_schemes(engine: &str) {
    let back = Back::new();
    let server = back.issue();
    let own = back.authority.issue(&["gateway"]);
    let files = own.write(back.folder.path(), "own");
    let redirect = |to: String| {
        let fields: &'static str = Box::leak(format!("Location: {to}\r\n").into_boxed_str());
        move |_: &_| Reply::Status(308, fields)
    };
    // https to another https: no credentials, no certificate.
    let second = accept(&server);
    let first = Peer::with_tls(server.server(), redirect(format!("{}/x", second.https())));
    let options = format!(
        "{},tls-cert-file={},tls-key-file={},header.Authorization=Bearer hunter2",
        back.ca(),
        files.cert.display(),
        files.key.display()
    );
    let gateway = Gateway::start(engine, &["--to", &format!("a={},{options}", first.https())]);
    gateway.ingest(b"body");
    assert_eq!(first.next().header("authorization"), Some("Bearer hunter2"));
    let got = second.next();
    assert_eq!((got.text().as_str(), got.header("authorization")), ("body", None));
    assert_eq!(got.target, "/x?name=app%7Bservice_name%3Dapp%7D");
    gateway.end_whole();
    // https to http and back to https.
    let last = accept(&server);
    let middle = Peer::deciding(redirect(last.https()));
    let first = Peer::with_tls(server.server(), redirect(middle.url()));
    let gateway = Gateway::start(engine, &["--to", &format!("a={},{options}", first.https())]);
    gateway.ingest(b"body");
    for peer in [&middle, &last] {
        let got = peer.next();
        assert_eq!((got.text().as_str(), got.header("authorization")), ("body", None));
    }
    gateway.end_whole();
    // http to https with a certificate that the system does not know: refused, not sent.
    let first = Peer::deciding(redirect(last.https()));
    let mut gateway = Gateway::start(
        engine,
        &[
            "--to",
            &format!("a={},min-backoff=10ms", first.url()),
            "--log-level",
            "debug",
        ],
    );
    gateway.ingest(b"body");
    let line = gateway.logged("attempt failed");
    assert!(
        line["problem"]
            .as_str()
            .is_some_and(|text| text.contains("unknown authority")),
        "{line}"
    );
    last.expect_nothing(Duration::from_millis(50), "not trusted");
}

fn proxies_give_tunnels(engine: &str) {
    // Row 124 towards https: CONNECT, with the proxy's credentials and headers; the destination's are behind the tunnel.
    let back = Back::new();
    let peer = accept(&back.issue());
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let address = proxy.local_addr().expect("it is bound");
    let (sender, asked) = std::sync::mpsc::channel();
    let behind = peer.address;
    std::thread::spawn(move || {
        for mut client in proxy.incoming().map_while(Result::ok) {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && client.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).expect("text");
            let refuses = !head.contains("Proxy-Authorization: Basic dTpw");
            let _ = sender.send(head);
            if refuses {
                let _ = client.write_all(b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n");
                continue;
            }
            let _ = client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n");
            let mut server = TcpStream::connect(behind).expect("it listens");
            let (mut up, mut down) = (
                client.try_clone().expect("a descriptor"),
                server.try_clone().expect("a descriptor"),
            );
            std::thread::spawn(move || std::io::copy(&mut up, &mut down));
            std::thread::spawn(move || std::io::copy(&mut server, &mut client));
        }
    });
    let options = format!(
        "{},header.Authorization=Bearer hunter2,proxy-url=http://u:p@{address},proxy-connect-header.X-Tunnel=yes",
        back.ca()
    );
    let gateway = Gateway::start(engine, &["--to", &format!("a={},{options}", peer.https())]);
    let body = noise(300_000, 5);
    assert_eq!(gateway.ingest(&body).status, 200);
    let got = peer.next();
    assert_same_bytes(&got.body, &body, "through the tunnel");
    assert_eq!(got.header("authorization"), Some("Bearer hunter2"));
    assert!(got.target.starts_with("/ingest?"), "{}", got.target);
    assert_eq!(
        (got.header("x-tunnel"), got.header("proxy-authorization")),
        (None, None)
    );
    let head = asked.recv_timeout(DEADLINE).expect("the proxy is asked");
    assert!(
        head.starts_with(&format!("CONNECT {} HTTP/1.1\r\n", peer.address)),
        "{head}"
    );
    assert!(
        head.contains("X-Tunnel: yes\r\n") && !head.contains("hunter2"),
        "{head}"
    );
    gateway.end_whole();
    let options = format!("{},proxy-url=http://{address},min-backoff=10ms", back.ca());
    let mut gateway = Gateway::start(
        engine,
        &[
            "--to",
            &format!("a={},{options}", peer.https()),
            "--log-level",
            "debug",
        ],
    );
    gateway.ingest(b"body");
    let line = gateway.logged("attempt failed");
    assert!(
        line["problem"]
            .as_str()
            .is_some_and(|text| text.contains("no tunnel: answered 407")),
        "{line}"
    );
}

fn early_refusals_of_large_bodies_are_heard(engine: &str) {
    // A destination that reads the head only, refuses, and reads on slowly: the answer is heard while the body is sent.
    let back = Back::new();
    let pair = back.issue();
    let config = pair.server();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming().map_while(Result::ok) {
            let mut link = support::tls::Link::server(stream, config.clone());
            let mut head = [0; 64];
            let _ = link.read(&mut head);
            let _ = link.write_all(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n");
            let _ = link.flush();
            open.push(link);
        }
    });
    let to = format!("a=https://{address},{}", back.ca());
    let gateway = Gateway::start(engine, &["--to", &to, "--ack", "all"]);
    let answer = gateway.ingest(noise(20 << 20, 1));
    assert_eq!(answer.status, 413);
}

fn a_stale_connection_is_replaced(engine: &str) {
    let back = Back::new();
    let peer = Peer::with_tls(back.issue().server(), |request| {
        if request.index == 0 {
            Reply::OkThenClose
        } else {
            Reply::Ok
        }
    });
    let gateway = Gateway::start(
        engine,
        &[
            "--to",
            &format!("a={},{}", peer.https(), back.ca()),
            "--ack",
            "all",
            "--max-retries",
            "1",
        ],
    );
    for _ in 0..4 {
        assert_eq!(gateway.ingest(b"body").status, 200);
    }
    let got = peer.take(4);
    assert_eq!(
        got.iter().map(|one| one.connection).collect::<Vec<_>>(),
        [0, 1, 1, 1]
    );
    gateway.end_whole();
}

fn answers_until_the_end_are_not_cut_short(engine: &str) {
    let back = Back::new();
    let pair = back.issue();
    for (goodbye, delivered) in [(true, true), (false, false)] {
        let config = pair.server();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut link = support::tls::Link::server(stream, config.clone());
                let mut head = [0; 4096];
                let _ = link.read(&mut head);
                let _ = link.write_all(b"HTTP/1.1 200 OK\r\n\r\nsome body until the end");
                if goodbye {
                    let _ = link.say_goodbye();
                }
                let _ = link.flush();
                let _ = link.tcp().shutdown(std::net::Shutdown::Write);
                let _ = link.read(&mut head);
            }
        });
        let to = format!("a=https://{address},{},min-backoff=10ms", back.ca());
        let gateway = Gateway::start(engine, &["--to", &to, "--ack", "all", "--max-retries", "1"]);
        let answer = gateway.ingest(b"");
        assert_eq!(
            answer.status == 200,
            delivered,
            "goodbye {goodbye}: {}",
            answer.text()
        );
    }
}

#[test]
fn files_that_cannot_be_used_are_named_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("a");
    let one = authority.issue(&["a"]).write(folder.path(), "one");
    let two = authority.issue(&["a"]).write(folder.path(), "two");
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "").expect("ours");
    let text = |path: &Path| path.to_str().expect("plain").to_owned();
    let listen = |cert: &Path, key: &Path| {
        vec![
            "--tls-cert-file".to_owned(),
            text(cert),
            "--tls-key-file".into(),
            text(key),
        ]
    };
    let to = |options: String| vec!["--to".to_owned(), format!("a=https://127.0.0.1:1,{options}")];
    let absent = folder.path().join("absent.pem");
    for (name, flags, says) in [
        (
            "no file",
            listen(&absent, &one.key),
            vec!["--tls-cert-file", "absent.pem", "cannot be read"],
        ),
        (
            "no certificate",
            listen(&empty, &one.key),
            vec!["--tls-cert-file", "holds no certificate"],
        ),
        (
            "no key",
            listen(&one.cert, &one.cert),
            vec!["--tls-key-file", "no private key"],
        ),
        (
            "two pairs",
            listen(&one.cert, &two.key),
            vec!["--tls-cert-file", "one pair"],
        ),
        (
            "no CA",
            to(format!("tls-ca-file={}", text(&empty))),
            vec!["--to a", "tls-ca-file", "holds no certificate"],
        ),
        (
            "no pair",
            to(format!(
                "tls-cert-file={},tls-key-file={}",
                text(&one.cert),
                text(&two.key)
            )),
            vec!["--to a", "tls-cert-file", "one pair"],
        ),
    ] {
        let mut args = vec![
            "run".to_owned(),
            "--listen".into(),
            "127.0.0.1:0".into(),
            "--admin".into(),
            "off".into(),
        ];
        args.extend(flags);
        let ended = run(&args);
        assert!(!ended.status.success(), "{name}");
        for word in says {
            assert!(ended.stderr.contains(word), "{name}: {}", ended.stderr);
        }
        assert!(
            !ended.stderr.contains("BEGIN PRIVATE KEY-----\nM"),
            "{name}: {}",
            ended.stderr
        );
    }
}

#[test]
fn check_online_shakes_hands() {
    let back = Back::new();
    let files = back.issue().write(back.folder.path(), "server");
    let text = |path: &Path| path.to_str().expect("plain").to_owned();
    let good = accept(&back.issue());
    let elsewhere = accept(&back.authority.issue(&["elsewhere.example"]));
    for (peer, key, says, code) in [
        (&good, &files.key, "is good", 0),
        (&elsewhere, &files.key, "for another name", 1),
        (&good, &files.cert, "holds no private key", 1),
    ] {
        let to = format!("a={},{}", peer.https(), back.ca());
        let (cert, key) = (text(&files.cert), text(key));
        let flags = ["--to", &to, "--tls-cert-file", &cert, "--tls-key-file", &key];
        let ended = run(&[&["check", "--online"], &flags[..]].concat());
        assert_eq!(ended.status.code(), Some(code), "{says}: {}", ended.stdout);
        assert!(ended.stdout.contains(says), "{says}: {}", ended.stdout);
    }
}

#[test]
fn the_plan_is_told_without_key_material() {
    let folder = tempfile::tempdir().expect("a folder");
    let pair = Authority::new("a").issue(&["localhost"]);
    let files = pair.write(folder.path(), "server");
    let flags = [
        "--tls-cert-file",
        files.cert.to_str().expect("plain"),
        "--tls-key-file",
        files.key.to_str().expect("plain"),
    ];
    let gateway = Gateway::start(
        "epoll",
        &[
            &flags[..],
            &["--to", "a=http://127.0.0.1:1", "--admin", "127.0.0.1:0"],
        ]
        .concat(),
    );
    let admin = admin_of(&gateway);
    let config: Value = get(admin, "/-/config").json()["plan"].clone();
    assert_eq!(config["tls"]["client_auth"], "NoClientCert");
    assert!(
        config["tls"]["key_file"]
            .as_str()
            .is_some_and(|file| file.ends_with("server-key.pem"))
    );
    let secret = pair.key.lines().nth(1).expect("a line of key");
    for page in ["/", "/metrics", "/-/status", "/-/config"] {
        assert!(!get(admin, page).text().contains(secret), "{page}");
    }
    let ended = run(&[&["check"], &flags[..]].concat());
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(
        ended.stdout.contains("TLS") && !ended.stdout.contains(secret),
        "{}",
        ended.stdout
    );
}
