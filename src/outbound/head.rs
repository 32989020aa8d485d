//! The head of a request to a destination (WIRE.md 4.3). The parts that never change are written once, at start; the
//! operator's lines are loaded for each request, because secrets among them may change.

use std::sync::Arc;

use super::credentials::Credentials;
use crate::config::{DestinationPlan, DestinationTarget, Proxy, Secret};
use crate::fanout::Push;
use crate::profile::route::{PUSH, Route};

/// What we call ourselves.
pub const USER_AGENT: &str = concat!("pyrotee/", env!("CARGO_PKG_VERSION"));

/// Writes request heads for one destination.
#[derive(Debug)]
pub struct HeadWriter {
    authority: String,
    ingest_path: String,
    push_path: String,
    /// In front of the path of a call.
    prefix: String,
    /// Header lines that we set ourselves.
    own: String,
    /// Header lines that the operator set, credentials among them: only for the destination he named.
    credentials: Arc<Credentials>,
    trace: Trace,
}

/// Which trace headers are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// `uber-trace-id`.
    pub jaeger: bool,
    /// `traceparent`.
    pub w3c: bool,
}

/// Where exactly one request goes: the destination itself, or where it redirected to.
#[derive(Clone, Copy, Debug)]
pub struct Aim<'a> {
    /// `Host`.
    pub authority: &'a str,
    /// Path, and its own query if it has one (a redirect's).
    pub path: &'a str,
    /// Whether credentials go there: not to another host than the operator named.
    pub trusted: bool,
    /// The proxy that passes the request on (RFC 9112 section 3.2.2). `None` where it goes to the server itself.
    pub via: Option<&'a Proxy>,
}

impl HeadWriter {
    /// Prepares the unchanging parts. `instance` identifies this process (`X-Alloy-Id`), `credentials` are the lines that
    /// the operator set.
    ///
    /// Returns `None` for a destination that is no HTTP server.
    pub fn new(
        plan: &DestinationPlan,
        instance: &str,
        credentials: Arc<Credentials>,
        trace: Trace,
    ) -> Option<Self> {
        let DestinationTarget::Http {
            authority,
            ingest_path,
            push_path,
            ..
        } = &plan.target
        else {
            return None;
        };
        let mut own = format!("X-Alloy-Id: {instance}\r\n");
        if !plan.sets_header("user-agent") {
            own.push_str(&format!("User-Agent: {USER_AGENT}\r\n"));
        }
        Some(Self {
            authority: authority.clone(),
            ingest_path: ingest_path.clone(),
            push_path: push_path.clone(),
            prefix: push_path[..push_path.len().saturating_sub(PUSH.len())].to_owned(),
            own,
            credentials,
            trace,
        })
    }

    /// What tells the destination who we are.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The destination's own place for a route.
    pub fn aim(&self, route: Route) -> Aim<'_> {
        let path = match route {
            Route::Ingest => &self.ingest_path,
            Route::Push => &self.push_path,
        };
        Aim {
            authority: &self.authority,
            path,
            trusted: true,
            via: None,
        }
    }

    /// Writes the head of a call: `length` is that of its body, which is chunked without one.
    pub fn write_call(
        &self,
        out: &mut Vec<u8>,
        path: &str,
        fields: &[u8],
        length: Option<u64>,
        via: Option<&Proxy>,
    ) {
        let path = [&self.prefix, path].concat();
        let aim = Aim {
            authority: &self.authority,
            path: &path,
            trusted: true,
            via,
        };
        self.begin(out, aim, b"");
        self.trace.write(out, fastrand::u128(1..), fastrand::u64(1..));
        out.extend_from_slice(self.credentials.lines().text.as_bytes());
        out.extend_from_slice(fields);
        match length {
            Some(length) => {
                out.extend_from_slice(b"Content-Length: ");
                write_number(out, length);
                out.extend_from_slice(b"\r\n\r\n");
            }
            None => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n"),
        }
    }

    /// Writes the head of one attempt that has `timeout_ms` left.
    pub fn write(&self, out: &mut Vec<u8>, push: &Push, aim: Aim<'_>, timeout_ms: u64) {
        let query = if aim.path.contains('?') {
            &[][..]
        } else {
            &push.query
        };
        self.begin(out, aim, query);
        self.trace.write(out, push.trace_id, fastrand::u64(1..));
        self.finish(out, push, aim, timeout_ms);
    }

    /// Writes what every head begins with.
    fn begin(&self, out: &mut Vec<u8>, aim: Aim<'_>, query: &[u8]) {
        out.extend_from_slice(b"POST ");
        if aim.via.is_some() {
            out.extend_from_slice(b"http://");
            out.extend_from_slice(aim.authority.as_bytes());
        }
        out.extend_from_slice(aim.path.as_bytes());
        if !query.is_empty() {
            out.push(b'?');
            out.extend_from_slice(query);
        }
        out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
        out.extend_from_slice(aim.authority.as_bytes());
        out.extend_from_slice(b"\r\n");
        if let Some(credentials) = aim.via.and_then(|proxy| proxy.credentials.as_ref()) {
            out.extend_from_slice(b"Proxy-Authorization: Basic ");
            out.extend_from_slice(credentials.reveal().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(self.own.as_bytes());
    }

    /// Writes what only the head of a push has, and its end.
    fn finish(&self, out: &mut Vec<u8>, push: &Push, aim: Aim<'_>, timeout_ms: u64) {
        if aim.trusted {
            out.extend_from_slice(self.credentials.lines().text.as_bytes());
            out.extend_from_slice(&push.fields);
        } else {
            // What clients' headers were passed on (--pass-header) was not meant for a host that nobody named.
            let lines = push.fields.split_inclusive(|byte| *byte == b'\n');
            lines
                .filter(|line| line.starts_with(b"Content-"))
                .for_each(|line| out.extend_from_slice(line));
        }
        if push.route == Route::Push {
            out.extend_from_slice(
                b"Accept-Encoding: gzip\r\nConnect-Protocol-Version: 1\r\nConnect-Timeout-Ms: ",
            );
            write_number(out, timeout_ms);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"Content-Length: ");
        write_number(out, push.bytes);
        out.extend_from_slice(b"\r\n\r\n");
    }
}

impl Trace {
    /// Writes the header lines of one attempt, `span`, for a push (WIRE.md 4.3; W3C Trace Context level 1, section 3.2).
    fn write(self, out: &mut Vec<u8>, trace_id: u128, span: u64) {
        if self == Self::default() {
            return;
        }
        // One in ten, as Alloy's sampler by default; told alike at every destination and attempt.
        let sampled = b'0' + u8::from((trace_id as u64).is_multiple_of(10));
        let (high, low, span) = (hex((trace_id >> 64) as u64), hex(trace_id as u64), hex(span));
        if self.jaeger {
            let mut line = *b"uber-trace-id: tttttttttttttttttttttttttttttttt:ssssssssssssssss:0:f\r\n";
            line[15..31].copy_from_slice(&high);
            line[31..47].copy_from_slice(&low);
            line[48..64].copy_from_slice(&span);
            line[67] = sampled;
            out.extend_from_slice(&line);
        }
        if self.w3c {
            let mut line = *b"traceparent: 00-tttttttttttttttttttttttttttttttt-ssssssssssssssss-0f\r\n";
            line[16..32].copy_from_slice(&high);
            line[32..48].copy_from_slice(&low);
            line[49..65].copy_from_slice(&span);
            line[67] = sampled;
            out.extend_from_slice(&line);
        }
    }
}

/// In lower-case hexadecimal: all digits at once, four bits in each byte of a word.
fn hex(number: u64) -> [u8; 16] {
    let mut digits = u128::from(number);
    digits = (digits | digits << 32) & 0x0000_0000_ffff_ffff_0000_0000_ffff_ffff;
    digits = (digits | digits << 16) & 0x0000_ffff_0000_ffff_0000_ffff_0000_ffff;
    digits = (digits | digits << 8) & 0x00ff_00ff_00ff_00ff_00ff_00ff_00ff_00ff;
    digits = (digits | digits << 4) & 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f;
    const ONES: u128 = 0x0101_0101_0101_0101_0101_0101_0101_0101;
    let letters = (digits + ONES * 6) >> 4 & ONES; // 1 where a digit is above 9
    (digits + ONES * u128::from(b'0') + letters * u128::from(b'a' - b'0' - 10)).to_be_bytes()
}

/// Asks `proxy` for a tunnel to a server (RFC 9110 section 9.3.6). `headers` are for the proxy alone.
pub fn connect_request(proxy: &Proxy, host: &str, port: u16, headers: &[(String, Secret)]) -> Vec<u8> {
    let authority = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let mut request =
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: {USER_AGENT}\r\n");
    if let Some(credentials) = &proxy.credentials {
        request.push_str(&format!(
            "Proxy-Authorization: Basic {}\r\n",
            credentials.reveal()
        ));
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {}\r\n", value.reveal()));
    }
    request.push_str("\r\n");
    request.into_bytes()
}

/// In decimal. By hand: `core::fmt` showed up in profiles.
fn write_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20]; // u64::MAX has 20
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::config::destination::DestinationDefaults;
    use crate::fanout::AckMode;
    use crate::fanout::push::tests::push;
    use crate::outbound::secrets::SecretFiles;

    fn head(to: &str, route: Route, aim: Option<Aim<'_>>) -> String {
        let defaults = DestinationDefaults {
            queue_limit: 1,
            spool_limit: None,
            max_age: Duration::from_secs(1),
            inflight: 1,
            remote_timeout: Duration::from_secs(1),
            min_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(1),
            max_retries: 0,
        };
        let plan = DestinationPlan::parse(to, &defaults).unwrap();
        let lines = SecretFiles::read(&plan).unwrap().lines(&plan, None);
        let writer =
            HeadWriter::new(&plan, "id", Arc::new(Credentials::fixed(lines)), Trace::default()).unwrap();
        let mut push = push(5, AckMode::Detached, 1);
        push.route = route;
        push.query = Bytes::from_static(if route == Route::Ingest { b"name=a" } else { b"" });
        push.fields = Bytes::from_static(b"Content-Type: x/y\r\n");
        if aim.is_some() {
            push.fields = Bytes::from_static(b"Content-Type: x/y\r\nX-Passed: on\r\n");
        }
        let mut out = Vec::new();
        writer.write(&mut out, &push, aim.unwrap_or_else(|| writer.aim(route)), 9999);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 7, 10, 16_384, u64::MAX] {
            let mut out = b"x".to_vec();
            write_number(&mut out, number);
            assert_eq!(String::from_utf8(out).unwrap(), format!("x{number}"));
        }
    }

    #[test]
    fn trace_headers_name_the_push_and_the_attempt() {
        let written = |jaeger, w3c, trace_id| {
            let mut out = Vec::new();
            Trace { jaeger, w3c }.write(&mut out, trace_id, 0xab);
            String::from_utf8(out).unwrap()
        };
        let (trace, span) = ("0000000000000000000000000000000f", "00000000000000ab");
        let jaeger = format!("uber-trace-id: {trace}:{span}:0:0\r\n");
        let w3c = format!("traceparent: 00-{trace}-{span}-00\r\n");
        assert_eq!(written(true, true, 15), format!("{jaeger}{w3c}"));
        assert_eq!(written(true, false, 15), jaeger);
        assert_eq!(written(false, true, 15), w3c);
        assert_eq!(written(false, false, 15), "");
        let sampled = written(true, true, 20);
        assert!(
            sampled.contains(":0:1\r\n") && sampled.ends_with("-01\r\n"),
            "{sampled}"
        );
    }

    #[test]
    fn ingest_and_push_heads() {
        let agent = format!("User-Agent: {USER_AGENT}\r\n");
        assert_eq!(
            head("http://u:p@h:1/b,header.X-Scope-OrgID=t", Route::Ingest, None),
            format!(
                "POST /b/ingest?name=a HTTP/1.1\r\nHost: h:1\r\nX-Alloy-Id: id\r\n{agent}X-Scope-OrgID: t\r\n\
                 Authorization: Basic dTpw\r\nContent-Type: x/y\r\nContent-Length: 5\r\n\r\n"
            )
        );
        assert_eq!(
            head("http://h", Route::Push, None),
            format!(
                "POST /push.v1.PusherService/Push HTTP/1.1\r\nHost: h\r\nX-Alloy-Id: id\r\n{agent}\
                 Content-Type: x/y\r\nAccept-Encoding: gzip\r\nConnect-Protocol-Version: 1\r\n\
                 Connect-Timeout-Ms: 9999\r\nContent-Length: 5\r\n\r\n"
            )
        );
    }

    #[test]
    fn a_redirect_to_another_host_gets_no_credentials() {
        let aim = Aim {
            authority: "evil",
            path: "/x?name=b",
            trusted: false,
            via: None,
        };
        let head = head("http://u:p@h:1,header.X-Scope-OrgID=t", Route::Ingest, Some(aim));
        assert!(
            head.starts_with("POST /x?name=b HTTP/1.1\r\nHost: evil\r\n")
                && !head.contains("Basic")
                && !head.contains("X-Scope")
                && !head.contains("X-Passed")
                && head.contains("Content-Type: x/y"),
            "{head}"
        );
    }
}
