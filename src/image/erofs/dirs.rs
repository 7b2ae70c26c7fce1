//! The nodes of an image in the order in which they lie, and the blocks of directories.
//!
//! A directory is blocks of 4 KiB; each begins with its records (`struct erofs_dirent`, 12 bytes) and goes on with their
//! names. Records are sorted by the bytes of the name over the whole directory, `.` and `..` among them, because the
//! kernel looks names up by halving.

use std::collections::HashMap;
use std::ops::Range;

use super::format::{BLOCK, put16, put64};
use crate::tree::{Entry, Kind, Tree};

/// Bytes of `struct erofs_dirent`.
const DIRENT: usize = 12;

/// One inode to be.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// Path without leading slash, empty for the root.
    pub(super) path: &'a str,
    /// `None` is the root.
    pub(super) entry: Option<&'a Entry>,
    /// Number of the directory above; the root is above itself.
    pub(super) parent: usize,
    /// Of a directory: its children by name.
    pub(super) children: Vec<usize>,
}

impl Node<'_> {
    /// The last component.
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    pub(super) fn is_dir(&self) -> bool {
        self.entry.is_none_or(Entry::is_dir)
    }

    /// `EROFS_FT_*`.
    fn file_type(&self) -> u8 {
        match self.entry.map(|e| &e.kind) {
            Some(Kind::File(_)) => 1,
            None | Some(Kind::Dir) => 2,
            Some(Kind::Char { .. }) => 3,
            Some(Kind::Block { .. }) => 4,
            Some(Kind::Fifo) => 5,
            Some(Kind::Symlink { .. }) => 7,
        }
    }
}

/// All nodes of `tree`, the root first: a directory, then what is in it except directories, then each subdirectory in the
/// same way. What is looked up together lies together.
pub(super) fn nodes(tree: &Tree) -> Vec<Node<'_>> {
    let mut sorted = vec![Node { path: "", entry: None, parent: 0, children: Vec::new() }];
    // Only looked up in, never walked.
    let mut dirs = HashMap::from([("", 0)]);
    for (path, entry) in tree.iter() {
        let n = sorted.len();
        // A tree always has the parents of its entries, and before them.
        let parent = dirs.get(path.parent().unwrap_or_default()).copied().unwrap_or(0);
        sorted.push(Node { path, entry: Some(entry), parent, children: Vec::new() });
        sorted[parent].children.push(n);
        if entry.is_dir() {
            dirs.insert(path.as_str(), n);
        }
    }
    let mut order = vec![0];
    let mut todo = vec![0];
    while let Some(dir) = todo.pop() {
        let (below, beside): (Vec<usize>, Vec<usize>) =
            sorted[dir].children.iter().partition(|&&n| sorted[n].is_dir());
        if dir != 0 {
            order.push(dir);
        }
        order.extend(beside);
        todo.extend(below.into_iter().rev());
    }
    let mut place = vec![0; sorted.len()];
    for (new, &old) in order.iter().enumerate() {
        place[old] = new;
    }
    let mut nodes: Vec<Node<'_>> = order
        .iter()
        .map(|&old| {
            let node = &mut sorted[old];
            Node { parent: place[node.parent], children: std::mem::take(&mut node.children), ..*node }
        })
        .collect();
    for node in &mut nodes {
        for child in &mut node.children {
            *child = place[*child];
        }
    }
    nodes
}

/// The records of directory `dir`: name and node, sorted by name.
fn records<'a>(nodes: &'a [Node<'_>], dir: usize) -> Vec<(&'a str, usize)> {
    let node = &nodes[dir];
    let mut records: Vec<(&str, usize)> = node.children.iter().map(|&n| (nodes[n].name(), n)).collect();
    records.push((".", dir));
    records.push(("..", node.parent));
    records.sort_unstable();
    records
}

/// Which records go into which block, and how many bytes the last block uses.
fn fill(records: &[(&str, usize)]) -> (Vec<Range<usize>>, usize) {
    let mut blocks = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (i, (name, _)) in records.iter().enumerate() {
        if used + DIRENT + name.len() > BLOCK as usize {
            blocks.push(start..i);
            (start, used) = (i, 0);
        }
        used += DIRENT + name.len();
    }
    blocks.push(start..records.len());
    (blocks, used)
}

/// Length in bytes of directory `dir`.
pub(super) fn len(nodes: &[Node<'_>], dir: usize) -> u64 {
    let (blocks, used) = fill(&records(nodes, dir));
    (blocks.len() as u64 - 1) * BLOCK + used as u64
}

/// The bytes of directory `dir`; `nid(n)` is the number of node `n` in the image.
pub(super) fn bytes(nodes: &[Node<'_>], dir: usize, nid: impl Fn(usize) -> u64) -> Vec<u8> {
    let records = records(nodes, dir);
    let mut out = Vec::new();
    for block in fill(&records).0 {
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        let mut name_at = block.len() * DIRENT;
        for (name, n) in &records[block.clone()] {
            put64(&mut out, nid(*n));
            put16(&mut out, name_at as u16);
            out.extend([nodes[*n].file_type(), 0]);
            name_at += name.len();
        }
        for (name, _) in &records[block] {
            out.extend(name.as_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::TreePath;

    fn tree(paths: &[&str]) -> Tree {
        let mut tree = Tree::new();
        for path in paths {
            let (path, entry) = match path.strip_suffix('/') {
                Some(dir) => (dir, Entry::dir(0o755, "t")),
                None => (*path, Entry::file(0o644, "", "t")),
            };
            tree.insert(TreePath::new(path).unwrap(), entry).unwrap();
        }
        tree
    }

    #[test]
    fn files_of_a_directory_lie_beside_it_and_before_its_subdirectories() {
        let tree = tree(&["a/x/deep", "a/z", "a-b", "b/"]);
        let nodes = nodes(&tree);
        let order: Vec<&str> = nodes.iter().map(|n| n.path).collect();
        assert_eq!(order, ["", "a-b", "a", "a/z", "a/x", "a/x/deep", "b"]);
        assert_eq!(nodes.iter().map(|n| n.parent).collect::<Vec<_>>(), [0, 0, 0, 2, 2, 4, 0]);
    }

    #[test]
    fn the_dot_names_are_sorted_among_the_others() {
        let tree = tree(&["-", "/!"].map(|p| p.trim_start_matches('/')));
        let nodes = nodes(&tree);
        let names: Vec<&str> = records(&nodes, 0).iter().map(|r| r.0).collect();
        assert_eq!(names, ["!", "-", ".", ".."]);
    }

    #[test]
    fn a_directory_is_cut_where_the_next_name_does_not_fit() {
        // `.` and `..` take 13 + 14 bytes, each name 12 + 251: 15 names fill 3945 + 27 bytes, the 16th does not fit.
        let names: Vec<String> = (0..16).map(|n| format!("x{n:0250}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let fifteen = tree(&names[..15]);
        assert_eq!(len(&nodes(&fifteen), 0), 3972);
        let sixteen = tree(&names);
        let sixteen = nodes(&sixteen);
        assert_eq!(len(&sixteen, 0), 4096 + 263);
        let bytes = bytes(&sixteen, 0, |n| n as u64);
        assert_eq!(bytes.len(), 4096 + 263);
        assert_eq!(bytes[3972..4096], [0; 124], "the unused end of a block is zero");
        assert_eq!(bytes[4096..4108], [16, 0, 0, 0, 0, 0, 0, 0, 12, 0, 1, 0]);
    }
}
