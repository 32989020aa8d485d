//! Token endpoints over TLS: row 123 of the contract with `oauth2 { tls_config }`, and proxies in front of them.
//!
//! Endpoints and destinations are made here, certificates anew by each test. The grants themselves are in
//! `compat::oauth2`. Each test runs under both engines.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

mod support;
use support::gateway::Gateway;
use support::peer::{Peer, Received, Reply};
use support::tls::{Authority, Link, Pair, PairFiles};
use support::wire::{PUSH, encode, noise, push_message};
use support::{DEADLINE, eventually, get, run, under_both_engines};

under_both_engines! {
    a_token_is_fetched_and_used,
    endpoints_are_verified,
    certificates_are_shown_where_wanted,
    versions_are_kept,
    tunnels_lead_to_endpoints,
    tunnels_that_are_refused,
    rotation_of_our_certificate,
    rotation_of_the_authorities,
    endpoints_that_break_off,
}

/// Who signs the endpoints' certificates, and a folder.
struct Idp {
    authority: Authority,
    folder: tempfile::TempDir,
}

impl Idp {
    fn new() -> Self {
        let idp = Self {
            authority: Authority::new("endpoints have it"),
            folder: tempfile::tempdir().expect("a folder"),
        };
        idp.trust(&idp.authority);
        idp
    }

    /// Writes the file that [`Idp::ca`] names.
    fn trust(&self, authority: &Authority) {
        fs::write(self.folder.path().join("ca.pem"), authority.pem()).expect("a folder of ours");
    }

    fn ca(&self) -> String {
        format!(
            "oauth2.tls-ca-file={}",
            self.folder.path().join("ca.pem").display()
        )
    }

    fn issue(&self) -> Pair {
        self.authority.issue(&["localhost", "127.0.0.1"])
    }

    fn own(&self, files: &PairFiles) -> String {
        format!(
            "{},oauth2.tls-cert-file={},oauth2.tls-key-file={}",
            self.ca(),
            files.cert.display(),
            files.key.display()
        )
    }
}

/// Grants `token-0`, `token-1` and so on, each for this time.
fn granting(seconds: u32) -> impl Fn(&Received) -> Reply + Send + Sync + 'static {
    move |request| {
        Reply::Json(
            200,
            format!(
                r#"{{"access_token":"token-{}","expires_in":{seconds}}}"#,
                request.index
            ),
        )
    }
}

/// What `--to` says of a destination whose tokens are at this address. The path must show up nowhere.
fn to(a: &Peer, endpoint: SocketAddr, options: &str) -> String {
    format!(
        "a={},oauth2.client-id=me,oauth2.client-secret=hunter2,oauth2.token-url=https://{endpoint}/h1dden?x=1,{options}",
        a.url()
    )
}

fn gateway(engine: &str, to: &str) -> Gateway {
    Gateway::start(engine, &["--to", to, "--admin", "127.0.0.1:0"])
}

/// Why there is no token, as the log has it. A profile waits meanwhile, and nothing shows the URL or a secret.
fn trouble(gateway: &mut Gateway, a: &Peer) -> String {
    assert_eq!(gateway.ingest(b"waits").status, 200);
    let line = gateway.logged("no access token");
    a.expect_nothing(Duration::from_millis(20), "there is no token");
    let admin = gateway.admin.expect("the flags ask for one");
    for text in [
        line.to_string(),
        get(admin, "/-/status").text(),
        get(admin, "/metrics").text(),
        get(admin, "/").text(),
    ] {
        assert!(!text.contains("h1dden") && !text.contains("hunter2"), "{text}");
    }
    assert_eq!(line["consequence"], "profiles wait", "{line}");
    line["problem"].as_str().expect("text").to_owned()
}

fn authorization(received: &Received) -> &str {
    received.header("authorization").expect("one is sent")
}

fn a_token_is_fetched_and_used(engine: &str) {
    let idp = Idp::new();
    let (a, endpoint) = (
        Peer::start(),
        Peer::with_tls(idp.issue().server(), granting(3600)),
    );
    let gateway = gateway(engine, &to(&a, endpoint.address, &idp.ca()));
    for _ in 0..2 {
        assert_eq!(gateway.ingest(b"body").status, 200);
        let got = a.next();
        assert_eq!(
            (got.text().as_str(), authorization(&got)),
            ("body", "Bearer token-0")
        );
    }
    let message = encode(&push_message(
        &[("service_name", "s"), ("__name__", "cpu")],
        &[noise(1000, 1)],
    ));
    let answer = gateway
        .client()
        .post(PUSH, &[("Content-Type", "application/proto")], &message);
    assert_eq!(answer.expect("an answer").status, 200);
    assert_eq!(authorization(&a.next()), "Bearer token-0");
    let asked = endpoint.next();
    assert_eq!(asked.target, "/h1dden?x=1");
    assert_eq!(asked.header("host"), Some(&*endpoint.address.to_string()));
    assert_eq!(authorization(&asked), "Basic bWU6aHVudGVyMg==");
    assert_eq!(asked.text(), "grant_type=client_credentials");
    assert_eq!(asked.certificate, None);
    endpoint.expect_nothing(Duration::from_millis(20), "the token is kept");
    gateway.end_whole();
}

fn endpoints_are_verified(engine: &str) {
    let idp = Idp::new();
    let good = idp.issue();
    let expired = idp.authority.issue_with(&["127.0.0.1"], |params| {
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let elsewhere = idp.authority.issue(&["elsewhere.example"]);
    let stranger = Authority::new("nobody trusts it").issue(&["127.0.0.1"]);
    let named = format!("{},oauth2.tls-server-name=elsewhere.example", idp.ca());
    for (name, pair, options, expected) in [
        ("good", &good, &*idp.ca(), None),
        ("expired", &expired, &idp.ca(), Some("expired")),
        ("for elsewhere", &elsewhere, &idp.ca(), Some("for another name")),
        ("for elsewhere, as told", &elsewhere, &named, None),
        ("not as told", &good, &named, Some("for another name")),
        ("a stranger's", &stranger, &idp.ca(), Some("unknown authority")),
        (
            "of nobody in the system",
            &good,
            "oauth2.tls-server-name=localhost",
            Some("unknown authority"),
        ),
        (
            "anything goes",
            &stranger,
            "oauth2.tls-insecure-skip-verify=true",
            None,
        ),
        (
            "and anything else does not",
            &stranger,
            "oauth2.tls-insecure-skip-verify=false",
            Some("unknown authority"),
        ),
    ] {
        let (a, endpoint) = (Peer::start(), Peer::with_tls(pair.server(), granting(3600)));
        let mut gateway = gateway(engine, &to(&a, endpoint.address, options));
        match expected {
            None => {
                assert_eq!(gateway.ingest(b"body").status, 200);
                assert_eq!(authorization(&a.next()), "Bearer token-0", "{name}");
            }
            Some(expected) => {
                let told = trouble(&mut gateway, &a);
                let begins = told.starts_with("the token endpoint cannot be spoken to in TLS: ");
                assert!(begins && told.contains(expected), "{name}: {told}");
                endpoint.expect_nothing(Duration::from_millis(20), "credentials for a stranger");
            }
        }
    }
}

fn certificates_are_shown_where_wanted(engine: &str) {
    let idp = Idp::new();
    let own = idp.authority.issue(&["gateway"]);
    let files = own.write(idp.folder.path(), "own");
    let server = idp.issue();
    let wanting = || Peer::with_tls(idp.authority.server_asking(&server), granting(3600));
    let (a, endpoint) = (Peer::start(), wanting());
    let with = gateway(engine, &to(&a, endpoint.address, &idp.own(&files)));
    with.ingest(b"body");
    assert_eq!(authorization(&a.next()), "Bearer token-0");
    assert_eq!(endpoint.next().certificate, Some(own.der()));
    with.end_whole();
    let endpoint = wanting();
    let mut without = gateway(engine, &to(&a, endpoint.address, &idp.ca()));
    let told = trouble(&mut without, &a);
    assert!(told.contains("the peer refused: certificate required"), "{told}");
}

fn versions_are_kept(engine: &str) {
    let idp = Idp::new();
    let pair = idp.issue();
    let a = Peer::start();
    for version in rustls::ALL_VERSIONS {
        let endpoint = Peer::with_tls(pair.server_of(&[version]), granting(3600));
        let gateway = gateway(engine, &to(&a, endpoint.address, &idp.ca()));
        gateway.ingest(b"body");
        assert_eq!(authorization(&a.next()), "Bearer token-0", "{version:?}");
    }
    let old = Peer::with_tls(pair.server_of(&[&rustls::version::TLS12]), granting(3600));
    let options = format!("{},oauth2.tls-min-version=TLS13", idp.ca());
    let mut gateway = gateway(engine, &to(&a, old.address, &options));
    let told = trouble(&mut gateway, &a);
    assert!(told.contains("TLS: "), "{told}");
    old.expect_nothing(Duration::from_millis(20), "an old version");
}

/// A proxy that gives tunnels to one address, to whom it knows, or says something else.
fn proxy(behind: SocketAddr, says: &'static [u8]) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let address = listener.local_addr().expect("it is bound");
    let (sender, asked) = mpsc::channel();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && client.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let _test_may_be_over = sender.send(String::from_utf8(head).expect("text"));
            let _ = client.write_all(says);
            if !says.starts_with(b"HTTP/1.1 200") {
                continue;
            }
            let mut server = TcpStream::connect(behind).expect("it listens");
            let (mut up, mut down) = (
                client.try_clone().expect("a descriptor"),
                server.try_clone().expect("a descriptor"),
            );
            std::thread::spawn(move || std::io::copy(&mut up, &mut down));
            std::thread::spawn(move || std::io::copy(&mut server, &mut client));
        }
    });
    (address, asked)
}

fn tunnels_lead_to_endpoints(engine: &str) {
    // The proxy sees where the tunnel leads and what is said to it alone; the endpoint sees the rest.
    let idp = Idp::new();
    let (a, endpoint) = (
        Peer::start(),
        Peer::with_tls(idp.issue().server(), granting(3600)),
    );
    let (proxy, asked) = proxy(endpoint.address, b"HTTP/1.1 200 Connection established\r\n\r\n");
    let options = format!(
        "{},oauth2.proxy-url=http://u:p@{proxy},oauth2.proxy-connect-header.X-Tunnel=yes",
        idp.ca()
    );
    let gateway = gateway(engine, &to(&a, endpoint.address, &options));
    gateway.ingest(b"body");
    assert_eq!(authorization(&a.next()), "Bearer token-0");
    let head = asked.recv_timeout(DEADLINE).expect("the proxy is asked");
    let authority = endpoint.address;
    assert!(
        head.starts_with(&format!("CONNECT {authority} HTTP/1.1\r\n")),
        "{head}"
    );
    let lower = head.to_ascii_lowercase();
    for line in [
        format!("host: {authority}\r\n"),
        "proxy-authorization: basic dtpw\r\n".into(),
        "x-tunnel: yes\r\n".into(),
        "user-agent: pyrotee/".into(),
    ] {
        assert!(lower.contains(&line), "{line}: {head}");
    }
    assert!(
        !lower.contains("\r\nauthorization") && !head.contains("h1dden"),
        "{head}"
    );
    let got = endpoint.next();
    assert_eq!(
        (got.target.as_str(), authorization(&got)),
        ("/h1dden?x=1", "Basic bWU6aHVudGVyMg==")
    );
    assert_eq!(
        (got.header("x-tunnel"), got.header("proxy-authorization")),
        (None, None)
    );
    gateway.end_whole();
}

fn tunnels_that_are_refused(engine: &str) {
    let idp = Idp::new();
    let (a, endpoint) = (
        Peer::start(),
        Peer::with_tls(idp.issue().server(), granting(3600)),
    );
    for (says, expected) in [
        (
            &b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n"[..],
            "gives no tunnel: it answered 407",
        ),
        (
            b"HTTP/1.1 502 B\r\nContent-Length: 2\r\n\r\nno",
            "gives no tunnel: it answered 502",
        ),
        (b"SSH-2.0-x\r\n", "no good HTTP"),
        (b"", "no good HTTP"),
    ] {
        let (proxy, asked) = proxy(endpoint.address, says);
        let options = format!("{},oauth2.proxy-url=http://{proxy}", idp.ca());
        let mut gateway = gateway(engine, &to(&a, endpoint.address, &options));
        let told = trouble(&mut gateway, &a);
        assert!(told.contains(expected), "{expected}: {told}");
        let head = asked.recv_timeout(DEADLINE).expect("the proxy is asked");
        assert!(head.starts_with("CONNECT "), "{head}");
        assert!(!head.to_ascii_lowercase().contains("authorization"), "{head}");
    }
    endpoint.expect_nothing(Duration::from_millis(20), "nobody leads there");
}

fn rotation_of_our_certificate(engine: &str) {
    let idp = Idp::new();
    let server = idp.issue();
    let first = idp.authority.issue(&["gateway"]);
    let files = first.write(idp.folder.path(), "own");
    // Tokens that live 2 s are fetched anew after one, each on a connection of its own.
    let a = Peer::start();
    let endpoint = Peer::with_tls(idp.authority.server_asking(&server), granting(2));
    let mut gateway = gateway(engine, &to(&a, endpoint.address, &idp.own(&files)));
    assert_eq!(endpoint.next().certificate, Some(first.der()));
    let second = idp.authority.issue(&["gateway"]);
    second.write(idp.folder.path(), "own");
    let line = gateway.logged("certificates read again");
    assert_eq!(line["owner"], "a: oauth2", "{line}");
    eventually("the new certificate", || {
        (endpoint.next().certificate == Some(second.der())).then_some(())
    });
    // A file that is no use changes nothing.
    fs::write(&files.cert, "rubbish").expect("ours");
    let line = gateway.logged("changed certificates cannot be used");
    let error = line["error"].as_str().expect("text");
    assert!(error.contains("tls-cert-file"), "{line}");
    assert_eq!(endpoint.next().certificate, Some(second.der()));
}

fn rotation_of_the_authorities(engine: &str) {
    // The endpoint has a certificate of a new authority before the file here has: profiles wait and go out afterwards.
    let idp = Idp::new();
    let next = Authority::new("the next");
    let a = Peer::start();
    let endpoint = Peer::with_tls(next.issue(&["127.0.0.1"]).server(), granting(3600));
    let mut gateway = gateway(engine, &to(&a, endpoint.address, &idp.ca()));
    let told = trouble(&mut gateway, &a);
    assert!(told.contains("unknown authority"), "{told}");
    idp.trust(&next);
    gateway.logged("access token fetched");
    let got = a.next();
    assert_eq!(
        (got.text().as_str(), authorization(&got)),
        ("waits", "Bearer token-0")
    );
    gateway.end_whole();
}

fn endpoints_that_break_off(engine: &str) {
    let idp = Idp::new();
    let pair = idp.issue();
    let a = Peer::start();
    let plain = Peer::deciding(granting(3600));
    let mut speechless = gateway(engine, &to(&a, plain.address, &idp.ca()));
    let told = trouble(&mut speechless, &a);
    assert!(told.contains("TLS: "), "{told}");
    let breaking = |act: fn(&mut Link)| {
        let (listener, config) = (TcpListener::bind("127.0.0.1:0").expect("ports"), pair.server());
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                act(&mut Link::server(stream, config.clone()));
            }
        });
        address
    };
    let token: fn(&mut Link) = |link| {
        let _ = link.read(&mut [0; 4096]);
        let _ = link.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"access_token\":\"token-0\"}");
    };
    for (name, address, expected) in [
        (
            "at once",
            breaking(drop_it),
            "the connection ended within the handshake",
        ),
        (
            "after the request",
            breaking(|link| drop(link.read(&mut [0; 4096]))),
            "no good HTTP",
        ),
        // It may have been cut short by whoever sits in between: no token.
        ("without a goodbye", breaking(token), "no good HTTP"),
    ] {
        let mut gateway = gateway(engine, &to(&a, address, &idp.ca()));
        let told = trouble(&mut gateway, &a);
        assert!(told.contains(expected), "{name}: {told}");
    }
    let whole = breaking(|link| {
        let _ = link.read(&mut [0; 4096]);
        let _ = link.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"access_token\":\"token-0\"}");
        let _ = link.say_goodbye();
    });
    let gateway = gateway(engine, &to(&a, whole, &idp.ca()));
    gateway.ingest(b"body");
    assert_eq!(authorization(&a.next()), "Bearer token-0");
}

fn drop_it(_: &mut Link) {}

#[test]
fn what_cannot_be_used_is_named_at_the_start() {
    let idp = Idp::new();
    let one = idp.issue().write(idp.folder.path(), "one");
    let two = idp.issue().write(idp.folder.path(), "two");
    let text = |path: &Path| path.to_str().expect("plain").to_owned();
    let absent = idp.folder.path().join("absent.pem");
    for (name, scheme, options, code, says) in [
        (
            "no CA",
            "https",
            format!("oauth2.tls-ca-file={}", text(&absent)),
            1,
            &["--to a: oauth2", "tls-ca-file", "absent.pem"][..],
        ),
        (
            "no pair",
            "https",
            format!(
                "oauth2.tls-cert-file={},oauth2.tls-key-file={}",
                text(&one.cert),
                text(&two.key)
            ),
            1,
            &["--to a: oauth2", "tls-cert-file", "one pair"],
        ),
        (
            "half a pair",
            "https",
            format!("oauth2.tls-cert-file={}", text(&one.cert)),
            64,
            &["tls-cert-file needs tls-key-file"],
        ),
        (
            "no TLS",
            "http",
            "oauth2.tls-min-version=TLS13".into(),
            64,
            &["oauth2.tls- options are for https://"],
        ),
        (
            "an old version",
            "https",
            "oauth2.tls-min-version=TLS11".into(),
            64,
            &["oauth2.tls-min-version=TLS11"],
        ),
    ] {
        let to = format!(
            "a=http://127.0.0.1:1,oauth2.client-id=me,oauth2.client-secret=hunter2,oauth2.token-url={scheme}://idp,{options}"
        );
        let ended = run(&["run", "--listen", "127.0.0.1:0", "--admin", "off", "--to", &to]);
        assert_eq!(ended.status.code(), Some(code), "{name}: {}", ended.stderr);
        for word in says {
            assert!(ended.stderr.contains(word), "{name}: {}", ended.stderr);
        }
        assert!(!ended.stderr.contains("hunter2"), "{name}: {}", ended.stderr);
    }
}

#[test]
fn check_online_tries_the_endpoint() {
    let idp = Idp::new();
    let a = Peer::start();
    let good = Peer::with_tls(idp.issue().server(), granting(3600));
    let elsewhere = Peer::with_tls(
        idp.authority.issue(&["elsewhere.example"]).server(),
        granting(3600),
    );
    for (endpoint, options, says, code) in [
        (&good, idp.ca(), "is good", 0),
        (&elsewhere, idp.ca(), "for another name", 1),
        (&good, "oauth2.tls-ca-file=absent.pem".into(), "cannot be read", 1),
        (
            &good,
            format!("oauth2.tls-ca-file=absent.pem,oauth2.proxy-url={}", a.url()),
            "cannot be read",
            1,
        ),
    ] {
        let to = to(&a, endpoint.address, &options);
        let ended = run(&["check", "--online", "--to", &to]);
        assert_eq!(ended.status.code(), Some(code), "{says}: {}", ended.stdout);
        let line = ended.stdout.lines().find(|line| line.contains(says));
        assert!(
            line.is_some_and(|line| line.contains("a: oauth2")),
            "{}",
            ended.stdout
        );
        assert!(!ended.stdout.contains("hunter2"), "{}", ended.stdout);
    }
}
