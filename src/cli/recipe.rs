//! `kiln recipe`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use anyhow::Result;
use clap::Subcommand;
use fs_err as fs;
use serde::Serialize;

use super::Context;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::linux;
use crate::packages::Work;
use crate::rebuild::Finding;
use crate::recipe::{self, Options, Recipes};
use crate::ui::human_bytes;

/// Arguments of `kiln recipe`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the recipes, and whether their outputs are in the store
    List,
    /// Build recipes and what they need, each in a sealed sandbox
    Build {
        /// Folders in images/recipes
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,

        /// Build each once more under other circumstances and compare; exit code 7 and the place if they differ
        #[arg(long)]
        check: bool,

        /// Keep the folder of a build that fails
        #[arg(long)]
        keep_failed: bool,

        /// Processors that all builds share; outputs do not depend on it
        #[arg(short, long, value_name = "N")]
        jobs: Option<NonZeroUsize>,
    },
    /// Print the log of the last build that failed, or else of the one in the store
    Log {
        /// The recipe
        name: String,
    },
    /// Open a shell in the folder that a build with --keep-failed left, as its script saw it
    Enter {
        /// The recipe
        name: String,
    },
    /// Fetch what a recipe takes from the network and print the digests
    Hash {
        /// The recipe
        name: String,
    },
}

#[derive(Serialize)]
struct Listed {
    name: String,
    description: String,
    /// `built`, `missing`, or `error`.
    state: &'static str,
    /// Why it is not built.
    reason: Option<String>,
    /// Digest of its outputs.
    sha256: Option<Digest>,
    /// Bytes of its outputs.
    size: Option<u64>,
}

#[derive(Serialize)]
struct Report {
    name: String,
    /// Folder of the outputs.
    out: String,
    sha256: Digest,
    size: u64,
    /// Why it was built now; nothing if it was there.
    built: Option<String>,
    seconds: f64,
    /// With `--check`: where the second build differs.
    check: Option<Vec<Finding>>,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let ui = &context.ui;
    let (project, locked) = context.locked()?;
    let recipes = linux::recipes(&project)?;
    let store = context.store()?;
    let jobs = |asked| super::threads(asked);
    let work = context.work(&project, &locked, &store);
    match &args.verb {
        Verb::List => list(&work, &recipes),
        Verb::Build { names, check, keep_failed, jobs: asked } => {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let options = Options { jobs: jobs(*asked), keep_failed: *keep_failed };
            build(&work, &recipes, &names, options, *check)
        }
        Verb::Log { name } => {
            let recipe = recipes.get(name)?;
            let failed = store.failed_path(name).join("log");
            let path = match recipe::find(&work, &recipes, recipe)? {
                _ if failed.is_file() => failed,
                Ok(built) => built.log(),
                Err(_) => {
                    return Err(Failure::new(Kind::Input, format!("there is no log of recipe {name}"))
                        .hint(format!("`kiln recipe build {name}` writes one"))
                        .into());
                }
            };
            ui.raw(&fs::read(path)?);
            Ok(())
        }
        Verb::Enter { name } => recipe::enter(&work, &recipes, recipes.get(name)?),
        Verb::Hash { name } => {
            let hashes = recipe::hashes(&work, recipes.get(name)?)?;
            if ui.json() {
                return ui.result_json(&hashes);
            }
            if hashes.is_empty() {
                ui.status("Nothing", format!("recipe {name} takes nothing from the network"));
            }
            for (input, digest) in hashes {
                ui.result(format!("[inputs.{input}]\nsha256 = \"{digest}\""));
            }
            Ok(())
        }
    }
}

fn list(work: &Work<'_>, recipes: &Recipes) -> Result<()> {
    let mut rows = Vec::new();
    for (name, recipe) in &recipes.0 {
        let mut row = Listed {
            name: name.clone(),
            description: recipe.spec.description.clone(),
            state: "missing",
            reason: None,
            sha256: None,
            size: None,
        };
        match recipe::find(work, recipes, recipe) {
            Ok(Ok(built)) => {
                row.state = "built";
                (row.sha256, row.size) = (Some(built.tree.digest()), Some(built.tree.size()));
            }
            Ok(Err(miss)) => row.reason = Some(miss.to_string()),
            // One that cannot be built does not keep the others from being seen.
            Err(error) => (row.state, row.reason) = ("error", Some(format!("{error:#}"))),
        }
        rows.push(row);
    }
    if work.ui.json() {
        return work.ui.result_json(&rows);
    }
    if rows.is_empty() {
        work.ui.status("Nothing", format!("there is no recipe in {}/", recipe::FOLDER));
    }
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    for row in rows {
        let state = match (row.size, row.reason) {
            (Some(size), _) => format!("built, {}", human_bytes(size)),
            (None, Some(reason)) => format!("{}: {reason}", row.state),
            (None, None) => row.state.to_owned(),
        };
        work.ui.result(format!("{:width$}  {} ({state})", row.name, row.description));
    }
    Ok(())
}

fn build(work: &Work<'_>, recipes: &Recipes, names: &[&str], options: Options, check: bool) -> Result<()> {
    for kernel in work.project.kernels.keys().filter(|k| names.contains(&linux::recipe_name(k).as_str())) {
        // Before an hour of compiling: it says more than the build itself would.
        linux::verify(work, recipes, kernel, options)?;
    }
    let built = recipe::build(work, recipes, names, options)?;
    let mut reports = Vec::new();
    let mut differ = BTreeMap::new();
    for one in &built {
        let check = if check { Some(recipe::check(work, recipes, one, options)?) } else { None };
        if let Some(findings) = &check {
            if findings.is_empty() {
                work.ui.status("Reproduced", format!("recipe {}: two builds have the same bytes", one.name));
            } else {
                differ.insert(one.name.clone(), findings.clone());
            }
        }
        reports.push(Report {
            name: one.name.clone(),
            out: one.out().display().to_string(),
            sha256: one.tree.digest(),
            size: one.tree.size(),
            built: one.fresh.as_ref().map(|(miss, _)| miss.to_string()),
            seconds: one.fresh.as_ref().map_or(0.0, |(_, time)| time.as_secs_f64()),
            check,
        });
    }
    if work.ui.json() {
        work.ui.result_json(&reports)?;
    } else {
        reports.iter().for_each(|report| work.ui.result(&report.out));
    }
    differ.iter().try_for_each(|(name, findings)| recipe::verdict(name, findings))
}
