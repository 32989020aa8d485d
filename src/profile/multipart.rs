//! A bounded reader of multipart/form-data (RFC 7578) for the file archive, which stores the parts of a
//! pprof or JFR form (WIRE.md 1.4). Not on the hot path; forwarding never looks inside a form.

use std::ops::Range;

use memchr::memmem;

/// Most parts that are reported. SDK forms have one to three.
pub const PARTS_MAX: usize = 64;
/// Longest head of one part, in bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Longest boundary, in bytes (RFC 2046, section 5.1.1).
const BOUNDARY_BYTES_MAX: usize = 70;

/// One part of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The form field's name.
    pub name: String,
    /// The file name; a Pyroscope server ignores file parts without one.
    pub filename: Option<String>,
    /// Where the content lies in the body.
    pub range: Range<usize>,
}

/// The parts of `body`, at most [`PARTS_MAX`], in order. Lenient: what is not a form has no parts, and
/// reading stops at the first part that is not well formed or not closed by a boundary.
pub fn parts(content_type: &[u8], body: &[u8]) -> Vec<Part> {
    let mut found = Vec::new();
    let Some(boundary) = boundary(content_type) else {
        return found;
    };
    let delimiter = [b"--", boundary.as_bytes()].concat();
    let inner_delimiter = [b"\r\n", delimiter.as_slice()].concat();
    let finder = memmem::Finder::new(&inner_delimiter);
    let first = if body.starts_with(&delimiter) {
        Some(delimiter.len())
    } else {
        finder.find(body).map(|index| index + inner_delimiter.len())
    };
    let Some(mut position) = first else { return found };
    while found.len() < PARTS_MAX {
        let Some(content) = part_content(body, position) else {
            break;
        };
        let Some(length) = finder.find(&body[content.start..]) else {
            break;
        };
        let range = content.start..content.start + length;
        if let Some((name, filename)) = disposition(&body[content.head]) {
            found.push(Part {
                name,
                filename,
                range: range.clone(),
            });
        }
        position = range.end + inner_delimiter.len();
    }
    found
}

/// Where a part's head and content begin.
struct PartStart {
    head: Range<usize>,
    start: usize,
}

/// Reads the rest of a delimiter line at `position` and the head after it. `None` at the closing delimiter.
fn part_content(body: &[u8], position: usize) -> Option<PartStart> {
    let rest = body.get(position..)?;
    let padding = rest.iter().take_while(|&&b| b == b' ' || b == b'\t').count();
    // The head begins with the delimiter's own line end, so that an empty head is `CRLF CRLF` too.
    let head_start = position + padding;
    let rest = body
        .get(head_start..)?
        .strip_prefix(b"\r\n")
        .map(|_| &body[head_start..])?;
    let window = &rest[..rest.len().min(HEAD_BYTES_MAX)];
    let head_length = memmem::find(window, b"\r\n\r\n")?;
    Some(PartStart {
        head: head_start..head_start + head_length,
        start: head_start + head_length + 4,
    })
}

/// Name and file name from a part's head.
fn disposition(head: &[u8]) -> Option<(String, Option<String>)> {
    let head = String::from_utf8_lossy(head);
    let value = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim()
            .eq_ignore_ascii_case("content-disposition")
            .then_some(value)
    })?;
    let (kind, parameters) = value.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return None;
    }
    Some((parameter(parameters, "name")?, parameter(parameters, "filename")))
}

fn boundary(content_type: &[u8]) -> Option<String> {
    let (kind, parameters) = std::str::from_utf8(content_type).ok()?.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameter(parameters, "boundary").filter(|text| (1..=BOUNDARY_BYTES_MAX).contains(&text.len()))
}

/// The value of one `name=value` or `name="value"` in a list separated by semicolons.
fn parameter(list: &str, wanted: &str) -> Option<String> {
    let mut rest = list;
    loop {
        let (name, tail) = rest.split_once('=')?;
        let (value, tail) = parameter_value(tail.trim_start());
        if name.trim_matches([' ', '\t', ';']).eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = tail;
    }
}

/// Reads a token, or a quoted string with backslash escapes, and gives what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[index + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content_type: &str, body: &str) -> Vec<(String, Option<String>, String)> {
        parts(content_type.as_bytes(), body.as_bytes())
            .into_iter()
            .map(|part| (part.name, part.filename, body[part.range].to_owned()))
            .collect()
    }

    #[test]
    fn forms() {
        let part = |name: &str, filename: Option<&str>, content: &str| {
            (name.to_owned(), filename.map(str::to_owned), content.to_owned())
        };
        let two = "--b\r\nContent-Disposition: form-data; name=\"profile\"; filename=\"p.pprof\"\r\nX: y\r\n\r\nabc\r\n\
                   --b\r\ncontent-disposition:form-data;name=x\r\n\r\n\r\n--b--\r\n";
        let both = vec![part("profile", Some("p.pprof"), "abc"), part("x", None, "")];
        let cases = [
            ("two parts", "multipart/form-data; boundary=b", two.to_owned(), both.clone()),
            ("quoted boundary", "Multipart/Form-Data; charset=x; Boundary=\"b\"", two.to_owned(), both.clone()),
            ("preamble", "multipart/form-data; boundary=b", format!("text\r\n{two}"), both.clone()),
            ("no boundary", "multipart/form-data", two.to_owned(), vec![]),
            ("another boundary", "multipart/form-data; boundary=c", two.to_owned(), vec![]),
            ("boundary too long", &format!("multipart/form-data; boundary={}", "b".repeat(71)), two.to_owned(), vec![]),
            ("not a form", "application/json; boundary=b", two.to_owned(), vec![]),
            ("empty body", "multipart/form-data; boundary=b", String::new(), vec![]),
            ("only the end", "multipart/form-data; boundary=b", "--b--\r\n".into(), vec![]),
            ("not closed", "multipart/form-data; boundary=b", two.replace("--b--", ""), both[..1].to_vec()),
            (
                "escaped quote",
                "multipart/form-data; boundary=b",
                "--b\r\nContent-Disposition: form-data; name=\"a\\\"b;c\"; filename=\"\"\r\n\r\n1\r\n--b--".into(),
                vec![part("a\"b;c", Some(""), "1")],
            ),
            (
                "no name",
                "multipart/form-data; boundary=b",
                "--b\r\nContent-Type: x\r\n\r\n1\r\n--b\r\nContent-Disposition: form-data; name=y\r\n\r\n2\r\n--b--".into(),
                vec![part("y", None, "2")],
            ),
            (
                "the boundary's text inside a part",
                "multipart/form-data; boundary=b",
                "--b\r\nContent-Disposition: form-data; name=y\r\n\r\n--b x--b\r\n--b--".into(),
                vec![part("y", None, "--b x--b")],
            ),
        ];
        for (name, content_type, body, expected) in cases {
            assert_eq!(read(content_type, &body), expected, "{name}");
        }
    }

    #[test]
    fn bounded() {
        let one = "--b\r\nContent-Disposition: form-data; name=y\r\n\r\n1\r\n";
        let many = format!("{}--b--", one.repeat(PARTS_MAX + 10));
        assert_eq!(
            parts(b"multipart/form-data; boundary=b", many.as_bytes()).len(),
            PARTS_MAX
        );
        let long = format!("--b\r\nX: {}\r\n{}", "x".repeat(HEAD_BYTES_MAX), &one[5..]);
        assert_eq!(
            parts(
                b"multipart/form-data; boundary=b",
                format!("{long}--b--").as_bytes()
            ),
            []
        );
    }
}
