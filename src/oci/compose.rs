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
use crate::rootfs::merge::{self, AskedIn, Filter};
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

/// The tree of `spec`: everything from packages is root's, without set-id bits and capabilities, unless `privileges` names it; programs find
/// their loaders and libraries in it and are for `arch`.
pub(super) fn tree(work: &Work<'_>, name: &str, spec: &ContainerSpec, arch: Arch) -> Result<Tree> {
    let mut packages = packages(work, spec, arch)?;
    if let Some(recipe) = &spec.recipe {
        packages.push(output(work, recipe, arch)?);
    }
    let mut tree = lay(&packages, spec)?;
    refuse_unmatched(&tree, "keep", &spec.keep)?;
    keep(&mut tree, spec)?;
    refuse_unmatched(&tree, "privileges", &spec.privileges)?;
    strip(&mut tree, spec)?;
    for folder in MERGED {
        let target = format!("usr/{folder}");
        if tree.get(&target).is_some_and(Entry::is_dir) && tree.get(folder).is_none() {
            tree.insert(TreePath::new(folder)?, Entry::symlink(target, OWNER))?;
        }
    }
    files::put_files(&mut tree, &spec.files, &spec.sources)?;
    let mut facts = Facts::new();
    for package in &packages {
        facts.extend(package.facts.iter().map(|(digest, elf)| (*digest, elf.clone())));
    }
    elf::scan(&tree, &mut facts)?;
    judge(name, &tree, &facts, arch)?;
    Ok(tree)
}

fn packages(work: &Work<'_>, spec: &ContainerSpec, arch: Arch) -> Result<Vec<Unpacked>> {
    match &spec.set {
        Some(set) => work.set(SetKind::Tool, set, arch),
        None => Ok(Vec::new()),
    }
}

fn lay(packages: &[Unpacked], spec: &ContainerSpec) -> Result<Tree> {
    let place = AskedIn::Set(spec.set.as_deref().unwrap_or_default());
    Ok(merge::merge(packages.iter().map(|p| &p.tree), &Filter::new(&[], &[])?)
        .map_err(|error| error.asked_in(place))?)
}

/// What of the packages in `spec` does not keep its owner, set-id bits or capabilities: each path with what it loses. Outputs of its
/// recipe belong to root already; they may be gone from the store, and globs that only fit these are no mistake here.
///
/// # Errors
/// Packages that cannot be unpacked or do not fit together.
pub(super) fn stripped(work: &Work<'_>, spec: &ContainerSpec, arch: Arch) -> Result<Vec<String>> {
    let mut tree = lay(&packages(work, spec, arch)?, spec)?;
    keep(&mut tree, spec)?;
    strip(&mut tree, spec)
}

/// Takes owners, set-id bits and capabilities from everything that `privileges` does not name; gives each path with what it lost. Who may do
/// what in a container is the pod's word, so an image has such files only where somebody asked for them.
fn strip(tree: &mut Tree, spec: &ContainerSpec) -> Result<Vec<String>> {
    let kept = merge::globs(&spec.privileges)?;
    let mut lost = Vec::new();
    for (path, entry) in tree.iter_mut() {
        if kept.is_match(format!("/{path}")) {
            continue;
        }
        let mut what = Vec::new();
        if entry.meta.mode & 0o6000 != 0 {
            what.push(format!("mode {:04o}", entry.meta.mode));
        }
        if entry.meta.xattrs.remove("security.capability").is_some() {
            what.push("capabilities".to_owned());
        }
        if (entry.meta.uid, entry.meta.gid) != (0, 0) {
            what.push(format!("owner {}:{}", entry.meta.uid, entry.meta.gid));
        }
        entry.meta.mode &= 0o1777;
        (entry.meta.uid, entry.meta.gid) = (0, 0);
        if !what.is_empty() {
            lost.push(format!("/{path} ({})", what.join(", ")));
        }
    }
    Ok(lost)
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

/// Refuses a glob below `key` that nothing in `tree` fits.
fn refuse_unmatched(tree: &Tree, key: &str, patterns: &[String]) -> Result<()> {
    for pattern in patterns {
        let one = merge::globs(std::slice::from_ref(pattern))?;
        if !tree.iter().any(|(path, _)| one.is_match(format!("/{path}"))) {
            let text = format!("`{key}`: nothing of the packages is `{pattern}`");
            let mut failure = Failure::new(Kind::Input, text).hint(
                "a package may have moved it: paths are those of a merged system, /usr/bin and not /bin",
            );
            if key == "privileges" {
                failure = failure.hint("`keep` must name it, too, where there is one");
            }
            return Err(failure.into());
        }
    }
    Ok(())
}

/// Leaves what `keep` names, and the folders above it.
fn keep(tree: &mut Tree, spec: &ContainerSpec) -> Result<()> {
    if spec.keep.is_empty() {
        return Ok(());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::layer;

    fn spec(privileges: &[&str]) -> ContainerSpec {
        let list: Vec<String> = privileges.iter().map(|glob| format!("{glob:?}")).collect();
        let text = format!(
            "schema = 1\ndescription = \"\"\nreference = \"a.invalid/b:1\"\nset = \"x\"\nprivileges = [{}]\n",
            list.join(", ")
        );
        crate::spec::parse("x.toml", &text).unwrap()
    }

    fn sample() -> Tree {
        let mut tree = Tree::new();
        let mut put =
            |path: &str, entry: Entry| drop(tree.insert(TreePath::new(path).unwrap(), entry).unwrap());
        put("usr/bin/su", Entry::file(0o4755, "su", "login"));
        put("usr/bin/plain", Entry::file(0o755, "x", "p"));
        let mut ping = Entry::file(0o755, "ping", "iputils-ping");
        ping.meta.xattrs.insert("security.capability".to_owned(), vec![1, 0, 0, 2, 0, 0x20, 0, 0]);
        put("usr/bin/ping", ping);
        let mut mail = Entry::dir(0o2775, "base-files");
        mail.meta.gid = 8;
        put("var/mail", mail);
        put("tmp", Entry::dir(0o1777, "base-files"));
        tree
    }

    #[test]
    fn what_a_container_loses_is_said_and_what_is_asked_for_stays() {
        let mut tree = sample();
        let lost = strip(&mut tree, &spec(&[])).unwrap();
        let all =
            ["/usr/bin/ping (capabilities)", "/usr/bin/su (mode 4755)", "/var/mail (mode 2775, owner 0:8)"];
        assert_eq!(lost, all);
        assert_eq!(tree.get("usr/bin/su").unwrap().meta.mode, 0o755);
        assert_eq!(tree.get("tmp").unwrap().meta.mode, 0o1777);

        let mut tree = sample();
        assert_eq!(strip(&mut tree, &spec(&["/usr/bin/*", "/var/mail"])).unwrap(), [""; 0]);
        let mut bytes = Vec::new();
        layer::write(&tree, 0, &mut bytes).unwrap();
        let mut seen = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let able = entry.pax_extensions().unwrap().is_some_and(|mut all| {
                all.any(|one| one.unwrap().key() == Ok("SCHILY.xattr.security.capability"))
            });
            let header = entry.header();
            seen.push(format!(
                "{} {:o} {}:{} {able}",
                entry.path().unwrap().display(),
                header.mode().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap()
            ));
        }
        for line in ["usr/bin/ping 755 0:0 true", "usr/bin/su 4755 0:0 false", "var/mail/ 2775 0:8 false"] {
            assert!(seen.iter().any(|one| one == line), "{line}: {seen:#?}");
        }
    }

    #[test]
    fn privileges_for_what_is_not_there_are_a_mistake() {
        let error = refuse_unmatched(&sample(), "privileges", &spec(&["/bin/su"]).privileges).unwrap_err();
        assert!(error.to_string().contains("`/bin/su`"), "{error}");
    }
}
