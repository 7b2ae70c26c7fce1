//! The contract on a running node: a shell script that reads the .config out of the image, loads the modules, and makes the devices,
//! mounts, rules, units and BPF programs that the features are about.
//!
//! It needs nothing but what a node has anyway: dash, coreutils, kmod, systemd, and the programs of the features themselves. It leaves the
//! modules loaded and nothing else. What it prints is read by [`Finding::parse`].

use serde::{Deserialize, Serialize};

use super::data::{Contracts, DataError, Want};
use crate::arch::Arch;

/// The functions that the generated lines call.
const FUNCTIONS: &str = include_str!("probe.sh");

/// What a node says of one demand or probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Whether it is so.
    pub ok: bool,
    /// The feature.
    pub feature: String,
    /// What was looked at; if it is not so, also why, after a colon.
    pub text: String,
}

impl Finding {
    /// Reads a line of the script's output; `None` if it is none.
    pub fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        let (feature, text) = rest.split_once(' ')?;
        let ok = match word {
            "ok" => true,
            "no" => false,
            _ => return None,
        };
        Some(Finding { ok, feature: feature.to_owned(), text: text.to_owned() })
    }
}

/// The POSIX script that confirms `features` and all that they need on a running node, as root. It prints `ok FEATURE WHAT` or
/// `no FEATURE WHAT: WHY` for each symbol and probe, and ends with 0 if there is no `no`.
pub fn probe_script(contracts: &Contracts, features: &[String], arch: Arch) -> Result<String, DataError> {
    let mut script = format!("#!/bin/sh\n{FUNCTIONS}\n");
    let (mut symbols, mut wants, mut probes) = (Vec::new(), String::new(), String::new());
    for name in contracts.closure(features)? {
        let (_, feature) = contracts.get(&name)?;
        if let Some(linux) = feature.linux {
            wants.push_str(&format!("linux {name} {} {}\n", linux.major, linux.minor));
        }
        for (symbol, demand) in &feature.symbols {
            let here = demand.arch.is_empty() || demand.arch.contains(&arch);
            if !here || demand.absent_since.is_some() {
                continue;
            }
            let values = match demand.want {
                Want::Yes => "y",
                Want::Module => "m",
                Want::Either => "y m",
                Want::No => "n",
            };
            let module = demand.module.as_deref().unwrap_or_default();
            if let Some(with) = &demand.only_with {
                wants.push_str(&format!("[ \"${{value_{with}:-n}}\" = n ] || "));
                symbols.push(with.as_str());
            }
            wants.push_str(&format!("want {name} {symbol} '{values}' '{module}'\n"));
            symbols.push(symbol.as_str());
        }
        for probe in &feature.probe {
            let (run, what) = (probe.run.trim(), quote(&probe.what));
            // Not in an `if`: there `set -e` would have no effect.
            probes.push_str(&format!(
                "begin\nwhy=$(exec 2>&1 </dev/null; cd \"$folder\"; set -e\n{run}\n)\nend $? {name} {what} {}\n",
                quote(run)
            ));
        }
    }
    symbols.sort_unstable();
    symbols.dedup();
    script.push_str(&format!("read_config {}\n{wants}{probes}exit $failed\n", symbols.join(" ")));
    Ok(script)
}

/// A text as one word of the shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
