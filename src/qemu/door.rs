//! A root shell in a guest, over a virtio-serial port that leads nowhere unless the machine was given [`credentials`].
//!
//! The unit they make starts as soon as systemd does: it waits for no mount, no target and no bus, is not stopped by emergency mode
//! or a shutdown, and comes back when it is killed. So a boot that hangs can be looked at. Its script is `door/door.sh`.
//!
//! ```text
//! guest: hello SESSION                                 when the script starts, and as the answer to `hello NONCE`
//! kiln:  run SESSION ID SECONDS BYTES COMMAND          COMMAND is one word, escaped for printf %b
//!        BASE64                                        stdin, BYTES of it; no line if 0
//! guest: answer ID STATUS ENDING BEGIN END OUT ERR     done, late or stuck; seconds of uptime; bytes written
//!        out ID BASE64                                 the first 256 KiB of stdout
//!        err ID BASE64                                 and stderr
//!        end ID
//! kiln:  more SESSION ID out OFFSET                    the next ones
//! ```
//!
//! A session is one run of the script: boot id and process id. Requests of another session are passed over by the guest, so nothing
//! that a guest did not read before it went down is done by the next boot. A `hello` of a new session fails the command in flight.
//!
//! Each command has a cgroup of its own. When its time is over, all in it is killed (`cgroup.kill`, Linux 5.14), also what put itself
//! into the background; else that lives on. Output goes to files, so a daemon that keeps them open holds nothing up.

mod files;
mod wait;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::console::Console;
use crate::error::{Failure, Kind};
use wire::{Answer, Line, Stream};

/// The virtio-serial port of the door.
pub const PORT: &str = "kiln.door";

const UNIT: &str = "[Unit]
Description=Let kiln in
DefaultDependencies=no
IgnoreOnIsolate=yes
StartLimitIntervalSec=0
[Service]
Type=exec
ExecStart=/bin/sh /run/credentials/@system/kiln.door
Restart=always
RestartSec=1
Delegate=yes
OOMPolicy=continue
OOMScoreAdjust=-900
TasksMax=infinity
IgnoreSIGPIPE=no
Environment=HOME=/root TERM=dumb LANG=C.UTF-8 SYSTEMD_PAGER=cat SYSTEMD_COLORS=0 PAGER=cat
StandardOutput=null
StandardError=null
";

/// The script mounts it itself, which is quicker; the unit keeps systemd from stopping it at shutdown, when the command that orders
/// the shutdown still has its files there.
const MOUNT: &str = "[Unit]
Description=Output of what kiln runs
DefaultDependencies=no
[Mount]
What=kiln-door
Where=/run/door/io
Type=tmpfs
Options=size=64m,mode=0700
";

const DROPIN: &str = "[Unit]
Wants=kiln-door.service
";

const SCRIPT: &str = include_str!("door/door.sh");

/// The credentials that make a machine open the door.
pub fn credentials() -> Vec<(String, Vec<u8>)> {
    [
        ("systemd.extra-unit.kiln-door.service", UNIT),
        ("systemd.extra-unit.run-door-io.mount", MOUNT),
        ("systemd.unit-dropin.sysinit.target~kiln-door", DROPIN),
        ("kiln.door", SCRIPT),
    ]
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .to_vec()
}

/// How many bytes of each stream an [`Output`] holds: the first and the last half of more.
pub const OUTPUT: u64 = 1 << 20;
/// The bytes that one answer carries of a stream; as in door.sh.
const CHUNK: u64 = 256 << 10;
/// The longest command; longer ones are a file to [`Door::put`] and run.
const LONGEST: usize = 128 << 10;
/// What a guest may take beyond the limit of a command, to kill it and to answer, on a busy host.
const GRACE: Duration = Duration::from_secs(30);
/// How often a guest that does not answer is greeted again.
const GREETING: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(100);

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself.
    Done,
    /// It was killed when its time was over.
    TimedOut,
    /// It hangs in the kernel and did not even die.
    Stuck,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit status, 128 + N after signal N.
    pub status: i32,
    /// What it wrote to stdout; of more than [`OUTPUT`] bytes the middle is left out, with a line that says so.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr, likewise.
    pub stderr: Vec<u8>,
    /// Its time by the guest's clock, to 10 ms.
    pub elapsed: Duration,
    /// How it ended.
    pub ending: Ending,
}

impl Output {
    /// Whether it ended by itself with status 0.
    pub fn is_good(&self) -> bool {
        self.status == 0 && self.ending == Ending::Done
    }

    /// Stdout as text, without the line ends behind it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// How it ended and what it said last, for a person.
    pub fn describe(&self) -> String {
        let how = match self.ending {
            Ending::Done => format!("exit status {}", self.status),
            Ending::TimedOut => format!("killed after {:.1} s", self.elapsed.as_secs_f64()),
            Ending::Stuck => "not to be killed: it hangs in the kernel".to_owned(),
        };
        let mut text = how;
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            let lines = String::from_utf8_lossy(bytes);
            let lines: Vec<&str> = lines.trim_end().lines().collect();
            if !lines.is_empty() {
                let tail = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default();
                text += &format!("\n{name}:\n{}", tail.join("\n"));
            }
        }
        text
    }
}

/// Fails what is in flight at once: for whoever sees that the machine is lost before the door can.
#[derive(Debug, Clone, Default)]
pub struct Breaker(Arc<Mutex<Option<String>>>);

impl Breaker {
    /// No command will be answered, because of `why`, until the guest's shell says that it is there anew.
    pub fn trip(&self, why: impl Into<String>) {
        *self.lock() = Some(why.into());
    }

    /// Commands may be answered again, if it was `why` that kept them from it.
    pub fn mend(&self, why: &str) {
        let mut tripped = self.lock();
        if tripped.as_deref() == Some(why) {
            *tripped = None;
        }
    }

    /// Why no command will be answered, if so.
    pub fn tripped(&self) -> Option<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The near end of a door. Commands of several threads wait for each other.
#[derive(Debug)]
pub struct Door {
    port: Arc<Console>,
    /// Held by who speaks.
    turn: Mutex<()>,
    /// Never held for long.
    wire: Mutex<Wire>,
    breaker: Breaker,
}

#[derive(Debug, Default)]
struct Wire {
    session: Option<String>,
    /// The boot that is over: its last words count no more.
    gone: Option<String>,
    last: u64,
}

fn boot_of(session: &str) -> &str {
    session.split('.').next().unwrap_or_default()
}

/// A command in a message.
fn short(command: &str) -> String {
    let line = command.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; ");
    match line.char_indices().nth(120) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line,
    }
}

/// What was asked of a guest, and until when it may be answered.
struct Request<'r> {
    session: String,
    id: u64,
    /// For messages.
    what: &'r str,
    end: Instant,
}

/// What a guest said to a request.
#[derive(Default)]
struct Reply {
    answer: Option<Answer>,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Door {
    /// A door over a port named [`PORT`] of a machine that has [`credentials`].
    pub fn new(port: Arc<Console>) -> Self {
        Door { port, turn: Mutex::default(), wire: Mutex::default(), breaker: Breaker::default() }
    }

    /// What fails the door from outside.
    pub fn breaker(&self) -> Breaker {
        self.breaker.clone()
    }

    /// The boot id of the guest that answered last (/proc/sys/kernel/random/boot_id).
    pub fn boot(&self) -> Option<String> {
        self.wire().session.as_deref().map(|session| boot_of(session).to_owned())
    }

    /// Waits until a guest answers; at once if one did.
    ///
    /// # Errors
    /// [`Kind::Test`] when none does within `limit` or the machine ends.
    pub fn connect(&self, limit: Duration) -> Result<(), Failure> {
        let end = Instant::now() + limit;
        let _turn = self.turn(end)?;
        self.session(end).map(drop)
    }

    /// The present boot is over: what is in flight fails, and the next command waits for another boot.
    pub fn forget(&self) {
        let mut wire = self.wire();
        if let Some(session) = wire.session.take() {
            wire.gone = Some(boot_of(&session).to_owned());
        }
    }

    /// Runs `command` with sh as root, in `/`, its stdin empty, and kills it and all it started after `limit`. A guest that has not
    /// opened the door yet is waited for as long.
    ///
    /// # Errors
    /// [`Kind::Test`] when the machine goes down, reboots or stops answering; a failing command is no error.
    pub fn run(&self, command: &str, limit: Duration) -> Result<Output, Failure> {
        self.run_with(command, &[], limit)
    }

    /// As [`Door::run`], with `stdin`.
    ///
    /// # Errors
    /// As [`Door::run`], and [`Kind::Input`] for a command that no shell takes.
    pub fn run_with(&self, command: &str, stdin: &[u8], limit: Duration) -> Result<Output, Failure> {
        if command.len() > LONGEST || command.contains('\0') {
            let what = format!("the command `{}` is longer than 128 KiB or has a zero byte", short(command));
            return Err(Failure::new(Kind::Input, what).hint("copy it as a file, then run that"));
        }
        let open = Instant::now() + limit;
        let _turn = self.turn(open)?;
        let what = format!("it ran `{}`", short(command));
        let mut request = self.request(open, &what)?;
        request.end = Instant::now() + limit + GRACE;
        self.send(&wire::run(&request.session, request.id, command, stdin, limit), &what)?;
        let Reply { answer, mut out, mut err } = self.reply(&request)?;
        let answer = answer.ok_or_else(|| self.failure(&what, "sent an answer that makes no sense"))?;
        self.rest(&request, Stream::Out, answer.out, &mut out)?;
        self.rest(&request, Stream::Err, answer.err, &mut err)?;
        Ok(Output {
            status: answer.status,
            stdout: out,
            stderr: err,
            elapsed: answer.elapsed,
            ending: answer.ending,
        })
    }

    /// As [`Door::run`], and the command must succeed.
    ///
    /// # Errors
    /// Also [`Kind::Test`] with what it said when it does not.
    pub fn succeed(&self, command: &str, limit: Duration) -> Result<Output, Failure> {
        let output = self.run(command, limit)?;
        if output.is_good() {
            return Ok(output);
        }
        let what = format!("`{}` failed on {}", short(command), self.port.name());
        Err(Failure::new(Kind::Test, what).hint(output.describe()))
    }

    /// Writes all that is only in memory to the disks.
    ///
    /// # Errors
    /// As [`Door::succeed`].
    pub fn sync(&self, limit: Duration) -> Result<(), Failure> {
        self.succeed("sync", limit).map(drop)
    }

    /// Orders the machine to go down; it does so on its own time.
    ///
    /// # Errors
    /// As [`Door::succeed`].
    pub fn poweroff(&self) -> Result<(), Failure> {
        self.order("poweroff")
    }

    /// Orders the machine to boot anew; [`Door::connect`] then waits for the next boot.
    ///
    /// # Errors
    /// As [`Door::succeed`].
    pub fn reboot(&self) -> Result<(), Failure> {
        self.order("reboot")
    }

    fn order(&self, what: &str) -> Result<(), Failure> {
        self.succeed(&format!("systemctl --no-block {what}"), Duration::from_secs(60))?;
        self.forget();
        Ok(())
    }

    /// Makes the kernel panic, which drops what was not written to the disks. With `panic=10` on its command line, as kiln's images
    /// have it, it boots anew after ten seconds, unless QEMU is told otherwise (`-no-reboot`).
    ///
    /// # Errors
    /// As [`Door::run`].
    pub fn crash(&self) -> Result<(), Failure> {
        let end = Instant::now() + Duration::from_secs(60);
        let _turn = self.turn(end)?;
        let request = self.request(end, "it was told to crash")?;
        self.send(&format!("crash {} {}\n", request.session, request.id), request.what)?;
        self.reply(&request)?;
        self.forget();
        Ok(())
    }

    /// The bytes of a stream that the answer had not; of a large one the first and the last half of [`OUTPUT`].
    fn rest(
        &self,
        first: &Request<'_>,
        stream: Stream,
        size: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        let tail = size.saturating_sub(OUTPUT / 2);
        let mut offset = bytes.len() as u64;
        while offset < size {
            if size > OUTPUT && (OUTPUT / 2..tail).contains(&offset) {
                bytes.extend(format!("\n[… {} bytes left out …]\n", tail - offset).into_bytes());
                offset = tail;
            }
            let end = Instant::now() + GRACE;
            let request = Request { session: first.session.clone(), id: self.id(), what: first.what, end };
            self.send(&wire::more(&request.session, request.id, stream, offset), request.what)?;
            let reply = self.reply(&request)?;
            let mut part = if stream == Stream::Out { reply.out } else { reply.err };
            // A daemon may write on, or empty the file.
            part.truncate(usize::try_from(size - offset).unwrap_or(usize::MAX));
            if part.is_empty() {
                break;
            }
            offset += part.len() as u64;
            bytes.append(&mut part);
        }
        Ok(())
    }

    fn id(&self) -> u64 {
        let mut wire = self.wire();
        wire.last += 1;
        wire.last
    }

    /// Something to ask the guest, once it is there.
    fn request<'r>(&self, end: Instant, what: &'r str) -> Result<Request<'r>, Failure> {
        let session = self.session(end)?;
        Ok(Request { session, id: self.id(), what, end })
    }

    /// The session of the guest's shell, waited for until `end`.
    fn session(&self, end: Instant) -> Result<String, Failure> {
        let begin = Instant::now();
        // What was said since the last command: perhaps another boot's hello.
        while let Some(line) = self.port.next_line(Duration::ZERO) {
            self.greeted(&line);
        }
        let mut greet = begin;
        loop {
            crate::sys::check_interrupt()?;
            let session = self.wire().session.clone();
            if let Some(session) = session {
                self.check("the door was to be used")?;
                return Ok(session);
            }
            if self.port.is_closed() {
                return Err(self.gone("it was waited for"));
            }
            let now = Instant::now();
            if now >= end {
                let what = format!(
                    "{} did not answer within {:.0} s",
                    self.port.name(),
                    (end.saturating_duration_since(begin)).as_secs_f64()
                );
                return Err(Failure::new(Kind::Test, what));
            }
            if now >= greet {
                greet = now + GREETING;
                self.send("hello kiln\n", "it was greeted")?;
            }
            if let Some(line) = self.port.next_line(STEP.min(end.saturating_duration_since(now))) {
                self.greeted(&line);
            }
        }
    }

    /// Takes a line if it is a hello.
    fn greeted(&self, line: &str) {
        if let Some(Line::Hello(session)) = wire::parse(line) {
            self.take(session);
        }
    }

    /// Takes the session of a hello, which may be the one of before.
    fn take(&self, session: String) {
        let mut wire = self.wire();
        if wire.gone.as_deref() != Some(boot_of(&session)) && wire.session.as_ref() != Some(&session) {
            wire.session = Some(session);
            *self.breaker.lock() = None;
        }
    }

    /// Reads up to the end of the reply.
    fn reply(&self, request: &Request<'_>) -> Result<Reply, Failure> {
        let (id, what) = (request.id, request.what);
        let mut reply = Reply::default();
        loop {
            crate::sys::check_interrupt()?;
            if self.wire().session.as_ref() != Some(&request.session) {
                return Err(self.failure(what, "was started anew"));
            }
            let Some(line) = self.port.next_line(STEP) else {
                self.check(what)?;
                if self.port.is_closed() {
                    return Err(self.gone(what));
                }
                if Instant::now() > request.end {
                    return Err(self.failure(what, "did not answer in time, nor did it give up by itself"));
                }
                continue;
            };
            match wire::parse(&line) {
                Some(Line::Hello(session)) => self.take(session),
                Some(Line::Answer(number, got)) if number == id => reply.answer = Some(got),
                Some(Line::Part(number, Stream::Out, bytes)) if number == id => reply.out = bytes,
                Some(Line::Part(number, Stream::Err, bytes)) if number == id => reply.err = bytes,
                Some(Line::Broken(number)) if number == id => {
                    return Err(self.failure(what, "got the request in part or could not store it"));
                }
                Some(Line::End(number)) if number == id => return Ok(reply),
                // Rubbish, or the late answer to a request that was given up.
                _ => {}
            }
        }
    }

    /// Sends a request; the line end before it ends what may stand there in part.
    fn send(&self, text: &str, what: &str) -> Result<(), Failure> {
        self.port.send(format!("\n{text}").as_bytes()).map_err(|error| self.gone(what).because(error))
    }

    fn check(&self, what: &str) -> Result<(), Failure> {
        match self.breaker.tripped() {
            Some(why) => Err(self.failure(what, &format!("is lost ({why})"))),
            None => Ok(()),
        }
    }

    fn gone(&self, what: &str) -> Failure {
        self.failure(what, "is closed, for the machine is gone")
    }

    fn failure(&self, what: &str, why: &str) -> Failure {
        Failure::new(Kind::Test, format!("{} {why} while {what}", self.port.name()))
    }

    /// The right to speak, waited for until `end`.
    fn turn(&self, end: Instant) -> Result<MutexGuard<'_, ()>, Failure> {
        loop {
            crate::sys::check_interrupt()?;
            match self.turn.try_lock() {
                Ok(turn) => return Ok(turn),
                Err(TryLockError::Poisoned(turn)) => return Ok(turn.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => {
                    return Err(self.failure("another command was to be run", "was still busy with one"));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
