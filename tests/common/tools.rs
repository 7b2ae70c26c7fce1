//! Programs that a test runs: this machine's own, else those of the lock's tools.

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
        None => {
            let (tree, place) = tree_of(program)?;
            format!("env {}", Tool::from_tree(&tree, &place).unwrap().command().line())
        }
    };
    Some(format!("#!/bin/sh\nexec {line} \"$@\"\n"))
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
