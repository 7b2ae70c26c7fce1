//! SPDX 2.3 as JSON (spdx.github.io/spdx-spec/v2.3; the JSON names are those of its schema).

use serde::Serialize;

use super::{Bill, Component};

/// SPDX's word for what nobody has looked at.
const NO_ASSERTION: &str = "NOASSERTION";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    spdx_version: &'static str,
    data_license: &'static str,
    #[serde(rename = "SPDXID")]
    id: &'static str,
    name: String,
    document_namespace: String,
    creation_info: CreationInfo,
    document_describes: [&'static str; 1],
    packages: Vec<Package>,
    relationships: Vec<Relationship>,
}

#[derive(Debug, Serialize)]
struct CreationInfo {
    created: String,
    creators: [String; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Package {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    version_info: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    package_file_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    supplier: Option<&'static str>,
    download_location: &'static str,
    files_analyzed: bool,
    checksums: [Checksum; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    source_info: Option<String>,
    license_concluded: &'static str,
    license_declared: &'static str,
    copyright_text: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_refs: Vec<ExternalRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    primary_package_purpose: Option<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Checksum {
    algorithm: &'static str,
    checksum_value: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExternalRef {
    reference_category: &'static str,
    reference_type: &'static str,
    reference_locator: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Relationship {
    spdx_element_id: String,
    relationship_type: &'static str,
    related_spdx_element: String,
}

const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const IMAGE: &str = "SPDXRef-Image";

pub(super) fn document(bill: &Bill<'_>) -> Document {
    let manifest = bill.manifest;
    let image = Package {
        id: IMAGE.to_owned(),
        name: bill.name(),
        version_info: manifest.version.clone(),
        package_file_name: Some(manifest.disk.file.clone()),
        supplier: None,
        download_location: NO_ASSERTION,
        files_analyzed: false,
        checksums: [sha256(manifest.disk.sha256)],
        source_info: None,
        license_concluded: NO_ASSERTION,
        license_declared: NO_ASSERTION,
        copyright_text: NO_ASSERTION,
        external_refs: Vec::new(),
        // The specification writes a hyphen, the schema of its JSON an underscore.
        primary_package_purpose: Some("OPERATING_SYSTEM"),
    };
    let relation = |from: &str, kind, to: &str| Relationship {
        spdx_element_id: from.to_owned(),
        relationship_type: kind,
        related_spdx_element: to.to_owned(),
    };
    let mut relationships = vec![relation(DOCUMENT, "DESCRIBES", IMAGE)];
    for component in &bill.components {
        relationships.push(relation(IMAGE, "CONTAINS", &id(&component.purl)));
    }
    for component in &bill.components {
        for need in &component.needs {
            relationships.push(relation(&id(&component.purl), "DEPENDS_ON", &id(need)));
        }
    }
    Document {
        spdx_version: "SPDX-2.3",
        data_license: "CC0-1.0",
        id: DOCUMENT,
        name: format!("{} {}", bill.name(), manifest.version),
        // Not a place but a name (2.3, 6.5); a UUID needs no domain of anybody.
        document_namespace: format!("urn:uuid:{}", bill.id),
        creation_info: CreationInfo {
            created: bill.created.clone(),
            creators: [format!("Tool: kiln-{}", manifest.kiln)],
        },
        document_describes: [IMAGE],
        packages: std::iter::once(image).chain(bill.components.iter().map(package)).collect(),
        relationships,
    }
}

fn package(component: &Component<'_>) -> Package {
    let info = component.info;
    let (source, version) = &component.source;
    Package {
        id: id(&component.purl),
        name: component.name.to_owned(),
        version_info: info.version.clone(),
        package_file_name: info.path.rsplit('/').next().map(str::to_owned),
        supplier: Some("Organization: Debian"),
        download_location: NO_ASSERTION,
        files_analyzed: false,
        checksums: [sha256(info.sha256)],
        source_info: Some(format!("built from the Debian source package {source} {version}")),
        license_concluded: NO_ASSERTION,
        license_declared: NO_ASSERTION,
        copyright_text: NO_ASSERTION,
        external_refs: vec![ExternalRef {
            reference_category: "PACKAGE-MANAGER",
            reference_type: "purl",
            reference_locator: component.purl.clone(),
        }],
        primary_package_purpose: None,
    }
}

fn sha256(digest: crate::digest::Digest) -> Checksum {
    Checksum { algorithm: "SHA256", checksum_value: digest.to_string() }
}

/// An identifier of letters, digits, `.` and `-` (2.3, 7.2), one per purl: what is neither becomes `-` and a digest of the purl keeps
/// two that look alike then apart.
fn id(purl: &str) -> String {
    let name = purl.trim_start_matches("pkg:deb/debian/").split('?').next().unwrap_or_default();
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    format!("SPDXRef-{name}-{}", &crate::digest::Digest::of(purl.as_bytes()).short()[..8])
}

#[cfg(test)]
mod tests {
    use super::super::{Format, write};
    use super::*;
    use crate::built::tests::sample;

    #[test]
    fn every_relationship_leads_to_an_element_and_needs_are_told() {
        let text = write(&sample().manifest, Format::Spdx).unwrap();
        let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let ids: Vec<&str> =
            document["packages"].as_array().unwrap().iter().map(|p| p["SPDXID"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 7);
        let mut needs = 0;
        for relation in document["relationships"].as_array().unwrap() {
            let (from, to) = (&relation["spdxElementId"], &relation["relatedSpdxElement"]);
            assert!(from == DOCUMENT || ids.contains(&from.as_str().unwrap()), "{from}");
            assert!(ids.contains(&to.as_str().unwrap()), "{to}");
            needs += usize::from(relation["relationshipType"] == "DEPENDS_ON");
        }
        assert_eq!(needs, 4);
        assert_eq!(document["creationInfo"]["created"], "2026-09-12T07:55:41Z");
    }

    #[test]
    fn identifiers_have_only_letters_digits_dots_and_dashes() {
        let (plus, minus) = (id("pkg:deb/debian/a%2B@1?arch=all"), id("pkg:deb/debian/a-2B@1?arch=all"));
        assert_ne!(plus, minus);
        assert!(plus.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c)), "{plus}");
    }
}
