//! The bytes of a table: UEFI Specification 2.10, sections 5.2.3 and 5.3.

use super::{ENTRIES, Partition, Table};

/// UTF-16 units of a partition name.
pub(super) const NAME_UNITS: usize = 36;
pub(super) const SIGNATURE: &[u8; 8] = b"EFI PART";
pub(super) const REVISION: u32 = 0x0001_0000;
pub(super) const HEADER: usize = 92;
pub(super) const ENTRY: usize = 128;
/// Bytes of all entries.
pub(super) const ARRAY: usize = ENTRIES * ENTRY;

/// Sectors of the entries.
fn array_sectors(sector: u32) -> u64 {
    (ARRAY as u64).div_ceil(u64::from(sector))
}

/// First sector behind the primary copy.
pub(super) fn first_usable(sector: u32) -> u64 {
    2 + array_sectors(sector)
}

pub(super) fn primary(table: &Table) -> Vec<u8> {
    let sector = table.sector as usize;
    let entries = entries(table);
    let last = table.size / u64::from(table.sector) - 1;
    let mut bytes = vec![0; 2 * sector];
    bytes[..512].copy_from_slice(&protective_mbr(last));
    bytes[sector..sector + HEADER].copy_from_slice(&header(table, &entries, 1, last, 2));
    bytes.extend(entries);
    bytes
}

pub(super) fn backup(table: &Table) -> (u64, Vec<u8>) {
    let mut bytes = entries(table);
    let last = table.size / u64::from(table.sector) - 1;
    let array = last - array_sectors(table.sector);
    let header = header(table, &bytes, last, 1, array);
    bytes.extend(header);
    bytes.resize(bytes.len().next_multiple_of(table.sector as usize), 0);
    (array * u64::from(table.sector), bytes)
}

/// One partition of type 0xEE over the whole disk, so that tools that know no GPT keep off. `last` is the last sector.
fn protective_mbr(last: u64) -> [u8; 512] {
    let mut mbr = [0; 512];
    let entry = &mut mbr[446..462];
    entry[1..4].copy_from_slice(&[0x00, 0x02, 0x00]); // CHS of sector 1
    entry[4] = 0xEE;
    entry[5..8].copy_from_slice(&[0xFF; 3]); // CHS that cannot be said
    entry[8..12].copy_from_slice(&1_u32.to_le_bytes());
    entry[12..16].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xAA]);
    mbr
}

fn header(table: &Table, entries: &[u8], own: u64, other: u64, array: u64) -> [u8; HEADER] {
    let first = first_usable(table.sector);
    let last = table.size / u64::from(table.sector) - first;
    let mut header = [0; HEADER];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, SIGNATURE);
    put(8, &REVISION.to_le_bytes());
    put(12, &(HEADER as u32).to_le_bytes());
    put(24, &own.to_le_bytes());
    put(32, &other.to_le_bytes());
    put(40, &first.to_le_bytes());
    put(48, &last.to_le_bytes());
    put(56, &table.guid.to_bytes_le());
    put(72, &array.to_le_bytes());
    put(80, &(ENTRIES as u32).to_le_bytes());
    put(84, &(ENTRY as u32).to_le_bytes());
    put(88, &crc32fast::hash(entries).to_le_bytes());
    let crc = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    header
}

fn entries(table: &Table) -> Vec<u8> {
    let sector = u64::from(table.sector);
    let mut bytes = vec![0; array_sectors(table.sector) as usize * table.sector as usize];
    for (Partition { kind, guid, name, offset, size, attributes }, entry) in
        table.partitions.iter().zip(bytes.chunks_exact_mut(ENTRY))
    {
        entry[..16].copy_from_slice(&kind.to_bytes_le());
        entry[16..32].copy_from_slice(&guid.to_bytes_le());
        entry[32..40].copy_from_slice(&(offset / sector).to_le_bytes());
        entry[40..48].copy_from_slice(&((offset + size) / sector - 1).to_le_bytes());
        entry[48..56].copy_from_slice(&attributes.to_le_bytes());
        for (unit, field) in name.encode_utf16().zip(entry[56..].chunks_exact_mut(2)) {
            field.copy_from_slice(&unit.to_le_bytes());
        }
    }
    bytes
}
