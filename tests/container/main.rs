//! Container images: composed and judged by reference tools, put into a real registry and taken from it.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking; clippy spares only the functions marked #[test]"
)]

mod auth;
#[path = "../common/mod.rs"]
mod common;
mod compose;
mod pull;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::images;
use common::run::Run;
use kiln::digest::Digest;
use kiln::oci::read::{Found, Layout};

/// The reference tools of the lock.
fn tools() -> &'static Path {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    TREE.get_or_init(|| images::tools("judges"))
}

/// Archives of the project's own containers, by `NAME-ARCH.tar`.
fn archives() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let out = images::folder().join("containers");
        for arch in ["amd64", "arm64"] {
            let mut kiln = images::kiln();
            kiln.args(["container", "build", "pause", "toolbox", "nfs", "--arch", arch, "-C"]);
            Run::of(&kiln.arg(images::project()).arg("--out").arg(&out).output().unwrap()).ok();
        }
        out
    })
}

/// The one image of an archive, every blob of it checked.
fn only(path: &Path) -> (Layout, Found) {
    let layout = Layout::open(path).unwrap();
    let found = layout.images().unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    let found = found.into_iter().next().unwrap();
    layout.verify(&found).unwrap();
    (layout, found)
}

fn sha256(path: &Path) -> Digest {
    Digest::of_reader(fs_err::File::open(path).unwrap()).unwrap().0
}
