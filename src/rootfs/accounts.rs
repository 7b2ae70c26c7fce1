//! `/etc/passwd`, `group`, `shadow` and `gshadow`: the users that base-passwd and `sysusers.d` files ask for, with ids that never
//! change between builds.
//!
//! [`accounts`] begins with base-passwd's master files, then applies every `sysusers.d` line (see [`sysusers`]). Where
//! systemd-sysusers would take any free id, the id comes from the table [`Ids`], which a person keeps in the image's TOML; a
//! name that is not in it is an error which says what to write. No account gets a password: all are locked.

use std::collections::BTreeMap;

use crate::rootfs::step::{StepError, put, text};
use crate::rootfs::sysusers::{self, Id, Line, What};
use crate::tree::{Entry, Tree};

/// Owner of what this step makes.
const STEP: &str = "kiln:accounts";
/// Ids for system users that no package fixes: `SYS_UID_MIN`..`SYS_UID_MAX` of Debian's login.defs.
const SYSTEM_IDS: std::ops::RangeInclusive<u32> = 100..=999;
/// Debian's fixed group that may read `/etc/shadow`.
const SHADOW_GROUP: &str = "shadow";

/// Fixed ids by name, for accounts whose package leaves the choice open.
#[derive(
    Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    /// User ids. The group of the same name gets the same number unless `groups` names it.
    #[serde(default)]
    pub users: BTreeMap<String, u32>,
    /// Group ids.
    #[serde(default)]
    pub groups: BTreeMap<String, u32>,
}

/// A line of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// The comment field.
    pub gecos: String,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
    /// Whether the account is expired as well as without password (`u!` of sysusers.d).
    pub expired: bool,
}

/// A line of `/etc/group`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Group id.
    pub gid: u32,
    /// Supplementary members.
    pub members: Vec<String>,
}

/// All accounts of a root, in file order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Users.
    pub users: Vec<User>,
    /// Groups.
    pub groups: Vec<Group>,
}

/// Why the accounts cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AccountsError {
    /// A file could not be read, parsed or put in the tree.
    #[error(transparent)]
    Step(#[from] StepError),
    /// An account leaves its id open and the table does not name it.
    #[error(
        "{file}:{line}: {kind} `{name}` has no fixed id, and an id that is chosen anew in each build would change owners of files: write `{name} = {free}` in the table of {kind} ids"
    )]
    Unfixed {
        /// The sysusers.d file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// `user` or `group`.
        kind: &'static str,
        /// Who.
        name: String,
        /// An id that nobody has.
        free: u32,
    },
    /// Two accounts have one id.
    #[error("{file}:{line}: {kind} `{name}` would have id {id}, which `{other}` has: choose another id")]
    Taken {
        /// The sysusers.d file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// `user` or `group`.
        kind: &'static str,
        /// Who.
        name: String,
        /// The id.
        id: u32,
        /// Who has it.
        other: String,
    },
    /// A line names a group or user that nothing makes.
    #[error(
        "{file}:{line}: there is no {kind} `{name}`: add the package that brings it, or a sysusers.d line"
    )]
    Unknown {
        /// The sysusers.d file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// `user` or `group`.
        kind: &'static str,
        /// Who.
        name: String,
    },
}

/// Makes all accounts and writes the four files of `/etc`.
pub fn accounts(tree: &mut Tree, ids: &Ids) -> Result<Accounts, AccountsError> {
    let master = |name: &str| -> Result<String, StepError> {
        let path = format!("usr/share/base-passwd/{name}.master");
        let remedy = "add package base-passwd".to_owned();
        text(tree, &path)?.ok_or(StepError::Missing { what: format!("/{path}"), remedy })
    };
    let mut accounts = Accounts::parse(&master("passwd")?, &master("group")?);
    let lines = sysusers::read(tree)?;
    for line in lines.iter().filter(|l| matches!(l.what, What::Group { .. })) {
        accounts.apply(line, ids, tree)?;
    }
    for line in lines.iter().filter(|l| matches!(l.what, What::User { .. })) {
        accounts.apply(line, ids, tree)?;
    }
    for line in lines.iter().filter(|l| matches!(l.what, What::Member { .. })) {
        accounts.apply(line, ids, tree)?;
    }
    accounts.write(tree)?;
    Ok(accounts)
}

impl Accounts {
    /// Reads the text of `passwd` and `group` files; lines that do not have the shape are left out, as libc does.
    pub fn parse(passwd: &str, group: &str) -> Self {
        let user = |line: &str| {
            let mut f = line.split(':');
            let (name, _, uid, gid) =
                (f.next()?, f.next()?, f.next()?.parse().ok()?, f.next()?.parse().ok()?);
            let mut next = || Some(f.next()?.to_owned());
            Some(User {
                name: name.to_owned(),
                uid,
                gid,
                gecos: next()?,
                home: next()?,
                shell: next()?,
                expired: false,
            })
        };
        let group_line = |line: &str| {
            let mut f = line.split(':');
            let (name, _, gid) = (f.next()?, f.next()?, f.next()?.parse().ok()?);
            let members = f.next()?.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
            Some(Group { name: name.to_owned(), gid, members })
        };
        Accounts {
            users: passwd.lines().filter_map(user).collect(),
            groups: group.lines().filter_map(group_line).collect(),
        }
    }

    /// The accounts that `/etc/passwd` and `/etc/group` of `tree` hold; none if there are no such files.
    pub fn of(tree: &Tree) -> Result<Self, StepError> {
        let file = |path| Ok::<_, StepError>(text(tree, path)?.unwrap_or_default());
        Ok(Accounts::parse(&file("etc/passwd")?, &file("etc/group")?))
    }

    /// The user called `name`.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|u| u.name == name)
    }

    /// The group called `name`.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|g| g.name == name)
    }

    fn apply(&mut self, line: &Line, ids: &Ids, tree: &Tree) -> Result<(), AccountsError> {
        match &line.what {
            What::Group { name, id } => {
                if self.group(name).is_none() {
                    let gid = match id {
                        Id::Open => ids
                            .groups
                            .get(name)
                            .copied()
                            .ok_or_else(|| self.unfixed(line, "group", name, ids))?,
                        Id::Fixed(gid) => *gid,
                        Id::OwnerOf(path) => tree
                            .follow(path)
                            .map(|(_, e)| e.meta.gid)
                            .ok_or_else(|| unknown(line, "group", name))?,
                    };
                    self.add_group(line, name, gid)?;
                }
            }
            What::User { name, id, group, gecos, home, shell, expired } => {
                if self.user(name).is_some() {
                    return Ok(());
                }
                let uid = match id {
                    Id::Open => {
                        ids.users.get(name).copied().ok_or_else(|| self.unfixed(line, "user", name, ids))?
                    }
                    Id::Fixed(uid) => *uid,
                    Id::OwnerOf(path) => tree
                        .follow(path)
                        .map(|(_, e)| e.meta.uid)
                        .ok_or_else(|| unknown(line, "user", name))?,
                };
                let gid = match group {
                    Some(group) => match group.parse() {
                        Ok(gid) => gid,
                        Err(_) => self.group(group).ok_or_else(|| unknown(line, "group", group))?.gid,
                    },
                    None => match self.group(name) {
                        Some(group) => group.gid,
                        None => {
                            let gid = ids.groups.get(name).copied().unwrap_or(uid);
                            self.add_group(line, name, gid)?;
                            gid
                        }
                    },
                };
                if let Some(other) = self.users.iter().find(|u| u.uid == uid) {
                    return Err(taken(line, "user", name, uid, &other.name));
                }
                self.users.push(User {
                    name: name.clone(),
                    uid,
                    gid,
                    gecos: gecos.clone(),
                    home: home.clone(),
                    shell: shell.clone(),
                    expired: *expired,
                });
            }
            What::Member { user, group } => {
                if self.user(user).is_none() {
                    return Err(unknown(line, "user", user));
                }
                let found = self.groups.iter_mut().find(|g| g.name == *group);
                let members = &mut found.ok_or_else(|| unknown(line, "group", group))?.members;
                if !members.contains(user) {
                    members.push(user.clone());
                }
            }
        }
        Ok(())
    }

    fn add_group(&mut self, line: &Line, name: &str, gid: u32) -> Result<(), AccountsError> {
        if let Some(other) = self.groups.iter().find(|g| g.gid == gid) {
            return Err(taken(line, "group", name, gid, &other.name));
        }
        self.groups.push(Group { name: name.to_owned(), gid, members: Vec::new() });
        Ok(())
    }

    fn unfixed(&self, line: &Line, kind: &'static str, name: &str, ids: &Ids) -> AccountsError {
        let used = |id: &u32| {
            self.users.iter().any(|u| u.uid == *id)
                || self.groups.iter().any(|g| g.gid == *id)
                || ids.users.values().chain(ids.groups.values()).any(|i| i == id)
        };
        let free = SYSTEM_IDS.rev().find(|id| !used(id)).unwrap_or(*SYSTEM_IDS.start());
        AccountsError::Unfixed { file: line.file(), line: line.number, kind, name: name.to_owned(), free }
    }

    /// Writes `/etc/passwd`, `group` (0644) and `shadow`, `gshadow` (0640 root:shadow). No password ages, so that no date is in them.
    fn write(&self, tree: &mut Tree) -> Result<(), StepError> {
        let (mut passwd, mut shadow, mut group, mut gshadow) =
            (String::new(), String::new(), String::new(), String::new());
        for u in &self.users {
            passwd += &format!("{}:x:{}:{}:{}:{}:{}\n", u.name, u.uid, u.gid, u.gecos, u.home, u.shell);
            // An expiry date of 1 day after 1970 is how systemd-sysusers locks an account for every way of login.
            shadow += &format!(
                "{}:{}::::::{}:\n",
                u.name,
                if u.expired { "!*" } else { "*" },
                if u.expired { "1" } else { "" }
            );
        }
        for g in &self.groups {
            let members = g.members.join(",");
            group += &format!("{}:x:{}:{members}\n", g.name, g.gid);
            gshadow += &format!("{}:*::{members}\n", g.name);
        }
        let gid = self.group(SHADOW_GROUP).map_or(0, |g| g.gid);
        for (name, mode, gid, text) in [
            ("passwd", 0o644, 0, passwd),
            ("group", 0o644, 0, group),
            ("shadow", 0o640, gid, shadow),
            ("gshadow", 0o640, gid, gshadow),
        ] {
            let mut entry = Entry::file(mode, text, STEP);
            entry.meta.gid = gid;
            put(tree, &format!("etc/{name}"), entry)?;
        }
        Ok(())
    }
}

fn unknown(line: &Line, kind: &'static str, name: &str) -> AccountsError {
    AccountsError::Unknown { file: line.file(), line: line.number, kind, name: name.to_owned() }
}

fn taken(line: &Line, kind: &'static str, name: &str, id: u32, other: &str) -> AccountsError {
    AccountsError::Taken {
        file: line.file(),
        line: line.number,
        kind,
        name: name.to_owned(),
        id,
        other: other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(conf: &str) -> Tree {
        let mut tree = Tree::new();
        let master = "usr/share/base-passwd";
        let passwd =
            "root:*:0:0:root:/root:/bin/bash\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
        let group = "root:*:0:\nshadow:*:42:\nadm:*:4:\nnogroup:*:65534:\n";
        put(&mut tree, &format!("{master}/passwd.master"), Entry::file(0o644, passwd, "base-passwd"))
            .unwrap();
        put(&mut tree, &format!("{master}/group.master"), Entry::file(0o644, group, "base-passwd")).unwrap();
        put(&mut tree, "usr/lib/sysusers.d/a.conf", Entry::file(0o644, conf, "pkg")).unwrap();
        tree
    }

    fn ids(users: &[(&str, u32)], groups: &[(&str, u32)]) -> Ids {
        let map = |l: &[(&str, u32)]| l.iter().map(|(n, i)| ((*n).to_owned(), *i)).collect();
        Ids { users: map(users), groups: map(groups) }
    }

    #[test]
    fn writes_locked_accounts_with_the_ids_of_the_table() {
        let mut tree =
            tree("u! net - \"Net Daemon\"\nu sshd -:nogroup - /run/sshd\ng kvm -\nm net adm\nu adm 4\n");
        accounts(&mut tree, &ids(&[("net", 998), ("sshd", 997)], &[("kvm", 992)])).unwrap();
        let read = |p: &str| text(&tree, p).unwrap().unwrap();
        assert!(read("etc/passwd").contains(
            "net:x:998:998:Net Daemon:/:/usr/sbin/nologin\nsshd:x:997:65534::/run/sshd:/usr/sbin/nologin\n"
        ));
        assert!(read("etc/shadow").starts_with("root:*:::::::\n"));
        assert!(read("etc/shadow").contains("net:!*::::::1:\n"));
        assert!(
            read("etc/group").contains("adm:x:4:net\n")
                && read("etc/group").contains("kvm:x:992:\nnet:x:998:\n")
        );
        let shadow = &tree.get("etc/shadow").unwrap().meta;
        assert_eq!((shadow.mode, shadow.uid, shadow.gid), (0o640, 0, 42));
    }

    #[test]
    fn an_open_id_outside_the_table_names_file_line_and_a_free_id() {
        let error =
            accounts(&mut tree("# c\ng kvm -\n"), &ids(&[("net", 999)], &[])).unwrap_err().to_string();
        assert!(error.starts_with("/usr/lib/sysusers.d/a.conf:2: group `kvm` has no fixed id"), "{error}");
        assert!(error.contains("write `kvm = 998`"), "{error}");
    }

    #[test]
    fn one_id_for_two_and_unknown_groups_are_refused() {
        let two = accounts(&mut tree("u a 300\nu b 300\n"), &Ids::default()).unwrap_err();
        assert!(matches!(two, AccountsError::Taken { id: 300, .. }), "{two}");
        let none = accounts(&mut tree("m root wheel\n"), &Ids::default()).unwrap_err();
        assert!(matches!(none, AccountsError::Unknown { kind: "group", .. }), "{none}");
    }
}
