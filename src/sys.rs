//! The only place for `unsafe`, and for system calls that have no safe wrapper in std.
//!
//! It holds what touches the whole process: the Ctrl-C flag ([`watch_signals`], [`check_interrupt`]), what a child does
//! between fork and exec ([`die_with_parent`]), the terminal's mode ([`RawTerminal`]), the umask, the peak memory and the user ([`become_user`],
//! [`drop_capabilities`]); and what
//! makes a sandbox out of a process with one thread ([`fork`], [`unshare`], [`inherit_only_streams`], [`leave_keyrings`]). And what only
//! block devices can do ([`discard`], [`zero_out`], [`forget_cached`], [`reread_partitions`]).
#![allow(unsafe_code)] // each block below says why it is sound

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::ioctl::{self, Ioctl, NoArg, Opcode, Setter};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustix::thread::UnshareFlags;

use crate::error::{Failure, Kind};

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Turns SIGINT, SIGTERM and SIGHUP into a flag. The second signal ends the process at once with code 130, for people
/// who cannot wait; children die with it (see [`die_with_parent`]). Calling it again changes nothing.
///
/// # Errors
/// The kernel refuses a handler, which it never does for these signals.
pub fn watch_signals() -> io::Result<()> {
    if INTERRUPTED.get().is_some() {
        return Ok(());
    }
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        // Order matters: the conditional exit looks at the flag before the second line sets it.
        signal_hook::flag::register_conditional_shutdown(
            signal,
            i32::from(Kind::Interrupted.exit_code()),
            Arc::clone(&flag),
        )?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    // A second caller that came between the check and here has set its own flag: both handlers run, both flags are set.
    let _ = INTERRUPTED.set(flag);
    Ok(())
}

/// Whether a signal has asked for the end. False as long as nobody called [`watch_signals`].
pub fn interrupted() -> bool {
    INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Fails with [`Kind::Interrupted`] once a signal has asked for the end; long loops call it in each round.
///
/// # Errors
/// Only the interruption itself.
pub fn check_interrupt() -> Result<(), Failure> {
    if interrupted() { Err(Failure::new(Kind::Interrupted, "interrupted")) } else { Ok(()) }
}

/// Makes the child of `command` get SIGKILL when the thread that starts it ends, however it ends (PR_SET_PDEATHSIG,
/// prctl(2)). The kernel watches the *thread*, so [`crate::exec`] starts every child from one thread that lives as long as the
/// process.
pub fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    let hook = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have gone between fork and prctl; then nobody would ever send the signal.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from_raw_os_error(3)) }
    };
    // SAFETY: between fork and exec the hook makes two system calls; it takes no lock, allocates nothing, and
    // `from_raw_os_error` stores a number, so it is async-signal-safe as signal-safety(7) wants.
    unsafe { command.pre_exec(hook) };
}

/// Refuses what only a process with one thread may do.
fn alone() -> io::Result<()> {
    match fs_err::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        count => Err(io::Error::other(format!("{count} threads where one was promised"))),
    }
}

/// Makes a child by fork(2) that runs `work` and ends with what it gives as its exit code, 101 if it panics. What the closure owns
/// belongs to the child; the parent's copy is dropped before this returns.
///
/// # Errors
/// This process has more than one thread, or the kernel refuses another process.
pub fn fork(work: impl FnOnce() -> i32) -> io::Result<Pid> {
    alone()?;
    // SAFETY: fork is unsafe where another thread may hold a lock that the child then finds locked for ever; there is no other
    // thread, as was just made sure of, and only this one could have made one since.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
            // SAFETY: _exit ends the process and touches nothing; destructors and buffers are the parent's business.
            unsafe { libc::_exit(code) }
        }
        pid => Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork gave a strange number")),
    }
}

/// Puts this process into namespaces of its own, unshare(2); a pid and a time namespace begin with its next child.
///
/// # Errors
/// This process has more than one thread, or the kernel forbids it.
pub fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    alone()?;
    let namespaces = namespaces.difference(UnshareFlags::FILES | UnshareFlags::FS | UnshareFlags::SYSVSEM);
    // SAFETY: what is unsafe is a table of file descriptors that threads no longer share; CLONE_FILES was just taken out.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces) }?)
}

/// Sets close-on-exec on everything but stdin, stdout and stderr, whoever opened it: a folder that kiln inherited from its own parent
/// would be a way out of the sandbox.
///
/// # Errors
/// A kernel older than 5.11.
pub fn inherit_only_streams() -> io::Result<()> {
    // SAFETY: close_range with CLOEXEC closes nothing; descriptors stay valid for whoever owns them in this process.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves the session keyring that came from whoever started kiln for an empty one, keyctl(2).
///
/// # Errors
/// The kernel refuses; a kernel without keyrings is fine.
pub fn leave_keyrings() -> io::Result<()> {
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING takes a name or a null pointer, which is what it gets.
    if unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, anonymous) } != -1 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        error => Err(error),
    }
}

/// Number of an ioctl of block devices, `_IO(0x12, nr)` of linux/fs.h.
const fn block(nr: u8) -> Opcode {
    ioctl::opcode::none(0x12, nr)
}

fn block_ioctl(device: impl AsFd, request: impl Ioctl<Output = ()>) -> io::Result<()> {
    // SAFETY: all requests come from the four functions below, each with the argument that linux/fs.h gives its number.
    Ok(unsafe { ioctl::ioctl(device, request) }?)
}

/// Tells a block device that nobody needs these bytes any more (BLKDISCARD). What is read there later is not promised.
///
/// # Errors
/// `EOPNOTSUPP` where the device cannot; `EINVAL` for what is not in whole sectors.
pub fn discard(device: impl AsFd, at: u64, length: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two 64-bit numbers, start and length, from its argument.
    block_ioctl(device, unsafe { Setter::<{ block(119) }, [u64; 2]>::new([at, length]) })
}

/// Makes these bytes of a block device zero (BLKZEROOUT): by a command of the device if it has one, else by writing.
///
/// # Errors
/// As of a write; `EINVAL` for what is not in whole sectors.
pub fn zero_out(device: impl AsFd, at: u64, length: u64) -> io::Result<()> {
    // SAFETY: BLKZEROOUT reads two 64-bit numbers, start and length, from its argument.
    block_ioctl(device, unsafe { Setter::<{ block(127) }, [u64; 2]>::new([at, length]) })
}

/// Drops what the page cache holds of a block device, after writing what is not written yet (BLKFLSBUF).
///
/// # Errors
/// `EACCES` for who is not root.
pub fn forget_cached(device: impl AsFd) -> io::Result<()> {
    // SAFETY: BLKFLSBUF has no argument.
    block_ioctl(device, unsafe { NoArg::<{ block(97) }>::new() })
}

/// Lets the kernel read the partition table of a disk again (BLKRRPART).
///
/// # Errors
/// `EBUSY` while one of its partitions is in use, `EINVAL` for a device that has none.
pub fn reread_partitions(device: impl AsFd) -> io::Result<()> {
    // SAFETY: BLKRRPART has no argument.
    block_ioctl(device, unsafe { NoArg::<{ block(95) }>::new() })
}

/// Makes all threads of this process those of another user, for good: no supplementary groups, the real, effective and saved ids of both
/// kinds, and with the user ids every capability (capabilities(7), "Effect of user ID changes on capabilities"). Whatever is open stays so.
///
/// # Errors
/// This process may not, or it could still go back, which would mean that it was not done.
pub fn become_user(user: u32, group: u32) -> io::Result<()> {
    if user == 0 {
        return Err(io::Error::other("root is not another user"));
    }
    let done = |code: libc::c_int| if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: the list has no entry, so that its pointer is never followed.
    done(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: the call takes three numbers; the C library makes it in every thread (nptl(7)).
    done(unsafe { libc::setresgid(group, group, group) })?;
    // SAFETY: as above. The groups come first, since afterwards they may not be changed.
    done(unsafe { libc::setresuid(user, user, user) })?;
    // SAFETY: as above; it must fail now.
    if unsafe { libc::setresuid(0, 0, 0) } == 0 {
        return Err(io::Error::other("root could be taken back"));
    }
    drop_capabilities()?;
    // No program that is started from here on gets more by its mode or its owner (prctl(2), PR_SET_NO_NEW_PRIVS).
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Gives up every capability of this thread and of those that it starts (capabilities(7)).
///
/// # Errors
/// The kernel refuses, which it never does for less.
pub fn drop_capabilities() -> io::Result<()> {
    let none = rustix::thread::CapabilitySet::empty();
    let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// The terminal on stdin without line editing, echo or signal keys, until dropped.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Switches the terminal to raw mode (cfmakeraw(3)). `None` when stdin is no terminal.
    ///
    /// # Errors
    /// The terminal went away in between.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        let Ok(before) = tcgetattr(stdin.as_fd()) else { return Ok(None) };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        Ok(Some(RawTerminal { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}

/// Sets the umask of the process to 022, so that files kiln makes have the same mode whoever runs it.
pub fn fix_umask() {
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
}

/// The peak resident memory of this process in bytes (`VmHWM` of proc_pid_status(5)); `None` without /proc.
pub fn peak_memory() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Gives memory that was freed back to the system; the C library keeps it for later (malloc_trim(3), glibc alone has it).
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: malloc_trim takes any number, and locks the allocator itself: it is MT-Safe by malloc_trim(3).
        unsafe { malloc_trim(0) };
    }
}

/// Lets [`peak_memory`] count from now on (`clear_refs` of proc_pid_clear_refs(5)); without /proc it goes on from the start.
pub fn reset_peak_memory() {
    if let Err(error) = fs_err::write("/proc/self/clear_refs", "5") {
        tracing::debug!(%error, "peak memory");
    }
}

/// The memory of this machine in bytes (`MemTotal` of proc_meminfo(5)); `None` without /proc.
pub fn memory_total() -> Option<u64> {
    let info = fs_err::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Name and release of the running kernel, as `uname -sr` prints them.
pub fn kernel_release() -> String {
    let names = rustix::system::uname();
    format!("{} {}", names.sysname().to_string_lossy(), names.release().to_string_lossy())
}

/// The processor time of all threads of this process so far, in user and in system mode (`utime`, `stime` of proc_pid_stat(5));
/// `None` without /proc.
pub fn cpu_time() -> Option<Duration> {
    /// Ticks per second that the kernel tells user space on every architecture kiln runs on (USER_HZ).
    const USER_HZ: u64 = 100;
    let stat = fs_err::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses, in which anything may stand.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ticks: u64 = fields.nth(11)?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / USER_HZ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_memory_grows_when_memory_is_touched() {
        let before = peak_memory().unwrap();
        let block = vec![1u8; 64 << 20];
        assert!(block.iter().step_by(4096).all(|&b| b == 1));
        assert!(peak_memory().unwrap() >= before.max(64 << 20));
    }

    #[test]
    fn processor_time_grows_with_work_and_not_with_sleep() {
        let before = cpu_time().unwrap();
        let mut sum = 0_u64;
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while cpu_time().unwrap() < before + Duration::from_millis(50) && std::time::Instant::now() < end {
            sum = (0..1_000_000).fold(sum, |a, b| a ^ std::hint::black_box(b));
        }
        assert!(cpu_time().unwrap() >= before + Duration::from_millis(50), "{sum}");
    }

    #[test]
    fn a_process_with_threads_neither_forks_nor_leaves_its_namespaces() {
        // The test runner has threads: this one and the one that waits for it.
        let (_keep, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        assert!(fork(|| 0).unwrap_err().to_string().contains("threads where one was promised"));
        assert!(unshare(UnshareFlags::NEWUTS).unwrap_err().to_string().contains("threads"));
        drop(_keep);
        let _ = thread.join();
    }

    #[test]
    fn no_interruption_is_reported_before_a_signal_came() {
        assert!(!interrupted());
        check_interrupt().unwrap();
    }
}
