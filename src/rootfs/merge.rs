//! Packages to one root: every package's tree laid over the others, less what the profile drops.

use std::collections::BTreeMap;
use std::sync::Arc;

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use crate::tree::{Entry, Kind, Tree, TreeError, TreePath};

/// Top-level folders that are links into /usr on a merged system (file-hierarchy(7)), longest first.
const MERGED: [(&str, &str); 4] =
    [("lib64", "usr/lib64"), ("sbin", "usr/sbin"), ("bin", "usr/bin"), ("lib", "usr/lib")];

/// Why packages do not make one root.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Two packages bring different things at one path, and neither says that it replaces the other.
    #[error("/{path} comes from both {first} and {second}, and differs: drop one of them in the profile")]
    Conflict {
        /// Where.
        path: TreePath,
        /// The package that brought it first.
        first: Arc<str>,
        /// The package that brought it again.
        second: Arc<str>,
    },
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
        let absolute = format!("/{path}");
        self.drop.is_match(&absolute) && !self.keep.is_match(&absolute)
    }
}

/// Lays `trees` over each other in the order given and drops what `filter` says. Directories may come from many packages: the
/// first one's mode and owner stand, as with dpkg. Other paths may come twice only if they are equal.
pub fn merge<'a>(trees: impl IntoIterator<Item = &'a Tree>, filter: &Filter) -> Result<Tree, MergeError> {
    let mut root = Tree::new();
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
                add(&mut root, path, entry)?;
            }
        }
        for (path, entry) in tree.iter().filter(|(_, e)| e.is_dir()) {
            let emptied = holds.get(path.as_str()).is_some_and(|(all, gone)| all == gone);
            if !emptied && !filter.drops(path) {
                add(&mut root, path, entry)?;
            }
        }
    }
    Ok(root)
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

fn add(root: &mut Tree, path: &TreePath, entry: &Entry) -> Result<(), MergeError> {
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
            let (first, second) = (old.owner.clone(), entry.owner.clone());
            return Err(MergeError::Conflict { path, first, second });
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
        let error = merge([&a, &c], &no_filter()).unwrap_err().to_string();
        assert_eq!(error, "/etc/x comes from both a and c, and differs: drop one of them in the profile");
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
