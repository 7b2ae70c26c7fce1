//! The disk: partitions with their contents, joined to one raw image whose digest is known when it is written.
//!
//! ```text
//! 0       1 MiB                                                          end - 1 MiB
//! GPT     esp            verity-HASH              root-HASH              backup GPT
//!         FAT32: UKI     hash tree                erofs, last so that it can grow
//! ```
//!
//! [`node_slots`] says what a node's disk holds, [`write`](fn@write) joins any slots. Holes of the contents stay holes and pieces of
//! zeros become holes. The table comes last: until everything else is on disk, nothing would take the file for a disk. Its bytes
//! are known from the start, so SHA-256 runs over the disk in order while the contents are copied, in one pass.
//!
//! The contents are read and written rather than shared by `copy_file_range`, since every byte passes the hash anyway.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use uuid::{Uuid, uuid};

use super::gpt::{self, GptError, Table, Wanted};
use super::sparse::{self, Run, Source};
use super::verity::RootHash;
use crate::digest::{Digest, Hasher};

/// The name space of the GUIDs that are derived from a root hash. Changing it changes every image.
const NAMES: Uuid = uuid!("6d7ad98f-3c3b-4d0b-9a53-1f5f7a0c2e41");
/// Raised when the same parts make other bytes.
pub const VERSION: u32 = 1;
/// Pieces of zeros from this size on are left out: a common block size of a hole.
const HOLE: usize = 64 * 1024;

/// A partition and what it holds.
#[derive(Debug, Clone)]
pub struct Slot {
    /// The partition; it becomes as large as its contents if those are larger.
    pub partition: Wanted,
    /// A file with its contents; what lies behind them in the partition is zero.
    pub content: PathBuf,
}

/// A machine that an image is for, as far as partition types differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64, Debian's amd64.
    X86_64,
    /// 64-bit ARM, Debian's arm64.
    Arm64,
}

/// The parts of a node's disk.
#[derive(Debug, Clone)]
pub struct Node {
    /// Fixes the types of root and hash tree.
    pub architecture: Architecture,
    /// The hash over the root file system; all GUIDs follow from it.
    pub root_hash: RootHash,
    /// File with the EFI system partition.
    pub esp: PathBuf,
    /// File with the hash tree.
    pub verity: PathBuf,
    /// File with the root file system.
    pub root: PathBuf,
    /// Least size of the hash tree's partition in bytes, for later and larger versions; 0 for what is needed now.
    pub verity_size: u64,
    /// Least size of the root partition in bytes; 0 for what is needed now.
    pub root_size: u64,
}

/// A disk that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its partitions.
    pub table: Table,
    /// SHA-256 of all its bytes, holes read as zeros.
    pub digest: Digest,
}

/// Why a disk cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The partitions make no table.
    #[error(transparent)]
    Table(#[from] GptError),
    /// Reading a part or writing the disk failed.
    #[error("writing the disk: {0}")]
    Io(#[from] io::Error),
}

/// The disk GUID and the slots of a node. Root and hash tree have the GUIDs by which systemd finds them from the root hash alone;
/// those of disk and ESP are derived from it, version 5.
pub fn node_slots(node: &Node) -> (Uuid, Vec<Slot>) {
    let (root, verity) = node.root_hash.partition_uuids();
    let derived = |what: &str| Uuid::new_v5(&NAMES, format!("{what} {}", node.root_hash).as_bytes());
    let (root_kind, verity_kind) = match node.architecture {
        Architecture::X86_64 => (gpt::ROOT_X86_64, gpt::ROOT_VERITY_X86_64),
        Architecture::Arm64 => (gpt::ROOT_ARM64, gpt::ROOT_VERITY_ARM64),
    };
    let slot = |kind, guid, name: &str, size, attributes, content: &PathBuf| Slot {
        partition: Wanted { kind, guid, name: name.to_owned(), size, attributes },
        content: content.clone(),
    };
    // The names carry the root hash too: the kernel tells partition names without any program (PARTNAME in uevent), GUIDs it does
    // not tell before Linux 6.13, and the initrd has no other way to ask.
    let short = &node.root_hash.to_string()[..16];
    let slots = vec![
        slot(gpt::ESP, derived("esp"), "esp", 0, 0, &node.esp),
        slot(verity_kind, verity, &format!("verity-{short}"), node.verity_size, gpt::READ_ONLY, &node.verity),
        slot(root_kind, root, &format!("root-{short}"), node.root_size, gpt::READ_ONLY, &node.root),
    ];
    (derived("disk"), slots)
}

/// Writes a disk with `slots` in their order to `out`, whose old contents are dropped.
pub fn write(guid: Uuid, sector: u32, slots: &[Slot], out: &File) -> Result<Written, DiskError> {
    let sources = slots.iter().map(|slot| Source::open(&slot.content)).collect::<io::Result<Vec<_>>>()?;
    let wanted: Vec<Wanted> = slots
        .iter()
        .zip(&sources)
        .map(|(slot, source)| {
            let partition = slot.partition.clone();
            Wanted { size: partition.size.max(source.len()), ..partition }
        })
        .collect();
    let table = gpt::plan(guid, sector, &wanted)?;
    let primary = table.primary();
    let (backup_at, backup) = table.backup();

    out.set_len(0)?;
    out.set_len(table.size)?;
    let mut hasher = Hasher::new();
    hasher.update(&primary);
    for (partition, source) in table.partitions.iter().zip(&sources) {
        hash_zeros(&mut hasher, partition.offset);
        source.for_each(0, |run| match run {
            Run::Zeros(length) => {
                let end = hasher.len() + length;
                hash_zeros(&mut hasher, end);
                Ok(())
            }
            Run::Data(bytes) => {
                for piece in bytes.chunks(HOLE) {
                    if !sparse::is_zero(piece) {
                        out.write_all_at(piece, hasher.len())?;
                    }
                    hasher.update(piece);
                }
                Ok(())
            }
        })?;
    }
    hash_zeros(&mut hasher, backup_at);
    hasher.update(&backup);
    out.write_all_at(&backup, backup_at)?;
    out.write_all_at(&primary, 0)?;
    Ok(Written { table, digest: hasher.finish() })
}

/// Hashes zeros up to the byte `end` of the disk.
fn hash_zeros(hasher: &mut Hasher, end: u64) {
    let result = sparse::zeros(end - hasher.len(), |bytes| {
        hasher.update(bytes);
        Ok(())
    });
    debug_assert!(result.is_ok(), "hashing does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_disk_holds_its_parts_under_the_names_that_initrd_and_systemd_look_for() {
        let dir = tempfile::tempdir().unwrap();
        let part = |name: &str, byte: u8, holes: u64, length: usize| {
            let path = dir.path().join(name);
            let file = fs::File::create(&path).unwrap();
            file.set_len(holes).unwrap();
            file.file().write_all_at(&vec![byte; length], holes).unwrap();
            path
        };
        let root_hash = RootHash::new(Digest::of(b"a root"));
        let node = Node {
            architecture: Architecture::X86_64,
            root_hash,
            esp: part("esp", 1, 30 << 20, 5000),
            verity: part("verity", 2, 0, 8192),
            root: part("root", 3, 1 << 20, (1 << 20) + 4096),
            verity_size: 2 << 20,
            root_size: 0,
        };
        let (guid, slots) = node_slots(&node);
        let path = dir.path().join("disk");
        let file =
            fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.file().write_all_at(b"left over", 700_000).unwrap();
        let written = write(guid, 512, &slots, file.file()).unwrap();

        let mut disk = fs::read(&path).unwrap();
        assert_eq!(written.digest, Digest::of(&disk));
        let golden = "0dab6ec9f2f31acf232903982cf6d22b3c981040daeff6a6e346179f4edea515";
        assert_eq!(written.digest.to_string(), golden, "if the change is meant, put the new digest here");
        let table = gpt::read(&mut io::Cursor::new(&disk), 512).unwrap();
        assert_eq!(table, written.table);
        let found: Vec<_> = table.partitions.iter().map(|p| (p.kind, p.offset >> 20, p.size >> 20)).collect();
        assert_eq!(found, [(gpt::ESP, 1, 31), (gpt::ROOT_VERITY_X86_64, 32, 2), (gpt::ROOT_X86_64, 34, 3)]);
        let short = &root_hash.to_string()[..16];
        let names: Vec<_> = table.partitions.iter().map(|p| p.name.clone()).collect();
        assert_eq!(
            names,
            ["esp".to_owned(), format!("verity-{short}"), format!("root-{short}")],
            "the initrd looks for these"
        );
        let (root, verity) = root_hash.partition_uuids();
        assert_eq!((table.partitions[2].guid, table.partitions[1].guid), (root, verity));
        for (partition, slot) in table.partitions.iter().zip(&slots) {
            let content = fs::read(&slot.content).unwrap();
            let start = partition.offset as usize;
            assert!(disk[start..start + content.len()] == content, "{}", partition.name);
            disk[start..start + content.len()].fill(0);
        }
        let end = disk.len() - (1 << 20);
        assert!(sparse::is_zero(&disk[1 << 20..end]), "what was left over is gone");
        let allocated = file.metadata().unwrap().blocks() * 512;
        assert!(
            allocated < 2 << 20,
            "{allocated} bytes are allocated for the holes of {} MiB",
            disk.len() >> 20
        );
    }
}
