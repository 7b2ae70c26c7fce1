//! `images/kernel/sources/NAME.toml`: a kernel that is built from source, and the fragments and patches that it names.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::project::{check_schema, read};
use super::text;
use crate::arch::Arch;
use crate::error::{Failure, Kind};
use crate::lock::time;
use crate::tree::TreePath;

/// Folder of the files, relative to the project.
pub(super) const FOLDER: &str = "images/kernel/sources";
/// Folder of the fragments.
const FRAGMENTS: &str = "images/kernel/fragments";
/// Folder of the patches.
const PATCHES: &str = "images/kernel/patches";

/// A kernel that is built from source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelSource {
    /// Version of this file's shape; 1.
    pub schema: u32,
    /// What it is for, in one line.
    pub description: String,
    /// The machine that it runs on; a kernel is built on a machine of its own kind.
    pub arch: Arch,
    /// Tool set of images/tools.toml with the sources as Debian ships them: one tar archive in usr/src.
    pub source: String,
    /// Tool set with the compiler and all else that a build needs.
    pub tools: String,
    /// What the fragments are merged over.
    #[serde(default)]
    pub base: Base,
    /// Files of images/kernel/fragments/, without `.config`, in the order they are merged.
    pub fragments: Vec<String>,
    /// Files of images/kernel/patches/, in the order they are applied, by patch -p1.
    #[serde(default)]
    pub patches: Vec<String>,
    /// The time in the kernel's version line, `2026-09-12T07:55:41Z`. Default: the lock's; a fixed one keeps the kernel when a new lock
    /// moves other packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Path in the project and text of each fragment.
    #[serde(skip)]
    pub fragment_texts: Vec<(String, String)>,
    /// Name and bytes of each patch.
    #[serde(skip)]
    pub patch_texts: Vec<(String, Vec<u8>)>,
}

/// What the fragments of a kernel are merged over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Base {
    /// `make allnoconfig`: what no fragment asks for is off, unless Kconfig wants it.
    #[default]
    Nothing,
    /// `make defconfig`: what the maintainers of the architecture think everybody wants.
    Defconfig,
}

/// All of them, by name; a project need not have any.
pub(super) fn load_all(dir: &Path) -> Result<BTreeMap<String, KernelSource>> {
    let mut all = BTreeMap::new();
    let folder = dir.join(FOLDER);
    if !folder.is_dir() {
        return Ok(all);
    }
    for name in text::stems(&folder)? {
        all.insert(name.clone(), KernelSource::load(dir, &name)?);
    }
    Ok(all)
}

impl KernelSource {
    fn load(dir: &Path, name: &str) -> Result<Self> {
        let file = format!("{FOLDER}/{name}.toml");
        let refuse = |why: String| Failure::new(Kind::Input, format!("{file}: {why}"));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        if !name.chars().all(plain) {
            return Err(refuse("a kernel's name has small letters, digits, - and _ only".to_owned()).into());
        }
        let mut kernel: KernelSource = read(dir, &file)?;
        check_schema(&file, kernel.schema)?;
        if kernel.time.as_ref().is_some_and(|t| time::parse_iso(t).is_none()) {
            return Err(refuse("`time` is no moment such as \"2026-09-12T07:55:41Z\"".to_owned()).into());
        }
        for fragment in &kernel.fragments {
            let path = inside(FRAGMENTS, &format!("{fragment}.config"))
                .map_err(|why| refuse(format!("`fragments`: {why}")))?;
            let text = text::read(&dir.join(&path)).with_context(|| format!("{file}: `fragments`"))?;
            kernel.fragment_texts.push((path, text));
        }
        for patch in &kernel.patches {
            let path = inside(PATCHES, patch).map_err(|why| refuse(format!("`patches`: {why}")))?;
            let bytes = fs::read(dir.join(&path)).with_context(|| format!("{file}: `patches`"))?;
            kernel.patch_texts.push((patch.clone(), bytes));
        }
        Ok(kernel)
    }
}

/// The path of `name` in `folder`, which it must not leave.
fn inside(folder: &str, name: &str) -> Result<String, String> {
    let path = format!("{folder}/{name}");
    match TreePath::new(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(format!("`{name}`: {error}")),
    }
}
