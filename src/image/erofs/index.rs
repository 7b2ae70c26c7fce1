//! The compact cluster index of a compressed inode: which blocks hold which part of the file.
//!
//! A compressed file is a row of 4 KiB logical clusters. The first one of an extent is a HEAD (or PLAIN, if the bytes are
//! stored as they are) and says where in the cluster the extent begins, the others are NONHEAD; the first NONHEAD says how
//! many blocks the extent takes (CBLKCNT), the others how far back their head lies. The compact form packs 2 clusters in 8 bytes or, from the first 32-byte boundary
//! on, 16 clusters in 32 bytes: 14 bits each and one 32-bit block address per pack. Against the plain form of 8 bytes per
//! cluster it saves 1.5 KiB of metadata per MiB of file.
//!
//! The reader's side is `z_erofs_load_compact_lcluster` in the kernel's `fs/erofs/zmap.c`.

use super::compress::Extent;
use super::format::{BLOCK, put16, put32};

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
    /// Heads: where in the cluster the extent starts. NONHEAD: clusters back to the head, or in the first one [`CBLKCNT`]
    /// and the blocks of the extent.
    low: u32,
    /// NONHEAD: clusters on to the next head or to the end.
    ahead: u32,
    /// Heads: first block.
    block: u32,
}

impl Cluster {
    /// Whether this one counts the blocks of its extent.
    fn counts(self) -> bool {
        self.kind == NONHEAD && self.low & CBLKCNT != 0
    }
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

/// Where each extent starts and how many blocks it takes; one that is stored as it is counts as extents of 4 KiB, because
/// a PLAIN cluster is always one block.
fn heads(extents: &[Extent]) -> impl Iterator<Item = Head> {
    let mut start = 0;
    extents.iter().flat_map(move |extent| {
        let (first, plain) = (start, extent.is_plain());
        start += extent.raw;
        let end = start;
        let (count, blocks) = if plain { (u64::from(extent.blocks), 1) } else { (1, extent.blocks) };
        (0..count).map(move |n| Head { start: first + n * BLOCK, end, plain, blocks })
    })
}

/// The start of an extent in the raw bytes.
#[derive(Debug, Clone, Copy)]
struct Head {
    start: u64,
    /// End of the extent that it comes from.
    end: u64,
    plain: bool,
    blocks: u32,
}

/// Whether an index can say where `extents` lie: no two start in the same cluster, and none that is stored as it is
/// reaches into a second one (the kernel takes that for corruption at the end of a file).
pub(super) fn is_mappable(extents: &[Extent]) -> bool {
    let mut last = None;
    heads(extents).all(|head| {
        let cluster = head.start / BLOCK;
        let inside = !head.plain || head.end.min(head.start + BLOCK) <= (cluster + 1) * BLOCK;
        last.replace(cluster) < Some(cluster) && inside
    })
}

/// All clusters of a file whose extents are mappable.
fn clusters(extents: &[Extent], mut block: u32) -> Vec<Cluster> {
    let total = extents.iter().map(|e| e.raw).sum::<u64>().div_ceil(BLOCK);
    let mut clusters = Vec::with_capacity(total as usize);
    let mut heads = heads(extents).peekable();
    while let Some(head) = heads.next() {
        let kind = if head.plain { PLAIN } else { HEAD1 };
        clusters.push(Cluster { kind, low: (head.start % BLOCK) as u32, ahead: 0, block });
        let next = heads.peek().map_or(total, |next| next.start / BLOCK);
        let count = (next - head.start / BLOCK) as u32;
        for n in 1..count {
            let low = if n == 1 { CBLKCNT | head.blocks } else { n };
            clusters.push(Cluster { kind: NONHEAD, low, ahead: count - n, block });
        }
        block += head.blocks;
    }
    clusters
}

/// Appends one pack of `count` clusters; the last pack of a file may hold fewer and is filled with zeros.
fn put_pack(b: &mut Vec<u8>, pack: &[Cluster], count: usize) {
    let bytes = if count == 2 { 8 } else { 32 };
    let bits = (bytes - 4) * 8 / count;
    let mut packed = [0u8; 32];
    for (i, cluster) in pack.iter().enumerate() {
        // The last one of a pack looks ahead: its distance back follows from the one before it.
        let looks_ahead = cluster.kind == NONHEAD && !cluster.counts() && i + 1 == count;
        let low = if looks_ahead { cluster.ahead } else { cluster.low };
        let value = cluster.kind << LOW_BITS | low;
        for bit in 0..bits {
            let at = i * bits + bit;
            packed[at / 8] |= ((value >> bit & 1) as u8) << (at % 8);
        }
    }
    // A reader adds up the blocks of the clusters before a head, so the base is that many blocks before the first head.
    let before = match pack.first() {
        Some(c) if c.counts() => c.low & !CBLKCNT,
        _ => 0,
    };
    let base = pack.iter().find(|c| c.kind != NONHEAD).map_or(0, |head| head.block - before);
    b.extend(&packed[..bytes - 4]);
    put32(b, base);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(list: &[(u64, u32)]) -> Vec<Extent> {
        list.iter().map(|&e| e.into()).collect()
    }

    #[test]
    fn the_index_is_as_long_as_was_reserved_wherever_it_starts() {
        for clusters in 1..100 {
            for at in (0..64).step_by(8) {
                let mut b = Vec::new();
                put(&mut b, at, &extents(&[(clusters * BLOCK, 1)]), 5);
                assert_eq!(b.len() as u64, len(at, clusters), "{clusters} clusters at {at}");
            }
        }
        assert_eq!(len(24, 32), 8 + 64, "on a 32-byte boundary 32 clusters take 64 bytes");
    }

    #[test]
    fn a_pack_of_two_holds_types_numbers_and_the_base_block() {
        let mut b = Vec::new();
        // Two heads: 3 clusters in 2 blocks, then one stored block. Packs: [head, count 2], [back 2, plain].
        put(&mut b, 0, &extents(&[(3 * BLOCK - 7, 2), (7, 1), (BLOCK, 1)]), 9);
        let word = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
        assert_eq!((word(8), word(12)), (HEAD1 << 12 | (NONHEAD << 12 | CBLKCNT | 2) << 16, 9));
        assert_eq!((word(16), word(20)), ((PLAIN << 12 | 4089) | (PLAIN << 12) << 16, 11));
    }

    /// A reader of the index, written after the rules in `zmap.c`, of one file whose map header is at `at` in the image.
    struct Reader<'a> {
        index: &'a [u8],
        at: u64,
        clusters: u64,
    }

    impl Reader<'_> {
        /// The pack of cluster `n`: its bytes, the number of its slots, the slot of `n`.
        fn pack(&self, n: u64) -> (&[u8], usize, usize) {
            let start = self.at + 8;
            let first = ((32 - start % 32) / 4) % 8;
            let middle = self.clusters.saturating_sub(first) / 16 * 16;
            let (offset, slots) = if n < first {
                (n * 4, 2)
            } else if n - first < middle {
                (first * 4 + (n - first) * 2, 16)
            } else {
                (first * 4 + middle * 2 + (n - first - middle) * 4, 2)
            };
            // A pack lies at a multiple of its size, counted in the image and not in the index.
            let bytes = if slots == 2 { 8 } else { 32 };
            let from = (start + offset) / bytes * bytes;
            let slot = (start + offset - from) as usize / (bytes as usize / slots);
            let from = (from - self.at) as usize;
            (&self.index[from..from + bytes as usize], slots, slot)
        }

        /// Type and number in a slot.
        fn slot(pack: &[u8], slots: usize, slot: usize) -> (u32, u32) {
            let bits = (pack.len() - 4) * 8 / slots;
            let value = (0..14)
                .map(|b| u32::from(pack[(slot * bits + b) / 8] >> ((slot * bits + b) % 8) & 1) << b)
                .sum::<u32>();
            (value >> 12, value & 0xfff)
        }

        /// Clusters from `n` back to its head.
        fn back(&self, n: u64) -> u64 {
            let (pack, slots, slot) = self.pack(n);
            match Self::slot(pack, slots, slot) {
                (NONHEAD, low) if low & CBLKCNT != 0 => 1,
                (NONHEAD, low) if slot + 1 < slots => u64::from(low),
                (NONHEAD, _) => match Self::slot(pack, slots, slot - 1) {
                    (NONHEAD, low) if low & CBLKCNT != 0 => 2,
                    (NONHEAD, low) => u64::from(low) + 1,
                    _ => 1,
                },
                _ => 0,
            }
        }

        /// Of the head at cluster `n`: whether stored as it is, where in the cluster it starts, its first block, its blocks.
        fn head(&self, n: u64) -> (bool, u32, u32, u32) {
            let (pack, slots, slot) = self.pack(n);
            let (kind, low) = Self::slot(pack, slots, slot);
            assert_ne!(kind, NONHEAD);
            // Add up the blocks of the extents before this one, going back in the pack.
            let (mut i, mut before) = (slot as i64, 0);
            while i > 0 {
                i -= 1;
                match Self::slot(pack, slots, i as usize) {
                    (NONHEAD, low) if low & CBLKCNT != 0 => {
                        before += low & !CBLKCNT;
                        i -= 1;
                    }
                    (NONHEAD, low) => {
                        assert!(low > 1, "a first NONHEAD must count blocks");
                        i -= i64::from(low) - 2;
                    }
                    _ => before += 1,
                }
            }
            let base = u32::from_le_bytes(pack[pack.len() - 4..].try_into().unwrap());
            let mut blocks = 1;
            if n + 1 < self.clusters {
                let (pack, slots, slot) = self.pack(n + 1);
                if let (NONHEAD, low) = Self::slot(pack, slots, slot) {
                    assert!(low & CBLKCNT != 0);
                    blocks = low & !CBLKCNT;
                }
            }
            (kind == PLAIN, low, base + before, blocks)
        }

        /// The cluster where the extent of cluster `n` ends, as found by looking ahead from `n`.
        fn end(&self, mut n: u64) -> u64 {
            let from = n;
            while n < self.clusters {
                let (pack, slots, slot) = self.pack(n);
                if n > from && Self::slot(pack, slots, slot).0 != NONHEAD {
                    return n;
                }
                let mut ahead = 0;
                for i in slot..slots {
                    if Self::slot(pack, slots, i).0 != NONHEAD && i > slot {
                        return n + ahead;
                    }
                    ahead += 1;
                }
                // The last slot says how far its extent goes on, unless it counts blocks.
                n += match Self::slot(pack, slots, slots - 1) {
                    (NONHEAD, low) if low & CBLKCNT == 0 => ahead + u64::from(low) - 1,
                    _ => ahead,
                };
            }
            n.min(self.clusters)
        }
    }

    /// Extents as a run can have them: (compressed, raw clusters, bytes less, saved blocks).
    fn mappable(list: &[(bool, u64, u64, u32)]) -> Vec<Extent> {
        let (mut extents, mut start) = (Vec::new(), 0u64);
        for &(compressed, clusters, less, saved) in list {
            let raw = if compressed {
                (clusters + 2) * BLOCK - less
            } else if start % BLOCK != 0 {
                BLOCK - start % BLOCK
            } else {
                clusters * BLOCK
            };
            let all = raw.div_ceil(BLOCK) as u32;
            let blocks = if compressed { (all - 1).saturating_sub(saved).max(1) } else { all };
            extents.push(Extent { raw, blocks });
            start += raw;
        }
        extents
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn every_cluster_leads_to_its_extent(
            list in proptest::collection::vec(
                (proptest::bool::ANY, 1u64..31, 0u64..4096, 0u32..20), 1..30,
            ),
            at in 0u64..8,
        ) {
            let (at, extents) = (at * 8, mappable(&list));
            assert!(is_mappable(&extents), "{extents:?}");
            let mut index = Vec::new();
            put(&mut index, at, &extents, 1000);
            let raw: u64 = extents.iter().map(|e| e.raw).sum();
            let reader = Reader { index: &index, at, clusters: raw.div_ceil(BLOCK) };
            let (mut start, mut block) = (0, 1000);
            for extent in extents {
                let parts = if extent.is_plain() { extent.blocks } else { 1 };
                for part in 0..u64::from(parts) {
                    let from = start + part * BLOCK;
                    let to = if extent.is_plain() { (from + BLOCK).min(start + extent.raw) } else { start + extent.raw };
                    let blocks = if extent.is_plain() { 1 } else { extent.blocks };
                    let (head, next) = (from / BLOCK, if to == raw { reader.clusters } else { to / BLOCK });
                    assert_eq!(reader.head(head), (extent.is_plain(), (from % BLOCK) as u32, block, blocks));
                    for n in head..next {
                        assert_eq!((reader.back(n), reader.end(n)), (n - head, next), "cluster {n}");
                    }
                    block += blocks;
                }
                start += extent.raw;
            }
        }
    }

    #[test]
    fn extents_that_the_kernel_would_take_for_corruption_are_not_mappable() {
        assert!(is_mappable(&extents(&[(9000, 2), (3288, 1), (5000, 2)])));
        // A stored extent that starts inside a cluster and reaches into the next one.
        assert!(!is_mappable(&extents(&[(9000, 2), (3289, 1)])));
        // Two that start in the same cluster.
        assert!(!is_mappable(&extents(&[(100, 1), (9000, 2)])));
    }
}
