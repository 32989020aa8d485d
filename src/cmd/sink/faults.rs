//! How a sink can be told to misbehave: the flags, what they mean, and the bytes of its answers.
//!
//! Responsible for: reading the flags (also from `POST /faults`), choosing what happens to the n-th request, and building
//! every answer beforehand. Not responsible for doing it: `connection.rs` waits, writes and resets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::{CommandFactory, FromArgMatches, Parser};

use super::verify::Route;
use crate::config::units;
use crate::http::reason_phrase;

/// The longest cycle of `--answer`.
const ANSWERS_MAX: usize = 10_000;

/// The flags. Without any, a sink accepts everything at once.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub struct FaultArgs {
    /// Wait this long before each answer, such as 50ms or 2s; default 0.
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    pub delay: Option<Duration>,
    /// Answer with these statuses in turn; `200x5,503` answers five times 200, then 503, and so on; default 200.
    #[arg(long, value_name = "STATUS[xN],...", value_parser = parse_answers)]
    pub answer: Option<Answers>,
    /// Add this header to every answer, such as `Retry-After: 3`; may be given several times; default none.
    #[arg(long, value_name = "NAME: VALUE", value_parser = parse_header)]
    pub answer_header: Vec<String>,
    /// The body of every answer: a text, or `connect:CODE` for a Connect error, which also sets the status unless
    /// --answer is given; default: none for a 2xx, else the status in words.
    #[arg(long, value_name = "TEXT|connect:CODE", value_parser = parse_body)]
    pub answer_body: Option<AnswerBody>,
    /// Read requests and answer none until the faults change; default off.
    #[arg(long)]
    pub stall: bool,
    /// Reset the connection instead of answering, for this share of requests, such as 0.1 or 10%; default 0.
    #[arg(long, value_name = "RATE", value_parser = parse_share)]
    pub reset: Option<Share>,
    /// Answer with `Connection: close` and close; default off.
    #[arg(long)]
    pub close: bool,
    /// Answer wrongly and close; default off.
    #[arg(long, value_name = "HOW")]
    pub lie: Option<Lie>,
    /// Read each connection no faster than this many bytes per second, such as 64KiB (the kernel's buffers fill
    /// first); default unlimited.
    #[arg(long, value_name = "SIZE", value_parser = parse_bandwidth)]
    pub bandwidth: Option<u64>,
}

/// What `--answer` lists, each status repeated as often as asked; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers(Vec<u16>);

/// What `--answer-body` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerBody {
    /// Sent as `text/plain`.
    Text(String),
    /// A Connect error (WIRE.md 3.3): its code and the status that goes with it.
    Connect(&'static str, u16),
}

/// A share in millionths, 0 to 1,000,000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share(u64);

impl Share {
    /// Whether the n-th of all (from 0) belongs to the share: spread evenly, the same in every run.
    fn takes(self, n: u64) -> bool {
        let before = u128::from(n) * u128::from(self.0) / 1_000_000;
        let after = (u128::from(n) + 1) * u128::from(self.0) / 1_000_000;
        after > before
    }
}

/// Ways of answering wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Lie {
    /// Promise 64 bytes of body, send 5, close.
    Length,
    /// Send bytes that are no HTTP, close.
    Garbage,
    /// Send a good answer and 20 more bytes than it promised, close.
    Extra,
}

impl Lie {
    /// What goes over the wire.
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Self::Length => b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\nshort",
            Self::Garbage => b"\x15\x03\x01 this is no HTTP \x00\xff\r\n\r\n",
            Self::Extra => b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nand then there was m",
        }
    }
}

/// An answer, built beforehand.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its bytes on a connection that stays.
    pub keep: Bytes,
    /// Its bytes on a connection that closes behind it.
    pub close: Bytes,
}

/// What happens to one request.
#[derive(Debug)]
pub enum Fate<'a> {
    /// It is answered.
    Answered(&'a Reply),
    /// Its connection is reset.
    Reset,
    /// It is answered wrongly.
    Lied(Lie),
}

/// The faults in force.
#[derive(Debug)]
pub struct Faults {
    /// Before each answer.
    pub delay: Duration,
    /// No answers at all.
    pub stall: bool,
    /// Close behind each answer.
    pub close: bool,
    /// Bytes per second and connection.
    pub bandwidth: Option<u64>,
    reset: Share,
    lie: Option<Lie>,
    replies: Vec<[Reply; 2]>,
    /// Requests decided so far. Untouched while there is only one thing that can happen.
    decided: AtomicU64,
}

impl Faults {
    /// Builds every answer that `args` can lead to.
    pub fn new(args: &FaultArgs) -> Self {
        let statuses = match (&args.answer, &args.answer_body) {
            (Some(answers), _) => answers.0.clone(),
            (None, Some(AnswerBody::Connect(_, status))) => vec![*status],
            (None, _) => vec![200],
        };
        let reply = |status: &u16| {
            [Route::Ingest, Route::Push]
                .map(|route| build_reply(route, *status, &args.answer_header, args.answer_body.as_ref()))
        };
        Self {
            delay: args.delay.unwrap_or_default(),
            stall: args.stall,
            close: args.close,
            bandwidth: args.bandwidth,
            reset: args.reset.unwrap_or_default(),
            lie: args.lie,
            replies: statuses.iter().map(reply).collect(),
            decided: AtomicU64::new(0),
        }
    }

    /// Decides the fate of the next request on a known route.
    pub fn next(&self, route: Route) -> Fate<'_> {
        let choices = self.replies.len();
        let n = if choices == 1 && self.reset == Share(0) {
            0
        } else {
            self.decided.fetch_add(1, Ordering::Relaxed)
        };
        if self.reset.takes(n) {
            return Fate::Reset;
        }
        if let Some(lie) = self.lie {
            return Fate::Lied(lie);
        }
        #[allow(clippy::cast_possible_truncation)] // below `choices`
        let replies = &self.replies[(n % choices as u64) as usize];
        Fate::Answered(&replies[usize::from(route == Route::Push)])
    }
}

/// Reads a line of flags as `POST /faults` sends it: words, or quoted with `'` or `"`. Empty: no faults.
///
/// # Errors
/// What clap says about a flag or value, or that a quote does not end.
pub fn parse_line(line: &str) -> Result<FaultArgs, String> {
    #[derive(Parser)]
    #[command(name = "faults", no_binary_name = true, disable_help_flag = true)]
    struct Line {
        #[command(flatten)]
        faults: FaultArgs,
    }
    let matches = Line::command()
        .try_get_matches_from(words(line)?)
        .map_err(|error| error.render().to_string())?;
    let line = Line::from_arg_matches(&matches).map_err(|error| error.render().to_string())?;
    Ok(line.faults)
}

fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for letter in line.chars() {
        match quote {
            Some(open) if letter == open => quote = None,
            Some(_) => word.get_or_insert_default().push(letter),
            None if letter == '\'' || letter == '"' => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            None if letter.is_whitespace() => words.extend(word.take()),
            None => word.get_or_insert_default().push(letter),
        }
    }
    if let Some(open) = quote {
        return Err(format!("a quote ({open}) is opened and never closed"));
    }
    words.extend(word);
    Ok(words)
}

/// An answer that no flag changes, with an empty body.
pub fn plain_reply(status: u16) -> Reply {
    build_reply(Route::Other, status, &[], Some(&AnswerBody::Text(String::new())))
}

fn build_reply(route: Route, status: u16, headers: &[String], body: Option<&AnswerBody>) -> Reply {
    let reason = reason_phrase(status);
    let accepted = (200..300).contains(&status);
    // RFC 9110 sections 15.3.5 and 15.4.5: neither has a body.
    let bodiless = matches!(status, 204 | 304);
    let (kind, body) = match body {
        _ if bodiless => ("", String::new()),
        Some(AnswerBody::Connect(code, _)) => (
            "application/json",
            format!("{{\"code\":\"{code}\",\"message\":\"answered so on purpose by pyrotee sink\"}}"),
        ),
        Some(AnswerBody::Text(text)) if text.is_empty() => ("", String::new()),
        Some(AnswerBody::Text(text)) => ("text/plain; charset=utf-8", text.clone()),
        None if accepted && route == Route::Push => ("application/proto", String::new()),
        None if accepted => ("", String::new()),
        None => ("text/plain; charset=utf-8", format!("{reason}\n")),
    };
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
    if !kind.is_empty() {
        head += &format!("Content-Type: {kind}\r\n");
    }
    if !bodiless {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    for header in headers {
        head += &format!("{header}\r\n");
    }
    Reply {
        status,
        keep: format!("{head}\r\n{body}").into(),
        close: format!("{head}Connection: close\r\n\r\n{body}").into(),
    }
}

fn parse_answers(text: &str) -> Result<Answers, String> {
    let mut statuses = Vec::new();
    for item in text.split(',') {
        let (status, count) = item.split_once('x').unwrap_or((item, "1"));
        let status: u16 = status
            .trim()
            .parse()
            .map_err(|_| format!("'{status}' is no status"))?;
        if !(200..600).contains(&status) {
            return Err(format!("{status} is no final status; use 200 to 599"));
        }
        let count: usize = count
            .trim()
            .parse()
            .map_err(|_| format!("'{count}' is no count"))?;
        if count == 0 || statuses.len() + count > ANSWERS_MAX {
            return Err(format!("a cycle has 1 to {ANSWERS_MAX} answers"));
        }
        statuses.extend(std::iter::repeat_n(status, count));
    }
    Ok(Answers(statuses))
}

fn parse_header(text: &str) -> Result<String, String> {
    let (name, value) = text.split_once(':').ok_or("a header is written NAME: VALUE")?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("'{name}' is no header name"));
    }
    if value.chars().any(char::is_control) {
        return Err("a header value has no control characters".into());
    }
    Ok(format!("{name}: {}", value.trim()))
}

fn parse_body(text: &str) -> Result<AnswerBody, String> {
    let Some(code) = text.strip_prefix("connect:") else {
        return Ok(AnswerBody::Text(text.to_owned()));
    };
    match CONNECT_CODES.iter().find(|(name, _)| *name == code) {
        Some((name, status)) => Ok(AnswerBody::Connect(name, *status)),
        None => Err(format!(
            "'{code}' is no Connect code; one is unavailable, another invalid_argument"
        )),
    }
}

fn parse_share(text: &str) -> Result<Share, String> {
    let (number, scale) = match text.strip_suffix('%') {
        Some(percent) => (percent, 1e4),
        None => (text, 1e6),
    };
    let number: f64 = number
        .trim()
        .parse()
        .map_err(|_| format!("'{text}' is no share; use 0.1 or 10%"))?;
    let millionths = number * scale;
    if !(0.0..=1e6).contains(&millionths) {
        return Err("a share lies between 0 and 1 (0% and 100%)".into());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 1e6, checked
    Ok(Share(millionths.round() as u64))
}

fn parse_bandwidth(text: &str) -> Result<u64, String> {
    match units::parse_size(text)? {
        0 => Err("must be at least 1B; use --stall to read and never answer".into()),
        bytes => Ok(bytes),
    }
}

/// WIRE.md 3.3.
const CONNECT_CODES: [(&str, u16); 16] = [
    ("canceled", 499),
    ("unknown", 500),
    ("invalid_argument", 400),
    ("deadline_exceeded", 504),
    ("not_found", 404),
    ("already_exists", 409),
    ("permission_denied", 403),
    ("resource_exhausted", 429),
    ("failed_precondition", 400),
    ("aborted", 409),
    ("out_of_range", 400),
    ("unimplemented", 501),
    ("internal", 500),
    ("unavailable", 503),
    ("data_loss", 500),
    ("unauthenticated", 401),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(line: &str, count: usize) -> Vec<u16> {
        let faults = Faults::new(&parse_line(line).unwrap());
        let status = |_| match faults.next(Route::Push) {
            Fate::Answered(reply) => reply.status,
            Fate::Reset => 0,
            Fate::Lied(_) => 1,
        };
        (0..count).map(status).collect()
    }

    #[test]
    fn fates_follow_the_flags() {
        for (line, expected) in [
            ("", vec![200, 200, 200]),
            ("--answer 503", vec![503, 503]),
            ("--answer 200x2,503", vec![200, 200, 503, 200, 200, 503]),
            ("--reset 50%", vec![200, 0, 200, 0]),
            ("--reset 1", vec![0, 0]),
            ("--reset 0.25", vec![200, 200, 200, 0, 200, 200, 200, 0]),
            ("--lie garbage", vec![1, 1]),
            ("--answer-body connect:unavailable", vec![503, 503]),
            ("--answer-body connect:unavailable --answer 429", vec![429]),
        ] {
            assert_eq!(statuses(line, expected.len()), expected, "{line}");
        }
    }

    #[test]
    fn answers_have_their_bytes() {
        for (line, route, expected) in [
            ("", Route::Ingest, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            (
                "",
                Route::Push,
                "HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 0\r\n\r\n",
            ),
            ("--answer 204", Route::Push, "HTTP/1.1 204 No Content\r\n\r\n"),
            (
                "--answer 429 --answer-header 'Retry-After: 3'",
                Route::Ingest,
                "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 18\r\n\
                 Retry-After: 3\r\n\r\nToo Many Requests\n",
            ),
            (
                "--answer-body \"it's no\"",
                Route::Push,
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 7\r\n\r\nit's no",
            ),
        ] {
            let faults = Faults::new(&parse_line(line).unwrap());
            match faults.next(route) {
                Fate::Answered(reply) => assert_eq!(reply.keep, expected, "{line}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, complaint) in [
            ("--answer 99", "no final status"),
            ("--answer abc", "no status"),
            ("--answer 200x0", "1 to 10000"),
            ("--answer 200x10001", "1 to 10000"),
            ("--answer-header nothing", "NAME: VALUE"),
            ("--answer-header 'a b: c'", "no header name"),
            ("--answer-header 'a: b\r\nc: d'", "control"),
            ("--answer-body connect:nope", "no Connect code"),
            ("--reset 2", "between 0 and 1"),
            ("--reset NaN", "between 0 and 1"),
            ("--bandwidth 0", "at least 1B"),
            ("--delay 5", "unit"),
            ("--unknown", "unexpected argument"),
            ("--answer '200", "never closed"),
        ] {
            let error = parse_line(line).expect_err(line);
            assert!(error.contains(complaint), "{line}: {error}");
        }
    }
}
