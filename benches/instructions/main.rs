//! The pure code of one push, each part in a function of its own, for `scripts/instructions` to count under callgrind.
//!
//! Not responsible for counting or comparing: the script reads what each `case_` function cost, callees included, and
//! divides it by [`ROUNDS`]. Every case asserts its answer, and is run once before it counts, so that tables and memory
//! are there.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use pyrotee::config::Overflow;
use pyrotee::fanout::push::PushParts;
use pyrotee::fanout::{AckMode, DestinationId, Fanout, Gate, Outcome, Push};
use pyrotee::http::{Framing, HeadLimits, HeadReader, Progress, ResponseReader};
use pyrotee::outbound::desk::{Desk, Limits};
use pyrotee::profile::labels::{LabelLimits, LabelRules};
use pyrotee::profile::proto::{LabelPair, PushRequest, RawProfileSeries, RawSample};
use pyrotee::profile::push::splice;
use pyrotee::profile::rewriter::{NAMES_MAX, Rewriter};
use pyrotee::profile::route::Route;
use pyrotee::runtime::clock::Mono;

/// How often each case runs while it is counted; the script knows it too.
const ROUNDS: usize = 200;

/// What the Go SDK sends.
const REQUEST: &[u8] = b"POST /ingest?aggregationType=sum&from=1700000000&name=checkout.cpu%7Benv%3Dprod%2Cregion%3Deu%7D\
    &sampleRate=100&spyName=gospy&units=samples&until=1700000010 HTTP/1.1\r\n\
    Host: pyroscope.example:4040\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 16384\r\n\
    Content-Type: multipart/form-data; boundary=5d2f0a91c2f4a7f3d0a2cbb7a0c6f1f29a7c4e9b\r\nAccept-Encoding: gzip\r\n\r\n";
/// What Pyroscope answers.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nVary: Accept-Encoding\r\nDate: Sun, 22 Nov 2026 21:00:00 GMT\r\nContent-Length: 0\r\n\r\n";

fn main() {
    let mut head = HeadReader::new(HeadLimits::default());
    let mut answer = ResponseReader::new(HeadLimits::for_responses());
    let rules = Arc::new(LabelRules::new(Vec::new()).expect("no labels are good labels"));
    let mut rewriter = Rewriter::new(rules.clone(), LabelLimits::default());
    let query = query();
    let mut out = Vec::with_capacity(4096);
    let escaped = [&b"name=a&x="[..], &b"+%c3%A9a".repeat(500)].concat();
    let body = Bytes::from(push_request().encode_to_vec());
    let mut crossing = Crossing::new();
    for rounds in [1, ROUNDS] {
        case_request_head(&mut head, rounds);
        case_response_head(&mut answer, rounds);
        case_query_known(&mut rewriter, query, &mut out, rounds);
        case_query_new(&mut rewriter, &mut out, rounds);
        case_query_escaped(&mut rewriter, &escaped, &mut out, rounds);
        case_splice(&body, &rules, rounds);
        case_crossing(&mut crossing, rounds);
    }
    crossing.check();
}

#[inline(never)]
fn case_request_head(reader: &mut HeadReader, rounds: usize) {
    for _ in 0..rounds {
        reader.reset();
        match reader.read(black_box(REQUEST)) {
            Ok(Progress::Complete(head)) => assert_eq!(head.framing, Framing::Length(16384)),
            other => panic!("{other:?}"),
        }
    }
}

#[inline(never)]
fn case_response_head(reader: &mut ResponseReader, rounds: usize) {
    for _ in 0..rounds {
        reader.reset();
        match reader.read(black_box(ANSWER)) {
            Ok(Progress::Complete(head)) => assert!(head.status == 200 && head.keep_alive),
            other => panic!("{other:?}"),
        }
    }
}

#[inline(never)]
fn case_query_known(rewriter: &mut Rewriter, query: &[u8], out: &mut Vec<u8>, rounds: usize) {
    for _ in 0..rounds {
        out.clear();
        rewriter.rewrite(black_box(query), out).expect("a good query");
        assert!(out.starts_with(b"aggregationType=sum&from=1700000000&name=checkout.cpu%7B"));
    }
}

/// Names never seen before: understood by the label rules, then remembered.
#[inline(never)]
fn case_query_new(rewriter: &mut Rewriter, out: &mut Vec<u8>, rounds: usize) {
    const { assert!(ROUNDS < NAMES_MAX) };
    let mut query = *b"name=checkout.000%7Benv%3Dprod%2Cregion%3Deu%7D&from=1700000000&until=1700000010";
    for round in 0..rounds {
        let digits = [round / 100, round / 10, round].map(|digit| b'0' + (digit % 10) as u8);
        query[14..17].copy_from_slice(&digits);
        query[5] = if rounds == 1 { b'C' } else { b'c' }; // the first run knows none of these names
        out.clear();
        rewriter.rewrite(black_box(&query), out).expect("a good query");
    }
}

/// 4 KiB of escapes: what a query of 1 MiB may be made of, which holds a core for as long as it takes.
#[inline(never)]
fn case_query_escaped(rewriter: &mut Rewriter, query: &[u8], out: &mut Vec<u8>, rounds: usize) {
    for _ in 0..rounds {
        out.clear();
        rewriter.rewrite(black_box(query), out).expect("a good query");
        assert!(out.ends_with(b"+%C3%A9a"));
    }
}

#[inline(never)]
fn case_splice(body: &Bytes, rules: &LabelRules, rounds: usize) {
    for _ in 0..rounds {
        let spliced = splice(
            black_box(std::slice::from_ref(body)),
            rules,
            &LabelLimits::default(),
        );
        assert_eq!(spliced.expect("a good push").series, 1);
    }
}

/// From an understood push to two concluded parcels: queues, budgets, desks, tickets, the client's verdict.
#[inline(never)]
fn case_crossing(crossing: &mut Crossing, rounds: usize) {
    for round in 0..rounds {
        let now = Mono(1_000_000 + round as u64);
        let push = Arc::new(Push::new(parts(now), AckMode::All, 2));
        crossing.fanout.offer(black_box(&push)).expect("room");
        for (gate, desk) in &mut crossing.desks {
            desk.accept(gate, now);
            let parcel = desk.next(now, 0.5).expect("the parcel just offered");
            gate.begin_attempt();
            gate.end_attempt();
            desk.conclude(parcel, Outcome::Delivered);
        }
    }
}

struct Crossing {
    fanout: Fanout,
    desks: Vec<(&'static Gate, Desk)>,
}

impl Crossing {
    fn new() -> Self {
        let gates: Vec<&'static Gate> = (0..2)
            .map(|id| &*Box::leak(Box::new(Gate::new(DestinationId(id), format!("d{id}"), 64 << 20))))
            .collect();
        let limits = Limits {
            max_age: Duration::from_secs(3600),
            min_backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(300),
            max_retries: 10,
            inflight: 64,
            answers_wait: true,
        };
        let desks = gates
            .iter()
            .map(|gate| (*gate, Desk::new(limits, Mono(1))))
            .collect();
        Self {
            fanout: Fanout::new(gates, Overflow::DropOldest),
            desks,
        }
    }

    fn check(&self) {
        for (gate, _) in &self.desks {
            let books = gate.books();
            assert!(
                books.balance() && books.delivered.parcels == ROUNDS as u64 + 1,
                "{books:?}"
            );
        }
    }
}

fn parts(now: Mono) -> PushParts {
    PushParts {
        route: Route::Ingest,
        query: Bytes::from_static(b"name=checkout.cpu"),
        fields: Bytes::new(),
        segments: std::iter::once(Bytes::from_static(b"body")).collect(),
        bytes: 4,
        profile_bytes: 4,
        profiles: 1,
        accepted: now,
        accepted_unix_ms: 0,
        client_deadline: Mono::NEVER,
        pinned_bytes: 4,
        charge: None,
    }
}

fn query() -> &'static [u8] {
    let start = REQUEST.iter().position(|byte| *byte == b'?').expect("a query") + 1;
    let len = REQUEST[start..]
        .iter()
        .position(|byte| *byte == b' ')
        .expect("its end");
    &REQUEST[start..start + len]
}

fn push_request() -> PushRequest {
    let label = |name: &str, value: &str| LabelPair {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    PushRequest {
        series: vec![RawProfileSeries {
            labels: vec![
                label("__name__", "process_cpu"),
                label("service_name", "checkout"),
                label("region", "eu-west-1"),
                label("pod", "checkout-7f9c-1"),
            ],
            samples: vec![RawSample {
                raw_profile: vec![0x5a; 16 << 10].into(),
                id: "4b3ba2a6-0d23-4d3c-8c8d-0d2f9a1c7e55".to_owned(),
            }],
            annotations: Vec::new(),
        }],
    }
}
