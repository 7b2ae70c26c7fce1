//! Into the folder of a failed build, as its script saw it.

use std::path::Path;

use anyhow::Result;

use super::build::{job, others};
use super::run::Circumstances;
use super::spec::{Recipe, Recipes};
use crate::error::{Failure, Kind};
use crate::packages::Work;
use crate::sandbox::{self, Report};

/// A shell in the sandbox of `recipe` on the folder that `--keep-failed` kept: the same root, inputs, environment and limits, but for that
/// of time. What is changed there stays changed.
///
/// # Errors
/// No folder was kept, or there can be no sandbox.
pub fn enter(work: &Work<'_>, recipes: &Recipes, recipe: &Recipe) -> Result<()> {
    let kept = work.store.failed_path(&recipe.name);
    let (build, tmp) = (kept.join("build"), kept.join("tmp"));
    if !build.is_dir() {
        let text = format!("there is no folder of a failed build of recipe {}", recipe.name);
        return Err(Failure::new(Kind::Input, text)
            .hint(format!("`kiln recipe build {} --keep-failed` keeps one if it fails", recipe.name))
            .into());
    }
    let job = job(work, recipe, &others(work, recipes, recipe)?)?;
    let staging = work.store.staging()?;
    job.lay_inputs(&staging)?;
    let mut plan = job.plan_with(&staging, &build, &tmp, Circumstances::usual(work.threads));
    plan.terminal = true;
    plan.command = ["/bin/bash", "--norc", "-i"].map(str::to_owned).to_vec();
    plan.bounds.seconds = u64::MAX;
    plan.env.insert("PS1".to_owned(), format!("{}:\\w\\$ ", recipe.name));
    if let Ok(term) = std::env::var("TERM") {
        plan.env.insert("TERM".to_owned(), term);
    }
    let script = Path::new("/inputs/recipe").join(&recipe.spec.script);
    work.ui.status(
        "Entering",
        format!("the build of recipe {}; its script is {}", recipe.name, script.display()),
    );
    match sandbox::enter(&plan, staging.path(), &|bytes| work.ui.raw(bytes))? {
        Report::Bound(why) | Report::Full(why) => {
            Err(Failure::new(Kind::Tool, format!("the shell was stopped: {why}")).into())
        }
        // How a shell ends is the person's business.
        Report::Exit(_) | Report::Signal(_) | Report::Setup { .. } => Ok(()),
    }
}
