//! A file tree as metadata: what will be in an image, without root and without touching the disk.
//!
//! Owners, modes, devices and extended attributes live here as data. The bytes of regular files stay where they are, in
//! a pack of the store or in memory, and are named by digest ([`Content`]). A [`Tree`] is a sorted map from path to
//! [`Entry`], so that every walk over it has the same order on every machine. The root directory itself is not an entry:
//! it is always `0755 root:root`.

mod content;
mod path;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use content::{Content, PackFile};
pub use path::{PathError, TreePath};

use serde::{Deserialize, Serialize};

/// What kind of node stands at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file. Two hard links are two entries with the same content; writers may store the bytes once.
    File(Content),
    /// A symbolic link and the text it holds.
    Symlink {
        /// Absolute or relative, never empty, at most 4095 bytes.
        target: String,
    },
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Metadata of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits with set-id and sticky, `0o7777` at most.
    pub mode: u32,
    /// Owner, numeric.
    pub uid: u32,
    /// Group, numeric.
    pub gid: u32,
    /// Modification time, seconds since 1970 UTC.
    pub mtime: i64,
    /// Extended attributes by full name (`security.capability`), values as bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Meta {
    /// `root:root`, the given mode, time 0 (composition sets the image's epoch on everything at its end).
    pub fn root(mode: u32) -> Self {
        Meta { mode, uid: 0, gid: 0, mtime: 0, xattrs: BTreeMap::new() }
    }
}

/// A node of a [`Tree`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Mode, owner, time, attributes.
    pub meta: Meta,
    /// What it is.
    #[serde(flatten)]
    pub kind: Kind,
    /// Who put it there: a package name, or `kiln:STEP` for what a step made.
    #[serde(default = "nobody", skip_serializing_if = "is_nobody")]
    pub owner: Arc<str>,
}

fn nobody() -> Arc<str> {
    Arc::from("")
}

fn is_nobody(owner: &Arc<str>) -> bool {
    owner.is_empty()
}

impl Entry {
    /// A directory of `root:root`.
    pub fn dir(mode: u32, owner: &str) -> Self {
        Entry { meta: Meta::root(mode), kind: Kind::Dir, owner: Arc::from(owner) }
    }

    /// A regular file of `root:root` whose bytes are kept in memory.
    pub fn file(mode: u32, bytes: impl Into<Vec<u8>>, owner: &str) -> Self {
        Entry {
            meta: Meta::root(mode),
            kind: Kind::File(Content::inline(bytes.into())),
            owner: Arc::from(owner),
        }
    }

    /// A symbolic link of `root:root`.
    pub fn symlink(target: impl Into<String>, owner: &str) -> Self {
        Entry {
            meta: Meta::root(0o777),
            kind: Kind::Symlink { target: target.into() },
            owner: Arc::from(owner),
        }
    }

    /// The content, if this is a regular file.
    pub fn content(&self) -> Option<&Content> {
        match &self.kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir)
    }
}

/// What could not be put in a tree, or not be found in it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    /// A parent is a file, a link or a device.
    #[error("/{path}: its parent /{parent} is not a directory (it comes from {owner})")]
    ParentNotDir {
        /// What was to be inserted.
        path: TreePath,
        /// The non-directory above it.
        parent: TreePath,
        /// Who put that there.
        owner: Arc<str>,
    },
    /// A chain of symbolic links that does not end.
    #[error("/{0}: too many levels of symbolic links")]
    Loop(TreePath),
}

/// How many symbolic links a look-up follows before it gives up; the kernel's own limit (`MAXSYMLINKS` in linux/namei.h).
const MAX_SYMLINKS: usize = 40;

/// A sorted map from path to [`Entry`]; see the module comment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tree {
    entries: BTreeMap<TreePath, Entry>,
}

impl Tree {
    /// An empty tree: only the root directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of entries, the root not counted.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing below the root.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries; a directory always before what is in it.
    pub fn iter(&self) -> impl Iterator<Item = (&TreePath, &Entry)> {
        self.entries.iter()
    }

    /// All entries, to be changed in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&TreePath, &mut Entry)> {
        self.entries.iter_mut()
    }

    /// The entry at exactly `path` (no link is followed). Text that is no valid path is simply not there.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// As [`Tree::get`], to be changed.
    pub fn get_mut(&mut self, path: &str) -> Option<&mut Entry> {
        self.entries.get_mut(path)
    }

    /// Puts `entry` at `path`, making missing parents (`0755 root:root`, owner of the entry). What stood there is
    /// returned. A directory keeps what is in it when a directory replaces it.
    pub fn insert(&mut self, path: TreePath, entry: Entry) -> Result<Option<Entry>, TreeError> {
        let mut missing = Vec::new();
        for parent in path.ancestors() {
            match self.entries.get(parent) {
                Some(found) if found.is_dir() => break,
                Some(found) => {
                    let parent = TreePath::new(parent).expect("an ancestor of a valid path is valid");
                    let owner = found.owner.clone();
                    return Err(TreeError::ParentNotDir { path: path.clone(), parent, owner });
                }
                None => missing.push(TreePath::new(parent).expect("an ancestor of a valid path is valid")),
            }
        }
        for parent in missing {
            self.entries.insert(parent, Entry::dir(0o755, &entry.owner));
        }
        Ok(self.entries.insert(path, entry))
    }

    /// Removes `path` and everything below it; says how many entries went.
    pub fn remove(&mut self, path: &str) -> usize {
        let below: Vec<TreePath> = self.below(path).map(|(p, _)| p.clone()).collect();
        let mut gone = usize::from(self.entries.remove(path).is_some());
        for path in below {
            self.entries.remove(path.as_str());
            gone += 1;
        }
        gone
    }

    /// Everything below the directory `path` at any depth, not the directory itself.
    pub fn below<'a>(&'a self, path: &str) -> impl Iterator<Item = (&'a TreePath, &'a Entry)> + use<'a> {
        // '0' is the byte after '/', so this range is exactly the paths that start with "path/".
        let (from, to) = (format!("{path}/"), format!("{path}0"));
        self.entries.range::<str, _>((
            std::ops::Bound::Included(from.as_str()),
            std::ops::Bound::Excluded(to.as_str()),
        ))
    }

    /// The direct children of the directory `path` (`""` is the root).
    pub fn children<'a>(
        &'a self,
        path: &'a str,
    ) -> impl Iterator<Item = (&'a TreePath, &'a Entry)> + use<'a> {
        let all: Box<dyn Iterator<Item = (&TreePath, &Entry)>> =
            if path.is_empty() { Box::new(self.entries.iter()) } else { Box::new(self.below(path)) };
        let skip = if path.is_empty() { 0 } else { path.len() + 1 };
        all.filter(move |(p, _)| !p.as_str()[skip..].contains('/'))
    }

    /// Keeps only the entries for which `keep` says true.
    pub fn retain(&mut self, mut keep: impl FnMut(&TreePath, &Entry) -> bool) {
        self.entries.retain(|path, entry| keep(path, entry));
    }

    /// Where `path` leads inside this tree when symbolic links are followed, also in the middle, as the kernel would
    /// with the tree as its root. `None` if something on the way is missing.
    pub fn resolve(&self, path: &str) -> Result<Option<TreePath>, TreeError> {
        let whole = || {
            TreePath::new(path.trim_start_matches('/')).unwrap_or_else(|_| TreePath::new("?").expect("valid"))
        };
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut at = String::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    at.truncate(at.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let next = if at.is_empty() { part } else { format!("{at}/{part}") };
            match self.entries.get(next.as_str()).map(|e| &e.kind) {
                None => return Ok(None),
                Some(Kind::Symlink { target }) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(TreeError::Loop(whole()));
                    }
                    if target.starts_with('/') {
                        at.clear();
                    }
                    todo.extend(target.split('/').rev().map(str::to_owned));
                }
                Some(_) => at = next,
            }
        }
        Ok(TreePath::new(&at).ok())
    }

    /// The entry that `path` leads to when links are followed; see [`Tree::resolve`].
    pub fn follow(&self, path: &str) -> Option<(TreePath, &Entry)> {
        let path = self.resolve(path).ok()??;
        let entry = self.entries.get(&path)?;
        Some((path, entry))
    }
}

impl IntoIterator for Tree {
    type Item = (TreePath, Entry);
    type IntoIter = std::collections::btree_map::IntoIter<TreePath, Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(p: &str) -> TreePath {
        TreePath::new(p).unwrap()
    }

    fn sample() -> Tree {
        let mut tree = Tree::new();
        tree.insert(path("usr/bin/dash"), Entry::file(0o755, "elf", "dash")).unwrap();
        tree.insert(path("usr/bin/sh"), Entry::symlink("dash", "dash")).unwrap();
        tree.insert(path("bin"), Entry::symlink("usr/bin", "base-files")).unwrap();
        tree.insert(path("loop"), Entry::symlink("/loop", "x")).unwrap();
        tree.insert(path("usr-old"), Entry::file(0o644, "", "x")).unwrap();
        tree
    }

    #[test]
    fn insert_makes_parents_and_refuses_to_go_through_a_file() {
        let mut tree = sample();
        assert!(tree.get("usr/bin").unwrap().is_dir());
        let error = tree.insert(path("usr/bin/dash/x"), Entry::dir(0o755, "y")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/usr/bin/dash/x: its parent /usr/bin/dash is not a directory (it comes from dash)"
        );
        assert!(tree.insert(path("bin/x"), Entry::dir(0o755, "y")).is_err(), "a link is no directory");
    }

    #[test]
    fn links_are_followed_in_the_middle_and_at_the_end() {
        let tree = sample();
        assert_eq!(tree.resolve("/bin/sh").unwrap(), Some(path("usr/bin/dash")));
        assert_eq!(tree.resolve("bin/../bin/./sh").unwrap(), Some(path("usr/bin/dash")));
        assert_eq!(tree.resolve("/bin/zsh").unwrap(), None);
        assert_eq!(tree.resolve("/loop"), Err(TreeError::Loop(path("loop"))));
    }

    #[test]
    fn below_and_children_do_not_take_neighbours_with_a_longer_name() {
        let tree = sample();
        let below: Vec<&str> = tree.below("usr").map(|(p, _)| p.as_str()).collect();
        assert_eq!(below, ["usr/bin", "usr/bin/dash", "usr/bin/sh"]);
        let top: Vec<&str> = tree.children("").map(|(p, _)| p.as_str()).collect();
        assert_eq!(top, ["bin", "loop", "usr", "usr-old"]);
        let mut tree = tree;
        assert_eq!(tree.remove("usr"), 4);
        assert!(tree.get("usr-old").is_some());
    }

    #[test]
    fn a_tree_survives_json() {
        let tree = sample();
        let text = serde_json::to_string(&tree).unwrap();
        assert_eq!(serde_json::from_str::<Tree>(&text).unwrap().len(), tree.len());
    }
}
