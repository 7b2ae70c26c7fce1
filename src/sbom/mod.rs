//! The software bill of materials of an image, from its manifest alone: [`spdx`] 2.3 and [`cyclonedx`] 1.6, both as JSON.
//!
//! ```text
//! image ── Debian packages of the root, the ESP and the initrd
//!       ├─ K3s and what else recipes or upstream built ── its programs ── the Go modules in them
//!       └─ container images ── their Debian packages, their programs ── the Go modules in them
//! ```
//!
//! The time is that of the image and identifiers are UUIDs of version 5 over the disk's digest, so the same image has the same bill,
//! byte for byte. What is in several places is one component.

mod cyclonedx;
mod purl;
mod spdx;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use uuid::Uuid;

use crate::digest::Digest;
use crate::graph::Graph;
use crate::inventory::go::{Go, Module};
use crate::inventory::{Component, Container, FromRecipe, Made, Program};
use crate::lock::time;
use crate::manifest::{Manifest, PackageInfo};

/// Name space of the identifiers that are derived from a disk's digest.
const NAMES: Uuid = uuid::uuid!("b1f0c7a4-52f0-4f0e-9a5b-7f8f0a1f6d2e");

/// A format of bills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// SPDX 2.3 (spdx.github.io/spdx-spec/v2.3)
    Spdx,
    /// CycloneDX 1.6 (cyclonedx.org/docs/1.6/json)
    Cyclonedx,
}

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Application,
    Container,
    System,
    /// A program as a file.
    File,
    Library,
}

/// Something in an image. Its key is unique in a bill: its purl if it has one.
#[derive(Debug)]
struct Part {
    sort: Sort,
    name: String,
    /// Empty if it is not known.
    version: String,
    description: String,
    /// Package URL (github.com/package-url/purl-spec).
    purl: Option<String>,
    /// Of its one file, of a container image that of its manifest.
    sha256: Option<Digest>,
    /// The name of that file, without its folders; for a program its whole path.
    file: Option<String>,
    /// Who made it, if that is known.
    supplier: Option<&'static str>,
    /// Where it may be had from, or where its source is: a URL, or `git+URL@COMMIT`.
    download: Option<String>,
    /// The commit of its source.
    commit: Option<String>,
    /// In words, what it was built from.
    source: Option<String>,
    /// Further facts: name and value.
    facts: Vec<(&'static str, String)>,
    /// Keys of what is in it.
    contains: BTreeSet<String>,
    /// Keys of what it needs beside it.
    needs: BTreeSet<String>,
}

impl Part {
    fn new(sort: Sort, name: &str, version: &str) -> Self {
        Part {
            sort,
            name: name.to_owned(),
            version: version.to_owned(),
            description: String::new(),
            purl: None,
            sha256: None,
            file: None,
            supplier: None,
            download: None,
            commit: None,
            source: None,
            facts: Vec::new(),
            contains: BTreeSet::new(),
            needs: BTreeSet::new(),
        }
    }
}

/// What both formats say.
#[derive(Debug)]
struct Bill<'a> {
    manifest: &'a Manifest,
    /// Identifies this bill.
    id: Uuid,
    /// Time of the image, ISO 8601 in UTC.
    created: String,
    /// By key.
    parts: BTreeMap<String, Part>,
    /// Keys of what the image itself contains; the rest is in one of those.
    contains: BTreeSet<String>,
}

/// The bill of the image that `manifest` describes, as JSON with a newline at its end.
///
/// # Errors
/// The manifest is of an older kiln, see [`Manifest::tells_kinds`]; a package's relations cannot be read.
pub fn write(manifest: &Manifest, format: Format) -> Result<Vec<u8>> {
    let bill = Bill::new(manifest, &format!("{format:?}"))?;
    let mut text = match format {
        Format::Spdx => serde_json::to_vec_pretty(&spdx::document(&bill))?,
        Format::Cyclonedx => serde_json::to_vec_pretty(&cyclonedx::document(&bill))?,
    };
    text.push(b'\n');
    Ok(text)
}

impl<'a> Bill<'a> {
    fn new(manifest: &'a Manifest, format: &str) -> Result<Self> {
        manifest.tells_kinds()?;
        let mut bill = Bill {
            manifest,
            id: Uuid::new_v5(&NAMES, format!("{format} {}", manifest.disk.sha256).as_bytes()),
            created: time::iso(manifest.epoch),
            parts: BTreeMap::new(),
            contains: BTreeSet::new(),
        };
        bill.system();
        for packages in [&manifest.packages, &manifest.boot] {
            let keys = bill.debian(packages)?;
            bill.contains.extend(keys);
        }
        for (name, component) in &manifest.components {
            let key = bill.component(name, component);
            bill.contains.insert(key);
        }
        for (name, container) in &manifest.containers {
            let key = bill.container(name, container)?;
            bill.contains.insert(key);
        }
        Ok(bill)
    }

    /// `server-amd64`: the image's name.
    fn name(&self) -> String {
        format!("{}-{}", self.manifest.profile, self.manifest.arch)
    }

    /// Adds a part, or what it contains and needs to the one that is there; gives its key.
    fn add(&mut self, key: String, part: Part) -> String {
        match self.parts.get_mut(&key) {
            Some(known) => {
                known.contains.extend(part.contains);
                known.needs.extend(part.needs);
            }
            None => drop(self.parts.insert(key.clone(), part)),
        }
        key
    }

    /// The distribution: scanners ask for it to know which advisories count.
    fn system(&mut self) {
        let os = &self.manifest.os;
        let key =
            self.add(format!("os:{}@{}", os.id, os.version), Part::new(Sort::System, &os.id, &os.version));
        self.contains.insert(key);
    }

    /// The Debian packages of one place, which need only each other.
    fn debian(&mut self, packages: &BTreeMap<String, PackageInfo>) -> Result<Vec<String>> {
        let graph = Graph::new(packages, self.manifest.arch.debian())?;
        let os = &self.manifest.os;
        let mut keys = Vec::new();
        for (name, info) in packages {
            let purl = purl::debian(name, info, os);
            let (source, version) = info.source(name);
            let needs =
                graph.needs(name).filter_map(|need| Some(purl::debian(need, packages.get(need)?, os)));
            let part = Part {
                purl: Some(purl.clone()),
                sha256: Some(info.sha256),
                file: info.path.rsplit('/').next().map(str::to_owned),
                supplier: Some("Debian"),
                source: Some(format!("built from the Debian source package {source} {version}")),
                facts: vec![("debian:source", source), ("debian:source-version", version)],
                needs: needs.collect(),
                ..Part::new(Sort::Library, name, &info.version)
            };
            keys.push(self.add(purl, part));
        }
        Ok(keys)
    }

    fn component(&mut self, name: &str, component: &Component) -> String {
        let mut part = Part {
            description: component.description.clone(),
            ..Part::new(Sort::Application, name, &component.version)
        };
        match &component.made {
            Made::Recipe(recipe) => built(&mut part, recipe, &component.programs),
            Made::Release(release) => {
                part.sha256 = Some(release.sha256);
                part.file = Some(release.file.clone());
                part.download = release.urls.first().cloned();
                part.source = Some("taken as upstream released it".to_owned());
            }
        }
        let purl = purl::generic(&part);
        part.purl = Some(purl.clone());
        part.contains = self.programs(&format!("file:{name}"), &component.programs);
        self.add(purl, part)
    }

    fn container(&mut self, name: &str, container: &Container) -> Result<String> {
        let purl = purl::oci(container, self.manifest.arch.debian());
        let mut part = Part {
            description: container.description.clone(),
            purl: Some(purl.clone()),
            sha256: Some(container.digest),
            file: container.file.rsplit('/').next().map(str::to_owned),
            ..Part::new(Sort::Container, name, container.tag())
        };
        part.facts.push(("kiln:reference", container.reference.clone()));
        part.facts.push(("kiln:archive", container.file.clone()));
        match (&container.recipe, &container.image, &container.set) {
            (Some(recipe), ..) => built(&mut part, recipe, &container.programs),
            (None, Some(image), _) => part.source = Some(format!("taken from the registry as {image}")),
            (None, None, Some(set)) => {
                part.source = Some(format!("put together of packages of the tool set {set}"));
            }
            (None, None, None) => {}
        }
        part.contains = self.programs(&format!("file:{}", container.digest), &container.programs);
        part.contains.extend(self.debian(&container.packages)?);
        Ok(self.add(purl, part))
    }

    /// Programs, and the Go modules that they were linked of: all of it is in the same part.
    fn programs(&mut self, place: &str, programs: &[Program]) -> BTreeSet<String> {
        let mut contains = BTreeSet::new();
        for program in programs {
            let mut modules = BTreeSet::new();
            if let Some(go) = &program.go {
                modules.insert(self.go(go));
                modules.extend(go.modules.iter().map(|module| self.module(module)));
            }
            contains.extend(modules.iter().cloned());
            let part = Part {
                sha256: Some(program.sha256),
                file: Some(program.path.clone()),
                needs: modules,
                ..Part::new(Sort::File, &program.path, "")
            };
            contains.insert(self.add(format!("{place}:{}", program.path), part));
        }
        contains
    }

    fn module(&mut self, module: &Module) -> String {
        let purl = purl::golang(&module.path, &module.version);
        let mut part =
            Part { purl: Some(purl.clone()), ..Part::new(Sort::Library, &module.path, &module.version) };
        part.facts.extend(module.sum.iter().map(|sum| ("go:sum", sum.clone())));
        part.facts.extend(module.replaces.iter().map(|path| ("go:replaces", path.clone())));
        self.add(purl, part)
    }

    /// Go's own library, which is linked into every program.
    fn go(&mut self, go: &Go) -> String {
        let version = go.version.trim_start_matches("go");
        let purl = purl::golang("stdlib", version);
        let part = Part { purl: Some(purl.clone()), ..Part::new(Sort::Library, "stdlib", version) };
        self.add(purl, part)
    }
}

/// What a recipe says of the part that it built.
fn built(part: &mut Part, recipe: &FromRecipe, programs: &[Program]) {
    let mut source = format!("built from source by kiln's recipe {}", recipe.recipe);
    if let Some(commit) = &recipe.commit {
        source.push_str(&format!(", commit {commit}"));
    }
    part.source = Some(source);
    part.commit.clone_from(&recipe.commit);
    part.download = recipe.commit.as_ref().and_then(|commit| repository(commit, programs));
    part.facts.push(("kiln:recipe", recipe.recipe.clone()));
    part.facts.push(("kiln:recipe-outputs-sha256", recipe.outputs.to_string()));
    if let Some(modules) = recipe.go_modules {
        part.facts.push(("kiln:go-modules-sha256", modules.to_string()));
    }
    if let Some(set) = &recipe.source_set {
        part.facts.push(("kiln:source-set", set.clone()));
    }
    // The list of its outputs has no file of its own, but the one program that it is has a digest.
    if let ([program], None) = (programs, part.sha256) {
        part.sha256 = Some(program.sha256);
    }
}

/// Where the source is: of the modules of a program the one whose version ends with the commit (go.dev/ref/mod, pseudo-versions) tells the
/// repository by its path.
fn repository(commit: &str, programs: &[Program]) -> Option<String> {
    let short = commit.get(..12)?;
    let mut modules = programs.iter().flat_map(|program| &program.go).flat_map(|go| &go.modules);
    let module = modules.find(|module| module.version.ends_with(&format!("-{short}")))?;
    Some(format!("git+https://{}@{commit}", module.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built::tests::sample;

    #[test]
    fn the_same_image_has_the_same_bill_and_another_disk_has_another() {
        for format in [Format::Spdx, Format::Cyclonedx] {
            let one = write(&sample().manifest, format).unwrap();
            assert!(one == write(&sample().manifest, format).unwrap());
            let mut other = sample().manifest;
            other.disk.sha256 = Digest::of(b"other");
            assert!(one != write(&other, format).unwrap());
        }
    }

    #[test]
    fn a_package_in_root_and_initrd_is_one_part() {
        let mut manifest = sample().manifest;
        manifest.boot.insert("libc6".to_owned(), manifest.packages["libc6"].clone());
        let bill = Bill::new(&manifest, "x").unwrap();
        assert_eq!(bill.parts.values().filter(|part| part.name == "libc6").count(), 1);
        assert_eq!(bill.parts.values().filter(|part| part.supplier.is_some()).count(), 7);
    }

    #[test]
    fn what_is_no_debian_package_has_parts_of_its_own_kind_one_in_the_other() {
        let built = sample();
        let bill = Bill::new(&built.manifest, "x").unwrap();
        let find = |name: &str| bill.parts.iter().find(|(_, part)| part.name == name).unwrap();
        let (k3s, part) = find("k3s");
        assert!(bill.contains.contains(k3s));
        assert_eq!(
            part.download.as_deref(),
            Some("git+https://github.com/k3s-io/k3s@ec165b106313a7906d04c4e5ba3913f893a43002")
        );
        for (name, sort) in [
            ("/usr/bin/k3s", Sort::File),
            ("github.com/k3s-io/k3s", Sort::Library),
            ("golang.org/x/sys", Sort::Library),
            ("stdlib", Sort::Library),
        ] {
            let (key, inner) = find(name);
            assert_eq!(inner.sort, sort, "{name}");
            assert!(part.contains.contains(key) && !bill.contains.contains(key), "{name}");
        }
        let (coredns, part) = find("coredns");
        assert!(bill.contains.contains(coredns) && part.sort == Sort::Container);
        // A Debian package that is in a container image alone is in the image by that alone.
        let (tini, _) = find("tini");
        assert!(part.contains.contains(tini) && !bill.contains.contains(tini));
        let (sys, _) = find("golang.org/x/sys");
        assert!(part.contains.contains(sys), "modules of several programs are one part");
    }

    #[test]
    fn a_manifest_that_does_not_tell_kinds_is_refused_with_the_way_out() {
        let mut manifest = sample().manifest;
        manifest.schema = 1;
        let error = write(&manifest, Format::Spdx).unwrap_err();
        assert!(error.to_string().contains("older kiln"), "{error}");
        let hints = crate::error::report(&error).hints;
        assert_eq!(hints, ["run `kiln build --profile server --arch amd64`: it writes the manifest again"]);
    }
}
