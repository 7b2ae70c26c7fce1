//! Paths inside an image.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize};

/// A clean path inside an image, relative to its root: UTF-8, no leading or trailing slash, no empty, `.` or `..`
/// component, no NUL, each component at most 255 bytes (`NAME_MAX`), the whole at most 4095 (`PATH_MAX` less its NUL).
///
/// Debian Policy 10.10 demands UTF-8 file names, so anything else in a package is refused.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TreePath(String);

/// Why text is no [`TreePath`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{path}` is not a path inside an image: {reason}")]
pub struct PathError {
    path: String,
    reason: &'static str,
}

impl TreePath {
    /// Checks `path`; nothing is cleaned silently.
    pub fn new(path: &str) -> Result<Self, PathError> {
        let refuse = |reason| Err(PathError { path: path.escape_debug().take(200).collect(), reason });
        if path.is_empty() {
            return refuse("it is empty");
        }
        if path.len() > 4095 {
            return refuse("it is longer than 4095 bytes");
        }
        if path.contains('\0') {
            return refuse("it holds a NUL byte");
        }
        for part in path.split('/') {
            match part {
                "" => return refuse("it has an empty component"),
                "." => return refuse("it has a `.` component"),
                ".." => return refuse("it has a `..` component"),
                part if part.len() > 255 => return refuse("a component is longer than 255 bytes"),
                _ => {}
            }
        }
        Ok(TreePath(path.to_owned()))
    }

    /// Checks a path as archives spell it: `./usr/bin/`, `/usr/bin` and `usr/bin` are the same. `None` is the root itself.
    pub fn from_archive(path: &str) -> Result<Option<Self>, PathError> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let mut clean = path;
        while let Some(rest) = clean.strip_prefix("./") {
            clean = rest;
        }
        let clean = clean.strip_suffix('/').unwrap_or(clean);
        if clean.is_empty() || clean == "." { Ok(None) } else { Self::new(clean).map(Some) }
    }

    /// The text, without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().expect("rsplit gives at least one part")
    }

    /// The path above, `None` directly below the root.
    pub fn parent(&self) -> Option<&str> {
        self.0.rfind('/').map(|at| &self.0[..at])
    }

    /// All paths above, nearest first, the root not among them.
    pub fn ancestors(&self) -> impl Iterator<Item = &str> {
        let mut rest = self.0.as_str();
        std::iter::from_fn(move || {
            let at = rest.rfind('/')?;
            rest = &rest[..at];
            Some(rest)
        })
    }
}

impl Deref for TreePath {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for TreePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl<'de> Deserialize<'de> for TreePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        TreePath::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_could_leave_the_tree() {
        for bad in [
            "",
            "/",
            "a//b",
            "../etc",
            "a/../b",
            "a/.",
            "a\0b",
            "/etc/passwd",
            &"x".repeat(256),
            &"a/".repeat(2100),
        ] {
            assert!(TreePath::new(bad).is_err(), "{bad:?}");
        }
        assert!(TreePath::from_archive("./../etc").is_err());
    }

    #[test]
    fn reads_the_spellings_of_archives() {
        let same = Some(TreePath::new("usr/bin").unwrap());
        for spelling in ["./usr/bin/", "usr/bin", "/usr/bin", "././usr/bin"] {
            assert_eq!(TreePath::from_archive(spelling).unwrap(), same, "{spelling}");
        }
        for root in ["./", ".", "/", ""] {
            assert_eq!(TreePath::from_archive(root).unwrap(), None);
        }
    }

    #[test]
    fn ancestors_come_nearest_first() {
        let path = TreePath::new("a/b/c").unwrap();
        assert_eq!(path.ancestors().collect::<Vec<_>>(), ["a/b", "a"]);
        assert_eq!((path.name(), path.parent()), ("c", Some("a/b")));
    }
}
