//! Text → tokens of Alloy's syntax. Not responsible for their order.

use super::{Mistake, Place};

/// Longest text, in bytes: a configuration of this kind is a few KiB.
pub(super) const TEXT_BYTES_MAX: usize = 1 << 20;

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A word: a name, `true`, `false` or `null`.
    Word(String),
    /// A string in quotes or back-quotes, its escapes resolved.
    Text(String),
    /// A number as written.
    Number(String),
    /// One of `{ } [ ] ( ) = , . + -` and operators that only get an error.
    Sign(char),
    /// The end of a line.
    Break,
    /// The end of the text.
    End,
}

/// Reads tokens one after the other.
pub(super) struct Lexer<'t> {
    rest: &'t str,
    place: Place,
}

impl<'t> Lexer<'t> {
    /// At the beginning of `text`.
    ///
    /// # Errors
    /// When the text is longer than [`TEXT_BYTES_MAX`].
    pub(super) fn new(text: &'t str) -> Result<Self, Mistake> {
        let place = Place { line: 1, column: 1 };
        if text.len() > TEXT_BYTES_MAX {
            let problem = format!("the text is longer than {TEXT_BYTES_MAX} bytes; is this the right file?");
            return Err(Mistake::new(place, problem));
        }
        // A byte order mark is no part of the text.
        let rest = text.strip_prefix('\u{feff}').unwrap_or(text);
        Ok(Self { rest, place })
    }

    /// The next token and where it begins.
    ///
    /// # Errors
    /// Text that is no token: an open string or comment, an unknown escape or character.
    pub(super) fn next(&mut self) -> Result<(Token, Place), Mistake> {
        self.skip_blanks()?;
        let place = self.place;
        let Some(c) = self.peek() else {
            return Ok((Token::End, place));
        };
        let token = match c {
            '\n' => {
                self.take();
                Token::Break
            }
            '"' => Token::Text(self.quoted(place)?),
            '`' => Token::Text(self.raw(place)?),
            c if c.is_ascii_digit() => {
                Token::Number(self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_')))
            }
            c if c.is_alphabetic() || c == '_' => {
                Token::Word(self.take_while(|c| c.is_alphanumeric() || c == '_'))
            }
            c if "{}[]()=,.+-*/%^!<>|&".contains(c) => {
                self.take();
                Token::Sign(c)
            }
            '#' => return Err(Mistake::new(place, "comments begin with // here, not with #")),
            '\'' => {
                return Err(Mistake::new(
                    place,
                    "strings stand in double quotes or back-quotes here",
                ));
            }
            ';' => {
                return Err(Mistake::new(
                    place,
                    "statements end with their line here, without a ;",
                ));
            }
            c => {
                let problem = format!("'{}' means nothing here", c.escape_default());
                return Err(Mistake::new(place, problem));
            }
        };
        Ok((token, place))
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.place.line += 1;
            self.place.column = 1;
        } else {
            self.place.column += 1;
        }
        Some(c)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(c) = self.peek().filter(|c| wanted(*c)) {
            taken.push(c);
            self.take();
        }
        taken
    }

    fn skip_blanks(&mut self) -> Result<(), Mistake> {
        loop {
            if self.rest.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if self.rest.starts_with("/*") {
                let place = self.place;
                let Some(end) = self.rest.find("*/") else {
                    return Err(Mistake::new(
                        place,
                        "the comment is not closed; write */ behind it",
                    ));
                };
                let after = &self.rest[end + 2..];
                while self.rest.len() > after.len() {
                    self.take();
                }
            } else if self.peek().is_some_and(|c| matches!(c, ' ' | '\t' | '\r')) {
                self.take();
            } else {
                return Ok(());
            }
        }
    }

    fn raw(&mut self, place: Place) -> Result<String, Mistake> {
        self.take();
        let text = self.take_while(|c| c != '`');
        match self.take() {
            Some(_) => Ok(text.replace('\r', "")),
            None => Err(Mistake::new(place, "the string is not closed; write ` behind it")),
        }
    }

    fn quoted(&mut self, place: Place) -> Result<String, Mistake> {
        self.take();
        let mut text = Vec::new();
        loop {
            let at = self.place;
            match self.take() {
                Some('"') => break,
                Some('\\') => self.escape(at, &mut text)?,
                Some('\n') | None => {
                    let problem = "the string is not closed on its line; write \" behind it, or use back-quotes for several lines";
                    return Err(Mistake::new(place, problem));
                }
                Some(c) => text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(text).map_err(|_| Mistake::new(place, "the escapes of the string make no UTF-8"))
    }

    fn escape(&mut self, place: Place, text: &mut Vec<u8>) -> Result<(), Mistake> {
        let c = self.take().unwrap_or('\n');
        let plain = match c {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            '\\' => b'\\',
            '"' => b'"',
            'x' => self.code(place, "", 2, 16, 0xff)? as u8,
            '0'..='7' => self.code(place, c.encode_utf8(&mut [0; 4]), 3, 8, 0xff)? as u8,
            'u' | 'U' => {
                let code = self.code(place, "", if c == 'u' { 4 } else { 8 }, 16, 0x10_ffff)?;
                let c =
                    char::from_u32(code).ok_or_else(|| Mistake::new(place, "the escape is no character"))?;
                text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            c => {
                let shown = c.escape_default();
                let problem = format!(
                    "unknown escape '\\{shown}'; a backslash itself is \\\\, or use a string in back-quotes"
                );
                return Err(Mistake::new(place, problem));
            }
        };
        text.push(plain);
        Ok(())
    }

    /// A number of exactly `digits` digits, `first` included, and at most `max`.
    fn code(
        &mut self,
        place: Place,
        first: &str,
        digits: usize,
        radix: u32,
        max: u32,
    ) -> Result<u32, Mistake> {
        let mut written = first.to_owned();
        while written.len() < digits
            && let Some(c) = self.peek().filter(|c| c.is_digit(radix))
        {
            written.push(c);
            self.take();
        }
        let code = u32::from_str_radix(&written, radix)
            .ok()
            .filter(|code| written.len() == digits && *code <= max);
        code.ok_or_else(|| {
            Mistake::new(
                place,
                format!("the escape needs {digits} digits of a character's number"),
            )
        })
    }
}
