//! A sandbox: a program that sees nothing of the host but its kernel, and can touch nothing but two folders.
//!
//! ```text
//! kiln ── exec ──> kiln dev sandbox PLAN     "outer": makes the namespaces, waits         [outer]
//!                    └── process 1           "inner": mounts, drops all rights, watches   [inner], [mounts], [watch]
//!                          └── the program   no rights, filtered syscalls                 [filter]
//! ```
//!
//! What is inside, and nothing else:
//!
//! | path | what |
//! |---|---|
//! | `/` | the folder [`Plan::root`], read-only |
//! | `/build`, `/tmp` | the two folders that can be written |
//! | `/inputs/NAME` | [`Plan::inputs`], read-only |
//! | `/dev` | null zero full random urandom, shm (64 MiB), fd and the standard streams |
//! | `/proc` | of the sandbox's own processes |
//!
//! - *User.* A user namespace of its own, in which the program is user and group 1000 ([`ID`]). For an ordinary user that is they
//!   themselves outside; for root it is a number that nobody has ([`outside_id`]), so that nothing inside is ever the host's root.
//! - *Rights.* No capability in any set, `no_new_privs`, an empty session keyring, no further user namespaces, and a filter that knows
//!   only the sockets of the network namespace: AF_VSOCK, which no namespace holds back, would reach the host of a virtual machine.
//! - *Namespaces.* Mount, pid, ipc, uts (host name `kiln`), network (loopback is down: there is nobody to talk to), cgroup and time.
//!   [`Plan::network`] leaves the network out; only fetches whose result has a known digest ask for it.
//! - *Limits.* See [`Bounds`]. There is no cgroup: an ordinary user has no writable one outside a desktop session, and two ways would be
//!   twice the code for the same promise. Processes are counted by RLIMIT_NPROC, exact in a user namespace since Linux 5.14; memory and
//!   disk are measured by process 1, which the program cannot stop, and one process alone is held by RLIMIT_DATA and RLIMIT_FSIZE at
//!   once. Memory that would count for nobody (memfd, System V segments) is refused by the filter. /build lies on the store's disk, not
//!   in a tmpfs: kernels need gigabytes, and memory is scarcer than disk.
//! - *The end.* Process 1 ends when the program does, and the kernel then kills all that is left of the pid namespace. It ends as well
//!   when "outer" does, and that when kiln does, in any way. Mounts exist in the namespace only and go with it.
//!
//! namespaces(7), user_namespaces(7), pid_namespaces(7), capabilities(7), seccomp(2).

mod filter;
mod inner;
mod mounts;
mod outer;
mod refusal;
mod terminal;
mod watch;

pub use outer::main;
pub(crate) use refusal::hints;
pub use terminal::enter;

use std::collections::BTreeMap;
use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Kind};
use crate::exec::{Child, Tool};
use crate::sys;

/// User and group of the program, seen from inside.
pub const ID: u32 = 1000;
/// Where [`Plan::build`] is, seen from inside.
pub const BUILD: &str = "/build";

/// All that a sandbox is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Folder that becomes `/`. It has the empty folders build, dev, inputs, proc and tmp.
    pub root: PathBuf,
    /// Folder that becomes /build; it belongs to kiln's user, or to [`outside_id`] when that is root.
    pub build: PathBuf,
    /// The same for /tmp.
    pub tmp: PathBuf,
    /// Name below /inputs to file or folder.
    pub inputs: BTreeMap<String, PathBuf>,
    /// Absolute path of a file of the root to the file that covers it: resolv.conf for those with the network.
    pub covers: BTreeMap<String, PathBuf>,
    /// Program, by absolute path inside, and its arguments. It starts in /build.
    pub command: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// Whether it has the host's network.
    pub network: bool,
    /// Whether stdout is a terminal that it shall have as its own, for [`enter`].
    pub terminal: bool,
    /// Processors that it may use, counted from the first that kiln may use.
    pub cores: usize,
    /// Its umask.
    pub umask: u32,
    /// Seconds that its clocks of time since boot are ahead of the host's.
    pub uptime: u64,
    /// What it may use.
    pub bounds: Bounds,
    /// File for the [`Report`], made by kiln.
    pub report: PathBuf,
}

/// What a program may use, all of its processes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Bytes of memory: RLIMIT_DATA for one process, measured for all.
    pub memory: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Bytes on disk in /build and /tmp, measured.
    pub disk: u64,
    /// Bytes of one file (RLIMIT_FSIZE).
    pub file: u64,
    /// Seconds from start to end.
    pub seconds: u64,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// With this exit code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// It went over a bound and was killed; the text says over which.
    Bound(String),
    /// The disk had no room left and it was killed; the text says how much there was.
    Full(String),
    /// It could not be set up: what was tried, and the kernel's answer.
    Setup {
        /// `making namespaces`, `mounting /proc` …
        what: String,
        /// As the kernel says it.
        error: String,
        /// Whether the kernel forbids it, so that a setting of the machine may be the remedy.
        forbidden: bool,
    },
}

/// How often Ctrl-C is looked for.
const STEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Takes what a program says; an error ends the program.
pub type Log<'a> = dyn FnMut(&[u8]) -> Result<(), Failure> + 'a;

fn broken(what: &str, error: std::io::Error) -> Failure {
    Failure::new(Kind::Store, format!("the sandbox cannot be made: {what}")).because(error)
}

/// Starts `plan`, whose program writes to `out`. `folder` is the caller's, for the plan's own files.
fn start(plan: &Plan, folder: &Path, out: OwnedFd) -> Result<Child, Failure> {
    let file = folder.join("plan.json");
    let text = serde_json::to_vec(plan).map_err(|e| broken("writing its plan", e.into()))?;
    // Its environment may hold a password for a proxy.
    let own = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file);
    own.and_then(|mut file| file.write_all(&text))
        .and_then(|()| fs::write(&plan.report, ""))
        .map_err(|e| broken("writing its plan", e))?;
    Ok(Tool::kiln().command().args(["dev", "sandbox"]).arg(&file).supervised(out)?)
}

/// Waits for the last of a sandbox that has closed its output, and reads its report.
fn end(mut child: Child, plan: &Plan) -> Result<Report, Failure> {
    let status = child.wait(std::time::Duration::MAX)?;
    let text = fs::read_to_string(&plan.report).map_err(|e| broken("reading its report", e))?;
    match text.lines().next().and_then(|line| serde_json::from_str(line).ok()) {
        Some(Report::Setup { what, error, forbidden }) => Err(refusal::explain(&what, &error, forbidden)),
        Some(report) => Ok(report),
        None => {
            let ended = status.map_or_else(String::new, |status| format!(" ({status})"));
            let text = format!("the sandbox ended without a word{ended}: was it killed from outside?");
            Err(Failure::new(Kind::Tool, text))
        }
    }
}

/// Runs `plan` to its end. `folder` is the caller's, for the plan's own files. What the program writes to stdout and stderr goes to
/// `log` as it comes, in one stream. When this returns, in any way, nothing of the sandbox runs any more.
///
/// # Errors
/// The sandbox could not be made: then the failure says which setting of the machine forbids it, if one does. Ctrl-C. What the program
/// itself did is no error but the [`Report`]. What `log` fails with.
pub fn run(plan: &Plan, folder: &Path, log: &mut Log<'_>) -> Result<Report, Failure> {
    let (mut pipe, out) = std::io::pipe().map_err(|e| broken("making a pipe", e))?;
    let child = start(plan, folder, out.into())?;
    let mut chunk = [0; 16 << 10];
    loop {
        sys::check_interrupt()?;
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&STEP)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(broken("reading its log", error.into())),
        }
        // The end of the pipe is the end of all that could write to it, the process outside being the last.
        match pipe.read(&mut chunk) {
            Ok(0) => return end(child, plan),
            Ok(count) => log(chunk.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken("reading its log", error)),
        }
    }
}

/// The user and group outside who are [`ID`] inside.
///
/// Root gets a number of nobody: the kernel holds root to no RLIMIT_NPROC, and a folder of the host that came in by mistake would be
/// root's own. 1879048192 is past all ranges that systemd hands out, 65533 is unused in containers with 65536 users (systemd,
/// docs/UIDS-GIDS.md). An ordinary user, and a root that has no other number, is just themselves.
pub fn outside_id() -> (u32, u32) {
    const NOBODYS: [u32; 2] = [1_879_048_192, 65_533];
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let own = (user.as_raw(), group.as_raw());
    if !user.is_root() {
        return own;
    }
    let map = |name: &str| fs::read_to_string(Path::new("/proc/self").join(name)).unwrap_or_default();
    let (users, groups) = (map("uid_map"), map("gid_map"));
    let free = NOBODYS.into_iter().find(|id| holds(&users, *id) && holds(&groups, *id));
    free.map_or(own, |id| (id, id))
}

/// Whether `map`, in the form of uid_map (user_namespaces(7)), has the number `id`.
fn holds(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&u64::from(id))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_map_is_read_as_the_kernel_writes_it() {
        let host = "         0          0 4294967295\n";
        let container = "0 100000 65536\n";
        assert!(holds(host, 1_879_048_192));
        assert!(!holds(container, 1_879_048_192) && holds(container, 65_533));
        assert!(!holds("0 1000 1\n", 65_533) && !holds("", 0) && !holds("a b c\n", 0));
    }
}
