//! A command line that cannot be read: everything that is wrong with it, at once.
//!
//! clap stops at the first mistake. For `run` and `check`, whose flags come from templates and environments that are tried
//! again only after a roll-out, that is too little: a value that is wrong is noted, taken away, and the rest is read
//! again, through to the plan.
//!
//! Not responsible for what the flags mean (`config`).

use std::error::Error as _;
use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command, FromArgMatches};
use serde::Serialize;

use super::run::EXIT_USAGE;
use super::settle;
use crate::config::Flags;
use crate::config::plan::{PlanError, masked};

/// Mistakes told at most; a line with more is no line for pyrotee.
const TROUBLES_MAX: usize = 64;
/// Flags whose limits depend on each other: where one is unreadable, the others cannot be judged.
const SIZES: [&str; 4] = ["--memory-limit", "--queue-limit", "--spool-limit", "--body-limit"];

/// One thing wrong with what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// The flag, or the word that is none.
    pub flag: String,
    /// The value as typed, credentials masked; empty where the flag itself is the trouble.
    pub value: String,
    /// What is wrong and how to mend it.
    pub problem: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flag, value, problem } = self;
        match &**value {
            "" => write!(f, "{flag}: {problem}"),
            value => write!(f, "{flag} {value}: {problem}"),
        }
    }
}

impl From<PlanError> for Trouble {
    fn from(error: PlanError) -> Self {
        Self {
            flag: error.flag.into(),
            value: error.value,
            problem: error.problem,
        }
    }
}

/// Tells what clap refused in the words of this process, of which `command` is the definition; returns the exit code.
pub fn refuse(command: Command, error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let words: Vec<OsString> = std::env::args_os().collect();
    let name = words.get(1).and_then(|word| word.to_str());
    let Some(name @ ("run" | "check")) = name else {
        let _ = error.print();
        return ExitCode::from(EXIT_USAGE);
    };
    let json = name == "check" && words.iter().any(|word| word == "--json");
    let command = match command.find_subcommand(name) {
        Some(command) => command.clone(),
        None => command,
    };
    tell(&find_all(command, words.into_iter().skip(2).collect()), json)
}

/// Prints the mistakes: as lines on stderr, or as JSON on stdout. Returns the exit code.
pub fn tell(troubles: &[Trouble], json: bool) -> ExitCode {
    if json {
        let body = serde_json::json!({ "good": false, "errors": troubles });
        // Nobody may be there to read it; the exit code tells all the same.
        let _ = writeln!(std::io::stdout(), "{body:#}");
    } else {
        troubles.iter().for_each(|trouble| eprintln!("error: {trouble}"));
    }
    ExitCode::from(EXIT_USAGE)
}

/// Everything wrong with the flags in `words` (without the names of program and command).
fn find_all(command: Command, mut words: Vec<OsString>) -> Vec<Trouble> {
    let mut command = command.no_binary_name(true);
    let mut troubles = Vec::new();
    while troubles.len() < TROUBLES_MAX {
        match command.clone().try_get_matches_from(&words) {
            Ok(matches) => {
                add_contradictions(&matches, &mut troubles);
                break;
            }
            Err(error) => {
                troubles.push(describe(&error));
                if !forget(&mut command, &mut words, &error) {
                    break;
                }
            }
        }
    }
    troubles
}

/// What is wrong with the plan of the flags that could be read, but for what depends on those that could not.
fn add_contradictions(matches: &ArgMatches, troubles: &mut Vec<Trouble>) {
    let Ok(mut flags) = Flags::from_arg_matches(matches) else {
        return;
    };
    flags.note_given(matches);
    let Err(found) = settle::plan(&flags) else {
        return;
    };
    let unread: Vec<String> = troubles.iter().map(|trouble| trouble.flag.clone()).collect();
    let size_unread = unread.iter().any(|flag| SIZES.contains(&&**flag));
    let hangs_on_unread = |found: &Trouble| {
        size_unread && SIZES.contains(&&*found.flag)
            || unread
                .iter()
                .any(|flag| found.flag == *flag || found.problem.contains(flag))
    };
    troubles.extend(found.into_iter().filter(|found| !hangs_on_unread(found)));
}

fn describe(error: &clap::Error) -> Trouble {
    let flag = flag_of(error);
    let value = text(error, ContextKind::InvalidValue);
    let known = text(error, ContextKind::ValidValue);
    let problem = match error.kind() {
        ErrorKind::InvalidValue | ErrorKind::NoEquals if value.is_empty() && known.is_empty() => {
            "needs a value".to_owned()
        }
        ErrorKind::InvalidValue => format!("must be one of: {known}"),
        ErrorKind::ValueValidation => error
            .source()
            .map_or_else(|| "is no good value".to_owned(), ToString::to_string),
        ErrorKind::UnknownArgument if flag.starts_with('-') => match text(error, ContextKind::SuggestedArg) {
            near if near.is_empty() => "there is no such flag; --help lists them all".to_owned(),
            near => format!("there is no such flag; did you mean {near}?"),
        },
        ErrorKind::UnknownArgument => "nothing is expected here; values belong behind their flag".to_owned(),
        ErrorKind::ArgumentConflict => {
            "given more than once, or together with a flag that excludes it; keep one".to_owned()
        }
        _ => first_line(error),
    };
    Trouble {
        flag: masked(&flag),
        value: masked(&value),
        problem,
    }
}

/// `--flag`, or the word that is none.
fn flag_of(error: &clap::Error) -> String {
    let typed = text(error, ContextKind::InvalidArg);
    if typed.starts_with("--") {
        let end = typed.find([' ', '=', '[']).unwrap_or(typed.len());
        return typed[..end].to_owned();
    }
    typed
}

fn text(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// Takes the offending words away, and the environment of their flag. Returns whether there was anything to take.
fn forget(command: &mut Command, words: &mut Vec<OsString>, error: &clap::Error) -> bool {
    let flag = flag_of(error);
    let value = text(error, ContextKind::InvalidValue);
    if flag.is_empty() {
        return false;
    }
    let argument = command.get_arguments().find(|argument| {
        argument
            .get_long()
            .is_some_and(|long| flag == format!("--{long}"))
    });
    let takes_value = argument.is_none_or(|argument| argument.get_action().takes_values());
    let from_environment = argument
        .filter(|argument| argument.get_env().is_some())
        .map(|argument| argument.get_id().clone());

    let all = places(words, &flag, takes_value);
    let guilty: Vec<_> = all
        .iter()
        .filter(|place| place.value.split(',').any(|part| part == value) || place.value == value)
        .cloned()
        .collect();
    let taken = if value.is_empty() || guilty.is_empty() {
        all
    } else {
        guilty
    };
    for place in taken.iter().rev() {
        words.drain(place.words.clone());
    }
    match from_environment {
        Some(id) if taken.is_empty() => {
            *command = command
                .clone()
                .mut_arg(id, |argument| argument.env(Resettable::Reset));
            true
        }
        _ => !taken.is_empty(),
    }
}

/// Where a flag stands, and with which value.
#[derive(Clone)]
struct Place {
    words: std::ops::Range<usize>,
    value: String,
}

fn places(words: &[OsString], flag: &str, takes_value: bool) -> Vec<Place> {
    let mut places = Vec::new();
    let mut index = 0;
    while index < words.len() {
        let word = words[index].to_string_lossy();
        let next = words.get(index + 1).map(|next| next.to_string_lossy());
        let place = if word == flag {
            match next.filter(|next| takes_value && flag.starts_with("--") && !next.starts_with("--")) {
                Some(next) => Some(Place {
                    words: index..index + 2,
                    value: next.into_owned(),
                }),
                None => Some(Place {
                    words: index..index + 1,
                    value: String::new(),
                }),
            }
        } else {
            let value = word.strip_prefix(flag).and_then(|rest| rest.strip_prefix('='));
            value.map(|value| Place {
                words: index..index + 1,
                value: value.to_owned(),
            })
        };
        match place {
            Some(place) => {
                index = place.words.end;
                places.push(place);
            }
            None => index += 1,
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;

    /// Without the environment of whoever runs the tests.
    fn found(words: &[&str]) -> Vec<Trouble> {
        let command = Flags::augment_args(Command::new("run"));
        let command = command.mut_args(|argument| argument.env(Resettable::Reset));
        find_all(command, words.iter().map(OsString::from).collect())
    }

    #[test]
    fn everything_wrong_is_found_at_once() {
        let troubles = found(&[
            "--max-age",
            "10",
            "--ack=sometimes",
            "--cores",
            "0",
            "--lissten",
            "1.2.3.4:5",
            "--to",
            "ftp://x",
            "--to",
            "https://y,tls-cert-file=c",
            "--conn-limit=many",
            "--listen",
            "nowhere",
            "--listen",
            "127.0.0.1:1",
            "--no-pin",
            "stray",
        ]);
        let mut flags: Vec<&str> = troubles.iter().map(|trouble| &*trouble.flag).collect();
        flags.sort_unstable();
        let expected = [
            "--ack",
            "--conn-limit",
            "--cores",
            "--lissten",
            "--listen",
            "--max-age",
            "--to",
            "--to",
            "stray",
        ];
        assert_eq!(flags, expected, "{troubles:#?}");
        let said = |flag: &str| {
            troubles
                .iter()
                .find(|trouble| trouble.flag == flag)
                .unwrap()
                .to_string()
        };
        assert_eq!(
            said("--ack"),
            "--ack sometimes: must be one of: queued, first, all, stored"
        );
        assert!(
            said("--max-age").contains("such as 500ms"),
            "{}",
            said("--max-age")
        );
        assert!(said("--lissten").contains("--listen"), "{}", said("--lissten"));
    }

    #[test]
    fn each_mistake_is_one_sentence() {
        for (name, words, flag, says) in [
            ("no value", &["--max-age"][..], "--max-age", "needs a value"),
            ("empty", &["--max-age="], "--max-age", ""),
            (
                "twice",
                &["--max-age", "1h", "--max-age", "2h"],
                "--max-age",
                "more than once",
            ),
            ("number", &["--inflight", "x"], "--inflight", "invalid digit"),
            ("value for a switch", &["--no-pin=1"], "--no-pin", ""),
        ] {
            let troubles = found(words);
            assert_eq!(troubles.len(), 1, "{name}: {troubles:?}");
            assert_eq!(troubles[0].flag, flag, "{name}");
            assert!(
                !troubles[0].problem.is_empty() && troubles[0].problem.contains(says),
                "{name}: {troubles:?}"
            );
        }
    }

    #[test]
    fn what_depends_on_an_unreadable_value_is_not_judged() {
        let troubles = found(&["--memory-limit", "8Gb", "--queue-limit", "2GiB"]);
        let flags: Vec<&str> = troubles.iter().map(|trouble| &*trouble.flag).collect();
        assert_eq!(flags, ["--memory-limit"], "{troubles:?}");
    }

    #[test]
    fn secrets_are_masked() {
        for words in [
            &["http://u:hunter2@h:1"][..],
            &["--too", "http://u:hunter2@h:1"],
            &["--too=http://u:hunter2@h:1"],
            &["--ack", "http://u:hunter2@h:1"],
            &["--to", "ftp://u:hunter2@h:1,header.Authorization=hunter2"],
        ] {
            let troubles = found(words);
            assert!(!troubles.is_empty());
            let text = format!("{troubles:?}");
            assert!(!text.contains("hunter2"), "{words:?}: {text}");
        }
    }
}
