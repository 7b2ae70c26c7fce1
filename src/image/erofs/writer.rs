//! The image itself: where everything lies, then all its bytes. See [`super`] for the layout.

use std::collections::BTreeMap;
use std::io::{self, Seek, SeekFrom, Write};

use super::ErofsError;
use super::compress::{self, RUN};
use super::dirs;
use super::format::{
    BLOCK, COMPRESSED_COMPACT, FLAT_INLINE, FLAT_PLAIN, Inode, META_START, SLOT, Super, device, xattr_body,
    xattr_count,
};
use super::index;
use super::pack::{self, ZFile, ZPack};
use crate::digest::{Digest, Hashing};
use crate::tree::{Content, Kind, Meta, Tree};

/// How the bytes of files are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As they are, each file from a block of its own. For looking at images and for comparison.
    None,
    /// zstd frames of at most 128 KiB raw bytes.
    Zstd {
        /// 1 to 19; every pack must have been made with the same level.
        level: u8,
    },
}

/// What an image is besides its tree.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the bytes of files are stored.
    pub compression: Compression,
    /// UUID of the file system.
    pub uuid: [u8; 16],
    /// Volume name, at most 15 bytes.
    pub volume: String,
    /// Seconds since 1970 UTC: time of the root directory and of all entries that have it as mtime; those take 32 bytes
    /// of inode, others 64.
    pub epoch: u64,
    /// Threads that compress; has no influence on the bytes.
    pub threads: usize,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Length of the image, a multiple of 4096.
    pub bytes: u64,
    /// Inodes, the packed one not counted.
    pub inodes: u64,
    /// Bytes before the first file data: superblock, inodes, indexes, directories.
    pub metadata: u64,
    /// Raw bytes of the small files in the packed inode.
    pub packed_raw: u64,
    /// What those take in the image.
    pub packed: u64,
    /// What the larger files take in the image.
    pub clusters: u64,
}

/// Where the bytes behind an inode come from.
enum Body<'a> {
    /// Nothing: devices, pipes, empty files.
    Nothing,
    /// Entries of a directory.
    Dir,
    /// The target of a link.
    Target(&'a str),
    /// In the packed inode, at this offset.
    Packed(u64),
    /// Blocks shared by all files with this digest.
    Shared(Digest),
}

/// Blocks that one or more files share.
struct Shared<'a> {
    source: Source<'a>,
    /// First block, once written.
    block: u32,
}

enum Source<'a> {
    /// Ready clusters.
    Pack(&'a ZPack, &'a ZFile),
    /// The raw bytes, for [`Compression::None`].
    Raw(&'a Content),
}

/// A node and its place.
struct Placed<'a> {
    inode: Inode,
    xattrs: Vec<u8>,
    body: Body<'a>,
    /// Byte in the image where the inode starts.
    at: u64,
}

/// Hands out room for inodes. What an inode leaves unused when it has to begin a new block is given to later ones.
struct Room {
    end: u64,
    gap: (u64, u64),
}

impl Room {
    /// `len` bytes of which the first `together` must lie in one block. `len` is told where it would start.
    fn take(&mut self, together: u64, len: impl Fn(u64) -> u64) -> u64 {
        let (start, end) = self.gap;
        if start + len(start) <= end {
            self.gap.0 = (start + len(start)).next_multiple_of(SLOT);
            return start;
        }
        let mut at = self.end;
        if at % BLOCK + together > BLOCK {
            let next = at.next_multiple_of(BLOCK);
            if next - at > end.saturating_sub(start) {
                self.gap = (at, next);
            }
            at = next;
        }
        self.end = (at + len(at)).next_multiple_of(SLOT);
        at
    }
}

/// The small files, back to back in the order of their first use.
#[derive(Default)]
struct Packed<'a> {
    files: Vec<(u64, &'a Content)>,
    offsets: BTreeMap<Digest, u64>,
    len: u64,
}

impl<'a> Packed<'a> {
    /// Offset of `content`, added at the end if it is new.
    fn add(&mut self, content: &'a Content) -> u64 {
        *self.offsets.entry(content.digest()).or_insert_with(|| {
            let at = self.len;
            self.files.push((at, content));
            self.len += content.size();
            at
        })
    }

    /// Run `n` of the whole.
    fn read(&self, n: usize) -> Result<Vec<u8>, ErofsError> {
        let start = n as u64 * RUN;
        let end = (start + RUN).min(self.len);
        let mut raw = Vec::with_capacity((end - start) as usize);
        let first = self.files.partition_point(|(at, content)| at + content.size() <= start);
        for (at, content) in self.files[first..].iter().take_while(|(at, _)| *at < end) {
            let bytes =
                content.read().map_err(|source| ErofsError::Read { digest: content.digest(), source })?;
            let from = start.saturating_sub(*at) as usize;
            let to = (end - at).min(content.size()) as usize;
            raw.extend(&bytes[from..to]);
        }
        Ok(raw)
    }
}

/// Writes the image of `tree` to `out`, from where `out` stands. Larger files are taken from `packs`; those that no pack
/// has are compressed here into a temporary file, with the same result.
///
/// # Errors
/// A pack of another level, a content that cannot be read, an attribute, device or name that the format cannot hold, `out`
/// failing. What was written until then is no image.
pub fn write(
    tree: &Tree,
    packs: &[ZPack],
    options: &Options,
    out: &mut (impl Write + Seek),
) -> Result<Written, ErofsError> {
    let mut volume = [0; 16];
    if options.volume.len() > 15 {
        return Err(ErofsError::Volume(options.volume.clone()));
    }
    volume[..options.volume.len()].copy_from_slice(options.volume.as_bytes());

    let nodes = dirs::nodes(tree);
    let contents = || nodes.iter().filter_map(|n| n.entry?.content());
    let missing = match options.compression {
        Compression::None => None,
        Compression::Zstd { level } => {
            super::check_level(level)?;
            if let Some(pack) = packs.iter().find(|p| p.index().level != level) {
                let reason = format!("it has zstd level {}, the image wants {level}", pack.index().level);
                return Err(ErofsError::Pack { name: pack.name().to_owned(), reason });
            }
            let lost =
                contents().filter(|c| !packs.iter().any(|p| p.index().files.contains_key(&c.digest())));
            let mut spool = tempfile::tempfile()?;
            let index = compress::compress_tree(lost, level, options.threads, &mut spool)?;
            Some(ZPack::new(spool, index, "of this image".to_owned())?)
        }
    };
    let find = |content: &Content| {
        packs
            .iter()
            .chain(&missing)
            .find_map(|p| Some(Source::Pack(p, p.index().files.get(&content.digest())?)))
    };

    // What each inode is.
    let mut packed = Packed::default();
    let mut shared: BTreeMap<Digest, Shared<'_>> = BTreeMap::new();
    let mut order = Vec::new();
    let root = Meta { mtime: options.epoch as i64, ..Meta::root(0o755) };
    let mut placed = Vec::with_capacity(nodes.len() + 1);
    for (n, node) in nodes.iter().enumerate() {
        let (mut layout, mut size, mut union) = (FLAT_PLAIN, 0, 0);
        let (kind, body) = match node.entry.map(|e| &e.kind) {
            None | Some(Kind::Dir) => {
                size = dirs::len(&nodes, n);
                (0o040000, Body::Dir)
            }
            Some(Kind::Symlink { target }) => {
                size = target.len() as u64;
                (0o120000, Body::Target(target))
            }
            Some(Kind::File(content)) => {
                size = content.size();
                let body = if size == 0 {
                    Body::Nothing
                } else if size <= super::SMALL && options.compression != Compression::None {
                    layout = COMPRESSED_COMPACT;
                    Body::Packed(packed.add(content))
                } else {
                    let source = find(content).unwrap_or(Source::Raw(content));
                    if let Source::Pack(_, file) = &source
                        && !file.is_flat()
                    {
                        layout = COMPRESSED_COMPACT;
                    }
                    shared.entry(content.digest()).or_insert_with(|| {
                        order.push(content.digest());
                        Shared { source, block: 0 }
                    });
                    Body::Shared(content.digest())
                };
                (0o100000, body)
            }
            Some(Kind::Char { major, minor } | Kind::Block { major, minor }) => {
                let (path, major, minor) = (node.path.to_owned(), *major, *minor);
                union = device(major, minor).ok_or(ErofsError::Device { path, major, minor })?;
                let char = matches!(node.entry.map(|e| &e.kind), Some(Kind::Char { .. }));
                (if char { 0o020000 } else { 0o060000 }, Body::Nothing)
            }
            Some(Kind::Fifo) => (0o010000, Body::Nothing),
        };
        let meta = node.entry.map_or(&root, |e| &e.meta);
        let xattrs = xattr_body(node.path, &meta.xattrs)?;
        let below = node.children.iter().filter(|&&c| nodes[c].is_dir()).count() as u32;
        let inode = Inode {
            layout,
            xattr_count: xattr_count(&xattrs)
                .ok_or(ErofsError::TooLarge("256 KiB of attributes in one file"))?,
            mode: kind | (meta.mode & 0o7777) as u16,
            nlink: if node.is_dir() { 2 + below } else { 1 },
            size,
            uid: meta.uid,
            gid: meta.gid,
            mtime: meta.mtime,
            union,
            ino: n as u32 + 1,
        };
        placed.push(Placed { inode, xattrs, body, at: 0 });
    }
    let small = packed.len;
    if small > 0 {
        let inode = Inode {
            layout: COMPRESSED_COMPACT,
            xattr_count: 0,
            mode: 0o100644,
            nlink: 1,
            size: small,
            uid: 0,
            gid: 0,
            mtime: options.epoch as i64,
            union: 0,
            ino: nodes.len() as u32 + 1,
        };
        placed.push(Placed { inode, xattrs: Vec::new(), body: Body::Nothing, at: 0 });
    }

    // Where each inode lies.
    let mut room = Room { end: META_START, gap: (0, 0) };
    for p in &mut placed {
        let core = p.inode.len(options.epoch);
        let before = core + p.xattrs.len() as u64;
        let tail = p.inode.size % BLOCK;
        let inline = matches!(p.body, Body::Dir | Body::Target(_)) && tail > 0 && before + tail <= BLOCK;
        let compressed = p.inode.layout == COMPRESSED_COMPACT;
        let (body, size) = (&p.body, p.inode.size);
        let len = |at: u64| match body {
            Body::Packed(_) => before.next_multiple_of(8) + index::MAP_HEADER,
            _ if compressed => {
                let start = before.next_multiple_of(8);
                start + index::len(at + start, size.div_ceil(BLOCK))
            }
            _ if inline => before + tail,
            _ => before,
        };
        p.at = room.take(if inline { before + tail } else { core }, len);
        if inline {
            p.inode.layout = FLAT_INLINE;
        }
    }
    let dir_start = room.end.next_multiple_of(BLOCK);
    let root_nid = (placed[0].at / SLOT) as u16;

    // Blocks of long directories and of link targets that do not fit beside their inode.
    let mut blocks: Vec<u8> = Vec::new();
    let mut tails: Vec<Vec<u8>> = vec![Vec::new(); placed.len()];
    for n in 0..nodes.len() {
        let mut bytes = match placed[n].body {
            Body::Dir => dirs::bytes(&nodes, n, |m| placed[m].at / SLOT),
            Body::Target(target) => target.as_bytes().to_vec(),
            _ => continue,
        };
        if placed[n].inode.layout == FLAT_INLINE {
            tails[n] = bytes.split_off(bytes.len() / BLOCK as usize * BLOCK as usize);
        }
        if !bytes.is_empty() {
            placed[n].inode.union = block_number(dir_start + blocks.len() as u64)?;
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
            blocks.append(&mut bytes);
        }
    }
    let data_start = dir_start + blocks.len() as u64;

    // File data, in one stream.
    let base = out.stream_position()?;
    out.seek(SeekFrom::Start(base + data_start))?;
    let mut at = data_start;
    let mut packed_extents = Vec::new();
    if let Compression::Zstd { level } = options.compression {
        let runs = compress::runs(small) as usize;
        compress::in_order(
            level,
            options.threads,
            runs,
            |n| packed.read(n),
            |_, run| {
                out.write_all(&run.bytes)?;
                at += run.bytes.len() as u64;
                for extent in run.extents {
                    pack::push(&mut packed_extents, extent);
                }
                Ok(())
            },
        )?;
    }
    let packed_end = at;
    for digest in &order {
        let item = shared.get_mut(digest).expect("every digest of the order was put there with its item");
        item.block = block_number(at)?;
        match item.source {
            Source::Pack(pack, file) => {
                pack.copy(file, out)?;
                at += file.blocks() * BLOCK;
            }
            Source::Raw(content) => {
                let named = |source| ErofsError::Read { digest: content.digest(), source };
                let mut reader = Hashing::new(content.reader());
                io::copy(&mut reader, out).map_err(named)?;
                if reader.finish().1 != content.digest() {
                    return Err(named(compress::not_this_digest()));
                }
                let padding = content.size().next_multiple_of(BLOCK) - content.size();
                out.write_all(&vec![0; padding as usize])?;
                at += content.size() + padding;
            }
        }
    }
    let total = block_number(at)?;

    // Metadata, now that every address is known.
    let mut meta = vec![0u8; dir_start as usize];
    for (n, p) in placed.iter_mut().enumerate() {
        let mut after = Vec::new();
        let before = p.inode.len(options.epoch) + p.xattrs.len() as u64;
        let index_at = p.at + before.next_multiple_of(8);
        match &p.body {
            Body::Packed(offset) => index::put_fragment(&mut after, *offset),
            Body::Shared(digest) => {
                let item = &shared[digest];
                p.inode.union = item.block;
                if let Source::Pack(_, file) = item.source
                    && p.inode.layout == COMPRESSED_COMPACT
                {
                    p.inode.union = file.blocks() as u32;
                    index::put(&mut after, index_at, &file.extents, item.block);
                }
            }
            _ if n == nodes.len() => {
                p.inode.union = ((packed_end - data_start) / BLOCK) as u32;
                index::put(&mut after, index_at, &packed_extents, block_number(data_start)?);
            }
            _ => {}
        }
        let mut bytes = Vec::new();
        p.inode.put(&mut bytes, options.epoch);
        bytes.extend(&p.xattrs);
        bytes.extend(&tails[n]);
        if !after.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend(after);
        }
        let start = p.at as usize;
        meta[start..start + bytes.len()].copy_from_slice(&bytes);
    }
    let first: &mut [u8; BLOCK as usize] =
        meta.first_chunk_mut().expect("metadata is at least the block of the superblock");
    Super {
        root_nid,
        inodes: placed.len() as u64,
        epoch: options.epoch,
        blocks: total,
        uuid: options.uuid,
        name: volume,
        zstd: options.compression != Compression::None,
        packed_nid: (small > 0).then(|| placed[nodes.len()].at / SLOT),
    }
    .put(first);
    out.seek(SeekFrom::Start(base))?;
    out.write_all(&meta)?;
    out.write_all(&blocks)?;
    out.seek(SeekFrom::Start(base + at))?;
    out.flush()?;
    Ok(Written {
        bytes: at,
        inodes: nodes.len() as u64,
        metadata: data_start,
        packed_raw: small,
        packed: packed_end - data_start,
        clusters: at - packed_end,
    })
}

/// The number of the block that starts at byte `at`.
fn block_number(at: u64) -> Result<u32, ErofsError> {
    u32::try_from(at / BLOCK).map_err(|_| ErofsError::TooLarge("2^32 blocks (16 TiB)"))
}
