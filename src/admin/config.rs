//! The effective plan as JSON for `/-/config`: what the flags became, and what follows from it.
//!
//! Secrets are not shown because their type does not serialise them; nothing is filtered here. Durations are written as an
//! operator writes them, sizes in bytes.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Observed;

/// The plan and the bounds that follow from it.
pub fn effective(observed: &Observed) -> Value {
    let in_force = observed.in_force.load();
    let plan = &in_force.plan;
    let mut shown = serde_json::to_value(&**plan).unwrap_or(Value::Null);
    write_durations(&mut shown);
    if let Value::Object(fields) = &mut shown {
        fields.insert(
            "log_level".into(),
            plan.log_level.to_string().to_ascii_lowercase().into(),
        );
        fields.insert(
            "engine".into(),
            format!("{:?}", plan.engine).to_ascii_lowercase().into(),
        );
    }
    let destinations = in_force.destinations.iter().map(|listed| {
        let destination = &listed.plan;
        let derived = json!({
            "owner_core": listed.core,
            "connections_max": destination.inflight,
            "window_parcels_min": 1,
            "window_parcels_max": destination.inflight,
            "queue_bytes_max": destination.queue_limit,
            "leaving": listed.is_leaving,
        });
        (destination.name.clone(), derived)
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "plan": shown,
        "derived": {
            "engine": observed.engine.engine.to_string(),
            "engine_reason": observed.engine.reason,
            "inbound_cores": plan.inbound_cores(),
            "bounds": plan.bounds().into_iter().map(|(what, bound)| (what.to_owned(), bound.into())).collect::<Map<_, _>>(),
            "body_memory_bytes_max": observed.memory.limit(),
            "client_connections_max": observed.connections.limit(),
            "destination_connections_max": plan.destinations.iter().map(|one| one.inflight).sum::<usize>(),
            "destinations": destinations.collect::<Map<_, _>>(),
        },
    })
}

/// Turns serde's `{"secs": 1, "nanos": 0}` into `"1s"`, everywhere. The plan is a few levels deep.
fn write_durations(value: &mut Value) {
    match value {
        Value::Object(fields) => match (fields.get("secs").and_then(Value::as_u64), fields.get("nanos")) {
            (Some(secs), Some(nanos)) if fields.len() == 2 => {
                let nanos = nanos
                    .as_u64()
                    .and_then(|nanos| u32::try_from(nanos).ok())
                    .unwrap_or(0);
                *value = format!("{:?}", Duration::new(secs, nanos)).into();
            }
            _ => fields.values_mut().for_each(write_durations),
        },
        Value::Array(items) => items.iter_mut().for_each(write_durations),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_with_their_unit() {
        let mut value =
            json!({"a": Duration::from_millis(1500), "b": [Duration::from_secs(30)], "c": {"secs": 1}});
        write_durations(&mut value);
        assert_eq!(value, json!({"a": "1.5s", "b": ["30s"], "c": {"secs": 1}}));
    }
}
