//! Row 127 of WIRE.md section 9: trace headers, which destinations get by default.

use super::gateway::{Engine, Gateway, INGEST, assert_empty, under_both_engines};
use super::push::good;
use super::scripted::{Received, Scripted};

under_both_engines!(
    row_127_trace_headers_by_default,
    row_127_trace_headers_can_be_off,
    row_127_a_header_of_the_operator_s_takes_their_place,
);

/// Trace, span and whether it is sampled, as both headers say it.
fn trace(request: &Received) -> (String, String, bool) {
    let jaeger = request.value("uber-trace-id").expect("it has one");
    let w3c = request.value("traceparent").expect("it has one");
    let parts: Vec<&str> = jaeger.split(':').collect();
    let [trace, span, "0", flag] = parts[..] else {
        panic!("{jaeger}")
    };
    assert_eq!(w3c, format!("00-{trace}-{span}-0{flag}"), "both say the same");
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    assert!(
        is_hex(trace, 32) && is_hex(span, 16) && matches!(flag, "0" | "1"),
        "{jaeger}"
    );
    (trace.to_owned(), span.to_owned(), flag == "1")
}

fn row_127_trace_headers_by_default(engine: Engine) {
    let (a, b) = (Scripted::answering(&[503, 200]), Scripted::healthy());
    let gateway = Gateway::to(engine, &[&a, &b], &[]);
    let client = [
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("tracestate", "x=y"),
        ("uber-trace-id", "1:2:0:1"),
    ];
    assert_empty(&gateway.post(INGEST, &client, b"body"), 200);
    assert_eq!(gateway.push(&good()).status, 200);
    let (at_a, at_b) = (a.wait_for(3), b.wait_for(2));
    let first = trace(&at_a[0]);
    assert_ne!(first.0, "0af7651916cd43dd8448eb211c80319c", "not the client's");
    assert!(at_a[0].values("tracestate").is_empty());
    for same in [trace(&at_a[1]), trace(&at_b[0])] {
        assert_eq!((&same.0, same.2), (&first.0, first.2), "one trace for a push");
        assert_ne!(same.1, first.1, "a span for each attempt");
    }
    assert_ne!(trace(&at_a[2]).0, first.0);
    for _ in 0..200 {
        gateway.post(INGEST, &[], b"body");
    }
    let sampled = b.received().iter().filter(|request| trace(request).2).count();
    // One in ten of 202: that it is none, or a third, happens once in 10^9 runs.
    assert!((1..67).contains(&sampled), "{sampled}");
}

fn row_127_trace_headers_can_be_off(engine: Engine) {
    for (flag, jaeger, w3c) in [("jaeger", 1, 0), ("w3c", 0, 1), ("off", 0, 0)] {
        let a = Scripted::healthy();
        let gateway = Gateway::to(engine, &[&a], &["--trace-headers", flag]);
        assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
        let request = a.only();
        let count = |name| request.values(name).len();
        assert_eq!(
            (count("uber-trace-id"), count("traceparent")),
            (jaeger, w3c),
            "{flag}"
        );
    }
}

fn row_127_a_header_of_the_operator_s_takes_their_place(engine: Engine) {
    let a = Scripted::healthy();
    let to = format!("a={},header.Uber-Trace-Id=mine", a.url());
    let gateway = Gateway::start(engine, &["--to", &to, "--pass-header", "TraceParent"]);
    assert_empty(
        &gateway.post(INGEST, &[("Traceparent", "client's")], b"body"),
        200,
    );
    assert_empty(&gateway.post(INGEST, &[], b"body"), 200);
    let received = a.wait_for(2);
    assert_eq!(received[0].value("traceparent").as_deref(), Some("client's"));
    assert_eq!(received[1].value("traceparent"), None);
    assert_eq!(received[1].value("uber-trace-id").as_deref(), Some("mine"));
}
