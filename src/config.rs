//! The user's own settings, `$XDG_CONFIG_HOME/kiln/config.toml`. Nothing in it can change the bytes of an image.

use std::io;
use std::path::PathBuf;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Kind};
use crate::spec;

/// Where kiln keeps what it did, such as receipts: `$XDG_STATE_HOME/kiln`, else `~/.local/state/kiln` (XDG Base Directory Specification).
pub fn state_folder() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    let base = base.ok_or_else(|| {
        Failure::new(Kind::Store, "neither XDG_STATE_HOME nor HOME is set")
            .hint("set XDG_STATE_HOME to a folder for receipts")
    })?;
    Ok(std::path::absolute(base.join("kiln"))?)
}

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Debian mirrors that are asked last. `{archive}` in a URL becomes `debian` or `debian-security`; without it that name is
    /// appended.
    #[serde(default)]
    pub mirrors: Vec<String>,
}

impl Config {
    /// Where the file is looked for.
    pub fn path() -> Option<PathBuf> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let base = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
        Some(base.join("kiln/config.toml"))
    }

    /// Reads it; no file means no settings.
    pub fn load() -> Result<Self> {
        let Some(path) = Self::path() else { return Ok(Self::default()) };
        match spec::text::read(&path) {
            Ok(text) => spec::parse(&path.display().to_string(), &text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e.into()),
        }
    }
}
