//! Programs that kiln runs: packages of a tool set, laid out in one folder of the store.
//!
//! Nothing of the host is used but its kernel: each program is started through the loader of its own folder (see
//! [`crate::exec`]). Owners and set-id bits of packages are left out; the folder belongs to whoever runs kiln.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;

use crate::arch::Arch;
use crate::digest::{Digest, Hasher};
use crate::error::{Failure, Kind};
use crate::lock::{Locked, SetKind};
use crate::packages::Work;
use crate::rootfs::merge::{self, AskedIn, Filter};
use crate::store::{Root, StepKey, Store};
use crate::sys;
use crate::tree::{Kind as NodeKind, Tree};

/// Version of this step's code.
const VERSION: u32 = 1;

/// What no program needs to run.
pub(crate) const DROP: [&str; 6] = [
    "/usr/share/doc/**",
    "/usr/share/man/**",
    "/usr/share/locale/**",
    "/usr/share/info/**",
    "/usr/share/lintian/**",
    "/var/**",
];

/// The folder with the tool set `name` for this machine, made if it is not in the store.
pub fn folder(work: &Work<'_>, name: &str) -> Result<PathBuf> {
    let arch = Arch::host().ok_or_else(|| {
        Failure::new(Kind::Tool, format!("kiln has no tools for {} machines", std::env::consts::ARCH))
    })?;
    let key = key(work.locked, name, arch)?;
    let outcome = work.store.step(
        &key,
        |miss| work.ui.status("Preparing", format!("tools `{name}`: {miss}")),
        |staging| {
            let packages = work.set(SetKind::Tool, name, arch)?;
            let drop: Vec<String> = DROP.iter().map(|d| (*d).to_owned()).collect();
            let tree = merge::merge(packages.iter().map(|p| &p.tree), &Filter::new(&drop, &[])?)
                .map_err(|error| error.asked_in(AskedIn::Set(name)))?;
            lay_out(&tree, &staging.file("root"))?;
            Ok(vec![])
        },
    )?;
    let path = work.store.relative(outcome.dir.path());
    work.store.set_root(&Root {
        project: work.project.dir.clone(),
        what: format!("tools {name}"),
        needs: [path].into(),
    })?;
    Ok(outcome.dir.file("root"))
}

/// The folder with the tool set `name` for this machine, if it is in the store already.
pub fn find(locked: &Locked, store: &Store, name: &str) -> Option<PathBuf> {
    let key = key(locked, name, Arch::host()?).ok()?;
    Some(store.find_step(&key).ok()?.file("root"))
}

fn key(locked: &Locked, name: &str, arch: Arch) -> Result<StepKey> {
    let packages = packages(locked, name, arch)?;
    Ok(StepKey::new("tool", &format!("{name}-{arch}"), VERSION).input("packages", packages))
}

/// One digest for all packages of a set.
pub(crate) fn packages(locked: &Locked, name: &str, arch: Arch) -> Result<Digest> {
    let mut all = Hasher::new();
    for package in locked.packages(SetKind::Tool, name, arch)? {
        all.update(package.sha256.as_bytes());
    }
    Ok(all.finish())
}

/// Writes `tree` below `to`. Devices and pipes are left out.
pub(crate) fn lay_out(tree: &Tree, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for (path, entry) in tree.iter() {
        sys::check_interrupt()?;
        // Paths of a tree cannot leave it, and a path whose parent is a link cannot be in it: so nothing is written elsewhere.
        let at = to.join(path.as_str());
        match &entry.kind {
            NodeKind::Dir => fs::create_dir(&at)?,
            NodeKind::Symlink { target } => fs::os::unix::fs::symlink(target, &at)?,
            NodeKind::File(content) => {
                fs::write(&at, content.read().with_context(|| format!("reading /{path}"))?)?;
                let mode = if entry.meta.mode & 0o111 == 0 { 0o644 } else { 0o755 };
                fs::set_permissions(&at, std::fs::Permissions::from_mode(mode))?;
            }
            NodeKind::Char { .. } | NodeKind::Block { .. } | NodeKind::Fifo => {}
        }
    }
    Ok(())
}
