//! Has the image of a node drivers for its disks and network cards?
//!
//! An image that was built tells by the list of its files. For others it is known what Debian's cloud kernel leaves out; what a
//! profile's own filter of modules takes away is then seen in the run.

use std::collections::BTreeSet;
use std::path::Path;

use crate::manifest;
use crate::qemu::config::{Bus, NicModel};
use crate::scenario::problems::{Part, Problems, spot};
use crate::scenario::spec::Node;
use crate::spec::{Flavour, Profile};

/// The module that drives a disk on `bus`, and the word for it in a scenario.
fn disk_module(bus: Bus) -> (&'static str, &'static str) {
    match bus {
        Bus::VirtioBlk => ("virtio_blk", "virtio"),
        Bus::Nvme => ("nvme", "nvme"),
        Bus::Ahci => ("ahci", "ahci"),
        Bus::UsbStorage => ("usb_storage", "usb"),
    }
}

/// The same for a network card.
fn nic_module(model: NicModel) -> (&'static str, &'static str) {
    match model {
        NicModel::Virtio => ("virtio_net", "virtio"),
        NicModel::E1000e => ("e1000e", "e1000e"),
        NicModel::Igb => ("igb", "igb"),
    }
}

/// Modules that Debian's kernel 6.12 has built in, so that they are in no list of files.
fn built_in(flavour: Flavour) -> &'static [&'static str] {
    match flavour {
        Flavour::Cloud => &["nvme"],
        Flavour::Metal => &[],
    }
}

/// Modules that Debian's kernel 6.12 does not have: the cloud kernel knows no USB and no network card of hardware.
fn missing(flavour: Flavour) -> &'static [&'static str] {
    match flavour {
        Flavour::Cloud => &["usb_storage", "e1000e", "igb"],
        Flavour::Metal => &[],
    }
}

/// Adds a problem for each device of `node` that its image has no driver for.
pub(super) fn check(node: &Node, profile: &Profile, out: &Path, problems: &mut Problems<'_>) {
    let Some(flavour) = profile.layer.kernel.flavour else { return };
    let modules = modules(&out.join(format!("{}.json", profile.name)));
    let lacks = |module: &str| match &modules {
        Some(modules) => !modules.contains(module) && !built_in(flavour).contains(&module),
        None => missing(flavour).contains(&module),
    };
    let metal = |problem: &mut crate::scenario::problems::Problem| {
        if flavour == Flavour::Cloud {
            problem.hint("the kernel for hardware has more drivers: write `flavour = \"metal\"`");
        }
    };
    let initrd: BTreeSet<String> =
        profile.layer.kernel.initrd.modules.iter().map(|m| m.replace('-', "_")).collect();
    for (index, disk) in node.disks.iter().enumerate() {
        let (module, word) = disk_module(disk.bus);
        let at: Vec<Part> = spot!["node", node.name.as_str(), "disks", index, "bus"];
        if lacks(module) {
            metal(
                problems
                    .add(at, format!("the image of `{}` has no driver for disks on {word}", profile.name)),
            );
        } else if index == 0 && !initrd.contains(module) && !built_in(flavour).contains(&module) {
            problems
                .add(
                    at,
                    format!(
                        "the initrd of `{}` has no driver for disks on {word}, so it cannot boot from one",
                        profile.name
                    ),
                )
                .hint("add it to `kernel.initrd.modules` of the profile or a layer");
        }
    }
    for (index, nic) in node.nics.iter().enumerate() {
        let (module, word) = nic_module(nic.model);
        if lacks(module) {
            let at = spot!["node", node.name.as_str(), "nics", index, "model"];
            metal(problems.add(
                at,
                format!("the image of `{}` has no driver for the network card {word}", profile.name),
            ));
        }
    }
}

/// The modules in the root of a built image, with `_` for `-`; `None` if it was not built or its list is damaged.
fn modules(manifest: &Path) -> Option<BTreeSet<String>> {
    let files = manifest::read_files(manifest).ok()?;
    let name = |path: &String| Some(path.rsplit('/').next()?.split_once(".ko")?.0.replace('-', "_"));
    Some(files.keys().filter(|path| path.starts_with("/usr/lib/modules/")).filter_map(name).collect())
}
