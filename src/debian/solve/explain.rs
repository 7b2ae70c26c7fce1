//! Why there is no solution, in words.

use std::collections::{BTreeMap, VecDeque};

use super::super::relation::{Alternatives, Relation};
use super::choice::{Choice, Scope};
use super::universe::{Id, Universe};

/// `; did you mean a, b?`, or nothing.
pub(super) fn did_you_mean(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) }
}

/// Names of real packages like `name`, best first, at most three.
pub(super) fn near_names(universe: &Universe, name: &str) -> Vec<String> {
    const LIKE_ENOUGH: f64 = 0.85;
    let mut scored: Vec<(f64, &str)> = universe
        .names()
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(score, _)| *score > LIKE_ENOUGH)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

/// Who brought a package in: the package above it and its relation, or the text of a root's reason.
enum Above {
    Package(Id, String),
    Root(String),
}

struct Forced {
    above: Above,
    /// Every candidate that could have satisfied the relation.
    able: Vec<Id>,
}

/// The reason in one sentence with the way to it. Looks at what is forced: roots, and relations that only one package
/// (in whatever version) can satisfy. If the reason hides behind a free choice, resolvo's own account `tree` is given.
pub(super) fn explain(scope: &Scope<'_>, tree: &str) -> String {
    let mut forced: BTreeMap<Id, Forced> = BTreeMap::new();
    let mut queue = VecDeque::new();
    for (name, reasons) in &scope.roots {
        let why = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
        let able = scope.root_choice(name);
        match able.first().copied() {
            None => return format!("{name} is {why}, but {}", lack(scope, &Relation::named(name))),
            Some(first) if same_name(scope, &able) => {
                forced.entry(first).or_insert_with(|| {
                    queue.push_back(first);
                    Forced { above: Above::Root(why), able }
                });
            }
            Some(_) => {}
        }
    }
    while let Some(id) = queue.pop_front() {
        let choices = match scope.choices(id) {
            Ok(choices) => choices,
            Err(e) => return format!("{}: {e}; {}", shown(scope, id), way(scope, &forced, id)),
        };
        for (group, choice) in choices {
            let Choice::OneOf(able) = choice else { continue };
            match able.first().copied() {
                None => {
                    let lacks = lacks(scope, &group);
                    return format!(
                        "{} needs {group}, but {lacks}; {}",
                        scope.name(id),
                        way(scope, &forced, id)
                    );
                }
                Some(first) if same_name(scope, &able) => {
                    forced.entry(first).or_insert_with(|| {
                        queue.push_back(first);
                        Forced { above: Above::Package(id, group.to_string()), able }
                    });
                }
                Some(_) => {}
            }
        }
    }
    for id in forced.keys() {
        for (relation, rivals) in scope.rivals(*id).unwrap_or_default() {
            let barred = |(_, f): &(&Id, &Forced)| f.able.iter().all(|id| rivals.contains(id));
            if let Some((rival, _)) = forced.iter().find(barred) {
                return format!(
                    "{} cannot stand beside {relation}, which is {}; {}; {}",
                    shown(scope, *id),
                    shown(scope, *rival),
                    way(scope, &forced, *id),
                    way(scope, &forced, *rival)
                );
            }
        }
    }
    format!("\n{}", tree.trim_end())
}

fn same_name(scope: &Scope<'_>, ids: &[Id]) -> bool {
    ids.windows(2).all(|pair| scope.name(pair[0]) == scope.name(pair[1]))
}

fn shown(scope: &Scope<'_>, id: Id) -> String {
    let candidate = scope.universe.get(id);
    format!("{} {} ({})", candidate.record.name, candidate.record.version, candidate.suite)
}

/// `b needs a; c needs b; c is asked for by images/x.toml`: from the package up to its root.
fn way(scope: &Scope<'_>, forced: &BTreeMap<Id, Forced>, mut id: Id) -> String {
    let mut steps = Vec::new();
    loop {
        match forced.get(&id).map(|f| &f.above) {
            Some(Above::Package(above, relation)) => {
                steps.push(format!("{} needs {relation}", scope.name(*above)));
                id = *above;
            }
            Some(Above::Root(why)) => {
                steps.push(format!("{} is {why}", scope.name(id)));
                return steps.join("; ");
            }
            None => return steps.join("; "),
        }
    }
}

fn lacks(scope: &Scope<'_>, group: &Alternatives) -> String {
    let mut all: Vec<String> = group.0.iter().map(|relation| lack(scope, relation)).collect();
    all.dedup();
    all.join(", and ")
}

/// Why nothing satisfies `relation`.
fn lack(scope: &Scope<'_>, relation: &Relation) -> String {
    let name = &relation.name;
    let versions: Vec<String> = scope
        .universe
        .versions(name)
        .map(|(record, suite)| format!("{name} {} ({suite})", record.version))
        .collect();
    if scope.request.without.contains(name) {
        return format!("{name} is excluded");
    }
    if !versions.is_empty() {
        return format!("only {} exists", versions.join(" and "));
    }
    let providers = scope.universe.providers(name);
    if let Some(first) = providers.first() {
        let text = if relation.version.is_some() { "without a version that fits" } else { "and is excluded" };
        return format!("{name} is provided only by {} {text}", scope.name(*first));
    }
    format!("there is no package {name}{}", did_you_mean(&near_names(scope.universe, name)))
}
