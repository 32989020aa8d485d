//! From flags, and the file that they may name, to a plan: what `run` and `check` both begin with.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::usage::Trouble;
use crate::config::alloy::blocks;
use crate::config::{FileConfig, Flags, Plan};
use crate::runtime;

/// A file longer than this is read no further; its parser refuses it then.
const FILE_BYTES_MAX: u64 = 2 << 20;

/// Works out the plan.
///
/// # Errors
/// Everything that is wrong with the flags, or with the file.
pub fn plan(flags: &Flags) -> Result<Plan, Vec<Trouble>> {
    let file = flags.config.as_deref().map(read).transpose()?;
    let plan = Plan::with_file(flags, file.as_ref(), &runtime::host());
    plan.map_err(|errors| errors.0.into_iter().map(Trouble::from).collect())
}

/// Reads a configuration file.
fn read(path: &Path) -> Result<FileConfig, Vec<Trouble>> {
    let name = path.display().to_string();
    let trouble = |place: String, problem: String| Trouble {
        flag: "--config".into(),
        value: place,
        problem,
    };
    let text = text_of(path).map_err(|problem| vec![trouble(name.clone(), problem)])?;
    let environment = |variable: &str| std::env::var(variable).ok();
    blocks::read(&name, &text, &environment).map_err(|mistakes| {
        let told = mistakes.into_iter();
        told.map(|mistake| trouble(format!("{name}:{}", mistake.place), mistake.problem))
            .collect()
    })
}

fn text_of(path: &Path) -> Result<String, String> {
    if path.is_dir() {
        return Err("is a folder; give the one file in it that holds pyroscope.receive_http".into());
    }
    let mut text = Vec::new();
    let file = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut text));
    file.map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(text).map_err(|_| "is no text in UTF-8; is this the right file?".into())
}
