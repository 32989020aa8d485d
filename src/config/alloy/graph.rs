//! Who forwards to whom: from receivers, through relabel components, to writes. pyrotee has one list of rules and one set of
//! destinations for all listeners; a graph that needs more is refused by name.

use super::blocks::{Receiver, Rules, Write};
use super::{Mistake, Place};
use crate::profile::relabel::RuleSpec;

/// Most ways from one receiver to its writes.
const WAYS_MAX: usize = 64;

/// The components of a file.
pub(super) struct Graph<'f> {
    pub(super) receivers: &'f [Receiver],
    pub(super) rules: &'f [Rules],
    pub(super) writes: &'f [Write],
}

/// Where everything goes.
#[derive(Debug, Default)]
pub(super) struct Routes<'f> {
    /// The rules on the way, in order.
    pub(super) rules: Vec<RuleSpec>,
    /// The writes reached, in order.
    pub(super) writes: Vec<&'f Write>,
    /// The relabel components passed.
    pub(super) passed: Vec<&'f Rules>,
}

/// A way from a receiver: the relabel components on it, and its write.
struct Way<'f> {
    passed: Vec<&'f Rules>,
    write: &'f Write,
}

impl<'f> Graph<'f> {
    /// Follows every receiver. What is wrong or cannot be done goes to `mistakes`.
    pub(super) fn routes(&self, mistakes: &mut Vec<Mistake>) -> Routes<'f> {
        let mut first: Option<(&Receiver, Routes<'f>)> = None;
        for receiver in self.receivers {
            let mut ways = Vec::new();
            self.follow(&receiver.forward_to, &mut Vec::new(), &mut ways, mistakes);
            let routes = one_route(receiver, ways, mistakes);
            match &first {
                None => first = Some((receiver, routes)),
                Some((other, known)) => {
                    if known.rules != routes.rules || !same_writes(&known.writes, &routes.writes) {
                        let problem = format!(
                            "{} forwards elsewhere than {}: pyrotee sends everything to all destinations, through the same \
                             rules. Give both the same forward_to, or run a pyrotee for each",
                            receiver.what, other.what
                        );
                        mistakes.push(Mistake::new(receiver.place, problem));
                    }
                }
            }
        }
        first.map(|(_, routes)| routes).unwrap_or_default()
    }

    fn follow(
        &self,
        forward_to: &[(String, Place)],
        passed: &mut Vec<&'f Rules>,
        ways: &mut Vec<Way<'f>>,
        mistakes: &mut Vec<Mistake>,
    ) {
        for (to, place) in forward_to {
            let target = to.strip_suffix(".receiver").unwrap_or_default();
            let component = target
                .split_once("pyroscope.")
                .map_or("", |(_, component)| component);
            if let Some(label) = component.strip_prefix("write.")
                && let Some(write) = self.writes.iter().find(|write| write.label == label)
            {
                if ways.len() == WAYS_MAX {
                    let problem = format!("more than {WAYS_MAX} ways from a receiver to its writes");
                    mistakes.push(Mistake::new(*place, problem));
                    return;
                }
                ways.push(Way {
                    passed: passed.clone(),
                    write,
                });
            } else if let Some(label) = component.strip_prefix("relabel.")
                && let Some(rules) = self.rules.iter().find(|rules| rules.label == label)
            {
                if passed.iter().any(|other| other.label == rules.label) {
                    let problem = format!("pyroscope.relabel \"{label}\" forwards to itself in the end");
                    mistakes.push(Mistake::new(*place, problem));
                    return;
                }
                if ways.len() > WAYS_MAX {
                    return;
                }
                passed.push(rules);
                self.follow(&rules.forward_to, passed, ways, mistakes);
                passed.pop();
            } else {
                let problem = format!(
                    "nothing here is {to}; forward_to takes pyroscope.write.LABEL.receiver and \
                     pyroscope.relabel.LABEL.receiver of components in this file"
                );
                mistakes.push(Mistake::new(*place, problem));
            }
        }
    }
}

/// All ways of a receiver as one: the same rules on each, no write twice.
fn one_route<'f>(receiver: &Receiver, ways: Vec<Way<'f>>, mistakes: &mut Vec<Mistake>) -> Routes<'f> {
    let mut routes = Routes::default();
    let rules_of = |way: &Way<'_>| {
        way.passed
            .iter()
            .flat_map(|rules| rules.rules.clone())
            .collect::<Vec<_>>()
    };
    for (index, way) in ways.iter().enumerate() {
        let rules = rules_of(way);
        if index == 0 {
            routes.rules = rules;
        } else if routes.rules != rules {
            let problem = format!(
                "from {} to pyroscope.write \"{}\" there are other relabel rules than to \"{}\": pyrotee has one list of \
                 rules for all destinations. Run a pyrotee for each list",
                receiver.what, way.write.label, ways[0].write.label
            );
            mistakes.push(Mistake::new(way.write.place, problem));
        }
        if routes.writes.iter().any(|write| write.label == way.write.label) {
            let problem = format!(
                "{} reaches pyroscope.write \"{}\" in two ways, which sends every profile twice; remove one",
                receiver.what, way.write.label
            );
            mistakes.push(Mistake::new(receiver.place, problem));
        } else {
            routes.writes.push(way.write);
        }
        routes.passed.extend(&way.passed);
    }
    routes
}

fn same_writes(some: &[&Write], others: &[&Write]) -> bool {
    let has = |all: &[&Write], one: &Write| all.iter().any(|other| other.label == one.label);
    some.len() == others.len() && some.iter().all(|one| has(others, one))
}
