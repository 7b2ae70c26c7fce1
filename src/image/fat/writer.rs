//! Writing: the directories and files are given their clusters first, then every piece is written at its place.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::name::{self, PLACES, UNITS};
use super::{FatError, FileSystem, MAX_CLUSTERS, MIN_CLUSTERS, Source};
use crate::tree::TreePath;

/// Sectors before the first FAT; what other tools reserve.
const RESERVED: u32 = 32;
/// Sector of the backup of the boot sector; the one that the specification names.
const BACKUP: u64 = 6;
const FATS: u32 = 2;
const ENTRY: usize = 32;
/// A directory may be 65536 entries long.
const MAX_DIRECTORY: usize = 65_536 * ENTRY;
const DIRECTORY: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
const LABEL: u8 = 0x08;
const LONG_NAME: u8 = 0x0F;
/// The last cluster of a file.
const END: u32 = 0x0FFF_FFFF;

/// How the sectors are used.
#[derive(Debug)]
struct Geometry {
    sector: u32,
    sectors: u32,
    per_cluster: u32,
    /// Sectors of one FAT.
    fat: u32,
    clusters: u32,
}

impl Geometry {
    /// The largest clusters up to 4 KiB of which there are enough.
    fn of(size: u64, sector: u32) -> Result<Self, FatError> {
        if sector != 512 && sector != 4096 {
            return Err(FatError::Sector(sector));
        }
        let refuse = || FatError::Size { size, sector };
        if !size.is_multiple_of(u64::from(sector)) {
            return Err(refuse());
        }
        let sectors = u32::try_from(size / u64::from(sector)).map_err(|_| refuse())?;
        let data = sectors.checked_sub(RESERVED).ok_or_else(refuse)?;
        let per_cluster = [4096, 2048, 1024, 512].into_iter().filter(|c| *c >= sector).map(|c| c / sector);
        per_cluster
            .filter_map(|per_cluster| {
                // Counted as if the FATs took no room: a little larger than needed, which is allowed. Whole 4 KiB keep
                // the clusters behind them aligned.
                let bytes = (u64::from(data / per_cluster) + 2) * 4;
                let fat = (bytes.next_multiple_of(4096) / u64::from(sector)) as u32;
                let clusters = data.checked_sub(FATS * fat)? / per_cluster;
                Some(Geometry { sector, sectors, per_cluster, fat, clusters })
            })
            .find(|g| g.clusters >= MIN_CLUSTERS && u64::from(g.clusters) <= MAX_CLUSTERS)
            .ok_or_else(refuse)
    }

    fn cluster_size(&self) -> u64 {
        u64::from(self.per_cluster) * u64::from(self.sector)
    }

    fn fat_at(&self, copy: u32) -> u64 {
        u64::from(RESERVED + copy * self.fat) * u64::from(self.sector)
    }

    fn cluster_at(&self, cluster: u32) -> u64 {
        self.fat_at(FATS) + u64::from(cluster - 2) * self.cluster_size()
    }
}

/// A directory or file on its way.
enum Node<'a> {
    Directory(BTreeMap<&'a str, Node<'a>>),
    File(&'a TreePath, &'a Source),
}

/// A piece that has its clusters.
struct Placed<'a> {
    first: u32,
    count: u32,
    what: What<'a>,
}

enum What<'a> {
    Bytes(Vec<u8>),
    File(&'a TreePath, &'a Source, u64),
}

/// Writes the file system from the current position of `out` on, which must hold zeros or nothing; `out` is as long as the file
/// system at the end, and what is zero is skipped. A file system inside a larger file is written to a file of its own first.
pub fn write(fs: &FileSystem, out: &mut (impl Write + Seek)) -> Result<(), FatError> {
    let geometry = Geometry::of(fs.size, fs.sector)?;
    let label = label(&fs.label)?;
    let root = tree(&fs.files)?;

    let mut layout = Layout { geometry: &geometry, stamp: stamp(fs.epoch), next: 2, placed: Vec::new() };
    layout.directory("", &root, None, Some(&label))?;
    let used = layout.next - 2;
    if used > geometry.clusters {
        let bytes = |clusters: u32| u64::from(clusters) * geometry.cluster_size();
        return Err(FatError::Full { needed: bytes(used), room: bytes(geometry.clusters) });
    }
    let placed = layout.placed;

    let base = out.stream_position()?;
    let mut put = |at: u64, bytes: &[u8]| -> io::Result<()> {
        out.seek(SeekFrom::Start(base + at))?;
        out.write_all(bytes)
    };
    let mut table = vec![0x0FFF_FFF8, END];
    for piece in &placed {
        let last = piece.first + piece.count - 1;
        table.resize(piece.first as usize, 0);
        table.extend((piece.first + 1..=last).chain([END]));
    }
    let table: Vec<u8> = table.into_iter().flat_map(u32::to_le_bytes).collect();
    for copy in 0..FATS {
        put(geometry.fat_at(copy), &table)?;
    }
    for piece in &placed {
        let mut at = geometry.cluster_at(piece.first);
        match &piece.what {
            What::Bytes(bytes) | What::File(_, Source::Bytes(bytes), _) => put(at, bytes)?,
            What::File(path, Source::File(place), size) => {
                let mut file = fs_err::File::open(place)?;
                let mut buffer = vec![0; 1 << 20];
                let mut left = *size;
                loop {
                    let n = file.read(&mut buffer)?;
                    if n as u64 > left || (n == 0 && left > 0) {
                        return Err(FatError::Changed((*path).clone()));
                    }
                    if n == 0 {
                        break;
                    }
                    put(at, &buffer[..n])?;
                    at += n as u64;
                    left -= n as u64;
                }
            }
        }
    }
    let boot = boot_sector(&geometry, fs.serial, &label);
    let info = info_sector(geometry.clusters - used, layout.next);
    for first in [0, BACKUP] {
        put((first + 1) * u64::from(fs.sector), &info)?;
        put(first * u64::from(fs.sector), &boot)?;
    }
    // The last byte makes the file as long as the file system.
    put(fs.size - 1, &[0])?;
    out.flush()?;
    Ok(())
}

fn label(text: &str) -> Result<[u8; 11], FatError> {
    let allowed = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b"_- ".contains(&b);
    if text.is_empty() || text.len() > 11 || text.starts_with(' ') || !text.bytes().all(allowed) {
        return Err(FatError::Label(text.to_owned()));
    }
    let mut label = [b' '; 11];
    label[..text.len()].copy_from_slice(text.as_bytes());
    Ok(label)
}

/// Directories from paths, with every name checked.
fn tree(files: &BTreeMap<TreePath, Source>) -> Result<BTreeMap<&str, Node<'_>>, FatError> {
    let mut root = BTreeMap::new();
    for (path, source) in files {
        let mut at = &mut root;
        let mut end = 0;
        for part in path.split('/') {
            end += part.len() + 1;
            if let Some(reason) = name::objection(part) {
                return Err(FatError::Name { path: path.to_string(), reason });
            }
            let node = at.entry(part).or_insert_with(|| {
                if end > path.len() { Node::File(path, source) } else { Node::Directory(BTreeMap::new()) }
            });
            match node {
                Node::Directory(below) => at = below,
                Node::File(..) if end > path.len() => break,
                Node::File(above, _) => return Err(FatError::NotADirectory(above.to_string())),
            }
        }
    }
    Ok(root)
}

/// Gives clusters in the order of the paths.
struct Layout<'a, 'g> {
    geometry: &'g Geometry,
    /// Date and time of all entries.
    stamp: (u16, u16),
    next: u32,
    placed: Vec<Placed<'a>>,
}

impl<'a> Layout<'a, '_> {
    /// Takes the clusters that `bytes` need. Counting stops short of overflow; that all fit is checked once, at the end.
    fn take(&mut self, bytes: u64) -> (u32, u32) {
        let count = u32::try_from(bytes.div_ceil(self.geometry.cluster_size())).unwrap_or(u32::MAX);
        let first = self.next;
        self.next = self.next.saturating_add(count);
        (first, count)
    }

    /// Places a directory and all below it; says its first cluster. `parent` is the cluster that `..` names.
    fn directory(
        &mut self,
        path: &str,
        nodes: &BTreeMap<&'a str, Node<'a>>,
        parent: Option<u32>,
        label: Option<&[u8; 11]>,
    ) -> Result<u32, FatError> {
        let names: Vec<&str> = nodes.keys().copied().collect();
        let full = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
        let mut folded = BTreeMap::new();
        for name in &names {
            if let Some(other) = folded.insert(name::folded(name), name) {
                return Err(FatError::SameName(full(other), full(name)));
            }
        }
        let crowded = || FatError::Crowded(path.to_owned());
        let short = name::short_names(&names).ok_or_else(crowded)?;
        let long = |short: &name::Short, name: &str| {
            if name::says(short, name) { 0 } else { name.encode_utf16().count().div_ceil(UNITS) }
        };
        let entries: usize = short.iter().zip(&names).map(|(short, name)| 1 + long(short, name)).sum();
        let extra = usize::from(label.is_some()) + 2 * usize::from(parent.is_some());
        let size = (entries + extra).max(1) * ENTRY;
        if size > MAX_DIRECTORY {
            return Err(crowded());
        }
        let (first, count) = self.take(size as u64);
        // Filled when everything below has its place.
        let at = self.placed.len();
        self.placed.push(Placed { first, count, what: What::Bytes(Vec::new()) });

        let mut bytes = Vec::with_capacity(size);
        if let Some(label) = label {
            bytes.extend(self.entry(label, LABEL, 0, 0));
        }
        if let Some(parent) = parent {
            bytes.extend(self.entry(b".          ", DIRECTORY, first, 0));
            bytes.extend(self.entry(b"..         ", DIRECTORY, parent, 0));
        }
        for ((name, node), short) in nodes.iter().zip(&short) {
            let (attribute, cluster, size) = match node {
                // `..` says 0 when it means the root, whatever cluster that is in.
                Node::Directory(below) => {
                    let own = parent.map_or(0, |_| first);
                    (DIRECTORY, self.directory(&full(name), below, Some(own), None)?, 0)
                }
                Node::File(path, source) => {
                    let size = match source {
                        Source::Bytes(bytes) => bytes.len() as u64,
                        Source::File(place) => fs_err::metadata(place)?.len(),
                    };
                    let field = u32::try_from(size)
                        .map_err(|_| FatError::TooLarge { path: (*path).clone(), size })?;
                    let (first, count) = self.take(size);
                    if count > 0 {
                        self.placed.push(Placed { first, count, what: What::File(path, source, size) });
                    }
                    (ARCHIVE, if count > 0 { first } else { 0 }, field)
                }
            };
            if !name::says(short, name) {
                bytes.extend(long_name(name, name::checksum(short)));
            }
            bytes.extend(self.entry(short, attribute, cluster, size));
        }
        self.placed[at].what = What::Bytes(bytes);
        Ok(first)
    }

    fn entry(&self, name: &[u8; 11], attribute: u8, cluster: u32, size: u32) -> [u8; ENTRY] {
        let (date, time) = self.stamp;
        let [c0, c1, c2, c3] = cluster.to_le_bytes();
        let ([d0, d1], [t0, t1]) = (date.to_le_bytes(), time.to_le_bytes());
        let mut entry = [0; ENTRY];
        entry[..11].copy_from_slice(name);
        entry[11] = attribute;
        entry[14..20].copy_from_slice(&[t0, t1, d0, d1, d0, d1]); // made at, read on
        entry[20..22].copy_from_slice(&[c2, c3]);
        entry[22..28].copy_from_slice(&[t0, t1, d0, d1, c0, c1]); // changed at
        entry[28..].copy_from_slice(&size.to_le_bytes());
        entry
    }
}

/// The entries of a long name, its end first.
fn long_name(name: &str, checksum: u8) -> Vec<u8> {
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if !units.len().is_multiple_of(UNITS) {
        units.push(0);
        units.resize(units.len().next_multiple_of(UNITS), 0xFFFF);
    }
    let pieces = units.len() / UNITS;
    let mut bytes = Vec::with_capacity(pieces * ENTRY);
    for (number, piece) in
        (1_u8..).zip(units.chunks_exact(UNITS)).take(pieces).collect::<Vec<_>>().into_iter().rev()
    {
        let mut entry = [0; ENTRY];
        entry[0] = if usize::from(number) == pieces { number | 0x40 } else { number };
        entry[11] = LONG_NAME;
        entry[13] = checksum;
        for (unit, place) in piece.iter().zip(PLACES) {
            entry[place..place + 2].copy_from_slice(&unit.to_le_bytes());
        }
        bytes.extend(entry);
    }
    bytes
}

fn boot_sector(g: &Geometry, serial: u32, label: &[u8; 11]) -> [u8; 512] {
    let mut boot = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| boot[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xEB, 0x58, 0x90]); // a jump over the fields; UEFI runs no code from here
    put(3, b"KILN    ");
    put(11, &(g.sector as u16).to_le_bytes());
    put(13, &[g.per_cluster as u8]);
    put(14, &(RESERVED as u16).to_le_bytes());
    put(16, &[FATS as u8]);
    put(21, &[0xF8]); // a fixed disk
    put(24, &63_u16.to_le_bytes()); // sectors per track and heads: nobody asks for them any more, and zero offends
    put(26, &255_u16.to_le_bytes());
    put(32, &g.sectors.to_le_bytes());
    put(36, &g.fat.to_le_bytes());
    put(44, &2_u32.to_le_bytes()); // the root directory
    put(48, &1_u16.to_le_bytes()); // FSInfo
    put(50, &(BACKUP as u16).to_le_bytes());
    put(64, &[0x80, 0, 0x29]); // a hard disk; serial, label and type follow
    put(67, &serial.to_le_bytes());
    put(71, label);
    put(82, b"FAT32   ");
    put(510, &[0x55, 0xAA]);
    boot
}

fn info_sector(free: u32, next: u32) -> [u8; 512] {
    let mut info = [0; 512];
    info[..4].copy_from_slice(b"RRaA");
    info[484..488].copy_from_slice(b"rrAa");
    info[488..492].copy_from_slice(&free.to_le_bytes());
    info[492..496].copy_from_slice(&next.to_le_bytes());
    info[510..].copy_from_slice(&[0x55, 0xAA]);
    info
}

/// Date and time in FAT's bits, from seconds since 1970. The calendar is Howard Hinnant's `civil_from_days`.
fn stamp(epoch: i64) -> (u16, u16) {
    // 1980-01-01 00:00:00 and 2107-12-31 23:59:58
    let seconds = epoch.clamp(315_532_800, 4_354_819_198);
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let era_day = days % 146_097;
    let year_of_era = (era_day - era_day / 1460 + era_day / 36_524 - era_day / 146_096) / 365;
    let day_of_year = era_day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + days / 146_097 * 400 + i64::from(month <= 2);
    let date = ((year - 1980) << 9) | (month << 5) | day;
    let time = ((second / 3600) << 11) | ((second % 3600 / 60) << 5) | (second % 60 / 2);
    (date as u16, time as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_ones_that_a_calendar_says() {
        let said = |epoch| {
            let (date, time) = stamp(epoch);
            let date = (1980 + (date >> 9), date >> 5 & 15, date & 31);
            (date, (time >> 11, time >> 5 & 63, (time & 31) * 2))
        };
        assert_eq!(said(0), ((1980, 1, 1), (0, 0, 0)));
        assert_eq!(said(951_782_400), ((2000, 2, 29), (0, 0, 0)));
        assert_eq!(said(1_700_000_000), ((2023, 11, 14), (22, 13, 20)));
        assert_eq!(said(1_735_689_599), ((2024, 12, 31), (23, 59, 58)));
        assert_eq!(said(i64::MAX), ((2107, 12, 31), (23, 59, 58)));
    }

    #[test]
    fn every_size_of_an_esp_has_the_clusters_of_fat32_in_the_largest_possible_size() {
        for (mib, sector, cluster) in [
            (64, 512, 512),
            (128, 512, 1024),
            (256, 512, 2048),
            (300, 512, 4096),
            (512, 512, 4096),
            (512, 4096, 4096),
        ] {
            let g = Geometry::of(mib << 20, sector).unwrap();
            assert_eq!((g.cluster_size(), g.clusters >= MIN_CLUSTERS), (cluster, true), "{mib} MiB");
            assert!(g.cluster_at(g.clusters + 2) <= mib << 20);
            assert_eq!(g.cluster_at(2) % 4096, 0);
            assert!(u64::from(g.fat) * u64::from(sector) >= u64::from(g.clusters + 2) * 4);
        }
        assert!(Geometry::of(256 << 20, 4096).is_err());
    }
}
