//! Programs, libraries and scripts of packages.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::rootfs::elf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    elf::read(data).ok();
    if let Some(shebang) = elf::shebang(data) {
        shebang.program();
    }
});
