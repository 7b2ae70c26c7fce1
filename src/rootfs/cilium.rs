//! What a server applies so that Cilium connects the pods, and what every node must have for that, from `[k3s.cilium]`.
//!
//! ```text
//! /usr/share/kiln/k3s/manifests/cilium.yaml      HelmChart       docs.k3s.io/helm
//! /usr/share/kiln/k3s/manifests/cilium-lb.yaml   pool, BGP, L2   docs.cilium.io: LB IPAM, BGP Control Plane, L2 Announcements
//! /usr/lib/sysctl.d/99-kiln-cilium.conf          no reverse-path filter on its interfaces (Cilium writes this file itself, where it can)
//! /usr/lib/systemd/network/05-kiln-cilium.network   networkd leaves them alone (cilium/cilium#18706)
//! ```
//!
//! The kinds of `cilium-lb.yaml` are made known by Cilium's operator when it runs; K3s tries such a manifest again until it is taken.

use serde_json::{Value, json};

use crate::spec::{Cilium, Cni, Encryption, K3s};

/// Where Cilium's chart is published.
const REPOSITORY: &str = "https://helm.cilium.io";
/// Where agents and servers of K3s find the API server on every node: K3s' own load balancer.
const API: (&str, u16) = ("127.0.0.1", 6444);
/// Label by which the objects below belong together.
const LABEL: (&str, &str) = ("kiln", "lb");

const SYSCTL: &str = "# A packet that comes out of an interface of Cilium need not go back by it.
net.ipv4.conf.all.rp_filter = 0
net.ipv4.conf.lxc*.rp_filter = 0
net.ipv4.conf.cilium_*.rp_filter = 0
";

const NETWORK: &str = "# Cilium's interfaces are its own.
[Match]
Name=lxc* cilium_*

[Link]
Unmanaged=yes
";

/// Manifests by name, without `.yaml`; none where another CNI connects the pods.
pub(super) fn manifests(k3s: &K3s) -> Vec<(&'static str, String)> {
    let Some(cilium) = of(k3s) else { return Vec::new() };
    let mut files = vec![("cilium", documents(&[chart(k3s, cilium)]))];
    let objects = objects(cilium);
    if !objects.is_empty() {
        files.push(("cilium-lb", documents(&objects)));
    }
    files
}

/// Files of every node, by absolute path.
pub(super) fn files(k3s: &K3s) -> Vec<(&'static str, &'static str)> {
    match of(k3s) {
        Some(_) => vec![
            ("usr/lib/sysctl.d/99-kiln-cilium.conf", SYSCTL),
            ("usr/lib/systemd/network/05-kiln-cilium.network", NETWORK),
        ],
        None => Vec::new(),
    }
}

fn of(k3s: &K3s) -> Option<&Cilium> {
    k3s.cilium.as_ref().filter(|_| k3s.cni() == Cni::Cilium)
}

/// YAML documents, each as JSON.
fn documents(values: &[Value]) -> String {
    let mut text = String::from("# From [k3s.cilium] in the image's TOML files.\n");
    for value in values {
        text.push_str(&format!("---\n{value:#}\n"));
    }
    text
}

/// `bootstrap`: the chart's job runs on the host's network and on a node that is not ready, since no pod has a network before it.
fn chart(k3s: &K3s, cilium: &Cilium) -> Value {
    json!({
        "apiVersion": "helm.cattle.io/v1",
        "kind": "HelmChart",
        "metadata": { "name": "cilium", "namespace": "kube-system" },
        "spec": {
            "repo": REPOSITORY,
            "chart": "cilium",
            "version": cilium.version,
            "targetNamespace": "kube-system",
            "bootstrap": true,
            "valuesContent": format!("{:#}\n", values(k3s, cilium)),
        },
    })
}

/// Values of the chart (docs.cilium.io, Helm Reference).
fn values(k3s: &K3s, cilium: &Cilium) -> Value {
    let mut values = json!({
        "kubeProxyReplacement": true,
        "k8sServiceHost": API.0,
        "k8sServicePort": API.1,
        // Each node's share of the cluster's addresses is K3s' to give.
        "ipam": { "mode": "kubernetes" },
        "ipv4NativeRoutingCIDR": k3s.cluster_cidr(),
        "bpf": { "masquerade": true },
        "operator": { "replicas": 1 },
        // systemd has mounted it, and the root is read-only.
        "cgroup": { "autoMount": { "enabled": false }, "hostRoot": "/sys/fs/cgroup" },
        // The image brings the file that it would write.
        "sysctlfix": { "enabled": false },
        "cni": { "binPath": "/opt/cni/bin", "confPath": "/etc/cni/net.d" },
        "bgpControlPlane": { "enabled": cilium.bgp.is_some() },
        "l2announcements": { "enabled": !cilium.l2_interfaces.is_empty() },
        "encryption": encryption(cilium),
        "ingressController": { "enabled": cilium.ingress.is_some() },
    });
    if let Some(ingress) = cilium.ingress {
        values["ingressController"] = json!({
            "enabled": true,
            "default": true,
            "loadbalancerMode": "shared",
            "service": { "annotations": { "lbipam.cilium.io/ips": ingress } },
        });
    }
    for (key, value) in &cilium.values {
        overlay(&mut values[key.as_str()], value);
    }
    values
}

fn encryption(cilium: &Cilium) -> Value {
    match cilium.encryption.unwrap_or(Encryption::Wireguard) {
        Encryption::None => json!({ "enabled": false }),
        Encryption::Wireguard => json!({ "enabled": true, "type": "wireguard" }),
    }
}

/// Tables are merged key by key, as Helm merges values; anything else is replaced.
fn overlay(base: &mut Value, later: &Value) {
    match (base, later) {
        (Value::Object(base), Value::Object(later)) => {
            for (key, value) in later {
                overlay(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, later) => *base = later.clone(),
    }
}

/// Which services get an address, and who is told where it is: all of them.
fn objects(cilium: &Cilium) -> Vec<Value> {
    let Some(pool) = cilium.lb_pool else { return Vec::new() };
    let labels = json!({ LABEL.0: LABEL.1 });
    // The only way to say "all services": a key that none has.
    let every = json!({ "matchExpressions": [{ "key": "kiln.invalid/none", "operator": "NotIn", "values": ["none"] }] });
    let first_last = if cilium.lb_first_last.unwrap_or(false) { "Yes" } else { "No" };
    let mut objects = vec![json!({
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLoadBalancerIPPool",
        "metadata": { "name": "lb" },
        "spec": { "blocks": [{ "cidr": pool }], "allowFirstLastIPs": first_last },
    })];
    if !cilium.l2_interfaces.is_empty() {
        objects.push(json!({
            "apiVersion": "cilium.io/v2alpha1",
            "kind": "CiliumL2AnnouncementPolicy",
            "metadata": { "name": "lb" },
            "spec": { "loadBalancerIPs": true, "externalIPs": false, "interfaces": cilium.l2_interfaces },
        }));
    }
    if let Some(bgp) = &cilium.bgp {
        let family = if bgp.peer.is_ipv4() { "ipv4" } else { "ipv6" };
        objects.push(json!({
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumBGPAdvertisement",
            "metadata": { "name": "lb", "labels": labels },
            "spec": { "advertisements": [{
                "advertisementType": "Service",
                "service": { "addresses": ["LoadBalancerIP"] },
                "selector": every,
            }] },
        }));
        objects.push(json!({
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumBGPPeerConfig",
            "metadata": { "name": "router" },
            "spec": {
                "gracefulRestart": { "enabled": true, "restartTimeSeconds": 120 },
                "families": [{ "afi": family, "safi": "unicast", "advertisements": { "matchLabels": labels } }],
            },
        }));
        objects.push(json!({
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumBGPClusterConfig",
            "metadata": { "name": "cluster" },
            "spec": {
                "nodeSelector": { "matchLabels": { "kubernetes.io/os": "linux" } },
                "bgpInstances": [{
                    "name": "kiln",
                    "localASN": bgp.asn,
                    "peers": [{
                        "name": "router",
                        "peerASN": bgp.peer_asn,
                        "peerAddress": bgp.peer,
                        "peerConfigRef": { "name": "router" },
                    }],
                }],
            },
        }));
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::CiliumBgp;

    fn home() -> K3s {
        let cilium = Cilium {
            version: Some("1.18.1".to_owned()),
            lb_pool: Some("192.168.50.240/28".parse().unwrap()),
            l2_interfaces: vec!["^en.*".to_owned()],
            bgp: Some(CiliumBgp { asn: 64512, peer_asn: 64513, peer: "192.168.50.1".parse().unwrap() }),
            ingress: Some("192.168.50.241".parse().unwrap()),
            values: [
                ("operator".to_owned(), json!({ "replicas": 2 })),
                ("debug".to_owned(), json!({ "enabled": true })),
            ]
            .into(),
            ..Cilium::default()
        };
        K3s { cni: Some(Cni::Cilium), cilium: Some(cilium), ..K3s::default() }
    }

    /// The documents of a file, each of which is JSON.
    fn parse(text: &str) -> Vec<Value> {
        text.split("---\n").skip(1).map(|document| serde_json::from_str(document).unwrap()).collect()
    }

    #[test]
    fn the_chart_gets_its_values_and_the_profile_s_win() {
        let files = manifests(&home());
        let [chart] = parse(&files[0].1).try_into().unwrap();
        assert_eq!((files[0].0, chart["kind"].as_str()), ("cilium", Some("HelmChart")));
        assert_eq!(
            (&chart["spec"]["version"], &chart["spec"]["bootstrap"]),
            (&json!("1.18.1"), &json!(true))
        );
        let values: Value = serde_json::from_str(chart["spec"]["valuesContent"].as_str().unwrap()).unwrap();
        for (path, wanted) in [
            ("/kubeProxyReplacement", json!(true)),
            ("/k8sServicePort", json!(6444)),
            ("/ipv4NativeRoutingCIDR", json!("10.42.0.0/16")),
            ("/encryption/type", json!("wireguard")),
            ("/ingressController/service/annotations/lbipam.cilium.io~1ips", json!("192.168.50.241")),
            ("/operator/replicas", json!(2)),
            ("/debug/enabled", json!(true)),
            ("/sysctlfix/enabled", json!(false)),
        ] {
            assert_eq!(values.pointer(path), Some(&wanted), "{path} in {values:#}");
        }
    }

    #[test]
    fn pool_l2_and_bgp_are_objects_that_refer_to_each_other() {
        let files = manifests(&home());
        let objects = parse(&files[1].1);
        let of = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
        let pool = of("CiliumLoadBalancerIPPool");
        assert_eq!(
            pool["spec"],
            json!({ "blocks": [{ "cidr": "192.168.50.240/28" }], "allowFirstLastIPs": "No" })
        );
        assert_eq!(of("CiliumL2AnnouncementPolicy")["spec"]["interfaces"], json!(["^en.*"]));
        let peer = &of("CiliumBGPClusterConfig")["spec"]["bgpInstances"][0]["peers"][0];
        assert_eq!(peer["peerASN"], 64513);
        assert_eq!(peer["peerConfigRef"]["name"], of("CiliumBGPPeerConfig")["metadata"]["name"]);
        assert_eq!(
            of("CiliumBGPPeerConfig")["spec"]["families"][0]["advertisements"]["matchLabels"],
            of("CiliumBGPAdvertisement")["metadata"]["labels"]
        );
    }

    #[test]
    fn without_cilium_there_is_nothing_of_it() {
        let flannel = K3s { cni: Some(Cni::Flannel), ..home() };
        assert!(manifests(&flannel).is_empty() && files(&flannel).is_empty());
        assert_eq!(files(&home()).len(), 2);
    }
}
