//! What is on a disk now, by reading it: partition tables, file systems, and what belongs to a larger whole.
//!
//! The second kind is what hurts most to overwrite, for it looks like nothing on its own: a disk of a RAID, a pool or a volume group that
//! is not running at the moment. Sources of the formats stand beside them; `blkid` of util-linux judges in the tests.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;

use super::device::Disk;
use crate::image::fat;
use crate::image::gpt::{self, Table};

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A partition table.
    Table,
    /// A file system or swap space, which whoever says that this disk is meant means, too.
    Content,
    /// Part of something larger, or locked: refused unless it is named.
    Member,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// Its word, as in `--overwrite lvm`.
    pub kind: &'static str,
    /// How much it matters.
    pub class: Class,
    /// What it is, for people.
    pub text: String,
    /// The partition that it is on, as in `sda1`; `None` for the whole disk.
    pub part: Option<String>,
}

/// Where a magic number stands.
#[derive(Debug, Clone, Copy)]
enum At {
    /// So many bytes from the start.
    Start(u64),
    /// So many bytes before the end, down to a multiple of the second number.
    End(u64, u64),
}

/// A magic number that says it all.
struct Magic {
    kind: &'static str,
    class: Class,
    text: &'static str,
    at: At,
    bytes: &'static [u8],
}

const fn content(kind: &'static str, at: u64, bytes: &'static [u8]) -> Magic {
    Magic { kind, class: Class::Content, text: kind, at: At::Start(at), bytes }
}

const fn member(kind: &'static str, text: &'static str, at: At, bytes: &'static [u8]) -> Magic {
    Magic { kind, class: Class::Member, text, at, bytes }
}

/// Little-endian magic of md's superblocks, `MD_SB_MAGIC` 0xa92b4efc of linux/raid/md_p.h.
const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
/// The UUID by which bcache and bcachefs know their superblocks, linux/bcache.h (`BCACHE_MAGIC`).
const BCACHE: &[u8] =
    &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];

const MAGICS: [Magic; 31] = [
    content("xfs", 0, b"XFSB"), // XFS Algorithms & Data Structures, "Superblocks"
    content("btrfs", 65_536 + 64, b"_BHRfS_M"), // linux/btrfs_tree.h, struct btrfs_super_block
    content("ntfs", 3, b"NTFS    "), // linux/fs/ntfs3/ntfs.h, struct NTFS_BOOT
    content("exfat", 3, b"EXFAT   "), // exFAT specification of Microsoft, 3.1
    content("iso9660", 32_769, b"CD001"), // ECMA-119, 9.1
    content("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]), // linux/fs/erofs/erofs_fs.h
    content("squashfs", 0, b"hsqs"), // linux/fs/squashfs/squashfs_fs.h
    content("f2fs", 1024, &[0x10, 0x20, 0xf5, 0xf2]), // linux/f2fs_fs.h
    content("verity", 0, b"verity\0\0"), // cryptsetup wiki, DMVerity
    content("swap", 4096 - 10, b"SWAPSPACE2"), // linux/swap.h, for each size of a page
    content("swap", 8192 - 10, b"SWAPSPACE2"),
    content("swap", 16_384 - 10, b"SWAPSPACE2"),
    content("swap", 65_536 - 10, b"SWAPSPACE2"),
    member("hibernation", "a suspended system in swap space", At::Start(4096 - 10), b"S1SUSPEND"), // kernel/power/swap.c
    // lib/format_text/layout.h of LVM2: the label is in one of the first four sectors.
    member("lvm", "physical volume of LVM", At::Start(0), b"LABELONE"),
    member("lvm", "physical volume of LVM", At::Start(512), b"LABELONE"),
    member("lvm", "physical volume of LVM", At::Start(1024), b"LABELONE"),
    member("lvm", "physical volume of LVM", At::Start(1536), b"LABELONE"),
    // md(4), "Sub-block": 1.1 at the start, 1.2 at 4 KiB, 1.0 and 0.90 near the end.
    member("raid", "member of a Linux RAID (1.1)", At::Start(0), MD),
    member("raid", "member of a Linux RAID (1.2)", At::Start(4096), MD),
    member("raid", "member of a Linux RAID (1.0)", At::End(8192, 4096), MD),
    member("raid", "member of a Linux RAID (0.90)", At::End(65_536, 65_536), MD),
    // mdadm's super-intel.c: the anchor is in the last sector but one. SNIA DDF 2.0, 4.2: the anchor is the last sector.
    member("raid", "member of an Intel RAID", At::End(1024, 512), b"Intel Raid ISM Cfg Sig. "),
    member("raid", "member of a DDF RAID", At::End(512, 512), &[0xde, 0x11, 0xde, 0x11]),
    member("ceph", "Ceph BlueStore", At::Start(0), b"bluestore block device\n"), // ceph src/os/bluestore/bluestore_common.h
    // LUKS2 On-Disk Format Specification, 2.1; the second header if the first is gone.
    member("luks", "locked by LUKS", At::Start(0), b"LUKS\xba\xbe"),
    member("luks", "locked by LUKS", At::Start(16_384), b"SKUL\xba\xbe"),
    member("luks", "locked by LUKS", At::Start(32_768), b"SKUL\xba\xbe"),
    member("bcache", "member of bcache", At::Start(4096 + 24), BCACHE),
    member("bitlocker", "locked by BitLocker", At::Start(3), b"-FVE-FS-"), // libbde, "Volume header"
    member("vmfs", "a datastore of VMware", At::Start(1 << 20), &[0x0d, 0xd0, 0x01, 0xc0]), // libvmfs, lvm.h
];

/// Reads what is on `disk`, as far as it can be read: nothing that is on a medium is an error.
///
/// # Errors
/// It cannot be opened; mostly for want of rights.
pub fn read(disk: &Disk) -> io::Result<Vec<Signature>> {
    let mut file = fs_err::File::open(&disk.path)?;
    let parts: Vec<(String, u64, u64)> =
        disk.partitions.iter().map(|part| (part.name.clone(), part.offset, part.size)).collect();
    Ok(of_disk(&mut file, disk.size, disk.sector, &disk.name, &parts))
}

/// What is on the file or device at `path`, which has no partitions that the kernel knows.
///
/// # Errors
/// It cannot be opened.
pub fn of_file(path: &Path, sector: u32) -> io::Result<Vec<Signature>> {
    let mut file = fs_err::File::open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(of_disk(&mut file, size, sector, &name, &[]))
}

/// What is on `disk`, of whose partitions the kernel knows `known`: name, first byte and bytes of each.
pub(super) fn of_disk(
    disk: &mut (impl Read + Seek),
    size: u64,
    sector: u32,
    name: &str,
    known: &[(String, u64, u64)],
) -> Vec<Signature> {
    let mut found = Vec::new();
    let table = table(disk, size, sector, &mut found);
    found.extend(contents(&mut Window { disk, from: 0, length: size, at: 0 }, None));
    // The kernel may not have read the table, and the table may not be what the kernel has.
    let mut parts: BTreeMap<(u64, u64), String> = BTreeMap::new();
    for (number, part) in (1..).zip(table.iter().flat_map(|table| &table.partitions)) {
        let digit = name.ends_with(|c: char| c.is_ascii_digit());
        parts.insert((part.offset, part.size), format!("{name}{}{number}", if digit { "p" } else { "" }));
    }
    for (name, offset, length) in known {
        parts.insert((*offset, *length), name.clone());
    }
    for ((from, length), name) in parts {
        if from.checked_add(length).is_some_and(|end| end <= size) {
            found.extend(contents(&mut Window { disk, from, length, at: 0 }, Some(&name)));
        }
    }
    found
}

/// The partition table, and whether it is that of a node.
fn table(disk: &mut (impl Read + Seek), size: u64, sector: u32, found: &mut Vec<Signature>) -> Option<Table> {
    let mut say = |kind, text: String| {
        found.push(Signature { kind, class: Class::Table, text, part: None });
    };
    let mut head = vec![0; usize::try_from(size.min(1 << 20)).unwrap_or(0)];
    disk.rewind().ok()?;
    disk.read_exact(&mut head).ok()?;
    // A stick with an image for the other sector size, too.
    let tables: Vec<Table> =
        [sector, 512, 4096].iter().filter_map(|sector| gpt::read_primary(&head, *sector).ok()).collect();
    if let Some(table) = tables.into_iter().next() {
        match node(disk, &table) {
            Some(version) => say("kiln", format!("a node of kiln, version {version}")),
            None => {
                let names: Vec<&str> = table
                    .partitions
                    .iter()
                    .map(|part| part.name.as_str())
                    .filter(|n| !n.is_empty())
                    .collect();
                let count = table.partitions.len();
                let names = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
                say("gpt", format!("GPT, {count} partitions{names}"));
            }
        }
        return Some(table);
    }
    // UEFI Specification 2.10, 5.3.2: the header at the end counts if that at the beginning is damaged.
    for sector in [512, 4096] {
        let mut header = [0; 8];
        let last = size.checked_sub(sector)?;
        let read = disk.seek(SeekFrom::Start(last)).and_then(|_| disk.read_exact(&mut header));
        if read.is_ok() && &header == b"EFI PART" {
            say("gpt", "GPT, damaged".to_owned());
            return None;
        }
    }
    // A boot sector of FAT or NTFS ends like a table; a table has entries that are active or not, and a first one of some size.
    let entries: Vec<&[u8]> = head.get(446..510)?.chunks_exact(16).collect();
    let used = entries.iter().filter(|entry| entry[4] != 0).count();
    let sane = entries.iter().all(|entry| entry[0] & 0x7F == 0)
        && entries.iter().filter(|e| e[4] != 0).all(|e| e[12..16] != [0; 4] && e[8..12] != [0; 4]);
    if head[510..512] == [0x55, 0xAA] && used > 0 && sane {
        say("mbr", format!("MBR, {used} partitions"));
    }
    None
}

/// The version on a disk that kiln made: partitions named after the hash, and a kernel of its name on the ESP.
fn node(disk: &mut (impl Read + Seek), table: &Table) -> Option<String> {
    let named = |begin: &str| table.partitions.iter().any(|part| part.name.starts_with(begin));
    let esp = table.partitions.iter().find(|part| part.kind == gpt::ESP)?;
    if !named("root-") || !named("verity-") {
        return None;
    }
    let window = Window { disk, from: esp.offset, length: esp.size, at: 0 };
    let nodes = fat::Reader::new(window).and_then(|mut reader| reader.list()).unwrap_or_default();
    let mut versions: Vec<String> = nodes
        .iter()
        .filter_map(|node| node.path.strip_prefix("EFI/Linux/kiln_")?.strip_suffix(".efi"))
        .map(|name| name.split('+').next().unwrap_or(name).to_owned())
        .collect();
    versions.sort();
    Some(if versions.is_empty() { "not known".to_owned() } else { versions.join(", ") })
}

/// What is on a disk or partition, without its partition table.
fn contents(window: &mut Window<'_, impl Read + Seek>, part: Option<&str>) -> Vec<Signature> {
    let mut found: Vec<Signature> = Vec::new();
    let mut say = |kind, class, text: String| {
        // A disk of RAID can have several superblocks of the same kind; one line is enough.
        if !found.iter().any(|old| old.kind == kind) {
            found.push(Signature { kind, class, text, part: part.map(str::to_owned) });
        }
    };
    for magic in &MAGICS {
        let at = match magic.at {
            At::Start(at) => Some(at),
            At::End(before, unit) => window.length.checked_sub(before).map(|at| at / unit * unit),
        };
        if at.and_then(|at| window.bytes(at, magic.bytes.len())).is_some_and(|bytes| bytes == magic.bytes) {
            say(magic.kind, magic.class, magic.text.to_owned());
        }
    }
    if let Some(ext) = window.bytes(1024, 1024).and_then(|block| ext(&block)) {
        say(ext, Class::Content, ext.to_owned());
    }
    if let Some(boot) = window.bytes(0, 512).filter(|boot| is_fat(boot)) {
        say("vfat", Class::Content, if &boot[82..87] == b"FAT32" { "FAT32" } else { "FAT" }.to_owned());
    }
    if zfs(window) {
        say("zfs", Class::Member, "member of a ZFS pool".to_owned());
    }
    found
}

/// ext2, ext3 or ext4, by the features that the others do not have (linux/fs/ext4/ext4.h, `EXT4_FEATURE_*`).
fn ext(block: &[u8]) -> Option<&'static str> {
    const HAS_JOURNAL: u32 = 0x4;
    const EXT3_INCOMPAT: u32 = 0x2 | 0x4 | 0x10;
    const EXT3_RO_COMPAT: u32 = 0x1 | 0x2 | 0x4;
    let u32_at = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    if block[56..58] != [0x53, 0xEF] {
        return None;
    }
    let (compat, incompat, ro_compat) = (u32_at(92), u32_at(96), u32_at(100));
    Some(match () {
        () if incompat & !EXT3_INCOMPAT != 0 || ro_compat & !EXT3_RO_COMPAT != 0 => "ext4",
        () if compat & HAS_JOURNAL != 0 => "ext3",
        () => "ext2",
    })
}

/// A boot sector of FAT: Microsoft FAT specification of August 2005, "Boot sector".
fn is_fat(boot: &[u8]) -> bool {
    let sector = u16::from_le_bytes([boot[11], boot[12]]);
    let named =
        &boot[82..87] == b"FAT32" || [b"FAT12", b"FAT16", b"FAT  "].iter().any(|name| &boot[54..59] == *name);
    boot[510..512] == [0x55, 0xAA]
        && named
        && matches!(sector, 512 | 1024 | 2048 | 4096)
        && boot[13].is_power_of_two()
        && matches!(boot[16], 1 | 2)
}

/// A ZFS label: OpenZFS On-Disk Specification, chapter 1. Four labels of 256 KiB, two at each end; the second half of each is an array of
/// uberblocks of at least 1 KiB, which begin with 0x00bab10c in the byte order of the machine that wrote them.
fn zfs(window: &mut Window<'_, impl Read + Seek>) -> bool {
    const LABEL: u64 = 256 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    let Some(end) = window.length.checked_sub(2 * LABEL).map(|end| end / LABEL * LABEL) else { return false };
    [0, LABEL, end, end + LABEL].into_iter().any(|label| {
        let blocks = window.bytes(label + LABEL / 2, 128 << 10).unwrap_or_default();
        blocks.chunks_exact(1024).any(|block| {
            let magic: [u8; 8] = block[..8].try_into().expect("8 of 1024 bytes");
            magic == MAGIC.to_le_bytes() || magic == MAGIC.to_be_bytes()
        })
    })
}

/// A part of a disk as if it were all.
struct Window<'a, D> {
    disk: &'a mut D,
    from: u64,
    length: u64,
    at: u64,
}

impl<D: Read + Seek> Window<'_, D> {
    /// Bytes at a place, if they can be read.
    fn bytes(&mut self, at: u64, length: usize) -> Option<Vec<u8>> {
        let end = at.checked_add(length as u64)?;
        if end > self.length {
            return None;
        }
        let mut bytes = vec![0; length];
        self.disk.seek(SeekFrom::Start(self.from.checked_add(at)?)).ok()?;
        self.disk.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }
}

impl<D: Read + Seek> Read for Window<'_, D> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let length = bytes.len().min(left);
        self.disk.seek(SeekFrom::Start(self.from + self.at))?;
        let n = self.disk.read(&mut bytes[..length])?;
        self.at += n as u64;
        Ok(n)
    }
}

impl<D: Read + Seek> Seek for Window<'_, D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::End(offset) => (self.length, offset),
            SeekFrom::Current(offset) => (self.at, offset),
        };
        self.at = base.checked_add_signed(offset).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn kinds(disk: &[u8]) -> Vec<&'static str> {
        let size = disk.len() as u64;
        of_disk(&mut Cursor::new(disk), size, 512, "sda", &[]).iter().map(|found| found.kind).collect()
    }

    #[test]
    fn each_magic_number_is_found_in_its_place_and_only_there() {
        let size = 8 << 20;
        for magic in &MAGICS {
            let at = match magic.at {
                At::Start(at) => at,
                At::End(before, unit) => (size - before) / unit * unit,
            };
            let mut disk = vec![0; size as usize];
            disk[at as usize..][..magic.bytes.len()].copy_from_slice(magic.bytes);
            assert_eq!(kinds(&disk), [magic.kind], "{}", magic.text);
            disk[at as usize] ^= 1;
            assert!(kinds(&disk).is_empty(), "{}", magic.text);
        }
        assert!(kinds(&[]).is_empty() && kinds(&[0; 511]).is_empty());
    }

    #[test]
    fn labels_of_zfs_are_found_at_both_ends_and_in_both_byte_orders() {
        let size = (9 << 20) + 5000;
        let end = size / (256 << 10) * (256 << 10);
        for (at, bytes) in [
            (128 << 10, 0x00ba_b10c_u64.to_le_bytes()),
            ((384 << 10) + 3 * 1024, 0x00ba_b10c_u64.to_be_bytes()),
            (end - (384 << 10), 0x00ba_b10c_u64.to_le_bytes()),
            (end - 1024, 0x00ba_b10c_u64.to_le_bytes()),
        ] {
            let mut disk = vec![0; size];
            disk[at..at + 8].copy_from_slice(&bytes);
            assert_eq!(kinds(&disk), ["zfs"], "{at}");
        }
    }

    #[test]
    fn what_is_on_partitions_is_found_although_the_kernel_does_not_know_them() {
        let mut disk = gpt::tests_disk();
        let table = gpt::read_primary(&disk, 512).unwrap();
        let second = table.partitions[1].offset as usize;
        disk[second..second + 6].copy_from_slice(b"LUKS\xba\xbe");
        let size = disk.len() as u64;
        let found = of_disk(&mut Cursor::new(&disk), size, 512, "nvme0n1", &[]);
        assert_eq!(found[0].kind, "gpt");
        assert!(found[0].text.starts_with("GPT, 3 partitions: esp, "), "{}", found[0].text);
        assert_eq!(
            (found[1].kind, found[1].class, found[1].part.as_deref()),
            ("luks", Class::Member, Some("nvme0n1p2"))
        );
        disk[512..1024].fill(0);
        assert_eq!(kinds(&disk)[0], "gpt", "the backup is one, too");
    }

    proptest! {
        #[test]
        fn nothing_on_a_disk_makes_the_reader_panic(
            bytes in proptest::collection::vec((0_usize..70_000, any::<u8>()), 0..100), size in 0_usize..300_000,
        ) {
            let mut disk = gpt::tests_disk();
            disk.truncate(size.max(70_000));
            for (at, byte) in bytes {
                disk[at] = byte;
            }
            kinds(&disk);
        }
    }
}
