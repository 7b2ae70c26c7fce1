//! `[k3s.cilium]` of a layer: how Cilium is set up where it connects the pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Kind};

/// Cilium in a cluster. What stands here becomes values of its chart and objects of its own kinds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cilium {
    /// Version of the chart and of the programs, `1.18.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Addresses that services of type LoadBalancer get, such as a /28 of the LAN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub lb_pool: Option<IpNet>,
    /// Whether the first and the last address of the pool are given out too. Default false: the last is often the LAN's broadcast address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lb_first_last: Option<bool>,
    /// Interfaces, as regular expressions, on which the nodes answer for those addresses (L2 announcements). Without it they do not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub l2_interfaces: Vec<String>,
    /// A router that is told about those addresses by BGP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<CiliumBgp>,
    /// What encrypts the traffic between nodes. Default `wireguard`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// The address of the pool on which Cilium's Ingress listens. Without it there is no Ingress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<IpAddr>,
    /// Further values of the chart; they win over what kiln writes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub values: BTreeMap<String, serde_json::Value>,
}

/// A router beside the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CiliumBgp {
    /// Autonomous system of the nodes.
    pub asn: u32,
    /// That of the router.
    pub peer_asn: u32,
    /// The router's address.
    pub peer: IpAddr,
}

/// What encrypts the traffic between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Nothing.
    None,
    /// A tunnel of WireGuard between every two nodes.
    Wireguard,
}

impl Cilium {
    /// Merges `later` over `self`, as [`super`] says.
    pub(super) fn merge(&mut self, later: Cilium) {
        let Cilium { version, lb_pool, lb_first_last, l2_interfaces, bgp, encryption, ingress, values } =
            later;
        self.version = version.or(self.version.take());
        self.lb_pool = lb_pool.or(self.lb_pool);
        self.lb_first_last = lb_first_last.or(self.lb_first_last);
        super::layer::join(&mut self.l2_interfaces, l2_interfaces);
        self.bgp = bgp.or(self.bgp.take());
        self.encryption = encryption.or(self.encryption);
        self.ingress = ingress.or(self.ingress);
        self.values.extend(values);
    }

    /// What no layer alone can see.
    ///
    /// # Errors
    /// [`Kind::Input`], with `file` in front.
    pub(super) fn check(&self, file: &str) -> Result<(), Failure> {
        let refuse = |why: String, hint: &str| {
            Err(Failure::new(Kind::Input, format!("{file}: [k3s.cilium]: {why}")).hint(hint.to_owned()))
        };
        if self.version.is_none() {
            return refuse("no layer says which `version`".to_owned(), "write such as version = \"1.18.1\"");
        }
        if self.lb_pool.is_none() && (self.bgp.is_some() || !self.l2_interfaces.is_empty()) {
            return refuse(
                "`bgp` and `l2-interfaces` announce nothing".to_owned(),
                "say by `lb-pool` which addresses services get",
            );
        }
        if let (Some(ingress), Some(pool)) = (self.ingress, self.lb_pool)
            && !pool.contains(&ingress)
        {
            return refuse(
                format!("`ingress` {ingress} is not in `lb-pool` {pool}"),
                "take an address of the pool",
            );
        }
        Ok(())
    }
}
