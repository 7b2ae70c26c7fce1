//! What must hold for a finished root: a table of checks, each with its reason, each giving findings as data.
//!
//! [`check`] runs all of [`CHECKS`] on a [`Tree`]. A finding that is fatal stops a build; the others are notes. What a profile knows
//! and wants is named in [`Allow`], by path, unit or library, so that nothing else slips through with it.

mod access;
mod needs;
mod services;

use std::collections::BTreeSet;

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::rootfs::accounts::Accounts;
use crate::rootfs::elf::Facts;
use crate::rootfs::ldcache::{self, Loader};
use crate::rootfs::step::StepError;
use crate::rootfs::units::Units;
use crate::tree::Tree;

/// One rule.
pub struct Check {
    /// Its name, as findings carry it.
    pub name: &'static str,
    /// Whether its findings stop a build, as far as a finding is not expressly a note.
    pub fatal: bool,
    /// What goes wrong on a node without it.
    pub why: &'static str,
    run: fn(&Look<'_>) -> Result<Vec<Found>, StepError>,
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("name", &self.name).field("fatal", &self.fatal).finish_non_exhaustive()
    }
}

/// All checks in the order in which they run.
pub static CHECKS: &[Check] = &[
    Check {
        name: "interpreter",
        fatal: true,
        why: "a program whose loader or script interpreter is missing fails with `No such file or directory`",
        run: needs::interpreters,
    },
    Check {
        name: "library",
        fatal: true,
        why: "a program that links to a missing library does not start",
        run: needs::libraries,
    },
    Check {
        name: "dlopen",
        fatal: true,
        why: "a library opened at run time is in no package relation; without it a feature is silently off",
        run: needs::dlopened,
    },
    Check {
        name: "dangling-link",
        fatal: true,
        why: "a link that leads nowhere is a file that some program expects",
        run: needs::dangling,
    },
    Check {
        name: "alternative",
        fatal: true,
        why: "a link through /etc/alternatives that no table sets is a command that is not there",
        run: needs::alternatives,
    },
    Check {
        name: "unit-reference",
        fatal: true,
        why: "a unit that requires a missing one fails at boot",
        run: services::references,
    },
    Check {
        name: "unit-program",
        fatal: true,
        why: "a started service whose program is missing is a failed unit at every boot",
        run: services::programs,
    },
    Check {
        name: "listener",
        fatal: true,
        why: "an open port that nobody asked for is the way in",
        run: services::listeners,
    },
    Check {
        name: "owner",
        fatal: true,
        why: "a file of an id that no account has belongs to whoever gets that id later",
        run: access::owners,
    },
    Check {
        name: "world-writable",
        fatal: true,
        why: "any process can change what every user may change",
        run: access::world_writable,
    },
    Check {
        name: "privilege",
        fatal: true,
        why: "set-id bits and file capabilities give root's rights to whoever starts the program",
        run: access::privileges,
    },
    Check {
        name: "device",
        fatal: true,
        why: "device nodes are made by the kernel in /dev; one in the image reaches hardware past udev's rules",
        run: access::devices,
    },
    Check {
        name: "mode",
        fatal: true,
        why: "secrets others can read and folders their owner cannot enter are accidents of packing",
        run: access::modes,
    },
    Check {
        name: "hidden-var",
        fatal: false,
        why: "the state partition is mounted on /var and hides what the image has there; tmpfiles.d must make it again",
        run: access::hidden_var,
    },
];

/// What a profile knowingly allows. Paths are absolute globs (`*` within a component, `**` across).
#[derive(
    Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Allow {
    /// Programs whose interpreter may be missing.
    pub interpreters: Vec<String>,
    /// Libraries, by soname, that may be missing though something links to them.
    pub libraries: Vec<String>,
    /// Libraries, by soname, that may be missing though a `.note.dlopen` note wants them.
    pub dlopen: Vec<String>,
    /// Links that may lead nowhere.
    pub dangling: Vec<String>,
    /// Units that others may require without their being there: a generator makes them.
    pub units: Vec<String>,
    /// Units that may listen on the network.
    pub listeners: Vec<String>,
    /// Programs with set-id bits or capabilities.
    pub privileges: Vec<String>,
    /// Files and folders that everyone may write.
    pub world_writable: Vec<String>,
    /// Device nodes.
    pub devices: Vec<String>,
}

/// What is wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// Whether it stops a build.
    pub fatal: bool,
    /// The file, absolute.
    pub path: String,
    /// The package or step that made the file.
    pub owner: String,
    /// What is wrong with it.
    pub text: String,
    /// What helps.
    pub remedy: String,
}

/// A finding before it knows its check and the owner of its file.
struct Found {
    path: String,
    text: String,
    remedy: String,
    note: bool,
}

impl Found {
    fn new(path: &str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Found { path: path.to_owned(), text: text.into(), remedy: remedy.into(), note: false }
    }

    /// Only a note, though its check is fatal.
    fn note_if(mut self, note: bool) -> Self {
        self.note = note;
        self
    }
}

/// What checks look at.
struct Look<'a> {
    tree: &'a Tree,
    facts: &'a Facts,
    loader: &'a Loader,
    allow: &'a Allow,
    accounts: Accounts,
    units: Units,
    started: BTreeSet<String>,
    /// Where the loader looks for libraries, absolute.
    library_dirs: Vec<String>,
}

/// Why checks could not run.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A file could not be read.
    #[error(transparent)]
    Step(#[from] StepError),
    /// An entry of [`Allow`] is no glob.
    #[error("`{pattern}` in the list of allowed {list} is no pattern: {reason}")]
    Pattern {
        /// Which list.
        list: &'static str,
        /// The entry.
        pattern: String,
        /// What the parser says.
        reason: String,
    },
}

/// Runs every check; findings come in the order of [`CHECKS`], then by path. `facts` must hold every ELF file of the tree
/// ([`crate::rootfs::elf::scan`]).
pub fn check(tree: &Tree, facts: &Facts, loader: &Loader, allow: &Allow) -> Result<Vec<Finding>, CheckError> {
    for (list, patterns) in [
        ("interpreters", &allow.interpreters),
        ("dangling links", &allow.dangling),
        ("privileges", &allow.privileges),
        ("world-writable files", &allow.world_writable),
        ("devices", &allow.devices),
    ] {
        for pattern in patterns {
            if let Err(e) = Glob::new(pattern) {
                return Err(CheckError::Pattern {
                    list,
                    pattern: pattern.clone(),
                    reason: e.kind().to_string(),
                });
            }
        }
    }
    let units = Units::of(tree)?;
    let mut library_dirs: Vec<String> =
        ldcache::directories(tree, loader)?.into_iter().map(|(dir, _)| dir).collect();
    library_dirs.extend(["/lib64".to_owned(), "/usr/lib64".to_owned()]);
    let look = Look {
        tree,
        facts,
        loader,
        allow,
        accounts: Accounts::of(tree)?,
        started: units.started(),
        units,
        library_dirs,
    };
    let mut findings = Vec::new();
    for check in CHECKS {
        let mut found = (check.run)(&look)?;
        found.sort_by(|a, b| (&a.path, &a.text).cmp(&(&b.path, &b.text)));
        found.dedup_by(|a, b| (&a.path, &a.text) == (&b.path, &b.text));
        findings.extend(found.into_iter().map(|found| {
            let owner = tree.get(&found.path).map(|e| e.owner.to_string()).unwrap_or_default();
            Finding {
                check: check.name,
                fatal: check.fatal && !found.note,
                path: format!("/{}", found.path),
                owner,
                text: found.text,
                remedy: found.remedy,
            }
        }));
    }
    Ok(findings)
}

/// Patterns as one matcher over absolute paths. They were parsed before, so that a bad one cannot come here.
fn globs<'a>(patterns: impl IntoIterator<Item = &'a str>) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in
        patterns.into_iter().filter_map(|p| globset::GlobBuilder::new(p).literal_separator(true).build().ok())
    {
        set.add(glob);
    }
    set.build().unwrap_or_else(|_| GlobSet::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::elf::{scan, tests::sample};
    use crate::rootfs::step::put;
    use crate::tree::{Entry, Kind};

    /// A small root without findings.
    fn sound() -> Tree {
        let mut tree = Tree::new();
        let mut file = |path: &str, mode: u32, bytes: Vec<u8>| {
            put(&mut tree, path, Entry::file(mode, bytes, "pkg")).unwrap();
        };
        let note = r#"[{"soname":["libz.so.1"],"priority":"required"}]"#;
        file("usr/bin/prog", 0o755, sample("/lib64/ld.so", None, &["libc.so.6"], note));
        file("usr/bin/script", 0o755, b"#!/bin/prog -x\n".to_vec());
        file("usr/lib/libc.so.6", 0o755, sample("", Some("libc.so.6"), &[], ""));
        file("usr/lib/libz.so.1", 0o755, sample("", Some("libz.so.1"), &["libc.so.6"], ""));
        file("usr/lib64/ld.so", 0o755, sample("", Some("ld.so"), &[], ""));
        file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n".to_vec());
        file("etc/group", 0o644, b"root:x:0:\n".to_vec());
        let units = "usr/lib/systemd/system";
        file(
            &format!("{units}/a.service"),
            0o644,
            b"[Unit]\nRequires=b.service\n[Service]\nExecStart=-/usr/bin/prog --x\n".to_vec(),
        );
        file(&format!("{units}/b.service"), 0o644, b"[Service]\nExecStart=prog\n".to_vec());
        file(&format!("{units}/default.target"), 0o644, b"[Unit]\nWants=a.service\n".to_vec());
        for (link, target) in
            [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("etc/mtab", "/proc/mounts")]
        {
            put(&mut tree, link, Entry::symlink(target, "base-files")).unwrap();
        }
        tree
    }

    fn run(tree: &Tree, allow: &Allow) -> Vec<(&'static str, bool, String)> {
        let mut facts = Facts::new();
        scan(tree, &mut facts).unwrap();
        let found = check(tree, &facts, &ldcache::AMD64, allow).unwrap();
        found.into_iter().map(|f| (f.check, f.fatal, f.path)).collect()
    }

    /// Breaks a sound root and expects exactly these findings; and none of them once they are allowed.
    fn breaks(change: impl FnOnce(&mut Tree), expected: &[(&'static str, bool, &str)], allow: Allow) {
        let mut tree = sound();
        change(&mut tree);
        let expected: Vec<_> = expected.iter().map(|(c, f, p)| (*c, *f, (*p).to_owned())).collect();
        assert_eq!(run(&tree, &Allow::default()), expected);
        if allow != Allow::default() {
            assert_eq!(run(&tree, &allow), [], "allowed");
        }
    }

    fn add(tree: &mut Tree, path: &str, entry: Entry) {
        put(tree, path, entry).unwrap();
    }

    fn list(entry: &str) -> Vec<String> {
        vec![entry.to_owned()]
    }

    #[test]
    fn a_sound_root_has_no_findings() {
        assert_eq!(run(&sound(), &Allow::default()), []);
    }

    #[test]
    fn missing_interpreters_are_found() {
        breaks(
            |t| {
                put(t, "usr/bin/py", Entry::file(0o755, "#!/usr/bin/env python3\n", "p")).unwrap();
                put(t, "usr/bin/elf", Entry::file(0o755, sample("/lib/ld-none.so", None, &[], ""), "p"))
                    .unwrap();
                put(t, "usr/share/doc/x", Entry::file(0o644, "#!/usr/bin/perl\n", "p")).unwrap();
            },
            &[("interpreter", true, "/usr/bin/elf"), ("interpreter", true, "/usr/bin/py")],
            Allow { interpreters: list("/usr/bin/{py,elf}"), ..Allow::default() },
        );
    }

    #[test]
    fn a_script_with_crlf_is_named_as_such_and_shows_no_carriage_return() {
        let mut tree = sound();
        put(&mut tree, "usr/bin/a", Entry::file(0o755, "#!/bin/prog\r\nx\r\n", "p")).unwrap();
        put(&mut tree, "usr/bin/b", Entry::file(0o755, "#!/bin/prog -e\r\n", "p")).unwrap();
        let mut facts = Facts::new();
        scan(&tree, &mut facts).unwrap();
        let found = check(&tree, &facts, &ldcache::AMD64, &Allow::default()).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        for finding in &found {
            assert!(finding.text.contains("ends with CR LF") && !finding.text.contains('\r'), "{finding:?}");
        }
    }

    #[test]
    fn missing_libraries_are_found_and_origin_is_followed() {
        breaks(
            |t| {
                put(t, "usr/bin/x", Entry::file(0o755, sample("", None, &["libnone.so.2"], ""), "p"))
                    .unwrap();
                put(t, "usr/lib/own/a.so", Entry::file(0o755, sample("", None, &["libown.so"], ""), "p"))
                    .unwrap();
                put(t, "usr/lib/own/libown.so", Entry::file(0o755, sample("", None, &[], ""), "p")).unwrap();
            },
            &[("library", true, "/usr/bin/x")],
            Allow { libraries: list("libnone.so.2"), ..Allow::default() },
        );
    }

    #[test]
    fn a_missing_dlopen_library_is_fatal_by_priority() {
        let note = r#"[{"soname":["libr.so.1"]},{"soname":["libs.so.1"],"priority":"suggested"}]"#;
        breaks(
            |t| add(t, "usr/lib/liby.so", Entry::file(0o644, sample("", None, &[], note), "p")),
            &[("dlopen", true, "/usr/lib/liby.so"), ("dlopen", false, "/usr/lib/liby.so")],
            Allow { dlopen: vec!["libr.so.1".into(), "libs.so.1".into()], ..Allow::default() },
        );
    }

    #[test]
    fn dangling_links_and_unset_alternatives_are_found() {
        breaks(
            |t| {
                put(t, "usr/bin/gone", Entry::symlink("nothing", "p")).unwrap();
                put(t, "etc/resolv.conf", Entry::symlink("../run/systemd/resolve/stub-resolv.conf", "p"))
                    .unwrap();
            },
            &[("dangling-link", true, "/usr/bin/gone")],
            Allow { dangling: list("/usr/bin/gone"), ..Allow::default() },
        );
        breaks(
            |t| add(t, "usr/bin/pager", Entry::symlink("/etc/alternatives/pager", "p")),
            &[("alternative", true, "/usr/bin/pager")],
            Allow::default(),
        );
    }

    #[test]
    fn a_required_unit_and_a_program_that_are_missing_are_found() {
        let unit = "usr/lib/systemd/system/b.service";
        breaks(
            |t| {
                add(
                    t,
                    unit,
                    Entry::file(
                        0o644,
                        "[Unit]\nRequires=c.service\nWants=d.service dev-x.device\nAfter=e.service\n[Service]\nExecStart=/usr/bin/none\n",
                        "p",
                    ),
                );
            },
            &[
                ("unit-reference", true, "/usr/lib/systemd/system/b.service"),
                ("unit-reference", false, "/usr/lib/systemd/system/b.service"),
                ("unit-program", true, "/usr/lib/systemd/system/b.service"),
            ],
            Allow::default(),
        );
        breaks(
            |t| {
                add(
                    t,
                    "etc/systemd/system/default.target.wants/g.service",
                    Entry::symlink("/usr/lib/systemd/system/g.service", "p"),
                );
            },
            &[("unit-reference", true, "/etc/systemd/system/default.target.wants/g.service")],
            Allow { units: list("g.service"), ..Allow::default() },
        );
    }

    #[test]
    fn ports_and_known_daemons_must_be_allowed() {
        let unit = |t: &mut Tree, name: &str, text: &str| {
            put(t, &format!("usr/lib/systemd/system/{name}"), Entry::file(0o644, text, "p")).unwrap();
        };
        breaks(
            |t| {
                unit(
                    t,
                    "b.service",
                    "[Unit]\nWants=s.socket local.socket\n[Service]\nExecStart=/usr/bin/prog\n",
                );
                unit(t, "s.socket", "[Socket]\nListenStream=111\nService=b.service\n");
                unit(
                    t,
                    "local.socket",
                    "[Socket]\nListenStream=/run/x\nListenDatagram=127.0.0.1:53\nService=b.service\n",
                );
            },
            &[("listener", true, "/usr/lib/systemd/system/s.socket")],
            Allow { listeners: list("s.socket"), ..Allow::default() },
        );
        breaks(
            |t| {
                put(t, "usr/sbin/sshd", Entry::file(0o755, "", "openssh-server")).unwrap();
                unit(t, "b.service", "[Service]\nExecStart=/usr/sbin/sshd -D\n");
            },
            &[("listener", true, "/usr/lib/systemd/system/b.service")],
            Allow { listeners: list("b.service"), ..Allow::default() },
        );
    }

    #[test]
    fn foreign_owners_and_loose_modes_are_found() {
        let with = |path: &str, change: fn(&mut Entry)| {
            let path = path.to_owned();
            move |t: &mut Tree| {
                let mut entry = Entry::file(0o644, "x", "p");
                change(&mut entry);
                put(t, &path, entry).unwrap();
            }
        };
        let none = Allow::default;
        breaks(with("usr/x", |e| e.meta.gid = 77), &[("owner", true, "/usr/x")], none());
        breaks(
            with("usr/x", |e| e.meta.mode = 0o666),
            &[("world-writable", true, "/usr/x")],
            Allow { world_writable: list("/usr/x"), ..none() },
        );
        breaks(
            with("usr/x", |e| e.meta.mode = 0o4755),
            &[("privilege", true, "/usr/x")],
            Allow { privileges: list("/usr/*"), ..none() },
        );
        breaks(
            with("usr/x", |e| drop(e.meta.xattrs.insert("security.capability".into(), vec![1]))),
            &[("privilege", true, "/usr/x")],
            Allow { privileges: list("/usr/x"), ..none() },
        );
        breaks(
            with("usr/x", |e| e.kind = Kind::Block { major: 8, minor: 0 }),
            &[("device", true, "/usr/x")],
            Allow { devices: list("/usr/x"), ..none() },
        );
        breaks(with("etc/shadow", |_| ()), &[("mode", true, "/etc/shadow")], none());
        breaks(with("var/lib/p/x", |_| ()), &[("hidden-var", false, "/var/lib/p")], none());
        breaks(|t| add(t, "tmp", Entry::dir(0o1777, "p")), &[], none());
        breaks(|t| add(t, "tmp", Entry::dir(0o777, "p")), &[("world-writable", true, "/tmp")], none());
    }

    #[test]
    fn a_bad_pattern_is_refused_and_named() {
        let allow = Allow { privileges: list("/usr/[x"), ..Allow::default() };
        let error = check(&sound(), &Facts::new(), &ldcache::AMD64, &allow).unwrap_err();
        assert!(error.to_string().starts_with("`/usr/[x` in the list of allowed privileges"), "{error}");
    }
}
