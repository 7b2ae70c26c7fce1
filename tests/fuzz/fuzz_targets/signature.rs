//! What is on a disk before it is overwritten: pieces of 4 KiB at places that matter, on a disk of zeros.
//! Errors are fine; panics, endless loops and memory without bound are bugs.
#![no_main]

mod file;

use kiln::deploy::flash::signature;
use libfuzzer_sys::fuzz_target;

/// The first byte of a piece is its place: the beginning, the first partition, somewhere in between, or the end.
const PIECE: usize = 1 + 4096;

fuzz_target!(|data: &[u8]| {
    let mut disk = vec![0; 2 << 20];
    for piece in data.chunks(PIECE) {
        let (place, bytes) = piece.split_first().expect("chunks are not empty");
        let at = match place >> 6 {
            0 => usize::from(*place) * 512,
            1 => (1 << 20) + usize::from(place & 63) * 512,
            2 => usize::from(place & 63) << 15,
            _ => disk.len() - 4096 - usize::from(place & 63) * 512,
        };
        let end = (at + bytes.len()).min(disk.len());
        disk[at..end].copy_from_slice(&bytes[..end - at]);
    }
    let path = file::holding(&disk);
    for sector in [512, 4096] {
        let found = signature::of_file(&path, sector).expect("whatever it is, it can be read");
        assert!(found.len() < 1000);
    }
});
