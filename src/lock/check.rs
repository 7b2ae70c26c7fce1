//! Does the lock fit the TOML files?

use std::collections::BTreeSet;

use anyhow::Result;

use super::file::{Lock, LockedPackage, LockedSet};
use super::wanted::{SetId, SetKind, Want, fingerprint, wants};
use crate::arch::Arch;
use crate::error::{Failure, Kind};
use crate::spec::Project;

/// A lock that was compared with the project it belongs to. Later stages take this and nothing else, so a stale lock cannot
/// reach them.
#[derive(Debug, Clone)]
pub struct Locked {
    lock: Lock,
}

impl Locked {
    /// The lock itself.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// The packages of a profile or tool set.
    pub fn packages(&self, kind: SetKind, name: &str, arch: Arch) -> Result<Vec<&LockedPackage>> {
        let id = SetId { kind, name: name.to_owned(), arch };
        let set: &LockedSet = self.lock.set(&id).ok_or_else(|| {
            let text = format!("images/kiln.lock has no {id}");
            Failure::new(Kind::Lock, text)
                .hint("add the architecture in images/debian.toml or tools.toml and run `kiln update`")
        })?;
        Ok(self.lock.packages(set))
    }
}

impl Lock {
    /// Compares the lock with what `project` wants now. On a difference the error says what differs and names the command
    /// that mends it.
    pub fn check(self, project: &Project) -> Result<Locked> {
        let wanted = wants(project);
        if self.spec == fingerprint(project, &wanted) {
            return Ok(Locked { lock: self });
        }
        let text = format!("images/kiln.lock does not fit the TOML files: {}", self.difference(&wanted));
        Err(Failure::new(Kind::Lock, text)
            .hint("run `kiln update` to resolve again, or `kiln outdated` to look first")
            .into())
    }

    fn difference(&self, wanted: &[Want]) -> String {
        for want in wanted {
            let Some(set) = self.set(&want.id) else { return format!("{} is not locked", want.id) };
            let (old, new): (BTreeSet<_>, BTreeSet<_>) =
                (set.wants.iter().collect(), want.wants.iter().collect());
            let list = |names: Vec<&&String>| names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
            let (more, less): (Vec<_>, Vec<_>) =
                (new.difference(&old).collect(), old.difference(&new).collect());
            match (more.is_empty(), less.is_empty()) {
                (true, true) => {}
                (false, true) => return format!("{} asks for {} now", want.id, list(more)),
                (true, false) => return format!("{} does not ask for {} any more", want.id, list(less)),
                (false, false) => {
                    return format!("{} asks for {} instead of {}", want.id, list(more), list(less));
                }
            }
        }
        if let Some(gone) = self.set.iter().find(|s| !wanted.iter().any(|w| w.id == s.id)) {
            return format!("{} is locked and not wanted any more", gone.id);
        }
        "suites, keys or exclusions changed".to_owned()
    }
}
