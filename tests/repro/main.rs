//! Same lock, same bytes: two builds in two stores that have nothing in common but the lock.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy spares only the functions marked #[test]"
)]

#[path = "../common/mod.rs"]
mod common;

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use common::images;
use common::run::{Run, command, files_below, is_root, program, skipped};
use kiln::digest::Digest;

/// Nobody in particular.
const OTHER_USER: u32 = 54_321;

/// A file system other than that of the shared store, if the machine has a writable one in memory.
fn elsewhere() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |s| s.f_bavail * s.f_frsize);
    let place = if free > 2 << 30 { memory.to_owned() } else { std::env::temp_dir() };
    if place != memory {
        skipped("/dev/shm has less than 2 GB: both builds are on the same kind of file system");
    }
    tempfile::Builder::new().prefix("kiln repro, ").tempdir_in(place).unwrap()
}

fn give(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
    if path.is_dir() {
        for entry in fs_err::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), user);
        }
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// Another project folder, and a store with only the objects, copied last to first, so that folders list them otherwise.
    fn new() -> Self {
        images::project();
        let dir = elsewhere();
        images::copy(images::project(), &dir.path().join("another project"));
        let objects = images::store().join("objects");
        for name in files_below(&objects).iter().rev() {
            let to = dir.path().join("store/objects").join(name);
            fs_err::create_dir_all(to.parent().unwrap()).unwrap();
            fs_err::copy(objects.join(name), to).unwrap();
        }
        // What recipes compile is compared by `kiln recipe build --check`.
        images::take_compiled(&images::store(), &dir.path().join("store"));
        // The target folder may be closed to other users.
        fs_err::copy(program(), dir.path().join("kiln")).unwrap();
        fs_err::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[test]
fn another_user_folder_umask_zone_language_file_system_and_thread_count_give_the_same_bytes() {
    images::image("server", "amd64");
    let place = Place::new();
    let mut build = command("sh");
    build
        .args(["-c", "umask 077; exec \"$0\" \"$@\""])
        .arg(place.path("kiln"))
        .args([
            "build",
            "--profile",
            "server",
            "--threads",
            "1",
            "-C",
            "another project",
            "--out",
            "other out",
        ])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", place.path("home"))
        .env("KILN_STORE", place.path("store"))
        .env("TZ", "Asia/Kathmandu")
        .env("LANG", "de_DE.UTF-8")
        .env("LC_ALL", "tr_TR.UTF-8")
        .env("SOURCE_DATE_EPOCH", "1")
        .env("KILN_APT_DIR", place.path("none"))
        .env("HTTPS_PROXY", "http://127.0.0.1:9")
        .current_dir(place.dir.path());
    if is_root() {
        give(place.dir.path(), OTHER_USER);
        build.uid(OTHER_USER).gid(OTHER_USER);
    } else {
        skipped("only root can build as another user");
    }
    Run::of(&build.output().unwrap()).ok();
    for name in ["server.raw", "server.json", "server.files.json"] {
        let of = |path: PathBuf| Digest::of_reader(fs_err::File::open(path).unwrap()).unwrap().0;
        let (here, there) =
            (of(images::folder().join("out").join(name)), of(place.path("other out").join(name)));
        assert_eq!(here, there, "{name} differs");
    }
}

#[test]
fn build_check_bakes_twice_and_finds_no_difference() {
    let project = images::project();
    let out = tempfile::tempdir_in(images::folder()).unwrap();
    let mut command = images::kiln();
    command.args(["build", "--profile", "server", "--check", "-C"]).arg(project).arg("--out").arg(out.path());
    let run = Run::of(&command.output().unwrap()).ok();
    assert!(run.stderr.contains("same") || run.stderr.contains("dentical"), "{}", run.text());
}

#[test]
fn the_benchmark_of_builds_compiles_nothing_that_is_in_the_store() {
    images::image("server", "amd64");
    let mut command = images::kiln();
    // A program that was compiled again would need its modules first, and there is no way to them here.
    command
        .env("GOPROXY", "off")
        .args(["dev", "bench", "builds", "--runs", "1", "--json", "-C"])
        .arg(images::project());
    let results = Run::of(&command.output().unwrap()).ok().json();
    let names: Vec<&str> =
        results["cases"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cold", "no-op", "one line"]);
}
