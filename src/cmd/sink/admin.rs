//! A sink's second port: `GET /stats`, `GET` and `POST /faults`.
//!
//! Not responsible for what the numbers mean (`stats.rs`) or what faults can be asked for (`faults.rs`).

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::Sink;
use super::faults::{Faults, parse_line};

/// The routes of the port.
pub fn router(sink: Arc<Sink>) -> Router {
    Router::new()
        .route("/stats", get(stats))
        .route("/faults", get(show_faults).post(set_faults))
        .with_state(sink)
}

async fn stats(State(sink): State<Arc<Sink>>) -> impl IntoResponse {
    // Numbers and strings always serialize.
    let body = serde_json::to_string_pretty(&sink.stats()).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], body + "\n")
}

async fn show_faults(State(sink): State<Arc<Sink>>) -> String {
    format!("{:?}\n", sink.faults.load())
}

async fn set_faults(State(sink): State<Arc<Sink>>, line: String) -> (StatusCode, String) {
    match parse_line(&line) {
        Ok(args) => {
            sink.faults.store(Arc::new(Faults::new(&args)));
            (StatusCode::OK, String::new())
        }
        Err(complaint) => (StatusCode::BAD_REQUEST, complaint),
    }
}
