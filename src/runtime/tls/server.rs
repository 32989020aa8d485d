//! TLS as the data port speaks it: our certificate, and what is asked of clients (WIRE.md 5.3, rows 132 to 134).

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};

use super::files::{Stamps, TlsFileError, Watched, authorities, certificates, private_key};
use super::{provider, versions};
use crate::config::{ClientAuth, ServerTls};

const CERT: &str = "--tls-cert-file";
const KEY: &str = "--tls-key-file";
const CLIENT_CA: &str = "--tls-client-ca-file";

/// What handshakes with clients go by; new ones take what is current.
#[derive(Debug)]
pub struct ServerSide {
    plan: ServerTls,
    protocols: Vec<Vec<u8>>,
    current: ArcSwap<ServerConfig>,
}

impl ServerSide {
    /// Reads the files of `plan`. `protocols` are offered by ALPN, the best first.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn load(plan: ServerTls, protocols: &[&str]) -> Result<(Arc<Self>, Watched), TlsFileError> {
        let files: Vec<PathBuf> = [&plan.cert_file, &plan.key_file]
            .into_iter()
            .chain(&plan.client_ca_file)
            .cloned()
            .collect();
        let stamps = Stamps::of(files.iter());
        let protocols: Vec<Vec<u8>> = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let current = ArcSwap::new(config(&plan, &protocols)?);
        let side = Arc::new(Self {
            plan,
            protocols,
            current,
        });
        let watched = Watched {
            owner: "--listen".into(),
            files,
            stamps,
            reload: {
                let side = side.clone();
                Box::new(move || {
                    side.current.store(config(&side.plan, &side.protocols)?);
                    Ok(())
                })
            },
        };
        Ok((side, watched))
    }

    /// For a handshake that begins now.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

fn config(plan: &ServerTls, protocols: &[Vec<u8>]) -> Result<Arc<ServerConfig>, TlsFileError> {
    let chain = certificates(CERT, &plan.cert_file)?;
    let key = private_key(KEY, &plan.key_file)?;
    let roots = match &plan.client_ca_file {
        Some(path) => Some(authorities(CLIENT_CA, path)?),
        None => None,
    };
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions(plan.min_version))
        .map_err(|error| TlsFileError::new(CERT, &plan.cert_file, error.to_string()))?
        .with_client_cert_verifier(verifier(plan, roots, &provider)?);
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| TlsFileError::new(CERT, &plan.cert_file, unfit(&error)))?;
    config.alpn_protocols = protocols.to_vec();
    if plan.client_auth == ClientAuth::NoClientCert {
        // Clients that come back every few seconds resume: tickets cost us no memory, whichever core they come to.
        if let Ok(ticketer) = rustls::crypto::ring::Ticketer::new() {
            config.ticketer = ticketer;
        }
        config.send_tls13_tickets = 1;
    } else {
        // A resumed session is not asked for a certificate again, so one that has expired or lost its CA would go on.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

fn unfit(error: &Error) -> String {
    match error {
        Error::InconsistentKeys(_) => {
            "does not fit the key in --tls-key-file; give the certificate and the key of one pair".into()
        }
        other => format!("cannot be used with the key in --tls-key-file: {other}"),
    }
}

fn verifier(
    plan: &ServerTls,
    roots: Option<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsFileError> {
    let policy = plan.client_auth;
    match (policy, &plan.client_ca_file, roots) {
        (ClientAuth::NoClientCert, _, _) => Ok(WebPkiClientVerifier::no_client_auth()),
        (_, Some(path), Some(roots)) if policy.verifies() => {
            let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            let builder = if policy.requires() {
                builder
            } else {
                builder.allow_unauthenticated()
            };
            builder
                .build()
                .map_err(|error| TlsFileError::new(CLIENT_CA, path, error.to_string()))
        }
        (_, _, roots) => Ok(Arc::new(AnyCertificate {
            is_required: policy.requires(),
            hints: roots.map(|roots| roots.subjects()).unwrap_or_default(),
            provider: provider.clone(),
        })),
    }
}

/// Takes any certificate whose key the client has: nobody has to have signed it (RequestClientCert,
/// RequireAnyClientCert).
#[derive(Debug)]
struct AnyCertificate {
    is_required: bool,
    hints: Vec<DistinguishedName>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        self.is_required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
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
