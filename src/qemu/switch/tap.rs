//! A port for this program itself: tests and servers that sit on the segment without a machine.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::frame::{self, MAX_FRAME, PREFIX};
use super::{LOOK, PortId};
use crate::error::{Failure, Kind};

/// The far end of a port. Dropping it is pulling the plug.
#[derive(Debug)]
pub struct Tap {
    name: String,
    port: PortId,
    stream: UnixStream,
    /// Bytes that were read; frames before `start` were given away.
    inbox: Vec<u8>,
    start: usize,
    /// The frame to send with its length, kept to save allocations.
    outbox: Vec<u8>,
}

impl Tap {
    pub(super) fn new(name: String, port: PortId, stream: UnixStream) -> Self {
        Tap { name, port, stream, inbox: Vec::new(), start: 0, outbox: Vec::new() }
    }

    /// Its port, for [`super::Switch::set`] and others.
    pub fn port(&self) -> PortId {
        self.port
    }

    /// Sends an Ethernet frame, without frame check sequence. Waits while the switch has not read the ones before.
    ///
    /// # Errors
    /// [`Kind::Internal`] when the frame is longer than [`MAX_FRAME`] or the switch is gone, and Ctrl-C.
    pub fn send(&mut self, frame: &[u8]) -> Result<(), Failure> {
        if frame.len() > MAX_FRAME {
            let what = format!("{}: a frame of {} bytes is too long to send", self.name, frame.len());
            return Err(Failure::new(Kind::Internal, what));
        }
        self.outbox.clear();
        frame::append(&mut self.outbox, frame);
        let mut rest = &self.outbox[..];
        while !rest.is_empty() {
            match (&self.stream).write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::OUT, LOOK)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.gone().because(error)),
            }
        }
        Ok(())
    }

    /// The next frame; `None` when none comes within `limit`.
    ///
    /// # Errors
    /// [`Kind::Internal`] when the switch is gone, and Ctrl-C.
    pub fn receive(&mut self, limit: Duration) -> Result<Option<Vec<u8>>, Failure> {
        let end = Instant::now() + limit;
        loop {
            let found = frame::first(self.inbox.get(self.start..).unwrap_or_default());
            if let Some(frame) = found.map_err(|error| self.gone().because(error))? {
                let frame = frame.to_vec();
                self.start += PREFIX + frame.len();
                return Ok(Some(frame));
            }
            if !self.read()? {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                self.wait(PollFlags::IN, left.min(LOOK))?;
            }
        }
    }

    /// Takes what the switch has sent; false when there is nothing.
    fn read(&mut self) -> Result<bool, Failure> {
        self.inbox.drain(..self.start);
        self.start = 0;
        let before = self.inbox.len();
        self.inbox.resize(before + 64 * 1024, 0);
        let result = (&self.stream).read(self.inbox.get_mut(before..).unwrap_or_default());
        self.inbox.truncate(before + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => Err(self.gone()),
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(self.gone().because(error)),
        }
    }

    fn wait(&self, flags: PollFlags, limit: Duration) -> Result<(), Failure> {
        crate::sys::check_interrupt()?;
        let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(limit.subsec_nanos()) };
        // Whatever it says, a signal too, the caller tries again.
        let _ = poll(&mut [PollFd::from_borrowed_fd(self.stream.as_fd(), flags)], Some(&limit));
        Ok(())
    }

    fn gone(&self) -> Failure {
        Failure::new(Kind::Internal, format!("{}: the switch is gone", self.name))
    }
}

/// Readable when the switch has sent something; to be waited for beside others.
impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
