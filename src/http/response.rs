//! The head of a destination's response to a POST, and its `Retry-After`.
//!
//! Responsible for: reading a response head as it arrives and saying how its body ends. Not responsible for:
//! what a status means for a parcel, how many interim responses are too many, and the body. Nothing ambiguous
//! is let through: a response that is read wrong would be taken for the answer to the next parcel on the
//! connection.

use std::time::Duration;

use super::field::{
    self, Facts, Field, Fields, FramingError, HeadLimits, LineError, LineReader, Progress, check_text, trim,
};

/// Reads response heads from a growing buffer.
#[derive(Debug)]
pub struct ResponseReader {
    lines: LineReader,
    /// Set once the status line was read.
    status_line: Option<StatusLine>,
    facts: Facts,
    failed: Option<ResponseError>,
}

impl ResponseReader {
    /// A reader at the start of a response; `HeadLimits::for_responses` are the usual limits.
    pub fn new(limits: HeadLimits) -> Self {
        ResponseReader {
            lines: LineReader::new(limits),
            status_line: None,
            facts: Facts::default(),
            failed: None,
        }
    }

    /// Looks at the bytes that came since the last call. `buf` begins where this response begins and holds
    /// all of it so far; after `Complete` the next call begins a new response (so an interim one is skipped
    /// by cutting off `ResponseHead::bytes` and reading on). After an error every call answers the same
    /// error.
    pub fn read(&mut self, buf: &[u8]) -> Result<Progress<ResponseHead>, ResponseError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.step(buf);
        if let Err(error) = result {
            self.failed = Some(error);
        }
        result
    }

    /// Forgets the current response.
    pub fn reset(&mut self) {
        self.lines.reset();
        self.status_line = None;
        self.facts = Facts::default();
        self.failed = None;
    }

    fn step(&mut self, buf: &[u8]) -> Result<Progress<ResponseHead>, ResponseError> {
        while let Some(line) = self.lines.next(buf)? {
            match self.status_line {
                None => {
                    self.status_line = Some(parse_status_line(line.text)?);
                    self.lines.begin_fields();
                }
                Some(status_line) if line.text.is_empty() => {
                    return self.finish(status_line).map(Progress::Complete);
                }
                Some(status_line) => {
                    let field = self.lines.push_field(line)?;
                    note(&mut self.facts, field, line.text, buf, status_line.http11)?;
                }
            }
        }
        Ok(Progress::Partial)
    }

    fn finish(&mut self, line: StatusLine) -> Result<ResponseHead, ResponseError> {
        let facts = self.facts;
        let announced = facts.chunked || facts.length.is_some_and(|length| length > 0);
        let framing = match (line.status, facts.length) {
            (100..=199, _) if announced => return Err(ResponseError::InterimBody),
            (100..=199 | 204 | 304, _) => ResponseFraming::Empty,
            _ if facts.chunked => ResponseFraming::Chunked,
            (_, Some(length)) => ResponseFraming::Length(length),
            (_, None) => ResponseFraming::UntilClose,
        };
        // A 204 or 304 that announces a body may be followed by one. Its status stands, its connection is
        // done.
        let in_doubt = framing == ResponseFraming::Empty && announced;
        let keep_alive = facts.keep_alive(line.http11) && framing != ResponseFraming::UntilClose && !in_doubt;
        let (bytes, fields) = self.lines.finish();
        self.reset();
        Ok(ResponseHead {
            bytes,
            status: line.status,
            fields,
            framing,
            keep_alive,
        })
    }
}

/// How the end of a response's body is found (RFC 9112 section 6.3; the request was a POST).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFraming {
    /// There cannot be one: 1xx, 204, 304.
    Empty,
    /// It has this many bytes, perhaps 0.
    Length(u64),
    /// `ChunkedDecoder` finds out.
    Chunked,
    /// Everything until the destination closes.
    UntilClose,
}

/// A good response head. Spans count from the start of the buffer that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Length of the head in bytes, the blank line included: the body begins here.
    pub bytes: usize,
    /// 100 to 599 and never 101. Below 200 it is interim: the real response follows.
    pub status: u16,
    /// All fields, in order.
    pub fields: Fields,
    /// Where the body ends.
    pub framing: ResponseFraming,
    /// Whether the connection may carry another request once the body has been read.
    pub keep_alive: bool,
}

impl ResponseHead {
    /// All values of a field in order; `name` is lower case.
    pub fn values<'b>(&self, buf: &'b [u8], name: &'static str) -> impl Iterator<Item = &'b [u8]> {
        field::values(&self.fields, buf, name)
    }

    /// The first value of a field; `name` is lower case.
    pub fn value<'b>(&self, buf: &'b [u8], name: &'static str) -> Option<&'b [u8]> {
        self.values(buf, name).next()
    }
}

/// Why a response head was refused: the destination's fault, and its connection is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// A line's syntax or size.
    #[error("in the response, {0}")]
    Line(#[from] LineError),
    /// The body's end is in doubt.
    #[error("in the response, {0}")]
    Framing(#[from] FramingError),
    /// RFC 9112 section 4: not `HTTP/1.x SP 3DIGIT [SP reason]`.
    #[error("the response's status line is malformed; is this an HTTP/1.1 server?")]
    StatusLineInvalid,
    /// A version other than 1.0 and 1.1.
    #[error("the response's HTTP version is not supported; use an HTTP/1.1 server")]
    VersionUnsupported,
    /// RFC 9110 section 15: below 100 or above 599.
    #[error("the response's status is not between 100 and 599")]
    StatusOutOfRange,
    /// 101 without our having asked for it (RFC 9110 section 15.2.2).
    #[error("the response switches protocols, which was not asked for")]
    SwitchingProtocols,
    /// RFC 9112 section 6.3: an interim response has no body, and this one announces one.
    #[error("an interim response announces a body")]
    InterimBody,
}

impl ResponseError {
    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Line(error) => error.label(),
            Self::Framing(error) => error.label(),
            Self::StatusLineInvalid => "status_line_invalid",
            Self::VersionUnsupported => "version_unsupported",
            Self::StatusOutOfRange => "status_out_of_range",
            Self::SwitchingProtocols => "switching_protocols",
            Self::InterimBody => "interim_body",
        }
    }
}

/// How long a destination asks us to wait (RFC 9110 section 10.2.3): seconds, or an IMF-fixdate compared with the `Date` of
/// the same answer, `date`, so that it does not matter what our clock shows; with `now_unix_secs` (seconds since 1970)
/// where there is none that can be read. At most `RETRY_AFTER_MAX`; a date in the past is zero; anything else, the obsolete
/// date forms included, is `None`.
pub fn parse_retry_after(value: &[u8], date: Option<&[u8]>, now_unix_secs: u64) -> Option<Duration> {
    let value = trim(value);
    let seconds = if value.first()?.is_ascii_digit() {
        parse_digits(value)?
    } else {
        let theirs = date.and_then(|date| parse_fixdate(trim(date)));
        parse_fixdate(value)?.saturating_sub(theirs.unwrap_or(now_unix_secs))
    };
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// Body of the fuzz target for responses: cuts change nothing, spans lie inside the head, dates do not panic.
#[doc(hidden)]
pub fn fuzz_response(data: &[u8]) {
    for limits in [HeadLimits::for_responses(), field::TIGHT_LIMITS] {
        if let Ok(Progress::Complete(head)) = check_response(data, 1 + data.len() / 64, limits) {
            field::check_fields(&head.fields, head.bytes);
            assert!(
                (100..600).contains(&head.status) && head.status != 101,
                "a status is in range"
            );
            let date = head.values(&data[..head.bytes], "date").next();
            for value in head.values(&data[..head.bytes], "retry-after") {
                assert!(
                    parse_retry_after(value, date, 0).is_none_or(|wait| wait <= RETRY_AFTER_MAX),
                    "a wait is bounded"
                );
            }
        }
    }
}

fn check_response(
    data: &[u8],
    stride: usize,
    limits: HeadLimits,
) -> Result<Progress<ResponseHead>, ResponseError> {
    field::check_cuts(
        data,
        stride,
        || ResponseReader::new(limits),
        ResponseReader::read,
        |head| head.bytes,
    )
}

#[derive(Clone, Copy, Debug)]
struct StatusLine {
    status: u16,
    http11: bool,
}

fn parse_status_line(line: &[u8]) -> Result<StatusLine, ResponseError> {
    check_text(line)?;
    let (version, rest) = line
        .split_at_checked(VERSION_BYTES)
        .ok_or(ResponseError::StatusLineInvalid)?;
    let http11 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            return Err(ResponseError::VersionUnsupported);
        }
        _ => return Err(ResponseError::StatusLineInvalid),
    };
    let status = match rest {
        [b' ', a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => [a, b, c],
        [b' ', a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b' ', ..] => [a, b, c],
        _ => return Err(ResponseError::StatusLineInvalid),
    };
    let status = status
        .iter()
        .fold(0u16, |number, &&digit| number * 10 + u16::from(digit - b'0'));
    match status {
        101 => Err(ResponseError::SwitchingProtocols),
        100..=599 => Ok(StatusLine { status, http11 }),
        _ => Err(ResponseError::StatusOutOfRange),
    }
}

/// Looks at one field. Lengths first: most fields are none of ours.
fn note(facts: &mut Facts, field: Field, line: &[u8], buf: &[u8], http11: bool) -> Result<(), FramingError> {
    let name = field.name.of(buf);
    match name.len() {
        10 if name.eq_ignore_ascii_case(b"connection") => facts.note_connection(field.value.of(buf)),
        14 if name.eq_ignore_ascii_case(b"content-length") => {
            facts.note_length(field.value.of(buf), &line[name.len()..], true)?;
        }
        17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
            facts.note_transfer_encoding(field.value.of(buf), &line[name.len()..], http11)?;
        }
        _ => {}
    }
    Ok(())
}

/// Digits only, saturating.
fn parse_digits(value: &[u8]) -> Option<u64> {
    value.iter().try_fold(0u64, |number, &byte| {
        byte.is_ascii_digit()
            .then(|| number.saturating_mul(10).saturating_add(u64::from(byte - b'0')))
    })
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7) as seconds since 1970; dates before are 0. The
/// day of the week must be one but is not compared with the date.
fn parse_fixdate(value: &[u8]) -> Option<u64> {
    let value: &[u8; 29] = value.try_into().ok()?;
    let shape_ok = WEEKDAYS.contains(&value[..3].try_into().ok()?)
        && &value[3..5] == b", "
        && [value[7], value[11], value[16], value[25]] == [b' '; 4]
        && [value[19], value[22]] == [b':'; 2]
        && &value[26..] == b"GMT";
    if !shape_ok {
        return None;
    }
    let number = |range: std::ops::Range<usize>| parse_digits(&value[range]);
    let (day, year) = (number(5..7)?, number(12..16)?);
    let (hour, minute, second) = (number(17..19)?, number(20..22)?, number(23..25)?);
    let month = MONTHS.iter().position(|month| month == &value[8..11])? as u64 + 1;
    // 60 is a leap second.
    let in_range = (1..=month_days(year, month)).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !in_range {
        return None;
    }
    if year < 1970 {
        return Some(0);
    }
    let years: u64 = (1970..year).map(|year| 365 + u64::from(is_leap(year))).sum();
    let months: u64 = (1..month).map(|month| month_days(year, month)).sum();
    let days = years + months + day - 1;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Longest wait a destination can impose; parcels are older than `--max-age` long before (DESIGN.md section
/// 5).
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// `HTTP/1.1`
const VERSION_BYTES: usize = 8;

const WEEKDAYS: [[u8; 3]; 7] = [*b"Mon", *b"Tue", *b"Wed", *b"Thu", *b"Fri", *b"Sat", *b"Sun"];

const MONTHS: [[u8; 3]; 12] = [
    *b"Jan", *b"Feb", *b"Mar", *b"Apr", *b"May", *b"Jun", *b"Jul", *b"Aug", *b"Sep", *b"Oct", *b"Nov",
    *b"Dec",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree as _;

    use super::*;

    /// Reads `input` in every cut and describes what came out in one line.
    fn describe(input: &[u8]) -> String {
        match check_response(input, 1, HeadLimits::for_responses()) {
            Err(error) => error.label().to_owned(),
            Ok(Progress::Partial) => "partial".to_owned(),
            Ok(Progress::Complete(head)) => {
                field::check_fields(&head.fields, head.bytes);
                let connection = if head.keep_alive { "keep" } else { "close" };
                let rest = input.len() - head.bytes;
                format!("{} {:?} {connection} +{rest}", head.status, head.framing)
            }
        }
    }

    /// `name: input => what describe says`, whole and in every cut.
    macro_rules! responses {
        ($($name:ident: $input:expr => $expected:expr;)*) => {$(
            #[test]
            fn $name() {
                let input = $input;
                let input: &[u8] = input.as_ref();
                assert_eq!(describe(input), $expected, "{:?}", input.escape_ascii().to_string());
            }
        )*};
    }

    responses! {
        ok_empty: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" => "200 Length(0) keep +0";
        ok_with_body: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}" => "200 Length(2) keep +2";
        chunked: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0" => "200 Chunked keep +1";
        until_close: "HTTP/1.1 500 Oh\r\n\r\nbody" => "500 UntilClose close +4";
        no_reason: "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n" => "200 Length(0) keep +0";
        empty_reason: "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n" => "200 Length(0) keep +0";
        reason_beyond_ascii: b"HTTP/1.1 400 \xff \t x\r\nContent-Length: 0\r\n\r\n" => "400 Length(0) keep +0";
        unknown_status: "HTTP/1.1 599 x\r\nContent-Length: 0\r\n\r\n" => "599 Length(0) keep +0";
        interim_continue: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" => "100 Empty keep +17";
        interim_early_hints: "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" => "103 Empty keep +0";
        interim_with_body: "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n" => "interim_body";
        interim_chunked: "HTTP/1.1 102 P\r\nTransfer-Encoding: chunked\r\n\r\n" => "interim_body";
        interim_length_zero: "HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n" => "100 Empty keep +0";
        switching_protocols: "HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\n" => "switching_protocols";
        no_content: "HTTP/1.1 204 No Content\r\n\r\n" => "204 Empty keep +0";
        no_content_length_zero: "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n" => "204 Empty keep +0";
        no_content_that_announces: "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n" => "204 Empty close +0";
        no_content_chunked: "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n" => "204 Empty close +0";
        not_modified_that_announces: "HTTP/1.1 304 N\r\nContent-Length: 5\r\n\r\n" => "304 Empty close +0";
        connection_close: "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" => "200 Length(0) close +0";
        http10: "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n" => "200 Length(0) close +0";
        http10_keep_alive: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n" => "200 Length(0) keep +0";
        http10_keep_alive_until_close: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n" => "200 UntilClose close +0";
        http10_chunked: "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" => "transfer_encoding_http10";
        lengths_equal: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 05\r\n\r\n" => "200 Length(5) keep +0";
        lengths_different: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" => "content_length_repeated";
        length_list: "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n" => "content_length_list";
        length_sign: "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n" => "content_length_invalid";
        length_then_chunked: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" => "length_and_transfer_encoding";
        chunked_then_length: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" => "length_and_transfer_encoding";
        coding_unknown: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" => "transfer_encoding_unknown";
        coding_identity: "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n" => "transfer_encoding_identity";
        chunked_twice: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" => "transfer_encoding_repeated";
        bare_lf: "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n" => "bare_lf";
        bare_cr_in_reason: "HTTP/1.1 200 O\rK\r\n\r\n" => "bare_cr";
        nul_in_value: "HTTP/1.1 200 OK\r\nA: \0\r\n\r\n" => "control_byte";
        folded: "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n" => "header_folded";
        space_before_colon: "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n" => "whitespace_before_colon";
        leading_blank_line: "\r\nHTTP/1.1 200 OK\r\n\r\n" => "status_line_invalid";
        version_20: "HTTP/2.0 200 OK\r\n\r\n" => "version_unsupported";
        version_lower_case: "http/1.1 200 OK\r\n\r\n" => "status_line_invalid";
        not_http: "SSH-2.0-OpenSSH\r\n" => "status_line_invalid";
        status_two_digits: "HTTP/1.1 20 OK\r\n\r\n" => "status_line_invalid";
        status_four_digits: "HTTP/1.1 2000 OK\r\n\r\n" => "status_line_invalid";
        status_signed: "HTTP/1.1 +20 OK\r\n\r\n" => "status_line_invalid";
        status_two_spaces: "HTTP/1.1  200 OK\r\n\r\n" => "status_line_invalid";
        status_low: "HTTP/1.1 099 x\r\n\r\n" => "status_out_of_range";
        status_high: "HTTP/1.1 600 x\r\n\r\n" => "status_out_of_range";
        status_line_endless: format!("HTTP/1.1 200 {}", "a".repeat(8192)) => "start_line_too_long";
        partial_nothing: "" => "partial";
        partial_status: "HTTP/1.1 20" => "partial";
        partial_fields: "HTTP/1.1 200 OK\r\nA: b\r\n" => "partial";
    }

    /// `name: value at now => seconds or none`.
    macro_rules! waits {
        ($($name:ident: $value:expr, $now:expr => $expected:expr;)*) => {$(
            #[test]
            fn $name() {
                let expected: Option<u64> = $expected;
                assert_eq!(parse_retry_after($value.as_ref(), None, $now), expected.map(Duration::from_secs));
            }
        )*};
    }

    // 784111777 is the date of RFC 9110 section 5.6.7 in seconds.
    waits! {
        wait_seconds: "120", 5 => Some(120);
        wait_zero: "0", 5 => Some(0);
        wait_trimmed: " 7\t", 5 => Some(7);
        wait_a_day: "86400", 5 => Some(86400);
        wait_clamped: "86401", 5 => Some(86400);
        wait_overflowing: "99999999999999999999999999", 5 => Some(86400);
        wait_signed: "+5", 5 => None;
        wait_negative: "-5", 5 => None;
        wait_fraction: "1.5", 5 => None;
        wait_list: "5, 6", 5 => None;
        wait_empty: "", 5 => None;
        wait_garbage: "soon", 5 => None;
        wait_date: "Sun, 06 Nov 1994 08:49:37 GMT", 784_111_770 => Some(7);
        wait_date_now: "Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777 => Some(0);
        wait_date_past: "Sun, 06 Nov 1994 08:49:37 GMT", 884_111_777 => Some(0);
        wait_date_far: "Fri, 31 Dec 9999 23:59:59 GMT", 884_111_777 => Some(86400);
        wait_date_before_1970: "Wed, 31 Dec 1969 23:59:59 GMT", 0 => Some(0);
        wait_date_leap_day: "Thu, 29 Feb 2024 00:00:01 GMT", 1_709_164_800 => Some(1);
        wait_date_after_leap_day: "Fri, 01 Mar 2024 00:00:00 GMT", 1_709_164_801 => Some(86399);
        wait_date_no_leap_day: "Tue, 29 Feb 2100 00:00:00 GMT", 0 => None;
        wait_date_day_zero: "Sun, 00 Nov 1994 08:49:37 GMT", 0 => None;
        wait_date_hour_24: "Sun, 06 Nov 1994 24:49:37 GMT", 0 => None;
        wait_date_leap_second: "Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_799 => Some(1);
        wait_date_second_61: "Sun, 06 Nov 1994 08:49:61 GMT", 0 => None;
        wait_date_lower_case: "sun, 06 nov 1994 08:49:37 GMT", 0 => None;
        wait_date_other_zone: "Sun, 06 Nov 1994 08:49:37 CET", 0 => None;
        wait_date_850: "Sunday, 06-Nov-94 08:49:37 GMT", 0 => None;
        wait_date_asctime: "Sun Nov  6 08:49:37 1994", 0 => None;
        wait_date_signed_day: "Sun, +6 Nov 1994 08:49:37 GMT", 0 => None;
    }

    #[test]
    fn a_date_is_compared_with_the_date_of_the_same_answer() {
        const ASKED: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";
        for (name, date, now, expected) in [
            (
                "our clock is a day late",
                "Sun, 06 Nov 1994 08:49:30 GMT",
                784_025_377,
                7,
            ),
            (
                "our clock is a day early",
                "Sun, 06 Nov 1994 08:49:30 GMT",
                784_198_177,
                7,
            ),
            ("our clock was never set", "Sun, 06 Nov 1994 08:49:30 GMT", 0, 7),
            (
                "it was over when it was sent",
                "Sun, 06 Nov 1994 08:50:00 GMT",
                784_111_700,
                0,
            ),
            (
                "their clock was never set",
                "Thu, 01 Jan 1970 00:00:00 GMT",
                784_111_700,
                86_400,
            ),
            ("spaces", " Sun, 06 Nov 1994 08:49:30 GMT\t", 0, 7),
            ("no date that can be read", "yesterday", 784_111_770, 7),
            ("an empty one", "", 784_111_770, 7),
        ] {
            let wait = parse_retry_after(ASKED, Some(date.as_bytes()), now);
            assert_eq!(wait, Some(Duration::from_secs(expected)), "{name}");
            let wait = parse_retry_after(b"7", Some(date.as_bytes()), now);
            assert_eq!(wait, Some(Duration::from_secs(7)), "{name}: seconds are seconds");
        }
    }

    /// Responses that are nearly right.
    fn nearly_responses() -> impl Strategy<Value = Vec<u8>> {
        let start = prop_oneof![6 => "HTTP/1\\.[01] [1-5][0-9]{2}( [ -~]{0,5})?", 1 => "[ -~]{0,14}"];
        let name =
            prop_oneof![3 => "[A-Za-z0-9_-]{1,6}", 2 => "(Content-Length|transfer-encoding|Connection)"];
        let value = prop_oneof![4 => "[ \t]{0,2}[!-~][ -~\t]{0,6}", 4 => " (5|6|chunked|close)"];
        let end = prop_oneof![30 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r")];
        let field = (name, value, end).prop_map(|(name, value, end)| format!("{name}:{value}{end}"));
        (start, proptest::collection::vec(field, 0..5))
            .prop_map(|(start, fields)| format!("{start}\r\n{}\r\nrest", fields.concat()).into_bytes())
    }

    /// The comparison below says something only while both verdicts are common.
    #[test]
    fn nearly_responses_are_good_and_bad() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let strategy = nearly_responses();
        let good = (0..1000).filter(|_| {
            let input = strategy
                .new_tree(&mut runner)
                .expect("nothing is filtered")
                .current();
            let read = ResponseReader::new(HeadLimits::for_responses()).read(&input);
            matches!(read, Ok(Progress::Complete(_)))
        });
        let good = good.count();
        assert!((100..900).contains(&good), "{good} of 1000 are good");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

        /// What we accept, httparse accepts and reads the same.
        #[test]
        fn agrees_with_httparse(input in nearly_responses()) {
            fuzz_response(&input);
            let mut slots = [httparse::EMPTY_HEADER; 256];
            let mut theirs = httparse::Response::new(&mut slots);
            let verdict = theirs.parse(&input);
            let ours = ResponseReader::new(HeadLimits::for_responses()).read(&input);
            if let Ok(Progress::Complete(head)) = ours {
                prop_assert_eq!(verdict, Ok(httparse::Status::Complete(head.bytes)));
                prop_assert_eq!(theirs.code, Some(head.status));
                let our_fields: Vec<_> =
                    head.fields.iter().map(|field| (field.name.of(&input), field.value.of(&input))).collect();
                let their_fields: Vec<_> =
                    theirs.headers.iter().map(|header| (header.name.as_bytes(), header.value)).collect();
                prop_assert_eq!(our_fields, their_fields);
            }
        }
    }
}
