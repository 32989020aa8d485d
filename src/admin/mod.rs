//! The operator's view: metrics, health, the effective plan, and a status page, on a port of their own.
//!
//! ```text
//!  GET /            the status page            page, snapshot, history
//!  GET /metrics     every metric               metrics (the table), text (the two formats), process
//!  GET /-/healthy   alive                      200 as long as this thread turns
//!  GET /-/ready     takes pushes               200 while serving, 503 with the reason before that and from the first
//!                                              signal on
//!  GET /-/config    the effective plan         config; secrets are not in the plan's serialisation
//!  GET /-/status    what the page shows, JSON  snapshot
//!  POST /-/reload   read --config again        reload; done by who runs the gateway
//! ```
//! It is there before the gateway is: a start may have to read a long spool first. Until then all but health gets 503, which
//! says how far that is.
//!
//! Runs on the control plane (one tokio thread) and, but for passing a wish for a reload on, only reads: relaxed atomics of gates, tallies and budgets, and one
//! lock per destination that is otherwise taken on errors only. Nothing here can slow a core. It decides nothing; whether
//! a destination is up is for its writer core to say. Liveness and readiness never depend on destinations (USERS.md 1.7).

mod config;
pub mod history;
pub mod metrics;
mod page;
mod port;
mod process;
mod refusal;
pub mod reload;
mod show;
pub mod snapshot;
pub mod text;

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::header::{ACCEPT, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::watch;

use crate::config::{DestinationPlan, Plan};
use crate::fanout::Gate;
use crate::inbound::Connections;
use crate::inbound::tally::Tally;
use crate::runtime::clock;
use crate::runtime::engine::Verdict;
use crate::runtime::phase::{Phase, PhaseReceiver};
use crate::runtime::pool::MemoryBudget;
use history::History;
pub use port::Port;
pub use reload::Reloads;
use reload::Wishes;
use snapshot::Snapshot;

const TEXT: &str = "text/plain; charset=utf-8";
/// Between two samples for the rates and curves of the page.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// After the end has been announced, how long answers under way are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What is in force. A reload replaces it as a whole.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The destinations of the plan in its order, then those that leave.
    pub destinations: Vec<Listed>,
}

/// One destination that is there.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its entrance.
    pub gate: &'static Gate,
    /// What the operator asked for.
    pub plan: Arc<DestinationPlan>,
    /// The core that owns it; `None` for an archive.
    pub core: Option<usize>,
    /// Whether a reload has removed it, and it only gets what waits for it.
    pub is_leaving: bool,
}

/// What the admin port looks at. Everything in it is read, nothing written.
#[derive(Debug)]
pub struct Observed {
    /// The plan and its destinations.
    pub in_force: Arc<ArcSwap<InForce>>,
    /// How reloads went.
    pub reloads: Arc<Reloads>,
    /// The engine taken, and why.
    pub engine: Verdict,
    /// The counters of each inbound core.
    pub tallies: Vec<Arc<Tally>>,
    /// Client connections.
    pub connections: Arc<Connections>,
    /// Memory that bodies hold.
    pub memory: Arc<MemoryBudget>,
    /// How far the process is.
    pub phase: PhaseReceiver,
    /// When the process started, in milliseconds since the unix epoch.
    pub started_unix_ms: u64,
}

impl Observed {
    /// The phase as the operator reads it.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Time since the process started.
    pub fn uptime(&self) -> Duration {
        clock::uptime()
    }
}

/// What requests share: the observed and its recent past.
#[derive(Debug)]
struct Monitor {
    observed: Arc<Observed>,
    history: Mutex<History>,
    wishes: Option<Wishes>,
}

impl Monitor {
    /// Keeps a sample if the last one is old enough. Called by the ticker of [`serve`], and by requests, so that the
    /// first of them has a past too.
    fn sample(&self) {
        self.history
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .sample(&self.observed, clock::now(), SAMPLE_EVERY);
    }

    fn snapshot(&self) -> Snapshot {
        self.sample();
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        Snapshot::take(&self.observed, &history, clock::now(), clock::unix_now())
    }
}

/// What the admin port shows: what a start is at, and from then on the gateway.
#[derive(Debug)]
pub struct Front {
    at: watch::Receiver<String>,
    monitor: OnceLock<Arc<Monitor>>,
}

impl Front {
    /// Before there is a gateway. `at` has what the start is at, in words.
    pub fn new(at: watch::Receiver<String>) -> Arc<Self> {
        Arc::new(Self {
            at,
            monitor: OnceLock::new(),
        })
    }

    /// There is a gateway now. Wishes for a reload go to `wishes`.
    pub fn open(&self, observed: Arc<Observed>, wishes: Option<Wishes>) {
        let monitor = self.monitor.get_or_init(|| {
            Arc::new(Monitor {
                observed,
                history: Mutex::new(History::default()),
                wishes,
            })
        });
        monitor.sample();
    }
}

/// What most requests are about: the gateway. There is none while it starts.
struct Begun(Arc<Monitor>);

impl FromRequestParts<Arc<Front>> for Begun {
    type Rejection = Response;

    async fn from_request_parts(_: &mut Parts, front: &Arc<Front>) -> Result<Self, Response> {
        let monitor = front.monitor.get().cloned().map(Self);
        monitor.ok_or_else(|| {
            let text = format!("not ready: starting: {}\n", *front.at.borrow());
            (
                StatusCode::SERVICE_UNAVAILABLE,
                [(RETRY_AFTER, HeaderValue::from_static("1"))],
                with_type(TEXT, text),
            )
                .into_response()
        })
    }
}

/// Serves the admin `port` until `until` ends; answers under way then have a second to be finished.
///
/// At most 256 connections are served at a time, and one that is silent for a minute is closed, so a forgotten client
/// costs a bounded amount.
///
/// # Errors
/// When the listener cannot be used at all. Failing to accept a single connection is waited out.
pub async fn serve(
    port: Port,
    front: Arc<Front>,
    until: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (ending, ended) = tokio::sync::oneshot::channel();
    let until = async move {
        until.await;
        let _ = ending.send(());
    };
    let serving = axum::serve(port, routes(front.clone())).with_graceful_shutdown(until);
    let overdue = async move {
        // An error means that the server is gone, and this branch with it.
        let _ = ended.await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    tokio::select! {
        served = serving => served,
        () = overdue => Ok(()),
        () = tick(&front) => Ok(()),
    }
}

async fn tick(front: &Front) {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        if let Some(monitor) = front.monitor.get() {
            monitor.sample();
        }
    }
}

fn routes(front: Arc<Front>) -> Router {
    Router::new()
        .route("/", get(status_page))
        .route("/metrics", get(scrape))
        .route("/-/healthy", get(healthy))
        .route("/-/ready", get(ready))
        .route("/ready", get(ready))
        .route("/-/config", get(effective_config))
        .route("/-/status", get(status))
        .route("/-/reload", post(reload_config))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(axum::middleware::map_response(harden))
        .with_state(front)
}

async fn status_page(Begun(monitor): Begun) -> Response {
    let page = page::render(&monitor.snapshot());
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, page.content_security_policy),
    ];
    (headers, page.html).into_response()
}

async fn scrape(Begun(monitor): Begun, headers: HeaderMap) -> Response {
    let accepts = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let format = text::Format::negotiate(accepts);
    let body = metrics::scrape(&monitor.observed, format);
    with_type(format.content_type(), body)
}

async fn healthy() -> Response {
    plain(StatusCode::OK, "healthy\n")
}

async fn ready(Begun(monitor): Begun) -> Response {
    match monitor.observed.phase() {
        Phase::Serving => plain(StatusCode::OK, "ready\n"),
        Phase::Draining => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: shutting down, no new connections are taken and the queues are being emptied\n",
        ),
        Phase::GivingUp | Phase::Leaving => plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: shutting down, the drain timeout has passed\n",
        ),
    }
}

async fn effective_config(Begun(monitor): Begun) -> Response {
    json(&config::effective(&monitor.observed))
}

async fn status(Begun(monitor): Begun) -> Response {
    let snapshot = monitor.snapshot();
    json(&Status {
        page: page::Shown::new(&snapshot),
        snapshot,
    })
}

async fn reload_config(Begun(monitor): Begun, headers: HeaderMap) -> Response {
    let answer = reload::ask(monitor.wishes.as_ref(), &headers).await;
    let mut response = with_type(TEXT, answer.text);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// The answer of `/-/status`.
#[derive(serde::Serialize)]
struct Status {
    /// The numbers, for programs.
    #[serde(flatten)]
    snapshot: Snapshot,
    /// The same written out, for the status page.
    page: page::Shown,
}

async fn not_found() -> Response {
    plain(
        StatusCode::NOT_FOUND,
        "not found; this port has /, /metrics, /-/healthy, /-/ready, /-/config, /-/status and /-/reload\n",
    )
}

async fn not_allowed(uri: Uri) -> Response {
    let text = match uri.path() {
        "/-/reload" => "method not allowed; use POST\n",
        _ => "method not allowed; use GET or HEAD\n",
    };
    plain(StatusCode::METHOD_NOT_ALLOWED, text)
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    let mut response = with_type(TEXT, text);
    *response.status_mut() = status;
    response
}

fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => with_type("application/json", body),
        Err(error) => {
            tracing::error!(%error, "an admin page could not be written as JSON, please report it");
            plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "could not be written as JSON\n",
            )
        }
    }
}

fn with_type(content_type: &'static str, body: impl IntoResponse) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(content_type))], body).into_response()
}

/// Headers of every answer. The pages show live numbers of one process: nothing may keep, frame or reinterpret them.
async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static(
            "default-src 'none'; frame-ancestors 'none'",
        ));
    response
}
