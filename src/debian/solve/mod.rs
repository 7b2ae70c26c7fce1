//! From the packages that are wanted to all that are needed.
//!
//! [`solve`] finds packages of a [`Universe`] so that every Depends and Pre-Depends holds and no Conflicts or Breaks is hit.
//! The search is resolvo's (SAT, with conflict learning); what is Debian about it is here:
//!
//! 1. `Essential: yes` and `Priority: required` packages are roots beside the wanted ones, since nobody depends on them.
//! 2. A relation becomes a choice between real packages ([`choice`]): the name itself, then who provides it.
//! 3. What nobody needs in the end is dropped ([`prune`]): the search may have taken a first alternative before another
//!    package brought the second.
//!
//! One image has one architecture, so `:any` and `:native` are that one, and a relation to another one cannot hold.
//! The same request over the same universe gives the same solution. Sources: Debian Policy 7 and 3.8, apt's
//! `--no-install-recommends` as judge.

mod choice;
mod explain;
mod provider;
mod prune;
mod universe;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use super::index::Provided;
pub use universe::{Universe, UniverseError};

use super::index::PackageRecord;
use super::version::DebVersion;

/// A package that somebody asked for by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Name of a real package, or of a virtual one.
    pub name: String,
    /// Who asked, for people: `images/server.toml`.
    pub because: String,
}

/// What is to be solved.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The packages asked for.
    pub wanted: Vec<Wanted>,
    /// Packages that must not be installed. A relation that only they could satisfy is waived.
    pub without: BTreeSet<String>,
    /// What is there without any package. A relation that one of these satisfies is waived.
    pub provided: Vec<Provided>,
    /// Versions to prefer over newer ones, as far as they still exist and fit.
    pub keep: BTreeMap<String, DebVersion>,
}

/// Why a package is in a solution.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "lowercase")]
pub enum Reason {
    /// Somebody named it.
    Wanted {
        /// Who.
        because: String,
    },
    /// `Essential: yes`.
    Essential,
    /// `Priority: required`.
    Required,
    /// Another package needs it.
    Depends {
        /// That package.
        package: String,
        /// Its relation, all alternatives.
        relation: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Wanted { because } => write!(f, "asked for by {because}"),
            Reason::Essential => f.write_str("essential"),
            Reason::Required => f.write_str("of priority required"),
            Reason::Depends { package, relation } => write!(f, "{package} needs {relation}"),
        }
    }
}

/// A package of a solution.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// What the index says of it.
    pub record: Arc<PackageRecord>,
    /// The suite whose index that was.
    pub suite: Arc<str>,
    /// Everybody who needs it, sorted; roots first.
    pub asked_by: Vec<Reason>,
}

/// A relation that no package of the solution satisfies, on purpose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Waived {
    /// Whose relation it is.
    pub package: String,
    /// The relation, all alternatives.
    pub relation: String,
    /// The name of [`Request::provided`] that satisfies it; `None` if only packages of [`Request::without`] could.
    pub provided: Option<String>,
}

/// What to install.
#[derive(Debug, Clone)]
pub struct Solution {
    /// By name.
    pub packages: BTreeMap<String, Chosen>,
    /// Sorted by package.
    pub waived: Vec<Waived>,
}

impl Solution {
    /// The shortest way from a root to `name`: the reason of the root, then one reason per step, the last for `name`
    /// itself. Empty if `name` is not in the solution.
    pub fn why(&self, name: &str) -> Vec<Reason> {
        // Breadth first from `name` towards the roots; the first root met is the nearest.
        let mut via: BTreeMap<&str, Option<(&str, &Reason)>> = BTreeMap::new();
        let mut queue: std::collections::VecDeque<&str> = std::collections::VecDeque::new();
        if let Some((name, _)) = self.packages.get_key_value(name) {
            via.insert(name, None);
            queue.push_back(name);
        }
        while let Some(at) = queue.pop_front() {
            let Some(chosen) = self.packages.get(at) else { continue };
            for reason in &chosen.asked_by {
                match reason {
                    Reason::Depends { package, .. } => {
                        if !via.contains_key(package.as_str()) {
                            via.insert(package, Some((at, reason)));
                            queue.push_back(package);
                        }
                    }
                    root => {
                        let mut chain = vec![root.clone()];
                        let mut at = at;
                        while let Some(Some((below, reason))) = via.get(at) {
                            chain.push((*reason).clone());
                            at = below;
                        }
                        return chain;
                    }
                }
            }
        }
        Vec::new()
    }
}

/// Why there is no solution. Its text is for people and names the way from what they asked for to what is impossible.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Conflict {
    /// Nobody has a package of that name.
    #[error("there is no package `{name}` (asked for by {because}){}", explain::did_you_mean(.near))]
    Unknown {
        /// The name.
        name: String,
        /// Who asked.
        because: String,
        /// Names like it that exist, best first, at most three.
        near: Vec<String>,
    },
    /// A package is wanted and excluded.
    #[error("`{name}` is asked for by {because} and excluded at once")]
    Excluded {
        /// The name.
        name: String,
        /// Who asked.
        because: String,
    },
    /// The relations cannot all hold.
    #[error("the packages do not fit together: {0}")]
    Unsolvable(String),
}

/// Finds the packages for `request`; see the module comment.
pub fn solve(universe: &Universe, request: &Request) -> Result<Solution, Conflict> {
    for Wanted { name, because } in &request.wanted {
        if request.without.contains(name) {
            return Err(Conflict::Excluded { name: name.clone(), because: because.clone() });
        }
        if !universe.offers(name) {
            let near = explain::near_names(universe, name);
            return Err(Conflict::Unknown { name: name.clone(), because: because.clone(), near });
        }
    }
    let scope = choice::Scope::new(universe, request);
    match provider::search(&scope) {
        Ok(found) => Ok(prune::prune(&scope, &found)),
        Err(tree) => Err(Conflict::Unsolvable(explain::explain(&scope, &tree))),
    }
}

#[cfg(test)]
mod tests;
