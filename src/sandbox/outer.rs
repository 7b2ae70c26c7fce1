//! The half of a sandbox that stays outside: `kiln dev sandbox PLAN`, a process with one thread.
//!
//! It makes the namespaces, has the user namespace's map written by a child that stayed outside of it (only a process out there may
//! map a number that is not its own), makes process 1, and waits for it. When its stdin, a pipe, is closed, kiln wants the end: process 1
//! is killed, and this process ends after it, so that nothing runs any more once it is gone.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use fs_err as fs;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitpid,
};
use rustix::thread::UnshareFlags;

use super::{ID, Plan, Report, inner, outside_id};
use crate::sys;

/// A step of the set-up that the kernel refused.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) what: String,
    pub(super) error: io::Error,
}

impl Refused {
    pub(super) fn report(&self) -> Report {
        // ENOSPC of unshare(2) is a limit on the number of namespaces.
        let codes = [libc::EPERM, libc::EACCES, libc::ENOSPC, libc::EUSERS];
        Report::Setup {
            what: self.what.clone(),
            error: self.error.to_string(),
            forbidden: self.error.raw_os_error().is_some_and(|code| codes.contains(&code)),
        }
    }
}

/// Names the step for the error of whoever takes it.
pub(super) trait Step<T> {
    fn step(self, what: impl Display) -> Result<T, Refused>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: impl Display) -> Result<T, Refused> {
        self.map_err(|error| Refused { what: what.to_string(), error: error.into() })
    }
}

/// Adds `report` to the file that kiln reads: the first line counts.
pub(super) fn tell(file: &mut File, report: &Report) {
    // There is nobody to tell when this fails; kiln then finds no report and says so.
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = file.write_all(&line);
    }
}

/// The whole life of `kiln dev sandbox PLAN`. What it has to say is in the plan's report.
pub fn main(plan: &Path) -> ExitCode {
    let read = || -> io::Result<(Plan, File)> {
        let plan: Plan = serde_json::from_slice(&fs::read(plan)?)?;
        let report = fs::OpenOptions::new().append(true).open(&plan.report)?.into_file();
        Ok((plan, report))
    };
    // Without a plan there is no report to write into: kiln finds an empty one.
    let Ok((plan, mut report)) = read() else { return ExitCode::FAILURE };
    match outer(&plan, &report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refused) => {
            tell(&mut report, &refused.report());
            ExitCode::FAILURE
        }
    }
}

fn outer(plan: &Plan, report: &File) -> Result<(), Refused> {
    sys::inherit_only_streams().step("closing inherited files")?;
    if rustix::process::geteuid().is_root() {
        match rustix::thread::set_thread_groups(&[]) {
            // Root of a user namespace that may not, like any ordinary user; the groups are unknown inside then.
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error).step("leaving root's groups"),
        }
    }
    let mut flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP
        | UnshareFlags::NEWTIME;
    if !plan.network {
        flags |= UnshareFlags::NEWNET;
    }
    let writer = Writer::start().step("starting a helper process")?;
    sys::unshare(flags).step("making namespaces")?;
    writer.write().step("mapping the user")?;
    if plan.uptime > 0 {
        let text = format!("monotonic {0} 0\nboottime {0} 0\n", plan.uptime);
        fs::write("/proc/self/timens_offsets", text).step("setting the time since boot")?;
    }
    let watched = pidfd_open(getpid(), PidfdFlags::empty()).step("watching over this process")?;
    let own = report.try_clone().step("sharing the report")?;
    let child = sys::fork(move || inner::main(plan, own, &watched)).step("making process 1")?;
    let ended = pidfd_open(child, PidfdFlags::empty()).step("watching over process 1")?;
    let stdin = io::stdin();
    loop {
        // A pipe whose writer is gone reports HUP, which is always asked for.
        let mut watched = [PollFd::new(&ended, PollFlags::IN), PollFd::new(&stdin, PollFlags::empty())];
        match poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).step("waiting for process 1"),
            Ok(_) => {}
        }
        let [ended_now, asked] = watched.map(|fd| !fd.revents().is_empty());
        if asked && !ended_now {
            // It may have ended in between; the wait below tells.
            let _ = pidfd_send_signal(&ended, Signal::KILL);
        }
        if asked || ended_now {
            break;
        }
    }
    // Waiting for process 1 is waiting for all: the kernel lets it go when its pid namespace is empty.
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).step("waiting for process 1"),
            Ok(_) => return Ok(()),
        }
    }
}

/// A child outside of the user namespace that writes its map.
struct Writer {
    pid: Pid,
    stream: UnixStream,
}

impl Writer {
    fn start() -> io::Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        let of = getpid();
        let pid = sys::fork(move || {
            let mut stream = theirs;
            let written = set_parent_process_death_signal(Some(Signal::KILL))
                .map_err(io::Error::from)
                .and_then(
                    |()| if getppid() == Some(of) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) },
                )
                .and_then(|()| stream.read_exact(&mut [0]))
                .and_then(|()| map(of));
            let code = written.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
            i32::from(stream.write_all(&code.to_le_bytes()).is_err())
        })?;
        Ok(Writer { pid, stream })
    }

    fn write(mut self) -> io::Result<()> {
        let mut code = [0; 4];
        self.stream.write_all(b".")?;
        self.stream.read_exact(&mut code)?;
        waitpid(Some(self.pid), WaitOptions::empty())?;
        match i32::from_le_bytes(code) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

/// user_namespaces(7): setgroups must be given up before an ordinary user may map a group.
fn map(pid: Pid) -> io::Result<()> {
    let (user, group) = outside_id();
    let folder = format!("/proc/{}", pid.as_raw_nonzero());
    fs::write(format!("{folder}/setgroups"), "deny")?;
    fs::write(format!("{folder}/uid_map"), format!("{ID} {user} 1"))?;
    fs::write(format!("{folder}/gid_map"), format!("{ID} {group} 1"))
}
