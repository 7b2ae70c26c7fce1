//! From a registry by digest: manifest, config and layers into the store (distribution-spec 1.1,
//! [Pulling](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pull)). What is in the store already is not asked for.

use anyhow::Result;
use fs_err as fs;

use super::platform::{self, Demand};
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

/// How deep an index may lie in another.
const DEPTH: u32 = 3;
/// The most images that are asked for because their index does not say which machine they are for.
const UNNAMED: usize = 64;
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
    let fetcher = Fetcher::of_registry(store, ui, Login::of(reference)?)?;
    let puller = Puller { store, ui, reference, fetcher };
    let manifest = match puller.document(wanted)? {
        (bytes, Document::Manifest(manifest)) => (bytes, manifest),
        (_, Document::Index(index)) => {
            let mut search = Search { arch, there: Vec::new(), unnamed: 0, found: None };
            puller.search(&index, DEPTH, &mut search)?;
            match search.found {
                Some((_, bytes, manifest)) => (bytes, manifest),
                None => return Err(puller.no_such_platform(&search).into()),
            }
        }
    };
    puller.image(manifest, name, arch)
}

/// What was seen while an index was searched for a machine's image.
struct Search {
    arch: Arch,
    /// The machines that it has images for, for people.
    there: Vec<String>,
    /// How many images were asked for because nothing says which machine they are for.
    unnamed: usize,
    /// The image that asks for least of a processor.
    found: Option<(Demand, Vec<u8>, Manifest)>,
}

impl Search {
    /// Notes that there is an image for `platform`. What it asks for, if it would be the best one so far.
    fn better(&mut self, platform: &Platform) -> Option<Demand> {
        let shown = platform::shown(platform);
        if !self.there.contains(&shown) {
            self.there.push(shown);
        }
        let demand = platform::demand(platform, self.arch)?;
        self.found.as_ref().is_none_or(|(best, ..)| demand < *best).then_some(demand)
    }
}

struct Puller<'a> {
    store: &'a Store,
    ui: &'a Ui,
    reference: &'a Reference,
    fetcher: Fetcher<'a>,
}

impl Puller<'_> {
    fn refuse(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(Kind::Fetch, format!("{}: {why}", self.reference))
    }

    fn no_such_platform(&self, search: &Search) -> Failure {
        let text = format!("{} has no image for linux/{}", self.reference, search.arch);
        let there = search.there.iter().take(20).map(String::as_str).collect::<Vec<_>>().join(", ");
        let there = if there.is_empty() { "no image that runs" } else { &there };
        Failure::new(Kind::Input, text).hint(format!("its index has: {there}"))
    }

    /// Looks for the image for a machine in `index` and in the indexes that it names: first among those that say which machine they are
    /// for, then in the configs of those that do not, as containerd does (images.Manifest).
    fn search(&self, index: &Index, depth: u32, search: &mut Search) -> Result<()> {
        let images = || index.manifests.iter().filter(|entry| !platform::is_about_another(entry));
        let mut fitting: Vec<(Demand, &Descriptor)> = Vec::new();
        for entry in images() {
            if let Some(demand) = platform::named(entry).and_then(|platform| search.better(platform)) {
                fitting.push((demand, entry));
            }
        }
        fitting.sort_by_key(|(demand, _)| *demand);
        for (demand, entry) in fitting {
            if search.found.as_ref().is_some_and(|(best, ..)| *best <= demand) {
                return Ok(());
            }
            match self.document(entry.digest)? {
                (bytes, Document::Manifest(manifest)) => search.found = Some((demand, bytes, manifest)),
                (_, Document::Index(inner)) => self.deeper(&inner, depth, search)?,
            }
        }
        if search.found.is_some() {
            return Ok(());
        }
        for entry in images().filter(|entry| platform::named(entry).is_none()) {
            search.unnamed += 1;
            if search.unnamed > UNNAMED {
                let why = format!(
                    "its index does not say of more than {UNNAMED} images which machine they are for"
                );
                return Err(self.refuse(why).into());
            }
            match self.document(entry.digest)? {
                (bytes, Document::Manifest(manifest)) if platform::is_image(&manifest) => {
                    let platform = self.platform(&manifest)?;
                    if let Some(demand) = search.better(&platform) {
                        search.found = Some((demand, bytes, manifest));
                    }
                }
                (_, Document::Manifest(_)) => {}
                (_, Document::Index(inner)) => self.deeper(&inner, depth, search)?,
            }
        }
        Ok(())
    }

    fn deeper(&self, index: &Index, depth: u32, search: &mut Search) -> Result<()> {
        let depth =
            depth.checked_sub(1).ok_or_else(|| self.refuse("its indexes lie too deep in each other"))?;
        self.search(index, depth, search)
    }

    /// The machine that an image is for, by its config.
    fn platform(&self, manifest: &Manifest) -> Result<Platform> {
        let config = &manifest.config;
        if config.size > DOCUMENT_BYTES {
            return Err(self.refuse("its config is longer than a document may be").into());
        }
        self.fetcher.fetch(&[self.request(config)])?;
        let path = self.store.object(config.digest, config.size).ok_or_else(|| {
            self.refuse(format!("{}… is not in the store although it was fetched", config.digest.short()))
        })?;
        let read = serde_json::from_slice(&fs::read(path)?);
        read.map_err(|e| self.refuse("its config cannot be read").because(e).into())
    }

    /// A blob of the repository.
    fn request(&self, blob: &Descriptor) -> Request {
        Request {
            name: format!("{} {}…", self.reference.repository, blob.digest.short()),
            sha256: blob.digest,
            size: blob.size,
            urls: vec![format!("{}/blobs/sha256:{}", self.fetcher_base(), blob.digest).into()],
        }
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
        if !platform::is_image(&manifest) {
            let kind: String = manifest.config.media_type.escape_debug().take(100).collect();
            let text = format!("{} is not a container image: its config is {kind}", self.reference);
            return Err(Failure::new(Kind::Input, text)
                .hint("this digest is that of an artifact, such as a signature or a chart; take that of the image")
                .into());
        }
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
                requests.push(self.request(blob));
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
        let unreadable = |e| self.refuse("its config cannot be read").because(e);
        let platform: Platform = serde_json::from_slice(&config).map_err(unreadable)?;
        let _: ImageConfig = serde_json::from_slice(&config).map_err(unreadable)?;
        let shown = platform::shown(&platform);
        match platform::demand(&platform, arch) {
            Some(0) => {}
            Some(_) => self.ui.warn(format!(
                "{} is for {shown}: a node with an older processor cannot run it",
                self.reference
            )),
            None => {
                let text = format!("{} is for {shown}, not for linux/{arch}", self.reference);
                return Err(Failure::new(Kind::Input, text)
                    .hint("take the digest of the index, or choose another --arch")
                    .into());
            }
        }
        let of = |blob: &&Descriptor| -> Result<Blob> {
            Ok(Blob { digest: blob.digest, size: blob.size, bytes: Bytes::File(object(blob)?) })
        };
        Ok(Image {
            name: name.name(),
            tag: name.tag.clone(),
            // Without the variant: `ctr images import` passes over what its own machine's name does not match to the letter.
            platform: Platform {
                architecture: arch.debian().to_owned(),
                os: "linux".to_owned(),
                variant: None,
            },
            manifest: bytes,
            blobs: blobs.iter().map(of).collect::<Result<_>>()?,
        })
    }
}
