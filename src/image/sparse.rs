//! Reading files with holes: the runs of data and of zeros, without reading the holes.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom;

/// Bytes read and handed on at once.
pub(super) const CHUNK: usize = 1 << 20;

/// A stretch of a file.
#[derive(Debug)]
pub(super) enum Run<'a> {
    /// Bytes, at most [`CHUNK`] of them; they may be zero all the same.
    Data(&'a [u8]),
    /// This many zeros of a hole.
    Zeros(u64),
}

/// A file whose holes are known.
#[derive(Debug)]
pub(super) struct Source {
    file: fs_err::File,
    len: u64,
}

impl Source {
    /// Opens the file at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = fs_err::File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Source { file, len })
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buffer` from `offset`; what lies behind the end is zero.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let there = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        self.file.file().read_exact_at(&mut buffer[..there], offset)?;
        buffer[there..].fill(0);
        Ok(())
    }

    /// Whether no byte from `offset` to the next `len` was ever written.
    pub(super) fn is_hole(&self, offset: u64, len: u64) -> bool {
        self.next_data(offset).is_ok_and(|data| data >= offset + len)
    }

    /// Hands all runs from `from` to the end, in order.
    pub(super) fn for_each(
        &self,
        from: u64,
        mut take: impl FnMut(Run<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut at = from;
        while at < self.len {
            let data = self.next_data(at)?;
            if data > at {
                take(Run::Zeros(data - at))?;
                at = data;
                continue;
            }
            let end = self.next_hole(at)?;
            while at < end {
                let n = CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK));
                self.file.file().read_exact_at(&mut buffer[..n], at)?;
                take(Run::Data(&buffer[..n]))?;
                at += n as u64;
            }
        }
        Ok(())
    }

    /// Where the next data begins at or after `at`; the length if there is none.
    fn next_data(&self, at: u64) -> io::Result<u64> {
        match rustix::fs::seek(self.file.file(), SeekFrom::Data(at)) {
            Ok(data) => Ok(data.min(self.len)),
            // Nothing but a hole up to the end.
            Err(rustix::io::Errno::NXIO) => Ok(self.len),
            // A file system that knows no holes (lseek(2)): all is data.
            Err(rustix::io::Errno::INVAL) => Ok(at),
            Err(e) => Err(e.into()),
        }
    }

    fn next_hole(&self, at: u64) -> io::Result<u64> {
        match rustix::fs::seek(self.file.file(), SeekFrom::Hole(at)) {
            // Never stand still, whatever the file system says.
            Ok(hole) => Ok(hole.clamp(at + 1, self.len)),
            Err(rustix::io::Errno::INVAL) => Ok(self.len),
            Err(e) => Err(e.into()),
        }
    }
}

/// Hands out `length` zeros in pieces.
pub(super) fn zeros(length: u64, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    static ZEROS: [u8; CHUNK] = [0; CHUNK];
    let mut left = length;
    while left > 0 {
        let n = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        take(&ZEROS[..n])?;
        left -= n as u64;
    }
    Ok(())
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Compared with itself, one byte on: memcmp is many times quicker than a loop over bytes in a debug build.
    bytes.is_empty() || bytes[0] == 0 && bytes[1..] == bytes[..bytes.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_add_up_to_the_file_and_holes_are_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        file.as_file().write_all_at(b"here", 3 << 20).unwrap();
        let source = Source::open(file.path()).unwrap();
        let (mut all, mut read) = (Vec::new(), 0);
        source
            .for_each(0, |run| match run {
                Run::Data(bytes) => {
                    read += bytes.len();
                    all.extend_from_slice(bytes);
                    Ok(())
                }
                Run::Zeros(n) => zeros(n, |z| {
                    all.extend_from_slice(z);
                    Ok(())
                }),
            })
            .unwrap();
        assert!(all == fs_err::read(file.path()).unwrap());
        assert!(read < 2 << 20, "{read} bytes were read of 4 written");
        assert!(source.is_hole(0, 1 << 20) && !source.is_hole(2 << 20, 2 << 20));
    }

    #[test]
    fn zero_is_told_from_anything_else() {
        assert!(is_zero(&[]) && is_zero(&[0; 4096]));
        for at in [0, 1, 4095] {
            let mut bytes = [0; 4096];
            bytes[at] = 1;
            assert!(!is_zero(&bytes));
        }
    }
}
