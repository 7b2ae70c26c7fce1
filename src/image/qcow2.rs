//! A disk image as qcow2: what virtualisation hosts take, compressed and without its zeros.
//!
//! ```text
//! header | L1 table | L2 tables | clusters ... | refcount blocks | refcount table      each part at a multiple of 64 KiB
//! ```
//!
//! Version 3 with clusters of 64 KiB. A cluster of zeros has no entry; any other is compressed by itself and put right behind the one
//! before it, or stands as it is when that would not make it smaller. Clusters are compressed by several threads and written in
//! their order, so the bytes do not depend on the number of threads. Source: `docs/interop/qcow2.txt` of QEMU.

use std::io::{self, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::path::Path;

use super::sparse::{self, Source};

const BITS: u32 = 16;
const CLUSTER: usize = 1 << BITS;
/// Entries of 8 bytes in a cluster.
const ENTRIES: u64 = CLUSTER as u64 / 8;
/// Refcounts of 16 bits in a cluster.
const REFCOUNTS: u64 = CLUSTER as u64 / 2;
/// Set in an entry whose cluster is used once.
const COPIED: u64 = 1 << 63;
/// Set in an L2 entry whose cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Where the number of further sectors stands in such an entry.
const SECTORS_SHIFT: u32 = 62 - (BITS - 8);
const SECTOR: u64 = 512;
/// QEMU inflates with a window of this many bits.
const WINDOW_BITS: u8 = 12;
/// Clusters that are compressed before they are written: 16 MiB.
const BATCH: u64 = 256;

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Deflate at a level of 1 to 9: every reader of qcow2 knows it.
    Zlib(u32),
    /// Zstandard at a level of 1 to 22: QEMU 5.1 and later; smaller, and several times quicker to read.
    Zstd(i32),
}

/// Why an image cannot be written as qcow2.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// An image that no disk could be.
    #[error("{0} bytes are not a whole number of 512-byte sectors, and at least one")]
    Size(u64),
    /// Reading, compressing or writing failed.
    #[error("writing qcow2: {0}")]
    Io(#[from] io::Error),
}

/// A cluster on its way.
enum Packed {
    Zeros,
    Compressed(Vec<u8>),
    Plain(Vec<u8>),
}

/// Writes the raw image in the file `raw` as qcow2 to `out`, from its start on, which must be empty; says its length.
pub fn write(
    raw: &Path,
    compression: Compression,
    threads: NonZeroUsize,
    out: &mut (impl Write + Seek),
) -> Result<u64, Qcow2Error> {
    let source = Source::open(raw)?;
    let size = source.len();
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(Qcow2Error::Size(size));
    }
    let clusters = size.div_ceil(CLUSTER as u64);
    let l2_tables = clusters.div_ceil(ENTRIES);
    let l1_at = CLUSTER as u64;
    let l2_at = l1_at + (l2_tables * 8).next_multiple_of(CLUSTER as u64);
    let mut file = Allocation { at: l2_at + l2_tables * CLUSTER as u64, counts: Vec::new() };
    file.count(0, file.at);

    let mut l2 = vec![0_u64; usize::try_from(l2_tables * ENTRIES).map_err(|_| Qcow2Error::Size(size))?];
    for first in (0..clusters).step_by(BATCH as usize) {
        let last = clusters.min(first + BATCH);
        let batch = pack(&source, compression, first..last, threads)?;
        for (entry, packed) in l2[first as usize..].iter_mut().zip(batch) {
            match packed {
                Packed::Zeros => {}
                Packed::Compressed(bytes) => {
                    let at = file.take(bytes.len() as u64);
                    let further = (at + bytes.len() as u64 - 1) / SECTOR - at / SECTOR;
                    *entry = COMPRESSED | further << SECTORS_SHIFT | at;
                    out.seek(SeekFrom::Start(at))?;
                    out.write_all(&bytes)?;
                }
                Packed::Plain(bytes) => {
                    file.align();
                    let at = file.take(CLUSTER as u64);
                    *entry = COPIED | at;
                    out.seek(SeekFrom::Start(at))?;
                    out.write_all(&bytes)?;
                }
            }
        }
    }

    // Blocks and table count themselves: the smallest number of blocks that covers all.
    file.align();
    let used = file.at / CLUSTER as u64;
    let table_clusters = |blocks: u64| (blocks * 8).div_ceil(CLUSTER as u64);
    let covers = |blocks: &u64| blocks * REFCOUNTS >= used + blocks + table_clusters(*blocks);
    let blocks = (1..).find(covers).expect("a block covers more clusters than it takes");
    let blocks_at = file.take(blocks * CLUSTER as u64);
    let table_at = file.take(table_clusters(blocks) * CLUSTER as u64);
    let length = file.at;
    let mut counts: Vec<u8> = file.counts.iter().flat_map(|count| count.to_be_bytes()).collect();
    counts.resize((blocks * CLUSTER as u64) as usize, 0);
    let mut table = entries((0..blocks).map(|i| blocks_at + i * CLUSTER as u64));
    table.resize((length - table_at) as usize, 0);
    out.seek(SeekFrom::Start(blocks_at))?;
    out.write_all(&counts)?;
    out.write_all(&table)?;

    let l1 = entries((0..l2_tables).map(|i| COPIED | (l2_at + i * CLUSTER as u64)));
    out.seek(SeekFrom::Start(l1_at))?;
    out.write_all(&l1)?;
    out.seek(SeekFrom::Start(l2_at))?;
    out.write_all(&entries(l2.into_iter()))?;
    out.seek(SeekFrom::Start(0))?;
    let zstd = matches!(compression, Compression::Zstd(_));
    out.write_all(&header(size, l2_tables, l1_at, table_at, table_clusters(blocks), zstd))?;
    out.flush()?;
    Ok(length)
}

/// Which bytes of the file are taken, and how often each cluster is used.
struct Allocation {
    at: u64,
    counts: Vec<u16>,
}

impl Allocation {
    fn take(&mut self, length: u64) -> u64 {
        let at = self.at;
        self.at += length;
        self.count(at, self.at);
        at
    }

    fn align(&mut self) {
        self.at = self.at.next_multiple_of(CLUSTER as u64);
    }

    fn count(&mut self, from: u64, to: u64) {
        let last = (to.div_ceil(CLUSTER as u64)) as usize;
        if self.counts.len() < last {
            self.counts.resize(last, 0);
        }
        // At most one use per 64 bytes of a cluster, so 16 bits are enough.
        self.counts[(from / CLUSTER as u64) as usize..last].iter_mut().for_each(|count| *count += 1);
    }
}

fn entries(values: impl Iterator<Item = u64>) -> Vec<u8> {
    values.flat_map(u64::to_be_bytes).collect()
}

fn header(size: u64, l1: u64, l1_at: u64, table_at: u64, table_clusters: u64, zstd: bool) -> [u8; 120] {
    // 112 bytes, then the end mark of the extensions.
    let mut header = [0; 120];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &BITS.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &(l1 as u32).to_be_bytes());
    put(40, &l1_at.to_be_bytes());
    put(48, &table_at.to_be_bytes());
    put(56, &(table_clusters as u32).to_be_bytes());
    put(72, &(u64::from(zstd) << 3).to_be_bytes()); // incompatible feature: the compression type is not zlib
    put(96, &4_u32.to_be_bytes()); // refcounts of 2^4 bits
    put(100, &112_u32.to_be_bytes());
    put(104, &[u8::from(zstd)]);
    header
}

/// Compresses the clusters of `range`, in their order.
fn pack(
    source: &Source,
    compression: Compression,
    range: std::ops::Range<u64>,
    threads: NonZeroUsize,
) -> io::Result<Vec<Packed>> {
    let numbers: Vec<u64> = range.collect();
    let share = numbers.len().div_ceil(threads.get());
    std::thread::scope(|scope| {
        let running: Vec<_> = numbers
            .chunks(share)
            .map(|share| scope.spawn(move || pack_share(source, compression, share)))
            .collect();
        let mut all = Vec::with_capacity(numbers.len());
        for thread in running {
            all.extend(thread.join().expect("compressing does not panic")?);
        }
        Ok(all)
    })
}

fn pack_share(source: &Source, compression: Compression, numbers: &[u64]) -> io::Result<Vec<Packed>> {
    let mut zstd = match compression {
        Compression::Zstd(level) => Some(zstd::bulk::Compressor::new(level)?),
        Compression::Zlib(_) => None,
    };
    let mut pack = |number: u64| {
        let at = number * CLUSTER as u64;
        if source.is_hole(at, CLUSTER as u64) {
            return Ok(Packed::Zeros);
        }
        let mut bytes = vec![0; CLUSTER];
        source.read_at(&mut bytes, at)?;
        if sparse::is_zero(&bytes) {
            return Ok(Packed::Zeros);
        }
        let compressed = match (compression, &mut zstd) {
            (Compression::Zlib(level), _) => deflate(&bytes, level)?,
            (_, Some(zstd)) => zstd.compress(&bytes)?,
            (_, None) => unreachable!("made above for this compression"),
        };
        Ok(if compressed.len() < CLUSTER { Packed::Compressed(compressed) } else { Packed::Plain(bytes) })
    };
    numbers.iter().map(|number| pack(*number)).collect()
}

/// Raw deflate with the window that QEMU has.
fn deflate(bytes: &[u8], level: u32) -> io::Result<Vec<u8>> {
    let level = flate2::Compression::new(level);
    let mut deflate = flate2::Compress::new_with_window_bits(level, false, WINDOW_BITS);
    let mut packed = Vec::with_capacity(bytes.len() + 1024);
    match deflate.compress_vec(bytes, &mut packed, flate2::FlushCompress::Finish)? {
        flate2::Status::StreamEnd => Ok(packed),
        // It did not fit in more room than the cluster takes as it is.
        _ => Ok(vec![0; bytes.len()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use fs_err as fs;
    use std::io::Cursor;
    use std::os::unix::fs::FileExt;

    fn be(bytes: &[u8], at: u64) -> u64 {
        u64::from_be_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap())
    }

    /// A reader that knows no more than the format's text says.
    fn raw_of(qcow2: &[u8]) -> Vec<u8> {
        let (size, l1) = (be(qcow2, 24), be(qcow2, 40));
        let mut raw = vec![0; size as usize];
        for (number, cluster) in raw.chunks_mut(CLUSTER).enumerate() {
            let l2 = be(qcow2, l1 + number as u64 / ENTRIES * 8) & !COPIED;
            let entry = be(qcow2, l2 + number as u64 % ENTRIES * 8);
            if entry & COMPRESSED != 0 {
                let at = entry & ((1 << SECTORS_SHIFT) - 1);
                let sectors = (entry & !COMPRESSED) >> SECTORS_SHIFT;
                let end = ((at / SECTOR + 1 + sectors) * SECTOR) as usize;
                let bytes = &qcow2[at as usize..end];
                let mut plain = vec![0; CLUSTER];
                if qcow2[104] == 1 {
                    io::Read::read_exact(&mut zstd::Decoder::new(bytes).unwrap(), &mut plain).unwrap();
                } else {
                    let mut inflate = flate2::Decompress::new_with_window_bits(false, WINDOW_BITS);
                    inflate.decompress(bytes, &mut plain, flate2::FlushDecompress::Finish).unwrap();
                }
                cluster.copy_from_slice(&plain[..cluster.len()]);
            } else if entry != 0 {
                let at = (entry & !COPIED) as usize;
                cluster.copy_from_slice(&qcow2[at..at + cluster.len()]);
            }
        }
        raw
    }

    #[test]
    fn the_image_comes_back_whatever_the_number_of_threads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw");
        let file = fs::File::create(&path).unwrap();
        // Two L2 tables, an odd end, text, and noise that cannot be compressed.
        file.set_len((530 << 20) + 512).unwrap();
        let text: String = (0..100_000_u64).map(|i| format!("{i:x} ")).collect();
        let mut noise = vec![0; 300_000];
        let mut state = 1_u64;
        noise.iter_mut().for_each(|byte| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        });
        for (at, bytes) in
            [(0, text.as_bytes()), (40 << 20, &noise), (529 << 20, text.as_bytes()), (530 << 20, b"end")]
        {
            file.file().write_all_at(bytes, at).unwrap();
        }
        for (compression, digest) in [
            (Compression::Zlib(6), "70abce929c1999932d613fd20b4109bcafb43563eef13fc302b353c068a408f6"),
            (Compression::Zstd(3), "631953219e61c389f039349a3cb24ef9d4d50ed233d91e4636c89d9b277be59c"),
        ] {
            let written = [1, 4].map(|threads| {
                let mut out = Cursor::new(Vec::new());
                let length =
                    write(&path, compression, NonZeroUsize::new(threads).unwrap(), &mut out).unwrap();
                assert_eq!(length, out.get_ref().len() as u64);
                out.into_inner()
            });
            assert!(written[0] == written[1]);
            assert!(written[0].len() < 3 << 19, "{} bytes", written[0].len());
            assert!(raw_of(&written[0]) == fs::read(&path).unwrap(), "{compression:?}");
            assert_eq!(
                Digest::of(&written[0]).to_string(),
                digest,
                "{compression:?}; if meant, put the new digest here"
            );
        }
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for size in [0, 1000] {
            file.as_file().set_len(size).unwrap();
            let result =
                write(file.path(), Compression::Zstd(1), NonZeroUsize::MIN, &mut Cursor::new(Vec::new()));
            assert!(matches!(result, Err(Qcow2Error::Size(found)) if found == size));
        }
    }
}
