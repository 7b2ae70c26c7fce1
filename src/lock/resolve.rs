//! `kiln update`: from signed metadata to a new lock.
//!
//! Per suite: InRelease from the first mirror whose file is signed by a pinned key, is of that suite, has not expired and is not
//! older than the lock; then the Packages indexes by the digests that it names; then the solver over all suites, per set.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read};

use anyhow::{Context, Result};
use fs_err as fs;
use liblzma::bufread::XzDecoder;

use super::file::{Lock, LockedPackage, LockedSet, LockedSuite};
use super::time;
use super::wanted::{SetKind, Want, fingerprint, wants};
use crate::arch::Arch;
use crate::debian::index::{self, Index, PackageRecord, Skipped};
use crate::debian::openpgp::{self, Fingerprint, PinnedKeys, Verified};
use crate::debian::release::Release;
use crate::debian::solve::{self, Provided, Request, Solution, Universe, Wanted};
use crate::error::{Failure, Kind};
use crate::fetch::{self, Fetcher, For, Mirror, Mirrors, NotFetched, Wanted as Asked};
use crate::spec::{Archive, Project, Suite};
use crate::store::Store;
use crate::ui::Ui;
use crate::url::Url;

/// Larger than any InRelease file (140 KB for a stable release) by far.
const MAX_RELEASE: u64 = 16 << 20;
/// The snapshot archive takes a picture four times a day; one taken so many seconds after a Release's date has that Release.
const SNAPSHOT_DELAY: i64 = 6 * 3600;
/// In which a Packages file may be packed, the smallest first; apt's own order, less what nobody uses for indexes any more.
const PACKINGS: [&str; 4] = [".xz", ".zst", ".gz", ""];

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
    /// Packages of indexes that cannot be used, with the name of the index.
    skipped: Vec<(String, Skipped)>,
}

/// An index of a suite, in each form that its Release file lists; the best first.
struct WantedIndex {
    arch: Arch,
    title: String,
    forms: Vec<(&'static str, fetch::Request)>,
}

impl Metadata {
    /// Fetches and verifies. `old` guards against a mirror that shows an older state than the one locked.
    pub fn fetch(project: &Project, old: Option<&Lock>, store: &Store, ui: &Ui) -> Result<Self> {
        let keys = keys(project)?;
        let mut mirrors = Mirrors::of_machine()?;
        let fetcher = Fetcher::of_mirrors(store, ui, &mirrors)?;
        mirrors.read_lists(&fetcher);
        mirrors.say_left_out(ui);
        let now = time::now();
        let mut suites = Vec::new();
        let mut indexes: Vec<(&Suite, Vec<WantedIndex>)> = Vec::new();
        for suite in &project.archive.suite {
            let locked = old.and_then(|lock| lock.suite(&suite.name));
            let spinner = ui.spinner("Checking", format!("signed metadata of {}", suite.name));
            let archs: Vec<&str> = project.archive.architectures.iter().map(|arch| arch.debian()).collect();
            let asked = Asked {
                archive: &suite.archive,
                snapshot: Some(&time::compact(now)),
                kind: For::Index,
                architectures: &archs,
                suite: &suite.name,
                component: "",
            };
            let (base, release) = in_release(suite, locked, &mirrors.of(&asked), &fetcher, &keys, now, ui)?;
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
        fetch_indexes(indexes.iter_mut().flat_map(|(_, list)| list), &fetcher, ui)?;
        let mut universes: BTreeMap<Arch, Universe> = BTreeMap::new();
        for arch in &project.archive.architectures {
            universes.insert(*arch, Universe::new(arch.debian()));
        }
        let mut skipped = Vec::new();
        for (suite, list) in &indexes {
            for wanted in list {
                let index = read_index(store, wanted)?;
                say_skipped(&wanted.title, &index.skipped, ui);
                skipped.extend(index.skipped.into_iter().map(|one| (wanted.title.clone(), one)));
                universes.get_mut(&wanted.arch).expect("made above").add(&suite.name, index.records)?;
            }
        }
        Ok(Metadata { suites, universes, skipped })
    }

    /// Says in an error about packages which of those that it names are in an index and cannot be used.
    fn explain_skipped(&self, error: anyhow::Error) -> anyhow::Error {
        let text = format!("{error:#}");
        let word = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
        let named: BTreeSet<&str> = text.split(word).map(|word| word.trim_end_matches('.')).collect();
        let mut said: Vec<String> = self
            .skipped
            .iter()
            .filter(|(_, one)| named.contains(one.package.as_str()))
            .map(|(index, one)| format!("{one}, in the {index}"))
            .collect();
        said.dedup();
        if said.is_empty() {
            return error;
        }
        let text = format!("a package was left out since its entry cannot be used: {}", said.join("; "));
        Failure::new(Kind::Input, text)
            .hint("the owner of that archive has to fix its index; another mirror or an older state may be good")
            .because(error)
            .into()
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
                if want.dependencies { solved(universe, want, keep, ui) } else { named(universe, want) };
            let set = set.map_err(|error| self.explain_skipped(error))?;
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

/// The first mirror whose InRelease holds, and what it says. As with apt, a mirror without that file may have Release and Release.gpg.
fn in_release(
    suite: &Suite,
    locked: Option<&LockedSuite>,
    mirrors: &[Mirror],
    fetcher: &Fetcher<'_>,
    keys: &PinnedKeys,
    now: i64,
    ui: &Ui,
) -> Result<(Url, Verified)> {
    let mut reasons = Vec::new();
    for mirror in mirrors {
        let folder = mirror.url.below(&format!("dists/{}", suite.name));
        let verified = verified(&folder, fetcher, keys, now).and_then(|(url, verified)| {
            let release = verified.release();
            anyhow::ensure!(
                release.codename == suite.name,
                "{url}: it is the Release file of `{}`",
                crate::ui::plain(&release.codename)
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
            Ok(verified) => return Ok((mirror.url.clone(), verified)),
            Err(error) => {
                let why = format!("{error:#}");
                if mirrors.len() > 1 {
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
        .hint("mirrors come from this machine's apt sources, the snapshot archive, KILN_DEBIAN_MIRROR and kiln's config.toml; `kiln doctor` lists them")
        .into())
}

/// The signed Release file in a folder, and its URL.
fn verified(folder: &Url, fetcher: &Fetcher<'_>, keys: &PinnedKeys, now: i64) -> Result<(Url, Verified)> {
    let url = folder.below("InRelease");
    if let Some(text) = fetcher.find(&url, MAX_RELEASE)? {
        let verified = openpgp::verify(&text, keys, now).with_context(|| url.to_string())?;
        return Ok((url, verified));
    }
    let missing =
        || anyhow::anyhow!("{url}: it is not there (404 Not Found), nor is Release with Release.gpg");
    let (plain, signature) = (folder.below("Release"), folder.below("Release.gpg"));
    let text = fetcher.find(&plain, MAX_RELEASE)?.ok_or_else(missing)?;
    let signature = fetcher.find(&signature, MAX_RELEASE)?.ok_or_else(missing)?;
    let verified =
        openpgp::verify_detached(&text, &signature, keys, now).with_context(|| plain.to_string())?;
    Ok((plain, verified))
}

fn wanted_indexes(
    suite: &Suite,
    archive: &Archive,
    release: &Verified,
    base: &Url,
    mirrors: &Mirrors,
) -> Result<Vec<WantedIndex>> {
    let mut list = Vec::new();
    for component in &suite.components {
        for arch in &archive.architectures {
            let plain = format!("{component}/binary-{arch}/Packages");
            let title = format!("{}/{component} index for {arch}", suite.name);
            let asked = Asked {
                archive: &suite.archive,
                snapshot: None,
                kind: For::Index,
                architectures: &[arch.debian()],
                suite: &suite.name,
                component,
            };
            let rest = mirrors.of(&asked).into_iter().map(|mirror| mirror.url).filter(|url| url != base);
            let bases: Vec<Url> = std::iter::once(base.clone()).chain(rest).collect();
            let form = |packing: &&'static str| {
                let path = format!("{plain}{packing}");
                let file = release.release().files.get(&path)?;
                let urls =
                    bases.iter().flat_map(|base| index_urls(base, suite, release.release(), &path)).collect();
                Some((
                    *packing,
                    fetch::Request { name: title.clone(), sha256: file.sha256, size: file.size, urls },
                ))
            };
            let forms: Vec<_> = PACKINGS.iter().filter_map(form).collect();
            if forms.is_empty() {
                let text =
                    format!("the suite {} has no {plain}, packed with xz, zstd, gzip or plain", suite.name);
                return Err(Failure::new(Kind::Input, text)
                    .hint("look at `components` and `architectures` in images/debian.toml")
                    .into());
            }
            list.push(WantedIndex { arch: *arch, title, forms });
        }
    }
    Ok(list)
}

/// Where an index lies on one mirror: by its digest if the archive says so, then by its name, since mirrors that copy files by name
/// leave the others out.
fn index_urls(base: &Url, suite: &Suite, release: &Release, path: &str) -> Vec<Url> {
    let by_hash = release.by_hash(path).filter(|_| release.acquire_by_hash);
    let paths = by_hash.into_iter().chain(std::iter::once(path.to_owned()));
    paths.map(|path| base.below(&format!("dists/{}/{path}", suite.name))).collect()
}

/// Fetches each index in the first of its forms that a mirror has; the others are dropped. A Release file lists forms that mirrors
/// leave out: Debian's own names the plain one, which is nowhere.
fn fetch_indexes<'a>(
    wanted: impl Iterator<Item = &'a mut WantedIndex>,
    fetcher: &Fetcher<'_>,
    ui: &Ui,
) -> Result<()> {
    let mut wanted: Vec<&mut WantedIndex> = wanted.collect();
    loop {
        let requests: Vec<fetch::Request> = wanted.iter().map(|index| index.forms[0].1.clone()).collect();
        let Err(error) = fetcher.fetch(&requests) else { return Ok(()) };
        let gone = error.chain().find_map(|cause| cause.downcast_ref::<NotFetched>()).filter(|no| no.gone);
        let next = gone
            .and_then(|no| wanted.iter_mut().find(|index| index.title == no.name && index.forms.len() > 1));
        let Some(index) = next else { return Err(error) };
        ui.detail(
            "Skipped",
            format!("{} in the form Packages{}: no mirror has it", index.title, index.forms[0].0),
        );
        index.forms.remove(0);
    }
}

fn read_index(store: &Store, wanted: &WantedIndex) -> Result<Index> {
    let (packing, request) = &wanted.forms[0];
    let path = store
        .object(request.sha256, request.size)
        .with_context(|| format!("{} is not in the store", request.name))?;
    let cannot =
        |e: anyhow::Error| Failure::new(Kind::Fetch, format!("{} cannot be read", request.name)).because(e);
    let file = BufReader::with_capacity(1 << 18, fs::File::open(path)?);
    let plain: Box<dyn Read> = match *packing {
        ".xz" => Box::new(XzDecoder::new(file)),
        ".zst" => Box::new(zstd::Decoder::with_buffer(file).map_err(|e| cannot(e.into()))?),
        ".gz" => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        _ => Box::new(file),
    };
    let arch = wanted.arch.debian();
    index::parse(BufReader::with_capacity(1 << 20, plain), |_, a| a == "all" || a == arch)
        .map_err(|e| cannot(e.into()).into())
}

/// Says that packages of an index cannot be used: which one, and all of them with `-v`.
fn say_skipped(index: &str, skipped: &[Skipped], ui: &Ui) {
    let Some(first) = skipped.first() else { return };
    let more = match skipped.len() {
        1 => String::new(),
        n => format!("; and {} more (all are listed with -v)", n - 1),
    };
    ui.warn(format!("the {index} has entries that cannot be used, which are left out: {first}{more}"));
    for one in &skipped[1..] {
        ui.detail("Left out", format!("{one}, in the {index}"));
    }
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
