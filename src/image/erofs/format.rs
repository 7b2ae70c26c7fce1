//! The numbers and records of the erofs disk format that kiln writes.
//!
//! Names are those of the kernel's `fs/erofs/erofs_fs.h` (Linux 6.12), so that a reader can look each one up there. All
//! integers are little-endian. Only what the writer uses is here.

use super::ErofsError;

/// Bytes of a block. 4096 is the one size that every kernel accepts whatever its page size is not smaller.
pub(super) const BLOCK: u64 = 4096;
/// log2 of [`BLOCK`] (`blkszbits`).
const BLOCK_BITS: u8 = 12;
/// Where the superblock lies (`EROFS_SUPER_OFFSET`).
const SUPER_OFFSET: usize = 1024;
/// Bytes of the superblock without extension slots (`sizeof(struct erofs_super_block)` in 6.12).
const SUPER_SIZE: usize = 128;
/// `EROFS_SUPER_MAGIC_V1`.
const MAGIC: u32 = 0xE0F5_E1E2;

/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`: the first block carries a crc32c.
const COMPAT_SB_CHKSUM: u32 = 0x1;
/// `EROFS_FEATURE_COMPAT_MTIME`: the stored time is mtime.
const COMPAT_MTIME: u32 = 0x2;
/// `EROFS_FEATURE_INCOMPAT_ZERO_PADDING` (`LZ4_0PADDING`): compressed bytes end where their last block ends.
const INCOMPAT_ZERO_PADDING: u32 = 0x1;
/// `EROFS_FEATURE_INCOMPAT_COMPR_CFGS`, the same bit as `BIG_PCLUSTER`: algorithm records follow the superblock.
const INCOMPAT_COMPR_CFGS: u32 = 0x2;
/// `EROFS_FEATURE_INCOMPAT_FRAGMENTS`: files may lie in the packed inode.
const INCOMPAT_FRAGMENTS: u32 = 0x20;
/// `Z_EROFS_COMPRESSION_ZSTD`.
const COMPRESSION_ZSTD: u8 = 3;
/// `windowlog` of `struct z_erofs_zstd_cfgs` counts from `ZSTD_WINDOWLOG_ABSOLUTEMIN`.
const ZSTD_WINDOWLOG_MIN: u8 = 10;

/// log2 of the largest window that a pcluster may need; with it the largest raw pcluster, 128 KiB.
pub(super) const WINDOW_LOG: u8 = 17;

/// Where the first inode lies: behind the superblock and, if there is one, the 8-byte zstd record.
pub(super) const META_START: u64 = ((SUPER_OFFSET + SUPER_SIZE + 8) as u64).next_multiple_of(SLOT);
/// Inodes start at multiples of this; a nid counts in it (`EROFS_ISLOTBITS` = 5).
pub(super) const SLOT: u64 = 32;

/// `EROFS_INODE_FLAT_PLAIN`.
pub(super) const FLAT_PLAIN: u16 = 0;
/// `EROFS_INODE_FLAT_INLINE`.
pub(super) const FLAT_INLINE: u16 = 2;
/// `EROFS_INODE_COMPRESSED_COMPACT`.
pub(super) const COMPRESSED_COMPACT: u16 = 3;

/// What the superblock says.
#[derive(Debug)]
pub(super) struct Super {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) epoch: u64,
    pub(super) blocks: u32,
    pub(super) uuid: [u8; 16],
    pub(super) name: [u8; 16],
    /// Whether anything is compressed.
    pub(super) zstd: bool,
    /// Inode that holds all small files.
    pub(super) packed_nid: Option<u64>,
}

impl Super {
    /// Writes the superblock and its zstd record into the first block, then the checksum over the rest of that block.
    pub(super) fn put(&self, block: &mut [u8; BLOCK as usize]) {
        let mut incompat = 0;
        if self.zstd {
            incompat |= INCOMPAT_ZERO_PADDING | INCOMPAT_COMPR_CFGS;
        }
        if self.packed_nid.is_some() {
            incompat |= INCOMPAT_FRAGMENTS;
        }
        let mut b = Vec::with_capacity(SUPER_SIZE + 8);
        put32(&mut b, MAGIC);
        put32(&mut b, 0); // checksum, below
        put32(&mut b, COMPAT_SB_CHKSUM | COMPAT_MTIME);
        b.extend([BLOCK_BITS, 0]); // sb_extslots
        put16(&mut b, self.root_nid);
        put64(&mut b, self.inodes);
        put64(&mut b, self.epoch);
        put32(&mut b, 0); // fixed_nsec
        put32(&mut b, self.blocks);
        put32(&mut b, 0); // meta_blkaddr: nids count from the start of the image
        put32(&mut b, 0); // xattr_blkaddr: no shared attributes
        b.extend(self.uuid);
        b.extend(self.name);
        put32(&mut b, incompat);
        put16(&mut b, if self.zstd { 1 << COMPRESSION_ZSTD } else { 0 });
        b.resize(96, 0); // extra_devices, devt_slotoff, dirblkbits, xattr_prefix_count, xattr_prefix_start
        put64(&mut b, self.packed_nid.unwrap_or(0));
        b.resize(SUPER_SIZE, 0);
        if self.zstd {
            put16(&mut b, 6); // sizeof(struct z_erofs_zstd_cfgs)
            b.extend([0, WINDOW_LOG - ZSTD_WINDOWLOG_MIN, 0, 0, 0, 0]); // format, windowlog, reserved
        }
        block[SUPER_OFFSET..SUPER_OFFSET + b.len()].copy_from_slice(&b);
        let sum = crc32c(&block[SUPER_OFFSET..]);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&sum.to_le_bytes());
    }
}

/// crc32c (Castagnoli, reflected 0x82F63B78) as the kernel's `crc32c(~0, …)`: started with ones, not inverted at the end.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    crc
}

/// One inode without what follows it (attributes, inline bytes, indexes).
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) layout: u16,
    /// `i_xattr_icount`.
    pub(super) xattr_count: u16,
    /// Type and permission bits.
    pub(super) mode: u16,
    pub(super) nlink: u32,
    pub(super) size: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    /// `i_u`: first block, number of compressed blocks, or device number.
    pub(super) union: u32,
    /// `i_ino`, what 32-bit stat(2) shows.
    pub(super) ino: u32,
}

impl Inode {
    /// Whether the 32-byte form can say it all; that form has the time of the superblock.
    pub(super) fn is_compact(&self, epoch: u64) -> bool {
        u32::try_from(self.size).is_ok()
            && [self.nlink, self.uid, self.gid].iter().all(|&n| u16::try_from(n).is_ok())
            && u64::try_from(self.mtime) == Ok(epoch)
    }

    /// Bytes of the on-disk inode.
    pub(super) fn len(&self, epoch: u64) -> u64 {
        if self.is_compact(epoch) { 32 } else { 64 }
    }

    /// Appends `struct erofs_inode_compact` or `struct erofs_inode_extended`.
    pub(super) fn put(&self, b: &mut Vec<u8>, epoch: u64) {
        let compact = self.is_compact(epoch);
        put16(b, self.layout << 1 | u16::from(!compact));
        put16(b, self.xattr_count);
        put16(b, self.mode);
        if compact {
            put16(b, self.nlink as u16);
            put32(b, self.size as u32);
            put32(b, 0); // i_mtime, seconds after the epoch
            put32(b, self.union);
            put32(b, self.ino);
            put16(b, self.uid as u16);
            put16(b, self.gid as u16);
            put32(b, 0);
        } else {
            put16(b, 0);
            put64(b, self.size);
            put32(b, self.union);
            put32(b, self.ino);
            put32(b, self.uid);
            put32(b, self.gid);
            put64(b, self.mtime as u64);
            put32(b, 0); // i_mtime_nsec
            put32(b, self.nlink);
            b.extend([0; 16]);
        }
    }
}

/// A device number as `new_encode_dev` of `linux/kdev_t.h` packs it; 12 bits of major, 20 of minor.
pub(super) fn device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
}

/// The prefixes that `e_name_index` stands for (`EROFS_XATTR_INDEX_*`); the ACL names have no rest.
const XATTR_PREFIXES: [(&str, u8); 5] = [
    ("user.", 1),
    ("system.posix_acl_access", 2),
    ("system.posix_acl_default", 3),
    ("trusted.", 4),
    ("security.", 6),
];

/// All attributes of one inode as its inline xattr body: header, then entries padded to 4 bytes. Empty if there are none.
pub(super) fn xattr_body<'a>(
    path: &str,
    xattrs: impl IntoIterator<Item = (&'a String, &'a Vec<u8>)>,
) -> Result<Vec<u8>, ErofsError> {
    let mut body = Vec::new();
    for (name, value) in xattrs {
        let refuse = |reason| ErofsError::Xattr { path: path.to_owned(), name: name.clone(), reason };
        if body.is_empty() {
            body.extend([0; 12]); // struct erofs_xattr_ibody_header: no filter, no shared ones
        }
        let (rest, index) = XATTR_PREFIXES
            .iter()
            .find_map(|(prefix, index)| {
                let rest = name.strip_prefix(prefix)?;
                (prefix.ends_with('.') != rest.is_empty()).then_some((rest, *index))
            })
            .ok_or_else(|| refuse("its name is not user.*, trusted.*, security.* or a POSIX ACL"))?;
        body.push(u8::try_from(rest.len()).map_err(|_| refuse("its name is longer than 255 bytes"))?);
        body.push(index);
        put16(
            &mut body,
            u16::try_from(value.len()).map_err(|_| refuse("its value is longer than 65535 bytes"))?,
        );
        body.extend(rest.as_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
        xattr_count(&body).ok_or_else(|| refuse("all attributes together are longer than 256 KiB"))?;
    }
    Ok(body)
}

/// `i_xattr_icount` of a body made by [`xattr_body`]: 1 for the header and 1 for each 4 bytes of entries.
pub(super) fn xattr_count(body: &[u8]) -> Option<u16> {
    match body.len().checked_sub(12) {
        None => Some(0),
        Some(entries) => u16::try_from(1 + entries / 4).ok(),
    }
}

/// Appends a u16.
pub(super) fn put16(b: &mut Vec<u8>, n: u16) {
    b.extend(n.to_le_bytes());
}

/// Appends a u32.
pub(super) fn put32(b: &mut Vec<u8>, n: u32) {
    b.extend(n.to_le_bytes());
}

/// Appends a u64.
pub(super) fn put64(b: &mut Vec<u8>, n: u64) {
    b.extend(n.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn crc32c_is_the_known_check_value_before_inversion() {
        // "123456789" -> 0xE3069283 in the catalogue of parametrised CRC algorithms (CRC-32/ISCSI), which inverts.
        assert_eq!(crc32c(b"123456789"), !0xE306_9283);
    }

    #[test]
    fn the_small_inode_is_used_only_when_it_can_say_it_all() {
        let small = Inode {
            layout: FLAT_PLAIN,
            xattr_count: 0,
            mode: 0o100644,
            nlink: 1,
            size: u64::from(u32::MAX),
            uid: 65535,
            gid: 65535,
            mtime: 7,
            union: 0,
            ino: 1,
        };
        let len = |change: fn(&mut Inode)| {
            let mut inode = small.clone();
            change(&mut inode);
            let mut bytes = Vec::new();
            inode.put(&mut bytes, 7);
            assert_eq!(bytes.len() as u64, inode.len(7));
            bytes.len()
        };
        assert_eq!(len(|_| ()), 32);
        assert_eq!(len(|i| i.size += 1), 64);
        assert_eq!(len(|i| i.uid += 1), 64);
        assert_eq!(len(|i| i.gid += 1), 64);
        assert_eq!(len(|i| i.nlink = 65536), 64);
        assert_eq!(len(|i| i.mtime = 8), 64);
        assert_eq!(len(|i| i.mtime = -1), 64);
    }

    #[test]
    fn attribute_names_lose_their_prefix_and_foreign_ones_are_refused() {
        let one = |name: &str, len: usize| {
            xattr_body("bin/ping", &BTreeMap::from([(name.to_owned(), vec![9; len])]))
        };
        let body = one("security.capability", 20).unwrap();
        assert_eq!(body[12..26], *b"\x0a\x06\x14\0capability");
        assert_eq!((body.len(), xattr_count(&body)), (12 + 36, Some(10)));
        assert_eq!(one("system.posix_acl_access", 4).unwrap()[12..16], [0, 2, 4, 0]);
        for (name, len) in [("user.", 1), ("system.posix_acl_accessx", 1), ("btrfs.x", 1), ("user.x", 65536)]
        {
            assert!(one(name, len).unwrap_err().to_string().contains(name), "{name}");
        }
        assert_eq!(xattr_count(&xattr_body("x", &BTreeMap::new()).unwrap()), Some(0));
    }

    #[test]
    fn devices_are_packed_as_the_kernel_unpacks_them() {
        assert_eq!(device(1, 3), Some(0x103));
        assert_eq!(device(0xabc, 0xdef12), Some(0xdefabc12));
        assert_eq!(device(4096, 0), None);
        assert_eq!(device(0, 1 << 20), None);
    }
}
