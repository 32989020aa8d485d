//! A short round of `scripts/chaos`: the real binary among clients, destinations, a disk and a host that all fail, judged by a
//! driver that shares no code with it. One seed here; the script by itself runs as many as there is time for.

mod support;

use std::path::Path;
use std::process::Command;

use support::skip;

/// Under `stored`, two destinations, with kills and restarts of the gateway and of destinations, and answers of all kinds.
const SEED: &str = "6";

#[test]
fn a_round_of_chaos_keeps_every_promise() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/chaos");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos");
    let run = Command::new("python3")
        .arg(script)
        .args([
            "--seed",
            SEED,
            "--length",
            "12",
            "--binary",
            env!("CARGO_BIN_EXE_pyrotee"),
        ])
        .args([
            "--set",
            "ack=stored",
            "--set",
            "destinations=2",
            "--set",
            "restarts=true",
            "--set",
            "unclean=true",
        ])
        .arg("--folder")
        .arg(folder)
        .output();
    let output = match run {
        Ok(output) => output,
        Err(error) => {
            return skip(
                "chaos",
                format_args!("python3 cannot be run: {error}; install Python 3"),
            );
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
}
