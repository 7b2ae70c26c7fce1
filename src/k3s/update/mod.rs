//! `kiln update k3s`: the pinned K3s moves to another release, the one way and the other.
//!
//! ```text
//! channel server        which release           [upstream]
//! sha256sum-ARCH.txt    digest of each file  -> the file itself, by that digest, unpacked for a look
//! k3s-images.txt        CoreDNS and the like
//! Go module proxy       the source, and all that it needs   [source], [gomod]
//!     | everything is there and was looked at
//! images/k3s.toml, images/recipes/k3s/   written together   [edit]
//! ```
//!
//! Nobody signs a release of K3s, so its list of digests is believed once, over TLS, by the person who runs this; from then on only bytes
//! with these digests count. A digest is written only if bytes with it were here.

mod edit;
mod gomod;
mod source;
mod upstream;
mod version;

pub use source::Revision;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use fs_err as fs;
use serde::Serialize;

use super::{bundle, release};
use crate::arch::Arch;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::fetch::Fetcher;
use crate::lock::Lock;
use crate::packages::Work;
use crate::spec::{self, K3s, Layer, Project, Release};
use crate::store::Store;
use crate::sys;
use crate::ui::Ui;
use edit::Edit;
use source::Module;
use version::{NoVersion, Version};

/// The layer that pins K3s.
const FILE: &str = "images/k3s.toml";
/// What a release says about the images that it comes with.
const IMAGES: &str = "k3s-images.txt";
/// How upstream writes versions, for people who did not.
const SAMPLE: &str = "upstream writes them so: v1.33.4+k3s1";

/// Parts of K3s that people ask about, as they call them, and the modules that they are.
const MODULES: [(&str, &str); 6] = [
    ("containerd", "github.com/containerd/containerd/v2"),
    ("runc", "github.com/opencontainers/runc"),
    ("kine", "github.com/k3s-io/kine"),
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("flannel", "github.com/flannel-io/flannel"),
    ("kube-router", "github.com/cloudnativelabs/kube-router/v2"),
];

/// What a person asks for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// This version, and no other.
    pub to: Option<String>,
    /// The newest of this channel; default: that of the pinned minor.
    pub channel: Option<String>,
    /// The revision of the source that is this release.
    pub commit: Option<String>,
    /// The source may go: the release alone is left then.
    pub no_source: bool,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The version that was pinned.
    pub old: String,
    /// The version that is pinned now.
    pub new: String,
    /// What its source is; nothing without the way from source.
    pub source: Option<Revision>,
    /// What is in it, as far as it is known.
    pub components: Vec<Component>,
    /// What can go wrong on the way there.
    pub warnings: Vec<String>,
    /// What a person should look at.
    pub notes: Vec<String>,
    /// Files that were written, relative to the project.
    pub files: Vec<String>,
}

/// A part of K3s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Component {
    /// What people call it.
    pub name: String,
    /// Its version until now, if that is known.
    pub old: Option<String>,
    /// Its version in the new release, if it is still in it.
    pub new: Option<String>,
}

/// A pinned K3s, and where to ask about others.
struct Pinned {
    k3s: K3s,
    description: String,
    version: Version,
}

impl Pinned {
    fn load(project: &Project) -> Result<(Self, Edit)> {
        let edit = Edit::open(&project.dir, FILE)?;
        let layer: Layer = spec::parse(FILE, edit.text()?)?;
        let k3s = layer.k3s.ok_or_else(|| Failure::new(Kind::Input, format!("{FILE} has no [k3s]")))?;
        let version = k3s.version().parse().map_err(|error: NoVersion| {
            Failure::new(Kind::Input, format!("{FILE}: `k3s.version`: {error}")).hint(SAMPLE)
        })?;
        Ok((Pinned { k3s, description: layer.description.unwrap_or_default(), version }, edit))
    }

    fn channels(&self) -> Option<&str> {
        self.k3s.release.as_ref()?.channels.as_deref()
    }

    /// The version to move to.
    fn wanted(&self, fetcher: &Fetcher<'_>, asked: &Asked) -> Result<Version> {
        if let Some(text) = &asked.to {
            let version = text.parse();
            return version.map_err(|error: NoVersion| {
                Failure::new(Kind::Input, format!("--to: {error}")).hint(SAMPLE).into()
            });
        }
        let url = self.channels().ok_or_else(|| {
            Failure::new(Kind::Input, format!("{FILE} names no server that knows the newest release"))
                .hint("write `channels = \"https://update.k3s.io/v1-release/channels\"` into [k3s.release]")
                .hint("or name the version: `--to v1.33.4+k3s1`")
        })?;
        let name = asked.channel.clone().unwrap_or_else(|| self.version.channel());
        let found = upstream::newest(fetcher, url, &name)?;
        if found < self.version {
            let text =
                format!("channel `{name}` is at {found}, and {} is pinned, which is newer", self.version);
            return Err(Failure::new(Kind::Input, text)
                .hint(format!("`--to {found}` goes back all the same; a datastore may not"))
                .into());
        }
        Ok(found)
    }

    /// What a person should know before nodes go from the pinned version to `new`.
    fn warnings(&self, new: &Version) -> Vec<String> {
        let old = &self.version;
        if new < old {
            return vec![format!(
                "{old} -> {new} goes back: what the newer one wrote into the datastore the older one may not read; restore a snapshot from \
                 before, or start anew"
            )];
        }
        let skips = |next| {
            format!(
                "{old} -> {new} skips a minor: Kubernetes goes one minor at a time, so let nodes run {next} first, servers before agents \
                 (https://kubernetes.io/releases/version-skew-policy/)"
            )
        };
        old.skipped(new).map(skips).into_iter().collect()
    }
}

/// The newest release of the pinned minor, if that is newer than the pinned one and somebody says so.
pub fn newer(project: &Project, store: &Store, ui: &Ui) -> Option<String> {
    let (pinned, _) = Pinned::load(project).ok()?;
    pinned.channels()?;
    let found = pinned.wanted(&Fetcher::new(store, ui).ok()?, &Asked::default()).ok()?;
    (found > pinned.version).then(|| found.to_string())
}

/// Moves the K3s of `project` to another release. Everything is fetched and checked before the first file is written.
///
/// # Errors
/// [`Kind::Input`] for a version that is none, or an older one that nobody named; [`Kind::Fetch`] if a part of the release, or its source,
/// cannot be had or is not what its digest says; a value of a TOML file that is not where it should be, with file and key.
pub fn update(project: &Project, store: &Store, ui: &Ui, threads: usize, asked: &Asked) -> Result<Report> {
    let (pinned, mut edit) = Pinned::load(project)?;
    let fetcher = Fetcher::new(store, ui)?;
    let (old, new) = (&pinned.version, pinned.wanted(&fetcher, asked)?);
    let mut report = Report {
        old: old.to_string(),
        new: new.to_string(),
        source: None,
        components: Vec::new(),
        warnings: Vec::new(),
        notes: Vec::new(),
        files: Vec::new(),
    };
    if new == *old {
        return Ok(report);
    }
    report.warnings = pinned.warnings(&new);
    report.warnings.iter().for_each(|text| ui.warn(text));
    if asked.no_source && pinned.k3s.release.is_none() {
        let text = format!("{FILE} has no `k3s.release`: without the source nothing would be left");
        return Err(Failure::new(Kind::Input, text).hint("leave `--no-source` out").into());
    }

    if asked.commit.is_some() && pinned.k3s.source.is_empty() {
        let text = format!("--commit is about the source, and {FILE} has no `k3s.source`");
        return Err(Failure::new(Kind::Input, text).hint("leave `--commit` out").into());
    }

    let moved = match &pinned.k3s.release {
        Some(release) => Some(MovedRelease::look(&fetcher, release, old, &new)?),
        None => None,
    };
    let from_source = !pinned.k3s.source.is_empty() && !asked.no_source;
    let locked = if from_source { Some(Lock::load(&project.dir)?.check(project)?) } else { None };
    let work = locked.as_ref().map(|locked| Work { project, locked, store, ui, threads });
    let module = work.map(|work| Module::find(work, &pinned.k3s)).transpose()?;
    // The likeliest to fail comes before the large downloads.
    let found = module.as_ref().map(|module| module.resolve(&new, asked.commit.as_deref())).transpose()?;
    let mut parts = match &moved {
        Some(moved) => moved.fetch(&fetcher, store, &new)?,
        None => BTreeMap::new(),
    };

    let mut edits = Vec::new();
    if let (Some(module), Some(found)) = (&module, found) {
        let (files, tidy) = module.move_to(old, &new, &found, asked.commit.as_deref())?;
        edits.extend(files);
        if parts.is_empty() {
            parts = modules(|module| tidy.version(module).map(str::to_owned));
        }
        report.source = Some(found.0);
        report.notes.push(format!(
            "comments of {} are as they were: is what they say about time and commit still so?",
            module.shown()
        ));
    }
    pinned.rewrite(&mut edit, &new, moved.as_ref(), asked.no_source)?;
    edits.insert(0, edit);

    let known = match &module {
        Some(module) => modules(|name| module.version(name)),
        None => pinned.held(store),
    };
    report.compare("Kubernetes", Some(old.kubernetes()), Some(new.kubernetes()));
    for (name, _) in MODULES {
        report.compare(name, known.get(name).map(String::as_str), parts.get(name).map(String::as_str));
    }
    if parts.is_empty() {
        report.notes.push("the new release does not say which containerd and runc it has".to_owned());
    }
    report.images(project, &fetcher, pinned.k3s.release.as_ref(), moved.as_ref());
    sys::check_interrupt()?;
    report.files = edit::write(&project.dir, &edits)?;
    Ok(report)
}

impl Pinned {
    /// Which modules the pinned release has, if it lies in the store; nothing else is worth a download of the old.
    fn held(&self, store: &Store) -> BTreeMap<String, String> {
        let release = self.k3s.release.as_ref();
        let files = Arch::ALL.iter().filter_map(|arch| release?.file(*arch));
        let held = files.filter_map(|file| fs::read(store.object_path(file.sha256)).ok());
        held.filter_map(|bytes| look(store, &bytes, &self.version).ok()).next().unwrap_or_default()
    }

    /// Writes the new version into the layer's text.
    fn rewrite(
        &self,
        edit: &mut Edit,
        new: &Version,
        moved: Option<&MovedRelease<'_>>,
        no_source: bool,
    ) -> Result<()> {
        let old = &self.version;
        if self.description.contains(old.as_str()) {
            edit.replace(&["description"], old, new)?;
        }
        edit.set(&["k3s", "version"], new.as_str())?;
        for at in 0..moved.map_or(0, |moved| moved.urls.len()) {
            edit.replace(&["k3s", "release", "urls", &at.to_string()], old, new)?;
        }
        for (arch, _, digest) in moved.iter().flat_map(|moved| &moved.files) {
            edit.set(&["k3s", "release", arch.debian(), "sha256"], &digest.to_string())?;
        }
        if no_source && !self.k3s.source.is_empty() {
            edit.remove(&["k3s", "source"])?;
        }
        // What was written must be read again as what was meant.
        let read: Layer = spec::parse(FILE, edit.text()?)?;
        let k3s = read.k3s.unwrap_or_default();
        let pinned =
            |arch: Arch| k3s.release.as_ref().and_then(|release| release.file(arch)).map(|file| file.sha256);
        let same = moved
            .iter()
            .flat_map(|moved| &moved.files)
            .all(|(arch, _, digest)| pinned(*arch) == Some(*digest));
        if !same || k3s.version() != new.as_str() || (no_source && !k3s.source.is_empty()) {
            let text = format!("{FILE} did not become what it should; nothing is written");
            return Err(Failure::new(Kind::Internal, text).into());
        }
        Ok(())
    }
}

/// The versions of [`MODULES`] by what people call them.
fn modules(version: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
    MODULES.iter().filter_map(|(name, module)| Some(((*name).to_owned(), version(module)?))).collect()
}

/// Unpacks a release, which must be `version`, as a build would, and reads in its program what that was made of.
fn look(store: &Store, bytes: &[u8], version: &Version) -> Result<BTreeMap<String, String>> {
    let staging = store.staging()?;
    let folder = staging.file("bin");
    bundle::unpack(bytes, version.as_str(), &folder)?;
    let found = upstream::modules(&fs::read(folder.join("k3s"))?);
    Ok(modules(|module| found.get(module).cloned()))
}

/// Another version of a pinned release.
struct MovedRelease<'a> {
    urls: Vec<String>,
    /// Architecture, name and digest of each file that is pinned.
    files: Vec<(Arch, &'a str, Digest)>,
}

impl<'a> MovedRelease<'a> {
    /// Reads the digests of `new` for all that is pinned of `old`.
    fn look(fetcher: &Fetcher<'_>, release: &'a Release, old: &Version, new: &Version) -> Result<Self> {
        let mut moved = MovedRelease { urls: Vec::new(), files: Vec::new() };
        for (at, url) in release.urls.iter().enumerate() {
            moved.urls.push(edit::moved(url, old, new).ok_or_else(|| {
                let why = format!("it does not name {old}, so it cannot be moved");
                Failure::new(Kind::Input, format!("{FILE}: `k3s.release.urls.{at}`: {why}"))
                    .hint("name the folder of that release, or do by hand what this would do")
            })?);
        }
        for arch in Arch::ALL {
            let Some(file) = release.file(arch) else { continue };
            let list = format!("sha256sum-{}.txt", arch.debian());
            let wrong = || Failure::new(Kind::Fetch, format!("K3s {new} for {arch} cannot be pinned"));
            let text = upstream::text(fetcher, &moved.urls, &list).map_err(|error| {
                wrong()
                    .hint("is there such a release? without a digest from upstream nothing is written")
                    .because(error)
            })?;
            let digest = upstream::digest(&text, &file.name)
                .map_err(|why| wrong().because(Failure::new(Kind::Fetch, format!("{list}: {why}"))))?;
            moved.files.push((arch, &file.name, digest));
        }
        Ok(moved)
    }

    /// Downloads every file by its digest and looks into it; gives what the programs are made of, as far as they say it.
    fn fetch(&self, fetcher: &Fetcher<'_>, store: &Store, new: &Version) -> Result<BTreeMap<String, String>> {
        let mut parts = BTreeMap::new();
        for (arch, name, digest) in &self.files {
            let (what, places) = (format!("K3s {new} ({name})"), release::places(&self.urls, name));
            fetcher.fetch_unsized(&what, *digest, &places, release::LARGEST).map_err(|error| {
                Failure::new(Kind::Fetch, format!("{what} cannot be had, so it is not pinned")).because(error)
            })?;
            let bytes = fs::read(store.object_path(*digest))?;
            // The store may have lost bytes in a power cut, or somebody may have changed them.
            if Digest::of(&bytes) != *digest {
                store.forget_object(*digest)?;
                return Err(Failure::new(
                    Kind::Store,
                    format!("the object of {what} in the store is damaged"),
                )
                .hint("it was taken out; run the same command again to fetch it")
                .into());
            }
            let found = look(store, &bytes, new).with_context(|| {
                format!("{what} for {arch} has the digest that upstream names and is not what it should be")
            })?;
            parts.extend(found);
        }
        Ok(parts)
    }
}

impl Report {
    fn compare(&mut self, name: &str, old: Option<&str>, new: Option<&str>) {
        if old.is_some() || new.is_some() {
            let [old, new] = [old, new].map(|version| version.map(str::to_owned));
            self.components.push(Component { name: name.to_owned(), old, new });
        }
    }

    /// Container images that the two releases come with, and where the project's own are others. None of it is built upon, so that a list
    /// which cannot be had is no reason to stop.
    fn images(
        &mut self,
        project: &Project,
        fetcher: &Fetcher<'_>,
        old: Option<&Release>,
        moved: Option<&MovedRelease<'_>>,
    ) {
        let (Some(old), Some(moved)) = (old, moved) else { return };
        let new = match upstream::text(fetcher, &moved.urls, IMAGES) {
            Ok(text) => upstream::images(&text),
            Err(error) => {
                self.notes.push(format!("which CoreDNS and other images it has is not known: {error:#}"));
                return;
            }
        };
        let old = upstream::text(fetcher, &old.urls, IMAGES)
            .map(|text| upstream::images(&text))
            .unwrap_or_default();
        for name in new.keys().chain(old.keys().filter(|name| !new.contains_key(*name))) {
            let (before, after) = (old.get(name).map(String::as_str), new.get(name).map(String::as_str));
            let shown = if name == "coredns" { "CoreDNS" } else { name };
            self.compare(shown, before, after);
            let Some((container, tag)) = project.containers.get(name).zip(after) else { continue };
            let own = container.reference.rsplit(':').next().unwrap_or_default();
            let plain = |tag: &str| tag.trim_start_matches('v').to_owned();
            if before != after && plain(own) != plain(tag) {
                self.notes.push(format!(
                    "images/containers/{name}.toml makes {own}, and this release comes with {tag}: it is yours to move"
                ));
            }
        }
    }

    /// Whether there was anything to do.
    pub fn is_current(&self) -> bool {
        self.old == self.new
    }
}
