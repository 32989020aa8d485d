//! TLS towards destinations: whom we trust, and what we show (WIRE.md 4.1 `tls_config`, row 125).
//!
//! Trusted by default are the system's roots: an operator who has put a company CA on the host, as for every other program
//! there, expects it to count.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::files::{Stamps, TlsFileError, Watched, authorities, certificates, private_key};
use super::{TlsFailure, provider, versions};
use crate::config::ClientTls;

const CA: &str = "tls-ca-file";
const CERT: &str = "tls-cert-file";
const KEY: &str = "tls-key-file";

/// What handshakes with one destination go by; new ones take what is current.
#[derive(Debug)]
pub struct ClientSide {
    plan: ClientTls,
    name: ServerName<'static>,
    current: ArcSwap<Configs>,
}

/// With our certificate for the destination itself, and without it for where it redirects to.
#[derive(Debug)]
struct Configs {
    own: Arc<ClientConfig>,
    elsewhere: Arc<ClientConfig>,
}

impl ClientSide {
    /// Reads the files of `plan`, which belongs to the destination `owner`.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn load(plan: ClientTls, owner: &str) -> Result<(Arc<Self>, Watched), TlsFileError> {
        let files: Vec<PathBuf> = [&plan.ca_file, &plan.cert_file, &plan.key_file]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let stamps = Stamps::of(files.iter());
        let name = ServerName::try_from(plan.server_name.clone()).map_err(|_| {
            TlsFileError::new(
                CERT,
                plan.server_name.as_ref(),
                "is no name that a certificate could be for",
            )
        })?;
        let current = ArcSwap::from_pointee(configs(&plan)?);
        let side = Arc::new(Self { plan, name, current });
        let watched = Watched {
            owner: owner.to_owned(),
            files,
            stamps,
            reload: {
                let side = side.clone();
                Box::new(move || {
                    side.current.store(Arc::new(configs(&side.plan)?));
                    Ok(())
                })
            },
        };
        Ok((side, watched))
    }

    /// For a handshake with the destination that begins now.
    pub fn own(&self) -> Greeting {
        Greeting {
            config: self.current.load().own.clone(),
            name: self.name.clone(),
        }
    }

    /// For a handshake with `host`, where the destination redirects to. It sees no certificate of ours.
    ///
    /// # Errors
    /// When no certificate could be for `host`.
    pub fn elsewhere(&self, host: &str) -> Result<Greeting, TlsFailure> {
        Greeting::new(self.current.load().elsewhere.clone(), host)
    }
}

/// What a handshake begins with.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// Whom we trust and what we show.
    pub config: Arc<ClientConfig>,
    /// Whom we want to speak to.
    pub name: ServerName<'static>,
}

impl Greeting {
    fn new(config: Arc<ClientConfig>, host: &str) -> Result<Self, TlsFailure> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsFailure::NameMismatch)?;
        Ok(Self { config, name })
    }

    /// For a handshake with `host`, where a destination in cleartext redirects to: the system's roots, no certificate.
    ///
    /// # Errors
    /// When no certificate could be for `host`.
    pub fn by_system(host: &str) -> Result<Self, TlsFailure> {
        static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
        if let Some(config) = CONFIG.get() {
            return Self::new(config.clone(), host);
        }
        let made = config(&ClientTls::new(host), None).map_err(|_| TlsFailure::Protocol)?;
        Self::new(CONFIG.get_or_init(|| made).clone(), host)
    }
}

/// The system's roots, read once: files that the system's owner replaces rarely. The first call reads files.
pub fn system_roots() -> &'static SystemRoots {
    static ROOTS: OnceLock<SystemRoots> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        let (count, _) = store.add_parsable_certificates(found.certs);
        SystemRoots {
            store: Arc::new(store),
            count,
        }
    })
}

/// The certificates that this system trusts.
#[derive(Debug)]
pub struct SystemRoots {
    store: Arc<RootCertStore>,
    /// How many there are.
    pub count: usize,
}

fn configs(plan: &ClientTls) -> Result<Configs, TlsFileError> {
    let elsewhere = ClientTls {
        cert_file: None,
        key_file: None,
        ..plan.clone()
    };
    let roots = match &plan.ca_file {
        Some(path) => Some(Arc::new(authorities(CA, path)?)),
        None if plan.insecure_skip_verify || system_roots().count > 0 => None,
        None => {
            return Err(TlsFileError::new(
                CA,
                "(none given)".as_ref(),
                "this system has no root certificates either; install ca-certificates, or name a file",
            ));
        }
    };
    Ok(Configs {
        own: config(plan, roots.clone())?,
        elsewhere: config(&elsewhere, roots)?,
    })
}

/// `roots`: those that stand in for the system's.
fn config(plan: &ClientTls, roots: Option<Arc<RootCertStore>>) -> Result<Arc<ClientConfig>, TlsFileError> {
    let provider = provider();
    let impossible = |error: Error| TlsFileError::new(CA, plan.server_name.as_ref(), error.to_string());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions(plan.min_version))
        .map_err(impossible)?;
    let builder = if plan.insecure_skip_verify {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer { provider }))
    } else {
        builder.with_root_certificates(roots.unwrap_or_else(|| system_roots().store.clone()))
    };
    let mut config = match (&plan.cert_file, &plan.key_file) {
        (Some(cert_file), Some(key_file)) => {
            let chain = certificates(CERT, cert_file)?;
            let key = private_key(KEY, key_file)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                let problem = match error {
                    Error::InconsistentKeys(_) => {
                        "does not fit the key in tls-key-file; give the certificate and the key of one pair"
                            .into()
                    }
                    other => format!("cannot be used with the key in tls-key-file: {other}"),
                };
                TlsFileError::new(CERT, cert_file, problem)
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    // What we speak; a server that knows several protocols takes this one.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Takes any certificate whose key the server has (`tls-insecure-skip-verify`).
#[derive(Debug)]
struct AnyServer {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
