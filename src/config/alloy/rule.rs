//! One relabel rule: the attributes of a `rule` block, which are also what a `--relabel` says.

use super::fields::Fields;
use super::parser::parse_pairs;
use super::{Mistake, Place};
use crate::profile::relabel::{Action, RuleSpec};

/// Reads the value of a `--relabel`: what stands in a `rule` block of Alloy, the attributes separated by commas or line
/// breaks.
///
/// # Errors
/// Everything that is wrong, with its place in the text.
pub fn parse(text: &str) -> Result<RuleSpec, Vec<Mistake>> {
    let start = Place { line: 1, column: 1 };
    let attributes = parse_pairs(text).map_err(|mistake| vec![mistake])?;
    let mut mistakes = Vec::new();
    if attributes.is_empty() {
        mistakes.push(Mistake::new(
            start,
            "is empty; write a rule such as action = \"drop\", source_labels = [\"a\"]",
        ));
    }
    let rule = read(
        Fields::of_attributes("a rule".into(), start, &attributes),
        &mut mistakes,
    );
    if mistakes.is_empty() {
        Ok(rule)
    } else {
        Err(mistakes)
    }
}

/// Takes a rule out of its fields. What is missing or wrong has the default of Alloy.
pub(super) fn read(mut fields: Fields<'_>, mistakes: &mut Vec<Mistake>) -> RuleSpec {
    let mut rule = RuleSpec::default();
    if let Some((text, place)) = fields.text("action", mistakes) {
        match Action::parse(text) {
            Some(action) => rule.action = action,
            None => {
                let known = Action::ALL.map(|(_, name)| name).join(", ");
                mistakes.push(Mistake::new(
                    place,
                    format!("unknown action '{text}'; known: {known}"),
                ));
            }
        }
    }
    if let Some(names) = fields.texts("source_labels", mistakes) {
        rule.source_labels = names;
    }
    if let Some((number, place)) = fields.whole("modulus", mistakes) {
        match u64::try_from(number) {
            Ok(number) => rule.modulus = number,
            Err(_) => mistakes.push(Mistake::new(place, "modulus must be above 0")),
        }
    }
    for (name, part) in [
        ("separator", &mut rule.separator),
        ("regex", &mut rule.regex),
        ("replacement", &mut rule.replacement),
        ("target_label", &mut rule.target_label),
    ] {
        if let Some((text, _)) = fields.text(name, mistakes) {
            text.clone_into(part);
        }
    }
    fields.finish(mistakes);
    rule
}

/// The attributes as a `--relabel` would have them, for those that differ from the default.
pub fn show(rule: &RuleSpec) -> String {
    let usual = RuleSpec::default();
    let mut parts = vec![format!("action = \"{}\"", rule.action)];
    if !rule.source_labels.is_empty() {
        let names: Vec<String> = rule.source_labels.iter().map(|name| quote(name)).collect();
        parts.push(format!("source_labels = [{}]", names.join(", ")));
    }
    for (name, text, usual) in [
        ("separator", &rule.separator, &usual.separator),
        ("regex", &rule.regex, &usual.regex),
        ("target_label", &rule.target_label, &usual.target_label),
        ("replacement", &rule.replacement, &usual.replacement),
    ] {
        if text != usual {
            parts.push(format!("{name} = {}", quote(text)));
        }
    }
    if rule.modulus != 0 {
        parts.push(format!("modulus = {}", rule.modulus));
    }
    parts.join(", ")
}

/// A string as the syntax has it, on one line.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out += &format!("\\u{:04x}", c as u32),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_shown() {
        for (text, shown) in [
            (
                "action = \"drop\", source_labels = [\"a\", \"b\"], regex = \"x,y|z\"",
                "",
            ),
            (
                "action = \"replace\", target_label = \"t\", replacement = \"$1,$2\"",
                "",
            ),
            (
                "action = \"hashmod\", source_labels = [\"a\"], separator = \"|\", target_label = \"t\", modulus = 10",
                "",
            ),
            (
                "regex = \"a\\tb\", action = \"keep\"",
                "action = \"keep\", regex = \"a\\u0009b\"",
            ),
            (
                "source_labels = [\"a\"]\ntarget_label = `t`\n",
                "action = \"replace\", source_labels = [\"a\"], target_label = \"t\"",
            ),
            (
                "regex = `\\d+`, action = \"labeldrop\",",
                "action = \"labeldrop\", regex = \"\\\\d+\"",
            ),
        ] {
            let rule = parse(text).unwrap();
            assert_eq!(show(&rule), if shown.is_empty() { text } else { shown });
            assert_eq!(
                parse(&show(&rule)).unwrap(),
                rule,
                "what is shown reads back the same"
            );
        }
    }

    #[test]
    fn wrong_rules_are_told() {
        for (text, says) in [
            ("", "1:1 is empty"),
            (
                "action = \"Drop\"",
                "1:10 unknown action 'Drop'; known: replace, keep",
            ),
            (
                "action = drop",
                "1:10 action must be a string; drop belongs to a component",
            ),
            (
                "source_labels = \"a\"",
                "1:17 source_labels must be a list of strings",
            ),
            (
                "source_labels = [true]",
                "1:18 source_labels must be a string, not true or false",
            ),
            ("modulus = 1.5", "1:11 modulus must be a whole number"),
            ("modulus = -1", "1:11 modulus must be above 0"),
            (
                "colour = \"red\"",
                "1:1 unknown attribute colour in a rule; known: action, source_labels",
            ),
            ("action=drop,source=a", "1:8 action must be a string"),
        ] {
            let mistakes = parse(text).unwrap_err();
            let told: Vec<String> = mistakes
                .iter()
                .map(|one| format!("{} {}", one.place, one.problem))
                .collect();
            assert!(told.iter().any(|one| one.starts_with(says)), "{text}: {told:?}");
        }
    }
}
