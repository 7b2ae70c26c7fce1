//! `kiln update` and `kiln outdated`.

use std::collections::BTreeSet;

use anyhow::Result;

use super::Context;
use crate::error::{Failure, Kind};
use crate::k3s::update::{self as k3s, Asked};
use crate::lock::{Change, Lock, Metadata, Scope, changes};

/// The word that is no package but K3s, which is pinned in images/k3s.toml.
const K3S: &str = "k3s";

/// Arguments of `kiln update`.
#[derive(Debug, clap::Args)]
pub(super) struct UpdateArgs {
    /// Packages that may move; without names, or with `debian`, all do. `k3s` alone: not packages, but the K3s of images/k3s.toml
    names: Vec<String>,

    /// With `k3s`: move to this version, an older one too; default: the newest of a channel
    #[arg(long, value_name = "VERSION", conflicts_with = "channel")]
    to: Option<String>,

    /// With `k3s`: the channel whose newest release is taken, such as `stable`; default: that of the pinned minor
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,

    /// With `k3s`: the revision of K3s' source that is this version; default: what upstream tagged so
    #[arg(long, value_name = "REV", conflicts_with = "no_source")]
    commit: Option<String>,

    /// With `k3s`: take the source out of images/k3s.toml; default: it moves too, or nothing does
    #[arg(long)]
    no_source: bool,
}

impl UpdateArgs {
    /// What is asked of K3s; nothing if this is about packages.
    fn k3s(&self) -> Result<Option<Asked>> {
        let refuse = |text: String, hint: &str| Err(Failure::new(Kind::Input, text).hint(hint).into());
        if !self.names.iter().any(|name| name == K3S) {
            let options = [
                ("--to", self.to.is_some()),
                ("--channel", self.channel.is_some()),
                ("--commit", self.commit.is_some()),
                ("--no-source", self.no_source),
            ];
            return match options.iter().find(|(_, given)| *given) {
                Some((option, _)) => refuse(
                    format!("{option} is about K3s, and only packages are named"),
                    "`kiln update k3s …`",
                ),
                None => Ok(None),
            };
        }
        if let Some(other) = self.names.iter().find(|name| *name != K3S) {
            return refuse(
                format!(
                    "`k3s` and `{other}` do not move together: the one is pinned in images/k3s.toml, the other in images/kiln.lock"
                ),
                &format!("`kiln update k3s`, then `kiln update {other}`"),
            );
        }
        let (to, channel, commit) = (self.to.clone(), self.channel.clone(), self.commit.clone());
        Ok(Some(Asked { to, channel, commit, no_source: self.no_source }))
    }
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
    if let Some(asked) = args.k3s()? {
        return update_k3s(context, &asked);
    }
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
    show(context, &changes(old.as_ref(), &lock), false)?;
    if !context.ui.json()
        && let Some(version) = k3s::newer(&project, &store, &context.ui)
    {
        context.ui.notice("Newer", format!("K3s {version}: `kiln update k3s`"));
    }
    Ok(())
}

fn update_k3s(context: &Context, asked: &Asked) -> Result<()> {
    let (project, store, ui) = (context.project()?, context.store()?, &context.ui);
    let report = k3s::update(&project, &store, ui, super::threads(None), asked)?;
    report.notes.iter().for_each(|note| ui.notice("Note", note));
    if ui.json() {
        return ui.result_json(&report);
    }
    if report.is_current() {
        ui.result(format!("K3s {} is up to date", report.old));
        return Ok(());
    }
    ui.result(format!("K3s {} -> {}", report.old, report.new));
    for component in report.components.iter().filter(|component| component.old != component.new) {
        let (old, new) = (
            component.old.as_deref().unwrap_or("(none known)"),
            component.new.as_deref().unwrap_or("(none known)"),
        );
        ui.result(format!("{} {old} -> {new}", component.name));
    }
    ui.status("Wrote", report.files.join(", "));
    Ok(())
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
