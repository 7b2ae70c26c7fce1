//! What was put in is read back by `erofs-rs`, which shares no code with the writer.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use proptest::prelude::*;

use super::*;
use crate::tree::{Content, Entry, Kind, Meta, PackFile, Tree, TreePath};

const EPOCH: u64 = 1_700_000_000;

fn options(compression: Compression, threads: usize) -> Options {
    Options { compression, uuid: *b"0123456789abcdef", volume: "root".to_owned(), epoch: EPOCH, threads }
}

fn zstd(level: u8) -> Compression {
    Compression::Zstd { level }
}

fn image(tree: &Tree, packs: &[ZPack], options: &Options) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let written = write(tree, packs, options, &mut out).unwrap();
    let bytes = out.into_inner();
    assert_eq!(bytes.len() as u64, written.bytes);
    assert_eq!(bytes.len() % 4096, 0);
    assert_eq!(written.metadata + written.packed + written.clusters, written.bytes);
    bytes
}

/// Bytes that do not compress, the same for the same seed (xorshift64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Bytes that compress about as well as a program: a quarter of each 64 bytes is noise.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = noise(seed, len);
    for (i, byte) in bytes.iter_mut().enumerate() {
        if i % 64 >= 16 {
            *byte = (i / 64 % 7) as u8;
        }
    }
    bytes
}

fn put(tree: &mut Tree, path: &str, kind: Kind) {
    let meta = Meta { mtime: EPOCH as i64, ..Meta::root(0o755) };
    tree.insert(TreePath::new(path).unwrap(), Entry { meta, kind, owner: "t".into() }).unwrap();
}

fn put_file(tree: &mut Tree, path: &str, bytes: Vec<u8>) {
    put(tree, path, Kind::File(Content::inline(bytes)));
}

/// Reads the whole image and compares it with `tree`.
fn assert_holds(image: &[u8], tree: &Tree) {
    let fs = EroFS::new(SliceImage::new(image)).unwrap();
    let mut found = BTreeMap::new();
    for entry in fs.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let path = entry.dir_entry.path().to_string_lossy().into_owned();
        found.insert(path.trim_start_matches('/').to_owned(), entry.inode);
    }
    let paths: Vec<&str> = tree.iter().map(|(p, _)| p.as_str()).collect();
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), paths);
    for (path, entry) in tree.iter() {
        let inode = found.remove(path.as_str()).unwrap();
        let Meta { mode, uid, gid, mtime, xattrs } = &entry.meta;
        assert_eq!(inode.permissions().mode() & 0o7777, *mode, "{path}");
        assert_eq!((inode.uid(), inode.gid(), inode.modified_unix()), (*uid, *gid, (*mtime, 0)), "{path}");
        let have: BTreeMap<String, Vec<u8>> = fs
            .xattrs_inode(fs.get_inode(inode.id()).unwrap())
            .unwrap()
            .into_iter()
            .map(|(name, value)| (String::from_utf8(name).unwrap(), value))
            .collect();
        assert_eq!(have, *xattrs, "{path}");
        let links =
            if entry.is_dir() { 2 + tree.children(path).filter(|(_, e)| e.is_dir()).count() } else { 1 };
        assert_eq!(inode.nlink() as usize, links, "{path}");
        match &entry.kind {
            Kind::Dir => assert!(inode.is_dir(), "{path}"),
            Kind::File(content) => {
                let mut bytes = Vec::new();
                fs.open_inode_file(inode).unwrap().read_to_end(&mut bytes).unwrap();
                assert!(bytes == content.read().unwrap(), "{path}: other bytes");
            }
            Kind::Symlink { target } => {
                assert_eq!(fs.read_link_inode(inode).unwrap().as_bytes(), target.as_bytes());
            }
            Kind::Char { major, minor } | Kind::Block { major, minor } => {
                assert_eq!(inode.device(), Some((*major, *minor)), "{path}");
                let block = matches!(entry.kind, Kind::Block { .. });
                assert_eq!(format!("{:?}", inode.file_type()).contains("Block"), block, "{path}");
            }
            Kind::Fifo => assert!(!inode.is_file() && !inode.is_dir() && inode.layout().is_none(), "{path}"),
        }
    }
}

/// A tree with every kind of node and every length at which something changes.
fn corners() -> Tree {
    let mut tree = Tree::new();
    let near = |n: usize| [n - 1, n, n + 1];
    let lengths = [4096, 8192, SMALL as usize, 128 << 10, 1 << 20].into_iter().flat_map(near);
    for len in [0, 1, 100].into_iter().chain(lengths) {
        put_file(&mut tree, &format!("len/zero-{len}"), vec![0; len]);
        put_file(&mut tree, &format!("len/noise-{len}"), noise(len as u64, len));
        put_file(&mut tree, &format!("len/text-{len}"), text(len as u64, len));
    }
    // Stored pieces after compressed ones that end inside a cluster, and the other way round.
    for (n, cut) in [100_000, 300_001, 1_048_500, 1_048_576].into_iter().enumerate() {
        let mut bytes = text(n as u64, cut);
        bytes.extend(noise(n as u64, 200_003));
        put_file(&mut tree, &format!("mixed/{cut}-then-noise"), bytes.clone());
        bytes.reverse();
        put_file(&mut tree, &format!("mixed/noise-then-{cut}"), bytes);
    }
    for n in 0..700 {
        put(&mut tree, &format!("many/a-rather-long-name-{n}"), Kind::Symlink { target: format!("../{n}") });
    }
    put_file(&mut tree, &format!("names/{}", "n".repeat(255)), b"x".to_vec());
    put_file(&mut tree, "names/-", b"sorts before the dots".to_vec());
    put_file(&mut tree, &"deep/".repeat(300).trim_end_matches('/').replace("deep/deep/", "d/"), vec![1]);
    for len in [1, 4000, 4064, 4065, 4095] {
        put(&mut tree, &format!("links/{len}"), Kind::Symlink { target: "t".repeat(len) });
    }
    put(&mut tree, "dev/null", Kind::Char { major: 1, minor: 3 });
    put(&mut tree, "dev/big", Kind::Block { major: 4095, minor: 0xfffff });
    put(&mut tree, "dev/pipe", Kind::Fifo);
    put(&mut tree, "empty", Kind::Dir);
    for len in [0, 1, 20, 3000, 4096, 65535] {
        for path in ["file", "dir/x", "large"] {
            let path = format!("xattr/{len}/{path}");
            put_file(&mut tree, &path, text(5, if path.ends_with("large") { 200_000 } else { 300 }));
            let parent = path.strip_suffix("/x").unwrap_or(&path).to_owned();
            for path in [path, parent] {
                let xattrs = &mut tree.get_mut(&path).unwrap().meta.xattrs;
                xattrs.insert("security.capability".to_owned(), noise(1, len));
                xattrs.insert("user.note".to_owned(), vec![7; 5]);
            }
        }
    }
    for (n, (_, entry)) in tree.iter_mut().enumerate() {
        entry.meta.mtime = EPOCH as i64;
        match n % 11 {
            3 => entry.meta.uid = 70_000,
            5 => (entry.meta.mode, entry.meta.gid) = (0o4751, 65_535),
            7 => entry.meta.mtime = 12_345,
            _ => {}
        }
    }
    tree
}

fn pack(tree: &Tree, level: u8, threads: usize) -> (tempfile::NamedTempFile, ZIndex) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let contents = tree.iter().filter_map(|(_, e)| e.content());
    let index = compress_tree(contents, level, threads, &mut file).unwrap();
    (file, index)
}

#[test]
fn every_corner_reads_back_compressed_and_not() {
    let tree = corners();
    assert_holds(&image(&tree, &[], &options(zstd(3), 2)), &tree);
    assert_holds(&image(&tree, &[], &options(Compression::None, 1)), &tree);
    assert_holds(&image(&Tree::new(), &[], &options(zstd(3), 1)), &Tree::new());
}

#[test]
fn threads_and_packs_do_not_change_a_byte() {
    let tree = corners();
    let plain = image(&tree, &[], &options(zstd(2), 1));
    assert!(plain == image(&tree, &[], &options(zstd(2), 3)), "threads changed the image");

    let ((one, index), (three, same)) = (pack(&tree, 2, 1), pack(&tree, 2, 3));
    assert_eq!(index, same);
    assert!(fs_err::read(one.path()).unwrap() == fs_err::read(three.path()).unwrap());
    let json = serde_json::to_string(&index).unwrap();
    let packs = [ZPack::open(one.path(), serde_json::from_str(&json).unwrap()).unwrap()];
    assert!(plain == image(&tree, &packs, &options(zstd(2), 2)), "a pack changed the image");
}

#[test]
fn a_tiny_image_has_the_pinned_digest() {
    let mut tree = Tree::new();
    put_file(&mut tree, "etc/hostname", b"node\n".to_vec());
    put_file(&mut tree, "usr/bin/tool", text(3, 300_000));
    put(&mut tree, "bin", Kind::Symlink { target: "usr/bin".to_owned() });
    for (_, entry) in tree.iter_mut() {
        entry.meta.mtime = EPOCH as i64;
    }
    let bytes = image(&tree, &[], &options(zstd(6), 2));
    assert_holds(&bytes, &tree);
    assert_eq!(
        crate::digest::Digest::of(&bytes).to_string(),
        "ba4fc92058e622c611e036bfd26b427d0b823654bab71be9fad1e7deb98760cb",
        "the format of images changed: if this is intended, update the value and ZPACK_VERSION"
    );
}

#[test]
fn equal_files_share_their_blocks() {
    let mut tree = Tree::new();
    put_file(&mut tree, "a/large", text(1, 400_000));
    put_file(&mut tree, "a/small", text(2, 9_000));
    let once = image(&tree, &[], &options(zstd(3), 1)).len();
    put_file(&mut tree, "b/large", text(1, 400_000));
    put_file(&mut tree, "b/small", text(2, 9_000));
    let twice = image(&tree, &[], &options(zstd(3), 1));
    assert_eq!(twice.len(), once);
    assert_holds(&twice, &tree);
}

#[test]
fn a_directory_with_more_links_than_16_bits_keeps_its_count() {
    let mut tree = Tree::new();
    for n in 0..65_600 {
        put(&mut tree, &format!("d/{n}"), Kind::Dir);
    }
    let bytes = image(&tree, &[], &options(zstd(1), 1));
    let fs = EroFS::new(SliceImage::new(&bytes)).unwrap();
    let root: Vec<_> = fs.read_dir("/").unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(root[0].inode.nlink(), 65_602);
    assert_eq!(fs.read_dir("/d").unwrap().count(), 65_600);
    assert_eq!(fs.read_dir("/d/65599").unwrap().count(), 0, "the last one is found by name");
}

#[test]
fn the_image_starts_where_the_output_stands() {
    let mut tree = Tree::new();
    put_file(&mut tree, "x", text(1, 100_000));
    let options = options(zstd(3), 1);
    let alone = image(&tree, &[], &options);
    let mut out = Cursor::new(Vec::new());
    out.write_all(b"boot").unwrap();
    write(&tree, &[], &options, &mut out).unwrap();
    assert_eq!(out.stream_position().unwrap(), 4 + alone.len() as u64);
    out.seek(SeekFrom::Start(4)).unwrap();
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    assert!(rest == alone);
}

#[test]
fn damaged_content_never_gets_into_an_image() {
    for len in [1_000, 100_000, 3_000_000] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes = text(9, len);
        file.write_all(&bytes).unwrap();
        let mut content = Content::detached(crate::digest::Digest::of(&bytes), len as u64, 0);
        content.attach(&PackFile::open(file.path()).unwrap());
        let mut tree = Tree::new();
        put(&mut tree, "x", Kind::File(content));
        for compression in [zstd(3), Compression::None] {
            image(&tree, &[], &options(compression, 2));
        }
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), b"!", len as u64 - 1).unwrap();
        for compression in [zstd(3), Compression::None] {
            let error =
                write(&tree, &[], &options(compression, 2), &mut Cursor::new(Vec::new())).unwrap_err();
            assert!(matches!(error, ErofsError::Read { .. }), "{len}, {compression:?}: {error}");
        }
    }
}

#[test]
fn packs_that_do_not_fit_are_refused_with_the_reason() {
    let mut tree = Tree::new();
    put_file(&mut tree, "x", text(1, 300_000));
    let (file, index) = pack(&tree, 3, 1);
    let refused = |change: fn(&mut ZIndex)| {
        let mut index = index.clone();
        change(&mut index);
        ZPack::open(file.path(), index).unwrap_err().to_string()
    };
    fn only(index: &mut ZIndex) -> &mut ZFile {
        index.files.values_mut().next().unwrap()
    }
    assert!(refused(|i| i.version += 1).contains("version"));
    assert!(refused(|i| only(i).size += 1).contains("add up"));
    assert!(refused(|i| only(i).extents[0].blocks = 0).contains("add up"));
    assert!(refused(|i| only(i).extents[0].raw = u64::MAX).contains("add up"));
    assert!(refused(|i| only(i).block += 1).contains("ends before"));
    assert!(
        refused(|i| {
            // The same raw length, but the first two extents start in the first cluster.
            let extents = &mut only(i).extents;
            extents[0].raw -= 10;
            extents.insert(0, Extent { raw: 10, blocks: 1 });
            extents.last_mut().unwrap().blocks -= 1;
        })
        .contains("share clusters")
    );

    let packs = [ZPack::open(file.path(), index.clone()).unwrap()];
    std::os::unix::fs::FileExt::write_all_at(file.as_file(), b"!", 5000).unwrap();
    let error = write(&tree, &packs, &options(zstd(3), 1), &mut Cursor::new(Vec::new())).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    let error = write(&tree, &packs, &options(zstd(4), 1), &mut Cursor::new(Vec::new())).unwrap_err();
    assert!(error.to_string().contains("level 3, the image wants 4"), "{error}");
}

#[test]
fn what_the_format_cannot_hold_is_refused_with_its_path() {
    let fails = |kind: Kind, options: &Options| {
        let mut tree = Tree::new();
        put(&mut tree, "dev/x", kind);
        write(&tree, &[], options, &mut Cursor::new(Vec::new())).unwrap_err().to_string()
    };
    let good = options(zstd(3), 1);
    assert!(fails(Kind::Char { major: 5000, minor: 0 }, &good).contains("/dev/x: device 5000:0"));
    assert!(fails(Kind::Fifo, &options(zstd(20), 1)).contains("level 20"));
    let long = Options { volume: "sixteen-letters!".to_owned(), ..good };
    assert!(fails(Kind::Fifo, &long).contains("`sixteen-letters!`"));
}

/// One piece of a file: (kind, seed, length).
fn bytes_of(pieces: &[(u8, u64, usize)]) -> Vec<u8> {
    pieces
        .iter()
        .flat_map(|&(kind, seed, len)| match kind {
            0 => vec![seed as u8; len],
            1 => noise(seed, len),
            _ => text(seed, len),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_trees_read_back(
        files in prop::collection::btree_map(
            "[a-c]{1,2}/[a-z.]{0,20}z",
            (prop::collection::vec((0u8..3, 0u64..5, 0usize..150_000), 0..5), 0u32..0o10000, 0u32..70_000),
            0..12,
        ),
        level in 1u8..4,
    ) {
        let mut tree = Tree::new();
        for (path, (pieces, mode, uid)) in &files {
            put_file(&mut tree, path, bytes_of(pieces));
            let meta = &mut tree.get_mut(path).unwrap().meta;
            (meta.mode, meta.uid) = (*mode, *uid);
        }
        assert_holds(&image(&tree, &[], &options(zstd(level), 2)), &tree);
    }
}
