//! The attributes of one body, taken by name and type. What nobody took is unknown, and told so with what there
//! is. Mistakes are collected, so that an operator mends all of them in one go.

use super::parser::{Attribute, Kind, Value};
use super::{Mistake, Place};

/// What is left of them.
pub(super) struct Fields<'b> {
    /// What a person calls it: `a rule`.
    what: String,
    attributes: Vec<&'b Attribute>,
    known: Vec<&'static str>,
}

impl<'b> Fields<'b> {
    /// Attributes alone.
    pub(super) fn of_attributes(what: String, attributes: &'b [Attribute]) -> Self {
        Self {
            what,
            attributes: attributes.iter().collect(),
            known: Vec::new(),
        }
    }

    /// A value of any type; `null` is as if it were not there.
    pub(super) fn take(&mut self, name: &'static str) -> Option<&'b Value> {
        self.known.push(name);
        let at = self.attributes.iter().position(|one| one.name == name)?;
        let value = &self.attributes.remove(at).value;
        (value.kind != Kind::Null).then_some(value)
    }

    /// A string and its place.
    pub(super) fn text(
        &mut self,
        name: &'static str,
        mistakes: &mut Vec<Mistake>,
    ) -> Option<(&'b str, Place)> {
        let value = self.take(name)?;
        let text = text_of(value, name, mistakes)?;
        Some((text, value.place))
    }

    /// A whole number.
    pub(super) fn whole(&mut self, name: &'static str, mistakes: &mut Vec<Mistake>) -> Option<(i64, Place)> {
        let value = self.take(name)?;
        // 2^53: beyond it a number is not exact.
        const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
        match value.kind {
            #[allow(clippy::cast_possible_truncation)] // whole and within 2^53, checked
            Kind::Number(number) if number.fract() == 0.0 && number.abs() <= EXACT_MAX => {
                Some((number as i64, value.place))
            }
            _ => {
                mistakes.push(wrong_type(name, "a whole number", value));
                None
            }
        }
    }

    /// A list of strings.
    pub(super) fn texts(&mut self, name: &'static str, mistakes: &mut Vec<Mistake>) -> Option<Vec<String>> {
        let value = self.take(name)?;
        let Kind::List(list) = &value.kind else {
            mistakes.push(wrong_type(
                name,
                "a list of strings, such as [\"a\", \"b\"]",
                value,
            ));
            return None;
        };
        let texts = list
            .iter()
            .filter_map(|one| text_of(one, name, mistakes).map(str::to_owned));
        Some(texts.collect())
    }

    /// Tells what nobody has taken.
    pub(super) fn finish(self, mistakes: &mut Vec<Mistake>) {
        let Self { what, known, .. } = &self;
        for Attribute { name, place, .. } in &self.attributes {
            let problem = format!("unknown attribute {name} in {what}; known: {}", known.join(", "));
            mistakes.push(Mistake::new(*place, problem));
        }
    }
}

/// The text of a value that must be one.
pub(super) fn text_of<'v>(value: &'v Value, name: &str, mistakes: &mut Vec<Mistake>) -> Option<&'v str> {
    match &value.kind {
        Kind::Text(text) => Some(text),
        _ => {
            mistakes.push(wrong_type(name, "a string", value));
            None
        }
    }
}

/// A value of another type than wanted. It does not repeat the value, which may be a secret.
pub(super) fn wrong_type(name: &str, wanted: &str, value: &Value) -> Mistake {
    let problem = match &value.kind {
        Kind::Reference(to) => {
            format!(
                "{name} must be {wanted}; {to} belongs to a component that is not part of pyrotee, write its value"
            )
        }
        kind => format!("{name} must be {wanted}, not {}", kind.name()),
    };
    Mistake::new(value.place, problem)
}
