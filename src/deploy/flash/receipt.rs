//! What was done, kept as JSON: which image is on which disk, and what proved it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::device::Disk;
use super::proof::Proof;
use super::write::Written;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::lock::time;
use crate::manifest::{self, Manifest};
use crate::spec::Role;

/// Version of the shape: a field is only added.
pub const SCHEMA: u32 = 1;

/// A disk that was flashed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The kiln that did it.
    pub kiln: String,
    /// The disk.
    pub device: Device,
    /// What is on it.
    pub image: Image,
    /// Name of the cluster, if the disk got an identity.
    pub cluster: Option<String>,
    /// Name of the node, if the disk got an identity.
    pub node: Option<String>,
    /// Role of the image.
    pub role: Option<Role>,
    /// What proved the image, or why it was flashed unproven.
    pub proof: Proof,
    /// Whether `/var` was left as it was.
    pub kept_state: bool,
    /// When it began, RFC 3339 in UTC.
    pub started: String,
    /// When it ended.
    pub ended: String,
    /// Bytes and seconds.
    pub work: Written,
    /// Bytes of the image per second of writing.
    pub write_rate: u64,
    /// Whether the disk was taken away from this machine, so that it can be unplugged.
    pub ejected: bool,
}

/// The disk of a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Where it was.
    pub path: PathBuf,
    /// Its model.
    pub model: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Its World Wide Name.
    pub wwn: Option<String>,
    /// What it hung on.
    pub bus: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical sector.
    pub sector: u32,
}

/// The image of a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Name of the profile.
    pub profile: String,
    /// IMAGE_VERSION.
    pub version: String,
    /// SHA-256 of the raw disk.
    pub sha256: Digest,
    /// Root hash of dm-verity.
    pub root_hash: Digest,
    /// Bytes of the raw disk.
    pub size: u64,
}

impl From<&Disk> for Device {
    fn from(disk: &Disk) -> Self {
        Device {
            path: disk.path.clone(),
            model: disk.model.clone(),
            serial: disk.serial.clone(),
            wwn: disk.wwn.clone(),
            bus: disk.bus.to_string(),
            size: disk.size,
            sector: disk.sector,
        }
    }
}

impl From<&Manifest> for Image {
    fn from(manifest: &Manifest) -> Self {
        Image {
            profile: manifest.profile.clone(),
            version: manifest.version.clone(),
            sha256: manifest.disk.sha256,
            root_hash: manifest.root_hash,
            size: manifest.disk.size,
        }
    }
}

impl Receipt {
    /// Keeps it in `folder`, one file per flash; says which.
    ///
    /// # Errors
    /// [`Kind::Store`]: the folder cannot be written.
    pub fn keep(&self, folder: &Path) -> Result<PathBuf, Failure> {
        let word = self.device.serial.clone().unwrap_or_else(|| self.device.path.display().to_string());
        let word: String = word.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let ended = time::parse_iso(&self.ended).map_or_else(|| self.ended.clone(), time::compact);
        let path = folder.join(format!("{ended}-{}.json", word.trim_matches('_')));
        let write = || -> anyhow::Result<()> {
            fs_err::create_dir_all(folder)?;
            manifest::write_json(&path, self)
        };
        write().map_err(|error| {
            Failure::new(Kind::Store, "the disk is done, but its receipt cannot be kept").because(error)
        })?;
        Ok(path)
    }
}
