//! What is not done step by step: cables, faults, invariants, findings that are let pass.

use std::collections::BTreeSet;

use super::actions::{is_script, not_empty};
use super::{ALL, EVERY, Place, conditions, default_on};
use crate::scenario::problems::{Part, Problems, spot};
use crate::scenario::spec::file::{FaultFile, FaultWord, File, On};
use crate::scenario::spec::model::{Allow, Expect, Fault, FaultKind, Invariant, Link, Nodes, Step, When};
use crate::scenario::spec::text::Text;
use crate::scenario::spec::words::{Name, Span};

/// A node must have time to come back.
const LEAST_EVERY: Span = Span::secs(1);
const MOST_FAULTS: u32 = 100_000;
const INVARIANT: Span = Span::secs(30);

pub(super) fn links(shape: &File, place: Place<'_>, problems: &mut Problems<'_>) -> Vec<Link> {
    let mut links: Vec<Link> = Vec::new();
    for (index, file) in shape.link.iter().enumerate() {
        let conditions = conditions(file, &spot!["link", index], problems);
        let Some(node) = place.node(&file.node, spot!["link", index, "node"], problems) else { continue };
        let spot = spot!["link", index, if file.network.is_some() { "network" } else { "node" }];
        let Some(cable) = place.cable(node, file.network.as_deref(), spot.clone(), problems) else {
            continue;
        };
        if links.iter().any(|link| link.cable == cable) {
            problems.add(spot, format!("the cable {cable} is described twice"));
        }
        links.push(Link { cable, conditions, pcap: file.pcap });
    }
    links
}

pub(super) fn faults(
    shape: &File,
    place: Place<'_>,
    steps: &[Step],
    problems: &mut Problems<'_>,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (index, file) in shape.fault.iter().enumerate() {
        let when = when(index, file, steps, problems);
        let Some(node) = place.node(&file.node, spot!["fault", index, "node"], problems) else { continue };
        if node.doomed {
            let text = format!("`{}` is doomed and never gets ready: a fault would tell nothing", node.name);
            problems.add(spot!["fault", index, "node"], text);
        }
        let lasting = matches!(file.kind, FaultWord::Pause | FaultWord::Link);
        let lasts = match file.lasts {
            Some(lasts) if lasting && lasts > Span::default() => lasts,
            Some(_) if lasting => {
                problems.add(spot!["fault", index, "for"], "a fault of no time is none");
                continue;
            }
            Some(_) => {
                let spot = spot!["fault", index, Part::Name("for".to_owned())];
                problems.add(
                    spot,
                    "only a pause and the change of a cable last: `for` does not go with this kind",
                );
                continue;
            }
            None if lasting => {
                let text = "nobody says how long this lasts";
                problems.add(spot!["fault", index, "kind"], text).hint("write `for = \"10s\"`");
                continue;
            }
            None => Span::default(),
        };
        let kind = match (file.kind, &file.link) {
            (FaultWord::Link, Some(link)) => {
                let conditions = conditions(link, &spot!["fault", index, "link"], problems);
                let key = if link.network.is_some() {
                    spot!["fault", index, "link", "network"]
                } else {
                    spot!["fault", index, "node"]
                };
                let Some(cable) = place.cable(node, link.network.as_deref(), key, problems) else { continue };
                FaultKind::Link { cable, conditions, lasts }
            }
            (FaultWord::Link, None) => {
                let text = "nobody says what becomes of the cable";
                problems.add(spot!["fault", index, "kind"], text).hint("write `link = { cut = true }`");
                continue;
            }
            (_, Some(_)) => {
                let spot = spot!["fault", index, Part::Name("link".to_owned())];
                problems.add(spot, "`link` goes with `kind = \"link\"` only");
                continue;
            }
            (FaultWord::PowerCut, None) => FaultKind::PowerCut,
            (FaultWord::Reboot, None) => FaultKind::Reboot,
            (FaultWord::Crash, None) => FaultKind::Crash,
            (FaultWord::Pause, None) => FaultKind::Pause { lasts },
        };
        if let Some(when) = when {
            faults.push(Fault { when, node: node.name.clone(), kind });
        }
    }
    faults
}

fn when(index: usize, file: &FaultFile, steps: &[Step], problems: &mut Problems<'_>) -> Option<When> {
    match (file.at, &file.after, file.random) {
        (Some(at), None, None) => Some(When::At(at)),
        (None, Some(name), None) => {
            let found = steps.iter().position(|step| !step.implied && step.name == name.trim());
            if found.is_none() {
                let known = steps.iter().filter(|step| !step.implied).map(|step| step.name.as_str());
                let problem = problems.add(
                    spot!["fault", index, "after"],
                    format!("there is no step `{}`", name.escape_debug()),
                );
                if let Some(near) = crate::spec::nearest(name, known) {
                    problem.hint(format!("did you mean `{near}`?"));
                }
            }
            found.map(When::After)
        }
        (None, None, Some(random)) => {
            if random.every < LEAST_EVERY {
                let text = format!("a fault every {}: give at least {LEAST_EVERY}", random.every);
                problems.add(spot!["fault", index, "random", "every"], text);
            }
            if !(1..=MOST_FAULTS).contains(&random.count) {
                let text = format!("{} faults: give 1 to {MOST_FAULTS}", random.count);
                problems.add(spot!["fault", index, "random", "count"], text);
            }
            Some(When::Random { first: random.first, every: random.every, count: random.count })
        }
        _ => {
            let text = "a fault has exactly one of `at`, `after` and `random`";
            problems
                .add(spot!["fault", index], text)
                .hint("write `at = \"30s\"`: so long after all nodes were ready");
            None
        }
    }
}

pub(super) fn invariants(shape: &File, place: Place<'_>, problems: &mut Problems<'_>) -> Vec<Invariant> {
    let saves: BTreeSet<&str> =
        shape.step.iter().filter_map(|step| step.save.as_ref()).map(Name::as_str).collect();
    let text = |source: &str| Text::new(source, &|name| saves.contains(name));
    let mut invariants: Vec<Invariant> = Vec::new();
    for (index, file) in shape.invariant.iter().enumerate() {
        not_empty(&file.name, spot!["invariant", index, "name"], problems);
        is_script(&file.run, spot!["invariant", index, "run"], problems);
        if invariants.iter().any(|other| other.name == file.name.trim()) {
            let text = format!("two invariants are called `{}`", file.name.escape_debug());
            problems.add(spot!["invariant", index, "name"], text);
        }
        let invariant = Invariant {
            name: file.name.trim().to_owned(),
            on: match on(index, file.on.clone().unwrap_or_else(default_on), place, problems) {
                Some(on) => on,
                None => continue,
            },
            run: text(&file.run),
            expect: Expect {
                fails: file.fails,
                stdout: file.stdout.as_deref().map(text),
                matches: file.matches.clone(),
                equal: None,
            },
            limit: file.limit.unwrap_or(INVARIANT),
        };
        for (key, text) in [("run", Some(&invariant.run)), ("stdout", invariant.expect.stdout.as_ref())] {
            if let Some(name) = text.and_then(|text| text.references().next()) {
                let text = format!(
                    "`{{{name}}}` is saved by a step, and an invariant is asked before the first one, too"
                );
                problems.add(spot!["invariant", index, key], text);
            }
        }
        invariants.push(invariant);
    }
    invariants
}

/// The nodes of an invariant: those that can ever be up.
fn on(index: usize, words: On, place: Place<'_>, problems: &mut Problems<'_>) -> Option<Nodes> {
    let mut names = Vec::new();
    for (item, word) in words.0.iter().enumerate() {
        let spot = spot!["invariant", index, "on", item];
        if [ALL, EVERY].contains(&word.as_str()) {
            let meant = place.nodes.values().filter(|n| (n.product || word == EVERY) && !n.doomed);
            names.extend(meant.map(|node| node.name.clone()));
            continue;
        }
        let node = place.node(word, spot.clone(), problems)?;
        if node.doomed {
            problems.add(spot, format!("`{word}` is doomed and never up"));
            return None;
        }
        names.push(node.name.clone());
    }
    let nodes = Nodes::new(names);
    if nodes.is_none() {
        problems.add(spot!["invariant", index, "on"], "the invariant is for no node");
    }
    nodes
}

pub(super) fn allow(shape: &File, place: Place<'_>, problems: &mut Problems<'_>) -> Vec<Allow> {
    let mut list = Vec::new();
    for (index, file) in shape.allow.iter().enumerate() {
        not_empty(&file.reason, spot!["allow", index, "reason"], problems);
        let node = match &file.node {
            Some(name) => match place.node(name, spot!["allow", index, "node"], problems) {
                Some(node) => Some(node.name.clone()),
                None => continue,
            },
            None => None,
        };
        list.push(Allow {
            pattern: file.pattern.clone(),
            node,
            reason: file.reason.trim().to_owned(),
            until: file.until.clone(),
        });
    }
    list
}
