//! What is written to: a block device, past the page cache, or in tests something that behaves as badly as disks do.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::OFlags;

use crate::sys;

/// Memory and offsets of direct I/O are multiples of this (open(2), O_DIRECT): the largest sector that disks have.
pub(super) const ALIGNMENT: usize = 4096;

/// A disk as it is written: offsets and lengths are multiples of [`Medium::sector`], memory is an [`Aligned`].
pub trait Medium: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;
    /// Bytes of a logical sector: 512 or 4096.
    fn sector(&self) -> u32;
    /// Reads from the medium itself; how many bytes were read.
    ///
    /// # Errors
    /// What the device says.
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes; how many bytes were taken.
    ///
    /// # Errors
    /// What the device says.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize>;
    /// Nobody needs these bytes any more; what they are afterwards is not promised.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the device cannot, as here.
    fn discard(&self, _at: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Makes these bytes zero without sending them.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the device cannot, as here.
    fn zero(&self, _at: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Returns when what was written is on the medium, whatever happens to the power.
    ///
    /// # Errors
    /// What the device says; then nothing is known about what was written since the last flush.
    fn flush(&self) -> io::Result<()>;
}

impl dyn Medium + '_ {
    /// Writes all of `bytes`, which disks do not have to do at once.
    pub(super) fn write_all(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let (sector, mut done) = (self.sector() as usize, 0);
        while done < bytes.len() {
            match self.write_at(&bytes[done..], at + done as u64) {
                // What is left must begin at a sector again, for direct I/O.
                Ok(n) if n / sector > 0 => done += n / sector * sector,
                Ok(n) => {
                    let text = format!("the device took {n} bytes of {}", bytes.len() - done);
                    return Err(io::Error::new(io::ErrorKind::WriteZero, text));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Fills `bytes`.
    pub(super) fn read_all(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let (sector, mut done) = (self.sector() as usize, 0);
        while done < bytes.len() {
            match self.read_at(&mut bytes[done..], at + done as u64) {
                Ok(n) if n / sector > 0 => done += n / sector * sector,
                Ok(n) => {
                    let text = format!("the device gave {n} bytes of {}", bytes.len() - done);
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Bytes that begin at a multiple of [`ALIGNMENT`] in memory.
pub(super) struct Aligned {
    bytes: Vec<u8>,
    from: usize,
    length: usize,
}

impl Aligned {
    /// So many zeros.
    pub(super) fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT];
        let from = bytes.as_ptr().align_offset(ALIGNMENT);
        Aligned { bytes, from, length }
    }

    /// A copy of `bytes`, with zeros behind it up to a multiple of [`ALIGNMENT`].
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut aligned = Aligned::new(bytes.len().next_multiple_of(ALIGNMENT));
        aligned[..bytes.len()].copy_from_slice(bytes);
        aligned
    }
}

impl fmt::Debug for Aligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.length)
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.from..self.from + self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + self.length]
    }
}

/// An open block device; nobody else can open it exclusively meanwhile, which is what mounting, swapping and LVM do (open(2), O_EXCL).
#[derive(Debug)]
pub struct BlockDevice {
    file: fs_err::File,
    size: u64,
    sector: u32,
}

impl BlockDevice {
    /// Takes an open device.
    pub(super) fn new(file: fs_err::File, size: u64, sector: u32) -> Self {
        BlockDevice { file, size, sector }
    }

    /// A file in place of a device, written past the page cache like one; for measuring.
    ///
    /// # Errors
    /// The file system cannot do that.
    pub fn in_file(path: &Path) -> io::Result<Self> {
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
        let size = file.metadata()?.len();
        Ok(BlockDevice { file, size, sector: 512 })
    }

    /// The device.
    pub(super) fn file(&self) -> &std::fs::File {
        self.file.file()
    }
}

fn unsupported(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL) => io::ErrorKind::Unsupported.into(),
        _ => error,
    }
}

impl Medium for BlockDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> u32 {
        self.sector
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.file().read_at(bytes, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.file().write_at(bytes, at)
    }

    fn discard(&self, at: u64, length: u64) -> io::Result<()> {
        sys::discard(self.file(), at, length).map_err(unsupported)
    }

    fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        sys::zero_out(self.file(), at, length).map_err(unsupported)
    }

    fn flush(&self) -> io::Result<()> {
        self.file().sync_all()
    }
}
