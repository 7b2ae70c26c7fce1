//! One flash from a disk that was chosen to its receipt.

use std::path::{Path, PathBuf};

use super::claim::{self, Candidate, Wish};
use super::device::{Bus, Disk, Machine};
use super::journal::Journal;
use super::proof::Proof;
use super::receipt::{Device, Image, Receipt, SCHEMA};
use super::source::{Facts, Source};
use super::write::{Options, Watch, Written, write};
use crate::cluster::Credential;
use crate::error::{Failure, Kind};
use crate::lock::time;
use crate::manifest::Manifest;
use crate::rootfs::state::verity_slot;
use crate::spec::Profile;
use crate::spec::cluster::DiskBus;
use crate::{rootfs, sys};

/// A built image, as it lies on this machine.
#[derive(Debug, Clone)]
pub struct Built {
    /// The raw disk, or `.zst` of it.
    pub file: PathBuf,
    /// What its manifest says.
    pub manifest: Manifest,
    /// What proved it.
    pub proof: Proof,
    /// Bytes that a disk must have for the first boot; 0 if that is not known.
    pub least: u64,
}

/// What goes onto which disk.
#[derive(Debug)]
pub struct Order<'a> {
    /// The disk, confirmed.
    pub chosen: Candidate,
    /// How it was asked for.
    pub wish: Wish<'a>,
    /// The image.
    pub image: &'a Built,
    /// Names of the cluster and the node whose identity it gets.
    pub node: Option<(String, String)>,
    /// That identity.
    pub identity: Vec<Credential>,
    /// Leave `/var` as it is.
    pub keep_state: bool,
    /// Begin anew whatever an earlier run left.
    pub restart: bool,
    /// Take a stick away from this machine when it is done.
    pub eject: bool,
}

impl Built {
    /// The image of `manifest`, which lies in `folder`: the raw disk if it is there, else the compressed one.
    ///
    /// # Errors
    /// [`Kind::Input`]: neither is there.
    pub fn find(folder: &Path, manifest: &Manifest) -> Result<PathBuf, Failure> {
        let raw = folder.join(&manifest.disk.file);
        let zst = folder.join(format!("{}.zst", manifest.disk.file));
        [&raw, &zst].into_iter().find(|path| path.exists()).cloned().ok_or_else(|| {
            Failure::new(Kind::Input, format!("there is neither {} nor {}", raw.display(), zst.display()))
                .hint(format!("run `kiln build --profile {}`", manifest.profile))
        })
    }
}

/// Bytes that a disk must have for an image of `profile` and what its first boot makes: the ESP, two slots, `/var`, and the tables.
///
/// # Errors
/// The profile has no size for its slots.
pub fn least(profile: &Profile, manifest: &Manifest) -> anyhow::Result<u64> {
    let slot = rootfs::slot(profile)?;
    let first = manifest.disk.partitions.first().map_or(0, |esp| esp.offset + esp.size);
    Ok(first + 2 * (slot.bytes() + verity_slot(slot)) + rootfs::var(profile).bytes() + (1 << 20))
}

/// Takes the disk that was chosen, writes `source` onto it and reads it back: what every way of installing has in common. A node that
/// writes its own disk has no place for a journal, and begins anew after a power cut.
///
/// # Errors
/// As [`claim::open`] and [`write`](fn@write).
pub fn install(
    machine: &Machine,
    chosen: &Candidate,
    wish: &Wish<'_>,
    source: Source<'_>,
    options: &Options<'_>,
    journal: impl FnOnce() -> Result<Journal, Failure>,
    watch: &dyn Watch,
) -> Result<Written, Failure> {
    let disk = &chosen.disk;
    let name = disk.path.display().to_string();
    let device = claim::open(machine, chosen, wish)?;
    // Only now: the journal of a disk belongs to whoever has the disk.
    let mut journal = journal()?;
    let options = Options { overlap: claim::overlaps(disk), probe: true, ..options.clone() };
    let written = write(&device, &name, source, &options, &mut journal, watch)?;
    if let Err(error) = sys::reread_partitions(device.file()) {
        // The kernel goes on with the old table, which matters to nobody who unplugs the disk or boots from it.
        tracing::debug!(%error, name, "partition table");
    }
    Ok(written)
}

/// Does what `order` says; journal and receipt are kept in `folder`.
///
/// # Errors
/// As [`install`]; [`Kind::Store`] if the receipt cannot be kept, when the disk is done.
pub fn flash(
    machine: &Machine,
    order: &Order<'_>,
    folder: &Path,
    watch: &dyn Watch,
) -> Result<Receipt, Failure> {
    let Order { chosen, wish, image, .. } = order;
    let (disk, manifest) = (&chosen.disk, &image.manifest);
    let facts = Facts { digest: manifest.disk.sha256, size: manifest.disk.size, epoch: manifest.epoch };
    let source = Source::open(&image.file, facts)?;
    let (identity, keep_state) = (order.identity.as_slice(), order.keep_state);
    let options = Options { identity, keep_state, least: image.least, ..Options::default() };
    let journal = || Journal::open(&folder.join("flash"), disk.word(), order.restart);
    let started = time::iso(time::now());
    let work = install(machine, chosen, wish, source, &options, journal, watch)?;
    let ejected = order.eject && disk.bus == Bus::Known(DiskBus::Usb) && machine.give_up(disk);
    let about = About { node: order.node.clone(), proof: image.proof.clone(), keep_state, started, ejected };
    let receipt = receipt(disk, manifest, about, work);
    receipt.keep(&folder.join("receipts"))?;
    Ok(receipt)
}

/// What a receipt says beside disk, image and work.
#[derive(Debug)]
pub struct About {
    /// Names of cluster and node.
    pub node: Option<(String, String)>,
    /// What proved the image.
    pub proof: Proof,
    /// Whether `/var` was left as it was.
    pub keep_state: bool,
    /// When it began, RFC 3339.
    pub started: String,
    /// Whether the disk was taken away.
    pub ejected: bool,
}

/// The receipt of work that is done now.
pub fn receipt(disk: &Disk, manifest: &Manifest, about: About, work: Written) -> Receipt {
    let seconds = work.write_seconds.max(0.001);
    let (cluster, node) = about.node.unzip();
    Receipt {
        schema: SCHEMA,
        kiln: env!("CARGO_PKG_VERSION").to_owned(),
        device: Device::from(disk),
        image: Image::from(manifest),
        cluster,
        node,
        role: manifest.role,
        proof: about.proof,
        kept_state: about.keep_state,
        started: about.started,
        ended: time::iso(time::now()),
        write_rate: (manifest.disk.size as f64 / seconds) as u64,
        work,
        ejected: about.ejected,
    }
}
