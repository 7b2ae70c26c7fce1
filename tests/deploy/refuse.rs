//! Disks that are not written, and what is said of them.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::{CWD, FileType};

use crate::common::run::{Env, Run, command, skipped};
use crate::disk::{After, Loop, has, host, image};

/// Flashes an image onto `disk` and gives what came of it; the disk must be as it was.
#[track_caller]
fn refused(env: &Env, disk: &Loop, more: &[&str], code: i32, words: &[&str]) {
    let before = kiln::digest::Digest::of(&disk.bytes());
    let args = ["flash", "--image", "server", "--unproven", "a test", "--device", &disk.path];
    env.kiln(&[&args[..], more].concat()).fails(code, words);
    assert!(before == kiln::digest::Digest::of(&disk.bytes()), "something was written");
}

/// A program that has a disk open for writing. Another process than this one: what other tests start has for a moment all that is open here.
struct User(Child);

impl User {
    /// `None` if it may not open it.
    fn of(disk: &Path) -> Option<Self> {
        let script = format!("exec sleep 600 <>{}", disk.display());
        let mut user = User(command("sh").args(["-c", &script]).spawn().unwrap());
        let comm = format!("/proc/{}/comm", user.0.id());
        while fs_err::read_to_string(&comm).unwrap() != "sleep\n" {
            if user.0.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(user)
    }

    fn words(&self) -> String {
        format!("sleep ({}) can write to it", self.0.id())
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_disk_that_is_in_use_is_not_written() {
    let env = Env::new();
    image(&env, 1);
    let Some(disk) = Loop::new(&env, "disk", 200, 512) else { return };
    let yes = ["--yes", disk.name()];
    if has("mkfs.ext4") {
        host("mkfs.ext4", &["-q", &disk.path]);
        let point = env.path("mount point");
        fs_err::create_dir(&point).unwrap();
        // Read-only: the kernel goes on to make the inode tables of a new ext4 that may be written.
        let mount = ["-o", "ro,noload", &disk.path, point.to_str().unwrap()];
        if Run::of(&command("mount").args(mount).output().unwrap()).code == 0 {
            let _after = After::new(&["umount", point.to_str().unwrap()]);
            refused(&env, &disk, &yes, 6, &["it is mounted on", "mount point", "unmount it"]);
        } else {
            skipped("this kernel mounts no ext4");
        }
    }
    if has("mkswap") {
        host("mkswap", &[&disk.path]);
        if Run::of(&command("swapon").arg(&disk.path).output().unwrap()).code == 0 {
            let _after = After::new(&["swapoff", &disk.path]);
            refused(&env, &disk, &yes, 6, &["swap space in use", "swapoff"]);
        } else {
            skipped("swap space cannot be used here");
        }
    }
    // Another loop device on top of it.
    let upper = Loop::over(std::path::Path::new(&disk.path), 512).unwrap();
    refused(&env, &disk, &yes, 6, &["it is used by", upper.name()]);
    drop(upper);
    // Something that no list shows: another kiln, or whoever else takes it for himself.
    let holder = fs_err::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&disk.path).unwrap();
    refused(&env, &disk, &yes, 6, &["is in use", "another kiln"]);
    drop(holder);
    // A virtual machine takes nothing for itself, and may write at any moment.
    let user = User::of(Path::new(&disk.path)).unwrap();
    refused(&env, &disk, &yes, 6, &[&user.words(), "end that first"]);
    drop(user);
    // Nor does one in a container, where the disk has another name.
    let node = env.path("xvdc");
    let number = std::os::unix::fs::MetadataExt::rdev(&fs_err::metadata(&disk.path).unwrap());
    rustix::fs::mknodat(CWD, &node, FileType::BlockDevice, 0o600.into(), number).unwrap();
    match User::of(&node) {
        Some(user) => refused(&env, &disk, &yes, 6, &[&user.words(), "end that first"]),
        None => skipped("there can be no devices in the folder for temporary files"),
    }
    // Nothing of all this is left.
    env.kiln(&[
        "flash",
        "--image",
        "server",
        "--unproven",
        "a test",
        "--device",
        &disk.path,
        "--yes",
        disk.name(),
    ])
    .ok();
}

#[test]
fn the_disk_must_be_named_twice_and_rightly() {
    let env = Env::new();
    image(&env, 1);
    let Some(disk) = Loop::new(&env, "disk", 200, 512) else { return };
    refused(&env, &disk, &[], 1, &["nobody is there to type its name", &format!("--yes {}", disk.name())]);
    refused(&env, &disk, &["--yes", "loop999"], 1, &["--yes does not give its name"]);
    refused(&env, &disk, &["--yes", ""], 1, &["--yes does not give its name"]);
    refused(&env, &disk, &["--yes", disk.name(), "--device", &disk.path], 1, &["is meant twice"]);
    refused(
        &env,
        &disk,
        &["--yes", disk.name(), "--overwrite", "lwm"],
        1,
        &["knows no `lwm`", "did you mean `lvm`?"],
    );
    for (device, word) in [
        ("/dev/null", "is no disk"),
        ("/dev/full", "is no disk"),
        ("/dev/nothing", "is not there"),
        ("/etc/passwd", "is a file, no disk"),
        ("/etc", "is a folder, no disk"),
    ] {
        env.kiln(&["flash", "--image", "server", "--unproven", "x", "--device", device])
            .fails(1, &[device, word, "--list"]);
    }
    env.kiln(&["flash", "--image", "server", "--device", &disk.path])
        .fails(7, &["is not proven", "kiln test", "--unproven"]);
    env.kiln(&["flash", "--image", "server", "--unproven", "x"]).fails(1, &["which disk is meant"]);
    env.kiln(&["flash"]).fails(1, &["nothing says what to flash"]);
    env.kiln(&["flash", "--image", "srver", "--device", &disk.path]).fails(1, &["did you mean `server`?"]);
}

#[test]
fn partitions_and_disks_without_room_and_rights_are_refused() {
    let env = Env::new();
    image(&env, 1);
    let Some(disk) = Loop::new(&env, "disk", 60, 512) else { return };
    refused(
        &env,
        &disk,
        &["--yes", disk.name()],
        6,
        &["is too small", "62914560 bytes", "hint: take a larger disk"],
    );
    host("losetup", &["--detach", &disk.path]);
    let run = host("losetup", &["--find", "--show", "--read-only", disk.file.to_str().unwrap()]);
    let fixed = Loop { path: run.stdout.trim().to_owned(), file: disk.file.clone() };
    refused(&env, &fixed, &["--yes", fixed.name()], 6, &["it is read-only", "write protection off"]);
}

#[test]
fn parts_of_something_larger_are_lost_only_when_they_are_named() {
    let env = Env::new();
    image(&env, 1);
    let Some(disk) = Loop::new(&env, "disk", 200, 512) else { return };
    if !has("cryptsetup") {
        return skipped("cryptsetup makes the volume that is refused");
    }
    env.write("key", "a long enough key");
    let key = env.path("key");
    host(
        "cryptsetup",
        &[
            "luksFormat",
            "--batch-mode",
            "--pbkdf-force-iterations",
            "1000",
            "--pbkdf",
            "pbkdf2",
            &disk.path,
            key.to_str().unwrap(),
        ],
    );
    let yes = ["--yes", disk.name()];
    refused(&env, &disk, &yes, 6, &["locked by LUKS", "--overwrite luks"]);
    refused(&env, &disk, &[&yes[..], &["--overwrite", "lvm"]].concat(), 6, &["locked by LUKS"]);
    let run = [
        "flash",
        "--image",
        "server",
        "--unproven",
        "x",
        "--device",
        &disk.path,
        "--overwrite",
        "luks",
        "--yes",
        disk.name(),
    ];
    env.kiln(&run).ok();
}

#[test]
fn the_list_is_a_table_or_json_and_no_loop_device_is_in_it() {
    let env = Env::new();
    let text = env.kiln(&["flash", "--list"]).ok().stdout;
    assert!(text.starts_with("DEVICE ") || text.starts_with("(no disks)"), "{text}");
    assert!(!text.contains("/dev/loop") && !text.contains("/dev/zram"), "{text}");
    let list = env.kiln(&["--json", "flash", "--list"]).ok().json();
    for disk in list.as_array().unwrap() {
        for key in [
            "path", "size", "sector", "bus", "serial", "wwn", "mounts", "holders", "swaps", "system", "holds",
        ] {
            assert!(disk.get(key).is_some(), "{key}: {disk}");
        }
    }
    let run = env.kiln(&["flash", "--list", "--device", "/dev/sda"]);
    assert_eq!(run.code, 2, "{}", run.text());
}
