//! What an answer means: the outcome table of DESIGN.md section 6. Pure.

use std::time::Duration;

use crate::fanout::{DropReason, Outcome};
use crate::profile::connect::{self, Code};
use crate::profile::route::Route;

/// A destination's answer, as far as we look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`, if there was one.
    pub content_type: Option<Vec<u8>>,
    /// `Retry-After`, read.
    pub retry_after: Option<Duration>,
    /// `Location`, if there was one.
    pub location: Option<Vec<u8>>,
    /// The first bytes of its body (at most [`BODY_BYTES_KEPT`]).
    pub body: Vec<u8>,
}

/// Bytes of an answer's body that are looked at, as in Alloy (WIRE.md 4.2).
pub const BODY_BYTES_KEPT: usize = 2048;

/// What to do after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It has it.
    Delivered,
    /// Try again, not before this wait; if no attempt is left, give up with the status.
    Retry {
        /// `Retry-After`.
        after: Option<Duration>,
        /// The Connect code, if it spoke Connect.
        code: Option<Code>,
    },
    /// Send the same to the `Location` (307, 308).
    Follow,
    /// It will never take it.
    GiveUp(Outcome),
}

/// What the operator says about answers that could be taken either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leniency {
    /// Whether a rate limit is retried.
    pub retry_on_http_429: bool,
    /// Whether 307 and 308 are followed.
    pub follow_redirects: bool,
}

/// The request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its route.
    pub route: Route,
    /// The `Content-Type` of a Push, which a Connect server repeats.
    pub content_type: Option<&'a [u8]>,
}

/// Decides what `reply` to `asked` means.
pub fn classify(asked: Asked<'_>, reply: &Reply, leniency: Leniency) -> Decision {
    let (status, route) = (reply.status, asked.route);
    let code = match route {
        Route::Ingest => None,
        Route::Push => {
            let is_cut = reply.body.len() >= BODY_BYTES_KEPT;
            connect::error_code(status, reply.content_type.as_deref(), &reply.body, is_cut)
        }
    };
    let give_up = |reason| Decision::GiveUp(Outcome::Answered { status, code, reason });
    let retry = Decision::Retry {
        after: reply.retry_after,
        code,
    };
    let is_limit = match (code, status) {
        (Some(code), _) => code == Code::ResourceExhausted,
        (None, 429) => true,
        (None, 422) => says_resource_exhausted(&reply.body),
        _ => false,
    };
    if is_limit {
        return if leniency.retry_on_http_429 {
            retry
        } else {
            give_up(DropReason::Rejected)
        };
    }
    if let Some(code) = code {
        return if is_retryable(code) {
            retry
        } else {
            give_up(refusal(status))
        };
    }
    match status {
        // Anything else at 200 than what was asked in is no Pyroscope: a login page, another server (row 119).
        200 if route == Route::Push && !is_same_type(reply.content_type.as_deref(), asked.content_type) => {
            retry
        }
        200..=299 => Decision::Delivered,
        307 | 308 if leniency.follow_redirects && names_a_place(reply) => Decision::Follow,
        300..=399 => give_up(DropReason::Redirected),
        408 => retry,
        501 => give_up(DropReason::Rejected),
        500..=599 => retry,
        _ => give_up(refusal(status)),
    }
}

/// An empty `Location` is none, as in Go: it would lead to where it came from.
fn names_a_place(reply: &Reply) -> bool {
    reply
        .location
        .as_ref()
        .is_some_and(|location| !location.is_empty())
}

fn refusal(status: u16) -> DropReason {
    if matches!(status, 401 | 403 | 407) {
        DropReason::Unauthorized
    } else {
        DropReason::Rejected
    }
}

fn is_retryable(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Unknown
            | Code::DataLoss
    )
}

/// Whether two content types are the same but for case and parameters.
fn is_same_type(one: Option<&[u8]>, other: Option<&[u8]>) -> bool {
    fn essence(value: &[u8]) -> &[u8] {
        let parameters = value.iter().position(|byte| *byte == b';');
        value[..parameters.unwrap_or(value.len())].trim_ascii()
    }
    match (one, other) {
        (Some(one), Some(other)) => essence(one).eq_ignore_ascii_case(essence(other)),
        _ => false,
    }
}

/// Pyroscope answered a rate limit on `/ingest` with 422 until 2026-07 (USERS.md section 2).
fn says_resource_exhausted(body: &[u8]) -> bool {
    memchr::memmem::find(body, b"resource_exhausted").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, content_type: &str, body: &str) -> Reply {
        Reply {
            status,
            content_type: (!content_type.is_empty()).then(|| content_type.as_bytes().to_vec()),
            location: Some(b"/x".to_vec()),
            body: body.as_bytes().to_vec(),
            ..Reply::default()
        }
    }

    const LENIENT: Leniency = Leniency {
        retry_on_http_429: true,
        follow_redirects: true,
    };

    fn asked(route: Route) -> Asked<'static> {
        let content_type: Option<&[u8]> = (route == Route::Push).then_some(b"application/proto");
        Asked { route, content_type }
    }

    fn word(route: Route, reply: &Reply) -> &'static str {
        word_of(classify(asked(route), reply, LENIENT))
    }

    fn word_of(decision: Decision) -> &'static str {
        match decision {
            Decision::Delivered => "delivered",
            Decision::Retry { .. } => "retry",
            Decision::Follow => "follow",
            Decision::GiveUp(Outcome::Answered { reason, .. }) => reason.label(),
            Decision::GiveUp(_) => "?",
        }
    }

    #[test]
    fn ingest_statuses() {
        for (statuses, expected) in [
            (&[200u16, 201, 202, 204, 299][..], "delivered"),
            (&[408, 429, 500, 502, 503, 504, 599], "retry"),
            (&[400, 404, 405, 409, 413, 415, 422, 499, 501], "rejected"),
            (&[401, 403, 407], "unauthorized"),
            (&[300, 301, 302, 303, 304], "redirected"),
            (&[307, 308], "follow"),
        ] {
            for status in statuses {
                assert_eq!(
                    word(Route::Ingest, &reply(*status, "text/plain", "no")),
                    expected,
                    "{status}"
                );
            }
        }
    }

    #[test]
    fn a_redirect_to_nowhere_is_not_followed() {
        for location in [None, Some(Vec::new())] {
            let reply = Reply {
                location,
                ..reply(308, "", "")
            };
            for route in [Route::Ingest, Route::Push] {
                assert_eq!(word(route, &reply), "redirected", "{reply:?}");
            }
        }
    }

    #[test]
    fn an_old_rate_limit_is_retried() {
        let body = r#"{"code":"resource_exhausted","message":"limit"}"#;
        assert_eq!(
            word(Route::Ingest, &reply(422, "application/json", body)),
            "retry"
        );
    }

    #[test]
    fn the_operator_may_be_strict() {
        let strict = Leniency {
            retry_on_http_429: false,
            follow_redirects: false,
        };
        let exhausted = r#"{"code":"resource_exhausted","message":"m"}"#;
        for (route, status, content_type, body, expected) in [
            (Route::Ingest, 429, "text/plain", "slow down", "rejected"),
            (Route::Ingest, 422, "application/json", exhausted, "rejected"),
            (Route::Push, 429, "text/plain", "slow down", "rejected"),
            (Route::Push, 429, "application/json", exhausted, "rejected"),
            (Route::Ingest, 503, "text/plain", "no", "retry"),
            (Route::Ingest, 307, "", "", "redirected"),
            (Route::Push, 308, "", "", "redirected"),
        ] {
            let decision = classify(asked(route), &reply(status, content_type, body), strict);
            assert_eq!(word_of(decision), expected, "{route:?} {status}");
        }
    }

    #[test]
    fn push_without_connect_goes_by_status() {
        for (status, expected) in [
            (400, "rejected"),
            (401, "unauthorized"),
            (404, "rejected"),
            (413, "rejected"),
            (429, "retry"),
            (502, "retry"),
        ] {
            assert_eq!(
                word(Route::Push, &reply(status, "text/plain", "no")),
                expected,
                "{status}"
            );
        }
        assert_eq!(
            word(Route::Push, &reply(200, "application/proto", "")),
            "delivered"
        );
        assert_eq!(word(Route::Push, &reply(202, "", "")), "delivered");
        assert_eq!(word(Route::Push, &reply(200, "text/html", "<html>")), "retry");
    }

    #[test]
    fn a_200_to_a_push_repeats_its_content_type() {
        for (sent, answered, expected) in [
            ("application/proto", "application/proto", "delivered"),
            ("application/proto", "Application/Proto ; x=y", "delivered"),
            ("application/proto", "application/json", "retry"),
            ("application/proto", "", "retry"),
            // --labels verbatim passes a JSON request on as it is.
            ("application/json; charset=utf-8", "application/json", "delivered"),
            ("application/json", "application/proto", "retry"),
            (
                "application/grpc-web+proto",
                "application/grpc-web+proto",
                "delivered",
            ),
        ] {
            let asked = Asked {
                route: Route::Push,
                content_type: Some(sent.as_bytes()),
            };
            let decision = classify(asked, &reply(200, answered, ""), LENIENT);
            assert_eq!(word_of(decision), expected, "{sent}: {answered}");
        }
    }

    #[test]
    fn push_with_connect_goes_by_code() {
        for (status, code, expected) in [
            (503, "unavailable", "retry"),
            (429, "resource_exhausted", "retry"),
            (409, "aborted", "retry"),
            (504, "deadline_exceeded", "retry"),
            (500, "internal", "retry"),
            (500, "unknown", "retry"),
            (500, "data_loss", "retry"),
            (400, "invalid_argument", "rejected"),
            (401, "unauthenticated", "unauthorized"),
            (403, "permission_denied", "unauthorized"),
            (404, "not_found", "rejected"),
            (409, "already_exists", "rejected"),
            (499, "canceled", "rejected"),
            (400, "failed_precondition", "rejected"),
            (400, "out_of_range", "rejected"),
            (501, "unimplemented", "rejected"),
        ] {
            let body = format!(r#"{{"code":"{code}","message":"m"}}"#);
            assert_eq!(
                word(Route::Push, &reply(status, "application/json", &body)),
                expected,
                "{code}"
            );
        }
    }
}
