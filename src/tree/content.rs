//! The bytes of a regular file: their digest, their length, and where they lie.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// An open pack: the contents of many files in one, at offsets. Never changed once published.
#[derive(Debug)]
pub struct PackFile {
    path: PathBuf,
    file: std::fs::File,
}

impl PackFile {
    /// Opens the pack at `path`.
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        let file = fs_err::File::open(path)?.into_file();
        Ok(Arc::new(PackFile { path: path.to_owned(), file }))
    }

    /// Where the pack lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Content of a regular file. Equal when digest and size are equal, wherever the bytes lie.
#[derive(Clone)]
pub struct Content {
    digest: Digest,
    size: u64,
    data: Data,
}

#[derive(Clone)]
enum Data {
    Inline(Arc<[u8]>),
    Pack {
        pack: Arc<PackFile>,
        offset: u64,
    },
    /// Read from JSON and not joined to its pack yet: [`Content::attach`] does that.
    Detached {
        offset: u64,
    },
}

impl Content {
    /// Bytes kept in memory.
    pub fn inline(bytes: Vec<u8>) -> Self {
        Content { digest: Digest::of(&bytes), size: bytes.len() as u64, data: Data::Inline(bytes.into()) }
    }

    /// `size` bytes at `offset` of a pack that is still being written; see [`Content::attach`].
    pub fn detached(digest: Digest, size: u64, offset: u64) -> Self {
        Content { digest, size, data: Data::Detached { offset } }
    }

    /// Joins content that was read from JSON to its pack. Inline content stays as it is.
    pub fn attach(&mut self, pack: &Arc<PackFile>) {
        if let Data::Detached { offset } = self.data {
            self.data = Data::Pack { pack: pack.clone(), offset };
        }
    }

    /// SHA-256 of the bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset` of the file; fails if the file is shorter.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "read past the end of a file of a tree");
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size) {
            return Err(short());
        }
        match &self.data {
            Data::Inline(bytes) => {
                let at = usize::try_from(offset).map_err(|_| short())?;
                buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
                Ok(())
            }
            Data::Pack { pack, offset: base } => pack
                .file
                .read_exact_at(buffer, base + offset)
                .map_err(|e| io::Error::new(e.kind(), format!("reading pack {}: {e}", pack.path.display()))),
            Data::Detached { .. } => Err(io::Error::other("content that was never joined to its pack")),
        }
    }

    /// The whole file, checked against its digest: a damaged pack is an error of kind `InvalidData`, never wrong bytes.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let size = usize::try_from(self.size).map_err(|_| io::Error::other("file larger than memory"))?;
        let mut bytes = vec![0; size];
        self.read_exact_at(&mut bytes, 0)?;
        if Digest::of(&bytes) != self.digest {
            let place = match &self.data {
                Data::Pack { pack, .. } => pack.path.display().to_string(),
                _ => "memory".to_owned(),
            };
            let text = format!("bytes in {place} do not have the digest {} any more", self.digest.short());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(bytes)
    }

    /// The file as UTF-8 text; `InvalidData` if it is not.
    pub fn read_text(&self) -> io::Result<String> {
        String::from_utf8(self.read()?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// A sequential reader over the bytes. The digest is not checked: for whole small files prefer [`Content::read`].
    pub fn reader(&self) -> impl Read + '_ {
        Reader { content: self, at: 0 }
    }
}

struct Reader<'a> {
    content: &'a Content,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.content.size - self.at).unwrap_or(usize::MAX);
        let n = left.min(buf.len());
        self.content.read_exact_at(&mut buf[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        (self.digest, self.size) == (other.digest, other.size)
    }
}

impl Eq for Content {}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes, {})", self.size, self.digest.short())
    }
}

/// The JSON form: digest, size and either an offset in the pack that the tree belongs to, or the bytes as hex.
#[derive(Serialize, Deserialize)]
struct Stored {
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inline: Option<String>,
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (offset, inline) = match &self.data {
            Data::Inline(bytes) => (None, Some(hex::encode(bytes))),
            Data::Pack { offset, .. } | Data::Detached { offset } => (Some(*offset), None),
        };
        Stored { digest: self.digest, size: self.size, offset, inline }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let stored = Stored::deserialize(deserializer)?;
        match (stored.offset, stored.inline) {
            (Some(offset), None) => Ok(Content::detached(stored.digest, stored.size, offset)),
            (None, Some(text)) => {
                let content = Content::inline(hex::decode(text).map_err(D::Error::custom)?);
                if content.digest != stored.digest || content.size != stored.size {
                    return Err(D::Error::custom("inline bytes do not fit their digest"));
                }
                Ok(content)
            }
            _ => Err(D::Error::custom("content needs either an offset or inline bytes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_damaged_pack_is_found_and_a_read_past_the_end_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"xxhello").unwrap();
        let pack = PackFile::open(file.path()).unwrap();
        let mut content = Content::detached(Digest::of(b"hello"), 5, 2);
        assert!(content.read().is_err(), "detached content has no bytes");
        content.attach(&pack);
        assert_eq!(content.read().unwrap(), b"hello");
        assert!(content.read_exact_at(&mut [0; 3], 3).is_err());
        file.as_file().write_all_at(b"J", 2).unwrap();
        assert_eq!(content.read().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
