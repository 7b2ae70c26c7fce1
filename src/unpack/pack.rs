//! A pack: the contents of many files in one file of the store, each once.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err as fs;

use crate::digest::{Digest, Hasher};
use crate::tree::{Content, Kind, PackFile, Tree};

/// A finished pack, open for reading.
#[derive(Debug)]
pub struct Pack {
    file: Arc<PackFile>,
}

impl Pack {
    /// Opens the pack at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Pack { file: PackFile::open(path)? })
    }

    /// Joins all contents of `tree` that only know their offset to this pack.
    pub fn attach(&self, tree: &mut Tree) {
        for (_, entry) in tree.iter_mut() {
            if let Kind::File(content) = &mut entry.kind {
                content.attach(&self.file);
            }
        }
    }
}

/// Writes a pack; files with the same bytes are kept once.
#[derive(Debug)]
pub struct PackWriter {
    path: PathBuf,
    out: BufWriter<fs::File>,
    at: u64,
    known: BTreeMap<Digest, u64>,
    buffer: Vec<u8>,
}

impl PackWriter {
    /// Starts a pack at `path`.
    pub fn create(path: &Path) -> io::Result<Self> {
        let out = BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
        Ok(PackWriter {
            path: path.to_owned(),
            out,
            at: 0,
            known: BTreeMap::new(),
            buffer: vec![0; 256 * 1024],
        })
    }

    /// Adds the `size` bytes that `reader` gives.
    pub fn add(&mut self, mut reader: impl Read, size: u64) -> io::Result<Content> {
        // What fits the buffer is hashed before it is written, so that the second copy of a small file costs nothing. Larger
        // twins are rare and written twice.
        let small = size <= self.buffer.len() as u64;
        let mut hasher = Hasher::new();
        while hasher.len() < size {
            let room = usize::try_from(size - hasher.len()).unwrap_or(usize::MAX).min(self.buffer.len());
            let want = &mut self.buffer[..room];
            reader.read_exact(want)?;
            hasher.update(want);
            if !small {
                self.out.write_all(want)?;
            }
        }
        let digest = hasher.finish();
        if let Some(offset) = self.known.get(&digest)
            && small
        {
            return Ok(Content::detached(digest, size, *offset));
        }
        if small {
            // `size` fits the buffer, so this cannot truncate.
            self.out.write_all(&self.buffer[..usize::try_from(size).unwrap_or(0)])?;
        }
        let content = Content::detached(digest, size, self.at);
        self.known.insert(digest, self.at);
        self.at += size;
        Ok(content)
    }

    /// Ends the pack and opens it for reading.
    pub fn finish(mut self) -> io::Result<Pack> {
        self.out.flush()?;
        Pack::open(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Entry, TreePath};

    #[test]
    fn same_bytes_are_kept_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let mut writer = PackWriter::create(&path).unwrap();
        let large = vec![7u8; 300_000];
        let mut tree = Tree::new();
        for (name, bytes) in [("a", &b"hello"[..]), ("b", &b"hello"[..]), ("c", &large), ("d", b"")] {
            let content = writer.add(bytes, bytes.len() as u64).unwrap();
            let mut entry = Entry::file(0o644, "", "x");
            entry.kind = Kind::File(content);
            tree.insert(TreePath::new(name).unwrap(), entry).unwrap();
        }
        writer.finish().unwrap().attach(&mut tree);
        assert_eq!(fs::metadata(&path).unwrap().len(), 300_005);
        let read = |name: &str| tree.get(name).unwrap().content().unwrap().read().unwrap();
        assert_eq!((read("b"), read("c"), read("d")), (b"hello".to_vec(), large, vec![]));
    }

    #[test]
    fn a_reader_that_ends_early_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = PackWriter::create(&dir.path().join("data")).unwrap();
        assert!(writer.add(&b"abc"[..], 5).is_err());
    }
}
