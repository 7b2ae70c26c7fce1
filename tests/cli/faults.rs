//! Faults of the machine under a real build: killed, interrupted, full, read-only, damaged, two at once.
//!
//! The packages are the real ones, of a node without K3s, which would be compiled in each of these stores. Each test has a store of
//! its own that begins with the objects of the shared one, so that nothing is downloaded.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kiln::digest::Digest;
use rustix::process::{Pid, Signal, kill_process};

use crate::common::archive::Archive;
use crate::common::images;
use crate::common::mirror::Mirror;
use crate::common::run::{Env, Run, command, files_below, is_root, program, skipped};

/// Hard links to everything below `from`, as `cp -al` makes them.
fn link_all(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            link_all(&entry.path(), &target);
        } else {
            fs_err::hard_link(entry.path(), target).unwrap();
        }
    }
}

/// A project and a store with `parts` of the shared one, on the same disk as that, so that links can be made.
struct Real {
    dir: tempfile::TempDir,
    wanted: Digest,
}

impl Real {
    fn with(parts: &[&str]) -> Self {
        images::image("bare", "amd64");
        let wanted = images::manifest("bare", "amd64").disk.sha256;
        let dir = tempfile::Builder::new().prefix("fault-").tempdir_in(images::folder()).unwrap();
        for part in parts {
            link_all(&images::store().join(part), &dir.path().join("store").join(part));
        }
        images::copy(images::project(), &dir.path().join("project"));
        Real { dir, wanted }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn kiln(&self, args: &[&str]) -> Command {
        let mut command = command(program());
        command
            .env("KILN_STORE", self.path("store"))
            .arg("-C")
            .arg(self.path("project"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn build(&self, out: &str) -> Command {
        let mut command = self.kiln(&["build", "--profile", "bare", "--json", "--out"]);
        command.arg(self.path(out));
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(&self.kiln(args).output().unwrap())
    }

    /// The build must succeed and give the bytes that the undisturbed one gave.
    #[track_caller]
    fn good(&self, out: &str) -> Run {
        let run = Run::of(&self.build(out).output().unwrap()).ok();
        self.is_good(out);
        run
    }

    #[track_caller]
    fn is_good(&self, out: &str) {
        let (found, _) =
            Digest::of_reader(fs_err::File::open(self.path(out).join("bare.raw")).unwrap()).unwrap();
        assert_eq!(found, self.wanted);
        assert_eq!(files_below(&self.path(out)), ["bare.files.json", "bare.json", "bare.raw"]);
    }

    #[track_caller]
    fn store_is_clean(&self) {
        self.run(&["store", "verify"]).ok();
        let left: Vec<String> =
            files_below(&self.path("store/tmp")).into_iter().filter(|f| !f.ends_with(".lock")).collect();
        assert_eq!(left, [""; 0], "staging of nobody");
    }
}

/// A step's output file in the store.
fn step_file(store: &Path, kind: &str, name: &str) -> PathBuf {
    let folder = store.join("steps").join(kind);
    let found = files_below(&folder).into_iter().find(|f| f.contains("bare") && f.ends_with(name));
    folder.join(found.unwrap_or_else(|| panic!("no {name} in {}", folder.display())))
}

/// Changes one byte in the middle of a file, which gets an inode of its own.
fn flip(path: &Path) {
    let mut bytes = fs_err::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs_err::remove_file(path).unwrap();
    fs_err::write(path, bytes).unwrap();
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn two_builds_at_once_in_one_store_both_succeed_with_the_same_bytes() {
    let real = Real::with(&["objects"]);
    std::thread::scope(|scope| {
        for out in ["one", "two"] {
            scope.spawn(|| Run::of(&real.build(out).output().unwrap()).ok());
        }
    });
    real.is_good("one");
    real.is_good("two");
    real.store_is_clean();
}

/// Starts builds and sends each `signal` after a while, longer each time, until one is done before its signal comes. What is
/// in the store makes the next one shorter, so that the signals meet every stage. Calls `check` after each.
fn disturb(real: &Real, signal: Signal, check: impl Fn(Run)) {
    for round in 0..40u64 {
        // Without --json: nobody reads the pipe meanwhile, and a manifest is longer than a pipe holds.
        let child =
            real.kiln(&["build", "--profile", "bare", "--out"]).arg(real.path("out")).spawn().unwrap();
        let pid = Pid::from_child(&child);
        // Odd numbers of milliseconds, so that rounds do not meet the same moment again; in the end longer than the longest
        // step takes on a busy machine, since a step that was disturbed begins anew.
        std::thread::sleep(Duration::from_millis(150 + round * 173 + round.saturating_sub(15) * 1507));
        kill_process(pid, signal).ok();
        let run = Run::of(&child.wait_with_output().unwrap());
        if run.code == 0 {
            assert!(
                round >= 4,
                "only {round} builds were disturbed:
{}",
                run.text()
            );
            return;
        }
        check(run);
    }
    panic!("40 builds were disturbed and none got through: work that was done is not kept");
}

#[test]
fn after_kill_9_in_every_stage_the_next_build_gives_the_same_bytes() {
    let real = Real::with(&["objects"]);
    disturb(&real, Signal::KILL, |run| {
        assert_eq!(run.code, 128 + 9, "{}", run.text());
        let raw = real.path("out/bare.raw");
        if raw.exists() {
            let (found, _) = Digest::of_reader(fs_err::File::open(raw).unwrap()).unwrap();
            assert_eq!(found, real.wanted, "an image under its own name is whole");
        }
    });
    let left: Vec<String> =
        files_below(&real.path("out")).into_iter().filter(|f| f.starts_with('.')).collect();
    for name in &left {
        assert!(name.ends_with(".part") || name.starts_with(".kiln-json."), "{left:?}");
        fs_err::remove_file(real.path("out").join(name)).unwrap();
    }
    real.good("out");
    real.store_is_clean();
}

#[test]
fn ctrl_c_in_every_stage_is_code_130_and_leaves_nothing_behind() {
    let real = Real::with(&["objects"]);
    disturb(&real, Signal::INT, |run| {
        assert_eq!(run.code, 130, "{}", run.text());
        assert!(!run.stderr.contains("panicked"), "{}", run.text());
        let left: Vec<String> =
            files_below(&real.path("out")).into_iter().filter(|f| f.starts_with('.')).collect();
        assert_eq!(left, [""; 0], "{}", run.text());
        let tmp: Vec<String> =
            files_below(&real.path("store/tmp")).into_iter().filter(|f| !f.ends_with(".lock")).collect();
        assert_eq!(tmp, [""; 0], "{}", run.text());
    });
    real.is_good("out");
    real.store_is_clean();
}

/// Runs a script in a mount namespace of its own; `None`, said aloud, where that is not allowed.
fn in_namespace(real: &Real, script: &str) -> Option<Run> {
    let mut probe = command("unshare");
    let allowed = probe.args(["-m", "true"]).output().is_ok_and(|o| o.status.success());
    if !is_root() || !allowed {
        skipped("this test mounts a small file system, which needs root");
        return None;
    }
    let mut command = command("unshare");
    command
        .args(["-m", "sh", "-e", "-c", script])
        .env("KILN", program())
        .env("DIR", real.dir.path())
        .env("SHARED", images::store())
        .env("KILN_STORE", real.path("store"));
    Some(Run::of(&command.output().unwrap()))
}

#[test]
fn a_full_store_is_code_6_with_a_remedy_and_no_half_step() {
    let real = Real::with(&[]);
    fs_err::create_dir(real.path("store")).unwrap();
    // Room for what was downloaded and for the beginning of the work.
    let script = r#"
        size=$(($(du -sk "$SHARED/objects" | cut -f 1) + 40960))
        mount -t tmpfs -o "size=${size}k" none "$KILN_STORE"
        cp -r "$SHARED/objects" "$KILN_STORE/objects"
        code=0
        "$KILN" -C "$DIR/project" build --profile bare --out "$DIR/out" || code=$?
        rm -r "$KILN_STORE/objects"
        "$KILN" store verify >&2
        exit $code
    "#;
    let Some(run) = in_namespace(&real, script) else { return };
    run.fails(
        6,
        &["the file system of", "/store is full", "No space left on device", "kiln store gc", "0 damaged"],
    );
    assert_eq!(files_below(&real.path("out")), [""; 0]);
}

#[test]
fn a_full_output_folder_is_code_6_and_leaves_no_half_image() {
    let real = Real::with(&["objects", "steps"]);
    fs_err::create_dir(real.path("out")).unwrap();
    let script = r#"
        mount -t tmpfs -o size=20m none "$DIR/out"
        code=0
        "$KILN" -C "$DIR/project" build --profile bare --out "$DIR/out" || code=$?
        ls -A "$DIR/out" | sed 's/^/left: /' >&2
        exit $code
    "#;
    let Some(run) = in_namespace(&real, script) else { return };
    assert!(!run.stderr.contains("left: "), "{}", run.text());
    assert!(!run.stderr.contains("store gc"), "the store is not full: {}", run.text());
    run.fails(6, &["the file system of", "/out is full", "No space left on device", "--out"]);
    real.good("out");
}

#[test]
fn a_read_only_store_is_code_6_and_names_the_variable() {
    let real = Real::with(&[]);
    fs_err::create_dir(real.path("store")).unwrap();
    let script = r#"
        mount -t tmpfs -o ro none "$KILN_STORE"
        exec "$KILN" -C "$DIR/project" build --profile bare --out "$DIR/out"
    "#;
    let Some(run) = in_namespace(&real, script) else { return };
    run.fails(6, &["store", "cannot be used", "KILN_STORE"]);
}

#[test]
fn a_store_in_a_place_that_cannot_be_one_is_code_6() {
    let env = Env::new();
    Archive::project(&env, &["hello"]);
    env.write("file", "x");
    let run =
        Run::of(&env.command().env("KILN_STORE", env.path("file")).args(["store", "ls"]).output().unwrap());
    run.fails(6, &["the store", "cannot be used", "KILN_STORE"]);
}

#[test]
fn a_damaged_package_in_the_store_is_reported_and_fetched_again() {
    let mut archive = Archive::sample();
    archive.publish();
    let (env, mirror) = (Env::new(), Mirror::serve(&archive.files));
    env.mirrors(&[&mirror.base]);
    Archive::project(&env, &["hello"]);
    env.kiln(&["update"]).ok();
    let build = || env.kiln(&["build", "--profile", "server"]).fails(1, &["holds a kernel"]);
    build();
    let deb = &archive.files["pool/main/hello_1.0-1_amd64.deb"];
    let digest = Digest::of(deb).to_string();
    flip(&env.store().join("objects").join(&digest[..2]).join(&digest));
    env.kiln(&["store", "verify"]).fails_with_result(6, &[&digest[..]]);
    fs_err::remove_dir_all(env.store().join("steps/unpack/hello")).unwrap();
    let run = build();
    assert!(
        run.stderr.contains("the object of hello 1.0-1 amd64 in the store was damaged; it is fetched again"),
        "{}",
        run.text()
    );
    assert_eq!(mirror.asked("hello_1.0-1").len(), 2);
    env.kiln(&["store", "verify"]).ok();
}

#[test]
fn a_damaged_step_is_found_by_verify_removed_by_repair_and_made_again() {
    let real = Real::with(&["objects", "steps"]);
    flip(&step_file(&real.path("store"), "root", "root.erofs"));
    let run = real.run(&["store", "verify"]).fails_with_result(6, &["damaged", "--repair"]);
    assert!(run.stdout.contains("steps/root/") && run.stdout.contains("root.erofs"), "{}", run.text());
    real.run(&["store", "verify", "--repair"]).ok();
    real.good("out");
    real.store_is_clean();
}

#[test]
fn gc_keeps_what_a_project_needs_and_an_unchanged_build_stays_one() {
    let real = Real::with(&["objects", "steps"]);
    assert_eq!(real.good("out").json()[0]["built"], true);
    let other = real.path("store/steps/unpack/nobody/0123");
    fs_err::create_dir_all(&other).unwrap();
    fs_err::write(other.join("data"), "x").unwrap();
    real.run(&["store", "gc"]).ok();
    assert!(!other.exists(), "what nobody needs goes");
    assert_eq!(real.good("out").json()[0]["built"], false);
    // An image that somebody removed is made from what gc kept, without a download: there is no mirror to ask.
    fs_err::remove_file(real.path("out/bare.raw")).unwrap();
    let run = Run::of(
        &real
            .build("out")
            .env("KILN_APT_DIR", real.path("none"))
            .env("HTTPS_PROXY", "http://127.0.0.1:9")
            .output()
            .unwrap(),
    )
    .ok();
    assert!(!run.stderr.contains("Fetched"), "{}", run.text());
    real.is_good("out");
}

#[test]
fn an_image_that_somebody_changed_is_made_again() {
    let real = Real::with(&["objects", "steps"]);
    real.good("out");
    flip(&real.path("out/bare.raw"));
    assert_eq!(real.good("out").json()[0]["built"], true);
}
