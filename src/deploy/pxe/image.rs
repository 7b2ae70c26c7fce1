//! An image as machines fetch it: the raw disk, and by its partition table the parts of it that are fetched alone.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::content::Content;
use crate::arch::Arch;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::image::{fat, gpt, uki};
use crate::manifest;
use crate::pipeline::Target;
use crate::rootfs::state::verity_slot;
use crate::spec::Profile;
use crate::spec::cluster::DisklessState;

/// Memory in bytes that the system itself has at least, as in the initrd (src/rootfs/initrd/netboot).
const SYSTEM: u64 = 512 << 20;
/// Where the UKI lies on the ESP.
const UKIS: &str = "EFI/Linux/";

/// An image.
#[derive(Debug)]
pub struct Image {
    /// Its manifest as JSON, for the installer.
    pub manifest: serde_json::Value,
    /// Of what it was made.
    pub profile: String,
    /// Machine.
    pub arch: Arch,
    /// IMAGE_VERSION of its os-release.
    pub version: String,
    /// Units that its systemd starts.
    pub units: Vec<String>,
    /// The disk.
    pub raw: Content,
    /// The disk in a zstd frame, if it was built so.
    pub zst: Option<Content>,
    /// The UKI, as it is on the ESP.
    pub uki: Content,
    /// The kernel in it.
    pub linux: Content,
    /// The initrd in it; microcode first, if it has any.
    pub initrds: Vec<(&'static str, Content)>,
    /// The kernel command line in it.
    pub cmdline: String,
    /// The root file system.
    pub root: Content,
    /// The hash tree over it.
    pub verity: Content,
    /// What the tree ends in.
    pub root_hash: Digest,
    /// Bytes of a disk with all partitions but /var, as first boot makes them.
    pub layout_size: u64,
    /// Least bytes of /var.
    pub state_size: u64,
}

impl Image {
    /// Opens the image of `profile` in `out`, and holds it against its manifest. `None` if it has not been built.
    ///
    /// # Errors
    /// [`Kind::Input`]: the image is another than its manifest says, or has a part that cannot be served.
    pub fn open(profile: &Profile, arch: Arch, out: &Path, kept: &Path) -> Result<Option<Self>> {
        let target = Target { profile, arch, out };
        let path = target.raw();
        if !path.is_file() {
            return Ok(None);
        }
        Self::read(&target, kept).with_context(|| format!("looking at {}", path.display())).map(Some)
    }

    fn read(target: &Target<'_>, kept: &Path) -> Result<Self> {
        let (profile, arch) = (target.profile, target.arch);
        let again = format!("run `kiln build --profile {} --arch {arch}` again", profile.name);
        let refuse = |why: String| Failure::new(Kind::Input, why).hint(again.clone());
        let manifest = manifest::read(&manifest::path(target))?;
        let raw = Content::open(&target.raw())?;
        if raw.digest != manifest.disk.sha256 {
            return Err(refuse("its bytes are not those of its manifest".to_owned()).into());
        }
        let table = gpt::read(&mut raw.reader(), 512).map_err(|e| refuse(e.to_string()))?;
        let part = |what: &str, kinds: &[uuid::Uuid]| -> Result<Content> {
            let found = table.partitions.iter().find(|p| kinds.contains(&p.kind));
            let found = found.ok_or_else(|| refuse(format!("it has no {what}")))?;
            raw.part(found.offset, found.size)
        };
        let esp = part("EFI system partition", &[gpt::ESP])?;
        let root = part("root partition", &[gpt::ROOT_X86_64, gpt::ROOT_ARM64])?;
        let verity = part("hash tree", &[gpt::ROOT_VERITY_X86_64, gpt::ROOT_VERITY_ARM64])?;

        let mut files = fat::Reader::new(esp.reader()).map_err(|e| refuse(e.to_string()))?;
        let nodes = files.list().map_err(|e| refuse(e.to_string()))?;
        let is_uki = |path: &str| path.starts_with(UKIS) && path.to_ascii_lowercase().ends_with(".efi");
        let path = nodes.iter().find(|node| !node.directory && is_uki(&node.path)).map(|node| &node.path);
        let path = path.ok_or_else(|| refuse(format!("its ESP has no UKI below {UKIS}")))?;
        let bytes = files.read(path).map_err(|e| refuse(e.to_string()))?;
        let uki = Content::kept(&bytes, kept)?;
        if uki.digest != manifest.uki {
            return Err(refuse(format!("its {path} is not the UKI of its manifest")).into());
        }
        let sections = uki::sections(&bytes).map_err(|e| refuse(e.to_string()))?;
        let section = |name: &str| -> Result<Option<Content>> {
            let Some(section) = sections.iter().find(|s| s.name == name) else { return Ok(None) };
            // Sections are slices of the file: where one begins is how far it is from the first byte.
            let offset = section.bytes.as_ptr() as usize - bytes.as_ptr() as usize;
            uki.part(offset as u64, section.bytes.len() as u64).map(Some)
        };
        let lacks = |name: &str| refuse(format!("its UKI has no section {name}"));
        let mut cmdline = String::new();
        let content = section(".cmdline")?.ok_or_else(|| lacks(".cmdline"))?;
        std::io::Read::read_to_string(&mut content.reader(), &mut cmdline)?;
        let cmdline = cmdline.trim_end_matches(['\0', '\n']).trim().to_owned();
        // It becomes part of a line of an iPXE script.
        if let Some(c) = cmdline.chars().find(|c| !(' '..='~').contains(c) || "$\\\"'#|&;".contains(*c)) {
            return Err(
                refuse(format!("its kernel command line has {c:?}, which iPXE would not pass on")).into()
            );
        }
        let mut initrds = Vec::new();
        initrds.extend(section(".ucode")?.map(|content| ("ucode", content)));
        initrds.push(("initrd", section(".initrd")?.ok_or_else(|| lacks(".initrd"))?));
        let linux = section(".linux")?.ok_or_else(|| lacks(".linux"))?;

        let disk = &profile.layer.disk;
        let (Some(slot), Some(var)) = (disk.slot, disk.var) else {
            return Err(refuse(format!("the profile {} has no sizes of its disk", profile.name)).into());
        };
        // First and last MiB are the tables'.
        let layout_size = esp.len + 2 * (slot.bytes() + verity_slot(slot)) + (2 << 20);
        let zst = compressed(target, &raw)?;
        Ok(Image {
            manifest: serde_json::to_value(&manifest)?,
            profile: profile.name.clone(),
            arch,
            version: manifest.version,
            units: manifest.units,
            raw,
            zst,
            uki,
            linux,
            initrds,
            cmdline,
            root,
            verity,
            root_hash: manifest.root_hash,
            layout_size,
            state_size: var.bytes(),
        })
    }

    /// Memory in bytes that a machine needs which runs this image from memory, to install it too: the image, and the least /var unless that
    /// is on a disk, lie in a file system in memory. The last quarter of the memory, and no less than [`SYSTEM`], is for the system itself.
    pub fn memory(&self, state: DisklessState) -> u64 {
        let var = if state == DisklessState::Disk { 0 } else { self.state_size };
        let held = self.raw.len + var;
        (held.div_ceil(3) * 4).max(held + SYSTEM)
    }
}

/// `out/server.raw.zst`, if it is there and holds the same disk.
fn compressed(target: &Target<'_>, raw: &Content) -> Result<Option<Content>> {
    let path = target.out.join(format!("{}.raw.zst", target.stem()));
    if !path.is_file() {
        return Ok(None);
    }
    let content = Content::open(&path)?;
    let (digest, _) = Digest::of_reader(zstd::Decoder::new(content.reader())?)
        .with_context(|| format!("{} is damaged", path.display()))?;
    // One of an older build is no mistake; the raw disk is served then.
    Ok((digest == raw.digest).then_some(content))
}
