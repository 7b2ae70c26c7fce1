//! From the shape of a file to a scenario: every name is resolved, and everything that does not fit is told at once.

mod actions;
mod beside;
mod nodes;
mod steps;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::file::{ConditionsFile, File, LinkFile, On};
use super::model::{Cable, Conditions, Network, Node, Scenario};
use super::words::{Name, Span};
use crate::scenario::problems::{Part, Problems, spot};
use crate::spec::{check_schema, parse};

/// The limit of a run that says none.
const LIMIT: Span = Span::secs(600);
/// More would not fit into one machine, and the switch is made for so many.
const MOST_NODES: usize = 100;
/// So many steps, faults or cards are a mistake.
const MOST: usize = 10_000;

/// Words that stand for nodes, so no node is called so.
const ALL: &str = "all";
const EVERY: &str = "every";

/// Reads the scenario `name` from the `text` of `file`; `machines` are the profiles that are no product.
pub(super) fn read(name: &str, file: &str, text: &str, machines: &BTreeSet<String>) -> Result<Scenario> {
    check_schema(file, text)?;
    let shape: File = parse(file, text)?;
    let mut problems = Problems::new(file, text);
    let networks = nodes::networks(&shape, &mut problems);
    let nodes = nodes::nodes(name, &shape, &networks, machines, &mut problems);
    let place = Place { networks: &networks, nodes: &nodes };
    for (what, count) in
        [("steps", shape.step.len()), ("faults", shape.fault.len()), ("links", shape.link.len())]
    {
        if count > MOST {
            problems.add(spot![], format!("{count} {what} are too many: {MOST} is the most"));
        }
    }
    let links = beside::links(&shape, place, &mut problems);
    let steps = steps::steps(&shape, place, &mut problems);
    let faults = beside::faults(&shape, place, &steps, &mut problems);
    let invariants = beside::invariants(&shape, place, &mut problems);
    let allow = beside::allow(&shape, place, &mut problems);
    let limit = shape.limit.unwrap_or(LIMIT);
    if shape.description.trim().is_empty() {
        problems.add(spot!["description"], "the description is empty").hint("say what the scenario proves");
    }
    if let Some(failure) = problems.failure() {
        return Err(failure.into());
    }
    Ok(Scenario {
        name: name.to_owned(),
        file: file.to_owned(),
        text: text.to_owned(),
        description: shape.description.trim().to_owned(),
        limit,
        seed: shape.seed.unwrap_or(1),
        networks,
        nodes,
        links,
        steps,
        left_out: Vec::new(),
        faults,
        invariants,
        allow,
    })
}

/// What names are looked up in.
#[derive(Clone, Copy)]
struct Place<'a> {
    networks: &'a BTreeMap<Name, Network>,
    nodes: &'a BTreeMap<Name, Node>,
}

impl<'a> Place<'a> {
    /// The node `name`.
    fn node(&self, name: &str, spot: Vec<Part>, problems: &mut Problems<'_>) -> Option<&'a Node> {
        let node = self.nodes.get(name);
        if node.is_none() {
            let known = self.nodes.keys().map(Name::as_str);
            problems.add(spot, format!("there is no node `{name}`")).near(name, known);
        }
        node
    }

    /// The cable of `node` on the network, or its only one.
    fn cable(
        &self,
        node: &Node,
        network: Option<&str>,
        spot: Vec<Part>,
        problems: &mut Problems<'_>,
    ) -> Option<Cable> {
        let mut cables = node.cables();
        let Some(wanted) = network else {
            return match (cables.next(), cables.next()) {
                (Some(only), None) => Some(only),
                (None, _) => {
                    problems.add(spot, format!("`{}` has no network card", node.name));
                    None
                }
                (Some(_), Some(_)) => {
                    let known: Vec<&str> = node.nics.iter().map(|nic| nic.network.as_str()).collect();
                    problems
                        .add(spot, format!("`{}` has several network cards: which one is meant?", node.name))
                        .hint(format!("write `network` with one of {}", known.join(", ")));
                    None
                }
            };
        };
        let found = cables.find(|cable| cable.network == *wanted);
        if found.is_none() && !self.networks.contains_key(wanted) {
            let known = self.networks.keys().map(Name::as_str);
            problems.add(spot, format!("there is no network `{wanted}`")).near(wanted, known);
        } else if found.is_none() {
            let known = node.nics.iter().map(|nic| nic.network.as_str());
            problems
                .add(spot, format!("`{}` has no card on the network `{wanted}`", node.name))
                .near(wanted, known);
        }
        found
    }
}

/// What the nodes of a step are called where the file says nothing.
fn default_on() -> On {
    On(vec![ALL.to_owned()])
}

macro_rules! conditions_of {
    ($($type:ty),*) => {$(
        impl From<&$type> for Conditions {
            fn from(file: &$type) -> Self {
                Conditions {
                    cut: file.cut.0,
                    loss: file.loss,
                    delay: file.delay,
                    jitter: file.jitter,
                    duplicate: file.duplicate,
                    rate: file.rate,
                }
            }
        }
    )*};
}
conditions_of!(LinkFile, ConditionsFile);

/// The longest that a cable may hold a frame: more is a cut, and would fill the memory.
const LONGEST_DELAY: Span = Span::secs(60);

/// Conditions that make sense.
fn conditions(from: impl Into<Conditions>, spot: &[Part], problems: &mut Problems<'_>) -> Conditions {
    let conditions: Conditions = from.into();
    for (key, span) in [("delay", conditions.delay), ("jitter", conditions.jitter)] {
        if span > LONGEST_DELAY {
            let spot = [spot, &spot![key]].concat();
            problems.add(spot, format!("a {key} of {span} is longer than {LONGEST_DELAY}"));
        }
    }
    conditions
}
