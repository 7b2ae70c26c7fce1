//! What goes wrong with a disk on demand.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::Refusal;

/// A fault of a disk, in force from [`super::Export::inject`] to [`super::Export::heal`]. Ranges are bytes of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Reads that touch the range fail with `EIO`.
    ReadError(Range<u64>),
    /// Writes that touch the range fail with `EIO`.
    WriteError(Range<u64>),
    /// Writes that touch bytes from here on fail with `ENOSPC`.
    NoSpace {
        /// The first byte that cannot be written.
        from: u64,
    },
    /// Reads of the range succeed and give other bytes than were written: worn flash, a stick that is smaller than it says.
    Mismatch(Range<u64>),
    /// Each request takes so much longer.
    Latency(Duration),
}

/// The faults in force.
#[derive(Debug, Default)]
pub(super) struct Faults {
    faults: Vec<Fault>,
    flips: BTreeMap<u64, u8>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.faults.clear();
    }

    pub(super) fn flip(&mut self, offset: u64, xor: u8) {
        *self.flips.entry(offset).or_default() ^= xor;
    }

    /// How long a request has to wait.
    pub(super) fn delay(&self) -> Duration {
        let one = |fault: &Fault| if let Fault::Latency(delay) = fault { *delay } else { Duration::ZERO };
        self.faults.iter().map(one).sum()
    }

    /// Whether a read may be done.
    pub(super) fn read(&self, range: &Range<u64>) -> Result<(), Refusal> {
        let bad = |fault: &Fault| matches!(fault, Fault::ReadError(bad) if touch(bad, range));
        if self.faults.iter().any(bad) { Err(Refusal::Io) } else { Ok(()) }
    }

    /// Whether a write may be done.
    pub(super) fn write(&self, range: &Range<u64>) -> Result<(), Refusal> {
        for fault in &self.faults {
            match fault {
                Fault::WriteError(bad) if touch(bad, range) => return Err(Refusal::Io),
                Fault::NoSpace { from } if touch(&(*from..u64::MAX), range) => return Err(Refusal::NoSpace),
                _ => {}
            }
        }
        Ok(())
    }

    /// Changes what was read from `offset` on.
    pub(super) fn spoil(&self, offset: u64, bytes: &mut [u8]) {
        let range = offset..offset + bytes.len() as u64;
        let mut change = |at: u64, xor: u8| {
            let byte = usize::try_from(at - offset).ok().and_then(|at| bytes.get_mut(at));
            byte.into_iter().for_each(|byte| *byte ^= xor);
        };
        for (at, xor) in self.flips.range(range.clone()) {
            change(*at, *xor);
        }
        for fault in &self.faults {
            if let Fault::Mismatch(bad) = fault {
                (bad.start.max(range.start)..bad.end.min(range.end)).for_each(|at| change(at, 0x40));
            }
        }
    }

    /// Bytes that were written are whole again.
    pub(super) fn written(&mut self, range: &Range<u64>) {
        let gone: Vec<u64> = self.flips.range(range.clone()).map(|(at, _)| *at).collect();
        for at in gone {
            self.flips.remove(&at);
        }
    }
}

fn touch(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
