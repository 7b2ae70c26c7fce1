//! Release files behind a good signature.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::debian::release::Release;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(release) = Release::parse(text) {
        for path in release.files.keys() {
            release.by_hash(path);
        }
    }
});
