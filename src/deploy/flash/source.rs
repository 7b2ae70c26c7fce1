//! Where the bytes of an image come from: a file or any stream, plain or compressed.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::medium::Aligned;
use crate::digest::{Digest, Hasher};
use crate::error::{Failure, Kind};
use crate::image::gpt::{self, Table};

/// Bytes before the first partition: the table of the image.
pub(super) const HEAD: u64 = 1 << 20;
/// Bytes that are read ahead at once.
const CHUNK: usize = 1 << 20;
/// Images have sectors of this size, whatever the disk has.
const SECTOR: u32 = 512;

/// An image as a stream of the bytes of its raw disk, which is read once and hashed on the way.
pub struct Source<'a> {
    stream: Box<dyn Read + Send + 'a>,
    hasher: Hasher,
    digest: Digest,
    size: u64,
    epoch: i64,
    table: Table,
    head: Vec<u8>,
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("digest", &self.digest)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// What is known of an image before its bytes come; [`crate::manifest::Manifest`] says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of the raw disk.
    pub digest: Digest,
    /// Bytes of the raw disk.
    pub size: u64,
    /// The time of the files on the ESP, seconds since 1970 UTC.
    pub epoch: i64,
}

impl<'a> Source<'a> {
    /// The image at `path`: a raw disk, or `.zst` of one.
    ///
    /// # Errors
    /// [`Kind::Input`]: it cannot be read, or it is no image.
    pub fn open(path: &Path, facts: Facts) -> Result<Source<'static>, Failure> {
        let zst = path.extension().is_some_and(|end| end == "zst");
        let file = fs_err::File::open(path).map_err(|error| wrong(&error.to_string()))?;
        if zst { Source::compressed(file, facts) } else { Source::new(Box::new(file), facts) }
    }

    /// An image that comes as zstd, such as over HTTP.
    ///
    /// # Errors
    /// As [`Source::new`].
    pub fn compressed(stream: impl Read + Send + 'a, facts: Facts) -> Result<Self, Failure> {
        let decoder = zstd::Decoder::new(stream).map_err(|error| wrong(&error.to_string()))?;
        Source::new(Box::new(decoder), facts)
    }

    /// An image that comes as the bytes of its raw disk. Its table is read at once.
    ///
    /// # Errors
    /// [`Kind::Input`]: it does not begin as an image does.
    pub fn new(stream: Box<dyn Read + Send + 'a>, facts: Facts) -> Result<Self, Failure> {
        let Facts { digest, size, epoch } = facts;
        let table = Table { guid: uuid::Uuid::nil(), sector: SECTOR, size, partitions: Vec::new() };
        let mut source =
            Source { stream, hasher: Hasher::new(), digest, size, epoch, table, head: Vec::new() };
        let mut head = vec![0; usize::try_from(HEAD.min(size)).unwrap_or(0)];
        source.read(&mut head).map_err(|error| wrong(&error.to_string()))?;
        let table = gpt::read_primary(&head, SECTOR).map_err(|error| wrong(&error.to_string()))?;
        if table.size != size {
            return Err(wrong(&format!("its table is of a disk of {} bytes, and it has {size}", table.size)));
        }
        (source.table, source.head) = (table, head);
        Ok(source)
    }

    /// The partitions of the image.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// What is known of it.
    pub(super) fn facts(&self) -> Facts {
        Facts { digest: self.digest, size: self.size, epoch: self.epoch }
    }

    /// Lets another thread read (and decompress) ahead: gives what that thread has to do. Taking the digest keeps this one busy.
    pub(super) fn ahead(&mut self) -> impl FnOnce() + Send + use<'a> {
        let (chunks, coming) = sync_channel(2);
        let ahead = Ahead { coming, chunk: Vec::new(), at: 0 };
        let stream = std::mem::replace(&mut self.stream, Box::new(ahead));
        move || pump(stream, &chunks)
    }

    /// What was hashed of it so far.
    pub(super) fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// The next byte that will be read.
    pub(super) fn position(&self) -> u64 {
        self.hasher.len()
    }

    /// Fills `bytes` with what comes next.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                let text = format!("the image ends before its {} bytes are there", self.size);
                io::Error::new(io::ErrorKind::UnexpectedEof, text)
            }
            _ => error,
        })?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Reads on to the byte `to`.
    pub(super) fn skip(&mut self, to: u64, buffer: &mut Aligned) -> io::Result<()> {
        while self.position() < to {
            let n = usize::try_from(to - self.position()).unwrap_or(usize::MAX).min(buffer.len());
            self.read(&mut buffer[..n])?;
        }
        Ok(())
    }

    /// Reads to the end and compares the digest of all that came.
    pub(super) fn finish(mut self, buffer: &mut Aligned) -> Result<(), Failure> {
        let changed = |why: String| {
            Failure::new(Kind::Input, format!("the image is not the one that its manifest describes: {why}"))
                .hint("build it again, or copy image and manifest again; the disk does not boot as it is now")
        };
        self.skip(self.size, buffer).map_err(|error| changed(error.to_string()))?;
        if self.stream.read(&mut buffer[..1]).is_ok_and(|n| n > 0) {
            return Err(changed(format!("it has more than {} bytes", self.size)));
        }
        let found = self.hasher.finish();
        if found != self.digest {
            return Err(changed(format!("its sha256 is {found}, {} is expected", self.digest)));
        }
        Ok(())
    }
}

/// What another thread has read.
struct Ahead {
    coming: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Ahead {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            // Without a sender the stream is at its end.
            let Ok(chunk) = self.coming.recv() else { return Ok(0) };
            (self.chunk, self.at) = (chunk?, 0);
        }
        let n = bytes.len().min(self.chunk.len() - self.at);
        bytes[..n].copy_from_slice(&self.chunk[self.at..][..n]);
        self.at += n;
        Ok(n)
    }
}

/// Reads to the end, or until nobody wants it any more.
fn pump(mut stream: impl Read, chunks: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = stream.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
        if !chunk.is_empty() && chunks.send(Ok(chunk)).is_err() {
            return;
        }
        match read {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                // Gone if the writer failed before.
                let _ = chunks.send(Err(error));
                return;
            }
        }
    }
}

fn wrong(why: &str) -> Failure {
    Failure::new(Kind::Input, format!("the image cannot be flashed: {why}"))
        .hint("`kiln build` writes images and their manifests; copy them together")
}
