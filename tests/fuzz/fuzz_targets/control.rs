//! Control files: stanzas of fields.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use kiln::debian::control::Stanzas;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut stanzas = Stanzas::new(data);
    while let Ok(Some(stanza)) = stanzas.read() {
        for (name, value) in stanza.iter() {
            assert!(!name.is_empty());
            assert!(stanza.get(name).is_some(), "{name}: {value}");
        }
        let _ = (stanza.line(), stanza.repeated());
    }
});
