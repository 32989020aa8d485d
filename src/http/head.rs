//! The head of a request: request line and fields, and what they say about the body and the connection.
//!
//! Responsible for: reading a head once, as it arrives, and refusing what is wrong or ambiguous. Not
//! responsible for: routes, decoding of the target, and any field that neither frames the body nor steers the
//! connection.
//!
//! States: leading blank lines and the request line are awaited; then fields, until the blank line; then the
//! head is handed out and the reader is ready for the next. An error stays until `reset`.

use memchr::memchr;

use super::field::{self, Facts, LineReader, check_text, token_len};

pub use super::body::Framing;
pub use super::field::{Field, Fields, FramingError, HeadLimits, LineError, Progress, Span};

/// Reads request heads from a growing buffer.
#[derive(Debug)]
pub struct HeadReader {
    lines: LineReader,
    /// Set once the request line was read.
    request_line: Option<RequestLine>,
    /// Blank lines seen before it.
    leading_lines: usize,
    facts: RequestFacts,
    failed: Option<HeadError>,
}

impl HeadReader {
    /// A reader at the start of a connection.
    pub fn new(limits: HeadLimits) -> Self {
        HeadReader {
            lines: LineReader::new(limits),
            request_line: None,
            leading_lines: 0,
            facts: RequestFacts::default(),
            failed: None,
        }
    }

    /// Looks at the bytes that came since the last call. `buf` begins where this message begins and holds all
    /// of it so far; after `Complete` the next call begins a new message, so `buf` then starts behind
    /// `RequestHead::bytes`. After an error every call answers the same error.
    pub fn read(&mut self, buf: &[u8]) -> Result<Progress<RequestHead>, HeadError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.step(buf);
        if let Err(error) = result {
            self.failed = Some(error);
        }
        result
    }

    /// Forgets the current message.
    pub fn reset(&mut self) {
        self.lines.reset();
        self.request_line = None;
        self.leading_lines = 0;
        self.facts = RequestFacts::default();
        self.failed = None;
    }

    fn step(&mut self, buf: &[u8]) -> Result<Progress<RequestHead>, HeadError> {
        if self.lines.is_fresh()
            && let Some(request_line) = self.read_whole(buf)
        {
            return self.finish(request_line).map(Progress::Complete);
        }
        if self.request_line.is_none() && buf.first() == Some(&TLS_HANDSHAKE) {
            return Err(HeadError::Tls);
        }
        while let Some(line) = self.lines.next(buf)? {
            match self.request_line {
                None if line.text.is_empty() => {
                    self.leading_lines += 1;
                    if self.leading_lines > LEADING_LINES_MAX {
                        return Err(HeadError::LeadingLines);
                    }
                }
                None => {
                    self.request_line = Some(parse_request_line(line.text, line.start)?);
                    self.lines.begin_fields();
                }
                Some(request_line) if line.text.is_empty() => {
                    return self.finish(request_line).map(Progress::Complete);
                }
                Some(request_line) => {
                    let field = self.lines.push_field(line)?;
                    self.facts.note(field, line.text, buf, request_line.version)?;
                }
            }
        }
        Ok(Progress::Partial)
    }

    /// The way of nearly every head, which is here whole when it is first looked at and has nothing odd about it. Any other
    /// leaves no trace and is read line by line, which says what is wrong: both ways read a good head alike.
    fn read_whole(&mut self, buf: &[u8]) -> Option<RequestLine> {
        let line = &buf[..memchr(b'\r', buf)?];
        if buf.get(line.len() + 1) != Some(&b'\n')
            || line.iter().fold(false, |bad, byte| bad | byte.is_ascii_control())
        {
            return None;
        }
        let request_line = split_request_line(line, 0).ok()?;
        let mut facts = RequestFacts::default();
        let is_good = self.lines.read_whole(buf, line.len() + 2, |field, text| {
            facts.note(field, text, buf, request_line.version).is_ok()
        });
        if !is_good {
            return None;
        }
        self.facts = facts;
        Some(request_line)
    }

    fn finish(&mut self, line: RequestLine) -> Result<RequestHead, HeadError> {
        let http11 = line.version == Version::Http11;
        let RequestFacts {
            facts,
            host,
            expect_continue,
        } = self.facts;
        if http11 && !host {
            return Err(HeadError::HostMissing);
        }
        let framing = if facts.chunked {
            Framing::Chunked
        } else {
            Framing::Length(facts.length.unwrap_or(0))
        };
        let (bytes, fields) = self.lines.finish();
        self.reset();
        Ok(RequestHead {
            bytes,
            method: line.method,
            target: line.target,
            version: line.version,
            fields,
            framing,
            keep_alive: facts.keep_alive(http11),
            expect_continue: expect_continue && http11 && framing != Framing::Length(0),
        })
    }
}

/// A good request head. Spans count from the start of the buffer that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Length of the head in bytes, leading blank lines and the final one included: the body begins here.
    pub bytes: usize,
    /// What to do.
    pub method: Method,
    /// With what.
    pub target: Target,
    /// 1.0 or 1.1.
    pub version: Version,
    /// All fields, in order.
    pub fields: Fields,
    /// Where the body ends.
    pub framing: Framing,
    /// Whether the client wants the connection kept (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body. False without a body and on
    /// HTTP/1.0 (RFC 9110 section 10.1.1).
    pub expect_continue: bool,
}

impl RequestHead {
    /// All values of a field in order; `name` is lower case.
    pub fn values<'b>(&self, buf: &'b [u8], name: &'static str) -> impl Iterator<Item = &'b [u8]> {
        field::values(&self.fields, buf, name)
    }

    /// The first value of a field; `name` is lower case.
    pub fn value<'b>(&self, buf: &'b [u8], name: &'static str) -> Option<&'b [u8]> {
        self.values(buf, name).next()
    }
}

/// The methods that routes tell apart. Methods are case-sensitive (RFC 9110 section 9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`: the answer has no body.
    Head,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `DELETE`
    Delete,
    /// `OPTIONS`
    Options,
    /// Any other token.
    Other,
}

/// What the request is for, still encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Begins with `/`, or is `*`. Never empty: where an absolute target has no path it points at a slash of
    /// its scheme.
    pub path: Span,
    /// The bytes behind the first `?`; `Some` of nothing when the target ends in it.
    pub query: Option<Span>,
}

/// The versions we speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Closes by default, has no chunked bodies.
    Http10,
    /// Keeps alive by default.
    Http11,
}

/// Why a request head was refused. The connection cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// A line's syntax or size.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The body's end is in doubt.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// The first byte opens a TLS handshake record (RFC 8446 section 5.1).
    #[error("this port speaks plain HTTP, not TLS; use an http:// URL")]
    Tls,
    /// More than `LEADING_LINES_MAX` blank lines before the request line.
    #[error("there are too many empty lines before the request; start with the request line")]
    LeadingLines,
    /// More or fewer than two spaces, or a space in the target (RFC 9112 section 3).
    #[error("the request line has too many spaces; write `METHOD /path HTTP/1.1` and encode spaces as %20")]
    RequestLineSpaces,
    /// RFC 9110 section 9.1: a method is a token.
    #[error("the method is malformed; send POST")]
    MethodInvalid,
    /// Two spaces with nothing in between.
    #[error("the request line has no target; write `METHOD /path HTTP/1.1`")]
    TargetEmpty,
    /// Neither a path, nor an absolute http(s) URL, nor `*` (RFC 9112 section 3.2).
    #[error("the target is neither a path nor an http URL; start it with `/`")]
    TargetForm,
    /// `*` is for OPTIONS alone (RFC 9112 section 3.2.4).
    #[error("the target * is for OPTIONS only; start the target with `/`")]
    TargetAsterisk,
    /// The authority of an absolute target is empty, has user information (RFC 9110 section 4.2.4) or bad
    /// bytes.
    #[error("the host in the target is malformed; send the path only")]
    TargetAuthority,
    /// Fragments stay with the client (RFC 9110 section 4.2.5); software differs on where a path with one
    /// ends.
    #[error("the target has a fragment; send the URL without `#` and what follows, or encode it as %23")]
    TargetFragment,
    /// HTTP/0.9, or a request line with one space only.
    #[error("the request line has no version; write `METHOD /path HTTP/1.1`")]
    VersionMissing,
    /// Not `HTTP/` digit `.` digit in upper case (RFC 9112 section 2.3).
    #[error("the version is malformed; write HTTP/1.1")]
    VersionInvalid,
    /// A version other than 1.0 and 1.1: 505.
    #[error("this HTTP version is not supported here; speak HTTP/1.1")]
    VersionUnsupported,
    /// The preface of HTTP/2 (RFC 9113 section 3.4).
    #[error("HTTP/2 in cleartext is not served here; use TLS, or let the operator set --h2c")]
    Http2,
    /// RFC 9112 section 3.2: 400 for HTTP/1.1 without Host.
    #[error("the Host header is missing; HTTP/1.1 needs one")]
    HostMissing,
    /// RFC 9112 section 3.2: 400 for more than one.
    #[error("the Host header is present more than once; send it once")]
    HostRepeated,
    /// RFC 9112 section 3.2: 400 for a value that is no host and port.
    #[error("the Host header is malformed; send a host name and, if needed, `:` and a port")]
    HostInvalid,
    /// RFC 9110 section 10.1.1: 417.
    #[error("the expectation cannot be met; send `Expect: 100-continue` or no Expect header")]
    ExpectUnknown,
}

impl HeadError {
    /// The status the client is refused with: 400, 417, 431, 501 or 505 (WIRE.md 5.2).
    pub fn status(&self) -> u16 {
        match self {
            Self::Line(error) => error.status(),
            Self::Framing(error) => error.status(),
            Self::ExpectUnknown => 417,
            Self::VersionUnsupported => 505,
            // WIRE.md 3.5: so Go's server answers it, and closes.
            Self::Http2 => 301,
            _ => 400,
        }
    }

    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Line(error) => error.label(),
            Self::Framing(error) => error.label(),
            Self::Tls => "tls_on_plain_port",
            Self::LeadingLines => "leading_lines",
            Self::RequestLineSpaces => "request_line_spaces",
            Self::MethodInvalid => "method_invalid",
            Self::TargetEmpty => "target_empty",
            Self::TargetForm => "target_form",
            Self::TargetAsterisk => "target_asterisk",
            Self::TargetAuthority => "target_authority",
            Self::TargetFragment => "target_fragment",
            Self::VersionMissing => "version_missing",
            Self::VersionInvalid => "version_invalid",
            Self::VersionUnsupported => "version_unsupported",
            Self::Http2 => "http2_in_cleartext",
            Self::HostMissing => "host_missing",
            Self::HostRepeated => "host_repeated",
            Self::HostInvalid => "host_invalid",
            Self::ExpectUnknown => "expect_unknown",
        }
    }
}

/// Body of the fuzz target for request heads: cuts change nothing, and all spans lie inside the head.
#[doc(hidden)]
pub fn fuzz_head(data: &[u8]) {
    for limits in [HeadLimits::default(), field::TIGHT_LIMITS] {
        if let Ok(Progress::Complete(head)) = check_head(data, 1 + data.len() / 64, limits) {
            field::check_fields(&head.fields, head.bytes);
            assert!(
                data[..head.bytes].ends_with(b"\r\n\r\n"),
                "a head ends in a blank line"
            );
            let path = head.target.path.of(&data[..head.bytes]);
            assert!(path == b"*" || path.starts_with(b"/"), "a path is rooted");
            if let Some(query) = head.target.query {
                let query = query.of(&data[..head.bytes]);
                assert!(
                    !query.contains(&b' ') && !query.contains(&b'#'),
                    "a query has no space and no fragment"
                );
            }
        }
    }
}

fn check_head(data: &[u8], stride: usize, limits: HeadLimits) -> Result<Progress<RequestHead>, HeadError> {
    field::check_cuts(
        data,
        stride,
        || HeadReader::new(limits),
        HeadReader::read,
        |head| head.bytes,
    )
}

#[derive(Clone, Copy, Debug)]
struct RequestLine {
    method: Method,
    target: Target,
    version: Version,
}

/// What the fields of a request said.
#[derive(Clone, Copy, Debug, Default)]
struct RequestFacts {
    facts: Facts,
    host: bool,
    expect_continue: bool,
}

impl RequestFacts {
    /// Looks at one field. Lengths first: most fields are none of ours.
    #[inline]
    fn note(&mut self, field: Field, line: &[u8], buf: &[u8], version: Version) -> Result<(), HeadError> {
        let name = field.name.of(buf);
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                if self.host {
                    return Err(HeadError::HostRepeated);
                }
                if !field.value.of(buf).iter().all(|&byte| is_host_byte(byte)) {
                    return Err(HeadError::HostInvalid);
                }
                self.host = true;
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !field.value.of(buf).eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadError::ExpectUnknown);
                }
                self.expect_continue = true;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => self.facts.note_connection(field.value.of(buf)),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                self.facts
                    .note_length(field.value.of(buf), &line[name.len()..], false)?;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let http11 = version == Version::Http11;
                self.facts
                    .note_transfer_encoding(field.value.of(buf), &line[name.len()..], http11)?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// `METHOD SP target SP version`; `at` is the line's offset in the buffer.
fn parse_request_line(line: &[u8], at: usize) -> Result<RequestLine, HeadError> {
    check_text(line)?;
    if memchr(b'\t', line).is_some() {
        return Err(LineError::ControlByte.into());
    }
    split_request_line(line, at)
}

/// [`parse_request_line`] of a line without control bytes.
#[inline]
fn split_request_line(line: &[u8], at: usize) -> Result<RequestLine, HeadError> {
    let method_len = token_len(line);
    match line.get(method_len) {
        Some(b' ') if method_len > 0 => {}
        Some(b' ') => return Err(HeadError::RequestLineSpaces),
        None => return Err(HeadError::VersionMissing),
        Some(_) => return Err(HeadError::MethodInvalid),
    }
    let method = parse_method(&line[..method_len]);
    let rest = &line[method_len + 1..];
    let target_len = memchr(b' ', rest).ok_or(HeadError::VersionMissing)?;
    let (target, version) = (&rest[..target_len], &rest[target_len + 1..]);
    let version = parse_version(version).map_err(|error| match line {
        _ if version.contains(&b' ') => HeadError::RequestLineSpaces,
        HTTP2_PREFACE_LINE => HeadError::Http2,
        _ => error,
    })?;
    let target = parse_target(target, at + method_len + 1, method)?;
    Ok(RequestLine {
        method,
        target,
        version,
    })
}

fn parse_method(method: &[u8]) -> Method {
    match method {
        b"POST" => Method::Post,
        b"GET" => Method::Get,
        b"HEAD" => Method::Head,
        b"PUT" => Method::Put,
        b"DELETE" => Method::Delete,
        b"OPTIONS" => Method::Options,
        _ => Method::Other,
    }
}

/// HTTP/1.2 and above do not exist; refusing them costs nobody anything (RFC 9110 section 2.5 would let us
/// guess).
fn parse_version(version: &[u8]) -> Result<Version, HeadError> {
    match version {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => Err(HeadError::VersionUnsupported),
        _ => Err(HeadError::VersionInvalid),
    }
}

/// A target without spaces and control bytes; `at` is its offset in the buffer.
fn parse_target(target: &[u8], at: usize, method: Method) -> Result<Target, HeadError> {
    if memchr(b'#', target).is_some() {
        return Err(HeadError::TargetFragment);
    }
    match target {
        [b'/', ..] => Ok(split_query(target, at)),
        [] => Err(HeadError::TargetEmpty),
        b"*" if method == Method::Options => Ok(Target {
            path: Span::new(at, at + 1),
            query: None,
        }),
        b"*" => Err(HeadError::TargetAsterisk),
        _ => parse_absolute(target, at),
    }
}

/// `http://authority/path?query` (RFC 9112 section 3.2.2).
fn parse_absolute(target: &[u8], at: usize) -> Result<Target, HeadError> {
    let authority_start = SCHEMES
        .iter()
        .find(|scheme| {
            target
                .get(..scheme.len())
                .is_some_and(|front| front.eq_ignore_ascii_case(scheme))
        })
        .map(|scheme| scheme.len())
        .ok_or(HeadError::TargetForm)?;
    let rest = &target[authority_start..];
    let authority_len = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_len);
    if !is_authority(authority) {
        return Err(HeadError::TargetAuthority);
    }
    let tail_at = at + authority_start + authority_len;
    let mut split = split_query(tail, tail_at);
    if split.path.len == 0 {
        // An empty path means `/`; the last byte of the scheme is one.
        split.path = Span::new(at + authority_start - 1, at + authority_start);
    }
    Ok(split)
}

/// `uri-host [":" port]` as Go takes it in a URL: a name without percent-escapes or an address in brackets, and a port of
/// digits, perhaps none.
fn is_authority(authority: &[u8]) -> bool {
    let (host, port, is_host): (_, _, fn(&u8) -> bool) = match authority.strip_prefix(b"[") {
        Some(rest) => match memchr(b']', rest) {
            Some(end) => (&rest[..end], &rest[end + 1..], is_address_byte),
            None => return false,
        },
        None => {
            let (host, port) = authority.split_at(memchr(b':', authority).unwrap_or(authority.len()));
            (host, port, is_name_byte)
        }
    };
    let is_port = matches!(port, [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit));
    !host.is_empty() && host.iter().all(is_host) && (port.is_empty() || is_port)
}

fn is_name_byte(byte: &u8) -> bool {
    is_host_byte(*byte) && !matches!(byte, b'%' | b'[' | b']')
}

fn is_address_byte(byte: &u8) -> bool {
    byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.')
}

/// Cuts at the first `?`.
fn split_query(target: &[u8], at: usize) -> Target {
    let end = at + target.len();
    match memchr(b'?', target) {
        Some(mark) => Target {
            path: Span::new(at, at + mark),
            query: Some(Span::new(at + mark + 1, end)),
        },
        None => Target {
            path: Span::new(at, end),
            query: None,
        },
    }
}

/// Bytes of `uri-host [":" port]` (RFC 3986 section 3.2.2): no `@`, no `/`, no list of hosts, no spaces.
fn is_host_byte(byte: u8) -> bool {
    HOST_BYTES[byte as usize]
}

const HOST_BYTES: [bool; 256] = field::alphanumerics_and(b"-._~%!$&'()*+;=:[]");

/// RFC 9112 section 2.2 wants at least one empty line ignored; old clients send a CRLF after a body.
const LEADING_LINES_MAX: usize = 4;

/// ContentType handshake, RFC 8446 section 5.1.
const TLS_HANDSHAKE: u8 = 0x16;

/// How a connection in HTTP/2 begins that was not agreed on by TLS (RFC 9113 section 3.4), up to its first CRLF.
const HTTP2_PREFACE_LINE: &[u8] = b"PRI * HTTP/2.0";

const SCHEMES: [&[u8]; 2] = [b"http://", b"https://"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree as _;

    use super::*;

    /// Reads `input` in every cut and describes what came out in one line.
    fn describe(input: &[u8], limits: HeadLimits) -> String {
        match check_head(input, 1, limits) {
            Err(error) => format!("{} {}", error.status(), error.label()),
            Ok(Progress::Partial) => "partial".to_owned(),
            Ok(Progress::Complete(head)) => {
                field::check_fields(&head.fields, head.bytes);
                let text = |span: Span| String::from_utf8_lossy(span.of(input)).into_owned();
                let mut words = vec![format!("{:?}", head.method), text(head.target.path)];
                words.extend(head.target.query.map(|query| format!("?{}", text(query))));
                words.extend((head.version == Version::Http10).then(|| "1.0".to_owned()));
                words.push(format!("{:?}", head.framing));
                words.push(if head.keep_alive { "keep" } else { "close" }.to_owned());
                words.extend(head.expect_continue.then(|| "expect".to_owned()));
                words.extend((head.bytes < input.len()).then(|| format!("+{}", input.len() - head.bytes)));
                words.join(" ")
            }
        }
    }

    /// `name: input => what describe says`, whole and in every cut.
    macro_rules! heads {
        ($($name:ident: $input:expr => $expected:expr;)*) => {$(
            #[test]
            fn $name() {
                let input: &[u8] = $input.as_ref();
                assert_eq!(describe(input, HeadLimits::default()), $expected, "{:?}", input.escape_ascii().to_string());
            }
        )*};
    }

    heads! {
        post_with_length: "POST /ingest?name=a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" => "Post /ingest ?name=a Length(5) keep +5";
        post_chunked: "POST /ingest HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" => "Post /ingest Chunked keep";
        chunked_any_case: "POST / HTTP/1.1\r\nhost:h\r\ntransfer-ENCODING:CHUNKED \r\n\r\n" => "Post / Chunked keep";
        get_without_body: "GET / HTTP/1.1\r\nHost: h\r\n\r\n" => "Get / Length(0) keep";
        method_head: "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n" => "Head / Length(0) keep";
        method_put: "PUT / HTTP/1.1\r\nHost: h\r\n\r\n" => "Put / Length(0) keep";
        method_delete: "DELETE / HTTP/1.1\r\nHost: h\r\n\r\n" => "Delete / Length(0) keep";
        method_options: "OPTIONS / HTTP/1.1\r\nHost: h\r\n\r\n" => "Options / Length(0) keep";
        method_other: "PATCH / HTTP/1.1\r\nHost: h\r\n\r\n" => "Other / Length(0) keep";
        method_lower_case_is_another: "post / HTTP/1.1\r\nHost: h\r\n\r\n" => "Other / Length(0) keep";
        method_empty: " / HTTP/1.1\r\nHost: h\r\n\r\n" => "400 request_line_spaces";
        method_not_token: "PO(ST / HTTP/1.1\r\nHost: h\r\n\r\n" => "400 method_invalid";
        method_alone: "POST\r\nHost: h\r\n\r\n" => "400 version_missing";
        http10_closes: "POST / HTTP/1.0\r\n\r\n" => "Post / 1.0 Length(0) close";
        http10_keep_alive: "POST / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n" => "Post / 1.0 Length(0) keep";
        http10_host_optional: "POST / HTTP/1.0\r\nHost: h\r\n\r\n" => "Post / 1.0 Length(0) close";
        http10_two_hosts: "POST / HTTP/1.0\r\nHost: h\r\nHost: h\r\n\r\n" => "400 host_repeated";
        http10_ignores_continue: "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n" => "Post / 1.0 Length(1) close";
        connection_close: "GET / HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n" => "Get / Length(0) close";
        connection_list: "GET / HTTP/1.1\r\nHost: h\r\nConnection: te ,\tclose , x\r\n\r\n" => "Get / Length(0) close";
        connection_close_wins: "GET / HTTP/1.0\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n" => "Get / 1.0 Length(0) close";
        connection_other_token: "GET / HTTP/1.1\r\nHost: h\r\nConnection: closed\r\n\r\n" => "Get / Length(0) keep";
        expect_with_body: "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n" => "Post / Length(1) keep expect";
        expect_chunked: "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n" => "Post / Chunked keep expect";
        expect_without_body: "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n" => "Post / Length(0) keep";
        expect_other: "POST / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\n\r\n" => "417 expect_unknown";
        expect_empty: "POST / HTTP/1.1\r\nHost: h\r\nExpect:\r\n\r\n" => "417 expect_unknown";
        query_empty: "GET /? HTTP/1.1\r\nHost: h\r\n\r\n" => "Get / ? Length(0) keep";
        query_second_mark: "GET /a?b?c HTTP/1.1\r\nHost: h\r\n\r\n" => "Get /a ?b?c Length(0) keep";
        target_double_slash: "GET //ingest HTTP/1.1\r\nHost: h\r\n\r\n" => "Get //ingest Length(0) keep";
        target_beyond_ascii: b"GET /\xc3\xa4?\xff HTTP/1.1\r\nHost: h\r\n\r\n" => "Get /\u{e4} ?\u{fffd} Length(0) keep";
        target_absolute: "POST http://h:80/ingest?name=a HTTP/1.1\r\nHost: h\r\n\r\n" => "Post /ingest ?name=a Length(0) keep";
        target_absolute_tls: "POST HTTPS://h/ingest HTTP/1.1\r\nHost: h\r\n\r\n" => "Post /ingest Length(0) keep";
        target_absolute_v6: "POST http://[::1]:4040/a HTTP/1.1\r\nHost: h\r\n\r\n" => "Post /a Length(0) keep";
        target_absolute_no_path: "GET http://h HTTP/1.1\r\nHost: h\r\n\r\n" => "Get / Length(0) keep";
        target_absolute_query_only: "GET http://h?a=/ HTTP/1.1\r\nHost: h\r\n\r\n" => "Get / ?a=/ Length(0) keep";
        target_absolute_no_host: "GET http:///a HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
        target_absolute_escape: "GET http://o%74her/a HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
        target_absolute_bad_port: "GET http://h:80x/a HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
        target_absolute_two_ports: "GET http://h:80:80/a HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
        target_absolute_scheme_twice: "GET http://h:1http://h/a HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
        target_absolute_open_bracket: "GET http://[::1/a HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
        target_absolute_behind_bracket: "GET http://[::1]x/a HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
        target_absolute_no_address: "GET http://[g]/a HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
        target_absolute_empty_port: "GET http://h:/a HTTP/1.1\r\nHost: h\r\n\r\n" => "Get /a Length(0) keep";
        target_absolute_port_only: "GET http://:80/a HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_authority";
        target_absolute_still_needs_host: "GET http://h/a HTTP/1.1\r\n\r\n" => "400 host_missing";
        target_other_scheme: "GET ftp://h/a HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_form";
        target_authority_form: "CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_form";
        target_relative: "GET ingest HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_form";
        target_asterisk: "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n" => "Options * Length(0) keep";
        target_asterisk_get: "GET * HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_asterisk";
        target_fragment: "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_fragment";
        target_fragment_in_query: "GET /a?b#c HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_fragment";
        target_empty: "GET  HTTP/1.1\r\nHost: h\r\n\r\n" => "400 target_empty";
        target_missing: "GET HTTP/1.1\r\nHost: h\r\n\r\n" => "400 version_missing";
        target_space: "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n" => "400 request_line_spaces";
        target_tab: "GET /a\tb HTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
        target_nul: "GET /a\0b HTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
        target_delete: "GET /a\x7fb HTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
        spaces_before_target: "GET  / HTTP/1.1\r\nHost: h\r\n\r\n" => "400 request_line_spaces";
        spaces_before_version: "GET /  HTTP/1.1\r\nHost: h\r\n\r\n" => "400 request_line_spaces";
        space_behind_version: "GET / HTTP/1.1 \r\nHost: h\r\n\r\n" => "400 request_line_spaces";
        tab_between: "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n" => "400 control_byte";
        version_09: "GET /\r\n\r\n" => "400 version_missing";
        version_20: "GET / HTTP/2.0\r\nHost: h\r\n\r\n" => "505 version_unsupported";
        version_20_preface: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" => "301 http2_in_cleartext";
        version_20_other: "PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n" => "505 version_unsupported";
        version_30: "GET / HTTP/3.0\r\nHost: h\r\n\r\n" => "505 version_unsupported";
        version_12: "GET / HTTP/1.2\r\nHost: h\r\n\r\n" => "505 version_unsupported";
        version_0_9: "GET / HTTP/0.9\r\nHost: h\r\n\r\n" => "505 version_unsupported";
        version_lower_case: "GET / http/1.1\r\nHost: h\r\n\r\n" => "400 version_invalid";
        version_without_minor: "GET / HTTP/2\r\nHost: h\r\n\r\n" => "400 version_invalid";
        version_two_digits: "GET / HTTP/1.10\r\nHost: h\r\n\r\n" => "400 version_invalid";
        version_leading_zero: "GET / HTTP/01.1\r\nHost: h\r\n\r\n" => "400 version_invalid";
        version_comma: "GET / HTTP/1,1\r\nHost: h\r\n\r\n" => "400 version_invalid";
        version_empty: "GET / \r\nHost: h\r\n\r\n" => "400 version_invalid";
        host_missing: "GET / HTTP/1.1\r\nA: b\r\n\r\n" => "400 host_missing";
        host_empty: "GET / HTTP/1.1\r\nHost:\r\n\r\n" => "Get / Length(0) keep";
        host_and_port: "GET / HTTP/1.1\r\nHost: [::1]:4040\r\n\r\n" => "Get / Length(0) keep";
        host_twice: "GET / HTTP/1.1\r\nHost: h\r\nhost: h\r\n\r\n" => "400 host_repeated";
        host_list: "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n" => "400 host_invalid";
        host_path: "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n" => "400 host_invalid";
        host_user: "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n" => "400 host_invalid";
        leading_blank_lines: "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n" => "Get / Length(0) keep";
        leading_blank_lines_at_bound: "\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n" => "Get / Length(0) keep";
        leading_blank_lines_many: "\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n" => "400 leading_lines";
        leading_bare_lf: "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n" => "400 bare_lf";
        leading_bare_cr: "\rGET / HTTP/1.1\r\nHost: h\r\n\r\n" => "400 bare_cr";
        tls_hello: b"\x16\x03\x01\x02\x00" => "400 tls_on_plain_port";
        value_trimmed_and_free: b"GET / HTTP/1.1\r\nHost: h\r\nX: \t a\tb \xff \t\r\nY:\r\n\r\n" => "Get / Length(0) keep";
        length_zero: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n" => "Post / Length(0) keep";
        length_largest: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9223372036854775807\r\n\r\n" => "Post / Length(9223372036854775807) keep";
        length_one_more: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9223372036854775808\r\n\r\n" => "400 content_length_overflow";
        length_leading_zeros: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0000000000000000000000005\r\n\r\n" => "Post / Length(5) keep";
        pipelined_leaves_the_rest: "GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\n" => "Get /a Length(0) keep +17";
        partial_empty: "" => "partial";
        partial_request_line: "POST /ing" => "partial";
        partial_fields: "POST / HTTP/1.1\r\nHost: h\r\n" => "partial";
        partial_last_byte: "POST / HTTP/1.1\r\nHost: h\r\n\r" => "partial";
        refused_before_the_head_ends: "GET / HTTP/2.0\r\n" => "505 version_unsupported";
    }

    const SMALL: HeadLimits = HeadLimits {
        request_line_bytes_max: 16,
        header_block_bytes_max: 20,
        header_count_max: 3,
    };

    /// Like `heads`, against `SMALL`.
    macro_rules! limits {
        ($($name:ident: $input:expr => $expected:expr;)*) => {$(
            #[test]
            fn $name() {
                assert_eq!(describe($input.as_bytes(), SMALL), $expected);
            }
        )*};
    }

    limits! {
            // "GET /x HTTP/1.1\r\n" is 17 bytes. "Host:\r\n" is 7, "A: 345678\r\n" 11, the blank line 2.
            request_line_at_bound: "GET / HTTP/1.1\r\nHost:\r\n\r\n" => "Get / Length(0) keep";
            request_line_above: "GET /x HTTP/1.1\r\nHost:\r\n\r\n" => "431 start_line_too_long";
            request_line_above_unfinished: "GET /xxxxxxxxxxx" => "431 start_line_too_long";
            request_line_below_unfinished: "GET /xxxxxxxxxx" => "partial";
            blank_lines_count_apart: "\r\n\r\nGET / HTTP/1.1\r\nHost:\r\n\r\n" => "Get / Length(0) keep";
    block_at_bound: "GET / HTTP/1.1\r\nHost:\r\nA: 345678\r\n\r\n" => "Get / Length(0) keep";
            block_above: "GET / HTTP/1.1\r\nHost:\r\nA: 3456789\r\n\r\n" => "431 headers_too_long";
            block_at_bound_unfinished: "GET / HTTP/1.1\r\nHost:\r\nA: 345678\r\n\r" => "partial";
            block_above_without_end: "GET / HTTP/1.1\r\nHost:\r\nA: 34567890\r\n" => "431 headers_too_long";
            block_unfinished: "GET / HTTP/1.1\r\nAAAAAAAAAAAAAAAAAAAA" => "431 headers_too_long";
            count_at_bound: "GET / HTTP/1.1\r\nHost:\r\nA:\r\nB:\r\n\r\n" => "Get / Length(0) keep";
            count_above: "GET / HTTP/1.1\r\nHost:\r\nA:\r\nB:\r\nC:\r\n" => "431 headers_too_many";
        }

    #[test]
    fn default_limits_let_a_long_query_through() {
        // WIRE.md 9 row 13: a 500 kB query is accepted, about 1 MiB of headers is not.
        let query = "a".repeat(500_000);
        let input = format!("POST /ingest?{query} HTTP/1.1\r\nHost: h\r\n\r\n");
        let mut reader = HeadReader::new(HeadLimits::default());
        let Ok(Progress::Complete(head)) = reader.read(input.as_bytes()) else {
            panic!("refused")
        };
        assert_eq!(head.target.query.map(|query| query.len), Some(500_000));
        let input = format!("POST / HTTP/1.1\r\nHost: h\r\nA: {}", "a".repeat(1 << 20));
        assert_eq!(
            reader.read(input.as_bytes()),
            Err(LineError::FieldsTooLong.into())
        );
    }

    #[test]
    fn no_byte_is_scanned_twice() {
        let input = format!("POST /{} HTTP/1.1\r\nHost: h\r\n", "a".repeat(300));
        let mut reader = HeadReader::new(HeadLimits::default());
        for end in 0..=input.len() {
            assert_eq!(reader.read(&input.as_bytes()[..end]), Ok(Progress::Partial));
            assert_eq!(reader.lines.scanned_bytes(), end);
        }
    }

    #[test]
    fn reset_forgets_an_error_and_a_half() {
        let good = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        let mut reader = HeadReader::new(HeadLimits::default());
        assert!(reader.read(b"GET / HTTP/2.0\r\n").is_err());
        assert!(reader.read(good).is_err(), "an error stays");
        for before in [
            &b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\nX"[..],
            b"\r\n\r\n\r\n\r\n",
        ] {
            reader.reset();
            assert_eq!(reader.read(before), Ok(Progress::Partial));
            reader.reset();
            let Ok(Progress::Complete(head)) = reader.read(good) else {
                panic!("refused after reset")
            };
            assert_eq!(
                (head.bytes, head.fields.len(), head.framing),
                (good.len(), 1, Framing::Length(0))
            );
        }
    }

    #[test]
    fn values_come_in_order_whatever_their_case() {
        let input = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Type: a\r\nX: y\r\ncontent-type:\tb \r\n\r\n";
        let mut reader = HeadReader::new(HeadLimits::default());
        let Ok(Progress::Complete(head)) = reader.read(input) else {
            panic!("refused")
        };
        assert_eq!(
            head.values(input, "content-type").collect::<Vec<_>>(),
            [b"a", b"b"]
        );
        assert_eq!(head.value(input, "x"), Some(&b"y"[..]));
        assert_eq!(head.value(input, "content-typ"), None);
        assert!(!head.fields.spilled(), "a usual head needs no allocation");
    }

    #[test]
    fn every_error_says_what_to_do() {
        let errors = [
            HeadError::Tls,
            HeadError::Http2,
            HeadError::HostMissing,
            HeadError::ExpectUnknown,
            LineError::BareLf.into(),
            FramingError::LengthList.into(),
        ];
        for error in errors {
            let text = error.to_string();
            assert!(text.contains("; ") || text.contains(", "), "{text}");
            assert!(
                error
                    .label()
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            );
        }
    }

    /// Heads that are nearly right: parts that are mostly good, then at most a few bytes overwritten.
    fn nearly_heads() -> impl Strategy<Value = Vec<u8>> {
        let method = prop_oneof![8 => "(GET|POST|PUT|X-a!)", 1 => "[A-Z ]{0,3}"];
        let target = prop_oneof![8 => "/[a-z%?&=/.]{0,12}", 2 => "(\\*|http://h/a\\?b|https://h:1|HTTP://)", 1 => "[ -~]{0,6}"];
        let version = prop_oneof![8 => "HTTP/1\\.[01]", 1 => "(HTTP/2\\.0|http/1\\.1|HTTP/1\\.|)"];
        let name = prop_oneof![
            6 => "[A-Za-z0-9!#$%&'*+.^_`|~-]{1,9}",
            3 => "(Host|content-length|Transfer-Encoding|Connection|Expect)",
            1 => "[ -~]{0,4}"
        ];
        let value = prop_oneof![
            6 => "[ \t]{0,2}[!-~][ -~\t\u{80}-\u{ff}]{0,9}",
            3 => "[ ](h|5|chunked|close|100-continue|keep-alive)[ ]{0,1}",
            1 => "[ ]{0,3}"
        ];
        let end = prop_oneof![30 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r")];
        let field = (name, value, end.clone()).prop_map(|(name, value, end)| format!("{name}:{value}{end}"));
        let fields = proptest::collection::vec(field, 0..6);
        let edits = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3);
        let edits = prop_oneof![3 => Just(Vec::new()), 2 => edits];
        let host = prop_oneof![6 => Just("Host: h\r\n"), 1 => Just("")];
        (method, target, version, host, fields, end, edits).prop_map(
            |(method, target, version, host, fields, end, edits)| {
                let mut head = format!(
                    "{method} {target} {version}\r\n{host}{}{end}rest",
                    fields.concat()
                )
                .into_bytes();
                for (index, byte) in edits {
                    let at = index.index(head.len());
                    head[at] = byte;
                }
                head
            },
        )
    }

    /// The comparison below says something only while both verdicts are common.
    #[test]
    fn nearly_heads_are_good_and_bad() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let strategy = nearly_heads();
        let good = (0..1000).filter(|_| {
            let input = strategy
                .new_tree(&mut runner)
                .expect("nothing is filtered")
                .current();
            matches!(
                HeadReader::new(HeadLimits::default()).read(&input),
                Ok(Progress::Complete(_))
            )
        });
        let good = good.count();
        assert!((100..900).contains(&good), "{good} of 1000 are good");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

        /// What we accept, httparse accepts and reads the same; but it wants targets in UTF-8.
        #[test]
        fn agrees_with_httparse(input in nearly_heads()) {
            fuzz_head(&input);
            let mut slots = [httparse::EMPTY_HEADER; 256];
            let mut theirs = httparse::Request::new(&mut slots);
            let verdict = theirs.parse(&input);
            if let Ok(Progress::Complete(head)) = HeadReader::new(HeadLimits::default()).read(&input) {
                let text = input[..head.bytes].escape_ascii().to_string();
                let end = head.target.query.unwrap_or(head.target.path);
                if std::str::from_utf8(&input[..(end.start + end.len) as usize]).is_err() {
                    return Ok(());
                }
                prop_assert_eq!(verdict, Ok(httparse::Status::Complete(head.bytes)), "{}", text);
                let method = theirs.method.unwrap_or_default();
                prop_assert_eq!(parse_method(method.as_bytes()), head.method, "{}", text);
                prop_assert_eq!(theirs.version, Some(u8::from(head.version == Version::Http11)), "{}", text);
                let target = theirs.path.unwrap_or_default();
                let path = String::from_utf8_lossy(head.target.path.of(&input)).into_owned();
                let ours = match head.target.query {
                    Some(query) => format!("{path}?{}", String::from_utf8_lossy(query.of(&input))),
                    None => path,
                };
                if target.starts_with(['/', '*']) {
                    prop_assert_eq!(target, ours, "{}", text);
                } else {
                    prop_assert!(target.ends_with(ours.trim_start_matches('/')), "{}", text);
                }
                let our_fields: Vec<_> =
                    head.fields.iter().map(|field| (field.name.of(&input), field.value.of(&input))).collect();
                let their_fields: Vec<_> =
                    theirs.headers.iter().map(|header| (header.name.as_bytes(), header.value)).collect();
                prop_assert_eq!(our_fields, their_fields, "{}", text);
            }
        }

        #[test]
        fn any_bytes_are_read_the_same_in_any_cut(input in proptest::collection::vec(any::<u8>(), 0..80)) {
            fuzz_head(&input);
        }
    }
}
