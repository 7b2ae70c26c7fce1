//! The lines of a character device: to the log file, to the observers, and the last of them kept.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use fs_err as fs;

/// Who is told of each line.
pub type Observer = Box<dyn FnMut(Duration, &str) + Send>;

/// A line longer than this is told in pieces, so that a guest cannot fill kiln's memory.
const LONGEST: usize = 16 << 10;
/// How much of a line of a [`Lines::brief`] log is written: such a line is bytes of a file, in base64.
const BRIEF: usize = 200;
/// How many bytes of lines are kept for [`Lines::last`].
const KEPT: usize = 64 << 10;

pub(super) struct Lines {
    file: fs::File,
    start: Instant,
    /// The line that has not ended.
    line: Vec<u8>,
    recent: VecDeque<String>,
    recent_bytes: usize,
    observers: Vec<Observer>,
    brief: bool,
}

impl Lines {
    pub(super) fn new(log: &Path, start: Instant, brief: bool) -> std::io::Result<Self> {
        let file = fs::OpenOptions::new().create(true).truncate(true).write(true).open(log)?;
        Ok(Lines {
            file,
            start,
            line: Vec::new(),
            recent: VecDeque::new(),
            recent_bytes: 0,
            observers: Vec::new(),
            brief,
        })
    }

    pub(super) fn add(&mut self, text: &[u8]) {
        for piece in text.split_inclusive(|&byte| byte == b'\n') {
            let (body, ended) = piece.strip_suffix(b"\n").map_or((piece, false), |body| (body, true));
            for part in body.chunks(LONGEST) {
                if self.line.len() + part.len() > LONGEST {
                    self.end();
                }
                self.line.extend_from_slice(part);
            }
            if ended {
                self.end();
            }
        }
    }

    /// The device is closed: the last line has ended too.
    pub(super) fn close(&mut self) {
        if !self.line.is_empty() {
            self.end();
        }
    }

    fn end(&mut self) {
        let time = self.start.elapsed();
        let text = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        let shown = match text.char_indices().nth(BRIEF) {
            Some((at, _)) if self.brief => format!("{}… ({} bytes)", &text[..at], text.len()),
            _ => text,
        };
        // A full disk must not stop the machine; the run says so when it writes its report.
        if let Err(error) = writeln!(self.file, "[{:9.3}] {shown}", time.as_secs_f64()) {
            tracing::warn!(%error, "console log");
        }
        for observer in &mut self.observers {
            observer(time, &shown);
        }
        self.recent_bytes += shown.len();
        self.recent.push_back(shown);
        while self.recent_bytes > KEPT {
            let Some(gone) = self.recent.pop_front() else { break };
            self.recent_bytes -= gone.len();
        }
    }

    /// Tells `observer` the lines so far, which the log file has, and each one to come.
    pub(super) fn observe(&mut self, mut observer: Observer) {
        if let Err(error) = replay(self.file.path(), &mut observer) {
            tracing::warn!(%error, "console log");
        }
        self.observers.push(observer);
    }

    /// The last `count` lines that are not empty, also the one that has not ended.
    pub(super) fn last(&self, count: usize) -> String {
        let open = String::from_utf8_lossy(&self.line);
        let lines = self.recent.iter().map(String::as_str).chain([&*open]);
        let lines: Vec<&str> = lines.filter(|line| !line.trim().is_empty()).collect();
        lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
    }
}

/// Reads a log that [`Lines::end`] wrote, line by line: it can be large.
fn replay(log: &Path, observer: &mut Observer) -> std::io::Result<()> {
    for line in BufReader::new(fs::File::open(log)?).split(b'\n') {
        let line = line?;
        if let Some((time, text)) = log_line(&String::from_utf8_lossy(&line)) {
            observer(time, text);
        }
    }
    Ok(())
}

/// The time since power-on and the text of a line of the log.
pub(crate) fn log_line(line: &str) -> Option<(Duration, &str)> {
    let (time, text) = line.strip_prefix('[')?.split_once("] ")?;
    Some((Duration::try_from_secs_f64(time.trim().parse().ok()?).ok()?, text))
}
