//! The compact cluster index of a compressed inode: which blocks hold which part of the file.
//!
//! A compressed file is a row of 4 KiB logical clusters. The first one of an extent is a HEAD (or PLAIN, if the bytes are
//! stored as they are), the others are NONHEAD; the first NONHEAD says how many blocks the extent takes (CBLKCNT), the
//! others how far back their head lies. The compact form packs 2 clusters in 8 bytes or, from the first 32-byte boundary
//! on, 16 clusters in 32 bytes: 14 bits each and one 32-bit block address per pack. Against the plain form of 8 bytes per
//! cluster it saves 1.5 KiB of metadata per MiB of file.
//!
//! The reader's side is `z_erofs_load_compact_lcluster` in the kernel's `fs/erofs/zmap.c`.

use super::compress::Extent;
use super::format::{put16, put32};

/// `Z_EROFS_LCLUSTER_TYPE_PLAIN`, `_HEAD1` and `_NONHEAD`.
const PLAIN: u32 = 0;
const HEAD1: u32 = 1;
const NONHEAD: u32 = 2;
/// Bits of the number beside the type: `Z_EROFS_LI_D0_CBLKCNT` is the highest of 12.
const LOW_BITS: u32 = 12;
/// `Z_EROFS_LI_D0_CBLKCNT`: the number is a count of blocks and not a distance.
const CBLKCNT: u32 = 1 << 11;
/// `Z_EROFS_ADVISE_COMPACTED_2B | Z_EROFS_ADVISE_BIG_PCLUSTER_1 | Z_EROFS_ADVISE_BIG_PCLUSTER_2`.
const ADVISE: u16 = 0x1 | 0x2 | 0x4;
/// `h_algorithmtype`: HEAD1 is zstd (`Z_EROFS_COMPRESSION_ZSTD`).
const ALGORITHM: u8 = 3;
/// Bytes of `struct z_erofs_map_header`.
pub(super) const MAP_HEADER: u64 = 8;

/// How many clusters go into 2-cluster packs first, then into 16-cluster packs; what is left goes into 2-cluster packs.
/// `at` is where the packs start in the image, a multiple of 8.
fn split(at: u64, clusters: u64) -> (u64, u64) {
    let first = ((32 - at % 32) / 4 % 8).min(clusters);
    (first, (clusters - first) / 16 * 16)
}

/// Bytes that the map header and the index of `clusters` take when they start at `at` in the image, a multiple of 8.
pub(super) fn len(at: u64, clusters: u64) -> u64 {
    let (first, middle) = split(at + MAP_HEADER, clusters);
    let last = clusters - first - middle;
    MAP_HEADER + (first.next_multiple_of(2) + last.next_multiple_of(2)) * 4 + middle * 2
}

/// One logical cluster.
#[derive(Clone, Copy)]
struct Cluster {
    kind: u32,
    /// NONHEAD: clusters back to the head; [`CBLKCNT`] and the blocks of the extent in the first one.
    back: u32,
    /// NONHEAD: clusters on to the next head or to the end.
    ahead: u32,
    /// Heads: first block.
    block: u32,
}

/// Appends map header and index of a file whose extents lie back to back from `block` on. `at` as for [`len`].
pub(super) fn put(b: &mut Vec<u8>, at: u64, extents: &[Extent], block: u32) {
    put32(b, 0); // no fragment, no inline tail
    put16(b, ADVISE);
    b.extend([ALGORITHM, 0]); // logical clusters are one block
    let clusters = clusters(extents, block);
    let (first, middle) = split(at + MAP_HEADER, clusters.len() as u64);
    let (head, rest) = clusters.split_at(first as usize);
    let (middle, tail) = rest.split_at(middle as usize);
    for (part, count) in [(head, 2), (middle, 16), (tail, 2)] {
        for pack in part.chunks(count) {
            put_pack(b, pack, count);
        }
    }
}

/// Appends the map header of a file that lies whole in the packed inode, `offset` bytes from its start.
pub(super) fn put_fragment(b: &mut Vec<u8>, offset: u64) {
    // Z_EROFS_FRAGMENT_INODE_BIT is bit 7 of the last of the 8 bytes; the other 63 bits are the offset.
    b.extend((offset | 1 << 63).to_le_bytes());
}

fn clusters(extents: &[Extent], mut block: u32) -> Vec<Cluster> {
    let mut clusters = Vec::with_capacity(extents.iter().map(|e| e.clusters as usize).sum());
    for extent in extents {
        if extent.is_plain() {
            for n in 0..extent.blocks {
                clusters.push(Cluster { kind: PLAIN, back: 0, ahead: 0, block: block + n });
            }
        } else {
            for n in 0..extent.clusters {
                let back = if n == 1 { CBLKCNT | extent.blocks } else { n };
                let kind = if n == 0 { HEAD1 } else { NONHEAD };
                clusters.push(Cluster { kind, back, ahead: extent.clusters - n, block });
            }
        }
        block += extent.blocks;
    }
    clusters
}

/// Appends one pack of `count` clusters; the last pack of a file may hold fewer and is filled with zeros.
fn put_pack(b: &mut Vec<u8>, pack: &[Cluster], count: usize) {
    let bytes = if count == 2 { 8 } else { 32 };
    let bits = (bytes - 4) * 8 / count;
    let mut packed = [0u8; 32];
    for (i, cluster) in pack.iter().enumerate() {
        let low = match cluster.kind {
            NONHEAD if cluster.back & CBLKCNT != 0 => cluster.back,
            // The last one of a pack looks ahead: its distance back follows from the one before it.
            NONHEAD if i + 1 == count => cluster.ahead,
            NONHEAD => cluster.back,
            _ => 0, // every extent starts at the start of a cluster
        };
        let value = cluster.kind << LOW_BITS | low;
        for bit in 0..bits {
            let at = i * bits + bit;
            packed[at / 8] |= ((value >> bit & 1) as u8) << (at % 8);
        }
    }
    // A reader adds up the blocks of the clusters before a head, so the base is that many blocks before the first head.
    let before = match pack.first() {
        Some(c) if c.kind == NONHEAD && c.back & CBLKCNT != 0 => c.back & !CBLKCNT,
        _ => 0,
    };
    let base = pack.iter().find(|c| c.kind != NONHEAD).map_or(0, |head| head.block - before);
    b.extend(&packed[..bytes - 4]);
    put32(b, base);
}
