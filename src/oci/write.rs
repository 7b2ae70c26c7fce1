//! One image as an OCI archive: the tar archive of a layout (image-spec, image-layout.md), in an order and with times that depend on nothing
//! but its content.
//!
//! ```text
//! blobs/sha256/…   manifest, config, layers
//! index.json       the manifest, with the names that containerd and others look for
//! manifest.json    the same for `docker load` and its kind
//! oci-layout
//! ```

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use fs_err as fs;
use serde::Serialize;
use tar::{Builder, EntryType, Header};

use super::types::{
    CONTAINERD_NAME, Descriptor, DockerEntry, INDEX, Index, LayoutVersion, MANIFEST, Manifest, Platform,
    REF_NAME, VERSION, blob_path,
};
use crate::digest::{Digest, Hashing};

/// Where the bytes of a blob are.
#[derive(Debug, Clone)]
pub enum Bytes {
    /// Here.
    Memory(Vec<u8>),
    /// In a file.
    File(PathBuf),
}

/// A blob that is to be written.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Blob {
    /// A blob in memory.
    pub fn of(bytes: Vec<u8>) -> Self {
        Blob { digest: Digest::of(&bytes), size: bytes.len() as u64, bytes: Bytes::Memory(bytes) }
    }

    /// Names it as `media_type`.
    pub fn descriptor(&self, media_type: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: self.digest,
            size: self.size,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// An image that is to be written.
#[derive(Debug, Clone)]
pub struct Image {
    /// What containerd shall call it.
    pub name: String,
    /// The tag in that name.
    pub tag: Option<String>,
    /// For which machine.
    pub platform: Platform,
    /// The manifest as it is named by digest: somebody else's is not written anew.
    pub manifest: Vec<u8>,
    /// What the manifest names: the config, then the layers.
    pub blobs: Vec<Blob>,
}

/// Writes the archive of `image`; gives the digest of its manifest.
///
/// # Errors
/// Kind `InvalidData` if the manifest is none, if a blob that it names is not there, or if one does not have its digest any more.
pub fn archive(image: &Image, out: impl Write) -> io::Result<Digest> {
    let manifest: Manifest = serde_json::from_slice(&image.manifest).map_err(invalid)?;
    let digest = Digest::of(&image.manifest);
    let mut members: BTreeMap<String, Blob> = BTreeMap::new();
    let index = index(image, manifest.media_type.as_deref().unwrap_or(MANIFEST), digest);
    let layers = manifest.layers.iter().map(|layer| blob_path(layer.digest)).collect();
    let tagged = image.tag.is_some().then(|| image.name.clone());
    let docker = [DockerEntry {
        config: blob_path(manifest.config.digest),
        repo_tags: tagged.into_iter().collect(),
        layers,
    }];
    for named in [&manifest.config].into_iter().chain(&manifest.layers) {
        let blob = image.blobs.iter().find(|blob| blob.digest == named.digest && blob.size == named.size);
        let missing = || invalid(format!("the blob {} is not at hand with its length", named.digest));
        members.insert(blob_path(named.digest), blob.ok_or_else(missing)?.clone());
    }
    members.insert(blob_path(digest), Blob::of(image.manifest.clone()));
    members.insert("index.json".to_owned(), json(&index)?);
    members.insert("manifest.json".to_owned(), json(&docker)?);
    members
        .insert("oci-layout".to_owned(), json(&LayoutVersion { image_layout_version: VERSION.to_owned() })?);
    let mut builder = Builder::new(out);
    for folder in ["blobs/", "blobs/sha256/"] {
        builder.append_data(&mut header(EntryType::Directory, 0o755, 0), folder, io::empty())?;
    }
    for (path, blob) in &members {
        let mut header = header(EntryType::Regular, 0o644, blob.size);
        let mut reader = Hashing::new(match &blob.bytes {
            Bytes::Memory(bytes) => Box::new(bytes.as_slice()) as Box<dyn Read>,
            Bytes::File(path) => Box::new(fs::File::open(path)?.take(blob.size)),
        });
        builder.append_data(&mut header, path, &mut reader)?;
        if reader.finish().1 != blob.digest {
            return Err(invalid(format!("{path} does not have its digest any more")));
        }
    }
    builder.into_inner()?.flush()?;
    Ok(digest)
}

fn index(image: &Image, media_type: &str, digest: Digest) -> Index {
    let mut annotations = BTreeMap::from([(CONTAINERD_NAME.to_owned(), image.name.clone())]);
    if let Some(tag) = &image.tag {
        annotations.insert(REF_NAME.to_owned(), tag.clone());
    }
    let manifest = Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size: image.manifest.len() as u64,
        platform: Some(image.platform.clone()),
        annotations,
    };
    Index { schema_version: 2, media_type: Some(INDEX.to_owned()), manifests: vec![manifest] }
}

fn json(value: &impl Serialize) -> io::Result<Blob> {
    Ok(Blob::of(serde_json::to_vec(value)?))
}

/// Time 0: the archive is a wrapping, and what has a time inside of it keeps its own.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
