//! The disk with the state of a diskless node, on loop devices.

use std::path::Path;

use kiln::deploy::flash::claim::Wish;
use kiln::deploy::flash::device::Machine;
use kiln::deploy::flash::state::{Place, guid, ready};
use kiln::error::Failure;

use crate::common::run::{Env, skipped};
use crate::disk::{After, Loop, has, host};

/// What the initrd asks for node `name` of a cluster.
fn ask(disk: &Loop, name: &str) -> Result<Place, Failure> {
    let wish = Wish { device: Some(Path::new(&disk.path)), least: 32 << 20, ..Wish::default() };
    ready(&Machine::this(), &wish, guid("homelab", name))
}

/// The same where it must succeed; not every kernel looks for partitions on its own.
#[track_caller]
fn taken(disk: &Loop, name: &str) -> Option<Place> {
    match ask(disk, name) {
        Ok(place) => Some(place),
        Err(error) => {
            assert!(error.to_string().contains("the kernel does not see the partition"), "{error}");
            skipped("this kernel reads no GPT: the state is looked for in the bytes of the disk");
            None
        }
    }
}

#[test]
fn a_blank_disk_becomes_the_nodes_once_and_stays_so() {
    if !has("mkfs.ext4") {
        return skipped("there is no mkfs.ext4, which nodes have");
    }
    let env = Env::new();
    for sector in [512, 4096] {
        let Some(disk) = Loop::new(&env, &format!("{sector}.disk"), 64, sector) else { return };
        if let Some(place) = taken(&disk, "agent-1") {
            assert!(place.made && place.partition == Path::new(&format!("{}p1", disk.path)), "{place:?}");
        }
        // What the node leaves there is there for its next boot.
        let file = disk.file.to_str().unwrap();
        let part = host("losetup", &["--find", "--show", "--offset", "1MiB", "--sizelimit", "62MiB", file]);
        let part = part.stdout.trim();
        let _detach = After::new(&["losetup", "--detach", part]);
        host("e2fsck", &["-f", "-n", part]);
        let mount = env.path("mount");
        fs_err::create_dir_all(&mount).unwrap();
        let mounted = || {
            host("mount", &[part, mount.to_str().unwrap()]);
            After::new(&["umount", mount.to_str().unwrap()])
        };
        let umount = mounted();
        fs_err::write(mount.join("password"), "kept").unwrap();
        drop(umount);
        let before = disk.bytes();
        assert!(taken(&disk, "agent-1").is_none_or(|place| !place.made));
        let error = ask(&disk, "agent-2").unwrap_err().to_string();
        assert!(error.contains("it holds the state of another node"), "{error}");
        assert!(disk.bytes() == before, "nothing was written");
        let _umount = mounted();
        assert_eq!(fs_err::read_to_string(mount.join("password")).unwrap(), "kept");
    }
}

#[test]
fn a_disk_with_anything_on_it_is_left_alone() {
    let env = Env::new();
    let Some(disk) = Loop::new(&env, "disk", 64, 512) else { return };
    let refused = |words: &str| {
        let before = disk.bytes();
        let error = ask(&disk, "agent-1").unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(disk.bytes() == before, "{words}: it was written");
        error
    };
    let put = |at: u64, bytes: &[u8]| {
        let file = fs_err::OpenOptions::new().write(true).open(&disk.file).unwrap();
        std::os::unix::fs::FileExt::write_all_at(file.file(), bytes, at).unwrap();
    };
    put(7, b"precious");
    let error = refused("its first or its last MiB is not empty");
    assert!(error.hints().iter().any(|hint| hint.contains("blkdiscard")), "{:?}", error.hints());
    put(0, b"LUKS\xba\xbe");
    refused("locked by LUKS");
    put(0, &[0; 512]);
    let small = Wish { device: Some(Path::new(&disk.path)), least: 1 << 40, ..Wish::default() };
    let error = ready(&Machine::this(), &small, guid("homelab", "agent-1")).unwrap_err().to_string();
    assert!(error.contains("too small"), "{error}");
}
