//! SPDX 2.3 as JSON (spdx.github.io/spdx-spec/v2.3; the JSON names are those of its schema).

use serde::Serialize;

use super::{Bill, Part, Sort};

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
    #[serde(skip_serializing_if = "String::is_empty")]
    version_info: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    package_file_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    supplier: Option<String>,
    download_location: String,
    files_analyzed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checksums: Vec<Checksum>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_info: Option<String>,
    license_concluded: &'static str,
    license_declared: &'static str,
    copyright_text: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
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
        description: String::new(),
        package_file_name: Some(manifest.disk.file.clone()),
        supplier: None,
        download_location: NO_ASSERTION.to_owned(),
        files_analyzed: false,
        checksums: vec![sha256(manifest.disk.sha256)],
        source_info: None,
        license_concluded: NO_ASSERTION,
        license_declared: NO_ASSERTION,
        copyright_text: NO_ASSERTION,
        comment: None,
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
    relationships.extend(bill.contains.iter().map(|key| relation(IMAGE, "CONTAINS", &id(bill, key))));
    for (key, part) in &bill.parts {
        let from = id(bill, key);
        let contains = part.contains.iter().map(|inner| relation(&from, "CONTAINS", &id(bill, inner)));
        relationships.extend(contains);
        relationships.extend(part.needs.iter().map(|need| relation(&from, "DEPENDS_ON", &id(bill, need))));
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
        packages: std::iter::once(image)
            .chain(bill.parts.iter().map(|(key, part)| package(bill, key, part)))
            .collect(),
        relationships,
    }
}

fn package(bill: &Bill<'_>, key: &str, part: &Part) -> Package {
    let facts: Vec<String> = part.facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    Package {
        id: id(bill, key),
        name: part.name.clone(),
        version_info: part.version.clone(),
        description: part.description.clone(),
        package_file_name: part.file.clone(),
        supplier: part.supplier.map(|name| format!("Organization: {name}")),
        download_location: part.download.clone().unwrap_or_else(|| NO_ASSERTION.to_owned()),
        files_analyzed: false,
        checksums: part.sha256.into_iter().map(sha256).collect(),
        source_info: part.source.clone(),
        license_concluded: NO_ASSERTION,
        license_declared: NO_ASSERTION,
        copyright_text: NO_ASSERTION,
        // Debian's source package is in words above.
        comment: (!facts.is_empty() && part.supplier.is_none()).then(|| facts.join("; ")),
        external_refs: part
            .purl
            .iter()
            .map(|purl| ExternalRef {
                reference_category: "PACKAGE-MANAGER",
                reference_type: "purl",
                reference_locator: purl.clone(),
            })
            .collect(),
        primary_package_purpose: match part.sort {
            Sort::Application => Some("APPLICATION"),
            Sort::Container => Some("CONTAINER"),
            Sort::File => Some("FILE"),
            Sort::Library => None,
            // The specification writes a hyphen, the schema of its JSON an underscore.
            Sort::System => Some("OPERATING_SYSTEM"),
        },
    }
}

fn sha256(digest: crate::digest::Digest) -> Checksum {
    Checksum { algorithm: "SHA256", checksum_value: digest.to_string() }
}

/// An identifier of letters, digits, `.` and `-` (2.3, 7.2), one per key: what is neither becomes `-` and a digest of the key keeps two
/// that look alike then apart.
fn id(bill: &Bill<'_>, key: &str) -> String {
    let name = bill.parts.get(key).map_or(key, |part| part.name.as_str());
    identifier(name, key)
}

fn identifier(name: &str, key: &str) -> String {
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    format!("SPDXRef-{}-{}", name.trim_matches('-'), crate::digest::Digest::of(key.as_bytes()).short())
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
        // The image, its distribution, 5 packages of the root, 1 of the initrd, K3s and CoreDNS with a package, 2 programs, 3 modules and Go's library.
        assert_eq!(ids.len(), 17);
        let mut needs = 0;
        for relation in document["relationships"].as_array().unwrap() {
            let (from, to) = (&relation["spdxElementId"], &relation["relatedSpdxElement"]);
            assert!(from == DOCUMENT || ids.contains(&from.as_str().unwrap()), "{from}");
            assert!(ids.contains(&to.as_str().unwrap()), "{to}");
            needs += usize::from(relation["relationshipType"] == "DEPENDS_ON");
        }
        // Four of Debian packages, three of each program.
        assert_eq!(needs, 10);
        assert_eq!(document["creationInfo"]["created"], "2026-09-12T07:55:41Z");
    }

    #[test]
    fn identifiers_have_only_letters_digits_dots_and_dashes() {
        let (plus, minus) =
            (identifier("a+", "pkg:deb/debian/a%2B@1"), identifier("a-", "pkg:deb/debian/a-@1"));
        assert_ne!(plus, minus);
        assert!(plus.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c)), "{plus}");
    }
}
