//! The Go program of `tests/interop` in the hands of a test: built once, then started with arguments.
//!
//! Responsible for building, starting and reading JSON lines; `tests/interop/README.md` says what the lines hold. Not
//! responsible for what they should hold.

#![allow(dead_code)] // every test binary compiles this file and uses its own part of it

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::command::{From, PATIENCE, Running};
use crate::support::skip;

/// Downloads two modules and builds, on a slow machine.
const BUILD_TIME_MAX: Duration = Duration::from_secs(600);

/// The program, if Go is there; without it the test is skipped aloud.
pub fn interop() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    if Command::new("go").arg("version").output().is_err() {
        let why = "no `go` in PATH; install Go 1.21 or newer: https://go.dev/dl";
        skip("interop", why);
        return None;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/interop/interop");
    let mut go = Command::new("go");
    go.args(["build", "-mod=readonly", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(root.join("tests/interop"));
    let (status, said) = Running::start(go).end(BUILD_TIME_MAX);
    assert!(status.success(), "go build: {status}\n{}", said.stderr);
    Some(program)
}

/// One call of the real client. Returns its line.
pub fn call(program: &Path, address: &str, case: &str, flags: &[&str]) -> Value {
    let mut command = Command::new(program);
    command
        .args(["client", "--addr", address, "--case", case])
        .args(flags);
    let mut lines = lines(command);
    assert_eq!(lines.len(), 1, "{case} {flags:?}: {lines:?}");
    lines.remove(0)
}

/// The names of the client's cases.
pub fn cases(program: &Path) -> Vec<String> {
    let mut command = Command::new(program);
    command.args(["client", "--list"]);
    let name = |line: &Value| line["case"].as_str().expect("a name").to_owned();
    lines(command).iter().map(name).collect()
}

fn lines(command: Command) -> Vec<Value> {
    let name = format!("{command:?}");
    let (status, said) = Running::start(command).end(PATIENCE);
    assert!(status.success(), "{name}: {status}\n{}", said.stderr);
    said.stdout.lines().map(json).collect()
}

/// Asks an oracle (`reference`, `query`, `decode`) and returns its answers, one for each question.
pub fn ask(program: &Path, oracle: &str, questions: &[Value]) -> Vec<Value> {
    let mut command = Command::new(program);
    command.arg(oracle);
    let mut process = Running::start(command);
    for question in questions {
        process
            .write(&format!("{question}\n"))
            .expect("the oracle reads on");
    }
    let (status, said) = process.end(2 * PATIENCE);
    assert!(status.success(), "{oracle}: {status}\n{}", said.stderr);
    let answers: Vec<Value> = said.stdout.lines().map(json).collect();
    assert_eq!(answers.len(), questions.len(), "one answer for each question");
    for (question, answer) in questions.iter().zip(&answers) {
        assert!(answer.get("input_error").is_none(), "{question}: {answer}");
    }
    answers
}

/// A running `interop server`.
pub struct Server {
    process: Running,
    /// `host:port`.
    pub address: String,
}

impl Server {
    /// Starts one that behaves as `flags` say.
    pub fn start(program: &Path, flags: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.arg("server").args(flags);
        let mut process = Running::start(command);
        let address = process.wait_for("its address", |from, line| {
            let line = (from == From::Stdout).then(|| json(line))?;
            (line["event"] == "listening").then(|| line["addr"].as_str().expect("an address").to_owned())
        });
        Self { process, address }
    }

    /// `NAME=URL` for `--to`.
    pub fn to(&self, name: &str) -> String {
        format!("{name}=http://{}", self.address)
    }

    /// Ends it and returns what it saw, without the lines of its start and its end.
    pub fn end(self) -> Vec<Value> {
        let (status, said) = self.process.end(PATIENCE);
        assert!(status.success(), "{status}\n{}", said.stderr);
        let mut seen: Vec<Value> = said.stdout.lines().map(json).collect();
        seen.retain(|line| line["event"] != "listening" && line["event"] != "end");
        seen
    }
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}
