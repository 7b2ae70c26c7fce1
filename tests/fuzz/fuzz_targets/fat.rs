//! FAT file systems.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use std::io::Cursor;

use kiln::image::fat;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut reader) = fat::Reader::new(Cursor::new(data)) else { return };
    let Ok(nodes) = reader.list() else { return };
    for node in nodes.iter().take(16) {
        reader.read(&node.path).ok();
    }
});
