//! All packages that can be chosen, from the indexes of several suites.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::index::{PackageRecord, Provided};
use super::super::relation::{Relation, RelationError};

/// Index of a candidate in [`Universe::candidates`].
pub(super) type Id = u32;

#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) record: Arc<PackageRecord>,
    pub(super) suite: Arc<str>,
    pub(super) provides: Vec<Provided>,
}

/// Why the packages of an index cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("package {package} of {suite}: field Provides")]
pub struct UniverseError {
    package: String,
    suite: String,
    #[source]
    source: RelationError,
}

/// Packages of one architecture. Of two with the same name and version, the one of the suite that was added first counts.
#[derive(Debug)]
pub struct Universe {
    architecture: String,
    pub(super) candidates: Vec<Candidate>,
    /// Real packages by name, newest version first.
    names: BTreeMap<String, Vec<Id>>,
    /// Who provides a name, by package name and then newest first.
    providers: BTreeMap<String, Vec<Id>>,
}

impl Universe {
    /// Nothing yet; packages of `architecture` and of `all` will be taken.
    pub fn new(architecture: &str) -> Self {
        Universe {
            architecture: architecture.to_owned(),
            candidates: Vec::new(),
            names: BTreeMap::new(),
            providers: BTreeMap::new(),
        }
    }

    /// Adds the records of an index of `suite`. Suites are preferred in the order in which they are added, where versions
    /// are equal; otherwise the newest version is.
    pub fn add(&mut self, suite: &str, records: Vec<PackageRecord>) -> Result<(), UniverseError> {
        let suite: Arc<str> = Arc::from(suite);
        for record in records {
            if record.architecture != "all" && record.architecture != self.architecture {
                continue;
            }
            let id = Id::try_from(self.candidates.len()).expect("fewer than 2^32 packages fit in memory");
            let same_name = self.names.entry(record.name.clone()).or_default();
            let older = |other: &Id| self.candidates[*other as usize].record.version <= record.version;
            let at = same_name.iter().position(older).unwrap_or(same_name.len());
            if same_name
                .get(at)
                .is_some_and(|o| self.candidates[*o as usize].record.version == record.version)
            {
                continue;
            }
            same_name.insert(at, id);
            let provides = record.provided().map_err(|source| UniverseError {
                package: record.name.clone(),
                suite: suite.to_string(),
                source,
            })?;
            for one in &provides {
                let providers = self.providers.entry(one.name.clone()).or_default();
                let key = |id: &Id| &self.candidates[*id as usize].record;
                let before = |other: &Id| {
                    let other = key(other);
                    other.name.cmp(&record.name).then(record.version.cmp(&other.version)).is_lt()
                };
                // A package may provide a name in several versions; it is listed once.
                if providers.last() != Some(&id) {
                    let at = providers.partition_point(before);
                    if providers.get(at) != Some(&id) {
                        providers.insert(at, id);
                    }
                }
            }
            self.candidates.push(Candidate { record: Arc::new(record), suite: suite.clone(), provides });
        }
        Ok(())
    }

    /// The architecture of the image.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Number of packages that can be chosen from.
    pub fn len(&self) -> usize {
        self.candidates.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// The versions of the real package `name`, newest first, each with its suite.
    pub fn versions<'a>(
        &'a self,
        name: &str,
    ) -> impl Iterator<Item = (&'a Arc<PackageRecord>, &'a Arc<str>)> {
        self.real(name).iter().map(|id| {
            let candidate = self.get(*id);
            (&candidate.record, &candidate.suite)
        })
    }

    /// Whether a real package has that name or provides it.
    pub fn offers(&self, name: &str) -> bool {
        self.names.contains_key(name) || self.providers.contains_key(name)
    }

    /// All names of real packages, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    pub(super) fn get(&self, id: Id) -> &Candidate {
        &self.candidates[id as usize]
    }

    pub(super) fn real(&self, name: &str) -> &[Id] {
        self.names.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn providers(&self, name: &str) -> &[Id] {
        self.providers.get(name).map_or(&[], Vec::as_slice)
    }

    /// Everything that satisfies `relation` by name and version: real packages first, then providers.
    pub(super) fn satisfying(&self, relation: &Relation) -> Vec<Id> {
        let real =
            self.real(&relation.name).iter().filter(|id| relation.accepts(&self.get(**id).record.version));
        let providers =
            self.providers(&relation.name).iter().filter(|id| provides(&self.get(**id).provides, relation));
        let mut all: Vec<Id> = real.copied().collect();
        // A package that provides its own name is there already.
        let more: Vec<Id> = providers.filter(|id| !all.contains(id)).copied().collect();
        all.extend(more);
        all
    }
}

/// Whether one of `provided` satisfies `relation`. A version can only be satisfied by a version (Policy 7.5).
pub(super) fn provides(provided: &[Provided], relation: &Relation) -> bool {
    provided.iter().filter(|p| p.name == relation.name).any(|p| match &p.version {
        Some(version) => relation.accepts(version),
        None => relation.version.is_none(),
    })
}
