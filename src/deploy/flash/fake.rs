//! A disk in memory that behaves badly: what a device-mapper target or QEMU's blkdebug would do.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Cursor};
use std::sync::{Mutex, MutexGuard};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use super::medium::Medium;
use crate::image::gpt::{self, Table, Wanted};

pub(super) const MIB: u64 = 1 << 20;

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// Writes behind this fall back onto the beginning.
    Wraps(u64),
    /// Writes behind this are dropped, reads give zeros.
    Drops(u64),
    /// Writes behind this are dropped, reads give what was there before.
    Stale(u64),
    /// As `Drops`, and the 8 MiB that were written last are given from a cache.
    Caches(u64),
    /// This byte is kept with a bit turned over.
    Bit(u64),
    /// Writing this byte fails.
    Write(u64),
    /// Reading this byte fails.
    Read(u64),
    /// No more than 64 KiB are taken or given at once.
    Short,
    /// Nothing is ever kept, and nobody is told.
    Ignores,
    /// The power goes after so many writes, discards and flushes; what of the unflushed is kept depends on the seed.
    Cut {
        after: u64,
        seed: u64,
    },
}

/// What a drive writes back as a whole, mostly.
pub(super) const BLOCK: usize = 4096;

pub(super) struct State {
    pub(super) bytes: Vec<u8>,
    /// Blocks that were changed since the last flush, as they were then.
    pending: BTreeMap<usize, Vec<u8>>,
    /// For [`Fault::Caches`]: blocks and what was written there, the last one last.
    cache: VecDeque<(u64, Vec<u8>)>,
    /// Writes, discards and flushes.
    pub(super) operations: u64,
    fault: Fault,
    off: bool,
}

/// A disk in memory.
pub(super) struct Fake {
    pub(super) state: Mutex<State>,
    pub(super) size: u64,
    pub(super) sector: u32,
    /// What discarded bytes become; `None` for a disk that cannot discard.
    pub(super) discards: Option<u8>,
    pub(super) zeroes: bool,
}

impl Fake {
    pub(super) fn new(size: u64, fault: Fault) -> Self {
        // What was there before: an old system, and a pattern everywhere else.
        let mut bytes = vec![0x5A; size as usize];
        let part = Wanted {
            kind: gpt::LINUX_DATA,
            guid: uuid::Uuid::from_u128(3),
            name: "old".into(),
            size: MIB,
            attributes: 0,
        };
        let table = Table { size, ..gpt::plan(uuid::Uuid::from_u128(2), 512, &[part]).unwrap() };
        table.write(&mut Cursor::new(&mut bytes)).unwrap();
        let state = State {
            bytes,
            pending: BTreeMap::new(),
            cache: VecDeque::new(),
            operations: 0,
            fault,
            off: false,
        };
        Fake { state: Mutex::new(state), size, sector: 512, discards: Some(0), zeroes: true }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn fill(&self, at: u64, length: u64, byte: u8) -> io::Result<()> {
        let mut state = self.state();
        if state.off {
            return Err(io_error());
        }
        state.remember(at, length as usize);
        state.bytes[at as usize..][..length as usize].fill(byte);
        state.done(self.sector as usize)
    }

    /// What direct I/O asks of a request (open(2), `O_DIRECT`); its bytes, and how many of them are done at once.
    fn direct(&self, state: &State, bytes: &[u8], at: u64) -> (u64, usize) {
        let length = bytes.len() as u64;
        assert!(
            at.is_multiple_of(self.sector.into()) && length.is_multiple_of(self.sector.into()),
            "direct I/O"
        );
        assert_eq!(bytes.as_ptr().align_offset(512), 0, "direct I/O");
        (length, if state.fault == Fault::Short { bytes.len().min(65_536) } else { bytes.len() })
    }

    /// The power is back, and so is what was wrong.
    pub(super) fn again(&self, fault: Fault) {
        let mut state = self.state();
        (state.off, state.fault, state.operations) = (false, fault, 0);
    }

    pub(super) fn boots(&self) -> bool {
        let state = self.state();
        let sector = self.sector as usize;
        let last = match state.fault {
            Fault::Wraps(real) => (state.bytes.len() - sector) % real as usize,
            // Nothing is read there.
            Fault::Drops(_) | Fault::Caches(_) => sector,
            _ => state.bytes.len() - sector,
        };
        let table = |at: usize| &state.bytes[at..at + 8] == b"EFI PART";
        state.bytes[510..512] == [0x55, 0xAA] || table(sector) || table(last)
    }
}

impl State {
    /// Something begins that the drive may forget.
    fn remember(&mut self, at: u64, length: usize) {
        for block in at as usize / BLOCK..(at as usize + length).div_ceil(BLOCK) {
            let end = ((block + 1) * BLOCK).min(self.bytes.len());
            self.pending.entry(block).or_insert_with(|| self.bytes[block * BLOCK..end].to_vec());
        }
    }

    /// Something was done. If the power goes with it, each block has a fate of its own, whatever the order in which they were written; one of
    /// sixteen is torn into its sectors, on drives that have such.
    fn done(&mut self, sector: usize) -> io::Result<()> {
        self.operations += 1;
        let Fault::Cut { after, seed } = self.fault else { return Ok(()) };
        if self.operations <= after {
            return Ok(());
        }
        self.off = true;
        let mut random = StdRng::seed_from_u64(seed);
        // None and all are as likely as anything between.
        let kept: f64 = *[0.0, 1.0, random.gen_range(0.0..1.0)].choose(&mut random).unwrap();
        for (block, before) in std::mem::take(&mut self.pending) {
            let unit = if random.gen_ratio(1, 16) { sector } else { BLOCK };
            for (at, before) in (block * BLOCK..).step_by(unit).zip(before.chunks(unit)) {
                if !random.gen_bool(kept) {
                    self.bytes[at..at + before.len()].copy_from_slice(before);
                }
            }
        }
        Err(io_error())
    }
}

/// The pieces of `n` bytes from `at` on a disk that is only `real` large: their places there and on the disk, and lengths.
fn wrapped(at: u64, n: usize, real: u64) -> Vec<(usize, usize, usize)> {
    let (mut pieces, mut done) = (Vec::new(), 0);
    while done < n {
        let from = (at + done as u64) % real;
        let length = (n - done).min((real - from) as usize);
        pieces.push((done, from as usize, length));
        done += length;
    }
    pieces
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Medium for Fake {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> u32 {
        self.sector
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.state();
        let (length, n) = self.direct(&state, bytes, at);
        match state.fault {
            _ if state.off => return Err(io_error()),
            Fault::Read(bad) if (at..at + length).contains(&bad) => return Err(io_error()),
            Fault::Wraps(real) => {
                for (i, from, length) in wrapped(at, n, real) {
                    bytes[i..i + length].copy_from_slice(&state.bytes[from..from + length]);
                }
            }
            Fault::Drops(real) if at >= real => bytes.fill(0),
            Fault::Caches(real) if at >= real => {
                bytes.fill(0);
                let cached = state.cache.iter().rev().find(|(place, _)| *place == at);
                if let Some((_, cached)) = cached {
                    bytes[..cached.len()].copy_from_slice(cached);
                }
            }
            _ => bytes[..n].copy_from_slice(&state.bytes[at as usize..][..n]),
        }
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let mut state = self.state();
        let (length, n) = self.direct(&state, bytes, at);
        match state.fault {
            _ if state.off => return Err(io_error()),
            Fault::Write(bad) if (at..at + length).contains(&bad) => return Err(io_error()),
            Fault::Wraps(real) => {
                for (i, to, length) in wrapped(at, n, real) {
                    state.bytes[to..to + length].copy_from_slice(&bytes[i..i + length]);
                }
                return Ok(n);
            }
            Fault::Drops(real) | Fault::Stale(real) if at >= real => return Ok(n),
            Fault::Ignores => return Ok(n),
            Fault::Caches(real) => {
                for (place, block) in (at..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
                    state.cache.push_back((place, block.to_vec()));
                }
                let old = state.cache.len().saturating_sub((8 << 20) / BLOCK);
                state.cache.drain(..old);
                if at >= real {
                    return Ok(n);
                }
            }
            _ => {}
        }
        state.remember(at, n);
        state.bytes[at as usize..][..n].copy_from_slice(&bytes[..n]);
        if let Fault::Bit(bad) = state.fault
            && (at..at + length).contains(&bad)
        {
            state.bytes[bad as usize] ^= 4;
        }
        state.done(self.sector as usize)?;
        Ok(n)
    }

    fn discard(&self, at: u64, length: u64) -> io::Result<()> {
        let Some(byte) = self.discards else { return Err(io::ErrorKind::Unsupported.into()) };
        self.fill(at, length, byte)
    }

    fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        if self.zeroes { self.fill(at, length, 0) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.off {
            return Err(io_error());
        }
        // The power may go just before it.
        state.done(self.sector as usize)?;
        state.pending.clear();
        Ok(())
    }
}
