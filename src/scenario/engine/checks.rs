//! The checks that are built into kiln, on running nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::cluster::Cluster;
use super::context::{Context, Trouble};
use super::node::Node;
use crate::manifest::Manifest;
use crate::scenario::checks::{Answer, Known};
use crate::scenario::result::{Evidence, text};
use crate::scenario::spec::{self, Check};
use crate::spec::Profile;

/// Does `check` on `nodes`, all at once.
pub(super) fn run(
    context: &Context<'_>,
    cluster: &Cluster<'_>,
    nodes: &[&Node<'_>],
    up: &BTreeSet<spec::Name>,
    check: Check,
    limit: Duration,
) -> Result<Vec<Evidence>, Trouble> {
    let mut profiles: BTreeMap<spec::Name, &Profile> = BTreeMap::new();
    let mut manifests: BTreeMap<spec::Name, &Manifest> = BTreeMap::new();
    let mut probes: BTreeMap<spec::Name, &str> = BTreeMap::new();
    for node in cluster.scenario.nodes() {
        let image = cluster.image(node)?;
        profiles.insert(node.name.clone(), &image.profile);
        manifests.insert(node.name.clone(), &image.manifest);
        probes.insert(node.name.clone(), &image.probes);
    }
    let known =
        Known { scenario: cluster.scenario, up, profiles: &profiles, manifests: &manifests, probes: &probes };
    let told = cluster.each(nodes, |node| {
        let script = check.script(&known, node.spec());
        // Taken around the question: a slow guest is not a wrong clock.
        let asked = crate::lock::time::now();
        let output = node.run(context, &script, limit)?;
        let answered = crate::lock::time::now();
        let evidence = Evidence {
            node: node.name().to_owned(),
            command: format!("check {}", check.word()),
            status: Some(output.status),
            stdout: text::excerpt(&output.stdout),
            stderr: text::excerpt(&output.stderr),
            ..Evidence::default()
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((Answer { text, asked, answered }, evidence))
    });
    let (mut answers, mut evidence) = (BTreeMap::new(), Vec::new());
    for (node, told) in nodes.iter().zip(told) {
        let (answer, shown) = told?;
        answers.insert(node.spec().name.clone(), answer);
        evidence.push(shown);
    }
    let wrong = check.judge(&known, &answers);
    if wrong.is_empty() {
        return Ok(evidence);
    }
    for shown in &mut evidence {
        let of_node = wrong.iter().filter(|wrong| *wrong.node == *shown.node);
        let expected: Vec<&str> = of_node.map(|wrong| wrong.expected.as_str()).collect();
        shown.failed = !expected.is_empty();
        shown.expected = shown.failed.then(|| expected.join("\n"));
    }
    let lines: Vec<String> =
        wrong.iter().map(|w| format!("{}: `{}`, not {}", w.node, w.found, w.expected)).collect();
    Err(Trouble { why: lines.join("\n"), evidence, over: false })
}
