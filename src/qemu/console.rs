//! A character device of a machine, such as its serial line: read by a thread of its own from the first byte to the last.
//!
//! Every line goes to a log file with the time since power-on, `[  12.345] text`, less the terminal's control sequences, which
//! would clear the screen of whoever reads the log. The text is also kept for [`Console::wait_for`], and can be shown on a
//! terminal as it comes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fs_err as fs;

use crate::error::{Failure, Kind};

/// How much text that nobody waited for is kept; the log file has all of it.
const KEPT: usize = 1 << 20;

/// The place where text is shown as it comes.
pub type Sink = Box<dyn Write + Send>;

#[derive(Default)]
struct State {
    /// What came and was not yet consumed by a wait.
    text: Vec<u8>,
    /// The far end is gone: nothing will follow.
    closed: bool,
    sink: Option<Sink>,
}

/// The near end of a character device.
pub struct Console {
    name: String,
    log: PathBuf,
    shared: Arc<(Mutex<State>, Condvar)>,
    device: Mutex<Device>,
}

/// The device as it is read now.
struct Device {
    writer: Arc<UnixStream>,
    thread: Option<JoinHandle<Log>>,
}

impl Device {
    /// Ends the thread; its log, if there was one.
    fn end(&mut self) -> Option<Log> {
        // Wakes the thread out of its read; on a device that is closed already it does nothing.
        let _ = self.writer.shutdown(std::net::Shutdown::Both);
        self.thread.take()?.join().ok()
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("name", &self.name).field("log", &self.log).finish_non_exhaustive()
    }
}

impl Console {
    /// Reads `stream` from now on, logging to a new file `log`; times count from `start`.
    ///
    /// # Errors
    /// The log cannot be made or the socket not be shared with the thread.
    pub fn attach(name: &str, stream: UnixStream, log: &Path, start: Instant) -> std::io::Result<Self> {
        let file = fs::File::create(log)?;
        let reader = stream.try_clone()?;
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("console {name}"))
            .spawn(move || listen(reader, Log { file, start, line: Vec::new() }, &theirs))?;
        Ok(Console {
            name: name.to_owned(),
            log: log.to_owned(),
            shared,
            device: Mutex::new(Device { writer: Arc::new(stream), thread: Some(thread) }),
        })
    }

    /// Reads `stream` from now on, once the device that was read so far is closed: a machine that was switched off and on again.
    /// The log goes on with the line `mark`, and its times as before; what was kept of the old text is dropped.
    ///
    /// # Errors
    /// The socket cannot be shared with the thread.
    pub fn reattach(&self, stream: UnixStream, mark: &str) -> std::io::Result<()> {
        let reader = stream.try_clone()?;
        let mut device = self.device();
        let Some(mut log) = device.end() else { return Err(std::io::ErrorKind::NotConnected.into()) };
        log.add(mark.as_bytes());
        log.end_line();
        {
            let mut state = self.state();
            state.text.clear();
            state.closed = false;
        }
        device.writer = Arc::new(stream);
        let theirs = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(format!("console {}", self.name))
            .spawn(move || listen(reader, log, &theirs))?;
        device.thread = Some(thread);
        Ok(())
    }

    /// The log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Shows what was kept so far and everything to come on `sink`.
    pub fn show_on(&self, mut sink: Sink) {
        let mut state = self.state();
        // A terminal that went away is noticed by whoever reads from it.
        let _ = sink.write_all(&state.text).and_then(|()| sink.flush());
        state.sink = Some(sink);
    }

    /// Types `bytes` into the machine.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        let writer = Arc::clone(&self.device().writer);
        (&*writer).write_all(bytes)
    }

    /// Waits for `pattern` and returns the text before it; text up to the end of the match is used up.
    ///
    /// # Errors
    /// [`Kind::Test`] when it does not come within `limit` or the device closes before; both with the last lines.
    pub fn wait_for(&self, pattern: &str, limit: Duration) -> Result<String, Failure> {
        let end = Instant::now() + limit;
        let mut state = self.state();
        loop {
            crate::sys::check_interrupt()?;
            if let Some(at) = find(&state.text, pattern.as_bytes()) {
                let before = String::from_utf8_lossy(&state.text[..at]).into_owned();
                state.text.drain(..at + pattern.len());
                return Ok(before);
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let why = if state.closed { "closed before" } else { "did not say" };
                let what = format!("{} {why} `{pattern}` ({:.0} s)", self.name, limit.as_secs_f64());
                return Err(Failure::new(Kind::Test, what)
                    .hint(format!("its last lines were:\n{}", last_lines(&state.text, 15))));
            }
            state = self.step(state, left);
        }
    }

    /// Waits for the next whole line; `None` when none comes within `limit` or the device is closed.
    pub fn next_line(&self, limit: Duration) -> Option<String> {
        let end = Instant::now() + limit;
        let mut state = self.state();
        loop {
            if let Some(at) = state.text.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = state.text.drain(..=at).collect();
                return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return None;
            }
            state = self.step(state, left);
        }
    }

    /// The first of `patterns` that stands in the kept text, without using anything up.
    pub fn seen<'p>(&self, patterns: &[&'p str]) -> Option<&'p str> {
        let state = self.state();
        patterns.iter().copied().find(|pattern| find(&state.text, pattern.as_bytes()).is_some())
    }

    /// The last `count` lines that were kept.
    pub fn last_lines(&self, count: usize) -> String {
        last_lines(&self.state().text, count)
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One wait, short enough to see Ctrl-C soon.
    fn step<'s>(&self, state: MutexGuard<'s, State>, left: Duration) -> MutexGuard<'s, State> {
        let step = left.min(Duration::from_millis(100));
        self.shared.1.wait_timeout(state, step).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.device().end();
    }
}

struct Log {
    file: fs::File,
    start: Instant,
    line: Vec<u8>,
}

impl Log {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                b'\r' => {}
                _ => self.line.push(byte),
            }
        }
    }

    fn end_line(&mut self) {
        let time = self.start.elapsed().as_secs_f64();
        let text = plain(&self.line);
        // A full disk must not stop the machine; the run says so when it writes its report.
        if let Err(error) = writeln!(self.file, "[{time:9.3}] {text}") {
            tracing::warn!(%error, "console log");
        }
        self.line.clear();
    }
}

fn listen(mut stream: UnixStream, mut log: Log, shared: &(Mutex<State>, Condvar)) -> Log {
    let mut chunk = [0; 4096];
    loop {
        let count = match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let bytes = &chunk[..count];
        log.add(bytes);
        let mut state = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.text.extend_from_slice(bytes);
        let excess = state.text.len().saturating_sub(KEPT);
        state.text.drain(..excess);
        if let Some(sink) = &mut state.sink {
            let _ = sink.write_all(bytes).and_then(|()| sink.flush());
        }
        shared.1.notify_all();
    }
    if !log.line.is_empty() {
        log.end_line();
    }
    shared.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    shared.1.notify_all();
    log
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    if pattern.is_empty() {
        return Some(0);
    }
    text.windows(pattern.len()).position(|window| window == pattern)
}

fn last_lines(text: &[u8], count: usize) -> String {
    let text = plain(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The text without control sequences (ECMA-48: `ESC [ parameters final`, and `ESC` with one other byte) and without control
/// characters but line ends and tabs.
fn plain(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            0x1b => {
                let kind = bytes.next();
                if kind == Some(b'[') {
                    // Parameters and intermediates are 0x20..=0x3f; the first byte beyond them ends the sequence.
                    let _ = bytes.find(|b| !(0x20..=0x3f).contains(b));
                }
            }
            b'\n' | b'\t' | 0x20..=0x7e | 0x80.. => out.push(byte),
            _ => {}
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (tempfile::TempDir, Console, UnixStream) {
        let folder = tempfile::tempdir().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let console = Console::attach("node", near, &folder.path().join("log"), Instant::now()).unwrap();
        (folder, console, far)
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn waiting_returns_the_text_before_and_uses_it_up() {
        let (_folder, console, mut far) = pair();
        far.write_all(b"one two th").unwrap();
        far.write_all(b"ree four\n").unwrap();
        assert_eq!(console.wait_for("three", SOON).unwrap(), "one two ");
        assert_eq!(console.next_line(SOON).unwrap(), " four");
        console.send(b"typed").unwrap();
        let mut typed = [0; 5];
        far.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"typed");
    }

    #[test]
    fn a_closed_console_ends_the_wait_at_once_with_the_last_lines() {
        let (_folder, console, mut far) = pair();
        far.write_all(b"Kernel panic\r\n").unwrap();
        drop(far);
        let failure = console.wait_for("login:", Duration::from_secs(3600)).unwrap_err();
        assert_eq!(failure.kind, Kind::Test);
        assert!(failure.hints()[0].contains("Kernel panic"));
        assert_eq!(console.seen(&["oops", "Kernel panic"]), Some("Kernel panic"));
    }

    #[test]
    fn a_machine_that_was_off_goes_on_in_the_same_log_and_its_old_text_is_not_waited_for() {
        let (folder, console, mut far) = pair();
        far.write_all(b"Kernel panic\nlast word").unwrap();
        drop(far);
        let (near, mut far) = UnixStream::pair().unwrap();
        console.reattach(near, "---- again ----").unwrap();
        far.write_all(b"Booting\n").unwrap();
        assert_eq!(console.next_line(SOON).unwrap(), "Booting");
        assert_eq!(console.seen(&["Kernel panic"]), None);
        console.send(b"typed").unwrap();
        let mut typed = [0; 5];
        far.read_exact(&mut typed).unwrap();
        drop(console);
        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        let lines: Vec<&str> = log.lines().map(|line| line.split_once("] ").unwrap().1).collect();
        assert_eq!(lines, ["Kernel panic", "last word", "---- again ----", "Booting"]);
    }

    #[test]
    fn the_log_has_every_line_with_its_time() {
        let (folder, console, mut far) = pair();
        far.write_all(b"\x1b[2J\x1b[01;01H\x1b[=3hfirst\r\n\x1b[0;1;31msec\x1b[0mond\n\x1bcno end\x1b[")
            .unwrap();
        drop(far);
        assert!(console.wait_for("never", SOON).is_err());
        drop(console);
        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        let lines: Vec<&str> = log.lines().map(|line| line.split_once("] ").unwrap().1).collect();
        assert_eq!(lines, ["first", "second", "no end"]);
        assert!(log.starts_with("[    0.0"), "{log}");
    }
}
