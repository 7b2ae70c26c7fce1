//! Stage: the kernel package to what an image boots and loads.
//!
//! Debian ships modules as `.ko.xz`. They are decompressed here, once per kernel and filter: the image's own compression then
//! works across the whole module, modules load faster, and nothing at run time needs liblzma. The result is a step of the store
//! like an unpacked package: a pack with the modules that the profile keeps and the indexes that depmod would write.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::rootfs::depmod::{self, Loadable, Modules};
use crate::rootfs::merge::globs;
use crate::spec::ModuleFilter;
use crate::store::{Miss, StepKey, Store};
use crate::tree::{Content, Entry, Kind as NodeKind, Tree, TreePath};
use crate::unpack::{Pack, PackWriter, Unpacked};

/// Version of this step's code.
const VERSION: u32 = 1;
/// Largest module after decompression; the largest of Debian 13's metal kernel has 13 MB.
const MAX_MODULE: u64 = 256 << 20;

/// A kernel, ready to be put in images.
#[derive(Debug)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// The boot file as Debian ships it.
    pub vmlinuz: Content,
    /// The .config it was built with.
    pub config: Content,
    /// The kept modules, decompressed, and their indexes: everything below /usr/lib/modules/RELEASE.
    pub tree: Tree,
    /// What is known of the kept modules.
    pub modules: Modules,
    /// Stands for all of it in step keys.
    pub digest: Digest,
    /// Its place in the store, relative.
    pub path: String,
    /// Why it was prepared now; `None` if it was there.
    pub miss: Option<Miss>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    tree: Tree,
    modules: Modules,
}

/// The package among `packages` that holds a kernel.
pub fn find(packages: &[Unpacked]) -> Result<(&Unpacked, String)> {
    let mut found = packages.iter().filter_map(|package| {
        let boot =
            package.tree.children("boot").find_map(|(path, _)| path.name().strip_prefix("vmlinuz-"))?;
        Some((package, boot.to_owned()))
    });
    let first = found.next().ok_or_else(|| {
        Failure::new(Kind::Input, "no package of the profile holds a kernel (/boot/vmlinuz-*)")
    })?;
    if let Some((second, _)) = found.next() {
        let text = format!("two packages hold a kernel: {} and {}", first.0.info.name, second.info.name);
        return Err(Failure::new(Kind::Input, text)
            .hint("take one of them out of `packages.install`")
            .into());
    }
    Ok(first)
}

/// Prepares the kernel of `package`, of version `release`, with the modules that `filter` keeps.
pub fn prepare(
    store: &Store,
    package: &Unpacked,
    release: &str,
    filter: &ModuleFilter,
    threads: usize,
) -> Result<Kernel> {
    let key = StepKey::new("kernel", &package.info.name, VERSION)
        .input("package", package.digest)
        .input("modules.keep", filter.keep.join(" "))
        .input("modules.drop", filter.drop.join(" "));
    let outcome = store
        .step(
            &key,
            |miss| tracing::debug!(release, %miss, "kernel"),
            |staging| {
                let mut tree = decompress(package, release, &staging.file("data"), threads)?;
                let all = depmod::depmod(&mut tree, release)?;
                let kept = select(&all, filter)?;
                let gone: BTreeSet<String> = all
                    .by_name
                    .iter()
                    .filter(|(name, _)| !kept.contains(*name))
                    .map(|(_, m)| m.path.clone())
                    .collect();
                let modules = if gone.is_empty() {
                    all
                } else {
                    let base = format!("usr/lib/modules/{release}/");
                    tree.retain(|path, _| path.strip_prefix(&base).is_none_or(|rest| !gone.contains(rest)));
                    depmod::depmod(&mut tree, release)?
                };
                prune(&mut tree);
                fs::write(staging.file("kernel.json"), serde_json::to_vec(&Stored { tree, modules })?)?;
                Ok(vec![package.path.clone()])
            },
        )
        .with_context(|| format!("preparing the kernel {release}"))?;
    let Stored { mut tree, modules } = serde_json::from_slice(&fs::read(outcome.dir.file("kernel.json"))?)?;
    Pack::open(&outcome.dir.file("data"))?.attach(&mut tree);
    let file = |name: String| {
        let missing = || Failure::new(Kind::Input, format!("{} has no /{name}", package.info.name));
        Ok::<_, anyhow::Error>(package.tree.get(&name).and_then(Entry::content).ok_or_else(missing)?.clone())
    };
    Ok(Kernel {
        release: release.to_owned(),
        vmlinuz: file(format!("boot/vmlinuz-{release}"))?,
        config: file(format!("boot/config-{release}"))?,
        tree,
        modules,
        digest: outcome.dir.digest("kernel.json")?,
        path: store.relative(outcome.dir.path()),
        miss: outcome.miss,
    })
}

/// Names of the modules that stay.
fn select(all: &Modules, filter: &ModuleFilter) -> Result<BTreeSet<String>> {
    let drop = globs(&filter.drop)?;
    let wanted: Vec<&str> = if filter.keep.is_empty() {
        all.by_name.keys().map(String::as_str).collect()
    } else {
        let closed = depmod::closure::closure(all, filter.keep.iter().map(String::as_str))
            .context("kernel.modules.keep")?;
        all.by_name.keys().map(String::as_str).filter(|name| closed.contains(*name)).collect()
    };
    let dropped = |module: &Loadable, name: &str| {
        drop.is_match(&module.path) || filter.drop.iter().any(|d| depmod::name_of(d) == name)
    };
    let left = wanted.into_iter().filter(|name| !dropped(&all.by_name[*name], name));
    // What a module that stays needs comes back, whatever `drop` says.
    let mut kept = BTreeSet::new();
    for name in left {
        kept.extend(all.by_name[name].needs.iter().cloned());
        kept.insert(name.to_owned());
    }
    Ok(kept)
}

/// Folders without modules go.
fn prune(tree: &mut Tree) {
    let held: BTreeSet<String> = tree
        .iter()
        .filter(|(_, e)| !e.is_dir())
        .flat_map(|(p, _)| p.ancestors().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    tree.retain(|path, entry| !entry.is_dir() || held.contains(path.as_str()));
}

/// Everything below /usr/lib/modules/RELEASE, modules decompressed into a new pack.
fn decompress(package: &Unpacked, release: &str, data: &std::path::Path, threads: usize) -> Result<Tree> {
    let base = format!("usr/lib/modules/{release}");
    let entries: Vec<(&TreePath, &Entry)> = package.tree.below(&base).filter(|(_, e)| !e.is_dir()).collect();
    // Modules are decompressed by several threads and written in their order by this one, a batch at a time, so that memory
    // stays bounded and the pack is the same whatever the number of threads.
    const BATCH: usize = 64;
    let mut writer = PackWriter::create(data)?;
    let mut tree = Tree::new();
    for batch in entries.chunks(BATCH) {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<Option<Decompressed>>> = Mutex::new((0..batch.len()).map(|_| None).collect());
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some((path, entry)) = batch.get(index) else { break };
                        let bytes = module(path, entry);
                        done.lock().expect("no holder panics")[index] = Some(bytes);
                    }
                });
            }
        });
        let done = done.into_inner().expect("no holder panics");
        for ((path, entry), bytes) in batch.iter().zip(done) {
            crate::sys::check_interrupt()?;
            let mut entry = (*entry).clone();
            let bytes = bytes.expect("every index was taken")?;
            let path = match bytes {
                Some(bytes) => {
                    entry.kind = NodeKind::File(writer.add(bytes.as_slice(), bytes.len() as u64)?);
                    TreePath::new(path.strip_suffix(".xz").unwrap_or(path))?
                }
                None => (*path).clone(),
            };
            tree.insert(path, entry)?;
        }
    }
    writer.finish()?.attach(&mut tree);
    Ok(tree)
}

/// What [`module`] gives for one entry.
type Decompressed = Result<Option<Vec<u8>>>;

/// The bytes of a file, decompressed if its name says that it is compressed; `None` for a link.
fn module(path: &TreePath, entry: &Entry) -> Decompressed {
    let Some(content) = entry.content() else { return Ok(None) };
    if !path.ends_with(".ko.xz") {
        return Ok(Some(content.read()?));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(content.size()).unwrap_or(0) * 4);
    let packed = content.read()?;
    let mut reader = liblzma::bufread::XzDecoder::new(packed.as_slice()).take(MAX_MODULE + 1);
    reader.read_to_end(&mut bytes).with_context(|| format!("decompressing /{path}"))?;
    anyhow::ensure!(bytes.len() as u64 <= MAX_MODULE, "/{path} has more than {MAX_MODULE} bytes");
    Ok(Some(bytes))
}

impl Kernel {
    /// The files of the modules `names` and of all that those need, for the initrd. Names that are built in, or that this kernel
    /// does not have, are passed over: one list serves all flavours and architectures.
    pub fn files(&self, names: &[String]) -> Result<Tree> {
        let known = names
            .iter()
            .map(String::as_str)
            .filter(|n| self.modules.by_name.contains_key(&depmod::name_of(n)));
        let wanted = depmod::closure::closure(&self.modules, known)?;
        let base = format!("usr/lib/modules/{}", self.release);
        let mut tree = Tree::new();
        for name in &wanted {
            let Some(module) = self.modules.by_name.get(name) else { continue };
            let path = TreePath::new(&format!("{base}/{}", module.path))?;
            let entry =
                self.tree.get(&path).with_context(|| format!("/{path} is not in the kernel's tree"))?;
            tree.insert(path, entry.clone())?;
        }
        for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            let path = TreePath::new(&format!("{base}/{name}"))?;
            if let Some(entry) = self.tree.get(&path) {
                tree.insert(path, entry.clone())?;
            }
        }
        depmod::depmod(&mut tree, &self.release)?;
        Ok(tree)
    }
}
