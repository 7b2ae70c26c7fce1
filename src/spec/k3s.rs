//! `[k3s]` of a layer: which K3s, and how the cluster is set up that its nodes make.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cilium::Cilium;
use crate::arch::Arch;
use crate::digest::Digest;
use crate::error::{Failure, Kind};

/// K3s on a node. Every setting has a word of its own, so that a later layer can change one of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct K3s {
    /// The release, `v1.33.3+k3s1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Upstream's files of this `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
    /// Which way it comes into an image. Default `auto`. It is no part of what an image is: both ways have names of their own there.
    #[serde(default, skip_serializing)]
    pub way: Option<WantedWay>,
    /// Recipes that build it; their outputs are put into the root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<String>,
    /// Recipes of programs that it calls, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipes: Vec<String>,
    /// Container images (images/containers/) that every node has from its first boot on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// Files of images/k3s/manifests/, without `.yaml`, that a server applies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<String>,
    /// The network of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<Cni>,
    /// How Cilium is set up, where it does that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cilium: Option<Cilium>,
    /// Addresses of pods. Default 10.42.0.0/16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub cluster_cidr: Option<Ipv4Net>,
    /// Addresses of services. Default 10.43.0.0/16. The tenth of them is the cluster's DNS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub service_cidr: Option<Ipv4Net>,
    /// Name space of the cluster's DNS. Default `cluster.local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Whether Secrets are encrypted in the datastore. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets_encryption: Option<bool>,
    /// Whether the kubelet refuses to run with other kernel parameters than it was written for. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect_kernel_defaults: Option<bool>,
    /// Whether the API server writes down who changed what (not what was read), in /var/lib/rancher/k3s/server/logs/audit.log. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<bool>,
    /// Seconds that pods get to end when the node is switched off, the last quarter of it for critical ones; 0 leaves them no time.
    /// Default 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_seconds: Option<u32>,
    /// Percent of the disk from which on the kubelet deletes images nobody uses. Default 85.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_gc_percent: Option<u8>,
    /// Further lines of K3s' own configuration, by flag name (`k3s server --help`); they win over what kiln writes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub config: BTreeMap<String, serde_json::Value>,
}

/// Upstream's files of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Folders that have them, the best first.
    pub urls: Vec<String>,
    /// A server that says which release is the newest of a channel, as <https://update.k3s.io/v1-release/channels> does: for
    /// `kiln update k3s`. It is no part of what an image is.
    #[serde(default, skip_serializing)]
    pub channels: Option<String>,
    /// For 64-bit x86.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amd64: Option<ReleaseFile>,
    /// For 64-bit Arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm64: Option<ReleaseFile>,
}

impl Release {
    /// The file for a machine.
    pub fn file(&self, arch: Arch) -> Option<&ReleaseFile> {
        match arch {
            Arch::Amd64 => self.amd64.as_ref(),
            Arch::Arm64 => self.arm64.as_ref(),
        }
    }
}

/// A file of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseFile {
    /// Its name there.
    pub name: String,
    /// Its digest.
    #[schemars(with = "String")]
    pub sha256: Digest,
}

/// Which way K3s comes into an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WantedWay {
    /// The release; where nobody has it, from source.
    #[default]
    Auto,
    /// The release or none.
    Binary,
    /// From source.
    Source,
}

/// Who connects the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// K3s' own: VXLAN between nodes, kube-proxy by iptables, network policies.
    Flannel,
    /// Cilium in place of flannel, kube-proxy and K3s' network policies.
    Cilium,
}

impl fmt::Display for Cni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cni::Flannel => "flannel",
            Cni::Cilium => "cilium",
        })
    }
}

impl K3s {
    /// Merges `later` over `self`, as [`super`] says.
    pub(super) fn merge(&mut self, later: K3s) {
        // Destructured so that a new field cannot be forgotten here.
        let K3s {
            version,
            release,
            way,
            source,
            recipes,
            containers,
            manifests,
            cni,
            cilium,
            cluster_cidr,
            service_cidr,
            domain,
            secrets_encryption,
            protect_kernel_defaults,
            audit,
            shutdown_seconds,
            image_gc_percent,
            config,
        } = later;
        // Another version is another program: what stood for the one before does not stand for it.
        if version.is_some() {
            self.version = version;
            self.release = None;
            self.source.clear();
        }
        self.release = release.or(self.release.take());
        self.way = way.or(self.way);
        super::layer::join(&mut self.source, source);
        super::layer::join(&mut self.recipes, recipes);
        super::layer::join(&mut self.containers, containers);
        super::layer::join(&mut self.manifests, manifests);
        self.cni = cni.or(self.cni);
        if let Some(later) = cilium {
            self.cilium.get_or_insert_default().merge(later);
        }
        self.cluster_cidr = cluster_cidr.or(self.cluster_cidr);
        self.service_cidr = service_cidr.or(self.service_cidr);
        self.domain = domain.or(self.domain.take());
        self.secrets_encryption = secrets_encryption.or(self.secrets_encryption);
        self.protect_kernel_defaults = protect_kernel_defaults.or(self.protect_kernel_defaults);
        self.audit = audit.or(self.audit);
        self.shutdown_seconds = shutdown_seconds.or(self.shutdown_seconds);
        self.image_gc_percent = image_gc_percent.or(self.image_gc_percent);
        self.config.extend(config);
    }

    /// The release.
    pub fn version(&self) -> &str {
        self.version.as_deref().unwrap_or_default()
    }

    /// The network of the pods.
    pub fn cni(&self) -> Cni {
        self.cni.unwrap_or(Cni::Flannel)
    }

    /// Addresses of pods.
    pub fn cluster_cidr(&self) -> Ipv4Net {
        self.cluster_cidr.unwrap_or(Ipv4Net::new_assert(Ipv4Addr::new(10, 42, 0, 0), 16))
    }

    /// Addresses of services.
    pub fn service_cidr(&self) -> Ipv4Net {
        self.service_cidr.unwrap_or(Ipv4Net::new_assert(Ipv4Addr::new(10, 43, 0, 0), 16))
    }

    /// Address of the cluster's DNS: the tenth of the services', as K3s takes it.
    pub fn cluster_dns(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cidr().network()) + 10)
    }

    /// Name space of the cluster's DNS.
    pub fn domain(&self) -> &str {
        self.domain.as_deref().unwrap_or("cluster.local")
    }

    /// What no layer alone can see: a setting that does not go with another.
    ///
    /// # Errors
    /// [`Kind::Input`], with `file` in front.
    pub(super) fn check(&self, file: &str) -> Result<(), Failure> {
        let refuse = |why: &str, hint: &str| {
            Err(Failure::new(Kind::Input, format!("{file}: [k3s]: {why}")).hint(hint.to_owned()))
        };
        if self.version.is_none() {
            return refuse(
                "no layer says which `version`",
                "extend `k3s` (images/k3s.toml), or take [k3s] out",
            );
        }
        if self.source.is_empty() && self.release.is_none() {
            return refuse(
                "no layer says where this `version` comes from",
                "pin its `release`, or name the recipes that build it as `source`",
            );
        }
        if self.release.as_ref().is_some_and(|release| release.urls.is_empty()) {
            return refuse("`release.urls` is empty", "name a folder that has the release");
        }
        match (self.cni(), &self.cilium) {
            (Cni::Cilium, Some(cilium)) => cilium.check(file)?,
            (Cni::Cilium, None) => {
                return refuse("`cni` is cilium, and there is no [k3s.cilium]", "say there which `version`");
            }
            (Cni::Flannel, _) => {}
        }
        let (pods, services) = (self.cluster_cidr(), self.service_cidr());
        if pods.contains(&services) || services.contains(&pods) {
            return refuse(
                "`cluster-cidr` and `service-cidr` overlap",
                "give pods and services networks of their own",
            );
        }
        // The tenth address is the DNS', and each node takes a /24 of the pods'.
        if services.prefix_len() > 24 || pods.prefix_len() > 23 {
            return refuse(
                "`service-cidr` or `cluster-cidr` is too small",
                "a /24 for services and a /23 for pods is the least",
            );
        }
        if self.image_gc_percent.is_some_and(|percent| !(10..=100).contains(&percent)) {
            return refuse("`image-gc-percent` is not between 10 and 100", "100 never deletes an image");
        }
        Ok(())
    }
}
