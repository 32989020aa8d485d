//! Rows 49, 61, 110 to 120, 122 and 126 of WIRE.md section 9: retries, and what goes along to a destination.

use std::collections::BTreeSet;

use pyrotee::runtime::clock;

use super::gateway::{
    Engine, Gateway, INGEST, assert_connect_error, assert_empty, assert_text, gzip, ms, under_both_engines,
};
use super::push::good;
use super::scripted::{Act, Scripted, answer, connect_error};
use super::support::run;

under_both_engines!(
    row_049_429_is_relayed_at_once_when_asked,
    row_061_redirects_are_not_followed_when_asked,
    rows_110_111_attempts_are_counted,
    row_111_zero_means_until_it_works,
    row_112_waits_lie_in_their_intervals,
    row_113_no_wait_after_the_last_attempt,
    row_114_final_codes_are_not_retried,
    row_115_passing_codes_are_retried,
    row_116_resource_exhausted_obeys_the_option,
    row_117_a_plain_429_obeys_the_option,
    row_118_plain_refusals_are_not_retried,
    row_119_a_wrong_content_type_is_a_failure,
    row_120_authorization,
    row_126_reserved_headers_are_refused,
);

fn row_049_429_is_relayed_at_once_when_asked(engine: Engine) {
    let a = Scripted::answering(&[429]);
    let to = format!("a={},retry-on-http-429=false", a.url());
    let gateway = Gateway::start(engine, &["--to", &to]);
    assert_text(&gateway.post(INGEST, &[], b"body"), 429, "Too Many Requests\n");
    assert_eq!(a.received().len(), 1);
}

fn row_061_redirects_are_not_followed_when_asked(engine: Engine) {
    for (status, phrase) in [
        (301, "Moved Permanently"),
        (302, "Found"),
        (307, "Temporary Redirect"),
        (308, "Permanent Redirect"),
    ] {
        let a = Scripted::following(move |_, _| {
            vec![Act::Send(answer(status, &[("Location", "/elsewhere")], b""))]
        });
        let to = format!("a={},follow-redirects=false", a.url());
        let gateway = Gateway::start(engine, &["--to", &to]);
        let answer = gateway.post(INGEST, &[], b"body");
        assert_text(&answer, status, &format!("{phrase}\n"));
        assert_eq!(answer.header("location"), None);
        assert_eq!(a.received().len(), 1);
    }
}

fn rows_110_111_attempts_are_counted(engine: Engine) {
    for attempts in [1, 2, 3, 7] {
        let (a, b) = (
            Scripted::answering(&[503]),
            Scripted::following(|_, _| vec![Act::Reset]),
        );
        for (destination, expected) in [(&a, "Service Unavailable\n"), (&b, "Failed to process request\n")] {
            let gateway = Gateway::to(engine, &[destination], &["--max-retries", &attempts.to_string()]);
            assert_eq!(gateway.post(INGEST, &[], b"body").text(), expected);
            // Five silent failures in a row make it down, and then a probe stands for the rest.
            let seen = destination.received().len();
            let expected = if attempts > 5 && expected.starts_with('F') {
                5..=attempts
            } else {
                attempts..=attempts
            };
            assert!(expected.contains(&seen), "{attempts}: {seen}");
        }
    }
    // A destination's own number wins over the flag.
    let a = Scripted::answering(&[503]);
    let gateway = Gateway::start(engine, &["--to", &format!("a={},max-retries=2", a.url())]);
    assert_text(&gateway.post(INGEST, &[], b"body"), 503, "Service Unavailable\n");
    assert_eq!(a.received().len(), 2);
}

fn row_111_zero_means_until_it_works(engine: Engine) {
    let mut statuses = vec![503; 14];
    statuses.push(200);
    let a = Scripted::answering(&statuses);
    let gateway = Gateway::to(engine, &[&a], &["--max-retries", "0"]);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    assert_eq!(a.received().len(), 15, "more than the default of ten");
}

fn row_112_waits_lie_in_their_intervals(engine: Engine) {
    // Lower ends are exact in every run. Upper ends are only as exact as the machine's scheduling: other work makes a wait
    // longer and never shorter, so each has to keep to its upper end in one of a few runs.
    const RUNS_MAX: usize = 5;
    let mut never_in_time: BTreeSet<_> = (0..3)
        .flat_map(|one| (0..5).map(move |wait| (one, wait)))
        .collect();
    for _ in 0..RUNS_MAX {
        let in_time = waits_in_time(engine);
        never_in_time.retain(|wait| !in_time.contains(wait));
        if never_in_time.is_empty() {
            return;
        }
    }
    panic!("too long in each of {RUNS_MAX} runs: destination and wait {never_in_time:?}");
}

/// Which waits of which destination kept to their upper ends; the lower ends are asserted.
fn waits_in_time(engine: Engine) -> BTreeSet<(usize, usize)> {
    let slack = ms(300);
    let destinations = [
        Scripted::answering(&[503]),
        Scripted::answering(&[429]),
        Scripted::answering(&[500]),
    ];
    let [a, b, c] = &destinations;
    let flags = [
        "--min-backoff",
        "60ms",
        "--max-backoff",
        "200ms",
        "--max-retries",
        "6",
    ];
    let gateway = Gateway::to(engine, &[a, b, c], &flags);
    let started = clock::now();
    assert!(gateway.post(INGEST, &[], b"body").status >= 429);
    let took = clock::now().since(started);
    let intervals = [(60, 120), (120, 200), (120, 200), (120, 200), (120, 200)];
    let mut in_time = BTreeSet::new();
    for (one, destination) in destinations.iter().enumerate() {
        let received = destination.received();
        assert_eq!(received.len(), 6);
        for (wait, (pair, (low, high))) in received.windows(2).zip(intervals).enumerate() {
            let waited = pair[1].at.since(pair[0].at);
            assert!(
                waited >= ms(low),
                "waited {waited:?} instead of {low} ms at least"
            );
            if waited < ms(high) + slack {
                in_time.insert((one, wait));
            }
        }
    }
    assert!(took >= ms(540), "all waits together, took {took:?}");
    in_time
}

fn row_113_no_wait_after_the_last_attempt(engine: Engine) {
    // Far less than a wait, and time enough for a busy machine to answer.
    for (attempts, backoff, less) in [("1", "1m", 20_000), ("2", "8s", 7000)] {
        let a = Scripted::answering(&[503]);
        let flags = [
            "--min-backoff",
            backoff,
            "--max-backoff",
            backoff,
            "--max-retries",
            attempts,
        ];
        let gateway = Gateway::to(engine, &[&a], &flags);
        assert_text(&gateway.post(INGEST, &[], b"body"), 503, "Service Unavailable\n");
        let answered = clock::now();
        let last = a.received().pop().expect("it was asked");
        assert!(answered.since(last.at) < ms(less), "{attempts}");
    }
}

/// Attempts that a Push takes, and its answer's status, when the destination always answers so.
fn attempts(engine: Engine, option: &str, bytes: Vec<u8>) -> (usize, u16) {
    let a = Scripted::following(move |_, _| vec![Act::Send(bytes.clone())]);
    let gateway = Gateway::start(engine, &["--to", &format!("a={}{option}", a.url())]);
    let status = gateway.push(&good()).status;
    (a.received().len(), status)
}

fn row_114_final_codes_are_not_retried(engine: Engine) {
    for (status, code) in [
        (400, "invalid_argument"),
        (403, "permission_denied"),
        (404, "not_found"),
        (501, "unimplemented"),
        (401, "unauthenticated"),
        (409, "already_exists"),
        (400, "failed_precondition"),
        (400, "out_of_range"),
        (499, "canceled"),
    ] {
        assert_eq!(
            attempts(engine, "", connect_error(status, code)),
            (1, status),
            "{code}"
        );
    }
    // The code decides, whatever the status is.
    assert_eq!(attempts(engine, "", connect_error(503, "not_found")), (1, 404));
    // Also in gzip, which every Push says it takes.
    let error = gzip(b"{\"code\":\"not_found\",\"message\":\"m\"}");
    let headers = [("Content-Type", "application/json"), ("Content-Encoding", "gzip")];
    assert_eq!(attempts(engine, "", answer(503, &headers, &error)), (1, 404));
}

fn row_115_passing_codes_are_retried(engine: Engine) {
    for (status, code) in [
        (503, "unavailable"),
        (500, "internal"),
        (500, "unknown"),
        (409, "aborted"),
        (500, "data_loss"),
        (504, "deadline_exceeded"),
    ] {
        assert_eq!(
            attempts(engine, "", connect_error(status, code)),
            (3, status),
            "{code}"
        );
    }
    assert_eq!(attempts(engine, "", connect_error(400, "unavailable")), (3, 503));
}

fn row_116_resource_exhausted_obeys_the_option(engine: Engine) {
    let exhausted = || connect_error(429, "resource_exhausted");
    assert_eq!(attempts(engine, "", exhausted()), (3, 429));
    assert_eq!(attempts(engine, ",retry-on-http-429=true", exhausted()), (3, 429));
    assert_eq!(
        attempts(engine, ",retry-on-http-429=false", exhausted()),
        (1, 429)
    );
}

/// Alloy always retries it; ours (D) obeys.
fn row_117_a_plain_429_obeys_the_option(engine: Engine) {
    let plain = || answer(429, &[("Content-Type", "text/plain")], b"slow down");
    assert_eq!(
        attempts(engine, "", plain()),
        (3, 503),
        "unavailable, as a Connect client reads it"
    );
    assert_eq!(attempts(engine, ",retry-on-http-429=false", plain()), (1, 503));
}

/// Alloy retries these ten times; ours (D) does not.
fn row_118_plain_refusals_are_not_retried(engine: Engine) {
    for status in [400, 404, 405, 409, 413, 415, 422, 499] {
        let (attempts, _) = attempts(
            engine,
            "",
            answer(status, &[("Content-Type", "text/plain")], b"no"),
        );
        assert_eq!(attempts, 1, "{status}");
    }
    for status in [408, 500, 502, 503, 504, 599] {
        let (attempts, _) = attempts(
            engine,
            "",
            answer(status, &[("Content-Type", "text/plain")], b"no"),
        );
        assert_eq!(attempts, 3, "{status}");
    }
}

fn row_119_a_wrong_content_type_is_a_failure(engine: Engine) {
    for content_type in ["text/html", "application/json", "application/grpc", ""] {
        let fields: &[(&str, &str)] = if content_type.is_empty() {
            &[]
        } else {
            &[("Content-Type", content_type)]
        };
        let bytes = answer(200, fields, b"<html>login</html>");
        assert_eq!(attempts(engine, "", bytes), (3, 500), "'{content_type}'");
    }
    let a = Scripted::following(|_, _| vec![Act::Send(answer(200, &[("Content-Type", "text/html")], b""))]);
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_connect_error(&gateway.push(&good()), 500, "unknown");
}

fn row_120_authorization(engine: Engine) {
    for (user, option, expected) in [
        ("user:pass@", "", Some("Basic dXNlcjpwYXNz")),
        ("user@", "", Some("Basic dXNlcjo=")),
        ("u%40x:p%3Aq%2F@", "", Some("Basic dUB4OnA6cS8=")),
        ("", ",header.Authorization=Bearer token", Some("Bearer token")),
        ("", ",header.Authorization=Custom a=b", Some("Custom a=b")),
        ("", ",header.authorization=ApiKey k", Some("ApiKey k")),
        ("", "", None),
    ] {
        let a = Scripted::answering(&[503, 200, 200]);
        let to = format!("a=http://{user}{}{option}", a.address);
        let gateway = Gateway::start(engine, &["--to", &to]);
        assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
        assert_eq!(gateway.push(&good()).status, 200);
        let received = a.received();
        assert_eq!(received.len(), 3);
        for request in received {
            assert_eq!(request.value("authorization").as_deref(), expected, "{to}");
            assert_eq!(
                request.value("host"),
                Some(a.address.to_string()),
                "without the user"
            );
        }
    }
    // Row 122: two ways at once are an error.
    let to = "a=http://user:hidden@127.0.0.1:1,header.Authorization=Bearer hidden";
    let ended = run(&["run", "--to", to]);
    assert!(!ended.status.success());
    assert!(
        ended
            .stderr
            .contains("both a user in the URL and header.Authorization"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("hidden"), "{}", ended.stderr);
}

fn row_126_reserved_headers_are_refused(_: Engine) {
    for name in [
        "Host",
        "content-length",
        "Connection",
        "Transfer-Encoding",
        "Content-Type",
        "Accept-Encoding",
    ] {
        let ended = run(&["run", "--to", &format!("a=http://127.0.0.1:1,header.{name}=x")]);
        assert!(
            !ended.status.success() && ended.stderr.contains("--to"),
            "{name}: {}",
            ended.stderr
        );
        let ended = run(&["run", "--to", "a=http://127.0.0.1:1", "--pass-header", name]);
        assert!(
            !ended.status.success() && ended.stderr.contains("--pass-header"),
            "{name}: {}",
            ended.stderr
        );
    }
    // Bytes that would end the line.
    for value in ["a\r\nX: y", "a\nb", "a\rb"] {
        let ended = run(&["run", "--to", &format!("a=http://127.0.0.1:1,header.X-A={value}")]);
        assert!(!ended.status.success(), "{value:?}");
    }
}
