//! A disk image as `.raw.zst`: one zstd frame whose bytes do not depend on the number of threads.
//!
//! With at least one worker, libzstd cuts its input in jobs whose size follows from the level alone (`zstdmt_compress.c`), and
//! workers only decide which core presses which job. Without workers it takes another path with other bytes, so one worker is
//! the least that is used here.

use std::io::{self, Write};
use std::path::Path;

use super::sparse;

/// A zstd encoder with checksum whose output does not depend on `threads` (0 counts as 1).
pub(super) fn encoder<W: Write>(out: W, level: i32, threads: u32) -> io::Result<zstd::Encoder<'static, W>> {
    let mut encoder = zstd::Encoder::new(out, level)?;
    encoder.multithread(threads.max(1))?;
    encoder.include_checksum(true)?;
    Ok(encoder)
}

/// Compresses the file at `raw` into `out` at `level` (zstd's own range, 1 to 22) and says the length of `raw`, which is written
/// in the frame's header. Holes are not read.
pub fn write(raw: &Path, level: i32, threads: u32, out: impl Write) -> io::Result<u64> {
    let source = sparse::Source::open(raw)?;
    let mut encoder = encoder(out, level, threads)?;
    encoder.set_pledged_src_size(Some(source.len()))?;
    source.for_each(0, |run| match run {
        sparse::Run::Data(bytes) => encoder.write_all(bytes),
        sparse::Run::Zeros(length) => sparse::zeros(length, |bytes| encoder.write_all(bytes)),
    })?;
    encoder.finish()?.flush()?;
    Ok(source.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_and_data_come_back_and_threads_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("disk.raw");
        let file = fs::File::create(&raw).unwrap();
        file.set_len(40 << 20).unwrap();
        let text: String = (0..1_500_000_u64)
            .map(|i| format!("{:x} ", i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40))
            .collect();
        file.file().write_all_at(text.as_bytes(), 9 << 20).unwrap();
        let pressed = [0, 1, 2, 5].map(|threads| {
            let mut bytes = Vec::new();
            assert_eq!(write(&raw, 3, threads, &mut bytes).unwrap(), 40 << 20);
            bytes
        });
        assert!(pressed.iter().all(|p| *p == pressed[0]));
        assert!(zstd::decode_all(&pressed[0][..]).unwrap() == fs::read(&raw).unwrap());
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&pressed[0]).unwrap(), Some(40 << 20));
    }
}
