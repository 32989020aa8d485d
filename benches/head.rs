//! Request heads: our reader beside `httparse`, on heads as real SDKs send them.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pyrotee::http::{HeadLimits, HeadReader, Progress};

/// What the Go SDK sends to `/ingest`.
const INGEST: &[u8] = b"POST /ingest?aggregationType=&from=1700000000&name=checkout.cpu%7Benv%3Dprod%2Cregion%3Deu%7D\
    &sampleRate=100&spyName=gospy&units=&until=1700000010 HTTP/1.1\r\n\
    Host: pyroscope.example:4040\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 16384\r\n\
    Content-Type: multipart/form-data; boundary=5d2f0a91c2f4a7f3d0a2cbb7a0c6f1f29a7c4e9b\r\nAccept-Encoding: gzip\r\n\r\n";
/// What Alloy sends to the Push procedure.
const PUSH: &[u8] = b"POST /push.v1.PusherService/Push HTTP/1.1\r\nHost: pyroscope.example:4040\r\n\
    User-Agent: Alloy/v1.10.0\r\nContent-Length: 16384\r\nAccept-Encoding: gzip\r\nConnect-Protocol-Version: 1\r\n\
    Connect-Timeout-Ms: 9999\r\nContent-Type: application/proto\r\nX-Alloy-Id: 4b3ba2a6-0d23-4d3c-8c8d-0d2f9a1c7e55\r\n\
    X-Scope-OrgID: team\r\nTraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n";

fn heads(criterion: &mut Criterion) {
    for (name, head) in [("ingest", INGEST), ("push", PUSH)] {
        let mut group = criterion.benchmark_group(format!("head/{name}"));
        group.throughput(Throughput::Bytes(head.len() as u64));
        let mut reader = HeadReader::new(HeadLimits::default());
        assert_eq!(ours(&mut reader, head), (head.len(), Some(16384)));
        assert_eq!(theirs(head), (head.len(), Some(16384)));
        group.bench_function("pyrotee", |bencher| {
            bencher.iter(|| ours(&mut reader, black_box(head)));
        });
        group.bench_function("httparse", |bencher| {
            bencher.iter(|| theirs(black_box(head)));
        });
        group.finish();
    }
}

/// Length of the head and of the body it announces.
fn ours(reader: &mut HeadReader, head: &[u8]) -> (usize, Option<u64>) {
    reader.reset();
    match reader.read(head) {
        Ok(Progress::Complete(read)) => match read.framing {
            pyrotee::http::Framing::Length(bytes) => (read.bytes, Some(bytes)),
            pyrotee::http::Framing::Chunked => (read.bytes, None),
        },
        _ => (0, None),
    }
}

/// The same answer from `httparse`, which leaves framing to its caller.
fn theirs(head: &[u8]) -> (usize, Option<u64>) {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(bytes)) => {
            let length = request
                .headers
                .iter()
                .find(|field| field.name.eq_ignore_ascii_case("content-length"))
                .and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
            (bytes, length)
        }
        _ => (0, None),
    }
}

criterion_group!(benches, heads);
criterion_main!(benches);
