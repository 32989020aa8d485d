//! The beginning of a TLS connection: from an accepted socket to one that has shaken hands, or to a last word and a counter.
//!
//! A client has `--read-timeout` from its first byte to the end of the handshake, and as long for its first byte; until
//! that comes it is idle and makes room for others. One that speaks HTTP in cleartext is told so in cleartext, as Go's
//! server does. A connection that closes without a word (a probe of a load balancer) is nobody's failure.

use std::rc::Rc;

use monoio::io::AsyncWriteRentExt;
use monoio::net::TcpStream;

use super::tally::{Closed, RouteLabel};
use super::{Inbound, PARTING_MAX, part_from};
use crate::http::{Answer, Connection, Method};
use crate::runtime::clock::{self, Mono};
use crate::runtime::stream::{Handshake, Shaken};
use crate::runtime::sweeper::{Ended, Expiry, Watch};
use crate::runtime::tls::server::ServerSide;
use crate::runtime::tls::{Session, TlsFailure};

/// The words of Go's `net/http`, which people search for.
const PLAIN_HTTP: &[u8] = b"Client sent an HTTP request to an HTTPS server.\n";
/// The metric label of those.
const PLAIN_HTTP_LABEL: &str = "http_on_tls_port";

/// Shakes hands with a client.
///
/// # Errors
/// Why it is not served; it has been told, and its refusal is counted.
pub async fn shake_hands(
    stream: TcpStream,
    inbound: &Rc<Inbound>,
    side: &ServerSide,
    watch: &Watch,
) -> Result<Shaken, Closed> {
    let limit = inbound.setup.plan.read_timeout;
    let session = match Session::server(side.config()) {
        Ok(session) => session,
        Err(failure) => {
            count(inbound, failure);
            return Err(Closed::Error);
        }
    };
    let mut handshake = Handshake::new(stream, session);
    let now = clock::now();
    watch.set_idle(now, now.after(limit));
    let first = handshake.first_bytes(watch.cancel_handle(false)).await;
    if !matches!(first, Ok(1..)) {
        return Err(match watch.ended() {
            Some(Ended::Deadline) => {
                count(inbound, TlsFailure::TimedOut);
                Closed::IdleTimeout
            }
            Some(Ended::MadeRoom) => Closed::MadeRoom,
            Some(Ended::ShutDown) => Closed::Shutdown,
            None => Closed::Client,
        });
    }
    watch.set_busy();
    let started = clock::now();
    watch.arm(started.after(limit), Expiry::Stop);
    if is_plain_http(handshake.received()) {
        tell_off(handshake.into_stream(), inbound, started).await;
        return Err(Closed::Error);
    }
    match handshake.complete().await {
        Ok(shaken) => {
            watch.disarm();
            Ok(shaken)
        }
        Err((failure, mut stream)) => {
            count(
                inbound,
                if watch.expired() {
                    TlsFailure::TimedOut
                } else {
                    failure
                },
            );
            let _ = monoio::time::timeout(PARTING_MAX, part_from(&mut stream)).await;
            Err(Closed::Error)
        }
    }
}

/// Whether a connection begins like a request line: no record of TLS begins with a letter (RFC 8446 section 5.1).
fn is_plain_http(received: &[u8]) -> bool {
    let start = &received[..received.len().min(4)];
    start.first().is_some_and(u8::is_ascii_uppercase)
        && start
            .iter()
            .all(|byte| byte.is_ascii_uppercase() || *byte == b' ')
}

async fn tell_off(mut stream: TcpStream, inbound: &Inbound, started: Mono) {
    let mut answer = Vec::new();
    Answer::text(400, PLAIN_HTTP, Connection::Close).write(&mut answer);
    let tally = &inbound.setup.tally;
    tally.refused(PLAIN_HTTP_LABEL);
    let took = clock::now().since(started);
    tally.answered(Method::Other, RouteLabel::Other, 400, took);
    let sending = async {
        let _ = stream.write_all(answer).await;
        part_from(&mut stream).await;
    };
    let _ = monoio::time::timeout(PARTING_MAX, sending).await;
}

fn count(inbound: &Inbound, failure: TlsFailure) {
    tracing::debug!(problem = %failure, "TLS handshake with a client failed");
    inbound.setup.tally.refused(failure.label());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_from_records() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], true),
            (b"POST /ingest", true),
            (b"PRI * HTTP/2.0", true),
            (b"PO", true),
            (b"\x16\x03\x01\x02\x00\x01", false),
            (b"\x80\x2e\x01", false),
            (b"hello", false),
            (b"G\x00\x00\x00", false),
            (b"", false),
        ] {
            assert_eq!(is_plain_http(bytes), expected, "{bytes:?}");
        }
    }
}
