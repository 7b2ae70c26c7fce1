//! K3s as a component of an image: its programs, its container images, and what else its nodes need from recipes.
//!
//! They are built by recipes of the project, from upstream's own packages as Go modules.

use std::path::PathBuf;

use anyhow::{Context, Result};
use fs_err as fs;

use crate::arch::Arch;
use crate::digest::{Digest, Hasher};
use crate::error::{Failure, Kind};
use crate::linux;
use crate::oci;
use crate::packages::Work;
use crate::recipe::{self, Options};
use crate::rootfs::k3s::{CONTAINERS, References};
use crate::spec::{ContainerSpec, K3s, Profile};
use crate::store::StepKey;
use crate::unpack::{self, Info, Unpacked};

/// Everything that K3s in an image depends on, from TOML files and lock alone.
pub fn digest(work: &Work<'_>, profile: &Profile, arch: Arch) -> Result<Digest> {
    let mut hasher = Hasher::new();
    if let Some(k3s) = &profile.layer.k3s {
        let recipes = linux::recipes(work.project)?;
        for name in k3s.source.iter().chain(&k3s.recipes) {
            hasher.update(recipe::step_key(work, &recipes, name)?.digest().as_bytes());
        }
        for name in &k3s.containers {
            hasher.update(oci::digest(work, name, arch)?.as_bytes());
        }
    }
    Ok(hasher.finish())
}

/// K3s' programs and what the profile's other recipes make, as packages.
pub fn packages(work: &Work<'_>, profile: &Profile, arch: Arch) -> Result<Vec<Unpacked>> {
    let Some(k3s) = &profile.layer.k3s else { return Ok(Vec::new()) };
    let names: Vec<&str> = k3s.source.iter().chain(&k3s.recipes).map(String::as_str).collect();
    if Arch::host() != Some(arch) {
        let text = format!("K3s for {arch} cannot be built on this machine");
        return Err(Failure::new(Kind::Input, text)
            .hint(format!("build the image on a machine with {arch}"))
            .into());
    }
    let recipes = linux::recipes(work.project)?;
    let built = recipe::build(work, &recipes, &names, Options { jobs: work.threads, keep_failed: false })?;
    let mut packages = Vec::new();
    for (name, built) in names.iter().zip(&built) {
        let recipe = recipes.get(name)?;
        let version = k3s.version().to_owned();
        let key = StepKey::new("recipe-package", name, unpack::VERSION)
            .input("recipe", built.dir.record().key.digest())
            .input("version", &version);
        let info = info(name, &version, arch, &recipe.spec.description);
        let needs = vec![work.store.relative(built.dir.path())];
        let package = unpack::folder(work.store, &key, &built.out(), info, needs)
            .with_context(|| format!("taking what recipe {name} built"))?;
        packages.push(package);
    }
    packages.extend(containers(work, k3s, arch)?);
    Ok(packages)
}

/// The steps of all recipes that a profile's K3s and container images are from, which were built, in the store.
pub fn built(work: &Work<'_>, profile: &Profile) -> Result<Vec<PathBuf>> {
    let Some(k3s) = &profile.layer.k3s else { return Ok(Vec::new()) };
    let recipes = linux::recipes(work.project)?;
    let of_containers = containers_of(work, k3s).filter_map(|spec| spec.recipe.as_ref());
    let mut paths = Vec::new();
    for name in k3s.source.iter().chain(&k3s.recipes).chain(of_containers) {
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

/// The container images as a package: one archive each, named by what is in it.
fn containers(work: &Work<'_>, k3s: &K3s, arch: Arch) -> Result<Option<Unpacked>> {
    const NAME: &str = "k3s-containers";
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
        let digest = archive.digest.to_string();
        let name = format!("{}-{}.tar", archive.name, digest.get(..12).unwrap_or(&digest));
        fs::hard_link(&archive.path, folder.join(CONTAINERS).join(name))?;
    }
    let needs = archives.into_iter().map(|archive| archive.relative).collect();
    let info = info(NAME, k3s.version(), arch, "container images that K3s imports when it starts");
    Ok(Some(unpack::folder(work.store, &key, &folder, info, needs)?))
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
