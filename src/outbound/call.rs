//! Calls at their destination: one connection for each, the body written as it comes, the answer read whole.
//!
//! Not responsible for parcels and their lanes; a call is never tried again.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use super::connection::{ANSWER_BYTES_MAX, AttemptError, Heard, hear, more};
use super::destination::Destination;
use crate::fanout::call::{CALLS_AT_ONCE_MAX, Call, CallAnswer, Piece};
use crate::http::{
    ChunkLimits, ChunkedDecoder, HeadLimits, Piece as Framed, Progress, ResponseFraming, ResponseHead,
    ResponseReader,
};
use crate::runtime::clock::{self, Mono};
use crate::runtime::stream::{Reader, Writer};
use crate::runtime::sweeper::Expiry;

/// Headers of an answer that are passed back: what its body is, and gRPC-Web's errors.
const PASSED_BACK: [&str; 8] = [
    "content-type",
    "content-encoding",
    "accept-encoding",
    "grpc-status",
    "grpc-message",
    "grpc-encoding",
    "grpc-accept-encoding",
    "grpc-status-details-bin",
];

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum CallError {
    /// As for a parcel.
    #[error(transparent)]
    Attempt(#[from] AttemptError),
    /// The client stopped in the middle.
    #[error("the client stopped before its end")]
    Abandoned,
    /// The answer is larger than any such answer.
    #[error("its answer is larger than 1 MiB")]
    AnswerTooLarge,
}

impl Destination {
    /// Serves calls until nobody can make any.
    pub(super) async fn serve_calls(self: Rc<Self>, mut calls: mpsc::Receiver<Call>) {
        let places = Arc::new(Semaphore::new(CALLS_AT_ONCE_MAX));
        // The semaphore is never closed.
        while let Ok(place) = places.clone().acquire_owned().await {
            let Some(call) = calls.recv().await else { return };
            let destination = self.clone();
            monoio::spawn(async move {
                destination.serve_call(call).await;
                drop(place);
            });
        }
    }

    async fn serve_call(&self, mut call: Call) {
        let result = self.pass_through(&mut call).await;
        if let Err(error) = &result {
            self.note_trouble(&format!("debuginfo: {error}"));
        }
        // A client that has left needs no answer.
        let _ = call.answer.send(result.map_err(|error| error.to_string()));
    }

    async fn pass_through(&self, call: &mut Call) -> Result<CallAnswer, CallError> {
        let setup = self.setup();
        let deadline = match call.deadline {
            Mono::NEVER => clock::now().after(setup.plan.remote_timeout),
            deadline => deadline,
        };
        setup.await_credentials(deadline).await?;
        let connection = self.connect(&setup, deadline).await?;
        let mut head = Vec::new();
        setup.head.write_call(
            &mut head,
            &call.path,
            &call.fields,
            call.length,
            setup.via.as_ref().filter(|_| setup.tls.is_none()),
        );
        let (mut read, mut write, watch) = connection.into_parts();
        watch.arm(deadline, Expiry::Stop);
        let result = exchange(&mut read, &mut write, head, call).await;
        if watch.expired() {
            Err(AttemptError::TimedOut.into())
        } else {
            result
        }
    }
}

/// Sends head and body while listening: a destination may refuse long before the end.
async fn exchange(
    read: &mut Reader,
    write: &mut Writer,
    head: Vec<u8>,
    call: &mut Call,
) -> Result<CallAnswer, CallError> {
    let mut received = Vec::new();
    let heard = {
        let mut listening = pin!(hear(read, &mut received));
        let mut writing = pin!(send(write, head, call));
        tokio::select! {
            biased;
            heard = &mut listening => heard,
            sent = &mut writing => match sent {
                Err(CallError::Abandoned) => return Err(CallError::Abandoned),
                // A destination that refuses and closes leaves its answer behind.
                _ => (&mut listening).await,
            },
        }
    };
    match heard {
        Heard::Closed(kind) => Err(AttemptError::Unanswered(kind).into()),
        Heard::Success | Heard::Refusal => receive(read, received).await,
    }
}

async fn send(write: &mut Writer, head: Vec<u8>, call: &mut Call) -> Result<(), CallError> {
    let failed = |error: io::Error| CallError::Attempt(AttemptError::Unanswered(error.kind()));
    write.write_all(head).await.0.map_err(failed)?;
    let is_chunked = call.length.is_none();
    loop {
        match call.body.recv().await {
            Some(Piece::Data(bytes)) => {
                if is_chunked {
                    let size = format!("{:x}\r\n", bytes.len()).into_bytes();
                    write.write_all(size).await.0.map_err(failed)?;
                }
                write.write_all(bytes).await.0.map_err(failed)?;
                if is_chunked {
                    write.write_all(&b"\r\n"[..]).await.0.map_err(failed)?;
                }
            }
            Some(Piece::End) if is_chunked => {
                return write
                    .write_all(&b"0\r\n\r\n"[..])
                    .await
                    .0
                    .map(drop)
                    .map_err(failed);
            }
            Some(Piece::End) => return Ok(()),
            None => return Err(CallError::Abandoned),
        }
    }
}

/// Reads the answer whose head is in `received`.
async fn receive(read: &mut Reader, mut received: Vec<u8>) -> Result<CallAnswer, CallError> {
    let mut reader = ResponseReader::new(HeadLimits::for_responses());
    let head = match reader.read(&received).map_err(AttemptError::BadAnswer)? {
        Progress::Complete(head) => head,
        Progress::Partial => return Err(AttemptError::CutOff.into()),
    };
    let mut answer = CallAnswer {
        status: head.status,
        headers: passed_back(&head, &received),
        body: Vec::new(),
    };
    received.drain(..head.bytes);
    match head.framing {
        ResponseFraming::Empty => {}
        ResponseFraming::Length(bytes) => {
            let bytes = usize::try_from(bytes)
                .ok()
                .filter(|bytes| *bytes as u64 <= ANSWER_BYTES_MAX);
            let bytes = bytes.ok_or(CallError::AnswerTooLarge)?;
            while received.len() < bytes {
                more(read, &mut received).await?;
            }
            received.truncate(bytes);
            answer.body = received;
        }
        ResponseFraming::Chunked => {
            let mut decoder = ChunkedDecoder::new(ChunkLimits::default());
            'body: loop {
                let mut at = 0;
                loop {
                    match decoder.next(&received[at..]).map_err(|_| AttemptError::BadBody)? {
                        Framed::Data(range) => {
                            answer
                                .body
                                .extend_from_slice(&received[at + range.start..at + range.end]);
                            at += range.end;
                        }
                        Framed::End(_) => break 'body,
                        Framed::Starved => break,
                    }
                }
                if answer.body.len() as u64 > ANSWER_BYTES_MAX {
                    return Err(CallError::AnswerTooLarge);
                }
                received.clear();
                more(read, &mut received).await?;
            }
        }
        ResponseFraming::UntilClose => {
            while more(read, &mut received).await.is_ok() {
                if received.len() as u64 > ANSWER_BYTES_MAX {
                    return Err(CallError::AnswerTooLarge);
                }
            }
            answer.body = received;
        }
    }
    Ok(answer)
}

fn passed_back(head: &ResponseHead, received: &[u8]) -> Vec<(&'static str, String)> {
    let value = |name| {
        head.value(received, name)
            .map(|value| String::from_utf8_lossy(value).into_owned())
    };
    PASSED_BACK
        .into_iter()
        .filter_map(|name| value(name).map(|value| (name, value)))
        .collect()
}
