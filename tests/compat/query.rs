//! Rows 26 to 31 of WIRE.md section 9 and WIRE.md 2.6: how a query is read and written again.

use super::gateway::{Engine, Gateway, under_both_engines};
use super::scripted::{Scripted, decode};

under_both_engines!(
    rows_027_to_031_parameters,
    the_example_of_the_contract,
    too_many_parameters_are_none,
    vectors_of_net_url,
);

/// Sends a query as it is and returns what the destination gets.
fn forwarded(gateway: &Gateway, a: &Scripted, query: &[u8]) -> String {
    let before = a.received().len();
    let mut client = gateway.client();
    let request = [
        b"POST /ingest?",
        query,
        b" HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n",
    ]
    .concat();
    client.send(request).unwrap();
    let answer = client.receive().unwrap();
    assert_eq!(
        answer.status,
        200,
        "{}: {answer:?}",
        String::from_utf8_lossy(query)
    );
    a.newest(before + 1).query()
}

fn rows_027_to_031_parameters(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    const NAME: &str = "name=app%7Bservice_name%3Dapp%7D";
    for (row, query, before, after) in [
        (27, "z=1&name=app&b=2&a=3", "a=3&b=2&", "&z=1"),
        (27, "a=2&name=app&a=1&a=3", "a=2&a=1&a=3&", ""),
        (27, "b=1&B=2&name=app&_=3", "B=2&_=3&b=1&", ""),
        (27, "z&name=app&=v&&y=", "=v&", "&y=&z="),
        (27, "name=app&a=b=c", "a=b%3Dc&", ""),
        (28, "name=app&name=other&name={", "", ""),
        (28, "x=1&name=app&name=", "", "&x=1"),
        (28, "n%61me=%61pp", "", ""),
        (29, "name=app&s=a+b%20c", "", "&s=a+b+c"),
        (29, "name=app&s=~-_.", "", "&s=~-_."),
        (29, "name=app&s={}=,/", "", "&s=%7B%7D%3D%2C%2F"),
        (29, "name=app&s=%c3%a9%2f", "", "&s=%C3%A9%2F"),
        (29, "name=app&s=%00%ff%2B%25", "", "&s=%00%FF%2B%25"),
        (
            29,
            "name=app&s=!*'()@:$\"<>|\\^`[]",
            "",
            "&s=%21%2A%27%28%29%40%3A%24%22%3C%3E%7C%5C%5E%60%5B%5D",
        ),
        (29, "name=app&a%20b=1", "a+b=1&", ""),
        (30, "name=app&s=%zz&t=1", "", "&t=1"),
        (30, "name=app&s=%4&t=1", "", "&t=1"),
        (30, "name=app&%=1&t=1", "", "&t=1"),
        (31, "name=app&s=1;2&t=1", "", "&t=1"),
        (31, "name=app&s;x=1&t=1", "", "&t=1"),
        (31, "name=app&s=%3B", "", "&s=%3B"),
    ] {
        let expected = format!("{before}{NAME}{after}");
        assert_eq!(
            forwarded(&gateway, &a, query.as_bytes()),
            expected,
            "row {row}: {query}"
        );
    }
}

fn the_example_of_the_contract(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    assert_eq!(
        forwarded(&gateway, &a, b"until=2&from=1&name=app{z=1}&a=3&a=1&format=pprof"),
        "a=3&a=1&format=pprof&from=1&name=app%7Bservice_name%3Dapp%2Cz%3D1%7D&until=2"
    );
}

/// More than 10000 pieces: the whole query counts as empty, the name with it.
fn too_many_parameters_are_none(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let query = |pieces: usize| format!("name=app{}", "&x=1".repeat(pieces - 1));
    assert_eq!(
        forwarded(&gateway, &a, query(10_000).as_bytes())
            .matches("x=1")
            .count(),
        9999
    );
    let answer = gateway
        .client()
        .post(&format!("/ingest?{}", query(10_001)), &[], b"")
        .unwrap();
    assert_eq!(answer.status, 400);
}

/// What Go's `net/url` made of 984 queries (`tests/data/neturl`), sent behind a good name.
fn vectors_of_net_url(engine: Engine) {
    let a = Scripted::healthy();
    let gateway = Gateway::to(engine, &[&a], &[]);
    let text = include_str!("../data/neturl/vectors.json");
    let vectors: Vec<serde_json::Value> = serde_json::from_str(text).expect("the file is JSON");
    let mut client = gateway.client();
    let mut sent = 0;
    for vector in &vectors {
        let hex = vector["raw"].as_str().expect("hex");
        let raw: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
            .collect();
        // What cannot stand in a request line: no query there ends in these. A fragment is refused (docs/compatibility.md).
        if raw
            .iter()
            .any(|&byte| byte <= b' ' || byte == 0x7f || byte == b'#')
            || raw.len() > 4000
        {
            continue;
        }
        let mut request = b"POST /ingest?name=app&".to_vec();
        request.extend_from_slice(&raw);
        request.extend_from_slice(b" HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
        client.send(request).unwrap();
        let answer = client.receive().unwrap();
        let shown = String::from_utf8_lossy(&raw);
        assert_eq!(answer.status, 200, "{shown}: {answer:?}");
        sent += 1;
        let expected = with_name(vector["encoded"].as_str().expect("text"));
        assert_eq!(a.newest(sent).query(), expected, "{shown}");
    }
    assert!(sent > 500, "only {sent} of {} vectors can be sent", vectors.len());
}

/// An encoded query with its names replaced by the one that was in front of it.
fn with_name(encoded: &str) -> String {
    let pairs = encoded.split('&').filter(|pair| !pair.is_empty());
    let mut pairs: Vec<(Vec<u8>, &str)> = pairs
        .map(|pair| (decode(pair.split('=').next().unwrap_or_default()), pair))
        .filter(|(key, _)| key != b"name")
        .collect();
    pairs.push((b"name".to_vec(), "name=app%7Bservice_name%3Dapp%7D"));
    pairs.sort_by(|one, other| one.0.cmp(&other.0));
    let pairs: Vec<&str> = pairs.into_iter().map(|(_, pair)| pair).collect();
    pairs.join("&")
}
