//! Row 123 of WIRE.md section 9: OAuth2 client credentials.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::gateway::{Engine, Gateway, INGEST, assert_empty, under_both_engines};
use super::push::good;
use super::scripted::{Act, Received, Scripted, answer, connect_error, plain_answer};
use super::support::{get, run};

under_both_engines!(
    row_123_a_token_is_fetched_and_cached,
    row_123_credentials_are_tried_in_the_header_then_in_the_body,
    row_123_a_token_is_refreshed_early,
    row_123_without_a_token_profiles_wait,
    row_123_a_refused_token_is_refreshed_once,
    row_123_a_new_client_secret_is_used,
    row_123_the_endpoint_may_be_behind_a_proxy,
    row_123_endpoints_that_lie_do_no_harm,
    row_123_what_is_missing_is_named,
);

/// A grant of the token `token-N` that lives this long.
fn grant(number: usize, seconds: u32) -> Vec<u8> {
    let body = format!(r#"{{"access_token":"token-{number}","token_type":"bearer","expires_in":{seconds}}}"#);
    answer(200, &[("Content-Type", "application/json")], body.as_bytes())
}

/// An endpoint that grants `token-0`, `token-1` and so on.
fn granting(seconds: u32) -> Scripted {
    Scripted::following(move |turn, _| vec![Act::Send(grant(turn, seconds))])
}

fn gateway(engine: Engine, a: &Scripted, endpoint: &Scripted, options: &str, flags: &[&str]) -> Gateway {
    let to = format!(
        "a={},oauth2.client-id=m:e,oauth2.token-url={}/token{options}",
        a.url(),
        endpoint.url()
    );
    Gateway::start(engine, &[&["--to", &to], flags].concat())
}

const SECRET: &str = ",oauth2.client-secret=s3cr&t";

fn form(request: &Received) -> Vec<(String, String)> {
    url::form_urlencoded::parse(&request.body).into_owned().collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

fn tokens(a: &Scripted) -> Vec<String> {
    let received = a.received();
    received
        .iter()
        .map(|request| request.value("authorization").unwrap())
        .collect()
}

fn row_123_a_token_is_fetched_and_cached(engine: Engine) {
    let (a, endpoint) = (Scripted::healthy(), granting(3600));
    let options = format!("{SECRET},oauth2.scopes=push read,oauth2.endpoint-param.audience=p&q");
    let gateway = gateway(engine, &a, &endpoint, &options, &[]);
    for _ in 0..3 {
        assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
        assert_eq!(gateway.push(&good()).status, 200);
    }
    assert_eq!(tokens(&a), ["Bearer token-0"; 6]);
    let asked = endpoint.only();
    assert_eq!(asked.request_line(), "POST /token HTTP/1.1");
    assert_eq!(
        asked.value("content-type").as_deref(),
        Some("application/x-www-form-urlencoded")
    );
    let basic = format!("Basic {}", STANDARD.encode("m%3Ae:s3cr%26t"));
    assert_eq!(asked.value("authorization"), Some(basic));
    assert_eq!(
        form(&asked),
        pairs(&[
            ("grant_type", "client_credentials"),
            ("scope", "push read"),
            ("audience", "p&q")
        ])
    );
    let log = gateway.log();
    assert!(!log.contains("token-0") && !log.contains("s3cr"), "{log}");
}

fn row_123_credentials_are_tried_in_the_header_then_in_the_body(engine: Engine) {
    let a = Scripted::healthy();
    let endpoint = Scripted::following(|turn, request| {
        let bytes = match request.value("authorization") {
            Some(_) => answer(401, &[], br#"{"error":"invalid_client"}"#),
            None => grant(turn, 11),
        };
        vec![Act::Send(bytes)]
    });
    let gateway = gateway(engine, &a, &endpoint, SECRET, &[]);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    // 11 s live half as long before they are fetched again: the third request knows what the endpoint takes.
    let asked = endpoint.wait_for(3);
    let expected = pairs(&[
        ("grant_type", "client_credentials"),
        ("client_id", "m:e"),
        ("client_secret", "s3cr&t"),
    ]);
    assert!(asked[0].value("authorization").is_some() && form(&asked[0]) == expected[..1]);
    for request in &asked[1..] {
        assert_eq!(
            (request.value("authorization"), form(request)),
            (None, expected.clone())
        );
    }
    assert_eq!(tokens(&a), ["Bearer token-1"]);
}

fn row_123_a_token_is_refreshed_early(engine: Engine) {
    let (a, endpoint) = (Scripted::healthy(), granting(20));
    let gateway = gateway(engine, &a, &endpoint, SECRET, &[]);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    let asked = endpoint.wait_for(2);
    let after = asked[1].at.since(asked[0].at);
    assert!(
        (9.5..15.0).contains(&after.as_secs_f64()),
        "10 s before the end of 20: {after:?}"
    );
    // The endpoint has it; the gateway has read it a moment later.
    loop {
        assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
        if tokens(&a).last().is_some_and(|token| token == "Bearer token-1") {
            break;
        }
    }
}

fn row_123_without_a_token_profiles_wait(engine: Engine) {
    let a = Scripted::healthy();
    let works = Arc::new(AtomicBool::new(false));
    let is_up = works.clone();
    let endpoint = Scripted::following(move |turn, _| {
        let bytes = match is_up.load(Ordering::Acquire) {
            true => grant(turn, 3600),
            false => answer(503, &[], b"endp0int's words"),
        };
        vec![Act::Send(bytes)]
    });
    let flags = ["--ack", "queued", "--admin", "127.0.0.1:0", "--max-retries", "0"];
    let gateway = gateway(engine, &a, &endpoint, SECRET, &flags);
    let admin = gateway.log_line("admin port address=").trim().parse().unwrap();
    for _ in 0..20 {
        assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    }
    gateway.log_line("destination is down");
    let status = get(admin, "/-/status").text();
    assert!(
        status.contains("no access token: the token endpoint answered 503"),
        "{status}"
    );
    assert!(
        get(admin, "/metrics")
            .text()
            .contains("pyrotee_destination_secrets_failing{destination=\"a\"} 1")
    );
    assert!(a.received().is_empty(), "nothing is sent without a token");
    works.store(true, Ordering::Release);
    a.wait_for(20);
    assert!(
        tokens(&a).iter().all(|token| token.starts_with("Bearer token-")),
        "{:?}",
        tokens(&a)
    );
    gateway.log_line("access token fetched");
    let text = get(admin, "/metrics").text();
    assert!(
        text.contains("pyrotee_destination_secrets_failing{destination=\"a\"} 0"),
        "{text}"
    );
    assert!(!gateway.log().contains("endp0int"), "{}", gateway.log());
}

fn row_123_a_refused_token_is_refreshed_once(engine: Engine) {
    let endpoint = granting(3600);
    let a = Scripted::following(|_, request| {
        let is_good = request.value("authorization").as_deref() == Some("Bearer token-1");
        let bytes = match (is_good, request.path().ends_with("/Push")) {
            (true, _) => plain_answer(request, 200),
            (false, true) => connect_error(401, "unauthenticated"),
            (false, false) => answer(401, &[], b""),
        };
        vec![Act::Send(bytes)]
    });
    let gateway = gateway(engine, &a, &endpoint, SECRET, &[]);
    assert_eq!(gateway.push(&good()).status, 200);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    assert_eq!(tokens(&a), ["Bearer token-0", "Bearer token-1", "Bearer token-1"]);
    assert_eq!(endpoint.received().len(), 2);
    // A destination that refuses every token makes no storm: one other token is tried, and not again for a while.
    let refusing = Scripted::answering(&[401]);
    let gateway = self::gateway(engine, &refusing, &endpoint, SECRET, &[]);
    for _ in 0..5 {
        assert_eq!(gateway.post(INGEST, &[], b"body").status, 401);
    }
    assert_eq!((refusing.received().len(), endpoint.received().len()), (6, 4));
}

fn row_123_a_new_client_secret_is_used(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    fs::write(&file, "old\n").unwrap();
    let (a, endpoint) = (Scripted::healthy(), granting(3600));
    let options = format!(",oauth2.client-secret-file={}", file.display());
    let _gateway = gateway(engine, &a, &endpoint, &options, &[]);
    endpoint.wait_for(1);
    fs::write(&file, "newer\n").unwrap();
    let asked = endpoint.wait_for(2);
    let sent: Vec<_> = asked
        .iter()
        .map(|request| request.value("authorization").unwrap())
        .collect();
    let basic = |secret: &str| format!("Basic {}", STANDARD.encode(format!("m%3Ae:{secret}")));
    assert_eq!(sent, [basic("old"), basic("newer")]);
}

fn row_123_the_endpoint_may_be_behind_a_proxy(engine: Engine) {
    let (a, proxy) = (Scripted::healthy(), granting(3600));
    let to = format!(
        "a={},oauth2.client-id=me{SECRET},oauth2.token-url=http://idp.invalid/token?x=1,oauth2.proxy-url=http://u:p@{}",
        a.url(),
        proxy.address
    );
    let gateway = Gateway::start(engine, &["--to", &to]);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    assert_eq!(tokens(&a), ["Bearer token-0"]);
    let asked = proxy.only();
    assert_eq!(asked.target(), "http://idp.invalid/token?x=1");
    assert_eq!(asked.value("host").as_deref(), Some("idp.invalid"));
    assert_eq!(asked.value("proxy-authorization").as_deref(), Some("Basic dTpw"));
}

fn row_123_endpoints_that_lie_do_no_harm(engine: Engine) {
    let json = [("Content-Type", "application/json")];
    let cases: [(&str, Vec<Act>, &str); 5] = [
        (
            "no HTTP",
            vec![Act::Send(b"rubbish\r\n\r\n".to_vec()), Act::Close],
            "no good HTTP",
        ),
        ("closes", vec![Act::Reset], "no good HTTP"),
        (
            "too much",
            vec![Act::Send(answer(200, &json, &vec![b' '; 1 << 20]))],
            "more than 64 KiB",
        ),
        (
            "no token",
            vec![Act::Send(answer(200, &json, b"{}"))],
            "is no token",
        ),
        (
            "a header of its own",
            vec![Act::Send(answer(
                200,
                &json,
                br#"{"access_token":"a\r\nX-Injected: 1"}"#,
            ))],
            "is no token",
        ),
    ];
    for (name, acts, says) in cases {
        let (a, endpoint) = (Scripted::healthy(), Scripted::following(move |_, _| acts.clone()));
        let gateway = gateway(engine, &a, &endpoint, SECRET, &[]);
        let told = gateway.log_line("no access token");
        assert!(
            told.contains(says) && told.contains("profiles wait"),
            "{name}: {told}"
        );
        assert_eq!(gateway.post(INGEST, &[], b"body").status, 500, "{name}");
        assert!(a.received().is_empty(), "{name}");
    }
}

fn row_123_what_is_missing_is_named(_: Engine) {
    for (options, says) in [
        (
            "oauth2.client-id=me,oauth2.token-url=http://h",
            "oauth2.client-secret-file",
        ),
        (
            "oauth2.client-secret=s3cret,oauth2.token-url=http://h",
            "oauth2.client-id",
        ),
        (
            "oauth2.client-id=me,oauth2.client-secret=s3cret",
            "oauth2.token-url",
        ),
        ("oauth2.client-id=me,bearer-token=s3cret", "keep one of them"),
    ] {
        let ended = run(&["run", "--to", &format!("http://h,{options}")]);
        assert_eq!(ended.status.code(), Some(64), "{options}");
        assert!(
            ended.stderr.contains(says) && !ended.stderr.contains("s3cret"),
            "{}",
            ended.stderr
        );
    }
}
