//! Relabel rules: what `pyroscope.relabel` of Alloy does to labels (WIRE.md 6), in Prometheus' semantics. Pure. Not
//! responsible for where rules come from (`config`), for when they run (`ingest`, `push`), or for counting.
//!
//! ```text
//!  labels ─▶ rule 1 ─▶ rule 2 ─▶ ... ─▶ labels, or dropped (a rule said so, or no label is left)
//! ```
//! A rule reads the values of its source labels, joined, matches them against its regex (RE2 syntax, the whole text, linear
//! time) and acts. Rules are checked once, when they are made; applied, they can only keep, drop, or outgrow the limits of
//! [`LabelLimits`], which ends a profile's labels as those of a client would.

mod pattern;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use md5::{Digest as _, Md5};
use regex::{Captures, Regex};
use serde::Serialize;
use thiserror::Error;

use crate::profile::labels::{Label, LabelLimits, LabelSet, label_name_allowed};

/// Most rules. Each runs for every series of a push, and has its own compiled regex.
pub const RULES_MAX: usize = 128;
/// Longest regex, replacement, separator or target, in bytes.
pub const TEXT_BYTES_MAX: usize = 16 << 10;
/// Most source labels of one rule: with [`LabelLimits`] that bounds what is joined and matched to 2 MiB.
pub const SOURCE_LABELS_MAX: usize = 32;

/// The regex of a rule that has none.
const REGEX_DEFAULT: &str = "(.*)";
/// The replacement of a rule that has none.
const REPLACEMENT_DEFAULT: &str = "$1";
/// The separator of a rule that has none.
const SEPARATOR_DEFAULT: &str = ";";

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Sets the target to the replacement where the regex matches.
    Replace,
    /// Drops what the regex does not match.
    Keep,
    /// Drops what the regex matches.
    Drop,
    /// Drops what differs from the target's value.
    KeepEqual,
    /// Drops what equals the target's value.
    DropEqual,
    /// Sets the target to a hash modulo the modulus.
    HashMod,
    /// Copies labels whose name the regex matches to the replacement's name.
    LabelMap,
    /// Removes labels whose name the regex matches.
    LabelDrop,
    /// Removes labels whose name the regex does not match.
    LabelKeep,
    /// Sets the target to the input in lower case.
    Lowercase,
    /// Sets the target to the input in upper case.
    Uppercase,
}

impl Action {
    /// Every action, and how it is written.
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::Replace, "replace"),
        (Self::Keep, "keep"),
        (Self::Drop, "drop"),
        (Self::KeepEqual, "keepequal"),
        (Self::DropEqual, "dropequal"),
        (Self::HashMod, "hashmod"),
        (Self::LabelMap, "labelmap"),
        (Self::LabelDrop, "labeldrop"),
        (Self::LabelKeep, "labelkeep"),
        (Self::Lowercase, "lowercase"),
        (Self::Uppercase, "uppercase"),
    ];

    /// Reads an action as it is written, in lower case only.
    pub fn parse(text: &str) -> Option<Self> {
        let known = Self::ALL.iter().find(|(_, name)| *name == text);
        known.map(|(action, _)| *action)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Self::ALL.iter().find(|(action, _)| action == self);
        f.write_str(known.map_or("", |(_, name)| name))
    }
}

/// A rule as it is written. Absent parts are the defaults of Alloy (WIRE.md 6), which [`Default`] gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleSpec {
    /// What it does.
    pub action: Action,
    /// Whose values are the input.
    pub source_labels: Vec<String>,
    /// What stands between them.
    pub separator: String,
    /// What the input, or a label's name, has to match as a whole.
    pub regex: String,
    /// For hashmod; above 0 there, 0 elsewhere.
    pub modulus: u64,
    /// What the target becomes; `$1` and `${name}` are groups of the regex, `$$` is a dollar.
    pub replacement: String,
    /// Which label is written or compared.
    pub target_label: String,
}

impl Default for RuleSpec {
    fn default() -> Self {
        Self {
            action: Action::Replace,
            source_labels: Vec::new(),
            separator: SEPARATOR_DEFAULT.into(),
            regex: REGEX_DEFAULT.into(),
            modulus: 0,
            replacement: REPLACEMENT_DEFAULT.into(),
            target_label: String::new(),
        }
    }
}

impl RuleSpec {
    /// A sentence about a rule that is allowed and can do nothing; `None` for any other.
    pub fn note(&self) -> Option<String> {
        let target = &self.target_label;
        let dead = self.action == Action::Replace && !target.contains('$') && !is_plain_name(target);
        dead.then(|| {
            format!("the rule for '{target}' does nothing, as in Alloy: replace writes names of letters, digits and '_' only")
        })
    }

    /// Everything that Alloy checks when it loads a rule, and our bounds.
    fn check(&self) -> Result<(), String> {
        let Self {
            action, target_label, ..
        } = self;
        let usual = Self::default();
        for (what, text) in [
            ("regex", &self.regex),
            ("replacement", &self.replacement),
            ("separator", &self.separator),
            ("target_label", target_label),
        ] {
            if text.len() > TEXT_BYTES_MAX {
                return Err(format!("{what} is longer than {TEXT_BYTES_MAX} bytes"));
            }
        }
        if self.source_labels.len() > SOURCE_LABELS_MAX {
            return Err(format!("has more than {SOURCE_LABELS_MAX} source_labels"));
        }
        let needs_target = matches!(
            action,
            Action::Replace
                | Action::HashMod
                | Action::Lowercase
                | Action::Uppercase
                | Action::KeepEqual
                | Action::DropEqual
        );
        if needs_target && target_label.is_empty() {
            return Err(format!("action {action} needs a target_label"));
        }
        let writes_target = matches!(action, Action::HashMod | Action::Lowercase | Action::Uppercase);
        if writes_target && !label_name_allowed(target_label.as_bytes()) {
            return Err(format!(
                "target_label '{target_label}' is no label name; use letters, digits, '_' and '.'"
            ));
        }
        if *action == Action::HashMod && self.modulus == 0 {
            return Err("action hashmod needs a modulus above 0".into());
        }
        if matches!(action, Action::Lowercase | Action::Uppercase) && self.replacement != usual.replacement {
            return Err(format!("action {action} takes no replacement; leave it out"));
        }
        if *action == Action::LabelMap && !is_name_template(&self.replacement) {
            return Err(format!(
                "replacement '{}' makes no label name; use letters, digits, '_' and groups such as $1",
                self.replacement
            ));
        }
        let bare = Self {
            action: *action,
            regex: self.regex.clone(),
            ..usual.clone()
        };
        if matches!(action, Action::LabelDrop | Action::LabelKeep) && *self != bare {
            return Err(format!("action {action} takes a regex and nothing else"));
        }
        let equal = Self {
            action: *action,
            source_labels: self.source_labels.clone(),
            target_label: target_label.clone(),
            ..usual
        };
        if matches!(action, Action::KeepEqual | Action::DropEqual) && *self != equal {
            return Err(format!(
                "action {action} takes source_labels and a target_label and nothing else"
            ));
        }
        Ok(())
    }
}

/// A rule that cannot be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("rule {}: {problem}", .index + 1)]
pub struct RuleError {
    /// Which one, from 0.
    pub index: usize,
    /// What is wrong with it, and what to do.
    pub problem: String,
}

/// What rules say of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on, with the labels as they are now.
    Kept,
    /// It goes nowhere, which is no failure.
    Dropped,
}

/// What rules made of labels is beyond [`LabelLimits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outgrown {
    /// A label name.
    Name,
    /// A label value.
    Value,
    /// The number of labels.
    Count,
}

/// Checked rules, in order.
#[derive(Clone, Debug, Default)]
pub struct Relabel {
    rules: Vec<Rule>,
    /// Whether one of them is a `labelmap`: only that one cares in which order labels were written.
    maps: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    spec: RuleSpec,
    regex: Regex,
    target: Template,
    replacement: Template,
}

impl PartialEq for Relabel {
    fn eq(&self, other: &Self) -> bool {
        let specs = |relabel: &Self| {
            relabel
                .rules
                .iter()
                .map(|rule| rule.spec.clone())
                .collect::<Vec<_>>()
        };
        specs(self) == specs(other)
    }
}

impl Eq for Relabel {}

impl Relabel {
    /// Checks the rules and compiles what they match.
    ///
    /// # Errors
    /// The first rule that cannot be, in Alloy's rules (WIRE.md 6, "Config errors") or beyond our bounds.
    pub fn new(specs: &[RuleSpec]) -> Result<Self, RuleError> {
        if specs.len() > RULES_MAX {
            let problem = format!("is one too many; {RULES_MAX} rules are possible");
            return Err(RuleError {
                index: RULES_MAX,
                problem,
            });
        }
        let compile = |(index, spec)| Rule::new(spec).map_err(|problem| RuleError { index, problem });
        let rules = specs.iter().enumerate().map(compile).collect::<Result<_, _>>()?;
        let maps = specs.iter().any(|spec| spec.action == Action::LabelMap);
        Ok(Self { rules, maps })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Applies the rules to settled labels without empty values, and leaves such labels behind. Labels of which nothing is
    /// left are dropped (in Alloy they are from the second time on: WIRE.md Q24).
    pub(crate) fn apply(&self, labels: &mut LabelSet<'_>, limits: &LabelLimits) -> Result<Fate, Outgrown> {
        let mut labels = Changing {
            labels,
            written: self.maps.then(BTreeMap::new),
            writes: 0,
        };
        for rule in &self.rules {
            if rule.apply(&mut labels, limits)? == Fate::Dropped {
                return Ok(Fate::Dropped);
            }
            if labels.as_slice().len() > limits.count_max {
                return Err(Outgrown::Count);
            }
        }
        let is_left = !labels.as_slice().is_empty();
        Ok(if is_left { Fate::Kept } else { Fate::Dropped })
    }
}

impl Rule {
    fn new(spec: &RuleSpec) -> Result<Self, String> {
        spec.check()?;
        let regex = pattern::compile(&spec.regex)?;
        Ok(Self {
            target: Template::new(&spec.target_label, &regex),
            replacement: Template::new(&spec.replacement, &regex),
            regex,
            spec: spec.clone(),
        })
    }

    fn apply(&self, labels: &mut Changing<'_, '_>, limits: &LabelLimits) -> Result<Fate, Outgrown> {
        let input = self.input(labels);
        let target = self.spec.target_label.as_bytes();
        let drops = match self.spec.action {
            Action::Drop => self.regex.is_match(&input),
            Action::Keep => !self.regex.is_match(&input),
            Action::DropEqual => value(labels, target) == input,
            Action::KeepEqual => value(labels, target) != input,
            Action::Replace => {
                let replaced = self.replace(&input, limits)?;
                if let Some((target, value)) = replaced {
                    set(labels, target.as_bytes(), value, limits)?;
                }
                false
            }
            Action::HashMod => {
                let hashed = (hash(&input) % self.spec.modulus).to_string();
                set(labels, target, hashed, limits)?;
                false
            }
            Action::Lowercase => {
                let lower = input.chars().map(lowercase).collect();
                set(labels, target, lower, limits)?;
                false
            }
            Action::Uppercase => {
                let upper = input.chars().map(uppercase).collect();
                set(labels, target, upper, limits)?;
                false
            }
            Action::LabelMap => {
                self.map_names(labels, limits)?;
                false
            }
            Action::LabelDrop => {
                labels.retain_names(|name| !self.regex.is_match(&String::from_utf8_lossy(name)));
                false
            }
            Action::LabelKeep => {
                labels.retain_names(|name| self.regex.is_match(&String::from_utf8_lossy(name)));
                false
            }
        };
        Ok(if drops { Fate::Dropped } else { Fate::Kept })
    }

    /// The values of the source labels, joined; a label that is not there is empty.
    fn input(&self, labels: &LabelSet<'_>) -> String {
        let mut input = String::new();
        for (index, name) in self.spec.source_labels.iter().enumerate() {
            if index > 0 {
                input.push_str(&self.spec.separator);
            }
            input.push_str(&value(labels, name.as_bytes()));
        }
        input
    }

    /// Which label becomes what; `None` where the regex does not match, or what it makes is no name.
    fn replace(&self, input: &str, limits: &LabelLimits) -> Result<Option<(String, String)>, Outgrown> {
        let Some(captures) = self.regex.captures(input) else {
            return Ok(None);
        };
        let target = self
            .target
            .expand(&captures, limits.name_bytes_max)
            .ok_or(Outgrown::Name)?;
        if !is_plain_name(&target) {
            return Ok(None);
        }
        let value = self
            .replacement
            .expand(&captures, limits.value_bytes_max)
            .ok_or(Outgrown::Value)?;
        Ok(Some((target, value)))
    }

    fn map_names(&self, labels: &mut Changing<'_, '_>, limits: &LabelLimits) -> Result<(), Outgrown> {
        let mut mapped = Vec::new();
        for label in labels.in_order() {
            let name = String::from_utf8_lossy(&label.name);
            let Some(captures) = self.regex.captures(&name) else {
                continue;
            };
            let name = self
                .replacement
                .expand(&captures, limits.name_bytes_max)
                .ok_or(Outgrown::Name)?;
            if label_name_allowed(name.as_bytes()) {
                mapped.push((name, String::from_utf8_lossy(&label.value).into_owned()));
            }
        }
        mapped
            .into_iter()
            .try_for_each(|(name, value)| set(labels, name.as_bytes(), value, limits))
    }
}

fn value<'s>(labels: &'s LabelSet<'_>, name: &[u8]) -> Cow<'s, str> {
    labels
        .get(name)
        .map(|value| String::from_utf8_lossy(value))
        .unwrap_or_default()
}

/// Sets a label; an empty value removes it.
fn set(
    labels: &mut Changing<'_, '_>,
    name: &[u8],
    value: String,
    limits: &LabelLimits,
) -> Result<(), Outgrown> {
    if name.len() > limits.name_bytes_max {
        return Err(Outgrown::Name);
    }
    if value.len() > limits.value_bytes_max {
        return Err(Outgrown::Value);
    }
    labels.note(name, value.is_empty());
    let (name, value) = (Cow::Owned(name.to_vec()), Cow::Owned(value.into_bytes()));
    labels.labels.set_or_remove(name, value);
    Ok(())
}

/// The labels while rules change them, and in which order the rules wrote, for those that care.
struct Changing<'l, 'a> {
    labels: &'l mut LabelSet<'a>,
    /// The names that rules wrote, and which write was the first of each. Removed and written again, a label is a new one.
    written: Option<BTreeMap<Vec<u8>, u64>>,
    /// Writes so far.
    writes: u64,
}

impl<'a> Changing<'_, 'a> {
    fn note(&mut self, name: &[u8], removes: bool) {
        let Some(written) = &mut self.written else { return };
        self.writes += 1;
        if removes {
            written.remove(name);
        } else if !written.contains_key(name) {
            written.insert(name.to_vec(), self.writes);
        }
    }

    fn retain_names(&mut self, wanted: impl Fn(&[u8]) -> bool) {
        if let Some(written) = &mut self.written {
            written.retain(|name, _| wanted(name));
        }
        self.labels.retain_names(wanted);
    }

    /// Those that came, then those that rules wrote: where `labelmap` makes one name of several, the last of them wins, as in
    /// Prometheus.
    fn in_order(&self) -> Vec<&Label<'a>> {
        let mut labels: Vec<_> = self.as_slice().iter().collect();
        if let Some(written) = &self.written {
            labels.sort_by_key(|label| written.get(&*label.name));
        }
        labels
    }
}

impl<'a> Deref for Changing<'_, 'a> {
    type Target = LabelSet<'a>;

    fn deref(&self) -> &LabelSet<'a> {
        self.labels
    }
}

/// The last 8 bytes of the MD5 sum, big-endian (WIRE.md 6).
fn hash(input: &str) -> u64 {
    let sum: [u8; 16] = Md5::digest(input.as_bytes()).into();
    let mut last = [0; 8];
    last.copy_from_slice(&sum[8..]);
    u64::from_be_bytes(last)
}

/// One character for one, as Go's `unicode.ToLower` has it.
fn lowercase(c: char) -> char {
    if c == 'İ' {
        return 'i';
    }
    only(c.to_lowercase()).unwrap_or(c)
}

/// One character for one, as Go's `unicode.ToUpper` has it: where Unicode's full mapping gives several, the simple one.
fn uppercase(c: char) -> char {
    let beside = |step: u32| char::from_u32(c as u32 + step).unwrap_or(c);
    match c {
        '\u{1f80}'..='\u{1f87}' | '\u{1f90}'..='\u{1f97}' | '\u{1fa0}'..='\u{1fa7}' => beside(8),
        '\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}' => beside(9),
        _ => only(c.to_uppercase()).unwrap_or(c),
    }
}

fn only(mut mapped: impl Iterator<Item = char>) -> Option<char> {
    let first = mapped.next();
    if mapped.next().is_some() { None } else { first }
}

/// A name that `replace` may write: `[a-zA-Z_][a-zA-Z0-9_]*`.
fn is_plain_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(word) && name.starts_with(|c: char| !c.is_ascii_digit())
}

/// Letters, digits, `_`, and groups: `$name`, `$1`, `${name}`; not empty, no digit first.
fn is_name_template(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.is_empty() || text.starts_with(|c: char| c.is_ascii_digit()) {
        return false;
    }
    text.split('$')
        .enumerate()
        .all(|(index, piece)| match piece.strip_prefix('{') {
            Some(rest) if index > 0 => rest.split_once('}').is_some_and(|(group, rest)| {
                !group.is_empty() && group.chars().all(word) && rest.chars().all(word)
            }),
            _ => piece.chars().all(word) && (index == 0 || !piece.is_empty()),
        })
}

/// Text with groups of a regex in it, as Go's `Regexp.Expand` reads it.
#[derive(Clone, Debug)]
struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Group(usize),
}

impl Template {
    fn new(text: &str, regex: &Regex) -> Self {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            plain.push_str(before);
            rest = after;
            if let Some(after) = rest.strip_prefix('$') {
                plain.push('$');
                rest = after;
            } else if let Some((name, after)) = group_name(rest) {
                rest = after;
                parts.push(Part::Text(std::mem::take(&mut plain)));
                parts.extend(group_index(name, regex).map(Part::Group));
            } else {
                plain.push('$');
            }
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        Self { parts }
    }

    /// The text with its groups filled in; `None` beyond `bytes_max`.
    fn expand(&self, captures: &Captures<'_>, bytes_max: usize) -> Option<String> {
        let mut text = String::new();
        for part in &self.parts {
            let piece = match part {
                Part::Text(text) => text,
                Part::Group(index) => captures.get(*index).map_or("", |group| group.as_str()),
            };
            if text.len() + piece.len() > bytes_max {
                return None;
            }
            text.push_str(piece);
        }
        Some(text)
    }
}

/// The name behind a `$`, and what follows it. `None` where a `$` is just that.
fn group_name(text: &str) -> Option<(&str, &str)> {
    let (text, in_braces) = match text.strip_prefix('{') {
        Some(text) => (text, true),
        None => (text, false),
    };
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        return None;
    }
    if in_braces {
        rest.strip_prefix('}').map(|rest| (name, rest))
    } else {
        Some((name, rest))
    }
}

/// A number without leading zeros is a group's number, anything else its name. `None` for a group that there is not, which
/// is empty.
fn group_index(name: &str, regex: &Regex) -> Option<usize> {
    let is_number = name.bytes().all(|b| b.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    let index = if is_number {
        name.parse().ok()
    } else {
        regex.capture_names().position(|known| known == Some(name))
    };
    index.filter(|index| *index < regex.captures_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a=1,b=2` as labels.
    fn labels(text: &str) -> LabelSet<'_> {
        let mut set = LabelSet::default();
        for (name, value) in text.split(',').filter_map(|pair| pair.split_once('=')) {
            set.push(Cow::Borrowed(name.as_bytes()), Cow::Borrowed(value.as_bytes()));
        }
        set.settle();
        set
    }

    fn text(set: &LabelSet<'_>) -> String {
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let pairs = set
            .as_slice()
            .iter()
            .map(|label| format!("{}={}", lossy(&label.name), lossy(&label.value)));
        pairs.collect::<Vec<_>>().join(",")
    }

    fn rule(action: Action, source_labels: &[&str], target_label: &str) -> RuleSpec {
        RuleSpec {
            action,
            source_labels: source_labels.iter().map(|&name| name.to_owned()).collect(),
            target_label: target_label.into(),
            ..RuleSpec::default()
        }
    }

    /// With a regex and a replacement.
    fn matching(rule: RuleSpec, regex: &str, replacement: &str) -> RuleSpec {
        RuleSpec {
            regex: regex.into(),
            replacement: replacement.into(),
            ..rule
        }
    }

    fn applied(rules: &[RuleSpec], input: &str) -> Result<String, Outgrown> {
        let mut set = labels(input);
        let fate = Relabel::new(rules)
            .expect("good rules")
            .apply(&mut set, &LabelLimits::default())?;
        Ok(if fate == Fate::Dropped {
            "dropped".into()
        } else {
            text(&set)
        })
    }

    #[test]
    fn each_action_does_what_prometheus_does() {
        use Action::*;
        let replace =
            |source: &[&str], target: &str, regex, to| matching(rule(Replace, source, target), regex, to);
        let modulus = |rule, modulus| RuleSpec { modulus, ..rule };
        for (name, rule, input, expected) in [
            (
                "replace copies by default",
                rule(Replace, &["a"], "t"),
                "a=1",
                "a=1,t=1",
            ),
            (
                "replace joins with ;",
                rule(Replace, &["a", "b"], "t"),
                "a=1,b=2",
                "a=1,b=2,t=1;2",
            ),
            (
                "a label that is not there is empty",
                rule(Replace, &["x", "a"], "t"),
                "a=1",
                "a=1,t=;1",
            ),
            (
                "replace overwrites",
                rule(Replace, &["a"], "b"),
                "a=1,b=2",
                "a=1,b=1",
            ),
            (
                "row 136: the regex is anchored",
                replace(&["a"], "t", "b", "x"),
                "a=abc",
                "a=abc",
            ),
            (
                "groups by number",
                replace(&["a"], "t", "(.)-(.)", "$2$1"),
                "a=x-y",
                "a=x-y,t=yx",
            ),
            (
                "groups by name",
                replace(&["a"], "t", "(?P<n>.).*", "${n}!"),
                "a=xyz",
                "a=xyz,t=x!",
            ),
            (
                "$1x is the group 1x",
                replace(&["a"], "t", "(.*)", "_$1x"),
                "a=1",
                "a=1,t=_",
            ),
            (
                "${1}x is group 1 and x",
                replace(&["a"], "t", "(.*)", "${1}x"),
                "a=1",
                "a=1,t=1x",
            ),
            (
                "$$ is a dollar",
                replace(&["a"], "t", "(.*)", "$$1"),
                "a=1",
                "a=1,t=$1",
            ),
            (
                "a $ that is no group",
                replace(&["a"], "t", "(.*)", "$-${1-$"),
                "a=1",
                "a=1,t=$-${1-$",
            ),
            (
                "a group that there is not",
                replace(&["a"], "t", ".*", "x$7$01"),
                "a=1",
                "a=1,t=x",
            ),
            (
                "a group that took no part",
                replace(&["a"], "t", "(x)?1", "<$1>"),
                "a=1",
                "a=1,t=<>",
            ),
            (
                "row 137: an empty result removes",
                replace(&["x"], "a", "(.*)", "$1"),
                "a=1,b=2",
                "b=2",
            ),
            (
                "the target may have groups",
                replace(&["a"], "t_$1", "(.*)", "v"),
                "a=1",
                "a=1,t_1=v",
            ),
            (
                "a target that is no name",
                replace(&["a"], "$1", "(.*)", "v"),
                "a=1",
                "a=1",
            ),
            (
                "a target with a dot",
                replace(&["a"], "t.u", "(.*)", "v"),
                "a=1",
                "a=1",
            ),
            (
                "no source labels",
                replace(&[], "t", "(.*)", "v"),
                "a=1",
                "a=1,t=v",
            ),
            (
                "a dot matches a line break",
                replace(&["a"], "t", "(.*)", "$1"),
                "a=1\n2",
                "a=1\n2,t=1\n2",
            ),
            (
                "keep keeps",
                matching(rule(Keep, &["a"], ""), "1|2", "$1"),
                "a=2",
                "a=2",
            ),
            (
                "keep drops",
                matching(rule(Keep, &["a"], ""), "1|2", "$1"),
                "a=12",
                "dropped",
            ),
            (
                "drop drops",
                matching(rule(Drop, &["a"], ""), "1.*", "$1"),
                "a=12",
                "dropped",
            ),
            (
                "drop keeps",
                matching(rule(Drop, &["a"], ""), "1", "$1"),
                "a=12",
                "a=12",
            ),
            (
                "keepequal keeps",
                rule(KeepEqual, &["a"], "b"),
                "a=1,b=1",
                "a=1,b=1",
            ),
            (
                "keepequal drops",
                rule(KeepEqual, &["a"], "b"),
                "a=1,b=2",
                "dropped",
            ),
            (
                "dropequal drops",
                rule(DropEqual, &["a", "c"], "b"),
                "a=1,b=1;",
                "dropped",
            ),
            ("dropequal keeps", rule(DropEqual, &["a"], "b"), "a=1", "a=1"),
            (
                "row 136: hashmod of prod",
                modulus(rule(HashMod, &["a"], "t"), 10),
                "a=prod",
                "a=prod,t=3",
            ),
            (
                "row 136: hashmod of a;b",
                modulus(rule(HashMod, &["a", "b"], "t"), 10),
                "a=a,b=b",
                "a=a,b=b,t=4",
            ),
            (
                "row 136: hashmod of my-app",
                modulus(rule(HashMod, &["a"], "t"), 10),
                "a=my-app",
                "a=my-app,t=8",
            ),
            (
                "row 136: hashmod of nothing",
                modulus(rule(HashMod, &["x"], "t"), u64::MAX),
                "a=1",
                "a=1,t=16825458760271544958",
            ),
            ("lowercase", rule(Lowercase, &["a"], "t"), "a=ÀİΣ", "a=ÀİΣ,t=àiσ"),
            ("uppercase", rule(Uppercase, &["a"], "t"), "a=àßᾳ", "a=àßᾳ,t=Àßᾼ"),
            (
                "lowercase of nothing removes",
                rule(Lowercase, &["x"], "a"),
                "a=1,b=2",
                "b=2",
            ),
            (
                "labelmap copies",
                matching(rule(LabelMap, &[], ""), "k_(.*)", "$1"),
                "k_a=1,b=2",
                "a=1,b=2,k_a=1",
            ),
            (
                "labelmap knows dots",
                matching(rule(LabelMap, &[], ""), "(.*)", "k_$1"),
                "a.b=1",
                "a.b=1,k_a.b=1",
            ),
            (
                "labelmap maps a snapshot",
                matching(rule(LabelMap, &[], ""), "(.)", "b$1"),
                "a=1",
                "a=1,ba=1",
            ),
            (
                "labeldrop",
                matching(rule(LabelDrop, &[], ""), "a|b", "$1"),
                "a=1,b=2,ab=3",
                "ab=3",
            ),
            (
                "labelkeep",
                matching(rule(LabelKeep, &[], ""), "a|b", "$1"),
                "a=1,b=2,ab=3",
                "a=1,b=2",
            ),
            (
                "Q24: nothing left is dropped",
                matching(rule(LabelDrop, &[], ""), ".*", "$1"),
                "a=1",
                "dropped",
            ),
        ] {
            assert_eq!(applied(&[rule], input).as_deref(), Ok(expected), "{name}");
        }
    }

    /// Prometheus walks the labels that came, in order, and then those that rules wrote, in the order of writing.
    #[test]
    fn of_several_names_mapped_to_one_the_last_written_wins() {
        use Action::*;
        let first_letter = || matching(rule(LabelMap, &[], ""), "(.).*", "$1");
        let copy = |source: &str, target: &str| rule(Replace, &[source], target);
        let drop = |name| matching(rule(LabelDrop, &[], ""), name, "$1");
        for (name, rules, expected) in [
            ("none was written", vec![], "a=3,ab=2,ac=3"),
            ("one was", vec![copy("ab", "ab")], "a=2,ab=2,ac=3"),
            (
                "two were",
                vec![copy("ac", "ac"), copy("ab", "ab")],
                "a=2,ab=2,ac=3",
            ),
            (
                "written twice, it keeps its place",
                vec![copy("ab", "ab"), copy("ac", "ac"), copy("ab", "ab")],
                "a=3,ab=2,ac=3",
            ),
            (
                "removed and written again, it is the last",
                vec![copy("ab", "ab"), copy("ac", "ac"), drop("ab"), copy("ac", "ab")],
                "a=3,ab=3,ac=3",
            ),
            (
                "removed by an empty value likewise",
                vec![
                    copy("ab", "ab"),
                    copy("x", "ab"),
                    copy("ac", "ac"),
                    copy("a", "ab"),
                ],
                "a=1,ab=1,ac=3",
            ),
        ] {
            let rules = [rules, vec![first_letter()]].concat();
            assert_eq!(
                applied(&rules, "a=1,ab=2,ac=3").as_deref(),
                Ok(expected),
                "{name}"
            );
        }
    }

    #[test]
    fn hashes_are_those_of_the_contract() {
        for (input, hashed) in [
            ("", 16_825_458_760_271_544_958),
            ("prod", 5_240_684_586_149_663_223),
            ("a;b", 2_420_134_994_223_480_074),
            ("my-app", 6_496_242_622_696_822_628),
        ] {
            assert_eq!(hash(input), hashed, "{input}");
        }
    }

    #[test]
    fn rules_run_in_order_and_end_with_a_drop() {
        let first = matching(rule(Action::Replace, &["a"], "b"), "(.*)", "$1$1");
        let second = matching(rule(Action::Drop, &["b"], ""), "11", "$1");
        assert_eq!(
            applied(&[first.clone(), second.clone()], "a=1").as_deref(),
            Ok("dropped")
        );
        assert_eq!(applied(&[second, first], "a=1").as_deref(), Ok("a=1,b=11"));
        assert_eq!(applied(&[], "a=1").as_deref(), Ok("a=1"));
    }

    #[test]
    fn labels_never_outgrow_their_limits() {
        let double = matching(rule(Action::Replace, &["a"], "a"), "(.*)", "$1$1");
        assert_eq!(applied(&vec![double; RULES_MAX], "a=1"), Err(Outgrown::Value));
        let map = matching(rule(Action::LabelMap, &[], ""), "(.*)", "a$1");
        let maps: Vec<RuleSpec> = (0..12)
            .map(|n| matching(map.clone(), "(.*)", &format!("n{n}_$1")))
            .collect();
        assert_eq!(applied(&maps, "a=1"), Err(Outgrown::Count));
        let long = matching(rule(Action::Replace, &["a"], "t$1"), "(.*)", "x");
        assert_eq!(
            applied(&[long], &format!("a={}", "n".repeat(1024))),
            Err(Outgrown::Name)
        );
        let upper = rule(Action::Lowercase, &["a", "a"], "t");
        assert_eq!(
            applied(&[upper], &format!("a={}", "n".repeat(40_000))),
            Err(Outgrown::Value)
        );
    }

    #[test]
    fn rules_that_cannot_be_are_refused() {
        use Action::*;
        let modulus = |rule| RuleSpec { modulus: 1, ..rule };
        for (rule, says) in [
            (rule(Replace, &["a"], ""), "action replace needs a target_label"),
            (rule(HashMod, &["a"], "t"), "modulus above 0"),
            (modulus(rule(HashMod, &["a"], "a-b")), "no label name"),
            (rule(Lowercase, &["a"], "$1"), "no label name"),
            (
                matching(rule(Uppercase, &["a"], "t"), "(.*)", "x"),
                "takes no replacement",
            ),
            (
                matching(rule(LabelMap, &[], ""), "(.*)", "a-$1"),
                "makes no label name",
            ),
            (
                matching(rule(LabelMap, &[], ""), "(.*)", ""),
                "makes no label name",
            ),
            (
                matching(rule(LabelMap, &[], ""), "(.*)", "1$1"),
                "makes no label name",
            ),
            (
                matching(rule(LabelMap, &[], ""), "(.*)", "a${1"),
                "makes no label name",
            ),
            (rule(LabelDrop, &["a"], ""), "takes a regex and nothing else"),
            (rule(LabelKeep, &[], "t"), "takes a regex and nothing else"),
            (
                matching(rule(KeepEqual, &["a"], "t"), "x", "$1"),
                "and nothing else",
            ),
            (modulus(rule(DropEqual, &["a"], "t")), "and nothing else"),
            (matching(rule(Keep, &["a"], ""), "(", "$1"), "unclosed group"),
            (
                matching(rule(Keep, &["a"], ""), &"a".repeat(TEXT_BYTES_MAX + 1), "$1"),
                "longer than",
            ),
            (rule(Keep, &["a"; SOURCE_LABELS_MAX + 1], ""), "source_labels"),
        ] {
            let error = Relabel::new(&[self::rule(Keep, &[], ""), rule]).unwrap_err();
            assert!(
                error.index == 1 && error.problem.contains(says),
                "{says}: {error}"
            );
        }
        let many = vec![rule(Keep, &[], ""); RULES_MAX + 1];
        assert!(
            Relabel::new(&many)
                .unwrap_err()
                .problem
                .contains("128 rules are possible")
        );
        for good in ["$1", "a_$1", "${1}_b", "$name", "a$1$2"] {
            assert!(
                Relabel::new(&[matching(rule(LabelMap, &[], ""), "(.*)(.*)", good)]).is_ok(),
                "{good}"
            );
        }
        assert_eq!(
            rule(Replace, &[], "a.b")
                .note()
                .map(|note| note.contains("'a.b' does nothing")),
            Some(true)
        );
        assert_eq!(rule(Replace, &[], "a_b").note(), None);
    }
}
