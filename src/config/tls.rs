//! What the operator asked of TLS, on both sides. Names of files only: what is in them is read when cores start.
//!
//! Names are those of Alloy (WIRE.md 4.1 `tls_config`, 5.3): the client's spelling of versions (`TLS12`) and the server's
//! (`VersionTLS12`) are both taken everywhere. Not responsible for certificates themselves (`runtime/tls`).

use std::path::PathBuf;

use clap::ValueEnum;
use rustls::pki_types::ServerName;
use serde::Serialize;

/// The oldest version that is spoken. Older ones are refused by name: rustls has none below 1.2, for good reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
pub enum TlsVersion {
    /// 1.2 and 1.3; the default, as in Alloy.
    #[default]
    #[value(name = "TLS12", alias = "VersionTLS12", alias = "1.2")]
    #[serde(rename = "TLS12")]
    Tls12,
    /// 1.3 alone.
    #[value(name = "TLS13", alias = "VersionTLS13", alias = "1.3")]
    #[serde(rename = "TLS13")]
    Tls13,
}

/// Whether clients show certificates: Go's `ClientAuthType` (WIRE.md 5.3, row 132).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
pub enum ClientAuth {
    /// None is asked for.
    #[default]
    #[value(name = "NoClientCert")]
    NoClientCert,
    /// One is asked for; none is fine, and so is any.
    #[value(name = "RequestClientCert")]
    RequestClientCert,
    /// One is needed, any.
    #[value(name = "RequireAnyClientCert", alias = "RequireClientCert")]
    RequireAnyClientCert,
    /// None is fine; one that is shown must be signed by the client CA.
    #[value(name = "VerifyClientCertIfGiven")]
    VerifyClientCertIfGiven,
    /// One is needed, signed by the client CA.
    #[value(name = "RequireAndVerifyClientCert")]
    RequireAndVerifyClientCert,
}

impl ClientAuth {
    /// Whether a certificate is held against the client CA.
    pub fn verifies(self) -> bool {
        matches!(
            self,
            Self::VerifyClientCertIfGiven | Self::RequireAndVerifyClientCert
        )
    }

    /// Whether a client without a certificate is refused.
    pub fn requires(self) -> bool {
        matches!(
            self,
            Self::RequireAnyClientCert | Self::RequireAndVerifyClientCert
        )
    }

    /// Its name, as the flag takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoClientCert => "NoClientCert",
            Self::RequestClientCert => "RequestClientCert",
            Self::RequireAnyClientCert => "RequireAnyClientCert",
            Self::VerifyClientCertIfGiven => "VerifyClientCertIfGiven",
            Self::RequireAndVerifyClientCert => "RequireAndVerifyClientCert",
        }
    }
}

/// TLS on the addresses that clients push to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerTls {
    /// `--tls-cert-file`.
    pub cert_file: PathBuf,
    /// `--tls-key-file`.
    pub key_file: PathBuf,
    /// `--tls-client-ca-file`.
    pub client_ca_file: Option<PathBuf>,
    /// `--tls-client-auth`.
    pub client_auth: ClientAuth,
    /// `--tls-min-version`.
    pub min_version: TlsVersion,
}

/// TLS towards one destination: the `tls-` options of its `--to`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClientTls {
    /// What stands in for the system's roots.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, if the destination asks for one.
    pub cert_file: Option<PathBuf>,
    /// Its key; there exactly when [`ClientTls::cert_file`] is.
    pub key_file: Option<PathBuf>,
    /// The name or address that the destination's certificate must be for: that of its URL, or `tls-server-name`.
    pub server_name: String,
    /// Whether any certificate will do.
    pub insecure_skip_verify: bool,
    /// `tls-min-version`.
    pub min_version: TlsVersion,
}

impl ClientTls {
    /// TLS with the system's roots towards `host`.
    pub fn new(host: &str) -> Self {
        Self {
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: host.to_owned(),
            insecure_skip_verify: false,
            min_version: TlsVersion::default(),
        }
    }

    /// Takes the option `tls-` and `key`. Returns whether there is such a one.
    ///
    /// # Errors
    /// A sentence on a value that cannot be.
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        let file = || match value {
            "" => Err(format!("tls-{key}= needs the path of a file")),
            path => Ok(Some(PathBuf::from(path))),
        };
        match key {
            "ca-file" => self.ca_file = file()?,
            "cert-file" => self.cert_file = file()?,
            "key-file" => self.key_file = file()?,
            "server-name" => value.clone_into(&mut self.server_name),
            "insecure-skip-verify" => {
                self.insecure_skip_verify = value
                    .parse()
                    .map_err(|_| format!("tls-{key}={value}: expected true or false"))?;
            }
            "min-version" => {
                self.min_version = TlsVersion::from_str(value, false).map_err(|_| {
                    format!("tls-{key}={value}: expected TLS12 or TLS13; older ones are not spoken")
                })?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Judges the options together.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), String> {
        match (&self.cert_file, &self.key_file) {
            (Some(_), None) => return Err("tls-cert-file needs tls-key-file beside it".into()),
            (None, Some(_)) => return Err("tls-key-file needs tls-cert-file beside it".into()),
            _ => {}
        }
        if self.insecure_skip_verify && self.ca_file.is_some() {
            return Err("tls-insecure-skip-verify looks at no CA; leave it or tls-ca-file out".into());
        }
        match ServerName::try_from(self.server_name.as_str()) {
            Ok(_) => Ok(()),
            Err(_) => Err(format!(
                "'{}' is no name or address that a certificate could be for; give tls-server-name",
                self.server_name
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_taken_in_both_spellings() {
        for (text, expected) in [
            ("TLS12", Some(TlsVersion::Tls12)),
            ("VersionTLS12", Some(TlsVersion::Tls12)),
            ("TLS13", Some(TlsVersion::Tls13)),
            ("VersionTLS13", Some(TlsVersion::Tls13)),
            ("TLS10", None),
            ("VersionTLS11", None),
            ("", None),
        ] {
            assert_eq!(TlsVersion::from_str(text, false).ok(), expected, "{text}");
        }
    }

    #[test]
    fn policies_have_the_names_of_go() {
        for policy in ClientAuth::value_variants() {
            assert_eq!(ClientAuth::from_str(policy.name(), false).as_ref(), Ok(policy));
        }
        assert_eq!(
            ClientAuth::from_str("RequireClientCert", false),
            Ok(ClientAuth::RequireAnyClientCert)
        );
    }

    #[test]
    fn contradictions_are_named() {
        let with = |change: fn(&mut ClientTls)| {
            let mut tls = ClientTls::new("host");
            change(&mut tls);
            tls.check().unwrap_err()
        };
        assert!(with(|tls| tls.cert_file = Some("c".into())).contains("tls-key-file"));
        assert!(with(|tls| tls.key_file = Some("k".into())).contains("tls-cert-file"));
        assert!(with(|tls| tls.server_name = "a b".into()).contains("tls-server-name"));
        let both = with(|tls| {
            tls.ca_file = Some("ca".into());
            tls.insecure_skip_verify = true;
        });
        assert!(both.contains("tls-ca-file"), "{both}");
        for host in [
            "localhost",
            "127.0.0.1",
            "::1",
            "my_host.internal",
            "xn--bcher-kva.example",
        ] {
            assert_eq!(ClientTls::new(host).check(), Ok(()), "{host}");
        }
    }
}
