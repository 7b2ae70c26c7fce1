//! Stage: packages to trees.
//!
//! Each .deb becomes a step of the store: a *pack* (`data`, the contents of its files one behind the other) and `package.json` (the
//! metadata tree with offsets into the pack, what the control file says, and facts about programs that checks need). Unpacked
//! once ever, whatever profile asks. The .deb's digest is checked again while it is read, so a damaged object is found here.

mod pack;

pub use pack::{Pack, PackWriter};

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::debian::deb::{self, Limits, Node, Sink};
use crate::digest::{Digest, Hashing};
use crate::error::{Failure, Kind};
use crate::inventory::Made;
use crate::lock::LockedPackage;
use crate::rootfs::elf::{self, Facts};
use crate::store::{Miss, Outcome, StepKey, Store};
use crate::tree::{Entry, Kind as NodeKind, Meta, Tree, TreePath};

/// Version of this step's code.
pub(crate) const VERSION: u32 = 2;

/// What the control file of a package says, as far as later stages ask.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture or `all`.
    pub arch: String,
    /// The source package, with its version in parentheses if that differs.
    pub source: Option<String>,
    /// First line of the description.
    pub summary: Option<String>,
    /// Depends and Pre-Depends, joined by commas.
    pub depends: String,
    /// Provides.
    pub provides: String,
    /// `Essential: yes` or `Priority: required`: part of every Debian system without anybody asking.
    pub base: bool,
    /// Maintainer scripts that it has and that are never run.
    pub scripts: Vec<String>,
}

/// What kind of thing a package is. Only a Debian package has a version, relations and a source package in Debian's sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackageKind {
    /// A .deb of the lock.
    Debian,
    /// Something that a recipe or upstream built.
    Made(Made),
    /// The archives of the container images that nodes bring.
    Containers,
}

/// A package as the later stages see it.
#[derive(Debug)]
pub struct Unpacked {
    /// What it is.
    pub kind: PackageKind,
    /// What its control file says, or what stands for one.
    pub info: Info,
    /// Its files.
    pub tree: Tree,
    /// Facts about its programs and libraries.
    pub facts: Facts,
    /// Digest of `package.json`: stands for the whole package in step keys.
    pub digest: Digest,
    /// Its place in the store, relative.
    pub path: String,
    /// Why it was unpacked now; `None` if it was there.
    pub miss: Option<Miss>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    info: Info,
    tree: Tree,
    facts: Facts,
}

/// The .deb in the store does not have its digest any more.
#[derive(Debug, thiserror::Error)]
#[error("the object of {0} in the store is damaged")]
pub struct DamagedObject(pub String);

/// Unpacks `package`, whose .deb must be in the store, with `threads` threads for large payloads.
pub fn unpack(store: &Store, package: &LockedPackage, threads: u32) -> Result<Unpacked> {
    let key = StepKey::new("unpack", &package.name, VERSION)
        .input("deb", package.sha256)
        .input("arch", &package.arch);
    let outcome = store
        .step(
            &key,
            |miss| tracing::debug!(package = package.name, %miss, "unpack"),
            |staging| {
                let path = store
                    .object(package.sha256, package.size)
                    .with_context(|| format!("{} is not in the store", package.title()))?;
                let file = fs::File::open(path)?;
                let mut reader = Hashing::new(io::BufReader::with_capacity(256 * 1024, file));
                let mut unpacker =
                    Unpacker { pack: PackWriter::create(&staging.file("data"))?, tree: Tree::new() };
                let limits = Limits { threads, ..Limits::default() };
                let read = deb::read(&mut reader, &limits, &mut unpacker);
                // Read to the end in any case: if the bytes are not those of the lock, that is the error, not its consequence.
                io::copy(&mut reader, &mut io::sink())?;
                let (_, digest, _) = reader.finish();
                if digest != package.sha256 {
                    return Err(DamagedObject(package.title()).into());
                }
                let control = read.map_err(|e| {
                    Failure::new(Kind::Input, format!("{} cannot be unpacked", package.title())).because(e)
                })?;
                if (control.package.as_str(), control.architecture.as_str())
                    != (package.name.as_str(), package.arch.as_str())
                {
                    let text =
                        format!("{} holds {} {}", package.title(), control.package, control.architecture);
                    return Err(Failure::new(Kind::Input, text).into());
                }
                let pack = unpacker.pack.finish()?;
                let mut tree = unpacker.tree;
                pack.attach(&mut tree);
                let mut facts = Facts::new();
                elf::scan(&tree, &mut facts)?;
                let get = |name: &str| control.get(name).map(str::to_owned);
                let depends =
                    [get("Pre-Depends"), get("Depends")].into_iter().flatten().collect::<Vec<_>>().join(", ");
                let info = Info {
                    name: control.package.clone(),
                    version: control.version.to_string(),
                    arch: control.architecture.clone(),
                    source: get("Source"),
                    summary: get("Description").and_then(|d| d.lines().next().map(str::to_owned)),
                    depends,
                    provides: get("Provides").unwrap_or_default(),
                    base: control.get("Essential") == Some("yes")
                        || control.get("Priority") == Some("required"),
                    scripts: control.scripts.clone(),
                };
                fs::write(staging.file("package.json"), serde_json::to_vec(&Stored { info, tree, facts })?)?;
                Ok(vec![store.relative(&store.object_path(package.sha256))])
            },
        )
        .with_context(|| format!("unpacking {}", package.name))?;
    open(store, outcome, PackageKind::Debian)
}

/// Takes a folder of files, which nobody changes any more, for a package: what a recipe built. `key` stands for its content; `needs` is
/// kept in the store with it. Everything in it belongs to root, as in a package. `kind` is not stored: whoever takes the folder knows it.
///
/// # Errors
/// The folder holds what is neither file, folder nor link.
pub fn folder(
    store: &Store,
    key: &StepKey,
    from: &Path,
    info: Info,
    kind: PackageKind,
    needs: Vec<String>,
) -> Result<Unpacked> {
    let name = info.name.clone();
    let outcome = store
        .step(
            key,
            |miss| tracing::debug!(package = name, %miss, "folder"),
            |staging| {
                let mut pack = PackWriter::create(&staging.file("data"))?;
                let mut tree = Tree::new();
                add_folder(from, "", &mut pack, &mut tree)?;
                pack.finish()?.attach(&mut tree);
                let mut facts = Facts::new();
                elf::scan(&tree, &mut facts)?;
                fs::write(staging.file("package.json"), serde_json::to_vec(&Stored { info, tree, facts })?)?;
                Ok(needs)
            },
        )
        .with_context(|| format!("taking {name} for a package"))?;
    open(store, outcome, kind)
}

/// Adds everything in `from`/`below`, in the order of names.
fn add_folder(from: &Path, below: &str, pack: &mut PackWriter, tree: &mut Tree) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(from.join(below))? {
        names.push(entry?.file_name());
    }
    names.sort();
    for name in names {
        let name = name.to_str().with_context(|| format!("{name:?} is no UTF-8"))?;
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        let at = from.join(&path);
        let about = fs::symlink_metadata(&at)?;
        let executable = about.permissions().mode() & 0o100 != 0;
        let mode = if about.is_dir() || executable { 0o755 } else { 0o644 };
        let mut entry = Entry::dir(mode, "");
        entry.kind = if about.is_dir() {
            NodeKind::Dir
        } else if about.is_symlink() {
            NodeKind::Symlink { target: fs::read_link(&at)?.display().to_string() }
        } else if about.is_file() {
            NodeKind::File(pack.add(fs::File::open(&at)?, about.len())?)
        } else {
            let text = format!("{} is neither a file nor a folder", at.display());
            return Err(Failure::new(Kind::Input, text).into());
        };
        tree.insert(TreePath::new(&path)?, entry)?;
        if about.is_dir() {
            add_folder(from, &path, pack, tree)?;
        }
    }
    Ok(())
}

fn open(store: &Store, outcome: Outcome, kind: PackageKind) -> Result<Unpacked> {
    let text = fs::read(outcome.dir.file("package.json"))?;
    let Stored { info, mut tree, facts } = serde_json::from_slice(&text).map_err(|e| {
        Failure::new(Kind::Store, format!("{} is damaged", outcome.dir.path().display()))
            .hint("run `kiln store verify --repair`")
            .because(e)
    })?;
    Pack::open(&outcome.dir.file("data"))?.attach(&mut tree);
    let owner: std::sync::Arc<str> = info.name.as_str().into();
    for (_, entry) in tree.iter_mut() {
        entry.owner = owner.clone();
    }
    Ok(Unpacked {
        kind,
        info,
        tree,
        facts,
        digest: outcome.dir.digest("package.json")?,
        path: store.relative(outcome.dir.path()),
        miss: outcome.miss,
    })
}

struct Unpacker {
    pack: PackWriter,
    tree: Tree,
}

impl Sink for Unpacker {
    fn entry(&mut self, path: TreePath, meta: Meta, node: Node<'_>) -> io::Result<()> {
        let kind = match node {
            Node::Dir => NodeKind::Dir,
            Node::File { size, reader } => NodeKind::File(self.pack.add(reader.take(size), size)?),
            Node::HardLink { target } => match self.tree.get(&target).map(|e| e.kind.clone()) {
                Some(kind @ NodeKind::File(_)) => kind,
                _ => {
                    return Err(io::Error::other(format!(
                        "hard link to {target}, which is no file before it"
                    )));
                }
            },
            Node::Symlink { target } => NodeKind::Symlink { target },
            Node::Char { major, minor } => NodeKind::Char { major, minor },
            Node::Block { major, minor } => NodeKind::Block { major, minor },
            Node::Fifo => NodeKind::Fifo,
        };
        // The owner is the package for every entry; it is left out of the file and set on reading.
        let entry = Entry { meta, kind, owner: "".into() };
        self.tree.insert(path, entry).map(drop).map_err(io::Error::other)
    }
}
