//! `kiln update`: from signed metadata to a new lock.
//!
//! Per suite: InRelease from the first mirror whose file is signed by a pinned key, is of that suite, has not expired and is not
//! older than the lock; then the Packages indexes by the digests that it names; then the solver over all suites, per set.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;

use anyhow::{Context, Result};
use fs_err as fs;
use liblzma::bufread::XzDecoder;

use super::file::{Lock, LockedPackage, LockedSet, LockedSuite};
use super::time;
use super::wanted::{SetKind, Want, fingerprint, wants};
use crate::arch::Arch;
use crate::debian::index::{self, PackageRecord};
use crate::debian::openpgp::{self, Fingerprint, PinnedKeys, Verified};
use crate::debian::solve::{self, Provided, Request, Solution, Universe, Wanted};
use crate::error::{Failure, Kind};
use crate::fetch::{self, Fetcher, Mirrors};
use crate::spec::{Archive, Project, Suite};
use crate::store::Store;
use crate::ui::Ui;

/// Larger than any InRelease file (140 KB for a stable release) by far.
const MAX_RELEASE: u64 = 16 << 20;
/// The snapshot archive takes a picture four times a day; one taken so many seconds after a Release's date has that Release.
const SNAPSHOT_DELAY: i64 = 6 * 3600;

/// Which locked versions may move.
#[derive(Debug, Clone)]
pub enum Scope {
    /// All.
    Everything,
    /// Only these packages, and what their new versions need.
    Only(BTreeSet<String>),
}

/// Current, verified metadata of all suites of a project.
#[derive(Debug)]
pub struct Metadata {
    suites: Vec<LockedSuite>,
    universes: BTreeMap<Arch, Universe>,
}

impl Metadata {
    /// Fetches and verifies. `old` guards against a mirror that shows an older state than the one locked.
    pub fn fetch(project: &Project, old: Option<&Lock>, store: &Store, ui: &Ui) -> Result<Self> {
        let keys = keys(project)?;
        let mirrors = Mirrors::of_machine()?;
        let fetcher = Fetcher::new(store, ui)?;
        let now = time::now();
        let mut suites = Vec::new();
        let mut indexes = Vec::new();
        for suite in &project.archive.suite {
            let locked = old.and_then(|lock| lock.suite(&suite.name));
            let spinner = ui.spinner("Checking", format!("signed metadata of {}", suite.name));
            let (base, release) = in_release(suite, locked, &mirrors, &fetcher, &keys, now, ui)?;
            drop(spinner);
            ui.detail(
                "Verified",
                format!(
                    "{} of {}, signed by {}",
                    suite.name,
                    time::iso(release.release().date),
                    release.signers()[0]
                ),
            );
            indexes.push((suite, wanted_indexes(suite, &project.archive, &release, &base, &mirrors)?));
            suites.push(LockedSuite {
                name: suite.name.clone(),
                archive: suite.archive.clone(),
                date: time::iso(release.release().date),
                inrelease: release.digest(),
                snapshot: time::compact(release.release().date + SNAPSHOT_DELAY),
            });
        }
        let requests: Vec<fetch::Request> =
            indexes.iter().flat_map(|(_, list)| list.iter().map(|(_, r)| r.clone())).collect();
        fetcher.fetch(&requests)?;
        let mut universes: BTreeMap<Arch, Universe> = BTreeMap::new();
        for arch in &project.archive.architectures {
            universes.insert(*arch, Universe::new(arch.debian()));
        }
        for (suite, list) in &indexes {
            for (arch, request) in list {
                let records = read_index(store, request, *arch)?;
                universes.get_mut(arch).expect("made above").add(&suite.name, records)?;
            }
        }
        Ok(Metadata { suites, universes })
    }

    /// The newest version of a package now, for the error about one that is gone.
    pub fn newest(&self, name: &str, arch: Arch) -> Option<String> {
        self.universes.get(&arch)?.versions(name).next().map(|(record, _)| record.version.to_string())
    }

    /// Solves every set of `project`.
    pub fn resolve(&self, project: &Project, old: Option<&Lock>, scope: &Scope, ui: &Ui) -> Result<Lock> {
        let wanted = wants(project);
        let mut lock = Lock::new(fingerprint(project, &wanted));
        lock.suite.clone_from(&self.suites);
        let mut packages = BTreeSet::new();
        if let Scope::Only(names) = scope {
            self.check_names(names, old)?;
        }
        for want in &wanted {
            let universe = self.universes.get(&want.id.arch).with_context(|| {
                format!("{} is for an architecture that images/debian.toml does not list", want.id)
            })?;
            let keep = keep(old, want, scope)?;
            let set =
                if want.dependencies { solved(universe, want, keep, ui)? } else { named(universe, want)? };
            lock.set.push(LockedSet {
                id: want.id.clone(),
                wants: want.wants.clone(),
                packages: set.iter().map(|p| format!("{} {}", p.name, p.version)).collect(),
            });
            packages.extend(set);
        }
        lock.package = packages.into_iter().collect();
        Ok(lock)
    }

    fn check_names(&self, names: &BTreeSet<String>, old: Option<&Lock>) -> Result<()> {
        for name in names {
            let locked = old.is_some_and(|lock| lock.package.iter().any(|p| p.name == *name));
            if !locked {
                let known: BTreeSet<&str> =
                    old.iter().flat_map(|l| l.package.iter().map(|p| p.name.as_str())).collect();
                let mut failure = Failure::new(Kind::Input, format!("`{name}` is not in images/kiln.lock"));
                if let Some(near) = crate::spec::nearest(name, known) {
                    failure = failure.hint(format!("did you mean `{near}`?"));
                }
                return Err(failure
                    .hint("`kiln update` without names, or with `debian`, moves everything")
                    .into());
            }
        }
        Ok(())
    }
}

fn keys(project: &Project) -> Result<PinnedKeys> {
    let mut all: Option<PinnedKeys> = None;
    for key in &project.archive.key {
        let path = project.dir.join("images/keys").join(&key.file);
        let wrong = |e: anyhow::Error| {
            Failure::new(Kind::Input, format!("the key images/keys/{} cannot be used", key.file)).because(e)
        };
        let print: Fingerprint = key.fingerprint.parse().map_err(|e| wrong(anyhow::Error::new(e)))?;
        let one = PinnedKeys::read(&fs::read(path)?, &[print]).map_err(|e| wrong(e.into()))?;
        match &mut all {
            Some(all) => all.extend(one),
            None => all = Some(one),
        }
    }
    all.ok_or_else(|| Failure::new(Kind::Input, "images/debian.toml names no key").into())
}

/// The first mirror whose InRelease holds, and what it says.
fn in_release(
    suite: &Suite,
    locked: Option<&LockedSuite>,
    mirrors: &Mirrors,
    fetcher: &Fetcher<'_>,
    keys: &PinnedKeys,
    now: i64,
    ui: &Ui,
) -> Result<(String, Verified)> {
    let bases = mirrors.bases(&suite.archive, Some(&time::compact(now)));
    let mut reasons = Vec::new();
    for base in &bases {
        let url = format!("{base}/dists/{}/InRelease", suite.name);
        let verified = fetcher.get(&url, MAX_RELEASE).and_then(|text| {
            let verified = openpgp::verify(&text, keys, now).with_context(|| url.clone())?;
            let release = verified.release();
            anyhow::ensure!(
                release.codename == suite.name,
                "{url}: it is the Release file of `{}`",
                release.codename
            );
            let date = time::iso(release.date);
            if let Some(locked) = locked {
                anyhow::ensure!(
                    date >= locked.date,
                    "{url}: it is of {date}, older than the locked state of {}",
                    locked.date
                );
            }
            Ok(verified)
        });
        match verified {
            Ok(verified) => return Ok((base.clone(), verified)),
            Err(error) => {
                let why = format!("{error:#}");
                if bases.len() > 1 {
                    ui.detail("Skipped", &why);
                }
                reasons.push(why);
            }
        }
    }
    crate::sys::check_interrupt()?;
    let text =
        format!("no mirror has usable metadata of {}: {}", suite.name, reasons.join("\n             "));
    Err(Failure::new(Kind::Fetch, text)
        .hint("mirrors come from this machine's apt sources, the snapshot archive, KILN_DEBIAN_MIRROR and kiln's config.toml")
        .into())
}

fn wanted_indexes(
    suite: &Suite,
    archive: &Archive,
    release: &Verified,
    base: &str,
    mirrors: &Mirrors,
) -> Result<Vec<(Arch, fetch::Request)>> {
    let mut list = Vec::new();
    for component in &suite.components {
        for arch in &archive.architectures {
            let path = format!("{component}/binary-{arch}/Packages.xz");
            let Some(file) = release.release().files.get(&path) else {
                let text = format!("the suite {} has no {path}", suite.name);
                return Err(Failure::new(Kind::Input, text)
                    .hint("look at `components` and `architectures` in images/debian.toml")
                    .into());
            };
            let path = match release.release().by_hash(&path) {
                Some(by_hash) if release.release().acquire_by_hash => by_hash,
                _ => path,
            };
            let rest = mirrors.bases(&suite.archive, None).into_iter().filter(|b| b != base);
            let urls = std::iter::once(base.to_owned())
                .chain(rest)
                .map(|b| format!("{b}/dists/{}/{path}", suite.name))
                .collect();
            let name = format!("{}/{component} index for {arch}", suite.name);
            list.push((*arch, fetch::Request { name, sha256: file.sha256, size: file.size, urls }));
        }
    }
    Ok(list)
}

fn read_index(store: &Store, request: &fetch::Request, arch: Arch) -> Result<Vec<PackageRecord>> {
    let path = store
        .object(request.sha256, request.size)
        .with_context(|| format!("{} is not in the store", request.name))?;
    let reader = BufReader::with_capacity(
        1 << 20,
        XzDecoder::new(BufReader::with_capacity(1 << 18, fs::File::open(path)?)),
    );
    index::parse(reader, |_, a| a == "all" || a == arch.debian())
        .map_err(|e| Failure::new(Kind::Fetch, format!("{} cannot be read", request.name)).because(e).into())
}

/// Locked versions that stay.
fn keep(
    old: Option<&Lock>,
    want: &Want,
    scope: &Scope,
) -> Result<BTreeMap<String, crate::debian::version::DebVersion>> {
    let (Some(old), Scope::Only(names)) = (old, scope) else { return Ok(BTreeMap::new()) };
    let Some(set) = old.set(&want.id) else { return Ok(BTreeMap::new()) };
    let mut keep = BTreeMap::new();
    for package in old.packages(set) {
        if !names.contains(&package.name) {
            keep.insert(package.name.clone(), package.version.parse()?);
        }
    }
    Ok(keep)
}

fn solved(
    universe: &Universe,
    want: &Want,
    keep: BTreeMap<String, crate::debian::version::DebVersion>,
    ui: &Ui,
) -> Result<Vec<LockedPackage>> {
    let because = match want.id.kind {
        SetKind::Profile => format!("profile {}", want.id.name),
        SetKind::Tool => format!("tool set {} in images/tools.toml", want.id.name),
    };
    let request = Request {
        wanted: want
            .wants
            .iter()
            .map(|name| Wanted { name: name.clone(), because: because.clone() })
            .collect(),
        without: want.without.iter().cloned().collect(),
        provided: want.provided.iter().map(|name| Provided { name: name.clone(), version: None }).collect(),
        keep,
    };
    let solution: Solution = solve::solve(universe, &request)
        .map_err(|e| Failure::new(Kind::Input, format!("{} cannot be resolved", want.id)).because(e))?;
    ui.status("Resolved", format!("{}: {} packages", want.id, solution.packages.len()));
    for waived in &solution.waived {
        let by = waived.provided.as_deref().unwrap_or("`without`");
        ui.detail("Waived", format!("{} needs {}: {by}", waived.package, waived.relation));
    }
    Ok(solution.packages.into_values().map(|chosen| locked(&chosen.record, &chosen.suite)).collect())
}

/// The newest version of each package that is asked for, and nothing else.
fn named(universe: &Universe, want: &Want) -> Result<Vec<LockedPackage>> {
    let mut packages = Vec::new();
    for name in &want.wants {
        let (record, suite) = universe.versions(name).next().ok_or_else(|| {
            let mut failure =
                Failure::new(Kind::Input, format!("there is no package `{name}` (asked for by {})", want.id));
            if let Some(near) = crate::spec::nearest(name, universe.names()) {
                failure = failure.hint(format!("did you mean `{near}`?"));
            }
            failure
        })?;
        packages.push(locked(record, suite));
    }
    Ok(packages)
}

fn locked(record: &PackageRecord, suite: &str) -> LockedPackage {
    LockedPackage {
        name: record.name.clone(),
        version: record.version.to_string(),
        arch: record.architecture.clone(),
        suite: suite.to_owned(),
        path: record.filename.to_string(),
        size: record.size,
        sha256: record.sha256,
    }
}
