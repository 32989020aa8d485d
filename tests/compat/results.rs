//! Rows 46 to 64 of WIRE.md section 9: what becomes of an `/ingest` at the destinations, and what the client hears.

use std::net::SocketAddr;

use pyrotee::runtime::clock;

use super::gateway::{Engine, Gateway, INGEST, assert_empty, assert_text, ms, under_both_engines};
use super::scripted::{Act, Latch, Received, Scripted, answer, plain_answer};
use super::support::{Answer, eventually};

under_both_engines!(
    rows_046_047_refusals_are_relayed_without_retry,
    rows_048_to_050_troubles_are_retried_then_relayed,
    rows_048_to_050_a_later_attempt_succeeds,
    row_051_unknown_statuses_have_no_phrase,
    rows_052_053_every_2xx_is_success,
    row_054_a_refused_connection_is_500,
    row_055_a_timeout_is_500,
    row_056_one_good_one_bad,
    row_057_refused_and_400,
    row_058_the_earlier_failure_is_relayed,
    row_059_redirects_resend_the_body,
    row_059_redirects_end,
    row_060_other_redirects_are_failures,
    row_061_a_relayed_redirect_has_no_location,
    row_062_the_destinations_words_stay_there,
    row_063_the_answer_waits_only_under_all,
    row_064_a_client_that_leaves_takes_nothing_along,
    resets_and_stale_connections,
    retry_after_is_obeyed,
    connections_are_kept,
);

/// The outgoing attempts and the answer for a destination that answers `statuses` in turn.
fn outcome(engine: Engine, statuses: &[u16]) -> (Answer, Vec<Received>) {
    let a = Scripted::answering(statuses);
    let gateway = Gateway::to(engine, &[&a], &[]);
    let answer = gateway.post(INGEST, &[], b"body");
    (answer, a.received())
}

fn rows_046_047_refusals_are_relayed_without_retry(engine: Engine) {
    let refusals = [
        (400, "Bad Request"),
        (401, "Unauthorized"),
        (402, "Payment Required"),
        (403, "Forbidden"),
        (404, "Not Found"),
        (405, "Method Not Allowed"),
        (409, "Conflict"),
        (410, "Gone"),
        (413, "Request Entity Too Large"),
        (415, "Unsupported Media Type"),
        (418, "I'm a teapot"),
        (422, "Unprocessable Entity"),
        (431, "Request Header Fields Too Large"),
        (451, "Unavailable For Legal Reasons"),
        // Alloy retries this one; a server that does not know a thing will not learn it (docs/compatibility.md).
        (501, "Not Implemented"),
    ];
    let a = Scripted::answering(&refusals.map(|(status, _)| status));
    let gateway = Gateway::to(engine, &[&a], &[]);
    for (turn, (status, phrase)) in refusals.into_iter().enumerate() {
        let answer = gateway.post(INGEST, &[], b"body");
        assert_text(&answer, status, &format!("{phrase}\n"));
        assert_eq!(a.received().len(), turn + 1, "{status} is not retried");
    }
}

fn rows_048_to_050_troubles_are_retried_then_relayed(engine: Engine) {
    for (status, phrase) in [
        (408, "Request Timeout"),
        (429, "Too Many Requests"),
        (500, "Internal Server Error"),
        (502, "Bad Gateway"),
        (503, "Service Unavailable"),
        (504, "Gateway Timeout"),
        (507, "Insufficient Storage"),
    ] {
        let (answer, attempts) = outcome(engine, &[status]);
        assert_text(&answer, status, &format!("{phrase}\n"));
        assert_eq!(attempts.len(), 3, "{status}");
        for attempt in attempts {
            assert_eq!(attempt.body, b"body", "every attempt brings all of it");
        }
    }
}

fn rows_048_to_050_a_later_attempt_succeeds(engine: Engine) {
    let (answer, attempts) = outcome(engine, &[503, 429, 200]);
    assert_empty(&answer, 200);
    assert_eq!(attempts.len(), 3);
    let (answer, attempts) = outcome(engine, &[503, 400, 200]);
    assert_text(&answer, 400, "Bad Request\n");
    assert_eq!(attempts.len(), 2, "a refusal is final");
    let (answer, _) = outcome(engine, &[500, 502, 503]);
    assert_text(&answer, 503, "Service Unavailable\n");
}

fn row_051_unknown_statuses_have_no_phrase(engine: Engine) {
    for (status, attempts_expected) in [(499, 1), (599, 3)] {
        let (answer, attempts) = outcome(engine, &[status]);
        assert_text(&answer, status, "\n");
        assert_eq!(attempts.len(), attempts_expected, "{status}");
    }
}

/// Alloy counts them as failures yet relays a 2xx; ours are (D) successes.
fn rows_052_053_every_2xx_is_success(engine: Engine) {
    for status in [200, 201, 202, 203, 204, 205, 206, 299] {
        let (answer, attempts) = outcome(engine, &[status]);
        assert_empty(&answer, 200);
        assert_eq!(attempts.len(), 1, "{status}");
    }
}

/// An address that refuses connections: bound, so that nobody else gets it, but not listening.
struct Refusing(socket2::Socket);

impl Refusing {
    fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.expect("sockets can be had");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&any.into()).expect("loopback has free ports");
        Self(socket)
    }

    fn url(&self) -> String {
        let address = self.0.local_addr().ok().and_then(|address| address.as_socket());
        format!("http://{}", address.expect("it is bound"))
    }
}

fn row_054_a_refused_connection_is_500(engine: Engine) {
    let refusing = Refusing::new();
    let to = format!("a={}", refusing.url());
    let gateway = Gateway::start(
        engine,
        &["--to", &to, "--min-backoff", "50ms", "--max-backoff", "50ms"],
    );
    let started = clock::now();
    let answer = gateway.post(INGEST, &[], b"body");
    assert_text(&answer, 500, "Failed to process request\n");
    let took = clock::now().since(started);
    assert!(
        took >= ms(100),
        "two waits lie between three attempts, took {took:?}"
    );
}

fn row_055_a_timeout_is_500(engine: Engine) {
    let latch = Latch::default();
    let hold = latch.clone();
    let a = Scripted::following(move |_, _| vec![Act::Await(hold.clone())]);
    let gateway = Gateway::to(
        engine,
        &[&a],
        &["--remote-timeout", "300ms", "--max-retries", "2"],
    );
    let started = clock::now();
    let answer = gateway.post(INGEST, &[], b"body");
    assert_text(&answer, 500, "Failed to process request\n");
    assert_eq!(a.received().len(), 2);
    assert!(clock::now().since(started) >= ms(600), "two attempts of 300 ms");
    latch.open();
}

fn row_056_one_good_one_bad(engine: Engine) {
    let (a, b) = (Scripted::healthy(), Scripted::answering(&[400]));
    for order in [[&a, &b], [&b, &a]] {
        let before = a.received().len();
        let gateway = Gateway::to(engine, &order, &[]);
        let answer = gateway.post(INGEST, &[], b"body");
        assert_text(&answer, 400, "Bad Request\n");
        assert_eq!(a.received().len(), before + 1, "delivered once");
    }
    // The good one never gets it again because of the other's retries.
    let c = Scripted::answering(&[503]);
    let gateway = Gateway::to(engine, &[&a, &c], &[]);
    let before = a.received().len();
    assert_text(&gateway.post(INGEST, &[], b"body"), 503, "Service Unavailable\n");
    assert_eq!((a.received().len(), c.received().len()), (before + 1, 3));
}

fn row_057_refused_and_400(engine: Engine) {
    let a = Scripted::answering(&[400]);
    let refusing = Refusing::new();
    let (bad, good) = (format!("x={}", refusing.url()), format!("a={}", a.url()));
    for order in [[&bad, &good], [&good, &bad]] {
        let gateway = Gateway::start(engine, &["--to", order[0], "--to", order[1]]);
        assert_text(&gateway.post(INGEST, &[], b"body"), 400, "Bad Request\n");
    }
}

fn row_058_the_earlier_failure_is_relayed(engine: Engine) {
    let (a, b) = (Scripted::answering(&[400]), Scripted::answering(&[503]));
    for order in [[&a, &b], [&b, &a]] {
        // Two waits until the 503 is final, in which a busy machine, too, hears the 400.
        let gateway = Gateway::to(engine, &order, &["--min-backoff", "1s", "--max-backoff", "1s"]);
        assert_text(&gateway.post(INGEST, &[], b"body"), 400, "Bad Request\n");
    }
    // The first one answers when the other one has, and some time for that to arrive.
    let asked = Latch::default();
    let (until_asked, b_asked) = (asked.clone(), asked);
    let late = Scripted::following(move |_, request| {
        vec![
            Act::Await(until_asked.clone()),
            Act::Wait(ms(2000)),
            Act::Send(plain_answer(request, 400)),
        ]
    });
    let b = Scripted::following(move |_, request| {
        b_asked.open();
        vec![Act::Send(plain_answer(request, 503))]
    });
    let gateway = Gateway::to(engine, &[&late, &b], &["--max-retries", "1"]);
    assert_text(&gateway.post(INGEST, &[], b"body"), 503, "Service Unavailable\n");
}

/// Redirects the first request to `location`, then is healthy.
fn redirecting(status: u16, location: impl Fn(&Received) -> String + Send + Sync + 'static) -> Scripted {
    Scripted::following(move |turn, request| {
        let location = location(request);
        let bytes = match turn {
            0 => answer(status, &[("Location", &location)], b"moved"),
            _ => plain_answer(request, 200),
        };
        vec![Act::Send(bytes)]
    })
}

fn row_059_redirects_resend_the_body(engine: Engine) {
    let body: Vec<u8> = (0..200_000_u32).map(|at| at as u8).collect();
    for status in [307, 308] {
        let a = redirecting(status, |request| format!("/elsewhere?{}", request.query()));
        let gateway = Gateway::to(engine, &[&a], &[]);
        assert_empty(&gateway.post(INGEST, &[("Content-Type", "x/y")], &body), 200);
        let [first, second]: [Received; 2] = a.received().try_into().expect("two requests");
        assert_eq!(second.path(), "/elsewhere", "{status}");
        assert_eq!(second.query(), first.query());
        assert_eq!((first.body == body, second.body == body), (true, true));
        assert_eq!(second.values("content-type"), ["x/y"]);
        assert!(second.request_line().starts_with("POST "));

        let other = Scripted::healthy();
        let address = other.address;
        let a = redirecting(status, move |request| {
            format!("http://{address}{}", request.target())
        });
        let to = format!("a=http://user:secret@{}", a.address);
        let gateway = Gateway::start(engine, &["--to", &to]);
        assert_empty(&gateway.post(INGEST, &[("Content-Type", "x/y")], &body), 200);
        let (here, there) = (a.only(), other.only());
        assert_eq!(there.target(), here.target());
        assert!(there.body == body);
        assert_eq!(there.value("host"), Some(address.to_string()));
        assert_eq!(here.values("authorization").len(), 1);
        assert_eq!(
            there.values("authorization").len(),
            0,
            "credentials stay with their host"
        );
    }
    // The same for Push.
    let a = redirecting(307, |request| request.path().replace("/push", "/v2/push"));
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_eq!(
        gateway.push(b"\x0a\x0d\x0a\x0b\x0a\x03env\x12\x04prod").status,
        200
    );
    assert_eq!(a.received()[1].path(), "/v2/push.v1.PusherService/Push");
    assert_eq!(a.received()[1].body, a.received()[0].body);
}

fn row_059_redirects_end(engine: Engine) {
    let a = Scripted::following(|turn, _| {
        let location = format!("/{turn}");
        vec![Act::Send(answer(307, &[("Location", &location)], b""))]
    });
    let gateway = Gateway::to(engine, &[&a], &[]);
    let refused = gateway.post(INGEST, &[], b"body");
    assert_text(&refused, 307, "Temporary Redirect\n");
    assert_eq!(
        a.received().len(),
        11,
        "the request and ten redirects, as Go's client does"
    );
    // Nowhere to go: no Location, or one that is no http or https URL.
    for location in ["", "ftp://127.0.0.1/", "http://", "http://[::1"] {
        let a = Scripted::following(move |_, _| {
            let fields: &[(&str, &str)] = if location.is_empty() {
                &[]
            } else {
                &[("Location", location)]
            };
            vec![Act::Send(answer(308, fields, b""))]
        });
        let gateway = Gateway::to(engine, &[&a], &[]);
        let refused = gateway.post(INGEST, &[], b"body");
        assert_text(&refused, 308, "Permanent Redirect\n");
        assert_eq!(a.received().len(), 1, "'{location}' is not retried");
    }
}

/// Alloy follows them with a GET and counts the profile as sent; ours are (D) failures.
fn row_060_other_redirects_are_failures(engine: Engine) {
    for (status, phrase) in [
        (300, "Multiple Choices"),
        (301, "Moved Permanently"),
        (302, "Found"),
        (303, "See Other"),
    ] {
        let a = redirecting(status, |_| "/elsewhere".to_owned());
        let gateway = Gateway::to(engine, &[&a], &[]);
        assert_text(
            &gateway.post(INGEST, &[], b"body"),
            status,
            &format!("{phrase}\n"),
        );
        assert_eq!(a.received().len(), 1, "{status} is neither followed nor retried");
    }
    let (answer, _) = outcome(engine, &[304]);
    assert_eq!((answer.status, &*answer.body), (304, &b""[..]));
    assert_eq!(answer.header("content-type"), None, "of no body nothing is said");
}

fn row_061_a_relayed_redirect_has_no_location(engine: Engine) {
    let a = redirecting(302, |_| "/elsewhere".to_owned());
    let gateway = Gateway::to(engine, &[&a], &[]);
    let answer = gateway.post(INGEST, &[], b"body");
    assert_text(&answer, 302, "Found\n");
    assert_eq!(answer.header("location"), None);
}

fn row_062_the_destinations_words_stay_there(engine: Engine) {
    for status in [400, 503] {
        let a = Scripted::following(move |_, _| {
            let fields = [
                ("X-Internal", "internal-header"),
                ("Content-Type", "text/html"),
                ("Set-Cookie", "c=d"),
            ];
            vec![Act::Send(answer(status, &fields, b"internal-body"))]
        });
        let gateway = Gateway::to(engine, &[&a], &[]);
        let answer = gateway.post(INGEST, &[], b"body");
        assert_eq!(answer.status, status);
        let shown = format!("{answer:?}{}", answer.text());
        for word in ["internal", "html", "cookie", &a.address.to_string()] {
            assert!(!shown.contains(word), "{word}: {shown}");
        }
    }
}

/// Alloy's answer always takes as long as the slowest destination; ours (D) only under `--ack all`.
fn row_063_the_answer_waits_only_under_all(engine: Engine) {
    for (ack, waits) in [("all", true), ("first", false), ("queued", false)] {
        let latch = Latch::default();
        let hold = latch.clone();
        let slow = Scripted::following(move |_, request| {
            vec![Act::Await(hold.clone()), Act::Send(plain_answer(request, 200))]
        });
        let quick = Scripted::healthy();
        let gateway = Gateway::to(engine, &[&slow, &quick], &["--ack", ack]);
        let mut client = gateway.client();
        client.send(super::support::post(INGEST, &[], b"body")).unwrap();
        slow.wait_for(1);
        quick.wait_for(1);
        if waits {
            client.set_patience(ms(200));
            client
                .receive()
                .expect_err("no answer while one destination has not decided");
            client.set_patience(super::support::DEADLINE);
            latch.open();
        }
        assert_empty(&client.receive().unwrap(), 200);
        latch.open();
    }
}

/// Alloy cancels what is under way; ours (D) is delivered.
fn row_064_a_client_that_leaves_takes_nothing_along(engine: Engine) {
    for ack in ["all", "queued"] {
        let a = Scripted::answering(&[503, 503, 200]);
        let flags = [
            "--ack",
            ack,
            "--min-backoff",
            "50ms",
            "--max-backoff",
            "50ms",
            "--max-retries",
            "5",
        ];
        let gateway = Gateway::to(engine, &[&a], &flags);
        let mut client = gateway.client();
        client.send(super::support::post(INGEST, &[], b"body")).unwrap();
        a.wait_for(1);
        drop(client);
        assert_eq!(a.newest(3).body, b"body", "{ack}");
    }
}

fn resets_and_stale_connections(engine: Engine) {
    // A reset is retried like any missing answer.
    let a = Scripted::following(|turn, request| match turn {
        0 => vec![Act::Reset],
        1 => vec![Act::Close],
        _ => vec![Act::Send(plain_answer(request, 200))],
    });
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    assert_eq!(a.received().len(), 3);
    // A kept connection that the destination closes meanwhile costs no attempt.
    let a = Scripted::following(|_, request| vec![Act::Send(plain_answer(request, 200)), Act::Close]);
    let gateway = Gateway::to(engine, &[&a], &["--max-retries", "1"]);
    for turn in 0..5 {
        assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
        assert_eq!(a.received().len(), turn + 1);
    }
}

/// Q15: Alloy ignores it.
fn retry_after_is_obeyed(engine: Engine) {
    let a = Scripted::following(|turn, request| {
        vec![Act::Send(match turn {
            0 => answer(429, &[("Retry-After", "1")], b""),
            _ => plain_answer(request, 200),
        })]
    });
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    let received = a.received();
    assert!(received[1].at.since(received[0].at) >= ms(1000));
}

fn connections_are_kept(engine: Engine) {
    let a = Scripted::answering(&[200, 400, 204, 503, 200]);
    let gateway = Gateway::to(engine, &[&a], &[]);
    for _ in 0..4 {
        gateway.post(INGEST, &[], b"body");
    }
    eventually("five requests", || (a.received().len() == 5).then_some(()));
    assert_eq!(a.connections(), 1, "every answer leaves the connection usable");
}
