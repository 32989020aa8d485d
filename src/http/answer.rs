//! What we write to clients.
//!
//! Responsible for: the bytes of an answer, and the answers that WIRE.md fixes. Not responsible for: when to
//! send which. Nothing a client sent can break out of a header: control bytes in values are replaced on the
//! way out.

use std::fmt::{self, Display};
use std::io::Write as _;

use super::head::{RequestHead, Version};

/// `200` with nothing in it, for every kind of connection: the fast path writes these bytes as they are.
pub fn ok(connection: Connection) -> &'static [u8] {
    match connection {
        Connection::KeepAlive => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        Connection::KeepAliveHttp10 => {
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"
        }
        Connection::Close => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    }
}

/// The interim answer that makes a client send its body (WIRE.md 5.2, RFC 9110 section 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It stays open, which needs no words on HTTP/1.1.
    KeepAlive,
    /// It stays open, and an HTTP/1.0 client must be told (RFC 9112 section 9.3).
    KeepAliveHttp10,
    /// We close it behind the answer.
    Close,
}

impl Connection {
    /// What the client asked for.
    pub fn after(head: &RequestHead) -> Self {
        match (head.keep_alive, head.version) {
            (true, Version::Http11) => Connection::KeepAlive,
            (true, Version::Http10) => Connection::KeepAliveHttp10,
            (false, _) => Connection::Close,
        }
    }
}

/// An answer to be written. A `Content-Length` is always written where one may be, so every answer can be
/// followed by another on the same connection.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// 200 to 599.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: Option<&'a str>,
    /// Further headers, written in order. Names are ours and must be tokens.
    pub headers: &'a [(&'a str, &'a str)],
    /// `Retry-After`, in seconds.
    pub retry_after_secs: Option<u64>,
    /// `Location`; bytes that may not stand in a URL are percent-encoded on the way out.
    pub location: Option<&'a [u8]>,
    /// The body; not written for 204 and 304.
    pub body: &'a [u8],
    /// The request was a HEAD: the head is written as for GET, the body is not.
    pub head_only: bool,
    /// What becomes of the connection.
    pub connection: Connection,
}

impl<'a> Answer<'a> {
    /// A status with an empty body: 405 as in WIRE.md 1.1 (without `Allow`), 202, 204 and so on.
    pub fn empty(status: u16, connection: Connection) -> Self {
        Answer {
            status,
            content_type: None,
            headers: &[],
            retry_after_secs: None,
            location: None,
            body: b"",
            head_only: false,
            connection,
        }
    }

    /// A plain text, the way Go's `http.Error` sends it; `text` ends in LF by custom.
    pub fn text(status: u16, text: &'a [u8], connection: Connection) -> Self {
        Answer {
            content_type: Some(TEXT_PLAIN),
            headers: &NO_SNIFF,
            body: text,
            ..Answer::empty(status, connection)
        }
    }

    /// 404 as in WIRE.md 1.1.
    pub fn not_found(connection: Connection) -> Self {
        Answer::text(404, b"404 page not found\n", connection)
    }

    /// 405 as in WIRE.md 1.1: empty, without `Allow`.
    pub fn method_not_allowed(connection: Connection) -> Self {
        Answer::empty(405, connection)
    }

    /// 301 as in WIRE.md 1.1: empty, with the cleaned path and the query kept by the caller.
    pub fn moved(location: &'a [u8], connection: Connection) -> Self {
        Answer {
            location: Some(location),
            ..Answer::empty(301, connection)
        }
    }

    /// 503: nothing can take the push now (DESIGN.md section 5); `text` ends in LF by custom.
    pub fn unavailable(text: &'a [u8], retry_after_secs: u64, connection: Connection) -> Self {
        Answer {
            retry_after_secs: Some(retry_after_secs),
            ..Answer::text(503, text, connection)
        }
    }

    /// The same answer to a HEAD.
    pub fn for_head(self) -> Self {
        Answer {
            head_only: true,
            ..self
        }
    }

    /// Appends the answer's bytes to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_head(out, self.body.len());
        if !self.head_only && may_have_body(self.status) {
            out.extend_from_slice(self.body);
        }
    }

    fn write_head(&self, out: &mut Vec<u8>, body_bytes: usize) {
        out.extend_from_slice(b"HTTP/1.1 ");
        put(out, format_args!("{:03} ", self.status));
        out.extend_from_slice(reason_phrase(self.status).as_bytes());
        out.extend_from_slice(b"\r\n");
        // Of a body that is not sent (a relayed 304) nothing is said, as in Go.
        if let Some(content_type) = self.content_type.filter(|_| may_have_body(self.status)) {
            put_header(out, "Content-Type", content_type);
        }
        for (name, value) in self.headers {
            put_header(out, name, value);
        }
        if let Some(seconds) = self.retry_after_secs {
            put(out, format_args!("Retry-After: {seconds}\r\n"));
        }
        if let Some(location) = self.location {
            out.extend_from_slice(b"Location: ");
            put_url(out, location);
            out.extend_from_slice(b"\r\n");
        }
        if may_have_body(self.status) {
            put(out, format_args!("Content-Length: {body_bytes}\r\n"));
        }
        match self.connection {
            Connection::KeepAlive => {}
            Connection::KeepAliveHttp10 => out.extend_from_slice(b"Connection: keep-alive\r\n"),
            Connection::Close => out.extend_from_slice(b"Connection: close\r\n"),
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends a plain text refusal whose text is a value to be displayed (an error, mostly) and an LF. The text
/// is displayed twice, once to know its length, so that no buffer is needed in between.
pub fn write_refusal(out: &mut Vec<u8>, status: u16, text: &dyn Display, connection: Connection) {
    let mut length = Length(0);
    // `Length` never fails, so an error could only be the value's own; its text then ends where it failed.
    let _ = fmt::Write::write_fmt(&mut length, format_args!("{text}\n"));
    Answer::text(status, b"", connection).write_head(out, length.0);
    let body_start = out.len();
    put(out, format_args!("{text}\n"));
    out.resize(body_start + length.0, b' ');
}

/// The phrase for a status, as in the table of Go's `net/http`; empty when that has none.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Request Entity Too Large",
        414 => "Request URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Requested Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}

/// Counts what is written to it.
struct Length(usize);

impl fmt::Write for Length {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        Ok(())
    }
}

/// RFC 9110 section 6.4.1.
fn may_have_body(status: u16) -> bool {
    !matches!(status, 100..=199 | 204 | 304)
}

fn put(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    // A `Vec` takes everything; only a failing `Display` could stop it, and what it wrote so far is kept.
    let _ = out.write_fmt(text);
}

fn put_header(out: &mut Vec<u8>, name: &str, value: &str) {
    debug_assert!(
        name.bytes().all(super::field::is_token_byte),
        "header names are tokens: {name:?}"
    );
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend(value.bytes().map(|byte| {
        if super::field::is_control(byte) {
            b' '
        } else {
            byte
        }
    }));
    out.extend_from_slice(b"\r\n");
}

/// Percent-encodes control bytes, spaces and everything beyond ASCII, and leaves the rest alone.
fn put_url(out: &mut Vec<u8>, url: &[u8]) {
    for &byte in url {
        if byte.is_ascii_graphic() {
            out.push(byte);
        } else {
            put(out, format_args!("%{byte:02X}"));
        }
    }
}

const TEXT_PLAIN: &str = "text/plain; charset=utf-8";

const NO_SNIFF: [(&str, &str); 1] = [("X-Content-Type-Options", "nosniff")];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HeadLimits, HeadReader, Progress, ResponseFraming, ResponseReader};

    fn written(answer: Answer<'_>) -> String {
        let mut out = b"before".to_vec();
        answer.write(&mut out);
        assert_eq!(&out[..6], b"before", "an answer is appended");
        String::from_utf8(out.split_off(6)).expect("the tests' answers are text")
    }

    /// `name: answer => bytes`; our own reader of responses must agree on where the answer ends.
    macro_rules! answers {
        ($($name:ident: $answer:expr => $expected:expr;)*) => {$(
            #[test]
            fn $name() {
                let answer: Answer<'_> = $answer;
                let text = written(answer);
                assert_eq!(text, $expected);
                let mut reader = ResponseReader::new(HeadLimits::for_responses());
                let Ok(Progress::Complete(head)) = reader.read(text.as_bytes()) else { panic!("not a response") };
                let rest = (text.len() - head.bytes) as u64;
                let expected = match head.framing {
                    ResponseFraming::Length(length) if !answer.head_only => length,
                    ResponseFraming::Length(_) | ResponseFraming::Empty => 0,
                    other => panic!("an answer of ours is framed as {other:?}"),
                };
                assert_eq!(rest, expected, "the body is as long as announced");
                assert_eq!(head.keep_alive, answer.connection != Connection::Close);
            }
        )*};
    }

    answers! {
        method_not_allowed: Answer::method_not_allowed(Connection::KeepAlive)
            => "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n";
        not_found: Answer::not_found(Connection::KeepAlive)
            => "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nContent-Length: 19\r\n\r\n404 page not found\n";
        not_found_for_head: Answer::not_found(Connection::Close).for_head()
            => "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nContent-Length: 19\r\nConnection: close\r\n\r\n";
        unavailable: Answer::unavailable(b"full\n", 7, Connection::KeepAlive)
            => "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nfull\n";
        moved: Answer::moved(b"/ingest?name=a", Connection::KeepAlive)
            => "HTTP/1.1 301 Moved Permanently\r\nLocation: /ingest?name=a\r\nContent-Length: 0\r\n\r\n";
        moved_encodes_what_could_break_out: Answer::moved(b"/a\r\nSet-Cookie: x\xff", Connection::KeepAlive)
            => "HTTP/1.1 301 Moved Permanently\r\nLocation: /a%0D%0ASet-Cookie:%20x%FF\r\nContent-Length: 0\r\n\r\n";
        headers_cannot_break_out: Answer { headers: &[("X", "a\r\nB: c")], ..Answer::empty(200, Connection::KeepAlive) }
            => "HTTP/1.1 200 OK\r\nX: a  B: c\r\nContent-Length: 0\r\n\r\n";
        no_content_has_no_length: Answer { body: b"ignored", ..Answer::empty(204, Connection::KeepAlive) }
            => "HTTP/1.1 204 No Content\r\n\r\n";
        unknown_status: Answer::empty(499, Connection::KeepAliveHttp10)
            => "HTTP/1.1 499 \r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n";
        // The ready bytes are what the general way writes.
        ok_keep_alive: Answer::empty(200, Connection::KeepAlive)
            => std::str::from_utf8(ok(Connection::KeepAlive)).expect("text");
        ok_keep_alive_http10: Answer::empty(200, Connection::KeepAliveHttp10)
            => std::str::from_utf8(ok(Connection::KeepAliveHttp10)).expect("text");
        ok_close: Answer::empty(200, Connection::Close)
            => std::str::from_utf8(ok(Connection::Close)).expect("text");
    }

    #[test]
    fn a_refusal_carries_the_text_of_its_error() {
        let mut reader = HeadReader::new(HeadLimits::default());
        let error = reader.read(b"GET / HTTP/2.0\r\n").expect_err("505");
        let mut out = Vec::new();
        write_refusal(&mut out, error.status(), &error, Connection::Close);
        let body = format!("{error}\n");
        let expected = Answer::text(505, body.as_bytes(), Connection::Close);
        assert_eq!(String::from_utf8_lossy(&out), written(expected));
    }

    #[test]
    fn the_interim_answer_is_one() {
        let mut reader = ResponseReader::new(HeadLimits::for_responses());
        let Ok(Progress::Complete(head)) = reader.read(CONTINUE) else {
            panic!("not a response")
        };
        assert_eq!(
            (head.status, head.bytes, head.framing),
            (100, CONTINUE.len(), ResponseFraming::Empty)
        );
    }

    #[test]
    fn connection_follows_the_request() {
        let cases = [
            ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", Connection::KeepAlive),
            (
                "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
                Connection::Close,
            ),
            ("GET / HTTP/1.0\r\n\r\n", Connection::Close),
            (
                "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
                Connection::KeepAliveHttp10,
            ),
        ];
        for (input, expected) in cases {
            let mut reader = HeadReader::new(HeadLimits::default());
            let Ok(Progress::Complete(head)) = reader.read(input.as_bytes()) else {
                panic!("refused: {input}")
            };
            assert_eq!(Connection::after(&head), expected, "{input}");
        }
    }
}
