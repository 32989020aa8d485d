//! Tokens → blocks and attributes, values evaluated. Not responsible for which blocks there are.
//!
//! ```text
//!  body      { attribute | block }, each on its own line
//!  attribute NAME = value
//!  block     NAME{.NAME} ["LABEL"] { body }
//!  value     term { + term }
//!  term      string | number | true | false | null | [value, ...] | {KEY = value, ...} | (value)
//!            | reference.to.a.thing | env("X") | sys.env("X") | coalesce(value, ...)
//! ```
//! What else Alloy's expressions can do is refused by name. Nesting is bounded by [`DEPTH_MAX`].

use super::lexer::{Lexer, Token};
use super::{Environment, Mistake, Place};

/// Deepest nesting of blocks and values.
pub const DEPTH_MAX: usize = 32;
/// Longest string that concatenation may make, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Most statements of one body, and values of one list or object.
const ITEMS_MAX: usize = 4096;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// What it is.
    pub kind: Kind,
    /// Where it begins.
    pub place: Place,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A string.
    Text(String),
    /// A number, and its digits where a string is wanted.
    Number(f64, String),
    /// `true` or `false`.
    Truth(bool),
    /// `null`.
    Null,
    /// A list.
    List(Vec<Value>),
    /// Names and values, in order.
    Object(Vec<Attribute>),
    /// Something of another component, such as `pyroscope.write.eu.receiver`.
    Reference(String),
}

impl Kind {
    /// What a person calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Number(..) => "a number",
            Self::Truth(_) => "true or false",
            Self::Null => "null",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
            Self::Reference(_) => "a reference",
        }
    }
}

/// `name = value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    /// Its name.
    pub name: String,
    /// Where the name stands.
    pub place: Place,
    /// What it is set to.
    pub value: Value,
}

/// What stands between braces, or in the whole file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    /// Attributes, in order.
    pub attributes: Vec<Attribute>,
    /// Blocks, in order.
    pub blocks: Vec<Block>,
}

/// `name "label" { body }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// Its name, dots included: `pyroscope.write`.
    pub name: String,
    /// Its label, if it has one.
    pub label: Option<String>,
    /// Where its name stands.
    pub place: Place,
    /// What it holds.
    pub body: Body,
}

/// What was read, and what of the environment was asked for in vain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// The text's body.
    pub body: Body,
    /// Variables that are not set and were taken as empty, as in Alloy.
    pub unset: Vec<(String, Place)>,
}

/// Reads a whole file.
///
/// # Errors
/// The first thing that cannot be read.
pub fn parse(text: &str, environment: Environment<'_>) -> Result<Parsed, Mistake> {
    let mut parser = Parser::new(text, environment)?;
    let body = parser.body(&Token::End, 0)?;
    Ok(Parsed {
        body,
        unset: parser.unset,
    })
}

/// Reads `name = value` pairs, separated by commas or line breaks: the inside of an object.
///
/// # Errors
/// The first thing that cannot be read.
pub fn parse_pairs(text: &str) -> Result<Vec<Attribute>, Mistake> {
    let mut parser = Parser::new(text, &|_| None)?;
    let pairs = parser.pairs(&Token::End, 0)?;
    match parser.unset.first() {
        None => Ok(pairs),
        Some((_, place)) => Err(Mistake::new(
            *place,
            "the environment is not read here; let the shell fill it in",
        )),
    }
}

struct Parser<'t> {
    lexer: Lexer<'t>,
    token: Token,
    place: Place,
    environment: Environment<'t>,
    unset: Vec<(String, Place)>,
}

impl<'t> Parser<'t> {
    fn new(text: &'t str, environment: Environment<'t>) -> Result<Self, Mistake> {
        let mut lexer = Lexer::new(text)?;
        let (token, place) = lexer.next()?;
        Ok(Self {
            lexer,
            token,
            place,
            environment,
            unset: Vec::new(),
        })
    }

    fn advance(&mut self) -> Result<Token, Mistake> {
        let (token, place) = self.lexer.next()?;
        self.place = place;
        Ok(std::mem::replace(&mut self.token, token))
    }

    fn skip_breaks(&mut self) -> Result<(), Mistake> {
        while self.token == Token::Break {
            self.advance()?;
        }
        Ok(())
    }

    fn is(&self, sign: char) -> bool {
        self.token == Token::Sign(sign)
    }

    fn expect(&mut self, sign: char, why: &str) -> Result<(), Mistake> {
        if self.is(sign) {
            self.advance()?;
            return Ok(());
        }
        Err(self.unexpected(&format!("expected '{sign}' {why}")))
    }

    fn unexpected(&self, expected: &str) -> Mistake {
        let found = match &self.token {
            Token::Word(word) => format!("'{word}'"),
            Token::Text(_) => "a string".into(),
            Token::Number(number) => format!("'{number}'"),
            Token::Sign(sign) => format!("'{sign}'"),
            Token::Break => "the end of the line".into(),
            Token::End => "the end".into(),
        };
        Mistake::new(self.place, format!("{expected}, found {found}"))
    }

    fn bounded(&self, depth: usize) -> Result<(), Mistake> {
        if depth <= DEPTH_MAX {
            return Ok(());
        }
        let problem = format!("nested more than {DEPTH_MAX} deep; is a bracket missing above?");
        Err(Mistake::new(self.place, problem))
    }

    fn countable(&self, count: usize) -> Result<(), Mistake> {
        if count < ITEMS_MAX {
            return Ok(());
        }
        Err(Mistake::new(
            self.place,
            format!("more than {ITEMS_MAX} in one place"),
        ))
    }

    /// Statements up to `end`, which is left in place.
    fn body(&mut self, end: &Token, depth: usize) -> Result<Body, Mistake> {
        self.bounded(depth)?;
        let mut body = Body::default();
        loop {
            self.skip_breaks()?;
            if self.token == *end {
                return Ok(body);
            }
            self.countable(body.attributes.len().max(body.blocks.len()))?;
            self.statement(&mut body, depth)?;
            if self.token != Token::Break && self.token != *end {
                return Err(self.unexpected("expected a new line"));
            }
        }
    }

    fn statement(&mut self, body: &mut Body, depth: usize) -> Result<(), Mistake> {
        let place = self.place;
        if self.token == Token::End {
            return Err(Mistake::new(place, "a '}' is missing at the end"));
        }
        let name = self.word("expected the name of a block or attribute")?;
        if self.is('=') {
            if let Some(other) = body.attributes.iter().find(|other| other.name == name) {
                let problem = format!("{name} is set twice, first at {}; remove one", other.place);
                return Err(Mistake::new(place, problem));
            }
            self.advance()?;
            let value = self.value(depth + 1)?;
            body.attributes.push(Attribute { name, place, value });
            return Ok(());
        }
        let name = self.dotted(name)?;
        let label = match &self.token {
            Token::Text(label) => Some(label.clone()),
            _ => None,
        };
        if label.is_some() {
            self.advance()?;
        }
        if !self.is('{') {
            return Err(self.unexpected(&format!("expected '=' or '{{' behind {name}")));
        }
        self.advance()?;
        let inner = self.body(&Token::Sign('}'), depth + 1)?;
        self.advance()?;
        body.blocks.push(Block {
            name,
            label,
            place,
            body: inner,
        });
        Ok(())
    }

    fn word(&mut self, expected: &str) -> Result<String, Mistake> {
        match &self.token {
            Token::Word(word) => {
                let word = word.clone();
                self.advance()?;
                Ok(word)
            }
            _ => Err(self.unexpected(expected)),
        }
    }

    /// The rest of a name with dots.
    fn dotted(&mut self, first: String) -> Result<String, Mistake> {
        let mut name = first;
        while self.is('.') {
            self.advance()?;
            name.push('.');
            name += &self.word("expected a name behind the dot")?;
        }
        Ok(name)
    }

    fn value(&mut self, depth: usize) -> Result<Value, Mistake> {
        self.bounded(depth)?;
        let mut value = self.term(depth)?;
        while self.is('+') {
            self.advance()?;
            self.skip_breaks()?;
            let more = self.term(depth)?;
            value = add(value, more)?;
        }
        if let Token::Sign(
            sign @ ('*' | '/' | '%' | '^' | '!' | '<' | '>' | '|' | '&' | '=' | '-' | '[' | '('),
        ) = self.token
        {
            let problem = format!("'{sign}' cannot be worked out here: write the value, + joins strings");
            return Err(Mistake::new(self.place, problem));
        }
        Ok(value)
    }

    fn term(&mut self, depth: usize) -> Result<Value, Mistake> {
        let place = self.place;
        let kind = match &self.token {
            Token::Text(text) => {
                let text = Kind::Text(text.clone());
                self.advance()?;
                text
            }
            Token::Number(_) => self.number(1.0)?,
            Token::Sign('-') => {
                self.advance()?;
                self.number(-1.0)?
            }
            Token::Sign('[') => {
                self.advance()?;
                Kind::List(self.list(']', depth)?)
            }
            Token::Sign('{') => {
                self.advance()?;
                let pairs = self.pairs(&Token::Sign('}'), depth)?;
                self.advance()?;
                Kind::Object(pairs)
            }
            Token::Sign('(') => {
                self.advance()?;
                self.skip_breaks()?;
                let inner = self.value(depth + 1)?;
                self.skip_breaks()?;
                self.expect(')', "behind the value")?;
                inner.kind
            }
            Token::Word(_) => self.named(depth)?,
            _ => return Err(self.unexpected("expected a value")),
        };
        Ok(Value { kind, place })
    }

    fn number(&mut self, sign: f64) -> Result<Kind, Mistake> {
        let place = self.place;
        let Token::Number(written) = &self.token else {
            return Err(self.unexpected("expected a number"));
        };
        let number = written.parse::<f64>().ok().filter(|number| number.is_finite());
        let problem =
            || format!("'{written}' is no number; a text such as a duration stands in quotes: \"{written}\"");
        let number = number.ok_or_else(|| Mistake::new(place, problem()))?;
        // Large whole numbers, such as a tenant's, keep all their digits.
        let exact = written.parse::<u64>().map(|whole| whole.to_string());
        let digits = exact.unwrap_or_else(|_| number.to_string());
        let minus = if sign < 0.0 && number != 0.0 { "-" } else { "" };
        self.advance()?;
        Ok(Kind::Number(sign * number, format!("{minus}{digits}")))
    }

    /// Values up to `end`, which is taken.
    fn list(&mut self, end: char, depth: usize) -> Result<Vec<Value>, Mistake> {
        let mut values = Vec::new();
        loop {
            self.skip_breaks()?;
            if self.is(end) {
                self.advance()?;
                return Ok(values);
            }
            self.countable(values.len())?;
            values.push(self.value(depth + 1)?);
            self.skip_breaks()?;
            if !self.is(end) {
                self.expect(',', &format!("or '{end}' behind the value"))?;
            }
        }
    }

    /// `name = value` up to `end`, which is left in place.
    fn pairs(&mut self, end: &Token, depth: usize) -> Result<Vec<Attribute>, Mistake> {
        let mut pairs: Vec<Attribute> = Vec::new();
        loop {
            self.skip_breaks()?;
            if self.token == *end {
                return Ok(pairs);
            }
            self.countable(pairs.len())?;
            let place = self.place;
            let name = match &self.token {
                Token::Text(name) => {
                    let name = name.clone();
                    self.advance()?;
                    name
                }
                _ => self.word("expected a name")?,
            };
            self.expect('=', "behind the name")?;
            self.skip_breaks()?;
            let value = self.value(depth + 1)?;
            if pairs.iter().any(|other| other.name == name) {
                return Err(Mistake::new(place, format!("{name} is set twice; remove one")));
            }
            pairs.push(Attribute { name, place, value });
            if self.is(',') {
                self.advance()?;
            } else if self.token != Token::Break && self.token != *end {
                return Err(self.unexpected("expected ',' behind the value"));
            }
        }
    }

    /// `true`, `null`, a reference, or the call of a function.
    fn named(&mut self, depth: usize) -> Result<Kind, Mistake> {
        let place = self.place;
        let word = self.word("expected a value")?;
        let name = self.dotted(word)?;
        if self.is('(') {
            self.advance()?;
            let arguments = self.list(')', depth)?;
            return self.call(&name, place, arguments);
        }
        Ok(match &*name {
            "true" => Kind::Truth(true),
            "false" => Kind::Truth(false),
            "null" => Kind::Null,
            _ => Kind::Reference(name),
        })
    }

    fn call(&mut self, name: &str, place: Place, arguments: Vec<Value>) -> Result<Kind, Mistake> {
        match (name, &*arguments) {
            (
                "env" | "sys.env",
                [
                    Value {
                        kind: Kind::Text(variable),
                        ..
                    },
                ],
            ) => {
                let value = (self.environment)(variable);
                if value.is_none() {
                    self.unset.push((variable.clone(), place));
                }
                Ok(Kind::Text(value.unwrap_or_default()))
            }
            ("env" | "sys.env", _) => Err(Mistake::new(
                place,
                format!("{name} takes one string: {name}(\"VARIABLE\")"),
            )),
            ("coalesce", [.., _]) => {
                let is_empty = |kind: &Kind| match kind {
                    Kind::Null => true,
                    Kind::Text(text) => text.is_empty(),
                    Kind::Number(number, _) => *number == 0.0,
                    Kind::Truth(truth) => !truth,
                    Kind::List(list) => list.is_empty(),
                    Kind::Object(pairs) => pairs.is_empty(),
                    Kind::Reference(_) => false,
                };
                let mut kinds = arguments.into_iter().map(|argument| argument.kind);
                let last = kinds.next_back().unwrap_or(Kind::Null);
                Ok(kinds.find(|kind| !is_empty(kind)).unwrap_or(last))
            }
            // Marks a secret as none, or a text as a secret: every secret is hidden here anyway.
            ("nonsensitive" | "convert.nonsensitive", [one]) => Ok(one.kind.clone()),
            _ => {
                let problem = format!(
                    "the function {name} is not known here: write its result, or use sys.env or coalesce"
                );
                Err(Mistake::new(place, problem))
            }
        }
    }
}

fn add(left: Value, right: Value) -> Result<Value, Mistake> {
    let kind = match (left.kind, right.kind) {
        (Kind::Text(left), Kind::Text(right)) if left.len() + right.len() <= TEXT_BYTES_MAX => {
            Kind::Text(left + &right)
        }
        (Kind::Number(left, _), Kind::Number(right, _)) => {
            Kind::Number(left + right, (left + right).to_string())
        }
        (left, other) => {
            let problem = format!("{} and {} cannot be added", left.name(), other.name());
            return Err(Mistake::new(right.place, problem));
        }
    };
    Ok(Value {
        kind,
        place: left.place,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        (name == "SET").then(|| "from outside".to_owned())
    }

    /// The value of `x = TEXT`, without places.
    fn value(text: &str) -> Result<String, String> {
        let parsed = parse(&format!("x = {text}\n"), &environment)
            .map_err(|one| format!("{} {}", one.place, one.problem))?;
        Ok(shown(&parsed.body.attributes[0].value.kind))
    }

    fn shown(kind: &Kind) -> String {
        let all = |values: Vec<String>| values.join(",");
        match kind {
            Kind::Text(text) => format!("{text:?}"),
            Kind::Number(number, _) => number.to_string(),
            Kind::Truth(truth) => truth.to_string(),
            Kind::Null => "null".into(),
            Kind::List(list) => format!("[{}]", all(list.iter().map(|one| shown(&one.kind)).collect())),
            Kind::Object(pairs) => {
                let pairs = pairs
                    .iter()
                    .map(|pair| format!("{}={}", pair.name, shown(&pair.value.kind)));
                format!("{{{}}}", all(pairs.collect()))
            }
            Kind::Reference(name) => format!("<{name}>"),
        }
    }

    #[test]
    fn values_are_read() {
        for (text, expected) in [
            (r#""a""#, r#""a""#),
            (r#""a\n\t\"\\""#, r#""a\n\t\"\\""#),
            (r#""\x41\101\u00e9\U0001F600""#, r#""AAé😀""#),
            (r#""\xc3\xa9""#, r#""é""#),
            ("`a\\n\nb`", "\"a\\\\n\\nb\""),
            ("12", "12"),
            ("-1.5", "-1.5"),
            ("1e3", "1000"),
            ("true", "true"),
            ("false", "false"),
            ("null", "null"),
            ("[]", "[]"),
            ("[1, \"a\", [true]]", "[1,\"a\",[true]]"),
            ("[\n 1,\n 2,\n]", "[1,2]"),
            ("{}", "{}"),
            ("{ a = 1, \"b-c\" = 2 }", "{a=1,b-c=2}"),
            ("{\n a = 1,\n b = { c = null },\n}", "{a=1,b={c=null}}"),
            ("{\n a = 1\n b = 2\n}", "{a=1,b=2}"),
            ("pyroscope.write.eu.receiver", "<pyroscope.write.eu.receiver>"),
            ("\"a\" + \"b\" + `c`", "\"abc\""),
            ("1 + 2", "3"),
            ("\"a\" +\n \"b\"", "\"ab\""),
            ("(\"a\")", "\"a\""),
            ("env(\"SET\")", "\"from outside\""),
            ("\"x=\" + sys.env(\"SET\")", "\"x=from outside\""),
            ("sys.env(\"UNSET\")", "\"\""),
            ("coalesce(sys.env(\"UNSET\"), \"d\")", "\"d\""),
            ("coalesce(sys.env(\"SET\"), \"d\")", "\"from outside\""),
            ("1 // one", "1"),
            ("/* one */ 1 /* two\n */", "1"),
        ] {
            assert_eq!(value(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_place() {
        for (text, expected) in [
            ("\"a", "1:5 the string is not closed"),
            ("`a", "1:5 the string is not closed"),
            ("/* a", "1:5 the comment is not closed"),
            (r#""\q""#, "1:6 unknown escape '\\q'"),
            (r#""\u12""#, "1:6 the escape needs 4"),
            (r#""\ud800""#, "1:6 the escape is no character"),
            (r#""\xff""#, "1:5 the escapes of the string make no UTF-8"),
            (
                "30s",
                "1:5 '30s' is no number; a text such as a duration stands in quotes",
            ),
            ("[1 2]", "1:8 expected ',' or ']' behind the value, found '2'"),
            ("[1", "2:1 expected ',' or ']'"),
            ("{ a 1 }", "1:9 expected '=' behind the name"),
            ("{ a = 1, a = 2 }", "1:14 a is set twice"),
            ("'a'", "1:5 strings stand in double quotes"),
            ("# a", "1:5 comments begin with //"),
            ("1;", "1:6 statements end with their line"),
            ("1 * 2", "1:7 '*' cannot be worked out"),
            ("a.b[\"c\"]", "1:8 '[' cannot be worked out"),
            ("1 == 2", "1:7 '=' cannot be worked out"),
            ("\"a\" + 1", "1:11 a string and a number cannot be added"),
            (
                "string.format(\"a\")",
                "1:5 the function string.format is not known",
            ),
            ("env(1)", "1:5 env takes one string"),
            ("1 2", "1:7 expected a new line, found '2'"),
            ("1\nx = 2", "2:1 x is set twice, first at 1:1"),
            ("1\nb \"l\"", "2:6 expected '=' or '{' behind b"),
            ("1\nb {", "3:1 a '}' is missing at the end"),
            ("1\n}", "2:1 expected the name of a block or attribute, found '}'"),
            (&"[".repeat(100), "1:37 nested more than 32 deep"),
            ("", "1:5 expected a value, found the end of the line"),
            ("@", "1:5 '@' means nothing here"),
        ] {
            let error = value(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn blocks_have_names_labels_and_bodies() {
        let text = "a.b \"c\" {\n  d = 1\n  e {\n  }\n}\nf { g = 2 }\nh {}\n";
        let body = parse(text, &environment).unwrap().body;
        let told: Vec<_> = body
            .blocks
            .iter()
            .map(|one| (one.name.as_str(), one.label.as_deref(), one.place.line))
            .collect();
        assert_eq!(told, [("a.b", Some("c"), 1), ("f", None, 6), ("h", None, 7)]);
        assert_eq!(
            body.blocks[0].body.attributes[0].place,
            Place { line: 2, column: 3 }
        );
        assert_eq!(body.blocks[0].body.blocks[0].name, "e");
        assert_eq!(body.blocks[1].body.attributes[0].name, "g");
    }

    #[test]
    fn what_the_environment_lacks_is_noted() {
        let parsed = parse("a = env(\"UNSET\")", &environment).unwrap();
        assert_eq!(parsed.unset, [("UNSET".to_owned(), Place { line: 1, column: 5 })]);
        assert!(parse_pairs("a = env(\"SET\")").is_err());
    }
}
