//! The disk with the state of a diskless node, on loop devices.

use std::path::Path;

use kiln::deploy::flash::claim::Wish;
use kiln::deploy::flash::device::Machine;
use kiln::deploy::flash::state::{Place, guid, ready};
use kiln::error::Failure;

use crate::common::run::{Env, Run, skipped};
use crate::disk::{After, Loop, has, host, tool};

/// What the initrd asks for node `name` of a cluster.
fn ask(disk: &Loop, name: &str) -> Result<Place, Failure> {
    // No word makes it overwrite anything.
    let overwrite = ["luks".to_owned()];
    let device = Some(Path::new(&disk.path));
    let wish = Wish { device, least: 32 << 20, overwrite: &overwrite, ..Wish::default() };
    ready(&Machine::this(), &wish, guid("homelab", name))
}

/// Writes a GPT with one partition by the tool that everybody uses.
fn sfdisk(env: &Env, disk: &Loop) {
    env.write("table", "label: gpt\n,\n");
    let script = fs_err::File::open(env.path("table")).unwrap().into_file();
    Run::of(&tool("sfdisk").args(["--wipe", "always", &disk.path]).stdin(script).output().unwrap()).ok();
}

/// Whether this kernel sees a partition when somebody writes a table.
fn kernel_reads_tables(env: &Env) -> bool {
    let disk = Loop::new(env, "seen", 8, 512).unwrap();
    sfdisk(env, &disk);
    let seen = Path::new("/sys/class/block").join(format!("{}p1", disk.name())).exists();
    if !seen {
        skipped("this kernel reads no GPT: the state is looked for in the bytes of the disk");
    }
    seen
}

/// The same where it must succeed, but for the partition on a kernel that has no eyes for it.
#[track_caller]
fn taken(disk: &Loop, name: &str, seen: bool) -> Option<Place> {
    let result = ask(disk, name);
    assert_eq!(result.is_ok(), seen, "{result:?}");
    if let Err(error) = &result {
        assert!(error.to_string().contains("the kernel does not see its partition"), "{error}");
    }
    result.ok()
}

fn put(disk: &Loop, at: u64, bytes: &[u8]) {
    let file = fs_err::OpenOptions::new().write(true).open(&disk.file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(file.file(), bytes, at).unwrap();
}

#[test]
fn a_blank_disk_becomes_the_nodes_once_and_stays_so() {
    if !has("mkfs.ext4") {
        return skipped("there is no mkfs.ext4, which nodes have");
    }
    let env = Env::new();
    let mut seen = None;
    for sector in [512, 4096] {
        let Some(disk) = Loop::new(&env, &format!("{sector}.disk"), 64, sector) else { return };
        let seen = *seen.get_or_insert_with(|| kernel_reads_tables(&env));
        if let Some(place) = taken(&disk, "agent-1", seen) {
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
        assert!(taken(&disk, "agent-1", seen).is_none_or(|place| !place.made));
        let error = ask(&disk, "agent-2").unwrap_err().to_string();
        assert!(error.contains("it holds the state of another node"), "{error}");
        assert!(disk.bytes() == before, "nothing was written");
        // The power went before the table at the beginning was written; or it is lost.
        put(&disk, 0, &[0; 1 << 20]);
        assert!(taken(&disk, "agent-1", seen).is_none_or(|place| !place.made));
        assert!(disk.bytes() == before, "the table is there again, and nothing else was written");
        let umount = mounted();
        assert_eq!(fs_err::read_to_string(mount.join("password")).unwrap(), "kept");
        drop(umount);
        // It went when half of its copy was written: nobody has used such a disk.
        put(&disk, 0, &[0; 1 << 20]);
        put(&disk, disk.size() - u64::from(sector), &vec![0; sector as usize]);
        assert!(taken(&disk, "agent-1", seen).is_none_or(|place| place.made));
        let _umount = mounted();
        assert!(!mount.join("password").exists(), "it was made anew");
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
    put(&disk, 7, b"precious");
    refused("its first or its last MiB is not empty");
    put(&disk, 0, b"LUKS\xba\xbe");
    let error = refused("locked by LUKS");
    assert!(!error.hints().iter().any(|hint| hint.contains("--overwrite")), "{:?}", error.hints());
    // What an old system leaves: a table, and boot code before it.
    sfdisk(&env, &disk);
    put(&disk, 0, &[0xFA; 440]);
    let error = refused("it holds GPT");
    // What it says helps is done, and helps.
    let hint = error.hints().iter().find_map(|hint| hint.split('`').nth(1)).unwrap();
    for line in hint.split(" && ") {
        let words: Vec<&str> = line.split(' ').collect();
        if !has(words[0]) {
            return skipped("wipefs and blkdiscard of util-linux are not on this machine");
        }
        host(words[0], &words[1..]);
    }
    let small = Wish { device: Some(Path::new(&disk.path)), least: 1 << 40, ..Wish::default() };
    let error = ready(&Machine::this(), &small, guid("homelab", "agent-1")).unwrap_err().to_string();
    assert!(error.contains("too small"), "{error}");
    if has("mkfs.ext4") {
        let seen = kernel_reads_tables(&env);
        assert!(taken(&disk, "agent-1", seen).is_none_or(|place| place.made));
    } else {
        skipped("there is no mkfs.ext4, which nodes have");
    }
}
