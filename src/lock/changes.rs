//! What differs between two locks, per package.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::file::Lock;

/// A package that moved, came or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// `amd64`, `arm64`: the architecture of the set it is in.
    pub arch: String,
    /// Locked version before; `None` if it is new.
    pub old: Option<String>,
    /// Locked version now; `None` if it went.
    pub new: Option<String>,
    /// In which sets, sorted.
    pub sets: BTreeSet<String>,
}

/// All changes from `old` to `new`, sorted by name and architecture.
pub fn changes(old: Option<&Lock>, new: &Lock) -> Vec<Change> {
    type Versions = BTreeMap<(String, String), BTreeMap<String, String>>;
    let collect = |lock: &Lock| {
        let mut all: Versions = BTreeMap::new();
        for set in &lock.set {
            for package in lock.packages(set) {
                let versions = all.entry((package.name.clone(), set.id.arch.to_string())).or_default();
                versions.insert(set.id.name.clone(), package.version.clone());
            }
        }
        all
    };
    let (before, after) = (old.map(collect).unwrap_or_default(), collect(new));
    let keys: BTreeSet<&(String, String)> = before.keys().chain(after.keys()).collect();
    let mut changes: Vec<Change> = Vec::new();
    for key in keys {
        let none = BTreeMap::new();
        let (old, new) = (before.get(key).unwrap_or(&none), after.get(key).unwrap_or(&none));
        // The same move in several sets is one line.
        let mut moves: BTreeMap<(Option<&String>, Option<&String>), BTreeSet<String>> = BTreeMap::new();
        for set in old.keys().chain(new.keys()) {
            let (from, to) = (old.get(set), new.get(set));
            if from != to {
                moves.entry((from, to)).or_default().insert(set.clone());
            }
        }
        for ((from, to), sets) in moves {
            let (name, arch) = key.clone();
            changes.push(Change { name, arch, old: from.cloned(), new: to.cloned(), sets });
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::super::file::tests::sample;
    use super::*;

    #[test]
    fn moved_new_and_gone_packages_are_told_apart() {
        let old = sample();
        let mut new = sample();
        new.package[1].version = "2.0".into();
        new.set[0].packages = vec!["dash 2.0".into()];
        let found = changes(Some(&old), &new);
        let text: Vec<String> = found
            .iter()
            .map(|c| format!("{} {:?} {:?}", c.name, c.old.as_deref(), c.new.as_deref()))
            .collect();
        assert_eq!(text, ["adduser Some(\"1.0-1\") None", "dash Some(\"1.0-1\") Some(\"2.0\")"]);
        assert_eq!(changes(Some(&old), &old), []);
        assert_eq!(changes(None, &old).len(), 2);
    }
}
