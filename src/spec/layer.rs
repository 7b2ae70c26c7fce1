//! A layer: one TOML file that says a part of what an image is. See [`super`] for how layers are merged.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::k3s::K3s;
use crate::rootfs::accounts::Ids;
use crate::rootfs::alternatives::Alternative;
use crate::rootfs::check::Allow;
use crate::rootfs::units::Wishes;

/// One file in images/, profiles/ or qemu/machines/, and also the result of merging several.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Version of this file's shape; 1.
    pub schema: u32,
    /// Layers (file names in images/ without `.toml`) that are merged before this one, in order. A machine of scenarios may also
    /// extend a profile (`profiles/NAME`).
    #[serde(default)]
    pub extends: Vec<String>,
    /// One line for people.
    #[serde(default)]
    pub description: Option<String>,
    /// What the node is in its cluster. Profiles must have one.
    #[serde(default)]
    pub role: Option<Role>,
    /// Which Debian packages.
    #[serde(default)]
    pub packages: Packages,
    /// Which kernel, which of its modules, which command line.
    #[serde(default)]
    pub kernel: KernelSpec,
    /// Which firmware files stay.
    #[serde(default)]
    pub firmware: Firmware,
    /// Files that no package brings, by absolute path.
    #[serde(default)]
    pub files: Files,
    /// What systemd starts.
    #[serde(default)]
    pub units: Wishes,
    /// Kernel parameters, written to /usr/lib/sysctl.d/50-kiln.conf.
    #[serde(default)]
    pub sysctl: BTreeMap<String, Scalar>,
    /// Fixed ids of the system users and groups that sysusers.d asks for, so that files keep their owners across builds.
    #[serde(default)]
    pub accounts: Ids,
    /// What packages bring and images do not need.
    #[serde(default)]
    pub drop: Drop,
    /// Choices of the alternatives system, which packages leave to their scripts.
    #[serde(default)]
    pub alternative: Vec<Alternative>,
    /// What the checks of the finished root let pass.
    #[serde(default)]
    pub checks: Checks,
    /// Partitions.
    #[serde(default)]
    pub disk: Disk,
    /// K3s on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k3s: Option<K3s>,
}

/// The role of a node in the K3s cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the control plane and workloads.
    Server,
    /// Runs workloads.
    Agent,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Server => "server",
            Role::Agent => "agent",
        })
    }
}

/// Which packages an image has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Packages {
    /// Packages by name. What they need comes with them.
    #[serde(default)]
    pub install: Vec<String>,
    /// Taken away from what earlier layers install.
    #[serde(default)]
    pub remove: Vec<String>,
    /// Never installed, also not to satisfy a dependency.
    #[serde(default)]
    pub without: Vec<String>,
    /// Names that kiln itself stands in for: a dependency on one of them is satisfied.
    #[serde(default)]
    pub provided: Vec<String>,
}

/// Debian's two builds of its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// For virtual machines: virtio, few drivers, small.
    Cloud,
    /// For hardware: every driver that Debian builds.
    Metal,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flavour::Cloud => "cloud",
            Flavour::Metal => "metal",
        })
    }
}

/// The kernel of an image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelSpec {
    /// Which of Debian's kernels. Some layer must say, or name a `source`; the later layer's word counts.
    #[serde(default)]
    pub flavour: Option<Flavour>,
    /// A kernel built from source, by the name of its file in images/kernel/sources/, in place of one of Debian's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What the node needs of its kernel: features (`cilium.wireguard`) of the contracts in images/kernel/. A kernel that lacks
    /// something of them is refused.
    #[serde(default)]
    pub features: Vec<String>,
    /// Words of the kernel command line, in order; the root hash is added by kiln.
    #[serde(default)]
    pub cmdline: Vec<String>,
    /// Which modules stay in the root.
    #[serde(default)]
    pub modules: ModuleFilter,
    /// What is in the initrd.
    #[serde(default)]
    pub initrd: Initrd,
}

/// Which kernel modules stay: those that `keep` names and no `drop` does, and whatever those need.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModuleFilter {
    /// Module names or globs of paths below the module folder (`kernel/net/**`). Empty: all.
    #[serde(default)]
    pub keep: Vec<String>,
    /// Module names or globs; wins over `keep`, but not over what a kept module needs.
    #[serde(default)]
    pub drop: Vec<String>,
}

/// The first program that runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Initrd {
    /// Modules in the initrd: what it takes to see the boot disk and to open the root. Names the kernel has built in, or
    /// does not have for this architecture and flavour, are passed over.
    #[serde(default)]
    pub modules: Vec<String>,
}

/// Firmware files from packages, below /usr/lib/firmware.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Firmware {
    /// Globs of paths below /usr/lib/firmware. Everything else goes.
    #[serde(default)]
    pub keep: Vec<String>,
}

/// Files by absolute path.
pub type Files = BTreeMap<String, FileSpec>;

/// A file, link or folder that the image gets beside its packages. Exactly one of `text`, `source`, `link`, `dir`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// The file's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// A file of the project, relative to the folder of this TOML file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// A symbolic link with this target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// An empty folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<bool>,
    /// Permission bits in octal, as text: `"0644"` for files, `"0755"` for folders if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// A number, text or truth value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Scalar {
    /// A whole number.
    Number(i64),
    /// Text.
    Text(String),
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Number(n) => n.fmt(f),
            Scalar::Text(t) => t.fmt(f),
        }
    }
}

/// Paths that are taken out of the packages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drop {
    /// Globs of absolute paths.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Globs of absolute paths that stay although `paths` matches them.
    #[serde(default)]
    pub keep: Vec<String>,
    /// Globs of absolute paths that lose their set-user-id and set-group-id bits and their capabilities.
    #[serde(default)]
    pub privileges: Vec<String>,
}

/// Settings of the checks that every finished root must pass.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Checks {
    /// What is let pass.
    #[serde(default)]
    pub allow: Allow,
}

/// Partitions of the disk. A/B slots: root-A and its hash tree are in the image, root-B and /var are made on first boot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Size of the EFI system partition; room for three UKIs is wise.
    #[serde(default)]
    pub esp: Option<Size>,
    /// Size that each root slot grows to on first boot; no later root may be larger.
    #[serde(default)]
    pub slot: Option<Size>,
    /// Smallest /var; first boot fails on a disk that has less room left.
    #[serde(default)]
    pub var: Option<Size>,
    /// zstd level of the root, 1 to 19; 6 if no layer says.
    #[serde(default)]
    pub compression: Option<u8>,
}

/// A size in bytes, written with a binary unit: `64MiB`, `2GiB`. Always a multiple of 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Size(u64);

impl Size {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// So many MiB.
    pub const fn mib(n: u64) -> Self {
        Size(n << 20)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no size: write a whole number of MiB or GiB, such as \"64MiB\"");
        let (number, shift) = match (text.strip_suffix("MiB"), text.strip_suffix("GiB")) {
            (Some(n), _) => (n, 20),
            (_, Some(n)) => (n, 30),
            _ => return Err(wrong()),
        };
        let number: u64 = number.trim().parse().map_err(|_| wrong())?;
        match number.checked_shl(shift).filter(|bytes| bytes >> shift == number && number > 0) {
            Some(bytes) => Ok(Size(bytes)),
            None => Err(wrong()),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1 << 30) {
            write!(f, "{}GiB", self.0 >> 30)
        } else {
            write!(f, "{}MiB", self.0 >> 20)
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Joins `more` to `list`, each item once, order kept.
pub(super) fn join(list: &mut Vec<String>, more: Vec<String>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

impl Layer {
    /// Merges `later` over `self`; see [`super`] for the rules.
    pub fn merge(&mut self, later: Layer) {
        // Destructured so that a new field cannot be forgotten here.
        let Layer {
            schema,
            extends,
            description,
            role,
            packages,
            kernel,
            firmware,
            files,
            units,
            sysctl,
            accounts,
            drop,
            alternative,
            checks,
            disk,
            k3s,
        } = later;
        self.schema = schema;
        join(&mut self.extends, extends);
        self.description = description.or(self.description.take());
        self.role = role.or(self.role);
        self.packages.install.retain(|p| !packages.remove.contains(p));
        join(&mut self.packages.install, packages.install);
        join(&mut self.packages.without, packages.without);
        join(&mut self.packages.provided, packages.provided);
        if kernel.flavour.is_some() || kernel.source.is_some() {
            (self.kernel.flavour, self.kernel.source) = (kernel.flavour, kernel.source);
        }
        join(&mut self.kernel.features, kernel.features);
        join(&mut self.kernel.cmdline, kernel.cmdline);
        join(&mut self.kernel.modules.keep, kernel.modules.keep);
        join(&mut self.kernel.modules.drop, kernel.modules.drop);
        join(&mut self.kernel.initrd.modules, kernel.initrd.modules);
        join(&mut self.firmware.keep, firmware.keep);
        self.files.extend(files);
        // The later word on a unit is the one that counts.
        let said: Vec<&String> = units.enable.iter().chain(&units.disable).chain(&units.mask).collect();
        for list in [&mut self.units.enable, &mut self.units.disable, &mut self.units.mask] {
            list.retain(|unit| !said.contains(&unit));
        }
        join(&mut self.units.enable, units.enable);
        join(&mut self.units.disable, units.disable);
        join(&mut self.units.mask, units.mask);
        self.sysctl.extend(sysctl);
        self.accounts.users.extend(accounts.users);
        self.accounts.groups.extend(accounts.groups);
        join(&mut self.drop.paths, drop.paths);
        join(&mut self.drop.keep, drop.keep);
        join(&mut self.drop.privileges, drop.privileges);
        self.alternative.retain(|old| !alternative.iter().any(|new| new.name == old.name));
        self.alternative.extend(alternative);
        let (mine, allow) = (&mut self.checks.allow, checks.allow);
        join(&mut mine.interpreters, allow.interpreters);
        join(&mut mine.libraries, allow.libraries);
        join(&mut mine.dlopen, allow.dlopen);
        join(&mut mine.dangling, allow.dangling);
        join(&mut mine.units, allow.units);
        join(&mut mine.listeners, allow.listeners);
        join(&mut mine.privileges, allow.privileges);
        join(&mut mine.world_writable, allow.world_writable);
        join(&mut mine.devices, allow.devices);
        self.disk.esp = disk.esp.or(self.disk.esp);
        self.disk.slot = disk.slot.or(self.disk.slot);
        self.disk.var = disk.var.or(self.disk.var);
        self.disk.compression = disk.compression.or(self.disk.compression);
        if let Some(k3s) = k3s {
            self.k3s.get_or_insert_default().merge(k3s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn layer(text: &str) -> Layer {
        parse("test.toml", &format!("schema = 1\n{text}")).unwrap()
    }

    #[test]
    fn later_layers_win_lists_join_and_removed_packages_go() {
        let mut base = layer(
            "[packages]\ninstall = [\"dash\", \"vim\"]\n[kernel]\nflavour = \"cloud\"\ncmdline = [\"quiet\"]\n[units]\nenable = [\"a.service\"]",
        );
        base.merge(layer(
            "[packages]\ninstall = [\"dash\", \"jq\"]\nremove = [\"vim\"]\n[kernel]\ncmdline = [\"debug\"]\n[units]\nmask = [\"a.service\"]",
        ));
        assert_eq!(base.packages.install, ["dash", "jq"]);
        assert_eq!(base.kernel.flavour, Some(Flavour::Cloud));
        assert_eq!(base.kernel.cmdline, ["quiet", "debug"]);
        assert_eq!((base.units.enable.len(), base.units.mask.len()), (0, 1));
    }

    #[test]
    fn sizes_are_read_with_units_and_nothing_else() {
        assert_eq!("2GiB".parse::<Size>().unwrap().bytes(), 2 << 30);
        assert_eq!(Size::mib(96).to_string(), "96MiB");
        for wrong in ["2", "2GB", "-1MiB", "0MiB", "99999999999999GiB", "1.5GiB", ""] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
