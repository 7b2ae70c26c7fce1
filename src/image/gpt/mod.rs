//! The GUID partition table: planned as data, then written, and read back with both copies checked.
//!
//! ```text
//! sector   0       1       2 .. 2+n     1 MiB ...              last-n ..  last
//!          MBR     header  entries      partitions, aligned    entries    header
//!          \------- primary -------/                           \--- backup --/
//! ```
//!
//! [`plan`] lays partitions out one behind the other at multiples of 1 MiB and leaves 1 MiB at the end for the backup. A [`Table`]
//! gives the bytes of both copies ([`Table::primary`], [`Table::backup`]), so that a caller can hash a disk in order and still
//! write the table last. [`read`](fn@read) takes a table from a disk of unknown origin, [`read_primary`] from its beginning alone. Source: UEFI Specification 2.10, chapter 5;
//! partition types and attributes: UAPI Discoverable Partitions Specification.

mod format;
mod reader;

use uuid::{Uuid, uuid};

pub use reader::{read, read_primary};

/// Partitions begin and end at multiples of this many bytes, as the tools of Linux, Windows and systemd have it.
pub const ALIGNMENT: u64 = 1 << 20;
/// Entries in the table; the least that the specification allows, and what every tool writes.
const ENTRIES: usize = 128;

/// Attribute bit 59: systemd grows the file system on first mount.
pub const GROW_FILE_SYSTEM: u64 = 1 << 59;
/// Attribute bit 60: systemd mounts the partition read-only.
pub const READ_ONLY: u64 = 1 << 60;
/// Attribute bit 63: systemd does not use the partition by itself.
pub const NO_AUTO: u64 = 1 << 63;

/// Type of the EFI system partition.
pub const ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// Type of the root file system of x86-64.
pub const ROOT_X86_64: Uuid = uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
/// Type of the verity hash tree of the root file system of x86-64.
pub const ROOT_VERITY_X86_64: Uuid = uuid!("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5");
/// Type of the root file system of 64-bit ARM.
pub const ROOT_ARM64: Uuid = uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae");
/// Type of the verity hash tree of the root file system of 64-bit ARM.
pub const ROOT_VERITY_ARM64: Uuid = uuid!("df3300ce-d69f-4c92-978c-9bfb0f38d820");
/// Type of `/var`.
pub const VAR: Uuid = uuid!("4d21b016-b534-45c2-a9fb-5c16e091fd2d");
/// Type of other data of Linux.
pub const LINUX_DATA: Uuid = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");

/// A partition that is wanted; [`plan`] gives it a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its type.
    pub kind: Uuid,
    /// Its own GUID.
    pub guid: Uuid,
    /// Its label: at most 36 UTF-16 units.
    pub name: String,
    /// Its least length in bytes; made a multiple of [`ALIGNMENT`].
    pub size: u64,
    /// [`GROW_FILE_SYSTEM`] and its neighbours.
    pub attributes: u64,
}

/// A partition with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its type.
    pub kind: Uuid,
    /// Its own GUID.
    pub guid: Uuid,
    /// Its label.
    pub name: String,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// Attribute bits.
    pub attributes: u64,
}

/// A partition table and the disk that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// GUID of the disk.
    pub guid: Uuid,
    /// Bytes per sector: 512 or 4096.
    pub sector: u32,
    /// Length of the disk in bytes.
    pub size: u64,
    /// The partitions in the order of the table.
    pub partitions: Vec<Partition>,
}

/// What cannot be planned, or is wrong with a table.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    /// A sector size that disks do not have.
    #[error("sectors of {0} bytes: only 512 and 4096 are known")]
    Sector(u32),
    /// More partitions than a table holds.
    #[error("{0} partitions are more than the 128 of a table")]
    TooMany(usize),
    /// A partition without length.
    #[error("partition `{0}` has no length")]
    Empty(String),
    /// Partitions that end beyond what 64 bits can count.
    #[error("the partitions do not fit in a disk")]
    TooLarge,
    /// A name longer than its field.
    #[error("partition name `{0}` is longer than 36 UTF-16 units")]
    Name(String),
    /// Two partitions with the same GUID.
    #[error("partition GUID {0} is used twice")]
    SameGuid(Uuid),
    /// The disk begins without a protective master boot record.
    #[error("the disk has no protective MBR, so it is not partitioned with GPT")]
    NoProtectiveMbr,
    /// One of the two headers is missing or damaged.
    #[error("the {copy} GPT header is damaged: {reason}")]
    Header {
        /// `primary` or `backup`.
        copy: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// Both headers are sound and say different things.
    #[error("primary and backup GPT differ: {0}")]
    Differ(&'static str),
    /// A partition outside of the usable part of the disk, or one that overlaps another.
    #[error("partition {number} of the GPT {reason}")]
    Partition {
        /// Its number, from 1.
        number: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// Reading or writing failed.
    #[error("partition table: {0}")]
    Io(#[from] std::io::Error),
}

/// Lays out the partitions in their order on the smallest disk that holds them.
pub fn plan(guid: Uuid, sector: u32, wanted: &[Wanted]) -> Result<Table, GptError> {
    if sector != 512 && sector != 4096 {
        return Err(GptError::Sector(sector));
    }
    if wanted.len() > ENTRIES {
        return Err(GptError::TooMany(wanted.len()));
    }
    let mut partitions: Vec<Partition> = Vec::with_capacity(wanted.len());
    let mut offset = ALIGNMENT;
    for want in wanted {
        if want.size == 0 {
            return Err(GptError::Empty(want.name.clone()));
        }
        if want.name.encode_utf16().count() > format::NAME_UNITS {
            return Err(GptError::Name(want.name.clone()));
        }
        if partitions.iter().any(|p| p.guid == want.guid) {
            return Err(GptError::SameGuid(want.guid));
        }
        let size = want.size.checked_next_multiple_of(ALIGNMENT).ok_or(GptError::TooLarge)?;
        let Wanted { kind, guid, name, attributes, .. } = want.clone();
        partitions.push(Partition { kind, guid, name, offset, size, attributes });
        offset = offset.checked_add(size).ok_or(GptError::TooLarge)?;
    }
    // File offsets are signed.
    let size =
        offset.checked_add(ALIGNMENT).filter(|s| i64::try_from(*s).is_ok()).ok_or(GptError::TooLarge)?;
    Ok(Table { guid, sector, size, partitions })
}

impl Table {
    /// The bytes at the start of the disk: protective MBR, header and entries.
    pub fn primary(&self) -> Vec<u8> {
        format::primary(self)
    }

    /// The offset and the bytes of the copy at the end of the disk: entries and header.
    pub fn backup(&self) -> (u64, Vec<u8>) {
        format::backup(self)
    }

    /// Writes both copies at their places; nothing between them is touched.
    pub fn write(&self, out: &mut (impl std::io::Write + std::io::Seek)) -> std::io::Result<()> {
        let (offset, backup) = self.backup();
        out.seek(std::io::SeekFrom::Start(offset))?;
        out.write_all(&backup)?;
        // The primary last: a disk that was cut short has no table that firmware or kernel would take.
        out.seek(std::io::SeekFrom::Start(0))?;
        out.write_all(&self.primary())
    }
}

/// A disk with three partitions, for tests of those who read disks.
#[cfg(test)]
pub(crate) fn tests_disk() -> Vec<u8> {
    tests::disk(&tests::table(512))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use proptest::prelude::*;
    use std::io::Cursor;

    pub(super) fn wanted() -> Vec<Wanted> {
        let part = |kind, name: &str, size, attributes| {
            let guid = Uuid::new_v5(&kind, name.as_bytes());
            Wanted { kind, guid, name: name.to_owned(), size, attributes }
        };
        vec![
            part(ESP, "esp", 3 << 20, 0),
            part(ROOT_VERITY_X86_64, "root-verity-a", 5000, READ_ONLY),
            part(ROOT_X86_64, "root-ä", (2 << 20) + 1, READ_ONLY | NO_AUTO),
        ]
    }

    pub(super) fn table(sector: u32) -> Table {
        plan(uuid!("00112233-4455-6677-8899-aabbccddeeff"), sector, &wanted()).unwrap()
    }

    pub(super) fn disk(table: &Table) -> Vec<u8> {
        let mut disk = Cursor::new(vec![0; table.size as usize]);
        table.write(&mut disk).unwrap();
        disk.into_inner()
    }

    #[test]
    fn partitions_stand_one_behind_the_other_at_whole_mebibytes() {
        let table = table(512);
        let places: Vec<_> = table.partitions.iter().map(|p| (p.offset >> 20, p.size >> 20)).collect();
        assert_eq!(places, [(1, 3), (4, 1), (5, 3)]);
        assert_eq!(table.size, 9 << 20);
    }

    #[test]
    fn a_written_table_is_read_back_and_has_the_known_digest() {
        for (sector, digest) in [
            (512, "ad689647c3ca45099ffcba405efb09b666ee16f4641a0f8fe689cf38684ea0a9"),
            (4096, "b3cb8619ddd3d448ffa66e24e9ac82773d254d2f4b693bdfb92bdd07996e8b4c"),
        ] {
            let table = table(sector);
            let disk = disk(&table);
            assert_eq!(read(&mut Cursor::new(&disk), sector).unwrap(), table);
            assert_eq!(
                Digest::of(&disk).to_string(),
                digest,
                "sector {sector}; if meant, put the new digest here"
            );
        }
    }

    #[test]
    fn what_cannot_be_a_table_is_refused() {
        let refuse = |sector, change: &dyn Fn(&mut Vec<Wanted>)| {
            let mut wanted = wanted();
            change(&mut wanted);
            plan(Uuid::nil(), sector, &wanted).unwrap_err()
        };
        assert!(matches!(refuse(1024, &|_| ()), GptError::Sector(1024)));
        assert!(matches!(refuse(512, &|w| w[0].size = 0), GptError::Empty(_)));
        assert!(matches!(refuse(512, &|w| w[0].name = "x".repeat(37)), GptError::Name(_)));
        assert!(matches!(refuse(512, &|w| w[0].guid = w[1].guid), GptError::SameGuid(_)));
        assert!(matches!(refuse(512, &|w| w[0].size = u64::MAX), GptError::TooLarge));
        assert!(matches!(refuse(512, &|w| w[0].size = 1 << 63), GptError::TooLarge));
        assert!(matches!(refuse(512, &|w| w.resize(129, w[0].clone())), GptError::TooMany(129)));
    }

    proptest! {
        #[test]
        fn what_is_planned_is_read_back(sizes in proptest::collection::vec(1_u64..9_000_000, 0..9), large: bool) {
            let sector = if large { 4096 } else { 512 };
            let wanted: Vec<_> = sizes.iter().enumerate().map(|(i, size)| Wanted {
                kind: LINUX_DATA, guid: Uuid::from_u128(i as u128 + 1), name: format!("p{i}"), size: *size, attributes: 1 << i,
            }).collect();
            let table = plan(Uuid::max(), sector, &wanted).unwrap();
            prop_assert_eq!(read(&mut Cursor::new(disk(&table)), sector).unwrap(), table);
        }
    }
}
