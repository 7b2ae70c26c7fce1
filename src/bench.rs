//! `kiln dev bench`: how long whole builds take, as a person meets them: the program is started, works, and ends.
//!
//! Three builds of a profile, one after the other, each run in a store of its own that has the packages and what recipes
//! compiled, and nothing else:
//!
//! ```text
//! cold       nothing is unpacked yet
//! no-op      the same command again
//! one line   a sysctl is added to the profile
//! ```
//!
//! Both are hard links into the user's store, so no run waits for the network; their files stay in the kernel's page cache
//! between runs. Wall time is taken around the process, processor time and peak memory by the process itself at its end. Numbers of
//! different machines cannot be compared, ratios of one run of the benchmark can.
//!
//! [`switch`] measures the network between machines, [`flash`] writing onto disks.

pub mod flash;
pub mod switch;

use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::exec::Tool;
use crate::k3s;
use crate::lock::SetKind;
use crate::packages::Work;
use crate::pipeline;
use crate::rebuild::give_sources;
use crate::spec::FOLDERS;
use crate::store::Store;

/// One build.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Seconds from start to end of the process.
    pub wall: f64,
    /// Seconds of processor time, user and system, all threads.
    pub cpu: f64,
    /// Peak resident memory in bytes.
    pub memory: u64,
}

/// All runs of one kind of build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// `cold`, `no-op` or `one line`.
    pub name: String,
    /// In the order in which they ran.
    pub runs: Vec<Run>,
    /// The median of each value by itself.
    pub median: Run,
}

/// What the benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Profile that was built.
    pub profile: String,
    /// Machine that it was built for.
    pub arch: Arch,
    /// Threads of each build.
    pub threads: usize,
    /// Whether the program was compiled without optimisation.
    pub debug: bool,
    /// The kinds of builds.
    pub cases: Vec<Case>,
    /// Wall time of the cold build by that of the one that has nothing to do.
    pub cold_by_noop: f64,
    /// Wall time of the build after a changed line by that of the cold one.
    pub one_line_by_cold: f64,
}

/// The part of a build's `--json` that is looked at.
#[derive(Deserialize)]
struct Built {
    built: bool,
    cpu_seconds: f64,
    peak_memory: u64,
}

/// Measures builds of `profile` with `program`, a kiln, `runs` times.
///
/// What is missing in the store of `work` is fetched and compiled first, so that no run waits for the network or for a compiler.
pub fn bench(work: &Work<'_>, program: &Path, profile: &str, arch: Arch, runs: usize) -> Result<Results> {
    let found = work.project.profile(profile)?;
    let toml = &found.file;
    pipeline::packages(work, found, arch, k3s::choose(work, found, arch)?)?;
    for set in ["boot", "initrd"] {
        work.set(SetKind::Tool, set, arch)?;
    }
    let mut cases = [("cold", Vec::new()), ("no-op", Vec::new()), ("one line", Vec::new())];
    let bar = work.ui.count_bar("Measuring", (runs * cases.len()) as u64);
    for _ in 0..runs {
        let staging = work.store.staging()?;
        let store = Store::open(&staging.file("store"))?;
        give_sources(work, found, arch, &store)?;
        drop(store);
        let project = staging.file("project");
        for folder in FOLDERS.map(|folder| (work.project.dir.join(folder), project.join(folder))) {
            if folder.0.is_dir() {
                copy(&folder.0, &folder.1)?;
            }
        }
        for (index, (name, measured)) in cases.iter_mut().enumerate() {
            bar.message(*name);
            if index == 2 {
                add_line(&project.join(toml))?;
            }
            let (built, run) = build(program, staging.path(), profile, arch, work.threads)?;
            anyhow::ensure!(built == (index != 1), "the {name} build did not do what it should have");
            measured.push(run);
            bar.inc(1);
        }
    }
    drop(bar);
    let cases: Vec<Case> = cases
        .into_iter()
        .map(|(name, runs)| Case { name: name.to_owned(), median: median(&runs), runs })
        .collect();
    let wall = |index: usize| cases[index].median.wall;
    Ok(Results {
        profile: profile.to_owned(),
        arch,
        threads: work.threads,
        debug: cfg!(debug_assertions),
        cold_by_noop: wall(0) / wall(1),
        one_line_by_cold: wall(2) / wall(0),
        cases,
    })
}

/// Runs one build in the folder `place` and says whether it built anything.
fn build(program: &Path, place: &Path, profile: &str, arch: Arch, threads: usize) -> Result<(bool, Run)> {
    let mut args: Vec<OsString> = ["--json", "--quiet", "build"].map(OsString::from).into();
    let pairs: [(&str, OsString); 6] = [
        ("--project", place.join("project").into()),
        ("--store", place.join("store").into()),
        ("--out", place.join("out").into()),
        ("--profile", profile.into()),
        ("--arch", arch.debian().into()),
        ("--threads", threads.to_string().into()),
    ];
    for (flag, value) in pairs {
        args.extend([flag.into(), value]);
    }
    let started = Instant::now();
    // A program that had to be compiled would need its modules: then the run fails, and does not measure a compiler.
    let output = Tool::host(program).command().env("GOPROXY", "off").args(args).read()?;
    let wall = started.elapsed().as_secs_f64();
    let built: [Built; 1] = serde_json::from_slice(&output).context("reading what the build said")?;
    let [Built { built, cpu_seconds: cpu, peak_memory: memory }] = built;
    Ok((built, Run { wall, cpu, memory }))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// Adds a sysctl to the layer at `path`, which changes a file of the root.
fn add_line(path: &Path) -> Result<()> {
    let mut layer: toml::Table = crate::spec::text::read(path)?.parse().context("reading the profile")?;
    let sysctl = layer.entry("sysctl").or_insert_with(|| toml::Table::new().into());
    let sysctl = sysctl.as_table_mut().context("`sysctl` in the profile is no table")?;
    sysctl.insert("vm.swappiness".to_owned(), 13.into());
    fs::write(path, toml::to_string(&layer)?)?;
    Ok(())
}

fn median(runs: &[Run]) -> Run {
    let middle = |value: fn(&Run) -> f64| middle(runs.iter().map(value).collect());
    Run { wall: middle(|r| r.wall), cpu: middle(|r| r.cpu), memory: middle(|r| r.memory as f64) as u64 }
}

/// The median; of none 0.
fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

impl Results {
    /// The table and the ratios as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines =
            vec![format!("{:<10} {:>5} {:>10} {:>10} {:>12}", "build", "runs", "wall s", "cpu s", "peak MB")];
        for case in &self.cases {
            let Run { wall, cpu, memory } = case.median;
            lines.push(format!(
                "{:<10} {:>5} {wall:>10.3} {cpu:>10.2} {:>12.1}",
                case.name,
                case.runs.len(),
                memory as f64 / 1e6
            ));
        }
        lines.push(format!(
            "cold / no-op {:.0}, one line / cold {:.3}",
            self.cold_by_noop, self.one_line_by_cold
        ));
        let build = if self.debug { "unoptimised program" } else { "optimised program" };
        lines.push(format!("{} ({}), medians, {} threads, {build}", self.profile, self.arch, self.threads));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(walls: &[f64]) -> Vec<Run> {
        walls.iter().map(|wall| Run { wall: *wall, cpu: 2.0 * wall, memory: 1_000_000 }).collect()
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(median(&runs(&[9.0, 1.0, 2.0])).wall, 2.0);
        assert_eq!(median(&runs(&[9.0, 1.0, 2.0, 4.0])).cpu, 6.0);
        assert_eq!(median(&[]).memory, 0);
    }

    #[test]
    fn the_changed_line_changes_what_the_profile_says_and_leaves_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        for folder in FOLDERS {
            copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &dir.path().join(folder)).unwrap();
        }
        let load = || crate::spec::Project::load(dir.path()).unwrap().profiles["server"].layer.clone();
        let before = load();
        add_line(&dir.path().join("profiles/server.toml")).unwrap();
        let mut after = load();
        assert_ne!(after, before);
        after.sysctl.remove("vm.swappiness").unwrap();
        assert_eq!(after, before);
    }

    #[test]
    fn results_are_a_table_and_read_back_as_json() {
        let case = |name: &str, walls: &[f64]| {
            let runs = runs(walls);
            Case { name: name.to_owned(), median: median(&runs), runs }
        };
        let results = Results {
            profile: "server".to_owned(),
            arch: Arch::Amd64,
            threads: 2,
            debug: true,
            cases: vec![case("cold", &[10.0]), case("no-op", &[0.02]), case("one line", &[1.5])],
            cold_by_noop: 500.0,
            one_line_by_cold: 0.15,
        };
        insta::assert_snapshot!(results.lines().join("\n"), @r"
        build       runs     wall s      cpu s      peak MB
        cold           1     10.000      20.00          1.0
        no-op          1      0.020       0.04          1.0
        one line       1      1.500       3.00          1.0
        cold / no-op 500, one line / cold 0.150
        server (amd64), medians, 2 threads, unoptimised program
        ");
        let text = serde_json::to_string(&results).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
    }
}
