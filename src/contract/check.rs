//! Contracts against a kernel: one row per feature and symbol.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::config::{Config, Value, Version};
use super::data::{Contracts, DataError, Demand, Feature, Want};
use crate::arch::Arch;

/// What stands for the symbol in a row that is about the version of Linux.
pub const LINUX: &str = "linux";

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

/// The modules of an image and of the package they are from, by name (with `_`).
#[derive(Debug, Clone, Default)]
pub struct ModuleSet {
    /// In the root.
    pub root: BTreeSet<String>,
    /// In the initrd.
    pub initrd: BTreeSet<String>,
    /// In the package but not in the root, and why.
    pub dropped: BTreeMap<String, Dropped>,
    /// Compiled into the kernel.
    pub builtin: BTreeSet<String>,
}

/// Why a module of the package is not in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Below the module folder, as the package has it.
    pub path: String,
    /// The entry of `kernel.modules.drop` that names it; `None`: `kernel.modules.keep` does not.
    pub by: Option<String>,
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
    /// A module that the image does not have where it is needed.
    Dropped,
    /// This version of Linux does not know the symbol, or the feature, yet.
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
    /// Without `CONFIG_`, or [`LINUX`].
    pub symbol: String,
    /// `y`, `m`, `y or m`, `n`, or `6.8 or later`.
    pub wanted: String,
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
    /// Whether every feature has what it needs.
    pub met: bool,
    /// Every feature that was asked for or that one of those needs, with its number of rows.
    pub features: BTreeMap<String, usize>,
    /// By feature, then by symbol.
    pub rows: Vec<Row>,
}

impl Table {
    /// The rows whose feature cannot work.
    pub fn unmet(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| !row.verdict.is_met())
    }
}

/// Holds `features` and all that they need against a kernel. Fails only if there is no such feature.
pub fn check(contracts: &Contracts, features: &[String], offer: Offer<'_>) -> Result<Table, DataError> {
    let (mut rows, mut count) = (Vec::new(), BTreeMap::new());
    for name in contracts.closure(features)? {
        let (component, feature) = contracts.get(&name)?;
        let before = rows.len();
        let row = |symbol: &str, wanted: String, why: &str, answer: Answer| Row {
            feature: name.clone(),
            component: component.title.clone(),
            symbol: symbol.to_owned(),
            wanted,
            has: None,
            module: None,
            verdict: answer.verdict,
            finding: answer.finding,
            remedy: answer.remedy,
            why: why.to_owned(),
            source: feature.source.clone(),
        };
        if let Some(linux) = feature.linux {
            rows.push(Row {
                has: Some(offer.version.to_string()),
                ..row(LINUX, format!("{linux} or later"), &feature.description, version(linux, offer))
            });
        }
        let on = |symbol: &String| matches!(offer.config.get(symbol), Some(Value::Yes | Value::Module));
        let here = |demand: &Demand| {
            (demand.arch.is_empty() || demand.arch.contains(&offer.arch))
                && demand.only_with.as_ref().is_none_or(on)
        };
        for (symbol, demand) in feature.symbols.iter().filter(|(_, demand)| here(demand)) {
            let has = offer.config.get(symbol);
            let mut row =
                row(symbol, demand.want.to_string(), &demand.why, judge(symbol, demand, feature, offer));
            row.has = has.map(Value::to_string);
            row.module = demand.module.clone();
            if let Some(source) = &demand.source {
                row.source.clone_from(source);
            }
            rows.push(row);
        }
        count.insert(name.clone(), rows.len() - before);
    }
    let met = rows.iter().all(|row| row.verdict.is_met());
    Ok(Table { linux: offer.version, arch: offer.arch, met, features: count, rows })
}

/// A verdict, and unless all is well what was found and what would help.
struct Answer {
    verdict: Verdict,
    finding: Option<String>,
    remedy: Option<String>,
}

impl Answer {
    const OK: Answer = Answer { verdict: Verdict::Ok, finding: None, remedy: None };

    fn new(verdict: Verdict, finding: String, remedy: impl Into<Option<String>>) -> Self {
        Answer { verdict, finding: Some(finding), remedy: remedy.into() }
    }
}

fn version(needed: Version, offer: Offer<'_>) -> Answer {
    if offer.version >= needed {
        return Answer::OK;
    }
    let finding = format!("Linux {} cannot do it yet", offer.version);
    Answer::new(Verdict::Unknown, finding, format!("a kernel of Linux {needed} or later"))
}

fn judge(symbol: &str, demand: &Demand, feature: &Feature, offer: Offer<'_>) -> Answer {
    let (linux, has) = (offer.version, offer.config.get(symbol));
    match (demand.want, has) {
        (Want::Yes | Want::Either, Some(Value::Yes)) => return builtin(demand, offer),
        (Want::No, None | Some(Value::No)) => return Answer::OK,
        (Want::Module | Want::Either, Some(Value::Module)) => return module(demand, feature, offer),
        _ => {}
    }
    // Only where the .config is silent can the version be the reason.
    if has.is_none() {
        if let Some(absent) = demand.absent_since.filter(|absent| linux >= *absent) {
            return Answer::new(
                Verdict::Gone,
                format!("unknown to Linux {linux}: gone since {absent}"),
                None,
            );
        }
        if let Some(known) = demand.known_since.filter(|known| linux < *known) {
            let finding = format!("unknown to Linux {linux}: it came with {known}");
            return Answer::new(Verdict::Unknown, finding, format!("a kernel of Linux {known} or later"));
        }
    }
    let finding = match has {
        Some(Value::No) => "it is not set".to_owned(),
        Some(value) => format!("it is {value}"),
        None => "it is hidden: an option that it depends on is off".to_owned(),
    };
    let wanted = match demand.want {
        Want::No => format!("a kernel without CONFIG_{symbol}"),
        Want::Either => format!("a kernel with CONFIG_{symbol}=y or =m"),
        want => format!("a kernel with CONFIG_{symbol}={want}"),
    };
    Answer::new(Verdict::Missing, finding, wanted)
}

/// A symbol that is `y` has its code in the kernel; where it would be a module otherwise, the kernel's own list must say so.
fn builtin(demand: &Demand, offer: Offer<'_>) -> Answer {
    match (offer.modules, &demand.module) {
        (Some(modules), Some(name)) if !modules.builtin.contains(name) => Answer::new(
            Verdict::Dropped,
            format!("it is y, but modules.builtin of the kernel does not list {name}"),
            "a kernel package that is whole".to_owned(),
        ),
        _ => Answer::OK,
    }
}

fn module(demand: &Demand, feature: &Feature, offer: Offer<'_>) -> Answer {
    let (Some(modules), Some(name)) = (offer.modules, &demand.module) else { return Answer::OK };
    // A symbol may be m only for Kconfig while its code is in the kernel, as CRYPTO_AEAD is.
    if modules.builtin.contains(name) || (modules.root.contains(name) && !feature.early) {
        return Answer::OK;
    }
    let (finding, remedy) = match modules.dropped.get(name) {
        _ if modules.root.contains(name) && modules.initrd.contains(name) => return Answer::OK,
        _ if modules.root.contains(name) => (
            format!("its module {name} is not in the initrd, where it is needed to open the root"),
            format!("add \"{name}\" to `kernel.initrd.modules`"),
        ),
        Some(Dropped { path, by: Some(drop) }) => (
            format!("its module {path} is not in the image: `kernel.modules.drop` has \"{drop}\""),
            format!("take \"{drop}\" out of `kernel.modules.drop`"),
        ),
        Some(Dropped { path, by: None }) => (
            format!("its module {path} is not in the image: `kernel.modules.keep` does not name it"),
            format!("add \"{name}\" to `kernel.modules.keep`"),
        ),
        None => (
            format!("the kernel's package has no module {name}"),
            format!("a kernel package with the module {name}"),
        ),
    };
    Answer::new(Verdict::Dropped, finding, remedy)
}
