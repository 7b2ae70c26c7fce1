//! A running child: started by one thread that never ends, killed with its whole group when dropped.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fs_err as fs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::{Command, Error, STDERR_TAIL};

/// How often a wait looks at the Ctrl-C flag.
const INTERRUPT_STEP: Duration = Duration::from_millis(100);
/// How long a supervised child may take to end by itself; the kernel may have gigabytes to take back from what it looks after.
const ORDERLY: Duration = Duration::from_secs(10);

/// A started program. Dropping it kills its process group and waits for it.
#[derive(Debug)]
pub struct Child {
    program: String,
    line: String,
    process: std::process::Child,
    status: Option<ExitStatus>,
    stderr: Arc<Mutex<VecDeque<u8>>>,
    reader: Option<JoinHandle<()>>,
    /// Closing it asks a supervised child to end.
    stdin: Option<std::process::ChildStdin>,
}

type Job = (std::process::Command, Sender<std::io::Result<std::process::Child>>);

/// The thread that starts all children. It ends with the process only, as PR_SET_PDEATHSIG needs.
fn starter() -> &'static Sender<Job> {
    static STARTER: OnceLock<Sender<Job>> = OnceLock::new();
    STARTER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                // A caller that gave up waiting drops the receiver; the child then dies in the guard below.
                if let Err(unwanted) = answer.send(command.spawn())
                    && let Ok(mut child) = unwanted.0
                {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        });
        sender
    })
}

impl Child {
    /// Starts `command`; with `piped`, its stdout is returned for reading.
    pub(super) fn start(
        command: &Command,
        piped: bool,
    ) -> Result<(Self, Option<std::process::ChildStdout>), Error> {
        let stdout = match &command.stdout {
            _ if piped => Stdio::piped(),
            Some(path) => fs::File::create(path).map_err(|e| Self::io_error(command, e))?.into_file().into(),
            None => Stdio::null(),
        };
        let stdin = if command.input.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut child = Self::with(command, stdin, stdout, Stdio::piped())?;
        if let (Some(bytes), Some(mut pipe)) = (command.input.clone(), child.stdin.take()) {
            // In a thread, since a child may write before it reads; one that reads nothing ends all the same.
            std::thread::spawn(move || {
                let _ = pipe.write_all(&bytes);
            });
        }
        let stdout = child.process.stdout.take();
        Ok((child, stdout))
    }

    /// See [`Command::supervised`].
    pub(super) fn supervised(command: &Command, out: std::os::fd::OwnedFd) -> Result<Self, Error> {
        let stderr = out.try_clone().map_err(|e| Self::io_error(command, e))?;
        Self::with(command, Stdio::piped(), out.into(), stderr.into())
    }

    fn io_error(command: &Command, source: std::io::Error) -> Error {
        Error::Io { program: command.tool.name.clone(), source }
    }

    fn with(command: &Command, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Result<Self, Error> {
        let tool = &command.tool;
        let line = command.line();
        tracing::debug!(command = line, "start");
        let io_error = |source| Self::io_error(command, source);
        let mut words = tool.loader.iter().cloned().chain([tool.program.clone().into_os_string()]);
        let first = words.next().unwrap_or_default();
        #[allow(clippy::disallowed_methods)] // this is the one door
        let mut std_command = std::process::Command::new(first);
        std_command
            .args(words)
            .args(&command.args)
            .env_clear()
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .envs(std::env::vars_os().filter(|_| command.as_person))
            .envs(command.env.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr);
        if let Some(folder) = &command.folder {
            std_command.current_dir(folder);
        }
        crate::sys::die_with_parent(&mut std_command);
        let (answer, started) = channel();
        let gone = || io_error(std::io::Error::other("the thread that starts children is gone"));
        starter().send((std_command, answer)).map_err(|_| gone())?;
        let mut process = started.recv().map_err(|_| gone())?.map_err(|source| {
            if source.kind() == std::io::ErrorKind::NotFound && !tool.program.exists() {
                Error::NotFound { program: tool.name.clone(), path: tool.program.clone() }
            } else {
                Error::Start { program: tool.name.clone(), line: line.clone(), source }
            }
        })?;
        let stderr = Arc::new(Mutex::new(VecDeque::new()));
        let reader = process.stderr.take().map(|mut pipe| {
            let kept = Arc::clone(&stderr);
            std::thread::spawn(move || {
                let mut chunk = [0; 1024];
                while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                    let mut kept = kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    kept.extend(chunk.iter().take(count));
                    let excess = kept.len().saturating_sub(STDERR_TAIL);
                    kept.drain(..excess);
                }
            })
        });
        let program = tool.name.clone();
        let stdin = process.stdin.take();
        Ok(Child { program, line, process, status: None, stderr, reader, stdin })
    }

    /// The process id, for tests and for a person with a debugger.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The command line it was started with, for pasting.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// The end of its stderr so far, at most [`STDERR_TAIL`] bytes.
    pub fn stderr(&self) -> String {
        let kept = self.stderr.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until it ends, at most `limit`; `None` when the time is up. It is left running then.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after Ctrl-C, [`Error::Io`] when the kernel refuses to wait.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>, Error> {
        let io_error = |program: &str, source| Error::Io { program: program.to_owned(), source };
        let end = Instant::now().checked_add(limit);
        let pidfd = match self.status {
            Some(status) => return Ok(Some(status)),
            None => pidfd_open(self.pid(), PidfdFlags::empty())
                .map_err(|source| io_error(&self.program, source.into()))?,
        };
        loop {
            let left = end.map_or(INTERRUPT_STEP, |end| end.saturating_duration_since(Instant::now()));
            let step = Timespec::try_from(left.min(INTERRUPT_STEP)).unwrap_or_default();
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&step)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return self.reap().map(Some),
                Err(source) => return Err(io_error(&self.program, source.into())),
            }
            if crate::sys::interrupted() {
                return Err(Error::Interrupted { program: self.program.clone() });
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// Waits for success; kills it when `limit` passes first.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn finish(&mut self, limit: Option<Duration>) -> Result<(), Error> {
        match self.wait(limit.unwrap_or(Duration::MAX)) {
            Ok(Some(status)) => self.judge(status),
            Ok(None) => {
                self.kill();
                Err(Error::Timeout {
                    program: self.program.clone(),
                    limit: limit.unwrap_or(Duration::MAX),
                    stderr: self.stderr(),
                    line: self.line.clone(),
                })
            }
            Err(error) => {
                self.kill();
                Err(error)
            }
        }
    }

    /// Turns an exit status into the error it stands for.
    ///
    /// # Errors
    /// [`Error::Exit`] or [`Error::Signal`], unless the status is success.
    pub fn judge(&self, status: ExitStatus) -> Result<(), Error> {
        let (program, stderr, line) = (self.program.clone(), self.stderr(), self.line.clone());
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(()),
            (Some(code), _) => Err(Error::Exit { program, code, stderr, line }),
            (None, signal) => Err(Error::Signal { program, signal: signal.unwrap_or(0), stderr, line }),
        }
    }

    /// Kills its process group with SIGKILL and waits for it. Does nothing once it has ended. A supervised child is asked first.
    pub fn kill(&mut self) {
        if self.status.is_none() && self.stdin.take().is_some() {
            self.give_time();
        }
        if self.status.is_none() {
            // The answer does not matter: the process may have ended by itself in between.
            let _ = self.reap();
        }
    }

    /// Waits until it has ended by itself, Ctrl-C or not: that may be the reason why it should.
    fn give_time(&self) {
        let Ok(pidfd) = pidfd_open(self.pid(), PidfdFlags::empty()) else { return };
        let end = Instant::now() + ORDERLY;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).unwrap_or_default();
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                _ => return,
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Ends what is left of the group, then collects the child. The group goes first: as long as the child is not
    /// collected, its number cannot be given to a stranger.
    fn reap(&mut self) -> Result<ExitStatus, Error> {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let status =
            self.process.wait().map_err(|source| Error::Io { program: self.program.clone(), source })?;
        self.status = Some(status);
        if let Some(reader) = self.reader.take() {
            // It only fails if it panicked; then the tail is what it is.
            let _ = reader.join();
        }
        tracing::debug!(program = self.program, %status, "end");
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
