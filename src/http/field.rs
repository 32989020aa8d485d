//! Lines and fields: what requests, responses and trailers have in common.
//!
//! Responsible for: cutting a growing buffer into lines within limits, reading one field line, and reading
//! the two fields that frame a body (`Content-Length`, `Transfer-Encoding`) and the one that ends a
//! connection. Not responsible for: start lines, or for what a role does with what was read (`head` and
//! `response` do that).

use memchr::memchr;
use smallvec::SmallVec;

/// Bounds on a head. All are in bytes but the last, and all are enforced on heads that have not ended yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Longest start line, its CRLF included. DESIGN.md section 7: 1 MiB, because `name` travels in the
    /// query.
    pub request_line_bytes_max: usize,
    /// Longest field section: all field lines and the blank line. DESIGN.md section 7: 64 KiB.
    pub header_block_bytes_max: usize,
    /// Most field lines in one head; far above what any pusher sends.
    pub header_count_max: usize,
}

impl HeadLimits {
    /// What a destination may send us: its status line carries no query, so 8 KiB are plenty.
    pub fn for_responses() -> Self {
        HeadLimits {
            request_line_bytes_max: 8 << 10,
            ..HeadLimits::default()
        }
    }
}

impl Default for HeadLimits {
    fn default() -> Self {
        HeadLimits {
            request_line_bytes_max: 1 << 20,
            header_block_bytes_max: 64 << 10,
            header_count_max: 128,
        }
    }
}

/// A message part is there, or more bytes are needed to tell. Needing more is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// The part ended inside the buffer.
    Complete(T),
    /// Everything so far was good; call again with more bytes behind the same ones.
    Partial,
}

/// A range of bytes, counted from the first byte of the buffer that was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
}

impl Span {
    /// The bytes of this span. `buf` is the buffer the head was read from (or a copy of it); a shorter one is
    /// a mistake of the caller and panics.
    #[inline]
    pub fn of<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        let start = self.start as usize;
        &buf[start..start + self.len as usize]
    }

    /// `start..end`; both fit, because `SECTION_BYTES_CEILING` bounds each of the two sections of a head.
    #[inline]
    pub(super) fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= u32::MAX as usize);
        Span {
            start: start as u32,
            len: (end - start) as u32,
        }
    }
}

/// One field line. Names keep the sender's case; values are trimmed of spaces and tabs at both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// The bytes before the colon, a token.
    pub name: Span,
    /// The bytes after it.
    pub value: Span,
}

/// The fields of a head in the order they came. 16 fit without an allocation; SDKs send 6 to 12.
pub type Fields = SmallVec<[Field; 16]>;

/// Why a line was refused. The variants name one cause each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// RFC 9112 section 2.2 lets a recipient accept it; two readers that differ on it can be played off.
    #[error("a line ends in a bare LF; end every line in CR LF")]
    BareLf,
    /// RFC 9112 section 2.2: a bare CR makes the element invalid.
    #[error("a line has a CR that no LF follows; remove it")]
    BareCr,
    /// RFC 9110 section 5.5: CTL in a field value, NUL above all; and in start lines likewise.
    #[error("a line has a control byte; remove it or encode it")]
    ControlByte,
    /// RFC 9112 section 5.1: the server answers 400.
    #[error("a header has white space between its name and the colon; write `Name: value`")]
    WhitespaceBeforeColon,
    /// RFC 9112 section 2.2: white space between the start line and the first field.
    #[error("the first header line begins with white space; start it with the header's name")]
    WhitespaceFirst,
    /// RFC 9112 section 5.2: a line continued on the next one.
    #[error("a header is folded over several lines; write it on one line")]
    Folded,
    /// RFC 9110 section 5.1: a name has at least one byte.
    #[error("a header has no name before its colon; write `Name: value`")]
    NameEmpty,
    /// RFC 9110 section 5.6.2: a name is a token.
    #[error("a header's name has a byte that names cannot have; use letters, digits and `-`")]
    NameInvalid,
    /// RFC 9112 section 5: a field line has a colon.
    #[error("a header line has no colon; write `Name: value`")]
    ColonMissing,
    /// `HeadLimits::request_line_bytes_max`; 431 as in WIRE.md 5.2.
    #[error("the first line is too long; send a shorter URL")]
    StartLineTooLong,
    /// `HeadLimits::header_block_bytes_max`; 431 as in WIRE.md 5.2.
    #[error("the headers are too long; send fewer or shorter ones")]
    FieldsTooLong,
    /// `HeadLimits::header_count_max`; 431 (RFC 6585 section 5).
    #[error("there are too many headers; send fewer")]
    FieldsTooMany,
}

impl LineError {
    /// The status a client is refused with.
    pub fn status(&self) -> u16 {
        match self {
            Self::StartLineTooLong | Self::FieldsTooLong | Self::FieldsTooMany => 431,
            _ => 400,
        }
    }

    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::BareLf => "bare_lf",
            Self::BareCr => "bare_cr",
            Self::ControlByte => "control_byte",
            Self::WhitespaceBeforeColon => "whitespace_before_colon",
            Self::WhitespaceFirst => "whitespace_first",
            Self::Folded => "header_folded",
            Self::NameEmpty => "header_name_empty",
            Self::NameInvalid => "header_name_invalid",
            Self::ColonMissing => "header_colon_missing",
            Self::StartLineTooLong => "start_line_too_long",
            Self::FieldsTooLong => "headers_too_long",
            Self::FieldsTooMany => "headers_too_many",
        }
    }
}

/// Why the fields that say where the body ends were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// RFC 9112 section 6.3 item 3: the classic of request smuggling.
    #[error("both Content-Length and Transfer-Encoding are present; send one of them")]
    LengthAndTransferEncoding,
    /// A second `Content-Length`: in requests even an equal one, in responses a different one.
    #[error("Content-Length is present more than once; send it once")]
    LengthRepeated,
    /// `Content-Length: 5, 5`; RFC 9110 section 8.6 lets us refuse it.
    #[error("Content-Length is a list; send one number")]
    LengthList,
    /// No digits at all.
    #[error("Content-Length is empty; send a decimal number of bytes")]
    LengthEmpty,
    /// A sign, a letter, a space: anything but `1*DIGIT` (RFC 9110 section 8.6).
    #[error("Content-Length is not a number; send decimal digits only")]
    LengthInvalid,
    /// Above 2^63-1, the largest length Go's `net/http` reads too.
    #[error("Content-Length is too large to be true; send the body's length in bytes")]
    LengthOverflow,
    /// More than one `Transfer-Encoding` line.
    #[error("Transfer-Encoding is present more than once; send `Transfer-Encoding: chunked` once")]
    TransferEncodingRepeated,
    /// Not a list of tokens: empty, quoted, with parameters.
    #[error("Transfer-Encoding is malformed; send `Transfer-Encoding: chunked`")]
    TransferEncodingMalformed,
    /// `chunked, chunked`, or `chunked` before another coding (RFC 9112 section 6.1).
    #[error("chunked must be the last transfer coding and applied once; send `Transfer-Encoding: chunked`")]
    TransferEncodingChunkedMisplaced,
    /// `identity` was removed from HTTP (RFC 7230 appendix A.2) and is read in two ways ever since.
    #[error("the transfer coding identity does not exist any more; send Content-Length instead")]
    TransferEncodingIdentity,
    /// A coding we do not have: 501 (RFC 9112 section 6.1, WIRE.md 5.2).
    #[error("the transfer coding is not supported; send `Transfer-Encoding: chunked`")]
    TransferEncodingUnknown,
    /// RFC 9112 section 6.1: framing of such a message is faulty.
    #[error("HTTP/1.0 has no Transfer-Encoding; send Content-Length or speak HTTP/1.1")]
    TransferEncodingHttp10,
    /// A tab around a framing value is legal and read differently by enough software to be a known trick.
    #[error(
        "Content-Length or Transfer-Encoding has a tab beside its value; write one space after the colon"
    )]
    FramingWhitespace,
}

impl FramingError {
    /// The status a client is refused with.
    pub fn status(&self) -> u16 {
        match self {
            Self::TransferEncodingUnknown => 501,
            _ => 400,
        }
    }

    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::LengthAndTransferEncoding => "length_and_transfer_encoding",
            Self::LengthRepeated => "content_length_repeated",
            Self::LengthList => "content_length_list",
            Self::LengthEmpty => "content_length_empty",
            Self::LengthInvalid => "content_length_invalid",
            Self::LengthOverflow => "content_length_overflow",
            Self::TransferEncodingRepeated => "transfer_encoding_repeated",
            Self::TransferEncodingMalformed => "transfer_encoding_malformed",
            Self::TransferEncodingChunkedMisplaced => "transfer_encoding_chunked_misplaced",
            Self::TransferEncodingIdentity => "transfer_encoding_identity",
            Self::TransferEncodingUnknown => "transfer_encoding_unknown",
            Self::TransferEncodingHttp10 => "transfer_encoding_http10",
            Self::FramingWhitespace => "framing_whitespace",
        }
    }
}

/// All values of a field, in order; `name` is lower case, the fields' case does not matter.
pub(super) fn values<'f, 'b>(
    fields: &'f [Field],
    buf: &'b [u8],
    name: &'static str,
) -> impl Iterator<Item = &'b [u8]> + use<'f, 'b> {
    debug_assert!(
        !name.bytes().any(|byte| byte.is_ascii_uppercase()),
        "field names are asked for in lower case"
    );
    let name = name.as_bytes();
    fields
        .iter()
        .filter(move |field| {
            field.name.len as usize == name.len() && field.name.of(buf).eq_ignore_ascii_case(name)
        })
        .map(move |field| field.value.of(buf))
}

/// Cuts a growing buffer into lines and remembers how far it has looked.
///
/// ```text
/// buf:  | lines handed out | line being awaited, no LF seen | not looked at yet |
///       0             line_start                         scanned             buf.len()
/// ```
/// INVARIANT: `line_start <= scanned <= buf.len()`, and `buf[line_start..scanned]` has no LF.
#[derive(Debug)]
pub(super) struct LineReader {
    limits: HeadLimits,
    line_start: usize,
    scanned: usize,
    /// Where the field section begins; unset while the start line is awaited.
    block_start: Option<usize>,
    fields: Fields,
}

/// One whole line, without its CRLF.
#[derive(Clone, Copy)]
pub(super) struct Line<'b> {
    /// Offset of `text` in the buffer.
    pub(super) start: usize,
    pub(super) text: &'b [u8],
}

impl LineReader {
    pub(super) fn new(limits: HeadLimits) -> Self {
        let limits = HeadLimits {
            request_line_bytes_max: limits.request_line_bytes_max.min(SECTION_BYTES_CEILING),
            header_block_bytes_max: limits.header_block_bytes_max.min(SECTION_BYTES_CEILING),
            header_count_max: limits.header_count_max,
        };
        LineReader {
            limits,
            line_start: 0,
            scanned: 0,
            block_start: None,
            fields: Fields::new(),
        }
    }

    pub(super) fn reset(&mut self) {
        self.line_start = 0;
        self.scanned = 0;
        self.block_start = None;
        self.fields.clear();
    }

    /// The next line if it is there. Length is judged before content, so a cut of the input changes no
    /// verdict.
    #[inline]
    pub(super) fn next<'b>(&mut self, buf: &'b [u8]) -> Result<Option<Line<'b>>, LineError> {
        debug_assert!(
            self.scanned <= buf.len(),
            "the buffer lost bytes that were already read"
        );
        let start = self.line_start;
        let Some(at) = buf.get(self.scanned..).and_then(|rest| memchr(b'\n', rest)) else {
            self.scanned = buf.len();
            // The line needs at least one more byte.
            self.check_length(buf.len() + 1)?;
            return Ok(None);
        };
        let end = self.scanned + at + 1;
        self.check_length(end)?;
        let [text @ .., b'\r', b'\n'] = &buf[start..end] else {
            return Err(LineError::BareLf);
        };
        self.line_start = end;
        self.scanned = end;
        Ok(Some(Line { start, text }))
    }

    /// The start line was the line handed out last: what follows are fields.
    pub(super) fn begin_fields(&mut self) {
        self.block_start = Some(self.line_start);
    }

    /// Reads a field line and keeps it.
    #[inline]
    pub(super) fn push_field(&mut self, line: Line<'_>) -> Result<Field, LineError> {
        if self.fields.len() >= self.limits.header_count_max {
            return Err(LineError::FieldsTooMany);
        }
        let name_len = checked_name(line.text, self.fields.is_empty())?;
        let field = field_at(line.start, name_len, line.text);
        self.fields.push(field);
        Ok(field)
    }

    /// Whether nothing has been read since the last reset.
    pub(super) fn is_fresh(&self) -> bool {
        self.scanned == 0
    }

    /// Reads all fields of a head that is here whole: they begin at `start` in `buf`, and `note` is told each with its line.
    /// Returns whether that went well, with the reader then behind the head. Otherwise the head does not end in `buf` or
    /// something about it is odd: nothing is kept, and reading line by line tells what it is.
    #[inline]
    pub(super) fn read_whole(
        &mut self,
        buf: &[u8],
        start: usize,
        mut note: impl FnMut(Field, &[u8]) -> bool,
    ) -> bool {
        let block = start;
        let mut start = start;
        let is_read = loop {
            let rest = buf.get(start..).unwrap_or_default();
            if rest.starts_with(b"\r\n") {
                start += 2;
                break true;
            }
            // That a LF follows, `is_clean` says below.
            let Some(end) = memchr(b'\r', rest) else {
                break false;
            };
            let text = &rest[..end];
            let name_len = token_len(text);
            if text.get(name_len) != Some(&b':')
                || name_len == 0
                || self.fields.len() >= self.limits.header_count_max
            {
                break false;
            }
            let field = field_at(start, name_len, text);
            if !note(field, text) {
                break false;
            }
            self.fields.push(field);
            start += end + 2;
        };
        let is_good = is_read
            && start - block <= self.limits.header_block_bytes_max
            && block <= self.limits.request_line_bytes_max
            && is_clean(&buf[block..start]);
        if is_good {
            self.line_start = start;
        } else {
            self.fields.clear();
        }
        is_good
    }

    /// The head has ended: how long it was and what fields it had. Ready for the next one.
    pub(super) fn finish(&mut self) -> (usize, Fields) {
        let bytes = self.line_start;
        let fields = std::mem::take(&mut self.fields);
        self.reset();
        (bytes, fields)
    }

    /// How many bytes of the current message have been looked at.
    #[cfg(test)]
    pub(super) fn scanned_bytes(&self) -> usize {
        self.scanned
    }

    /// Whether the section that is being read may reach up to `end`.
    fn check_length(&self, end: usize) -> Result<(), LineError> {
        match self.block_start {
            None if end - self.line_start > self.limits.request_line_bytes_max => {
                Err(LineError::StartLineTooLong)
            }
            Some(start) if end - start > self.limits.header_block_bytes_max => Err(LineError::FieldsTooLong),
            _ => Ok(()),
        }
    }
}

/// What the fields said about framing and the connection. Each `note_` is told one field as it comes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Facts {
    /// A `Content-Length`; `equal_may_repeat` is the leniency for responses.
    pub(super) fn note_length(
        &mut self,
        value: &[u8],
        raw: &[u8],
        equal_may_repeat: bool,
    ) -> Result<(), FramingError> {
        if self.chunked {
            return Err(FramingError::LengthAndTransferEncoding);
        }
        check_framing_space(raw)?;
        let length = parse_length(value)?;
        match self.length {
            Some(earlier) if !equal_may_repeat || earlier != length => Err(FramingError::LengthRepeated),
            _ => {
                self.length = Some(length);
                Ok(())
            }
        }
    }

    /// A `Transfer-Encoding`. Anything but one `chunked` is refused, so `chunked` is all there is to
    /// remember.
    pub(super) fn note_transfer_encoding(
        &mut self,
        value: &[u8],
        raw: &[u8],
        http11: bool,
    ) -> Result<(), FramingError> {
        if self.length.is_some() {
            return Err(FramingError::LengthAndTransferEncoding);
        }
        if self.chunked {
            return Err(FramingError::TransferEncodingRepeated);
        }
        if !http11 {
            return Err(FramingError::TransferEncodingHttp10);
        }
        check_framing_space(raw)?;
        check_transfer_encoding(value)?;
        self.chunked = true;
        Ok(())
    }

    /// A `Connection`: a list whose tokens other than these two mean nothing to us.
    pub(super) fn note_connection(&mut self, value: &[u8]) {
        for token in value.split(|&byte| byte == b',') {
            let token = trim(token);
            self.close |= token.eq_ignore_ascii_case(b"close");
            self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// RFC 9112 section 9.3: `close` wins, then the version decides.
    pub(super) fn keep_alive(&self, http11: bool) -> bool {
        !self.close && (http11 || self.keep_alive)
    }
}

/// Whether a byte may stand in a token (RFC 9110 section 5.6.2).
#[inline]
pub(super) fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES[byte as usize]
}

/// How many bytes at the front form a token.
#[inline]
pub(super) fn token_len(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .position(|&byte| !is_token_byte(byte))
        .unwrap_or(bytes.len())
}

/// Whether a byte is a control byte other than the tab.
#[inline]
pub(super) fn is_control(byte: u8) -> bool {
    ((byte < 0x20) & (byte != b'\t')) | (byte == 0x7f)
}

/// Whether `lines`, which end in a LF, are text in lines that end in CR LF: no control byte but tabs, no CR and no LF
/// alone. Like [`check_text`] without a branch for each byte, for all lines of a head at once.
#[inline]
pub(super) fn is_clean(lines: &[u8]) -> bool {
    let next = lines.get(1..).unwrap_or_default();
    let bad = lines.iter().zip(next).fold(false, |bad, (&byte, &next)| {
        let breaks = (byte == b'\r') != (next == b'\n');
        bad | breaks | (is_control(byte) & (byte != b'\r') & (byte != b'\n'))
    });
    !bad && lines.first() != Some(&b'\n')
}

/// Refuses control bytes but the tab. Looks at every byte without branching, so that it compiles to vector
/// code.
#[inline]
pub(super) fn check_text(bytes: &[u8]) -> Result<(), LineError> {
    if !bytes.iter().fold(false, |bad, &byte| bad | is_control(byte)) {
        Ok(())
    } else if memchr(b'\r', bytes).is_some() {
        Err(LineError::BareCr)
    } else {
        Err(LineError::ControlByte)
    }
}

/// Without the spaces and tabs at both ends (OWS, RFC 9110 section 5.6.3).
#[inline]
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Oracle of tests and fuzz targets: reads `data` whole, byte by byte, and in two parts cut at every
/// `stride`-th place, asserts that all agree, that a head completes with its last byte, that an error stays,
/// and that a reader that completed can go on. Answers what the whole read answered.
pub(super) fn check_cuts<R, T, E>(
    data: &[u8],
    stride: usize,
    begin: impl Fn() -> R,
    read: impl Fn(&mut R, &[u8]) -> Result<Progress<T>, E>,
    bytes: impl Fn(&T) -> usize,
) -> Result<Progress<T>, E>
where
    T: std::fmt::Debug + PartialEq,
    E: std::fmt::Debug + PartialEq,
{
    let mut reader = begin();
    let whole = read(&mut reader, data);
    match &whole {
        Ok(Progress::Complete(head)) => {
            assert!(bytes(head) <= data.len(), "a head ends inside the buffer");
            assert_eq!(
                read(&mut reader, data),
                whole,
                "a reader that completed begins anew"
            );
        }
        Ok(Progress::Partial) | Err(_) => assert_eq!(read(&mut reader, data), whole, "a verdict stays"),
    }

    let mut reader = begin();
    let mut grown = Ok(Progress::Partial);
    for end in 0..=data.len() {
        grown = read(&mut reader, &data[..end]);
        match &grown {
            Ok(Progress::Partial) => continue,
            Ok(Progress::Complete(head)) => {
                assert_eq!(bytes(head), end, "a head completes with its last byte")
            }
            Err(_) => {}
        }
        break;
    }
    assert_eq!(grown, whole, "byte by byte and whole differ");

    for cut in (0..=data.len()).step_by(stride) {
        let mut reader = begin();
        let cut_result = match read(&mut reader, &data[..cut]) {
            Ok(Progress::Partial) => read(&mut reader, data),
            decided => decided,
        };
        assert_eq!(cut_result, whole, "cut at {cut} and whole differ");
    }
    whole
}

/// Asserts that the fields lie inside the head's `bytes`, in order, names before values.
pub(super) fn check_fields(fields: &[Field], bytes: usize) {
    let mut last = 0;
    for span in fields.iter().flat_map(|field| [field.name, field.value]) {
        assert!(span.start as usize >= last, "spans overlap");
        last = (span.start + span.len) as usize;
    }
    assert!(last <= bytes, "a span leaves the head");
}

/// Limits so tight that a fuzzer meets them.
pub(super) const TIGHT_LIMITS: HeadLimits = HeadLimits {
    request_line_bytes_max: 48,
    header_block_bytes_max: 96,
    header_count_max: 4,
};

/// Digits only, at most 2^63-1.
fn parse_length(value: &[u8]) -> Result<u64, FramingError> {
    if value.is_empty() {
        return Err(FramingError::LengthEmpty);
    }
    let mut length: u64 = 0;
    for &byte in value {
        match byte {
            b'0'..=b'9' => {
                // Saturation keeps the value above the bound, whatever digits follow.
                length = length.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
            }
            b',' => return Err(FramingError::LengthList),
            _ => return Err(FramingError::LengthInvalid),
        }
    }
    if length > LENGTH_MAX {
        Err(FramingError::LengthOverflow)
    } else {
        Ok(length)
    }
}

/// `Ok` for exactly `chunked`; otherwise the most telling reason, the same for every order of the fields.
fn check_transfer_encoding(value: &[u8]) -> Result<(), FramingError> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut chunked = false;
    let mut identity = false;
    for coding in value.split(|&byte| byte == b',') {
        let coding = trim(coding);
        if coding.is_empty() || token_len(coding) != coding.len() {
            return Err(FramingError::TransferEncodingMalformed);
        }
        if chunked {
            return Err(FramingError::TransferEncodingChunkedMisplaced);
        }
        chunked = coding.eq_ignore_ascii_case(b"chunked");
        identity |= coding.eq_ignore_ascii_case(b"identity");
    }
    if identity {
        Err(FramingError::TransferEncodingIdentity)
    } else {
        Err(FramingError::TransferEncodingUnknown)
    }
}

fn check_framing_space(raw: &[u8]) -> Result<(), FramingError> {
    if raw.contains(&b'\t') {
        Err(FramingError::FramingWhitespace)
    } else {
        Ok(())
    }
}

/// The length of the name in `name: value`, both of which are good.
#[inline]
fn checked_name(line: &[u8], first: bool) -> Result<usize, LineError> {
    let name_len = token_len(line);
    if line.get(name_len) != Some(&b':') || name_len == 0 {
        return Err(name_error(line, name_len, first));
    }
    check_text(&line[name_len + 1..])?;
    Ok(name_len)
}

/// The field of the line `text`, which lies at `start`: a name, a colon, and the rest without the spaces and tabs around it.
#[inline]
fn field_at(start: usize, name_len: usize, text: &[u8]) -> Field {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let after = &text[name_len + 1..];
    let leading = after
        .iter()
        .position(|byte| !is_space(byte))
        .unwrap_or(after.len());
    let value = trim(&after[leading..]);
    let value_start = start + name_len + 1 + leading;
    Field {
        name: Span::new(start, start + name_len),
        value: Span::new(value_start, value_start + value.len()),
    }
}

/// Why no `name:` stands at the front of a line whose first `name_len` bytes are a token.
#[cold]
fn name_error(line: &[u8], name_len: usize, first: bool) -> LineError {
    match line[name_len..] {
        [] => LineError::ColonMissing,
        [b':', ..] => LineError::NameEmpty,
        [b' ' | b'\t', ..] if name_len == 0 && first => LineError::WhitespaceFirst,
        [b' ' | b'\t', ..] if name_len == 0 => LineError::Folded,
        [b' ' | b'\t', ref rest @ ..] => match trim(rest) {
            [b':', ..] => LineError::WhitespaceBeforeColon,
            rest if rest.contains(&b':') => LineError::NameInvalid,
            _ => LineError::ColonMissing,
        },
        [b'\r', ..] => LineError::BareCr,
        [byte, ..] if is_control(byte) => LineError::ControlByte,
        _ => LineError::NameInvalid,
    }
}

/// 2^63-1, see `FramingError::LengthOverflow`.
const LENGTH_MAX: u64 = i64::MAX as u64;

/// No section is read further than this, so that offsets (leading lines, start line and fields together) fit
/// `u32`.
const SECTION_BYTES_CEILING: usize = 1 << 30;

const TOKEN_BYTES: [bool; 256] = alphanumerics_and(b"!#$%&'*+-.^_`|~");

/// Letters, digits and `symbols`, as a table that a byte is looked up in.
pub(super) const fn alphanumerics_and(symbols: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < symbols.len() {
        table[symbols[at] as usize] = true;
        at += 1;
    }
    table
}
