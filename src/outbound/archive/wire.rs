//! The little of protobuf's wire format that the archive needs, over slices and without copying. Lenient nowhere: what
//! is not well formed is an error, and groups, which no profile has, count as not well formed.

use bytes::Buf;

use super::segments::Segments;

/// Not protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The value of one field.
#[derive(Clone, Debug)]
pub enum Value {
    /// Wire type 0.
    Varint(u64),
    /// Wire types 1 and 5, skipped.
    Fixed,
    /// Wire type 2.
    Bytes(Segments),
}

/// The next field of a message: its number and value. `None` at the end.
pub fn next_field(message: &mut Segments) -> Result<Option<(u64, Value)>, Malformed> {
    if message.is_empty() {
        return Ok(None);
    }
    let key = varint(message)?;
    let value = match key & 7 {
        0 => Value::Varint(varint(message)?),
        1 => skip(message, 8)?,
        5 => skip(message, 4)?,
        2 => {
            let length = usize::try_from(varint(message)?).map_err(|_| Malformed)?;
            Value::Bytes(message.cut(length).ok_or(Malformed)?)
        }
        _ => return Err(Malformed),
    };
    match key >> 3 {
        0 => Err(Malformed),
        number => Ok(Some((number, value))),
    }
}

/// Reads one varint: at most ten bytes, of which the last has one bit (protobuf encoding guide).
pub fn varint(message: &mut Segments) -> Result<u64, Malformed> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        if message.is_empty() {
            return Err(Malformed);
        }
        let byte = message.get_u8();
        if shift == 63 && byte > 1 {
            return Err(Malformed);
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

fn skip(message: &mut Segments, count: usize) -> Result<Value, Malformed> {
    message.cut(count).map(|_| Value::Fixed).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::super::segments::tests::split;
    use super::*;

    /// The numbers of all fields; `None` if the message is malformed.
    fn numbers(bytes: &[u8], step: usize) -> Option<Vec<u64>> {
        let mut message = split(bytes, step);
        let mut numbers = Vec::new();
        while let Some((number, _)) = next_field(&mut message).ok()? {
            numbers.push(number);
        }
        Some(numbers)
    }

    #[test]
    fn fields() {
        type Case = (&'static str, &'static [u8], Option<&'static [u64]>);
        let cases: &[Case] = &[
            ("empty", b"", Some(&[])),
            ("varint", b"\x08\x96\x01", Some(&[1])),
            ("bytes", b"\x12\x03abc\x1a\x00", Some(&[2, 3])),
            ("fixed", b"\x09abcdefgh\x0dabcd", Some(&[1, 1])),
            (
                "largest varint",
                b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                Some(&[1]),
            ),
            (
                "varint of 65 bits",
                b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
                None,
            ),
            ("cut varint", b"\x08\x96", None),
            ("cut bytes", b"\x12\x03ab", None),
            ("cut fixed", b"\x09abcdefg", None),
            (
                "length beyond memory",
                b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                None,
            ),
            ("group", b"\x0b\x0c", None),
            ("field 0", b"\x00\x01", None),
        ];
        for (name, bytes, expected) in cases {
            for step in 1..=bytes.len().max(1) {
                assert_eq!(
                    numbers(bytes, step).as_deref(),
                    *expected,
                    "{name} in steps of {step}"
                );
            }
        }
    }
}
