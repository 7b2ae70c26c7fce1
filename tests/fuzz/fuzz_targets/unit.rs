//! Unit files of packages.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::rootfs::units::UnitFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut unit = UnitFile::default();
    unit.add(text);
    unit.add(text);
    for section in ["Unit", "Service", "Install"] {
        unit.has(section);
        unit.values(section, "After").count();
        unit.words(section, "After").count();
    }
});
