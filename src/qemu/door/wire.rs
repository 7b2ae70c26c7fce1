//! What is said through the door, as text.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A line of the guest.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Line {
    /// The guest's shell is there: its session.
    Hello(String),
    /// The result of a command.
    Answer(u64, Answer),
    /// Bytes of one of its streams.
    Part(u64, Stream, Vec<u8>),
    /// The request did not arrive whole.
    Broken(u64),
    /// All was said.
    End(u64),
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub(super) status: i32,
    pub(super) ending: super::Ending,
    pub(super) elapsed: Duration,
    pub(super) out: u64,
    pub(super) err: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

impl Stream {
    pub(super) fn word(self) -> &'static str {
        match self {
            Stream::Out => "out",
            Stream::Err => "err",
        }
    }
}

/// Reads a line; `None` for what is none of these, such as the rest of a line of a boot that ended.
pub(super) fn parse(line: &str) -> Option<Line> {
    let words: Vec<&str> = line.split(' ').collect();
    let id = |text: &str| text.parse::<u64>().ok();
    Some(match words.as_slice() {
        ["hello", session] | ["hello", session, _] => {
            // BOOT-ID.PID
            let (boot, pid) = session.split_once('.')?;
            (boot.len() == 36 && pid.parse::<u32>().is_ok()).then_some(())?;
            Line::Hello((*session).to_owned())
        }
        ["answer", number, status, ending, begin, end, out, err] => {
            let ending = match *ending {
                "done" => super::Ending::Done,
                "late" => super::Ending::TimedOut,
                "stuck" => super::Ending::Stuck,
                _ => return None,
            };
            let elapsed = end.parse::<f64>().ok()? - begin.parse::<f64>().ok()?;
            let elapsed = Duration::try_from_secs_f64(elapsed).ok()?;
            let (out, err) = (out.parse().ok()?, err.parse().ok()?);
            Line::Answer(id(number)?, Answer { status: status.parse().ok()?, ending, elapsed, out, err })
        }
        ["out", number, text] => Line::Part(id(number)?, Stream::Out, STANDARD.decode(text).ok()?),
        ["err", number, text] => Line::Part(id(number)?, Stream::Err, STANDARD.decode(text).ok()?),
        ["broken", number] => Line::Broken(id(number)?),
        ["end", number] => Line::End(id(number)?),
        _ => return None,
    })
}

/// `command` as one word for printf(1) `%b`: the shell of the guest undoes it without starting a program.
pub(super) fn escape(command: &str) -> String {
    let mut out = String::with_capacity(command.len() * 2);
    for byte in command.bytes() {
        match byte {
            b'\\' | 0..=0x20 | 0x7f.. => out.push_str(&format!("\\0{byte:03o}")),
            _ => out.push(char::from(byte)),
        }
    }
    out
}

/// The request to run `command` for `limit` with `stdin`.
pub(super) fn run(session: &str, id: u64, command: &str, stdin: &[u8], limit: Duration) -> String {
    let input = STANDARD.encode(stdin);
    let line = format!("run {session} {id} {:.3} {} {}\n", limit.as_secs_f64(), input.len(), escape(command));
    if input.is_empty() { line } else { line + &input + "\n" }
}

/// The request for the bytes of a stream from `offset` on.
pub(super) fn more(session: &str, id: u64, stream: Stream, offset: u64) -> String {
    format!("more {session} {id} {} {offset}\n", stream.word())
}
