//! Checks of owners, modes and special files.

use std::collections::BTreeMap;

use super::{Found, Look, globs};
use crate::rootfs::step::StepError;
use crate::tree::Kind;

/// Folders in which everyone may write, with the sticky bit.
const STICKY: u32 = 0o1000;
/// Files with password hashes; others may not read them.
const SECRETS: [&str; 3] = ["etc/shadow", "etc/gshadow", "usr/share/kiln/shadow"];

pub(super) fn owners(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let mut found = Vec::new();
    for (path, entry) in look.tree.iter() {
        let (uid, gid) = (entry.meta.uid, entry.meta.gid);
        let remedy = "add a sysusers.d line with this id, or change the owner";
        if !look.accounts.users.iter().any(|u| u.uid == uid) {
            found.push(Found::new(path, format!("no user has id {uid}"), remedy));
        }
        if !look.accounts.groups.iter().any(|g| g.gid == gid) {
            found.push(Found::new(path, format!("no group has id {gid}"), remedy));
        }
    }
    Ok(found)
}

pub(super) fn world_writable(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let allowed = globs(look.allow.world_writable.iter().map(String::as_str));
    let mut found = Vec::new();
    for (path, entry) in look.tree.iter() {
        let mode = entry.meta.mode;
        let sticky = entry.is_dir() && mode & STICKY != 0;
        let link = matches!(entry.kind, Kind::Symlink { .. });
        if mode & 0o002 != 0 && !sticky && !link && !allowed.is_match(format!("/{path}")) {
            let text = format!("everyone may write it (mode {mode:04o})");
            found.push(Found::new(
                path,
                text,
                "set its mode in the profile, or name it in `allow.world_writable`",
            ));
        }
    }
    Ok(found)
}

pub(super) fn privileges(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let allowed = globs(look.allow.privileges.iter().map(String::as_str));
    let mut found = Vec::new();
    for (path, entry) in look.tree.iter() {
        if entry.is_dir() || allowed.is_match(format!("/{path}")) {
            continue;
        }
        let remedy = "drop the bit in the profile, or name the file in `allow.privileges`";
        let mode = entry.meta.mode;
        if mode & 0o6000 != 0 && !matches!(entry.kind, Kind::Symlink { .. }) {
            let who = if mode & 0o4000 != 0 { "user" } else { "group" };
            found.push(Found::new(
                path,
                format!("it runs with the rights of its {who} (mode {mode:04o})"),
                remedy,
            ));
        }
        if entry.meta.xattrs.contains_key("security.capability") {
            found.push(Found::new(path, "it has file capabilities", remedy));
        }
    }
    Ok(found)
}

pub(super) fn devices(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let allowed = globs(look.allow.devices.iter().map(String::as_str));
    let mut found = Vec::new();
    for (path, entry) in look.tree.iter() {
        let text = match entry.kind {
            Kind::Char { major, minor } => format!("character device {major}:{minor}"),
            Kind::Block { major, minor } => format!("block device {major}:{minor}"),
            _ => continue,
        };
        if !allowed.is_match(format!("/{path}")) {
            found.push(Found::new(path, text, "remove it, or name it in `allow.devices`"));
        }
    }
    Ok(found)
}

pub(super) fn modes(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let mut found = Vec::new();
    for (path, entry) in look.tree.iter() {
        let mode = entry.meta.mode;
        if entry.content().is_some() && SECRETS.contains(&path.as_str()) && mode & 0o007 != 0 {
            let text = format!("others may read password hashes (mode {mode:04o})");
            found.push(Found::new(path, text, "set its mode to 0640"));
        }
        if entry.is_dir() && mode & 0o500 != 0o500 {
            found.push(Found::new(
                path,
                format!("its owner may not enter it (mode {mode:04o})"),
                "set its mode to 0755",
            ));
        }
    }
    Ok(found)
}

/// One note for each second folder below `/var` that has files in it: `/var/lib/NAME`.
pub(super) fn hidden_var(look: &Look<'_>) -> Result<Vec<Found>, StepError> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (path, entry) in look.tree.below("var") {
        if !entry.is_dir() {
            let top: Vec<&str> = path.split('/').take(3).collect();
            *counts.entry(top.join("/")).or_default() += 1;
        }
    }
    let remedy =
        "nothing, if no program needs it; else a tmpfiles.d line (`C` copies from /usr/share/factory)";
    let note = |(path, count): (String, usize)| {
        Found::new(
            &path,
            format!("{count} file{} that /var hides", if count == 1 { "" } else { "s" }),
            remedy,
        )
    };
    Ok(counts.into_iter().map(note).collect())
}
