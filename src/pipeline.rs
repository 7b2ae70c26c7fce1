//! A build, from the lock to a disk: the file to read first.
//!
//! [`build`] is the recipe. Each line is a stage that takes what the stages above it made; what did not change comes out of the
//! store. The order is forced by verity: the root's hash is in the kernel command line, which is in the UKI, which is in the ESP.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use uuid::Uuid;

use crate::arch::Arch;
use crate::contract::{self, stage};
use crate::digest::{Digest, Hasher};
use crate::image::erofs::{self, Compression};
use crate::image::verity::{self, RootHash};
use crate::image::{cpio, disk, fat, uki};
use crate::inventory;
use crate::k3s;
use crate::kernel::{self, Kernel};
use crate::linux;
use crate::lock::SetKind;
use crate::manifest::{self, Manifest};
use crate::packages::Work;
use crate::rootfs::{self, Ingredients, initrd, state};
use crate::spec::Profile;
use crate::squeeze;
use crate::store::{StepDir, StepKey};
use crate::sys;
use crate::tree::TreePath;
use crate::unpack::Unpacked;

/// zstd level of the root if the profile does not say.
const LEVEL: u8 = 6;
/// zstd level of the initrd, which is small and decompressed by the firmware's one core.
const INITRD_LEVEL: i32 = 15;
/// Raised when a step below makes other bytes of the same inputs.
const VERSION: u32 = 1;
/// Name space of the UUIDs that are derived from step keys.
const NAMES: Uuid = uuid::uuid!("0a9d7c1e-6e0f-4c58-8f5e-3f4f5d1c7a60");

/// What is to be built.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// The role.
    pub profile: &'a Profile,
    /// The machine.
    pub arch: Arch,
    /// Folder of the outputs.
    pub out: &'a Path,
}

impl Target<'_> {
    /// `server`, `server-arm64`: the first part of every output's name.
    pub fn stem(&self) -> String {
        match self.arch {
            Arch::Amd64 => self.profile.name.clone(),
            arch => format!("{}-{arch}", self.profile.name),
        }
    }

    /// The raw disk image.
    pub fn raw(&self) -> PathBuf {
        self.out.join(format!("{}.raw", self.stem()))
    }
}

/// Bakes the disk image of a target. Says whether anything had to be done.
pub fn build(work: &Work<'_>, target: &Target<'_>) -> Result<(Manifest, bool)> {
    let (key, way) = image_key(work, target)?;
    if let Some(manifest) = manifest::current(work.store, &key, target)? {
        return Ok((manifest, false));
    }
    let (profile, arch) = (target.profile, target.arch);
    let packages = packages(work, profile, arch, way)?;
    let boot_packages = work.set(SetKind::Tool, "boot", arch)?;
    let initrd_packages = work.set(SetKind::Tool, "initrd", arch)?;
    let kernel = kernel(work, target, &packages)?;
    let contract = contract(work, target, &packages, &kernel)?;
    let root = root(work, target, &packages, &kernel)?;
    let initrd = initrd_of(work, target, &initrd_packages, &kernel)?;
    let boot = boot(work, target, &boot_packages, &kernel, &root, &initrd)?;
    let written = write_disk(work, target, &root, &boot)?;
    let parts = manifest::Parts {
        packages: &packages,
        k3s: k3s::origin(work, profile, arch, way)?,
        containers: &inventory::containers(work, profile, arch)?,
        carried: [&boot_packages, &initrd_packages],
        kernel: &kernel,
        contract: &contract,
        root: &root,
        boot: &boot,
        initrd: &initrd,
        disk: &written,
    };
    let manifest = manifest::describe(work, target, &parts)?;
    let steps = [
        &kernel.path,
        &work.store.relative(root.dir.path()),
        &work.store.relative(initrd.path()),
        &work.store.relative(boot.path()),
    ];
    let needs = steps
        .into_iter()
        .cloned()
        .chain(packages.iter().chain(&boot_packages).chain(&initrd_packages).map(|p| p.path.clone()));
    manifest::publish(work, &key, target, &manifest, &root.info.files, needs.collect())?;
    Ok((manifest, true))
}

/// Everything that the image depends on, from lock, TOML and the way of K3s alone: if it is in the store, nothing needs to be looked at.
fn image_key(work: &Work<'_>, target: &Target<'_>) -> Result<(StepKey, Option<k3s::Way>)> {
    let set = |kind, name: &str| -> Result<Digest> {
        let mut hasher = Hasher::new();
        for package in work.locked.packages(kind, name, target.arch)? {
            hasher.update(package.sha256.as_bytes());
        }
        Ok(hasher.finish())
    };
    let source = match &target.profile.layer.kernel.source {
        Some(source) => linux::digest(work, source, target.arch)?.to_string(),
        None => String::new(),
    };
    // Behind all that can be wrong in the TOML files, since it may ask for a release.
    let way = k3s::choose(work, target.profile, target.arch)?;
    let key = StepKey::new("image", &target.stem(), VERSION)
        .input("packages", set(SetKind::Profile, &target.profile.name)?)
        .input("boot programs", set(SetKind::Tool, "boot")?)
        .input("initrd programs", set(SetKind::Tool, "initrd")?)
        .input("profile", profile_digest(target.profile))
        .input("kernel from source", source)
        .input("k3s", k3s::digest(work, target.profile, target.arch, way)?)
        .input("kernel contract", work.project.contracts.digest(&target.profile.layer.kernel.features)?)
        .input("image version", work.locked.lock().version())
        .input("initrd script", initrd::scripts())
        .input("code", format!("{VERSION} {} {} {}", rootfs::VERSION, disk::VERSION, erofs::ZPACK_VERSION))
        .input("kiln", rootfs::KILN)
        .input("project", work.project.dir.display());
    Ok((key, way))
}

/// All that the TOML files say of a profile, with the bytes of the files they name.
fn profile_digest(profile: &Profile) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(&serde_json::to_vec(profile).expect("spec types always serialise"));
    for (path, bytes) in &profile.sources {
        hasher.update(path.as_bytes());
        hasher.update(Digest::of(bytes).as_bytes());
    }
    hasher.finish()
}

/// The packages of a profile's root: those of [`base`], and K3s, which comes the way `way`.
pub fn packages(
    work: &Work<'_>,
    profile: &Profile,
    arch: Arch,
    way: Option<k3s::Way>,
) -> Result<Vec<Unpacked>> {
    let mut packages = base(work, profile, arch)?;
    packages.extend(k3s::packages(work, profile, arch, way)?);
    Ok(packages)
}

/// The packages below K3s, the kernel among them: those of the lock, sorted by name, and behind them a kernel that is built from source.
pub fn base(work: &Work<'_>, profile: &Profile, arch: Arch) -> Result<Vec<Unpacked>> {
    let mut packages = work.set(SetKind::Profile, &profile.name, arch)?;
    if let Some(source) = &profile.layer.kernel.source {
        packages.push(linux::package(work, source, arch)?);
    }
    Ok(packages)
}

/// The kernel of a target with the modules that its profile keeps.
pub fn kernel(work: &Work<'_>, target: &Target<'_>, packages: &[Unpacked]) -> Result<Kernel> {
    let (package, release) = kernel::find(packages)?;
    let spinner = work.ui.spinner("Preparing", format!("kernel {release}"));
    let kernel =
        kernel::prepare(work.store, package, &release, &target.profile.layer.kernel.modules, work.threads)?;
    drop(spinner);
    if let Some(miss) = &kernel.miss {
        work.ui.status(
            "Prepared",
            format!("kernel {release}, {} modules: {miss}", kernel.modules.by_name.len()),
        );
    }
    Ok(kernel)
}

/// What the features of the profile get of the kernel; an error if one of them lacks something.
fn contract(
    work: &Work<'_>,
    target: &Target<'_>,
    packages: &[Unpacked],
    kernel: &Kernel,
) -> Result<contract::Table> {
    let (package, _) = kernel::find(packages)?;
    let table = stage::table(work, target.profile, target.arch, package, kernel)?;
    stage::demand(target.profile, target.arch, kernel, &table)?;
    Ok(table)
}

/// The root as a file system with its hash tree.
#[derive(Debug)]
pub struct RootImage {
    /// `root.erofs`, `root.verity`, `root.json`.
    pub dir: StepDir,
    /// What `root.json` says.
    pub info: manifest::RootInfo,
}

fn root(work: &Work<'_>, target: &Target<'_>, packages: &[Unpacked], kernel: &Kernel) -> Result<RootImage> {
    let lock = work.locked.lock();
    let (version, epoch) = (lock.version(), lock.epoch());
    let mut all = Hasher::new();
    for package in packages {
        all.update(package.digest.as_bytes());
    }
    let references = k3s::references(work, target.profile);
    let level = target.profile.layer.disk.compression.unwrap_or(LEVEL);
    let key = StepKey::new("root", &target.stem(), VERSION)
        .input("packages", all.finish())
        .input("kernel", kernel.digest)
        .input("profile", profile_digest(target.profile))
        .input("image version", &version)
        .input("time", epoch)
        .input("compose", rootfs::VERSION)
        .input("kiln", rootfs::KILN)
        .input("references", serde_json::to_string(&references)?)
        .input("compression", format!("zstd {level}, {}", erofs::ZPACK_VERSION));
    let outcome = work.store.step(
        &key,
        |miss| work.ui.status("Composing", format!("root of {}: {miss}", target.stem())),
        |staging| {
            let ingredients = Ingredients {
                profile: target.profile,
                arch: target.arch,
                packages,
                kernel,
                references: &references,
                version: &version,
                epoch,
            };
            let root = rootfs::compose(&ingredients)?;
            let (packs, needs) = squeeze::packs(work, &root.tree, packages, kernel, level)?;
            sys::check_interrupt()?;
            let seed = key.digest().to_string();
            let options = erofs::Options {
                compression: Compression::Zstd { level },
                uuid: *Uuid::new_v5(&NAMES, format!("erofs {seed}").as_bytes()).as_bytes(),
                volume: "kiln".to_owned(),
                epoch: u64::try_from(epoch).unwrap_or(0),
                threads: work.threads,
            };
            let path = staging.file("root.erofs");
            let mut out =
                fs::OpenOptions::new().create_new(true).read(true).write(true).open(&path)?.into_file();
            let written = erofs::write(
                &root.tree,
                &packs,
                &options,
                &mut std::io::BufWriter::with_capacity(1 << 20, &mut out),
            )?;
            let parameters = verity::Parameters {
                salt: Digest::of(format!("salt {seed}").as_bytes()).as_bytes().to_vec(),
                uuid: Uuid::new_v5(&NAMES, format!("verity {seed}").as_bytes()),
            };
            let mut hashes = std::io::BufWriter::new(fs::File::create(staging.file("root.verity"))?);
            let hash = verity::format(verity::Extent::whole(&out)?, &parameters, threads(work), &mut hashes)?;
            std::io::Write::flush(&mut hashes)?;
            let info = manifest::RootInfo::new(&root, hash, &written);
            fs::write(staging.file("root.json"), serde_json::to_vec(&info)?)?;
            Ok(needs)
        },
    )?;
    let info: manifest::RootInfo = serde_json::from_slice(&fs::read(outcome.dir.file("root.json"))?)
        .with_context(|| format!("{} is damaged", outcome.dir.path().display()))?;
    Ok(RootImage { dir: outcome.dir, info })
}

fn threads(work: &Work<'_>) -> NonZeroUsize {
    NonZeroUsize::new(work.threads).unwrap_or(NonZeroUsize::MIN)
}

fn initrd_of(
    work: &Work<'_>,
    target: &Target<'_>,
    packages: &[Unpacked],
    kernel: &Kernel,
) -> Result<StepDir> {
    let modules = &target.profile.layer.kernel.initrd.modules;
    let mut all = Hasher::new();
    for package in packages {
        all.update(package.digest.as_bytes());
    }
    let key = StepKey::new("initrd", &target.stem(), VERSION)
        .input("packages", all.finish())
        .input("kernel", kernel.digest)
        .input("modules", modules.join(" "))
        .input("script", initrd::scripts());
    let outcome = work.store.step(
        &key,
        |miss| work.ui.detail("Making", format!("initrd of {}: {miss}", target.stem())),
        |staging| {
            let tree = initrd::initrd(packages, &kernel.files(modules)?)?;
            let out = std::io::BufWriter::new(fs::File::create(staging.file("initrd.cpio.zst"))?);
            // Time 0: nothing looks at it, and the initrd stays the same when only the lock's age changes.
            cpio::write_zstd(&tree, 0, INITRD_LEVEL, u32::try_from(work.threads).unwrap_or(1), out)?;
            Ok(vec![kernel.path.clone()])
        },
    )?;
    Ok(outcome.dir)
}

/// The UKI and the ESP that holds it.
fn boot(
    work: &Work<'_>,
    target: &Target<'_>,
    packages: &[Unpacked],
    kernel: &Kernel,
    root: &RootImage,
    initrd: &StepDir,
) -> Result<StepDir> {
    let efi = target.arch.efi();
    let find = |path: &str| -> Result<Vec<u8>> {
        let found = packages.iter().find_map(|p| p.tree.get(path)?.content());
        Ok(found.with_context(|| format!("the tool set `boot` has no /{path}"))?.read()?)
    };
    let stub = find(&format!("usr/lib/systemd/boot/efi/linux{efi}.efi.stub"))?;
    let loader = find(&format!("usr/lib/systemd/boot/efi/systemd-boot{efi}.efi"))?;
    let words = &target.profile.layer.kernel.cmdline;
    let cmdline = words
        .iter()
        .cloned()
        .chain([format!("roothash={}", root.info.root_hash)])
        .collect::<Vec<_>>()
        .join(" ");
    let esp_size = target.profile.layer.disk.esp.unwrap_or(crate::spec::Size::mib(96));
    let version = work.locked.lock().version();
    let key = StepKey::new("boot", &target.stem(), VERSION)
        .input("stub", Digest::of(&stub))
        .input("systemd-boot", Digest::of(&loader))
        .input("kernel", kernel.digest)
        .input("initrd", initrd.digest("initrd.cpio.zst")?)
        .input("cmdline", &cmdline)
        .input("os-release", Digest::of(root.info.os_release.as_bytes()))
        .input("esp size", esp_size)
        .input("image version", &version);
    let outcome = work.store.step(
        &key,
        |miss| work.ui.detail("Making", format!("UKI and ESP of {}: {miss}", target.stem())),
        |staging| {
            let linux = kernel.vmlinuz.read()?;
            let linux = uki::kernel(&linux)?;
            let initrd = fs::read(initrd.file("initrd.cpio.zst"))?;
            let parts = uki::Parts {
                stub: &stub,
                os_release: &root.info.os_release,
                cmdline: &cmdline,
                uname: &kernel.release,
                linux: &linux,
                initrd: &[&initrd],
                dtb: None,
                ucode: None,
            };
            let mut bytes = Vec::new();
            uki::assemble(&parts, &mut bytes)?;
            fs::write(staging.file("kiln.efi"), &bytes)?;
            // `+3`: tries that systemd-boot gives this version before it takes another one (Boot Loader Specification,
            // "Boot counting"); a boot that reaches its end takes the count away.
            let loader_conf = "timeout 0\nconsole-mode keep\neditor no\n";
            let boot_name = match target.arch {
                Arch::Amd64 => "BOOTX64.EFI",
                Arch::Arm64 => "BOOTAA64.EFI",
            };
            let mut files = std::collections::BTreeMap::new();
            let mut add = |path: String, bytes: Vec<u8>| -> Result<()> {
                files.insert(TreePath::new(&path)?, fat::Source::Bytes(bytes));
                Ok(())
            };
            add(format!("EFI/Linux/kiln_{version}+3.efi"), bytes)?;
            add(format!("EFI/BOOT/{boot_name}"), loader.clone())?;
            add(format!("EFI/systemd/systemd-boot{efi}.efi"), loader.clone())?;
            add("loader/loader.conf".to_owned(), loader_conf.as_bytes().to_vec())?;
            let serial = key.digest();
            let serial = u32::from_le_bytes(serial.as_bytes()[..4].try_into().expect("four of 32 bytes"));
            let epoch = work.locked.lock().epoch();
            let system = fat::FileSystem {
                size: esp_size.bytes(),
                sector: 512,
                serial,
                label: "ESP".to_owned(),
                epoch,
                files,
            };
            let mut out = fs::OpenOptions::new()
                .create_new(true)
                .read(true)
                .write(true)
                .open(staging.file("esp.img"))?;
            fat::write(&system, &mut out)?;
            Ok(vec![])
        },
    )?;
    Ok(outcome.dir)
}

/// The disk, into the output folder under its own name only when it is whole.
fn write_disk(
    work: &Work<'_>,
    target: &Target<'_>,
    root: &RootImage,
    boot: &StepDir,
) -> Result<disk::Written> {
    let spinner = work.ui.spinner("Writing", target.raw().display().to_string());
    fs::create_dir_all(target.out)?;
    let architecture = match target.arch {
        Arch::Amd64 => disk::Architecture::X86_64,
        Arch::Arm64 => disk::Architecture::Arm64,
    };
    let root_hash = RootHash::new(root.info.root_hash);
    let node = disk::Node {
        architecture,
        root_hash,
        esp: boot.file("esp.img"),
        verity: root.dir.file("root.verity"),
        root: root.dir.file("root.erofs"),
        verity_size: state::verity_slot(rootfs::slot(target.profile)?),
        root_size: 0,
    };
    let (guid, slots) = disk::node_slots(&node);
    let temp = tempfile::Builder::new()
        .prefix(&format!(".{}.", target.stem()))
        .suffix(".part")
        .tempfile_in(target.out)?;
    let written = disk::write(guid, 512, &slots, temp.as_file())?;
    fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    temp.persist(target.raw())
        .map_err(|e| e.error)
        .with_context(|| format!("writing {}", target.raw().display()))?;
    drop(spinner);
    Ok(written)
}
