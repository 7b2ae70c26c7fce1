//! The Kconfig language, as far as it takes to know a kernel's symbols and to say why one of them is not as it was asked for.
//!
//! It is described in Linux, Documentation/kbuild/kconfig-language.rst. Nothing is computed here that Kconfig itself computes better:
//! a .config is made by `make olddefconfig` or `allnoconfig`; this reads the same files and explains the outcome. Macros such as
//! `$(cc-option,…)`, which ask the compiler, count as true.

mod expr;
mod parse;

use std::collections::{BTreeMap, BTreeSet};

pub use expr::{Expr, Level};
pub use parse::{KconfigError, read};

use super::config::{Config, Value};

/// How far a chain of unmet dependencies is followed.
const DEPTH: usize = 5;

/// All symbols of a kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kconfig {
    symbols: BTreeMap<String, Symbol>,
}

/// A symbol, which several files may define.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symbol {
    /// Where it is defined, and under which conditions.
    pub definitions: Vec<Definition>,
    /// Symbols that turn it on, each with its condition.
    pub selected_by: Vec<(String, Expr)>,
}

/// One definition of a symbol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// `net/Kconfig:12`.
    pub place: String,
    /// All of its own `depends on` and those of the menus, choices and `if`s around it.
    pub depends: Vec<Expr>,
    /// Whether a person can choose it, and the conditions for that; `None`: it has no prompt.
    pub prompt: Option<Vec<Expr>>,
    /// The choice that it is one of, by number; exactly one of a choice is on.
    pub choice: Option<usize>,
}

impl Kconfig {
    /// The symbol `name`, without `CONFIG_`.
    pub fn get(&self, name: &str) -> Option<&Symbol> {
        self.symbols.get(name)
    }

    /// The names of all symbols, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.symbols.keys().map(String::as_str)
    }

    /// Why `symbol` is not `asked` in `result`, one reason each; empty if these files give none.
    pub fn explain(&self, symbol: &str, asked: &Value, result: &Config) -> Vec<String> {
        let Some(known) = self.get(symbol) else { return vec!["this Linux has no such symbol".to_owned()] };
        let (wanted, got) = (Level::of(Some(asked)), Level::of(result.get(symbol)));
        match asked {
            Value::Text(_) | Value::Number(_) => {
                self.unmet(known, Level::Yes, result, &mut BTreeSet::new(), 0)
            }
            _ if wanted > got => {
                let mut reasons =
                    self.unmet(known, wanted, result, &mut BTreeSet::from([symbol.to_owned()]), 0);
                if reasons.is_empty() && known.definitions.iter().all(|d| d.prompt.is_none()) {
                    reasons.push(format!("it cannot be chosen{}", by(known)));
                }
                if reasons.is_empty() {
                    reasons.extend(
                        self.taken(known, result).map(|name| format!("{name} was taken of the same choice")),
                    );
                }
                reasons
            }
            _ => {
                let on = |(name, condition): &&(String, Expr)| {
                    condition.level(result).min(Level::of(result.get(name))) > wanted
                };
                let selectors = known.selected_by.iter().filter(on);
                let mut reasons: Vec<String> =
                    selectors.map(|(name, _)| format!("{name} selects it")).collect();
                reasons.dedup();
                if reasons.is_empty() && known.definitions.iter().all(|d| d.prompt.is_none()) {
                    reasons.push("it cannot be chosen: its default is not n".to_owned());
                }
                reasons
            }
        }
    }

    /// The symbol that is on in the same choice.
    fn taken(&self, symbol: &Symbol, result: &Config) -> Option<&str> {
        let mut choices = symbol.definitions.iter().filter_map(|d| d.choice);
        let choice = choices.next()?;
        let same = |s: &Symbol| s.definitions.iter().any(|d| d.choice == Some(choice));
        let mut on = self.symbols.iter().filter(|(name, s)| same(s) && result.get(name) == Some(&Value::Yes));
        on.next().map(|(name, _)| name.as_str())
    }

    /// The dependencies of `symbol` that keep it below `wanted`; none if one of its definitions is free of them.
    fn unmet(
        &self,
        symbol: &Symbol,
        wanted: Level,
        result: &Config,
        seen: &mut BTreeSet<String>,
        depth: usize,
    ) -> Vec<String> {
        let mut reasons = Vec::new();
        for definition in &symbol.definitions {
            let conditions = definition.depends.iter().chain(definition.prompt.iter().flatten());
            let mut terms = Vec::new();
            conditions.for_each(|c| c.below(wanted, result, &mut terms));
            if terms.is_empty() && definition.prompt.is_some() {
                return Vec::new();
            }
            for term in terms {
                let said = format!("it depends on {}", term.with_values(result));
                if !reasons.contains(&said) {
                    reasons.push(said);
                    self.follow(term, wanted, result, seen, depth, &mut reasons);
                }
            }
        }
        reasons
    }

    /// A term that is a symbol which is off for a reason of its own: that reason too.
    fn follow(
        &self,
        term: &Expr,
        wanted: Level,
        result: &Config,
        seen: &mut BTreeSet<String>,
        depth: usize,
        reasons: &mut Vec<String>,
    ) {
        let Expr::Symbol(name) = term else { return };
        let Some(symbol) = self.get(name).filter(|_| depth < DEPTH && seen.insert(name.clone())) else {
            return;
        };
        for reason in self.unmet(symbol, wanted, result, seen, depth + 1) {
            let reason = reason.strip_prefix("it ").map_or(reason.clone(), |rest| format!("{name} {rest}"));
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
    }
}

/// Who turns a symbol on that has no prompt.
fn by(symbol: &Symbol) -> String {
    const SHOWN: usize = 6;
    let names: BTreeSet<&str> = symbol.selected_by.iter().map(|(name, _)| name.as_str()).collect();
    match names.len() {
        0 => ": only its default counts".to_owned(),
        n => {
            let shown: Vec<&str> = names.into_iter().take(SHOWN).collect();
            format!(": it is selected by {}{}", shown.join(", "), if n > SHOWN { " …" } else { "" })
        }
    }
}

#[cfg(test)]
mod tests;
