//! The attributes and blocks of one body, taken by name and type. What nobody took is unknown, and told so with what there
//! is. Mistakes are collected, so that an operator mends all of them in one go.

use std::time::Duration;

use super::parser::{Attribute, Block, Body, Kind, Value};
use super::{Mistake, Place};

/// What is left of a body.
pub(super) struct Fields<'b> {
    /// What a person calls it: `endpoint of pyroscope.write "eu"`.
    what: String,
    /// Where it stands.
    pub(super) place: Place,
    attributes: Vec<&'b Attribute>,
    blocks: Vec<&'b Block>,
    known: Vec<&'static str>,
}

impl<'b> Fields<'b> {
    /// All of a block.
    pub(super) fn of(what: String, block: &'b Block) -> Self {
        Self::new(what, block.place, &block.body)
    }

    /// What a person calls it.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// All of a body.
    pub(super) fn new(what: String, place: Place, body: &'b Body) -> Self {
        Self {
            what,
            place,
            attributes: body.attributes.iter().collect(),
            blocks: body.blocks.iter().collect(),
            known: Vec::new(),
        }
    }

    /// Attributes alone.
    pub(super) fn of_attributes(what: String, place: Place, attributes: &'b [Attribute]) -> Self {
        Self {
            what,
            place,
            attributes: attributes.iter().collect(),
            blocks: Vec::new(),
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

    /// A duration as Go writes it: `30s`, `1m30s`, `1.5h`.
    pub(super) fn duration(
        &mut self,
        name: &'static str,
        mistakes: &mut Vec<Mistake>,
    ) -> Option<(Duration, Place)> {
        let (text, place) = self.text(name, mistakes)?;
        match go_duration(text) {
            Some(duration) => Some((duration, place)),
            None => {
                let problem =
                    format!("{name} must be a duration such as \"30s\" or \"1m30s\", at most 10 years");
                mistakes.push(Mistake::new(place, problem));
                None
            }
        }
    }

    /// A whole number, which may also stand in a string.
    pub(super) fn whole(&mut self, name: &'static str, mistakes: &mut Vec<Mistake>) -> Option<(i64, Place)> {
        let value = self.take(name)?;
        // 2^53: beyond it a number is not exact.
        const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
        let number = match &value.kind {
            Kind::Number(number, _) => Some(*number),
            Kind::Text(text) => text.parse::<f64>().ok(),
            _ => None,
        };
        match number {
            #[allow(clippy::cast_possible_truncation)] // whole and within 2^53, checked
            Some(number) if number.fract() == 0.0 && number.abs() <= EXACT_MAX => {
                Some((number as i64, value.place))
            }
            _ => {
                mistakes.push(wrong_type(name, "a whole number", value));
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn truth(&mut self, name: &'static str, mistakes: &mut Vec<Mistake>) -> Option<(bool, Place)> {
        let value = self.take(name)?;
        match value.kind {
            Kind::Truth(truth) => Some((truth, value.place)),
            _ => {
                mistakes.push(wrong_type(name, "true or false", value));
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

    /// An object: names, values and where they stand.
    pub(super) fn object(&mut self, name: &'static str, mistakes: &mut Vec<Mistake>) -> &'b [Attribute] {
        match self.take(name) {
            None => &[],
            Some(Value {
                kind: Kind::Object(pairs),
                ..
            }) => pairs,
            Some(value) => {
                mistakes.push(wrong_type(name, "an object such as { key = \"value\" }", value));
                &[]
            }
        }
    }

    /// Blocks of one name, in order.
    pub(super) fn blocks(&mut self, name: &'static str) -> Vec<&'b Block> {
        self.known.push(name);
        let (taken, left) = self.blocks.iter().partition(|block| block.name == name);
        self.blocks = left;
        taken
    }

    /// The one block of a name that may be there once.
    pub(super) fn block(&mut self, name: &'static str, mistakes: &mut Vec<Mistake>) -> Option<&'b Block> {
        let blocks = self.blocks(name);
        if let [_, second, ..] = &*blocks {
            let problem = format!("a second {name} block in {}; remove one", self.what);
            mistakes.push(Mistake::new(second.place, problem));
        }
        blocks.first().copied()
    }

    /// Takes an attribute or block away and says that it cannot be had.
    pub(super) fn refuse(&mut self, name: &'static str, why: &str, mistakes: &mut Vec<Mistake>) {
        let places: Vec<Place> = self.places_of(name);
        self.take(name);
        self.blocks(name);
        self.known.retain(|known| *known != name);
        let told = places
            .into_iter()
            .map(|place| Mistake::new(place, format!("{name} {why}")));
        mistakes.extend(told);
    }

    /// Takes an attribute or block away that makes no difference here; where it stood.
    pub(super) fn ignore(&mut self, name: &'static str) -> Option<Place> {
        let place = self.places_of(name).first().copied();
        self.take(name);
        self.blocks(name);
        place
    }

    /// Tells what nobody has taken.
    pub(super) fn finish(self, mistakes: &mut Vec<Mistake>) {
        let Self { what, known, .. } = &self;
        let attributes = self
            .attributes
            .iter()
            .map(|one| (&one.name, one.place, "attribute"));
        let blocks = self.blocks.iter().map(|one| (&one.name, one.place, "block"));
        for (name, place, kind) in attributes.chain(blocks) {
            let problem = if known.contains(&name.as_str()) {
                format!("{name} in {what} is no {kind}; see the page of Alloy's component")
            } else {
                format!("unknown {kind} {name} in {what}; known: {}", known.join(", "))
            };
            mistakes.push(Mistake::new(place, problem));
        }
    }

    fn places_of(&self, name: &str) -> Vec<Place> {
        let attributes = self
            .attributes
            .iter()
            .filter(|one| one.name == name && one.value.kind != Kind::Null)
            .map(|one| one.place);
        let blocks = self
            .blocks
            .iter()
            .filter(|one| one.name == name)
            .map(|one| one.place);
        attributes.chain(blocks).collect()
    }
}

/// The text of a value that must be one, or a number, which Alloy's syntax writes out.
pub(super) fn text_of<'v>(value: &'v Value, name: &str, mistakes: &mut Vec<Mistake>) -> Option<&'v str> {
    match &value.kind {
        Kind::Text(text) | Kind::Number(_, text) => Some(text),
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

/// A duration in Go's notation, not negative, at most 10 years; `None` for anything else.
fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 7] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    const SECONDS_MAX: f64 = 10.0 * 365.0 * 86_400.0;
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds += number.parse::<f64>().ok()? * factor;
        rest = after;
    }
    (!text.is_empty() && seconds <= SECONDS_MAX).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (text, millis) in [
            ("30s", Some(30_000.0)),
            ("1m30s", Some(90_000.0)),
            ("1.5h", Some(5_400_000.0)),
            ("100ms", Some(100.0)),
            ("500us", Some(0.5)),
            ("0", Some(0.0)),
            ("0s", Some(0.0)),
            ("+1s", Some(1000.0)),
            ("", None),
            ("30", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1..5s", None),
            ("1s ", None),
            ("100000h", None),
        ] {
            let read = go_duration(text).map(|duration| duration.as_secs_f64() * 1e3);
            assert_eq!(read, millis, "{text}");
        }
    }
}
