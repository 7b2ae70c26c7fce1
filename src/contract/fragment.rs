//! Fragments of a .config: what a kernel is asked to be, in parts that say why, merged into one.
//!
//! A fragment has the lines of a .config (see [`super::config`]) with comments for people between them. Fragments are merged in order over
//! a base, whose values they replace; of each other they may repeat, but not contradict. Then Kconfig runs, and [`Asked::lost`] says what of that
//! it did not do, and why.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::config::{self, Config, Value};
use super::kconfig::{Kconfig, Level};

/// Why fragments cannot be merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// A line says nothing that a .config can say.
    #[error("{place}: {why}")]
    Line {
        /// File and line.
        place: Place,
        /// What is wrong with it.
        why: String,
    },
    /// Two lines want different things.
    #[error(transparent)]
    Contradiction(Box<Contradiction>),
    /// Symbols that the kernel's sources do not have.
    #[error("the kernel has no {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", no "))]
    Unknown(Vec<Typo>),
}

/// Two lines that want different things of one symbol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("CONFIG_{symbol} is asked to be {} in {} and {} in {}", .first.0, .first.1, .second.0, .second.1)]
pub struct Contradiction {
    /// The symbol.
    pub symbol: String,
    /// What one line asks, and where it stands.
    pub first: (Value, Place),
    /// What the other asks.
    pub second: (Value, Place),
}

/// A line of a fragment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The fragment's file.
    pub file: String,
    /// From 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A symbol that there is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typo {
    /// As it was written.
    pub symbol: String,
    /// Where.
    pub place: Place,
    /// The symbol that looks most like it.
    pub near: Option<String>,
}

impl fmt::Display for Typo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CONFIG_{} ({}", self.symbol, self.place)?;
        match &self.near {
            Some(near) => write!(f, ", did you mean CONFIG_{near}?)"),
            None => f.write_str(")"),
        }
    }
}

/// What fragments ask for: symbol to value and place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    symbols: BTreeMap<String, (Value, Place)>,
}

impl Asked {
    /// Adds the fragment in `file`.
    pub fn add(&mut self, file: &str, text: &str) -> Result<(), FragmentError> {
        for (number, line) in text.lines().enumerate() {
            let place = Place { file: file.to_owned(), line: number + 1 };
            let (symbol, value) = match config::line(line) {
                Ok(Some(said)) => said,
                Ok(None) => continue,
                Err(why) => return Err(FragmentError::Line { place, why }),
            };
            match self.symbols.get(symbol) {
                None => {
                    self.symbols.insert(symbol.to_owned(), (value, place));
                }
                Some((before, _)) if *before == value => {}
                Some(first) => {
                    let symbol = symbol.to_owned();
                    let (first, second) = (first.clone(), (value, place));
                    let contradiction = Contradiction { symbol, first, second };
                    return Err(FragmentError::Contradiction(Box::new(contradiction)));
                }
            }
        }
        Ok(())
    }

    /// All that is asked, by symbol.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value, &Place)> {
        self.symbols.iter().map(|(symbol, (value, place))| (symbol.as_str(), value, place))
    }

    /// `base` with everything that is asked in place of what it says: the .config that Kconfig is given.
    pub fn over(&self, base: &Config) -> Config {
        let mut merged = base.clone();
        self.iter().for_each(|(symbol, value, _)| merged.set(symbol, value.clone()));
        merged
    }

    /// Refuses symbols that `kconfig` does not have, all of them at once. To ask for `n` of a symbol that there is not is a mistake too.
    pub fn known(&self, kconfig: &Kconfig) -> Result<(), FragmentError> {
        let unknown = self.iter().filter(|(symbol, _, _)| kconfig.get(symbol).is_none());
        let typos: Vec<Typo> = unknown
            .map(|(symbol, _, place)| Typo {
                symbol: symbol.to_owned(),
                place: place.clone(),
                near: crate::spec::nearest(symbol, kconfig.names()).map(str::to_owned),
            })
            .collect();
        if typos.is_empty() { Ok(()) } else { Err(FragmentError::Unknown(typos)) }
    }

    /// What of it is not so in `result`, the .config that Kconfig made, each with the reasons that the kernel's files give.
    pub fn lost(&self, result: &Config, kconfig: &Kconfig) -> Vec<Lost> {
        let differs = |(symbol, value, _): &(&str, &Value, &Place)| match value {
            // Hidden is off as well.
            Value::No => Level::of(result.get(symbol)) != Level::No,
            value => result.get(symbol) != Some(value),
        };
        let lost = |(symbol, value, place): (&str, &Value, &Place)| Lost {
            symbol: symbol.to_owned(),
            asked: value.to_string(),
            got: result.get(symbol).map(Value::to_string),
            place: place.clone(),
            because: kconfig.explain(symbol, value, result),
        };
        self.iter().filter(differs).map(lost).collect()
    }
}

/// A symbol that is not what a fragment asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Without `CONFIG_`.
    pub symbol: String,
    /// What was asked.
    pub asked: String,
    /// What Kconfig made of it; `null`: hidden.
    pub got: Option<String>,
    /// Where it was asked.
    pub place: Place,
    /// What stopped it: dependencies, selections.
    pub because: Vec<String>,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let got = self.got.as_deref().unwrap_or("hidden");
        write!(f, "{}: CONFIG_{} is {got}, not {}", self.place, self.symbol, self.asked)?;
        self.because.iter().try_for_each(|reason| write!(f, "\n    {reason}"))
    }
}
