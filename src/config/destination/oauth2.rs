//! OAuth 2.0 client credentials of a destination (RFC 6749 section 4.4; WIRE.md 4.1, row 123). Text in, a checked
//! [`OAuth2Plan`] out.
//!
//! Not responsible for fetching tokens, which is `outbound/oauth2.rs`.

use std::path::PathBuf;

use serde::Serialize;
use url::Url;

use super::auth::{SecretSource, file, one_source};
use super::proxy::{ProxyOptions, ProxyPlan};
use super::{Secret, host_of};
use crate::config::tls::ClientTls;

/// How a destination's access tokens are had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OAuth2Plan {
    /// Who we are to the token endpoint.
    pub client_id: Secret,
    /// Its secret.
    pub client_secret: SecretSource,
    /// Where tokens are.
    pub token_url: TokenUrl,
    /// What is asked for, one word each.
    pub scopes: Vec<String>,
    /// Further fields of the form, such as `audience`.
    pub endpoint_params: Vec<(String, Secret)>,
    /// Through which proxy the endpoint is asked; that of the destination does not count.
    pub proxy: ProxyPlan,
}

/// Where a token endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenUrl {
    /// How it is spoken to, where the URL says `https`.
    pub tls: Option<ClientTls>,
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// What `Host` says.
    pub authority: String,
    /// Path and query.
    pub target: String,
}

/// What was said about it, before it is known whether it fits together.
#[derive(Clone, Debug, Default)]
pub struct OAuth2Options {
    /// `oauth2.client-id`.
    pub client_id: Option<Secret>,
    /// `oauth2.client-secret`.
    pub client_secret: Option<Secret>,
    /// `oauth2.client-secret-file`.
    pub client_secret_file: Option<PathBuf>,
    /// `oauth2.token-url`.
    pub token_url: Option<String>,
    /// `oauth2.scopes`, separated by spaces.
    pub scopes: Option<String>,
    /// `oauth2.endpoint-param.NAME`.
    pub endpoint_params: Vec<(String, Secret)>,
    /// `oauth2.proxy-url` and the like.
    pub proxy: ProxyOptions,
    /// `oauth2.tls-ca-file` and the like, if any was given. No name there stands for that of the URL.
    pub tls: Option<ClientTls>,
    /// Whether any of them was given.
    pub is_given: bool,
}

/// What all our options begin with.
pub const OAUTH2: &str = "oauth2.";
/// The options of `--to` that are set here, but for proxies, TLS and parameters.
pub const OAUTH2_OPTIONS: [&str; 5] = [
    "oauth2.client-id",
    "oauth2.client-secret",
    "oauth2.client-secret-file",
    "oauth2.token-url",
    "oauth2.scopes",
];
/// What the names of parameters begin with.
const ENDPOINT_PARAM: &str = "endpoint-param.";

impl OAuth2Options {
    /// Takes the option `key` if it is one of ours. Returns whether it is.
    ///
    /// # Errors
    /// A sentence that repeats no secret.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        let Some(own) = key.strip_prefix(OAUTH2) else {
            return Ok(false);
        };
        let secret = || match value {
            "" => Err(format!("{key} is empty")),
            value => Ok(Some(Secret::new(value))),
        };
        self.is_given = true;
        match own {
            "client-id" => self.client_id = secret()?,
            "client-secret" => self.client_secret = secret()?,
            "client-secret-file" => self.client_secret_file = Some(file(key, value)?),
            "token-url" => self.token_url = Some(value.to_owned()),
            "scopes" => self.scopes = Some(value.to_owned()),
            own => {
                if let Some(name) = own.strip_prefix(ENDPOINT_PARAM) {
                    self.endpoint_params.push((name.to_owned(), Secret::new(value)));
                    return Ok(true);
                }
                if let Some(option) = own.strip_prefix("tls-") {
                    let tls = self.tls.get_or_insert_with(|| ClientTls::new(""));
                    return tls
                        .set(option, value)
                        .map_err(|problem| format!("{OAUTH2}{problem}"));
                }
                return self.proxy.set(own, value);
            }
        }
        Ok(true)
    }

    /// Checks what was said and says what follows (WIRE.md 4.1, config errors).
    ///
    /// # Errors
    /// A sentence: what is missing, given twice, or no URL.
    pub fn plan(self) -> Result<OAuth2Plan, String> {
        let source = one_source(
            "oauth2.client-secret",
            self.client_secret,
            self.client_secret_file,
        )?;
        let missing = |option: &str| format!("oauth2 needs {option}");
        Ok(OAuth2Plan {
            client_id: self.client_id.ok_or_else(|| missing("oauth2.client-id"))?,
            client_secret: source
                .ok_or_else(|| missing("oauth2.client-secret-file or oauth2.client-secret"))?,
            token_url: self
                .token_url
                .ok_or_else(|| missing("oauth2.token-url"))
                .and_then(|text| {
                    TokenUrl::parse(&text, self.tls).map_err(|problem| format!("oauth2.token-url {problem}"))
                })?,
            scopes: self
                .scopes
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            endpoint_params: self.endpoint_params,
            proxy: self
                .proxy
                .plan()
                .map_err(|problem| format!("oauth2: {problem}"))?,
        })
    }
}

impl TokenUrl {
    /// Reads the URL; `tls` is what was said about TLS.
    fn parse(text: &str, tls: Option<ClientTls>) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("is no good URL: {error}"))?;
        let is_tls = match url.scheme() {
            "http" => false,
            "https" => true,
            other => return Err(format!("has the scheme {other}; write https:// or http://")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("has a user in it; that is oauth2.client-id".into());
        }
        let host = host_of(&url).ok_or("has no host")?;
        let port = url.port_or_known_default().unwrap_or(0);
        if port == 0 {
            return Err("has port 0, which cannot be connected to".into());
        }
        let name = url.host_str().unwrap_or_default();
        let authority = match url.port() {
            Some(port) => format!("{name}:{port}"),
            None => name.to_owned(),
        };
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let tls = match (is_tls, tls) {
            (false, None) => None,
            (false, Some(_)) => return Err("is http://, and oauth2.tls- options are for https://".into()),
            (true, tls) => {
                let mut tls = tls.unwrap_or_else(|| ClientTls::new(""));
                if tls.server_name.is_empty() {
                    tls.server_name.clone_from(&host);
                }
                tls.check()
                    .map_err(|problem| format!("and its oauth2.tls- options do not fit: {problem}"))?;
                Some(tls)
            }
        };
        Ok(Self {
            tls,
            host,
            port,
            authority,
            target,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(options: &[(&str, &str)]) -> Result<OAuth2Plan, String> {
        let mut all = OAuth2Options::default();
        for (key, value) in options {
            assert!(all.set(key, value)?, "{key} is an option");
        }
        all.plan()
    }

    const ID: (&str, &str) = ("oauth2.client-id", "me");
    const SECRET: (&str, &str) = ("oauth2.client-secret", "s3cret");
    const HTTPS: (&str, &str) = ("oauth2.token-url", "https://idp");
    const URL: (&str, &str) = ("oauth2.token-url", "http://idp:8080/token?x=1");

    #[test]
    fn options_make_a_plan() {
        let plan = plan(&[
            ID,
            ("oauth2.client-secret-file", "/f"),
            URL,
            ("oauth2.scopes", "a  b"),
            ("oauth2.endpoint-param.audience", "push"),
            ("oauth2.proxy-url", "http://squid"),
        ])
        .unwrap();
        assert_eq!(plan.client_secret, SecretSource::File("/f".into()));
        assert_eq!(plan.scopes, ["a", "b"]);
        assert_eq!(
            plan.endpoint_params,
            [("audience".to_owned(), Secret::new("push"))]
        );
        assert!(matches!(plan.proxy, ProxyPlan::Rules(_)));
        let TokenUrl {
            tls,
            host,
            port,
            authority,
            target,
        } = plan.token_url;
        assert_eq!((tls, host.as_str(), port), (None, "idp", 8080));
        assert_eq!((authority.as_str(), target.as_str()), ("idp:8080", "/token?x=1"));
        let https = TokenUrl::parse("https://[::1]", None).unwrap();
        assert_eq!(
            (https.tls, https.host.as_str(), https.port),
            (Some(ClientTls::new("::1")), "::1", 443)
        );
        assert_eq!((https.authority.as_str(), https.target.as_str()), ("[::1]", "/"));
    }

    #[test]
    fn tls_has_options_of_its_own() {
        let url = ("oauth2.token-url", "https://idp/token");
        let plan = plan(&[
            ID,
            SECRET,
            url,
            ("oauth2.tls-ca-file", "/ca"),
            ("oauth2.tls-cert-file", "/c"),
            ("oauth2.tls-key-file", "/k"),
            ("oauth2.tls-min-version", "TLS13"),
        ])
        .unwrap();
        let expected = ClientTls {
            ca_file: Some("/ca".into()),
            cert_file: Some("/c".into()),
            key_file: Some("/k".into()),
            min_version: crate::config::TlsVersion::Tls13,
            ..ClientTls::new("idp")
        };
        assert_eq!(plan.token_url.tls, Some(expected));
        let named = self::plan(&[ID, SECRET, ("oauth2.tls-server-name", "n"), url]).unwrap();
        assert_eq!(named.token_url.tls, Some(ClientTls::new("n")));
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        for (name, options, says) in [
            ("no id", &[SECRET, URL][..], "oauth2.client-id"),
            ("no secret", &[ID, URL], "oauth2.client-secret-file"),
            ("no URL", &[ID, SECRET], "oauth2.token-url"),
            (
                "two secrets",
                &[ID, SECRET, URL, ("oauth2.client-secret-file", "/f")],
                "both",
            ),
            (
                "no URL of ours",
                &[ID, SECRET, ("oauth2.token-url", "ftp://x")],
                "ftp",
            ),
            (
                "a user",
                &[ID, SECRET, ("oauth2.token-url", "http://s3cret@x")],
                "user",
            ),
            (
                "TLS without TLS",
                &[ID, SECRET, URL, ("oauth2.tls-insecure-skip-verify", "true")],
                "are for https://",
            ),
            (
                "half a pair",
                &[ID, SECRET, HTTPS, ("oauth2.tls-cert-file", "/c")],
                "tls-key-file",
            ),
            (
                "an old version",
                &[ID, SECRET, HTTPS, ("oauth2.tls-min-version", "TLS10")],
                "oauth2.tls-min-version=TLS10",
            ),
            (
                "no name for a certificate",
                &[ID, SECRET, HTTPS, ("oauth2.tls-server-name", "a b")],
                "tls-server-name",
            ),
            (
                "a bad proxy",
                &[ID, SECRET, URL, ("oauth2.no-proxy", "a")],
                "needs proxy-url",
            ),
        ] {
            let error = plan(options).unwrap_err();
            assert!(
                error.contains(says) && !error.contains("s3cret"),
                "{name}: {error}"
            );
        }
        assert_eq!(OAuth2Options::default().set("oauth2.colour", "red"), Ok(false));
        assert_eq!(
            OAuth2Options::default().set("oauth2.tls-colour", "red"),
            Ok(false)
        );
        assert_eq!(OAuth2Options::default().set("client-id", "me"), Ok(false));
    }
}
