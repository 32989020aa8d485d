//! Access tokens of one destination: fetched with client credentials (RFC 6749 section 4.4), kept, and fetched anew in time
//! (row 123). On the control plane.
//!
//! ```text
//!   none ──fetched──▶ held ──EARLY before its end, or refused by the destination──▶ fetched anew
//!    ▲                 │
//!    │  its end, or refused by the destination, and no other can be had
//!    └─────────────────┘   meanwhile nothing is sent: parcels wait as for a destination that is down
//! ```
//! The credentials go into the header first; where the endpoint refuses that, into the form, and what it takes is
//! remembered (WIRE.md 4.1, as in Go's `oauth2`).

use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use url::form_urlencoded::{self, byte_serialize};

use super::backoff;
use super::client::{Answer, Client, ClientError};
use crate::config::destination::auth::is_field_text;
use crate::config::{OAuth2Plan, ProxyRules, Secret};
use crate::runtime::clock::Mono;
use crate::runtime::tls::client::ClientSide;
use crate::runtime::tls::files::{TlsFileError, Watched};

/// A token is fetched anew this long before its end (WIRE.md row 123).
const EARLY: Duration = Duration::from_secs(10);
/// A token that the destination refuses is fetched anew at most this often: one that refuses every token must not make us
/// storm the endpoint.
const REFUSED_EVERY: Duration = Duration::from_secs(10);
/// Waits between two attempts at an endpoint that gives none.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// What a broken endpoint may say about the life of a token, in seconds: ten years.
const LIFE_SECS_MAX: f64 = 315_360_000.0;

/// The tokens of one destination.
#[derive(Debug)]
pub struct Tokens {
    plan: OAuth2Plan,
    client: Client,
    style: Option<Style>,
    held: Option<Token>,
    /// When the next one is fetched.
    next_at: Mono,
    /// When one is fetched again because the destination refused the last.
    refusable_at: Mono,
    failures: u32,
    problem: Option<TokenProblem>,
}

/// Why there is no token. Names no URL and no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenProblem {
    /// The process has just started.
    #[error("none has been fetched yet")]
    NotYet,
    /// The endpoint did not answer.
    #[error("the token endpoint {0}")]
    Unanswered(ClientError),
    /// It refused.
    #[error("the token endpoint answered {0} {1}")]
    Refused(u16, &'static str),
    /// It answered 2xx, and that is no token.
    #[error("what the token endpoint answered is no token")]
    NoToken,
}

#[derive(Debug)]
struct Token {
    /// The value of `Authorization`.
    header: Secret,
    /// [`Mono::NEVER`] where the endpoint does not say.
    ends: Mono,
}

/// Where the client's id and secret stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Header,
    Form,
}

impl Tokens {
    /// None yet; the first is due at once. Reads the certificates that the endpoint needs, for the destination `owner`, and
    /// says what is to be watched of them.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn new(
        plan: OAuth2Plan,
        proxies: &ProxyRules,
        owner: &str,
    ) -> Result<(Self, Option<Watched>), TlsFileError> {
        let (tls, watched) = match &plan.token_url.tls {
            Some(tls) => {
                let (side, watched) = ClientSide::load(tls.clone(), &format!("{owner}: oauth2"))?;
                (Some(side), Some(watched))
            }
            None => (None, None),
        };
        let client = Client::new(plan.token_url.clone(), tls, proxies);
        let tokens = Self {
            plan,
            client,
            style: None,
            held: None,
            next_at: Mono::default(),
            refusable_at: Mono::default(),
            failures: 0,
            problem: Some(TokenProblem::NotYet),
        };
        Ok((tokens, watched))
    }

    /// The value of `Authorization`, or why there is none.
    pub fn header(&self) -> Result<&str, TokenProblem> {
        match &self.held {
            Some(token) => Ok(token.header.reveal()),
            None => Err(self.problem.unwrap_or(TokenProblem::NotYet)),
        }
    }

    /// What the last fetch failed with, though an older token may still be held.
    pub fn problem(&self) -> Option<TokenProblem> {
        self.problem
    }

    /// When there is something to do again.
    pub fn wake_at(&self) -> Mono {
        let ends = self.held.as_ref().map_or(Mono::NEVER, |token| token.ends);
        self.next_at.min(ends)
    }

    /// Fetches a token if one is due: by time, because the destination has `refused` the one held, or because the client's
    /// secret is a `new_secret`. Returns whether [`Tokens::header`] has changed.
    pub async fn keep(
        &mut self,
        secret: &str,
        refused: bool,
        new_secret: bool,
        now: impl Fn() -> Mono,
    ) -> bool {
        let at = now();
        let had = self.held.is_some();
        let is_refused = refused && had && at >= self.refusable_at;
        let mut changed = false;
        if at >= self.next_at || is_refused || new_secret {
            if is_refused {
                self.refusable_at = at.after(REFUSED_EVERY);
            }
            match self.fetch(secret).await {
                Ok((header, life)) => {
                    self.accept(header, life, now());
                    return true;
                }
                Err(problem) => {
                    self.failures = self.failures.saturating_add(1);
                    self.problem = Some(problem);
                    let wait = backoff::wait(self.failures, RETRY_MIN, RETRY_MAX, None, fastrand::f64());
                    self.next_at = now().after(wait);
                    changed = !had;
                }
            }
            if is_refused {
                self.held = None;
            }
        }
        if self.held.as_ref().is_some_and(|token| token.ends <= now()) {
            self.held = None;
        }
        changed || had != self.held.is_some()
    }

    fn accept(&mut self, header: Secret, life: Option<Duration>, now: Mono) {
        self.failures = 0;
        self.problem = None;
        // A token that lives shorter than EARLY is fetched anew halfway.
        self.next_at = life.map_or(Mono::NEVER, |life| {
            now.after(life.saturating_sub(EARLY).max(life / 2))
        });
        let ends = life.map_or(Mono::NEVER, |life| now.after(life));
        self.held = Some(Token { header, ends });
    }

    async fn fetch(&mut self, secret: &str) -> Result<(Secret, Option<Duration>), TokenProblem> {
        let style = self.style.unwrap_or(Style::Header);
        let mut result = self.ask(style, secret).await;
        if self.style.is_none() && matches!(result, Err(TokenProblem::Refused(..) | TokenProblem::NoToken)) {
            result = self.ask(Style::Form, secret).await;
            if result.is_ok() {
                self.style = Some(Style::Form);
            }
        } else if result.is_ok() {
            self.style = Some(style);
        }
        result
    }

    async fn ask(&self, style: Style, secret: &str) -> Result<(Secret, Option<Duration>), TokenProblem> {
        let form = form(&self.plan, style, secret);
        let authorization = (style == Style::Header).then(|| basic(self.plan.client_id.reveal(), secret));
        let answer = self.client.post_form(form, authorization.as_deref()).await;
        read(&answer.map_err(TokenProblem::Unanswered)?)
    }
}

/// The form of a request for a token (RFC 6749 sections 2.3.1 and 4.4.2).
fn form(plan: &OAuth2Plan, style: Style, secret: &str) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    if !plan.scopes.is_empty() {
        form.append_pair("scope", &plan.scopes.join(" "));
    }
    for (name, value) in &plan.endpoint_params {
        form.append_pair(name, value.reveal());
    }
    if style == Style::Form {
        form.append_pair("client_id", plan.client_id.reveal());
        form.append_pair("client_secret", secret);
    }
    form.finish()
}

/// Id and secret are form-encoded before they are joined (RFC 6749 section 2.3.1).
fn basic(id: &str, secret: &str) -> String {
    let encode = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    let pair = format!("{}:{}", encode(id), encode(secret));
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// What an endpoint answers (RFC 6749 section 5.1). Some write numbers as text.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    #[serde(default)]
    token_type: String,
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

fn read(answer: &Answer) -> Result<(Secret, Option<Duration>), TokenProblem> {
    if !(200..300).contains(&answer.status) {
        return Err(TokenProblem::Refused(answer.status, error_code(&answer.body)));
    }
    let content_type = answer.headers.get(hyper::header::CONTENT_TYPE);
    let content_type = content_type
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let granted = match essence {
        "application/x-www-form-urlencoded" | "text/plain" => from_form(&answer.body),
        _ => serde_json::from_slice(&answer.body).ok(),
    };
    let granted =
        granted.filter(|granted| !granted.access_token.is_empty() && is_field_text(&granted.access_token));
    let granted = granted.ok_or(TokenProblem::NoToken)?;
    let kind = match granted.token_type.as_str() {
        kind if kind.is_empty() || kind.eq_ignore_ascii_case("bearer") => "Bearer",
        kind if is_field_text(kind) => kind,
        _ => return Err(TokenProblem::NoToken),
    };
    let seconds = granted.expires_in.and_then(|value| match value {
        serde_json::Value::String(text) => text.parse::<f64>().ok(),
        value => value.as_f64(),
    });
    // No life, or none that makes sense, is a token without an end, as in Go's oauth2.
    let life = seconds.filter(|seconds| *seconds > 0.0);
    Ok((
        Secret::new(format!("{kind} {}", granted.access_token)),
        life.map(|seconds| Duration::from_secs_f64(seconds.min(LIFE_SECS_MAX))),
    ))
}

fn from_form(body: &[u8]) -> Option<Granted> {
    let mut granted = Granted {
        access_token: String::new(),
        token_type: String::new(),
        expires_in: None,
    };
    for (name, value) in form_urlencoded::parse(body) {
        match &*name {
            "access_token" => granted.access_token = value.into_owned(),
            "token_type" => granted.token_type = value.into_owned(),
            "expires_in" => granted.expires_in = Some(value.into_owned().into()),
            _ => {}
        }
    }
    Some(granted)
}

/// The error code of a refusal (RFC 6749 section 5.2) where it is one of those; nothing else of the answer is told.
fn error_code(body: &[u8]) -> &'static str {
    const CODES: [&str; 6] = [
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
    ];
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let told = body["error"].as_str().unwrap_or_default();
    CODES.into_iter().find(|code| *code == told).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn answer(status: u16, content_type: &'static str, body: &'static str) -> Answer {
        let content_type = hyper::header::HeaderValue::from_static(content_type);
        Answer {
            status,
            headers: [(hyper::header::CONTENT_TYPE, content_type)]
                .into_iter()
                .collect(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn answers_become_tokens() {
        let json = "application/json; charset=utf-8";
        for (name, content_type, body, header, seconds) in [
            (
                "plain",
                json,
                r#"{"access_token":"t","token_type":"bearer","expires_in":60}"#,
                "Bearer t",
                Some(60),
            ),
            (
                "no type, no end",
                json,
                r#"{"access_token":"t"}"#,
                "Bearer t",
                None,
            ),
            (
                "another type",
                json,
                r#"{"access_token":"t","token_type":"DPoP"}"#,
                "DPoP t",
                None,
            ),
            (
                "a number as text",
                json,
                r#"{"access_token":"t","expires_in":"7"}"#,
                "Bearer t",
                Some(7),
            ),
            (
                "no sense",
                json,
                r#"{"access_token":"t","expires_in":-7}"#,
                "Bearer t",
                None,
            ),
            (
                "for ever",
                json,
                r#"{"access_token":"t","expires_in":1e300}"#,
                "Bearer t",
                Some(315_360_000),
            ),
            (
                "null",
                json,
                r#"{"access_token":"t","expires_in":null}"#,
                "Bearer t",
                None,
            ),
            (
                "form",
                "application/x-www-form-urlencoded",
                "access_token=t%20u&expires_in=5",
                "Bearer t u",
                Some(5),
            ),
        ] {
            let (token, life) = read(&answer(200, content_type, body)).expect(name);
            assert_eq!(
                (token.reveal(), life.map(|life| life.as_secs())),
                (header, seconds),
                "{name}"
            );
        }
    }

    #[test]
    fn what_is_no_token_is_told_without_its_words() {
        let json = "application/json";
        for (status, body, expected) in [
            (200, r#"{"access_token":""}"#, TokenProblem::NoToken),
            (200, r#"{"access_token":"a\r\nX: y"}"#, TokenProblem::NoToken),
            (200, r#"{"access_token":7}"#, TokenProblem::NoToken),
            (200, "<html>", TokenProblem::NoToken),
            (
                401,
                r#"{"error":"invalid_client"}"#,
                TokenProblem::Refused(401, "invalid_client"),
            ),
            (400, r#"{"error":"s3cret"}"#, TokenProblem::Refused(400, "")),
            (503, "", TokenProblem::Refused(503, "")),
            (302, "", TokenProblem::Refused(302, "")),
        ] {
            assert_eq!(
                read(&answer(status, json, body)).unwrap_err(),
                expected,
                "{status} {body}"
            );
        }
    }

    #[test]
    fn id_and_secret_are_encoded_before_they_are_joined() {
        let expected = base64::engine::general_purpose::STANDARD.encode("a%3Ab:c+d%26");
        assert_eq!(basic("a:b", "c d&"), format!("Basic {expected}"));
    }

    #[test]
    fn a_token_is_fetched_anew_in_time() {
        let second = |seconds| Mono::default().after(Duration::from_secs(seconds));
        for (life, next, ends) in [(60, 50, 60), (11, 5, 11), (4, 2, 4), (30, 20, 30)] {
            let mut tokens = tokens();
            tokens.accept(Secret::new("t"), Some(Duration::from_secs(life)), Mono::default());
            let expected = if life == 11 {
                second(5).after(Duration::from_millis(500))
            } else {
                second(next)
            };
            assert_eq!((tokens.next_at, tokens.wake_at()), (expected, expected), "{life}");
            assert_eq!(
                tokens.held.as_ref().map(|token| token.ends),
                Some(second(ends)),
                "{life}"
            );
        }
        let mut tokens = tokens();
        tokens.accept(Secret::new("t"), None, Mono::default());
        assert_eq!(tokens.wake_at(), Mono::NEVER);
    }

    fn tokens() -> Tokens {
        let mut options = crate::config::destination::oauth2::OAuth2Options::default();
        for (key, value) in [
            ("oauth2.client-id", "me"),
            ("oauth2.client-secret", "s"),
            ("oauth2.token-url", "http://h"),
        ] {
            assert!(options.set(key, value).unwrap());
        }
        Tokens::new(options.plan().unwrap(), &ProxyRules::default(), "a")
            .unwrap()
            .0
    }
}
