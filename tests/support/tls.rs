//! Certificates made on the spot, and connections that speak TLS or do not.
//!
//! Both sides here are rustls by itself, without the gateway's sessions and streams. Not responsible for HTTP (`Client`,
//! `Peer`).

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConnection, RootCertStore, ServerConnection, StreamOwned};

pub use rustls::{ClientConfig, ServerConfig};

/// A connection, in cleartext or not.
pub enum Link {
    /// Cleartext.
    Plain(TcpStream),
    /// The client's side.
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// The server's side.
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Link {
    /// Speaks TLS to `name`.
    pub fn client(stream: TcpStream, config: Arc<ClientConfig>, name: &str) -> Self {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let connection = ClientConnection::new(config, name).expect("a good config");
        Self::Client(Box::new(StreamOwned::new(connection, stream)))
    }

    /// Answers in TLS.
    pub fn server(stream: TcpStream, config: Arc<ServerConfig>) -> Self {
        let connection = ServerConnection::new(config).expect("a good config");
        Self::Server(Box::new(StreamOwned::new(connection, stream)))
    }

    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Client(tls) => &tls.sock,
            Self::Server(tls) => &tls.sock,
        }
    }

    /// What the other side has shown.
    pub fn peer_certificate(&self) -> Option<Vec<u8>> {
        let shown = match self {
            Self::Plain(_) => None,
            Self::Client(tls) => tls.conn.peer_certificates(),
            Self::Server(tls) => tls.conn.peer_certificates(),
        };
        Some(shown?.first()?.to_vec())
    }

    /// Whether the session was taken up again rather than made anew.
    pub fn is_resumed(&self) -> bool {
        let kind = match self {
            Self::Plain(_) => None,
            Self::Client(tls) => tls.conn.handshake_kind(),
            Self::Server(tls) => tls.conn.handshake_kind(),
        };
        kind == Some(rustls::HandshakeKind::Resumed)
    }

    /// Sends close_notify; nothing in cleartext.
    pub fn say_goodbye(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => return Ok(()),
            Self::Client(tls) => tls.conn.send_close_notify(),
            Self::Server(tls) => tls.conn.send_close_notify(),
        }
        self.flush()
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Client(tls) => tls.read(buffer),
            Self::Server(tls) => tls.read(buffer),
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Client(tls) => tls.write(bytes),
            Self::Server(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Client(tls) => tls.flush(),
            Self::Server(tls) => tls.flush(),
        }
    }
}

/// Somebody who signs certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

/// A pair in files.
pub struct PairFiles {
    /// Of the certificate.
    pub cert: PathBuf,
    /// Of its key.
    pub key: PathBuf,
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are good names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name.to_owned());
        let key = KeyPair::generate().expect("ring makes keys");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("it signs itself");
        Self { issuer }
    }

    /// Its own certificate, in PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Certifies a new key for `names`: DNS names or addresses.
    pub fn issue(&self, names: &[&str]) -> Pair {
        self.issue_with(names, |_| {})
    }

    /// The same, with something about the certificate changed.
    pub fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("good names");
        change(&mut params);
        let key = KeyPair::generate().expect("ring makes keys");
        let cert = params.signed_by(&key, &self.issuer).expect("it signs");
        Pair {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }

    /// Those who trust this authority alone.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a good certificate");
        roots
    }

    /// A client that trusts this authority and shows `pair` when asked.
    pub fn client(&self, pair: Option<&Pair>) -> Arc<ClientConfig> {
        self.client_of(pair, rustls::ALL_VERSIONS)
    }

    /// The same with these versions only.
    pub fn client_of(
        &self,
        pair: Option<&Pair>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("versions that exist")
            .with_root_certificates(self.roots());
        Arc::new(match pair {
            Some(pair) => builder
                .with_client_auth_cert(pair.chain(), pair.private_key())
                .expect("a pair"),
            None => builder.with_no_client_auth(),
        })
    }

    /// A server that asks clients for certificates of this authority.
    pub fn server_asking(&self, pair: &Pair) -> Arc<ServerConfig> {
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), provider())
                .build()
                .expect("roots");
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .expect("versions that exist")
            .with_client_cert_verifier(verifier);
        Arc::new(
            builder
                .with_single_cert(pair.chain(), pair.private_key())
                .expect("a pair"),
        )
    }
}

impl Pair {
    /// A server that shows it.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server_of(rustls::ALL_VERSIONS)
    }

    /// The same with these versions only.
    pub fn server_of(&self, versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("versions that exist")
            .with_no_client_auth();
        Arc::new(
            builder
                .with_single_cert(self.chain(), self.private_key())
                .expect("a pair"),
        )
    }

    /// Writes it to `folder` under `name`, over what is there.
    pub fn write(&self, folder: &Path, name: &str) -> PairFiles {
        let files = PairFiles {
            cert: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}-key.pem")),
        };
        std::fs::write(&files.cert, &self.cert).expect("a folder of ours");
        std::fs::write(&files.key, &self.key).expect("a folder of ours");
        files
    }

    /// In DER.
    pub fn der(&self) -> Vec<u8> {
        self.chain()[0].to_vec()
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.cert.as_bytes()).expect("PEM of ours")]
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM of ours")
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
