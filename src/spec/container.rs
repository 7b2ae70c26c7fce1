//! `images/containers/NAME.toml`: a container image that nodes bring along, so that they need no registry.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;
use globset::Glob;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::layer::FileSpec;
use super::project::{Tools, check_file, check_schema, read};
use super::{nearest, text};
use crate::error::{Failure, Kind};
use crate::oci::reference::Reference;

/// Folder of the files, relative to the project.
pub(super) const FOLDER: &str = "images/containers";

/// A container image: put together by kiln of packages and what recipes build, or taken from a registry by digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Version of this file's shape; 1.
    pub schema: u32,
    /// What it is for, in one line.
    pub description: String,
    /// What containerd knows it by, and pods ask for: `host/repository:tag`.
    pub reference: String,
    /// Taken from a registry: `host/repository@sha256:…`, the digest of an index or of a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Put together: tool set of images/tools.toml whose packages are unpacked into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// Put together: folder of images/recipes whose outputs are put into its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// Globs, absolute, of what stays of packages and outputs; default: everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<String>,
    /// Globs, absolute, of what keeps the owner, the set-user-id and set-group-id bits and the capabilities that its package gave it.
    /// Everything else from packages belongs to root and loses them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub privileges: Vec<String>,
    /// Further files, links and folders, by absolute path. A `source` lies beside this TOML file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, FileSpec>,
    /// Program and first arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Arguments that a pod's `args` replace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// `uid`, `uid:gid`, or a name in the image's /etc/passwd; default: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working folder; default: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Bytes of all `source` files, by absolute path in the image.
    #[serde(skip)]
    pub sources: BTreeMap<String, Vec<u8>>,
}

/// All of them, by name; a project need not have any.
pub(super) fn load_all(dir: &Path, tools: &Tools) -> Result<BTreeMap<String, ContainerSpec>> {
    let mut all: BTreeMap<String, ContainerSpec> = BTreeMap::new();
    let folder = dir.join(FOLDER);
    if !folder.is_dir() {
        return Ok(all);
    }
    for name in text::stems(&folder)? {
        let container = ContainerSpec::load(dir, &name, tools)?;
        if let Some((twin, _)) = all.iter().find(|(_, other)| other.reference == container.reference) {
            let text = format!("{FOLDER}: {twin}.toml and {name}.toml have the same `reference`");
            return Err(Failure::new(Kind::Input, text)
                .hint("containerd would keep only one of both: rename one")
                .into());
        }
        all.insert(name, container);
    }
    Ok(all)
}

impl ContainerSpec {
    fn load(dir: &Path, name: &str, tools: &Tools) -> Result<Self> {
        let file = format!("{FOLDER}/{name}.toml");
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        if !name.chars().all(plain) {
            let text = format!("{file}: a container's name has small letters, digits, - and _ only");
            return Err(Failure::new(Kind::Input, text).into());
        }
        let mut container: ContainerSpec = read(dir, &file)?;
        check_schema(&file, container.schema)?;
        container.check(&file, tools)?;
        for (path, spec) in &container.files {
            check_file(&file, path, spec)?;
            if let Some(source) = &spec.source {
                let from = dir.join(FOLDER).join(source);
                let bytes = fs::read(&from).with_context(|| format!("{file}: the source of {path}"))?;
                text::refuse_crlf(&format!("{FOLDER}/{source}"), Some(path), &bytes)?;
                container.sources.insert(path.clone(), bytes);
            }
        }
        Ok(container)
    }

    fn check(&self, file: &str, tools: &Tools) -> Result<(), Failure> {
        let refuse = |why: String| Failure::new(Kind::Input, format!("{file}: {why}"));
        let reference: Reference = self.reference.parse().map_err(|e| refuse(format!("`reference`: {e}")))?;
        if reference.tag.is_none() || reference.digest.is_some() {
            return Err(refuse(
                "`reference` has a tag and no digest: pods ask for it by that name".to_owned(),
            ));
        }
        let composed = self.set.is_some() || self.recipe.is_some();
        if composed == self.image.is_some() {
            return Err(refuse(
                "an image is either put together of `set` and `recipe`, or taken by `image`".to_owned(),
            ));
        }
        if let Some(image) = &self.image {
            let pulled: Reference = image.parse().map_err(|e| refuse(format!("`image`: {e}")))?;
            if pulled.digest.is_none() {
                return Err(refuse(format!("`image`: {image} has no digest, so it could be anything")).hint(
                    "add `@sha256:…`, as the registry or `docker buildx imagetools inspect` shows it",
                ));
            }
            let own = [
                self.keep.is_empty() && self.privileges.is_empty(),
                self.files.is_empty(),
                self.entrypoint.is_empty(),
                self.cmd.is_empty(),
            ];
            let plain = self.env.is_empty() && self.user.is_none() && self.workdir.is_none();
            if own.contains(&false) || !plain {
                return Err(refuse(
                    "an image from a registry is taken as it is; only `reference` can be another".to_owned(),
                ));
            }
        }
        if let Some(set) = self.set.as_ref().filter(|set| !tools.set.contains_key(*set)) {
            let failure = refuse(format!("`set`: there is no tool set `{set}` in images/tools.toml"));
            return Err(match nearest(set, tools.set.keys().map(String::as_str)) {
                Some(near) => failure.hint(format!("did you mean `{near}`?")),
                None => failure,
            });
        }
        for glob in &self.keep {
            if !glob.starts_with('/') {
                return Err(refuse(format!("`keep`: `{glob}` does not begin with /")));
            }
            Glob::new(glob).map_err(|e| refuse(format!("`keep`: `{glob}` is no glob: {}", e.kind())))?;
        }
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains('=')) {
            return Err(refuse(format!("`env`: `{name}` is no name of a variable")));
        }
        if self.workdir.as_ref().is_some_and(|dir| !dir.starts_with('/')) {
            return Err(refuse("`workdir` does not begin with /".to_owned()));
        }
        Ok(())
    }
}
