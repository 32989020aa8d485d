//! `POST /-/reload`: the operator's wish to read the configuration again, and how such wishes went.
//!
//! Not responsible for what a reload does; the request is passed on, and its answer is passed back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::http::header::{ORIGIN, REFERER};
use axum::http::{HeaderMap, StatusCode};
use tokio::sync::{mpsc, oneshot};

use crate::runtime::clock;

/// Reloads that may wait for their turn.
pub const WAITING_MAX: usize = 8;

/// How reloads went so far.
#[derive(Debug)]
pub struct Reloads {
    successful: AtomicBool,
    succeeded_unix_ms: AtomicU64,
    applied: AtomicU64,
    refused: AtomicU64,
}

impl Reloads {
    /// None yet: the plan of the start is in force since `unix_ms`.
    pub fn begin(unix_ms: u64) -> Self {
        Self {
            successful: AtomicBool::new(true),
            succeeded_unix_ms: AtomicU64::new(unix_ms),
            applied: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Notes how one went.
    pub fn note(&self, successful: bool) {
        self.successful.store(successful, Ordering::Relaxed);
        if successful {
            let now = u64::try_from(clock::unix_now().as_millis()).unwrap_or(u64::MAX);
            self.succeeded_unix_ms.store(now, Ordering::Relaxed);
            self.applied.fetch_add(1, Ordering::Relaxed);
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the latest plan that was asked for is in force.
    pub fn is_successful(&self) -> bool {
        self.successful.load(Ordering::Relaxed)
    }

    /// When that last was so, in milliseconds since the unix epoch.
    pub fn succeeded_unix_ms(&self) -> u64 {
        self.succeeded_unix_ms.load(Ordering::Relaxed)
    }

    /// How many there were, by result.
    pub fn counts(&self) -> [(&'static str, u64); 2] {
        [("applied", &self.applied), ("refused", &self.refused)]
            .map(|(result, count)| (result, count.load(Ordering::Relaxed)))
    }
}

/// What a reload came to, for whoever asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Sentences, one a line.
    pub text: String,
}

/// A wish, and where its answer goes.
pub type Wish = oneshot::Sender<Answer>;

/// Where wishes go; without anybody who fulfils them there is no reload.
pub type Wishes = mpsc::Sender<Wish>;

/// Passes a request on and waits for its answer.
pub async fn ask(wishes: Option<&Wishes>, headers: &HeaderMap) -> Answer {
    let say = |status: StatusCode, text: &str| Answer {
        status: status.as_u16(),
        text: text.to_owned(),
    };
    // Any page that a browser on this machine shows could send a POST here; what browsers send with it tells.
    if is_from_a_page(headers) {
        return say(
            StatusCode::FORBIDDEN,
            "a reload is not for web pages; use curl -X POST, or send SIGHUP\n",
        );
    }
    let (answer, answered) = oneshot::channel();
    match wishes.map(|wishes| wishes.try_send(answer)) {
        Some(Ok(())) => answered.await.unwrap_or_else(|_| {
            say(
                StatusCode::SERVICE_UNAVAILABLE,
                "the gateway is shutting down; nothing was read\n",
            )
        }),
        Some(Err(mpsc::error::TrySendError::Full(_))) => say(
            StatusCode::SERVICE_UNAVAILABLE,
            "other reloads wait already; try again later\n",
        ),
        Some(Err(mpsc::error::TrySendError::Closed(_))) | None => say(
            StatusCode::SERVICE_UNAVAILABLE,
            "the gateway reads nothing again now\n",
        ),
    }
}

fn is_from_a_page(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) || headers.contains_key(REFERER) || headers.contains_key("sec-fetch-site")
}
