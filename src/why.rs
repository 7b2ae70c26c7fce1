//! Why something is in an image: which package or step put a file there, and the chain of wishes that leads to a package.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::built::Built;
use crate::error::{Failure, Kind};
use crate::graph::Graph;
use crate::manifest::{FileInfo, PackageInfo};
use crate::spec::{Project, nearest};

/// Links that are followed before a path counts as a circle; Linux's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Near names that are told.
const NEAR: usize = 4;

/// Why a file or a package is in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The profile of the image.
    pub profile: String,
    /// Its machine.
    pub arch: Arch,
    /// The file, if a path was asked for.
    pub file: Option<FileAnswer>,
    /// The package that was asked for, or that the file is from.
    pub package: Option<PackageAnswer>,
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
                None => format!("from the package {}", file.from),
            };
            lines.push(format!("{image}: {} ({}{target}) is {from}", file.path, file.kind));
            if let Some(toml) = &file.asked_by {
                lines.push(format!("  {toml} asks for it in [files]"));
            }
        }
        if let Some(package) = &self.package {
            if self.file.is_none() {
                lines.push(format!("{image}: {} {}", package.name, package.version));
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
        }
        lines
    }
}

/// Says why `what`, an absolute path or a package, is in `built`. `None` if it is not.
pub fn why(project: &Project, built: &Built, what: &str) -> Result<Option<Answer>> {
    let answer = |file, package| Answer {
        profile: built.manifest.profile.clone(),
        arch: built.manifest.arch,
        file,
        package,
    };
    if !what.starts_with('/') {
        let package = package(project, built, what)?;
        return Ok(package.map(|package| answer(None, Some(package))));
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
    let package = if file.step.is_some() { None } else { package(project, built, &info.from)? };
    Ok(Some(answer(Some(file), package)))
}

/// What a step of [`crate::rootfs::compose`] makes, by the name that its files carry.
fn does(step: &str) -> &'static str {
    match step {
        "accounts" => "users and groups from sysusers.d",
        "alternatives" => "links that update-alternatives would make",
        "certs" => "the certificate store, as update-ca-certificates would make it",
        "depmod" => "the kernel's index of modules, as depmod would make it",
        "files" => "files that the TOML files ask for",
        "ldcache" => "the library cache, as ldconfig would make it",
        "os-release" => "the name and version of the image",
        "pam" => "PAM's common files, as pam-auth-update would make them",
        "state" => "mount points, fstab and what first boot puts on /var",
        "templates" => "configuration that packages copy from their own templates",
        "units" => "links of enabled and masked units, as systemctl preset would make them",
        _ => "a step of the build",
    }
}

fn package(project: &Project, built: &Built, name: &str) -> Result<Option<PackageAnswer>> {
    let manifest = &built.manifest;
    if let Some(info) = manifest.packages.get(name) {
        let graph = Graph::new(&manifest.packages, manifest.arch.debian())?;
        return Ok(Some(PackageAnswer {
            name: name.to_owned(),
            version: info.version.clone(),
            chain: chain(project, built, &graph, name, info),
            needed_by: graph.needed_by(name).into_iter().map(str::to_owned).collect(),
        }));
    }
    let Some(info) = manifest.boot.get(name) else { return Ok(None) };
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
    }))
}

fn chain(project: &Project, built: &Built, graph: &Graph<'_>, name: &str, info: &PackageInfo) -> Vec<Link> {
    let link = |by: &str, how: &str, what: &str| Link {
        by: by.to_owned(),
        how: how.to_owned(),
        what: what.to_owned(),
    };
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
    chain.extend(rest.into_iter().flatten().map(|need| link(need.package, "needs", &need.relation)));
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
    let kind = if what.starts_with('/') { "file" } else { "package" };
    let mut failure =
        Failure::new(Kind::Input, format!("there is no {kind} `{what}` in {}", names.join(", ")));
    let last = what.rsplit('/').next().unwrap_or(what);
    let paths = || images.iter().flat_map(|b| b.files.keys().map(String::as_str));
    let packages = || {
        images
            .iter()
            .flat_map(|b| b.manifest.packages.keys().chain(b.manifest.boot.keys()).map(String::as_str))
    };
    let named: BTreeSet<&str> =
        paths().filter(|path| !last.is_empty() && path.rsplit('/').next() == Some(last)).collect();
    for path in named.iter().take(NEAR) {
        failure = failure.hint(format!("there is `{path}`"));
    }
    let near = match kind {
        "file" if named.is_empty() => nearest(what, paths()),
        "file" => None,
        _ => nearest(what, packages()),
    };
    if let Some(near) = near {
        failure = failure.hint(format!("did you mean `{near}`?"));
    }
    if kind == "file" && packages().any(|name| name == last) {
        failure = failure.hint(format!("there is a package `{last}`"));
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built::tests::sample;

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
        server (amd64): libssl3t64 3.5-1+b1
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
            ["there is `/usr/bin/curl`", "there is a package `curl`"]
        );
        assert_eq!(unknown(&images, "/etc/hostz").hints(), ["did you mean `/etc/hosts`?"]);
    }

    #[test]
    fn links_in_a_circle_end() {
        let mut built = sample();
        built.files.insert("/a".to_owned(), crate::built::tests::link("a", "x"));
        assert_eq!(why(&project(), &built, "/a/b").unwrap(), None);
    }
}
