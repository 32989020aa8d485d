//! Our layout as a test (STYLE.md section 12, "Tidy"): where imports may point, where `unsafe` may stand, that files say
//! what they are for, that nothing half-done or bound to one machine is committed, and that the page of flags is whole.
//!
//! Text is read as text: no parser, so the rules are simple enough to be kept without one. Not responsible for style
//! inside a file; that is rustfmt's and clippy's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{CommandFactory, Parser};

/// The stations, from the outermost in. A file may import from its own level's station and from all below; two stations
/// on one level never import each other.
const LEVELS: [&[&str]; 11] = [
    &["main"],
    &["cmd"],
    &["gateway"],
    &["admin"],
    &["inbound", "outbound"],
    &["spool"],
    &["fanout"],
    &["profile"],
    &["http"],
    &["runtime"],
    &[],
];
/// Read by everyone.
const CONFIG: &str = "config";
/// What `config` reads itself: types that a flag is made of, and the checks of labels and relabel rules.
const CONFIG_READS: [&str; 3] = ["profile::labels", "profile::relabel", "runtime::engine"];
/// Where `unsafe` may stand.
const UNSAFE_FILES: [&str; 2] = ["src/outbound/gather.rs", "src/runtime/socket.rs"];
/// Written by tools, full of host names.
const LOCK_FILES: [&str; 4] = ["Cargo.lock", "go.sum", "package-lock.json", "requirements.txt"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Rust files below `folder`, as paths from the root, with their text.
fn rust_files(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for path in entries.map(|entry| entry.expect("a readable folder").path()) {
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("source is UTF-8");
                files.push((from_root(&path), text));
            }
        }
    }
    files.sort();
    files
}

fn from_root(path: &Path) -> String {
    let path = path.strip_prefix(root()).unwrap_or(path);
    path.to_str().expect("our names are plain").to_owned()
}

/// Names and text of all files under version control; `None`, said aloud, where there is no git.
fn tracked_files() -> Option<Vec<(String, String)>> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached"])
        .current_dir(root())
        .output();
    let listed = match listed {
        Ok(output) if output.status.success() => output.stdout,
        _ => {
            use std::io::Write as _;
            let why = "tidy: no git here, or no repository; install git and clone";
            let _ = writeln!(std::io::stderr(), "SKIPPED {why}");
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
            return None;
        }
    };
    let names = listed.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names = names.map(|name| PathBuf::from(String::from_utf8_lossy(name).into_owned()));
    let files = names.filter_map(|name| {
        // What is no text holds recorded bytes; a file may also just have been removed.
        let text = String::from_utf8(fs::read(root().join(&name)).ok()?).ok()?;
        Some((from_root(&name), text))
    });
    Some(files.collect())
}

/// A line without its comment. A `//` inside a string cuts the line too, which hides nothing that these tests look for.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// The station that a source file belongs to.
fn station(path: &str) -> &str {
    let path = path.strip_prefix("src/").expect("a source file");
    path.split('/')
        .next()
        .and_then(|first| first.strip_suffix(".rs").or(Some(first)))
        .expect("a path has parts")
}

fn level(station: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&station))
}

/// The paths behind each `crate::` or `pyrotee::` of a file, such as `http::answer`; braces are opened one level deep.
fn imports(text: &str) -> BTreeSet<String> {
    let text: String = text.lines().map(code).collect::<Vec<_>>().join("\n");
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for prefix in ["crate::", "pyrotee::"] {
        for (at, _) in text.match_indices(prefix) {
            if text[..at].ends_with(is_word) {
                continue;
            }
            let rest = &text[at + prefix.len()..];
            let inner = rest
                .strip_prefix('{')
                .map(|inner| &inner[..inner.find('}').unwrap_or(inner.len())]);
            for path in inner.unwrap_or(rest).split(',') {
                let path: String = path
                    .trim_start()
                    .chars()
                    .take_while(|c| is_word(*c) || *c == ':')
                    .collect();
                found.insert(path.trim_end_matches(':').to_owned());
                if inner.is_none() {
                    break;
                }
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn imports_point_one_way() {
    let mut wrong = Vec::new();
    for (path, text) in rust_files("src") {
        let from = station(&path);
        if from == "lib" {
            continue;
        }
        for import in imports(&text) {
            let to = import.split("::").next().unwrap_or_default();
            let allowed = match (from, to) {
                _ if from == to || to == CONFIG => true,
                (CONFIG, _) => CONFIG_READS.iter().any(|path| import.starts_with(path)),
                _ => match (level(from), level(to)) {
                    (Some(from), Some(to)) => from < to,
                    _ => false,
                },
            };
            if !allowed {
                wrong.push(format!("{path}: {import}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "imports against the direction, or a station without a level:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_station_has_a_level_and_every_level_its_station() {
    let known: BTreeSet<&str> = LEVELS
        .iter()
        .copied()
        .flatten()
        .copied()
        .chain([CONFIG, "lib"])
        .collect();
    let files = rust_files("src");
    let found: BTreeSet<&str> = files.iter().map(|(path, _)| station(path)).collect();
    assert_eq!(found, known);
}

#[test]
fn imports_are_read_as_written() {
    let text = "use crate::{a::b, c};\nuse crate::d::e::F; // crate::g\nlet x = pyrotee::h(); mycrate::i!();";
    let found = imports(text);
    let expected = ["a::b", "c", "d::e::F", "h"].map(str::to_owned);
    assert_eq!(found, BTreeSet::from(expected));
}

#[test]
fn unsafe_stands_in_its_files_only() {
    let files = rust_files("src");
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let has_unsafe = |text: &str| {
        text.lines().map(code).any(|line| {
            line.match_indices("unsafe").any(|(at, word)| {
                !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word)
            })
        })
    };
    let found: Vec<&str> = files
        .iter()
        .filter(|(_, text)| has_unsafe(text))
        .map(|(path, _)| path.as_str())
        .collect();
    assert_eq!(
        found, UNSAFE_FILES,
        "a new one is a decision: name it here, and give it a safe twin to test against"
    );
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> = ["src", "tests", "benches", "fuzz"]
        .into_iter()
        .flat_map(rust_files)
        .filter(|(_, text)| {
            // A fuzz target or an attribute for the whole file may stand in front, the sentence may not be missing.
            let first = text
                .lines()
                .find(|line| !line.is_empty() && !line.starts_with("#!["));
            !first.is_some_and(|line| line.starts_with("//! "))
        })
        .map(|(path, _)| path)
        .collect();
    assert!(
        silent.is_empty(),
        "without a first line that begins with //!: {silent:?}"
    );
}

#[test]
fn every_file_is_part_of_the_program() {
    // A module file that nobody declares is not compiled, so nothing else would notice it.
    let files: BTreeMap<String, String> = rust_files("src").into_iter().collect();
    let mut orphans = Vec::new();
    for path in files.keys() {
        let file = Path::new(path);
        let stem = file.file_stem().and_then(|stem| stem.to_str()).expect("a name");
        if ["main", "lib"].contains(&stem) {
            continue;
        }
        let folder = file.parent().expect("below src");
        let (name, folder) = match stem {
            "mod" => (
                folder.file_name().and_then(|name| name.to_str()).expect("a name"),
                folder.parent().expect("below src"),
            ),
            _ => (stem, folder),
        };
        let parents = [
            folder.join("mod.rs"),
            folder.with_extension("rs"),
            folder.join("lib.rs"),
            folder.join("main.rs"),
        ];
        let declares = |parent: &PathBuf| {
            let text = files.get(parent.to_str().expect("plain"));
            text.is_some_and(|text| {
                text.lines()
                    .any(|line| code(line).trim_end().ends_with(&format!("mod {name};")))
            })
        };
        if !parents.iter().any(declares) {
            orphans.push(path);
        }
    }
    assert!(orphans.is_empty(), "declared nowhere: {orphans:?}");
}

#[test]
fn nothing_is_left_half_done() {
    // In two parts, so that this file does not find itself.
    let marks = [
        ("TO", "DO"),
        ("FIX", "ME"),
        ("XX", "X"),
        ("HA", "CK"),
        ("todo", "!("),
        ("unimplemented", "!("),
    ];
    let marks = marks.map(|(front, back)| format!("{front}{back}"));
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '\\';
    // A word of its own, so that \uXXXX in a comment is no mark.
    let has = |line: &str, mark: &str| {
        line.match_indices(mark).any(|(at, _)| {
            !line[..at].ends_with(is_word)
                && !line[at + mark.len()..].starts_with(|c: char| c.is_ascii_alphanumeric())
        })
    };
    report("half-done", |_, line| marks.iter().any(|mark| has(line, mark)));
}

#[test]
fn nothing_is_bound_to_one_machine() {
    let folders = ["root", "home", "work", "Users"].map(|name| format!("/{name}/"));
    // After one of these the slash is inside a longer path or a URL, which may well have such a part.
    let goes_on = |c: char| c.is_ascii_alphanumeric() || "_-.}$)*~/".contains(c);
    let names_machine = |line: &str| {
        folders.iter().any(|folder| {
            line.match_indices(folder.as_str())
                .any(|(at, _)| !line[..at].ends_with(goes_on))
        })
    };
    report("a path of one machine", |_, line| names_machine(line));
}

#[test]
fn no_registry_is_named() {
    // Ordinary clients know where to ask, and a mirror must be able to answer.
    let hosts = [
        ("crates", ".io"),
        ("static.rust", "-lang.org"),
        ("registry.npmjs", ".org"),
        ("proxy.golang", ".org"),
        ("sum.golang", ".org"),
        ("pypi", ".org"),
        ("pythonhosted", ".org"),
        ("repo1.maven", ".org"),
        ("repo.maven", ".apache.org"),
    ];
    let hosts = hosts.map(|(front, back)| format!("{front}{back}"));
    report("a registry", |path, line| {
        let is_lock = LOCK_FILES.iter().any(|name| path.ends_with(name));
        !is_lock && hosts.iter().any(|host| line.contains(host.as_str()))
    });
}

/// Fails with every line under version control that `is_wrong`.
fn report(what: &str, is_wrong: impl Fn(&str, &str) -> bool) {
    let Some(files) = tracked_files() else { return };
    assert!(files.len() > 50, "these are all?");
    let mut wrong = Vec::new();
    for (path, text) in &files {
        for (index, line) in text.lines().enumerate() {
            if is_wrong(path, line) {
                let shown: String = line.trim().chars().take(120).collect();
                wrong.push(format!("{path}:{}: {shown}", index + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

/// The flags of `pyrotee run`, as clap knows them.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    flags: pyrotee::config::Flags,
}

/// The sections of docs/configuration.md that are about one flag: heading to text.
fn flag_sections() -> BTreeMap<String, String> {
    let page = fs::read_to_string(root().join("docs/configuration.md")).expect("the page of flags");
    let mut sections = BTreeMap::new();
    for part in page.split("\n### ").skip(1) {
        let (heading, text) = part.split_once('\n').expect("a heading and a text");
        let text = text.split("\n## ").next().unwrap_or_default();
        let flag = heading
            .strip_prefix("`--")
            .and_then(|flag| flag.split(['`', ' ']).next())
            .unwrap_or_else(|| panic!("no flag in the heading {heading}"));
        let twice = sections.insert(flag.to_owned(), text.to_owned());
        assert!(twice.is_none(), "two sections on --{flag}");
    }
    sections
}

#[test]
fn every_flag_is_on_its_page() {
    let sections = flag_sections();
    let command = Line::command();
    let mut flags = BTreeSet::new();
    for argument in command.get_arguments() {
        let Some(flag) = argument.get_long().filter(|flag| *flag != "help") else {
            continue;
        };
        flags.insert(flag.to_owned());
        let text = sections
            .get(flag)
            .unwrap_or_else(|| panic!("no section on --{flag}"));
        let first = text.lines().next().unwrap_or_default();
        let variable = argument.get_env().and_then(|name| name.to_str());
        let variable = variable.unwrap_or_else(|| panic!("--{flag} has no variable"));
        assert!(
            first.starts_with(&format!("`{variable}` · ")),
            "--{flag}: {variable} begins its facts: {first}"
        );
        assert!(
            first.contains("default"),
            "--{flag}: the facts name the default: {first}"
        );
        // A flag that is set or not has "false" for a default, which nobody would type.
        for default in argument
            .get_default_values()
            .iter()
            .filter(|default| *default != "false")
        {
            let default = default.to_str().expect("plain");
            assert!(
                first.contains(&format!("`{default}`")),
                "--{flag}: its default is {default}: {first}"
            );
        }
        for value in argument
            .get_possible_values()
            .iter()
            .filter(|_| argument.get_action().takes_values())
        {
            let name = value.get_name();
            let heading_or_text = format!("`{name}`");
            assert!(
                text.contains(&heading_or_text),
                "--{flag}: its value {name} is explained"
            );
        }
        assert!(text.lines().count() > 2, "--{flag}: more than its facts is said");
    }
    let on_page: BTreeSet<String> = sections.into_keys().collect();
    assert_eq!(on_page, flags, "the sections are about flags that there are");
}

#[test]
fn every_option_of_a_destination_is_on_the_page() {
    let command = Line::command();
    let to = command
        .get_arguments()
        .find(|argument| argument.get_long() == Some("to"))
        .and_then(|argument| argument.get_long_help().or(argument.get_help()))
        .expect("--to has a help")
        .to_string();
    let (_, options) = to.split_once("Options: ").expect("the help lists them");
    let options = options.split('.').next().unwrap_or_default();
    let text = &flag_sections()["to"];
    for option in options.split(',').map(str::trim) {
        assert!(
            text.contains(&format!("`{option}")),
            "the option {option} is not explained"
        );
    }
}

#[test]
fn links_between_our_pages_lead_somewhere() {
    let Some(files) = tracked_files() else { return };
    let mut broken = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".md")) {
        let folder = Path::new(path).parent().unwrap_or(Path::new(""));
        for piece in text.split("](").skip(1) {
            let target = piece.split([')', '#']).next().unwrap_or_default();
            let is_ours = !target.is_empty() && !target.contains("://");
            if is_ours && !root().join(folder).join(target).exists() {
                broken.push(format!("{path}: {target}"));
            }
        }
    }
    assert!(
        broken.is_empty(),
        "links to pages that are not there:\n{}",
        broken.join("\n")
    );
}
