//! The superblock of a hash tree, and the tree behind it.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use std::io::Write;

use kiln::digest::Digest;
use kiln::image::verity::{self, Extent, RootHash};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile();
    file.write_all(data).unwrap();
    if verity::superblock(Extent::whole(&file).unwrap()).is_ok() {
        let whole = Extent::whole(&file).unwrap();
        let root = RootHash::new(Digest::of(b"no"));
        assert!(verity::verify(whole, whole, root, std::num::NonZeroUsize::MIN).is_err(), "a digest was found");
    }
});

/// A file in memory without a name.
fn tempfile() -> std::fs::File {
    let path = std::path::Path::new("/dev/shm").join(format!("kiln-fuzz-{}", std::process::id()));
    let file = std::fs::File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}
