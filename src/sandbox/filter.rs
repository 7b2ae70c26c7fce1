//! System calls that no build needs and that reach past the namespaces.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Kernel keyrings, the kernel's log, tracing, and io_uring, which makes sockets that a filter does not see; memory that lies in no file
/// system and counts for no process, and so would be held by no limit. Mounting and the like is not here: that takes rights which the
/// program does not have.
const DENIED: [i64; 15] = [
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_shmget,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
];

/// Kinds of sockets that a network namespace holds back.
const SOCKETS: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// The filter: a denied call answers EPERM, all others pass.
fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, vec![])).collect();
    let other = SOCKETS
        .iter()
        .map(|family| {
            let family = u64::from(family.unsigned_abs());
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
        })
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(other)?]);
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)?.try_into()
}

/// Puts this process and all that it becomes behind the filter. It must have no_new_privs.
pub(super) fn apply() -> io::Result<()> {
    let program = program().map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_filter_compiles_for_this_machine() {
        // Each denied call takes at least two instructions: compare, and what to do.
        assert!(super::program().unwrap().len() > 2 * super::DENIED.len());
    }
}
