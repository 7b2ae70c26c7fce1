//! Initrd archives.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::image::cpio;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(tree) = cpio::read(data) else { return };
    // What was read can be written, and reads the same.
    let mut again = Vec::new();
    if cpio::write(&tree, 0, &mut again).is_ok() {
        let back = cpio::read(&again).unwrap();
        assert_eq!(back.iter().count(), tree.iter().count());
    }
});
