//! Partition tables.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use std::io::Cursor;

use kiln::image::gpt;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for sector in [512, 4096] {
        if let Ok(table) = gpt::read(&mut Cursor::new(data), sector) {
            for partition in &table.partitions {
                assert!(partition.offset + partition.size <= data.len() as u64);
            }
        }
    }
});
