//! A capture of one port as pcapng, which Wireshark and tcpdump open.
//!
//! Format: draft-ietf-opsawg-pcapng. One section, one interface that has the port's name, an Enhanced Packet Block for each
//! frame with its direction as the *node* sees it: what tcpdump would have written on the node. Times have nanoseconds.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use fs_err::File;

use super::link::Direction;

/// The size at which a capture ends, so that a loop in the network does not fill the disk.
pub(super) const LIMIT: u64 = 1 << 30;

/// What is gathered before it is written even though more is coming.
const BUFFER: usize = 256 << 10;

/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;

/// Codes of options.
const END_OF_OPTIONS: u16 = 0;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;

/// A file that frames are written to.
#[derive(Debug)]
pub(super) struct Capture {
    file: File,
    /// Bytes that are safely in the file, a whole number of blocks.
    written: u64,
    limit: u64,
    buffer: Vec<u8>,
    /// A moment by the machine's clock, since 1970, and the same one by the clock that the switch uses.
    epoch: (Duration, Instant),
    /// Nothing is written any more: the disk is full or the file at its limit.
    ended: bool,
}

impl Capture {
    /// Makes the file at `path`, or empties it. `epoch` is a moment since 1970 and the same one as an [`Instant`].
    ///
    /// # Errors
    /// The file cannot be made or written.
    pub(super) fn create(
        path: &Path,
        interface: &str,
        description: &str,
        epoch: (Duration, Instant),
        limit: u64,
    ) -> io::Result<Self> {
        let mut buffer = Vec::new();
        block(&mut buffer, SECTION_HEADER, |body| {
            body.extend_from_slice(&0x1a2b_3c4d_u32.to_le_bytes());
            body.extend_from_slice(&1_u16.to_le_bytes());
            body.extend_from_slice(&0_u16.to_le_bytes());
            // The length of the section is not known yet.
            body.extend_from_slice(&u64::MAX.to_le_bytes());
            option(body, SHB_USERAPPL, concat!("kiln ", env!("CARGO_PKG_VERSION")).as_bytes());
            option(body, END_OF_OPTIONS, &[]);
        });
        block(&mut buffer, INTERFACE, |body| {
            body.extend_from_slice(&ETHERNET.to_le_bytes());
            body.extend_from_slice(&0_u16.to_le_bytes());
            // Frames are kept whole.
            body.extend_from_slice(&0_u32.to_le_bytes());
            option(body, IF_NAME, interface.as_bytes());
            option(body, IF_DESCRIPTION, description.as_bytes());
            option(body, IF_TSRESOL, &[9]);
            option(body, END_OF_OPTIONS, &[]);
        });
        let file = File::create(path)?;
        let mut capture = Capture { file, written: 0, limit, buffer, epoch, ended: false };
        capture.write()?;
        Ok(capture)
    }

    /// Adds a frame that passed at `at`; false when it could not be kept. It is in the file after the next [`Capture::flush`].
    pub(super) fn add(&mut self, direction: Direction, frame: &[u8], at: Instant) -> bool {
        let full = self.written + self.buffer.len() as u64 + frame.len() as u64 + 64 > self.limit;
        if self.ended || full {
            self.ended = true;
            return false;
        }
        let since_1970 = self.epoch.0 + at.saturating_duration_since(self.epoch.1);
        let nanos = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
        // Bits 0 and 1 of the flags: 1 is inbound, 2 outbound.
        let flags: u32 = match direction {
            Direction::ToNode => 1,
            Direction::FromNode => 2,
        };
        block(&mut self.buffer, PACKET, |body| {
            body.extend_from_slice(&0_u32.to_le_bytes());
            body.extend_from_slice(&((nanos >> 32) as u32).to_le_bytes());
            body.extend_from_slice(&(nanos as u32).to_le_bytes());
            body.extend_from_slice(&length32(frame).to_le_bytes());
            body.extend_from_slice(&length32(frame).to_le_bytes());
            body.extend_from_slice(frame);
            pad(body, frame.len());
            option(body, EPB_FLAGS, &flags.to_le_bytes());
            option(body, END_OF_OPTIONS, &[]);
        });
        if self.buffer.len() >= BUFFER {
            self.flush();
        }
        !self.ended
    }

    /// Hands all frames so far to the kernel, so that a killed program leaves them behind.
    pub(super) fn flush(&mut self) {
        if self.buffer.is_empty() || self.write().is_ok() {
            return;
        }
        // A block that is half written would be the last that a reader understands, and it complains about it.
        self.ended = true;
        self.buffer = Vec::new();
        let _ = self.file.set_len(self.written);
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Appends a block: type, length, body, and the length again.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    body(out);
    // Blocks are at most MAX_FRAME and some options long.
    let length = u32::try_from(out.len() - start + 4).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(&length);
    if let Some(place) = out.get_mut(start + 4..start + 8) {
        place.copy_from_slice(&length);
    }
}

/// Appends an option: code, length, value, and zeroes up to a multiple of 4.
fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    body.extend_from_slice(&code.to_le_bytes());
    body.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    body.extend_from_slice(value);
    pad(body, value.len());
}

fn pad(body: &mut Vec<u8>, length: usize) {
    body.resize(body.len() + length.wrapping_neg() % 4, 0);
}

fn length32(frame: &[u8]) -> u32 {
    u32::try_from(frame.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks of a file: type and body.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let number = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = number(bytes, 4) as usize;
            assert!(length.is_multiple_of(4) && number(bytes, length - 4) as usize == length);
            found.push((number(bytes, 0), bytes[8..length - 4].to_vec()));
            bytes = &bytes[length..];
        }
        found
    }

    fn create(path: &Path, limit: u64) -> Capture {
        let epoch = (Duration::new(1_700_000_000, 5), Instant::now());
        Capture::create(path, "agent-1", "agent-1 on network lan", epoch, limit).unwrap()
    }

    #[test]
    fn a_frame_is_a_block_with_its_time_its_bytes_and_its_direction() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("port.pcapng");
        let mut capture = create(&path, LIMIT);
        let at = capture.epoch.1 + Duration::new(3, 7);
        assert!(capture.add(Direction::FromNode, b"seventeen bytes!!", at));
        capture.flush();
        let blocks = blocks(&fs_err::read(&path).unwrap());
        let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION_HEADER, INTERFACE, PACKET]);
        let body = &blocks[2].1;
        let word = |at: usize| u64::from(u32::from_le_bytes(body[at..at + 4].try_into().unwrap()));
        assert_eq!(word(4) << 32 | word(8), 1_700_000_003_000_000_012);
        assert_eq!((word(12), word(16)), (17, 17));
        assert_eq!(&body[20..40], b"seventeen bytes!!\0\0\0");
        assert_eq!(body[40..], [2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0], "outbound, end of options");
    }

    #[test]
    fn a_full_capture_ends_after_a_whole_frame_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("port.pcapng");
        let mut capture = create(&path, 4000);
        let kept = (0..10).filter(|_| capture.add(Direction::ToNode, &[7; 1000], Instant::now())).count();
        drop(capture);
        let bytes = fs_err::read(&path).unwrap();
        assert!(bytes.len() <= 4000);
        assert_eq!((kept, blocks(&bytes).len()), (3, 2 + 3));
    }

    #[test]
    fn a_file_that_cannot_be_made_is_an_error_and_a_full_disk_is_not_the_end() {
        let epoch = (Duration::ZERO, Instant::now());
        let nowhere = Path::new("/nonexistent/port.pcapng");
        assert!(Capture::create(nowhere, "a", "a", epoch, LIMIT).is_err());
        // Every write to /dev/full finds no space.
        let full = Path::new("/dev/full");
        assert_eq!(
            Capture::create(full, "a", "a", epoch, LIMIT).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        let folder = tempfile::tempdir().unwrap();
        let mut capture = create(&folder.path().join("port.pcapng"), LIMIT);
        capture.file = fs_err::OpenOptions::new().write(true).open(full).unwrap();
        assert!(capture.add(Direction::ToNode, &[7; 60], Instant::now()));
        capture.flush();
        assert!(!capture.add(Direction::ToNode, &[7; 60], Instant::now()));
    }
}
