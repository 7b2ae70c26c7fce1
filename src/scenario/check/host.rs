//! What this machine has left for nodes.

use std::path::PathBuf;

use anyhow::{Context, Result};
use fs_err as fs;

/// What there is for the machines of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// CPUs that kiln may use.
    pub cpus: u32,
    /// Bytes of memory that can be had without swapping.
    pub memory: u64,
    /// Where disks of nodes are written.
    pub folder: PathBuf,
    /// Bytes left there.
    pub space: u64,
}

impl Host {
    /// Looks at this machine, and at the control group that kiln runs in.
    ///
    /// # Errors
    /// /proc or the folder for temporary files cannot be read.
    pub fn measure() -> Result<Self> {
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let available = available(&meminfo).context("/proc/meminfo has no MemAvailable")?;
        let folder = std::env::temp_dir();
        let space = rustix::fs::statvfs(&folder)
            .with_context(|| format!("looking for space in {}", folder.display()))?;
        Ok(Host {
            cpus: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory: group_left().map_or(available, |left| left.min(available)),
            folder,
            space: space.f_bavail.saturating_mul(space.f_frsize),
        })
    }
}

/// MemAvailable of proc_meminfo(5), in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the control group of a container leaves (cgroup v2: `memory.max` less `memory.current`, page cache that can be dropped
/// counted as free); `None` without a limit.
fn group_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/');
    let folder = PathBuf::from("/sys/fs/cgroup").join(own);
    let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max")?;
    let cache = fs::read_to_string(folder.join("memory.stat")).ok().and_then(|stat| {
        stat.lines().find_map(|line| line.strip_prefix("inactive_file "))?.trim().parse::<u64>().ok()
    });
    Some(limit.saturating_sub(number("memory.current")?.saturating_sub(cache.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something_left() {
        let host = Host::measure().unwrap();
        assert!(host.cpus > 0 && host.memory > 1 << 20 && host.folder.is_dir(), "{host:?}");
    }

    #[test]
    fn memory_that_can_be_had_is_read_in_bytes() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        for wrong in ["", "MemAvailable: x kB", "MemAvailable: 99999999999999999999 kB", "MemAvailable: 5"] {
            assert_eq!(available(wrong), None);
        }
    }
}
