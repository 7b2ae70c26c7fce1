//! From scenarios to verdicts: bakes the images, checks and plans, runs, and leaves the reports.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;

use super::calibrate::Calibration;
use super::check::{self, host::Host};
use super::engine::{self, Image, Images, Kept, Setup};
use super::keep;
use super::plan::Plan;
use super::report::live::Progress;
use super::report::{self, Files};
use super::result::Run;
use super::spec::Scenario;
use crate::arch::Arch;
use crate::contract::probe_script;
use crate::error::{Failure, Kind};
use crate::packages::Work;
use crate::pipeline::{self, Target};
use crate::qemu::accel::{self, Accel, Choice};
use crate::{manifest, sys, tools};

/// How scenarios are to be run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder with the images.
    pub out: PathBuf,
    /// The folder that gets a folder per scenario.
    pub reports: PathBuf,
    /// In place of the file's seed.
    pub seed: Option<u64>,
    /// In place of the file's number of power cuts.
    pub cuts: Option<u32>,
    /// Leave the machines up in the end.
    pub keep: bool,
    /// Record every cable.
    pub capture_all: bool,
    /// A fixed accelerator; `None` lets a test guest decide.
    pub accel: Option<Accel>,
    /// Bake the images first; else they must be there.
    pub build: bool,
}

/// A scenario that was run.
#[derive(Debug)]
pub struct Proof {
    /// What came of it.
    pub run: Run,
    /// Its report.
    pub files: Files,
}

/// What guests are run with.
struct Ground {
    tools: PathBuf,
    choice: Choice,
    host: Host,
    calibration: Calibration,
}

impl Ground {
    fn prepare(work: &Work<'_>, options: &Options) -> Result<Self> {
        let tools = tools::folder(work, "qemu")?;
        let choice = match options.accel {
            Some(accel) => Choice { accel, reason: "as asked".to_owned() },
            None => accel::prove(&tools, Arch::Amd64)?,
        };
        let host = Host::measure()?;
        let calibration = Calibration::measure(&tools, Arch::Amd64, choice.accel, host.cpus)?;
        Ok(Ground { tools, choice, host, calibration })
    }
}

/// What a run of `scenario` would need and do; nothing is started but a test guest of a second.
///
/// # Errors
/// The scenario does not fit the project or this machine.
pub fn plan(work: &Work<'_>, scenario: &Scenario, options: &Options) -> Result<Plan> {
    let ground = Ground::prepare(work, options)?;
    examine(work, &adjusted(scenario, options), options, &ground)
}

/// The scenario as the command line wants it.
fn adjusted(scenario: &Scenario, options: &Options) -> Scenario {
    let mut scenario = scenario.clone();
    scenario.seed = options.seed.unwrap_or(scenario.seed);
    if let Some(count) = options.cuts {
        scenario.set_cuts(count);
    }
    scenario
}

fn examine(work: &Work<'_>, scenario: &Scenario, options: &Options, ground: &Ground) -> Result<Plan> {
    let now = crate::lock::time::now();
    let checked = check::check(scenario, work.project, &options.out, &ground.host, ground.choice.accel, now)?;
    checked.notes.iter().for_each(|note| work.ui.warn(note));
    Ok(Plan::new(scenario, scenario.seed, &ground.calibration))
}

/// Runs all `scenarios`, one after the other, and writes their reports.
///
/// # Errors
/// What kept a scenario from being run at all. What failed in one is in its [`Proof`], see [`verdict`].
pub fn all(work: &Work<'_>, scenarios: &[Scenario], options: &Options) -> Result<Vec<Proof>> {
    // Everything that can be wrong is told before the first machine is started.
    let ground = Ground::prepare(work, options)?;
    work.ui.status("Chosen", ground.choice.to_string());
    let scenarios: Vec<Scenario> = scenarios.iter().map(|scenario| adjusted(scenario, options)).collect();
    let plans = scenarios
        .iter()
        .map(|scenario| examine(work, scenario, options, &ground))
        .collect::<Result<Vec<_>>>()?;
    let mut images = Images::new();
    for scenario in &scenarios {
        bake(work, scenario, options, &mut images)?;
    }
    let mut proofs = Vec::new();
    for (scenario, plan) in scenarios.iter().zip(&plans) {
        work.ui.status("Testing", format!("{}: {}", scenario.name, plan.estimate));
        proofs.push(one(work, scenario, options, &ground, &images)?);
        sys::check_interrupt()?;
    }
    Ok(proofs)
}

/// The image of every node of the scenario.
fn bake(work: &Work<'_>, scenario: &Scenario, options: &Options, images: &mut Images) -> Result<()> {
    for node in scenario.nodes() {
        let key = (node.profile.clone(), node.flavour);
        if images.contains_key(&key) {
            continue;
        }
        let profile = work.project.variant(&node.profile, node.flavour)?;
        let target = Target { profile, arch: Arch::Amd64, out: &options.out };
        let manifest = if options.build {
            pipeline::build(work, &target)?.0
        } else if target.raw().is_file() {
            manifest::read(&manifest::path(&target))?
        } else {
            let what = format!("node {} has no image: there is no {}", node.name, target.raw().display());
            let fix = format!("run `kiln build --profile {}`, or leave out --no-build", profile.name);
            return Err(Failure::new(Kind::Input, what).hint(fix).into());
        };
        let probes = probe_script(&work.project.contracts, &profile.layer.kernel.features, target.arch)?;
        images.insert(key, Image { path: target.raw(), manifest, profile: profile.clone(), probes });
    }
    Ok(())
}

fn one(
    work: &Work<'_>,
    scenario: &Scenario,
    options: &Options,
    ground: &Ground,
    images: &Images,
) -> Result<Proof> {
    let folder = fresh(&options.reports.join(&scenario.name))?;
    let names: Vec<String> = scenario.nodes().map(|node| node.name.to_string()).collect();
    let steps = u32::try_from(scenario.steps.len()).unwrap_or(u32::MAX);
    let progress = Progress::new(work.ui, &names, steps);
    let hold = |run: &Run, kept: &Kept| hold(work, scenario, &folder, run, kept);
    let run = engine::run(&Setup {
        scenario,
        images,
        tools: &ground.tools,
        project: &work.project.dir,
        report: &folder,
        accel: ground.choice.accel,
        choice: &ground.choice,
        calibration: &ground.calibration,
        capture_all: options.capture_all,
        shells: options.keep,
        events: &progress,
        hold: options.keep.then_some(&hold),
    })?;
    let files = report::write(&run, &folder)?;
    progress.finish(&run, &files);
    Ok(Proof { run, files })
}

/// Leaves the machines up until Ctrl-C.
fn hold(work: &Work<'_>, scenario: &Scenario, folder: &Path, run: &Run, kept: &Kept) {
    if sys::interrupted() {
        return;
    }
    let notice = keep::Notice::put(folder, &scenario.name, &kept.shells);
    if let Err(error) = &notice {
        work.ui.warn(format!("nobody can attach: {error:#}"));
    }
    // The report is there as well while somebody looks at the machines.
    if let Err(error) = report::write(run, folder) {
        work.ui.warn(format!("the report is not written yet: {error:#}"));
    }
    let verdict = run.verdict.outcome.word();
    let nodes: Vec<&str> = kept.shells.iter().map(|shell| shell.node.as_str()).collect();
    work.ui.status("Keeping", format!("the machines ({verdict}): {}; Ctrl-C ends them", nodes.join(", ")));
    if let Some(node) = nodes.first() {
        work.ui.status("Attach", format!("with `kiln test attach {node}` in another terminal"));
    }
    match &kept.api {
        Ok(Some(api)) => {
            let file = api.kubeconfig.display();
            work.ui.status("Reach", format!("the API of {} by `kubectl --kubeconfig {file}`", api.node));
        }
        Ok(None) => {}
        Err(error) => work.ui.warn(format!("the API cannot be reached from outside: {error:#}")),
    }
    while !sys::interrupted() {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// An empty folder for the report: what an earlier run of the scenario left would be taken for this one's.
fn fresh(folder: &Path) -> Result<PathBuf> {
    for old in ["logs", "pcap", "screenshots", "files"] {
        match fs::remove_dir_all(folder.join(old)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    for old in ["report.json", "junit.xml", "index.html", keep::FILE, engine::KUBECONFIG] {
        match fs::remove_file(folder.join(old)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    fs::create_dir_all(folder)?;
    Ok(std::path::absolute(folder)?)
}

/// The outcome of all proofs as kiln's own: success only if each passed.
///
/// # Errors
/// [`Kind::Test`] naming those that failed, or that were skipped; [`Kind::Interrupted`].
pub fn verdict(proofs: &[Proof]) -> Result<()> {
    sys::check_interrupt()?;
    let of =
        |fits: fn(&Run) -> bool| -> Vec<&Proof> { proofs.iter().filter(|proof| fits(&proof.run)).collect() };
    let failed = of(|run| run.verdict.outcome.is_failed());
    let skipped = of(|run| run.verdict.outcome.is_skipped());
    let (word, bad) = if failed.is_empty() { ("was skipped", skipped) } else { ("failed", failed) };
    let Some(first) = bad.first() else { return Ok(()) };
    let names: Vec<&str> = bad.iter().map(|proof| proof.run.scenario.name.as_str()).collect();
    let what = format!("{} {word}: {}", names.join(", "), first.run.verdict.outcome.why());
    let reports: Vec<String> = bad.iter().map(|proof| proof.files.html.display().to_string()).collect();
    Err(Failure::new(Kind::Test, what).hint(format!("report: {}", reports.join(", "))).into())
}
