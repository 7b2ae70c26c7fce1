//! A kept cluster's API for people outside of it: a port of this machine that leads to the server, and a kubeconfig that names it.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use anyhow::Result;
use ipnet::{IpNet, Ipv4Net};

use super::cluster::Cluster;
use super::context::Context;
use super::node::Node;
use crate::kubeconfig;
use crate::qemu::forward::Forward;
use crate::scenario::spec::{Name, Scenario, Span};
use crate::spec::Role;

/// The kubeconfig in the report's folder.
pub(crate) const KUBECONFIG: &str = "kubeconfig";
/// Where K3s serves its API (docs.k3s.io/installation/requirements).
const PORT: u16 = 6443;
/// What a node may take to hand over a file.
const SOON: Span = Span::secs(30);

/// The API of a server.
#[derive(Debug)]
pub struct Api {
    /// The server.
    pub node: String,
    /// Its administrator's kubeconfig, which names the port. It is removed with this.
    pub kubeconfig: PathBuf,
    _forward: Forward,
}

impl Drop for Api {
    fn drop(&mut self) {
        // It leads to a machine that is about to end.
        let _ = fs_err::remove_file(&self.kubeconfig);
    }
}

/// The API of the first server whose K3s is up; `None` where there is none.
pub(super) fn open(context: &Context<'_>, cluster: &Cluster<'_>) -> Result<Option<Api>> {
    let is_server = |node: &&Node<'_>| {
        let role = cluster.image(node.spec()).ok().and_then(|image| image.manifest.role);
        role == Some(Role::Server) && node.spec().starts_k3s() && node.told().ready().is_some()
    };
    let Some(node) = cluster.nodes().find(is_server) else { return Ok(None) };
    let Some((network, address)) = place(node) else { return Ok(None) };
    let Some(from) = free(cluster.scenario, network) else { return Ok(None) };
    let text = node
        .get(context, kubeconfig::FILE, context.limit(SOON))
        .map_err(|trouble| anyhow::anyhow!("{}", trouble.why))?;
    let tap = cluster.net.tap(network)?;
    let forward = Forward::start(tap, from, SocketAddrV4::new(address, PORT))?;
    let name = &cluster.scenario.name;
    let text = kubeconfig::adapt(&String::from_utf8(text)?, &forward.address().to_string(), name)
        .map_err(|why| anyhow::anyhow!("{} of {}: {why}", kubeconfig::FILE, node.name()))?;
    let path = cluster.report.join(KUBECONFIG);
    kubeconfig::write(&path, text.as_bytes())?;
    Ok(Some(Api { node: node.name().to_owned(), kubeconfig: path, _forward: forward }))
}

/// The first network on which the node has an address of its own, and that address.
fn place<'a>(node: &Node<'a>) -> Option<(&'a Name, Ipv4Addr)> {
    node.spec().nics.iter().find_map(|nic| match nic.address.fixed()? {
        IpAddr::V4(address) => Some((&nic.network, address)),
        IpAddr::V6(_) => None,
    })
}

/// An address of `network` that the scenario gives to nobody: the highest one.
fn free(scenario: &Scenario, network: &Name) -> Option<Ipv4Net> {
    let subnet = scenario.networks.get(network)?.subnet;
    let IpNet::V4(net) = subnet.net() else { return None };
    let taken: Vec<IpAddr> = scenario.nodes().filter_map(|node| node.address_on(network)).collect();
    let leased = |address: IpAddr| {
        let servers = scenario.nodes().filter_map(|node| node.serves.as_ref()?.dhcp.as_ref());
        servers
            .filter(|dhcp| dhcp.network == *network)
            .any(|dhcp| (dhcp.first..=dhcp.last).contains(&address))
    };
    // What a load balancer hands out is at the end of a network as often as not, and is asked for from outside all the same.
    let host = net.hosts().rev().find(|host| !taken.contains(&(*host).into()) && !leased((*host).into()))?;
    Ipv4Net::new(host, net.prefix_len()).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn our_own_address_is_nobody_elses() {
        let text = r#"
schema = 1
description = "a network with two free addresses"
[network.lan]
subnet = "10.77.0.0/29"
[node.server]
profile = "server"
nics = [{ network = "lan", address = "10.77.0.6" }]
[node.edge]
profile = "edge"
nics = [{ network = "lan", address = "10.77.0.1" }]
[node.edge.serves]
dhcp = { network = "lan", range = ["10.77.0.4", "10.77.0.5"] }
[[step]]
name = "up"
on = "every"
ready = true
"#;
        let scenario =
            Scenario::parse("x", "qemu/x.toml", text, &BTreeSet::from(["edge".to_owned()])).unwrap();
        let lan = scenario.networks.keys().next().unwrap();
        assert_eq!(free(&scenario, lan).unwrap().to_string(), "10.77.0.3/29");
    }
}
