//! From a registry by digest: manifest, config and layers into the store (distribution-spec 1.1,
//! [Pulling](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pull)). What is in the store already is not asked for.

use anyhow::Result;
use fs_err as fs;

use super::read::{DOCUMENT_BYTES, LAYERS};
use super::reference::Reference;
use super::types::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Document, INDEX, ImageConfig, Index, MANIFEST, Manifest,
    Platform, document,
};
use super::write::{Blob, Bytes, Image};
use crate::arch::Arch;
use crate::digest::Digest;
use crate::error::{Failure, Kind};
use crate::fetch::{Fetcher, Login, Request};
use crate::store::Store;
use crate::ui::Ui;

/// The longest layer that is taken: far beyond any, and short of what fills a disk by mistake.
const LAYER_BYTES: u64 = 32 << 30;

/// Brings the image that `reference` names by digest for `arch`, and gives it the name `name`. All bytes lie in the store afterwards.
///
/// # Errors
/// [`Kind::Fetch`]: the registry does not answer, does not have it, wants a password, or sends other bytes. [`Kind::Input`]: there is no
/// digest, or none of the index's images is for `arch`.
pub fn pull(store: &Store, ui: &Ui, reference: &Reference, name: &Reference, arch: Arch) -> Result<Image> {
    let wanted = reference.digest.ok_or_else(|| {
        Failure::new(Kind::Input, format!("{reference} has no digest, so it could be anything"))
            .hint("add `@sha256:…`: the digest of an index or of a manifest")
    })?;
    let puller =
        Puller { store, reference, fetcher: Fetcher::of_registry(store, ui, Login::of(reference)?)? };
    let manifest = match puller.document(wanted)? {
        (bytes, Document::Manifest(manifest)) => (bytes, manifest),
        (_, Document::Index(index)) => {
            let chosen = choose(&index, arch).ok_or_else(|| puller.no_such_platform(&index, arch))?;
            match puller.document(chosen.digest)? {
                (bytes, Document::Manifest(manifest)) => (bytes, manifest),
                (_, Document::Index(_)) => return Err(puller.refuse("its index names another index").into()),
            }
        }
    };
    puller.image(manifest, name, arch)
}

/// The manifest for `arch` in an index. Of several variants the one without a word about it, or arm64's only one, `v8`.
fn choose(index: &Index, arch: Arch) -> Option<&Descriptor> {
    let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == arch.debian();
    let usual = |platform: &Platform| platform.variant.as_deref().is_none_or(|v| ["", "v8"].contains(&v));
    index.manifests.iter().find(|m| m.platform.as_ref().is_some_and(|p| fits(p) && usual(p)))
}

struct Puller<'a> {
    store: &'a Store,
    reference: &'a Reference,
    fetcher: Fetcher<'a>,
}

impl Puller<'_> {
    fn refuse(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(Kind::Fetch, format!("{}: {why}", self.reference))
    }

    fn no_such_platform(&self, index: &Index, arch: Arch) -> Failure {
        let of = |p: &Platform| format!("{}/{}", p.os.escape_debug(), p.architecture.escape_debug());
        let mut there: Vec<String> =
            index.manifests.iter().filter_map(|m| m.platform.as_ref()).map(of).collect();
        there.truncate(20);
        Failure::new(Kind::Input, format!("{} has no image for linux/{arch}", self.reference))
            .hint(format!("its index has: {}", there.join(", ")))
    }

    /// An index or a manifest by digest.
    fn document(&self, digest: Digest) -> Result<(Vec<u8>, Document)> {
        let bytes = match self.kept(digest) {
            Some(bytes) => bytes,
            None => {
                let url = format!("{}/manifests/sha256:{digest}", self.fetcher_base());
                let types = [INDEX, MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];
                let bytes = self.fetcher.get_as(&url, &types, DOCUMENT_BYTES)?;
                if Digest::of(&bytes) != digest {
                    let got = Digest::of(&bytes).short();
                    return Err(self
                        .refuse(format!("the registry sends a manifest with another digest, {got}…"))
                        .into());
                }
                self.store.put_object(&bytes)?;
                bytes
            }
        };
        let document = document(&bytes).map_err(|why| self.refuse(format!("{}…: {why}", digest.short())))?;
        Ok((bytes, document))
    }

    fn fetcher_base(&self) -> &str {
        self.fetcher.base().expect("a fetcher of a registry")
    }

    /// A document that was fetched before, if it is whole.
    fn kept(&self, digest: Digest) -> Option<Vec<u8>> {
        let path = self.store.object_path(digest);
        let short = fs::metadata(&path).is_ok_and(|about| about.len() <= DOCUMENT_BYTES);
        short.then(|| fs::read(&path).ok())?.filter(|bytes| Digest::of(bytes) == digest)
    }

    fn image(&self, (bytes, manifest): (Vec<u8>, Manifest), name: &Reference, arch: Arch) -> Result<Image> {
        let blobs: Vec<&Descriptor> = [&manifest.config].into_iter().chain(&manifest.layers).collect();
        if blobs.len() > LAYERS || manifest.config.size > DOCUMENT_BYTES {
            return Err(self.refuse("its manifest is beyond all measure").into());
        }
        if let Some(large) = blobs.iter().find(|blob| blob.size > LAYER_BYTES) {
            return Err(self.refuse(format!("a layer has {} bytes", large.size)).into());
        }
        let mut requests: Vec<Request> = Vec::new();
        for blob in &blobs {
            // A layer may be there twice; an empty one often is.
            if requests.iter().all(|r| r.sha256 != blob.digest) {
                requests.push(Request {
                    name: format!("{} {}…", self.reference.repository, blob.digest.short()),
                    sha256: blob.digest,
                    size: blob.size,
                    urls: vec![format!("{}/blobs/sha256:{}", self.fetcher_base(), blob.digest).into()],
                });
            }
        }
        self.fetcher.fetch(&requests)?;
        let object = |blob: &Descriptor| {
            let path = self.store.object(blob.digest, blob.size);
            path.ok_or_else(|| {
                self.refuse(format!("its manifest gives {}… two lengths", blob.digest.short()))
            })
        };
        let config = fs::read(object(&manifest.config)?)?;
        let config: ImageConfig = serde_json::from_slice(&config)
            .map_err(|e| self.refuse("its config cannot be read").because(e))?;
        if (config.os.as_str(), config.architecture.as_str()) != ("linux", arch.debian()) {
            let (os, machine) = (config.os.escape_debug(), config.architecture.escape_debug());
            let text = format!("{} is for {os}/{machine}, not for linux/{arch}", self.reference);
            return Err(Failure::new(Kind::Input, text)
                .hint("take the digest of the index, or choose another --arch")
                .into());
        }
        let of = |blob: &&Descriptor| -> Result<Blob> {
            Ok(Blob { digest: blob.digest, size: blob.size, bytes: Bytes::File(object(blob)?) })
        };
        Ok(Image {
            name: name.name(),
            tag: name.tag.clone(),
            platform: Platform { architecture: config.architecture, os: config.os, variant: None },
            manifest: bytes,
            blobs: blobs.iter().map(of).collect::<Result<_>>()?,
        })
    }
}
