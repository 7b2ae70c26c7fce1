//! TFTP packets of clients.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::deploy::pxe::tftp::packet::{self, LARGEST_BLOCK, LARGEST_WINDOW, Packet};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match packet::parse(data) {
        Ok(Some(Packet::Read(read))) => {
            assert!(read.block.is_none_or(|block| (8..=LARGEST_BLOCK).contains(&block)));
            assert!(read.window.is_none_or(|window| (1..=LARGEST_WINDOW).contains(&window)));
            let _ = packet::options(&read, u64::MAX);
        }
        Ok(_) => {}
        Err(refusal) => assert!(packet::error(refusal).ends_with(&[0])),
    }
});
