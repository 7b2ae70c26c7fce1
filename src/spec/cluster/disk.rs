//! The disk contract of a node: which of a machine's disks is meant.

use std::fmt;
use std::str::FromStr;

use globset::{Glob, GlobMatcher};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the disk of a node is. Everything that is given must fit; what is not given is not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct DiskContract {
    /// Serial number, as the disk says it and `lsblk -o SERIAL` shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// World Wide Name, as `lsblk -o WWN` shows it: `0x5002538e40a2c1d0`, `eui.0025385b71b0a1b2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// Model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelGlob>,
    /// What it hangs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bus: Option<DiskBus>,
    /// Its exact size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<DiskSize>,
    /// Its least size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_size: Option<DiskSize>,
    /// Its largest size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<DiskSize>,
}

impl DiskContract {
    /// Whether nothing is given, so that every disk would do: no disk may be picked by such a contract.
    pub fn is_empty(&self) -> bool {
        *self == DiskContract::default()
    }

    /// Whether a disk of so many bytes is not too small, not too large and not of another size.
    pub fn fits_size(&self, bytes: u64) -> bool {
        self.size.is_none_or(|size| size.bytes() == bytes)
            && self.min_size.is_none_or(|least| least.bytes() <= bytes)
            && self.max_size.is_none_or(|most| bytes <= most.bytes())
    }
}

impl fmt::Display for DiskContract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = [
            self.serial.as_ref().map(|serial| format!("serial {serial}")),
            self.wwn.as_ref().map(|wwn| format!("wwn {wwn}")),
            self.model.as_ref().map(|model| format!("model {model}")),
            self.bus.map(|bus| format!("bus {bus}")),
            self.size.map(|size| format!("size {size}")),
            self.min_size.map(|size| format!("at least {size}")),
            self.max_size.map(|size| format!("at most {size}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        f.pad(&if parts.is_empty() { "any disk".to_owned() } else { parts.join(", ") })
    }
}

/// What a disk hangs on, by the words of `lsblk -o TRAN` where that has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    /// NVM Express
    Nvme,
    /// Serial ATA
    Sata,
    /// USB mass storage
    Usb,
    /// virtio-blk
    Virtio,
    /// Any other SCSI, such as SAS, virtio-scsi or iSCSI
    Scsi,
}

impl fmt::Display for DiskBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DiskBus::Nvme => "nvme",
            DiskBus::Sata => "sata",
            DiskBus::Usb => "usb",
            DiskBus::Virtio => "virtio",
            DiskBus::Scsi => "scsi",
        })
    }
}

/// Where a node that runs diskless keeps its `/var`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DisklessState {
    /// In memory: each boot is the first
    #[default]
    Memory,
    /// On the disk of the contract
    Disk,
}

impl DisklessState {
    /// The word in plans.
    pub fn word(self) -> &'static str {
        match self {
            DisklessState::Memory => "memory",
            DisklessState::Disk => "disk",
        }
    }
}

/// A pattern for a disk's model: `*` is any text, `?` any character, `[ab]` one of these, `{a,b}` one of those.
#[derive(Debug, Clone)]
pub struct ModelGlob(GlobMatcher);

impl ModelGlob {
    /// Whether a disk of this model is meant. Blanks around the model, which ATA and SCSI pad it with, do not count.
    pub fn matches(&self, model: &str) -> bool {
        self.0.is_match(model.trim())
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.0.glob().glob()
    }
}

impl PartialEq for ModelGlob {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for ModelGlob {}

impl FromStr for ModelGlob {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Glob::new(text.trim()) {
            Ok(_) if text.trim().is_empty() => Err("an empty pattern fits no model".to_owned()),
            Ok(glob) => Ok(ModelGlob(glob.compile_matcher())),
            Err(error) => Err(format!("`{}` is no pattern: {}", text.escape_debug(), error.kind())),
        }
    }
}

impl fmt::Display for ModelGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a machine is told over the network is read as cluster.toml is.
fn read<'de, D: serde::Deserializer<'de>, T: FromStr<Err = String>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

impl<'de> Deserialize<'de> for ModelGlob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer)
    }
}

impl<'de> Deserialize<'de> for DiskSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer)
    }
}

impl Serialize for ModelGlob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The size of a disk. Vendors count in powers of ten (`500GB`), programs in powers of two (`32GiB`); `500107862016B` is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskSize(u64);

/// Units, each before those that end like it.
const UNITS: [(&str, u64); 7] = [
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl DiskSize {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        DiskSize(bytes)
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for DiskSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (number, unit) =
                UNITS.iter().find_map(|(word, unit)| Some((text.strip_suffix(word)?, unit)))?;
            let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            let number: u64 = plain.then(|| number.parse().ok())??;
            number.checked_mul(*unit).filter(|bytes| *bytes > 0).map(DiskSize)
        };
        read().ok_or_else(|| {
            format!(
                "`{}` is no size of a disk: write a whole number and a unit, such as \"32GiB\", \"500GB\" or \"500107862016B\"",
                text.escape_debug()
            )
        })
    }
}

impl fmt::Display for DiskSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The unit that leaves the smallest whole number.
        let whole = UNITS.iter().filter(|(_, unit)| self.0.is_multiple_of(*unit));
        let (word, unit) = whole.max_by_key(|(_, unit)| *unit).unwrap_or(&("B", 1));
        f.pad(&format!("{}{word}", self.0 / unit))
    }
}

impl Serialize for DiskSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_kinds_of_units_and_written_back() {
        for (text, bytes) in [
            ("32GiB", 32 << 30),
            ("500GB", 500_000_000_000),
            ("500107862016B", 500_107_862_016),
            ("1TiB", 1 << 40),
        ] {
            let size: DiskSize = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, text));
        }
        for wrong in ["", "GB", "0GB", "1.5GB", "-1GB", "32", "99999999999TiB", "1 GB", "+1GB"] {
            assert!(wrong.parse::<DiskSize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_contract_without_anything_is_empty_and_sizes_fit_between_their_limits() {
        let mut contract = DiskContract::default();
        assert!(contract.is_empty() && contract.fits_size(1));
        contract.min_size = Some(DiskSize::new(10));
        contract.max_size = Some(DiskSize::new(20));
        assert!(!contract.is_empty());
        assert!(
            !contract.fits_size(9)
                && contract.fits_size(10)
                && contract.fits_size(20)
                && !contract.fits_size(21)
        );
        contract.size = Some(DiskSize::new(15));
        assert!(!contract.fits_size(14) && contract.fits_size(15));
    }

    #[test]
    fn models_are_patterns_and_padding_does_not_count() {
        let glob: ModelGlob = "Samsung SSD 9?0 *".parse().unwrap();
        assert!(glob.matches("Samsung SSD 980 PRO 1TB   ") && !glob.matches("KINGSTON SA400"));
        assert!("[".parse::<ModelGlob>().is_err() && " ".parse::<ModelGlob>().is_err());
    }
}
