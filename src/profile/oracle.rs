//! The slow twin of the splice: decode with `prost`, edit, encode. Written straight from WIRE.md 2.3, 2.4
//! and 3.6 on maps of strings, sharing nothing with `push` and `labels`, so that tests and fuzzers can
//! compare the two. Never called by the gateway.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use crate::profile::labels::{LabelLimits, LabelRules};
use crate::profile::proto::{LabelPair, PushRequest, RawProfileSeries};
use crate::profile::push::{PushError, Spliced, splice};

/// What the splice must produce: the request to send, and the indices of the series left out.
pub(crate) fn edit(
    request: PushRequest,
    rules: &LabelRules,
    limits: &LabelLimits,
) -> (PushRequest, Vec<u32>) {
    let mut edited = PushRequest::default();
    let mut rejected = Vec::new();
    for (index, series) in request.series.into_iter().enumerate() {
        match edit_labels(&series.labels, rules, limits) {
            Some(labels) => {
                edited.series.push(RawProfileSeries {
                    labels,
                    samples: series.samples,
                    annotations: vec![],
                });
            }
            None => rejected.push(index as u32),
        }
    }
    (edited, rejected)
}

fn edit_labels(pairs: &[LabelPair], rules: &LabelRules, limits: &LabelLimits) -> Option<Vec<LabelPair>> {
    if pairs.len() > limits.count_max {
        return None;
    }
    let mut labels = BTreeMap::new();
    for LabelPair { name, value } in pairs {
        if name.len() > limits.name_bytes_max || value.len() > limits.value_bytes_max {
            return None;
        }
        if value.is_empty() {
            labels.remove(name);
        } else {
            labels.insert(name.clone(), value.clone());
        }
    }
    let app = labels.get("__name__").cloned();
    match (labels.contains_key("service_name"), app) {
        (true, Some(app)) => drop(labels.insert("app_name".into(), app)),
        (true, None) => drop(labels.remove("app_name")),
        (false, Some(app)) => drop(labels.insert("service_name".into(), app)),
        (false, None) => {}
    }
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    if labels.is_empty()
        || labels
            .keys()
            .any(|name| name.is_empty() || !name.chars().all(good))
    {
        return None;
    }
    labels.retain(|name, _| !name.starts_with("__") || name == "__name__" || name == "__delta__");
    for (name, value) in rules.external() {
        if value.is_empty() {
            labels.remove(name);
        } else {
            labels.insert(name.clone(), value.clone());
        }
    }
    Some(
        labels
            .into_iter()
            .map(|(name, value)| LabelPair { name, value })
            .collect(),
    )
}

/// Compares the splice of `body` with the oracle, byte for byte. Panics on a difference.
///
/// `prost` is stricter than Go on wire types and group depth, so what it refuses is only run, not compared.
pub(crate) fn compare(
    body: &[Bytes],
    rules: &LabelRules,
    limits: &LabelLimits,
) -> Result<Spliced, PushError> {
    let spliced = splice(body, rules, limits);
    let whole = body.concat();
    let decoded = PushRequest::decode(&*whole);
    let (Ok(spliced), Ok(request)) = (&spliced, decoded.as_ref()) else {
        let malformed = matches!(spliced, Err(PushError::Malformed(_)));
        assert!(
            !(malformed && decoded.is_ok()),
            "prost reads what the splice calls {spliced:?}"
        );
        return spliced;
    };
    let (edited, rejected) = edit(request.clone(), rules, limits);
    assert_eq!(
        spliced.segments.concat(),
        edited.encode_to_vec(),
        "the splice is what an encoder would write"
    );
    let samples = || edited.series.iter().flat_map(|series| &series.samples);
    assert_eq!(spliced.bytes, edited.encoded_len() as u64);
    assert_eq!(spliced.series as usize, edited.series.len());
    assert_eq!(spliced.profiles as usize, samples().count());
    assert_eq!(
        spliced.raw_bytes,
        samples()
            .map(|sample| sample.raw_profile.len() as u64)
            .sum::<u64>()
    );
    assert_eq!(spliced.rejected_count as usize, rejected.len());
    let listed: Vec<u32> = spliced.rejected.iter().map(|series| series.index).collect();
    assert_eq!(listed, rejected[..listed.len()]);
    Ok(spliced.clone())
}
