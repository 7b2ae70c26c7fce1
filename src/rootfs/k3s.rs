//! What K3s and the kubelet are told, from `[k3s]`: /usr/share/kiln/k3s.
//!
//! ```text
//! role, role.env       which of both a node is
//! config.yaml          K3s' configuration: the defaults that a node's credentials are laid over   docs.k3s.io/installation/configuration
//! kubelet.conf         KubeletConfiguration, beside K3s' own   kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1
//! references           name and reference of the container images that came with the image
//! audit.yaml           policy of the API server's log          kubernetes.io/docs/reference/config-api/apiserver-audit.v1
//! manifests/NAME.yaml  what a server applies
//! ```
//!
//! All of it is YAML whose values are written as JSON, which YAML contains.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::cilium;
use super::step::{StepError, put};
use crate::spec::{Cni, K3s, Profile, Role};
use crate::tree::{Entry, Tree};

const OWNER: &str = "kiln:k3s";
/// Where it lies in the root, without the first slash.
const FOLDER: &str = "usr/share/kiln/k3s";
/// Where archives of container images lie in the root, without the first slash.
pub const CONTAINERS: &str = "usr/share/kiln/containers";
/// The API server's log of changes.
const AUDIT_LOG: &str = "/var/lib/rancher/k3s/server/logs/audit.log";

/// The names by which manifests refer to container images: image name to reference.
pub type References = BTreeMap<String, String>;

/// Puts in what K3s is told; nothing without `[k3s]` or a role.
///
/// # Errors
/// A manifest has a `%{…}%` that does not stand for anything.
pub fn k3s(tree: &mut Tree, profile: &Profile, references: &References) -> Result<(), StepError> {
    let (Some(k3s), Some(role)) = (&profile.layer.k3s, profile.role()) else { return Ok(()) };
    let mut file =
        |name: &str, text: String| put(tree, &format!("{FOLDER}/{name}"), Entry::file(0o644, text, OWNER));
    file("role", format!("{role}\n"))?;
    file("role.env", format!("K3S_ROLE={role}\n"))?;
    file("config.yaml", lines(&config(k3s, role, references)))?;
    file("kubelet.conf", lines(&kubelet(k3s)))?;
    file("references", references.iter().map(|(name, reference)| format!("{name} {reference}\n")).collect())?;
    if role == Role::Server {
        if k3s.audit.unwrap_or(true) {
            file("audit.yaml", lines(&audit()))?;
        }
        for name in &k3s.manifests {
            let path = manifest_path(name);
            let bytes = profile.sources.get(&path).map(Vec::as_slice).unwrap_or_default();
            let text = fill(&String::from_utf8_lossy(bytes), k3s, references)
                .map_err(|what| StepError::Missing {
                    what: format!("what {what} in images/k3s/manifests/{name}.yaml stands for"),
                    remedy: "CLUSTER_DNS, CLUSTER_DOMAIN, CLUSTER_CIDR, SERVICE_CIDR and IMAGE:NAME for each of `k3s.containers` are known"
                        .to_owned(),
                })?;
            file(&format!("manifests/{name}.yaml"), text)?;
        }
        for (name, text) in cilium::manifests(k3s) {
            file(&format!("manifests/{name}.yaml"), text)?;
        }
    }
    for (path, text) in cilium::files(k3s) {
        put(tree, path, Entry::file(0o644, text, OWNER))?;
    }
    Ok(())
}

/// The path in the image of a manifest that `k3s.manifests` names.
pub fn manifest_path(name: &str) -> String {
    format!("/{FOLDER}/manifests/{name}.yaml")
}

/// One line for each key.
fn lines(values: &BTreeMap<&str, Value>) -> String {
    let mut text = String::from("# From [k3s] in the image's TOML files.\n");
    for (key, value) in values {
        text.push_str(&format!("{key}: {value}\n"));
    }
    text
}

/// K3s' configuration: keys are its flags.
fn config<'a>(k3s: &'a K3s, role: Role, references: &References) -> BTreeMap<&'a str, Value> {
    let mut config: BTreeMap<&str, Value> = BTreeMap::new();
    config.insert("protect-kernel-defaults", json!(k3s.protect_kernel_defaults.unwrap_or(true)));
    if let Some(pause) = references.get("pause") {
        config.insert("pause-image", json!(pause));
    }
    if role == Role::Server {
        let mut disable = vec!["coredns", "local-storage", "metrics-server", "servicelb", "traefik"];
        config.insert("cluster-cidr", json!(k3s.cluster_cidr()));
        config.insert("service-cidr", json!(k3s.service_cidr()));
        config.insert("cluster-dns", json!(k3s.cluster_dns()));
        config.insert("cluster-domain", json!(k3s.domain()));
        config.insert("secrets-encryption", json!(k3s.secrets_encryption.unwrap_or(true)));
        config.insert("write-kubeconfig-mode", json!("0600"));
        match k3s.cni() {
            Cni::Flannel => {
                config.insert("flannel-backend", json!("vxlan"));
                // Charts are what Cilium comes as; without it nobody in the cluster has any before Flux.
                config.insert("disable-helm-controller", json!(true));
            }
            Cni::Cilium => {
                config.insert("flannel-backend", json!("none"));
                config.insert("disable-network-policy", json!(true));
                config.insert("disable-kube-proxy", json!(true));
            }
        }
        disable.sort_unstable();
        config.insert("disable", json!(disable));
        if k3s.audit.unwrap_or(true) {
            config.insert(
                "kube-apiserver-arg",
                json!([
                    format!("audit-policy-file=/{FOLDER}/audit.yaml"),
                    format!("audit-log-path={AUDIT_LOG}"),
                    "audit-log-maxsize=50",
                    "audit-log-maxbackup=4",
                ]),
            );
        }
    }
    for (key, value) in &k3s.config {
        config.insert(key, value.clone());
    }
    config
}

/// What the kubelet is told beside what K3s tells it.
fn kubelet(k3s: &K3s) -> BTreeMap<&'static str, Value> {
    let high = k3s.image_gc_percent.unwrap_or(85);
    let mut values = BTreeMap::from([
        ("apiVersion", json!("kubelet.config.k8s.io/v1beta1")),
        ("kind", json!("KubeletConfiguration")),
        // The default lies below /usr, which nobody can write to.
        ("volumePluginDir", json!("/var/lib/kubelet/volumeplugins")),
        ("imageGCHighThresholdPercent", json!(high)),
        ("imageGCLowThresholdPercent", json!(high.saturating_sub(5))),
    ]);
    let seconds = k3s.shutdown_seconds.unwrap_or(60);
    if seconds > 0 {
        values.insert("shutdownGracePeriod", json!(format!("{seconds}s")));
        values.insert("shutdownGracePeriodCriticalPods", json!(format!("{}s", seconds / 4)));
    }
    values
}

/// Who changed what, without the contents: no Secret ends in a log. What is only read is not written down, nor what nodes and
/// controllers report of themselves every few seconds.
fn audit() -> BTreeMap<&'static str, Value> {
    let quiet = json!({
        "level": "None",
        "resources": [
            { "group": "coordination.k8s.io", "resources": ["leases"] },
            { "group": "", "resources": ["events", "nodes/status", "pods/status"] },
            { "group": "events.k8s.io", "resources": ["events"] },
        ],
    });
    BTreeMap::from([
        ("apiVersion", json!("audit.k8s.io/v1")),
        ("kind", json!("Policy")),
        ("omitStages", json!(["RequestReceived"])),
        (
            "rules",
            json!([
                { "level": "None", "verbs": ["get", "list", "watch"] },
                quiet,
                { "level": "Metadata" },
            ]),
        ),
    ])
}

/// `text` with the values of the profile for its `%{NAME}%`; an error is the first that has none.
fn fill(text: &str, k3s: &K3s, references: &References) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("%{") {
        let Some((name, after)) = behind.split_once("}%") else { return Err("%{ without }%".to_owned()) };
        out.push_str(before);
        let value = match name {
            "CLUSTER_DNS" => Some(k3s.cluster_dns().to_string()),
            "CLUSTER_DOMAIN" => Some(k3s.domain().to_owned()),
            "CLUSTER_CIDR" => Some(k3s.cluster_cidr().to_string()),
            "SERVICE_CIDR" => Some(k3s.service_cidr().to_string()),
            _ => name.strip_prefix("IMAGE:").and_then(|image| references.get(image).cloned()),
        };
        out.push_str(&value.ok_or_else(|| format!("%{{{name}}}%"))?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references() -> References {
        [("pause", "kiln.example.org/pause:1"), ("coredns", "kiln.example.org/coredns:1")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .into()
    }

    #[test]
    fn a_server_is_told_what_the_profile_says_and_its_own_lines_win() {
        let mut k3s = K3s { cni: Some(Cni::Cilium), ..K3s::default() };
        k3s.service_cidr = Some("172.20.0.0/16".parse().unwrap());
        k3s.config.insert("secrets-encryption".to_owned(), json!(false));
        let text = lines(&config(&k3s, Role::Server, &references()));
        for line in [
            "cluster-dns: \"172.20.0.10\"",
            "disable-kube-proxy: true",
            "flannel-backend: \"none\"",
            "pause-image: \"kiln.example.org/pause:1\"",
            "secrets-encryption: false",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("disable-helm-controller"), "{text}");
        // An agent is told by its server.
        let agent = lines(&config(&k3s, Role::Agent, &references()));
        assert!(!agent.contains("cidr") && agent.contains("pause-image"), "{agent}");
    }

    #[test]
    fn what_is_on_by_default_can_be_switched_off() {
        let told =
            |k3s: &K3s| [config(k3s, Role::Server, &references()), kubelet(k3s)].map(|v| lines(&v)).concat();
        let on = told(&K3s::default());
        for (part, off, instead) in [
            (
                "protect-kernel-defaults: true",
                K3s { protect_kernel_defaults: Some(false), ..K3s::default() },
                "protect-kernel-defaults: false",
            ),
            (
                "secrets-encryption: true",
                K3s { secrets_encryption: Some(false), ..K3s::default() },
                "secrets-encryption: false",
            ),
            ("audit-policy-file=", K3s { audit: Some(false), ..K3s::default() }, ""),
            ("shutdownGracePeriod: \"60s\"", K3s { shutdown_seconds: Some(0), ..K3s::default() }, ""),
            (
                "imageGCHighThresholdPercent: 85",
                K3s { image_gc_percent: Some(100), ..K3s::default() },
                "imageGCHighThresholdPercent: 100",
            ),
        ] {
            assert!(on.contains(part), "{part} is not in\n{on}");
            let off = told(&off);
            assert!(!off.contains(part) && off.contains(instead), "{part}, {instead}:\n{off}");
        }
    }

    #[test]
    fn manifests_get_their_values_and_an_unknown_one_is_an_error() {
        let k3s = K3s::default();
        let fill = |text: &str| fill(text, &k3s, &references());
        assert_eq!(
            fill("a %{CLUSTER_DNS}% b %{IMAGE:coredns}%").unwrap(),
            "a 10.43.0.10 b kiln.example.org/coredns:1"
        );
        assert_eq!(fill("%{IMAGE:none}%").unwrap_err(), "%{IMAGE:none}%");
        assert_eq!(fill("100 %{").unwrap_err(), "%{ without }%");
        assert_eq!(fill("100 %").unwrap(), "100 %");
    }
}
