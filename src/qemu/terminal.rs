//! This terminal joined with a console of a machine.

use std::io::Read;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::console::Console;
use crate::sys::RawTerminal;

/// Ctrl-A, then x leaves; Ctrl-A twice sends one: QEMU's own habit.
const ESCAPE: u8 = 0x01;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The person left.
    Left,
    /// The far end is gone.
    Gone,
}

/// Shows the console on stdout and types stdin into it until the person leaves (Ctrl-A X) or `gone` says that there is nobody to
/// talk to any more.
///
/// # Errors
/// Ctrl-C from outside (a signal: the key goes to the guest), or the terminal fails.
pub fn join(console: &Console, gone: &mut dyn FnMut() -> anyhow::Result<bool>) -> anyhow::Result<End> {
    console.show_on(Box::new(crate::ui::Stdout));
    let terminal = RawTerminal::enter()?;
    let mut keys = Keys::default();
    let mut input_open = true;
    loop {
        if gone()? {
            return Ok(End::Gone);
        }
        crate::sys::check_interrupt()?;
        let step = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let stdin = std::io::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        let count = usize::from(input_open);
        match poll(fds.get_mut(..count).unwrap_or_default(), Some(&step)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        let mut chunk = [0; 256];
        let read = stdin.lock().read(&mut chunk)?;
        input_open = read > 0;
        match keys.take(chunk.get(..read).unwrap_or_default()) {
            Some(typed) => console.send(&typed).or_else(closed)?,
            None => {
                drop(terminal);
                return Ok(End::Left);
            }
        }
    }
}

/// A socket closed under the typing hand: the next look at the machine tells the rest.
fn closed(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
}

/// The keyboard's escape sequence.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    /// The bytes for the guest; `None` once Ctrl-A X came.
    fn take(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x' | b'X') => return None,
                (true, ESCAPE) | (false, _) => out.push(byte),
                (true, _) => out.extend([ESCAPE, byte]),
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_sequence_is_seen_across_reads_and_all_else_goes_to_the_guest() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ls\x01").unwrap(), b"ls");
        assert_eq!(keys.take(b"\x01b").unwrap(), b"\x01b");
        assert_eq!(keys.take(b"\x01q").unwrap(), b"\x01q");
        assert_eq!(keys.take(b"x\x01").unwrap(), b"x");
        assert_eq!(keys.take(b"X"), None);
    }
}
