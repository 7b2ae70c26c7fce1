//! InRelease files: the frame of the signature, and what stands before it is checked. The key is the first of the fixtures.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use std::sync::OnceLock;

use kiln::debian::openpgp::{self, PinnedKeys};
use libfuzzer_sys::fuzz_target;

/// Debian's own key, so that a signature that verifies is one of theirs.
const KEY: &[u8] = include_bytes!("../../../images/keys/debian-archive-trixie-stable.asc");
const PRINT: &str = "41587F7DB8C774BCCF131416762F67A0B2C39DE4";

fuzz_target!(|data: &[u8]| {
    static KEYS: OnceLock<PinnedKeys> = OnceLock::new();
    let keys = KEYS.get_or_init(|| PinnedKeys::read(KEY, &[PRINT.parse().unwrap()]).unwrap());
    assert!(openpgp::verify(data, keys, 1_790_000_000).is_err(), "nobody signed this");
});
