//! Versions: the order is one.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use std::cmp::Ordering;

use kiln::debian::version::DebVersion;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|texts: (&str, &str)| {
    let (Ok(a), Ok(b)) = (DebVersion::new(texts.0), DebVersion::new(texts.1)) else { return };
    assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
    assert_eq!(a.cmp(&a.clone()), Ordering::Equal);
});
