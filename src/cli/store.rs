//! `kiln store`.

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use super::Context;
use crate::error::{Failure, Kind};
use crate::store::{Item, ItemKind};
use crate::ui::human_bytes;

/// Arguments of `kiln store`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List what is in the store
    Ls,
    /// Sum up what is in the store, by kind
    Du,
    /// Say which projects need a store path
    Why {
        /// A path in the store, absolute, relative to it, or the beginning of its last part
        path: String,
    },
    /// Remove what no project needs any more
    Gc {
        /// Only show what would be removed
        #[arg(long)]
        dry_run: bool,
    },
    /// Read everything and compare it with its digest
    Verify {
        /// Remove what is damaged, so that the next build makes it again
        #[arg(long)]
        repair: bool,
    },
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let (ui, store) = (&context.ui, context.store()?);
    match &args.verb {
        Verb::Ls => {
            let items = store.list()?;
            if ui.json() {
                return ui.result_json(&items);
            }
            for item in items {
                ui.result(
                    format!("{:>10}  {}  {}", human_bytes(item.bytes), item.path, item.title).trim_end(),
                );
            }
        }
        Verb::Du => du(context, &store.list()?)?,
        Verb::Why { path } => {
            let items = store.list()?;
            let wanted = path.trim_start_matches(&format!("{}/", store.root().display()));
            let found: Vec<&Item> = items
                .iter()
                .filter(|i| {
                    i.path == wanted || i.path.rsplit('/').next().is_some_and(|last| last.starts_with(wanted))
                })
                .collect();
            let item = match found.as_slice() {
                [item] => item,
                [] => {
                    return Err(Failure::new(
                        Kind::Input,
                        format!("nothing in the store is called `{path}`"),
                    )
                    .hint("`kiln store ls` lists all")
                    .into());
                }
                _ => {
                    return Err(Failure::new(
                        Kind::Input,
                        format!("`{path}` could be {} things in the store", found.len()),
                    )
                    .hint("write more of its name")
                    .into());
                }
            };
            let why = store.why(&item.path)?;
            if ui.json() {
                #[derive(Serialize)]
                struct Reason<'a> {
                    project: String,
                    what: &'a str,
                    chain: &'a [String],
                }
                let reasons: Vec<Reason<'_>> = why
                    .iter()
                    .map(|(root, chain)| Reason {
                        project: root.project.display().to_string(),
                        what: &root.what,
                        chain,
                    })
                    .collect();
                return ui.result_json(&reasons);
            }
            if why.is_empty() {
                ui.result(format!("{}: no project needs it; `kiln store gc` would remove it", item.path));
            }
            for (root, chain) in why {
                ui.result(format!("{} needs it for {}", root.project.display(), root.what));
                for path in chain {
                    ui.result(format!("  -> {path}"));
                }
            }
        }
        Verb::Gc { dry_run } => {
            let report = store.gc(*dry_run)?;
            if ui.json() {
                return ui.result_json(&report);
            }
            for path in &report.removed {
                ui.detail(if *dry_run { "Would remove" } else { "Removed" }, path);
            }
            let word = if *dry_run { "would free" } else { "freed" };
            ui.result(format!(
                "{word} {} in {} paths, {} stay",
                human_bytes(report.bytes),
                report.removed.len(),
                report.kept
            ));
        }
        Verb::Verify { repair } => {
            let items = store.list()?;
            let bar = ui.count_bar("Verifying", items.len() as u64);
            let damage = store.verify(*repair, |item| {
                bar.inc(1);
                bar.message(item.path.clone());
            })?;
            drop(bar);
            if ui.json() {
                ui.result_json(&damage)?;
            } else {
                for one in &damage {
                    ui.result(format!("{}: {}", one.path, one.what));
                }
                ui.status("Verified", format!("{} paths, {} damaged", items.len(), damage.len()));
            }
            if !damage.is_empty() && !*repair {
                let text = format!("{} of {} paths in the store are damaged", damage.len(), items.len());
                return Err(Failure::new(Kind::Store, text)
                    .hint("`kiln store verify --repair` removes them; the next build makes them again")
                    .into());
            }
        }
    }
    Ok(())
}

fn du(context: &Context, items: &[Item]) -> Result<()> {
    #[derive(Serialize)]
    struct Sum {
        kind: String,
        count: u64,
        bytes: u64,
    }
    let mut sums: std::collections::BTreeMap<String, (u64, u64)> = std::collections::BTreeMap::new();
    for item in items {
        let kind = match item.kind {
            ItemKind::Object => "objects".to_owned(),
            ItemKind::Partial => "partial downloads".to_owned(),
            ItemKind::Failed => "failed builds".to_owned(),
            ItemKind::Step => format!("{} steps", item.title.split(' ').next().unwrap_or_default()),
        };
        let sum = sums.entry(kind).or_default();
        sum.0 += 1;
        sum.1 += item.bytes;
    }
    let sums: Vec<Sum> = sums.into_iter().map(|(kind, (count, bytes))| Sum { kind, count, bytes }).collect();
    if context.ui.json() {
        return context.ui.result_json(&sums);
    }
    for sum in &sums {
        context.ui.result(format!("{:>10}  {:>6}  {}", human_bytes(sum.bytes), sum.count, sum.kind));
    }
    let total: u64 = sums.iter().map(|s| s.bytes).sum();
    context.ui.result(format!("{:>10}  {:>6}  in all", human_bytes(total), items.len()));
    Ok(())
}
