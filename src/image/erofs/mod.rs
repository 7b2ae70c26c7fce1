//! The read-only root: a compressed erofs image, written without any tool.
//!
//! Work is in two parts, since a package is unpacked and compressed once ever while images are put together often:
//!
//! 1. [`compress_tree`] turns the larger files of a package into clusters that do not depend on where they will lie, and
//!    an index of them ([`ZIndex`]); the store keeps both. [`ZPack::open`] brings them back.
//! 2. [`write()`] lays out a [`Tree`](crate::tree::Tree): it copies ready clusters, compresses the small files together, and
//!    writes inodes, directories and the superblock.
//!
//! ```text
//! block 0    superblock, zstd record, first inodes (the root directory is the first)
//! 1 …        inodes with attributes, cluster indexes, short directories and link targets: a directory, then what is in
//!            it, then its subdirectories in turn
//!            blocks of long directories
//!            the packed inode: all files of at most 64 KiB back to back, in that same order
//!            clusters of the larger files, in that same order, each content once
//! ```
//!
//! The same tree and options make the same bytes, whatever the number of threads and whichever pack a file comes from.
//!
//! # Why this way
//!
//! Measured on a trixie node of 206 packages (14,454 nodes, 464 MB, 2 threads of one machine, CPU seconds; cold read of all
//! files and of every tenth file, in random order, through a loop mount):
//!
//! | writer | image | CPU | all | every tenth |
//! |---|---|---|---|---|
//! | kiln zstd 6 (first build / packs at hand) | 163.0 MB | 8.8 / 2.0 s | 1.7 s | 0.41 s |
//! | mkfs.erofs 1.8.6 zstd 6, fragments | 170.6 MB | 46 s | 2.2 s | 0.41 s |
//! | mkfs.erofs 1.8.6 zstd 3 | 200.6 MB | 16 s | 2.0 s | 0.34 s |
//! | mksquashfs 4.6.1 zstd 6 | 157.7 MB | 5.6 s | 2.0 s | 0.70 s |
//!
//! - Pieces are cut by their raw length. mkfs.erofs searches for the input that fits its output in several rounds for each
//!   cluster; one look at the first result and one shorter try give most of that.
//! - Small files are packed together because they compress badly one by one and would each lose half a block: without,
//!   mkfs.erofs needs a fifth more room. Up to 16 KiB gives 4 % larger images than up to 64 KiB, up to 128 KiB only 0.5 %
//!   smaller ones for half as much work again at each [`write()`].
//! - The packed inode is compressed at each write and not per package, because profiles drop small files (manuals,
//!   translations) that would be dragged along.
//! - Compact indexes, no inline tails, no shared attributes: the rest of the metadata is 1 % of the image.
//! - squashfs is 3 % smaller, since it neither aligns to blocks nor keeps metadata readable in place, and reads slower for
//!   the same reasons. A node boots often and is built once: erofs.
//!
//! Source of the format: `fs/erofs/erofs_fs.h` and `zmap.c` of Linux 6.12, and
//! <https://erofs.docs.kernel.org/en/latest/ondisk/index.html>.

mod compress;
mod dirs;
mod format;
mod index;
mod pack;
#[cfg(test)]
mod tests;
mod writer;

use std::io;

use crate::digest::Digest;

pub use compress::{Extent, compress_tree};
pub use pack::{ZFile, ZIndex, ZPACK_VERSION, ZPack};
pub use writer::{Compression, Options, Written, write};

/// Files of at most this many bytes lie together in the packed inode and are compressed at each [`write()`]; larger ones
/// have clusters of their own, made by [`compress_tree`].
pub const SMALL: u64 = 64 << 10;

/// Why an image or a pack could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The output or a pack could not be written or read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes of a file of the tree cannot be had.
    #[error("the file content sha256:{digest} cannot be read: {source}")]
    Read {
        /// Which content.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// An extended attribute that the format cannot hold.
    #[error("/{path}: extended attribute `{name}` cannot be stored: {reason}")]
    Xattr {
        /// The file that has it.
        path: String,
        /// Its full name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A device number beyond the kernel's 12 and 20 bits.
    #[error("/{path}: device {major}:{minor} is out of range: at most 4095:1048575")]
    Device {
        /// The node.
        path: String,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A pack that does not fit its index or this program.
    #[error("compressed pack {name} cannot be used: {reason}; it must be made anew")]
    Pack {
        /// Where it lies.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A zstd level that kiln does not offer.
    #[error("zstd level {0} is out of range: 1 to 19")]
    Level(u8),
    /// A volume name that does not fit.
    #[error("volume name `{0}` is longer than 15 bytes")]
    Volume(String),
    /// More blocks or metadata than the format can address.
    #[error("the image would have more than {0}")]
    TooLarge(&'static str),
}

/// Levels above 19 need windows that gain nothing on pieces of 128 KiB.
fn check_level(level: u8) -> Result<(), ErofsError> {
    if (1..=19).contains(&level) { Ok(()) } else { Err(ErofsError::Level(level)) }
}
