//! Programs that a test runs: this machine's own, else those of the lock's tools.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kiln::exec::Tool;

use super::images;
use super::run::{Run, command};

/// A program that is there and says yes.
#[track_caller]
pub fn host(program: &str, args: &[&str]) -> Run {
    Run::of(&tool(program).args(args).output().unwrap()).ok()
}

/// The command line of a program.
pub fn tool(program: &str) -> Command {
    let Some(script) = script(program).filter(|_| on_path(program).is_none()) else {
        return command(program);
    };
    let mut shell = command("/bin/sh");
    shell.args(["-c", &script, program]);
    shell
}

/// A script that is the program; `None` where there is none.
pub fn script(program: &str) -> Option<String> {
    let line = match on_path(program) {
        Some(own) => own.display().to_string(),
        None => return of_the_lock(program),
    };
    Some(format!("#!/bin/sh\nexec {line} \"$@\"\n"))
}

/// As [`script`], but of the lock whatever this machine has; `None` where it has none.
fn of_the_lock(program: &str) -> Option<String> {
    let (tree, place) = tree_of(program)?;
    let line = Tool::from_tree(&tree, &place).unwrap().command().line().to_owned();
    Some(format!("#!/bin/sh\nexec env {line} \"$@\"\n"))
}

/// Makes a folder with programs that a person has; of the lock, so that they are no other's than the test's, nor those in an image.
pub fn folder(folder: &Path, programs: &[&str]) {
    fs_err::create_dir(folder).unwrap();
    for name in programs {
        let path = folder.join(name);
        let script = of_the_lock(name).unwrap_or_else(|| panic!("the lock has no {name}"));
        fs_err::write(&path, script).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Whether there is a program.
pub fn has(program: &str) -> bool {
    on_path(program).is_some() || tree_of(program).is_some()
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|folder| Path::new(folder).join(program)).find(|place| place.is_file())
}

/// The tree of tools with a program, and where it lies in it.
fn tree_of(program: &str) -> Option<(PathBuf, String)> {
    static TREES: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let trees = TREES.get_or_init(|| ["judges", "qemu"].map(images::tools).to_vec());
    let places = ["usr/sbin", "usr/bin"].map(|folder| format!("{folder}/{program}"));
    trees.iter().find_map(|tree| {
        let place = places.iter().find(|place| tree.join(place).is_file())?;
        Some((tree.clone(), place.clone()))
    })
}
