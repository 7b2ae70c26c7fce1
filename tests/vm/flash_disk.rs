//! Disks that a test flashes: a file, and a served one whose power can go at any moment.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kiln::deploy::flash::{Medium, Phase, Watch};
use kiln::qemu::disk::Export;

/// A file in place of a disk with these sectors.
#[derive(Debug)]
pub(super) struct InFile(pub(super) File, pub(super) u32);

impl Medium for InFile {
    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    fn sector(&self) -> u32 {
        self.1
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.0.read_at(bytes, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.0.write_at(bytes, at)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that is served, as QEMU sees it: what was not flushed may be lost when its power goes.
#[derive(Debug)]
pub(super) struct Served {
    size: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stream: UnixStream,
    /// Requests that change something, flushes not among them: how many of those there are depends on the time.
    done: u64,
    off: Off,
}

/// When the power of a disk goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Off {
    Never,
    /// When the first so many requests were flushed, too.
    Flushed(u64),
    /// After so many requests, before the next flush.
    Unflushed(u64),
    /// Now.
    Now,
}

// NBD protocol, "Transmission phase".
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const ZERO: u16 = 6;

impl Served {
    pub(super) fn new(export: &Export, off: Off) -> Self {
        let mut stream = UnixStream::connect(export.socket()).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        // The client's flags (fixed newstyle, no padding), and the option that asks for the export without a name.
        stream
            .write_all(&[&3_u32.to_be_bytes(), &b"IHAVEOPT"[..], &[0, 0, 0, 1, 0, 0, 0, 0]].concat())
            .unwrap();
        let mut about = [0; 10];
        stream.read_exact(&mut about).unwrap();
        let size = u64::from_be_bytes(about[..8].try_into().unwrap());
        Served { size, state: Mutex::new(State { stream, done: 0, off }) }
    }

    /// How many requests changed something; flushes are not counted.
    pub(super) fn done(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).done
    }

    /// Takes its power.
    pub(super) fn switch_off(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).off = Off::Now;
    }

    fn request(&self, command: u16, at: u64, length: usize, send: &[u8], take: &mut [u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let off = match state.off {
            Off::Flushed(after) => state.done >= after && ![READ, FLUSH].contains(&command),
            Off::Unflushed(after) => state.done >= after && command != READ,
            Off::Now => command != READ,
            Off::Never => false,
        };
        if off {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        state.done += u64::from(![READ, FLUSH].contains(&command));
        let length = u32::try_from(length).unwrap();
        let head = [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0], &command.to_be_bytes(), &[0; 8]].concat();
        state.stream.write_all(&[&head, &at.to_be_bytes()[..], &length.to_be_bytes()].concat())?;
        state.stream.write_all(send)?;
        let mut reply = [0; 16];
        state.stream.read_exact(&mut reply)?;
        match u32::from_be_bytes(reply[4..8].try_into().unwrap()) {
            0 => state.stream.read_exact(take),
            error => Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap())),
        }
    }
}

impl Medium for Served {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> u32 {
        512
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.request(READ, at, bytes.len(), &[], bytes).map(|()| bytes.len())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.request(WRITE, at, bytes.len(), bytes, &mut []).map(|()| bytes.len())
    }

    fn discard(&self, at: u64, length: u64) -> io::Result<()> {
        // A request has 32 bits for its length.
        let pieces = (0..length).step_by(1 << 30);
        pieces.into_iter().try_for_each(|done| {
            let length = usize::try_from((length - done).min(1 << 30)).unwrap();
            self.request(TRIM, at + done, length, &[], &mut [])
        })
    }

    fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        self.request(ZERO, at, usize::try_from(length).unwrap(), &[], &mut [])
    }

    fn flush(&self) -> io::Result<()> {
        self.request(FLUSH, 0, 0, &[], &mut [])
    }
}

/// Takes a disk's power while an image is written onto it, at a place that does not depend on how fast this machine is: both numbers are
/// thousandths of the image.
pub(super) struct Cutter<'a> {
    pub(super) medium: &'a Served,
    /// Here it waits for so long that the journal takes down what was written.
    pub(super) pause: u64,
    pub(super) cut: u64,
    /// Bytes of the image, and those that are written; none in other phases.
    pub(super) progress: Mutex<(u64, u64)>,
}

impl Watch for Cutter<'_> {
    fn begin(&self, phase: Phase, bytes: u64) {
        let bytes = if phase == Phase::Writing { bytes } else { 0 };
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = (bytes, 0);
    }

    fn advance(&self, bytes: u64) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, before) = *progress;
        progress.1 += bytes;
        let passes = |part: u64| {
            let place = all / 1000 * part;
            all > 0 && before < place && before + bytes >= place
        };
        if passes(self.pause) {
            // The journal is written every two seconds.
            std::thread::sleep(Duration::from_millis(2100));
        }
        if passes(self.cut) {
            self.medium.switch_off();
        }
    }
}

/// Nobody looks at the progress.
pub(super) struct Nobody;

impl Watch for Nobody {
    fn begin(&self, _: Phase, _: u64) {}
    fn advance(&self, _: u64) {}
}
