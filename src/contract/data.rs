//! The contracts as they stand in images/kernel/: one file per component, its features, and the symbols that each needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::{Version, is_symbol};
use crate::arch::Arch;
use crate::digest::Digest;

/// images/kernel/NAME.toml: what a component needs of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Component {
    /// Version of this file's shape; 1.
    pub schema: u32,
    /// Name for people, with the version that the needs were taken from: `Cilium 1.18`.
    pub title: String,
    /// Features by name. A profile chooses `COMPONENT.FEATURE`.
    pub feature: BTreeMap<String, Feature>,
}

/// A feature of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Feature {
    /// One line for people.
    pub description: String,
    /// Where the needs are written down: a URL or a document with its version.
    pub source: String,
    /// Other features (`COMPONENT.FEATURE`) that this one cannot do without.
    #[serde(default)]
    pub needs: Vec<String>,
    /// The first version of Linux that can do it, where no symbol tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linux: Option<Version>,
    /// Needed before the root is open: its modules must be in the initrd as well as in the root.
    #[serde(default)]
    pub early: bool,
    /// Symbols without `CONFIG_`.
    #[serde(default)]
    pub symbols: BTreeMap<String, Demand>,
    /// What can be seen of it on a running node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probe: Vec<Probe>,
}

/// Something that a running node can be seen to do; see [`super::probe`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Probe {
    /// What is seen, one line: `a VXLAN device`.
    pub what: String,
    /// Shell commands that succeed if it is so.
    pub run: String,
}

/// What a feature needs of one symbol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Demand {
    /// `y`, `m`, `y|m` or `n`.
    pub want: Want,
    /// The module that the symbol makes when it is `m`. Must be there if `want` allows `m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// What the feature does with it, one line.
    pub why: String,
    /// Where this need is written down, if not in the feature's source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The first version of Linux that knows the symbol. Older ones are too old for the feature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_since: Option<Version>,
    /// The first version of Linux that does not know the symbol any more: nothing is asked of it and of later ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent_since: Option<Version>,
    /// Asked only of kernels that have this symbol on: what is there to sign in a kernel without modules?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_with: Option<String>,
    /// Machines that need it; all if not given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arch: Vec<Arch>,
}

/// The values that satisfy a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Want {
    /// Built in.
    #[serde(rename = "y")]
    Yes,
    /// A module.
    #[serde(rename = "m")]
    Module,
    /// Built in or a module.
    #[serde(rename = "y|m")]
    Either,
    /// Off.
    #[serde(rename = "n")]
    No,
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Want::Yes => "y",
            Want::Module => "m",
            Want::Either => "y or m",
            Want::No => "n",
        })
    }
}

/// Why contracts cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// A demand says something impossible.
    #[error("images/kernel/{component}.toml: {feature}: {why}")]
    Demand {
        /// The file.
        component: String,
        /// The feature, and the symbol if it is one's.
        feature: String,
        /// What is wrong.
        why: String,
    },
    /// There is no such feature.
    #[error("there is no kernel feature `{name}`")]
    Unknown {
        /// As it was written.
        name: String,
        /// All that there are.
        known: Vec<String>,
    },
}

/// All contracts of a project.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Contracts {
    components: BTreeMap<String, Component>,
}

impl Contracts {
    /// Takes the components by file name and checks each of their demands.
    pub fn new(components: BTreeMap<String, Component>) -> Result<Self, DataError> {
        let contracts = Contracts { components };
        for (component, Component { feature, .. }) in &contracts.components {
            for (name, feature) in feature {
                let wrong = |at: &str, why: String| DataError::Demand {
                    component: component.clone(),
                    feature: if at.is_empty() { name.clone() } else { format!("{name}: {at}") },
                    why,
                };
                // Names go into scripts and are typed by people.
                let plain = |name: &str| {
                    name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                };
                if !plain(component) || !plain(name) {
                    return Err(wrong("", "a name has small letters, digits and `-`".to_owned()));
                }
                for need in &feature.needs {
                    contracts.get(need).map_err(|e| wrong("", e.to_string()))?;
                }
                for (symbol, demand) in &feature.symbols {
                    demand.check(symbol).map_err(|why| wrong(symbol, why))?;
                }
            }
        }
        Ok(contracts)
    }

    /// The names of all features, sorted.
    pub fn names(&self) -> Vec<String> {
        self.all().map(|(name, _)| name).collect()
    }

    /// The component and the feature that `COMPONENT.FEATURE` names.
    pub fn get(&self, name: &str) -> Result<(&Component, &Feature), DataError> {
        let found = name.split_once('.').and_then(|(component, feature)| {
            let component = self.components.get(component)?;
            Some((component, component.feature.get(feature)?))
        });
        found.ok_or_else(|| DataError::Unknown { name: name.to_owned(), known: self.names() })
    }

    /// Every feature with its name, sorted by name.
    pub fn all(&self) -> impl Iterator<Item = (String, &Feature)> {
        self.components.iter().flat_map(|(component, c)| {
            c.feature.iter().map(move |(name, feature)| (format!("{component}.{name}"), feature))
        })
    }

    /// Stands for all that `features` and what they need say: another demand, another digest.
    pub fn digest(&self, features: &[String]) -> Result<Digest, DataError> {
        let closure = self.closure(features)?;
        let demands: Vec<(&String, &Feature)> =
            closure.iter().map(|name| Ok((name, self.get(name)?.1))).collect::<Result<_, DataError>>()?;
        Ok(Digest::of(&serde_json::to_vec(&demands).expect("contract types always serialise")))
    }

    /// `features` and all that they need, each once.
    pub fn closure(&self, features: &[String]) -> Result<BTreeSet<String>, DataError> {
        let mut found = BTreeSet::new();
        let mut todo: Vec<&String> = features.iter().collect();
        while let Some(name) = todo.pop() {
            let (_, feature) = self.get(name)?;
            if found.insert(name.clone()) {
                todo.extend(&feature.needs);
            }
        }
        Ok(found)
    }
}

impl Demand {
    fn check(&self, symbol: &str) -> Result<(), String> {
        if symbol.starts_with("CONFIG_") || !is_symbol(symbol) {
            return Err("write the symbol's name without `CONFIG_`".to_owned());
        }
        match (self.want, &self.module) {
            (_, Some(name)) if !is_symbol(name) => {
                Err("a module's name has letters, digits and `_`".to_owned())
            }
            (Want::Module | Want::Either, None) => {
                Err("it may be a module: name it with `module = \"…\"`".to_owned())
            }
            (Want::Yes | Want::No, Some(_)) => {
                Err("it may not be a module: `module` has no meaning".to_owned())
            }
            _ if self
                .only_with
                .as_ref()
                .is_some_and(|with| with.starts_with("CONFIG_") || !is_symbol(with)) =>
            {
                Err("write `only-with` without `CONFIG_`".to_owned())
            }
            _ if self.known_since.zip(self.absent_since).is_some_and(|(known, absent)| known >= absent) => {
                Err("`known-since` must be before `absent-since`".to_owned())
            }
            _ => Ok(()),
        }
    }
}
