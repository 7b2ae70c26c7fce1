//! The initial RAM disk: a cpio archive in the `newc` form that Linux unpacks into its first root.
//!
//! ```text
//! archive  = segment...                       an initrd may be several, each plain or compressed
//! segment  = member... trailer zeros          filled up to a multiple of 512 bytes
//! member   = "070701" 13 fields of 8 hex digits, name NUL, zeros to 4, content, zeros to 4
//! ```
//!
//! The form is fixed by the kernel: `Documentation/driver-api/early-userspace/buffer-format.rst` and `init/initramfs.c`.
//! [`write`](fn@write) writes one segment of a [`Tree`], a directory before what is in it, with counted inode numbers, one time on
//! everything and no device numbers, so the bytes follow from the tree alone. [`write_zstd`] writes the same, compressed.
//! [`read`] is the way back.

use std::io::{self, Write};

use crate::tree::{Content, Entry, Kind, Meta, PathError, Tree, TreeError, TreePath};

/// First six bytes of every member: `newc`, without checksums.
const MAGIC: &[u8; 6] = b"070701";
/// Magic and 13 fields.
const HEADER: usize = 110;
/// The name that ends a segment.
const TRAILER: &str = "TRAILER!!!";
/// A segment is filled up to this; what GNU cpio does, and more than the 4 that the kernel needs between segments.
const BLOCK: u64 = 512;
/// The highest level whose window (8 MiB) the kernel can allocate early on a small machine.
pub const MAX_LEVEL: i32 = 19;

/// What cannot be put in, or taken out of, a cpio archive.
#[derive(Debug, thiserror::Error)]
pub enum CpioError {
    /// A file of 4 GiB or more.
    #[error(
        "/{path}: {size} bytes do not fit in a cpio archive, whose files end below 4 GiB; leave it out of the initrd"
    )]
    TooLarge {
        /// The file.
        path: TreePath,
        /// Its length in bytes.
        size: u64,
    },
    /// An entry with extended attributes.
    #[error(
        "/{path}: cpio cannot hold the extended attribute `{name}`; drop it before the initrd is written"
    )]
    Attribute {
        /// The entry.
        path: TreePath,
        /// The first attribute.
        name: String,
    },
    /// A compression level that the kernel could not undo.
    #[error("zstd level {0} is not between 1 and {MAX_LEVEL}, which an initrd can use")]
    Level(i32),
    /// The archive ends in the middle of a member.
    #[error("cpio archive ends inside the member at byte {0}")]
    Truncated(usize),
    /// A member without the magic, or with fields that are not hexadecimal.
    #[error("no cpio member at byte {0}: `070701` and 13 hexadecimal fields are needed")]
    NotAMember(usize),
    /// A mode whose type is none that a tree can hold.
    #[error("cpio member `{name}` has the unknown mode {mode:o}")]
    Mode {
        /// Its name.
        name: String,
        /// The mode with its type bits.
        mode: u32,
    },
    /// A name or a link target that is no UTF-8.
    #[error("cpio member at byte {0} has a name or a link target that is not UTF-8")]
    NotText(usize),
    /// A name that leaves the tree.
    #[error("cpio member: {0}")]
    Path(#[from] PathError),
    /// Members that contradict each other.
    #[error("cpio member: {0}")]
    Tree(#[from] TreeError),
    /// Reading a file of the tree or writing the archive.
    #[error("writing the cpio archive: {0}")]
    Io(#[from] io::Error),
}

/// Writes `tree` as one segment and says its length in bytes. `epoch` (seconds since 1970 UTC) is the time of every member.
pub fn write(tree: &Tree, epoch: u32, out: impl Write) -> Result<u64, CpioError> {
    let mut archive = Archive { out, at: 0 };
    let mut buffer = vec![0; 256 * 1024];
    for (inode, (path, entry)) in (1..).zip(tree.iter()) {
        if let Some(name) = entry.meta.xattrs.keys().next() {
            return Err(CpioError::Attribute { path: path.clone(), name: name.clone() });
        }
        let (kind, links, device, text) = match &entry.kind {
            Kind::Dir => (0o040_000, 2, (0, 0), ""),
            Kind::File(_) => (0o100_000, 1, (0, 0), ""),
            Kind::Symlink { target } => (0o120_000, 1, (0, 0), target.as_str()),
            Kind::Char { major, minor } => (0o020_000, 1, (*major, *minor), ""),
            Kind::Block { major, minor } => (0o060_000, 1, (*major, *minor), ""),
            Kind::Fifo => (0o010_000, 1, (0, 0), ""),
        };
        let size = entry.content().map_or(text.len() as u64, Content::size);
        let size = u32::try_from(size).map_err(|_| CpioError::TooLarge { path: path.clone(), size })?;
        let meta = &entry.meta;
        let fields = [inode, kind | meta.mode & 0o7777, meta.uid, meta.gid, links, epoch, size];
        archive.header(fields, device, path)?;
        if let Some(content) = entry.content() {
            let mut at = 0;
            while at < content.size() {
                let n = buffer.len().min(usize::try_from(content.size() - at).unwrap_or(usize::MAX));
                content.read_exact_at(&mut buffer[..n], at)?;
                archive.put(&buffer[..n])?;
                at += n as u64;
            }
        } else {
            archive.put(text.as_bytes())?;
        }
        archive.fill(4)?;
    }
    archive.header([0, 0, 0, 0, 1, 0, 0], (0, 0), TRAILER)?;
    archive.fill(BLOCK)?;
    archive.out.flush()?;
    Ok(archive.at)
}

/// As [`write`](fn@write), compressed with zstd at `level` (1 to [`MAX_LEVEL`]) by `threads` threads; the bytes do not depend on
/// `threads`. Says the length before compression.
pub fn write_zstd(
    tree: &Tree,
    epoch: u32,
    level: i32,
    threads: u32,
    out: impl Write,
) -> Result<u64, CpioError> {
    if !(1..=MAX_LEVEL).contains(&level) {
        return Err(CpioError::Level(level));
    }
    let mut encoder = super::zst::encoder(out, level, threads)?;
    let length = write(tree, epoch, &mut encoder)?;
    encoder.finish()?.flush()?;
    Ok(length)
}

struct Archive<W> {
    out: W,
    at: u64,
}

impl<W: Write> Archive<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn fill(&mut self, align: u64) -> io::Result<()> {
        let zeros = self.at.next_multiple_of(align) - self.at;
        self.put(&[0; BLOCK as usize][..zeros as usize])
    }

    /// `fields` are inode, mode, owner, group, links, time and length, in the order of the format.
    fn header(&mut self, fields: [u32; 7], device: (u32, u32), name: &str) -> io::Result<()> {
        let [inode, mode, uid, gid, links, time, size] = fields;
        let name_size = name.len() as u32 + 1;
        self.put(MAGIC)?;
        for field in [inode, mode, uid, gid, links, time, size, 0, 0, device.0, device.1, name_size, 0] {
            self.put(format!("{field:08X}").as_bytes())?;
        }
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.fill(4)
    }
}

/// Reads all segments of an uncompressed archive into one tree, later members in place of earlier ones, as the kernel does.
/// Hard links are read as the files that they are; zeros between segments are skipped.
pub fn read(bytes: &[u8]) -> Result<Tree, CpioError> {
    let mut tree = Tree::new();
    let mut at = 0;
    while at < bytes.len() {
        // The kernel, too, skips zeros between segments.
        if bytes[at] == 0 {
            at += 1;
            continue;
        }
        let start = at;
        let header = bytes.get(at..at + HEADER).ok_or(CpioError::Truncated(start))?;
        let mut fields = [0; 13];
        let text = str::from_utf8(header).map_err(|_| CpioError::NotAMember(start))?;
        if !header.starts_with(MAGIC) || !header.iter().all(u8::is_ascii_hexdigit) {
            return Err(CpioError::NotAMember(start));
        }
        for (i, field) in fields.iter_mut().enumerate() {
            *field = u32::from_str_radix(&text[6 + 8 * i..14 + 8 * i], 16)
                .map_err(|_| CpioError::NotAMember(start))?;
        }
        let [_, mode, uid, gid, _, time, size, _, _, major, minor, name_size, _] = fields;
        let name = take(bytes, at + HEADER, name_size).ok_or(CpioError::Truncated(start))?;
        let name = str::from_utf8(name).map_err(|_| CpioError::NotText(start))?.trim_end_matches('\0');
        at = (at + HEADER + name_size as usize).next_multiple_of(4);
        let data = take(bytes, at, size).ok_or(CpioError::Truncated(start))?;
        at = (at + size as usize).next_multiple_of(4);
        if name == TRAILER {
            continue;
        }
        let kind = match mode & 0o170_000 {
            0o040_000 => Kind::Dir,
            0o100_000 => Kind::File(Content::inline(data.to_vec())),
            0o120_000 => {
                let target = str::from_utf8(data).map_err(|_| CpioError::NotText(start))?.to_owned();
                Kind::Symlink { target }
            }
            0o020_000 => Kind::Char { major, minor },
            0o060_000 => Kind::Block { major, minor },
            0o010_000 => Kind::Fifo,
            _ => return Err(CpioError::Mode { name: name.to_owned(), mode }),
        };
        let Some(path) = TreePath::from_archive(name)? else { continue };
        let meta = Meta { uid, gid, mtime: i64::from(time), ..Meta::root(mode & 0o7777) };
        tree.insert(path, Entry { meta, kind, owner: "".into() })?;
    }
    Ok(tree)
}

fn take(bytes: &[u8], at: usize, len: u32) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(len as usize)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use proptest::prelude::*;

    fn path(p: &str) -> TreePath {
        TreePath::new(p).unwrap()
    }

    fn sample() -> Tree {
        let mut tree = Tree::new();
        tree.insert(path("init"), Entry::file(0o755, "#!/bin/sh\n", "")).unwrap();
        tree.insert(path("bin/sh"), Entry::symlink("/bin/busybox", "")).unwrap();
        tree.insert(path("empty"), Entry::file(0o4644, "", "")).unwrap();
        let meta = Meta { uid: 7, gid: 5, ..Meta::root(0o600) };
        let console = Entry { meta, kind: Kind::Char { major: 5, minor: 1 }, owner: "".into() };
        tree.insert(path("dev/console"), console).unwrap();
        tree.insert(path("dev/pipe"), Entry { meta: Meta::root(0o600), kind: Kind::Fifo, owner: "".into() })
            .unwrap();
        tree
    }

    fn written(tree: &Tree, epoch: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert_eq!(write(tree, epoch, &mut bytes).unwrap(), bytes.len() as u64);
        bytes
    }

    fn at(mut tree: Tree, epoch: u32) -> Tree {
        tree.iter_mut().for_each(|(_, e)| e.meta.mtime = i64::from(epoch));
        tree
    }

    #[test]
    fn a_segment_has_the_known_bytes() {
        let bytes = written(&sample(), 1_700_000_000);
        assert_eq!(bytes.len() % 512, 0);
        let fields = "00000001 000041ED 00000000 00000000 00000002 6553F100 00000000 \
                      00000000 00000000 00000000 00000000 00000004 00000000";
        let start = format!("070701{}bin\0", fields.replace(' ', ""));
        assert_eq!(str::from_utf8(&bytes[..114]).unwrap(), start);
        assert_eq!(
            Digest::of(&bytes).to_string(),
            "9512fb2a117b8bf9c4723927bd0ac49aaf966c044d98ad49e5990b9bab91d128",
            "if the change is meant, put the new digest here"
        );
    }

    #[test]
    fn what_is_written_is_read_back_also_from_several_segments() {
        let mut two = written(&sample(), 9);
        assert_eq!(read(&two).unwrap(), at(sample(), 9));
        let mut more = Tree::new();
        more.insert(path("init"), Entry::file(0o755, "second", "")).unwrap();
        two.extend(written(&more, 9));
        let both = read(&two).unwrap();
        assert_eq!(both.get("init").unwrap().content().unwrap().read().unwrap(), b"second");
        assert_eq!(both.len(), sample().len());
    }

    #[test]
    fn the_compressed_bytes_do_not_depend_on_the_number_of_threads() {
        let mut tree = sample();
        // Several zstd jobs: text that neither repeats nor is pure noise.
        let big: String = (0..2_000_000_u64)
            .map(|i| format!("{:x} ", i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40))
            .collect();
        tree.insert(path("big"), Entry::file(0o644, big, "")).unwrap();
        let pressed = [0, 1, 3].map(|threads| {
            let mut bytes = Vec::new();
            write_zstd(&tree, 0, 3, threads, &mut bytes).unwrap();
            bytes
        });
        assert!(pressed[0] == pressed[1] && pressed[1] == pressed[2]);
        assert_eq!(zstd::decode_all(&pressed[0][..]).unwrap(), written(&tree, 0));
    }

    #[test]
    fn what_cpio_cannot_hold_is_refused() {
        let mut tree = Tree::new();
        let mut entry = Entry::file(0o755, "x", "");
        entry.meta.xattrs.insert("security.capability".into(), vec![1]);
        tree.insert(path("ping"), entry).unwrap();
        assert!(matches!(write(&tree, 0, io::sink()), Err(CpioError::Attribute { .. })));
        let mut tree = Tree::new();
        let huge = Kind::File(Content::detached(Digest::of(b""), 1 << 32, 0));
        tree.insert(path("huge"), Entry { meta: Meta::root(0), kind: huge, owner: "".into() }).unwrap();
        assert!(matches!(write(&tree, 0, io::sink()), Err(CpioError::TooLarge { .. })));
        assert!(matches!(write_zstd(&Tree::new(), 0, 22, 1, io::sink()), Err(CpioError::Level(22))));
    }

    proptest! {
        #[test]
        fn any_tree_comes_back(files in proptest::collection::btree_map("[a-c]{1,3}(/[x-z]{1,2})?", proptest::collection::vec(any::<u8>(), 0..40), 0..12), epoch: u32) {
            let mut tree = Tree::new();
            for (name, bytes) in files {
                // A file may stand where a directory is needed; that name is left out.
                let _ = tree.get(&name).is_none().then(|| tree.insert(path(&name), Entry::file(0o644, bytes, "")));
            }
            prop_assert_eq!(read(&written(&tree, epoch)).unwrap(), at(tree, epoch));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8), cut: proptest::sample::Index) {
            let mut bytes = written(&sample(), 1);
            for (index, byte) in flips {
                *index.get_mut(&mut bytes) = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let _ = read(&bytes);
        }
    }
}
