//! CycloneDX 1.6 as JSON (cyclonedx.org/docs/1.6/json).

use serde::Serialize;

use super::{Bill, Component};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    bom_format: &'static str,
    spec_version: &'static str,
    serial_number: String,
    version: u32,
    metadata: Metadata,
    components: Vec<Part>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Serialize)]
struct Metadata {
    timestamp: String,
    tools: Tools,
    component: Part,
}

#[derive(Debug, Serialize)]
struct Tools {
    components: [Part; 1],
}

/// A component, in the specification's word.
#[derive(Debug, Serialize)]
struct Part {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "bom-ref", skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    name: String,
    version: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purl: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    properties: Vec<Property>,
}

#[derive(Debug, Serialize)]
struct Hash {
    alg: &'static str,
    content: String,
}

#[derive(Debug, Serialize)]
struct Property {
    name: &'static str,
    value: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    #[serde(rename = "ref")]
    reference: String,
    depends_on: Vec<String>,
}

pub(super) fn document(bill: &Bill<'_>) -> Document {
    let manifest = bill.manifest;
    let image = format!("urn:sha256:{}", manifest.disk.sha256);
    let kiln = Part {
        kind: "application",
        reference: None,
        name: "kiln".to_owned(),
        version: manifest.kiln.clone(),
        hashes: Vec::new(),
        purl: None,
        properties: Vec::new(),
    };
    let component = Part {
        kind: "operating-system",
        reference: Some(image.clone()),
        name: bill.name(),
        version: manifest.version.clone(),
        hashes: vec![sha256(manifest.disk.sha256)],
        purl: None,
        properties: Vec::new(),
    };
    let all =
        Dependency { reference: image, depends_on: bill.components.iter().map(|c| c.purl.clone()).collect() };
    let each =
        bill.components.iter().map(|c| Dependency { reference: c.purl.clone(), depends_on: c.needs.clone() });
    Document {
        bom_format: "CycloneDX",
        spec_version: "1.6",
        serial_number: format!("urn:uuid:{}", bill.id),
        version: 1,
        metadata: Metadata {
            timestamp: bill.created.clone(),
            tools: Tools { components: [kiln] },
            component,
        },
        components: bill.components.iter().map(part).collect(),
        dependencies: std::iter::once(all).chain(each).collect(),
    }
}

fn part(component: &Component<'_>) -> Part {
    let (source, version) = &component.source;
    Part {
        kind: "library",
        reference: Some(component.purl.clone()),
        name: component.name.to_owned(),
        version: component.info.version.clone(),
        hashes: vec![sha256(component.info.sha256)],
        purl: Some(component.purl.clone()),
        properties: vec![
            Property { name: "debian:source", value: source.clone() },
            Property { name: "debian:source-version", value: version.clone() },
        ],
    }
}

fn sha256(digest: crate::digest::Digest) -> Hash {
    Hash { alg: "SHA-256", content: digest.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, write};
    use crate::built::tests::sample;

    #[test]
    fn every_dependency_is_a_component_and_sources_are_told() {
        let text = write(&sample().manifest, Format::Cyclonedx).unwrap();
        let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let components = document["components"].as_array().unwrap();
        let mut references: Vec<&str> = components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
        references.push(document["metadata"]["component"]["bom-ref"].as_str().unwrap());
        for dependency in document["dependencies"].as_array().unwrap() {
            assert!(references.contains(&dependency["ref"].as_str().unwrap()));
            for on in dependency["dependsOn"].as_array().unwrap() {
                assert!(references.contains(&on.as_str().unwrap()), "{on}");
            }
        }
        let ssl = components.iter().find(|c| c["name"] == "libssl3t64").unwrap();
        assert_eq!(ssl["properties"][0]["value"], "openssl");
        assert_eq!(ssl["properties"][1]["value"], "3.5-1");
    }
}
