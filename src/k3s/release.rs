//! Which way K3s comes into an image: its release, by digest, or our own build from its Go modules where nobody has the release.

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::bundle;
use crate::arch::Arch;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::fetch::{Fetcher, NotFetched};
use crate::inventory::{FromRelease, Made};
use crate::linux;
use crate::packages::Work;
use crate::recipe;
use crate::spec::{K3s, Profile, ReleaseFile, WantedWay};
use crate::store::StepKey;
use crate::unpack::{self, PackageKind, Unpacked};

/// Raised when the same release is unpacked to something else.
const VERSION: u32 = 1;
/// The most that a release may have, bytes; those of 2025 have 70 MB.
pub(super) const LARGEST: u64 = 1 << 30;

/// The way that K3s takes into an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Upstream's release.
    Binary,
    /// Its Go modules, compiled by a recipe.
    Source,
}

/// The file of a release for `arch`, if the TOML files name one, with the places it may be had from.
fn file(k3s: &K3s, arch: Arch) -> Option<(&ReleaseFile, Vec<String>)> {
    let release = k3s.release.as_ref()?;
    let file = release.file(arch)?;
    Some((file, places(&release.urls, &file.name)))
}

/// Where a file may be had that lies in the folders `urls`.
pub(super) fn places(urls: &[String], name: &str) -> Vec<String> {
    urls.iter().map(|url| format!("{}/{name}", url.trim_end_matches('/'))).collect()
}

/// Chooses the way for a profile's K3s, which is fetched if it is the release; `None` without K3s.
///
/// `auto` takes what the store has, the release before a build, and asks for the release only if it has neither. So a build that needs
/// nothing from outside asks nobody.
///
/// # Errors
/// [`Kind::Fetch`] if the release cannot be had and nothing else is allowed. Bytes with a wrong digest are never a reason to go the other
/// way: somebody changed them.
pub fn choose(work: &Work<'_>, profile: &Profile, arch: Arch) -> Result<Option<Way>> {
    let Some(k3s) = &profile.layer.k3s else { return Ok(None) };
    let release = file(k3s, arch);
    let wanted = k3s.way.unwrap_or_default();
    let missing = |what: &str, hint: &str| -> anyhow::Error {
        let text = format!("K3s {} for {arch}: {what}", k3s.version());
        Failure::new(Kind::Input, text).hint(hint.to_owned()).into()
    };
    match (wanted, &release) {
        (WantedWay::Source, _) if k3s.source.is_empty() => {
            return Err(missing("no recipe builds it", "name one in `k3s.source`"));
        }
        (WantedWay::Source, _) | (WantedWay::Auto, None) => return Ok(Some(Way::Source)),
        (WantedWay::Binary, None) => {
            return Err(missing(
                "no release is pinned",
                "add `k3s.release`, or build it with `--source k3s`",
            ));
        }
        (WantedWay::Binary | WantedWay::Auto, Some(_)) => {}
    }
    let Some((file, urls)) = release else { return Ok(Some(Way::Source)) };
    if work.store.object_path(file.sha256).is_file() {
        return Ok(Some(Way::Binary));
    }
    let fallback = wanted == WantedWay::Auto && !k3s.source.is_empty() && Arch::host() == Some(arch);
    if fallback && is_built(work, k3s)? {
        return Ok(Some(Way::Source));
    }
    let name = format!("K3s {} ({})", k3s.version(), file.name);
    match Fetcher::new(work.store, work.ui)?.fetch_unsized(&name, file.sha256, &urls, LARGEST) {
        Ok(_) => Ok(Some(Way::Binary)),
        Err(error) => {
            let found = error.chain().find_map(|cause| cause.downcast_ref::<NotFetched>());
            if fallback && found.is_some_and(|why| !why.wrong) {
                let why = format!("{error:#}").replace('\n', " ");
                work.ui.warn(format!(
                    "the release of {name} is out of reach, so it is built from source ({why})"
                ));
                return Ok(Some(Way::Source));
            }
            let hint = if found.is_some_and(|why| why.wrong) {
                "these bytes are not the release that is pinned; nothing is put in their place"
            } else {
                "give this machine a way there, add a place that has it to `k3s.release.urls`, or build it with `--source k3s`"
            };
            Err(Failure::new(Kind::Fetch, format!("{name} cannot be had")).hint(hint).because(error).into())
        }
    }
}

/// Whether all recipes of the source way are in the store.
fn is_built(work: &Work<'_>, k3s: &K3s) -> Result<bool> {
    let recipes = linux::recipes(work.project)?;
    for name in &k3s.source {
        if recipe::find(work, &recipes, recipes.get(name)?)?.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What stands for the release in the key of an image.
pub(super) fn digest(k3s: &K3s, arch: Arch) -> Option<Digest> {
    Some(file(k3s, arch)?.0.sha256)
}

/// Where the release of a profile's K3s lies in the store.
pub(super) fn object(work: &Work<'_>, k3s: &K3s, arch: Arch) -> Option<std::path::PathBuf> {
    Some(work.store.object_path(digest(k3s, arch)?))
}

/// The programs of the release as a package.
pub(super) fn package(work: &Work<'_>, k3s: &K3s, arch: Arch) -> Result<Unpacked> {
    const NAME: &str = "k3s";
    let (file, urls) = file(k3s, arch).context("no release of K3s is pinned")?;
    let object = work.store.object_path(file.sha256);
    let key = StepKey::new("release", NAME, VERSION)
        .input("sha256", file.sha256)
        .input("version", k3s.version())
        .input("unpack", unpack::VERSION);
    let staging = work.store.staging()?;
    let folder = staging.file("root");
    fs::create_dir_all(&folder)?;
    if work.store.find_step(&key).is_err() {
        let bytes = fs::read(&object)?;
        // The store may have lost bytes in a power cut, or somebody may have changed them.
        if Digest::of(&bytes) != file.sha256 {
            work.store.forget_object(file.sha256)?;
            return Err(Failure::new(
                Kind::Store,
                format!("the object of K3s {} in the store is damaged", k3s.version()),
            )
            .hint("it was taken out; run the same command again to fetch it")
            .into());
        }
        bundle::unpack(&bytes, k3s.version(), &folder.join("usr/bin")).map_err(|error| {
            let text =
                format!("{} of K3s {} has its digest and is not what it should be", file.name, k3s.version());
            Failure::new(Kind::Input, text)
                .hint("compare `k3s.release` with what upstream published")
                .because(error)
        })?;
    }
    let info = super::info(NAME, k3s.version(), arch, "K3s, of its release");
    let release = FromRelease { file: file.name.clone(), sha256: file.sha256, urls };
    let kind = PackageKind::Made(Made::Release(release));
    unpack::folder(work.store, &key, &folder, info, kind, vec![work.store.relative(&object)])
}
