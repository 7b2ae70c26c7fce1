//! Reading FAT32 of unknown origin: every number is checked, every chain ends, directories are at most [`MAX_DEPTH`] deep.

use std::io::{Read, Seek, SeekFrom};

use super::name::{self, PLACES, UNITS};
use super::{FatError, MAX_CLUSTERS, MIN_CLUSTERS};

/// Deeper trees than this do not stand on an ESP.
const MAX_DEPTH: usize = 32;
/// More entries than this do not either.
const MAX_NODES: usize = 100_000;
const MAX_DIRECTORY: u64 = 65_536 * 32;

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its path without a leading slash.
    pub path: String,
    /// Whether it is a directory.
    pub directory: bool,
    /// Length in bytes; 0 for a directory.
    pub size: u32,
    cluster: u32,
}

/// A FAT32 file system that is read.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    cluster_size: u64,
    data: u64,
    fat: Vec<u32>,
    root: u32,
    /// Volume serial number.
    pub serial: u32,
    /// Volume label of the boot sector, without the spaces behind it.
    pub label: String,
}

impl<R: Read + Seek> Reader<R> {
    /// Reads boot sector and FAT; the file system begins at byte 0 of `source`.
    pub fn new(mut source: R) -> Result<Self, FatError> {
        let size = source.seek(SeekFrom::End(0))?;
        let mut boot = [0; 512];
        source.rewind()?;
        source.read_exact(&mut boot)?;
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let u32_at = |at: usize| u32::from_le_bytes(boot[at..at + 4].try_into().expect("4 bytes"));
        let (sector, per_cluster) = (u16_at(11), u64::from(boot[13]));
        if boot[510..] != [0x55, 0xAA] || u16_at(17) != 0 || u16_at(22) != 0 {
            return Err(FatError::Damaged("there is no boot sector of FAT32"));
        }
        if !matches!(sector, 512 | 1024 | 2048 | 4096) || !per_cluster.is_power_of_two() {
            return Err(FatError::Damaged("its sector or cluster size is none that FAT has"));
        }
        let (reserved, fats, fat_sectors) = (u16_at(14), u64::from(boot[16]), u64::from(u32_at(36)));
        let sectors = u64::from(u32_at(32));
        let data = (reserved + fats * fat_sectors) * sector;
        let bytes = sectors * sector;
        if reserved == 0 || fats == 0 || bytes > size || data > bytes {
            return Err(FatError::Damaged("its parts do not fit in it"));
        }
        let clusters = (bytes - data) / (per_cluster * sector);
        if clusters < u64::from(MIN_CLUSTERS) || clusters > MAX_CLUSTERS {
            return Err(FatError::Damaged("it has too few or too many clusters for FAT32"));
        }
        let fat_bytes = (clusters + 2) * 4;
        if fat_bytes > fat_sectors * sector {
            return Err(FatError::Damaged("its FAT is shorter than its clusters need"));
        }
        let mut fat =
            vec![0; usize::try_from(fat_bytes).map_err(|_| FatError::Damaged("its FAT is too long"))?];
        source.seek(SeekFrom::Start(reserved * sector))?;
        source.read_exact(&mut fat)?;
        let fat =
            fat.chunks_exact(4).map(|e| u32::from_le_bytes([e[0], e[1], e[2], e[3]]) & 0x0FFF_FFFF).collect();
        let label = boot[71..82].iter().map(|b| char::from(*b)).collect::<String>().trim_end().to_owned();
        let (serial, root) = (u32_at(67), u32_at(44));
        Ok(Reader { source, cluster_size: per_cluster * sector, data, fat, root, serial, label })
    }

    /// All files and directories, a directory before what is in it.
    pub fn list(&mut self) -> Result<Vec<Node>, FatError> {
        let mut nodes = Vec::new();
        self.walk("", self.root, 0, &mut nodes)?;
        Ok(nodes)
    }

    /// The bytes of the file at `path`; case matters not, as ever with FAT.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, FatError> {
        let folded = name::folded(path);
        let node = self.list()?.into_iter().find(|n| !n.directory && name::folded(&n.path) == folded);
        let node = node.ok_or_else(|| FatError::NotFound(path.to_owned()))?;
        if node.size == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = self.chain(node.cluster, u64::from(node.size))?;
        if bytes.len() < node.size as usize {
            return Err(FatError::Damaged("a file has fewer clusters than its length needs"));
        }
        bytes.truncate(node.size as usize);
        Ok(bytes)
    }

    fn walk(
        &mut self,
        path: &str,
        cluster: u32,
        depth: usize,
        nodes: &mut Vec<Node>,
    ) -> Result<(), FatError> {
        if depth > MAX_DEPTH || nodes.len() > MAX_NODES {
            return Err(FatError::Damaged("its directories are nested too deep or hold too much"));
        }
        let bytes = self.chain(cluster, MAX_DIRECTORY)?;
        let mut long = LongName::default();
        for entry in bytes.chunks_exact(32) {
            match (entry[0], entry[11]) {
                (0, _) => break,
                (0xE5, _) => long = LongName::default(),
                (_, 0x0F) => long.take(entry),
                // A label, or the directory itself and the one above.
                (_, attribute) if attribute & 0x08 != 0 || entry[0] == b'.' => long = LongName::default(),
                (_, attribute) => {
                    let short = entry[..11].try_into().expect("11 bytes");
                    let name =
                        std::mem::take(&mut long).finish(&short).unwrap_or_else(|| name::spelled(&short));
                    let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                    let cluster = u32::from_le_bytes([entry[26], entry[27], entry[20], entry[21]]);
                    let directory = attribute & 0x10 != 0;
                    let size = u32::from_le_bytes([entry[28], entry[29], entry[30], entry[31]]);
                    nodes.push(Node {
                        path: path.clone(),
                        directory,
                        size: if directory { 0 } else { size },
                        cluster,
                    });
                    if directory {
                        self.walk(&path, cluster, depth + 1, nodes)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The bytes of the clusters from `first` on, at least `most` of them if the chain has them.
    fn chain(&mut self, first: u32, most: u64) -> Result<Vec<u8>, FatError> {
        let mut bytes = Vec::new();
        let mut cluster = first;
        let mut left = self.fat.len();
        while (bytes.len() as u64) < most {
            let next = match self.fat.get(cluster as usize) {
                Some(next) if cluster >= 2 => *next,
                _ => return Err(FatError::Damaged("a chain leads out of the file system")),
            };
            left = left.checked_sub(1).ok_or(FatError::Damaged("a chain leads back to itself"))?;
            let at = bytes.len();
            bytes.resize(at + self.cluster_size as usize, 0);
            let offset = self.data + u64::from(cluster - 2) * self.cluster_size;
            self.source.seek(SeekFrom::Start(offset))?;
            self.source.read_exact(&mut bytes[at..])?;
            if next >= 0x0FFF_FFF8 {
                break;
            }
            cluster = next;
        }
        Ok(bytes)
    }
}

/// The units of a long name, gathered from its entries, which stand with the end first.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
    checksum: u8,
    /// Number of the entry that was taken last.
    number: u8,
}

impl LongName {
    fn take(&mut self, entry: &[u8]) {
        let number = entry[0] & 0x3F;
        if entry[0] & 0x40 != 0 {
            *self = LongName { units: Vec::new(), checksum: entry[13], number: number.saturating_add(1) };
        }
        if number == 0 || number.checked_add(1) != Some(self.number) || entry[13] != self.checksum {
            *self = LongName::default();
            return;
        }
        self.number = number;
        let piece = PLACES.map(|place| u16::from_le_bytes([entry[place], entry[place + 1]]));
        let used = piece.iter().position(|unit| *unit == 0).unwrap_or(UNITS);
        self.units.splice(0..0, piece[..used].iter().copied());
    }

    fn finish(self, short: &name::Short) -> Option<String> {
        let whole = self.number == 1 && self.checksum == name::checksum(short);
        whole.then(|| String::from_utf16(&self.units).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{sample, written};
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    #[test]
    fn a_chain_in_a_ring_ends_with_an_error_and_not_never() {
        let mut bytes = written(&sample());
        // The root directory follows itself; it is full of entries that are no end.
        bytes[32 * 512 + 8..32 * 512 + 12].copy_from_slice(&2_u32.to_le_bytes());
        let data = Reader::new(Cursor::new(&bytes)).unwrap().data as usize;
        for entry in bytes[data..data + 512].chunks_exact_mut(32) {
            entry.copy_from_slice(b"SELF       \x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0");
        }
        assert!(matches!(Reader::new(Cursor::new(bytes)).unwrap().list(), Err(FatError::Damaged(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn no_bytes_make_the_reader_panic(
            boot in proptest::collection::vec((11_usize..90, any::<u8>()), 0..3),
            rest in proptest::collection::vec((0_usize..6000, any::<u8>()), 0..200),
            short in proptest::collection::vec(any::<u8>(), 0..1024),
        ) {
            let _ = Reader::new(Cursor::new(&short));
            let mut bytes = written(&sample());
            let data = Reader::new(Cursor::new(&bytes)).unwrap().data as usize;
            boot.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            for (at, byte) in rest {
                bytes[if at < 2000 { 32 * 512 + at } else { data + at - 2000 }] = byte;
            }
            if let Ok(mut reader) = Reader::new(Cursor::new(bytes)) {
                for node in reader.list().unwrap_or_default().into_iter().take(5) {
                    let _ = reader.read(&node.path);
                }
            }
        }
    }
}
