//! A good client of HTTP/2: the `h2` crate, in cleartext or in TLS.
//!
//! Not responsible for hostile ones, which write frames by hand in their tests.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use hyper::{HeaderMap, Request};
use tokio::io::{AsyncRead, AsyncWrite};

use super::DEADLINE;
use super::tls::ClientConfig;

/// Runs a client to its end, which must come in time.
pub fn run<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(DEADLINE, client).await.expect("in time")
    })
}

/// A client of HTTP/2.
#[derive(Clone)]
pub struct Speaker {
    /// Where requests go.
    pub send: SendRequest<Bytes>,
    scheme: &'static str,
}

/// What came back.
#[derive(Debug)]
pub struct Got {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// What came behind the body.
    pub trailers: Option<HeaderMap>,
}

impl Got {
    /// Waits for an answer and reads it whole.
    pub async fn of(answer: ResponseFuture) -> Result<Self, h2::Error> {
        let (head, mut body) = answer.await?.into_parts();
        let mut got = Self {
            status: head.status.as_u16(),
            headers: head.headers,
            body: Vec::new(),
            trailers: None,
        };
        while let Some(piece) = body.data().await {
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            got.body.extend_from_slice(&piece);
        }
        got.trailers = body.trailers().await?;
        Ok(got)
    }

    /// The first value of an answer's header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    /// The same of its trailers.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        let trailers = self.trailers.as_ref()?;
        trailers.get(name).map(|value| value.to_str().expect("text"))
    }
}

/// Connects in cleartext.
pub async fn speak(address: SocketAddr) -> Speaker {
    let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    Speaker::over(stream, "http").await
}

/// Connects in TLS, by ALPN.
pub async fn speak_tls(address: SocketAddr, config: Arc<ClientConfig>) -> Speaker {
    let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let name = "localhost".try_into().expect("a name");
    let stream = tokio_rustls::TlsConnector::from(config)
        .connect(name, stream)
        .await
        .expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    Speaker::over(stream, "https").await
}

impl Speaker {
    async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, scheme: &'static str) -> Self {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .handshake(stream)
            .await
            .expect("HTTP/2");
        // It ends with the test.
        tokio::task::spawn_local(async move { drop(connection.await) });
        Self { send, scheme }
    }

    /// A request without a body.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}://localhost{path}", self.scheme));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a good request")
    }

    /// Posts and waits for the answer.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Got {
        self.call("POST", path, headers, body).await.expect("an answer")
    }

    /// Sends any request and reads its answer whole.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Got, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let (answer, mut stream) = send.send_request(self.request(method, path, headers), body.is_empty())?;
        if !body.is_empty() {
            // Refused bodies are not taken to their end.
            let _ = send_body(&mut stream, body).await;
        }
        Got::of(answer).await
    }

    /// Begins a request whose body is sent by the test.
    pub async fn begin(&self, path: &str, headers: &[(&str, &str)]) -> (ResponseFuture, SendStream<Bytes>) {
        let mut send = self.send.clone().ready().await.expect("it goes on");
        let request = self.request("POST", path, headers);
        send.send_request(request, false).expect("a good request")
    }
}

/// Sends a body and its end, as fast as the other side lets it.
pub async fn send_body(stream: &mut SendStream<Bytes>, body: &[u8]) -> Result<(), h2::Error> {
    send_part(stream, body, true).await.map(drop)
}

/// Sends a part of a body, which may be the last. Returns how much of it went: not all where the other side has ended the
/// stream.
pub async fn send_part(stream: &mut SendStream<Bytes>, part: &[u8], ends: bool) -> Result<usize, h2::Error> {
    let mut rest = Bytes::copy_from_slice(part);
    while !rest.is_empty() {
        stream.reserve_capacity(rest.len().min(64 << 10));
        let Some(room) = std::future::poll_fn(|context| stream.poll_capacity(context)).await else {
            return Ok(part.len() - rest.len());
        };
        let piece = rest.split_to(room?.min(rest.len()));
        stream.send_data(piece, ends && rest.is_empty())?;
    }
    Ok(part.len())
}

/// A gRPC frame.
pub fn frame_of(flags: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("small").to_be_bytes();
    [&[flags][..], &length, message].concat()
}
