//! A project: the folder with images/, profiles/ and qemu/machines/, everything in it read and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::container::{self, ContainerSpec};
use super::diagnose::nearest;
use super::kernel::{self, KernelSource};
use super::layer::{FileSpec, Flavour, Layer, Role};
use super::{SCHEMA, parse};
use crate::arch::Arch;
use crate::contract::data::{Component, Contracts, DataError};
use crate::error::{Failure, Kind};
use crate::rootfs::alternatives::Alternative;
use crate::rootfs::k3s::manifest_path;
use crate::tree::TreePath;

/// images/debian.toml: where packages come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Version of this file's shape; 1.
    pub schema: u32,
    /// Architectures that are locked and can be baked.
    pub architectures: Vec<Arch>,
    /// Public keys that may sign the metadata.
    pub key: Vec<Key>,
    /// Suites, the preferred one first: of two equal versions the earlier suite's is taken.
    pub suite: Vec<Suite>,
}

/// A public key that signs the archive's metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// File in images/keys/, ASCII armor or binary.
    pub file: String,
    /// Primary fingerprint, 40 hexadecimal digits; a file with another key is refused.
    pub fingerprint: String,
}

/// A suite of Debian's archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Folder below `dists/`: `trixie`, `trixie-updates`, `trixie-security`.
    pub name: String,
    /// `debian` or `debian-security`: the archive on a mirror, and in the snapshot archive.
    pub archive: String,
    /// `main`, `non-free-firmware` …
    pub components: Vec<String>,
}

/// images/tools.toml: packages that are not in an image but needed to make, prove or judge one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tools {
    /// Version of this file's shape; 1.
    pub schema: u32,
    /// Sets by name.
    pub set: BTreeMap<String, ToolSet>,
}

/// A set of packages, locked and unpacked together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolSet {
    /// What the set is for.
    pub description: String,
    /// Packages; what they need comes with them.
    pub packages: Vec<String>,
    /// Never installed, also not to satisfy a dependency, which then counts as satisfied.
    #[serde(default)]
    pub without: Vec<String>,
    /// Architectures of the packages: those of the images, or those of machines that run kiln.
    pub architectures: Vec<Arch>,
    /// Whether Essential packages and dependencies come too. `false` for EFI programs, which need nothing.
    #[serde(default = "yes")]
    pub dependencies: bool,
    /// Links through /etc/alternatives, which maintainer scripts would make, in a root file system of this set for recipes.
    #[serde(default)]
    pub alternatives: Vec<Alternative>,
}

fn yes() -> bool {
    true
}

/// Where manifests for K3s lie.
const MANIFESTS: &str = "images/k3s/manifests";
/// Where the machines of scenarios lie.
const MACHINES: &str = "qemu/machines";
/// What stands before the name of a profile in the `extends` of a machine.
const PROFILE: &str = "profiles/";

/// What an image is: a role, or a machine of scenarios, with all its layers merged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// File name in profiles/ or qemu/machines/ without `.toml`.
    pub name: String,
    /// Its TOML file, relative to the project.
    #[serde(skip)]
    pub file: String,
    /// The profile that a machine extends: what sets it apart is for scenarios only, such as another kernel.
    #[serde(skip)]
    pub base: Option<String>,
    /// The merged layers.
    pub layer: Layer,
    /// Bytes of all `source` files, by absolute path in the image.
    #[serde(skip)]
    pub sources: BTreeMap<String, Vec<u8>>,
    /// Which TOML file asked for what. Not part of what a profile is: moving a line to another layer changes no image.
    #[serde(skip)]
    pub asked: Asked,
}

/// The TOML files, relative to the project, behind what a profile says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Asked {
    /// Package to the files that install it.
    pub packages: BTreeMap<String, Vec<String>>,
    /// Absolute path in the image to the file that has the last word on it.
    pub files: BTreeMap<String, String>,
    /// The file that chooses the kernel.
    pub kernel: String,
    /// Kernel feature to the first file that asks for it.
    pub features: BTreeMap<String, String>,
    /// The file that chooses K3s' version; empty without K3s.
    pub k3s: String,
    /// Recipe of K3s and what it calls to the file that names it and the key there.
    pub recipes: BTreeMap<String, (String, &'static str)>,
    /// Container image to the file that has nodes bring it.
    pub containers: BTreeMap<String, String>,
}

impl Asked {
    /// Takes down what the layer in `file`, merged next, asks for.
    fn note(&mut self, file: &str, layer: &Layer) {
        self.packages.retain(|name, _| !layer.packages.remove.contains(name));
        for name in &layer.packages.install {
            self.packages.entry(name.clone()).or_default().push(file.to_owned());
        }
        self.files.extend(layer.files.keys().map(|path| (path.clone(), file.to_owned())));
        if layer.kernel.flavour.is_some() || layer.kernel.source.is_some() {
            self.kernel = file.to_owned();
        }
        for feature in &layer.kernel.features {
            self.features.entry(feature.clone()).or_insert_with(|| file.to_owned());
        }
        let Some(k3s) = &layer.k3s else { return };
        if k3s.version.is_some() {
            self.k3s = file.to_owned();
            // Another version is another program, with recipes of its own.
            self.recipes.retain(|_, (_, key)| *key != "k3s.source");
        }
        for (key, names) in [("k3s.source", &k3s.source), ("k3s.recipes", &k3s.recipes)] {
            for name in names {
                self.recipes.entry(name.clone()).or_insert_with(|| (file.to_owned(), key));
            }
        }
        for name in &k3s.containers {
            self.containers.entry(name.clone()).or_insert_with(|| file.to_owned());
        }
    }
}

/// Everything a project says.
#[derive(Debug, Clone)]
pub struct Project {
    /// The folder with images/, profiles/ and qemu/.
    pub dir: PathBuf,
    /// Where packages come from.
    pub archive: Archive,
    /// Sets of tools.
    pub tools: Tools,
    /// What features need of a kernel; empty if there is no images/kernel/.
    pub contracts: Contracts,
    /// Kernels that are built from source, by name.
    pub kernels: BTreeMap<String, KernelSource>,
    /// Container images that are put together or taken from a registry, by name.
    pub containers: BTreeMap<String, ContainerSpec>,
    /// All profiles by name: what the project is for.
    pub profiles: BTreeMap<String, Profile>,
    /// Machines of scenarios by name, for proof only; no name is also a profile's. Baked from the same lock.
    pub machines: BTreeMap<String, Profile>,
}

impl Project {
    /// Looks for a project in `start` and the folders above it, as cargo and git do.
    pub fn find(start: &Path) -> Result<PathBuf> {
        let start = std::path::absolute(start).context("making the project folder absolute")?;
        let is_project =
            |dir: &&Path| dir.join("images/debian.toml").is_file() && dir.join("profiles").is_dir();
        start.ancestors().find(is_project).map(Path::to_owned).ok_or_else(|| {
            Failure::new(Kind::Input, format!("no kiln project in {} or above it", start.display()))
                .hint("a project has images/debian.toml and profiles/; `kiln init DIR` writes one")
                .into()
        })
    }

    /// Reads and checks all TOML files of the project in `dir`.
    pub fn load(dir: &Path) -> Result<Self> {
        let archive: Archive = read(dir, "images/debian.toml")?;
        check_schema("images/debian.toml", archive.schema)?;
        if archive.suite.is_empty() || archive.architectures.is_empty() || archive.key.is_empty() {
            let text = "images/debian.toml: `suite`, `architectures` and `key` must not be empty";
            return Err(Failure::new(Kind::Input, text).into());
        }
        let tools: Tools = read(dir, "images/tools.toml")?;
        check_schema("images/tools.toml", tools.schema)?;
        let contracts = contracts(dir)?;
        let kernels = kernel::load_all(dir)?;
        let containers = container::load_all(dir, &tools)?;
        let profiles = Profile::load_all(dir, "profiles")?;
        let machines = match dir.join(MACHINES).is_dir() {
            true => Profile::load_all(dir, MACHINES)?,
            false => BTreeMap::new(),
        };
        if let Some(name) = machines.keys().find(|name| profiles.contains_key(*name)) {
            let text = format!("{MACHINES}/{name}.toml and profiles/{name}.toml have the same name");
            return Err(Failure::new(Kind::Input, text)
                .hint("images, and their packages in the lock, go by that name: rename one of both")
                .into());
        }
        if profiles.is_empty() {
            return Err(Failure::new(Kind::Input, format!("{}/profiles has no profile", dir.display()))
                .hint("write profiles/server.toml, or see `kiln init DIR` for an example")
                .into());
        }
        for image in profiles.values().chain(machines.values()) {
            image.check_features(&contracts)?;
            image.check_source(&kernels)?;
        }
        Ok(Project {
            dir: dir.to_owned(),
            archive,
            tools,
            contracts,
            kernels,
            containers,
            profiles,
            machines,
        })
    }

    /// Everything that can be baked: profiles, then machines of scenarios, each in the order of their names.
    pub fn images(&self) -> impl Iterator<Item = &Profile> {
        self.profiles.values().chain(self.machines.values())
    }

    /// The profile or machine `name`.
    pub fn find_image(&self, name: &str) -> Option<&Profile> {
        self.profiles.get(name).or_else(|| self.machines.get(name))
    }

    /// The profile or machine `name`, with near names if there is none.
    pub fn profile(&self, name: &str) -> Result<&Profile> {
        self.find_image(name).ok_or_else(|| {
            let names = |of: &BTreeMap<String, Profile>| of.keys().cloned().collect::<Vec<_>>().join(", ");
            let mut failure = Failure::new(Kind::Input, format!("there is no profile `{name}` in profiles/"));
            if let Some(near) = nearest(name, self.images().map(|image| image.name.as_str())) {
                failure = failure.hint(format!("did you mean `{near}`?"));
            }
            failure = failure.hint(format!("profiles: {}, or `all`", names(&self.profiles)));
            if !self.machines.is_empty() {
                failure = failure.hint(format!("machines of scenarios: {}", names(&self.machines)));
            }
            failure.into()
        })
    }

    /// What a node of a scenario boots: `name` itself, or, if it has another kernel than `flavour`, the machine that extends the
    /// profile `name` and has that one.
    pub fn variant(&self, name: &str, flavour: Option<Flavour>) -> Result<&Profile> {
        let own = self.profile(name)?;
        let Some(flavour) = flavour.filter(|_| own.layer.kernel.flavour != flavour) else { return Ok(own) };
        let fits = |machine: &&Profile| {
            machine.base.as_deref() == Some(name) && machine.layer.kernel.flavour == Some(flavour)
        };
        self.machines.values().find(fits).ok_or_else(|| {
            Failure::new(Kind::Input, format!("`{name}` has no variant with the {flavour} kernel"))
                .hint(format!(
                    "write {MACHINES}/{name}-{flavour}.toml with `extends = [\"{PROFILE}{name}\"]` and `kernel.flavour = \"{flavour}\"`, then `kiln update`"
                ))
                .into()
        })
    }
}

pub(super) fn read<T: serde::de::DeserializeOwned>(dir: &Path, name: &str) -> Result<T> {
    parse(name, &fs::read_to_string(dir.join(name)).map_err(|e| missing(name, e))?)
}

/// Everything in images/kernel/.
fn contracts(dir: &Path) -> Result<Contracts> {
    let folder = dir.join("images/kernel");
    let mut components = BTreeMap::new();
    if !folder.is_dir() {
        return Ok(Contracts::default());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let file = format!("images/kernel/{name}.toml");
            let component: Component = read(dir, &file)?;
            check_schema(&file, component.schema)?;
            components.insert(name, component);
        }
    }
    Contracts::new(components).map_err(|error| explain(&error).into())
}

/// A wrong contract, or a feature that there is not, with the near one.
fn explain(error: &DataError) -> Failure {
    let failure = Failure::new(Kind::Input, error.to_string());
    let DataError::Unknown { name, known } = error else { return failure };
    let failure = match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => failure.hint(format!("did you mean `{near}`?")),
        None => failure,
    };
    failure.hint("`kiln kernel features` lists all that images/kernel/ has")
}

fn missing(name: &str, error: std::io::Error) -> Failure {
    Failure::new(Kind::Input, format!("{name} cannot be read")).because(error)
}

pub(super) fn check_schema(name: &str, schema: u32) -> Result<()> {
    if schema == SCHEMA {
        return Ok(());
    }
    Err(Failure::new(Kind::Input, format!("{name} has schema {schema}, this kiln reads schema {SCHEMA}"))
        .hint("use the kiln that the file was written for")
        .into())
}

impl Profile {
    /// All profiles or machines in `folder`, by name.
    fn load_all(dir: &Path, folder: &str) -> Result<BTreeMap<String, Self>> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(dir.join(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "toml") {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                all.insert(name.clone(), Profile::load(dir, folder, &name)?);
            }
        }
        Ok(all)
    }

    fn load(dir: &Path, folder: &str, name: &str) -> Result<Self> {
        let file = format!("{folder}/{name}.toml");
        let mut profile = Profile {
            name: name.to_owned(),
            file: file.clone(),
            base: None,
            layer: Layer::default(),
            sources: BTreeMap::new(),
            asked: Asked::default(),
        };
        let mut stack = Vec::new();
        profile.add(dir, &file, &mut stack, &mut BTreeSet::new())?;
        if profile.layer.role.is_none() && folder != MACHINES {
            return Err(Failure::new(Kind::Input, format!("{file} has no role"))
                .hint("write `role = \"server\"` or `role = \"agent\"`")
                .into());
        }
        if profile.layer.kernel.flavour.is_none() && profile.layer.kernel.source.is_none() {
            return Err(Failure::new(Kind::Input, format!("{file} and its layers choose no kernel"))
                .hint("write `kernel.flavour = \"cloud\"` or `\"metal\"`, or name one of images/kernel/sources/ as `kernel.source`")
                .into());
        }
        if let Some(k3s) = &profile.layer.k3s {
            k3s.check(&file)?;
            for name in &k3s.manifests {
                let from = format!("{MANIFESTS}/{name}.yaml");
                let bytes = fs::read(dir.join(&from)).with_context(|| format!("{file}: `k3s.manifests`"))?;
                profile.sources.insert(manifest_path(name), bytes);
            }
        }
        Ok(profile)
    }

    fn add(
        &mut self,
        dir: &Path,
        file: &str,
        stack: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Result<()> {
        if stack.iter().any(|f| f == file) {
            let chain = stack.join(" extends ");
            return Err(Failure::new(Kind::Input, format!("{chain} extends {file}: a circle")).into());
        }
        if !done.insert(file.to_owned()) {
            return Ok(());
        }
        let layer: Layer = match fs::read_to_string(dir.join(file)) {
            Ok(text) => parse(file, &text)?,
            Err(error) => {
                let mut failure = missing(file, error);
                if let Some(from) = stack.last() {
                    failure = failure.hint(format!("{from} extends it"));
                }
                return Err(failure.into());
            }
        };
        check_schema(file, layer.schema)?;
        if layer.kernel.flavour.is_some() && layer.kernel.source.is_some() {
            let text = format!("{file} chooses two kernels: `kernel.flavour` and `kernel.source`");
            return Err(Failure::new(Kind::Input, text).hint("take one of them out").into());
        }
        stack.push(file.to_owned());
        for base in &layer.extends {
            let path = match base.strip_prefix(PROFILE) {
                None => format!("images/{base}.toml"),
                Some(name) if file.starts_with(MACHINES) && self.base.is_none() => {
                    self.base = Some(name.to_owned());
                    format!("{base}.toml")
                }
                Some(_) => {
                    return Err(Failure::new(Kind::Input, format!("{file} extends {base}"))
                        .hint("only a machine in qemu/machines/ extends a profile, and one at most; what several share is a layer in images/")
                        .into());
                }
            };
            self.add(dir, &path, stack, done)?;
        }
        stack.pop();
        let folder = Path::new(file).parent().unwrap_or(Path::new(""));
        for (path, spec) in &layer.files {
            check_file(file, path, spec)?;
            self.sources.remove(path);
            if let Some(source) = &spec.source {
                let from = dir.join(folder).join(source);
                let bytes = fs::read(&from).with_context(|| format!("{file}: the source of {path}"))?;
                self.sources.insert(path.clone(), bytes);
            }
        }
        self.asked.note(file, &layer);
        self.layer.merge(layer);
        Ok(())
    }

    fn check_features(&self, contracts: &Contracts) -> Result<()> {
        for (feature, file) in &self.asked.features {
            contracts
                .get(feature)
                .map_err(|error| explain(&error))
                .with_context(|| format!("{file}: kernel.features"))?;
        }
        Ok(())
    }

    fn check_source(&self, kernels: &BTreeMap<String, KernelSource>) -> Result<()> {
        let Some(name) = self.layer.kernel.source.as_ref().filter(|name| !kernels.contains_key(*name)) else {
            return Ok(());
        };
        let folder = kernel::FOLDER;
        let text = format!("{}: `kernel.source`: there is no {folder}/{name}.toml", self.asked.kernel);
        let failure = Failure::new(Kind::Input, text);
        Err(match nearest(name, kernels.keys().map(String::as_str)) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None => {
                failure.hint(format!("there are: {}", kernels.keys().cloned().collect::<Vec<_>>().join(", ")))
            }
        }
        .into())
    }

    /// The role; [`Project::load`] made sure that profiles have one, and machines need none.
    pub fn role(&self) -> Option<Role> {
        self.layer.role
    }

    /// What the profile wants to be installed, Debian's kernel included, for `arch`; sorted, each once.
    pub fn wants(&self, arch: Arch) -> Vec<String> {
        let set: BTreeSet<String> =
            self.layer.packages.install.iter().cloned().chain(self.kernel_package(arch)).collect();
        set.into_iter().collect()
    }

    /// The package that brings the kernel of this profile for `arch`; `None` for one that is built from source.
    pub fn kernel_package(&self, arch: Arch) -> Option<String> {
        Some(match self.layer.kernel.flavour? {
            Flavour::Cloud => format!("linux-image-cloud-{arch}"),
            Flavour::Metal => format!("linux-image-{arch}"),
        })
    }
}

pub(super) fn check_file(file: &str, path: &str, spec: &FileSpec) -> Result<()> {
    let refuse = |why: String| Err(Failure::new(Kind::Input, format!("{file}: file `{path}`: {why}")).into());
    let Some(inner) = path.strip_prefix('/') else {
        return refuse("the path must be absolute".to_owned());
    };
    if let Err(e) = TreePath::new(inner) {
        return refuse(e.to_string());
    }
    let ways = [spec.text.is_some(), spec.source.is_some(), spec.link.is_some(), spec.dir == Some(true)];
    if ways.iter().filter(|w| **w).count() != 1 {
        return refuse("exactly one of `text`, `source`, `link` and `dir = true` must be there".to_owned());
    }
    if spec.link.is_some() && spec.mode.is_some() {
        return refuse("a link has no mode".to_owned());
    }
    if let Some(mode) = &spec.mode
        && u32::from_str_radix(mode, 8).map_or(true, |m| m > 0o7777)
    {
        return refuse(format!("`{mode}` is no mode: write octal digits such as \"0644\""));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{Lock, SetKind};

    /// This repository's own project.
    fn project() -> Project {
        Project::load(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn machines_stand_beside_profiles_and_are_found_by_name() {
        let project = project();
        assert_eq!(project.profiles.keys().collect::<Vec<_>>(), ["agent", "server"]);
        assert_eq!(
            project.machines.keys().collect::<Vec<_>>(),
            ["agent-vm", "bare", "edge", "server-cilium", "server-metal", "server-node"]
        );
        let edge = project.profile("edge").unwrap();
        assert_eq!((edge.role(), edge.base.as_deref()), (None, None));
        assert_eq!(edge.file, "qemu/machines/edge.toml");
        // Its files lie beside it.
        assert!(edge.sources["/usr/lib/systemd/system-generators/kiln-edge"].starts_with(b"#!/bin/sh"));
        assert!(!edge.layer.packages.install.contains(&"systemd-timesyncd".to_owned()));
    }

    #[test]
    fn a_variant_is_its_profile_with_another_kernel() {
        let project = project();
        let server = &project.profiles["server"];
        for own in [None, Some(Flavour::Cloud)] {
            assert_eq!(project.variant("server", own).unwrap(), server);
        }
        let metal = project.variant("server", Some(Flavour::Metal)).unwrap();
        assert_eq!((metal.name.as_str(), metal.base.as_deref()), ("server-metal", Some("server")));
        assert_eq!(metal.role(), server.role());
        assert_eq!(metal.kernel_package(Arch::Amd64).unwrap(), "linux-image-amd64");
        let mut layer = metal.layer.clone();
        layer.kernel.flavour = server.layer.kernel.flavour;
        layer.description.clone_from(&server.layer.description);
        layer.extends.clone_from(&server.layer.extends);
        assert_eq!(layer, server.layer);
        let error = project.variant("agent", Some(Flavour::Metal)).unwrap_err();
        assert_eq!(error.to_string(), "`agent` has no variant with the metal kernel");
        let hints = error.downcast::<Failure>().unwrap().hints().join("\n");
        assert!(hints.contains("qemu/machines/agent-metal.toml"), "{hints}");
    }

    #[test]
    fn the_lock_has_the_packages_of_machines_with_the_versions_of_all_others() {
        let project = project();
        let lock = Lock::load(&project.dir).unwrap().check(&project).unwrap();
        for arch in [Arch::Amd64, Arch::Arm64] {
            let names = |name: &str| -> BTreeMap<String, String> {
                let packages = lock.packages(SetKind::Profile, name, arch).unwrap();
                packages.iter().map(|p| (p.name.clone(), p.version.clone())).collect()
            };
            let (server, edge, metal) = (names("server"), names("edge"), names("server-metal"));
            for wanted in ["nfs-kernel-server", "dnsmasq-base", "chrony", "bird2"] {
                assert!(edge.contains_key(wanted) && !server.contains_key(wanted), "{wanted}");
            }
            assert!(!edge.contains_key("systemd-timesyncd"));
            let kernel = format!("linux-image-{arch}");
            assert!(metal.contains_key(&kernel) && !server.contains_key(&kernel));
            for (name, version) in edge.iter().chain(&metal) {
                assert_eq!(server.get(name).unwrap_or(version), version, "{name}");
            }
        }
    }
}
