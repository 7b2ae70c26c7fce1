//! What the output of a recipe depends on, as the key of its step.

use anyhow::Result;

use super::spec::{Limits, Recipe, RecipeSpec, Recipes, Source};
use super::{fetch, root};
use crate::arch::Arch;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::lock::time;
use crate::packages::Work;
use crate::store::StepKey;
use crate::tools;

/// Raised when the sandbox or the canonical form change in a way that shows in outputs.
const VERSION: u32 = 1;

/// The architecture of this machine, which is that of the tools.
pub(super) fn host() -> Result<Arch> {
    Arch::host().ok_or_else(|| {
        Failure::new(Kind::Tool, format!("kiln has no tools for {} machines", std::env::consts::ARCH)).into()
    })
}

/// The time that builds of `recipe` see.
pub(super) fn epoch(work: &Work<'_>, recipe: &Recipe) -> i64 {
    recipe.spec.time.as_deref().and_then(time::parse_iso).unwrap_or_else(|| work.locked.lock().epoch())
}

/// The key of the step that builds `recipe`: of everything that is in the sandbox, and nothing else. Outputs of other recipes count by
/// the keys of those, so that it is known before anything is built.
pub(super) fn key(work: &Work<'_>, recipes: &Recipes, recipe: &Recipe) -> Result<StepKey> {
    let arch = host()?;
    // What is said about a build, but not to it.
    let spec = RecipeSpec {
        description: String::new(),
        limits: Limits::default(),
        foreign_paths: Vec::new(),
        time: None,
        ..recipe.spec.clone()
    };
    let mut key = StepKey::new("recipe", &recipe.name, VERSION)
        .input("recipe.toml", Digest::of(&serde_json::to_vec(&spec)?))
        .input("tools", root::key(work, &recipe.spec.tools, arch)?.digest())
        .input("time", epoch(work, recipe));
    for (path, file) in &recipe.files {
        let mode = if file.executable { " executable" } else { "" };
        key = key.input(&format!("file {path}"), format!("{}{mode}", Digest::of(&file.bytes)));
    }
    for (name, source) in recipe.inputs() {
        let value = match source {
            Source::Set(set) => {
                if !work.project.tools.set.contains_key(set) {
                    return Err(root::unknown(work, set).into());
                }
                tools::packages(work.locked, set, arch)?
            }
            Source::Recipe(other) => self::key(work, recipes, recipes.get(other)?)?.digest(),
            Source::GoModules { folder, sha256 } => fetch::key(recipe, name, folder, sha256)?.digest(),
        };
        key = key.input(&format!("input {name}"), value);
    }
    Ok(key)
}
