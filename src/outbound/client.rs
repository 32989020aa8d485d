//! One HTTP request from the control plane, as token endpoints get them: a connection of its own, directly or through a
//! proxy, in cleartext or not, bounded in time and size.
//!
//! ```text
//!  http://   ─▶ the endpoint               or ─▶ the proxy, which passes the request on
//!  https://  ─▶ TLS ─▶ the endpoint        or ─▶ the proxy, asked for a tunnel (CONNECT) ─▶ TLS ─▶ the endpoint
//! ```
//! HTTP is hyper's, TLS is rustls's by `tokio-rustls`. Not responsible for parcels, which never come here.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::upgrade::Upgraded;
use hyper::{HeaderMap, Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::head;
use crate::config::{Proxy, ProxyRules, Secret, TokenUrl};
use crate::runtime::tls::TlsFailure;
use crate::runtime::tls::client::{ClientSide, Greeting};

/// For a whole request: look-up, connection, handshake and answer.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// A token is a few KiB at most.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Where requests go, and how.
#[derive(Debug)]
pub struct Client {
    url: TokenUrl,
    tls: Option<Arc<ClientSide>>,
    proxy: Option<Proxy>,
    /// What the proxy is told when it is asked for a tunnel.
    connect_headers: Vec<(String, Secret)>,
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Its header.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why there is none. Names no URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// No connection, or its name does not resolve.
    #[error("cannot be reached: {0}")]
    Unreachable(io::ErrorKind),
    /// Its proxy does not lead to it.
    #[error("is behind a proxy that gives no tunnel: it answered {0}")]
    NoTunnel(u16),
    /// A connection, and no TLS on it.
    #[error("cannot be spoken to in TLS: {0}")]
    Tls(#[from] TlsFailure),
    /// `REQUEST_MAX` was over.
    #[error("did not answer within 10 s")]
    TimedOut,
    /// What came is no HTTP answer.
    #[error("broke the connection, or its answer is no good HTTP")]
    BadAnswer,
    /// The answer is larger than any token.
    #[error("answered with more than 64 KiB")]
    TooLarge,
    /// What was to be sent cannot stand in a request.
    #[error("cannot be asked: its URL or the credentials cannot stand in a request")]
    BadRequest,
}

impl Client {
    /// A client of `url`, through the proxy that `proxies` name for it. `tls` is there where the URL says `https`.
    pub fn new(url: TokenUrl, tls: Option<Arc<ClientSide>>, proxies: &ProxyRules) -> Self {
        let proxy = proxies.via(tls.is_some(), &url.host, url.port).cloned();
        Self {
            url,
            tls,
            proxy,
            connect_headers: proxies.connect_headers.clone(),
        }
    }

    /// Posts a form. `authorization` is the value of that header.
    ///
    /// # Errors
    /// Where no whole answer came, whatever its status.
    pub async fn post_form(&self, form: String, authorization: Option<&str>) -> Result<Answer, ClientError> {
        let request = self.request(form, authorization)?;
        let answered = tokio::time::timeout(REQUEST_MAX, self.exchange(request));
        answered.await.unwrap_or(Err(ClientError::TimedOut))
    }

    fn request(
        &self,
        form: String,
        authorization: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        // A proxy that passes the request on has to be told where to; behind a tunnel nobody does.
        let relay = self.proxy.as_ref().filter(|_| self.tls.is_none());
        let target = match relay {
            Some(_) => format!("http://{}{}", self.url.authority, self.url.target),
            None => self.url.target.clone(),
        };
        let mut request = Request::new(Full::from(form));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.parse::<Uri>().map_err(|_| ClientError::BadRequest)?;
        let headers = request.headers_mut();
        headers.insert(HOST, text(&self.url.authority)?);
        headers.insert(USER_AGENT, HeaderValue::from_static(head::USER_AGENT));
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
        if let Some(authorization) = authorization {
            headers.insert(hyper::header::AUTHORIZATION, secret(authorization)?);
        }
        if let Some(proxy) = relay {
            introduce(proxy, headers)?;
        }
        Ok(request)
    }

    /// Asks the proxy for a tunnel to the endpoint (RFC 9110 section 9.3.6).
    fn tunnel_request(&self, proxy: &Proxy) -> Result<Request<Full<Bytes>>, ClientError> {
        let (host, port) = (&self.url.host, self.url.port);
        let authority = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let mut request = Request::new(Full::default());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = authority.parse::<Uri>().map_err(|_| ClientError::BadRequest)?;
        let headers = request.headers_mut();
        headers.insert(HOST, text(&authority)?);
        headers.insert(USER_AGENT, HeaderValue::from_static(head::USER_AGENT));
        introduce(proxy, headers)?;
        for (name, value) in &self.connect_headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| ClientError::BadRequest)?;
            headers.append(name, secret(value.reveal())?);
        }
        Ok(request)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
        let (host, port) = match &self.proxy {
            Some(proxy) => (&proxy.host, proxy.port),
            None => (&self.url.host, self.url.port),
        };
        let stream = TcpStream::connect((host.as_str(), port)).await;
        let stream = stream.map_err(|error| ClientError::Unreachable(error.kind()))?;
        match (&self.tls, &self.proxy) {
            (None, _) => converse(stream, request).await,
            (Some(tls), None) => converse(shake_hands(tls.own(), stream).await?, request).await,
            (Some(tls), Some(proxy)) => {
                let tunnel = dig(stream, self.tunnel_request(proxy)?).await?;
                converse(shake_hands(tls.own(), TokioIo::new(tunnel)).await?, request).await
            }
        }
    }
}

fn text(value: &str) -> Result<HeaderValue, ClientError> {
    HeaderValue::from_str(value).map_err(|_| ClientError::BadRequest)
}

fn secret(value: &str) -> Result<HeaderValue, ClientError> {
    let mut value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| ClientError::BadRequest)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Says who we are to the proxy, where it wants to know.
fn introduce(proxy: &Proxy, headers: &mut HeaderMap) -> Result<(), ClientError> {
    if let Some(credentials) = &proxy.credentials {
        let basic = secret(&format!("Basic {}", credentials.reveal()))?;
        headers.insert(PROXY_AUTHORIZATION, basic);
    }
    Ok(())
}

/// A connection through the proxy at the other end of `stream`.
async fn dig(stream: TcpStream, request: Request<Full<Bytes>>) -> Result<Upgraded, ClientError> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
    // It ends by itself when it has handed the connection over, or when the sender has gone.
    tokio::task::spawn_local(connection.with_upgrades());
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| broken(&error))?;
    if !response.status().is_success() {
        return Err(ClientError::NoTunnel(response.status().as_u16()));
    }
    hyper::upgrade::on(response).await.map_err(|error| broken(&error))
}

async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    greeting: Greeting,
    stream: S,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<S>, ClientError> {
    let connected = TlsConnector::from(greeting.config)
        .connect(greeting.name, stream)
        .await;
    connected.map_err(|error| ClientError::Tls(failure_within(&error).unwrap_or(TlsFailure::Closed)))
}

/// Sends the request on a connection and reads the answer.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, ClientError> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
    // It moves the bytes, and ends by itself when the sender has gone.
    tokio::task::spawn_local(connection);
    let response = sender.send_request(request).await;
    let (head, body) = response.map_err(|error| broken(&error))?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => ClientError::TooLarge,
        false => broken(&*error),
    })?;
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.to_bytes(),
    })
}

/// What broke an exchange: a server may say only now what it thinks of our certificate (TLS 1.3).
fn broken(error: &(dyn Error + 'static)) -> ClientError {
    failure_within(error).map_or(ClientError::BadAnswer, ClientError::Tls)
}

/// The failure of TLS that is at the bottom of an error, if one is.
fn failure_within(error: &(dyn Error + 'static)) -> Option<TlsFailure> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(failure) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Some(TlsFailure::of(failure));
        }
        next = error.source();
    }
    None
}
