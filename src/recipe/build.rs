//! Recipes to outputs, side by side.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fs_err as fs;

use super::key::{epoch, host, key};
use super::output::{OutputTree, Paths, publish};
use super::run::{Circumstances, Job, Site};
use super::spec::{Recipe, Recipes, Source};
use super::{fetch, root};
use crate::error::{Failure, Kind};
use crate::packages::Work;
use crate::store::{Miss, Root, StepDir, StepKey};
use crate::ui::{human_bytes, human_time};
use crate::{sys, tools};

/// How often a line is printed of a build where nothing is drawn.
const REMINDER: Duration = Duration::from_secs(60);

/// Processors that a build has before another runs beside it, if there are as many. What it got it keeps until it ends: of two builds that
/// share two processors, the long one would have one of them for the whole of its time.
const LEAST: usize = 4;

/// How to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Processors that all builds share; outputs do not depend on it.
    pub jobs: usize,
    /// Whether the folder of a failed build stays, for `kiln recipe enter`.
    pub keep_failed: bool,
}

/// A built recipe.
#[derive(Debug)]
pub struct Built {
    /// The recipe.
    pub name: String,
    /// Its step in the store.
    pub dir: StepDir,
    /// Its outputs.
    pub tree: OutputTree,
    /// Why it was built now, and how long that took; `None` if it was there.
    pub fresh: Option<(Miss, Duration)>,
}

impl Built {
    /// The folder of all outputs.
    pub fn out(&self) -> PathBuf {
        self.dir.file("out")
    }

    /// An output, by its path in /build/out.
    pub fn output(&self, path: &str) -> PathBuf {
        self.out().join(path)
    }

    /// What the build said.
    pub fn log(&self) -> PathBuf {
        self.dir.file("log")
    }
}

/// The output of `recipe` if it is in the store, or why it is not.
pub fn find(work: &Work<'_>, recipes: &Recipes, recipe: &Recipe) -> Result<Result<Built, Miss>> {
    let dir = match work.store.find_step(&key(work, recipes, recipe)?) {
        Ok(dir) => dir,
        Err(miss) => return Ok(Err(miss)),
    };
    Ok(Ok(built(&recipe.name, dir, None)?))
}

fn built(name: &str, dir: StepDir, fresh: Option<(Miss, Duration)>) -> Result<Built> {
    let path = dir.file("out.json");
    let tree = serde_json::from_slice(&fs::read(&path)?).map_err(|e| {
        Failure::new(Kind::Store, format!("{} is damaged", path.display()))
            .hint("run `kiln store verify --repair`")
            .because(e)
    })?;
    Ok(Built { name: name.to_owned(), dir, tree, fresh })
}

/// Builds `names` and what they need; gives those that were asked for, in that order.
///
/// A recipe begins when what it needs is there and a processor is free. Processors that are free are shared out among all that can
/// begin, so one alone gets them all.
///
/// # Errors
/// The first that fails: [`Kind::Tool`] when a script fails or goes over a limit, with its last lines and the path of its log. Builds that
/// run by then are let finish, since their outputs are kept; Ctrl-C stops them.
pub fn build(work: &Work<'_>, recipes: &Recipes, names: &[&str], options: Options) -> Result<Vec<Built>> {
    let order = recipes.closure(names)?;
    let mut done: BTreeMap<&str, Built> = BTreeMap::new();
    let mut waiting: Vec<&Recipe> = Vec::new();
    for recipe in order {
        // Keys of all, before anything is built: a mistake in the last recipe should not be found after an hour.
        match find(work, recipes, recipe)? {
            Ok(found) => drop(done.insert(&recipe.name, found)),
            Err(_) => waiting.push(recipe),
        }
    }
    // What is needed only to build something that is there already need not be there.
    let needed = still_needed(names, &waiting, &done);
    waiting.retain(|recipe| needed.contains(recipe.name.as_str()));
    let mut first_error = None;
    std::thread::scope(|scope| {
        let (sender, ended) = mpsc::channel();
        let (mut free, mut running) = (options.jobs.max(1), 0_usize);
        loop {
            if first_error.is_none() {
                let (ready, rest): (Vec<&Recipe>, Vec<&Recipe>) =
                    waiting.iter().partition(|r| r.needs().all(|need| done.contains_key(need)));
                waiting = rest;
                let mut ready = ready.into_iter().peekable();
                while free > 0 && ready.peek().is_some() {
                    let left = ready.len();
                    let Some(recipe) = ready.next() else { break };
                    let cores = (free / left).max(LEAST).min(free);
                    (free, running) = (free - cores, running + 1);
                    let inputs = inputs_of(recipe, &done);
                    let sender = sender.clone();
                    scope.spawn(move || {
                        let result =
                            inputs.and_then(|inputs| one(work, recipes, recipe, &inputs, cores, options));
                        // The receiver lives as long as anything runs.
                        let _ = sender.send((recipe, cores, result));
                    });
                }
                waiting.extend(ready);
            }
            if running == 0 {
                break;
            }
            // Every build ends by itself after Ctrl-C, so this does too.
            let Ok((recipe, cores, result)) = ended.recv() else { break };
            (free, running) = (free + cores, running - 1);
            match result {
                Ok(built) => drop(done.insert(&recipe.name, built)),
                Err(error) if first_error.is_none() => first_error = Some(error),
                // It has the same cause, or one that the next build will tell.
                Err(_) => {}
            }
        }
    });
    sys::check_interrupt()?;
    if let Some(error) = first_error {
        return Err(error);
    }
    let mut asked = Vec::new();
    for name in names {
        // Asked for twice: taken already.
        let Some(built) = done.remove(name) else { continue };
        work.store.set_root(&Root {
            project: work.project.dir.clone(),
            what: format!("recipe {name}"),
            needs: [work.store.relative(built.dir.path())].into(),
        })?;
        asked.push(built);
    }
    Ok(asked)
}

/// The names among `names` and what those that wait need.
fn still_needed<'a>(
    names: &[&'a str],
    waiting: &[&'a Recipe],
    done: &BTreeMap<&str, Built>,
) -> BTreeSet<&'a str> {
    let mut needed = BTreeSet::new();
    let mut todo: Vec<&str> = names.to_vec();
    while let Some(name) = todo.pop() {
        if !done.contains_key(name)
            && needed.insert(name)
            && let Some(recipe) = waiting.iter().find(|r| r.name == name)
        {
            todo.extend(recipe.needs());
        }
    }
    needed
}

/// The outputs of other recipes that `recipe` needs: input to folder.
fn inputs_of(recipe: &Recipe, done: &BTreeMap<&str, Built>) -> Result<BTreeMap<String, PathBuf>> {
    let mut inputs = BTreeMap::new();
    for (name, source) in recipe.inputs() {
        if let Source::Recipe(other) = source {
            let built = done.get(other).with_context(|| format!("recipe {other} was not built"))?;
            inputs.insert(name.to_owned(), built.out());
        }
    }
    Ok(inputs)
}

/// Builds one recipe whose needs are there.
fn one(
    work: &Work<'_>,
    recipes: &Recipes,
    recipe: &Recipe,
    others: &BTreeMap<String, PathBuf>,
    cores: usize,
    options: Options,
) -> Result<Built> {
    let key = key(work, recipes, recipe)?;
    let begun = Instant::now();
    let outcome = work.store.step(
        &key,
        |miss| work.ui.status("Building", format!("recipe {}: {miss}", recipe.name)),
        |staging| {
            let (site, needs) = run(work, recipe, others, Circumstances::usual(cores), options.keep_failed)?;
            let taken = take(recipe, &site, &staging.file("out"), epoch(work, recipe));
            let tree = taken.or_else(|error| {
                sys::check_interrupt()?;
                let text = format!("the output of recipe {} cannot be taken", recipe.name);
                let hints = site.keep(work, &recipe.name, options.keep_failed)?;
                let failure = hints.iter().fold(Failure::new(Kind::Input, text), |f, hint| f.hint(hint));
                Err(anyhow::Error::from(failure.because(error)))
            })?;
            fs::write(staging.file("out.json"), serde_json::to_vec(&tree)?)?;
            fs::rename(site.log(), staging.file("log"))?;
            Ok(needs)
        },
    )?;
    work.store.forget_failed(&recipe.name)?;
    let built = built(&recipe.name, outcome.dir, outcome.miss.map(|miss| (miss, begun.elapsed())))?;
    if built.fresh.is_some() {
        let (size, time) = (human_bytes(built.tree.size()), human_time(begun.elapsed()));
        let text =
            format!("recipe {} ({size}, sha256 {}…) in {time}", recipe.name, built.tree.digest().short());
        work.ui.status("Built", text);
    }
    Ok(built)
}

/// Runs the script of `recipe` once; gives its folder, and the store paths that were in the sandbox.
pub(super) fn run(
    work: &Work<'_>,
    recipe: &Recipe,
    others: &BTreeMap<String, PathBuf>,
    how: Circumstances,
    keep_failed: bool,
) -> Result<(Site, Vec<String>)> {
    let job = job(work, recipe, others)?;
    let plural = if how.cores == 1 { "" } else { "s" };
    let title = format!("{} [{} core{plural}]", recipe.name, how.cores);
    let bar = work.ui.spinner("Building", title.clone());
    let (begun, told) = (Instant::now(), Cell::new(Instant::now()));
    let site = job.run(work, how, keep_failed, &|line| {
        bar.message(format!("{title} {line}"));
        // Where no line is live, a log of somebody's CI should still show that a long build goes on.
        if !work.ui.live() && told.get().elapsed() > REMINDER {
            told.set(Instant::now());
            work.ui.status("Building", format!("{title} for {}: {line}", human_time(begun.elapsed())));
        }
    })?;
    let needs =
        [&job.root].into_iter().chain(job.inputs.values()).filter_map(|path| step_of(work, path)).collect();
    Ok((site, needs))
}

/// The build of `recipe`, everything it needs laid out.
pub(super) fn job<'a>(
    work: &Work<'_>,
    recipe: &'a Recipe,
    others: &BTreeMap<String, PathBuf>,
) -> Result<Job<'a>> {
    let mut inputs = others.clone();
    for (name, source) in recipe.inputs() {
        match source {
            Source::Set(set) => drop(inputs.insert(name.to_owned(), tools::folder(work, set)?)),
            Source::GoModules { folder, sha256 } => {
                let modules = fetch::go_modules(work, recipe, name, folder, sha256)?;
                inputs.insert(name.to_owned(), modules);
            }
            Source::Recipe(_) => {}
        }
    }
    let script = format!("/inputs/recipe/{}", recipe.spec.script);
    Ok(Job {
        title: format!("recipe {}", recipe.name),
        name: &recipe.name,
        kind: Kind::Tool,
        root: root::folder(work, &recipe.spec.tools, host()?)?.0,
        files: &recipe.files,
        inputs,
        covers: BTreeMap::new(),
        command: ["/bin/bash", "-e", "-u", "-o", "pipefail", &script].map(str::to_owned).to_vec(),
        env: recipe.spec.env.clone(),
        epoch: epoch(work, recipe),
        network: false,
        limits: &recipe.spec.limits,
    })
}

/// Outputs of the recipes that `recipe` needs, which are built where they are not in the store any more.
pub(super) fn others(
    work: &Work<'_>,
    recipes: &Recipes,
    recipe: &Recipe,
) -> Result<BTreeMap<String, PathBuf>> {
    let mut others = BTreeMap::new();
    for (name, source) in recipe.inputs() {
        let Source::Recipe(other) = source else { continue };
        let options = Options { jobs: work.threads, keep_failed: false };
        let out = match find(work, recipes, recipes.get(other)?)? {
            Ok(built) => built.out(),
            Err(_) => {
                let built = build(work, recipes, &[other], options)?;
                built.first().with_context(|| format!("recipe {other} was not built"))?.out()
            }
        };
        others.insert(name.to_owned(), out);
    }
    Ok(others)
}

/// The step in the store that `path` is part of, relative.
fn step_of(work: &Work<'_>, path: &Path) -> Option<String> {
    let relative = path.strip_prefix(work.store.root()).ok()?;
    // steps/KIND/NAME/KEY
    let step: PathBuf = relative.components().take(4).collect();
    relative.starts_with("steps").then(|| step.display().to_string())
}

/// Brings what a build left into `to`: all that the recipe promises and nothing else.
pub(super) fn take(recipe: &Recipe, site: &Site, to: &Path, epoch: i64) -> Result<OutputTree> {
    let tree = publish(&site.out(), to, epoch, Paths::NoBuild(&recipe.spec.foreign_paths))?;
    let promised = &recipe.spec.outputs;
    let refuse = |why: String| {
        Failure::new(Kind::Input, why).hint(format!(
            "`outputs` in {} and what the script leaves in /build/out must agree",
            recipe.shown().display()
        ))
    };
    if let Some(missing) = promised.iter().find(|output| !tree.0.contains_key(*output)) {
        return Err(refuse(format!("the build made no `{missing}`")).into());
    }
    let below = |path: &str, folder: &str| {
        path.strip_prefix(folder).is_some_and(|r| r.is_empty() || r.starts_with('/'))
    };
    let known = |path: &str| promised.iter().any(|output| below(path, output) || below(output, path));
    if let Some(stranger) = tree.0.keys().find(|path| !known(path)) {
        return Err(refuse(format!("the build made `{stranger}`, which is no output")).into());
    }
    Ok(tree)
}

/// The key of a recipe's step, for whoever wants to know what an output depends on.
pub fn step_key(work: &Work<'_>, recipes: &Recipes, name: &str) -> Result<StepKey> {
    key(work, recipes, recipes.get(name)?)
}
