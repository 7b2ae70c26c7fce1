//! Reads layouts and OCI archives of others. Nothing in them is believed: an archive is never unpacked, every length has a limit, every
//! blob is held against its digest and its length, and what is no plain file counts as not there.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::platform::{is_about_another, is_image};
use super::types::{
    CONTAINERD_NAME, Descriptor, Document, INDEX, ImageConfig, Index, LayoutVersion, Manifest, REF_NAME,
    VERSION, blob_path, document,
};
use crate::digest::{Digest, Hashing};
use crate::tree::TreePath;

/// The longest JSON document: the limit that the distribution specification asks registries to take manifests of at least.
pub const DOCUMENT_BYTES: u64 = 4 << 20;
/// The most members of an archive; one with every image of a cluster has some hundreds.
const MEMBERS: usize = 20_000;
/// The longest extended header: some records with times and attributes.
const RECORD_BYTES: u64 = 64 << 10;
/// The most layers of an image: more than any container runtime can mount on each other.
pub const LAYERS: usize = 512;
/// The most images that are looked at in one layout.
const IMAGES: usize = 1_000;
/// How deep an index may lie in another.
const DEPTH: u32 = 3;

/// Why a layout cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file or folder itself.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not what it should be.
    #[error("{0}")]
    Wrong(String),
}

fn wrong<T>(why: impl Into<String>) -> Result<T, LayoutError> {
    Err(LayoutError::Wrong(why.into()))
}

/// A layout, in a folder or a tar archive.
#[derive(Debug)]
pub struct Layout {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    /// Path to offset and length in the file.
    Archive {
        file: std::fs::File,
        members: BTreeMap<TreePath, (u64, u64)>,
    },
}

/// One image of a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What the index calls it: containerd's name, else the tag.
    pub name: Option<String>,
    /// How the index names its manifest.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// The config.
    pub config: ImageConfig,
}

impl Found {
    /// Digest of its manifest.
    pub fn digest(&self) -> Digest {
        self.descriptor.digest
    }

    /// Bytes of config and layers.
    pub fn size(&self) -> u64 {
        self.manifest
            .layers
            .iter()
            .fold(self.manifest.config.size, |sum, layer| sum.saturating_add(layer.size))
    }
}

impl Layout {
    /// Opens the layout in the folder, or in the uncompressed tar archive, at `path`.
    ///
    /// # Errors
    /// It is no layout of version 1.0.0, or an archive with more members or stranger names than a layout has.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let place = if fs::metadata(path)?.is_dir() {
            Place::Folder(path.to_owned())
        } else {
            let file = fs::File::open(path)?.into_file();
            let members = members(&file)?;
            Place::Archive { file, members }
        };
        let layout = Layout { place };
        let version: LayoutVersion = match serde_json::from_slice(&layout.small("oci-layout")?) {
            Ok(version) => version,
            Err(e) => return wrong(format!("oci-layout: {e}")),
        };
        if version.image_layout_version != VERSION {
            return wrong(format!("its version is {}, not {VERSION}", shown(&version.image_layout_version)));
        }
        Ok(layout)
    }

    /// All images of the layout whose manifest is there, in the order of its index; what is about an image, such as its signature, is left
    /// out. Configs are read and checked, layers are not: [`Layout::copy`] does that.
    pub fn images(&self) -> Result<Vec<Found>, LayoutError> {
        let index: Index = match serde_json::from_slice(&self.small("index.json")?) {
            Ok(index) => index,
            Err(e) => return wrong(format!("index.json: {e}")),
        };
        let mut found = Vec::new();
        self.collect(&index, None, DEPTH, &mut found)?;
        Ok(found)
    }

    fn collect(
        &self,
        index: &Index,
        above: Option<&str>,
        depth: u32,
        found: &mut Vec<Found>,
    ) -> Result<(), LayoutError> {
        for descriptor in &index.manifests {
            if found.len() >= IMAGES {
                return wrong(format!("it has more than {IMAGES} images"));
            }
            if is_about_another(descriptor) {
                continue;
            }
            let own = [CONTAINERD_NAME, REF_NAME].iter().find_map(|key| descriptor.annotations.get(*key));
            let name = own.map(String::as_str).or(above);
            // An index may name platforms whose blobs were left out.
            if depth < DEPTH && !self.has(descriptor) {
                continue;
            }
            let bytes = self.document(descriptor)?;
            match document(&bytes)
                .map_err(|why| LayoutError::Wrong(format!("{}: {why}", descriptor.digest)))?
            {
                Document::Index(_) if depth == 0 => return wrong("its indexes lie too deep in each other"),
                Document::Index(inner) => self.collect(&inner, name, depth - 1, found)?,
                Document::Manifest(manifest) if manifest.layers.len() > LAYERS => {
                    return wrong(format!("{} has more than {LAYERS} layers", descriptor.digest));
                }
                Document::Manifest(manifest) if !is_image(&manifest) => {}
                Document::Manifest(manifest) => {
                    let config = match serde_json::from_slice(&self.document(&manifest.config)?) {
                        Ok(config) => config,
                        Err(e) => return wrong(format!("config {}: {e}", manifest.config.digest)),
                    };
                    found.push(Found {
                        name: name.map(str::to_owned),
                        descriptor: descriptor.clone(),
                        manifest,
                        config,
                    });
                }
            }
        }
        Ok(())
    }

    /// A JSON blob, checked.
    pub fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, LayoutError> {
        if descriptor.size > DOCUMENT_BYTES {
            return wrong(format!("{} is longer than a document may be", descriptor.digest));
        }
        let mut bytes = Vec::new();
        self.copy(descriptor, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies a blob to `out` and checks it. If that fails, what was written is worth nothing.
    pub fn copy(&self, descriptor: &Descriptor, out: &mut dyn Write) -> Result<(), LayoutError> {
        let path = blob_path(descriptor.digest);
        let (reader, size) = self.reader(&path)?;
        if size != descriptor.size {
            return wrong(format!("{path} has {size} bytes, not {}", descriptor.size));
        }
        let mut reader = Hashing::new(reader.take(size));
        io::copy(&mut reader, out)?;
        match reader.finish().1 {
            found if found == descriptor.digest => Ok(()),
            found => wrong(format!("{path} has the digest {}…", found.short())),
        }
    }

    /// Reads every blob of `image` and checks it.
    pub fn verify(&self, image: &Found) -> Result<(), LayoutError> {
        let manifest = &image.manifest;
        [&manifest.config]
            .into_iter()
            .chain(&manifest.layers)
            .try_for_each(|blob| self.copy(blob, &mut io::sink()))
    }

    /// Writes `image` alone as a layout into the folder `to`, which must be empty; every blob is checked.
    pub fn export(&self, image: &Found, to: &Path) -> Result<(), LayoutError> {
        fs::create_dir_all(to.join("blobs/sha256"))?;
        let manifest = &image.manifest;
        let blobs: BTreeMap<Digest, &Descriptor> = [&image.descriptor, &manifest.config]
            .into_iter()
            .chain(&manifest.layers)
            .map(|blob| (blob.digest, blob))
            .collect();
        for (digest, blob) in blobs {
            let mut out =
                io::BufWriter::with_capacity(1 << 20, fs::File::create_new(to.join(blob_path(digest)))?);
            self.copy(blob, &mut out)?;
            out.flush()?;
        }
        let manifests = vec![image.descriptor.clone()];
        let index = Index { schema_version: 2, media_type: Some(INDEX.to_owned()), manifests };
        fs::write(to.join("index.json"), serde_json::to_vec(&index).map_err(io::Error::from)?)?;
        let version = LayoutVersion { image_layout_version: VERSION.to_owned() };
        fs::write(to.join("oci-layout"), serde_json::to_vec(&version).map_err(io::Error::from)?)?;
        Ok(())
    }

    fn has(&self, descriptor: &Descriptor) -> bool {
        self.reader(&blob_path(descriptor.digest)).is_ok()
    }

    fn small(&self, path: &str) -> Result<Vec<u8>, LayoutError> {
        let (reader, size) = self.reader(path)?;
        if size > DOCUMENT_BYTES {
            return wrong(format!("{path} is longer than a document may be"));
        }
        let mut bytes = Vec::new();
        reader.take(size).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The plain file at `path`, which kiln made, and its length.
    fn reader(&self, path: &str) -> Result<(Box<dyn Read + '_>, u64), LayoutError> {
        match &self.place {
            Place::Folder(folder) => {
                let at = folder.join(path);
                let about = fs::symlink_metadata(&at)?;
                if !about.is_file() {
                    return wrong(format!("{path} is no plain file"));
                }
                Ok((Box::new(fs::File::open(at)?), about.len()))
            }
            Place::Archive { file, members } => match members.get(path) {
                Some((offset, size)) => Ok((Box::new(Window { file, at: *offset, left: *size }), *size)),
                None => wrong(format!("it has no {path}")),
            },
        }
    }
}

/// The plain files of a tar archive. Names that lead out of it, or come twice, make the archive worthless.
fn members(file: &std::fs::File) -> Result<BTreeMap<TreePath, (u64, u64)>, LayoutError> {
    let length = file.metadata()?.len();
    let mut members = BTreeMap::new();
    let mut archive = tar::Archive::new(io::BufReader::new(file));
    // Raw: a long name or a record of an extended header would be read into memory whole, whatever length it claims. No path of a layout
    // is long, so what changes a member's path or size is refused instead, and other records do not matter.
    for (count, entry) in archive.entries_with_seek()?.raw(true).enumerate() {
        if count >= MEMBERS {
            return wrong(format!("it has more than {MEMBERS} members"));
        }
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() {
            return wrong("a member has a longer name than a layout's");
        }
        if kind.is_pax_local_extensions() || kind.is_pax_global_extensions() {
            let mut records = Vec::new();
            (&mut entry).take(RECORD_BYTES + 1).read_to_end(&mut records)?;
            let changes =
                [&b" path="[..], b" size="].iter().any(|key| memchr::memmem::find(&records, key).is_some());
            if records.len() as u64 > RECORD_BYTES || changes {
                return wrong("an extended header changes the name or the length of a member");
            }
        }
        if !kind.is_file() {
            continue;
        }
        let name = entry.path_bytes();
        let name = String::from_utf8_lossy(&name);
        let path = match TreePath::from_archive(&name) {
            Ok(Some(path)) => path,
            Ok(None) => return wrong("a member has no name"),
            Err(e) => return wrong(e.to_string()),
        };
        let (offset, size) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(size).is_none_or(|end| end > length) {
            return wrong(format!("{path} is cut off"));
        }
        if members.insert(path.clone(), (offset, size)).is_some() {
            return wrong(format!("{path} is there twice"));
        }
    }
    Ok(members)
}

/// A part of a file.
struct Window<'a> {
    file: &'a std::fs::File,
    at: u64,
    left: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let n = self.file.read_at(&mut buf[..room], self.at)?;
        (self.at, self.left) = (self.at + n as u64, self.left - n as u64);
        Ok(n)
    }
}

/// Text of a stranger, short and without control characters.
fn shown(text: &str) -> String {
    format!("`{}`", text.escape_debug().take(60).collect::<String>())
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
