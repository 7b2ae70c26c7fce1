//! The software bill of materials of an image, from its manifest alone: [`spdx`] 2.3 and [`cyclonedx`] 1.6, both as JSON.
//!
//! The time is that of the image and identifiers are UUIDs of version 5 over the disk's digest, so the same image has the same bill,
//! byte for byte. Packages of the root are listed, and those whose files are in the ESP or the initrd.

mod cyclonedx;
mod spdx;

use std::collections::BTreeMap;

use anyhow::Result;
use uuid::Uuid;

use crate::graph::Graph;
use crate::lock::time;
use crate::manifest::{Manifest, PackageInfo};

/// Name space of the identifiers that are derived from a disk's digest.
const NAMES: Uuid = uuid::uuid!("b1f0c7a4-52f0-4f0e-9a5b-7f8f0a1f6d2e");

/// A format of bills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// SPDX 2.3 (spdx.github.io/spdx-spec/v2.3)
    Spdx,
    /// CycloneDX 1.6 (cyclonedx.org/docs/1.6/json)
    Cyclonedx,
}

/// What both formats say.
#[derive(Debug)]
struct Bill<'a> {
    manifest: &'a Manifest,
    /// Identifies this bill.
    id: Uuid,
    /// Time of the image, ISO 8601 in UTC.
    created: String,
    /// Sorted by purl.
    components: Vec<Component<'a>>,
}

/// A package of the image.
#[derive(Debug)]
struct Component<'a> {
    name: &'a str,
    info: &'a PackageInfo,
    /// Package URL (github.com/package-url/purl-spec, type deb); unique in a bill.
    purl: String,
    /// Source package and its version.
    source: (String, String),
    /// purls of the packages it needs, sorted.
    needs: Vec<String>,
}

/// The bill of the image that `manifest` describes, as JSON with a newline at its end.
pub fn write(manifest: &Manifest, format: Format) -> Result<Vec<u8>> {
    let bill = Bill::new(manifest, &format!("{format:?}"))?;
    let mut text = match format {
        Format::Spdx => serde_json::to_vec_pretty(&spdx::document(&bill))?,
        Format::Cyclonedx => serde_json::to_vec_pretty(&cyclonedx::document(&bill))?,
    };
    text.push(b'\n');
    Ok(text)
}

impl<'a> Bill<'a> {
    fn new(manifest: &'a Manifest, format: &str) -> Result<Self> {
        // The release's own suite: the others are named after it (`trixie-security`).
        let suite = manifest.suites.keys().min_by_key(|name| name.len()).map_or("", String::as_str);
        let arch = manifest.arch.debian();
        // By purl, since a package may be in the root and in the initrd: it is one component then.
        let mut components: BTreeMap<String, Component<'a>> = BTreeMap::new();
        for packages in [&manifest.packages, &manifest.boot] {
            let graph = Graph::new(packages, arch)?;
            for (name, info) in packages {
                let needs = graph.needs(name).filter_map(|need| Some(purl(need, packages.get(need)?, suite)));
                let (purl, source) = (purl(name, info, suite), source(name, info));
                let component = Component { name, info, purl: purl.clone(), source, needs: needs.collect() };
                components.entry(purl).or_insert(component);
            }
        }
        let id = Uuid::new_v5(&NAMES, format!("{format} {}", manifest.disk.sha256).as_bytes());
        Ok(Bill {
            manifest,
            id,
            created: time::iso(manifest.epoch),
            components: components.into_values().collect(),
        })
    }

    /// `server-amd64`: the image's name.
    fn name(&self) -> String {
        format!("{}-{}", self.manifest.profile, self.manifest.arch)
    }
}

/// `pkg:deb/debian/libc6@2.41-12?arch=amd64&distro=trixie`.
fn purl(name: &str, info: &PackageInfo, suite: &str) -> String {
    let (name, version, arch) = (encoded(name), encoded(&info.version), encoded(&info.arch));
    format!("pkg:deb/debian/{name}@{version}?arch={arch}&distro={}", encoded(suite))
}

/// Percent-encodes all but what purl leaves as it is. The colon stays too, as the specification says.
fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:".contains(&b);
    let mut out = String::new();
    for b in text.bytes() {
        if plain(b) { out.push(char::from(b)) } else { out.push_str(&format!("%{b:02X}")) }
    }
    out
}

/// Debian writes `Source: openssl (3.5-1)`, without the parentheses if the version is the package's, and nothing at all if the name
/// is too.
fn source(name: &str, info: &PackageInfo) -> (String, String) {
    if info.source.is_empty() {
        return (name.to_owned(), info.version.clone());
    }
    match info.source.split_once(" (") {
        Some((source, version)) => (source.to_owned(), version.trim_end_matches(')').to_owned()),
        None => (info.source.clone(), info.version.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built::tests::{package, sample};
    use crate::digest::Digest;

    #[test]
    fn purls_are_encoded_and_sources_are_read_as_debian_writes_them() {
        let mut info = package("1:4.2+dfsg-1~deb13u1", "", "");
        assert_eq!(
            purl("libstdc++6", &info, "trixie"),
            "pkg:deb/debian/libstdc%2B%2B6@1:4.2%2Bdfsg-1~deb13u1?arch=amd64&distro=trixie"
        );
        assert_eq!(source("x", &info), ("x".into(), "1:4.2+dfsg-1~deb13u1".into()));
        info.source = "gcc-14".to_owned();
        assert_eq!(source("x", &info).0, "gcc-14");
        info.source = "gcc-14 (14.2.0-19)".to_owned();
        assert_eq!(source("x", &info), ("gcc-14".into(), "14.2.0-19".into()));
    }

    #[test]
    fn the_same_image_has_the_same_bill_and_another_disk_has_another() {
        for format in [Format::Spdx, Format::Cyclonedx] {
            let one = write(&sample().manifest, format).unwrap();
            assert!(one == write(&sample().manifest, format).unwrap());
            let mut other = sample().manifest;
            other.disk.sha256 = Digest::of(b"other");
            assert!(one != write(&other, format).unwrap());
        }
    }

    #[test]
    fn a_package_in_root_and_initrd_is_one_component() {
        let mut manifest = sample().manifest;
        manifest.boot.insert("libc6".to_owned(), manifest.packages["libc6"].clone());
        let bill = Bill::new(&manifest, "x").unwrap();
        assert_eq!(bill.components.iter().filter(|c| c.name == "libc6").count(), 1);
        assert_eq!(bill.components.len(), 6);
    }
}
