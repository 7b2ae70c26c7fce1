//! A character device of a machine, such as its serial line: read by a thread of its own from the first byte to the last.
//!
//! Every line goes to a log file with the time since power-on, `[  12.345] text`, less the terminal's control sequences, which
//! would clear the screen of whoever reads the log, and to those who asked for lines ([`Console::observe`]). The text is also kept
//! for [`Console::wait_for`], and can be shown on a terminal as it comes.

mod lines;
mod plain;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use regex::Regex;

use crate::error::{Failure, Kind};
use lines::Lines;
pub use lines::Observer;
pub(crate) use lines::log_line;
use plain::Plain;

/// How much text that nobody waited for is kept; the log file has all of it.
const KEPT: usize = 1 << 20;
/// A line that has no end, such as a prompt, is looked at when nothing followed for so long.
const QUIET: Duration = Duration::from_millis(300);

/// The place where text is shown as it comes.
pub type Sink = Box<dyn Write + Send>;

/// A place in the text of a console, to look only at what came after it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

#[derive(Default)]
struct State {
    /// What came and was not yet consumed by a wait, without control sequences.
    text: Vec<u8>,
    /// Where in all the text that ever came `text` begins.
    begin: u64,
    /// The far end is gone: nothing will follow.
    closed: bool,
    sink: Option<Sink>,
}

impl State {
    /// Uses up the first `count` bytes.
    fn consume(&mut self, count: usize) -> Vec<u8> {
        let count = count.min(self.text.len());
        self.begin += count as u64;
        self.text.drain(..count).collect()
    }

    /// What is kept of the text after `position`.
    fn after(&self, position: u64) -> &[u8] {
        let skip = usize::try_from(position.saturating_sub(self.begin)).unwrap_or(usize::MAX);
        self.text.get(skip..).unwrap_or_default()
    }
}

/// The near end of a character device.
pub struct Console {
    name: String,
    log: PathBuf,
    shared: Arc<Shared>,
    device: Mutex<Device>,
}

/// The device as it is read now.
struct Device {
    writer: Arc<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Device {
    /// Ends the thread.
    fn end(&mut self) {
        // Wakes the thread out of its read; on a device that is closed already it does nothing.
        let _ = self.writer.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread and the caller share. Who takes both locks would have to take `lines` first; nobody does.
struct Shared {
    state: Mutex<State>,
    more: Condvar,
    lines: Mutex<Lines>,
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
        Console::read(name, stream, Lines::new(log, start, false)?, log)
    }

    /// As [`Console::attach`], for a port that carries messages of programs: long lines are shortened in the log.
    ///
    /// # Errors
    /// See [`Console::attach`].
    pub fn attach_port(name: &str, stream: UnixStream, log: &Path, start: Instant) -> std::io::Result<Self> {
        Console::read(name, stream, Lines::new(log, start, true)?, log)
    }

    fn read(name: &str, stream: UnixStream, lines: Lines, log: &Path) -> std::io::Result<Self> {
        let reader = stream.try_clone()?;
        let shared =
            Arc::new(Shared { state: Mutex::default(), more: Condvar::new(), lines: Mutex::new(lines) });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("console {name}"))
            .spawn(move || listen(reader, &theirs))?;
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
        device.end();
        self.lines().add(format!("{mark}\n").as_bytes());
        {
            let mut state = self.state();
            let all = state.text.len();
            state.consume(all);
            state.closed = false;
        }
        device.writer = Arc::new(stream);
        let theirs = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(format!("console {}", self.name))
            .spawn(move || listen(reader, &theirs))?;
        device.thread = Some(thread);
        Ok(())
    }

    /// The name given to it.
    pub fn name(&self) -> &str {
        &self.name
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

    /// Tells `observer` each line with its time since power-on and without its end: those that came already at once, the others
    /// from the thread that reads the device. It is called in order and must be quick. It may not call this console.
    pub fn observe(&self, observer: Observer) {
        self.lines().observe(observer);
    }

    /// Types `bytes` into the machine.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        let writer = Arc::clone(&self.device().writer);
        (&*writer).write_all(bytes)
    }

    /// Whether the far end is gone, so that nothing will follow what is kept.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// The end of the text that came so far.
    pub fn position(&self) -> Position {
        let state = self.state();
        Position(state.begin + state.text.len() as u64)
    }

    /// Waits for `pattern` and returns the text before it; text up to the end of the match is used up.
    ///
    /// # Errors
    /// [`Kind::Test`] when it does not come within `limit` or the device closes before; both with the last lines.
    pub fn wait_for(&self, pattern: &str, limit: Duration) -> Result<String, Failure> {
        let take = |state: &mut State, _: bool| {
            let at = find(&state.text, pattern.as_bytes())?;
            let mut before = state.consume(at + pattern.len());
            before.truncate(at);
            Some(before)
        };
        Ok(String::from_utf8_lossy(&self.wait(pattern, limit, take)?).into_owned())
    }

    /// Waits for a line that `pattern` matches and returns it; text up to its end is used up. A line that has not ended, such as a
    /// prompt, counts once nothing follows it.
    ///
    /// # Errors
    /// As [`Console::wait_for`].
    pub fn wait_for_regex(&self, pattern: &Regex, limit: Duration) -> Result<String, Failure> {
        // Each whole line is looked at once.
        let mut seen = 0;
        let take = |state: &mut State, quiet: bool| loop {
            let begin = seen.max(state.begin);
            let rest = state.after(begin);
            let (line, length) = match rest.iter().position(|&byte| byte == b'\n') {
                Some(at) => (rest.get(..at)?, at + 1),
                None if quiet && !rest.is_empty() => (rest, rest.len()),
                None => return None,
            };
            let text = String::from_utf8_lossy(line).into_owned();
            let whole = line.len() < length;
            if pattern.is_match(&text) {
                let used = usize::try_from(begin - state.begin).unwrap_or(usize::MAX) + length;
                state.consume(used);
                return Some(text);
            }
            if !whole {
                return None;
            }
            seen = begin + length as u64;
        };
        self.wait(pattern.as_str(), limit, take)
    }

    /// Waits until `take` finds something in the state; it is told whether nothing came for a while.
    fn wait<T>(
        &self,
        pattern: &str,
        limit: Duration,
        mut take: impl FnMut(&mut State, bool) -> Option<T>,
    ) -> Result<T, Failure> {
        let end = Instant::now() + limit;
        let mut state = self.state();
        let mut grown = (0, Instant::now());
        let why = loop {
            crate::sys::check_interrupt()?;
            let total = state.begin + state.text.len() as u64;
            if grown.0 != total {
                grown = (total, Instant::now());
            }
            let left = end.saturating_duration_since(Instant::now());
            let quiet = state.closed || left.is_zero() || grown.1.elapsed() >= QUIET;
            if let Some(found) = take(&mut state, quiet) {
                return Ok(found);
            }
            if state.closed {
                break "closed before";
            }
            if left.is_zero() {
                break "did not say";
            }
            state = self.step(state, left);
        };
        drop(state);
        let what = format!("{} {why} `{pattern}` ({:.0} s)", self.name, limit.as_secs_f64());
        Err(Failure::new(Kind::Test, what).hint(format!("its last lines were:\n{}", self.last_lines(15))))
    }

    /// Waits for the next whole line; `None` when none comes within `limit` or the device is closed.
    pub fn next_line(&self, limit: Duration) -> Option<String> {
        let end = Instant::now() + limit;
        let mut state = self.state();
        loop {
            if let Some(at) = state.text.iter().position(|&b| b == b'\n') {
                let line = state.consume(at + 1);
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
        self.seen_since(Position::default(), patterns)
    }

    /// The first of `patterns` that stands in what is kept of the text after `position`, without using anything up.
    pub fn seen_since<'p>(&self, position: Position, patterns: &[&'p str]) -> Option<&'p str> {
        let state = self.state();
        let text = state.after(position.0);
        patterns.iter().copied().find(|pattern| find(text, pattern.as_bytes()).is_some())
    }

    /// The last `count` lines that are not empty, whether somebody waited for them or not; from the last 64 KiB.
    pub fn last_lines(&self, count: usize) -> String {
        self.lines().last(count)
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One wait, short enough to see Ctrl-C soon.
    fn step<'s>(&self, state: MutexGuard<'s, State>, left: Duration) -> MutexGuard<'s, State> {
        let step = left.min(Duration::from_millis(100));
        self.shared.more.wait_timeout(state, step).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.device().end();
    }
}

fn listen(mut stream: UnixStream, shared: &Shared) {
    let mut chunk = [0; 4096];
    let mut plain = Plain::default();
    let mut text = Vec::new();
    loop {
        let count = match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let bytes = &chunk[..count];
        text.clear();
        plain.add(bytes, &mut text);
        shared.lines.lock().unwrap_or_else(PoisonError::into_inner).add(&text);
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.text.extend_from_slice(&text);
        let excess = state.text.len().saturating_sub(KEPT);
        state.text.drain(..excess);
        state.begin += excess as u64;
        if let Some(sink) = &mut state.sink {
            let _ = sink.write_all(bytes).and_then(|()| sink.flush());
        }
        shared.more.notify_all();
    }
    shared.lines.lock().unwrap_or_else(PoisonError::into_inner).close();
    shared.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
    shared.more.notify_all();
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    if pattern.is_empty() {
        return Some(0);
    }
    text.windows(pattern.len()).position(|window| window == pattern)
}

#[cfg(test)]
mod tests;
