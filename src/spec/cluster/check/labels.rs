//! Labels and taints of nodes, as the kubelet and the API server take them.
//!
//! Names and values are those of k8s.io/apimachinery (pkg/util/validation), what a kubelet may give itself is in k8s.io/kubelet
//! (pkg/apis/well_known_labels.go), and how taints are read in k8s.io/kubernetes (pkg/util/taints).

use std::collections::BTreeMap;

use crate::scenario::problems::{Part, Problems, spot};
use crate::spec::cluster::file::NodeFile;

/// Labels in the domains of Kubernetes that a kubelet may give itself (`kubeletLabels`).
const OWN: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// Domains of Kubernetes in which it may give itself any (`kubeletLabelNamespaces`).
const OWN_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
/// The taint that a kubelet gives itself in K3s until the cloud controller has seen its node: a second one of that name is refused.
const UNINITIALIZED: (&str, &str) = ("node.cloudprovider.kubernetes.io/uninitialized", "NoSchedule");
const WORD: &str = "at most 63 letters, digits, `-`, `_` and `.`, a letter or digit at both ends";

pub(super) fn labels(name: &str, file: &NodeFile, problems: &mut Problems<'_>) {
    for (key, text) in &file.labels {
        let here = || spot!["node", name, "labels", Part::Name(key.clone())];
        if let Err(why) = qualified(key) {
            problems.add(here(), format!("`{}` is not a label key: {why}", key.escape_debug()));
        } else if !own_label(key) {
            problems
                .add(here(), format!("a node may not give itself the label `{key}`: the API server refuses it"))
                .hint("use a prefix of your own, such as example.org/, or `kubectl label node` once it has joined");
        }
        if !text.is_empty() && !word(text) {
            problems.add(
                spot!["node", name, "labels", key.as_str()],
                format!("`{}` is not a label value: {WORD}", text.escape_debug()),
            );
        }
    }
}

/// A name with or without a domain in front (`IsQualifiedName`).
fn qualified(key: &str) -> Result<(), &'static str> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix.is_some_and(|prefix| !subdomain(prefix)) {
        return Err("what stands before the / must be a domain in small letters");
    }
    if !word(name) {
        return Err(WORD);
    }
    Ok(())
}

/// A domain as Kubernetes has it (`IsDNS1123Subdomain`): 253 characters in all; its parts have no limit of their own.
fn subdomain(text: &str) -> bool {
    let small = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.len() <= 253
        && text.split('.').all(|part| {
            small(part.bytes().next())
                && small(part.bytes().last())
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

/// A name, or a value that is not empty (`IsValidLabelValue`).
fn word(word: &str) -> bool {
    let ends = |c: Option<u8>| c.is_some_and(|b| b.is_ascii_alphanumeric());
    word.len() <= 63
        && ends(word.bytes().next())
        && ends(word.bytes().last())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Whether the kubelet starts with this label of its own, and the API server lets it.
fn own_label(key: &str) -> bool {
    let Some((prefix, _)) = key.split_once('/') else { return true };
    let of =
        |domain: &str| prefix.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    !(of("kubernetes.io") || of("k8s.io"))
        || OWN.contains(&key)
        || OWN_DOMAINS.iter().any(|domain| of(domain))
}

/// Taints, as K3s hands them to the kubelet (`ParseTaints`): key and effect are there once at most.
pub(super) fn taints(name: &str, file: &NodeFile, problems: &mut Problems<'_>) {
    let mut known: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for (index, text) in file.taints.iter().enumerate() {
        let here = || spot!["node", name, "taints", index];
        let (key, effect) = match taint(text) {
            Ok(parts) => parts,
            Err(why) => {
                problems.add(here(), format!("`{}` is not a taint: {why}", text.escape_debug())).hint(
                    format!("write KEY=VALUE:EFFECT or KEY:EFFECT; effects are {}", EFFECTS.join(", ")),
                );
                continue;
            }
        };
        if (key, effect) == UNINITIALIZED {
            problems
                .add(
                    here(),
                    format!("the kubelet gives itself `{key}:{effect}`, and does not register with it twice"),
                )
                .hint("leave it out");
        }
        if let Some(first) = known.insert((key, effect), text) {
            problems
                .add(
                    here(),
                    format!("`{text}` has key and effect of `{first}`: the kubelet takes each pair of them once, whatever the value"),
                )
                .hint("leave one of them out, or give it another key or effect");
        }
    }
}

/// Key and effect of a taint, or why it is none.
fn taint(text: &str) -> Result<(&str, &str), String> {
    let Some((rest, effect)) = text.rsplit_once(':') else { return Err("it has no effect".to_owned()) };
    let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
    if !EFFECTS.contains(&effect) {
        let near = crate::spec::nearest(effect, EFFECTS).map(|near| format!(", did you mean `{near}`?"));
        return Err(format!("`{}` is not an effect{}", effect.escape_debug(), near.unwrap_or_default()));
    }
    qualified(key).map_err(|why| format!("its key is invalid: {why}"))?;
    if !value.is_empty() && !word(value) {
        return Err(format!("its value is invalid: {WORD}"));
    }
    Ok((key, effect))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_may_give_itself_these_labels_and_no_others_of_kubernetes() {
        for key in OWN {
            assert!(own_label(key) && qualified(key).is_ok(), "{key}");
        }
        for key in [
            "rack",
            "example.org/rack",
            "notkubernetes.io/x",
            "node.kubernetes.io/x",
            "a.kubelet.kubernetes.io/x",
        ] {
            assert!(own_label(key), "{key}");
        }
        for key in [
            "kubernetes.io/role",
            "node-role.kubernetes.io/worker",
            "node-restriction.kubernetes.io/x",
            "a.node-restriction.kubernetes.io/x",
            "beta.kubernetes.io/x",
            "failure-domain.beta.kubernetes.io/rack",
            "topology.kubernetes.io/rack",
            "k8s.io/x",
            "a.k8s.io/x",
            "xnode.kubernetes.io/x",
        ] {
            assert!(!own_label(key), "{key}");
        }
    }

    #[test]
    fn names_have_the_limits_of_kubernetes() {
        let (long, prefix) = ("n".repeat(63), format!("{}.{}", "d".repeat(64), "e".repeat(188)));
        for key in [long.as_str(), &format!("{prefix}/{long}"), "A_b.c-d", "1/2", "a-b.c/X"] {
            assert_eq!(qualified(key), Ok(()), "{key}");
        }
        for key in [
            "",
            "/x",
            "x/",
            "a/b/c",
            "A.b/c",
            "a_b/c",
            "-a/b",
            "a-/b",
            "a..b/c",
            "_x",
            "x-",
            "a b",
            "x:y",
            "ü",
            &format!("{long}n"),
            &format!("{prefix}f/x"),
        ] {
            assert!(qualified(key).is_err(), "{key}");
        }
    }

    #[test]
    fn taints_are_read_as_the_kubelet_reads_them() {
        for (text, parts) in [
            ("a=b:NoSchedule", ("a", "NoSchedule")),
            ("a=:NoExecute", ("a", "NoExecute")),
            ("example.org/a:PreferNoSchedule", ("example.org/a", "PreferNoSchedule")),
        ] {
            assert_eq!(taint(text), Ok(parts));
        }
        for (text, part) in [
            ("a=b", "no effect"),
            ("a=b:noschedule", "did you mean `NoSchedule`?"),
            ("a=b:", "not an effect"),
            ("a=b=c:NoSchedule", "its value"),
            ("a:b:NoSchedule", "its key"),
            (":NoSchedule", "its key"),
            ("a=-:NoSchedule", "its value"),
            ("a=b:NoSchedule-", "not an effect"),
        ] {
            assert!(taint(text).unwrap_err().contains(part), "{text}: {:?}", taint(text));
        }
    }
}
