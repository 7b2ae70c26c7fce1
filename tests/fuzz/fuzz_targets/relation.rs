//! Relations between packages. What was read and printed reads the same.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::debian::relation;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    relation::parse_one(text).ok();
    let Ok(list) = relation::parse(text) else { return };
    for alternatives in &list {
        for one in &alternatives.0 {
            assert_eq!(relation::parse_one(&one.to_string()).unwrap(), *one);
        }
    }
});
