//! Watching over a sandbox from its process 1: the end of the program, and bounds that the kernel does not hold by itself.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use fs_err as fs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, wait};

use super::outer::{Refused, Step};
use super::{Bounds, Report};
use crate::ui::{human_bytes, human_time};

/// How often memory and processes are looked at: at a gigabyte per second, a hog gets 100 MB past its bound.
const TICK: Duration = Duration::from_millis(100);
/// Disk space that stays for the host, whatever the bound is.
const RESERVE: u64 = 256 << 20;
/// The same for files without content: one part in so many of all inodes.
const INODES: u64 = 50;
/// How often the folders are walked if free space tells of nothing.
const WALK: Duration = Duration::from_secs(30);

/// What is watched.
pub(super) struct Watch<'a> {
    pub(super) bounds: Bounds,
    pub(super) program: Pid,
    pub(super) pidfd: &'a OwnedFd,
    pub(super) outer: &'a OwnedFd,
}

/// Whether a pidfd says that its process has ended.
pub(super) fn ready(fd: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|n| n > 0)
}

/// Waits for the program to end or to go over a bound. Collects every orphan meanwhile, as process 1 must.
pub(super) fn until_end(watch: &Watch<'_>) -> Result<Report, Refused> {
    let begun = Instant::now();
    let mut disk = DiskWatch::start();
    loop {
        let mut fds = [PollFd::new(watch.pidfd, PollFlags::IN), PollFd::new(watch.outer, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec::try_from(TICK).unwrap_or_default())) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).step("watching over the program"),
        }
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == watch.program {
                return Ok(match status.exit_status() {
                    Some(code) => Report::Exit(code),
                    None => Report::Signal(status.terminating_signal().unwrap_or_default()),
                });
            }
        }
        if ready(watch.outer) {
            return Err(Errno::SRCH).step("staying with the process outside");
        }
        let bounds = &watch.bounds;
        if begun.elapsed() > Duration::from_secs(bounds.seconds) {
            let limit = human_time(Duration::from_secs(bounds.seconds));
            return Ok(Report::Bound(format!("it took longer than {limit}")));
        }
        let (memory, tasks) = usage();
        if memory > bounds.memory {
            let text = format!("its processes used {} of memory", human_bytes(memory));
            return Ok(Report::Bound(format!("{text}, the limit is {}", human_bytes(bounds.memory))));
        }
        // RLIMIT_NPROC refuses more, except to the host's root without a number to hide behind.
        if tasks > bounds.processes + 1 {
            return Ok(Report::Bound(format!("it had {tasks} processes, the limit is {}", bounds.processes)));
        }
        if let Some(report) = disk.look(bounds.disk) {
            return Ok(report);
        }
    }
}

/// Memory of all processes that is nobody else's, in bytes, and the number of all threads. Pages that a fork left shared count for
/// each of its halves. proc_pid_status(5).
fn usage() -> (u64, u64) {
    let Ok(entries) = fs::read_dir("/proc") else { return (0, 0) };
    let numbers = entries
        .filter_map(Result::ok)
        .map(|e| e.file_name())
        .filter(|n| n.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    let (mut kib, mut tasks) = (0, 0);
    for number in numbers {
        // A process that ended since the listing uses nothing.
        let Ok(status) = fs::read_to_string(Path::new("/proc").join(number).join("status")) else { continue };
        for line in status.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = || value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
            match key {
                "RssAnon" | "RssShmem" | "VmSwap" => kib += value(),
                "Threads" => tasks += value(),
                _ => {}
            }
        }
    }
    (kib * 1024, tasks)
}

/// The space that /build and /tmp take. Walking a kernel's tree costs half a second, so the file system's free space, which is one
/// call away, says when a walk could find too much.
struct DiskWatch {
    walked: Instant,
    cost: Duration,
    used: u64,
    free: u64,
}

/// Free bytes, and whether files can still be made in number.
fn free() -> Option<(u64, bool)> {
    let stat = rustix::fs::statvfs("/build").ok()?;
    // A file system without a fixed number of inodes says 0.
    Some((stat.f_bavail * stat.f_frsize, stat.f_files == 0 || stat.f_favail > stat.f_files / INODES))
}

impl DiskWatch {
    fn start() -> Self {
        DiskWatch {
            walked: Instant::now(),
            cost: Duration::ZERO,
            used: 0,
            free: free().map_or(0, |(free, _)| free),
        }
    }

    /// What is wrong with the disk, if anything is.
    fn look(&mut self, limit: u64) -> Option<Report> {
        let (free, inodes) = free()?;
        if !inodes {
            return Some(Report::Full("the disk of the store has hardly an inode left".to_owned()));
        }
        if free < RESERVE {
            return Some(Report::Full(format!("the disk of the store has only {} left", human_bytes(free))));
        }
        let possible = self.used + self.free.saturating_sub(free);
        let since = self.walked.elapsed();
        // A tenth of the time at most goes into walking.
        if since < self.cost * 10 || (possible <= limit && since < WALK) {
            return None;
        }
        let begun = Instant::now();
        self.used = ["/build", "/tmp"].iter().map(|folder| size_below(Path::new(folder))).sum();
        *self = DiskWatch { walked: Instant::now(), cost: begun.elapsed(), used: self.used, free };
        (self.used > limit).then(|| {
            let used = human_bytes(self.used);
            Report::Bound(format!("it used {used} of disk, the limit is {}", human_bytes(limit)))
        })
    }
}

/// Bytes that are allocated below `folder`. What vanishes while it is looked at counts nothing, nor does what lies too deep to be named.
fn size_below(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let Ok(meta) = entry.metadata() else { continue };
            // Blocks of 512 bytes, stat(2).
            bytes += meta.blocks() * 512;
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_counts_this_process_and_size_what_is_allocated() {
        let block = vec![1u8; 32 << 20];
        let (memory, tasks) = usage();
        assert!(memory >= 32 << 20 && tasks >= 1, "{memory} {tasks} {}", block.len());
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), vec![1; 1 << 20]).unwrap();
        fs::File::create(dir.path().join("sparse")).unwrap().into_file().set_len(1 << 40).unwrap();
        let size = size_below(dir.path());
        assert!((1 << 20..2 << 20).contains(&size), "{size}");
    }
}
