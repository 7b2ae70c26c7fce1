//! What a relation means in a universe: a choice between packages.

use std::collections::BTreeMap;

use super::super::index::Field;
use super::super::relation::{Alternatives, ArchQualifier, Relation};
use super::universe::{Id, Universe, provides};
use super::{Reason, Request};

/// A universe seen through a request.
pub(super) struct Scope<'a> {
    pub(super) universe: &'a Universe,
    pub(super) request: &'a Request,
    /// What is needed from the start: name and why, in the order in which it is to be decided.
    pub(super) roots: Vec<(String, Vec<Reason>)>,
}

/// One relation of a package, put in terms of the universe.
pub(super) enum Choice {
    /// One of these, best first; empty means that the package cannot be installed.
    OneOf(Vec<Id>),
    /// Nothing is needed: a name of [`Request::provided`] does, or only excluded packages could (`None`).
    Waived(Option<String>),
}

impl<'a> Scope<'a> {
    pub(super) fn new(universe: &'a Universe, request: &'a Request) -> Self {
        let mut reasons: BTreeMap<String, Vec<Reason>> = BTreeMap::new();
        let mut order: Vec<String> = Vec::new();
        let mut add = |name: &str, reason: Reason| {
            let list = reasons.entry(name.to_owned()).or_insert_with(|| {
                order.push(name.to_owned());
                Vec::new()
            });
            if !list.contains(&reason) {
                list.push(reason);
            }
        };
        for pass in [Reason::Essential, Reason::Required] {
            for name in universe.names().filter(|name| !request.without.contains(*name)) {
                // The newest version speaks for the package: a name that was essential once is not any more.
                let Some((record, _)) = universe.versions(name).next() else { continue };
                let hit = match pass {
                    Reason::Essential => record.essential,
                    _ => &*record.priority == "required",
                };
                if hit {
                    add(name, pass.clone());
                }
            }
        }
        for wanted in &request.wanted {
            add(&wanted.name, Reason::Wanted { because: wanted.because.clone() });
        }
        let roots = order.into_iter().map(|name| {
            let why = reasons.remove(&name).unwrap_or_default();
            (name, why)
        });
        Scope { universe, request, roots: roots.collect() }
    }

    pub(super) fn name(&self, id: Id) -> &'a str {
        &self.universe.get(id).record.name
    }

    /// Whether the package may be chosen at all.
    fn allowed(&self, id: Id) -> bool {
        !self.request.without.contains(self.name(id))
    }

    /// The versions of the real package `name`, best first: the one to keep, then newest first.
    pub(super) fn versions(&self, name: &str) -> Vec<Id> {
        if self.request.without.contains(name) {
            return Vec::new();
        }
        let mut ids = self.universe.real(name).to_vec();
        self.prefer_kept(&mut ids);
        ids
    }

    /// Moves versions that are to be kept before others of the same name; the order of names stays.
    pub(super) fn prefer_kept(&self, ids: &mut [Id]) {
        if self.request.keep.is_empty() {
            return;
        }
        for run in ids.chunk_by_mut(|a, b| self.name(*a) == self.name(*b)) {
            run.sort_by_key(|id| {
                let record = &self.universe.get(*id).record;
                self.request.keep.get(&record.name) != Some(&record.version)
            });
        }
    }

    /// The root `name` as a choice: real packages of that name, or who provides it.
    pub(super) fn root_choice(&self, name: &str) -> Vec<Id> {
        let mut ids = self.versions(name);
        if ids.is_empty() {
            ids = self.universe.satisfying(&Relation::named(name));
            ids.retain(|id| self.allowed(*id));
        }
        ids
    }

    /// Every Depends and Pre-Depends of `id` that counts here. An error is the text of a relation that cannot be read.
    pub(super) fn choices(&self, id: Id) -> Result<Vec<(Alternatives, Choice)>, String> {
        let record = &self.universe.get(id).record;
        let mut all = record.relations(Field::PreDepends).map_err(|e| e.to_string())?;
        all.extend(record.relations(Field::Depends).map_err(|e| e.to_string())?);
        Ok(all.into_iter().filter_map(|group| Some((group.clone(), self.choice(id, group)?))).collect())
    }

    /// `None`: the relation does not count on this architecture, or the package satisfies it itself.
    fn choice(&self, id: Id, group: Alternatives) -> Option<Choice> {
        let arch = self.universe.architecture();
        let counting: Vec<&Relation> = group.0.iter().filter(|r| r.counts_on(arch)).collect();
        if counting.is_empty() {
            return None;
        }
        if let Some(done) = counting.iter().find(|r| provides(&self.request.provided, r)) {
            return Some(Choice::Waived(Some(done.name.clone())));
        }
        let mut ids: Vec<Id> = Vec::new();
        let mut excluded = false;
        for relation in counting.iter().filter(|r| self.arch_fits(r)) {
            for candidate in self.universe.satisfying(relation) {
                if candidate == id {
                    return None;
                }
                if !self.allowed(candidate) {
                    excluded = true;
                } else if !ids.contains(&candidate) {
                    ids.push(candidate);
                }
            }
        }
        if ids.is_empty() && excluded {
            return Some(Choice::Waived(None));
        }
        self.prefer_kept(&mut ids);
        Some(Choice::OneOf(ids))
    }

    fn arch_fits(&self, relation: &Relation) -> bool {
        match &relation.qualifier {
            None | Some(ArchQualifier::Any | ArchQualifier::Native) => true,
            Some(ArchQualifier::Named(arch)) => arch == self.universe.architecture(),
        }
    }

    /// Every package that may not stand beside `id`, with the field that says so.
    pub(super) fn rivals(&self, id: Id) -> Result<Vec<(Relation, Vec<Id>)>, String> {
        let record = &self.universe.get(id).record;
        let mut all = record.relations(Field::Conflicts).map_err(|e| e.to_string())?;
        all.extend(record.relations(Field::Breaks).map_err(|e| e.to_string())?);
        let mut out = Vec::new();
        for relation in all.into_iter().flat_map(|group| group.0) {
            if !relation.counts_on(self.universe.architecture()) || !self.arch_fits(&relation) {
                continue;
            }
            // Policy 7.4: a package may conflict with a name that it provides itself; other versions of it are never
            // beside it anyway.
            let mut ids = self.universe.satisfying(&relation);
            ids.retain(|other| self.name(*other) != record.name);
            if !ids.is_empty() {
                out.push((relation, ids));
            }
        }
        Ok(out)
    }
}
