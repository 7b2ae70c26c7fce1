//! Container images without a registry: composed of packages in the lock, or taken from a registry by digest; both end as an OCI archive in
//! the store, which K3s imports when it lies in `agent/images`.
//!
//! ```text
//! images/containers/NAME.toml                          [`ContainerSpec`]
//!    | set, recipe: packages and outputs in one tree      compose
//!    | image: manifest, config and layers by digest       pull
//!    v
//! steps/container/NAME-ARCH/KEY/image.tar              [`Archive`]
//! ```
//!
//! The formats themselves ([`types`], [`layer`], [`mod@write`], [`read`], [`mod@reference`]) know nothing of TOML or the store.

mod compose;
mod pull;

pub mod layer;
pub mod platform;
pub mod read;
pub mod reference;
pub mod types;
pub mod write;

pub use pull::pull;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::digest::{Digest, Hashing};
use crate::error::{Failure, Kind};
use crate::lock::time;
use crate::packages::Work;
use crate::spec::{ContainerSpec, nearest};
use crate::store::{Root, StepKey};
use reference::Reference;
use types::{CONFIG, Execution, ImageConfig, LAYER, MANIFEST, Manifest, Platform, RootFs};
use write::{Blob, Bytes, Image};

/// Raised when the same inputs make other bytes.
const VERSION: u32 = 1;
/// Name of the archive in its step.
const FILE: &str = "image.tar";

/// A container image in the store.
#[derive(Debug, Clone, Serialize)]
pub struct Archive {
    /// Name of its TOML file.
    pub name: String,
    /// What containerd knows it by.
    pub reference: String,
    /// The OCI archive.
    pub path: PathBuf,
    /// Digest of the image's manifest.
    pub digest: Digest,
    /// Bytes of the archive.
    pub size: u64,
    /// Its step, relative to the store: for whoever needs it to stay there.
    pub relative: String,
}

/// How many paths that lose their privileges are named.
const SHOWN: usize = 10;

/// What lies beside the archive.
#[derive(Serialize, Deserialize)]
struct About {
    manifest: Digest,
}

/// The container `name` of the project.
fn get<'a>(work: &Work<'a>, name: &str) -> Result<&'a ContainerSpec> {
    let all = &work.project.containers;
    all.get(name).ok_or_else(|| {
        let failure = Failure::new(Kind::Input, format!("there is no images/containers/{name}.toml"));
        match nearest(name, all.keys().map(String::as_str)) {
            Some(near) => failure.hint(format!("did you mean `{near}`?")),
            None => failure.hint("`kiln container list` shows those that there are"),
        }
        .into()
    })
}

fn key(work: &Work<'_>, name: &str, spec: &ContainerSpec, arch: Arch) -> Result<StepKey> {
    // What is said about an image, but not in it.
    let said = ContainerSpec { description: String::new(), ..spec.clone() };
    let key = StepKey::new("container", &format!("{name}-{arch}"), VERSION)
        .input("toml", Digest::of(&serde_json::to_vec(&said)?));
    match spec.image {
        Some(_) => Ok(key),
        None => compose::inputs(work, spec, arch, key),
    }
}

/// Everything that the container `name` depends on, from lock and TOML files alone.
pub fn digest(work: &Work<'_>, name: &str, arch: Arch) -> Result<Digest> {
    Ok(key(work, name, get(work, name)?, arch)?.digest())
}

/// The container `name` if it is in the store.
pub fn find(work: &Work<'_>, name: &str, arch: Arch) -> Result<Option<Archive>> {
    let spec = get(work, name)?;
    match work.store.find_step(&key(work, name, spec, arch)?) {
        Ok(dir) => Ok(Some(of(work, name, spec, dir.path())?)),
        Err(_) => Ok(None),
    }
}

/// The container `name`, composed or pulled if it is not in the store.
///
/// # Errors
/// [`Kind::Input`] if there is no such container or its programs could not start; [`Kind::Fetch`] if a registry or mirror fails.
pub fn archive(work: &Work<'_>, name: &str, arch: Arch) -> Result<Archive> {
    let spec = get(work, name)?;
    let outcome = work
        .store
        .step(
            &key(work, name, spec, arch)?,
            |miss| work.ui.status("Composing", format!("container {name} ({arch}): {miss}")),
            |staging| {
                let layer = staging.file("layer.tar");
                let image = match &spec.image {
                    Some(image) => {
                        pull(work.store, work.ui, &image.parse()?, &spec.reference.parse()?, arch)?
                    }
                    None => compose_image(work, name, spec, arch, &layer)?,
                };
                let manifest = write_archive(&image, &staging.file(FILE))?;
                // The archive has it.
                if layer.exists() {
                    fs::remove_file(&layer)?;
                }
                fs::write(staging.file("image.json"), serde_json::to_vec(&About { manifest })?)?;
                Ok(vec![])
            },
        )
        .with_context(|| format!("making the container {name}"))?;
    let archive = of(work, name, spec, outcome.dir.path())?;
    if spec.set.is_some() {
        let lost = compose::stripped(work, spec, arch)?;
        if !lost.is_empty() {
            let shown = lost.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more =
                if lost.len() > SHOWN { format!(" and {} more", lost.len() - SHOWN) } else { String::new() };
            let text = format!(
                "privileges and owners in container {name} ({arch}): {shown}{more}; `privileges` in images/containers/{name}.toml keeps them"
            );
            work.ui.notice("Dropped", text);
        }
    }
    work.store.set_root(&Root {
        project: work.project.dir.clone(),
        what: format!("container {name} {arch}"),
        needs: [archive.relative.clone()].into(),
    })?;
    Ok(archive)
}

fn of(work: &Work<'_>, name: &str, spec: &ContainerSpec, dir: &Path) -> Result<Archive> {
    let path = dir.join(FILE);
    let about: About = serde_json::from_slice(&fs::read(dir.join("image.json"))?).map_err(|e| {
        Failure::new(Kind::Store, format!("{} is damaged", dir.display()))
            .hint("run `kiln store verify --repair`")
            .because(e)
    })?;
    Ok(Archive {
        name: name.to_owned(),
        reference: spec.reference.clone(),
        digest: about.manifest,
        size: fs::metadata(&path)?.len(),
        path,
        relative: work.store.relative(dir),
    })
}

/// Writes the archive of `image` to `path`; gives the digest of its manifest.
pub fn write_archive(image: &Image, path: &Path) -> Result<Digest> {
    let out = std::io::BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    write::archive(image, out).with_context(|| format!("writing {}", path.display()))
}

/// The image that `spec` describes; its one layer is written to `layer`.
fn compose_image(
    work: &Work<'_>,
    name: &str,
    spec: &ContainerSpec,
    arch: Arch,
    layer: &Path,
) -> Result<Image> {
    let tree = compose::tree(work, name, spec, arch)?;
    let epoch = work.locked.lock().epoch();
    let mut out = Hashing::new(std::io::BufWriter::with_capacity(1 << 20, fs::File::create(layer)?));
    layer::write(&tree, epoch, &mut out)?;
    let (_, digest, size) = out.finish();
    let layer = Blob { digest, size, bytes: Bytes::File(layer.to_owned()) };
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let env: Vec<String> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let config = ImageConfig {
        created: Some(time::iso(epoch)),
        architecture: arch.debian().to_owned(),
        os: "linux".to_owned(),
        config: Some(Execution {
            user: spec.user.clone(),
            env: some(&env),
            entrypoint: some(&spec.entrypoint),
            cmd: some(&spec.cmd),
            working_dir: spec.workdir.clone(),
        }),
        rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![format!("sha256:{digest}")] },
    };
    let config = Blob::of(serde_json::to_vec(&config)?);
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        config: config.descriptor(CONFIG),
        layers: vec![layer.descriptor(LAYER)],
    };
    let reference: Reference = spec.reference.parse()?;
    Ok(Image {
        name: reference.name(),
        tag: reference.tag,
        platform: Platform { architecture: arch.debian().to_owned(), os: "linux".to_owned(), variant: None },
        manifest: serde_json::to_vec(&manifest)?,
        blobs: vec![config, layer],
    })
}
