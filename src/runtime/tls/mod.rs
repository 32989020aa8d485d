//! TLS without sockets: a [`Session`] turns ciphertext into plaintext and back, in memory.
//!
//! ```text
//!  socket ─▶ feed(ciphertext) ─▶ take(plaintext) ─▶ the receive buffer of the request
//!  socket ◀─ drain(ciphertext) ◀─ give(plaintext pieces)
//! ```
//! The state machine and all cryptography are rustls with `ring`: it builds with a C compiler alone, in seconds, where
//! `aws-lc-rs` asks for more of the machine and of the time; both speak the same suites to our peers.
//!
//! What a byte costs: rustls keeps buffers of its own, so a received byte is written by the kernel, decrypted in place, and
//! copied into the request's buffer, which stands for the one write of DESIGN.md section 4; from there on TLS and plain
//! connections are the same. Memory of a connection: its keys and state (about 4 KiB), up to one record (18 KiB) that is
//! not whole yet, and while bytes move one receive and one send buffer ([`super::stream`]). A handshake message may be up
//! to 64 KiB, a bound of rustls.
//!
//! Responsible for: sessions, what a failure means ([`TlsFailure`]), certificates in files ([`files`]), and what is asked of
//! peers ([`client`], [`server`]). Not responsible for sockets and deadlines.

pub mod client;
pub mod files;
pub mod server;

use std::io::{self, BufRead as _, IoSlice, Write as _};
use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, Error, ServerConfig,
    ServerConnection, SupportedProtocolVersion,
};
use smallvec::SmallVec;

use crate::config::TlsVersion;

/// Pieces of plaintext that one call takes; the rest waits for the next one.
const PIECES_MAX: usize = 64;

/// One connection's TLS.
pub struct Session {
    connection: Connection,
}

impl Session {
    /// The side of a client that wants to speak to `name`.
    ///
    /// # Errors
    /// When the configuration cannot be used at all.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, TlsFailure> {
        Ok(Self {
            connection: ClientConnection::new(config, name)
                .map_err(|error| TlsFailure::of(&error))?
                .into(),
        })
    }

    /// The side of a server.
    ///
    /// # Errors
    /// When the configuration cannot be used at all.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, TlsFailure> {
        Ok(Self {
            connection: ServerConnection::new(config)
                .map_err(|error| TlsFailure::of(&error))?
                .into(),
        })
    }

    /// Whether the handshake is still under way.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether the peer speaks HTTP/2: both sides have agreed on it by ALPN (RFC 7301).
    pub fn is_http2(&self) -> bool {
        self.connection.alpn_protocol() == Some(b"h2")
    }

    /// Takes received ciphertext; returns how much of it. An empty slice stands for the end of the connection. Plaintext
    /// must have been [taken](Session::take) before.
    ///
    /// # Errors
    /// What is wrong with it. An alert for the peer may then wait in [`Session::drain`].
    pub fn feed(&mut self, mut ciphertext: &[u8]) -> Result<usize, TlsFailure> {
        let read = self.connection.read_tls(&mut ciphertext);
        let used = read.map_err(|_| TlsFailure::Protocol)?;
        match self.connection.process_new_packets() {
            Ok(_) => Ok(used),
            Err(error) => Err(TlsFailure::of(&error)),
        }
    }

    /// Hands received plaintext to `put`, up to `room` bytes, and returns how much. `None`: there is none until more is fed;
    /// `Some(0)`: the peer has said that no more comes.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the connection has ended without the peer's word (close_notify): what came
    /// before may be cut short.
    pub fn take(&mut self, room: usize, mut put: impl FnMut(&[u8])) -> io::Result<Option<usize>> {
        let mut reader = self.connection.reader();
        let mut taken = 0;
        while taken < room {
            let piece = match reader.fill_buf() {
                Ok([]) => return Ok(Some(taken)),
                Ok(chunk) => &chunk[..chunk.len().min(room - taken)],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if taken == 0 => return Err(error),
                Err(_) => break,
            };
            put(piece);
            let step = piece.len();
            taken += step;
            reader.consume(step);
        }
        Ok((taken > 0).then_some(taken))
    }

    /// Whether received plaintext waits to be taken, or the peer has said its last word.
    pub fn has_news(&mut self) -> bool {
        !matches!(self.connection.reader().fill_buf(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Encrypts plaintext, at most 64 KiB of it (the limit that rustls sets by default); returns how much.
    ///
    /// # Errors
    /// When the session has failed.
    pub fn give<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        let pieces: SmallVec<[IoSlice<'_>; PIECES_MAX]> = pieces.take(PIECES_MAX).map(IoSlice::new).collect();
        self.connection.writer().write_vectored(&pieces)
    }

    /// Appends all ciphertext that is to be sent to `out`.
    pub fn drain(&mut self, out: &mut Vec<u8>) {
        // A `Vec` takes everything.
        while self.connection.wants_write() && matches!(self.connection.write_tls(out), Ok(1..)) {}
    }

    /// Whether there is ciphertext to be sent.
    pub fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Says goodbye (close_notify), unless the session has failed.
    pub fn close(&mut self) {
        self.connection.send_close_notify();
    }
}

/// Why a handshake or a session failed, in words that tell neither an address nor anything of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFailure {
    /// Its certificate is of the past.
    #[error("the certificate has expired")]
    Expired,
    /// Its certificate is of the future, or our clock is wrong.
    #[error("the certificate is not valid yet; is the clock right?")]
    NotYetValid,
    /// Nobody we trust has signed its certificate.
    #[error("the certificate is signed by an unknown authority")]
    UnknownAuthority,
    /// Its certificate is for somebody else.
    #[error("the certificate is for another name")]
    NameMismatch,
    /// A CA's own certificate, shown by a server.
    #[error("the certificate is one of an authority (CA:TRUE), not of a server")]
    AuthorityAsServer,
    /// Its certificate is broken, revoked, or for another purpose.
    #[error("the certificate cannot be used")]
    BadCertificate,
    /// It has shown no certificate, and one is required.
    #[error("no certificate was shown, and one is required")]
    NoCertificate,
    /// It has refused us, with this alert.
    #[error("the peer refused: {0}")]
    Refused(&'static str),
    /// No version or cipher suite in common.
    #[error("no version or cipher suite in common")]
    Incompatible,
    /// No application protocol in common.
    #[error("no application protocol (ALPN) in common")]
    NoProtocol,
    /// What came is no TLS.
    #[error("what came is no TLS")]
    NoTls,
    /// The connection ended within the handshake.
    #[error("the connection ended within the handshake")]
    Closed,
    /// It took too long.
    #[error("the handshake was not over in time")]
    TimedOut,
    /// Against the rules in some other way.
    #[error("the peer breaks the rules of TLS")]
    Protocol,
}

impl TlsFailure {
    /// What `error` comes to.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(alert) => Self::Refused(alert_text(*alert)),
            Error::PeerIncompatible(_) => Self::Incompatible,
            Error::NoApplicationProtocol => Self::NoProtocol,
            Error::InvalidMessage(_) => Self::NoTls,
            _ => Self::Protocol,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        use CertificateError as Bad;
        match error {
            Bad::Expired | Bad::ExpiredContext { .. } => Self::Expired,
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => Self::NotYetValid,
            Bad::UnknownIssuer => Self::UnknownAuthority,
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => Self::NameMismatch,
            // The only name it has outside of rustls.
            Bad::Other(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
                Self::AuthorityAsServer
            }
            _ => Self::BadCertificate,
        }
    }

    /// The failure inside an error of a read or a write, if that is one of TLS.
    pub fn within(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Self>().copied()
    }

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Expired => "tls_certificate_expired",
            Self::NotYetValid => "tls_certificate_not_yet_valid",
            Self::UnknownAuthority => "tls_certificate_unknown_authority",
            Self::NameMismatch => "tls_certificate_name_mismatch",
            Self::AuthorityAsServer | Self::BadCertificate => "tls_certificate_bad",
            Self::NoCertificate => "tls_certificate_missing",
            Self::Refused(_) => "tls_refused_by_client",
            Self::Incompatible => "tls_incompatible",
            Self::NoProtocol => "tls_no_protocol",
            Self::NoTls => "tls_malformed",
            Self::Closed => "tls_closed",
            Self::TimedOut => "tls_timeout",
            Self::Protocol => "tls_protocol",
        }
    }
}

impl From<TlsFailure> for io::Error {
    fn from(failure: TlsFailure) -> Self {
        io::Error::other(failure)
    }
}

/// RFC 8446 section 6, as an operator says it.
fn alert_text(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::HandshakeFailure => "handshake failure",
        AlertDescription::BadCertificate => "bad certificate",
        AlertDescription::UnsupportedCertificate => "unsupported certificate",
        AlertDescription::CertificateRevoked => "certificate revoked",
        AlertDescription::CertificateExpired => "certificate expired",
        AlertDescription::CertificateUnknown => "certificate unknown",
        AlertDescription::UnknownCA => "unknown certificate authority",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::ProtocolVersion => "protocol version",
        AlertDescription::InsufficientSecurity => "insufficient security",
        AlertDescription::InternalError => "internal error",
        AlertDescription::UnrecognisedName => "unrecognised name",
        AlertDescription::CertificateRequired => "certificate required",
        AlertDescription::NoApplicationProtocol => "no application protocol",
        AlertDescription::DecodeError => "decode error",
        AlertDescription::DecryptError => "decrypt error",
        _ => "another alert",
    }
}

/// The cryptography, made once.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::ring::default_provider()))
        .clone()
}

/// The versions from `min` on.
fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static LATEST: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    match min {
        TlsVersion::Tls12 => rustls::ALL_VERSIONS,
        TlsVersion::Tls13 => &LATEST,
    }
}
