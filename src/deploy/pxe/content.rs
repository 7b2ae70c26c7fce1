//! What can be fetched: a stretch of an open file with its digest. Names never reach the file system, and no file is held in memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::digest::{Digest, Hasher};
use crate::sys;

/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// A stretch of a file.
#[derive(Debug, Clone)]
pub struct Content {
    /// The file, open.
    pub file: Arc<File>,
    /// Its first byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// SHA-256 of them.
    pub digest: Digest,
}

impl Content {
    /// The stretch of `file`, which is read once for the digest.
    ///
    /// # Errors
    /// Reading fails, the file is shorter, or Ctrl-C.
    pub fn new(file: Arc<File>, offset: u64, len: u64) -> anyhow::Result<Self> {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; PIECE];
        while hasher.len() < len {
            sys::check_interrupt()?;
            let piece = usize::try_from(len - hasher.len()).unwrap_or(PIECE).min(PIECE);
            file.read_exact_at(&mut buffer[..piece], offset + hasher.len())?;
            hasher.update(&buffer[..piece]);
        }
        Ok(Content { file, offset, len, digest: hasher.finish() })
    }

    /// The whole file at `path`.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = fs_err::File::open(path)?.into_parts().0;
        let len = file.metadata()?.len();
        Self::new(Arc::new(file), 0, len)
    }

    /// These bytes, in a file without a name in `folder`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn kept(bytes: &[u8], folder: &Path) -> anyhow::Result<Self> {
        let mut file = tempfile::tempfile_in(folder)?;
        file.write_all(bytes)?;
        Ok(Content { file: Arc::new(file), offset: 0, len: bytes.len() as u64, digest: Digest::of(bytes) })
    }

    /// A stretch of this one.
    ///
    /// # Errors
    /// As [`Content::new`].
    pub fn part(&self, offset: u64, len: u64) -> anyhow::Result<Self> {
        Self::new(Arc::clone(&self.file), self.offset + offset, len)
    }

    /// Fills `buffer` from `at` as far as the content goes, and says how far that was.
    ///
    /// # Errors
    /// Reading fails, or the file became shorter.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let there = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
        self.file.read_exact_at(&mut buffer[..there], self.offset + at)?;
        Ok(there)
    }

    /// A reader of it that can seek.
    pub fn reader(&self) -> Reader<'_> {
        Reader { content: self, at: 0 }
    }
}

/// See [`Content::reader`].
#[derive(Debug)]
pub struct Reader<'a> {
    content: &'a Content,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.content.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.content.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_their_own_digest_and_end_where_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let whole = Content::kept(b"0123456789", dir.path()).unwrap();
        let part = whole.part(2, 5).unwrap();
        assert_eq!(part.digest, Digest::of(b"23456"));
        let mut buffer = [0; 4];
        assert_eq!((part.read_at(&mut buffer, 3).unwrap(), &buffer[..2]), (2, &b"56"[..]));
        assert_eq!(part.read_at(&mut buffer, 99).unwrap(), 0);
        let mut text = String::new();
        let mut reader = part.reader();
        reader.seek(SeekFrom::End(-2)).unwrap();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "56");
        assert!(whole.part(8, 5).is_err());
    }
}
