//! What changes at run time, and where: the root is read-only, /var holds all state.
//!
//! ```text
//! /var              the node's own file system, made by systemd-repart on first boot on the disk that holds the root
//! /efi              the ESP of that disk, mounted on first use
//! /root, /home …    links into /var
//! /etc              read-only; the few names that must change are links to /run or /var
//! /dev/kiln/NAME    links to the partitions of that disk, by a udev rule that the initrd writes: a second disk with the same
//!                   partition names is never touched
//! ```
//!
//! What packages ship below /var would be hidden by the mount: it is kept in /usr/share/factory and made again at boot by
//! systemd-tmpfiles ([`factory`]).

use std::fmt::Write;

use super::step::{StepError, put};
use crate::spec::Size;
use crate::tree::{Entry, Kind, Tree, TreePath};

const OWNER: &str = "kiln:state";

/// Folders that must be there to be mounted on, or that programs expect.
const FOLDERS: [(&str, u32); 9] = [
    ("dev", 0o755),
    ("efi", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("usr", 0o755),
];

/// Top-level names that are state, and where on /var they lie.
const LINKS: [(&str, &str); 4] =
    [("root", "var/roothome"), ("home", "var/home"), ("srv", "var/srv"), ("opt", "var/opt")];

/// Names in /etc that change at run time.
const ETC_LINKS: [(&str, &str); 3] = [
    ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
    ("etc/mtab", "../proc/self/mounts"),
    // Written by kiln-identity.service from the template and the credential passwd.hashed-password.root.
    ("etc/shadow", "../run/kiln/shadow"),
];

/// Makes mount points, links to /var and /run, fstab and the partition definitions for first boot.
pub fn state(tree: &mut Tree, slot: Size, var: Size) -> Result<(), StepError> {
    for (path, mode) in FOLDERS {
        if !tree.get(path).is_some_and(Entry::is_dir) {
            put(tree, path, Entry::dir(mode, OWNER))?;
        }
    }
    for (path, target) in LINKS {
        tree.remove(path);
        put(tree, path, Entry::symlink(target, OWNER))?;
    }
    // The password file is made at boot from this template and the node's credential.
    if let Some(shadow) = tree.get("etc/shadow").cloned() {
        put(tree, "usr/share/kiln/shadow", shadow)?;
    }
    for (path, target) in ETC_LINKS {
        tree.remove(path);
        put(tree, path, Entry::symlink(target, OWNER))?;
    }
    // Empty, not missing: systemd mounts the transient id over it (machine-id(5), "first boot semantics").
    put(tree, "etc/machine-id", Entry::file(0o444, "", OWNER))?;
    for (path, target) in [("var/run", "/run"), ("var/lock", "/run/lock")] {
        tree.remove(path);
        put(tree, path, Entry::symlink(target, OWNER))?;
    }
    put(tree, "var/lib/dbus/machine-id", Entry::symlink("/etc/machine-id", OWNER))?;
    // The time counts from the start of systemd, and on first boot systemd-repart writes a whole ext4 meanwhile: an emulated
    // node on a busy host took more than the usual 90 s for it.
    let fstab = "# The root is mounted by the initrd. /dev/kiln/* are partitions of the disk that holds it.\n\
                 /dev/kiln/var /var ext4 nosuid,nodev,x-systemd.device-timeout=300s,x-systemd.requires=systemd-repart.service,x-systemd.growfs 0 2\n\
                 /dev/kiln/esp /efi vfat umask=0077,nosuid,nodev,noexec,noauto,nofail,x-systemd.automount,x-systemd.idle-timeout=60s 0 0\n";
    put(tree, "etc/fstab", Entry::file(0o644, fstab, OWNER))?;
    for (name, text) in repart(slot, var) {
        put(tree, &format!("usr/lib/repart.d/{name}.conf"), Entry::file(0o644, text, OWNER))?;
    }
    Ok(())
}

/// Partition definitions (repart.d(5)), in the order of the disk. The first three are matched with what the image brings;
/// root-A grows to its slot, the rest is made on first boot.
fn repart(slot: Size, var: Size) -> [(&'static str, String); 6] {
    let hash = verity_slot(slot);
    let (slot, var) = (slot.bytes(), var.bytes());
    let fixed = |kind: &str, bytes: u64, label: &str| {
        format!("[Partition]\nType={kind}\n{label}SizeMinBytes={bytes}\nSizeMaxBytes={bytes}\n")
    };
    [
        ("10-esp", "[Partition]\nType=esp\n".to_owned()),
        ("20-verity-a", "[Partition]\nType=root-verity\n".to_owned()),
        ("30-root-a", format!("[Partition]\nType=root\nSizeMinBytes={slot}\nSizeMaxBytes={slot}\n")),
        // The label `_empty` is systemd-sysupdate's word for a slot that holds no version (sysupdate.d(5)).
        ("40-verity-b", fixed("root-verity", hash, "Label=_empty\nReadOnly=yes\n")),
        ("50-root-b", fixed("root", slot, "Label=_empty\nReadOnly=yes\n")),
        (
            "60-var",
            format!(
                "[Partition]\nType=var\nLabel=var\nFormat=ext4\nSizeMinBytes={var}\nGrowFileSystem=yes\n"
            ),
        ),
    ]
}

/// Size of the hash partition of a slot: the hash tree of a full slot (one 32-byte digest per 4096-byte block, and the levels
/// above: less than 1/127 of the data), the superblock, rounded up to 1 MiB.
pub fn verity_slot(slot: Size) -> u64 {
    let bytes = slot.bytes() / 127 + 8192;
    bytes.next_multiple_of(1 << 20)
}

/// Moves what packages ship below /var to /usr/share/factory/var, and writes the tmpfiles.d(5) lines that make it again on an
/// empty /var. Says how many entries moved.
pub fn factory(tree: &mut Tree) -> Result<usize, StepError> {
    let below: Vec<(TreePath, Entry)> = tree.below("var").map(|(p, e)| (p.clone(), e.clone())).collect();
    let mut lines = String::from(
        "# What packages ship below /var, made again on a node's own /var.\n\
         d /var/roothome 0700 root root -\nd /var/home 0755 root root -\nd /var/srv 0755 root root -\nd /var/opt 0755 root root -\n",
    );
    let mut moved = 0;
    for (path, entry) in below {
        let meta = &entry.meta;
        // Spaces and the like are escaped as in unit files; `%` would begin a specifier.
        let name = path.replace('\\', "\\\\").replace('%', "%%").replace(' ', "\\x20");
        let line = match &entry.kind {
            Kind::Dir => format!("d /{name} {:04o} {} {} -", meta.mode, meta.uid, meta.gid),
            Kind::Symlink { target } => format!("L /{name} - - - - {}", target.replace('%', "%%")),
            Kind::File(_) => {
                format!("C /{name} {:04o} {} {} - /usr/share/factory/{name}", meta.mode, meta.uid, meta.gid)
            }
            Kind::Char { .. } | Kind::Block { .. } | Kind::Fifo => {
                format!("# /{name} is a device or pipe and is not made again")
            }
        };
        writeln!(lines, "{line}").expect("writing to a String cannot fail");
        if matches!(entry.kind, Kind::File(_)) {
            put(tree, &format!("usr/share/factory/{path}"), entry)?;
        }
        tree.remove(&path);
        moved += 1;
    }
    put(tree, "usr/lib/tmpfiles.d/kiln-factory.conf", Entry::file(0o644, lines, OWNER))?;
    // Services with PrivateTmp= that start before /var is mounted need the folder to be there.
    put(tree, "var/tmp", Entry::dir(0o1777, OWNER))?;
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_packages_ship_below_var_is_made_again_with_its_owner() {
        let mut tree = Tree::new();
        let mut file = Entry::file(0o640, "x", "p");
        file.meta.gid = 42;
        tree.insert(TreePath::new("var/lib/p/file").unwrap(), file).unwrap();
        tree.insert(TreePath::new("var/lock").unwrap(), Entry::symlink("/run/lock", "p")).unwrap();
        assert_eq!(factory(&mut tree).unwrap(), 4);
        assert_eq!(tree.below("var").map(|(p, _)| p.as_str()).collect::<Vec<_>>(), ["var/tmp"]);
        let text = super::super::step::text(&tree, "usr/lib/tmpfiles.d/kiln-factory.conf").unwrap().unwrap();
        assert!(text.contains("d /var/lib/p 0755 0 0 -\n"), "{text}");
        assert!(text.contains("C /var/lib/p/file 0640 0 42 - /usr/share/factory/var/lib/p/file\n"), "{text}");
        assert!(text.contains("L /var/lock - - - - /run/lock\n"), "{text}");
        assert!(tree.get("usr/share/factory/var/lib/p/file").is_some());
    }

    #[test]
    fn the_hash_partition_has_room_for_a_full_slot() {
        // 2 GiB: 524288 blocks -> 4096 + 32 + 1 hash blocks and a superblock block.
        assert!(verity_slot(Size::mib(2048)) >= (4096 + 32 + 1 + 1) * 4096);
    }
}
