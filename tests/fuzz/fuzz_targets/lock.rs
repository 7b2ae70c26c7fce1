//! The lock: once as it is, once with the right digest in front, so that its own check does not hide the rest.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::digest::Digest;
use kiln::lock::Lock;
use libfuzzer_sys::fuzz_target;

const HEADER: &str = "# Written by `kiln update`; not to be edited. It names every package that goes into an image or makes one.\n";

fuzz_target!(|text: &str| {
    Lock::parse(text).ok();
    let signed = format!("{HEADER}digest = \"{}\"\n{text}", Digest::of(text.as_bytes()));
    if let Ok(lock) = Lock::parse(&signed) {
        for set in &lock.set {
            assert_eq!(lock.packages(set).len(), set.packages.len());
        }
        let _ = (lock.epoch(), lock.version());
    }
});
