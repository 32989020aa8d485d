//! `/ingest` queries: parsing, the label rules, and writing the outgoing query, in all and in parts.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use pyrotee::profile::ingest::rewrite_query;
use pyrotee::profile::labels::{LabelLimits, LabelRules};
use pyrotee::profile::query::Query;

const FEW: &[u8] = b"name=checkout.cpu&from=1700000000&until=1700000010";
const FEW_OUT: &str = "from=1700000000&name=checkout.cpu%7Bservice_name%3Dcheckout.cpu%7D&until=1700000010";
const USUAL: &[u8] =
    b"aggregationType=sum&from=1700000000&name=checkout.cpu%7Benv%3Dprod%2Cregion%3Deu%2Cpod%3Dcheckout-7f9c\
    %7D&sampleRate=100&spyName=gospy&units=samples&until=1700000010&format=pprof";
const USUAL_OUT: &str = "aggregationType=sum&format=pprof&from=1700000000&name=checkout.cpu%7Benv%3Dprod%2Cpod%3Dcheckout-7f9c\
    %2Cregion%3Deu%2Cservice_name%3Dcheckout.cpu%7D&sampleRate=100&spyName=gospy&units=samples&until=1700000010";

fn queries(criterion: &mut Criterion) {
    let limits = LabelLimits::default();
    let plain = LabelRules::new(Vec::new()).expect("no labels are good labels");
    let external = vec![
        ("cluster".to_owned(), "eu-1".to_owned()),
        ("env".to_owned(), "edge".to_owned()),
    ];
    let external = LabelRules::new(external).expect("two good labels");
    let mut group = criterion.benchmark_group("labels");
    let mut out = Vec::with_capacity(1024);
    for (name, query, rules, expected) in [
        ("rewrite/few", FEW, &plain, Some(FEW_OUT)),
        ("rewrite/usual", USUAL, &plain, Some(USUAL_OUT)),
        ("rewrite/usual with external labels", USUAL, &external, None),
    ] {
        rewrite_query(query, rules, &limits, &mut out).expect("a good query");
        let text = std::str::from_utf8(&out).expect("an escaped query is ASCII");
        match expected {
            Some(expected) => assert_eq!(text, expected),
            None => assert!(
                text.contains("cluster%3Deu-1") && text.contains("env%3Dedge"),
                "{text}"
            ),
        }
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                rewrite_query(black_box(query), rules, &limits, &mut out).expect("a good query");
                out.len()
            });
        });
        out.clear();
    }
    let mut query = Query::default();
    query.parse(USUAL);
    assert_eq!(query.first(b"spyName"), Some(&b"gospy"[..]));
    group.bench_function("parse/usual", |bencher| {
        bencher.iter(|| {
            query.clear();
            query.parse(black_box(USUAL));
            query.first(b"name").map(<[u8]>::len)
        });
    });
    group.finish();
}

criterion_group!(benches, queries);
criterion_main!(benches);
