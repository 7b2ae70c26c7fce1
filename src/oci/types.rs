//! The JSON documents of the [OCI image specification 1.1](https://github.com/opencontainers/image-spec), as far as kiln writes them or
//! looks at them. Docker's older ones have the same fields under other media types. Keys that are not here are passed over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Media type of an index (image-spec, image-index.md).
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of a manifest (image-spec, manifest.md).
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a config (image-spec, config.md).
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Media type of an uncompressed layer (image-spec, layer.md).
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Annotation of a manifest in an index that containerd's import takes for the image's name (containerd, core/images/annotations.go).
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Annotation with the tag (image-spec, annotations.md).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The only version of layouts that there is (image-spec, image-layout.md).
pub const VERSION: &str = "1.0.0";

/// What a layout says of itself, in the file `oci-layout` (image-spec, image-layout.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutVersion {
    /// [`VERSION`].
    pub image_layout_version: String,
}

/// Names a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind of blob.
    pub media_type: String,
    /// Its digest.
    #[serde(with = "prefixed")]
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// In an index: the machine it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Further facts by name.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A machine, in Go's words. Both words have to be there; where one is not, it is empty, so that an index of several images is not
/// unreadable because of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// One image for several machines, or the table of a layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// [`INDEX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What it is made of.
    pub manifests: Vec<Descriptor>,
}

/// One image for one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// [`MANIFEST`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The blob with the [`ImageConfig`].
    pub config: Descriptor,
    /// Layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// How containers of an image run, and what its layers are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When it was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// As in [`Platform`].
    pub architecture: String,
    /// As in [`Platform`].
    pub os: String,
    /// How containers run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Execution>,
    /// The layers.
    pub rootfs: RootFs,
}

/// Defaults of a container; what is not there is the runtime's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Execution {
    /// `uid[:gid]` or names of the image's own accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `NAME=value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Program and first arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Arguments that a caller replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Working folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
}

/// The layers of an image by what they unpack to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed layers, `sha256:…`, the lowest first.
    pub diff_ids: Vec<String>,
}

/// An entry of `manifest.json`, which `docker load` and its kind read
/// (moby, image/spec/v1.2.md, "Combined Image JSON + Filesystem Changeset Format").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerEntry {
    /// Path of the config in the archive.
    pub config: String,
    /// Names with tags.
    pub repo_tags: Vec<String>,
    /// Paths of the layers, the lowest first.
    pub layers: Vec<String>,
}

/// What a manifest request can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// For several machines.
    Index(Index),
    /// For one.
    Manifest(Manifest),
}

/// Reads an index or a manifest, Docker's or OCI's.
///
/// # Errors
/// In words: it is neither, or could be taken for both, which two readers would understand differently.
pub fn document(bytes: &[u8]) -> Result<Document, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let json = |e: serde_json::Error| format!("it is no manifest: {e}");
    let probe: Probe = serde_json::from_slice(bytes).map_err(json)?;
    let (index, manifest) = (probe.manifests.is_some(), probe.config.is_some() || probe.layers.is_some());
    let says = probe.media_type.as_deref();
    if index && !manifest && says.is_none_or(|says| [INDEX, DOCKER_INDEX].contains(&says)) {
        return serde_json::from_slice(bytes).map(Document::Index).map_err(json);
    }
    if manifest && !index && says.is_none_or(|says| [MANIFEST, DOCKER_MANIFEST].contains(&says)) {
        return serde_json::from_slice(bytes).map(Document::Manifest).map_err(json);
    }
    if probe.fs_layers.is_some() {
        return Err("it is a manifest of Docker's old form (schema 1), which has no digests of layers: push the image again with a \
                    newer Docker"
            .to_owned());
    }
    let says = says.unwrap_or("no media type").escape_debug().take(100).collect::<String>();
    Err(format!("it is neither an index nor a manifest ({says})"))
}

/// The path of a blob in a layout.
pub fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{digest}")
}

/// Programs in Go write an empty map as `null`.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// `sha256:` and 64 digits.
mod prefixed {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::digest::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("sha256:{digest}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("sha256:").ok_or_else(|| {
            D::Error::custom(format!(
                "`{}` is no sha256 digest",
                text.escape_debug().take(80).collect::<String>()
            ))
        })?;
        digits.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_document_that_could_be_both_is_neither() {
        let blob = r#"{"mediaType":"x","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}"#;
        let of = |text: String| document(text.as_bytes());
        assert!(matches!(
            of(format!(r#"{{"schemaVersion":2,"manifests":[{blob}]}}"#)),
            Ok(Document::Index(_))
        ));
        let manifest = format!(r#""schemaVersion":2,"config":{blob},"layers":[{blob}]"#);
        assert!(matches!(of(format!("{{{manifest}}}")), Ok(Document::Manifest(_))));
        assert!(of(format!(r#"{{{manifest},"manifests":[]}}"#)).unwrap_err().contains("neither"));
        assert!(of(format!(r#"{{{manifest},"mediaType":"{INDEX}"}}"#)).unwrap_err().contains("neither"));
        assert!(
            of(format!("{{{manifest}}}").replace("sha256:e3", "sha512:e3"))
                .unwrap_err()
                .contains("no sha256")
        );
        assert!(of(format!("{{{manifest}}}").replace(":0}", ":-1}")).is_err());
    }

    #[test]
    fn an_index_is_read_though_an_entry_says_little() {
        let entry = |more: &str| {
            format!(r#"{{"mediaType":"x","digest":"sha256:{}","size":0{more}}}"#, Digest::of(b""))
        };
        let entries = [
            "",
            r#","platform":null,"annotations":null"#,
            r#","platform":{}"#,
            r#","platform":{"os":"linux"}"#,
        ];
        let text = format!(r#"{{"manifests":[{}]}}"#, entries.map(entry).join(","));
        let Ok(Document::Index(index)) = document(text.replacen('{', r#"{"schemaVersion":2,"#, 1).as_bytes())
        else {
            panic!("{text}");
        };
        let named: Vec<_> =
            index.manifests.iter().map(|m| super::super::platform::named(m).is_some()).collect();
        assert_eq!(named, [false, false, false, true]);
        assert!(document(br#"{"schemaVersion":1,"fsLayers":[]}"#).unwrap_err().contains("schema 1"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = document(&bytes);
        }
    }
}
