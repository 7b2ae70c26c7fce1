//! Process 1 of a sandbox: mounts, gives up every right, starts the program, and watches until it ends.

use std::fs::File;
use std::os::fd::OwnedFd;

use fs_err as fs;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, PidfdFlags, Resource, Rlimit, Signal, getrlimit, ioctl_tiocsctty, pidfd_open,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit, setsid, umask,
};
use rustix::system::{setdomainname, sethostname};
use rustix::thread::{
    CapabilitySet, CapabilitySets, CpuSet, Gid, Uid, clear_ambient_capability_set,
    remove_capability_from_bounding_set, sched_getaffinity, sched_setaffinity, set_capabilities,
    set_no_new_privs, set_thread_res_gid, set_thread_res_uid,
};

use super::mounts::Sources;
use super::outer::{Refused, Step, tell};
use super::watch::{self, Watch};
use super::{BUILD, ID, Plan, Report, filter};
use crate::{exec, sys};

/// Open files per process: enough for a linker, the same on every machine.
const FILES: u64 = 16_384;
/// The usual stack; another one can change what a program does.
const STACK: u64 = 8 << 20;
/// No core file, and none through a pipe either, which would run a program of the host: 0 does not hold that back, 1 does
/// (fs/coredump.c, where it stands for a handler that crashed itself).
const NO_CORE: u64 = 1;
/// The host's out-of-memory killer takes a sandbox first (proc_pid_oom_score_adj(5)).
const FIRST_VICTIM: &str = "1000";

/// The whole life of process 1. `outer` is readable once the process outside has ended.
pub(super) fn main(plan: &Plan, mut report: File, outer: &OwnedFd) -> i32 {
    let done = life(plan, &report, outer);
    tell(&mut report, &done.unwrap_or_else(|refused| refused.report()));
    0
}

fn life(plan: &Plan, report: &File, outer: &OwnedFd) -> Result<Report, Refused> {
    stay_with(outer)?;
    // As long as this process has not changed its user, it may write to its own files in /proc.
    fs::write("/proc/self/oom_score_adj", FIRST_VICTIM)
        .step("offering itself to the out-of-memory killer")?;
    let sources = Sources::open(plan)?;
    become_user()?;
    sethostname(b"kiln").step("setting the host name")?;
    setdomainname(b"(none)").step("setting the domain name")?;
    sources.mount()?;
    // This file is the user namespace's own. Rights in a namespace inside would be a way to more of the kernel.
    fs::write("/proc/sys/user/max_user_namespaces", "0").step("forbidding further namespaces")?;
    limit(plan)?;
    give_up_rights()?;
    stay_with(outer)?;
    let own = report.try_clone().step("sharing the report")?;
    let program = sys::fork(|| start(plan, own)).step("making the program's process")?;
    let pidfd = pidfd_open(program, PidfdFlags::empty()).step("watching over the program")?;
    watch::until_end(&Watch { bounds: plan.bounds, program, pidfd: &pidfd, outer })
}

/// The program's process up to the program.
fn start(plan: &Plan, mut report: File) -> i32 {
    let refused = || -> Result<std::convert::Infallible, Refused> {
        setsid().step("making a session")?;
        if plan.terminal {
            // Stdout is a terminal made for this; the one of the person stays outside.
            rustix::stdio::dup2_stdin(rustix::stdio::stdout()).step("sharing the terminal")?;
            ioctl_tiocsctty(rustix::stdio::stdout()).step("taking the terminal")?;
        }
        filter::apply().step("filtering system calls")?;
        let (program, args) = plan.command.split_first().ok_or(Errno::INVAL).step("reading the command")?;
        Err(exec::replace(program, args, &plan.env, BUILD, plan.terminal)).step(format!("starting {program}"))
    };
    let Err(refused) = refused();
    tell(&mut report, &refused.report());
    1
}

/// Ends with the process outside. The kernel forgets the wish when a process changes its user, so this is done twice.
fn stay_with(outer: &OwnedFd) -> Result<(), Refused> {
    set_parent_process_death_signal(Some(Signal::KILL)).step("staying with the process outside")?;
    if watch::ready(outer) {
        return Err(Errno::SRCH).step("staying with the process outside");
    }
    Ok(())
}

/// Only now, with everything opened, and before anything is made: files made by a user that the namespace does not know are refused.
fn become_user() -> Result<(), Refused> {
    let (user, group) = (Uid::from_raw(ID), Gid::from_raw(ID));
    set_thread_res_gid(group, group, group).step("becoming group 1000")?;
    set_thread_res_uid(user, user, user).step("becoming user 1000")
}

fn limit(plan: &Plan) -> Result<(), Refused> {
    let set = |resource: Resource, soft: u64, hard: Option<u64>| {
        // Only the host's administrator may raise a hard limit.
        let most = getrlimit(resource).maximum;
        let least = |wanted: u64| most.map_or(wanted, |most| wanted.min(most));
        let maximum = hard.map(least).or(most);
        setrlimit(resource, Rlimit { current: Some(least(soft)), maximum })
            .step(format!("limiting {resource:?}"))
    };
    let bounds = &plan.bounds;
    for (resource, value) in [
        (Resource::Nproc, bounds.processes),
        (Resource::Data, bounds.memory),
        (Resource::Fsize, bounds.file),
        (Resource::Nofile, FILES),
        (Resource::Core, NO_CORE),
    ] {
        set(resource, value, Some(value))?;
    }
    set(Resource::Stack, STACK, None)?;
    umask(Mode::from_raw_mode(plan.umask));
    let mine = sched_getaffinity(None).step("counting processors")?;
    let mut chosen = CpuSet::new();
    for core in (0..CpuSet::MAX_CPU).filter(|core| mine.is_set(*core)).take(plan.cores.max(1)) {
        chosen.set(core);
    }
    sched_setaffinity(None, &chosen).step("choosing processors")
}

fn give_up_rights() -> Result<(), Refused> {
    sys::leave_keyrings().step("leaving the keyring")?;
    clear_ambient_capability_set().step("clearing ambient rights")?;
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // Past the last one that the kernel knows.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error).step("bounding rights"),
        }
    }
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, none).step("giving up all rights")?;
    set_no_new_privs(true).step("giving up new rights")?;
    // The program has the same user: this keeps it from tracing process 1. Its own exec makes it traceable again.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).step("closing this process to tracing")
}
