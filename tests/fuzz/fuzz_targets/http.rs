//! Heads of HTTP requests, and ranges.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::deploy::pxe::http::request::{LONGEST_BODY, LONGEST_HEAD, parse, range};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(Some((head, size))) = parse(data) {
        assert!(
            size <= data.len()
                && size <= LONGEST_HEAD
                && head.length <= LONGEST_BODY
                && head.path.starts_with('/')
        );
        if let Ok(Some(range)) = range(head.range.as_deref(), 1000) {
            assert!(range.start < range.end && range.end <= 1000);
        }
    }
});
