//! Packages and outputs of recipes to the one tree of a container image.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::digest::Hasher;
use crate::error::{Failure, Kind};
use crate::inventory::{FromRecipe, Made};
use crate::linux;
use crate::lock::SetKind;
use crate::packages::Work;
use crate::recipe;
use crate::rootfs::check::{self, Allow};
use crate::rootfs::elf::{self, Facts};
use crate::rootfs::files;
use crate::rootfs::merge::{self, Filter};
use crate::rootfs::{self};
use crate::spec::ContainerSpec;
use crate::store::StepKey;
use crate::tree::{Entry, Tree, TreePath};
use crate::unpack::{self, Info, PackageKind, Unpacked};

/// Owner of what is made here.
const OWNER: &str = "kiln:container";
/// Top-level links of a merged system (file-hierarchy(7)); the loader's own path begins with one.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// What a container must not lack; the other checks are about a node with its services.
const CHECKS: [&str; 4] = ["interpreter", "library", "dangling-link", "device"];

/// The tree of `spec`: everything root's, without set-id bits and capabilities, whose programs find their loaders and libraries in it and
/// are for `arch`.
pub(super) fn tree(work: &Work<'_>, name: &str, spec: &ContainerSpec, arch: Arch) -> Result<Tree> {
    let mut packages = match &spec.set {
        Some(set) => work.set(SetKind::Tool, set, arch)?,
        None => Vec::new(),
    };
    if let Some(recipe) = &spec.recipe {
        packages.push(output(work, recipe, arch)?);
    }
    let mut tree = merge::merge(packages.iter().map(|p| &p.tree), &Filter::new(&[], &[])?)?;
    keep(&mut tree, spec)?;
    for folder in MERGED {
        let target = format!("usr/{folder}");
        if tree.get(&target).is_some_and(Entry::is_dir) && tree.get(folder).is_none() {
            tree.insert(TreePath::new(folder)?, Entry::symlink(target, OWNER))?;
        }
    }
    files::put_files(&mut tree, &spec.files, &spec.sources)?;
    for (_, entry) in tree.iter_mut() {
        // Who may do what in a container is the pod's word, not the image's.
        entry.meta.mode &= 0o1777;
        entry.meta.xattrs.remove("security.capability");
        (entry.meta.uid, entry.meta.gid) = (0, 0);
    }
    let mut facts = Facts::new();
    for package in &packages {
        facts.extend(package.facts.iter().map(|(digest, elf)| (*digest, elf.clone())));
    }
    elf::scan(&tree, &mut facts)?;
    judge(name, &tree, &facts, arch)?;
    Ok(tree)
}

/// The outputs of a recipe, as a package.
fn output(work: &Work<'_>, name: &str, arch: Arch) -> Result<Unpacked> {
    let recipes = linux::recipes(work.project)?;
    let options = recipe::Options { jobs: work.threads, keep_failed: false };
    let built = recipe::build(work, &recipes, &[name], options)?;
    let built = built.first().context("a recipe that was asked for was built")?;
    let key = StepKey::new("container-recipe", name, unpack::VERSION)
        .input("recipe", built.dir.record().key.digest());
    let info = Info {
        name: name.to_owned(),
        version: work.locked.lock().version(),
        arch: arch.debian().to_owned(),
        source: None,
        summary: None,
        depends: String::new(),
        provides: String::new(),
        base: false,
        scripts: Vec::new(),
    };
    let kind = PackageKind::Made(Made::Recipe(FromRecipe::of(recipes.get(name)?, built)));
    unpack::folder(work.store, &key, &built.out(), info, kind, vec![work.store.relative(built.dir.path())])
}

/// Leaves what `keep` names, and the folders above it.
fn keep(tree: &mut Tree, spec: &ContainerSpec) -> Result<()> {
    if spec.keep.is_empty() {
        return Ok(());
    }
    for pattern in &spec.keep {
        let one = merge::globs(std::slice::from_ref(pattern))?;
        if !tree.iter().any(|(path, _)| one.is_match(format!("/{path}"))) {
            let text = format!("`keep`: nothing of the packages is `{pattern}`");
            return Err(Failure::new(Kind::Input, text)
                .hint(
                    "a package may have moved it: paths are those of a merged system, /usr/bin and not /bin",
                )
                .into());
        }
    }
    let globs = merge::globs(&spec.keep)?;
    let mut kept: BTreeSet<String> = BTreeSet::new();
    for (path, _) in tree.iter().filter(|(path, _)| globs.is_match(format!("/{path}"))) {
        kept.insert(path.to_string());
        kept.extend(path.ancestors().map(str::to_owned));
    }
    tree.retain(|path, _| kept.contains(path.as_str()));
    Ok(())
}

/// Refuses an image whose programs could not start.
fn judge(name: &str, tree: &Tree, facts: &Facts, arch: Arch) -> Result<()> {
    let loader = rootfs::loader(arch);
    let mut wrong = Vec::new();
    for (path, entry) in tree.iter() {
        let elf = entry.content().and_then(|content| facts.get(&content.digest()));
        if elf.is_some_and(|elf| elf.machine != loader.machine) {
            wrong.push(format!("/{path}: it is a program for another machine than {arch}"));
        }
    }
    let found = check::check(tree, facts, &loader, &Allow::default())?;
    wrong.extend(
        found
            .iter()
            .filter(|finding| finding.fatal && CHECKS.contains(&finding.check))
            .map(|finding| format!("{}: {} [{}]", finding.path, finding.text, finding.owner)),
    );
    if wrong.is_empty() {
        return Ok(());
    }
    let text =
        format!("the container {name} ({arch}) lacks what its programs need\n  {}", wrong.join("\n  "));
    Err(Failure::new(Kind::Input, text).hint("add the package to its tool set, or the path to `keep`").into())
}

/// What [`tree`] depends on, from lock and TOML alone.
pub(super) fn inputs(work: &Work<'_>, spec: &ContainerSpec, arch: Arch, key: StepKey) -> Result<StepKey> {
    let mut key = key.input("time", work.locked.lock().epoch());
    if let Some(set) = &spec.set {
        let mut all = Hasher::new();
        for package in work.locked.packages(SetKind::Tool, set, arch)? {
            all.update(package.sha256.as_bytes());
        }
        key = key.input("packages", all.finish());
    }
    if let Some(name) = &spec.recipe {
        let recipes = linux::recipes(work.project)?;
        key = key.input("recipe", recipe::step_key(work, &recipes, name)?.digest());
    }
    for (path, bytes) in &spec.sources {
        key = key.input(&format!("source of {path}"), crate::digest::Digest::of(bytes));
    }
    Ok(key)
}
