//! `kiln kernel`.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use super::Context;
use crate::arch::Arch;
use crate::contract::diff::diff;
use crate::contract::named::Named;
use crate::contract::show::{self, Shown};
use crate::contract::{Table, stage};
use crate::error::{Failure, Kind};
use crate::kernel;
use crate::pipeline::{self, Target};

/// Symbols that are listed without `--all`.
const SYMBOLS: usize = 40;

/// Arguments of `kiln kernel`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Hold the kernel of a profile against what its features need; exit code 7 if something is missing
    Check {
        /// Profile whose kernel and features are looked at; default: each
        #[arg(long, value_name = "NAME")]
        profile: Option<String>,

        /// Machine
        #[arg(long, value_enum, default_value = "amd64")]
        arch: Arch,
    },
    /// Show which features one kernel has and another lacks, and which symbols differ
    Diff {
        /// The first kernel: a profile, a manifest (out/server.json), an image beside its manifest, or a .config file
        first: String,

        /// The kernel it is compared with
        second: String,

        /// Machine of profiles and .config files
        #[arg(long, value_enum, default_value = "amd64")]
        arch: Arch,

        /// List every symbol that differs, however many
        #[arg(long)]
        all: bool,

        /// End with exit code 7 if the kernels differ
        #[arg(long)]
        exit_code: bool,
    },
    /// List the features that a profile can ask for
    Features,
}

/// What `kernel check --json` says of each profile.
#[derive(Debug, Serialize, Deserialize)]
struct Checked {
    profile: String,
    /// `uname -r`.
    kernel: String,
    #[serde(flatten)]
    table: Table,
}

/// What `kernel features --json` says of each feature.
#[derive(Debug, Serialize)]
struct Listed {
    feature: String,
    description: String,
    source: String,
    needs: Vec<String>,
    symbols: usize,
    /// Profiles that ask for it.
    profiles: Vec<String>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    match &args.verb {
        Verb::Check { profile, arch } => check(context, profile.as_deref(), *arch),
        Verb::Diff { first, second, arch, all, exit_code } => {
            let shown = if *all { usize::MAX } else { SYMBOLS };
            compare(context, [first, second], *arch, shown, *exit_code)
        }
        Verb::Features => features(context),
    }
}

fn check(context: &Context, profile: Option<&str>, arch: Arch) -> Result<()> {
    let (project, locked) = context.locked()?;
    let (store, out) = (context.store()?, context.out(None));
    let work = context.work(&project, &locked, &store);
    let names = match profile {
        Some(name) => vec![name],
        None => project.profiles.keys().map(String::as_str).collect(),
    };
    let mut checked = Vec::new();
    for name in names {
        let target = Target { profile: project.profile(name)?, arch, out: &out };
        let packages = pipeline::base(&work, target.profile, arch)?;
        let (package, kernel) = (kernel::find(&packages)?.0, pipeline::kernel(&work, &target, &packages)?);
        let table = stage::table(&work, target.profile, arch, package, &kernel)?;
        checked.push(Checked { profile: name.to_owned(), kernel: kernel.release.clone(), table });
    }
    if context.ui.json() {
        context.ui.result_json(&checked)?;
    } else {
        let mut all: Vec<Shown<'_>> = Vec::new();
        for Checked { profile, kernel, table } in &checked {
            // Roles with the same kernel and features are the rule: one table is enough for them.
            match all.iter_mut().find(|shown| shown.kernel == kernel && shown.table == table) {
                Some(shown) => shown.profiles.push(profile),
                None => all.push(Shown { profiles: vec![profile], arch, kernel, table }),
            }
        }
        show::lines(&all).into_iter().for_each(|line| context.ui.result(line));
    }
    let lacks = |c: &&Checked| !c.table.met;
    let unmet: Vec<String> = checked
        .iter()
        .filter(lacks)
        .map(|c| format!("{} ({})", c.profile, c.table.unmet().count()))
        .collect();
    if unmet.is_empty() {
        return Ok(());
    }
    let text = format!("demands on the kernel are not met: {}", unmet.join(", "));
    Err(Failure::new(Kind::Test, text).hint("`kiln build` refuses such an image").into())
}

fn compare(context: &Context, names: [&String; 2], arch: Arch, shown: usize, exit_code: bool) -> Result<()> {
    let (project, locked) = context.locked()?;
    let (store, out) = (context.store()?, context.out(None));
    let work = context.work(&project, &locked, &store);
    let [first, second] = names.map(|name| Named::find(&work, name, arch, &out));
    let difference = diff(&project.contracts, first?.offer(), second?.offer())?;
    if context.ui.json() {
        context.ui.result_json(&difference)?;
    } else {
        let lines = difference.lines(names.map(String::as_str), shown);
        lines.into_iter().for_each(|line| context.ui.result(line));
    }
    if exit_code && !difference.same {
        return Err(Failure::new(Kind::Test, format!("{} and {} differ", names[0], names[1])).into());
    }
    Ok(())
}

fn features(context: &Context) -> Result<()> {
    let project = context.project()?;
    let mut listed = Vec::new();
    for (name, feature) in project.contracts.all() {
        let asks = |profile: &&crate::spec::Profile| {
            let closure = project.contracts.closure(&profile.layer.kernel.features);
            closure.is_ok_and(|closure| closure.contains(&name))
        };
        listed.push(Listed {
            profiles: project.profiles.values().filter(asks).map(|p| p.name.clone()).collect(),
            description: feature.description.clone(),
            source: feature.source.clone(),
            needs: feature.needs.clone(),
            symbols: feature.symbols.len(),
            feature: name,
        });
    }
    if context.ui.json() {
        return context.ui.result_json(&listed);
    }
    let width = listed.iter().map(|l| l.feature.len()).max().unwrap_or(0);
    let mut groups: BTreeMap<&[String], Vec<String>> = BTreeMap::new();
    for l in &listed {
        let line = format!("  {:width$}  {}", l.feature, l.description);
        groups.entry(&l.profiles).or_default().push(line);
    }
    // What nobody asks for is the longest part, and the least.
    for (profiles, lines) in groups.iter().rev() {
        context.ui.result(match profiles {
            [] => "no profile asks for:".to_owned(),
            [one] => format!("{one} asks for:"),
            several => format!("{} ask for:", several.join(", ")),
        });
        lines.iter().for_each(|line| context.ui.result(line));
    }
    Ok(())
}
