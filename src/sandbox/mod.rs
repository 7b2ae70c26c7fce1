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
//!   once. /build lies on the store's disk, not in a tmpfs: kernels need gigabytes, and memory is scarcer than disk.
//! - *The end.* Process 1 ends when the program does, and the kernel then kills all that is left of the pid namespace. It ends as well
//!   when "outer" does, and that when kiln does, in any way. Mounts exist in the namespace only and go with it.
//!
//! namespaces(7), user_namespaces(7), pid_namespaces(7), capabilities(7), seccomp(2).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
