//! gRPC-Web frames (WIRE.md 3.5): unframing a request's one message, framing an answer and its trailers,
//! and the two header texts that gRPC encodes its own way. Not responsible for decompression (`inflate`) or
//! messages.
//!
//! ```text
//!  frame    [flags: 1 byte][length: 4 bytes, big endian][that many bytes]
//!  flags    0x01 compressed, 0x80 trailers
//! ```

use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use thiserror::Error;

use crate::profile::connect::{Code, gzip, parse_int, success_body};
use crate::profile::query::percent;

/// Flag of a compressed frame.
const COMPRESSED: u8 = 0x01;
/// Flag of the trailers frame.
const TRAILERS: u8 = 0x80;
/// Flags and length.
const HEAD_BYTES: usize = 5;
/// Largest number in a `Grpc-Timeout`: 8 digits (gRPC over HTTP/2).
const TIMEOUT_MAX: i64 = 99_999_999;
/// Hours beyond which a Go duration overflows and the timeout is ignored.
const TIMEOUT_HOURS_MAX: i64 = i64::MAX / (3_600 * 1_000_000_000);

/// The one message of a unary request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// True if the bytes must be gunzipped.
    pub compressed: bool,
    /// Slices of the request's body.
    pub segments: SmallVec<[Bytes; 4]>,
}

/// Why a request's frames are refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The body ends inside a frame.
    #[error("protocol error: incomplete envelope")]
    Short,
    /// No message.
    #[error("unary request has zero messages")]
    Zero,
    /// More than one message.
    #[error("unary request has multiple messages")]
    Multiple,
    /// A compressed frame without `Grpc-Encoding: gzip`.
    #[error("protocol error: sent compressed message without compression support")]
    Undeclared,
    /// Flags that mean nothing, or bytes after the trailers.
    #[error("protocol error: invalid envelope flags")]
    Flags,
    /// `Grpc-Timeout` is not up to 8 digits and a unit.
    #[error("protocol error: invalid timeout")]
    Timeout,
}

impl FrameError {
    /// The status (WIRE.md 3.5).
    pub fn code(self) -> Code {
        match self {
            FrameError::Short | FrameError::Timeout => Code::InvalidArgument,
            FrameError::Zero | FrameError::Multiple => Code::Unimplemented,
            FrameError::Undeclared | FrameError::Flags => Code::Internal,
        }
    }
}

/// Takes the one message out of a request's body. `gzip_declared` says that `Grpc-Encoding` is gzip, `is_web` that trailers
/// are a frame: those of gRPC itself are HTTP's. Nothing is copied; the message's bytes are not inspected.
pub fn unframe(body: &[Bytes], gzip_declared: bool, is_web: bool) -> Result<Message, FrameError> {
    let mut cursor = Cursor {
        body,
        segment: 0,
        offset: 0,
    };
    let message = read_frame(&mut cursor, gzip_declared, is_web)?.ok_or(FrameError::Zero)?;
    match read_frame(&mut cursor, gzip_declared, is_web)? {
        None => Ok(message),
        Some(_) => Err(FrameError::Multiple),
    }
}

/// Reads one frame; `None` at the end of the body or at a trailers frame, which must be the last.
fn read_frame(
    cursor: &mut Cursor<'_>,
    gzip_declared: bool,
    is_web: bool,
) -> Result<Option<Message>, FrameError> {
    let mut head = [0; HEAD_BYTES];
    match cursor.fill(&mut head) {
        0 => return Ok(None),
        HEAD_BYTES => {}
        _ => return Err(FrameError::Short),
    }
    let [flags, length @ ..] = head;
    let length = u32::from_be_bytes(length) as usize;
    let segments = cursor.take(length).ok_or(FrameError::Short)?;
    let compressed = flags & COMPRESSED != 0;
    if compressed && !gzip_declared {
        return Err(FrameError::Undeclared);
    }
    match flags & !COMPRESSED {
        0 => Ok(Some(Message {
            compressed: compressed && length > 0,
            segments,
        })),
        other if is_web && other & TRAILERS != 0 && cursor.fill(&mut [0]) == 0 => Ok(None),
        _ => Err(FrameError::Flags),
    }
}

/// The body of a successful answer to gRPC: the empty message's frame. Its status is a trailer of HTTP.
pub fn success_frame(json: bool, gzip_wanted: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    write_message(&success_body(json, gzip_wanted), gzip_wanted, &mut out);
    out
}

/// The whole body of a successful answer to gRPC-Web: the empty message's frame, then the trailers frame with status 0.
pub fn success_frames(json: bool, gzip_wanted: bool) -> Vec<u8> {
    let mut out = success_frame(json, gzip_wanted);
    write_trailers(None, "", gzip_wanted, &mut out);
    out
}

/// Appends a message frame around `payload`, which is already compressed if `compressed` says so.
pub fn write_message(payload: &[u8], compressed: bool, out: &mut Vec<u8>) {
    write_frame(if compressed { COMPRESSED } else { 0 }, payload, out);
}

/// Appends the trailers frame: `grpc-status`, and `grpc-message` if there is one, as lower-case header lines.
pub fn write_trailers(code: Option<Code>, message: &str, gzip_wanted: bool, out: &mut Vec<u8>) {
    let mut lines = format!("grpc-status: {}\r\n", code.map_or(0, Code::grpc_number));
    if !message.is_empty() {
        lines.push_str("grpc-message: ");
        lines.push_str(&percent_encode(message));
        lines.push_str("\r\n");
    }
    if gzip_wanted {
        write_frame(TRAILERS | COMPRESSED, &gzip(lines.as_bytes()), out);
    } else {
        write_frame(TRAILERS, lines.as_bytes(), out);
    }
}

/// The `Grpc-Message` form of a text: bytes below 0x20, above 0x7e and `%` become `%XX`.
pub fn percent_encode(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.extend(percent(byte).map(char::from));
        }
    }
    out
}

/// Reads `Grpc-Timeout`: up to 8 digits and a unit of H M S m u n. `None` means no timeout, also for hours
/// beyond what a Go duration holds; zero is a deadline that has passed.
pub fn parse_timeout(value: Option<&[u8]>) -> Result<Option<Duration>, FrameError> {
    let Some((&unit, digits)) = value.unwrap_or_default().split_last() else {
        return Ok(None);
    };
    let number = parse_int(digits).filter(|number| (0..=TIMEOUT_MAX).contains(number));
    let number = number.ok_or(FrameError::Timeout)?;
    let amount = number.unsigned_abs();
    let timeout = match unit {
        b'H' if number > TIMEOUT_HOURS_MAX => return Ok(None),
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return Err(FrameError::Timeout),
    };
    Ok(Some(timeout))
}

fn write_frame(flags: u8, payload: &[u8], out: &mut Vec<u8>) {
    // Answers are tens of bytes; a payload of 4 GiB would be our own mistake.
    let length = u32::try_from(payload.len()).expect("a gRPC-Web answer is below 4 GiB");
    out.push(flags);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Reads bytes across segments.
struct Cursor<'a> {
    body: &'a [Bytes],
    segment: usize,
    offset: usize,
}

impl Cursor<'_> {
    /// Fills `out` as far as the body goes and says how far.
    fn fill(&mut self, out: &mut [u8]) -> usize {
        let mut filled = 0;
        while let (true, Some(segment)) = (filled < out.len(), self.body.get(self.segment)) {
            let step = (out.len() - filled).min(segment.len() - self.offset);
            out[filled..filled + step].copy_from_slice(&segment[self.offset..self.offset + step]);
            filled += step;
            self.advance(step);
        }
        filled
    }

    /// Takes `length` bytes as slices; `None` if the body is shorter.
    fn take(&mut self, length: usize) -> Option<SmallVec<[Bytes; 4]>> {
        let mut taken = SmallVec::new();
        let mut left = length;
        while left > 0 {
            let segment = self.body.get(self.segment)?;
            let step = left.min(segment.len() - self.offset);
            if step > 0 {
                taken.push(segment.slice(self.offset..self.offset + step));
            }
            left -= step;
            self.advance(step);
        }
        Some(taken)
    }

    fn advance(&mut self, step: usize) {
        self.offset += step;
        if self
            .body
            .get(self.segment)
            .is_some_and(|segment| segment.len() == self.offset)
        {
            self.segment += 1;
            self.offset = 0;
        }
    }
}

/// Fuzz target: any cut of the body into segments gives the same message or the same error.
#[doc(hidden)]
pub fn fuzz_grpc_web(data: &[u8]) {
    let Some((&control, body)) = data.split_first() else {
        return;
    };
    let gzip_declared = control & 1 == 1;
    let step = usize::from(control >> 1) % 13 + 1;
    let join = |message: Message| (message.compressed, message.segments.concat());
    let whole = unframe(&[Bytes::copy_from_slice(body)], gzip_declared, true).map(join);
    let cut: Vec<Bytes> = body.chunks(step).map(Bytes::copy_from_slice).collect();
    assert_eq!(whole, unframe(&cut, gzip_declared, true).map(join));
    if let Ok((compressed, message)) = whole {
        let mut framed = Vec::new();
        write_message(&message, compressed, &mut framed);
        if compressed || message.is_empty() {
            return;
        }
        assert_eq!(
            framed,
            body[..framed.len()],
            "an uncompressed message is its own frame"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::inflate::gunzip;

    fn frame(flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_frame(flags, payload, &mut out);
        out
    }

    fn framed(frames: &[(u8, &[u8])]) -> Vec<u8> {
        frames
            .iter()
            .flat_map(|(flags, payload)| frame(*flags, payload))
            .collect()
    }

    #[test]
    fn a_trailers_frame_is_of_the_web() {
        for frames in [
            framed(&[(0, b"abc"), (0x80, b"a: b\r\n")]),
            framed(&[(0x80, b"")]),
            framed(&[(0x81, b"")]),
        ] {
            let body = [Bytes::from(frames)];
            assert_eq!(unframe(&body, true, false), Err(FrameError::Flags));
        }
        let body = [Bytes::from(framed(&[(0, b"abc")]))];
        assert!(unframe(&body, true, false).is_ok());
    }

    #[test]
    fn requests_are_unframed() {
        type Expected = Result<(bool, &'static [u8]), FrameError>;
        let cases: Vec<(&str, Vec<u8>, bool, Expected)> = vec![
            ("one message", framed(&[(0, b"abc")]), false, Ok((false, b"abc"))),
            ("empty message", framed(&[(0, b"")]), false, Ok((false, b""))),
            ("compressed", framed(&[(1, b"abc")]), true, Ok((true, b"abc"))),
            (
                "plain in a gzip request",
                framed(&[(0, b"abc")]),
                true,
                Ok((false, b"abc")),
            ),
            (
                "compressed and empty",
                framed(&[(1, b"")]),
                true,
                Ok((false, b"")),
            ),
            (
                "message and trailers",
                framed(&[(0, b"abc"), (0x80, b"a: b\r\n")]),
                false,
                Ok((false, b"abc")),
            ),
            ("107 empty stream", vec![], false, Err(FrameError::Zero)),
            (
                "trailers alone",
                framed(&[(0x80, b"")]),
                false,
                Err(FrameError::Zero),
            ),
            (
                "two messages",
                framed(&[(0, b"a"), (0, b"b")]),
                false,
                Err(FrameError::Multiple),
            ),
            (
                "107 undeclared compression",
                framed(&[(1, b"abc")]),
                false,
                Err(FrameError::Undeclared),
            ),
            (
                "107 cut head",
                framed(&[(0, b"")])[..4].to_vec(),
                false,
                Err(FrameError::Short),
            ),
            (
                "107 cut payload",
                framed(&[(0, b"abc")])[..7].to_vec(),
                false,
                Err(FrameError::Short),
            ),
            (
                "4 GiB announced",
                b"\0\xff\xff\xff\xffabc".to_vec(),
                false,
                Err(FrameError::Short),
            ),
            (
                "cut second frame",
                [framed(&[(0, b"a")]), vec![0]].concat(),
                false,
                Err(FrameError::Short),
            ),
            (
                "unknown flags",
                framed(&[(2, b"a")]),
                false,
                Err(FrameError::Flags),
            ),
            (
                "bytes after trailers",
                framed(&[(0, b"a"), (0x80, b""), (0, b"")]),
                false,
                Err(FrameError::Flags),
            ),
        ];
        for (name, body, gzip_declared, expected) in cases {
            for step in 1..=body.len().max(1) {
                let cut: Vec<Bytes> = body.chunks(step).map(Bytes::copy_from_slice).collect();
                let got = unframe(&cut, gzip_declared, true);
                let got = got.map(|message| (message.compressed, message.segments.concat()));
                assert_eq!(
                    got,
                    expected.map(|(gz, text)| (gz, text.to_vec())),
                    "{name}, cut every {step}"
                );
            }
            fuzz_grpc_web(&[&[u8::from(gzip_declared)], body.as_slice()].concat());
        }
    }

    #[test]
    fn a_message_is_a_slice_of_the_body() {
        let body = Bytes::from(frame(0, b"abc"));
        let message = unframe(std::slice::from_ref(&body), false, true).expect("one message");
        assert_eq!(message.segments[0].as_ptr(), body[HEAD_BYTES..].as_ptr());
    }

    #[test]
    fn statuses_of_wire_3_5() {
        let cases = [
            (FrameError::Short, 3),
            (FrameError::Timeout, 3),
            (FrameError::Zero, 12),
            (FrameError::Multiple, 12),
            (FrameError::Undeclared, 13),
            (FrameError::Flags, 13),
        ];
        for (error, status) in cases {
            assert_eq!(error.code().grpc_number(), status, "{error}");
        }
    }

    #[test]
    fn answers_of_rows_102_and_108() {
        assert_eq!(
            success_frames(false, false),
            b"\0\0\0\0\0\x80\0\0\0\x10grpc-status: 0\r\n"
        );
        assert_eq!(
            success_frames(true, false),
            b"\0\0\0\0\x02{}\x80\0\0\0\x10grpc-status: 0\r\n"
        );
        let zipped = success_frames(false, true);
        assert_eq!(zipped[..5], [1, 0, 0, 0, 23]);
        let trailers = &zipped[28..];
        assert_eq!(trailers[0], 0x81);
        assert_eq!(trailers[1..5], (trailers.len() as u32 - 5).to_be_bytes());
        let lines = gunzip(&[Bytes::copy_from_slice(&trailers[5..])], 100, &mut |_| true).expect("gzip");
        assert_eq!(lines.concat(), b"grpc-status: 0\r\n");
        let mut failed = Vec::new();
        write_trailers(Some(Code::Internal), "50% é\n", false, &mut failed);
        assert_eq!(
            failed[5..],
            *b"grpc-status: 13\r\ngrpc-message: 50%25 %C3%A9%0A\r\n"
        );
    }

    #[test]
    fn messages_of_row_109() {
        let cases = [
            ("plain ~!", "plain ~!"),
            ("%", "%25"),
            ("\0\x1f\x7f", "%00%1F%7F"),
            ("é", "%C3%A9"),
        ];
        for (message, expected) in cases {
            assert_eq!(percent_encode(message), expected);
        }
    }

    #[test]
    fn timeouts() {
        let cases: &[(&str, Result<Option<Duration>, FrameError>)] = &[
            ("", Ok(None)),
            ("1H", Ok(Some(Duration::from_secs(3600)))),
            ("2M", Ok(Some(Duration::from_secs(120)))),
            ("3S", Ok(Some(Duration::from_secs(3)))),
            ("4m", Ok(Some(Duration::from_millis(4)))),
            ("5u", Ok(Some(Duration::from_micros(5)))),
            ("6n", Ok(Some(Duration::from_nanos(6)))),
            ("0S", Ok(Some(Duration::ZERO))),
            ("99999999M", Ok(Some(Duration::from_secs(99_999_999 * 60)))),
            ("99999999H", Ok(None)),
            ("100000000S", Err(FrameError::Timeout)),
            ("-1S", Err(FrameError::Timeout)),
            ("S", Err(FrameError::Timeout)),
            ("5", Err(FrameError::Timeout)),
            ("5x", Err(FrameError::Timeout)),
            ("1.5S", Err(FrameError::Timeout)),
            (" 5S", Err(FrameError::Timeout)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_timeout(Some(text.as_bytes())), *expected, "{text:?}");
        }
        assert_eq!(parse_timeout(None), Ok(None));
    }
}
