//! Reading a table from a disk of unknown origin: every number is checked before it is used.

use std::io::{Read, Seek, SeekFrom};

use uuid::Uuid;

use super::format::{ARRAY, ENTRY, HEADER, NAME_UNITS, SIGNATURE};
use super::{GptError, Partition, Table};

/// One copy: what its header says, and its entries.
struct Copy {
    own: u64,
    other: u64,
    first: u64,
    last: u64,
    guid: Uuid,
    entries: Vec<u8>,
}

/// Reads and checks both copies of the table on `disk`: signatures, checksums, that each points at the other, that they agree,
/// and that no partition leaves the usable part or overlaps another. The sector size is that of the device.
pub fn read(disk: &mut (impl Read + Seek), sector: u32) -> Result<Table, GptError> {
    if sector != 512 && sector != 4096 {
        return Err(GptError::Sector(sector));
    }
    let size = disk.seek(SeekFrom::End(0))?;
    let sectors = size / u64::from(sector);
    if sectors < 3 {
        return Err(GptError::NoProtectiveMbr);
    }
    let mbr = bytes_at(disk, 0, 512)?;
    let protective = (0..4).any(|i| mbr[446 + 16 * i + 4] == 0xEE);
    if mbr[510..] != [0x55, 0xAA] || !protective {
        return Err(GptError::NoProtectiveMbr);
    }
    let primary = copy(disk, sector, sectors, 1, "primary")?;
    let backup = copy(disk, sector, sectors, primary.other, "backup")?;
    let same = [
        ("the backup does not point at the primary", backup.other == primary.own),
        ("disk GUID", backup.guid == primary.guid),
        ("usable sectors", (backup.first, backup.last) == (primary.first, primary.last)),
        ("entries", backup.entries == primary.entries),
    ];
    if let Some((what, _)) = same.iter().find(|(_, same)| !same) {
        return Err(GptError::Differ(what));
    }
    let partitions = partitions(&primary, u64::from(sector))?;
    // The disk of the table ends with the backup; a device may be larger, as after flashing.
    let size = (primary.other + 1) * u64::from(sector);
    Ok(Table { guid: primary.guid, sector, size, partitions })
}

/// Reads and checks the primary copy alone, from the first bytes of a disk ([`ALIGNMENT`] of them are enough): for an image that comes
/// as a stream, whose end nobody has seen. [`Table::size`] is what the header says.
///
/// [`ALIGNMENT`]: super::ALIGNMENT
pub fn read_primary(head: &[u8], sector: u32) -> Result<Table, GptError> {
    if sector != 512 && sector != 4096 {
        return Err(GptError::Sector(sector));
    }
    let protective = |mbr: &[u8]| mbr[510..512] == [0x55, 0xAA] && (0..4).any(|i| mbr[450 + 16 * i] == 0xEE);
    if !head.get(..512).is_some_and(protective) {
        return Err(GptError::NoProtectiveMbr);
    }
    let primary = copy(&mut std::io::Cursor::new(head), sector, u64::MAX / u64::from(sector), 1, "primary")?;
    let partitions = partitions(&primary, u64::from(sector))?;
    let size = primary.other.checked_add(1).and_then(|sectors| sectors.checked_mul(u64::from(sector)));
    let size =
        size.ok_or(GptError::Header { copy: "primary", reason: "the backup lies outside of any disk" })?;
    Ok(Table { guid: primary.guid, sector, size, partitions })
}

fn copy(
    disk: &mut (impl Read + Seek),
    sector: u32,
    sectors: u64,
    own: u64,
    copy: &'static str,
) -> Result<Copy, GptError> {
    let refuse = |reason| Err(GptError::Header { copy, reason });
    if own == 0 || own >= sectors {
        return refuse("it lies outside of the disk");
    }
    let mut header = bytes_at(disk, own * u64::from(sector), HEADER)?;
    let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    if &header[..8] != SIGNATURE {
        return refuse("the signature `EFI PART` is missing");
    }
    if u32_at(12) as usize != HEADER {
        return refuse("it does not have 92 bytes");
    }
    let wanted = u32_at(16);
    let found = (u64_at(24), u64_at(32), u64_at(40), u64_at(48), u64_at(72));
    let (at, other, first, last, array) = found;
    let (count, length, array_crc) = (u32_at(80), u32_at(84), u32_at(88));
    let guid = Uuid::from_bytes_le(header[56..72].try_into().expect("16 bytes"));
    header[16..20].fill(0);
    if crc32fast::hash(&header) != wanted {
        return refuse("its checksum is wrong");
    }
    if at != own {
        return refuse("it names another place than its own");
    }
    if count as usize * length as usize != ARRAY || length as usize != ENTRY {
        return refuse("it does not have 128 entries of 128 bytes");
    }
    let array_sectors = (ARRAY as u64).div_ceil(u64::from(sector));
    if array < 2 || array.checked_add(array_sectors).is_none_or(|end| end > sectors) {
        return refuse("its entries lie outside of the disk");
    }
    if first > last || last >= sectors {
        return refuse("its usable sectors lie outside of the disk");
    }
    let entries = bytes_at(disk, array * u64::from(sector), ARRAY)?;
    if crc32fast::hash(&entries) != array_crc {
        return refuse("the checksum of its entries is wrong");
    }
    Ok(Copy { own, other, first, last, guid, entries })
}

fn partitions(copy: &Copy, sector: u64) -> Result<Vec<Partition>, GptError> {
    let mut partitions: Vec<Partition> = Vec::new();
    for (number, entry) in (1..).zip(copy.entries.chunks_exact(ENTRY)) {
        let u64_at = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8 bytes"));
        let guid_at = |at: usize| Uuid::from_bytes_le(entry[at..at + 16].try_into().expect("16 bytes"));
        let (kind, first, last) = (guid_at(0), u64_at(32), u64_at(40));
        if kind.is_nil() {
            continue;
        }
        if first > last || first < copy.first || last > copy.last {
            return Err(GptError::Partition { number, reason: "lies outside of the usable sectors" });
        }
        let (Some(offset), Some(size)) = (first.checked_mul(sector), (last - first + 1).checked_mul(sector))
        else {
            return Err(GptError::Partition { number, reason: "lies outside of any disk" });
        };
        if offset.checked_add(size).is_none() {
            return Err(GptError::Partition { number, reason: "lies outside of any disk" });
        }
        if partitions.iter().any(|p| offset < p.offset + p.size && p.offset < offset + size) {
            return Err(GptError::Partition { number, reason: "overlaps another" });
        }
        let units: Vec<u16> = entry[56..56 + 2 * NAME_UNITS]
            .chunks_exact(2)
            .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
            .take_while(|unit| *unit != 0)
            .collect();
        let Ok(name) = String::from_utf16(&units) else {
            return Err(GptError::Partition { number, reason: "has a name that is not UTF-16" });
        };
        partitions.push(Partition { kind, guid: guid_at(16), name, offset, size, attributes: u64_at(48) });
    }
    Ok(partitions)
}

fn bytes_at(disk: &mut (impl Read + Seek), offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    disk.seek(SeekFrom::Start(offset))?;
    disk.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{disk, table};
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    #[test]
    fn each_damage_is_named() {
        let table = table(512);
        let end = table.size as usize;
        let damaged = |at: usize| {
            let mut disk = disk(&table);
            disk[at] ^= 1;
            read(&mut Cursor::new(disk), 512).unwrap_err().to_string()
        };
        for (at, part) in [
            (510, "no protective MBR"),
            (450, "no protective MBR"),
            (512, "primary GPT header is damaged: the signature"),
            (512 + 60, "primary GPT header is damaged: its checksum"),
            (1024 + 40, "primary GPT header is damaged: the checksum of its entries"),
            (end - 512, "backup GPT header is damaged: the signature"),
            (end - 512 + 48, "backup GPT header is damaged: its checksum"),
            (end - 33 * 512, "backup GPT header is damaged: the checksum of its entries"),
        ] {
            let text = damaged(at);
            assert!(text.contains(part), "byte {at}: {text}");
        }
        let short = disk(&table)[..end - 512].to_vec();
        assert!(read(&mut Cursor::new(short), 512).unwrap_err().to_string().contains("backup"));
    }

    #[test]
    fn tables_that_contradict_themselves_are_refused() {
        let refused = |change: &dyn Fn(&mut Table)| {
            let mut table = table(512);
            change(&mut table);
            read(&mut Cursor::new(disk(&table)), 512).unwrap_err().to_string()
        };
        assert!(
            refused(&|t| t.partitions[1].offset = t.partitions[0].offset)
                .contains("partition 2 of the GPT overlaps")
        );
        assert!(refused(&|t| t.partitions[0].offset = 512).contains("partition 1 of the GPT lies outside"));
        let mut disk_of_two = disk(&table(512));
        let mut other = table(512);
        other.guid = Uuid::max();
        let (at, backup) = other.backup();
        disk_of_two[at as usize..].copy_from_slice(&backup);
        assert!(matches!(read(&mut Cursor::new(disk_of_two), 512), Err(GptError::Differ("disk GUID"))));
    }

    #[test]
    fn the_first_mebibyte_is_enough_for_the_primary_copy() {
        for sector in [512, 4096] {
            let table = table(sector);
            let mut disk = disk(&table);
            disk.truncate(1 << 20);
            assert_eq!(read_primary(&disk, sector).unwrap(), table);
            disk[2 * sector as usize + 1] ^= 1;
            assert!(matches!(read_primary(&disk, sector), Err(GptError::Header { copy: "primary", .. })));
            assert!(read_primary(&disk[..600], sector).is_err() && read_primary(&[], sector).is_err());
        }
    }

    #[test]
    fn a_larger_device_still_has_the_table() {
        let table = table(512);
        let mut bytes = disk(&table);
        bytes.resize(bytes.len() + 5_000_000, 0);
        assert_eq!(read(&mut Cursor::new(bytes), 512).unwrap(), table);
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(
            fields in proptest::collection::vec((512_usize..2048, any::<[u8; 8]>()), 0..6),
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            whole: bool,
        ) {
            if whole {
                let _ = read_primary(&bytes, 512);
                let _ = read(&mut Cursor::new(&bytes), 512);
            }
            let mut disk = disk(&table(512));
            for (at, field) in fields {
                disk[at..at + 8].copy_from_slice(&field);
            }
            // With right checksums, so that the checks behind them are reached.
            let array = crc32fast::hash(&disk[1024..1024 + ARRAY]);
            disk[512 + 88..512 + 92].copy_from_slice(&array.to_le_bytes());
            disk[512..524].copy_from_slice(b"EFI PART\0\0\x01\0");
            disk[524..528].copy_from_slice(&92_u32.to_le_bytes());
            disk[528..532].fill(0);
            let crc = crc32fast::hash(&disk[512..512 + HEADER]);
            disk[528..532].copy_from_slice(&crc.to_le_bytes());
            let _ = read_primary(&disk, 512);
            let _ = read(&mut Cursor::new(disk), 512);
        }
    }
}
