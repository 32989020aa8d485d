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
        Route::Push => connect_code(reply),
    };
    let failure = match (route, status) {
        (Route::Ingest, 422) => ingest_failure(reply),
        _ => code,
    };
    let give_up = |reason| Decision::GiveUp(Outcome::Answered { status, code, reason });
    let retry = Decision::Retry {
        after: reply.retry_after,
        code,
    };
    let is_limit = match failure {
        Some(code) => code == Code::ResourceExhausted,
        None => status == 429,
    };
    if is_limit {
        return if leniency.retry_on_http_429 && !says_too_large(&reply.body) {
            retry
        } else {
            give_up(DropReason::Rejected)
        };
    }
    if let Some(code) = failure {
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

/// What the answer says went wrong: the message of an error as Pyroscope and Connect servers write them. Empty for any other answer,
/// a login page or a proxy's, and where it is about credentials: those may repeat what was sent to them.
pub fn words(reply: &Reply) -> String {
    match refusal(reply.status) {
        DropReason::Unauthorized => String::new(),
        _ if connect_code(reply).is_none() => String::new(),
        _ => connect::error_message(&reply.body),
    }
}

fn connect_code(reply: &Reply) -> Option<Code> {
    let is_cut = reply.body.len() >= BODY_BYTES_KEPT;
    connect::error_code(reply.status, reply.content_type.as_deref(), &reply.body, is_cut)
}

/// What a Pyroscope server's 422 to an `/ingest` says of the profile: on pprof and JFR that is its status for all that fails, so a
/// server that stops or starts says it too (seen with 1.21.1 and 2.2.1), and until 2026-07 it said it for a rate limit (USERS.md
/// section 2). Behind words of its own stands what failed, with its code:
///
/// ```text
/// {"code":"unknown","message":"pushing IngestInput-pprof failed push series with index 0 and id  failed: unknown: empty ring"}
/// {"code":"unknown","message":"pushing IngestInput-pprof failed push series with index 0 and id  failed: invalid_argument: ..."}
/// {"code":"unknown","message":"parsing IngestInput-pprof failed invalid_argument: ..."}
/// ```
/// `None` where it failed before it was pushed, or says nothing of the kind: then it is the profile's fault. What comes behind the
/// code has the client's own words in it and does not count.
fn ingest_failure(reply: &Reply) -> Option<Code> {
    if connect_code(reply) == Some(Code::ResourceExhausted) {
        return Some(Code::ResourceExhausted);
    }
    let message = behind(&reply.body, b"\"message\":\"")?;
    let what = message
        .starts_with(b"pushing IngestInput")
        .then(|| behind(message, b" failed: "))??;
    let name = &what[..memchr::memchr(b':', what)?];
    std::str::from_utf8(name).ok().and_then(Code::from_name)
}

/// What follows the first `words`.
fn behind<'a>(text: &'a [u8], words: &[u8]) -> Option<&'a [u8]> {
    memchr::memmem::find(text, words).map(|at| &text[at + words.len()..])
}

/// A Push above the server's own limit is `resource_exhausted` like a rate limit, in connect-go's words: it will be as large the
/// next time.
fn says_too_large(body: &[u8]) -> bool {
    let message = connect::error_message(body);
    message.starts_with("message size ") && message.contains(" is larger than configured max ")
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

    /// The words are those of Pyroscope 1.21.1 and 2.2.1, but for the first, which is an older one's.
    #[test]
    fn a_422_goes_by_what_failed() {
        let pushing = "pushing IngestInput-pprof failed push series with index 0 and id  failed: ";
        for (code, message, expected) in [
            ("resource_exhausted", "limit".to_owned(), "retry"),
            (
                "unknown",
                format!("{pushing}resource_exhausted: rate limit"),
                "retry",
            ),
            (
                "unknown",
                format!("{pushing}unknown: rpc error: code = Unavailable desc = service is unavailable"),
                "retry",
            ),
            ("unknown", format!("{pushing}unknown: empty ring"), "retry"),
            ("unknown", format!("{pushing}unavailable: stopping"), "retry"),
            (
                "unknown",
                format!("{pushing}invalid_argument: too old"),
                "rejected",
            ),
            // What a client writes in its labels decides nothing.
            (
                "unknown",
                format!("{pushing}invalid_argument: x=\\\"resource_exhausted failed: unknown: \\\" too old"),
                "rejected",
            ),
            (
                "unknown",
                format!("{pushing}a failure without a code"),
                "rejected",
            ),
            (
                "unknown",
                format!("parsing IngestInput-pprof failed invalid_argument: {pushing}unknown: x"),
                "rejected",
            ),
            (
                "unknown",
                "Unknown schema: resource_exhausted".to_owned(),
                "rejected",
            ),
        ] {
            let body = format!(r#"{{"code":"{code}","message":"{message}"}}"#);
            let cut = body.clone() + &" ".repeat(BODY_BYTES_KEPT);
            for body in [&body, &cut[..BODY_BYTES_KEPT]] {
                assert_eq!(
                    word(Route::Ingest, &reply(422, "application/json", body)),
                    expected,
                    "{body}"
                );
            }
            assert_ne!(
                word(Route::Ingest, &reply(400, "application/json", &body)),
                "retry",
                "{body}"
            );
        }
        assert_eq!(
            word(Route::Ingest, &reply(422, "text/plain", "resource_exhausted")),
            "rejected"
        );
    }

    #[test]
    fn only_an_error_of_a_pyroscope_server_has_words() {
        let error = r#"{"code":"unknown","message":"too old"}"#;
        for (status, content_type, body, expected) in [
            (422, "application/json", error, "too old"),
            (500, "application/json", error, "too old"),
            (500, "text/html", error, ""),
            (500, "application/json", "{\"message\":\"x\"}", ""),
            (401, "application/json", error, ""),
            (403, "application/json", error, ""),
            (407, "application/json", error, ""),
        ] {
            assert_eq!(
                words(&reply(status, content_type, body)),
                expected,
                "{status} {content_type}"
            );
        }
    }

    #[test]
    fn what_is_too_large_will_be_so_again() {
        let too_large = r#"{"code":"resource_exhausted","message":"message size 1195047 is larger than configured max 1048576"}"#;
        let limit = r#"{"code":"resource_exhausted","message":"rate limit: message size 7 is larger than configured max 3"}"#;
        for (body, expected) in [(too_large, "rejected"), (limit, "retry")] {
            assert_eq!(word(Route::Push, &reply(429, "application/json", body)), expected);
        }
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
