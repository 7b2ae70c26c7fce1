//! Binary packages: ar, control archive, data archive.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

use std::io;

use kiln::debian::deb::{self, Limits, Node, Sink};
use kiln::tree::{Meta, TreePath};
use libfuzzer_sys::fuzz_target;

struct Reader;

impl Sink for Reader {
    fn entry(&mut self, path: TreePath, _: Meta, node: Node<'_>) -> io::Result<()> {
        assert!(!path.as_str().starts_with('/') && !path.as_str().split('/').any(|part| part == ".."));
        if let Node::File { size, reader } = node {
            assert!(io::copy(reader, &mut io::sink())? <= size);
        }
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    // Small limits, so that a bomb is refused soon and a round stays short.
    let limits = Limits { max_total: 1 << 22, max_control: 1 << 20, ..Limits::default() };
    deb::read(data, &limits, &mut Reader).ok();
});
