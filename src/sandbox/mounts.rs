//! The file system of a sandbox: what stands in the table of [`super`], and the way into it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use fs_err as fs;
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, openat, statvfs};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

use super::Plan;
use super::outer::{Refused, Step};

/// Devices that every program may count on; anything behind them is the kernel's own.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Links of /dev that programs may count on.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// What no mount of a sandbox allows.
const NEVER: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Everything that comes from outside, opened while this process is still the user that kiln is: as the sandbox's user it could not
/// walk there.
pub(super) struct Sources {
    build: Source,
    tmp: Source,
    inputs: Vec<(String, Source)>,
    covers: Vec<(String, Source)>,
    devices: Vec<(&'static str, Source)>,
}

struct Source {
    fd: OwnedFd,
    folder: bool,
    shown: String,
}

impl Source {
    fn open(path: &Path) -> Result<Self, Refused> {
        let shown = path.display().to_string();
        let folder = fs::metadata(path).step(format!("looking at {shown}"))?.is_dir();
        let fd = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .step(format!("opening {shown}"))?;
        Ok(Source { fd, folder, shown })
    }

    /// Shows it at `to` too, read-only or not.
    fn bind(&self, to: &str, writable: bool) -> Result<(), Refused> {
        let what = || format!("binding {} to {to}", self.shown);
        mount_bind(format!("/proc/self/fd/{}", self.fd.as_raw_fd()), to).step(what())?;
        restrict(to, if writable { MountFlags::empty() } else { MountFlags::RDONLY }).step(what())
    }
}

/// Takes rights away from the mount at `at`.
fn restrict(at: &str, flags: MountFlags) -> io::Result<()> {
    // A mount that comes from outside keeps what it forbids there; asking for less is an error (mount_namespaces(7), "locked").
    let noexec = statvfs(at)?.f_flag.contains(StatVfsMountFlags::NOEXEC);
    let kept = if noexec { MountFlags::NOEXEC } else { MountFlags::empty() };
    Ok(mount_remount(at, MountFlags::BIND | NEVER | kept | flags, "")?)
}

impl Sources {
    /// Opens all, and goes to the folder that will be the root, by now a mount of its own. Nothing that is mounted from here on is seen
    /// outside.
    pub(super) fn open(plan: &Plan) -> Result<Self, Refused> {
        let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", downstream).step("parting from the host's mounts")?;
        let many = |list: &std::collections::BTreeMap<String, std::path::PathBuf>| {
            list.iter()
                .map(|(name, path)| Ok((name.clone(), Source::open(path)?)))
                .collect::<Result<Vec<_>, Refused>>()
        };
        let sources = Sources {
            build: Source::open(&plan.build)?,
            tmp: Source::open(&plan.tmp)?,
            inputs: many(&plan.inputs)?,
            covers: many(&plan.covers)?,
            devices: DEVICES
                .iter()
                .map(|name| Ok((*name, Source::open(&Path::new("/dev").join(name))?)))
                .collect::<Result<_, Refused>>()?,
        };
        let shown = plan.root.display();
        mount_bind(&plan.root, &plan.root).step(format!("binding {shown}"))?;
        chdir(&plan.root).step(format!("going to {shown}"))?;
        Ok(sources)
    }

    /// Mounts everything and makes the current folder the root. Process 1 does it: /proc is that of its namespace.
    pub(super) fn mount(self) -> Result<(), Refused> {
        let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", "proc", "proc", quiet, c"").step("mounting /proc")?;
        self.build.bind("build", true)?;
        self.tmp.bind("tmp", true)?;
        for (path, source) in &self.covers {
            source.bind(path.trim_start_matches('/'), false)?;
        }
        let small = |at: &str| mount("tmpfs", at, "tmpfs", quiet, c"mode=0755,size=256k,nr_inodes=1k");
        small("inputs").step("mounting /inputs")?;
        for (name, source) in &self.inputs {
            let at = format!("inputs/{name}");
            let made = if source.folder { fs::create_dir(&at) } else { fs::File::create(&at).map(drop) };
            made.step(format!("making /{at}"))?;
            source.bind(&at, false)?;
        }
        restrict("inputs", MountFlags::RDONLY).step("closing /inputs")?;
        // Device files work on a tmpfs that has none of its own: each is a mount of its host's.
        small("dev").step("mounting /dev")?;
        for (name, source) in &self.devices {
            let at = format!("dev/{name}");
            fs::File::create(&at).step(format!("making /{at}"))?;
            mount_bind(format!("/proc/self/fd/{}", source.fd.as_raw_fd()), &at)
                .step(format!("binding /{at}"))?;
        }
        for (name, target) in LINKS {
            fs::os::unix::fs::symlink(target, format!("dev/{name}")).step(format!("making /dev/{name}"))?;
        }
        fs::create_dir("dev/shm").step("making /dev/shm")?;
        mount("tmpfs", "dev/shm", "tmpfs", quiet, c"mode=1777,size=64m").step("mounting /dev/shm")?;
        restrict("dev", MountFlags::RDONLY | MountFlags::NOEXEC).step("closing /dev")?;
        restrict(".", MountFlags::RDONLY).step("closing the root")?;
        drop(self);
        // pivot_root(2), "pivot_root(".", ".")": the old root ends up over the new one and is taken off.
        pivot_root(".", ".").step("changing the root")?;
        unmount(".", UnmountFlags::DETACH).step("leaving the host's root")?;
        chdir("/").step("going to the new root")
    }
}
