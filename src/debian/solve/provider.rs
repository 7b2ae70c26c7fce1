//! Debian's packages as resolvo sees them.
//!
//! A solvable is a candidate of the universe, a name is the name of a real package, and a version set is a list of
//! candidates of one name. Virtual packages do not appear: [`Scope::choices`] has turned them into choices already.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;

use resolvo::{
    Candidates, Condition, ConditionId, DenseIndex, Dependencies, DependencyProvider, Interner,
    KnownDependencies, NameId, Problem, Requirement, SolvableId, Solver, SolverCache, StringId,
    UnsolvableOrCancelled, VersionSetId, VersionSetUnionId,
};

use super::choice::{Choice, Scope};
use super::universe::Id;

#[derive(Default)]
struct Tables {
    names: Vec<String>,
    by_name: HashMap<String, NameId>,
    sets: Vec<(NameId, Vec<Id>)>,
    by_set: HashMap<(NameId, Vec<Id>), VersionSetId>,
    unions: Vec<Vec<VersionSetId>>,
    strings: Vec<String>,
}

struct Provider<'a> {
    scope: &'a Scope<'a>,
    tables: RefCell<Tables>,
}

fn solvable(id: Id) -> SolvableId {
    SolvableId::from_index(id as usize)
}

fn candidate(id: SolvableId) -> Id {
    Id::try_from(id.to_index()).expect("solvables are made from candidates")
}

impl Tables {
    fn name(&mut self, name: &str) -> NameId {
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        let id = NameId::from_index(self.names.len());
        self.names.push(name.to_owned());
        self.by_name.insert(name.to_owned(), id);
        id
    }

    fn set(&mut self, name: NameId, mut ids: Vec<Id>) -> VersionSetId {
        ids.sort_unstable();
        let key = (name, ids);
        if let Some(id) = self.by_set.get(&key) {
            return *id;
        }
        let id = VersionSetId::from_index(self.sets.len());
        self.sets.push(key.clone());
        self.by_set.insert(key, id);
        id
    }
}

impl Provider<'_> {
    /// A choice as a requirement: one version set for each run of candidates with the same name, in the same order.
    fn requirement(&self, ids: &[Id]) -> Requirement {
        let mut tables = self.tables.borrow_mut();
        let sets: Vec<VersionSetId> = ids
            .chunk_by(|a, b| self.scope.name(*a) == self.scope.name(*b))
            .map(|run| {
                let name = tables.name(self.scope.name(run[0]));
                tables.set(name, run.to_vec())
            })
            .collect();
        match sets[..] {
            [one] => one.into(),
            [] => {
                // A name that nobody has, so that resolvo reports the package as impossible and tries another.
                let name = tables.name("");
                tables.set(name, Vec::new()).into()
            }
            _ => {
                let id = VersionSetUnionId::from_index(tables.unions.len());
                tables.unions.push(sets);
                id.into()
            }
        }
    }

    fn dependencies(&self, id: Id) -> Result<KnownDependencies, String> {
        let mut known = KnownDependencies::default();
        for (_, choice) in self.scope.choices(id)? {
            if let Choice::OneOf(ids) = choice {
                known.requirements.push(self.requirement(&ids).into());
            }
        }
        let mut barred: BTreeMap<&str, Vec<Id>> = BTreeMap::new();
        for (_, rivals) in self.scope.rivals(id)? {
            for rival in rivals {
                barred.entry(self.scope.name(rival)).or_default().push(rival);
            }
        }
        for (name, rivals) in barred {
            let rest = self.scope.versions(name).into_iter().filter(|id| !rivals.contains(id)).collect();
            let mut tables = self.tables.borrow_mut();
            let name = tables.name(name);
            known.constrains.push(tables.set(name, rest));
        }
        Ok(known)
    }
}

impl Interner for Provider<'_> {
    type NameId = NameId;
    type SolvableId = SolvableId;

    fn display_solvable(&self, id: SolvableId) -> impl Display + '_ {
        let record = &self.scope.universe.get(candidate(id)).record;
        format!("{} {}", record.name, record.version)
    }

    fn display_name(&self, name: NameId) -> impl Display + '_ {
        self.tables.borrow().names[name.to_index()].clone()
    }

    fn display_version_set(&self, set: VersionSetId) -> impl Display + '_ {
        let tables = self.tables.borrow();
        let versions: Vec<String> = tables.sets[set.to_index()]
            .1
            .iter()
            .map(|id| self.scope.universe.get(*id).record.version.to_string())
            .collect();
        if versions.is_empty() { "(no version)".to_owned() } else { format!("({})", versions.join(" or ")) }
    }

    fn display_string(&self, id: StringId) -> impl Display + '_ {
        self.tables.borrow().strings[id.to_index()].clone()
    }

    fn version_set_name(&self, set: VersionSetId) -> NameId {
        self.tables.borrow().sets[set.to_index()].0
    }

    fn solvable_name(&self, id: SolvableId) -> NameId {
        self.tables.borrow_mut().name(self.scope.name(candidate(id)))
    }

    fn version_sets_in_union(&self, union: VersionSetUnionId) -> impl Iterator<Item = VersionSetId> {
        self.tables.borrow().unions[union.to_index()].clone().into_iter()
    }

    fn resolve_condition(&self, _: ConditionId) -> Condition {
        unreachable!("no requirement of ours has a condition")
    }
}

impl DependencyProvider for Provider<'_> {
    async fn filter_candidates(
        &self,
        ids: &[SolvableId],
        set: VersionSetId,
        inverse: bool,
    ) -> Vec<SolvableId> {
        let tables = self.tables.borrow();
        let allowed = &tables.sets[set.to_index()].1;
        ids.iter().copied().filter(|id| allowed.binary_search(&candidate(*id)).is_ok() != inverse).collect()
    }

    async fn get_candidates(&self, name: NameId) -> Option<Candidates> {
        let ids = self.scope.versions(&self.tables.borrow().names[name.to_index()]);
        let candidates: Vec<SolvableId> = ids.into_iter().map(solvable).collect();
        (!candidates.is_empty()).then(|| Candidates { candidates, ..Candidates::default() })
    }

    async fn sort_candidates(&self, _: &SolverCache<Self>, ids: &mut [SolvableId]) {
        let record = |id: &SolvableId| &self.scope.universe.get(candidate(*id)).record;
        ids.sort_by(|a, b| record(b).version.cmp(&record(a).version));
        let mut plain: Vec<Id> = ids.iter().map(|id| candidate(*id)).collect();
        self.scope.prefer_kept(&mut plain);
        for (slot, id) in ids.iter_mut().zip(plain) {
            *slot = solvable(id);
        }
    }

    async fn get_dependencies(&self, id: SolvableId) -> Dependencies {
        match self.dependencies(candidate(id)) {
            Ok(known) => Dependencies::Known(known),
            Err(reason) => {
                let mut tables = self.tables.borrow_mut();
                tables.strings.push(reason);
                Dependencies::Unknown(StringId::from_index(tables.strings.len() - 1))
            }
        }
    }
}

/// Candidates that fit together and satisfy every root, sorted; or resolvo's account of why there are none.
pub(super) fn search(scope: &Scope<'_>) -> Result<Vec<Id>, String> {
    let provider = Provider { scope, tables: RefCell::default() };
    let roots =
        scope.roots.iter().map(|(name, _)| provider.requirement(&scope.root_choice(name)).into()).collect();
    let mut solver = Solver::new(provider);
    match solver.solve(Problem::new().requirements(roots)) {
        Ok(found) => {
            let mut ids: Vec<Id> = found.into_iter().map(candidate).collect();
            ids.sort_unstable();
            Ok(ids)
        }
        Err(UnsolvableOrCancelled::Unsolvable(conflict)) => {
            Err(conflict.display_user_friendly(&solver).to_string())
        }
        Err(UnsolvableOrCancelled::Cancelled(_)) => unreachable!("our provider never cancels"),
    }
}
