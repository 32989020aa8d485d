//! What a client is told: from a result to an answer in the client's own protocol. Carriers write it.
//!
//! | dress | success | refusal |
//! |---|---|---|
//! | none (`/ingest`) | empty 200 | a status and a sentence |
//! | Connect | 200 with an empty message | the code's status, JSON |
//! | gRPC-Web | message frame, trailers frame | 200, `Grpc-Status` among the headers |
//! | gRPC | message frame; the carrier adds the trailer `grpc-status: 0` | as gRPC-Web |

use super::understand::{Dress, Refusal};
use crate::http::{Answer, Connection, reason_phrase};
use crate::profile::connect::{self, ACCEPT_POST, Code, Protocol};
use crate::profile::grpc_web;

/// Hands the answer to `result` to `write`. `head_only`: the request was a HEAD.
pub fn answer<R>(
    dress: Option<Dress>,
    result: &Result<(), Refusal>,
    head_only: bool,
    connection: Connection,
    write: impl FnOnce(&Answer<'_>) -> R,
) -> R {
    match (dress, result) {
        (None, Ok(())) => write(&Answer::empty(200, connection)),
        (None, Err(refusal)) => plain(refusal, head_only, connection, write),
        (Some(dress), Ok(())) if dress.codec.protocol() == Protocol::Connect => {
            connect_success(dress, connection, write)
        }
        (Some(dress), Ok(())) => grpc_success(dress, connection, write),
        (Some(dress), Err(refusal)) if dress.codec.protocol() == Protocol::Connect => {
            connect_error(refusal, connection, write)
        }
        (Some(dress), Err(refusal)) => {
            let (code, message, _) = coded(refusal);
            grpc_error(dress, code, &message, connection, write)
        }
    }
}

fn connect_success<R>(dress: Dress, connection: Connection, write: impl FnOnce(&Answer<'_>) -> R) -> R {
    let body = connect::success_body(dress.codec.is_json(), dress.gzip_answer);
    let headers: &[(&str, &str)] = match dress.gzip_answer {
        true => &[("Accept-Encoding", "gzip"), ("Content-Encoding", "gzip")],
        false => &[("Accept-Encoding", "gzip")],
    };
    write(&Answer {
        content_type: Some(dress.codec.as_str()),
        headers,
        body: &body,
        ..Answer::empty(200, connection)
    })
}

fn connect_error<R>(refusal: &Refusal, connection: Connection, write: impl FnOnce(&Answer<'_>) -> R) -> R {
    let (code, message, retry_after) = coded(refusal);
    let mut body = Vec::new();
    connect::write_error(code, &message, &mut body);
    write(&Answer {
        content_type: Some("application/json"),
        headers: &[("Accept-Encoding", "gzip")],
        retry_after_secs: retry_after,
        body: &body,
        ..Answer::empty(code.http_status(), connection)
    })
}

fn grpc_success<R>(dress: Dress, connection: Connection, write: impl FnOnce(&Answer<'_>) -> R) -> R {
    let (is_json, gzip) = (dress.codec.is_json(), dress.gzip_answer);
    let body = match dress.codec.protocol() {
        Protocol::GrpcWeb => grpc_web::success_frames(is_json, gzip),
        _ => grpc_web::success_frame(is_json, gzip),
    };
    let headers: &[(&str, &str)] = match gzip {
        true => &[("Grpc-Accept-Encoding", "gzip"), ("Grpc-Encoding", "gzip")],
        false => &[("Grpc-Accept-Encoding", "gzip")],
    };
    write(&Answer {
        content_type: Some(dress.codec.as_str()),
        headers,
        body: &body,
        ..Answer::empty(200, connection)
    })
}

/// An error in gRPC, or gRPC-Web: all of it in the headers.
pub fn grpc_error<R>(
    dress: Dress,
    code: Code,
    message: &str,
    connection: Connection,
    write: impl FnOnce(&Answer<'_>) -> R,
) -> R {
    let (number, message) = (code.grpc_number().to_string(), grpc_web::percent_encode(message));
    let headers = [
        ("Grpc-Encoding", "gzip"),
        ("Grpc-Accept-Encoding", "gzip"),
        ("Grpc-Status", &number),
        ("Grpc-Message", &message),
    ];
    write(&Answer {
        content_type: Some(dress.codec.as_str()),
        headers: &headers[usize::from(!dress.gzip_answer)..],
        ..Answer::empty(200, connection)
    })
}

/// A refusal in plain HTTP.
fn plain<R>(
    refusal: &Refusal,
    head_only: bool,
    connection: Connection,
    write: impl FnOnce(&Answer<'_>) -> R,
) -> R {
    let text;
    let answer = match refusal {
        Refusal::NotFound => Answer::not_found(connection),
        Refusal::MethodNotAllowed => Answer::method_not_allowed(connection),
        Refusal::PostOnly => Answer {
            headers: &[("Allow", "POST")],
            ..Answer::method_not_allowed(connection)
        },
        Refusal::Redirect(location) => Answer::moved(location, connection),
        Refusal::UnsupportedMediaType => Answer {
            headers: &[("Accept-Post", ACCEPT_POST)],
            ..Answer::empty(415, connection)
        },
        Refusal::Because {
            status,
            message,
            retry_after,
            ..
        } => {
            text = format!("{message}\n");
            let answer = Answer::text(*status, text.as_bytes(), connection);
            Answer {
                retry_after_secs: *retry_after,
                ..answer
            }
        }
        Refusal::Relayed { status, .. } => {
            text = format!("{}\n", reason_phrase(*status));
            Answer::text(*status, text.as_bytes(), connection)
        }
        Refusal::Unanswered => Answer::text(500, b"Failed to process request\n", connection),
    };
    write(&if head_only { answer.for_head() } else { answer })
}

/// A refusal as a Connect or gRPC error: code, message, and when to come back.
fn coded(refusal: &Refusal) -> (Code, String, Option<u64>) {
    match refusal {
        Refusal::Because {
            code,
            message,
            retry_after,
            ..
        } => (*code, message.clone(), *retry_after),
        Refusal::Relayed { status, code } => {
            let code = code.unwrap_or_else(|| Code::from_http_status(*status));
            (code, format!("a destination answered {status}"), None)
        }
        Refusal::Unanswered => (Code::Unavailable, "no destination answered".into(), None),
        other => (Code::Unknown, other.reason().replace('_', " "), None),
    }
}
