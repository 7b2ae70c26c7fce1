//! The digest of a small disk, fixed here: a change of any format shows, on purpose or not.
//!
//! A hand-made package is unpacked, its tree becomes a root file system with hash tree, an ESP and a disk, by the same functions
//! that the pipeline uses.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy spares only the functions marked #[test]"
)]

#[path = "../common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use common::archive::{Archive, header, tarball};
use kiln::digest::Digest;
use kiln::image::erofs::{self, Compression};
use kiln::image::verity::{self, Extent, Parameters};
use kiln::image::{disk, fat};
use kiln::lock::LockedPackage;
use kiln::rootfs::merge::{self, Filter};
use kiln::store::Store;
use kiln::tree::TreePath;
use kiln::unpack;
use tar::EntryType;
use uuid::Uuid;

/// If this is intended, update the values: the first that differs says which format changed.
const GOLDEN: [(&str, &str); 4] = [
    ("root", "b8b22bd53dd360af95b53d16872bf6e9d093c35cf6677698ad74474ce33eb4e3"),
    ("hash tree", "fcd77f2ab08c5bd152b1d7305eac36746c9cbfdc8ea3cf2498903d1f9ba90ac1"),
    ("ESP", "850e37c3074ebf81fc481166cdba42ca8df96d86a5e1e27122ecfa8faa6a452c"),
    ("disk", "d04b439996024bbea8885d689ef833792e0456ead8a3002c72a3d48fbd4254a4"),
];

const EPOCH: i64 = 1_789_199_741;

/// Folders, a text, a program-like file of some length, a set-id file with an owner, a link: what a root is made of.
fn package() -> Vec<u8> {
    let long: Vec<u8> = (0..200_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let mut owned = header("./usr/bin/own", EntryType::Regular, 3);
    owned.set_mode(0o4750);
    owned.set_uid(7);
    owned.set_gid(1007);
    owned.set_cksum();
    let mut link = header("./usr/bin/link", EntryType::Symlink, 0);
    link.set_link_name_literal("own").unwrap();
    link.set_cksum();
    tarball(&[
        (header("./usr/", EntryType::Directory, 0), b""),
        (header("./usr/bin/", EntryType::Directory, 0), b""),
        (owned, b"own"),
        (link, b""),
        (header("./usr/lib/", EntryType::Directory, 0), b""),
        (header("./usr/lib/long", EntryType::Regular, long.len() as u64), &long),
        (header("./usr/lib/empty", EntryType::Regular, 0), b""),
    ])
}

#[test]
fn the_bytes_of_a_small_disk_are_what_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let mut archive = Archive::default();
    let path = archive.add_raw("hello", "1.0-1", "", &package());
    let deb = &archive.files[&path];
    let (sha256, _) = store.put_object(deb).unwrap();
    let locked = LockedPackage {
        name: "hello".into(),
        version: "1.0-1".into(),
        arch: "amd64".into(),
        suite: "trixie".into(),
        path,
        size: deb.len() as u64,
        sha256,
    };
    let unpacked = unpack::unpack(&store, &locked, 1).unwrap();
    let tree = merge::merge([&unpacked.tree], &Filter::new(&[], &[]).unwrap()).unwrap();

    let place = |name: &str| dir.path().join(name);
    let file = |name: &str| {
        let options =
            fs_err::OpenOptions::new().create(true).truncate(true).read(true).write(true).open(place(name));
        options.unwrap().into_file()
    };
    let options = erofs::Options {
        compression: Compression::Zstd { level: 9 },
        uuid: *b"0123456789abcdef",
        volume: "kiln".to_owned(),
        epoch: u64::try_from(EPOCH).unwrap(),
        threads: 2,
    };
    let mut root = file("root");
    erofs::write(&tree, &[], &options, &mut root).unwrap();
    let parameters = Parameters { salt: vec![7; 32], uuid: Uuid::from_u128(7) };
    let mut hashes = file("hashes");
    let root_hash =
        verity::format(Extent::whole(&root).unwrap(), &parameters, NonZeroUsize::MIN, &mut hashes).unwrap();
    let files = [
        ("EFI/BOOT/BOOTX64.EFI", vec![7u8; 100_000]),
        ("EFI/Linux/kiln_20260912-0123abcd+3.efi", vec![8; 3]),
        ("loader/loader.conf", b"timeout 0\n".to_vec()),
    ];
    let files: BTreeMap<_, _> = files
        .into_iter()
        .map(|(path, bytes)| (TreePath::new(path).unwrap(), fat::Source::Bytes(bytes)))
        .collect();
    let system = fat::FileSystem {
        size: 64 << 20,
        sector: 512,
        serial: 7,
        label: "ESP".to_owned(),
        epoch: EPOCH,
        files,
    };
    fat::write(&system, &mut file("esp")).unwrap();
    let node = disk::Node {
        architecture: disk::Architecture::X86_64,
        root_hash,
        esp: place("esp"),
        verity: place("hashes"),
        root: place("root"),
        verity_size: 0,
        root_size: 0,
    };
    let (guid, slots) = disk::node_slots(&node);
    let written = disk::write(guid, 512, &slots, &file("disk")).unwrap();

    let of = |name: &str| Digest::of_reader(fs_err::File::open(place(name)).unwrap()).unwrap().0;
    assert_eq!(of("disk"), written.digest, "the digest of a disk is of all its bytes, holes too");
    let all = ["root", "hashes", "esp", "disk"].map(|name| of(name).to_string());
    for ((what, golden), found) in GOLDEN.iter().zip(&all) {
        assert_eq!(
            golden, found,
            "the {what} has other bytes; if this is intended, update the values: {all:#?}"
        );
    }
}
