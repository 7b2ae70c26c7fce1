//! K3s as a component of an image: its programs, its container images, and what else its nodes need from recipes.
//!
//! K3s itself is upstream's release or built from its Go modules ([`choose`]); the rest is built by recipes of the project.

mod bundle;
mod release;
pub mod update;

pub use release::{Way, choose};

use std::path::PathBuf;

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::digest::{Digest, Hasher};
use crate::error::{Failure, Kind};
use crate::inventory::{FromRecipe, Made};
use crate::linux;
use crate::oci;
use crate::packages::Work;
use crate::recipe::{self, Options};
use crate::rootfs::k3s::{CONTAINERS, References};
use crate::spec::{ContainerSpec, K3s, Profile};
use crate::store::StepKey;
use crate::unpack::{self, Info, PackageKind, Unpacked};

/// Everything that K3s in an image depends on, from TOML files, lock and the way it comes.
pub fn digest(work: &Work<'_>, profile: &Profile, arch: Arch, way: Option<Way>) -> Result<Digest> {
    let mut hasher = Hasher::new();
    if let Some(k3s) = &profile.layer.k3s {
        let recipes = linux::recipes(work.project)?;
        for name in names(k3s, way) {
            hasher.update(recipe::step_key(work, &recipes, name)?.digest().as_bytes());
        }
        if way == Some(Way::Binary) {
            hasher.update(release::digest(k3s, arch).unwrap_or(Digest::of(b"")).as_bytes());
        }
        for name in &k3s.containers {
            hasher.update(oci::digest(work, name, arch)?.as_bytes());
        }
    }
    Ok(hasher.finish())
}

/// The recipes whose outputs go into the root, by the way K3s comes.
fn names(k3s: &K3s, way: Option<Way>) -> impl Iterator<Item = &String> {
    let source: &[String] = if way == Some(Way::Source) { &k3s.source } else { &[] };
    source.iter().chain(&k3s.recipes)
}

/// K3s' programs and what the profile's other recipes make, as packages.
pub fn packages(work: &Work<'_>, profile: &Profile, arch: Arch, way: Option<Way>) -> Result<Vec<Unpacked>> {
    let (Some(k3s), Some(way)) = (&profile.layer.k3s, way) else { return Ok(Vec::new()) };
    let mut packages = Vec::new();
    if way == Way::Binary {
        packages.push(release::package(work, k3s, arch)?);
    }
    let names: Vec<&str> = names(k3s, Some(way)).map(String::as_str).collect();
    if Arch::host() != Some(arch) && !names.is_empty() {
        let text = format!("K3s for {arch} cannot be built on this machine");
        return Err(Failure::new(Kind::Input, text)
            .hint(format!("build the image on a machine with {arch}"))
            .into());
    }
    let recipes = linux::recipes(work.project)?;
    let built = recipe::build(work, &recipes, &names, Options { jobs: work.threads, keep_failed: false })
        .map_err(|error| match way {
            Way::Source if crate::error::report(&error).kind == Kind::Fetch => neither_way(k3s, error),
            _ => error,
        })?;
    for (name, built) in names.iter().zip(&built) {
        let recipe = recipes.get(name)?;
        let version = k3s.version().to_owned();
        let key = StepKey::new("recipe-package", name, unpack::VERSION)
            .input("recipe", built.dir.record().key.digest())
            .input("version", &version);
        let info = info(name, &version, arch, &recipe.spec.description);
        let needs = vec![work.store.relative(built.dir.path())];
        let kind = PackageKind::Made(Made::Recipe(FromRecipe::of(recipe, built)));
        let package = unpack::folder(work.store, &key, &built.out(), info, kind, needs)
            .with_context(|| format!("taking what recipe {name} built"))?;
        packages.push(package);
    }
    packages.extend(containers(work, k3s, arch)?);
    Ok(packages)
}

/// Modules cannot be fetched either: what a person can do about K3s as a whole.
fn neither_way(k3s: &K3s, error: anyhow::Error) -> anyhow::Error {
    let text = format!("K3s {} can be had neither as a release nor from source", k3s.version());
    Failure::new(Kind::Fetch, text)
        .hint("give this machine a way to a place of `k3s.release.urls` or to a Go module proxy (GOPROXY)")
        .hint("or build once on a machine that has one and bring its store (KILN_STORE)")
        .because(error)
        .into()
}

/// How K3s came into an image, for its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The release.
    pub version: String,
    /// The way.
    pub way: Way,
    /// Digest of the release, or of all that the recipe built.
    pub sha256: Digest,
    /// The commit of the source that was compiled, which the recipe names as `K3S_COMMIT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

impl Origin {
    /// The way in words: `its release, sha256 …`, `built from source, commit …`.
    pub fn described(&self) -> String {
        let what = match self.way {
            Way::Binary => "its release",
            Way::Source => "built from source",
        };
        match &self.commit {
            Some(commit) => format!("{what}, commit {commit}"),
            None => format!("{what}, sha256 {}", self.sha256),
        }
    }
}

/// How K3s came into an image that was built the way `way`.
pub fn origin(work: &Work<'_>, profile: &Profile, arch: Arch, way: Option<Way>) -> Result<Option<Origin>> {
    let (Some(k3s), Some(way)) = (&profile.layer.k3s, way) else { return Ok(None) };
    let mut origin = Origin { version: k3s.version().to_owned(), way, sha256: Digest::of(b""), commit: None };
    match way {
        Way::Binary => origin.sha256 = release::digest(k3s, arch).context("no release of K3s is pinned")?,
        Way::Source => {
            let recipes = linux::recipes(work.project)?;
            for name in &k3s.source {
                let recipe = recipes.get(name)?;
                let found = recipe::find(work, &recipes, recipe)?;
                let built =
                    found.map_err(|miss| anyhow::anyhow!("recipe {name} is not in the store: {miss}"))?;
                origin.sha256 = built.tree.digest();
                origin.commit = recipe.spec.env.get("K3S_COMMIT").cloned().or(origin.commit);
            }
        }
    }
    Ok(Some(origin))
}

/// What a build of a profile's K3s and container images took from outside or compiled, in the store: the release, and steps of recipes.
pub fn taken(work: &Work<'_>, profile: &Profile, arch: Arch) -> Result<Vec<PathBuf>> {
    let Some(k3s) = &profile.layer.k3s else { return Ok(Vec::new()) };
    let recipes = linux::recipes(work.project)?;
    let way = choose(work, profile, arch)?;
    let of_containers = containers_of(work, k3s).filter_map(|spec| spec.recipe.as_ref());
    let mut paths = Vec::new();
    if way == Some(Way::Binary) {
        paths.extend(release::object(work, k3s, arch));
    }
    for name in names(k3s, way).chain(of_containers) {
        let found = recipe::find(work, &recipes, recipes.get(name)?)?;
        let built = found.map_err(|miss| anyhow::anyhow!("recipe {name} is not in the store: {miss}"))?;
        paths.push(built.dir.path().to_owned());
    }
    Ok(paths)
}

/// The tool sets that a profile's container images are made of.
pub fn sets<'a>(work: &Work<'a>, profile: &'a Profile) -> Vec<&'a str> {
    let Some(k3s) = &profile.layer.k3s else { return Vec::new() };
    containers_of(work, k3s).filter_map(|spec| spec.set.as_deref()).collect()
}

fn containers_of<'a>(work: &Work<'a>, k3s: &'a K3s) -> impl Iterator<Item = &'a ContainerSpec> {
    let project = work.project;
    k3s.containers.iter().filter_map(|name| project.containers.get(name))
}

/// What containerd knows each of the profile's container images by.
pub fn references(work: &Work<'_>, profile: &Profile) -> References {
    let names = profile.layer.k3s.iter().flat_map(|k3s| &k3s.containers);
    let known = names.filter_map(|name| Some((name, work.project.containers.get(name)?)));
    known.map(|(name, spec)| (name.clone(), spec.reference.clone())).collect()
}

/// The name of [`containers`] as a package.
pub const CONTAINERS_PACKAGE: &str = "k3s-containers";

/// The name of a container image's archive in the root, which says what is in it.
pub fn archive_name(archive: &oci::Archive) -> String {
    let digest = archive.digest.to_string();
    format!("{}-{}.tar", archive.name, digest.get(..12).unwrap_or(&digest))
}

/// The container images as a package: one archive each.
fn containers(work: &Work<'_>, k3s: &K3s, arch: Arch) -> Result<Option<Unpacked>> {
    const NAME: &str = CONTAINERS_PACKAGE;
    if k3s.containers.is_empty() {
        return Ok(None);
    }
    let archives: Vec<oci::Archive> =
        k3s.containers.iter().map(|name| oci::archive(work, name, arch)).collect::<Result<_>>()?;
    let mut key = StepKey::new("recipe-package", NAME, unpack::VERSION);
    for archive in &archives {
        key = key.input(&archive.name, archive.digest);
    }
    let staging = work.store.staging()?;
    let folder = staging.file("root");
    fs::create_dir_all(folder.join(CONTAINERS))?;
    for archive in &archives {
        fs::hard_link(&archive.path, folder.join(CONTAINERS).join(archive_name(archive)))?;
    }
    let needs = archives.into_iter().map(|archive| archive.relative).collect();
    let info = info(NAME, k3s.version(), arch, "container images that K3s imports when it starts");
    Ok(Some(unpack::folder(work.store, &key, &folder, info, PackageKind::Containers, needs)?))
}

fn info(name: &str, version: &str, arch: Arch, summary: &str) -> Info {
    Info {
        name: name.to_owned(),
        version: version.to_owned(),
        arch: arch.debian().to_owned(),
        source: None,
        summary: Some(summary.to_owned()),
        depends: String::new(),
        provides: String::new(),
        base: false,
        scripts: Vec::new(),
    }
}
