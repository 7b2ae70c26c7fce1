//! What differs between two kernels: first the features that one of them has and the other lacks, then every symbol.

use serde::{Deserialize, Serialize};

use super::check::{LINUX, Offer, Row, check};
use super::config::{Config, Value};
use super::data::{Contracts, DataError};

/// All that differs between two kernels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelDiff {
    /// Nothing differs.
    pub same: bool,
    /// Features that exactly one of the two has.
    pub features: Vec<FeatureChange>,
    /// Symbols that the two have otherwise.
    pub symbols: Vec<SymbolChange>,
}

/// A feature that one of two kernels lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureChange {
    /// `COMPONENT.FEATURE`.
    pub feature: String,
    /// What it is.
    pub description: String,
    /// Whether the first kernel has it; the second then lacks it.
    pub first: bool,
    /// What the other one lacks: symbols of the feature and of what it needs, `X=n` for one that should be off.
    pub lacks: Vec<String>,
}

/// A symbol that two kernels have otherwise; `null`: not mentioned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymbolChange {
    /// Without `CONFIG_`.
    pub symbol: String,
    /// In the first.
    pub first: Option<String>,
    /// In the second.
    pub second: Option<String>,
}

/// Compares two kernels by all features that there are and by all their symbols.
pub fn diff(contracts: &Contracts, first: Offer<'_>, second: Offer<'_>) -> Result<KernelDiff, DataError> {
    let mut features = Vec::new();
    for (name, feature) in contracts.all() {
        let lacks = |offer| -> Result<Vec<String>, DataError> {
            let table = check(contracts, std::slice::from_ref(&name), offer)?;
            // What should be off is not lacking but in the way.
            let name =
                |row: &Row| if row.wanted == "n" { format!("{}=n", row.symbol) } else { row.symbol.clone() };
            let mut lacks: Vec<String> = table.unmet().map(name).collect();
            lacks.sort();
            lacks.dedup();
            Ok(lacks)
        };
        let (a, b) = (lacks(first)?, lacks(second)?);
        if a.is_empty() != b.is_empty() {
            features.push(FeatureChange {
                feature: name,
                description: feature.description.clone(),
                first: a.is_empty(),
                lacks: if a.is_empty() { b } else { a },
            });
        }
    }
    let symbols = symbols(first.config, second.config);
    Ok(KernelDiff { same: features.is_empty() && symbols.is_empty(), features, symbols })
}

/// What the two say of a symbol differs; `n` and silence are the same to the kernel's code and to this.
fn symbols(first: &Config, second: &Config) -> Vec<SymbolChange> {
    let on = |config: &Config, symbol: &str| config.get(symbol).filter(|v| **v != Value::No).cloned();
    let mut names: Vec<&str> = first.iter().chain(second.iter()).map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    let changed = names.into_iter().filter(|name| on(first, name) != on(second, name));
    let said = |config: &Config, symbol: &str| config.get(symbol).map(Value::to_string);
    let change = |symbol: &str| SymbolChange {
        symbol: symbol.to_owned(),
        first: said(first, symbol),
        second: said(second, symbol),
    };
    changed.map(change).collect()
}

impl KernelDiff {
    /// For people, with at most `shown` symbols; `names` are those of the two kernels.
    pub fn lines(&self, names: [&str; 2], shown: usize) -> Vec<String> {
        if self.same {
            return vec![format!("{} and {} have the same features and symbols", names[0], names[1])];
        }
        let mut lines = Vec::new();
        for (has, lacks, first) in [(names[0], names[1], true), (names[1], names[0], false)] {
            let of: Vec<_> = self.features.iter().filter(|f| f.first == first).collect();
            if !of.is_empty() {
                lines.push(format!("features that {has} has and {lacks} lacks: {}", of.len()));
            }
            for feature in of {
                lines.push(format!("  {}: {}", feature.feature, feature.description));
                let lacking: Vec<String> = feature.lacks.iter().map(|s| title(s)).collect();
                lines.push(format!("    it lacks {}", lacking.join(", ")));
            }
        }
        lines.push(format!("symbols that differ: {}", self.symbols.len()));
        let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        for symbol in self.symbols.iter().take(shown) {
            lines.push(format!("  {}: {} -> {}", symbol.symbol, said(&symbol.first), said(&symbol.second)));
        }
        if self.symbols.len() > shown {
            lines.push(format!("  … and {} more; --all lists them", self.symbols.len() - shown));
        }
        lines
    }
}

/// What people call the symbol of a row.
fn title(symbol: &str) -> String {
    if symbol == LINUX { "a later Linux".to_owned() } else { symbol.to_owned() }
}
