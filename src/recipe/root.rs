//! The root file system of a sandbox: a tool set's packages, and the little that maintainer scripts would add.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::lock::SetKind;
use crate::packages::Work;
use crate::rootfs::alternatives::alternatives;
use crate::rootfs::merge::{self, AskedIn, Filter};
use crate::sandbox::ID;
use crate::spec::nearest;
use crate::store::StepKey;
use crate::tools;
use crate::tree::{Entry, Tree, TreePath};

/// Version of this step's code.
const VERSION: u32 = 1;
/// Who made what no package brought.
const OWNER: &str = "kiln:recipe";
/// Folders that the sandbox mounts something on.
const FOLDERS: [&str; 5] = ["build", "dev", "inputs", "proc", "tmp"];

/// Files that programs look for: who one is, and how names are found. The last two are covered where there is a network.
fn files() -> [(&'static str, String); 5] {
    [
        (
            "etc/passwd",
            format!(
                "root:x:0:0:root:/:/bin/sh\nbuild:x:{ID}:{ID}:build:/build:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
            ),
        ),
        ("etc/group", format!("root:x:0:\nbuild:x:{ID}:\nnogroup:x:65534:\n")),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n".to_owned()),
        ("etc/resolv.conf", String::new()),
    ]
}

/// The root file system of the tool set `name`, as a step.
pub(super) fn key(work: &Work<'_>, name: &str, arch: Arch) -> Result<StepKey> {
    let set = work.project.tools.set.get(name).ok_or_else(|| unknown(work, name))?;
    let added = serde_json::to_vec(&(&set.alternatives, files(), FOLDERS))?;
    Ok(StepKey::new("tool-root", &format!("{name}-{arch}"), VERSION)
        .input("packages", tools::packages(work.locked, name, arch)?)
        .input("added", Digest::of(&added)))
}

/// The failure for a set that images/tools.toml does not have.
pub(super) fn unknown(work: &Work<'_>, name: &str) -> Failure {
    let known = || work.project.tools.set.keys().map(String::as_str);
    let mut failure = Failure::new(Kind::Input, format!("images/tools.toml has no set `{name}`"));
    if let Some(near) = nearest(name, known()) {
        failure = failure.hint(format!("did you mean `{near}`?"));
    }
    failure.hint(format!("sets: {}", known().collect::<Vec<_>>().join(", ")))
}

/// The folder of [`key`]'s step, made if it is not in the store, and its path there.
pub(super) fn folder(work: &Work<'_>, name: &str, arch: Arch) -> Result<(PathBuf, String)> {
    let outcome = work.store.step(
        &key(work, name, arch)?,
        |miss| work.ui.status("Preparing", format!("root of tools `{name}`: {miss}")),
        |staging| {
            let packages = work.set(SetKind::Tool, name, arch)?;
            let drop: Vec<String> = tools::DROP.iter().map(|d| (*d).to_owned()).collect();
            let mut tree = merge::merge(packages.iter().map(|p| &p.tree), &Filter::new(&drop, &[])?)
                .map_err(|error| error.asked_in(AskedIn::Set(name)))?;
            let set = work.project.tools.set.get(name).ok_or_else(|| unknown(work, name))?;
            alternatives(&mut tree, &set.alternatives)
                .with_context(|| format!("images/tools.toml, set `{name}`"))?;
            furnish(&mut tree)?;
            tools::lay_out(&tree, &staging.file("root"))?;
            Ok(vec![])
        },
    )?;
    Ok((outcome.dir.file("root"), work.store.relative(outcome.dir.path())))
}

fn furnish(tree: &mut Tree) -> Result<()> {
    for (path, text) in files() {
        tree.remove(path);
        tree.insert(TreePath::new(path)?, Entry::file(0o644, text, OWNER))?;
    }
    for path in FOLDERS {
        tree.remove(path);
        tree.insert(TreePath::new(path)?, Entry::dir(0o755, OWNER))?;
    }
    Ok(())
}
