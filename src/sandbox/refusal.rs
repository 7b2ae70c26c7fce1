//! Why a machine lets nobody make a sandbox, and what to set.

use std::path::Path;

use fs_err as fs;

use crate::error::{Failure, Kind};

/// A setting that forbids user namespaces: the file below /proc/sys, the number that forbids, and the command that allows.
const SETTINGS: [(&str, u64, &str); 3] = [
    ("user/max_user_namespaces", 0, "sysctl -w user.max_user_namespaces=10000"),
    ("kernel/unprivileged_userns_clone", 0, "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        1,
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
];

/// The failure for a step that the kernel refused.
pub(super) fn explain(what: &str, error: &str, forbidden: bool) -> Failure {
    let mut failure = Failure::new(Kind::Tool, format!("the sandbox cannot be made: {what}: {error}"));
    if !forbidden {
        return failure;
    }
    let hints = hints(Path::new("/proc/sys"), rustix::process::geteuid().is_root());
    for hint in &hints {
        failure = failure.hint(hint);
    }
    if hints.is_empty() {
        failure = failure.hint(
            "this machine's settings allow user namespaces; in a container, its manager must allow them and mounting (for \
             Docker: --privileged, or --security-opt seccomp=unconfined --security-opt systempaths=unconfined)",
        );
    }
    failure
}

/// A hint for each setting below `sys` (/proc/sys) that forbids. Root is not held by those for ordinary users.
pub(crate) fn hints(sys: &Path, root: bool) -> Vec<String> {
    if !sys.join("user/max_user_namespaces").exists() {
        return vec!["this kernel was built without user namespaces (CONFIG_USER_NS)".to_owned()];
    }
    let forbids = |name: &str, number: u64| {
        fs::read_to_string(sys.join(name)).is_ok_and(|text| text.trim().parse() == Ok(number))
    };
    SETTINGS
        .iter()
        .filter(|(name, number, _)| forbids(name, *number) && !(root && name.contains("unprivileged")))
        .map(|(_, _, command)| format!("allow user namespaces as root: `{command}`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_that_forbids_namespaces_is_named_with_the_command_that_allows_them() {
        let dir = tempfile::tempdir().unwrap();
        let set = |name: &str, text: &str| {
            fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
            fs::write(dir.path().join(name), text).unwrap();
        };
        assert!(hints(dir.path(), false)[0].contains("CONFIG_USER_NS"));
        set("user/max_user_namespaces", "63000\n");
        set("kernel/unprivileged_userns_clone", "1\n");
        set("kernel/apparmor_restrict_unprivileged_userns", "0\n");
        assert_eq!(hints(dir.path(), false), [""; 0]);
        set("kernel/apparmor_restrict_unprivileged_userns", "1\n");
        assert!(hints(dir.path(), false)[0].contains("apparmor_restrict_unprivileged_userns=0"));
        assert_eq!(hints(dir.path(), true), [""; 0], "root is not meant");
        set("kernel/unprivileged_userns_clone", "0\n");
        set("user/max_user_namespaces", "0\n");
        assert_eq!(hints(dir.path(), false).len(), 3);
        assert!(hints(dir.path(), true)[0].contains("user.max_user_namespaces"));
        let text = explain("making namespaces", "Operation not permitted", false).to_string();
        assert_eq!(text, "the sandbox cannot be made: making namespaces: Operation not permitted");
    }
}
