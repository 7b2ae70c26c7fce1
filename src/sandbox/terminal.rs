//! A person in a sandbox: a terminal of its own for the program, joined to that of kiln.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

use super::{Plan, Report, STEP, broken, end, start};
use crate::error::Failure;
use crate::sys::{self, RawTerminal};

/// Enter, and Ctrl-D at the beginning of the line: the end of input, for a terminal.
const END_OF_INPUT: [&[u8]; 2] = [b"\n", b"\x04"];
/// It is said again after this, then after twice as long: a terminal that gets it as lines and is read by keys, as when a shell begins to
/// edit one, gives a zero in its place (n_tty.c, `__DISABLED_CHAR`).
const AGAIN: Duration = Duration::from_millis(200);
/// What is never read fills the terminal's queue, and then writing to it would wait for ever.
const AGAIN_MOST: Duration = Duration::from_secs(10);

/// Runs `plan`, whose [`Plan::terminal`] is set, and passes what is typed to the program and what it writes to `show`. Works without a
/// terminal too: then stdin is what is typed.
///
/// # Errors
/// As for [`super::run`].
pub fn enter(plan: &Plan, folder: &Path, show: &dyn Fn(&[u8])) -> Result<Report, Failure> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let open = || -> rustix::io::Result<_> {
        let ours = openpt(flags)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let theirs = ioctl_tiocgptpeer(&ours, flags)?;
        Ok((ours, theirs))
    };
    let (ours, theirs) = open().map_err(|e| broken("making a terminal", e.into()))?;
    let mut ours = std::fs::File::from(ours);
    let mut size = None;
    fit(&ours, &mut size);
    let child = start(plan, folder, theirs)?;
    let raw = RawTerminal::enter().map_err(|e| broken("taking the terminal", e))?;
    let stdin = std::io::stdin();
    let (mut typing, mut chunk) = (true, [0; 4096]);
    let (mut ended, mut again) = (Instant::now(), AGAIN);
    loop {
        if raw.is_none() {
            sys::check_interrupt()?;
        }
        fit(&ours, &mut size);
        let mut fds = [PollFd::new(&ours, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
        let count = if typing { 2 } else { 1 };
        match poll(fds.get_mut(..count).unwrap_or_default(), Some(&STEP)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(broken("waiting for the terminal", error.into())),
        }
        let [written, typed] = fds.map(|fd| !fd.revents().is_empty());
        if written {
            match ours.read(&mut chunk) {
                Ok(count @ 1..) => show(chunk.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // EIO: nobody has the other side any more (pty(7)).
                _ => {
                    drop(raw);
                    return end(child, plan);
                }
            }
        }
        if typed && typing {
            let count = stdin.lock().read(&mut chunk).map_err(|e| broken("reading the terminal", e))?;
            typing = count > 0;
            let [line, end] = END_OF_INPUT;
            // A program that is gone is seen when its side is read.
            let _ = match chunk.get(..count) {
                Some(bytes) if typing => ours.write_all(bytes),
                _ => ours.write_all(line).and_then(|()| ours.write_all(end)),
            };
            ended = Instant::now();
        } else if !typing && ended.elapsed() > again {
            let _ = ours.write_all(END_OF_INPUT[1]);
            (ended, again) = (Instant::now(), (again * 2).min(AGAIN_MOST));
        }
    }
}

/// Gives the program's terminal the size of this one when that has changed.
fn fit(ours: impl AsFd, size: &mut Option<(u16, u16)>) {
    let Ok(now) = tcgetwinsize(std::io::stdin()) else { return };
    let known = Some((now.ws_row, now.ws_col));
    if *size != known {
        *size = known;
        let now = Winsize { ws_xpixel: 0, ws_ypixel: 0, ..now };
        // Only looks suffer.
        let _ = tcsetwinsize(ours, now);
    }
}
