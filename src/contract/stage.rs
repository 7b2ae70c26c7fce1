//! Stage: the prepared kernel of an image against what the profile's features need.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use super::check::{Dropped, LINUX, ModuleSet, Offer, Table, Verdict, check};
use super::config::{Config, Value, Version};
use super::show::problem;
use crate::arch::Arch;
use crate::error::{Failure, Kind};
use crate::kernel::Kernel;
use crate::lock::SetKind;
use crate::packages::Work;
use crate::rootfs::depmod::{closure, name_of};
use crate::rootfs::merge::globs;
use crate::spec::{Flavour, Profile};
use crate::unpack::Unpacked;

/// The tool set with the .config of each of Debian's kernels, which is asked only when something is missing.
const CONFIGS: &str = "kernel-configs";

/// A kernel's .config, parsed, and its version. `name` is what people know it as.
pub fn config(name: &str, bytes: &[u8], release: Option<&str>) -> Result<(Config, Version)> {
    let wrong = |why: String| Failure::new(Kind::Input, format!("{name} is no .config of a kernel: {why}"));
    let config = Config::parse(&String::from_utf8_lossy(bytes)).map_err(|e| wrong(e.to_string()))?;
    let version = release.and_then(|text| text.parse().ok()).or(config.version());
    let heading = "`# Linux/ARCH VERSION Kernel Configuration`";
    Ok((config, version.ok_or_else(|| wrong(format!("it has no heading {heading} that names the version")))?))
}

/// Holds the features of `profile` against `kernel`, which was made of `package`.
pub fn table(
    work: &Work<'_>,
    profile: &Profile,
    arch: Arch,
    package: &Unpacked,
    kernel: &Kernel,
) -> Result<Table> {
    let name = format!("/boot/config-{} of {}", kernel.release, package.info.name);
    let (config, version) = config(&name, &kernel.config.read()?, Some(&kernel.release))?;
    let modules = modules(profile, package, kernel)?;
    let offer = Offer { config: &config, version, arch, modules: Some(&modules) };
    let mut table = check(&work.project.contracts, &profile.layer.kernel.features, offer)?;
    if table.rows.iter().any(|row| row.verdict == Verdict::Missing) {
        other_flavour(work, profile, arch, package, &mut table);
    }
    Ok(table)
}

/// The modules that the image has, and why it does not have the others.
pub(super) fn modules(profile: &Profile, package: &Unpacked, kernel: &Kernel) -> Result<ModuleSet> {
    let layer = &profile.layer.kernel;
    let known = |name: &&str| kernel.modules.by_name.contains_key(&name_of(name));
    let early = layer.initrd.modules.iter().map(String::as_str).filter(known);
    let mut set = ModuleSet {
        root: kernel.modules.by_name.keys().cloned().collect(),
        initrd: closure::closure(&kernel.modules, early).context("kernel.initrd.modules")?,
        builtin: kernel.modules.builtin.keys().cloned().collect(),
        ..ModuleSet::default()
    };
    let one = |drop: &String| Ok::<_, anyhow::Error>((drop.clone(), globs(std::slice::from_ref(drop))?));
    let drops = layer.modules.drop.iter().map(one).collect::<Result<Vec<_>>>()?;
    let base = format!("usr/lib/modules/{}", kernel.release);
    for (path, _) in package.tree.below(&base) {
        let Some(path) = path.strip_prefix(&base).and_then(|rest| rest.strip_prefix('/')) else { continue };
        let name = name_of(path);
        if !path.contains(".ko") || set.root.contains(&name) {
            continue;
        }
        let plain = path.strip_suffix(".xz").unwrap_or(path);
        let by = drops.iter().find(|(drop, glob)| name_of(drop) == name || glob.is_match(plain));
        let by = by.map(|(drop, _)| drop.clone());
        set.dropped.insert(name, Dropped { path: plain.to_owned(), by });
    }
    Ok(set)
}

/// Where Debian's other kernel has what this one lacks, the remedy says so. What cannot be had is no error: the table is right
/// without it.
fn other_flavour(work: &Work<'_>, profile: &Profile, arch: Arch, package: &Unpacked, table: &mut Table) {
    let (name, config) = match profile.layer.kernel.flavour {
        Some(Flavour::Cloud) => ("metal", format!("config.{arch}_none_{arch}.xz")),
        Some(Flavour::Metal) => ("cloud", format!("config.{arch}_none_cloud-{arch}.xz")),
        None => return,
    };
    let Some(other) = debian_config(work, arch, &package.info.version, &config) else { return };
    for row in table.rows.iter_mut().filter(|r| r.verdict == Verdict::Missing && r.symbol != LINUX) {
        let accepted: BTreeSet<&str> = row.wanted.split(" or ").collect();
        let value = other.get(&row.symbol);
        let met = value.map_or(accepted.contains("n"), |v| accepted.contains(v.to_string().as_str()));
        if met {
            let value = value.map_or("n".to_owned(), Value::to_string);
            row.remedy = Some(format!("`kernel.flavour = \"{name}\"`: there it is {value}"));
        }
    }
}

/// The .config `file` out of Debian's linux-config package, if that is locked in the version of the kernel.
fn debian_config(work: &Work<'_>, arch: Arch, version: &str, file: &str) -> Option<Config> {
    let set = &work.locked.packages(SetKind::Tool, CONFIGS, arch).ok()?;
    set.iter().find(|package| package.version == version)?;
    let packages = work.set(SetKind::Tool, CONFIGS, arch).ok()?;
    let found = packages.iter().find_map(|package| {
        package
            .tree
            .iter()
            .find(|(path, _)| path.name() == file)
            .and_then(|(_, entry)| entry.content().cloned())
    })?;
    let mut text = String::new();
    let packed = found.read().ok()?;
    std::io::Read::read_to_string(&mut liblzma::bufread::XzDecoder::new(packed.as_slice()), &mut text)
        .ok()?;
    Config::parse(&text).ok()
}

/// Refuses a kernel that lacks something: one error with all of it.
pub fn demand(profile: &Profile, arch: Arch, kernel: &Kernel, table: &Table) -> Result<(), Failure> {
    if table.met {
        return Ok(());
    }
    let mut text = format!(
        "the kernel {} does not have what the features of {} need ({} findings)",
        kernel.release,
        profile.name,
        table.unmet().count()
    );
    for line in table.unmet().flat_map(problem) {
        text.push('\n');
        text.push_str(&line);
    }
    Err(Failure::new(Kind::Input, text)
        .hint(format!("`kiln kernel check --profile {} --arch {arch}` prints the whole table", profile.name))
        .hint("a feature that the node does without goes out of `kernel.features`"))
}
