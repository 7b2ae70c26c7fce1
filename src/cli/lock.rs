//! `kiln update` and `kiln outdated`.

use std::collections::BTreeSet;

use anyhow::Result;

use super::Context;
use crate::error::{Failure, Kind};
use crate::lock::{Change, Lock, Metadata, Scope, changes};

/// Arguments of `kiln update`.
#[derive(Debug, clap::Args)]
pub(super) struct UpdateArgs {
    /// Packages that may move; without names, or with `debian`, all do
    names: Vec<String>,
}

/// Arguments of `kiln outdated`.
#[derive(Debug, clap::Args)]
pub(super) struct OutdatedArgs {}

/// The old lock, if there is a usable one. A broken one is no reason not to make a new one, but a person should know.
fn old(context: &Context, dir: &std::path::Path) -> Option<Lock> {
    if !Lock::path(dir).exists() {
        return None;
    }
    match Lock::load(dir) {
        Ok(lock) => Some(lock),
        Err(error) => {
            context.ui.warn(format!("{error:#}; it is made anew"));
            None
        }
    }
}

pub(super) fn update(context: &Context, args: &UpdateArgs) -> Result<()> {
    let (project, store) = (context.project()?, context.store()?);
    let old = old(context, &project.dir);
    let names: BTreeSet<String> = args.names.iter().filter(|n| *n != "debian").cloned().collect();
    let scope = if names.is_empty() { Scope::Everything } else { Scope::Only(names) };
    if old.is_none() && matches!(scope, Scope::Only(_)) {
        return Err(Failure::new(Kind::Lock, "there is no usable lock whose other packages could stay")
            .hint("run `kiln update` without names first")
            .into());
    }
    let metadata = Metadata::fetch(&project, old.as_ref(), &store, &context.ui)?;
    let lock = metadata.resolve(&project, old.as_ref(), &scope, &context.ui)?;
    let changes = changes(old.as_ref(), &lock);
    let written = lock.save(&project.dir)?;
    show(context, &changes, old.is_none())?;
    if !context.ui.json() {
        let text = if written { "images/kiln.lock" } else { "images/kiln.lock is up to date" };
        context.ui.status(if written { "Wrote" } else { "Unchanged" }, text);
    }
    Ok(())
}

pub(super) fn outdated(context: &Context, _: &OutdatedArgs) -> Result<()> {
    let (project, store) = (context.project()?, context.store()?);
    let old = old(context, &project.dir);
    let metadata = Metadata::fetch(&project, old.as_ref(), &store, &context.ui)?;
    let lock = metadata.resolve(&project, old.as_ref(), &Scope::Everything, &context.ui)?;
    show(context, &changes(old.as_ref(), &lock), false)
}

fn show(context: &Context, changes: &[Change], first: bool) -> Result<()> {
    if context.ui.json() {
        return context.ui.result_json(&changes);
    }
    if first {
        context.ui.status("Locked", format!("{} packages for the first time", changes.len()));
        return Ok(());
    }
    for change in changes {
        let sets: Vec<&str> = change.sets.iter().map(String::as_str).collect();
        let (old, new) =
            (change.old.as_deref().unwrap_or("(new)"), change.new.as_deref().unwrap_or("(gone)"));
        context.ui.result(format!("{}:{} {old} -> {new} [{}]", change.name, change.arch, sets.join(", ")));
    }
    if changes.is_empty() {
        context.ui.result("nothing to update");
    }
    Ok(())
}
