//! Stage 3, compose: packages to one finished root.
//!
//! No program of the image is run. What maintainer scripts would have done is done by named steps over the metadata tree, in the
//! order of [`compose`], each in a file of its own with its tests. What they made is owned by `kiln:STEP`.

pub mod accounts;
pub mod alternatives;
pub mod certs;
pub mod check;
mod cilium;
pub mod depmod;
pub mod elf;
pub mod files;
pub mod initrd;
pub mod k3s;
pub mod ldcache;
pub mod merge;
pub mod pam;
pub mod state;
pub mod step;
pub mod sysusers;
pub mod units;

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::error::{Failure, Kind};
use crate::kernel::Kernel;
use crate::spec::{Profile, Size};
use crate::tree::Tree;
use crate::unpack::Unpacked;

/// Raised when [`compose`] makes another root of the same inputs.
pub const VERSION: u32 = 3;

/// The kiln that composes it, which the root says (`KILN_VERSION` of its os-release).
pub const KILN: &str = env!("CARGO_PKG_VERSION");

/// A finished root.
#[derive(Debug)]
pub struct Root {
    /// Every file of it.
    pub tree: Tree,
    /// The text of its os-release.
    pub os_release: String,
    /// What the checks found; fatal findings are an error of [`compose`], so these are notes.
    pub notes: Vec<check::Finding>,
}

/// What is composed.
#[derive(Debug, Clone, Copy)]
pub struct Ingredients<'a> {
    /// The role with its layers.
    pub profile: &'a Profile,
    /// For which machine.
    pub arch: Arch,
    /// The packages, sorted by name.
    pub packages: &'a [Unpacked],
    /// The kernel, prepared.
    pub kernel: &'a Kernel,
    /// Container images that K3s is told of, by name.
    pub references: &'a k3s::References,
    /// Version of the image, for os-release.
    pub version: &'a str,
    /// Time of every file, seconds since 1970.
    pub epoch: i64,
}

/// Composes the root. The order matters: a step sees what those above it made.
pub fn compose(from: &Ingredients<'_>) -> Result<Root> {
    let layer = &from.profile.layer;
    let mut tree = lay(from)?;
    files::files(&mut tree, from.profile)?;
    files::sysctl(&mut tree, layer)?;
    k3s::k3s(&mut tree, from.profile, from.references)?;
    let accounts = accounts::accounts(&mut tree, &layer.accounts).context("making the accounts")?;
    tracing::debug!(users = accounts.users.len(), "accounts");
    pam::templates(&mut tree)?;
    pam::pam(&mut tree).context("making PAM's common files")?;
    certs::certs(&mut tree)?;
    alternatives::alternatives(&mut tree, &layer.alternative)?;
    let os_release = files::os_release(&mut tree, &from.profile.name, from.version)?;
    state::state(&mut tree, slot(from.profile)?, var(from.profile))?;
    units::apply(&mut tree, &layer.units).context("enabling units")?;
    state::factory(&mut tree)?;
    let mut facts = elf::Facts::new();
    for package in from.packages {
        facts.extend(package.facts.iter().map(|(digest, elf)| (*digest, elf.clone())));
    }
    elf::scan(&tree, &mut facts)?;
    let loader = loader(from.arch);
    ldcache::ldcache(&mut tree, &loader, &facts)?;
    for (_, entry) in tree.iter_mut() {
        entry.meta.mtime = from.epoch;
    }
    let findings = check::check(&tree, &facts, &loader, &layer.checks.allow)?;
    let (fatal, notes): (Vec<_>, Vec<_>) = findings.into_iter().partition(|f| f.fatal);
    if fatal.is_empty() { Ok(Root { tree, os_release, notes }) } else { Err(refuse(&fatal).into()) }
}

/// All packages in one tree, with the prepared modules in place of the packaged ones and only the firmware that is asked for.
fn lay(from: &Ingredients<'_>) -> Result<Tree> {
    let layer = &from.profile.layer;
    let filter = merge::Filter::new(&layer.drop.paths, &layer.drop.keep)?;
    let mut tree = merge::merge(from.packages.iter().map(|p| &p.tree), &filter)
        .map_err(|error| error.asked_in(merge::AskedIn::Profile(&from.profile.file)))?;
    let release = &from.kernel.release;
    // The kernel boots from the UKI; in the root its file would only be a second copy. Its configuration stays.
    tree.remove(&format!("boot/vmlinuz-{release}"));
    tree.remove(&format!("boot/System.map-{release}"));
    tree.remove(&format!("usr/lib/modules/{release}"));
    for (path, entry) in from.kernel.tree.iter() {
        tree.insert(path.clone(), entry.clone())?;
    }
    let firmware = merge::globs(&layer.firmware.keep)?;
    tree.retain(|path, entry| match path.strip_prefix("usr/lib/firmware/") {
        Some(rest) => entry.is_dir() || firmware.is_match(rest),
        None => true,
    });
    let privileges = merge::globs(&layer.drop.privileges)?;
    for (path, entry) in tree.iter_mut().filter(|(path, _)| privileges.is_match(format!("/{path}"))) {
        tracing::debug!(%path, mode = entry.meta.mode, "privileges dropped");
        entry.meta.mode &= 0o1777;
        entry.meta.xattrs.remove("security.capability");
    }
    Ok(tree)
}

/// What the dynamic loader of `arch` looks for.
pub fn loader(arch: Arch) -> ldcache::Loader {
    match arch {
        Arch::Amd64 => ldcache::AMD64,
        Arch::Arm64 => ldcache::ARM64,
    }
}

/// Size of a root slot; some layer must say.
pub fn slot(profile: &Profile) -> Result<Size> {
    profile.layer.disk.slot.ok_or_else(|| {
        Failure::new(Kind::Input, format!("profile {} has no size for its root slots", profile.name))
            .hint("write `disk.slot = \"2GiB\"` in the profile or a layer")
            .into()
    })
}

/// Least size of /var.
pub fn var(profile: &Profile) -> Size {
    profile.layer.disk.var.unwrap_or(Size::mib(512))
}

/// One error out of all fatal findings: a person mends several in one go.
fn refuse(findings: &[check::Finding]) -> Failure {
    const SHOWN: usize = 40;
    let mut text = format!("the root does not pass its checks ({} findings)", findings.len());
    for finding in findings.iter().take(SHOWN) {
        let owner = if finding.owner.is_empty() { String::new() } else { format!(" [{}]", finding.owner) };
        text.push_str(&format!("\n  {}: {}{owner}: {}", finding.check, finding.path, finding.text));
        if !finding.remedy.is_empty() {
            text.push_str(&format!("\n    -> {}", finding.remedy));
        }
    }
    if findings.len() > SHOWN {
        text.push_str(&format!("\n  … and {} more", findings.len() - SHOWN));
    }
    Failure::new(Kind::Input, text)
        .hint("what is meant to be so is let pass in `[checks.allow]` of the profile or a layer")
}
