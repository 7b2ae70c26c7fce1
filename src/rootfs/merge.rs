//! Packages to one root: every package's tree laid over the others, less what the profile drops.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::Failure;
use crate::tree::{Entry, Kind, Tree, TreeError, TreePath};

/// Top-level folders that are links into /usr on a merged system (file-hierarchy(7)), longest first.
const MERGED: [(&str, &str); 4] =
    [("lib64", "usr/lib64"), ("sbin", "usr/sbin"), ("bin", "usr/bin"), ("lib", "usr/lib")];

/// Why packages do not make one root.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Packages bring different things at the same paths: all of them, by the packages that brought a path first and again.
    #[error("packages bring different files at the same paths\n{}", shown(.0))]
    Conflicts(BTreeMap<(Arc<str>, Arc<str>), Vec<TreePath>>),
    /// A package's path leads through something that is no directory.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A filter of the profile is no glob.
    #[error("`{glob}` is no glob: {reason}")]
    Glob {
        /// As it stands in the TOML file.
        glob: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// How many paths of a pair of packages an error names.
const SHOWN: usize = 12;

fn shown(conflicts: &BTreeMap<(Arc<str>, Arc<str>), Vec<TreePath>>) -> String {
    let mut lines = Vec::new();
    for ((first, second), paths) in conflicts {
        let count = if paths.len() == 1 { "1 path".to_owned() } else { format!("{} paths", paths.len()) };
        lines.push(format!("  {first} and {second}, {count}:"));
        lines.extend(paths.iter().take(SHOWN).map(|path| format!("    /{path}")));
        if paths.len() > SHOWN {
            lines.push(format!("    and {} more", paths.len() - SHOWN));
        }
    }
    lines.join("\n")
}

/// Where packages that do not fit together are asked for, and so what can be done.
#[derive(Debug, Clone, Copy)]
pub enum AskedIn<'a> {
    /// A profile or machine, in this TOML file.
    Profile(&'a str),
    /// The tool set of this name.
    Set(&'a str),
}

impl MergeError {
    /// The error with its remedies.
    pub fn asked_in(self, place: AskedIn<'_>) -> Failure {
        let failure = Failure::new(crate::error::Kind::Input, self.to_string());
        let MergeError::Conflicts(conflicts) = self else { return failure };
        let failure = failure.hint(match place {
            AskedIn::Profile(file) => format!(
                "leave one package of each pair out: `packages.install` or `packages.remove` in {file}"
            ),
            AskedIn::Set(set) => {
                format!("leave one package of each pair out of the set `{set}` in images/tools.toml")
            }
        });
        let failure = match place {
            AskedIn::Set(_) => failure,
            AskedIn::Profile(file) => {
                let paths: BTreeSet<String> =
                    conflicts.values().flatten().map(|path| format!("/{path}")).collect();
                let listed: Vec<&String> = paths.iter().take(SHOWN).collect();
                let more = if paths.len() > SHOWN { ", and so on: globs are allowed" } else { "" };
                failure.hint(format!(
                    "if these files are not needed: `paths = {listed:?}`{more} below `[drop]` in {file} leaves those of both packages out; `[files]` may bring another"
                ))
            }
        };
        failure.hint("dpkg-divert, by which such packages make way for each other elsewhere, is a command of their scripts, and kiln runs none")
    }
}

/// Compiles globs of a TOML file. `*` stays within a path component, `**` does not.
pub fn globs(list: &[String]) -> Result<GlobSet, MergeError> {
    let mut set = GlobSetBuilder::new();
    let fail = |glob: &str, e: globset::Error| MergeError::Glob {
        glob: glob.to_owned(),
        reason: e.kind().to_string(),
    };
    for text in list {
        let glob: Glob = GlobBuilder::new(text).literal_separator(true).build().map_err(|e| fail(text, e))?;
        set.add(glob);
    }
    set.build().map_err(|e| fail("", e))
}

/// What is dropped from packages, and what stays although a filter would drop it. Globs are absolute paths.
#[derive(Debug)]
pub struct Filter {
    drop: GlobSet,
    keep: GlobSet,
}

impl Filter {
    /// A filter from the globs of a profile.
    pub fn new(drop: &[String], keep: &[String]) -> Result<Self, MergeError> {
        Ok(Filter { drop: globs(drop)?, keep: globs(keep)? })
    }

    /// Whether the entry at `path` goes. Directories stay until they are empty: see [`merge`].
    fn drops(&self, path: &TreePath) -> bool {
        // By the path in the package and by the one in the image, which is the one that errors name.
        let paths = [format!("/{path}"), format!("/{}", merged(path))];
        let any = |globs: &GlobSet| paths.iter().any(|path| globs.is_match(path));
        any(&self.drop) && !any(&self.keep)
    }
}

/// Lays `trees` over each other in the order given and drops what `filter` says. Directories may come from many packages: the
/// first one's mode and owner stand, as with dpkg. Other paths may come twice only if they are equal.
pub fn merge<'a>(trees: impl IntoIterator<Item = &'a Tree>, filter: &Filter) -> Result<Tree, MergeError> {
    let mut root = Tree::new();
    let mut conflicts = BTreeMap::new();
    for tree in trees {
        // Directories that hold nothing but dropped files go too; an empty directory that the package ships on purpose stays.
        let mut holds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (path, entry) in tree.iter().filter(|(_, e)| !e.is_dir()) {
            let gone = filter.drops(path);
            for above in path.ancestors() {
                let count = holds.entry(above).or_default();
                count.0 += 1;
                count.1 += usize::from(gone);
            }
            if !gone {
                add(&mut root, path, entry, &mut conflicts)?;
            }
        }
        for (path, entry) in tree.iter().filter(|(_, e)| e.is_dir()) {
            let emptied = holds.get(path.as_str()).is_some_and(|(all, gone)| all == gone);
            if !emptied && !filter.drops(path) {
                add(&mut root, path, entry, &mut conflicts)?;
            }
        }
    }
    if conflicts.is_empty() { Ok(root) } else { Err(MergeError::Conflicts(conflicts)) }
}

/// The path on a merged system: `/lib/x` of an old package is `/usr/lib/x`.
fn merged(path: &TreePath) -> TreePath {
    for (from, to) in MERGED {
        if let Some(rest) = path.strip_prefix(from).and_then(|r| r.strip_prefix('/')) {
            return TreePath::new(&format!("{to}/{rest}"))
                .expect("a valid path with a longer prefix stays valid below PATH_MAX");
        }
    }
    path.clone()
}

fn add(
    root: &mut Tree,
    path: &TreePath,
    entry: &Entry,
    conflicts: &mut BTreeMap<(Arc<str>, Arc<str>), Vec<TreePath>>,
) -> Result<(), MergeError> {
    let path = merged(path);
    match root.get(&path) {
        None => {}
        Some(old) if old.is_dir() && entry.is_dir() => {
            // insert() may have made it as a mere parent of a file; the package that ships the directory knows better.
            if old.owner.as_ref() == entry.owner.as_ref() {
                root.insert(path, entry.clone())?;
            }
            return Ok(());
        }
        // A package that ships bin/ as a directory although base-files made it a link: its files were led to /usr already.
        Some(Entry { kind: Kind::Symlink { .. }, .. })
            if entry.is_dir() && MERGED.iter().any(|(from, _)| *from == &*path) =>
        {
            return Ok(());
        }
        Some(old) if old.kind == entry.kind && old.meta.mode == entry.meta.mode => return Ok(()),
        Some(old) => {
            // The others are wanted, too: one error for all of them.
            conflicts.entry((old.owner.clone(), entry.owner.clone())).or_default().push(path);
            return Ok(());
        }
    }
    root.insert(path, entry.clone())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(entries: &[(&str, Entry)]) -> Tree {
        let mut tree = Tree::new();
        for (path, entry) in entries {
            tree.insert(TreePath::new(path).unwrap(), entry.clone()).unwrap();
        }
        tree
    }

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.iter().map(|(p, _)| p.as_str()).collect()
    }

    fn no_filter() -> Filter {
        Filter::new(&[], &[]).unwrap()
    }

    #[test]
    fn old_top_level_folders_are_led_into_usr() {
        let base = tree(&[("bin", Entry::symlink("usr/bin", "base-files"))]);
        let old = tree(&[("bin", Entry::dir(0o755, "old")), ("bin/x", Entry::file(0o755, "x", "old"))]);
        let root = merge([&base, &old], &no_filter()).unwrap();
        assert_eq!(paths(&root), ["bin", "usr", "usr/bin", "usr/bin/x"]);
    }

    #[test]
    fn equal_files_may_come_twice_and_different_ones_are_refused() {
        let (a, b) = (
            tree(&[("etc/x", Entry::file(0o644, "1", "a"))]),
            tree(&[("etc/x", Entry::file(0o644, "1", "b"))]),
        );
        assert_eq!(merge([&a, &b], &no_filter()).unwrap().get("etc/x").unwrap().owner.as_ref(), "a");
        let c = tree(&[("etc/x", Entry::file(0o644, "2", "c"))]);
        assert!(merge([&a, &c], &no_filter()).is_err());
    }

    #[test]
    fn packages_that_divert_each_others_files_are_told_with_all_paths_at_once_and_what_to_do() {
        let file = |path: &'static str, text: &str, owner: &str| (path, Entry::file(0o644, text, owner));
        let doc = "usr/share/vim/vim91/doc";
        let (help, tags): (&'static str, &'static str) =
            (format!("{doc}/help.txt").leak(), format!("{doc}/tags").leak());
        let tiny = tree(&[
            file(help, "stub", "vim-tiny"),
            file(tags, "stub", "vim-tiny"),
            file("usr/lib/a", "1", "vim-tiny"),
            file("usr/share/same", "1", "vim-tiny"),
        ]);
        let runtime = tree(&[
            file(help, "whole", "vim-runtime"),
            file(tags, "whole", "vim-runtime"),
            file("usr/share/same", "1", "vim-runtime"),
        ]);
        let other = tree(&[file("lib/a", "2", "other")]);
        let error = merge([&runtime, &tiny, &other], &no_filter()).unwrap_err();
        let failure = error.asked_in(AskedIn::Profile("profiles/server.toml"));
        insta::assert_snapshot!(failure, @r"
        packages bring different files at the same paths
          vim-runtime and vim-tiny, 2 paths:
            /usr/share/vim/vim91/doc/help.txt
            /usr/share/vim/vim91/doc/tags
          vim-tiny and other, 1 path:
            /usr/lib/a
        ");
        let hints = failure.hints().join("\n");
        for word in [
            "packages.remove",
            "profiles/server.toml",
            "dpkg-divert",
            r#"`paths = ["/usr/lib/a", "/usr/share/vim/vim91/doc/help.txt", "/usr/share/vim/vim91/doc/tags"]` below `[drop]`"#,
        ] {
            assert!(hints.contains(word), "{word}: {hints}");
        }
        // What the hint says helps, also where a package has the old path.
        let drop = ["/usr/lib/a".to_owned(), format!("/{help}"), format!("/{tags}")];
        let root = merge([&runtime, &tiny, &other], &Filter::new(&drop, &[]).unwrap()).unwrap();
        assert_eq!(paths(&root), ["usr", "usr/share", "usr/share/same"]);
    }

    #[test]
    fn of_many_conflicts_some_are_shown_and_all_are_counted() {
        let files = |owner: &str, text: &str| {
            let mut tree = Tree::new();
            for number in 0..100 {
                tree.insert(
                    TreePath::new(&format!("usr/{number:03}")).unwrap(),
                    Entry::file(0o644, text, owner),
                )
                .unwrap();
            }
            tree
        };
        let error = merge([&files("a", "1"), &files("b", "2")], &no_filter()).unwrap_err();
        let failure = error.asked_in(AskedIn::Set("x"));
        let text = failure.to_string();
        assert!(
            text.contains("a and b, 100 paths") && text.contains("/usr/011") && !text.contains("/usr/012"),
            "{text}"
        );
        assert!(text.contains("and 88 more"), "{text}");
        assert!(failure.hints()[0].contains("set `x`"), "{:?}", failure.hints());
    }

    #[test]
    fn dropped_files_take_their_empty_folders_along_and_keep_wins() {
        let package = tree(&[
            ("usr/share/doc/a/README", Entry::file(0o644, "1", "a")),
            ("usr/share/doc/a/copyright", Entry::file(0o644, "1", "a")),
            ("usr/share/man/man1/a.1", Entry::file(0o644, "1", "a")),
            ("var/lib/a", Entry::dir(0o700, "a")),
        ]);
        let filter = Filter::new(
            &["/usr/share/doc/**".into(), "/usr/share/man/**".into()],
            &["/usr/share/doc/*/copyright".into()],
        )
        .unwrap();
        let root = merge([&package], &filter).unwrap();
        let kept = [
            "usr",
            "usr/share",
            "usr/share/doc",
            "usr/share/doc/a",
            "usr/share/doc/a/copyright",
            "var",
            "var/lib",
            "var/lib/a",
        ];
        assert_eq!(paths(&root), kept);
        assert_eq!(root.get("var/lib/a").unwrap().meta.mode, 0o700);
    }

    #[test]
    fn a_broken_glob_is_named() {
        assert!(globs(&["/usr/[".into()]).unwrap_err().to_string().starts_with("`/usr/[` is no glob"));
    }
}
