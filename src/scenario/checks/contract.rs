//! [`Check::Contract`](crate::scenario::spec::Check::Contract): the kernel contract of a node's profile on its running kernel.

use super::{Facts, Known, Verdict};
use crate::contract::Finding;
use crate::scenario::spec::Node;

/// The probes choose for themselves where a failure ends them.
pub(super) fn script(known: &Known<'_>, node: &Node) -> String {
    let probes = known.probes.get(&node.name).copied().unwrap_or_default();
    format!("set +eu\n(\n{probes}\n)\necho \"ended $?\"\n")
}

pub(super) fn judge(known: &Known<'_>, node: &Node, facts: &Facts<'_>, verdict: &mut Verdict) {
    let name = &node.name;
    let findings: Vec<Finding> = facts.0.lines().filter_map(|line| Finding::parse(line.trim_end())).collect();
    for finding in findings.iter().filter(|finding| !finding.ok) {
        let (what, why) = finding.text.split_once(": ").unwrap_or((&finding.text, "no"));
        verdict.wrong(name, format!("for {}: {what}", finding.feature), why);
    }
    // A script that broke off has found nothing wrong in what it did not come to.
    let code = if findings.iter().all(|finding| finding.ok) { "0" } else { "1" };
    verdict.equal(name, "probes that ended with", code, facts.one("ended"));
    let Some(manifest) = known.manifests.get(name) else {
        return verdict.wrong(name, "an image with a manifest", "none");
    };
    if manifest.features.is_empty() {
        verdict.wrong(name, "a profile with `kernel.features`", "none");
    }
    for (feature, _) in manifest.features.iter().filter(|(_, demands)| **demands > 0) {
        if !findings.iter().any(|finding| finding.feature == *feature) {
            verdict.wrong(name, format!("an answer about {feature}"), "");
        }
    }
}
