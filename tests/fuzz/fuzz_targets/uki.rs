//! EFI programs: the stub, whose sections are read, and kernels.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::image::uki;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    uki::sections(data).ok();
    uki::kernel(data).ok();
});
