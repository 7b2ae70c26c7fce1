//! What an image is made of, as JSON beside it: `server.json` (packages, digests, sizes, steps) and `server.files.json` (every file
//! of the root with its owner). Both follow from the lock alone: built twice, they are the same bytes.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::contract::Table;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::image::disk;
use crate::image::erofs;
use crate::image::verity::RootHash;
use crate::inventory::{self, Component, Container};
use crate::k3s::Origin;
use crate::kernel::Kernel;
use crate::lock::{LockedPackage, SetKind};
use crate::packages::Work;
use crate::pipeline::{RootImage, Target};
use crate::rootfs::Root;
use crate::spec::Role;
use crate::store::{StepDir, StepKey, Store};
use crate::tree::Kind as NodeKind;
use crate::unpack::{Info, PackageKind, Unpacked};

/// Version of the manifest's shape. Version 1 had everything that is in the root among `packages`.
pub const SCHEMA: u32 = 2;
/// The oldest version that [`read`] takes: `flash` and `pxe` still write images that an older kiln baked and somebody proved.
const OLDEST: u32 = 1;

/// The manifest of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the shape.
    pub schema: u32,
    /// The kiln that made it.
    pub kiln: String,
    /// Name of the profile.
    pub profile: String,
    /// Role in the cluster; a machine of scenarios may have none.
    pub role: Option<Role>,
    /// Machine.
    pub arch: Arch,
    /// IMAGE_VERSION of its os-release.
    pub version: String,
    /// Time of all its files, seconds since 1970 UTC.
    pub epoch: i64,
    /// The raw disk.
    pub disk: DiskInfo,
    /// Root hash of dm-verity.
    pub root_hash: Digest,
    /// Digest of the UKI.
    pub uki: Digest,
    /// Words of the kernel command line that the profile asks for.
    pub cmdline: Vec<String>,
    /// The kernel's `uname -r`.
    pub kernel: String,
    /// How K3s came into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k3s: Option<Origin>,
    /// Kernel modules in the root.
    pub modules: usize,
    /// Features that the kernel was found to have all of, with the number of demands that were held against it.
    #[serde(default)]
    pub features: BTreeMap<String, usize>,
    /// Bytes of the parts.
    pub sizes: Sizes,
    /// The distribution that the root says it is (os-release(5)).
    #[serde(default)]
    pub os: Os,
    /// Debian packages of the root by name.
    pub packages: BTreeMap<String, PackageInfo>,
    /// Debian packages that gave files to the ESP or the initrd, by name.
    pub boot: BTreeMap<String, PackageInfo>,
    /// What else is in the root, by the name that its files carry: K3s, programs of recipes, a kernel from source.
    #[serde(default)]
    pub components: BTreeMap<String, Component>,
    /// Container images in the root, by the name of their TOML files.
    #[serde(default)]
    pub containers: BTreeMap<String, Container>,
    /// States of Debian's suites: name to date and digest of the signed InRelease.
    pub suites: BTreeMap<String, (String, Digest)>,
    /// Units that systemd starts, by the links that enable them.
    pub units: Vec<String>,
    /// Steps whose outputs went in: kind to key, the beginning of its digest.
    pub steps: BTreeMap<String, String>,
    /// Notes of the checks.
    pub notes: Vec<String>,
}

/// A distribution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Os {
    /// `ID` of os-release: `debian`.
    pub id: String,
    /// `VERSION_ID`: `13`; empty if it has none.
    pub version: String,
}

impl Os {
    /// Reads the text of an os-release.
    fn of(text: &str) -> Self {
        let value = |name: &str| {
            let line = text.lines().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        Os { id: value("ID"), version: value("VERSION_ID") }
    }
}

/// The raw disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInfo {
    /// File name.
    pub file: String,
    /// Bytes, holes counted.
    pub size: u64,
    /// Of all its bytes.
    pub sha256: Digest,
    /// Partitions in order.
    pub partitions: Vec<PartitionInfo>,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionInfo {
    /// GPT name.
    pub name: String,
    /// GPT type GUID.
    pub kind: String,
    /// Partition GUID.
    pub guid: String,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// Bytes of the parts of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// The root file system.
    pub root: u64,
    /// Its inodes, directories and indexes.
    pub root_metadata: u64,
    /// Bytes of all files in it, uncompressed.
    pub files: u64,
    /// The UKI.
    pub uki: u64,
    /// The initrd in it.
    pub initrd: u64,
}

/// A Debian package of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageInfo {
    /// Its whole version.
    pub version: String,
    /// `all` or an architecture.
    pub arch: String,
    /// Source package, as Debian writes it; empty if it has the package's name and version.
    pub source: String,
    /// Of the .deb.
    pub sha256: Digest,
    /// Path on a mirror.
    pub path: String,
    /// Depends and Pre-Depends.
    pub depends: String,
    /// Provides.
    pub provides: String,
    /// `Essential: yes` or `Priority: required`: part of every Debian system without anybody asking.
    pub base: bool,
    /// Maintainer scripts that were not run.
    pub scripts: Vec<String>,
}

impl PackageInfo {
    /// Name and version of its source package, for the package `name`. Debian writes `Source: openssl (3.5-1)`, without the parentheses if
    /// the version is the package's, and nothing at all if the name is too.
    pub fn source(&self, name: &str) -> (String, String) {
        if self.source.is_empty() {
            return (name.to_owned(), self.version.clone());
        }
        match self.source.split_once(" (") {
            Some((source, version)) => (source.to_owned(), version.trim_end_matches(')').to_owned()),
            None => (self.source.clone(), self.version.clone()),
        }
    }
}

/// A file of the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// `dir`, `file`, `link`, `char`, `block` or `fifo`.
    pub kind: String,
    /// Permission bits in octal.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file; 0 otherwise.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// Digest of a file's bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
    /// Target of a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Names of extended attributes, values as hex.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
    /// Package, or `kiln:STEP`.
    pub from: String,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What the step `root` says of its output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RootInfo {
    /// Root hash.
    pub root_hash: Digest,
    /// Text of os-release.
    pub os_release: String,
    /// Bytes of the file system.
    pub bytes: u64,
    /// Bytes of inodes, directories and indexes.
    pub metadata: u64,
    /// Notes of the checks.
    pub notes: Vec<String>,
    /// Absolute path to what is there.
    pub files: BTreeMap<String, FileInfo>,
}

impl RootInfo {
    /// Takes down what `root` is and how it was written.
    pub fn new(root: &Root, hash: RootHash, written: &erofs::Written) -> Self {
        let files = root
            .tree
            .iter()
            .map(|(path, entry)| {
                let (kind, target) = match &entry.kind {
                    NodeKind::Dir => ("dir", None),
                    NodeKind::File(_) => ("file", None),
                    NodeKind::Symlink { target } => ("link", Some(target.clone())),
                    NodeKind::Char { .. } => ("char", None),
                    NodeKind::Block { .. } => ("block", None),
                    NodeKind::Fifo => ("fifo", None),
                };
                let info = FileInfo {
                    kind: kind.to_owned(),
                    mode: format!("{:04o}", entry.meta.mode),
                    uid: entry.meta.uid,
                    gid: entry.meta.gid,
                    size: entry.content().map_or(0, |c| c.size()),
                    sha256: entry.content().map(|c| c.digest()),
                    target,
                    xattrs: entry
                        .meta
                        .xattrs
                        .iter()
                        .map(|(name, value)| (name.clone(), hex::encode(value)))
                        .collect(),
                    from: entry.owner.to_string(),
                };
                (format!("/{path}"), info)
            })
            .collect();
        let notes = root.notes.iter().map(|n| format!("{}: {}: {}", n.check, n.path, n.text)).collect();
        RootInfo {
            root_hash: hash.digest(),
            os_release: root.os_release.clone(),
            bytes: written.bytes,
            metadata: written.metadata,
            notes,
            files,
        }
    }
}

/// What a disk was made of.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    /// Packages of the root.
    pub packages: &'a [Unpacked],
    /// How K3s came into it.
    pub k3s: Option<Origin>,
    /// The container images in it.
    pub containers: &'a BTreeMap<String, Container>,
    /// Packages of the tool sets `boot` and `initrd`.
    pub carried: [&'a [Unpacked]; 2],
    /// Its kernel.
    pub kernel: &'a Kernel,
    /// What its features get of the kernel.
    pub contract: &'a Table,
    /// The root itself.
    pub root: &'a RootImage,
    /// UKI and ESP.
    pub boot: &'a StepDir,
    /// Initrd.
    pub initrd: &'a StepDir,
    /// The disk.
    pub disk: &'a disk::Written,
}

/// The manifest of a disk that was just written.
pub fn describe(work: &Work<'_>, target: &Target<'_>, parts: &Parts<'_>) -> Result<Manifest> {
    let Parts { packages, k3s, containers, carried, kernel, contract, root, boot, initrd, disk: written } =
        parts;
    let lock = work.locked.lock();
    let components = inventory::components(packages, &root.info.files)?;
    let packages = describe_set(work, SetKind::Profile, &target.profile.name, target.arch, packages)?;
    let [from_boot, from_initrd] = carried;
    let mut boot_packages = describe_set(work, SetKind::Tool, "boot", target.arch, from_boot)?;
    boot_packages.extend(describe_set(work, SetKind::Tool, "initrd", target.arch, from_initrd)?);
    let partitions = written
        .table
        .partitions
        .iter()
        .map(|p| PartitionInfo {
            name: p.name.clone(),
            kind: p.kind.to_string(),
            guid: p.guid.to_string(),
            offset: p.offset,
            size: p.size,
        })
        .collect();
    let units = root
        .info
        .files
        .keys()
        .filter_map(|path| path.strip_prefix("/etc/systemd/system/"))
        .filter(|path| path.contains(".wants/") || path.contains(".requires/"))
        .filter_map(|path| path.rsplit('/').next().map(str::to_owned))
        .collect::<std::collections::BTreeSet<String>>();
    let step = |dir: &StepDir| (dir.record().key.kind.clone(), dir.record().key.digest().short());
    let size = |dir: &StepDir, name: &str| dir.record().outputs.get(name).map_or(0, |o| o.size);
    Ok(Manifest {
        schema: SCHEMA,
        kiln: crate::rootfs::KILN.to_owned(),
        profile: target.profile.name.clone(),
        role: target.profile.role(),
        arch: target.arch,
        version: lock.version(),
        epoch: lock.epoch(),
        disk: DiskInfo {
            file: format!("{}.raw", target.stem()),
            size: written.table.size,
            sha256: written.digest,
            partitions,
        },
        root_hash: root.info.root_hash,
        uki: boot.digest("kiln.efi")?,
        cmdline: target.profile.layer.kernel.cmdline.clone(),
        kernel: kernel.release.clone(),
        k3s: k3s.clone(),
        modules: kernel.modules.by_name.len(),
        features: contract.features.clone(),
        sizes: Sizes {
            root: root.info.bytes,
            root_metadata: root.info.metadata,
            files: root.info.files.values().map(|f| f.size).sum(),
            uki: size(boot, "kiln.efi"),
            initrd: size(initrd, "initrd.cpio.zst"),
        },
        os: Os::of(&root.info.os_release),
        packages,
        boot: boot_packages,
        components,
        containers: (*containers).clone(),
        suites: lock.suite.iter().map(|s| (s.name.clone(), (s.date.clone(), s.inrelease))).collect(),
        units: units.into_iter().collect(),
        steps: [step(&root.dir), step(initrd), step(boot)].into(),
        notes: root.info.notes.clone(),
    })
}

/// The Debian packages among `unpacked`, which are those of a set of the lock in its order.
pub(crate) fn describe_set(
    work: &Work<'_>,
    kind: SetKind,
    name: &str,
    arch: Arch,
    unpacked: &[Unpacked],
) -> Result<BTreeMap<String, PackageInfo>> {
    let locked = work.locked.packages(kind, name, arch)?;
    let describe = |(Unpacked { info, .. }, locked): (&Unpacked, &LockedPackage)| {
        (info.name.clone(), package_info(info, locked.sha256, locked.path.clone()))
    };
    let debian = unpacked.iter().filter(|package| package.kind == PackageKind::Debian);
    Ok(debian.zip(locked).map(describe).collect())
}

fn package_info(info: &Info, sha256: Digest, path: String) -> PackageInfo {
    PackageInfo {
        version: info.version.clone(),
        arch: info.arch.clone(),
        source: info.source.clone().unwrap_or_default(),
        sha256,
        path,
        depends: info.depends.clone(),
        provides: info.provides.clone(),
        base: info.base,
        scripts: info.scripts.clone(),
    }
}

/// The identity of a file on this machine, to see without reading it that nobody changed it; git's index does the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Stamp {
    /// The identity of the file at `path`, if there is one.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// What the store remembers of a target that was built.
#[derive(Serialize, Deserialize)]
struct Remembered {
    key: StepKey,
    stamp: Stamp,
}

/// Where a target's manifest lies.
pub fn path(target: &Target<'_>) -> PathBuf {
    target.out.join(format!("{}.json", target.stem()))
}

/// Where the list of the root's files lies, for a manifest at `manifest`.
pub fn files_path(manifest: &Path) -> PathBuf {
    manifest.with_extension("files.json")
}

fn memory(store: &Store, target: &Target<'_>) -> Result<PathBuf> {
    let raw = std::path::absolute(target.raw()).context("making the output folder absolute")?;
    Ok(store
        .root()
        .join("roots")
        .join(format!("{}.out", Digest::of(raw.as_os_str().as_encoded_bytes()).short())))
}

/// The manifest of a target, if its disk in the output folder is the one that `key` made and nobody touched it.
pub fn current(store: &Store, key: &StepKey, target: &Target<'_>) -> Result<Option<Manifest>> {
    let Ok(text) = fs::read(memory(store, target)?) else { return Ok(None) };
    let Ok(remembered) = serde_json::from_slice::<Remembered>(&text) else { return Ok(None) };
    if remembered.key != *key || Stamp::of(&target.raw()).as_ref() != Some(&remembered.stamp) {
        return Ok(None);
    }
    let manifest = path(target);
    if !files_path(&manifest).is_file() {
        return Ok(None);
    }
    Ok(read(&manifest).ok().filter(|manifest| manifest.schema == SCHEMA))
}

/// Writes manifest and list of files beside the disk, and remembers in the store what made it.
pub fn publish(
    work: &Work<'_>,
    key: &StepKey,
    target: &Target<'_>,
    manifest: &Manifest,
    files: &BTreeMap<String, FileInfo>,
    needs: Vec<String>,
) -> Result<()> {
    let to = path(target);
    write_json(&files_path(&to), files)?;
    write_json(&to, manifest)?;
    let stamp = Stamp::of(&target.raw()).context("the disk that was just written is gone")?;
    write_json(&memory(work.store, target)?, &Remembered { key: key.clone(), stamp })?;
    let what = format!("{} ({})", target.profile.name, target.arch);
    work.store.set_root(&crate::store::Root {
        project: work.project.dir.clone(),
        what,
        needs: needs.into_iter().collect(),
    })
}

/// Writes `value` as JSON with a newline at its end, atomically.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    write_file(path, &text)
}

/// Writes a file that everybody may read, atomically.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temp = tempfile::Builder::new().prefix(".kiln.").tempfile_in(folder)?;
    std::io::Write::write_all(&mut temp, bytes)?;
    fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    temp.persist(path).map_err(|e| e.error).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// Reads a manifest.
pub fn read(path: &Path) -> Result<Manifest> {
    let wrong = |why: String| {
        Failure::new(Kind::Input, format!("{} is no manifest of an image: {why}", path.display()))
            .hint("`kiln build` writes one beside each image")
    };
    let text = fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    if !(OLDEST..=SCHEMA).contains(&manifest.schema) {
        let text = format!("it has schema {}, this kiln reads schemas {OLDEST} to {SCHEMA}", manifest.schema);
        return Err(wrong(text).into());
    }
    Ok(manifest)
}

impl Manifest {
    /// Refuses a manifest that does not tell Debian packages from what else is in an image.
    ///
    /// # Errors
    /// It was written by an older kiln.
    pub fn tells_kinds(&self) -> Result<(), Failure> {
        if self.schema >= 2 {
            return Ok(());
        }
        let text = format!(
            "the manifest of {} is of an older kiln (schema {}): it does not say which parts are Debian packages",
            self.profile, self.schema
        );
        let build = format!("kiln build --profile {} --arch {}", self.profile, self.arch);
        Err(Failure::new(Kind::Input, text).hint(format!("run `{build}`: it writes the manifest again")))
    }
}

/// Reads the list of files that belongs to the manifest at `manifest`.
pub fn read_files(manifest: &Path) -> Result<BTreeMap<String, FileInfo>> {
    let path = files_path(manifest);
    serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("{} is damaged", path.display()))
}
