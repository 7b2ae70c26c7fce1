//! Contracts against a kernel: one row per feature and symbol.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::config::{Config, Value, Version};
use super::data::{Contracts, DataError, Demand, Want};
use crate::arch::Arch;

/// A kernel as it is offered to the features of an image.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Its .config.
    pub config: &'a Config,
    /// Its version.
    pub version: Version,
    /// Its machine.
    pub arch: Arch,
    /// Its modules; `None` if only the .config is known, and modules are then believed to be there.
    pub modules: Option<&'a ModuleSet>,
}

/// Modules by name (with `_`).
#[derive(Debug, Clone, Default)]
pub struct ModuleSet {
    /// What the image has.
    pub kept: BTreeSet<String>,
    /// What the kernel's package has, with the path below the module folder and the `modules.drop` entry that dropped it.
    pub packaged: BTreeMap<String, (String, Option<String>)>,
    /// What is compiled into the kernel and would be a module otherwise.
    pub builtin: BTreeSet<String>,
}

/// What a feature gets of one symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As wanted.
    Ok,
    /// This version of Linux does not know the symbol any more, and the feature does without it.
    Gone,
    /// The kernel was built otherwise.
    Missing,
    /// A module that the image does not have.
    Dropped,
    /// This version of Linux does not know the symbol yet.
    Unknown,
}

impl Verdict {
    /// Whether the feature can work.
    pub fn is_met(self) -> bool {
        matches!(self, Verdict::Ok | Verdict::Gone)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Ok => "ok",
            Verdict::Gone => "gone",
            Verdict::Missing => "missing",
            Verdict::Dropped => "dropped",
            Verdict::Unknown => "unknown",
        })
    }
}

/// One symbol of one feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// `COMPONENT.FEATURE`.
    pub feature: String,
    /// The component's name for people.
    pub component: String,
    /// Without `CONFIG_`.
    pub symbol: String,
    /// `y`, `m`, `y|m` or `n`.
    pub wanted: Want,
    /// As the .config has it; `null` if it does not mention the symbol.
    pub has: Option<String>,
    /// The module behind it.
    pub module: Option<String>,
    /// The answer.
    pub verdict: Verdict,
    /// What the kernel has, in words, unless all is well.
    pub finding: Option<String>,
    /// What would provide it.
    pub remedy: Option<String>,
    /// What the feature does with it.
    pub why: String,
    /// Where the need is written down.
    pub source: String,
}

/// The answer to all features of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Version of Linux.
    pub linux: Version,
    /// Machine.
    pub arch: Arch,
    /// By feature, then by symbol.
    pub rows: Vec<Row>,
}

impl Table {
    /// The rows whose feature cannot work.
    pub fn unmet(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| !row.verdict.is_met())
    }

    /// Number of symbols by feature.
    pub fn features(&self) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for row in &self.rows {
            *count.entry(row.feature.clone()).or_default() += 1;
        }
        count
    }
}

/// Holds `features` and all that they need against a kernel. Fails only if there is no such feature.
pub fn check(contracts: &Contracts, features: &[String], offer: Offer<'_>) -> Result<Table, DataError> {
    let mut rows = Vec::new();
    for name in contracts.closure(features)? {
        let (component, feature) = contracts.get(&name)?;
        for (symbol, demand) in &feature.symbols {
            if !demand.arch.is_empty() && !demand.arch.contains(&offer.arch) {
                continue;
            }
            let has = offer.config.get(symbol);
            let (verdict, finding, remedy) = judge(symbol, demand, has, offer);
            rows.push(Row {
                feature: name.clone(),
                component: component.title.clone(),
                symbol: symbol.clone(),
                wanted: demand.want,
                has: has.map(Value::to_string),
                module: demand.module.clone(),
                verdict,
                finding,
                remedy,
                why: demand.why.clone(),
                source: demand.source.clone().unwrap_or_else(|| feature.source.clone()),
            });
        }
    }
    Ok(Table { linux: offer.version, arch: offer.arch, rows })
}

/// Verdict, finding and remedy.
type Judgement = (Verdict, Option<String>, Option<String>);

fn judge(symbol: &str, demand: &Demand, has: Option<&Value>, offer: Offer<'_>) -> Judgement {
    let linux = offer.version;
    if demand.absent_since.is_some_and(|absent| linux >= absent) && has.is_none() {
        let absent = demand.absent_since.map(|v| v.to_string()).unwrap_or_default();
        return (Verdict::Gone, Some(format!("unknown to Linux {linux}: gone since {absent}")), None);
    }
    if let (Some(known), None) = (demand.known_since.filter(|known| linux < *known), has) {
        return (
            Verdict::Unknown,
            Some(format!("unknown to Linux {linux}: it came with {known}")),
            Some(format!("a kernel of Linux {known} or later")),
        );
    }
    let met = match (demand.want, has) {
        (Want::Yes | Want::Either, Some(Value::Yes)) | (Want::No, None | Some(Value::No)) => {
            return (Verdict::Ok, None, None);
        }
        (Want::Module | Want::Either, Some(Value::Module)) => true,
        _ => false,
    };
    if met {
        module(demand, offer)
    } else {
        (Verdict::Missing, Some(found(has)), Some(format!("a kernel with CONFIG_{symbol}={}", demand.want)))
    }
}

/// What the .config has, in words.
fn found(has: Option<&Value>) -> String {
    match has {
        Some(Value::No) => "it is not set".to_owned(),
        Some(value) => format!("it is {value}"),
        None => "it is not offered, since an option that it depends on is off".to_owned(),
    }
}

fn module(demand: &Demand, offer: Offer<'_>) -> Judgement {
    let (Some(modules), Some(name)) = (offer.modules, &demand.module) else {
        return (Verdict::Ok, None, None);
    };
    if modules.kept.contains(name) {
        return (Verdict::Ok, None, None);
    }
    let (finding, remedy) = match modules.packaged.get(name) {
        Some((path, Some(drop))) => (
            format!("its module {path} is not in the image: `kernel.modules.drop` has {drop}"),
            format!("take {drop} out of `kernel.modules.drop`"),
        ),
        Some((path, None)) => (
            format!("its module {path} is not in the image: `kernel.modules.keep` does not name it"),
            format!("add {name} to `kernel.modules.keep`"),
        ),
        None => (
            format!("the kernel's package has no module {name}"),
            format!("a kernel package with the module {name}"),
        ),
    };
    (Verdict::Dropped, Some(finding), Some(remedy))
}
