//! What real tools wrote is found, and `blkid` calls it the same.

use kiln::deploy::flash::signature::{self, Class};

use crate::common::run::{Env, Run, skipped};
use crate::disk::{has, host, tool};

/// The words of kiln for types of blkid, where they are not the same.
const NAMES: [(&str, &str); 6] = [
    ("LVM2_member", "lvm"),
    ("linux_raid_member", "raid"),
    ("crypto_LUKS", "luks"),
    ("zfs_member", "zfs"),
    ("ceph_bluestore", "ceph"),
    ("DM_verity_hash", "verity"),
];

fn judged(file: &str) -> Option<String> {
    let run = Run::of(
        &tool("blkid").args(["--probe", "--match-tag", "TYPE", "--output", "value", file]).output().unwrap(),
    );
    let found = run.stdout.trim();
    let name = NAMES.iter().find(|(theirs, _)| *theirs == found).map_or(found, |(_, ours)| ours);
    (!name.is_empty()).then(|| name.to_owned())
}

#[test]
fn file_systems_and_members_made_by_their_own_tools_have_their_names() {
    if !has("blkid") {
        return skipped("blkid judges");
    }
    let env = Env::new();
    let folder = env.path("tmp");
    fs_err::write(folder.join("a file"), "content").unwrap();
    let (image, key) = (env.path("image"), env.path("key"));
    let (image, key) = (image.to_str().unwrap(), key.to_str().unwrap());
    env.write("key", "a long enough key");
    let folder = folder.to_str().unwrap();
    let luks = |kind| {
        vec![
            "luksFormat",
            "--batch-mode",
            "--type",
            kind,
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            image,
            key,
        ]
    };
    let cases: Vec<(&str, &str, Vec<&str>)> = vec![
        ("ext2", "mkfs.ext2", vec!["-q", image]),
        ("ext3", "mkfs.ext3", vec!["-q", image]),
        ("ext4", "mkfs.ext4", vec!["-q", image]),
        ("xfs", "mkfs.xfs", vec!["-q", image]),
        ("btrfs", "mkfs.btrfs", vec!["-q", image]),
        ("vfat", "mkfs.vfat", vec!["-F", "32", image]),
        ("vfat", "mkfs.vfat", vec!["-F", "16", image]),
        ("ntfs", "mkntfs", vec!["-q", "-F", "-f", image]),
        ("exfat", "mkfs.exfat", vec![image]),
        ("f2fs", "mkfs.f2fs", vec!["-q", image]),
        ("erofs", "mkfs.erofs", vec![image, folder]),
        ("squashfs", "mksquashfs", vec![folder, image, "-noappend", "-quiet"]),
        ("iso9660", "xorrisofs", vec!["-quiet", "-o", image, folder]),
        ("swap", "mkswap", vec![image]),
        ("luks", "cryptsetup", luks("luks1")),
        ("luks", "cryptsetup", luks("luks2")),
        ("lvm", "pvcreate", vec!["-f", image]),
        ("bcache", "make-bcache", vec!["-B", image]),
    ];
    let mut made = 0;
    for (kind, tool, args) in cases {
        if !has(tool) {
            skipped(&format!("{tool} makes {kind} and is not here"));
            continue;
        }
        fs_err::remove_file(image).ok();
        fs_err::File::create(image).unwrap().set_len(320 << 20).unwrap();
        host(tool, &args);
        let found = signature::of_file(image.as_ref(), 512).unwrap();
        let kinds: Vec<&str> = found.iter().map(|found| found.kind).collect();
        assert_eq!(kinds, [kind], "{tool} {args:?}");
        assert_eq!(judged(image).as_deref(), Some(kind), "{tool} {args:?}");
        assert_eq!(found[0].class == Class::Member, ["luks", "lvm", "bcache"].contains(&kind));
        made += 1;
    }
    assert!(made > 0);
}

#[test]
fn tables_made_by_sfdisk_are_told_apart() {
    if !has("sfdisk") {
        return skipped("sfdisk makes the tables");
    }
    let env = Env::new();
    let image = env.path("image");
    for (label, kind, text) in
        [("gpt", "gpt", "GPT, 2 partitions: first, second"), ("dos", "mbr", "MBR, 2 partitions")]
    {
        fs_err::remove_file(&image).ok();
        fs_err::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let name = |name: &str| if label == "gpt" { format!(", name={name}") } else { String::new() };
        env.write(
            "script",
            format!("label: {label}\nsize=20MiB{}\nsize=20MiB{}\n", name("first"), name("second")),
        );
        let script = fs_err::File::open(env.path("script")).unwrap().into_file();
        Run::of(&tool("sfdisk").arg(&image).stdin(script).output().unwrap()).ok();
        let found = signature::of_file(&image, 512).unwrap();
        assert_eq!((found[0].kind, found[0].text.as_str(), found.len()), (kind, text, 1));
    }
}
