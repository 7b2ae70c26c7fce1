//! A file in memory, for readers that want a path. Each target uses what it needs.

use std::path::PathBuf;

/// A file with these contents; the next one takes its place.
pub(crate) fn holding(bytes: &[u8]) -> PathBuf {
    let path = folder().join("file");
    std::fs::write(&path, bytes).expect("memory is there");
    path
}

/// A folder of this process.
pub(crate) fn folder() -> PathBuf {
    let path = PathBuf::from(format!("/dev/shm/kiln-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("memory is there");
    path
}
