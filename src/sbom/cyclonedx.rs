//! CycloneDX 1.6 as JSON (cyclonedx.org/docs/1.6/json).

use serde::Serialize;

use super::{Bill, Part, Sort};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    bom_format: &'static str,
    spec_version: &'static str,
    serial_number: String,
    version: u32,
    metadata: Metadata,
    components: Vec<Component>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Serialize)]
struct Metadata {
    timestamp: String,
    tools: Tools,
    component: Component,
}

#[derive(Debug, Serialize)]
struct Tools {
    components: [Component; 1],
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Component {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "bom-ref", skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    supplier: Option<Named>,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purl: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pedigree: Option<Pedigree>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_references: Vec<Reference>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    properties: Vec<Property>,
}

#[derive(Debug, Serialize)]
struct Named {
    name: &'static str,
}

/// Where the code comes from.
#[derive(Debug, Serialize)]
struct Pedigree {
    commits: [Commit; 1],
    notes: String,
}

#[derive(Debug, Serialize)]
struct Commit {
    uid: String,
}

#[derive(Debug, Serialize)]
struct Reference {
    #[serde(rename = "type")]
    kind: &'static str,
    url: String,
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
    let kiln = Component {
        kind: "application",
        name: "kiln".to_owned(),
        version: manifest.kiln.clone(),
        ..Component::default()
    };
    let component_of_image = Component {
        kind: "operating-system",
        reference: Some(image.clone()),
        name: bill.name(),
        version: manifest.version.clone(),
        hashes: vec![sha256(manifest.disk.sha256)],
        ..Component::default()
    };
    // The format has one kind of edge for "is in it" and "needs it": a part depends on what it is made of.
    let all = Dependency { reference: image, depends_on: bill.contains.iter().cloned().collect() };
    let each = bill.parts.iter().map(|(key, part)| Dependency {
        reference: key.clone(),
        depends_on: part.contains.union(&part.needs).cloned().collect(),
    });
    Document {
        bom_format: "CycloneDX",
        spec_version: "1.6",
        serial_number: format!("urn:uuid:{}", bill.id),
        version: 1,
        metadata: Metadata {
            timestamp: bill.created.clone(),
            tools: Tools { components: [kiln] },
            component: component_of_image,
        },
        components: bill.parts.iter().map(|(key, part)| component(key, part)).collect(),
        dependencies: std::iter::once(all).chain(each).collect(),
    }
}

fn component(key: &str, part: &Part) -> Component {
    let kind = match part.sort {
        Sort::Application => "application",
        Sort::Container => "container",
        Sort::File => "file",
        Sort::Library => "library",
        Sort::System => "operating-system",
    };
    let commit = part
        .commit
        .clone()
        .map(|uid| Pedigree { commits: [Commit { uid }], notes: part.source.clone().unwrap_or_default() });
    let download = part.download.as_ref().map(|url| match url.strip_prefix("git+") {
        // The commit behind it is in the pedigree.
        Some(vcs) => Reference { kind: "vcs", url: vcs.split('@').next().unwrap_or_default().to_owned() },
        None => Reference { kind: "distribution", url: url.clone() },
    });
    Component {
        kind,
        reference: Some(key.to_owned()),
        supplier: part.supplier.map(|name| Named { name }),
        name: part.name.clone(),
        version: part.version.clone(),
        description: part.description.clone(),
        hashes: part.sha256.into_iter().map(sha256).collect(),
        purl: part.purl.clone(),
        pedigree: commit,
        external_references: download.into_iter().collect(),
        properties: part.facts.iter().map(|(name, value)| Property { name, value: value.clone() }).collect(),
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
        let k3s = components.iter().find(|c| c["name"] == "k3s").unwrap();
        assert_eq!(k3s["pedigree"]["commits"][0]["uid"], "ec165b106313a7906d04c4e5ba3913f893a43002");
        assert_eq!(k3s["externalReferences"][0]["url"], "https://github.com/k3s-io/k3s");
    }
}
