//! Real images of this project: built once per run of the tests and shared by all test binaries.
//!
//! ```text
//! target/kiln-test/        KILN_TEST_DIR to move it
//!   lock                   held while somebody prepares something below
//!   store/                 stays from run to run; CI may start with an empty one
//!   project/               copy of images/, profiles/ and qemu/; its lock may be newer than the committed one, see [`project`]
//!   out/                   images by profile and architecture
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::run::{Run, command, program};

/// The folder of all this.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let set = std::env::var_os("KILN_TEST_DIR").map(PathBuf::from);
        let folder =
            set.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("kiln-test"));
        fs_err::create_dir_all(&folder).unwrap();
        folder
    })
}

pub fn store() -> PathBuf {
    static COMPILED: OnceLock<()> = OnceLock::new();
    COMPILED.get_or_init(compiled);
    folder().join("store")
}

/// Recipes that compile for minutes.
const LONG: [&str; 8] = [
    "linux-vm",
    "linux-node",
    "k3s",
    "k3s-config",
    "cni-flannel",
    "coredns",
    "local-path-provisioner",
    "metrics-server",
];

/// Takes what was compiled over from this person's own store. A step is found by the key of all that it depends on, so what does not fit
/// is never used.
fn compiled() {
    if let Ok(own) = kiln::store::Store::default_path() {
        take_compiled(&own, &folder().join("store"));
    }
}

/// Copies what recipes that compile for minutes made from one store to another.
pub fn take_compiled(from: &Path, to: &Path) {
    let (from, to) = (from.join("steps/recipe"), to.join("steps/recipe"));
    for recipe in LONG {
        for key in fs_err::read_dir(from.join(recipe)).into_iter().flatten().map(Result::unwrap) {
            let step = to.join(recipe).join(key.file_name());
            if key.path().join("step.json").is_file() && !step.exists() {
                // By another name first: a test that is interrupted leaves no half of a step. Another test binary may be as far.
                fs_err::create_dir_all(step.parent().unwrap()).unwrap();
                let staged = tempfile::tempdir_in(&to).unwrap();
                copy(&key.path(), &staged.path().join("step"));
                fs_err::rename(staged.path().join("step"), &step).ok();
            }
        }
    }
}

/// kiln on the shared store.
pub fn kiln() -> Command {
    let mut command = command(program());
    command.env("KILN_STORE", store()).current_dir(folder());
    command
}

fn guard() -> File {
    let file =
        fs_err::OpenOptions::new().create(true).append(true).open(folder().join("lock")).unwrap().into_file();
    file.lock().unwrap();
    file
}

/// Copies a folder of files and links.
pub fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_symlink() {
            fs_err::os::unix::fs::symlink(fs_err::read_link(entry.path()).unwrap(), target).unwrap();
        } else if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs_err::copy(entry.path(), target).unwrap();
        }
    }
}

/// The project under test: this repository's images/, profiles/ and qemu/, with a lock whose packages can be had.
///
/// The archive moves: on the day a locked package is superseded its old version is gone from the mirrors. That is no
/// fault of the code under test, so the copy is then updated, and everybody is told.
pub fn project() -> &'static Path {
    static PROJECT: OnceLock<PathBuf> = OnceLock::new();
    PROJECT.get_or_init(|| {
        let _guard = guard();
        let project = folder().join("project");
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for part in ["images", "profiles", "qemu"] {
            let kept = fs_err::read(project.join("images/kiln.lock")).ok();
            let newer = fs_err::read(folder().join("lock-updated-from"))
                .is_ok_and(|from| from == fs_err::read(here.join("images/kiln.lock")).unwrap());
            fs_err::remove_dir_all(project.join(part)).ok();
            copy(&here.join(part), &project.join(part));
            if let (true, "images", Some(lock)) = (newer, part, kept) {
                fs_err::write(project.join("images/kiln.lock"), lock).unwrap();
            }
        }
        let build = || {
            let mut command = kiln();
            command
                .args(["build", "--profile", "server", "-C"])
                .arg(&project)
                .arg("--out")
                .arg(folder().join("out"));
            Run::of(&command.output().unwrap())
        };
        let mut run = build();
        if run.code == 4 && run.stderr.contains("kiln update") {
            tell(&format!(
                "the committed lock names packages that are gone; the tests go on with a new one:\n{}",
                run.stderr
            ));
            let mut command = kiln();
            Run::of(&command.args(["update", "-C"]).arg(&project).output().unwrap()).ok();
            fs_err::copy(here.join("images/kiln.lock"), folder().join("lock-updated-from")).unwrap();
            run = build();
        }
        run.ok();
        project
    })
}

#[expect(clippy::print_stderr, reason = "the person who runs the tests must know")]
fn tell(text: &str) {
    eprintln!("NOTE: {text}");
}

/// The raw image of a profile, built if it is not there; an image nobody touched is not built again.
pub fn image(profile: &str, arch: &str) -> PathBuf {
    build(profile, arch, "raw");
    folder().join("out").join(format!("{}.raw", stem(profile, arch)))
}

fn stem(profile: &str, arch: &str) -> String {
    if arch == "amd64" { profile.to_owned() } else { format!("{profile}-{arch}") }
}

/// Builds in the shared store; other files than the raw disk lie beside it.
pub fn build(profile: &str, arch: &str, format: &str) -> Run {
    let project = project();
    let _guard = guard();
    let mut command = kiln();
    command
        .args(["build", "--json", "--profile", profile, "--arch", arch, "--format", format, "-C"])
        .arg(project)
        .arg("--out")
        .arg(folder().join("out"));
    Run::of(&command.output().unwrap()).ok()
}

/// The manifest of a profile's image.
pub fn manifest(profile: &str, arch: &str) -> kiln::manifest::Manifest {
    image(profile, arch);
    kiln::manifest::read(&folder().join("out").join(format!("{}.json", stem(profile, arch)))).unwrap()
}

/// A tool set of the lock, laid out.
pub fn tools(set: &str) -> PathBuf {
    let project = project();
    let _guard = guard();
    let project = kiln::spec::Project::load(project).unwrap();
    let locked = kiln::lock::Lock::load(&project.dir).unwrap().check(&project).unwrap();
    let store = kiln::store::Store::open(&store()).unwrap();
    let ui = kiln::ui::Ui::new(kiln::ui::Verbosity::Quiet, false);
    let work =
        kiln::packages::Work { project: &project, locked: &locked, store: &store, ui: &ui, threads: 2 };
    kiln::tools::folder(&work, set).unwrap()
}
