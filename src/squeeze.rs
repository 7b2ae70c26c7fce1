//! Stage: the files of packages to compressed clusters, once per package.
//!
//! What of a package is in the root depends on the profile's filters; the step is keyed by the contents that are, so a changed
//! profile compresses again only what it changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use fs_err as fs;

use crate::digest::{Digest, Hasher};
use crate::image::erofs::{self, ErofsError, ZIndex, ZPack};
use crate::kernel::Kernel;
use crate::packages::Work;
use crate::store::StepKey;
use crate::sys;
use crate::tree::{Content, Tree};
use crate::unpack::Unpacked;

/// Version of this step's code, beside that of the writer.
const VERSION: u32 = 1;

/// The compressed packs of all packages in `tree`, and their places in the store. Files that steps made are small and left to the
/// writer.
pub fn packs(
    work: &Work<'_>,
    tree: &Tree,
    packages: &[Unpacked],
    kernel: &Kernel,
    level: u8,
) -> Result<(Vec<ZPack>, Vec<String>)> {
    let from_packages: BTreeSet<&str> = packages.iter().map(|p| p.info.name.as_str()).collect();
    let kernel_files: BTreeSet<Digest> = contents(&kernel.tree).map(|(_, c)| c.digest()).collect();
    let mut groups: BTreeMap<&str, Vec<&Content>> = BTreeMap::new();
    for (owner, content) in contents(tree) {
        if content.size() <= erofs::SMALL {
            continue;
        }
        let group = if kernel_files.contains(&content.digest()) { "kernel-modules" } else { owner };
        if group == "kernel-modules" || from_packages.contains(group) {
            groups.entry(group).or_default().push(content);
        }
    }
    let mut groups: Vec<(&str, Vec<&Content>)> = groups.into_iter().collect();
    // The largest first, so that no thread begins it when the others are done.
    groups
        .sort_by_key(|(name, files)| (std::cmp::Reverse(files.iter().map(|c| c.size()).sum::<u64>()), *name));
    let bar = work.ui.count_bar("Compressing", groups.len() as u64);
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<usize, Result<(ZPack, String)>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..work.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((name, files)) = groups.get(index) else { break };
                    bar.message((*name).to_owned());
                    let pack = one(work, name, files, level);
                    bar.inc(1);
                    if pack.is_err() {
                        next.store(groups.len(), Ordering::Relaxed);
                    }
                    done.lock().expect("no holder panics").insert(index, pack);
                }
            });
        }
    });
    drop(bar);
    sys::check_interrupt()?;
    done.into_inner()
        .expect("no holder panics")
        .into_values()
        .collect::<Result<Vec<_>>>()
        .map(|all| all.into_iter().unzip())
}

fn contents(tree: &Tree) -> impl Iterator<Item = (&str, &Content)> {
    tree.iter().filter_map(|(_, entry)| Some((entry.owner.as_ref(), entry.content()?)))
}

fn one(work: &Work<'_>, name: &str, files: &[&Content], level: u8) -> Result<(ZPack, String)> {
    sys::check_interrupt()?;
    let mut all = Hasher::new();
    for content in files {
        all.update(content.digest().as_bytes());
    }
    let key = StepKey::new("compress", name, VERSION)
        .input("files", all.finish())
        .input("level", level)
        .input("writer", erofs::ZPACK_VERSION);
    match made(work, name, files, &key, level) {
        // A pack that does not fit its index was damaged since it was made.
        Err(error)
            if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(ErofsError::Pack { .. }))) =>
        {
            work.ui.warn(format!("{error:#}"));
            work.store.forget_step(&key)?;
            made(work, name, files, &key, level)
        }
        other => other,
    }
}

fn made(
    work: &Work<'_>,
    name: &str,
    files: &[&Content],
    key: &StepKey,
    level: u8,
) -> Result<(ZPack, String)> {
    let outcome = work.store.step(
        key,
        |miss| work.ui.detail("Compressing", format!("{name}: {miss}")),
        |staging| {
            let mut out =
                std::io::BufWriter::with_capacity(1 << 20, fs::File::create(staging.file("clusters"))?);
            let index = erofs::compress_tree(files.iter().copied(), level, 1, &mut out)?;
            std::io::Write::flush(&mut out)?;
            fs::write(staging.file("index.json"), serde_json::to_vec(&index)?)?;
            Ok(vec![])
        },
    )?;
    let text = fs::read(outcome.dir.file("index.json"))?;
    let index: ZIndex = serde_json::from_slice(&text).map_err(|e| ErofsError::Pack {
        name: outcome.dir.path().display().to_string(),
        reason: format!("index.json: {e}"),
    })?;
    Ok((ZPack::open(&outcome.dir.file("clusters"), index)?, work.store.relative(outcome.dir.path())))
}
