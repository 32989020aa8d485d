//! How a destination is told who we are: basic, bearer, any other scheme, OAuth2, and headers whose value is in a file
//! (WIRE.md 4.1). Text in, a checked [`AuthPlan`] out.
//!
//! Not responsible for reading the files, which is `outbound/secrets.rs`; here they are paths.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::oauth2::{OAuth2Options, OAuth2Plan};
use super::{DestinationPlan, Secret};

/// What stands in front of the credentials where nothing else is said (WIRE.md 4.1).
const SCHEME_DEFAULT: &str = "Bearer";

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// The configuration itself.
    Value(Secret),
    /// The trimmed content of this file, read again when it changes.
    File(PathBuf),
}

/// How requests to a destination are authorized, after every check: at most one way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthPlan {
    /// Not at all, or by a header of the operator's.
    #[default]
    None,
    /// `Authorization: Basic base64(username:password)`.
    Basic {
        /// The user.
        username: Secret,
        /// Its password.
        password: SecretSource,
    },
    /// `Authorization: SCHEME CREDENTIALS`.
    Scheme {
        /// `Bearer`, or whatever the operator says; never Basic but for a user in the URL.
        scheme: String,
        /// What follows it.
        credentials: SecretSource,
    },
    /// An access token that is fetched.
    #[serde(rename = "oauth2")]
    OAuth2(Box<OAuth2Plan>),
}

/// What was said about authorization, before it is known whether it fits together. The options of `--to` and Alloy's
/// blocks both end up here.
#[derive(Clone, Debug, Default)]
pub struct AuthOptions {
    /// `user:password@` of the URL, already in base64.
    pub url_user: Option<Secret>,
    /// Whether a header of the operator's, or one from a file, is named Authorization.
    pub has_own_header: bool,
    /// `basic-auth.username`.
    pub basic_username: Option<Secret>,
    /// `basic-auth.password`.
    pub basic_password: Option<Secret>,
    /// `basic-auth.password-file`.
    pub basic_password_file: Option<PathBuf>,
    /// `bearer-token`.
    pub bearer_token: Option<Secret>,
    /// `bearer-token-file`.
    pub bearer_token_file: Option<PathBuf>,
    /// `authorization.type`.
    pub authorization_type: Option<String>,
    /// `authorization.credentials`.
    pub authorization_credentials: Option<Secret>,
    /// `authorization.credentials-file`.
    pub authorization_credentials_file: Option<PathBuf>,
    /// `oauth2.`...
    pub oauth2: OAuth2Options,
}

/// The options of `--to` that are set here.
pub const AUTH_OPTIONS: [&str; 8] = [
    "basic-auth.username",
    "basic-auth.password",
    "basic-auth.password-file",
    "bearer-token",
    "bearer-token-file",
    "authorization.type",
    "authorization.credentials",
    "authorization.credentials-file",
];

impl AuthOptions {
    /// Takes the option `key` if it is one of ours. Returns whether it is.
    ///
    /// # Errors
    /// A sentence that names the option and not its value.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        let secret = || match value {
            "" => Err(format!("{key} is empty")),
            value => Ok(Some(Secret::new(value))),
        };
        let path = || file(key, value).map(Some);
        match key {
            "basic-auth.username" => self.basic_username = secret()?,
            "basic-auth.password" => self.basic_password = secret()?,
            "basic-auth.password-file" => self.basic_password_file = path()?,
            "bearer-token" => self.bearer_token = secret()?,
            "bearer-token-file" => self.bearer_token_file = path()?,
            "authorization.type" => self.authorization_type = Some(value.to_owned()),
            "authorization.credentials" => self.authorization_credentials = secret()?,
            "authorization.credentials-file" => self.authorization_credentials_file = path()?,
            _ => return self.oauth2.set(key, value),
        }
        Ok(true)
    }

    /// Checks what was said and says what follows (WIRE.md 4.1, config errors; rows 120 and 122).
    ///
    /// # Errors
    /// A sentence: two ways to authorize, a secret given twice or not at all, a scheme that is none.
    pub fn plan(self) -> Result<AuthPlan, String> {
        self.only_one_way()?;
        if let Some(credentials) = self.url_user {
            return Ok(AuthPlan::Scheme {
                scheme: "Basic".into(),
                credentials: SecretSource::Value(credentials),
            });
        }
        if self.oauth2.is_given {
            return self.oauth2.plan().map(Box::new).map(AuthPlan::OAuth2);
        }
        if let Some(token) = one_source("bearer-token", self.bearer_token, self.bearer_token_file)? {
            return scheme(SCHEME_DEFAULT.into(), "bearer-token", token);
        }
        let password = one_source(
            "basic-auth.password",
            self.basic_password,
            self.basic_password_file,
        )?;
        match (self.basic_username, password) {
            (Some(username), password) => {
                if username.reveal().contains(':') {
                    return Err(
                        "basic-auth.username has a colon, which would end it (RFC 7617 section 2)".into(),
                    );
                }
                return Ok(AuthPlan::Basic {
                    username,
                    // A user without a password is allowed, as in Alloy.
                    password: password.unwrap_or(SecretSource::Value(Secret::new(""))),
                });
            }
            (None, Some(_)) => return Err("basic-auth has a password and no basic-auth.username".into()),
            (None, None) => {}
        }
        let credentials = one_source(
            "authorization.credentials",
            self.authorization_credentials,
            self.authorization_credentials_file,
        )?;
        match (self.authorization_type, credentials) {
            (None, None) => Ok(AuthPlan::None),
            (Some(_), None) => Err(
                "authorization.type needs authorization.credentials or authorization.credentials-file".into(),
            ),
            (kind, Some(credentials)) => {
                let kind = kind.unwrap_or_else(|| SCHEME_DEFAULT.into());
                if kind.eq_ignore_ascii_case("basic") {
                    return Err(
                        "authorization.type cannot be Basic; write basic-auth.username and \
                                basic-auth.password-file"
                            .into(),
                    );
                }
                scheme(kind, "authorization.credentials", credentials)
            }
        }
    }

    fn only_one_way(&self) -> Result<(), String> {
        let basic = self.basic_username.is_some()
            || self.basic_password.is_some()
            || self.basic_password_file.is_some();
        let authorization = self.authorization_type.is_some()
            || self.authorization_credentials.is_some()
            || self.authorization_credentials_file.is_some();
        let ways = [
            ("a user in the URL", self.url_user.is_some()),
            ("header.Authorization", self.has_own_header),
            ("basic-auth", basic),
            (
                "bearer-token",
                self.bearer_token.is_some() || self.bearer_token_file.is_some(),
            ),
            ("authorization", authorization),
            ("oauth2", self.oauth2.is_given),
        ];
        let mut given = ways.iter().filter(|(_, given)| *given).map(|(way, _)| way);
        match (given.next(), given.next()) {
            (Some(one), Some(other)) => Err(format!("has both {one} and {other}; keep one of them")),
            _ => Ok(()),
        }
    }
}

impl DestinationPlan {
    /// Every secret file of this destination: the option that names it, and its path.
    pub fn secret_files(&self) -> Vec<(String, &Path)> {
        let headers = self.header_files.iter();
        let mut files: Vec<(String, &Path)> = headers
            .map(|(name, path)| (format!("header-file.{name}"), path.as_path()))
            .collect();
        let (option, source) = match &self.auth {
            AuthPlan::None => return files,
            AuthPlan::Basic { password, .. } => ("basic-auth.password-file", password),
            AuthPlan::Scheme { credentials, .. } => ("the file with its credentials", credentials),
            AuthPlan::OAuth2(plan) => ("oauth2.client-secret-file", &plan.client_secret),
        };
        if let SecretSource::File(path) = source {
            files.push((option.to_owned(), path));
        }
        files
    }
}

/// The path that an option gives.
///
/// # Errors
/// When it is empty.
pub fn file(key: &str, value: &str) -> Result<PathBuf, String> {
    match value {
        "" => Err(format!("{key} is empty; it needs the path of a file")),
        path => Ok(PathBuf::from(path)),
    }
}

/// A secret that may be given by itself or as a file, not both.
pub(super) fn one_source(
    option: &str,
    value: Option<Secret>,
    file: Option<PathBuf>,
) -> Result<Option<SecretSource>, String> {
    match (value, file) {
        (Some(_), Some(_)) => Err(format!("has both {option} and {option}-file; keep one of them")),
        (Some(value), None) => Ok(Some(SecretSource::Value(value))),
        (None, Some(path)) => Ok(Some(SecretSource::File(path))),
        (None, None) => Ok(None),
    }
}

fn scheme(scheme: String, option: &str, credentials: SecretSource) -> Result<AuthPlan, String> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if scheme.is_empty() || !scheme.chars().all(is_token) {
        return Err("authorization.type is no scheme (RFC 9110 section 11.1), such as Bearer".into());
    }
    if let SecretSource::Value(value) = &credentials
        && !is_field_text(value.reveal())
    {
        return Err(format!("{option} has a control character"));
    }
    Ok(AuthPlan::Scheme { scheme, credentials })
}

/// Whether `text` may stand in a header line (RFC 9110 section 5.5).
pub fn is_field_text(text: &str) -> bool {
    !text
        .bytes()
        .any(|byte| byte < 0x20 && byte != b'\t' || byte == 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(options: &[(&str, &str)]) -> Result<AuthPlan, String> {
        let mut all = AuthOptions::default();
        for (key, value) in options {
            assert!(all.set(key, value)?, "{key} is an option");
        }
        all.plan()
    }

    fn value(text: &str) -> SecretSource {
        SecretSource::Value(Secret::new(text))
    }

    #[test]
    fn each_way_to_authorize() {
        let scheme = |scheme: &str, credentials| AuthPlan::Scheme {
            scheme: scheme.into(),
            credentials,
        };
        let basic = |password| AuthPlan::Basic {
            username: Secret::new("u"),
            password,
        };
        let user = ("basic-auth.username", "u");
        let file = || SecretSource::File("/f".into());
        for (name, options, expected) in [
            ("none", &[][..], AuthPlan::None),
            ("basic", &[user, ("basic-auth.password", "p")], basic(value("p"))),
            (
                "basic, file",
                &[user, ("basic-auth.password-file", "/f")],
                basic(file()),
            ),
            ("basic, no password", &[user], basic(value(""))),
            ("bearer", &[("bearer-token", "t")], scheme("Bearer", value("t"))),
            (
                "bearer, file",
                &[("bearer-token-file", "/f")],
                scheme("Bearer", file()),
            ),
            (
                "authorization, default type",
                &[("authorization.credentials", "c")],
                scheme("Bearer", value("c")),
            ),
            (
                "authorization, own type, file",
                &[
                    ("authorization.type", "Token"),
                    ("authorization.credentials-file", "/f"),
                ],
                scheme("Token", file()),
            ),
        ] {
            assert_eq!(plan(options).as_ref(), Ok(&expected), "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused_without_its_secrets() {
        for (name, options, says) in [
            (
                "two ways",
                &[("bearer-token", "s3cret"), ("basic-auth.username", "s3cret")][..],
                "both basic-auth and bearer-token",
            ),
            (
                "oauth2 and another",
                &[("bearer-token", "s3cret"), ("oauth2.client-id", "s3cret")],
                "both bearer-token and oauth2",
            ),
            (
                "two forms",
                &[("bearer-token", "s3cret"), ("bearer-token-file", "/f")],
                "both bearer-token and bearer-token-file",
            ),
            (
                "no user",
                &[("basic-auth.password", "s3cret")],
                "no basic-auth.username",
            ),
            ("colon", &[("basic-auth.username", "s3:cret")], "colon"),
            (
                "basic by the back door",
                &[
                    ("authorization.type", "bAsic"),
                    ("authorization.credentials", "s3cret"),
                ],
                "basic-auth.username",
            ),
            ("a type alone", &[("authorization.type", "Token")], "needs"),
            (
                "no scheme",
                &[
                    ("authorization.type", "To ken"),
                    ("authorization.credentials", "s3cret"),
                ],
                "no scheme",
            ),
            (
                "a line break",
                &[("bearer-token", "s3cret\r\nX: y")],
                "control character",
            ),
            ("nothing", &[("bearer-token", "")], "empty"),
            ("no path", &[("bearer-token-file", "")], "path"),
        ] {
            let error = plan(options).unwrap_err();
            assert!(error.contains(says) && !error.contains("s3"), "{name}: {error}");
        }
    }
}
