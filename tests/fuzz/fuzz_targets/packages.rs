//! Packages indexes, and the relations in them.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::debian::index::{self, Field};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(index) = index::parse(data, |_, _| true) else { return };
    for record in index.records {
        for field in [Field::Depends, Field::PreDepends, Field::Conflicts, Field::Breaks] {
            record.relations(field).ok();
        }
        record.provided().ok();
    }
});
