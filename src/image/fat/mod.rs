//! FAT32, for the EFI system partition: a tree of files in, a file system out, and back.
//!
//! ```text
//! sector  0     1       6      7        32        ...        ...
//!         boot  FSInfo  boot   FSInfo   FAT, FAT  clusters from 2 on: root directory, then each directory and file
//!                       \- backup -/              in the order of its path, each in one piece
//! ```
//!
//! [`write`](fn@write) makes a fresh file system from all its files; there is no way to change one, since writing it again with one file
//! more costs less than a second and has one outcome. Everything follows from the input: times, serial number and label are
//! parameters, short names are counted in the order of the long ones. Free clusters are not written, so a sparse file stays
//! sparse. [`Reader`] lists and extracts. Sources: Microsoft FAT specification of August 2005; UEFI Specification 2.10, 13.3.

mod name;
mod reader;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::tree::TreePath;

pub use reader::{Node, Reader};
pub use writer::write;

/// The least number of clusters that makes a file system FAT32 and not FAT16: drivers tell them apart by this alone.
pub const MIN_CLUSTERS: u32 = 65_525;
/// The largest number of clusters: 28 bits less the reserved values.
const MAX_CLUSTERS: u64 = 0x0FFF_FFF5;

/// Bytes of a file to be written.
#[derive(Debug, Clone)]
pub enum Source {
    /// Kept in memory.
    Bytes(Vec<u8>),
    /// Read from this file when it is its turn.
    File(PathBuf),
}

/// A file system to be written.
#[derive(Debug, Clone)]
pub struct FileSystem {
    /// Length in bytes; a multiple of the sector size. 64 MiB to 512 MiB is what an ESP has.
    pub size: u64,
    /// Bytes per sector, the one of the disk: 512 or 4096.
    pub sector: u32,
    /// Volume serial number.
    pub serial: u32,
    /// Volume label: at most 11 bytes of upper-case ASCII letters, digits, `_`, `-` and spaces.
    pub label: String,
    /// The time of all files and directories, seconds since 1970 UTC. FAT counts from 1980 to 2107: what lies outside becomes
    /// the nearest end.
    pub epoch: i64,
    /// The files by path; directories are made as needed.
    pub files: BTreeMap<TreePath, Source>,
}

/// What cannot be written as FAT32, or is wrong with a file system that is read.
#[derive(Debug, thiserror::Error)]
pub enum FatError {
    /// A sector size that disks do not have.
    #[error("sectors of {0} bytes: only 512 and 4096 are known")]
    Sector(u32),
    /// A size that gives too few or too many clusters.
    #[error(
        "{size} bytes in sectors of {sector} bytes cannot be FAT32, which needs 65525 clusters at least: take 64 MiB (512-byte sectors) or 260 MiB (4096-byte sectors) or more"
    )]
    Size {
        /// The size asked for.
        size: u64,
        /// The sector size.
        sector: u32,
    },
    /// A label that firmware could misread.
    #[error(
        "volume label `{0}`: at most 11 upper-case ASCII letters, digits, `_`, `-` and spaces are allowed"
    )]
    Label(String),
    /// A name that VFAT forbids.
    #[error("/{path}: {reason}")]
    Name {
        /// Where it was to stand.
        path: String,
        /// Why it cannot.
        reason: &'static str,
    },
    /// Two names that FAT cannot tell apart.
    #[error("/{0} and /{1} differ only in case, which FAT does not tell apart")]
    SameName(String, String),
    /// A file below another file.
    #[error("/{0} is a file and cannot hold others")]
    NotADirectory(String),
    /// A file of 4 GiB or more.
    #[error("/{path}: {size} bytes do not fit in FAT32, whose files end below 4 GiB")]
    TooLarge {
        /// The file.
        path: TreePath,
        /// Its length in bytes.
        size: u64,
    },
    /// A directory with more entries than 2 MiB hold.
    #[error("/{0} holds more files than a FAT directory can")]
    Crowded(String),
    /// The files need more room than there is.
    #[error("the files need {needed} bytes, but the file system has room for {room}: make it larger")]
    Full {
        /// In whole clusters, directories included.
        needed: u64,
        /// In whole clusters.
        room: u64,
    },
    /// A file that changed its length while it was read.
    #[error("/{0} changed its length while it was read")]
    Changed(TreePath),
    /// No FAT32, or one that contradicts itself.
    #[error("FAT32 file system: {0}")]
    Damaged(&'static str),
    /// No such file.
    #[error("no file /{0} in the FAT file system")]
    NotFound(String),
    /// Reading or writing failed.
    #[error("FAT file system: {0}")]
    Io(#[from] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use proptest::prelude::*;
    use std::io::Cursor;

    pub(super) fn sample() -> FileSystem {
        let file = |path: &str, bytes: &[u8]| (TreePath::new(path).unwrap(), Source::Bytes(bytes.to_vec()));
        FileSystem {
            size: 64 << 20,
            sector: 512,
            serial: 0x1234_ABCD,
            label: "KILN".to_owned(),
            epoch: 1_700_000_000,
            files: BTreeMap::from([
                file("EFI/BOOT/BOOTX64.EFI", &[1; 5000]),
                file(
                    "EFI/Linux/kiln_1.0+3.efi",
                    &(0..200_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>(),
                ),
                file("loader/loader.conf", b"timeout 0\n"),
                file("loader/entries.srel", b"type1\n"),
                file("loader/a long name with ümläuts and more than one entry.conf", b"x"),
                file("empty", b""),
            ]),
        }
    }

    pub(super) fn written(fs: &FileSystem) -> Vec<u8> {
        let mut out = Cursor::new(vec![0; fs.size as usize]);
        write(fs, &mut out).unwrap();
        out.into_inner()
    }

    fn read_back(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut reader = Reader::new(Cursor::new(bytes)).unwrap();
        let files: Vec<_> = reader.list().unwrap().into_iter().filter(|n| !n.directory).collect();
        files.into_iter().map(|n| (n.path.clone(), reader.read(&n.path).unwrap())).collect()
    }

    #[test]
    fn files_come_back_and_the_bytes_are_the_known_ones() {
        let bytes = written(&sample());
        let wanted: BTreeMap<_, _> = sample()
            .files
            .into_iter()
            .map(|(path, source)| match source {
                Source::Bytes(bytes) => (path.to_string(), bytes),
                Source::File(_) => unreachable!("the sample is in memory"),
            })
            .collect();
        assert!(read_back(&bytes) == wanted);
        assert_eq!(
            Digest::of(&bytes).to_string(),
            "059a793062c12c03b7aedde97c92e88aca941ab32b0a76981eb29477b672b25f",
            "if the change is meant, put the new digest here"
        );
    }

    #[test]
    fn a_hole_is_left_where_nothing_is() {
        use std::os::unix::fs::MetadataExt;
        let mut file = tempfile::tempfile().unwrap();
        write(&sample(), &mut file).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 3 << 20, "{} bytes are allocated", meta.blocks() * 512);
    }

    #[test]
    fn what_fat_cannot_hold_is_refused() {
        let refuse = |change: &dyn Fn(&mut FileSystem)| {
            let mut fs = sample();
            change(&mut fs);
            write(&fs, &mut Cursor::new(Vec::new())).unwrap_err()
        };
        let add = |fs: &mut FileSystem, path: &str| {
            fs.files.insert(TreePath::new(path).unwrap(), Source::Bytes(vec![]));
        };
        assert!(matches!(refuse(&|fs| add(fs, "efi/x")), FatError::SameName(..)));
        assert!(matches!(refuse(&|fs| add(fs, "LOADER/LOADER.CONF")), FatError::SameName(..)));
        assert!(matches!(refuse(&|fs| add(fs, "loader/loader.conf/x")), FatError::NotADirectory(_)));
        for bad in ["a:b", "a*", "trailing.", "trailing ", "a\\b", "a\nb"] {
            assert!(matches!(refuse(&|fs| add(fs, bad)), FatError::Name { .. }), "{bad:?}");
        }
        assert!(matches!(refuse(&|fs| fs.size = 32 << 20), FatError::Size { .. }));
        assert!(matches!(refuse(&|fs| fs.size += 100), FatError::Size { .. }));
        assert!(matches!(refuse(&|fs| fs.sector = 4096), FatError::Size { .. }));
        assert!(matches!(refuse(&|fs| fs.sector = 1000), FatError::Sector(1000)));
        assert!(matches!(refuse(&|fs| fs.label = "kiln".into()), FatError::Label(_)));
        let big = |fs: &mut FileSystem| {
            fs.files.insert(TreePath::new("big").unwrap(), Source::Bytes(vec![1; 64 << 20]));
        };
        assert!(matches!(refuse(&big), FatError::Full { .. }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_names_come_back(names in proptest::collection::btree_map("[A-Za-z0-9 +.~é]{0,20}[a-z]", proptest::collection::vec(any::<u8>(), 0..3000), 0..40)) {
            let mut fs = FileSystem { files: BTreeMap::new(), ..sample() };
            let mut wanted = BTreeMap::new();
            for (name, bytes) in names {
                let folded = name.to_uppercase();
                if name.starts_with(['.', ' ']) || wanted.keys().any(|k: &String| k.to_uppercase().ends_with(&folded)) {
                    continue;
                }
                let path = format!("dir/{name}");
                fs.files.insert(TreePath::new(&path).unwrap(), Source::Bytes(bytes.clone()));
                wanted.insert(path, bytes);
            }
            prop_assert!(read_back(&written(&fs)) == wanted);
        }
    }
}
