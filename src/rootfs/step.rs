//! What the steps of a root share: one error type, and reading and writing small text files in a [`Tree`].
//!
//! A step is a pure function over a [`Tree`]. It reads what packages put there and adds what their maintainer scripts
//! would have made; each file it makes is owned by `kiln:STEP`.

use std::io;

use crate::tree::{Entry, Kind, PathError, Tree, TreeError, TreePath};

/// Why a step could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The tree refused an entry.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A path made from text of a package is no path inside an image.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The bytes of a file could not be read, or are not the text they should be.
    #[error("reading /{path}")]
    Read {
        /// The file in the tree.
        path: TreePath,
        /// What went wrong underneath.
        source: io::Error,
    },
    /// A line of a configuration file says something that the step cannot do.
    #[error("/{path}:{line}: {reason}")]
    Line {
        /// The file in the tree.
        path: TreePath,
        /// Line number, from 1.
        line: usize,
        /// What is wrong and what to write instead.
        reason: String,
    },
    /// Something that the step needs is not in the tree.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// The file, user, unit … that is not there.
        what: String,
        /// What puts it there.
        remedy: String,
    },
}

/// The text of the file that `path` leads to (links are followed), `None` if there is no regular file.
pub fn text(tree: &Tree, path: &str) -> Result<Option<String>, StepError> {
    let Some((path, entry)) = tree.follow(path) else { return Ok(None) };
    match entry.content() {
        None => Ok(None),
        Some(content) => content.read_text().map(Some).map_err(|source| StepError::Read { path, source }),
    }
}

/// The bytes of the file that `path` leads to, as [`text`].
pub fn bytes(tree: &Tree, path: &str) -> Result<Option<Vec<u8>>, StepError> {
    let Some((path, entry)) = tree.follow(path) else { return Ok(None) };
    match entry.content() {
        None => Ok(None),
        Some(content) => content.read().map(Some).map_err(|source| StepError::Read { path, source }),
    }
}

/// Puts `entry` at `path`, going through links of the directories above it as a program would (`/lib/x` is
/// `/usr/lib/x` on a merged /usr). A link at `path` itself is replaced, not followed.
pub fn put(tree: &mut Tree, path: &str, entry: Entry) -> Result<(), StepError> {
    let path = path.trim_start_matches('/');
    let path = match path.rsplit_once('/') {
        None => TreePath::new(path)?,
        Some((parent, name)) => match tree.resolve(parent)? {
            Some(parent) => TreePath::new(&format!("{parent}/{name}"))?,
            None => TreePath::new(path)?,
        },
    };
    tree.insert(path, entry)?;
    Ok(())
}

/// The names of the regular files and links directly in the directory that `dir` leads to, sorted.
pub fn names(tree: &Tree, dir: &str) -> Vec<String> {
    let Ok(Some(dir)) = tree.resolve(dir) else { return Vec::new() };
    tree.children(&dir)
        .filter(|(_, e)| matches!(e.kind, Kind::File(_) | Kind::Symlink { .. }))
        .map(|(p, _)| p.name().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn put_goes_through_a_linked_parent_and_replaces_a_link_at_the_end() {
        let mut tree = Tree::new();
        put(&mut tree, "usr/lib/a", Entry::symlink("b", "p")).unwrap();
        put(&mut tree, "lib", Entry::symlink("usr/lib", "p")).unwrap();
        put(&mut tree, "/lib/a", Entry::file(0o644, "text", "p")).unwrap();
        assert_eq!(text(&tree, "/usr/lib/a").unwrap().as_deref(), Some("text"));
        assert_eq!(names(&tree, "lib"), ["a"]);
        assert!(text(&tree, "lib").unwrap().is_none(), "a directory has no text");
    }
}
