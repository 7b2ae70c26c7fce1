//! The journal of a flash that was interrupted, up to the first byte that would be written: the disk is one that takes no writes.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

mod file;

use std::io::{self, Cursor};
use std::sync::OnceLock;

use kiln::deploy::flash::journal::Journal;
use kiln::deploy::flash::{Facts, Medium, Options, Phase, Source, Watch, write};
use kiln::digest::Digest;
use kiln::image::gpt::{self, Wanted};
use libfuzzer_sys::fuzz_target;

/// A disk with these bytes at its beginning.
struct Disk<'a>(&'a [u8]);

impl Medium for Disk<'_> {
    fn size(&self) -> u64 {
        64 << 20
    }

    fn sector(&self) -> u32 {
        512
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        bytes.fill(0);
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.0.len());
        let n = bytes.len().min(self.0.len() - from);
        bytes[..n].copy_from_slice(&self.0[from..from + n]);
        Ok(bytes.len())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::WriteZero.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Nobody;

impl Watch for Nobody {
    fn begin(&self, _: Phase, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// The smallest image: an ESP.
fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let guid = gpt::ESP;
        let esp = Wanted { kind: gpt::ESP, guid, name: "esp".to_owned(), size: 1 << 20, attributes: 0 };
        let table = gpt::plan(guid, 512, &[esp]).expect("one partition is a table");
        let mut bytes = vec![0; usize::try_from(table.size).expect("a few MiB")];
        table.write(&mut Cursor::new(&mut bytes)).expect("memory takes all");
        bytes
    })
}

fuzz_target!(|data: &[u8]| {
    // Before the first byte 0 the journal, behind it the disk.
    let cut = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (text, disk) = data.split_at(cut);
    let folder = file::folder();
    std::fs::write(folder.join("disk.json"), text).expect("memory is there");
    let Ok(mut journal) = Journal::open(&folder, "disk", false) else { return };
    let bytes = image();
    let facts = Facts { digest: Digest::from_bytes([7; 32]), size: bytes.len() as u64, epoch: 0 };
    let source = Source::new(Box::new(bytes), facts).expect("it is an image");
    let options = Options { keep_state: data.len() % 2 == 0, ..Options::default() };
    let result = write(&Disk(disk), "disk", source, &options, &mut journal, &Nobody);
    assert!(result.is_err(), "nothing can be written");
});
