//! Debuginfo requests, passed through to the one destination that takes them (WIRE.md section 7, rows 140 to 142).
//!
//! The unary procedures are small and read whole, like a Push; an upload is handed on piece by piece as it comes, so that
//! it may be of any size: what is held of it is one receive buffer and `PIECES_WAITING_MAX` pieces, counted against
//! `--memory-limit`. This is how they come over HTTP/1.1, and what both carriers share; over HTTP/2 they come to
//! `http2/debuginfo.rs`. Not responsible for what is in them.

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::client::{BodyState, Client, Handled};
use super::inlet::ReceiveError;
use super::tally::RouteLabel;
use super::understand::{HeadLines, Lines, Refusal, dress};
use crate::fanout::Fanout;
use crate::fanout::call::{Call, CallAnswer, PIECES_WAITING_MAX, Piece};
use crate::http::RequestHead;
use crate::profile::route::Procedure;
use crate::runtime::clock::Mono;
use crate::runtime::sweeper::Expiry;

/// A unary message is a build id and a file name.
pub(super) const UNARY_BYTES_MAX: u64 = 1 << 20;
/// Headers of a unary request that its destination needs to understand it.
pub(super) const PASSED_ON: [&str; 9] = [
    "content-type",
    "content-encoding",
    "accept-encoding",
    "connect-protocol-version",
    "connect-timeout-ms",
    "grpc-encoding",
    "grpc-accept-encoding",
    "grpc-timeout",
    "x-grpc-web",
];

/// What comes back of a call.
pub(super) type Answered = oneshot::Receiver<Result<CallAnswer, String>>;

impl Client {
    /// Passes a request through and says what is to be answered.
    pub(super) async fn pass_through(
        &mut self,
        procedure: Procedure,
        path: String,
        head: &RequestHead,
        started: Mono,
    ) -> Handled {
        let mut handled = Handled {
            result: Ok(()),
            route: RouteLabel::Debuginfo(procedure),
            dress: None,
            body: BodyState::Unread,
            passed: None,
            charge: None,
        };
        let result = match procedure {
            Procedure::Upload => self.upload(path, head, started, &mut handled).await,
            _ => self.unary(path, head, started, &mut handled).await,
        };
        let is_success = matches!(&result, Ok(answer) if answer.status == 200);
        self.inbound.setup.tally.called(procedure, is_success);
        match result {
            Ok(answer) if procedure == Procedure::Upload => handled.result = judge_upload(&answer),
            Ok(answer) => handled.passed = Some(answer),
            Err(refusal) => handled.result = Err(refusal),
        }
        handled
    }

    async fn unary(
        &mut self,
        path: String,
        head: &RequestHead,
        started: Mono,
        handled: &mut Handled,
    ) -> Result<CallAnswer, Refusal> {
        let bytes = self.inlet.head_bytes();
        let lines = HeadLines { head, bytes };
        match dress(&lines) {
            Ok(dress) => handled.dress = Some(dress),
            Err((dress, refusal)) => {
                handled.dress = dress;
                return Err(refusal);
            }
        }
        let fields = fields_of(&lines, &PASSED_ON, &self.inbound.setup.plan.pass_headers);
        self.continue_if_expected(head, started, handled).await?;
        let body = match self.inlet.body(head, UNARY_BYTES_MAX).await {
            Ok(body) => body,
            Err(error) => {
                handled.body = BodyState::Broken;
                return Err(error.into());
            }
        };
        handled.body = BodyState::Received;
        self.watch.disarm();
        let answered = ask(&self.inbound.bench().course.fanout, path, fields, body.segments)?;
        told(answered).await
    }

    async fn upload(
        &mut self,
        path: String,
        head: &RequestHead,
        started: Mono,
        handled: &mut Handled,
    ) -> Result<CallAnswer, Refusal> {
        let setup = &self.inbound.setup;
        let deadline = started.after(setup.plan.debuginfo_timeout);
        let bytes = self.inlet.head_bytes();
        let fields = fields_of(&HeadLines { head, bytes }, &[], &setup.plan.pass_headers);
        let (pieces, receiver) = mpsc::channel(PIECES_WAITING_MAX);
        let mut answered = hand_over(
            &self.inbound.bench().course.fanout,
            path,
            fields,
            None,
            receiver,
            deadline,
        )?;
        self.continue_if_expected(head, started, handled).await?;
        self.watch.arm(deadline, Expiry::StopReceiving);
        handled.body = BodyState::Broken;
        let mut streaming = self.inlet.begin_streaming(head);
        let sent = tokio::select! {
            biased;
            // A destination that has seen enough: nobody waits for the rest.
            answer = &mut answered => Err(answer),
            sent = async {
                while let Some(piece) = self.inlet.next_piece(&mut streaming).await? {
                    if pieces.send(Piece::Data(piece)).await.is_err() {
                        return Ok(false);
                    }
                }
                let _ = pieces.send(Piece::End).await;
                Ok::<_, ReceiveError>(true)
            } => Ok(sent),
        };
        let answer = match sent {
            Err(answer) => answer,
            Ok(sent) => {
                if sent? {
                    handled.body = BodyState::Received;
                    self.watch.disarm();
                }
                answered.await
            }
        };
        uploaded(answer)
    }
}

/// Header lines of the client with these names, and those that are `passed` on anyway (`--pass-header`).
pub(super) fn fields_of(lines: &impl Lines, names: &[&str], passed: &[String]) -> Bytes {
    let mut out = Vec::new();
    lines.each(|name, value| {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if names.iter().any(|name| is(name)) || passed.iter().any(|name| is(name)) {
            out.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
        }
    });
    Bytes::from(out)
}

/// Makes a unary call of which everything is here.
///
/// # Errors
/// When it cannot be made.
pub(super) fn ask(
    fanout: &Fanout,
    path: String,
    fields: Bytes,
    message: impl IntoIterator<Item = Bytes>,
) -> Result<Answered, Refusal> {
    let whole: Vec<Bytes> = message.into_iter().filter(|piece| !piece.is_empty()).collect();
    let length = whole.iter().map(|piece| piece.len() as u64).sum();
    // Room for all pieces, so that nobody has to be waited for.
    let (pieces, receiver) = mpsc::channel(whole.len() + 1);
    let answered = hand_over(fanout, path, fields, Some(length), receiver, Mono::NEVER)?;
    for piece in whole.into_iter().map(Piece::Data).chain([Piece::End]) {
        let _ = pieces.try_send(piece);
    }
    Ok(answered)
}

/// What a unary call was answered.
///
/// # Errors
/// When it has no answer.
pub(super) async fn told(answered: Answered) -> Result<CallAnswer, Refusal> {
    let answer = answered.await.unwrap_or_else(|_| Err("the gateway ends".into()));
    answer.map_err(Refusal::debuginfo_unavailable)
}

/// Hands a call over, or says why it cannot be.
///
/// # Errors
/// When nobody takes calls, or too many are under way.
pub(super) fn hand_over(
    fanout: &Fanout,
    path: String,
    fields: Bytes,
    length: Option<u64>,
    body: mpsc::Receiver<Piece>,
    deadline: Mono,
) -> Result<Answered, Refusal> {
    let Some(calls) = fanout.calls() else {
        let why = "no destination takes debuginfo: the first http:// or https:// one in --to would";
        return Err(Refusal::debuginfo_unavailable(why.into()));
    };
    let (answer, answered) = oneshot::channel();
    let call = Call {
        path,
        fields,
        length,
        body,
        deadline,
        answer,
    };
    match calls.try_send(call) {
        Ok(()) => Ok(answered),
        Err(TrySendError::Full(_)) => Err(Refusal::debuginfo_busy()),
        Err(TrySendError::Closed(_)) => Err(Refusal::debuginfo_unavailable("the gateway ends".into())),
    }
}

/// What became of an upload: [`Answered`], awaited.
///
/// # Errors
/// When it has no answer.
pub(super) fn uploaded(
    answer: Result<Result<CallAnswer, String>, oneshot::error::RecvError>,
) -> Result<CallAnswer, Refusal> {
    let answer = answer.unwrap_or_else(|_| Err("the gateway ends".into()));
    answer.map_err(|why| Refusal::debuginfo_failed(format!("downstream upload: {why}")))
}

/// Whether a destination has an upload.
///
/// # Errors
/// When it says anything else than 200 (row 142).
pub(super) fn judge_upload(answer: &CallAnswer) -> Result<(), Refusal> {
    match answer.status {
        200 => Ok(()),
        status => Err(Refusal::debuginfo_failed(format!(
            "downstream upload: the destination answered {status}"
        ))),
    }
}
