//! Debuginfo over HTTP/2: the same calls as over HTTP/1.1 (`inbound/debuginfo.rs`), taken out of hyper's streams, and gRPC
//! made of them and for it.
//!
//! ```text
//!  Connect, gRPC-Web   passed on and back as they are
//!  gRPC                frame, grpc-timeout, ...  ─▶ Connect unary ─▶ destination (it is spoken to in HTTP/1.1)
//!                      frame, trailers           ◀─ message, or code and message
//!  Upload              DATA frames, as they come ─▶ pieces of a call
//! ```
//! An upload whose destination is slow fills its stream's window and the client waits; what it has sent by then is charged
//! with the window. So few uploads run on one connection that their windows leave room in that of the connection: pushes
//! beside them go on.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Response;
use hyper::body::{Body as _, Incoming};
use hyper::http::request::Parts;
use tokio::sync::mpsc;

use super::{CONNECTION_WINDOW, Guest, House, Reply, STREAM_WINDOW, to_response};
use crate::fanout::Fanout;
use crate::fanout::call::{CallAnswer, PIECES_WAITING_MAX, Piece};
use crate::http::{Answer, Connection};
use crate::inbound::debuginfo::{
    PASSED_ON, UNARY_BYTES_MAX, ask, fields_of, hand_over, judge_upload, told, uploaded,
};
use crate::inbound::inlet::ReceiveError;
use crate::inbound::reply;
use crate::inbound::tally::{CopySite, Tally};
use crate::inbound::understand::{Dress, Refusal, dress};
use crate::profile::connect::{self, Code, Codec, Protocol};
use crate::profile::grpc_web;
use crate::profile::route::Procedure;
use crate::runtime::clock::{self, Mono};
use crate::runtime::pool;

/// Uploads of one connection at a time: all windows but one.
const UPLOADS_MAX: usize = (CONNECTION_WINDOW / STREAM_WINDOW) as usize - 1;
/// A larger error message of a destination is cut: it goes into a header.
const MESSAGE_BYTES_MAX: usize = 2 << 10;
/// `Connect-Timeout-Ms` has ten digits at most.
const TIMEOUT_MS_MAX: u128 = 9_999_999_999;

impl House {
    /// Passes a request through. Returns the answer, where it is not an empty 200.
    pub(super) async fn pass_through(
        &self,
        procedure: Procedure,
        path: String,
        request: (&Parts, Incoming),
        guest: &Rc<Guest>,
        started: Mono,
        known: &mut Option<Dress>,
    ) -> Result<Option<Response<Reply>>, Refusal> {
        let (head, body) = request;
        // A client that resets its stream takes this future with it; that is counted too.
        let mut called = Called {
            tally: &self.setup.tally,
            procedure,
            is_success: false,
        };
        if procedure == Procedure::Upload {
            let answer = self.upload(path, head, body, guest, started).await?;
            called.is_success = answer.status == 200;
            return judge_upload(&answer).map(|()| None);
        }
        let dress = dress(&head.headers).map_err(|(dress, refusal)| {
            *known = dress;
            refusal
        })?;
        *known = Some(dress);
        let answer = self.unary(path, head, body, dress, started).await?;
        called.is_success = answer.status == 200;
        Ok(Some(match dress.codec.protocol() {
            Protocol::Grpc => in_grpc(&answer, dress),
            _ => as_it_is(&answer),
        }))
    }

    async fn unary(
        &self,
        path: String,
        head: &Parts,
        body: Incoming,
        dress: Dress,
        started: Mono,
    ) -> Result<CallAnswer, Refusal> {
        let setup = &self.setup;
        let length = body.size_hint().exact();
        if length.is_some_and(|length| length > UNARY_BYTES_MAX) {
            return Err(ReceiveError::TooLarge.into());
        }
        let left = started.after(setup.plan.read_timeout).since(clock::now());
        let body = tokio::time::timeout(left, self.receive(body, length, UNARY_BYTES_MAX))
            .await
            .unwrap_or(Err(ReceiveError::TimedOut))?;
        setup.tally.received(body.bytes);
        let passed = &setup.plan.pass_headers;
        let fanout = self.fanout();
        let answered = if dress.codec.protocol() == Protocol::Grpc {
            let message = grpc_web::unframe(&body.segments, dress.gzip_request, false)?;
            let own = connect_fields(dress, message.compressed);
            let fields = [own.as_bytes(), &fields_of(&head.headers, &[], passed)].concat();
            ask(&fanout, path, fields.into(), message.segments)?
        } else {
            let fields = fields_of(&head.headers, &PASSED_ON, passed);
            ask(&fanout, path, fields, body.segments)?
        };
        drop(fanout); // a destination that is removed waits until nobody holds it
        told(answered).await
    }

    fn fanout(&self) -> Arc<Fanout> {
        self.bench.borrow().course.fanout.clone()
    }

    async fn upload(
        &self,
        path: String,
        head: &Parts,
        body: Incoming,
        guest: &Rc<Guest>,
        started: Mono,
    ) -> Result<CallAnswer, Refusal> {
        let setup = &self.setup;
        let _one = Uploading::on(guest).ok_or_else(Refusal::debuginfo_busy)?;
        let window = setup.memory.try_charge(STREAM_WINDOW as usize);
        let _window = window.ok_or(ReceiveError::NoMemory)?;
        let deadline = started.after(setup.plan.debuginfo_timeout);
        let fields = fields_of(&head.headers, &[], &setup.plan.pass_headers);
        let (pieces, receiver) = mpsc::channel(PIECES_WAITING_MAX);
        let mut answered = hand_over(&self.fanout(), path, fields, None, receiver, deadline)?;
        let left = deadline.since(clock::now());
        let streamed = tokio::select! {
            biased;
            // A destination that has seen enough: nobody waits for the rest.
            answer = &mut answered => return uploaded(answer),
            streamed = tokio::time::timeout(left, self.stream(body, pieces)) => streamed,
        };
        // Without its end the destination never takes it for whole.
        streamed.unwrap_or(Err(ReceiveError::TimedOut))?;
        uploaded(answered.await)
    }

    /// Hands a body on as it comes, as far as anybody takes it.
    async fn stream(&self, mut body: Incoming, pieces: mpsc::Sender<Piece>) -> Result<(), ReceiveError> {
        let setup = &self.setup;
        while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        {
            let Ok(data) = frame.map_err(|_| ReceiveError::Truncated)?.into_data() else {
                continue;
            };
            if data.is_empty() {
                continue;
            }
            setup.tally.received(data.len() as u64);
            let charge = setup
                .memory
                .try_charge(data.len())
                .ok_or(ReceiveError::NoMemory)?;
            // A frame is a slice of a larger buffer, which would be held as long.
            let piece = pool::hold_charge(Bytes::copy_from_slice(&data), charge);
            setup.tally.copied(CopySite::Http2, data.len());
            if pieces.send(Piece::Data(piece)).await.is_err() {
                return Ok(());
            }
        }
        let _ = pieces.send(Piece::End).await;
        Ok(())
    }
}

/// Counts a call when it is over, in whatever way.
struct Called<'a> {
    tally: &'a Tally,
    procedure: Procedure,
    is_success: bool,
}

impl Drop for Called<'_> {
    fn drop(&mut self) {
        self.tally.called(self.procedure, self.is_success);
    }
}

/// An upload under way.
struct Uploading(Rc<Guest>);

impl Uploading {
    /// One more on this connection, unless there are [`UPLOADS_MAX`].
    fn on(guest: &Rc<Guest>) -> Option<Self> {
        let count = guest.uploads.get();
        (count < UPLOADS_MAX).then(|| {
            guest.uploads.set(count + 1);
            Self(guest.clone())
        })
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.uploads.set(self.0.uploads.get() - 1);
    }
}

/// What Connect says in front of a message that came by gRPC.
fn connect_fields(dress: Dress, is_compressed: bool) -> String {
    let content_type = match dress.codec.is_json() {
        true => "application/json",
        false => "application/proto",
    };
    let mut lines = format!("Content-Type: {content_type}\r\nConnect-Protocol-Version: 1\r\n");
    if is_compressed {
        lines.push_str("Content-Encoding: gzip\r\n");
    }
    if dress.gzip_answer {
        lines.push_str("Accept-Encoding: gzip\r\n");
    }
    if let Some(timeout) = dress.timeout {
        // Rounded up: 0 would be over before it begins.
        let ms = timeout.as_nanos().div_ceil(Duration::from_millis(1).as_nanos());
        lines.push_str(&format!("Connect-Timeout-Ms: {}\r\n", ms.min(TIMEOUT_MS_MAX)));
    }
    lines
}

/// A destination's answer as gRPC tells it.
fn in_grpc(answer: &CallAnswer, dress: Dress) -> Response<Reply> {
    match message_of(answer, dress) {
        Ok(is_compressed) => {
            let mut body = Vec::new();
            grpc_web::write_message(&answer.body, is_compressed, &mut body);
            let headers: &[(&str, &str)] = match is_compressed {
                true => &[("Grpc-Accept-Encoding", "gzip"), ("Grpc-Encoding", "gzip")],
                false => &[("Grpc-Accept-Encoding", "gzip")],
            };
            let answer = Answer {
                content_type: Some(dress.codec.as_str()),
                headers,
                body: &body,
                ..Answer::empty(200, Connection::KeepAlive)
            };
            to_response(&answer, true, true)
        }
        Err((code, message)) => reply::grpc_error(dress, code, &message, Connection::KeepAlive, |answer| {
            to_response(answer, true, false)
        }),
    }
}

/// Whether the answer's body is a message, compressed or not; otherwise the error that it is.
fn message_of(answer: &CallAnswer, dress: Dress) -> Result<bool, (Code, String)> {
    let header = |wanted: &str| {
        let found = answer.headers.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, value)| value.as_bytes())
    };
    let (status, content_type) = (answer.status, header("content-type"));
    if status != 200 {
        let plain = || {
            (
                Code::from_http_status(status),
                format!("the destination answered {status}"),
            )
        };
        let told = connect::error_code(status, content_type, &answer.body, false);
        let told = told.map(|code| (code, connect::error_message(&answer.body)));
        return Err(told.unwrap_or_else(plain)).map_err(|(code, mut message)| {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
            (code, message)
        });
    }
    let codec = Codec::parse(content_type).filter(|codec| codec.protocol() == Protocol::Connect);
    if codec.is_none_or(|codec| codec.is_json() != dress.codec.is_json()) {
        return Err((
            Code::Unknown,
            "what the destination answered is no message".into(),
        ));
    }
    match connect::is_gzip_encoded(header("content-encoding")) {
        Ok(is_gzip) if !is_gzip || dress.gzip_answer => Ok(is_gzip),
        _ => {
            let message = "the destination's answer is in a compression that nobody asked for";
            Err((Code::Internal, message.into()))
        }
    }
}

/// A destination's answer as it is.
fn as_it_is(answer: &CallAnswer) -> Response<Reply> {
    let headers: Vec<(&str, &str)> = answer
        .headers
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    let answer = Answer {
        headers: &headers,
        body: &answer.body,
        ..Answer::empty(answer.status, Connection::KeepAlive)
    };
    to_response(&answer, false, false)
}
