//! Where a body ends: by length, or by the chunked coding, which is decoded here without copying.
//!
//! Responsible for: finding the body's bytes in a chunked stream, exact syntax, and bounds on everything that
//! is not body. Not responsible for: the size of the body itself, content codings, or what trailers mean
//! (they are read for syntax and dropped, RFC 9110 section 6.5.1).
//!
//! ```text
//! Size ──CR──▶ SizeLf ──LF, n > 0──▶ Data ──n bytes──▶ DataCr ──CR──▶ DataLf ──LF──▶ Size
//!   │            ▲ └─────LF, n = 0──▶ TrailerStart
//!   └─`;`─▶ SizeExtension (CR)
//! TrailerStart ──name──▶ TrailerName ──`:`──▶ TrailerValue ──CR──▶ TrailerLf ──LF──▶ TrailerStart
//!   └──CR──▶ EndLf ──LF──▶ Ended                  any state ──wrong byte──▶ Failed
//! ```

use std::ops::Range;

use super::field::{LineError, is_control, is_token_byte};

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It has this many bytes; 0 also when there is none.
    Length(u64),
    /// `ChunkedDecoder` finds out.
    Chunked,
}

/// Bounds on what surrounds the data of a chunked body, in bytes unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkLimits {
    /// Longest size line of a chunk: digits, extensions and CRLF.
    pub size_line_bytes_max: u32,
    /// All trailer lines together, without the blank one.
    pub trailer_bytes_max: u32,
    /// Number of trailer lines.
    pub trailer_lines_max: u32,
    /// Framing (everything but data and trailers) may take this much in any body...
    pub overhead_bytes_base: u64,
    /// ...and this much more per byte of data. A chunk of one byte needs 5 (digit, CRLF, CRLF), so 8 lets a
    /// sender of single bytes pass and stops one that hides long extensions between them.
    pub overhead_bytes_per_data_byte: u64,
}

impl Default for ChunkLimits {
    fn default() -> Self {
        ChunkLimits {
            size_line_bytes_max: 4 << 10,
            trailer_bytes_max: 8 << 10,
            trailer_lines_max: 32,
            overhead_bytes_base: 16 << 10,
            overhead_bytes_per_data_byte: 8,
        }
    }
}

/// What the next bytes of a chunked body are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// `input[range]` is body, never empty; go on with `&input[range.end..]`.
    Data(Range<usize>),
    /// All of `input` is used up and the body has not ended.
    Starved,
    /// The body has ended and `input[..n]` belonged to it; what follows is the next message.
    End(usize),
}

/// Decodes one chunked body, in inputs cut anywhere.
#[derive(Clone, Debug)]
pub struct ChunkedDecoder {
    limits: ChunkLimits,
    state: State,
    /// Bytes of the current size line so far.
    line_bytes: u32,
    /// Bytes and lines of trailers so far.
    trailer_bytes: u32,
    trailer_lines: u32,
    /// Data that size lines announced so far, and framing bytes so far.
    data_bytes: u64,
    overhead_bytes: u64,
}

impl ChunkedDecoder {
    /// A decoder at the first size line.
    pub fn new(limits: ChunkLimits) -> Self {
        ChunkedDecoder {
            limits,
            state: State::SIZE,
            line_bytes: 0,
            trailer_bytes: 0,
            trailer_lines: 0,
            data_bytes: 0,
            overhead_bytes: 0,
        }
    }

    /// Looks at the next bytes. After `End` every call answers `End(0)`; after an error the same error.
    pub fn next(&mut self, input: &[u8]) -> Result<Piece, BodyError> {
        let mut at = 0;
        loop {
            match self.state {
                State::Data { remaining } => {
                    let taken = remaining.min((input.len() - at) as u64);
                    if taken == 0 {
                        return Ok(Piece::Starved);
                    }
                    self.state = match remaining - taken {
                        0 => State::DataCr,
                        remaining => State::Data { remaining },
                    };
                    return Ok(Piece::Data(at..at + taken as usize));
                }
                State::Ended => return Ok(Piece::End(at)),
                State::Failed(error) => return Err(error),
                _ => {
                    let Some(&byte) = input.get(at) else {
                        return Ok(Piece::Starved);
                    };
                    at += 1;
                    self.state = self.step(byte).unwrap_or_else(State::Failed);
                }
            }
        }
    }

    /// One byte of framing, and the state after it. `Data`, `Ended` and `Failed` take no bytes here.
    #[inline]
    fn step(&mut self, byte: u8) -> Result<State, BodyError> {
        match self.state {
            State::Size { .. } | State::SizeExtension { .. } | State::SizeLf { .. } => {
                self.count_size_line()?
            }
            State::TrailerStart if byte == b'\r' => {}
            State::TrailerStart | State::TrailerName | State::TrailerValue | State::TrailerLf => {
                self.count_trailer(byte)?;
            }
            _ => {}
        }
        match (self.state, byte) {
            (State::Size { value, digits }, _) => size_step(value, digits, byte),
            (State::SizeExtension { value }, b'\r') => Ok(State::SizeLf { value }),
            (State::SizeExtension { .. }, b'\n') => Err(LineError::BareLf.into()),
            (State::SizeExtension { .. }, _) if is_control(byte) => Err(LineError::ControlByte.into()),
            (State::SizeExtension { value }, _) => Ok(State::SizeExtension { value }),
            (State::SizeLf { value }, b'\n') => self.begin_data(value),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::SIZE),
            (State::DataCr | State::DataLf, _) => Err(BodyError::DataEndMissing),
            (State::TrailerStart, b'\r') => Ok(State::EndLf),
            (State::TrailerStart, b' ' | b'\t') => Err(LineError::Folded.into()),
            (State::TrailerStart, b':') => Err(LineError::NameEmpty.into()),
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerName, b' ' | b'\t') => Err(LineError::WhitespaceBeforeColon.into()),
            (State::TrailerName, b'\r') => Err(LineError::ColonMissing.into()),
            (State::TrailerStart | State::TrailerName, b'\n') => Err(LineError::BareLf.into()),
            (State::TrailerStart | State::TrailerName, _) if is_token_byte(byte) => Ok(State::TrailerName),
            (State::TrailerStart | State::TrailerName, _) => Err(LineError::NameInvalid.into()),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, b'\n') => Err(LineError::BareLf.into()),
            (State::TrailerValue, _) if is_control(byte) => Err(LineError::ControlByte.into()),
            (State::TrailerValue, _) => Ok(State::TrailerValue),
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            (State::EndLf, b'\n') => Ok(State::Ended),
            (State::SizeLf { .. } | State::TrailerLf | State::EndLf, _) => Err(LineError::BareCr.into()),
            (state @ (State::Data { .. } | State::Ended | State::Failed(_)), _) => Ok(state),
        }
    }

    fn count_size_line(&mut self) -> Result<(), BodyError> {
        self.line_bytes += 1;
        if self.line_bytes > self.limits.size_line_bytes_max {
            Err(BodyError::SizeLineTooLong)
        } else {
            Ok(())
        }
    }

    fn count_trailer(&mut self, byte: u8) -> Result<(), BodyError> {
        self.trailer_bytes += 1;
        self.trailer_lines += u32::from(byte == b'\n');
        let fits = self.trailer_bytes <= self.limits.trailer_bytes_max
            && self.trailer_lines <= self.limits.trailer_lines_max;
        if fits {
            Ok(())
        } else {
            Err(BodyError::TrailersTooLong)
        }
    }

    /// A size line has ended. The last chunk's framing is not judged: it comes once.
    fn begin_data(&mut self, value: u64) -> Result<State, BodyError> {
        if value == 0 {
            return Ok(State::TrailerStart);
        }
        self.data_bytes = self.data_bytes.saturating_add(value);
        self.overhead_bytes += u64::from(self.line_bytes) + DATA_END_BYTES;
        self.line_bytes = 0;
        let allowed = self
            .limits
            .overhead_bytes_per_data_byte
            .saturating_mul(self.data_bytes)
            .saturating_add(self.limits.overhead_bytes_base);
        if self.overhead_bytes > allowed {
            return Err(BodyError::OverheadTooLarge);
        }
        Ok(State::Data { remaining: value })
    }
}

/// Body of the fuzz target for chunked bodies: cuts change nothing, and what was accepted means the same when
/// its data is encoded anew.
#[doc(hidden)]
pub fn fuzz_body(data: &[u8]) {
    let tight = ChunkLimits {
        size_line_bytes_max: 12,
        trailer_bytes_max: 16,
        trailer_lines_max: 2,
        overhead_bytes_base: 24,
        overhead_bytes_per_data_byte: 1,
    };
    for limits in [ChunkLimits::default(), tight] {
        let decoded = check_cuts(data, 1 + data.len() / 64, limits);
        if let Ok(Some(end)) = decoded.outcome {
            assert!(data[..end].ends_with(b"\r\n"), "a body ends in a blank line");
            let body = &decoded.body;
            let mut again = Vec::with_capacity(body.len() + 32);
            if !body.is_empty() {
                again.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
                again.extend_from_slice(body);
                again.extend_from_slice(b"\r\n");
            }
            again.extend_from_slice(b"0\r\n\r\n");
            let expected = Decoded {
                body: body.clone(),
                outcome: Ok(Some(again.len())),
            };
            assert_eq!(
                decode(&again, &[], ChunkLimits::default()),
                expected,
                "encoded anew"
            );
        }
    }
}

/// What a decoder made of some input: the data, and the offset of the end, or none yet.
#[derive(Debug, PartialEq)]
struct Decoded {
    body: Vec<u8>,
    outcome: Result<Option<usize>, BodyError>,
}

/// Decodes `data` handed over in parts that end at each of `cuts` (ascending) and at the end of `data`.
fn decode(data: &[u8], cuts: &[usize], limits: ChunkLimits) -> Decoded {
    let mut decoder = ChunkedDecoder::new(limits);
    let mut body = Vec::new();
    let mut at = 0;
    for &part_end in cuts.iter().chain([&data.len()]) {
        loop {
            let part = &data[at..part_end];
            match decoder.next(part) {
                Ok(Piece::Data(range)) => {
                    assert!(!range.is_empty(), "a piece of data has bytes");
                    body.extend_from_slice(&part[range.clone()]);
                    at += range.end;
                }
                Ok(Piece::Starved) => break,
                Ok(Piece::End(bytes)) => {
                    assert_eq!(decoder.next(b"GET"), Ok(Piece::End(0)), "the end stays");
                    return Decoded {
                        body,
                        outcome: Ok(Some(at + bytes)),
                    };
                }
                Err(error) => {
                    assert_eq!(decoder.next(b"0\r\n\r\n"), Err(error), "an error stays");
                    return Decoded {
                        body,
                        outcome: Err(error),
                    };
                }
            }
        }
        at = part_end;
    }
    Decoded {
        body,
        outcome: Ok(None),
    }
}

/// Oracle of tests and the fuzz target: whole, byte by byte and cut at every `stride`-th place must agree.
fn check_cuts(data: &[u8], stride: usize, limits: ChunkLimits) -> Decoded {
    let whole = decode(data, &[], limits);
    let every_byte: Vec<usize> = (0..data.len()).collect();
    assert_eq!(
        decode(data, &every_byte, limits),
        whole,
        "byte by byte and whole differ"
    );
    for cut in (0..=data.len()).step_by(stride) {
        assert_eq!(
            decode(data, &[cut], limits),
            whole,
            "cut at {cut} and whole differ"
        );
    }
    whole
}

/// Why a chunked body was refused. The connection cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A line's syntax: in a size line's extensions or its end, or in a trailer.
    #[error("in the chunked body, {0}")]
    Line(#[from] LineError),
    /// RFC 9112 section 7.1: a size is hex digits, and here 1 to 16 of them, with nothing before or behind
    /// but `;`.
    #[error("a chunk's size is malformed; send 1 to 16 hex digits and CR LF")]
    SizeInvalid,
    /// RFC 9112 section 7.1: the data of a chunk is followed by CR LF.
    #[error("a chunk's data is not followed by CR LF; its size is wrong")]
    DataEndMissing,
    /// `ChunkLimits::size_line_bytes_max`.
    #[error("a chunk's size line is too long; send no chunk extensions")]
    SizeLineTooLong,
    /// `ChunkLimits::trailer_bytes_max` or `trailer_lines_max`.
    #[error("the trailers are too long; send none")]
    TrailersTooLong,
    /// `ChunkLimits::overhead_bytes_base` and `overhead_bytes_per_data_byte`.
    #[error("the chunked body is mostly framing; send larger chunks without extensions")]
    OverheadTooLarge,
}

impl BodyError {
    /// The status a client is refused with.
    pub fn status(&self) -> u16 {
        match self {
            Self::TrailersTooLong => 431,
            _ => 400,
        }
    }

    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Line(error) => error.label(),
            Self::SizeInvalid => "chunk_size_invalid",
            Self::DataEndMissing => "chunk_data_end_missing",
            Self::SizeLineTooLong => "chunk_size_line_too_long",
            Self::TrailersTooLong => "trailers_too_long",
            Self::OverheadTooLarge => "chunk_overhead_too_large",
        }
    }
}

/// What is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A hex digit, or behind at least one: `;` or CR.
    Size { value: u64, digits: u8 },
    /// The rest of a chunk's extensions, up to CR.
    SizeExtension { value: u64 },
    /// The LF of a size line.
    SizeLf { value: u64 },
    /// Data; `remaining` is at least 1.
    Data { remaining: u64 },
    /// The CR behind data.
    DataCr,
    /// The LF behind data.
    DataLf,
    /// The first byte of a trailer, or the CR of the blank line.
    TrailerStart,
    /// The rest of a trailer's name, or its colon.
    TrailerName,
    /// The rest of a trailer's value, up to CR.
    TrailerValue,
    /// The LF of a trailer.
    TrailerLf,
    /// The LF of the blank line.
    EndLf,
    /// Nothing: the body has ended.
    Ended,
    /// Nothing: the body was refused.
    Failed(BodyError),
}

impl State {
    const SIZE: State = State::Size { value: 0, digits: 0 };
}

fn size_step(value: u64, digits: u8, byte: u8) -> Result<State, BodyError> {
    let digit = match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        b'A'..=b'F' => byte - b'A' + 10,
        b';' if digits > 0 => return Ok(State::SizeExtension { value }),
        b'\r' if digits > 0 => return Ok(State::SizeLf { value }),
        b'\n' => return Err(LineError::BareLf.into()),
        _ => return Err(BodyError::SizeInvalid),
    };
    if digits == SIZE_DIGITS_MAX {
        return Err(BodyError::SizeInvalid);
    }
    Ok(State::Size {
        value: value << 4 | u64::from(digit),
        digits: digits + 1,
    })
}

/// 16 hex digits fill 64 bits.
const SIZE_DIGITS_MAX: u8 = 16;

/// CR and LF behind a chunk's data.
const DATA_END_BYTES: u64 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes `input` in every cut and describes what came out in one line.
    fn describe(input: &[u8], limits: ChunkLimits) -> String {
        let decoded = check_cuts(input, 1, limits);
        let body = decoded.body.escape_ascii();
        match decoded.outcome {
            Ok(Some(end)) => format!("[{body}] end {end}"),
            Ok(None) => format!("[{body}] starved"),
            Err(error) => format!("[{body}] {} {}", error.status(), error.label()),
        }
    }

    /// `name: input => what describe says`, whole and in every cut.
    macro_rules! bodies {
        ($($name:ident: $input:expr => $expected:expr;)*) => {$(
            #[test]
            fn $name() {
                let input: &[u8] = $input.as_ref();
                assert_eq!(describe(input, ChunkLimits::default()), $expected, "{:?}", input.escape_ascii().to_string());
            }
        )*};
    }

    bodies! {
        empty_body: "0\r\n\r\n" => "[] end 5";
        one_chunk: "5\r\nhello\r\n0\r\n\r\n" => "[hello] end 15";
        two_chunks_and_the_next_message: "3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\nGET /" => "[abc0123456789] end 28";
        hex_any_case: "0a\r\n0123456789\r\n00B\r\n0123456789a\r\n0\r\n\r\n" => "[01234567890123456789a] end 39";
        size_16_digits: "0000000000000001\r\nx\r\n0000000000000000\r\n\r\n" => "[x] end 41";
        size_17_digits: "00000000000000001\r\nx\r\n0\r\n\r\n" => "[] 400 chunk_size_invalid";
        size_largest_starves: "ffffffffffffffff\r\nabc" => "[abc] starved";
        data_has_crlf: "4\r\n\r\n\r\n\r\n0\r\n\r\n" => "[\\r\\n\\r\\n] end 14";
        extension: "5;a=b\r\nhello\r\n0;c\r\n\r\n" => "[hello] end 21";
        extension_quoted_and_spaced: "1; a = \"b\tc;d\" \r\nx\r\n0\r\n\r\n" => "[x] end 25";
        extension_empty: "1;\r\nx\r\n0\r\n\r\n" => "[x] end 12";
        extension_bare_lf: "1;a\nx\r\n0\r\n\r\n" => "[] 400 bare_lf";
        extension_bare_cr: "1;a\rx\r\n0\r\n\r\n" => "[] 400 bare_cr";
        extension_nul: "1;a\0\r\nx\r\n0\r\n\r\n" => "[] 400 control_byte";
        trailers: "0\r\nA: b\r\nContent-Length: 7\r\nX:\r\n\r\nrest" => "[] end 34";
        trailer_no_colon: "0\r\nA\r\n\r\n" => "[] 400 header_colon_missing";
        trailer_no_name: "0\r\n: a\r\n\r\n" => "[] 400 header_name_empty";
        trailer_bad_name: "0\r\nA(: a\r\n\r\n" => "[] 400 header_name_invalid";
        trailer_space_before_colon: "0\r\nA : a\r\n\r\n" => "[] 400 whitespace_before_colon";
        trailer_folded: "0\r\nA: a\r\n b\r\n\r\n" => "[] 400 header_folded";
        trailer_bare_lf: "0\r\nA: a\n\r\n" => "[] 400 bare_lf";
        trailer_bare_cr: "0\r\nA: a\rb\r\n\r\n" => "[] 400 bare_cr";
        trailer_control_byte: "0\r\nA: \x01\r\n\r\n" => "[] 400 control_byte";
        end_bare_lf: "0\r\n\n" => "[] 400 bare_lf";
        end_bare_cr: "0\r\n\rX" => "[] 400 bare_cr";
        size_missing: "\r\nx\r\n" => "[] 400 chunk_size_invalid";
        size_sign: "+5\r\nhello\r\n" => "[] 400 chunk_size_invalid";
        size_negative: "-1\r\n" => "[] 400 chunk_size_invalid";
        size_0x: "0x5\r\nhello\r\n" => "[] 400 chunk_size_invalid";
        size_underscore: "1_0\r\n" => "[] 400 chunk_size_invalid";
        size_space_before: " 5\r\nhello\r\n" => "[] 400 chunk_size_invalid";
        size_space_behind: "5 \r\nhello\r\n" => "[] 400 chunk_size_invalid";
        size_tab_before_extension: "5\t;a\r\nhello\r\n" => "[] 400 chunk_size_invalid";
        size_not_hex: "g\r\n" => "[] 400 chunk_size_invalid";
        size_extension_only: ";a\r\n" => "[] 400 chunk_size_invalid";
        size_bare_lf: "5\nhello\r\n" => "[] 400 bare_lf";
        size_bare_cr: "5\rhello\r\n" => "[] 400 bare_cr";
        size_cr_cr_lf: "5\r\r\nhello\r\n" => "[] 400 bare_cr";
        data_longer_than_size: "3\r\nhello\r\n0\r\n\r\n" => "[hel] 400 chunk_data_end_missing";
        data_shorter_than_size: "7\r\nhello\r\n0\r\n\r\n" => "[hello\\r\\n] 400 chunk_data_end_missing";
        data_then_bare_lf: "5\r\nhello\n0\r\n\r\n" => "[hello] 400 chunk_data_end_missing";
        data_then_bare_cr: "5\r\nhello\r0\r\n\r\n" => "[hello] 400 chunk_data_end_missing";
        nothing: "" => "[] starved";
        unfinished_size: "5" => "[] starved";
        unfinished_data: "5\r\nhel" => "[hel] starved";
        unfinished_end: "0\r\n\r" => "[] starved";
    }

    const SMALL: ChunkLimits = ChunkLimits {
        size_line_bytes_max: 8,
        trailer_bytes_max: 10,
        trailer_lines_max: 2,
        overhead_bytes_base: 12,
        overhead_bytes_per_data_byte: 5,
    };

    /// Like `bodies`, against `SMALL`.
    macro_rules! limits {
        ($($name:ident: $input:expr => $expected:expr;)*) => {$(
            #[test]
            fn $name() {
                assert_eq!(describe($input.as_bytes(), SMALL), $expected);
            }
        )*};
    }

    limits! {
        size_line_at_bound: "1;2345\r\nx\r\n0;2345\r\n\r\n" => "[x] end 21";
        size_line_above: "1;23456\r\nx\r\n0\r\n\r\n" => "[] 400 chunk_size_line_too_long";
        size_line_above_in_last_chunk: "0;23456\r\n\r\n" => "[] 400 chunk_size_line_too_long";
        size_line_above_without_end: "1;2345678" => "[] 400 chunk_size_line_too_long";
        trailers_at_bound: "0\r\nA:3\r\nB:8\r\n\r\n" => "[] end 15";
        trailers_above: "0\r\nA:3\r\nB:89\r\n\r\n" => "[] 431 trailers_too_long";
        trailers_too_many: "0\r\nA:\r\nB:\r\nC:\r\n\r\n" => "[] 431 trailers_too_long";
        // A size line of 8 and the CRLF behind the data make 10 per byte of data; 5 of them are free, 12 at
        // the start.
        overhead_at_bound: "1;2345\r\nx\r\n1;2345\r\ny\r\n0\r\n\r\n" => "[xy] end 27";
        overhead_above: "1;2345\r\nx\r\n1;2345\r\ny\r\n1;2345\r\nz\r\n0\r\n\r\n" => "[xy] 400 chunk_overhead_too_large";
        overhead_paid_by_data: "1;2345\r\nx\r\n4;2345\r\nabcd\r\n1;2345\r\nz\r\n0\r\n\r\n" => "[xabcdz] end 41";
    }

    #[test]
    fn single_bytes_pass_and_long_extensions_between_them_do_not() {
        let plain = "1\r\nx\r\n".repeat(100_000);
        let decoded = decode(plain.as_bytes(), &[], ChunkLimits::default());
        assert_eq!((decoded.body.len(), decoded.outcome), (100_000, Ok(None)));
        let padded = format!("1;{}\r\nx\r\n", "a".repeat(1000)).repeat(1000);
        let decoded = decode(padded.as_bytes(), &[], ChunkLimits::default());
        assert_eq!(decoded.outcome, Err(BodyError::OverheadTooLarge));
        assert!(decoded.body.len() < 20, "16 KiB pay for 16 such chunks");
    }

    #[test]
    fn data_is_handed_out_where_it_lies() {
        let mut decoder = ChunkedDecoder::new(ChunkLimits::default());
        let input = b"5\r\nhello\r\n0\r\n\r\nGET";
        assert_eq!(decoder.next(input), Ok(Piece::Data(3..8)));
        assert_eq!(decoder.next(&input[8..]), Ok(Piece::End(7)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

        /// Whatever was encoded comes back, in any cut.
        #[test]
        fn what_was_chunked_comes_back(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5),
            extension in "(;[ -~]{0,9})?",
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                input.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\n\r\n");
            let end = input.len();
            input.extend_from_slice(b"next");
            let expected = Decoded { body: chunks.concat(), outcome: Ok(Some(end)) };
            prop_assert_eq!(check_cuts(&input, 1, ChunkLimits::default()), expected);
        }

        #[test]
        fn nearly_chunked_is_read_the_same_in_any_cut(input in "([0-9a-f]{1,2}|0|;a|\r\n|\r|\n|x|A: b){0,20}") {
            fuzz_body(input.as_bytes());
        }

        /// A size line that httparse and we accept has one size.
        #[test]
        fn agrees_with_httparse(input in "[0-9a-fA-F]{1,17}(|;[ -~]{0,4})\r\n") {
            let mut decoder = ChunkedDecoder::new(ChunkLimits::default());
            let ours = decoder.next(input.as_bytes());
            if let (Ok(Piece::Starved), Ok(httparse::Status::Complete((bytes, size)))) =
                (ours, httparse::parse_chunk_size(input.as_bytes()))
            {
                prop_assert_eq!(bytes, input.len());
                let expected = if size == 0 { State::TrailerStart } else { State::Data { remaining: size } };
                prop_assert_eq!(decoder.state, expected);
            }
        }
    }
}
