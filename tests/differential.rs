//! What Alloy itself made of some hundred made-up requests, recorded with `scripts/differential --record`, against what
//! pyrotee makes of them now. The comparison is that of the script, with its table of accepted differences; it needs
//! Python 3, and no Alloy. docs/testing.md says how the record is made anew.

#[path = "support/command.rs"]
mod command;
mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use command::Running;
use support::{skip, under_both_engines};

/// Requests come one by one, each on a connection of its own: seconds, on a busy machine tens of them.
const RUN_TIME_MAX: Duration = Duration::from_secs(240);

under_both_engines!(recorded_requests_end_as_alloy_had_it);

fn recorded_requests_end_as_alloy_had_it(engine: &str) {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("differential", "no python3; install it (apt-get install python3)");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("scripts/differential"));
    command
        .arg("--replay")
        .arg(root.join("tests/data/differential.jsonl.gz"));
    command.args(["--binary", env!("CARGO_BIN_EXE_pyrotee"), "--engine", engine]);
    let (status, said) = Running::start(command).end(RUN_TIME_MAX);
    assert!(status.success(), "{status}\n{}{}", said.stdout, said.stderr);
    let counted = said.stdout.lines().last().and_then(|line| line.split(' ').next());
    let count: usize = counted.and_then(|count| count.parse().ok()).expect("a count");
    assert!(count > 400, "{count} requests only");
}
