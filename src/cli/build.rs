//! `kiln build`.

use anyhow::Result;

use super::Context;
use crate::arch::Arch;
use crate::lock::SetKind;
use crate::packages::Work;

/// Arguments of `kiln build`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Profile to bake, or `all`
    #[arg(long, value_name = "NAME")]
    profile: String,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let (project, locked) = context.locked()?;
    let store = context.store()?;
    let work = Work { project: &project, locked: &locked, store: &store, ui: &context.ui, threads: 2 };
    let t = std::time::Instant::now();
    let packages = work.set(SetKind::Profile, &args.profile, Arch::Amd64)?;
    context.ui.status("took", format!("{:?}", t.elapsed()));
    let (kp, release) = crate::kernel::find(&packages)?;
    let t = std::time::Instant::now();
    let k = crate::kernel::prepare(
        &store,
        kp,
        &release,
        &project.profile(&args.profile)?.layer.kernel.modules,
        2,
    )?;
    context.ui.status("kernel", format!("{:?} {} modules", t.elapsed(), k.modules.by_name.len()));
    let files: usize = packages.iter().map(|p| p.tree.len()).sum();
    context.ui.status("files", format!("{files}"));
    Ok(())
}
