//! Nothing secret or internal leaks (issue 3, item 7): what is planted in destinations' URLs and headers never shows in an
//! answer, a log line, or on the admin port.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::gateway::{Engine, Gateway, INGEST, PUSH, under_both_engines};
use super::push::{good, request, series};
use super::scripted::{Act, Scripted, answer, connect_error};
use super::support::{get, run};

under_both_engines!(nothing_planted_comes_out, refused_configurations_keep_secrets);

const PLANTED: [&str; 6] = [
    "us3r-pl4nted",
    "pass-pl4nted",
    "header-pl4nted",
    "path-pl4nted",
    "query-pl4nted",
    "body-pl4nted",
];

/// Asserts that none of the secrets, nor one of the addresses, is in `text`.
fn assert_clean(what: &str, text: &str, addresses: &[SocketAddr]) {
    let basic = STANDARD.encode(format!("{}:{}", PLANTED[0], PLANTED[1]));
    for secret in PLANTED.into_iter().chain([&*basic]) {
        assert!(!text.contains(secret), "{what} shows {secret}:\n{text}");
    }
    for address in addresses {
        assert!(
            !text.contains(&address.to_string()),
            "{what} shows {address}:\n{text}"
        );
    }
}

fn nothing_planted_comes_out(engine: Engine) {
    let body = PLANTED[5];
    let refusing = Scripted::scripted(move |_, request| {
        let bytes = if request.path().ends_with("Push") {
            connect_error(403, "permission_denied")
        } else {
            answer(
                401,
                &[("WWW-Authenticate", body), ("X-Inside", body)],
                body.as_bytes(),
            )
        };
        vec![Act::Send(bytes)]
    });
    let failing = Scripted::scripted(|_, _| vec![Act::Reset]);
    let redirecting = Scripted::scripted(move |_, _| {
        vec![Act::Send(answer(
            302,
            &[("Location", &format!("http://{body}/"))],
            b"",
        ))]
    });
    let healthy = Scripted::healthy();
    let destinations = [&refusing, &failing, &redirecting, &healthy];
    let addresses = destinations.map(|destination| destination.address);
    let [user, password, header, path, query, _] = PLANTED;
    for ack in ["all", "queued", "first"] {
        let mut flags: Vec<String> = ["--log-level", "trace", "--admin", "127.0.0.1:0", "--ack", ack]
            .map(str::to_owned)
            .to_vec();
        for (name, address) in ["refusing", "failing", "redirecting", "healthy"]
            .into_iter()
            .zip(&addresses)
        {
            flags.push("--to".to_owned());
            flags.push(format!(
                "{name}=http://{user}:{password}@{address}/{path}?{query}=1,header.X-Api-Key={header}"
            ));
        }
        let flags: Vec<&str> = flags.iter().map(|flag| &**flag).collect();
        let gateway = Gateway::start(engine, &flags);
        let proto = ("Content-Type", "application/proto");
        let bad = request(&[series(&[("a-b", "1")], &[])]);
        let mut answers = String::new();
        for (target, headers, body) in [
            (INGEST, &[][..], &b"body"[..]),
            ("/ingest", &[], b"body"),
            ("/nothing", &[], b"body"),
            (PUSH, &[proto], &good()),
            (PUSH, &[proto], &bad),
            (PUSH, &[proto], b"\xff"),
            (PUSH, &[("Content-Type", "application/grpc-web")], b"\0\0\0\0\0"),
            (PUSH, &[], b""),
        ] {
            let answer = gateway.post(target, headers, body);
            answers += &format!("{answer:?}\n{}\n", answer.text());
        }
        answers += &gateway.raw(b"rubbish\r\n\r\n");
        assert_clean("an answer", &answers, &addresses);
        let received = healthy.wait_for(1).remove(0);
        let basic = STANDARD.encode(format!("{user}:{password}"));
        assert_eq!(
            received.value("authorization"),
            Some(format!("Basic {basic}")),
            "it does go there"
        );
        assert_eq!(received.value("x-api-key").as_deref(), Some(header));
        failing.wait_for(3);
        let admin = gateway.log_line("admin port address=");
        let admin: SocketAddr = admin.trim().parse().expect("the log names the address");
        for page in [
            "/metrics",
            "/-/config",
            "/-/healthy",
            "/-/ready",
            "/",
            "/ready",
            "/debug",
            "/-/reload",
        ] {
            let answer = get(admin, page);
            let shown = format!("{answer:?}\n{}", answer.text());
            // The configuration names hosts and paths, for the operator's eyes; secrets are hidden there too.
            match page {
                "/-/config" => assert_clean(page, &shown.replace(path, "<path>"), &[]),
                _ => assert_clean(page, &shown, &addresses),
            }
        }
        assert!(get(admin, "/metrics").text().contains("endpoint=\"refusing\""));
        let log = gateway.log();
        assert!(
            log.contains("destination=refusing"),
            "it tells of the trouble:\n{log}"
        );
        assert_clean("the log", &log, &addresses);
    }
}

fn refused_configurations_keep_secrets(_: Engine) {
    let [user, password, header, ..] = PLANTED;
    let credentials = format!("{user}:{password}@");
    for to in [
        format!("http://{credentials}127.0.0.1:1,bogus=1"),
        format!("http://{credentials}127.0.0.1:99999"),
        format!("https://{credentials}[::1"),
        format!("ftp://{credentials}host"),
        format!("a b=http://{credentials}127.0.0.1:1"),
        format!("http://127.0.0.1:1,header.X-Api-Key={header}\u{7f}"),
        format!("http://127.0.0.1:1,header.Host={header}"),
        format!("http://127.0.0.1:1,header.X-Key={header},header.X-Key={header}"),
        format!("http://{credentials}127.0.0.1:1,header.Authorization={header}"),
        format!("http://{credentials}%zz@127.0.0.1:1"),
        format!("http://{user}:%zz{password}@127.0.0.1:1"),
    ] {
        let ended = run(&["run", "--listen", "127.0.0.1:0", "--admin", "off", "--to", &to]);
        assert!(!ended.status.success(), "{to} is accepted");
        assert_clean(
            &to.replace(user, "U").replace(password, "P"),
            &(ended.stdout + &ended.stderr),
            &[],
        );
    }
    // A twin of a good destination: the message repeats neither.
    let to = format!("a=http://{credentials}127.0.0.1:1,header.X-Key={header}");
    let ended = run(&["run", "--to", &to, "--to", &to]);
    assert!(!ended.status.success());
    assert_clean("twins", &(ended.stdout + &ended.stderr), &[]);
}
