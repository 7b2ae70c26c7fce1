//! QMP, QEMU's control protocol: JSON lines over a unix socket.
//!
//! QEMU greets, kiln answers `qmp_capabilities`; from then on each command gets one `return` or `error`, and events may
//! stand anywhere between. Reference: <https://www.qemu.org/docs/master/interop/qmp-spec.html>.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A line longer than this is not from QEMU; its longest known answers are some tens of KiB.
const LONGEST_LINE: usize = 16 << 20;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket broke or closed: QEMU is gone or going.
    #[error("the control socket of QEMU closed ({0})")]
    Closed(std::io::Error),
    /// No answer in time.
    #[error("QEMU did not answer {command} within {limit:?}")]
    Timeout {
        /// The command.
        command: String,
        /// The time it had.
        limit: Duration,
    },
    /// A line that is no QMP.
    #[error("QEMU sent a line that is no QMP: {0}")]
    Malformed(String),
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's `desc`.
        reason: String,
    },
}

/// An asynchronous message of QEMU, such as `SHUTDOWN` or `RESET`.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its data, `null` if it has none.
    pub data: Value,
}

/// A control connection, ready for commands.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    events: VecDeque<Event>,
    limit: Duration,
}

impl Qmp {
    /// Connects to the socket at `path` and negotiates; each answer may take `limit`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, Error> {
        Qmp::over(UnixStream::connect(path).map_err(Error::Closed)?, limit)
    }

    /// Negotiates over a connected stream.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn over(stream: UnixStream, limit: Duration) -> Result<Self, Error> {
        let mut qmp = Qmp { stream, buffer: Vec::new(), events: VecDeque::new(), limit };
        let greeting = qmp.message("the greeting", Instant::now() + limit)?;
        if greeting.get("QMP").is_none() {
            return Err(Error::Malformed(greeting.to_string()));
        }
        qmp.execute("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// Sends a command, `arguments` being an object or `null`, and returns its answer. Events on the way are queued.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let mut request = json!({"execute": command});
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        self.stream.write_all(format!("{request}\n").as_bytes()).map_err(Error::Closed)?;
        let end = Instant::now() + self.limit;
        loop {
            let mut message = self.message(command, end)?;
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = message.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(Error::Refused { command: command.to_owned(), reason });
            }
            self.keep_event(message)?;
        }
    }

    /// The next event, waiting up to `limit` for it; `None` when there is none by then.
    ///
    /// # Errors
    /// [`Error::Closed`] or [`Error::Malformed`].
    pub fn event(&mut self, limit: Duration) -> Result<Option<Event>, Error> {
        if self.events.is_empty() {
            match self.message("an event", Instant::now() + limit) {
                Ok(message) => self.keep_event(message)?,
                Err(Error::Timeout { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.events.pop_front())
    }

    /// Ends QEMU at once. A socket that closes in place of an answer is what was asked for.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn quit(&mut self) -> Result<(), Error> {
        match self.execute("quit", Value::Null) {
            Ok(_) | Err(Error::Closed(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn system_powerdown(&mut self) -> Result<(), Error> {
        self.execute("system_powerdown", Value::Null).map(drop)
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn system_reset(&mut self) -> Result<(), Error> {
        self.execute("system_reset", Value::Null).map(drop)
    }

    /// Stops the guest's CPUs.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn stop(&mut self) -> Result<(), Error> {
        self.execute("stop", Value::Null).map(drop)
    }

    /// Lets the guest's CPUs run again.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn cont(&mut self) -> Result<(), Error> {
        self.execute("cont", Value::Null).map(drop)
    }

    /// Sends the processors a non-maskable interrupt.
    ///
    /// # Errors
    /// See [`Error`]; QEMU refuses on machines that have none.
    pub fn inject_nmi(&mut self) -> Result<(), Error> {
        self.execute("inject-nmi", Value::Null).map(drop)
    }

    /// The run state: `running`, `paused`, `shutdown` …
    ///
    /// # Errors
    /// See [`Error`].
    pub fn status(&mut self) -> Result<String, Error> {
        let answer = self.execute("query-status", Value::Null)?;
        answer["status"].as_str().map(str::to_owned).ok_or_else(|| Error::Malformed(answer.to_string()))
    }

    /// Writes a picture of the screen as PNG to `path`.
    ///
    /// # Errors
    /// See [`Error`]; QEMU refuses when the machine has no screen.
    pub fn screendump(&mut self, path: &Path) -> Result<(), Error> {
        self.execute("screendump", json!({"filename": path.to_string_lossy(), "format": "png"})).map(drop)
    }

    fn keep_event(&mut self, mut message: Value) -> Result<(), Error> {
        let Some(name) = message["event"].as_str().map(str::to_owned) else {
            return Err(Error::Malformed(message.to_string()));
        };
        self.events.push_back(Event { name, data: message["data"].take() });
        Ok(())
    }

    /// The next line as JSON.
    fn message(&mut self, what: &str, end: Instant) -> Result<Value, Error> {
        let begin = Instant::now();
        loop {
            if let Some(at) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return match serde_json::from_slice(&line) {
                    Ok(value @ Value::Object(_)) => Ok(value),
                    _ => Err(Error::Malformed(String::from_utf8_lossy(&line).trim_end().to_owned())),
                };
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(Error::Malformed(format!("a line of more than {LONGEST_LINE} bytes")));
            }
            let left = end.saturating_duration_since(Instant::now());
            // Zero would mean "for ever" to the socket.
            let step = left.max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(step)).map_err(Error::Closed)?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Error::Closed(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.buffer.extend(chunk.iter().take(count)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if left.is_zero() {
                        let limit = end.saturating_duration_since(begin);
                        return Err(Error::Timeout { command: what.to_owned(), limit });
                    }
                }
                Err(error) => return Err(Error::Closed(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    /// A QEMU that says `lines` one after the other, one per command it reads, the first unasked.
    fn fake(lines: &'static [&'static str]) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut chunk = [0; 1024];
            for line in lines {
                theirs.write_all(line.as_bytes()).unwrap();
                theirs.write_all(b"\n").unwrap();
                if theirs.read(&mut chunk).unwrap_or(0) == 0 {
                    return;
                }
            }
        });
        ours
    }

    #[test]
    fn events_between_command_and_answer_are_queued_in_order() {
        let stream = fake(&[
            GREETING,
            r#"{"return": {}}"#,
            "{\"event\": \"RESET\"}\n{\"event\": \"STOP\", \"data\": {\"a\": 1}}\n{\"return\": {\"status\": \"paused\"}}",
        ]);
        let mut qmp = Qmp::over(stream, Duration::from_secs(20)).unwrap();
        assert_eq!(qmp.status().unwrap(), "paused");
        assert_eq!(qmp.event(Duration::ZERO).unwrap().unwrap().name, "RESET");
        let stop = qmp.event(Duration::ZERO).unwrap().unwrap();
        assert_eq!((stop.name.as_str(), &stop.data), ("STOP", &json!({"a": 1})));
        assert_eq!(qmp.event(Duration::ZERO).unwrap(), None);
    }

    #[test]
    fn a_refused_command_gives_the_reason() {
        let stream =
            fake(&[GREETING, r#"{"return": {}}"#, r#"{"error": {"class": "x", "desc": "no screen"}}"#]);
        let error = Qmp::over(stream, Duration::from_secs(20)).unwrap().stop().unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused stop: no screen");
    }

    #[test]
    fn silence_ends_in_a_timeout_and_rubbish_in_an_error() {
        let (silent, _kept) = UnixStream::pair().unwrap();
        let error = Qmp::over(silent, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        for rubbish in ["hello", "[]", "7", "{\"QMP\"", "{}"] {
            let stream = fake(Box::leak(Box::new([rubbish])));
            let error = Qmp::over(stream, Duration::from_secs(20)).unwrap_err();
            assert!(matches!(error, Error::Malformed(_)), "{rubbish}: {error}");
        }
        let error = Qmp::over(fake(&[]), Duration::from_secs(20)).unwrap_err();
        assert!(matches!(error, Error::Closed(_)), "{error}");
    }
}
