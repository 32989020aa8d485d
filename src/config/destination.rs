//! One destination: a `--to` (`[NAME=]URL[,key=value...]`) or an endpoint of a file, as a [`DestinationSpec`], checked
//! into a [`DestinationPlan`].
//!
//! How requests are authorized is read in [`auth`], through which proxy they go in [`proxy`].

pub mod auth;
pub mod oauth2;
pub mod proxy;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use serde::{Serialize, Serializer};
use url::Url;

use self::auth::{AUTH_OPTIONS, AuthOptions, AuthPlan, is_field_text};
use self::oauth2::{OAUTH2, OAUTH2_OPTIONS};
use self::proxy::{PROXY_CONNECT_HEADER, PROXY_OPTIONS, ProxyOptions, ProxyPlan};
use super::tls::ClientTls;
use super::units::{parse_duration, parse_size};

/// Header names that we set ourselves or that belong to one hop: `header.NAME` and `--pass-header` refuse them.
const HEADERS_RESERVED: [&str; 14] = [
    "accept-encoding",
    "connection",
    "connect-protocol-version",
    "connect-timeout-ms",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Options that mean something for a folder.
const FILE_OPTIONS: [&str; 5] = [
    "queue-limit",
    "max-age",
    "min-backoff",
    "max-backoff",
    "max-retries",
];

/// Options whose value is no secret, so that a message may repeat it.
const SHOWN_OPTIONS: [&str; 29] = [
    "queue-limit",
    "spool-limit",
    "max-age",
    "inflight",
    "remote-timeout",
    "min-backoff",
    "max-backoff",
    "max-retries",
    "retry-on-http-429",
    "follow-redirects",
    "basic-auth.password-file",
    "bearer-token-file",
    "authorization.credentials-file",
    "oauth2.client-secret-file",
    "oauth2.scopes",
    "oauth2.tls-ca-file",
    "oauth2.tls-cert-file",
    "oauth2.tls-key-file",
    "oauth2.tls-server-name",
    "oauth2.tls-insecure-skip-verify",
    "oauth2.tls-min-version",
    "no-proxy",
    "proxy-from-environment",
    "tls-ca-file",
    "tls-cert-file",
    "tls-key-file",
    "tls-server-name",
    "tls-insecure-skip-verify",
    "tls-min-version",
];

/// A value that no log line, page, metric or answer ever shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `value`.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the wire only.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("<redacted>")
    }
}

/// Where a destination is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationTarget {
    /// A server that takes what Pyroscope takes, in cleartext or (where the plan has TLS) not.
    Http {
        /// Name or address to resolve and connect to.
        host: String,
        /// TCP port.
        port: u16,
        /// What the `Host` header says.
        authority: String,
        /// Path of `/ingest` requests: the URL's path joined with `/ingest`, cleaned (WIRE.md 1.6).
        ingest_path: String,
        /// Path of Push requests: the URL's path without trailing slashes, and the route (WIRE.md 3.6).
        push_path: String,
    },
    /// A folder that profiles are archived in.
    File {
        /// The folder; made when missing.
        directory: PathBuf,
    },
}

/// One destination after every check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DestinationPlan {
    /// What logs, metrics and pages call it; never its URL.
    pub name: String,
    /// Where it is.
    pub target: DestinationTarget,
    /// How it is spoken to, where its URL says `https`.
    pub tls: Option<ClientTls>,
    /// Headers set on every request to it, in order given. Values are secrets.
    pub headers: Vec<(String, Secret)>,
    /// Headers whose value is the trimmed content of a file, read again when it changes.
    pub header_files: Vec<(String, PathBuf)>,
    /// How requests are authorized.
    pub auth: AuthPlan,
    /// Through which proxy they go.
    pub proxy: ProxyPlan,
    /// Most bytes waiting and in flight.
    pub queue_limit: u64,
    /// Most bytes on disk; `null` without a spool, and for folders, which are on disk already.
    pub spool_limit: Option<u64>,
    /// Age above which a parcel is dropped.
    pub max_age: Duration,
    /// Requests in flight at a time.
    pub inflight: usize,
    /// Limit of one attempt.
    pub remote_timeout: Duration,
    /// First backoff.
    pub min_backoff: Duration,
    /// Longest backoff.
    pub max_backoff: Duration,
    /// Attempts in all; 0 = until `max_age`.
    pub max_retries: u32,
    /// Whether a rate limit (429) is worth another attempt. Alloy's `retry_on_http_429`, true by default.
    pub retry_on_http_429: bool,
    /// Whether 307 and 308 are followed. Alloy's `follow_redirects`, true by default.
    pub follow_redirects: bool,
}

/// What a destination takes over from the flags where its `--to` says nothing.
#[derive(Clone, Debug)]
pub struct DestinationDefaults {
    /// `--queue-limit`.
    pub queue_limit: u64,
    /// `--spool-limit`; `None` without `--spool`.
    pub spool_limit: Option<u64>,
    /// `--max-age`.
    pub max_age: Duration,
    /// `--inflight`.
    pub inflight: usize,
    /// `--remote-timeout`.
    pub remote_timeout: Duration,
    /// `--min-backoff`.
    pub min_backoff: Duration,
    /// `--max-backoff`.
    pub max_backoff: Duration,
    /// `--max-retries`.
    pub max_retries: u32,
}

/// A destination as it was asked for, before any check: by a `--to`, or by an endpoint of a configuration file, whose
/// values may hold commas.
#[derive(Clone, Debug)]
pub struct DestinationSpec {
    /// What to call it; `None` = after its host and port.
    pub name: Option<String>,
    /// Where it is; it may hold credentials.
    pub url: Secret,
    /// Headers set on every request, beside those of `header.NAME` options. A name may come several times.
    pub headers: Vec<(String, Secret)>,
    /// Options as `--to` has them, each once.
    pub options: Vec<(String, Secret)>,
}

impl DestinationSpec {
    /// Takes one `--to` value apart.
    ///
    /// # Errors
    /// A sentence: what is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, rest) = split_name(text);
        let mut pieces = rest.split(',');
        let url = pieces.next().unwrap_or_default().trim();
        let mut options: Vec<(String, Secret)> = Vec::new();
        for piece in pieces {
            let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
            // What looks like an option may be the rest of a secret with a comma in it, which no message may repeat.
            let can_be_told = options.iter().all(|(seen, _)| is_shown(seen)) || is_known(key);
            if !piece.contains('=') || !can_be_told {
                let shown = if can_be_told {
                    format!("'{key}' ")
                } else {
                    String::new()
                };
                return Err(format!(
                    "option {shown}has no value or is unknown; write key=value (a comma cannot be part of a value)"
                ));
            }
            options.push((key.to_owned(), Secret::new(value)));
        }
        Ok(Self {
            name: name.map(str::to_owned),
            url: Secret::new(url),
            headers: Vec::new(),
            options,
        })
    }

    /// Checks everything; what is not said is taken over from `defaults`.
    ///
    /// # Errors
    /// A sentence: what is wrong and what to write instead. It never repeats a password.
    pub fn plan(&self, defaults: &DestinationDefaults) -> Result<DestinationPlan, String> {
        let Address {
            target,
            tls,
            default_name,
            credentials,
        } = parse_target(self.url.reveal())?;
        let name = match &self.name {
            Some(name) => valid_name(name)?.to_owned(),
            None => default_name,
        };
        let mut plan = DestinationPlan {
            name,
            target,
            tls,
            headers: Vec::new(),
            header_files: Vec::new(),
            auth: AuthPlan::None,
            proxy: ProxyPlan::None,
            queue_limit: defaults.queue_limit,
            spool_limit: None,
            max_age: defaults.max_age,
            inflight: defaults.inflight,
            remote_timeout: defaults.remote_timeout,
            min_backoff: defaults.min_backoff,
            max_backoff: defaults.max_backoff,
            max_retries: defaults.max_retries,
            retry_on_http_429: true,
            follow_redirects: true,
        };
        if plan.is_http() {
            plan.spool_limit = defaults.spool_limit;
        }
        let mut auth = AuthOptions {
            url_user: credentials,
            ..AuthOptions::default()
        };
        let mut proxy = ProxyOptions::default();
        if !plan.is_http() && !self.headers.is_empty() {
            return Err("headers are for http:// destinations; leave them out for a folder".into());
        }
        for (name, value) in &self.headers {
            plan.set(&format!("header.{name}"), value.reveal())?;
        }
        let mut seen: Vec<&str> = Vec::new();
        for (key, value) in &self.options {
            if seen.contains(&&**key) {
                return Err(format!("option '{key}' is given twice"));
            }
            if !plan.is_http() && !FILE_OPTIONS.contains(&&**key) {
                return Err(format!(
                    "option '{key}' is for http:// and https:// destinations; a folder knows {}",
                    FILE_OPTIONS.join(", ")
                ));
            }
            seen.push(key);
            let value = value.reveal();
            if !auth.set(key, value)? && !proxy.set(key, value)? {
                plan.set(key, value)?;
            }
        }
        auth.has_own_header = plan.sets_header("authorization");
        plan.auth = auth.plan()?;
        plan.proxy = proxy.plan()?;
        plan.tls.as_ref().map_or(Ok(()), ClientTls::check)?;
        let limits = DestinationDefaults {
            queue_limit: plan.queue_limit,
            spool_limit: plan.spool_limit,
            max_age: plan.max_age,
            inflight: plan.inflight,
            remote_timeout: plan.remote_timeout,
            min_backoff: plan.min_backoff,
            max_backoff: plan.max_backoff,
            max_retries: plan.max_retries,
        };
        limits
            .check()
            .map_err(|bad| format!("{}={}: {}", &bad.flag[2..], bad.value, bad.problem))?;
        Ok(plan)
    }
}

impl DestinationPlan {
    /// Reads one `--to` value.
    ///
    /// # Errors
    /// A sentence: what is wrong and what to write instead. It never repeats a password.
    pub fn parse(text: &str, defaults: &DestinationDefaults) -> Result<Self, String> {
        DestinationSpec::parse(text)?.plan(defaults)
    }

    /// Whether it is a server rather than a folder.
    pub fn is_http(&self) -> bool {
        matches!(self.target, DestinationTarget::Http { .. })
    }

    /// Whether the operator sets a header of this name; `name` is lower case.
    pub fn sets_header(&self, name: &str) -> bool {
        let given = self.headers.iter().map(|(name, _)| name);
        given
            .chain(self.header_files.iter().map(|(name, _)| name))
            .any(|given| given.eq_ignore_ascii_case(name))
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        if let Some(header) = key.strip_prefix("header.") {
            self.headers.push((
                valid_header(header)?.to_owned(),
                Secret::new(valid_header_value(header, value)?),
            ));
            return Ok(());
        }
        if let Some(header) = key.strip_prefix("header-file.") {
            let file = auth::file(key, value)?;
            self.header_files.push((valid_header(header)?.to_owned(), file));
            return Ok(());
        }
        if let Some(option) = key.strip_prefix("tls-") {
            let tls = self.tls.as_mut();
            let tls =
                tls.ok_or_else(|| format!("option '{key}' is for https:// destinations; write https://"))?;
            if tls.set(option, value)? {
                return Ok(());
            }
        }
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| format!("{key}={value}: expected a whole number"))
        };
        let truth = || {
            value
                .parse::<bool>()
                .map_err(|_| format!("{key}={value}: expected true or false"))
        };
        let named = |error: String| format!("{key}={value}: {error}");
        match key {
            "queue-limit" => self.queue_limit = parse_size(value).map_err(named)?,
            "spool-limit" => {
                if self.spool_limit.is_none() {
                    return Err("option 'spool-limit' needs --spool DIR".into());
                }
                self.spool_limit = Some(parse_size(value).map_err(named)?);
            }
            "max-age" => self.max_age = parse_duration(value).map_err(named)?,
            "inflight" => self.inflight = number()? as usize,
            "remote-timeout" => self.remote_timeout = parse_duration(value).map_err(named)?,
            "min-backoff" => self.min_backoff = parse_duration(value).map_err(named)?,
            "max-backoff" => self.max_backoff = parse_duration(value).map_err(named)?,
            "max-retries" => self.max_retries = number()?,
            "retry-on-http-429" => self.retry_on_http_429 = truth()?,
            "follow-redirects" => self.follow_redirects = truth()?,
            _ => {
                let special = [&AUTH_OPTIONS[..], &OAUTH2_OPTIONS, &PROXY_OPTIONS].concat();
                let mut known: Vec<&str> = SHOWN_OPTIONS.to_vec();
                known.extend(special.iter().filter(|key| !SHOWN_OPTIONS.contains(key)));
                return Err(format!(
                    "unknown option '{key}'; known: {}, header.NAME, header-file.NAME, oauth2.endpoint-param.NAME, proxy-connect-header.NAME",
                    known.join(", ")
                ));
            }
        }
        Ok(())
    }
}

/// A limit that cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLimit {
    /// The flag; the option of `--to` is the same without the dashes.
    pub flag: &'static str,
    /// What it was set to.
    pub value: String,
    /// What is wrong and how to mend it.
    pub problem: &'static str,
}

impl DestinationDefaults {
    /// Judges the limits, whether they come from the flags or from a `--to`.
    ///
    /// # Errors
    /// The first limit that cannot work.
    pub fn check(&self) -> Result<(), BadLimit> {
        let bad = |flag, value: &dyn std::fmt::Debug, problem| {
            Err(BadLimit {
                flag,
                value: format!("{value:?}"),
                problem,
            })
        };
        if self.inflight == 0 || self.inflight > 4096 {
            return bad("--inflight", &self.inflight, "must be 1 to 4096");
        }
        if self.remote_timeout < Duration::from_millis(10) {
            return bad("--remote-timeout", &self.remote_timeout, "must be at least 10ms");
        }
        if self.min_backoff < Duration::from_millis(1) {
            let problem = "must be at least 1ms: none at all would be a hot loop";
            return bad("--min-backoff", &self.min_backoff, problem);
        }
        if self.min_backoff > self.max_backoff {
            return bad(
                "--min-backoff",
                &self.min_backoff,
                "is longer than --max-backoff; swap them",
            );
        }
        if self.max_age.is_zero() {
            let problem = "nothing would ever be sent; the default is 1h";
            return bad("--max-age", &self.max_age, problem);
        }
        Ok(())
    }
}

/// Whether there is an option of this name.
pub fn is_known(key: &str) -> bool {
    SHOWN_OPTIONS.contains(&key)
        || AUTH_OPTIONS.contains(&key)
        || PROXY_OPTIONS.contains(&key)
        || key.starts_with(OAUTH2)
        || key.starts_with(PROXY_CONNECT_HEADER)
        || key.starts_with("header.")
        || key.starts_with("header-file.")
}

/// Whether the value of this option may be repeated in a message.
pub fn is_shown(key: &str) -> bool {
    SHOWN_OPTIONS.contains(&key) || key.starts_with("header-file.")
}

/// Splits `NAME=` off: only where what stands before the first `=` is no URL.
fn split_name(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, rest)) if !name.contains(':') && !name.contains(',') && !name.contains('/') => {
            (Some(name), rest)
        }
        _ => (None, text),
    }
}

fn valid_name(name: &str) -> Result<&str, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
        return Err(format!(
            "name '{name}' must be 1 to 64 letters, digits, '-', '_' or '.'"
        ));
    }
    Ok(name)
}

/// What a URL says.
struct Address {
    target: DestinationTarget,
    tls: Option<ClientTls>,
    default_name: String,
    credentials: Option<Secret>,
}

fn parse_target(text: &str) -> Result<Address, String> {
    if let Some(directory) = text.strip_prefix("file:") {
        let directory = directory.strip_prefix("//").unwrap_or(directory);
        if directory.is_empty() {
            return Err("file: needs a folder, such as file:./profiles".into());
        }
        return Ok(Address {
            target: DestinationTarget::File {
                directory: PathBuf::from(directory),
            },
            tls: None,
            default_name: "archive".into(),
            credentials: None,
        });
    }
    let default_port = match text.split_once("://") {
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => 80,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => 443,
        _ => {
            return Err(
                "is no destination; write http://HOST[:PORT][/PATH], https://HOST[:PORT][/PATH] or file:DIR"
                    .into(),
            );
        }
    };
    let url = Url::parse(text).map_err(|error| format!("is no good URL: {error}"))?;
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or("has no host in its URL")?
        .to_owned();
    let port = url.port().unwrap_or(default_port);
    if port == 0 {
        return Err("port 0 cannot be connected to".into());
    }
    let authority = if port == default_port {
        host.clone()
    } else {
        format!("{host}:{port}")
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Address {
        tls: (url.scheme() == "https").then(|| ClientTls::new(&host)),
        target: DestinationTarget::Http {
            host,
            port,
            ingest_path: join_clean(url.path(), "ingest"),
            push_path: format!("{}/push.v1.PusherService/Push", url.path().trim_end_matches('/')),
            authority: authority.clone(),
        },
        default_name: authority,
        credentials: credentials(&url)?,
    })
}

/// The host of a URL as it is connected to: an IPv6 address without its brackets.
fn host_of(url: &Url) -> Option<String> {
    let host = url.host_str().filter(|host| !host.is_empty())?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

/// `user:password@` as the credentials of a Basic `Authorization` (WIRE.md 4.1).
fn credentials(url: &Url) -> Result<Option<Secret>, String> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let decode = |text: &str| percent_decode(text).ok_or("has a bad %-escape in its user or password");
    let pair = [
        decode(url.username())?,
        decode(url.password().unwrap_or_default())?,
    ]
    .join(&b':');
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    Ok(Some(Secret::new(encoded)))
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let hex = std::str::from_utf8(bytes.get(at + 1..at + 3)?).ok()?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    Some(out)
}

/// Go's `path.Join`: one slash between, dot segments and empty segments gone (WIRE.md 1.6, row 32).
fn join_clean(path: &str, last: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').chain([last]) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Checks a header name that the operator sets or passes on.
///
/// # Errors
/// When it is no token (RFC 9110 section 5.1) or one that we or the hop own.
pub fn valid_header(name: &str) -> Result<&str, String> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || !name.chars().all(token) {
        return Err(format!("'{name}' is no header name"));
    }
    if HEADERS_RESERVED.contains(&name.to_ascii_lowercase().as_str()) {
        return Err(format!(
            "header {name} is set by pyrotee itself or belongs to one hop; leave it out"
        ));
    }
    Ok(name)
}

fn valid_header_value(name: &str, value: &str) -> Result<String, String> {
    if !is_field_text(value) {
        return Err(format!("the value of header {name} has a control character"));
    }
    Ok(value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> DestinationDefaults {
        DestinationDefaults {
            queue_limit: 1000,
            spool_limit: None,
            max_age: Duration::from_secs(3600),
            inflight: 64,
            remote_timeout: Duration::from_secs(10),
            min_backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(300),
            max_retries: 0,
        }
    }

    fn parse(text: &str) -> Result<DestinationPlan, String> {
        DestinationPlan::parse(text, &defaults())
    }

    fn paths(text: &str) -> (String, String, String) {
        match parse(text).unwrap().target {
            DestinationTarget::Http {
                authority,
                ingest_path,
                push_path,
                ..
            } => (authority, ingest_path, push_path),
            DestinationTarget::File { .. } => panic!("{text} is no http destination"),
        }
    }

    #[test]
    fn urls_become_paths_as_alloy_builds_them() {
        for (url, authority, ingest, push) in [
            ("http://a", "a", "/ingest", "/push.v1.PusherService/Push"),
            (
                "http://a:4040/",
                "a:4040",
                "/ingest",
                "/push.v1.PusherService/Push",
            ),
            (
                "http://a:80/base/",
                "a",
                "/base/ingest",
                "/base/push.v1.PusherService/Push",
            ),
            (
                "http://a//x/./y//?q=1#f",
                "a",
                "/x/y/ingest",
                "//x/y/push.v1.PusherService/Push",
            ),
            ("https://a/b", "a", "/b/ingest", "/b/push.v1.PusherService/Push"),
            ("https://a:80", "a:80", "/ingest", "/push.v1.PusherService/Push"),
            (
                "HTTP://A:1/B",
                "a:1",
                "/B/ingest",
                "/B/push.v1.PusherService/Push",
            ),
            (
                "http://[::1]:9/",
                "[::1]:9",
                "/ingest",
                "/push.v1.PusherService/Push",
            ),
        ] {
            let (got_authority, got_ingest, got_push) = paths(url);
            assert_eq!(
                (got_authority.as_str(), got_ingest.as_str()),
                (authority, ingest),
                "{url}"
            );
            // The url crate already resolves dot segments; only trailing slashes are ours to remove.
            assert_eq!(got_push, push, "{url}");
        }
    }

    #[test]
    fn names_options_and_credentials_are_read() {
        let plan =
            parse("eu=http://user:p%40ss@h:1/x,max-age=30m,inflight=3,header.X-Scope-OrgID=team").unwrap();
        assert_eq!(plan.name, "eu");
        assert_eq!(plan.max_age, Duration::from_secs(1800));
        assert_eq!(plan.inflight, 3);
        assert_eq!(plan.headers[0], ("X-Scope-OrgID".into(), Secret::new("team")));
        assert_eq!(
            plan.auth,
            AuthPlan::Scheme {
                scheme: "Basic".into(),
                credentials: auth::SecretSource::Value(Secret::new("dXNlcjpwQHNz")),
            }
        );
        assert!(!format!("{plan:?}").contains("dXNl"), "a secret is never printed");
        assert_eq!(parse("http://h:1").unwrap().name, "h:1");
        assert_eq!(parse("file:./p").unwrap().name, "archive");
    }

    #[test]
    fn the_rest_of_a_secret_with_a_comma_is_not_repeated() {
        for secret in [
            "bearer-token=a,s3cret",
            "bearer-token=a,s3cret=",
            "header.X=a,s3cret=b",
        ] {
            let error = parse(&format!("http://x,{secret}")).unwrap_err();
            assert!(error.contains("comma") && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn https_has_a_port_and_options_of_its_own() {
        let plan = parse(
            "https://[::1],tls-ca-file=ca.pem,tls-cert-file=c.pem,tls-key-file=k.pem,tls-server-name=push.example,\
             tls-min-version=TLS13",
        )
        .unwrap();
        let DestinationTarget::Http { host, port, .. } = &plan.target else {
            panic!("a server")
        };
        assert_eq!((host.as_str(), *port), ("::1", 443));
        let tls = plan.tls.unwrap();
        assert_eq!(tls.ca_file, Some("ca.pem".into()));
        assert_eq!(
            (tls.cert_file, tls.key_file),
            (Some("c.pem".into()), Some("k.pem".into()))
        );
        assert_eq!(tls.server_name, "push.example");
        assert_eq!(parse("https://h:1").unwrap().tls, Some(ClientTls::new("h")));
        assert_eq!(parse("http://h:443").unwrap().tls, None);
    }

    #[test]
    fn wrong_values_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "no destination"),
            ("ftp://x", "no destination"),
            ("https:x", "no destination"),
            ("http://", "URL"),
            ("https://", "URL"),
            ("https://x,tls-cert-file=c", "tls-key-file"),
            ("https://x,tls-key-file=k", "tls-cert-file"),
            ("https://x,tls-ca-file=", "path"),
            ("https://x,tls-min-version=TLS11", "TLS12"),
            ("https://x,tls-insecure-skip-verify=1", "true or false"),
            ("https://x,tls-server-name=a b", "tls-server-name"),
            ("https://x,tls-colour=red", "unknown option 'tls-colour'"),
            ("http://x,tls-ca-file=ca.pem", "https://"),
            ("http://x:99999", "URL"),
            ("http://x:0", "port 0"),
            ("file:", "folder"),
            ("a b=http://x", "name"),
            ("http://x,inflight", "no value"),
            ("http://x,inflight=0", "inflight"),
            ("http://x,inflight=1,inflight=2", "twice"),
            ("http://x,max-age=5", "unit"),
            ("file:x,inflight=3", "https:// destinations"),
            ("http://x,colour=red", "unknown option 'colour'"),
            ("http://x,header.Host=y", "Host"),
            ("http://x,min-backoff=10s,max-backoff=1s", "longer"),
            ("http://u@x,header.Authorization=Bearer 1", "both"),
            ("http://u@x,header-file.authorization=/f", "both"),
            ("http://x,bearer-token=t,basic-auth.username=u", "both"),
            ("http://x,header-file.Host=/f", "Host"),
            ("http://x,header-file.X-Key=", "path"),
            ("file:x,bearer-token=t", "https:// destinations"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
