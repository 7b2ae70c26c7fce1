//! What an image has besides Debian packages: what recipes built, releases that were taken by digest, container images that nodes bring, and
//! the Go modules that are linked into their programs.
//!
//! A version says something only together with the kind of thing that it is of. So each kind is a type of its own here and in
//! [`crate::manifest`], and nothing has to guess it from how a version looks.

pub mod go;
mod layers;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::digest::Digest;
use crate::k3s;
use crate::lock::SetKind;
use crate::manifest::{FileInfo, PackageInfo, describe_set};
use crate::oci;
use crate::packages::Work;
use crate::recipe::{self, Recipe, Source};
use crate::rootfs::k3s::CONTAINERS;
use crate::spec::Profile;
use crate::tree::Tree;
use crate::unpack::{PackageKind, Unpacked};
use go::Go;

/// How something that is not a Debian package came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "way", rename_all = "kebab-case")]
pub enum Made {
    /// A recipe of the project built it.
    Recipe(FromRecipe),
    /// Upstream built it.
    Release(FromRelease),
}

/// What a recipe built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromRecipe {
    /// The recipe: a folder of images/recipes, or one that kiln makes for a kernel.
    pub recipe: String,
    /// Digest over the list of its outputs and their digests.
    pub outputs: Digest,
    /// The commit of the source, which a recipe says by a variable whose name ends with `_COMMIT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Digest of the Go modules that it was compiled from, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go_modules: Option<Digest>,
    /// The tool set with Debian's source of it, for a kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_set: Option<String>,
}

/// A file that upstream published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromRelease {
    /// Its name.
    pub file: String,
    /// Its digest, as it was published.
    pub sha256: Digest,
    /// Where it may be had from.
    pub urls: Vec<String>,
}

impl FromRecipe {
    /// What `recipe` says, and what it built.
    pub fn of(recipe: &Recipe, built: &recipe::Built) -> Self {
        let commit = recipe.spec.env.iter().find(|(name, _)| name.ends_with("_COMMIT"));
        let inputs = || recipe.inputs().map(|(_, source)| source);
        FromRecipe {
            recipe: recipe.name.clone(),
            outputs: built.tree.digest(),
            commit: commit.map(|(_, commit)| commit.clone()),
            go_modules: inputs().find_map(|source| match source {
                Source::GoModules { sha256, .. } => sha256,
                _ => None,
            }),
            source_set: inputs().find_map(|source| match source {
                Source::Set(name) => Some(name.to_owned()),
                _ => None,
            }),
        }
    }
}

/// Something in the root that is not a Debian package, such as K3s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Its version, as upstream writes it.
    pub version: String,
    /// The architecture, in Debian's words.
    pub arch: String,
    /// What it is, in one line.
    pub description: String,
    /// How it came to be.
    #[serde(flatten)]
    pub made: Made,
    /// Its programs that are in the root, by path.
    pub programs: Vec<Program>,
}

/// A program, or a library of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Absolute path, in the root or in the container image.
    pub path: String,
    /// Digest of its bytes.
    pub sha256: Digest,
    /// What is linked into it, if Go compiled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go: Option<Go>,
}

/// A container image in the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// What containerd knows it by.
    pub reference: String,
    /// What it is, in one line.
    pub description: String,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Absolute path of its archive in the root.
    pub file: String,
    /// The image of a registry that it was taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The tool set whose packages it was put together of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// The recipe whose outputs are in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<FromRecipe>,
    /// The Debian packages of that set that gave files to it, by name.
    pub packages: BTreeMap<String, PackageInfo>,
    /// Its programs that are of no Debian package; of an image from a registry those that Go compiled.
    pub programs: Vec<Program>,
}

impl Container {
    /// The tag of its reference, which is the nearest to a version that an image has.
    pub fn tag(&self) -> &str {
        let last = self.reference.rsplit('/').next().unwrap_or_default();
        last.split_once(':').map_or("", |(_, tag)| tag)
    }

    /// The repository of its reference, without the tag.
    pub fn repository(&self) -> &str {
        match self.tag() {
            "" => &self.reference,
            tag => self.reference.get(..self.reference.len() - tag.len() - 1).unwrap_or_default(),
        }
    }
}

/// The components among `packages`, by name, with those of their programs that are in the root, whose files are `files`.
pub fn components(
    packages: &[Unpacked],
    files: &BTreeMap<String, FileInfo>,
) -> Result<BTreeMap<String, Component>> {
    let mut found = BTreeMap::new();
    for package in packages {
        let PackageKind::Made(made) = &package.kind else { continue };
        let info = &package.info;
        let mut programs =
            programs(&package.tree).with_context(|| format!("reading the programs of {}", info.name))?;
        programs.retain(|program| files.get(&program.path).is_some_and(|file| file.from == info.name));
        let component = Component {
            version: info.version.clone(),
            arch: info.arch.clone(),
            description: info.summary.clone().unwrap_or_default(),
            made: made.clone(),
            programs,
        };
        found.insert(info.name.clone(), component);
    }
    Ok(found)
}

fn programs(tree: &Tree) -> Result<Vec<Program>> {
    let mut programs = Vec::new();
    for (path, entry) in tree.iter() {
        let Some(content) = entry.content().filter(|_| entry.meta.mode & 0o111 != 0) else { continue };
        let mut magic = [0; 4];
        if content.size() < 4 || content.read_exact_at(&mut magic, 0).is_err() || &magic != b"\x7fELF" {
            continue;
        }
        let go = go::read(&content.read()?);
        programs.push(Program { path: format!("/{path}"), sha256: content.digest(), go });
    }
    Ok(programs)
}

/// The container images that a profile's nodes bring, by name.
pub fn containers(work: &Work<'_>, profile: &Profile, arch: Arch) -> Result<BTreeMap<String, Container>> {
    let mut found = BTreeMap::new();
    for name in profile.layer.k3s.iter().flat_map(|k3s| &k3s.containers) {
        let archive = oci::archive(work, name, arch)?;
        let spec = work.project.containers.get(name).context("a container that was made has a TOML file")?;
        let inside = layers::read(work.store, &archive)
            .with_context(|| format!("looking into the container image {name}"))?;
        let mut packages = BTreeMap::new();
        let mut programs = inside.programs;
        if let Some(set) = &spec.set {
            let unpacked = work.set(SetKind::Tool, set, arch)?;
            let mut described = describe_set(work, SetKind::Tool, set, arch, &unpacked)?;
            for package in unpacked {
                let files = package.tree.iter().filter(|(_, entry)| entry.content().is_some());
                let mut paths = files.map(|(path, _)| path.as_str());
                // A licence alone is not the package.
                let gives = |path: &str| inside.files.contains(path) && !path.starts_with("usr/share/doc/");
                if let Some(info) = described.remove(&package.info.name).filter(|_| paths.any(gives)) {
                    packages.insert(package.info.name.clone(), info);
                }
                programs.retain(|program| package.tree.get(program.path.trim_start_matches('/')).is_none());
            }
        }
        programs.retain(|program| spec.image.is_none() || program.go.is_some());
        let recipe = spec.recipe.as_ref().map(|recipe| from_recipe(work, recipe)).transpose()?;
        let container = Container {
            reference: spec.reference.clone(),
            description: spec.description.clone(),
            digest: archive.digest,
            file: format!("/{CONTAINERS}/{}", k3s::archive_name(&archive)),
            image: spec.image.clone(),
            set: spec.set.clone(),
            recipe,
            packages,
            programs,
        };
        found.insert(name.clone(), container);
    }
    Ok(found)
}

/// What the recipe `name` built, which must be in the store.
fn from_recipe(work: &Work<'_>, name: &str) -> Result<FromRecipe> {
    let recipes = crate::linux::recipes(work.project)?;
    let options = recipe::Options { jobs: work.threads, keep_failed: false };
    let built = recipe::build(work, &recipes, &[name], options)?;
    let built = built.first().context("a recipe that was asked for was built")?;
    Ok(FromRecipe::of(recipes.get(name)?, built))
}
