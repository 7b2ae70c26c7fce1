//! Why something is in an image: which package or step put a file there, and the chain of wishes that leads to a package, to K3s or another
//! program that recipes or upstream built, to a container image, or to a Go module in one of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::built::Built;
use crate::error::{Failure, Kind};
use crate::graph::Graph;
use crate::inventory::{Component, Container, FromRecipe, Made, Program};
use crate::k3s;
use crate::manifest::{FileInfo, PackageInfo};
use crate::recipe;
use crate::spec::{Project, nearest};

/// Links that are followed before a path counts as a circle; Linux's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Near names that are told.
const NEAR: usize = 4;
/// Where container images are described.
const CONTAINERS: &str = "images/containers";

/// Why a file or a package is in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The profile of the image.
    pub profile: String,
    /// Its machine.
    pub arch: Arch,
    /// The file, if a path was asked for.
    pub file: Option<FileAnswer>,
    /// The Debian package that was asked for, or that the file is from.
    pub package: Option<PackageAnswer>,
    /// What else has the name that was asked for, or what the file is from if that is no Debian package.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartAnswer>,
}

/// Where a file comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAnswer {
    /// Its path with the links of all folders above it followed.
    pub path: String,
    /// What it is: `file`, `dir`, `link` …
    pub kind: String,
    /// Target of a link.
    pub target: Option<String>,
    /// Package, or `kiln:STEP`.
    pub from: String,
    /// What the step does, for a step.
    pub step: Option<String>,
    /// The TOML file that asks for exactly this path.
    pub asked_by: Option<String>,
}

/// How a package came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageAnswer {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The first has the wish, each later one is needed by the one before, the last ends at the package. Empty: nothing in the TOML
    /// files of today leads there.
    pub chain: Vec<Link>,
    /// All packages of the image that need it directly.
    pub needed_by: Vec<String>,
    /// The container images of the image that have files of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
}

/// What a part of an image is that is not a Debian package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartKind {
    /// In the root, built by a recipe.
    Recipe,
    /// In the root, as upstream released it.
    Release,
    /// A container image that nodes bring.
    Container,
    /// Linked into programs.
    GoModule,
}

/// How something came in that is not a Debian package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartAnswer {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: PartKind,
    /// Its version, as upstream writes it; of a container image its tag.
    pub version: String,
    /// Who asks for it, then the way that it came.
    pub chain: Vec<Link>,
    /// What is in it: programs of a component or a container image, then packages.
    pub has: Vec<String>,
}

/// A step of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// A TOML file, `Debian`, or a package.
    pub by: String,
    /// `installs`, `needs` …
    pub how: String,
    /// A package, or a relation to one.
    pub what: String,
}

impl Answer {
    /// The answer as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let image = format!("{} ({})", self.profile, self.arch);
        if let Some(file) = &self.file {
            let target = file.target.as_ref().map(|t| format!(" to {t}")).unwrap_or_default();
            let from = match &file.step {
                Some(step) => format!("made by {}: {step}", file.from),
                None => match self.parts.as_slice() {
                    [PartAnswer { kind: PartKind::Container, name, version, .. }] => {
                        format!("the container image {name} {version}")
                    }
                    [part] => format!("from {} {}, {}", part.name, part.version, part.kind.words()),
                    _ if self.package.is_none() => format!("made for {}", file.from),
                    _ => format!("from the package {}", file.from),
                },
            };
            lines.push(format!("{image}: {} ({}{target}) is {from}", file.path, file.kind));
            if let Some(toml) = &file.asked_by {
                lines.push(format!("  {toml} asks for it in [files]"));
            }
        }
        if let Some(package) = &self.package {
            if self.file.is_none() {
                lines.push(format!("{image}: {} {}, a Debian package", package.name, package.version));
            }
            for link in &package.chain {
                lines.push(format!("  {} {} {}", link.by, link.how, link.what));
            }
            if package.chain.is_empty() {
                lines.push(
                    "  nothing in the TOML files leads to it now: the image is older than they are"
                        .to_owned(),
                );
            }
            if self.file.is_none() && !package.needed_by.is_empty() {
                lines.push(format!("  needed directly by: {}", package.needed_by.join(", ")));
            }
            if self.file.is_none() && !package.containers.is_empty() {
                lines.push(format!("  in the container images: {}", package.containers.join(", ")));
            }
        }
        for part in &self.parts {
            if self.file.is_none() {
                lines.push(format!("{image}: {} {}, {}", part.name, part.version, part.kind.words()));
            }
            for link in &part.chain {
                lines.push(format!("  {} {} {}", link.by, link.how, link.what));
            }
            if self.file.is_none() && !part.has.is_empty() {
                lines.push(format!("  it has: {}", part.has.join(", ")));
            }
        }
        lines
    }
}

impl PartKind {
    fn words(self) -> &'static str {
        match self {
            PartKind::Recipe => "built from source",
            PartKind::Release => "upstream's release",
            PartKind::Container => "a container image",
            PartKind::GoModule => "a Go module",
        }
    }
}

/// Says why `what`, an absolute path or a name, is in `built`. `None` if it is not. Names are those of packages, of components and container
/// images (also by reference), and paths of Go modules.
///
/// # Errors
/// The manifest is of an older kiln, see [`crate::manifest::Manifest::tells_kinds`]; a package's relations cannot be read.
pub fn why(project: &Project, built: &Built, what: &str) -> Result<Option<Answer>> {
    built.manifest.tells_kinds()?;
    let answer = |file, package, parts| Answer {
        profile: built.manifest.profile.clone(),
        arch: built.manifest.arch,
        file,
        package,
        parts,
    };
    if !what.starts_with('/') {
        let package = package(project, built, what)?;
        let parts = parts_named(project, built, what);
        let found = package.is_some() || !parts.is_empty();
        return Ok(found.then(|| answer(None, package, parts)));
    }
    let Some(path) = resolve(&built.files, what) else { return Ok(None) };
    let Some(info) = built.files.get(&path) else { return Ok(None) };
    let step = info.from.strip_prefix("kiln:").map(|step| does(step).to_owned());
    let asked = project.find_image(&built.manifest.profile).map(|profile| &profile.asked);
    let file = FileAnswer {
        asked_by: asked
            .and_then(|asked| asked.files.get(&path))
            .filter(|_| info.from == "kiln:files")
            .cloned(),
        kind: info.kind.clone(),
        target: info.target.clone(),
        from: info.from.clone(),
        path,
        step,
    };
    if file.step.is_some() {
        return Ok(Some(answer(Some(file), None, Vec::new())));
    }
    let manifest = &built.manifest;
    let component = manifest.components.get(&info.from);
    let container = manifest.containers.iter().find(|(_, container)| container.file == file.path);
    let parts = match (component, container) {
        (Some(made), _) => vec![component_answer(project, built, &info.from, made)],
        (None, Some((name, container))) => vec![container_answer(project, built, name, container)],
        (None, None) => Vec::new(),
    };
    let package = if parts.is_empty() { package(project, built, &info.from)? } else { None };
    Ok(Some(answer(Some(file), package, parts)))
}

/// What a step of [`crate::rootfs::compose`] makes, by the name that its files carry.
fn does(step: &str) -> &'static str {
    match step {
        "accounts" => "users and groups from sysusers.d",
        "alternatives" => "links that update-alternatives would make",
        "certs" => "the certificate store, as update-ca-certificates would make it",
        "depmod" => "the kernel's index of modules, as depmod would make it",
        "files" => "files that the TOML files ask for",
        "k3s" => "what K3s and the kubelet are told, from [k3s]",
        "ldcache" => "the library cache, as ldconfig would make it",
        "os-release" => "the name and version of the image",
        "pam" => "PAM's common files, as pam-auth-update would make them",
        "state" => "mount points, fstab and what first boot puts on /var",
        "templates" => "configuration that packages copy from their own templates",
        "units" => "links of enabled and masked units, as systemctl preset would make them",
        _ => "a step of the build",
    }
}

fn link(by: impl Into<String>, how: &str, what: impl Into<String>) -> Link {
    Link { by: by.into(), how: how.to_owned(), what: what.into() }
}

/// Everything of that name that is not a Debian package.
fn parts_named(project: &Project, built: &Built, name: &str) -> Vec<PartAnswer> {
    let manifest = &built.manifest;
    let component = manifest.components.get(name).map(|made| component_answer(project, built, name, made));
    let is_meant = |own: &str, container: &Container| {
        [own, &container.reference, container.repository(), k3s::CONTAINERS_PACKAGE].contains(&name)
    };
    let containers = manifest.containers.iter().filter(|(own, container)| is_meant(own, container));
    let containers = containers.map(|(own, container)| container_answer(project, built, own, container));
    component.into_iter().chain(containers).chain(modules(built, name)).collect()
}

/// Each program of the image, with what it is in.
fn programs(built: &Built) -> impl Iterator<Item = (String, &Program)> {
    let manifest = &built.manifest;
    let own = manifest
        .components
        .iter()
        .flat_map(|(name, component)| component.programs.iter().map(move |program| (name.clone(), program)));
    let inner = manifest.containers.iter().flat_map(|(name, container)| {
        container.programs.iter().map(move |program| (format!("container image {name}"), program))
    });
    own.chain(inner)
}

/// The Go module `path` in each of its versions, with the programs that have it.
fn modules(built: &Built, path: &str) -> Vec<PartAnswer> {
    let mut versions: BTreeMap<(&str, &str), Vec<Link>> = BTreeMap::new();
    for (place, program) in programs(built) {
        for module in program.go.iter().flat_map(|go| &go.modules) {
            if module.path == path || module.replaces.as_deref() == Some(path) {
                let how = match &module.replaces {
                    Some(replaced) => format!("is linked, in the place of {replaced}, with"),
                    None => "is linked with".to_owned(),
                };
                let what = format!("{} {}", module.path, module.version);
                let by = format!("{place}: {}", program.path);
                versions.entry((&module.path, &module.version)).or_default().push(link(by, &how, what));
            }
        }
    }
    let answer = |((name, version), chain): ((&str, &str), Vec<Link>)| PartAnswer {
        name: name.to_owned(),
        kind: PartKind::GoModule,
        version: version.to_owned(),
        chain,
        has: Vec::new(),
    };
    versions.into_iter().map(answer).collect()
}

/// What a recipe built, as the last link of a chain.
fn by_recipe(made: &FromRecipe, what: &str) -> Link {
    let mut from = String::new();
    if let Some(commit) = &made.commit {
        from.push_str(&format!(" of the commit {commit}"));
    }
    if let Some(modules) = made.go_modules {
        from.push_str(&format!(" from Go modules with sha256 {modules}"));
    }
    if let Some(set) = &made.source_set {
        from.push_str(&format!(" from Debian's source in the tool set {set}"));
    }
    let by = format!("recipe {}/{}", recipe::FOLDER, made.recipe);
    link(by, "builds", format!("{what}{from}; its outputs have sha256 {}", made.outputs))
}

fn has(programs: &[Program]) -> Vec<String> {
    let text = |program: &Program| match &program.go {
        Some(go) => format!("{} ({}, {} modules)", program.path, go.version, go.modules.len()),
        None => program.path.clone(),
    };
    programs.iter().map(text).collect()
}

fn component_answer(project: &Project, built: &Built, name: &str, component: &Component) -> PartAnswer {
    let mut chain = Vec::new();
    if let Some(asked) = project.find_image(&built.manifest.profile).map(|profile| &profile.asked) {
        let is_k3s = asked.recipes.get(name).is_none_or(|(_, key)| *key == "k3s.source");
        match &component.made {
            // A kernel's.
            Made::Recipe(made) if made.source_set.is_some() => {
                chain.push(link(&asked.kernel, "chooses in `kernel.source`", name));
            }
            _ if is_k3s => {
                chain.push(link(&asked.k3s, "chooses in [k3s] the version", component.version.clone()));
            }
            _ => {}
        }
        if let (Some((file, key)), Made::Recipe(made)) = (asked.recipes.get(name), &component.made) {
            chain.push(link(file, &format!("names in `{key}` the recipe"), made.recipe.clone()));
        }
    }
    let kind = match &component.made {
        Made::Recipe(made) => {
            chain.push(by_recipe(made, name));
            PartKind::Recipe
        }
        Made::Release(release) => {
            let from = release.urls.first().map(|url| format!(" from {url}")).unwrap_or_default();
            let what = format!("{}{from}, sha256 {}", release.file, release.sha256);
            chain.push(link("upstream", "released", what));
            PartKind::Release
        }
    };
    PartAnswer {
        name: name.to_owned(),
        kind,
        version: component.version.clone(),
        chain,
        has: has(&component.programs),
    }
}

fn container_answer(project: &Project, built: &Built, name: &str, container: &Container) -> PartAnswer {
    let mut chain = Vec::new();
    let asked = project.find_image(&built.manifest.profile).map(|profile| &profile.asked);
    if let Some(file) = asked.and_then(|asked| asked.containers.get(name)) {
        chain.push(link(file, "has nodes bring by `k3s.containers`", name));
    }
    let toml = format!("{CONTAINERS}/{name}.toml");
    if let Some(image) = &container.image {
        chain.push(link(&toml, "takes from a registry", image.clone()));
    }
    if let Some(set) = &container.set {
        chain.push(link(&toml, "takes packages of the tool set", set.clone()));
    }
    if let Some(recipe) = &container.recipe {
        chain.push(link(&toml, "takes the outputs of the recipe", recipe.recipe.clone()));
        chain.push(by_recipe(recipe, "them"));
    }
    let what = format!("{} with the manifest sha256:{}", container.reference, container.digest);
    chain.push(link(&container.file, "is", what));
    let packages = container.packages.iter().map(|(name, info)| format!("{name} {}", info.version));
    PartAnswer {
        name: name.to_owned(),
        kind: PartKind::Container,
        version: container.tag().to_owned(),
        chain,
        has: has(&container.programs).into_iter().chain(packages).collect(),
    }
}

fn package(project: &Project, built: &Built, name: &str) -> Result<Option<PackageAnswer>> {
    let manifest = &built.manifest;
    let inside = || manifest.containers.iter().filter(|(_, c)| c.packages.contains_key(name));
    let containers: Vec<String> = inside().map(|(container, _)| container.clone()).collect();
    if let Some(info) = manifest.packages.get(name) {
        let graph = Graph::new(&manifest.packages, manifest.arch.debian())?;
        return Ok(Some(PackageAnswer {
            name: name.to_owned(),
            version: info.version.clone(),
            chain: chain(project, built, &graph, name, info),
            needed_by: graph.needed_by(name).into_iter().map(str::to_owned).collect(),
            containers,
        }));
    }
    let Some(info) = manifest.boot.get(name) else {
        let Some((_, first)) = inside().next() else { return Ok(None) };
        let Some(info) = first.packages.get(name) else { return Ok(None) };
        let chain = inside().map(|(container, about)| {
            let set = about.set.as_deref().unwrap_or_default();
            let by = format!("{CONTAINERS}/{container}.toml");
            link(by, &format!("takes with the tool set {set} of images/tools.toml"), name)
        });
        return Ok(Some(PackageAnswer {
            name: name.to_owned(),
            version: info.version.clone(),
            chain: chain.collect(),
            needed_by: Vec::new(),
            containers,
        }));
    };
    let sets = project.tools.set.iter().filter(|(set, wants)| {
        ["boot", "initrd"].contains(&set.as_str()) && wants.packages.iter().any(|p| p == name)
    });
    let chain = sets.map(|(set, _)| Link {
        by: "images/tools.toml".to_owned(),
        how: format!("takes into the {set} set, whose files are in the ESP,"),
        what: name.to_owned(),
    });
    Ok(Some(PackageAnswer {
        name: name.to_owned(),
        version: info.version.clone(),
        chain: chain.collect(),
        needed_by: Vec::new(),
        containers,
    }))
}

fn chain(project: &Project, built: &Built, graph: &Graph<'_>, name: &str, info: &PackageInfo) -> Vec<Link> {
    let mut chain = Vec::new();
    let mut rest = None;
    if let Some(profile) = project.find_image(&built.manifest.profile) {
        let wants = profile.wants(built.manifest.arch);
        let starts: BTreeSet<&str> = wants.iter().map(String::as_str).collect();
        rest = graph.chain(&starts, name);
        if let Some(found) = &rest {
            let first = found.first().map_or(name, |need| need.package);
            if Some(first) == profile.kernel_package(built.manifest.arch).as_deref() {
                chain.push(link(&profile.asked.kernel, "chooses the kernel", first));
            }
            for file in profile.asked.packages.get(first).into_iter().flatten() {
                chain.push(link(file, "installs", first));
            }
        }
    }
    if rest.is_none() {
        let base: BTreeSet<&str> =
            built.manifest.packages.iter().filter(|(_, p)| p.base).map(|(name, _)| name.as_str()).collect();
        rest = graph.chain(&base, name);
        if let Some(found) = &rest {
            let first = found.first().map_or(name, |need| need.package);
            chain.push(link("Debian", "has in every system (Essential or Priority: required)", first));
        }
    } else if info.base {
        chain.push(link("Debian", "has in every system (Essential or Priority: required)", name));
    }
    chain.extend(rest.into_iter().flatten().map(|need| link(need.package, "needs", need.relation)));
    chain
}

/// Follows the links of all folders above `path`, within the image; the last part stays as it is.
fn resolve(files: &BTreeMap<String, FileInfo>, path: &str) -> Option<String> {
    let mut todo: Vec<String> = parts(path).rev().map(str::to_owned).collect();
    let mut at: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(part);
        let here = format!("/{}", at.join("/"));
        let target = files.get(&here).filter(|_| !todo.is_empty()).and_then(|info| info.target.as_ref());
        if let Some(target) = target {
            links += 1;
            if links > MAX_LINKS {
                return None;
            }
            at.pop();
            if target.starts_with('/') {
                at.clear();
            }
            todo.extend(parts(target).rev().map(str::to_owned));
        }
    }
    Some(format!("/{}", at.join("/")))
}

fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

/// The error about something that none of `images` has, with what comes near.
pub fn unknown(images: &[Built], what: &str) -> Failure {
    let names: Vec<&str> = images.iter().map(|b| b.manifest.profile.as_str()).collect();
    let is_path = what.starts_with('/');
    let kind = if is_path { "file" } else { "package, program, container image or Go module" };
    let mut failure =
        Failure::new(Kind::Input, format!("there is no {kind} `{what}` in {}", names.join(", ")));
    let last = what.rsplit('/').next().unwrap_or(what);
    let paths = || images.iter().flat_map(|b| b.files.keys().map(String::as_str));
    let packages = || images.iter().flat_map(|built| known(built));
    let named: BTreeSet<&str> =
        paths().filter(|path| !last.is_empty() && path.rsplit('/').next() == Some(last)).collect();
    for path in named.iter().take(NEAR) {
        failure = failure.hint(format!("there is `{path}`"));
    }
    let near = match is_path {
        true if named.is_empty() => nearest(what, paths()),
        true => None,
        false => nearest(what, packages()),
    };
    if let Some(near) = near {
        failure = failure.hint(format!("did you mean `{near}`?"));
    }
    if is_path && packages().any(|name| name == last) {
        failure = failure.hint(format!("`kiln why {last}` knows that name"));
    }
    failure
}

/// Every name that [`why`] has an answer for.
fn known(built: &Built) -> BTreeSet<&str> {
    let manifest = &built.manifest;
    let inner = manifest.containers.values().flat_map(|container| container.packages.keys());
    let names = manifest.packages.keys().chain(manifest.boot.keys()).chain(inner);
    let names = names.chain(manifest.components.keys()).chain(manifest.containers.keys());
    let programs = manifest.components.values().flat_map(|component| &component.programs);
    let programs = programs.chain(manifest.containers.values().flat_map(|container| &container.programs));
    let modules = programs.flat_map(|program| &program.go).flat_map(|go| &go.modules);
    let references = manifest.containers.values().map(|container| container.reference.as_str());
    let modules = modules.map(|module| module.path.as_str());
    names.map(String::as_str).chain(references).chain(modules).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built::tests::sample;
    use crate::digest::Digest;
    use crate::inventory::FromRelease;

    /// This repository's own project, whose profile `server` the sample is of.
    fn project() -> Project {
        Project::load(std::path::Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn a_path_leads_over_links_to_its_package_and_the_layer_that_asked() {
        let answer = why(&project(), &sample(), "/bin/../bin/curl").unwrap().unwrap();
        insta::assert_snapshot!(answer.lines().join("\n"), @r"
        server (amd64): /usr/bin/curl (file) is from the package curl
          images/node.toml installs curl
        ");
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), answer);
    }

    #[test]
    fn files_of_steps_name_the_step_and_the_toml_file() {
        let project = project();
        let hosts = why(&project, &sample(), "/etc/hosts").unwrap().unwrap();
        assert_eq!(hosts.file.unwrap().asked_by.unwrap(), "images/node.toml");
        let passwd = why(&project, &sample(), "/etc/passwd").unwrap().unwrap().lines();
        assert_eq!(
            passwd,
            ["server (amd64): /etc/passwd (file) is made by kiln:accounts: users and groups from sysusers.d"]
        );
    }

    #[test]
    fn a_package_has_its_chain_and_the_base_system_its_own() {
        let project = project();
        let lines = |name: &str| why(&project, &sample(), name).unwrap().unwrap().lines().join("\n");
        insta::assert_snapshot!(lines("libssl3t64"), @r"
        server (amd64): libssl3t64 3.5-1+b1, a Debian package
          images/node.toml installs curl
          curl needs libcurl4t64 (= 8.14-2)
          libcurl4t64 needs libssl3 | libssl3t64 (>= 3)
          needed directly by: libcurl4t64
        ");
        assert!(lines("base-files").contains("Debian has in every system"), "{}", lines("base-files"));
        assert!(lines("busybox-static").contains("images/tools.toml takes into the initrd set"));
    }

    #[test]
    fn what_is_not_there_is_none_and_near_names_are_told() {
        let built = sample();
        assert_eq!(why(&project(), &built, "/etc/nothing").unwrap(), None);
        assert_eq!(why(&project(), &built, "crul").unwrap(), None);
        let images = [built];
        assert_eq!(unknown(&images, "crul").hints(), ["did you mean `curl`?"]);
        assert_eq!(
            unknown(&images, "/bin/curl").hints(),
            ["there is `/usr/bin/curl`", "`kiln why curl` knows that name"]
        );
        assert_eq!(unknown(&images, "/etc/hostz").hints(), ["did you mean `/etc/hosts`?"]);
    }

    #[test]
    fn k3s_says_who_asked_and_which_way_it_came() {
        let (project, built) = (project(), sample());
        let lines =
            |built: &Built, what: &str| why(&project, built, what).unwrap().unwrap().lines().join("\n");
        insta::assert_snapshot!(lines(&built, "k3s"), @r"
        server (amd64): k3s v1.33.3+k3s1, built from source
          images/k3s.toml chooses in [k3s] the version v1.33.3+k3s1
          images/k3s.toml names in `k3s.source` the recipe k3s
          recipe images/recipes/k3s builds k3s of the commit ec165b106313a7906d04c4e5ba3913f893a43002 from Go modules with sha256 fbc6c1d4c3b6db8fb54278582eb1d965ed644e97509e130346ae130da5406cb3; its outputs have sha256 86bd33ebf64e01aaafb7dab419436ac025d04abd933bbbb124ddb25c30b59dd7
          it has: /usr/bin/k3s (go1.24.4, 2 modules)
        ");
        insta::assert_snapshot!(lines(&built, "/usr/bin/kubectl"), @r"
        server (amd64): /usr/bin/kubectl (link to k3s) is from k3s v1.33.3+k3s1, built from source
          images/k3s.toml chooses in [k3s] the version v1.33.3+k3s1
          images/k3s.toml names in `k3s.source` the recipe k3s
          recipe images/recipes/k3s builds k3s of the commit ec165b106313a7906d04c4e5ba3913f893a43002 from Go modules with sha256 fbc6c1d4c3b6db8fb54278582eb1d965ed644e97509e130346ae130da5406cb3; its outputs have sha256 86bd33ebf64e01aaafb7dab419436ac025d04abd933bbbb124ddb25c30b59dd7
        ");
        let mut released = sample();
        released.manifest.components.get_mut("k3s").unwrap().made = Made::Release(FromRelease {
            file: "k3s".to_owned(),
            sha256: Digest::of(b"release"),
            urls: vec!["https://example.org/k3s".to_owned()],
        });
        insta::assert_snapshot!(lines(&released, "k3s"), @r"
        server (amd64): k3s v1.33.3+k3s1, upstream's release
          images/k3s.toml chooses in [k3s] the version v1.33.3+k3s1
          upstream released k3s from https://example.org/k3s, sha256 a4d451ec23463726f72c43d64c710968f6b602cd653b4de8adee1b556240a829
          it has: /usr/bin/k3s (go1.24.4, 2 modules)
        ");
        let text = serde_json::to_string(&why(&project, &built, "k3s").unwrap().unwrap()).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap().parts[0].kind, PartKind::Recipe);
    }

    #[test]
    fn container_images_and_modules_are_found_by_name_reference_archive_and_path() {
        let (project, built) = (project(), sample());
        let lines = |what: &str| why(&project, &built, what).unwrap().unwrap().lines().join("\n");
        insta::assert_snapshot!(lines("coredns"), @r"
        server (amd64): coredns 1.12.1, a container image
          images/k3s.toml has nodes bring by `k3s.containers` coredns
          images/containers/coredns.toml takes packages of the tool set container-coredns
          images/containers/coredns.toml takes the outputs of the recipe coredns
          recipe images/recipes/coredns builds them from Go modules with sha256 fbc6c1d4c3b6db8fb54278582eb1d965ed644e97509e130346ae130da5406cb3; its outputs have sha256 8a32e516d7415be524a7fcec482ad2918f2b6ef2a7f4cb8e2e232b361436b20b
          /usr/share/kiln/containers/coredns-1089b7fe6081.tar is kiln.invalid/coredns:1.12.1 with the manifest sha256:8a32e516d7415be524a7fcec482ad2918f2b6ef2a7f4cb8e2e232b361436b20b
          it has: /coredns (go1.24.4, 2 modules), tini 0.19-1
        ");
        for same in ["kiln.invalid/coredns:1.12.1", "kiln.invalid/coredns", "k3s-containers"] {
            assert_eq!(lines(same), lines("coredns"), "{same}");
        }
        let archive = lines("/usr/share/kiln/containers/coredns-1089b7fe6081.tar");
        assert!(archive.contains("is the container image coredns 1.12.1\n"), "{archive}");
        let folder = lines("/usr/share/kiln/containers");
        assert!(folder.contains("is made for k3s-containers"), "{folder}");
        insta::assert_snapshot!(lines("golang.org/x/sys"), @r"
        server (amd64): golang.org/x/sys v0.23.0, a Go module
          k3s: /usr/bin/k3s is linked with golang.org/x/sys v0.23.0
          container image coredns: /coredns is linked with golang.org/x/sys v0.23.0
        ");
        insta::assert_snapshot!(lines("tini"), @r"
        server (amd64): tini 0.19-1, a Debian package
          images/containers/coredns.toml takes with the tool set container-coredns of images/tools.toml tini
          in the container images: coredns
        ");
        assert_eq!(unknown(std::slice::from_ref(&built), "corends").hints(), ["did you mean `coredns`?"]);
        assert_eq!(unknown(&[built], "k3").hints(), ["did you mean `k3s`?"]);
    }

    #[test]
    fn links_in_a_circle_end() {
        let mut built = sample();
        built.files.insert("/a".to_owned(), crate::built::tests::link("a", "x"));
        assert_eq!(why(&project(), &built, "/a/b").unwrap(), None);
    }
}
