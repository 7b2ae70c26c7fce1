//! The initrd: busybox, dmsetup, the drivers of boot disks, and one script.
//!
//! A whole systemd in the initrd cost 30 of the 57 s to a ready node under TCG (110 MB unpacked). What a verified root needs
//! before it is mounted is one device-mapper table, so that is all this initrd does: [`SCRIPT`].
//!
//! A kernel with its drivers built in could do without (`dm-mod.create=`, Linux, admin-guide/device-mapper/dm-init.rst). Measured with
//! the kernel `vm` under TCG, systemd begins 2.9 s after the kernel then, and 3.7 s with this initrd. It is kept all the same: it waits for
//! disks that come late, takes the disk that has the root's partition names, names that disk's other partitions for `/dev/kiln`, and
//! hands the credentials of the ESP over. Such a kernel's initrd has no module, and asks for none.
//!
//! A machine that `kiln pxe` boots over the network has the same initrd. [`NETBOOT`] then puts the disk image into memory as a loop device,
//! and from there on it is a disk like any other: the same partitions, the same verification, the same first boot.

use std::collections::{BTreeMap, BTreeSet};

use super::step::{StepError, put};
use crate::digest::{Digest, Hasher};
use crate::tree::{Entry, Tree, TreePath};
use crate::unpack::Unpacked;

/// The first program that the kernel starts.
pub const SCRIPT: &str = include_str!("init");

/// The part of it for a machine that was booted over the network.
pub const NETBOOT: &str = include_str!("netboot");

const OWNER: &str = "kiln:initrd";

/// The digest of both scripts.
pub fn scripts() -> Digest {
    let mut hasher = Hasher::new();
    [SCRIPT, NETBOOT].iter().for_each(|text| hasher.update(Digest::of(text.as_bytes()).as_bytes()));
    hasher.finish()
}

/// The commands that [`SCRIPT`] and [`NETBOOT`] use, all of them busybox.
const APPLETS: [&str; 34] = [
    "[",
    "base64",
    "cat",
    "chmod",
    "chroot",
    "cp",
    "cut",
    "echo",
    "find",
    "grep",
    "head",
    "ifconfig",
    "losetup",
    "ls",
    "mkdir",
    "modprobe",
    "mount",
    "od",
    "readlink",
    "reboot",
    "rm",
    "route",
    "sh",
    "sleep",
    "sort",
    "stat",
    "switch_root",
    "tail",
    "tar",
    "tr",
    "truncate",
    "umount",
    "wget",
    "xargs",
];

/// Programs that are not busybox, with the libraries they need.
const PROGRAMS: [&str; 1] = ["usr/sbin/dmsetup"];

/// Composes the initrd from the packages of the tool set `initrd` and the module files in `modules`.
pub fn initrd(packages: &[Unpacked], modules: &Tree) -> Result<Tree, StepError> {
    let mut tree = Tree::new();
    for dir in ["dev", "proc", "sys", "run", "sysroot", "bin", "usr/lib"] {
        put(&mut tree, dir, Entry::dir(0o755, OWNER))?;
    }
    // The kernel opens /dev/console for init before devtmpfs is mounted (init/main.c, console_on_rootfs).
    let mut console = Entry::dir(0o600, OWNER);
    console.kind = crate::tree::Kind::Char { major: 5, minor: 1 };
    put(&mut tree, "dev/console", console)?;
    for (link, target) in [
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("sbin", "bin"),
        ("usr/bin", "../bin"),
        ("usr/sbin", "../bin"),
    ] {
        put(&mut tree, link, Entry::symlink(target, OWNER))?;
    }
    put(&mut tree, "init", Entry::file(0o755, SCRIPT, OWNER))?;
    put(&mut tree, "netboot", Entry::file(0o644, NETBOOT, OWNER))?;

    let find = |path: &str| packages.iter().find_map(|p| p.tree.get(path).map(|entry| (p, entry)));
    let missing = |what: &str| StepError::Missing {
        what: format!("/{what}"),
        remedy: "it is to come from the tool set `initrd` in images/tools.toml".to_owned(),
    };
    let (_, busybox) = find("usr/bin/busybox").ok_or_else(|| missing("usr/bin/busybox"))?;
    put(&mut tree, "bin/busybox", busybox.clone())?;
    for applet in APPLETS {
        put(&mut tree, &format!("bin/{applet}"), Entry::symlink("busybox", OWNER))?;
    }
    let libraries = libraries(packages);
    let mut todo: Vec<TreePath> = Vec::new();
    for program in PROGRAMS {
        let (_, entry) = find(program).ok_or_else(|| missing(program))?;
        let path = TreePath::new(program).expect("a constant path is valid");
        put(&mut tree, &format!("bin/{}", path.name()), entry.clone())?;
        todo.push(path);
    }
    let mut done = BTreeSet::new();
    while let Some(path) = todo.pop() {
        let fact = |p: &'_ Unpacked| Some(p.facts.get(&p.tree.get(&path)?.content()?.digest())?.clone());
        let Some(elf) = packages.iter().find_map(fact) else { continue };
        let interpreter = elf.interpreter.iter().map(|i| i.rsplit('/').next().unwrap_or(i).to_owned());
        for name in interpreter.chain(elf.needed.iter().cloned()) {
            if !done.insert(name.clone()) {
                continue;
            }
            let (package, real) = libraries.get(name.as_str()).ok_or_else(|| missing(&name))?;
            let entry = package.tree.get(real).ok_or_else(|| missing(real))?;
            put(&mut tree, &format!("usr/lib/{name}"), entry.clone())?;
            if elf.interpreter.as_deref().is_some_and(|i| i.ends_with(&name)) {
                let wanted =
                    elf.interpreter.as_deref().unwrap_or_default().trim_start_matches('/').to_owned();
                let at = wanted.strip_prefix("lib64/").map(|rest| format!("usr/lib64/{rest}"));
                if let Some(at) = at {
                    put(&mut tree, &at, Entry::symlink(format!("../lib/{name}"), OWNER))?;
                }
            }
            todo.push((*real).clone());
        }
    }
    for (path, entry) in modules.iter() {
        put(&mut tree, path, entry.clone())?;
    }
    Ok(tree)
}

/// Libraries by soname or file name: which package has it, and where.
fn libraries(packages: &[Unpacked]) -> BTreeMap<&str, (&Unpacked, &TreePath)> {
    let mut libraries = BTreeMap::new();
    for package in packages {
        for (path, entry) in package.tree.iter() {
            let elf = entry.content().and_then(|content| package.facts.get(&content.digest()));
            if let Some(elf) = elf.filter(|elf| elf.dynamic) {
                for name in elf.soname.as_deref().into_iter().chain([path.name()]) {
                    libraries.entry(name).or_insert((package, path));
                }
            }
        }
    }
    libraries
}
