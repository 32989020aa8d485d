//! Regexes in Go's syntax (RE2), compiled by a library whose syntax differs a little: text in, [`Regex`] out.
//!
//! | in Go | here |
//! |---|---|
//! | `\d` `\w` `\s` `\b` know ASCII only | written out |
//! | `[`, `&`, `~` in brackets are themselves | escaped |
//! | `{` that is no repetition is itself | escaped |
//! | `\Q...\E` is literal, `\<` is `<` | escaped |
//! | `\p{^Greek}` is what is not Greek | `\P{Greek}` |
//! | flags are `imsU` | others are refused |
//!
//! What Go knows and the library does not (octal escapes, `\C`) is refused by it.

use regex::{Regex, RegexBuilder};

/// Memory of one compiled regex, in bytes: rules of real setups take a few KiB.
const COMPILED_BYTES_MAX: usize = 4 << 20;
/// Nesting, as deep as Go allows at most is 1000; nobody writes 64.
const NEST_MAX: u32 = 64;

/// Compiles a regex that matches a whole text; a dot matches a line break, too (WIRE.md 6).
///
/// # Errors
/// What is wrong with it.
pub(super) fn compile(go: &str) -> Result<Regex, String> {
    let bad = |why: String| format!("regex '{go}' cannot be read: {why}");
    let pattern = format!("^(?s:(?:{}))$", translate(go).map_err(bad)?);
    let built = RegexBuilder::new(&pattern)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(COMPILED_BYTES_MAX)
        .nest_limit(NEST_MAX)
        .build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => bad(format!("it needs more than {limit} bytes of memory")),
        // The library draws the place below the pattern, as it reads it; its last line says what is wrong.
        error => bad(error
            .to_string()
            .lines()
            .last()
            .unwrap_or_default()
            .trim_start_matches("error: ")
            .to_owned()),
    })
}

fn translate(go: &str) -> Result<String, String> {
    let mut out = String::with_capacity(go.len() + 16);
    let mut rest = go;
    let mut in_brackets = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match (c, in_brackets) {
            ('\\', _) => escape(after, in_brackets, &mut out)?,
            ('[', false) => {
                in_brackets = true;
                open_brackets(after, &mut out)
            }
            ('[', true) => match after.strip_prefix(':').and_then(|named| named.split_once(":]")) {
                Some((name, after)) => {
                    out.push_str(&format!("[:{name}:]"));
                    after
                }
                None => {
                    out.push_str("\\[");
                    after
                }
            },
            ('&' | '~', true) => {
                out.push('\\');
                out.push(c);
                after
            }
            ('{', false) if !is_repetition(after) => {
                out.push_str("\\{");
                after
            }
            ('(', false) => {
                check_flags(after)?;
                out.push('(');
                after
            }
            (']', true) => {
                in_brackets = false;
                out.push(']');
                after
            }
            _ => {
                out.push(c);
                after
            }
        };
    }
    Ok(out)
}

/// What follows a backslash, written to `out`; returns what is left.
fn escape<'t>(rest: &'t str, in_brackets: bool, out: &mut String) -> Result<&'t str, String> {
    let c = rest.chars().next().ok_or("it ends in a backslash")?;
    let after = &rest[c.len_utf8()..];
    let class = match c.to_ascii_lowercase() {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => "\\t\\n\\x0C\\r ",
        _ => "",
    };
    match (c, in_brackets) {
        ('d' | 'w' | 's', true) => out.push_str(class),
        ('d' | 'w' | 's', false) => out.push_str(&format!("[{class}]")),
        ('D' | 'W' | 'S', _) => out.push_str(&format!("[^{class}]")),
        ('b', false) => out.push_str("(?-u:\\b)"),
        ('B', false) => out.push_str("(?-u:\\B)"),
        ('<' | '>', _) => out.push(c),
        ('p' | 'P' | 'x', _) if after.starts_with('{') => {
            let (name, after) = after[1..]
                .split_once('}')
                .ok_or("a brace behind a backslash is not closed")?;
            let (letter, name) = match (c, name.strip_prefix('^')) {
                ('p', Some(name)) => ('P', name),
                ('P', Some(name)) => ('p', name),
                _ => (c, name),
            };
            out.push_str(&format!("\\{letter}{{{name}}}"));
            return Ok(after);
        }
        ('Q', false) => {
            let (literal, after) = after.split_once("\\E").unwrap_or((after, ""));
            out.push_str(&regex::escape(literal));
            return Ok(after);
        }
        _ => {
            out.push('\\');
            out.push(c);
        }
    }
    Ok(after)
}

/// The beginning of brackets: a `]` that comes first is itself.
fn open_brackets<'t>(rest: &'t str, out: &mut String) -> &'t str {
    out.push('[');
    let mut rest = rest;
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    match rest.strip_prefix(']') {
        Some(after) => {
            out.push_str("\\]");
            after
        }
        None => rest,
    }
}

/// Whether what follows a `{` makes it `{2}`, `{2,}` or `{2,3}`.
fn is_repetition(rest: &str) -> bool {
    let Some((inner, _)) = rest.split_once('}') else {
        return false;
    };
    let (low, high) = inner.split_once(',').unwrap_or((inner, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    !low.is_empty() && digits(low) && digits(high)
}

fn check_flags(rest: &str) -> Result<(), String> {
    let Some(flags) = rest
        .strip_prefix('?')
        .filter(|rest| !rest.starts_with(['P', '<']))
    else {
        return Ok(());
    };
    let flags = flags.split([':', ')']).next().unwrap_or_default();
    match flags.chars().find(|flag| !"imsU-".contains(*flag)) {
        Some(flag) => Err(format!(
            "unknown flag '{flag}' behind '(?'; there are i, m, s and U"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_syntax_means_what_it_means_in_go() {
        for (go, text, matches) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a|b", "b", true),
            ("a|bc", "abc", false),
            ("a.b", "a\nb", true),
            (r"\d+", "12", true),
            (r"\d", "\u{663}", false),
            (r"\w", "é", false),
            (r"\W", "é", true),
            (r"[\w-]+", "a-b", true),
            (r"[\D]", "é", true),
            (r"\s", "\u{a0}", false),
            (r"a\b-", "a-", true),
            (r"é\B.", "éa", false),
            ("[[]", "[", true),
            ("[[:alpha:]]+", "ab", true),
            ("[]a]+", "]a", true),
            ("[^]a]", "]", false),
            ("[a&&b]+", "a&b", true),
            ("[a~~b]+", "~", true),
            ("{a}", "{a}", true),
            ("a{2,3}", "aaa", true),
            ("a{,3}", "a{,3}", true),
            (r"\Qa.b\E.", "a.bc", true),
            (r"\Qa.b\E.", "axbc", false),
            (r"\<a\>", "<a>", true),
            ("(?i)a", "A", true),
            (r"(?P<x>a)\x62", "ab", true),
            (r"\pL+", "é", true),
            (r"\p{L}+", "é", true),
            (r"\p{Greek}", "x", false),
            (r"\p{^Greek}", "x", true),
            (r"[\P{^Lu}a]+", "Éa", true),
            (r"\x{1F600}[\x{e9}]", "\u{1f600}é", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(compile(go).unwrap().is_match(text), matches, "{go} on {text:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        for (go, reason) in [
            ("a(", "unclosed group"),
            ("[a", "unclosed character class"),
            ("a\\", "backslash"),
            ("(?x)a", "unknown flag 'x'"),
            (r"\1", "backreference"),
            (r"\C", "unrecognized escape"),
            (r"\p{L", "not closed"),
            (r"\p{Nothing}", "not found"),
            ("*", "repetition"),
            (r"(\pL{1000}){1000}", "memory"),
            (&"(".repeat(100), "regex"),
        ] {
            let error = compile(go).unwrap_err();
            assert!(error.contains(reason), "{go}: {error}");
        }
    }
}
