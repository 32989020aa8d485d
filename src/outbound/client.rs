//! One HTTP request from the control plane, as token endpoints get them: a connection of its own, directly or through a
//! proxy, bounded in time and size.
//!
//! Not responsible for parcels, which never come here.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::{HeaderMap, Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::head;
use crate::config::{Proxy, ProxyRules, TokenUrl};

/// For a whole request: look-up, connection and answer.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// A token is a few KiB at most.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Where requests go, and how.
#[derive(Debug)]
pub struct Client {
    url: TokenUrl,
    proxy: Option<Proxy>,
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
    /// [`REQUEST_MAX`] was over.
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
    /// A client of `url`, through the proxy that `proxies` name for it.
    pub fn new(url: TokenUrl, proxies: &ProxyRules) -> Self {
        let proxy = proxies.via(url.is_tls, &url.host, url.port).cloned();
        Self { url, proxy }
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
        let target = match &self.proxy {
            Some(_) => format!("http://{}{}", self.url.authority, self.url.target),
            None => self.url.target.clone(),
        };
        let secret = |value: &str| {
            let mut value = HeaderValue::from_str(value).map_err(|_| ClientError::BadRequest)?;
            value.set_sensitive(true);
            Ok(value)
        };
        let mut request = Request::new(Full::from(form));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.parse::<Uri>().map_err(|_| ClientError::BadRequest)?;
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.url.authority).map_err(|_| ClientError::BadRequest)?;
        headers.insert(HOST, host);
        headers.insert(USER_AGENT, HeaderValue::from_static(head::USER_AGENT));
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
        if let Some(authorization) = authorization {
            headers.insert(hyper::header::AUTHORIZATION, secret(authorization)?);
        }
        if let Some(credentials) = self.proxy.as_ref().and_then(|proxy| proxy.credentials.as_ref()) {
            headers.insert(
                PROXY_AUTHORIZATION,
                secret(&format!("Basic {}", credentials.reveal()))?,
            );
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
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|_| ClientError::BadAnswer)?;
        // It moves the bytes, and ends by itself when the sender has gone.
        tokio::task::spawn_local(connection);
        let response = sender.send_request(request).await;
        let (head, body) = response.map_err(|_| ClientError::BadAnswer)?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| match error.is::<LengthLimitError>() {
            true => ClientError::TooLarge,
            false => ClientError::BadAnswer,
        })?;
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.to_bytes(),
        })
    }
}
