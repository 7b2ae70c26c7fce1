//! The compressed files of a package: one data file with all clusters, and an index of what lies where.
//!
//! A pack is made once per package by [`super::compress_tree`] and then only copied into images. Its data file is the
//! clusters of all files back to back, nothing else; the index is kept beside it as JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ErofsError;
use super::compress::{Extent, PIECE};
use super::format::BLOCK;
use super::index;
use crate::digest::Digest;

/// Changes whenever the same bytes would be compressed to other clusters, so that an old pack is never mixed with new.
pub const ZPACK_VERSION: u32 = 3;

/// Where each file of a pack lies. Keep it with the data that [`super::compress_tree`] wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZIndex {
    /// [`ZPACK_VERSION`] of the program that made it.
    pub version: u32,
    /// zstd level of every frame.
    pub level: u8,
    /// Files by the digest of their raw bytes.
    pub files: BTreeMap<Digest, ZFile>,
}

/// One file of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZFile {
    /// Raw length in bytes.
    pub size: u64,
    /// First block in the data file, counted in 4096 bytes.
    pub block: u64,
    /// What the blocks hold, in order, back to back; as JSON a list of `[raw, blocks]`.
    pub extents: Vec<Extent>,
    /// CRC-32 (IEEE) of the blocks: a damaged pack is found when its blocks are copied.
    pub crc: u32,
}

impl ZFile {
    /// Blocks on disk.
    pub fn blocks(&self) -> u64 {
        self.extents.iter().map(|e| u64::from(e.blocks)).sum()
    }

    /// Whether the blocks are just the file, so that it needs no index.
    pub(super) fn is_flat(&self) -> bool {
        matches!(self.extents[..], [only] if only.is_plain())
    }
}

impl ZIndex {
    pub(super) fn new(level: u8) -> Self {
        ZIndex { version: ZPACK_VERSION, level, files: BTreeMap::new() }
    }
}

/// Appends `extent`; neighbours that are both stored as they are become one if that does not move a byte.
pub(super) fn push(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last) if last.is_plain() && extent.is_plain() && last.raw % BLOCK == 0 => {
            last.raw += extent.raw;
            last.blocks += extent.blocks;
        }
        _ => extents.push(extent),
    }
}

/// An open pack: index and data.
#[derive(Debug)]
pub struct ZPack {
    file: std::fs::File,
    index: ZIndex,
    name: String,
}

impl ZPack {
    /// Opens the data file at `path`, which [`super::compress_tree`] wrote together with `index`.
    ///
    /// # Errors
    /// A file that cannot be opened, an index of another version, an index that does not fit the data.
    pub fn open(path: &Path, index: ZIndex) -> Result<Self, ErofsError> {
        let file = fs_err::File::open(path)?.into_file();
        Self::new(file, index, path.display().to_string())
    }

    pub(super) fn new(file: std::fs::File, index: ZIndex, name: String) -> Result<Self, ErofsError> {
        let refuse = |reason: String| Err(ErofsError::Pack { name: name.clone(), reason });
        if index.version != ZPACK_VERSION {
            return refuse(format!("it has version {}, this kiln makes {ZPACK_VERSION}", index.version));
        }
        let blocks = file.metadata()?.len() / BLOCK;
        for (digest, f) in &index.files {
            let shape = f.extents.iter().all(|e| {
                0 < e.blocks
                    && (e.is_plain() || u64::from(e.blocks) < e.raw.div_ceil(BLOCK) && e.raw <= PIECE as u64)
            });
            let raw = f.extents.iter().try_fold(0u64, |sum, e| sum.checked_add(e.raw));
            if !shape || raw != Some(f.size) || f.blocks() > blocks {
                return refuse(format!("its extents do not add up for {}", digest.short()));
            }
            if !index::is_mappable(&f.extents) {
                return refuse(format!("its extents share clusters for {}", digest.short()));
            }
            if f.block.checked_add(f.blocks()).is_none_or(|end| end > blocks) {
                return refuse(format!("it ends before the blocks of {}", digest.short()));
            }
        }
        Ok(ZPack { file, index, name })
    }

    /// What lies where.
    pub fn index(&self) -> &ZIndex {
        &self.index
    }

    /// What messages call this pack: the path it was opened from.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Copies the blocks of `file` to `out` and checks them.
    pub(super) fn copy(&self, file: &ZFile, out: &mut impl Write) -> Result<(), ErofsError> {
        let mut at = file.block * BLOCK;
        let end = at + file.blocks() * BLOCK;
        let mut crc = crc32fast::Hasher::new();
        let mut buffer = vec![0; (end - at).min(1 << 20) as usize];
        while at < end {
            let n = buffer.len().min((end - at) as usize);
            self.file
                .read_exact_at(&mut buffer[..n], at)
                .map_err(|e| io::Error::new(e.kind(), format!("reading pack {}: {e}", self.name)))?;
            crc.update(&buffer[..n]);
            out.write_all(&buffer[..n])?;
            at += n as u64;
        }
        if crc.finalize() != file.crc {
            let reason = "blocks of it are damaged".to_owned();
            return Err(ErofsError::Pack { name: self.name.clone(), reason });
        }
        Ok(())
    }
}
