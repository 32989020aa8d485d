//! Push bodies: the splice beside decode, edit, encode with `prost`. The splice's cost must not grow with the samples.

use std::collections::BTreeMap;
use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use prost::Message as _;
use pyrotee::profile::labels::{LabelLimits, LabelRules};
use pyrotee::profile::proto::{LabelPair, PushRequest, RawProfileSeries, RawSample};
use pyrotee::profile::push::splice;

fn splices(criterion: &mut Criterion) {
    let rules = LabelRules::new(Vec::new()).expect("no labels are good labels");
    let limits = LabelLimits::default();
    let mut group = criterion.benchmark_group("splice");
    for (name, series, sample_bytes) in [
        ("1 series of 1 KiB", 1, 1 << 10),
        ("1 series of 16 KiB", 1, 16 << 10),
        ("1 series of 1 MiB", 1, 1 << 20),
        ("20 series of 16 KiB", 20, 16 << 10),
    ] {
        let body = Bytes::from(request(series, sample_bytes).encode_to_vec());
        let spliced = splice(std::slice::from_ref(&body), &rules, &limits).expect("a good push");
        let joined: Vec<u8> = spliced.segments.concat();
        assert_eq!(joined, decode_edit_encode(&body), "the two ways agree");
        assert_eq!(spliced.bytes, joined.len() as u64);
        group.bench_with_input(BenchmarkId::new("pyrotee", name), &body, |bencher, body| {
            bencher.iter(|| splice(black_box(std::slice::from_ref(body)), &rules, &limits));
        });
        group.bench_with_input(BenchmarkId::new("prost", name), &body, |bencher, body| {
            bencher.iter(|| decode_edit_encode(black_box(body)));
        });
    }
    group.finish();
}

fn request(series: usize, sample_bytes: usize) -> PushRequest {
    let label = |name: &str, value: String| LabelPair {
        name: name.to_owned(),
        value,
    };
    let one = |number: usize| RawProfileSeries {
        labels: vec![
            label("__name__", "process_cpu".to_owned()),
            label("service_name", format!("checkout-{number}")),
            label("region", "eu-west-1".to_owned()),
            label("pod", format!("checkout-7f9c-{number}")),
        ],
        samples: vec![RawSample {
            raw_profile: vec![0x5a; sample_bytes].into(),
            id: "4b3ba2a6-0d23-4d3c-8c8d-0d2f9a1c7e55".to_owned(),
        }],
        annotations: Vec::new(),
    };
    PushRequest {
        series: (0..series).map(one).collect(),
    }
}

/// What a gateway without a splice does (WIRE.md 2.3, 2.4 for a series that has a service_name).
fn decode_edit_encode(body: &Bytes) -> Vec<u8> {
    let mut request = PushRequest::decode(body.clone()).expect("a good push");
    for series in &mut request.series {
        let labels = series.labels.drain(..).map(|label| (label.name, label.value));
        let mut labels: BTreeMap<String, String> = labels.collect();
        if let Some(name) = labels.get("__name__").cloned() {
            labels.insert("app_name".to_owned(), name);
        }
        series.labels = labels
            .into_iter()
            .map(|(name, value)| LabelPair { name, value })
            .collect();
    }
    request.encode_to_vec()
}

criterion_group!(benches, splices);
criterion_main!(benches);
