//! Keeps of a solution only what is needed, and says by whom.

use std::collections::{BTreeMap, BTreeSet};

use super::choice::{Choice, Scope};
use super::universe::Id;
use super::{Chosen, Reason, Solution, Waived};

/// One thing that must be satisfied: by whom it is asked, and who of the found packages can do it, best first.
struct Need {
    reasons: Vec<Reason>,
    able: Vec<Id>,
}

/// Walks from the roots through `found` (candidates that fit together). Where several of them satisfy a relation, one
/// that is needed anyway is taken, and only if there is none the best. A subset that satisfies its own relations is a
/// solution too, since taking packages away never makes a conflict.
pub(super) fn prune(scope: &Scope<'_>, found: &[Id]) -> Solution {
    let mut needed: BTreeMap<Id, ()> = BTreeMap::new();
    let mut needs: Vec<Need> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut fresh: Vec<Id> = Vec::new();
    let mut waived = BTreeSet::new();
    let have =
        |ids: Vec<Id>| ids.into_iter().filter(|id| found.binary_search(id).is_ok()).collect::<Vec<_>>();
    for (name, reasons) in &scope.roots {
        open.push(needs.len());
        needs.push(Need { reasons: reasons.clone(), able: have(scope.root_choice(name)) });
    }
    loop {
        // First what leaves no choice, until nothing changes; only then the first of what does.
        let mut forced = false;
        open.retain(|at| {
            let able = &needs[*at].able;
            if able.iter().any(|id| needed.contains_key(id)) {
                return false;
            }
            if let [only] = able[..] {
                needed.insert(only, ());
                fresh.push(only);
                forced = true;
                return false;
            }
            true
        });
        if !forced
            && fresh.is_empty()
            && let Some(at) = (!open.is_empty()).then(|| open.remove(0))
            && let Some(best) = needs[at].able.first()
        {
            needed.insert(*best, ());
            fresh.push(*best);
        }
        if fresh.is_empty() {
            break;
        }
        for id in fresh.drain(..) {
            let package = scope.name(id);
            // The search has read these relations already, so they can be read.
            for (group, choice) in scope.choices(id).unwrap_or_default() {
                let relation = group.to_string();
                match choice {
                    Choice::OneOf(ids) => {
                        open.push(needs.len());
                        let reasons = vec![Reason::Depends { package: package.to_owned(), relation }];
                        needs.push(Need { reasons, able: have(ids) });
                    }
                    Choice::Waived(provided) => {
                        waived.insert(Waived { package: package.to_owned(), relation, provided });
                    }
                }
            }
        }
    }
    let mut packages: BTreeMap<String, Chosen> = BTreeMap::new();
    for id in needed.keys() {
        let candidate = scope.universe.get(*id);
        let chosen =
            Chosen { record: candidate.record.clone(), suite: candidate.suite.clone(), asked_by: Vec::new() };
        packages.insert(candidate.record.name.clone(), chosen);
    }
    for need in needs {
        // Everybody who can is named, so that a person sees all that hangs on a package.
        for id in need.able.iter().filter(|id| needed.contains_key(id)) {
            if let Some(chosen) = packages.get_mut(scope.name(*id)) {
                chosen.asked_by.extend(need.reasons.iter().cloned());
            }
        }
    }
    for chosen in packages.values_mut() {
        chosen.asked_by.sort();
        chosen.asked_by.dedup();
    }
    Solution { packages, waived: waived.into_iter().collect() }
}
