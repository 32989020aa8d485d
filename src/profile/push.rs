//! The splice: a PushRequest with its labels changed and its samples left where they lie. Responsible for the
//! protobuf wire format and the Push side of the label rules; not for compression, JSON or answers.
//!
//! ```text
//!  in   [series [label][label][annotation][sample ............][sample ......]][series ...]   any segments
//!  out  [new: series, labels][kept: sample sample ............][new: series, labels][kept: ...]
//! ```
//!
//! One walk over the input finds labels and samples. New bytes go to one buffer per push; sample bytes are
//! slices of the input, and neighbours merge. The output is what Go or prost would encode: labels sorted,
//! then samples in order; annotations and unknown fields are gone (WIRE.md 3.6).
//!
//! Memory: at most [`NEW_BYTES_MAX`] + [`PIECES_MAX`] x 96 bytes + one series' labels, whatever the input.

use std::borrow::Cow;
use std::cell::RefCell;

use bytes::Bytes;
use smallvec::SmallVec;
use thiserror::Error;

use crate::profile::connect::Code;
use crate::profile::labels::{LabelLimits, LabelRules, LabelSet, NAME, label_name_allowed};
use crate::profile::relabel::{Fate, Outgrown};

/// Most series of one push. Clients send one to a few dozen.
pub const SERIES_MAX: u32 = 16_384;
/// Most pieces of one spliced push, i.e. runs of new or kept bytes.
pub const PIECES_MAX: usize = 65_536;
/// Most new bytes (labels and message heads) of one spliced push: 16 MiB.
pub const NEW_BYTES_MAX: usize = 16 << 20;
/// Most label bytes read from one series: 1 MiB. The server's limits allow about 90 KiB.
pub const SERIES_LABEL_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting of unknown groups, as Go's protobuf takes them.
pub const GROUP_DEPTH_MAX: usize = 10_001;
/// Most rejected series that are listed; the rest is only counted.
pub const REJECTED_MAX: usize = 16;
/// Largest field number of a message (protobuf encoding guide).
const FIELD_NUMBER_MAX: u64 = (1 << 29) - 1;
/// Largest field number inside a skipped group, where Go checks less.
const GROUP_FIELD_NUMBER_MAX: u64 = i32::MAX as u64;
/// Scratch memory kept between pushes, in bytes.
const SCRATCH_BYTES_KEPT: usize = 64 << 10;
/// How many bytes of a client's label name a reason repeats.
const REASON_TEXT_BYTES_MAX: usize = 128;

thread_local! {
    /// New bytes of the push at hand; copied once, exactly sized, at the end.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A push ready to send.
#[derive(Clone, Debug, Default)]
pub struct Spliced {
    /// The new body. Sample bytes are slices of the input.
    pub segments: SmallVec<[Bytes; 4]>,
    /// The sum of the segments' lengths.
    pub bytes: u64,
    /// Series forwarded.
    pub series: u32,
    /// Samples forwarded.
    pub profiles: u32,
    /// The sum of the forwarded samples' `raw_profile` lengths, in bytes.
    pub raw_bytes: u64,
    /// Bytes that were newly written for it: labels and message heads.
    pub new_bytes: usize,
    /// Series left out, the first [`REJECTED_MAX`] of them.
    pub rejected: Vec<RejectedSeries>,
    /// How many series were left out in all.
    pub rejected_count: u32,
    /// Series that relabel rules were applied to; 0 without rules.
    pub relabelled: u32,
    /// Of those, dropped by a rule, which is no failure.
    pub relabel_dropped: u32,
}

/// A series that was left out while the others went on (WIRE.md 9, row 99).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedSeries {
    /// Its place in the request, from 0.
    pub index: u32,
    /// Why.
    pub reason: SeriesReason,
}

/// Why a series was left out.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SeriesReason {
    /// No labels (WIRE.md 9, row 94).
    #[error("service name is required")]
    LabelsEmpty,
    /// A label without a name. Alloy's text, odd as it is (WIRE.md 2.4).
    #[error("duplicate label name")]
    NameEmpty,
    /// A name with other characters than ASCII letters, digits, `_`, `.`; the text is cut at 128 bytes.
    #[error("invalid label name: {0}")]
    NameInvalid(String),
    /// Longer than [`LabelLimits::name_bytes_max`].
    #[error("label name is too long")]
    NameTooLong,
    /// Longer than [`LabelLimits::value_bytes_max`].
    #[error("label value is too long")]
    ValueTooLong,
    /// More than [`LabelLimits::count_max`].
    #[error("too many labels")]
    TooMany,
    /// More than [`SERIES_LABEL_BYTES_MAX`] in all.
    #[error("labels are too large")]
    TooLarge,
}

impl SeriesReason {
    /// The Connect code: `internal` for an empty label set (row 94), else `invalid_argument` (row 95 (D)).
    pub fn code(&self) -> Code {
        match self {
            SeriesReason::LabelsEmpty => Code::Internal,
            _ => Code::InvalidArgument,
        }
    }

    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            SeriesReason::LabelsEmpty => "labels_empty",
            SeriesReason::NameEmpty | SeriesReason::NameInvalid(_) => "label_name_invalid",
            SeriesReason::NameTooLong
            | SeriesReason::ValueTooLong
            | SeriesReason::TooMany
            | SeriesReason::TooLarge => "labels_too_large",
        }
    }
}

impl From<Outgrown> for SeriesReason {
    fn from(outgrown: Outgrown) -> Self {
        match outgrown {
            Outgrown::Name => Self::NameTooLong,
            Outgrown::Value => Self::ValueTooLong,
            Outgrown::Count => Self::TooMany,
        }
    }
}

/// Why a whole push is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PushError {
    /// Not protobuf, or invalid UTF-8 in a string (WIRE.md 9, row 81).
    #[error("malformed protobuf: {0}")]
    Malformed(&'static str),
    /// More than [`SERIES_MAX`].
    #[error("more than {SERIES_MAX} series in one push")]
    TooManySeries,
    /// More than [`PIECES_MAX`].
    #[error("the push is too fragmented")]
    TooManyPieces,
    /// More than [`NEW_BYTES_MAX`].
    #[error("the labels of the push are too large")]
    LabelsTooLarge,
}

impl PushError {
    /// The Connect code.
    pub fn code(self) -> Code {
        match self {
            PushError::Malformed(_) => Code::InvalidArgument,
            PushError::TooManySeries | PushError::TooManyPieces | PushError::LabelsTooLarge => {
                Code::ResourceExhausted
            }
        }
    }
}

/// Applies the Push label rules of WIRE.md 2.3 and 2.4 to every series of `body`, a PushRequest in the wire
/// format cut anywhere into segments. Sample bytes are neither copied nor decoded.
///
/// A series whose labels are not valid is left out and reported; the others go on. `Err` is for a body that
/// is not a PushRequest, or beyond this module's bounds.
pub fn splice(body: &[Bytes], rules: &LabelRules, limits: &LabelLimits) -> Result<Spliced, PushError> {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        let mut out = Output {
            new: scratch,
            pieces: SmallVec::new(),
        };
        let mut spliced = Spliced::default();
        let walked = walk_request(body, rules, limits, &mut out, &mut spliced);
        if walked.is_ok() {
            spliced.new_bytes = out.new.len();
            out.into_segments(body, &mut spliced);
        }
        scratch.shrink_to(SCRATCH_BYTES_KEPT);
        walked.map(|()| spliced)
    })
}

fn walk_request<'a>(
    body: &'a [Bytes],
    rules: &'a LabelRules,
    limits: &LabelLimits,
    out: &mut Output<'_>,
    spliced: &mut Spliced,
) -> Result<(), PushError> {
    let mut reader = Reader::new(body);
    let end = body.iter().map(|segment| segment.len() as u64).sum();
    let mut series = Series::default();
    let mut index = 0;
    while reader.position < end {
        let field = reader.field(end)?;
        if field != (1, LENGTH) {
            reader.skip_field(field, end)?;
            continue;
        }
        if index == SERIES_MAX {
            return Err(PushError::TooManySeries);
        }
        let series_end = reader.length(end)?;
        let new_before = out.new.len();
        series.clear();
        series.walk(&mut reader, series_end, limits, out)?;
        match series.apply_rules(rules, limits, spliced) {
            Ok(Fate::Kept) => series.write(out, spliced)?,
            Ok(Fate::Dropped) => {
                out.new.truncate(new_before);
                spliced.relabel_dropped += 1;
            }
            Err(reason) => {
                out.new.truncate(new_before);
                spliced.rejected_count += 1;
                if spliced.rejected.len() < REJECTED_MAX {
                    spliced.rejected.push(RejectedSeries { index, reason });
                }
            }
        }
        index += 1;
    }
    Ok(())
}

/// One series while it is read. Reused from series to series.
#[derive(Default)]
struct Series<'a> {
    labels: LabelSet<'a>,
    label_count: usize,
    label_bytes: usize,
    refused: Option<SeriesReason>,
    samples: Pieces,
    samples_bytes: u64,
    profiles: u32,
    raw_bytes: u64,
}

impl<'a> Series<'a> {
    fn clear(&mut self) {
        self.labels.clear();
        self.label_count = 0;
        self.label_bytes = 0;
        self.refused = None;
        self.samples.clear();
        self.samples_bytes = 0;
        self.profiles = 0;
        self.raw_bytes = 0;
    }

    fn walk(
        &mut self,
        reader: &mut Reader<'a>,
        end: u64,
        limits: &LabelLimits,
        out: &mut Output<'_>,
    ) -> Result<(), PushError> {
        while reader.position < end {
            let start = reader.mark();
            match reader.field(end)? {
                (1, LENGTH) => {
                    let label_end = reader.length(end)?;
                    self.label(reader, label_end, limits)?;
                }
                (2, LENGTH) => self.sample(reader, start, end, out)?,
                (3, LENGTH) => {
                    let annotation_end = reader.length(end)?;
                    check_annotation(reader, annotation_end)?;
                }
                field => reader.skip_field(field, end)?,
            }
        }
        Ok(())
    }

    fn label(&mut self, reader: &mut Reader<'a>, end: u64, limits: &LabelLimits) -> Result<(), PushError> {
        let (mut name, mut value) = (Some(Cow::default()), Some(Cow::default()));
        while reader.position < end {
            match reader.field(end)? {
                (1, LENGTH) => name = reader.text(end, limits.name_bytes_max)?,
                (2, LENGTH) => value = reader.text(end, limits.value_bytes_max)?,
                field => reader.skip_field(field, end)?,
            }
        }
        self.label_count += 1;
        if self.refused.is_some() {
            return Ok(());
        }
        let (Some(name), Some(value)) = (&name, &value) else {
            let reason = if name.is_none() {
                SeriesReason::NameTooLong
            } else {
                SeriesReason::ValueTooLong
            };
            self.refused = Some(reason);
            return Ok(());
        };
        self.label_bytes += name.len() + value.len();
        if self.label_count > limits.count_max {
            self.refused = Some(SeriesReason::TooMany);
        } else if self.label_bytes > SERIES_LABEL_BYTES_MAX {
            self.refused = Some(SeriesReason::TooLarge);
        } else {
            self.labels.push(name.clone(), value.clone());
        }
        Ok(())
    }

    /// Reads one sample whose tag began at `start`. A sample that already is what an encoder would write is
    /// kept whole; any other gets a new head and keeps its last `raw_profile` and `ID` in place.
    fn sample(
        &mut self,
        reader: &mut Reader<'a>,
        start: Mark,
        series_end: u64,
        out: &mut Output<'_>,
    ) -> Result<(), PushError> {
        let end = reader.length(series_end)?;
        let mut clean = reader.position - start.position == head_bytes(end - reader.position);
        let (mut raw, mut id) = (None, None);
        while reader.position < end {
            let field_start = reader.position;
            let field = reader.field(end)?;
            match field {
                (1 | 2, LENGTH) => {
                    let field_end = reader.length(end)?;
                    let bytes = field_end - reader.position;
                    clean &= bytes > 0 && reader.position - field_start == head_bytes(bytes) && id.is_none();
                    let mark = Some((reader.mark(), bytes));
                    if field.0 == 1 {
                        clean &= raw.is_none();
                        raw = mark;
                        reader.skip(bytes);
                    } else {
                        id = mark;
                        reader.check_utf8(bytes)?;
                    }
                }
                field => {
                    clean = false;
                    reader.skip_field(field, end)?;
                }
            }
        }
        self.profiles += 1;
        self.raw_bytes += raw.map_or(0, |(_, bytes)| bytes);
        if clean {
            let bytes = end - start.position;
            self.samples_bytes += bytes;
            return push_piece(&mut self.samples, Piece::Kept { start, bytes });
        }
        self.rebuild_sample(raw, id, out)
    }

    fn rebuild_sample(
        &mut self,
        raw: Option<(Mark, u64)>,
        id: Option<(Mark, u64)>,
        out: &mut Output<'_>,
    ) -> Result<(), PushError> {
        let parts = [(1, raw), (2, id)].map(|(number, part)| (number, part.filter(|&(_, bytes)| bytes > 0)));
        let inner = parts
            .iter()
            .filter_map(|(_, part)| *part)
            .map(|(_, bytes)| head_bytes(bytes) + bytes)
            .sum();
        let mut new_start = out.new.len();
        write_head(2, inner, out.new);
        for (number, part) in parts {
            let Some((start, bytes)) = part else { continue };
            write_head(number, bytes, out.new);
            push_piece(
                &mut self.samples,
                Piece::New {
                    start: new_start,
                    end: out.new.len(),
                },
            )?;
            push_piece(&mut self.samples, Piece::Kept { start, bytes })?;
            new_start = out.new.len();
        }
        if inner == 0 {
            push_piece(
                &mut self.samples,
                Piece::New {
                    start: new_start,
                    end: out.new.len(),
                },
            )?;
        }
        self.samples_bytes += head_bytes(inner) + inner;
        if out.new.len() > NEW_BYTES_MAX {
            Err(PushError::LabelsTooLarge)
        } else {
            Ok(())
        }
    }

    /// WIRE.md 2.3, then relabel rules, validation, and 2.4.
    fn apply_rules(
        &mut self,
        rules: &'a LabelRules,
        limits: &LabelLimits,
        spliced: &mut Spliced,
    ) -> Result<Fate, SeriesReason> {
        if let Some(reason) = self.refused.take() {
            return Err(reason);
        }
        self.labels.settle();
        self.labels.drop_empty();
        self.labels.ensure_service_name();
        if !rules.relabel().is_empty() && !self.labels.as_slice().is_empty() {
            spliced.relabelled += 1;
            if rules.relabel().apply(&mut self.labels, limits)? == Fate::Dropped {
                return Ok(Fate::Dropped);
            }
        }
        let labels = self.labels.as_slice();
        let first = labels.first().ok_or(SeriesReason::LabelsEmpty)?;
        if first.name.is_empty() {
            return Err(SeriesReason::NameEmpty);
        }
        let invalid = |name: &[u8]| name != NAME && !label_name_allowed(name);
        if let Some(label) = labels.iter().find(|label| invalid(&label.name)) {
            let name = &label.name[..label.name.len().min(REASON_TEXT_BYTES_MAX)];
            return Err(SeriesReason::NameInvalid(
                String::from_utf8_lossy(name).into_owned(),
            ));
        }
        self.labels.drop_reserved();
        self.labels.apply_external(rules);
        Ok(Fate::Kept)
    }

    fn write(&mut self, out: &mut Output<'_>, spliced: &mut Spliced) -> Result<(), PushError> {
        let part_bytes = |part: &[u8]| match part.len() as u64 {
            0 => 0,
            bytes => head_bytes(bytes) + bytes,
        };
        let pair_bytes = |name: &[u8], value: &[u8]| part_bytes(name) + part_bytes(value);
        let labels = self.labels.as_slice();
        let labels_bytes: u64 = labels
            .iter()
            .map(|label| pair_bytes(&label.name, &label.value))
            .map(|bytes| head_bytes(bytes) + bytes)
            .sum();
        if out.new.len() as u64 + labels_bytes > NEW_BYTES_MAX as u64 {
            return Err(PushError::LabelsTooLarge);
        }
        let start = out.new.len();
        write_head(1, labels_bytes + self.samples_bytes, out.new);
        for label in labels {
            write_head(1, pair_bytes(&label.name, &label.value), out.new);
            for (number, part) in [(1, &label.name), (2, &label.value)] {
                if !part.is_empty() {
                    write_head(number, part.len() as u64, out.new);
                    out.new.extend_from_slice(part);
                }
            }
        }
        push_piece(
            &mut out.pieces,
            Piece::New {
                start,
                end: out.new.len(),
            },
        )?;
        for piece in self.samples.drain(..) {
            push_piece(&mut out.pieces, piece)?;
        }
        spliced.series += 1;
        spliced.profiles += self.profiles;
        spliced.raw_bytes += self.raw_bytes;
        Ok(())
    }
}

fn check_annotation(reader: &mut Reader<'_>, end: u64) -> Result<(), PushError> {
    while reader.position < end {
        match reader.field(end)? {
            (1 | 2, LENGTH) => {
                let text_end = reader.length(end)?;
                reader.check_utf8(text_end - reader.position)?;
            }
            field => reader.skip_field(field, end)?,
        }
    }
    Ok(())
}

/// The bytes of a one-byte tag and a minimal length varint before `bytes` of content.
fn head_bytes(bytes: u64) -> u64 {
    1 + u64::from((64 - (bytes | 1).leading_zeros()).div_ceil(7))
}

fn write_head(number: u8, bytes: u64, out: &mut Vec<u8>) {
    out.push(number << 3 | LENGTH);
    let mut rest = bytes;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// A run of the output.
#[derive(Clone, Copy, Debug)]
enum Piece {
    /// A range of the new bytes.
    New { start: usize, end: usize },
    /// A run of the input, perhaps over several segments.
    Kept { start: Mark, bytes: u64 },
}

type Pieces = SmallVec<[Piece; 6]>;

/// Appends a piece, merged with the last one if they touch.
fn push_piece(pieces: &mut Pieces, piece: Piece) -> Result<(), PushError> {
    match (pieces.last_mut(), piece) {
        (Some(Piece::New { end: last_end, .. }), Piece::New { start, end }) if *last_end == start => {
            *last_end = end;
            return Ok(());
        }
        (
            Some(Piece::Kept {
                start: last,
                bytes: last_bytes,
            }),
            Piece::Kept { start, bytes },
        ) if last.position + *last_bytes == start.position => {
            *last_bytes += bytes;
            return Ok(());
        }
        _ => {}
    }
    if pieces.len() == PIECES_MAX {
        return Err(PushError::TooManyPieces);
    }
    pieces.push(piece);
    Ok(())
}

/// The output while it is built.
struct Output<'s> {
    new: &'s mut Vec<u8>,
    pieces: Pieces,
}

impl Output<'_> {
    fn into_segments(self, body: &[Bytes], spliced: &mut Spliced) {
        let new = Bytes::copy_from_slice(self.new);
        for piece in self.pieces {
            match piece {
                Piece::New { start, end } => spliced.segments.push(new.slice(start..end)),
                Piece::Kept { start, bytes } => {
                    let mut left = bytes;
                    let mut offset = start.offset;
                    for segment in body.get(start.segment..).unwrap_or_default() {
                        let step = left.min((segment.len() - offset) as u64) as usize;
                        if step > 0 {
                            spliced.segments.push(segment.slice(offset..offset + step));
                        }
                        left -= step as u64;
                        offset = 0;
                        if left == 0 {
                            break;
                        }
                    }
                }
            }
        }
        spliced.bytes = spliced.segments.iter().map(|segment| segment.len() as u64).sum();
    }
}

/// Wire type 2: a length and that many bytes.
const LENGTH: u8 = 2;

/// A place in the input.
#[derive(Clone, Copy, Debug)]
struct Mark {
    segment: usize,
    offset: usize,
    position: u64,
}

/// Reads the wire format across segments.
///
/// Invariants: `offset <= current.len()`; `position` is the bytes of all earlier segments plus `offset`;
/// every `end` that callers pass is at most the body's length, and `position <= end`.
struct Reader<'a> {
    body: &'a [Bytes],
    segment: usize,
    current: &'a [u8],
    offset: usize,
    position: u64,
}

impl<'a> Reader<'a> {
    fn new(body: &'a [Bytes]) -> Self {
        Reader {
            body,
            segment: 0,
            current: body.first().map_or(&[], |segment| segment),
            offset: 0,
            position: 0,
        }
    }

    fn mark(&self) -> Mark {
        Mark {
            segment: self.segment,
            offset: self.offset,
            position: self.position,
        }
    }

    /// Field number and wire type.
    fn field(&mut self, end: u64) -> Result<(u64, u8), PushError> {
        self.tag(end, FIELD_NUMBER_MAX)
    }

    fn tag(&mut self, end: u64, number_max: u64) -> Result<(u64, u8), PushError> {
        let tag = self.varint(end)?;
        let number = tag >> 3;
        if number == 0 || number > number_max {
            return Err(PushError::Malformed("invalid field number"));
        }
        Ok((number, (tag & 7) as u8))
    }

    /// Reads a length and gives the position where its content ends.
    fn length(&mut self, end: u64) -> Result<u64, PushError> {
        let bytes = self.varint(end)?;
        if bytes > end - self.position {
            return Err(PushError::Malformed("length beyond the input"));
        }
        Ok(self.position + bytes)
    }

    /// Reads a string of at most `bytes_max`; `None` for a longer one, which is checked but not held.
    /// Copies only a string that straddles segments.
    fn text(&mut self, end: u64, bytes_max: usize) -> Result<Option<Cow<'a, [u8]>>, PushError> {
        let bytes = self.length(end)? - self.position;
        if bytes > bytes_max as u64 {
            self.check_utf8(bytes)?;
            return Ok(None);
        }
        let length = bytes as usize;
        let start = self.offset;
        let text = match self.current.get(start..start + length) {
            Some(text) => {
                self.skip(bytes);
                Cow::Borrowed(text)
            }
            None => {
                let mut text = Vec::with_capacity(length);
                self.spans(bytes, |span| text.extend_from_slice(span));
                Cow::Owned(text)
            }
        };
        match std::str::from_utf8(&text) {
            Ok(_) => Ok(Some(text)),
            Err(_) => Err(PushError::Malformed("invalid UTF-8")),
        }
    }

    /// Skips `bytes`, which must be UTF-8 as a whole.
    fn check_utf8(&mut self, bytes: u64) -> Result<(), PushError> {
        let mut check = Utf8Check::default();
        let mut good = true;
        self.spans(bytes, |span| good = good && check.feed(span));
        if good && check.carried == 0 {
            Ok(())
        } else {
            Err(PushError::Malformed("invalid UTF-8"))
        }
    }

    /// Skips a field of any wire type, without recursion.
    fn skip_field(&mut self, (number, wire_type): (u64, u8), end: u64) -> Result<(), PushError> {
        if wire_type != 3 {
            return self.skip_scalar(wire_type, end);
        }
        let mut open: SmallVec<[u64; 8]> = SmallVec::new();
        open.push(number);
        while let Some(&innermost) = open.last() {
            match self.tag(end, GROUP_FIELD_NUMBER_MAX)? {
                (number, 3) if open.len() < GROUP_DEPTH_MAX => open.push(number),
                (_, 3) => return Err(PushError::Malformed("groups nested too deep")),
                (number, 4) if number == innermost => drop(open.pop()),
                (_, wire_type) => self.skip_scalar(wire_type, end)?,
            }
        }
        Ok(())
    }

    fn skip_scalar(&mut self, wire_type: u8, end: u64) -> Result<(), PushError> {
        let bytes = match wire_type {
            0 => return self.varint(end).map(drop),
            1 => 8,
            LENGTH => self.length(end)? - self.position,
            5 => 4,
            _ => return Err(PushError::Malformed("invalid wire type")),
        };
        if bytes > end - self.position {
            return Err(PushError::Malformed("truncated"));
        }
        self.skip(bytes);
        Ok(())
    }

    fn varint(&mut self, end: u64) -> Result<u64, PushError> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte(end)?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(PushError::Malformed("varint too long"))
    }

    fn byte(&mut self, end: u64) -> Result<u8, PushError> {
        if self.position >= end {
            return Err(PushError::Malformed("truncated"));
        }
        loop {
            if let Some(&byte) = self.current.get(self.offset) {
                self.offset += 1;
                self.position += 1;
                return Ok(byte);
            }
            if !self.next_segment() {
                return Err(PushError::Malformed("truncated"));
            }
        }
    }

    fn skip(&mut self, bytes: u64) {
        self.spans(bytes, |_| {});
    }

    /// Walks over `bytes` of input, segment by segment. The caller has checked that they are there.
    fn spans(&mut self, bytes: u64, mut each: impl FnMut(&'a [u8])) {
        let mut left = bytes;
        while left > 0 {
            let rest = self.current.get(self.offset..).unwrap_or_default();
            let step = left.min(rest.len() as u64) as usize;
            if step == 0 {
                if !self.next_segment() {
                    return;
                }
                continue;
            }
            each(&rest[..step]);
            self.offset += step;
            self.position += step as u64;
            left -= step as u64;
        }
    }

    fn next_segment(&mut self) -> bool {
        let Some(next) = self.body.get(self.segment + 1) else {
            return false;
        };
        self.segment += 1;
        self.current = next;
        self.offset = 0;
        true
    }
}

/// UTF-8 over spans cut anywhere: up to three bytes of an unfinished character are carried over.
#[derive(Default)]
struct Utf8Check {
    carry: [u8; 4],
    carried: usize,
}

impl Utf8Check {
    /// False once the text cannot be UTF-8.
    fn feed(&mut self, span: &[u8]) -> bool {
        let mut rest = span;
        while self.carried > 0 {
            let Some((&byte, tail)) = rest.split_first() else {
                return true;
            };
            self.carry[self.carried] = byte;
            self.carried += 1;
            rest = tail;
            match std::str::from_utf8(&self.carry[..self.carried]) {
                Ok(_) => self.carried = 0,
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return false,
            }
        }
        match std::str::from_utf8(rest) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let tail = &rest[error.valid_up_to()..];
                self.carry[..tail.len()].copy_from_slice(tail);
                self.carried = tail.len();
                true
            }
        }
    }
}

/// Fuzz target: the splice agrees with decode-edit-encode, and any cut into segments gives the same.
#[doc(hidden)]
pub fn fuzz_push(data: &[u8]) {
    use crate::profile::oracle::compare;
    let Some((&control, body)) = data.split_first() else {
        return;
    };
    let external = match control & 3 {
        0 => vec![],
        1 => vec![("env", "prod"), ("zone", "a")],
        2 => vec![("service_name", "svc"), ("a", "")],
        _ => vec![("__name__", "")],
    };
    let external = external
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let rules = LabelRules::new(external).expect("the labels above are valid");
    let limits = LabelLimits {
        name_bytes_max: 40,
        value_bytes_max: 60,
        count_max: 8,
    };
    let step = usize::from(control >> 2) + 1;
    let whole = compare(&[Bytes::copy_from_slice(body)], &rules, &limits);
    let cut: Vec<Bytes> = body.chunks(step).map(Bytes::copy_from_slice).collect();
    let parts = compare(&cut, &rules, &limits);
    match (whole, parts) {
        (Ok(whole), Ok(parts)) => {
            assert_eq!(whole.segments.concat(), parts.segments.concat());
            assert_eq!(whole.rejected, parts.rejected);
        }
        (whole, parts) => assert_eq!(whole.map(|_| ()), parts.map(|_| ())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::oracle::compare;
    use crate::profile::proto::{LabelPair, ProfileAnnotation, PushRequest, RawProfileSeries, RawSample};
    use proptest::prelude::*;
    use prost::Message as _;

    fn rules(external: &[(&str, &str)]) -> LabelRules {
        let owned = external
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        LabelRules::new(owned).expect("valid external labels")
    }

    fn series(labels: &[(&str, &str)], samples: &[&[u8]]) -> RawProfileSeries {
        RawProfileSeries {
            labels: labels
                .iter()
                .map(|(name, value)| LabelPair {
                    name: (*name).into(),
                    value: (*value).into(),
                })
                .collect(),
            samples: samples
                .iter()
                .enumerate()
                .map(|(index, raw)| RawSample {
                    raw_profile: Bytes::copy_from_slice(raw),
                    id: format!("id-{index}"),
                })
                .collect(),
            annotations: vec![ProfileAnnotation {
                key: "k".into(),
                value: "v".into(),
            }],
        }
    }

    fn body(series: Vec<RawProfileSeries>) -> Vec<Bytes> {
        vec![PushRequest { series }.encode_to_vec().into()]
    }

    fn labels_out(labels: &[(&str, &str)], external: &[(&str, &str)]) -> Result<String, SeriesReason> {
        let spliced = compare(
            &body(vec![series(labels, &[b"p"])]),
            &rules(external),
            &LabelLimits::default(),
        )
        .expect("well-formed");
        if let Some(rejected) = spliced.rejected.first() {
            return Err(rejected.reason.clone());
        }
        let sent = PushRequest::decode(&*spliced.segments.concat()).expect("the output decodes");
        let text = sent.series[0]
            .labels
            .iter()
            .map(|pair| format!("{}={}", pair.name, pair.value));
        Ok(text.collect::<Vec<_>>().join(","))
    }

    #[test]
    fn labels_follow_rows_89_to_97() {
        let name_invalid = |name: &str| Err(SeriesReason::NameInvalid(name.into()));
        let ok = |text: &str| Ok(text.to_owned());
        type Pairs = &'static [(&'static str, &'static str)];
        let cases: &[(&str, Pairs, Pairs, Result<String, SeriesReason>)] = &[
            ("89 sorted", &[("b", "2"), ("a", "1")], &[], ok("a=1,b=2")),
            (
                "91 absent",
                &[("__name__", "cpu")],
                &[],
                ok("__name__=cpu,service_name=cpu"),
            ),
            (
                "91 present",
                &[("service_name", "s"), ("__name__", "cpu"), ("app_name", "mine")],
                &[],
                ok("__name__=cpu,app_name=cpu,service_name=s"),
            ),
            (
                "92 app_name removed",
                &[("service_name", "s"), ("app_name", "mine")],
                &[],
                ok("service_name=s"),
            ),
            ("93 neither", &[("env", "prod")], &[], ok("env=prod")),
            (
                "93 app_name alone stays",
                &[("app_name", "a")],
                &[],
                ok("app_name=a"),
            ),
            ("94 empty set", &[], &[], Err(SeriesReason::LabelsEmpty)),
            (
                "94 all values empty",
                &[("a", "")],
                &[("env", "x")],
                Err(SeriesReason::LabelsEmpty),
            ),
            ("95 dash", &[("a-b", "1")], &[], name_invalid("a-b")),
            (
                "95 before the reserved filter",
                &[("__a-b__", "1")],
                &[],
                name_invalid("__a-b__"),
            ),
            ("95 not ASCII", &[("é", "1")], &[], name_invalid("é")),
            (
                "95 no name",
                &[("", "1"), ("a", "b")],
                &[],
                Err(SeriesReason::NameEmpty),
            ),
            ("95 no name but no value", &[("", ""), ("a", "b")], &[], ok("a=b")),
            (
                "96 reserved",
                &[
                    ("__session_id__", "x"),
                    ("__delta__", "false"),
                    ("__name__", "n"),
                    ("_a", "1"),
                ],
                &[],
                ok("__delta__=false,__name__=n,_a=1,service_name=n"),
            ),
            ("96 only reserved", &[("__session_id__", "x")], &[], ok("")),
            (
                "97 last wins",
                &[("a", "1"), ("b", "2"), ("a", "3")],
                &[],
                ok("a=3,b=2"),
            ),
            (
                "97 later empty deletes",
                &[("a", "1"), ("b", "2"), ("a", "")],
                &[],
                ok("b=2"),
            ),
            (
                "97 set again",
                &[("a", "1"), ("a", ""), ("a", "2")],
                &[],
                ok("a=2"),
            ),
            (
                "empty service_name is absent",
                &[("service_name", ""), ("__name__", "n")],
                &[],
                { ok("__name__=n,service_name=n") },
            ),
            (
                "42 external overrides",
                &[("env", "dev"), ("a", "1")],
                &[("env", "prod"), ("a", "")],
                ok("env=prod"),
            ),
            (
                "external service_name after the rule",
                &[("__name__", "n")],
                &[("service_name", "x")],
                { ok("__name__=n,service_name=x") },
            ),
        ];
        for (name, labels, external, expected) in cases {
            assert_eq!(&labels_out(labels, external), expected, "{name}");
        }
        assert_eq!(SeriesReason::LabelsEmpty.code(), Code::Internal, "94");
        assert_eq!(SeriesReason::NameEmpty.code(), Code::InvalidArgument, "95 (D)");
    }

    #[test]
    fn wire_3_1_example_is_reproduced() {
        let out = splice(
            &body(vec![series(&[("service_name", "svc2"), ("env", "prod")], &[])]),
            &LabelRules::default(),
            &LabelLimits::default(),
        )
        .expect("well-formed");
        let expected = b"\x0a\x23\x0a\x0b\x0a\x03env\x12\x04prod\x0a\x14\x0a\x0cservice_name\x12\x04svc2";
        assert_eq!(out.segments.concat(), expected);
    }

    #[test]
    fn clean_samples_are_slices_of_the_input() {
        let raw: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let input = body(vec![series(&[("__name__", "cpu")], &[&raw, b"second"])]);
        let out = splice(&input, &rules(&[("env", "prod")]), &LabelLimits::default()).expect("well-formed");
        assert_eq!(out.segments.len(), 2, "one new head, one run of samples");
        let (start, end) = (input[0].as_ptr(), input[0].as_ptr().wrapping_add(input[0].len()));
        let kept = &out.segments[1];
        assert!(kept.as_ptr() >= start && kept.as_ptr().wrapping_add(kept.len()) <= end);
        assert_eq!(out.raw_bytes, raw.len() as u64 + 6);
        assert_eq!((out.series, out.profiles), (1, 2));
    }

    #[test]
    fn no_cut_copies_a_sample_byte() {
        let input = body(vec![series(&[("__name__", "cpu")], &[&[7; 300]])]).remove(0);
        let range = input.as_ptr() as usize..input.as_ptr() as usize + input.len();
        for cut in 0..=input.len() {
            let parts = [input.slice(..cut), input.slice(cut..)];
            let out = compare(&parts, &LabelRules::default(), &LabelLimits::default()).expect("well-formed");
            let kept: usize = out
                .segments
                .iter()
                .filter(|s| range.contains(&(s.as_ptr() as usize)))
                .map(Bytes::len)
                .sum();
            assert_eq!(
                kept,
                3 + 3 + 300 + 2 + 4,
                "sample head, raw_profile head and bytes, ID; cut at {cut}"
            );
        }
    }

    #[test]
    fn bad_series_are_left_out_and_the_others_go_on() {
        let input = body(vec![
            series(&[("a-b", "1")], &[b"bad"]),
            series(&[("a", "1")], &[b"good"]),
            series(&[], &[b"bad"]),
        ]);
        let out = compare(&input, &LabelRules::default(), &LabelLimits::default()).expect("well-formed");
        assert_eq!(
            (out.series, out.profiles, out.raw_bytes, out.rejected_count),
            (1, 1, 4, 2)
        );
        let listed: Vec<u32> = out.rejected.iter().map(|rejected| rejected.index).collect();
        assert_eq!(listed, [0, 2]);
    }

    #[test]
    fn rejected_series_are_counted_beyond_the_list() {
        let input = body(vec![RawProfileSeries::default(); 40]);
        let out = compare(&input, &LabelRules::default(), &LabelLimits::default()).expect("well-formed");
        assert_eq!(
            (out.rejected.len(), out.rejected_count, out.bytes),
            (REJECTED_MAX, 40, 0)
        );
    }

    #[test]
    fn rejected_series_leave_no_new_bytes() {
        // The sample of the series without labels has its ID first, so it is rebuilt before the series is rejected.
        let input = [Bytes::from_static(b"\x0a\x08\x12\x06\x12\x01i\x0a\x01x")];
        let mut new = Vec::new();
        let mut out = Output {
            new: &mut new,
            pieces: SmallVec::new(),
        };
        let mut spliced = Spliced::default();
        let walked = walk_request(
            &input,
            &LabelRules::default(),
            &LabelLimits::default(),
            &mut out,
            &mut spliced,
        );
        assert_eq!((walked, spliced.rejected_count), (Ok(()), 1));
        assert!(out.new.is_empty() && out.pieces.is_empty());
    }

    #[test]
    fn wire_format_table() {
        let sample = b"\x12\x03\x0a\x01x";
        let with = |extra: &[u8]| {
            let inner = [b"\x0a\x06\x0a\x01a\x12\x01b".as_slice(), extra, sample].concat();
            [&[0x0a, inner.len() as u8], inner.as_slice()].concat()
        };
        let ok = |name, input: Vec<u8>| (name, input, true);
        let bad = |name, input: Vec<u8>| (name, input, false);
        let cases = [
            ok("83 empty body", vec![]),
            ok("plain", with(b"")),
            ok("unknown varint", with(b"\x20\x01")),
            ok("unknown fixed64", with(b"\x21aaaaaaaa")),
            ok("unknown fixed32", with(b"\x25aaaa")),
            ok("unknown bytes", with(b"\x22\x02aa")),
            ok("unknown group", with(b"\x23\x08\x01\x1b\x1c\x24")),
            ok("wrong wire type of labels", with(b"\x08\x01")),
            ok("wrong wire type of samples", with(b"\x15aaaa")),
            ok("group under a known number", with(b"\x0b\x0c")),
            ok("overlong tag", with(b"\x9a\x00\x00")),
            ok("overlong length", with(b"\x1a\x82\x80\x00\x0a\x00")),
            ok(
                "varint of ten bytes",
                with(b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
            ),
            bad(
                "tenth varint byte too large",
                with(b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),
            ),
            bad(
                "varint of eleven bytes",
                with(b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x80\x00"),
            ),
            bad("field number 0", with(b"\x02\x00")),
            bad("field number too large", with(b"\x82\x80\x80\x80\x10\x00")),
            bad("wire type 6", with(b"\x26")),
            bad("wire type 7", with(b"\x27")),
            bad("stray group end", with(b"\x24")),
            bad("wrong group end", with(b"\x23\x2c")),
            bad("open group", with(b"\x23")),
            bad("length beyond the series", with(b"\x22\x7f")),
            bad(
                "length of 2^63",
                with(b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
            ),
            bad("label beyond the series", with(b"\x0a\x7f")),
            bad("name beyond its label", with(b"\x0a\x02\x0a\x05")),
            bad("label name not UTF-8", with(b"\x0a\x03\x0a\x01\xff")),
            bad("label value not UTF-8", with(b"\x0a\x03\x12\x01\xff")),
            bad(
                "overwritten value not UTF-8",
                with(b"\x0a\x06\x12\x01\xff\x12\x01a"),
            ),
            bad("ID not UTF-8", with(b"\x12\x04\x12\x02\xc3\x28")),
            bad("ID cut inside a character", with(b"\x12\x03\x12\x01\xc3")),
            bad("surrogate in ID", with(b"\x12\x05\x12\x03\xed\xa0\x80")),
            bad("annotation key not UTF-8", with(b"\x1a\x03\x0a\x01\xff")),
            bad("annotation malformed", with(b"\x1a\x01\x0a")),
            ok("raw_profile may be anything", with(b"\x12\x04\x0a\x02\xff\xfe")),
            bad("truncated varint at the top", vec![0x80]),
            bad("truncated fixed32 at the top", vec![0x25, 1, 2, 3]),
            bad("series beyond the input", vec![0x0a, 5, 0]),
        ];
        for (name, input, good) in cases {
            for step in 1..=input.len().max(1) {
                let cut: Vec<Bytes> = input.chunks(step).map(Bytes::copy_from_slice).collect();
                let out = splice(&cut, &LabelRules::default(), &LabelLimits::default());
                assert_eq!(out.is_ok(), good, "{name}, cut every {step}: {out:?}");
                match out {
                    Ok(out) => assert!(
                        input.is_empty() || out.segments.concat().ends_with(sample),
                        "{name}"
                    ),
                    Err(error) => assert_eq!(error.code(), Code::InvalidArgument, "{name}"),
                }
            }
        }
    }

    #[test]
    fn samples_that_need_it_are_rebuilt() {
        let cases: &[(&str, &[u8], &[u8])] = &[
            ("empty", b"", b""),
            ("ID before raw", b"\x12\x01i\x0a\x01x", b"\x0a\x01x\x12\x01i"),
            ("last raw wins", b"\x0a\x01x\x0a\x02yz", b"\x0a\x02yz"),
            ("last empty raw wins", b"\x0a\x01x\x0a\x00", b""),
            ("last ID wins", b"\x12\x01i\x12\x02jk", b"\x12\x02jk"),
            (
                "unknown field inside",
                b"\x0a\x01x\x18\x05\x12\x01i",
                b"\x0a\x01x\x12\x01i",
            ),
            ("overlong length", b"\x0a\x81\x00x", b"\x0a\x01x"),
            ("overlong tag", b"\x8a\x00\x01x", b"\x0a\x01x"),
        ];
        for (name, sample, expected) in cases {
            let mut series = b"\x0a\x06\x0a\x01a\x12\x01b".to_vec();
            series.extend([0x12, sample.len() as u8]);
            series.extend_from_slice(sample);
            let mut input = vec![0x0a, series.len() as u8];
            input.extend(series);
            let out = compare(&[input.into()], &LabelRules::default(), &LabelLimits::default()).expect(name);
            let mut tail = vec![0x12, expected.len() as u8];
            tail.extend_from_slice(expected);
            let all = out.segments.concat();
            assert_eq!(all[10..], tail, "{name}");
        }
    }

    #[test]
    fn group_depth_is_that_of_go() {
        for (depth, good) in [(GROUP_DEPTH_MAX, true), (GROUP_DEPTH_MAX + 1, false)] {
            let input = [vec![0x23; depth], vec![0x24; depth]].concat();
            let out = splice(&[input.into()], &LabelRules::default(), &LabelLimits::default());
            assert_eq!(out.is_ok(), good, "{depth}");
        }
    }

    #[test]
    fn large_labels_are_refused_without_being_held() {
        let limits = LabelLimits::default();
        let long = |bytes| "x".repeat(bytes);
        let cases = [
            (
                "name of 17 MiB",
                vec![(long(17 << 20), "v".into())],
                Some(SeriesReason::NameTooLong),
            ),
            (
                "value of 17 MiB",
                vec![("n".into(), long(17 << 20))],
                Some(SeriesReason::ValueTooLong),
            ),
            ("name at the limit", vec![(long(1024), "v".into())], None),
            (
                "name over it",
                vec![(long(1025), "v".into())],
                Some(SeriesReason::NameTooLong),
            ),
            ("value at the limit", vec![("n".into(), long(65536))], None),
            (
                "value over it",
                vec![("n".into(), long(65537))],
                Some(SeriesReason::ValueTooLong),
            ),
            (
                "1024 labels",
                (0..1024).map(|n| (format!("n{n}"), "v".into())).collect(),
                None,
            ),
            (
                "1025 labels",
                vec![("n".to_owned(), "v".to_owned()); 1025],
                Some(SeriesReason::TooMany),
            ),
            (
                "1.1 MiB",
                (0..18).map(|n| (format!("n{n}"), long(62_000))).collect(),
                Some(SeriesReason::TooLarge),
            ),
        ];
        for (name, labels, expected) in cases {
            let pairs: Vec<(&str, &str)> = labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let whole = body(vec![series(&pairs, &[b"p"])]).remove(0);
            let cut: Vec<Bytes> = (0..whole.len())
                .step_by(4096)
                .map(|at| whole.slice(at..whole.len().min(at + 4096)))
                .collect();
            let out = splice(&cut, &LabelRules::default(), &limits).expect(name);
            assert_eq!(
                out.rejected.first().map(|rejected| rejected.reason.clone()),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn bounds_of_a_push() {
        let limits = LabelLimits::default();
        let plain = series(&[("a", "b")], &[]);
        let at = body(vec![plain.clone(); SERIES_MAX as usize]);
        assert_eq!(
            splice(&at, &LabelRules::default(), &limits).map(|out| out.series),
            Ok(SERIES_MAX)
        );
        let over = body(vec![plain; SERIES_MAX as usize + 1]);
        assert_eq!(
            splice(&over, &LabelRules::default(), &limits).err(),
            Some(PushError::TooManySeries)
        );
        // Each sample with an annotation after it is a piece of its own.
        let mut fragments = b"\x0a\x06\x0a\x01a\x12\x01b".to_vec();
        fragments.extend(b"\x12\x03\x0a\x01x\x1a\x00".repeat(PIECES_MAX));
        let mut input = Vec::new();
        write_head(1, fragments.len() as u64, &mut input);
        input.extend(fragments);
        let out = splice(&[input.into()], &LabelRules::default(), &limits);
        assert_eq!(out.err(), Some(PushError::TooManyPieces));
        let wide = rules(&[("z", &"v".repeat(2000))]);
        let many = body(vec![series(&[("a", "b")], &[]); 10_000]);
        assert_eq!(
            splice(&many, &wide, &limits).err(),
            Some(PushError::LabelsTooLarge)
        );
        assert_eq!(PushError::LabelsTooLarge.code(), Code::ResourceExhausted);
    }

    /// A field of a random message: known, or unknown in a way that `prost` skips too.
    fn field(fields: Vec<(u8, BoxedStrategy<Vec<u8>>)>) -> BoxedStrategy<Vec<u8>> {
        let mut kinds: Vec<(u32, BoxedStrategy<Vec<u8>>)> = vec![
            (1, Just(b"\x78\x85\x01".to_vec()).boxed()),
            (
                1,
                proptest::collection::vec(any::<u8>(), 8)
                    .prop_map(|b| [vec![0x79], b].concat())
                    .boxed(),
            ),
            (
                1,
                proptest::collection::vec(any::<u8>(), 4)
                    .prop_map(|b| [vec![0x7d], b].concat())
                    .boxed(),
            ),
            (1, Just(b"\x7b\x08\x01\x0b\x0c\x7c".to_vec()).boxed()),
            (
                1,
                proptest::collection::vec(any::<u8>(), 0..20)
                    .prop_map(|b| length_field(15, &b, 0))
                    .boxed(),
            ),
        ];
        for (number, content) in fields {
            let one = (content, 0..8_u8).prop_map(move |(content, pad)| length_field(number, &content, pad));
            kinds.push((6, one.boxed()));
        }
        proptest::strategy::Union::new_weighted(kinds).boxed()
    }

    fn message(fields: Vec<(u8, BoxedStrategy<Vec<u8>>)>, count: usize) -> BoxedStrategy<Vec<u8>> {
        proptest::collection::vec(field(fields), 0..count)
            .prop_map(|fields| fields.concat())
            .boxed()
    }

    /// A length-delimited field; the length is padded to an overlong varint one time in four.
    fn length_field(number: u8, content: &[u8], pad: u8) -> Vec<u8> {
        let mut out = Vec::new();
        write_head(number, content.len() as u64, &mut out);
        if pad < 2
            && let Some(last) = out.last_mut()
        {
            *last |= 0x80;
            out.extend([0x80, 0][usize::from(pad)..].iter());
        }
        out.extend_from_slice(content);
        out
    }

    fn request() -> BoxedStrategy<Vec<u8>> {
        let name = prop_oneof![
            "(__name__|service_name|app_name|__delta__|__session_id__|a|b|env)",
            "[a-z._]{0,6}",
            "[a-zé-]{1,3}",
        ];
        let text = |strategy: BoxedStrategy<String>| strategy.prop_map(String::into_bytes).boxed();
        let value = || prop_oneof![Just(String::new()), ".{0,12}", "[a-z]{50}"].boxed();
        let label = message(vec![(1, text(name.boxed())), (2, text(value()))], 4);
        let raw = proptest::collection::vec(any::<u8>(), 0..200).boxed();
        let sample = prop_oneof![
            message(vec![(1, raw.clone()), (2, text(value()))], 4),
            (raw, value()).prop_map(|(raw, id)| RawSample {
                raw_profile: raw.into(),
                id
            }
            .encode_to_vec()),
        ];
        let annotation = message(vec![(1, text(value())), (2, text(value()))], 3);
        let series = message(
            vec![
                (1, label.clone()),
                (1, label),
                (2, sample.boxed()),
                (3, annotation),
            ],
            10,
        );
        message(vec![(1, series)], 5)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn splice_equals_decode_edit_encode(
            input in request(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
            external in prop_oneof![
                Just(vec![]),
                Just(vec![("env", "prod"), ("a", "")]),
                Just(vec![("__name__", "x"), ("service_name", "")]),
            ],
        ) {
            let input = Bytes::from(input);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            at.extend([0, input.len()]);
            at.sort_unstable();
            let parts: Vec<Bytes> = at.windows(2).map(|pair| input.slice(pair[0]..pair[1])).collect();
            let limits = LabelLimits { value_bytes_max: 40, ..LabelLimits::default() };
            compare(&parts, &rules(&external), &limits).expect("random messages are well-formed");
        }

        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_push(&data);
        }

        #[test]
        fn broken_messages_never_panic(
            input in request(),
            control in any::<u8>(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut data = [vec![control], input].concat();
            let index = at.index(data.len());
            data[index] = byte;
            fuzz_push(&data);
        }
    }
}
