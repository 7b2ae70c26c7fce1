//! Which package of an image needs which other, from the relations in its manifest.
//!
//! The lock's solver decided this once; here it is read back from what it chose: a relation leads to every package of the image that
//! satisfies one of its alternatives, by name or by Provides (Debian Policy 7.1, 7.5). What is not a Debian package has no relations and is
//! kept apart in the manifest, so it never comes here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::{Context, Result};

use crate::debian::relation::{self, Relation};
use crate::debian::version::DebVersion;
use crate::manifest::PackageInfo;

/// Dependencies among the Debian packages of an image.
#[derive(Debug)]
pub struct Graph<'a> {
    /// Package to what it needs, each with the relation's text.
    needs: BTreeMap<&'a str, BTreeMap<&'a str, String>>,
}

/// One step of a chain: `package` needs `what` by `relation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need<'a> {
    /// Who needs.
    pub package: &'a str,
    /// What is needed.
    pub what: &'a str,
    /// As the package writes it, with all alternatives.
    pub relation: String,
}

impl<'a> Graph<'a> {
    /// Reads the relations of `packages`, which are of the architecture `arch` or `all`.
    pub fn new(packages: &'a BTreeMap<String, PackageInfo>, arch: &str) -> Result<Self> {
        let mut names: BTreeMap<String, Vec<(&'a str, Option<DebVersion>)>> = BTreeMap::new();
        for (name, package) in packages {
            let version = package.version.parse().with_context(|| format!("the version of {name}"))?;
            names.entry(name.clone()).or_default().push((name, Some(version)));
            let provides =
                relation::parse(&package.provides).with_context(|| format!("what {name} provides"))?;
            for one in provides.into_iter().flat_map(|alternatives| alternatives.0) {
                let version = one.version.map(|(_, version)| version);
                names.entry(one.name).or_default().push((name, version));
            }
        }
        let mut needs = BTreeMap::new();
        for (name, package) in packages {
            let mut mine = BTreeMap::new();
            let relations =
                relation::parse(&package.depends).with_context(|| format!("what {name} depends on"))?;
            for alternatives in relations {
                for one in alternatives.0.iter().filter(|one| one.counts_on(arch)) {
                    let candidates = names.get(&one.name).map(Vec::as_slice).unwrap_or_default();
                    for (found, _) in candidates.iter().filter(|(_, v)| satisfies(one, v.as_ref())) {
                        if *found != name {
                            mine.entry(*found).or_insert_with(|| alternatives.to_string());
                        }
                    }
                }
            }
            needs.insert(name.as_str(), mine);
        }
        Ok(Graph { needs })
    }

    /// What `package` needs directly, sorted.
    pub fn needs(&self, package: &str) -> impl Iterator<Item = &'a str> + '_ {
        self.needs.get(package).into_iter().flat_map(|mine| mine.keys().copied())
    }

    /// What needs `package` directly, sorted.
    pub fn needed_by(&self, package: &str) -> Vec<&'a str> {
        self.needs.iter().filter(|(_, mine)| mine.contains_key(package)).map(|(name, _)| *name).collect()
    }

    /// The shortest chain from one of `starts` to `package`: empty if it is one itself, `None` if none leads there.
    pub fn chain(&self, starts: &BTreeSet<&str>, package: &str) -> Option<Vec<Need<'a>>> {
        let mut came: BTreeMap<&'a str, Option<Need<'a>>> = BTreeMap::new();
        let mut todo: VecDeque<&'a str> =
            self.needs.keys().copied().filter(|name| starts.contains(name)).collect();
        came.extend(todo.iter().map(|name| (*name, None)));
        while let Some(name) = todo.pop_front() {
            if name == package {
                let mut chain = Vec::new();
                let mut at = name;
                while let Some(Some(need)) = came.get(at) {
                    chain.push(need.clone());
                    at = need.package;
                }
                chain.reverse();
                return Some(chain);
            }
            for (what, relation) in self.needs.get(name).into_iter().flatten() {
                if !came.contains_key(what) {
                    came.insert(what, Some(Need { package: name, what, relation: relation.clone() }));
                    todo.push_back(what);
                }
            }
        }
        None
    }
}

/// A name without a version satisfies only relations without one (Policy 7.5).
fn satisfies(relation: &Relation, version: Option<&DebVersion>) -> bool {
    match version {
        Some(version) => relation.accepts(version),
        None => relation.version.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built::tests::{package, sample};

    #[test]
    fn relations_lead_to_packages_that_satisfy_them_by_name_or_provides() {
        let built = sample();
        let graph = Graph::new(&built.manifest.packages, "amd64").unwrap();
        assert_eq!(graph.needs("curl").collect::<Vec<_>>(), ["libc6", "libcurl4t64"]);
        assert_eq!(graph.needs("libcurl4t64").collect::<Vec<_>>(), ["libc6", "libssl3t64"]);
        assert_eq!(graph.needed_by("libc6"), ["curl", "libcurl4t64"]);
    }

    #[test]
    fn the_shortest_chain_is_found_and_a_package_that_none_leads_to_has_none() {
        let built = sample();
        let graph = Graph::new(&built.manifest.packages, "amd64").unwrap();
        let starts = BTreeSet::from(["curl"]);
        let chain = graph.chain(&starts, "libssl3t64").unwrap();
        let steps: Vec<_> = chain.iter().map(|n| (n.package, n.what)).collect();
        assert_eq!(steps, [("curl", "libcurl4t64"), ("libcurl4t64", "libssl3t64")]);
        assert_eq!(chain[1].relation, "libssl3 | libssl3t64 (>= 3)");
        assert_eq!(graph.chain(&starts, "curl"), Some(vec![]));
        assert_eq!(graph.chain(&starts, "base-files"), None);
    }

    #[test]
    fn a_version_that_does_not_fit_leads_nowhere_and_circles_end() {
        let packages = [
            ("a".to_owned(), package("1", "b (>= 2), v (= 1), c", "")),
            ("b".to_owned(), package("1", "a", "v")),
            ("c".to_owned(), package("1", "a, c", "")),
        ]
        .into();
        let graph = Graph::new(&packages, "amd64").unwrap();
        assert_eq!(graph.needs("a").collect::<Vec<_>>(), ["c"]);
        assert_eq!(graph.chain(&BTreeSet::from(["a"]), "b"), None);
    }
}
